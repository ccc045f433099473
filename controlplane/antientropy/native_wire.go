package antientropy

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/dnsmesh/dmpd/internal/record"
)

// The frames of the streams, all integers big-endian (docs/format/sync.md):
//
//	| type (1B) | flags (1B) | body length (4B) | padding length (4B) | body | padding, zeros |
//
//	open   | 1 | epoch (16B) | lsn (8B) |                      subscriber: from behind that place
//	rows   | 2 | lsn (8B) | entries |                          put, refresh, tombstone entries as in the rows log (record.md)
//	mark   | 3 | lsn (8B) | cut, ms (8B) | count (8B) | sum (16B) | clock, ms (8B) |
//	ack    | 4 | lsn (8B) |                                    subscriber: everything up to there is durable
//	nack   | 5 | id (16B) |                                    subscriber: it does not take this element
//	end    | 6 | epoch (16B) | lsn (8B) |                      of a fetch or a snapshot: it was whole
//
// Flag 1: the body is a zstd frame.
const (
	frameOpen = 1 + iota
	frameRows
	frameMark
	frameAck
	frameNack
	frameEnd
	frameTypes

	flagZstd = 1
	flagsAll = 1

	frameHead  = 1 + 1 + 4 + 4
	bodyMax    = 384 << 10 // a batch, and the row that closed it: 64 KiB and its names
	paddingMax = 1 << 20   // less than a frame, see padding
	packFrom   = 256       // shorter bodies do not get shorter
	padFrom    = 512       // the smallest size class
	markLen    = 8 + 8 + sumLen + 8
)

var errFrame = errors.New("antientropy: bad frame")

// appendFrame writes a frame; a long body is packed.
func appendFrame(dst []byte, enc *zstd.Encoder, kind byte, body []byte, pad bool) []byte {
	flags := byte(0)
	if enc != nil && len(body) >= packFrom {
		if packed := enc.EncodeAll(body, nil); len(packed) < len(body) {
			body, flags = packed, flagZstd
		}
	}
	padding := 0
	if pad {
		size := padFrom
		for size < frameHead+len(body) {
			size *= 2
		}
		padding = size - frameHead - len(body)
	}
	dst = append(dst, kind, flags)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(body)))
	dst = binary.BigEndian.AppendUint32(dst, uint32(padding))
	dst = append(dst, body...)
	return append(dst, make([]byte, padding)...)
}

// frameReader reads frames. No frame makes it hold more than bodyMax twice, whatever it says of itself.
type frameReader struct {
	r   io.Reader
	dec *zstd.Decoder
	buf []byte
	raw []byte
	n   int64 // bytes read
}

// next gives a frame; its body is valid until the next call. io.EOF at the end of a stream, between frames.
func (f *frameReader) next() (kind byte, body []byte, err error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		return 0, nil, err
	}
	kind = head[0]
	n, padding := binary.BigEndian.Uint32(head[2:]), binary.BigEndian.Uint32(head[6:])
	if kind == 0 || kind >= frameTypes || head[1]&^flagsAll != 0 || n > bodyMax || padding > paddingMax {
		return 0, nil, fmt.Errorf("%w: type %d, flags %x, %d bytes and %d of padding", errFrame, kind, head[1], n, padding)
	}
	if cap(f.buf) < int(n) {
		f.buf = make([]byte, n)
	}
	body = f.buf[:n]
	if _, err := io.ReadFull(f.r, body); err != nil {
		return 0, nil, noEOF(err)
	}
	if _, err := io.CopyN(io.Discard, f.r, int64(padding)); err != nil {
		return 0, nil, noEOF(err)
	}
	f.n += frameHead + int64(n) + int64(padding)
	if head[1]&flagZstd != 0 {
		if f.raw, err = f.dec.DecodeAll(body, f.raw[:0]); err != nil {
			return 0, nil, fmt.Errorf("%w: %w", errFrame, err)
		}
		body = f.raw
	}
	if len(body) > bodyMax {
		return 0, nil, fmt.Errorf("%w: it unpacks to %d bytes", errFrame, len(body))
	}
	return kind, body, nil
}

// ready gives the kind of the next frame if that is here as a whole, so that reading it waits for nobody; else 0.
func (f *frameReader) ready() byte {
	r, ok := f.r.(*bufio.Reader)
	if !ok || r.Buffered() < frameHead {
		return 0
	}
	head, _ := r.Peek(frameHead)
	if uint64(r.Buffered()) < frameHead+uint64(binary.BigEndian.Uint32(head[2:]))+uint64(binary.BigEndian.Uint32(head[6:])) {
		return 0
	}
	return head[0]
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readRows reads the body of a rows frame. A row of a put has its value and the hash that the value has; of a refresh, none. The rows lie in body.
func readRows(body []byte) (lsn uint64, rows []record.Row, err error) {
	if len(body) < 8 {
		return 0, nil, errFrame
	}
	lsn = binary.BigEndian.Uint64(body)
	for body = body[8:]; len(body) > 0; {
		e, n, err := record.ReadEntry(body, 0)
		if err != nil || e.Kind > record.KindTombstone {
			return 0, nil, fmt.Errorf("%w: it holds what is no row", errFrame)
		}
		if e.Kind == record.KindTombstone && e.Row.Add > e.Row.Del {
			return 0, nil, fmt.Errorf("%w: a delete from before the publish", errFrame)
		}
		rows = append(rows, e.Row)
		body = body[n:]
	}
	return lsn, rows, nil
}

// appendRow appends a row as an entry: with its value if it has one and lives, else without.
func appendRow(dst []byte, r *record.Row) []byte {
	e := record.Entry{Kind: record.KindRefresh, Row: *r}
	switch {
	case r.Add <= r.Del:
		e.Kind = record.KindTombstone
	case r.RDATA != nil:
		e.Kind = record.KindPut
	}
	return record.AppendEntry(dst, &e)
}

func placeBody(epoch [16]byte, lsn uint64) []byte {
	return binary.BigEndian.AppendUint64(epoch[:], lsn)
}

func readPlace(body []byte) (epoch [16]byte, lsn uint64, ok bool) {
	if len(body) != 24 {
		return epoch, 0, false
	}
	return [16]byte(body), binary.BigEndian.Uint64(body[16:]), true
}

// mark is how a node stands.
type mark struct {
	lsn     uint64
	cutMs   int64
	root    sum
	clockMs int64
}

func (m *mark) append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, m.lsn)
	dst = binary.BigEndian.AppendUint64(dst, uint64(m.cutMs))
	dst = m.root.append(dst)
	return binary.BigEndian.AppendUint64(dst, uint64(m.clockMs))
}

func readMark(b []byte) (m mark, ok bool) {
	if len(b) != markLen {
		return m, false
	}
	m.lsn, m.cutMs, m.root = binary.BigEndian.Uint64(b), int64(binary.BigEndian.Uint64(b[8:])), readSum(b[16:])
	m.clockMs = int64(binary.BigEndian.Uint64(b[16+sumLen:]))
	return m, m.cutMs >= 0 && m.cutMs%cutMs == 0 && m.clockMs >= 0
}

// helloAnswer is the answer of /v2/sync/hello, JSON so that a person can read it.
type helloAnswer struct {
	Protocol  int    `json:"protocol"`
	Node      string `json:"node"`
	Epoch     string `json:"epoch"` // of its log, 32 hexadecimal digits
	LSN       uint64 `json:"lsn"`
	CutMs     int64  `json:"cut_ms"`
	Count     uint64 `json:"count"` // elements at that moment
	Root      string `json:"root"`  // their sum, 48 digits: count and sum
	ClockMs   int64  `json:"clock_ms"`
	MaxTTLSec int64  `json:"max_ttl_sec"`
	Key       string `json:"key"` // tells whether the trees have one key, and nothing else
}

func (h *helloAnswer) epoch() (e [16]byte, ok bool) {
	b, err := hex.DecodeString(h.Epoch)
	if err != nil || len(b) != len(e) {
		return e, false
	}
	return [16]byte(b), true
}

// An ask is a node of the tree as the asker has it.
type ask struct {
	level, prefix int
	s             sum
}

const askLen = 1 + 2 + sumLen

// What is answered of a node.
const (
	answerEqual    = iota // nothing follows
	answerChildren        // 16 sums
	answerList            // number (4B), elements
	answerLater           // nothing: the answer would be too long; ask again
)

func appendAsks(dst []byte, cut int64, asks []ask) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(cut))
	for _, a := range asks {
		dst = append(dst, byte(a.level))
		dst = binary.BigEndian.AppendUint16(dst, uint16(a.prefix))
		dst = a.s.append(dst)
	}
	return dst
}

func readAsks(b []byte) (cut int64, asks []ask, ok bool) {
	if len(b) < 8 || (len(b)-8)%askLen != 0 || len(b) > 8+asksMax*askLen {
		return 0, nil, false
	}
	cut = int64(binary.BigEndian.Uint64(b))
	for b = b[8:]; len(b) > 0; b = b[askLen:] {
		a := ask{int(b[0]), int(binary.BigEndian.Uint16(b[1:])), readSum(b[3:])}
		if a.level > leafLevel || a.prefix >= 1<<(4*a.level) {
			return 0, nil, false
		}
		asks = append(asks, a)
	}
	return cut, asks, cut >= 0 && cut%cutMs == 0
}
