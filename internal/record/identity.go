package record

import (
	"crypto/ed25519"
	"encoding/binary"
	"slices"
	"unicode/utf8"
)

// An identity (records.md 4): a user's two public keys. Text: "v=dmp1;t=identity;d=" and base64, read leniently. Body:
//
//	+-------------+----------+-----------------+-------------------+---------+ - - - - - - - - - - - - +
//	| length (1B) | username | x25519_pk (32B) | ed25519_spk (32B) | ts (8B) | length (1B) | versions  |
//	+-------------+----------+-----------------+-------------------+---------+ - - - - - - - - - - - - +
//
// The signature is by ed25519_spk. Without the last part, versions is {1}. No clock, no bound on the text.

const (
	identityPrefix = "v=dmp1;t=identity;d="
	usernameMax    = 64
)

// Identity is an identity.
type Identity struct {
	Username string // UTF-8, any character
	X25519   [32]byte
	Signer   [32]byte
	TsSec    uint64
	Versions []byte // ascending; nil if the record has none, which means {1}
}

// Verify reads an identity and checks its signature. On a refusal x is not changed.
func (x *Identity) Verify(text []byte) Refusal {
	blob, r := unwrap(text, identityPrefix, 0, false)
	if r != Accepted {
		return r
	}
	if len(blob) < sigLen+1 {
		return BadLength
	}
	body, sig := blob[:len(blob)-sigLen], blob[len(blob)-sigLen:]
	if len(body) < 74 {
		return BadLength
	}
	f := fields{body, true}
	n := int(f.u8())
	if n < 1 || n > usernameMax {
		return BadField
	}
	var y Identity
	username := f.take(n)
	y.X25519, y.Signer, y.TsSec = f.key(), f.key(), f.u64()
	if !f.ok {
		return BadLength
	}
	if !utf8.Valid(username) {
		return BadField
	}
	y.Username = string(username)
	if len(f.rest) > 0 {
		n := int(f.u8())
		if n == 0 || n != len(f.rest) {
			return BadTrailing
		}
		y.Versions = f.take(n)
		for i, v := range y.Versions[1:] {
			if v <= y.Versions[i] {
				return BadCount
			}
		}
	}
	if !VerifyEd25519(y.Signer[:], body, sig) {
		return BadSignature
	}
	*x = y
	return Accepted
}

// Append appends the text, signed. Signer is the key's, whatever the field says.
func (x *Identity) Append(dst []byte, key ed25519.PrivateKey) []byte {
	body := append([]byte{byte(len(x.Username))}, x.Username...)
	body = append(body, x.X25519[:]...)
	body = append(body, key.Public().(ed25519.PublicKey)...)
	body = binary.BigEndian.AppendUint64(body, x.TsSec)
	if len(x.Versions) > 0 {
		body = append(body, byte(len(x.Versions)))
		body = slices.Concat(body, x.Versions)
	}
	return wrap(dst, identityPrefix, body, key)
}
