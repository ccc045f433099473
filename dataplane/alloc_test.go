package dataplane

import (
	"bytes"
	"testing"

	"github.com/miekg/dns"

	"github.com/dnsmesh/dmpd/dataplane/store"
	"github.com/dnsmesh/dmpd/dataplane/update"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/stats"
	"github.com/dnsmesh/dmpd/internal/tsig"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// TestRespondAllocs: no kind of query allocates on its way through a worker, limits, cookies, RRL and counters included; neither those that
// the fast parser leaves to the complete one, nor what is refused, nor a signed one with its signed answer.
func TestRespondAllocs(t *testing.T) {
	// A node without anything that runs beside the loops, since what is counted is the process's.
	st, err := store.Open(store.Options{Dir: t.TempDir(), Zone: wire.MustName(testZone), Durability: journal.OS, Manual: true, Limits: store.Limits{ValuesMax: 64}})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	n := &Node{page: stats.InMemory(1), store: st, limits: newLimits(), claims: update.NewLimits(1, 1), keys: tsig.NewTable(wire.MustName(testZone)), net: &network{}}
	if n.cookies, err = openCookies(t.TempDir(), clock.NowMs()/1000); err != nil {
		t.Fatal(err)
	}
	n.taker = newTaker(t.TempDir(), n.keys, st, nil, nil)
	if !n.taker.takeState() {
		t.Fatal("no keys, but they cannot be judged")
	}
	n.keys.Store(&tsig.Key{Name: wire.MustName("op." + testZone), Alg: tsig.SHA256, Secret: secret})
	settings := testSettings()
	settings.Rate, settings.Burst = 1e9, 1e9
	n.Reload(settings)
	var ops []record.Op
	for _, name := range []string{"a", "x.ent"} {
		ops = append(ops, record.Op{Kind: record.OpAdd, Name: wire.MustName(name + "." + testZone), RDATA: record.AppendRDATA(nil, bytes.Repeat([]byte{'v'}, 340)), TTLSec: 3600})
	}
	for i := range 60 {
		ops = append(ops, record.Op{Kind: record.OpAdd, Name: wire.MustName("many." + testZone), RDATA: record.AppendRDATA(nil, bytes.Repeat([]byte{'a' + byte(i%26)}, 40+i)), TTLSec: 3600, MayDelete: true})
	}
	stored := make(chan store.Result, 1)
	if !st.Submit(&store.Batch{Ops: ops, Done: func(r store.Result) { stored <- r }}) {
		t.Fatal("the store takes nothing")
	}
	if r := <-stored; r.Code != record.CodeStored {
		t.Fatal(r)
	}

	w := n.newWorker(n.page.Shard(1)).(*worker)
	l := &loop{engine: &engine{net: n.net}}
	dst := make([]byte, 0, 1<<16)
	edns := func(m *dns.Msg) {
		m.SetEdns0(1232, true)
		m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"}, &dns.EDNS0_NSID{Code: dns.EDNS0NSID})
	}
	same := func(*dns.Msg) {}
	for _, x := range []struct {
		what, name string
		typ        uint16
		change     func(*dns.Msg)
		signed     bool
		rcode      int
		answers    int // over TCP
	}{
		{"hit", "A.mesh.test", dns.TypeTXT, same, false, dns.RcodeSuccess, 1},
		{"hit with EDNS", "a.mesh.test", dns.TypeTXT, edns, false, dns.RcodeSuccess, 1},
		{"many values, truncated over UDP", "many.mesh.test", dns.TypeTXT, edns, false, dns.RcodeSuccess, 60},
		{"apex", testZone, dns.TypeSOA, edns, false, dns.RcodeSuccess, 1},
		{"other type", "a.mesh.test", dns.TypeA, edns, false, dns.RcodeSuccess, 0},
		{"structural name", "mb-0123456789ab.mesh.test", dns.TypeTXT, edns, false, dns.RcodeSuccess, 0},
		{"empty non-terminal", "ent.mesh.test", dns.TypeTXT, edns, false, dns.RcodeSuccess, 0},
		{"NXDOMAIN", "absent.mesh.test", dns.TypeTXT, same, false, dns.RcodeNameError, 0},
		{"NXDOMAIN with EDNS", "absent.mesh.test", dns.TypeTXT, edns, false, dns.RcodeNameError, 0},
		{"outside the zone", "example.com", dns.TypeTXT, edns, false, dns.RcodeRefused, 0},
		{"opcode", "a.mesh.test", dns.TypeTXT, func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }, false, dns.RcodeNotImplemented, 0},
		{"two questions", "a.mesh.test", dns.TypeTXT, func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, false, dns.RcodeFormatError, 0},
		{"signed hit", "a.mesh.test", dns.TypeTXT, edns, true, dns.RcodeSuccess, 1},
		{"signed NXDOMAIN", "absent.mesh.test", dns.TypeTXT, same, true, dns.RcodeNameError, 0},
	} {
		m := new(dns.Msg)
		m.SetQuestion(dns.Fqdn(x.name), x.typ)
		x.change(m)
		var msg []byte
		if x.signed {
			msg, _ = sign(t, m, "op."+testZone, secret, 0)
		} else {
			msg = pack(t, m)
		}
		for _, transport := range []int{stats.UDP, stats.TCP} {
			p := &peer{addr: addr4(192, 0, 2, 7), port: 5353, transport: transport, loop: l}
			var out []byte
			v := silent
			ask := func() {
				now := clock.Mono()
				w.enter(clock.NowMs(), now)
				out, v = w.respond(dst, msg, p)
				w.leave()
			}
			ask()
			if reply := unpack(t, out); v != answered || reply.Rcode != x.rcode || transport == stats.TCP && len(reply.Answer) != x.answers || (reply.IsTsig() != nil) != x.signed {
				t.Errorf("%s: %v", x.what, reply)
			}
			// The runtime itself may allocate now and then; what the path allocates is there every time.
			allocs := testing.AllocsPerRun(200, ask)
			for tries := 0; allocs != 0 && tries < 5; tries++ {
				allocs = testing.AllocsPerRun(200, ask)
			}
			if allocs != 0 {
				t.Errorf("%s over %s: %v allocations", x.what, [...]string{"UDP", "TCP"}[transport], allocs)
			}
		}
	}
}
