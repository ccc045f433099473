package bench

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/miekg/dns"

	"github.com/dnsmesh/dmpd/internal/record"
)

// Claims is a source of UPDATEs without TSIG, each with one claim for a mailbox of its own; what gates them is the claim's
// signature. Forged ones have a wrong signature and must be refused.
type Claims struct {
	msgs   [][]byte
	forged bool
}

// senders is how many keys sign the claims.
const senders = 64

// NewClaims signs n of them; from tells those of two sources apart.
func NewClaims(z Zone, from uint64, n int, forged bool) (*Claims, error) {
	c := &Claims{msgs: make([][]byte, n), forged: forged}
	var keys [senders]ed25519.PrivateKey
	for i := range keys {
		seed := sha256.Sum256(fmt.Appendf(nil, "bench sender %d", i))
		keys[i] = ed25519.NewKeyFromSeed(seed[:])
	}
	now := uint64(time.Now().Unix())
	for k := range c.msgs {
		var id [16]byte
		binary.BigEndian.PutUint64(id[:], from+uint64(k))
		slot := uint8(k % 10)
		text := record.AppendClaim(nil, keys[k%senders], id, "mb.bench.test", slot, now, now+3600)
		if forged { // another claim's signature: well-formed base64, wrong only for who checks it
			other := record.AppendClaim(nil, keys[(k+1)%senders], id, "mb.bench.test", slot, now, now+3600)
			text = append(text[:len(text)-84], other[len(other)-84:]...)
		}
		m := new(dns.Msg)
		m.SetUpdate(z.Name + ".")
		m.Id = uint16(k)
		m.Ns = []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: fmt.Sprintf("claim-%d.mb-%012x.%s.", slot, mix(from+uint64(k))&(1<<48-1), z.Name), Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: ttlSec}, Txt: []string{string(text)}}}
		b, err := m.Pack()
		if err != nil {
			return nil, fmt.Errorf("bench: a claim: %w", err)
		}
		c.msgs[k] = b
	}
	return c, nil
}

// Message gives the k-th; beyond the last they come again.
func (c *Claims) Message(k uint32) []byte {
	b := c.msgs[int(k)%len(c.msgs)]
	binary.BigEndian.PutUint16(b, uint16(k))
	return b
}

// Check wants the good ones stored, and the forged ones refused or, while the pool is full, failed.
func (c *Claims) Check(k uint32, reply []byte) error {
	rcode := int(reply[3] & 0xF)
	if c.forged && rcode == dns.RcodeSuccess || !c.forged && rcode != dns.RcodeSuccess {
		return fmt.Errorf("claim %d: %s", k, dns.RcodeToString[rcode])
	}
	return nil
}
