package heartbeat

import (
	"net/netip"
	"strings"

	"github.com/dnsmesh/dmpd/internal/record"
)

// zoneNameMax leaves room for the longest owner name below a zone in 253 characters (RFC 1035 2.3.4).
const zoneNameMax = 253 - len("_dnsmesh-heartbeat.")

// canonicalZone gives the one form of a zone's name: lower case, without dots at the end. What is no host name, or is an address, is
// no zone. Every name that comes from outside passes here before it is asked for or compared.
func canonicalZone(s string) (string, bool) {
	s = strings.TrimRight(strings.ToLower(s), ".")
	if s == "" || len(s) > zoneNameMax || !record.DNSName(s) {
		return "", false
	}
	last := s[strings.LastIndexByte(s, '.')+1:]
	return s, strings.Trim(last, "0123456789") != "" // all digits: an IPv4 address, or a mistake (RFC 3696 2)
}

// seedZone reads an entry of a list of seeds: a zone, host:port, or a URL, of which the host is taken (federation.md 5).
func seedZone(s string) (string, bool) {
	s = strings.TrimSpace(s)
	if _, rest, ok := strings.Cut(s, "://"); ok {
		return canonicalZone(authorityHost(rest))
	}
	if strings.HasPrefix(s, "[") {
		return "", false
	}
	s, _, _ = strings.Cut(s, ":")
	return canonicalZone(s)
}

// authorityHost is the host of what stands behind "://".
func authorityHost(rest string) string {
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		rest = rest[:i]
	}
	rest = rest[strings.LastIndexByte(rest, '@')+1:]
	if strings.HasPrefix(rest, "[") {
		host, _, _ := strings.Cut(rest[1:], "]")
		return host
	}
	host, _, _ := strings.Cut(rest, ":")
	return host
}

// zoneOf is the zone that a heartbeat says it is published at: its own field, or else its endpoint's host (federation.md 5).
func zoneOf(h *record.Heartbeat) (string, bool) {
	if z, ok := canonicalZone(h.Zone); ok {
		return z, true
	}
	_, rest, _ := strings.Cut(h.Endpoint, "://")
	host := authorityHost(rest)
	if _, err := netip.ParseAddr(host); err == nil {
		return "", false
	}
	return canonicalZone(host)
}
