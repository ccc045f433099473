package record

import (
	"crypto/ed25519"
	"encoding/binary"
)

// A slot manifest (records.md 5) announces a message: where its chunks are, and their hashes. Text: "v=dmp1;t=manifest;d=" and
// base64, read leniently. Body:
//
//	+--------------+------------------+--------------------+-----------+-----------+----------------+---------+----------+ - - - - +
//	| msg_id (16B) | sender_spk (32B) | recipient_id (32B) | n (4B)    | k (4B)    | prekey_id (4B) | ts (8B) | exp (8B) | n * 32B |
//	+--------------+------------------+--------------------+-----------+-----------+----------------+---------+----------+ - - - - +
//
// The signature is by sender_spk. The hashes are there all or not at all. Readers drop what has expired; the parser does not.

const (
	manifestPrefix = "v=dmp1;t=manifest;d="
	manifestFixed  = 108
	chunksMax      = 1024
)

// Manifest is a slot manifest.
type Manifest struct {
	MsgID       [16]byte
	Sender      [32]byte
	RecipientID [32]byte
	Total, Data uint32 // chunks n, and how many of them suffice
	PrekeyID    uint32 // 0: the long-term key
	TsSec       uint64
	ExpSec      uint64
	Hashes      []byte // 32 bytes a chunk, or nil
}

// Verify reads a manifest and checks its signature. On a refusal m is not changed.
func (m *Manifest) Verify(text []byte, nowSec int64) Refusal {
	blob, r := unwrap(text, manifestPrefix, 0, false)
	if r != Accepted {
		return r
	}
	if len(blob) < manifestFixed+sigLen {
		return BadLength
	}
	body, sig := blob[:len(blob)-sigLen], blob[len(blob)-sigLen:]
	f := fields{body, true}
	var y Manifest
	copy(y.MsgID[:], f.take(16))
	y.Sender, y.RecipientID = f.key(), f.key()
	y.Total, y.Data, y.PrekeyID = f.u32(), f.u32(), f.u32()
	y.TsSec, y.ExpSec = f.u64(), f.u64()
	if len(f.rest) > 0 {
		if uint64(len(f.rest)) != 32*uint64(y.Total) {
			return BadLength
		}
		y.Hashes = f.rest
	}
	if y.Total > chunksMax || y.Data < 1 || y.Data > y.Total {
		return BadCount
	}
	if !VerifyEd25519(y.Sender[:], body, sig) {
		return BadSignature
	}
	if r := checkLife(y.ExpSec, nowSec, month); r != Accepted {
		return r
	}
	*m = y
	return Accepted
}

// Append appends the text, signed. Sender is the key's, whatever the field says.
func (m *Manifest) Append(dst []byte, key ed25519.PrivateKey) []byte {
	body := append(make([]byte, 0, manifestFixed+len(m.Hashes)+sigLen), m.MsgID[:]...)
	body = append(body, key.Public().(ed25519.PublicKey)...)
	body = append(body, m.RecipientID[:]...)
	body = binary.BigEndian.AppendUint32(body, m.Total)
	body = binary.BigEndian.AppendUint32(body, m.Data)
	body = binary.BigEndian.AppendUint32(body, m.PrekeyID)
	body = binary.BigEndian.AppendUint64(body, m.TsSec)
	body = binary.BigEndian.AppendUint64(body, m.ExpSec)
	return wrap(dst, manifestPrefix, append(body, m.Hashes...), key)
}
