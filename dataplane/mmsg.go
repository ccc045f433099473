package dataplane

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	batchMax    = 64      // datagrams of one recvmmsg: fuller batches gain nothing measurable
	roundsMax   = 8       // recvmmsg calls for one wake-up, so that TCP on the same loop is not starved
	datagramMax = 1 << 16 // a UDP datagram with its headers
	replyMax    = 4096    // room for one UDP reply; a longer one is allocated
	segmentsMax = 64      // datagrams of one message (UDP_MAX_SEGMENTS of the first kernels that had it)
	messageMax  = 65000   // their bytes
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// segment is the control message UDP_SEGMENT of udp(7).
type segment struct {
	unix.Cmsghdr
	size uint16
	_    [6]byte
}

// batch is a loop's buffers for datagrams: one more place to send than to receive, for the datagram that gnet read itself. Received bytes
// lie outside the heap, where a page is only there once it was written to.
//
// Replies of one length to one port are one message to the kernel, which cuts it into datagrams (UDP_SEGMENT) behind most of its work:
// what asks from few ports costs a fifth less. Where each question has a port of its own, every message is one reply.
type batch struct {
	mem     []byte
	in      [batchMax]mmsghdr
	inIov   [batchMax]unix.Iovec
	inAddr  [batchMax]unix.RawSockaddrInet6
	first   unix.RawSockaddrInet6 // peer of the datagram that gnet read
	rooms   [batchMax + 1][replyMax]byte
	replies [batchMax + 1]struct {
		msg  []byte
		next uint8 // of the same message
	}
	sending  int // replies
	messages [batchMax + 1]message
	out      [batchMax + 1]mmsghdr // of messages
	outIov   [batchMax + 1]unix.Iovec
	segments [batchMax + 1]segment
	grouped  int
	byPort   [64]uint8 // last message to a port of that hash, + 1
	cuts     bool      // the kernel has UDP_SEGMENT
	asked    bool
	joined   int // replies of the last send that shared a message
}

// message is replies that go out as one.
type message struct {
	to          *unix.RawSockaddrInet6
	size        int // of each reply
	n           int
	first, last uint8 // replies
}

func newBatch() (*batch, error) {
	mem, err := unix.Mmap(-1, 0, batchMax*datagramMax, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, err
	}
	b := &batch{mem: mem}
	for i := range b.in {
		b.inIov[i].Base = &mem[i*datagramMax]
		b.inIov[i].SetLen(datagramMax)
		h := &b.in[i].hdr
		h.Iov, h.Name = &b.inIov[i], (*byte)(unsafe.Pointer(&b.inAddr[i]))
		h.SetIovlen(1)
	}
	for i := range b.out {
		b.segments[i].Level, b.segments[i].Type = unix.SOL_UDP, unix.UDP_SEGMENT
		b.segments[i].SetLen(unix.SizeofCmsghdr + 2)
	}
	return b, nil
}

func (b *batch) close() { unix.Munmap(b.mem) }

// receive reads what waits, without waiting itself; 0 if there is nothing.
func (b *batch) receive(fd int) int {
	for i := range b.in {
		b.in[i].hdr.Namelen = unix.SizeofSockaddrInet6 // the kernel stores to it
	}
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.in[0])), batchMax, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n)
		case unix.EINTR, unix.ECONNREFUSED: // the latter: an earlier reply was refused, and this call reported it
			continue
		}
		return 0
	}
}

// datagram is the i-th that was received; cut says that it was longer than the buffer.
func (b *batch) datagram(i int) (msg []byte, cut bool) {
	return b.mem[i*datagramMax:][:b.in[i].n:datagramMax], b.in[i].hdr.Flags&unix.MSG_TRUNC != 0
}

// room is where the next reply is appended.
func (b *batch) room() []byte { return b.rooms[b.sending][:0] }

// queue puts a reply in the batch. Both must stay as they are until send.
func (b *batch) queue(reply []byte, to *unix.RawSockaddrInet6) {
	i := uint8(b.sending)
	b.replies[i].msg = reply
	b.sending++
	at := &b.byPort[to.Port>>8&63] // the low byte: it is big-endian
	if *at != 0 && b.cuts {
		if m := &b.messages[*at-1]; m.size == len(reply) && m.n < segmentsMax && (m.n+1)*m.size <= messageMax && samePeer(m.to, to) {
			b.replies[m.last].next = i
			m.last = i
			m.n++
			return
		}
	}
	b.messages[b.grouped] = message{to, len(reply), 1, i, i}
	b.grouped++
	*at = uint8(b.grouped)
}

// send sends what is queued and says how many datagrams the system refused. A message that cannot be sent is passed over, never the
// batch.
func (b *batch) send(fd int) (failed int) {
	if !b.asked { // older kernels pass over what they do not know, and would send one long datagram
		_, err := unix.GetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT)
		b.asked, b.cuts = true, err == nil
	}
	iov := 0
	b.joined = 0
	for g := range b.grouped {
		m, h := &b.messages[g], &b.out[g].hdr
		h.Name = (*byte)(unsafe.Pointer(m.to))
		h.Namelen = unix.SizeofSockaddrInet6
		if m.to.Family == unix.AF_INET {
			h.Namelen = unix.SizeofSockaddrInet4
		}
		h.Iov, h.Control = &b.outIov[iov], nil
		h.SetIovlen(m.n)
		h.SetControllen(0)
		if m.n > 1 {
			b.segments[g].size = uint16(m.size)
			h.Control = (*byte)(unsafe.Pointer(&b.segments[g]))
			h.SetControllen(int(unsafe.Sizeof(segment{})))
			b.joined += m.n
		}
		i := m.first
		for range m.n {
			b.outIov[iov].Base = unsafe.SliceData(b.replies[i].msg)
			b.outIov[iov].SetLen(m.size)
			i = b.replies[i].next
			iov++
		}
	}
	for at := 0; at < b.grouped; {
		n, errno := sendmmsg(fd, b.out[at:b.grouped])
		switch errno {
		case 0:
			at += n
		case unix.EINTR, unix.ECONNREFUSED: // the latter tells of an earlier datagram
		default:
			failed += b.singly(fd, &b.out[at], errno)
			at++
		}
	}
	b.sending, b.grouped = 0, 0
	clear(b.byPort[:])
	return failed
}

// singly sends the replies of a message that the system refused as a whole, and says how many it refuses still. Some devices and routes
// cannot take what is cut later (EIO, EINVAL, EMSGSIZE): then nothing is joined any more.
func (b *batch) singly(fd int, whole *mmsghdr, errno unix.Errno) (failed int) {
	n := int(whole.hdr.Iovlen)
	if n == 1 {
		return 1
	}
	if errno != unix.EAGAIN && errno != unix.ENOBUFS && errno != unix.EPERM {
		b.cuts = false
	}
	one := [1]mmsghdr{*whole}
	one[0].hdr.Control = nil
	one[0].hdr.SetControllen(0)
	one[0].hdr.SetIovlen(1)
	for i := 0; i < n; {
		one[0].hdr.Iov = (*unix.Iovec)(unsafe.Add(unsafe.Pointer(whole.hdr.Iov), uintptr(i)*unsafe.Sizeof(unix.Iovec{})))
		switch _, errno := sendmmsg(fd, one[:]); errno {
		case unix.EINTR, unix.ECONNREFUSED:
			continue
		case 0:
		default:
			failed++
		}
		i++
	}
	return failed
}

func sendmmsg(fd int, hdrs []mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&hdrs[0])), uintptr(len(hdrs)), unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

// samePeer compares socket addresses of one family.
func samePeer(a, b *unix.RawSockaddrInet6) bool {
	if a.Port != b.Port || a.Family != b.Family {
		return false
	}
	if a.Family == unix.AF_INET {
		return (*unix.RawSockaddrInet4)(unsafe.Pointer(a)).Addr == (*unix.RawSockaddrInet4)(unsafe.Pointer(b)).Addr
	}
	return a.Addr == b.Addr && a.Scope_id == b.Scope_id
}

// addrPort reads a socket address.
func addrPort(sa *unix.RawSockaddrInet6) netip.AddrPort {
	port := (*[2]byte)(unsafe.Pointer(&sa.Port)) // network byte order
	if sa.Family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr), binary.BigEndian.Uint16(port[:]))
	}
	return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), binary.BigEndian.Uint16(port[:]))
}

// setSockaddr writes the address that gnet gives.
func setSockaddr(sa *unix.RawSockaddrInet6, a *net.UDPAddr) {
	ip := a.AddrPort().Addr()
	port := (*[2]byte)(unsafe.Pointer(&sa.Port))
	binary.BigEndian.PutUint16(port[:], uint16(a.Port))
	if ip = ip.Unmap(); ip.Is4() {
		sa.Family = unix.AF_INET
		(*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr = ip.As4()
		return
	}
	sa.Family = unix.AF_INET6
	sa.Flowinfo, sa.Scope_id = 0, 0
	sa.Addr = ip.As16()
	if a.Zone != "" { // link-local: rare enough to ask for the interface
		if i, err := net.InterfaceByName(a.Zone); err == nil {
			sa.Scope_id = uint32(i.Index)
		} else if n, err := strconv.ParseUint(a.Zone, 10, 32); err == nil {
			sa.Scope_id = uint32(n)
		}
	}
}
