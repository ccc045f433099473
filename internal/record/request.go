package record

import (
	"encoding/binary"
	"fmt"
)

// The payload of a frame of the requests log, all integers big-endian:
//
//	request | 1 | source (1B) | writer (16B) | operations (2B) | operation | operation | ...
//	void    | 2 | lsn (8B) |
//
//	add, delete, replace, delete RRset
//	        | kind (1B) | flags (1B) | ttl, seconds (4B) | values at most (4B) | name length (1B) | name | rdata length (2B) | rdata |
//	merge, offer
//	        | kind (1B) | flags (1B) | put or tombstone entry as in a rows frame; an offer has a put |
//
// A request is one decision: all of its operations happen or none. A void says that the request at that position, which the
// data plane has not taken yet, must not happen any more (design.md, Visible before answered).

const (
	payloadRequest = 1
	payloadVoid    = 2
)

// OpKind is what an operation does.
type OpKind uint8

const (
	OpAdd         OpKind = 1 + iota // one value at a name
	OpDelete                        // one value at a name
	OpDeleteRRset                   // all values at a name
	OpMerge                         // the state of an element, as another node has it
	OpReplace                       // makes the name hold exactly the values of the OpReplace operations at it in this request
	OpOffer                         // a value as a peer without stamps has it: Row's Add, ExpMs and RDATA (cluster.md 17.4)
	opKinds
)

// Op is one operation.
type Op struct {
	Kind      OpKind
	Name      []byte // wire form, lower case
	RDATA     []byte // of OpAdd, OpDelete, OpReplace
	TTLSec    uint32 // of OpAdd and OpReplace; 0 counts as 60 (dns.md 5.4)
	ExpMs     int64  // in memory only, for a life that ends at a moment: overrides TTLSec if not 0
	MayDelete bool   // the writer has delete rights at the name, and so may shorten a life
	CapExempt bool   // a record of the node itself; of OpOffer: a cluster manifest, which no cap and no tombstone binds
	Verified  bool   // the signature in the value was checked
	ValuesMax int    // live values at the name; 0: the node's limit
	Row       *Row   // of OpMerge and OpOffer
}

// Source is where a request comes from.
type Source uint8

const (
	SourceHTTP Source = 1 + iota
	SourcePeer
	SourceSelf // the node's own records
	SourceOperator
)

// Request is what the control plane asks the data plane to store.
type Request struct {
	Source Source
	Writer [16]byte // whose quota it counts against; zero: nobody's. Never stored with a row
	Ops    []Op
}

// OpsMax bounds the operations of one request.
const OpsMax = 4096

// Code is what became of a request or of a message.
type Code uint8

const (
	CodeStored     Code = iota // something changed
	CodeUnchanged              // it was so already
	CodeAbsent                 // what was to be deleted is not there
	CodeFull                   // the name holds as many values as it may
	CodeQuota                  // the writer has as many records as it may
	CodeStoreFull              // the node holds as many records or bytes as it may
	CodeTooBig                 // the answer would not fit a DNS message
	CodeStamp                  // a stamp is too far ahead of the clock
	CodePrereq                 // a prerequisite did not hold
	CodeKey                    // the key was revoked in the meantime
	CodeFailed                 // the disk refused it
	CodeVoid                   // it was voided before it was taken
	CodeTombstoned             // an offer of an old copy of what was deleted here
	CodeRefreshed              // an offer that lengthened the life of what was there
	codes
)

var codeNames = [codes]string{"stored", "unchanged", "absent", "rrset full", "quota reached", "store full", "rrset too big", "stamp ahead of the clock", "prerequisite", "key revoked", "write failed", "voided",
	"tombstoned", "refreshed"}

func (c Code) String() string {
	if c < codes {
		return codeNames[c]
	}
	return "unknown"
}

// OK says whether the request did what it asked for.
func (c Code) OK() bool { return c <= CodeAbsent || c == CodeRefreshed }

// AppendRequest writes a request.
func AppendRequest(dst []byte, r *Request) []byte {
	dst = append(dst, payloadRequest, byte(r.Source))
	dst = append(dst, r.Writer[:]...)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(r.Ops)))
	for i := range r.Ops {
		op := &r.Ops[i]
		dst = append(dst, byte(op.Kind), op.flags())
		if op.Kind == OpMerge || op.Kind == OpOffer {
			e := Entry{Kind: KindPut, Row: *op.Row}
			if op.Row.RDATA == nil {
				e.Kind = KindTombstone
			}
			dst = AppendEntry(dst, &e)
			continue
		}
		dst = binary.BigEndian.AppendUint32(dst, op.TTLSec)
		dst = binary.BigEndian.AppendUint32(dst, uint32(op.ValuesMax))
		dst = append(dst, byte(len(op.Name)))
		dst = append(dst, op.Name...)
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(op.RDATA)))
		dst = append(dst, op.RDATA...)
	}
	return dst
}

const (
	opMayDelete = 1 << iota
	opCapExempt
	opVerified
	opFlags
)

func (o *Op) flags() (b byte) {
	if o.MayDelete {
		b |= opMayDelete
	}
	if o.CapExempt {
		b |= opCapExempt
	}
	if o.Verified {
		b |= opVerified
	}
	return b
}

// AppendVoid writes a void.
func AppendVoid(dst []byte, lsn uint64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, payloadVoid), lsn)
}

// ReadRequest reads either; for a void the request is nil. What the request points to lies in p.
func ReadRequest(p []byte) (req *Request, voidLSN uint64, err error) {
	r := reader{b: p}
	switch r.u8() {
	case payloadVoid:
		if voidLSN = r.u64(); !r.failed && len(r.b) == 0 {
			return nil, voidLSN, nil
		}
	case payloadRequest:
		req = &Request{Source: Source(r.u8())}
		copy(req.Writer[:], r.take(16))
		n := int(r.u16())
		if r.failed || n > OpsMax || req.Source < SourceHTTP || req.Source > SourceOperator {
			break
		}
		req.Ops = make([]Op, n)
		for i := range req.Ops {
			if !r.op(&req.Ops[i]) {
				return nil, 0, fmt.Errorf("%w: operation %d of a request", ErrFormat, i)
			}
		}
		if len(r.b) == 0 {
			return req, 0, nil
		}
	}
	return nil, 0, fmt.Errorf("%w: a request of %d bytes", ErrFormat, len(p))
}

func (r *reader) op(op *Op) bool {
	op.Kind = OpKind(r.u8())
	flags := r.u8()
	op.MayDelete, op.CapExempt, op.Verified = flags&opMayDelete != 0, flags&opCapExempt != 0, flags&opVerified != 0
	if r.failed || op.Kind == 0 || op.Kind >= opKinds || flags >= opFlags {
		return false
	}
	if op.Kind == OpMerge || op.Kind == OpOffer {
		var e Entry
		if !r.entry(&e, 0) || e.Kind != KindPut && (e.Kind != KindTombstone || op.Kind == OpOffer) {
			return false
		}
		op.Row, op.Name = &e.Row, e.Row.Name
		return true
	}
	op.TTLSec = r.u32()
	op.ValuesMax = int(r.u32())
	op.Name = r.take(int(r.u8()))
	op.RDATA = r.take(int(r.u16()))
	if r.failed || !validName(op.Name) {
		return false
	}
	if op.Kind == OpDeleteRRset {
		empty := len(op.RDATA) == 0
		op.RDATA = nil
		return empty
	}
	return validRDATA(op.RDATA)
}
