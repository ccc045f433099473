// Package snapshot is an immutable, memory-mapped image of the rows log up to an lsn: every row in feed order, with indexes. It is
// made by merging the last one with the log (merge.go), never by walking live data, and never edited.
// docs/format/snapshot.md has the picture.
package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

// The file NAME-<lsn, 16 hex>.snap, all integers big-endian: a header page, then the sections, each beginning at a multiple of 8.
//
//	   0  magic "dmpsnap\n"   8
//	   8  format              2
//	  10  lowest reader       2
//	  12  zero                4
//	  16  lsn                 8   of the last frame that is in it
//	  24  epoch of the log   16
//	  40  feed, ms            8   stamp of that frame
//	  48  cut, ms             8   the last one; what had ended by then is left out
//	  56  hybrid clock        8   no stamp in it is later
//	  64  requests epoch     16   \
//	  80  requests taken      8    | positions taken of the control plane's logs
//	  88  state epoch        16    |
//	 104  state taken         8   /
//	 112  serial              4
//	 116  rows                8
//	 124  tombstones          8   of those
//	 132  zone length         1
//	 133  zone              255
//	 512  sections            6 x (offset 8, length 8, CRC-32C 4, zero 4)
//	4092  CRC-32C of the page up to here
//
// Sections: (0) rows in feed order, each | feed (8B) | element id (16B) | put or tombstone entry as in a rows frame |;
// (1) their offsets in section 0, 8 bytes each, so that a row has a number; (2) numbers, 4 bytes each, by name and hash;
// (3) numbers by element id; (4) numbers by expiry; (5) outcomes of the last requests, each lsn (8B), code (1B), applied (4B).
const (
	magic        = "dmpsnap\n"
	formatNumber = 1
	lowestReader = 1
	headerSize   = 4096
	offSections  = 512
	offHeaderCRC = headerSize - 4
	rowFixed     = 8 + 16

	secRows     = 0
	secOrder    = 1
	secName     = 2
	secID       = 3
	secExp      = 4
	secOutcomes = 5
	sections    = 6

	// OutcomesMax is how many requests' outcomes a snapshot keeps: far more than wait for one at any time.
	OutcomesMax  = 1 << 16
	outcomeSize  = 8 + 1 + 4
	rowsMax      = 1<<32 - 1 // numbers have 4 bytes
	sectionWidth = 8 + 8 + 4 + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Errors of this package.
var (
	ErrCorrupt = errors.New("snapshot: damaged")
	ErrFormat  = errors.New("snapshot: written by another version")
)

// CorruptError says where a snapshot is damaged. It is ErrCorrupt.
type CorruptError struct {
	File   string
	Offset int64
	Why    string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("snapshot: %s is damaged at offset %d: %s", e.File, e.Offset, e.Why)
}

func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// Meta is what a snapshot knows beside its rows.
type Meta struct {
	LSN        uint64
	Epoch      [16]byte
	FeedMs     int64
	CutMs      int64
	HLC        record.HLC
	Rows       int
	Tombstones int
	Zone       []byte // whose serial it is
	Serial     uint32

	RequestsEpoch [16]byte
	Requests      uint64
	StateEpoch    [16]byte
	State         uint64
}

// Outcome is what became of a request.
type Outcome struct {
	LSN     uint64
	Code    record.Code
	Applied uint32
}

// Snapshot is an open one. Safe for concurrent use until Close.
type Snapshot struct {
	Meta
	path    string
	file    vfs.File
	mapping vfs.Mapping
	sec     [sections][]byte
	crc     [sections]uint32
	off     [sections]int64
}

// Path names the file of a log's snapshot at an lsn.
func Path(dir, name string, lsn uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%s-%016x.snap", name, lsn))
}

// List gives the lsns of a log's snapshots, oldest first.
func List(fs vfs.FS, dir, name string) ([]uint64, error) {
	files, err := fs.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	var lsns []uint64
	for _, f := range files {
		hex, ok := strings.CutPrefix(f, name+"-")
		if !ok {
			continue
		}
		if hex, ok = strings.CutSuffix(hex, ".snap"); !ok || len(hex) != 16 {
			continue
		}
		if lsn, err := strconv.ParseUint(hex, 16, 64); err == nil {
			lsns = append(lsns, lsn)
		}
	}
	sort.Slice(lsns, func(i, j int) bool { return lsns[i] < lsns[j] })
	return lsns, nil
}

// Latest opens the newest snapshot of a log; nil if there is none. A damaged one is an error: an older one would be less than
// what was acknowledged.
func Latest(fs vfs.FS, dir, name string) (*Snapshot, error) {
	lsns, err := List(fs, dir, name)
	if err != nil || len(lsns) == 0 {
		return nil, err
	}
	return Open(fs, Path(dir, name, lsns[len(lsns)-1]))
}

// Open maps a snapshot and checks its header and that its sections lie in the file. Check reads it whole.
func Open(fs vfs.FS, path string) (*Snapshot, error) {
	f, err := fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	s := &Snapshot{path: path, file: f}
	if err := s.open(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Snapshot) corrupt(off int64, format string, args ...any) error {
	return &CorruptError{s.path, off, fmt.Sprintf(format, args...)}
}

func (s *Snapshot) open() error {
	size, err := s.file.Size()
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if size < headerSize {
		return s.corrupt(size, "it ends within its header")
	}
	if s.mapping, err = s.file.Map(0, int(size), false); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	b := s.mapping.Bytes()
	if string(b[:8]) != magic {
		return s.corrupt(0, "it does not begin like a snapshot")
	}
	if low := binary.BigEndian.Uint16(b[10:]); low > formatNumber {
		return fmt.Errorf("%w: %s has format %d, which needs a reader of %d; this one reads %d", ErrFormat, s.path, binary.BigEndian.Uint16(b[8:]), low, formatNumber)
	}
	if crc32.Checksum(b[:offHeaderCRC], castagnoli) != binary.BigEndian.Uint32(b[offHeaderCRC:]) {
		return s.corrupt(0, "the header's checksum is wrong")
	}
	s.Meta = decodeMeta(b)
	for i := range s.sec {
		at := offSections + i*sectionWidth
		off, n := binary.BigEndian.Uint64(b[at:]), binary.BigEndian.Uint64(b[at+8:])
		if off > uint64(size) || n > uint64(size)-off {
			return s.corrupt(int64(at), "section %d, %d bytes from %d on, does not lie in the file of %d bytes", i, n, off, size)
		}
		s.sec[i] = b[off : off+n : off+n]
		s.off[i] = int64(off)
		s.crc[i] = binary.BigEndian.Uint32(b[at+16:])
	}
	for i, width := range [sections]int{secOrder: 8, secName: 4, secID: 4, secExp: 4} {
		if width > 0 && len(s.sec[i]) != width*s.Rows {
			return s.corrupt(s.off[i], "section %d has %d bytes for %d rows", i, len(s.sec[i]), s.Rows)
		}
	}
	if len(s.sec[secOutcomes])%outcomeSize != 0 {
		return s.corrupt(s.off[secOutcomes], "the outcomes have a length that cannot be")
	}
	return nil
}

func decodeMeta(b []byte) (m Meta) {
	m.LSN = binary.BigEndian.Uint64(b[16:])
	copy(m.Epoch[:], b[24:])
	m.FeedMs = int64(binary.BigEndian.Uint64(b[40:]))
	m.CutMs = int64(binary.BigEndian.Uint64(b[48:]))
	m.HLC = record.HLC(binary.BigEndian.Uint64(b[56:]))
	copy(m.RequestsEpoch[:], b[64:])
	m.Requests = binary.BigEndian.Uint64(b[80:])
	copy(m.StateEpoch[:], b[88:])
	m.State = binary.BigEndian.Uint64(b[104:])
	m.Serial = binary.BigEndian.Uint32(b[112:])
	m.Rows = int(min(binary.BigEndian.Uint64(b[116:]), rowsMax))
	m.Tombstones = int(min(binary.BigEndian.Uint64(b[124:]), rowsMax))
	m.Zone = bytes.Clone(b[133 : 133+int(b[132])])
	return m
}

func (m *Meta) encode(b []byte) {
	copy(b, magic)
	binary.BigEndian.PutUint16(b[8:], formatNumber)
	binary.BigEndian.PutUint16(b[10:], lowestReader)
	binary.BigEndian.PutUint64(b[16:], m.LSN)
	copy(b[24:], m.Epoch[:])
	binary.BigEndian.PutUint64(b[40:], uint64(m.FeedMs))
	binary.BigEndian.PutUint64(b[48:], uint64(m.CutMs))
	binary.BigEndian.PutUint64(b[56:], uint64(m.HLC))
	copy(b[64:], m.RequestsEpoch[:])
	binary.BigEndian.PutUint64(b[80:], m.Requests)
	copy(b[88:], m.StateEpoch[:])
	binary.BigEndian.PutUint64(b[104:], m.State)
	binary.BigEndian.PutUint32(b[112:], m.Serial)
	binary.BigEndian.PutUint64(b[116:], uint64(m.Rows))
	binary.BigEndian.PutUint64(b[124:], uint64(m.Tombstones))
	b[132] = byte(len(m.Zone))
	copy(b[133:], m.Zone)
}

// Close unmaps it. Rows that it gave must not be used afterwards.
func (s *Snapshot) Close() error {
	if s.mapping != nil {
		s.mapping.Unmap()
		s.mapping = nil
	}
	return s.file.Close()
}

// Release gives back the memory that reading it took.
func (s *Snapshot) Release() { s.mapping.Release() }

// Path is the file's.
func (s *Snapshot) Path() string { return s.path }

// Size is the file's length.
func (s *Snapshot) Size() int64 { return int64(len(s.mapping.Bytes())) }

// Check reads every byte and compares checksums, and reads every row.
func (s *Snapshot) Check() error {
	if err := s.CheckSums(); err != nil {
		return err
	}
	return s.Each(func(record.ID, *record.Row) bool { return true })
}

// CheckSums reads every byte and compares checksums: enough for whoever reads the rows next.
func (s *Snapshot) CheckSums() error {
	for i := range s.sec {
		if crc32.Checksum(s.sec[i], castagnoli) != s.crc[i] {
			return s.corrupt(s.off[i], "the checksum of section %d is wrong", i)
		}
	}
	return nil
}

// Row reads row number i in feed order. It points into the mapping.
func (s *Snapshot) Row(i int) (record.Row, error) {
	_, r, _, err := s.row(i)
	return r, err
}

// raw gives the bytes of row i from its feed stamp on, possibly with more behind it.
func (s *Snapshot) raw(i int) ([]byte, error) {
	off := binary.BigEndian.Uint64(s.sec[secOrder][8*i:])
	if n := uint64(len(s.sec[secRows])); off > n || n-off < rowFixed {
		return nil, s.corrupt(s.off[secOrder]+int64(8*i), "row %d begins outside its section", i)
	}
	return s.sec[secRows][off:], nil
}

func (s *Snapshot) row(i int) (id record.ID, r record.Row, size int, err error) {
	b, err := s.raw(i)
	if err != nil {
		return id, r, 0, err
	}
	e, n, err := record.ReadEntry(b[rowFixed:], int64(binary.BigEndian.Uint64(b)))
	if err != nil || e.Kind != record.KindPut && e.Kind != record.KindTombstone {
		return id, r, 0, s.corrupt(s.off[secRows], "row %d cannot be read", i)
	}
	copy(id[:], b[8:])
	return id, e.Row, rowFixed + n, nil
}

// Each calls f for every row in feed order until it gives false.
func (s *Snapshot) Each(f func(id record.ID, r *record.Row) bool) error { return s.from(0, f) }

// AfterFeed calls f for the rows whose feed stamp is above feedMs, in feed order, until it gives false.
func (s *Snapshot) AfterFeed(feedMs int64, f func(id record.ID, r *record.Row) bool) error {
	var failed error
	i := sort.Search(s.Rows, func(i int) bool {
		b, err := s.raw(i)
		if err != nil {
			failed = err
			return true
		}
		return int64(binary.BigEndian.Uint64(b)) > feedMs
	})
	if failed != nil {
		return failed
	}
	return s.from(i, f)
}

func (s *Snapshot) from(i int, f func(id record.ID, r *record.Row) bool) error {
	for last := int64(-1); i < s.Rows; i++ {
		id, r, _, err := s.row(i)
		if err != nil {
			return err
		}
		if r.FeedMs < last {
			return s.corrupt(s.off[secOrder]+int64(8*i), "row %d is not in feed order", i)
		}
		last = r.FeedMs
		if !f(id, &r) {
			return nil
		}
	}
	return nil
}

func number(sec []byte, i int) int { return int(binary.BigEndian.Uint32(sec[4*i:])) }

// Name calls f for the rows at a name (wire form, lower case), tombstones included, sorted by hash, until it gives false.
func (s *Snapshot) Name(name []byte, f func(r *record.Row) bool) error {
	at, err := s.search(secName, func(_ record.ID, r *record.Row) bool { return bytes.Compare(r.Name, name) >= 0 })
	for ; err == nil && at < s.Rows; at++ {
		var r record.Row
		if _, r, _, err = s.numbered(secName, at); err != nil || !bytes.Equal(r.Name, name) || !f(&r) {
			break
		}
	}
	return err
}

// Find looks for the row of a name (wire form, lower case) with a value's hash. It points into the mapping.
func (s *Snapshot) Find(name []byte, hash *[32]byte) (r record.Row, ok bool, err error) {
	at, err := s.search(secName, func(_ record.ID, r *record.Row) bool {
		c := bytes.Compare(r.Name, name)
		return c > 0 || c == 0 && bytes.Compare(r.Hash[:], hash[:]) >= 0
	})
	if err != nil || at == s.Rows {
		return record.Row{}, false, err
	}
	_, r, _, err = s.numbered(secName, at)
	if err != nil || !bytes.Equal(r.Name, name) || r.Hash != *hash {
		return record.Row{}, false, err
	}
	return r, true, nil
}

// ByID finds a row by its element id.
func (s *Snapshot) ByID(id record.ID) (record.Row, bool, error) {
	at, err := s.search(secID, func(got record.ID, _ *record.Row) bool { return bytes.Compare(got[:], id[:]) >= 0 })
	if err != nil || at == s.Rows {
		return record.Row{}, false, err
	}
	got, r, _, err := s.numbered(secID, at)
	return r, err == nil && got == id, err
}

// ByExpiry calls f for the rows in the order of their end until it gives false.
func (s *Snapshot) ByExpiry(f func(r *record.Row) bool) error {
	for at := range s.Rows {
		_, r, _, err := s.numbered(secExp, at)
		if err != nil {
			return err
		}
		if !f(&r) {
			return nil
		}
	}
	return nil
}

func (s *Snapshot) numbered(sec, at int) (record.ID, record.Row, int, error) {
	i := number(s.sec[sec], at)
	if i >= s.Rows {
		return record.ID{}, record.Row{}, 0, s.corrupt(s.off[sec]+int64(4*at), "it names row %d of %d", i, s.Rows)
	}
	return s.row(i)
}

func (s *Snapshot) search(sec int, atOrAfter func(record.ID, *record.Row) bool) (int, error) {
	var failed error
	at := sort.Search(s.Rows, func(at int) bool {
		id, r, _, err := s.numbered(sec, at)
		if err != nil {
			failed = err
			return true
		}
		return atOrAfter(id, &r)
	})
	return at, failed
}

// Outcome finds what became of a request.
func (s *Snapshot) Outcome(lsn uint64) (o Outcome, ok bool) {
	b := s.sec[secOutcomes]
	n := len(b) / outcomeSize
	i := sort.Search(n, func(i int) bool { return binary.BigEndian.Uint64(b[i*outcomeSize:]) >= lsn })
	if i == n {
		return o, false
	}
	o = decodeOutcome(b[i*outcomeSize:])
	return o, o.LSN == lsn
}

func decodeOutcome(b []byte) Outcome {
	return Outcome{binary.BigEndian.Uint64(b), record.Code(b[8]), binary.BigEndian.Uint32(b[9:])}
}

// readAll is for files that are small.
func readAll(fs vfs.FS, path string) ([]byte, error) {
	f, err := fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); err != nil && !(errors.Is(err, io.EOF) && n == len(b)) {
		return nil, err
	}
	return b, nil
}
