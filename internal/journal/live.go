package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

// Live is what a process says of itself while it runs: a page in its folder, stored to by its owner alone, through a shared
// mapping, and mapped read-only by the other plane. Integers are in the machine's byte order.
//
//	  0  magic "dmplive1"   8
//	  8  pid                8
//	 16  build id          96  text, zeros behind it
//	112  made               8  Unix ns, tells one start from another
//	128  beat               8  Unix ms
//	136  taken, log 0      16  first half of the log's epoch, lsn
//	152  taken, log 1      16
//	256  bell               4  a futex: counts what the other plane may want to look at
type Live struct {
	page vfs.Mapping
	file vfs.File
	path string
}

const (
	liveMagic = "dmplive1"
	liveSize  = 4096
	offPid    = 8
	offBuild  = 16
	buildMax  = 96
	offMade   = 112
	offBeat   = 128
	offTaken  = 136
	offBell   = 256

	// futex(2) operations, not private: the other side is another process.
	futexWait = 0
	futexWake = 1
	everybody = 1<<31 - 1

	// BeatEvery is how often a plane beats, and BeatLost how old a beat may be before the plane counts as away.
	BeatEvery = 500 * time.Millisecond
	BeatLost  = 2 * time.Second
)

// What is taken of which log.
const (
	TakenRequests = 0
	TakenState    = 1
)

// CreateLive makes the page of this process in place of any other.
func CreateLive(fs vfs.FS, path, build string) (*Live, error) {
	temporary := path + ".new"
	if err := fs.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("journal: %w", err)
	}
	f, err := fs.OpenFile(temporary, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	l := &Live{file: f, path: path}
	if err = f.Allocate(liveSize); err == nil {
		l.page, err = f.Map(0, liveSize, true)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("journal: live page: %w", err)
	}
	b := l.page.Bytes()
	copy(b, liveMagic)
	binary.NativeEndian.PutUint64(b[offPid:], uint64(os.Getpid()))
	copy(b[offBuild:offBuild+buildMax], build)
	binary.NativeEndian.PutUint64(b[offMade:], uint64(time.Now().UnixNano()))
	if err := fs.Rename(temporary, path); err != nil {
		l.Close()
		return nil, fmt.Errorf("journal: %w", err)
	}
	return l, nil
}

// OpenLive maps the page of another process. It may be that of one that ended: see BeatMs.
func OpenLive(fs vfs.FS, path string) (*Live, error) {
	f, err := fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	size, err := f.Size()
	if err == nil && size != liveSize {
		err = fmt.Errorf("journal: %s has %d bytes", path, size)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	page, err := f.Map(0, liveSize, false)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("journal: %w", err)
	}
	if string(page.Bytes()[:8]) != liveMagic {
		page.Unmap()
		f.Close()
		return nil, fmt.Errorf("%w: %s", ErrFormat, path)
	}
	return &Live{page: page, file: f, path: path}, nil
}

func (l *Live) Close() error {
	if l.page != nil {
		l.page.Unmap()
		l.page = nil
	}
	return l.file.Close()
}

// Pid is the owner's process id.
func (l *Live) Pid() int { return int(binary.NativeEndian.Uint64(l.page.Bytes()[offPid:])) }

// Build is the owner's build id.
func (l *Live) Build() string {
	return strings.TrimRight(string(l.page.Bytes()[offBuild:offBuild+buildMax]), "\x00")
}

// Beat says that the owner is alive at that moment.
func (l *Live) Beat(nowMs int64) { word(l.page.Bytes(), offBeat).Store(uint64(nowMs)) }

// BeatMs is when it last was; 0 if never.
func (l *Live) BeatMs() int64 { return int64(word(l.page.Bytes(), offBeat).Load()) }

// SetTaken says how far the owner has taken a log of the other plane.
func (l *Live) SetTaken(log int, epoch [16]byte, lsn uint64) {
	b := l.page.Bytes()
	e, at := word(b, offTaken+16*log), word(b, offTaken+16*log+8)
	half := binary.BigEndian.Uint64(epoch[:])
	if e.Load() != half {
		at.Store(0) // no reader may pair the old lsn with the new epoch
		e.Store(half)
	}
	at.Store(lsn)
}

// Taken is that position if it is one of this epoch, else 0.
func (l *Live) Taken(log int, epoch [16]byte) uint64 {
	b := l.page.Bytes()
	e, at := word(b, offTaken+16*log), word(b, offTaken+16*log+8)
	half := binary.BigEndian.Uint64(epoch[:])
	if e.Load() != half {
		return 0
	}
	lsn := at.Load()
	if e.Load() != half {
		return 0
	}
	return lsn
}

func (l *Live) bell() *uint32 { return (*uint32)(unsafe.Pointer(&l.page.Bytes()[offBell])) }

// Bell reads the counter that Wait compares with: read it, look at everything, then wait with what was read.
func (l *Live) Bell() uint32 { return atomic.LoadUint32(l.bell()) }

// Ring wakes whoever waits on this page. The owner rings after what it wants seen is visible.
func (l *Live) Ring() {
	atomic.AddUint32(l.bell(), 1)
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(l.bell())), futexWake, everybody, 0, 0, 0)
}

// Wait returns when the bell was rung since seen was read, or after the timeout.
func (l *Live) Wait(seen uint32, timeout time.Duration) {
	deadline := clock.Mono() + int64(timeout)
	for atomic.LoadUint32(l.bell()) == seen {
		left := deadline - clock.Mono()
		if left <= 0 {
			return
		}
		ts := unix.NsecToTimespec(left)
		// FUTEX_WAIT takes a time from now, on the monotonic clock. It ends on a signal too; then the bell is looked at again.
		_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(l.bell())), futexWait, uintptr(seen), uintptr(unsafe.Pointer(&ts)), 0, 0)
	}
}

// FileLock is a lock on a file that names its holder. The system lets go of it when the process ends, however it ends.
type FileLock struct{ f *os.File }

// HeldError says who holds a lock.
type HeldError struct {
	Path string
	Pid  int // 0 if it cannot be told
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("%s is held by process %d: a node runs on this folder already", e.Path, e.Pid)
}

// lockPatience is how long Lock tries: Locked takes the lock for a moment, and a process that was killed a moment ago may not be
// quite gone.
const lockPatience = 500 * time.Millisecond

// Lock takes the lock or fails with a *HeldError.
func Lock(path string) (*FileLock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	for tries := lockPatience / (10 * time.Millisecond); ; tries-- {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("journal: locking %s: %w", path, err)
		}
		if tries == 0 {
			b := make([]byte, 32)
			n, _ := f.ReadAt(b, 0)
			f.Close()
			pid, _ := strconv.Atoi(strings.TrimSpace(string(b[:n])))
			return nil, &HeldError{path, pid}
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("journal: %w", err)
	}
	return &FileLock{f}, nil
}

// Close lets go of the lock.
func (l *FileLock) Close() error { return l.f.Close() }

// Locked says whether somebody holds the lock at path.
func Locked(path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	// A shared lock: two who look at once do not see each other.
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
}

// Same says whether two mappings are of the same file, not of one that took its name since.
func (l *Live) Same(o *Live) bool {
	return binary.NativeEndian.Uint64(l.page.Bytes()[offMade:]) == binary.NativeEndian.Uint64(o.page.Bytes()[offMade:])
}
