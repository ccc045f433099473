package tsig

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/dnsmesh/dmpd/internal/wire"
)

// The payload of a frame of the state log, and a state snapshot, is a sequence of entries; a frame's take effect together:
//
//	| kind (1B) | length (4B, big-endian) | body |
//
// Kinds up to 15 concern both planes; from 16 on they are the control plane's own, and the data plane passes over them.
type StateKind uint8

const (
	StateKeyPut     StateKind = 1  // body: a key
	StateKeyDelete  StateKind = 2  // body: a key's name in wire form
	StateControl    StateKind = 16 // first of the control plane's own
	stateHeaderSize           = 5
	// StateBodyMax bounds one entry.
	StateBodyMax = 64 << 10
)

// ErrState says that bytes are no entry.
var ErrState = errors.New("tsig: bad state entry")

// AppendState appends an entry.
func AppendState(dst []byte, kind StateKind, body []byte) []byte {
	dst = append(dst, byte(kind))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(body)))
	return append(dst, body...)
}

// ReadState calls f for each entry. Bodies lie in p.
func ReadState(p []byte, f func(kind StateKind, body []byte) error) error {
	for len(p) > 0 {
		if len(p) < stateHeaderSize {
			return fmt.Errorf("%w: %d bytes", ErrState, len(p))
		}
		n := binary.BigEndian.Uint32(p[1:])
		if n > StateBodyMax || int(n) > len(p)-stateHeaderSize {
			return fmt.Errorf("%w: a body of %d bytes", ErrState, n)
		}
		end := stateHeaderSize + int(n)
		if err := f(StateKind(p[0]), p[stateHeaderSize:end:end]); err != nil {
			return err
		}
		p = p[end:]
	}
	return nil
}

// A key's body, strings with their length in two bytes before them:
//
//	| format 1 (1B) | algorithm (1B) | flags (1B) | created (8B) | expires (8B) | name | secret | subject | ed25519 | x25519 | note | scopes (2B) | scope text ... |
const (
	keyFormat    = 1
	flagRevoked  = 1
	flagOperator = 2
	// ScopesMax bounds a key's patterns; registration mints eight.
	ScopesMax = 64
)

// AppendKey appends a key's body.
func AppendKey(dst []byte, k *Key) []byte {
	flags := byte(0)
	if k.Revoked {
		flags |= flagRevoked
	}
	if k.Operator {
		flags |= flagOperator
	}
	dst = append(dst, keyFormat, byte(k.Alg), flags)
	dst = binary.BigEndian.AppendUint64(dst, uint64(k.CreatedAtSec))
	dst = binary.BigEndian.AppendUint64(dst, uint64(k.ExpiresAtSec))
	for _, b := range [][]byte{k.Name, k.Secret, []byte(k.Subject), k.Ed25519, k.X25519, []byte(k.Note)} {
		dst = appendBytes(dst, b)
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(k.Scopes)))
	for i := range k.Scopes {
		dst = appendBytes(dst, []byte(k.Scopes[i].String()))
	}
	return dst
}

func appendBytes(dst, b []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(b)))
	return append(dst, b...)
}

// ReadKey reads a key's body. The key owns its bytes.
func ReadKey(p []byte) (*Key, error) {
	bad := fmt.Errorf("%w: a key", ErrState)
	if len(p) < 19 || p[0] != keyFormat || Alg(p[1]) == NoAlg || Alg(p[1]) >= algs || p[2] > flagRevoked|flagOperator {
		return nil, bad
	}
	p = append([]byte(nil), p...)
	k := &Key{Alg: Alg(p[1]), Revoked: p[2]&flagRevoked != 0, Operator: p[2]&flagOperator != 0,
		CreatedAtSec: int64(binary.BigEndian.Uint64(p[3:])), ExpiresAtSec: int64(binary.BigEndian.Uint64(p[11:]))}
	p = p[19:]
	next := func() []byte {
		if len(p) < 2 || int(binary.BigEndian.Uint16(p)) > len(p)-2 {
			p = nil
			return nil
		}
		n := 2 + int(binary.BigEndian.Uint16(p))
		b := p[2:n:n]
		p = p[n:]
		return b
	}
	k.Name, k.Secret = next(), next()
	k.Subject = string(next())
	k.Ed25519, k.X25519 = next(), next()
	k.Note = string(next())
	if len(p) < 2 || !validKeyName(k.Name) || len(k.Secret) == 0 || len(k.Secret) > SecretMax ||
		len(k.Ed25519) != 0 && len(k.Ed25519) != 32 || len(k.X25519) != 0 && len(k.X25519) != 32 {
		return nil, bad
	}
	n := int(binary.BigEndian.Uint16(p))
	p = p[2:]
	if n > ScopesMax {
		return nil, bad
	}
	for range n {
		if len(p) < 2 {
			return nil, bad
		}
		s, err := ParseScope(string(next()))
		if err != nil {
			return nil, bad
		}
		k.Scopes = append(k.Scopes, s)
	}
	if p == nil && n > 0 || len(p) > 0 {
		return nil, bad
	}
	return k, nil
}

// validKeyName checks a key's name: wire form, lower case, not the root.
func validKeyName(name []byte) bool {
	if len(name) < 2 || !wire.ValidName(name) {
		return false
	}
	for _, c := range name {
		if 'A' <= c && c <= 'Z' {
			return false
		}
	}
	return true
}
