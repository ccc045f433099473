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
)

const (
	// roundMax is the longest time between two rounds, whatever is configured. Readers take a heartbeat for HeartbeatSkewSec = 300 s
	// from its signing. The path to a client that reads our seen graph is: a peer's heartbeat as old as the peer's round, a resolver's
	// cache (60 s), our round, the client's cache (60 s). With 75 s that is 270 s at the most.
	roundMax = 75 * time.Second
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
}

// Options say who the node is.
type Options struct {
	Key      ed25519.PrivateKey
	Endpoint string // base URL
	Version  string
	Zone     string // that is served; empty: the node hears others and says nothing
	Records  Records
	Settings func() Settings
	Log      *logging.Logger
}

// Worker runs the rounds.
type Worker struct {
	o        Options
	operator [32]byte
	stats    Stats
	cancel   context.CancelFunc
	done     sync.WaitGroup
}

// Stats are counters for the metrics page.
type Stats struct {
	Rounds          atomic.Uint64
	PublishFailures atomic.Uint64
	PublishedMs     atomic.Int64 // when the own heartbeat was last made durable; 0: never
	OwnBytes        atomic.Int64 // of the own heartbeat
}

// Stats gives the worker's counters.
func (w *Worker) Stats() *Stats { return &w.stats }

// Operator is the node's public key.
func (w *Worker) Operator() [32]byte { return w.operator }

// Start begins with a round at once. An error means that the node could never publish a heartbeat.
func Start(o Options) (*Worker, error) {
	w := &Worker{o: o}
	copy(w.operator[:], o.Key.Public().(ed25519.PublicKey))
	if _, err := w.own(clock.NowMs()/1000, o.Settings()); err != nil {
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
	for {
		pause := w.pause(w.round(ctx))
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// pause is the time to the next round, a little random so that nodes that were started together do not stay together.
func (w *Worker) pause(err error) time.Duration {
	d := min(w.o.Settings().Interval, roundMax)
	if err != nil {
		d = min(d, roundRetry)
	}
	return d - time.Duration(rand.Int64N(int64(d)/10+1))
}

// round is one round. A failure ends that part of it alone.
func (w *Worker) round(ctx context.Context) error {
	s := w.o.Settings()
	err := w.publishOwn(ctx, s)
	if err != nil && ctx.Err() == nil {
		w.stats.PublishFailures.Add(1)
		w.o.Log.Warn("the heartbeat cannot be published", "err", err)
	}
	w.stats.Rounds.Add(1)
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

// publishOwn puts a fresh heartbeat in the place of the last one. Nodes that share the zone have theirs at the same name: only what our
// key signed is removed, so that what an earlier start left goes too.
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
		if h, ok := parse(v, nowMs/1000); ok && h.Operator == w.operator && !bytes.Equal(v, text) {
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
