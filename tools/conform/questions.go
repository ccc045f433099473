package main

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/miekg/dns"
)

// place says where in the zone a question's name lies.
type place string

const (
	stored     place = "stored"
	big        place = "stored, too big for UDP"
	atApex     place = "apex"
	between    place = "empty non-terminal"
	structural place = "structural name without anything below"
	absent     place = "absent"
	outside    place = "outside"
)

// A question is one message and what each server said to it.
type question struct {
	place  place
	name   string
	typ    uint16
	class  uint16
	opcode int
	tcp    bool
	edns   bool
	size   uint16
	broken string // what is wrong with it; then wire is what is sent
	wire   []byte

	got   [kinds]string // summary
	ours  *dns.Msg      // nil: the node said nothing
	exact string        // what is wrong with the node's answer, whatever the peers say
}

func (q *question) String() string {
	over := "UDP"
	if q.tcp {
		over = "TCP"
	}
	if q.broken != "" {
		return fmt.Sprintf("broken message: %s (%s)", q.broken, hex.EncodeToString(q.wire[:min(len(q.wire), 64)]))
	}
	edns := ""
	if q.edns {
		edns = fmt.Sprintf(", EDNS %d", q.size)
	}
	return fmt.Sprintf("%s %s %s, %s, opcode %d, %s%s", q.name, dns.Class(q.class), dns.Type(q.typ), q.place, q.opcode, over, edns)
}

var types = []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeNS, dns.TypeSOA, dns.TypeMX, dns.TypeCNAME, dns.TypeDNAME, dns.TypePTR, dns.TypeSRV, dns.TypeCAA, dns.TypeHTTPS, dns.TypeDS,
	dns.TypeDNSKEY, dns.TypeNSEC, dns.TypeRRSIG, dns.TypeSPF, 65280}

// mixCase is what a resolver with 0x20 does.
func mixCase(rng *rand.Rand, name string) string {
	b := []byte(name)
	for i, c := range b {
		if 'a' <= c && c <= 'z' && rng.IntN(2) == 0 {
			b[i] = c - 32
		}
	}
	return string(b)
}

func pick[T any](rng *rand.Rand, from []T) T { return from[rng.IntN(len(from))] }

func (z *zone) pickName(rng *rand.Rand) (string, place) {
	isBig := func(name string) bool {
		n := 0
		for _, v := range z.values[name] {
			n += len(v) + 13
		}
		return n > 1232-len(name)
	}
	switch p := rng.IntN(100); {
	case p < 35:
		name := pick(rng, z.names)
		switch {
		case name == apex:
			return name, atApex
		case isBig(name):
			return name, big
		}
		return name, stored
	case p < 38:
		return pick(rng, z.big), big
	case p < 50:
		return apex, atApex
	case p < 60:
		return pick(rng, z.below), between
	case p < 66:
		return pick(rng, []string{"mb-" + hexDigits(rng, 12), "id-" + hexDigits(rng, 16), "id-" + hexDigits(rng, 12)}) + "." + apex, structural
	case p < 90:
		return pick(rng, []string{
			fmt.Sprintf("slot-%d.mb-%s.", rng.IntN(10), hexDigits(rng, 12)), fmt.Sprintf("claim-%d.mb-%s.", rng.IntN(10), hexDigits(rng, 12)),
			"prekeys.id-" + hexDigits(rng, 12) + ".", "www.", "_dnsmesh-seen.", "*.", `a\.b.`, `\000\255.`, "x.y.z.", strings.Repeat("l", 63) + ".", "below.n1.", "mb-" + hexDigits(rng, 11) + ".",
		}) + apex, absent
	}
	return pick(rng, []string{".", "test.", "com.", "example.com.", "www.example.com.", "xconform.test.", `x\.conform.test.`, "conform.test.example.", "version.bind.", "id.server."}), outside
}

func hexDigits(rng *rand.Rand, n int) string {
	b := make([]byte, (n+1)/2)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return hex.EncodeToString(b)[:n]
}

func makeQuestions(rng *rand.Rand, z *zone, n int) []*question {
	qs := make([]*question, n)
	for i := range qs {
		q := &question{class: dns.ClassINET, typ: dns.TypeTXT, tcp: rng.IntN(4) == 0}
		q.name, q.place = z.pickName(rng)
		if rng.IntN(3) > 0 {
			q.name = mixCase(rng, q.name)
		}
		switch p := rng.IntN(100); {
		case p < 55:
		case p < 60:
			q.typ = dns.TypeANY
		case p < 62:
			q.typ = pick(rng, []uint16{dns.TypeAXFR, dns.TypeIXFR})
		case p < 64:
			q.typ = pick(rng, []uint16{0, dns.TypeOPT, dns.TypeTSIG, dns.TypeTKEY, dns.TypeMAILA, dns.TypeMAILB})
		default:
			q.typ = pick(rng, types)
		}
		if rng.IntN(25) == 0 {
			q.class = pick(rng, []uint16{dns.ClassCHAOS, dns.ClassHESIOD, dns.ClassANY, dns.ClassNONE, 7})
		}
		if rng.IntN(40) == 0 {
			q.opcode = pick(rng, []int{dns.OpcodeStatus, 1, 3, dns.OpcodeNotify, 6, 15})
		}
		m := new(dns.Msg)
		m.Id = uint16(i)
		m.Opcode = q.opcode
		m.RecursionDesired, m.CheckingDisabled, m.AuthenticatedData = rng.IntN(2) == 0, rng.IntN(8) == 0, rng.IntN(8) == 0
		m.Question = []dns.Question{{Name: q.name, Qtype: q.typ, Qclass: q.class}}
		if rng.IntN(2) == 0 {
			q.edns, q.size = true, pick(rng, []uint16{0, 100, 512, 800, 1232, 1400, 4096, 65535})
			o := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT, Class: q.size}}
			if rng.IntN(3) == 0 {
				o.SetDo()
			}
			if rng.IntN(20) == 0 {
				o.SetVersion(uint8(1 + rng.IntN(255)))
			}
			switch rng.IntN(6) {
			case 0:
				o.Option = append(o.Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID})
			case 1:
				o.Option = append(o.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: hexDigits(rng, 16)})
			case 2:
				o.Option = append(o.Option, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte{1, 2, 3}})
			case 3:
				o.Option = append(o.Option, &dns.EDNS0_PADDING{Padding: make([]byte, rng.IntN(64))})
			}
			m.Extra = append(m.Extra, o)
		}
		if q.typ == dns.TypeIXFR {
			m.Ns = []dns.RR{&dns.SOA{Hdr: dns.RR_Header{Name: q.name, Rrtype: dns.TypeSOA, Class: q.class}, Ns: ".", Mbox: ".", Serial: 1}}
		}
		wire, err := m.Pack()
		if err != nil {
			panic(fmt.Sprintf("question %d: %v", i, err))
		}
		q.wire = wire
		qs[i] = q
	}
	return qs
}

// makeBroken makes messages that are wrong in one way each (dns.md 3.1).
func makeBroken() []*question {
	m := new(dns.Msg)
	m.SetQuestion("n1."+apex, dns.TypeTXT)
	m.RecursionDesired = false
	good, err := m.Pack()
	if err != nil {
		panic(err)
	}
	opt := []byte{0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0}
	var qs []*question
	add := func(what string, edit func(b []byte) []byte) {
		b := edit(append([]byte{}, good...))
		if len(b) >= 2 {
			b[0], b[1] = 0xB0, byte(len(qs))
		}
		qs = append(qs, &question{broken: what, wire: b, name: "n1." + apex, typ: dns.TypeTXT, class: dns.ClassINET})
	}
	add("a response", func(b []byte) []byte { b[2] |= 0x80; return b })
	add("a response with an error", func(b []byte) []byte { b[2] |= 0x80; b[3] |= 1; return b })
	add("11 bytes", func(b []byte) []byte { return b[:11] })
	add("one byte", func(b []byte) []byte { return b[:1] })
	add("header alone, no question", func(b []byte) []byte { b[5] = 0; return b[:12] })
	add("header alone, one question counted", func(b []byte) []byte { return b[:12] })
	add("two questions", func(b []byte) []byte { b[5] = 2; return append(b, b[12:]...) })
	add("two questions counted, one there", func(b []byte) []byte { b[5] = 2; return b })
	add("65535 questions counted", func(b []byte) []byte { b[4], b[5] = 255, 255; return b })
	add("cut in the name", func(b []byte) []byte { return b[:15] })
	add("cut before the type", func(b []byte) []byte { return b[:len(b)-4] })
	add("cut in the class", func(b []byte) []byte { return b[:len(b)-1] })
	add("trailing bytes", func(b []byte) []byte { return append(b, 1, 2, 3) })
	add("pointer onto itself", func(b []byte) []byte { return append(b[:12], 0xC0, 12, 0, 16, 0, 1) })
	add("pointer forwards", func(b []byte) []byte { return append(b[:12], 0xC0, 20, 0, 16, 0, 1, 0, 0, 0) })
	add("pointer out of the message", func(b []byte) []byte { return append(b[:12], 0xFF, 0xFF, 0, 16, 0, 1) })
	add("label type 01", func(b []byte) []byte { b[12] |= 0x40; return b })
	add("label type 10", func(b []byte) []byte { b[12] |= 0x80; return b })
	add("name of 256 bytes", func(b []byte) []byte {
		name := append([]byte{}, strings.Repeat("\x3f"+strings.Repeat("a", 63), 4)...)
		return append(append(append(b[:12:12], name...), 0), 0, 16, 0, 1)
	})
	add("answer counted and absent", func(b []byte) []byte { b[7] = 1; return b })
	add("authority counted and absent", func(b []byte) []byte { b[9] = 1; return b })
	add("additional counted and absent", func(b []byte) []byte { b[11] = 1; return b })
	add("two OPT records", func(b []byte) []byte { b[11] = 2; return append(append(b, opt...), opt...) })
	add("OPT with a name", func(b []byte) []byte { b[11] = 1; return append(append(b, 1, 'x'), opt...) })
	add("OPT in the answer", func(b []byte) []byte { b[7] = 1; return append(b, opt...) })
	add("OPT cut", func(b []byte) []byte { b[11] = 1; return append(b, opt[:7]...) })
	add("OPT longer than the message", func(b []byte) []byte { b[11] = 1; b = append(b, opt...); b[len(b)-1] = 9; return b })
	add("option longer than OPT", func(b []byte) []byte { b[11] = 1; b = append(b, opt...); b[len(b)-1] = 4; return append(b, 0, 3, 0, 9) })
	add("cookie of 7 bytes", func(b []byte) []byte {
		b[11] = 1
		b = append(b, opt...)
		b[len(b)-1] = 11
		return append(b, 0, 10, 0, 7, 1, 2, 3, 4, 5, 6, 7)
	})
	add("TSIG before OPT", func(b []byte) []byte {
		b[11] = 2
		tsig := []byte{1, 'k', 0, 0, 250, 0, 255, 0, 0, 0, 0, 0, 29, 11, 'h', 'm', 'a', 'c', '-', 's', 'h', 'a', '2', '5', '6', 0, 0, 0, 0, 0, 0, 0, 1, 44, 0, 0, 0, 0, 0, 0, 0, 0}
		return append(append(b, tsig...), opt...)
	})
	return qs
}
