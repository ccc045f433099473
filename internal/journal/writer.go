package journal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dnsmesh/dmpd/internal/clock"
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

// Writer appends to a log. One goroutine calls its methods, but for Committed and Size.
type Writer struct {
	o     Options
	epoch [16]byte

	mu       sync.Mutex // guards segments, for Size and Drop beside the writer's goroutine
	segments []segment  // oldest first, the current one last

	file   vfs.File
	page   vfs.Mapping   // header of the current segment
	off    int64         // where the next frame goes
	size   int64         // of the file, allocated
	next   uint64        // lsn of the next frame
	synced uint64        // last committed lsn
	shown  atomic.Uint64 // the same, for Committed
	end    int64         // offset behind the last appended frame that may be committed
	dirty  bool          // frames wait for Sync
	bad    bool          // the segment takes no more frames

	buf  []byte
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
	w := &Writer{o: o}
	r := recovery{o: &w.o, from: from, replay: replay}
	if err := r.run(); err != nil {
		return nil, err
	}
	w.segments, w.epoch, w.synced = r.segments, r.epoch, r.last
	w.next = max(r.last+1, from, 1)
	if r.tail != nil {
		w.next = max(w.next, r.tail.first+1) // also behind a last segment without a frame
	}
	if len(w.segments) == 0 && w.next > 1 {
		w.synced = w.next - 1 // a snapshot without any log behind it
	}
	w.shown.Store(w.synced)
	if r.newEpoch {
		if _, err := rand.Read(w.epoch[:]); err != nil {
			return nil, err
		}
		w.next = max(w.next, w.o.Reaches+1)
	}
	if err := w.openSegment(); err != nil {
		return nil, err
	}
	for _, u := range r.unsealed {
		if err := sealFile(o.FS, segmentPath(o.Dir, o.Name, u.first), u.last, u.bytes, sealed, u.next); err != nil {
			w.closeFiles()
			return nil, fmt.Errorf("journal: %w", err)
		}
	}
	if r.tail != nil {
		// From here on readers find their way from the old last segment into the new one.
		err := sealFile(o.FS, segmentPath(o.Dir, o.Name, r.tail.first), r.last, r.tailEnd, sealed, w.next)
		if err != nil {
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

// openSegment makes the next segment, durable before anything is written to it.
func (w *Writer) openSegment() error {
	path := segmentPath(w.o.Dir, w.o.Name, w.next)
	f, err := w.o.FS.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		// What an earlier try left when it could not even remove it: nothing is in it, and its name is passed over.
		w.next++
		path = segmentPath(w.o.Dir, w.o.Name, w.next)
		f, err = w.o.FS.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	}
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	page, err := initSegment(f, &header{w.epoch, w.next, w.synced})
	if err == nil {
		err = w.o.FS.SyncDir(w.o.Dir)
	}
	if err != nil {
		if page != nil {
			page.Unmap()
		}
		f.Close()
		// Best effort: an empty segment without a valid header would only be in the way.
		_ = w.o.FS.Remove(path)
		return fmt.Errorf("journal: new segment: %w", err)
	}
	w.file, w.page = f, page
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
	if w.off+need > w.o.SegmentMax && w.off > headerSize && !w.bad {
		if err := w.Sync(); err != nil {
			return 0, err
		}
		if err := w.rotate(sealed); err != nil {
			return 0, err
		}
	}
	if w.bad {
		if err := w.rotate(sealedBad); err != nil {
			return 0, err
		}
	}
	w.buf = appendFrame(w.buf[:0], w.next, w.synced, payload)
	if w.off+need > w.size {
		size := max(w.off+need, min(w.size+growStep, w.o.SegmentMax))
		if err := w.file.Allocate(size); err != nil {
			if w.off+need <= size && size > w.off+need {
				err = w.file.Allocate(w.off + need) // the last bit of the disk
				size = w.off + need
			}
			if err != nil {
				return 0, w.fail(err)
			}
		}
		w.size = size
	}
	if _, err := w.file.WriteAt(w.buf, w.off); err != nil {
		return 0, w.fail(err)
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

// Sync makes all that was appended durable, as the durability mode has it, and then committed. After an error the whole group
// is dropped: its frames are never seen by anybody.
func (w *Writer) Sync() error {
	if !w.dirty {
		return nil
	}
	if w.bad {
		return ErrDropped
	}
	if w.o.Durability == Always {
		if err := w.file.Sync(); err != nil {
			return w.fail(err)
		}
	}
	w.dirty = false
	w.synced, w.end = w.next-1, w.off
	w.shown.Store(w.synced)
	b := w.page.Bytes()
	word(b, offEnd).Store(uint64(w.end))
	word(b, offCommitted).Store(w.synced)
	w.mu.Lock()
	w.segments[len(w.segments)-1].bytes = w.end
	w.mu.Unlock()
	return nil
}

// fail gives the current segment up. What was appended since the last Sync is dropped; its lsns are not used again.
func (w *Writer) fail(cause error) error {
	w.bad, w.dirty = true, false
	w.o.Log.Error("the log cannot be written; what waited for it is dropped", "log", segmentPath(w.o.Dir, w.o.Name, w.current().first), "err", cause)
	return fmt.Errorf("%w: %w", ErrDropped, cause)
}

func (w *Writer) current() *segment { return &w.segments[len(w.segments)-1] }

// rotate seals the current segment and opens the next one.
func (w *Writer) rotate(how uint64) error {
	old, oldPage, oldFile, oldEnd := w.current().first, w.page, w.file, w.end
	w.next = max(w.next, old+1) // a segment without a frame keeps its name
	if err := w.openSegment(); err != nil {
		// What is left of the new segment may come back after a crash, and its header says that this one ends here. So this one
		// takes no more frames.
		w.bad = true
		return err
	}
	w.mu.Lock()
	s := &w.segments[len(w.segments)-2]
	s.last, s.bytes = w.synced, oldEnd
	w.mu.Unlock()
	b := oldPage.Bytes()
	word(b, offNext).Store(w.next)
	word(b, offSealed).Store(how)
	_ = oldFile.Sync() // the words only; the new header says where this one ends
	oldPage.Unmap()
	oldFile.Close()
	if how == sealedBad {
		w.o.Log.Error("the log goes on in a new segment", "log", segmentPath(w.o.Dir, w.o.Name, w.next))
	} else {
		w.o.Log.Debug("log segment sealed", "log", segmentPath(w.o.Dir, w.o.Name, old), "last", w.synced)
	}
	return nil
}

// sealFile writes the words of a segment that no Writer has open.
func sealFile(fs vfs.FS, path string, last uint64, end int64, how, next uint64) error {
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
	word(b, offSealed).Store(how)
	return f.Sync()
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
			w.mu.Lock()
			path := segmentPath(w.o.Dir, w.o.Name, w.current().first)
			w.mu.Unlock()
			// A descriptor of its own: the writer may close its own at any moment.
			f, err := w.o.FS.OpenFile(path, os.O_RDWR, 0)
			if err == nil {
				err = errors.Join(f.Sync(), f.Close())
			}
			if err != nil {
				w.o.Log.Error("the log cannot be synced", "log", path, "err", err)
			}
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
	if w.bad || w.off == headerSize {
		return nil
	}
	return w.rotate(sealed)
}

// Drop unlinks segments all of whose frames are below lsn and that need not be retained. It may run beside the writer.
func (w *Writer) Drop(below uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var total int64
	for i := range w.segments {
		total += w.segments[i].bytes
	}
	nowMs := clock.NowMs()
	removed := false
	for len(w.segments) > 1 {
		s := w.segments[0]
		if s.last >= below || w.segments[1].first > below {
			break
		}
		path := segmentPath(w.o.Dir, w.o.Name, s.first)
		_, mtimeMs, err := w.o.FS.Stat(path)
		if err == nil && nowMs-mtimeMs < w.o.RetainMs && total <= w.o.RetainBytes {
			break
		}
		if err := w.o.FS.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("journal: %w", err)
		}
		removed = true
		total -= s.bytes
		w.segments = w.segments[1:]
	}
	if !removed {
		return nil
	}
	return w.o.FS.SyncDir(w.o.Dir)
}

// SetRetain changes how long covered segments stay.
func (w *Writer) SetRetain(ms int64) {
	w.mu.Lock()
	w.o.RetainMs = ms
	w.mu.Unlock()
}

// Close commits what was appended and marks the end as clean.
func (w *Writer) Close() error {
	if w.stop != nil {
		close(w.stop)
		<-w.done
		w.stop = nil
	}
	err := w.Sync()
	if err == nil && !w.bad {
		if err = w.file.Sync(); err == nil {
			word(w.page.Bytes(), offClean).Store(1)
			err = w.file.Sync()
		}
	}
	w.closeFiles()
	return err
}

func (w *Writer) closeFiles() {
	if w.page != nil {
		w.page.Unmap()
		w.file.Close()
		w.page, w.file = nil, nil
	}
}
