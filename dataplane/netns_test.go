package dataplane

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/panjf2000/gnet/v2"

	"github.com/dnsmesh/dmpd/internal/stats"
)

// netnsInside tells the test binary that it runs inside the network namespace made for it.
const netnsInside = "DMPD_TEST_NETNS"

// TestNetns: a node on both wildcards answers every datagram from the address that it was sent to, whoever of the machine's
// addresses the kernel would choose, and follows addresses that come and go (design.md, The packet path).
//
// The machine's addresses must not be touched, so the test runs itself again in a network namespace of its own.
func TestNetns(t *testing.T) {
	if os.Getenv(netnsInside) != "" {
		netnsTest(t)
		return
	}
	t.Parallel()
	name := fmt.Sprintf("dmpd-test-%d", os.Getpid())
	missing := func(format string, args ...any) {
		t.Helper()
		if os.Getenv("CI") == "true" {
			t.Fatalf("not tested, and CI=true: "+format, args...)
		}
		t.Skipf("NOT TESTED: the source address of replies on wildcard addresses: "+format, args...)
	}
	if os.Getuid() != 0 {
		missing("needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		missing("needs the command ip (iproute2): %v", err)
	}
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		missing("no network namespace can be made: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
			t.Errorf("the namespace stays: %v: %s", err, out)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 3*limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", name, os.Args[0], "-test.run=^TestNetns$", "-test.count=1", "-test.v")
	cmd.Env = append(os.Environ(), netnsInside+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	} else if !bytes.Contains(out, []byte("--- PASS: TestNetns")) {
		t.Errorf("nothing was tested:\n%s", out)
	}
}

func runIP(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v: %s", args, err, out)
	}
}

func netnsTest(t *testing.T) {
	runIP(t, "link", "set", "lo", "up")
	// A namespace may inherit that IPv6 is off.
	os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("0"), 0o644)
	os.WriteFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6", []byte("0"), 0o644)
	for _, a := range []string{"192.0.2.1/32", "192.0.2.2/32", "2001:db8::1/128", "2001:db8::2/128"} {
		runIP(t, "addr", "add", a, "dev", "lo")
	}
	r := startRig(t, func(c *Config) { c.Hosts, c.Loops, c.Settings.RRLRate = []string{"0.0.0.0", "::"}, 1, 0 })
	r.key("op."+testZone, testZone)
	port := r.Addrs()[0].Port()
	all := func() (as []string) {
		for _, a := range r.Addrs() {
			as = append(as, a.Addr().String())
		}
		slices.Sort(as)
		return as
	}
	if got, want := all(), []string{"127.0.0.1", "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "::1"}; !slices.Equal(got, want) {
		t.Fatalf("listens on %v, want %v", got, want)
	}
	for _, a := range r.Addrs() {
		r.answersFromItself(a)
	}

	runIP(t, "addr", "add", "192.0.2.3/32", "dev", "lo")
	runIP(t, "addr", "add", "2001:db8::3/128", "dev", "lo")
	runIP(t, "addr", "del", "192.0.2.1/32", "dev", "lo")
	runIP(t, "addr", "del", "2001:db8::1/128", "dev", "lo")
	want := []string{"127.0.0.1", "192.0.2.2", "192.0.2.3", "2001:db8::2", "2001:db8::3", "::1"}
	eventually(t, "the node follows the machine's addresses", func() bool { return slices.Equal(all(), want) })
	eventually(t, "all addresses are listened on", func() bool { return r.count(stats.TCPListening) == 1 })
	for _, a := range want {
		r.answersFromItself(netip.AddrPortFrom(netip.MustParseAddr(a), port))
	}
}

// burst is more than one recvmmsg brings, and less than any socket buffer holds.
const burst = batchMax + 36

// answersFromItself asks one address in every way from a socket that takes answers from anywhere.
func (r *rig) answersFromItself(server netip.AddrPort) {
	t := r.t
	t.Helper()
	c, err := net.ListenUDP("udp", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	send := func(msg []byte) {
		t.Helper()
		if _, err := c.WriteToUDPAddrPort(msg, server); err != nil {
			t.Fatal(err)
		}
	}
	receive := func() *dns.Msg {
		t.Helper()
		b := make([]byte, 65535)
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			t.Fatalf("%s: %v", server, err)
		}
		if from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port()); from != server {
			t.Fatalf("%s was asked, %s answers", server, from)
		}
		return unpack(t, b[:n])
	}
	query := new(dns.Msg)
	query.SetQuestion("absent."+testZone+".", dns.TypeTXT)
	ask := func(id int) { query.Id = uint16(id); send(pack(t, query)) }
	ask(burst)
	if m := receive(); m.Id != burst || m.Rcode != dns.RcodeNameError {
		t.Fatalf("%s: %v", server, m)
	}

	// While the loop is held, a whole burst gathers in its socket: gnet reads the first datagram, and the rest is drained.
	batches := r.count(stats.Batches)
	release := r.hold(server)
	for i := range burst {
		ask(i)
	}
	close(release)
	seen := map[uint16]bool{}
	for range burst {
		m := receive()
		if seen[m.Id] || m.Rcode != dns.RcodeNameError {
			t.Fatalf("%s: %v", server, m)
		}
		seen[m.Id] = true
	}
	if r.count(stats.Batches) == batches {
		t.Errorf("%s: no datagram was drained", server)
	}

	// The answer to an UPDATE comes from another goroutine, after its sync; the one to a claim after the pool besides.
	release = r.hold(server)
	const updates = 5
	for i := range updates {
		msg, _ := sign(t, updateMsg(add("a."+testZone, 300, fmt.Sprintf("%s %d", server, i))), "op."+testZone, secret, 0)
		send(msg)
	}
	send(pack(t, updateMsg(add("claim-3.mb-0123456789ab."+testZone, 300, claimWire(t, func(b []byte) []byte { return b }, 100)))))
	close(release)
	for range updates + 1 {
		if m := receive(); m.Opcode != dns.OpcodeUpdate || m.Rcode != dns.RcodeSuccess {
			t.Fatalf("%s: %v", server, m)
		}
	}

	tcp, err := net.Dial("tcp", server.String())
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	tcp.SetDeadline(time.Now().Add(limit))
	tcp.Write(framed(pack(t, query)))
	b, err := readFramed(tcp)
	if err != nil {
		t.Fatalf("%s: %v", server, err)
	}
	if m := unpack(t, b); m.Rcode != dns.RcodeNameError || tcp.RemoteAddr().String() != server.String() {
		t.Fatalf("%s over TCP: %v", server, m)
	}
}

// hold stops the loops of an address, which must have had an event each, until the channel is closed.
func (r *rig) hold(server netip.AddrPort) (release chan struct{}) {
	r.t.Helper()
	r.net.mu.Lock()
	e := r.net.engines[server]
	r.net.mu.Unlock()
	loops := *e.loops.Load()
	release = make(chan struct{})
	held := make(chan struct{}, len(loops))
	for el := range loops {
		if err := el.Execute(context.Background(), gnet.RunnableFunc(func(context.Context) error {
			held <- struct{}{}
			<-release
			return nil
		})); err != nil {
			r.t.Fatal(err)
		}
	}
	for range loops {
		<-held
	}
	return release
}
