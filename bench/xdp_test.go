package bench

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// testCores are two halves of the cores that there are. Nothing of this process is pinned to them.
func testCores(t *testing.T) *cores {
	t.Helper()
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	c := &cores{}
	for i := range 1024 {
		switch {
		case !all.IsSet(i):
		case c.server.Count() == 0:
			c.server.Set(i)
		default:
			c.load.Set(i)
		}
	}
	if c.load.Count() == 0 {
		t.Skip("NOT TESTED: the lab: there is one core")
	}
	return c
}

// A server in one namespace and the load in another: what receiving costs is counted, sockets are not taken for XDP, and nothing stays.
func TestLab(t *testing.T) {
	l, err := newLab(testCores(t))
	var why *leftOut
	if errors.As(err, &why) {
		t.Skip("NOT TESTED: the lab: ", why)
	}
	if err != nil {
		t.Fatal(err)
	}
	removed := false
	defer func() {
		if !removed {
			l.remove()
		}
	}()
	k, at, err := l.pair()
	if errors.As(err, &why) {
		t.Skip("NOT TESTED: the lab: ", why)
	}
	if err != nil {
		t.Fatal(err)
	}
	var u *net.UDPConn
	if err := inside(l.server, func() (err error) {
		u, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	dnsServer := &dns.Server{PacketConn: u, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) { right(m, w) }), NotifyStartedFunc: func() { close(started) }}
	go dnsServer.ActivateAndServe()
	<-started
	defer dnsServer.Shutdown()
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Name: "test", Addr: at, link: k, cmd: &exec.Cmd{Process: self}, zone: testZone}
	load := func() (Result, error) {
		return Load{Target: at, Duration: time.Minute, Window: 16, Sockets: 2, Messages: 2000}.Run(NewMix(testZone, 10, 1))
	}
	r, err := s.timed(load)
	if err != nil || r.Sent != 2000 || r.Answered < 1900 || r.Wrong != 0 {
		t.Fatalf("%d sent, %d answered, %d wrong (%v), %v", r.Sent, r.Answered, r.Wrong, r.FirstWrong, err)
	}
	if r.process <= 0 || r.ServerCPU <= r.process {
		t.Errorf("receiving cost nothing: the process %s, together %s", r.process, r.ServerCPU)
	}
	s.xdp = true
	if r, err := s.timed(load); err == nil {
		t.Errorf("%d answers of a socket were taken for XDP's", r.Answered)
	}
	Interrupted()
	removed = true
	for _, ns := range []string{l.server, l.client} {
		if _, err := os.Stat("/run/netns/" + ns); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s stays: %v", ns, err)
		}
	}
}

// What cannot be measured is said where the figures would be; anything else is an error.
func TestLeaveOut(t *testing.T) {
	var out, progress strings.Builder
	s := &Suite{Out: &out, Progress: &progress}
	_, err := newLab(nil)
	if err == nil || s.leaveOut(&scenario{name: "xdp", title: "T"}, err) != nil {
		t.Fatal(err)
	}
	for _, said := range []string{out.String(), progress.String()} {
		if !strings.Contains(said, "it needs a core for the server") || !strings.Contains(said, "xdp") {
			t.Errorf("%q", said)
		}
	}
	if s.leaveOut(&scenario{}, io.EOF) != io.EOF {
		t.Error("an error was passed over")
	}
}
