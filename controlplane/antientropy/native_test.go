package antientropy

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// TestFrames: what is written is read, whatever its size, packed or padded; and every frame that is cut, or altered in its head, is an error
// and nothing else.
func TestFrames(t *testing.T) {
	enc, _ := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	dec, _ := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(bodyMax))
	rng := rand.New(rand.NewPCG(1, 1))
	for _, size := range []int{0, 1, 255, 256, 257, 5000, bodyMax} {
		for _, pad := range []bool{false, true} {
			body := bytes.Repeat([]byte("slot-0."), size/7+1)[:size]
			for i := range body {
				if rng.IntN(4) == 0 {
					body[i] = byte(rng.Uint32())
				}
			}
			b := appendFrame(nil, enc, frameRows, body, pad)
			if pad && len(b)&(len(b)-1) != 0 {
				t.Errorf("a padded frame of %d bytes", len(b))
			}
			in := &frameReader{r: bytes.NewReader(b), dec: dec}
			kind, got, err := in.next()
			if err != nil || kind != frameRows || !bytes.Equal(got, body) || in.n != int64(len(b)) {
				t.Fatalf("%d bytes: %d, %d bytes, %v", size, kind, len(got), err)
			}
			if _, _, err := in.next(); err != io.EOF {
				t.Fatalf("behind the end: %v", err)
			}
			if _, _, err := (&frameReader{r: bytes.NewReader(b[:len(b)-1]), dec: dec}).next(); err == nil {
				t.Fatalf("a frame of %d bytes that is cut", size)
			}
			for range 20 {
				c := bytes.Clone(b)
				c[rng.IntN(frameHead)] ^= byte(1 << rng.IntN(8))
				_, got, _ := (&frameReader{r: bytes.NewReader(c), dec: dec}).next()
				if len(got) > bodyMax {
					t.Fatalf("%d bytes", len(got))
				}
			}
		}
	}
	bomb := appendFrame(nil, enc, frameRows, make([]byte, bodyMax+1), false)
	if _, _, err := (&frameReader{r: bytes.NewReader(bomb), dec: dec}).next(); err == nil {
		t.Error("a frame that unpacks to more than it may")
	}
	if bomb = appendFrame(nil, enc, frameRows, make([]byte, 1<<30), false); len(bomb) > bodyMax {
		t.Fatalf("a bomb of %d bytes shows nothing", len(bomb))
	}
	if _, _, err := (&frameReader{r: bytes.NewReader(bomb), dec: dec}).next(); err == nil {
		t.Error("a bomb")
	}
}

// TestGates: who may ask, and what is said to others.
func TestGates(t *testing.T) {
	w, nodes := newNetwork(t, 1, 1)
	_ = w
	node := nodes[0]
	node.peers = nil
	node.store.publish("\x01a\x04test\x00", "1", time.Hour)
	node.start(t)
	defer node.stop()
	for !node.native.Status().Ready {
		time.Sleep(time.Millisecond)
	}
	call := func(id, header string, change func(*http.Request)) (int, string) {
		r := httptest.NewRequest(http.MethodGet, "https://node-0/v2/sync/hello", nil)
		r.Header.Set(nodeHeader, id)
		r.Header.Set("Authorization", header)
		if change != nil {
			change(r)
		}
		rec := httptest.NewRecorder()
		node.native.Handler().ServeHTTP(rec, r)
		return rec.Code, rec.Body.String()
	}
	good := "Bearer " + nodeToken("the token", "node-9")
	for _, c := range []struct {
		what, id, header string
		change           func(*http.Request)
		want             int
	}{
		{"the node's own", "node-9", good, nil, 200},
		{"another node's", "node-8", good, nil, 403},
		{"the cluster's token", "node-9", "Bearer the token", nil, 403},
		{"none", "node-9", "", nil, 403},
		{"no node", "", "Bearer " + nodeToken("the token", ""), nil, 403},
		{"a node that is none", "node 9", "Bearer " + nodeToken("the token", "node 9"), nil, 403},
		{"in clear", "node-9", good, func(r *http.Request) { r.TLS = nil }, 404},
		{"another path", "node-9", good, func(r *http.Request) { r.URL.Path = "/v2/sync/helo" }, 404},
		{"another method", "node-9", good, func(r *http.Request) { r.Method = http.MethodPost }, 405},
	} {
		if got, body := call(c.id, c.header, c.change); got != c.want {
			t.Errorf("%s: %d, want %d: %s", c.what, got, c.want, body)
		}
	}
	for i := range 2 * callersMax {
		id := fmt.Sprint("stranger-", i)
		call(id, "Bearer "+nodeToken("the token", id), nil)
	}
	if got, _ := call("one-more", "Bearer "+nodeToken("the token", "one-more"), nil); got != http.StatusTooManyRequests {
		t.Errorf("more nodes than there can be: %d", got)
	}
	if got, _ := call("node-9", good, nil); got != 200 {
		t.Errorf("one that was there before: %d", got)
	}
	node.native.o.Previous = []string{"older", "the older token"}
	if got, _ := call("node-9", "Bearer "+nodeToken("the older token", "node-9"), nil); got != 200 {
		t.Errorf("the token before: %d", got)
	}
	if o := node.native.o; func() error { o.MaxTTLSec = 0; _, err := NewNative(o); return err }() == nil {
		t.Error("no longest life")
	}
	if s := node.native.Status(); s.Forbidden != 5 {
		t.Errorf("%d refused, want 5", s.Forbidden)
	}
}

// TestCheck: what is refused of a row, whoever sends it.
func TestCheck(t *testing.T) {
	_, nodes := newNetwork(t, 1, 1)
	node := nodes[0]
	node.peers = nil
	node.start(t)
	defer node.stop()
	const now = int64(1_800_000_000_000)
	row := func(value string, change func(r *record.Row)) *record.Row {
		rdata := record.AppendRDATA(nil, []byte(value))
		r := &record.Row{Name: []byte("\x01a\x04test\x00"), RDATA: rdata, Hash: record.HashOf(rdata), Add: record.HLCAt(now - 1000), ExpMs: now + 60_000, Flags: 0xFF}
		if change != nil {
			change(r)
		}
		return r
	}
	node.native.o.ValueMax = 1000
	for _, c := range []struct {
		what string
		row  *record.Row
		want string
	}{
		{"a text", row("1", nil), ""},
		{"a delete", row("1", func(r *record.Row) { r.RDATA, r.Del = nil, r.Add+1 }), ""},
		{"another value than the hash says", row("1", func(r *record.Row) { r.Hash[31]++ }), "a hash that is not the value's"},
		{"a publish from the future", row("1", func(r *record.Row) { r.Add = record.HLCAt(now + 60_001) }), "a stamp far ahead of our clock"},
		{"a delete from the future", row("1", func(r *record.Row) { r.RDATA, r.Del = nil, record.HLCAt(now+60_001) }), "a stamp far ahead of our clock"},
		{"immortal", row("1", func(r *record.Row) { r.ExpMs = 1 << 60 }), "a life that is too long"},
		{"an immortal refresh", row("1", func(r *record.Row) { r.RDATA, r.ExpMs = nil, 1<<60 }), "a life that is too long"},
		{"an immortal manifest, no key pinned", row("v=dmp1;t=cluster;AAAA", func(r *record.Row) { r.ExpMs = 1 << 60 }), "a life that is too long"},
		{"a long value", row(strings.Repeat("x", 1001), nil), "a value that is too long"},
		{"an unsigned identity", row("v=dmp1;t=identity;d=AAAA", func(r *record.Row) { r.Name = wire.MustName("id-aaaa.test") }), record.BadLength.Error()},
		{"an unknown type", row("v=dmp1;t=heartbeat;d=AAAA", nil), record.BadType.Error()},
		{"an identity in a slot", row("v=dmp1;t=identity;d=AAAA", func(r *record.Row) { r.Name = wire.MustName("slot-1.mb-aaaaaaaaaaaa.test") }), record.BadOwner.Error()},
		{"a text where DMP's are", row("1", func(r *record.Row) { r.Name = []byte("\x07cluster\x04test\x00") }), record.BadOwner.Error()},
	} {
		if _, got := node.native.check(c.row, now); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
		if c.want == "" && c.row.Flags != record.FlagCapExempt {
			t.Errorf("%s: flags %x", c.what, c.row.Flags)
		}
	}
	// Such a row is not told to peers, and does not count in the sums.
	for name, want := range map[string]bool{"id-aaaa.test": true, "dmp.test": true, "slot-1.mb-aaaaaaaaaaaa.test": false, "x.test": false} {
		if got := travels(row("v=dmp1;t=identity;d=AAAA", func(r *record.Row) { r.Name = wire.MustName(name) })); got != want {
			t.Errorf("an identity at %s travels: %v", name, got)
		}
	}
}

// hostile serves what a node that has the cluster's token, and means harm, may serve.
type hostile struct {
	hello    func(w http.ResponseWriter, h helloAnswer)
	feed     func(o *out, r *http.Request)
	summary  func(cut int64, asks []ask) []byte
	fetch    func(o *out, ids []byte)
	snapshot func(o *out)
}

func (h *hostile) handler(victim *simNode) http.Handler {
	mux := http.NewServeMux()
	stream := func(w http.ResponseWriter) *out {
		o := victim.native.stream(w, &caller{})
		return o
	}
	mux.HandleFunc("/v2/sync/hello", func(w http.ResponseWriter, r *http.Request) {
		a := victim.native.hello()
		a.Node, a.Epoch, a.LSN = "evil", strings.Repeat("e", 32), 1000
		if h.hello != nil {
			h.hello(w, a)
			return
		}
		_ = json.NewEncoder(w).Encode(a)
	})
	mux.HandleFunc("/v2/sync/feed", func(w http.ResponseWriter, r *http.Request) {
		o := stream(w)
		if h.feed != nil {
			h.feed(o, r)
			return
		}
		for {
			m, _ := victim.native.stand()
			m.root.n++ // always another one
			if o.frame(frameMark, m.append(nil)) != nil {
				return
			}
			sleep(r.Context(), markEvery)
		}
	})
	mux.HandleFunc("/v2/sync/summary", func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		cut, asks, _ := readAsks(b)
		if h.summary != nil {
			_, _ = w.Write(h.summary(cut, asks))
			return
		}
		// a list of elements that are not there, at every question
		_, _ = w.Write(listOf(cut, asks, 100))
	})
	mux.HandleFunc("/v2/sync/fetch", func(w http.ResponseWriter, r *http.Request) {
		ids, _ := io.ReadAll(r.Body)
		o := stream(w)
		if h.fetch != nil {
			h.fetch(o, ids)
			return
		}
		o.end(nil, [16]byte{}, 0)
	})
	mux.HandleFunc("/v2/sync/snapshot", func(w http.ResponseWriter, r *http.Request) {
		if o := stream(w); h.snapshot != nil {
			h.snapshot(o)
		}
	})
	return mux
}

func listOf(cut int64, asks []ask, n int) []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(cut))
	for _, a := range asks {
		b = binary.BigEndian.AppendUint32(append(b, answerList), uint32(n))
		for i := range n {
			id := record.ID{byte(a.prefix >> 8), byte(a.prefix), byte(i), byte(i >> 8), 0xEE}
			b = appendState(b, &id, state{add: record.HLCAt(cut - 10_000), expMs: cut + 100_000})
		}
	}
	return b
}

// TestHostile: a peer with the token that lies, sends bombs, streams without end or is silent changes nothing but counters, and holds nobody
// up: what an honest peer publishes arrives.
func TestHostile(t *testing.T) {
	rows := func(o *out, n int, change func(i int, r *record.Row)) []byte {
		nowMs := o.n.o.NowMs()
		b := make([]byte, 8)
		for i := range n {
			rdata := record.AppendRDATA(nil, []byte(fmt.Sprint("evil ", i)))
			r := record.Row{Name: []byte("\x04evil\x04test\x00"), RDATA: rdata, Hash: record.HashOf(rdata), Add: record.HLCAt(nowMs), ExpMs: nowMs + 60_000}
			change(i, &r)
			b = appendRow(b, &r)
		}
		return b
	}
	forever := func(o *out, r *http.Request, frame func() []byte) {
		for o.frame(frameRows, frame()) == nil {
		}
	}
	always := func(kind byte, tail int) func(int64, []ask) []byte {
		return func(cut int64, asks []ask) []byte {
			b := binary.BigEndian.AppendUint64(nil, uint64(cut))
			for range asks {
				b = append(append(b, kind), bytes.Repeat([]byte{0xAB}, tail)...)
			}
			return b
		}
	}
	wrong := func(_ int, r *record.Row) { r.Hash[0]++ }
	for name, h := range map[string]*hostile{
		"hello that is none": {hello: func(w http.ResponseWriter, _ helloAnswer) { _, _ = w.Write([]byte("[1,2]")) }},
		"hello without end": {hello: func(w http.ResponseWriter, _ helloAnswer) {
			for {
				if _, err := w.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		}},
		"hello from the future": {hello: func(w http.ResponseWriter, h helloAnswer) { h.ClockMs += 120_000; _ = json.NewEncoder(w).Encode(h) }},
		"hello that redirects": {hello: func(w http.ResponseWriter, _ helloAnswer) {
			w.Header().Set("Location", "https://node-1/")
			w.WriteHeader(302)
		}},
		"another epoch each time": {hello: func(w http.ResponseWriter, h helloAnswer) {
			h.Epoch = hex.EncodeToString(binary.BigEndian.AppendUint64(make([]byte, 8), rand.Uint64()))
			_ = json.NewEncoder(w).Encode(h)
		}},
		"many elements":        {hello: func(w http.ResponseWriter, h helloAnswer) { h.Count = 1 << 63; _ = json.NewEncoder(w).Encode(h) }, snapshot: func(o *out) { forever(o, nil, func() []byte { return rows(o, 500, wrong) }) }},
		"feed of noise":        {feed: func(o *out, _ *http.Request) { _, _ = o.w.Write(bytes.Repeat([]byte{0xFF}, 1000)) }},
		"feed of wrong hashes": {feed: func(o *out, r *http.Request) { forever(o, r, func() []byte { return rows(o, 100, wrong) }) }},
		"feed of forged records": {feed: func(o *out, r *http.Request) {
			forever(o, r, func() []byte {
				return rows(o, 10, func(i int, r *record.Row) {
					r.Name = wire.MustName("id-aaaa.test")
					r.RDATA = record.AppendRDATA(nil, []byte("v=dmp1;t=identity;d="+strings.Repeat("A", 400+4*i)))
					r.Hash = record.HashOf(r.RDATA)
				})
			})
		}},
		"feed of immortal ones": {feed: func(o *out, r *http.Request) {
			forever(o, r, func() []byte { return rows(o, 10, func(_ int, r *record.Row) { r.ExpMs = 1 << 60 }) })
		}},
		"feed from the future": {feed: func(o *out, r *http.Request) {
			forever(o, r, func() []byte { return rows(o, 10, func(_ int, r *record.Row) { r.Add += record.HLCAt(100_000) }) })
		}},
		"feed of refreshes": {feed: func(o *out, r *http.Request) {
			forever(o, r, func() []byte { return rows(o, 10, func(_ int, r *record.Row) { r.RDATA = nil }) })
		}},
		"feed with a bomb": {feed: func(o *out, _ *http.Request) { _ = o.frame(frameRows, make([]byte, 64<<20)) }},
		"feed of padding": {feed: func(o *out, _ *http.Request) {
			for {
				if _, err := o.w.Write(append([]byte{frameMark, 0, 0, 0, 0, 0, 0, 8, 0, 0}, make([]byte, 512<<10)...)); err != nil {
					return
				}
			}
		}},
		"feed of silence":        {feed: func(_ *out, r *http.Request) { <-r.Context().Done() }},
		"feed of foreign frames": {feed: func(o *out, _ *http.Request) { _ = o.frame(frameEnd, make([]byte, 24)) }},
		"a mark from the future": {feed: func(o *out, _ *http.Request) {
			m, _ := o.n.stand()
			m.clockMs += 120_000
			_ = o.frame(frameMark, m.append(nil))
		}},
		"lists of nothing":       {},
		"children without end":   {summary: always(answerChildren, 16*sumLen)},
		"later for ever":         {summary: always(answerLater, 0)},
		"an answer that is cut":  {summary: func(cut int64, asks []ask) []byte { b := listOf(cut, asks, 10); return b[:len(b)-1] }},
		"an answer that is long": {summary: func(cut int64, asks []ask) []byte { return append(listOf(cut, asks, 10), 0) }},
		"a list that is no list": {summary: func(cut int64, asks []ask) []byte {
			return append(always(answerList, 0)(cut, asks), 0xFF, 0xFF, 0xFF, 0xFF)
		}},
		"another moment":        {summary: func(cut int64, asks []ask) []byte { return listOf(cut+120_000, asks, 10) }},
		"a moment that is none": {summary: func(cut int64, asks []ask) []byte { return listOf(cut+1, asks, 10) }},
		"a huge answer":         {summary: func(cut int64, asks []ask) []byte { return make([]byte, answerCap+10) }},
		"rows not asked for":    {fetch: func(o *out, _ []byte) { _ = o.frame(frameRows, rows(o, 10, func(int, *record.Row) {})) }},
		"a fetch without end": {fetch: func(o *out, _ []byte) {
			for o.frame(frameRows, make([]byte, 8)) == nil {
			}
		}},
		"a fetch that is cut": {fetch: func(*out, []byte) {}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w, nodes := newNetwork(t, 1, 3)
				victim, honest := nodes[0], nodes[1]
				for i := range 50 {
					victim.store.publish(fmt.Sprintf("\x02%02d\x04test\x00", i), "1", time.Hour)
				}
				victim.store.slow = time.Millisecond
				victim.start(t)
				honest.peers = honest.peers[:1]
				honest.start(t)
				w.Attach("node-2", h.handler(victim))
				victim.store.mu.Lock()
				before := maps.Clone(victim.store.rows)
				victim.store.mu.Unlock()
				time.Sleep(2 * time.Minute)
				late := honest.store.publish("\x04late\x04test\x00", "1", time.Hour)
				time.Sleep(time.Minute)
				victim.store.mu.Lock()
				after := maps.Clone(victim.store.rows)
				victim.store.mu.Unlock()
				if got, ok := after[late.ID()]; !ok || got.Add != late.Add {
					t.Error("what the honest peer published did not come")
				}
				delete(after, late.ID())
				for id, r := range after {
					if was, ok := before[id]; !ok || stateOf(&was) != stateOf(&r) {
						t.Errorf("%q is now %+v", r.Name, r)
					}
				}
				if len(after) != len(before) {
					t.Errorf("%d rows, %d before", len(after), len(before))
				}
				var evil NativePeerStatus
				for _, p := range victim.native.Status().Peers {
					if p.ID == "node-2" {
						evil = p
					} else if !p.Converged {
						t.Errorf("not one with the honest peer: %+v", p)
					}
				}
				if evil.Converged || evil.Rejected.Total() == 0 && evil.Errors == 0 {
					t.Errorf("nothing was noticed: %+v", evil)
				}
				victim.stop()
				honest.stop()
				w.Detach("node-2")
			})
		})
	}
}

// TestColdStart: a new node takes the snapshot, then what came since.
func TestColdStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, nodes := newNetwork(t, 1, 3)
		for i := range snapshotMin + 1000 {
			nodes[0].store.publish(fmt.Sprintf("\x05%05d\x04test\x00", i), "1", time.Hour)
		}
		nodes[0].store.delete("\x0500000\x04test\x00", "1")
		nodes[0].store.shorten(1)
		nodes[0].store.publish("\x04late\x04test\x00", "1", time.Hour)
		for _, s := range nodes[:2] {
			s.start(t)
		}
		converge2 := func(nodes []*simNode) {
			for began := time.Now(); ; time.Sleep(time.Second) {
				roots, _ := equal(nodes)
				if roots[0] == roots[len(roots)-1] && strings.HasPrefix(roots[0], "0000000000002af9") {
					return
				}
				if time.Since(began) > 2*time.Minute {
					t.Fatalf("roots %v", roots)
				}
			}
		}
		converge2(nodes[:2])
		if s := nodes[1].native.Status(); s.Cold != 1 || s.Fetched > 10 {
			t.Errorf("%d snapshots, %d fetched", s.Cold, s.Fetched)
		}
		nodes[2].start(t) // two have it, one gives it
		converge(t, nodes)
		if s := nodes[2].native.Status(); s.Cold == 0 {
			t.Errorf("%+v", s)
		}
		for _, s := range nodes {
			s.stop()
		}
	})
}

// TestLegacy: a node without v2, another token or another longest life is the puller's.
func TestLegacy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, nodes := newNetwork(t, 1, 2)
		nodes[0].start(t)
		nodes[1].start(t)
		converge(t, nodes)
		speaks := func(peer, want string) {
			t.Helper()
			native, known := nodes[0].native.Speaks(peer)
			if got := fmt.Sprint(native, known); got != want {
				t.Errorf("%s speaks native, and is known to: %s, want %s", peer, got, want)
			}
		}
		speaks("node-1", "true true")
		speaks("node-7", "false true")
		nodes[1].stop()
		w.Attach("node-1", http.NotFoundHandler()) // the reference node, in its place
		time.Sleep(2 * time.Minute)
		speaks("node-1", "false true")
		nodes[1].start(t)
		time.Sleep(15 * time.Minute)
		speaks("node-1", "true true")
		nodes[0].stop()
		nodes[1].stop()
		// One that says nothing yet may be one of ours.
		for _, what := range []struct {
			status int // 0: it is not there
			want   string
		}{{0, "false false"}, {503, "false false"}, {403, "false true"}} {
			if what.status == 0 {
				w.Detach("node-1")
			} else {
				w.Attach("node-1", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(what.status) }))
			}
			nodes[0].start(t)
			time.Sleep(2 * time.Minute)
			speaks("node-1", what.want)
			nodes[0].stop()
		}
	})
}

// TestHTTP1: a peer that answers and has no HTTP/2, which the reference node has not, is the puller's; of one that is not there it is not known.
func TestHTTP1(t *testing.T) {
	t.Parallel()
	old := httptest.NewServer(http.NotFoundHandler())
	defer old.Close()
	away, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	away.Close()
	s := &simNode{id: "node-0", peers: []Peer{{ID: "old", URL: old.URL}, {ID: "away", URL: "http://" + away.Addr().String()}}}
	s.store = newMemStore(0, s.nowMs)
	native, err := NewNative(NativeOptions{NodeID: s.id, Origin: s.store.origin, Token: "the token", MaxTTLSec: testTTLSec, Records: s.store, Merger: s.store, Peers: s, Clear: true,
		Transport: func(p Peer) http.RoundTripper { return NativeTransport(p, nil) }, NowMs: s.nowMs})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { native.Run(ctx); close(done) }()
	defer func() { cancel(); <-done }()
	tried := func(id string) (n int64) {
		for _, p := range native.Status().Peers {
			if p.ID == id {
				n = p.Errors
			}
		}
		return n
	}
	for end := time.Now().Add(60 * time.Second); tried("old") == 0 || tried("away") == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%+v", native.Status())
		}
	}
	if native, known := native.Speaks("old"); native || !known {
		t.Error("an HTTP/1 server is waited for")
	}
	if _, known := native.Speaks("away"); known {
		t.Error("it is known what a peer speaks that is not there")
	}
}

// TestHTTP2: two nodes over TLS and the real HTTP/2, a connection that breaks in between.
func TestHTTP2(t *testing.T) {
	t.Parallel()
	nodes := make([]*simNode, 2)
	handlers := make([]atomic.Pointer[http.Handler], 2)
	servers := make([]*httptest.Server, 2)
	for i := range nodes {
		s := &simNode{id: fmt.Sprintf("node-%d", i)}
		s.store = newMemStore(i, s.nowMs)
		nodes[i] = s
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			h := handlers[i].Load()
			if h == nil {
				http.Error(rw, "starting", http.StatusServiceUnavailable)
				return
			}
			(*h).ServeHTTP(rw, r)
		}))
		srv.EnableHTTP2 = true
		srv.Config.ReadTimeout, srv.Config.WriteTimeout = 10*time.Second, 10*time.Second
		srv.StartTLS()
		defer srv.Close()
		servers[i] = srv
	}
	for i, s := range nodes {
		s.peers = []Peer{{ID: nodes[1-i].id, URL: servers[1-i].URL}}
		native, err := NewNative(NativeOptions{NodeID: s.id, Origin: s.store.origin, Token: "the token", MaxTTLSec: testTTLSec, Records: s.store, Merger: s.store, Peers: s,
			Transport: func(Peer) http.RoundTripper { return servers[1-i].Client().Transport }, NowMs: s.nowMs})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { native.Run(ctx); close(done) }()
		defer func() { cancel(); <-done }()
		s.native = native
		handler := native.Handler()
		handlers[i].Store(&handler)
	}
	wait := func(what string, f func() bool) {
		t.Helper()
		for end := time.Now().Add(60 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: %+v", what, nodes[0].native.Status())
			}
		}
	}
	has := func(s *simNode, r record.Row) bool {
		got, ok, _ := s.store.Row(r.ID())
		return ok && got.Add == r.Add && got.Del == r.Del
	}
	for round := range 2 {
		for i, s := range nodes {
			r := s.store.publish(fmt.Sprintf("\x01%c\x04test\x00", 'a'+i), fmt.Sprint(round), time.Hour)
			wait("a publish", func() bool { return has(nodes[1-i], r) })
			if round == 1 {
				r = s.store.delete(string(r.Name), fmt.Sprint(round))
				wait("a delete", func() bool { return has(nodes[1-i], r) })
			}
		}
		wait("convergence", func() bool { _, ok := equal(nodes); return ok })
		servers[round%2].CloseClientConnections()
	}
}

// TestSlowDisk: what a peer's feed has brought while a commit took its time goes into the next one together, so that a disk of 20 ms a commit
// keeps up with thousands of single records a second.
func TestSlowDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const n = 2000
		w, nodes := newNetwork(t, 1, 2)
		slow := nodes[0]
		slow.store.slow = 20 * time.Millisecond
		slow.start(t)
		w.Attach("node-1", (&hostile{feed: func(o *out, r *http.Request) {
			var frames []byte
			for i := range n { // as the kernel's buffers hold them
				row := record.Row{Name: fmt.Appendf(nil, "\x04%04d\x04test\x00", i), RDATA: record.AppendRDATA(nil, []byte("1")), Add: record.HLCAt(o.n.o.NowMs()), ExpMs: o.n.o.NowMs() + 60_000}
				row.Hash = record.HashOf(row.RDATA)
				frames = appendFrame(frames, nil, frameRows, appendRow(make([]byte, 8), &row), false)
			}
			go func() { _, _ = io.Copy(io.Discard, r.Body) }() // the acknowledgements
			_, _ = o.w.Write(frames)
			<-r.Context().Done()
		}}).handler(slow))
		time.Sleep(5 * time.Second)
		slow.store.mu.Lock()
		if got := len(slow.store.rows); got != n {
			t.Errorf("%d records of %d are there", got, n)
		}
		slow.store.mu.Unlock()
		slow.stop()
		w.Detach("node-1")
	})
}
