package answer

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/dnsmesh/dmpd/dataplane/store"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/vfs/vfstest"
	"github.com/dnsmesh/dmpd/internal/wire"
)

const nowMs = int64(1_800_000_000_000)

// node is a store with records, and one loop's view of it.
type node struct {
	testing.TB
	store  *store.Store
	reader *store.Reader
	env    Env
}

func newNode(t testing.TB, z Zone) *node {
	t.Helper()
	s, err := store.Open(store.Options{FS: vfstest.New(1), Dir: "data", Zone: z.Apex, Manual: true, NowMs: func() int64 { return nowMs }})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{TB: t, store: s, reader: s.NewReader(), env: Env{Zone: z.Ready(), NowMs: nowMs}}
	t.Cleanup(func() { s.Close() })
	return n
}

// add stores values at a name.
func (n *node) add(name string, ttlSec uint32, values ...string) {
	n.Helper()
	b := &store.Batch{}
	for _, v := range values {
		b.Ops = append(b.Ops, record.Op{Kind: record.OpAdd, Name: wire.MustName(name), RDATA: record.AppendRDATA(nil, []byte(v)), TTLSec: ttlSec})
	}
	done := make(chan store.Result, 1)
	b.Done = func(r store.Result) { done <- r }
	if !n.store.Submit(b) {
		n.Fatal("queue full")
	}
	if r := <-done; r.Code != record.CodeStored {
		n.Fatalf("adding at %s: %v", name, r.Code)
	}
}

// ask answers a message by every way that takes it, which must agree, and reads the response.
func (n *node) ask(msg []byte) (*dns.Msg, []byte, Result) {
	n.Helper()
	n.reader.Enter()
	defer n.reader.Leave()
	v := n.store.View()
	var m wire.Message
	const before = "before"
	out, r := Message([]byte(before), &m, wire.Parse(msg, &m), v, &n.env)
	var q wire.Query
	if wire.ParseQuery(msg, &q) == wire.OK {
		fast, fr := Query([]byte(before), msg, &q, v, &n.env)
		if !bytes.Equal(fast, out) || fr != r {
			n.Fatalf("the two ways differ for %x:\n%x %+v\n%x %+v", msg, fast, fr, out, r)
		}
	}
	if string(out[:len(before)]) != before {
		n.Fatal("what was in the buffer is changed")
	}
	out = out[len(before):]
	if len(out) == 0 {
		return nil, nil, r
	}
	var resp dns.Msg
	if err := resp.Unpack(out); err != nil {
		n.Fatalf("%x: the response does not parse: %v\n%x", msg, err, out)
	}
	if !resp.Response || resp.Id != binary.BigEndian.Uint16(msg) || resp.Opcode != int(msg[2]>>3&15) || resp.RecursionAvailable || resp.AuthenticatedData || resp.CheckingDisabled || resp.Zero ||
		resp.RecursionDesired != (msg[2]&1 != 0) {
		n.Fatalf("%x: header %+v", msg, resp.MsgHdr)
	}
	return &resp, out, r
}

func question(name string, typ uint16, change ...func(*dns.Msg)) *dns.Msg {
	m := new(dns.Msg)
	m.Id = 0x1234
	m.Question = []dns.Question{{Name: dns.Fqdn(name), Qtype: typ, Qclass: dns.ClassINET}}
	for _, f := range change {
		f(m)
	}
	return m
}

func edns(size uint16, options ...dns.EDNS0) func(*dns.Msg) {
	return func(m *dns.Msg) {
		m.SetEdns0(size, false)
		m.IsEdns0().Option = options
	}
}

func class(c uint16) func(*dns.Msg) { return func(m *dns.Msg) { m.Question[0].Qclass = c } }

func (n *node) query(m *dns.Msg) (*dns.Msg, []byte, Result) {
	n.Helper()
	b, err := m.Pack()
	if err != nil {
		n.Fatal(err)
	}
	return n.ask(b)
}

func fullZone() Zone {
	return Zone{Apex: wire.MustName("mesh.test"), A: []byte{192, 0, 2, 1}, AAAA: append(make([]byte, 15), 1), NS: wire.MustName("ns1.mesh.test"), RName: wire.MustName("ops.elsewhere.example"),
		TTLSec: 60, NSID: []byte("node-1")}
}

// Every row of dns.md 3.2, GO table, and of 3.1's rules on classes.
func TestAnswerTable(t *testing.T) {
	const noSOA, soa, aa = false, true, true
	bare := Zone{Apex: wire.MustName("mesh.test"), TTLSec: 60}
	for _, x := range []struct {
		text   string
		zone   Zone
		name   string
		typ    uint16
		class  uint16
		rcode  int
		answer string // type of the answer, "" for none
		soa    bool
		aa     bool
		kind   Kind
		ede    int // -1: none
	}{
		{"live TXT", bare, "slot-1.mb-0123456789ab.mesh.test", dns.TypeTXT, 1, 0, "TXT", noSOA, aa, Positive, -1},
		{"another case", bare, "SLOT-1.mB-0123456789AB.Mesh.Test", dns.TypeTXT, 1, 0, "TXT", noSOA, aa, Positive, -1},
		{"live TXT, ANY", bare, "slot-1.mb-0123456789ab.mesh.test", dns.TypeANY, 1, 0, "TXT", noSOA, aa, Positive, -1},
		{"live TXT, A", bare, "slot-1.mb-0123456789ab.mesh.test", dns.TypeA, 1, 0, "", soa, aa, NoData, -1},
		{"live TXT, unknown type", bare, "slot-1.mb-0123456789ab.mesh.test", 65280, 1, 0, "", soa, aa, NoData, -1},
		{"live TXT, DS", bare, "slot-1.mb-0123456789ab.mesh.test", dns.TypeDS, 1, 0, "", soa, aa, NoData, -1},
		{"apex TXT without data", bare, "mesh.test", dns.TypeTXT, 1, 0, "", soa, aa, NoData, -1},
		{"apex A unset", bare, "mesh.test", dns.TypeA, 1, 0, "", soa, aa, NoData, -1},
		{"apex NS unset", bare, "mesh.test", dns.TypeNS, 1, 0, "", soa, aa, NoData, -1},
		{"apex SOA from defaults", bare, "mesh.test", dns.TypeSOA, 1, 0, "SOA", noSOA, aa, Positive, -1},
		{"apex ANY", bare, "mesh.test", dns.TypeANY, 1, 0, "SOA", noSOA, aa, Positive, -1},
		{"apex MX", bare, "mesh.test", dns.TypeMX, 1, 0, "", soa, aa, NoData, -1},
		{"apex A", fullZone(), "MESH.test", dns.TypeA, 1, 0, "A", noSOA, aa, Positive, -1},
		{"apex AAAA", fullZone(), "mesh.test", dns.TypeAAAA, 1, 0, "AAAA", noSOA, aa, Positive, -1},
		{"apex NS", fullZone(), "mesh.test", dns.TypeNS, 1, 0, "NS", noSOA, aa, Positive, -1},
		{"apex SOA", fullZone(), "mesh.test", dns.TypeSOA, 1, 0, "SOA", noSOA, aa, Positive, -1},
		{"SOA below the apex", fullZone(), "x.mesh.test", dns.TypeSOA, 1, 0, "", soa, aa, NoData, -1},
		{"empty non-terminal", bare, "deep.mesh.test", dns.TypeTXT, 1, 0, "", soa, aa, NoData, -1},
		{"empty non-terminal, second level", bare, "b.deep.mesh.test", dns.TypeTXT, 1, 0, "", soa, aa, NoData, -1},
		{"empty non-terminal, NS", bare, "deep.mesh.test", dns.TypeNS, 1, 0, "", soa, aa, NoData, -1},
		{"only an expired name below", bare, "past.mesh.test", dns.TypeTXT, 1, 3, "", soa, aa, NXDomain, -1},
		{"expired TXT", bare, "x.past.mesh.test", dns.TypeTXT, 1, 3, "", soa, aa, NXDomain, -1},
		{"structural mb", bare, "mb-ffffffffffff.mesh.test", dns.TypeTXT, 1, 0, "", soa, aa, NoData, -1},
		{"structural id", bare, "id-0123456789abcdef.mesh.test", dns.TypeTXT, 1, 0, "", soa, aa, NoData, -1},
		{"structural id in capitals", bare, "ID-0123456789ABCDEF.mesh.test", dns.TypeTXT, 1, 0, "", soa, aa, NoData, -1},
		{"mb with 11 digits", bare, "mb-fffffffffff.mesh.test", dns.TypeTXT, 1, 3, "", soa, aa, NXDomain, -1},
		{"id without digits", bare, "id-.mesh.test", dns.TypeTXT, 1, 3, "", soa, aa, NXDomain, -1},
		{"id with other letters", bare, "id-xyz.mesh.test", dns.TypeTXT, 1, 3, "", soa, aa, NXDomain, -1},
		{"mb not below the apex", bare, "mb-ffffffffffff.x.mesh.test", dns.TypeTXT, 1, 3, "", soa, aa, NXDomain, -1},
		{"absent TXT", bare, "nothing.mesh.test", dns.TypeTXT, 1, 3, "", soa, aa, NXDomain, -1},
		{"absent A", bare, "nothing.mesh.test", dns.TypeA, 1, 0, "", soa, aa, NoData, -1},
		{"absent ANY", bare, "nothing.mesh.test", dns.TypeANY, 1, 0, "", soa, aa, NoData, -1},
		{"a wildcard is a name", bare, "y.wild.mesh.test", dns.TypeTXT, 1, 3, "", soa, aa, NXDomain, -1},
		{"outside, stored", bare, "cluster.other.example", dns.TypeTXT, 1, 0, "TXT", noSOA, aa, Positive, -1},
		{"outside, stored, A", bare, "cluster.other.example", dns.TypeA, 1, 0, "", noSOA, aa, NoData, -1},
		{"outside", bare, "other.example", dns.TypeTXT, 1, 5, "", noSOA, !aa, Refusal, 20},
		{"outside, A", bare, "www.example", dns.TypeA, 1, 5, "", noSOA, !aa, Refusal, 20},
		{"a suffix of bytes, not of labels", bare, "xmesh.test", dns.TypeTXT, 1, 5, "", noSOA, !aa, Refusal, 20},
		{"an escaped dot", bare, `x\.mesh.test`, dns.TypeTXT, 1, 5, "", noSOA, !aa, Refusal, 20},
		{"the root", bare, ".", dns.TypeNS, 1, 5, "", noSOA, !aa, Refusal, 20},
		{"AXFR", bare, "mesh.test", dns.TypeAXFR, 1, 5, "", noSOA, !aa, Refusal, 18},
		{"IXFR", bare, "mesh.test", dns.TypeIXFR, 1, 5, "", noSOA, !aa, Refusal, 18},
		{"OPT", bare, "mesh.test", dns.TypeOPT, 1, 1, "", noSOA, !aa, Refusal, -1},
		{"TSIG", bare, "mesh.test", dns.TypeTSIG, 1, 1, "", noSOA, !aa, Refusal, -1},
		{"TKEY", bare, "mesh.test", dns.TypeTKEY, 1, 1, "", noSOA, !aa, Refusal, -1},
		{"MAILA", bare, "mesh.test", dns.TypeMAILA, 1, 1, "", noSOA, !aa, Refusal, -1},
		{"MAILB", bare, "mesh.test", dns.TypeMAILB, 1, 1, "", noSOA, !aa, Refusal, -1},
		{"type 0", bare, "mesh.test", 0, 1, 1, "", noSOA, !aa, Refusal, -1},
		{"class ANY", bare, "slot-1.mb-0123456789ab.mesh.test", dns.TypeTXT, dns.ClassANY, 0, "TXT", noSOA, aa, Positive, -1},
		{"class CH", bare, "version.bind", dns.TypeTXT, dns.ClassCHAOS, 5, "", noSOA, !aa, Refusal, 20},
		{"class CH at a stored name", bare, "slot-1.mb-0123456789ab.mesh.test", dns.TypeTXT, dns.ClassCHAOS, 5, "", noSOA, !aa, Refusal, 20},
		{"no zone, stored", Zone{TTLSec: 60}, "cluster.other.example", dns.TypeTXT, 1, 0, "TXT", noSOA, aa, Positive, -1},
		{"no zone, absent", Zone{TTLSec: 60}, "x.example", dns.TypeTXT, 1, 3, "", noSOA, aa, NXDomain, -1},
		{"no zone, A", Zone{TTLSec: 60}, "x.example", dns.TypeA, 1, 0, "", noSOA, aa, NoData, -1},
	} {
		t.Run(x.text, func(t *testing.T) {
			n := newNode(t, x.zone)
			n.add("slot-1.mb-0123456789ab.mesh.test", 300, "v=dmp1;t=manifest;d=AAAA")
			n.add("a.b.deep.mesh.test", 300, "x")
			n.add("*.wild.mesh.test", 300, "x")
			n.add("cluster.other.example", 300, "v=dmp1;t=cluster;d=AAAA")
			n.add("x.past.mesh.test", 300, "x")
			if strings.Contains(x.name, "past") {
				n.env.NowMs += 300_000
			}
			for _, withEDNS := range []bool{false, true} {
				m := question(x.name, x.typ, class(x.class))
				if withEDNS {
					edns(4096)(m)
				}
				resp, _, r := n.query(m)
				if resp.Rcode != x.rcode || int(r.Rcode) != x.rcode || resp.Authoritative != x.aa || r.Kind != x.kind || resp.Truncated {
					t.Errorf("%v, %+v", resp, r)
				}
				if len(resp.Question) != 1 || resp.Question[0] != m.Question[0] {
					t.Errorf("question %v", resp.Question)
				}
				got := ""
				for _, rr := range resp.Answer {
					got = dns.TypeToString[rr.Header().Rrtype]
					if rr.Header().Name != m.Question[0].Name || rr.Header().Class != dns.ClassINET || rr.Header().Ttl != 60 {
						t.Errorf("answer %v", rr)
					}
				}
				if got != x.answer || len(resp.Answer) > 1 {
					t.Errorf("answers %v", resp.Answer)
				}
				if x.soa != (len(resp.Ns) == 1) {
					t.Errorf("authority %v", resp.Ns)
				}
				for _, rr := range resp.Ns {
					if soa, ok := rr.(*dns.SOA); !ok || soa.Hdr.Ttl != 60 || soa.Minttl != 60 || !strings.EqualFold(soa.Hdr.Name, "mesh.test.") {
						t.Errorf("authority %v", rr)
					}
				}
				opt := resp.IsEdns0()
				if (opt != nil) != withEDNS {
					t.Fatalf("OPT: %v", opt)
				}
				ede := -1
				if opt != nil {
					for _, o := range opt.Option {
						if e, ok := o.(*dns.EDNS0_EDE); ok {
							ede = int(e.InfoCode)
						}
					}
					if ede != x.ede || opt.UDPSize() != 1232 || opt.Version() != 0 {
						t.Errorf("OPT %v", opt)
					}
				}
			}
		})
	}
}

func TestApexData(t *testing.T) {
	n := newNode(t, fullZone())
	ask := func(typ uint16) string {
		resp, _, _ := n.query(question("mesh.test", typ))
		return strings.ReplaceAll(resp.Answer[0].String(), "\t", " ")
	}
	serial := n.store.View().Serial()
	for typ, want := range map[uint16]string{
		dns.TypeA: "mesh.test. 60 IN A 192.0.2.1", dns.TypeAAAA: "mesh.test. 60 IN AAAA ::1", dns.TypeNS: "mesh.test. 60 IN NS ns1.mesh.test.",
		dns.TypeSOA: fmt.Sprintf("mesh.test. 60 IN SOA ns1.mesh.test. ops.elsewhere.example. %d 3600 600 604800 60", serial),
	} {
		if got := ask(typ); got != want {
			t.Errorf("%s\n%s", got, want)
		}
	}
	n.add("mesh.test", 300, "apex TXT comes from the store")
	if got := ask(dns.TypeTXT); got != `mesh.test. 60 IN TXT "apex TXT comes from the store"` {
		t.Error(got)
	}
	// The serial moves with the data.
	if now := n.store.View().Serial(); now <= serial || !strings.Contains(ask(dns.TypeSOA), fmt.Sprint(now)) {
		t.Errorf("serial %d after %d: %s", now, serial, ask(dns.TypeSOA))
	}
	bare := newNode(t, Zone{Apex: wire.MustName("mesh.test"), TTLSec: 5})
	resp, _, _ := bare.query(question("mesh.test", dns.TypeSOA))
	if soa := resp.Answer[0].(*dns.SOA); soa.Ns != "mesh.test." || soa.Mbox != "hostmaster.mesh.test." || soa.Minttl != 5 || soa.Hdr.Ttl != 5 {
		t.Error(soa)
	}
}

// dns.md 3.3: strings of 255 bytes, one TTL that no value outlives.
func TestTXTAnswers(t *testing.T) {
	n := newNode(t, fullZone())
	long := strings.Repeat("x", 600)
	n.add("long.mesh.test", 300, long)
	n.add("empty.mesh.test", 300, "")
	n.add("mixed.mesh.test", 300, "a")
	n.add("mixed.mesh.test", 20, "b")
	texts := func(name string) (strs [][]string, ttl uint32) {
		resp, _, _ := n.query(question(name, dns.TypeTXT, edns(4096)))
		for _, rr := range resp.Answer {
			strs = append(strs, rr.(*dns.TXT).Txt)
			ttl = rr.Header().Ttl
		}
		return strs, ttl
	}
	if s, _ := texts("long.mesh.test"); len(s) != 1 || len(s[0]) != 3 || len(s[0][0]) != 255 || len(s[0][1]) != 255 || strings.Join(s[0], "") != long {
		t.Error(s)
	}
	for _, name := range []string{"_dnsmesh-heartbeat.mesh.test", "_dnsmesh-seen.mesh.test", "_dmp.mesh.test", "_d.mesh.test"} {
		n.add(name, 300, "v")
	}
	for name, want := range map[string]uint32{"_dnsmesh-heartbeat.mesh.test": meshTTLSec, "_DNSmesh-Seen.mesh.test": meshTTLSec, "_dmp.mesh.test": 60, "_d.mesh.test": 60} {
		if s, ttl := texts(name); len(s) != 1 || ttl != want {
			t.Errorf("%s: %q, TTL %d, want %d", name, s, ttl, want)
		}
	}
	if s, _ := texts("empty.mesh.test"); len(s) != 1 || len(s[0]) != 1 || s[0][0] != "" {
		t.Errorf("%q", s)
	}
	for _, x := range []struct {
		afterMs int64
		values  int
		ttl     uint32
	}{{0, 2, 20}, {500, 2, 19}, {19_999, 2, 0}, {20_000, 1, 60}, {250_000, 1, 50}, {299_000, 1, 1}} {
		n.env.NowMs = nowMs + x.afterMs
		if s, ttl := texts("mixed.mesh.test"); len(s) != x.values || ttl != x.ttl {
			t.Errorf("after %d ms: %v, TTL %d", x.afterMs, s, ttl)
		}
	}
}

// dns.md 3.6 and 15: TXT 20 × 243 B over UDP without EDNS is a stub, over TCP the full answer.
func TestTruncation(t *testing.T) {
	n := newNode(t, fullZone())
	var values []string
	for i := range 20 {
		values = append(values, fmt.Sprintf("%02d%s", i, strings.Repeat("v", 241)))
	}
	n.add("big.mesh.test", 300, values...)
	n.add("mid.mesh.test", 300, strings.Repeat("m", 700))
	n.env.Cookie = []byte("clientcoservercookie")
	const qlen = 12 + 15 + 4 // header, name of 15 bytes, type and class
	for _, x := range []struct {
		text    string
		name    string
		tcp     bool
		edns    int
		reserve int
		tc      bool
		len     int
	}{
		{"UDP", "big.mesh.test", false, 0, 0, true, qlen},
		{"UDP, EDNS", "big.mesh.test", false, 65535, 0, true, qlen + 11 + 24},
		{"TCP", "big.mesh.test", true, 0, 0, false, qlen + 20*(12+244)},
		{"TCP, EDNS", "big.mesh.test", true, 512, 0, false, qlen + 20*(12+244) + 35},
		{"UDP, middle", "mid.mesh.test", false, 0, 0, true, qlen},
		{"UDP, EDNS 100 is 512", "mid.mesh.test", false, 100, 0, true, qlen + 35},
		{"UDP, EDNS one too few", "mid.mesh.test", false, qlen + 12 + 703 + 35 - 1, 0, true, qlen + 35},
		{"UDP, EDNS just enough", "mid.mesh.test", false, qlen + 12 + 703 + 35, 0, false, qlen + 12 + 703 + 35},
		{"UDP, EDNS, TSIG to come", "mid.mesh.test", false, qlen + 12 + 703 + 35, 1, true, qlen + 35},
		{"UDP, capped", "mid.mesh.test", false, 65535, 1232 - (qlen + 12 + 703 + 35) + 1, true, qlen + 35},
	} {
		t.Run(x.text, func(t *testing.T) {
			n.env.TCP, n.env.Reserve = x.tcp, x.reserve
			m := question(x.name, dns.TypeTXT)
			if x.edns > 0 {
				edns(uint16(x.edns))(m)
			}
			n.TB = t
			resp, out, r := n.query(m)
			if len(out) != x.len || resp.Truncated != x.tc || r.Truncated != x.tc || !resp.Authoritative || resp.Rcode != 0 || (len(resp.Answer) == 0) != x.tc || (resp.IsEdns0() != nil) != (x.edns > 0) {
				t.Errorf("%d bytes, want %d; %+v %+v", len(out), x.len, resp.MsgHdr, r)
			}
		})
	}
	// What TCP cannot carry is SERVFAIL, never a subset.
	n.TB, n.env.TCP, n.env.Reserve = t, true, 65535-5000
	resp, _, r := n.query(question("big.mesh.test", dns.TypeTXT, edns(4096)))
	if resp.Rcode != dns.RcodeServerFailure || len(resp.Answer) != 0 || r.Fault != wire.RRsetTooBig || r.Kind != Refusal {
		t.Errorf("%v %+v", resp, r)
	}
	// A negative answer that does not fit because of what is to come is a stub too.
	n.env.TCP, n.env.Reserve = false, 450
	if resp, out, r := n.query(question("nothing.mesh.test", dns.TypeTXT)); !resp.Truncated || resp.Rcode != dns.RcodeNameError || len(out) != qlen+4 || !r.Truncated || r.Rcode != 3 {
		t.Errorf("%v %+v", resp, r)
	}
	// What RRL sends.
	b, _ := question("big.mesh.test", dns.TypeTXT, edns(1232)).Pack()
	var q wire.Query
	if f := wire.ParseQuery(b, &q); f != wire.OK {
		t.Fatal(f)
	}
	var stub dns.Msg
	if err := stub.Unpack(Truncated(nil, b, q.QEnd, &q.EDNS, &n.env)); err != nil || !stub.Truncated || stub.Rcode != 0 || len(stub.Answer) != 0 || stub.IsEdns0() == nil {
		t.Errorf("%v %v", &stub, err)
	}
}

// dns.md 3.5.
func TestEDNS(t *testing.T) {
	n := newNode(t, fullZone())
	n.add("x.mesh.test", 300, "x")
	n.env.Cookie = []byte("clientcoserverco")
	option := func(m *dns.Msg, code uint16) (data string) {
		for _, o := range m.IsEdns0().Option {
			switch o := o.(type) {
			case *dns.EDNS0_NSID:
				if code == dns.EDNS0NSID {
					data = o.Nsid
				}
			case *dns.EDNS0_COOKIE:
				if code == dns.EDNS0COOKIE {
					data = o.Cookie
				}
			}
		}
		return data
	}
	resp, _, _ := n.query(question("x.mesh.test", dns.TypeTXT, edns(1232)))
	if option(resp, dns.EDNS0NSID) != "" || option(resp, dns.EDNS0COOKIE) != "636c69656e74636f736572766572636f" || resp.IsEdns0().Do() {
		t.Error(resp)
	}
	resp, _, _ = n.query(question("x.mesh.test", dns.TypeTXT, edns(1232, &dns.EDNS0_NSID{Code: dns.EDNS0NSID}), func(m *dns.Msg) { m.IsEdns0().SetDo() }))
	if option(resp, dns.EDNS0NSID) != "6e6f64652d31" || !resp.IsEdns0().Do() || len(resp.Answer) != 1 {
		t.Error(resp)
	}
	resp, _, r := n.query(question("x.mesh.test", dns.TypeTXT, edns(1232), func(m *dns.Msg) { m.IsEdns0().SetVersion(1) }))
	if resp.Rcode != dns.RcodeBadVers || r.Rcode != 16 || resp.IsEdns0().Version() != 0 || len(resp.Answer) != 0 || resp.Authoritative || len(resp.Question) != 1 {
		t.Error(resp)
	}
	resp, _, r = n.query(question("x.mesh.test", dns.TypeTXT, edns(1232), func(m *dns.Msg) { m.Extra = append(m.Extra, m.Extra[0]) }))
	if resp.Rcode != dns.RcodeFormatError || r.Fault != wire.TwoOPT || resp.IsEdns0() == nil {
		t.Error(resp)
	}
	// Unknown options and padding are ignored.
	resp, _, _ = n.query(question("x.mesh.test", dns.TypeTXT, edns(1232, &dns.EDNS0_PADDING{Padding: make([]byte, 40)}, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte("?")})))
	if resp.Rcode != 0 || len(resp.Answer) != 1 {
		t.Error(resp)
	}
}

// dns.md 3.1.
func TestHeaderRules(t *testing.T) {
	n := newNode(t, fullZone())
	n.add("x.mesh.test", 300, "x")
	good, _ := question("x.mesh.test", dns.TypeTXT).Pack()
	edit := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	for _, x := range []struct {
		text     string
		msg      []byte
		rcode    int // -1: no reply
		answers  int
		question int
	}{
		{"RD is echoed", edit(func(b []byte) []byte { b[2] |= 1; return b }), 0, 1, 1},
		{"AD, CD, Z, RA and a response code are ignored", edit(func(b []byte) []byte { b[3] = 0xF5; return b }), 0, 1, 1},
		{"TC is ignored", edit(func(b []byte) []byte { b[2] |= 2; return b }), 0, 1, 1},
		{"AA is ignored", edit(func(b []byte) []byte { b[2] |= 4; return b }), 0, 1, 1},
		{"a response", edit(func(b []byte) []byte { b[2] |= 0x80; return b }), -1, 0, 0},
		{"11 bytes", good[:11], -1, 0, 0},
		{"empty", nil, -1, 0, 0},
		{"header alone", edit(func(b []byte) []byte { b[5] = 0; return b[:12] }), 1, 0, 0},
		{"no question but bytes", edit(func(b []byte) []byte { b[5] = 0; return b }), 1, 0, 0},
		{"two questions", edit(func(b []byte) []byte { b[5] = 2; return append(b, b[12:]...) }), 1, 0, 1},
		{"trailing bytes", edit(func(b []byte) []byte { return append(b, 0) }), 1, 0, 1},
		{"cut in the name", good[:16], 1, 0, 0},
		{"cut in the class", good[:len(good)-1], 1, 0, 0},
		{"a pointer onto itself", append(append([]byte{}, good[:12]...), 0xC0, 12, 0, 16, 0, 1), 1, 0, 0},
		{"label type 01", edit(func(b []byte) []byte { b[12] = 0x41; return b }), 1, 0, 0},
		{"fewer records than counted", edit(func(b []byte) []byte { b[7] = 1; return b }), 1, 0, 1},
	} {
		resp, out, r := n.ask(x.msg)
		if x.rcode < 0 {
			if out != nil || !r.Fault.Silent() {
				t.Errorf("%s: a reply: %v", x.text, resp)
			}
			continue
		}
		if resp == nil || resp.Rcode != x.rcode || len(resp.Answer) != x.answers || len(resp.Question) != x.question || resp.Authoritative != (x.rcode == 0) {
			t.Errorf("%s: %v", x.text, resp)
		}
	}
	// Records in answer and authority of a query are ignored.
	m := question("x.mesh.test", dns.TypeTXT)
	m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "x.", Rrtype: dns.TypeA, Class: 1}, A: []byte{1, 2, 3, 4}}}
	m.Ns = m.Answer
	if resp, _, _ := n.query(m); resp.Rcode != 0 || len(resp.Answer) != 1 || len(resp.Ns) != 0 {
		t.Error(resp)
	}
	for _, op := range []byte{1, 2, 3, 4, 6, 7, 15} {
		for _, msg := range [][]byte{good, good[:12], append(bytes.Clone(good), "junk"...)} {
			msg = bytes.Clone(msg)
			msg[2] |= op << 3
			resp, _, r := n.ask(msg)
			if resp.Rcode != dns.RcodeNotImplemented || resp.Authoritative || len(resp.Answer) != 0 || r.Fault != wire.BadOpcode {
				t.Errorf("opcode %d: %v", op, resp)
			}
			if len(msg) == len(good) && len(resp.Question) != 1 {
				t.Errorf("opcode %d: no question", op)
			}
		}
	}
}

// dns.md 5.1, response shape; the header is that of the vectors in 6.5.
func TestStatus(t *testing.T) {
	n := newNode(t, fullZone())
	m := new(dns.Msg).SetUpdate("Mesh.test.")
	m.Id = 0x1234
	m.Insert([]dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: "x.mesh.test.", Rrtype: dns.TypeTXT, Ttl: 60}, Txt: []string{"x"}}})
	m.SetEdns0(4096, false)
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	var w wire.Message
	if f := wire.Parse(b, &w); f != wire.OK {
		t.Fatal(f)
	}
	for _, x := range []struct {
		rcode uint16
		f     wire.Fault
		bits  []byte
	}{{0, wire.OK, []byte{0xAC, 0}}, {10, wire.NotZone, []byte{0xAC, 10}}, {5, wire.OutOfScope, []byte{0xAC, 5}}, {2, wire.WriteFailed, []byte{0xAC, 2}}, {9, wire.NotAuth, []byte{0xA8, 9}}, {7, wire.PrereqFailed, []byte{0xAC, 7}}} {
		out, r := Status(nil, b[:w.QEnd], w.QEnd, &w.EDNS, x.rcode, x.f, &n.env)
		var resp dns.Msg
		if err := resp.Unpack(out); err != nil || !bytes.Equal(out[2:4], x.bits) || len(resp.Question) != 1 || resp.Question[0].Name != "Mesh.test." || resp.IsEdns0() == nil || r.Rcode != x.rcode || r.Fault != x.f {
			t.Errorf("%v %v %x", &resp, err, out)
		}
	}
}

func TestAllocs(t *testing.T) {
	n := newNode(t, fullZone())
	n.add("slot-1.mb-0123456789ab.mesh.test", 300, strings.Repeat("x", 340))
	n.env.Cookie = []byte("clientcoserverco")
	buf := make([]byte, 0, 4096)
	for _, name := range []string{"slot-1.mb-0123456789ab.mesh.test", "slot-2.mb-0123456789ab.mesh.test", "mesh.test", "mb-0123456789ab.mesh.test", "other.example"} {
		for _, typ := range []uint16{dns.TypeTXT, dns.TypeA, dns.TypeSOA} {
			for _, m := range []*dns.Msg{question(name, typ), question(name, typ, edns(1232, &dns.EDNS0_NSID{Code: dns.EDNS0NSID}))} {
				b, _ := m.Pack()
				var q wire.Query
				n.reader.Enter()
				v := n.store.View()
				if k := testing.AllocsPerRun(100, func() {
					if wire.ParseQuery(b, &q) != wire.OK {
						t.Fatal("not simple")
					}
					Query(buf, b, &q, v, &n.env)
				}); k != 0 {
					t.Errorf("%s %d: %v allocations", name, typ, k)
				}
				n.reader.Leave()
			}
		}
	}
}

// FuzzAnswer: whatever comes, the two ways agree, the reply can be read by another implementation, and it is a reply (ask checks all
// that); and no datagram is larger than it may be.
func FuzzAnswer(f *testing.F) {
	n := newNode(f, fullZone())
	n.add("slot-1.mb-0123456789ab.mesh.test", 300, strings.Repeat("x", 340))
	n.add("big.mesh.test", 300, strings.Repeat("a", 800), strings.Repeat("b", 800))
	for _, m := range []*dns.Msg{question("big.mesh.test", dns.TypeTXT), question("slot-1.MB-0123456789ab.mesh.test", dns.TypeTXT, edns(700, &dns.EDNS0_NSID{Code: dns.EDNS0NSID})),
		question("mesh.test", dns.TypeSOA, edns(0)), question("other.example", dns.TypeANY, class(3))} {
		b, _ := m.Pack()
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		if len(msg) > 65535 || len(msg) >= 12 && msg[2]>>3&15 == wire.OpUpdate {
			return
		}
		n := *n
		n.TB = t
		_, out, r := n.ask(msg)
		if len(out) > 1232 || (out == nil) != r.Fault.Silent() {
			t.Fatalf("%d bytes, %+v", len(out), r)
		}
	})
}

func BenchmarkQuery(b *testing.B) {
	n := newNode(b, fullZone())
	n.add("slot-1.mb-0123456789ab.mesh.test", 300, strings.Repeat("x", 340))
	buf := make([]byte, 0, 4096)
	for _, x := range []struct{ text, name string }{{"hit", "slot-1.mb-0123456789ab.mesh.test"}, {"miss", "slot-2.mb-0123456789ab.mesh.test"}} {
		msg, _ := question(x.name, dns.TypeTXT, edns(1232)).Pack()
		b.Run(x.text, func(b *testing.B) {
			n.reader.Enter()
			defer n.reader.Leave()
			v := n.store.View()
			var q wire.Query
			b.ReportAllocs()
			for b.Loop() {
				wire.ParseQuery(msg, &q)
				Query(buf, msg, &q, v, &n.env)
			}
		})
	}
}
