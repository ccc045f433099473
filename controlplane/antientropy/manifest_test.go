package antientropy

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dnsmesh/dmpd/internal/record"
)

// emptyStore has no records and takes none, like a node whose data plane is away.
type emptyStore struct{ View }

func (emptyStore) Values([]byte, int64) ([]FeedRow, error)          { return nil, nil }
func (emptyStore) Offer(context.Context, []Offer) ([]Result, error) { return nil, ErrAway }

const nowMs = 1_800_000_000_000

func signed(t testing.TB, seq uint64, nodes ...record.ClusterNode) (text string, operator *[32]byte) {
	t.Helper()
	key := ed25519.NewKeyFromSeed([]byte(strings.Repeat("k", 32)))
	c := record.Cluster{Name: "mesh.test", Seq: seq, ExpSec: nowMs/1000 + 3600, Nodes: nodes}
	b, r := c.Append(nil, key)
	if r != record.Accepted {
		t.Fatal(r)
	}
	return string(b), (*[32]byte)(key.Public().(ed25519.PublicKey))
}

func open(t testing.TB, dir string, s Settings) *Manifests {
	t.Helper()
	m, err := OpenManifests(ManifestOptions{Dir: dir, Settings: func() Settings { return s }, View: emptyStore{}, Writer: emptyStore{}, NowMs: func() int64 { return nowMs }})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func peersOf(m *Manifests) string {
	peers, _ := m.Peers()
	var out []string
	for _, p := range peers {
		out = append(out, p.ID+"="+p.URL)
	}
	return strings.Join(out, " ")
}

// TestPeerFile: rows 21 to 27 of cluster.md 14.1, and 57 and 58 (the self filter).
func TestPeerFile(t *testing.T) {
	t.Parallel()
	text, _ := signed(t, 1, record.ClusterNode{ID: "a", HTTP: "http://a.test:8053"}, record.ClusterNode{ID: "b", HTTP: "https://b.test/dmp/"}, record.ClusterNode{ID: "c", HTTP: "http://c.test"})
	all := "a=http://a.test:8053 b=https://b.test/dmp c=http://c.test"
	for _, x := range []struct {
		what, file string
		s          Settings
		want       string
	}{
		{"21: missing", "-", Settings{}, ""},
		{"22: empty", " \n", Settings{}, ""},
		{"23: a text, in its order", text + "\n", Settings{}, all},
		{"24: own id", text, Settings{NodeID: "b"}, "a=http://a.test:8053 c=http://c.test"},
		{"25: a text in JSON", `{"wire":"` + text + `"}`, Settings{}, all},
		{"26: a list of nodes", `{"nodes":[{"node_id":"x","http_endpoint":"http://x.test/"},{"node_id":"y","http_endpoint":"http://y.test"}]}`, Settings{}, "x=http://x.test y=http://y.test"},
		{"27: broken JSON", `{"nodes":[`, Settings{}, ""},
		{"27: broken text", text[:60], Settings{}, ""},
		{"57: own id, of a list", `{"nodes":[{"node_id":"x","http_endpoint":"http://x.test/"},{"node_id":"y","http_endpoint":"http://y.test"}]}`, Settings{NodeID: "x"}, "y=http://y.test"},
		{"58: own URL, whatever its case and slash", text, Settings{SelfURL: "HTTP://A.test:8053//"}, "b=https://b.test/dmp c=http://c.test"},
		{"too much", text + strings.Repeat(" ", clusterFileMax), Settings{}, ""},
		{"only http and https, repetitions once", `{"nodes":[{"node_id":"f","http_endpoint":"file:///etc/passwd"},{"node_id":"g","http_endpoint":"http://g.test"},{"node_id":"g","http_endpoint":"http://h.test"},
			{"node_id":"i","http_endpoint":"HTTP://G.test/"},{"node_id":"j","http_endpoint":"http://user:pw@j.test"},{"node_id":"k","http_endpoint":"http:///x"},{"node_id":"l","http_endpoint":""}]}`, Settings{}, "g=http://g.test"},
		{"DMP_SYNC_PEERS wins over the file", text, Settings{URLs: []string{" http://Other.test:80/ ", "http://other.test:80"}}, "other.tes-eda70f=http://Other.test:80"},
	} {
		path := filepath.Join(t.TempDir(), "cluster.json")
		if x.file != "-" {
			if err := os.WriteFile(path, []byte(x.file), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		x.s.File = path
		if got := peersOf(open(t, t.TempDir(), x.s)); got != x.want {
			t.Errorf("%s: %q, want %q", x.what, got, x.want)
		}
	}
}

// TestInstall: rows 47 to 54 and 60 of cluster.md 14.1, at the routine that every way of a manifest ends in.
func TestInstall(t *testing.T) {
	t.Parallel()
	node := func(id string) record.ClusterNode { return record.ClusterNode{ID: id, HTTP: "http://" + id + ".test"} }
	first, operator := signed(t, 5, node("a"), node("b"))
	dir := t.TempDir()
	s := Settings{Operator: operator, BaseDomain: "mesh.test", NodeID: "a", URLs: []string{"http://start.test"}}
	m := open(t, dir, s)
	_, changed := m.Peers()
	install := func(what, text string, want Installed) {
		t.Helper()
		if got, err := m.Install(t.Context(), []byte(text), "peer x"); got != want || err != nil && !errors.Is(err, ErrAway) {
			t.Errorf("%s: %v, %v; want %v", what, got, err, want)
		}
	}
	install("47: new", first, ManifestNew)
	select {
	case <-changed:
	default:
		t.Error("nobody was told of the new peers")
	}
	if got := peersOf(m); got != "b=http://b.test" {
		t.Error(got)
	}
	lower, _ := signed(t, 4, node("a"), node("c"))
	install("48: lower", lower, ManifestOlder)
	install("49: garbage", "v=dmp1;t=cluster;"+strings.Repeat("A", 300), ManifestRefused)
	other := Settings{Operator: &[32]byte{1}, BaseDomain: "mesh.test"}
	if got, err := open(t, t.TempDir(), other).Install(t.Context(), []byte(first), "peer x"); got != ManifestRefused || err != nil {
		t.Error("50: foreign operator:", got, err)
	}
	late := &Manifests{o: m.o, changed: make(chan struct{})}
	late.o.Dir, late.o.NowMs = t.TempDir(), func() int64 { return nowMs + 3601_000 }
	if got, err := late.Install(t.Context(), []byte(first), "peer x"); got != ManifestRefused || err != nil {
		t.Error("51: ended:", got, err)
	}
	other = Settings{Operator: operator, BaseDomain: "other.test"}
	if got, err := open(t, t.TempDir(), other).Install(t.Context(), []byte(first), "peer x"); got != ManifestRefused || err != nil {
		t.Error("52: another name:", got, err)
	}
	more, _ := signed(t, 6, node("a"), node("b"), node("c"))
	install("53: one node more", more, ManifestNew)
	if got := peersOf(m); got != "b=http://b.test c=http://c.test" {
		t.Error("53:", got)
	}
	less, _ := signed(t, 7, node("c"), node("a"))
	install("54: one node less", less, ManifestNew)
	if got := peersOf(m); got != "c=http://c.test" {
		t.Error("54:", got)
	}
	swaps := m.Swaps.Load()
	install("60: the same", less, ManifestSame)
	if m.Swaps.Load() != swaps {
		t.Error("60: the peers were swapped")
	}

	// another process begins where this one was, whatever else is configured
	if m = open(t, dir, s); peersOf(m) != "c=http://c.test" {
		t.Error("after a restart:", peersOf(m))
	}
	install("the floor holds", more, ManifestOlder)
	// and another key begins anew
	s.Operator = &[32]byte{9}
	if m = open(t, dir, s); !strings.HasSuffix(peersOf(m), "=http://start.test") {
		t.Error("a manifest by a key that is not pinned any more names the peers:", peersOf(m))
	}
	if err := os.WriteFile(filepath.Join(dir, manifestFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenManifests(m.o); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Error("a damaged file:", err)
	}
}

func TestSyntheticID(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"http://Node-B.Example.com:8053/x": "node-b.ex-", "https://b": "b-"} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if id := SyntheticID(u); !strings.HasPrefix(id, want) || len(id) != len(want)+6 {
			t.Errorf("%s: %s", text, id)
		}
	}
}

// TestCursor: cluster.md 7.
func TestCursor(t *testing.T) {
	t.Parallel()
	hash := strings.Repeat("ab", 32)
	for text, want := range map[string]string{"0::": "0::", "7:a.test:" + hash: "7:a.test:" + hash, "7:a.test": "7:a.test:", "007:a:": "7:a:", "1:" + strings.Repeat("n", 253) + ":": "1:" + strings.Repeat("n", 253) + ":"} {
		if c, err := ParseCursor(text); err != nil || c.String() != want {
			t.Errorf("%s: %v, %v", text, c, err)
		}
	}
	for _, text := range []string{"", "1", ":", "x::", "-1::", "+1::", "1_0::", " 1::", "12345678901234567890::", "9999999999999999999::", "1:a:b", "1:a:" + hash[1:], "1:a:" + strings.ToUpper(hash), "1:a:" + hash + ":", "1:" + strings.Repeat("n", 254) + ":"} {
		if c, err := ParseCursor(text); err == nil {
			t.Errorf("%q is read as %v", text, c)
		}
	}
	ordered := []string{"0::", "5::", "5:a:", "5:a:" + strings.Repeat("0", 63) + "1", "5:a:" + hash, "5:aa:", "5:b:", "6::", "10::"}
	for i, x := range ordered {
		for j, y := range ordered {
			a, _ := ParseCursor(x)
			b, _ := ParseCursor(y)
			if got := a.Compare(b); (got < 0) != (i < j) || (got == 0) != (i == j) {
				t.Errorf("%s against %s: %d", x, y, got)
			}
		}
	}
}

func TestAuthorized(t *testing.T) {
	t.Parallel()
	s := Settings{Token: "new", Previous: []string{"old"}}
	for header, want := range map[string]bool{"Bearer new": true, "Bearer old": true, "bearer new": false, "Bearer  new": false, "Bearer new ": false, "new": false, "": false, "Bearer ": false, "Bearer ne": false} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Authorization", header)
		if got := Authorized(r, &s); got != want {
			t.Errorf("%q: %v", header, got)
		}
		if Authorized(r, &Settings{Previous: []string{"old", ""}}) {
			t.Errorf("%q opens a node without a token", header)
		}
	}
}
