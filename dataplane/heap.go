package dataplane

import (
	"os"
	"runtime/debug"
	"runtime/metrics"
)

// The collector's work is for each of its cycles, and grows with the index: half a second of CPU at ten million names. How often it
// comes is a matter of memory: left to itself it lets garbage grow to the size of the heap. The heap is a small part of what such a node
// has in memory, so garbage may grow to garbageShare of the store instead, and cycles become rarer (docs/decisions/0021-collector.md).
const (
	garbageShare = 8   // an eighth
	gcPercent    = 100 // the runtime's own, and the least
	gcPercentMax = 1000
)

// heap sets the collector's pace.
type heap struct {
	fixed   bool // the operator has set one (GOGC)
	percent int
}

func newHeap() *heap { return &heap{fixed: os.Getenv("GOGC") != "", percent: gcPercent} }

// follow is called every second, with the bytes that the store has mapped.
func (h *heap) follow(stored int64) {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	h.set(paceOf(stored, int64(live[0].Value.Uint64())))
}

// paceOf is the percentage that lets garbage grow to a share of what is stored.
func paceOf(stored, live int64) int {
	return int(min(max(stored/garbageShare*100/max(live, 1), gcPercent), gcPercentMax))
}

// set stops the world for a moment, so small differences are left alone.
func (h *heap) set(percent int) {
	if h.fixed || percent < h.percent+h.percent/4 && percent > h.percent-h.percent/4 {
		return
	}
	h.percent = percent
	debug.SetGCPercent(percent)
}
