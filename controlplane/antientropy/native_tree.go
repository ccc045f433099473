package antientropy

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"math/bits"
	"slices"

	"github.com/dnsmesh/dmpd/internal/record"
)

// The reconcile tree (cluster.md 17.5): sums over the states of all elements, 16 children to a node, the leaves by the first 16 bits
// of the element id. Two nodes with equal roots hold the same; where nodes of the tree differ, they find what differs in a few steps.
// docs/decisions/0014-element-identity.md says what counts and why the sums are keyed.
const (
	treeLevels = 5                        // root 1, then 16, 256, 4,096 and 65,536
	leafLevel  = treeLevels - 1           //
	treeLeaves = 1 << (4 * leafLevel)     //
	cutMs      = 10_000                   // the tree is of a moment that is a multiple of this
	treeNodes  = (16*treeLeaves - 1) / 15 // 69,905 sums of 24 bytes
	stateLen   = 16 + 8 + 8 + 8           // an element on the wire: id, add, exp, del
	sumLen     = 8 + 16                   // count, sum
	neverMs    = int64(1<<63 - 1)         //
	treeLabel  = "dmpd reconcile tree 1"  //
	checkLabel = "dmpd reconcile check 1" //
)

// state is what counts of an element.
type state struct {
	add, del record.HLC
	expMs    int64
}

// at is the state at a moment: what has no effect any more is left out, so that nodes that forgot it and nodes that did not agree.
func (s state) at(ms, lifeMs int64) state {
	if s.add <= s.del || s.expMs <= ms {
		s.add, s.expMs = 0, 0
	}
	if s.del != 0 && s.del.Ms()+lifeMs <= ms {
		s.del = 0
	}
	return s
}

// next is when the state, as at gave it, changes by itself.
func (s state) next(lifeMs int64) int64 {
	ms := neverMs
	if s.add != 0 {
		ms = s.expMs
	}
	if s.del != 0 {
		ms = min(ms, s.del.Ms()+lifeMs)
	}
	return ms
}

// join is record.Merge on what counts.
func (s state) join(o state) state {
	if o.add > s.add || o.add == s.add && o.expMs > s.expMs {
		s.add, s.expMs = o.add, o.expMs
	}
	s.del = max(s.del, o.del)
	return s
}

func stateOf(r *record.Row) state { return state{r.Add, r.Del, r.ExpMs} }

// sum is a number of elements and their hashes added up modulo 2^128.
type sum struct{ n, hi, lo uint64 }

func (s *sum) add(h sum) {
	var c uint64
	s.lo, c = bits.Add64(s.lo, h.lo, 0)
	s.hi, _ = bits.Add64(s.hi, h.hi, c)
	s.n += h.n
}

func (s *sum) sub(h sum) {
	var b uint64
	s.lo, b = bits.Sub64(s.lo, h.lo, 0)
	s.hi, _ = bits.Sub64(s.hi, h.hi, b)
	s.n -= h.n
}

func (s sum) append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, s.n)
	dst = binary.BigEndian.AppendUint64(dst, s.hi)
	return binary.BigEndian.AppendUint64(dst, s.lo)
}

func readSum(b []byte) sum {
	return sum{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])}
}

// element has no pointers, so that the collector does not look at millions of them.
type element struct {
	id record.ID
	state
}

// tree holds 40 bytes for each element, sorted in its leaf. Not for concurrent use.
type tree struct {
	mac    hash.Hash // keyed
	lifeMs int64
	ms     int64 // the moment: a multiple of cutMs
	sums   [treeNodes]sum
	leaves [treeLeaves][]element
}

func newTree(key [32]byte, lifeMs, ms int64) *tree {
	return &tree{mac: hmac.New(sha256.New, key[:]), lifeMs: lifeMs, ms: ms - ms%cutMs}
}

// treeKey makes the key of a cluster's trees, and what tells two keys apart without telling them.
func treeKey(token string) (key [32]byte, check [8]byte) {
	key = [32]byte(derive(token, treeLabel))
	return key, [8]byte(derive(token, checkLabel))
}

func derive(token, label string) []byte {
	m := hmac.New(sha256.New, []byte(token))
	m.Write([]byte(label))
	return m.Sum(nil)
}

// first is the number of a level's first node.
func first(level int) int { return (1<<(4*level) - 1) / 15 }

func (t *tree) node(level, prefix int) *sum { return &t.sums[first(level)+prefix] }

func (t *tree) root() sum { return t.sums[0] }

func leafOf(id *record.ID) int { return int(id[0])<<8 | int(id[1]) }

// hash is of an element's state.
func (t *tree) hash(id *record.ID, s state) sum {
	var b [stateLen]byte
	var out [sha256.Size]byte
	appendState(b[:0], id, s)
	t.mac.Reset()
	t.mac.Write(b[:])
	t.mac.Sum(out[:0])
	return sum{1, binary.BigEndian.Uint64(out[:]), binary.BigEndian.Uint64(out[8:])}
}

func appendState(dst []byte, id *record.ID, s state) []byte {
	dst = append(dst, id[:]...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(s.add))
	dst = binary.BigEndian.AppendUint64(dst, uint64(s.expMs))
	return binary.BigEndian.AppendUint64(dst, uint64(s.del))
}

func readState(b []byte) (id record.ID, s state) {
	copy(id[:], b)
	s.add, s.expMs, s.del = record.HLC(binary.BigEndian.Uint64(b[16:])), int64(binary.BigEndian.Uint64(b[24:])), record.HLC(binary.BigEndian.Uint64(b[32:]))
	return id, s
}

// get is the state of an element at the tree's moment.
func (t *tree) get(id *record.ID) (state, bool) {
	leaf := t.leaves[leafOf(id)]
	if i, ok := search(leaf, id); ok {
		return leaf[i].state, true
	}
	return state{}, false
}

func search(leaf []element, id *record.ID) (int, bool) {
	return slices.BinarySearchFunc(leaf, id, func(e element, id *record.ID) int { return bytes.Compare(e.id[:], id[:]) })
}

// set says what an element is now.
func (t *tree) set(id *record.ID, s state) {
	s = s.at(t.ms, t.lifeMs)
	n := leafOf(id)
	i, ok := search(t.leaves[n], id)
	var change sum
	if ok {
		was := &t.leaves[n][i]
		if was.state == s {
			return
		}
		change.sub(t.hash(id, was.state))
	}
	switch {
	case s == state{}:
		if ok {
			t.leaves[n] = slices.Delete(t.leaves[n], i, i+1)
		}
	case ok:
		t.leaves[n][i].state = s
	default:
		t.leaves[n] = slices.Insert(t.leaves[n], i, element{*id, s})
	}
	if s != (state{}) {
		change.add(t.hash(id, s))
	}
	for level, prefix := leafLevel, n; level >= 0; level, prefix = level-1, prefix>>4 {
		t.node(level, prefix).add(change)
	}
}

// advance moves the tree on to a later moment. It looks at every element: some 10 ms for a million, every 10 s.
func (t *tree) advance(ms int64) {
	if ms -= ms % cutMs; ms <= t.ms {
		return
	}
	t.ms = ms
	var ended []element
	for n := range t.leaves {
		ended = ended[:0]
		for _, e := range t.leaves[n] {
			if e.next(t.lifeMs) <= ms {
				ended = append(ended, e)
			}
		}
		for i := range ended {
			t.set(&ended[i].id, ended[i].state)
		}
	}
}
