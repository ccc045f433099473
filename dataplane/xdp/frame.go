package xdp

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Fault says why a frame is not answered.
type Fault uint8

const (
	OK       Fault = iota
	Length         // a length that reaches beyond the frame, or is less than the headers
	Checksum       // of the IPv4 header or of UDP
)

// headerMax is what lies before the message in the longest frame: Ethernet, IPv6, UDP.
const headerMax = etherSize + ip6Size + udpSize

// Parse looks at a frame that the filter took. msg is the DNS message, which lies in the frame.
//
// The checksum of UDP must be right, or be what the kernel leaves for a card to finish: the sum over the pseudo header alone. That is how
// a frame comes that never was on a wire, from another namespace or a virtual machine. A frame that a wire has spoilt passes either test
// with one chance in 2^16. Over IPv4 it may be missing (RFC 768), over IPv6 not (RFC 8200 8.1).
func Parse(frame []byte) (msg []byte, from netip.AddrPort, f Fault) {
	if len(frame) < etherSize+ip4Size+udpSize {
		return nil, from, Length
	}
	ip := frame[etherSize:]
	var udp, pair []byte
	var source netip.Addr
	v4 := frame[12] == 0x08
	if v4 {
		n := int(binary.BigEndian.Uint16(ip[2:]))
		if n < ip4Size+udpSize || n > len(ip) {
			return nil, from, Length
		}
		if fold(sum(ip[:ip4Size], 0)) != 0xFFFF {
			return nil, from, Checksum
		}
		udp, pair, source = ip[ip4Size:n], ip[12:20], netip.AddrFrom4([4]byte(ip[12:16]))
	} else {
		if len(ip) < ip6Size+udpSize {
			return nil, from, Length
		}
		n := int(binary.BigEndian.Uint16(ip[4:]))
		if n < udpSize || n > len(ip)-ip6Size {
			return nil, from, Length
		}
		udp, pair, source = ip[ip6Size:ip6Size+n], ip[8:40], netip.AddrFrom16([16]byte(ip[8:24]))
	}
	n := int(binary.BigEndian.Uint16(udp[4:]))
	if n < udpSize || n > len(udp) {
		return nil, from, Length
	}
	udp = udp[:n]
	switch check := binary.BigEndian.Uint16(udp[6:]); {
	case check == 0:
		if !v4 {
			return nil, from, Checksum
		}
	default:
		pseudo := sum(pair, uint64(unix.IPPROTO_UDP+n))
		if fold(sum(udp, pseudo)) != 0xFFFF && check != fold(pseudo) {
			return nil, from, Checksum
		}
	}
	return udp[udpSize:], netip.AddrPortFrom(source, binary.BigEndian.Uint16(udp)), OK
}

// HeaderSize is what lies before the message in the answer to a frame.
func HeaderSize(frame []byte) int {
	if frame[12] == 0x08 {
		return etherSize + ip4Size + udpSize
	}
	return headerMax
}

// hopLimit is the TTL of answers, as the kernel's sockets have it.
const hopLimit = 64

// Address writes the headers of an answer, which is a whole frame but for them: to whom request is from, from whom it is to, by the way that
// it came. IPv4 goes with DF, as from a socket of ours; nothing that is sent needs fragments.
func Address(answer, request []byte) {
	copy(answer[0:6], request[6:12])
	copy(answer[6:12], request[0:6])
	copy(answer[12:14], request[12:14])
	in, ip := request[etherSize:], answer[etherSize:]
	var udp, ports, pair []byte
	if request[12] == 0x08 {
		binary.BigEndian.PutUint32(ip[0:], 0x45<<24|uint32(len(ip)))
		binary.BigEndian.PutUint32(ip[4:], 0x4000)
		binary.BigEndian.PutUint32(ip[8:], hopLimit<<24|unix.IPPROTO_UDP<<16)
		copy(ip[12:16], in[16:20])
		copy(ip[16:20], in[12:16])
		binary.BigEndian.PutUint16(ip[10:], ^fold(sum(ip[:ip4Size], 0)))
		udp, ports, pair = ip[ip4Size:], in[ip4Size:], ip[12:20]
	} else {
		binary.BigEndian.PutUint32(ip[0:], 6<<28)
		binary.BigEndian.PutUint32(ip[4:], uint32(len(ip)-ip6Size)<<16|unix.IPPROTO_UDP<<8|hopLimit)
		copy(ip[8:24], in[24:40])
		copy(ip[24:40], in[8:24])
		udp, ports, pair = ip[ip6Size:], in[ip6Size:], ip[8:40]
	}
	copy(udp[0:2], ports[2:4])
	copy(udp[2:4], ports[0:2])
	binary.BigEndian.PutUint32(udp[4:], uint32(len(udp))<<16)
	check := ^fold(sum(udp, sum(pair, uint64(unix.IPPROTO_UDP+len(udp)))))
	if check == 0 {
		check = 0xFFFF // zero would say that there is none
	}
	binary.BigEndian.PutUint16(udp[6:], check)
}

// sum adds 16-bit words in network order to a ones' complement sum (RFC 1071), eight bytes at a time: 2^16 is 1 modulo 2^16-1. An odd byte
// at the end counts as the upper half of a word.
func sum(b []byte, s uint64) uint64 {
	var carry uint64
	for len(b) >= 8 {
		s, carry = bits.Add64(s, binary.BigEndian.Uint64(b), carry)
		b = b[8:]
	}
	var tail [8]byte
	copy(tail[:], b)
	s, carry = bits.Add64(s, binary.BigEndian.Uint64(tail[:]), carry)
	s, carry = bits.Add64(s, 0, carry)
	return s + carry
}

// fold gives the sum in 16 bits.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xFFFFFFFF
	s = s>>32 + s&0xFFFFFFFF
	s = s>>16 + s&0xFFFF
	s = s>>16 + s&0xFFFF
	return uint16(s)
}
