package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Echo answers every datagram with its first bytes, made to look like a reply, and zeros up to size: what the system calls for
// receiving and sending cost when nothing is done in between. It is the loop that a C program would run, one blocking recvmmsg and one
// sendmmsg a batch, by raw system calls that Go's scheduler hears nothing of. No server can afford those, so the echo is
// a bound and not a contender.
func Echo(at netip.AddrPort, size int) error {
	return echo(at, size, func(trap uintptr, fd int, b *batch, from, to, flags int) (int, unix.Errno) {
		n, _, errno := unix.RawSyscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&b.hdr[from])), uintptr(to-from), uintptr(flags), 0, 0)
		return int(n), errno
	})
}

// Bare is so many echoes at one port, each a goroutine that makes ordinary system calls: what is left when Go's scheduler takes part, with
// as many threads to run on as dmpd has.
func Bare(at netip.AddrPort, size, loops int) error {
	runtime.GOMAXPROCS(loops + 2)
	failed := make(chan error)
	for range loops {
		go func() {
			failed <- echo(at, size, func(trap uintptr, fd int, b *batch, from, to, flags int) (int, unix.Errno) {
				n, _, errno := unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&b.hdr[from])), uintptr(to-from), uintptr(flags), 0, 0)
				return int(n), errno
			})
		}()
	}
	return <-failed
}

func echo(at netip.AddrPort, size int, call func(trap uintptr, fd int, b *batch, from, to, flags int) (int, unix.Errno)) error {
	fd, err := listenUDP(at)
	if err != nil {
		return fmt.Errorf("bench: echo on %s: %w", at, err)
	}
	defer unix.Close(fd)
	in, out := newBatch(replyMax), newBatch(replyMax)
	for i := range in.hdr {
		in.hdr[i].hdr.Name = (*byte)(unsafe.Pointer(&in.addr[i]))
		out.hdr[i].hdr.Name = in.hdr[i].hdr.Name
	}
	for {
		for i := range in.hdr {
			in.hdr[i].hdr.Namelen = unix.SizeofSockaddrInet6
		}
		n, errno := call(unix.SYS_RECVMMSG, fd, in, 0, batchMax, unix.MSG_WAITFORONE)
		if errno != 0 {
			if errors.Is(errno, unix.EINTR) || errors.Is(errno, unix.ECONNREFUSED) {
				continue
			}
			return fmt.Errorf("bench: echo: %w", errno)
		}
		for i := range n {
			msg := in.data[i*replyMax:][:in.hdr[i].n]
			reply := out.data[i*replyMax:][:replyMax]
			copy(reply, msg)
			if len(msg) >= 12 {
				binary.BigEndian.PutUint16(reply[2:], 0x8400)
			}
			out.iov[i].SetLen(max(size, len(msg)))
			out.hdr[i].hdr.Namelen = in.hdr[i].hdr.Namelen
		}
		for at := 0; at < n; {
			sent, errno := call(unix.SYS_SENDMMSG, fd, out, at, n, 0)
			if errno != 0 {
				sent = 1 // passed over
			}
			at += sent
		}
	}
}

func listenUDP(at netip.AddrPort) (int, error) {
	if !at.Addr().Is4() {
		return 0, errors.New("the echo speaks IPv4")
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}); err != nil {
		unix.Close(fd)
		return 0, err
	}
	return fd, nil
}

// echoed accepts whatever an echo sends back for a message of another source.
type echoed struct{ Source }

func (e echoed) Check(_ uint32, reply []byte) error {
	if reply[2]&0x80 == 0 {
		return errors.New("not a reply")
	}
	return nil
}
