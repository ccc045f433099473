package heartbeat

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/dnsmesh/dmpd/internal/logging"
)

// Bounds on a look-up; federation.md 7 has the times.
const (
	listedServerMax = 5 * time.Second // for one resolver of a configured list
	listedMax       = 10 * time.Second
	systemServerMax = 3 * time.Second
	systemMax       = 6 * time.Second
	failedFor       = time.Minute // that a resolver is asked last after it failed
	ednsPayload     = 1232        // no fragments (RFC 9715)
	cnamesMax       = 8           // of a chain
	resolversMax    = 16          // of a list; more only make a failure longer
)

// Errors of a look-up that every resolver gave the same answer to.
var (
	ErrNoRecord = errors.New("no such record")
	ErrNotAD    = errors.New("the answer is not validated (no AD bit)")
)

// Resolvers looks TXT records up. The zero value asks the system's resolvers.
type Resolvers struct {
	Log *logging.Logger

	mu      sync.Mutex
	text    []string // that servers was read from
	servers []netip.AddrPort
	failed  map[netip.AddrPort]time.Time
}

// ParseServers reads resolvers: IP or IP:port, IPv6 with or without brackets. What is neither is given back as bad.
func ParseServers(list []string) (servers []netip.AddrPort, bad []string) {
	for _, s := range list {
		s = strings.TrimSpace(s)
		if s == "" {
			continue
		}
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			var a netip.Addr
			if a, err = netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")); err == nil {
				ap = netip.AddrPortFrom(a, 53)
			}
		}
		if err != nil || ap.Port() == 0 || len(servers) == resolversMax {
			bad = append(bad, s)
			continue
		}
		servers = append(servers, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
	}
	return servers, bad
}

// SystemServers are those of resolv.conf.
func SystemServers() []netip.AddrPort {
	c, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil {
		return []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")} // resolv.conf(5)
	}
	var list []string
	for _, s := range c.Servers {
		list = append(list, net.JoinHostPort(s, c.Port))
	}
	servers, _ := ParseServers(list)
	return servers
}

// Use sets the resolvers; none, or none that can be read: the system's.
func (r *Resolvers) Use(list []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed == nil {
		r.failed = map[netip.AddrPort]time.Time{}
	} else if slices.Equal(list, r.text) {
		return
	}
	clear(r.failed)
	var bad []string
	r.text = slices.Clone(list)
	r.servers, bad = ParseServers(list)
	for _, s := range bad {
		r.Log.Warn("not a resolver, or one too many: it is not asked", "resolver", s, "want", "IP or IP:port")
	}
	if len(list) > 0 && len(r.servers) == 0 {
		r.Log.Warn("no resolver of the list can be asked: the system's are")
	}
}

// order gives the resolvers, those that failed a short while ago last.
func (r *Resolvers) order() (servers []netip.AddrPort, each, all time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	servers, each, all = slices.Clone(r.servers), listedServerMax, listedMax
	if len(servers) == 0 {
		servers, each, all = SystemServers(), systemServerMax, systemMax
	}
	now := time.Now()
	slices.SortStableFunc(servers, func(a, b netip.AddrPort) int {
		x, y := now.Before(r.failed[a]), now.Before(r.failed[b])
		switch {
		case x == y:
			return 0
		case y:
			return -1
		}
		return 1
	})
	return servers, each, all
}

func (r *Resolvers) fail(servers ...netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed == nil {
		r.failed = map[netip.AddrPort]time.Time{}
	}
	for _, s := range servers {
		r.failed[s] = time.Now().Add(failedFor)
	}
}

func (r *Resolvers) recovered(s netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.failed, s)
}

// TXT gives the values at a name, the strings of each joined. The first resolver that has an answer wins: one that knows nothing may be
// the server of another zone, so the next is asked (federation.md 7). With ad only validated answers count, negative ones too. The
// error is ErrNoRecord if a resolver said so and none said otherwise.
func (r *Resolvers) TXT(ctx context.Context, name string, ad bool) ([][]byte, error) {
	servers, each, all := r.order()
	ctx, cancel := context.WithTimeout(ctx, all)
	defer cancel()
	last := errors.New("there is no resolver")
	var without []netip.AddrPort
	for _, s := range servers {
		values, err := askTXT(ctx, s, name, ad, each)
		switch {
		case err == nil:
			r.fail(without...)
			r.recovered(s)
			return values, nil
		case ctx.Err() != nil:
			r.fail(s)
			return nil, fmt.Errorf("%s: %w", name, errors.Join(last, ctx.Err()))
		case errors.Is(err, ErrNoRecord):
			without = append(without, s)
			last = err
		default:
			r.fail(s)
			if !errors.Is(last, ErrNoRecord) {
				last = fmt.Errorf("resolver %v: %w", s, err)
			}
		}
	}
	return nil, last
}

// askTXT asks one resolver, over TCP too if the answer is cut.
func askTXT(ctx context.Context, server netip.AddrPort, name string, ad bool, limit time.Duration) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), dns.TypeTXT)
	q.SetEdns0(ednsPayload, ad)
	q.AuthenticatedData = ad // RFC 6840 5.7
	m, err := exchange(ctx, server, q)
	if err == nil && m.Rcode == dns.RcodeFormatError {
		q.Extra = nil // a server from before EDNS
		m, err = exchange(ctx, server, q)
	}
	if err != nil {
		return nil, err
	}
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return nil, fmt.Errorf("it answers %s", dns.RcodeToString[m.Rcode])
	}
	if ad && !m.AuthenticatedData {
		return nil, ErrNotAD
	}
	values := txtValues(m, q.Question[0].Name)
	if m.Rcode == dns.RcodeNameError || len(values) == 0 {
		return nil, ErrNoRecord
	}
	return values, nil
}

// exchange gets one response, over UDP and then, if it is cut, TCP.
func exchange(ctx context.Context, server netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	for _, network := range []string{"udp", "tcp"} {
		c := dns.Client{Net: network, UDPSize: ednsPayload}
		if end, ok := ctx.Deadline(); ok {
			c.Timeout = time.Until(end)
		}
		m, _, err := c.ExchangeContext(ctx, q, server.String())
		if err != nil {
			return nil, err
		}
		if !m.Response || m.Opcode != dns.OpcodeQuery || len(m.Question) != 1 || !strings.EqualFold(m.Question[0].Name, q.Question[0].Name) || m.Question[0].Qtype != q.Question[0].Qtype {
			return nil, errors.New("it answers another question")
		}
		if !m.Truncated {
			return m, nil
		}
	}
	return nil, errors.New("it cuts answers over TCP")
}

// txtValues are the values at a name, or at what it is an alias of. Values come as they would stand in a zone file: one with a byte that
// is written there as an escape is no record of the protocol, and stays with its backslash, so that it verifies as nothing.
func txtValues(m *dns.Msg, name string) (values [][]byte) {
	for range cnamesMax {
		alias := ""
		for _, rr := range m.Answer {
			if !strings.EqualFold(rr.Header().Name, name) {
				continue
			}
			switch rr := rr.(type) {
			case *dns.TXT:
				values = append(values, []byte(strings.Join(rr.Txt, "")))
			case *dns.CNAME:
				alias = rr.Target
			}
		}
		if len(values) > 0 || alias == "" {
			return values
		}
		name = alias
	}
	return nil
}
