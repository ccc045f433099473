package dataplane

import (
	"bytes"

	"github.com/dnsmesh/dmpd/dataplane/answer"
	"github.com/dnsmesh/dmpd/dataplane/store"
	"github.com/dnsmesh/dmpd/dataplane/update"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/stats"
	"github.com/dnsmesh/dmpd/internal/tsig"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// Bounds on the UPDATEs that wait for their sync: in number a second or so of a slow disk, in bytes of their messages what a flood of
// the largest ones may cost.
const (
	waitingMax      = 1 << 14
	waitingBytesMax = 64 << 20
)

// worker answers the messages of one loop.
type worker struct {
	node   *Node
	shard  stats.Shard
	reader *store.Reader
	view   store.View

	set    *settings // of this batch
	nowMs  int64
	monoNs int64

	q      wire.Query
	m      wire.Message
	rec    tsig.Record
	signer tsig.Signer
	env    answer.Env
	cookie [clientCookieSize + serverCookieSize]byte
}

func (n *Node) newWorker(shard stats.Shard) responder {
	return &worker{node: n, shard: shard, reader: n.store.NewReader(), view: n.store.View()}
}

func (w *worker) enter(nowMs, monoNs int64) {
	w.reader.Enter()
	w.nowMs, w.monoNs = nowMs, monoNs
	w.set = w.node.settings.Load()
	w.env = answer.Env{Zone: w.set.zone, NowMs: nowMs}
}

func (w *worker) leave() { w.reader.Leave() }

// respond is the way of every message: the limit, the fast parser, and for what is not simple the complete one.
func (w *worker) respond(dst, msg []byte, p *peer) ([]byte, verdict) {
	if !w.node.limits.message(p.transport, p.addr, w.monoNs) {
		w.shard.Inc(stats.RateLimited)
		w.shard.Inc(stats.DroppedRate)
		return dst, silent
	}
	w.env.TCP, w.env.Reserve, w.env.Cookie = p.transport == stats.TCP, 0, nil
	switch f := wire.ParseQuery(msg, &w.q); f {
	case wire.OK:
		return w.query(dst, msg, p)
	case wire.Short:
		w.shard.Inc(stats.Malformed)
		w.shard.Inc(stats.DroppedShort)
		return dst, silent
	case wire.Response:
		w.shard.Inc(stats.DroppedResponse)
		return dst, silent
	}
	return w.complete(dst, msg, p)
}

// query answers the common form. No allocation, no lock.
func (w *worker) query(dst, msg []byte, p *peer) ([]byte, verdict) {
	start := len(dst)
	known := w.takeCookie(w.q.EDNS.Cookie, p)
	out, r := answer.Query(dst, msg, &w.q, w.view, &w.env)
	if p.transport == stats.UDP && !known && !w.node.limits.response(p.addr, w.q.Name[:w.q.NameLen], rrlKind(r.Kind), w.monoNs) {
		out = answer.Truncated(out[:start], msg, w.q.QEnd, &w.q.EDNS, &w.env)
		w.shard.Inc(stats.RRLSlipped)
	}
	w.shard.Inc(stats.Opcode(wire.OpQuery))
	w.shard.Inc(stats.Qtype(w.q.Type))
	w.count(&r)
	return out, answered
}

func rrlKind(k answer.Kind) int {
	switch k {
	case answer.Positive:
		return kindAnswer
	case answer.NoData, answer.NXDomain:
		return kindNegative
	}
	return kindError
}

// takeCookie sets the cookie that the answer carries, and says whether the request's is ours for this client.
func (w *worker) takeCookie(option []byte, p *peer) (known bool) {
	if option == nil {
		return false
	}
	nowSec := uint32(w.nowMs / 1000)
	known = w.node.cookies.check(option, p.addr, nowSec)
	switch {
	case known:
		w.shard.Inc(stats.CookieGood)
	case len(option) == clientCookieSize:
		w.shard.Inc(stats.CookieNew)
	default:
		w.shard.Inc(stats.CookieBad)
	}
	w.env.Cookie = w.node.cookies.append(w.cookie[:0], option, p.addr, nowSec)
	return known
}

func (w *worker) count(r *answer.Result) {
	w.shard.Inc(stats.Outcome(r.Rcode))
	if r.Fault != wire.OK {
		w.shard.Inc(stats.Fault(r.Fault))
	}
	if r.Truncated {
		w.shard.Inc(stats.Truncated)
	}
}

// complete answers whatever the fast parser left: other forms of queries, TSIG, UPDATE, and everything malformed.
func (w *worker) complete(dst, msg []byte, p *peer) ([]byte, verdict) {
	start := len(dst)
	f := wire.Parse(msg, &w.m)
	w.shard.Inc(stats.Opcode(w.m.Opcode))
	if len(w.m.QD) == 1 && w.m.Opcode == wire.OpQuery {
		w.shard.Inc(stats.Qtype(w.m.QD[0].Type))
	}
	known := w.takeCookie(w.m.EDNS.Cookie, p)
	var key *tsig.Key
	if f == wire.OK && w.m.TSIG != nil {
		var out []byte
		var v verdict
		if key, out, v = w.verify(dst, p); key == nil {
			return out, v
		}
		w.env.Reserve = tsig.RecordSize(key)
	}
	var out []byte
	var r answer.Result
	switch {
	case w.m.Opcode == wire.OpUpdate && f == wire.OK && w.m.EDNS.Present && w.m.EDNS.Version != 0:
		out, r = answer.Refuse(dst, &w.m, wire.BadVersion, &w.env)
	case w.m.Opcode == wire.OpUpdate && f == wire.OK:
		return w.update(dst, p, key)
	case w.m.Opcode == wire.OpUpdate:
		out, r = answer.Refuse(dst, &w.m, f, &w.env)
	default:
		out, r = answer.Message(dst, &w.m, f, w.view, &w.env)
	}
	w.count(&r)
	if p.transport == stats.UDP && key == nil && !known {
		if r.Rcode == wire.FormErr && !w.node.limits.formErr(p.addr, w.monoNs) {
			w.shard.Inc(stats.DroppedFormErrRate)
			return dst, silent
		}
		var name []byte
		if w.m.Question && len(w.m.QD) > 0 {
			name = w.m.QD[0].Name
		}
		if !w.node.limits.response(p.addr, name, rrlKind(r.Kind), w.monoNs) {
			qEnd := w.m.QEnd
			if !w.m.Question {
				qEnd = wire.HeaderSize
			}
			out = answer.Truncated(out[:start], msg, qEnd, &w.m.EDNS, &w.env)
			w.shard.Inc(stats.RRLSlipped)
		}
	}
	if key != nil {
		out = w.signer.Sign(out, start, key, w.rec.MAC, w.rec.OrigID, w.nowMs/1000, 0, 0)
	}
	return out, answered
}

// verify checks the TSIG record of w.m. It gives the key, or nil with the reply that says why not (dns.md 6.4).
func (w *worker) verify(dst []byte, p *peer) (*tsig.Key, []byte, verdict) {
	start := len(dst)
	var k *tsig.Key
	if w.set.policy.Enabled {
		// All that the control plane has committed is taken before anything is judged by it.
		if !w.node.taker.current() {
			return w.unverified(dst, start, wire.KeysUnknown)
		}
		k = w.node.keys.Load(w.m.TSIG.Name)
	}
	f := w.signer.Verify(&w.m, &w.rec, k, w.nowMs/1000)
	if f == wire.OK {
		return k, nil, answered
	}
	if f == wire.BadTime {
		w.env.Reserve = tsig.RecordSize(k)
		out, r := answer.Status(dst, w.m.Msg, w.questionEnd(), &w.m.EDNS, f.Rcode(), f, &w.env)
		w.countTSIG(&r)
		return nil, w.signer.Sign(out, start, k, w.rec.MAC, w.rec.OrigID, w.nowMs/1000, tsig.ErrBadTime, w.rec.TimeSec), answered
	}
	return w.unverified(dst, start, f)
}

// unverified replies without a signature.
func (w *worker) unverified(dst []byte, start int, f wire.Fault) (*tsig.Key, []byte, verdict) {
	out, r := answer.Status(dst, w.m.Msg, w.questionEnd(), &w.m.EDNS, f.Rcode(), f, &w.env)
	w.countTSIG(&r)
	if code := tsig.ErrorOf(f); code != 0 {
		out = tsig.AppendUnsigned(out, start, w.m.TSIG.Name, &w.rec, w.nowMs/1000, code)
	}
	return nil, out, answered
}

func (w *worker) countTSIG(r *answer.Result) {
	w.shard.Inc(stats.TSIGFailed)
	w.shard.Inc(stats.Fault(r.Fault))
}

func (w *worker) questionEnd() int {
	if w.m.Question {
		return w.m.QEnd
	}
	return wire.HeaderSize
}

// update prepares an UPDATE. What can be answered at once is; the rest goes to the pool and the committer with a copy of all that its
// reply needs.
func (w *worker) update(dst []byte, p *peer, key *tsig.Key) ([]byte, verdict) {
	n := w.node
	prepared, rcode, f := update.Prepare(&w.m, &update.Author{Key: key, Keys: n.keys, Peer: p.addr},
		&update.Env{Policy: &w.set.policy, View: w.view, Limits: n.claims, NowMs: w.nowMs, MonoNs: w.monoNs})
	if f != wire.OK || prepared.Claims() == 0 && prepared.Empty() {
		if key == nil && f != wire.OK {
			w.countClaim(f)
		}
		return w.status(dst, key, rcode, f), answered
	}
	if n.waiting.Load() >= waitingMax || n.waitingBytes.Load() >= waitingBytesMax {
		w.shard.Inc(stats.UpdateShed)
		return w.status(dst, key, wire.ServFail, wire.QueueFull), answered
	}
	l := &later{node: n, size: int64(len(w.m.Msg)), prepared: prepared, key: key, qEnd: w.questionEnd(), edns: w.m.EDNS, origID: w.rec.OrigID, zone: w.set.zone, transport: p.transport, startNs: w.monoNs, ticket: p.ticket()}
	n.waiting.Add(1)
	n.waitingBytes.Add(l.size)
	l.request = bytes.Clone(w.m.Msg[:l.qEnd])
	if w.env.Cookie != nil {
		l.cookie = bytes.Clone(w.env.Cookie)
		l.edns.Cookie = l.cookie
	}
	if key != nil {
		l.mac = bytes.Clone(w.rec.MAC)
	}
	prepared.Batch.Done = l.decided
	if prepared.Claims() > 0 {
		if !n.pool.submit(l) {
			w.shard.Inc(stats.ClaimsShed)
			return w.withdraw(dst, l, wire.ClaimPoolFull)
		}
		return dst, postponed
	}
	if !n.store.Submit(&prepared.Batch) {
		w.shard.Inc(stats.UpdateShed)
		return w.withdraw(dst, l, wire.QueueFull)
	}
	return dst, postponed
}

// withdraw answers at once what could not be handed on.
func (w *worker) withdraw(dst []byte, l *later, f wire.Fault) ([]byte, verdict) {
	l.done()
	if l.ticket.stream != nil {
		l.ticket.stream.waiting.Add(-1)
	}
	return w.status(dst, l.key, f.Rcode(), f), answered
}

// status replies to an UPDATE at once, signed if the request was.
func (w *worker) status(dst []byte, key *tsig.Key, rcode uint16, f wire.Fault) []byte {
	start := len(dst)
	out, r := answer.Status(dst, w.m.Msg, w.questionEnd(), &w.m.EDNS, rcode, f, &w.env)
	w.count(&r)
	if key != nil {
		out = w.signer.Sign(out, start, key, w.rec.MAC, w.rec.OrigID, w.nowMs/1000, 0, 0)
	}
	return out
}

func (w *worker) countClaim(f wire.Fault) {
	switch f {
	case wire.ClaimRate:
		w.shard.Inc(stats.ClaimsLimited)
	case wire.ClaimOff, wire.ClaimOperation, wire.ClaimOwner, wire.ClaimRecipient, wire.ClaimFormat, wire.ClaimSlot, wire.ClaimExpired, wire.ClaimLife, wire.ClaimMany:
		w.shard.Inc(stats.ClaimsRefused)
	}
}

// later is an UPDATE that waits: for its claims' signatures, then for its sync. It owns all that it points to.
type later struct {
	node      *Node
	size      int64 // of the message, as it is counted
	prepared  *update.Prepared
	key       *tsig.Key
	mac       []byte
	origID    uint16
	request   []byte // header and question
	qEnd      int
	edns      wire.EDNS
	cookie    []byte
	zone      *answer.Zone
	transport int
	startNs   int64
	ticket    ticket
}

// check runs on the pool. It says whether the claims are good and the committer has something to do; else the reply is made.
func (l *later) check(w *wakes) bool {
	n := l.node
	shard := n.page.Shard(0)
	if f := l.prepared.CheckClaims(n.claims, clock.Mono()); f != wire.OK {
		if f == wire.ClaimForged {
			shard.Inc(stats.ClaimsForged)
		} else {
			shard.Inc(stats.ClaimsLimited)
		}
		l.reply(w, f.Rcode(), f)
		return false
	}
	if l.prepared.Empty() {
		shard.Inc(stats.ClaimsDuplicate)
		l.reply(w, wire.NoError, wire.OK)
		return false
	}
	return true
}

// submit hands over what the pool has checked.
func submit(good []*later, w *wakes) {
	if len(good) == 0 {
		return
	}
	batches := make([]*store.Batch, len(good))
	for i, l := range good {
		batches[i] = &l.prepared.Batch
	}
	n := good[0].node
	if n.store.Submit(batches...) {
		return
	}
	n.page.Shard(0).Add(stats.UpdateShed, uint64(len(good)))
	for _, l := range good {
		l.reply(w, wire.ServFail, wire.QueueFull)
	}
}

// decided runs on the committer.
func (l *later) decided(r store.Result) {
	shard := l.node.page.Shard(0)
	rcode, f := update.Outcome(r)
	if f == wire.OK && r.Applied > 0 {
		adds := uint64(l.prepared.Adds())
		shard.Add(stats.UpdateAdds, adds)
		shard.Add(stats.UpdateDeletes, uint64(l.prepared.Deletes()))
	}
	if l.key == nil && f == wire.OK {
		shard.Inc(stats.ClaimsAccepted)
	}
	l.reply(&l.node.decided, rcode, f)
}

// reply makes the response and puts it for the loop that the message came on.
func (l *later) reply(w *wakes, rcode uint16, f wire.Fault) {
	n := l.node
	shard := n.page.Shard(0)
	nowMs := clock.NowMs()
	env := answer.Env{Zone: l.zone, NowMs: nowMs, TCP: l.transport == stats.TCP, Cookie: l.cookie}
	out, r := answer.Status(make([]byte, 0, 256), l.request, l.qEnd, &l.edns, rcode, f, &env)
	shard.Inc(stats.Outcome(r.Rcode))
	if f != wire.OK {
		shard.Inc(stats.Fault(f))
	}
	if l.key != nil {
		s := n.signers.Get().(*tsig.Signer)
		out = s.Sign(out, 0, l.key, l.mac, l.origID, nowMs/1000, 0, 0)
		n.signers.Put(s)
	}
	shard.Observe(stats.UpdateLatency, uint64(max(0, clock.Mono()-l.startNs)))
	l.ticket.reply(w, out) // before done: a shutdown waits for what waits, then for what is on its way
	l.done()
}

func (l *later) done() {
	l.node.waiting.Add(-1)
	l.node.waitingBytes.Add(-l.size)
}
