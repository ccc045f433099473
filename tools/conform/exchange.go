package main

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	answerMax  = 10 * time.Second // for one try
	tries      = 3                // of a datagram on a busy machine
	silenceFor = 50 * time.Millisecond
	sentinelID = 0xA5A5
)

// conn is one UDP socket and one TCP connection to a server.
type conn struct {
	server   *server
	udp, tcp net.Conn
	buf      [65536]byte
}

func (c *conn) close() {
	for _, n := range []net.Conn{c.udp, c.tcp} {
		if n != nil {
			n.Close()
		}
	}
}

// ask sends a question and sums its answer up. exact is what is wrong with the answer taken alone.
func (c *conn) ask(q *question) (got, exact string, err error) {
	var wire []byte
	switch {
	case q.broken != "", !q.tcp && (q.class != dns.ClassINET || q.opcode != dns.OpcodeQuery):
		wire, err = c.askBeside(q.wire)
	case q.tcp:
		wire, err = c.askTCP(q.wire)
	default:
		wire, err = c.askUDP(q.wire)
	}
	if err != nil {
		return "", "", err
	}
	if wire == nil {
		return "says nothing", "", nil
	}
	m := new(dns.Msg)
	if err := m.Unpack(wire); err != nil {
		return "unreadable: " + hex.EncodeToString(wire), "the answer is unreadable", nil
	}
	if c.server.kind == node {
		q.ours = m
		exact = check(q, m, wire)
	}
	return sum(m), exact, nil
}

func (c *conn) dialUDP() (err error) {
	if c.udp == nil {
		c.udp, err = net.Dial("udp", c.server.addr)
	}
	return err
}

func (c *conn) askUDP(wire []byte) ([]byte, error) {
	if err := c.dialUDP(); err != nil {
		return nil, err
	}
	for range tries {
		if _, err := c.udp.Write(wire); err != nil {
			return nil, err
		}
		c.udp.SetReadDeadline(time.Now().Add(answerMax))
		for {
			n, err := c.udp.Read(c.buf[:])
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return nil, err
			}
			if n >= 12 && c.buf[0] == wire[0] && c.buf[1] == wire[1] {
				return c.buf[:n], nil
			}
		}
	}
	return nil, fmt.Errorf("no answer to %d datagrams", tries)
}

// askBeside sends a message that may be met with silence: a good one after it tells when an answer would have come.
func (c *conn) askBeside(wire []byte) ([]byte, error) {
	if err := c.dialUDP(); err != nil {
		return nil, err
	}
	m := new(dns.Msg)
	m.SetQuestion(apex, dns.TypeSOA)
	m.Id = sentinelID
	good, err := m.Pack()
	if err != nil {
		return nil, err
	}
	var answer []byte
	for range tries {
		c.udp.Write(wire)
		c.udp.Write(good)
		c.udp.SetReadDeadline(time.Now().Add(answerMax))
		after := false
		for {
			n, err := c.udp.Read(c.buf[:])
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return nil, err
			}
			switch {
			case n >= 2 && binary.BigEndian.Uint16(c.buf[:]) == sentinelID:
				after = true
				if answer != nil {
					return answer, nil
				}
				c.udp.SetReadDeadline(time.Now().Add(silenceFor))
			case n >= 2 && len(wire) >= 2 && c.buf[0] == wire[0] && c.buf[1] == wire[1]:
				answer = append([]byte{}, c.buf[:n]...)
				if after {
					return answer, nil
				}
			}
		}
		if after {
			return answer, nil
		}
	}
	return nil, errors.New("no answer to the good message after it")
}

// askTCP asks over a connection that stays open from question to question; one that the server has closed is opened again.
func (c *conn) askTCP(wire []byte) ([]byte, error) {
	var last error
	for range tries {
		if c.tcp == nil {
			t, err := net.DialTimeout("tcp", c.server.addr, answerMax)
			if err != nil {
				return nil, err
			}
			c.tcp = t
		}
		c.tcp.SetDeadline(time.Now().Add(answerMax))
		_, err := c.tcp.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(wire))), wire...))
		if err == nil {
			if _, err = io.ReadFull(c.tcp, c.buf[:2]); err == nil {
				n := int(binary.BigEndian.Uint16(c.buf[:]))
				if _, err = io.ReadFull(c.tcp, c.buf[:n]); err == nil {
					return c.buf[:n], nil
				}
			}
		}
		last = err
		c.tcp.Close()
		c.tcp = nil
	}
	if errors.Is(last, io.EOF) || errors.Is(last, io.ErrUnexpectedEOF) {
		return nil, nil // closed without an answer, each time
	}
	return nil, last
}

// sum is what is compared: response code, AA, TC, the answers as a set, what stands in authority (a SOA without its serial, which each
// server counts in its own way), EDNS with version and DO. Of a truncated answer the records are not, since a server may send what fits.
func sum(m *dns.Msg) string {
	var b strings.Builder
	rcode := m.Rcode // with the upper bits from OPT
	switch {
	case rcode == dns.RcodeBadVers: // the same number as BADSIG's, which stands in TSIG records alone
		b.WriteString("BADVERS")
	default:
		b.WriteString(dns.RcodeToString[rcode])
	}
	for _, f := range []struct {
		set  bool
		text string
	}{{m.Authoritative, " aa"}, {m.Truncated, " tc"}, {m.RecursionAvailable, " ra"}} {
		if f.set {
			b.WriteString(f.text)
		}
	}
	fmt.Fprintf(&b, " opcode %d", m.Opcode)
	if !m.Truncated {
		section(&b, " answer", m.Answer)
		section(&b, " authority", m.Ns)
		var more []dns.RR
		for _, rr := range m.Extra {
			if t := rr.Header().Rrtype; t != dns.TypeOPT && t != dns.TypeTSIG {
				more = append(more, rr)
			}
		}
		section(&b, " additional", more)
	}
	if o := m.IsEdns0(); o != nil {
		fmt.Fprintf(&b, " EDNS %d", o.Version())
		if o.Do() {
			b.WriteString(" do")
		}
	}
	return b.String()
}

func section(b *strings.Builder, title string, rrs []dns.RR) {
	if len(rrs) == 0 {
		return
	}
	texts := make([]string, len(rrs))
	for i, rr := range rrs {
		rr = dns.Copy(rr)
		rr.Header().Name = strings.ToLower(rr.Header().Name)
		if soa, ok := rr.(*dns.SOA); ok {
			soa.Serial, soa.Ns, soa.Mbox = 0, strings.ToLower(soa.Ns), strings.ToLower(soa.Mbox) // RFC 4343: compressed against the question
		}
		texts[i] = strings.Join(strings.Fields(rr.String()), " ")
	}
	slices.Sort(texts)
	fmt.Fprintf(b, "%s %d: %s", title, len(texts), strings.Join(texts, " | "))
}

// check says what is wrong with an answer of the node, whatever others answer (dns.md 3.1, 3.2, 3.5, 3.6).
func check(q *question, m *dns.Msg, wire []byte) string {
	limit := 65535
	if !q.tcp {
		limit = 512
		if q.edns {
			limit = min(max(512, int(q.size)), 1232)
		}
	}
	if q.broken != "" {
		limit = 1232
	}
	failed := m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented || m.Rcode == dns.RcodeRefused || m.Rcode == dns.RcodeBadVers
	switch {
	case !m.Response:
		return "QR is not set"
	case m.Authoritative && failed:
		return "AA in a refusal"
	case wire[3]&0xF0 != 0:
		return fmt.Sprintf("RA, Z, AD or CD is set: %02x", wire[3])
	case m.Opcode != q.opcode:
		return "another opcode"
	case len(wire) > limit:
		return fmt.Sprintf("%d bytes, %d are allowed", len(wire), limit)
	case m.Truncated && (q.tcp || len(m.Answer)+len(m.Ns) > 0 || !m.Authoritative):
		return "truncated over TCP, or with records, or without AA"
	case q.edns && m.IsEdns0() == nil || !q.edns && q.broken == "" && m.IsEdns0() != nil:
		return "OPT is there and was not asked for, or the other way round"
	case m.IsEdns0() != nil && m.IsEdns0().UDPSize() != 1232:
		return fmt.Sprint("EDNS size ", m.IsEdns0().UDPSize())
	}
	if q.broken != "" {
		return ""
	}
	n := 12 + questionLen(q.wire[12:])
	if len(wire) < n || string(wire[12:n]) != string(q.wire[12:n]) {
		return "the question is not echoed byte for byte"
	}
	for _, rr := range m.Answer {
		if rr.Header().Name != m.Question[0].Name {
			return "the owner is not written as the question is"
		}
	}
	return ""
}

func questionLen(b []byte) int {
	n := 0
	for b[n] != 0 {
		n += 1 + int(b[n])
	}
	return n + 1 + 4
}
