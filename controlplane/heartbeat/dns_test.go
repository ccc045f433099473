package heartbeat

import (
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"
)

// server is a name server on loopback, UDP and TCP, that knows some values.
type server struct {
	addr    string
	queries atomic.Int64

	mu      sync.Mutex
	values  map[string][]string
	rcode   int // if not 0: of every answer
	ad      bool
	noEDNS  bool
	silent  bool
	slow    string // names with this in them get no answer
	another bool   // answers another question
}

func (s *server) set(name string, values ...[]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.values[name] = nil
	for _, v := range values {
		s.values[name] = append(s.values[name], string(v))
	}
}

func (s *server) change(f func(*server)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

func (s *server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	s.queries.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.silent || s.slow != "" && strings.Contains(q.Question[0].Name, s.slow) {
		return
	}
	m := new(dns.Msg)
	m.SetReply(q)
	m.Rcode, m.AuthenticatedData = s.rcode, s.ad
	if s.noEDNS && q.IsEdns0() != nil {
		m.Rcode = dns.RcodeFormatError
	}
	if s.another {
		m.Question[0].Name = "other.example."
	}
	name := strings.ToLower(strings.TrimSuffix(q.Question[0].Name, "."))
	values, there := s.values[name]
	if m.Rcode == 0 && !there {
		m.Rcode = dns.RcodeNameError
	}
	if m.Rcode == 0 {
		for _, v := range values {
			h := dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}
			if alias, ok := strings.CutPrefix(v, "CNAME "); ok {
				h.Rrtype = dns.TypeCNAME
				m.Answer = append(m.Answer, &dns.CNAME{Hdr: h, Target: alias})
				for _, v := range s.values[strings.TrimSuffix(alias, ".")] {
					if h := (dns.RR_Header{Name: alias, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}); !strings.HasPrefix(v, "CNAME ") {
						m.Answer = append(m.Answer, &dns.TXT{Hdr: h, Txt: pieces(v)})
					}
				}
				continue
			}
			m.Answer = append(m.Answer, &dns.TXT{Hdr: h, Txt: pieces(v)})
		}
	}
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size := dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = int(o.UDPSize())
		}
		m.Truncate(size)
	}
	_ = w.WriteMsg(m)
}

func startServer(t testing.TB, ip string) *server {
	t.Helper()
	s := &server{values: map[string][]string{}}
	for range 100 {
		l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
		if err != nil {
			t.Skip("no address ", ip, ": ", err)
		}
		pc, err := net.ListenPacket("udp", l.Addr().String())
		if err != nil {
			l.Close() // the port is somebody else's for UDP
			continue
		}
		s.addr = l.Addr().String()
		for _, d := range []*dns.Server{{Listener: l, Handler: s}, {PacketConn: pc, Handler: s}} {
			started := make(chan struct{})
			d.NotifyStartedFunc = func() { close(started) }
			go func() { _ = d.ActivateAndServe() }()
			<-started
			t.Cleanup(func() { _ = d.Shutdown() })
		}
		return s
	}
	t.Fatal("no port is free for both TCP and UDP")
	return nil
}

// pieces are the strings of a value.
func pieces(v string) (ps []string) {
	for ; len(v) > 255; v = v[255:] {
		ps = append(ps, v[:255])
	}
	return append(ps, v)
}
