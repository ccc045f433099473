package controlplane

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/dnsmesh/dmpd/controlplane/antientropy"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/stats"
)

// Arguments and results of the cluster verbs.
type (
	// ManifestInfo is a cluster manifest.
	ManifestInfo struct {
		Wire     string         `json:"wire"`
		Name     string         `json:"cluster_name"`
		Seq      uint64         `json:"seq"`
		Exp      uint64         `json:"exp"`
		Operator string         `json:"operator_spk"`
		Nodes    []ManifestNode `json:"nodes"`
		From     string         `json:"from,omitempty"` // how it came to this node
	}
	// ManifestNode is a node of it.
	ManifestNode struct {
		ID   string `json:"node_id"`
		HTTP string `json:"http_endpoint"`
		DNS  string `json:"dns_endpoint,omitempty"`
	}
	// WireArgs carry a manifest.
	WireArgs struct {
		Wire string `json:"wire"`
	}
	// PushResult says what became of it.
	PushResult struct {
		Result string `json:"result"` // installed, same, older
		Seq    uint64 `json:"seq"`    // of the one that is installed now
	}
	// ClusterPeer is a peer and how replication with it goes.
	ClusterPeer struct {
		ID            string           `json:"id"`
		URL           string           `json:"url"`
		Native        bool             `json:"native"` // by /v2/sync; else by /v1/sync
		CaughtUp      bool             `json:"caught_up"`
		Converged     *bool            `json:"converged,omitempty"` // the sums over all records were equal; of native peers alone
		LagSec        float64          `json:"lag_seconds"`
		LagRows       int64            `json:"lag_rows"`
		LastSuccessMs int64            `json:"last_success_ms"`
		LastError     string           `json:"last_error,omitempty"`
		Quarantined   int64            `json:"quarantined"`
		Rejected      map[string]int64 `json:"rejected,omitempty"` // by reason, those that there were
		BytesIn       int64            `json:"received_bytes"`
		BytesOut      int64            `json:"sent_bytes"`
		Reconnects    int64            `json:"reconnects"`
		PinFailures   int64            `json:"pin_failures"`
		OffsetMs      int64            `json:"clock_offset_ms"`

		synthetic bool // the id was made from the URL
	}
	// ClusterSum is the sum over all records of this node. Nodes with one moment and one root hold the same.
	ClusterSum struct {
		Root     string `json:"root"`      // hexadecimal: the count, then the sum (docs/format/sync.md)
		Elements int64  `json:"elements"`  // records, and deletes that are remembered
		MomentMs int64  `json:"moment_ms"` // of which it is: a multiple of ten seconds
	}
	// ClusterInfo is the state of replication at this node.
	ClusterInfo struct {
		Running  bool          `json:"running"`
		Why      string        `json:"why,omitempty"` // it does not run
		NodeID   string        `json:"node_id,omitempty"`
		Name     string        `json:"cluster_name,omitempty"`
		Manifest *ManifestInfo `json:"manifest"`
		Sum      *ClusterSum   `json:"sum,omitempty"` // not while native replication is off or still reads the records
		Peers    []ClusterPeer `json:"peers"`
	}
)

// ManifestInfoOf shows a manifest.
func ManifestInfoOf(text []byte, c *record.Cluster) *ManifestInfo {
	m := &ManifestInfo{Wire: string(text), Name: c.Name, Seq: c.Seq, Exp: c.ExpSec, Operator: hex.EncodeToString(c.Operator[:]), Nodes: []ManifestNode{}}
	for _, n := range c.Nodes {
		m.Nodes = append(m.Nodes, ManifestNode{n.ID, n.HTTP, n.DNS})
	}
	return m
}

func (r *replication) info() *ClusterInfo {
	s := r.s.syncSettings()
	info := &ClusterInfo{NodeID: s.NodeID, Name: r.manifests.BaseDomain(), Peers: []ClusterPeer{}}
	if text, c, from, ok := r.manifests.Current(); ok {
		info.Manifest = ManifestInfoOf(text, &c)
		info.Manifest.From = from
	}
	peers, _ := r.manifests.Peers()
	if n := r.native.Load(); n != nil {
		if st := n.Status(); st.Ready {
			info.Sum = &ClusterSum{st.Root, st.Elements, st.CutMs}
		}
	}
	r.mu.Lock()
	info.Running = r.running != nil
	r.mu.Unlock()
	switch {
	case info.Running:
	case s.Token == "":
		info.Why = "no DMP_SYNC_PEER_TOKEN"
	case len(peers) == 0:
		info.Why = "no peers"
	default:
		info.Why = "it could not start; the log says why"
	}
	status := map[string]antientropy.PeerStatus{}
	for _, p := range r.status() {
		status[p.ID] = p
	}
	for _, p := range peers {
		st := status[p.ID]
		x := ClusterPeer{ID: p.ID, URL: p.URL, Native: st.Native, CaughtUp: st.CaughtUp, LagSec: st.LagSec, LagRows: st.LagRows, LastSuccessMs: st.LastSuccessMs, LastError: st.LastError,
			Quarantined: st.Quarantined, BytesIn: st.BytesIn, BytesOut: st.BytesOut, Reconnects: st.Reconnects, PinFailures: st.PinFailures, OffsetMs: st.OffsetMs, synthetic: p.Synthetic}
		if st.Native {
			x.Converged = &st.CaughtUp
		}
		st.Rejected.Each(func(reason antientropy.Reason, n int64) {
			if n > 0 {
				if x.Rejected == nil {
					x.Rejected = map[string]int64{}
				}
				x.Rejected[reason.String()] = n
			}
		})
		info.Peers = append(info.Peers, x)
	}
	return info
}

// Speaks says in which way the peer is spoken with.
func (p *ClusterPeer) Speaks() string {
	if p.Native {
		return "native"
	}
	return "v1"
}

// State says in words how it goes.
func (p *ClusterPeer) State() string {
	switch {
	case p.LastError != "":
		return p.LastError
	case p.LastSuccessMs == 0:
		return "not heard yet"
	case !p.CaughtUp:
		return "catching up"
	}
	return "caught up"
}

// Equal says whether both nodes hold the same, by their roots; v1 has none.
func (p *ClusterPeer) Equal() string {
	switch {
	case p.Converged == nil:
		return "-"
	case *p.Converged:
		return "yes"
	}
	return "no"
}

var errNoCluster = &AdminError{KindAway, "this needs a running node"}

func clusterStatus(_ context.Context, a *Admin, _ struct{}) (any, error) {
	if a.cluster == nil {
		return nil, errNoCluster
	}
	return a.cluster.info(), nil
}

func clusterPush(ctx context.Context, a *Admin, args WireArgs) (any, error) {
	if a.cluster == nil {
		return nil, errNoCluster
	}
	s := a.cluster.s.syncSettings()
	if s.Operator == nil {
		return nil, &AdminError{KindRefused, "this node believes no manifest: it has no DMP_SYNC_OPERATOR_SPK"}
	}
	var c record.Cluster
	base := a.cluster.manifests.BaseDomain()
	if r := c.Verify([]byte(args.Wire), s.Operator, base, clock.NowMs()/1000); r != record.Accepted {
		return nil, &AdminError{KindRefused, "the manifest is refused: " + r.Error() + " (this node's cluster is " + base + ", its operator " + hex.EncodeToString(s.Operator[:]) + ")"}
	}
	if len(c.Nodes) == 0 {
		return nil, &AdminError{KindRefused, "the manifest is refused: it names no node"}
	}
	got, err := a.cluster.manifests.Install(ctx, []byte(args.Wire), "admin")
	if err != nil && !errors.Is(err, antientropy.ErrAway) {
		return nil, adminError(err)
	}
	a.cluster.refresh() // the puller may have to begin or to end, and the record to be stored when the data plane is back
	_, now, _, _ := a.cluster.manifests.Current()
	return PushResult{map[antientropy.Installed]string{antientropy.ManifestNew: "installed", antientropy.ManifestSame: "same", antientropy.ManifestOlder: "older", antientropy.ManifestRefused: "refused"}[got], now.Seq}, nil
}

// clusterMetrics writes what replication counts. Peers have series while a puller runs: their ids are the operator's, so there are few.
func (r *replication) clusterMetrics(b *bytes.Buffer) {
	family := func(name, kind, help string) {
		fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
	}
	single := func(name string, v float64) { fmt.Fprintf(b, "%s %s\n", name, stats.Float(v)) }
	family("dmpd_sync_served_total", "counter", "Requests of peers answered.")
	for _, x := range []struct {
		what string
		n    int64
	}{{"digest", r.server.Digests.Load()}, {"pull", r.server.Pulls.Load()}, {"failed", r.server.Failures.Load()}} {
		fmt.Fprintf(b, "dmpd_sync_served_total{request=%q} %s\n", x.what, stats.Float(float64(x.n)))
	}
	family("dmpd_sync_served_rows_total", "counter", "Rows shown to peers in digests.")
	single("dmpd_sync_served_rows_total", float64(r.server.Rows.Load()))
	family("dmpd_sync_served_values_total", "counter", "Values given to peers.")
	single("dmpd_sync_served_values_total", float64(r.server.Values.Load()))
	family("dmpd_sync_withheld_total", "counter", "Rows not shown to peers, which would refuse them.")
	single("dmpd_sync_withheld_total", float64(r.server.Withheld.Load()))
	family("dmpd_cluster_manifest_conflicts_total", "counter", "Cluster manifests with the number of another one.")
	single("dmpd_cluster_manifest_conflicts_total", float64(r.manifests.Conflicts.Load()))
	if _, c, _, ok := r.manifests.Current(); ok {
		family("dmpd_cluster_manifest_seq", "gauge", "Number of the installed cluster manifest.")
		single("dmpd_cluster_manifest_seq", float64(c.Seq))
		family("dmpd_cluster_manifest_expiry_seconds", "gauge", "Until the installed cluster manifest ends; negative once it has.")
		single("dmpd_cluster_manifest_expiry_seconds", float64(int64(c.ExpSec)-clock.NowMs()/1000))
	}
	status := r.status()
	family("dmpd_sync_peers", "gauge", "Peers that are pulled from.")
	single("dmpd_sync_peers", float64(len(status)))
	if len(status) == 0 {
		return
	}
	each := func(name string, value func(p *antientropy.PeerStatus) float64) {
		for i := range status {
			fmt.Fprintf(b, "%s{peer=%q} %s\n", name, status[i].ID, stats.Float(value(&status[i])))
		}
	}
	flag := func(is bool) float64 {
		if is {
			return 1
		}
		return 0
	}
	family("dmpd_sync_lag_seconds", "gauge", "How far the peer's feed is handled, behind its newest row.")
	each("dmpd_sync_lag_seconds", func(p *antientropy.PeerStatus) float64 { return p.LagSec })
	family("dmpd_sync_lag_rows", "gauge", "Rows that the last page showed and that are not handled.")
	each("dmpd_sync_lag_rows", func(p *antientropy.PeerStatus) float64 { return float64(p.LagRows) })
	family("dmpd_sync_caught_up", "gauge", "1 while the peer's feed is handled to its end.")
	each("dmpd_sync_caught_up", func(p *antientropy.PeerStatus) float64 { return flag(p.CaughtUp) })
	family("dmpd_sync_native", "gauge", "1 while the peer and this node speak native replication.")
	each("dmpd_sync_native", func(p *antientropy.PeerStatus) float64 { return flag(p.Native) })
	family("dmpd_sync_last_success_seconds", "gauge", "When the peer last answered, Unix time; 0: never.")
	each("dmpd_sync_last_success_seconds", func(p *antientropy.PeerStatus) float64 { return float64(p.LastSuccessMs) / 1000 })
	family("dmpd_sync_clock_offset_seconds", "gauge", "The peer's clock less ours.")
	each("dmpd_sync_clock_offset_seconds", func(p *antientropy.PeerStatus) float64 { return float64(p.OffsetMs) / 1000 })
	family("dmpd_sync_backoff_seconds", "gauge", "Wait before the next attempt, since the last ones failed.")
	each("dmpd_sync_backoff_seconds", func(p *antientropy.PeerStatus) float64 { return p.BackoffSec })
	family("dmpd_sync_quarantined", "gauge", "Rows of the peer that were refused and are remembered.")
	each("dmpd_sync_quarantined", func(p *antientropy.PeerStatus) float64 { return float64(p.Quarantined) })
	family("dmpd_sync_rejected_total", "counter", "Rows of the peer that were not taken, by reason.")
	for i := range status {
		status[i].Rejected.Each(func(reason antientropy.Reason, n int64) {
			fmt.Fprintf(b, "dmpd_sync_rejected_total{peer=%q,reason=%q} %s\n", status[i].ID, reason.String(), stats.Float(float64(n)))
		})
	}
	family("dmpd_sync_pin_failures_total", "counter", "Connections given up since the peer's key is not a pinned one.")
	each("dmpd_sync_pin_failures_total", func(p *antientropy.PeerStatus) float64 { return float64(p.PinFailures) })
	family("dmpd_sync_requests_total", "counter", "Requests to the peer.")
	each("dmpd_sync_requests_total", func(p *antientropy.PeerStatus) float64 { return float64(p.Requests) })
	family("dmpd_sync_errors_total", "counter", "Those that failed.")
	each("dmpd_sync_errors_total", func(p *antientropy.PeerStatus) float64 { return float64(p.Errors) })
	family("dmpd_sync_reconnects_total", "counter", "Connections to the peer that were opened again.")
	each("dmpd_sync_reconnects_total", func(p *antientropy.PeerStatus) float64 { return float64(p.Reconnects) })
	family("dmpd_sync_received_bytes_total", "counter", "Bytes of answers read.")
	each("dmpd_sync_received_bytes_total", func(p *antientropy.PeerStatus) float64 { return float64(p.BytesIn) })
	family("dmpd_sync_sent_bytes_total", "counter", "Bytes of requests sent.")
	each("dmpd_sync_sent_bytes_total", func(p *antientropy.PeerStatus) float64 { return float64(p.BytesOut) })
	family("dmpd_sync_stored_total", "counter", "Records taken from the peer.")
	each("dmpd_sync_stored_total", func(p *antientropy.PeerStatus) float64 { return float64(p.Stored) })
	family("dmpd_sync_refreshed_total", "counter", "Lives lengthened.")
	each("dmpd_sync_refreshed_total", func(p *antientropy.PeerStatus) float64 { return float64(p.Refreshed) })
	family("dmpd_sync_tombstoned_total", "counter", "Old copies of what was deleted here.")
	each("dmpd_sync_tombstoned_total", func(p *antientropy.PeerStatus) float64 { return float64(p.Tombstoned) })
}

// nativeMetrics writes what native replication counts with all peers together, while it runs.
func (r *replication) nativeMetrics(b *bytes.Buffer) {
	n := r.native.Load()
	if n == nil {
		return
	}
	s := n.Status()
	family := func(name, kind, help string) {
		fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
	}
	single := func(name string, v int64) { fmt.Fprintf(b, "%s %s\n", name, stats.Float(float64(v))) }
	both := func(name string, in, out int64) {
		single(name+`{direction="received"}`, in)
		single(name+`{direction="sent"}`, out)
	}
	family("dmpd_sync_native_bytes_total", "counter", "Bytes of native replication, both sides of it.")
	both("dmpd_sync_native_bytes_total", s.BytesIn, s.BytesOut)
	family("dmpd_sync_native_frames_total", "counter", "Frames of native replication.")
	both("dmpd_sync_native_frames_total", s.FramesIn, s.FramesOut)
	family("dmpd_sync_native_rows_total", "counter", "Rows in those frames.")
	both("dmpd_sync_native_rows_total", s.RowsIn, s.RowsOut)
	family("dmpd_sync_native_fetched_total", "counter", "Rows that a comparison found and fetched.")
	single("dmpd_sync_native_fetched_total", s.Fetched)
	family("dmpd_sync_native_comparisons_total", "counter", "Comparisons with a peer since roots differed.")
	single("dmpd_sync_native_comparisons_total", s.Compared)
	family("dmpd_sync_native_snapshots_total", "counter", "Snapshots of peers that were taken.")
	single("dmpd_sync_native_snapshots_total", s.Cold)
	family("dmpd_sync_native_forbidden_total", "counter", "Requests to native replication without the cluster's token.")
	single("dmpd_sync_native_forbidden_total", s.Forbidden)
	family("dmpd_sync_native_elements", "gauge", "Records, and deletes that are remembered, in the sum that peers compare.")
	single("dmpd_sync_native_elements", s.Elements)
}

// peerLine is a peer on the status page. Anybody may read that: a manifest's ids are public anyhow, one made from a private URL is not shown.
type peerLine struct{ Name, Speaks, State, Lag, Rows, Converged, Refused, In, Out, Reconnects string }

func (r *replication) peerLines() (lines []peerLine) {
	for i, p := range r.info().Peers {
		l := peerLine{p.ID, p.Speaks(), p.State(), fmt.Sprintf("%.1f s", p.LagSec), grouped(uint64(p.LagRows)), p.Equal(), grouped(uint64(p.Quarantined)), size(p.BytesIn), size(p.BytesOut), grouped(uint64(p.Reconnects))}
		if p.synthetic {
			l.Name = fmt.Sprintf("peer %d", i+1)
		}
		if p.LastError != "" {
			l.State = "fails" // what it says may hold addresses
		}
		lines = append(lines, l)
	}
	return lines
}

// size writes bytes for people.
func size(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%d B", n)
}

// summary is replication in a few words, for the status page.
func (r *replication) summary() string {
	status := r.status()
	if status == nil {
		return "off"
	}
	behind, quarantined, lag := 0, int64(0), 0.0
	for _, p := range status {
		if !p.CaughtUp {
			behind++
		}
		lag = max(lag, p.LagSec)
		quarantined += p.Quarantined
	}
	text := fmt.Sprintf("%d of %d peers caught up with", len(status)-behind, len(status))
	if behind > 0 {
		text += fmt.Sprintf(", up to %.1f s behind", lag)
	}
	if quarantined > 0 {
		text += fmt.Sprintf(", %d records refused", quarantined)
	}
	return text
}
