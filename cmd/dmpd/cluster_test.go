package main

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/dnsmesh/dmpd/controlplane"
	"github.com/dnsmesh/dmpd/internal/config"
)

// TestCluster: an operator's way from nothing to a cluster whose nodes change.
func TestCluster(t *testing.T) {
	t.Parallel()
	home, dir := t.TempDir(), t.TempDir()
	key, file := filepath.Join(home, "operator.key"), filepath.Join(home, "cluster.json")
	at := []string{"--key", key, "--out", file}
	run := func(want int, args ...string) string { return dmpd(t, want, append(args, at...)...) }
	said := run(exitOK, "cluster", "init", "mesh.test.", "--node", "a=https://a.example:8053,192.0.2.1", "--node", "b=http://b.example")
	contains(t, said, "DMP_CLUSTER_BASE_DOMAIN=mesh.test\n", "one of a, b")
	spk, token := regexp.MustCompile(`OPERATOR_SPK=([0-9a-f]{64})\n`).FindStringSubmatch(said), regexp.MustCompile(`PEER_TOKEN=([0-9a-f]{64})\n`).FindStringSubmatch(said)
	if spk == nil || token == nil {
		t.Fatal(said)
	}
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info, err)
	}
	contains(t, run(exitUsage, "cluster", "init", "mesh.test", "--node", "a=https://a.example"), "exists already")
	m := fromJSON[controlplane.ManifestInfo](t, dmpd(t, exitOK, "cluster", "show", file, "--json"))
	if m.Name != "mesh.test" || m.Seq != 1 || m.Operator != spk[1] || len(m.Nodes) != 2 || m.Nodes[0] != (controlplane.ManifestNode{ID: "a", HTTP: "https://a.example:8053", DNS: "192.0.2.1"}) {
		t.Errorf("%+v", m)
	}
	first, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}

	// a node that has it all but peers that can be reached
	c, _, errs := config.Resolve(config.Input{Environ: []string{"DMP_STATE_DIR=" + dir, "DMP_HTTP_HOST=127.0.0.1", "DMP_HTTP_PORT=0", "DMP_DOMAIN=mesh.test", "DMP_CLUSTER_FILE=" + file,
		"DMP_CLUSTER_BASE_DOMAIN=mesh.test", "DMP_SYNC_OPERATOR_SPK=" + spk[1], "DMP_NODE_ID=a"}})
	if errs != nil {
		t.Fatal(errs)
	}
	s, err := controlplane.Start(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	node := func(want int, args ...string) string {
		return dmpd(t, want, append(args, "--state-dir", dir)...)
	}
	contains(t, node(exitOK, "cluster", "push", file), "installed: number 1")
	contains(t, node(exitOK, "cluster", "push", file), "same: number 1")
	contains(t, node(exitOK, "cluster", "peers"), "b", "http://b.example")

	// one node goes, one comes
	contains(t, run(exitOK, "cluster", "sign", "--in", file, "--node", "a=https://a.example:8053", "--node", "c=https://c.example"), "number 2, 2 nodes")
	contains(t, run(exitUsage, "cluster", "sign", "--in", file, "--seq", "2", "--node", "a=https://a.example:8053"), "not above 2")
	contains(t, run(exitUsage, "cluster", "sign", "--in", file, "--node", "a=ftp://a.example"), "write it like")
	contains(t, run(exitUsage, "cluster", "sign", "--in", file, "--node", "a=http://a.example", "--node", "a=http://b.example"), "would be refused")
	contains(t, node(exitOK, "cluster", "push", file), "installed: number 2")
	info := fromJSON[controlplane.ClusterInfo](t, node(exitOK, "cluster", "status", "--json"))
	if info.Running || info.Why != "no DMP_SYNC_PEER_TOKEN" || info.Manifest.Seq != 2 || len(info.Peers) != 1 || info.Peers[0].ID != "c" {
		t.Errorf("%+v", info)
	}
	contains(t, node(exitOK, "cluster", "status"), "is off: no DMP_SYNC_PEER_TOKEN", "number 2")
	contains(t, node(exitOK, "cluster", "show"), "came by", "admin")

	// what is older, foreign or no manifest
	old := filepath.Join(home, "old.json")
	if err := os.WriteFile(old, first, 0o600); err != nil {
		t.Fatal(err)
	}
	contains(t, node(exitFailed, "cluster", "push", old), "newer manifest")
	other := filepath.Join(home, "other.json")
	dmpd(t, exitOK, "cluster", "init", "mesh.test", "--node", "a=https://a.example", "--key", filepath.Join(home, "other.key"), "--out", other)
	contains(t, node(exitFailed, "cluster", "push", other), "refused")
	contains(t, dmpd(t, exitUsage, "cluster", "sign", "--key", key, "--in", other, "--out", file, "--node", "a=https://a.example"), "another key")
	if err := os.WriteFile(old, []byte(`{"nodes":[{"node_id":"a","http_endpoint":"http://a"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	contains(t, node(exitUsage, "cluster", "push", old), "without a signature")
	s.Stop()
	contains(t, node(exitFailed, "cluster", "push", file), "running node")
	if b, err := os.ReadFile(key); err != nil || hex.EncodedLen(32) != len(strings.TrimSpace(string(b))) {
		t.Error("the key's file changed", err)
	}
}
