package store

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"sort"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/vfs/vfstest"
)

var (
	seeds      = flag.Int("store.seeds", 200, "seeds of the model test")
	benchNames = flag.Int("store.names", 1_000_000, "names in BenchmarkNames")
	oneSeed    = flag.Uint64("store.seed", 0, "run this seed of the model test alone")
)

// model is the store as the simplest program would have it: expiry by name and value.
type model map[string]map[string]int64

func (m model) clone() model {
	c := model{}
	for n, values := range m {
		c[n] = maps.Clone(values)
	}
	return c
}

const modelValuesMax = 8

// apply is a message as dns.md 5.4, 5.5 and 11 have it.
func (m model) apply(b *Batch, nowMs int64) (model, record.Code) {
	next := m.clone()
	live := func(n string) (count int) {
		for _, exp := range next[n] {
			if exp > nowMs {
				count++
			}
		}
		return count
	}
	type growth struct {
		before          int
		added, stranger bool
	}
	touched := map[string]*growth{}
	applied, absent := 0, 0
	for _, op := range b.Ops {
		n, v := string(op.Name), string(op.RDATA)
		if touched[n] == nil {
			touched[n] = &growth{before: live(n)}
		}
		if next[n] == nil {
			next[n] = map[string]int64{}
		}
		exp, there := next[n][v]
		there = there && exp > nowMs
		switch op.Kind {
		case record.OpAdd:
			want := nowMs + int64(op.TTLSec)*1000
			if there && (want == exp || want < exp && !op.MayDelete) {
				continue
			}
			if !there {
				touched[n].added = true
				touched[n].stranger = touched[n].stranger || !op.MayDelete
			}
			next[n][v] = want
			applied++
		case record.OpDelete:
			if !there {
				absent++
				continue
			}
			delete(next[n], v)
			applied++
		case record.OpDeleteRRset:
			if live(n) == 0 {
				absent++
				continue
			}
			next[n] = map[string]int64{}
			applied++
		}
	}
	for n, g := range touched {
		limit := modelValuesMax
		if g.stranger {
			limit--
		}
		if g.added && live(n) > g.before && live(n) > limit {
			return m, record.CodeFull
		}
	}
	switch {
	case applied > 0:
		return next, record.CodeStored
	case absent == len(b.Ops):
		return next, record.CodeAbsent
	}
	return next, record.CodeUnchanged
}

var modelNames = []string{"a.mesh.test", "b.mesh.test", "x.a.mesh.test", "y.x.a.mesh.test", "z.q.mesh.test", "mesh.test", "w.v.u.mesh.test"}

func (m model) seen(nowMs int64) string {
	var out []string
	for n, values := range m {
		for v, exp := range values {
			if exp > nowMs {
				out = append(out, fmt.Sprintf("%x=%x", n, v))
			}
		}
	}
	sort.Strings(out)
	return strings.Join(out, " ")
}

func (n *node) seen() string {
	n.reader.Enter()
	defer n.reader.Leave()
	var out []string
	for _, text := range modelNames {
		set, _ := n.View().Lookup(name(text))
		var last []byte
		set.Each(func(v Value) bool {
			if bytes.Compare(last, v.RDATA) >= 0 {
				n.t.Errorf("%s: not in canonical order", text)
			}
			last = v.RDATA
			if v.ExpMs > n.nowMs.Load() {
				out = append(out, fmt.Sprintf("%x=%x", name(text), v.RDATA))
			}
			return true
		})
	}
	sort.Strings(out)
	return strings.Join(out, " ")
}

// checkBelow compares the counts below each name with the names that hold values.
func (n *node) checkBelow(m model, exact bool) {
	n.reader.Enter()
	defer n.reader.Leave()
	nowMs := n.nowMs.Load()
	for _, text := range append([]string{"q.mesh.test", "v.u.mesh.test", "u.mesh.test", "test", "none.test"}, modelNames...) {
		want := false
		for other, values := range m {
			for _, exp := range values {
				want = want || exp > nowMs && other != string(name(text)) && strings.HasSuffix(other, string(name(text)))
			}
		}
		if got := n.View().HasBelow(name(text), nowMs); got != want && (want || exact) {
			n.t.Errorf("names below %s: %v, want %v", text, got, want)
		}
	}
}

// TestModel sends random messages to a store and to the model, and crashes the machine under the store at random moments:
// what was answered is there, what was refused is not there by half.
func TestModel(t *testing.T) {
	t.Parallel()
	if *oneSeed != 0 {
		runModel(t, *oneSeed)
		return
	}
	var wait sync.WaitGroup
	work := make(chan uint64)
	for range 2 {
		wait.Go(func() {
			for seed := range work {
				if !t.Failed() {
					runModel(t, seed)
				}
			}
		})
	}
	for seed := range uint64(*seeds) {
		work <- seed + 1
	}
	close(work)
	wait.Wait()
}

func runModel(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	failed := t.Failed()
	n := newNode(t, vfstest.New(seed), func(o *Options) {
		o.Limits = Limits{ValuesMax: modelValuesMax}
		o.MergeMin, o.SegmentMax = 4<<10, 16<<10
		o.RetainBytes = 1
	})
	defer func() {
		n.Close()
		n.Store, n.fs, n.o.FS = nil, nil, nil // the test's cleanup keeps n
		if t.Failed() && !failed {
			t.Logf("seed %d (again: -run TestModel -store.seed %d)", seed, seed)
		}
	}()
	m := model{}
	request := uint64(0)
	serial := n.Serial()
	value := func() []byte {
		return rdata(strings.Repeat(string(rune('a'+rng.IntN(12))), 1+rng.IntN(2)*300))
	}
	message := func() *Batch {
		b := &Batch{}
		for range 1 + rng.IntN(4) {
			op := record.Op{Kind: record.OpAdd, Name: name(modelNames[rng.IntN(len(modelNames))]), RDATA: value(),
				TTLSec: uint32(1 + rng.IntN(60)), MayDelete: rng.IntN(2) == 0}
			switch rng.IntN(10) {
			case 0, 1:
				op.Kind = record.OpDelete
			case 2:
				op.Kind, op.RDATA = record.OpDeleteRRset, nil
			}
			b.Ops = append(b.Ops, op)
		}
		return b
	}
	for range 60 {
		n.nowMs.Add(int64(rng.IntN(3) * rng.IntN(8000)))
		nowMs := n.nowMs.Load()
		switch k := rng.IntN(20); {
		case k < 12: // a group of messages
			group := make([]*Batch, 1+rng.IntN(4))
			codes := make([]record.Code, len(group))
			for i := range group {
				group[i] = message()
				m, codes[i] = m.apply(group[i], nowMs)
			}
			for i, r := range n.send(group...) {
				if r.Code != codes[i] {
					t.Errorf("message %d of a group: %v, the model says %v", i, r.Code, codes[i])
				}
			}
		case k < 14: // a request
			b := message()
			var code record.Code
			m, code = m.apply(b, nowMs)
			request++
			if r := n.request(request, b); r.Code != code {
				t.Errorf("request: %v, the model says %v", r.Code, code)
			}
		case k < 17:
			n.Tick()
		case k < 18:
			n.reopen()
		case k < 19: // the machine stops between messages
			n.crash()
			if got := n.Recovered().Requests; got != request {
				t.Errorf("requests up to %d are taken after a crash, %d were answered", got, request)
			}
		default: // the machine stops while a group is written
			after := m
			group := []*Batch{message(), message()}
			isRequest := rng.IntN(2) == 0
			if isRequest {
				group = group[:1]
			}
			for _, b := range group {
				after, _ = after.apply(b, nowMs)
			}
			left := rng.IntN(4)
			var mu sync.Mutex
			fault := func(op, _ string) error {
				mu.Lock()
				defer mu.Unlock()
				if left--; left < 0 {
					return syscall.EIO
				}
				return nil
			}
			n.fault.Store(&fault)
			var done bool
			if isRequest {
				request++
				got := make(chan Result, 1)
				if err := n.SubmitRequest(request, &record.Request{Source: record.SourceHTTP, Ops: group[0].Ops}, func(r Result) { got <- r }); err != nil {
					t.Fatal(err)
				}
				poll(t, func() bool { return len(got) > 0 || n.Stats().FailSyncs > 0 })
				done = len(got) > 0
			} else {
				for _, r := range n.send(group...) {
					done = r.Code != record.CodeFailed
				}
			}
			n.crash()
			got := n.seen()
			switch {
			case got == after.seen(nowMs) && (!isRequest || n.Recovered().Requests == request):
				m = after
			case done || got != m.seen(nowMs):
				t.Errorf("after a crash in a group (answered: %v)\n  got    %s\n  before %s\n  after  %s", done, got, m.seen(nowMs), after.seen(nowMs))
			case isRequest: // not taken: the taker hands it over again, and it happens once
				m = after
				n.request(request, group[0])
			}
		}
		if got, want := n.seen(), m.seen(n.nowMs.Load()); got != want {
			t.Errorf("the store holds\n  %s\nthe model\n  %s", got, want)
		}
		n.checkBelow(m, false)
		if s := n.Serial(); int32(s-serial) < 0 {
			t.Errorf("the serial went back from %d to %d", serial, s)
		} else {
			serial = s
		}
		if t.Failed() {
			return
		}
	}
	n.nowMs.Store(cutAt(n.nowMs.Load()) + 2*bucketMs) // a cut at this moment clears all that has expired
	for range 2 {                                     // the second if the last cut was still being cleared
		n.Tick()
		n.call(func() {
			for n.cutHLC != 0 {
				n.clear(expireStep)
			}
		})
	}

	n.checkBelow(m, true)
	n.checkGauges()
	n.call(n.checkLog) // where no segment is unlinked meanwhile
}

func (n *node) request(lsn uint64, b *Batch) Result {
	got := make(chan Result, 1)
	if err := n.SubmitRequest(lsn, &record.Request{Source: record.SourceHTTP, Ops: b.Ops}, func(r Result) { got <- r }); err != nil {
		n.t.Fatal(err)
	}
	return <-got
}

// checkGauges counts what is there and compares it with what was kept along.
func (n *node) checkGauges() {
	n.call(func() {
		var names, values, live, entries int64
		n.tree.pages.Range(func(b uint32, page []uint64) bool {
			for _, e := range page {
				entries++
				set := n.tree.set(ref(e))
				if bucketOf(uint32(e>>32), n.tree.buckets.Load()) != b || n.tree.hash(set.name()) != uint32(e>>32) {
					n.t.Errorf("an entry in the wrong page: %x in %d", e, b)
				}
				live += int64(classSize(int(set.class())))
				values += int64(set.Count())
				if set.Count() > 0 {
					names++
				}
			}
			return true
		})
		if st := n.Stats(); st.Names != names || st.Records != values || st.Bytes != live || int64(n.tree.entries) != entries {
			n.t.Errorf("gauges %+v with %d entries; counted names %d, values %d, bytes %d, entries %d", st, n.tree.entries, names, values, live, entries)
		}
	})
}

// checkLog reads what the log still holds: feed stamps rise, rows of a frame are sorted, each request has one outcome.
func (n *node) checkLog() {
	r, err := journal.OpenReader(n.fs, n.o.Dir, logName, 0)
	if err != nil {
		n.t.Error(err)
		return
	}
	defer r.Close()
	feed := int64(0)
	outcomes := map[uint64]int{}
	for {
		_, payload, ok, err := r.Next()
		if err != nil && !errors.Is(err, journal.ErrGone) {
			n.t.Error(err)
		}
		if !ok {
			return
		}
		first := true
		var last []byte
		err = record.ReadFrame(payload, func(feedMs int64, e *record.Entry) error {
			if first && feedMs <= feed {
				n.t.Errorf("feed stamp %d after %d", feedMs, feed)
			}
			first, feed = false, feedMs
			switch e.Kind {
			case record.KindPut, record.KindRefresh, record.KindTombstone:
				key := append(append([]byte(nil), e.Row.Name...), e.Row.Hash[:]...)
				if bytes.Compare(last, key) >= 0 {
					n.t.Error("rows of a frame are not sorted by name and hash")
				}
				last = key
			case record.KindOutcome:
				if outcomes[e.LSN]++; outcomes[e.LSN] > 1 {
					n.t.Errorf("request %d has two outcomes", e.LSN)
				}
			}
			return nil
		})
		if err != nil {
			n.t.Error(err)
		}
	}
}
