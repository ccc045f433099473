package wire

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestNames(t *testing.T) {
	for _, x := range []struct{ text, back string }{
		{"", "."}, {".", "."}, {"a.B.test", "a.b.test"}, {"a.test.", "a.test"}, {`evil\.example.com`, `evil\.example.com`}, {`a\065b.test`, `aab.test`}, {`\000\255.x`, `\000\255.x`},
		{"_dnsmesh-heartbeat.test", "_dnsmesh-heartbeat.test"}, {strings.Repeat("a", 63) + ".b", strings.Repeat("a", 63) + ".b"},
	} {
		name, err := AppendName([]byte("x"), x.text)
		if err != nil || Text(name[1:]) != x.back || !ValidName(name[1:]) {
			t.Errorf("%q: %q, %v", x.text, Text(name[1:]), err)
		}
	}
	for _, bad := range []string{"..", "a..b", ".a", strings.Repeat("a", 64), `\`, `\2`, `\25`, `\256`, strings.Repeat("a.", 127) + "aa"} {
		if got, err := AppendName([]byte("x"), bad); !errors.Is(err, ErrName) || len(got) != 1 {
			t.Errorf("%q was taken: %q", bad, got)
		}
	}
	if !IsSubdomain(MustName("a.b.test"), MustName("b.test")) || !IsSubdomain(MustName("b.test"), MustName("b.test")) || IsSubdomain(MustName("xb.test"), MustName("b.test")) ||
		IsSubdomain(MustName("test"), MustName("b.test")) || IsSubdomain(MustName(`evil\.b.test`), MustName("b.test")) || !IsSubdomain(MustName("a"), []byte{0}) {
		t.Error("subdomains")
	}
	if Labels(MustName("a.b.c")) != 3 || Labels([]byte{0}) != 0 {
		t.Error("labels")
	}
}

func pack(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseQuery(t *testing.T) {
	m := new(dns.Msg)
	m.SetQuestion("SloT-1.mb-0123456789ab.Example.Test.", dns.TypeTXT)
	m.SetEdns0(4096, true)
	m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"}, &dns.EDNS0_NSID{Code: dns.EDNS0NSID})
	msg := pack(t, m)
	var q Query
	if f := ParseQuery(msg, &q); f != OK {
		t.Fatal(f)
	}
	if got := Text(q.Name[:q.NameLen]); got != "slot-1.mb-0123456789ab.example.test" || q.Type != TypeTXT || q.Class != ClassIN || !q.EDNS.DO || !q.EDNS.NSID || q.EDNS.Size != 4096 || len(q.EDNS.Cookie) != 8 {
		t.Errorf("%q %+v", got, q.EDNS)
	}
	if n := testing.AllocsPerRun(100, func() { ParseQuery(msg, &q) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	for name, b := range map[string][]byte{
		"short":      msg[:11],
		"response":   append([]byte{0, 1, 0x80}, msg[3:]...),
		"opcode":     append([]byte{0, 1, 0x28}, msg[3:]...),
		"trailing":   append(bytes.Clone(msg), 0),
		"cut":        msg[:len(msg)-1],
		"no OPT":     append(bytes.Clone(msg[:q.QEnd]), 0),
		"two":        append(append(bytes.Clone(msg[:4]), 0, 2), msg[6:]...),
		"compressed": append(append(bytes.Clone(msg[:12]), 0xC0, 12), msg[14:]...),
	} {
		if f := ParseQuery(b, &q); f == OK {
			t.Errorf("%s was taken", name)
		}
	}
}

// TestParseAgrees: our parser and miekg/dns read the same out of messages, and where we refuse what miekg takes there is a rule.
func TestParseAgrees(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	taken, refused := 0, 0
	for range 20000 {
		msg := randomMessage(t, rng)
		for range rng.IntN(3) {
			if len(msg) > 12 && rng.IntN(2) == 0 {
				msg[2+rng.IntN(len(msg)-2)] ^= 1 << rng.IntN(8)
			} else {
				msg = msg[:rng.IntN(len(msg)+1)]
			}
		}
		if agree(t, msg) {
			taken++
		} else {
			refused++
		}
	}
	if taken < 2000 || refused < 2000 {
		t.Errorf("%d taken, %d refused: the test is lopsided", taken, refused)
	}
}

func randomMessage(t testing.TB, rng *rand.Rand) []byte {
	m := new(dns.Msg)
	m.Compress = rng.IntN(2) == 0
	name := func() string { return fmt.Sprintf("n%d.mb-%d.Example.test.", rng.IntN(5), rng.IntN(5)) }
	if rng.IntN(2) == 0 {
		m.SetQuestion(name(), uint16(rng.IntN(300)))
	} else {
		m.SetUpdate("example.test.")
		for range rng.IntN(5) {
			rr, _ := dns.NewRR(name() + " 300 IN TXT \"some value\" \"more\"")
			switch rng.IntN(3) {
			case 0:
				m.Insert([]dns.RR{rr})
			case 1:
				m.Remove([]dns.RR{rr})
			default:
				m.RemoveRRset([]dns.RR{rr})
			}
		}
	}
	if rng.IntN(2) == 0 {
		m.SetEdns0(uint16(rng.IntN(1<<16)), rng.IntN(2) == 0)
	}
	if rng.IntN(3) == 0 {
		m.SetTsig("key.example.test.", dns.HmacSHA256, 300, 1800000000)
		m.IsTsig().MAC, m.IsTsig().MACSize = strings.Repeat("ab", 32), 32
	}
	return pack(t, m)
}

func agree(t testing.TB, msg []byte) bool {
	t.Helper()
	var m Message
	f := Parse(msg, &m)
	var d dns.Msg
	err := d.Unpack(msg)
	if f != OK {
		if len(m.Msg) > 0 && m.Question && f != Short && m.QEnd > len(msg) {
			t.Errorf("%x: a question that ends outside", msg)
		}
		return false
	}
	if err != nil {
		// miekg also reads RDATA of types that are opaque here.
		return true
	}
	if len(d.Question) != len(m.QD) || len(d.Answer) != len(m.AN) || len(d.Ns) != len(m.NS) {
		t.Fatalf("%x: sections %d %d %d, miekg has %d %d %d", msg, len(m.QD), len(m.AN), len(m.NS), len(d.Question), len(d.Answer), len(d.Ns))
	}
	check := func(r *RR, name string, typ, class uint16) {
		want, err := AppendName(nil, name)
		if err != nil || !bytes.Equal(want, r.Name) || r.Type != typ || r.Class != class {
			t.Fatalf("%x: %s %d %d, miekg has %s %d %d", msg, Text(r.Name), r.Type, r.Class, name, typ, class)
		}
	}
	for i := range m.QD {
		check(&m.QD[i], d.Question[i].Name, d.Question[i].Qtype, d.Question[i].Qclass)
	}
	for i := range m.NS {
		h := d.Ns[i].Header()
		check(&m.NS[i], h.Name, h.Rrtype, h.Class)
		if m.NS[i].TTL != h.Ttl {
			t.Fatalf("%x: TTL", msg)
		}
		if txt, ok := d.Ns[i].(*dns.TXT); ok && len(m.RData(&m.NS[i])) > 0 {
			v, ok := AppendTXT(nil, m.RData(&m.NS[i]))
			if want := strings.Join(txt.Txt, ""); ok && !strings.Contains(want, `\`) && string(v) != want {
				t.Fatalf("%x: value %q, miekg has %q", msg, v, want)
			}
		}
	}
	if opt := d.IsEdns0(); opt != nil && m.EDNS.Present && (opt.UDPSize() != m.EDNS.Size || opt.Do() != m.EDNS.DO || opt.Version() != m.EDNS.Version) {
		t.Fatalf("%x: OPT", msg)
	}
	if (d.IsTsig() != nil) != (m.TSIG != nil) {
		t.Fatalf("%x: TSIG", msg)
	}
	// The fast parser says the same as the complete one, or leaves the message to it.
	var q Query
	if ParseQuery(msg, &q) == OK {
		if len(m.QD) != 1 || m.Opcode != OpQuery || !bytes.Equal(q.Name[:q.NameLen], m.QD[0].Name) || q.Type != m.QD[0].Type || q.Class != m.QD[0].Class || q.QEnd != m.QEnd ||
			q.EDNS.Present != m.EDNS.Present || q.EDNS.DO != m.EDNS.DO || q.EDNS.Size != m.EDNS.Size || !bytes.Equal(q.EDNS.Cookie, m.EDNS.Cookie) {
			t.Fatalf("%x: the parsers disagree", msg)
		}
	}
	return true
}

func TestFaults(t *testing.T) {
	query := func(f func(*dns.Msg)) []byte {
		m := new(dns.Msg)
		m.SetQuestion("a.test.", dns.TypeTXT)
		f(m)
		return pack(t, m)
	}
	plain := query(func(*dns.Msg) {})
	opt := func(m *dns.Msg) { m.SetEdns0(1232, false) }
	two := query(func(m *dns.Msg) { opt(m); m.Extra = append(m.Extra, m.Extra[0]) })
	tsigFirst := query(func(m *dns.Msg) {
		m.SetTsig("k.", dns.HmacSHA256, 300, 1)
		opt(m)
		m.Extra[0], m.Extra[1] = m.Extra[1], m.Extra[0]
		if m.Extra[0].Header().Rrtype == dns.TypeOPT {
			m.Extra[0], m.Extra[1] = m.Extra[1], m.Extra[0]
		}
	})
	loop := append(bytes.Clone(plain[:12]), 0xC0, 12, 0, 16, 0, 1)
	for _, x := range []struct {
		name string
		msg  []byte
		want Fault
	}{
		{"ok", plain, OK}, {"short", plain[:5], Short}, {"cut", plain[:len(plain)-2], BadRR}, {"trailing", append(bytes.Clone(plain), 1), TrailingBytes}, {"two OPT", two, TwoOPT},
		{"TSIG first", tsigFirst, TSIGNotLast}, {"loop", loop, BadPointer}, {"label type", append(bytes.Clone(plain[:12]), 0x40, 0, 16, 0, 1), BadName}, {"count", append(append(bytes.Clone(plain[:6]), 0, 1), plain[8:]...), BadCount},
		{"many", append(append(bytes.Clone(plain[:6]), 0xFF, 0xFF), plain[8:]...), TooManyRRs},
	} {
		var m Message
		if f := Parse(x.msg, &m); f != x.want {
			t.Errorf("%s: %v, want %v", x.name, f.Label(), x.want.Label())
		}
	}
	for f := range Faults {
		if f.Label() == "" || f.Error() == "" {
			t.Errorf("fault %d has no text", f)
		}
	}
}

func TestBuild(t *testing.T) {
	m := new(dns.Msg)
	m.SetQuestion("X.Mesh.Test.", dns.TypeTXT)
	m.SetEdns0(4096, true)
	req := pack(t, m)
	var q Query
	if f := ParseQuery(req, &q); f != OK {
		t.Fatal(f)
	}
	b := []byte("in front")
	start := len(b)
	b = AppendReply(b, req, q.QEnd, NXDomain, true)
	Count(b, start, Authority, 1)
	b = AppendSOA(b, start, &SOA{Apex: MustName("mesh.test"), MName: MustName("ns.mesh.test"), RName: MustName("hostmaster.mesh.test"), Serial: 7, Refresh: 3600, Retry: 600, Expire: 604800, Minimum: 60}, 60)
	o := Options{DO: true, NSID: []byte("node-a"), Cookie: make([]byte, 24), EDE: true, Code: 20, Rcode: NXDomain}
	at := len(b)
	b = AppendOPT(b, start, &o)
	if len(b)-at != o.OPTSize() {
		t.Errorf("OPT has %d bytes, OPTSize says %d", len(b)-at, o.OPTSize())
	}
	var d dns.Msg
	if err := d.Unpack(b[start:]); err != nil {
		t.Fatal(err)
	}
	soa, ok := d.Ns[0].(*dns.SOA)
	if !ok || soa.Hdr.Name != "Mesh.Test." || soa.Ns != "ns.Mesh.Test." || soa.Mbox != "hostmaster.Mesh.Test." || soa.Serial != 7 || soa.Minttl != 60 || d.Rcode != dns.RcodeNameError || !d.Authoritative || d.Question[0].Name != "X.Mesh.Test." {
		t.Errorf("%v", &d)
	}
	if opt := d.IsEdns0(); opt == nil || !opt.Do() || opt.UDPSize() != UDPSize || len(opt.Option) != 3 {
		t.Errorf("%v", opt)
	}
	b = Truncate(b, start, q.QEnd-HeaderSize)
	if err := d.Unpack(b[start:]); err != nil || !d.Truncated || len(d.Ns) != 0 || len(d.Question) != 1 {
		t.Errorf("%v, %v", &d, err)
	}
}

func BenchmarkParseQuery(b *testing.B) {
	m := new(dns.Msg)
	m.SetQuestion("slot-1.mb-0123456789ab.example.test.", dns.TypeTXT)
	m.SetEdns0(1232, false)
	msg := pack(b, m)
	var q Query
	b.ReportAllocs()
	for b.Loop() {
		ParseQuery(msg, &q)
	}
}
