package update

import (
	"hash/maphash"
	"math"
	"net/netip"
	"sync"
	"sync/atomic"
)

// Claims are limited for each recipient (dns.md 8.5), and within that for each recipient with one sender key and with one address prefix:
// these have the recipient's burst but refill at a quarter of its rate, so that one sender, who can use a burst up as with the
// reference, cannot hold a recipient's bucket empty. Keys are free to make, prefixes are not, so both.
const (
	subShare = 4

	// Checks of signatures that one prefix may cause, good or bad: forgeries take no token of the recipient, and would otherwise fill the
	// pool. At 60 us each they keep a twentieth of a core busy, and a client sends a few claims a message.
	checksPerSec = 800
	checksBurst  = 800
)

// Limits are the buckets of claims. Safe for use by many goroutines.
type Limits struct {
	recipients, senders, prefixes, checks buckets
}

// NewLimits makes them with DMP_CLAIM_RATE_PER_USER_PER_SEC and DMP_CLAIM_RATE_BURST.
func NewLimits(rate, burst float64) *Limits {
	l := &Limits{}
	for _, b := range []*buckets{&l.recipients, &l.senders, &l.prefixes, &l.checks} {
		b.seed = maphash.MakeSeed()
	}
	l.checks.set(checksPerSec, checksBurst)
	l.Set(rate, burst)
	return l
}

// Set changes rate and burst; either at zero or less switches the limit off.
func (l *Limits) Set(rate, burst float64) {
	l.recipients.set(rate, burst)
	l.senders.set(rate/subShare, burst)
	l.prefixes.set(rate/subShare, burst)
}

// room looks whether there is a token for a claim, and takes one of the prefix's signature checks.
func (l *Limits) room(c *claim, monoNs int64) bool {
	if !l.on() {
		return l.checks.take(l.checks.key(nil, c.prefix()), monoNs)
	}
	return l.recipients.peek(l.recipients.key(c.hash[:], nil), monoNs) &&
		l.senders.peek(l.senders.key(c.hash[:], c.Sender[:]), monoNs) &&
		l.prefixes.peek(l.prefixes.key(c.hash[:], c.prefix()), monoNs) &&
		l.checks.take(l.checks.key(nil, c.prefix()), monoNs)
}

// take takes a token of each bucket for a claim whose signature is good. The recipient's comes last, so that a sender who is over its share
// takes none of it.
func (l *Limits) take(c *claim, monoNs int64) bool {
	return !l.on() ||
		l.prefixes.take(l.prefixes.key(c.hash[:], c.prefix()), monoNs) &&
			l.senders.take(l.senders.key(c.hash[:], c.Sender[:]), monoNs) &&
			l.recipients.take(l.recipients.key(c.hash[:], nil), monoNs)
}

func (l *Limits) on() bool { return l.recipients.on() }

// prefix is what counts as one address: an IPv4 address, and the /56 that a customer gets of IPv6 (dns.md 4).
func prefix(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(56); err == nil {
			return p.Addr()
		}
	}
	return a
}

func (c *claim) prefix() []byte {
	b := c.peer.As16()
	return b[:]
}

// A table is bounded, whoever asks: it has bucketSets * ways places, above the reference's 10,000 keys. A key has one set of places; in a
// full set the bucket that was used longest ago gives way, and begins full when it comes back.
const (
	bucketSets = 2048
	ways       = 8
)

// buckets is a table of token buckets (dns.md 4): tokens = min(burst, tokens + elapsed * rate).
type buckets struct {
	seed        maphash.Seed
	rate, burst atomic.Uint64 // float64 bits
	sets        [bucketSets]bucketSet
}

type bucketSet struct {
	mu sync.Mutex
	b  [ways]bucket
}

type bucket struct {
	key    uint64 // hash of the key; 0: unused
	tokens float64
	atNs   int64
}

func (t *buckets) set(rate, burst float64) {
	if rate <= 0 || burst <= 0 || math.IsNaN(rate) || math.IsNaN(burst) {
		rate, burst = 0, 0
	}
	t.rate.Store(math.Float64bits(rate))
	t.burst.Store(math.Float64bits(burst))
}

func (t *buckets) on() bool { return t.rate.Load() != 0 }

// key hashes a key of up to two parts. Two keys with one hash, which nobody can look for without the seed, share a bucket.
func (t *buckets) key(a, b []byte) uint64 {
	var buf [2 + 64]byte
	buf[0] = byte(len(a))
	n := 1 + copy(buf[1:], a)
	n += copy(buf[n:], b)
	return maphash.Bytes(t.seed, buf[:n]) | 1
}

func (t *buckets) peek(key uint64, monoNs int64) bool { return t.spend(key, monoNs, 0) }
func (t *buckets) take(key uint64, monoNs int64) bool { return t.spend(key, monoNs, 1) }

// spend takes n tokens if there is a whole one.
func (t *buckets) spend(key uint64, monoNs int64, n float64) bool {
	rate, burst := math.Float64frombits(t.rate.Load()), math.Float64frombits(t.burst.Load())
	set := &t.sets[key>>48%bucketSets]
	set.mu.Lock()
	defer set.mu.Unlock()
	at, oldest := -1, 0
	for i := range set.b {
		if set.b[i].key == key {
			at = i
			break
		}
		if set.b[i].key == 0 || set.b[oldest].key != 0 && set.b[i].atNs < set.b[oldest].atNs {
			oldest = i
		}
	}
	if at < 0 {
		if n == 0 {
			return burst >= 1 // it would begin full
		}
		at = oldest
		set.b[at] = bucket{key, burst, monoNs}
	}
	b := &set.b[at]
	b.tokens = min(burst, b.tokens+float64(max(monoNs-b.atNs, 0))*rate/1e9)
	b.atNs = max(b.atNs, monoNs)
	if b.tokens < 1 {
		return false
	}
	b.tokens -= n
	return true
}
