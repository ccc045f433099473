package controlplane

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dnsmesh/dmpd/controlplane/antientropy"
	"github.com/dnsmesh/dmpd/controlplane/auth"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/config"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/vfs"
	"github.com/dnsmesh/dmpd/internal/wire"
)

const (
	// Peers have a bucket of their own behind the token, so that clients of the public API cannot starve replication and a peer that
	// catches up is not slowed down to a client's rate (cluster.md 15, W20). A puller of ours makes some 50 requests a second.
	syncRate  = 200
	syncBurst = 1000
	// refreshRetry is how long a manifest that could not be stored waits for the next attempt.
	refreshRetry = time.Second
)

// replication is the node's part in a cluster. Without token or peers nothing of it runs: no goroutine, timer or connection.
type replication struct {
	s         *Server
	manifests *antientropy.Manifests
	server    *antientropy.Server
	limit     auth.Limiter[netip.Prefix]
	newPuller func(antientropy.PullerOptions) (antientropy.Runner, error)

	mu         sync.Mutex
	ctx        context.Context // of everything that runs
	cancel     context.CancelFunc
	refreshing bool
	again      bool // a manifest came while one refreshed
	running    *runningPuller
	native     atomic.Pointer[runningNative] // nil: not spoken
	later      atomic.Bool                   // native replication is wanted and has not begun yet
	settled    atomic.Bool                   // what is installed was read once: from then on nil means not spoken
	wg         sync.WaitGroup
}

// runningNative is native replication with the settings that it was made of; others make another one.
type runningNative struct {
	*antientropy.Native
	handler http.Handler
	of      string
	ctx     context.Context
	cancel  context.CancelFunc
	done    chan struct{}
}

type runningPuller struct {
	antientropy.Runner
	cancel context.CancelFunc
	done   chan struct{}
}

func syncSettings(c *config.Config) antientropy.Settings {
	s := antientropy.Settings{
		Token: c.String("SYNC_PEER_TOKEN"), Previous: c.List("SYNC_PEER_TOKENS_PREVIOUS"), NodeID: c.String("NODE_ID"), SelfURL: c.String("SYNC_SELF_ENDPOINT"), URLs: c.List("SYNC_PEERS"),
		File: c.String("CLUSTER_FILE"), Interval: c.Seconds("SYNC_INTERVAL"), Pins: c.List("SYNC_PINS"), BaseDomain: c.String("CLUSTER_BASE_DOMAIN"), MaxTTLSec: c.Int("MAX_TTL"), MaxValueLen: int(c.Int("MAX_VALUE_BYTES")),
	}
	if b, err := hex.DecodeString(c.String("SYNC_OPERATOR_SPK")); err == nil && len(b) == 32 {
		s.Operator = (*[32]byte)(b)
	}
	return s
}

func (s *Server) syncSettings() antientropy.Settings { return syncSettings(s.config.Load()) }

// startReplication reads what is installed, and starts what the configuration asks for.
func (s *Server) startReplication() error {
	r := &replication{s: s, newPuller: newPuller}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	var err error
	r.manifests, err = antientropy.OpenManifests(antientropy.ManifestOptions{Dir: s.controlDir, Settings: s.syncSettings, View: s.tail, Writer: s.requests, NowMs: clock.NowMs, Log: s.log})
	if err != nil {
		return err
	}
	r.server = &antientropy.Server{View: s.tail, Settings: s.syncSettings, Manifest: r.manifests.Served, NowMs: clock.NowMs}
	s.replication = r
	look := func() { r.refresh() }
	s.tail.onCluster.Store(&look)
	r.refresh()
	return nil
}

// refresh has the manifests of file and store installed, unless this node has no token; then it starts or stops the puller. It returns at once.
func (r *replication) refresh() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx.Err() != nil {
		return
	}
	if r.s.syncSettings().Token == "" {
		r.reconsider()
		return
	}
	if r.refreshing {
		r.again = true
		return
	}
	r.refreshing = true
	r.wg.Go(func() {
		for {
			err := errAway
			if r.s.tail.Current() {
				err = r.manifests.Refresh(r.ctx)
			}
			if err != nil && !errors.Is(err, errAway) && !errors.Is(err, antientropy.ErrAway) && r.ctx.Err() == nil {
				r.s.log.Warn("the cluster manifest is not published yet", "err", err)
			}
			r.mu.Lock()
			r.reconsider()
			if err == nil && r.later.Load() {
				err = errAway
			}
			if err == nil {
				r.settled.Store(true)
			}
			if err == nil && !r.again {
				r.refreshing = false
				r.mu.Unlock()
				return
			}
			r.again = false
			r.mu.Unlock()
			if err == nil {
				continue
			}
			select {
			case <-time.After(refreshRetry):
			case <-r.ctx.Done():
				return
			}
		}
	})
}

// reconsider starts or stops the puller; needs mu.
func (r *replication) reconsider() {
	peers, _ := r.manifests.Peers()
	wanted := len(peers) > 0 && r.s.syncSettings().Token != "" && r.ctx.Err() == nil
	r.reconsiderNative(wanted)
	switch {
	case wanted && r.running == nil:
		p, err := r.newPuller(antientropy.PullerOptions{
			Dir: r.s.controlDir, View: r.s.tail, Writer: r.s.requests, Peers: r.manifests, Manifests: r.manifests, BaseDomain: r.manifests.BaseDomain, Settings: r.s.syncSettings,
			Native: r.speaksNative, NowMs: clock.NowMs, Log: r.s.log,
		})
		if err != nil {
			r.s.log.Error("replication cannot start", "err", err)
			return
		}
		ctx, cancel := context.WithCancel(r.ctx)
		run := &runningPuller{p, cancel, make(chan struct{})}
		r.running = run
		r.s.log.Info("replication", "peers", len(peers))
		r.wg.Go(func() {
			defer close(run.done)
			p.Run(ctx)
		})
	case !wanted && r.running != nil:
		r.running.cancel()
		<-r.running.done
		r.running = nil
		r.s.log.Info("replication is off")
	}
}

// readOrigin reads which node the rows of the data plane's folder are of; it makes the file at its first start.
func readOrigin(dataDir string) (id [8]byte, err error) {
	b, err := os.ReadFile(filepath.Join(dataDir, "node-id"))
	if err == nil && len(b) != len(id) {
		err = fmt.Errorf("node-id has %d bytes", len(b))
	}
	if err != nil {
		return id, err
	}
	return [8]byte(b), nil
}

// reconsiderNative starts, stops or renews native replication; needs mu.
func (r *replication) reconsiderNative(wanted bool) {
	c := r.s.config.Load()
	settings := r.s.syncSettings()
	mode := c.String("SYNC_NATIVE")
	origin, err := readOrigin(r.s.dataDir)
	wanted = wanted && mode != "off"
	r.later.Store(wanted && err != nil) // the data plane has not made its folder yet
	wanted = wanted && err == nil
	of := ""
	if wanted {
		of = fmt.Sprint(mode, c.Bool("SYNC_PADDING"), settings.Token, settings.Previous, settings.NodeID, settings.MaxTTLSec, settings.MaxValueLen, settings.Operator, settings.Pins, origin)
	}
	old := r.native.Load()
	if old != nil && old.of == of || old == nil && !wanted {
		return
	}
	if old != nil {
		r.later.Store(wanted)
		defer r.later.Store(false)
		r.native.Store(nil)
		old.cancel()
		<-old.done
	}
	if !wanted {
		return
	}
	id := settings.NodeID
	if id == "" {
		id = hex.EncodeToString(origin[:])
	}
	n, err := antientropy.NewNative(antientropy.NativeOptions{
		NodeID: id, Origin: origin, Token: settings.Token, Previous: settings.Previous, MaxTTLSec: settings.MaxTTLSec, ValueMax: settings.MaxValueLen, Operator: settings.Operator,
		Clear: mode == "clear", Padding: c.Bool("SYNC_PADDING"),
		Records: &antientropy.DiskRecords{FS: vfs.OS, Dir: r.s.dataDir, Value: r.s.tail.State, Notify: r.s.tail.notify},
		Merger:  r.s.requests, Peers: r.manifests, Cursors: antientropy.FileCursors{FS: vfs.OS, Path: filepath.Join(r.s.controlDir, "sync-native.json")},
		Transport: func(p antientropy.Peer) http.RoundTripper { return antientropy.NativeTransport(p, settings.Pins) }, NowMs: clock.NowMs, Log: r.s.log,
	})
	if err != nil {
		r.s.log.Warn("native replication is off; nodes of this kind are pulled from like others", "err", err)
		return
	}
	ctx, cancel := context.WithCancel(r.ctx)
	run := &runningNative{n, n.Handler(), of, ctx, cancel, make(chan struct{})}
	r.native.Store(run)
	r.wg.Go(func() {
		defer close(run.done)
		n.Run(ctx)
	})
}

func (r *replication) speaksNative(peerID string) (native, known bool) {
	n := r.native.Load()
	if n == nil {
		return false, !r.later.Load()
	}
	return n.Speaks(peerID)
}

// serveNative answers /v2/sync/*; where it is not spoken, as any other path that there is not. A node that has not begun yet says so: a 404 would
// have its peers speak v1 with it for minutes.
func (r *replication) serveNative(w http.ResponseWriter, req *http.Request) {
	if n := r.native.Load(); n != nil {
		ctx, cancel := context.WithCancel(req.Context())
		defer cancel()
		defer context.AfterFunc(n.ctx, cancel)() // a stream ends with what serves it
		n.handler.ServeHTTP(w, req.WithContext(ctx))
		return
	}
	c := r.s.config.Load()
	if mode := c.String("SYNC_NATIVE"); c.String("SYNC_PEER_TOKEN") != "" && (mode == "clear" || mode == "tls" && req.TLS != nil) && !r.settled.Load() {
		w.Header().Set("Retry-After", "1")
		reply(w, http.StatusServiceUnavailable, errorBody{"not yet"})
		return
	}
	reply(w, http.StatusNotFound, errorBody{"not found"})
}

// reload takes new settings over.
func (r *replication) reload() {
	r.server.Reset()
	r.manifests.Reload()
	r.mu.Lock()
	if r.running != nil {
		r.running.Wake()
	}
	r.mu.Unlock()
	r.refresh()
}

func (r *replication) stop() {
	r.s.tail.onCluster.Store(nil)
	r.cancel()
	r.wg.Wait()
}

// status gives the peers' state; nil while nothing runs.
func (r *replication) status() []antientropy.PeerStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running == nil {
		return nil
	}
	all := r.running.Status()
	n := r.native.Load()
	if n == nil {
		return all
	}
	native := map[string]antientropy.NativePeerStatus{}
	for _, p := range n.Status().Peers {
		native[p.ID] = p
	}
	nowMs := clock.NowMs()
	for i := range all {
		s := &all[i]
		p, ok := native[s.ID]
		if !ok {
			continue
		}
		// What was counted stays counted, whichever way is spoken now.
		s.Requests, s.Errors, s.PinFailures, s.Reconnects = s.Requests+p.Requests, s.Errors+p.Errors, s.PinFailures+p.PinFailures, s.Reconnects+p.Reconnects
		s.BytesIn, s.BytesOut, s.Stored = s.BytesIn+p.BytesIn, s.BytesOut+p.BytesOut, s.Stored+p.RowsIn
		s.Rejected.Add(&p.Rejected)
		if !p.Native {
			continue
		}
		s.Native, s.CaughtUp, s.LagRows, s.LastSuccessMs, s.LagSec = true, p.Converged, p.LagRows, p.LastMarkMs, 0
		if p.Connected {
			s.LastError = ""
		} else {
			s.LastError = p.LastError
		}
		if !p.Converged && p.LastMarkMs > 0 {
			s.LagSec = max(0, float64(nowMs-p.LastMarkMs)/1000)
		}
		s.Quarantined = p.Refused
	}
	return all
}

// sync serves /v1/sync/* (cluster.md 6). A caller with the token has the peers' bucket, others the public one, before they are told that
// they have no token.
func (s *Server) sync(w http.ResponseWriter, req *http.Request, path string) {
	r := s.replication
	settings := s.syncSettings()
	caller := auth.ClientPrefix(s.clientAddr(req))
	known := antientropy.Authorized(req, &settings)
	allowed := false
	if known {
		allowed = r.limit.Allow(caller, syncRate, syncBurst, clock.Mono())
	} else {
		c := s.config.Load()
		allowed = s.limit.Allow(caller, c.Float("HTTP_RATE"), c.Float("HTTP_BURST"), clock.Mono())
	}
	switch {
	case !allowed:
		w.Header().Set("Retry-After", "1")
		reply(w, http.StatusTooManyRequests, errorBody{"rate limit exceeded"})
	case !known:
		reply(w, http.StatusForbidden, errorBody{"forbidden"})
	case path == "/v1/sync/digest":
		r.server.Digest(w, req)
	case path == "/v1/sync/pull":
		r.server.Pull(w, req)
	default:
		r.server.ClusterManifest(w, req)
	}
}

// pageScan is how many rows one page looks at under the tail's lock, about a millisecond's work, so that the follower is not held up.
const pageScan = 4096

// feedItem is a row of the feed that still lies in the mapping or in the tail.
type feedItem struct {
	text string
	row  *record.Row
}

// Page is antientropy.View. The snapshot's rows come first, then the tail's: each frame has one stamp, and the snapshot holds whole
// frames. Rows of one stamp lie in the order of names in wire form; cursors are compared by their text, so a stamp's rows are sorted
// before they are given out. A frame bounds how many those are.
func (t *tail) Page(after antientropy.Cursor, limit int, nowMs int64) (rows []antientropy.FeedRow, next antientropy.Cursor, more bool, err error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.problem != nil {
		return nil, after, false, t.problem
	}
	next = after
	var group []feedItem
	stamp, looked := int64(-1), 0
	// emit gives out the rows of one stamp; false if the page is full.
	emit := func() bool {
		slices.SortFunc(group, func(a, b feedItem) int {
			return cmp.Or(cmp.Compare(a.text, b.text), bytes.Compare(a.row.Hash[:], b.row.Hash[:]))
		})
		for _, it := range group {
			place := antientropy.Cursor{TsMs: stamp, Name: it.text, Hash: it.row.Hash}
			if place.Compare(after) <= 0 {
				continue
			}
			if len(rows) == limit {
				return false
			}
			r := *it.row
			r.FeedMs, r.Name, r.RDATA = stamp, bytes.Clone(r.Name), bytes.Clone(r.RDATA)
			rows = append(rows, antientropy.FeedRow{Name: it.text, Row: r})
			next = place
		}
		group = group[:0]
		// All that has this stamp is behind us. What comes later has a later one.
		if past := (antientropy.Cursor{TsMs: stamp + 1}); past.Compare(next) > 0 {
			next = past
		}
		return true
	}
	// take adds a row; false ends the page.
	take := func(r *record.Row, feedMs int64) bool {
		if feedMs != stamp {
			if stamp >= 0 && !emit() {
				return false
			}
			if looked >= pageScan {
				stamp = -1
				return false
			}
			stamp = feedMs
		}
		looked++
		if r.RDATA != nil && r.Live(nowMs) {
			group = append(group, feedItem{wire.Text(r.Name), r})
		}
		return true
	}
	whole := true
	if t.snap != nil && after.TsMs <= t.snap.FeedMs {
		err = t.snap.AfterFeed(after.TsMs-1, func(_ record.ID, r *record.Row) bool {
			if rows := t.rows[string(r.Name)]; rows.of(r.Hash) == nil {
				row := *r
				whole = take(&row, r.FeedMs)
			} else {
				looked++
			}
			return whole
		})
		if err != nil {
			return nil, after, false, err
		}
	}
	if whole {
		for i := sort.Search(len(t.feed), func(i int) bool { return t.feed[i].row.FeedMs >= after.TsMs }); i < len(t.feed) && whole; i++ {
			if r := t.feed[i]; !r.dead {
				whole = take(&r.row, r.row.FeedMs)
			} else {
				looked++
			}
		}
	}
	if whole && stamp >= 0 {
		whole = emit()
	}
	return rows, next, !whole, nil
}

// Values is antientropy.View.
func (t *tail) Values(name []byte, nowMs int64) (live []antientropy.FeedRow, err error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.problem != nil {
		return nil, t.problem
	}
	text := wire.Text(name)
	keep := func(r *record.Row) {
		if r.RDATA != nil && r.Live(nowMs) {
			row := *r
			row.Name, row.RDATA = bytes.Clone(r.Name), bytes.Clone(r.RDATA)
			live = append(live, antientropy.FeedRow{Name: text, Row: row})
		}
	}
	rows := t.rows[string(name)]
	for r := range rows.all() {
		keep(&r.row)
	}
	if t.snap != nil {
		err = t.snap.Name(name, func(r *record.Row) bool {
			if rows.of(r.Hash) == nil {
				keep(r)
			}
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(live, func(a, b antientropy.FeedRow) int { return a.Cursor().Compare(b.Cursor()) })
	return live, nil
}

// State is antientropy.View.
func (t *tail) State(name []byte, hash [32]byte) (row record.Row, found bool, err error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.problem != nil {
		return row, false, t.problem
	}
	rows := t.rows[string(name)]
	if r := rows.of(hash); r != nil {
		row, found = r.row, true
	} else if t.snap != nil {
		err = t.snap.Name(name, func(r *record.Row) bool {
			if r.Hash == hash {
				row, found = *r, true
			}
			return !found
		})
	}
	row.Name, row.RDATA = bytes.Clone(row.Name), bytes.Clone(row.RDATA)
	return row, found, err
}

// Epoch is antientropy.View.
func (t *tail) Epoch() (epoch [16]byte, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.epoch, t.opened
}

// Current is antientropy.View.
func (t *tail) Current() bool {
	_, _, behind, problem := t.position()
	return !behind && problem == nil
}

// Offer is antientropy.Writer. Each offer is a request of its own, so that each has its own outcome; they go into the log together.
func (q *requests) Offer(ctx context.Context, offers []antientropy.Offer) ([]antientropy.Result, error) {
	if len(offers) > antientropy.OffersMax {
		return nil, fmt.Errorf("antientropy: %d offers at once", len(offers))
	}
	nowMs := clock.NowMs()
	payloads := make([][]byte, len(offers))
	for i := range offers {
		o := &offers[i]
		rdata := record.AppendRDATA(nil, o.Value)
		payloads[i] = record.AppendRequest(nil, &record.Request{Source: record.SourcePeer, Ops: []record.Op{{
			Kind: record.OpOffer, CapExempt: o.Verified && record.ClassOf(o.Value) == record.ClassCluster, Verified: o.Verified,
			Row: &record.Row{Name: o.Name, RDATA: rdata, Hash: record.HashOf(rdata), Add: record.HLCAt(min(o.AddMs, nowMs)), ExpMs: o.ExpMs},
		}}})
	}
	epoch, lsns, err := q.submit(payloads)
	if err != nil {
		return nil, away(err)
	}
	results := make([]antientropy.Result, len(lsns))
	for i, lsn := range lsns {
		o, err := q.wait(ctx, epoch, lsn)
		if err != nil {
			return nil, away(err) // the rest may still happen, which is harmless: an offer can be made again
		}
		switch o.Code {
		case record.CodeStored:
			results[i].Decision = antientropy.Stored
		case record.CodeRefreshed:
			results[i].Decision = antientropy.Refreshed
		case record.CodeUnchanged:
			results[i].Decision = antientropy.Present
		case record.CodeTombstoned:
			results[i].Decision = antientropy.Tombstoned
		case record.CodeFailed, record.CodeStoreFull:
			// No verdict on the record: the disk or the node is full, and may not be later.
			return nil, fmt.Errorf("%w: %v", antientropy.ErrAway, o.Code)
		default:
			results[i] = antientropy.Result{Decision: antientropy.Refused, Reason: o.Code.String()}
		}
	}
	return results, nil
}

func away(err error) error {
	if errors.Is(err, errAway) || errors.Is(err, errAhead) || errors.Is(err, errUnknown) {
		return fmt.Errorf("%w: %w", antientropy.ErrAway, err)
	}
	return err
}
