// Package xdp receives and sends UDP datagrams past the network stack: AF_XDP sockets, one for each receive queue of a card, and the program
// that picks their frames (docs/decisions/0015-xdp.md). What is in the datagrams is its handler's business.
//
// Linux 5.9 or newer, 64 bits. The process needs CAP_NET_RAW for the sockets, CAP_BPF and CAP_NET_ADMIN for maps, program and attachment.
package xdp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MTUMin is the least MTU of an interface: no answer over UDP is longer than 1232 bytes, which with headers is IPv6's minimum.
const MTUMin = 1280

// Handler answers the datagrams of one queue. Its methods are called from one goroutine and must not allocate.
type Handler interface {
	// Begin begins a batch, End ends it and says how many answers were sent, and how many could not be.
	Begin()
	End(sent, failed int)
	// Answer appends the answer to msg to dst; nil: none. msg and dst are good until End.
	Answer(dst, msg []byte, from netip.AddrPort) []byte
	// Fault is told of a frame that is not answered.
	Fault(Fault)
}

// Mode says where a program may be attached.
type Mode string

const (
	Auto    Mode = "auto" // native, else generic
	Native  Mode = "native"
	Generic Mode = "generic"
)

// ErrAbsent marks errors that mend themselves when the interface comes (up).
var ErrAbsent = errors.New("the interface is not there")

// Listener is an interface with a program and a socket for each queue.
type Listener struct {
	name      string
	ifindex   int
	mac       net.HardwareAddr
	mtu       int
	mode      Mode
	sockets   []*socket
	program   int
	xskmap    int
	addrmap   int
	link      int
	stop      int // eventfd
	threads   sync.WaitGroup
	addresses map[netip.Addr]bool
}

// Open attaches to an interface and binds its queues: queries to port at the addresses come to the sockets from then on. Serve must follow.
func Open(name string, mode Mode, port uint16, addresses []netip.Addr) (*Listener, error) {
	l := &Listener{name: name, program: -1, xskmap: -1, addrmap: -1, link: -1, stop: -1, addresses: map[netip.Addr]bool{}}
	if err := l.open(mode, port, addresses); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func (l *Listener) open(mode Mode, port uint16, addresses []netip.Addr) error {
	i, err := net.InterfaceByName(l.name)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	l.ifindex, l.mac, l.mtu = i.Index, i.HardwareAddr, i.MTU
	if i.Flags&net.FlagLoopback != 0 || len(i.HardwareAddr) != 6 {
		return errors.New("not an Ethernet interface")
	}
	if i.Flags&net.FlagUp == 0 {
		return fmt.Errorf("%w: it is down", ErrAbsent)
	}
	if i.MTU < MTUMin {
		return fmt.Errorf("its MTU is %d, less than %d", i.MTU, MTUMin)
	}
	queues, err := queues(l.name)
	if err != nil {
		return err
	}
	if l.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	// All that may fail comes before the attachment, which resets the rings of some cards.
	for range queues {
		s, err := newSocket()
		if err != nil {
			return err
		}
		l.sockets = append(l.sockets, s)
	}
	if l.addrmap, err = createMap(unix.BPF_MAP_TYPE_HASH, 16, 4, AddressesMax); err == nil {
		l.xskmap, err = createMap(unix.BPF_MAP_TYPE_XSKMAP, 4, 4, QueuesMax)
	}
	if err != nil {
		return fmt.Errorf("no BPF map (CAP_BPF, CAP_NET_ADMIN): %w", err)
	}
	if l.program, err = loadProgram(filter(l.mac, port, l.addrmap, l.xskmap)); err != nil {
		return fmt.Errorf("no BPF program (CAP_BPF, CAP_NET_ADMIN): %w", err)
	}
	if err := l.SetAddresses(addresses); err != nil {
		return err
	}
	if err := l.attach(mode); err != nil {
		return err
	}
	for q, s := range l.sockets {
		err := s.bind(l.ifindex, q, l.mode == Generic)
		if err == nil {
			key, fd := uint32(q), uint32(s.fd)
			err = mapSet(l.xskmap, unsafe.Pointer(&key), unsafe.Pointer(&fd))
		}
		if errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("%w: %w", ErrAbsent, err)
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (l *Listener) attach(mode Mode) (err error) {
	var failed []string
	for _, x := range []struct {
		mode  Mode
		flags uint32
	}{{Native, unix.XDP_FLAGS_DRV_MODE}, {Generic, unix.XDP_FLAGS_SKB_MODE}} {
		if mode != Auto && mode != x.mode {
			continue
		}
		if l.link, err = createLink(l.program, l.ifindex, x.flags); err == nil {
			l.mode = x.mode
			return nil
		}
		if errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("%w: %w", ErrAbsent, err)
		}
		why := err.Error()
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
			why += " (another XDP program is attached; see ip link)"
		}
		failed = append(failed, string(x.mode)+": "+why)
	}
	return errors.New("the program cannot be attached: " + strings.Join(failed, "; "))
}

// queues counts the receive queues that an interface has, QueuesMax at most; frames of others pass to the network stack.
func queues(name string) (int, error) {
	dir := filepath.Join("/sys/class/net", name, "queues")
	all, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("its queues: %w", err)
	}
	n := 0
	for _, e := range all {
		if i, ok := strings.CutPrefix(e.Name(), "rx-"); ok {
			if q, err := strconv.Atoi(i); err == nil {
				n = max(n, q+1)
			}
		}
	}
	if n == 0 {
		return 0, fmt.Errorf("no receive queue in %s", dir)
	}
	return min(n, QueuesMax), nil
}

// Queues is how many queues there are, each with a thread once Serve was called.
func (l *Listener) Queues() int { return len(l.sockets) }

// String says how it is attached.
func (l *Listener) String() string {
	copies := "zero-copy"
	for _, s := range l.sockets {
		if s.copied {
			copies = "copy"
		}
	}
	return fmt.Sprintf("%s, %s, %d queues", l.mode, copies, len(l.sockets))
}

// SetAddresses says whose queries are taken. Beyond AddressesMax they go to the ordinary sockets.
func (l *Listener) SetAddresses(addresses []netip.Addr) error {
	wanted := map[netip.Addr]bool{}
	for _, a := range addresses {
		wanted[a] = true
	}
	for a := range l.addresses {
		if !wanted[a] {
			key := a.As16()
			if err := mapDelete(l.addrmap, unsafe.Pointer(&key)); err != nil {
				return fmt.Errorf("taking %s from the filter: %w", a, err)
			}
			delete(l.addresses, a)
		}
	}
	for a := range wanted {
		if !l.addresses[a] && len(l.addresses) < AddressesMax {
			key, value := a.As16(), uint32(1)
			if err := mapSet(l.addrmap, unsafe.Pointer(&key), unsafe.Pointer(&value)); err != nil {
				return fmt.Errorf("giving %s to the filter: %w", a, err)
			}
			l.addresses[a] = true
		}
	}
	return nil
}

// Changed says that the interface is gone, or is no more what it was when it was opened: another one, or with another address or MTU.
func (l *Listener) Changed() bool {
	i, err := net.InterfaceByName(l.name)
	return err != nil || i.Index != l.ifindex || i.MTU != l.mtu || i.HardwareAddr.String() != l.mac.String()
}

// Lost is how many frames the kernel threw away since there was no room for them.
func (l *Listener) Lost() (frames uint64) {
	for _, s := range l.sockets {
		frames += s.lost()
	}
	return frames
}

// Serve starts a thread for each queue, with a handler of its own.
func (l *Listener) Serve(handler func() Handler) {
	for _, s := range l.sockets {
		h := handler()
		l.threads.Go(func() { l.run(s, h) })
	}
}

// run answers what comes to one queue, and at the end what waits in it. It sleeps in poll(2), which on a core that is shared with others
// gets more done than spinning, and which also does the wake-ups that a driver asks for.
func (l *Listener) run(s *socket, h Handler) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}, {Fd: int32(l.stop), Events: unix.POLLIN}}
	for {
		if l.batch(s, h) > 0 {
			if s.wakeup() {
				unix.Poll(fds[:1], 0)
			}
			continue
		}
		if fds[1].Revents != 0 {
			return
		}
		timeout := -1
		if s.unsent() {
			timeout = 1 // millisecond: poll sends, too, but nothing says when there is room again
		}
		unix.Poll(fds, timeout)
	}
}

// batch answers up to BatchMax frames and says how many there were.
func (l *Listener) batch(s *socket, h Handler) int {
	n := s.waiting()
	if n == 0 {
		return 0
	}
	h.Begin()
	s.reap()
	sent, failed := 0, 0
	for range n {
		frame, addr := s.next()
		switch l.answer(s, h, frame) {
		case answered:
			sent++
		case full:
			failed++
		}
		s.refill(addr)
	}
	// The frames are the kernel's again only after End, which says that nobody looks at a message any more.
	if sent > 0 {
		lost := s.kick()
		sent, failed = sent-min(lost, sent), failed+lost
	}
	h.End(sent, failed)
	s.took()
	s.published(&s.fill)
	return n
}

type outcome uint8

const (
	silent outcome = iota
	answered
	full
)

func (l *Listener) answer(s *socket, h Handler, frame []byte) outcome {
	msg, from, f := Parse(frame)
	if f != OK {
		h.Fault(f)
		return silent
	}
	out, ok := s.room()
	if !ok {
		s.kick()
		s.reap()
		if out, ok = s.room(); !ok {
			return full
		}
	}
	head := HeaderSize(frame)
	reply := h.Answer(out[head:head], msg, from)
	if reply == nil {
		return silent
	}
	n := head + len(reply)
	if len(reply) > 0 && &reply[0] != &out[head] { // it was too long for the frame, or made elsewhere
		copy(out[head:], reply)
	}
	if n-etherSize > l.mtu || n > len(out) { // never so: MTUMin
		return full
	}
	Address(out[:n], frame)
	s.queue(n)
	return answered
}

// Detach takes the program off: frames go the ordinary way again. What the sockets hold is still answered.
func (l *Listener) Detach() { closeFD(&l.link) }

// Close detaches, answers what waits, ends the threads and closes the sockets.
func (l *Listener) Close() {
	l.Detach()
	if l.stop >= 0 {
		unix.Write(l.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
	l.threads.Wait()
	for _, s := range l.sockets {
		s.close()
	}
	l.sockets = nil
	for _, fd := range []*int{&l.program, &l.xskmap, &l.addrmap, &l.stop} {
		closeFD(fd)
	}
}

func closeFD(fd *int) {
	if *fd >= 0 {
		unix.Close(*fd)
		*fd = -1
	}
}
