package record

import (
	"cmp"
	"crypto/ed25519"
	"encoding/binary"
	"slices"
)

// A bootstrap record (records.md 11): the clusters that serve the users of a domain. Text: "v=dmp1;t=bootstrap;" and strict base64.
// Body:
//
//	+------------+----------+----------+------------------+-------------+-------------+--------------+
//	| magic (7B) | seq (8B) | exp (8B) | signer_spk (32B) | length (1B) | user_domain | entries (1B) |
//	+------------+----------+----------+------------------+-------------+-------------+--------------+
//	each entry:
//	+---------------+-------------+---------------------+--------------------+
//	| priority (2B) | length (1B) | cluster_base_domain | operator_spk (32B) |
//	+---------------+-------------+---------------------+--------------------+
//
// The signature is by signer_spk, which readers have pinned.

const (
	bootstrapPrefix     = "v=dmp1;t=bootstrap;"
	bootstrapMagic      = "DMPBS01"
	bootstrapEntriesMax = 16
)

// Bootstrap is a bootstrap record.
type Bootstrap struct {
	Domain  string // without a dot at the end
	Seq     uint64
	ExpSec  uint64
	Signer  [32]byte
	Entries []BootstrapEntry // by priority, otherwise as in the record
}

// BootstrapEntry is one cluster.
type BootstrapEntry struct {
	Priority uint16
	Domain   string
	Operator [32]byte
}

// Verify reads a record by the pinned signer. expected, if not empty, is the domain that it must be of. On a refusal b is not changed.
func (b *Bootstrap) Verify(text []byte, signer *[32]byte, expected string, nowSec int64) Refusal {
	body, sig, r := unwrapPinned(text, bootstrapPrefix)
	if r != Accepted {
		return r
	}
	if !VerifyEd25519(signer[:], body, sig) {
		return BadSignature
	}
	var y Bootstrap
	if r := y.parse(body); r != Accepted {
		return r
	}
	if y.Signer != *signer {
		return BadKey
	}
	if r := checkExp(y.ExpSec, nowSec, fiveYears); r != Accepted {
		return r
	}
	if expected != "" && !sameName(y.Domain, expected) {
		return BadSubject
	}
	*b = y
	return Accepted
}

func (b *Bootstrap) parse(body []byte) Refusal {
	f := fields{body, true}
	if string(f.take(7)) != bootstrapMagic {
		return BadMagic
	}
	b.Seq, b.ExpSec, b.Signer = f.u64(), f.u64(), f.key()
	var r Refusal
	if b.Domain, r = f.nameField(); r != Accepted {
		return r
	}
	n := int(f.u8())
	if n < 1 || n > bootstrapEntriesMax {
		return BadCount
	}
	for range n {
		e := BootstrapEntry{Priority: f.u16()}
		if e.Domain, r = f.nameField(); r != Accepted {
			return r
		}
		e.Operator = f.key()
		if !f.ok {
			return BadField
		}
		for _, other := range b.Entries {
			if other.Priority == e.Priority && lower(other.Domain) == lower(e.Domain) {
				return BadDuplicate
			}
		}
		b.Entries = append(b.Entries, e)
	}
	if len(f.rest) > 0 {
		return BadTrailing
	}
	slices.SortStableFunc(b.Entries, func(x, y BootstrapEntry) int { return cmp.Compare(x.Priority, y.Priority) })
	return Accepted
}

// Append appends the text, signed; nothing if a reader would refuse it. Signer is the key's, whatever the field says.
func (b *Bootstrap) Append(dst []byte, key ed25519.PrivateKey) ([]byte, Refusal) {
	if len(b.Entries) > bootstrapEntriesMax {
		return dst, BadCount
	}
	body := append([]byte(nil), bootstrapMagic...)
	body = binary.BigEndian.AppendUint64(body, b.Seq)
	body = binary.BigEndian.AppendUint64(body, b.ExpSec)
	body = append(body, key.Public().(ed25519.PublicKey)...)
	if len(b.Domain) > nameFieldMax {
		return dst, BadField
	}
	body = append(body, byte(len(b.Domain)))
	body = append(body, b.Domain...)
	body = append(body, byte(len(b.Entries)))
	for _, e := range b.Entries {
		if len(e.Domain) > nameFieldMax {
			return dst, BadField
		}
		body = binary.BigEndian.AppendUint16(body, e.Priority)
		body = append(body, byte(len(e.Domain)))
		body = append(body, e.Domain...)
		body = append(body, e.Operator[:]...)
	}
	var check Bootstrap
	if r := check.parse(body); r != Accepted {
		return dst, r
	}
	out := wrap(dst, bootstrapPrefix, body, key)
	if len(out)-len(dst) > recordWireMax {
		return dst, BadLength
	}
	return out, Accepted
}
