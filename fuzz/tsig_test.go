package fuzz

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dnsmesh/dmpd/internal/tsig"
	"github.com/dnsmesh/dmpd/internal/wire"
)

func tsigKey(name string, alg tsig.Alg) *tsig.Key {
	return &tsig.Key{Name: wire.MustName(name), Alg: alg, Secret: bytes.Repeat([]byte{0x11}, 32), Scopes: []tsig.Scope{tsig.MustScope("slot-*.mb-*.mesh.test")}}
}

// FuzzTSIG: bytes that nobody signed never verify, and miekg agrees on those that verify. A message that is well formed, signed by miekg,
// verifies; with any one byte changed it does not; and our signed reply verifies with miekg.
func FuzzTSIG(f *testing.F) {
	for _, b := range messageSeeds(f) {
		f.Add(b, uint16(0), byte(0))
		f.Add(b, uint16(len(b)), byte(1))
	}
	k := tsigKey("alice-1.mesh.test", tsig.SHA256)
	secret := base64.StdEncoding.EncodeToString(k.Secret)
	var m wire.Message
	var s tsig.Signer
	var rec tsig.Record
	f.Fuzz(func(t *testing.T, msg []byte, at uint16, flip byte) {
		if wire.Parse(msg, &m) == wire.OK && m.TSIG != nil {
			now := time.Now().Unix()
			switch fault := s.Verify(&m, &rec, k, now); fault {
			case wire.OK:
				t.Fatal("the fuzzer found a MAC")
			case wire.BadSig, wire.BadTSIG, wire.BadKey, wire.BadTrunc:
			default:
				t.Fatal(fault.Label())
			}
			if fault := s.Verify(&m, &rec, nil, now); fault != wire.BadKey && fault != wire.BadTSIG {
				t.Fatal(fault.Label())
			}
		}
		var d dns.Msg
		if d.Unpack(msg) != nil || d.Response || d.IsTsig() != nil {
			return
		}
		now := time.Now().Unix()
		d.SetTsig("Alice-1.mesh.test.", dns.HmacSHA256, 300, now)
		signed, mac, err := dns.TsigGenerate(&d, secret, "", false)
		if err != nil || wire.Parse(signed, &m) != wire.OK {
			return // rules of our own
		}
		if fault := s.Verify(&m, &rec, k, now); fault != wire.OK {
			t.Fatalf("%x: %s", signed, fault.Label())
		}
		reply := wire.AppendReply([]byte("xyz"), signed, m.QEnd, wire.Refused, true)
		reply = s.Sign(reply, 3, k, rec.MAC, rec.OrigID, now, 0, 0)
		if err := dns.TsigVerify(reply[3:], secret, mac, false); err != nil {
			t.Fatalf("miekg refuses the reply: %v", err)
		}
		if flip == 0 {
			return
		}
		// The case of names is not digested, nor is the header's ID; nothing else may be changed.
		where := 2 + int(at)%(len(signed)-2)
		signed[where] ^= flip
		sameKey := wire.Parse(signed, &m) == wire.OK && m.TSIG != nil && wire.EqualName(m.TSIG.Name, k.Name)
		if sameKey && s.Verify(&m, &rec, k, now) == wire.OK && where < m.TSIG.Off {
			t.Fatalf("byte %d of %x was changed, and it verifies", where, signed)
		}
		if sameKey && s.Verify(&m, &rec, k, now) == wire.OK {
			// In the TSIG record itself: then it says what it said.
			if n := wire.AppendLower(nil, rec.AlgName[:rec.AlgLen]); !bytes.Equal(rec.MAC, unhexText(mac)) || string(n) != "\x0bhmac-sha256\x00" || rec.TimeSec != uint64(now) || rec.Fudge != 300 {
				t.Fatalf("byte %d of %x was changed, and it verifies", where, signed)
			}
		}
	})
}

func unhexText(s string) (b []byte) {
	for i := 0; i+1 < len(s); i += 2 {
		b = append(b, unhexDigit(s[i])<<4|unhexDigit(s[i+1]))
	}
	return b
}

func unhexDigit(c byte) byte {
	if c >= 'a' {
		return c - 'a' + 10
	}
	return c - '0'
}

// FuzzKeys: a frame of the state log gives its entries back to the byte, and a key in one is the key that was written; whatever is cut or
// longer is refused as such.
func FuzzKeys(f *testing.F) {
	k := tsigKey("alice-1.mesh.test", tsig.SHA512)
	k.CreatedAtSec, k.ExpiresAtSec, k.Operator, k.Subject, k.Note = 1, 2, true, "alice@example.test", "note"
	k.Ed25519 = bytes.Repeat([]byte{2}, 32)
	body := tsig.AppendKey(nil, k)
	f.Add(tsig.AppendState(tsig.AppendState(nil, tsig.StateKeyPut, body), tsig.StateKeyDelete, k.Name))
	f.Add(tsig.AppendState(nil, tsig.StateControl+3, []byte("opaque")))
	f.Add(binary.BigEndian.AppendUint32([]byte{1}, 1<<31))
	f.Fuzz(func(t *testing.T, p []byte) {
		var again []byte
		err := tsig.ReadState(p, func(kind tsig.StateKind, body []byte) error {
			again = tsig.AppendState(again, kind, body)
			if kind != tsig.StateKeyPut {
				return nil
			}
			k, err := tsig.ReadKey(body)
			if err != nil {
				if !errors.Is(err, tsig.ErrState) || k != nil {
					t.Fatal(k, err)
				}
				return nil
			}
			// Scopes are text, which has more than one spelling; once written it stays.
			once := tsig.AppendKey(nil, k)
			other, err := tsig.ReadKey(once)
			if err != nil || !bytes.Equal(tsig.AppendKey(nil, other), once) || !bytes.Equal(k.Name, other.Name) || !bytes.Equal(k.Secret, other.Secret) || len(k.Scopes) != len(other.Scopes) ||
				k.Alg != other.Alg || k.Revoked != other.Revoked || k.Operator != other.Operator || k.CreatedAtSec != other.CreatedAtSec || k.ExpiresAtSec != other.ExpiresAtSec ||
				k.Subject != other.Subject || k.Note != other.Note || !bytes.Equal(k.Ed25519, other.Ed25519) || !bytes.Equal(k.X25519, other.X25519) {
				t.Fatalf("%x comes back as %x (%v)", body, once, err)
			}
			table := tsig.NewTable(wire.MustName("mesh.test"))
			table.Store(k)
			if table.Load(k.Name) != k {
				t.Fatal("the table does not find it")
			}
			table.Delete(k.Name)
			if table.Load(k.Name) != nil || table.Len() != 0 {
				t.Fatal("the table keeps it")
			}
			return nil
		})
		switch {
		case err == nil && !bytes.Equal(again, p):
			t.Fatalf("%x encodes as %x", p, again)
		case err != nil && (!errors.Is(err, tsig.ErrState) || !bytes.HasPrefix(p, again)):
			t.Fatal(err)
		}
	})
}

// FuzzScope: a pattern covers what is below what it covers; a literal one covers exactly the name and what is below it; and a pattern's
// text is the pattern.
func FuzzScope(f *testing.F) {
	for _, s := range [][2]string{{"slot-*.mb-*.z", "slot-3.mb-ab.z"}, {"id-aa.z", "x.id-aa.z"}, {"*", "a"}, {"a*b*c.z", "axxbyyc.z"}, {`evil\.b`, `x.evil\.b`}, {"**a*.z", "ba.z"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, pattern, owner string) {
		s, err := tsig.ParseScope(pattern)
		name, nameErr := wire.AppendName(nil, owner)
		if err != nil || nameErr != nil {
			return
		}
		same, err := tsig.ParseScope(s.String())
		if err != nil || same.String() != s.String() || same.Literal() != s.Literal() {
			t.Fatalf("%q becomes %q (%v)", pattern, s.String(), err)
		}
		covers := s.Covers(name)
		if same.Covers(name) != covers {
			t.Fatalf("%q and %q differ about %q", pattern, s.String(), owner)
		}
		if below := append([]byte{1, 'x'}, name...); len(below) <= wire.NameMax && covers && !s.Covers(below) {
			t.Fatalf("%q covers %q but not what is below it", pattern, owner)
		}
		if literal, _ := wire.AppendName(nil, s.String()); s.Literal() && covers != wire.IsSubdomain(name, literal) {
			t.Fatalf("%q covers %q: %v", pattern, owner, covers)
		}
		text, patternText := wire.Text(name), s.String()
		if strings.Contains(text+patternText, `\`) {
			return // an escape is more than one character of the text
		}
		if want := globCovers(text, patternText); covers != want {
			t.Fatalf("%q covers %q: %v, by its text %v", pattern, owner, covers, want)
		}
	})
}

// globCovers is dns.md 7.1 over text, the slow way.
func globCovers(owner, pattern string) bool {
	o, p := dns.SplitDomainName(owner), dns.SplitDomainName(pattern)
	if len(o) < len(p) {
		return false
	}
	o = o[len(o)-len(p):]
	for i := range p {
		if !globLabel(o[i], p[i]) {
			return false
		}
	}
	return true
}

func globLabel(label, pattern string) bool {
	// can[j]: what was read of the pattern may end before label[j].
	can := make([]bool, len(label)+1)
	can[0] = true
	for i := range len(pattern) {
		next := make([]bool, len(label)+1)
		for j, ok := range can {
			switch {
			case pattern[i] == '*':
				next[j] = ok || j > 0 && next[j-1]
			case j < len(label) && label[j] == pattern[i]:
				next[j+1] = ok
			}
		}
		can = next
	}
	return can[len(label)]
}
