package bench

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Source makes messages and judges the replies to them. The first two bytes of message k are k modulo 65,536.
type Source interface {
	Message(k uint32) []byte
	Check(k uint32, reply []byte) error
}

// Load says how to load a server over UDP.
type Load struct {
	Target   netip.AddrPort
	From     netip.Addr // the client's; invalid: what the system chooses
	Spread   bool       // socket i has the i-th address from From on
	Duration time.Duration
	// QPS is the offered load. 0: closed loop, Window messages are under way at any time. Otherwise open loop: message k is due
	// at k/QPS and its latency counts from then, however late it was sent.
	QPS      float64
	Window   int
	Sockets  int
	Messages int           // stop after so many; 0: no limit
	Patience time.Duration // how long a reply is waited for; 0: lostAfter
}

const (
	batchMax  = 64
	replyMax  = 4096
	openLimit = 1 << 15 // messages under way on one socket in an open loop: half of its ids
	orderMax  = 1 << 14 // when to tidy up what was sent, if there is never an idle moment
	// lostAfter is how long a reply is waited for. Long, so that a stall of the machine is latency and not loss.
	lostAfter = 5 * time.Second
)

// Result is what came of a load.
type Result struct {
	Sent, Answered, Lost int
	Wrong                int
	FirstWrong           error
	Bytes                int // of replies
	Elapsed              time.Duration
	Latency              Histogram
	ServerCPU            time.Duration // set by whoever knows the server
	OwnCPU               time.Duration

	lastNs        int64
	process, core time.Duration // in a lab: CPU time of the processes alone, and of everything on the server's cores
}

// PerCPU is answers for each second of the server's CPU time.
func (r *Result) PerCPU() float64 { return float64(r.Answered) / r.ServerCPU.Seconds() }

// Rate is answers a second.
func (r *Result) Rate() float64 { return float64(r.Answered) / r.Elapsed.Seconds() }

// Histogram counts durations in buckets of 1/32 of their power of two, so that a quantile is right to 3 %.
type Histogram struct {
	counts [64 * 32]uint32
	n      int
}

func bucketOf(ns int64) int {
	v := uint64(max(ns, 1))
	exp := bits.Len64(v) - 1
	if exp < 5 {
		return int(v)
	}
	return exp<<5 | int(v>>(exp-5)&31)
}

// Add counts one.
func (h *Histogram) Add(ns int64) {
	h.counts[bucketOf(ns)]++
	h.n++
}

// Quantile gives the duration that the share q of all did not exceed.
func (h *Histogram) Quantile(q float64) time.Duration {
	left := int(math.Ceil(q * float64(h.n)))
	for i, c := range h.counts {
		if left -= int(c); left <= 0 && h.n > 0 {
			if i < 32 {
				return time.Duration(i)
			}
			exp := i >> 5
			return time.Duration((32 + uint64(i&31) + 1) << (exp - 5))
		}
	}
	return 0
}

func monoNs() int64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return t.Nano()
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// batch is buffers for one recvmmsg or sendmmsg.
type batch struct {
	hdr  [batchMax]mmsghdr
	iov  [batchMax]unix.Iovec
	addr [batchMax]unix.RawSockaddrInet6
	data []byte
}

func newBatch(width int) *batch {
	b := &batch{data: make([]byte, batchMax*width)}
	for i := range b.hdr {
		b.iov[i].Base = &b.data[i*width]
		b.iov[i].SetLen(width)
		b.hdr[i].hdr.Iov = &b.iov[i]
		b.hdr[i].hdr.SetIovlen(1)
	}
	return b
}

func mmsg(trap uintptr, fd int, b *batch, from, to, flags int) (int, error) {
	for {
		n, _, errno := unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&b.hdr[from])), uintptr(to-from), uintptr(flags), 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

type pending struct {
	sentNs int64
	k      uint32
	open   bool
	again  bool // the id was used before for a message that was given up: a reply to that may still come
}

// socket is one client address with what it has under way.
type socket struct {
	fd      int
	slots   []pending // by message id
	order   []uint32  // what was sent, oldest first; the front is dropped when it was answered
	open    int
	in, out *batch
	queued  int
}

func dial(from netip.Addr, to netip.AddrPort) (*socket, error) {
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20) // the kernel gives what it allows
	if from.Is4() {
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: from.As4()}); err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	if err := unix.Connect(fd, sa); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &socket{fd: fd, slots: make([]pending, 1<<16), in: newBatch(replyMax), out: newBatch(replyMax)}, nil
}

// queue adds message k to the batch that flush sends.
func (s *socket) queue(k uint32, msg []byte, sentNs int64, r *Result) {
	n := copy(s.out.data[s.queued*replyMax:][:replyMax], msg)
	s.out.iov[s.queued].SetLen(n)
	s.queued++
	slot := &s.slots[uint16(k)]
	if slot.open { // its id comes round again: given up early
		s.open--
		r.Lost++
	}
	*slot = pending{sentNs, k, true, slot.open || slot.again}
	s.order = append(s.order, k)
	s.open++
}

func (s *socket) flush() error {
	for at := 0; at < s.queued; {
		n, err := mmsg(unix.SYS_SENDMMSG, s.fd, s.out, at, s.queued, 0)
		switch {
		case err == nil:
			at += n
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS):
			at = s.queued // counts as lost in the end
		default:
			return err
		}
	}
	s.queued = 0
	return nil
}

// receive takes what has come and gives how many datagrams there were.
func (s *socket) receive(src Source, r *Result) (int, error) {
	n, err := mmsg(unix.SYS_RECVMMSG, s.fd, s.in, 0, batchMax, unix.MSG_DONTWAIT)
	if errors.Is(err, unix.EAGAIN) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	now := monoNs()
	for i := range n {
		reply := s.in.data[i*replyMax:][:s.in.hdr[i].n]
		if len(reply) < 12 {
			r.wrong(fmt.Errorf("a reply of %d bytes", len(reply)))
			continue
		}
		slot := &s.slots[uint16(reply[0])<<8|uint16(reply[1])]
		if !slot.open {
			continue // it had been given up
		}
		err := src.Check(slot.k, reply)
		if err != nil && slot.again {
			continue
		}
		slot.open = false
		s.open--
		if err != nil {
			r.wrong(err)
			continue
		}
		r.Answered++
		r.Bytes += len(reply)
		r.Latency.Add(now - slot.sentNs)
		r.lastNs = now
	}
	return n, nil
}

// expire gives up what waits too long.
func (s *socket) expire(now int64, patience time.Duration, r *Result) {
	n := 0
	for ; n < len(s.order); n++ {
		slot := &s.slots[uint16(s.order[n])]
		if slot.open && slot.k == s.order[n] {
			if now-slot.sentNs < int64(patience) {
				break
			}
			slot.open, slot.again = false, true
			s.open--
			r.Lost++
		}
	}
	if n > 0 {
		s.order = append(s.order[:0], s.order[n:]...)
	}
}

func (r *Result) wrong(err error) {
	if r.Wrong++; r.FirstWrong == nil {
		r.FirstWrong = err
	}
}

// Run loads the server. The calling goroutine does all of it and should have a thread and a core of its own.
func (l Load) Run(src Source) (r Result, err error) {
	sockets := make([]*socket, max(l.Sockets, 1))
	polls := make([]unix.PollFd, len(sockets))
	from := l.From
	for i := range sockets {
		if l.Spread && i > 0 {
			from = from.Next()
		}
		if sockets[i], err = dial(from, l.Target); err != nil {
			return r, fmt.Errorf("bench: %s: %w", l.Target, err)
		}
		defer unix.Close(sockets[i].fd)
		polls[i] = unix.PollFd{Fd: int32(sockets[i].fd), Events: unix.POLLIN}
	}
	l.Patience = cmp.Or(l.Patience, lostAfter)
	window := max(l.Window/len(sockets), 1)
	cpu := ownCPU()
	start := monoNs()
	r.lastNs = start + 1
	end := start + int64(l.Duration)
	next := uint32(0)
	for turn := 0; ; turn++ { // in an open loop few are due at a time, and each socket has its turn
		now := monoNs()
		sending := now < end && (l.Messages == 0 || r.Sent < l.Messages)
		due := math.MaxInt
		if l.QPS > 0 {
			due = int(float64(now-start)/1e9*l.QPS) + 1 // message 0 at once
		}
		got, open := 0, 0
		for i := range sockets {
			s := sockets[(turn+i)%len(sockets)]
			n, err := s.receive(src, &r)
			if err != nil {
				return r, fmt.Errorf("bench: %s: %w", l.Target, err)
			}
			got += n
			for sending && s.queued < batchMax && (l.Messages == 0 || r.Sent < l.Messages) {
				at := now
				if l.QPS > 0 {
					if r.Sent >= due {
						break
					}
					at = start + int64(float64(r.Sent)/l.QPS*1e9)
					if s.open >= openLimit {
						r.Sent++
						r.Lost++
						continue
					}
				} else if s.open >= window {
					break
				}
				if l.QPS > 0 && s.queued >= 8 && i < len(sockets)-1 {
					break // spread over the sockets
				}
				s.queue(next, src.Message(next), at, &r)
				next++
				r.Sent++
			}
			if err := s.flush(); err != nil {
				return r, fmt.Errorf("bench: %s: %w", l.Target, err)
			}
			open += s.open
			if len(s.order) > orderMax {
				s.expire(now, l.Patience, &r)
			}
		}
		if got > 0 {
			continue
		}
		for _, s := range sockets {
			s.expire(now, l.Patience, &r)
		}
		if !sending && open == 0 {
			break
		}
		wait := int64(time.Millisecond)
		if l.QPS > 0 && sending {
			wait = min(max(start+int64(float64(r.Sent)/l.QPS*1e9)-monoNs(), 0), wait)
		}
		timeout := unix.NsecToTimespec(wait)
		if _, err := unix.Ppoll(polls, &timeout, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return r, fmt.Errorf("bench: poll: %w", err)
		}
	}
	r.Elapsed = time.Duration(r.lastNs - start) // what is lost is waited for in vain
	r.OwnCPU = ownCPU() - cpu
	return r, nil
}

func ownCPU() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
