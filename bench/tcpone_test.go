package bench

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestOneLoad(t *testing.T) {
	for name, answer := range map[string]func(m *dns.Msg, w dns.ResponseWriter){
		"right": right,
		"wrong": func(m *dns.Msg, w dns.ResponseWriter) {
			r := new(dns.Msg).SetReply(m)
			r.Rcode = dns.RcodeServerFailure
			w.WriteMsg(r)
		},
	} {
		r, err := OneLoad{Target: serve(t, answer), Duration: 200 * time.Millisecond, Window: 8}.Run(NewMix(testZone, 10, 1))
		if err != nil || r.Sent < 8 || r.Lost != 0 || r.Answered+r.Wrong != r.Sent {
			t.Errorf("%s: %d sent, %d answered, %d lost, %d wrong, %v", name, r.Sent, r.Answered, r.Lost, r.Wrong, err)
		}
		if name == "right" && (r.Wrong != 0 || r.Latency.Quantile(0.5) <= 0) || name == "wrong" && (r.Answered != 0 || r.FirstWrong == nil) {
			t.Errorf("%s: %d answered, %d wrong (%v)", name, r.Answered, r.Wrong, r.FirstWrong)
		}
	}
}

// Every connection has one query and is closed by the client; replies may come in pieces, and some connections end without one.
func TestOneLoadConnections(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var connections, cut, more atomic.Int32
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n := connections.Add(1)
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(time.Minute))
				var size [2]byte
				io.ReadFull(c, size[:])
				m := new(dns.Msg)
				b := make([]byte, binary.BigEndian.Uint16(size[:]))
				if _, err := io.ReadFull(c, b); err != nil || m.Unpack(b) != nil {
					return
				}
				if n%4 == 0 {
					cut.Add(1)
					return
				}
				m.Response, m.Rcode = true, dns.RcodeNameError
				b, _ = m.Pack()
				b = append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
				c.Write(b[:1])
				c.Write(b[1:20])
				c.Write(b[20:])
				if _, err := c.Read(b); err != io.EOF {
					more.Add(1)
				}
			}()
		}
	}()
	r, err := OneLoad{Target: netip.MustParseAddrPort(l.Addr().String()), Duration: 100 * time.Millisecond, Window: 3}.Run(NewMix(testZone, 100, 1))
	if err != nil || r.Wrong != 0 || r.Answered == 0 || r.Answered+r.Lost != r.Sent || r.Lost != int(cut.Load()) || r.Sent != int(connections.Load()) {
		t.Errorf("%d sent on %d connections, %d answered, %d lost of which the server cut %d, %d wrong (%v), %v", r.Sent, connections.Load(), r.Answered, r.Lost, cut.Load(), r.Wrong, r.FirstWrong, err)
	}
	if more.Load() > 0 {
		t.Errorf("%d connections were not closed after the reply", more.Load())
	}
}
