package controlplane

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/dnsmesh/dmpd/controlplane/heartbeat"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/stats"
)

// What this node has heard of others, for people (the landing page), for programs (/feed.json, if DMP_HEARTBEAT_FEED is on) and for its
// operator (dmpd peers). All text in it is a stranger's: it is shown as text, never as a link, and bounded.
const (
	directoryMax = 50   // rows of the landing page
	feedMax      = 1000 // nodes of the feed: some 700 KB
	feedAge      = 30 * time.Second
	liveMs       = 15 * 60_000 // a node heard of longer ago is not shown
)

// PeerInfo is a node that was heard, as dmpd peers prints it.
type PeerInfo struct {
	Operator  string `json:"operator_spk_hex"`
	Endpoint  string `json:"endpoint"`
	Zone      string `json:"zone,omitempty"`
	Version   string `json:"version"`
	Provider  bool   `json:"claim_provider"`
	Ts        uint64 `json:"ts"`
	Exp       uint64 `json:"exp"`
	HeardAt   int64  `json:"heard_at"`
	KnownFrom int64  `json:"known_from"`
	FirstHand bool   `json:"first_hand"` // read at its own zone within the hour
	Via       string `json:"via"`        // zone that first told of it
	Wire      string `json:"wire"`
}

// PeerInfos describes peers.
func PeerInfos(ps []*heartbeat.Peer, nowMs int64) []PeerInfo {
	infos := []PeerInfo{}
	for _, p := range ps {
		infos = append(infos, PeerInfo{hex.EncodeToString(p.Operator[:]), p.Endpoint, p.At, p.Version, p.Capabilities&record.CapClaimProvider != 0, p.TsSec, p.ExpSec,
			p.ReceivedMs / 1000, p.FirstMs / 1000, p.FirstHand(nowMs), p.Via, string(p.Wire)})
	}
	return infos
}

func (s *Server) peers() ([]PeerInfo, error) {
	if s.heart == nil {
		return nil, &AdminError{KindRefused, "the node collects nobody: DMP_HEARTBEAT_ENABLED is off, or what it needs is missing (its log says what)"}
	}
	return PeerInfos(s.heart.Peers(), clock.NowMs()), nil
}

// directoryRow is a row of the landing page.
type directoryRow struct {
	Endpoint, Zone, Version, Heard string
	Provider, FirstHand            bool
}

func (s *Server) directory() (rows []directoryRow, more int) {
	if s.heart == nil {
		return nil, 0
	}
	nowMs := clock.NowMs()
	for _, p := range s.heart.Peers() {
		if nowMs-p.ReceivedMs > liveMs {
			continue
		}
		if len(rows) == directoryMax {
			more++
			continue
		}
		rows = append(rows, directoryRow{p.Endpoint, p.At, p.Version, age(max(0, nowMs-p.ReceivedMs) / 1000), p.Capabilities&record.CapClaimProvider != 0, p.FirstHand(nowMs)})
	}
	return rows, more
}

// feed holds what /feed.json was last rendered as.
type feed struct {
	mu   sync.Mutex
	body []byte
	at   time.Time
}

type (
	feedNode struct {
		Operator string    `json:"operator_spk_hex"`
		Endpoint string    `json:"endpoint"`
		Version  string    `json:"version"`
		Ts       uint64    `json:"ts"`
		Exp      uint64    `json:"exp"`
		Wire     string    `json:"wire"`
		Via      []string  `json:"last_seen_via"`
		Geo      *struct{} `json:"geo"`  // always null: no third party is asked where a node is
		Host     *struct{} `json:"host"` // the same
	}
	feedEdge struct {
		From string `json:"from_spk"`
		To   string `json:"to_spk"`
		Ts   int64  `json:"last_seen_ts"`
	}
	feedBody struct {
		Version     int        `json:"version"`
		GeneratedAt int64      `json:"generated_at"`
		Count       int        `json:"node_count"`
		Nodes       []feedNode `json:"nodes"`
		Edges       []feedEdge `json:"seen_edges"`
		Resolvers   []struct{} `json:"resolvers"` // none: the node does not try public resolvers out
	}
)

// feedPage is /feed.json, in the aggregator's format (federation.md 13).
func (s *Server) feedPage(w http.ResponseWriter) {
	f := &s.feed
	f.mu.Lock()
	if f.body == nil || time.Since(f.at) > feedAge {
		f.body, f.at = s.renderFeed(), time.Now()
	}
	body := f.body
	f.mu.Unlock()
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "public, max-age=60")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(body)
}

func (s *Server) renderFeed() []byte {
	nowMs := clock.NowMs()
	self := s.heart.Operator()
	b := feedBody{Version: 2, GeneratedAt: nowMs / 1000, Nodes: []feedNode{}, Edges: []feedEdge{}, Resolvers: []struct{}{}}
	for _, p := range s.heart.Peers() {
		if nowMs-p.ReceivedMs > liveMs || len(b.Nodes) == feedMax {
			continue
		}
		n := feedNode{Operator: hex.EncodeToString(p.Operator[:]), Endpoint: p.Endpoint, Version: p.Version, Ts: p.TsSec, Exp: p.ExpSec, Wire: string(p.Wire), Via: []string{p.Via}}
		b.Nodes = append(b.Nodes, n)
		b.Edges = append(b.Edges, feedEdge{hex.EncodeToString(self[:]), n.Operator, p.ReceivedMs / 1000})
	}
	b.Count = len(b.Nodes)
	text, err := json.Marshal(b)
	if err != nil {
		panic(err) // plain structs only
	}
	return append(text, '\n')
}

// heartbeatMetrics are there while the node announces itself.
func (s *Server) heartbeatMetrics(b *bytes.Buffer, family func(name, kind, help string), gauge func(name, help string, v float64)) {
	if s.heart == nil {
		return
	}
	st := s.heart.Stats()
	value := func(name, label, text string, n uint64) {
		b.WriteString(name)
		if label != "" {
			b.WriteString("{" + label + "=\"" + text + "\"}")
		}
		b.WriteString(" " + stats.Float(float64(n)) + "\n")
	}
	family("dmpd_heartbeat_rounds_total", "counter", "Rounds of the heartbeat: publish, ask other zones, publish what was heard.")
	value("dmpd_heartbeat_rounds_total", "", "", st.Rounds.Load())
	family("dmpd_heartbeat_publish_failures_total", "counter", "Rounds in which the own heartbeat or the seen graph could not be stored.")
	value("dmpd_heartbeat_publish_failures_total", "", "", st.PublishFailures.Load())
	if at := st.PublishedMs.Load(); at > 0 {
		gauge("dmpd_heartbeat_age_seconds", "Age of the own heartbeat. Readers take none over 300.", float64(clock.NowMs()-at)/1000)
	}
	family("dmpd_heartbeat_zones_total", "counter", "Zones asked for heartbeats, by result.")
	value("dmpd_heartbeat_zones_total", "result", "ok", st.ZonesOK.Load())
	value("dmpd_heartbeat_zones_total", "result", "failed", st.ZonesFailed.Load())
	value("dmpd_heartbeat_zones_total", "result", "skipped", st.ZonesSkipped.Load())
	family("dmpd_heartbeat_accepted_total", "counter", "Heartbeats of others that were taken.")
	value("dmpd_heartbeat_accepted_total", "", "", st.Accepted.Load())
	family("dmpd_heartbeat_rejected_total", "counter", "Heartbeats of others that were not taken, by reason.")
	for i, name := range heartbeat.RejectionNames {
		value("dmpd_heartbeat_rejected_total", "reason", name, st.Rejected[i].Load())
	}
	family("dmpd_heartbeat_not_validated_total", "counter", "Answers dropped since they had no AD bit, where DMP_HEARTBEAT_DNSSEC_REQUIRED wants it.")
	value("dmpd_heartbeat_not_validated_total", "", "", st.NotAD.Load())
	family("dmpd_heartbeat_seed_lists_total", "counter", "Public seed lists fetched, by result.")
	value("dmpd_heartbeat_seed_lists_total", "result", "ok", st.ListsOK.Load())
	value("dmpd_heartbeat_seed_lists_total", "result", "failed", st.ListsFailed.Load())
	gauge("dmpd_heartbeat_peers", "Other nodes remembered.", float64(st.Peers.Load()))
	gauge("dmpd_heartbeat_seen_values", "Values of the seen graph that this node publishes.", float64(st.GraphValues.Load()))
	family("dmpd_heartbeat_rrset_bytes", "gauge", "Bytes of what this node publishes, by RRset.")
	value("dmpd_heartbeat_rrset_bytes", "rrset", "own", uint64(st.OwnBytes.Load()))
	value("dmpd_heartbeat_rrset_bytes", "rrset", "seen", uint64(st.GraphBytes.Load()))
}
