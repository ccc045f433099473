// Package journal is an append-only log of frames in segment files: one writer, any number of readers in other processes that
// map the files, crash recovery that tells a torn tail from damage. design.md part 2 has what the logs are for,
// docs/format/journal.md the pictures.
package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"github.com/dnsmesh/dmpd/internal/vfs"
)

// A segment is the file NAME-<first lsn, 16 hex>.log: a header page, then frames from offset 4096 on.
//
// The header page, integers big-endian, written once, before the file has its name:
//
//	 0  magic "dmplog\r\n"   8
//	 8  format               2
//	10  lowest reader        2   a reader of a lower format number must not read it
//	12  durability           1   0 always, 1 interval, 2 os: what a committed frame here was worth
//	13  zero                 3
//	16  epoch               16
//	32  first lsn            8   of the first frame here
//	40  previous last lsn    8   the last frame that counts of the segment before this one
//	48  CRC-32C of 0..48     4   also the seed of this segment's frames
//
// and, stored through a shared mapping as words in the machine's byte order:
//
//	64  committed lsn        8
//	72  committed end        8   offset behind the last committed frame
//	80  sealed               8   0: being written; or full; or ended by an I/O error: then only what is committed counts
//	88  next first lsn       8   of the segment that follows a sealed one; 0 until that one exists
//	96  clean                8   the writer closed it in order
//
// A frame, integers big-endian, begins at a multiple of 8:
//
//	+----------+----------+-----------+--------------+--- ... ---+--- padding to 8 ---+
//	| crc (4B) | len (4B) | lsn  (8B) | synced  (8B) | payload   | zeros              |
//	+----------+----------+-----------+--------------+--- ... ---+--------------------+
//
// crc is CRC-32C, begun with the header's, of everything after it up to the payload's end: a frame of another segment, or one
// that a stranger put into a value without knowing the epoch, is none here. len counts the payload; synced is the lsn known
// durable when the frame was written. A frame is valid if and only if (1) len <= FrameMax and it ends inside the file, (2) crc
// matches, (3) lsn is one more than the last, or, for the first frame, the header's.
//
// Nothing is truncated or written twice. A writer that starts goes on in a new segment, whose header says where the one before
// it ends. So what a crash left behind the last valid frame is never read, nor are the frames of a group whose sync failed.

const (
	magic        = "dmplog\r\n"
	formatNumber = 1
	lowestReader = 1

	headerSize   = 4096
	headerFixed  = 48
	offCommitted = 64
	offEnd       = 72
	offSealed    = 80
	offNext      = 88
	offClean     = 96

	frameHeader = 24
	// FrameMax bounds a payload: the largest group that a committer forms, and what a reader may have to hold.
	FrameMax = 16 << 20

	growStep = 256 << 10 // the file grows by that much, so that a sync need not write a new length
)

// What the sealed and clean words hold, far apart, so that a flipped bit makes none of them of another.
const (
	open      uint64 = 0
	sealed    uint64 = 0x5ea1ed_00_f0110ed5
	sealedBad uint64 = 0x5ea1ed_ff_0badd15c
	clean     uint64 = 0xc1ea_0000_0000_c1ea
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Errors of this package.
var (
	ErrCorrupt = errors.New("journal: damaged")
	ErrFormat  = errors.New("journal: written by another version")
	ErrDropped = errors.New("journal: the group could not be made durable and was dropped")
	ErrGone    = errors.New("journal: the frames are gone, take the snapshot")
	ErrEpoch   = errors.New("journal: the log began a new epoch")
	ErrTooBig  = errors.New("journal: payload larger than a frame may be")
)

// CorruptError says where a log is damaged. It is ErrCorrupt.
type CorruptError struct {
	File   string
	Offset int64
	Why    string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("journal: %s is damaged at offset %d: %s", e.File, e.Offset, e.Why)
}

func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

type header struct {
	epoch      [16]byte
	first      uint64
	prevLast   uint64
	durability Durability
	seed       uint32 // set by encode and decodeHeader
}

func (h *header) encode() []byte {
	b := make([]byte, headerSize)
	copy(b, magic)
	binary.BigEndian.PutUint16(b[8:], formatNumber)
	binary.BigEndian.PutUint16(b[10:], lowestReader)
	b[12] = byte(h.durability)
	copy(b[16:], h.epoch[:])
	binary.BigEndian.PutUint64(b[32:], h.first)
	binary.BigEndian.PutUint64(b[40:], h.prevLast)
	h.seed = crc32.Checksum(b[:headerFixed], castagnoli)
	binary.BigEndian.PutUint32(b[48:], h.seed)
	return b
}

func decodeHeader(file string, b []byte) (h header, err error) {
	if len(b) < headerSize {
		return h, &CorruptError{file, int64(len(b)), "it ends within its header"}
	}
	if string(b[:8]) != magic {
		return h, &CorruptError{file, 0, "it does not begin like a log"}
	}
	if low := binary.BigEndian.Uint16(b[10:]); low > formatNumber {
		return h, fmt.Errorf("%w: %s has format %d, which needs a reader of %d; this one reads %d", ErrFormat, file, binary.BigEndian.Uint16(b[8:]), low, formatNumber)
	}
	if h.seed = crc32.Checksum(b[:headerFixed], castagnoli); h.seed != binary.BigEndian.Uint32(b[48:]) {
		return h, &CorruptError{file, 0, "the header's checksum is wrong"}
	}
	copy(h.epoch[:], b[16:])
	h.first = binary.BigEndian.Uint64(b[32:])
	h.prevLast = binary.BigEndian.Uint64(b[40:])
	h.durability = Durability(b[12])
	if h.first == 0 || h.prevLast >= h.first || h.durability > OS || b[13]|b[14]|b[15] != 0 {
		return h, &CorruptError{file, 12, "the header makes no sense"}
	}
	return h, nil
}

// word is an atomic in a mapped page.
func word(page []byte, off int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&page[off]))
}

func appendFrame(dst []byte, seed uint32, lsn, synced uint64, payload []byte) []byte {
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(payload)))
	dst = binary.BigEndian.AppendUint64(dst, lsn)
	dst = binary.BigEndian.AppendUint64(dst, synced)
	dst = append(dst, payload...)
	binary.BigEndian.PutUint32(dst[at:], crc32.Update(seed, castagnoli, dst[at+4:]))
	for (len(dst)-at)%8 != 0 {
		dst = append(dst, 0)
	}
	return dst
}

func frameSize(payload int) int { return (frameHeader + payload + 7) &^ 7 }

// readFrame reads the frame that b begins with. size is what it takes up, 0 if it is not valid; whether its lsn fits is the
// caller's to judge.
func readFrame(b []byte, seed uint32) (lsn, synced uint64, payload []byte, size int) {
	if len(b) < frameHeader {
		return 0, 0, nil, 0
	}
	n := binary.BigEndian.Uint32(b[4:])
	if n > FrameMax || frameSize(int(n)) > len(b) {
		return 0, 0, nil, 0
	}
	end := frameHeader + int(n)
	if crc32.Update(seed, castagnoli, b[4:end]) != binary.BigEndian.Uint32(b) {
		return 0, 0, nil, 0
	}
	return binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:]), b[frameHeader:end:end], frameSize(int(n))
}

// unnamed ends the name of a segment that is being made.
const unnamed = ".new"

func segmentName(name string, first uint64) string { return fmt.Sprintf("%s-%016x.log", name, first) }

// listSegments gives the first lsns of a log's segments, in order.
func listSegments(fs vfs.FS, dir, name string) ([]uint64, error) {
	files, err := fs.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var firsts []uint64
	for _, f := range files {
		hex, ok := strings.CutPrefix(f, name+"-")
		if !ok {
			continue
		}
		if hex, ok = strings.CutSuffix(hex, ".log"); !ok || len(hex) != 16 {
			continue
		}
		if first, err := strconv.ParseUint(hex, 16, 64); err == nil {
			firsts = append(firsts, first)
		}
	}
	sort.Slice(firsts, func(i, j int) bool { return firsts[i] < firsts[j] })
	return firsts, nil
}

func segmentPath(dir, name string, first uint64) string {
	return filepath.Join(dir, segmentName(name, first))
}
