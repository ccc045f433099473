package controlplane

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/snapshot"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

// tail is the control plane's read-only view of the records: the data plane's newest snapshot, and an index of what its log says
// since. One goroutine follows the log; everybody else asks under a lock.
//
// What is behind the snapshot is held in memory. That is bounded by the log that no snapshot covers, which the data plane keeps as
// short as the last snapshot (and 16 MiB at first).
type tail struct {
	fs  vfs.FS
	dir string
	log *logging.Logger

	mu       sync.RWMutex
	snap     *snapshot.Snapshot          // nil before the first one
	rows     map[string]tailSet          // by name, what is behind the snapshot
	feed     []*tailRow                  // the same rows in feed order, which is that of the log, with some that a later state replaced
	dead     int                         // of those
	cluster  bool                        // a cluster manifest was read since somebody was told
	epoch    [16]byte                    // of the log
	opened   bool                        // epoch counts
	outcomes map[uint64]snapshot.Outcome // since the snapshot, of the present epoch of requests
	taken    record.Entry                // the last Taken entry
	lsn      uint64
	feedMs   int64
	changed  chan struct{} // closed and made anew after each reading
	asked    atomic.Bool   // somebody has got that channel
	behind   bool          // the first reading is not finished
	problem  error

	onCluster atomic.Pointer[func()] // called when a cluster manifest was stored; must not block

	reader   *journal.Reader
	live     *journal.Live
	listened time.Time // when the bell was last looked for
	checked  time.Time // when a newer snapshot was

	stop, done chan struct{}
}

type tailRow struct {
	row  record.Row
	lsn  uint64
	dead bool // replaced by a later state of the element
}

// tailSet are the rows at a name, by the hash of their values: mostly there is one.
type tailSet struct {
	one  *tailRow // nil if there is none at all
	more map[[32]byte]*tailRow
}

// of gives the row of a value, nil if there is none.
func (s *tailSet) of(hash [32]byte) *tailRow {
	if s.one != nil && s.one.row.Hash == hash {
		return s.one
	}
	return s.more[hash]
}

// put has r in place of the row that its value had before.
func (s *tailSet) put(r *tailRow) {
	switch {
	case s.one == nil || s.one.row.Hash == r.row.Hash:
		s.one = r
	case s.more == nil:
		s.more = map[[32]byte]*tailRow{r.row.Hash: r}
	default:
		s.more[r.row.Hash] = r
	}
}

// remove forgets the row of a value.
func (s *tailSet) remove(hash [32]byte) {
	if s.one == nil || s.one.row.Hash != hash {
		delete(s.more, hash)
		return
	}
	s.one = nil
	for other, r := range s.more { // any of them
		s.one = r
		delete(s.more, other)
		break
	}
}

// all goes through the rows, in no order.
func (s *tailSet) all() iter.Seq[*tailRow] {
	return func(yield func(*tailRow) bool) {
		if s.one == nil || !yield(s.one) {
			return
		}
		for _, r := range s.more {
			if !yield(r) {
				return
			}
		}
	}
}

const (
	// tailPoll is how long the follower sleeps when nobody rings; a data plane that starts has a new bell.
	tailPoll = 50 * time.Millisecond
	// tailPause is the least from the beginning of one reading to that of the next while somebody waits for what comes, tailUnasked
	// while nobody does: under load a reading finds the groups of many commits, and costs little more than that of one.
	tailPause   = time.Millisecond
	tailUnasked = 5 * time.Millisecond
	// snapshotPoll is how often it looks for a newer snapshot, which frees the memory of what that covers.
	snapshotPoll = 2 * time.Second
)

func newTail(fs vfs.FS, dir string, log *logging.Logger) *tail {
	t := &tail{fs: fs, dir: dir, log: log, rows: map[string]tailSet{}, outcomes: map[uint64]snapshot.Outcome{}, changed: make(chan struct{}), behind: true,
		stop: make(chan struct{}), done: make(chan struct{})}
	go t.follow()
	return t
}

func (t *tail) close() {
	close(t.stop)
	<-t.done
}

func (t *tail) follow() {
	defer close(t.done)
	defer func() {
		if t.reader != nil {
			t.reader.Close()
		}
		if t.live != nil {
			t.live.Close()
		}
		t.mu.Lock()
		if t.snap != nil {
			t.snap.Close()
		}
		t.snap = nil
		t.mu.Unlock()
	}()
	var last error
	for {
		select {
		case <-t.stop:
			return
		default:
		}
		began := time.Now()
		if began.Sub(t.listened) >= tailPoll {
			t.listened = began
			t.listen()
		}
		live, bell := t.live, uint32(0)
		if live != nil {
			bell = live.Bell()
		}
		err := t.catchUp()
		if errors.Is(err, os.ErrNotExist) {
			err = nil // the data plane has not begun
		}
		if err != nil && (last == nil || err.Error() != last.Error()) {
			t.log.Error("the records cannot be read", "err", err)
		}
		last = err
		t.mu.Lock()
		t.problem = err
		t.mu.Unlock()
		if live != nil && err == nil {
			live.Wait(bell, tailPoll)
			pause := tailUnasked
			if t.asked.Load() {
				pause = tailPause
			}
			time.Sleep(pause - time.Since(began))
		} else {
			time.Sleep(tailPoll)
		}
	}
}

// listen finds the data plane's bell; it has a new one after each start.
func (t *tail) listen() {
	l, err := journal.OpenLive(t.fs, filepath.Join(t.dir, "live"))
	if err != nil {
		return // it has not begun; the old bell, if any, is as good
	}
	if t.live != nil {
		t.live.Close()
	}
	t.live = l
}

// catchUp reads all that is committed.
func (t *tail) catchUp() error {
	if t.reader == nil {
		if err := t.open(); err != nil {
			return err
		}
	}
	for {
		lsn, payload, ok, err := t.reader.Next()
		if errors.Is(err, journal.ErrGone) || errors.Is(err, journal.ErrEpoch) {
			// Frames that a snapshot holds by now, or a log that begins anew: start over from the snapshot.
			t.reader.Close()
			t.reader = nil
			if err := t.open(); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if err := t.take(lsn, payload); err != nil {
			return fmt.Errorf("rows log, frame %d: %w", lsn, err)
		}
	}
	t.mu.Lock()
	t.behind = false
	t.asked.Store(false)
	close(t.changed)
	t.changed = make(chan struct{})
	cluster := t.cluster
	t.cluster = false
	t.mu.Unlock()
	if look := t.onCluster.Load(); cluster && look != nil {
		(*look)()
	}
	if time.Since(t.checked) > snapshotPoll {
		t.checked = time.Now()
		return t.renew()
	}
	return nil
}

// open starts from the newest snapshot.
func (t *tail) open() error {
	for range 10 {
		s, err := snapshot.Latest(t.fs, t.dir, "rows")
		if err != nil {
			return err
		}
		from := uint64(1)
		if s != nil {
			from = s.LSN + 1
		}
		r, err := journal.OpenReader(t.fs, t.dir, "rows", from)
		if errors.Is(err, journal.ErrGone) { // a newer snapshot was made meanwhile
			if s != nil {
				s.Close()
			}
			continue
		}
		if err != nil {
			if s != nil {
				s.Close()
			}
			return err
		}
		t.mu.Lock()
		old := t.snap
		t.snap, t.reader = s, r
		clear(t.rows)
		clear(t.feed)
		t.feed, t.dead = t.feed[:0], 0
		t.epoch, t.opened = r.Epoch(), true
		clear(t.outcomes)
		t.taken = record.Entry{}
		if s != nil {
			t.lsn, t.feedMs = s.LSN, s.FeedMs
			t.taken = record.Entry{RequestsEpoch: s.RequestsEpoch, Requests: s.Requests, StateEpoch: s.StateEpoch, State: s.State}
		}
		t.mu.Unlock()
		if old != nil {
			old.Close()
		}
		return nil
	}
	return journal.ErrGone
}

// renew moves on to a newer snapshot, and forgets what it covers.
func (t *tail) renew() error {
	lsns, err := snapshot.List(t.fs, t.dir, "rows")
	if err != nil || len(lsns) == 0 {
		return err
	}
	newest := lsns[len(lsns)-1]
	if t.snap != nil && newest <= t.snap.LSN || newest > t.lsn {
		return nil
	}
	s, err := snapshot.Open(t.fs, snapshot.Path(t.dir, "rows", newest))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	t.mu.Lock()
	old := t.snap
	t.snap = s
	covered := 0
	for ; covered < len(t.feed) && t.feed[covered].lsn <= s.LSN; covered++ {
		r := t.feed[covered]
		if r.dead {
			t.dead--
			continue
		}
		rows := t.rows[string(r.row.Name)]
		if rows.remove(r.row.Hash); rows.one == nil {
			delete(t.rows, string(r.row.Name))
		} else {
			t.rows[string(r.row.Name)] = rows
		}
	}
	clear(t.feed[:covered]) // for the collector
	t.feed = t.feed[covered:]
	for lsn := range t.outcomes {
		if _, ok := s.Outcome(lsn); ok {
			delete(t.outcomes, lsn)
		}
	}
	t.mu.Unlock()
	if old != nil {
		old.Close()
	}
	return nil
}

// take applies a frame.
func (t *tail) take(lsn uint64, payload []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lsn = lsn
	// A frame's outcomes are of the epoch that its Taken entry names, wherever in the frame that stands.
	fresh := map[uint64]snapshot.Outcome{}
	defer func() { maps.Copy(t.outcomes, fresh) }()
	return record.ReadFrame(payload, func(feedMs int64, e *record.Entry) error {
		t.feedMs = feedMs
		switch e.Kind {
		case record.KindPut, record.KindRefresh, record.KindTombstone:
			return t.element(lsn, e)
		case record.KindOutcome:
			fresh[e.LSN] = snapshot.Outcome{LSN: e.LSN, Code: e.Code, Applied: e.Applied}
		case record.KindTaken:
			if e.RequestsEpoch != t.taken.RequestsEpoch {
				clear(t.outcomes) // their lsns are of another epoch
			}
			t.taken = *e
		}
		return nil
	})
}

func (t *tail) element(lsn uint64, e *record.Entry) error {
	rows := t.rows[string(e.Row.Name)]
	was := rows.of(e.Row.Hash)
	r := &tailRow{row: e.Row, lsn: lsn}
	name := len(e.Row.Name)
	own := append(append(make([]byte, 0, name+len(e.Row.RDATA)), e.Row.Name...), e.Row.RDATA...)
	r.row.Name = own[:name:name]
	if e.Row.RDATA != nil {
		r.row.RDATA = own[name:]
	}
	if e.Kind == record.KindRefresh {
		if was != nil {
			r.row.RDATA = was.row.RDATA
		} else if t.snap != nil {
			err := t.snap.Name(e.Row.Name, func(o *record.Row) bool {
				if o.Hash == e.Row.Hash {
					r.row.RDATA = slices.Clone(o.RDATA)
				}
				return true
			})
			if err != nil {
				return err
			}
		}
		if r.row.RDATA == nil {
			return fmt.Errorf("%w: a refresh of a value that was never stored", record.ErrFormat)
		}
	}
	if was != nil {
		was.dead = true
		t.dead++
	}
	if e.Kind == record.KindPut && bytes.HasPrefix(r.row.Name, []byte("\x07cluster")) {
		t.cluster = true // told when all is readable
	}
	rows.put(r)
	t.rows[string(r.row.Name)] = rows
	t.feed = append(t.feed, r) // frames come in the order of their stamps
	if t.dead > feedDeadMin && t.dead > len(t.feed)/2 {
		t.compact()
	}
	return nil
}

// feedDeadMin: below so many there is no point in making room.
const feedDeadMin = 1024

// compact drops the replaced rows from the feed's order; needs mu.
func (t *tail) compact() {
	if t.dead > 0 {
		t.feed = slices.DeleteFunc(t.feed, func(r *tailRow) bool { return r.dead })
		t.dead = 0
	}
}

// get gives the live values at a name (wire form, lower case), oldest first.
func (t *tail) get(name []byte, nowMs int64) ([][]byte, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.problem != nil {
		return nil, t.problem
	}
	var live []record.Row
	rows := t.rows[string(name)]
	for r := range rows.all() {
		if r.row.RDATA != nil && r.row.Live(nowMs) {
			live = append(live, r.row)
		}
	}
	if t.snap != nil {
		err := t.snap.Name(name, func(r *record.Row) bool {
			if rows.of(r.Hash) == nil && r.RDATA != nil && r.Live(nowMs) {
				live = append(live, *r)
			}
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(live, func(a, b record.Row) int {
		switch {
		case a.Add < b.Add:
			return -1
		case a.Add > b.Add:
			return 1
		}
		return slices.Compare(a.Hash[:], b.Hash[:])
	})
	values := make([][]byte, len(live))
	for i := range live {
		values[i] = record.AppendValue(nil, live[i].RDATA)
	}
	return values, nil
}

// outcome finds what became of a request of this epoch, and gives a channel that closes when there is something new.
func (t *tail) outcome(epoch [16]byte, lsn uint64) (o snapshot.Outcome, ok bool, changed <-chan struct{}) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.taken.RequestsEpoch == epoch {
		if o, ok = t.outcomes[lsn]; !ok && t.snap != nil && t.snap.RequestsEpoch == epoch {
			o, ok = t.snap.Outcome(lsn)
		}
	}
	t.asked.Store(true)
	return o, ok, t.changed
}

// notify gives a channel that closes when more was read.
func (t *tail) notify() <-chan struct{} {
	t.mu.RLock()
	defer t.mu.RUnlock()
	t.asked.Store(true)
	return t.changed
}

// durable is how far a durable frame of the data plane says that it has taken the requests of this epoch.
func (t *tail) durable(epoch [16]byte) uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.taken.RequestsEpoch != epoch {
		return 0
	}
	return t.taken.Requests
}

// position tells where the view stands.
func (t *tail) position() (lsn uint64, feedMs int64, behind bool, problem error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.lsn, t.feedMs, t.behind, t.problem
}
