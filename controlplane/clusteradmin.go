package controlplane

import (
	"context"
	"encoding/hex"
	"errors"

	"github.com/dnsmesh/dmpd/controlplane/antientropy"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/record"
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
		ID            string  `json:"id"`
		URL           string  `json:"url"`
		CaughtUp      bool    `json:"caught_up"`
		LagSec        float64 `json:"lag_seconds"`
		LagRows       int64   `json:"lag_rows"`
		LastSuccessMs int64   `json:"last_success_ms"`
		LastError     string  `json:"last_error,omitempty"`
		Quarantined   int64   `json:"quarantined"`
		OffsetMs      int64   `json:"clock_offset_ms"`
	}
	// ClusterInfo is the state of replication at this node.
	ClusterInfo struct {
		Running  bool          `json:"running"`
		Why      string        `json:"why,omitempty"` // it does not run
		NodeID   string        `json:"node_id,omitempty"`
		Name     string        `json:"cluster_name,omitempty"`
		Manifest *ManifestInfo `json:"manifest"`
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
		info.Peers = append(info.Peers, ClusterPeer{p.ID, p.URL, st.CaughtUp, st.LagSec, st.LagRows, st.LastSuccessMs, st.LastError, st.Quarantined, st.OffsetMs})
	}
	return info
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
