package main

import (
	"crypto/ed25519"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/config"
	"github.com/dnsmesh/dmpd/internal/record"
)

// patient is a node of example.com for dmpd doctor to look at, with faults to plant.
type patient struct {
	port     string // of the name server
	resolver string // another server with the same records, and without the faults of the first's transports
	url, ca  string

	mu    sync.Mutex
	rrs   map[string][]string // zone file lines by "name type"
	fault string
}

const patientZone = "example.com"

func (p *patient) set(key string, lines ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rrs[key] = lines
}

func (p *patient) txt(name string, values ...[]byte) {
	var lines []string
	for _, v := range values {
		quoted := ""
		for s := string(v); s != ""; s = s[min(len(s), 200):] {
			quoted += fmt.Sprintf(" %q", s[:min(len(s), 200)])
		}
		lines = append(lines, quoted)
	}
	p.set(name+" TXT", lines...)
}

func (p *patient) answer(w dns.ResponseWriter, q *dns.Msg, world bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := new(dns.Msg)
	m.SetReply(q)
	m.Authoritative = true
	defer func() { _ = w.WriteMsg(m) }()
	if q.Opcode == dns.OpcodeUpdate {
		txt := q.Ns[0].(*dns.TXT)
		name, value := strings.TrimSuffix(txt.Hdr.Name, "."), strings.Join(txt.Txt, "")
		var c record.Claim
		good := c.Verify([]byte(value), clock.NowMs()/1000) == record.Accepted && strings.HasPrefix(name, "claim-")
		switch {
		case good && p.fault == "claims refused" || !good && p.fault != "open to all":
			m.Rcode = dns.RcodeRefused
		case good && p.fault != "claims swallowed":
			p.rrs[strings.ToLower(name)+" TXT"] = []string{fmt.Sprintf("%q", value)}
		}
		return
	}
	name := strings.ToLower(strings.TrimSuffix(q.Question[0].Name, "."))
	lines := p.rrs[name+" "+dns.TypeToString[q.Question[0].Qtype]]
	if p.fault == "wildcard" && q.Question[0].Qtype == dns.TypeTXT && lines == nil {
		lines = []string{`"anything"`}
	}
	for _, line := range lines {
		rr, err := dns.NewRR(q.Question[0].Name + " 60 IN " + dns.TypeToString[q.Question[0].Qtype] + " " + line)
		if err != nil {
			panic(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	there := false
	for key := range p.rrs {
		there = there || strings.HasPrefix(key, name+" ")
	}
	if len(m.Answer) == 0 {
		if !there {
			m.Rcode = dns.RcodeNameError
		}
		for _, line := range p.rrs[patientZone+" SOA"] {
			soa, err := dns.NewRR(patientZone + ". 60 IN SOA " + line)
			if err != nil {
				panic(err)
			}
			m.Ns = append(m.Ns, soa)
		}
	}
	size := dns.MinMsgSize
	if o := q.IsEdns0(); o != nil {
		m.SetEdns0(1232, false)
		size = min(1232, int(o.UDPSize()))
	}
	if world {
		switch p.fault {
		case "lower case":
			m.Question[0].Name = strings.ToLower(m.Question[0].Name)
		case "no EDNS":
			m.Extra = nil
		case "large datagrams":
			size = dns.MaxMsgSize
		}
	}
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		m.Truncate(size)
	}
}

// listen serves on one port, UDP and TCP, or one of them.
func (p *patient) listen(t *testing.T, world bool, udp, tcp bool) string {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp", l.Addr().String())
		if err != nil {
			l.Close()
			continue
		}
		handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { p.answer(w, q, world) })
		accept := func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept } // UPDATE too
		servers := []*dns.Server{{Listener: l, Handler: handler, MsgAcceptFunc: accept}, {PacketConn: pc, Handler: handler, MsgAcceptFunc: accept}}
		for i, on := range []bool{tcp, udp} {
			if !on {
				continue
			}
			started := make(chan struct{})
			servers[i].NotifyStartedFunc = func() { close(started) }
			go func() { _ = servers[i].ActivateAndServe() }()
			<-started
			t.Cleanup(func() { _ = servers[i].Shutdown() })
		}
		if !tcp {
			l.Close()
		}
		if !udp { // the port stays ours, and takes nothing from anybody else
			pc.Close()
			c, err := net.DialUDP("udp", pc.LocalAddr().(*net.UDPAddr), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
		}
		return l.Addr().String()
	}
	t.Fatal("no port is free for both UDP and TCP")
	return ""
}

func newPatient(t *testing.T, fault string) *patient {
	t.Helper()
	p := &patient{fault: fault, rrs: map[string][]string{}}
	p.resolver = p.listen(t, false, true, true)
	_, p.port, _ = net.SplitHostPort(p.listen(t, true, fault != "no UDP", fault != "no TCP"))
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fault == "clock" {
			w.Header().Set("Date", time.Now().Add(400*time.Second).UTC().Format(http.TimeFormat))
		}
		switch {
		case r.URL.Path == "/health" && fault == "sick":
			w.WriteHeader(http.StatusServiceUnavailable)
		case r.URL.Path == "/health":
		case r.URL.Path == "/v1/registration/challenge" && fault != "no registration":
			fmt.Fprint(w, `{"challenge": "00", "node": "example.com"}`)
		default:
			w.WriteHeader(http.StatusBadGateway)
		}
	}))
	t.Cleanup(web.Close)
	_, webPort, _ := net.SplitHostPort(web.Listener.Addr().String())
	p.url = "https://" + patientZone + ":" + webPort
	p.ca = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(p.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	p.set(patientZone+" SOA", "ns.example.com. hostmaster.example.com. 1 2 3 4 5")
	p.set(patientZone+" NS", "ns.example.com.")
	p.set(patientZone+" A", "127.0.0.1")
	p.set("ns.example.com A", "127.0.0.1")
	p.txt("_dnsmesh-heartbeat.example.com", p.heartbeat(t, 1, p.url, 30))
	p.txt("_dnsmesh-seen.example.com", p.heartbeat(t, 2, "https://a.example", 10), p.heartbeat(t, 3, "https://b.example", 10), p.heartbeat(t, 4, "https://c.example", 10))
	return p
}

func (p *patient) heartbeat(t *testing.T, n byte, endpoint string, age int64) []byte {
	t.Helper()
	now := clock.NowMs() / 1000
	h := record.Heartbeat{Endpoint: endpoint, Version: "1", Zone: patientZone, Capabilities: record.CapClaimProvider, TsSec: uint64(now - age), ExpSec: uint64(now + 86400)}
	text, r := h.Append(nil, ed25519.NewKeyFromSeed([]byte(strings.Repeat(string(rune('0'+n)), 32))))
	if r != record.Accepted {
		t.Fatal(r)
	}
	return text
}

func (p *patient) examine(t *testing.T, want int, more ...string) map[string]finding {
	t.Helper()
	args := []string{"doctor", patientZone, "--remote", "--resolver", p.resolver, "--port", p.port, "--url", p.url, "--json"}
	if p.fault != "certificate" {
		args = append(args, "--ca", p.ca)
	}
	var out, errOut strings.Builder
	code := execute(append(args, more...), strings.NewReader(""), &out, &errOut)
	var fs []finding
	if err := json.Unmarshal([]byte(out.String()), &fs); err != nil || code != want {
		t.Fatalf("%s: exit %d, want %d, %v\n%s%s", p.fault, code, want, err, out.String(), errOut.String())
	}
	found := map[string]finding{}
	for _, f := range fs {
		found[f.Check] = f
		if (f.Verdict == pass || f.Verdict == skip) != (f.Remedy == "") {
			t.Errorf("%s: %+v", p.fault, f)
		}
	}
	return found
}

// TestDoctor: a node that is well, but for addresses that the world cannot reach; and every fault is found by the check that is for it.
func TestDoctor(t *testing.T) {
	t.Parallel()
	well := newPatient(t, "").examine(t, exitOK)
	if len(well) < 17 {
		t.Fatalf("%d checks: %+v", len(well), well)
	}
	for name, f := range well {
		if f.Verdict != pass && name != "glue" {
			t.Errorf("%+v", f)
		}
	}
	for _, x := range []struct {
		fault, check, verdict string
		plant                 func(p *patient)
	}{
		{"no delegation", "delegation", fail, func(p *patient) { p.set(patientZone + " NS") }},
		{"no glue", "glue", fail, func(p *patient) { p.set("ns.example.com A") }},
		{"no UDP", "dns-udp", fail, nil},
		{"no TCP", "dns-tcp", fail, nil},
		{"no SOA", "apex-soa", fail, func(p *patient) { p.set(patientZone + " SOA") }},
		{"no address", "apex-a", warn, func(p *patient) { p.set(patientZone + " A"); p.set("ns.example.com A", "127.0.0.1") }},
		{"lower case", "0x20", fail, nil},
		{"no EDNS", "edns", warn, nil},
		{"large datagrams", "edns", warn, nil},
		{"wildcard", "nxdomain", fail, nil},
		{"open to all", "unsigned-update", fail, nil},
		{"sick", "http", fail, nil},
		{"no registration", "registration", fail, nil},
		{"certificate", "certificate", fail, nil},
		{"clock", "clock-http", fail, nil},
		{"no heartbeat", "heartbeat", fail, func(p *patient) { p.set("_dnsmesh-heartbeat.example.com TXT") }},
		{"stale heartbeat", "heartbeat", fail, func(p *patient) { p.txt("_dnsmesh-heartbeat.example.com", p.heartbeat(t, 1, p.url, 290)) }},
		{"another's endpoint", "heartbeat", warn, func(p *patient) {
			p.txt("_dnsmesh-heartbeat.example.com", p.heartbeat(t, 1, "https://ns.example.com", 10))
		}},
		{"nobody heard", "seen-graph", warn, func(p *patient) { p.set("_dnsmesh-seen.example.com TXT") }},
		{"ourselves heard", "seen-graph", warn, func(p *patient) { p.txt("_dnsmesh-seen.example.com", p.heartbeat(t, 1, p.url, 10)) }},
		{"claims refused", "claim", fail, nil},
		{"claims swallowed", "claim", fail, nil},
	} {
		t.Run(x.fault, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t, x.fault)
			if x.plant != nil {
				x.plant(p)
			}
			want := exitOK
			if x.verdict == fail || x.fault == "no address" { // which claims need too
				want = exitFailed
			}
			found := p.examine(t, want)
			if f := found[x.check]; f.Verdict != x.verdict || f.Remedy == "" {
				t.Errorf("%+v", f)
			}
		})
	}
}

// TestDoctorRefuses: what it cannot do anything with.
func TestDoctorRefuses(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--resolver", "host", "a.example", "--remote"}, {"--server", "host", "a.example", "--remote"}, {"--port", "0", "a.example", "--remote"},
		{"--url", "ftp://x", "a.example", "--remote"}, {"bad_zone", "--remote"}, {"--remote"}, {"--ca", "/nowhere", "a.example", "--remote"}, {"a.example", "b.example"}} {
		dmpd(t, exitUsage, append([]string{"doctor"}, args...)...)
	}
}

// TestPortHolder: who has the port is told by name.
func TestPortHolder(t *testing.T) {
	t.Parallel()
	const line = "  10: %s %s %s 00000000:00000000 00:00000000 00000000     0        0 %d 2 0000000000000000 0\n"
	for _, x := range []struct {
		what, udp, tcp string
		port           uint16
		verdict, found string
	}{
		{"the node", fmt.Sprintf(line, "00000000:0035", "00000000:0000", "07", 7), fmt.Sprintf(line, "00000000:0035", "00000000:0000", "0A", 7), 53, pass, "dmp-dataplane (100) has 0.0.0.0:53/udp"},
		{"somebody else", fmt.Sprintf(line, "00000000:0035", "00000000:0000", "07", 8), "", 53, fail, "named (200) has 0.0.0.0:53/udp"},
		{"both", fmt.Sprintf(line, "00000000:14E9", "00000000:0000", "07", 7) + fmt.Sprintf(line, "010200C0:14E9", "00000000:0000", "07", 8), "", 5353, warn, "named (200) has 192.0.2.1:5353/udp beside dmp-dataplane"},
		{"systemd-resolved at its own address", fmt.Sprintf(line, "00000000:14E9", "00000000:0000", "07", 7) + fmt.Sprintf(line, "3500007F:0035", "00000000:0000", "07", 8), "", 5353, pass, "dmp-dataplane"},
		{"nobody", "", fmt.Sprintf(line, "00000000:0035", "0101017F:1234", "01", 8), 53, fail, "nobody that can be seen listens on port 53"},
		{"one that is not shown", fmt.Sprintf(line, "00000000:0035", "00000000:0000", "07", 99), "", 53, fail, "a process that is not shown to this user has 0.0.0.0:53/udp"},
		{"another port than the world asks", fmt.Sprintf(line, "00000000:14E9", "00000000:0000", "07", 7), "", 53, warn, "the node listens on port 5353, the world asks port 53"},
	} {
		proc := t.TempDir()
		for path, text := range map[string]string{"net/udp": "head\n" + x.udp, "net/tcp": "head\n" + x.tcp, "100/comm": "dmp-dataplane\n", "200/comm": "named\n", "100/fd/3": "socket:[7]", "200/fd/4": "socket:[8]"} {
			path = filepath.Join(proc, path)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			var err error
			if strings.HasPrefix(text, "socket:") {
				err = os.Symlink(text, path)
			} else {
				err = os.WriteFile(path, []byte(text), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		port := "53"
		if strings.Contains(x.udp, ":14E9") {
			port = "5353"
		}
		c, _, errs := config.Resolve(config.Input{Environ: []string{"DMP_DNS_PORT=" + port, "DMP_HTTP_HOST=127.0.0.1"}})
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		e := &examination{proc: proc, port: x.port, config: c}
		e.portHolder()
		if f := e.findings[0]; f.Verdict != x.verdict || !strings.Contains(f.Found, x.found) {
			t.Errorf("%s: %+v", x.what, f)
		}
	}
}
