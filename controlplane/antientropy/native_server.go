package antientropy

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dnsmesh/dmpd/internal/record"
)

// caller is a node that asks us.
type caller struct {
	streams  atomic.Int32
	sent     atomic.Int64 // bytes of answers
	mu       sync.Mutex
	dropFeed context.CancelFunc // of its feed
}

// Handler serves /v2/sync/. It answers 404 where v2 is not spoken, so that the caller falls back to v1.
func (n *Native) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/sync/hello", n.serve(n.serveHello))
	mux.HandleFunc("POST /v2/sync/feed", n.serve(n.serveFeed))
	mux.HandleFunc("POST /v2/sync/summary", n.serve(n.serveSummary))
	mux.HandleFunc("POST /v2/sync/fetch", n.serve(n.serveFetch))
	mux.HandleFunc("GET /v2/sync/snapshot", n.serve(n.serveSnapshot))
	return mux
}

func refuse(w http.ResponseWriter, status int, text string) {
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": text})
}

// serve is the gates that all requests pass, cheapest first.
func (n *Native) serve(f func(http.ResponseWriter, *http.Request, *caller)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil && !n.o.Clear {
			refuse(w, http.StatusNotFound, "not found")
			return
		}
		id := r.Header.Get(nodeHeader)
		if !n.authentic(id, r.Header.Get("Authorization")) {
			n.counts.refusedAuth.Add(1)
			refuse(w, http.StatusForbidden, "forbidden")
			return
		}
		n.mu.Lock()
		ready := n.tree != nil
		c := n.callers[id]
		if c == nil && len(n.callers) < callersMax {
			c = &caller{}
			n.callers[id] = c
		}
		n.mu.Unlock()
		switch {
		case c == nil:
			refuse(w, http.StatusTooManyRequests, "too many nodes have asked")
		case !ready:
			refuse(w, http.StatusServiceUnavailable, "the records are still being read")
		case c.streams.Add(1) > callerStreams+1:
			c.streams.Add(-1)
			refuse(w, http.StatusTooManyRequests, "too many requests at a time")
		default:
			defer c.streams.Add(-1)
			f(w, r, c)
		}
	}
}

func (n *Native) authentic(id, header string) bool {
	if !validNodeID(id) {
		return false
	}
	got := sha256.Sum256([]byte(header))
	ok := 0
	for i := -1; i < len(n.o.Previous); i++ {
		token := n.o.Token
		if i >= 0 {
			token = n.o.Previous[i]
		}
		want := sha256.Sum256([]byte("Bearer " + nodeToken(token, id)))
		ok |= subtle.ConstantTimeCompare(got[:], want[:])
	}
	return ok == 1
}

// stand reads how this node stands.
func (n *Native) stand() (m mark, epoch [16]byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tree.advance(n.clockMs())
	return mark{n.lsn, n.tree.ms, n.tree.root(), n.clockMs()}, n.epoch
}

func (n *Native) hello() helloAnswer {
	m, epoch := n.stand()
	return helloAnswer{Protocol: protocol, Node: n.o.NodeID, Epoch: hex.EncodeToString(epoch[:]), LSN: m.lsn, CutMs: m.cutMs, Count: m.root.n,
		Root: hex.EncodeToString(m.root.append(nil)), ClockMs: m.clockMs, MaxTTLSec: n.o.MaxTTLSec, Key: n.keyCheck}
}

func (n *Native) serveHello(w http.ResponseWriter, _ *http.Request, _ *caller) {
	n.sayHello(w, http.StatusOK)
}

func (n *Native) sayHello(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(n.hello())
}

// sent counts what was answered to a node.
func (n *Native) sent(c *caller, bytes int) {
	n.counts.bytesOut.Add(int64(bytes))
	c.sent.Add(int64(bytes))
}

// out is a stream of frames to a peer. A write that takes too long ends it.
type out struct {
	n   *Native
	c   *caller
	w   http.ResponseWriter
	ctl *http.ResponseController
	buf []byte
}

func (n *Native) stream(w http.ResponseWriter, c *caller) *out {
	o := &out{n: n, c: c, w: w, ctl: http.NewResponseController(w)}
	_ = o.ctl.SetReadDeadline(time.Time{}) // a stream may last; silence and acknowledgements are watched instead
	w.Header().Set("Content-Type", "application/octet-stream")
	w.WriteHeader(http.StatusOK)
	return o
}

func (o *out) frame(kind byte, body []byte) error {
	o.buf = appendFrame(o.buf[:0], o.n.enc, kind, body, o.n.o.Padding)
	_ = o.ctl.SetWriteDeadline(time.Now().Add(silence))
	if _, err := o.w.Write(o.buf); err != nil {
		return err
	}
	o.n.counts.framesOut.Add(1)
	o.n.sent(o.c, len(o.buf))
	return o.ctl.Flush()
}

// serveFeed sends what originated here, from the subscriber's place on, and how this node stands every two seconds.
func (n *Native) serveFeed(w http.ResponseWriter, r *http.Request, c *caller) {
	if r.ProtoMajor < 2 {
		refuse(w, http.StatusUpgradeRequired, "the feed needs HTTP/2")
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	c.mu.Lock()
	if c.dropFeed != nil {
		c.dropFeed() // the newer one counts: the older may hang in a dead connection
	}
	c.dropFeed = cancel
	c.mu.Unlock()
	n.poke(r.Header.Get(nodeHeader))
	in := &frameReader{r: r.Body, dec: n.dec}
	kind, body, err := in.next()
	epoch, from, ok := readPlace(body)
	if err != nil || kind != frameOpen || !ok {
		refuse(w, http.StatusBadRequest, "a feed begins with where to begin")
		return
	}
	frames, err := n.o.Records.Frames(epoch, from+1)
	if errors.Is(err, ErrRestart) {
		n.sayHello(w, http.StatusConflict)
		return
	}
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, "the log cannot be read")
		return
	}
	defer frames.Close()
	acks := &acks{changed: make(chan struct{}, 1)}
	acks.lsn.Store(from)
	o := n.stream(w, c)
	if err := o.sendMark(from); err != nil {
		return
	}
	var reader sync.WaitGroup
	defer reader.Wait()
	defer cancel()
	defer r.Body.Close()
	reader.Go(func() {
		defer cancel()
		acks.read(in)
	})
	n.feed(ctx, o, frames, from, acks)
}

// sendMark says that everything up to lsn was sent, and how this node stands: as far as both is so, since the sums may be some ms behind.
func (o *out) sendMark(lsn uint64) error {
	m, _ := o.n.stand()
	m.lsn = min(m.lsn, lsn)
	return o.frame(frameMark, m.append(nil))
}

// acks is what the subscriber said.
type acks struct {
	lsn     atomic.Uint64
	changed chan struct{}
}

func (a *acks) read(in *frameReader) {
	for {
		kind, body, err := in.next()
		switch {
		case err != nil:
			return
		case kind == frameAck && len(body) == 8:
			if lsn := binary.BigEndian.Uint64(body); lsn > a.lsn.Load() {
				a.lsn.Store(lsn)
			}
			select {
			case a.changed <- struct{}{}:
			default:
			}
		case kind == frameNack && len(body) == 16: // its own count says the same
		default:
			return
		}
	}
}

func (n *Native) feed(ctx context.Context, o *out, frames FrameReader, from uint64, acks *acks) {
	type sent struct {
		lsn  uint64
		size int
	}
	var unacked []sent
	window := 0
	batch := binary.BigEndian.AppendUint64(nil, from)
	rows, last := 0, from
	marks := time.NewTicker(markEvery)
	defer marks.Stop()
	for {
		changed := n.o.Records.Changed()
		quiet := false
		for len(batch) < batchBytes && window < windowMax {
			lsn, payload, ok, err := frames.Next()
			if err != nil {
				return // gone or begun anew: the subscriber asks again and hears of it
			}
			if !ok {
				quiet = true
				break
			}
			err = record.ReadFrame(payload, func(_ int64, e *record.Entry) error {
				if e.Kind <= record.KindTombstone && e.Row.Origin == n.o.Origin && n.offered(e) {
					if len(batch)+len(e.Row.RDATA)+1024 > bodyMax { // a frame of the log may be larger than one of ours
						if err := o.frame(frameRows, batch); err != nil {
							return err
						}
						batch = batch[:8]
					}
					batch = appendRow(batch, &e.Row)
					rows++
				}
				return nil
			})
			if err != nil {
				return
			}
			last = lsn
			binary.BigEndian.PutUint64(batch, lsn)
		}
		if len(batch) > 8 {
			if o.frame(frameRows, batch) != nil {
				return
			}
			n.counts.rowsOut.Add(int64(rows))
			unacked = append(unacked, sent{last, len(batch)})
			window += len(batch)
			batch, rows = batch[:8], 0
		}
		if quiet || window >= windowMax {
			if window >= windowMax {
				changed = nil // nothing more before an acknowledgement
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			case <-acks.changed:
			case <-marks.C:
				if o.sendMark(last) != nil {
					return
				}
			}
		} else {
			select {
			case <-ctx.Done():
				return
			case <-marks.C:
				if o.sendMark(last) != nil {
					return
				}
			default:
			}
		}
		for done := acks.lsn.Load(); len(unacked) > 0 && unacked[0].lsn <= done; unacked = unacked[1:] {
			window -= unacked[0].size
		}
	}
}

// offered says whether an entry is one that other nodes take.
func (n *Native) offered(e *record.Entry) bool {
	switch e.Kind {
	case record.KindPut:
		return travels(&e.Row)
	case record.KindRefresh:
		return n.has(e.Row.ID()) // what does not travel is not in the tree
	}
	return true
}

// serveSummary compares nodes of the tree.
func (n *Native) serveSummary(w http.ResponseWriter, r *http.Request, c *caller) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 8+asksMax*askLen+1))
	cut, asks, ok := readAsks(body)
	if err != nil || !ok {
		refuse(w, http.StatusBadRequest, "not a question about the tree")
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	answer := n.summary(cut, asks)
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(unaryTimeout))
	_, _ = w.Write(answer)
	n.sent(c, len(answer))
}

func (n *Native) summary(cut int64, asks []ask) []byte {
	n.hear(cut)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tree.advance(n.clockMs())
	dst := binary.BigEndian.AppendUint64(nil, uint64(n.tree.ms))
	if n.tree.ms != cut {
		return dst // the asker comes again with the later moment
	}
	for _, a := range asks {
		s := n.tree.node(a.level, a.prefix)
		switch {
		case *s == a.s:
			dst = append(dst, answerEqual)
		case len(dst) > answerMax:
			dst = append(dst, answerLater)
		case a.level == leafLevel || s.n <= listMax:
			dst = append(dst, answerList)
			at := len(dst)
			dst = append(dst, 0, 0, 0, 0)
			width := 1 << (4 * (leafLevel - a.level))
			count := 0
			for _, leaf := range n.tree.leaves[a.prefix*width : (a.prefix+1)*width] {
				for i := range leaf[:min(len(leaf), leafMax-count)] {
					dst = appendState(dst, &leaf[i].id, leaf[i].state)
					count++
				}
			}
			binary.BigEndian.PutUint32(dst[at:], uint32(count))
		default:
			dst = append(dst, answerChildren)
			for i := range 16 {
				dst = n.tree.node(a.level+1, a.prefix<<4|i).append(dst)
			}
		}
	}
	return dst
}

// leafMax bounds a list: some 150 elements are in a leaf of 10 million; more are somebody's work with ids that he chose.
const leafMax = 200_000

// serveFetch sends rows by their ids.
func (n *Native) serveFetch(w http.ResponseWriter, r *http.Request, c *caller) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 16*idsMax+1))
	if err != nil || len(body)%16 != 0 || len(body) > 16*idsMax {
		refuse(w, http.StatusBadRequest, "not a list of element ids")
		return
	}
	o := n.stream(w, c)
	batch := make([]byte, 8, batchBytes)
	for ; len(body) > 0; body = body[16:] {
		row, ok, err := n.o.Records.Row(record.ID(body))
		if err != nil {
			return // without an end
		}
		if !ok || row.RDATA != nil && !travels(&row) || row.RDATA == nil && row.Add > row.Del {
			continue
		}
		if batch, err = o.rows(batch, &row); err != nil {
			return
		}
	}
	o.end(batch, [16]byte{}, 0)
}

// rows appends a row to a batch and sends the batch when it is full.
func (o *out) rows(batch []byte, r *record.Row) ([]byte, error) {
	batch = appendRow(batch, r)
	o.n.counts.rowsOut.Add(1)
	if len(batch) < batchBytes {
		return batch, nil
	}
	return batch[:8], o.frame(frameRows, batch)
}

func (o *out) end(batch []byte, epoch [16]byte, lsn uint64) {
	if len(batch) > 8 && o.frame(frameRows, batch) != nil {
		return
	}
	_ = o.frame(frameEnd, placeBody(epoch, lsn))
}

// serveSnapshot sends the rows of the last snapshot.
func (n *Native) serveSnapshot(w http.ResponseWriter, _ *http.Request, c *caller) {
	defer n.snapshots.Add(-1)
	if n.snapshots.Add(1) > snapshotsMax {
		refuse(w, http.StatusServiceUnavailable, "other nodes are taking the snapshot")
		return
	}
	var o *out
	var failed error
	batch := make([]byte, 8, batchBytes)
	nowMs := n.o.NowMs()
	epoch, lsn, ok, err := n.o.Records.Snapshot(func(r *record.Row) bool {
		if s := stateOf(r).at(nowMs, n.lifeMs); s == (state{}) || r.RDATA != nil && !travels(r) {
			return true
		}
		if o == nil {
			o = n.stream(w, c)
		}
		batch, failed = o.rows(batch, r)
		return failed == nil
	})
	switch {
	case err == nil && failed == nil && o != nil:
		o.end(batch, epoch, lsn)
	case o == nil && (err != nil || !ok):
		refuse(w, http.StatusServiceUnavailable, "there is no snapshot yet")
	case o == nil:
		n.stream(w, c).end(nil, epoch, lsn)
	}
}
