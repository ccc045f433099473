package controlplane

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/config"
	"github.com/dnsmesh/dmpd/internal/stats"
)

//go:embed pages/style.css
var styleSheet string

//go:embed pages/landing.html
var landingText string

//go:embed pages/status.html
var statusText string

var (
	landingPage = template.Must(template.New("landing").Funcs(pageFuncs).Parse(landingText))
	statusPage  = template.Must(template.New("status").Funcs(pageFuncs).Parse(statusText))
	pageFuncs   = template.FuncMap{"css": func() template.CSS { return template.CSS(styleSheet) }, "count": grouped}
)

// pageAge is how old a page served from memory may be: a page is rendered at most that often, however many ask.
const pageAge = 2 * time.Second

// pages holds what was rendered last.
type pages struct {
	mu              sync.Mutex
	landing, status rendered
}

type rendered struct {
	body []byte
	at   time.Time
}

// render gives the page, from memory if it is fresh.
func (s *Server) render(r *rendered, t *template.Template, data func() any) ([]byte, error) {
	s.pages.mu.Lock()
	defer s.pages.mu.Unlock()
	if r.body != nil && time.Since(r.at) < pageAge {
		return r.body, nil
	}
	var b bytes.Buffer
	if err := t.Execute(&b, data()); err != nil {
		return nil, err
	}
	r.body, r.at = b.Bytes(), time.Now()
	return r.body, nil
}

func (s *Server) sendPage(w http.ResponseWriter, body []byte, err error, cache string) {
	if err != nil {
		s.log.Error("a page cannot be rendered", "err", err)
		reply(w, http.StatusInternalServerError, errorBody{"internal error"})
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", cache)
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(body)
}

// landing is the page at / (http.md 4.1). It does not reflect the Host header, so that it may be cached by anybody.
func (s *Server) landing(w http.ResponseWriter) {
	body, err := s.render(&s.pages.landing, landingPage, func() any {
		c := s.config.Load()
		data := struct {
			Identity, Host, Zone, Mode, Operator        string
			Healthy                                     bool
			Why                                         string
			Records                                     string
			Registration, Updates, Provider, M10, Heart bool
			LifeDays                                    int64
			Allowlist                                   []string
			Peers                                       []directoryRow
			More                                        int
			Version                                     string
		}{
			Identity: c.String("HEARTBEAT_SELF_ENDPOINT"), Zone: s.zone, Mode: c.AuthMode(), Registration: s.registration().Enabled && c.String("NODE_HOSTNAME") != "",
			Updates: c.Bool("DNS_UPDATE_ENABLED"), Provider: c.Bool("CLAIM_PROVIDER") && c.Bool("DNS_UPDATE_ENABLED"), M10: c.Bool("RECEIVER_CLAIM_NOTIFICATIONS"),
			Heart: s.heart != nil, LifeDays: c.Int("REGISTRATION_TOKEN_TTL_SECONDS") / 86400, Allowlist: c.List("REGISTRATION_ALLOWLIST"), Version: config.Version,
		}
		data.Peers, data.More = s.directory()
		if s.heart != nil {
			data.Operator = fmt.Sprintf("%x", s.heart.Operator())
		}
		data.Why = s.unhealthy()
		data.Healthy = data.Why == ""
		data.Host = strings.TrimPrefix(strings.TrimPrefix(data.Identity, "https://"), "http://")
		if data.Host == "" {
			data.Host = c.String("NODE_HOSTNAME")
		}
		if data.Identity == "" {
			data.Identity = "this node"
			if data.Host != "" {
				data.Identity = data.Host
			}
		}
		if data.Host == "" {
			data.Host = "this-node.example"
		}
		if p := s.counters(); p != nil {
			data.Records = grouped(p.Value(stats.Records))
		}
		return data
	})
	s.sendPage(w, body, err, "public, max-age=30")
}

// grouped writes a number with thin spaces between groups of three digits.
func grouped(n uint64) string {
	text := strconv.FormatUint(n, 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "\u2009" + text[i:]
	}
	return text
}

// history holds what the status page draws: a reading every few seconds.
type history struct {
	mu      sync.Mutex
	at      []time.Time
	values  [series][]float64
	last    [series]uint64
	lastAt  time.Time
	started uint64 // of the page that last was read from
}

const (
	seriesQueries = iota
	seriesUpdates
	seriesRefused
	seriesRecords
	series

	historyMax = 240 // readings: 20 minutes at one in 5 s
	graphLeast = 24
)

// sample takes a reading: rates a second of the counters, and the number of records.
func (h *history) sample(s *Server) {
	p := s.counters()
	if p == nil {
		return
	}
	now := time.Now()
	var totals [series]uint64
	totals[seriesQueries] = p.Value(stats.Opcode(0))
	totals[seriesUpdates] = p.Value(stats.UpdateAdds) + p.Value(stats.UpdateDeletes)
	for _, rcode := range []uint16{1, 2, 4, 5, 9, 10} {
		totals[seriesRefused] += p.Value(stats.Outcome(rcode))
	}
	totals[seriesRefused] += p.Value(stats.RateLimited) + p.Value(stats.Malformed) + p.Value(stats.TSIGFailed)
	h.mu.Lock()
	defer h.mu.Unlock()
	made := p.Made()
	elapsed := now.Sub(h.lastAt).Seconds()
	if !h.lastAt.IsZero() && made == h.started && elapsed > 0 {
		h.at = append(h.at, now)
		for i := range totals {
			v := float64(totals[i]-h.last[i]) / elapsed
			if i == seriesRecords {
				v = float64(p.Value(stats.Records))
			}
			h.values[i] = append(h.values[i], v)
			if len(h.values[i]) > historyMax {
				h.values[i] = h.values[i][1:]
			}
		}
		if len(h.at) > historyMax {
			h.at = h.at[1:]
		}
	}
	h.last, h.lastAt, h.started = totals, now, made
}

// graph is one small picture of the status page, as the points of an SVG polyline.
type graph struct {
	Title, Now, Max, Span, Points, Area string
}

const graphWidth, graphHeight = 300, 60

func (h *history) graph(title string, which int, unit string) graph {
	h.mu.Lock()
	defer h.mu.Unlock()
	vs := h.values[which]
	// A young node draws its few readings as wide as two minutes, not as a thread at the edge of twenty.
	span := min(max(len(vs), graphLeast), historyMax)
	g := graph{Title: title, Now: "no reading yet", Span: fmt.Sprintf("last %d minutes", (span+11)/12)}
	if len(vs) == 0 {
		return g
	}
	top := 0.0
	for _, v := range vs {
		top = max(top, v)
	}
	g.Now, g.Max = short(vs[len(vs)-1])+unit, short(top)+unit
	scale := max(top, 1e-9)
	var b strings.Builder
	for i, v := range vs {
		x := float64(graphWidth) * float64(span-len(vs)+i+1) / float64(span)
		fmt.Fprintf(&b, "%.1f,%.1f ", x, graphHeight-(graphHeight-4)*v/scale-1)
	}
	g.Points = strings.TrimSpace(b.String())
	first := float64(graphWidth) * float64(span-len(vs)+1) / float64(span)
	g.Area = fmt.Sprintf("%.1f,%d %s %d,%d", first, graphHeight, g.Points, graphWidth, graphHeight)
	return g
}

func short(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.1f M", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.1f k", v/1e3)
	case v >= 100 || v == float64(int64(v)):
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.1f", v)
}

type figure struct{ Name, Value string }

// status is the page of live figures.
func (s *Server) status(w http.ResponseWriter) {
	body, err := s.render(&s.pages.status, statusPage, func() any {
		data := struct {
			Zone, Version, Why string
			Healthy            bool
			Graphs             []graph
			Outcomes, Figures  []figure
			Peers              []peerLine
			At                 string
		}{Zone: s.zone, Version: config.Version, Why: s.unhealthy(), At: clock.Now().UTC().Format("2006-01-02 15:04:05 UTC")}
		data.Healthy = data.Why == ""
		data.Graphs = []graph{s.history.graph("Queries", seriesQueries, "/s"), s.history.graph("Updates", seriesUpdates, "/s"),
			s.history.graph("Refused", seriesRefused, "/s"), s.history.graph("Records", seriesRecords, "")}
		if p := s.counters(); p != nil {
			for _, o := range []struct {
				name string
				c    stats.Counter
			}{{"answered", stats.Outcome(0)}, {"no such name", stats.Outcome(3)}, {"refused", stats.Outcome(5)}, {"malformed", stats.Outcome(1)}, {"server failure", stats.Outcome(2)},
				{"signature or key wrong", stats.TSIGFailed}, {"rate limited", stats.RateLimited}} {
				data.Outcomes = append(data.Outcomes, figure{o.name, grouped(p.Value(o.c))})
			}
			data.Figures = append(data.Figures, figure{"records", grouped(p.Value(stats.Records))}, figure{"names", grouped(p.Value(stats.Names))},
				figure{"tombstones", grouped(p.Value(stats.Tombstones))}, figure{"serial", strconv.FormatUint(p.Value(stats.Serial), 10)},
				figure{"log not yet in a snapshot", short(float64(p.Value(stats.LogBytes))/1e6) + " MB"}, figure{"open DNS connections", grouped(p.Value(stats.TCPOpen))},
				figure{"TSIG keys", grouped(p.Value(stats.KeysLive))})
			if start := p.Value(stats.StartedSec); start > 0 {
				data.Figures = append(data.Figures, figure{"DNS process up for", age(clock.NowMs()/1000 - int64(start))})
			}
		}
		data.Figures = append(data.Figures, figure{"HTTP process up for", age(int64(time.Since(s.started).Seconds()))}, figure{"replication", s.replication.summary()})
		data.Peers = s.replication.peerLines()
		return data
	})
	s.sendPage(w, body, err, "no-store")
}

func age(sec int64) string {
	switch {
	case sec < 60:
		return fmt.Sprintf("%d s", sec)
	case sec < 3600:
		return fmt.Sprintf("%d min", sec/60)
	case sec < 86400:
		return fmt.Sprintf("%d h", sec/3600)
	}
	return fmt.Sprintf("%d d", sec/86400)
}
