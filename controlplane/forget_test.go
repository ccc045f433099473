package controlplane

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dnsmesh/dmpd/controlplane/antientropy"
	"github.com/dnsmesh/dmpd/controlplane/antientropy/simnet"
	"github.com/dnsmesh/dmpd/dataplane/store"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/vfs"
	"github.com/dnsmesh/dmpd/internal/vfs/vfstest"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// A cluster in one process, on the clock of synctest: each node has its own file system that forgets what was not synced, and on it what
// the two processes of a node run: store, rows log, snapshots, requests log, the readers of both, native replication and its cursors. Real
// are neither the sockets (simnet) nor the bells and locks of the two processes (the followers poll; whether a process lives is told).

const (
	forgetTTLSec   = 3600
	forgetLifeMs   = (forgetTTLSec + 60) * 1000
	forgetNames    = 12
	forgetTakeWait = 20 * time.Millisecond
)

var errDead = errors.New("the process is dead")

// gate is a process's way to its node's file system. At some change of it the process dies: that change is made in part or not at all, and
// nothing works any more.
type gate struct {
	vfs.FS
	dead atomic.Bool
	left atomic.Int64 // changes until it dies; 0: it does not
	died func()
}

func (g *gate) kill() {
	if !g.dead.Swap(true) && g.died != nil {
		g.died()
	}
}

// change says whether a change may be made.
func (g *gate) change() error {
	if !g.dead.Load() && g.left.Load() > 0 && g.left.Add(-1) == 0 {
		g.kill()
	}
	return g.look()
}

func (g *gate) look() error {
	if g.dead.Load() {
		return errDead
	}
	return nil
}

func (g *gate) OpenFile(name string, flag int, perm os.FileMode) (vfs.File, error) {
	check := g.look
	if flag&os.O_CREATE != 0 {
		check = g.change
	}
	if err := check(); err != nil {
		return nil, err
	}
	f, err := g.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &gateFile{f, g}, nil
}

func (g *gate) Rename(from, to string) error {
	if err := g.change(); err != nil {
		return err
	}
	return g.FS.Rename(from, to)
}

func (g *gate) Remove(name string) error {
	if err := g.change(); err != nil {
		return err
	}
	return g.FS.Remove(name)
}

func (g *gate) SyncDir(dir string) error {
	if err := g.change(); err != nil {
		return err
	}
	return g.FS.SyncDir(dir)
}

type gateFile struct {
	vfs.File
	g *gate
}

func (f *gateFile) WriteAt(p []byte, off int64) (int, error) {
	was := f.g.dead.Load()
	if err := f.g.change(); err != nil {
		if !was {
			_, _ = f.File.WriteAt(p[:len(p)/2], off)
		}
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *gateFile) Sync() error {
	if err := f.g.change(); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *gateFile) Allocate(size int64) error {
	if err := f.g.change(); err != nil {
		return err
	}
	return f.File.Allocate(size)
}

// dataProcess is what the DNS process has of the records.
type dataProcess struct {
	gate  *gate
	store *store.Store
	stop  chan struct{}
	done  chan struct{}
}

// controlProcess is what the HTTP process has of them.
type controlProcess struct {
	gate   *gate
	tail   *tail
	live   *journal.Live
	req    *requests
	native *antientropy.Native
	stop   func()
	posts  sync.WaitGroup
}

// fate is what clients know of a value. Each is published once, so that they know enough.
type fate uint8

const (
	unsure fate = iota // not acknowledged, and perhaps there
	there              // acknowledged
	gone               // its delete was acknowledged
)

type forgetValue struct {
	name, rdata []byte
	hash        [32]byte
	fate        fate
	at          *forgetNode // which acknowledged it last
	deletes     int         // that are under way or were lost
	owner       *forgetNode // who changed it first: nobody else does, so that the order of the changes is that of their stamps
}

// sent is an entry of a node's log that originated there.
type sent struct {
	lsn     uint64
	row     record.Row
	refresh bool
}

type forgetNode struct {
	c       *forgetCluster
	i       int
	id      string
	origin  [8]byte
	peers   []antientropy.Peer
	offset  atomic.Int64
	sizes   [2]int64 // of segments, and from where on snapshots are made
	fs      *vfstest.Sim
	data    *dataProcess    // nil: it is down
	control *controlProcess // nil: it is down
	power   atomic.Bool     // the death of a process is a power cut

	mu      sync.Mutex
	history map[[16]byte][]sent // of its logs by epoch
	heard   map[[16]byte]uint64 // up to where
}

type forgetCluster struct {
	t     *testing.T
	seed  uint64
	rng   *rand.Rand
	net   *simnet.Network
	nodes []*forgetNode

	mu     sync.Mutex
	values []*forgetValue
	acked  int
	claims int // entries that cursors covered and that were looked for
}

func (n *forgetNode) nowMs() int64 { return time.Now().UnixMilli() + n.offset.Load() }

// Peers is antientropy.Peers.
func (n *forgetNode) Peers() ([]antientropy.Peer, <-chan struct{}) { return n.peers, nil }

func (n *forgetNode) newGate() *gate {
	g := &gate{FS: n.fs}
	g.died = func() {
		if n.power.Load() {
			for _, o := range []*gate{n.dataGate(), n.controlGate()} {
				if o != nil {
					o.dead.Store(true)
				}
			}
		}
	}
	return g
}

func (n *forgetNode) dataGate() *gate {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.data == nil {
		return nil
	}
	return n.data.gate
}

func (n *forgetNode) controlGate() *gate {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.control == nil {
		return nil
	}
	return n.control.gate
}

// hear keeps what originated here, from the log itself, before clients hear of it.
func (n *forgetNode) hear(fs vfs.FS, upto uint64) {
	r, err := journal.OpenReader(fs, "data", "rows", 0)
	if err != nil {
		return
	}
	defer r.Close()
	n.mu.Lock()
	defer n.mu.Unlock()
	epoch := r.Epoch()
	for {
		lsn, payload, ok, err := r.Next()
		if err != nil || !ok || lsn > upto {
			return
		}
		if lsn <= n.heard[epoch] {
			continue
		}
		n.heard[epoch] = lsn
		_ = record.ReadFrame(payload, func(_ int64, e *record.Entry) error {
			if e.Kind <= record.KindTombstone && e.Row.Origin == n.origin {
				row := e.Row
				row.Name, row.RDATA = append([]byte(nil), row.Name...), nil
				n.history[epoch] = append(n.history[epoch], sent{lsn, row, e.Kind == record.KindRefresh})
			}
			return nil
		})
	}
}

func (n *forgetNode) startData() {
	p := &dataProcess{gate: n.newGate(), stop: make(chan struct{}), done: make(chan struct{})}
	s, err := store.Open(store.Options{FS: p.gate, Dir: "data", Zone: wire.MustName("mesh.test"), Origin: n.origin, SegmentMax: n.sizes[0], MergeMin: n.sizes[1],
		TombstoneLifeMs: forgetLifeMs, NowMs: n.nowMs, Limits: store.Limits{ValuesMax: 64}})
	if err != nil {
		n.c.t.Errorf("seed %d: %s does not start: %v", n.c.seed, n.id, err)
		return
	}
	p.store = s
	fs := n.fs
	_, committed := s.Journal()
	n.hear(fs, committed)
	s.Notify(func(lsn uint64) { n.hear(fs, lsn) })
	n.keeps(s)
	n.claims()
	n.mu.Lock()
	n.data = p
	n.mu.Unlock()
	go func() {
		defer close(p.done)
		q := s.Requests(p.gate, "control")
		defer q.Close()
		for {
			_, _ = q.Take() // an error is one of a moment: what is damaged is left behind by the next control plane
			select {
			case <-p.stop:
				return
			case <-time.After(forgetTakeWait):
			}
		}
	}()
}

func (n *forgetNode) stopData() {
	p := n.data
	if p == nil {
		return
	}
	p.gate.kill()
	close(p.stop)
	p.store.Close()
	<-p.done
	n.mu.Lock()
	n.data = nil
	n.mu.Unlock()
}

func (n *forgetNode) dataState() dataState {
	if g := n.dataGate(); g == nil || g.dead.Load() {
		return dataGone
	}
	return dataServing
}

func (n *forgetNode) startControl() {
	p := &controlProcess{gate: n.newGate()}
	var err error
	if p.live, err = journal.CreateLive(p.gate, "control/live", "sim"); err != nil {
		n.c.t.Errorf("seed %d: %v", n.c.seed, err)
		return
	}
	p.tail = newTail(p.gate, "data", nil)
	if p.req, err = openRequests(p.gate, "control", "data", p.tail, p.live, nil); err != nil {
		n.c.t.Errorf("seed %d: %s does not start: %v", n.c.seed, n.id, err)
		p.tail.close()
		return
	}
	p.req.state = n.dataState
	p.native, err = antientropy.NewNative(antientropy.NativeOptions{NodeID: n.id, Origin: n.origin, Token: "the token", MaxTTLSec: forgetTTLSec,
		Records: &antientropy.DiskRecords{FS: p.gate, Dir: "data", Value: p.tail.State, Notify: p.tail.notify}, Merger: p.req, Peers: n,
		Cursors:   antientropy.FileCursors{FS: p.gate, Path: "control/sync-native.json"},
		Transport: func(o antientropy.Peer) http.RoundTripper { return n.c.net.Transport(n.id, o.ID) }, NowMs: n.nowMs})
	if err != nil {
		n.c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(n.c.t.Context())
	done := make(chan struct{})
	go func() { p.native.Run(ctx); close(done) }()
	n.c.net.Attach(n.id, p.native.Handler())
	p.stop = func() {
		n.c.net.Detach(n.id)
		cancel()
		<-done
		p.posts.Wait()
		p.tail.close()
		_ = p.req.close()
	}
	n.mu.Lock()
	n.control = p
	n.mu.Unlock()
}

func (n *forgetNode) stopControl() {
	p := n.control
	if p == nil {
		return
	}
	p.gate.kill()
	p.stop()
	n.mu.Lock()
	n.control = nil
	n.mu.Unlock()
}

// bury takes away what is dead, and after a power cut what was not synced.
func (n *forgetNode) bury() {
	if n.data != nil && n.data.gate.dead.Load() {
		n.stopData()
	}
	if n.control != nil && n.control.gate.dead.Load() {
		n.stopControl()
	}
	if n.power.Load() && n.data == nil && n.control == nil {
		n.power.Store(false)
		n.fs = n.fs.Crash()
	}
}

func (n *forgetNode) cutPower() {
	n.power.Store(true)
	n.stopData()
	n.stopControl()
	n.bury()
}

// stored reads all that a node's files hold.
func (n *forgetNode) stored() (all map[record.ID]record.Row, epoch [16]byte, ok bool) {
	d := &antientropy.DiskRecords{FS: n.fs, Dir: "data"}
	all = map[record.ID]record.Row{}
	f, err := d.Open()
	if err != nil {
		return nil, epoch, false
	}
	defer f.Close()
	for more := true; more; {
		if _, more, err = f.Next(func(e *record.Entry) {
			if e.Kind <= record.KindTombstone {
				all[e.Row.ID()] = record.Merge(all[e.Row.ID()], record.Row{Add: e.Row.Add, Del: e.Row.Del, ExpMs: e.Row.ExpMs})
			}
		}); err != nil {
			n.c.t.Errorf("seed %d: %s: %v", n.c.seed, n.id, err)
			return nil, epoch, false
		}
	}
	return all, f.Epoch(), true
}

// claims: what the saved cursors cover is here (cluster.md 17.6).
func (n *forgetNode) claims() {
	cursors, err := antientropy.FileCursors{FS: n.fs, Path: "control/sync-native.json"}.Load()
	if err != nil {
		n.c.t.Errorf("seed %d: %s: %v", n.c.seed, n.id, err)
	}
	all, own, ok := n.stored()
	if !ok {
		return
	}
	nowMs := n.nowMs()
	for _, peer := range n.c.nodes {
		cursor := cursors[peer.id]
		epoch, err := hex.DecodeString(cursor.Epoch)
		if cursor.Own != hex.EncodeToString(own[:]) || err != nil || len(epoch) != 16 {
			continue
		}
		peer.mu.Lock()
		for _, s := range peer.history[[16]byte(epoch)] {
			if s.lsn > cursor.LSN {
				break
			}
			n.c.mu.Lock()
			n.c.claims++
			n.c.mu.Unlock()
			have := all[s.row.ID()]
			if s.refresh && have.Add > 0 {
				continue // its value is or was here: how long it lives, the comparison of the sets settles
			}
			if have.Del < s.row.Del || s.row.Add > s.row.Del && s.row.ExpMs > nowMs+20_000 && max(have.Add, have.Del) < s.row.Add {
				n.c.t.Errorf("seed %d: %s has taken %s up to %d, it says, and lacks %x of %d: has add %d del %d, want %d and %d", n.c.seed, n.id, peer.id, cursor.LSN, s.row.ID(), s.lsn, have.Add, have.Del, s.row.Add, s.row.Del)
			}
		}
		peer.mu.Unlock()
	}
}

// holds asks as a query does.
func holds(s *store.Store, v *forgetValue, nowMs int64) (found bool) {
	r := s.NewReader()
	r.Enter()
	defer r.Leave()
	set, _ := s.View().Lookup(v.name)
	set.Each(func(x store.Value) bool {
		found = string(x.RDATA) == string(v.rdata) && x.ExpMs > nowMs
		return !found
	})
	return found
}

// keeps: what this node acknowledged last it has after a restart, before anybody could give it back.
func (n *forgetNode) keeps(s *store.Store) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	for _, v := range n.c.values {
		if v.at != n || v.fate == unsure || v.deletes > 0 && v.fate == there {
			continue
		}
		if got := holds(s, v, n.nowMs()); got != (v.fate == there) {
			n.c.t.Errorf("seed %d: %s has %s after a restart: %v, acknowledged the other", n.c.seed, n.id, v.rdata, got)
		}
	}
}

func (n *forgetNode) submit(op record.Op, done func(store.Result)) {
	op.MayDelete = true
	if n.data != nil {
		n.data.store.Submit(&store.Batch{Ops: []record.Op{op}, Done: done})
	}
}

// publish a value that there was not yet, by UPDATE or by post.
func (n *forgetNode) publish(ttlSec uint32) {
	c := n.c
	v := &forgetValue{name: wire.MustName(fmt.Sprintf("n%d.mesh.test", c.rng.IntN(forgetNames))),
		rdata: record.AppendRDATA(nil, fmt.Appendf(nil, "%d %0*d", len(c.values), c.rng.IntN(200), 0))}
	v.hash = record.HashOf(v.rdata)
	lasting := ttlSec > 600
	acked := func(code record.Code) {
		if code != record.CodeStored || !lasting {
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		v.at, v.fate = n, there
		c.acked++
	}
	c.mu.Lock()
	if lasting {
		c.values = append(c.values, v)
	}
	c.mu.Unlock()
	op := record.Op{Kind: record.OpAdd, Name: v.name, RDATA: v.rdata, TTLSec: ttlSec, MayDelete: true}
	if p := n.control; p != nil && c.rng.IntN(4) == 0 {
		p.posts.Go(func() {
			if o, err := p.req.do(c.t.Context(), &record.Request{Source: record.SourceHTTP, Ops: []record.Op{op}}); err == nil {
				acked(o.Code)
			}
		})
		return
	}
	n.submit(op, func(r store.Result) { acked(r.Code) })
}

// change deletes a value, or publishes one again, for longer.
func (n *forgetNode) change(remove bool) {
	c := n.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.values) == 0 || n.data == nil {
		return
	}
	v := c.values[c.rng.IntN(len(c.values))]
	if v.owner != nil && v.owner != n || v.owner == nil && (v.fate != there || !holds(n.data.store, v, n.nowMs())) {
		return
	}
	if !remove {
		if v.deletes > 0 {
			return
		}
		v.owner = n
		v.fate = unsure
		n.submit(record.Op{Kind: record.OpAdd, Name: v.name, RDATA: v.rdata, TTLSec: 1200 + uint32(c.rng.IntN(1200))}, func(r store.Result) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if r.Code.OK() && v.deletes == 0 {
				v.at, v.fate = n, there
				c.acked++
			}
		})
		return
	}
	if v.deletes > 0 || v.fate != there {
		return
	}
	v.owner = n
	v.deletes++
	n.submit(record.Op{Kind: record.OpDelete, Name: v.name, RDATA: v.rdata}, func(r store.Result) {
		c.mu.Lock()
		defer c.mu.Unlock()
		switch {
		case !r.Code.OK():
		case r.Applied == 0: // it is not known here; nothing happened
			v.deletes--
		default:
			v.deletes--
			v.at, v.fate = n, gone
			c.acked++
		}
	})
}

// step is one thing that happens at one node.
func (c *forgetCluster) step() {
	time.Sleep(time.Duration(c.rng.Int64N(int64(250 * time.Millisecond))))
	for _, n := range c.nodes {
		n.bury()
		if n.data == nil && c.rng.IntN(6) == 0 {
			n.startData()
		}
		if n.control == nil && c.rng.IntN(6) == 0 {
			n.startControl()
		}
	}
	n := c.nodes[c.rng.IntN(len(c.nodes))]
	switch d := c.rng.IntN(100); {
	case d < 45:
		n.publish(1200 + uint32(c.rng.IntN(1200)))
	case d < 50:
		n.publish(1 + uint32(c.rng.IntN(60)))
	case d < 68:
		n.change(true)
	case d < 78:
		n.change(false)
	case d < 81:
		n.stopData()
	case d < 84:
		n.stopControl()
	case d < 86:
		n.cutPower()
	case d < 92: // soon, at some change of a file
		n.power.Store(c.rng.IntN(2) == 0)
		if g := n.dataGate(); g != nil && c.rng.IntN(2) == 0 {
			g.left.Store(1 + c.rng.Int64N(30))
		} else if g := n.controlGate(); g != nil {
			g.left.Store(1 + c.rng.Int64N(30))
		}
	case d < 95:
		side := map[string]int{}
		for _, n := range c.nodes {
			side[n.id] = c.rng.IntN(2)
		}
		c.net.Partition(side)
	case d < 98:
		c.net.Partition(map[string]int{})
	default:
		n.offset.Store(c.rng.Int64N(10_000) - 5_000)
	}
}

func (c *forgetCluster) converged() (roots []string, ok bool) {
	ok = true
	for _, n := range c.nodes {
		s := n.control.native.Status()
		roots = append(roots, fmt.Sprintf("%s of %d at %d", s.Root, s.Elements, s.CutMs))
		ok = ok && s.Ready && roots[0] == roots[len(roots)-1]
		for _, p := range s.Peers {
			ok = ok && p.Converged
		}
	}
	return roots, ok
}

// heal ends all failures, waits until the nodes say that they hold the same, and looks whether that is what was acknowledged.
func (c *forgetCluster) heal() {
	c.net.Partition(map[string]int{})
	c.net.Lossy(false)
	for _, n := range c.nodes {
		n.bury()
		for _, g := range []*gate{n.dataGate(), n.controlGate()} {
			if g != nil {
				g.left.Store(0)
			}
		}
		n.power.Store(false)
		n.bury()
		n.offset.Store(c.rng.Int64N(2000) - 1000)
		if n.data == nil {
			n.startData()
		}
		if n.control == nil {
			n.startControl()
		}
		if c.t.Failed() {
			return
		}
	}
	began := time.Now()
	for {
		roots, ok := c.converged()
		if ok {
			break
		}
		if time.Since(began) > 10*time.Minute {
			c.t.Errorf("seed %d: no convergence: %v", c.seed, roots)
			for _, n := range c.nodes {
				c.t.Logf("%s: %+v", n.id, n.control.native.Status())
			}
			return
		}
		time.Sleep(time.Second)
	}
	c.mu.Lock()
	for _, v := range c.values {
		count := 0
		for _, n := range c.nodes {
			if holds(n.data.store, v, n.nowMs()) {
				count++
			}
		}
		switch {
		case count != 0 && count != len(c.nodes):
			c.t.Errorf("seed %d: %s is at %d of %d nodes", c.seed, v.rdata, count, len(c.nodes))
		case v.fate == there && v.deletes == 0 && count == 0:
			c.t.Errorf("seed %d: %s was acknowledged and is lost", c.seed, v.rdata)
		case v.fate == gone && count > 0:
			c.t.Errorf("seed %d: %s was deleted and is back", c.seed, v.rdata)
		}
	}
	c.mu.Unlock()
	time.Sleep(2 * time.Second) // the cursors are written each second
	for _, n := range c.nodes {
		n.cutPower()
		n.startData()
	}
}

func forget(t *testing.T, seed uint64) (acked, claims int) {
	synctest.Test(t, func(t *testing.T) {
		c := &forgetCluster{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 21))}
		c.net = simnet.New(rand.New(rand.NewPCG(seed, 22)), 30*time.Millisecond)
		c.net.Lossy(c.rng.IntN(2) == 0)
		k := []int{3, 3, 2, 4}[seed%4]
		for i := range k {
			n := &forgetNode{c: c, i: i, id: fmt.Sprintf("node-%d", i), origin: [8]byte{byte(i + 1)}, fs: vfstest.New(seed*8 + uint64(i)), history: map[[16]byte][]sent{}, heard: map[[16]byte]uint64{}}
			n.fs.MapRoom = 512 << 10
			n.sizes = [2]int64{16 << 10, 4 << 10 << c.rng.IntN(3)}
			for j := range k {
				if j != i {
					id := fmt.Sprintf("node-%d", j)
					n.peers = append(n.peers, antientropy.Peer{ID: id, URL: "https://" + id})
				}
			}
			c.nodes = append(c.nodes, n)
		}
		for _, n := range c.nodes {
			n.startData()
			n.startControl()
		}
		for range 60 + c.rng.IntN(60) {
			if t.Failed() {
				break
			}
			c.step()
		}
		if !t.Failed() {
			c.heal()
		}
		for _, n := range c.nodes {
			n.stopData()
			n.stopControl()
		}
		acked, claims = c.acked, c.claims
	})
	return acked, claims
}

// TestForgetting: processes that are killed and machines that lose power at any change of a file, partitions, lost requests, under
// publishes and deletes: then all nodes hold the same, nothing that was acknowledged is missing, nothing that was deleted is back, and no
// cursor says more than there is. DMP_SEEDS says how many (20).
func TestForgetting(t *testing.T) {
	seeds, first := uint64(20), uint64(0)
	if testing.Short() {
		seeds = 5
	}
	if s := os.Getenv("DMP_SEEDS"); s != "" {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			t.Fatal("DMP_SEEDS:", err)
		}
		seeds = n
	}
	if s := os.Getenv("DMP_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			t.Fatal("DMP_SEED:", err)
		}
		first, seeds = n, 1
	}
	var next, acked, claims atomic.Int64
	var all sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			for !t.Failed() {
				seed := uint64(next.Add(1) - 1)
				if seed >= seeds {
					return
				}
				a, c := forget(t, first+seed)
				acked.Add(int64(a))
				claims.Add(int64(c))
			}
		})
	}
	all.Wait()
	t.Logf("%d seeds: %d acknowledged changes, %d entries covered by cursors", seeds, acked.Load(), claims.Load())
	if n := int64(seeds); !t.Failed() && seeds > 1 && (acked.Load() < 10*n || claims.Load() < n) {
		t.Error("too little was done: the test shows little")
	}
}
