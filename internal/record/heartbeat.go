package record

import (
	"crypto/ed25519"
	"encoding/binary"
	"unicode/utf8"
)

// A heartbeat (records.md 9): "this node is there". Text: "v=dmp1;t=heartbeat;" and strict base64. Body:
//
//	+------------+-------------+----------+--------------------+-------------+---------+
//	| magic (7B) | length (2B) | endpoint | operator_spk (32B) | length (1B) | version |
//	+------------+---+---------+----+-----+---------+----------+-------------+---------+
//	| capabilities (2B) | length (1B) | claim_provider_zone | ts (8B) | exp (8B) |
//	+-------------------+-------------+---------------------+---------+----------+
//
// The signature is by operator_spk. The older magic DMPHB02, which is read but not written, has no zone.

const (
	heartbeatPrefix  = "v=dmp1;t=heartbeat;"
	heartbeatMagic   = "DMPHB03"
	heartbeatLegacy  = "DMPHB02"
	heartbeatBlobMin = 124
	endpointMax      = 255
	versionMax       = 32
	zoneMax          = 64

	// CapClaimProvider is the bit of Capabilities that makes Zone a provider of claims.
	CapClaimProvider = 1

	// HeartbeatSkewSec is the skew between clocks that readers allow unless they have a reason.
	HeartbeatSkewSec = recordSkewSec
)

// Heartbeat is a heartbeat.
type Heartbeat struct {
	Endpoint     string // http or https, host, port
	Operator     [32]byte
	Version      string
	Capabilities uint16
	Zone         string // that the node serves; a provider of claims only if the capability says so
	TsSec        uint64
	ExpSec       uint64
}

// Verify reads a heartbeat, checks its signature and its times. On a refusal h is not changed.
func (h *Heartbeat) Verify(text []byte, nowSec int64, skewSec uint64) Refusal {
	blob, r := unwrap(text, heartbeatPrefix, recordWireMax, true)
	if r != Accepted {
		return r
	}
	if len(blob) < heartbeatBlobMin {
		return BadLength
	}
	body, sig := blob[:len(blob)-sigLen], blob[len(blob)-sigLen:]
	f := fields{body, true}
	magic := string(f.take(7))
	if magic != heartbeatMagic && magic != heartbeatLegacy {
		return BadMagic
	}
	var y Heartbeat
	n := int(f.u16())
	if n < 1 || n > endpointMax {
		return BadField
	}
	y.Endpoint, y.Operator = string(f.take(n)), f.key()
	if n = int(f.u8()); n > versionMax {
		return BadField
	}
	y.Version, y.Capabilities = string(f.take(n)), f.u16()
	if magic == heartbeatMagic {
		if n = int(f.u8()); n > zoneMax {
			return BadField
		}
		y.Zone = string(f.take(n))
	}
	y.TsSec, y.ExpSec = f.u64(), f.u64()
	if !f.ok {
		return BadField
	}
	if len(f.rest) > 0 {
		return BadTrailing
	}
	if !utf8.ValidString(y.Zone) || !ascii(y.Version) {
		return BadField
	}
	if !PublicEndpoint(y.Endpoint) {
		return BadEndpoint
	}
	if y.ExpSec <= y.TsSec {
		return BadTimes
	}
	if !VerifyEd25519(y.Operator[:], body, sig) {
		return BadSignature
	}
	now := unsigned(nowSec)
	switch {
	case y.TsSec > now && y.TsSec-now > skewSec:
		return NotYet
	case y.TsSec < now && now-y.TsSec > skewSec:
		return TooOld
	case y.ExpSec <= now:
		return Expired
	}
	if r := checkLife(y.ExpSec, nowSec, month); r != Accepted {
		return r
	}
	*h = y
	return Accepted
}

// Append appends the text, signed; nothing if the heartbeat may not be signed, which is stricter than what readers take. Operator is
// the key's, whatever the field says.
func (h *Heartbeat) Append(dst []byte, key ed25519.PrivateKey) ([]byte, Refusal) {
	if len(h.Endpoint) > endpointMax || !PublicEndpoint(h.Endpoint) {
		return dst, BadEndpoint
	}
	if len(h.Version) > versionMax || !ascii(h.Version) || len(h.Zone) > zoneMax || !ascii(h.Zone) || !noSpace(h.Zone) {
		return dst, BadField
	}
	if h.ExpSec <= h.TsSec || h.ExpSec >= 1<<63 {
		return dst, BadTimes
	}
	body := append([]byte(nil), heartbeatMagic...)
	body = binary.BigEndian.AppendUint16(body, uint16(len(h.Endpoint)))
	body = append(body, h.Endpoint...)
	body = append(body, key.Public().(ed25519.PublicKey)...)
	body = append(body, byte(len(h.Version)))
	body = append(body, h.Version...)
	body = binary.BigEndian.AppendUint16(body, h.Capabilities)
	body = append(body, byte(len(h.Zone)))
	body = append(body, h.Zone...)
	body = binary.BigEndian.AppendUint64(body, h.TsSec)
	body = binary.BigEndian.AppendUint64(body, h.ExpSec)
	return wrap(dst, heartbeatPrefix, body, key), Accepted
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// noSpace says that there is neither white space nor a control character (records.md 2.2).
func noSpace(s string) bool {
	for i := range len(s) {
		if s[i] < 0x21 || s[i] == 0x7F {
			return false
		}
	}
	return true
}
