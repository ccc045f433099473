package store

import (
	"hash/maphash"

	"github.com/dnsmesh/dmpd/internal/record"
)

// quota counts, for each writer, the live values that it added. Rows do not say who wrote them (http.md 6.3), so it is
// kept in memory alone and begins at nothing after a start; and since nothing tells later whose value is deleted or
// refreshed, a writer's own deletes and refreshes are taken from what it added, by hour of expiry.
type quota struct {
	writers map[[16]byte]*use
	log     []step // of the group, to undo
	message int    // where the current message begins in log
}

type use struct {
	total  int
	byHour map[int64]int // by the hour in which they expire
}

type step struct {
	writer [16]byte
	hour   int64
	by     int
}

const hourMs = 3_600_000

func newQuota() quota { return quota{writers: map[[16]byte]*use{}} }

func (q *quota) used(w [16]byte) int {
	if u := q.writers[w]; u != nil {
		return u.total
	}
	return 0
}

func (q *quota) change(w [16]byte, hour int64, by int) {
	u := q.writers[w]
	if u == nil {
		u = &use{byHour: map[int64]int{}}
		q.writers[w] = u
	}
	u.total += by
	if u.byHour[hour] += by; u.byHour[hour] == 0 {
		delete(u.byHour, hour)
	}
	if u.total == 0 {
		delete(q.writers, w)
	}
}

func (q *quota) step(w [16]byte, hour int64, by int) {
	q.change(w, hour, by)
	q.log = append(q.log, step{w, hour, by})
}

// take counts an added value.
func (q *quota) take(w [16]byte, expMs int64) {
	if w != [16]byte{} {
		q.step(w, expMs/hourMs, +1)
	}
}

// credit gives one back that the writer deleted: the one of that hour, else its earliest.
func (q *quota) credit(w [16]byte, expMs int64) {
	u := q.writers[w]
	if u == nil {
		return
	}
	hour := expMs / hourMs
	if u.byHour[hour] == 0 {
		hour = u.earliest()
	}
	q.step(w, hour, -1)
}

// move says that the writer lengthened a life.
func (q *quota) move(w [16]byte, expMs int64) {
	u := q.writers[w]
	if u == nil {
		return
	}
	if from := u.earliest(); from < expMs/hourMs {
		q.step(w, expMs/hourMs, +1)
		q.step(w, from, -1)
	}
}

func (u *use) earliest() int64 {
	first := int64(1<<63 - 1)
	for h := range u.byHour {
		first = min(first, h)
	}
	return first
}

func (q *quota) drop()  { q.log, q.message = q.log[:0], 0 }
func (q *quota) begin() { q.message = len(q.log) }

// undo takes the current message back, rollback the group.
func (q *quota) undo() { q.back(q.message) }

func (q *quota) rollback() { q.back(0) }

func (q *quota) back(to int) {
	for len(q.log) > to {
		s := q.log[len(q.log)-1]
		q.log = q.log[:len(q.log)-1]
		q.change(s.writer, s.hour, -s.by)
	}
}

// expire forgets the hours that are over.
func (q *quota) expire(nowMs int64) {
	for w, u := range q.writers {
		for h, n := range u.byHour {
			if h < nowMs/hourMs {
				q.change(w, h, -n)
			}
		}
	}
}

// tombs are the deletes that are remembered (cluster.md 17.4), for as long as an older copy could still be alive
// somewhere. Keys and values hold no pointers, so the collector does not look inside.
type tombs struct {
	m      map[tombKey]tomb
	queue  []tombKey // in order of burial, which is about the order of their end
	head   int
	seed   maphash.Seed
	lifeMs int64
}

// tombKey is an element: half of its value's SHA-256 and a keyed hash of its name.
type tombKey struct {
	hash [16]byte
	name uint64
}

type tomb struct {
	del, add record.HLC
	expMs    int64
	origin   uint8
}

func newTombs(lifeMs int64) tombs {
	return tombs{m: map[tombKey]tomb{}, seed: maphash.MakeSeed(), lifeMs: lifeMs}
}

func (t *tombs) key(name []byte, hash [32]byte) tombKey {
	return tombKey{[16]byte(hash[:16]), maphash.Bytes(t.seed, name)}
}

// until is when a delete may be forgotten: no copy of the element lives longer.
func (t *tombs) until(d tomb) int64 { return max(d.del.Ms()+t.lifeMs, d.expMs+60_000) }

func (t *tombs) get(k tombKey) (tomb, bool) {
	d, ok := t.m[k]
	return d, ok
}

func (t *tombs) put(k tombKey, d tomb) {
	if _, ok := t.m[k]; !ok {
		t.queue = append(t.queue, k)
	}
	t.m[k] = d
}

// expire forgets what may be forgotten, at most limit of them.
func (t *tombs) expire(nowMs int64, limit int) {
	for range min(limit, len(t.queue)-t.head) {
		k := t.queue[t.head]
		if d := t.m[k]; t.until(d) > nowMs {
			if t.until(d) < nowMs+t.lifeMs { // the queue's order holds: all behind end later
				break
			}
			t.queue = append(t.queue, k) // a long life; look again when it comes round
		} else {
			delete(t.m, k)
		}
		t.head++
	}
	if t.head > 1024 && t.head > len(t.queue)/2 {
		t.queue = append(t.queue[:0], t.queue[t.head:]...)
		t.head = 0
	}
}
