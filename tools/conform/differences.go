package main

import "github.com/miekg/dns"

// A difference is an answer of ours that neither Knot nor BIND gives, on purpose.
type difference struct {
	what string
	why  string
	when func(q *question, m *dns.Msg) bool // m is the node's answer, nil if there is none
}

func nodata(m *dns.Msg) bool {
	return m.Rcode == dns.RcodeSuccess && m.Authoritative && len(m.Answer) == 0 && len(m.Ns) == 1 && m.Ns[0].Header().Rrtype == dns.TypeSOA
}

var differences = []difference{
	{"another type than TXT at a name that is absent: NODATA", "dns.md 3.2, note: a resolver that minimises names probes with A or NS, and NXDOMAIN hides what appears below a moment later (RFC 8020)",
		func(q *question, m *dns.Msg) bool { return q.place == absent && q.typ != dns.TypeTXT && nodata(m) }},
	{"mb-<12 hex> and id-<hex> exist always: NODATA", "dns.md 3.2, note: names appear below them at any moment",
		func(q *question, m *dns.Msg) bool { return q.place == structural && nodata(m) }},
	{"ANY at the apex: the TXT values, or else the SOA, alone", "dns.md 3.2, RFC 8482 4.1: any one RRset will do; the peers choose another, or send all",
		func(q *question, m *dns.Msg) bool {
			return q.place == atApex && q.typ == dns.TypeANY && m.Rcode == dns.RcodeSuccess && m.Authoritative && len(m.Answer) == 1 && m.Answer[0].Header().Rrtype == dns.TypeTXT
		}},
	{"AXFR and IXFR: REFUSED, whatever the name", "dns.md 3.2: no transfers; the peers say NOTAUTH or NOTIMP",
		func(q *question, m *dns.Msg) bool {
			return (q.typ == dns.TypeAXFR || q.typ == dns.TypeIXFR) && m.Rcode == dns.RcodeRefused && len(m.Answer) == 0
		}},
	{"types that no record can have: FORMERR, whatever the name and class", "dns.md 3.2, meta types; the peers have NOTIMP, REFUSED, or answer as to any type",
		func(q *question, m *dns.Msg) bool {
			switch q.typ {
			case 0, dns.TypeOPT, dns.TypeTSIG, dns.TypeTKEY, dns.TypeMAILA, dns.TypeMAILB:
				return m.Rcode == dns.RcodeFormatError
			}
			return false
		}},
	{"opcodes but QUERY and UPDATE: NOTIMP", "dns.md 3.1: there is no NOTIFY here, and an opcode comes before the EDNS version, since other opcodes may have other forms (RFC 8490 5.1)",
		func(q *question, m *dns.Msg) bool {
			return q.opcode != dns.OpcodeQuery && m.Rcode == dns.RcodeNotImplemented && len(m.Answer)+len(m.Ns) == 0
		}},
	{"FORMERR to a broken OPT record has one itself", "RFC 6891 7: one in the request that is understood as such is answered by one",
		func(q *question, m *dns.Msg) bool {
			return q.broken != "" && m.Rcode == dns.RcodeFormatError && m.IsEdns0() != nil
		}},
}

func explain(q *question) *difference {
	for i := range differences {
		if q.ours != nil && differences[i].when(q, q.ours) {
			return &differences[i]
		}
	}
	return nil
}
