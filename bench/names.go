// Package bench measures a DNS server: a load generator, the servers that it compares, and the tables in BENCHMARKS.md.
//
// What is counted above all is answers for each second of the server's CPU time, since two processes on one machine share
// everything else. The anchor is an echo that makes replies of the same size with nothing in between (echo.go).
package bench

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// Zone is the data that is asked for: so many names with one TXT record of 300 bytes each, named as DMP names its slots.
type Zone struct {
	Name  string // without the trailing dot
	Names int
	Set   int  // TXT records at each name; 0: one
	Plain bool // names at which any text may stand; nodes take no text like this at a slot from each other
}

const (
	valueLen     = 300
	ttlSec       = 300
	updateTTLSec = 7200 // of what is added under load, and asked for at the end of the longest
	typeTXT      = 16
	tcBit        = 2 // of a message's third byte
)

// mix spreads numbers (splitmix64), so that names come in no order.
func mix(x uint64) uint64 {
	x += 0x9E3779B97F4A7C15
	x = (x ^ x>>30) * 0xBF58476D1CE4E5B9
	x = (x ^ x>>27) * 0x94D049BB133111EB
	return x ^ x>>31
}

// missing is added to a name's number to give one that is not in the zone.
const missing = 1 << 40

func (z Zone) label(i uint64) string {
	if z.Plain {
		return fmt.Sprintf("r%d.x-%012x", i%10, mix(i)&(1<<48-1))
	}
	return fmt.Sprintf("slot-%d.mb-%012x", i%10, mix(i)&(1<<48-1))
}

// owner is name number i in wire form.
func (z Zone) owner(i uint64) []byte { return wire.MustName(z.label(i) + "." + z.Name) }

// value is the text at name number i.
func (z Zone) value(i uint64) []byte {
	b := fmt.Appendf(make([]byte, 0, valueLen), "v=bench;i=%d;", i)
	for x := mix(i ^ 0x5EED); len(b) < valueLen; x = mix(x) {
		for j := 0; j < 8 && len(b) < valueLen; j++ {
			b = append(b, "abcdefghijklmnopqrstuvwxyz012345"[x>>(8*j)&31])
		}
	}
	return b
}

// values are all texts at name number i.
func (z Zone) values(i uint64) [][]byte {
	all := make([][]byte, max(z.Set, 1))
	for j := range all {
		all[j] = z.value(i + uint64(j)<<44)
	}
	return all
}

// Master writes the zone as a file that NSD, Knot and BIND read.
func (z Zone) Master(w io.Writer) error {
	b := bufio.NewWriterSize(w, 1<<20)
	fmt.Fprintf(b, "$ORIGIN %s.\n$TTL %d\n@ IN SOA ns hostmaster 1 3600 600 86400 60\n@ IN NS ns\nns IN A 127.0.0.1\n", z.Name, ttlSec)
	for i := range uint64(z.Names) {
		for _, v := range z.values(i) {
			fmt.Fprintf(b, "%s TXT %q %q\n", z.label(i), v[:255], v[255:])
		}
	}
	return b.Flush()
}

// query writes a query for the TXT records at a name.
func query(dst []byte, id uint16, owner []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, id)
	dst = append(dst, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0) // RD, one question
	dst = append(dst, owner...)
	return append(dst, 0, typeTXT, 0, 1)
}

// Mix is a source of queries: some of them for names that do not exist.
type Mix struct {
	zone   Zone
	stride int
	data   []byte // queries, each in stride bytes
	size   []uint8
	number []uint64
	check  int
	cut    bool // answers are wanted that do not fit a datagram: with TC
}

const (
	// mixMax is how many different queries are made; more than fit the caches either way.
	mixMax = 1 << 18
	// checkEvery answers one is compared with the zone byte by byte; of all others rcode, counts and question.
	checkEvery = 64
)

// NewMix makes the queries, misses of a hundred of which are for names that do not exist.
func NewMix(z Zone, misses int, seed uint64) *Mix {
	n := min(max(z.Names, 1024), mixMax)
	m := &Mix{zone: z, stride: 12 + len(z.Name) + 2 + 4 + 28, size: make([]uint8, n), number: make([]uint64, n)}
	m.data = make([]byte, n*m.stride)
	for k := range n {
		x := mix(seed + uint64(k))
		i := x % uint64(z.Names)
		if int(x>>32%100) < misses {
			i += missing
		}
		m.number[k] = i
		m.size[k] = uint8(len(query(m.data[k*m.stride:][:0:m.stride], 0, z.owner(i))))
	}
	return m
}

// Message gives the k-th message, valid until the next call for it; its first two bytes are its ID.
func (m *Mix) Message(k uint32) []byte {
	i := int(k) % len(m.size)
	b := m.data[i*m.stride:][:m.size[i]]
	binary.BigEndian.PutUint16(b, uint16(k))
	return b
}

// Check judges the reply to the k-th message.
func (m *Mix) Check(k uint32, reply []byte) error {
	i := int(k) % len(m.size)
	question := m.data[i*m.stride:][12:m.size[i]]
	if len(reply) < 12+len(question) || !strings.EqualFold(string(reply[12:12+len(question)]), string(question)) {
		return fmt.Errorf("the reply does not repeat the question")
	}
	rcode, answers := reply[3]&0xF, binary.BigEndian.Uint16(reply[6:])
	if m.number[i] >= missing {
		if rcode != 3 || answers != 0 {
			return fmt.Errorf("rcode %d with %d answers for a name that does not exist", rcode, answers)
		}
		return nil
	}
	if m.cut {
		if rcode != 0 || reply[2]&tcBit == 0 {
			return fmt.Errorf("rcode %d without TC for an answer that does not fit", rcode)
		}
		return nil
	}
	if rcode != 0 || int(answers) != max(m.zone.Set, 1) {
		return fmt.Errorf("rcode %d with %d answers for name %d", rcode, answers, m.number[i])
	}
	if m.check++; m.check%checkEvery != 0 {
		return nil
	}
	for _, v := range m.zone.values(m.number[i]) {
		rdata := record.AppendRDATA(nil, v)
		if rest := reply[12+len(question):]; !strings.Contains(string(rest), string(rdata)) {
			return fmt.Errorf("name %d has another value than was stored", m.number[i])
		}
	}
	return nil
}
