package heartbeat

import (
	"bytes"
	"cmp"
	"context"
	"slices"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/record"
)

// The seen graph: one value for each other node, as its operator signed it (federation.md 2, 5).
const (
	graphMax       = 50       // values of ours; the reference's number
	graphTotalMax  = 100      // with those of nodes that share the zone
	graphBytesMax  = 32 << 10 // of ours: half of what a DNS message holds
	graphAgeSec    = 240      // older ones are of no use any more when they arrive: readers stop at 300
	graphFutureSec = 30       // a clock that is further ahead is not helped on its way
	graphTTLSec    = 600      // so that nothing stays for long when the node ends
	graphPerZone   = 4        // nodes at one zone: a cluster's, and no more of an inventor of keys
	graphPerVia    = 10       // told of by one zone of a stranger
)

// choose takes from ranked peers those that are published now.
func choose(ranked []*Peer, trusted func(zone string) bool, nowMs int64) (out []*Peer) {
	size := 0
	perZone, perVia := map[string]int{}, map[string]int{}
	for _, p := range ranked {
		age := nowMs/1000 - int64(p.TsSec)
		if age > graphAgeSec || age < -graphFutureSec || int64(p.ExpSec) <= nowMs/1000 || p.At == "" {
			continue
		}
		if perZone[p.At] >= graphPerZone || !trusted(p.Via) && p.Via != p.At && perVia[p.Via] >= graphPerVia {
			continue
		}
		if len(out) == graphMax || size+len(p.Wire) > graphBytesMax {
			break
		}
		perZone[p.At]++
		perVia[p.Via]++
		size += len(p.Wire)
		out = append(out, p)
	}
	return out
}

// publishGraph makes the seen graph hold what was heard. Nodes that share the zone write there too: of theirs only what nobody takes any
// more is removed, and what is older than a value of ours.
func (w *Worker) publishGraph(ctx context.Context, s *Settings) error {
	if w.zone == "" {
		return nil
	}
	nowMs := clock.NowMs()
	lists := w.listZones(s)
	operators := s.operatorZones()
	chosen := choose(w.rank(s, nowMs), func(z string) bool { return slices.Contains(operators, z) || slices.Contains(lists, z) }, nowMs)
	name := record.SeenName(w.zone)
	stored, err := w.o.Records.Values(name)
	if err != nil {
		return err
	}
	add, remove := difference(stored, chosen, w.published, w.operator, nowMs)
	if len(add)+len(remove) > 0 {
		if err := w.change(ctx, name, add, remove, graphTTLSec); err != nil {
			return err
		}
	}
	w.published = map[string]bool{}
	size := 0
	for _, p := range chosen {
		w.published[string(p.Wire)] = true
		size += len(p.Wire)
	}
	w.stats.GraphValues.Store(int64(len(chosen)))
	w.stats.GraphBytes.Store(int64(size))
	return nil
}

// difference says what to change at the seen graph's name. Values that are no heartbeats stay: an operator put them there.
func difference(stored [][]byte, chosen []*Peer, published map[string]bool, self [32]byte, nowMs int64) (add, remove [][]byte) {
	wanted := map[string]bool{}
	newest := map[peerKey]uint64{}
	for _, p := range chosen {
		wanted[string(p.Wire)] = true
		newest[p.key()] = p.TsSec
	}
	type other struct {
		value []byte
		tsSec uint64
	}
	var others []other
	for _, v := range stored {
		if wanted[string(v)] {
			delete(wanted, string(v))
			continue
		}
		if !bytes.HasPrefix(v, []byte("v=dmp1;t=heartbeat;")) {
			continue
		}
		h, ok := parse(v, nowMs/1000)
		ts, known := newest[peerKey{h.Operator, h.Endpoint}]
		if !ok || published[string(v)] || h.Operator == self || known && h.TsSec < ts || nowMs/1000-int64(h.TsSec) > graphAgeSec {
			remove = append(remove, v)
			continue
		}
		others = append(others, other{v, h.TsSec})
	}
	slices.SortFunc(others, func(a, b other) int { return cmp.Compare(b.tsSec, a.tsSec) })
	for _, o := range others[min(len(others), graphTotalMax-graphMax):] {
		remove = append(remove, o.value)
	}
	for _, p := range chosen {
		if wanted[string(p.Wire)] {
			add = append(add, p.Wire)
		}
	}
	return add, remove
}
