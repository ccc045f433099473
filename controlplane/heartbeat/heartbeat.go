// Package heartbeat announces a node and collects others, over DNS alone (spec federation.md). Each round publishes the node's own
// heartbeat, asks other zones for theirs, and publishes what it has heard: the seen graph.
//
// Keys cost nothing, so nothing here is ranked by what a stranger can choose: not by timestamps, not by the number of heartbeats.
package heartbeat

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

const (
	// roundMax is the longest time between two rounds, whatever is configured. Readers take a heartbeat for HeartbeatSkewSec = 300 s
	// from its signing. The path to a client that reads our seen graph is: a peer's heartbeat as old as the peer's round, a resolver's
	// cache (30 s, of other nodes 60 s), our round, the client's cache (30 s). With 75 s that is 240 s at the most.
	roundMax = 75 * time.Second
	// siblingSec is how old a heartbeat of our key at another endpoint may be before it is taken for one that an earlier start left: nodes
	// of a cluster may share the key, and the slowest signs anew every 300 s.
	siblingSec = 900
	// saveEvery is how often the seen peers are written to disk; they are also written at the end.
	saveEvery = 5 * time.Minute
	// roundRetry is how soon a round that could not publish is tried again: the data plane may be starting.
	roundRetry = 2 * time.Second
	// publishMax bounds one write.
	publishMax = 15 * time.Second
	// anySkewSec is for reading heartbeats whose age does not matter.
	anySkewSec = 1 << 62
)

// Records is the way to the node's own records. Names are text.
type Records interface {
	// Values gives the live values at a name.
	Values(name string) ([][]byte, error)
	// Change adds and removes values at a name, all or nothing. It returns when that is durable.
	Change(ctx context.Context, name string, add, remove [][]byte, ttlSec int64) error
}

// Settings may change from one round to the next.
type Settings struct {
	Interval     time.Duration
	TTLSec       int64 // life of the own heartbeat
	Capabilities uint16

	Seeds     []string // zones, or URLs of which the host is taken
	Peers     []string // the cluster's, the same
	ListURLs  []string // public seed lists
	Resolvers []string // IP or IP:port; none: the system's
	DNSSEC    bool     // only answers with the AD bit count
	MaxPeers  int      // zones asked in a round
	Retention time.Duration
}

// Options say who the node is.
type Options struct {
	Key      ed25519.PrivateKey
	Endpoint string // base URL
	Version  string
	Zone     string // that is served; empty: the node hears others and says nothing
	Records  Records
	Dir      string // of the file of seen peers; empty: none is kept
	SeenMax  int    // peers remembered
	Settings func() Settings
	Log      *logging.Logger
}

// Worker runs the rounds.
type Worker struct {
	o        Options
	operator [32]byte
	zone     string // o.Zone, canonical
	stats    Stats
	seen     *seen

	// Of the goroutine that runs the rounds.
	resolvers Resolvers
	fetcher   fetcher
	asked     map[string]*asked
	listNext  map[string]time.Time
	published map[string]bool // of the seen graph
	saved     time.Time
	problem   string        // of the last round, as it was logged
	askFor    time.Duration // harvestMax, but in tests

	cancel context.CancelFunc
	done   sync.WaitGroup
}

// Stats are counters for the metrics page.
type Stats struct {
	Rounds          atomic.Uint64
	PublishFailures atomic.Uint64
	PublishedMs     atomic.Int64 // when the own heartbeat was last made durable; 0: never
	OwnBytes        atomic.Int64 // of the own heartbeat
	GraphValues     atomic.Int64 // of the seen graph
	GraphBytes      atomic.Int64
	Peers           atomic.Int64 // remembered
	ZonesOK         atomic.Uint64
	ZonesFailed     atomic.Uint64
	ZonesSkipped    atomic.Uint64 // the round's time was over
	Accepted        atomic.Uint64 // heartbeats
	Rejected        [Rejections]atomic.Uint64
	NotAD           atomic.Uint64 // answers without the AD bit where it is required
	ListsOK         atomic.Uint64
	ListsFailed     atomic.Uint64
}

// Stats gives the worker's counters.
func (w *Worker) Stats() *Stats { return &w.stats }

// Operator is the node's public key.
func (w *Worker) Operator() [32]byte { return w.operator }

// Peers gives what was heard, as it is ranked for the seen graph.
func (w *Worker) Peers() []*Peer {
	s := w.o.Settings()
	return w.rank(&s, clock.NowMs())
}

// New makes a worker. An error means that the node could never publish a heartbeat.
func New(o Options) (*Worker, error) {
	w := &Worker{o: o, seen: newSeen(o.SeenMax), asked: map[string]*asked{}, listNext: map[string]time.Time{}, published: map[string]bool{}, askFor: harvestMax}
	w.resolvers.Log = o.Log
	w.zone, _ = canonicalZone(o.Zone)
	copy(w.operator[:], o.Key.Public().(ed25519.PublicKey))
	if _, err := w.own(clock.NowMs()/1000, o.Settings()); err != nil {
		return nil, err
	}
	return w, nil
}

// Start is New, and begins with a round at once.
func Start(o Options) (*Worker, error) {
	w, err := New(o)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	w.done.Go(func() { w.run(ctx) })
	return w, nil
}

// Stop ends the rounds and waits for the present one to give up.
func (w *Worker) Stop() {
	w.cancel()
	w.done.Wait()
}

func (w *Worker) run(ctx context.Context) {
	if w.o.Dir != "" {
		if err := w.seen.load(vfs.OS, w.o.Dir, clock.NowMs()); err != nil {
			w.o.Log.Warn("the peers seen before are not known: they are collected again", "err", err)
		}
		defer w.save()
	}
	w.stats.Peers.Store(int64(w.seen.len()))
	w.saved = time.Now()
	for {
		start := time.Now()
		err := w.round(ctx)
		pause := max(0, w.pause(err)-time.Since(start))
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

func (w *Worker) save() {
	w.saved = time.Now()
	if err := w.seen.save(vfs.OS, w.o.Dir); err != nil {
		w.o.Log.Warn("the seen peers cannot be written", "err", err)
	}
}

// interval is the time from one round to the next, before chance.
func (w *Worker) interval(s *Settings) time.Duration {
	return min(s.Interval, roundMax, max(time.Duration(s.TTLSec)*time.Second/2, roundRetry/2))
}

// pause is the time to the next round, a little random so that nodes that were started together do not stay together.
func (w *Worker) pause(err error) time.Duration {
	s := w.o.Settings()
	d := w.interval(&s)
	if err != nil {
		d = min(d, roundRetry)
	}
	return d - time.Duration(rand.Int64N(int64(d)/10+1))
}

// round is one round: publish, ask, publish what was heard. Without a data plane there is nobody to ask for.
func (w *Worker) round(ctx context.Context) error {
	s := w.o.Settings()
	defer w.stats.Rounds.Add(1)
	if err := w.publishOwn(ctx, s); err != nil {
		return w.failed(ctx, "the heartbeat cannot be published", err)
	}
	w.harvest(ctx, &s)
	if err := w.publishGraph(ctx, &s); err != nil {
		return w.failed(ctx, "the seen graph cannot be published", err)
	}
	if w.problem != "" {
		w.problem = ""
		w.o.Log.Info("the heartbeat and the seen graph are published again")
	}
	if w.o.Dir != "" && time.Since(w.saved) > saveEvery {
		w.save()
	}
	return nil
}

// failed counts a failure, and logs it unless the last round failed in the same way: rounds that fail come every two seconds.
func (w *Worker) failed(ctx context.Context, what string, err error) error {
	if ctx.Err() == nil {
		w.stats.PublishFailures.Add(1)
		if text := what + err.Error(); text != w.problem {
			w.problem = text
			w.o.Log.Warn(what, "err", err)
		}
	}
	return err
}

// own makes the node's heartbeat.
func (w *Worker) own(nowSec int64, s Settings) ([]byte, error) {
	h := record.Heartbeat{Endpoint: w.o.Endpoint, Version: w.o.Version, Capabilities: s.Capabilities, Zone: w.o.Zone, TsSec: uint64(nowSec), ExpSec: uint64(nowSec + s.TTLSec)}
	text, r := h.Append(nil, w.o.Key)
	switch r {
	case record.Accepted:
	case record.BadEndpoint:
		return nil, fmt.Errorf("the endpoint %q is not scheme://host[:port] of a public host", w.o.Endpoint)
	default:
		return nil, fmt.Errorf("endpoint %q, version %q, zone %q: %v; a version has 32 characters at most, a zone 64", w.o.Endpoint, w.o.Version, w.o.Zone, r)
	}
	// What readers would refuse is not worth publishing.
	if r := h.Verify(text, nowSec, record.HeartbeatSkewSec); r != record.Accepted {
		return nil, fmt.Errorf("the heartbeat would be refused: %v", r)
	}
	return text, nil
}

// publishOwn puts a fresh heartbeat in the place of the last one. Nodes that share the zone have theirs at the same name, and may share
// the key: only what our key signed for our endpoint is removed, and what it signed for another one so long ago that an earlier start
// of ours left it.
func (w *Worker) publishOwn(ctx context.Context, s Settings) error {
	if w.o.Zone == "" {
		return nil
	}
	name := record.HeartbeatName(w.o.Zone)
	nowMs := clock.NowMs()
	text, err := w.own(nowMs/1000, s)
	if err != nil {
		return err
	}
	values, err := w.o.Records.Values(name)
	if err != nil {
		return err
	}
	var old [][]byte
	for _, v := range values {
		if h, ok := parse(v, nowMs/1000); ok && h.Operator == w.operator && !bytes.Equal(v, text) && (h.Endpoint == w.o.Endpoint || nowMs/1000-int64(h.TsSec) > siblingSec) {
			old = append(old, v)
		}
	}
	if err := w.change(ctx, name, [][]byte{text}, old, s.TTLSec); err != nil {
		return err
	}
	w.stats.PublishedMs.Store(nowMs)
	w.stats.OwnBytes.Store(int64(len(text)))
	return nil
}

func (w *Worker) change(ctx context.Context, name string, add, remove [][]byte, ttlSec int64) error {
	ctx, cancel := context.WithTimeout(ctx, publishMax)
	defer cancel()
	err := w.o.Records.Change(ctx, name, add, remove, ttlSec)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("no outcome within %v: %w", publishMax, err)
	}
	return err
}

// parse reads a heartbeat of any age that is signed and not expired.
func parse(text []byte, nowSec int64) (h record.Heartbeat, ok bool) {
	return h, h.Verify(text, nowSec, anySkewSec) == record.Accepted
}
