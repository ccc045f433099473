package auth

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// Class is what kind of name a record write goes to (http.md 6.2).
type Class uint8

// Classes of names.
const (
	ClassUnknown  Class = iota // no token may
	ClassOwner                 // the token whose scope it is
	ClassPool                  // any live token, publish only
	ClassOperator              // the operator token alone
)

var classNames = [...]string{"unknown", "owner", "shared-pool", "operator"}

func (c Class) String() string { return classNames[c] }

// scope is what an owner name asks of a token.
type scope struct {
	subject string // the whole subject, or
	h       string // the first hex digits of SHA-256 of its local part, with
	domain  string // its domain, or
	prekey  string // the token's hash12
}

func (sc scope) allows(t *Token) bool {
	if sc.prekey != "" {
		return t.Hash12 == sc.prekey
	}
	if sc.subject != "" {
		return t.Subject == sc.subject
	}
	local, domain, _ := strings.Cut(t.Subject, "@")
	h := sha256.Sum256([]byte(local))
	return domain == sc.domain && hex.EncodeToString(h[:])[:len(sc.h)] == sc.h
}

// classify is the table of http.md 6.2; the first shape that fits decides. name is lower case without trailing dots.
func classify(name string) (Class, scope) {
	if name == "" || !strings.Contains(name, ".") {
		return ClassUnknown, scope{}
	}
	for i := range len(name) {
		if c := name[i]; !alnum(c) && c != '.' && c != '-' {
			return ClassUnknown, scope{}
		}
	}
	l := strings.Split(name, ".")
	for _, label := range l {
		if label == "" {
			return ClassUnknown, scope{}
		}
	}
	// rest is D, two or more labels, from label n on.
	rest := func(n int) (string, bool) {
		if len(l) < n+2 {
			return "", false
		}
		for _, label := range l[n:] {
			if !hostLabel(label, 63) {
				return "", false
			}
		}
		return strings.Join(l[n:], "."), true
	}
	if d, ok := rest(2); ok && l[0] == "dmp" && hostLabel(l[1], 63) {
		return ClassOwner, scope{subject: l[1] + "@" + d}
	}
	if h, ok := hexAfter(l[0], "id-", 16); ok {
		if d, ok := rest(1); ok {
			return ClassOwner, scope{h: h, domain: d}
		}
	}
	if l[0] == "prekeys" && len(l) > 1 {
		if h, ok := hexAfter(l[1], "id-", 12); ok {
			if d, ok := rest(2); ok {
				return ClassOwner, scope{h: h, domain: d}
			}
		}
	}
	if l[0] == "rotate" && len(l) > 2 && l[1] == "dmp" {
		d, ok := rest(3)
		if _, hash := hexAfter(l[2], "id-", 12); hash && ok {
			return ClassOperator, scope{}
		}
		if ok && hostLabel(l[2], 63) {
			return ClassOwner, scope{subject: l[2] + "@" + d}
		}
	}
	if n, ok := strings.CutPrefix(l[0], "pk-"); ok && digits(n) {
		if h, ok := hexAfter(l[1], "", 12); ok {
			if _, ok := rest(2); ok {
				return ClassOwner, scope{prekey: h}
			}
		}
	}
	if n, ok := strings.CutPrefix(l[0], "slot-"); ok && digits(n) {
		if _, ok := hexAfter(l[1], "mb-", 12); ok {
			if _, ok := rest(2); ok {
				return ClassPool, scope{}
			}
		}
	}
	if text, ok := strings.CutPrefix(l[0], "chunk-"); ok {
		if n, h, ok := strings.Cut(text, "-"); ok && digits(n) {
			if _, ok := hexAfter(h, "", 12); ok {
				if _, ok := rest(1); ok {
					return ClassPool, scope{}
				}
			}
		}
	}
	return ClassOperator, scope{}
}

// hexAfter reads prefix and exactly n lower-case hex digits.
func hexAfter(s, prefix string, n int) (string, bool) {
	h, ok := strings.CutPrefix(s, prefix)
	if !ok || len(h) != n || strings.Trim(h, "0123456789abcdef") != "" {
		return "", false
	}
	return h, true
}

func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
