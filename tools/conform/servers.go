package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

const (
	apex      = "conform.test."
	keyName   = "op.conform.test."
	startMax  = 60 * time.Second // a busy machine may take long
	endMax    = 30 * time.Second
	token     = "op-conform"
	apexA     = "192.0.2.17"
	apexAAAA  = "2001:db8::17"
	apexNS    = "ns.conform.net." // not in the zone, so that no peer has an address to add
	soaRName  = "hostmaster.conform.test."
	ttlSec    = 60
	valueLife = 86400
)

// The three servers, by what they are.
const (
	node = iota
	knotd
	named
	kinds
)

// BIND listens only on addresses that an interface has, and loopback has one of its network.
var addresses = [kinds]string{node: "127.0.0.17", knotd: "127.0.0.18", named: "127.0.0.1"}

type server struct {
	kind    int
	name    string
	addr    string // for DNS
	process *exec.Cmd
	output  bytes.Buffer
	ended   chan error
	secret  string // of keyName, base64
}

// start starts all three and waits until they answer. What it started it returns, also with an error.
func start(bin, dir string, z *zone) (all []*server, err error) {
	for _, program := range []string{"knotd", "named"} {
		if _, err := exec.LookPath(program); err != nil {
			if _, err := os.Stat("/usr/sbin/" + program); err != nil {
				return nil, fmt.Errorf("%s is missing: apt-get install knot bind9", program)
			}
		}
	}
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin")
	for kind, make := range []func(string, string, *zone, *server) error{startNode(bin), startKnot, startBIND} {
		s := &server{kind: kind, name: []string{"dmpd", "Knot", "BIND"}[kind]}
		// The port is free when asked for; should another process take it in between, the next one is tried.
		for try := 0; ; try++ {
			if err = s.try(addresses[kind], filepath.Join(dir, fmt.Sprint(s.name, try)), z, make); err == nil {
				break
			}
			alive := s.process != nil
			s.end()
			if alive || try == 2 {
				return all, fmt.Errorf("%s does not start: %w\n%s", s.name, err, s.output.String())
			}
		}
		all = append(all, s)
	}
	return all, nil
}

func (s *server) try(ip, dir string, z *zone, make func(string, string, *zone, *server) error) error {
	port, err := freePort(ip)
	if err != nil {
		return fmt.Errorf("no free port on %s: %w", ip, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	s.addr = net.JoinHostPort(ip, port)
	return make(dir, port, z, s)
}

// freePort finds a port that UDP and TCP have free.
func freePort(ip string) (string, error) {
	var err error
	for range 20 {
		var l net.Listener
		if l, err = net.Listen("tcp", ip+":0"); err != nil {
			continue
		}
		var u net.PacketConn
		u, err = net.ListenPacket("udp", l.Addr().String())
		_, port, _ := net.SplitHostPort(l.Addr().String())
		l.Close()
		if err == nil {
			u.Close()
			return port, nil
		}
	}
	return "", err
}

// launch starts a program and waits until its zone's SOA answers.
func (s *server) launch(command *exec.Cmd) error {
	s.output.Reset()
	command.Stdout, command.Stderr = &s.output, &s.output
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := command.Start(); err != nil {
		return err
	}
	s.process, s.ended = command, make(chan error, 1)
	ended := s.ended
	go func() { ended <- command.Wait() }()
	m := new(dns.Msg)
	m.SetQuestion(apex, dns.TypeSOA)
	var last error
	for until := time.Now().Add(startMax); time.Now().Before(until); time.Sleep(50 * time.Millisecond) {
		select {
		case err := <-s.ended:
			s.process = nil
			return fmt.Errorf("it ended: %v", err)
		default:
		}
		in, _, err := (&dns.Client{Timeout: 2 * time.Second}).Exchange(m, s.addr)
		if err == nil && in.Rcode == dns.RcodeSuccess && len(in.Answer) == 1 {
			return nil
		}
		last = err
	}
	return fmt.Errorf("no answer: %v", last)
}

// end ends the process, by its pid.
func (s *server) end() error {
	if s.process == nil {
		return nil
	}
	p := s.process.Process
	s.process = nil
	p.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
		return nil
	case <-time.After(endMax):
		p.Kill()
		<-s.ended
		return fmt.Errorf("%s did not end within %v", s.name, endMax)
	}
}

func startNode(bin string) func(string, string, *zone, *server) error {
	return func(dir, port string, z *zone, s *server) error {
		bin, err := filepath.Abs(bin)
		if err != nil {
			return err
		}
		ip, _, _ := net.SplitHostPort(s.addr)
		httpPort, err := freePort(ip)
		if err != nil {
			return err
		}
		c := exec.Command(filepath.Join(bin, "dmpd"), "run", "--state-dir", dir)
		c.Dir = dir
		for _, v := range os.Environ() {
			if !strings.HasPrefix(v, "DMP_") {
				c.Env = append(c.Env, v)
			}
		}
		zoneText := strings.TrimSuffix(apex, ".")
		c.Env = append(c.Env, "DMP_SERVED_ZONE="+zoneText, "DMP_DNS_HOST="+ip, "DMP_DNS_PORT="+port, "DMP_HTTP_HOST="+ip, "DMP_HTTP_PORT="+httpPort,
			"DMP_DNS_APEX_A="+apexA, "DMP_DNS_APEX_AAAA="+apexAAAA, "DMP_DNS_APEX_NS="+strings.TrimSuffix(apexNS, "."), "DMP_DNS_APEX_SOA_RNAME="+strings.TrimSuffix(soaRName, "."),
			fmt.Sprint("DMP_DNS_TTL=", ttlSec), "DMP_AUTH_MODE=multi-tenant", "DMP_OPERATOR_TOKEN="+token, "DMP_DNS_UPDATE_ENABLED=1", "DMP_HTTP_RATE=0", "DMP_RRL_RATE=0", "DMP_UPDATE_PREREQUISITES=on")
		if err := s.launch(c); err != nil {
			return err
		}
		if err := z.post("http://" + net.JoinHostPort(ip, httpPort)); err != nil {
			return err
		}
		mint := exec.Command(filepath.Join(bin, "dmpd"), "tsig", "mint", "--state-dir", dir, "--name", strings.TrimSuffix(keyName, "."), "--scope", zoneText, "--operator", "--expires", "1d", "--json")
		out, err := mint.Output()
		if err != nil {
			return fmt.Errorf("dmpd tsig mint: %w", err)
		}
		var key struct {
			Secret string `json:"secret_base64"`
			Key    struct {
				Secret string `json:"secret_base64"`
			} `json:"key"`
		}
		if err := json.Unmarshal(out, &key); err != nil {
			return fmt.Errorf("dmpd tsig mint --json: %w", err)
		}
		if s.secret = key.Secret + key.Key.Secret; s.secret == "" {
			return errors.New("dmpd tsig mint --json shows no secret")
		}
		return nil
	}
}

// post writes the zone's values through the records API, several at once: each waits for a sync.
func (z *zone) post(base string) error {
	type one struct{ name, value string }
	work, failed := make(chan one), make(chan error, 1)
	var wait sync.WaitGroup
	for range 16 {
		wait.Go(func() {
			for w := range work {
				body, _ := json.Marshal(map[string]any{"value": w.value, "ttl": valueLife})
				req, err := http.NewRequest("POST", base+"/v1/records/"+strings.TrimSuffix(w.name, "."), bytes.NewReader(body))
				if err == nil {
					req.Header.Set("Authorization", "Bearer "+token)
					var resp *http.Response
					if resp, err = http.DefaultClient.Do(req); err == nil {
						resp.Body.Close()
						if resp.StatusCode != 201 {
							err = fmt.Errorf("%s: status %s", w.name, resp.Status)
						}
					}
				}
				if err != nil {
					select {
					case failed <- err:
					default:
					}
				}
			}
		})
	}
	for _, name := range z.names {
		for _, value := range z.values[name] {
			work <- one{name, value}
		}
	}
	close(work)
	wait.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

const secret = "QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkI=" // of the peers' key, good for this run alone

func startKnot(dir, port string, z *zone, s *server) error {
	s.secret = secret
	ip, _, _ := net.SplitHostPort(s.addr)
	conf := fmt.Sprintf(`server:
    rundir: "%[1]s"
    listen: %[2]s@%[3]s
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
    udp-max-payload: 1232
    identity: ""
    version: ""
log:
  - target: stderr
    any: warning
database:
    storage: "%[1]s"
key:
  - id: %[4]s
    algorithm: hmac-sha256
    secret: %[5]s
acl:
  - id: update
    key: %[4]s
    action: update
zone:
  - domain: %[6]s
    file: "%[1]s/zone"
    acl: update
    zonefile-sync: -1
    journal-content: none
    semantic-checks: off
`, dir, ip, port, keyName, secret, apex)
	if err := z.write(dir, conf); err != nil {
		return err
	}
	return s.launch(exec.Command("knotd", "-c", filepath.Join(dir, "conf")))
}

func startBIND(dir, port string, z *zone, s *server) error {
	s.secret = secret
	ip, _, _ := net.SplitHostPort(s.addr)
	conf := fmt.Sprintf(`options {
	directory "%[1]s"; pid-file none; session-keyfile none; lock-file none;
	listen-on port %[3]s { %[2]s; }; listen-on-v6 { none; };
	recursion no; allow-query { any; }; allow-transfer { none; }; notify no; dnssec-validation no; empty-zones-enable no;
	minimal-responses yes; max-udp-size 1232; edns-udp-size 1232;
};
controls { };
logging { channel out { stderr; severity error; }; category default { out; }; };
key "%[4]s" { algorithm hmac-sha256; secret "%[5]s"; };
zone "%[6]s" { type primary; file "%[1]s/zone"; allow-update { key "%[4]s"; }; };
`, dir, ip, port, keyName, secret, apex)
	if err := z.write(dir, conf); err != nil {
		return err
	}
	return s.launch(exec.Command("named", "-f", "-g", "-n", "1", "-c", filepath.Join(dir, "conf")))
}

// write writes a peer's configuration and zone file.
func (z *zone) write(dir, conf string) error {
	return errors.Join(os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o600), os.WriteFile(filepath.Join(dir, "zone"), []byte(z.file()), 0o600))
}
