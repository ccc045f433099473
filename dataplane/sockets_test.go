package dataplane

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/panjf2000/gnet/v2"
	"golang.org/x/sys/unix"

	"github.com/dnsmesh/dmpd/dataplane/store"
	"github.com/dnsmesh/dmpd/dataplane/update"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/stats"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// fakeConn is what readDatagrams uses of gnet's.
type fakeConn struct {
	gnet.Conn
	fd  int
	msg []byte
}

func (c *fakeConn) Fd() int                  { return c.fd }
func (c *fakeConn) Next(int) ([]byte, error) { return c.msg, nil }

// TestDrainAllocs: nothing is allocated for a datagram, neither the one that gnet read nor those that are drained, from the read to the
// send.
func TestDrainAllocs(t *testing.T) {
	// A node without anything that runs beside the loops, since what is counted is the process's.
	st, err := store.Open(store.Options{Dir: t.TempDir(), Zone: wire.MustName(testZone), Durability: journal.OS, Manual: true, Limits: store.Limits{ValuesMax: 64}})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	r := &Node{page: stats.InMemory(2), store: st, limits: newLimits(), claims: update.NewLimits(1, 1), net: &network{}}
	if r.cookies, err = openCookies(t.TempDir(), 1e9); err != nil {
		t.Fatal(err)
	}
	r.Reload(testSettings())
	stored := make(chan store.Result)
	if !st.Submit(&store.Batch{Ops: []record.Op{{Kind: record.OpAdd, Name: wire.MustName("a." + testZone), RDATA: []byte("\x01v"), TTLSec: 300}}, Done: func(r store.Result) { stored <- r }}) {
		t.Fatal("the store takes nothing")
	}
	if x := <-stored; x.Code != record.CodeStored {
		t.Fatal(x)
	}
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	server.SetReadBuffer(1 << 20)
	client, err := net.DialUDP("udp4", nil, server.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	raw, err := server.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	b, err := newBatch()
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	shard := r.page.Shard(0)
	l := &loop{engine: &engine{net: r.net}, batch: b, shard: shard, responder: r.newWorker(shard)}
	l.peer.loop = l
	var queries [][]byte
	for _, name := range []string{"a", "absent", "mb-0123456789ab"} {
		m := new(dns.Msg)
		m.SetQuestion(name+"."+testZone+".", dns.TypeTXT)
		m.SetEdns0(1232, true)
		m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"})
		queries = append(queries, pack(t, m))
	}
	from := client.LocalAddr().(*net.UDPAddr)
	err = raw.Control(func(fd uintptr) {
		c := &fakeConn{fd: int(fd)}
		first := make([]byte, len(queries[0]))
		drain := func() {
			for i := range 40 {
				if _, err := client.Write(queries[i%len(queries)]); err != nil {
					t.Error(err)
				}
			}
			copy(first, queries[0]) // it is scrambled under invariants
			c.msg = first
			l.readDatagrams(c, from)
		}
		// The runtime itself may allocate now and then; what the path allocates is there every time.
		n := testing.AllocsPerRun(100, drain)
		for tries := 0; n != 0 && tries < 5; tries++ {
			n = testing.AllocsPerRun(100, drain)
		}
		if n != 0 {
			t.Errorf("%v allocations for 41 datagrams", n)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.page.Value(stats.Responses[stats.UDP]); got < 101*41 {
		t.Errorf("%d answers were sent", got)
	}
}

// TestBatch: what is sent in one batch arrives as the datagrams that were queued, whole and each at its own peer, whether the kernel joins
// those for one port or refuses to.
func TestBatch(t *testing.T) {
	t.Parallel()
	v4 := net.IPv4(127, 0, 0, 1)
	t.Run("v4", func(t *testing.T) { testBatch(t, v4, false) })
	t.Run("v6", func(t *testing.T) { testBatch(t, net.IPv6loopback, false) })
	t.Run("v4 refused", func(t *testing.T) { testBatch(t, v4, true) })
}

func testBatch(t *testing.T, ip net.IP, refuses bool) {
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: ip})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	peers := make([]*net.UDPConn, 5)
	sas := make([]sockaddr, len(peers))
	for i := range peers {
		if peers[i], err = net.ListenUDP("udp", &net.UDPAddr{IP: ip}); err != nil {
			t.Fatal(err)
		}
		defer peers[i].Close()
		peers[i].SetReadBuffer(1 << 20)
		setSockaddr(&sas[i], peers[i].LocalAddr().(*net.UDPAddr))
	}
	raw, err := server.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	b, err := newBatch()
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	const rounds = 20
	rng := rand.New(rand.NewPCG(1, 2))
	sent := make([]map[string]int, len(peers))
	for i := range sent {
		sent[i] = map[string]int{}
	}
	joined := 0
	err = raw.Control(func(fd uintptr) {
		if refuses { // UDP_SEGMENT wants checksums
			if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
				t.Fatal(err)
			}
		}
		for round := range rounds {
			for i := range batchMax + 1 {
				to := rng.IntN(len(peers))
				reply := append(b.room(), bytes.Repeat([]byte{byte(i)}, []int{40, 300, 1232}[rng.IntN(3)])...)
				reply[0], reply[1], reply[2] = byte(round), byte(i), byte(to)
				sent[to][string(reply)]++
				b.queue(reply, &sas[to])
			}
			if failed := b.send(int(fd)); failed > 0 {
				t.Errorf("%d were refused", failed)
			}
			joined += b.joined
			for i, peer := range peers {
				for len(sent[i]) > 0 {
					buf := make([]byte, 1<<16)
					peer.SetReadDeadline(time.Now().Add(30 * time.Second))
					n, err := peer.Read(buf)
					if err != nil {
						t.Fatalf("round %d, peer %d: %v; %d are missing", round, i, err, len(sent[i]))
					}
					got := string(buf[:n])
					if sent[i][got] != 1 {
						t.Fatalf("round %d, peer %d got %d bytes that were not sent to it", round, i, n)
					}
					delete(sent[i], got)
				}
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if refuses == b.cuts && joined > 0 {
		t.Errorf("the kernel refuses: %v; joined any more: %v", refuses, b.cuts)
	}
	if !refuses && b.cuts && joined == 0 {
		t.Error("nothing was joined")
	}
}

// TestPort: connections of another server that are in TIME_WAIT do not keep us from a port, and nobody can bind a UDP port beside us, as
// SO_REUSEADDR on all sockets would allow.
func TestPort(t *testing.T) {
	t.Parallel()
	var r *rig
	for tries := 0; r == nil; tries++ {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		s.Close() // first, so that TIME_WAIT is on the server's side
		io.Copy(io.Discard, c)
		c.Close()
		l.Close()
		port := l.Addr().(*net.TCPAddr).Port
		config := Config{StateDir: t.TempDir(), Hosts: []string{"127.0.0.1"}, Port: port, Loops: 2, TCPTotal: 256, Settings: testSettings()}
		n, err := Start(config)
		var taken *PortError
		if errors.As(err, &taken) && tries < 10 {
			continue // by another test, or for UDP
		}
		if err != nil {
			t.Fatal(err)
		}
		r = &rig{Node: n, t: t, addr: n.Addrs()[0].String()}
	}
	defer r.Stop()
	for _, reusePort := range []bool{false, true} {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(r.Addrs()[0].Port()), Addr: [4]byte{127, 0, 0, 1}})
		unix.Close(fd)
		if !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("a second socket on the port: %v", err)
		}
		if reusePort {
			break
		}
	}
}

// TestDeadlines: over TCP a message has a time from its first byte on, whatever drips in; a connection without messages has one too.
// A connection that keeps asking outlives both many times.
func TestDeadlines(t *testing.T) {
	t.Parallel()
	m := new(dns.Msg)
	m.SetQuestion("a."+testZone+".", dns.TypeTXT)
	msg := framed(pack(t, m))
	dial := func(r *rig) net.Conn {
		c, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(limit))
		return c
	}
	closed := func(what string, r *rig, c net.Conn) {
		t.Helper()
		before := r.count(stats.TCPTimedOut)
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %d bytes, %v", what, n, err)
		}
		eventually(t, what+" is counted", func() bool { return before > 0 || r.count(stats.TCPTimedOut) > 0 })
	}
	t.Run("message", func(t *testing.T) {
		t.Parallel()
		r := startRig(t, func(c *Config) { c.TCPMessage, c.TCPIdle = 300*time.Millisecond, time.Hour })
		c := dial(r)
		stop := make(chan struct{})
		defer close(stop)
		go func() { // a byte now and then does not help
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(50 * time.Millisecond):
					c.Write([]byte{byte(min(1, i)) * 255})
				}
			}
		}()
		closed("a message that drips in", r, c)
	})
	t.Run("idle", func(t *testing.T) {
		t.Parallel()
		r := startRig(t, func(c *Config) { c.TCPMessage, c.TCPIdle = time.Hour, 300*time.Millisecond })
		closed("a connection that never asked", r, dial(r))
		c := dial(r)
		c.Write(msg)
		if _, err := readFramed(c); err != nil {
			t.Fatal(err)
		}
		closed("a connection that asked once", r, c)
	})
	t.Run("busy", func(t *testing.T) {
		t.Parallel()
		r := startRig(t, func(c *Config) { c.TCPMessage, c.TCPIdle = 20*time.Second, 20*time.Second })
		c := dial(r)
		for range 50 {
			c.Write(msg)
			if _, err := readFramed(c); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestListenerComesBack: a listener that gnet gave up, as it does when the system has no file left, is opened again.
func TestListenerComesBack(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	r.net.mu.Lock()
	e := r.net.engines[netip.MustParseAddrPort(r.addr)]
	r.net.mu.Unlock()
	go e.gnet.Stop(context.Background())
	<-e.done
	eventually(t, "it is opened again", func() bool {
		r.net.mu.Lock()
		defer r.net.mu.Unlock()
		again := r.net.engines[e.addr]
		return again != nil && again != e
	})
	for _, network := range []string{"udp", "tcp"} {
		if m := r.query(network, "a."+testZone, dns.TypeTXT); m.Rcode != dns.RcodeNameError {
			t.Errorf("%s: %v", network, m)
		}
	}
}

// TestTotalCap: connections beyond the total are closed at once, and room comes back with those that end.
func TestTotalCap(t *testing.T) {
	t.Parallel()
	r := startRig(t, func(c *Config) { c.TCPTotal = 2 })
	m := new(dns.Msg)
	m.SetQuestion("a."+testZone+".", dns.TypeTXT)
	msg := framed(pack(t, m))
	ask := func() (net.Conn, bool) {
		c, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(limit))
		c.Write(msg)
		_, err = readFramed(c)
		return c, err == nil
	}
	a, ok := ask()
	b, ok2 := ask()
	if !ok || !ok2 {
		t.Fatal("the first two are refused")
	}
	defer b.Close()
	if c, ok := ask(); ok {
		t.Error("a third is served")
	} else {
		c.Close()
	}
	a.Close()
	eventually(t, "there is room again", func() bool {
		c, ok := ask()
		c.Close()
		return ok
	})
	eventually(t, "the gauge", func() bool { return r.count(stats.TCPOpen) <= 2 })
}

// TestBuckets: a bucket holds its burst and refills at its rate; clients do not share one; IPv6 counts by /56.
func TestBuckets(t *testing.T) {
	l := newLimits()
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for range 1000 {
		if !l.message(stats.UDP, a, 0) {
			t.Fatal("off is not off")
		}
	}
	for _, x := range l.rate {
		x.set(50, 200)
	}
	const second = int64(time.Second)
	count := func(transport int, from netip.Addr, at int64) (n int) {
		for range 1000 {
			if l.message(transport, from, at) {
				n++
			}
		}
		return n
	}
	for _, x := range []struct {
		what      string
		transport int
		from      string
		at        int64
		want      int
	}{
		{"a full bucket", stats.UDP, "192.0.2.1", second, 200}, {"an empty one", stats.UDP, "192.0.2.1", second, 0}, {"TCP has its own", stats.TCP, "192.0.2.1", second, 200},
		{"so has another address", stats.UDP, "192.0.2.2", second, 200}, {"a second later", stats.UDP, "192.0.2.1", 2 * second, 50}, {"an hour later", stats.UDP, "192.0.2.1", 3600 * second, 200},
		{"IPv4 in IPv6 is IPv4", stats.UDP, "::ffff:192.0.2.1", 3600 * second, 0}, {"IPv6", stats.UDP, "2001:db8:1:100::1", second, 200},
		{"the same /56", stats.UDP, "2001:db8:1:1ff::2", second, 0}, {"another /56", stats.UDP, "2001:db8:1:200::1", second, 200}, {"a clock that goes back", stats.UDP, "192.0.2.2", 0, 0},
	} {
		if got := count(x.transport, netip.MustParseAddr(x.from), x.at); got != x.want {
			t.Errorf("%s: %d, want %d", x.what, got, x.want)
		}
	}
	// Many clients at once do not run into each other, nor does the table grow.
	for i := range 10_000 {
		if from := addr4(10, 0, byte(i>>8), byte(i)); !l.message(stats.UDP, from, 7200*second) {
			t.Fatalf("%s is limited by others", from)
		}
	}
	if n := testing.AllocsPerRun(100, func() { l.message(stats.UDP, b, 0); l.response(b, []byte("\x01a\x00"), kindAnswer, 0) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	l.rate[stats.UDP].set(0, 200)
	if count(stats.UDP, a, second) != 1000 {
		t.Error("it cannot be switched off again")
	}
}

// TestServerCookie: RFC 9018, appendix A, and what is no cookie of ours.
func TestServerCookie(t *testing.T) {
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var key [16]byte
	var in []byte
	for i := range key {
		key[i] = byte(i)
	}
	in = append(in, key[:15]...)
	if h := sipHash24(&key, in); h != 0xa129ca6149be45e5 {
		t.Errorf("SipHash-2-4: %x", h)
	}
	for _, x := range []struct {
		secret, from, cookie string
		nowSec               uint32
	}{
		{"e5e973e5a6b2a43f48e7dc849e37bfcf", "198.51.100.100", "2464c4abcf10c957010000005cf79f111f8130c3eee29480", 1559731985},
		{"445536bcd2513298075a5d379663c962", "2001:db8:220:1:59de:d0f4:8769:82b8", "22681ab97d52c298010000005cf7c609a6bb79d16625507a", 1559741961},
	} {
		c := &cookies{}
		s := &cookieSecrets{}
		copy(s.now[:], unhex(x.secret))
		c.secrets.Store(s)
		from, want := netip.MustParseAddr(x.from), unhex(x.cookie)
		got := c.append(nil, want[:8], from, x.nowSec)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: %x, want %x", x.from, got, want)
		}
		spoilt := bytes.Clone(got)
		spoilt[23] ^= 1
		otherClient := bytes.Clone(got)
		otherClient[0] ^= 1
		version := bytes.Clone(got)
		version[8] = 2
		for _, y := range []struct {
			what   string
			option []byte
			from   netip.Addr
			nowSec uint32
			want   bool
		}{
			{"good", got, from, x.nowSec, true}, {"an hour old", got, from, x.nowSec + 3600, true}, {"too old", got, from, x.nowSec + 3601, false},
			{"five minutes ahead", got, from, x.nowSec - 300, true}, {"further ahead", got, from, x.nowSec - 301, false}, {"another address", got, addr4(1, 2, 3, 4), x.nowSec, false},
			{"spoilt", spoilt, from, x.nowSec, false}, {"another client cookie", otherClient, from, x.nowSec, false}, {"version", version, from, x.nowSec, false},
			{"client cookie alone", got[:8], from, x.nowSec, false}, {"long", append(bytes.Clone(got), 0), from, x.nowSec, false},
		} {
			if c.check(y.option, y.from, y.nowSec) != y.want {
				t.Errorf("%s: not %v", y.what, y.want)
			}
		}
		if n := testing.AllocsPerRun(100, func() { got = c.append(got[:0], want[:8], from, x.nowSec); c.check(got, from, x.nowSec) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
	// A cookie outlives one change of secrets and a restart, not two changes.
	dir, from := t.TempDir(), addr4(192, 0, 2, 1)
	c, err := openCookies(dir, 1e9)
	if err != nil {
		t.Fatal(err)
	}
	got := c.append(nil, []byte("12345678"), from, 1e9+cookieSecretSec)
	if err := c.rotate(1e9 + cookieSecretSec); err != nil || !c.check(got, from, 1e9+cookieSecretSec) {
		t.Error("lost at a change of secrets", err)
	}
	if c, err = openCookies(dir, 1e9+cookieSecretSec); err != nil || !c.check(got, from, 1e9+cookieSecretSec) {
		t.Error("lost at a restart", err)
	}
	if err := c.rotate(1e9 + 2*cookieSecretSec); err != nil || c.check(got, from, 1e9+cookieSecretSec) {
		t.Error("an old secret is still good", err)
	}
}
