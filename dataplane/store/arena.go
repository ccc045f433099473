package store

import (
	"errors"
	"fmt"
	"math/bits"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The arena is where blocks live: memory mapped outside the Go heap, so that ten million names cost the collector
// nothing. A block is named by a ref, its place in units of 16 bytes, which keeps an index entry at 8 bytes and bounds
// the arena at 64 GiB.
//
// Blocks come in size classes, eight to each doubling. A freed block waits until every loop has passed a quiescent point
// (epoch.go) and is then given out again for its class; nothing is moved, so a reader never follows a moved block. Only
// the committer allocates and frees.
type ref uint32

const (
	unitShift  = 4  // a ref counts units of 16 bytes
	chunkShift = 22 // 4 MiB: few enough mappings (2,400 for 10 GB), small enough for a test's store
	chunkSize  = 1 << chunkShift
	chunksMax  = 1 << (32 + unitShift - chunkShift)

	// blockMax is a quarter of a chunk, so that at most a quarter of one is lost at its end. An RRset of 65,535 answer
	// bytes has at most 5,041 values and fits; only merged ones can be larger, up to here.
	blockMax = chunkSize / 4
)

// errArenaFull is all 64 GiB given out, or no memory from the system.
var errArenaFull = errors.New("store: no memory for more records")

type arena struct {
	chunks [chunksMax]unsafe.Pointer // published by the entry in the index that leads here
	used   int                       // chunks in use
	next   ref                       // bump allocation in the last one
	end    ref
	spare  []unsafe.Pointer // mapped, not used yet

	free [classes]ref // heads of lists linked through the first word of each free block
	live atomic.Int64 // bytes in blocks given out, by class size
}

// Size classes: 1..8 units, then eight to each doubling.
const classes = 8 + 8*13 // up to 2^16 units = blockMax

func classOf(size int) int {
	units := uint32(size+1<<unitShift-1) >> unitShift
	if units <= 8 {
		return int(units) - 1
	}
	shift := bits.Len32(units-1) - 4 // 9..16 -> 0, 17..32 -> 1
	return 8 + shift*8 + int((units-1)>>shift) - 8
}

func classSize(class int) int {
	if class < 8 {
		return (class + 1) << unitShift
	}
	shift, step := (class-8)/8, (class-8)%8
	return (9 + step) << shift << unitShift
}

// alloc gives a block of at least size bytes; its content is whatever was there.
func (a *arena) alloc(size int) (ref, error) {
	if size > blockMax {
		return 0, fmt.Errorf("store: a block of %d bytes is over %d", size, blockMax)
	}
	class := classOf(size)
	if r := a.free[class]; r != 0 {
		a.free[class] = ref(*(*uint32)(a.at(r)))
		a.live.Add(int64(classSize(class)))
		return r, nil
	}
	units := ref(classSize(class) >> unitShift)
	if a.end-a.next < units {
		if err := a.grow(); err != nil {
			return 0, err
		}
	}
	r := a.next
	a.next += units
	a.live.Add(int64(classSize(class)))
	return r, nil
}

// ensure sees to it that blocks of so many bytes in all can be given out without asking the system: what has been synced
// must not fail to be published.
func (a *arena) ensure(size int) error {
	if int(a.end-a.next)<<unitShift >= size {
		return nil
	}
	for len(a.spare) <= size/(chunkSize-blockMax) {
		if a.used+len(a.spare) == chunksMax {
			return errArenaFull
		}
		b, err := unix.Mmap(-1, 0, chunkSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return fmt.Errorf("%w: mmap: %w", errArenaFull, err)
		}
		a.spare = append(a.spare, unsafe.Pointer(unsafe.SliceData(b)))
	}
	return nil
}

// grow takes one more chunk. What was left of the last one goes to the free lists.
func (a *arena) grow() error {
	if len(a.spare) == 0 {
		if err := a.ensure(chunkSize); err != nil {
			return err
		}
	}
	for left := a.end - a.next; left > 0; {
		class := classOf(int(left) << unitShift)
		for class > 0 && classSize(class) > int(left)<<unitShift {
			class--
		}
		a.release(a.next, class)
		a.next += ref(classSize(class) >> unitShift)
		left = a.end - a.next
	}
	if a.used > 0 {
		// Random lookups miss the TLB less in huge pages. The kernel makes them of what is full, at its leisure: asked for before they
		// are touched, they took a virtual machine 2 s longer to start with a million names (docs/decisions/0009-store.md).
		_ = unix.Madvise(unsafe.Slice((*byte)(a.chunks[a.used-1]), chunkSize), unix.MADV_HUGEPAGE)
	}
	a.chunks[a.used] = a.spare[len(a.spare)-1]
	a.spare = a.spare[:len(a.spare)-1]
	a.next = ref(a.used) << (chunkShift - unitShift)
	a.end = a.next + chunkSize>>unitShift
	if a.used == 0 {
		a.next++ // ref 0 is no block
	}
	a.used++
	return nil
}

func (a *arena) release(r ref, class int) {
	*(*uint32)(a.at(r)) = uint32(a.free[class])
	a.free[class] = r
}

// at is the address of a block. Readers come here: one load and an add.
func (a *arena) at(r ref) unsafe.Pointer {
	const mask = 1<<(chunkShift-unitShift) - 1
	return unsafe.Add(a.chunks[r>>(chunkShift-unitShift)], uintptr(r&mask)<<unitShift)
}

func (a *arena) unmap() {
	for _, p := range append(a.chunks[:a.used:a.used], a.spare...) {
		_ = unix.Munmap(unsafe.Slice((*byte)(p), chunkSize)) // what Mmap gave, with its length
	}
	clear(a.chunks[:a.used])
	a.spare, a.used, a.next, a.end = nil, 0, 0, 0
}

// mapped is the bytes taken from the system.
func (a *arena) mapped() int64 { return int64(a.used+len(a.spare)) * chunkSize }
