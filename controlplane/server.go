// Package controlplane is the HTTP process of a node: registration, the records API, pages, metrics and the operator's socket, over
// HTTP/1.1 and HTTP/2 (spec http.md). It owns control/; records it only asks the data plane to store (dataplane.go) and reads from the
// data plane's files (tail.go).
package controlplane

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dnsmesh/dmpd/controlplane/auth"
	"github.com/dnsmesh/dmpd/controlplane/heartbeat"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/config"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/systemd"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

// Bounds on clients; http.md 1 has the sizes, the times are ours.
const (
	bodyMax           = 16384
	headerMax         = 64 << 10
	headersMax        = 100
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 15 * time.Second
	writeTimeout      = 30 * time.Second
	idleTimeout       = 75 * time.Second
	streamsMax        = 100 // of one HTTP/2 connection
	drainMax          = 4 * time.Second
)

// Server is a running control plane.
type Server struct {
	log        *logging.Logger
	config     atomic.Pointer[config.Config]
	proxies    atomic.Pointer[[]netip.Prefix]
	zone       string
	controlDir string
	dataDir    string

	lock      *journal.FileLock
	live      *journal.Live
	tail      *tail
	requests  *requests
	state     *auth.State
	audit     *auth.Audit
	registrar *auth.Registrar
	tls       certificates      // nil: plain HTTP
	heart     *heartbeat.Worker // nil: the node does not announce itself

	replication *replication

	http      *http.Server
	listeners []net.Listener
	admin     io.Closer

	limit    auth.Limiter[netip.Prefix]
	slots    chan struct{} // requests worked on at once
	metrics  metrics
	pages    pages
	feed     feed
	history  history
	started  time.Time
	stopBeat chan struct{}
	beating  sync.WaitGroup
	failed   chan error
	stopOnce sync.Once
	stopErr  error
}

// ErrCannotRun marks errors that a restart does not mend: a lock that is held, an address that is taken, a bad certificate.
var ErrCannotRun = errors.New("controlplane: cannot run here")

// Start opens the state and listens. Requests are answered when it returns.
func Start(c *config.Config, log *logging.Logger) (*Server, error) {
	s := &Server{log: log, zone: c.Zone(), controlDir: filepath.Join(c.StateDir(), "control"), dataDir: filepath.Join(c.StateDir(), "data"),
		started: time.Now(), stopBeat: make(chan struct{}), failed: make(chan error, 16), slots: make(chan struct{}, c.Int("HTTP_MAX_CONCURRENCY"))}
	s.metrics.init()
	s.setConfig(c)
	if err := s.start(c); err != nil {
		s.release()
		return nil, err
	}
	return s, nil
}

func (s *Server) start(c *config.Config) error {
	for _, dir := range []string{s.controlDir, s.dataDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("%w: %w", ErrCannotRun, err)
		}
	}
	var err error
	if s.lock, err = journal.Lock(filepath.Join(s.controlDir, "lock")); err != nil {
		return fmt.Errorf("%w: %w", ErrCannotRun, err)
	}
	if s.tls, err = openCertificates(c, s.controlDir, s.log); err != nil {
		return fmt.Errorf("%w: %w", ErrCannotRun, err)
	}
	if s.listeners, err = listen(c, s.tls); err != nil {
		return fmt.Errorf("%w: %w", ErrCannotRun, err)
	}
	if s.live, err = journal.CreateLive(vfs.OS, filepath.Join(s.controlDir, "live"), config.BuildID()); err != nil {
		return err
	}
	s.audit = auth.OpenAudit(vfs.OS, s.controlDir, s.log)
	s.tail = newTail(vfs.OS, s.dataDir, s.log)
	if s.requests, err = openRequests(vfs.OS, s.controlDir, s.dataDir, s.tail, s.live, s.log); err != nil {
		return err
	}
	if err := s.openState(c); err != nil {
		return err
	}
	s.registrar = &auth.Registrar{State: s.state, Challenges: auth.NewChallenges(), Settings: s.registration, ClientAddr: s.clientAddr, Log: s.log}
	if err := s.startReplication(); err != nil {
		return err
	}
	s.startHeartbeat(c)
	if s.admin, err = s.serveAdmin(); err != nil {
		return err
	}
	s.serve()
	s.beating.Go(s.beat)
	s.warn(c)
	return nil
}

// openState reads control/state. A data plane that has taken more of it than there is, or rows without any state, mean that it was lost.
func (s *Server) openState(c *config.Config) error {
	files, err := os.ReadDir(s.dataDir)
	if err != nil {
		return err
	}
	rows := false
	for _, f := range files {
		rows = rows || strings.HasPrefix(f.Name(), "rows-")
	}
	// A first start whose data plane was quicker has rows, but nobody has ever taken any state.
	var taken uint64
	if rows {
		taken = s.stateTaken()
	}
	s.state, err = auth.Open(auth.Options{Dir: s.controlDir, Log: s.log, RetainMs: c.LogRetain().Milliseconds(), Reaches: taken, DataExists: taken > 0, Audit: s.audit})
	if err != nil {
		return err
	}
	s.state.SetTaker(taker{s})
	return nil
}

// stateTaken is how far the data plane's log says that it took the state.
func (s *Server) stateTaken() uint64 {
	end := time.Now().Add(30 * time.Second)
	for time.Now().Before(end) {
		_, _, behind, problem := s.tail.position()
		if !behind || problem != nil {
			break
		}
		if files, err := filepath.Glob(filepath.Join(s.dataDir, "rows-*.log")); err != nil || len(files) == 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	s.tail.mu.RLock()
	defer s.tail.mu.RUnlock()
	return s.tail.taken.State
}

// taker waits for the data plane on behalf of auth.
type taker struct{ s *Server }

func (t taker) Taken(ctx context.Context, lsn uint64) error {
	return t.s.requests.taken(ctx, t.s.state.Epoch(), lsn)
}

func listen(c *config.Config, cert certificates) (ls []net.Listener, err error) {
	port := strconv.FormatInt(c.Int("HTTP_PORT"), 10)
	limit := newConnLimit(int(c.Int("HTTP_MAX_CONNECTIONS")))
	for _, host := range c.List("HTTP_HOST") {
		network := "tcp4"
		if strings.EqualFold(host, "localhost") {
			host = "127.0.0.1"
		}
		if strings.Contains(host, ":") {
			network = "tcp6"
		}
		l, err := net.Listen(network, net.JoinHostPort(host, port))
		if err != nil && host == "::" && len(ls) > 0 && (strings.Contains(err.Error(), "not supported") || strings.Contains(err.Error(), "cannot assign")) {
			continue // a machine without IPv6 and the default addresses
		}
		if err != nil {
			for _, l := range ls {
				l.Close()
			}
			return nil, fmt.Errorf("%w. Choose another DMP_HTTP_HOST or DMP_HTTP_PORT", err)
		}
		l = &limitListener{l, limit}
		if cert != nil {
			l = tls.NewListener(l, cert.config())
		}
		ls = append(ls, l)
		if port == "0" { // all of them on the port that the first one got
			_, port, _ = net.SplitHostPort(l.Addr().String())
		}
	}
	return ls, nil
}

func (s *Server) serve() {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(s.tls == nil)
	s.http = &http.Server{
		Handler: http.HandlerFunc(s.handle), Protocols: &protocols, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: streamsMax, MaxReadFrameSize: 1 << 20},
		ReadHeaderTimeout: readHeaderTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: headerMax,
		ErrorLog: nil,
	}
	s.http.ErrorLog = quiet(s.log)
	for _, l := range s.listeners {
		go func() {
			if err := s.http.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
				s.failed <- err
			}
		}()
	}
	if i, ok := s.tls.(*issued); ok {
		i.serve()
	}
}

// Addrs are the addresses that are listened on.
func (s *Server) Addrs() (as []net.Addr) {
	for _, l := range s.listeners {
		as = append(as, l.Addr())
	}
	return as
}

// Failed gives an error when the server cannot go on.
func (s *Server) Failed() <-chan error { return s.failed }

// beat keeps the live page and the history of the status page.
func (s *Server) beat() {
	tick := time.NewTicker(journal.BeatEvery)
	defer tick.Stop()
	for i := 0; ; i++ {
		s.live.Beat(clock.NowMs())
		_ = systemd.Alive() // one that is not heard is restarted, which the manager's log tells
		if i%10 == 0 {
			s.history.sample(s)
		}
		select {
		case <-tick.C:
		case <-s.stopBeat:
			return
		}
	}
}

func (s *Server) warn(c *config.Config) {
	for _, a := range s.Addrs() {
		s.log.Info("listening", "http", a, "tls", s.tls != nil)
	}
	s.log.Info("http", "auth_mode", c.AuthMode(), "zone", s.zone, "registration", s.registration().Enabled, "updates", c.Bool("DNS_UPDATE_ENABLED"))
	if c.String("OPERATOR_TOKEN") == "" {
		s.log.Warn("metrics endpoint unauthenticated: set DMP_OPERATOR_TOKEN (or DMP_HTTP_TOKEN) to close /metrics and GET /v1/records")
	}
}

func (s *Server) setConfig(c *config.Config) {
	s.config.Store(c)
	var prefixes []netip.Prefix
	for _, p := range c.List("TRUSTED_PROXIES") {
		if prefix, err := config.ParsePrefix(p); err == nil {
			prefixes = append(prefixes, prefix)
		}
	}
	s.proxies.Store(&prefixes)
}

// Reload takes a configuration over, as far as it can without a restart, and reads the certificate again.
func (s *Server) Reload(c *config.Config) error {
	s.setConfig(c)
	s.replication.reload()
	if files, ok := s.tls.(*certificate); ok {
		return files.load()
	}
	return nil
}

func (s *Server) registration() auth.Settings {
	c := s.config.Load()
	scopes := auth.ScopesDefault
	if c.Bool("TSIG_TIGHT_SCOPE") {
		scopes = auth.ScopesTight
	}
	if c.Bool("TSIG_LOOSE_SCOPE") {
		scopes = auth.ScopesLoose
	}
	return auth.Settings{
		Enabled: c.Bool("REGISTRATION_ENABLED") && c.AuthMode() == "multi-tenant", Updates: c.Bool("DNS_UPDATE_ENABLED"), Node: c.String("NODE_HOSTNAME"), Zone: s.zone,
		Allowlist: c.List("REGISTRATION_ALLOWLIST"), LifeSec: c.Int("REGISTRATION_TOKEN_TTL_SECONDS"), TokenRate: c.Float("REGISTRATION_ISSUED_RATE_PER_SEC"),
		TokenBurst: int(c.Int("REGISTRATION_ISSUED_RATE_BURST")), Scopes: scopes, LimitRate: c.Float("REGISTRATION_ENDPOINT_RATE_PER_SEC"), LimitBurst: c.Float("REGISTRATION_ENDPOINT_RATE_BURST"),
	}
}

// Stop drains for a few seconds, then cuts, then closes the files. A second call gives the result of the first.
func (s *Server) Stop() error {
	s.stopOnce.Do(func() { s.stopErr = s.stop() })
	return s.stopErr
}

func (s *Server) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), drainMax)
	defer cancel()
	if s.replication != nil {
		s.replication.cancel() // its streams would last
	}
	if s.http != nil {
		if err := s.http.Shutdown(ctx); err != nil {
			s.log.Warn("clients that did not finish are cut", "err", err)
			_ = s.http.Close()
		}
	}
	return s.release()
}

func (s *Server) release() error {
	var errs []error
	for _, l := range s.listeners {
		l.Close()
	}
	if s.admin != nil {
		s.admin.Close()
	}
	if s.heart != nil {
		s.heart.Stop()
	}
	select {
	case <-s.stopBeat:
	default:
		close(s.stopBeat)
	}
	s.beating.Wait()
	if s.replication != nil {
		s.replication.stop()
	}
	if s.tls != nil {
		s.tls.close()
	}
	if s.state != nil {
		errs = append(errs, s.state.Close())
	}
	if s.requests != nil {
		errs = append(errs, s.requests.close())
	}
	if s.tail != nil {
		s.tail.close()
	}
	if s.audit != nil {
		errs = append(errs, s.audit.Close())
	}
	if s.live != nil {
		s.live.Close()
	}
	if s.lock != nil {
		s.lock.Close()
	}
	return errors.Join(errs...)
}

// clientAddr is who asks: the peer, or behind trusted proxies the last hop that is not one of them (http.md 20, row 4).
func (s *Server) clientAddr(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	addr := ap.Addr().Unmap()
	proxies := *s.proxies.Load()
	if !trusted(proxies, addr) {
		return addr
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		addr = hop.Unmap()
		if !trusted(proxies, addr) {
			break
		}
	}
	return addr
}

func trusted(proxies []netip.Prefix, a netip.Addr) bool {
	for _, p := range proxies {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// handle routes a request. Admission comes first for everything but health, which has to answer when nothing else does.
func (s *Server) handle(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/v2/sync/") {
		s.replication.serveNative(w, r) // streams that last: they take no slot, and have bounds of their own
		return
	}
	cw := &countingWriter{ResponseWriter: w, head: r.Method == http.MethodHead}
	start := time.Now()
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			s.log.Error("a request failed", "method", r.Method, "path", r.URL.Path, "panic", fmt.Sprint(p))
			if cw.status == 0 {
				reply(cw, http.StatusInternalServerError, errorBody{"internal error"})
			}
		}
		s.metrics.request(r.Method, cw.status, time.Since(start))
	}()
	headers := 0
	for _, values := range r.Header {
		headers += len(values)
	}
	if headers > headersMax {
		reply(cw, http.StatusRequestHeaderFieldsTooLarge, errorBody{"too many headers"})
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodDelete:
	default:
		w.Header().Set("Allow", "GET, HEAD, POST, DELETE")
		reply(cw, http.StatusNotImplemented, errorBody{"unsupported method"})
		return
	}
	path := r.URL.EscapedPath()
	if strings.HasPrefix(path, "/health") {
		s.health(cw, r, path)
		return
	}
	if r.ProtoMajor == 2 {
		defer drain(w, r) // runs when the slot below is free again
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		s.metrics.shed.Add(1)
		cw.Header().Set("Retry-After", "1")
		reply(cw, http.StatusServiceUnavailable, errorBody{"too many requests at once"})
		return
	}
	s.route(cw, r, path)
}

// drainTimeout is how long a body that nobody asked for is waited for.
const drainTimeout = time.Second

// drain reads what is left of a small body before the reply ends. A reply that ends before it makes HTTP/2 reset the stream (RFC 9113
// 8.1), and some clients then lose the reply. HTTP/1.1 does this by itself.
func drain(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(drainTimeout))
	_, _ = io.CopyN(io.Discard, r.Body, bodyMax) // what cannot be read is not wanted
}

func (s *Server) route(w http.ResponseWriter, r *http.Request, path string) {
	get := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case strings.HasPrefix(path, "/v1/records/"):
		s.records(w, r, path)
	case get && (path == "/" || path == "/index.html"):
		s.landing(w)
	case get && path == "/status":
		s.status(w)
	case get && path == "/feed.json" && s.heart != nil && s.config.Load().Bool("HEARTBEAT_FEED"):
		s.feedPage(w)
	case get && path == "/stats":
		s.stats(w)
	case get && path == "/metrics":
		s.metricsPage(w, r)
	case get && path == "/v1/registration/challenge":
		s.registrar.Challenge(w, r)
	case r.Method == http.MethodPost && path == "/v1/registration/confirm":
		s.registrar.Confirm(w, r)
	case r.Method == http.MethodPost && path == "/v1/registration/tsig-confirm":
		s.registrar.TSIGConfirm(w, r)
	case strings.HasPrefix(path, "/v1/sync/") && s.isSync(r.Method, path):
		s.sync(w, r, path)
	default:
		reply(w, http.StatusNotFound, errorBody{"not found"})
	}
}

func (s *Server) isSync(method, path string) bool {
	switch path {
	case "/v1/sync/digest", "/v1/sync/cluster-manifest":
		return method != http.MethodPost && method != http.MethodDelete
	case "/v1/sync/pull":
		return method == http.MethodPost
	}
	return false
}

type errorBody struct {
	Error string `json:"error"`
}

// reply sends a JSON body.
func reply(w http.ResponseWriter, status int, body any) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // the bodies are compared byte for byte, and are no HTML
	if err := e.Encode(body); err != nil {
		panic(err) // plain structs only
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(b.Len()))
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // the client is gone: nobody to tell
}

// empty sends a status without a body.
func empty(w http.ResponseWriter, status int) {
	if status != http.StatusNoContent {
		w.Header().Set("Content-Length", "0")
	}
	w.WriteHeader(status)
}

// bearer compares the Authorization header with a secret. `Bearer` and the one space are case-sensitive (http.md 3).
func bearer(r *http.Request) string {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return ""
	}
	return token
}

// operator says whether the request carries the operator's token.
func (s *Server) operator(r *http.Request) bool {
	return auth.EqualToken(bearer(r), s.config.Load().String("OPERATOR_TOKEN"))
}

// mayRead is the rule of /metrics and GET /v1/records: the operator's token if there is one. Without one, what the world can reach is
// closed unless the mode says open (http.md 20, row 10).
func (s *Server) mayRead(r *http.Request) bool {
	c := s.config.Load()
	if c.String("OPERATOR_TOKEN") != "" {
		return s.operator(r)
	}
	return c.AuthMode() == "open" || loopbackOnly(c.List("HTTP_HOST"))
}

func loopbackOnly(hosts []string) bool {
	for _, host := range hosts {
		a, err := netip.ParseAddr(host)
		if !strings.EqualFold(host, "localhost") && (err != nil || !a.IsLoopback()) {
			return false
		}
	}
	return true
}

// health is 200 while the data plane answers queries and the records can be read (http.md 4.2). /health/live says only that this
// process runs; /health/ready is /health.
func (s *Server) health(w http.ResponseWriter, r *http.Request, path string) {
	get := r.Method == http.MethodGet || r.Method == http.MethodHead
	type health struct {
		Status string `json:"status"`
		Store  string `json:"store,omitempty"`
	}
	switch {
	case get && path == "/health/live":
		reply(w, http.StatusOK, health{Status: "ok"})
	case get && (path == "/health" || path == "/health/ready"):
		if why := s.unhealthy(); why != "" {
			w.Header().Set("Retry-After", "2")
			reply(w, http.StatusServiceUnavailable, health{"degraded", why})
			return
		}
		reply(w, http.StatusOK, health{Status: "ok"})
	default:
		reply(w, http.StatusNotFound, errorBody{"not found"})
	}
}

func (s *Server) unhealthy() string {
	switch s.requests.state() {
	case dataGone:
		return "the DNS process is away"
	case dataHanging:
		return "the DNS process does not answer"
	}
	if _, _, behind, problem := s.tail.position(); problem != nil {
		return "the records cannot be read"
	} else if behind {
		return "the records are being read"
	}
	return ""
}
