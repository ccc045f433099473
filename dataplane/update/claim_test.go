package update

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/dnsmesh/dmpd/internal/tsig"
	"github.com/dnsmesh/dmpd/internal/wire"
)

const claimName = "claim-3.mb-0123456789ab.mesh.test"

// dns.md 8.1 to 8.3 and section 15.
func TestClaimTable(t *testing.T) {
	good := claimText(3, nowSec, nowSec+300, 1, sender)
	forged := []byte(good)
	forged[len(forged)-3] ^= 1
	line := func(name string, ttl int, text string) string { return fmt.Sprintf("add %s %d %s\n", name, ttl, text) }
	exp := func(ts, exp int64) string {
		return line(claimName, 86400, claimText(3, nowSec+ts, nowSec+exp, 1, sender))
	}
	eleven := ""
	for i := range 11 {
		eleven += line(claimName, 300, claimText(3, nowSec, nowSec+300, byte(i), sender))
	}
	receiver := func(p *Policy) { p.Provider, p.Receiver = false, true }
	for _, x := range []struct {
		text   string
		policy func(p *Policy)
		lines  string
		fault  wire.Fault
		rcode  uint16
		life   int // of the only value at claimName, 0: none
	}{
		{"good", nil, line(claimName, 300, good), wire.OK, 0, 300},
		{"good, in capitals", nil, line(strings.ToUpper(claimName), 300, good), wire.OK, 0, 300},
		{"good, TTL below exp", nil, line(claimName, 100, good), wire.OK, 0, 100},
		{"good, TTL above exp", nil, line(claimName, 86400, good), wire.OK, 0, 300},
		{"good, TTL 0", nil, line(claimName, 0, good), wire.OK, 0, 60},
		{"good, in two strings", nil, line(claimName, 300, good[:100]+" "+good[100:]), wire.OK, 0, 300},
		{"good, beside an A record", nil, "rr update x.mesh.test 60 1 1 01020304\n" + line(claimName, 300, good), wire.OK, 0, 300},
		{"good, both roles", func(p *Policy) { p.Receiver = true }, line(claimName, 300, good), wire.OK, 0, 300},
		{"both roles off", func(p *Policy) { p.Provider = false }, line(claimName, 300, good), wire.ClaimOff, 5, 0},
		{"nothing", nil, "rr update x.mesh.test 60 1 1 01020304", wire.NoOperation, 5, 0},
		{"delete", nil, "delete " + claimName, wire.ClaimOperation, 5, 0},
		{"delete value", nil, "delete " + claimName + " " + good, wire.ClaimOperation, 5, 0},
		{"good and a delete", nil, line(claimName, 300, good) + "delete " + claimName, wire.ClaimOperation, 5, 0},
		{"eleven", nil, eleven, wire.ClaimMany, 5, 0},
		{"another name", nil, line("slot-3.mb-0123456789ab.mesh.test", 300, good), wire.ClaimOwner, 5, 0},
		{"good and another name", nil, line(claimName, 300, good) + line("x.mesh.test", 300, good), wire.ClaimOwner, 5, 0},
		{"registered only, unknown", receiver, line("claim-3.mb-ffffffffffff.mesh.test", 300, good), wire.ClaimRecipient, 5, 0},
		{"registered only, known", receiver, line(claimName, 300, good), wire.OK, 0, 300},
		{"no claim", nil, line(claimName, 300, "v=dmp1;t=chunk;AAAA"), wire.ClaimFormat, 5, 0},
		{"cut", nil, line(claimName, 300, good[:len(good)-4]), wire.ClaimFormat, 5, 0},
		{"another slot", nil, line("claim-4.mb-0123456789ab.mesh.test", 300, good), wire.ClaimSlot, 5, 0},
		{"forged", nil, line(claimName, 300, string(forged)), wire.ClaimForged, 5, 0},
		{"good and forged", nil, line(claimName, 300, good) + line(claimName, 300, string(forged)), wire.ClaimForged, 5, 0},
		{"expired", nil, exp(-100, 0), wire.ClaimExpired, 5, 0},
		{"one second left", nil, exp(-100, 1), wire.OK, 0, 1},
		{"exp at the cap", nil, exp(0, 86400), wire.OK, 0, 86400},
		{"exp above the cap", nil, exp(0, 86401), wire.ClaimLife, 5, 0},
		{"exp above 30 days, no cap", func(p *Policy) { p.ClaimLifeSec = 0 }, exp(0, 30*86400+1), wire.ClaimLife, 5, 0},
		{"exp at 30 days, no cap", func(p *Policy) { p.ClaimLifeSec = 0 }, exp(0, 30*86400), wire.OK, 0, 86400},
		{"ts 300 ahead", nil, exp(300, 400), wire.OK, 0, 400},
		{"ts 302 ahead", nil, exp(302, 400), wire.ClaimExpired, 5, 0},
		{"ts long past", nil, exp(-1e6, 400), wire.OK, 0, 400},
		{"TTL above the limit", nil, line(claimName, 86401, good), wire.TTLTooLong, 5, 0},
		{"TTL above the claims' limit", func(p *Policy) { p.ClaimLifeSec = 3600 }, line(claimName, 86400, claimText(3, nowSec, nowSec+3600, 1, sender)), wire.OK, 0, 3600},
	} {
		t.Run(x.text, func(t *testing.T) {
			n := newNode(t)
			if x.policy != nil {
				n.policy(x.policy)
			}
			rcode, f, _ := n.send(update(t, x.lines), "")
			if f != x.fault || rcode != x.rcode {
				t.Errorf("%v (%d), want %v", f, rcode, x.fault)
			}
			got := n.values(claimName)
			if x.life == 0 && len(got) != 0 || x.life > 0 && (len(got) != 1 || !strings.HasSuffix(got[0], fmt.Sprint(" ", x.life))) {
				t.Errorf("stored %q", got)
			}
			if f.Label() == "" || x.fault != wire.OK && !strings.Contains(f.Label(), "_") {
				t.Errorf("label %q", f.Label())
			}
		})
	}
}

// The shared list of owner names; slots of more than one digit, which the reference takes, are refused (dns.md 8.2).
func TestClaimOwner(t *testing.T) {
	for _, x := range []struct {
		name string
		hash string
	}{
		{"claim-3.mb-0123456789ab.mesh.test", "0123456789ab"}, {"CLAIM-3.MB-0123456789AB.Mesh.test.", "0123456789ab"},
		{"claim-999.mb-0123456789ab.mesh.test", ""}, {"claim-007.mb-0123456789ab.mesh.test", ""}, {"claim-.mb-0123456789ab.mesh.test", ""},
		{"claim-a.mb-0123456789ab.mesh.test", ""}, {"claim-3.mb-0123456789a.mesh.test", ""}, {"claim-3.mb-0123456789abc.mesh.test", ""},
		{"claim-3.mb-0123456789ag.mesh.test", ""}, {"claim-3.x.mb-0123456789ab.mesh.test", ""}, {"x.claim-3.mb-0123456789ab.mesh.test", ""},
		{"slot-3.mb-0123456789ab.mesh.test", ""}, {"claim-3.mb-0123456789ab.evil.test", ""}, {"mesh.test", ""}, {"claim--1.mb-0123456789ab.mesh.test", ""},
		{"claim-3mb-0123456789ab.mesh.test", ""}, {`claim-3\.mb-0123456789ab.mesh.test`, ""},
	} {
		slot, hash, ok := claimOwner(wire.MustName(x.name), wire.MustName("mesh.test"))
		if ok != (x.hash != "") || ok && (string(hash[:]) != x.hash || slot != 3) {
			t.Errorf("%s: %d %s %v", x.name, slot, hash, ok)
		}
	}
}

// dns.md 8.4, 15: a recipient who registers is known at once, one who is revoked no longer.
func TestClaimRegistered(t *testing.T) {
	n := newNode(t)
	n.policy(func(p *Policy) { p.Provider, p.Receiver = false, true })
	send := func() wire.Fault {
		_, f, _ := n.send(claimMessage(t, 3, "aaaaaaaaaaaa", 300, nowSec, nowSec+300), "")
		return f
	}
	if f := send(); f != wire.ClaimRecipient {
		t.Error(f)
	}
	k := tsig.Key{Name: wire.MustName("bob.mesh.test"), Scopes: scopes("mb-aaaaaaaaaaaa.mesh.test")}
	n.keys.Store(&k)
	if f := send(); f != wire.OK {
		t.Error(f)
	}
	revoked := k
	revoked.Revoked = true
	n.keys.Store(&revoked)
	if f := send(); f != wire.ClaimRecipient {
		t.Error(f)
	}
}

// dns.md 11.3: nobody shortens a claim by sending it again, nor does that cost the recipient a token or us a signature.
func TestClaimAgain(t *testing.T) {
	n := newNode(t)
	if _, f, p := n.send(claimMessage(t, 3, "0123456789ab", 200, nowSec, nowSec+300), ""); f != wire.OK || p.Claims() != 1 {
		t.Fatal(f)
	}
	for range 100 {
		_, f, p := n.send(claimMessage(t, 3, "0123456789ab", 1, nowSec, nowSec+300), "")
		if f != wire.OK || p.Claims() != 0 || !p.Empty() {
			t.Fatalf("%v %+v", f, p)
		}
	}
	if got := n.values(claimName); len(got) != 1 || !strings.HasSuffix(got[0], " 200") {
		t.Errorf("%q", got)
	}
	// Longer is more, and is checked.
	if _, f, p := n.send(claimMessage(t, 3, "0123456789ab", 300, nowSec, nowSec+300), ""); f != wire.OK || p.Claims() != 1 {
		t.Fatal(f)
	}
	if got := n.values(claimName); len(got) != 1 || !strings.HasSuffix(got[0], " 300") {
		t.Errorf("%q", got)
	}
	// What a key put there unchecked is no proof.
	forged := []byte(claimText(3, nowSec, nowSec+300, 9, sender))
	forged[len(forged)-3] ^= 1
	lines := fmt.Sprintf("add %s 300 %s", claimName, forged)
	if _, f, _ := n.send(update(t, lines), "alice"); f != wire.OK {
		t.Fatal(f)
	}
	if _, f, _ := n.send(update(t, lines), ""); f != wire.ClaimForged {
		t.Error(f)
	}
}

func person(i byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{i}, 32))
}

// dns.md 8.5, 15: the 31st claim of a burst is SERVFAIL; tokens come back; another recipient is not concerned; only good claims cost.
func TestClaimRate(t *testing.T) {
	n := newNode(t)
	id := 0
	send := func(hash string, key ed25519.PrivateKey) wire.Fault {
		id++
		sec := n.nowMs / 1000
		lines := fmt.Sprintf("add claim-3.mb-%s.mesh.test 300 %s", hash, claimText(3, sec+int64(id%200), sec+1000+int64(id/200), byte(id), key))
		_, f, _ := n.send(update(t, lines), "")
		return f
	}
	const hash = "0123456789ab"
	for range 50 {
		bad := []byte(claimText(3, nowSec, nowSec+300, 1, sender))
		bad[len(bad)-3] ^= 1
		if _, f, _ := n.send(update(t, "add "+claimName+" 300 "+string(bad)), ""); f != wire.ClaimForged {
			t.Fatal(f)
		}
	}
	for i := range 30 {
		if f := send(hash, sender); f != wire.OK {
			t.Fatalf("claim %d: %v", i+1, f)
		}
	}
	if f := send(hash, sender); f != wire.ClaimRate || f.Rcode() != wire.ServFail {
		t.Errorf("claim 31: %v", f)
	}
	if f := send("fffffffffff0", sender); f != wire.OK {
		t.Errorf("another recipient: %v", f)
	}
	// After 2 s the recipient has a token again, but this sender and this address, at a quarter of the rate, have not until 8 s are over.
	n.nowMs += 2000
	if f := send(hash, sender); f != wire.ClaimRate {
		t.Errorf("same sender after 2 s: %v", f)
	}
	if f := send(hash, person(1)); f != wire.ClaimRate {
		t.Errorf("same address, another key: %v", f)
	}
	n.peer = netip.MustParseAddr("198.51.100.1")
	if f := send(hash, sender); f != wire.ClaimRate {
		t.Errorf("same key from another address: %v", f)
	}
	if f := send(hash, person(2)); f != wire.OK {
		t.Errorf("another sender: %v", f)
	}
	n.nowMs += 8000
	if f := send(hash, sender); f != wire.OK {
		t.Errorf("same sender after 10 s: %v", f)
	}
	n.env.Limits.Set(0, 30)
	for range 15 {
		if f := send(hash, sender); f != wire.OK {
			t.Fatal(f)
		}
	}
}

// One prefix cannot fill the pool with signatures to check.
func TestClaimChecks(t *testing.T) {
	n := newNode(t)
	msg := claimMessage(t, 3, "0123456789ab", 300, nowSec, nowSec+300)
	var m wire.Message
	wire.Parse(msg, &m)
	prepare := func(peer string) wire.Fault {
		n.reader.Enter()
		defer n.reader.Leave()
		_, _, f := Prepare(&m, &Author{Keys: n.keys, Peer: netip.MustParseAddr(peer)}, &n.env)
		return f
	}
	for i := range checksBurst {
		if f := prepare(fmt.Sprintf("2001:db8:0:%x::%x", i%200, i)); f != wire.OK {
			t.Fatalf("%d: %v", i, f)
		}
	}
	if f := prepare("2001:db8::1"); f != wire.ClaimRate {
		t.Error(f)
	}
	if f := prepare("2001:db8:0:100::1"); f != wire.OK {
		t.Error(f)
	}
	if prefix(netip.MustParseAddr("::ffff:192.0.2.1")) != netip.MustParseAddr("192.0.2.1") || prefix(netip.MustParseAddr("192.0.2.1")) == prefix(netip.MustParseAddr("192.0.2.2")) {
		t.Error("IPv4 prefixes")
	}
}

func TestBuckets(t *testing.T) {
	l := NewLimits(0.5, 30)
	b := &l.recipients
	k := b.key([]byte("0123456789ab"), nil)
	if k == b.key([]byte("0123456789a"), []byte("b")) {
		t.Error("keys of two parts run together")
	}
	at := int64(1e18)
	for range 30 {
		if !b.peek(k, at) || !b.take(k, at) {
			t.Fatal("denied")
		}
	}
	if b.peek(k, at) || b.take(k, at) || b.take(k, at-1e12) || b.take(k, at+2e9-1e6) || !b.take(k, at+2e9) || b.take(k, at+2e9) {
		t.Error("refill")
	}
	// A long pause fills it to the burst and no further.
	n := 0
	for b.take(k, at+1e15) {
		n++
	}
	if n != 30 {
		t.Errorf("%d tokens after a pause", n)
	}
	// Bounded whoever asks: more keys than places are taken without growing, and a bucket in use stays.
	for i := range 4 * bucketSets * ways {
		if !b.take(b.key(fmt.Append(nil, i), nil), at+1e15+int64(i)) {
			t.Fatal("a new key denied")
		}
		if i%256 == 0 {
			b.take(k, at+1e15+int64(i))
		}
	}
	if b.take(k, at+1e15+1e6) {
		t.Error("the bucket in use was pushed out")
	}
	// Many at once take exactly the burst.
	k2 := b.key([]byte("another"), nil)
	var taken atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if b.take(k2, at+2e15) {
					taken.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if taken.Load() != 30 {
		t.Errorf("%d tokens of 30", taken.Load())
	}
}

func TestRoomAllocs(t *testing.T) {
	l := NewLimits(0.5, 30)
	c := claim{hash: [12]byte{1}, peer: netip.MustParseAddr("2001:db8::1")}
	if n := testing.AllocsPerRun(100, func() { l.room(&c, 1e9); l.take(&c, 1e9) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
