package auth

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/dnsmesh/dmpd/internal/tsig"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// GraceSec is how long after its end an owner's name waits for the same Ed25519 key before another may register it. An operator's revoke
// frees a name at once. Policy "grace_sec" overrides it.
const GraceSec = 30 * 86400

// labelTextMax is how long a key name may be before the zone (http.md 8.2).
const labelTextMax = 63

// Scopes says how much a registered key may write (http.md 8.3).
type Scopes uint8

// Modes of scope.
const (
	ScopesDefault Scopes = iota
	ScopesTight          // own names only
	ScopesLoose          // the whole zone
)

// scopeTexts derives a registered key's patterns, sorted by bytes.
func scopeTexts(mode Scopes, local, zone string, spk, x25519 []byte) []string {
	if mode == ScopesLoose {
		return []string{zone}
	}
	h := sha256.Sum256([]byte(local))
	u := hex.EncodeToString(h[:8])
	texts := []string{"id-" + u, "id-" + u[:12], "_dnsmesh-claim-" + hex.EncodeToString(spk[:8])}
	if mode == ScopesDefault {
		texts = append(texts, "_dnsmesh-claim-*", "slot-*.mb-*", "chunk-*-*", "claim-*.mb-*")
	}
	if len(x25519) > 0 {
		box := tsig.MailboxHash(x25519)
		texts = append(texts, "mb-"+string(box[:]))
	}
	for i := range texts {
		texts[i] += "." + zone
	}
	slices.Sort(texts)
	return slices.Compact(texts)
}

// Registration is a proven request for a TSIG key.
type Registration struct {
	Subject Subject
	Ed25519 []byte
	X25519  []byte // nil: not proven
	Zone    string
	Scopes  Scopes
	LifeSec int64      // 0: no end
	Remote  netip.Addr // for the audit
}

// RegisterKey mints the TSIG key of a registrant, or gives a re-registrant a new secret under the same name at once (http.md 7.6).
// Its own errors: ErrOwned, ErrNameTooBig.
func (s *State) RegisterKey(ctx context.Context, r Registration) (*tsig.Key, error) {
	if err := s.wait(ctx, 0); err != nil {
		return nil, err // before the old secret is given up
	}
	scopes, err := parseScopes(scopeTexts(r.Scopes, r.Subject.Local, r.Zone, r.Ed25519, r.X25519))
	if err != nil {
		return nil, err
	}
	secret := make([]byte, 32)
	mustRandom(secret)
	var key *tsig.Key
	err = s.do(ctx, func(b []byte, nowSec int64) ([]byte, error) {
		owned := []string{ownerKey(r.Subject.Local, r.Subject.Domain), ownerKey(r.Subject.Local, r.Zone)}
		if err := s.mayOwn(owned, r.Ed25519, nowSec); err != nil {
			return nil, err
		}
		if s.mailboxTaken(r, nowSec) {
			return nil, ErrOwned
		}
		name, err := s.keyName(r)
		if err != nil {
			return nil, err
		}
		expires := int64(0)
		if r.LifeSec > 0 {
			expires = nowSec + r.LifeSec
		}
		key = &tsig.Key{Name: name, Alg: tsig.SHA256, Secret: secret, Scopes: scopes, CreatedAtSec: nowSec, ExpiresAtSec: expires,
			Subject: r.Subject.String(), Ed25519: bytes.Clone(r.Ed25519), X25519: bytes.Clone(r.X25519)}
		return s.putOwners(putKey(b, key), owned, r.Subject, r.Ed25519, nowSec, expires), nil
	})
	if err != nil {
		return nil, err
	}
	s.o.Audit.Write(Event{Event: "tsig-minted", Subject: key.Subject, Key: wire.Text(key.Name), Remote: addrText(r.Remote)})
	return key, nil
}

// mayOwn decides ownership: every one of the names must be free, or held by this key. The caller holds mu.
func (s *State) mayOwn(owned []string, spk []byte, nowSec int64) error {
	grace := s.graceSec()
	for _, k := range owned {
		if l := s.locks[k]; l != nil && !bytes.Equal(l.Ed25519, spk) {
			return ErrOwned
		}
		o := s.owners[k]
		if o == nil || bytes.Equal(o.Ed25519, spk) {
			continue
		}
		if o.EndSec == 0 || nowSec < o.EndSec+grace {
			return ErrOwned
		}
	}
	return nil
}

// mailboxTaken says whether a proven X25519 key shares its mailbox's 48-bit name with a different key that is live. The caller holds mu.
func (s *State) mailboxTaken(r Registration, nowSec int64) bool {
	if len(r.X25519) == 0 {
		return false
	}
	box := tsig.MailboxHash(r.X25519)
	for _, k := range s.boxes[box] {
		if !bytes.Equal(k.X25519, r.X25519) && k.Live(nowSec) {
			return true
		}
	}
	return false
}

// putOwners notes the owner of the names, until the latest end of what it holds.
func (s *State) putOwners(b []byte, owned []string, subject Subject, spk []byte, nowSec, endSec int64) []byte {
	for _, k := range slices.Compact(owned) {
		o := Owner{Key: k, Subject: subject.String(), Ed25519: bytes.Clone(spk), SinceSec: nowSec, EndSec: endSec}
		if old := s.owners[k]; old != nil && bytes.Equal(old.Ed25519, spk) {
			o.SinceSec = old.SinceSec
			if old.EndSec == 0 || endSec != 0 && old.EndSec > endSec {
				o.EndSec = old.EndSec
			}
		}
		b = put(b, kindOwner, &o)
	}
	return b
}

// keyName makes <local>-<8 hex of key>-<6 hex of subject>.<zone> (http.md 8.2). A name that another subject or key has is never
// replaced: the tags get longer, so that grinding 56 bits wins nothing. The caller holds mu.
func (s *State) keyName(r Registration) ([]byte, error) {
	h := sha256.Sum256([]byte(r.Subject.String()))
	spk, subject := hex.EncodeToString(r.Ed25519), hex.EncodeToString(h[:])
	for _, tag := range []string{spk[:8] + "-" + subject[:6], spk[:16] + "-" + subject[:12], spk[:24] + "-" + subject[:16]} {
		text := r.Subject.Local + "-" + tag
		if len(text) > labelTextMax {
			if len(tag) == 15 {
				return nil, ErrNameTooBig
			}
			break
		}
		name, err := wire.AppendName(nil, text+"."+r.Zone)
		if err != nil {
			return nil, fmt.Errorf("%w: subject local part or zone does not fit a TSIG key name", ErrBadRequest)
		}
		k := s.keys[string(name)]
		if k == nil || k.Subject == r.Subject.String() && bytes.Equal(k.Ed25519, r.Ed25519) {
			return name, nil
		}
	}
	return nil, ErrOwned
}

func (s *State) graceSec() int64 {
	if n, err := strconv.ParseInt(s.policy["grace_sec"], 10, 64); err == nil && n >= 0 {
		return n
	}
	return GraceSec
}

func parseScopes(texts []string) ([]tsig.Scope, error) {
	var scopes []tsig.Scope
	slices.Sort(texts)
	for _, t := range slices.Compact(texts) {
		sc, err := tsig.ParseScope(strings.TrimSpace(t))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBadRequest, err)
		}
		scopes = append(scopes, sc)
	}
	if len(scopes) == 0 || len(scopes) > tsig.ScopesMax {
		return nil, fmt.Errorf("%w: a key needs 1 to %d scopes", ErrBadRequest, tsig.ScopesMax)
	}
	return scopes, nil
}

// MintRequest is an operator's key. Empty fields: HMAC-SHA256, a fresh secret, no end.
type MintRequest struct {
	Name         string
	Alg          tsig.Alg
	Secret       []byte
	Scopes       []string
	CreatedAtSec int64 // of a key that is taken over; 0: now
	ExpiresAtSec int64
	Subject      string
	Ed25519      []byte
	X25519       []byte
	Note         string
	Operator     bool // prerequisites are evaluated for it (DMP_UPDATE_PREREQUISITES=auto)
	Replace      bool // give up a key of that name
}

// Mint makes a key of any name and scope for an operator.
func (s *State) Mint(ctx context.Context, m MintRequest) (*tsig.Key, error) {
	name, err := wire.AppendName(nil, m.Name)
	if err != nil || len(name) < 2 {
		return nil, fmt.Errorf("%w: key name %q is no domain name", ErrBadRequest, m.Name)
	}
	scopes, err := parseScopes(slices.Clone(m.Scopes))
	if err != nil {
		return nil, err
	}
	k := &tsig.Key{Name: name, Alg: m.Alg, Secret: bytes.Clone(m.Secret), Scopes: scopes, ExpiresAtSec: m.ExpiresAtSec,
		Operator: m.Operator, Ed25519: bytes.Clone(m.Ed25519), X25519: bytes.Clone(m.X25519), Note: m.Note}
	if k.Alg == tsig.NoAlg {
		k.Alg = tsig.SHA256
	}
	if len(k.Secret) == 0 {
		k.Secret = make([]byte, 32)
		mustRandom(k.Secret)
	}
	if m.Subject != "" {
		sub, err := ParseSubject(m.Subject)
		if err != nil {
			return nil, fmt.Errorf("%w: subject: %w", ErrBadRequest, err)
		}
		k.Subject = sub.String()
	}
	if _, err := tsig.ReadKey(tsig.AppendKey(nil, k)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	err = s.do(ctx, func(b []byte, nowSec int64) ([]byte, error) {
		if s.keys[string(name)] != nil && !m.Replace {
			return nil, fmt.Errorf("%w: key %s exists; choose another name, or replace it (--replace)", ErrBadRequest, m.Name)
		}
		if k.CreatedAtSec = m.CreatedAtSec; k.CreatedAtSec <= 0 || k.CreatedAtSec > nowSec {
			k.CreatedAtSec = nowSec
		}
		b = putKey(b, k)
		if len(k.Ed25519) == 0 || k.Subject == "" {
			return b, nil
		}
		sub, _ := ParseSubject(k.Subject) // checked above
		for _, o := range s.ownedBy(k, sub) {
			// An operator's word makes the key; a name that somebody else owns stays with its owner.
			if s.mayOwn([]string{o}, k.Ed25519, nowSec) == nil {
				b = s.putOwners(b, []string{o}, sub, k.Ed25519, nowSec, k.ExpiresAtSec)
			}
		}
		return b, nil
	})
	if err != nil {
		return nil, err
	}
	s.o.Audit.Write(Event{Event: "tsig-minted", Subject: k.Subject, Key: wire.Text(name), Detail: "operator"})
	return k, nil
}

// Key finds a key by its name as text.
func (s *State) Key(name string) (*tsig.Key, error) {
	w, err := wire.AppendName(nil, name)
	if err != nil {
		return nil, fmt.Errorf("%w: key name %q", ErrBadRequest, name)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	k := s.keys[string(w)]
	if k == nil {
		return nil, fmt.Errorf("%w: key %s", ErrNotFound, name)
	}
	return k, nil
}

// ListKeys gives all keys, sorted by name. They are immutable; the secrets are in them.
func (s *State) ListKeys() []*tsig.Key {
	s.mu.RLock()
	defer s.mu.RUnlock()
	keys := make([]*tsig.Key, 0, len(s.keys))
	for _, k := range s.keys {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b *tsig.Key) int { return bytes.Compare(a.Name, b.Name) })
	return keys
}

// changeKey replaces a key by a changed copy. With ErrNotTaken it gives the key too: the change stands.
func (s *State) changeKey(ctx context.Context, name, event string, f func(k *tsig.Key, nowSec int64) error, more func(b []byte, k *tsig.Key, nowSec int64) []byte) (*tsig.Key, error) {
	w, err := wire.AppendName(nil, name)
	if err != nil {
		return nil, fmt.Errorf("%w: key name %q", ErrBadRequest, name)
	}
	var c tsig.Key
	err = s.do(ctx, func(b []byte, nowSec int64) ([]byte, error) {
		k := s.keys[string(w)]
		if k == nil {
			return nil, fmt.Errorf("%w: key %s", ErrNotFound, name)
		}
		c = *k
		if err := f(&c, nowSec); err != nil {
			return nil, err
		}
		b = putKey(b, &c)
		if more != nil {
			b = more(b, &c, nowSec)
		}
		return b, nil
	})
	if err != nil && !errors.Is(err, ErrNotTaken) {
		return nil, err
	}
	s.o.Audit.Write(Event{Event: event, Subject: c.Subject, Key: wire.Text(w)})
	return &c, err
}

// Revoke ends a key. Its names are free again, unless something else of the owner's is live or they are locked: to keep everybody
// else out, Lock; to keep the same key out, Deny.
func (s *State) Revoke(ctx context.Context, name string) (*tsig.Key, error) {
	return s.changeKey(ctx, name, "tsig-revoked", func(k *tsig.Key, _ int64) error { k.Revoked = true; return nil },
		func(b []byte, k *tsig.Key, nowSec int64) []byte {
			sub, err := ParseSubject(k.Subject)
			if err != nil {
				return b // an operator's key owns nothing
			}
			return s.freeOwners(b, s.ownedBy(k, sub), k.Ed25519, string(k.Name), nil, nowSec)
		})
}

// Unrevoke takes a revocation back, if nobody else has the names by now.
func (s *State) Unrevoke(ctx context.Context, name string) (*tsig.Key, error) {
	var owned []string
	var subject Subject
	return s.changeKey(ctx, name, "tsig-unrevoked", func(k *tsig.Key, nowSec int64) error {
		k.Revoked = false
		if len(k.Ed25519) == 0 || k.Subject == "" {
			return nil
		}
		var err error
		if subject, err = ParseSubject(k.Subject); err != nil {
			return fmt.Errorf("%w: subject of the key: %w", ErrBadRequest, err)
		}
		owned = s.ownedBy(k, subject)
		return s.mayOwn(owned, k.Ed25519, nowSec)
	}, func(b []byte, k *tsig.Key, nowSec int64) []byte {
		return s.putOwners(b, owned, subject, k.Ed25519, nowSec, k.ExpiresAtSec)
	})
}

// Extend moves a key's end; 0 is never.
func (s *State) Extend(ctx context.Context, name string, expiresAtSec int64) (*tsig.Key, error) {
	var owned []string
	var subject Subject
	return s.changeKey(ctx, name, "tsig-extended", func(k *tsig.Key, nowSec int64) error {
		k.ExpiresAtSec = expiresAtSec
		if len(k.Ed25519) == 0 || k.Subject == "" || k.Revoked {
			return nil
		}
		var err error
		if subject, err = ParseSubject(k.Subject); err != nil {
			return fmt.Errorf("%w: subject of the key: %w", ErrBadRequest, err)
		}
		owned = s.ownedBy(k, subject)
		return s.mayOwn(owned, k.Ed25519, nowSec)
	}, func(b []byte, k *tsig.Key, nowSec int64) []byte {
		return s.putOwners(b, owned, subject, k.Ed25519, nowSec, k.ExpiresAtSec)
	})
}

// ownedBy gives the names that a registered key holds: of its subject, and of the local part in the key's zone, which is what follows the
// local part and the tags in its name.
func (s *State) ownedBy(k *tsig.Key, subject Subject) []string {
	owned := []string{ownerKey(subject.Local, subject.Domain)}
	text := wire.Text(k.Name)
	if rest, ok := strings.CutPrefix(text, subject.Local+"-"); ok {
		if _, zone, ok := strings.Cut(rest, "."); ok {
			owned = append(owned, ownerKey(subject.Local, zone))
		}
	}
	return owned
}

// freeOwners frees those of the names owned that an Ed25519 key holds and for which nothing live is left, apart from the key and
// tokens that end in this same change. The caller holds mu.
func (s *State) freeOwners(b []byte, owned []string, spk []byte, endingKey string, endingTokens map[TokenHash]bool, nowSec int64) []byte {
	if len(spk) == 0 {
		return b
	}
	held := map[string]bool{}
	for name, k := range s.keys {
		if name == endingKey || !k.Live(nowSec) || !bytes.Equal(k.Ed25519, spk) {
			continue
		}
		if sub, err := ParseSubject(k.Subject); err == nil {
			for _, o := range s.ownedBy(k, sub) {
				held[o] = true
			}
		}
	}
	for h, t := range s.tokens {
		if endingTokens[h] || !t.Live(nowSec) || !bytes.Equal(t.Ed25519, spk) {
			continue
		}
		if sub, err := ParseSubject(t.Subject); err == nil {
			held[ownerKey(sub.Local, sub.Domain)] = true
		}
	}
	slices.Sort(owned)
	for _, k := range slices.Compact(owned) {
		if o := s.owners[k]; o != nil && bytes.Equal(o.Ed25519, spk) && !held[k] {
			b = put(b, kindOwner, &Owner{Key: k})
		}
	}
	return b
}

// Lock keeps local@domain for the key that owns it now, live or not; with no owner, for nobody.
func (s *State) Lock(_ context.Context, name, note string) error {
	sub, err := ParseSubject(name)
	if err != nil {
		return fmt.Errorf("%w: %q: %w", ErrBadRequest, name, err)
	}
	return s.own(func(b []byte, nowSec int64) ([]byte, error) {
		l := &Lock{Key: ownerKey(sub.Local, sub.Domain), Name: sub.String(), Note: note, AtSec: nowSec}
		if o := s.owners[l.Key]; o != nil {
			l.Ed25519 = o.Ed25519
		}
		return put(b, kindLock, l), nil
	})
}

// Unlock takes a lock off.
func (s *State) Unlock(_ context.Context, name string) error {
	sub, err := ParseSubject(name)
	if err != nil {
		return fmt.Errorf("%w: %q: %w", ErrBadRequest, name, err)
	}
	return s.own(func(b []byte, _ int64) ([]byte, error) {
		k := ownerKey(sub.Local, sub.Domain)
		if s.locks[k] == nil {
			return nil, fmt.Errorf("%w: no lock on %s", ErrNotFound, sub)
		}
		return put(b, kindLock, &Lock{Key: k, Off: true}), nil
	})
}

// Locks lists the locks.
func (s *State) Locks() []*Lock { return listOf(s, func() map[string]*Lock { return s.locks }) }

// Owners lists who owns what.
func (s *State) Owners() []*Owner { return listOf(s, func() map[string]*Owner { return s.owners }) }

// Denied lists the deny list.
func (s *State) Denied() []*Deny { return listOf(s, func() map[string]*Deny { return s.denied }) }

func listOf[V any](s *State, of func() map[string]*V) []*V {
	s.mu.RLock()
	defer s.mu.RUnlock()
	m := of()
	var vs []*V
	for _, k := range sorted(m) {
		vs = append(vs, m[k])
	}
	return vs
}

// Deny puts a subject, an Ed25519 key in hex or a domain on the deny list. What is live stays so until it is revoked.
func (s *State) Deny(ctx context.Context, kind DenyKind, value, note string) error {
	return s.setDeny(ctx, kind, value, note, false)
}

// Allow takes it off again.
func (s *State) Allow(ctx context.Context, kind DenyKind, value string) error {
	return s.setDeny(ctx, kind, value, "", true)
}

func (s *State) setDeny(_ context.Context, kind DenyKind, value, note string, off bool) error {
	value = strings.ToLower(strings.TrimSpace(value))
	ok := false
	switch kind {
	case DenySubject:
		_, err := ParseSubject(value)
		ok = err == nil
	case DenyKey:
		raw, err := hex.DecodeString(value)
		ok = err == nil && len(raw) == 32
	case DenyDomain:
		value = strings.TrimSuffix(value, ".")
		ok = validDomain(value) || hostLabel(value, 63)
	}
	if !ok {
		return fmt.Errorf("%w: %q is no %s; a subject is local@domain, a key 64 hex digits, a domain a host name", ErrBadRequest, value, kind)
	}
	return s.own(func(b []byte, nowSec int64) ([]byte, error) {
		d := &Deny{Kind: kind, Value: value, Note: note, AtSec: nowSec, Off: off}
		if off && s.denied[d.id()] == nil {
			return nil, fmt.Errorf("%w: %s %s is not denied", ErrNotFound, kind, value)
		}
		return put(b, kindDeny, d), nil
	})
}

// IsDenied says whether the deny list keeps a registrant out.
func (s *State) IsDenied(sub Subject, spk []byte) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.denied[string(DenySubject)+":"+sub.String()] != nil || s.denied[string(DenyKey)+":"+hex.EncodeToString(spk)] != nil {
		return true
	}
	for d := sub.Domain; ; {
		if s.denied[string(DenyDomain)+":"+d] != nil {
			return true
		}
		_, rest, ok := strings.Cut(d, ".")
		if !ok {
			return false
		}
		d = rest
	}
}

// SetPolicy stores a setting that outlives the configuration: grace_sec.
func (s *State) SetPolicy(_ context.Context, name, value string) error {
	if n, err := strconv.ParseInt(value, 10, 64); name != "grace_sec" || err != nil || n < 0 {
		return fmt.Errorf("%w: policy %s=%s: only grace_sec with a number of seconds is known", ErrBadRequest, name, value)
	}
	return s.own(func(b []byte, _ int64) ([]byte, error) { return put(b, kindPolicy, policyEntry{name, value}), nil })
}
