package auth

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/dnsmesh/dmpd/internal/tsig"
)

// Entries of the control plane's own in the state log; the data plane passes over them.
const (
	kindToken  = tsig.StateControl + iota // a Token
	kindOwner                             // an Owner
	kindLock                              // a Lock
	kindDeny                              // a Deny
	kindPolicy                            // a policyEntry
)

// TokenHash is SHA-256 of a token's text: all that is kept of it.
type TokenHash [32]byte

// Token is a bearer token without its text (http.md 6.1). Its entry in the log is this struct as JSON, as are those below: the data
// plane passes them by, and a field may be added without a new format.
type Token struct {
	Hash         TokenHash `json:"hash"`
	Subject      string    `json:"subject"`
	Type         uint8     `json:"type"`             // 1 user, 2 cluster operator, 3 bootstrap signer
	Hash12       string    `json:"hash12,omitempty"` // SHA-256 of the X25519 key, 12 hex digits: the prekey scope
	RatePerSec   float64   `json:"rate"`
	Burst        int       `json:"burst"`
	IssuedAtSec  int64     `json:"issued_at"`
	ExpiresAtSec int64     `json:"expires_at,omitempty"` // 0: never
	RevokedAtSec int64     `json:"revoked_at,omitempty"` // 0: not revoked
	Issuer       string    `json:"issuer"`
	Note         string    `json:"note,omitempty"`
	Ed25519      []byte    `json:"ed25519,omitempty"` // the key that registered it; nil if an operator issued it
}

// Live says whether the token is good.
func (t *Token) Live(nowSec int64) bool {
	return t.RevokedAtSec == 0 && (t.ExpiresAtSec == 0 || nowSec < t.ExpiresAtSec)
}

// Owner says which Ed25519 key holds a local part in a domain, for tokens and TSIG keys alike.
type Owner struct {
	Key      string `json:"key"` // ownerKey
	Subject  string `json:"subject"`
	Ed25519  []byte `json:"ed25519"` // nil: freed
	SinceSec int64  `json:"since"`
	EndSec   int64  `json:"end,omitempty"` // when its last credential ends; 0: never
}

// Lock keeps a name with its owner even when nothing of the owner's is live. Without a key nobody may register it.
type Lock struct {
	Key     string `json:"key"`
	Name    string `json:"name"` // local@domain
	Ed25519 []byte `json:"ed25519,omitempty"`
	Note    string `json:"note,omitempty"`
	AtSec   int64  `json:"at"`
	Off     bool   `json:"off,omitempty"` // taken off again
}

// Deny is an entry of the deny list.
type Deny struct {
	Kind  DenyKind `json:"kind"`
	Value string   `json:"value"`
	Note  string   `json:"note,omitempty"`
	AtSec int64    `json:"at"`
	Off   bool     `json:"off,omitempty"`
}

// DenyKind says what is denied.
type DenyKind string

// Kinds of denial.
const (
	DenySubject DenyKind = "subject" // local@domain
	DenyKey     DenyKind = "key"     // Ed25519 key in hex
	DenyDomain  DenyKind = "domain"  // of subjects, and every domain beneath
)

func (d *Deny) id() string { return string(d.Kind) + ":" + d.Value }

type policyEntry struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// entry reads one entry and says what taking it means.
func (s *State) entry(kind tsig.StateKind, body []byte) (func(), error) {
	switch kind {
	case tsig.StateKeyPut:
		k, err := tsig.ReadKey(body)
		if err != nil {
			return nil, err
		}
		return func() { s.putKey(string(k.Name), k) }, nil
	case tsig.StateKeyDelete:
		name := string(body)
		return func() { s.putKey(name, nil) }, nil
	case kindToken:
		var t Token
		if err := decode(body, &t); err != nil {
			return nil, err
		}
		return func() { s.tokens[t.Hash] = &t }, nil
	case kindOwner:
		var o Owner
		if err := decode(body, &o); err != nil {
			return nil, err
		}
		return func() { putOr(s.owners, o.Key, &o, len(o.Ed25519) == 0) }, nil
	case kindLock:
		var l Lock
		if err := decode(body, &l); err != nil {
			return nil, err
		}
		return func() { putOr(s.locks, l.Key, &l, l.Off) }, nil
	case kindDeny:
		var d Deny
		if err := decode(body, &d); err != nil {
			return nil, err
		}
		return func() { putOr(s.denied, d.id(), &d, d.Off) }, nil
	case kindPolicy:
		var p policyEntry
		if err := decode(body, &p); err != nil {
			return nil, err
		}
		return func() { s.policy[p.Name] = p.Value }, nil
	}
	return nil, fmt.Errorf("%w: kind %d is unknown", tsig.ErrState, kind)
}

// putKey shows a key in place of any of its name; nil removes that.
func (s *State) putKey(name string, k *tsig.Key) {
	if old := s.keys[name]; old != nil && len(old.X25519) > 0 {
		box := tsig.MailboxHash(old.X25519)
		s.boxes[box] = slices.DeleteFunc(s.boxes[box], func(o *tsig.Key) bool { return o == old })
		if len(s.boxes[box]) == 0 {
			delete(s.boxes, box)
		}
	}
	if k == nil {
		delete(s.keys, name)
		return
	}
	s.keys[name] = k
	if len(k.X25519) > 0 {
		box := tsig.MailboxHash(k.X25519)
		s.boxes[box] = append(s.boxes[box], k)
	}
}

func putOr[V any](m map[string]*V, key string, v *V, remove bool) {
	if remove {
		delete(m, key)
		return
	}
	m[key] = v
}

func decode(body []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: %w", tsig.ErrState, err)
	}
	return nil
}

func put(b []byte, kind tsig.StateKind, v any) []byte {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs only
	}
	return tsig.AppendState(b, kind, body)
}

func putKey(b []byte, k *tsig.Key) []byte {
	return tsig.AppendState(b, tsig.StateKeyPut, tsig.AppendKey(nil, k))
}

// appendAll writes the whole state, in the order of its keys, so that equal states are equal bytes.
func (s *State) appendAll(b []byte) []byte {
	for _, k := range sorted(s.keys) {
		b = putKey(b, s.keys[k])
	}
	hashes := make([]TokenHash, 0, len(s.tokens))
	for h := range s.tokens {
		hashes = append(hashes, h)
	}
	slices.SortFunc(hashes, func(a, b TokenHash) int { return bytes.Compare(a[:], b[:]) })
	for _, h := range hashes {
		b = put(b, kindToken, s.tokens[h])
	}
	for _, k := range sorted(s.owners) {
		b = put(b, kindOwner, s.owners[k])
	}
	for _, k := range sorted(s.locks) {
		b = put(b, kindLock, s.locks[k])
	}
	for _, k := range sorted(s.denied) {
		b = put(b, kindDeny, s.denied[k])
	}
	for _, k := range sorted(s.policy) {
		b = put(b, kindPolicy, policyEntry{k, s.policy[k]})
	}
	return b
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
