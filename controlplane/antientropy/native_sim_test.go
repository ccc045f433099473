package antientropy

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dnsmesh/dmpd/controlplane/antientropy/simnet"
	"github.com/dnsmesh/dmpd/internal/record"
)

// memStore is a data plane in memory: what Merge or an own write answered stays over a crash.
type memStore struct {
	nowMs  func() int64
	origin [8]byte
	lifeMs int64

	mu       sync.Mutex
	rows     map[record.ID]record.Row
	epoch    [16]byte
	frames   [][]byte // lsn 1 on
	gone     uint64   // frames up to here were unlinked
	snapshot []record.Row
	snapLSN  uint64
	hlc      record.HLC
	feedMs   int64
	changed  chan struct{}
	slow     time.Duration // of a sync
	down     bool
	ageless  bool // nothing expires
}

func newMemStore(i int, nowMs func() int64) *memStore {
	return &memStore{nowMs: nowMs, origin: [8]byte{byte(i + 1)}, epoch: [16]byte{byte(i + 1)}, lifeMs: (testTTLSec + tombstoneSlackSec) * 1000,
		rows: map[record.ID]record.Row{}, changed: make(chan struct{})}
}

const testTTLSec = 3600

// write appends a frame; mu is held.
func (s *memStore) write(es []record.Entry) {
	if len(es) == 0 {
		return
	}
	s.feedMs = max(s.nowMs(), s.feedMs+1)
	s.frames = append(s.frames, record.AppendFrame(nil, s.feedMs, es))
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *memStore) own(name, value string, f func(r *record.Row)) record.Row {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	rdata := record.AppendRDATA(nil, []byte(value))
	r := record.Row{Name: []byte(name), Hash: record.HashOf(rdata)}
	if was, ok := s.rows[r.ID()]; ok {
		r = was
	}
	refresh := r.RDATA != nil && r.Add > r.Del
	s.hlc = s.hlc.Next(s.nowMs())
	r.RDATA = rdata
	f(&r)
	e := record.Entry{Kind: record.KindPut, Row: r}
	switch {
	case r.Add <= r.Del:
		e.Kind, r.RDATA, e.Row.RDATA = record.KindTombstone, nil, nil
	case refresh:
		e.Kind, e.Row.RDATA = record.KindRefresh, nil
	}
	s.rows[r.ID()] = r
	s.write([]record.Entry{e})
	return r
}

func (s *memStore) publish(name, value string, ttl time.Duration) record.Row {
	return s.own(name, value, func(r *record.Row) {
		r.Add, r.ExpMs, r.Origin = s.hlc, max(s.nowMs()+ttl.Milliseconds(), r.ExpMs), s.origin
	})
}

func (s *memStore) delete(name, value string) record.Row {
	return s.own(name, value, func(r *record.Row) { r.Del, r.Origin = s.hlc, s.origin })
}

// expire forgets what the data plane forgets; mu is held.
func (s *memStore) expire() {
	if s.ageless {
		return
	}
	nowMs := s.nowMs()
	for id, r := range s.rows {
		switch st := stateOf(&r).at(nowMs-nowMs%cutMs, s.lifeMs); {
		case st == state{}:
			delete(s.rows, id)
		case st.add == 0 && r.RDATA != nil:
			r.RDATA = nil
			if r.Add > r.Del {
				r.Add, r.ExpMs = 0, 0
			}
			s.rows[id] = r
		}
	}
}

func (s *memStore) Merge(ctx context.Context, rows []record.Row) (record.Code, error) {
	if s.slow > 0 {
		sleep(ctx, s.slow)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil || s.down {
		return 0, ErrAway
	}
	s.expire()
	code := record.CodeUnchanged
	var es []record.Entry
	for _, in := range rows {
		if ahead := record.HLCAt(s.nowMs()+record.HLCAheadMs) | 1<<16 - 1; in.Add > ahead || in.Del > ahead {
			code = record.CodeStamp
			continue
		}
		was, ok := s.rows[in.ID()]
		if !ok {
			was = record.Row{Name: in.Name, Hash: in.Hash}
		}
		won := record.Merge(was, in)
		if stateOf(&won) == stateOf(&was) && won.Origin == was.Origin || won.Add > won.Del && won.RDATA == nil {
			continue
		}
		s.hlc = max(s.hlc, in.Add, in.Del)
		won.Name, won.RDATA = bytes.Clone(won.Name), bytes.Clone(won.RDATA)
		e := record.Entry{Kind: record.KindPut}
		if won.Add <= won.Del {
			e.Kind, won.RDATA = record.KindTombstone, nil
		}
		e.Row = won
		s.rows[won.ID()] = won
		es = append(es, e)
		if code == record.CodeUnchanged {
			code = record.CodeStored
		}
	}
	s.write(es)
	return code, nil
}

type memFollower struct {
	s        *memStore
	snapshot []record.Row
	lsn      uint64
	epoch    [16]byte
}

func (s *memStore) Open() (Follower, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &memFollower{s, s.snapshot, s.snapLSN, s.epoch}, nil
}

func (f *memFollower) Epoch() [16]byte { return f.epoch }
func (f *memFollower) Close()          {}

func (f *memFollower) Next(each func(*record.Entry)) (uint64, bool, error) {
	for _, r := range f.snapshot {
		e := record.Entry{Kind: record.KindPut, Row: r}
		if r.RDATA == nil {
			e.Kind = record.KindTombstone
		}
		each(&e)
	}
	f.snapshot = nil
	f.s.mu.Lock()
	if f.epoch != f.s.epoch || f.lsn < f.s.gone {
		f.s.mu.Unlock()
		return 0, false, ErrRestart
	}
	frames := f.s.frames[f.lsn-f.s.gone:]
	f.s.mu.Unlock()
	for _, p := range frames[:min(len(frames), 10)] {
		if err := record.ReadFrame(p, func(_ int64, e *record.Entry) error { each(e); return nil }); err != nil {
			return f.lsn, false, err
		}
		f.lsn++
	}
	return f.lsn, len(frames) > 10, nil
}

type memFrames struct {
	s     *memStore
	epoch [16]byte
	next  uint64
}

func (s *memStore) Frames(epoch [16]byte, from uint64) (FrameReader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if epoch != s.epoch || from <= s.gone || from > s.gone+uint64(len(s.frames))+1 {
		return nil, ErrRestart
	}
	return &memFrames{s, epoch, from}, nil
}

func (f *memFrames) Close() {}

func (f *memFrames) Next() (uint64, []byte, bool, error) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if f.epoch != f.s.epoch || f.next <= f.s.gone {
		return 0, nil, false, ErrRestart
	}
	if f.next > f.s.gone+uint64(len(f.s.frames)) {
		return 0, nil, false, nil
	}
	f.next++
	return f.next - 1, f.s.frames[f.next-2-f.s.gone], true, nil
}

func (s *memStore) Row(id record.ID) (record.Row, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.rows[id]
	return r, ok, nil
}

func (s *memStore) Snapshot(f func(*record.Row) bool) ([16]byte, uint64, bool, error) {
	s.mu.Lock()
	rows, lsn, epoch := s.snapshot, s.snapLSN, s.epoch
	s.mu.Unlock()
	for i := range rows {
		if !f(&rows[i]) {
			break
		}
	}
	return epoch, lsn, lsn > 0, nil
}

func (s *memStore) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// shorten makes a snapshot and unlinks the log but for keep frames.
func (s *memStore) shorten(keep int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	s.snapshot = slices.Collect(maps.Values(s.rows))
	s.snapLSN = s.gone + uint64(len(s.frames))
	if n := len(s.frames) - keep; n > 0 {
		s.frames = s.frames[n:]
		s.gone += uint64(n)
	}
}

// simNode is a node of the simulation.
type simNode struct {
	net     *simnet.Network
	id      string
	store   *memStore
	offset  atomic.Int64 // of its clock, ms
	peers   []Peer
	cursors memCursors
	native  *Native
	stop    func()
}

func (s *simNode) nowMs() int64 { return time.Now().UnixMilli() + s.offset.Load() }

type memCursors struct {
	mu sync.Mutex
	m  map[string]NativeCursor
}

func (c *memCursors) Load() (map[string]NativeCursor, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.m), nil
}

func (c *memCursors) Save(m map[string]NativeCursor) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.m = m
	return nil
}

// Peers makes a node its own peer list.
func (s *simNode) Peers() ([]Peer, <-chan struct{}) { return s.peers, nil }

func (s *simNode) start(t testing.TB) {
	native, err := NewNative(NativeOptions{NodeID: s.id, Origin: s.store.origin, Token: "the token", MaxTTLSec: testTTLSec, Padding: s.store.origin[0]%2 == 0, Records: s.store,
		Merger: s.store, Peers: s, Cursors: &s.cursors, Transport: func(p Peer) http.RoundTripper { return s.net.Transport(s.id, p.ID) }, NowMs: s.nowMs})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { native.Run(ctx); close(done) }()
	s.native = native
	s.net.Attach(s.id, native.Handler())
	s.stop = func() {
		s.net.Detach(s.id)
		cancel()
		<-done
	}
}

func newNetwork(t testing.TB, seed uint64, k int) (*simnet.Network, []*simNode) {
	w := simnet.New(rand.New(rand.NewPCG(seed, 9)), 30*time.Millisecond)
	nodes := make([]*simNode, k)
	for i := range nodes {
		s := &simNode{net: w, id: fmt.Sprintf("node-%d", i)}
		s.store = newMemStore(i, s.nowMs)
		for j := range nodes {
			if i != j {
				id := fmt.Sprintf("node-%d", j)
				s.peers = append(s.peers, Peer{ID: id, URL: "https://" + id})
			}
		}
		nodes[i] = s
	}
	return w, nodes
}

// equal says whether all nodes have the root that the states have.
func equal(nodes []*simNode) (roots []string, ok bool) {
	ok = true
	for _, s := range nodes {
		st := s.native.Status()
		roots = append(roots, fmt.Sprintf("%s %d at %d", st.Root, st.Elements, st.CutMs))
		ok = ok && st.Ready && roots[len(roots)-1] == roots[0]
		for _, p := range st.Peers {
			ok = ok && p.Converged
		}
	}
	return roots, ok
}

// converge waits, at most ten minutes of the simulation.
func converge(t testing.TB, nodes []*simNode) time.Duration {
	began := time.Now()
	for {
		roots, ok := equal(nodes)
		if ok {
			return time.Since(began)
		}
		if time.Since(began) > 10*time.Minute {
			for _, s := range nodes {
				t.Logf("%s: %+v", s.id, s.native.Status())
			}
			t.Fatalf("no convergence: %v", roots)
		}
		time.Sleep(time.Second)
	}
}

// simulate lets nodes take random changes while everything fails, heals, and compares with what the join of all changes is.
func simulate(t *testing.T, seed uint64, k int, steps int) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(seed, 8))
		w, nodes := newNetwork(t, seed, k)
		w.Lossy(true)
		for _, s := range nodes {
			s.offset.Store(rng.Int64N(4000) - 2000)
			s.start(t)
		}
		truth := map[record.ID]state{}
		note := func(r record.Row) {
			id := r.ID()
			truth[id] = truth[id].join(stateOf(&r))
		}
		for i := range steps {
			time.Sleep(time.Duration(rng.Int64N(int64(200 * time.Millisecond))))
			s := nodes[rng.IntN(k)]
			name, value := fmt.Sprintf("\x02%02d\x04test\x00", rng.IntN(20)), fmt.Sprint(rng.IntN(10))
			switch n := rng.IntN(100); {
			case n < 60:
				note(s.store.publish(name, value, 40*time.Minute+time.Duration(rng.Int64N(int64(10*time.Minute)))))
			case n < 65:
				note(s.store.publish(name, fmt.Sprint("short ", i), time.Duration(1+rng.IntN(60))*time.Second))
			case n < 85:
				note(s.store.delete(name, value))
			case n < 88:
				side := map[string]int{}
				for _, s := range nodes {
					side[s.id] = rng.IntN(2)
				}
				w.Partition(side)
			case n < 91:
				w.Partition(map[string]int{})
			case n < 94:
				s.offset.Store(rng.Int64N(40_000) - 20_000)
			case n < 96:
				s.store.shorten(rng.IntN(20))
			default:
				s.stop()
				time.Sleep(time.Duration(rng.Int64N(int64(5 * time.Second))))
				s.start(t)
			}
		}
		w.Partition(map[string]int{})
		w.Lossy(false)
		for _, s := range nodes {
			s.offset.Store(rng.Int64N(4000) - 2000)
		}
		took := converge(t, nodes)
		ms := nodes[0].native.Status().CutMs
		for _, s := range nodes {
			s.store.mu.Lock()
			seen := 0
			for id, want := range truth {
				have := s.store.rows[id]
				if got, want := stateOf(&have).at(ms, s.store.lifeMs), want.at(ms, s.store.lifeMs); got != want || want.add != 0 && have.RDATA == nil {
					t.Errorf("seed %d: %s has %x as %+v, it is %+v", seed, s.id, id, got, want)
				}
				if want.at(ms, s.store.lifeMs).add != 0 {
					seen++
				}
			}
			s.store.mu.Unlock()
			if seen == 0 {
				t.Errorf("seed %d: nothing lives at the end", seed)
			}
		}
		t.Logf("seed %d: %d nodes, %d elements, converged %v after the network healed", seed, k, len(truth), took)
		for _, s := range nodes {
			s.stop()
		}
	})
}

func TestSimulation(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			simulate(t, seed, 2+int(seed)%4, 300)
		})
	}
}

// TestThirtyTwo: as many nodes as a manifest may have.
func TestThirtyTwo(t *testing.T) {
	t.Parallel()
	simulate(t, 1000, 32, 40)
}
