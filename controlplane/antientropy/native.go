package antientropy

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/record"
)

// Native replication, which our nodes speak with each other (cluster.md 17). Three layers, each correct alone, each cheaper than the next:
//
//	feed       what changes at a node is pushed to the others at once (native_server.go, native_client.go)
//	reconcile  sums over the sets are compared every few seconds; what differs is fetched (native_tree.go)
//	snapshot   a new node takes the rows of the last snapshot, then both of the above
//
// Everything that a layer brings is verified, joined into the store (record.Merge) and acknowledged when it is durable. What a layer loses
// the next one brings: no cursor is needed for correctness. docs/format/sync.md has the wire format.

// Sizes and times.
const (
	protocol = 1 // the number in hello; another one is another protocol

	batchBytes = 256 << 10 // a frame of rows is closed beyond this (cluster.md 17.5)
	windowMax  = 4 << 20   // bytes of rows that may be without acknowledgement: a few round trips of a gigabit
	idsMax     = 16_384    // of a fetch (cluster.md 17.5)
	listMax    = 48        // elements below a node of the tree that are told instead of its 16 children
	asksMax    = 4096      // nodes of the tree in a request
	answerMax  = 4 << 20   // bytes of an answer about nodes; the rest is left for the next request
	answerCap  = 16 << 20  // bytes of an answer that are read: answerMax and the largest leaf
	helloMax   = 4 << 10   //
	nodeIDMax  = 64        //

	markEvery    = 2 * time.Second
	silence      = 15 * time.Second // a stream without a frame for so long is dead: seven marks
	unaryTimeout = 60 * time.Second
	reprobe      = 10 * time.Minute // of a node that does not speak this (cluster.md 17.2)
	backoffMin   = time.Second
	backoffMax   = time.Minute
	freshMs      = 5_000 // a difference that is younger is most likely on its way in the feed

	callersMax    = 64 // a manifest has at most 32 nodes; as many again that left
	callerStreams = 4  // requests of one node at a time, beside its feed
	snapshotsMax  = 2  // sent at a time, to all
	snapshotMin   = 10_000
	refusedMax    = 100_000           // of one peer, remembered
	refusedForMs  = 10 * 60_000       // until they are tried again
	absentForMs   = 5_000             // until what a peer listed and did not send is
	requestsRound = 4 * treeNodes     // elements of the tree that one comparison may ask about
	listsRound    = 20_000_000        // elements that a peer may list in one comparison
	nodeLabel     = "dmpd node 1\x00" //
	nodeHeader    = "Dmpd-Node"
)

// ErrRestart says that a log begins anew or was cut below the place that is read: begin with Open.
var ErrRestart = errors.New("antientropy: the log begins anew")

// Records is the node's own state as the native side reads it.
type Records interface {
	// Open begins with the last snapshot; one at a time is open.
	Open() (Follower, error)
	// Frames reads the payloads of the log from an lsn on. ErrRestart: they are not there, or of another epoch.
	Frames(epoch [16]byte, from uint64) (FrameReader, error)
	// Row finds an element, deletes included; its bytes are the caller's. It may be as far behind as the Follower is.
	Row(id record.ID) (record.Row, bool, error)
	// Snapshot calls f for the rows of the last snapshot until it gives false; ok is false if there is none. The row is f's for the call.
	Snapshot(f func(r *record.Row) bool) (epoch [16]byte, lsn uint64, ok bool, err error)
	// Changed gives a channel that closes when there is more to read.
	Changed() <-chan struct{}
}

// Follower gives everything that is stored, then everything that changes.
type Follower interface {
	Epoch() [16]byte
	// Next calls f for some entries of the log, or rows of the snapshot as put and tombstone entries, and says up to which lsn that was;
	// more is false when there is nothing to read now. What an entry points to is f's for the call. ErrRestart: open anew.
	Next(f func(e *record.Entry)) (lsn uint64, more bool, err error)
	Close()
}

// FrameReader is what journal.Reader is.
type FrameReader interface {
	Next() (lsn uint64, payload []byte, ok bool, err error)
	Close()
}

// Merger hands states of elements over to the data plane.
type Merger interface {
	// Merge has the rows joined in and waits for the durable outcome: of the rows, those that were not refused. An error means that there
	// is no outcome, and that the same again is harmless.
	Merge(ctx context.Context, rows []record.Row) (record.Code, error)
}

// NativeCursor is how far a peer's feed has been taken (cluster.md 17.6).
type NativeCursor struct {
	URL   string
	Epoch string // of the peer's log, hexadecimal
	LSN   uint64
	Own   string // epoch of our log, which holds what the cursor covers
}

// Cursors keeps them over a restart. They are written behind what they cover, and losing them costs a comparison.
type Cursors interface {
	Load() (map[string]NativeCursor, error) // by peer id
	Save(map[string]NativeCursor) error
}

// NativeOptions say what to replicate with.
type NativeOptions struct {
	NodeID    string  // DMP_NODE_ID, or another text of 1 to 64 printable characters that no other node has
	Origin    [8]byte // of the rows that this node took (store.Origin)
	Token     string  // of the cluster
	Previous  []string
	MaxTTLSec int64 // the nodes of a cluster must agree; 0: no limit, and no native replication
	ValueMax  int   // bytes of a value; 0: as many as a row can have
	Operator  *[32]byte
	Bootstrap *[32]byte
	Clear     bool // also without TLS
	Padding   bool // frames are padded to powers of two
	Records   Records
	Merger    Merger
	Peers     Peers
	Cursors   Cursors // nil: none are kept
	// Transport makes what carries requests to a peer: HTTP/2, without redirects and proxies, with the peer's pins and the address policy.
	Transport func(Peer) http.RoundTripper
	NowMs     func() int64
	Log       *logging.Logger
}

// tombstoneSlackSec is what a delete is remembered beyond the longest life (cluster.md 17.4); the data plane's is the same.
const tombstoneSlackSec = 60

// Native is one node's half of it.
type Native struct {
	o        NativeOptions
	lifeMs   int64
	treeKey  [32]byte
	keyCheck string
	verifier record.Verifier
	enc      *zstd.Encoder
	dec      *zstd.Decoder

	mu      sync.Mutex
	tree    *tree // nil before it was read once
	epoch   [16]byte
	lsn     uint64
	heardMs int64 // the latest clock of a peer
	peers   map[string]*nativePeer
	callers map[string]*caller
	cursors map[string]NativeCursor
	dirty   bool // cursors are to be saved

	cold      chan struct{} // held by who takes a snapshot
	snapshots atomic.Int32  // being sent
	counts    nativeCounts
}

type nativeCounts struct {
	refusedAuth, bytesIn, bytesOut, framesIn, framesOut, rowsIn, rowsOut, fetched, comparisons, snapshots atomic.Int64
}

// NewNative checks the options. Run does the work; Handler serves peers.
func NewNative(o NativeOptions) (*Native, error) {
	switch {
	case o.Token == "":
		return nil, errors.New("antientropy: native replication needs a token")
	case o.MaxTTLSec <= 0:
		return nil, errors.New("antientropy: native replication needs a longest life of records, since deletes are remembered for that long: set DMP_MAX_TTL")
	case !validNodeID(o.NodeID):
		return nil, fmt.Errorf("antientropy: %q is no node id: 1 to %d printable characters", o.NodeID, nodeIDMax)
	}
	n := &Native{o: o, lifeMs: (o.MaxTTLSec + tombstoneSlackSec) * 1000, verifier: record.Verifier{Operator: o.Operator, Bootstrap: o.Bootstrap},
		peers: map[string]*nativePeer{}, callers: map[string]*caller{}, cursors: map[string]NativeCursor{}, cold: make(chan struct{}, 1)}
	key, check := treeKey(o.Token)
	n.treeKey, n.keyCheck = key, hex.EncodeToString(check[:])
	var err error
	if n.enc, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(batchBytes)); err != nil {
		return nil, fmt.Errorf("antientropy: %w", err)
	}
	if n.dec, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(bodyMax)); err != nil {
		return nil, fmt.Errorf("antientropy: %w", err)
	}
	if o.Cursors != nil {
		if c, err := o.Cursors.Load(); err != nil {
			o.Log.Warn("cursors of native replication cannot be read; the sets are compared instead", "err", err)
		} else if c != nil {
			n.cursors = c
		}
	}
	return n, nil
}

func validNodeID(id string) bool {
	if id == "" || len(id) > nodeIDMax {
		return false
	}
	for i := range len(id) {
		if id[i] <= ' ' || id[i] > '~' {
			return false
		}
	}
	return true
}

// nodeToken is what a node shows: who has the cluster's token can make it and name the node, and it is of no use elsewhere.
func nodeToken(token, nodeID string) string {
	m := hmac.New(sha256.New, []byte(token))
	m.Write([]byte(nodeLabel))
	m.Write([]byte(nodeID))
	return hex.EncodeToString(m.Sum(nil))
}

// Run follows the records and the peers until the context ends. Nothing of it is left then.
func (n *Native) Run(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { n.follow(ctx) })
	all.Go(func() { n.saveCursors(ctx) })
	for {
		list, changed := n.o.Peers.Peers()
		n.swap(ctx, &all, list)
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// swap starts loops for new peers and ends those of peers that left.
func (n *Native) swap(ctx context.Context, all *sync.WaitGroup, list []Peer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	keep := map[string]bool{}
	for _, p := range list {
		keep[p.ID] = true
		if was := n.peers[p.ID]; was != nil {
			if was.peer == p {
				continue
			}
			was.cancel()
		}
		peerCtx, cancel := context.WithCancel(ctx)
		np := &nativePeer{n: n, peer: p, transport: n.o.Transport(p), cancel: cancel, kick: make(chan struct{}, 1), poked: make(chan struct{}, 1), refused: map[record.ID]pass{}}
		n.peers[p.ID] = np
		all.Go(func() { defer cancel(); np.run(peerCtx) })
	}
	for id, p := range n.peers {
		if !keep[id] {
			p.cancel()
			delete(n.peers, id)
			delete(n.cursors, id)
			n.dirty = true
		}
	}
}

// clockMs is the moment that trees are made for: the latest clock in the cluster as far as it is heard of, so that nodes whose clocks differ a
// little compare the same moment. n.mu is held.
func (n *Native) clockMs() int64 { return max(n.o.NowMs(), n.heardMs) }

// hear takes a peer's clock; false if it is too far ahead.
func (n *Native) hear(ms int64) bool {
	if ms > n.o.NowMs()+record.HLCAheadMs {
		return false
	}
	n.mu.Lock()
	n.heardMs = max(n.heardMs, ms)
	n.mu.Unlock()
	return true
}

// rootAt gives the root for a moment, if the tree is not beyond it.
func (n *Native) rootAt(ms int64) (s sum, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.tree == nil {
		return s, false
	}
	if ms <= n.clockMs() {
		n.tree.advance(ms)
	}
	return n.tree.root(), n.tree.ms == ms
}

// follow keeps the tree.
func (n *Native) follow(ctx context.Context) {
	pause := backoffMin
	for ctx.Err() == nil {
		began := time.Now()
		err := n.followOnce(ctx)
		if err != nil && !errors.Is(err, ErrRestart) && ctx.Err() == nil {
			n.o.Log.Error("native replication cannot read the records", "err", err)
		}
		if pause = min(2*pause, backoffMax); time.Since(began) > backoffMax || errors.Is(err, ErrRestart) {
			pause = backoffMin
		}
		sleep(ctx, pause)
	}
}

func (n *Native) followOnce(ctx context.Context) error {
	f, err := n.o.Records.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	n.mu.Lock()
	t := newTree(n.treeKey, n.lifeMs, n.clockMs())
	n.mu.Unlock()
	published := false
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		changed := n.o.Records.Changed()
		for more := true; more; {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			var lsn uint64
			if published {
				n.mu.Lock()
			}
			lsn, more, err = f.Next(func(e *record.Entry) { n.apply(t, e) })
			if published {
				n.lsn = max(n.lsn, lsn)
				n.mu.Unlock()
			}
			if err != nil {
				return err
			}
			if !more && !published {
				n.mu.Lock()
				n.tree, n.epoch, n.lsn = t, f.Epoch(), lsn
				n.mu.Unlock()
				published = true
			}
		}
		n.mu.Lock()
		if wall := n.o.NowMs(); n.heardMs > wall+record.HLCAheadMs {
			n.heardMs = wall // the clock was stepped back: what was heard of before does not count
		}
		back := t.ms > n.clockMs()+record.HLCAheadMs
		t.advance(n.clockMs())
		n.mu.Unlock()
		if back {
			return ErrRestart // the tree cannot go back
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-tick.C:
		}
	}
}

// apply tells the tree what an entry says. What no node takes from another one does not count: that is decided by name and value alone, so
// that all nodes decide alike.
func (n *Native) apply(t *tree, e *record.Entry) {
	if e.Kind > record.KindTombstone {
		return
	}
	r := &e.Row
	id := r.ID()
	switch e.Kind {
	case record.KindPut:
		if !travels(r) {
			return
		}
	case record.KindRefresh:
		if s, ok := t.get(&id); !ok || s.add == 0 {
			if row, ok, err := n.o.Records.Row(id); err != nil || !ok || row.RDATA == nil || !travels(&row) {
				return
			}
		}
	}
	t.set(&id, stateOf(r))
}

// travels says whether a row with its value is of the kind that nodes give each other.
func travels(r *record.Row) bool {
	class, refusal := record.Screen(r.Name, record.AppendValue(make([]byte, 0, len(r.RDATA)), r.RDATA))
	return refusal == record.Accepted && record.OwnerFits(r.Name, class)
}

func (n *Native) saveCursors(ctx context.Context) {
	for ctx.Err() == nil {
		sleep(ctx, time.Second)
		n.mu.Lock()
		if !n.dirty || n.o.Cursors == nil {
			n.mu.Unlock()
			continue
		}
		n.dirty = false
		c := map[string]NativeCursor{}
		for id, v := range n.cursors {
			c[id] = v
		}
		n.mu.Unlock()
		if err := n.o.Cursors.Save(c); err != nil {
			n.o.Log.Warn("cursors of native replication cannot be saved", "err", err)
		}
	}
}

// sleep waits, or less if the context ends.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// NativePeerStatus is a reading of one peer.
type NativePeerStatus struct {
	ID, URL     string
	Native      bool // it speaks this; else the puller asks it
	Connected   bool // its feed is open
	Converged   bool // the roots were equal when they were last compared, and it is connected
	LagRows     int64
	LSN         uint64 // of its log, taken
	LastMarkMs  int64
	LastError   string
	Requests    int64
	Errors      int64 // sessions that ended, or did not begin
	PinFailures int64 // of those, the ones since the peer's key is not a pinned one
	Reconnects  int64 // feeds that were opened again
	RowsIn      int64
	BytesIn     int64
	BytesOut    int64   // in requests to it and in answers to its own
	Refused     int64   // rows that this node does not take from it, at present
	Rejected    Rejects // those that it did not take, counted each time
	Differences int64   // comparisons that found some
}

// NativeStatus is a reading of all of it.
type NativeStatus struct {
	Ready                                                                                       bool // the tree is made
	Elements                                                                                    int64
	Root                                                                                        string // hexadecimal
	CutMs                                                                                       int64
	Forbidden, BytesIn, BytesOut, FramesIn, FramesOut, RowsIn, RowsOut, Fetched, Compared, Cold int64
	Peers                                                                                       []NativePeerStatus
}

// Status reads it.
func (n *Native) Status() (s NativeStatus) {
	c := &n.counts
	s.Forbidden, s.BytesIn, s.BytesOut, s.RowsIn, s.RowsOut = c.refusedAuth.Load(), c.bytesIn.Load(), c.bytesOut.Load(), c.rowsIn.Load(), c.rowsOut.Load()
	s.FramesIn, s.FramesOut, s.Fetched, s.Compared, s.Cold = c.framesIn.Load(), c.framesOut.Load(), c.fetched.Load(), c.comparisons.Load(), c.snapshots.Load()
	n.mu.Lock()
	if n.tree != nil {
		root := n.tree.root()
		s.Ready, s.Elements, s.CutMs, s.Root = true, int64(root.n), n.tree.ms, hex.EncodeToString(root.append(nil))
	}
	peers := make([]*nativePeer, 0, len(n.peers))
	for _, p := range n.peers {
		peers = append(peers, p)
	}
	n.mu.Unlock()
	for _, p := range peers {
		s.Peers = append(s.Peers, p.status())
	}
	return s
}

// poke ends the wait of who waits for a node that has just spoken to us: what kept them apart is over. Of a peer that never said which node
// it is, it may be that one.
func (n *Native) poke(node string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.peers {
		if p.node == "" || p.node == node {
			select {
			case p.poked <- struct{}{}:
			default:
			}
		}
	}
}

// Speaks says whether a peer speaks this; known is false as long as it has not said. The puller leaves those alone of which it is so or may be.
func (n *Native) Speaks(peerID string) (native, known bool) {
	n.mu.Lock()
	p := n.peers[peerID]
	n.mu.Unlock()
	if p == nil {
		return false, true
	}
	return p.native.Load(), p.known.Load()
}
