package record

import (
	"crypto/ed25519"
	"encoding/binary"
	"unicode/utf8"
)

// A claim (records.md 8): "I left a message for this mailbox". It is the one record that anybody may publish without a key of the
// node. Text: "v=dmp1;t=claim;" and the strict base64 of body and signature. Body, integers big-endian:
//
//	+-------------+--------------+-----------------+------------+------------+-----------+---------+----------+
//	| magic (7B)  | msg_id (16B) | sender_spk (32B)| length (1B)| domain     | slot (1B) | ts (8B) | exp (8B) |
//	+-------------+--------------+-----------------+------------+------------+-----------+---------+----------+
//
// The signature, Ed25519 by sender_spk, is over the body. The recipient is in the owner name only.

const (
	claimPrefix    = "v=dmp1;t=claim;"
	claimMagic     = "DMPCL01"
	claimFixed     = 7 + 16 + 32 + 1 + 1 + 8 + 8 // body without the domain
	claimWireMax   = 255
	claimDomainMax = 43
	claimBlobMax   = (claimWireMax - len(claimPrefix)) / 4 * 3

	claimSkewSec = 300        // how far ahead ts may be
	claimLifeSec = 30 * 86400 // how far ahead exp may be
)

// Claim is a claim. After Parse it owns its bytes.
type Claim struct {
	MsgID  [16]byte
	Sender [32]byte // Ed25519 public key
	Slot   uint8
	TsSec  uint64 // below 2^63, as is ExpSec
	ExpSec uint64

	domain int
	size   int                // of body and signature
	blob   [claimBlobMax]byte // as decoded
}

// Domain is the sender's mailbox domain.
func (c *Claim) Domain() []byte { return c.blob[56 : 56+c.domain] }

// Parse reads a claim's text; times against the clock and the signature are checked by Check and Verify. No allocation.
func (c *Claim) Parse(text []byte) Refusal {
	if len(text) < len(claimPrefix) || string(text[:len(claimPrefix)]) != claimPrefix {
		return BadPrefix
	}
	if len(text) > claimWireMax {
		return BadLength
	}
	blob, ok := AppendBase64Strict(c.blob[:0], text[len(claimPrefix):])
	if !ok {
		return BadBase64
	}
	c.size = len(blob)
	if len(blob) < ed25519.SignatureSize+claimFixed+1 {
		return BadLength
	}
	body := blob[:len(blob)-ed25519.SignatureSize]
	if string(body[:7]) != claimMagic {
		return BadMagic
	}
	copy(c.MsgID[:], body[7:])
	copy(c.Sender[:], body[23:])
	c.domain = int(body[55])
	if c.domain < 1 || c.domain > claimDomainMax || 56+c.domain > len(body) {
		return BadDomain
	}
	domain, rest := body[56:56+c.domain], body[56+c.domain:]
	if !utf8.Valid(domain) {
		return BadDomain
	}
	for _, b := range domain {
		if b < 0x21 || b == 0x7F {
			return BadDomain
		}
	}
	if len(rest) < 1 {
		return BadLength
	}
	if c.Slot = rest[0]; c.Slot > 9 {
		return BadSlot
	}
	if len(rest) < 17 {
		return BadLength
	}
	if len(rest) > 17 {
		return BadTrailing
	}
	c.TsSec, c.ExpSec = binary.BigEndian.Uint64(rest[1:]), binary.BigEndian.Uint64(rest[9:])
	if c.ExpSec <= c.TsSec || c.ExpSec >= 1<<63 {
		return BadTimes
	}
	return Accepted
}

// Check compares the claim's times with the clock. Past ts is fine at any age (dns.md 8.3).
func (c *Claim) Check(nowSec int64) Refusal {
	now := uint64(max(nowSec, 0))
	if c.TsSec > now && c.TsSec-now > claimSkewSec {
		return NotYet
	}
	if c.ExpSec <= now {
		return Expired
	}
	if c.ExpSec-now > claimLifeSec {
		return LivesTooLong
	}
	return Accepted
}

// VerifySignature checks the sender's signature: about 60 us, so everything cheaper comes before it.
func (c *Claim) VerifySignature() bool {
	n := c.size - ed25519.SignatureSize
	return VerifyEd25519(c.Sender[:], c.blob[:n], c.blob[n:c.size])
}

// Verify is Parse, Check and VerifySignature.
func (c *Claim) Verify(text []byte, nowSec int64) Refusal {
	if r := c.Parse(text); r != Accepted {
		return r
	}
	if r := c.Check(nowSec); r != Accepted {
		return r
	}
	if !c.VerifySignature() {
		return BadSignature
	}
	return Accepted
}

// AppendClaim appends the text of the claim with these fields, signed.
func AppendClaim(dst []byte, key ed25519.PrivateKey, msgID [16]byte, domain string, slot uint8, tsSec, expSec uint64) []byte {
	body := append(make([]byte, 0, claimBlobMax), claimMagic...)
	body = append(body, msgID[:]...)
	body = append(body, key.Public().(ed25519.PublicKey)...)
	body = append(body, byte(len(domain)))
	body = append(body, domain...)
	body = append(body, slot)
	body = binary.BigEndian.AppendUint64(body, tsSec)
	body = binary.BigEndian.AppendUint64(body, expSec)
	body = append(body, ed25519.Sign(key, body)...)
	return AppendBase64(append(dst, claimPrefix...), body)
}
