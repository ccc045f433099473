package fuzz

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/dnsmesh/dmpd/internal/wire"
)

// messageSeeds are messages as clients send them: queries with and without EDNS, UPDATEs of every kind, signed ones.
func messageSeeds(f *testing.F) (seeds [][]byte) {
	f.Helper()
	add := func(m *dns.Msg) {
		for _, m.Compress = range []bool{false, true} {
			b, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			seeds = append(seeds, b)
		}
	}
	query := new(dns.Msg)
	query.SetQuestion("SloT-1.mb-0123456789ab.Mesh.Test.", dns.TypeTXT)
	add(query)
	query.SetEdns0(4096, true)
	query.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"}, &dns.EDNS0_NSID{Code: dns.EDNS0NSID}}
	add(query)
	query.IsEdns0().SetVersion(1)
	add(query)
	two := new(dns.Msg)
	two.Question = []dns.Question{{Name: "a.", Qtype: 1, Qclass: 1}, {Name: ".", Qtype: 255, Qclass: 255}}
	add(two)
	update := new(dns.Msg)
	update.SetUpdate("mesh.test.")
	rr, err := dns.NewRR(`a.mesh.test. 300 IN TXT "v=dmp1;t=x" "" "more"`)
	if err != nil {
		f.Fatal(err)
	}
	update.Insert([]dns.RR{rr})
	update.Remove([]dns.RR{rr})
	update.RemoveRRset([]dns.RR{rr})
	update.RemoveName([]dns.RR{rr})
	update.Used([]dns.RR{rr})
	update.NameNotUsed([]dns.RR{rr})
	add(update)
	update.SetEdns0(1232, false)
	update.SetTsig("alice-1.mesh.test.", dns.HmacSHA256, 300, 1_800_000_000)
	update.IsTsig().MAC, update.IsTsig().MACSize = strings.Repeat("5a", 32), 32
	add(update)
	return seeds
}

// FuzzMessage: ours and miekg/dns read the same out of a message; what we refuse although miekg takes it is refused by a rule that miekg
// does not have; the fast parser says what the complete one says; nothing lies outside the message; and the reply to whatever had a header
// is one that miekg reads, with the question echoed byte for byte.
func FuzzMessage(f *testing.F) {
	for _, b := range messageSeeds(f) {
		f.Add(b)
	}
	var m wire.Message // reused, as the loops do
	f.Fuzz(func(t *testing.T, msg []byte) {
		before := bytes.Clone(msg)
		fault := wire.Parse(msg, &m)
		var d dns.Msg
		err := d.Unpack(msg)
		switch fault {
		case wire.OK:
			inside(t, &m)
			if err == nil {
				sameMessage(t, &m, &d)
			}
		case wire.Short, wire.Response, wire.BadCount, wire.BadPointer, wire.TrailingBytes, wire.BadOPT, wire.TwoOPT, wire.TSIGNotLast, wire.TooManyRRs:
			// Rules of our own, or at which miekg is lenient.
		case wire.BadRR:
			if err == nil && !cutQuestion(&d) {
				t.Fatalf("refused (%s), miekg reads %v", fault.Label(), &d)
			}
		default:
			if err == nil {
				t.Fatalf("refused (%s), miekg reads %v", fault.Label(), &d)
			}
		}
		fast(t, msg, &m, fault)
		if fault != wire.Short && fault != wire.Response {
			reply(t, msg, &m)
		}
		if !bytes.Equal(msg, before) {
			t.Fatal("the packet was changed")
		}
	})
}

// cutQuestion: miekg takes a question without type or class at the end of a message.
func cutQuestion(d *dns.Msg) bool {
	return len(d.Question) > 0 && len(d.Answer)+len(d.Ns)+len(d.Extra) == 0
}

func inside(t *testing.T, m *wire.Message) {
	t.Helper()
	total := 0
	for i, section := range [][]wire.RR{m.QD, m.AN, m.NS, m.AR} {
		total += len(section)
		for k := range section {
			r := &section[k]
			if !wire.ValidName(r.Name) || !bytes.Equal(r.Name, wire.AppendLower(nil, r.Name)) || r.Off < wire.HeaderSize || r.Off >= len(m.Msg) {
				t.Fatalf("section %d: %+v", i, r)
			}
			if i > 0 && len(m.RData(r)) != r.REnd-r.RDataOff {
				t.Fatalf("section %d: RDATA", i)
			}
			if wire.Text(r.Name) == "" {
				t.Fatal("a name without text")
			}
		}
	}
	if m.TSIG != nil {
		total++
		if m.TSIG.REnd != len(m.Msg) {
			t.Fatal("the TSIG record is not the end")
		}
	}
	if m.EDNS.Present {
		total++
	}
	counted := 0
	for i := 4; i < 12; i += 2 {
		counted += int(binary.BigEndian.Uint16(m.Msg[i:]))
	}
	if total != counted {
		t.Fatalf("%d records of %d", total, counted)
	}
	if n := len(m.EDNS.Cookie); n != 0 && n != 8 && (n < 16 || n > 40) {
		t.Fatalf("a cookie of %d bytes", n)
	}
}

func sameMessage(t *testing.T, m *wire.Message, d *dns.Msg) {
	t.Helper()
	if m.ID != d.Id || int(m.Opcode) != d.Opcode || len(m.QD) != len(d.Question) || len(m.AN) != len(d.Answer) || len(m.NS) != len(d.Ns) {
		t.Fatalf("%d %d, sections %d %d %d; miekg has %v", m.ID, m.Opcode, len(m.QD), len(m.AN), len(m.NS), d)
	}
	name := func(r *wire.RR, text string) {
		want, err := wire.AppendName(nil, text)
		if err != nil || !bytes.Equal(want, r.Name) {
			t.Fatalf("%s, miekg has %s (%v)", wire.Text(r.Name), text, err)
		}
	}
	for i := range m.QD {
		name(&m.QD[i], d.Question[i].Name)
		if m.QD[i].Type != d.Question[i].Qtype || m.QD[i].Class != d.Question[i].Qclass {
			t.Fatalf("question %d", i)
		}
	}
	section := func(ours []wire.RR, theirs []dns.RR) {
		for i := range ours {
			h := theirs[i].Header()
			name(&ours[i], h.Name)
			if ours[i].Type != h.Rrtype || ours[i].Class != h.Class || ours[i].TTL != h.Ttl || len(m.RData(&ours[i])) != int(h.Rdlength) {
				t.Fatalf("%+v, miekg has %v", ours[i], h)
			}
			if txt, ok := theirs[i].(*dns.TXT); ok && h.Rdlength > 0 {
				value, ok := wire.AppendTXT(nil, m.RData(&ours[i]))
				if want := strings.Join(txt.Txt, ""); !ok || !strings.Contains(want, `\`) && string(value) != want {
					t.Fatalf("value %q, miekg has %q", value, want)
				}
			}
		}
	}
	section(m.AN, d.Answer)
	section(m.NS, d.Ns)
	var extra []dns.RR
	for _, rr := range d.Extra {
		switch rr.Header().Rrtype {
		case dns.TypeOPT:
			if opt := rr.(*dns.OPT); !m.EDNS.Present || opt.UDPSize() != m.EDNS.Size || opt.Do() != m.EDNS.DO || opt.Version() != m.EDNS.Version {
				t.Fatalf("%+v, miekg has %v", m.EDNS, opt)
			}
		case dns.TypeTSIG:
			if m.TSIG == nil {
				t.Fatal("no TSIG")
			}
			name(m.TSIG, rr.Header().Name)
		default:
			extra = append(extra, rr)
		}
	}
	if len(extra) != len(m.AR) || (d.IsTsig() != nil) != (m.TSIG != nil) || (d.IsEdns0() != nil) != m.EDNS.Present {
		t.Fatalf("%d additional records, miekg has %d", len(m.AR), len(extra))
	}
	section(m.AR, extra)
}

func fast(t *testing.T, msg []byte, m *wire.Message, fault wire.Fault) {
	t.Helper()
	var q wire.Query
	switch f := wire.ParseQuery(msg, &q); f {
	case wire.NotSimple:
	case wire.OK:
		if fault != wire.OK || len(m.QD) != 1 || len(m.AN)+len(m.NS)+len(m.AR) != 0 || m.Opcode != wire.OpQuery || m.TSIG != nil || m.EDNS.Version != 0 ||
			!bytes.Equal(q.Name[:q.NameLen], m.QD[0].Name) || q.Type != m.QD[0].Type || q.Class != m.QD[0].Class || q.QEnd != m.QEnd ||
			q.EDNS.Present != m.EDNS.Present || q.EDNS.DO != m.EDNS.DO || q.EDNS.NSID != m.EDNS.NSID || q.EDNS.Size != m.EDNS.Size ||
			!bytes.Equal(q.EDNS.Cookie, m.EDNS.Cookie) {
			t.Fatalf("the parsers disagree: %+v, %+v (%s)", q, m, fault.Label())
		}
	default:
		if f != fault {
			t.Fatalf("%s, the complete parser says %s", f.Label(), fault.Label())
		}
	}
}

func reply(t *testing.T, msg []byte, m *wire.Message) {
	t.Helper()
	qEnd := wire.HeaderSize
	if m.Question {
		qEnd = m.QEnd
	}
	const start = 3
	out := wire.AppendReply([]byte("xyz"), msg, qEnd, wire.Refused, true)
	question := len(out)
	apex := wire.MustName("mesh.test")
	if m.Question && len(m.QD) > 0 && len(m.QD[0].Name) > 1 {
		apex = m.QD[0].Name[1+m.QD[0].Name[0]:] // compresses wholly
	}
	out = wire.AppendSOA(out, start, &wire.SOA{Apex: apex, MName: apex, RName: apex, Serial: 7}, 60)
	wire.Count(out, start, wire.Authority, 1)
	o := wire.Options{DO: m.EDNS.DO, Cookie: m.EDNS.Cookie, EDE: true, Code: 20}
	size := len(out)
	out = wire.AppendOPT(out, start, &o)
	if len(out)-size != o.OPTSize() {
		t.Fatal("OPTSize")
	}
	var d dns.Msg
	if err := d.Unpack(out[start:]); err != nil {
		t.Fatalf("miekg cannot read the reply %x: %v", out[start:], err)
	}
	soa, ok := d.Ns[0].(*dns.SOA)
	if !ok || d.Id != m.ID || !d.Response || !d.Authoritative || d.Rcode != wire.Refused || soa.Serial != 7 || d.IsEdns0() == nil || len(out) > start+len(msg)+700 {
		t.Fatalf("%v", &d)
	}
	if got, err := wire.AppendName(nil, soa.Ns); err != nil || !bytes.Equal(got, apex) {
		t.Fatalf("%s is not %s", soa.Ns, wire.Text(apex))
	}
	if !bytes.Equal(out[start+wire.HeaderSize:question], msg[wire.HeaderSize:qEnd]) {
		t.Fatal("the question is not echoed")
	}
	out = wire.Truncate(out, start, qEnd-wire.HeaderSize)
	if len(out) != question || !wire.IsTruncated(out[start:]) || d.Unpack(out[start:]) != nil || !d.Truncated || len(d.Ns)+len(d.Extra) != 0 {
		t.Fatalf("truncated: %x", out)
	}
}

// FuzzName: text becomes a name, and that its text, and that the same name; a refusal gives nothing; ours and miekg agree on what a name
// is; and the functions on names agree with what the text says.
func FuzzName(f *testing.F) {
	for _, s := range []string{"", ".", "a.B.test", `evil\.example.com`, `\000\255.x`, "_dnsmesh-seen.mesh.test.", "a..b", `\`, `\25`, `\256`, strings.Repeat("a", 64), strings.Repeat("a.", 127), `x\@y.z`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		name, err := wire.AppendName([]byte("x"), text)
		if err != nil {
			if len(name) != 1 {
				t.Fatal("a refusal appended")
			}
			return
		}
		name = name[1:]
		if !wire.ValidName(name) || !bytes.Equal(name, wire.AppendLower(nil, name)) {
			t.Fatalf("%x is no lower name", name)
		}
		back := wire.Text(name)
		again, err := wire.AppendName(nil, back)
		if err != nil || !bytes.Equal(again, name) {
			t.Fatalf("%q becomes %q (%v)", text, back, err)
		}
		buf := make([]byte, 300)
		n, err := dns.PackDomainName(dns.Fqdn(back), buf, 0, nil, false)
		if err != nil || !bytes.Equal(buf[:n], name) {
			t.Fatalf("%q: %x, miekg has %x (%v)", back, name, buf[:n], err)
		}
		if wire.Labels(name) != dns.CountLabel(dns.Fqdn(back)) || !wire.IsSubdomain(name, name) || !wire.IsSubdomain(name, []byte{0}) {
			t.Fatalf("%q: labels", back)
		}
		if label, rest := wire.FirstLabel(name); len(name) > 1 && (len(label)+1+len(rest) != len(name) || !wire.IsSubdomain(name, rest) || wire.IsSubdomain(rest, name)) {
			t.Fatalf("%q: first label %q", back, label)
		}
	})
}
