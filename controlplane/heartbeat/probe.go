package heartbeat

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// Record is a resource record as text.
type Record struct {
	Name, Type, Data string // Name as it came, its case too, without the dot at the end
}

// Reply is what a server answered, as far as dmpd doctor looks at it.
type Reply struct {
	Rcode     string
	AA, TC    bool
	Question  string // name, as it came back
	Answer    []Record
	Authority []Record
	Bytes     int // of the message
	EDNS      int // payload size that it offers; 0: no EDNS
}

// Of gives the data of the records of a type in the answer.
func (r *Reply) Of(typ string) (data []string) {
	for _, rr := range r.Answer {
		if rr.Type == typ {
			data = append(data, rr.Data)
		}
	}
	return data
}

// Ask asks one server one question, once, over "udp" or "tcp". The case of name is kept. With edns > 0 the question offers that payload
// size. The error says that there was no usable answer; the code and what else came are not judged. recurse asks for recursion.
func Ask(ctx context.Context, server netip.AddrPort, network, name, typ string, edns int, recurse bool) (*Reply, error) {
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), dns.StringToType[typ])
	q.RecursionDesired = recurse
	if edns > 0 {
		q.SetEdns0(uint16(edns), false)
	}
	return send(ctx, server, network, q)
}

// Update sends an UPDATE without a signature that adds one TXT value.
func Update(ctx context.Context, server netip.AddrPort, zone, name, value string, ttlSec uint32) (*Reply, error) {
	q := new(dns.Msg)
	q.SetUpdate(dns.Fqdn(zone))
	txt := &dns.TXT{Hdr: dns.RR_Header{Name: dns.Fqdn(name), Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: ttlSec}}
	for rest := value; rest != "" || len(txt.Txt) == 0; {
		n := min(len(rest), 255)
		txt.Txt = append(txt.Txt, rest[:n])
		rest = rest[n:]
	}
	q.Insert([]dns.RR{txt})
	return send(ctx, server, "udp", q)
}

func send(ctx context.Context, server netip.AddrPort, network string, q *dns.Msg) (*Reply, error) {
	c := dns.Client{Net: network, UDPSize: dns.MaxMsgSize}
	m, _, err := c.ExchangeContext(ctx, q, server.String())
	if err != nil {
		return nil, fmt.Errorf("%v over %s: %w", server, strings.ToUpper(network), err)
	}
	r := &Reply{Rcode: dns.RcodeToString[m.Rcode], AA: m.Authoritative, TC: m.Truncated, Bytes: m.Len()}
	if len(m.Question) == 1 {
		r.Question = strings.TrimSuffix(m.Question[0].Name, ".")
	}
	if o := m.IsEdns0(); o != nil {
		r.EDNS = int(o.UDPSize())
	}
	r.Answer, r.Authority = texts(m.Answer), texts(m.Ns)
	return r, nil
}

func texts(rrs []dns.RR) (out []Record) {
	for _, rr := range rrs {
		h := rr.Header()
		t := Record{strings.TrimSuffix(h.Name, "."), dns.TypeToString[h.Rrtype], strings.TrimPrefix(rr.String(), h.String())}
		switch rr := rr.(type) {
		case *dns.TXT:
			t.Data = strings.Join(rr.Txt, "")
		case *dns.NS:
			t.Data = strings.TrimSuffix(rr.Ns, ".")
		case *dns.CNAME:
			t.Data = strings.TrimSuffix(rr.Target, ".")
		}
		out = append(out, t)
	}
	return out
}
