package heartbeat

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestParseServers(t *testing.T) {
	t.Parallel()
	got, bad := ParseServers([]string{"192.0.2.1", "192.0.2.1:5353", "2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:54", " ::ffff:192.0.2.9 ", "", "host", "192.0.2.1:0", "192.0.2.1:x", "fe80::1%lo"})
	var text []string
	for _, s := range got {
		text = append(text, s.String())
	}
	want := "192.0.2.1:53 192.0.2.1:5353 [2001:db8::1]:53 [2001:db8::1]:53 [2001:db8::1]:54 192.0.2.9:53 [fe80::1%lo]:53"
	if strings.Join(text, " ") != want || strings.Join(bad, " ") != "host 192.0.2.1:0 192.0.2.1:x" {
		t.Errorf("%q, bad %q", text, bad)
	}
}

// TestResolvers: what one does not know the next is asked for, what one fails to do too; a failed one is asked last.
func TestResolvers(t *testing.T) {
	t.Parallel()
	a, b := startServer(t, "127.0.0.1"), startServer(t, "127.0.0.1")
	long := strings.Repeat("x", 300)
	b.set("one.example", []byte("v1"), []byte(long))
	var big [][]byte
	for i := range 30 {
		big = append(big, fmt.Append(nil, long, i))
	}
	b.set("big.example", big...)
	b.set("alias.example", []byte("CNAME one.example."))
	b.set("loop.example", []byte("CNAME loop.example."))
	ask := func(r *Resolvers, name string, ad bool) ([][]byte, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second)
		defer cancel()
		return r.TXT(ctx, name, ad)
	}
	pool := func(servers ...*server) *Resolvers {
		r := &Resolvers{}
		var list []string
		for _, s := range servers {
			list = append(list, s.addr)
		}
		r.Use(list)
		return r
	}

	r := pool(a, b)
	if v, err := ask(r, "One.example.", false); err != nil || len(v) != 2 || string(v[1]) != long {
		t.Fatalf("%q %v", v, err)
	}
	was := a.queries.Load()
	if v, err := ask(r, "one.example", false); err != nil || len(v) != 2 || a.queries.Load() != was {
		t.Errorf("the one that did not know was asked first again: %q %v", v, err)
	}
	if v, err := ask(r, "big.example", false); err != nil || len(v) != 30 {
		t.Errorf("over TCP: %d values, %v", len(v), err)
	}
	if v, err := ask(r, "alias.example", false); err != nil || len(v) != 2 {
		t.Errorf("an alias: %q %v", v, err)
	}
	for _, name := range []string{"none.example", "loop.example"} {
		if v, err := ask(r, name, false); !errors.Is(err, ErrNoRecord) {
			t.Errorf("%s: %q %v", name, v, err)
		}
	}
	if _, err := ask(r, "one.example", true); !errors.Is(err, ErrNoRecord) && !errors.Is(err, ErrNotAD) {
		t.Errorf("without AD: %v", err)
	}
	b.change(func(s *server) { s.ad = true })
	if v, err := ask(r, "one.example", true); err != nil || len(v) != 2 {
		t.Errorf("with AD: %q %v", v, err)
	}
	for _, set := range []func(s *server){
		func(s *server) { s.rcode = dns.RcodeServerFailure },
		func(s *server) { s.rcode = dns.RcodeRefused },
		func(s *server) { s.another = true },
	} {
		bad := startServer(t, "127.0.0.1")
		bad.change(set)
		r := pool(bad, b)
		for range 2 {
			if v, err := ask(r, "one.example", false); err != nil || len(v) != 2 {
				t.Errorf("behind a bad one: %q %v", v, err)
			}
		}
		if n := bad.queries.Load(); n != 1 {
			t.Errorf("a bad one was asked %d times", n)
		}
		if v, err := ask(pool(bad), "one.example", false); err == nil || errors.Is(err, ErrNoRecord) {
			t.Errorf("a bad one alone: %q %v", v, err)
		}
	}
	b.change(func(s *server) { s.noEDNS = true })
	if v, err := ask(pool(b), "one.example", false); err != nil || len(v) != 2 {
		t.Errorf("without EDNS: %q %v", v, err)
	}
	six := startServer(t, "127.0.0.1")
	if l, err := net.Listen("tcp", "[::1]:0"); err == nil {
		l.Close()
		six = startServer(t, "::1")
	}
	six.set("six.example", []byte("v"))
	if v, err := ask(pool(six), "six.example", false); err != nil || len(v) != 1 {
		t.Errorf("IPv6: %q %v", v, err)
	}
}

// TestSilentResolver: one that says nothing costs no more than its share of time.
func TestSilentResolver(t *testing.T) {
	t.Parallel()
	silent, b := startServer(t, "127.0.0.1"), startServer(t, "127.0.0.1")
	silent.change(func(s *server) { s.silent = true })
	b.set("one.example", []byte("v"))
	if _, err := askTXT(context.Background(), netip.MustParseAddrPort(silent.addr), "one.example", false, 50*time.Millisecond); err == nil {
		t.Error("an answer of a silent server")
	}
	r := &Resolvers{}
	r.Use([]string{silent.addr, b.addr})
	r.fail(netip.MustParseAddrPort(silent.addr))
	if v, err := r.TXT(context.Background(), "one.example", false); err != nil || len(v) != 1 {
		t.Errorf("%q %v", v, err)
	}
}
