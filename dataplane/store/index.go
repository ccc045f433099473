package store

import (
	"hash/maphash"
	"math/bits"
	"sync/atomic"

	"github.com/puzpuzpuz/xsync/v3"
)

// The index leads from a name to its block. A keyed hash of the name (nobody outside can aim at one page) gives 32 bits;
// the low ones number a bucket, and the xsync map holds the bucket's page: a slice of entries, hash<<32 | ref, which a
// reader never sees change. (One entry more may be written behind its end, for the next page.)
// The whole name is compared in the block. A page is one object without pointers for some 32 names, so the collector sees
// a thirtieth of the objects that a map from names would give it.
//
// It grows by linear hashing, a bucket at a time, and no reader waits. With n buckets and m the power of two at or above
// n, a name is in bucket hash mod m, or mod m/2 if that bucket does not exist yet. To add bucket n, whose names are in
// bucket n-m/2:
//
//  1. publish the page of bucket n (a copy of what moves)
//  2. publish n+1
//  3. publish the old bucket's page without them
//
// A reader that loaded n before step 2 and the old page after step 3 does not find its name there; n has changed by then,
// so whoever misses loads n again and, if that sends the name elsewhere, looks there. The index never shrinks: pages do.
type index struct {
	seed    maphash.Seed
	pages   *xsync.MapOf[uint32, []uint64]
	loading [][]uint64 // the pages by bucket until publish: nobody reads yet, and a slice is a third of the map's work
	buckets atomic.Uint32
	entries int // committer's
	arena   arena
	origins origins
}

const (
	// perPage names in a page on average: a search reads 4 cache lines in a row, and the map's own 50 bytes for a page
	// are shared by this many. Measured in docs/decisions/0009-store.md.
	perPage    = 32
	pageStep   = 8 // entries of room when a page is copied: a size class
	bucketsMin = 16
)

func newIndex(names int) *index {
	ix := &index{seed: maphash.MakeSeed()}
	n := max(names/perPage, bucketsMin)
	// the multiplier spreads bucket numbers, which come one after the other, over the map's own buckets
	ix.pages = xsync.NewMapOfWithHasher[uint32, []uint64](func(k uint32, seed uint64) uint64 {
		h := (uint64(k) + seed) * 0x9E3779B97F4A7C15
		return h ^ h>>29
	}, xsync.WithPresize(n))
	ix.buckets.Store(uint32(n))
	ix.loading = make([][]uint64, n, n+n/4) // with ancestors that hold nothing there are more
	return ix
}

// publish makes what was loaded visible to readers, of which there are none before.
func (ix *index) publish() {
	for b, page := range ix.loading {
		if len(page) > 0 {
			ix.pages.Store(uint32(b), page)
		}
	}
	ix.loading = nil
}

func (ix *index) page(b uint32) []uint64 {
	if ix.loading != nil {
		return ix.loading[b]
	}
	page, _ := ix.pages.Load(b)
	return page
}

func (ix *index) setPage(b uint32, page []uint64) {
	switch {
	case ix.loading != nil:
		ix.loading[b] = page
	case len(page) == 0:
		ix.pages.Delete(b)
	default:
		ix.pages.Store(b, page)
	}
}

func (ix *index) hash(name []byte) uint32 { return uint32(maphash.Bytes(ix.seed, name) >> 32) }

func bucketOf(h, n uint32) uint32 {
	m := uint32(1)<<bits.Len32(n-1) - 1
	if b := h & m; b < n {
		return b
	}
	return h & (m >> 1)
}

// find is the block of a name, 0 if there is none. Hot path: no lock, no allocation.
func (ix *index) find(name []byte, h uint32) ref {
	n := ix.buckets.Load()
	for {
		b := bucketOf(h, n)
		for _, e := range ix.page(b) {
			if uint32(e>>32) == h && ix.set(ref(e)).is(name) {
				return ref(e)
			}
		}
		n = ix.buckets.Load() // pairs with step 2 of split
		if bucketOf(h, n) == b {
			return 0
		}
	}
}

func (ix *index) set(r ref) RRset {
	if r == 0 {
		return RRset{}
	}
	return RRset{ix.arena.at(r), &ix.origins}
}

func (ix *index) lookup(name []byte) RRset { return ix.set(ix.find(name, ix.hash(name))) }

// replace publishes that the name with this hash has block now instead of old; 0 is none on either side. Committer only.
func (ix *index) replace(h uint32, old, now ref) {
	b := bucketOf(h, ix.buckets.Load())
	page := ix.page(b)
	entry := uint64(h)<<32 | uint64(now)
	switch {
	case old == 0:
		if len(page) == cap(page) {
			page = append(make([]uint64, 0, len(page)+pageStep), page...)
		}
		ix.setPage(b, append(page, entry)) // nobody else appends to this array: whatever removes makes its own
		ix.entries++
		for ix.entries > int(ix.buckets.Load())*perPage {
			ix.split()
		}
	case now == 0:
		next := make([]uint64, 0, len(page)-1)
		for _, e := range page {
			if ref(e) != old {
				next = append(next, e)
			}
		}
		ix.setPage(b, next)
		ix.entries--
	default:
		next := make([]uint64, len(page))
		for i, e := range page {
			if ref(e) == old {
				e = entry
			}
			next[i] = e
		}
		ix.setPage(b, next)
	}
}

// split adds a bucket; the three steps are those of the type's comment.
func (ix *index) split() {
	n := ix.buckets.Load()
	if n == 1<<31 {
		return // 64 G names: the arena ends long before
	}
	from := bucketOf(n, n) // where the names of bucket n are now
	page := ix.page(from)
	moves := 0
	for _, e := range page {
		if bucketOf(uint32(e>>32), n+1) == n {
			moves++
		}
	}
	gone, kept := make([]uint64, 0, moves), make([]uint64, 0, len(page)-moves)
	for _, e := range page {
		if bucketOf(uint32(e>>32), n+1) == n {
			gone = append(gone, e)
		} else {
			kept = append(kept, e)
		}
	}
	if ix.loading != nil {
		ix.loading = append(ix.loading, nil)
	}
	if moves > 0 {
		ix.setPage(n, gone)
	}
	ix.buckets.Store(n + 1)
	if moves > 0 {
		ix.setPage(from, kept)
	}
}

// withHash calls f for every block whose name has this hash.
func (ix *index) withHash(h uint32, f func(r ref)) {
	for _, e := range ix.page(bucketOf(h, ix.buckets.Load())) {
		if uint32(e>>32) == h {
			f(ref(e))
		}
	}
}
