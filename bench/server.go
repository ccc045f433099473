package bench

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// Server is a server under load: a process of ours.
type Server struct {
	Name    string
	Version string
	Addr    netip.AddrPort
	Ready   time.Duration // from start to the first right answer
	Echo    bool

	http   netip.AddrPort // of a node of ours
	zone   Zone
	link   *link // in a lab: its end of the pair
	xdp    bool
	began  time.Time
	cmd    *exec.Cmd
	log    *os.File
	exited chan struct{}
}

// cores are where the server runs and where the load comes from.
type cores struct {
	server, load unix.CPUSet
	netns        string // where servers run, if not here
}

// everything is all cores that there are, once pin has taken some from this process: its children would inherit that.
var everything unix.CPUSet

// pin keeps this process off the server's core. On one core, or if it is not allowed, nothing is pinned.
func pin() (*cores, error) {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return nil, err
	}
	var have []int
	for i := range 1024 {
		if all.IsSet(i) {
			have = append(have, i)
		}
	}
	if len(have) < 2 {
		return nil, nil
	}
	everything = all
	c := &cores{}
	c.server.Set(have[0])
	for _, i := range have[1:] {
		c.load.Set(i)
	}
	return c, setAll(&c.load)
}

func setAll(set *unix.CPUSet) error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		tid, _ := strconv.Atoi(t.Name())
		if err := unix.SchedSetaffinity(tid, set); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// spawn starts a process, on the server's core if c is not nil. What it prints goes to a file beside its data.
func (s *Server) spawn(c *cores, dir string, env []string, name string, args ...string) error {
	log, err := os.Create(filepath.Join(dir, s.Name+".log"))
	if err != nil {
		return err
	}
	s.log = log
	if c != nil && c.netns != "" { // the process stays the same one
		name, args = "ip", append([]string{"netns", "exec", c.netns, name}, args...)
	}
	s.cmd = exec.Command(name, args...)
	s.cmd.Stdout, s.cmd.Stderr, s.cmd.Dir, s.cmd.Env = log, log, dir, env
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The child has the cores of the thread that forks it, and is killed when that thread ends; so the thread is kept.
		runtime.LockOSThread()
		on := everything // what the bench itself may not use is the server's, too
		if c != nil {
			on = c.server
		}
		if on.Count() > 0 {
			if err := unix.SchedSetaffinity(0, &on); err != nil {
				started <- err
				return
			}
		}
		s.began = time.Now()
		if err := s.cmd.Start(); err != nil {
			started <- err
			return
		}
		s.exited = make(chan struct{})
		started <- nil
		_ = s.cmd.Wait()
		close(s.exited)
	}()
	if err := <-started; err != nil {
		log.Close()
		return fmt.Errorf("bench: %s: %w", s.Name, err)
	}
	return nil
}

// readyWithin bounds loading a zone of ten million names.
const readyWithin = 5 * time.Minute

// await waits for the first right answer.
func (s *Server) await(z Zone) error {
	client := &dns.Client{Timeout: 200 * time.Millisecond}
	question := new(dns.Msg)
	question.SetQuestion(z.label(uint64(z.Names-1))+"."+z.Name+".", dns.TypeTXT)
	for time.Since(s.began) < readyWithin {
		select {
		case <-s.exited:
			return fmt.Errorf("bench: %s has ended: %s", s.Name, s.tail())
		default:
		}
		reply, err := s.ask(client, question)
		if err == nil && (s.Echo || reply.Rcode == dns.RcodeSuccess && (len(reply.Answer) == 1 || z.Set > 0 && reply.Truncated)) {
			s.Ready = time.Since(s.began)
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("bench: %s gave no right answer within %s: %s", s.Name, readyWithin, s.tail())
}

// ask sends a question from where the load will come.
func (s *Server) ask(client *dns.Client, question *dns.Msg) (reply *dns.Msg, err error) {
	ask := func() error {
		reply, _, err = client.Exchange(question, s.Addr.String())
		return err
	}
	if s.link != nil {
		return reply, inside(s.link.lab.client, ask)
	}
	return reply, ask()
}

// healthy waits for the HTTP process of a node.
func (s *Server) healthy() error {
	ask := func() error { // by a connection of this thread, which may be in another namespace
		conn, err := net.DialTimeout("tcp4", s.http.String(), time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(time.Second))
		if _, err := io.WriteString(conn, "GET /health HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
		r, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err == nil && r.StatusCode != http.StatusOK {
			err = errors.New(r.Status)
		}
		return err
	}
	var err error
	for time.Since(s.began) < readyWithin {
		select {
		case <-s.exited:
			return fmt.Errorf("bench: %s has ended: %s", s.Name, s.tail())
		default:
		}
		if s.link != nil {
			err = inside(s.link.lab.server, ask)
		} else {
			err = ask()
		}
		if err == nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("bench: %s is not healthy within %s: %w: %s", s.Name, readyWithin, err, s.tail())
}

// settled waits until the work of the start, which goes on behind the first answer, is done: a second with little CPU time.
func (s *Server) settled() error {
	for time.Since(s.began) < readyWithin {
		before, err := s.CPU()
		if err != nil {
			return err
		}
		time.Sleep(time.Second)
		after, err := s.CPU()
		if err != nil {
			return err
		}
		if after-before < 200*time.Millisecond {
			return nil
		}
	}
	return nil // it is measured as it is
}

func (s *Server) tail() string {
	b, _ := os.ReadFile(s.log.Name())
	return string(bytes.TrimSpace(b[max(0, len(b)-500):]))
}

// Stop ends the process.
func (s *Server) Stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.exited:
	case <-time.After(20 * time.Second):
		_ = s.cmd.Process.Kill()
		<-s.exited
	}
	s.log.Close()
}

// pids are the process and all that it started: NSD answers in children of a child.
func (s *Server) pids() []string {
	pids := []string{strconv.Itoa(s.cmd.Process.Pid)}
	for i := 0; i < len(pids); i++ {
		lists, _ := filepath.Glob("/proc/" + pids[i] + "/task/*/children")
		for _, l := range lists {
			b, _ := os.ReadFile(l)
			pids = append(pids, strings.Fields(string(b))...)
		}
	}
	return pids
}

// CPU is the time that the server's processes have run, also in threads that have ended: the reference node makes one for each message.
func (s *Server) CPU() (sum time.Duration, err error) {
	for _, text := range s.pids() {
		pid, err := strconv.Atoi(text)
		if err != nil {
			return 0, err
		}
		// The clock of a process: its id, inverted, and CPUCLOCK_SCHED, as clock_getcpuclockid(3) puts them together.
		var t unix.Timespec
		if err := unix.ClockGettime(int32(^pid)<<3|2, &t); err != nil {
			return 0, fmt.Errorf("bench: the CPU time of %s cannot be read: %w", s.Name, err)
		}
		sum += time.Duration(t.Nano())
	}
	return sum, nil
}

// PSS is the memory of the process and its children, shared pages in part, and how much of that is pages of files, which the system
// takes back when it needs them.
func (s *Server) PSS() (bytes, files int64, err error) {
	for _, pid := range s.pids() {
		b, err := os.ReadFile("/proc/" + pid + "/smaps_rollup")
		if err != nil {
			return 0, 0, err
		}
		for line := range strings.Lines(string(b)) {
			name, rest, _ := strings.Cut(line, ":")
			kb := func() int64 {
				n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
				return n << 10
			}
			switch name {
			case "Pss":
				bytes += kb()
			case "Pss_File":
				files += kb()
			}
		}
	}
	return bytes, files, nil
}

// freePort finds a port that is free for UDP and TCP.
func freePort() (netip.AddrPort, error) {
	for range 100 {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return netip.AddrPort{}, err
		}
		at := l.Addr().(*net.TCPAddr).AddrPort()
		u, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		l.Close()
		if err == nil {
			u.Close()
			return at, nil
		}
	}
	return netip.AddrPort{}, errors.New("bench: no port is free for both UDP and TCP")
}
