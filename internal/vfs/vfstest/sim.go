// Package vfstest has a file system in memory that keeps what was synced apart from what was only written, and can crash: what
// was not synced is then dropped, torn at sectors or kept, as a seed decides.
package vfstest

import (
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/dnsmesh/dmpd/internal/vfs"
)

const (
	sector  = 512
	fileCap = 8 << 20 // a file's memory never moves, since mappings point into it
)

// Sim is a vfs.FS. Directories need no making. A crash of directory operations keeps a prefix of those not synced, as a
// journaling file system does.
type Sim struct {
	mu   sync.Mutex
	rng  *rand.Rand
	dirs map[string]*dir
	// Fault, if set, is asked before each operation ("open", "write", "sync", "allocate", "rename", "remove", "syncdir", "map"); an error is
	// what the operation returns. A write that fails may have written a part.
	Fault func(op, name string) error
	// FreeBytes is what Free tells; 0 is a terabyte.
	FreeBytes int64
	// MapRoom is how large a file that somebody maps writable may become (1 MiB): its memory must not move.
	MapRoom int
}

type dir struct {
	entries map[string]*node // as seen now
	durable map[string]*node
	pending []func(map[string]*node)
}

type node struct {
	mu      sync.Mutex
	buf     []byte // as seen now
	durable []byte
	writes  []write
	cut     bool   // it became shorter since
	mapped  []span // written through mappings
	mtimeMs int64
}

type write struct {
	off  int64
	data []byte
}

type span struct{ off, n int }

// New makes an empty file system.
func New(seed uint64) *Sim {
	return &Sim{rng: rand.New(rand.NewPCG(seed, 0)), dirs: map[string]*dir{}}
}

func (s *Sim) fault(op, name string) error {
	if s.Fault == nil {
		return nil
	}
	if err := s.Fault(op, name); err != nil {
		return &os.PathError{Op: op, Path: name, Err: err}
	}
	return nil
}

func (s *Sim) dir(name string) *dir {
	d := s.dirs[name]
	if d == nil {
		d = &dir{entries: map[string]*node{}, durable: map[string]*node{}}
		s.dirs[name] = d
	}
	return d
}

func (d *dir) change(f func(map[string]*node)) {
	f(d.entries)
	d.pending = append(d.pending, f)
}

func (s *Sim) OpenFile(name string, flag int, _ os.FileMode) (vfs.File, error) {
	if err := s.fault("open", name); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d, base := s.dir(filepath.Dir(name)), filepath.Base(name)
	n := d.entries[base]
	switch {
	case n == nil && flag&os.O_CREATE == 0:
		return nil, &os.PathError{Op: "open", Path: name, Err: os.ErrNotExist}
	case n != nil && flag&os.O_EXCL != 0:
		return nil, &os.PathError{Op: "open", Path: name, Err: os.ErrExist}
	case n == nil:
		n = &node{buf: make([]byte, 0, 16<<10)}
		d.change(func(m map[string]*node) { m[base] = n })
	}
	if flag&os.O_TRUNC != 0 {
		n.mu.Lock()
		n.buf, n.cut = n.buf[:0], true
		n.mu.Unlock()
	}
	return &file{s, n, name}, nil
}

func (s *Sim) Rename(oldName, newName string) error {
	if err := s.fault("rename", newName); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.dir(filepath.Dir(oldName))
	if filepath.Dir(newName) != filepath.Dir(oldName) {
		return fmt.Errorf("vfstest: rename across directories")
	}
	from, to := filepath.Base(oldName), filepath.Base(newName)
	n := d.entries[from]
	if n == nil {
		return &os.PathError{Op: "rename", Path: oldName, Err: os.ErrNotExist}
	}
	d.change(func(m map[string]*node) { delete(m, from); m[to] = n })
	return nil
}

func (s *Sim) Remove(name string) error {
	if err := s.fault("remove", name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d, base := s.dir(filepath.Dir(name)), filepath.Base(name)
	if d.entries[base] == nil {
		return &os.PathError{Op: "remove", Path: name, Err: os.ErrNotExist}
	}
	d.change(func(m map[string]*node) { delete(m, base) })
	return nil
}

func (s *Sim) ReadDir(name string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.dir(filepath.Clean(name)).entries)), nil
}

func (s *Sim) Stat(name string) (size, mtimeMs int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.dir(filepath.Dir(name)).entries[filepath.Base(name)]
	if n == nil {
		return 0, 0, &os.PathError{Op: "stat", Path: name, Err: os.ErrNotExist}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return int64(len(n.buf)), n.mtimeMs, nil
}

func (s *Sim) MkdirAll(string, os.FileMode) error { return nil }

func (s *Sim) SyncDir(name string) error {
	if err := s.fault("syncdir", name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.dir(filepath.Clean(name))
	d.durable, d.pending = maps.Clone(d.entries), nil
	return nil
}

func (s *Sim) Free(string) (int64, error) {
	if s.FreeBytes > 0 {
		return s.FreeBytes, nil
	}
	return 1 << 40, nil
}

// Crash gives the file system as the next boot might find it. s must not be used afterwards.
func (s *Sim) Crash() *Sim {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := New(s.rng.Uint64())
	next.MapRoom = s.MapRoom
	torn := map[*node]*node{}
	for _, name := range slices.Sorted(maps.Keys(s.dirs)) {
		d := s.dirs[name]
		entries := maps.Clone(d.durable)
		for _, f := range d.pending[:s.rng.IntN(len(d.pending)+1)] {
			f(entries)
		}
		nd := next.dir(name)
		for _, base := range slices.Sorted(maps.Keys(entries)) {
			n := entries[base]
			if torn[n] == nil {
				torn[n] = n.crash(s.rng)
			}
			nd.entries[base] = torn[n]
		}
		nd.durable = maps.Clone(nd.entries)
	}
	return next
}

// crash keeps what was synced and, of the rest, what the dice say.
func (n *node) crash(rng *rand.Rand) *node {
	n.mu.Lock()
	defer n.mu.Unlock()
	buf := make([]byte, len(n.durable), max(16<<10, cap(n.buf))) // who maps it next to read is not left behind by who maps it to write
	copy(buf, n.durable)
	put := func(off int64, data []byte) {
		if end := int(off) + len(data); end > len(buf) {
			buf = buf[:end]
		}
		copy(buf[off:], data)
	}
	mode := rng.IntN(4) // nothing, everything, whole writes, sectors
	for _, w := range n.writes {
		switch {
		case mode == 0:
		case mode == 1, mode == 2 && rng.IntN(2) == 0:
			put(w.off, w.data)
		case mode == 3:
			for at := int64(0); at < int64(len(w.data)); {
				end := min((w.off+at)/sector*sector+sector-w.off, int64(len(w.data)))
				if rng.IntN(3) > 0 {
					put(w.off+at, w.data[at:end])
				}
				at = end
			}
		}
	}
	for _, m := range n.mapped {
		for at := m.off; at < m.off+m.n && at < len(n.buf); at += sector {
			end := min(at+sector, m.off+m.n, len(n.buf))
			// The page may reach the disk at any time, but a page with stores in it never before the file's length.
			if mode != 0 && rng.IntN(2) == 0 && end <= len(buf) {
				copy(buf[at:end], n.buf[at:end])
			}
		}
	}
	return &node{buf: buf, durable: slices.Clone(buf), mtimeMs: n.mtimeMs}
}

// Flip changes one bit of a file, as a bad disk would.
func (s *Sim) Flip(name string, off int64, bit uint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.dir(filepath.Dir(name)).entries[filepath.Base(name)]
	n.buf[off] ^= 1 << bit
	if off < int64(len(n.durable)) {
		n.durable[off] ^= 1 << bit
	}
}

// Cut ends a file early.
func (s *Sim) Cut(name string, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.dir(filepath.Dir(name)).entries[filepath.Base(name)]
	n.buf, n.cut = n.buf[:size], true
	n.durable = n.durable[:min(size, int64(len(n.durable)))]
}

type file struct {
	s    *Sim
	n    *node
	name string
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	if off >= int64(len(f.n.buf)) {
		return 0, io.EOF
	}
	n := copy(p, f.n.buf[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if err := f.s.fault("write", f.name); err != nil {
		f.n.put(p[:len(p)/2], off) // a full disk takes what it can
		return len(p) / 2, err
	}
	f.n.put(p, off)
	return len(p), nil
}

func (n *node) put(p []byte, off int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.grow(off + int64(len(p)))
	copy(n.buf[off:], p)
	n.writes = append(n.writes, write{off, slices.Clone(p)})
}

func (n *node) grow(size int64) {
	if size > int64(cap(n.buf)) {
		if size > fileCap || len(n.mapped) > 0 && size > int64(cap(n.buf)) {
			panic(fmt.Sprintf("vfstest: a mapped file would grow to %d bytes; allocate it before it is mapped", size))
		}
		buf := make([]byte, len(n.buf), max(2*int64(cap(n.buf)), size))
		copy(buf, n.buf)
		n.buf = buf
	}
	if size > int64(len(n.buf)) {
		n.buf = n.buf[:size]
	}
}

func (f *file) Sync() error {
	if err := f.s.fault("sync", f.name); err != nil {
		return err
	}
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	n := f.n
	if n.cut || len(n.durable) > len(n.buf) {
		n.durable, n.writes, n.cut = slices.Clone(n.buf), nil, false
		return nil
	}
	n.durable = append(n.durable, n.buf[len(n.durable):]...)
	for _, w := range n.writes {
		copy(n.durable[w.off:], n.buf[w.off:w.off+int64(len(w.data))])
	}
	for _, m := range n.mapped {
		copy(n.durable[m.off:], n.buf[m.off:min(m.off+m.n, len(n.buf))])
	}
	n.writes = nil
	return nil
}

func (f *file) Size() (int64, error) {
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	return int64(len(f.n.buf)), nil
}

func (f *file) Allocate(size int64) error {
	if err := f.s.fault("allocate", f.name); err != nil {
		return err
	}
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	f.n.grow(size)
	return nil
}

func (f *file) Close() error { return nil }

func (f *file) Map(off int64, n int, writable bool) (vfs.Mapping, error) {
	if err := f.s.fault("map", f.name); err != nil {
		return nil, err
	}
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	if off+int64(n) > int64(len(f.n.buf)) {
		return nil, fmt.Errorf("vfstest: %s: mapping beyond the end would be a SIGBUS", f.name)
	}
	room := f.s.MapRoom
	if room == 0 {
		room = 1 << 20
	}
	if len(f.n.mapped) == 0 && writable && cap(f.n.buf) < room {
		buf := make([]byte, len(f.n.buf), room)
		copy(buf, f.n.buf)
		f.n.buf = buf
	}
	if writable {
		f.n.mapped = append(f.n.mapped, span{int(off), n})
	}
	return mapping(f.n.buf[off : off+int64(n) : off+int64(n)]), nil
}

type mapping []byte

func (m mapping) Bytes() []byte { return m }
func (m mapping) Release()      {}
func (m mapping) Unmap() error  { return nil }
