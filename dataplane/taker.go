package dataplane

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dnsmesh/dmpd/dataplane/store"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/killpoint"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/snapshot"
	"github.com/dnsmesh/dmpd/internal/tsig"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

// taker follows what the control plane writes: keys go into the table, requests to the store. The control plane may be absent, dead or
// starting at any time; its files stay, and are all that counts.
type taker struct {
	dir   string // control/
	keys  *tsig.Table
	store *store.Store
	live  *journal.Live // ours
	log   *logging.Logger

	// heard is the control plane's page and the value of its bell up to which the state was taken. Every commit of the state rings
	// it, so a loop needs one load and one comparison to know that nothing is missing.
	heard atomic.Pointer[heard]

	mu       sync.Mutex // guards what is below; held while state is taken
	state    *journal.Reader
	stateAt  position // of the last frame taken
	unknown  error    // why keys cannot be judged, or nil
	hadState bool     // this node's log says that some state was taken once

	requests *store.Requests // the goroutine's alone
	taken    atomic.Int64    // requests handed to the store, for the metrics
	stop     chan struct{}
	done     chan struct{}
}

type position struct {
	epoch [16]byte
	lsn   uint64
}

type heard struct {
	live *journal.Live
	bell uint32
	ok   bool
}

// takerPoll is how long the taker sleeps when nobody rings: a control plane that starts has a new bell.
const takerPoll = 50 * time.Millisecond

func newTaker(dir string, keys *tsig.Table, s *store.Store, live *journal.Live, log *logging.Logger) *taker {
	t := &taker{dir: dir, keys: keys, store: s, live: live, log: log, stop: make(chan struct{}), done: make(chan struct{})}
	at := s.Recovered()
	t.hadState = at.State > 0
	t.requests = s.Requests(vfs.OS, dir)
	t.heard.Store(&heard{})
	return t
}

// first takes all there is before anything is served: keys, and requests with their voids.
func (t *taker) first() {
	t.listen()
	t.takeState()
	if err := t.takeRequests(); err != nil {
		t.log.Error("the control plane's requests cannot be read", "err", err)
	}
}

func (t *taker) run() {
	defer close(t.done)
	var last string
	for {
		select {
		case <-t.stop:
			return
		default:
		}
		live := t.listen()
		var bell uint32
		if live != nil {
			bell = live.Bell()
		}
		t.takeState()
		if err := t.takeRequests(); err != nil {
			if err.Error() != last {
				t.log.Error("the control plane's requests cannot be read", "err", err)
			}
			last = err.Error()
		}
		if live != nil {
			live.Wait(bell, takerPoll)
		} else {
			time.Sleep(takerPoll)
		}
	}
}

func (t *taker) close() {
	close(t.stop)
	<-t.done
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != nil {
		t.state.Close()
	}
	t.requests.Close()
}

// listen finds the control plane's page. An old one stays mapped, since loops may be looking at it: a page for each start of the control
// plane.
func (t *taker) listen() *journal.Live {
	h := t.heard.Load()
	l, err := journal.OpenLive(vfs.OS, filepath.Join(t.dir, "live"))
	if err != nil {
		return h.live
	}
	if h.live != nil && h.live.Pid() == l.Pid() && h.live.Same(l) {
		l.Close()
		return h.live
	}
	t.heard.Store(&heard{live: l, bell: l.Bell() - 1, ok: h.ok})
	return l
}

// current takes what was committed of the state since it last looked; false if the keys cannot be judged. Loops call it for every
// signed message: one load and one comparison while nothing changed.
func (t *taker) current() bool {
	h := t.heard.Load()
	if h.live != nil && h.live.Bell() == h.bell {
		return h.ok
	}
	if h.live == nil { // no control plane since this process began: nothing can have changed
		return h.ok
	}
	return t.takeState()
}

// takeState reads the state log to its end.
func (t *taker) takeState() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.heard.Load()
	next := &heard{live: h.live}
	if h.live != nil {
		next.bell = h.live.Bell() // before reading: what is committed later rings again
	}
	err := t.readState()
	if errors.Is(err, os.ErrNotExist) {
		err = nil
		if t.hadState {
			err = fmt.Errorf("dataplane: control/state is missing, although this node had keys: %w", os.ErrNotExist)
		}
	}
	if err != nil && (t.unknown == nil || t.unknown.Error() != err.Error()) {
		t.log.Error("TSIG keys cannot be judged; signed messages are answered SERVFAIL", "err", err)
	}
	t.unknown = err
	next.ok = err == nil
	t.heard.Store(next)
	return next.ok
}

func (t *taker) readState() error {
	if t.state == nil {
		if err := t.openState(); err != nil {
			return err
		}
	}
	moved := false
	for {
		lsn, payload, ok, err := t.state.Next()
		if errors.Is(err, journal.ErrEpoch) {
			continue // the reader stands at the new epoch's beginning
		}
		if errors.Is(err, journal.ErrGone) {
			t.state.Close()
			t.state = nil
			if err = t.openState(); err == nil {
				continue
			}
		}
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if err := t.apply(payload); err != nil {
			return fmt.Errorf("dataplane: state log, frame %d: %w", lsn, err)
		}
		t.stateAt = position{t.state.Epoch(), lsn}
		moved = true
	}
	if moved {
		t.hadState = true
		t.store.SetStateTaken(t.stateAt.epoch, t.stateAt.lsn)
		t.live.SetTaken(journal.TakenState, t.stateAt.epoch, t.stateAt.lsn)
		killpoint.Hit("state-taken-by-dataplane")
		t.live.Ring()
	}
	return nil
}

// openState starts from the newest state snapshot. Keys that it does not have are forgotten.
func (t *taker) openState() error {
	for range 10 {
		lsn, epoch, entries, ok, err := snapshot.ReadState(vfs.OS, t.dir, "state")
		if errors.Is(err, os.ErrNotExist) && ok {
			continue // replaced while it was read
		}
		if err != nil {
			return err
		}
		r, err := journal.OpenReader(vfs.OS, t.dir, "state", lsn+1)
		if errors.Is(err, journal.ErrGone) {
			continue // a newer snapshot
		}
		if err != nil {
			return err
		}
		kept := map[string]bool{}
		if err := tsig.ReadState(entries, func(kind tsig.StateKind, body []byte) error {
			if kind == tsig.StateKeyPut {
				k, err := tsig.ReadKey(body)
				if err != nil {
					return err
				}
				kept[string(k.Name)] = true
			}
			return nil
		}); err != nil {
			r.Close()
			return err
		}
		var gone [][]byte
		t.keys.Each(func(k *tsig.Key) bool {
			if !kept[string(k.Name)] {
				gone = append(gone, k.Name)
			}
			return true
		})
		for _, name := range gone {
			t.keys.Delete(name)
		}
		if err := t.apply(entries); err != nil {
			r.Close()
			return err
		}
		t.state = r
		if ok {
			t.hadState = true
			t.stateAt = position{epoch, lsn}
			t.store.SetStateTaken(epoch, lsn)
			t.live.SetTaken(journal.TakenState, r.Epoch(), lsn)
			t.live.Ring()
		}
		return nil
	}
	return journal.ErrGone
}

func (t *taker) apply(entries []byte) error {
	return tsig.ReadState(entries, func(kind tsig.StateKind, body []byte) error {
		switch kind {
		case tsig.StateKeyPut:
			k, err := tsig.ReadKey(body)
			if err != nil {
				return err
			}
			t.keys.Store(k)
		case tsig.StateKeyDelete:
			t.keys.Delete(body)
		}
		return nil
	})
}

// takeRequests hands what is new in the requests log to the store.
func (t *taker) takeRequests() error {
	_, before := t.requests.Position()
	taken, err := t.requests.Take()
	t.taken.Add(int64(taken))
	if epoch, lsn := t.requests.Position(); lsn != before {
		t.live.SetTaken(journal.TakenRequests, epoch, lsn)
	}
	return err
}
