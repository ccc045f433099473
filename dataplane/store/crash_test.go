package store

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/vfs/vfstest"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// A value in the simulation is added once, so that its fate is one of these.
type fate uint8

const (
	unknown fate = iota // its message was not acknowledged
	there               // added, acknowledged
	gone                // deleted, acknowledged
	fading              // a delete was not acknowledged
)

type simValue struct {
	fate  fate
	batch int
}

// simulation drives one store through updates, requests of the control plane, failing disks and crashes.
type simulation struct {
	t       *testing.T
	seed    uint64
	rng     *rand.Rand
	fs      *vfstest.Sim
	nowMs   atomic.Int64
	faults  atomic.Bool
	values  map[string]*simValue // by value; its name follows from it
	batches int
	request uint64 // last position handed over
	serial  uint32
}

const simNames = 6

func (m *simulation) name(value string) []byte {
	var n int
	fmt.Sscanf(value, "%d", &n)
	return wire.MustName(fmt.Sprintf("n%d.mesh.test", n%simNames))
}

func (m *simulation) options() Options {
	return Options{FS: m.fs, Dir: "data", Zone: wire.MustName("mesh.test"), SegmentMax: 16 << 10, MergeMin: 8 << 10, Manual: true, NowMs: m.nowMs.Load}
}

// TestCrashes: whatever is lost of what was not synced, every acknowledged change is there afterwards, no refused message half, and no
// request twice.
func TestCrashes(t *testing.T) {
	seeds := uint64(1000)
	if testing.Short() {
		seeds = 100
	}
	const parts = 4
	var wg sync.WaitGroup
	for part := range uint64(parts) {
		wg.Go(func() {
			for seed := part; seed < seeds && !t.Failed(); seed += parts {
				m := &simulation{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 3)), fs: vfstest.New(seed), values: map[string]*simValue{}}
				m.nowMs.Store(t0)
				for range 3 {
					if !m.life() {
						t.Errorf("seed %d", seed)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}

// life opens the store, checks it, works with it, and crashes.
func (m *simulation) life() bool {
	var mu sync.Mutex
	dice := rand.New(rand.NewPCG(m.rng.Uint64(), 5)) // the committer's, beside ours
	m.fs.Fault = func(op, _ string) error {
		mu.Lock()
		defer mu.Unlock()
		if m.faults.Load() && op != "open" && op != "map" && dice.IntN(150) == 0 {
			return syscall.EIO
		}
		return nil
	}
	s, err := Open(m.options())
	if err != nil {
		m.t.Errorf("seed %d: %v", m.seed, err)
		return false
	}
	if !m.check(s) {
		return false
	}
	m.request = s.Recovered().Requests
	s.SetRequestsEpoch([16]byte{7})
	m.faults.Store(true)
	steps := m.rng.IntN(25)
	for range steps {
		m.nowMs.Add(m.rng.Int64N(2000))
		switch m.rng.IntN(6) {
		case 0:
			s.Tick()
		case 1:
			m.requests(s)
		default:
			m.group(s)
		}
	}
	m.faults.Store(false)
	if m.rng.IntN(4) == 0 {
		s.Close()
	} else {
		// The committer must not go on writing to what crashed: let it come to rest, then leave it behind.
		s.call(func() {})
	}
	crashed := m.fs.Crash()
	s.Close()
	m.fs = crashed
	m.nowMs.Add(1000)
	return !m.t.Failed()
}

// ops makes a message's operations and their marks.
func (m *simulation) ops() (ops []record.Op, values []string, dels []string) {
	for range 1 + m.rng.IntN(3) {
		if m.rng.IntN(4) == 0 {
			for v, s := range m.values { // any one that is there
				if s.fate == there {
					ops = append(ops, record.Op{Kind: record.OpDelete, Name: m.name(v), RDATA: record.AppendRDATA(nil, []byte(v)), MayDelete: true})
					dels = append(dels, v)
					s.fate = fading
				}
				break
			}
			continue
		}
		v := fmt.Sprintf("%d %x", m.rng.IntN(simNames), m.rng.Uint64())
		m.values[v] = &simValue{unknown, m.batches}
		values = append(values, v)
		ops = append(ops, record.Op{Kind: record.OpAdd, Name: m.name(v), RDATA: record.AppendRDATA(nil, []byte(v)), TTLSec: 86400, MayDelete: true})
	}
	m.batches++
	return ops, values, dels
}

func (m *simulation) settle(code record.Code, values, dels []string) {
	if !code.OK() {
		return
	}
	for _, v := range values {
		m.values[v].fate = there
	}
	for _, v := range dels {
		m.values[v].fate = gone
	}
}

// group submits some messages at once and waits for all.
func (m *simulation) group(s *Store) {
	type result struct {
		code         record.Code
		values, dels []string
	}
	n := 1 + m.rng.IntN(4)
	results := make(chan result, n)
	submitted := 0
	for range n {
		ops, values, dels := m.ops()
		if len(ops) == 0 {
			continue
		}
		b := &Batch{Ops: ops, Done: func(r Result) { results <- result{r.Code, values, dels} }}
		if s.Submit(b) {
			submitted++
		}
	}
	for range submitted {
		r := <-results
		m.settle(r.code, r.values, r.dels)
	}
}

// requests hands over requests as the taker does; their outcome is not waited for by position but by callback.
func (m *simulation) requests(s *Store) {
	for range 1 + m.rng.IntN(3) {
		m.request++
		ops, values, dels := m.ops()
		if m.rng.IntN(5) == 0 || len(ops) == 0 {
			for _, v := range dels {
				m.values[v].fate = there
			}
			for _, v := range values {
				delete(m.values, v)
			}
			if s.SubmitVoid(m.request, m.request) != nil {
				return
			}
			continue
		}
		done := make(chan Result, 1)
		if s.SubmitRequest(m.request, &record.Request{Source: record.SourceHTTP, Ops: ops}, func(r Result) { done <- r }) != nil {
			return
		}
		// A request without an outcome waits for a better disk: it may come with a later group, or after the crash.
		s.call(func() {})
		select {
		case r := <-done:
			m.settle(r.Code, values, dels)
		default:
		}
	}
}

// check compares the store with what was acknowledged, and settles what was open.
func (m *simulation) check(s *Store) bool {
	got := map[string]bool{}
	r := s.NewReader()
	r.Enter()
	for i := range simNames {
		if set, ok := s.View().Lookup(wire.MustName(fmt.Sprintf("n%d.mesh.test", i))); ok {
			set.Each(func(v Value) bool {
				got[string(record.AppendValue(nil, v.RDATA))] = true
				return true
			})
		}
	}
	r.Leave()
	ok := true
	fail := func(format string, args ...any) {
		m.t.Errorf("seed %d: "+format, append([]any{m.seed}, args...)...)
		ok = false
	}
	whole := map[int]bool{}
	for v, s := range m.values {
		switch s.fate {
		case there:
			if !got[v] {
				fail("%q was acknowledged and is not there", v)
			}
		case gone:
			if got[v] {
				fail("the delete of %q was acknowledged, and it is there", v)
			}
		case unknown:
			if was, seen := whole[s.batch]; seen && was != got[v] {
				fail("message %d is there in part", s.batch)
			}
			whole[s.batch] = got[v]
		}
		if got[v] {
			s.fate = there
		} else {
			s.fate = gone
		}
	}
	for v := range got {
		if m.values[v] == nil {
			fail("%q was never added", v)
		}
	}
	if serial := s.Serial(); int32(serial-m.serial) < 0 {
		fail("the serial went back from %d to %d", m.serial, serial)
	} else {
		m.serial = serial
	}
	return ok
}

// TestReadersBesideTheCommitter: lookups while everything changes see whole RRsets (run it under the race detector).
func TestReadersBesideTheCommitter(t *testing.T) {
	t.Parallel()
	s, err := Open(Options{Dir: t.TempDir(), Zone: wire.MustName("mesh.test")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			r := s.NewReader()
			view := s.View()
			rng := rand.New(rand.NewPCG(1, 2))
			for {
				select {
				case <-stop:
					return
				default:
				}
				r.Enter()
				for range 50 {
					if set, ok := view.Lookup(wire.MustName(fmt.Sprintf("n%d.mesh.test", rng.IntN(200)))); ok {
						n := 0
						set.Each(func(v Value) bool {
							// Every value says how long it is.
							val := record.AppendValue(nil, v.RDATA)
							want := 0
							if _, err := fmt.Sscanf(string(val), "%d ", &want); err != nil || want != len(val) {
								t.Errorf("a value that is none: %q", val)
								return false
							}
							n++
							return true
						})
						if n != set.Count() {
							t.Errorf("%d of %d values", n, set.Count())
						}
					}
				}
				r.Leave()
			}
		})
	}
	rng := rand.New(rand.NewPCG(3, 4))
	rounds := 400 // each waits for a sync of the disk
	if testing.Short() {
		rounds = 100
	}
	for i := range rounds {
		var done sync.WaitGroup
		for range 8 {
			n := 6 + rng.IntN(600)
			v := fmt.Sprintf("%d ", n)
			for len(v) < n {
				v += "x"
			}
			op := record.Op{Kind: record.OpAdd, Name: wire.MustName(fmt.Sprintf("n%d.mesh.test", rng.IntN(200))), RDATA: record.AppendRDATA(nil, []byte(v[:n])), TTLSec: 300, MayDelete: true}
			if rng.IntN(3) == 0 {
				op.Kind, op.RDATA = record.OpDeleteRRset, nil
			}
			done.Add(1)
			if !s.Submit(&Batch{Ops: []record.Op{op}, Done: func(Result) { done.Done() }}) {
				done.Done()
			}
		}
		done.Wait()
		_ = i
	}
	close(stop)
	wg.Wait()
}

func TestLookupAllocs(t *testing.T) {
	s, err := Open(Options{Dir: t.TempDir(), Zone: wire.MustName("mesh.test")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	done := make(chan Result, 1)
	s.Submit(&Batch{Ops: []record.Op{{Kind: record.OpAdd, Name: wire.MustName("a.b.mesh.test"), RDATA: record.AppendRDATA(nil, []byte("v")), TTLSec: 300}}, Done: func(r Result) { done <- r }})
	<-done
	r, view := s.NewReader(), s.View()
	hit, miss, ent := wire.MustName("a.b.mesh.test"), wire.MustName("c.b.mesh.test"), wire.MustName("b.mesh.test")
	buf := make([]byte, 0, 512)
	r.Enter()
	defer r.Leave()
	if n := testing.AllocsPerRun(1000, func() {
		set, ok := view.Lookup(hit)
		if !ok {
			t.Fatal("a hit is none")
		}
		set.AppendAnswers(buf, 60, s.o.NowMs(), 512)
		if _, ok := view.Lookup(miss); ok {
			t.Fatal("a miss is none")
		}
		view.HasBelow(ent, s.o.NowMs())
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
