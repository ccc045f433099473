package main

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// zone is what all three serve: the values that clients of the protocol leave, and the apex.
type zone struct {
	names  []string // fully qualified, lower case, in the order made
	values map[string][]string
	count  int
	below  []string // empty non-terminals: names that exist because of one beneath them
	big    []string // RRsets that no datagram holds
}

func (z *zone) add(name string, values ...string) {
	if z.values[name] == nil {
		z.names = append(z.names, name)
	}
	z.values[name] = append(z.values[name], values...)
	z.count += len(values)
}

func text(rng *rand.Rand, n int) string {
	const from = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=;."
	b := make([]byte, n)
	for i := range b {
		b[i] = from[rng.IntN(len(from))]
	}
	return string(b)
}

func makeZone(rng *rand.Rand) *zone {
	z := &zone{values: map[string][]string{}}
	for range 40 {
		z.add("id-"+hexDigits(rng, 16)+"."+apex, "v=dmp1;t=identity;d="+text(rng, 192))
	}
	for range 20 { // 3 to 12 prekeys: some fit a datagram, some do not
		user := "id-" + hexDigits(rng, 12) + "." + apex
		for range 3 + rng.IntN(10) {
			z.add("prekeys."+user, "v=dmp1;t=prekey;d="+text(rng, 144))
		}
		z.below = append(z.below, user)
	}
	for range 40 { // manifests: two strings, and more
		box := "mb-" + hexDigits(rng, 12) + "." + apex
		z.add(fmt.Sprintf("slot-%d.%s", rng.IntN(10), box), "v=dmp1;t=manifest;d="+text(rng, 316+43*rng.IntN(30)))
		z.below = append(z.below, box)
	}
	for range 60 {
		z.add(fmt.Sprintf("chunk-%04d-%s.%s", rng.IntN(6), hexDigits(rng, 12), apex), "v=dmp1;t=chunk;d="+text(rng, 224))
	}
	for range 30 { // names of several levels, so that there are empty ones that are no mailbox and no user
		middle := fmt.Sprintf("m%s.%s", hexDigits(rng, 6), apex)
		z.add("a."+middle, text(rng, 1+rng.IntN(300)))
		z.add("x.y."+middle, text(rng, 1+rng.IntN(300)))
		z.below = append(z.below, middle, "y."+middle)
	}
	for _, n := range []int{1, 254, 255, 256, 510, 511, 2048} {
		z.add(fmt.Sprintf("n%d.%s", n, apex), text(rng, n))
	}
	for i := range 3 {
		name := fmt.Sprintf("big%d.%s", i, apex)
		for range 20 + 20*i {
			z.add(name, text(rng, 243))
		}
		z.big = append(z.big, name)
	}
	z.add("_dnsmesh-heartbeat."+apex, "v=dmp1;t=heartbeat;"+text(rng, 300))
	z.add(apex, "v=dmp1;t=test;"+text(rng, 20))
	return z
}

// file is the zone as a master file (RFC 1035 5).
func (z *zone) file() string {
	var b strings.Builder
	fmt.Fprintf(&b, "$TTL %d\n%s IN SOA %s %s 1 3600 600 604800 %d\n", ttlSec, apex, apexNS, soaRName, ttlSec)
	fmt.Fprintf(&b, "%s IN NS %s\n%s IN A %s\n%s IN AAAA %s\n", apex, apexNS, apex, apexA, apex, apexAAAA)
	for _, name := range z.names {
		for _, value := range z.values[name] {
			fmt.Fprintf(&b, "%s %d IN TXT %s\n", name, ttlOf(name), quoted(value))
		}
	}
	return b.String()
}

// ttlOf is the TTL of a name: the node gives heartbeats a short one (federation.md 17).
func ttlOf(name string) int {
	if name == "_dnsmesh-heartbeat."+apex {
		return 30
	}
	return ttlSec
}

// quoted cuts a value in strings of 255 bytes, as the node does (dns.md 3.3).
func quoted(value string) string {
	var parts []string
	for len(value) > 255 {
		parts, value = append(parts, `"`+value[:255]+`"`), value[255:]
	}
	return strings.Join(append(parts, `"`+value+`"`), " ")
}
