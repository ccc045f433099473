package record

import (
	"net/netip"
	"strings"
)

// refusedNets are the addresses at which no public node is (records.md 9.1, 8). What connects to an endpoint checks the address
// again after it has resolved the name: here only literals are seen.
var refusedNets = func() (nets []netip.Prefix) {
	for _, s := range strings.Fields(`
		0.0.0.0/8 10.0.0.0/8 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/29 192.0.0.170/31 192.0.2.0/24 192.168.0.0/16
		198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
		::/8 100::/8 200::/7 400::/6 800::/5 1000::/4 4000::/3 6000::/3 8000::/3 a000::/3 c000::/3 e000::/4 f000::/5 f800::/6
		fe00::/9 fc00::/7 fe80::/10 ff00::/8 2001::/23 2001:db8::/32`) {
		nets = append(nets, netip.MustParsePrefix(s))
	}
	return nets
}()

// PublicAddr says whether a public node may be at this address.
func PublicAddr(a netip.Addr) bool {
	a = a.WithZone("") // a prefix contains no address with a scope
	for _, net := range refusedNets {
		if net.Contains(a) {
			return false
		}
	}
	return true
}

// PublicEndpoint says whether text may be the endpoint of a public node (records.md 9.1): scheme://host[:port], nothing more.
// It is as tolerant as the readers in use: the port is any text, and a lone "?" or "#" at the end is nothing.
func PublicEndpoint(text string) bool {
	if len(text) < 1 || len(text) > endpointMax || !ascii(text) || !noSpace(text) {
		return false
	}
	scheme, rest, _ := strings.Cut(text, ":")
	if s := lower(scheme); s != "http" && s != "https" {
		return false
	}
	rest, ok := strings.CutPrefix(rest, "//")
	if !ok {
		return false
	}
	authority := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority = rest[:i]
		if tail := rest[i:]; tail != "?" && tail != "#" && tail != "?#" {
			return false
		}
	}
	if strings.Contains(authority, "@") {
		return false
	}
	host, _, _ := strings.Cut(authority, ":")
	if _, inside, open := strings.Cut(authority, "["); open || strings.Contains(authority, "]") {
		if !open || !strings.Contains(authority, "]") {
			return false
		}
		host, _, _ = strings.Cut(inside, "]")
		if !bracketed(host) {
			return false
		}
	}
	host, scope, scoped := strings.Cut(host, "%")
	host = lower(host)
	if scoped {
		host += "%" + scope
	}
	switch host {
	case "", "localhost", "localhost.localdomain", "ip6-localhost":
		return false
	}
	a, err := netip.ParseAddr(host)
	return err != nil || strings.Contains(scope, "%") || PublicAddr(a)
}

// bracketed says whether host may stand in brackets: an IPv6 literal, or the form of RFC 3986 for versions to come.
func bracketed(host string) bool {
	if version, ok := strings.CutPrefix(host, "v"); ok {
		hex, any, dot := strings.Cut(version, ".")
		return dot && any != "" && hex != "" && strings.Trim(hex, "0123456789abcdefABCDEF") == ""
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Is6() && !strings.Contains(a.Zone(), "%")
}
