// Package auth says who may write what: it owns control/state, which holds TSIG keys, bearer tokens, owners, locks, the deny list and
// policy, and the registration routes that fill it (spec http.md sections 6 to 9, dns.md sections 6 and 7).
//
// A change is one frame of the state log: appended, synced, then visible in memory, then taken by the data plane, and only then
// answered. One mutex makes one writer; readers take it shared.
package auth

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/killpoint"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/snapshot"
	"github.com/dnsmesh/dmpd/internal/tsig"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

// LogName is the name of the state log and its snapshots in control/.
const LogName = "state"

// Errors of changes. ErrOwned is the 409 of registration.
var (
	ErrMissing    = errors.New("auth: control/state is missing although this node has data; restore it from a backup, or start with --fresh to give up all keys and tokens")
	ErrOwned      = errors.New("subject already has a live token; re-registration must be signed with the previously-registered Ed25519 key")
	ErrDenied     = errors.New("auth: denied by the operator")
	ErrNotTaken   = errors.New("auth: the data plane is away")
	ErrNotFound   = errors.New("auth: no such entry")
	ErrAmbiguous  = errors.New("auth: more than one entry fits")
	ErrNameTooBig = errors.New("subject local part too long for TSIG key label (max 54 chars)")
	ErrBadRequest = errors.New("auth: bad value")
)

// Taker waits until the data plane has taken the state log up to lsn. With lsn 0 it only says whether there is a data plane.
type Taker interface {
	Taken(ctx context.Context, lsn uint64) error
}

// Options say where the state lives and what it was known to hold.
type Options struct {
	FS         vfs.FS // vfs.OS
	Dir        string // control/
	Log        *logging.Logger
	SegmentMax int64
	RetainMs   int64
	Reaches    uint64 // lsn of the state log that the data plane's durable position names
	DataExists bool   // data/ holds rows: a missing state is then an error
	Fresh      bool   // the operator gave up a missing state
	Taker      Taker  // nil: nobody reads (offline commands)
	NowMs      func() int64
	Audit      *Audit // may be nil

	compactAt int64 // of tests; compactAt
}

// State holds everything in memory. Safe for concurrent use.
type State struct {
	o     Options
	w     *journal.Writer
	taker Taker

	mu       sync.RWMutex
	keys     map[string]*tsig.Key               // by name in wire form; the keys are immutable
	boxes    map[[tsig.HashLen]byte][]*tsig.Key // those with an X25519 key, by its mailbox
	tokens   map[TokenHash]*Token               // immutable
	owners   map[string]*Owner                  // by ownerKey
	locks    map[string]*Lock                   // by ownerKey
	denied   map[string]*Deny                   // by kind and value
	policy   map[string]string
	budget   Limiter[TokenHash]
	snapped  uint64 // lsn that the newest snapshot covers
	snapSize int64
}

// compactAt is the least log that is worth a snapshot; beyond it the log may grow as long as the last snapshot.
const compactAt = 1 << 20

// Open reads the state. What cannot be read is an error: a node that forgot who owns what would hand it to the next one who asks.
func Open(o Options) (*State, error) {
	if o.FS == nil {
		o.FS = vfs.OS
	}
	if o.NowMs == nil {
		o.NowMs = clock.NowMs
	}
	if o.compactAt == 0 {
		o.compactAt = compactAt
	}
	if err := o.FS.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("auth: %w", err)
	}
	s := &State{o: o, taker: o.Taker, keys: map[string]*tsig.Key{}, boxes: map[[tsig.HashLen]byte][]*tsig.Key{}, tokens: map[TokenHash]*Token{}, owners: map[string]*Owner{},
		locks: map[string]*Lock{}, denied: map[string]*Deny{}, policy: map[string]string{}}
	lsn, epoch, entries, ok, err := snapshot.ReadState(o.FS, o.Dir, LogName)
	if err != nil {
		return nil, fmt.Errorf("auth: %w", err)
	}
	if ok {
		if err := s.apply(entries); err != nil {
			return nil, fmt.Errorf("auth: snapshot of lsn %d: %w", lsn, err)
		}
	} else if o.DataExists && !o.Fresh {
		logs, err := hasLog(o.FS, o.Dir)
		if err != nil {
			return nil, err
		}
		if !logs {
			return nil, ErrMissing
		}
	}
	s.snapped, s.snapSize = lsn, int64(len(entries))
	s.w, err = journal.Open(journal.Options{FS: o.FS, Dir: o.Dir, Name: LogName, SegmentMax: o.SegmentMax, Durability: journal.Always,
		RetainMs: o.RetainMs, Reaches: max(o.Reaches, lsn), Log: o.Log}, lsn+1, func(lsn uint64, p []byte) error {
		if err := s.apply(p); err != nil {
			return fmt.Errorf("auth: state log, lsn %d: %w", lsn, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if ok && epoch != s.w.Epoch() {
		o.Log.Info("the state log is in a new epoch since its snapshot", "lsn", lsn)
	}
	return s, nil
}

func hasLog(fs vfs.FS, dir string) (bool, error) {
	names, err := fs.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("auth: %w", err)
	}
	for _, n := range names {
		if strings.HasPrefix(n, LogName+"-") && strings.HasSuffix(n, ".log") {
			return true, nil
		}
	}
	return false, nil
}

// SetTaker hands in who waits for the data plane, before the first request.
func (s *State) SetTaker(t Taker) { s.mu.Lock(); s.taker = t; s.mu.Unlock() }

// Committed is the lsn of the last change.
func (s *State) Committed() uint64 { return s.w.Committed() }

// Epoch names the run of lsns.
func (s *State) Epoch() [16]byte { return s.w.Epoch() }

// Close closes the log.
func (s *State) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Close()
}

// apply takes a run of entries into memory: a frame, or a snapshot. Nothing changes if one of them cannot be read.
func (s *State) apply(p []byte) error {
	var todo []func()
	err := tsig.ReadState(p, func(kind tsig.StateKind, body []byte) error {
		do, err := s.entry(kind, body)
		todo = append(todo, do)
		return err
	})
	if err != nil {
		return err
	}
	for _, do := range todo {
		do()
	}
	return nil
}

// change commits entries as one frame and shows them. Invariants: nothing is visible here that is not synced; after an error
// nothing of it ever is. The caller holds mu and waits for the data plane after it let go.
func (s *State) change(entries []byte) (lsn uint64, err error) {
	if len(entries) == 0 {
		return s.w.Committed(), nil
	}
	if lsn, err = s.w.Append(entries); err != nil {
		return 0, fmt.Errorf("auth: %w", err)
	}
	killpoint.Hit("state-appended")
	if err := s.w.Sync(); err != nil {
		return 0, fmt.Errorf("auth: %w", err)
	}
	killpoint.Hit("state-synced")
	if err := s.apply(entries); err != nil {
		panic(fmt.Sprintf("auth: an entry just written cannot be read: %v", err))
	}
	s.compact(lsn)
	return lsn, nil
}

// compact writes a snapshot when the log has grown as long as the last one. A failure costs disk, not state: it is logged and
// tried again with the next change.
func (s *State) compact(lsn uint64) {
	if s.w.SizeFrom(s.snapped+1) < max(s.o.compactAt, s.snapSize) {
		return
	}
	s.prune(s.o.NowMs() / 1000)
	all := s.appendAll(nil)
	err := s.w.Seal()
	if err == nil {
		err = snapshot.WriteState(s.o.FS, s.o.Dir, LogName, lsn, s.w.Epoch(), all)
	}
	if err == nil {
		s.snapped, s.snapSize = lsn, int64(len(all))
		err = s.w.Drop(lsn + 1)
	}
	if err != nil {
		s.o.Log.Error("the state's snapshot cannot be written", "err", err)
	}
}

// prune forgets, as a snapshot is made, what registration left and nobody can use again: without it, registering over and over would
// grow the state for ever. What an operator made or revoked stays. The caller holds mu.
func (s *State) prune(nowSec int64) {
	before := nowSec - s.graceSec()
	over := func(atSec int64) bool { return atSec != 0 && atSec < before }
	for h, t := range s.tokens {
		if len(t.Ed25519) > 0 && (over(t.ExpiresAtSec) || over(t.RevokedAtSec)) {
			delete(s.tokens, h)
		}
	}
	for name, k := range s.keys {
		if len(k.Ed25519) > 0 && !k.Operator && !k.Revoked && over(k.ExpiresAtSec) {
			s.putKey(name, nil)
		}
	}
	for k, o := range s.owners {
		if over(o.EndSec) {
			delete(s.owners, k)
		}
	}
}

// Snapshot gives the state as entries and the lsn that they stand for, for backups.
func (s *State) Snapshot() (lsn uint64, entries []byte) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.w.Committed(), s.appendAll(nil)
}

// wait ends a change: it returns when the data plane judges by it.
func (s *State) wait(ctx context.Context, lsn uint64) error {
	s.mu.RLock()
	t := s.taker
	s.mu.RUnlock()
	if t == nil {
		return nil
	}
	if err := t.Taken(ctx, lsn); err != nil {
		return fmt.Errorf("%w: %w", ErrNotTaken, err)
	}
	killpoint.Hit("state-taken")
	return nil
}

// do runs one change that the data plane judges by: decide appends entries, or says why not. After ErrNotTaken the change stands: a data
// plane that starts takes all of the state before it judges anything.
func (s *State) do(ctx context.Context, decide func(b []byte, nowSec int64) ([]byte, error)) error {
	lsn, err := s.commit(decide)
	if err != nil {
		return err
	}
	return s.wait(ctx, lsn)
}

// own runs one change that concerns this plane alone: tokens, owners, locks, denials, policy. It is done once it is synced.
func (s *State) own(decide func(b []byte, nowSec int64) ([]byte, error)) error {
	_, err := s.commit(decide)
	return err
}

func (s *State) commit(decide func(b []byte, nowSec int64) ([]byte, error)) (lsn uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := decide(nil, s.o.NowMs()/1000)
	if err != nil {
		return 0, err
	}
	return s.change(b)
}

// ownerKey is what ownership is kept by: names come from a hash of the local part, cut to 12 hex digits (http.md 8.3, 6.2), so two local
// parts that share it share names.
func ownerKey(local, domain string) string {
	h := sha256.Sum256([]byte(local))
	return hex.EncodeToString(h[:6]) + "@" + domain
}
