package xdp

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// frameSize is one frame's place in the UMEM: half a page, which holds the kernel's 256 bytes of headroom and frameMax.
	frameSize = 2048
	// ringSize is the frames on either way, received and to be sent: 4 ms at a quarter of a million a second.
	ringSize = 1024
	// UmemSize is the locked memory of one socket. With the rings it is within the 8 MiB that a process may lock by default.
	UmemSize = 2 * ringSize * frameSize
	// BatchMax is the frames answered between two calls of the kernel.
	BatchMax = 256
	// sendBuffer bounds the answers on their way, which copy mode charges to the socket: a default of 208 KiB refuses most calls.
	sendBuffer = 4 << 20
	// busyMax is how long a queue may be busy: the kernel lets go of the frames of a process that was killed some time after its end.
	busyMax = 5 * time.Second
	// kicksMax bounds the calls for one batch; what is left goes with the next.
	kicksMax = 16
)

// ring is one of the four rings shared with the kernel; ours is one end of it.
type ring struct {
	mem      []byte
	producer *uint32
	consumer *uint32
	flags    *uint32
	at       uint32 // our end's index, ahead of the shared one until it is published
}

// socket is an AF_XDP socket with its UMEM and rings. One goroutine uses it.
type socket struct {
	fd                int
	umem              []byte
	fill, completed   ring
	received, sent    ring
	fills, completeds []uint64 // addresses in the UMEM
	receiveds, sents  []unix.XDPDesc
	free              []uint64 // frames that may be sent
	copied            bool     // copy mode, where each call sends
}

// newSocket makes a socket that is bound to no queue yet, its receive frames with the kernel.
func newSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("no AF_XDP socket (CAP_NET_RAW, CONFIG_XDP_SOCKETS): %w", err)
	}
	s := &socket{fd: fd, free: make([]uint64, 0, ringSize)}
	if err := s.setUp(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *socket) setUp() (err error) {
	if s.umem, err = unix.Mmap(-1, 0, UmemSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_POPULATE); err != nil {
		return fmt.Errorf("no memory for frames: %w", err)
	}
	reg := unix.XDPUmemReg{Addr: uint64(uintptr(unsafe.Pointer(&s.umem[0]))), Len: UmemSize, Size: frameSize}
	if err := setsockopt(s.fd, unix.XDP_UMEM_REG, unsafe.Pointer(&reg), unsafe.Sizeof(reg)); errors.Is(err, unix.ENOBUFS) {
		return fmt.Errorf("%d KiB of frames cannot be locked in memory, raise RLIMIT_MEMLOCK (LimitMEMLOCK=): %w", UmemSize>>10, err)
	} else if err != nil {
		return fmt.Errorf("the kernel takes no frames: %w", err)
	}
	for _, option := range []int{unix.XDP_UMEM_FILL_RING, unix.XDP_UMEM_COMPLETION_RING, unix.XDP_RX_RING, unix.XDP_TX_RING} {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_XDP, option, ringSize); err != nil {
			return fmt.Errorf("no ring: %w", err)
		}
	}
	var offsets unix.XDPMmapOffsets
	size := uint32(unsafe.Sizeof(offsets))
	if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), unix.SOL_XDP, unix.XDP_MMAP_OFFSETS, uintptr(unsafe.Pointer(&offsets)), uintptr(unsafe.Pointer(&size)), 0); errno != 0 {
		return fmt.Errorf("the rings' form: %w", errno)
	}
	if size != uint32(unsafe.Sizeof(offsets)) {
		return errors.New("the kernel is older than 5.4: its rings have no flags")
	}
	for _, x := range []struct {
		ring  *ring
		at    int64
		off   *unix.XDPRingOffset
		entry uint64
	}{{&s.fill, unix.XDP_UMEM_PGOFF_FILL_RING, &offsets.Fr, 8}, {&s.completed, unix.XDP_UMEM_PGOFF_COMPLETION_RING, &offsets.Cr, 8},
		{&s.received, unix.XDP_PGOFF_RX_RING, &offsets.Rx, uint64(unsafe.Sizeof(unix.XDPDesc{}))}, {&s.sent, unix.XDP_PGOFF_TX_RING, &offsets.Tx, uint64(unsafe.Sizeof(unix.XDPDesc{}))}} {
		mem, err := unix.Mmap(s.fd, x.at, int(x.off.Desc+ringSize*x.entry), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		if err != nil {
			return fmt.Errorf("mapping a ring: %w", err)
		}
		word := func(off uint64) *uint32 { return (*uint32)(unsafe.Pointer(&mem[off])) }
		*x.ring = ring{mem: mem, producer: word(x.off.Producer), consumer: word(x.off.Consumer), flags: word(x.off.Flags)}
	}
	s.fills, s.completeds = entries[uint64](&s.fill, offsets.Fr.Desc), entries[uint64](&s.completed, offsets.Cr.Desc)
	s.receiveds, s.sents = entries[unix.XDPDesc](&s.received, offsets.Rx.Desc), entries[unix.XDPDesc](&s.sent, offsets.Tx.Desc)
	// What does not work here costs speed alone.
	unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer)
	unix.SetsockoptInt(s.fd, unix.SOL_XDP, unix.XDP_MAX_TX_SKB_BUDGET, BatchMax)
	for i := range uint64(ringSize) {
		s.refill(i * frameSize)
		s.free = append(s.free, (ringSize+i)*frameSize)
	}
	s.published(&s.fill)
	return nil
}

func entries[T any](r *ring, at uint64) []T {
	return unsafe.Slice((*T)(unsafe.Pointer(&r.mem[at])), ringSize)
}

// bind binds to a queue. Zero-copy is the kernel's choice, where the program is attached in the driver; with generic it cannot be.
func (s *socket) bind(ifindex, queue int, generic bool) error {
	flags := uint16(unix.XDP_USE_NEED_WAKEUP)
	if generic {
		flags |= unix.XDP_COPY
	}
	err := unix.Bind(s.fd, &unix.SockaddrXDP{Flags: flags, Ifindex: uint32(ifindex), QueueID: uint32(queue)})
	for until := time.Now().Add(busyMax); errors.Is(err, unix.EBUSY) && time.Now().Before(until); {
		time.Sleep(busyMax / 100)
		err = unix.Bind(s.fd, &unix.SockaddrXDP{Flags: flags, Ifindex: uint32(ifindex), QueueID: uint32(queue)})
	}
	if err != nil {
		return fmt.Errorf("binding to queue %d: %w", queue, err)
	}
	options, err := unix.GetsockoptInt(s.fd, unix.SOL_XDP, unix.XDP_OPTIONS)
	s.copied = err != nil || options&unix.XDP_OPTIONS_ZEROCOPY == 0
	return nil
}

func (s *socket) close() {
	for _, r := range []*ring{&s.fill, &s.completed, &s.received, &s.sent} {
		if r.mem != nil {
			unix.Munmap(r.mem)
			r.mem = nil
		}
	}
	unix.Close(s.fd)
	if s.umem != nil {
		unix.Munmap(s.umem)
		s.umem = nil
	}
}

// published makes what was put into a ring seen.
func (s *socket) published(r *ring) { atomic.StoreUint32(r.producer, r.at) }

// refill gives a frame back to be received into. There is room: no more than ringSize frames ever go that way.
func (s *socket) refill(addr uint64) {
	s.fills[s.fill.at%ringSize] = addr &^ (frameSize - 1)
	s.fill.at++
}

// waiting is how many frames were received, at most BatchMax.
func (s *socket) waiting() int {
	return int(min(atomic.LoadUint32(s.received.producer)-s.received.at, BatchMax))
}

// next gives the next received frame. The kernel does not use its place before refill.
func (s *socket) next() (frame []byte, addr uint64) {
	d := &s.receiveds[s.received.at%ringSize]
	s.received.at++
	if d.Addr > UmemSize || uint64(d.Len) > UmemSize-d.Addr {
		return nil, d.Addr % UmemSize // never so; the kernel's own word is no reason to crash
	}
	return s.umem[d.Addr:][:d.Len:d.Len], d.Addr
}

// took makes the place in the ring of received frames free.
func (s *socket) took() { atomic.StoreUint32(s.received.consumer, s.received.at) }

// reap takes back the frames that were sent.
func (s *socket) reap() {
	end := atomic.LoadUint32(s.completed.producer)
	for ; s.completed.at != end; s.completed.at++ {
		s.free = append(s.free, s.completeds[s.completed.at%ringSize]&^(frameSize-1))
	}
	atomic.StoreUint32(s.completed.consumer, s.completed.at)
}

// room gives an empty frame to write an answer to; false if all are on their way.
func (s *socket) room() ([]byte, bool) {
	if len(s.free) == 0 {
		return nil, false
	}
	addr := s.free[len(s.free)-1]
	return s.umem[addr:][:frameSize:frameSize], true
}

// queue sends the first n bytes of the frame that room gave.
func (s *socket) queue(n int) {
	s.sents[s.sent.at%ringSize] = unix.XDPDesc{Addr: s.free[len(s.free)-1], Len: uint32(n)}
	s.free = s.free[:len(s.free)-1]
	s.sent.at++
}

// unsent says that the kernel has not taken all that was queued.
func (s *socket) unsent() bool { return atomic.LoadUint32(s.sent.consumer) != s.sent.at }

// kick has the kernel send what was queued, and says how many frames it threw away. It looks at the ring and not at completions: those come
// when a receiver has freed the frame.
func (s *socket) kick() (failed int) {
	s.published(&s.sent)
	for range kicksMax {
		if !s.unsent() || atomic.LoadUint32(s.sent.flags)&unix.XDP_RING_NEED_WAKEUP == 0 {
			break
		}
		_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(s.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0, unix.EAGAIN, unix.EINTR:
		case unix.EBUSY: // the other end's queue is full, and one frame is lost
			failed++
		default: // no buffers for now, or the interface is down
			return failed
		}
		if !s.copied {
			break // the driver goes on by itself
		}
	}
	return failed
}

// wakeup says that the driver sleeps until it is told of frames to receive into.
func (s *socket) wakeup() bool {
	return atomic.LoadUint32(s.fill.flags)&unix.XDP_RING_NEED_WAKEUP != 0
}

// lost is how many frames the kernel threw away for want of room, since the socket was made.
func (s *socket) lost() (frames uint64) {
	var x unix.XDPStatistics
	size := uint32(unsafe.Sizeof(x))
	if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), unix.SOL_XDP, unix.XDP_STATISTICS, uintptr(unsafe.Pointer(&x)), uintptr(unsafe.Pointer(&size)), 0); errno != 0 {
		return 0
	}
	return x.Rx_dropped + x.Rx_ring_full
}

func setsockopt(fd, option int, value unsafe.Pointer, size uintptr) error {
	if _, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(option), uintptr(value), size, 0); errno != 0 {
		return errno
	}
	return nil
}
