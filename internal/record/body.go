package record

import (
	"crypto/ed25519"
	"encoding/binary"
)

// What the record types have in common: text is a prefix and the base64 of a blob; a blob is a body and signatures over the
// whole of it. Nothing is signed beyond the body: neither prefix nor owner name (records.md 1).

const (
	recordWireMax = 1200 // bytes of text of heartbeat, cluster, bootstrap, rotation and revocation
	recordSkewSec = 300
	month         = 30 * 86400      // how far ahead exp may be: slot manifest, prekey, claim, heartbeat
	fiveYears     = 5 * 365 * 86400 // the same: cluster, bootstrap, rotation
	sigLen        = ed25519.SignatureSize
)

// unwrap gives the blob of a text. wireMax 0 is no bound.
func unwrap(text []byte, prefix string, wireMax int, strict bool) ([]byte, Refusal) {
	if len(text) < len(prefix) || string(text[:len(prefix)]) != prefix {
		return nil, BadPrefix
	}
	if wireMax > 0 && len(text) > wireMax {
		return nil, BadLength
	}
	text = text[len(prefix):]
	blob, ok := appendBase64(make([]byte, 0, len(text)/4*3+3), text, strict)
	if !ok {
		return nil, BadBase64
	}
	return blob, Accepted
}

// wrap is unwrap's inverse: the text of a body, signed by each key in turn.
func wrap(dst []byte, prefix string, body []byte, keys ...ed25519.PrivateKey) []byte {
	blob := body
	for _, key := range keys {
		blob = append(blob[:len(blob):len(blob)], ed25519.Sign(key, body)...)
	}
	return AppendBase64(append(dst, prefix...), blob)
}

// fields reads a body front to back. After a read beyond the end, ok is false and every read gives zeros.
type fields struct {
	rest []byte
	ok   bool
}

func (f *fields) take(n int) []byte {
	if n > len(f.rest) {
		f.rest, f.ok = nil, false
		return nil
	}
	b := f.rest[:n]
	f.rest = f.rest[n:]
	return b
}

func (f *fields) u8() (v uint8) {
	if b := f.take(1); b != nil {
		v = b[0]
	}
	return v
}

func (f *fields) u16() (v uint16) {
	if b := f.take(2); b != nil {
		v = binary.BigEndian.Uint16(b)
	}
	return v
}

func (f *fields) u32() (v uint32) {
	if b := f.take(4); b != nil {
		v = binary.BigEndian.Uint32(b)
	}
	return v
}

func (f *fields) u64() (v uint64) {
	if b := f.take(8); b != nil {
		v = binary.BigEndian.Uint64(b)
	}
	return v
}

func (f *fields) key() (k [32]byte) {
	copy(k[:], f.take(32))
	return k
}

// checkExp compares a u64 with the clock without wrapping. exp itself is still alive.
func checkExp(expSec uint64, nowSec int64, lifeSec uint64) Refusal {
	if expSec < unsigned(nowSec) {
		return Expired
	}
	return checkLife(expSec, nowSec, lifeSec)
}

// checkLife is for the types whose reader, not their parser, drops what has expired.
func checkLife(expSec uint64, nowSec int64, lifeSec uint64) Refusal {
	if now := unsigned(nowSec); expSec > now && expSec-now > lifeSec {
		return LivesTooLong
	}
	return Accepted
}

func unsigned(nowSec int64) uint64 { return uint64(max(nowSec, 0)) }
