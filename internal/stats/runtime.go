package stats

import (
	"math"
	"runtime/metrics"

	"golang.org/x/sys/unix"
)

// Runtime is what a Go process costs and what its garbage collector has of that, since its start.
type Runtime struct {
	CPUNs, GCNs uint64 // of all threads, by the kernel; the collector's, as Go's runtime knew at the end of the last cycle
	Cycles      uint64
	HeapBytes   uint64 // of objects, dead ones included
	pauses      *metrics.Float64Histogram
}

// The names in runtime/metrics, in the order of ReadRuntime.
var runtimeNames = [...]string{"/cpu/classes/gc/total:cpu-seconds", "/gc/cycles/total:gc-cycles", "/memory/classes/heap/objects:bytes", "/sched/pauses/total/gc:seconds"}

// ReadRuntime reads those of this process. It takes some microseconds, and stops nothing.
func ReadRuntime() (r Runtime) {
	var samples [len(runtimeNames)]metrics.Sample
	for i, name := range runtimeNames {
		samples[i].Name = name
	}
	metrics.Read(samples[:])
	if v := samples[0].Value; v.Kind() == metrics.KindFloat64 {
		r.GCNs = uint64(max(0, v.Float64()) * 1e9)
	}
	if v := samples[1].Value; v.Kind() == metrics.KindUint64 {
		r.Cycles = v.Uint64()
	}
	if v := samples[2].Value; v.Kind() == metrics.KindUint64 {
		r.HeapBytes = v.Uint64()
	}
	if v := samples[3].Value; v.Kind() == metrics.KindFloat64Histogram {
		r.pauses = v.Float64Histogram()
	}
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err == nil {
		r.CPUNs = uint64(u.Utime.Nano() + u.Stime.Nano())
	}
	return r
}

// Put sets the counters of the collector in shard 0. A pause counts as the upper end of the bucket in which the runtime has it.
func (r *Runtime) Put(s Shard) {
	s.Set(CPUTime, r.CPUNs)
	s.Set(GCTime, r.GCNs)
	s.Set(GCCycles, r.Cycles)
	s.Set(HeapBytes, r.HeapBytes)
	if r.pauses == nil {
		return
	}
	counts := make([]uint64, GCPauses.buckets)
	sum := 0.0
	for i, n := range r.pauses.Counts {
		if n == 0 {
			continue
		}
		end := r.pauses.Buckets[i+1] * 1e9
		if math.IsInf(end, 1) {
			end = r.pauses.Buckets[i] * 1e9
		}
		counts[GCPauses.bucket(uint64(end))] += n
		sum += end * float64(n)
	}
	for i, n := range counts {
		s.Set(GCPauses.first+Counter(i), n)
	}
	s.Set(GCPauses.first+Counter(GCPauses.buckets), uint64(sum))
}
