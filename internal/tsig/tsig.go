// Package tsig signs and verifies transactions (RFC 8945) and holds the keys with what each may change (spec dns.md 6 and 7).
package tsig

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"hash"

	"github.com/dnsmesh/dmpd/internal/wire"
)

// Alg is an algorithm (RFC 8945 6). hmac-md5 and hmac-sha1 are not among them.
type Alg uint8

const (
	NoAlg Alg = iota
	SHA256
	SHA384
	SHA512
	SHA224
	SHA256_128
	SHA384_192
	SHA512_256
	algs
)

type algInfo struct {
	text string
	name []byte // wire form
	size int    // of the MAC
	hash int    // which state of a Signer
}

const (
	hash256 = iota
	hash224
	hash384
	hash512
	hashes
)

var algTable = func() [algs]algInfo {
	t := [algs]algInfo{
		SHA256: {text: "hmac-sha256", size: 32, hash: hash256}, SHA384: {text: "hmac-sha384", size: 48, hash: hash384}, SHA512: {text: "hmac-sha512", size: 64, hash: hash512},
		SHA224: {text: "hmac-sha224", size: 28, hash: hash224}, SHA256_128: {text: "hmac-sha256-128", size: 16, hash: hash256}, SHA384_192: {text: "hmac-sha384-192", size: 24, hash: hash384},
		SHA512_256: {text: "hmac-sha512-256", size: 32, hash: hash512},
	}
	for i := range t {
		t[i].name = wire.MustName(t[i].text)
	}
	return t
}()

func (a Alg) String() string { return algTable[a].text }

// ParseAlg reads an algorithm's name, in any case, a trailing dot allowed.
func ParseAlg(text string) (Alg, bool) {
	name, err := wire.AppendName(nil, text)
	if err != nil {
		return NoAlg, false
	}
	return algOf(name)
}

func algOf(name []byte) (Alg, bool) {
	for a := SHA256; a < algs; a++ {
		if wire.EqualName(algTable[a].name, name) {
			return a, true
		}
	}
	return NoAlg, false
}

const (
	// Fudge is what responses carry, and the widest window that a request gets (dns.md 6.2).
	Fudge = 300
	// SecretMax bounds a secret; longer than any hash's block there is nothing to gain.
	SecretMax = 256
	blockMax  = 128 // of SHA-512
)

// TSIG error codes (RFC 8945 3).
const (
	ErrBadSig   = 16
	ErrBadKey   = 17
	ErrBadTime  = 18
	ErrBadTrunc = 22
)

// ErrorOf gives the TSIG error that a fault stands for.
func ErrorOf(f wire.Fault) uint16 {
	switch f {
	case wire.BadKey:
		return ErrBadKey
	case wire.BadSig:
		return ErrBadSig
	case wire.BadTime:
		return ErrBadTime
	case wire.BadTrunc:
		return ErrBadTrunc
	}
	return 0
}

// Record is a TSIG record, read. MAC and Other lie in the message.
type Record struct {
	Alg     Alg // NoAlg if it is none that is spoken here
	AlgName [wire.NameMax]byte
	AlgLen  int
	TimeSec uint64
	Fudge   uint16
	MAC     []byte
	OrigID  uint16
	Error   uint16
	Other   []byte // in the message; digested, and of no meaning in a request
}

// Read reads the TSIG record of a message (RFC 8945 4.2).
func (r *Record) Read(m *wire.Message) wire.Fault {
	rr := m.TSIG
	if rr.Class != wire.ClassANY || rr.TTL != 0 {
		return wire.BadTSIG
	}
	b := m.RData(rr)
	// The algorithm's name is not compressed.
	n := 0
	for {
		if n >= len(b) || n >= wire.NameMax {
			return wire.BadTSIG
		}
		l := int(b[n])
		if l == 0 {
			n++
			break
		}
		if l > wire.LabelMax {
			return wire.BadTSIG
		}
		n += 1 + l
	}
	if n > wire.NameMax || n+16 > len(b) {
		return wire.BadTSIG
	}
	r.AlgLen = len(wire.AppendLower(r.AlgName[:0], b[:n]))
	r.Alg, _ = algOf(r.AlgName[:r.AlgLen])
	b = b[n:]
	r.TimeSec = uint64(binary.BigEndian.Uint16(b))<<32 | uint64(binary.BigEndian.Uint32(b[2:]))
	r.Fudge = binary.BigEndian.Uint16(b[6:])
	size := int(binary.BigEndian.Uint16(b[8:]))
	b = b[10:]
	if size+6 > len(b) {
		return wire.BadTSIG
	}
	r.MAC = b[:size]
	b = b[size:]
	r.OrigID, r.Error = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	if 6+int(binary.BigEndian.Uint16(b[4:])) != len(b) || r.Error != 0 { // a request reports no error
		return wire.BadTSIG
	}
	r.Other = b[6:]
	return wire.OK
}

// Signer computes MACs with hash states of its own, so that nothing is allocated. One goroutine at a time.
type Signer struct {
	states [hashes]hash.Hash
	pad    [blockMax]byte
	inner  [64]byte
	sum    [64]byte
	other  [6]byte
	vars   []byte
}

func (s *Signer) state(alg Alg) hash.Hash {
	h := &s.states[algTable[alg].hash]
	if *h == nil {
		switch algTable[alg].hash {
		case hash256:
			*h = sha256.New()
		case hash224:
			*h = sha256.New224()
		case hash384:
			*h = sha512.New384()
		case hash512:
			*h = sha512.New()
		}
		if s.vars == nil {
			s.vars = make([]byte, 0, 2*wire.NameMax+64)
		}
	}
	return *h
}

// begin and end are HMAC (RFC 2104) around what is written between them.
func (s *Signer) begin(h hash.Hash, secret []byte) { s.padded(h, secret, 0x36) }

func (s *Signer) padded(h hash.Hash, secret []byte, with byte) {
	n := h.BlockSize()
	if len(secret) > n {
		h.Reset()
		h.Write(secret)
		secret = h.Sum(s.sum[:0])
	}
	copy(s.pad[:n], secret)
	clear(s.pad[min(len(secret), n):n])
	for i := range s.pad[:n] {
		s.pad[i] ^= with
	}
	h.Reset()
	h.Write(s.pad[:n])
}

func (s *Signer) end(h hash.Hash, secret []byte) []byte {
	sum := h.Sum(s.inner[:0])
	s.padded(h, secret, 0x5C)
	h.Write(sum)
	return h.Sum(s.sum[:0])
}

// variables appends the TSIG variables of RFC 8945 4.3.3.
func variables(dst, keyName, algName []byte, timeSec uint64, fudge, tsigErr uint16, other []byte) []byte {
	dst = append(dst, keyName...)
	dst = append(dst, 0, wire.ClassANY, 0, 0, 0, 0)
	dst = append(dst, algName...)
	dst = append(dst, byte(timeSec>>40), byte(timeSec>>32), byte(timeSec>>24), byte(timeSec>>16), byte(timeSec>>8), byte(timeSec))
	dst = binary.BigEndian.AppendUint16(dst, fudge)
	dst = binary.BigEndian.AppendUint16(dst, tsigErr)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(other)))
	return append(dst, other...)
}

// Verify checks a request that was read and has a TSIG record (RFC 8945 5.2): key, algorithm, MAC, and only then time. rec is filled in
// any case but BadTSIG. k is what the table gave for the record's owner; nil is an unknown key.
func (s *Signer) Verify(m *wire.Message, rec *Record, k *Key, nowSec int64) wire.Fault {
	if f := rec.Read(m); f != wire.OK {
		return f
	}
	if k == nil || !k.Live(nowSec) || rec.Alg != k.Alg || rec.Alg == NoAlg {
		return wire.BadKey
	}
	size := algTable[k.Alg].size
	if len(rec.MAC) > size {
		return wire.BadTSIG // RFC 8945 5.2.2.1
	}
	if len(rec.MAC) < size {
		return wire.BadTrunc // the full MAC is this node's policy
	}
	h := s.state(k.Alg)
	s.begin(h, k.Secret)
	// The message as it was before the TSIG record was added, with its original ID.
	head := append(s.vars[:0], byte(rec.OrigID>>8), byte(rec.OrigID))
	head = append(head, m.Msg[2:wire.HeaderSize]...)
	binary.BigEndian.PutUint16(head[wire.Additional:], binary.BigEndian.Uint16(head[wire.Additional:])-1)
	h.Write(head)
	h.Write(m.Msg[wire.HeaderSize:m.TSIG.Off])
	s.vars = variables(s.vars[:0], m.TSIG.Name, algTable[k.Alg].name, rec.TimeSec, rec.Fudge, 0, nil)
	if len(rec.Other) > 0 {
		binary.BigEndian.PutUint16(s.vars[len(s.vars)-2:], uint16(len(rec.Other)))
	}
	h.Write(s.vars)
	h.Write(rec.Other)
	if !hmac.Equal(s.end(h, k.Secret)[:size], rec.MAC) {
		return wire.BadSig
	}
	if delta := nowSec - int64(rec.TimeSec); max(delta, -delta) > int64(min(rec.Fudge, Fudge)) {
		return wire.BadTime
	}
	return wire.OK
}

// Sign appends a signed TSIG record to the response that begins at start (RFC 8945 5.3) and counts it. For BADTIME the time is the
// client's, and the server's stands in the other data (RFC 8945 5.2.3).
func (s *Signer) Sign(dst []byte, start int, k *Key, reqMAC []byte, origID uint16, nowSec int64, tsigErr uint16, clientSec uint64) []byte {
	h := s.state(k.Alg)
	timeSec := uint64(nowSec)
	var other []byte
	if tsigErr == ErrBadTime {
		for i := range s.other {
			s.other[i] = byte(uint64(nowSec) >> (40 - 8*i))
		}
		other, timeSec = s.other[:], clientSec
	}
	s.begin(h, k.Secret)
	s.vars = binary.BigEndian.AppendUint16(s.vars[:0], uint16(len(reqMAC)))
	s.vars = append(s.vars, reqMAC...)
	// The ID that the client gave: it differs from the header's if the request was forwarded (RFC 8945 5.5).
	s.vars = binary.BigEndian.AppendUint16(s.vars, origID)
	h.Write(s.vars)
	h.Write(dst[start+2:])
	s.vars = variables(s.vars[:0], k.Name, algTable[k.Alg].name, timeSec, Fudge, tsigErr, other)
	h.Write(s.vars)
	mac := s.end(h, k.Secret)[:algTable[k.Alg].size]
	return appendRecord(dst, start, k.Name, algTable[k.Alg].name, timeSec, mac, origID, tsigErr, other)
}

// AppendUnsigned appends the TSIG record without a MAC that reports BADKEY, BADSIG or BADTRUNC (RFC 8945 5.3.2).
func AppendUnsigned(dst []byte, start int, keyName []byte, rec *Record, nowSec int64, tsigErr uint16) []byte {
	return appendRecord(dst, start, keyName, rec.AlgName[:rec.AlgLen], uint64(nowSec), nil, rec.OrigID, tsigErr, nil)
}

func appendRecord(dst []byte, start int, keyName, algName []byte, timeSec uint64, mac []byte, origID, tsigErr uint16, other []byte) []byte {
	dst = wire.AppendRR(dst, start, keyName, wire.TypeTSIG, wire.ClassANY, 0, len(algName)+16+len(mac)+len(other))
	dst = append(dst, algName...)
	dst = append(dst, byte(timeSec>>40), byte(timeSec>>32), byte(timeSec>>24), byte(timeSec>>16), byte(timeSec>>8), byte(timeSec))
	dst = binary.BigEndian.AppendUint16(dst, Fudge)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(mac)))
	dst = append(dst, mac...)
	dst = binary.BigEndian.AppendUint16(dst, origID)
	dst = binary.BigEndian.AppendUint16(dst, tsigErr)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(other)))
	dst = append(dst, other...)
	wire.Count(dst, start, wire.Additional, 1)
	return dst
}

// RecordSize bounds the TSIG record of a response signed with k, for the room that an answer has.
func RecordSize(k *Key) int {
	a := &algTable[k.Alg]
	return len(k.Name) + 10 + len(a.name) + 16 + a.size + 6
}
