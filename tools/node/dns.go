package node

import (
	b64 "encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Answers says whether the node answers a query.
func (n *Node) Answers() bool {
	m := new(dns.Msg)
	m.SetQuestion(Zone+".", dns.TypeSOA)
	r, err := n.exchange("udp", m, time.Second)
	return err == nil && r.Rcode == dns.RcodeSuccess
}

func (n *Node) exchange(network string, m *dns.Msg, timeout time.Duration) (*dns.Msg, error) {
	b, err := m.Pack()
	if err != nil {
		return nil, err
	}
	return n.send(network, b, timeout)
}

func (n *Node) send(network string, b []byte, timeout time.Duration) (*dns.Msg, error) {
	c, err := net.Dial(network, n.DNS)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(timeout))
	if network == "tcp" {
		b = append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
	}
	if _, err := c.Write(b); err != nil {
		return nil, err
	}
	in := make([]byte, 65535)
	var got int
	if network == "tcp" {
		if _, err := io.ReadFull(c, in[:2]); err != nil {
			return nil, err
		}
		got = int(binary.BigEndian.Uint16(in))
		_, err = io.ReadFull(c, in[:got])
	} else {
		got, err = c.Read(in)
	}
	if err != nil {
		return nil, err
	}
	m := new(dns.Msg)
	if err := m.Unpack(in[:got]); err != nil {
		return nil, err
	}
	if !m.Response {
		return nil, errors.New("a message that is no reply")
	}
	return m, nil
}

// Values gives the TXT values at a name, over TCP.
func (n *Node) Values(name string) ([]string, error) {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), dns.TypeTXT)
	r, err := n.exchange("tcp", m, 10*time.Second)
	if err != nil {
		return nil, err
	}
	if r.Rcode != dns.RcodeSuccess && r.Rcode != dns.RcodeNameError {
		return nil, fmt.Errorf("%s", dns.RcodeToString[r.Rcode])
	}
	var vs []string
	for _, rr := range r.Answer {
		if t, ok := rr.(*dns.TXT); ok {
			vs = append(vs, strings.Join(t.Txt, ""))
		}
	}
	return vs, nil
}

// Key is a TSIG key.
type Key struct{ Name, SecretHex string }

// Add sends a signed UPDATE that adds the values, all in one message. It gives the response code, -1 if there was no answer in time.
func (n *Node) Add(k Key, timeout time.Duration, rrs ...[2]string) int {
	m := new(dns.Msg)
	m.SetUpdate(Zone + ".")
	for _, rr := range rrs {
		m.Insert([]dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: dns.Fqdn(rr[0]), Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 3600}, Txt: []string{rr[1]}}})
	}
	return n.update(k, timeout, m)
}

// Delete sends a signed UPDATE that deletes all values at a name; the result is as Add's.
func (n *Node) Delete(k Key, timeout time.Duration, name string) int {
	m := new(dns.Msg)
	m.SetUpdate(Zone + ".")
	m.RemoveRRset([]dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: dns.Fqdn(name), Rrtype: dns.TypeTXT, Class: dns.ClassINET}}})
	return n.update(k, timeout, m)
}

func (n *Node) update(k Key, timeout time.Duration, m *dns.Msg) int {
	secret, err := hex.DecodeString(k.SecretHex)
	if err != nil {
		n.T.Error(err)
		return -1
	}
	m.SetTsig(dns.Fqdn(k.Name), dns.HmacSHA256, 300, time.Now().Unix())
	b, _, err := dns.TsigGenerate(m, b64.StdEncoding.EncodeToString(secret), "", false)
	if err != nil {
		n.T.Error(err)
		return -1
	}
	r, err := n.send("udp", b, timeout)
	if err != nil || r.Id != m.Id {
		return -1
	}
	return r.Rcode
}
