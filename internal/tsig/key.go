package tsig

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"unsafe"

	"github.com/puzpuzpuz/xsync/v3"

	"github.com/dnsmesh/dmpd/internal/wire"
)

// Key is a TSIG key and what it may change. It is immutable once it is in a Table.
type Key struct {
	Name         []byte // wire form, lower case
	Alg          Alg
	Secret       []byte
	Scopes       []Scope
	CreatedAtSec int64
	ExpiresAtSec int64 // 0: never
	Revoked      bool
	Operator     bool   // made by an operator, not by self-service
	Subject      string // who registered it; empty for an operator's
	Ed25519      []byte // 32 bytes, or none
	X25519       []byte // 32 bytes with proof of possession, or none
	Note         string
}

// Live says whether the key may sign (dns.md 6.1).
func (k *Key) Live(nowSec int64) bool {
	return !k.Revoked && (k.ExpiresAtSec == 0 || k.ExpiresAtSec > nowSec)
}

// CanAdd says whether the key may add at an owner (wire form, lower case).
func (k *Key) CanAdd(owner []byte) bool {
	for i := range k.Scopes {
		if k.Scopes[i].Covers(owner) {
			return true
		}
	}
	return false
}

// CanDelete says whether the key may delete at an owner: only by a pattern without any * (dns.md 7.2).
func (k *Key) CanDelete(owner []byte) bool {
	for i := range k.Scopes {
		if k.Scopes[i].Literal() && k.Scopes[i].Covers(owner) {
			return true
		}
	}
	return false
}

// Scope is a suffix pattern (dns.md 7.1): labels that the owner must end with. In a label of a pattern with * each * stands for any run
// of characters within that label.
type Scope struct {
	name    []byte // wire form, lower case
	labels  int
	literal bool
}

// ErrScope says that text is no pattern.
var ErrScope = errors.New("tsig: not a scope")

// ParseScope reads a pattern: a domain name whose labels may hold *; a leading dot is dropped.
func ParseScope(text string) (Scope, error) {
	if len(text) > 0 && text[0] == '.' {
		text = text[1:]
	}
	name, err := wire.AppendName(nil, text)
	if err != nil || len(name) <= 1 {
		return Scope{}, fmt.Errorf("%w: %q", ErrScope, text)
	}
	return Scope{name, wire.Labels(name), bytes.IndexByte(name, '*') < 0}, nil
}

// MustScope is ParseScope for text of our own.
func MustScope(text string) Scope {
	s, err := ParseScope(text)
	if err != nil {
		panic(err)
	}
	return s
}

func (s *Scope) String() string { return wire.Text(s.name) }

// Literal says whether the pattern has no *, which is what deleting takes.
func (s *Scope) Literal() bool { return s.literal }

// Covers matches label by label from the right.
func (s *Scope) Covers(owner []byte) bool {
	for n := wire.Labels(owner); n > s.labels; n-- {
		owner = owner[1+owner[0]:]
	}
	if s.literal {
		return bytes.Equal(owner, s.name)
	}
	p := s.name
	for len(p) > 1 {
		if len(owner) <= 1 {
			return false
		}
		pl, pr := wire.FirstLabel(p)
		ol, or := wire.FirstLabel(owner)
		if !glob(pl, ol) {
			return false
		}
		p, owner = pr, or
	}
	return len(owner) == 1
}

// glob matches a label; * is any run of bytes. It looks at each byte of label at most once for each *.
func glob(pattern, label []byte) bool {
	star, mark := -1, 0
	i, j := 0, 0
	for j < len(label) {
		switch {
		case i < len(pattern) && pattern[i] == '*':
			star, mark = i, j
			i++
		case i < len(pattern) && pattern[i] == label[j]:
			i++
			j++
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	for i < len(pattern) && pattern[i] == '*' {
		i++
	}
	return i == len(pattern)
}

// HashLen is the length of a mailbox hash in hex digits.
const HashLen = 12

// MailboxHash is the h12 of an X25519 key: the first 12 hex digits of SHA-256(SHA-256(key)) (dns.md 2).
func MailboxHash(x25519 []byte) (h [HashLen]byte) {
	id := sha256.Sum256(x25519)
	sum := sha256.Sum256(id[:])
	hex.Encode(h[:], sum[:HashLen/2])
	return h
}

// Table is the keys by name and the registered recipients. Readers take no lock; there is one writer.
type Table struct {
	zone  []byte
	keys  *xsync.MapOf[string, *Key]
	boxes *xsync.MapOf[[HashLen]byte, []*Key]
}

// NewTable makes a table for the recipients of a zone (wire form, lower case).
func NewTable(zone []byte) *Table {
	return &Table{zone, xsync.NewMapOf[string, *Key](), xsync.NewMapOf[[HashLen]byte, []*Key]()}
}

// Load finds a key by its name (wire form, lower case), live or not. No lock, no allocation; name may lie in a packet.
func (t *Table) Load(name []byte) *Key {
	k, _ := t.keys.Load(unsafe.String(unsafe.SliceData(name), len(name)))
	return k
}

// Store puts a key in place of any of its name. There is no moment at which a reader finds neither.
func (t *Table) Store(k *Key) {
	old := t.Load(k.Name)
	if old == k {
		return
	}
	for _, h := range t.hashes(k) {
		keys, _ := t.boxes.Load(h)
		t.boxes.Store(h, append(keys[:len(keys):len(keys)], k))
	}
	t.keys.Store(string(k.Name), k)
	if old != nil {
		t.forgetBoxes(old)
	}
}

// Delete forgets a key.
func (t *Table) Delete(name []byte) {
	if k := t.Load(name); k != nil {
		t.keys.Delete(string(name))
		t.forgetBoxes(k)
	}
}

func (t *Table) forgetBoxes(k *Key) {
	for _, h := range t.hashes(k) {
		old, _ := t.boxes.Load(h)
		var kept []*Key
		for _, o := range old {
			if o != k {
				kept = append(kept, o)
			}
		}
		if kept == nil {
			t.boxes.Delete(h)
		} else {
			t.boxes.Store(h, kept)
		}
	}
}

// Len counts the keys.
func (t *Table) Len() int { return t.keys.Size() }

// Each calls f for every key until it gives false.
func (t *Table) Each(f func(*Key) bool) { t.keys.Range(func(_ string, k *Key) bool { return f(k) }) }

// HasMailbox says whether a live key makes this hash a registered recipient (dns.md 8.4). No allocation.
func (t *Table) HasMailbox(h [HashLen]byte, nowSec int64) bool {
	keys, _ := t.boxes.Load(h)
	for _, k := range keys {
		if k.Live(nowSec) {
			return true
		}
	}
	return false
}

// hashes gives the recipients that a key registers: that of its X25519 key, if a pattern grants mailbox writes directly under the zone,
// and those of literal patterns mb-<12 hex>.<zone>.
func (t *Table) hashes(k *Key) (hs [][HashLen]byte) {
	grants := false
	for i := range k.Scopes {
		s := &k.Scopes[i]
		if bytes.Equal(s.name, t.zone) {
			grants = true
			continue
		}
		first, rest := wire.FirstLabel(s.name)
		if bytes.Equal(rest, t.zone) && bytes.HasPrefix(first, []byte("mb-")) {
			grants = true
			if h := first[3:]; s.literal && len(h) == HashLen && isHex(h) {
				hs = append(hs, [HashLen]byte(h))
			}
			continue
		}
		second, rest := wire.FirstLabel(rest)
		if bytes.Equal(rest, t.zone) && bytes.HasPrefix(second, []byte("mb-")) && (bytes.HasPrefix(first, []byte("slot-")) || bytes.HasPrefix(first, []byte("claim-"))) {
			grants = true
		}
	}
	if grants && len(k.X25519) == 32 {
		hs = append(hs, MailboxHash(k.X25519))
	}
	return hs
}

func isHex(b []byte) bool {
	for _, c := range b {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
