// Package wire reads DNS messages as views of their bytes and writes responses by appending to the caller's buffer (RFC 1035, 2136,
// 6891). Nothing here allocates on the path of a query, and nothing keeps the packet.
package wire

import (
	"encoding/binary"
)

// HeaderSize is a message's header (RFC 1035 4.1.1).
const HeaderSize = 12

// Types and classes that are named here.
const (
	TypeA     = 1
	TypeNS    = 2
	TypeSOA   = 6
	TypeTXT   = 16
	TypeAAAA  = 28
	TypeOPT   = 41
	TypeTKEY  = 249
	TypeTSIG  = 250
	TypeIXFR  = 251
	TypeAXFR  = 252
	TypeMAILB = 253
	TypeMAILA = 254
	TypeANY   = 255

	ClassIN   = 1
	ClassNONE = 254
	ClassANY  = 255

	OpQuery  = 0
	OpUpdate = 5
)

// Header bits in bytes 2 and 3.
const (
	bitQR = 0x80
	bitAA = 0x04
	bitTC = 0x02
	bitRD = 0x01
)

// Bounds of our own on one message.
const (
	// RRsMax bounds the records of a message: an UPDATE that fills an RRset twice over has room, and parsing stays under a millisecond.
	RRsMax = 512
	// namesMax bounds the bytes of all names of a message together.
	namesMax = 64 << 10
)

// Header fields of a message of at least HeaderSize bytes.
func ID(msg []byte) uint16       { return binary.BigEndian.Uint16(msg) }
func Opcode(msg []byte) uint8    { return msg[2] >> 3 & 0xF }
func IsResponse(msg []byte) bool { return msg[2]&bitQR != 0 }

// EDNS is what an OPT record says (RFC 6891).
type EDNS struct {
	Present bool
	Version uint8
	DO      bool
	Size    uint16 // requestor's UDP payload size as sent
	NSID    bool   // RFC 5001
	Cookie  []byte // RFC 7873, 8 or 16 to 40 bytes, in the message; nil if there is none
}

// Option codes.
const (
	optNSID   = 3
	optCookie = 10
	optEDE    = 15
)

// Query is a simple query: one question, at most an OPT record behind it. It is reused from packet to packet; Cookie lies in the
// packet.
type Query struct {
	NameLen int           // of the name in lower case, with the root byte
	Name    [NameMax]byte // valid iff ParseQuery gave OK
	QEnd    int           // offset behind the question
	Type    uint16
	Class   uint16
	EDNS    EDNS
}

// ParseQuery reads a query of the common form: opcode 0, one question with an uncompressed name, nothing else but one OPT record. Any
// other message is NotSimple, and the complete parser decides. Hot path: no allocation.
func ParseQuery(msg []byte, q *Query) Fault {
	if len(msg) < HeaderSize {
		return Short
	}
	if msg[2]&bitQR != 0 {
		return Response
	}
	// Opcode 0 and TC 0; counts 1, 0, 0, and 0 or 1.
	if msg[2]&0x7A != 0 || binary.BigEndian.Uint32(msg[4:]) != 1<<16 || msg[8] != 0 || msg[9] != 0 || msg[10] != 0 || msg[11] > 1 {
		return NotSimple
	}
	off := HeaderSize
	n := 0
	for {
		if off >= len(msg) {
			return NotSimple
		}
		l := int(msg[off])
		if l == 0 {
			break
		}
		if l > LabelMax || off+1+l >= len(msg) || n+1+l >= NameMax {
			return NotSimple
		}
		q.Name[n] = byte(l)
		for i, c := range msg[off+1 : off+1+l] {
			q.Name[n+1+i] = lowerTable[c]
		}
		n += 1 + l
		off += 1 + l
	}
	q.Name[n] = 0
	q.NameLen = n + 1
	off++
	if off+4 > len(msg) {
		return NotSimple
	}
	q.Type = binary.BigEndian.Uint16(msg[off:])
	q.Class = binary.BigEndian.Uint16(msg[off+2:])
	off += 4
	q.QEnd = off
	q.EDNS = EDNS{}
	if msg[11] == 1 {
		if off+11 > len(msg) || msg[off] != 0 || binary.BigEndian.Uint16(msg[off+1:]) != TypeOPT {
			return NotSimple
		}
		rdlen := int(binary.BigEndian.Uint16(msg[off+9:]))
		if off+11+rdlen != len(msg) {
			return NotSimple
		}
		if !q.EDNS.read(msg[off+1:], msg[off+11:]) || q.EDNS.Version != 0 {
			return NotSimple
		}
		return OK
	}
	if off != len(msg) {
		return NotSimple
	}
	return OK
}

// read takes an OPT record from its type on, and its RDATA.
func (e *EDNS) read(rr, rdata []byte) bool {
	*e = EDNS{Present: true, Size: binary.BigEndian.Uint16(rr[2:]), Version: rr[5], DO: rr[6]&0x80 != 0}
	for len(rdata) > 0 {
		if len(rdata) < 4 {
			return false
		}
		code, n := binary.BigEndian.Uint16(rdata), int(binary.BigEndian.Uint16(rdata[2:]))
		if 4+n > len(rdata) {
			return false
		}
		data := rdata[4 : 4+n]
		switch code {
		case optNSID:
			e.NSID = true
		case optCookie:
			// RFC 7873 5.2.2: 8 bytes, or 8 and 8 to 32 more; anything else is FORMERR.
			if n != 8 && (n < 16 || n > 40) {
				return false
			}
			if e.Cookie == nil { // the first one counts, as BIND has it
				e.Cookie = data
			}
		}
		rdata = rdata[4+n:]
	}
	return true
}

// RR is one record of a message.
type RR struct {
	Name           []byte // lower case, in the Message's scratch
	Off            int    // of the record in the message
	Type, Class    uint16
	TTL            uint32
	RDataOff, REnd int // RDATA in the message
}

// Message is a whole message, read. It is reused; the records' names lie in its scratch, everything else in the packet.
type Message struct {
	Msg      []byte
	ID       uint16
	Opcode   uint8
	QD       []RR // TTL and RDATA are empty
	AN       []RR
	NS       []RR
	AR       []RR // without OPT and TSIG
	QEnd     int  // offset behind the first question; 12 if there is none
	EDNS     EDNS
	TSIG     *RR // the last record, if it is a TSIG
	tsig     RR
	rrs      []RR
	names    []byte
	Question bool // the first question was read, so that a FORMERR may echo it
}

// Parse reads a message to its last byte. After a fault only ID, Opcode, Question and QEnd are valid.
func Parse(msg []byte, m *Message) Fault {
	m.Msg, m.Question, m.TSIG, m.EDNS = msg, false, nil, EDNS{}
	m.rrs, m.names = m.rrs[:0], m.names[:0]
	m.QD, m.AN, m.NS, m.AR = nil, nil, nil, nil
	m.QEnd = HeaderSize
	if len(msg) < HeaderSize {
		return Short
	}
	m.ID, m.Opcode = ID(msg), Opcode(msg)
	if IsResponse(msg) {
		return Response
	}
	var counts [4]int
	total := 0
	for i := range counts {
		counts[i] = int(binary.BigEndian.Uint16(msg[4+2*i:]))
		total += counts[i]
	}
	if total > RRsMax {
		m.firstQuestion(counts[0])
		return TooManyRRs
	}
	if cap(m.rrs) < total {
		m.rrs = make([]RR, 0, RRsMax) // once for each loop
	}
	if cap(m.names) == 0 {
		m.names = make([]byte, 0, 4096)
	}
	off := HeaderSize
	var f Fault
	for i, n := range counts {
		start := len(m.rrs)
		for k := range n {
			last := i == 3 && k == n-1
			if off, f = m.rr(off, i, last); f != OK {
				return f
			}
			if i == 0 && k == 0 {
				m.Question, m.QEnd = true, off
			}
		}
		section := m.rrs[start:len(m.rrs):len(m.rrs)]
		switch i {
		case 0:
			m.QD = section
		case 1:
			m.AN = section
		case 2:
			m.NS = section
		case 3:
			m.AR = section
		}
	}
	if off != len(msg) {
		return TrailingBytes
	}
	return OK
}

func (m *Message) firstQuestion(n int) {
	if n == 0 {
		return
	}
	if _, next, f := readName(m.names, m.Msg, HeaderSize); f == OK && next+4 <= len(m.Msg) {
		m.Question, m.QEnd = true, next+4
	}
}

// rr reads one record of a section and gives the offset behind it.
func (m *Message) rr(off, section int, last bool) (int, Fault) {
	if off >= len(m.Msg) {
		return 0, BadCount
	}
	start := len(m.names)
	if start > namesMax {
		return 0, TooManyRRs
	}
	names, next, f := readName(m.names, m.Msg, off)
	if f != OK {
		return 0, f
	}
	m.names = names
	r := RR{Name: names[start:len(names):len(names)], Off: off}
	msg := m.Msg
	if next+4 > len(msg) {
		return 0, BadRR
	}
	r.Type, r.Class = binary.BigEndian.Uint16(msg[next:]), binary.BigEndian.Uint16(msg[next+2:])
	if section == 0 {
		m.rrs = append(m.rrs, r)
		return next + 4, OK
	}
	if next+10 > len(msg) {
		return 0, BadRR
	}
	r.TTL = binary.BigEndian.Uint32(msg[next+4:])
	r.RDataOff = next + 10
	r.REnd = r.RDataOff + int(binary.BigEndian.Uint16(msg[next+8:]))
	if r.REnd > len(msg) {
		return 0, BadRR
	}
	switch r.Type {
	case TypeOPT: // RFC 6891 6.1.1: in the additional section only, owner root, once
		if section != 3 || len(r.Name) != 1 {
			return 0, BadOPT
		}
		if m.EDNS.Present {
			return 0, TwoOPT
		}
		if !m.EDNS.read(msg[next:], msg[r.RDataOff:r.REnd]) {
			return 0, BadOPT
		}
		return r.REnd, OK
	case TypeTSIG: // RFC 8945 5.1: the last record of the additional section
		if section != 3 || !last {
			return 0, TSIGNotLast
		}
		m.tsig = r
		m.TSIG = &m.tsig
		return r.REnd, OK
	}
	m.rrs = append(m.rrs, r)
	return r.REnd, OK
}

// RData is a record's RDATA, in the packet.
func (m *Message) RData(r *RR) []byte { return m.Msg[r.RDataOff:r.REnd] }

// AppendTXT joins the character-strings of TXT RDATA (RFC 1035 3.3.14); ok is false if they do not fill it exactly, or there is none.
func AppendTXT(dst, rdata []byte) (value []byte, ok bool) {
	if len(rdata) == 0 {
		return dst, false
	}
	for len(rdata) > 0 {
		n := int(rdata[0])
		if 1+n > len(rdata) {
			return dst, false
		}
		dst = append(dst, rdata[1:1+n]...)
		rdata = rdata[1+n:]
	}
	return dst, true
}
