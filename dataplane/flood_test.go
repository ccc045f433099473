package dataplane

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// ask sends n queries from one socket, some of them under way at a time, and counts what comes back. A datagram that does not come within
// the limit is lost.
func ask(t *testing.T, addr string, n int, query func(i int) []byte) (answers, truncated, in, out int) {
	t.Helper()
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const window = 50 // fits every receive buffer, so that nothing is lost on the way
	b := make([]byte, 65535)
	sent := 0
	for answers < n {
		for sent < n && sent-answers < window {
			msg := query(sent)
			if _, err := c.Write(msg); err != nil {
				t.Fatal(err)
			}
			in += len(msg)
			sent++
		}
		c.SetReadDeadline(time.Now().Add(limit))
		got, err := c.Read(b)
		if err != nil {
			return answers, truncated, in, out
		}
		answers++
		out += got
		if b[2]&0x02 != 0 {
			truncated++
		}
	}
	return answers, truncated, in, out
}

// TestPublicResolver: at the default limits one address that asks for ten thousand names, nine in ten of them absent, gets every answer
// whole.
func TestPublicResolver(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	r.key("op."+testZone, testZone)
	for i := 0; i < 1000; i += 50 {
		var rrs []dns.RR
		for k := range 50 {
			rrs = append(rrs, add(fmt.Sprintf("n%d.%s", i+k, testZone), 300, strings.Repeat("v", 250)))
		}
		if rc := r.signed("tcp", "op."+testZone, updateMsg(rrs...)); rc != dns.RcodeSuccess {
			t.Fatal(rc)
		}
	}
	const n = 40_000
	m := new(dns.Msg)
	answers, truncated, _, _ := ask(t, r.addr, n, func(i int) []byte {
		m.SetQuestion(fmt.Sprintf("n%d.%s.", rand.IntN(10_000), testZone), dns.TypeTXT)
		return pack(t, m)
	})
	if answers != n || truncated != 0 {
		t.Errorf("%d of %d answers, %d of them moved to TCP", answers, n, truncated)
	}
}

// TestSpoofedFlood: a flood for a name with a large answer, without cookies, gets back at most three times its bytes; in the same prefix TCP
// keeps all its answers (and a client with a cookie does, TestCookies).
func TestSpoofedFlood(t *testing.T) {
	t.Parallel()
	// A tenth of the default rate: however slow the machine is, most of this is a flood.
	r := startRig(t, func(c *Config) { c.Settings.RRLRate = 20 })
	r.key("op."+testZone, testZone)
	for i := range 4 {
		if rc := r.signed("tcp", "op."+testZone, updateMsg(add("big."+testZone, 300, fmt.Sprintf("%d%s", i, strings.Repeat("v", 250))))); rc != dns.RcodeSuccess {
			t.Fatal(rc)
		}
	}
	m := new(dns.Msg)
	m.SetQuestion("big."+testZone+".", dns.TypeTXT)
	m.SetEdns0(4096, false)
	msg := pack(t, m)
	const n = 20_000
	answers, truncated, in, out := ask(t, r.addr, n, func(int) []byte { return msg })
	if answers != n || truncated < n/2 {
		t.Errorf("%d answers, %d of them moved to TCP: none is silent, most are moved", answers, truncated)
	}
	if out > 3*in {
		t.Errorf("%d bytes came back for %d", out, in)
	}
	for range 50 {
		if m := r.query("tcp", "big."+testZone, dns.TypeTXT); m.Truncated || len(m.Answer) != 4 {
			t.Fatal("TCP is limited")
		}
	}
}
