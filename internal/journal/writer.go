package journal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/killpoint"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

// Durability is when a frame counts as stored.
type Durability uint8

const (
	Always   Durability = iota // after a sync
	Interval                   // at once; a sync follows within a second
	OS                         // at once; the system syncs when it likes
)

// ParseDurability reads always, interval or os.
func ParseDurability(s string) (Durability, error) {
	switch s {
	case "", "always":
		return Always, nil
	case "interval":
		return Interval, nil
	case "os":
		return OS, nil
	}
	return 0, fmt.Errorf("journal: durability %q is neither always, interval nor os", s)
}

const (
	defaultSegmentMax  = 64 << 20
	defaultRetainBytes = 1 << 30
	syncInterval       = time.Second
)

// Options say where a log lives. Zero values get the defaults named beside them.
type Options struct {
	FS         vfs.FS // vfs.OS
	Dir, Name  string
	SegmentMax int64 // 64 MiB
	Durability Durability
	// RetainMs and RetainBytes say how long covered segments stay for readers that are behind: until they are that old, or
	// until all of them together are larger than that (1 GiB).
	RetainMs    int64
	RetainBytes int64
	// Reaches is an lsn that somebody else knows was durable here: a snapshot, or the other plane's durable position. A log
	// that ends before it is damaged; under Interval and OS it begins a new epoch instead.
	Reaches uint64
	Log     *logging.Logger
}

func (o *Options) defaults() {
	if o.FS == nil {
		o.FS = vfs.OS
	}
	if o.SegmentMax <= 0 {
		o.SegmentMax = defaultSegmentMax
	}
	if o.RetainBytes <= 0 {
		o.RetainBytes = defaultRetainBytes
	}
}

// Writer appends to a log. One goroutine calls its methods, but for Committed, Size, SizeFrom, SetRetain and Drop.
//
// A group is what is appended between two calls of Sync; a segment ends between groups only. After an error of Append or Sync
// the whole group is gone: nobody sees it, now or after a crash, and its lsns are not used again. ErrTooBig changes nothing.
type Writer struct {
	o     Options
	epoch [16]byte

	mu       sync.Mutex // guards segments and o.RetainMs; the last segment is the writer's goroutine's
	segments []segment  // oldest first, the current one last
	dropMu   sync.Mutex // one Drop at a time; not held while the writer waits

	path    string // of the current segment
	file    vfs.File
	page    vfs.Mapping // its header
	seed    uint32
	off     int64         // where the next frame goes
	size    int64         // of the file, allocated
	next    uint64        // lsn of the next frame
	shown   atomic.Uint64 // last committed lsn
	durable atomic.Uint64 // last synced lsn: the same under Always
	end     int64         // offset behind the last committed frame
	dirty   bool          // frames wait for Sync
	bad     bool          // the segment takes no more frames
	told    bool          // that the log cannot be written

	buf  []byte
	ill  atomic.Bool   // the interval's sync failed
	stop chan struct{} // of the interval's goroutine
	done chan struct{}
}

type segment struct {
	first uint64
	last  uint64 // 0 while it is written
	bytes int64
}

// Open recovers the log and calls replay for each frame from lsn `from` on, in order; from 0 on means whatever there is, and otherwise a
// log that does not reach back to from is damaged. The payload is valid during the call. Without any segment the log begins at lsn max(from, 1).
func Open(o Options, from uint64, replay func(lsn uint64, payload []byte) error) (*Writer, error) {
	o.defaults()
	if err := o.FS.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if err := o.FS.SyncDir(filepath.Dir(o.Dir)); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	w := &Writer{o: o}
	r := recovery{o: &w.o, from: from, replay: replay}
	if err := r.run(); err != nil {
		return nil, err
	}
	w.segments, w.epoch = r.segments, r.epoch
	w.next = max(r.last, r.used) + 1
	committed := r.last
	if r.tail == nil {
		w.next = max(from, 1)
		committed = w.next - 1 // a snapshot without any log behind it
	} else {
		w.next = max(w.next, from, r.tail.h.first+1) // also behind a last segment without a frame
		// Frames that a killed process wrote but had not synced count from now on, before anything says so.
		if err := syncFile(o.FS, r.tail.path); err != nil {
			return nil, fmt.Errorf("journal: %w", err)
		}
	}
	if r.newEpoch {
		if _, err := rand.Read(w.epoch[:]); err != nil {
			return nil, err
		}
		w.next = max(w.next, w.o.Reaches+1)
	}
	w.shown.Store(committed)
	w.durable.Store(committed)
	if err := w.openSegment(); err != nil {
		return nil, err
	}
	// From here on readers find their way from the old last segment into the new one.
	if r.tail != nil {
		r.unsealed = append(r.unsealed, unsealedSegment{segment{r.tail.h.first, r.last, r.tailEnd}, w.next})
	}
	for _, u := range r.unsealed {
		if err := sealFile(o.FS, segmentPath(o.Dir, o.Name, u.first), u.last, u.bytes, u.next); err != nil {
			w.closeFiles()
			return nil, fmt.Errorf("journal: %w", err)
		}
	}
	if o.Durability == Interval {
		w.stop, w.done = make(chan struct{}), make(chan struct{})
		go w.syncLoop()
	}
	return w, nil
}

// openSegment makes the next segment. It gets its name when its header is durable, and is durable itself before anything is
// written to it.
func (w *Writer) openSegment() error {
	fs, path := w.o.FS, segmentPath(w.o.Dir, w.o.Name, w.next)
	for {
		_, _, err := fs.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			break
		}
		if err != nil {
			return fmt.Errorf("journal: new segment: %w", err)
		}
		// What an earlier try left when it could not even remove it: nothing is in it, and its name is passed over.
		w.next++
		path = segmentPath(w.o.Dir, w.o.Name, w.next)
	}
	temporary := path + unnamed
	if err := fs.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("journal: new segment: %w", err)
	}
	f, err := fs.OpenFile(temporary, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("journal: new segment: %w", err)
	}
	h := header{epoch: w.epoch, first: w.next, prevLast: w.shown.Load(), durability: w.o.Durability}
	page, err := initSegment(f, &h)
	killpoint.Hit("segment-written")
	if err == nil {
		err = fs.Rename(temporary, path)
	}
	killpoint.Hit("segment-renamed")
	if err == nil {
		err = fs.SyncDir(w.o.Dir)
	}
	if err != nil {
		if page != nil {
			_ = page.Unmap()
		}
		_ = f.Close()
		// Best effort: an empty segment is only in the way.
		_, _ = fs.Remove(temporary), fs.Remove(path)
		return fmt.Errorf("journal: new segment: %w", err)
	}
	w.path, w.file, w.page, w.seed = path, f, page, h.seed
	w.off, w.end, w.size = headerSize, headerSize, headerSize
	w.bad = false
	w.mu.Lock()
	w.segments = append(w.segments, segment{first: w.next, bytes: headerSize})
	w.mu.Unlock()
	return nil
}

func initSegment(f vfs.File, h *header) (vfs.Mapping, error) {
	if err := f.Allocate(headerSize); err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(h.encode(), 0); err != nil {
		return nil, err
	}
	page, err := f.Map(0, headerSize, true)
	if err != nil {
		return nil, err
	}
	b := page.Bytes()
	word(b, offEnd).Store(headerSize)
	word(b, offCommitted).Store(h.prevLast)
	return page, f.Sync()
}

// Append writes a frame. It is not committed, so nobody else sees it, before Sync.
func (w *Writer) Append(payload []byte) (lsn uint64, err error) {
	if len(payload) > FrameMax {
		return 0, ErrTooBig
	}
	need := int64(frameSize(len(payload)))
	full := w.off+need > w.o.SegmentMax && w.off > headerSize
	if !w.dirty && (w.bad || full || w.ill.Load()) {
		if err := w.rotate(); err != nil {
			return 0, w.lost(err)
		}
	}
	w.buf = appendFrame(w.buf[:0], w.seed, w.next, w.durable.Load(), payload)
	if w.off+need > w.size {
		if err := w.grow(need); err != nil {
			return 0, w.fail(err, !w.dirty) // without a frame of this group nothing was written
		}
	}
	if _, err := w.file.WriteAt(w.buf, w.off); err != nil {
		return 0, w.fail(err, false)
	}
	lsn = w.next
	w.next++
	w.off += need
	w.dirty = true
	if cap(w.buf) > 4<<20 {
		w.buf = nil // one large group should not be paid for ever after
	}
	return lsn, nil
}

// grow makes room for need bytes more, and for some to come while the disk has them.
func (w *Writer) grow(need int64) error {
	least := w.off + need
	size := max(least, min(w.size+growStep, w.o.SegmentMax))
	err := w.file.Allocate(size)
	if err != nil && size > least {
		size = least
		err = w.file.Allocate(size)
	}
	if err == nil {
		w.size = size
	}
	return err
}

// Sync makes all that was appended durable, as the durability mode has it, and then committed.
func (w *Writer) Sync() error {
	if !w.dirty {
		return nil
	}
	if w.o.Durability == Always {
		if err := w.file.Sync(); err != nil {
			return w.fail(err, false)
		}
		w.durable.Store(w.next - 1)
	}
	killpoint.Hit("log-synced")
	w.dirty, w.told = false, false
	last := w.next - 1
	w.end = w.off
	b := w.page.Bytes()
	word(b, offEnd).Store(uint64(w.end)) // what lies before end is whole; a reader needs no more
	word(b, offCommitted).Store(last)
	w.shown.Store(last)
	w.mu.Lock()
	w.segments[len(w.segments)-1].bytes = w.end
	w.mu.Unlock()
	return nil
}

// fail drops the group, and gives the segment up if something of the group may be in it. The header says so at once, for
// whoever recovers this log should the process end before there is another segment.
func (w *Writer) fail(cause error, untouched bool) error {
	if !untouched {
		w.bad, w.dirty = true, false
		word(w.page.Bytes(), offSealed).Store(sealedBad)
	}
	return w.lost(cause)
}

func (w *Writer) lost(cause error) error {
	if !w.told {
		w.told = true // once, until it works again: a full disk may last
		w.o.Log.Error("the log cannot be written; what waits for it is dropped", "log", w.path, "err", cause)
	}
	return fmt.Errorf("%w: %w", ErrDropped, cause)
}

// rotate opens the next segment and seals the current one.
func (w *Writer) rotate() error {
	if w.o.Durability != Always {
		// The next header will say that these frames are there.
		if err := w.file.Sync(); err != nil {
			w.o.Log.Error("the log cannot be synced; a power cut may lose frames that count", "log", w.path, "err", err)
		} else {
			w.durable.Store(w.shown.Load())
		}
	}
	oldPath, oldPage, oldFile, oldEnd := w.path, w.page, w.file, w.end
	how := sealed
	if w.bad {
		how = sealedBad
	}
	w.mu.Lock()
	w.next = max(w.next, w.segments[len(w.segments)-1].first+1) // a segment without a frame keeps its name
	w.mu.Unlock()
	if err := w.openSegment(); err != nil {
		// What is left of the new segment may come back after a crash, and its header says that this one ends here. So this one
		// takes no more frames.
		w.bad = true
		return err
	}
	w.ill.Store(false)
	w.mu.Lock()
	s := &w.segments[len(w.segments)-2]
	s.last, s.bytes = w.shown.Load(), oldEnd
	w.mu.Unlock()
	b := oldPage.Bytes()
	word(b, offNext).Store(w.next)
	word(b, offSealed).Store(how)
	_ = oldFile.Sync() // the words only; the new header says where this one ends
	_ = oldPage.Unmap()
	_ = oldFile.Close()
	if how == sealedBad {
		w.o.Log.Error("the log goes on in a new segment", "log", w.path)
	} else {
		w.o.Log.Debug("log segment sealed", "log", oldPath, "last", w.shown.Load())
	}
	return nil
}

// sealFile writes the words of a segment that no Writer has open. One that an I/O error ended stays one.
func sealFile(fs vfs.FS, path string, last uint64, end int64, next uint64) error {
	f, err := fs.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	page, err := f.Map(0, headerSize, true)
	if err != nil {
		return err
	}
	defer page.Unmap()
	b := page.Bytes()
	word(b, offEnd).Store(uint64(end))
	word(b, offCommitted).Store(last)
	word(b, offNext).Store(next)
	if word(b, offSealed).Load() == open {
		word(b, offSealed).Store(sealed)
	}
	return f.Sync()
}

func syncFile(fs vfs.FS, path string) error {
	f, err := fs.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (w *Writer) syncLoop() {
	defer close(w.done)
	tick := time.NewTicker(syncInterval)
	defer tick.Stop()
	for {
		select {
		case <-w.stop:
			return
		case <-tick.C:
		}
		w.mu.Lock()
		path := segmentPath(w.o.Dir, w.o.Name, w.segments[len(w.segments)-1].first)
		w.mu.Unlock()
		last := w.shown.Load()
		if last == w.durable.Load() || w.ill.Load() {
			continue
		}
		// A descriptor of its own: the writer may close its own at any moment. It syncs what it had written into the segments
		// before this one when it left them.
		if err := syncFile(w.o.FS, path); err != nil {
			w.ill.Store(true)
			w.o.Log.Error("the log cannot be synced; it goes on in a new segment", "log", path, "err", err)
			continue
		}
		if last > w.durable.Load() {
			w.durable.Store(last)
		}
	}
}

// Committed is the last lsn that counts.
func (w *Writer) Committed() uint64 { return w.shown.Load() }

// Next is the lsn of the next frame.
func (w *Writer) Next() uint64 { return w.next }

// Epoch names the run of lsns.
func (w *Writer) Epoch() [16]byte { return w.epoch }

// Size is the bytes of all segments.
func (w *Writer) Size() (bytes int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.segments {
		bytes += w.segments[i].bytes
	}
	return bytes
}

// SizeFrom is the bytes of the segments that hold frames from lsn on: the log that a snapshot at lsn-1 does not cover, to
// within a segment.
func (w *Writer) SizeFrom(lsn uint64) (bytes int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.segments {
		if s := &w.segments[i]; s.last == 0 || s.last >= lsn {
			bytes += s.bytes - headerSize
		}
	}
	return bytes
}

// Seal ends the current segment, so that all that is committed lies in sealed ones. Without a frame in it, it stays.
func (w *Writer) Seal() error {
	if err := w.Sync(); err != nil {
		return err
	}
	if w.off == headerSize && !w.bad {
		return nil
	}
	if err := w.rotate(); err != nil {
		return w.lost(err)
	}
	return nil
}

// Drop unlinks segments all of whose frames are below lsn and that need not be retained. It may run beside the writer, and
// does not hold it up.
func (w *Writer) Drop(below uint64) error {
	w.dropMu.Lock()
	defer w.dropMu.Unlock()
	nowMs := clock.NowMs()
	removed := false
	for {
		s, retainMs, total, ok := w.oldest(below)
		if !ok {
			break
		}
		path := segmentPath(w.o.Dir, w.o.Name, s.first)
		_, mtimeMs, err := w.o.FS.Stat(path)
		if err == nil && nowMs-mtimeMs < retainMs && total <= w.o.RetainBytes {
			break
		}
		if err := w.o.FS.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("journal: %w", err)
		}
		removed = true
		w.mu.Lock()
		w.segments = w.segments[1:]
		w.mu.Unlock()
	}
	if !removed {
		return nil
	}
	if err := w.o.FS.SyncDir(w.o.Dir); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// oldest gives the oldest segment if all of it is below lsn and another one follows.
func (w *Writer) oldest(below uint64) (s segment, retainMs, total int64, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.segments) < 2 || w.segments[0].last >= below || w.segments[1].first > below {
		return s, 0, 0, false
	}
	for i := range w.segments {
		total += w.segments[i].bytes
	}
	return w.segments[0], w.o.RetainMs, total, true
}

// SetRetain changes how long covered segments stay.
func (w *Writer) SetRetain(ms int64) {
	w.mu.Lock()
	w.o.RetainMs = ms
	w.mu.Unlock()
}

// Close commits what was appended and marks the end as clean.
func (w *Writer) Close() error {
	if w.page == nil {
		return nil
	}
	if w.stop != nil {
		close(w.stop)
		<-w.done
		w.stop = nil
	}
	err := w.Sync()
	if err == nil && !w.bad {
		if err = w.file.Sync(); err == nil {
			word(w.page.Bytes(), offClean).Store(clean)
			err = w.file.Sync()
		}
	}
	w.closeFiles()
	return err
}

func (w *Writer) closeFiles() {
	if w.page != nil {
		_ = w.page.Unmap()
		_ = w.file.Close()
		w.page, w.file = nil, nil
	}
}
