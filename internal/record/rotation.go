package record

import (
	"crypto/ed25519"
	"encoding/binary"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A rotation (records.md 12) hands a subject over to another key; a revocation ends one. Text: "v=dmp1;t=rotation;" or
// "v=dmp1;t=revocation;" and strict base64. Bodies:
//
//	+------------+-----------+-------------+---------+---------------+---------------+----------+---------+----------+
//	| magic (7B) | type (1B) | length (1B) | subject | old_spk (32B) | new_spk (32B) | seq (8B) | ts (8B) | exp (8B) |
//	+------------+-----------+-------------+---------+---------------+---------------+----------+---------+----------+
//	+------------+-----------+-------------+---------+-------------------+-------------+---------+
//	| magic (7B) | type (1B) | length (1B) | subject | revoked_spk (32B) | reason (1B) | ts (8B) |
//	+------------+-----------+-------------+---------+-------------------+-------------+---------+
//
// A rotation has two signatures over the same body, by the old key and by the new one; a revocation one, by the revoked key.

const (
	rotationPrefix   = "v=dmp1;t=rotation;"
	rotationMagic    = "DMPROT1"
	revocationPrefix = "v=dmp1;t=revocation;"
	revocationMagic  = "DMPRV01"
)

// Types of a subject.
const (
	SubjectUser      = 1 // user@host
	SubjectCluster   = 2 // a DNS name
	SubjectBootstrap = 3 // a DNS name
)

// Rotation is a rotation.
type Rotation struct {
	Type               uint8
	Subject            string // as it is in the record
	Old, New           [32]byte
	Seq, TsSec, ExpSec uint64 // TsSec is never checked
}

// Verify reads a rotation and checks both signatures. old, if not nil, is the key that it must rotate, expected, if not empty, the
// subject that it must be of. On a refusal x is not changed.
func (x *Rotation) Verify(text []byte, old *[32]byte, expected string, nowSec int64) Refusal {
	blob, r := unwrap(text, rotationPrefix, recordWireMax, true)
	if r != Accepted {
		return r
	}
	if len(blob) < 7+2*sigLen {
		return BadLength
	}
	body, sigs := blob[:len(blob)-2*sigLen], blob[len(blob)-2*sigLen:]
	f := fields{body, true}
	if string(f.take(7)) != rotationMagic {
		return BadMagic
	}
	y := Rotation{Type: f.u8()}
	if y.Subject, r = f.subject(y.Type, 3*8+2*32); r != Accepted {
		return r
	}
	y.Old, y.New = f.key(), f.key()
	y.Seq, y.TsSec, y.ExpSec = f.u64(), f.u64(), f.u64()
	if y.Old == y.New {
		return BadKey
	}
	if !VerifyEd25519(y.Old[:], body, sigs[:sigLen]) || !VerifyEd25519(y.New[:], body, sigs[sigLen:]) {
		return BadSignature
	}
	if old != nil && *old != y.Old {
		return BadKey
	}
	if expected != "" && !sameSubject(y.Type, y.Subject, expected) {
		return BadSubject
	}
	if r := checkExp(y.ExpSec, nowSec, fiveYears); r != Accepted {
		return r
	}
	*x = y
	return Accepted
}

// Append appends the text, signed by both keys. Old and New are theirs, whatever the fields say.
func (x *Rotation) Append(dst []byte, oldKey, newKey ed25519.PrivateKey) []byte {
	body := append([]byte(nil), rotationMagic...)
	body = append(body, x.Type, byte(len(x.Subject)))
	body = append(body, x.Subject...)
	body = append(body, oldKey.Public().(ed25519.PublicKey)...)
	body = append(body, newKey.Public().(ed25519.PublicKey)...)
	body = binary.BigEndian.AppendUint64(body, x.Seq)
	body = binary.BigEndian.AppendUint64(body, x.TsSec)
	body = binary.BigEndian.AppendUint64(body, x.ExpSec)
	return wrap(dst, rotationPrefix, body, oldKey, newKey)
}

// Revocation is a revocation.
type Revocation struct {
	Type    uint8
	Subject string // as it is in the record
	Revoked [32]byte
	Reason  uint8 // 1 compromise, 2 routine, 3 lost key, 4 other
	TsSec   uint64
}

// Verify reads a revocation and checks its signature. revoked and expected are as in Rotation.Verify; maxAgeSec 0 is any age. On a
// refusal x is not changed.
func (x *Revocation) Verify(text []byte, revoked *[32]byte, expected string, maxAgeSec uint64, nowSec int64) Refusal {
	blob, r := unwrap(text, revocationPrefix, recordWireMax, true)
	if r != Accepted {
		return r
	}
	if len(blob) < 7+sigLen {
		return BadLength
	}
	body, sig := blob[:len(blob)-sigLen], blob[len(blob)-sigLen:]
	f := fields{body, true}
	if string(f.take(7)) != revocationMagic {
		return BadMagic
	}
	y := Revocation{Type: f.u8()}
	if y.Subject, r = f.subject(y.Type, 32+1+8); r != Accepted {
		return r
	}
	y.Revoked, y.Reason, y.TsSec = f.key(), f.u8(), f.u64()
	if y.Reason < 1 || y.Reason > 4 {
		return BadCount
	}
	if !VerifyEd25519(y.Revoked[:], body, sig) {
		return BadSignature
	}
	if revoked != nil && *revoked != y.Revoked {
		return BadKey
	}
	if expected != "" && !sameSubject(y.Type, y.Subject, expected) {
		return BadSubject
	}
	now := unsigned(nowSec)
	if maxAgeSec > 0 && y.TsSec < now && now-y.TsSec > maxAgeSec {
		return TooOld
	}
	if y.TsSec > now && y.TsSec-now > recordSkewSec {
		return NotYet
	}
	*x = y
	return Accepted
}

// Append appends the text, signed. Revoked is the key's, whatever the field says.
func (x *Revocation) Append(dst []byte, key ed25519.PrivateKey) []byte {
	body := append([]byte(nil), revocationMagic...)
	body = append(body, x.Type, byte(len(x.Subject)))
	body = append(body, x.Subject...)
	body = append(body, key.Public().(ed25519.PublicKey)...)
	body = append(body, x.Reason)
	body = binary.BigEndian.AppendUint64(body, x.TsSec)
	return wrap(dst, revocationPrefix, body, key)
}

// subject reads a subject of a type, behind which exactly tail bytes must follow.
func (f *fields) subject(kind uint8, tail int) (string, Refusal) {
	n := int(f.u8())
	b := f.take(n)
	switch {
	case !f.ok || len(f.rest) < tail:
		return "", BadField
	case len(f.rest) > tail:
		return "", BadTrailing
	case kind < SubjectUser || kind > SubjectBootstrap:
		return "", BadCount
	case n < 1 || kind != SubjectUser && n > nameFieldMax || !utf8.Valid(b):
		return "", BadField
	}
	host := string(b)
	if kind == SubjectUser {
		var user string
		var at bool
		if user, host, at = cutUser(host); !at || user == "" || host == "" {
			return "", BadName
		}
	}
	if !DNSName(strings.TrimSuffix(host, ".")) { // which allows one more dot: as the readers in use
		return "", BadName
	}
	return string(b), Accepted
}

// cutUser splits user@host at the first @ and trims both.
func cutUser(s string) (user, host string, at bool) {
	user, host, at = strings.Cut(s, "@")
	return strings.TrimFunc(user, space), strings.TrimFunc(host, space), at
}

// space is what Python trims: Go's white space and the four separators of ASCII.
func space(r rune) bool { return unicode.IsSpace(r) || 0x1C <= r && r <= 0x1F }

// sameSubject compares a subject with the one that a reader expects. The user's half has case.
func sameSubject(kind uint8, got, expected string) bool {
	if kind == SubjectUser {
		gotUser, gotHost, _ := cutUser(got)
		user, host, at := cutUser(expected)
		if !at || user != gotUser {
			return false
		}
		got, expected = gotHost, host
	}
	return sameName(strings.TrimSuffix(got, "."), expected)
}
