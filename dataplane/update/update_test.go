package update

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/dnsmesh/dmpd/dataplane/answer"
	"github.com/dnsmesh/dmpd/dataplane/store"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/tsig"
	"github.com/dnsmesh/dmpd/internal/vfs/vfstest"
	"github.com/dnsmesh/dmpd/internal/wire"
)

const (
	nowMs  = int64(1_800_000_000_000)
	nowSec = nowMs / 1000
)

// node is a store and what an UPDATE meets before it.
type node struct {
	testing.TB
	store  *store.Store
	reader *store.Reader
	keys   *tsig.Table
	env    Env
	peer   netip.Addr
	nowMs  int64
}

func newNode(t testing.TB) *node {
	t.Helper()
	n := &node{TB: t, nowMs: nowMs, peer: netip.MustParseAddr("192.0.2.7")}
	zone := (&answer.Zone{Apex: wire.MustName("mesh.test"), A: []byte{192, 0, 2, 1}, TTLSec: 60}).Ready()
	s, err := store.Open(store.Options{FS: vfstest.New(1), Dir: "data", Zone: zone.Apex, Manual: true, NowMs: func() int64 { return n.nowMs }, Limits: store.Limits{ValuesMax: 64}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	n.store, n.reader, n.keys = s, s.NewReader(), tsig.NewTable(zone.Apex)
	n.env = Env{View: s.View(), Limits: NewLimits(0.5, 30), NowMs: nowMs,
		Policy: &Policy{Zone: zone, Enabled: true, ValueMax: 2048, TTLMaxSec: 86400, Provider: true, ClaimLifeSec: 86400}}
	for _, k := range []*tsig.Key{
		{Name: wire.MustName("alice.mesh.test"), Scopes: scopes("id-0123456789abcdef.mesh.test", "mb-0123456789ab.mesh.test", "slot-*.mb-*.mesh.test", "chunk-*-*.mesh.test", "claim-*.mb-*.mesh.test")},
		{Name: wire.MustName("operator.mesh.test"), Scopes: scopes("mesh.test"), Operator: true},
		{Name: wire.MustName("nothing.mesh.test")},
	} {
		n.keys.Store(k)
	}
	return n
}

func scopes(texts ...string) (ss []tsig.Scope) {
	for _, t := range texts {
		ss = append(ss, tsig.MustScope(t))
	}
	return ss
}

// policy changes the policy as a reload does.
func (n *node) policy(f func(p *Policy)) {
	p := *n.env.Policy
	f(&p)
	n.env.Policy = &p
}

// send takes a message the way that the data plane does. The packet is scrambled when Prepare returns.
func (n *node) send(msg []byte, key string) (rcode uint16, f wire.Fault, p *Prepared) {
	n.Helper()
	msg = bytes.Clone(msg)
	var m wire.Message
	if f := wire.Parse(msg, &m); f != wire.OK {
		return f.Rcode(), f, nil
	}
	a := Author{Keys: n.keys, Peer: n.peer}
	if key != "" {
		if a.Key = n.keys.Load(wire.MustName(key + ".mesh.test")); a.Key == nil {
			n.Fatal("no key", key)
		}
	}
	n.env.NowMs = n.nowMs
	n.env.MonoNs = n.nowMs * 1e6
	n.reader.Enter()
	p, rcode, f = Prepare(&m, &a, &n.env)
	n.reader.Leave()
	for i := range msg {
		msg[i] = 0xAA
	}
	for i := range m.NS {
		clear(m.NS[i].Name)
	}
	if f != wire.OK {
		if p != nil {
			n.Fatal("a refusal with a batch")
		}
		return rcode, f, nil
	}
	if p.Claims() > 0 {
		if f := p.CheckClaims(n.env.Limits, n.env.MonoNs); f != wire.OK {
			return f.Rcode(), f, nil
		}
	}
	if p.Empty() {
		return wire.NoError, wire.OK, p
	}
	done := make(chan store.Result, 1)
	p.Batch.Done = func(r store.Result) { done <- r }
	if !n.store.Submit(&p.Batch) {
		n.Fatal("queue full")
	}
	rcode, f = Outcome(<-done)
	return rcode, f, p
}

// values lists what a name holds.
func (n *node) values(name string) (vs []string) {
	n.reader.Enter()
	defer n.reader.Leave()
	set, ok := n.env.View.Lookup(wire.MustName(name))
	if !ok {
		return nil
	}
	set.Each(func(v store.Value) bool {
		if v.ExpMs > n.nowMs {
			vs = append(vs, fmt.Sprintf("%s %d", record.AppendValue(nil, v.RDATA), (v.ExpMs-n.nowMs)/1000))
		}
		return true
	})
	slices.Sort(vs)
	return vs
}

// update builds a message from lines, one record each:
//
//	zone NAME [TYPE [CLASS]]
//	add NAME TTL "text" ["text" ...]
//	delete NAME ["text" ...]     one value, or the RRset
//	clear NAME                   all RRsets
//	rr SECTION NAME TTL CLASS TYPE HEX-RDATA
//	yx NAME, nx NAME, yxrrset NAME TYPE, nxrrset NAME TYPE, equal NAME "text"    prerequisites
func update(t testing.TB, lines string) []byte {
	t.Helper()
	m := new(dns.Msg).SetUpdate("mesh.test.")
	m.Id = 7
	for line := range strings.SplitSeq(lines, "\n") {
		fields := strings.Fields(strings.TrimSpace(line))
		if len(fields) == 0 {
			continue
		}
		name := dns.Fqdn(fields[1])
		hdr := func(typ, class uint16, ttl uint32) dns.RR_Header {
			return dns.RR_Header{Name: name, Rrtype: typ, Class: class, Ttl: ttl}
		}
		texts := func(from int) (ts []string) {
			for _, s := range fields[from:] {
				ts = append(ts, strings.ReplaceAll(strings.Trim(s, `"`), "_", " "))
			}
			return ts
		}
		num := func(s string) (v uint32) { fmt.Sscan(s, &v); return v }
		typ := func(i int) uint16 { return dns.StringToType[fields[i]] }
		switch fields[0] {
		case "zone":
			m.Question[0].Name = name
			if len(fields) > 2 {
				m.Question[0].Qtype = typ(2)
			}
			if len(fields) > 3 {
				m.Question[0].Qclass = dns.StringToClass[fields[3]]
			}
		case "zone2":
			m.Question = append(m.Question, dns.Question{Name: name, Qtype: dns.TypeSOA, Qclass: 1})
		case "nozone":
			m.Question = nil
		case "add":
			m.Ns = append(m.Ns, &dns.TXT{Hdr: hdr(dns.TypeTXT, 1, num(fields[2])), Txt: texts(3)})
		case "delete":
			if len(fields) > 2 {
				m.Ns = append(m.Ns, &dns.TXT{Hdr: hdr(dns.TypeTXT, dns.ClassNONE, 0), Txt: texts(2)})
			} else {
				m.Ns = append(m.Ns, &dns.ANY{Hdr: hdr(dns.TypeTXT, dns.ClassANY, 0)})
			}
		case "clear":
			m.Ns = append(m.Ns, &dns.ANY{Hdr: hdr(dns.TypeANY, dns.ClassANY, 0)})
		case "rr":
			name = dns.Fqdn(fields[2])
			rdata := ""
			if len(fields) > 6 {
				rdata = fields[6]
			}
			rr := &dns.RFC3597{Hdr: hdr(uint16(num(fields[5])), uint16(num(fields[4])), num(fields[3])), Rdata: rdata}
			if fields[1] == "prereq" {
				m.Answer = append(m.Answer, rr)
			} else {
				m.Ns = append(m.Ns, rr)
			}
		case "yx":
			m.Answer = append(m.Answer, &dns.ANY{Hdr: hdr(dns.TypeANY, dns.ClassANY, 0)})
		case "nx":
			m.Answer = append(m.Answer, &dns.ANY{Hdr: hdr(dns.TypeANY, dns.ClassNONE, 0)})
		case "yxrrset":
			m.Answer = append(m.Answer, &dns.ANY{Hdr: hdr(typ(2), dns.ClassANY, 0)})
		case "nxrrset":
			m.Answer = append(m.Answer, &dns.ANY{Hdr: hdr(typ(2), dns.ClassNONE, 0)})
		case "equal":
			m.Answer = append(m.Answer, &dns.TXT{Hdr: hdr(dns.TypeTXT, 1, 0), Txt: texts(2)})
		default:
			t.Fatalf("line %q", line)
		}
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatalf("%s: %v", lines, err)
	}
	return b
}

func strs(n, each int) string {
	s := ""
	for n > 0 {
		k := min(n, each)
		s += ` "` + strings.Repeat("v", k) + `"`
		n -= k
	}
	return s
}

const (
	id   = "id-0123456789abcdef.mesh.test"
	slot = "slot-1.mb-ffffffffffff.mesh.test"
)

// The rows of dns.md 5.1, 5.2, 5.4 and 7.2, and of section 15 as far as they are decided here. Each begins with the value "old" at id.
func TestUpdateTable(t *testing.T) {
	old := []string{"old 300"}
	for _, x := range []struct {
		text  string
		key   string // "" for none
		lines string
		fault wire.Fault
		rcode uint16
		at    string // what this name holds afterwards
		want  []string
	}{
		// 5.1, steps 3 to 6
		{"no zone", "alice", "nozone x", wire.ZoneCount, 1, id, old},
		{"two zones", "alice", "zone2 mesh.test", wire.ZoneCount, 1, id, old},
		{"zone type", "alice", "zone mesh.test TXT", wire.ZoneType, 1, id, old},
		{"zone class", "alice", "zone mesh.test SOA CH", wire.ZoneClass, 9, id, old},
		{"another zone", "alice", "zone other.example\nadd " + id + " 60 x", wire.NotAuth, 9, id, old},
		{"a child zone", "alice", "zone a.mesh.test", wire.NotAuth, 9, id, old},
		{"a zone that ends so", "alice", `zone a\.mesh.test`, wire.NotAuth, 9, id, old},
		{"zone in capitals", "alice", "zone MESH.test\nadd " + id + " 60 x", wire.OK, 0, id, []string{"old 300", "x 60"}},
		{"unsigned, foreign zone", "", "zone other.example\nadd _dmp-probe.other.example 60 v=dmp1;t=probe", wire.NotAuth, 9, id, old},
		{"unsigned probe", "", "add _dmp-probe.mesh.test 60 v=dmp1;t=probe", wire.ClaimOwner, 5, "_dmp-probe.mesh.test", nil},
		// 7: before content and key
		{"owner outside", "alice", "add foo.other.com 300 x", wire.NotZone, 10, id, old},
		{"owner outside, unsigned", "", "add foo.other.com 300 x", wire.NotZone, 10, id, old},
		{"owner outside, no TXT", "alice", "rr update other.com 60 1 1 01020304", wire.NotZone, 10, id, old},
		{"owner that ends so", "operator", `add a\.mesh.test 300 x`, wire.NotZone, 10, id, old},
		{"owner outside behind bad UTF-8", "alice", "rr update " + id + " 60 1 16 01ff\nadd foo.other.com 300 x", wire.NotZone, 10, id, old},
		// 8
		{"not UTF-8", "alice", "rr update " + id + " 60 1 16 01ff", wire.NotUTF8, 1, id, old},
		{"not UTF-8, unsigned", "", "rr update " + id + " 60 1 16 01ff", wire.NotUTF8, 1, id, old},
		{"not UTF-8 in a delete", "alice", "rr update " + id + " 0 254 16 01ff", wire.NotUTF8, 1, id, old},
		{"UTF-8 across strings", "alice", "rr update " + id + " 60 1 16 01c301a9", wire.OK, 0, id, []string{"old 300", "é 60"}},
		// 9 and 5.4
		{"2048 bytes", "alice", "add " + id + " 60" + strs(2048, 200), wire.OK, 0, id, []string{"old 300", strings.Repeat("v", 2048) + " 60"}},
		{"2049 bytes", "alice", "add " + id + " 60" + strs(2049, 255), wire.ValueTooLong, 5, id, old},
		{"TTL 86400", "alice", "add " + id + " 86400 x", wire.OK, 0, id, []string{"old 300", "x 86400"}},
		{"TTL 86401", "alice", "add " + id + " 86401 x", wire.TTLTooLong, 5, id, old},
		{"TTL 0", "alice", "add " + id + " 0 x", wire.OK, 0, id, []string{"old 300", "x 60"}},
		{"TTL with the top bit", "alice", "add " + id + " 2147483648 x", wire.OK, 0, id, []string{"old 300", "x 60"}},
		{"size before scope", "alice", "add other.mesh.test 60" + strs(2049, 255), wire.ValueTooLong, 5, id, old},
		{"control character", "alice", "rr update " + id + " 60 1 16 020107", wire.NotPrintable, 5, id, old},
		{"DEL", "alice", "rr update " + id + " 60 1 16 0161017f", wire.NotPrintable, 5, id, old},
		{"deleting a control character", "alice", "rr update " + id + " 0 254 16 0107", wire.OK, 0, id, old},
		{"empty value", "alice", "rr update " + id + " 60 1 16 00", wire.OK, 0, id, []string{" 60", "old 300"}},
		{"several strings", "alice", "add " + id + " 60 ab cd ef", wire.OK, 0, id, []string{"abcdef 60", "old 300"}},
		// 5.2
		{"delete a value", "alice", "delete " + id + " old", wire.OK, 0, id, nil},
		{"delete a value cut otherwise", "alice", "delete " + id + " o ld", wire.OK, 0, id, nil},
		{"delete an absent value", "alice", "delete " + id + " other", wire.OK, 0, id, old},
		{"delete the RRset", "alice", "delete " + id, wire.OK, 0, id, nil},
		{"delete all RRsets", "alice", "clear " + id, wire.OK, 0, id, nil},
		{"delete with a TTL", "alice", "rr update " + id + " 77 255 16", wire.OK, 0, id, nil},
		{"order: add, delete RRset, add", "alice", "add " + id + " 60 a\ndelete " + id + "\nadd " + id + " 60 b", wire.OK, 0, id, []string{"b 60"}},
		{"class ANY with RDATA", "alice", "rr update " + id + " 0 255 16 0161", wire.UpdateRR, 1, id, old},
		{"class ANY, type AXFR", "alice", "rr update " + id + " 0 255 252", wire.UpdateRR, 1, id, old},
		{"class NONE, type ANY", "alice", "rr update " + id + " 0 254 255", wire.UpdateRR, 1, id, old},
		{"class NONE without RDATA", "alice", "rr update " + id + " 0 254 16", wire.UpdateRR, 1, id, old},
		{"class IN, type ANY", "alice", "rr update " + id + " 60 1 255", wire.UpdateRR, 1, id, old},
		{"class IN, type 0", "alice", "rr update " + id + " 60 1 0", wire.UpdateRR, 1, id, old},
		{"class CH", "alice", "rr update " + id + " 60 3 16 0161", wire.UpdateRR, 1, id, old},
		{"add without RDATA", "alice", "rr update " + id + " 60 1 16", wire.UpdateRR, 1, id, old},
		{"add with a string cut off", "alice", "rr update " + id + " 60 1 16 0561", wire.UpdateRR, 1, id, old},
		{"A with 3 bytes", "alice", "rr update " + id + " 60 1 1 010203", wire.UpdateRR, 1, id, old},
		{"add of an A record", "operator", "rr update " + id + " 60 1 1 01020304", wire.NotTXT, 5, id, old},
		{"add of an unknown type", "operator", "add " + id + " 60 x\nrr update " + id + " 60 1 65280 01020304", wire.NotTXT, 5, id, old},
		{"delete of an A record", "alice", "rr update other.mesh.test 0 255 1", wire.OK, 0, id, old},
		{"nothing, signed", "alice", "", wire.OK, 0, id, old},
		{"nothing, unsigned", "", "", wire.NoOperation, 5, id, old},
		// 5.6
		{"owner in capitals", "alice", "add " + strings.ToUpper(id) + " 60 x", wire.OK, 0, id, []string{"old 300", "x 60"}},
		// 7.2
		{"pattern, add", "alice", "add " + slot + " 60 x", wire.OK, 0, slot, []string{"x 60"}},
		{"pattern, delete", "alice", "delete " + slot, wire.OutOfScope, 5, slot, nil},
		{"pattern, delete value", "alice", "delete " + slot + " x", wire.OutOfScope, 5, slot, nil},
		{"own mailbox, delete", "alice", "delete slot-1.mb-0123456789ab.mesh.test", wire.OK, 0, slot, nil},
		{"beneath a literal", "alice", "add rotate." + id + " 60 x", wire.OK, 0, "rotate." + id, []string{"x 60"}},
		{"name that ends so", "alice", "add x" + id + " 60 x", wire.OutOfScope, 5, "x" + id, nil},
		{"apex", "alice", "add mesh.test 60 x", wire.OutOfScope, 5, "mesh.test", nil},
		{"apex, operator", "operator", "add mesh.test 60 x", wire.OK, 0, "mesh.test", []string{"x 60"}},
		{"one of two out of scope", "alice", "add " + id + " 60 x\nadd id-ffffffffffffffff.mesh.test 60 x", wire.OutOfScope, 5, id, old},
		{"a key without patterns", "nothing", "add " + id + " 60 x", wire.OutOfScope, 5, id, old},
		{"a key without patterns, nothing", "nothing", "", wire.OK, 0, id, old},
		// 11.3
		{"shortened by right", "alice", "add " + id + " 60 old", wire.OK, 0, id, []string{"old 60"}},
	} {
		t.Run(x.text, func(t *testing.T) {
			n := newNode(t)
			if rcode, f, _ := n.send(update(t, "add "+id+" 300 old"), "operator"); rcode != 0 {
				t.Fatal(f)
			}
			rcode, f, _ := n.send(update(t, x.lines), x.key)
			if f != x.fault || rcode != x.rcode {
				t.Errorf("%v (%d), want %v", f, rcode, x.fault)
			}
			if got := n.values(x.at); fmt.Sprint(got) != fmt.Sprint(x.want) {
				t.Errorf("%s holds %.80q, want %.80q", x.at, got, x.want)
			}
		})
	}
}

// dns.md 9.4: with updates off a probe still sees a node; the reason comes before any look at the message.
func TestUpdatesOff(t *testing.T) {
	n := newNode(t)
	n.policy(func(p *Policy) { p.Enabled = false })
	for _, lines := range []string{"add _dmp-probe.mesh.test 60 x", "zone other.example\nadd x.other.example 60 x", "nozone x"} {
		for _, key := range []string{"", "operator"} {
			if rcode, f, _ := n.send(update(t, lines), key); rcode != 5 || f != wire.UpdatesOff {
				t.Errorf("%q: %v", lines, f)
			}
		}
	}
}

func TestLimitsOff(t *testing.T) {
	n := newNode(t)
	n.policy(func(p *Policy) { p.ValueMax, p.TTLMaxSec = 0, -1 })
	if rcode, f, _ := n.send(update(t, "add "+id+" 2000000"+strs(5000, 255)), "alice"); rcode != 0 {
		t.Error(f)
	}
}

// What only the committer can know: 15, 65th value and refresh at 64; a key revoked in between; the quota's writer.
func TestCommitted(t *testing.T) {
	n := newNode(t)
	lines := ""
	for i := range 64 {
		lines += fmt.Sprintf("add %s 60 v%d\n", id, i)
	}
	for _, x := range []struct {
		lines string
		rcode uint16
		f     wire.Fault
	}{{lines, 0, wire.OK}, {"add " + id + " 60 one-more", 5, wire.RRsetFull}, {"add " + id + " 90 v3", 0, wire.OK}, {"delete " + id + " v3\nadd " + id + " 60 one-more", 0, wire.OK}} {
		if rcode, f, _ := n.send(update(t, x.lines), "alice"); rcode != x.rcode || f != x.f {
			t.Errorf("%.40q: %v", x.lines, f)
		}
	}
	msg := update(t, "add "+id+" 300 v4")
	var m wire.Message
	wire.Parse(msg, &m)
	k := n.keys.Load(wire.MustName("alice.mesh.test"))
	n.reader.Enter()
	p, _, f := Prepare(&m, &Author{Key: k, Keys: n.keys, Peer: n.peer}, &n.env)
	n.reader.Leave()
	if f != wire.OK || !p.Batch.KeyLive() || p.Batch.Writer == ([16]byte{}) || p.Adds() != 1 || p.Deletes() != 0 {
		t.Fatalf("%v %+v", f, p)
	}
	revoked := *k
	revoked.Revoked = true
	n.keys.Store(&revoked)
	done := make(chan store.Result, 1)
	p.Batch.Done = func(r store.Result) { done <- r }
	n.store.Submit(&p.Batch)
	if rcode, f := Outcome(<-done); rcode != 5 || f != wire.OutOfScope {
		t.Errorf("revoked in between: %v", f)
	}
}

func TestOutcome(t *testing.T) {
	for code := record.CodeStored; code <= record.CodeVoid; code++ {
		rcode, f := Outcome(store.Result{Code: code, Rcode: 7})
		if code.OK() != (f == wire.OK && rcode == 0) || !code.OK() && rcode == 0 {
			t.Errorf("%v: %v, rcode %d", code, f, rcode)
		}
	}
	if rcode, _ := Outcome(store.Result{Code: record.CodePrereq, Rcode: 7}); rcode != 7 {
		t.Error(rcode)
	}
	if rcode, _ := Outcome(store.Result{Code: record.CodeFailed}); rcode != 2 {
		t.Error(rcode)
	}
}

// RFC 2136 3.2, and whose are evaluated.
func TestPrerequisites(t *testing.T) {
	for _, x := range []struct {
		lines string
		rcode uint16
		f     wire.Fault
	}{
		{"yx " + id, 0, wire.OK},
		{"yx none.mesh.test", 3, wire.PrereqFailed},
		{"yx mesh.test", 0, wire.OK},
		{"nx none.mesh.test", 0, wire.OK},
		{"nx " + strings.ToUpper(id), 6, wire.PrereqFailed},
		{"nx mesh.test", 6, wire.PrereqFailed},
		{"yxrrset " + id + " TXT", 0, wire.OK},
		{"yxrrset none.mesh.test TXT", 8, wire.PrereqFailed},
		{"yxrrset mesh.test SOA", 0, wire.OK},
		{"yxrrset mesh.test NS", 8, wire.PrereqFailed},
		{"yxrrset " + id + " A", 8, wire.PrereqFailed},
		{"nxrrset none.mesh.test TXT", 0, wire.OK},
		{"nxrrset " + id + " TXT", 7, wire.PrereqFailed},
		{"nxrrset mesh.test SOA", 7, wire.PrereqFailed},
		{"nxrrset mesh.test AAAA", 0, wire.OK},
		{"nxrrset " + id + " MX", 0, wire.OK},
		{"equal " + id + " old\nequal " + id + " other", 0, wire.OK},
		{"equal " + id + " o ld\nequal " + id + " other", 0, wire.OK},
		{"equal " + id + " old", 8, wire.PrereqFailed},
		{"equal " + id + " old\nequal " + id + " third", 8, wire.PrereqFailed},
		{"rr prereq mesh.test 0 1 1 c0000201", 0, wire.OK},
		{"rr prereq mesh.test 0 1 1 c0000202", 8, wire.PrereqFailed},
		{"rr prereq mesh.test 0 1 6 00", 8, wire.PrereqFailed},
		{"yx " + id + "\nnx " + id, 6, wire.PrereqFailed},
		{"yx a.other.example", 10, wire.NotZone},
	} {
		for mode, name := range map[Prereqs]string{PrereqsAuto: "auto", PrereqsOn: "on", PrereqsOff: "off"} {
			for _, key := range []string{"operator", "alice"} {
				n := newNode(t)
				n.policy(func(p *Policy) { p.Prereqs = mode })
				n.send(update(t, "add "+id+" 300 old\nadd "+id+" 300 other"), "operator")
				rcode, f, _ := n.send(update(t, x.lines+"\nadd "+id+" 300 new"), key)
				want, wantF := x.rcode, x.f
				if mode == PrereqsOff || mode == PrereqsAuto && key != "operator" {
					want, wantF = 0, wire.OK
				}
				if rcode != want || f != wantF {
					t.Errorf("%s, %s, %q: %v (%d), want %d", name, key, x.lines, f, rcode, want)
				}
				if stored := len(n.values(id)) == 3; stored != (want == 0) {
					t.Errorf("%s, %s, %q: stored %v", name, key, x.lines, stored)
				}
			}
		}
	}
	// Their form is checked in any case; who may not write learns nothing from them.
	for _, x := range []struct {
		lines, key string
		f          wire.Fault
	}{
		{"rr prereq " + id + " 1 255 255", "alice", wire.PrereqBad},
		{"rr prereq " + id + " 0 255 16 0161", "alice", wire.PrereqBad},
		{"rr prereq " + id + " 0 254 16 0161", "alice", wire.PrereqBad},
		{"rr prereq " + id + " 0 1 255", "alice", wire.PrereqBad},
		{"rr prereq " + id + " 0 1 16", "alice", wire.PrereqBad},
		{"rr prereq " + id + " 0 255 252", "alice", wire.PrereqBad},
		{"rr prereq " + id + " 0 3 16 0161", "alice", wire.PrereqBad},
		{"nx " + id + "\nadd other.mesh.test 60 x", "alice", wire.OutOfScope},
	} {
		n := newNode(t)
		n.policy(func(p *Policy) { p.Prereqs = PrereqsOn })
		if _, f, _ := n.send(update(t, x.lines), x.key); f != x.f {
			t.Errorf("%q: %v", x.lines, f)
		}
	}
	// A message of nothing but prerequisites is evaluated.
	n := newNode(t)
	if rcode, _, _ := n.send(update(t, "yx "+id), "operator"); rcode != 3 {
		t.Error(rcode)
	}
}

// FuzzPrepare: whatever is prepared lies in the zone, in the form in which it is stored, and the packet has no part in it.
func FuzzPrepare(f *testing.F) {
	n := newNode(f)
	n.policy(func(p *Policy) { p.Prereqs = PrereqsOn })
	for _, lines := range []string{"add " + id + " 60 x", "delete " + id + " a b", "clear " + id, "yx " + id + "\nequal " + id + " x\nadd " + slot + " 1 x", "rr update " + id + " 60 1 1 01020304"} {
		f.Add(update(f, lines), true)
	}
	f.Add(claimMessage(f, 3, "0123456789ab", 300, nowSec, nowSec+300), false)
	f.Fuzz(func(t *testing.T, msg []byte, signed bool) {
		var m wire.Message
		if wire.Parse(msg, &m) != wire.OK {
			return
		}
		a := Author{Keys: n.keys, Peer: n.peer}
		if signed {
			a.Key = n.keys.Load(wire.MustName("operator.mesh.test"))
		}
		n.reader.Enter()
		p, rcode, fault := Prepare(&m, &a, &n.env)
		n.reader.Leave()
		if (p == nil) != (fault != wire.OK) || (rcode == 0) != (fault == wire.OK) {
			t.Fatalf("%v %d %v", p, rcode, fault)
		}
		if p == nil {
			return
		}
		r := record.Request{Source: record.SourceOperator, Ops: p.Batch.Ops}
		before := record.AppendRequest(nil, &r)
		for i := range msg {
			msg[i] = ^msg[i]
		}
		after := record.AppendRequest(nil, &r)
		if !bytes.Equal(before, after) {
			t.Fatal("the batch lies in the packet")
		}
		if _, _, err := record.ReadRequest(after); err != nil {
			t.Fatal(err) // names and RDATA are well formed
		}
		for _, op := range p.Batch.Ops {
			if !wire.IsSubdomain(op.Name, n.env.Policy.Zone.Apex) || !signed && p.Claims() == 0 {
				t.Fatalf("%+v", op)
			}
		}
	})
}

func BenchmarkPrepare(b *testing.B) {
	n := newNode(b)
	msg := update(b, "add "+id+" 86400"+strs(340, 255))
	claim := claimMessage(b, 3, "0123456789ab", 300, nowSec, nowSec+300)
	for _, x := range []struct {
		text string
		msg  []byte
		a    Author
	}{{"signed", msg, Author{Key: n.keys.Load(wire.MustName("alice.mesh.test")), Keys: n.keys, Peer: n.peer}}, {"claim", claim, Author{Keys: n.keys, Peer: n.peer}}} {
		b.Run(x.text, func(b *testing.B) {
			var m wire.Message
			b.ReportAllocs()
			for b.Loop() {
				n.env.MonoNs += 1e9
				wire.Parse(x.msg, &m)
				n.reader.Enter()
				if _, _, f := Prepare(&m, &x.a, &n.env); f != wire.OK {
					b.Fatal(f)
				}
				n.reader.Leave()
			}
		})
	}
}

var sender = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))

func claimText(slot uint8, ts, exp int64, msgID byte, key ed25519.PrivateKey) string {
	return string(record.AppendClaim(nil, key, [16]byte{msgID}, "alice.mesh.example", slot, uint64(ts), uint64(exp)))
}

// claimMessage is what a client sends (dns.md 9.2).
func claimMessage(t testing.TB, slot uint8, hash string, ttl int, ts, exp int64) []byte {
	return update(t, fmt.Sprintf("add claim-%d.mb-%s.mesh.test %d %s", slot, hash, ttl, claimText(slot, ts, exp, 1, sender)))
}
