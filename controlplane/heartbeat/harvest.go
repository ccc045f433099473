package heartbeat

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/record"
)

const (
	harvestMax     = 20 * time.Second // for all zones of a round
	harvestLeast   = time.Second      // no zone is asked with less left of that
	harvestAtOnce  = 8                // zones asked at the same time
	valuesMax      = 200              // verified of one RRset, taken at random: four times what a node publishes
	valueBytesMax  = 65535            // of one RRset: what a DNS message holds
	backoffMax     = 6 * time.Hour    // between two questions to a zone of a stranger that does not answer
	backoffTrusted = 5 * time.Minute  // the same of a zone that the operator named
	backoffZones   = 4096             // zones whose failures are remembered
	perIntroducer  = 2                // unproven zones that one stranger's zone has asked in a round
)

// Sources of zones, the most trusted first.
const (
	fromOperator = iota // seeds and cluster peers
	fromList            // public seed lists
	fromGossip          // zones that heartbeats name
)

// target is a zone to ask.
type target struct {
	zone   string
	source int
}

// asked remembers how a zone answered.
type asked struct {
	last     time.Time // when it was asked
	next     time.Time // not before
	failures int
}

// targets chooses the zones of a round. Two thirds of the budget are for zones that the operator or a list names, the rest, and what
// those leave, for gossip: half of it for zones known to publish themselves. Within each the one that was asked the longest ago comes
// first, so that all get their turn, however many a stranger invents.
func (w *Worker) targets(s *Settings, now time.Time) []target {
	taken := map[string]bool{w.zone: true, "": true}
	var named, proven, told []target
	add := func(to *[]target, zone string, source int) {
		if taken[zone] {
			return
		}
		taken[zone] = true
		if a := w.asked[zone]; a == nil || !now.Before(a.next) {
			*to = append(*to, target{zone, source})
		}
	}
	for _, z := range s.operatorZones() {
		add(&named, z, fromOperator)
	}
	operators := len(named)
	for _, z := range w.listZones(s) {
		add(&named, z, fromList)
	}
	nowMs := clock.NowMs()
	via := map[string]string{}
	peers := w.seen.all()
	for _, p := range peers {
		if p.FirstHand(nowMs) {
			add(&proven, p.At, fromGossip)
		}
	}
	for _, p := range peers {
		if !p.trusted {
			via[p.At] = p.Via
		}
		add(&told, p.At, fromGossip)
	}
	longest := func(ts []target) {
		slices.SortStableFunc(ts, func(a, b target) int { return w.lastAsked(a.zone).Compare(w.lastAsked(b.zone)) })
	}
	longest(named[:operators])
	longest(named[operators:])
	longest(proven)
	longest(told)
	introduced := map[string]int{}
	told = slices.DeleteFunc(told, func(t target) bool {
		v, limited := via[t.zone]
		introduced[v]++
		return limited && introduced[v] > perIntroducer
	})
	budget := s.MaxPeers
	n := len(named)
	if gossip := len(proven) + len(told); n > budget-min(gossip, budget/3) {
		n = budget - min(gossip, budget/3)
	}
	out := slices.Clone(named[:n])
	budget -= n
	half := max(budget/2, budget-len(told))
	half = min(half, len(proven))
	out = append(out, proven[:half]...)
	return append(out, told[:min(len(told), budget-half)]...)
}

func (w *Worker) lastAsked(zone string) time.Time {
	if a := w.asked[zone]; a != nil {
		return a.last
	}
	return time.Time{}
}

// note remembers how a zone answered. A zone that fails is asked ever more rarely; of strangers' zones a bounded number is remembered.
func (w *Worker) note(t target, ok bool, now time.Time, round time.Duration) {
	a := w.asked[t.zone]
	if a == nil {
		if len(w.asked) >= backoffZones {
			w.forgetZone()
		}
		a = &asked{}
		w.asked[t.zone] = a
	}
	a.last, a.next = now, time.Time{}
	if ok {
		a.failures = 0
		return
	}
	a.failures++
	most := backoffMax
	if t.source != fromGossip {
		most = backoffTrusted
	}
	// After the first failure one round is left out, then three, then seven.
	a.next = now.Add(min(most, round<<min(a.failures, 12)-round/2))
}

// forgetZone drops the zone that was asked the longest ago.
func (w *Worker) forgetZone() {
	oldest := ""
	for z, a := range w.asked {
		if oldest == "" || a.last.Before(w.asked[oldest].last) {
			oldest = z
		}
	}
	delete(w.asked, oldest)
}

// harvest asks zones, several at once, until the deadline.
func (w *Worker) harvest(ctx context.Context, s *Settings) {
	w.resolvers.Use(s.Resolvers)
	w.fetchLists(ctx, s)
	targets := w.targets(s, time.Now())
	ctx, cancel := context.WithTimeout(ctx, w.askFor)
	defer cancel()
	work := make(chan target)
	type result struct {
		target
		ok bool
	}
	results := make(chan result, len(targets))
	var wg sync.WaitGroup
	for range min(harvestAtOnce, len(targets)) {
		wg.Go(func() {
			for t := range work {
				if end, _ := ctx.Deadline(); ctx.Err() != nil || time.Until(end) < harvestLeast { // not asked, so not failed
					w.stats.ZonesSkipped.Add(1)
					continue
				}
				results <- result{t, w.harvestZone(ctx, t, s)}
			}
		})
	}
	for _, t := range targets {
		work <- t
	}
	close(work)
	wg.Wait()
	close(results)
	for r := range results {
		w.note(r.target, r.ok, time.Now(), w.interval(s))
	}
	nowMs := clock.NowMs()
	w.seen.sweep(nowMs, s.Retention.Milliseconds())
	w.stats.Peers.Store(int64(w.seen.len()))
}

// harvestZone asks one zone for its own heartbeats and for those that it has heard. It answered well if anything was taken.
func (w *Worker) harvestZone(ctx context.Context, t target, s *Settings) bool {
	taken := 0
	var errs []error
	for _, own := range []bool{true, false} {
		name := record.SeenName(t.zone)
		if own {
			name = record.HeartbeatName(t.zone)
		}
		values, err := w.resolvers.TXT(ctx, name, s.DNSSEC)
		if err != nil {
			if errors.Is(err, ErrNotAD) {
				w.stats.NotAD.Add(1)
			}
			errs = append(errs, err)
			continue
		}
		taken += w.take(values, t, own)
	}
	if taken > 0 {
		w.stats.ZonesOK.Add(1)
		return true
	}
	w.stats.ZonesFailed.Add(1)
	w.o.Log.Debug("a zone gave no heartbeat", "zone", t.zone, "err", errors.Join(errs...))
	return false
}

// take verifies values in random order, so that the first ones of an RRset have no advantage, and keeps those that are good.
func (w *Worker) take(values [][]byte, t target, own bool) (taken int) {
	rand.Shuffle(len(values), func(i, j int) { values[i], values[j] = values[j], values[i] })
	bytes, nowMs := 0, clock.NowMs()
	for i, v := range values {
		if bytes += len(v); i == valuesMax || bytes > valueBytesMax {
			w.stats.Rejected[RejectedMany].Add(uint64(len(values) - i))
			break
		}
		var h record.Heartbeat
		if r := h.Verify(v, nowMs/1000, record.HeartbeatSkewSec); r != record.Accepted {
			w.stats.Rejected[rejection(r)].Add(1)
			continue
		}
		if h.Operator == w.operator {
			continue // ourselves, as others have heard us
		}
		at, _ := zoneOf(&h)
		if !w.seen.put(&h, v, t.zone, own && at == t.zone, t.source != fromGossip, nowMs) {
			w.stats.Rejected[RejectedQuota].Add(1)
			continue
		}
		taken++
	}
	w.stats.Accepted.Add(uint64(taken))
	return taken
}

// Reasons why a heartbeat was not taken, for the metrics.
const (
	RejectedFormat = iota
	RejectedSignature
	RejectedTime
	RejectedMany  // more values at a name than are read
	RejectedQuota // an older one than is known, or too many of a zone
	Rejections
)

// RejectionNames are their labels.
var RejectionNames = [Rejections]string{"format", "signature", "time", "too_many", "quota"}

func rejection(r record.Refusal) int {
	switch r {
	case record.BadSignature:
		return RejectedSignature
	case record.BadTimes, record.NotYet, record.TooOld, record.Expired, record.LivesTooLong:
		return RejectedTime
	}
	return RejectedFormat
}

// fetchLists fetches the public seed lists that are due. What was last read of one stays until it reads again.
func (w *Worker) fetchLists(ctx context.Context, s *Settings) {
	urls := s.ListURLs[:min(len(s.ListURLs), listsMax)]
	now := time.Now()
	next := map[string]time.Time{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, u := range urls {
		if now.Before(w.listNext[u]) {
			next[u] = w.listNext[u]
			continue
		}
		wg.Go(func() {
			zones, err := w.fetcher.fetch(ctx, u)
			again := listRefresh
			if err != nil {
				again = listRetry
				w.stats.ListsFailed.Add(1)
				w.o.Log.Warn("a public seed list cannot be read", "url", u, "err", err)
			} else {
				w.stats.ListsOK.Add(1)
				w.o.Log.Info("a public seed list was read", "url", u, "zones", len(zones))
				w.seen.setList(u, zones)
			}
			mu.Lock()
			next[u] = now.Add(again)
			mu.Unlock()
		})
	}
	wg.Wait()
	w.seen.keepLists(urls)
	w.listNext = next
}

func (w *Worker) listZones(s *Settings) (zones []string) {
	w.seen.mu.RLock()
	defer w.seen.mu.RUnlock()
	for _, u := range s.ListURLs {
		for _, z := range w.seen.lists[u] {
			if z, ok := canonicalZone(z); ok {
				zones = append(zones, z)
			}
		}
	}
	return zones
}

func (s *Settings) operatorZones() (zones []string) {
	for _, list := range [][]string{s.Seeds, s.Peers} {
		for _, text := range list {
			if z, ok := seedZone(text); ok && !slices.Contains(zones, z) {
				zones = append(zones, z)
			}
		}
	}
	return zones
}

// rank puts peers in the order in which the seen graph takes them. First come those at zones that the operator or a list names, then those read at their own zone, then those told of; in each group the
// longest known. A newcomer thus never pushes anybody out, and no timestamp or number of keys moves anything.
func (w *Worker) rank(s *Settings, nowMs int64) []*Peer {
	named := map[string]int{}
	for _, z := range w.listZones(s) {
		named[z] = 2
	}
	for _, z := range s.operatorZones() {
		named[z] = 3
	}
	class := func(p *Peer) int {
		switch {
		case !p.FirstHand(nowMs):
			return 0
		case named[p.At] > 0:
			return named[p.At]
		}
		return 1
	}
	ps := w.seen.all()
	slices.SortStableFunc(ps, func(a, b *Peer) int { return cmp.Compare(class(b), class(a)) })
	return ps
}
