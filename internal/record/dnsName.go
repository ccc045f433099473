package record

import "strings"

// Names of clusters, domains and subjects, as text (records.md 2.4): letters, digits, hyphens, in any case. Not the names that DNS
// asks for, which have underscores: those are in names.go.

// DNSName says whether s is such a name. One dot at the end is allowed; no bound on the whole, the fields have one.
func DNSName(s string) bool {
	if strings.HasSuffix(s, "..") {
		return false
	}
	s = strings.TrimSuffix(s, ".")
	for {
		label, rest, more := strings.Cut(s, ".")
		if len(label) < 1 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			c := label[i]
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
				return false
			}
		}
		if !more {
			return true
		}
		s = rest
	}
}

const nameFieldMax = 64 // bytes of a cluster's or domain's name, its last dot apart

// nameField reads a name with its length before it, and strips one dot.
func (f *fields) nameField() (string, Refusal) {
	b := f.take(int(f.u8()))
	if !f.ok {
		return "", BadField
	}
	name := strings.TrimSuffix(string(b), ".")
	if len(name) < 1 || len(name) > nameFieldMax {
		return "", BadField
	}
	if !DNSName(string(b)) {
		return "", BadName
	}
	return name, Accepted
}

// sameName compares a name of a record with the one that a reader expects: without regard to case, one dot stripped from the latter.
func sameName(got, expected string) bool {
	return lower(got) == lower(strings.TrimSuffix(expected, "."))
}

// lower maps A to Z (RFC 4343).
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}
