package controlplane

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dnsmesh/dmpd/controlplane/antientropy"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/wire"
)

type digestBody struct {
	Records []struct {
		Name, Hash string
		Ts, TTL    json.Number
	}
	HasMore bool   `json:"has_more"`
	Next    string `json:"next_cursor"`
}

type pullBody struct {
	Records []struct {
		Name, Value string
		TTL         int64
	}
}

// get asks with the cluster's token and reads a 200.
func (n *node) get(method, path, body string, into any) {
	n.t.Helper()
	a := n.do(method, path, "peers", body)
	if a.status != 200 || a.header.Get("Content-Type") != "application/json" {
		n.t.Fatalf("%s %s: %d %.300s", method, path, a.status, a.body)
	}
	if err := json.Unmarshal([]byte(a.body), into); err != nil {
		n.t.Fatalf("%s: %v in %.300s", path, err, a.body)
	}
}

func (n *node) digest(query string) (d digestBody) {
	n.t.Helper()
	n.get("GET", "/v1/sync/digest"+query, "", &d)
	return d
}

func (n *node) pull(names ...string) (p pullBody) {
	n.t.Helper()
	b, _ := json.Marshal(map[string]any{"names": names})
	n.get("POST", "/v1/sync/pull", string(b), &p)
	return p
}

func (n *node) post(name, value string, ttl int) {
	n.t.Helper()
	b, _ := json.Marshal(map[string]any{"value": value, "ttl": ttl})
	if a := n.do("POST", "/v1/records/"+name, "operator", string(b)); a.status != 201 {
		n.t.Fatal(name, a)
	}
}

func hashText(v string) string { h := sha256.Sum256([]byte(v)); return hex.EncodeToString(h[:]) }

func operatorKey(b byte) (ed25519.PrivateKey, string) {
	k := ed25519.NewKeyFromSeed([]byte(strings.Repeat(string(rune(b)), 32)))
	return k, hex.EncodeToString(k.Public().(ed25519.PublicKey))
}

func signManifest(t testing.TB, k ed25519.PrivateKey, name string, seq uint64, lifeSec int64, nodes ...record.ClusterNode) string {
	t.Helper()
	c := record.Cluster{Name: name, Seq: seq, ExpSec: uint64(clock.NowMs()/1000 + lifeSec), Nodes: nodes}
	text, r := c.Append(nil, k)
	if r != record.Accepted {
		t.Fatal(r)
	}
	return string(text)
}

// TestClusterHTTP is cluster.md 14.2: subtest N is property N.
func TestClusterHTTP(t *testing.T) {
	t.Parallel()
	n := startReal(t, t.TempDir(), "DMP_SYNC_PEER_TOKEN=peers", "DMP_SYNC_PEER_TOKENS_PREVIOUS=old", "DMP_CLUSTER_FILE=")
	bare := startReal(t, t.TempDir(), "DMP_CLUSTER_FILE=")
	forbidden := func(n *node, method, path, token string) func(*testing.T) {
		return func(t *testing.T) {
			if a := n.do(method, path, token, ""); a.status != 403 || a.body != `{"error":"forbidden"}` {
				t.Error(a)
			}
		}
	}
	bad := func(method, path, body string) func(*testing.T) {
		return func(t *testing.T) {
			if a := n.do(method, path, "peers", body); a.status != 400 || !strings.HasPrefix(a.body, `{"error":"`) {
				t.Error(a)
			}
		}
	}
	t.Run("1", forbidden(n, "GET", "/v1/sync/digest", ""))
	t.Run("2", forbidden(n, "GET", "/v1/sync/digest", "Peers"))
	t.Run("3", func(t *testing.T) {
		for _, token := range []string{"", "peers", "operator"} {
			forbidden(bare, "GET", "/v1/sync/digest", token)(t)
			forbidden(bare, "POST", "/v1/sync/pull", token)(t)
		}
	})
	t.Run("4", forbidden(n, "POST", "/v1/sync/pull", ""))
	t.Run("5", forbidden(n, "POST", "/v1/sync/pull", "operator"))
	t.Run("6", func(t *testing.T) {
		if a := n.do("GET", "/v1/sync/digest", "peers", ""); a.body != `{"records":[],"has_more":false,"next_cursor":"0::"}` {
			t.Error(a)
		}
		if d := n.digest("?since=17"); d.Next != "18::" {
			t.Error("an empty answer to since echoes", d.Next)
		}
		if a := n.do("GET", "/v1/sync/digest", "old", ""); a.status != 200 {
			t.Error("the token before:", a)
		}
	})
	n.post("a.mesh.test", "one", 300)
	first := n.digest("?since=0").Records[0]
	n.post("b.mesh.test", "two", 300)
	t.Run("7", func(t *testing.T) {
		d := n.digest("?since=0")
		if len(d.Records) != 2 || d.HasMore {
			t.Fatal(d)
		}
		for i, v := range []string{"one", "two"} {
			r := d.Records[i]
			ts, err := r.Ts.Int64()
			ttl, err2 := r.TTL.Int64()
			if r.Hash != hashText(v) || err != nil || err2 != nil || ts < 1e12 || ttl < 1 || ttl > 300 {
				t.Error(r)
			}
		}
	})
	t.Run("8", func(t *testing.T) {
		if d := n.digest("?since=" + first.Ts.String()); len(d.Records) != 1 || d.Records[0].Name != "b.mesh.test" {
			t.Error(d)
		}
	})
	for _, v := range []string{"three", "four", "five"} {
		n.post("c.mesh.test", v, 300)
	}
	t.Run("9", func(t *testing.T) {
		d := n.digest("?limit=2")
		if len(d.Records) != 2 || !d.HasMore {
			t.Fatal(d)
		}
		var seen []string
		for cursor := ""; ; {
			d := n.digest("?limit=2&cursor=" + url.QueryEscape(cursor))
			for _, r := range d.Records {
				seen = append(seen, r.Hash)
			}
			if cursor = d.Next; !d.HasMore {
				break
			}
		}
		want := []string{hashText("one"), hashText("two"), hashText("three"), hashText("four"), hashText("five")}
		if fmt.Sprint(seen) != fmt.Sprint(want) {
			t.Errorf("pages of two show %v", seen)
		}
		if d := n.digest("?limit=99999999999999999999"); len(d.Records) != 5 {
			t.Error("a limit beyond the maximum:", d)
		}
	})
	t.Run("10", bad("GET", "/v1/sync/digest?since=-1", ""))
	t.Run("11", func(t *testing.T) {
		for _, q := range []string{"since=x", "since=1.5", "since=%2B5", "limit=0", "limit=-1", "limit=x", "cursor=x", "cursor=-1:a:", "cursor=1:a:" + strings.Repeat("A", 64), "cursor=1:" + strings.Repeat("a", 254) + ":"} {
			bad("GET", "/v1/sync/digest?"+q, "")(t)
		}
	})
	n.post("short.mesh.test", "soon gone", 1)
	eventually(t, "the short life ends", func() bool { return n.do("GET", "/v1/records/short.mesh.test", "operator", "").status == 404 })
	t.Run("12", func(t *testing.T) {
		for _, r := range n.digest("").Records {
			if r.Name == "short.mesh.test" {
				t.Error("an expired row is shown")
			}
		}
	})
	t.Run("13", func(t *testing.T) {
		p := n.pull("a.mesh.test", " b.mesh.test. ", "a.mesh.test")
		if len(p.Records) != 2 || p.Records[0].Value != "one" || p.Records[1].Value != "two" || p.Records[1].Name != "b.mesh.test" || p.Records[0].TTL < 1 {
			t.Error(p)
		}
		if p := n.pull("A.Mesh.Test"); len(p.Records) != 1 || p.Records[0].Name != "A.Mesh.Test" {
			t.Error("a name in the peer's spelling:", p)
		}
	})
	t.Run("14", func(t *testing.T) {
		if p := n.pull("none.mesh.test", "a..b", strings.Repeat("a", 300), "b.mesh.test"); len(p.Records) != 1 {
			t.Error(p)
		}
		if a := n.do("POST", "/v1/sync/pull", "peers", `{"names":[]}`); a.body != `{"records":[]}` {
			t.Error(a)
		}
	})
	t.Run("15", func(t *testing.T) {
		if p := n.pull("short.mesh.test"); len(p.Records) != 0 {
			t.Error(p)
		}
	})
	t.Run("16", func(t *testing.T) {
		bad("POST", "/v1/sync/pull", `{"names":["`+strings.Repeat(`a","`, 299)+`a"]}`)(t) // counted before repetitions go
		// X3: as many names as there may be, as long as they may be, are more than the 16 KiB that the reference takes.
		names := make([]string, 256)
		for i := range names {
			names[i] = fmt.Sprintf("%0253d", i)
		}
		if p := n.pull(names...); len(p.Records) != 0 {
			t.Error(p)
		}
		bad("POST", "/v1/sync/pull", `{"names":[]`+strings.Repeat(" ", 128<<10)+`}`)(t)
	})
	t.Run("17", func(t *testing.T) {
		for _, b := range []string{`{"names":"a"}`, `{"names":{}}`, `{"names":null}`, `{}`, ``, `[]`, `null`, `{`, "{\"names\":[\"\xff\"]}"} {
			bad("POST", "/v1/sync/pull", b)(t)
		}
	})
	t.Run("18", func(t *testing.T) {
		for _, b := range []string{`{"names":[1]}`, `{"names":["a",null]}`, `{"names":[["a"]]}`} {
			bad("POST", "/v1/sync/pull", b)(t)
		}
	})
	t.Run("19", func(t *testing.T) {
		p := n.pull("c.mesh.test")
		if len(p.Records) != 3 || p.Records[0].Value != "three" || p.Records[2].Value != "five" {
			t.Error(p)
		}
	})

	const endpoint = "/v1/sync/cluster-manifest"
	t.Run("20", forbidden(n, "GET", endpoint, ""))
	t.Run("21", forbidden(n, "GET", endpoint, "wrong"))
	named := startReal(t, t.TempDir(), "DMP_SYNC_PEER_TOKEN=peers", "DMP_CLUSTER_BASE_DOMAIN=mesh.test", "DMP_CLUSTER_FILE=")
	t.Run("22", func(t *testing.T) {
		if a := named.do("GET", endpoint, "peers", ""); a.status != 204 || a.body != "" {
			t.Error(a)
		}
	})
	k1, _ := operatorKey('1')
	k2, _ := operatorKey('2')
	member := record.ClusterNode{ID: "node-a", HTTP: "https://a.example"}
	low, high := signManifest(t, k1, "mesh.test", 5, 3600, member), signManifest(t, k2, "mesh.test", 9, 3600, member)
	n.post("cluster.mesh.test", low, 3600)
	t.Run("23", func(t *testing.T) {
		if a := n.do("GET", endpoint, "peers", ""); a.status != 204 {
			t.Error(a)
		}
	})
	type manifest struct {
		Wire     string
		Seq, Exp uint64
		Name     string `json:"cluster_name"`
	}
	named.post("cluster.mesh.test", low, 3600)
	t.Run("24", func(t *testing.T) {
		var m manifest
		named.get("GET", endpoint, "", &m)
		var c record.Cluster
		if c.Parse([]byte(low)); m != (manifest{low, 5, c.ExpSec, "mesh.test"}) {
			t.Error(m)
		}
	})
	named.post("cluster.mesh.test", high, 3600)
	t.Run("25", func(t *testing.T) {
		var m manifest
		if named.get("GET", endpoint, "", &m); m.Wire != high || m.Seq != 9 {
			t.Error(m)
		}
	})
	t.Run("26", forbidden(bare, "GET", endpoint, "peers"))
}

// TestServingFilter: what a reference peer would refuse is not shown to it, since it would hold its watermark there (cluster.md 17.8, W1);
// what a delete took is not either.
func TestServingFilter(t *testing.T) {
	t.Parallel()
	n := startReal(t, t.TempDir(), "DMP_SYNC_PEER_TOKEN=peers", "DMP_CLUSTER_FILE=")
	k, _ := operatorKey('1')
	good := signManifest(t, k, "mesh.test", 1, 3600, record.ClusterNode{ID: "a", HTTP: "https://a.example"})
	for _, x := range [][2]string{
		{"_dnsmesh-heartbeat.mesh.test", "v=dmp1;t=heartbeat;AAAA"}, {"x.mesh.test", "v=dmp2;t=new"}, {"cluster.mesh.test", "plain text"}, {"id-0123456789abcdef.mesh.test", "plain text"},
		{"y.mesh.test", "v=dmp1;t=identity;d=AAAA"}, {"z.mesh.test", "v=dmp1;t=claim;AAAA"}, {"ok.mesh.test", "plain text"}, {"cluster.mesh.test", good}, {"gone.mesh.test", "gone"},
	} {
		n.post(x[0], x[1], 300)
	}
	if a := n.do("DELETE", "/v1/records/gone.mesh.test", "operator", ""); a.status != 204 {
		t.Fatal(a)
	}
	d := n.digest("?limit=1")
	if len(d.Records) != 1 || d.Records[0].Name != "ok.mesh.test" || !d.HasMore {
		t.Error(d)
	}
	d = n.digest("?cursor=" + d.Next)
	if len(d.Records) != 1 || d.Records[0].Hash != hashText(good) || d.HasMore {
		t.Error(d)
	}
	if p := n.pull("x.mesh.test", "y.mesh.test", "cluster.mesh.test", "gone.mesh.test"); len(p.Records) != 1 || p.Records[0].Value != good {
		t.Error(p)
	}
}

// TestNoReplication: a node without peers or without token runs nothing of it and asks nobody (design.md, Replication).
func TestNoReplication(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan struct{}, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
			asked <- struct{}{}
		}
	}()
	for _, more := range [][]string{
		{}, {"DMP_SYNC_PEERS=http://" + l.Addr().String(), "DMP_SYNC_INTERVAL=0.05"}, {"DMP_SYNC_PEER_TOKEN=peers", "DMP_SYNC_INTERVAL=0.05"},
	} {
		n := startReal(t, t.TempDir(), append(more, "DMP_CLUSTER_FILE=")...)
		r := n.replication
		eventually(t, "settled", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return !r.refreshing })
		r.mu.Lock()
		if r.running != nil {
			t.Error(more, "a puller runs")
		}
		r.mu.Unlock()
		if len(more) == 0 || !strings.Contains(more[0], "TOKEN") {
			for _, path := range []string{"/v1/sync/digest", "/v1/sync/cluster-manifest"} {
				if a := n.do("GET", path, "peers", ""); a.status != 403 {
					t.Error(more, path, a)
				}
			}
			if a := n.do("POST", "/v1/sync/pull", "peers", `{"names":[]}`); a.status != 403 {
				t.Error(more, a)
			}
		}
		if a := n.do("GET", "/v2/sync/hello", "peers", ""); a.status != 404 {
			t.Error(more, a)
		}
	}
	if len(asked) > 0 {
		t.Error("a peer was asked")
	}
}

// fakePuller stands in for the puller: what runs when, and with what.
type fakePuller struct {
	o       antientropy.PullerOptions
	running atomic.Int32
	woken   atomic.Int32
}

func (p *fakePuller) Run(ctx context.Context) {
	p.running.Add(1)
	<-ctx.Done()
	p.running.Add(-1)
}

func (p *fakePuller) Wake() { p.woken.Add(1) }

func (p *fakePuller) Status() (status []antientropy.PeerStatus) {
	peers, _ := p.o.Peers.Peers()
	for _, peer := range peers {
		status = append(status, antientropy.PeerStatus{ID: peer.ID, URL: peer.URL, LagSec: 1.5, LagRows: 7, Quarantined: 2, BytesIn: 12345, Reconnects: 4, Rejected: antientropy.Rejects{antientropy.ReasonOwner: 3}, PinFailures: 1})
	}
	return status
}

// TestReplicationFollows: the puller runs while there are token and peers, whatever SIGHUP and manifests change, and what it says of its
// peers is seen everywhere.
func TestReplicationFollows(t *testing.T) {
	t.Parallel()
	k, spk := operatorKey('1')
	dir := t.TempDir()
	common := []string{"DMP_CLUSTER_FILE=", "DMP_NODE_ID=a", "DMP_SYNC_OPERATOR_SPK=" + spk, "DMP_CLUSTER_BASE_DOMAIN=mesh.test"}
	n := startReal(t, dir, common...)
	r := n.replication
	var made atomic.Pointer[fakePuller]
	r.mu.Lock()
	r.newPuller = func(o antientropy.PullerOptions) (antientropy.Runner, error) {
		p := &fakePuller{o: o}
		made.Store(p)
		return p, nil
	}
	r.mu.Unlock()
	reload := func(more ...string) {
		t.Helper()
		if err := n.Reload(settings(t, dir, append(more, common...)...)); err != nil {
			t.Fatal(err)
		}
	}
	running := func(want int32) {
		t.Helper()
		eventually(t, fmt.Sprint("pullers: ", want), func() bool { p := made.Load(); return p != nil && p.running.Load() == want })
	}
	reload("DMP_SYNC_PEERS=http://127.0.0.1:9")
	if made.Load() != nil {
		t.Error("peers without a token start a puller")
	}
	reload("DMP_SYNC_PEERS=http://127.0.0.1:9", "DMP_SYNC_PEER_TOKEN=peers")
	running(1)
	first := made.Load()
	if s := first.o.Settings(); s.Token != "peers" || s.Interval != 10*time.Second || s.MaxTTLSec != 86400 || s.Operator == nil || first.o.BaseDomain() != "mesh.test" {
		t.Errorf("%+v", s)
	}
	n.post("cluster.mesh.test", signManifest(t, k, "mesh.test", 3, 3600, record.ClusterNode{ID: "a", HTTP: "http://a.test"}, record.ClusterNode{ID: "b", HTTP: "http://b.test"}), 300)
	eventually(t, "the peers are the manifest's", func() bool { s := r.status(); return len(s) == 1 && s[0].ID == "b" })
	if made.Load() != first {
		t.Error("another list of peers made another puller")
	}
	m := n.do("GET", "/metrics", "operator", "").body
	for _, want := range []string{"dmpd_sync_peers 1.0\n", `dmpd_sync_lag_seconds{peer="b"} 1.5`, `dmpd_sync_lag_rows{peer="b"} 7.0`, `dmpd_sync_caught_up{peer="b"} 0.0`, `dmpd_sync_quarantined{peer="b"} 2.0`,
		`dmpd_sync_received_bytes_total{peer="b"} 12345.0`, `dmpd_sync_rejected_total{peer="b",reason="owner"} 3.0`, `dmpd_sync_rejected_total{peer="b",reason="time"} 0.0`,
		`dmpd_sync_pin_failures_total{peer="b"} 1.0`, "dmpd_cluster_manifest_seq 3.0\n", "dmpd_cluster_manifest_expiry_seconds 3"} {
		if !strings.Contains(m, want) {
			t.Errorf("%q is not on the metrics page", want)
		}
	}
	page := n.do("GET", "/status", "", "").body
	if want := "<td>b</td><td>v1</td><td>not heard yet</td><td>1.5 s</td><td>7</td><td>-</td><td>2</td><td>12.3 kB</td><td>0 B</td><td>4</td>"; !strings.Contains(page, want) || strings.Contains(page, "http://b.test") {
		t.Errorf("%q is not on the status page, or the peer's URL is\n%s", want, page)
	}
	if s := r.summary(); s != "0 of 1 peers caught up with, up to 1.5 s behind, 2 records refused" {
		t.Error(s)
	}
	if info := r.info(); !info.Running || info.Manifest.Seq != 3 || len(info.Peers) != 1 || info.Peers[0].LagRows != 7 || info.Peers[0].Rejected["owner"] != 3 || info.Peers[0].Converged != nil || info.Peers[0].PinFailures != 1 {
		t.Errorf("%+v", info)
	}
	woken := first.woken.Load()
	reload("DMP_SYNC_PEER_TOKEN=peers", "DMP_SYNC_INTERVAL=3")
	if first.woken.Load() == woken || first.o.Settings().Interval != 3*time.Second {
		t.Error("a reload is not heard of")
	}
	reload()
	running(0)
	if r.status() != nil {
		t.Error("a puller that ended has a status")
	}
	reload("DMP_SYNC_PEER_TOKEN=peers")
	running(1)
	if made.Load() == first {
		t.Error("a puller that ended runs again")
	}
	n.Server.Stop()
	running(0)
}

// TestManifestPaths is X5 (cluster.md 18), the ways that end at one node: file, record, and what the puller hands over. Each swaps the
// peers once; a restart rolls nothing back; of two with one number all nodes choose the same.
func TestManifestPaths(t *testing.T) {
	t.Parallel()
	k, spk := operatorKey('1')
	foreign, _ := operatorKey('2')
	a, b, c := record.ClusterNode{ID: "node-a", HTTP: "http://127.0.0.1:1"}, record.ClusterNode{ID: "node-b", HTTP: "http://127.0.0.1:2/"}, record.ClusterNode{ID: "node-c", HTTP: "http://127.0.0.1:3"}
	dir := t.TempDir()
	file := filepath.Join(t.TempDir(), "cluster.json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"wire":"` + signManifest(t, k, "mesh.test", 1, 30*86400, a, b) + `"}`)
	more := []string{"DMP_CLUSTER_FILE=" + file, "DMP_NODE_ID=node-a", "DMP_SYNC_OPERATOR_SPK=" + spk, "DMP_CLUSTER_BASE_DOMAIN=Mesh.Test."}
	n := startReal(t, dir, append(more, "DMP_SYNC_PEER_TOKEN=peers")...)
	m := n.replication.manifests
	is := func(what string, seq uint64, peers string) {
		t.Helper()
		eventually(t, what, func() bool {
			_, c, _, ok := m.Current()
			list, _ := m.Peers()
			ids := ""
			for _, p := range list {
				ids += p.ID + "=" + p.URL + " "
			}
			return ok && c.Seq == seq && strings.TrimSpace(ids) == peers
		})
	}
	is("file", 1, "node-b=http://127.0.0.1:2")
	life := func(text string) int64 {
		for _, r := range n.pull("cluster.mesh.test").Records {
			if r.Value == text {
				return r.TTL
			}
		}
		return 0
	}
	// A record over HTTP may live a day; the installed one lives as long as it says.
	two := signManifest(t, k, "mesh.test", 2, 30*86400, a, b, c)
	swaps := m.Swaps.Load()
	n.post("cluster.mesh.test", two, 300)
	is("record", 2, "node-b=http://127.0.0.1:2 node-c=http://127.0.0.1:3")
	eventually(t, "the life is the manifest's", func() bool { return life(two) > 29*86400 })
	if got := m.Swaps.Load(); got != swaps+1 {
		t.Error("peers were swapped", got-swaps, "times")
	}
	ctx := t.Context()
	install := func(what, text string, want int) {
		t.Helper()
		got, err := m.Install(ctx, []byte(text), "peer x")
		if err != nil || int(got) != want {
			t.Errorf("%s: %v, %v; want %v", what, got, err, want)
		}
	}
	const taken, same, older, refused = 1, 2, 3, 4
	install("the same", two, same)
	install("a lower number", signManifest(t, k, "mesh.test", 1, 3600, a, c), older)
	install("a foreign key", signManifest(t, foreign, "mesh.test", 7, 3600, a, c), refused)
	install("another name", signManifest(t, k, "other.test", 7, 3600, a, c), refused)
	install("ended", signManifest(t, k, "mesh.test", 7, -3600, a, c), refused)
	install("garbage", "v=dmp1;t=cluster;AAAA", refused)
	install("by a peer", signManifest(t, k, "mesh.test", 3, 3600, b, a), taken)
	is("peer", 3, "node-b=http://127.0.0.1:2")
	// The row of a peer's feed comes to the store as any other does.
	row := signManifest(t, k, "mesh.test", 4, 86400*30, c, a)
	results, err := n.requests.Offer(ctx, []antientropy.Offer{{Name: wire.MustName("cluster.mesh.test"), Value: []byte(row), AddMs: clock.NowMs(), ExpMs: clock.NowMs() + 60_000, Verified: true}})
	if err != nil || results[0].Decision != antientropy.Stored {
		t.Fatal(results, err)
	}
	is("data sync", 4, "node-c=http://127.0.0.1:3")
	eventually(t, "its life is the manifest's", func() bool { return life(row) > 29*86400 })

	// Two with one number: whatever comes first, the same one holds in the end.
	x, y := signManifest(t, k, "mesh.test", 5, 3600, a, b), signManifest(t, k, "mesh.test", 5, 3600, a, c)
	install("the first", x, taken)
	got, err := m.Install(ctx, []byte(y), "peer y")
	winner := x
	if err != nil || got == taken {
		winner = y
	}
	hx, hy := hashText(x), hashText(y)
	if (winner == x) != (hx < hy) || m.Conflicts.Load() == 0 {
		t.Errorf("hashes %.8s and %.8s: %v, %v, %d conflicts", hx, hy, got, err, m.Conflicts.Load())
	}
	install("the winner again", winner, same)

	// The file of an older day does not roll back, and neither does a restart.
	n.Server.Stop()
	write(signManifest(t, k, "mesh.test", 2, 3600, a, b, c))
	n2 := startServer(t, dir, append(more, "DMP_SYNC_PEER_TOKEN=peers")...)
	m = n2.replication.manifests
	text, _, _, ok := m.Current()
	if !ok || string(text) != winner {
		t.Error("the restart rolled back")
	}
	eventually(t, "settled", func() bool {
		n2.replication.mu.Lock()
		defer n2.replication.mu.Unlock()
		return !n2.replication.refreshing
	})
	if text, _, _, _ = m.Current(); string(text) != winner {
		t.Error("the file rolled back")
	}
	// A reload takes a newer file.
	write(signManifest(t, k, "mesh.test", 9, 3600, a, b, c))
	if err := n2.Reload(settings(t, dir, append(more, "DMP_SYNC_PEER_TOKEN=peers")...)); err != nil {
		t.Fatal(err)
	}
	is("reload", 9, "node-b=http://127.0.0.1:2 node-c=http://127.0.0.1:3")
}
