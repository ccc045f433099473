// Package vfs is the small part of a file system that logs and snapshots need, so that tests can put one in its place that
// fails, tears and forgets (vfstest).
package vfs

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// FS is a file system. Paths are as in package os; errors wrap those of package os and of the system.
type FS interface {
	OpenFile(name string, flag int, perm os.FileMode) (File, error)
	Rename(oldName, newName string) error
	Remove(name string) error
	ReadDir(dir string) ([]string, error) // names, sorted
	Stat(name string) (size, mtimeMs int64, err error)
	MkdirAll(dir string, perm os.FileMode) error
	SyncDir(dir string) error                 // makes creates, renames and removes in it durable
	Free(dir string) (bytes int64, err error) // space that this user may still fill
}

// File is an open file. Writes are positioned, so that an error is an error and never a signal.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error // data and what is needed to read it back, fdatasync(2)
	Size() (int64, error)
	Allocate(size int64) error // makes the file that large, with its blocks in place
	Map(off int64, n int, writable bool) (Mapping, error)
}

// Mapping is a part of a file in memory, shared with everybody who maps it. A byte beyond the file's end must not be touched.
type Mapping interface {
	Bytes() []byte
	Release() // gives its pages back to the system; what is touched is there again
	Unmap() error
}

// OS is the real file system.
var OS FS = osFS{}

type osFS struct{}

func (osFS) OpenFile(name string, flag int, perm os.FileMode) (File, error) {
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFS) Rename(oldName, newName string) error { return os.Rename(oldName, newName) }
func (osFS) Remove(name string) error             { return os.Remove(name) }

func (osFS) MkdirAll(dir string, perm os.FileMode) error { return os.MkdirAll(dir, perm) }

func (osFS) ReadDir(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, err
}

func (osFS) Stat(name string) (size, mtimeMs int64, err error) {
	info, err := os.Stat(name)
	if err != nil {
		return 0, 0, err
	}
	return info.Size(), info.ModTime().UnixMilli(), nil
}

func (osFS) SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = f.Sync()
	return errors.Join(err, f.Close())
}

func (osFS) Free(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(s.Bavail) * s.Bsize, nil
}

type osFile struct{ *os.File }

func (f osFile) Sync() error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
		return nil
	}
}

func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (f osFile) Allocate(size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	for err == unix.EINTR { // tmpfs gives up for the runtime's own signals
		err = unix.Fallocate(int(f.Fd()), 0, 0, size)
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		// A file system without it: write zeros, from the present end on.
		var at int64
		if at, err = f.Size(); err == nil && at < size {
			_, err = f.WriteAt(make([]byte, size-at), at)
		}
	}
	if err != nil {
		return &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
	}
	return nil
}

func (f osFile) Map(off int64, n int, writable bool) (Mapping, error) {
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	b, err := unix.Mmap(int(f.Fd()), off, n, prot, unix.MAP_SHARED)
	if err != nil {
		return nil, &os.PathError{Op: "mmap", Path: f.Name(), Err: err}
	}
	return osMapping(b), nil
}

type osMapping []byte

func (m osMapping) Bytes() []byte { return m }
func (m osMapping) Release()      { _ = unix.Madvise(m, unix.MADV_DONTNEED) } // of a shared mapping it drops nothing
func (m osMapping) Unmap() error  { return unix.Munmap(m) }
