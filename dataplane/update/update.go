// Package update decides what an UPDATE (RFC 2136) may do, as far as message and key alone decide it: the result is a batch for the
// store, whose committer decides the rest, or the reason why not. dns.md 5, 7 and 8.
//
// Nothing here waits. The one dear check, the signature of a claim, is left to the caller's pool (Prepared.CheckClaims).
package update

import (
	"crypto/sha256"
	"net/netip"
	"unicode/utf8"

	"github.com/dnsmesh/dmpd/dataplane/answer"
	"github.com/dnsmesh/dmpd/dataplane/store"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/tsig"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// Prereqs says whose prerequisites are evaluated (DMP_UPDATE_PREREQUISITES). Their form is checked in any case.
type Prereqs uint8

const (
	// PrereqsAuto: those of keys that an operator made. Client libraries add prerequisites that the reference ignores, so a client
	// that registered itself succeeds as it does there (dns.md 5.3).
	PrereqsAuto Prereqs = iota
	PrereqsOn
	PrereqsOff
)

// Policy is what the configuration says of updates. It is immutable: a reload makes a new one. A limit of zero or less is none.
type Policy struct {
	Zone         *answer.Zone
	Enabled      bool // DMP_DNS_UPDATE_ENABLED
	ValueMax     int  // bytes of one value
	TTLMaxSec    int64
	Prereqs      Prereqs
	Provider     bool  // take claims for anybody
	Receiver     bool  // take claims for registered recipients
	ClaimLifeSec int64 // DMP_CLAIM_MAX_TTL
}

// Author is whose message it is: nobody's if Key is nil.
type Author struct {
	Key  *tsig.Key   // verified, live
	Keys *tsig.Table // where it was found; asked again when the batch is decided
	Peer netip.Addr
}

// Env is what a decision depends on beside message and author.
type Env struct {
	Policy *Policy
	View   store.View // of the store the batch goes to; Prepare is called between Enter and Leave
	Limits *Limits    // of claims
	NowMs  int64
	MonoNs int64
}

// Prepared is a message that passed. Everything in it is its own: the packet may be reused.
type Prepared struct {
	Batch store.Batch // Done is the caller's to set

	claims []claim // whose signature is to be checked
}

// Empty says that there is nothing to commit: answer NOERROR at once.
func (p *Prepared) Empty() bool { return len(p.Batch.Ops) == 0 && len(p.Batch.Prereqs) == 0 }

// Adds and Deletes count the operations, for the metrics.
func (p *Prepared) Adds() (n int) {
	for i := range p.Batch.Ops {
		if p.Batch.Ops[i].Kind == record.OpAdd {
			n++
		}
	}
	return n
}

func (p *Prepared) Deletes() int { return len(p.Batch.Ops) - p.Adds() }

// Prepare decides a parsed message of opcode UPDATE. Where it refuses, rcode is the response's, which a failed prerequisite has several
// of. The order of the checks shows in which rcode wins, and is that of dns.md 5.1: for messages without TSIG as well, since a
// probe knows a node by REFUSED or NOTAUTH (9.4).
func Prepare(m *wire.Message, a *Author, e *Env) (p *Prepared, rcode uint16, f wire.Fault) {
	if f = zoneSection(m, e.Policy); f != wire.OK {
		return nil, f.Rcode(), f
	}
	if f = prereqForm(m); f != wire.OK {
		return nil, f.Rcode(), f
	}
	// RFC 2136 3.4.1.3, each of these over the whole message before the next.
	apex := e.Policy.Zone.Apex
	for i := range m.NS {
		if !wire.IsSubdomain(m.NS[i].Name, apex) {
			return nil, wire.NotZoneR, wire.NotZone
		}
	}
	ops, f := operations(m)
	if f == wire.OK {
		f = caps(m, ops, a.Key != nil, e.Policy)
	}
	if f != wire.OK {
		return nil, f.Rcode(), f
	}

	p = &Prepared{}
	p.Batch.Ops = ops
	if a.Key == nil {
		f = p.anonymous(a, e)
	} else {
		f = p.signed(a)
	}
	if f != wire.OK {
		return nil, f.Rcode(), f
	}
	// After the authorisation, so that a stranger learns nothing of what is stored.
	if evaluate(e.Policy.Prereqs, a.Key) {
		if rcode, f = p.prerequisites(m, e.Policy.Zone); f != wire.OK {
			return nil, rcode, f
		}
	}
	return p, wire.NoError, wire.OK
}

// zoneSection is steps 3 to 6 of dns.md 5.1 (RFC 2136 3.1).
func zoneSection(m *wire.Message, p *Policy) wire.Fault {
	switch {
	case !p.Enabled:
		return wire.UpdatesOff
	case len(m.QD) != 1:
		return wire.ZoneCount
	case m.QD[0].Type != wire.TypeSOA:
		return wire.ZoneType
	case m.QD[0].Class != wire.ClassIN:
		return wire.ZoneClass
	case len(p.Zone.Apex) == 0 || !wire.EqualName(m.QD[0].Name, p.Zone.Apex):
		return wire.NotAuth
	}
	return wire.OK
}

// metaType says that no record has this type (RFC 2136 3.4.1.3, RFC 6895 3.1).
func metaType(t uint16) bool { return t == 0 || t == wire.TypeOPT || 128 <= t && t <= 255 }

// operations reads the update section (dns.md 5.2, RFC 2136 2.5). Records that are no TXT give none. What it returns owns its bytes, and
// values are kept in the form in which they are stored: cut into strings of 255 bytes, wherever the sender cut.
func operations(m *wire.Message) ([]record.Op, wire.Fault) {
	size := 0
	for i := range m.NS {
		size += len(m.NS[i].Name) + m.NS[i].REnd - m.NS[i].RDataOff // the stored form is not longer than the sent one
	}
	buf := make([]byte, 0, size)
	ops := make([]record.Op, 0, len(m.NS))
	var value []byte
	for i := range m.NS {
		r := &m.NS[i]
		rdata := m.RData(r)
		op := record.Op{TTLSec: r.TTL}
		switch r.Class {
		case wire.ClassIN: // 2.5.1
			if metaType(r.Type) || r.Type == wire.TypeA && len(rdata) != 4 || r.Type == wire.TypeAAAA && len(rdata) != 16 {
				return nil, wire.UpdateRR
			}
			op.Kind = record.OpAdd
		case wire.ClassANY: // 2.5.2, 2.5.3; a TTL is ignored as the reference does
			if len(rdata) != 0 || metaType(r.Type) && r.Type != wire.TypeANY {
				return nil, wire.UpdateRR
			}
			op.Kind = record.OpDeleteRRset
		case wire.ClassNONE: // 2.5.4
			if metaType(r.Type) {
				return nil, wire.UpdateRR
			}
			op.Kind = record.OpDelete
		default:
			return nil, wire.UpdateRR
		}
		if r.Type != wire.TypeTXT && r.Type != wire.TypeANY {
			continue
		}
		if op.Kind != record.OpDeleteRRset {
			var ok bool
			if value, ok = wire.AppendTXT(value[:0], rdata); !ok {
				return nil, wire.UpdateRR
			}
			if !utf8.Valid(value) {
				return nil, wire.NotUTF8
			}
			at := len(buf)
			buf = record.AppendRDATA(buf, value)
			op.RDATA = buf[at:len(buf):len(buf)]
		}
		at := len(buf)
		buf = append(buf, r.Name...)
		op.Name = buf[at:len(buf):len(buf)]
		ops = append(ops, op)
	}
	return ops, wire.OK
}

// caps is step 9 of dns.md 5.1, for adds only; how many values a name may have is the committer's to count.
func caps(m *wire.Message, ops []record.Op, signed bool, p *Policy) wire.Fault {
	for i := range ops {
		op := &ops[i]
		if op.Kind != record.OpAdd {
			continue
		}
		n := len(op.RDATA) - (len(op.RDATA)+255)/256 // without the strings' lengths
		if p.ValueMax > 0 && n > p.ValueMax {
			return wire.ValueTooLong
		}
		if op.TTLSec > 1<<31-1 { // RFC 2181 8
			op.TTLSec = 0
		}
		if p.TTLMaxSec > 0 && int64(op.TTLSec) > p.TTLMaxSec {
			return wire.TTLTooLong
		}
		if !printable(op.RDATA) {
			return wire.NotPrintable
		}
	}
	if !signed {
		return wire.OK // a claim beside an A record is taken, as by the reference
	}
	for i := range m.NS {
		if r := &m.NS[i]; r.Class == wire.ClassIN && r.Type != wire.TypeTXT {
			return wire.NotTXT // not acknowledged and lost
		}
	}
	return wire.OK
}

// printable says whether no value byte is a control character; rdata is in stored form.
func printable(rdata []byte) bool {
	for len(rdata) > 0 {
		n := int(rdata[0])
		for _, c := range rdata[1 : 1+n] {
			if c < 0x20 || c == 0x7F {
				return false
			}
		}
		rdata = rdata[1+n:]
	}
	return true
}

// signed is the authorisation by scope (dns.md 7.2): one operation out of scope refuses the message. There is no way from here to the
// rules of claims.
func (p *Prepared) signed(a *Author) wire.Fault {
	for i := range p.Batch.Ops {
		op := &p.Batch.Ops[i]
		op.MayDelete = a.Key.CanDelete(op.Name)
		if !op.MayDelete && (op.Kind != record.OpAdd || !a.Key.CanAdd(op.Name)) {
			return wire.OutOfScope
		}
	}
	key, keys := a.Key, a.Keys
	sum := sha256.Sum256(key.Name)
	p.Batch.Writer = [16]byte(sum[:16])
	// A mint, a revoke and a new secret each put another key in the table, and are answered once they bind.
	p.Batch.KeyLive = func() bool { return keys.Load(key.Name) == key }
	return wire.OK
}

// Outcome gives the response code and reason of what the store made of a batch.
func Outcome(r store.Result) (rcode uint16, f wire.Fault) {
	switch r.Code {
	case record.CodeStored, record.CodeUnchanged, record.CodeAbsent:
		return wire.NoError, wire.OK
	case record.CodeFull:
		f = wire.RRsetFull
	case record.CodeQuota:
		f = wire.QuotaFull
	case record.CodeStoreFull:
		f = wire.StoreFull
	case record.CodeTooBig:
		f = wire.RRsetTooBig
	case record.CodePrereq:
		return uint16(r.Rcode), wire.PrereqFailed
	case record.CodeKey:
		// The MAC was good when the message came, so this is no TSIG error (dns.md 6.1: REFUSED).
		f = wire.OutOfScope
	default:
		f = wire.WriteFailed
	}
	return f.Rcode(), f
}
