package controlplane

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dnsmesh/dmpd/controlplane/antientropy"
	"github.com/dnsmesh/dmpd/dataplane/store"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/vfs"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// TestFeedOrder is X4 (cluster.md 18): writers in parallel with readers that follow cursors at full speed, while snapshots are made and
// the store's clock steps back and forth. Each reader sees every record exactly once, in the order of cursors, and none at or below a
// cursor that it was given.
func TestFeedOrder(t *testing.T) {
	t.Parallel()
	const writers, each, readers = 4, 600, 3
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	dir := filepath.Join(t.TempDir(), "data")
	var offset atomic.Int64
	s, err := store.Open(store.Options{Dir: dir, Zone: wire.MustName("mesh.test"), MergeMin: 1 << 15, Durability: journal.OS, NowMs: func() int64 { return clock.NowMs() + offset.Load() }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	tl := newTail(vfs.OS, dir, nil)
	defer tl.close()

	var writing, done sync.WaitGroup
	var wrote atomic.Int64
	for w := range writers {
		writing.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(w)))
			for i := 0; i < each; {
				n := min(1+rng.IntN(40), each-i)
				var ops []record.Op
				for ; n > 0; n-- {
					// Labels of different lengths: names sort differently as text and on the wire. Some records share a name.
					name := fmt.Sprintf("%s%d.w%d.mesh.test", []string{"", "a-", "bcd-", "e"}[rng.IntN(4)], i/2, w)
					ops = append(ops, record.Op{Kind: record.OpAdd, Name: wire.MustName(name), RDATA: record.AppendRDATA(nil, fmt.Appendf(nil, "w%d-%d", w, i)), TTLSec: 86400})
					i++
				}
				answered := make(chan store.Result, 1)
				if !s.Submit(&store.Batch{Ops: ops, Done: func(r store.Result) { answered <- r }}) {
					t.Error("the queue is full")
					return
				}
				if r := <-answered; r.Code != record.CodeStored {
					t.Error(r)
				}
				wrote.Add(int64(len(ops)))
				if rng.IntN(5) == 0 {
					s.Tick() // which makes snapshots
					offset.Store(rng.Int64N(40_000) - 20_000)
				}
			}
		})
	}
	for r := range readers {
		done.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(100+r)))
			seen := map[string]int{}
			var at antientropy.Cursor
			for end := time.Now().Add(60 * time.Second); len(seen) < writers*each; {
				if time.Now().After(end) {
					t.Errorf("reader %d saw %d of %d records, %d written", r, len(seen), writers*each, wrote.Load())
					return
				}
				limit := 1 + rng.IntN(50)
				rows, next, _, err := tl.Page(at, limit, clock.NowMs())
				if err != nil || len(rows) > limit {
					t.Errorf("%d rows for a limit of %d, %v", len(rows), limit, err)
					return
				}
				for i := range rows {
					if c := rows[i].Cursor(); c.Compare(at) <= 0 {
						t.Errorf("%v after %v", c, at)
						return
					} else {
						at = c
					}
					v := string(record.AppendValue(nil, rows[i].RDATA))
					if seen[v]++; seen[v] > 1 {
						t.Errorf("%s at %v was seen before", v, at)
						return
					}
				}
				if next.Compare(at) < 0 {
					t.Errorf("the next cursor %v is before the last row's %v", next, at)
				}
				// Both ways on are right: behind the last row, as reference peers go, and where the page ended.
				if rng.IntN(2) == 0 {
					at = next
				}
				if len(rows) == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	writing.Wait()
	done.Wait()
	// A reader that comes late sees the same, through snapshot and tail.
	n := 0
	var at antientropy.Cursor
	for more := true; more; {
		var rows []antientropy.FeedRow
		if rows, at, more, err = tl.Page(at, 100, clock.NowMs()); err != nil {
			t.Fatal(err)
		}
		if n += len(rows); n > writers*each {
			break
		}
	}
	if n != writers*each {
		t.Errorf("a late reader saw %d records of %d", n, writers*each)
	}
	if s.Stats().Snapshots == 0 {
		t.Error("no snapshot was made: this tested less than it should")
	}
}

// TestOffers: what a puller hands over is decided by the store that the data plane runs, each offer for itself, durably.
func TestOffers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := startReal(t, dir)
	name := wire.MustName("o.mesh.test")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	now := clock.NowMs()
	offer := func(v string, addMs, expMs int64) antientropy.Offer {
		return antientropy.Offer{Name: name, Value: []byte(v), AddMs: addMs, ExpMs: expMs}
	}
	want := func(what string, offers []antientropy.Offer, want ...antientropy.Decision) {
		t.Helper()
		got, err := n.requests.Offer(ctx, offers)
		if err != nil || len(got) != len(want) {
			t.Fatalf("%s: %v, %v", what, got, err)
		}
		for i := range want {
			if got[i].Decision != want[i] {
				t.Errorf("%s, offer %d: %v %s, want %v", what, i, got[i].Decision, got[i].Reason, want[i])
			}
		}
	}
	want("two values", []antientropy.Offer{offer("1", now, now+60_000), offer("2", now, now+60_000)}, antientropy.Stored, antientropy.Stored)
	want("again", []antientropy.Offer{offer("1", now, now+62_000), offer("2", now, now+90_000), offer("3", now, now+60_000)}, antientropy.Present, antientropy.Refreshed, antientropy.Stored)
	if a := n.do("DELETE", "/v1/records/o.mesh.test", "operator", `{"value":"1"}`); a.status != 204 {
		t.Fatal(a)
	}
	want("an old copy", []antientropy.Offer{offer("1", now, now+62_000)}, antientropy.Tombstoned)
	rows, err := n.tail.Values(name, clock.NowMs())
	if err != nil || len(rows) != 2 {
		t.Errorf("%v, %v", rows, err)
	}
	row, found, err := n.tail.State(name, record.HashOf(record.AppendRDATA(nil, []byte("1"))))
	if err != nil || !found || row.RDATA != nil || row.Del < row.Add {
		t.Errorf("the tombstone: %+v, %v, %v", row, found, err)
	}
	if _, ok := n.tail.Epoch(); !ok || !n.tail.Current() {
		t.Error("the view does not know where it stands")
	}
}
