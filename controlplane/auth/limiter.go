package auth

import (
	"container/list"
	"net/netip"
	"sync"
)

// Limiter is a table of token buckets (http.md 9): a new key starts full; a request that is refused costs nothing. At most
// limiterMax keys; beyond that the one least recently used goes.
type Limiter[K comparable] struct {
	mu      sync.Mutex
	buckets map[K]*list.Element
	order   list.List // of *bucket[K], the latest first
	max     int
}

const limiterMax = 10_000

type bucket[K comparable] struct {
	key    K
	left   float64
	lastNs int64
}

// Allow takes one unit of key's bucket at a monotonic time. A rate or burst of 0 or less is no limit.
func (l *Limiter[K]) Allow(key K, ratePerSec, burst float64, monoNs int64) bool {
	if ratePerSec <= 0 || burst <= 0 {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buckets == nil {
		l.buckets = map[K]*list.Element{}
	}
	e, ok := l.buckets[key]
	if !ok {
		bound := l.max
		if bound == 0 {
			bound = limiterMax
		}
		if len(l.buckets) >= bound {
			last := l.order.Back()
			delete(l.buckets, last.Value.(*bucket[K]).key)
			l.order.Remove(last)
		}
		e = l.order.PushFront(&bucket[K]{key, burst, monoNs})
		l.buckets[key] = e
	}
	l.order.MoveToFront(e)
	b := e.Value.(*bucket[K])
	if d := monoNs - b.lastNs; d > 0 {
		b.left += float64(d) / 1e9 * ratePerSec
		b.lastNs = monoNs
	}
	b.left = min(b.left, burst)
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// Forget drops a key's bucket.
func (l *Limiter[K]) Forget(key K) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.buckets[key]; ok {
		delete(l.buckets, key)
		l.order.Remove(e)
	}
}

// ClientPrefix is what a limit per client counts by: an IPv4 address, or the /64 of an IPv6 one, since that is what a single host has.
func ClientPrefix(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // the zero Addr gives the zero Prefix: one bucket for all of unknown origin
	return p
}
