package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/dnsmesh/dmpd/internal/logging"
)

// xdpInterfacesMax is far above what a machine answers DNS on; each queue of each costs a thread and 4 MiB.
const xdpInterfacesMax = 16

// check looks at what one value alone cannot show: forms, and combinations that cannot work.
func (c *Config) check(warnings, errs *Problems) {
	c.checkForms(errs)
	c.checkZone(warnings, errs)
	c.checkHTTP(warnings, errs)
	c.checkCluster(warnings)
}

func (c *Config) checkForms(errs *Problems) {
	if _, err := logging.ParseLevel(c.String("LOG_LEVEL")); err != nil {
		errs.add("LOG_LEVEL", c.String("LOG_LEVEL"), "no such level", "Use DEBUG, INFO, WARNING or ERROR")
	}
	if d, err := time.ParseDuration(c.String("LOG_RETAIN")); err != nil || d < 0 {
		errs.add("LOG_RETAIN", c.String("LOG_RETAIN"), "not a duration", "Write it like 1h or 30m")
	}
	for _, name := range []string{"DNS_HOST", "HTTP_HOST"} {
		for _, host := range c.List(name) {
			if _, err := netip.ParseAddr(host); err != nil && !strings.EqualFold(host, "localhost") {
				errs.add(name, host, "not an IP address", "Use addresses of this machine, 0.0.0.0 or :: for all, separated by commas")
			}
		}
		if len(c.List(name)) == 0 {
			errs.add(name, "", "names no address", "Use addresses of this machine, separated by commas")
		}
	}
	if v := c.String("DNS_APEX_A"); v != "" {
		if a, err := netip.ParseAddr(v); err != nil || !a.Is4() {
			errs.add("DNS_APEX_A", v, "not an IPv4 address", "Set the address that the zone's name should have")
		}
	}
	if v := c.String("DNS_APEX_AAAA"); v != "" {
		if a, err := netip.ParseAddr(v); err != nil || !a.Is6() || a.Is4In6() {
			errs.add("DNS_APEX_AAAA", v, "not an IPv6 address", "Set the address that the zone's name should have")
		}
	}
	for _, name := range []string{"DNS_APEX_NS", "DNS_APEX_SOA_RNAME"} {
		if v := c.String(name); v != "" && !isName(strings.Replace(v, "@", ".", 1)) {
			errs.add(name, v, "not a domain name", "Write it like ns1.example.com")
		}
	}
	for _, p := range c.List("TRUSTED_PROXIES") {
		if _, err := ParsePrefix(p); err != nil {
			errs.add("TRUSTED_PROXIES", p, "neither an address nor a prefix", "Write it like 10.0.0.1 or 10.0.0.0/8")
		}
	}
	if xdp := c.List("XDP_INTERFACES"); c.String("UDP_ENGINE") == "xdp" && len(xdp) == 0 {
		errs.add("XDP_INTERFACES", "", "UDP_ENGINE=xdp names no interface", "Set it to the interface that queries come on, like eth0")
	} else if len(xdp) > xdpInterfacesMax {
		errs.add("XDP_INTERFACES", "", fmt.Sprintf("more than %d interfaces", xdpInterfacesMax), "Name those that queries come on")
	}
	if n := len(c.String("DNS_NSID")); n > 255 {
		errs.add("DNS_NSID", "", "longer than 255 bytes", "Use a short name of this node")
	}
}

// ParsePrefix reads an address or a prefix.
func ParsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

func (c *Config) checkZone(warnings, errs *Problems) {
	zone := c.Zone()
	if zone == "" {
		warnings.add("SERVED_ZONE", "", "no zone is configured", "Every UPDATE will be refused; set DMP_DOMAIN to the zone of this node")
		return
	}
	if !isName(zone) {
		for _, name := range zoneChain {
			if v := c.String(name); v != "" {
				errs.add(name, v, "not a domain name", "Write it like mesh.example.com")
				return
			}
		}
	}
}

// isName says whether s is a domain name of letters, digits, hyphens and underscores (RFC 1035 2.3.1 and 2.3.4).
func isName(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || strings.Trim(strings.ToLower(label), "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}

func (c *Config) checkHTTP(warnings, errs *Problems) {
	if c.AuthMode() == "open" && !c.Bool("ALLOW_OPEN_PUBLIC_BIND") {
		for _, host := range c.List("HTTP_HOST") {
			if !isLoopback(host) {
				errs.add("AUTH_MODE", "open", "anybody could write records through HTTP on "+host,
					"Set DMP_OPERATOR_TOKEN, or DMP_HTTP_HOST=127.0.0.1, or DMP_ALLOW_OPEN_PUBLIC_BIND=1 if that is meant")
				break
			}
		}
	}
	if (c.String("TLS_CERT") == "") != (c.String("TLS_KEY") == "") {
		errs.add("TLS_CERT", c.String("TLS_CERT"), "needs DMP_TLS_KEY, and the other way round", "Set both or neither")
	}
	c.checkACME(warnings, errs)
	if c.Bool("REGISTRATION_ENABLED") {
		if c.AuthMode() != "multi-tenant" {
			warnings.add("REGISTRATION_ENABLED", "1", "has no effect unless DMP_AUTH_MODE=multi-tenant", "")
		}
		if c.String("NODE_HOSTNAME") == "" {
			warnings.add("REGISTRATION_ENABLED", "1", "has no effect without DMP_NODE_HOSTNAME", "")
		}
		if !c.Bool("DNS_UPDATE_ENABLED") {
			warnings.add("REGISTRATION_ENABLED", "1", "mints no TSIG keys without DMP_DNS_UPDATE_ENABLED=1", "")
		}
	}
	if c.Bool("HEARTBEAT_ENABLED") && (c.String("HEARTBEAT_SELF_ENDPOINT") == "" || c.String("HEARTBEAT_OPERATOR_KEY_PATH") == "") {
		warnings.add("HEARTBEAT_ENABLED", "1", "has no effect without DMP_HEARTBEAT_SELF_ENDPOINT and DMP_HEARTBEAT_OPERATOR_KEY_PATH", "")
	}
	if c.Bool("HEARTBEAT_ENABLED") {
		c.checkHeartbeat(warnings)
	}
}

// checkHeartbeat warns of what the heartbeat will leave out. None of it keeps the node from running (federation.md 4).
func (c *Config) checkHeartbeat(warnings *Problems) {
	remote := len(c.List("HEARTBEAT_DNS_RESOLVERS")) == 0
	for _, text := range c.List("HEARTBEAT_DNS_RESOLVERS") {
		ap, err := netip.ParseAddrPort(text)
		if err != nil {
			var a netip.Addr
			a, err = netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
			ap = netip.AddrPortFrom(a, 53)
		}
		if err != nil || ap.Port() == 0 {
			warnings.add("HEARTBEAT_DNS_RESOLVERS", text, "is not a resolver, and is not asked", "Write it like 192.0.2.1, 192.0.2.1:5353 or [2001:db8::1]:53")
			continue
		}
		remote = remote || !ap.Addr().IsLoopback()
	}
	if c.Bool("HEARTBEAT_DNSSEC_REQUIRED") && remote {
		warnings.add("HEARTBEAT_DNSSEC_REQUIRED", "1", "proves nothing if the way to the resolver is open: whoever can change an answer can set its AD bit", "Run a validating resolver on this machine, and name it in DMP_HEARTBEAT_DNS_RESOLVERS")
	}
	for _, u := range c.List("HEARTBEAT_PUBLIC_SEED_URLS") {
		if p, err := url.Parse(u); err != nil || p.Scheme != "https" || p.Host == "" || p.User != nil {
			warnings.add("HEARTBEAT_PUBLIC_SEED_URLS", u, "is not an https URL, and is not fetched", "")
		}
	}
}

// acmeDomainsMax bounds ACME_DOMAINS: each is a certificate of its own, and Let's Encrypt issues 50 a week for a registered domain.
const acmeDomainsMax = 20

func (c *Config) checkACME(warnings, errs *Problems) {
	domains := c.List("ACME_DOMAINS")
	if len(domains) == 0 {
		for _, name := range []string{"ACME_EMAIL", "ACME_CA_ROOT"} {
			if c.String(name) != "" {
				warnings.add(name, c.String(name), "has no effect without DMP_ACME_DOMAINS", "")
			}
		}
		return
	}
	if c.String("TLS_CERT") != "" {
		errs.add("ACME_DOMAINS", strings.Join(domains, ","), "and DMP_TLS_CERT both say where the certificate comes from", "Set one of them")
	}
	if len(domains) > acmeDomainsMax {
		errs.add("ACME_DOMAINS", fmt.Sprint(len(domains), " names"), fmt.Sprintf("at most %d", acmeDomainsMax), "Use DMP_TLS_CERT with a certificate of many names")
	}
	for _, d := range domains {
		_, notIP := netip.ParseAddr(d)
		if !isName(d) || !strings.Contains(d, ".") || notIP == nil {
			errs.add("ACME_DOMAINS", d, "is no host name that an ACME server certifies", "Use a name like node.example.com, no address and no wildcard")
		}
	}
	if u, err := url.Parse(c.String("ACME_CA")); err != nil || u.Scheme != "https" || u.Host == "" {
		errs.add("ACME_CA", c.String("ACME_CA"), "is no https URL", "Use the directory URL that the ACME server's operator names")
	}
	if port := c.Int("HTTP_PORT"); port != 443 {
		warnings.add("HTTP_PORT", fmt.Sprint(port), "is not 443, where the ACME server looks for this node", "Forward port 443 to it, or set DMP_HTTP_PORT=443")
	}
}

// isLoopback is the reference's rule (http.md 3): an IP literal in 127.0.0.0/8, ::1, or exactly localhost.
func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

func (c *Config) checkCluster(warnings *Problems) {
	peers := c.List("SYNC_PEERS")
	if len(peers) > 0 && c.String("SYNC_PEER_TOKEN") == "" {
		warnings.add("SYNC_PEERS", c.String("SYNC_PEERS"), "has no effect without DMP_SYNC_PEER_TOKEN", "")
	}
	// cluster.md 12: what an operator may not have meant.
	switch key, name := c.String("SYNC_OPERATOR_SPK"), c.String("CLUSTER_BASE_DOMAIN"); {
	case len(peers) > 0 && key == "":
		warnings.add("SYNC_PEERS", c.String("SYNC_PEERS"), "stays as it is: without DMP_SYNC_OPERATOR_SPK no cluster manifest is believed", "")
	case key != "" && name == "":
		warnings.add("SYNC_OPERATOR_SPK", "", "waits for the cluster's name, from DMP_CLUSTER_FILE or an installed manifest", "Set DMP_CLUSTER_BASE_DOMAIN")
	}
	for _, p := range peers {
		if u, err := url.Parse(p); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			warnings.add("SYNC_PEERS", p, "is not a URL", "Write it like https://node-b.example.com:8053")
		}
	}
}
