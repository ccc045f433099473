package auth

import (
	"errors"
	"strings"
)

// Subject is a canonical local@domain (http.md 7.4).
type Subject struct{ Local, Domain string }

func (s Subject) String() string { return s.Local + "@" + s.Domain }

// subjectMax bounds a subject that an operator's command or a body of 16 KiB may bring: a local part fits a key name, a domain 253 characters.
const subjectMax = 1024

// ParseSubject canonicalises: trimmed, lower case. A character outside ASCII is refused, which http.md 7.4 permits in place of NFKC.
func ParseSubject(text string) (Subject, error) {
	text = strings.TrimSpace(text)
	if len(text) > subjectMax {
		return Subject{}, errors.New("too long")
	}
	for i := range len(text) {
		if text[i] >= 0x80 {
			return Subject{}, errors.New("not ASCII")
		}
	}
	local, domain, ok := strings.Cut(strings.ToLower(text), "@")
	switch {
	case !ok:
		return Subject{}, errors.New("expected local@domain")
	case !validLocal(local):
		return Subject{}, errors.New("bad local part")
	case !validDomain(domain):
		return Subject{}, errors.New("bad domain")
	}
	return Subject{local, domain}, nil
}

func alnum(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

// [a-z0-9][a-z0-9._+-]*
func validLocal(s string) bool {
	if s == "" || !alnum(s[0]) {
		return false
	}
	for i := range len(s) {
		if !alnum(s[i]) && !strings.ContainsRune("._+-", rune(s[i])) {
			return false
		}
	}
	return true
}

// Two or more labels [a-z0-9]([a-z0-9-]*[a-z0-9])? joined by dots.
func validDomain(s string) bool {
	labels := strings.Split(s, ".")
	if len(labels) < 2 {
		return false
	}
	for _, l := range labels {
		if !hostLabel(l, len(s)) {
			return false
		}
	}
	return true
}

// hostLabel is [a-z0-9]([a-z0-9-]*[a-z0-9])? of at most n characters.
func hostLabel(l string, n int) bool {
	if l == "" || len(l) > n || !alnum(l[0]) || !alnum(l[len(l)-1]) {
		return false
	}
	for i := range len(l) {
		if !alnum(l[i]) && l[i] != '-' {
			return false
		}
	}
	return true
}

// allowed says whether a domain is in the allowlist; an empty list allows all (http.md 7.4).
func allowed(list []string, domain string) bool {
	empty := true
	for _, e := range list {
		e = strings.TrimSuffix(strings.ToLower(strings.TrimSpace(e)), ".")
		if e == domain {
			return true
		}
		empty = empty && e == ""
	}
	return empty
}
