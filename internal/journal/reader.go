package journal

import (
	"errors"
	"fmt"
	"os"

	"github.com/dnsmesh/dmpd/internal/vfs"
)

// Reader follows a log that another process writes. It maps the segments read-only and never looks beyond what is
// committed, read once for each call. It holds nobody up: what the writer unlinks meanwhile is gone for it (ErrGone), and the
// snapshot has it. Not safe for concurrent use.
type Reader struct {
	fs        vfs.FS
	dir, name string

	file vfs.File
	page vfs.Mapping // header
	body vfs.Mapping // the whole file as far as it was mapped
	h    header
	off  int64
	want uint64 // lsn of the frame at off
	from uint64 // frames below are passed over
}

// listTries is how often a folder without a segment is read: while a writer makes one and unlinks the one before it, a reading may find
// neither (readdir(3) leaves open what it says of names that change meanwhile).
const listTries = 10

// OpenReader stands before lsn from; 0 is the oldest there is. A log without segments is os.ErrNotExist.
func OpenReader(fs vfs.FS, dir, name string, from uint64) (*Reader, error) {
	var firsts []uint64
	for tries := 0; len(firsts) == 0 && tries < listTries; tries++ {
		var err error
		if firsts, err = listSegments(fs, dir, name); err != nil {
			return nil, fmt.Errorf("journal: %w", err)
		}
	}
	if len(firsts) == 0 {
		return nil, fmt.Errorf("journal: no log %s in %s: %w", name, dir, os.ErrNotExist)
	}
	first := firsts[0]
	for _, f := range firsts {
		if f <= from {
			first = f
		}
	}
	r := &Reader{fs: fs, dir: dir, name: name, from: from}
	if err := r.open(first); err != nil {
		return nil, err
	}
	if from > 0 && first > from && r.h.prevLast >= from {
		r.Close()
		return nil, ErrGone
	}
	return r, nil
}

// OpenNewest stands before the first frame that there is of the newest epoch. What older epochs left does not matter to it, and may be damaged.
func OpenNewest(fs vfs.FS, dir, name string) (*Reader, error) {
	firsts, err := listSegments(fs, dir, name)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if len(firsts) == 0 {
		return OpenReader(fs, dir, name, 0)
	}
	r := &Reader{fs: fs, dir: dir, name: name}
	at := len(firsts) - 1
	if err := r.open(firsts[at]); err != nil {
		return nil, err
	}
	for epoch := r.h.epoch; at > 0; at-- {
		if err := r.open(firsts[at-1]); err != nil || r.h.epoch != epoch {
			break
		}
	}
	if err := r.open(firsts[at]); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// open maps a segment and stands at its first frame.
func (r *Reader) open(first uint64) error {
	path := segmentPath(r.dir, r.name, first)
	f, err := r.fs.OpenFile(path, os.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return ErrGone
	}
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	size, err := f.Size()
	if err != nil {
		f.Close()
		return fmt.Errorf("journal: %w", err)
	}
	if size < headerSize {
		f.Close()
		return &CorruptError{path, size, "it ends within its header"}
	}
	page, err := f.Map(0, headerSize, false)
	if err != nil {
		f.Close()
		return fmt.Errorf("journal: %w", err)
	}
	h, err := decodeHeader(path, page.Bytes())
	if err != nil {
		page.Unmap()
		f.Close()
		return err
	}
	r.closeSegment()
	r.file, r.page, r.h = f, page, h
	r.off, r.want = headerSize, h.first
	return nil
}

// Epoch names the run of lsns that this reader follows.
func (r *Reader) Epoch() [16]byte { return r.h.epoch }

// Committed is the last lsn that counts in the segment that is being read: one atomic load. It is at least the last lsn that
// Next gave; while the reader stands in the newest segment it is the log's.
func (r *Reader) Committed() uint64 { return word(r.page.Bytes(), offCommitted).Load() }

// Position is the lsn that the next call of Next will give, if there is one.
func (r *Reader) Position() uint64 { return max(r.want, r.from) }

// Behind says whether there may be something to read: a frame, or another segment.
func (r *Reader) Behind() bool {
	b := r.page.Bytes()
	return int64(word(b, offEnd).Load()) > r.off || word(b, offNext).Load() != 0
}

// Next gives the next frame; ok is false when there is none yet. The payload is valid until the next call. ErrGone: the frames
// were unlinked, take the snapshot; ErrEpoch: the writer began a new epoch, and the next call gives its first frame.
func (r *Reader) Next() (lsn uint64, payload []byte, ok bool, err error) {
	for {
		// `next` before `end`: a segment with another one behind it grows no more.
		b := r.page.Bytes()
		next := word(b, offNext).Load()
		end := int64(word(b, offEnd).Load())
		if r.off < end {
			lsn, payload, err = r.frame(end)
			if err != nil || lsn >= r.from {
				return lsn, payload, err == nil, err
			}
			continue
		}
		if next == 0 {
			return 0, nil, false, nil
		}
		epoch := r.h.epoch
		last := word(b, offCommitted).Load()
		if err := r.open(next); err != nil {
			return 0, nil, false, err
		}
		if r.h.epoch != epoch {
			return 0, nil, false, ErrEpoch
		}
		if r.h.prevLast != last {
			return 0, nil, false, ErrGone
		}
	}
}

// Scan gives the frames from lsn from on, also those behind what is committed: what a writer that is gone may have left, and the next
// one will find. It is for the moment when nobody writes; beside a writer it may end early. What fn is given is valid until it returns.
func Scan(fs vfs.FS, dir, name string, from uint64, fn func(lsn uint64, payload []byte) error) error {
	r, err := OpenReader(fs, dir, name, from)
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		lsn, payload, ok, err := r.Next()
		if errors.Is(err, ErrEpoch) {
			continue
		}
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if err := fn(lsn, payload); err != nil {
			return err
		}
	}
	if word(r.page.Bytes(), offSealed).Load() == sealedBad {
		return nil // a group whose sync failed never counts
	}
	if err := r.remap(segmentPath(dir, name, r.h.first), r.off); err != nil {
		return err
	}
	for {
		lsn, _, payload, size := readFrame(r.body.Bytes()[r.off:], r.h.seed)
		if size == 0 || lsn != r.want {
			return nil
		}
		r.off += int64(size)
		r.want++
		if lsn < from {
			continue
		}
		if err := fn(lsn, payload); err != nil {
			return err
		}
	}
}

// frame reads the frame at off, which must end at or before end.
func (r *Reader) frame(end int64) (uint64, []byte, error) {
	path := segmentPath(r.dir, r.name, r.h.first)
	if r.body == nil || int64(len(r.body.Bytes())) < end {
		if err := r.remap(path, end); err != nil {
			return 0, nil, err
		}
	}
	lsn, _, payload, size := readFrame(r.body.Bytes()[r.off:end], r.h.seed)
	if size == 0 || lsn != r.want {
		return 0, nil, &CorruptError{path, r.off, "a bad frame, although the header says that it is committed"}
	}
	r.off += int64(size)
	r.want++
	return lsn, payload, nil
}

func (r *Reader) remap(path string, end int64) error {
	size, err := r.file.Size()
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if size < end {
		return &CorruptError{path, size, fmt.Sprintf("the file ends here, although the header says that frames up to %d are committed", end)}
	}
	body, err := r.file.Map(0, int(size), false)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if r.body != nil {
		r.body.Unmap()
	}
	r.body = body
	return nil
}

func (r *Reader) closeSegment() {
	if r.file == nil {
		return
	}
	if r.body != nil {
		r.body.Unmap()
	}
	r.page.Unmap()
	r.file.Close()
	r.file, r.page, r.body = nil, nil, nil
}

// Close unmaps what is mapped.
func (r *Reader) Close() { r.closeSegment() }
