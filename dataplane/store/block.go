package store

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sync/atomic"
	"unsafe"

	"github.com/dnsmesh/dmpd/internal/record"
)

// A block is all that the node knows about one name, at a multiple of 16 bytes in the arena, without pointers, in the
// machine's byte order but for the RRs:
//
//	 0  below     u32  names with values below this one       } changed in place by the committer, read atomically;
//	 8  belowExp  i64  none of them lives longer (ms)         } all else never changes once the block is published
//	 4  count     u16  values stored here; 0 for an empty non-terminal
//	 6  nameLen   u8
//	 7  class     u8   size class in the arena
//	16  firstExp  i64  smallest expiry of the values (ms)
//	24  due       u32  the expiry bucket in which this name stands (expiry.go)
//	28  rrBytes   u32
//	32  name, zeros up to a multiple of 8
//	    count times {exp i64, add u64, hash u32, origin u8, flags u8, 0 u16}
//	    the answer RRs in canonical order: 0xC00C, TXT, IN, TTL (0, patched in the answer), RDLENGTH, RDATA
//
// The name and what a query asks of an RRset that lives whole (count, firstExp, rrBytes) share the first cache lines; the
// RRs lie together, so that an answer is one copy. Nothing outside this file knows the layout. There is no room kept for
// RRSIG: signatures would be one more RR area behind this one, found through a length in the last u16 of the head.
const (
	offBelow    = 0
	offCount    = 4
	offNameLen  = 6
	offClass    = 7
	offBelowExp = 8
	offFirstExp = 16
	offDue      = 24
	offRRBytes  = 28
	headLen     = 32

	valueLen = 24
	vExp     = 0
	vAdd     = 8
	vHash    = 16
	vOrigin  = 20
	vFlags   = 21

	// An answer RR before its RDATA: owner pointer, TYPE, CLASS, TTL, RDLENGTH (RFC 1035 4.1.3).
	rrHeadLen = 2 + 2 + 2 + 4 + 2
	rrTTL     = 6
	rrLen     = 10
)

// rrHead is 0xC00C (the name in the question), TXT, IN, TTL 0; RDLENGTH follows.
var rrHead = [rrLen]byte{0xC0, 0x0C, 0, 16, 0, 1, 0, 0, 0, 0}

// noExp is the first expiry of a block without values.
const noExp = int64(1<<63 - 1)

func load[T any](p unsafe.Pointer, off int) T     { return *(*T)(unsafe.Add(p, off)) }
func store[T any](p unsafe.Pointer, off int, v T) { *(*T)(unsafe.Add(p, off)) = v }

// RRset is the TXT values at a name, a view of a block: valid until the Reader leaves.
type RRset struct {
	p unsafe.Pointer
	s *origins
}

// origins are the node ids that values came from; a block holds the number of one. At most 255 nodes make a mesh that one
// node replicates with; what comes from others counts as from an unknown one (0).
type origins struct {
	ids [256]atomic.Pointer[[8]byte]
	n   int // committer's
}

func (o *origins) number(id [8]byte) uint8 {
	for i := 1; i <= o.n; i++ {
		if *o.ids[i].Load() == id {
			return uint8(i)
		}
	}
	if o.n == 255 {
		return 0
	}
	o.n++
	o.ids[o.n].Store(&id)
	return uint8(o.n)
}

func (o *origins) id(n uint8) [8]byte {
	if p := o.ids[n].Load(); p != nil {
		return *p
	}
	return [8]byte{}
}

// Count is the values stored, the expired included.
func (r RRset) Count() int {
	if r.p == nil {
		return 0
	}
	return int(load[uint16](r.p, offCount))
}

func (r RRset) name() []byte {
	return unsafe.Slice((*byte)(unsafe.Add(r.p, headLen)), int(load[uint8](r.p, offNameLen)))
}

func valuesAt(nameLen int) int { return headLen + (nameLen+7)&^7 }

func (r RRset) value(i int) unsafe.Pointer {
	return unsafe.Add(r.p, valuesAt(int(load[uint8](r.p, offNameLen)))+i*valueLen)
}

// rrs is the answer RRs.
func (r RRset) rrs() []byte {
	return unsafe.Slice((*byte)(r.value(r.Count())), int(load[uint32](r.p, offRRBytes)))
}

// Live counts the live values, the bytes of their answer RRs (owner as a pointer), and tells when the first expires.
func (r RRset) Live(nowMs int64) (n, size int, firstExpMs int64) {
	if r.p == nil {
		return 0, 0, noExp
	}
	count := r.Count()
	if first := load[int64](r.p, offFirstExp); first > nowMs {
		return count, int(load[uint32](r.p, offRRBytes)), first
	}
	rrs := r.rrs()
	firstExpMs = noExp
	for i := range count {
		rr := rrHeadLen + int(binary.BigEndian.Uint16(rrs[rrLen:]))
		rrs = rrs[rr:]
		if exp := load[int64](r.value(i), vExp); exp > nowMs {
			n++
			size += rr
			firstExpMs = min(firstExpMs, exp)
		}
	}
	return n, size, firstExpMs
}

// AppendAnswers appends the live values as answer RRs (owner 0xC00C, TXT, IN), as many as fit into room bytes, in
// canonical order (RFC 4034 6.3). whole is false if some did not fit. No allocation if dst has the room.
func (r RRset) AppendAnswers(dst []byte, ttlSec uint32, nowMs int64, room int) (out []byte, n int, whole bool) {
	if r.p == nil {
		return dst, 0, true
	}
	rrs := r.rrs()
	count := r.Count()
	if load[int64](r.p, offFirstExp) > nowMs && len(rrs) <= room {
		at := len(dst)
		dst = append(dst, rrs...)
		for range count {
			binary.BigEndian.PutUint32(dst[at+rrTTL:], ttlSec)
			at += rrHeadLen + int(binary.BigEndian.Uint16(dst[at+rrLen:]))
		}
		return dst, count, true
	}
	for i := range count {
		rr := rrHeadLen + int(binary.BigEndian.Uint16(rrs[rrLen:]))
		if load[int64](r.value(i), vExp) > nowMs {
			if rr > room {
				return dst, n, false
			}
			room -= rr
			at := len(dst)
			dst = append(dst, rrs[:rr]...)
			binary.BigEndian.PutUint32(dst[at+rrTTL:], ttlSec)
			n++
		}
		rrs = rrs[rr:]
	}
	return dst, n, true
}

// Value is one element of an RRset.
type Value struct {
	RDATA  []byte
	ExpMs  int64
	Add    record.HLC
	Flags  uint8
	Origin [8]byte
}

// Each calls f for every stored value, the expired included, in canonical order, until it returns false.
func (r RRset) Each(f func(v Value) bool) {
	if r.p == nil {
		return
	}
	rrs := r.rrs()
	for i := range r.Count() {
		rr := rrHeadLen + int(binary.BigEndian.Uint16(rrs[rrLen:]))
		v := r.value(i)
		if !f(Value{rrs[rrHeadLen:rr:rr], load[int64](v, vExp), load[record.HLC](v, vAdd), load[uint8](v, vFlags), r.s.id(load[uint8](v, vOrigin))}) {
			return
		}
		rrs = rrs[rr:]
	}
}

// A packed value is what goes into a block, or came out of one.
type packed struct {
	rdata  []byte
	expMs  int64
	add    record.HLC
	hash   uint32 // first bytes of the value's SHA-256
	origin uint8
	flags  uint8
}

// unpack appends the values of a block; their RDATA lies in the block.
func (r RRset) unpack(dst []packed) []packed {
	if r.p == nil {
		return dst
	}
	rrs := r.rrs()
	for i := range r.Count() {
		rr := rrHeadLen + int(binary.BigEndian.Uint16(rrs[rrLen:]))
		v := r.value(i)
		dst = append(dst, packed{rrs[rrHeadLen:rr:rr], load[int64](v, vExp), load[record.HLC](v, vAdd),
			load[uint32](v, vHash), load[uint8](v, vOrigin), load[uint8](v, vFlags)})
		rrs = rrs[rr:]
	}
	return dst
}

// insert puts a value in its place in canonical order.
func insert(values []packed, v packed) []packed {
	i, _ := slices.BinarySearchFunc(values, v, func(a, b packed) int { return bytes.Compare(a.rdata, b.rdata) })
	return slices.Insert(values, i, v)
}

func blockLen(nameLen, values, rdataBytes int) int {
	return valuesAt(nameLen) + values*(valueLen+rrHeadLen) + rdataBytes
}

// pack writes a block; values are in canonical order.
func (a *arena) pack(name []byte, values []packed, below uint32, belowExp int64, due uint32) (ref, error) {
	rdataBytes := 0
	for i := range values {
		rdataBytes += len(values[i].rdata)
	}
	size := blockLen(len(name), len(values), rdataBytes)
	r, err := a.alloc(size)
	if err != nil {
		return 0, err
	}
	p := a.at(r)
	store(p, offBelow, below)
	store(p, offCount, uint16(len(values)))
	store(p, offNameLen, uint8(len(name)))
	store(p, offClass, uint8(classOf(size)))
	store(p, offBelowExp, belowExp)
	store(p, offDue, due)
	store(p, offRRBytes, uint32(len(values)*rrHeadLen+rdataBytes))
	copy(unsafe.Slice((*byte)(unsafe.Add(p, headLen)), len(name)), name)
	set := RRset{p: p}
	first := noExp
	rrs := set.rrs()
	for i := range values {
		v := &values[i]
		first = min(first, v.expMs)
		m := set.value(i)
		store(m, vExp, v.expMs)
		store(m, vAdd, v.add)
		store(m, vHash, v.hash)
		store(m, vOrigin, v.origin)
		store(m, vFlags, v.flags)
		copy(rrs, rrHead[:])
		binary.BigEndian.PutUint16(rrs[rrLen:], uint16(len(v.rdata)))
		copy(rrs[rrHeadLen:], v.rdata)
		rrs = rrs[rrHeadLen+len(v.rdata):]
	}
	store(p, offFirstExp, first)
	return r, nil
}

// The two words that change in place.

func (r RRset) below() (n uint32, expMs int64) {
	return atomic.LoadUint32((*uint32)(unsafe.Add(r.p, offBelow))), atomic.LoadInt64((*int64)(unsafe.Add(r.p, offBelowExp)))
}

func (r RRset) setBelow(n uint32, expMs int64) {
	atomic.StoreInt64((*int64)(unsafe.Add(r.p, offBelowExp)), expMs)
	atomic.StoreUint32((*uint32)(unsafe.Add(r.p, offBelow)), n)
}

func (r RRset) due() uint32      { return load[uint32](r.p, offDue) }
func (r RRset) firstExp() int64  { return load[int64](r.p, offFirstExp) }
func (r RRset) class() uint8     { return load[uint8](r.p, offClass) }
func (r RRset) is(n []byte) bool { return bytes.Equal(r.name(), n) }
