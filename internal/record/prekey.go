package record

import (
	"crypto/ed25519"
	"encoding/binary"
)

// A prekey (records.md 6): a key for one message, taken by who writes to its owner. Text: "v=dmp1;t=prekey;d=" and base64. Body:
//
//	+---------+------------------+----------+
//	| id (4B) | x25519_pub (32B) | exp (8B) |
//	+---------+------------------+----------+
//
// The signature is by the owner's identity key, which the record does not hold: a node cannot check it, and holds prekeys to
// structural alone. Clients read leniently, nodes strictly.

const prekeyPrefix = "v=dmp1;t=prekey;d="

// Prekey is a prekey.
type Prekey struct {
	ID     uint32 // not 0
	X25519 [32]byte
	ExpSec uint64
}

// Verify reads a prekey as a client does, who has the owner's key. On a refusal p is not changed.
func (p *Prekey) Verify(text []byte, signer *[32]byte, nowSec int64) Refusal {
	blob, r := unwrap(text, prekeyPrefix, 0, false)
	if r != Accepted {
		return r
	}
	if len(blob) != 44+sigLen {
		return BadLength
	}
	f := fields{blob, true}
	y := Prekey{ID: f.u32(), X25519: f.key(), ExpSec: f.u64()}
	if y.ID == 0 {
		return BadCount
	}
	if !VerifyEd25519(signer[:], blob[:44], blob[44:]) {
		return BadSignature
	}
	if r := checkLife(y.ExpSec, nowSec, month); r != Accepted {
		return r
	}
	*p = y
	return Accepted
}

// Append appends the text, signed.
func (p *Prekey) Append(dst []byte, key ed25519.PrivateKey) []byte {
	body := binary.BigEndian.AppendUint32(nil, p.ID)
	body = append(body, p.X25519[:]...)
	return wrap(dst, prekeyPrefix, binary.BigEndian.AppendUint64(body, p.ExpSec), key)
}
