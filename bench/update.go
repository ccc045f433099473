package bench

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/miekg/dns"

	"github.com/dnsmesh/dmpd/internal/record"
)

// The key that all servers know in the bench.
const (
	keyName   = "bench-key"
	keySecret = "ZG1wLWJlbmNoLWtleS1vZi0zMi1ieXRlcy1sZW5ndGg=" // base64, 32 bytes
)

// Updates is a source of UPDATEs, each of which adds one TXT record at a new name under TSIG. They are signed before the run, so
// that the load costs what sending costs.
type Updates struct {
	zone Zone
	from uint64
	msgs [][]byte
}

// NewUpdates signs n of them, for names from number from on.
func NewUpdates(z Zone, from uint64, n int) (*Updates, error) {
	u := &Updates{zone: z, from: from, msgs: make([][]byte, n)}
	now := time.Now().Unix()
	for k := range u.msgs {
		b, err := u.sign(uint32(k), now)
		if err != nil {
			return nil, err
		}
		u.msgs[k] = b
	}
	return u, nil
}

// sign makes the k-th.
func (u *Updates) sign(k uint32, nowSec int64) ([]byte, error) {
	i := u.from + uint64(k)
	v := u.zone.value(i)
	m := new(dns.Msg)
	m.SetUpdate(u.zone.Name + ".")
	m.Id = uint16(k)
	m.Ns = []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: u.zone.label(i) + "." + u.zone.Name + ".", Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: updateTTLSec},
		Txt: []string{string(v[:255]), string(v[255:])}}}
	m.SetTsig(keyName+"."+u.zone.Name+".", dns.HmacSHA256, 300, nowSec)
	b, _, err := dns.TsigGenerate(m, keySecret, "", false)
	if err != nil {
		return nil, fmt.Errorf("bench: signing an update: %w", err)
	}
	return b, nil
}

// Message gives the k-th.
func (u *Updates) Message(k uint32) []byte { return u.msgs[k] }

// Check wants NOERROR.
func (u *Updates) Check(k uint32, reply []byte) error {
	if rcode := reply[3] & 0xF; rcode != 0 {
		return fmt.Errorf("update %d: %s", k, dns.RcodeToString[int(rcode)])
	}
	return nil
}

// Stored asks for every record that was acknowledged.
func (u *Updates) Stored(n int) *Stored { return &Stored{u, n} }

// Stored is a source of queries for what Updates stored.
type Stored struct {
	u *Updates
	n int
}

// Message gives a query for what the k-th update added.
func (s *Stored) Message(k uint32) []byte {
	return query(nil, uint16(k), s.u.zone.owner(s.u.from+uint64(int(k)%s.n)))
}

// Check wants the value.
func (s *Stored) Check(k uint32, reply []byte) error {
	rdata := record.AppendRDATA(nil, s.u.zone.value(s.u.from+uint64(int(k)%s.n)))
	if rcode, answers := reply[3]&0xF, binary.BigEndian.Uint16(reply[6:]); rcode != 0 || answers != 1 || !bytes.Contains(reply, rdata) {
		return fmt.Errorf("the record of acknowledged update %d: rcode %d, %d answers", k, rcode, answers)
	}
	return nil
}
