package wire

import (
	"bytes"
	"encoding/binary"
)

// AppendReply begins a response in dst: the header with the request's ID, opcode and RD, and the question copied byte for byte, so that
// its case is kept (dns.md 3.2). qEnd is the offset behind the question in the request, HeaderSize for none. Counts other than the
// question's are 0. The response begins at len(dst); functions that need it take it as start.
func AppendReply(dst, req []byte, qEnd int, rcode uint16, aa bool) []byte {
	start := len(dst)
	dst = append(dst, req[0], req[1], bitQR|req[2]&0x79, byte(rcode&0xF), 0, 0, 0, 0, 0, 0, 0, 0)
	if aa {
		dst[start+2] |= bitAA
	}
	if qEnd > HeaderSize {
		dst[start+5] = 1
		dst = append(dst, req[HeaderSize:qEnd]...)
	}
	return dst
}

// Counts of a response that begins at start.
const (
	Answers    = 6
	Authority  = 8
	Additional = 10
)

// Count adds n to one of a response's counts.
func Count(buf []byte, start, which, n int) {
	binary.BigEndian.PutUint16(buf[start+which:], binary.BigEndian.Uint16(buf[start+which:])+uint16(n))
}

// SetRcode replaces the header's response code.
func SetRcode(buf []byte, start int, rcode uint16) {
	buf[start+3] = buf[start+3]&0xF0 | byte(rcode&0xF)
}

// Rcode reads the header's response code.
func Rcode(msg []byte) uint16 { return uint16(msg[3] & 0xF) }

// AppendRR appends a record up to its RDATA's length; the caller appends the RDATA. owner is a name, compressed against the question.
func AppendRR(dst []byte, start int, owner []byte, typ, class uint16, ttlSec uint32, rdLen int) []byte {
	dst = AppendCompressed(dst, start, owner)
	dst = binary.BigEndian.AppendUint16(dst, typ)
	dst = binary.BigEndian.AppendUint16(dst, class)
	dst = binary.BigEndian.AppendUint32(dst, ttlSec)
	return binary.BigEndian.AppendUint16(dst, uint16(rdLen))
}

// AppendCompressed appends a name, its end as a pointer into the question where that has the same labels (RFC 1035 4.1.4).
func AppendCompressed(dst []byte, start int, name []byte) []byte {
	if len(dst) == start || dst[start+5] == 0 {
		return append(dst, name...)
	}
	for rest := name; len(rest) > 1; rest = rest[1+rest[0]:] {
		if at := questionSuffix(dst[start:], rest); at >= 0 {
			dst = append(dst, name[:len(name)-len(rest)]...)
			return append(dst, 0xC0|byte(at>>8), byte(at))
		}
	}
	return append(dst, name...)
}

// questionSuffix finds where in the question's name, which is never compressed, the labels of rest begin; -1 if nowhere.
func questionSuffix(msg, rest []byte) int {
	at := HeaderSize
	for at < len(msg) && msg[at] != 0 {
		if end := at + len(rest); end <= len(msg) && msg[end-1] == 0 && equalLower(msg[at:end], rest) {
			return at
		}
		at += 1 + int(msg[at])
	}
	return -1
}

// equalLower compares with a lower name, whatever the case of a.
func equalLower(a, lower []byte) bool {
	for i, c := range a {
		if lowerTable[c] != lower[i] {
			return false
		}
	}
	return true
}

// SOA is the apex's start of authority (RFC 1035 3.3.13); names are lower.
type SOA struct {
	Apex, MName, RName []byte
	Serial             uint32
	Refresh, Retry     uint32
	Expire, Minimum    uint32
}

// AppendSOA appends the record.
func AppendSOA(dst []byte, start int, s *SOA, ttlSec uint32) []byte {
	dst = AppendRR(dst, start, s.Apex, TypeSOA, ClassIN, ttlSec, 0)
	at := len(dst)
	dst = AppendCompressed(dst, start, s.MName)
	dst = AppendCompressed(dst, start, s.RName)
	for _, v := range [5]uint32{s.Serial, s.Refresh, s.Retry, s.Expire, s.Minimum} {
		dst = binary.BigEndian.AppendUint32(dst, v)
	}
	binary.BigEndian.PutUint16(dst[at-2:], uint16(len(dst)-at))
	return dst
}

// UDPSize is the payload size that responses advertise, and what a datagram of ours holds at most (dns.md 3.5).
const UDPSize = 1232

// Options of a response's OPT record; zero values are left out.
type Options struct {
	Rcode  uint16 // its upper bits stand in the OPT record
	DO     bool   // RFC 3225: copied from the request
	NSID   []byte
	Cookie []byte // client and server cookie together
	EDE    bool   // an extended error with this code
	Code   uint16
}

// OPTSize is the length of the OPT record that AppendOPT appends.
func (o *Options) OPTSize() int {
	n := 11
	if o.NSID != nil {
		n += 4 + len(o.NSID)
	}
	if o.Cookie != nil {
		n += 4 + len(o.Cookie)
	}
	if o.EDE {
		n += 6
	}
	return n
}

// AppendOPT appends the OPT record (RFC 6891 6.1.2) and counts it.
func AppendOPT(dst []byte, start int, o *Options) []byte {
	Count(dst, start, Additional, 1)
	flags := byte(0)
	if o.DO {
		flags = 0x80
	}
	dst = append(dst, 0, 0, TypeOPT, UDPSize>>8, UDPSize&0xFF, byte(o.Rcode>>4), 0, flags, 0)
	dst = binary.BigEndian.AppendUint16(dst, uint16(o.OPTSize()-11))
	dst = appendOption(dst, optNSID, o.NSID)
	dst = appendOption(dst, optCookie, o.Cookie)
	if o.EDE {
		dst = append(dst, 0, optEDE, 0, 2, byte(o.Code>>8), byte(o.Code))
	}
	return dst
}

func appendOption(dst []byte, code uint16, data []byte) []byte {
	if data == nil {
		return dst
	}
	dst = binary.BigEndian.AppendUint16(dst, code)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(data)))
	return append(dst, data...)
}

// Truncate cuts the response that begins at start back to header and question, with TC set (RFC 2181 9): no partial answers.
func Truncate(buf []byte, start, questionLen int) []byte {
	buf = buf[:start+HeaderSize+questionLen]
	buf[start+2] |= bitTC
	clear(buf[start+Answers : start+HeaderSize])
	return buf
}

// IsTruncated says whether TC is set.
func IsTruncated(msg []byte) bool { return msg[2]&bitTC != 0 }

// EqualName compares two lower names.
func EqualName(a, b []byte) bool { return bytes.Equal(a, b) }
