package bench

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dnsmesh/dmpd/internal/vfs"

	"github.com/dnsmesh/dmpd/internal/snapshot"
)

var testZone = Zone{Name: "mesh.test", Names: 500}

// serve runs a server that knows the zone, and takes updates; every drop-th query gets no reply, and wrong replies are the caller's.
func serve(t *testing.T, answer func(m *dns.Msg, w dns.ResponseWriter)) netip.AddrPort {
	t.Helper()
	for try := 0; ; try++ {
		at, err := freePort()
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp4", at.String())
		if err != nil {
			if try < 20 {
				continue
			}
			t.Fatal(err)
		}
		u, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		if err != nil {
			l.Close()
			if try < 20 {
				continue
			}
			t.Fatal(err)
		}
		h := dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) { answer(m, w) })
		secret := map[string]string{keyName + ".mesh.test.": keySecret}
		for _, s := range []*dns.Server{{PacketConn: u, Handler: h, TsigSecret: secret, MsgAcceptFunc: accept, MaxTCPQueries: -1}, {Listener: l, Handler: h, MsgAcceptFunc: accept, MaxTCPQueries: -1}} {
			started := make(chan struct{})
			s.NotifyStartedFunc = func() { close(started) }
			go s.ActivateAndServe()
			<-started
			t.Cleanup(func() { s.Shutdown() })
		}
		return at
	}
}

func accept(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept }

// right answers as a server should.
func right(m *dns.Msg, w dns.ResponseWriter) {
	r := new(dns.Msg).SetReply(m)
	r.Rcode = dns.RcodeNameError
	for i := range uint64(testZone.Names) {
		if m.Question[0].Name == testZone.label(i)+".mesh.test." {
			v := testZone.value(i)
			r.Answer = []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeTXT, Class: 1, Ttl: 5}, Txt: []string{string(v[:255]), string(v[255:])}}}
			r.Rcode = dns.RcodeSuccess
		}
	}
	w.WriteMsg(r)
}

func TestLoad(t *testing.T) {
	at := serve(t, right)
	// A server that is not scheduled for a while loses what its buffer does not hold of an open loop, never of a closed one.
	least := map[string]int{"closed": 1000, "open": 1}
	for name, l := range map[string]Load{
		"closed": {Target: at, Duration: time.Minute, Window: 16, Sockets: 2, Messages: 1000},
		"open":   {Target: at, Duration: time.Minute, QPS: 5000, Sockets: 2, Messages: 1000},
	} {
		r, err := l.Run(NewMix(testZone, 10, 1))
		if err != nil || r.Sent != 1000 || r.Answered+r.Lost != 1000 || r.Answered < least[name] || r.Wrong != 0 {
			t.Errorf("%s: %d sent, %d answered, %d lost, %d wrong (%v), %v", name, r.Sent, r.Answered, r.Lost, r.Wrong, r.FirstWrong, err)
		}
		if p50, p99 := r.Latency.Quantile(0.5), r.Latency.Quantile(0.99); p50 <= 0 || p99 < p50 {
			t.Errorf("%s: p50 %s, p99 %s", name, p50, p99)
		}
	}
	tcp, err := TCPLoad{Target: at, Duration: 200 * time.Millisecond, Conns: 3, Pipeline: 4}.Run(func(int) Source { return NewMix(testZone, 10, 1) })
	if err != nil || tcp.Answered != tcp.Sent || tcp.Answered == 0 || tcp.Wrong != 0 {
		t.Errorf("TCP: %d sent, %d answered, %d wrong (%v), %v", tcp.Sent, tcp.Answered, tcp.Wrong, tcp.FirstWrong, err)
	}
}

// A server that answers wrongly, however fast, has no figure.
func TestWrongAnswers(t *testing.T) {
	for name, answer := range map[string]func(r *dns.Msg){
		"rcode":    func(r *dns.Msg) { r.Rcode = dns.RcodeServerFailure },
		"answers":  func(r *dns.Msg) {},
		"question": func(r *dns.Msg) { r.Question[0].Name = "other.test." },
	} {
		at := serve(t, func(m *dns.Msg, w dns.ResponseWriter) {
			r := new(dns.Msg).SetReply(m)
			answer(r)
			w.WriteMsg(r)
		})
		r, err := Load{Target: at, Duration: time.Minute, Window: 4, Messages: 50}.Run(NewMix(testZone, 0, 1))
		if err != nil || r.Answered != 0 || r.Wrong == 0 || r.FirstWrong == nil {
			t.Errorf("%s: %d answered, %d wrong, %v", name, r.Answered, r.Wrong, err)
		}
	}
}

func TestUpdates(t *testing.T) {
	var unsigned atomic.Int32
	at := serve(t, func(m *dns.Msg, w dns.ResponseWriter) {
		if m.IsTsig() == nil || w.TsigStatus() != nil || m.Opcode != dns.OpcodeUpdate || len(m.Ns) != 1 {
			unsigned.Add(1)
		}
		w.WriteMsg(new(dns.Msg).SetReply(m))
	})
	u, err := NewUpdates(testZone, 7, 100)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Load{Target: at, Duration: time.Minute, Window: 8, Sockets: 2, Messages: 100}.Run(u)
	if err != nil || r.Answered != 100 || unsigned.Load() != 0 {
		t.Errorf("%d answered, %d wrong (%v), %d not signed as they should be, %v", r.Answered, r.Wrong, r.FirstWrong, unsigned.Load(), err)
	}
	// It stored nothing: reading back must see that.
	r, err = Load{Target: at, Duration: time.Minute, Window: 8, Messages: 100}.Run(u.Stored(100))
	if err != nil || r.Wrong == 0 {
		t.Errorf("read back: %d wrong, %v", r.Wrong, err)
	}
}

func TestQuantile(t *testing.T) {
	var h Histogram
	if h.Quantile(0.5) != 0 {
		t.Error("of nothing")
	}
	for i := range int64(100_000) {
		h.Add(i * 1000)
	}
	for _, q := range []float64{0.01, 0.5, 0.99, 0.999, 1} {
		want := q * 100_000_000
		if got := float64(h.Quantile(q)); got < want*0.999 || got > want*1.04 {
			t.Errorf("quantile %g: %g, want %g", q, got, want)
		}
	}
}

func TestZone(t *testing.T) {
	var b strings.Builder
	if err := testZone.Master(&b); err != nil {
		t.Fatal(err)
	}
	n := 0
	p := dns.NewZoneParser(strings.NewReader(b.String()), "", "")
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		if txt, is := rr.(*dns.TXT); is {
			if strings.Join(txt.Txt, "") != string(testZone.value(uint64(n))) || txt.Hdr.Name != testZone.label(uint64(n))+".mesh.test." {
				t.Fatal(txt)
			}
			n++
		}
	}
	if p.Err() != nil || n != testZone.Names {
		t.Errorf("%d names, %v", n, p.Err())
	}
}

func TestNodeFolder(t *testing.T) {
	dir := t.TempDir()
	if err := writeNode(testZone, dir); err != nil {
		t.Fatal(err)
	}
	s, err := snapshot.Latest(vfs.OS, filepath.Join(dir, "data"), "rows")
	if err != nil || s == nil || s.Rows != testZone.Names || s.Check() != nil {
		t.Fatalf("%v, %v", s, err)
	}
	s.Close()
}

func TestReplace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "b.md")
	os.WriteFile(path, []byte("a\n<!-- results -->\nold\n<!-- end -->\nb\n"), 0o600)
	if err := Replace(path, "new\n"); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(path); string(b) != "a\n<!-- results -->\nnew\n<!-- end -->\nb\n" {
		t.Errorf("%s", b)
	}
	os.WriteFile(path, []byte("nothing"), 0o600)
	if err := Replace(path, "new\n"); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestPauses: the difference of two readings of a histogram, and quantiles as upper ends.
func TestPauses(t *testing.T) {
	before := map[string]float64{`p_bucket{le="0.001"}`: 10, `p_bucket{le="0.002"}`: 10, `p_bucket{le="1e-06"}`: 1, `p_bucket{le="+Inf"}`: 10, "p_sum": 1, `other_bucket{le="5"}`: 7}
	after := map[string]float64{`p_bucket{le="0.001"}`: 59, `p_bucket{le="0.002"}`: 109, `p_bucket{le="1e-06"}`: 1, `p_bucket{le="+Inf"}`: 110, "p_sum": 2, `other_bucket{le="5"}`: 9}
	b := bucketsOf(before, after, "p")
	if len(b.ends) != 3 || b.ends[0] != 1e-6 || b.counts[0] != 0 || b.counts[1] != 49 || b.counts[2] != 51 {
		t.Fatalf("%v", b)
	}
	for q, want := range map[float64]float64{0.01: 0.001, 0.49: 0.001, 0.5: 0.002, 0.99: 0.002, 1: 0.002} {
		if got := b.quantile(q); got != want {
			t.Errorf("quantile %g: %g, want %g", q, got, want)
		}
	}
}
