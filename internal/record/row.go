// Package record holds the formats of what a node stores: rows, the frames and requests that carry them between the
// planes, and the DMP records that clients sign (spec records.md). docs/format/record.md has the pictures.
package record

import (
	"bytes"
	"cmp"
	"crypto/sha256"
)

// HLC is a hybrid clock: Unix milliseconds in the upper 48 bits, a counter in the lower 16. Stamps of one node grow
// strictly; stamps of two nodes are ordered by time as far as their clocks agree.
type HLC uint64

// HLCAheadMs is how far ahead of the wall clock a stamp may be that comes from elsewhere (design.md, Prepare and commit).
const HLCAheadMs = 60_000

// HLCAt is the first stamp of a millisecond.
func HLCAt(ms int64) HLC { return HLC(uint64(max(ms, 0)) << 16) }

// Ms is the stamp's time.
func (h HLC) Ms() int64 { return int64(h >> 16) }

// Next gives the stamp after h that is not before the wall clock.
func (h HLC) Next(wallMs int64) HLC { return max(HLCAt(wallMs), h+1) }

// ID names an element, which is a name with one value: the first 16 bytes of SHA-256(name in wire form ‖ SHA-256 of the value). A row
// without its value, a delete that a node heard of from another one above all, has the same id as the row with it.
type ID [16]byte

// Flags of a row.
const (
	FlagVerified  = 1 << iota // the signature in the value was checked here
	FlagCapExempt             // a record of the node itself, outside the caps of writers
)

// Row is one element and its state. Add, Del, ExpMs, Origin and Flags travel between nodes unchanged; FeedMs is local.
type Row struct {
	Name   []byte   // wire form, lower case, with the root byte
	RDATA  []byte   // TXT RDATA; nil in a refresh and in a tombstone
	Hash   [32]byte // SHA-256 of the value
	FeedMs int64    // this node's stamp of the frame that last changed it (cluster.md 17.3)
	Add    HLC      // of the latest publish
	Del    HLC      // of the latest delete, 0 if there was none
	ExpMs  int64    // end of the life that Add began
	Origin [8]byte  // of the node that took the publish
	Flags  uint8
}

// Live says whether the row is visible (cluster.md 17.4).
func (r *Row) Live(nowMs int64) bool { return r.Add > r.Del && r.ExpMs > nowMs }

// ID computes the element's id.
func (r *Row) ID() ID { return ElementID(r.Name, &r.Hash) }

// ElementID computes an element's id from the name in wire form, which ends itself, and the value's hash.
func ElementID(name []byte, hash *[32]byte) ID {
	var scratch [nameMax + 32]byte
	sum := sha256.Sum256(append(append(scratch[:0], name...), hash[:]...))
	return ID(sum[:16])
}

// HashOf is SHA-256 of the value in RDATA.
func HashOf(rdata []byte) [32]byte {
	var scratch [4096]byte
	return sha256.Sum256(AppendValue(scratch[:0], rdata))
}

// AppendRDATA cuts a value into character-strings of 255 bytes, the last one shorter; an empty value is one empty string
// (dns.md 3.3).
func AppendRDATA(dst, value []byte) []byte {
	if len(value) == 0 {
		return append(dst, 0)
	}
	for len(value) > 0 {
		n := min(len(value), 255)
		dst = append(dst, byte(n))
		dst = append(dst, value[:n]...)
		value = value[n:]
	}
	return dst
}

// AppendValue joins the character-strings of RDATA. RDATA that is cut short gives what there is.
func AppendValue(dst, rdata []byte) []byte {
	for len(rdata) > 0 {
		n := min(int(rdata[0]), len(rdata)-1)
		dst = append(dst, rdata[1:1+n]...)
		rdata = rdata[1+n:]
	}
	return dst
}

// Merge joins two states of one element: the larger pair (Add, ExpMs) wins, Del is the larger of both. The join is
// commutative, associative and idempotent, so that replicas agree in whatever order they hear of things (cluster.md 17.4).
// Of two equal pairs the larger Origin wins and Flags are those of both, which keeps it a join for those as well.
func Merge(a, b Row) Row {
	w := a
	if c := comparePublish(&a, &b); c < 0 {
		w = b
	} else if c == 0 {
		w.Flags |= b.Flags
	}
	w.Del = max(a.Del, b.Del)
	if w.RDATA == nil {
		w.RDATA = b.RDATA
		if w.RDATA == nil {
			w.RDATA = a.RDATA
		}
	}
	return w
}

func comparePublish(a, b *Row) int {
	return cmp.Or(cmp.Compare(a.Add, b.Add), cmp.Compare(a.ExpMs, b.ExpMs), bytes.Compare(a.Origin[:], b.Origin[:]))
}
