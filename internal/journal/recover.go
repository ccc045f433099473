package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/dnsmesh/dmpd/internal/vfs"
)

// recovery reads a log as a crash may have left it.
//
// A segment with another behind it must hold every frame up to the one that the next header names; less is damage. In the last
// segment a bad frame ends what counts. That is damage if anything shows that more had been durable: the header's committed
// lsn, a later good frame's `synced`, or Options.Reaches. Otherwise it is a torn tail, which was never acknowledged.
// A segment written under Interval or OS may lose frames that counted at a power cut: then it is no damage, but a new epoch. So is
// every unclean end of such a segment, since frames of it may have been seen of which nothing is left.
type recovery struct {
	o      *Options
	from   uint64
	replay func(lsn uint64, payload []byte) error

	segments []segment
	epoch    [16]byte
	newEpoch bool
	last     uint64 // last frame that counts
	used     uint64 // highest lsn in any frame that can be read, also in those that do not count
	tail     *segmentFile
	tailEnd  int64
	unsealed []unsealedSegment
	started  bool // a segment was read
	buf      []byte
}

// unsealedSegment has another one behind it, but a crash came before its words said so.
type unsealedSegment struct {
	segment
	next uint64
}

func (r *recovery) run() error {
	if err := r.sweep(); err != nil {
		return err
	}
	firsts, err := listSegments(r.o.FS, r.o.Dir, r.o.Name)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	// Segments that the snapshot covers are kept for readers only. The last two are always looked at.
	skip := 0
	for ; skip+2 < len(firsts) && firsts[skip+1] <= r.from; skip++ {
		size, _, err := r.o.FS.Stat(segmentPath(r.o.Dir, r.o.Name, firsts[skip]))
		if err != nil {
			return fmt.Errorf("journal: %w", err)
		}
		r.segments = append(r.segments, segment{first: firsts[skip], last: firsts[skip+1] - 1, bytes: size})
	}
	var files []*segmentFile
	for _, first := range firsts[skip:] {
		f, err := openSegmentFile(r.o.FS, segmentPath(r.o.Dir, r.o.Name, first))
		if err != nil {
			return err
		}
		if f.h.first != first {
			return &CorruptError{f.path, 32, fmt.Sprintf("its header says it begins at %d", f.h.first)}
		}
		files = append(files, f)
	}
	if len(files) == 0 {
		return r.empty()
	}
	if h := &files[0].h; r.from > 0 && h.prevLast+1 > r.from {
		return &CorruptError{files[0].path, 40, fmt.Sprintf("the log begins after frame %d, but frames from %d on are needed", h.prevLast, r.from)}
	}
	for i, f := range files {
		if err := f.read(r.o.FS, &r.buf); err != nil {
			return err
		}
		if i+1 < len(files) {
			err = r.inner(f, &files[i+1].h)
		} else {
			err = r.end(f)
		}
		f.b = nil
		if err != nil {
			return err
		}
	}
	return nil
}

// sweep removes what a crash left of a segment that had no name yet.
func (r *recovery) sweep() error {
	files, err := r.o.FS.ReadDir(r.o.Dir)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	for _, name := range files {
		if !strings.HasPrefix(name, r.o.Name+"-") || !strings.HasSuffix(name, unnamed) {
			continue
		}
		if err := r.o.FS.Remove(filepath.Join(r.o.Dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("journal: %w", err)
		}
	}
	return nil
}

// empty begins a log.
func (r *recovery) empty() error {
	if r.o.Reaches >= max(r.from, 1) && r.o.Durability == Always {
		return &CorruptError{segmentPath(r.o.Dir, r.o.Name, max(r.from, 1)), 0, fmt.Sprintf("it is missing, although frames up to %d were durable", r.o.Reaches)}
	}
	r.newEpoch = true
	return nil
}

// segmentFile is a segment that is recovered.
type segmentFile struct {
	path      string
	b         []byte // the whole file, while its frames are read
	h         header
	committed uint64
	sealed    uint64
	next      uint64
	clean     bool
}

// openSegmentFile reads the header page.
func openSegmentFile(fs vfs.FS, path string) (*segmentFile, error) {
	s := &segmentFile{path: path}
	page := make([]byte, headerSize)
	f, err := fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	defer f.Close()
	n, err := f.ReadAt(page, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("journal: reading %s: %w", path, err)
	}
	if s.h, err = decodeHeader(path, page[:n]); err != nil {
		return nil, err
	}
	s.committed = binary.NativeEndian.Uint64(page[offCommitted:])
	s.sealed = binary.NativeEndian.Uint64(page[offSealed:])
	s.next = binary.NativeEndian.Uint64(page[offNext:])
	if s.sealed != open && s.sealed != sealed && s.sealed != sealedBad {
		return nil, &CorruptError{path, offSealed, "the header says neither that it is sealed nor that it is not"}
	}
	s.clean = binary.NativeEndian.Uint64(page[offClean:]) == clean
	return s, nil
}

// read loads the file into *buf, which the segments share.
func (s *segmentFile) read(fs vfs.FS, buf *[]byte) error {
	f, err := fs.OpenFile(s.path, os.O_RDONLY, 0)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if int64(cap(*buf)) < size {
		*buf = make([]byte, size)
	}
	s.b = (*buf)[:size]
	if n, err := f.ReadAt(s.b, 0); err != nil && !(errors.Is(err, io.EOF) && n == len(s.b)) {
		return fmt.Errorf("journal: reading %s: %w", s.path, err)
	}
	return nil
}

// frames replays the frames of a segment up to lsn until, or to the first bad one, and gives the offset behind them.
func (r *recovery) frames(f *segmentFile, until uint64) (off int64, err error) {
	if r.started && f.h.prevLast != r.last {
		return 0, &CorruptError{f.path, 40, fmt.Sprintf("it follows frame %d, but the segment before it ends at %d", f.h.prevLast, r.last)}
	}
	r.started, r.last, r.epoch = true, f.h.prevLast, f.h.epoch
	off = headerSize
	for want := f.h.first; want <= until; want++ {
		lsn, _, payload, size := readFrame(f.b[off:], f.h.seed)
		if size == 0 || lsn != want {
			break
		}
		if lsn >= r.from && r.replay != nil {
			if err := r.replay(lsn, payload); err != nil {
				return 0, fmt.Errorf("journal: %s at offset %d: %w", f.path, off, err)
			}
		}
		r.last = lsn
		off += int64(size)
	}
	r.used = max(r.used, r.last, f.h.first-1)
	return off, nil
}

// inner reads a segment with another one behind it.
func (r *recovery) inner(f *segmentFile, next *header) error {
	off, err := r.frames(f, next.prevLast)
	if err != nil {
		return err
	}
	if r.last < next.prevLast {
		return &CorruptError{f.path, off, fmt.Sprintf("a bad frame, although frames up to %d were durable", next.prevLast)}
	}
	s := segment{first: f.h.first, last: r.last, bytes: off}
	r.segments = append(r.segments, s)
	if f.sealed == open || f.next != next.first {
		r.unsealed = append(r.unsealed, unsealedSegment{s, next.first})
	}
	return nil
}

// end reads the last segment.
func (r *recovery) end(f *segmentFile) error {
	until := ^uint64(0)
	if f.sealed == sealedBad {
		until = f.committed // what lies behind was dropped, however whole it looks
	}
	off, err := r.frames(f, until)
	if err != nil {
		return err
	}
	r.segments = append(r.segments, segment{first: f.h.first, last: r.last, bytes: off})
	r.tail, r.tailEnd = f, off
	reaches, why := r.evidence(f, off)
	safe := f.h.durability == Always
	if reaches > r.last {
		if safe {
			return &CorruptError{f.path, off, fmt.Sprintf("a bad frame, although %s that frames up to %d were durable", why, reaches)}
		}
		r.o.Log.Warn("the log lost frames at an unclean end and begins a new epoch", "log", f.path, "last", r.last, "reached", reaches)
		r.used = max(r.used, reaches)
		r.newEpoch = true
	}
	if !safe && !f.clean {
		r.newEpoch = true
	}
	if until > r.last && !zero(f.b[off:]) {
		r.o.Log.Warn("a torn tail of the log is left out; it was never acknowledged", "log", f.path, "offset", off)
	}
	return nil
}

// evidence looks for proof that frames behind off had been durable.
func (r *recovery) evidence(f *segmentFile, off int64) (reaches uint64, why string) {
	reaches, why = r.o.Reaches, "a snapshot or the other process shows"
	if f.committed > reaches {
		reaches, why = f.committed, "the header says"
	}
	base := max(r.last, f.h.first-1)
	for at := off; at+frameHeader <= int64(len(f.b)); at += 8 {
		// No lsn in this file can be further than its bytes: that saves most checksums.
		lsn := binary.BigEndian.Uint64(f.b[at+8:])
		if lsn <= base || lsn-base > uint64(len(f.b)) {
			continue
		}
		_, synced, _, size := readFrame(f.b[at:], f.h.seed)
		if size == 0 {
			continue
		}
		r.used = max(r.used, lsn)
		if synced > reaches {
			reaches, why = synced, fmt.Sprintf("a later frame at offset %d says", at)
		}
	}
	return reaches, why
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
