package update

import (
	"bytes"
	"net/netip"

	"github.com/dnsmesh/dmpd/dataplane/store"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/tsig"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// ClaimsMax bounds the operations of a message without TSIG: each may cost a signature check. A client sends one claim a message; ten are the
// slots of a mailbox.
const ClaimsMax = 10

// claim is one whose signature is still to be checked.
type claim struct {
	record.Claim
	hash [tsig.HashLen]byte // of the recipient
	peer netip.Addr
}

// anonymous is the one way in without a key (dns.md 8.2): everything cheap about all operations comes first, and what remains is left
// in p.claims. A claim that is stored already with at least this life costs no signature and no token.
func (p *Prepared) anonymous(a *Author, e *Env) wire.Fault {
	pol := e.Policy
	if !pol.Provider && !pol.Receiver {
		return wire.ClaimOff
	}
	ops := p.Batch.Ops
	if len(ops) == 0 {
		return wire.NoOperation
	}
	for i := range ops {
		if ops[i].Kind != record.OpAdd {
			return wire.ClaimOperation
		}
	}
	if len(ops) > ClaimsMax {
		return wire.ClaimMany
	}
	peer := prefix(a.Peer)
	nowSec := e.NowMs / 1000
	kept := ops[:0]
	var text []byte
	for i := range ops {
		op := ops[i]
		slot, hash, ok := claimOwner(op.Name, pol.Zone.Apex)
		if !ok {
			return wire.ClaimOwner
		}
		if !pol.Provider && (a.Keys == nil || !a.Keys.HasMailbox(hash, nowSec)) {
			return wire.ClaimRecipient
		}
		p.claims = append(p.claims, claim{hash: hash, peer: peer})
		c := &p.claims[len(p.claims)-1]
		text = record.AppendValue(text[:0], op.RDATA)
		if c.Parse(text) != record.Accepted {
			return wire.ClaimFormat
		}
		if c.Slot != slot {
			return wire.ClaimSlot
		}
		switch c.Check(nowSec) {
		case record.Accepted:
		case record.LivesTooLong:
			return wire.ClaimLife
		default:
			return wire.ClaimExpired
		}
		lifeSec := int64(c.ExpSec) - nowSec
		if pol.ClaimLifeSec > 0 && lifeSec > pol.ClaimLifeSec {
			return wire.ClaimLife
		}
		// The life is what the sender asks for, within what it signed (dns.md 8.2).
		ttlSec := int64(op.TTLSec)
		if ttlSec == 0 {
			ttlSec = ttlZeroSec
		}
		op.ExpMs = min(e.NowMs+ttlSec*1000, int64(c.ExpSec)*1000)
		op.Verified = true
		if known(e.View, &op) {
			p.claims = p.claims[:len(p.claims)-1]
			continue
		}
		if !e.Limits.room(c, e.MonoNs) {
			return wire.ClaimRate
		}
		kept = append(kept, op)
	}
	p.Batch.Ops = kept
	return wire.OK
}

// ttlZeroSec is what TTL 0 in an add means (dns.md 5.4).
const ttlZeroSec = 60

// known says whether the store holds the value, its signature checked, with a life that this add would not lengthen.
func known(v store.View, op *record.Op) (found bool) {
	set, ok := v.Lookup(op.Name)
	if !ok {
		return false
	}
	set.Each(func(x store.Value) bool {
		if !bytes.Equal(x.RDATA, op.RDATA) {
			return true
		}
		found = x.Flags&record.FlagVerified != 0 && x.ExpMs >= op.ExpMs
		return false
	})
	return found
}

// claimOwner reads claim-<one digit>.mb-<12 hex>.<zone>, two labels and no more.
func claimOwner(name, apex []byte) (slot uint8, hash [tsig.HashLen]byte, ok bool) {
	first, rest := wire.FirstLabel(name)
	second, rest := wire.FirstLabel(rest)
	const claim, mb = "claim-", "mb-"
	if !wire.EqualName(rest, apex) || len(first) != len(claim)+1 || len(second) != len(mb)+tsig.HashLen ||
		string(first[:len(claim)]) != claim || string(second[:len(mb)]) != mb {
		return 0, hash, false
	}
	slot = first[len(claim)] - '0'
	copy(hash[:], second[len(mb):])
	for _, c := range hash {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return 0, hash, false
		}
	}
	return slot, hash, slot <= 9
}

// Claims counts the claims whose signature is to be checked; with 0 the batch may go to the store at once.
func (p *Prepared) Claims() int { return len(p.claims) }

// CheckClaims checks the signatures that are left, some 60 us each, and takes a token for each good one: run it on the pool, not on a
// loop. Tokens taken before a later claim fails stay taken (dns.md 8.2).
func (p *Prepared) CheckClaims(l *Limits, monoNs int64) wire.Fault {
	for i := range p.claims {
		c := &p.claims[i]
		if !c.VerifySignature() {
			return wire.ClaimForged
		}
		if !l.take(c, monoNs) {
			return wire.ClaimRate
		}
	}
	return wire.OK
}
