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
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// batch is a loop's buffers for datagrams: one more place to send than to receive, for the datagram that gnet read itself. Received bytes
// lie outside the heap, where a page is only there once it was written to.
type batch struct {
	mem     []byte
	in      [batchMax]mmsghdr
	inIov   [batchMax]unix.Iovec
	inAddr  [batchMax]unix.RawSockaddrInet6
	first   unix.RawSockaddrInet6 // peer of the datagram that gnet read
	out     [batchMax + 1]mmsghdr
	outIov  [batchMax + 1]unix.Iovec
	replies [batchMax + 1][replyMax]byte
	sending int
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
		h := &b.out[i].hdr
		h.Iov = &b.outIov[i]
		h.SetIovlen(1)
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
func (b *batch) room() []byte { return b.replies[b.sending][:0] }

// queue puts a reply in the batch. to must stay as it is until send.
func (b *batch) queue(reply []byte, to *unix.RawSockaddrInet6) {
	h := &b.out[b.sending]
	b.outIov[b.sending].Base = unsafe.SliceData(reply)
	b.outIov[b.sending].SetLen(len(reply))
	h.hdr.Name = (*byte)(unsafe.Pointer(to))
	h.hdr.Namelen = unix.SizeofSockaddrInet6
	if to.Family == unix.AF_INET {
		h.hdr.Namelen = unix.SizeofSockaddrInet4
	}
	b.sending++
}

// send sends what is queued and says how many datagrams the system refused. A message that cannot be sent is passed over, never the
// batch.
func (b *batch) send(fd int) (failed int) {
	for at := 0; at < b.sending; {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.out[at])), uintptr(b.sending-at), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			at += int(n)
		case unix.EINTR, unix.ECONNREFUSED: // the latter tells of an earlier datagram
		default:
			failed++
			at++
		}
	}
	b.sending = 0
	return failed
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
