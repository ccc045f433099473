package store

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dnsmesh/dmpd/internal/record"
)

// The index and the arena at one and ten million names: -bench Names, and -bench Names -store.names 10000000.
// docs/decisions/0009-store.md has what was measured.

func benchName(dst []byte, i int) []byte {
	// 62 bytes in wire form, like the names of mailboxes: a hash label below a fixed zone
	dst = append(dst, 32)
	dst = fmt.Appendf(dst, "%032x", uint64(i)*0x9E3779B97F4A7C15)
	return append(dst, "\x0aslot-pools\x04mesh\x04test\x00"...)
}

func benchTree(b *testing.B, names int) *tree {
	t := newTree(0)
	b.Cleanup(t.arena.unmap)
	value := make([]byte, 300)
	rdata := record.AppendRDATA(nil, value)
	var scratch [64]byte
	one := make([]packed, 1)
	for i := range names {
		binary.LittleEndian.PutUint64(rdata[1:], uint64(i))
		one[0] = packed{rdata: rdata, expMs: t0 + int64(i%86_400)*1000, add: record.HLC(i + 1)}
		if err := t.put(benchName(scratch[:0], i), one); err != nil {
			b.Fatal(err)
		}
	}
	t.publish()
	return t
}

// cpu reports processor time beside the wall's, which says little on a machine that does other things too.
func cpu(b *testing.B, who int) func() {
	used := func() int64 {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	runtime.LockOSThread()
	begin := used()
	return func() {
		b.ReportMetric(float64(used()-begin)/float64(b.N), "cpu-ns/op")
		runtime.UnlockOSThread()
	}
}

func BenchmarkNames(b *testing.B) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	begin := time.Now()
	t := benchTree(b, *benchNames)
	perPut := float64(time.Since(begin).Nanoseconds()) / float64(*benchNames)
	runtime.GC()
	runtime.ReadMemStats(&after)
	s := &Store{tree: t}
	view := View{s}
	keys := make([][]byte, 1<<16)
	rng := rand.New(rand.NewPCG(1, 1))
	run := func(name string, from int, want bool) {
		for i := range keys {
			keys[i] = benchName(nil, from+rng.IntN(*benchNames))
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			defer cpu(b, unix.RUSAGE_THREAD)()
			for i := range b.N {
				if _, ok := view.Lookup(keys[i&(len(keys)-1)]); ok != want {
					b.Fatal("lookup")
				}
			}
		})
	}
	run("hit", 0, true)
	run("miss", *benchNames, false)
	for i := range keys {
		keys[i] = benchName(nil, rng.IntN(*benchNames))
	}
	buf := make([]byte, 0, 1024)
	b.Run("answer", func(b *testing.B) {
		b.ReportAllocs()
		defer cpu(b, unix.RUSAGE_THREAD)()
		for i := range b.N {
			set, _ := view.Lookup(keys[i&(len(keys)-1)])
			_, _, _ = set.AppendAnswers(buf, 60, 0, 1024)
		}
	})
	b.Run("put", func(b *testing.B) {
		one := []packed{{rdata: record.AppendRDATA(nil, make([]byte, 300)), expMs: t0 + 86_400_000, add: 1}}
		defer cpu(b, unix.RUSAGE_THREAD)()
		for i := range b.N {
			if err := t.put(keys[i&(len(keys)-1)], one); err != nil {
				b.Fatal(err)
			}
			if i%64 == 0 {
				t.reclaim()
			}
		}
	})
	b.Run("gc", func(b *testing.B) {
		defer cpu(b, unix.RUSAGE_SELF)()
		for range b.N {
			runtime.GC()
		}
	})
	b.Run("memory", func(b *testing.B) {
		n := float64(*benchNames)
		b.ReportMetric(float64(t.arena.live.Load())/n, "arena-B/name")
		b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/n, "heap-B/name")
		b.ReportMetric(float64(after.HeapObjects-before.HeapObjects), "heap-objects")
		b.ReportMetric(perPut, "load-ns/name")
	})
	runtime.KeepAlive(t)
}
