package antientropy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dnsmesh/dmpd/internal/record"
)

// nativePeer is one peer's loop: hello, then its feed, with comparisons beside it.
type nativePeer struct {
	n         *Native
	peer      Peer
	transport http.RoundTripper
	cancel    context.CancelFunc
	native    atomic.Bool
	known     atomic.Bool   // it has said whether it is native
	kick      chan struct{} // a comparison is wanted
	poked     chan struct{} // it is worth trying now
	node      string        // as it said last; n.mu
	// whole: all up to where the feed began is here, so that a cursor may say so (cluster.md 17.6). A feed that begins at the log's end is not
	// whole until a comparison finds nothing.
	whole atomic.Bool

	mu        sync.Mutex
	doubts    int // how often something of the feed had to be left to a comparison
	st        NativePeerStatus
	connected bool // its feed was open once
	refused   map[record.ID]pass
}

// pass is an element that is not asked for again for a while.
type pass struct {
	untilMs int64
	absent  bool // the peer lists it and did not send it, most likely since its index is some ms behind
}

// Errors of a peer.
var (
	errNotNative = errors.New("the peer does not speak native replication")
	errResync    = errors.New("the peer's log does not reach back to where we were")
	errPeer      = errors.New("the peer breaks the protocol")
	errNotReady  = errors.New("our records are still being read")
)

func (p *nativePeer) status() NativePeerStatus {
	served := p.served() // n.mu comes before p.mu
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.st
	s.ID, s.URL, s.Native, s.Refused = p.peer.ID, p.peer.URL, p.native.Load(), int64(len(p.refused))
	s.BytesOut += served
	return s
}

// served is what this node answered to the peer's requests, in bytes.
func (p *nativePeer) served() int64 {
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	if c := p.n.callers[p.node]; c != nil {
		return c.sent.Load()
	}
	return 0
}

func (p *nativePeer) set(f func(*NativePeerStatus)) {
	p.mu.Lock()
	f(&p.st)
	p.mu.Unlock()
}

func (p *nativePeer) run(ctx context.Context) {
	if c, ok := p.transport.(interface{ CloseIdleConnections() }); ok {
		defer c.CloseIdleConnections()
	}
	backoff := backoffMin
	failures, warned, strange := 0, false, false // strange: warned of the key
	for ctx.Err() == nil {
		select {
		case <-p.poked:
		default:
		}
		began := time.Now()
		err := p.once(ctx, func() {
			if failures = 0; warned {
				p.n.o.Log.Info("native replication with a peer works again", "peer", p.peer.ID)
				warned, strange = false, false
			}
		})
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errNotNative) || errors.Is(err, errPeer) {
			p.known.Store(true)
		}
		p.set(func(s *NativePeerStatus) {
			s.Connected, s.Converged = false, false
			s.LastError = fmt.Sprint(err)
			if !errors.Is(err, errNotNative) {
				s.Errors++
			}
			if errors.Is(err, errPin) {
				s.PinFailures++
			}
		})
		switch {
		case errors.Is(err, errNotNative):
			if p.native.Swap(false) {
				p.n.o.Log.Warn("a peer speaks v1 from now on", "peer", p.peer.ID, "err", err)
			}
			p.wait(ctx, jitter(reprobe))
			backoff = backoffMin
			continue
		case errors.Is(err, errResync), time.Since(began) > backoffMax:
			backoff = backoffMin
		}
		// A peer that starts anew ends a session, and is back a moment later: that is no news. One whose key is another one is.
		key := errors.Is(err, errPin)
		if failures++; p.native.Load() && (key && !strange || !warned && failures > 1) {
			warned, strange = true, strange || key
			p.n.o.Log.Warn("native replication with a peer fails", "peer", p.peer.ID, "url", p.peer.URL, "err", err)
		} else {
			p.n.o.Log.Debug("native replication is interrupted", "peer", p.peer.ID, "err", err)
		}
		// Full jitter: nodes that lost one another together do not come back together.
		if p.wait(ctx, time.Duration(rand.Int64N(int64(backoff)))) {
			backoff = backoffMin
		} else {
			backoff = min(2*backoff, backoffMax)
		}
	}
}

// wait waits, or less if the peer speaks to us meanwhile: then poked.
func (p *nativePeer) wait(ctx context.Context, d time.Duration) (poked bool) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-p.poked:
		return true
	case <-t.C:
	}
	return false
}

// jitter is a time that differs by at most a fifth.
func jitter(d time.Duration) time.Duration {
	return d*4/5 + time.Duration(rand.Int64N(int64(d)*2/5))
}

// once is a session: from hello until something breaks. It calls opened when the feed is.
func (p *nativePeer) once(ctx context.Context, opened func()) error {
	n := p.n
	h, err := p.hello(ctx)
	if err != nil {
		return err
	}
	epoch, ok := h.epoch()
	switch {
	case !ok || h.CutMs < 0 || h.ClockMs < 0:
		return fmt.Errorf("%w: its hello makes no sense", errPeer)
	case h.Protocol != protocol:
		return fmt.Errorf("%w of version %d, it has %d", errNotNative, protocol, h.Protocol)
	case h.Key != n.keyCheck:
		return fmt.Errorf("%w with our DMP_SYNC_PEER_TOKEN", errNotNative)
	case h.MaxTTLSec != n.o.MaxTTLSec:
		return fmt.Errorf("%w with our DMP_MAX_TTL: it has %d, we have %d; deletes must be remembered equally long", errNotNative, h.MaxTTLSec, n.o.MaxTTLSec)
	case !n.hear(h.ClockMs):
		return fmt.Errorf("%w: its clock is %d ms ahead of ours", errPeer, h.ClockMs-n.o.NowMs())
	}
	n.mu.Lock()
	p.node = h.Node
	ready, own, count := n.tree != nil, hex.EncodeToString(n.epoch[:]), uint64(0)
	if ready {
		count = n.tree.root().n
	}
	cursor := n.cursors[p.peer.ID]
	n.mu.Unlock()
	if !ready {
		return errNotReady
	}
	p.known.Store(true)
	if !p.native.Swap(true) {
		n.o.Log.Info("a peer speaks native replication", "peer", p.peer.ID, "url", p.peer.URL)
	}
	from := h.LSN
	p.whole.Store(false)
	if cursor.URL == p.peer.URL && cursor.Epoch == h.Epoch && cursor.Own == own && cursor.LSN <= h.LSN {
		from = cursor.LSN
		p.whole.Store(true)
	} else if count < h.Count/4 && h.Count >= snapshotMin {
		place, lsn, err := p.snapshot(ctx, h.Count)
		switch {
		case err != nil:
			n.o.Log.Info("no snapshot was taken from a peer; what is missing is fetched", "peer", p.peer.ID, "err", err)
		case place == epoch:
			from = lsn
			p.whole.Store(true)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- p.feed(ctx, epoch, own, from, opened) }()
	err = p.compareLoop(ctx, ended)
	cancel()
	if err != nil {
		<-ended
		return err
	}
	return errors.New("the feed ended")
}

// compareLoop compares when the marks say that there is a difference, until the feed or a comparison fails.
func (p *nativePeer) compareLoop(ctx context.Context, ended chan error) error {
	pause := markEvery
	for {
		select {
		case err := <-ended:
			ended <- err
			return err
		case <-p.kick:
		}
		progress, err := p.compare(ctx)
		if err != nil {
			return err
		}
		if pause = min(2*pause, backoffMax); progress {
			pause = markEvery
		}
		select {
		case err := <-ended:
			ended <- err
			return err
		case <-time.After(pause):
		}
	}
}

// request sends one with this node's token.
func (p *nativePeer) request(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, p.peer.URL+path, body)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+nodeToken(p.n.o.Token, p.n.o.NodeID))
	r.Header.Set(nodeHeader, p.n.o.NodeID)
	p.set(func(s *NativePeerStatus) { s.Requests++ })
	return p.transport.RoundTrip(r)
}

func statusError(r *http.Response) error {
	if r.StatusCode == http.StatusNotFound {
		return errNotNative
	}
	return fmt.Errorf("the peer answers %d", r.StatusCode)
}

func (p *nativePeer) hello(ctx context.Context) (h helloAnswer, err error) {
	if !p.n.o.Clear && len(p.peer.URL) >= 7 && p.peer.URL[:7] == "http://" {
		return h, fmt.Errorf("%w: its URL is http, and v2 in clear is not allowed", errNotNative)
	}
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	r, err := p.request(ctx, http.MethodGet, "/v2/sync/hello", nil)
	if err != nil {
		// What there is, but speaks no HTTP/2, is no node of ours.
		if op := (*net.OpError)(nil); !errors.As(err, &op) || op.Op != "dial" {
			p.known.Store(true)
		}
		return h, err
	}
	defer r.Body.Close()
	switch r.StatusCode {
	case http.StatusOK:
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		return h, statusError(r) // it will say later
	default:
		p.known.Store(true)
		return h, statusError(r)
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, helloMax))
	if err != nil {
		return h, err
	}
	if err := json.Unmarshal(b, &h); err != nil {
		return h, fmt.Errorf("%w: its hello is not read: %w", errPeer, err)
	}
	return h, nil
}

// watch ends the context when nothing comes in for too long. Stop it while what came is worked on, and reset it then.
func watch(cancel context.CancelFunc) *time.Timer { return time.AfterFunc(silence, cancel) }

// feed takes what the peer pushes.
func (p *nativePeer) feed(ctx context.Context, epoch [16]byte, own string, from uint64, connected func()) error {
	n := p.n
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch := watch(cancel)
	defer watch.Stop()
	body, send := io.Pipe()
	defer body.Close()
	defer context.AfterFunc(ctx, func() { send.CloseWithError(context.Canceled); body.CloseWithError(context.Canceled) })()
	opened := make(chan struct{})
	defer func() { <-opened }()
	defer cancel()
	go func() {
		_, _ = send.Write(appendFrame(nil, nil, frameOpen, placeBody(epoch, from), n.o.Padding))
		close(opened)
	}()
	r, err := p.request(ctx, http.MethodPost, "/v2/sync/feed", body)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	defer cancel()
	switch {
	case r.StatusCode == http.StatusConflict:
		n.setCursor(p.peer.ID, NativeCursor{}) // hello says where it is; the sets are compared
		return errResync
	case r.StatusCode != http.StatusOK:
		return statusError(r)
	}
	p.set(func(s *NativePeerStatus) {
		if s.Connected, s.LastError = true, ""; p.connected {
			s.Reconnects++
		}
		p.connected = true
	})
	connected()
	in := &frameReader{r: bufio.NewReaderSize(r.Body, feedBuffer), dec: n.dec}
	cursor := NativeCursor{URL: p.peer.URL, Epoch: hex.EncodeToString(epoch[:]), Own: own}
	differs, first := 0, true // the first mark says what happened while we were away
	for was := int64(0); ; was = in.n {
		kind, body, err := in.next()
		if err != nil {
			return err
		}
		watch.Stop()
		p.received(in.n - was)
		switch kind {
		case frameRows:
			lsn, rows, err := p.arrived(in, body)
			if err != nil {
				return err
			}
			nacks, err := p.take(ctx, rows, true)
			if err != nil {
				return err
			}
			var answer []byte
			for _, id := range nacks {
				answer = appendFrame(answer, nil, frameNack, id[:], n.o.Padding)
			}
			answer = appendFrame(answer, nil, frameAck, binary.BigEndian.AppendUint64(nil, lsn), n.o.Padding)
			watch.Reset(silence) // a peer that does not read is as good as silent
			<-opened
			if _, err := send.Write(answer); err != nil {
				return err
			}
			p.sent(len(answer), len(nacks)+1)
			cursor.LSN = max(cursor.LSN, lsn)
		case frameMark:
			m, ok := readMark(body)
			if !ok || !n.hear(m.clockMs) || m.cutMs > m.clockMs {
				return fmt.Errorf("%w: a mark that makes no sense, or a clock far ahead", errPeer)
			}
			cursor.LSN = max(cursor.LSN, m.lsn)
			root, same := n.rootAt(m.cutMs)
			if same && root == m.root {
				differs = 0
				if m.lsn >= cursor.LSN { // the peer's sums are of all that its feed has sent
					p.whole.Store(true)
				}
			} else if same {
				differs++
			}
			p.set(func(s *NativePeerStatus) {
				s.LastMarkMs, s.LSN = n.o.NowMs(), cursor.LSN
				if same {
					s.Converged = differs == 0
				}
				if s.Converged {
					s.LagRows = 0
				}
			})
			if differs > 1 || first && differs > 0 {
				first = false
				select {
				case p.kick <- struct{}{}:
				default:
				}
			}
		default:
			return fmt.Errorf("%w: a frame of type %d in a feed", errPeer, kind)
		}
		if p.whole.Load() {
			n.setCursor(p.peer.ID, cursor)
		}
		watch.Reset(silence)
	}
}

// feedBuffer holds what came of a feed and is not worked on yet: some hundred frames of one record.
const feedBuffer = 64 << 10

// arrived reads the rows of a frame, and of all others that are here. One commit for each would leave a node behind whose disk is slower than
// its peer's; so what came during a commit goes into the next one together.
func (p *nativePeer) arrived(in *frameReader, body []byte) (lsn uint64, rows []record.Row, err error) {
	for size := 0; ; {
		size += len(body)
		another := size < bodyMax && in.ready() == frameRows
		if another {
			body = bytes.Clone(body) // the rows lie in it
		}
		var more []record.Row
		if lsn, more, err = readRows(body); err != nil {
			return 0, nil, err
		}
		if rows = append(rows, more...); !another {
			return lsn, rows, nil
		}
		was := in.n
		if _, body, err = in.next(); err != nil {
			return 0, nil, err
		}
		p.received(in.n - was)
	}
}

func (n *Native) setCursor(id string, c NativeCursor) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cursors[id] != c && n.peers[id] != nil {
		n.cursors[id] = c
		n.dirty = true
	}
}

// take verifies rows and has them joined in. What is refused is remembered, counted and given back. Rows of a feed that lack a value which
// is not here are fetched.
func (p *nativePeer) take(ctx context.Context, rows []record.Row, feed bool) (refused []record.ID, err error) {
	n := p.n
	nowMs := n.o.NowMs()
	var good []record.Row
	told := map[record.ID]record.HLC{}
	came := map[record.ID]bool{} // with their values
	for i := range rows {
		r := rows[i]
		id := r.ID()
		if reason, why := n.check(&r, nowMs); why != "" {
			p.refuse(id, nowMs, reason, why)
			refused = append(refused, id)
			continue
		}
		s := stateOf(&r).at(nowMs, n.lifeMs)
		switch {
		case s == state{}:
			continue // it ended on its way
		case s.add == 0: // the delete is all that counts
			r.RDATA = nil
			if r.Add > r.Del {
				r.Add = 0
			}
		case r.RDATA != nil:
			came[id] = true
		case !came[id] && !n.has(id):
			told[id] = r.Add
			continue
		}
		r.Origin = rows[i].Origin
		good = append(good, r)
	}
	bad, err := p.merge(ctx, good, nowMs)
	refused = append(refused, bad...)
	for try := 0; err == nil && feed && len(told) > 0; try++ {
		if try == behindTries {
			p.doubt() // a comparison brings them, or finds that they ended there
			break
		}
		if try > 0 {
			sleep(ctx, behindPause)
		}
		_, err = p.fetch(ctx, slices.Collect(maps.Keys(told)), told)
	}
	return refused, err
}

// doubt says that something up to where the feed is may be missing.
func (p *nativePeer) doubt() {
	p.mu.Lock()
	p.doubts++
	p.whole.Store(false)
	p.mu.Unlock()
}

// How often, and after what pause, a peer is asked for a value whose refresh its feed has sent: its index is some ms behind.
const (
	behindTries = 5
	behindPause = 100 * time.Millisecond
)

// has says whether the value of an element is here.
func (n *Native) has(id record.ID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.tree == nil {
		return false
	}
	s, ok := n.tree.get(&id)
	return ok && s.add != 0
}

// lifeSlackMs is how much longer than the longest life a record may live by its stamps: clocks differ.
const lifeSlackMs = record.HLCAheadMs

// check judges a row; no text takes it. It sets the row's flags to what was checked here.
func (n *Native) check(r *record.Row, nowMs int64) (Reason, string) {
	flags := r.Flags & record.FlagCapExempt
	r.Flags = 0
	switch {
	case r.Add > record.HLCAt(nowMs+record.HLCAheadMs) || r.Del > record.HLCAt(nowMs+record.HLCAheadMs):
		return ReasonTime, "a stamp far ahead of our clock"
	case r.RDATA == nil:
		if r.Add > r.Del && r.ExpMs > r.Add.Ms()+n.o.MaxTTLSec*1000+lifeSlackMs && !n.manifest(r.ID()) {
			return ReasonTime, "a life that is too long"
		}
		r.Flags = flags
		return 0, ""
	}
	value := record.AppendValue(make([]byte, 0, len(r.RDATA)), r.RDATA)
	class := record.ClassOf(value)
	if r.ExpMs > r.Add.Ms()+n.o.MaxTTLSec*1000+lifeSlackMs && (class != record.ClassCluster || n.o.Operator == nil) {
		return ReasonTime, "a life that is too long"
	}
	if n.o.ValueMax > 0 && len(value) > n.o.ValueMax {
		return ReasonSize, "a value that is too long"
	}
	if record.HashOf(r.RDATA) != r.Hash {
		return ReasonHash, "a hash that is not the value's"
	}
	if !record.OwnerFits(r.Name, class) {
		return ReasonOwner, record.BadOwner.Error()
	}
	if n.has(r.ID()) {
		if r.Flags = flags; class != record.ClassForeign { // this very value was checked when it came
			r.Flags |= record.FlagVerified
		}
		return 0, ""
	}
	if r.ExpMs <= nowMs {
		return 0, ""
	}
	if _, refusal := n.verifier.Verify(r.Name, value, nowMs/1000); refusal != record.Accepted {
		return reasonOf(refusal), refusal.Error()
	}
	if class != record.ClassForeign {
		flags |= record.FlagVerified
	}
	r.Flags = flags
	return 0, ""
}

// manifest says whether an element is a cluster manifest that is here: those alone live as long as they say (cluster.md 15, W11).
func (n *Native) manifest(id record.ID) bool {
	r, ok, err := n.o.Records.Row(id)
	return err == nil && ok && n.o.Operator != nil && record.ClassOf(record.AppendValue(nil, r.RDATA)) == record.ClassCluster
}

func (p *nativePeer) refuse(id record.ID, nowMs int64, reason Reason, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.st.Rejected[reason]++
	if _, ok := p.refused[id]; !ok {
		p.n.o.Log.Debug("a row of a peer is refused", "peer", p.peer.ID, "id", hex.EncodeToString(id[:]), "why", why)
	}
	if len(p.refused) >= refusedMax {
		for id, r := range p.refused { // what is over; and one more in any case
			if delete(p.refused, id); r.untilMs > nowMs {
				break
			}
		}
	}
	r := pass{nowMs + refusedForMs, reason == ReasonAbsent}
	if r.absent {
		r.untilMs = nowMs + absentForMs
	}
	p.refused[id] = r
}

// merge has rows joined in, some hundred KiB at a time.
func (p *nativePeer) merge(ctx context.Context, rows []record.Row, nowMs int64) (refused []record.ID, err error) {
	n := p.n
	for len(rows) > 0 {
		k, size := 0, 0
		for k < len(rows) && k < record.OpsMax && size < bodyMax {
			size += len(rows[k].RDATA) + 512
			k++
		}
		code, err := n.o.Merger.Merge(ctx, rows[:k])
		if err != nil {
			return refused, err
		}
		if !code.OK() {
			// One of them at least; the others are in.
			if code == record.CodeFailed || code == record.CodeVoid {
				return refused, fmt.Errorf("rows were not stored: %v", code)
			}
			if k > 1 {
				for half := range 2 {
					from, to := half*(k/2), k/2+half*(k-k/2)
					bad, err := p.merge(ctx, rows[from:to], nowMs)
					if refused = append(refused, bad...); err != nil {
						return refused, err
					}
				}
			} else {
				id := rows[0].ID()
				p.refuse(id, nowMs, ReasonStore, code.String())
				refused = append(refused, id)
			}
		}
		n.counts.rowsIn.Add(int64(k))
		p.set(func(s *NativePeerStatus) { s.RowsIn += int64(k) })
		rows = rows[k:]
	}
	return refused, nil
}

// compare finds what the peer has and we have not, and fetches it. progress: there was something, or it is too young to be sure.
func (p *nativePeer) compare(ctx context.Context) (progress bool, err error) {
	n := p.n
	n.counts.comparisons.Add(1)
	for range 4 { // a moment may pass while we compare; then at the later one
		var again bool
		if progress, again, err = p.compareOnce(ctx); err != nil || !again {
			return progress, err
		}
	}
	return true, nil
}

func (p *nativePeer) compareOnce(ctx context.Context) (progress, again bool, err error) {
	n := p.n
	var cut int64
	var root sum
	n.mu.Lock()
	n.tree.advance(n.clockMs())
	cut, root = n.tree.ms, n.tree.root()
	n.mu.Unlock()
	p.mu.Lock()
	doubts := p.doubts
	p.mu.Unlock()
	var want []record.ID
	flush := func(all bool) error {
		for len(want) >= idsMax || all && len(want) > 0 {
			k := min(len(want), idsMax)
			got, err := p.fetch(ctx, want[:k], nil)
			if err != nil {
				return err
			}
			progress = progress || got > 0
			want = want[k:]
		}
		return nil
	}
	asked, listed, different, absent := 0, 0, 0, false
	for asks := []ask{{0, 0, root}}; len(asks) > 0; {
		k := min(len(asks), asksMax)
		if asked += k; asked > requestsRound {
			return progress, false, fmt.Errorf("%w: it finds no end in comparing", errPeer)
		}
		answer, err := p.ask(ctx, appendAsks(nil, cut, asks[:k]))
		if err != nil {
			return progress, false, err
		}
		if len(answer) < 8 {
			return progress, false, fmt.Errorf("%w: a short answer", errPeer)
		}
		at := int64(binary.BigEndian.Uint64(answer))
		if at != cut {
			if at < cut || at%cutMs != 0 || !n.hear(at) { // it goes along with us, or is further
				return progress, false, fmt.Errorf("%w: it compares at %d, we at %d", errPeer, at, cut)
			}
			return true, true, flush(true)
		}
		next := asks[k:]
		answer = answer[8:]
		for i, a := range asks[:k] {
			if len(answer) == 0 {
				return progress, false, fmt.Errorf("%w: an answer that is cut short", errPeer)
			}
			kind := answer[0]
			answer = answer[1:]
			switch {
			case kind == answerEqual:
			case kind == answerLater && i > 0: // the first one always has room
				next = append(next, a)
			case kind == answerChildren && a.level < leafLevel && len(answer) >= 16*sumLen:
				n.mu.Lock()
				later := n.tree.ms != cut
				for i := range 16 {
					c := ask{a.level + 1, a.prefix<<4 | i, *n.tree.node(a.level+1, a.prefix<<4|i)}
					if readSum(answer[i*sumLen:]) != c.s {
						next = append(next, c)
					}
				}
				n.mu.Unlock()
				if later {
					return true, true, flush(true)
				}
				answer = answer[16*sumLen:]
			case kind == answerList && len(answer) >= 4:
				count := int(binary.BigEndian.Uint32(answer))
				if answer = answer[4:]; count < 0 || count > len(answer)/stateLen {
					return progress, false, fmt.Errorf("%w: a list that is cut short", errPeer)
				}
				if listed += count; listed > listsRound {
					return progress, false, fmt.Errorf("%w: it lists no end of elements", errPeer)
				}
				ids, fresh, away := p.missing(answer[:count*stateLen], cut)
				progress, absent = progress || fresh, absent || away
				different += len(ids)
				want = append(want, ids...)
				answer = answer[count*stateLen:]
			default:
				return progress, false, fmt.Errorf("%w: an answer of kind %d", errPeer, kind)
			}
		}
		if len(answer) > 0 {
			return progress, false, fmt.Errorf("%w: an answer to what was not asked", errPeer)
		}
		if err := flush(false); err != nil {
			return progress, false, err
		}
		asks = next
	}
	p.set(func(s *NativePeerStatus) {
		s.LagRows = int64(different)
		if different > 0 {
			s.Differences++
		}
	})
	if different == 0 && !progress && !absent {
		p.mu.Lock()
		if doubts == p.doubts { // what came into doubt meanwhile was perhaps not compared
			p.whole.Store(true)
		}
		p.mu.Unlock()
	}
	return progress, false, flush(true)
}

// missing gives the elements of a list that would change something here. fresh: some are so young that the feed most likely has them on
// its way. absent: some are not asked for now, although they will be.
func (p *nativePeer) missing(list []byte, cut int64) (ids []record.ID, fresh, absent bool) {
	n := p.n
	nowMs := n.o.NowMs()
	n.mu.Lock()
	defer n.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	for ; len(list) > 0; list = list[stateLen:] {
		id, s := readState(list)
		if s = s.at(cut, n.lifeMs); s == (state{}) {
			continue
		}
		have, _ := n.tree.get(&id)
		if have.join(s).at(cut, n.lifeMs) == have {
			continue
		}
		if r, ok := p.refused[id]; ok {
			if r.untilMs > nowMs {
				absent = absent || r.absent
				continue
			}
			delete(p.refused, id)
		}
		if p.st.Connected && max(s.add, s.del).Ms() > nowMs-freshMs {
			fresh = true
			continue
		}
		ids = append(ids, id)
	}
	return ids, fresh, absent
}

func (p *nativePeer) ask(ctx context.Context, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, unaryTimeout)
	defer cancel()
	r, err := p.request(ctx, http.MethodPost, "/v2/sync/summary", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return nil, statusError(r)
	}
	p.sent(len(body), 0)
	b, err := io.ReadAll(io.LimitReader(r.Body, answerCap+1))
	if err == nil && len(b) > answerCap {
		err = fmt.Errorf("%w: an answer of more than %d bytes", errPeer, answerCap)
	}
	p.n.counts.bytesIn.Add(int64(len(b)))
	p.set(func(s *NativePeerStatus) { s.BytesIn += int64(len(b)) })
	return b, err
}

// received counts a frame.
func (p *nativePeer) received(bytes int64) {
	p.n.counts.bytesIn.Add(bytes)
	p.n.counts.framesIn.Add(1)
	p.set(func(s *NativePeerStatus) { s.BytesIn += bytes })
}

// sent counts what went out in a request.
func (p *nativePeer) sent(bytes, frames int) {
	p.n.counts.bytesOut.Add(int64(bytes))
	p.n.counts.framesOut.Add(int64(frames))
	p.set(func(s *NativePeerStatus) { s.BytesOut += int64(bytes) })
}

// fetch has elements sent. Of those that the peer listed, what does not come is not asked for again for a while. Of those that its feed told
// of, with the stamps in told, it may still send nothing or what was before, since its index follows its log: those stay in told.
func (p *nativePeer) fetch(ctx context.Context, ids []record.ID, told map[record.ID]record.HLC) (got int, err error) {
	var body []byte
	open := map[record.ID]bool{}
	for _, id := range ids {
		body = append(body, id[:]...)
		open[id] = true
	}
	_, _, err = p.rows(ctx, http.MethodPost, "/v2/sync/fetch", bytes.NewReader(body), func(rows []record.Row) error {
		for i := range rows {
			id := rows[i].ID()
			if !open[id] {
				return fmt.Errorf("%w: a row that was not asked for", errPeer)
			}
			delete(open, id)
			if max(rows[i].Add, rows[i].Del) >= told[id] {
				delete(told, id)
			}
		}
		refused, err := p.take(ctx, rows, false)
		got += len(rows) - len(refused)
		p.n.counts.fetched.Add(int64(len(rows) - len(refused)))
		return err
	})
	if err == nil {
		p.sent(len(body), 0)
	}
	if err == nil && told == nil {
		for id := range open {
			p.refuse(id, p.n.o.NowMs(), ReasonAbsent, "the peer lists it and does not send it")
		}
	}
	return got, err
}

// rows reads a stream of rows to its end.
func (p *nativePeer) rows(ctx context.Context, method, path string, body io.Reader, f func([]record.Row) error) (epoch [16]byte, lsn uint64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch := watch(cancel)
	defer watch.Stop()
	r, err := p.request(ctx, method, path, body)
	if err != nil {
		return epoch, 0, err
	}
	defer r.Body.Close()
	defer cancel()
	if r.StatusCode != http.StatusOK {
		return epoch, 0, statusError(r)
	}
	in := &frameReader{r: r.Body, dec: p.n.dec}
	for was := int64(0); ; was = in.n {
		kind, body, err := in.next()
		if err != nil {
			return epoch, 0, noEOF(err)
		}
		watch.Stop()
		p.received(in.n - was)
		switch kind {
		case frameRows:
			_, rows, err := readRows(body)
			if err == nil && len(rows) == 0 {
				err = fmt.Errorf("%w: a frame of no rows", errPeer)
			}
			if err == nil {
				err = f(rows)
			}
			if err != nil {
				return epoch, 0, err
			}
		case frameEnd:
			epoch, lsn, ok := readPlace(body)
			if !ok {
				return epoch, 0, errFrame
			}
			return epoch, lsn, nil
		default:
			return epoch, 0, fmt.Errorf("%w: a frame of type %d among rows", errPeer, kind)
		}
		watch.Reset(silence)
	}
}

// snapshot takes all that the peer's last snapshot has, one peer's at a time.
func (p *nativePeer) snapshot(ctx context.Context, count uint64) (epoch [16]byte, lsn uint64, err error) {
	n := p.n
	select {
	case n.cold <- struct{}{}:
		defer func() { <-n.cold }()
	case <-ctx.Done():
		return epoch, 0, ctx.Err()
	}
	n.mu.Lock()
	have := n.tree.root().n
	n.mu.Unlock()
	if have >= count/4 { // another peer's has come
		return epoch, 0, nil
	}
	n.counts.snapshots.Add(1)
	left := int(min(2*count+snapshotMin, 1<<40)) // more than it says that it has: rows that it has deleted, and those that came since
	return p.rows(ctx, http.MethodGet, "/v2/sync/snapshot", nil, func(rows []record.Row) error {
		if left -= len(rows); left < 0 {
			return fmt.Errorf("%w: a snapshot without end", errPeer)
		}
		_, err := p.take(ctx, rows, false)
		return err
	})
}
