package antientropy

import "sync"

// quarantineMax bounds what is remembered; the oldest go first, and are then asked for again, and refused again.
const quarantineMax = 100_000

// pair is a name, as wire form, with a value's hash.
type pair struct {
	name string
	hash [32]byte
}

// quarantine remembers what was refused, so that one bad record never holds up the rest: a refusal is a decision (cluster.md 15 W1, 17.7).
type quarantine struct {
	mu    sync.Mutex
	m     map[pair]refusal
	order []pair // as they came; some may be gone from m
}

type refusal struct {
	reason  string
	untilMs int64
}

func (q *quarantine) put(p pair, reason string, untilMs int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.m == nil {
		q.m = map[pair]refusal{}
	}
	if _, there := q.m[p]; !there {
		q.order = append(q.order, p)
	}
	q.m[p] = refusal{reason, untilMs}
	for len(q.m) > quarantineMax || len(q.order) > 2*quarantineMax {
		delete(q.m, q.order[0])
		q.order = q.order[1:]
	}
}

func (q *quarantine) has(p pair, nowMs int64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	r, there := q.m[p]
	if there && r.untilMs <= nowMs {
		delete(q.m, p)
		return false
	}
	return there
}

func (q *quarantine) clear() {
	q.mu.Lock()
	clear(q.m)
	q.order = nil
	q.mu.Unlock()
}

// size counts what is remembered, what has had its time included until somebody looks.
func (q *quarantine) size() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.m)
}
