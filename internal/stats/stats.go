// Package stats counts what the data plane does, in a page that the control plane maps and renders for Prometheus (spec
// dns.md 12, design.md part 2).
//
// The file, all integers in the machine's byte order (it never leaves the machine):
//
//	+-------------------------------+
//	| magic (8B) "dmpstat" + format |
//	| shards (4B), counters (4B)    |
//	| fingerprint of the table (8B) |
//	| when it was made, ns (8B)     |
//	| ... padding to 4096           |
//	+-------------------------------+
//	| shard 0: counters x 8B, padded to a cache line |
//	| shard 1 ...                                    |
//	+------------------------------------------------+
//
// Every event loop adds to a shard of its own, so that counting shares no cache line; a reader adds the shards up. Shard 0 is
// for everything that is no loop, and holds the gauges. The fingerprint is over the names in their order: a reader of
// another build refuses the page instead of showing wrong names.
package stats

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math/bits"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Counter is an index in the table.
type Counter uint16

const (
	magic      = 0x0001_74617473706d64 // "dmpstat" and the format number
	headerSize = 4096
	cacheLine  = 64
	shardsMax  = 4096 // event loops of one machine; bounds what a reader maps
)

// Page is the counters of one data plane.
type Page struct {
	mem    []byte
	stride int // bytes from shard to shard
	shards int
}

// Shard is the part of a page that one goroutine at a time adds to. Its methods do not allocate.
type Shard struct{ words []uint64 }

func stride() int { return (len(table)*8 + cacheLine - 1) / cacheLine * cacheLine }

// fingerprint changes with every change of the table.
func fingerprint() uint64 {
	h := fnv.New64a()
	for i := range table {
		fmt.Fprintf(h, "%s{%s}%d;", table[i].Name, table[i].Labels, table[i].Kind)
	}
	return h.Sum64()
}

// Create makes the file anew, for that many event loops. Counters start at zero, as after any restart of a process.
func Create(path string, loops int) (*Page, error) {
	if loops+1 > shardsMax {
		return nil, fmt.Errorf("stats: %d event loops, at most %d", loops, shardsMax-1)
	}
	temporary := path + ".new"
	f, err := os.OpenFile(temporary, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("stats: %w", err)
	}
	defer f.Close()
	size := headerSize + (loops+1)*stride()
	// Allocated in full, since a store to a hole on a full disk is a SIGBUS.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(size)); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) {
			_, err = f.WriteAt(make([]byte, size), 0)
		}
		if err != nil {
			return nil, fmt.Errorf("stats: %s: %w", temporary, err)
		}
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("stats: %s: %w", temporary, err)
	}
	header := words(mem[:headerSize])
	header[1] = uint64(loops+1)<<32 | uint64(len(table))
	header[2] = fingerprint()
	header[3] = uint64(time.Now().UnixNano())
	atomic.StoreUint64(&header[0], magic)
	if err := os.Rename(temporary, path); err != nil {
		unix.Munmap(mem)
		return nil, fmt.Errorf("stats: %w", err)
	}
	return &Page{mem: mem, stride: stride(), shards: loops + 1}, nil
}

// ErrOther says that a page was made by another build.
var ErrOther = errors.New("stats: the counters are of another build")

// Open maps a page for reading. A data plane that starts makes a new file, so a reader opens it anew when it is gone stale.
func Open(path string) (*Page, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("stats: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("stats: %w", err)
	}
	size := int(info.Size())
	if size < headerSize || size > headerSize+shardsMax*stride() {
		return nil, fmt.Errorf("%w: %s has %d bytes", ErrOther, path, size)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("stats: %s: %w", path, err)
	}
	header := words(mem[:headerSize])
	shards := int(header[1] >> 32)
	if header[0] != magic || header[2] != fingerprint() || int(uint32(header[1])) != len(table) || shards < 1 || size != headerSize+shards*stride() {
		unix.Munmap(mem)
		return nil, fmt.Errorf("%w: %s", ErrOther, path)
	}
	return &Page{mem: mem, stride: stride(), shards: shards}, nil
}

// InMemory makes a page that no other process sees, for tests.
func InMemory(loops int) *Page {
	return &Page{mem: make([]byte, headerSize+(loops+1)*stride()), stride: stride(), shards: loops + 1}
}

// Close unmaps the page; no Shard of it may be used afterwards.
func (p *Page) Close() error {
	if p.mem == nil {
		return nil
	}
	mem := p.mem
	p.mem = nil
	return unix.Munmap(mem)
}

func words(b []byte) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/8)
}

// Shard gives the part for event loop i, from 1 on; 0 is for everybody else.
func (p *Page) Shard(i int) Shard {
	at := headerSize + (i%p.shards)*p.stride
	return Shard{words(p.mem[at : at+p.stride])}
}

// Add counts n more.
func (s Shard) Add(c Counter, n uint64) { atomic.AddUint64(&s.words[c], n) }

// Inc counts one more.
func (s Shard) Inc(c Counter) { s.Add(c, 1) }

// Set puts a gauge. Gauges are set in shard 0 alone.
func (s Shard) Set(c Counter, v uint64) { atomic.StoreUint64(&s.words[c], v) }

// Value adds up the shards.
func (p *Page) Value(c Counter) uint64 {
	sum := uint64(0)
	for i := range p.shards {
		sum += atomic.LoadUint64(&p.Shard(i).words[c])
	}
	return sum
}

// Observe counts v in a histogram; the buckets' upper bounds are powers of two from lowest on (table.go).
func (s Shard) Observe(h Histogram, v uint64) {
	s.Inc(h.first + Counter(h.bucket(v)))
	s.Add(h.first+Counter(h.buckets), v)
}

// bucket gives the first bucket whose upper bound holds v; the last one has none.
func (h Histogram) bucket(v uint64) int {
	if v <= h.lowest {
		return 0
	}
	return min(bits.Len64((v-1)/h.lowest), h.buckets-1)
}

// Made tells one page from that of another start of the data plane.
func (p *Page) Made() uint64 { return words(p.mem[:headerSize])[3] }
