package dataplane

import (
	"encoding/hex"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// FuzzSocket sends any message to a running node, over UDP and TCP: it gets a reply that parses, or none, and the node goes on answering.
func FuzzSocket(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 20 {
		f.Add(nonsense(f, rng))
	}
	// A signed UPDATE of a real client (dns.md 6.5).
	signed, err := hex.DecodeString("123428000001000000010001076578616d706c6503636f6d000006000103666f6fc00c001000010000012c000e0d763d646d70313b743d7465737407616c6963652d31c00c00fa00ff00000000003d0b686d61632d7368613235360000006b49d200012c0020ebcba704fd43ff9917312f8adff95d6c61901d2f9b403d187697c86fc823a265123400000000")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	r := startRig(f)
	c, err := net.Dial("udp", r.addr)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { c.Close() })
	m := new(dns.Msg)
	m.SetQuestion("probe."+testZone+".", dns.TypeA)
	probe := pack(f, m)
	f.Fuzz(func(t *testing.T, msg []byte) {
		if len(msg) > 60000 || len(msg) == 0 {
			return
		}
		if _, err := c.Write(msg); err != nil {
			t.Skip("the system refuses the datagram")
		}
		b := make([]byte, 65535)
		answered := false
		for tries := 0; tries < 30 && !answered; tries++ {
			id := uint16(rand.Uint32())
			probe[0], probe[1] = byte(id>>8), byte(id)
			c.Write(probe)
			c.SetReadDeadline(time.Now().Add(2 * time.Second))
			for !answered {
				n, err := c.Read(b)
				if err != nil {
					break
				}
				if n < 12 || b[2]&0x80 == 0 {
					t.Fatalf("%x is answered with %x", msg, b[:n])
				}
				if err := new(dns.Msg).Unpack(b[:n]); err != nil && len(msg) >= 12 {
					// A question whose name miekg does not take, such as one with a compression pointer, is echoed as it came.
					if b[3]&0xF == 0 && b[2]&0x02 == 0 {
						t.Fatalf("%x is answered with %x: %v", msg, b[:n], err)
					}
				}
				answered = b[0] == probe[0] && b[1] == probe[1]
			}
		}
		if !answered {
			t.Fatal("the node does not answer any more")
		}
	})
}
