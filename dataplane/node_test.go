package dataplane

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/stats"
	"github.com/dnsmesh/dmpd/internal/tsig"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// TestQueries: the table of dns.md 3.2 over both transports.
func TestQueries(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	r.key("op."+testZone, testZone)
	for _, name := range []string{"a", "x.ent", "slot-1.mb-0123456789ab"} {
		if rc := r.signed("udp", "op."+testZone, updateMsg(add(name+"."+testZone, 300, "v=dmp1;t=test"))); rc != dns.RcodeSuccess {
			t.Fatal(dns.RcodeToString[rc])
		}
	}
	for _, network := range []string{"udp", "tcp"} {
		for _, x := range []struct {
			name  string
			typ   uint16
			rcode int
			n     int // answers
			soa   bool
			aa    bool
		}{
			{"A.Mesh.TEST", dns.TypeTXT, 0, 1, false, true}, {"a.mesh.test", dns.TypeANY, 0, 1, false, true}, {"a.mesh.test", dns.TypeA, 0, 0, true, true},
			{"mesh.test", dns.TypeTXT, 0, 0, true, true}, {"mesh.test", dns.TypeSOA, 0, 1, false, true}, {"mesh.test", dns.TypeNS, 0, 1, false, true}, {"mesh.test", dns.TypeA, 0, 1, false, true},
			{"mesh.test", dns.TypeAAAA, 0, 0, true, true}, {"ent.mesh.test", dns.TypeTXT, 0, 0, true, true}, {"mb-0123456789ab.mesh.test", dns.TypeTXT, 0, 0, true, true},
			{"mb-ffffffffffff.mesh.test", dns.TypeTXT, 0, 0, true, true}, {"id-00.mesh.test", dns.TypeNS, 0, 0, true, true}, {"absent.mesh.test", dns.TypeTXT, dns.RcodeNameError, 0, true, true},
			{"absent.mesh.test", dns.TypeA, 0, 0, true, true}, {"example.com", dns.TypeTXT, dns.RcodeRefused, 0, false, false}, {"mesh.test", dns.TypeAXFR, dns.RcodeRefused, 0, false, false},
		} {
			m := r.query(network, x.name, x.typ)
			soa := len(m.Ns) == 1 && m.Ns[0].Header().Rrtype == dns.TypeSOA
			if m.Rcode != x.rcode || len(m.Answer) != x.n || soa != x.soa || m.Authoritative != x.aa || m.RecursionAvailable || m.Question[0].Name != dns.Fqdn(x.name) {
				t.Errorf("%s %s %s: %v", network, x.name, dns.TypeToString[x.typ], m)
			}
			if x.n == 1 && m.Answer[0].Header().Name != dns.Fqdn(x.name) {
				t.Errorf("%s %s: the case is not kept: %v", network, x.name, m.Answer[0])
			}
		}
	}
}

// TestUpdate: what a signed message may do, over both transports, each reply signed.
func TestUpdate(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	r.key("op."+testZone, testZone)
	r.key("wild."+testZone, "slot-*.mb-*."+testZone, "id-aa."+testZone)
	for _, network := range []string{"udp", "tcp"} {
		name := network + "." + testZone
		long := strings.Repeat("x", 600)
		foreign := updateMsg(add("a.other.test", 300, "v"))
		foreign.Question[0].Name = "other.test."
		remove := func(rrs ...dns.RR) *dns.Msg { m := new(dns.Msg); m.SetUpdate(testZone + "."); m.Remove(rrs); return m }
		for _, x := range []struct {
			what, key string
			m         *dns.Msg
			want      int
		}{
			{"add", "op", updateMsg(add(name, 300, "one")), dns.RcodeSuccess},
			{"several strings", "op", updateMsg(add(name, 300, long)), dns.RcodeSuccess},
			{"again", "op", updateMsg(add(name, 300, "one")), dns.RcodeSuccess},
			{"outside the zone", "op", updateMsg(add("a.other.test", 300, "v")), dns.RcodeNotZone},
			{"foreign zone", "op", foreign, dns.RcodeNotAuth},
			{"TTL", "op", updateMsg(add(name, 86401, "v")), dns.RcodeRefused},
			{"value", "op", updateMsg(add(name, 300, strings.Repeat("x", 2049))), dns.RcodeRefused},
			{"largest value", "op", updateMsg(add("big."+name, 300, strings.Repeat("x", 2048))), dns.RcodeSuccess},
			{"out of scope", "wild", updateMsg(add(name, 300, "v")), dns.RcodeRefused},
			{"second out of scope", "wild", updateMsg(add("slot-1.mb-a."+testZone, 300, network), add(name, 300, "v")), dns.RcodeRefused},
			{"wildcard add", "wild", updateMsg(add("slot-2.mb-a."+testZone, 300, network)), dns.RcodeSuccess},
			{"wildcard delete", "wild", remove(add("slot-2.mb-a."+testZone, 0, network)), dns.RcodeRefused},
			{"literal", "wild", updateMsg(add("x.id-aa."+testZone, 300, network)), dns.RcodeSuccess},
			{"literal delete", "wild", remove(add("x.id-aa."+testZone, 0, network)), dns.RcodeSuccess},
			{"delete of the absent", "wild", remove(add("x.id-aa."+testZone, 0, network)), dns.RcodeSuccess},
		} {
			if got := r.signed(network, x.key+"."+testZone, x.m); got != x.want {
				t.Errorf("%s, %s: %s, want %s", network, x.what, dns.RcodeToString[got], dns.RcodeToString[x.want])
			}
		}
		got := r.values(name)
		slices.Sort(got)
		if !slices.Equal(got, []string{"one", long}) {
			t.Errorf("%s: %d values", network, len(got))
		}
		if vs := r.values("slot-1.mb-a." + testZone); vs != nil {
			t.Errorf("half of a refused message was stored: %q", vs)
		}
		m := new(dns.Msg)
		m.SetUpdate(testZone + ".")
		m.RemoveRRset([]dns.RR{add(name, 0, "")})
		if rc := r.signed(network, "op."+testZone, m); rc != dns.RcodeSuccess || r.values(name) != nil {
			t.Errorf("%s: delete of an RRset: %d", network, rc)
		}
	}
}

// TestBadInput: every kind has its own reply and its own label, and none of it changes anything.
func TestBadInput(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	r.key("op."+testZone, testZone)
	revoked := &tsig.Key{Name: wire.MustName("old." + testZone), Alg: tsig.SHA256, Secret: secret, Revoked: true, Scopes: []tsig.Scope{tsig.MustScope(testZone)}}
	r.put(tsig.AppendState(nil, tsig.StateKeyPut, tsig.AppendKey(nil, revoked)))
	q := func(f func(*dns.Msg)) []byte {
		m := new(dns.Msg)
		m.SetQuestion("a."+testZone+".", dns.TypeTXT)
		f(m)
		return pack(t, m)
	}
	plain := q(func(*dns.Msg) {})
	up := func() *dns.Msg { return updateMsg(add("never."+testZone, 300, "v=dmp1;t=test")) }
	wrongMAC, _ := sign(t, up(), "op."+testZone, []byte("wrong"), 0)
	unknown, _ := sign(t, up(), "nobody."+testZone, secret, 0)
	dead, _ := sign(t, up(), "old."+testZone, secret, 0)
	early, _ := sign(t, up(), "op."+testZone, secret, 1000)
	foreignZone := updateMsg(add("a.other.test", 300, "v"))
	foreignZone.Question[0].Name = "other.test."
	latin := updateMsg(add("never."+testZone, 300, "v"))
	latin.Ns[0].(*dns.TXT).Txt[0] = "\\255"
	control := updateMsg(add("never."+testZone, 300, "\\007"))
	claim := func(change func(b []byte) []byte, owner string, expSec int64) []byte {
		return pack(t, updateMsg(add(owner, 300, claimWire(t, change, expSec))))
	}
	same := func(b []byte) []byte { return b }
	owner := "claim-3.mb-0123456789ab." + testZone
	for _, x := range []struct {
		name  string
		msg   []byte
		rcode int // -1: no reply
		tsig  int // error in an unsigned or BADTIME reply
		label wire.Fault
	}{
		{"short", plain[:11], -1, 0, wire.OK}, {"a response", append(append(bytes.Clone(plain[:2]), 0x80), plain[3:]...), -1, 0, wire.OK},
		{"cut", plain[:len(plain)-1], dns.RcodeFormatError, 0, wire.BadRR}, {"trailing", append(bytes.Clone(plain), 1), dns.RcodeFormatError, 0, wire.TrailingBytes},
		{"loop", append(bytes.Clone(plain[:12]), 0xC0, 12, 0, 16, 0, 1), dns.RcodeFormatError, 0, wire.BadPointer},
		{"no question", append(append(bytes.Clone(plain[:4]), 0, 0), plain[6:12]...), dns.RcodeFormatError, 0, wire.NoQuestion},
		{"opcode", append(append(bytes.Clone(plain[:2]), 0x10), plain[3:]...), dns.RcodeNotImplemented, 0, wire.BadOpcode},
		{"class", q(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused, 0, wire.BadClass},
		{"EDNS version", q(func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }), dns.RcodeBadVers, 0, wire.BadVersion},
		{"wrong MAC", wrongMAC, dns.RcodeNotAuth, 16, wire.BadSig}, {"unknown key", unknown, dns.RcodeNotAuth, 17, wire.BadKey}, {"revoked key", dead, dns.RcodeNotAuth, 17, wire.BadKey},
		{"bad time", early, dns.RcodeNotAuth, 18, wire.BadTime}, {"foreign zone", pack(t, foreignZone), dns.RcodeNotAuth, 0, wire.NotAuth},
		{"foreign owner", pack(t, updateMsg(add("a.other.test", 300, "v"))), dns.RcodeNotZone, 0, wire.NotZone}, {"not UTF-8", pack(t, latin), dns.RcodeFormatError, 0, wire.NotUTF8},
		{"control characters", pack(t, control), dns.RcodeRefused, 0, wire.NotPrintable}, {"junk without TSIG", pack(t, updateMsg(add("_dmp-probe."+testZone, 60, "v=dmp1;t=probe"))), dns.RcodeRefused, 0, wire.ClaimOwner},
		{"forged claim", claim(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, owner, 300), dns.RcodeRefused, 0, wire.ClaimForged},
		{"expired claim", claim(same, owner, -10), dns.RcodeRefused, 0, wire.ClaimExpired}, {"claim for another slot", claim(same, "claim-4.mb-0123456789ab."+testZone, 300), dns.RcodeRefused, 0, wire.ClaimSlot},
		{"claim that lives too long", claim(same, owner, 90000), dns.RcodeRefused, 0, wire.ClaimLife},
	} {
		before := r.count(stats.Fault(x.label))
		var b []byte
		if x.label == wire.ClaimForged { // it waits for the pool, and what is sent behind it does not
			b = r.exchange("udp", x.msg)
		} else {
			b = r.raw(x.msg)
		}
		if x.rcode < 0 {
			if b != nil {
				t.Errorf("%s: was answered %x", x.name, b)
			}
			continue
		}
		if b == nil {
			t.Errorf("%s: no reply", x.name)
			continue
		}
		m := unpack(t, b)
		if m.Rcode != x.rcode || m.Id != binary.BigEndian.Uint16(x.msg) {
			t.Errorf("%s: %s, want %s", x.name, dns.RcodeToString[m.Rcode], dns.RcodeToString[x.rcode])
		}
		if ts := m.IsTsig(); x.tsig != 0 && (ts == nil || int(ts.Error) != x.tsig || (ts.MACSize > 0) != (x.tsig == 18)) {
			t.Errorf("%s: TSIG %v", x.name, ts)
		}
		eventually(t, x.name+" is counted", func() bool { return r.count(stats.Fault(x.label)) == before+1 })
	}
	if vs := r.values("never." + testZone); vs != nil {
		t.Errorf("something was stored: %q", vs)
	}
	if vs := r.values(owner); vs != nil {
		t.Errorf("a bad claim was stored: %q", vs)
	}
}

// claimWire makes a claim for slot 3 that ends in expSec seconds; change may spoil the signed bytes.
func claimWire(t testing.TB, change func(b []byte) []byte, expSec int64) string {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	now := clock.NowMs() / 1000
	body := append([]byte("DMPCL01"), make([]byte, 16)...)
	binary.BigEndian.PutUint64(body[7:], rand.Uint64())
	body = append(body, pub...)
	domain := "sender.test"
	body = append(append(body, byte(len(domain))), domain...)
	body = append(body, 3)
	body = binary.BigEndian.AppendUint64(body, uint64(now-20))
	body = binary.BigEndian.AppendUint64(body, uint64(now+expSec))
	body = append(body, ed25519.Sign(priv, body)...)
	return "v=dmp1;t=claim;" + base64.StdEncoding.EncodeToString(change(body))
}

// TestClaims: anybody may publish a claim, over both transports, with a life that ends with the claim's.
func TestClaims(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	same := func(b []byte) []byte { return b }
	for _, network := range []string{"udp", "tcp"} {
		v := claimWire(t, same, 100)
		msg := pack(t, updateMsg(add("Claim-3.MB-0123456789ab."+testZone, 86400, v)))
		for range 2 { // a second time it is there already
			m := unpack(t, r.exchange(network, msg))
			if m.Rcode != dns.RcodeSuccess || m.IsTsig() != nil {
				t.Fatalf("%s: %v", network, m)
			}
		}
		if vs := r.values("claim-3.mb-0123456789ab." + testZone); !slices.Contains(vs, v) {
			t.Errorf("%s: the claim is not there", network)
		}
	}
	// One recipient's bucket holds 30.
	limited := 0
	for range 60 {
		m := unpack(t, r.exchange("udp", pack(t, updateMsg(add("claim-3.mb-aaaaaaaaaaaa."+testZone, 300, claimWire(t, same, 100))))))
		switch m.Rcode {
		case dns.RcodeServerFailure:
			limited++
		case dns.RcodeSuccess:
		default:
			t.Fatal(m)
		}
	}
	if limited < 20 || limited > 30 {
		t.Errorf("%d of 60 claims for one recipient were limited", limited)
	}
}

// TestRegisteredRecipients: with the provider role off only claims for registered users are taken, from the moment of the mint on.
func TestRegisteredRecipients(t *testing.T) {
	t.Parallel()
	r := startRig(t, func(c *Config) { c.Settings.Policy.Provider, c.Settings.Policy.Receiver = false, true })
	send := func() int {
		return unpack(t, r.exchange("udp", pack(t, updateMsg(add("claim-3.mb-0123456789ab."+testZone, 300, claimWire(t, func(b []byte) []byte { return b }, 100)))))).Rcode
	}
	if rc := send(); rc != dns.RcodeRefused {
		t.Errorf("unregistered: %d", rc)
	}
	r.key("u."+testZone, "mb-0123456789ab."+testZone)
	if rc := send(); rc != dns.RcodeSuccess {
		t.Errorf("registered: %d", rc)
	}
}

// TestKeysFollow: a mint and a revoke hold for the very next message.
func TestKeysFollow(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	for i := range 20 {
		name := fmt.Sprintf("k%d.%s", i, testZone)
		r.key(name, testZone)
		if rc := r.signed("udp", name, updateMsg(add("a."+testZone, 300, "v"))); rc != dns.RcodeSuccess {
			t.Fatalf("minted: %d", rc)
		}
		k := *r.keys.Load(wire.MustName(name))
		k.Revoked = true
		r.put(tsig.AppendState(nil, tsig.StateKeyPut, tsig.AppendKey(nil, &k)))
		msg, _ := sign(t, updateMsg(add("a."+testZone, 300, "w")), name, secret, 0)
		if m := unpack(t, r.exchange("udp", msg)); m.Rcode != dns.RcodeNotAuth {
			t.Fatalf("revoked: %v", m)
		}
	}
}

// TestTruncation: what does not fit a datagram comes as a stub with TC, and whole over TCP.
func TestTruncation(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	r.key("op."+testZone, testZone)
	for i := range 20 {
		if rc := r.signed("tcp", "op."+testZone, updateMsg(add("many."+testZone, 300, fmt.Sprintf("%02d%s", i, strings.Repeat("v", 241))))); rc != dns.RcodeSuccess {
			t.Fatal(rc)
		}
	}
	for _, size := range []uint16{0, 512, 1232, 4096, 65535} {
		m := r.query("udp", "many."+testZone, dns.TypeTXT, func(m *dns.Msg) {
			if size > 0 {
				m.SetEdns0(size, false)
			}
		})
		if !m.Truncated || len(m.Answer) != 0 || m.Rcode != 0 || !m.Authoritative || (m.IsEdns0() != nil) != (size > 0) {
			t.Errorf("size %d: %v", size, m)
		}
	}
	if m := r.query("tcp", "many."+testZone, dns.TypeTXT); m.Truncated || len(m.Answer) != 20 {
		t.Errorf("TCP: %d answers", len(m.Answer))
	}
}

// TestTCP: pipelined messages get all their answers in order of arrival, also in pieces; length 0 closes; caps hold.
func TestTCP(t *testing.T) {
	t.Parallel()
	r := startRig(t, func(c *Config) { c.Settings.TCPPerIP = 3 })
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	var stream []byte
	for i := range 100 {
		m := new(dns.Msg)
		m.SetQuestion(fmt.Sprintf("n%d.%s.", i, testZone), dns.TypeTXT)
		m.Id = uint16(i)
		stream = append(stream, framed(pack(t, m))...)
	}
	go func() {
		for len(stream) > 0 {
			n := min(1+rand.IntN(700), len(stream))
			c.Write(stream[:n])
			stream = stream[n:]
		}
	}()
	for i := range 100 {
		b, err := readFramed(c)
		if err != nil {
			t.Fatal(err)
		}
		if m := unpack(t, b); m.Id != uint16(i) || m.Rcode != dns.RcodeNameError {
			t.Fatalf("answer %d: %v", i, m)
		}
	}
	zero, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer zero.Close()
	zero.SetDeadline(time.Now().Add(limit))
	zero.Write([]byte{0, 0})
	if n, err := zero.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("length 0: %d, %v", n, err)
	}
	// Connections of one address beyond the cap are closed at once.
	open := []net.Conn{c}
	refused := false
	for range 6 {
		x, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer x.Close()
		x.SetDeadline(time.Now().Add(limit))
		m := new(dns.Msg)
		m.SetQuestion("a."+testZone+".", dns.TypeTXT)
		x.Write(framed(pack(t, m)))
		if _, err := readFramed(x); err != nil {
			refused = true
		}
		open = append(open, x)
	}
	if !refused || r.count(stats.TCPRefused) == 0 {
		t.Error("the cap of connections for one address does not hold")
	}
}

// TestSlowReader: one who asks over TCP and does not read is closed, and does not hold more than its bound.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	r.key("op."+testZone, testZone)
	for i := range 60 {
		if rc := r.signed("tcp", "op."+testZone, updateMsg(add("big."+testZone, 300, fmt.Sprintf("%02d%s", i, strings.Repeat("v", 900))))); rc != dns.RcodeSuccess {
			t.Fatal(rc)
		}
	}
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m := new(dns.Msg)
	m.SetQuestion("big."+testZone+".", dns.TypeTXT)
	msg := framed(pack(t, m))
	c.SetWriteDeadline(time.Now().Add(limit))
	for range 4000 { // 200 MB of answers
		if _, err := c.Write(msg); err != nil {
			break
		}
		if r.count(stats.TCPSlowReader) > 0 {
			break
		}
	}
	eventually(t, "the slow reader is closed", func() bool { return r.count(stats.TCPSlowReader) == 1 })
	if m := r.query("udp", "a."+testZone, dns.TypeTXT); m.Rcode != dns.RcodeNameError {
		t.Error(m)
	}
}

// TestCookies: a client cookie gets a server cookie, which is known when it comes back, and exempts from RRL.
func TestCookies(t *testing.T) {
	t.Parallel()
	r := startRig(t, func(c *Config) { c.Settings.RRLRate = 1 })
	ask := func(cookie string) (got string, tc bool) {
		m := r.query("udp", "a."+testZone, dns.TypeTXT, func(m *dns.Msg) {
			if cookie != "" {
				m.SetEdns0(1232, false)
				m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: cookie})
			}
		})
		if o := m.IsEdns0(); o != nil {
			for _, opt := range o.Option {
				if c, ok := opt.(*dns.EDNS0_COOKIE); ok {
					got = c.Cookie
				}
			}
		}
		return got, m.Truncated
	}
	got, _ := ask("0011223344556677")
	if len(got) != 48 || got[:16] != "0011223344556677" {
		t.Fatalf("cookie %q", got)
	}
	slipped := 0
	for range 100 {
		if _, tc := ask(""); tc {
			slipped++
		}
	}
	if slipped < 50 || r.count(stats.RRLSlipped) < 50 {
		t.Errorf("%d of 100 answers were moved to TCP", slipped)
	}
	for range 50 {
		if _, tc := ask(got); tc {
			t.Fatal("a client with a valid cookie was moved to TCP")
		}
	}
	for range 20 {
		if m := r.query("tcp", "a."+testZone, dns.TypeTXT); m.Truncated {
			t.Fatal("TCP is limited")
		}
	}
	if r.count(stats.CookieGood) < 50 {
		t.Errorf("%d known cookies", r.count(stats.CookieGood))
	}
}

// TestResolver: at the defaults one address that asks much for many names, most of them absent, loses nothing: the limit is by name.
func TestResolver(t *testing.T) {
	t.Parallel()
	l := newLimits()
	l.rrl.set(200, 400)
	a := addr4(192, 0, 2, 1)
	// 20,000 a second for 10,000 names during five seconds of the clock.
	for i := range 100_000 {
		name := wire.MustName(fmt.Sprintf("n%d.mesh.test", rand.IntN(10_000)))
		if !l.response(a, name, kindNegative, int64(i)*50_000) {
			t.Fatalf("query %d was limited", i)
		}
	}
	// A flood for one name from one prefix is not.
	through := 0
	for i := range 100_000 {
		if l.response(a, wire.MustName("victim.mesh.test"), kindAnswer, int64(i)*50_000) {
			through++
		}
	}
	if through > 2000 {
		t.Errorf("%d of 100,000 answers of one name went out whole in five seconds", through)
	}
}

// TestRestart: what was acknowledged is there after a restart; the folder cannot be had twice.
func TestRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := startRigIn(t, dir)
	r.key("op."+testZone, testZone)
	for i := range 50 {
		if rc := r.signed("udp", "op."+testZone, updateMsg(add(fmt.Sprintf("n%d.%s", i, testZone), 300, "v"))); rc != dns.RcodeSuccess {
			t.Fatal(rc)
		}
	}
	var held *journal.HeldError
	if _, err := Start(Config{StateDir: dir, Hosts: []string{"127.0.0.1"}, TCPTotal: 1, Settings: testSettings()}); !errors.As(err, &held) || !errors.Is(err, ErrCannotRun) {
		t.Errorf("a second one on the folder: %v", err)
	}
	port := int(r.Addrs()[0].Port())
	var taken *PortError
	if _, err := Start(Config{StateDir: t.TempDir(), Hosts: []string{"127.0.0.1"}, Port: port, TCPTotal: 1, Settings: testSettings()}); !errors.As(err, &taken) || !errors.Is(err, ErrCannotRun) {
		t.Errorf("a second one on the port: %v", err)
	}
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	r.Node = nil
	again := startRigIn(t, dir)
	for i := range 50 {
		if vs := again.values(fmt.Sprintf("n%d.%s", i, testZone)); len(vs) != 1 {
			t.Errorf("n%d: %q", i, vs)
		}
	}
	if rc := again.signed("udp", "op."+testZone, updateMsg(add("after."+testZone, 300, "v"))); rc != dns.RcodeSuccess {
		t.Error(rc)
	}
}

// TestMissingState: a node that had keys and lost them answers SERVFAIL to what is signed, never BADKEY.
func TestMissingState(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := startRigIn(t, dir)
	r.key("op."+testZone, testZone)
	if rc := r.signed("udp", "op."+testZone, updateMsg(add("a."+testZone, 300, "v"))); rc != dns.RcodeSuccess {
		t.Fatal(rc)
	}
	// The position is written with the next frame.
	if rc := r.signed("udp", "op."+testZone, updateMsg(add("b."+testZone, 300, "v"))); rc != dns.RcodeSuccess {
		t.Fatal(rc)
	}
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	r.Node = nil
	again := startRigIn(t, dir, func(c *Config) { removeControl(t, dir) })
	msg, _ := sign(t, updateMsg(add("c."+testZone, 300, "v")), "op."+testZone, secret, 0)
	if m := unpack(t, again.exchange("udp", msg)); m.Rcode != dns.RcodeServerFailure || m.IsTsig() != nil {
		t.Errorf("%v", m)
	}
	if vs := again.values("a." + testZone); len(vs) != 1 {
		t.Errorf("queries: %q", vs)
	}
}

// TestRequests: records that the control plane hands over are stored; a VOID takes back what was not taken.
func TestRequests(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := requestsLog(t, dir)
	put := func(payload []byte) uint64 {
		lsn, err := w.Append(payload)
		if err == nil {
			err = w.Sync()
		}
		if err != nil {
			t.Fatal(err)
		}
		return lsn
	}
	op := func(name, value string) []byte {
		return record.AppendRequest(nil, &record.Request{Source: record.SourceHTTP, Ops: []record.Op{{Kind: record.OpAdd, Name: wire.MustName(name), RDATA: record.AppendRDATA(nil, []byte(value)), TTLSec: 300}}})
	}
	put(op("one."+testZone, "1"))
	voided := put(op("two."+testZone, "2"))
	put(record.AppendVoid(nil, voided))
	r := startRigIn(t, dir)
	eventually(t, "the first request is stored", func() bool { return len(r.values("one."+testZone)) == 1 })
	last := put(op("three."+testZone, "3"))
	eventually(t, "a later request is stored", func() bool { return len(r.values("three."+testZone)) == 1 })
	if vs := r.values("two." + testZone); vs != nil {
		t.Errorf("a voided request was applied: %q", vs)
	}
	eventually(t, "the position is durable", func() bool { return r.store.Taken().Requests == last })
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	r.Node = nil
	again := startRigIn(t, dir)
	if got := again.store.Stats().Records; got != 2 {
		t.Errorf("%d records after a restart", got)
	}
}

// TestNonsense: 100,000 generated wrong messages over a real socket leave the server answering, each with its defined outcome: a reply
// that parses, or none; and nothing is stored.
func TestNonsense(t *testing.T) {
	t.Parallel()
	n := 100_000
	if testing.Short() {
		n = 10_000
	}
	r := startRig(t)
	// Other tests run beside this one, so the bound is loose: it is 640 bytes for each message.
	const grownMax = 64 << 20
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	defer func() {
		runtime.GC()
		runtime.ReadMemStats(&after)
		if after.HeapAlloc > before.HeapAlloc+grownMax {
			t.Errorf("the heap grew by %d MiB", (after.HeapAlloc-before.HeapAlloc)>>20)
		}
	}()
	var wg sync.WaitGroup
	for part := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(part), 9))
			c, err := net.Dial("udp", r.addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			m := new(dns.Msg)
			m.SetQuestion("probe."+testZone+".", dns.TypeA)
			m.Id = 0xFFFE
			probe := pack(t, m)
			b := make([]byte, 65535)
			for i := 0; i < n/4; {
				// A window of nonsense, then a message that must be answered: when its answer is there, all before it are through.
				for range 50 {
					c.Write(nonsense(t, rng))
					i++
				}
				answered := false
				for tries := 0; tries < 30 && !answered; tries++ {
					c.Write(probe)
					c.SetReadDeadline(time.Now().Add(2 * time.Second))
					for !answered {
						got, err := c.Read(b)
						if err != nil {
							break
						}
						if got < 12 || b[2]&0x80 == 0 {
							t.Errorf("a reply of %d bytes: %x", got, b[:got])
							return
						}
						answered = b[0] == 0xFF && b[1] == 0xFE
						if err := new(dns.Msg).Unpack(b[:got]); err != nil {
							t.Errorf("a reply that does not parse: %v: %x", err, b[:got])
						}
					}
				}
				if !answered {
					t.Error("the server does not answer any more")
					return
				}
			}
		})
	}
	wg.Wait()
	if got := r.store.Stats().Records; got != 0 {
		t.Errorf("%d records came out of nonsense", got)
	}
}

// nonsense is a message with something wrong in it.
func nonsense(t testing.TB, rng *rand.Rand) []byte {
	m := new(dns.Msg)
	if rng.IntN(2) == 0 {
		m.SetQuestion(fmt.Sprintf("n%d.%s.", rng.IntN(9), testZone), dns.TypeTXT)
	} else {
		m = updateMsg(add(fmt.Sprintf("n%d.%s", rng.IntN(9), testZone), 300, "v"))
		if rng.IntN(2) == 0 {
			m.SetTsig("k."+testZone+".", dns.HmacSHA256, 300, time.Now().Unix())
			m.IsTsig().MAC, m.IsTsig().MACSize = strings.Repeat("00", 32), 32
		}
	}
	m.Id = uint16(rng.IntN(0xFFFE))
	b := pack(t, m)
	for range 1 + rng.IntN(8) {
		switch rng.IntN(3) {
		case 0:
			b = b[:2+rng.IntN(len(b)-1)]
		case 1:
			b = append(b, byte(rng.Uint32()))
		default:
			if len(b) > 2 {
				b[2+rng.IntN(len(b)-2)] = byte(rng.Uint32())
			}
		}
	}
	return b
}
