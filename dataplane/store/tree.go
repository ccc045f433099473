package store

import (
	"slices"
	"sync/atomic"

	"github.com/dnsmesh/dmpd/internal/record"
)

// tree is the index as the committer sees it: setting an RRset keeps the counts of what is below each ancestor, the
// expiry buckets and the gauges.
type tree struct {
	*index
	limbo limbo
	due   expiry // committer's

	names, values atomic.Int64
}

func newTree(names int) *tree {
	t := &tree{index: newIndex(names)}
	t.limbo.current.Store(1)
	t.limbo.readers.Store(new([]*Reader))
	t.due.buckets = make(map[uint32][]uint32)
	return t
}

// parent cuts the first label; nil above a top-level name, since nobody asks whether the root has names below it.
func parent(name []byte) []byte {
	name = name[1+name[0]:]
	if len(name) <= 1 {
		return nil
	}
	return name
}

// put publishes the values of a name, which are in canonical order; none removes it. They must not lie in the arena
// unless in the block that this replaces.
func (t *tree) put(name []byte, values []packed) error {
	h := t.hash(name)
	return t.putAt(name, h, t.find(name, h), values)
}

// putAt is put for a name that was looked for.
func (t *tree) putAt(name []byte, h uint32, old ref, values []packed) error {
	was := t.set(old)
	had := was.Count()
	var below uint32
	var belowExp int64
	var due uint32
	if old != 0 {
		below, belowExp = was.below()
		due = was.due()
	}
	first, last := noExp, int64(0)
	for i := range values {
		first, last = min(first, values[i].expMs), max(last, values[i].expMs)
	}
	if len(values) > 0 {
		due = t.due.add(h, first, due)
	} else {
		due = 0 // an empty non-terminal stands in no bucket: an old entry is dropped when it comes up
	}
	var now ref
	if len(values) > 0 || below > 0 {
		var err error
		if now, err = t.arena.pack(name, values, below, belowExp, due); err != nil {
			return err
		}
	}
	if old == 0 && now == 0 {
		return nil
	}
	t.replace(h, old, now)
	if old != 0 {
		t.limbo.retire(old, was.class())
	}
	t.values.Add(int64(len(values) - had))
	switch {
	case had == 0 && len(values) > 0:
		t.names.Add(1)
		return t.count(parent(name), +1, last)
	case had > 0 && len(values) == 0:
		t.names.Add(-1)
		return t.count(parent(name), -1, 0)
	case len(values) > 0:
		return t.count(parent(name), 0, last)
	}
	return nil
}

// count adds to the names below each ancestor, and makes or removes ancestors that hold no values.
func (t *tree) count(name []byte, by int, expMs int64) error {
	for ; name != nil; name = parent(name) {
		h := t.hash(name)
		r := t.find(name, h)
		if r == 0 {
			if by <= 0 {
				panic("store: an ancestor of a name is missing")
			}
			now, err := t.arena.pack(name, nil, uint32(by), expMs, 0)
			if err != nil {
				return err
			}
			t.replace(h, 0, now)
			continue
		}
		set := t.set(r)
		n, exp := set.below()
		n += uint32(by)
		if n == 0 && set.Count() == 0 {
			t.replace(h, r, 0)
			t.limbo.retire(r, set.class())
			continue
		}
		if n == 0 {
			exp = 0
		}
		if by == 0 && exp >= expMs {
			return nil // the ancestors of this one have seen it too
		}
		set.setBelow(n, max(exp, expMs))
	}
	return nil
}

// reclaim gives freed blocks out again as far as the readers allow.
func (t *tree) reclaim() {
	t.limbo.reclaim(func(r ref, class int) {
		t.arena.live.Add(-int64(classSize(class)))
		t.arena.release(r, class)
	})
}

// expiry finds the names that have something to expire, without looking at the others: buckets of 10 s, each with the
// hashes of names whose first value expires in it or later. A name stands in one bucket (its block says which, due); one
// whose life was lengthened is moved when its bucket comes up, so that a refresh costs nothing here. A name is entered
// again only for an earlier bucket; the old entry is then stale and dropped when it comes up.
type expiry struct {
	buckets map[uint32][]uint32
	low     uint32 // no bucket is below
	ready   []uint32
	bucket  uint32 // of ready
	floorMs int64
}

const bucketMs = 10_000

// cutAt is the cut to make at that moment. Cuts fall on bucket ends, so that a bucket comes up as a whole.
func cutAt(nowMs int64) int64 { return max(nowMs, 0) / bucketMs * bucketMs }

// bucketOfMs is where an expiry is due: the bucket that the first cut at or after it completes. 0 is nowhere, so they
// begin at 1.
func bucketOfMs(ms int64) uint32 {
	b := (min(max(ms, 0), 1<<62)+bucketMs-1)/bucketMs + 1
	return uint32(min(b, 1<<32-1))
}

// add enters a name and returns the bucket in which it stands from now on.
func (e *expiry) add(h uint32, firstExpMs int64, due uint32) uint32 {
	b := bucketOfMs(max(firstExpMs, e.floorMs))
	if due != 0 && due <= b {
		return due
	}
	list := e.buckets[b]
	if len(list) == cap(list) && len(list) >= 1024 {
		// A name that comes and goes is entered each time: before the list grows, drop what it holds twice.
		slices.Sort(list)
		list = slices.Compact(list)
		list = slices.Grow(list, len(list)) // by half as much, as append would, means sorting twice as often
	}
	e.buckets[b] = append(list, h)
	if len(e.buckets) == 1 || b < e.low {
		e.low = b
	}
	return b
}

// next takes out a hash that is due at the cut.
func (e *expiry) next(cutMs int64) (h, bucket uint32, ok bool) {
	for len(e.ready) == 0 {
		end := bucketOfMs(cutMs)
		if len(e.buckets) == 0 || e.low > end {
			return 0, 0, false
		}
		if int(end-e.low) > len(e.buckets) { // the clock leapt: look at what there is
			low := uint32(1<<32 - 1)
			for b := range e.buckets {
				low = min(low, b)
			}
			if e.low = low; low > end {
				return 0, 0, false
			}
		}
		e.ready, e.bucket = e.buckets[e.low], e.low
		delete(e.buckets, e.low)
		e.low++
	}
	h = e.ready[len(e.ready)-1]
	e.ready = e.ready[:len(e.ready)-1]
	return h, e.bucket, true
}

// expire removes what expired at or before the cut, from at most limit names, and says whether that was all. Expired
// values are invisible before that; this gives their room back. It does so name by name between groups of messages:
// whoever decides treats a value as gone that expired at or before the last cut and is not newer than it (hlc); newer ones
// can have such an expiry when the clock was stepped back.
func (t *tree) expire(cutMs int64, hlc record.HLC, limit int) (removed int, done bool, err error) {
	t.due.floorMs = cutMs + 1 // nothing goes back into a bucket that is being emptied
	defer func() { t.due.floorMs = 0 }()
	var blocks []ref
	var values []packed
	for range limit {
		h, bucket, ok := t.due.next(cutMs)
		if !ok {
			return removed, true, nil
		}
		blocks = blocks[:0]
		t.withHash(h, func(r ref) { blocks = append(blocks, r) })
		for _, r := range blocks {
			set := t.set(r)
			if set.Count() == 0 || set.due() != bucket {
				continue
			}
			store(set.p, offDue, uint32(0)) // it no longer stands in a bucket; readers do not look at this
			if set.firstExp() > cutMs {
				store(set.p, offDue, t.due.add(h, set.firstExp(), 0))
				continue
			}
			values = set.unpack(values[:0])
			kept := values[:0]
			for _, v := range values {
				if v.expMs > cutMs || v.add > hlc {
					kept = append(kept, v)
				}
			}
			removed += set.Count() - len(kept)
			if err := t.put(set.name(), kept); err != nil {
				return removed, false, err
			}
		}
	}
	return removed, false, nil
}

// anyDue says whether a cut would remove something; names with a longer life are moved on the way.
func (t *tree) anyDue(cutMs int64) bool {
	for {
		h, bucket, ok := t.due.next(cutMs)
		if !ok {
			return false
		}
		expired := false
		t.withHash(h, func(r ref) {
			set := t.set(r)
			switch {
			case set.Count() == 0 || set.due() != bucket:
			case set.firstExp() <= cutMs:
				expired = true
			default:
				store(set.p, offDue, t.due.add(h, set.firstExp(), 0))
			}
		})
		if expired {
			t.due.ready = append(t.due.ready, h)
			return true
		}
	}
}
