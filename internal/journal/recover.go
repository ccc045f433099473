package journal

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/dnsmesh/dmpd/internal/vfs"
)

// recovery reads a log as a crash may have left it.
//
// A segment with another behind it must hold every frame up to the one that the next header names; less is damage. In the last
// segment a bad frame ends what counts. That is damage if anything shows that more had been durable: the header's committed
// lsn, a later good frame's `synced`, or Options.Reaches. Otherwise it is a torn tail, which was never acknowledged.
// Under Interval and OS frames that counted may be lost at a power cut: then it is no damage, but a new epoch.
type recovery struct {
	o      *Options
	from   uint64
	replay func(lsn uint64, payload []byte) error

	segments []segment
	epoch    [16]byte
	newEpoch bool
	last     uint64 // last frame that counts
	tail     *segment
	tailEnd  int64
	unsealed []unsealedSegment
	started  bool // a segment was read
}

// unsealedSegment has another one behind it, but a crash came before its words said so.
type unsealedSegment struct {
	segment
	next uint64
}

func (r *recovery) run() error {
	firsts, err := listSegments(r.o.FS, r.o.Dir, r.o.Name)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	var files []*segmentFile
	for i, first := range firsts {
		path := segmentPath(r.o.Dir, r.o.Name, first)
		if i+1 < len(firsts) && firsts[i+1] <= r.from && i+2 < len(firsts) {
			// Kept for readers only: the snapshot covers it.
			size, _, err := r.o.FS.Stat(path)
			if err != nil {
				return fmt.Errorf("journal: %w", err)
			}
			r.segments = append(r.segments, segment{first: first, last: firsts[i+1] - 1, bytes: size})
			continue
		}
		f, err := readSegment(r.o.FS, path)
		if errors.Is(err, ErrCorrupt) && unborn(f) {
			// A crash or a full disk while it was made. If it had been more, the segments around it would not fit together
			// below, or Reaches says so.
			r.o.Log.Warn("an unfinished log segment is removed", "log", path)
			if err := r.o.FS.Remove(path); err != nil {
				return fmt.Errorf("journal: %w", err)
			}
			continue
		}
		if err != nil {
			return err
		}
		if f.h.first != first {
			return &CorruptError{path, 32, fmt.Sprintf("its header says it begins at %d", f.h.first)}
		}
		files = append(files, f)
	}
	if len(files) == 0 {
		r.newEpoch = true
		if _, err := rand.Read(r.epoch[:]); err != nil {
			return err
		}
		if r.o.Reaches > 0 && r.o.Reaches >= max(r.from, 1) && r.o.Durability == Always {
			return &CorruptError{segmentPath(r.o.Dir, r.o.Name, r.from), 0, fmt.Sprintf("it is missing, although frames up to %d were durable", r.o.Reaches)}
		}
		return nil
	}
	if r.from > 0 && files[0].h.prevLast+1 > r.from {
		return &CorruptError{files[0].path, 32, fmt.Sprintf("the log begins at %d, but frames from %d on are needed", files[0].h.first, r.from)}
	}
	for i, f := range files {
		var next *segmentFile
		if i+1 < len(files) {
			next = files[i+1]
		}
		if err := r.segment(f, next); err != nil {
			return err
		}
	}
	return nil
}

// segmentFile is a segment read into memory.
type segmentFile struct {
	path      string
	b         []byte
	h         header
	committed uint64
	clean     bool
	sealed    bool
}

func readSegment(fs vfs.FS, path string) (*segmentFile, error) {
	f, err := fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	s := &segmentFile{path: path, b: make([]byte, size)}
	if n, err := f.ReadAt(s.b, 0); err != nil && !(errors.Is(err, io.EOF) && n == len(s.b)) {
		return nil, fmt.Errorf("journal: reading %s: %w", path, err)
	}
	if s.h, err = decodeHeader(path, s.b); err != nil {
		return s, err
	}
	s.committed = binary.NativeEndian.Uint64(s.b[offCommitted:])
	s.sealed = binary.NativeEndian.Uint64(s.b[offSealed:]) != open
	s.clean = binary.NativeEndian.Uint64(s.b[offClean:]) == 1
	return s, nil
}

// unborn says whether a segment holds nothing but what a crash in openSegment leaves: no frame, no committed word.
func unborn(s *segmentFile) bool {
	if s == nil {
		return false
	}
	if len(s.b) > headerSize {
		return false
	}
	for off := offCommitted; off+8 <= len(s.b) && off <= offClean; off += 8 {
		if v := binary.NativeEndian.Uint64(s.b[off:]); v != 0 && off != offEnd && off != offCommitted {
			return false
		}
	}
	return true
}

// segment replays one segment, up to where the next one says it ends.
func (r *recovery) segment(f, next *segmentFile) error {
	last, until := next == nil, ^uint64(0)
	if !last {
		until = next.h.prevLast
	}
	if r.started && f.h.prevLast != r.last {
		return &CorruptError{f.path, 40, fmt.Sprintf("it follows frame %d, but the segment before it ends at %d", f.h.prevLast, r.last)}
	}
	if !r.started {
		r.started, r.last = true, f.h.prevLast
	}
	r.epoch = f.h.epoch
	off := int64(headerSize)
	want := f.h.first
	for r.last < until {
		lsn, _, payload, size := readFrame(f.b[off:])
		if size == 0 || lsn != want {
			break
		}
		if lsn >= r.from && r.replay != nil {
			if err := r.replay(lsn, payload); err != nil {
				return fmt.Errorf("journal: %s at offset %d: %w", f.path, off, err)
			}
		}
		r.last = lsn
		want++
		off += int64(size)
	}
	if !last {
		if r.last < until {
			return &CorruptError{f.path, off, fmt.Sprintf("a bad frame, although frames up to %d were durable", until)}
		}
		s := segment{first: f.h.first, last: r.last, bytes: off}
		r.segments = append(r.segments, s)
		if !f.sealed {
			r.unsealed = append(r.unsealed, unsealedSegment{s, next.h.first})
		}
		return nil
	}
	r.segments = append(r.segments, segment{first: f.h.first, last: r.last, bytes: off})
	r.tail, r.tailEnd = &r.segments[len(r.segments)-1], off
	reaches, why := r.evidence(f, off)
	if reaches > r.last {
		if r.o.Durability == Always {
			return &CorruptError{f.path, off, fmt.Sprintf("a bad frame, although %s that frames up to %d were durable", why, reaches)}
		}
		r.o.Log.Warn("the log lost frames at an unclean end and begins a new epoch", "log", f.path, "last", r.last, "reached", reaches)
		r.newEpoch = true
		r.o.Reaches = reaches
	}
	if r.o.Durability != Always && !f.clean && off > headerSize {
		r.newEpoch = true
	}
	if rest := f.b[off:]; len(rest) > 0 && !zero(rest) {
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
	for at := off; at+frameHeader <= int64(len(f.b)); at += 8 {
		if lsn := binary.BigEndian.Uint64(f.b[at+8:]); lsn <= r.last || lsn > r.last+uint64(len(f.b)) {
			continue
		}
		if _, synced, _, size := readFrame(f.b[at:]); size > 0 && synced > reaches {
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
