package stats

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/dnsmesh/dmpd/internal/wire"
)

func TestPage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "counters")
	p, err := Create(path, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	r, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var wg sync.WaitGroup
	for i := range 3 {
		s := p.Shard(i)
		wg.Go(func() {
			for range 1000 {
				s.Inc(Outcome(0))
				s.Observe(ResponseSize[UDP], 33)
			}
		})
	}
	wg.Wait()
	p.Shard(0).Set(Records, 7)
	p.Shard(1).Inc(Fault(wire.BadSig))
	if v := r.Value(Outcome(0)); v != 3000 {
		t.Errorf("the reader sees %d", v)
	}
	var b strings.Builder
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"# TYPE dmp_dns_queries_total counter\n", "dmp_dns_queries_total{outcome=\"noerror\"} 3000.0\n", "dmp_records 7.0\n", "dmpd_dns_faults_total{fault=\"tsig_badsig\"} 1.0\n",
		"dmpd_dns_response_bytes_bucket{transport=\"udp\",le=\"32\"} 0.0\n", "dmpd_dns_response_bytes_bucket{transport=\"udp\",le=\"64\"} 3000.0\n",
		"dmpd_dns_response_bytes_bucket{transport=\"udp\",le=\"+Inf\"} 3000.0\n", "dmpd_dns_response_bytes_count{transport=\"udp\"} 3000.0\n",
		"dmpd_dns_response_bytes_sum{transport=\"udp\"} 99000.0\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing", want)
		}
	}
	if n := strings.Count(b.String(), "# TYPE dmpd_dns_response_bytes "); n != 1 {
		t.Errorf("%d TYPE lines of one metric", n)
	}
	if n := testing.AllocsPerRun(100, func() { p.Shard(1).Inc(Outcome(3)); p.Shard(1).Observe(Latency[TCP], 1) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// What the collector did is on the page: as many pauses as its runtime counts, in buckets that add up.
func TestRuntime(t *testing.T) {
	runtime.GC()
	var m runtime.MemStats
	p := InMemory(1)
	r := ReadRuntime()
	r.Put(p.Shard(0))
	runtime.ReadMemStats(&m)
	pauses := uint64(0)
	for i := range GCPauses.buckets {
		pauses += p.Value(GCPauses.first + Counter(i))
	}
	sum := p.Value(GCPauses.first + Counter(GCPauses.buckets))
	if cycles := p.Value(GCCycles); cycles == 0 || cycles > uint64(m.NumGC) || pauses < cycles || sum < pauses {
		t.Errorf("%d cycles of %d, %d pauses, %d ns", cycles, m.NumGC, pauses, sum)
	}
	if cpu, gc := p.Value(CPUTime), p.Value(GCTime); cpu == 0 || gc == 0 || p.Value(HeapBytes) == 0 {
		t.Errorf("CPU %d ns, collector %d ns, heap %d", cpu, gc, p.Value(HeapBytes))
	}
	r.Put(p.Shard(0)) // the same once more is no more
	if again := p.Value(GCPauses.first + Counter(GCPauses.buckets)); again != sum {
		t.Errorf("%d, then %d", sum, again)
	}
}

func TestBuckets(t *testing.T) {
	h := ResponseSize[UDP] // 32, 64, ... with 8 buckets
	for v, want := range map[uint64]int{0: 0, 32: 0, 33: 1, 64: 1, 65: 2, 128: 2, 2048: 6, 2049: 7, 1 << 60: 7} {
		if got := h.bucket(v); got != want {
			t.Errorf("%d falls in bucket %d, want %d", v, got, want)
		}
	}
}

func TestOtherBuild(t *testing.T) {
	path := filepath.Join(t.TempDir(), "counters")
	p, err := Create(path, 1)
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func([]byte) []byte{
		"magic":       func(b []byte) []byte { b[0]++; return b },
		"fingerprint": func(b []byte) []byte { b[16]++; return b },
		"shards":      func(b []byte) []byte { b[12]++; return b },
		"short":       func(b []byte) []byte { return b[:100] },
		"cut":         func(b []byte) []byte { return b[:len(b)-8] },
	} {
		if err := os.WriteFile(path, spoil(append([]byte(nil), good...)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); !errors.Is(err, ErrOther) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
