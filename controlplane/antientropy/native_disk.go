package antientropy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/snapshot"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

// DiskRecords is Records over the data plane's files, which it only reads. Of what is behind the snapshot it holds names and hashes; values
// come from Value.
type DiskRecords struct {
	FS  vfs.FS
	Dir string // of rows-*.snap and rows-*.log
	// Value finds a row with its value (View.State).
	Value func(name []byte, hash [32]byte) (record.Row, bool, error)
	// Notify gives a channel that closes when there is more to read.
	Notify func() <-chan struct{}

	mu    sync.Mutex
	snap  *snapshot.Snapshot // nil before the first one
	index map[record.ID]diskPlace
}

// diskPlace names an element of which the log says something that the snapshot does not.
type diskPlace struct {
	name string
	hash [32]byte
	lsn  uint64
}

const (
	rowsName = "rows"
	// stepRows and stepFrames are what one call of Next reads: some ms, since the tree is locked meanwhile.
	stepRows   = 1000
	stepFrames = 100
	// renewEvery is how often a newer snapshot is looked for; what it covers need not be remembered.
	renewEvery = 2 * time.Second
	opensMax   = 10 // a snapshot may be made while we open; not every time
)

type diskFollower struct {
	d       *DiskRecords
	r       *journal.Reader
	epoch   [16]byte
	row     int // next of the snapshot
	rows    int
	lsn     uint64
	checked time.Time
}

// Open is Records.
func (d *DiskRecords) Open() (Follower, error) {
	for range opensMax {
		s, err := snapshot.Latest(d.FS, d.Dir, rowsName)
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%w: %w", ErrRestart, err) // the data plane has not begun, or has just made another one
		}
		if err != nil {
			return nil, err
		}
		f := &diskFollower{d: d, checked: time.Now()}
		if s != nil {
			f.lsn, f.rows = s.LSN, s.Rows
		}
		f.r, err = journal.OpenReader(d.FS, d.Dir, rowsName, f.lsn+1)
		if err != nil && s != nil {
			s.Close()
		}
		switch {
		case errors.Is(err, journal.ErrGone): // a newer snapshot was made meanwhile
			continue
		case errors.Is(err, os.ErrNotExist):
			return nil, fmt.Errorf("%w: %w", ErrRestart, err)
		case err != nil:
			return nil, err
		}
		f.epoch = f.r.Epoch()
		d.mu.Lock()
		d.replace(s)
		d.index = map[record.ID]diskPlace{}
		d.mu.Unlock()
		return f, nil
	}
	return nil, ErrRestart
}

// replace needs mu.
func (d *DiskRecords) replace(s *snapshot.Snapshot) {
	if d.snap != nil {
		d.snap.Close()
	}
	d.snap = s
}

func (f *diskFollower) Epoch() [16]byte { return f.epoch }

// Close lets go of the files. Row finds nothing afterwards.
func (f *diskFollower) Close() {
	f.r.Close()
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.d.replace(nil)
	f.d.index = nil
}

// Next is Follower.
func (f *diskFollower) Next(each func(e *record.Entry)) (lsn uint64, more bool, err error) {
	if f.row < f.rows {
		// Nobody but this goroutine replaces the snapshot.
		for end := min(f.row+stepRows, f.rows); f.row < end; f.row++ {
			r, err := f.d.snap.Row(f.row)
			if err != nil {
				return f.lsn, false, err
			}
			e := record.Entry{Kind: record.KindPut, Row: r}
			if r.RDATA == nil {
				e.Kind = record.KindTombstone
			}
			each(&e)
		}
		return f.lsn, true, nil
	}
	for range stepFrames {
		lsn, payload, ok, err := f.r.Next()
		switch {
		case errors.Is(err, journal.ErrGone), errors.Is(err, journal.ErrEpoch):
			return f.lsn, false, fmt.Errorf("%w: %w", ErrRestart, err)
		case err != nil:
			return f.lsn, false, err
		case !ok:
			return f.lsn, false, f.renew()
		}
		if err := f.frame(lsn, payload, each); err != nil {
			return f.lsn, false, err
		}
		f.lsn = lsn
	}
	return f.lsn, true, nil
}

func (f *diskFollower) frame(lsn uint64, payload []byte, each func(e *record.Entry)) error {
	return record.ReadFrame(payload, func(_ int64, e *record.Entry) error {
		if e.Kind <= record.KindTombstone {
			f.d.mu.Lock()
			f.d.index[e.Row.ID()] = diskPlace{string(e.Row.Name), e.Row.Hash, lsn}
			f.d.mu.Unlock()
		}
		each(e)
		return nil
	})
}

// renew moves on to a newer snapshot.
func (f *diskFollower) renew() error {
	if time.Since(f.checked) < renewEvery {
		return nil
	}
	f.checked = time.Now()
	d := f.d
	lsns, err := snapshot.List(d.FS, d.Dir, rowsName)
	if err != nil || len(lsns) == 0 {
		return err
	}
	newest := lsns[len(lsns)-1]
	if d.snap != nil && newest <= d.snap.LSN || newest > f.lsn {
		return nil
	}
	s, err := snapshot.Open(d.FS, snapshot.Path(d.Dir, rowsName, newest))
	if errors.Is(err, os.ErrNotExist) {
		return nil // a newer one yet
	}
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.replace(s)
	for id, p := range d.index {
		if p.lsn <= s.LSN {
			delete(d.index, id)
		}
	}
	return nil
}

// Frames is Records.
func (d *DiskRecords) Frames(epoch [16]byte, from uint64) (FrameReader, error) {
	r, err := journal.OpenReader(d.FS, d.Dir, rowsName, from)
	if errors.Is(err, journal.ErrGone) || errors.Is(err, journal.ErrEpoch) || errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrRestart, err)
	}
	if err != nil {
		return nil, err
	}
	if r.Epoch() != epoch || from > r.Committed()+1 {
		r.Close()
		return nil, ErrRestart
	}
	return r, nil
}

// Row is Records.
func (d *DiskRecords) Row(id record.ID) (record.Row, bool, error) {
	d.mu.Lock()
	p, ok := d.index[id]
	if !ok {
		defer d.mu.Unlock()
		if d.snap == nil {
			return record.Row{}, false, nil
		}
		r, ok, err := d.snap.ByID(id)
		r.Name, r.RDATA = bytes.Clone(r.Name), bytes.Clone(r.RDATA)
		return r, ok, err
	}
	d.mu.Unlock()
	return d.Value([]byte(p.name), p.hash)
}

// Snapshot is Records. It opens the file anew, so that a slow peer holds nobody up.
func (d *DiskRecords) Snapshot(f func(r *record.Row) bool) (epoch [16]byte, lsn uint64, ok bool, err error) {
	s, err := snapshot.Latest(d.FS, d.Dir, rowsName)
	if err != nil || s == nil {
		return epoch, 0, false, err
	}
	defer s.Close()
	return s.Epoch, s.LSN, true, s.Each(func(_ record.ID, r *record.Row) bool { return f(r) })
}

// Changed is Records.
func (d *DiskRecords) Changed() <-chan struct{} { return d.Notify() }

// FileCursors is Cursors in a file.
type FileCursors struct {
	FS   vfs.FS
	Path string
}

// cursorsMax is far more than the cursors of all peers that there can be.
const cursorsMax = 1 << 20

// Load is Cursors.
func (c FileCursors) Load() (map[string]NativeCursor, error) {
	f, err := c.FS.OpenFile(c.Path, os.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("antientropy: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, cursorsMax))
	if err != nil {
		return nil, fmt.Errorf("antientropy: %w", err)
	}
	var m map[string]NativeCursor
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("antientropy: %s: %w", c.Path, err)
	}
	return m, nil
}

// Save is Cursors: written aside, synced, renamed.
func (c FileCursors) Save(m map[string]NativeCursor) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("antientropy: %w", err)
	}
	temporary := c.Path + ".new"
	f, err := c.FS.OpenFile(temporary, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = f.WriteAt(b, 0)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err == nil {
		err = c.FS.Rename(temporary, c.Path)
	}
	if err == nil {
		err = c.FS.SyncDir(filepath.Dir(c.Path))
	}
	if err != nil {
		return fmt.Errorf("antientropy: %w", err)
	}
	return nil
}
