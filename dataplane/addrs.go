package dataplane

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// followEvery is how often the addresses of the machine are looked at again under a wildcard.
const followEvery = 2 * time.Second

// parseHosts reads addresses to listen on; "0.0.0.0" and "::" stand for all of their family.
func parseHosts(hosts []string) (addrs []netip.Addr, v4, v6 bool, err error) {
	for _, h := range hosts {
		a, err := netip.ParseAddr(strings.Trim(strings.TrimSpace(h), "[]"))
		if err != nil {
			if h != "localhost" {
				return nil, false, false, fmt.Errorf("dataplane: %q is not an IP address to listen on", h)
			}
			a = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		a = a.Unmap()
		switch {
		case !a.IsUnspecified():
			addrs = append(addrs, a)
		case a.Is4():
			v4 = true
		default:
			v6 = true
		}
	}
	return addrs, v4, v6, nil
}

// localAddrs lists the machine's addresses of the families asked for. Link-local ones are left out: no delegation can name them.
func localAddrs(v4, v6 bool) ([]netip.Addr, error) {
	if !v4 && !v6 {
		return nil, nil
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("dataplane: listing the machine's addresses: %w", err)
	}
	var addrs []netip.Addr
	for _, a := range all {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		ip, ok := netip.AddrFromSlice(n.IP)
		if ip = ip.Unmap(); !ok || ip.IsLinkLocalUnicast() || ip.IsMulticast() {
			continue
		}
		if ip.Is4() && v4 || !ip.Is4() && v6 {
			addrs = append(addrs, ip)
		}
	}
	return addrs, nil
}
