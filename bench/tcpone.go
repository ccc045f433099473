package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// OneLoad asks one question for each TCP connection, as resolvers do after TC: connect, query, reply, close. Window connections
// are under way at any time.
type OneLoad struct {
	Target   netip.AddrPort // IPv4, since the sources are
	Duration time.Duration
	Window   int
}

const (
	// oneSources is how many client addresses take turns, from oneFrom on. A connection leaves its address and port in TIME_WAIT
	// for a minute, and one address has 28,000 ports.
	oneSources = 4000
	// oneTries is how many other addresses are tried when one has no port left.
	oneTries = 8
)

var oneFrom = [4]byte{127, 5, 0, 1}

// attempt is one connection.
type attempt struct {
	fd     int
	k      uint32
	sentNs int64
	out    []byte // what is not yet written
	in     []byte
}

// Run loads the server. The calling goroutine does all of it.
func (l OneLoad) Run(src Source) (r Result, err error) {
	target := unix.SockaddrInet4{Port: int(l.Target.Port()), Addr: l.Target.Addr().As4()}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return r, fmt.Errorf("bench: epoll: %w", err)
	}
	defer unix.Close(epoll)
	slots := make([]attempt, max(l.Window, 1))
	for i := range slots {
		slots[i] = attempt{fd: -1, in: make([]byte, 0, 2+replyMax)}
	}
	defer func() {
		for i := range slots {
			if slots[i].fd >= 0 {
				unix.Close(slots[i].fd)
			}
		}
	}()
	cpu := ownCPU()
	start := monoNs()
	r.lastNs = start + 1
	end := start + int64(l.Duration)
	next, open, source := uint32(0), 0, uint32(0)
	var refused error
	begin := func(i int) error {
		a := &slots[i]
		a.k, a.sentNs, a.in = next, monoNs(), a.in[:0]
		msg := src.Message(next)
		a.out = append(binary.BigEndian.AppendUint16(a.out[:0], uint16(len(msg))), msg...)
		next++
		r.Sent++
		for try := 0; ; try++ {
			n := binary.BigEndian.Uint32(oneFrom[:]) + source%oneSources
			source++
			var from unix.SockaddrInet4
			binary.BigEndian.PutUint32(from.Addr[:], n)
			if a.fd, err = connect(&from, &target); err == nil {
				break
			}
			if !errors.Is(err, unix.EADDRNOTAVAIL) || try == oneTries {
				return fmt.Errorf("bench: %s: %w", l.Target, err)
			}
		}
		open++
		// On loopback the connection stands by now.
		if err := a.write(); err != nil {
			return fmt.Errorf("bench: %s: %w", l.Target, err)
		}
		events := uint32(unix.EPOLLIN)
		if len(a.out) > 0 {
			events |= unix.EPOLLOUT
		}
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, a.fd, &unix.EpollEvent{Events: events, Fd: int32(i)}); err != nil {
			return fmt.Errorf("bench: epoll: %w", err)
		}
		return nil
	}
	finish := func(a *attempt) {
		unix.Close(a.fd) // which takes it out of epoll
		a.fd = -1
		open--
	}
	for i := range slots {
		if err := begin(i); err != nil {
			return r, err
		}
	}
	events := make([]unix.EpollEvent, len(slots))
	swept := start
	for open > 0 {
		n, err := unix.EpollWait(epoll, events, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return r, fmt.Errorf("bench: epoll: %w", err)
		}
		now := monoNs()
		for _, e := range events[:max(n, 0)] {
			i := int(e.Fd)
			a := &slots[i]
			if len(a.out) > 0 {
				if err := a.write(); err == nil && len(a.out) == 0 { // if it was refused, reading says so
					if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_MOD, a.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}); err != nil {
						return r, fmt.Errorf("bench: epoll: %w", err)
					}
				}
			}
			reply, err := a.read()
			switch {
			case err != nil:
				if refused == nil {
					refused = err
				}
				r.Lost++
			case reply == nil:
				continue
			default:
				if err := src.Check(a.k, reply); err != nil {
					r.wrong(err)
					break
				}
				r.Answered++
				r.Bytes += len(reply)
				r.Latency.Add(now - a.sentNs)
				r.lastNs = now
			}
			finish(a)
			if now < end {
				if err := begin(i); err != nil {
					return r, err
				}
			}
		}
		if now-swept < int64(100*time.Millisecond) {
			continue
		}
		swept = now
		for i := range slots {
			if a := &slots[i]; a.fd >= 0 && now-a.sentNs > int64(lostAfter) {
				r.Lost++
				finish(a)
				if now < end {
					if err := begin(i); err != nil {
						return r, err
					}
				}
			}
		}
	}
	r.Elapsed = time.Duration(r.lastNs - start)
	r.OwnCPU = ownCPU() - cpu
	if r.Answered == 0 && refused != nil {
		return r, fmt.Errorf("bench: %s: %w", l.Target, refused)
	}
	return r, nil
}

// connect begins a connection from an address, with a port that is free towards that target.
func connect(from, to *unix.SockaddrInet4) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err == nil {
		if err = unix.Bind(fd, from); err == nil {
			err = unix.Connect(fd, to)
		}
	}
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// write sends what can be sent.
func (a *attempt) write() error {
	n, err := unix.Write(a.fd, a.out)
	switch {
	case err == nil:
		a.out = a.out[n:]
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOTCONN), errors.Is(err, unix.EINTR):
	case errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.ECONNREFUSED): // read says so
	default:
		return err
	}
	return nil
}

// read gives the reply once it is whole, else nil.
func (a *attempt) read() ([]byte, error) {
	n, err := unix.Read(a.fd, a.in[len(a.in):cap(a.in)])
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return nil, nil
	case err != nil:
		return nil, err
	case n == 0:
		return nil, io.ErrUnexpectedEOF
	}
	a.in = a.in[:len(a.in)+n]
	if len(a.in) < 2 {
		return nil, nil
	}
	size := int(binary.BigEndian.Uint16(a.in))
	if size < 12 || size > replyMax {
		return nil, fmt.Errorf("a reply of %d bytes", size)
	}
	if len(a.in) < 2+size {
		return nil, nil
	}
	return a.in[2 : 2+size], nil
}
