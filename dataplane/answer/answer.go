// Package answer turns a query and the records into the bytes of a response (dns.md 3). It reads the store and nothing else, keeps
// nothing, and appends to the caller's buffer.
//
// Two ways lead to one function, respond: Query for what wire.ParseQuery read, which is nearly all traffic, and Message for what needed
// the complete parser. Where both read a message they therefore give the same bytes (TestBothWays).
package answer

import (
	"github.com/dnsmesh/dmpd/dataplane/store"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// Sizes of responses.
const (
	udpPlain = 512   // without EDNS (RFC 1035 4.2.1), and the least that EDNS may say (RFC 6891 6.2.3)
	tcpMax   = 65535 // RFC 1035 4.2.2
)

// SOA timers (dns.md 3.4).
const (
	soaRefresh = 3600
	soaRetry   = 600
	soaExpire  = 604800
)

// Zone is what the configuration says of the served zone. It is immutable: a reload makes a new one.
type Zone struct {
	Apex   []byte // wire, lower; empty: no zone is served
	A      []byte // 4 bytes, nil if unset
	AAAA   []byte // 16 bytes, nil if unset
	NS     []byte // wire, nil if unset
	RName  []byte // wire; nil: hostmaster.<apex>
	TTLSec uint32 // of every answer, and the SOA's MINIMUM
	NSID   []byte // RFC 5001, nil if unset
	UDPMax int    // the largest datagram; 0: wire.UDPSize

	mname, rname []byte
}

// Ready fills what follows from the configuration. Call it once, before the zone is shared.
func (z *Zone) Ready() *Zone {
	z.mname, z.rname = z.NS, z.RName
	if z.mname == nil {
		z.mname = z.Apex
	}
	if z.rname == nil {
		const label = "\x0ahostmaster"
		z.rname = z.Apex // a name that has no room for one more label is rare enough
		if len(label)+len(z.Apex) <= wire.NameMax {
			z.rname = append([]byte(label), z.Apex...)
		}
	}
	if z.UDPMax <= 0 {
		z.UDPMax = wire.UDPSize
	}
	z.UDPMax = max(z.UDPMax, udpPlain)
	return z
}

// Env is what a response depends on beside the message and the records. The loop reuses it from message to message.
type Env struct {
	Zone    *Zone
	NowMs   int64
	TCP     bool
	Reserve int    // bytes that the caller will append, for a TSIG record
	Cookie  []byte // COOKIE option to send if the request has EDNS; nil: none
}

// Kind is what RRL tells answers apart by.
type Kind uint8

const (
	Positive Kind = iota
	NoData
	NXDomain
	Refusal // REFUSED, FORMERR, NOTIMP, BADVERS, SERVFAIL
)

// Result says what was appended.
type Result struct {
	Fault     wire.Fault // why it is a refusal
	Rcode     uint16     // before truncation; 16 is BADVERS
	Kind      Kind
	Truncated bool
}

// Query answers a query that wire.ParseQuery read. Hot path: no allocation (TestAllocs). Call it between the store's Enter and Leave.
func Query(dst, msg []byte, q *wire.Query, v store.View, e *Env) ([]byte, Result) {
	return respond(dst, msg, q.QEnd, q.Name[:q.NameLen], q.Type, q.Class, &q.EDNS, v, e)
}

// Message answers any message but an UPDATE; f is what wire.Parse said of it. A message that must not be answered leaves dst as it is.
func Message(dst []byte, m *wire.Message, f wire.Fault, v store.View, e *Env) ([]byte, Result) {
	if f.Silent() {
		return dst, Result{Fault: f, Kind: Refusal}
	}
	// Before the parser's verdict: other opcodes may have other forms (RFC 8490 5.1).
	if m.Opcode != wire.OpQuery && m.Opcode != wire.OpUpdate {
		return Refuse(dst, m, wire.BadOpcode, e)
	}
	if f != wire.OK {
		return Refuse(dst, m, f, e)
	}
	// RFC 6891 6.1.3: before anything that a later version might have changed.
	if m.EDNS.Present && m.EDNS.Version != 0 {
		return Refuse(dst, m, wire.BadVersion, e)
	}
	// RFC 9619
	switch {
	case len(m.QD) == 0:
		return Refuse(dst, m, wire.NoQuestion, e)
	case len(m.QD) > 1:
		return Refuse(dst, m, wire.ManyQuestions, e)
	}
	q := &m.QD[0]
	return respond(dst, m.Msg, m.QEnd, q.Name, q.Type, q.Class, &m.EDNS, v, e)
}

// Refuse appends the response to a message that is refused: header, question if it could be read, OPT if the parser came as far as one
// (RFC 6891 7).
func Refuse(dst []byte, m *wire.Message, f wire.Fault, e *Env) ([]byte, Result) {
	qEnd := m.QEnd
	if !m.Question {
		qEnd = wire.HeaderSize
	}
	return refuse(dst, m.Msg, qEnd, &m.EDNS, f, e)
}

// Status appends a response without records: what an UPDATE gets (dns.md 5.1, Response shape), given the request's bytes up to
// qEnd. f is OK for success, and rcode then says which (a failed prerequisite has several).
func Status(dst, req []byte, qEnd int, edns *wire.EDNS, rcode uint16, f wire.Fault, e *Env) ([]byte, Result) {
	start := len(dst)
	aa := rcode != wire.NotAuthR && rcode != wire.FormErr && rcode != wire.NotImp && rcode != wire.BadVers
	dst = wire.AppendReply(dst, req, qEnd, rcode, aa)
	dst = appendOPT(dst, start, edns, rcode, f, e)
	r := Result{Fault: f, Rcode: rcode, Kind: Refusal}
	if rcode == wire.NoError {
		r.Kind = Positive
	}
	return dst, r
}

// Truncated appends a stub with TC, which sends the client to TCP: what RRL does instead of silence.
func Truncated(dst, msg []byte, qEnd int, edns *wire.EDNS, e *Env) []byte {
	start := len(dst)
	dst = wire.AppendReply(dst, msg, qEnd, wire.NoError, true)
	return appendOPT(wire.Truncate(dst, start, qEnd-wire.HeaderSize), start, edns, wire.NoError, wire.OK, e)
}

func refuse(dst, msg []byte, qEnd int, edns *wire.EDNS, f wire.Fault, e *Env) ([]byte, Result) {
	start := len(dst)
	dst = wire.AppendReply(dst, msg, qEnd, f.Rcode(), false)
	return appendOPT(dst, start, edns, f.Rcode(), f, e), Result{Fault: f, Rcode: f.Rcode(), Kind: Refusal}
}

// respond is the table of dns.md 3.2. name is lower.
func respond(dst, msg []byte, qEnd int, name []byte, typ, class uint16, edns *wire.EDNS, v store.View, e *Env) ([]byte, Result) {
	z := e.Zone
	switch typ {
	case wire.TypeAXFR, wire.TypeIXFR:
		return refuse(dst, msg, qEnd, edns, wire.Transfer, e)
	case 0, wire.TypeOPT, wire.TypeTKEY, wire.TypeTSIG, wire.TypeMAILA, wire.TypeMAILB:
		return refuse(dst, msg, qEnd, edns, wire.MetaType, e)
	}
	if class != wire.ClassIN && class != wire.ClassANY {
		return refuse(dst, msg, qEnd, edns, wire.BadClass, e)
	}
	served := len(z.Apex) > 0
	inside := served && wire.IsSubdomain(name, z.Apex)
	apex := inside && len(name) == len(z.Apex)

	// What is stored is served, wherever it lies: a cluster manifest has another base domain.
	set, stored := v.Lookup(name)
	live := 0
	if stored {
		var size int
		var firstExpMs int64
		if live, size, firstExpMs = set.Live(e.NowMs); live > 0 && (typ == wire.TypeTXT || typ == wire.TypeANY) {
			return appendTXT(dst, msg, qEnd, edns, set, live, size, firstExpMs, e)
		}
	}
	switch {
	case apex:
		if out, r, ok := appendApex(dst, msg, qEnd, typ, edns, v, e); ok {
			return out, r
		}
		return negative(dst, msg, qEnd, edns, NoData, true, v, e)
	case inside && typ != wire.TypeTXT:
		// Also at names that do not exist: a resolver that minimises names probes with A or NS, and NXDOMAIN there would hide
		// what appears below a moment later (RFC 8020).
		return negative(dst, msg, qEnd, edns, NoData, true, v, e)
	case inside && (structural(name, z.Apex) || v.HasBelow(name, e.NowMs)):
		return negative(dst, msg, qEnd, edns, NoData, true, v, e)
	case inside:
		return negative(dst, msg, qEnd, edns, NXDomain, true, v, e)
	case live > 0:
		return negative(dst, msg, qEnd, edns, NoData, false, v, e)
	case served:
		return refuse(dst, msg, qEnd, edns, wire.OutsideZone, e)
	case typ != wire.TypeTXT: // no zone is known: the reference's legacy mode
		return negative(dst, msg, qEnd, edns, NoData, false, v, e)
	}
	return negative(dst, msg, qEnd, edns, NXDomain, false, v, e)
}

// structural says whether a name is mb-<12 hex>.Z or id-<hex>.Z: names appear below them at any moment, so they exist always (dns.md
// 3.2, note).
func structural(name, apex []byte) bool {
	label, rest := wire.FirstLabel(name)
	if len(rest) != len(apex) || len(label) < 4 || label[2] != '-' {
		return false
	}
	switch {
	case label[0] == 'm' && label[1] == 'b' && len(label) == 3+12:
	case label[0] == 'i' && label[1] == 'd':
	default:
		return false
	}
	for _, c := range label[3:] {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// room is how many bytes the message may have without what the caller appends.
func room(edns *wire.EDNS, e *Env) int {
	n := udpPlain
	switch {
	case e.TCP:
		n = tcpMax
	case edns.Present:
		n = min(max(int(edns.Size), udpPlain), e.Zone.UDPMax)
	}
	return n - e.Reserve
}

// options of the response's OPT record.
func options(edns *wire.EDNS, rcode uint16, f wire.Fault, e *Env) (o wire.Options) {
	o.Rcode, o.DO, o.Cookie = rcode, edns.DO, e.Cookie
	if edns.NSID {
		o.NSID = e.Zone.NSID
	}
	if f != wire.OK {
		o.Code, o.EDE = f.EDE()
	}
	return o
}

func appendOPT(dst []byte, start int, edns *wire.EDNS, rcode uint16, f wire.Fault, e *Env) []byte {
	if !edns.Present {
		return dst
	}
	o := options(edns, rcode, f, e)
	return wire.AppendOPT(dst, start, &o)
}

// fit ends a response whose records are in place, or cuts it back to the question if it is too big (dns.md 3.6).
func fit(dst []byte, start, qEnd int, edns *wire.EDNS, r Result, e *Env) ([]byte, Result) {
	size := len(dst) - start
	if edns.Present {
		o := options(edns, r.Rcode, wire.OK, e)
		size += o.OPTSize()
	}
	if size > room(edns, e) {
		dst, r.Truncated = wire.Truncate(dst, start, qEnd-wire.HeaderSize), true
	}
	return appendOPT(dst, start, edns, r.Rcode, wire.OK, e), r
}

// appendTXT answers with an RRset: its live values, and one TTL for all that none of them outlives (RFC 2181 5.2).
func appendTXT(dst, msg []byte, qEnd int, edns *wire.EDNS, set store.RRset, live, size int, firstExpMs int64, e *Env) ([]byte, Result) {
	start := len(dst)
	need := qEnd + size
	if edns.Present {
		o := options(edns, wire.NoError, wire.OK, e)
		need += o.OPTSize()
	}
	if need > room(edns, e) {
		if e.TCP { // cannot be sent at all, and a subset must not be (RFC 2181 9)
			dst = wire.AppendReply(dst, msg, qEnd, wire.ServFail, true)
			return appendOPT(dst, start, edns, wire.ServFail, wire.RRsetTooBig, e), Result{Fault: wire.RRsetTooBig, Rcode: wire.ServFail, Kind: Refusal}
		}
		return Truncated(dst, msg, qEnd, edns, e), Result{Kind: Positive, Truncated: true}
	}
	ttlSec := uint32(min(int64(e.Zone.TTLSec), (firstExpMs-e.NowMs)/1000))
	if msg[wire.HeaderSize+1] == '_' && ofMesh(msg[wire.HeaderSize+2:]) {
		ttlSec = min(ttlSec, meshTTLSec)
	}
	dst = wire.AppendReply(dst, msg, qEnd, wire.NoError, true)
	dst, n, _ := set.AppendAnswers(dst, ttlSec, e.NowMs, size)
	wire.Count(dst, start, wire.Answers, n)
	return appendOPT(dst, start, edns, wire.NoError, wire.OK, e), Result{Kind: Positive}
}

// meshTTLSec is the longest TTL of heartbeats and seen graphs: readers take none over 300 s, so that a cache may hold them for a small part
// of that (federation.md 17).
const meshTTLSec = 30

// ofMesh says whether a first label goes on, behind its underscore, as those of heartbeats and seen graphs do.
func ofMesh(label []byte) bool {
	const name = "dnsmesh-"
	if len(label) < len(name) {
		return false
	}
	for i := range len(name) {
		if label[i]|0x20 != name[i] {
			return false
		}
	}
	return true
}

// appendApex answers from the configuration; ok is false if it has nothing of that type.
func appendApex(dst, msg []byte, qEnd int, typ uint16, edns *wire.EDNS, v store.View, e *Env) (_ []byte, _ Result, ok bool) {
	z, start := e.Zone, len(dst)
	rdata := z.A
	switch typ {
	case wire.TypeA:
	case wire.TypeAAAA:
		rdata = z.AAAA
	case wire.TypeNS:
		rdata = z.NS
	case wire.TypeSOA, wire.TypeANY: // RFC 8482 4.1: any one RRset will do
		dst = wire.AppendReply(dst, msg, qEnd, wire.NoError, true)
		dst = z.appendSOA(dst, start, v)
		wire.Count(dst, start, wire.Answers, 1)
		dst, r := fit(dst, start, qEnd, edns, Result{Kind: Positive}, e)
		return dst, r, true
	default:
		return dst, Result{}, false
	}
	if rdata == nil {
		return dst, Result{}, false
	}
	dst = wire.AppendReply(dst, msg, qEnd, wire.NoError, true)
	dst = wire.AppendRR(dst, start, z.Apex, typ, wire.ClassIN, z.TTLSec, 0)
	at := len(dst)
	if typ == wire.TypeNS {
		dst = wire.AppendCompressed(dst, start, rdata)
	} else {
		dst = append(dst, rdata...)
	}
	dst[at-1] = byte(len(dst) - at) // a name or an address: below 256
	wire.Count(dst, start, wire.Answers, 1)
	dst, r := fit(dst, start, qEnd, edns, Result{Kind: Positive}, e)
	return dst, r, true
}

func (z *Zone) appendSOA(dst []byte, start int, v store.View) []byte {
	soa := wire.SOA{Apex: z.Apex, MName: z.mname, RName: z.rname, Serial: v.Serial(), Refresh: soaRefresh, Retry: soaRetry, Expire: soaExpire, Minimum: z.TTLSec}
	return wire.AppendSOA(dst, start, &soa, z.TTLSec)
}

// negative appends NODATA or NXDOMAIN, with the zone's SOA where the name is inside (RFC 2308 3).
func negative(dst, msg []byte, qEnd int, edns *wire.EDNS, kind Kind, soa bool, v store.View, e *Env) ([]byte, Result) {
	start := len(dst)
	r := Result{Kind: kind}
	if kind == NXDomain {
		r.Rcode = wire.NXDomain
	}
	dst = wire.AppendReply(dst, msg, qEnd, r.Rcode, true)
	if soa {
		dst = e.Zone.appendSOA(dst, start, v)
		wire.Count(dst, start, wire.Authority, 1)
	}
	return fit(dst, start, qEnd, edns, r, e)
}
