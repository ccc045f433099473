package update

import (
	"bytes"

	"github.com/dnsmesh/dmpd/dataplane/answer"
	"github.com/dnsmesh/dmpd/dataplane/store"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/tsig"
	"github.com/dnsmesh/dmpd/internal/wire"
)

func evaluate(p Prereqs, k *tsig.Key) bool {
	return p == PrereqsOn || p == PrereqsAuto && k != nil && k.Operator
}

// prereqForm checks what RFC 2136 3.2 calls FORMERR, whether or not the prerequisites are evaluated.
func prereqForm(m *wire.Message) wire.Fault {
	for i := range m.AN {
		r := &m.AN[i]
		empty := r.RDataOff == r.REnd
		switch {
		case r.TTL != 0:
			return wire.PrereqBad
		case r.Class == wire.ClassANY || r.Class == wire.ClassNONE: // 2.4.1, 2.4.3, 2.4.4, 2.4.5
			if !empty || metaType(r.Type) && r.Type != wire.TypeANY {
				return wire.PrereqBad
			}
		case r.Class == wire.ClassIN: // 2.4.2
			if metaType(r.Type) {
				return wire.PrereqBad
			}
			if _, ok := wire.AppendTXT(nil, m.RData(r)); r.Type == wire.TypeTXT && !ok {
				return wire.PrereqBad
			}
		default:
			return wire.PrereqBad
		}
	}
	return wire.OK
}

// prerequisites hands those over that depend on what is stored, and judges those that the configuration decides: the apex exists always,
// and no type but TXT is stored.
func (p *Prepared) prerequisites(m *wire.Message, z *answer.Zone) (rcode uint16, f wire.Fault) {
	for i := range m.AN {
		if !wire.IsSubdomain(m.AN[i].Name, z.Apex) { // RFC 2136 3.2.5
			return wire.NotZoneR, wire.NotZone
		}
	}
	for i := range m.AN {
		r := &m.AN[i]
		name := bytes.Clone(r.Name)
		apex := wire.EqualName(name, z.Apex)
		switch {
		case r.Type == wire.TypeANY && r.Class == wire.ClassANY: // 2.4.4
			if !apex {
				p.Batch.Prereqs = append(p.Batch.Prereqs, store.Prereq{Kind: store.NameInUse, Name: name})
			}
		case r.Type == wire.TypeANY: // 2.4.5
			if apex {
				return wire.YXDomain, wire.PrereqFailed
			}
			p.Batch.Prereqs = append(p.Batch.Prereqs, store.Prereq{Kind: store.NameNotInUse, Name: name})
		case r.Type != wire.TypeTXT:
			if exists := apex && configured(z, r.Type); exists && r.Class == wire.ClassNONE {
				return wire.YXRRSet, wire.PrereqFailed
			} else if r.Class != wire.ClassNONE && (!exists || r.Class == wire.ClassIN && !configuredAs(z, r.Type, m.RData(r))) {
				return wire.NXRRSet, wire.PrereqFailed
			}
		case r.Class == wire.ClassANY: // 2.4.1
			p.Batch.Prereqs = append(p.Batch.Prereqs, store.Prereq{Kind: store.RRsetExists, Name: name})
		case r.Class == wire.ClassNONE: // 2.4.3
			p.Batch.Prereqs = append(p.Batch.Prereqs, store.Prereq{Kind: store.RRsetAbsent, Name: name})
		default: // 2.4.2
			value, _ := wire.AppendTXT(nil, m.RData(r))
			p.equal(name, record.AppendRDATA(nil, value))
		}
	}
	return wire.NoError, wire.OK
}

// equal collects the values of one RRset (RFC 2136 3.2.3).
func (p *Prepared) equal(name, rdata []byte) {
	for i := range p.Batch.Prereqs {
		if q := &p.Batch.Prereqs[i]; q.Kind == store.RRsetEqual && wire.EqualName(q.Name, name) {
			q.Values = append(q.Values, rdata)
			return
		}
	}
	p.Batch.Prereqs = append(p.Batch.Prereqs, store.Prereq{Kind: store.RRsetEqual, Name: name, Values: [][]byte{rdata}})
}

// configured says whether the apex has records of a type other than TXT.
func configured(z *answer.Zone, typ uint16) bool {
	switch typ {
	case wire.TypeSOA:
		return true
	case wire.TypeNS:
		return z.NS != nil
	case wire.TypeA:
		return z.A != nil
	case wire.TypeAAAA:
		return z.AAAA != nil
	}
	return false
}

// configuredAs compares with the one record of the type. The SOA and NS are never equal: their names may be compressed and the serial moves,
// so whoever asks for that is told that it does not hold.
func configuredAs(z *answer.Zone, typ uint16, rdata []byte) bool {
	switch typ {
	case wire.TypeA:
		return bytes.Equal(z.A, rdata)
	case wire.TypeAAAA:
		return bytes.Equal(z.AAAA, rdata)
	}
	return false
}
