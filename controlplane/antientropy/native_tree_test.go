package antientropy

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/dnsmesh/dmpd/internal/record"
)

const testLifeMs = 100_000

// randomState makes states of few stamps, so that ties are common.
func randomState(rng *rand.Rand) state {
	s := state{add: record.HLCAt(rng.Int64N(5) * 10_000), expMs: rng.Int64N(30) * 10_000}
	if rng.IntN(2) == 0 {
		s.del = record.HLCAt(rng.Int64N(5) * 10_000)
	}
	return s
}

// TestJoin: the join of states is commutative, associative and idempotent, is what record.Merge says, and what has no effect at a moment has
// none on any join that holds only stamps from before it.
func TestJoin(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	row := func(s state) record.Row { return record.Row{Add: s.add, Del: s.del, ExpMs: s.expMs} }
	for range 20_000 {
		a, b, c := randomState(rng), randomState(rng), randomState(rng)
		if a.join(b) != b.join(a) || a.join(b).join(c) != a.join(b.join(c)) || a.join(a) != a {
			t.Fatalf("%+v, %+v, %+v: no join", a, b, c)
		}
		m := record.Merge(row(a), row(b))
		if got := stateOf(&m); got != a.join(b) {
			t.Fatalf("%+v and %+v: %+v, the store has %+v", a, b, a.join(b), got)
		}
		ms := rng.Int64N(30) * 10_000
		if s := a.at(ms, testLifeMs); s.at(ms, testLifeMs) != s || s != (state{}) && s.next(testLifeMs) <= ms {
			t.Fatalf("%+v at %d is %+v, which changes at %d", a, ms, s, s.next(testLifeMs))
		}
		if x, y := a.join(b), a.at(ms, testLifeMs).join(b); b.add > a.add && b.add.Ms()+testLifeMs > ms && x.at(ms, testLifeMs) != y.at(ms, testLifeMs) {
			t.Fatalf("%+v joined with %+v at %d: %+v, without what had no effect %+v", a, b, ms, x, y)
		}
	}
}

// TestTree: whatever way the states came into it, and whatever moments it went through, the tree is the one that is made at once; every sum
// is the sum of its children; one state of difference shows at each level.
func TestTree(t *testing.T) {
	key, check := treeKey("token")
	other, otherCheck := treeKey("tokem")
	if check == otherCheck {
		t.Fatal("two tokens have one check")
	}
	for seed := range uint64(10) {
		rng := rand.New(rand.NewPCG(seed, 2))
		walk := newTree(key, testLifeMs, 0)
		all := map[record.ID]state{}
		for ms := int64(0); ms < 200_000; ms += 1000 {
			walk.advance(ms)
			for range rng.IntN(5) {
				id := record.ID{byte(rng.IntN(3)), byte(rng.IntN(3)), byte(rng.IntN(8))}
				s := all[id].join(randomState(rng))
				all[id] = s
				walk.set(&id, s)
			}
		}
		build := func(key [32]byte, skip bool) *tree {
			tr := newTree(key, testLifeMs, walk.ms)
			for id, s := range all {
				if s.at(walk.ms, testLifeMs) != (state{}) && skip {
					skip = false
					continue
				}
				tr.set(&id, s)
			}
			return tr
		}
		once := build(key, false)
		if walk.sums != once.sums || walk.root().n == 0 {
			t.Fatalf("seed %d: roots %+v and %+v", seed, walk.root(), once.root())
		}
		for level := range leafLevel {
			for prefix := range 1 << (4 * level) {
				var s sum
				for i := range 16 {
					s.add(*walk.node(level+1, prefix<<4|i))
				}
				if s != *walk.node(level, prefix) {
					t.Fatalf("seed %d: node %d of level %d is not the sum of its children", seed, prefix, level)
				}
			}
		}
		less := build(key, true)
		for level := range treeLevels {
			differ := 0
			for prefix := range 1 << (4 * level) {
				if *less.node(level, prefix) != *walk.node(level, prefix) {
					differ++
				}
			}
			if differ != 1 {
				t.Fatalf("seed %d: one element less differs in %d nodes of level %d", seed, differ, level)
			}
		}
		if keyed := build(other, false); keyed.root() == walk.root() || keyed.root().n != walk.root().n {
			t.Fatalf("seed %d: the key makes no difference", seed)
		}
		walk.advance(1 << 50)
		if walk.root() != (sum{}) {
			t.Fatalf("seed %d: at the end of time there is %+v", seed, walk.root())
		}
	}
}

// TestHeal is X10: nodes that take random changes while they are partitioned, and pass states on in any order, more than once, have equal
// roots once everybody has heard of everything; and show the same.
func TestHeal(t *testing.T) {
	key, _ := treeKey("token")
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 3))
		k := 2 + rng.IntN(5)
		nodes := make([]map[record.ID]state, k)
		clock := make([]record.HLC, k)
		for i := range nodes {
			nodes[i] = map[record.ID]state{}
		}
		hear := func(i int, id record.ID, s state) {
			clock[i] = max(clock[i], s.add, s.del)
			nodes[i][id] = nodes[i][id].join(s)
		}
		ms := int64(1_000_000)
		cut := 1 + rng.IntN(k) // nodes below it and the others do not hear of each other
		for range 300 {
			ms += rng.Int64N(200)
			i, id := rng.IntN(k), record.ID{byte(rng.IntN(10))}
			wall := ms + rng.Int64N(3000) - 1500
			switch s := nodes[i][id]; {
			case rng.IntN(3) > 0:
				clock[i] = clock[i].Next(wall)
				s.add, s.expMs = clock[i], wall+rng.Int64N(testLifeMs-60_000)
				nodes[i][id] = s
			case s.add > s.del:
				clock[i] = clock[i].Next(wall)
				s.del = clock[i]
				nodes[i][id] = s
			}
			if j := rng.IntN(k); (i < cut) == (j < cut) {
				hear(j, id, nodes[i][id])
			}
		}
		for i := range nodes { // the partition was long: a node forgets what has no effect any more
			for id, s := range nodes[i] {
				nodes[i][id] = s.at(ms-ms%cutMs, testLifeMs)
			}
		}
		for range 20 * k * k { // in any order, and again
			i, j := rng.IntN(k), rng.IntN(k)
			for id, s := range nodes[i] {
				hear(j, id, s.at(ms-ms%cutMs, testLifeMs))
			}
		}
		var roots []string
		for i := range nodes {
			tr := newTree(key, testLifeMs, ms)
			for id, s := range nodes[i] {
				tr.set(&id, s)
			}
			roots = append(roots, fmt.Sprintf("%x", tr.root()))
			if roots[i] != roots[0] {
				t.Fatalf("seed %d: %d nodes, roots %v", seed, k, roots)
			}
		}
	}
}

// BenchmarkAdvance is a cut over a million elements of which none ends.
func BenchmarkAdvance(b *testing.B) {
	key, _ := treeKey("token")
	tr := newTree(key, testLifeMs, 0)
	rng := rand.New(rand.NewPCG(1, 4))
	for range 1_000_000 {
		var id record.ID
		for i := range id {
			id[i] = byte(rng.Uint32())
		}
		tr.set(&id, state{add: 1, expMs: 1 << 60})
	}
	ms := int64(0)
	for b.Loop() {
		ms += cutMs
		tr.advance(ms)
	}
}
