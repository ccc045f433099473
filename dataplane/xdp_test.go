package dataplane

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/dnsmesh/dmpd/dataplane/xdp"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/stats"
)

// Environment of the test binary inside the namespaces made for it.
const (
	xdpInside = "DMPD_TEST_XDP"      // inside is the test, child a node of its own
	xdpClient = "DMPD_TEST_XDP_PEER" // name of the clients' namespace
)

// The server has two pairs to the client: AF_XDP is on the first, sockets alone on the second.
const (
	pastIf, socketIf = "xs0", "xs1"
	past4, past6     = "192.0.2.1", "2001:db8::1"
	socket4, socket6 = "198.51.100.1", "2001:db8:1::1"
)

// TestXDP: queries answered by AF_XDP over a veth pair get the bytes that sockets send, everything else reaches the sockets, nothing stays
// attached, and where it cannot run the sockets answer and the log says why.
//
// The machine's interfaces must not be touched, so the test runs itself again in network namespaces of its own.
func TestXDP(t *testing.T) {
	switch os.Getenv(xdpInside) {
	case "inside":
		xdpTest(t)
		return
	case "child":
		xdpChild(t)
		return
	}
	t.Parallel()
	server, client := fmt.Sprintf("dmpd-xdp-%d-s", os.Getpid()), fmt.Sprintf("dmpd-xdp-%d-c", os.Getpid())
	missing := func(format string, args ...any) {
		t.Helper()
		if os.Getenv("CI") == "true" {
			t.Fatalf("not tested, and CI=true: "+format, args...)
		}
		t.Skipf("NOT TESTED: AF_XDP: "+format, args...)
	}
	if os.Getuid() != 0 {
		missing("needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		missing("needs the command ip (iproute2): %v", err)
	}
	// A machine that keeps bpf(2) from root, as some containers do, has nothing to test this with, CI or not.
	attr := struct{ kind, key, value, entries uint32 }{unix.BPF_MAP_TYPE_ARRAY, 4, 4, 1}
	if fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_MAP_CREATE, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)); errno == unix.EPERM || errno == unix.ENOSYS {
		t.Skipf("NOT TESTED: AF_XDP: bpf(2): %v", errno)
	} else if errno == 0 {
		unix.Close(int(fd))
	}
	for _, name := range []string{server, client} {
		if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
			missing("no network namespace can be made: %v: %s", err, out)
		}
		t.Cleanup(func() {
			if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
				t.Errorf("the namespace stays: %v: %s", err, out)
			}
		})
	}
	if out, err := exec.Command("ip", "-n", server, "link", "add", pastIf, "type", "veth", "peer", "name", "xc0", "netns", client).CombinedOutput(); err != nil {
		missing("no veth pair can be made: %v: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", server, os.Args[0], "-test.run=^TestXDP$", "-test.count=1", "-test.v")
	cmd.Env = append(os.Environ(), xdpInside+"=inside", xdpClient+"="+client)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGQUIT) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if bytes.Contains(out, []byte("NOT TESTED")) {
		missing("%s", out)
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	} else if !bytes.Contains(out, []byte("--- PASS: TestXDP")) {
		t.Errorf("nothing was tested:\n%s", out)
	}
}

// inClient runs f with a thread in the clients' namespace; sockets that it opens stay there.
func inClient(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked, so that the thread ends with the goroutine
		fd, err := unix.Open("/var/run/netns/"+os.Getenv(xdpClient), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func xdpAddresses(t *testing.T) {
	t.Helper()
	client := os.Getenv(xdpClient)
	for i, x := range []struct{ s4, s6, c4, c6 string }{{past4, past6, "192.0.2.7", "2001:db8::7"}, {socket4, socket6, "198.51.100.7", "2001:db8:1::7"}} {
		s, c := fmt.Sprintf("xs%d", i), fmt.Sprintf("xc%d", i)
		if _, err := net.InterfaceByName(s); err != nil {
			runIP(t, "link", "add", s, "type", "veth", "peer", "name", c, "netns", client)
		}
		runIP(t, "addr", "replace", x.s4+"/24", "dev", s)
		runIP(t, "addr", "replace", x.s6+"/64", "dev", s, "nodad")
		runIP(t, "link", "set", s, "up")
		runIP(t, "-n", client, "addr", "replace", x.c4+"/24", "dev", c)
		runIP(t, "-n", client, "addr", "replace", x.c6+"/64", "dev", c, "nodad")
		runIP(t, "-n", client, "link", "set", c, "up")
	}
}

// lines is a log that a test reads.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// prog says whether a program is attached to the interface.
func attached(t *testing.T) bool {
	t.Helper()
	out, err := exec.Command("ip", "link", "show", "dev", pastIf).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return bytes.Contains(out, []byte("prog/xdp")) || bytes.Contains(out, []byte(" xdp"))
}

// asker is a client's socket.
type asker struct {
	t *testing.T
	*net.UDPConn
}

func dialClient(t *testing.T, network, to string) (c net.Conn) {
	t.Helper()
	inClient(t, func() {
		var err error
		if c, err = net.Dial(network, to); err != nil {
			t.Error(err)
		}
	})
	if c == nil {
		t.FailNow()
	}
	c.SetDeadline(time.Now().Add(limit))
	return c
}

func (a asker) ask(msg []byte) []byte {
	a.t.Helper()
	if _, err := a.Write(msg); err != nil {
		a.t.Fatal(err)
	}
	b := make([]byte, 65535)
	n, err := a.Read(b)
	if err != nil {
		a.t.Fatal(err)
	}
	return b[:n]
}

func newAsker(t *testing.T, to string, port uint16) asker {
	t.Helper()
	c := dialClient(t, "udp", netip.AddrPortFrom(netip.MustParseAddr(to), port).String())
	t.Cleanup(func() { c.Close() })
	return asker{t, c.(*net.UDPConn)}
}

func xdpRig(t *testing.T, log io.Writer, change ...func(*Config)) *rig {
	t.Helper()
	return startRig(t, append([]func(*Config){func(c *Config) {
		c.Hosts, c.Loops, c.Settings.RRLRate = []string{"0.0.0.0", "::"}, 1, 0
		c.XDP, c.XDPMode, c.Log = []string{pastIf}, xdp.Auto, logging.New(log, logging.Debug, false)
	}}, change...)...)
}

func xdpTest(t *testing.T) {
	runIP(t, "link", "set", "lo", "up")
	// A namespace may inherit that IPv6 is off.
	os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("0"), 0o644)
	os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("0"), 0o644)
	exec.Command("ip", "netns", "exec", os.Getenv(xdpClient), "sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6; echo 0 >/proc/sys/net/ipv6/conf/default/disable_ipv6").Run()
	xdpAddresses(t)
	for _, mode := range []xdp.Mode{xdp.Native, xdp.Generic} {
		t.Run(string(mode), func(t *testing.T) { xdpMode(t, mode) })
	}
	t.Run("killed", xdpKilled)
	t.Run("fall back", xdpFallback)
	t.Run("interface", xdpInterface)
}

func xdpMode(t *testing.T, mode xdp.Mode) {
	log := &lines{}
	r := xdpRig(t, log, func(c *Config) { c.XDPMode = mode })
	if r.count(stats.XDPQueues) == 0 && os.Getenv("CI") != "true" {
		t.Skipf("NOT TESTED: this kernel does not attach (%s): %s", mode, log)
	}
	if !strings.Contains(log.String(), "listening with AF_XDP") || !strings.Contains(log.String(), string(mode)) || !attached(t) {
		t.Fatalf("not attached: %s", log)
	}
	port := r.Addrs()[0].Port()
	r.key("op."+testZone, testZone)
	for _, x := range []struct{ past, socket string }{{past4, socket4}, {past6, socket6}} {
		t.Run(x.past, func(t *testing.T) {
			r.t = t
			xdpSame(t, r, newAsker(t, x.past, port), newAsker(t, x.socket, port))
			xdpPasses(t, r, x.past, port)
		})
	}
	r.t = t
	xdpFrames(t, r, port)
	xdpBurst(t, r, port)

	// A limit that is counted over both ways.
	s := testSettings()
	s.RRLRate = 3
	r.Reload(s)
	a := newAsker(t, past4, port)
	m := new(dns.Msg)
	m.SetQuestion("limited."+testZone+".", dns.TypeTXT)
	slipped := r.count(stats.RRLSlipped)
	for i := 0; r.count(stats.RRLSlipped) < slipped+5; i++ {
		if reply := unpack(t, a.ask(pack(t, m))); i > 10000 {
			t.Fatalf("never limited: %v", reply)
		}
	}

	if err := r.Node.Stop(); err != nil {
		t.Error(err)
	}
	r.Node = nil
	if attached(t) {
		t.Error("a program stays attached after a stop in order")
	}
}

// xdpSame asks the same over AF_XDP and over a socket.
func xdpSame(t *testing.T, r *rig, past, socket asker) {
	for i := range 40 {
		if rc := r.signed("tcp", "op."+testZone, updateMsg(add("many."+testZone, 3600, fmt.Sprintf("%d %s", i, strings.Repeat("m", 40))))); rc != dns.RcodeSuccess {
			t.Fatal(rc)
		}
	}
	if rc := r.signed("tcp", "op."+testZone, updateMsg(add("one."+testZone, 3600, strings.Repeat("v", 300)))); rc != dns.RcodeSuccess {
		t.Fatal(rc)
	}
	same := func(*dns.Msg) {}
	edns := func(size uint16, do bool) func(*dns.Msg) {
		return func(m *dns.Msg) {
			m.SetEdns0(size, do)
			m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID})
		}
	}
	// A client may have its answer before it is counted: whoever compares counters waits for the last one first.
	start, asked := r.count(stats.XDPResponses), uint64(0)
	ask := func(msg []byte) []byte { asked++; return past.ask(msg) }
	for i, x := range []struct {
		what, name string
		typ        uint16
		change     func(*dns.Msg)
		truncated  bool
	}{
		{"hit", "oNe." + testZone, dns.TypeTXT, same, false}, {"hit with EDNS", "one." + testZone, dns.TypeTXT, edns(1232, true), false},
		{"large", "many." + testZone, dns.TypeTXT, edns(4096, false), true}, {"large, no EDNS", "many." + testZone, dns.TypeTXT, same, true},
		{"NXDOMAIN", "absent." + testZone, dns.TypeTXT, same, false}, {"NXDOMAIN with EDNS", "absent." + testZone, dns.TypeTXT, edns(512, false), false},
		{"other type", "one." + testZone, dns.TypeA, edns(1232, false), false}, {"apex", testZone, dns.TypeSOA, same, false}, {"NS", testZone, dns.TypeNS, same, false},
		{"outside", "example.com", dns.TypeTXT, same, false}, {"ANY", "one." + testZone, dns.TypeANY, same, false},
		{"EDNS version", "one." + testZone, dns.TypeTXT, func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(3) }, false},
		{"two questions", "one." + testZone, dns.TypeTXT, func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, false},
		{"padding", "one." + testZone, dns.TypeTXT, func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_PADDING{Padding: make([]byte, 1000)})
		}, false},
	} {
		m := new(dns.Msg)
		m.SetQuestion(dns.Fqdn(x.name), x.typ)
		m.Id = uint16(1000 + i)
		x.change(m)
		msg := pack(t, m)
		got, want := ask(msg), socket.ask(msg)
		if !bytes.Equal(got, want) {
			t.Errorf("%s:\n%x\n%x by a socket", x.what, got, want)
		}
		if reply := unpack(t, got); reply.Id != m.Id || !reply.Response || reply.Truncated != x.truncated {
			t.Errorf("%s: %v", x.what, reply)
		}
		eventually(t, x.what+" is answered by AF_XDP, once", func() bool { return r.count(stats.XDPResponses) == start+asked })
	}
	for _, raw := range [][]byte{append([]byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, "\x03one\x04mesh"...), {0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, append([]byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, bytes.Repeat([]byte{0xC0}, 40)...)} {
		if got, want := ask(raw), socket.ask(raw); !bytes.Equal(got, want) {
			t.Errorf("%x:\n%x\n%x by a socket", raw, got, want)
		}
	}
	// A cookie of one way is good on the other.
	m := new(dns.Msg)
	m.SetQuestion("one."+testZone+".", dns.TypeTXT)
	m.SetEdns0(1232, false)
	m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"})
	reply := unpack(t, ask(pack(t, m)))
	good := r.count(stats.CookieGood)
	m.IsEdns0().Option = reply.IsEdns0().Option
	ask(pack(t, m))
	if r.count(stats.CookieGood) != good+1 {
		t.Error("its own cookie is not good")
	}
	// A signed query, with a signed answer.
	m = new(dns.Msg)
	m.SetQuestion("one."+testZone+".", dns.TypeTXT)
	signed, mac := sign(t, m, "op."+testZone, secret, 0)
	if err := dns.TsigVerify(ask(signed), "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=", mac, false); err != nil {
		t.Error(err)
	}
	eventually(t, "all is counted", func() bool { return r.count(stats.XDPResponses) == start+asked })
}

// xdpPasses sends what the filter does not take.
func xdpPasses(t *testing.T, r *rig, to string, port uint16) {
	a := newAsker(t, to, port)
	name := "new-" + strings.Map(func(c rune) rune {
		if c == '.' || c == ':' {
			return '-'
		}
		return c
	}, to) + "." + testZone
	before := r.count(stats.XDPBatches)
	msg, _ := sign(t, updateMsg(add(name, 300, to)), "op."+testZone, secret, 0)
	if m := unpack(t, a.ask(msg)); m.Opcode != dns.OpcodeUpdate || m.Rcode != dns.RcodeSuccess {
		t.Errorf("an UPDATE: %v", m)
	}
	m := new(dns.Msg)
	m.SetQuestion(name+".", dns.TypeTXT)
	m.Opcode = dns.OpcodeNotify
	if m := unpack(t, a.ask(pack(t, m))); m.Rcode != dns.RcodeNotImplemented {
		t.Errorf("a NOTIFY: %v", m)
	}
	m.Opcode = dns.OpcodeQuery
	m.SetEdns0(1232, false)
	m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_PADDING{Padding: make([]byte, 4000)})
	if m := unpack(t, a.ask(pack(t, m))); len(m.Answer) != 1 {
		t.Errorf("a query in fragments: %v", m)
	}
	m.IsEdns0().Option = nil
	c := dialClient(t, "tcp", netip.AddrPortFrom(netip.MustParseAddr(to), port).String())
	defer c.Close()
	c.Write(framed(pack(t, m)))
	if b, err := readFramed(c); err != nil || len(unpack(t, b).Answer) != 1 {
		t.Errorf("over TCP: %v", err)
	}
	other, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(to)})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	o := newAsker(t, to, other.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	query := pack(t, m)
	o.Write(query)
	other.SetDeadline(time.Now().Add(limit))
	b := make([]byte, 65535)
	if n, err := other.Read(b); err != nil || !bytes.Equal(b[:n], query) {
		t.Errorf("another port: %d bytes, %v", n, err)
	}
	if r.count(stats.XDPBatches) != before {
		t.Error("AF_XDP took what is not its own")
	}
}

// checksum is RFC 1071's.
func checksum(parts ...[]byte) uint16 {
	s := uint32(0)
	for _, b := range parts {
		for i := range b {
			s += uint32(b[i]) << (8 * (1 - i%2))
		}
	}
	for s > 0xFFFF {
		s = s>>16 + s&0xFFFF
	}
	return ^uint16(s)
}

// xdpFrames sends frames that no socket would send. Each is followed by a good one with its own ID, so that what becomes of it is known.
func xdpFrames(t *testing.T, r *rig, port uint16) {
	server, err := net.InterfaceByName(pastIf)
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	var client *net.Interface
	var listen *net.UDPConn
	inClient(t, func() {
		if client, err = net.InterfaceByName("xc0"); err != nil {
			return
		}
		if listen, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP("192.0.2.7")}); err != nil {
			return
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: client.Index, Protocol: 0})
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	defer listen.Close()
	listen.SetDeadline(time.Now().Add(limit))
	id := 0
	frame := func(change func(f []byte) []byte, sum bool) []byte {
		id++
		m := new(dns.Msg)
		m.SetQuestion("one."+testZone+".", dns.TypeTXT)
		m.Id = uint16(id)
		msg := pack(t, m)
		f := append(append(bytes.Clone(server.HardwareAddr), client.HardwareAddr...), 8, 0)
		f = append(f, 0x45, 0)
		f = binary.BigEndian.AppendUint16(f, uint16(28+len(msg)))
		f = append(f, 0, 1, 0, 0, 64, 17, 0, 0, 192, 0, 2, 7, 192, 0, 2, 1)
		f = binary.BigEndian.AppendUint16(f, listen.LocalAddr().(*net.UDPAddr).AddrPort().Port())
		f = binary.BigEndian.AppendUint16(f, port)
		f = binary.BigEndian.AppendUint16(f, uint16(8+len(msg)))
		f = append(append(f, 0, 0), msg...)
		if change != nil && sum {
			f = change(f)
		}
		binary.BigEndian.PutUint16(f[24:], checksum(f[14:34]))
		binary.BigEndian.PutUint16(f[40:], checksum(f[26:34], []byte{0, 17}, f[38:40], f[34:]))
		if change != nil && !sum {
			f = change(f)
		}
		return f
	}
	send := func(f []byte) {
		t.Helper()
		if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: client.Index}); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range []struct {
		what             string
		sum              bool // checksums are made after the change
		change           func(f []byte) []byte
		answered         bool // by whomever
		past             uint64
		length, checksum uint64
	}{
		{"a good one", true, func(f []byte) []byte { return f }, true, 1, 0, 0},
		{"padded", false, func(f []byte) []byte { return append(f, 0, 0, 0) }, true, 1, 0, 0},
		{"no UDP checksum", false, func(f []byte) []byte { f[40], f[41] = 0, 0; return f }, true, 1, 0, 0},
		{"UDP checksum", false, func(f []byte) []byte { f[len(f)-1] ^= 8; return f }, false, 0, 0, 1},
		{"IP checksum", false, func(f []byte) []byte { f[18] ^= 8; return f }, false, 0, 0, 1},
		{"cut", false, func(f []byte) []byte { return f[:len(f)-3] }, false, 0, 1, 0},
		{"UDP length beyond IP", true, func(f []byte) []byte { f[39] += 5; return f }, false, 0, 1, 0},
		{"UDP length below its header", true, func(f []byte) []byte { f[39] = 3; return f }, false, 0, 1, 0},
		{"another MAC", false, func(f []byte) []byte { f[5] ^= 1; return f }, false, 0, 0, 0},
		{"broadcast MAC", false, func(f []byte) []byte { copy(f, "\xff\xff\xff\xff\xff\xff"); return f }, true, 0, 0, 0},
		{"source port 0", true, func(f []byte) []byte { f[34], f[35] = 0, 0; return f }, false, 0, 0, 0},
		{"from loopback", true, func(f []byte) []byte { f[26] = 127; return f }, false, 0, 0, 0},
		{"from multicast", true, func(f []byte) []byte { f[26] = 224; return f }, false, 0, 0, 0},
		{"from 0.0.0.0", true, func(f []byte) []byte { copy(f[26:], "\x00\x00\x00\x00"); return f }, false, 0, 0, 0},
		{"to another address", true, func(f []byte) []byte { f[33] = 9; return f }, false, 0, 0, 0},
		{"a first fragment", true, func(f []byte) []byte { f[20] = 0x20; return f }, false, 0, 0, 0},
		{"a last fragment", true, func(f []byte) []byte { f[21] = 8; return f }, false, 0, 0, 0},
		{"a response", true, func(f []byte) []byte { f[44] |= 0x80; return f }, false, 0, 0, 0},
		{"a tag", false, func(f []byte) []byte {
			return append(append(bytes.Clone(f[:12]), 0x81, 0, 0, 5), f[12:]...)
		}, false, 0, 0, 0},
		{"IP options", false, func(f []byte) []byte {
			// End of options, and then what looks like our port where there would be one without options.
			f[40], f[41] = 0, 0
			f = append(append(bytes.Clone(f[:34]), 0, 1, byte(port>>8), byte(port)), f[34:]...)
			f[14] = 0x46
			binary.BigEndian.PutUint16(f[16:], binary.BigEndian.Uint16(f[16:])+4)
			f[24], f[25] = 0, 0
			binary.BigEndian.PutUint16(f[24:], checksum(f[14:38]))
			return f
		}, true, 0, 0, 0},
	} {
		past, length, sums := r.count(stats.XDPResponses), r.count(stats.XDPDroppedLength), r.count(stats.XDPDroppedChecksum)
		send(frame(x.change, x.sum))
		bad := uint16(id)
		// Frames that pass and those that are taken overtake each other; the answers to two of each way tell.
		want := map[uint16]bool{}
		if x.answered {
			want[bad] = true
		}
		send(frame(nil, true))
		want[uint16(id)] = true
		b := make([]byte, 65535)
		for len(want) > 0 {
			n, err := listen.Read(b)
			if err != nil {
				t.Fatalf("%s: %v", x.what, err)
			}
			m := unpack(t, b[:n])
			if !want[m.Id] {
				t.Errorf("%s: an answer to %d", x.what, m.Id)
			}
			delete(want, m.Id)
		}
		eventually(t, x.what+": the counters", func() bool { return r.count(stats.XDPResponses) == past+1+x.past })
		if l, c := r.count(stats.XDPDroppedLength)-length, r.count(stats.XDPDroppedChecksum)-sums; l != x.length || c != x.checksum {
			t.Errorf("%s: %d for length, %d for checksums", x.what, l, c)
		}
	}
	before := r.count(stats.XDPResponses)
	for n := 0; n <= 80; n++ { // cut anywhere: nobody falls over
		if f := frame(nil, true); n < len(f) && n >= 14 {
			send(f[:n])
		}
	}
	send(frame(nil, true))
	b := make([]byte, 65535)
	for {
		n, err := listen.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if unpack(t, b[:n]).Id == uint16(id) {
			break
		}
	}
	eventually(t, "the last is counted", func() bool { return r.count(stats.XDPResponses) == before+1 })
}

// xdpBurst has many queries on their way at once, fewer than a veth's ring holds.
func xdpBurst(t *testing.T, r *rig, port uint16) {
	const rounds, each = 20, 100
	a := newAsker(t, past6, port)
	before := r.count(stats.XDPResponses)
	m := new(dns.Msg)
	m.SetQuestion("one."+testZone+".", dns.TypeTXT)
	b := make([]byte, 65535)
	for round := range rounds {
		seen := map[uint16]bool{}
		for i := range each {
			m.Id = uint16(round*each + i)
			if _, err := a.Write(pack(t, m)); err != nil {
				t.Fatal(err)
			}
		}
		for len(seen) < each {
			n, err := a.Read(b)
			if err != nil {
				t.Fatalf("round %d: %d of %d answers, %v", round, len(seen), each, err)
			}
			id := binary.BigEndian.Uint16(b)
			if n < 12 || seen[id] || int(id)/each != round {
				t.Fatalf("round %d: an answer to %d", round, id)
			}
			seen[id] = true
		}
	}
	eventually(t, "all were answered by AF_XDP", func() bool { return r.count(stats.XDPResponses) == before+rounds*each })
}

// child starts a node in a process of its own, with no capabilities but those; nil: with all.
func child(t *testing.T, memlock uint64, capabilities ...uintptr) (cmd *exec.Cmd, port uint16, log *lines) {
	t.Helper()
	log = &lines{}
	cmd = exec.Command(os.Args[0], "-test.run=^TestXDP$", "-test.count=1")
	cmd.Env = append(os.Environ(), xdpInside+"=child", "DMPD_TEST_XDP_DIR="+t.TempDir())
	cmd.Stderr = log
	stdin, err := cmd.StdinPipe() // its end ends the child
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	started := make(chan error, 1)
	hold := make(chan struct{})
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread keeps its bounding set until it ends
		if capabilities != nil {
			keep := map[uintptr]bool{}
			for _, c := range capabilities {
				keep[c] = true
			}
			for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
				if !keep[c] {
					unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
				}
			}
		}
		started <- cmd.Start()
		<-hold // Pdeathsig looks at the thread
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	if memlock > 0 {
		// Before the child opens anything: it waits for the line.
		limit := unix.Rlimit{Cur: memlock, Max: memlock}
		if err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_MEMLOCK, &limit, nil); err != nil {
			t.Fatal(err)
		}
	}
	io.WriteString(stdin, "go\n")
	t.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
		close(hold)
	})
	eventually(t, "the child is ready", func() bool {
		_, rest, ok := strings.Cut(log.String(), "CHILD READY ")
		if ok {
			_, err := fmt.Sscan(rest, &port)
			ok = err == nil && strings.Contains(rest, "\n")
		}
		return ok
	})
	return cmd, port, log
}

func xdpChild(t *testing.T) {
	b := make([]byte, 3)
	if _, err := io.ReadFull(os.Stdin, b); err != nil {
		t.Fatal(err)
	}
	r := startRigIn(t, os.Getenv("DMPD_TEST_XDP_DIR"), func(c *Config) {
		c.Hosts, c.Loops, c.XDP, c.XDPMode, c.Log = []string{"0.0.0.0", "::"}, 1, []string{pastIf}, xdp.Auto, logging.New(os.Stderr, logging.Debug, false)
	})
	fmt.Fprintf(os.Stderr, "CHILD READY %d\n", r.Addrs()[0].Port())
	io.Copy(io.Discard, os.Stdin)
}

// xdpKilled: nothing stays attached after kill -9, and the next node attaches at once.
func xdpKilled(t *testing.T) {
	cmd, port, log := child(t, 0)
	if !attached(t) {
		t.Fatalf("not attached: %s", log)
	}
	m := new(dns.Msg)
	m.SetQuestion("a."+testZone+".", dns.TypeTXT)
	newAsker(t, past4, port).ask(pack(t, m))
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the program goes with its process", func() bool { return !attached(t) })
	next := &lines{}
	r := xdpRig(t, next)
	if r.count(stats.XDPInterfaces) != 1 || !attached(t) {
		t.Errorf("the next does not attach: %s", next)
	}
	before := r.count(stats.XDPResponses)
	newAsker(t, past4, r.Addrs()[0].Port()).ask(pack(t, m))
	eventually(t, "it answers", func() bool { return r.count(stats.XDPResponses) == before+1 })

	// A second one, and any other program, finds the interface taken, and answers by sockets.
	log = &lines{}
	second := xdpRig(t, log)
	if second.count(stats.XDPFallback) != 1 || !strings.Contains(log.String(), "another XDP program") {
		t.Errorf("a second one: %s", log)
	}
	newAsker(t, past6, second.Addrs()[0].Port()).ask(pack(t, m))
}

// xdpFallback: without what it needs, sockets answer, and the log says what is missing. With the capabilities that are documented, it runs.
func xdpFallback(t *testing.T) {
	m := new(dns.Msg)
	m.SetQuestion("a."+testZone+".", dns.TypeTXT)
	for _, x := range []struct {
		what         string
		memlock      uint64
		capabilities []uintptr
		on           bool
		log          string
	}{
		{"what is documented", 8 << 20, []uintptr{unix.CAP_NET_RAW, unix.CAP_BPF, unix.CAP_NET_ADMIN}, true, "listening with AF_XDP"},
		{"nothing", 0, []uintptr{}, false, "CAP_NET_RAW"},
		{"no CAP_BPF", 0, []uintptr{unix.CAP_NET_RAW, unix.CAP_NET_ADMIN}, false, "CAP_BPF"},
		{"no CAP_NET_ADMIN", 0, []uintptr{unix.CAP_NET_RAW, unix.CAP_BPF}, false, "CAP_NET_ADMIN"},
		{"no memory to lock", 64 << 10, []uintptr{unix.CAP_NET_RAW, unix.CAP_BPF, unix.CAP_NET_ADMIN}, false, "LimitMEMLOCK"},
	} {
		t.Run(x.what, func(t *testing.T) {
			cmd, port, log := child(t, x.memlock, x.capabilities...)
			if x.capabilities != nil && len(x.capabilities) == 0 && attached(t) {
				t.Error("attached")
			}
			if attached(t) != x.on || !strings.Contains(log.String(), x.log) || strings.Contains(log.String(), "not in use") == x.on {
				t.Errorf("%s", log)
			}
			if reply := unpack(t, newAsker(t, past6, port).ask(pack(t, m))); reply.Rcode != dns.RcodeNameError {
				t.Errorf("%v", reply)
			}
			cmd.Process.Signal(unix.SIGKILL)
			eventually(t, "nothing is attached", func() bool { return !attached(t) })
		})
	}
}

// xdpInterface: an interface that goes is let go; when it comes back, AF_XDP is there again. So it is for one that comes later.
func xdpInterface(t *testing.T) {
	log := &lines{}
	r := xdpRig(t, log, func(c *Config) { c.XDP = []string{"absent0", pastIf} })
	if r.count(stats.XDPInterfaces) != 1 || r.count(stats.XDPFallback) != 1 || !strings.Contains(log.String(), "absent0") {
		t.Fatalf("%s", log)
	}
	// One that is down at the start is waited for.
	runIP(t, "link", "set", socketIf, "down")
	other := &lines{}
	down := xdpRig(t, other, func(c *Config) { c.XDP = []string{socketIf} })
	if down.count(stats.XDPFallback) != 1 || !strings.Contains(other.String(), "it is down") {
		t.Errorf("%s", other)
	}
	runIP(t, "link", "set", socketIf, "up")
	eventually(t, "the one that was down", func() bool { return down.count(stats.XDPInterfaces) == 1 })

	runIP(t, "link", "del", pastIf)
	eventually(t, "it is let go", func() bool { return r.count(stats.XDPInterfaces) == 0 })
	xdpAddresses(t)
	eventually(t, "it is back", func() bool { return r.count(stats.XDPInterfaces) == 1 })
	server := netip.AddrPortFrom(netip.MustParseAddr(past4), r.Addrs()[0].Port())
	eventually(t, "the address is back", func() bool {
		for _, a := range r.Addrs() {
			if a == server {
				return true
			}
		}
		return false
	})
	m := new(dns.Msg)
	m.SetQuestion("a."+testZone+".", dns.TypeTXT)
	a := newAsker(t, past4, server.Port())
	eventually(t, "AF_XDP answers again", func() bool {
		before := r.count(stats.XDPResponses)
		a.ask(pack(t, m))
		return r.count(stats.XDPResponses) > before
	})
}
