package antientropy

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/vfs"
	"github.com/dnsmesh/dmpd/internal/wire"
)

const (
	pullsMax         = 4 // under way at one peer (cluster.md 17.7)
	pullBackoffMin   = time.Second
	pullBackoffMax   = time.Minute
	rescanEvery      = time.Hour // on average; heals what a peer's clock that stepped back has hidden (cluster.md 15, W5)
	overlapMs        = 5_000     // what is read again behind a watermark that moved
	deliveriesMax    = 3         // that often a value may not come; then it is taken for absent
	undelivered      = 100_000   // pairs for which that is counted
	oldCopyMs        = 10_000    // an offer that ends at most that much after a deleted element is its old copy (cluster.md 17.4)
	savePages        = 20        // pages between two writings of the cursors while catching up
	awayPause        = 500 * time.Millisecond
	retryPause       = time.Second // before what did not come is asked for again
	refusalLife      = 24 * time.Hour
	manifestGraceSec = 300              // after its signed end a slot manifest is taken for so long: clocks differ (cluster.md 15, W18)
	refusalRetry     = 10 * time.Minute // of what may be taken later: a full RRset, a signed time that is ahead
)

// Puller reads the feeds of the peers, each in a goroutine of its own, and offers what is missing here to the data plane (cluster.md 8, 17.7).
//
// Kept from the reference: a watermark never passes an entry without a decision on it, and nothing that a peer says about its own cursor is
// believed. Added: a refusal is a decision, and pages and pulls follow each other without a pause until the peer is caught up with.
type Puller struct {
	o         PullerOptions
	fs        vfs.FS
	transport func(Peer) http.RoundTripper // for tests; nil: the network
	verify    chan struct{}                // checks of signatures under way

	mu       sync.Mutex
	peers    map[string]*puller
	cursors  *cursors
	operator [32]byte // the pinned key that the verdicts are of
	wake     chan struct{}
}

// NewPuller makes one; Run does the work.
func NewPuller(o PullerOptions) *Puller {
	return &Puller{o: o, fs: vfs.OS, verify: make(chan struct{}, runtime.GOMAXPROCS(0)), peers: map[string]*puller{}, wake: make(chan struct{}, 1)}
}

// Wake has settings and peers looked at again, and every peer asked at once.
func (p *Puller) Wake() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Run pulls until ctx ends.
func (p *Puller) Run(ctx context.Context) {
	var epoch [16]byte
	for {
		var ok bool
		if epoch, ok = p.o.View.Epoch(); ok && p.o.View.Current() {
			break
		}
		select { // the records are still being read
		case <-ctx.Done():
			return
		case <-time.After(awayPause):
		}
	}
	saved, err := openCursors(p.fs, p.o.Dir, epoch)
	if err != nil {
		p.o.Log.Warn("the cursors of the peers are not used: everything is compared anew", "err", err)
	}
	p.mu.Lock()
	p.cursors = saved
	p.mu.Unlock()
	p.remember()
	for {
		list, changed := p.o.Peers.Peers()
		p.swap(ctx, list)
		select {
		case <-ctx.Done():
			p.swap(ctx, nil)
			return
		case <-changed:
		case <-p.wake:
			p.remember()
			p.mu.Lock()
			for _, one := range p.peers {
				one.poke(false)
			}
			p.mu.Unlock()
		}
	}
}

// remember notices another pinned key: what was refused under the old one is judged anew.
func (p *Puller) remember() {
	var key [32]byte
	if k := p.o.Settings().Operator; k != nil {
		key = *k
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if key == p.operator {
		return
	}
	p.operator = key
	for _, one := range p.peers {
		one.quarantine.clear()
		one.poke(true)
	}
}

// swap starts and stops peers, so that those of the list run. One that stays keeps its watermark.
func (p *Puller) swap(ctx context.Context, list []Peer) {
	wanted := map[string]Peer{}
	for _, peer := range list {
		wanted[peer.ID] = peer
	}
	pins := strings.Join(p.o.Settings().Pins, ",")
	var stopped []*puller
	p.mu.Lock()
	for id, one := range p.peers {
		if peer, ok := wanted[id]; !ok || peer != one.peer || one.pins != pins {
			one.cancel()
			stopped = append(stopped, one)
			delete(p.peers, id)
		}
	}
	p.mu.Unlock()
	for _, one := range stopped {
		<-one.done
	}
	if ctx.Err() != nil {
		return
	}
	ids := map[string]bool{}
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, peer := range wanted {
		ids[id] = true
		if p.peers[id] == nil {
			p.peers[id] = p.start(ctx, peer, pins)
		}
	}
	p.cursors.keep(ids)
}

// Status is Runner's.
func (p *Puller) Status() (all []PeerStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, one := range p.peers {
		all = append(all, one.status())
	}
	return all
}

// puller is the work with one peer.
type puller struct {
	p      *Puller
	peer   Peer
	pins   string
	client *client
	cancel context.CancelFunc
	done   chan struct{}
	poked  chan struct{}

	quarantine quarantine
	rescan     atomic.Bool // read the whole feed in the next round

	// The rest but s belongs to the goroutine.
	watermark  Cursor
	overlap    bool // the watermark moved in the last round
	rescanAt   time.Time
	missing    map[pair]int // how often a value did not come
	manifestAt time.Time

	mu sync.Mutex
	s  PeerStatus
}

func (p *Puller) start(ctx context.Context, peer Peer, pins string) *puller {
	var transport http.RoundTripper
	if p.transport != nil {
		transport = p.transport(peer)
	}
	ctx, cancel := context.WithCancel(ctx)
	one := &puller{p: p, peer: peer, pins: pins, client: newClient(peer.URL, p.o.Settings().Pins, transport, p.o.NowMs), cancel: cancel, done: make(chan struct{}), poked: make(chan struct{}, 1),
		watermark: p.cursors.get(peer.ID, peer.URL), missing: map[pair]int{}, overlap: true}
	one.rescanAt = time.Now().Add(about(rescanEvery))
	one.s = PeerStatus{ID: peer.ID, URL: peer.URL, WatermarkMs: one.watermark.TsMs}
	if openToAll(peer.URL) {
		p.o.Log.Warn("records and token go to this peer in clear text", "peer", peer.ID, "url", peer.URL, "remedy", "https, or a private network")
	}
	go one.run(ctx)
	return one
}

// openToAll says whether what is sent to a URL can be read on the way, as far as the URL tells.
func openToAll(text string) bool {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" {
		return false
	}
	a, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() != "localhost" && (err != nil || !a.IsLoopback() && !a.IsPrivate())
}

// about is between half and one and a half times d.
func about(d time.Duration) time.Duration { return d/2 + rand.N(d+1) }

func (one *puller) poke(rescan bool) {
	if rescan {
		one.rescan.Store(true)
	}
	select {
	case one.poked <- struct{}{}:
	default:
	}
}

func (one *puller) run(ctx context.Context) {
	defer close(one.done)
	defer one.client.close()
	log := one.p.o.Log
	interval := one.p.o.Settings().Interval
	wait := rand.N(min(interval, pullBackoffMax) + 1) // nodes that started together do not ask together
	backoff := pullBackoffMin
	for {
		select {
		case <-ctx.Done():
			one.save()
			return
		case <-one.poked:
		case <-time.After(wait):
		}
		settled, err := one.round(ctx)
		if ctx.Err() != nil {
			one.save()
			return
		}
		one.save()
		interval = one.p.o.Settings().Interval
		switch {
		case errors.Is(err, ErrAway):
			wait = about(awayPause)
		case err != nil:
			one.mu.Lock()
			if one.s.LastError == "" {
				log.Warn("replication from a peer fails", "peer", one.peer.ID, "url", one.peer.URL, "err", err)
			}
			one.s.LastError, one.s.Errors = err.Error(), one.s.Errors+1
			if errors.Is(err, errPin) {
				one.s.PinFailures++
			}
			one.s.BackoffSec, one.s.CaughtUp = backoff.Seconds(), false
			one.mu.Unlock()
			wait = rand.N(backoff) + time.Millisecond // full jitter
			backoff = min(2*backoff, pullBackoffMax)
			continue
		case !settled:
			wait = min(about(retryPause), interval)
		default:
			wait = interval*4/5 + rand.N(interval*2/5+1)
		}
		backoff = pullBackoffMin
		one.mu.Lock()
		if one.s.LastError != "" && err == nil {
			log.Info("replication from a peer works again", "peer", one.peer.ID)
		}
		if err == nil {
			one.s.LastError, one.s.BackoffSec = "", 0
		}
		one.mu.Unlock()
	}
}

func (one *puller) save() {
	if err := one.p.cursors.save(); err != nil {
		one.p.o.Log.Warn("the cursors of the peers cannot be written", "err", err)
	}
}

// round reads the peer's feed from the watermark to its end. settled is false if something did not come and shall be asked for again soon.
func (one *puller) round(ctx context.Context) (settled bool, err error) {
	p := one.p
	settings := p.o.Settings()
	if !p.o.View.Current() {
		return false, ErrAway // the comparison would find everything missing
	}
	if p.o.BaseDomain() != "" && settings.Operator != nil && time.Since(one.manifestAt) >= settings.Interval/2 {
		one.manifestAt = time.Now()
		text, err := one.client.manifest(ctx, settings.Token)
		if err != nil {
			return false, err
		}
		if text != nil {
			if _, err := p.o.Manifests.Install(ctx, text, "peer "+one.peer.ID); err != nil && !errors.Is(err, ErrAway) {
				p.o.Log.Warn("a peer's cluster manifest", "peer", one.peer.ID, "err", err)
			}
		}
	}
	if p.o.Native != nil {
		if native, known := p.o.Native(one.peer.ID); native || !known {
			return known, nil
		}
	}
	after := one.watermark
	whole := one.rescan.Swap(false) || time.Now().After(one.rescanAt)
	switch {
	case whole:
		one.rescanAt = time.Now().Add(about(rescanEvery))
		after = Cursor{}
	case one.overlap && after.TsMs > overlapMs:
		after = Cursor{TsMs: after.TsMs - overlapMs}
	}
	one.overlap = false
	began := one.watermark
	for pages := 1; ; pages++ {
		next, more, settled, err := one.page(ctx, &settings, after)
		one.overlap = one.watermark != began
		if err != nil || !settled {
			if whole {
				one.rescan.Store(true)
			}
			return false, err
		}
		if !more {
			one.mu.Lock()
			one.s.CaughtUp, one.s.LagRows, one.s.LagSec, one.s.LastSuccessMs = true, 0, 0, p.o.NowMs()
			one.mu.Unlock()
			return true, nil
		}
		if next.Compare(after) <= 0 {
			return false, peerError("sends a page that does not go on behind %s", after)
		}
		after = next
		if pages%savePages == 0 {
			one.save()
		}
	}
}

// want is a pair that a peer has and this node lacks.
type want struct {
	entry
	name []byte // wire form, lower case
	pair pair
	done bool // there is a decision
	came bool
}

// page handles one page behind a cursor. next is its last entry that may be gone on from.
func (one *puller) page(ctx context.Context, settings *Settings, after Cursor) (next Cursor, more, settled bool, err error) {
	p := one.p
	page, err := one.client.digest(ctx, settings.Token, after, p.o.NowMs())
	if err != nil {
		return after, false, false, err
	}
	one.mu.Lock()
	one.s.Rejected[ReasonFormat] += int64(page.invalid)
	one.mu.Unlock()
	if len(page.entries) == 0 {
		if page.more {
			return after, false, false, peerError("sends a page without an entry that can be read")
		}
		return after, false, true, nil
	}
	nowMs := p.o.NowMs()
	wants := make([]*want, 0, len(page.entries))
	seen := map[pair]bool{}
	var missing []*want
	for _, e := range page.entries {
		w, err := one.compare(e, nowMs)
		if err != nil {
			return after, false, false, err
		}
		if seen[w.pair] {
			continue
		}
		seen[w.pair] = true
		wants = append(wants, w)
		if !w.done {
			missing = append(missing, w)
		}
	}
	pullErr := one.fetch(ctx, settings, missing)
	// The contiguous prefix (cluster.md 8, step 8): never past an entry without a decision.
	settled = true
	next = after
	run := one.watermark
	left := 0
	for _, w := range wants {
		if !w.done && pullErr == nil && !w.came {
			w.done = one.absent(w, nowMs)
		}
		if w.done {
			delete(one.missing, w.pair)
		} else {
			settled = false
			left++
		}
		if settled && w.cursor.Compare(next) > 0 {
			next = w.cursor
		}
		if settled && w.cursor.Compare(run) > 0 {
			run = w.cursor
		}
	}
	if run.Compare(one.watermark) > 0 {
		one.watermark = run
		p.cursors.set(one.peer.ID, one.peer.URL, run)
	}
	one.mu.Lock()
	one.s.WatermarkMs = one.watermark.TsMs
	one.s.LagRows = int64(left)
	if page.more || left > 0 {
		one.s.CaughtUp = false
		one.s.LagSec = max(0, float64(nowMs+one.client.offsetMs.Load()-one.watermark.TsMs)/1000)
	}
	one.mu.Unlock()
	return next, page.more, settled, pullErr
}

// compare finds what is to be done with an entry.
func (one *puller) compare(e entry, nowMs int64) (*want, error) {
	w := &want{entry: e}
	var err error
	if w.name, err = wire.AppendName(nil, strings.ToLower(e.cursor.Name)); err != nil {
		w.pair = pair{"\x00" + e.cursor.Name, e.cursor.Hash} // of the digest's characters, and no name: nobody can ask for it
		w.done = true
		one.refuse(w, ReasonFormat, "not a name", nowMs+refusalLife.Milliseconds())
		return w, nil
	}
	w.pair = pair{string(w.name), e.cursor.Hash}
	if one.quarantine.has(w.pair, nowMs) {
		w.done = true
		return w, nil
	}
	row, found, err := one.p.o.View.State(w.name, e.cursor.Hash)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAway, err)
	}
	rttMs := one.client.rttMs.Load()
	endMs := nowMs + e.ttlSec*1000 - rttMs/2
	switch {
	case !found:
	case row.Live(nowMs):
		// Longer by more than what clocks and the way here can make of one and the same end (cluster.md 8.5, 15 W14).
		w.done = endMs <= row.ExpMs+SlopMs+2*rttMs
	case row.Del >= row.Add && row.Del > 0:
		w.done = one.addMs(e.cursor.TsMs, nowMs) <= row.Del.Ms()+SlopMs || endMs <= row.ExpMs+oldCopyMs
		if w.done {
			one.count(func(s *PeerStatus) { s.Tombstoned++ })
		}
	}
	return w, nil
}

// addMs is a peer's stamp by our clock.
func (one *puller) addMs(tsMs, nowMs int64) int64 {
	return max(0, min(nowMs, tsMs-one.client.offsetMs.Load()))
}

func (one *puller) count(f func(s *PeerStatus)) {
	one.mu.Lock()
	f(&one.s)
	one.mu.Unlock()
}

func (one *puller) refuse(w *want, reason Reason, why string, untilMs int64) {
	one.quarantine.put(w.pair, why, untilMs)
	one.count(func(s *PeerStatus) { s.Rejected[reason]++ })
	one.p.o.Log.Debug("a peer's record is refused", "peer", one.peer.ID, "name", w.cursor.Name, "reason", why)
}

// absent counts that a value did not come. From the third time on that is a decision.
func (one *puller) absent(w *want, nowMs int64) bool {
	if len(one.missing) >= undelivered {
		clear(one.missing)
	}
	one.missing[w.pair]++
	if one.missing[w.pair] < deliveriesMax {
		return false
	}
	one.refuse(w, ReasonAbsent, "absent", nowMs+min(w.ttlSec*1000, refusalLife.Milliseconds()))
	return true
}

// fetch pulls what is missing, a slice of names a request, and offers it. It marks what came and what was decided.
func (one *puller) fetch(ctx context.Context, settings *Settings, missing []*want) error {
	byName := map[string][]*want{}
	var slices [][]string
	size := pullRequestMax
	for _, w := range missing {
		name := w.cursor.Name
		if byName[name] == nil {
			if cost := len(name) + 3; size+cost > pullRequestMax || len(slices[len(slices)-1]) == PullNamesMax {
				slices = append(slices, nil)
				size = len(`{"names":[]}`)
			}
			slices[len(slices)-1] = append(slices[len(slices)-1], name)
			size += len(name) + 3 // quotes and comma; names have nothing to escape
		}
		byName[name] = append(byName[name], w)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	limit := make(chan struct{}, pullsMax)
	var wg sync.WaitGroup
	var once sync.Once
	var failed error
	for _, names := range slices {
		select {
		case limit <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-limit }()
			// A name stands in one slice, so that no two requests mark one want.
			if err := one.slice(ctx, settings, names, byName); err != nil {
				once.Do(func() { failed = err; cancel() })
			}
		})
	}
	wg.Wait()
	if failed == nil {
		failed = ctx.Err()
	}
	return failed
}

// offerBytes is how much of values is held before it is offered.
const offerBytes = 4 << 20

func (one *puller) slice(ctx context.Context, settings *Settings, names []string, byName map[string][]*want) error {
	p := one.p
	asked := map[string]bool{}
	for _, n := range names {
		asked[n] = true
	}
	verifier := record.Verifier{Operator: settings.Operator}
	var offers []Offer
	var whose []*want
	bytes := 0
	var offerErr error
	flush := func() {
		if len(offers) == 0 || offerErr != nil {
			return
		}
		results, err := p.o.Writer.Offer(ctx, offers)
		if err != nil {
			offerErr = err
		} else {
			for i, r := range results {
				one.decided(whose[i], r)
			}
		}
		offers, whose, bytes = offers[:0], whose[:0], 0
	}
	sent := time.Now()
	err := one.client.pull(ctx, settings.Token, names, func(name, value string, ttlSec int64) {
		if offerErr != nil {
			return
		}
		if !asked[name] {
			one.count(func(s *PeerStatus) { s.Rejected[ReasonUnsolicited]++ })
			return
		}
		hash := sha256.Sum256([]byte(value))
		var w *want
		for _, x := range byName[name] {
			if x.cursor.Hash == hash {
				w = x
			}
		}
		if w == nil || w.came {
			return // another value at the name, which the endpoint gives as well
		}
		w.came = true
		nowMs := p.o.NowMs()
		if o, ok := one.judge(&verifier, settings, w, value, ttlSec, nowMs, time.Since(sent).Milliseconds()); ok {
			offers, whose, bytes = append(offers, o), append(whose, w), bytes+len(value)
			if len(offers) == OffersMax || bytes >= offerBytes {
				flush()
			}
		}
	})
	flush()
	if offerErr != nil {
		return offerErr
	}
	return err
}

// judge verifies a value again (cluster.md 9) and cuts its life to what this node permits (cluster.md 15, W11).
func (one *puller) judge(v *record.Verifier, settings *Settings, w *want, value string, ttlSec, nowMs, rttMs int64) (o Offer, ok bool) {
	if settings.MaxValueLen > 0 && len(value) > settings.MaxValueLen {
		w.done = true
		one.refuse(w, ReasonSize, "too long", nowMs+refusalLife.Milliseconds())
		return o, false
	}
	if !record.OwnerFits(w.name, record.ClassOf([]byte(value))) {
		w.done = true
		one.refuse(w, ReasonOwner, record.BadOwner.Error(), nowMs+min(refusalLife.Milliseconds(), max(ttlSec, 1)*1000))
		return o, false
	}
	one.p.verify <- struct{}{}
	class, endSec, r := v.Judge(w.name, []byte(value), nowMs/1000)
	<-one.p.verify
	if r == record.Accepted && class == record.ClassManifest && int64(min(endSec, 1<<40))+manifestGraceSec < nowMs/1000 {
		r = record.Expired // the verifier lets that pass, as the reference does: each puller would give it a life anew (cluster.md 15, W18)
	}
	if r != record.Accepted {
		w.done = true
		life := refusalLife
		if r == record.NotYet || r == record.LivesTooLong {
			life = refusalRetry
		}
		one.refuse(w, reasonOf(r), r.Error(), nowMs+min(life.Milliseconds(), max(ttlSec, 1)*1000))
		return o, false
	}
	o = Offer{Name: w.name, Value: []byte(value), AddMs: one.addMs(w.cursor.TsMs, nowMs), ExpMs: nowMs + max(1000, ttlSec*1000-rttMs/2),
		Verified: class != record.ClassForeign && class != record.ClassPrekey && (class != record.ClassCluster || v.Operator != nil) && (class != record.ClassBootstrap || v.Bootstrap != nil)}
	if settings.MaxTTLSec > 0 && !(class == record.ClassCluster && endSec > 0) {
		o.ExpMs = min(o.ExpMs, nowMs+settings.MaxTTLSec*1000)
	}
	if endSec > 0 && endSec < 1<<40 {
		o.ExpMs = min(o.ExpMs, max(int64(endSec)*1000, nowMs+1000))
	}
	return o, true
}

// decided takes over what the data plane made of an offer.
func (one *puller) decided(w *want, r Result) {
	w.done = true
	switch r.Decision {
	case Stored:
		one.count(func(s *PeerStatus) { s.Stored++ })
	case Refreshed:
		one.count(func(s *PeerStatus) { s.Refreshed++ })
	case Tombstoned:
		one.count(func(s *PeerStatus) { s.Tombstoned++ })
	case Refused:
		one.refuse(w, ReasonStore, r.Reason, one.p.o.NowMs()+refusalRetry.Milliseconds())
	}
}

func (one *puller) status() PeerStatus {
	one.mu.Lock()
	s := one.s
	one.mu.Unlock()
	s.OffsetMs, s.RTTMs = one.client.offsetMs.Load(), float64(one.client.rttMs.Load())
	s.BytesIn, s.BytesOut, s.Requests, s.Reconnects = one.client.in.Load(), one.client.out.Load(), one.client.requests.Load(), one.client.connects.Load()
	s.Quarantined = int64(one.quarantine.size())
	return s
}
