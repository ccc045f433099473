package auth

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"github.com/dnsmesh/dmpd/internal/clock"
)

// Format of a token's text (http.md 6.1).
const (
	tokenPrefix  = "dmp_v1_"
	tokenBodyLen = 52
)

// Default budget of a token.
const (
	DefaultRatePerSec = 10
	DefaultBurst      = 50
)

var base32Upper = base32.StdEncoding.WithPadding(base32.NoPadding)

func newToken() (string, TokenHash) {
	var raw [32]byte
	mustRandom(raw[:])
	text := tokenPrefix + base32Upper.EncodeToString(raw[:])
	return text, HashToken(text)
}

// HashToken is what is kept of a token.
func HashToken(text string) TokenHash { return sha256.Sum256([]byte(text)) }

func (h TokenHash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText writes the hash as hex.
func (h TokenHash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads it.
func (h *TokenHash) UnmarshalText(b []byte) error {
	if len(b) != 64 {
		return errors.New("auth: a token hash has 64 hex digits")
	}
	_, err := hex.Decode(h[:], b)
	return err
}

// tokenShaped is the test before any look-up (http.md 6.1).
func tokenShaped(text string) bool {
	body, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok || len(body) != tokenBodyLen {
		return false
	}
	for i := range len(body) {
		if c := body[i]; (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// EqualToken compares a secret given with one configured, in a time that does not depend on either.
func EqualToken(given, configured string) bool {
	a, b := sha256.Sum256([]byte(given)), sha256.Sum256([]byte(configured))
	return configured != "" && hmac.Equal(a[:], b[:])
}

// Verdict is what Authorize decided.
type Verdict uint8

// Verdicts.
const (
	Unauthorized Verdict = iota // 401
	Throttled                   // 429
	Accepted
)

// Access is a verdict with what the store needs to know of the writer.
type Access struct {
	Verdict Verdict
	Class   Class
	Writer  [16]byte // quota key: the token's hash, cut
}

// Authorize decides a record write with a user token (http.md 6.2): shape, exists, live, class, scope, shared delete, budget. name is
// lower case without trailing dots. Audit rows of shared-pool names carry nobody (6.3).
func (s *State) Authorize(token, name string, del bool, remote netip.Addr) Access {
	if !tokenShaped(token) {
		return Access{}
	}
	h := HashToken(token)
	nowSec := s.o.NowMs() / 1000
	s.mu.RLock()
	t := s.tokens[h]
	s.mu.RUnlock()
	ev := Event{Event: "rejected", Remote: addrText(remote)}
	refuse := func(why string) Access {
		ev.Detail = why
		s.o.Audit.Write(ev)
		return Access{}
	}
	switch {
	case t == nil:
		return refuse("unknown token")
	case !t.Live(nowSec):
		return refuse("token revoked or expired")
	}
	class, sc := classify(name)
	switch {
	case class == ClassUnknown || class == ClassOperator:
		return refuse("name of class " + class.String())
	case class == ClassOwner && !sc.allows(t):
		ev.TokenHash, ev.Subject = h.String(), t.Subject
		return refuse("scope mismatch")
	case class == ClassPool && del:
		return refuse("delete of a shared-pool name")
	}
	a := Access{Class: class, Writer: [16]byte(h[:16])}
	if class == ClassOwner {
		ev.TokenHash, ev.Subject, ev.Detail = h.String(), t.Subject, name
	} else {
		ev.Detail = class.String()
	}
	if !s.budget.Allow(h, t.RatePerSec, float64(t.Burst), clock.Mono()) {
		ev.Event = "throttled"
		s.o.Audit.Write(ev)
		a.Verdict = Throttled
		return a
	}
	ev.Event = "used"
	s.o.Audit.Write(ev)
	a.Verdict = Accepted
	return a
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.Unmap().String()
}

// TokenRequest says what a new token is.
type TokenRequest struct {
	Subject      string
	RatePerSec   float64
	Burst        int
	ExpiresAtSec int64
	Issuer       string // admin:<user>
	Note         string
	X25519       []byte // gives the prekey scope pk-n.<h12>
}

func (r *TokenRequest) token() (*Token, error) {
	sub, err := ParseSubject(r.Subject)
	if err != nil {
		return nil, fmt.Errorf("%w: subject: %w", ErrBadRequest, err)
	}
	if math.IsNaN(r.RatePerSec) || math.IsInf(r.RatePerSec, 0) {
		return nil, fmt.Errorf("%w: rate", ErrBadRequest)
	}
	t := &Token{Subject: sub.String(), Type: 1, RatePerSec: r.RatePerSec, Burst: r.Burst, ExpiresAtSec: r.ExpiresAtSec, Issuer: r.Issuer, Note: r.Note}
	if len(r.X25519) > 0 {
		if len(r.X25519) != 32 {
			return nil, fmt.Errorf("%w: an X25519 key has 32 bytes", ErrBadRequest)
		}
		h := sha256.Sum256(r.X25519)
		t.Hash12 = hex.EncodeToString(h[:6])
	}
	if len(r.Note) > 4096 || len(r.Issuer) > 256 {
		return nil, fmt.Errorf("%w: note or issuer too long", ErrBadRequest)
	}
	return t, nil
}

// IssueToken makes a token for an operator and gives its text, the only time. Older tokens of the subject stay.
func (s *State) IssueToken(_ context.Context, r TokenRequest) (string, *Token, error) {
	t, err := r.token()
	if err != nil {
		return "", nil, err
	}
	text, h := newToken()
	t.Hash = h
	err = s.own(func(b []byte, nowSec int64) ([]byte, error) {
		t.IssuedAtSec = nowSec
		return put(b, kindToken, t), nil
	})
	if err != nil {
		return "", nil, err
	}
	s.o.Audit.Write(Event{Event: "issued", TokenHash: h.String(), Subject: t.Subject, Detail: t.Issuer})
	return text, t, nil
}

// ImportToken takes a token over of which only the hash is known, as it stands in t.
func (s *State) ImportToken(_ context.Context, t Token) error {
	sub, err := ParseSubject(t.Subject)
	if err != nil {
		return fmt.Errorf("%w: subject: %w", ErrBadRequest, err)
	}
	return s.own(func(b []byte, nowSec int64) ([]byte, error) {
		b = put(b, kindToken, &t)
		owned := []string{ownerKey(sub.Local, sub.Domain)}
		if len(t.Ed25519) > 0 && t.Live(nowSec) && s.mayOwn(owned, t.Ed25519, nowSec) == nil {
			b = s.putOwners(b, owned, sub, t.Ed25519, nowSec, t.ExpiresAtSec)
		}
		return b, nil
	})
}

// RegisterToken mints a token for a registrant and revokes the ones that the same key registered for the subject (http.md 7.5).
func (s *State) RegisterToken(_ context.Context, sub Subject, spk []byte, lifeSec int64, ratePerSec float64, burst int, remote netip.Addr) (string, *Token, error) {
	text, h := newToken()
	t := &Token{Hash: h, Subject: sub.String(), Type: 1, RatePerSec: ratePerSec, Burst: burst, Issuer: "self-service", Ed25519: bytes.Clone(spk)}
	var ended []*Token
	err := s.own(func(b []byte, nowSec int64) ([]byte, error) {
		owned := []string{ownerKey(sub.Local, sub.Domain)}
		if err := s.mayOwn(owned, spk, nowSec); err != nil {
			return nil, err
		}
		for _, old := range s.tokens {
			if old.Subject == t.Subject && len(old.Ed25519) > 0 && old.RevokedAtSec == 0 {
				ended = append(ended, old)
			}
		}
		b = s.putRevoked(b, ended, nowSec)
		t.IssuedAtSec = nowSec
		if lifeSec > 0 {
			t.ExpiresAtSec = nowSec + lifeSec
		}
		return s.putOwners(put(b, kindToken, t), owned, sub, spk, nowSec, t.ExpiresAtSec), nil
	})
	if err != nil {
		return "", nil, err
	}
	s.auditRevoked(ended, "re-registered", remote)
	s.o.Audit.Write(Event{Event: "issued", TokenHash: h.String(), Subject: t.Subject, Detail: t.Issuer, Remote: addrText(remote)})
	return text, t, nil
}

func (s *State) putRevoked(b []byte, ts []*Token, nowSec int64) []byte {
	slices.SortFunc(ts, func(a, b *Token) int { return bytes.Compare(a.Hash[:], b.Hash[:]) })
	for _, t := range ts {
		c := *t
		c.RevokedAtSec = nowSec
		b = put(b, kindToken, &c)
	}
	return b
}

func (s *State) auditRevoked(ts []*Token, why string, remote netip.Addr) {
	for _, t := range ts {
		s.budget.Forget(t.Hash)
		s.o.Audit.Write(Event{Event: "revoked", TokenHash: t.Hash.String(), Subject: t.Subject, Detail: why, Remote: addrText(remote)})
	}
}

// ListTokens gives tokens, newest first: of a subject, or all; with or without those revoked.
func (s *State) ListTokens(subject string, revoked bool) []*Token {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var ts []*Token
	for _, t := range s.tokens {
		if (subject == "" || t.Subject == subject) && (revoked || t.RevokedAtSec == 0) {
			ts = append(ts, t)
		}
	}
	slices.SortFunc(ts, func(a, b *Token) int {
		return cmp.Or(cmp.Compare(b.IssuedAtSec, a.IssuedAtSec), bytes.Compare(a.Hash[:], b.Hash[:]))
	})
	return ts
}

// hashPrefixMin is the least of a hash that names a token (http.md 20, row 19).
const hashPrefixMin = 8

// RevokeToken revokes by exact subject (all its tokens), else by a prefix of the hash, which must fit one token.
func (s *State) RevokeToken(_ context.Context, target string) ([]*Token, error) {
	var ended []*Token
	err := s.own(func(b []byte, nowSec int64) ([]byte, error) {
		var err error
		if ended, err = s.targets(target, nowSec); err != nil {
			return nil, err
		}
		b = s.putRevoked(b, ended, nowSec)
		ending := map[TokenHash]bool{}
		for _, t := range ended {
			ending[t.Hash] = true
		}
		for _, t := range ended {
			if sub, err := ParseSubject(t.Subject); err == nil {
				b = s.freeOwners(b, []string{ownerKey(sub.Local, sub.Domain)}, t.Ed25519, "", ending, nowSec)
			}
		}
		return b, nil
	})
	if err != nil {
		return nil, err
	}
	s.auditRevoked(ended, "operator", netip.Addr{})
	return ended, nil
}

// targets finds what RevokeToken means. The caller holds mu.
func (s *State) targets(target string, nowSec int64) ([]*Token, error) {
	var bySubject, byHash []*Token
	prefix := strings.ToLower(target)
	for _, t := range s.tokens {
		if t.RevokedAtSec != 0 {
			continue
		}
		if t.Subject == target && t.Live(nowSec) {
			bySubject = append(bySubject, t)
		}
		if len(prefix) >= hashPrefixMin && strings.HasPrefix(t.Hash.String(), prefix) {
			byHash = append(byHash, t)
		}
	}
	switch {
	case len(bySubject) > 0:
		return bySubject, nil
	case len(byHash) == 0:
		return nil, fmt.Errorf("%w: no live token of subject or hash %q (a prefix needs %d digits)", ErrNotFound, target, hashPrefixMin)
	case len(byHash) > 1:
		return nil, fmt.Errorf("%w: %d tokens begin with %q", ErrAmbiguous, len(byHash), target)
	}
	return byHash, nil
}

// RotateToken revokes a subject's live tokens and issues one in their place, in one change. What r leaves open (rate 0 with burst 0,
// no X25519 key) comes from the newest of them.
func (s *State) RotateToken(_ context.Context, r TokenRequest) (string, *Token, error) {
	t, err := r.token()
	if err != nil {
		return "", nil, err
	}
	text, h := newToken()
	t.Hash = h
	var ended []*Token
	err = s.own(func(b []byte, nowSec int64) ([]byte, error) {
		var newest *Token
		for _, old := range s.tokens {
			if old.Subject != t.Subject || !old.Live(nowSec) {
				continue
			}
			ended = append(ended, old)
			if newest == nil || old.IssuedAtSec > newest.IssuedAtSec {
				newest = old
			}
		}
		if newest == nil {
			return nil, fmt.Errorf("%w: no live token of %s", ErrNotFound, t.Subject)
		}
		if t.RatePerSec == 0 && t.Burst == 0 {
			t.RatePerSec, t.Burst = newest.RatePerSec, newest.Burst
		}
		if t.Hash12 == "" {
			t.Hash12 = newest.Hash12
		}
		t.Ed25519, t.IssuedAtSec = newest.Ed25519, nowSec
		b = put(s.putRevoked(b, ended, nowSec), kindToken, t)
		if len(t.Ed25519) > 0 {
			sub, _ := ParseSubject(t.Subject) // checked above
			b = s.putOwners(b, []string{ownerKey(sub.Local, sub.Domain)}, sub, t.Ed25519, nowSec, t.ExpiresAtSec)
		}
		return b, nil
	})
	if err != nil {
		return "", nil, err
	}
	s.auditRevoked(ended, "rotated", netip.Addr{})
	s.o.Audit.Write(Event{Event: "issued", TokenHash: h.String(), Subject: t.Subject, Detail: t.Issuer})
	return text, t, nil
}
