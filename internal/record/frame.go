package record

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The payload of a frame of the rows log, all integers big-endian:
//
//	+-------------+---------+---------+-----
//	| feedMs (8B) | entry   | entry   | ...
//	+-------------+---------+---------+-----
//
// and an entry, which begins with its kind:
//
//	put        | 1 | row | rdata length (2B) | rdata |
//	refresh    | 2 | row |
//	tombstone  | 3 | row |
//	expire     | 4 | cut, Unix ms (8B) |
//	outcome    | 5 | request's lsn (8B) | code (1B) | applied (4B) |
//	taken      | 6 | requests epoch (16B) | lsn (8B) | state epoch (16B) | lsn (8B) |
//	serial     | 7 | serial (4B) | zone length (1B) | zone, wire form |
//
//	row        | flags (1B) | add (8B) | del (8B) | expMs (8B) | origin (8B) | hash (32B) | name length (1B) | name |
//
// One feed stamp holds for the whole frame; its rows are sorted by name and hash (cluster.md 17.3). An entry says what is
// true from then on; what it says of an element replaces all that was said of it before.

// EntryKind tells the entries apart.
type EntryKind uint8

const (
	KindPut       EntryKind = 1 + iota // Row with RDATA
	KindRefresh                        // Row without RDATA: a new life for a value that is there
	KindTombstone                      // Row without RDATA: deleted
	KindExpire                         // CutMs: everything that ended at or before it is gone
	KindOutcome                        // LSN, Code, Applied: what became of a request
	KindTaken                          // Requests, State
	KindSerial                         // Zone, Serial
)

// Entry is one entry of a frame; which fields count depends on Kind.
type Entry struct {
	Kind    EntryKind
	Row     Row
	CutMs   int64
	LSN     uint64
	Code    Code
	Applied uint32

	RequestsEpoch [16]byte
	Requests      uint64
	StateEpoch    [16]byte
	State         uint64

	Zone   []byte
	Serial uint32
}

// ErrFormat says that bytes are no frame, entry or request.
var ErrFormat = errors.New("record: bad format")

const (
	nameMax  = 255       // RFC 1035 2.3.4
	rdataMax = 1<<16 - 1 // RFC 1035 3.2.1
)

// AppendFrame writes a frame's payload.
func AppendFrame(dst []byte, feedMs int64, es []Entry) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(feedMs))
	for i := range es {
		dst = AppendEntry(dst, &es[i])
	}
	return dst
}

// AppendEntry writes one entry.
func AppendEntry(dst []byte, e *Entry) []byte {
	dst = append(dst, byte(e.Kind))
	switch e.Kind {
	case KindPut:
		dst = appendRow(dst, &e.Row)
		if len(e.Row.RDATA) > rdataMax {
			panic("record: RDATA beyond its length field") // every way in has a lower limit
		}
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(e.Row.RDATA)))
		dst = append(dst, e.Row.RDATA...)
	case KindRefresh, KindTombstone:
		dst = appendRow(dst, &e.Row)
	case KindExpire:
		dst = binary.BigEndian.AppendUint64(dst, uint64(e.CutMs))
	case KindOutcome:
		dst = binary.BigEndian.AppendUint64(dst, e.LSN)
		dst = append(dst, byte(e.Code))
		dst = binary.BigEndian.AppendUint32(dst, e.Applied)
	case KindTaken:
		dst = append(dst, e.RequestsEpoch[:]...)
		dst = binary.BigEndian.AppendUint64(dst, e.Requests)
		dst = append(dst, e.StateEpoch[:]...)
		dst = binary.BigEndian.AppendUint64(dst, e.State)
	case KindSerial:
		dst = binary.BigEndian.AppendUint32(dst, e.Serial)
		dst = append(dst, byte(len(e.Zone)))
		dst = append(dst, e.Zone...)
	default:
		panic("record: an entry of no kind")
	}
	return dst
}

func appendRow(dst []byte, r *Row) []byte {
	if len(r.Name) > nameMax {
		panic("record: a name beyond its length field")
	}
	dst = append(dst, r.Flags)
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Add))
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Del))
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.ExpMs))
	dst = append(dst, r.Origin[:]...)
	dst = append(dst, r.Hash[:]...)
	dst = append(dst, byte(len(r.Name)))
	return append(dst, r.Name...)
}

// ReadFrame calls f for each entry of a payload. What an entry points to lies in p. A payload that is not well formed to its
// last byte is an error, possibly after some calls: check with f that does nothing first if that matters.
func ReadFrame(p []byte, f func(feedMs int64, e *Entry) error) error {
	r := reader{b: p}
	feedMs := int64(r.u64())
	if r.failed || feedMs < 0 {
		return fmt.Errorf("%w: a frame of %d bytes", ErrFormat, len(p))
	}
	for len(r.b) > 0 {
		at := len(p) - len(r.b)
		var e Entry
		if !r.entry(&e, feedMs) {
			return fmt.Errorf("%w: entry at %d", ErrFormat, at)
		}
		if err := f(feedMs, &e); err != nil {
			return err
		}
	}
	return nil
}

// ReadEntry reads the entry that p begins with and says how long it is; what it points to lies in p.
func ReadEntry(p []byte, feedMs int64) (e Entry, n int, err error) {
	r := reader{b: p}
	if !r.entry(&e, feedMs) {
		return Entry{}, 0, fmt.Errorf("%w: an entry", ErrFormat)
	}
	return e, len(p) - len(r.b), nil
}

// reader takes bytes from the front; a short read makes it failed and gives zeros.
type reader struct {
	b      []byte
	failed bool
}

func (r *reader) take(n int) []byte {
	if r.failed || n < 0 || n > len(r.b) {
		r.failed = true
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) u8() uint8 {
	if p := r.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if p := r.take(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if p := r.take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if p := r.take(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

func (r *reader) entry(e *Entry, feedMs int64) bool {
	e.Kind = EntryKind(r.u8())
	switch e.Kind {
	case KindPut:
		r.row(&e.Row, feedMs)
		e.Row.RDATA = r.take(int(r.u16()))
		return !r.failed && validRDATA(e.Row.RDATA)
	case KindRefresh, KindTombstone:
		r.row(&e.Row, feedMs)
	case KindExpire:
		e.CutMs = int64(r.u64())
	case KindOutcome:
		e.LSN, e.Code, e.Applied = r.u64(), Code(r.u8()), r.u32()
		return !r.failed && e.Code < codes
	case KindTaken:
		copy(e.RequestsEpoch[:], r.take(16))
		e.Requests = r.u64()
		copy(e.StateEpoch[:], r.take(16))
		e.State = r.u64()
	case KindSerial:
		e.Serial = r.u32()
		e.Zone = r.take(int(r.u8()))
		return !r.failed && validName(e.Zone)
	default:
		return false
	}
	return !r.failed
}

func (r *reader) row(row *Row, feedMs int64) {
	row.FeedMs = feedMs
	row.Flags = r.u8()
	row.Add, row.Del = HLC(r.u64()), HLC(r.u64())
	row.ExpMs = int64(r.u64())
	copy(row.Origin[:], r.take(8))
	copy(row.Hash[:], r.take(32))
	row.Name = r.take(int(r.u8()))
	if !r.failed && (!validName(row.Name) || row.ExpMs < 0) {
		r.failed = true
	}
}

// validName checks the wire form: labels of 1 to 63 bytes, lower case, one root byte at the end, 255 bytes at most.
func validName(name []byte) bool {
	if len(name) == 0 || len(name) > nameMax {
		return false
	}
	i := 0
	for name[i] != 0 {
		n := int(name[i])
		if n > 63 || i+1+n >= len(name) {
			return false
		}
		for _, c := range name[i+1 : i+1+n] {
			if 'A' <= c && c <= 'Z' {
				return false
			}
		}
		i += 1 + n
	}
	return i == len(name)-1
}

// validRDATA checks that the character-strings fill the RDATA, and that they are cut as AppendRDATA cuts them.
func validRDATA(rdata []byte) bool {
	if len(rdata) == 0 {
		return false
	}
	if len(rdata) == 1 {
		return rdata[0] == 0
	}
	for len(rdata) > 0 {
		n := int(rdata[0])
		if n == 0 || 1+n > len(rdata) || 1+n < len(rdata) && n != 255 {
			return false
		}
		rdata = rdata[1+n:]
	}
	return true
}
