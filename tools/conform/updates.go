package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// An update is one UPDATE, the same for all three; it leaves something at names that are then asked for.
type update struct {
	what  string
	build func(m *dns.Msg)
	zone  string // unset: the zone served
	sign  signature
	why   string // of a difference in the response code: ours is wanted
	ours  int
	mute  bool // Knot says nothing to it
}

const muteFor = 500 * time.Millisecond

type signature uint8

const (
	good signature = iota
	unsigned
	wrongSecret
	unknownKey
	late
)

func rr(text string) dns.RR {
	r, err := dns.NewRR(text)
	if err != nil {
		panic(text + ": " + err.Error())
	}
	return r
}

// compareUpdates sends each UPDATE to all three in turn and compares the response code, whether the response is signed, and what all names
// that any of them touched then answer (RFC 2136 3).
func compareUpdates(servers []*server, used map[*difference]int, verbose bool, r *report) (int, error) {
	name := func(label string) string { return label + "." + apex }
	txt := func(label, value string) dns.RR { return rr(name(label) + " 60 IN TXT " + quoted(value)) }
	add := func(rrs ...dns.RR) func(*dns.Msg) { return func(m *dns.Msg) { m.Insert(rrs) } }
	both := func(fs ...func(*dns.Msg)) func(*dns.Msg) {
		return func(m *dns.Msg) {
			for _, f := range fs {
				f(m)
			}
		}
	}
	remove := func(rrs ...dns.RR) func(*dns.Msg) { return func(m *dns.Msg) { m.Remove(rrs) } }
	removeSet := func(rrs ...dns.RR) func(*dns.Msg) { return func(m *dns.Msg) { m.RemoveRRset(rrs) } }
	removeName := func(rrs ...dns.RR) func(*dns.Msg) { return func(m *dns.Msg) { m.RemoveName(rrs) } }
	nameUsed := func(rrs ...dns.RR) func(*dns.Msg) { return func(m *dns.Msg) { m.NameUsed(rrs) } }
	nameNotUsed := func(rrs ...dns.RR) func(*dns.Msg) { return func(m *dns.Msg) { m.NameNotUsed(rrs) } }
	setUsed := func(rrs ...dns.RR) func(*dns.Msg) { return func(m *dns.Msg) { m.RRsetUsed(rrs) } }
	setNotUsed := func(rrs ...dns.RR) func(*dns.Msg) { return func(m *dns.Msg) { m.RRsetNotUsed(rrs) } }
	setIs := func(rrs ...dns.RR) func(*dns.Msg) { return func(m *dns.Msg) { m.Used(rrs) } }
	foreign := rr("x.example. 60 IN TXT \"x\"")
	soa := rr(apex + " 60 IN SOA a. b. 1 2 3 4 5")

	updates := []update{
		{what: "add", build: add(txt("u", "one"))},
		{what: "add the same again", build: add(txt("u", "one"))},
		{what: "add a second value", build: add(txt("u", "two"))},
		{what: "add in capitals", build: add(rr("U." + strings.ToUpper(apex) + " 60 IN TXT three"))},
		{what: "add several strings", build: add(txt("long", strings.Repeat("x", 600)))},
		{what: "add at two names", build: add(txt("v", "one"), txt("w", "one"))},
		{what: "add at a name of an empty non-terminal", build: add(txt("a.b.deep", "one"))},
		{what: "add at the apex", build: add(rr(apex + " 60 IN TXT \"at the apex\""))},
		{what: "delete a value", build: remove(txt("u", "two"))},
		{what: "delete an absent value", build: remove(txt("u", "two"))},
		{what: "delete a value at an absent name", build: remove(txt("nowhere", "two"))},
		{what: "delete an RRset", build: removeSet(txt("u", ""))},
		{what: "delete an absent RRset", build: removeSet(txt("u", ""))},
		{what: "delete a name", build: removeName(txt("v", ""))},
		{what: "delete an absent name", build: removeName(txt("v", ""))},
		{what: "delete the name with one beneath", build: removeName(txt("b.deep", ""))},
		{what: "delete the apex's TXT", build: remove(rr(apex + " 60 IN TXT \"at the apex\""))},
		{what: "add, delete the RRset, add", build: both(add(txt("order", "first")), removeSet(txt("order", "")), add(txt("order", "last")))},
		{what: "replace a value", build: both(remove(txt("w", "one")), add(txt("w", "two")))},
		{what: "nothing at all", build: func(*dns.Msg) {}},

		{what: "name in use, holds", build: both(nameUsed(txt("w", "")), add(txt("p1", "x")))},
		{what: "name in use, fails", build: both(nameUsed(txt("nowhere", "")), add(txt("p2", "x")))},
		{what: "name in use, an empty non-terminal", build: both(nameUsed(txt("deep", "")), add(txt("p3", "x")))},
		{what: "name not in use, holds", build: both(nameNotUsed(txt("nowhere", "")), add(txt("p4", "x")))},
		{what: "name not in use, fails", build: both(nameNotUsed(txt("w", "")), add(txt("p5", "x")))},
		{what: "RRset exists, holds", build: both(setUsed(txt("w", "")), add(txt("p6", "x")))},
		{what: "RRset exists, fails", build: both(setUsed(txt("nowhere", "")), add(txt("p7", "x")))},
		{what: "RRset exists, another type", build: both(setUsed(rr(name("w")+" 0 IN A 192.0.2.1")), add(txt("p8", "x")))},
		{what: "RRset does not exist, holds", build: both(setNotUsed(rr(name("w")+" 0 IN A 192.0.2.1")), add(txt("p9", "x")))},
		{what: "RRset does not exist, fails", build: both(setNotUsed(txt("w", "")), add(txt("p10", "x")))},
		{what: "RRset has these values, holds", build: both(setIs(rr(name("w")+" 0 IN TXT two")), add(txt("p11", "x")))},
		{what: "RRset has these values, one too many asked", build: both(setIs(rr(name("w")+" 0 IN TXT two"), rr(name("w")+" 0 IN TXT one")), add(txt("p12", "x")))},
		{what: "RRset has these values, another", build: both(setIs(rr(name("w")+" 0 IN TXT other")), add(txt("p13", "x")))},
		{what: "RRset has these values, in capitals", build: both(setIs(rr(strings.ToUpper(name("w"))+" 0 IN TXT two")), add(txt("p14", "x")))},
		{what: "the apex has a SOA", build: both(setUsed(soa), add(txt("p15", "x")))},
		{what: "the apex has an NS", build: both(setUsed(rr(apex+" 0 IN NS a.")), add(txt("p16", "x")))},
		{what: "the apex is in use", build: both(nameUsed(soa), add(txt("p17", "x")))},
		{what: "two prerequisites, the second fails", build: both(nameUsed(txt("w", "")), nameNotUsed(txt("w", "")), add(txt("p18", "x")))},
		{what: "a prerequisite outside the zone", build: both(nameUsed(foreign), add(txt("p19", "x")))},
		{what: "a prerequisite with a TTL", build: func(m *dns.Msg) {
			m.NameUsed([]dns.RR{txt("w", "")})
			m.Answer[0].Header().Ttl = 1
			m.Insert([]dns.RR{txt("p20", "x")})
		}},
		{what: "a prerequisite of class CH", build: func(m *dns.Msg) {
			m.NameUsed([]dns.RR{txt("w", "")})
			m.Answer[0].Header().Class = dns.ClassCHAOS
			m.Insert([]dns.RR{txt("p21", "x")})
		}},

		{what: "add outside the zone", build: add(foreign)},
		{what: "two adds, the second outside: neither is made", build: add(txt("q1", "x"), foreign)},
		{what: "add of class CH", build: func(m *dns.Msg) { m.Insert([]dns.RR{txt("q2", "x")}); m.Ns[0].Header().Class = dns.ClassCHAOS }},
		{what: "add of type ANY", build: func(m *dns.Msg) {
			m.Ns = []dns.RR{&dns.ANY{Hdr: dns.RR_Header{Name: name("q3"), Rrtype: dns.TypeANY, Class: dns.ClassINET, Ttl: 60}}}
		}},
		{what: "delete of an RRset with RDATA", build: func(m *dns.Msg) {
			m.Insert([]dns.RR{txt("w", "two")})
			m.Ns[0].Header().Class, m.Ns[0].Header().Ttl = dns.ClassANY, 0
		}},
		{what: "delete of a value of type ANY", build: func(m *dns.Msg) {
			m.Ns = []dns.RR{&dns.ANY{Hdr: dns.RR_Header{Name: name("w"), Rrtype: dns.TypeANY, Class: dns.ClassNONE}}}
		}},
		{what: "a zone that is not served", build: add(foreign), zone: "example."},
		{what: "a zone below the one served", build: add(txt("x.sub", "x")), zone: "sub." + apex},
		{what: "a zone section of type A", build: func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeA; m.Insert([]dns.RR{txt("q4", "x")}) }},
		{what: "two zones", build: func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]); m.Insert([]dns.RR{txt("q5", "x")}) }, mute: true, ours: dns.RcodeFormatError, why: "dns.md 6.3: what was verified is answered signed"},
		{what: "no zone", build: func(m *dns.Msg) { m.Insert([]dns.RR{txt("q6", "x")}); m.Question = nil }},

		{what: "unsigned", build: add(txt("s1", "x")), sign: unsigned},
		{what: "wrong secret", build: add(txt("s2", "x")), sign: wrongSecret},
		{what: "unknown key", build: add(txt("s3", "x")), sign: unknownKey},
		{what: "signed an hour ago", build: add(txt("s4", "x")), sign: late},
		{what: "unsigned, for a zone that is not served", build: add(foreign), zone: "example.", sign: unsigned},

		{what: "an A record", build: add(rr(name("t1") + " 60 IN A 192.0.2.1")), ours: dns.RcodeRefused, why: "dns.md 5.2: the node holds TXT alone, and says so rather than to lose it"},
		{what: "a TTL over the limit", build: add(rr(name("t2") + " 86401 IN TXT x")), ours: dns.RcodeRefused, why: "dns.md 5.4: DMP_MAX_TTL"},
		{what: "a value over the limit", build: add(txt("t3", strings.Repeat("x", 2049))), ours: dns.RcodeRefused, why: "dns.md 5.4: DMP_MAX_VALUE_BYTES"},
		{what: "a control character", build: add(rr(name("t4") + ` 60 IN TXT "a\007b"`)), ours: dns.RcodeRefused, why: "dns.md 5.4: all records of the protocol are printable"},
	}

	for i, u := range updates {
		var got [kinds]string
		for _, s := range servers {
			answer, err := s.update(&u, uint16(i))
			if err != nil {
				return i, fmt.Errorf("%s: UPDATE, %s: %w", s.name, u.what, err)
			}
			got[s.kind] = answer
		}
		switch {
		case u.why != "":
			r.judge(strings.HasPrefix(got[node], dns.RcodeToString[u.ours]) && got[node] != got[knotd] && got[node] != got[named],
				"UPDATE, %s (%s)\n      dmpd %s\n      Knot %s\n      BIND %s", u.what, u.why, got[node], got[knotd], got[named])
		default:
			r.judge(got[node] == got[knotd] || got[node] == got[named], "UPDATE, %s\n      dmpd %s\n      Knot %s\n      BIND %s", u.what, got[node], got[knotd], got[named])
		}
	}

	// What they left.
	left := []string{"u", "v", "w", "long", "a.b.deep", "b.deep", "deep", "order", "q1", "q2", "q3", "q4", "q5", "q6", "s1", "s2", "s3", "s4"}
	for i := 1; i <= 21; i++ {
		left = append(left, fmt.Sprint("p", i))
	}
	var qs []*question
	for i, label := range append(left, "") {
		q := &question{name: name(label), typ: dns.TypeTXT, class: dns.ClassINET, place: "after the UPDATEs"}
		if label == "" {
			q.name = apex
		}
		m := new(dns.Msg)
		m.SetQuestion(q.name, q.typ)
		m.Id = uint16(i)
		var err error
		if q.wire, err = m.Pack(); err != nil {
			return len(updates), err
		}
		qs = append(qs, q)
	}
	if err := ask(servers, qs, nil); err != nil {
		return len(updates), err
	}
	judge(qs, used, verbose, r)
	return len(updates), nil
}

// update sends one UPDATE and sums the response up.
func (s *server) update(u *update, id uint16) (string, error) {
	m := new(dns.Msg)
	zone := u.zone
	if zone == "" {
		zone = apex
	}
	m.SetUpdate(zone)
	m.Id = id
	u.build(m)
	if s.kind == node { // where a TTL is the record's life, and answers say DMP_DNS_TTL or what is left of it (dns.md 3.3)
		for i, rr := range m.Ns {
			if h := rr.Header(); h.Class == dns.ClassINET && h.Ttl == ttlSec {
				m.Ns[i] = dns.Copy(rr) // the others get it as it was
				m.Ns[i].Header().Ttl = 3600
			}
		}
	}
	c := &dns.Client{Timeout: answerMax, TsigSecret: map[string]string{keyName: s.secret}}
	now := time.Now().Unix()
	key := keyName
	switch u.sign {
	case wrongSecret:
		c.TsigSecret[keyName] = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
	case unknownKey:
		key = "nobody." + apex
		c.TsigSecret[key] = s.secret
	case late:
		now -= 3600
	}
	if u.sign != unsigned {
		m.SetTsig(key, dns.HmacSHA256, 300, now)
	}
	var in *dns.Msg
	var err error
	if m.Len() > 1232 {
		c.Net = "tcp"
	}
	conn, err := c.Dial(s.addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if u.mute && s.kind == knotd {
		c.Timeout = muteFor
	}
	in, _, err = c.ExchangeWithConn(m, conn)
	if in == nil && u.mute && s.kind == knotd {
		return "says nothing", nil
	}
	if in == nil {
		return "", err
	}
	text := dns.RcodeToString[in.Rcode]
	if t := in.IsTsig(); t != nil {
		text += ", TSIG " + dns.RcodeToString[int(t.Error)]
		if t.MACSize > 0 {
			text += ", signed"
			if u.sign == good && err != nil { // miekg/dns verified the response against the request's MAC
				text += " wrongly: " + err.Error()
			}
		}
		text += fmt.Sprintf(", other data %d", t.OtherLen)
	}
	return text, nil
}
