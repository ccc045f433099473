package tsig

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dnsmesh/dmpd/internal/wire"
)

func key(name string, alg Alg, secret []byte, scopes ...string) *Key {
	k := &Key{Name: wire.MustName(name), Alg: alg, Secret: secret}
	for _, s := range scopes {
		k.Scopes = append(k.Scopes, MustScope(s))
	}
	return k
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestVectors: messages captured from a real client and node (dns.md 6.5). Requests verify; our responses are the same bytes.
func TestVectors(t *testing.T) {
	k := key("alice-1.example.com", SHA256, bytes.Repeat([]byte{0x11}, 32))
	const now = 1800000000
	for _, x := range []struct {
		req, rsp string
		rcode    uint16
	}{
		{"123428000001000000010001076578616d706c6503636f6d000006000103666f6fc00c001000010000012c000e0d763d646d70313b743d7465737407616c6963652d31c00c00fa00ff00000000003d0b686d61632d7368613235360000006b49d200012c0020ebcba704fd43ff9917312f8adff95d6c61901d2f9b403d187697c86fc823a265123400000000",
			"1234ac000001000000000001076578616d706c6503636f6d000006000107616c6963652d31c00c00fa00ff00000000003d0b686d61632d7368613235360000006b49d200012c0020adb7191711d6620b0f23084291f74777b3a0a10733a7e0d7e17b6b9dc9d7c6a8123400000000", wire.NoError},
		{"123428000001000000010001076578616d706c6503636f6d000006000103666f6f056f74686572c014001000010000012c0002017807616c6963652d31c00c00fa00ff00000000003d0b686d61632d7368613235360000006b49d200012c0020aa857bad4cd04f3b20b89609f98faa2ce16fdb8384f450bc8702fd790d7d1300123400000000",
			"1234ac0a0001000000000001076578616d706c6503636f6d000006000107616c6963652d31c00c00fa00ff00000000003d0b686d61632d7368613235360000006b49d200012c002000595557b453f326139ca04c993f13df09dad2c1e39e3af8d6f8d1fe0f0fcf7a123400000000", wire.NotZoneR},
		{"123428000001000000010001076578616d706c6503636f6d000006000103666f6fc00c001000fe00000000000e0d763d646d70313b743d7465737407616c6963652d31c00c00fa00ff00000000003d0b686d61632d7368613235360000006b49d200012c00207bde60464ce35b504005837c3eba7255801d1c3ec99ec3ae8d71976072d498a1123400000000",
			"1234ac000001000000000001076578616d706c6503636f6d000006000107616c6963652d31c00c00fa00ff00000000003d0b686d61632d7368613235360000006b49d200012c0020897154fb0b19116f2dae6f7a334731bc3503658d95661b825019873dc8883295123400000000", wire.NoError},
	} {
		req := unhex(t, x.req)
		var m wire.Message
		if f := wire.Parse(req, &m); f != wire.OK {
			t.Fatal(f)
		}
		var s Signer
		var rec Record
		if f := s.Verify(&m, &rec, k, now); f != wire.OK {
			t.Fatal(f)
		}
		rsp := wire.AppendReply([]byte("front"), req, m.QEnd, x.rcode, true)
		rsp = s.Sign(rsp, 5, k, rec.MAC, rec.OrigID, now, 0, 0)
		if got := hex.EncodeToString(rsp[5:]); got != x.rsp {
			t.Errorf("response\n%s, want\n%s", got, x.rsp)
		}
		buf := make([]byte, 0, 1024)
		if n := testing.AllocsPerRun(100, func() {
			s.Verify(&m, &rec, k, now)
			out := wire.AppendReply(buf, req, m.QEnd, x.rcode, true)
			s.Sign(out, 0, k, rec.MAC, rec.OrigID, now, 0, 0)
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

func TestFailures(t *testing.T) {
	const now = 1800000000
	secret := bytes.Repeat([]byte{7}, 32)
	k := key("k.example.com", SHA256, secret)
	make := func(alg string, secret []byte, timeSec int64, fudge uint16) *wire.Message {
		m := new(dns.Msg)
		m.SetUpdate("example.com.")
		m.SetTsig("K.example.com.", alg, fudge, timeSec)
		b, _, err := dns.TsigGenerate(m, base64.StdEncoding.EncodeToString(secret), "", false)
		if err != nil {
			t.Fatal(err)
		}
		var out wire.Message
		if f := wire.Parse(b, &out); f != wire.OK {
			t.Fatal(f)
		}
		return &out
	}
	expired := *k
	expired.ExpiresAtSec = now
	revoked := *k
	revoked.Revoked = true
	cut := make(dns.HmacSHA256, secret, now, 300)
	short := bytes.Clone(cut.Msg)
	// The MAC is cut to 16 bytes: its length, and that of the RDATA.
	at := cut.TSIG.RDataOff + 13 + 8
	short = append(short[:at+2+16], short[at+2+32:]...)
	short[at+1] = 16
	short[cut.TSIG.RDataOff-1] -= 16
	var shortMsg wire.Message
	if f := wire.Parse(short, &shortMsg); f != wire.OK {
		t.Fatal(f)
	}
	for _, x := range []struct {
		name string
		m    *wire.Message
		k    *Key
		want wire.Fault
	}{
		{"good", make(dns.HmacSHA256, secret, now, 300), k, wire.OK},
		{"unknown", make(dns.HmacSHA256, secret, now, 300), nil, wire.BadKey},
		{"expired", make(dns.HmacSHA256, secret, now, 300), &expired, wire.BadKey},
		{"revoked", make(dns.HmacSHA256, secret, now, 300), &revoked, wire.BadKey},
		{"wrong secret", make(dns.HmacSHA256, []byte("x"), now, 300), k, wire.BadSig},
		{"wrong algorithm", make(dns.HmacSHA512, secret, now, 300), k, wire.BadKey},
		{"early", make(dns.HmacSHA256, secret, now+301, 300), k, wire.BadTime},
		{"late", make(dns.HmacSHA256, secret, now-301, 300), k, wire.BadTime},
		{"at the edge", make(dns.HmacSHA256, secret, now-300, 300), k, wire.OK},
		{"wide fudge", make(dns.HmacSHA256, secret, now-301, 60000), k, wire.BadTime},
		{"narrow fudge", make(dns.HmacSHA256, secret, now-11, 10), k, wire.BadTime},
		{"MAC before time", make(dns.HmacSHA256, []byte("x"), now-9999, 300), k, wire.BadSig},
		{"cut MAC", &shortMsg, k, wire.BadTrunc},
	} {
		var s Signer
		var rec Record
		if f := s.Verify(x.m, &rec, x.k, now); f != x.want {
			t.Errorf("%s: %s, want %s", x.name, f.Label(), x.want.Label())
		}
	}
}

// TestAgreesWithMiekg: for every algorithm, what one signs the other verifies.
func TestAgreesWithMiekg(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, alg := range []struct {
		ours   Alg
		theirs string
	}{{SHA256, dns.HmacSHA256}, {SHA384, dns.HmacSHA384}, {SHA512, dns.HmacSHA512}, {SHA224, dns.HmacSHA224}} {
		for range 50 {
			secret := make([]byte, 1+rng.IntN(200))
			for i := range secret {
				secret[i] = byte(rng.Uint32())
			}
			text := base64.StdEncoding.EncodeToString(secret)
			k := key("key.Example.com", alg.ours, secret)
			m := new(dns.Msg)
			m.SetUpdate("example.com.")
			rr, _ := dns.NewRR("a.example.com. 60 IN TXT \"v\"")
			m.Insert([]dns.RR{rr})
			now := time.Now().Unix()
			m.SetTsig("KEY.example.COM.", alg.theirs, 300, now)
			req, mac, err := dns.TsigGenerate(m, text, "", false)
			if err != nil {
				t.Fatal(err)
			}
			var parsed wire.Message
			var s Signer
			var rec Record
			if f := wire.Parse(req, &parsed); f != wire.OK {
				t.Fatal(f)
			}
			if f := s.Verify(&parsed, &rec, k, now); f != wire.OK {
				t.Fatal(f)
			}
			rsp := wire.AppendReply(nil, req, parsed.QEnd, wire.Refused, true)
			rsp = s.Sign(rsp, 0, k, rec.MAC, rec.OrigID, now, 0, 0)
			if err := dns.TsigVerify(rsp, text, mac, false); err != nil {
				t.Fatalf("%s: %v", alg.theirs, err)
			}
			rsp[3] ^= 1
			if dns.TsigVerify(rsp, text, mac, false) == nil {
				t.Fatal("a changed response verifies")
			}
			req[parsed.TSIG.Off-1] ^= 1
			if f := wire.Parse(req, &parsed); f == wire.OK {
				if f := s.Verify(&parsed, &rec, k, now); f != wire.BadSig {
					t.Fatalf("a changed request: %s", f.Label())
				}
			}
		}
	}
}

func TestErrorForms(t *testing.T) {
	const now = 1800000000
	k := key("k.example.com", SHA256, []byte("secret"))
	m := new(dns.Msg)
	m.SetUpdate("example.com.")
	m.SetTsig("k.example.com.", dns.HmacSHA256, 300, now-1000)
	req, mac, err := dns.TsigGenerate(m, base64.StdEncoding.EncodeToString([]byte("secret")), "", false)
	if err != nil {
		t.Fatal(err)
	}
	var parsed wire.Message
	var s Signer
	var rec Record
	wire.Parse(req, &parsed)
	f := s.Verify(&parsed, &rec, k, now)
	if f != wire.BadTime || ErrorOf(f) != ErrBadTime {
		t.Fatal(f)
	}
	rsp := s.Sign(wire.AppendReply(nil, req, parsed.QEnd, f.Rcode(), false), 0, k, rec.MAC, rec.OrigID, now, ErrBadTime, rec.TimeSec)
	var d dns.Msg
	if err := d.Unpack(rsp); err != nil {
		t.Fatal(err)
	}
	ts := d.IsTsig()
	if d.Rcode != dns.RcodeNotAuth || ts == nil || ts.Error != ErrBadTime || ts.OtherData != "00006b49d200" || ts.TimeSigned != now-1000 {
		t.Errorf("%v", &d)
	}
	// miekg verifies no response with NOTAUTH, so the same record is made under another code; it compares with the machine's
	// clock behind the MAC.
	rsp = s.Sign(wire.AppendReply(nil, req, parsed.QEnd, wire.NoError, false), 0, k, rec.MAC, rec.OrigID, now, ErrBadTime, rec.TimeSec)
	if err := dns.TsigVerify(rsp, base64.StdEncoding.EncodeToString([]byte("secret")), mac, false); !errors.Is(err, dns.ErrTime) {
		t.Errorf("BADTIME must be signed: %v", err)
	}
	rsp = AppendUnsigned(wire.AppendReply(nil, req, parsed.QEnd, wire.NotAuthR, false), 0, parsed.TSIG.Name, &rec, now, ErrBadKey)
	if err := d.Unpack(rsp); err != nil || d.IsTsig() == nil || d.IsTsig().MACSize != 0 || d.IsTsig().Error != ErrBadKey || d.IsTsig().Algorithm != dns.HmacSHA256 {
		t.Errorf("%v, %v", &d, err)
	}
}

// TestForwarded: a forwarder changes the header's ID on the way there and back (RFC 8945 5.5); and other data of a request, whatever it
// says, is digested.
func TestForwarded(t *testing.T) {
	now := time.Now().Unix()
	k := key("k.example.com", SHA256, []byte("secret"))
	text := base64.StdEncoding.EncodeToString(k.Secret)
	m := new(dns.Msg)
	m.SetUpdate("example.com.")
	m.SetTsig("k.example.com.", dns.HmacSHA256, 300, now)
	m.IsTsig().OtherLen, m.IsTsig().OtherData = 3, "aabbcc"
	req, mac, err := dns.TsigGenerate(m, text, "", false)
	if err != nil {
		t.Fatal(err)
	}
	id := [2]byte(req)
	req[0] ^= 0x55
	var parsed wire.Message
	var s Signer
	var rec Record
	if f := wire.Parse(req, &parsed); f != wire.OK {
		t.Fatal(f)
	}
	if f := s.Verify(&parsed, &rec, k, now); f != wire.OK || !bytes.Equal(rec.Other, []byte{0xAA, 0xBB, 0xCC}) {
		t.Fatal(f, rec.Other)
	}
	rsp := s.Sign(wire.AppendReply(nil, req, parsed.QEnd, 0, true), 0, k, rec.MAC, rec.OrigID, now, 0, 0)
	if [2]byte(rsp) != [2]byte(req) {
		t.Error("the forwarder's ID is not echoed")
	}
	copy(rsp, id[:])
	if err := dns.TsigVerify(rsp, text, mac, false); err != nil {
		t.Error(err)
	}
	req[len(req)-1] ^= 1 // the other data
	if f := s.Verify(&parsed, &rec, k, now); f != wire.BadSig {
		t.Error(f.Label())
	}
}

// TestReplace: while a key is put in place of another, readers find one of the two.
func TestReplace(t *testing.T) {
	tab := NewTable(wire.MustName("z"))
	var both [2]*Key
	for i := range both {
		both[i] = key("k.z", SHA256, []byte{byte(i + 1)}, "mb-aabbccddeeff.z")
	}
	tab.Store(both[0])
	done := make(chan bool)
	var missing, lost int
	go func() {
		defer close(done)
		name, h := wire.MustName("k.z"), [HashLen]byte([]byte("aabbccddeeff"))
		for range 20000 {
			if tab.Load(name) == nil {
				missing++
			}
			if !tab.HasMailbox(h, 1) {
				lost++
			}
		}
	}()
	for i := 0; ; i++ {
		select {
		case <-done:
			if missing+lost > 0 {
				t.Errorf("no key %d times, no mailbox %d times", missing, lost)
			}
			return
		default:
			tab.Store(both[i%2])
			tab.Store(both[i%2]) // again: nothing is lost
		}
	}
}

func TestScopes(t *testing.T) {
	for _, x := range []struct {
		scope, owner string
		want         bool
	}{
		{"id-aa.z", "id-aa.z", true}, {"id-aa.z", "x.id-aa.z", true}, {"id-aa.z", "xid-aa.z", false}, {".id-aa.z", "ID-aa.z", true}, {"z", "a.b.z", true}, {"z", "az", false},
		{"slot-*.mb-*.z", "slot-3.mb-ab.z", true}, {"slot-*.mb-*.z", "x.y.slot-3.mb-ab.z", true}, {"slot-*.mb-*.z", "mb-ab.z", false}, {"slot-*.mb-*.z", "slot-3.mb-ab.y", false},
		{"slot-*.mb-*.z", "slot-.mb-.z", true}, {"chunk-*-*.z", "chunk--.z", true}, {"chunk-*-*.z", "chunk-1.z", false}, {"chunk-*-*.z", "chunk-0001-ab-cd.z", true},
		{"*.z", "a.z", true}, {"*.z", "z", false}, {"a*b*c.z", "axxbyyc.z", true}, {"a*b*c.z", "axxbyy.z", false}, {"a*b.z", "ab.b.z", false},
		{"b.z", `evil\.b.z`, false}, {"slot-*.z", `slot-1\.mb.z`, true},
	} {
		s := MustScope(x.scope)
		if got := s.Covers(wire.MustName(x.owner)); got != x.want {
			t.Errorf("%s covers %s: %v", x.scope, x.owner, got)
		}
	}
	for _, bad := range []string{"", ".", "a..b"} {
		if _, err := ParseScope(bad); !errors.Is(err, ErrScope) {
			t.Errorf("%q was taken", bad)
		}
	}
	k := key("k.z", SHA256, []byte("s"), "slot-*.mb-*.z", "id-aa.z")
	if !k.CanAdd(wire.MustName("slot-1.mb-a.z")) || k.CanDelete(wire.MustName("slot-1.mb-a.z")) || !k.CanDelete(wire.MustName("x.id-aa.z")) || k.CanAdd(wire.MustName("other.z")) {
		t.Error("rights")
	}
}

func TestTable(t *testing.T) {
	tab := NewTable(wire.MustName("mesh.test"))
	x := bytes.Repeat([]byte{3}, 32)
	h := MailboxHash(x)
	a := key("a.mesh.test", SHA256, []byte("s"), "slot-*.mb-*.mesh.test")
	a.X25519 = x
	b := key("b.mesh.test", SHA256, []byte("s"), "id-00.mesh.test", "mb-aabbccddeeff.mesh.test")
	tab.Store(a)
	tab.Store(b)
	if tab.Load(wire.MustName("A.mesh.test")) != a || tab.Load(wire.MustName("c.mesh.test")) != nil || tab.Len() != 2 {
		t.Error("load")
	}
	if !tab.HasMailbox(h, 0) || !tab.HasMailbox([12]byte([]byte("aabbccddeeff")), 0) || tab.HasMailbox([12]byte([]byte("aabbccddee00")), 0) {
		t.Error("mailboxes")
	}
	revoked := *a
	revoked.Revoked = true
	tab.Store(&revoked)
	if tab.HasMailbox(h, 0) || tab.Len() != 2 {
		t.Error("a revoked key registers a recipient")
	}
	for _, scope := range []string{"mb-aabbccddeeff.sub.mesh.test", "id-00.mesh.test"} {
		c := key("c.mesh.test", SHA256, []byte("s"), scope)
		c.X25519 = x
		tab.Store(c)
		if tab.HasMailbox(h, 0) {
			t.Errorf("%s registers a recipient", scope)
		}
	}
	name := wire.MustName("a.mesh.test")
	if n := testing.AllocsPerRun(100, func() { tab.Load(name); tab.HasMailbox(h, 1) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestKeyCodec(t *testing.T) {
	k := key("a.mesh.test", SHA512, []byte("secret"), "slot-*.mb-*.mesh.test", "id-00.mesh.test")
	k.CreatedAtSec, k.ExpiresAtSec, k.Revoked, k.Operator, k.Subject, k.Note = 5, 6, true, true, "a@b.c", "a note"
	k.Ed25519, k.X25519 = bytes.Repeat([]byte{1}, 32), []byte{}
	body := AppendKey(nil, k)
	frame := AppendState(AppendState(nil, StateKeyPut, body), StateControl+3, []byte("opaque"))
	var kinds []StateKind
	if err := ReadState(frame, func(kind StateKind, body []byte) error {
		kinds = append(kinds, kind)
		if kind == StateKeyPut {
			got, err := ReadKey(body)
			if err != nil || !reflect.DeepEqual(got, k) {
				t.Errorf("%+v, %v", got, err)
			}
		}
		return nil
	}); err != nil || len(kinds) != 2 {
		t.Fatal(kinds, err)
	}
	for i := range body {
		if _, err := ReadKey(body[:i]); err == nil {
			t.Errorf("the first %d bytes were taken", i)
		}
	}
	if _, err := ReadKey(append(body, 0)); err == nil {
		t.Error("trailing bytes were taken")
	}
	if ReadState(frame[:len(frame)-1], func(StateKind, []byte) error { return nil }) == nil {
		t.Error("a cut frame was taken")
	}
}

func BenchmarkVerifyAndSign(b *testing.B) {
	k := key("k.example.com", SHA256, bytes.Repeat([]byte{7}, 32))
	m := new(dns.Msg)
	m.SetUpdate("example.com.")
	m.SetTsig("k.example.com.", dns.HmacSHA256, 300, 1800000000)
	req, _, err := dns.TsigGenerate(m, base64.StdEncoding.EncodeToString(k.Secret), "", false)
	if err != nil {
		b.Fatal(err)
	}
	var parsed wire.Message
	var s Signer
	var rec Record
	buf := make([]byte, 0, 512)
	b.ReportAllocs()
	for b.Loop() {
		wire.Parse(req, &parsed)
		if s.Verify(&parsed, &rec, k, 1800000000) != wire.OK {
			b.Fatal()
		}
		s.Sign(wire.AppendReply(buf, req, parsed.QEnd, 0, true), 0, k, rec.MAC, rec.OrigID, 1800000000, 0, 0)
	}
}
