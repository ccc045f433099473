package store

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/dnsmesh/dmpd/internal/record"
)

// The rcodes that a decision can have (RFC 1035 4.1.1, RFC 2136 2.2).
const (
	rcodeNoError  = 0
	rcodeServFail = 2
	rcodeNXDomain = 3
	rcodeRefused  = 5
	rcodeYXDomain = 6
	rcodeYXRRSet  = 7
	rcodeNXRRSet  = 8
	rcodeNotAuth  = 9
)

func rcodeOf(c record.Code) uint8 {
	switch c {
	case record.CodeStored, record.CodeUnchanged, record.CodeAbsent, record.CodeRefreshed:
		return rcodeNoError
	case record.CodeFull, record.CodeQuota, record.CodeTooBig, record.CodeStamp, record.CodeTombstoned:
		return rcodeRefused
	case record.CodeKey:
		return rcodeNotAuth
	}
	return rcodeServFail
}

const (
	// ttlZeroSec is the life of a record that was added with TTL 0 (dns.md 5.4).
	ttlZeroSec = 60

	// answerMax is what the answer RRs of one name may take, so that the whole fits a TCP message of 65,535 bytes: 12
	// bytes of header, 260 of question, and 400 for OPT (cookie, NSID, EDE), TSIG and what may come.
	answerMax = 65535 - 12 - 260 - 400

	// ownersShare is the part of the values at a name that only writers with delete rights there may fill (http.md,
	// table of weaknesses, row 8): strangers cannot shut an owner out of a name.
	ownersShare = 8

	// valueCost and nameCost stand for the block and index bytes of a value and of a name beside their own bytes.
	valueCost = valueLen + rrHeadLen
	nameCost  = headLen + 24
)

// What the group says of an element, for the frame.
type mark uint8

const (
	markNone      mark = iota
	markPut            // with value: the log does not have it
	markRefresh        // without
	markTombstone      // gone
)

// element is one value at a name in the staged view. Its rdata lies in the block or in the batch.
type element struct {
	packed
	del    record.HLC
	id     [32]byte // hash of the value; valid iff hashed
	hashed bool
	known  bool // live in the log before this group: a refresh is enough
	gone   bool // deleted in this group
	mark   mark
}

func (e *element) sum() [32]byte {
	if !e.hashed {
		e.id, e.hashed = record.HashOf(e.rdata), true
	}
	return e.id
}

// live: an element in a set that is not gone and has not expired.
func (e *element) live(nowMs int64) bool { return !e.gone && e.expMs > nowMs }

// set is one name in the staged view.
type set struct {
	name     []byte
	elements []element // in canonical order once the group is closed
	block    int       // class size of its block before the group
}

// touched is what a set was before the current message, to go back to and to count against.
type touched struct {
	set        *set
	elements   []element
	live, size int
	added      bool // the message added a value that caps bind
	stranger   bool // and the writer has no delete rights here
	valuesMax  int
	replace    bool // holds OpReplace operations
}

// stage is the view in which a group of messages is decided: what is stored, with what the messages before changed.
type stage struct {
	s     *Store
	nowMs int64
	lim   Limits

	sets    map[string]*set
	buried  map[tombKey]tomb // deletes of elements that are not stored, heard of from a peer in this group
	hlc     record.HLC
	records int64 // change against the store, the group so far
	bytes   int64

	// of the current message
	touch      []touched
	mergedDead []tombKey
	writer     [16]byte
	added      int // live values that this writer added
}

func (st *stage) reset(nowMs int64, lim Limits) {
	st.nowMs, st.lim = nowMs, lim
	st.hlc = st.s.hlc
	st.records, st.bytes = 0, 0
	clear(st.sets)
	clear(st.buried)
	st.s.quota.drop()
}

func (st *stage) tick() record.HLC {
	st.hlc = st.hlc.Next(st.nowMs)
	return st.hlc
}

func (st *stage) load(name []byte) *set {
	if s := st.sets[string(name)]; s != nil {
		return s
	}
	found := st.s.tree.lookup(name)
	s := &set{name: name, elements: make([]element, 0, found.Count()+1)}
	if found.p != nil {
		s.block = classSize(int(found.class()))
	}
	var values [64]packed
	for _, v := range found.unpack(values[:0]) {
		if v.expMs <= st.s.cutMs && v.add <= st.s.cutHLC {
			continue // the log says that it is gone; its room is not given back yet
		}
		s.elements = append(s.elements, element{packed: v, known: v.expMs > st.nowMs})
	}
	st.sets[string(name)] = s
	return s
}

// change is load for an operation that may change the set: what it was is kept, so that the message can be undone.
func (st *stage) change(name []byte) (*set, *touched) {
	for i := range st.touch {
		if bytes.Equal(st.touch[i].set.name, name) {
			return st.touch[i].set, &st.touch[i]
		}
	}
	s := st.load(name)
	live, size := s.count(st.nowMs)
	st.touch = append(st.touch, touched{set: s, elements: slices.Clone(s.elements), live: live, size: size})
	return s, &st.touch[len(st.touch)-1]
}

// count is the live values and the bytes of their answer.
func (s *set) count(nowMs int64) (live, size int) {
	for i := range s.elements {
		if e := &s.elements[i]; e.live(nowMs) {
			live++
			size += rrHeadLen + len(e.rdata)
		}
	}
	return live, size
}

func (s *set) find(rdata []byte) *element {
	for i := range s.elements {
		if bytes.Equal(s.elements[i].rdata, rdata) {
			return &s.elements[i]
		}
	}
	return nil
}

// decide applies a message to the staged view, whole or not at all. A message's order of operations holds (RFC 2136
// 3.4.2); what it may grow to is judged at its end, so that what it deletes makes room for what it adds.
func (st *stage) decide(b *Batch) Result {
	if b.KeyLive != nil && !b.KeyLive() {
		return Result{Code: record.CodeKey, Rcode: rcodeNotAuth}
	}
	// RFC 2136 3.2
	for i := range b.Prereqs {
		if rcode := st.prerequisite(&b.Prereqs[i]); rcode != rcodeNoError {
			return Result{Code: record.CodePrereq, Rcode: rcode}
		}
	}
	st.touch, st.mergedDead = st.touch[:0], st.mergedDead[:0]
	st.writer, st.added = b.Writer, 0
	hlc, records, size := st.hlc, st.records, st.bytes
	st.s.quota.begin()

	var n int
	code := record.CodeUnchanged
	refused := record.CodeStored // of merges: one of them does not undo the others
	deletes, refreshed := 0, 0
	for i := range b.Ops {
		op := &b.Ops[i]
		c := st.apply(op)
		switch {
		case c == record.CodeStored:
			n++
		case c == record.CodeRefreshed:
			n++
			refreshed++
		case c == record.CodeAbsent:
			deletes++
		case c != record.CodeUnchanged:
			refused = c
		}
	}
	n += st.replaceRest(b)
	if c := st.grown(); c != record.CodeStored {
		for i := range st.touch {
			t := &st.touch[i]
			t.set.elements = t.elements
		}
		for _, k := range st.mergedDead {
			delete(st.buried, k)
		}
		st.hlc, st.records, st.bytes = hlc, records, size
		st.s.quota.undo()
		return Result{Code: c, Rcode: rcodeOf(c)}
	}
	switch {
	case refused != record.CodeStored:
		code = refused
	case n > 0 && n == refreshed:
		code = record.CodeRefreshed
	case n > 0:
		code = record.CodeStored
	case deletes > 0 && deletes == len(b.Ops):
		code = record.CodeAbsent
	}
	return Result{Code: code, Rcode: rcodeOf(code), Applied: n}
}

// prerequisite judges one (RFC 2136 3.2). A name is in use if it has a live value; an empty non-terminal is not.
func (st *stage) prerequisite(p *Prereq) uint8 {
	s := st.load(p.Name)
	live, _ := s.count(st.nowMs)
	switch p.Kind {
	case NameInUse:
		if live == 0 {
			return rcodeNXDomain
		}
	case NameNotInUse:
		if live > 0 {
			return rcodeYXDomain
		}
	case RRsetExists:
		if live == 0 {
			return rcodeNXRRSet
		}
	case RRsetAbsent:
		if live > 0 {
			return rcodeYXRRSet
		}
	case RRsetEqual:
		distinct := 0
		for i, v := range p.Values {
			if e := s.find(v); e == nil || !e.live(st.nowMs) {
				return rcodeNXRRSet
			}
			if !slices.ContainsFunc(p.Values[:i], func(u []byte) bool { return bytes.Equal(u, v) }) {
				distinct++
			}
		}
		if distinct != live {
			return rcodeNXRRSet
		}
	default:
		return rcodeServFail
	}
	return rcodeNoError
}

func (st *stage) apply(op *record.Op) record.Code {
	switch op.Kind {
	case record.OpAdd:
		return st.add(op, op.MayDelete)
	case record.OpReplace:
		_, t := st.change(op.Name)
		t.replace = true
		return st.add(op, true)
	case record.OpDelete:
		s, _ := st.change(op.Name)
		e := s.find(op.RDATA)
		if e == nil || !e.live(st.nowMs) {
			return record.CodeAbsent // RFC 2136 3.4.2.4: silently
		}
		st.bury(e)
		return record.CodeStored
	case record.OpDeleteRRset:
		s, _ := st.change(op.Name)
		code := record.CodeAbsent
		for i := range s.elements {
			if e := &s.elements[i]; e.live(st.nowMs) {
				st.bury(e)
				code = record.CodeStored
			}
		}
		return code
	case record.OpMerge:
		return st.merge(op)
	case record.OpOffer:
		return st.offer(op)
	}
	return record.CodeFailed
}

func (st *stage) bury(e *element) {
	e.del = st.tick()
	e.gone = true
	e.mark = markTombstone
	st.s.quota.credit(st.writer, e.expMs)
}

// add is one rule for every path: without delete rights at the name an add that does not lengthen the life changes
// nothing; otherwise it sets exp and add (design.md, Life on re-add).
func (st *stage) add(op *record.Op, mayDelete bool) record.Code {
	expMs := op.ExpMs
	if expMs == 0 {
		ttl := op.TTLSec
		if ttl == 0 || ttl > 1<<31-1 { // RFC 2181 8: the top bit reads as 0
			ttl = ttlZeroSec
		}
		expMs = st.nowMs + int64(ttl)*1000
	}
	s, t := st.change(op.Name)
	e := s.find(op.RDATA)
	live := e != nil && e.live(st.nowMs)
	if live && !mayDelete && expMs <= e.expMs {
		return record.CodeUnchanged
	}
	if live && expMs == e.expMs && st.s.originNumber == e.origin {
		return record.CodeUnchanged
	}
	if e == nil {
		sum := record.HashOf(op.RDATA)
		if i := slices.IndexFunc(s.elements, func(e element) bool { return e.rdata == nil && e.id == sum }); i >= 0 {
			e = &s.elements[i] // a peer's delete came first in this group
		} else {
			d, _ := st.tomb(s.name, sum)
			s.elements = append(s.elements, element{packed: packed{hash: binary.LittleEndian.Uint32(sum[:])}, id: sum, hashed: true, del: d.del})
			e = &s.elements[len(s.elements)-1]
		}
		e.rdata = op.RDATA
	}
	if !live {
		if !op.CapExempt {
			t.added = true
			t.stranger = t.stranger || !mayDelete
			t.valuesMax = max(t.valuesMax, cmp.Or(op.ValuesMax, st.lim.ValuesMax))
			st.added++
			st.s.quota.take(st.writer, expMs)
		}
	} else {
		st.s.quota.move(st.writer, expMs)
	}
	e.expMs, e.add, e.origin = expMs, st.tick(), st.s.originNumber
	e.flags = 0
	if op.Verified {
		e.flags |= record.FlagVerified
	}
	if op.CapExempt {
		e.flags |= record.FlagCapExempt
	}
	e.gone = false
	e.mark = markPut
	if e.known {
		e.mark = markRefresh
	}
	return record.CodeStored
}

// Rules for what a peer without stamps offers (cluster.md 17.4, 8.5).
const (
	// offerSlopMs: a longer life counts as a refresh only beyond what clocks and round trips make of the same one. And an offer's stamp is
	// by a peer's clock, of which this node knows half a second and half a round trip: it counts for so much less, since a publish that
	// seemed newer than it was would undo a delete behind it wherever it comes to.
	offerSlopMs = 5_000
	// offerOldMs: a life that does not exceed the deleted one's by more is the deleted one's, whatever its stamp says: a relay gives
	// what it copied a new stamp.
	offerOldMs = 10_000
	// offerValuesFactor: a name takes that many times the values from peers that it takes from its writers (cluster.md 15, W11), so that
	// nodes that filled it at the same time agree, and a hostile one ends somewhere.
	offerValuesFactor = 2
)

// offer decides on a value that a peer has, which knows its remaining life and when it took it itself, and nothing of deletes.
func (st *stage) offer(op *record.Op) record.Code {
	r := op.Row
	if r.Add > record.HLCAt(st.nowMs+record.HLCAheadMs)|1<<16-1 {
		return record.CodeStamp
	}
	if r.ExpMs <= st.nowMs {
		return record.CodeUnchanged // it ended on its way
	}
	add := max(record.HLCAt(r.Add.Ms()-offerSlopMs), 1) // 0 would say that it was never published
	s, t := st.change(r.Name)
	e := s.find(r.RDATA)
	if e != nil && e.live(st.nowMs) {
		if r.ExpMs <= e.expMs+offerSlopMs {
			return record.CodeUnchanged
		}
		// The pair (add, exp) must win wherever it comes to; importers of one stamp make one pair.
		e.add, e.expMs = max(e.add, add), r.ExpMs
		e.flags |= offerFlags(op)
		e.mark = markPut
		if e.known {
			e.mark = markRefresh
		}
		st.hlc = max(st.hlc, e.add)
		return record.CodeRefreshed
	}
	hash := record.HashOf(r.RDATA)
	var del record.HLC
	if e == nil {
		if i := slices.IndexFunc(s.elements, func(e element) bool { return e.rdata == nil && e.sum() == hash }); i >= 0 {
			e = &s.elements[i]
		}
	}
	d, buried := st.tomb(s.name, hash)
	if e != nil && e.gone && e.del >= d.del { // deleted in this group
		d, buried = tomb{del: e.del, expMs: e.expMs}, true
	}
	if buried {
		del = d.del
		if !op.CapExempt && (add.Ms() <= del.Ms() || r.ExpMs <= d.expMs+offerOldMs) {
			return record.CodeTombstoned
		}
	}
	if e == nil {
		rdataBytes := len(r.RDATA)
		for i := range s.elements {
			rdataBytes += len(s.elements[i].rdata)
		}
		if len(s.elements) == 1<<16-1 || blockLen(len(s.name), len(s.elements)+1, rdataBytes) > blockMax {
			return record.CodeTooBig
		}
		s.elements = append(s.elements, element{packed: packed{hash: binary.LittleEndian.Uint32(hash[:])}, id: hash, hashed: true})
		e = &s.elements[len(s.elements)-1]
	}
	e.rdata = r.RDATA
	e.add, e.expMs, e.del = max(add, del+1), r.ExpMs, del
	e.origin, e.flags, e.gone = st.s.originNumber, offerFlags(op), false
	e.mark = markPut
	if e.known {
		e.mark = markRefresh
	}
	st.hlc = max(st.hlc, e.add)
	if !op.CapExempt {
		t.added = true
		if st.lim.ValuesMax > 0 {
			t.valuesMax = max(t.valuesMax, offerValuesFactor*st.lim.ValuesMax)
		}
	}
	return record.CodeStored
}

func offerFlags(op *record.Op) (flags uint8) {
	if op.Verified {
		flags |= record.FlagVerified
	}
	if op.CapExempt {
		flags |= record.FlagCapExempt
	}
	return flags
}

// replaceRest deletes what the OpReplace operations of the message did not name.
func (st *stage) replaceRest(b *Batch) (n int) {
	for i := range st.touch {
		t := &st.touch[i]
		if !t.replace {
			continue
		}
		for j := range t.set.elements {
			e := &t.set.elements[j]
			if !e.live(st.nowMs) {
				continue
			}
			named := slices.ContainsFunc(b.Ops, func(op record.Op) bool {
				return op.Kind == record.OpReplace && bytes.Equal(op.Name, t.set.name) && bytes.Equal(op.RDATA, e.rdata)
			})
			if !named {
				st.bury(e)
				n++
			}
		}
	}
	return n
}

// merge joins in the state of an element as another node has it (cluster.md 17.4). It never evicts, and the caps of names
// and writers do not bind it: they bound where the record was accepted.
func (st *stage) merge(op *record.Op) record.Code {
	r := op.Row
	if ahead := record.HLCAt(st.nowMs+record.HLCAheadMs) | 1<<16 - 1; r.Add > ahead || r.Del > ahead {
		return record.CodeStamp
	}
	hash := r.Hash
	if r.RDATA != nil {
		hash = record.HashOf(r.RDATA) // the value decides, not what was said of it
	}
	s, _ := st.change(r.Name)
	var e *element
	for i := range s.elements {
		if s.elements[i].hash == binary.LittleEndian.Uint32(hash[:]) && s.elements[i].sum() == hash {
			e = &s.elements[i]
			break
		}
	}
	cur := record.Row{Name: s.name, Hash: hash}
	if e != nil {
		cur.Add, cur.ExpMs, cur.Origin, cur.Flags = e.add, e.expMs, st.s.tree.origins.id(e.origin), e.flags
		cur.RDATA = e.rdata
	}
	if d, ok := st.tomb(s.name, hash); ok {
		cur.Del = d.del
		if e == nil {
			cur.Add, cur.ExpMs, cur.Origin = d.add, d.expMs, st.s.tree.origins.id(d.origin)
		}
	}
	if e != nil {
		cur.Del = max(cur.Del, e.del)
	}
	in := *r
	in.Hash, in.Name = hash, s.name
	won := record.Merge(cur, in)
	if won.Add == cur.Add && won.Del == cur.Del && won.ExpMs == cur.ExpMs && won.Origin == cur.Origin {
		return record.CodeUnchanged
	}
	st.hlc = max(st.hlc, r.Add, r.Del)
	if won.Add > won.Del {
		if e == nil && won.ExpMs <= st.nowMs || won.RDATA == nil {
			return record.CodeUnchanged // it expired on its way, or nobody has the value
		}
		if e == nil || e.rdata == nil {
			rdataBytes := len(won.RDATA)
			for i := range s.elements {
				rdataBytes += len(s.elements[i].rdata)
			}
			if len(s.elements) == 1<<16-1 || blockLen(len(s.name), len(s.elements)+1, rdataBytes) > blockMax {
				return record.CodeTooBig
			}
		}
		if e == nil {
			s.elements = append(s.elements, element{packed: packed{hash: binary.LittleEndian.Uint32(hash[:])}, id: hash, hashed: true})
			e = &s.elements[len(s.elements)-1]
		}
		e.rdata = won.RDATA
		e.gone = false
		e.mark = markPut
		if e.known {
			e.mark = markRefresh
		}
	} else {
		if e == nil {
			// a delete of something that is not here: remembered, so that a late copy stays away
			k := st.s.tombs.key(s.name, hash)
			d := tomb{won.Del, won.Add, won.ExpMs, st.s.tree.origins.number(won.Origin)}
			if st.s.tombs.until(d) <= st.nowMs {
				return record.CodeUnchanged
			}
			s.elements = append(s.elements, element{packed: packed{hash: binary.LittleEndian.Uint32(hash[:])}, id: hash, hashed: true})
			e = &s.elements[len(s.elements)-1]
			st.buried[k] = d
			st.mergedDead = append(st.mergedDead, k)
		}
		e.gone = true
		e.mark = markTombstone
	}
	e.add, e.del, e.expMs, e.flags = won.Add, won.Del, won.ExpMs, won.Flags
	e.origin = st.s.tree.origins.number(won.Origin)
	return record.CodeStored
}

// tomb is the delete that is remembered for an element.
func (st *stage) tomb(name []byte, hash [32]byte) (tomb, bool) {
	k := st.s.tombs.key(name, hash)
	if d, ok := st.buried[k]; ok {
		return d, true
	}
	return st.s.tombs.get(k)
}

// grown judges what the message made of the sets that it touched, and adds it to the sums of the group.
func (st *stage) grown() record.Code {
	var records, size int64
	for i := range st.touch {
		t := &st.touch[i]
		live, bytes := t.set.count(st.nowMs)
		if t.added && live > t.live {
			limit := t.valuesMax
			if t.stranger && limit > 0 {
				limit -= limit / ownersShare
			}
			if limit > 0 && live > limit {
				return record.CodeFull
			}
			if bytes > answerMax {
				return record.CodeTooBig
			}
		}
		records += int64(live - t.live)
		size += int64(bytes-t.size) + int64(live-t.live)*valueLen
		if live > 0 && t.live == 0 {
			for name := t.set.name; name != nil && st.s.tree.lookup(name).p == nil; name = parent(name) {
				size += nameCost + int64(len(name))
			}
		}
	}
	if st.added > 0 && st.lim.WriterRecordsMax > 0 && st.writer != [16]byte{} && st.s.quota.used(st.writer) > st.lim.WriterRecordsMax {
		return record.CodeQuota
	}
	tombs := int64(len(st.s.tombs.m) + len(st.buried))
	if records > 0 && st.lim.RecordsMax > 0 && st.s.tree.values.Load()+tombs+st.records+records > st.lim.RecordsMax {
		return record.CodeStoreFull
	}
	if size > 0 && st.lim.BytesMax > 0 && st.s.tree.arena.live.Load()+st.bytes+size > st.lim.BytesMax {
		return record.CodeStoreFull
	}
	st.records += records
	st.bytes += size
	return record.CodeStored
}

// rows gives what the group changed, sorted by name and hash (cluster.md 17.3), and the names whose RRset differs.
func (st *stage) rows(dst []record.Entry) ([]record.Entry, []*set) {
	var changed []*set
	for _, s := range st.sets {
		if slices.ContainsFunc(s.elements, func(e element) bool { return e.mark != markNone }) {
			changed = append(changed, s)
		}
	}
	slices.SortFunc(changed, func(a, b *set) int { return bytes.Compare(a.name, b.name) })
	for _, s := range changed {
		from := len(dst)
		for i := range s.elements {
			e := &s.elements[i]
			if e.mark == markNone {
				continue
			}
			// A delete before this publish is remembered beside the block. It stays part of the state, as it is elsewhere.
			buried, _ := st.tomb(s.name, e.sum())
			row := record.Row{Name: s.name, Hash: e.sum(), Add: e.add, Del: max(e.del, buried.del), ExpMs: e.expMs, Origin: st.s.tree.origins.id(e.origin), Flags: e.flags}
			switch e.mark {
			case markPut:
				row.RDATA = e.rdata
				dst = append(dst, record.Entry{Kind: record.KindPut, Row: row})
			case markRefresh:
				dst = append(dst, record.Entry{Kind: record.KindRefresh, Row: row})
			case markTombstone:
				dst = append(dst, record.Entry{Kind: record.KindTombstone, Row: row})
			}
		}
		slices.SortFunc(dst[from:], func(a, b record.Entry) int { return bytes.Compare(a.Row.Hash[:], b.Row.Hash[:]) })
	}
	return dst, changed
}

// packed gives the values of a set for its block, in canonical order.
func (s *set) packed(dst []packed) []packed {
	for i := range s.elements {
		if !s.elements[i].gone {
			dst = append(dst, s.elements[i].packed)
		}
	}
	slices.SortFunc(dst, func(a, b packed) int { return bytes.Compare(a.rdata, b.rdata) })
	return dst
}
