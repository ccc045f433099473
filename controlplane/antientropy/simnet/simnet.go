// Package simnet is a network in memory for tests and simulations: it delays, loses, doubles and breaks requests, and is cut in two.
package simnet

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"
)

// Network carries requests between nodes: each with a delay of its own, so that they overtake one another. While it is lossy some are lost, some
// come twice, some break in the middle. A partition breaks all that cross it.
type Network struct {
	mu       sync.Mutex
	rng      *rand.Rand
	delayMax time.Duration
	lossy    bool
	side     map[string]int
	handlers map[string]http.Handler
	conns    map[*conn]bool
}

type conn struct {
	from, to string
	cancel   context.CancelFunc
}

type transport struct {
	net      *Network
	from, to string
}

// Err is what a request gets that is lost.
var Err error = &net.OpError{Op: "dial", Net: "simnet", Err: errors.New("the network fails")}

// New makes one without nodes; each request and each write takes up to delayMax on its way.
func New(rng *rand.Rand, delayMax time.Duration) *Network {
	return &Network{rng: rng, delayMax: delayMax, side: map[string]int{}, handlers: map[string]http.Handler{}, conns: map[*conn]bool{}}
}

// Attach puts a node on the network.
func (w *Network) Attach(id string, h http.Handler) {
	w.mu.Lock()
	w.handlers[id] = h
	w.mu.Unlock()
}

// Detach takes it off, and breaks all that it takes part in.
func (w *Network) Detach(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.handlers, id)
	for c := range w.conns {
		if c.from == id || c.to == id {
			c.cancel()
		}
	}
}

// Lossy says whether requests are lost.
func (w *Network) Lossy(lossy bool) {
	w.mu.Lock()
	w.lossy = lossy
	w.mu.Unlock()
}

// Transport carries requests from one node to another.
func (w *Network) Transport(from, to string) http.RoundTripper { return &transport{w, from, to} }

func (w *Network) chance(p float64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lossy && w.rng.Float64() < p
}

func (w *Network) delay(ctx context.Context) {
	w.mu.Lock()
	d := time.Duration(w.rng.Int64N(int64(w.delayMax) + 1))
	w.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// Partition puts each node on a side; nodes that are not named are on side 0.
func (w *Network) Partition(side map[string]int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.side = side
	for c := range w.conns {
		if side[c.from] != side[c.to] {
			c.cancel()
		}
	}
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	w := t.net
	w.delay(r.Context())
	w.mu.Lock()
	handler := w.handlers[t.to]
	if w.side[t.from] != w.side[t.to] {
		handler = nil
	}
	w.mu.Unlock()
	if handler == nil || w.chance(0.1) || r.Context().Err() != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, Err
	}
	if r.Body != nil && r.URL.Path != "/v2/sync/feed" && w.chance(0.2) { // it comes twice
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		r.Body.Close()
		twin := *t
		_, _ = twin.carry(handler, r, io.NopCloser(bytes.NewReader(b)), true)
		r.Body = io.NopCloser(bytes.NewReader(b))
	}
	return t.carry(handler, r, r.Body, false)
}

// writer is the server's side of an answer.
type writer struct {
	header http.Header
	w      *io.PipeWriter
	once   sync.Once
	status int
	begun  chan struct{}
	net    *Network
	ctx    context.Context
}

func (s *writer) Header() http.Header { return s.header }
func (s *writer) Flush()              {}
func (s *writer) WriteHeader(status int) {
	s.once.Do(func() { s.status = status; close(s.begun) })
}

func (s *writer) Write(b []byte) (int, error) {
	s.WriteHeader(http.StatusOK)
	s.net.delay(s.ctx)
	if s.net.chance(0.002) {
		s.w.CloseWithError(Err)
	}
	return s.w.Write(b)
}

func (t *transport) carry(handler http.Handler, r *http.Request, sent io.ReadCloser, alone bool) (*http.Response, error) {
	w := t.net
	ctx, cancel := context.WithCancel(r.Context())
	c := &conn{t.from, t.to, cancel}
	w.mu.Lock()
	w.conns[c] = true
	w.mu.Unlock()
	in := r.Clone(ctx)
	in.Proto, in.ProtoMajor, in.ProtoMinor, in.TLS = "HTTP/2.0", 2, 0, &tls.ConnectionState{}
	in.Body = http.NoBody
	if sent != nil {
		in.Body = sent
	}
	read, write := io.Pipe()
	out := &writer{header: http.Header{}, w: write, begun: make(chan struct{}), net: w, ctx: ctx}
	stop := context.AfterFunc(ctx, func() {
		write.CloseWithError(Err)
		read.CloseWithError(Err)
		in.Body.Close()
	})
	go func() {
		handler.ServeHTTP(out, in)
		out.WriteHeader(http.StatusOK)
		in.Body.Close()
		write.Close()
		w.mu.Lock()
		delete(w.conns, c)
		w.mu.Unlock()
	}()
	if alone {
		_, _ = io.Copy(io.Discard, read)
		cancel()
		return nil, nil
	}
	select {
	case <-out.begun:
	case <-ctx.Done():
		cancel()
		return nil, Err
	}
	return &http.Response{StatusCode: out.status, Header: out.header.Clone(), Body: &body{read, func() { stop(); cancel(); in.Body.Close() }}}, nil
}

type body struct {
	*io.PipeReader
	end func()
}

func (b *body) Close() error {
	b.end()
	return b.PipeReader.Close()
}
