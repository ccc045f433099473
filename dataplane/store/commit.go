package store

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/killpoint"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/snapshot"
)

// The committer. One goroutine owns everything below but the channels, the tree's read side and the gauges. For a group:
//
//	decide   each message in order over the staged view (stage.go); nothing that others see changes
//	append   one frame: rows, outcomes, positions, serial
//	sync     once; on failure the staged view is thrown away, and the group was never there
//	publish  to the index, which cannot fail (arena.ensure came before append)
//	answer   Done of each message
//
// Groups form by themselves: what came in while the last one was synced is the next one. Lost design: a lock around the
// index and a sync by each writer, which makes as many syncs as messages.
//
// A request from the control plane differs in one point: it has its position in a log and an outcome in ours. If a group
// fails, its requests wait, in order, and are decided again; until an outcome is durable a VOID can still take one back.

const (
	// queueMax bounds the hand-overs that wait for the committer, mostly of one message: some 50 ms of work behind a slow
	// disk, 64 KiB each at most.
	queueMax    = 4096
	requestsMax = 256

	// A group is closed at so many messages or bytes of values, so that its frame stays well under journal.FrameMax and
	// the first of it does not wait for ever.
	groupMessages = 1024
	groupBytes    = 4 << 20

	// expireStep names are cleared between two groups, about a millisecond's work.
	expireStep = 1024

	// feedAheadMs is how far feed stamps may run ahead of the wall clock (cluster.md 17.3), and serialAhead the same for
	// the serial, in seconds: a burst of that many groups may step it each time.
	feedAheadMs = 30_000
	serialAhead = 30

	tickEvery = time.Second
)

// ErrClosed says that the store takes nothing any more.
var ErrClosed = errors.New("store: closed")

// Store is the records of a node.
type Store struct {
	o    Options
	tree *tree
	log  *journal.Writer

	updates  chan *Batch
	requests chan *Batch
	calls    chan func()
	quit     chan struct{}
	done     chan struct{}

	closing sync.RWMutex // Submit holds it for reading while it puts something into updates
	closed  bool

	limits atomic.Pointer[Limits]
	notify atomic.Pointer[func(uint64)]
	serial atomic.Uint32

	posMu   sync.Mutex
	stated  Position // as the setters said: epochs, State
	durable Position
	start   Position

	// the committer's own
	stage         stage
	tombs         tombs
	quota         quota
	hlc           record.HLC
	feedMs        int64
	serialStepMs  int64
	serialDue     bool // rows changed without a step
	requestsTaken uint64
	pending       []*Batch // requests that are not durable yet, in order
	held          bool     // a write failed: requests wait for the next tick
	space         space
	originNumber  uint8
	cutMs         int64
	cutHLC        record.HLC // 0: nothing is left to clear of the last cut
	lastFrameMs   int64
	group         []*Batch
	results       []Result
	entries       []record.Entry
	frame         []byte
	snap          *snapshot.Snapshot
	merging       bool
	mergeAfterMs  int64 // no merge before, after one failed
	stopMerge     atomic.Bool
	mergeDone     sync.WaitGroup

	gauges struct {
		groups, messages, failSyncs, syncNs, syncMaxNs, expired, snapshots atomic.Int64
		tombstones, arena, logBytes, snapBytes, feedMs                     atomic.Int64
		readOnly                                                           atomic.Bool
	}
}

// space is what the disk has room for.
type space uint8

const (
	spaceOK   space = iota
	spaceLow        // messages are refused; outcomes of requests and cuts may still be written
	spaceNone       // nothing is written
)

// View is the records as queries see them; it stays valid and current until Close.
func (s *Store) View() View { return View{s} }

// View reads the records. It has nothing that writes.
type View struct{ s *Store }

// Lookup finds the RRset at name: wire form, lower case, which may lie in a packet. ok says that values are stored; some
// or all may have expired (RRset.Live). Call it between Enter and Leave. No lock, no allocation (TestLookupAllocs).
func (v View) Lookup(name []byte) (set RRset, ok bool) {
	set = v.s.tree.lookup(name)
	return set, set.Count() > 0
}

// HasBelow says whether the name exists because a name below it does (an empty non-terminal, RFC 8020). The count of names
// below is exact but for those that expired since the last cut, some 10 s at most; if the longest life below is over, it
// says no at once.
func (v View) HasBelow(name []byte, nowMs int64) bool {
	set := v.s.tree.lookup(name)
	if set.p == nil {
		return false
	}
	n, expMs := set.below()
	return n > 0 && expMs > nowMs
}

// Serial is the zone's serial.
func (v View) Serial() uint32 { return v.s.serial.Load() }

// Serial is the zone's serial.
func (s *Store) Serial() uint32 { return s.serial.Load() }

// NewReader registers an event loop.
func (s *Store) NewReader() *Reader {
	r := &Reader{current: &s.tree.limbo.current}
	for {
		old := s.tree.limbo.readers.Load()
		next := append(slices.Clone(*old), r)
		if s.tree.limbo.readers.CompareAndSwap(old, &next) {
			return r
		}
	}
}

// Submit hands batches to the committer, to be decided in that order in one group; false if the queue is full or the store
// closed (answer SERVFAIL at once), and then it has taken none.
func (s *Store) Submit(bs ...*Batch) bool {
	for i := 1; i < len(bs); i++ {
		bs[i-1].next = bs[i]
	}
	s.closing.RLock()
	defer s.closing.RUnlock()
	if s.closed {
		return false
	}
	select {
	case s.updates <- bs[0]:
		return true
	default:
		return false
	}
}

// SubmitRequest hands over the request at that position of the requests log, in order of position; it waits while the
// queue is full and fails only when the store is closed. done may be nil; a request without outcome at Close is left to the
// next start.
func (s *Store) SubmitRequest(lsn uint64, r *record.Request, done func(Result)) error {
	return s.submitRequest(&Batch{Ops: r.Ops, Writer: r.Writer, Done: done, request: lsn})
}

// SubmitVoid tells of a position that holds nothing to do. of == lsn: the request at lsn was voided before it was handed
// over; its outcome is CodeVoid. of != 0: the frame at lsn is a VOID of the request at of, which is taken back if its
// outcome is not durable yet. of == 0: skip.
func (s *Store) SubmitVoid(lsn, of uint64) error {
	return s.submitRequest(&Batch{request: lsn, void: true, voids: of})
}

func (s *Store) submitRequest(b *Batch) error {
	select {
	case <-s.quit:
		return ErrClosed
	default:
	}
	select {
	case s.requests <- b:
		return nil
	case <-s.quit:
		return ErrClosed
	}
}

// Recovered is the position found at start; the taker begins behind it.
func (s *Store) Recovered() Position { return s.start }

// Taken is the position in the last durable frame.
func (s *Store) Taken() Position {
	s.posMu.Lock()
	defer s.posMu.Unlock()
	return s.durable
}

// SetRequestsEpoch names the epoch of the requests log from which requests come from now on. Another one than before
// starts the position at 0.
func (s *Store) SetRequestsEpoch(epoch [16]byte) {
	s.call(func() {
		s.posMu.Lock()
		if s.stated.RequestsEpoch != epoch {
			s.requestsTaken = 0
		}
		s.stated.RequestsEpoch = epoch
		s.posMu.Unlock()
	})
}

// SetStateTaken is how far the state log has been taken; it is written with the next frame, at most 10 s later.
func (s *Store) SetStateTaken(epoch [16]byte, lsn uint64) {
	s.posMu.Lock()
	s.stated.StateEpoch, s.stated.State = epoch, lsn
	s.posMu.Unlock()
}

// SetLimits changes the limits from the next group on.
func (s *Store) SetLimits(l Limits) { s.limits.Store(&l) }

// Notify sets what is called after each group is visible, with its lsn; it must not block.
func (s *Store) Notify(f func(lsn uint64)) { s.notify.Store(&f) }

// Journal tells the epoch of the rows log and its last committed lsn.
func (s *Store) Journal() (epoch [16]byte, committed uint64) { return s.log.Epoch(), s.log.Committed() }

// Stats is a reading of the gauges.
func (s *Store) Stats() Stats {
	g := &s.gauges
	return Stats{
		Records: s.tree.values.Load(), Names: s.tree.names.Load(), Tombstones: g.tombstones.Load(),
		Bytes: s.tree.arena.live.Load(), ArenaBytes: g.arena.Load(), LogBytes: g.logBytes.Load(), SnapshotBytes: g.snapBytes.Load(),
		Groups: g.groups.Load(), Messages: g.messages.Load(), FailSyncs: g.failSyncs.Load(),
		SyncNs: g.syncNs.Load(), SyncMaxNs: g.syncMaxNs.Load(), Expired: g.expired.Load(), Snapshots: g.snapshots.Load(),
		ReadOnly: g.readOnly.Load(),
		Serial:   s.serial.Load(), LSN: s.log.Committed(), FeedMs: g.feedMs.Load(),
	}
}

// Close commits what waits, then closes. Readers must have stopped.
func (s *Store) Close() error {
	s.closing.Lock()
	if s.closed {
		s.closing.Unlock()
		return ErrClosed
	}
	s.closed = true
	s.closing.Unlock()
	s.stopMerge.Store(true)
	close(s.quit)
	<-s.done
	s.mergeDone.Wait()
	err := s.log.Close()
	if s.snap != nil {
		err = errors.Join(err, s.snap.Close())
	}
	s.tree.arena.unmap()
	return err
}

// call runs f on the committer's goroutine and waits for it; nothing if the store is closed.
func (s *Store) call(f func()) {
	ran := make(chan struct{})
	select {
	case s.calls <- func() { f(); close(ran) }:
		<-ran
	case <-s.quit:
	}
}

// Tick does what the timer does every second, for Options.Manual.
func (s *Store) Tick() { s.call(s.tick) }

func (s *Store) run() {
	defer close(s.done)
	var timer <-chan time.Time
	if !s.o.Manual {
		t := time.NewTicker(tickEvery)
		defer t.Stop()
		timer = t.C
	}
	for {
		requests := s.requests
		if s.blocked() {
			requests = nil
		}
		if s.cutHLC != 0 {
			s.clear(expireStep)
			select {
			default:
			case b := <-s.updates:
				s.take(b)
			case b := <-requests:
				s.take(b)
			case f := <-s.calls:
				f()
			case <-timer:
				s.tick()
			case <-s.quit:
				s.finish()
				return
			}
		} else {
			select {
			case b := <-s.updates:
				s.take(b)
			case b := <-requests:
				s.take(b)
			case f := <-s.calls:
				f()
			case <-timer:
				s.tick()
			case <-s.quit:
				s.finish()
				return
			}
		}
	}
}

// finish answers what had been accepted before Close.
func (s *Store) finish() {
	for {
		select {
		case b := <-s.updates:
			s.take(b)
		default:
			if s.serialDue || s.positionsDue() {
				s.commit(nil, extra{flush: true})
			}
			return
		}
	}
}

// take makes a group of this batch and what waits behind it, and commits it.
func (s *Store) take(first *Batch) {
	s.group = s.group[:0]
	size := 0
	add := func(b *Batch) {
		for ; b != nil; b = b.next {
			for i := range b.Ops {
				size += len(b.Ops[i].RDATA) + 64
				if r := b.Ops[i].Row; r != nil {
					size += len(r.RDATA)
				}
			}
			if b.request != 0 {
				s.pend(b)
			} else {
				s.group = append(s.group, b)
			}
		}
	}
	add(first)
	for more := true; more && len(s.group)+len(s.pending) < groupMessages && size < groupBytes; {
		more = false
		select {
		case b := <-s.updates:
			add(b)
			more = true
		default:
		}
		if s.blocked() {
			continue
		}
		select {
		case b := <-s.requests:
			add(b)
			more = true
		default:
		}
	}
	s.commitAll()
}

// commitAll commits the group and the requests that wait, those first: they are older.
func (s *Store) commitAll() {
	group := s.group
	if len(s.pending) > 0 && !s.blocked() {
		group = append(slices.Clone(s.pending), s.group...)
	}
	s.commit(group, extra{})
}

// pend queues a request, or takes one back that a VOID names.
func (s *Store) pend(b *Batch) {
	if b.void && b.voids != b.request {
		for _, p := range s.pending {
			if p.request == b.voids {
				p.void, p.voids = true, p.request
			}
		}
	}
	s.pending = append(s.pending, b)
}

// extra is what a frame holds beside the group's rows.
type extra struct {
	cut   bool // EXPIRE at cutMs
	cutMs int64
	flush bool // serial and positions that are due
}

// commit decides, writes, publishes and answers one group.
func (s *Store) commit(group []*Batch, x extra) bool {
	nowMs := s.o.NowMs()
	s.stage.reset(nowMs, *s.limits.Load())
	s.results = s.results[:0]
	taken := s.requestsTaken
	outcomes := false
	for _, b := range group {
		var r Result
		switch {
		case b.void:
			r = Result{Code: record.CodeVoid, Rcode: rcodeServFail}
		case s.space != spaceOK:
			r = Result{Code: record.CodeFailed, Rcode: rcodeServFail}
		case b.tooBig:
			r = Result{Code: record.CodeTooBig, Rcode: rcodeRefused}
		default:
			r = s.stage.decide(b)
		}
		s.results = append(s.results, r)
		if b.request != 0 {
			taken = max(taken, b.request)
			outcomes = outcomes || !b.void || b.voids == b.request
		}
	}
	entries, changed := s.stage.rows(s.entries[:0])
	defer func() {
		clear(entries) // rows point into batches
		s.entries = entries[:0]
	}()
	serial, step := s.serial.Load(), false
	if len(changed) > 0 || x.cut || x.flush && s.serialDue {
		serial, step = nextSerial(serial, nowMs, s.serialStepMs)
	}
	pos := s.position(taken)
	if len(entries) == 0 && !outcomes && !x.cut && !(x.flush && (step || pos != s.durable)) {
		s.requestsTaken = taken // positions without an outcome are written with the next frame
		s.answer(group)
		return true
	}
	if x.cut {
		// before the rows: what they add is not what expired
		entries = slices.Insert(entries, 0, record.Entry{Kind: record.KindExpire, CutMs: x.cutMs})
	}
	for i, b := range group {
		if b.request != 0 && (!b.void || b.voids == b.request) {
			entries = append(entries, record.Entry{Kind: record.KindOutcome, LSN: b.request, Code: s.results[i].Code, Applied: uint32(s.results[i].Applied)})
		}
	}
	if outcomes || pos != s.durable {
		entries = append(entries, record.Entry{Kind: record.KindTaken, RequestsEpoch: pos.RequestsEpoch, Requests: pos.Requests, StateEpoch: pos.StateEpoch, State: pos.State})
	}
	if step {
		entries = append(entries, record.Entry{Kind: record.KindSerial, Serial: serial, Zone: s.o.Zone})
	}
	feedMs := s.nextFeed(nowMs)
	s.frame = record.AppendFrame(s.frame[:0], feedMs, entries)
	if len(s.frame) > journal.FrameMax {
		s.quota.rollback()
		return s.halve(group, x)
	}
	if err := s.write(changed); err != nil {
		s.fail(group, err)
		return false
	}
	killpoint.Hit("rows-synced")

	// Durable: from here on nothing fails.
	s.feedMs, s.hlc, s.lastFrameMs = feedMs, s.stage.hlc, nowMs
	s.requestsTaken = taken
	s.posMu.Lock()
	s.durable = pos
	s.posMu.Unlock()
	s.bury(entries, nowMs)
	values := make([]packed, 0, 64)
	for _, c := range changed {
		values = c.packed(values[:0])
		if err := s.tree.put(c.name, values); err != nil {
			panic(err) // ensured before
		}
	}
	if x.cut {
		s.cutMs, s.cutHLC = x.cutMs, s.hlc
	}
	if step {
		s.serialStepMs, s.serialDue = nowMs, false
		s.serial.Store(serial)
	} else if len(changed) > 0 || x.cut {
		s.serialDue = true
	}
	s.tree.reclaim()
	s.gauges.groups.Add(1)
	s.gauges.feedMs.Store(feedMs)
	s.gauges.tombstones.Store(int64(len(s.tombs.m)))
	s.gauges.arena.Store(s.tree.arena.mapped())
	killpoint.Hit("rows-published")
	if f := s.notify.Load(); f != nil {
		(*f)(s.log.Committed())
	}
	s.answer(group)
	if cap(s.frame) > 1<<20 {
		s.frame = nil
	}
	return true
}

// write makes the frame durable, with the memory to publish it at hand.
func (s *Store) write(changed []*set) error {
	need := 0
	for _, c := range changed {
		rdataBytes := 0
		for i := range c.elements {
			rdataBytes += len(c.elements[i].rdata)
		}
		need += 2*blockLen(len(c.name), len(c.elements), rdataBytes) + 64
		for name := c.name; name != nil; name = parent(name) {
			need += 2 * (headLen + len(name) + 16) // an ancestor that may have to be made
		}
	}
	if err := s.tree.arena.ensure(need); err != nil {
		return err
	}
	if _, err := s.log.Append(s.frame); err != nil {
		return err
	}
	killpoint.Hit("rows-appended")
	begin := clock.Mono()
	if err := s.log.Sync(); err != nil {
		return err
	}
	ns := clock.Mono() - begin
	s.gauges.syncNs.Add(ns)
	if s.o.Synced != nil {
		s.o.Synced(ns)
	}
	s.gauges.syncMaxNs.Store(max(ns, s.gauges.syncMaxNs.Load()))
	return nil
}

// fail throws the group away. Requests stay and are decided anew at the next tick.
func (s *Store) fail(group []*Batch, err error) {
	s.quota.rollback()
	s.gauges.failSyncs.Add(1)
	s.o.Log.Error("a group of changes could not be made durable and is refused", "messages", len(group), "err", err)
	s.held = true
	s.refuse(group)
	s.look()
}

func (s *Store) refuse(group []*Batch) {
	for _, b := range group {
		if b.request == 0 && b.Done != nil {
			b.Done(Result{Code: record.CodeFailed, Rcode: rcodeServFail})
		}
	}
	s.answered()
}

// answered says that Done of a group has been called.
func (s *Store) answered() {
	if s.o.Answered != nil {
		s.o.Answered()
	}
}

// blocked says that requests must wait: nothing can be written, and so none can have an outcome.
func (s *Store) blocked() bool { return s.held || s.space == spaceNone }

// halve commits a group whose frame would be too large in two parts; a single message that is too large is refused.
func (s *Store) halve(group []*Batch, x extra) bool {
	group = slices.Clone(group)
	if len(group) == 1 {
		group[0].tooBig = true
		return s.commit(group, x)
	}
	rest := group[len(group)/2:]
	if !s.commit(group[:len(group)/2], x) {
		s.refuse(rest) // requests go in order: none of the rest may overtake one that failed
		return false
	}
	return s.commit(rest, extra{})
}

// answer calls Done and forgets the requests that are through.
func (s *Store) answer(group []*Batch) {
	s.gauges.messages.Add(int64(len(group)))
	for i, b := range group {
		if b.Done != nil {
			b.Done(s.results[i])
		}
	}
	s.answered()
	n := 0
	for n < len(s.pending) && s.pending[n].request <= s.requestsTaken {
		n++
	}
	s.pending = slices.Delete(s.pending, 0, n)
}

// bury remembers the deletes of a frame.
func (s *Store) bury(entries []record.Entry, nowMs int64) {
	for i := range entries {
		switch entries[i].Kind {
		case record.KindPut, record.KindRefresh, record.KindTombstone:
			r := &entries[i].Row
			s.remember(r, nowMs)
		}
	}
}

func (s *Store) remember(r *record.Row, nowMs int64) {
	if r.Del == 0 {
		return
	}
	d := tomb{r.Del, r.Add, r.ExpMs, s.tree.origins.number(r.Origin)}
	if s.tombs.until(d) > nowMs {
		s.tombs.put(s.tombs.key(r.Name, r.Hash), d)
	}
}

// position is what a frame says has been taken.
func (s *Store) position(requests uint64) Position {
	s.posMu.Lock()
	defer s.posMu.Unlock()
	pos := s.stated
	pos.Requests = requests
	return pos
}

func (s *Store) positionsDue() bool { return s.position(s.requestsTaken) != s.durable }

// nextFeed is the stamp of a frame: max(wall, last + 1) (cluster.md 17.3). If stamps run up to 30 s ahead of the clock,
// groups are stretched to one a millisecond at most. After a larger step back of the clock they run on without waiting:
// to refuse every write until the clock has caught up would be worse than stamps that legacy peers take late.
func (s *Store) nextFeed(wallMs int64) int64 {
	feedMs := max(wallMs, s.feedMs+1)
	if over := feedMs - wallMs - feedAheadMs; over > 0 && over < 100 && !s.o.Manual {
		time.Sleep(time.Duration(over) * time.Millisecond)
	}
	return feedMs
}

// nextSerial is max(last + 1, Unix seconds) (design.md, Serial), if the zone may step now: as long as it is less than
// serialAhead before the clock, else once a second, so that in the long run it makes one step a second at most.
func nextSerial(last uint32, nowMs, stepMs int64) (serial uint32, step bool) {
	unix := uint32(nowMs / 1000)
	if int32(unix-last) > 0 { // RFC 1982
		return unix, true
	}
	if int32(last+1-unix) <= serialAhead || nowMs-stepMs >= 1000 || nowMs < stepMs {
		return last + 1, true
	}
	return last, false
}

// tick is the work of every second.
func (s *Store) tick() {
	nowMs := s.o.NowMs()
	s.held = false
	s.look()
	s.group = s.group[:0]
	if len(s.pending) > 0 {
		s.voidsFirst()
		s.commitAll()
	}
	if s.blocked() {
		return
	}
	if cut := cutAt(nowMs); s.cutHLC == 0 && cut != s.cutMs {
		s.quota.expire(nowMs)
		if s.tree.anyDue(cut) {
			s.commit(nil, extra{cut: true, cutMs: cut})
		} else {
			s.cutMs = cut
		}
	}
	s.tombs.expire(nowMs, expireStep)
	if s.serialDue || s.positionsDue() && (nowMs-s.lastFrameMs >= bucketMs || nowMs < s.lastFrameMs) {
		s.commit(nil, extra{flush: true})
	}
	s.tree.reclaim()
	s.mergeIfDue(nowMs)
}

// voidsFirst takes what stands behind the requests that wait, since there may be a VOID of one of them.
func (s *Store) voidsFirst() {
	for len(s.pending) < 2*requestsMax {
		select {
		case b := <-s.requests:
			s.pend(b)
		default:
			return
		}
	}
}

// clear gives back the room of values that the last cut ended.
func (s *Store) clear(limit int) {
	removed, done, err := s.tree.expire(s.cutMs, s.cutHLC, limit)
	if err != nil {
		s.o.Log.Error("expired values keep their room for now", "err", err)
	}
	s.gauges.expired.Add(int64(removed))
	s.tree.reclaim()
	if done || err != nil {
		s.cutHLC = 0
	}
}

// look asks for disk space: the next snapshot is at most as large as the last one and the log since, and it must find its
// room (design.md, low-water mark).
func (s *Store) look() {
	free, err := s.o.FS.Free(s.o.Dir)
	if err != nil {
		s.o.Log.Error("free disk space is not known", "dir", s.o.Dir, "err", err)
		return
	}
	s.gauges.logBytes.Store(s.log.Size())
	next := s.gauges.snapBytes.Load() + s.log.SizeFrom(s.snapLSN()+1)
	now := spaceOK
	switch {
	case free < s.o.FreeMin/2:
		now = spaceNone
	case free < s.o.FreeMin+next:
		now = spaceLow
	}
	if (now == spaceOK) != (s.space == spaceOK) {
		if now == spaceOK {
			s.o.Log.Info("disk space is back, changes are taken again", "dir", s.o.Dir, "free", free)
		} else {
			s.o.Log.Error("disk space is low: changes are refused until there is more", "dir", s.o.Dir, "free", free, "needed", s.o.FreeMin+next)
		}
	}
	s.space = now
	s.gauges.readOnly.Store(now != spaceOK)
}

func (s *Store) snapLSN() uint64 {
	if s.snap == nil {
		return 0
	}
	return s.snap.LSN
}

// mergeIfDue makes the next snapshot beside the committer when the log has grown as long as the last one.
func (s *Store) mergeIfDue(nowMs int64) {
	if s.merging || s.stopMerge.Load() || nowMs < s.mergeAfterMs {
		return
	}
	if s.log.Committed() <= s.snapLSN() || s.log.SizeFrom(s.snapLSN()+1) < max(s.o.MergeMin, s.gauges.snapBytes.Load()) {
		return
	}
	s.merge()
}

func (s *Store) merge() {
	// What is merged lies in sealed segments then, which Drop can take away afterwards.
	if err := s.log.Seal(); err != nil {
		s.o.Log.Error("the log segment cannot be sealed for a snapshot", "err", err)
		s.mergeAfterMs = s.o.NowMs() + mergeRetryMs
		return
	}
	upto := s.log.Committed()
	s.merging = true
	prev := s.snap
	s.mergeDone.Add(1)
	go func() {
		defer s.mergeDone.Done()
		snap, err := snapshot.Merge(snapshot.MergeOptions{FS: s.o.FS, Dir: s.o.Dir, Name: logName, Prev: prev, Upto: upto,
			TombstoneLifeMs: s.o.TombstoneLifeMs, Stop: s.stopMerge.Load})
		select {
		case s.calls <- func() { s.merged(snap, err) }:
		case <-s.done:
			if snap != nil {
				snap.Close()
			}
		}
	}()
}

// mergeRetryMs is how long a merge waits after one that failed, most likely for disk space.
const mergeRetryMs = 60_000

func (s *Store) merged(snap *snapshot.Snapshot, err error) {
	s.merging = false
	if err != nil {
		s.mergeAfterMs = s.o.NowMs() + mergeRetryMs
		if !errors.Is(err, snapshot.ErrStopped) {
			s.o.Log.Error("no snapshot was made; the log grows until one is", "err", err)
		}
		return
	}
	if s.snap != nil {
		s.snap.Close()
	}
	s.snap = snap
	snap.Release()
	s.gauges.snapshots.Add(1)
	s.gauges.snapBytes.Store(snap.Size())
	if err := s.log.Drop(snap.LSN + 1); err != nil {
		s.o.Log.Error("old log segments stay", "err", err)
	}
	s.gauges.logBytes.Store(s.log.Size())
}
