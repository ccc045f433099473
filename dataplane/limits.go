package dataplane

import (
	"encoding/binary"
	"math"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
)

// Sizes of the tables of buckets. A table is bounded, whoever asks: what does not fit any more begins with a full bucket.
const (
	rateBuckets = 1 << 16 // addresses at once, 512 KiB for each transport
	rrlBuckets  = 1 << 18 // prefix, name and kind at once, 2 MiB: a resolver asks for some 10,000 names within a second
	ways        = 4       // places where a bucket may lie; the one that is nearest to full gives way

	tagShift = 48 // a word is 16 bits of the key's hash and 48 bits of time in microseconds: nine years
	timeMask = 1<<tagShift - 1
)

// buckets is a table of token buckets, shared by all loops: SO_REUSEPORT spreads one address over them. A bucket is one word, the
// time at which it would be full again (the generic cell rate algorithm), changed by compare-and-swap: no lock, no allocation, nothing
// to clean up. Two keys with one hash share a bucket, which is one in 2^16 for keys of one set.
type buckets struct {
	words    []atomic.Uint64
	seed     uint64
	interval atomic.Int64 // microseconds that one token takes; 0: no limit
	depth    atomic.Int64 // microseconds that a full bucket holds
}

func newBuckets(n int) *buckets {
	return &buckets{words: make([]atomic.Uint64, n), seed: rand.Uint64()}
}

// set gives rate and burst; a rate or burst of zero or less switches the limit off (dns.md 4).
func (b *buckets) set(rate, burst float64) {
	if rate <= 0 || burst <= 0 {
		b.interval.Store(0)
		return
	}
	interval := max(1, math.Round(min(1e6/rate, 1e12)))
	b.depth.Store(int64(min(burst, 1e6) * interval))
	b.interval.Store(int64(interval))
}

func (b *buckets) on() bool { return b.interval.Load() != 0 }

// take takes a token of key's bucket at that moment (monotonic, nanoseconds); false if there is none.
func (b *buckets) take(key uint64, monoNs int64) bool {
	interval := b.interval.Load()
	if interval == 0 {
		return true
	}
	depth := b.depth.Load()
	now := max(monoNs, 0)/1000 + 1 // never 0, which is an empty word
	set := int(key%uint64(len(b.words)/ways)) * ways
	tag := key >> tagShift
	for {
		at, oldest := -1, set
		var word, oldestTime uint64 = 0, math.MaxUint64
		for i := set; i < set+ways; i++ {
			w := b.words[i].Load()
			if w != 0 && w>>tagShift == tag {
				at, word = i, w
				break
			}
			if t := w & timeMask; t < oldestTime {
				oldest, oldestTime, word = i, t, w
			}
		}
		full := now
		if at >= 0 {
			full = max(now, int64(word&timeMask))
		} else {
			at = oldest
			word = b.words[at].Load()
		}
		if full+interval-now > depth {
			return false
		}
		if b.words[at].CompareAndSwap(word, tag<<tagShift|uint64(full+interval)&timeMask) {
			return true
		}
	}
}

// Prefixes that count as one client: an IPv4 address, and an IPv6 /56, which is what one household or host is commonly given.
const prefixV6 = 56

// client gives the key of an address: equal for all addresses that count as one client.
func client(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if a.Is4() {
		return a
	}
	p, _ := a.WithZone("").Prefix(prefixV6)
	return p.Addr()
}

// rrlPrefix is coarser, as others' response rate limiting has it: a spoofed flood comes from a network.
func rrlPrefix(a netip.Addr) netip.Addr {
	a = a.Unmap()
	n := prefixV6
	if a.Is4() {
		n = 24
	}
	p, _ := a.WithZone("").Prefix(n)
	return p.Addr()
}

// hashAddr and hashName mix with the table's secret seed, so that nobody can aim at a bucket.
func (b *buckets) hashAddr(a netip.Addr, salt uint64) uint64 {
	raw := a.As16()
	h := mix(b.seed^binary.LittleEndian.Uint64(raw[:8]), 0x9E3779B97F4A7C15^salt)
	return mix(h^binary.LittleEndian.Uint64(raw[8:]), 0xD6E8FEB86659FD93)
}

func (b *buckets) hashName(h uint64, name []byte) uint64 {
	for len(name) >= 8 {
		h = mix(h^binary.LittleEndian.Uint64(name), 0xA0761D6478BD642F)
		name = name[8:]
	}
	var tail uint64
	for i, c := range name {
		tail |= uint64(c) << (8 * i)
	}
	return mix(h^tail^uint64(len(name))<<56, 0xE7037ED1A0B428DB)
}

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a^0x2D358DCCAA6C78A5, b)
	return hi ^ lo ^ a
}

// Kinds of answers that response rate limiting tells apart.
const (
	kindAnswer = iota
	kindNegative
	kindError
)

// limits holds all that is counted by client.
type limits struct {
	rate [2]*buckets // by transport: a retry over TCP is never starved by the UDP bucket (dns.md 4)
	rrl  *buckets
	// malformed bounds the FORMERR replies that one prefix gets: they need no name, so that RRL cannot tell them apart by it.
	malformed *buckets
}

// malformedRate is the FORMERR replies a second for one prefix: enough for any broken client to be seen.
const malformedRate = 50

func newLimits() *limits {
	l := &limits{rate: [2]*buckets{newBuckets(rateBuckets), newBuckets(rateBuckets)}, rrl: newBuckets(rrlBuckets), malformed: newBuckets(rateBuckets)}
	l.malformed.set(malformedRate, malformedRate)
	return l
}

// message charges one message, before it is parsed.
func (l *limits) message(transport int, from netip.Addr, monoNs int64) bool {
	b := l.rate[transport]
	if !b.on() {
		return true
	}
	return b.take(b.hashAddr(client(from), 0), monoNs)
}

// response says whether a UDP answer may go out whole; otherwise it is moved to TCP (slip 1: never silent).
func (l *limits) response(from netip.Addr, name []byte, kind int, monoNs int64) bool {
	if !l.rrl.on() {
		return true
	}
	return l.rrl.take(l.rrl.hashName(l.rrl.hashAddr(rrlPrefix(from), uint64(kind)), name), monoNs)
}

// formErr says whether a malformed message may be answered.
func (l *limits) formErr(from netip.Addr, monoNs int64) bool {
	return l.malformed.take(l.malformed.hashAddr(rrlPrefix(from), 0), monoNs)
}
