package controlplane

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"

	"github.com/dnsmesh/dmpd/controlplane/antientropy"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/wire"
)

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
			if t.rows[string(r.Name)][r.Hash] == nil {
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
	for _, r := range rows {
		keep(&r.row)
	}
	if t.snap != nil {
		err = t.snap.Name(name, func(r *record.Row) bool {
			if rows[r.Hash] == nil {
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
	if r := t.rows[string(name)][hash]; r != nil {
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
			Kind: record.OpOffer, CapExempt: record.ClassOf(o.Value) == record.ClassCluster, Verified: o.Verified,
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
