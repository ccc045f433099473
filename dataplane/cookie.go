package dataplane

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
)

// Server cookies, RFC 9018 4, the form that servers of one anycast set can share:
//
//	+-------------+--------------+---------------+----------+
//	| version (1) | reserved (3) | timestamp (4) | hash (8) |
//	+-------------+--------------+---------------+----------+
//
// hash is SipHash-2-4 of client cookie, version, reserved, timestamp and client address.
const (
	clientCookieSize = 8
	serverCookieSize = 16
	cookieVersion    = 1

	// RFC 9018 4.3: a cookie is good for an hour, and for five minutes into the future; one older than half an hour is renewed. We
	// renew always: the answer carries a fresh one.
	cookieLifeSec   = 3600
	cookieFutureSec = 300

	// cookieSecretSec is how long a secret is used. The one before it stays valid, so that a change of secrets is not seen.
	cookieSecretSec = 24 * 3600
	cookieFile      = "cookie-secret" // current (16), the one before (16), time of the change in Unix seconds (8)
)

type cookieSecrets struct {
	now, before [16]byte
	madeSec     int64
}

// cookies makes and checks server cookies. check and append do not allocate.
type cookies struct {
	path    string
	secrets atomic.Pointer[cookieSecrets]
}

// openCookies reads the secrets of the folder or makes the first ones.
func openCookies(dir string, nowSec int64) (*cookies, error) {
	c := &cookies{path: filepath.Join(dir, cookieFile)}
	b, err := os.ReadFile(c.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("dataplane: %w", err)
	}
	if len(b) == 40 {
		s := &cookieSecrets{madeSec: int64(binary.BigEndian.Uint64(b[32:]))}
		copy(s.now[:], b)
		copy(s.before[:], b[16:])
		c.secrets.Store(s)
	}
	return c, c.rotate(nowSec)
}

// rotate takes a new secret when the current one is old, or from the future.
func (c *cookies) rotate(nowSec int64) error {
	old := c.secrets.Load()
	if old != nil && nowSec-old.madeSec < cookieSecretSec && old.madeSec-nowSec < cookieSecretSec {
		return nil
	}
	s := &cookieSecrets{madeSec: nowSec}
	rand.Read(s.now[:])
	if old != nil {
		s.before = old.now
	} else {
		rand.Read(s.before[:])
	}
	c.secrets.Store(s)
	b := append(append(append([]byte(nil), s.now[:]...), s.before[:]...), 0, 0, 0, 0, 0, 0, 0, 0)
	binary.BigEndian.PutUint64(b[32:], uint64(nowSec))
	// A crash in between costs the clients' cookies, nothing else, so that there is no sync.
	if err := os.WriteFile(c.path+".new", b, 0o600); err != nil {
		return fmt.Errorf("dataplane: %w", err)
	}
	if err := os.Rename(c.path+".new", c.path); err != nil {
		return fmt.Errorf("dataplane: %w", err)
	}
	return nil
}

// check says whether a COOKIE option carries a server cookie of ours for this client.
func (c *cookies) check(option []byte, from netip.Addr, nowSec uint32) bool {
	if len(option) != clientCookieSize+serverCookieSize || option[clientCookieSize] != cookieVersion {
		return false
	}
	age := int32(nowSec - binary.BigEndian.Uint32(option[12:])) // serial arithmetic, RFC 1982
	if age > cookieLifeSec || age < -cookieFutureSec {
		return false
	}
	s := c.secrets.Load()
	for _, secret := range [...]*[16]byte{&s.now, &s.before} {
		var want [8]byte
		binary.LittleEndian.PutUint64(want[:], cookieHash(secret, option[:16], from))
		if subtle.ConstantTimeCompare(want[:], option[16:]) == 1 {
			return true
		}
	}
	return false
}

// append appends the whole COOKIE option's data: client cookie and a fresh server cookie.
func (c *cookies) append(dst, clientCookie []byte, from netip.Addr, nowSec uint32) []byte {
	at := len(dst)
	dst = append(dst, clientCookie[:clientCookieSize]...)
	dst = append(dst, cookieVersion, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, nowSec)
	return binary.LittleEndian.AppendUint64(dst, cookieHash(&c.secrets.Load().now, dst[at:], from))
}

func cookieHash(secret *[16]byte, head []byte, from netip.Addr) uint64 {
	var in [32]byte
	n := copy(in[:], head[:16])
	from = from.Unmap()
	if from.Is4() {
		a := from.As4()
		n += copy(in[n:], a[:])
	} else {
		a := from.As16()
		n += copy(in[n:], a[:])
	}
	return sipHash24(secret, in[:n])
}

// sipHash24 is SipHash-2-4 (Aumasson, Bernstein: SipHash, a fast short-input PRF).
func sipHash24(key *[16]byte, b []byte) uint64 {
	k0, k1 := binary.LittleEndian.Uint64(key[:]), binary.LittleEndian.Uint64(key[8:])
	v0, v1, v2, v3 := k0^0x736f6d6570736575, k1^0x646f72616e646f6d, k0^0x6c7967656e657261, k1^0x7465646279746573
	last := uint64(len(b)) << 56
	round := func() {
		v0 += v1
		v1 = bits.RotateLeft64(v1, 13) ^ v0
		v0 = bits.RotateLeft64(v0, 32)
		v2 += v3
		v3 = bits.RotateLeft64(v3, 16) ^ v2
		v0 += v3
		v3 = bits.RotateLeft64(v3, 21) ^ v0
		v2 += v1
		v1 = bits.RotateLeft64(v1, 17) ^ v2
		v2 = bits.RotateLeft64(v2, 32)
	}
	for ; len(b) >= 8; b = b[8:] {
		m := binary.LittleEndian.Uint64(b)
		v3 ^= m
		round()
		round()
		v0 ^= m
	}
	for i, c := range b {
		last |= uint64(c) << (8 * i)
	}
	v3 ^= last
	round()
	round()
	v0 ^= last
	v2 ^= 0xFF
	round()
	round()
	round()
	round()
	return v0 ^ v1 ^ v2 ^ v3
}
