package controlplane

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dnsmesh/dmpd/controlplane/heartbeat"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/record"
)

// TestHeartbeat: the record reaches the data plane through the requests log, one value at a time, also over a restart; what keeps the
// node from announcing itself does not keep it from serving.
func TestHeartbeat(t *testing.T) {
	t.Parallel()
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(strings.Repeat("07", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"DMP_HEARTBEAT_ENABLED=1", "DMP_HEARTBEAT_SELF_ENDPOINT=https://mesh.test", "DMP_HEARTBEAT_OPERATOR_KEY_PATH=" + key, "DMP_HEARTBEAT_INTERVAL_SECONDS=0.2", "DMP_HEARTBEAT_DNS_RESOLVERS=127.0.0.1:1"}
	n := startNode(t, env...)
	heartbeat := func() (h record.Heartbeat, count int) {
		values, err := n.lookup("_dnsmesh-heartbeat.mesh.test")
		if err != nil {
			return h, 0 // the view is being opened
		}
		for _, v := range values {
			if r := h.Verify([]byte(v), clock.NowMs()/1000, record.HeartbeatSkewSec); r != record.Accepted {
				t.Fatalf("%q: %v", v, r)
			}
		}
		return h, len(values)
	}
	eventually(t, "a heartbeat", func() bool { _, count := heartbeat(); return count == 1 })
	first, _ := heartbeat()
	if first.Zone != "mesh.test" || first.Capabilities != record.CapClaimProvider || first.Endpoint != "https://mesh.test" {
		t.Fatalf("%+v", first)
	}
	eventually(t, "a later one in its place", func() bool { h, count := heartbeat(); return count == 1 && h.TsSec > first.TsSec })
	if a := n.do("GET", "/", "", ""); !strings.Contains(a.body, "announces itself") {
		t.Error("the landing page does not say so")
	}
	n.Stop()
	d := n.d
	n = startServer(t, n.dir, append(env, "DMP_CLAIM_PROVIDER=0")...)
	n.d = d
	n.waitHealthy()
	eventually(t, "one without the claims, in the old one's place", func() bool { h, count := heartbeat(); return count == 1 && h.Capabilities == 0 })

	for _, bad := range [][]string{
		{"DMP_HEARTBEAT_ENABLED=1"},
		{env[0], env[1], "DMP_HEARTBEAT_OPERATOR_KEY_PATH=" + key + ".missing"},
		{env[0], "DMP_HEARTBEAT_SELF_ENDPOINT=https://127.0.0.1", env[2]},
	} {
		if m := startNode(t, bad...); m.heart != nil {
			t.Errorf("%q: a heartbeat", bad)
		}
	}
}

// TestDirectory: what strangers say of themselves is on the landing page as text, bounded; the feed is there if it is wanted; the
// operator's command and the metrics have the same.
func TestDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	control := filepath.Join(dir, "control")
	if err := os.MkdirAll(control, 0o700); err != nil {
		t.Fatal(err)
	}
	nowMs := clock.NowMs()
	const hostile = `"><script>alert(1)</script>`
	var heard []heartbeat.Heard
	for i := range directoryMax + 7 {
		h := record.Heartbeat{Endpoint: fmt.Sprintf("https://n%d.test", i), Version: hostile, Zone: fmt.Sprintf("n%d.test", i), Capabilities: record.CapClaimProvider,
			TsSec: uint64(nowMs/1000 - 60), ExpSec: uint64(nowMs/1000 + 86400)}
		seed := make([]byte, 32)
		seed[0] = byte(i)
		text, r := h.Append(nil, ed25519.NewKeyFromSeed(seed))
		if r != record.Accepted {
			t.Fatal(r)
		}
		heard = append(heard, heartbeat.Heard{Wire: string(text), Via: "seed.test", ReceivedMs: nowMs - 30_000})
	}
	heard[0].ReceivedMs = nowMs - liveMs - 60_000 // heard of too long ago to be shown
	if done, err := heartbeat.ImportSeen(control, 1000, heard, nowMs, false); err != nil || done.Added != len(heard) {
		t.Fatalf("%+v %v", done, err)
	}
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, []byte(strings.Repeat("07", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	d := startDouble(t, dir)
	n := startServer(t, dir, "DMP_HEARTBEAT_ENABLED=1", "DMP_HEARTBEAT_SELF_ENDPOINT=https://mesh.test", "DMP_HEARTBEAT_OPERATOR_KEY_PATH="+key,
		"DMP_HEARTBEAT_DNS_RESOLVERS=127.0.0.1:1", "DMP_HEARTBEAT_FEED=1")
	n.d = d
	n.waitHealthy()
	eventually(t, "the peers are known", func() bool { return strings.Contains(n.do("GET", "/", "", "").body, "And 6 more") })
	page := n.do("GET", "/", "", "").body
	if strings.Contains(page, "<script") || !strings.Contains(page, "&lt;script&gt;alert(1)") || strings.Count(page, "</td><td>n") != directoryMax || strings.Contains(page, `href="https://n`) {
		t.Errorf("the landing page: %s", page)
	}
	var feed struct {
		Version int `json:"version"`
		Count   int `json:"node_count"`
		Nodes   []map[string]any
		Edges   []map[string]any `json:"seen_edges"`
	}
	a := n.do("GET", "/feed.json", "", "")
	if err := json.Unmarshal([]byte(a.body), &feed); err != nil || a.status != 200 || feed.Version != 2 || feed.Count != directoryMax+6 || len(feed.Nodes) != feed.Count || len(feed.Edges) != feed.Count {
		t.Fatalf("%d %.500s %v", a.status, a.body, err)
	}
	for _, field := range []string{"operator_spk_hex", "endpoint", "version", "ts", "exp", "wire", "last_seen_via", "geo", "host"} {
		if _, there := feed.Nodes[0][field]; !there {
			t.Errorf("a node of the feed has no %s", field)
		}
	}
	if strings.Contains(a.body, "<script") || feed.Edges[0]["from_spk"] != fmt.Sprintf("%x", n.heart.Operator()) {
		t.Errorf("%.500s", a.body)
	}
	var infos []PeerInfo
	if err := (&AdminClient{control}).Call(context.Background(), "peers.list", nil, &infos); err != nil || len(infos) != len(heard) || !infos[0].Provider || infos[0].FirstHand || infos[0].Via != "seed.test" {
		t.Errorf("%+v %v", infos, err)
	}
	var metrics string
	eventually(t, "the node has announced itself", func() bool { // once it has, its age is there
		metrics = n.do("GET", "/metrics", "operator", "").body
		return strings.Contains(metrics, "dmpd_heartbeat_age_seconds ")
	})
	for _, want := range []string{fmt.Sprintf("dmpd_heartbeat_peers %d.0", len(heard)), `dmpd_heartbeat_rejected_total{reason="signature"} 0.0`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
	m := startNode(t)
	if a := m.do("GET", "/feed.json", "", ""); a.status != 404 {
		t.Errorf("a feed that nobody asked for: %d", a.status)
	}
	if err := (&AdminClient{filepath.Join(m.dir, "control")}).Call(context.Background(), "peers.list", nil, nil); err == nil {
		t.Error("peers of a node that collects nobody")
	}
}
