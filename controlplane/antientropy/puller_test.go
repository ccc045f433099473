package antientropy

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// feedStore is a store in memory with the rules of the real one (cluster.md 17.4), which controlplane's tests hold it to. It has the time of its bubble.
type feedStore struct {
	mu      sync.Mutex
	rows    map[pair]*FeedRow
	names   map[string][]pair
	order   []FeedRow // sorted; nil if something changed
	lastMs  int64
	offers  int
	stored  int
	away    bool
	refuse  func(o *Offer) string
	stampMs int64 // of all rows, if not 0
}

func newFeedStore() *feedStore {
	return &feedStore{rows: map[pair]*FeedRow{}, names: map[string][]pair{}}
}

func now() int64 { return time.Now().UnixMilli() }

func (s *feedStore) put(name []byte, value []byte, addMs, expMs int64, deleted bool) {
	rdata := record.AppendRDATA(nil, value)
	hash := record.HashOf(rdata)
	s.lastMs = max(now(), s.lastMs+1)
	if s.stampMs != 0 {
		s.lastMs = s.stampMs
	}
	r := &FeedRow{Name: wire.Text(name), Row: record.Row{Name: name, RDATA: rdata, Hash: hash, FeedMs: s.lastMs, Add: record.HLCAt(addMs), ExpMs: expMs}}
	if deleted {
		r.RDATA, r.Del = nil, record.HLCAt(now())
	}
	p := pair{string(name), hash}
	if s.rows[p] == nil {
		s.names[p.name] = append(s.names[p.name], p)
	}
	s.rows[p], s.order = r, nil
}

// publish is what a user does.
func (s *feedStore) publish(name, value string, ttl time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(wire.MustName(name), []byte(value), now(), now()+ttl.Milliseconds(), false)
}

func (s *feedStore) delete(name, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := pair{string(wire.MustName(name)), record.HashOf(record.AppendRDATA(nil, []byte(value)))}
	old := s.rows[p]
	s.put(old.Row.Name, []byte(value), old.Add.Ms(), old.ExpMs, true)
}

// live gives values with the seconds that they have left.
func (s *feedStore) live() map[string]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]int64{}
	for _, r := range s.rows {
		if r.RDATA != nil && r.Live(now()) {
			all[r.Name+" "+string(record.AppendValue(nil, r.RDATA))] = (r.ExpMs - now()) / 1000
		}
	}
	return all
}

func (s *feedStore) sorted() []FeedRow {
	if s.order == nil {
		for _, r := range s.rows {
			s.order = append(s.order, *r)
		}
		slices.SortFunc(s.order, func(a, b FeedRow) int { return a.Cursor().Compare(b.Cursor()) })
	}
	return s.order
}

func (s *feedStore) Page(after Cursor, limit int, nowMs int64) (rows []FeedRow, next Cursor, more bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next = after
	for _, r := range s.sorted() {
		if r.Cursor().Compare(after) <= 0 || r.RDATA == nil || !r.Live(nowMs) {
			continue
		}
		if len(rows) == limit {
			return rows, next, true, nil
		}
		rows, next = append(rows, r), r.Cursor()
	}
	return rows, next, false, nil
}

func (s *feedStore) Values(name []byte, nowMs int64) (rows []FeedRow, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.names[string(name)] {
		if r := s.rows[p]; r.RDATA != nil && r.Live(nowMs) {
			rows = append(rows, *r)
		}
	}
	slices.SortFunc(rows, func(a, b FeedRow) int { return a.Cursor().Compare(b.Cursor()) })
	return rows, nil
}

func (s *feedStore) State(name []byte, hash [32]byte) (row record.Row, found bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rows[pair{string(name), hash}]
	if r == nil {
		return row, false, nil
	}
	return r.Row, true, nil
}

func (s *feedStore) Epoch() ([16]byte, bool) { return [16]byte{1}, true }
func (s *feedStore) Current() bool           { return true }

func (s *feedStore) Offer(_ context.Context, offers []Offer) (results []Result, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offers += len(offers)
	if s.away {
		return nil, ErrAway
	}
	for i := range offers {
		o := &offers[i]
		if s.refuse != nil {
			if why := s.refuse(o); why != "" {
				results = append(results, Result{Refused, why})
				continue
			}
		}
		d := Stored
		if r := s.rows[pair{string(o.Name), record.HashOf(record.AppendRDATA(nil, o.Value))}]; r != nil {
			switch {
			case r.RDATA == nil && (o.AddMs <= r.Del.Ms()+SlopMs || o.ExpMs <= r.ExpMs+oldCopyMs):
				d = Tombstoned
			case r.RDATA != nil && r.Live(now()) && o.ExpMs <= r.ExpMs+SlopMs:
				d = Present
			case r.RDATA != nil && r.Live(now()):
				d = Refreshed
			}
		}
		if d == Stored || d == Refreshed {
			s.stored++
			s.put(o.Name, o.Value, max(o.AddMs-SlopMs, 1), o.ExpMs, false)
		}
		results = append(results, Result{Decision: d})
	}
	return results, nil
}

// served is a node of ours as peers see it.
func served(s *feedStore) http.Handler {
	srv := &Server{View: s, Settings: func() Settings { return Settings{Token: "peers"} }, Manifest: func(context.Context) ([]byte, record.Cluster, bool) { return nil, record.Cluster{}, false }, NowMs: now}
	m := http.NewServeMux()
	m.HandleFunc("/v1/sync/digest", srv.Digest)
	m.HandleFunc("/v1/sync/pull", srv.Pull)
	m.HandleFunc("/v1/sync/cluster-manifest", srv.ClusterManifest)
	return m
}

// fabric answers requests of a puller in the process, after a delay each way.
type fabric struct {
	t       testing.TB
	mu      sync.Mutex
	nodes   map[string]http.Handler // by host
	oneWay  time.Duration
	digests atomic.Int64
	pulls   atomic.Int64
	calls   atomic.Int64
	bodies  atomic.Int64 // the largest
}

func (n *fabric) RoundTrip(r *http.Request) (*http.Response, error) {
	n.calls.Add(1)
	if r.Header.Get("Authorization") != "Bearer peers" {
		n.t.Errorf("a request to %s without the token", r.URL)
	}
	n.mu.Lock()
	h := n.nodes[r.URL.Host]
	delay := n.oneWay
	n.mu.Unlock()
	if h == nil {
		return nil, fmt.Errorf("no route to %s", r.URL.Host)
	}
	switch r.URL.Path {
	case "/v1/sync/digest":
		n.digests.Add(1)
	case "/v1/sync/pull":
		n.pulls.Add(1)
		b, _ := io.ReadAll(r.Body)
		n.bodies.Store(max(n.bodies.Load(), int64(len(b))))
		r.Body = io.NopCloser(strings.NewReader(string(b)))
	}
	select {
	case <-time.After(delay):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	w.Header().Set("Date", time.Now().UTC().Format(http.TimeFormat))
	select {
	case <-time.After(delay):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	return w.Result(), nil
}

// roster is the list of peers.
type roster struct {
	mu      sync.Mutex
	peers   []Peer
	changed chan struct{}
}

func newRoster(hosts ...string) *roster {
	r := &roster{changed: make(chan struct{})}
	for _, h := range hosts {
		r.peers = append(r.peers, Peer{ID: h, URL: "http://" + h})
	}
	return r
}

func (r *roster) Peers() ([]Peer, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.peers, r.changed
}

func (r *roster) set(hosts ...string) {
	next := newRoster(hosts...)
	r.mu.Lock()
	r.peers = next.peers
	close(r.changed)
	r.changed = make(chan struct{})
	r.mu.Unlock()
}

// installer takes note of manifests.
type installer struct {
	mu    sync.Mutex
	texts []string
}

func (i *installer) Install(_ context.Context, text []byte, from string) (Installed, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.texts = append(i.texts, from+": "+string(text))
	return ManifestNew, nil
}

const interval = 10 * time.Second

type pulling struct {
	*Puller
	net    *fabric
	store  *feedStore
	roster *roster
	inst   *installer
	set    *Settings
	native atomic.Int32 // of the peers: 0 they do not speak native replication, 1 they do, 2 it is not known
	mu     sync.Mutex
	base   string
	stop   func()
}

// pullingFrom runs a puller of store s against peers; it ends with the test.
func pullingFrom(t testing.TB, dir string, s *feedStore, n *fabric, r *roster) *pulling {
	p := &pulling{net: n, store: s, roster: r, inst: &installer{}, set: &Settings{Token: "peers", Interval: interval, MaxTTLSec: 86400, MaxValueLen: 2048}}
	p.Puller = NewPuller(PullerOptions{Dir: dir, View: s, Writer: s, Peers: r, Manifests: p.inst, BaseDomain: func() string { p.mu.Lock(); defer p.mu.Unlock(); return p.base },
		Settings: func() Settings { p.mu.Lock(); defer p.mu.Unlock(); return *p.set },
		Native:   func(string) (native, known bool) { return p.native.Load() == 1, p.native.Load() != 2 }, NowMs: now, Log: logging.New(io.Discard, logging.Error, false)})
	p.transport = func(Peer) http.RoundTripper { return n }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); p.Run(ctx) }()
	p.stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(p.stop)
	return p
}

func (p *pulling) one(t testing.TB, id string) PeerStatus {
	t.Helper()
	for _, s := range p.Status() {
		if s.ID == id {
			return s
		}
	}
	t.Fatalf("no status of %s", id)
	return PeerStatus{}
}

// bubble runs a test on the time of synctest.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, f)
}

// rounds lets the pullers of a bubble do n rounds.
func rounds(n int) {
	time.Sleep(time.Duration(n) * (interval*6/5 + time.Second))
	synctest.Wait()
}

func equalStores(t testing.TB, got, want *feedStore) {
	t.Helper()
	if g, w := slices.Sorted(maps.Keys(got.live())), slices.Sorted(maps.Keys(want.live())); !slices.Equal(g, w) {
		t.Errorf("%d records, want %d; the first: %.200q, %.200q", len(g), len(w), g, w)
	}
}

// TestTick: cluster.md 14.1, 28 to 31, 34, 36 to 38, 45.
func TestTick(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b, here := newFeedStore(), newFeedStore(), newFeedStore()
		n := &fabric{t: t, nodes: map[string]http.Handler{"a.test": served(a), "b.test": served(b)}}
		r := newRoster()
		p := pullingFrom(t, t.TempDir(), here, n, r)
		rounds(2)
		if n.calls.Load() != 0 || len(p.Status()) != 0 {
			t.Error("36: something is asked without peers")
		}
		a.publish("one.test", "1", time.Hour)
		a.publish("two.test", "2", time.Hour)
		r.set("a.test")
		rounds(1)
		if n.digests.Load() > 3 || n.pulls.Load() != 1 || here.stored != 2 {
			t.Errorf("28: %d digests, %d pulls, %d stored", n.digests.Load(), n.pulls.Load(), here.stored)
		}
		equalStores(t, here, a)
		last := a.sorted()[1].Cursor()
		p.Puller.mu.Lock()
		at := p.cursors.get("a.test", "http://a.test")
		p.Puller.mu.Unlock()
		if at != last {
			t.Errorf("30: the watermark is %v, want %v", at, last)
		}
		a.publish("three.test", "3", time.Hour)
		rounds(2)
		if here.stored != 3 || n.pulls.Load() != 2 {
			t.Errorf("29, 31: %d stored with %d pulls", here.stored, n.pulls.Load())
		}
		for i := range 5 {
			b.publish("many.test", fmt.Sprint(i), time.Hour)
		}
		r.set("a.test", "b.test")
		rounds(2)
		for i := range 5 {
			if _, ok := here.live()[fmt.Sprintf("many.test %d", i)]; !ok {
				t.Errorf("34, 45: value %d of one name is not here", i)
			}
		}
		if s := p.one(t, "b.test"); !s.CaughtUp || s.Stored != 5 || s.LastError != "" || s.LagRows != 0 || s.BytesIn == 0 {
			t.Errorf("%+v", s)
		}
		p.stop()
		p.stop()
		calls := n.calls.Load()
		rounds(3)
		if n.calls.Load() != calls {
			t.Error("38: it goes on after its end")
		}
	})
}

// TestPullerNative: nothing is asked of a peer that speaks native replication, or may; once it is known to speak v1 alone, it is at once.
func TestPullerNative(t *testing.T) {
	bubble(t, func(t *testing.T) {
		peer, here := newFeedStore(), newFeedStore()
		n := &fabric{t: t, nodes: map[string]http.Handler{"a.test": served(peer)}}
		p := pullingFrom(t, t.TempDir(), here, n, newRoster())
		peer.publish("one.test", "1", time.Hour)
		p.native.Store(2)
		p.roster.set("a.test")
		rounds(2)
		if n.calls.Load() != 0 {
			t.Error("a peer is asked of which it is not known what it speaks")
		}
		p.native.Store(0)
		time.Sleep(2 * retryPause)
		synctest.Wait()
		equalStores(t, here, peer)
		p.native.Store(1)
		calls := n.calls.Load()
		rounds(2)
		if n.calls.Load() != calls {
			t.Error("a peer is asked that speaks native replication")
		}
	})
}

// TestPages: 39, 41 and 44: more than a page, more than a pull, one millisecond, all at one name; and without waiting between them.
func TestPages(t *testing.T) {
	bubble(t, func(t *testing.T) {
		peer, here := newFeedStore(), newFeedStore()
		for i := range 2500 {
			peer.publish(fmt.Sprintf("n%d.test", i), "v", time.Hour)
		}
		peer.stampMs = now() + 10_000
		for i := range 1200 {
			peer.publish(fmt.Sprintf("m%d.test", i), "v", time.Hour)
		}
		for i := range 1500 {
			peer.publish("all.test", fmt.Sprint(i), time.Hour)
		}
		n := &fabric{t: t, nodes: map[string]http.Handler{"a.test": served(peer)}}
		pullingFrom(t, t.TempDir(), here, n, newRoster("a.test"))
		rounds(1)
		equalStores(t, here, peer)
		if here.stored != 5200 {
			t.Errorf("%d stored", here.stored)
		}
		rounds(5)
		if here.stored != 5200 {
			t.Errorf("%d stored after quiet rounds", here.stored)
		}
	})
}

// TestRefresh: 40, and cluster.md 15 W11 and W14: what is longer by less than clocks differ is no refresh; a life is cut to what is allowed here.
func TestRefresh(t *testing.T) {
	bubble(t, func(t *testing.T) {
		peer, here := newFeedStore(), newFeedStore()
		n := &fabric{t: t, nodes: map[string]http.Handler{"a.test": served(peer)}}
		pullingFrom(t, t.TempDir(), here, n, newRoster("a.test"))
		peer.publish("r.test", "v", 10*time.Minute)
		rounds(4)
		pulls := n.pulls.Load()
		if pulls != 1 {
			t.Fatalf("%d pulls of one record", pulls)
		}
		peer.publish("r.test", "v", time.Hour)
		rounds(3)
		if n.pulls.Load() != pulls+1 {
			t.Errorf("%d pulls for one refresh", n.pulls.Load()-pulls)
		}
		if got, want := here.live()["r.test v"], peer.live()["r.test v"]; got < want-2 || got > want {
			t.Errorf("%d s left, %d at the peer", got, want)
		}
		peer.publish("long.test", "v", 400*24*time.Hour)
		rounds(1)
		if got := here.live()["long.test v"]; got > 86400 || got < 86000 {
			t.Errorf("%d s left of what may live a day", got)
		}
		rounds(10)
		if n.pulls.Load() > pulls+3 {
			t.Errorf("%d pulls: a life that is cut here is asked for again and again", n.pulls.Load()-pulls)
		}
	})
}

// TestRing is X7: in a ring of five nodes with two seconds each way and nobody who publishes again, no life grows.
func TestRing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const nodes = 5
		n := &fabric{t: t, nodes: map[string]http.Handler{}, oneWay: 2 * time.Second}
		var stores []*feedStore
		for i := range nodes {
			s := newFeedStore()
			stores = append(stores, s)
			n.nodes[fmt.Sprintf("n%d.test", i)] = served(s)
		}
		for i, s := range stores {
			pullingFrom(t, t.TempDir(), s, n, newRoster(fmt.Sprintf("n%d.test", (i+nodes-1)%nodes)))
		}
		stores[0].publish("ring.test", "v", 30*time.Minute)
		end := time.Now().Add(30 * time.Minute)
		time.Sleep(25 * time.Minute)
		synctest.Wait()
		for i, s := range stores {
			left := time.Until(end).Seconds()
			if got := float64(s.live()["ring.test v"]); got > left+6 || got < left-12 {
				t.Errorf("node %d: %.0f s left, %.0f at the origin", i, got, left)
			}
		}
		time.Sleep(5*time.Minute + 10*time.Second)
		synctest.Wait()
		for i, s := range stores {
			if len(s.live()) != 0 {
				t.Errorf("node %d holds it beyond its end", i)
			}
		}
	})
}

// TestDeleted is X6: a pair that was deleted here does not come back from a peer, not by a restart nor by a relay; published anew, it does.
func TestDeleted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		peer, here := newFeedStore(), newFeedStore()
		n := &fabric{t: t, nodes: map[string]http.Handler{"a.test": served(peer)}}
		dir := t.TempDir()
		p := pullingFrom(t, dir, here, n, newRoster("a.test"))
		peer.publish("d.test", "v", time.Hour)
		rounds(1)
		here.delete("d.test", "v")
		rounds(2)
		p.stop()
		p = pullingFrom(t, t.TempDir(), here, n, newRoster("a.test")) // without its cursors
		rounds(2)
		relay := newFeedStore()
		relay.mu.Lock() // it took the old copy over just now, with the life that was left
		relay.put(wire.MustName("d.test"), []byte("v"), now(), now()+peer.live()["d.test v"]*1000, false)
		relay.mu.Unlock()
		n.mu.Lock()
		n.nodes["b.test"] = served(relay)
		n.mu.Unlock()
		p.roster.set("a.test", "b.test")
		rounds(3)
		if len(here.live()) != 0 {
			t.Fatal("what was deleted is back")
		}
		time.Sleep(time.Minute)
		peer.publish("d.test", "v", 2*time.Hour)
		rounds(2)
		if len(here.live()) != 1 {
			t.Error("what was published again is not taken")
		}
	})
}

// TestAway: without the data plane no cursor moves; with it, all is there.
func TestAway(t *testing.T) {
	bubble(t, func(t *testing.T) {
		peer, here := newFeedStore(), newFeedStore()
		here.away = true
		for i := range 50 {
			peer.publish(fmt.Sprintf("n%d.test", i), "v", time.Hour)
		}
		n := &fabric{t: t, nodes: map[string]http.Handler{"a.test": served(peer)}}
		p := pullingFrom(t, t.TempDir(), here, n, newRoster("a.test"))
		rounds(2)
		if s := p.one(t, "a.test"); s.WatermarkMs != 0 || s.CaughtUp {
			t.Errorf("%+v", s)
		}
		here.mu.Lock()
		here.away = false
		here.mu.Unlock()
		rounds(1)
		equalStores(t, here, peer)
	})
}

// TestSwap: 54 and 59: a peer that stays keeps its watermark, one that leaves loses it, a new one begins at the start; and cursors outlive the process.
func TestSwap(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b, here := newFeedStore(), newFeedStore(), newFeedStore()
		a.publish("a.test", "v", time.Hour)
		b.publish("b.test", "v", time.Hour)
		n := &fabric{t: t, nodes: map[string]http.Handler{"a.test": served(a), "b.test": served(b)}}
		dir := t.TempDir()
		p := pullingFrom(t, dir, here, n, newRoster("a.test", "b.test"))
		rounds(1)
		marks := func() (int64, int64) {
			p.Puller.mu.Lock()
			defer p.Puller.mu.Unlock()
			return p.cursors.get("a.test", "http://a.test").TsMs, p.cursors.get("b.test", "http://b.test").TsMs
		}
		if x, y := marks(); x == 0 || y == 0 {
			t.Fatal(x, y)
		}
		p.roster.set("a.test")
		rounds(1)
		if x, y := marks(); x == 0 || y != 0 || len(p.Status()) != 1 {
			t.Error(x, y)
		}
		p.stop()
		p = pullingFrom(t, dir, here, n, newRoster("a.test"))
		synctest.Wait()
		if s := p.one(t, "a.test"); s.WatermarkMs == 0 {
			t.Error("the watermark is lost with the process")
		}
		if at := p.cursors.get("a.test", "http://elsewhere.test"); at != (Cursor{}) {
			t.Error("a peer at another URL goes on where the old one was")
		}
	})
}

// TestGossip: 55, 56, 61: the manifest is asked for if there is a key and a name to check it with.
func TestGossip(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var asked atomic.Int64
		answer := atomic.Pointer[string]{}
		m := http.NewServeMux()
		m.Handle("/", served(newFeedStore()))
		m.HandleFunc("/v1/sync/cluster-manifest", func(w http.ResponseWriter, _ *http.Request) {
			asked.Add(1)
			if text := answer.Load(); text != nil {
				fmt.Fprintf(w, `{"wire":%q,"seq":1,"exp":2,"cluster_name":"x"}`, *text)
				return
			}
			w.WriteHeader(http.StatusNoContent)
		})
		n := &fabric{t: t, nodes: map[string]http.Handler{"a.test": m}}
		p := pullingFrom(t, t.TempDir(), newFeedStore(), n, newRoster("a.test"))
		change := func(operator *[32]byte, base string) {
			p.mu.Lock()
			p.set.Operator, p.base = operator, base
			p.mu.Unlock()
			p.Wake()
			rounds(2)
		}
		change(nil, "mesh.test")
		change(&[32]byte{1}, "")
		if asked.Load() != 0 {
			t.Error("55, 56: asked without key or name")
		}
		change(&[32]byte{1}, "mesh.test")
		if asked.Load() == 0 || len(p.inst.texts) != 0 {
			t.Error("61:", asked.Load(), p.inst.texts)
		}
		text := "v=dmp1;t=cluster;AAAA"
		answer.Store(&text)
		rounds(1)
		if len(p.inst.texts) == 0 || p.inst.texts[0] != "peer a.test: "+text {
			t.Error(p.inst.texts)
		}
	})
}

// raw is a peer that says what a test writes. Values are by name; the digest lists them unless rows are given.
type raw struct {
	rows   []string            // of the digest, JSON
	values map[string][]string // JSON strings
	ttl    string
	digest func(w http.ResponseWriter, r *http.Request) bool
	pull   func(w http.ResponseWriter, names []string) bool
	most   int64 // largest body of a pull, 0: any
}

func (p *raw) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/v1/sync/digest":
		if p.digest != nil && p.digest(w, r) {
			return
		}
		after, err := ParseCursor(r.URL.Query().Get("cursor"))
		if err != nil {
			w.WriteHeader(400)
			return
		}
		var out []string
		for _, row := range p.rows {
			if e, ok := readEntry(json.RawMessage(row), 1<<62); !ok || e.cursor.Compare(after) > 0 {
				out = append(out, row)
			}
		}
		more := len(out) > 1000
		fmt.Fprintf(w, `{"records": [%s], "has_more": %v, "next_cursor": "%d:zzz:"}`, strings.Join(out[:min(1000, len(out))], ", "), more, now()+30_000)
	case "/v1/sync/pull":
		b, _ := io.ReadAll(r.Body)
		var ask struct{ Names []string }
		if err := json.Unmarshal(b, &ask); err != nil || len(ask.Names) > 256 || p.most > 0 && int64(len(b)) > p.most {
			w.WriteHeader(400)
			return
		}
		if p.pull != nil && p.pull(w, ask.Names) {
			return
		}
		var out []string
		ttl := p.ttl
		if ttl == "" {
			ttl = "3600"
		}
		for _, name := range ask.Names {
			for _, v := range p.values[name] {
				out = append(out, fmt.Sprintf(`{"name": %q, "value": %s, "ttl": %s}`, name, v, ttl))
			}
		}
		fmt.Fprintf(w, `{"records": [%s]}`, strings.Join(out, ", "))
	default:
		w.WriteHeader(404)
	}
}

func hashText(value string) string {
	h := record.HashOf(record.AppendRDATA(nil, []byte(value)))
	return hex.EncodeToString(h[:])
}

func (p *raw) add(name, value string, tsMs int64) {
	if p.values == nil {
		p.values = map[string][]string{}
	}
	b, _ := json.Marshal(value)
	p.rows = append(p.rows, fmt.Sprintf(`{"name": %q, "hash": %q, "ts": %d, "ttl": 3600}`, name, hashText(value), tsMs))
	p.values[name] = append(p.values[name], string(b))
}

// TestHostilePeer: 32, 33, 35, 42, 43, 46, X8, X11: whatever a peer says, nothing is stored of it but what is good, the watermark passes nothing
// without a decision, and the loop lives on: the good peer beside it is pulled from.
func TestHostilePeer(t *testing.T) {
	good := func(p *raw) { p.add("good.test", "text", 100) }
	for _, x := range []struct {
		what     string
		peer     func(p *raw)
		want     string // what is here then, names and values
		moved    bool   // the watermark
		rejected bool
		failed   bool
	}{
		{"32: a name that was not asked for", func(p *raw) {
			good(p)
			p.pull = func(w http.ResponseWriter, _ []string) bool {
				fmt.Fprint(w, `{"records":[{"name":"evil.test","value":"x","ttl":3600},{"name":"good.test","value":"text","ttl":3600}]}`)
				return true
			}
		}, "good.test text", true, true, false},
		{"33: a forged signature", func(p *raw) {
			p.add("id-"+strings.Repeat("a", 16)+".test", "v=dmp1;t=identity;d="+strings.Repeat("QUFB", 64), 100)
		}, "", true, true, false},
		{"foreign text at a reserved name", func(p *raw) { p.add("slot-1.mb-aaaaaaaaaaaa.test", "hello", 100) }, "", true, true, false},
		{"W18: a prekey in a slot", func(p *raw) {
			p.add("slot-1.mb-aaaaaaaaaaaa.test", "v=dmp1;t=prekey;d="+strings.Repeat("QUFB", 64), 100)
		}, "", true, true, false},
		{"an unknown type", func(p *raw) { p.add("x.test", "v=dmp9;t=new;", 100) }, "", true, true, false},
		{"an empty value", func(p *raw) { p.add("x.test", "", 100) }, "", true, true, false},
		{"a value that is too long", func(p *raw) { p.add("x.test", strings.Repeat("x", 2049), 100) }, "", true, true, false},
		{"35: 403", func(p *raw) {
			p.digest = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(403); return true }
		}, "", false, false, true},
		{"500 to the pull", func(p *raw) {
			good(p)
			p.pull = func(w http.ResponseWriter, _ []string) bool { w.WriteHeader(500); return true }
		}, "", false, false, true},
		{"a redirect", func(p *raw) {
			p.digest = func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Location", "http://elsewhere.test/v1/sync/digest")
				w.WriteHeader(302)
				return true
			}
		}, "", false, false, true},
		{"42: a stamp far ahead", func(p *raw) {
			p.rows = append(p.rows, fmt.Sprintf(`{"name": "x.test", "hash": %q, "ts": %d, "ttl": 60}`, hashText("x"), int64(1)<<61))
		}, "", false, true, false},
		{"43: a forged next_cursor", good, "good.test text", true, false, false},
		{"46: another value than was advertised", func(p *raw) { good(p); p.values["good.test"] = []string{`"other"`} }, "", false, false, false},
		{"bad entries before a good one", func(p *raw) {
			h := hashText("x")
			p.rows = []string{`7`, `null`, `{}`, `[]`, `"x"`, `{"name": 5, "hash": "` + h + `", "ts": 1, "ttl": 1}`, `{"name": "b c", "hash": "` + h + `", "ts": 1, "ttl": 1}`,
				`{"name": "x.test", "hash": "` + h[:63] + `", "ts": 1, "ttl": 1}`, `{"name": "x.test", "hash": "` + strings.ToUpper(h) + `A", "ts": 1, "ttl": 1}`,
				`{"name": "x.test", "hash": "` + h + `", "ts": true, "ttl": 1}`, `{"name": "x.test", "hash": "` + h + `", "ts": 1.5, "ttl": 1}`, `{"name": "x.test", "hash": "` + h + `", "ts": 1e3, "ttl": 1}`,
				`{"name": "x.test", "hash": "` + h + `", "ts": -1, "ttl": 1}`, `{"name": "x.test", "hash": "` + h + `", "ts": 1}`, `{"name": "x.test", "hash": "` + h + `", "ts": 1, "ttl": true}`,
				`{"name": "x.test", "hash": "` + h + `", "ts": 1, "ttl": 2147483649}`, `{"name": "x.test", "hash": "` + h + `", "ts": 99999999999999999999, "ttl": 1}`,
				`{"name": "` + strings.Repeat("a", 254) + `", "hash": "` + h + `", "ts": 1, "ttl": 1}`}
			good(p)
		}, "good.test text", true, true, false},
		{"a name of labels that are none", func(p *raw) { p.add("a..b.test", "x", 50); p.add(strings.Repeat("a", 64)+".test", "x", 60); good(p) }, "good.test text", true, true, false},
		{"lives that are none", func(p *raw) { good(p); p.ttl = "0" }, "", false, false, false},
		{"a life of text", func(p *raw) { good(p); p.ttl = `"60"` }, "", false, false, false},
		{"a lone surrogate", func(p *raw) { good(p); p.values["good.test"] = []string{`"\ud800"`, `"text"`} }, "good.test text", true, false, false},
		{"no JSON", func(p *raw) {
			p.digest = func(w http.ResponseWriter, _ *http.Request) bool { fmt.Fprint(w, "<html>"); return true }
		}, "", false, false, true},
		{"an array", func(p *raw) {
			p.digest = func(w http.ResponseWriter, _ *http.Request) bool { fmt.Fprint(w, "[1]"); return true }
		}, "", false, false, true},
		{"no list", func(p *raw) {
			p.digest = func(w http.ResponseWriter, _ *http.Request) bool { fmt.Fprint(w, `{"records":{}}`); return true }
		}, "", false, false, true},
		{"a pull that is an array", func(p *raw) {
			good(p)
			p.pull = func(w http.ResponseWriter, _ []string) bool { fmt.Fprint(w, `[]`); return true }
		}, "", false, false, true},
		{"a pull that is cut", func(p *raw) {
			good(p)
			p.pull = func(w http.ResponseWriter, _ []string) bool {
				fmt.Fprint(w, `{"records":[{"name":"good.test","value":"te`)
				return true
			}
		}, "", false, false, true},
		{"an endless digest", func(p *raw) {
			p.digest = func(w http.ResponseWriter, _ *http.Request) bool {
				io.WriteString(w, `{"records":[`+strings.Repeat(" ", digestBodyMax+1)+`]}`)
				return true
			}
		}, "", false, false, true},
		{"an endless manifest of more", func(p *raw) {
			p.digest = func(w http.ResponseWriter, _ *http.Request) bool {
				fmt.Fprintf(w, `{"records":[{"name":"good.test","hash":%q,"ts":100,"ttl":60}],"has_more":true}`, hashText("text"))
				return true
			}
			p.values = map[string][]string{"good.test": {`"text"`}}
		}, "good.test text", true, false, true},
		{"more, and nothing", func(p *raw) {
			p.digest = func(w http.ResponseWriter, _ *http.Request) bool {
				fmt.Fprint(w, `{"records":[],"has_more":true}`)
				return true
			}
		}, "", false, false, true},
		{"204", func(p *raw) {
			p.digest = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(204); return true }
		}, "", false, false, true},
	} {
		t.Run(x.what, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				bad := &raw{}
				x.peer(bad)
				friend, here := newFeedStore(), newFeedStore()
				friend.publish("friend.test", "hello", time.Hour)
				var asked atomic.Int64
				n := &fabric{t: t, nodes: map[string]http.Handler{"friend.test": served(friend), "bad.test": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					asked.Add(1)
					bad.ServeHTTP(w, r)
				})}}
				p := pullingFrom(t, t.TempDir(), here, n, newRoster("bad.test", "friend.test"))
				for asked.Load() == 0 { // the first round
					time.Sleep(10 * time.Millisecond)
					synctest.Wait()
				}
				first := p.one(t, "bad.test")
				if got := first.WatermarkMs != 0; got != x.moved {
					t.Errorf("the watermark is %d", first.WatermarkMs)
				}
				rounds(8)
				all := here.live()
				if _, ok := all["friend.test hello"]; !ok {
					t.Error("the good peer is not pulled from")
				}
				delete(all, "friend.test hello")
				if got := strings.Join(slices.Sorted(maps.Keys(all)), ","); got != x.want {
					t.Errorf("here is %q, want %q", got, x.want)
				}
				s := p.one(t, "bad.test")
				if (s.LastError != "") != x.failed || s.Rejected.Total() == 0 && x.rejected {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

// TestQuarantine is X1 and X2: what is refused holds nothing up, is remembered, and is judged anew under another key.
func TestQuarantine(t *testing.T) {
	bubble(t, func(t *testing.T) {
		key := ed25519.NewKeyFromSeed([]byte(strings.Repeat("k", 32)))
		c := record.Cluster{Name: "mesh.test", Seq: 1, ExpSec: uint64(now()/1000) + 86400*30, Nodes: []record.ClusterNode{{ID: "a", HTTP: "http://a.test"}}}
		text, r := c.Append(nil, key)
		if r != record.Accepted {
			t.Fatal(r)
		}
		peer := &raw{}
		peer.add("_dnsmesh-heartbeat.test", "v=dmp1;t=heartbeat;AAAA", 1)
		peer.add("cluster.mesh.test", string(text), 2)
		for i := range 1500 {
			peer.add(fmt.Sprintf("n%04d.test", i), "v", int64(10+i))
		}
		here := newFeedStore()
		n := &fabric{t: t, nodes: map[string]http.Handler{"a.test": peer}}
		p := pullingFrom(t, t.TempDir(), here, n, newRoster("a.test"))
		p.mu.Lock()
		p.set.Operator = &[32]byte{9}
		p.mu.Unlock()
		p.Wake()
		rounds(2)
		if s := p.one(t, "a.test"); len(here.live()) != 1500 || s.Quarantined != 2 || !s.CaughtUp {
			t.Fatalf("%d records, %+v", len(here.live()), s)
		}
		pulls := n.pulls.Load()
		rounds(5)
		if n.pulls.Load() != pulls {
			t.Error("what was refused is asked for again and again")
		}
		p.mu.Lock()
		p.set.Operator = (*[32]byte)(key.Public().(ed25519.PublicKey))
		p.mu.Unlock()
		p.Wake()
		rounds(2)
		if s := p.one(t, "a.test"); len(here.live()) != 1501 || s.Quarantined != 1 {
			t.Errorf("%d records, %+v", len(here.live()), s)
		}
		// Its life is the signed one, beyond what others get.
		if left := here.live()["cluster.mesh.test "+string(text)]; left < 3000 {
			t.Errorf("%d s left", left)
		}
	})
}

// TestSlices is X3: 300 names of 73 bytes come from a server that takes bodies of 16 KiB; what does not come three times is taken for absent.
func TestSlices(t *testing.T) {
	bubble(t, func(t *testing.T) {
		peer := &raw{most: 16384}
		for i := range 300 {
			peer.add(fmt.Sprintf("%s%04d.test", strings.Repeat("a.", 32), i), "v", int64(10+i))
		}
		peer.add("gone.test", "v", 400)
		delete(peer.values, "gone.test")
		here := newFeedStore()
		n := &fabric{t: t, nodes: map[string]http.Handler{"a.test": peer}}
		p := pullingFrom(t, t.TempDir(), here, n, newRoster("a.test"))
		rounds(3)
		if s := p.one(t, "a.test"); len(here.live()) != 300 || n.bodies.Load() > 16384 || s.Quarantined != 1 || !s.CaughtUp {
			t.Errorf("%d records, bodies up to %d bytes, %+v", len(here.live()), n.bodies.Load(), s)
		}
	})
}

// TestFull: what the store has no room for is a decision as well.
func TestFull(t *testing.T) {
	bubble(t, func(t *testing.T) {
		peer, here := newFeedStore(), newFeedStore()
		here.refuse = func(o *Offer) string {
			if strings.HasPrefix(wire.Text(o.Name), "full") {
				return "rrset full"
			}
			return ""
		}
		peer.publish("full.test", "v", time.Hour)
		peer.publish("room.test", "v", time.Hour)
		n := &fabric{t: t, nodes: map[string]http.Handler{"a.test": served(peer)}}
		p := pullingFrom(t, t.TempDir(), here, n, newRoster("a.test"))
		rounds(1)
		if s := p.one(t, "a.test"); len(here.live()) != 1 || s.Quarantined != 1 || !s.CaughtUp {
			t.Errorf("%v %+v", here.live(), s)
		}
	})
}

// TestBackoff: a peer that is away is asked less and less, and at once when it is back for a while (cluster.md 15, W16).
func TestBackoff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		here := newFeedStore()
		n := &fabric{t: t, nodes: map[string]http.Handler{}}
		p := pullingFrom(t, t.TempDir(), here, n, newRoster("a.test"))
		time.Sleep(30 * time.Minute)
		if calls := n.calls.Load(); calls < 20 || calls > 400 {
			t.Errorf("%d calls in half an hour", calls)
		}
		if s := p.one(t, "a.test"); s.LastError == "" || s.BackoffSec != pullBackoffMax.Seconds() || s.Errors == 0 {
			t.Errorf("%+v", s)
		}
		peer := newFeedStore()
		peer.publish("x.test", "v", time.Hour)
		n.mu.Lock()
		n.nodes["a.test"] = served(peer)
		n.mu.Unlock()
		time.Sleep(2 * pullBackoffMax)
		synctest.Wait()
		if s := p.one(t, "a.test"); len(here.live()) != 1 || s.LastError != "" {
			t.Errorf("%+v", s)
		}
	})
}

// TestPastManifest: a slot manifest that ended is not given a life anew, but for some minutes in which clocks may differ (cluster.md 15, W18).
func TestPastManifest(t *testing.T) {
	b, err := os.ReadFile("../../internal/record/testdata/slot_manifest.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Cases []struct{ Expected, Wire string }
	}
	if err := json.Unmarshal(b, &vectors); err != nil || len(vectors.Cases) == 0 || vectors.Cases[0].Expected != "accept" {
		t.Fatalf("%v: %d cases", err, len(vectors.Cases))
	}
	value := vectors.Cases[0].Wire
	var m record.Manifest
	if r := m.Verify([]byte(value), 1_900_000_000); r != record.Accepted {
		t.Fatal(r)
	}
	for late, taken := range map[int64]bool{-1: true, 0: true, 300: true, 301: false, 86_400: false} {
		one := &puller{p: &Puller{o: PullerOptions{}, verify: make(chan struct{}, 1)}, client: &client{}}
		w := &want{name: wire.MustName("slot-1.mb-0123456789ab.test")}
		_, ok := one.judge(&record.Verifier{}, &Settings{}, w, value, 3600, (int64(m.ExpSec)+late)*1000, 0)
		if s := one.status(); ok != taken || (s.Rejected[ReasonTime] == 1) == taken || w.done == taken {
			t.Errorf("%d s after its end: taken %v, %+v", late, ok, s)
		}
	}
}
