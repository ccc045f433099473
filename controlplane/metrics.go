package controlplane

import (
	"bytes"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/config"
	"github.com/dnsmesh/dmpd/internal/stats"
)

// metrics are the control plane's own; the data plane's are rendered from its mapped page.
type metrics struct {
	mu       sync.Mutex
	requests map[requestKey]uint64
	shed     atomic.Uint64
	latency  [len(latencyBounds) + 1]atomic.Uint64
	latSum   atomic.Int64

	pageMu sync.Mutex
	page   *stats.Page
	opened time.Time
}

type requestKey struct {
	method string
	status int
}

// latencyBounds are seconds.
var latencyBounds = [...]float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}

func (m *metrics) init() { m.requests = map[requestKey]uint64{} }

// request counts one. Methods that are not served share one label value, so that strangers cannot make series.
func (m *metrics) request(method string, status int, took time.Duration) {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodDelete:
	default:
		method = "other"
	}
	i := sort.SearchFloat64s(latencyBounds[:], took.Seconds())
	m.latency[i].Add(1)
	m.latSum.Add(int64(took))
	m.mu.Lock()
	m.requests[requestKey{method, status}]++
	m.mu.Unlock()
}

// countingWriter remembers the status and keeps the body of a HEAD back.
type countingWriter struct {
	http.ResponseWriter
	status int
	head   bool
}

func (w *countingWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
		w.ResponseWriter.WriteHeader(status)
	}
}

func (w *countingWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.head {
		return len(b), nil
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// counters opens the data plane's page; a data plane that started anew has a new one.
func (s *Server) counters() *stats.Page {
	m := &s.metrics
	m.pageMu.Lock()
	defer m.pageMu.Unlock()
	if m.page != nil && time.Since(m.opened) < time.Second {
		return m.page
	}
	p, err := stats.Open(filepath.Join(s.dataDir, "counters"))
	if err != nil {
		return m.page
	}
	if m.page != nil && m.page.Made() == p.Made() {
		p.Close()
	} else {
		m.page = p // the old mapping is let be, since somebody may be reading it: a few pages for each start of the data plane
	}
	m.opened = time.Now()
	return m.page
}

func (s *Server) stats(w http.ResponseWriter) {
	p := s.counters()
	if p == nil {
		reply(w, http.StatusOK, struct {
			Records *int `json:"records"`
		}{nil})
		return
	}
	reply(w, http.StatusOK, struct {
		Records uint64 `json:"records"`
	}{p.Value(stats.Records)})
}

func (s *Server) metricsPage(w http.ResponseWriter, r *http.Request) {
	if !s.mayRead(r) {
		w.Header().Set("WWW-Authenticate", "Bearer")
		reply(w, http.StatusUnauthorized, errorBody{"unauthorized"})
		return
	}
	var b bytes.Buffer
	s.ownMetrics(&b)
	if p := s.counters(); p != nil {
		_ = p.Write(&b) // a buffer takes everything
	}
	out := sortFamilies(b.String())
	h := w.Header()
	h.Set("Content-Type", "text/plain; version=0.0.4")
	h.Set("Content-Length", strconv.Itoa(len(out)))
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write([]byte(out))
}

func (s *Server) ownMetrics(b *bytes.Buffer) {
	m := &s.metrics
	family := func(name, kind, help string) { fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	gauge := func(name, help string, v float64) {
		family(name, "gauge", help)
		fmt.Fprintf(b, "%s %s\n", name, stats.Float(v))
	}
	family("dmp_http_requests_total", "counter", "HTTP requests by method and status.")
	m.mu.Lock()
	keys := make([]requestKey, 0, len(m.requests))
	for k := range m.requests {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b requestKey) int {
		if c := strings.Compare(a.method, b.method); c != 0 {
			return c
		}
		return a.status - b.status
	})
	for _, k := range keys {
		fmt.Fprintf(b, "dmp_http_requests_total{method=%q,status=\"%d\"} %s\n", k.method, k.status, stats.Float(float64(m.requests[k])))
	}
	m.mu.Unlock()
	family("dmpd_http_latency_seconds", "histogram", "Time from a request's headers to the end of its answer.")
	total := uint64(0)
	for i := range m.latency {
		total += m.latency[i].Load()
		le := "+Inf"
		if i < len(latencyBounds) {
			le = strconv.FormatFloat(latencyBounds[i], 'f', -1, 64)
		}
		fmt.Fprintf(b, "dmpd_http_latency_seconds_bucket{le=%q} %s\n", le, stats.Float(float64(total)))
	}
	fmt.Fprintf(b, "dmpd_http_latency_seconds_sum %s\ndmpd_http_latency_seconds_count %s\n", stats.Float(time.Duration(m.latSum.Load()).Seconds()), stats.Float(float64(total)))
	family("dmpd_http_shed_total", "counter", "Requests answered 503 since too many were worked on.")
	fmt.Fprintf(b, "dmpd_http_shed_total %s\n", stats.Float(float64(m.shed.Load())))
	up := 0.0
	if s.requests.state() == dataServing {
		up = 1
	}
	gauge("dmpd_dataplane_up", "1 while the DNS process answers.", up)
	if l := s.requests.data(); l != nil {
		gauge("dmpd_dataplane_beat_age_seconds", "Age of the DNS process's last sign of life.", float64(clock.NowMs()-l.BeatMs())/1000)
	}
	lsn, feedMs, _, _ := s.tail.position()
	gauge("dmpd_tail_lsn", "Frame of the rows log up to which the HTTP process has read.", float64(lsn))
	gauge("dmpd_tail_feed_seconds", "Stamp of that frame, Unix time.", float64(feedMs)/1000)
	gauge("dmpd_controlplane_start_time_seconds", "When the HTTP process started, Unix time.", float64(s.started.Unix()))
	run := stats.ReadRuntime()
	family("dmpd_controlplane_cpu_seconds_total", "counter", "CPU time of the HTTP process, user and system.")
	fmt.Fprintf(b, "dmpd_controlplane_cpu_seconds_total %s\n", stats.Float(float64(run.CPUNs)/1e9))
	family("dmpd_controlplane_gc_cpu_seconds_total", "counter", "CPU time of its garbage collector.")
	fmt.Fprintf(b, "dmpd_controlplane_gc_cpu_seconds_total %s\n", stats.Float(float64(run.GCNs)/1e9))
	gauge("dmpd_controlplane_heap_bytes", "Bytes of objects on its Go heap.", float64(run.HeapBytes))
	s.heartbeatMetrics(b, family, gauge)
	s.replication.clusterMetrics(b)
	s.replication.nativeMetrics(b)
	family("dmpd_build_info", "gauge", "The build, always 1.")
	fmt.Fprintf(b, "dmpd_build_info{version=%q} 1.0\n", config.Version)
}

// sortFamilies puts metric families in the order of their names, as the reference does.
func sortFamilies(text string) string {
	var families []string
	for part := range strings.SplitSeq(text, "# HELP ") {
		if part != "" {
			families = append(families, part)
		}
	}
	sort.Strings(families)
	return "# HELP " + strings.Join(families, "# HELP ")
}
