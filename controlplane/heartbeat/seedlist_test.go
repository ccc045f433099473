package heartbeat

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestSeedList: what a list server may do, and what is refused.
func TestSeedList(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	release := make(chan struct{})
	defer close(release)
	mux := http.NewServeMux()
	handle := func(path string, f http.HandlerFunc) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) { asked.Add(1); f(w, r) })
	}
	handle("/good", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "# zones\n\nOne.example.\r\nhttps://two.example:8053/x\n bad_name \n192.0.2.1\none.example\nthree.example")
	})
	handle("/redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/good", http.StatusFound) })
	handle("/missing", http.NotFound)
	handle("/empty", func(http.ResponseWriter, *http.Request) {})
	handle("/huge", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "one.example\n")
		for i := 0; i < 1<<20; i++ {
			if _, err := w.Write([]byte("#" + strings.Repeat("x", 998) + "\n")); err != nil {
				return // cut off, as it should be
			}
		}
	})
	handle("/headers", func(w http.ResponseWriter, _ *http.Request) {
		for i := range 100 {
			w.Header().Set(fmt.Sprint("X-", i), strings.Repeat("x", 1000))
		}
		fmt.Fprint(w, "one.example\n")
	})
	handle("/slow", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "one.example\n")
		w.(http.Flusher).Flush()
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	s := httptest.NewTLSServer(mux)
	defer s.Close()
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	trusting := &tls.Config{RootCAs: pool, ServerName: "example.com"}
	inside := fetcher{permit: func(a netip.Addr) bool { return a.IsLoopback() }, tls: trusting}
	get := func(f *fetcher, url string) ([]string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		return f.fetch(ctx, url)
	}

	if zones, err := get(&inside, s.URL+"/good"); err != nil || strings.Join(zones, " ") != "one.example two.example three.example" {
		t.Fatalf("%q %v", zones, err)
	}
	before := asked.Load()
	if zones, err := get(&inside, s.URL+"/redirect"); err == nil || asked.Load() != before+1 {
		t.Errorf("redirect: %q, and it was followed", zones)
	}
	for _, path := range []string{"/missing", "/empty", "/huge", "/headers", "/slow"} {
		if zones, err := get(&inside, s.URL+path); err == nil {
			t.Errorf("%s: %q", path, zones)
		}
	}
	plain := httptest.NewServer(mux)
	defer plain.Close()
	for _, url := range []string{plain.URL + "/good", "https://user:pw@" + s.Listener.Addr().String() + "/good", "file:///etc/passwd", "https://", "::"} {
		if zones, err := get(&inside, url); err == nil {
			t.Errorf("%s: %q", url, zones)
		}
	}
	if zones, err := get(&fetcher{permit: inside.permit}, s.URL+"/good"); err == nil {
		t.Errorf("a certificate of nobody: %q", zones)
	}

	// The address is judged when it is connected to: a name that now resolves inside is refused before a byte is sent, whatever it
	// resolved to before.
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	before = asked.Load()
	for _, host := range []string{"127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "10.0.0.1", "169.254.169.254"} {
		if zones, err := get(&fetcher{tls: trusting}, "https://"+host+":"+port+"/good"); !errors.Is(err, errNotPublic) && !strings.Contains(fmt.Sprint(err), "lookup") {
			t.Errorf("%s: %q %v", host, zones, err)
		}
	}
	if asked.Load() != before {
		t.Error("an address inside was asked")
	}
}

// TestLongList: no list names more than its share of zones.
func TestLongList(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	for i := range 2 * listZonesMax {
		fmt.Fprintf(&b, "z%d.example\n", i)
	}
	if zones := parseList([]byte(b.String())); len(zones) != listZonesMax {
		t.Errorf("%d zones", len(zones))
	}
}

// TestFetchLists: a list that fails keeps what was last read of it, and is not asked again at once; a list that is configured no more is
// dropped.
func TestFetchLists(t *testing.T) {
	t.Parallel()
	var fail atomic.Bool
	var asked atomic.Int64
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		if fail.Load() {
			w.WriteHeader(500)
			return
		}
		fmt.Fprint(w, "one.example\n")
	}))
	defer s.Close()
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	w, err := New(options(&memory{}, "own.example", 1))
	if err != nil {
		t.Fatal(err)
	}
	w.fetcher = fetcher{permit: netip.Addr.IsLoopback, tls: &tls.Config{RootCAs: pool, ServerName: "example.com"}}
	set := &Settings{ListURLs: []string{s.URL}}
	for range 3 {
		w.fetchLists(context.Background(), set)
	}
	if zones := w.listZones(set); !slices.Equal(zones, []string{"one.example"}) || asked.Load() != 1 || w.stats.ListsOK.Load() != 1 {
		t.Fatalf("%q after %d questions", zones, asked.Load())
	}
	fail.Store(true)
	clear(w.listNext)
	for range 3 {
		w.fetchLists(context.Background(), set)
	}
	if zones := w.listZones(set); len(zones) != 1 || asked.Load() != 2 || w.stats.ListsFailed.Load() != 1 {
		t.Errorf("%q after %d questions", zones, asked.Load())
	}
	w.fetchLists(context.Background(), &Settings{})
	if len(w.seen.lists) != 0 || len(w.listNext) != 0 {
		t.Error("a list that nobody wants is kept")
	}
}

// TestOneHTTPFile: the heartbeat speaks DNS; HTTP is for the seed lists and in their file alone.
func TestOneHTTPFile(t *testing.T) {
	t.Parallel()
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), e.Name(), nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			if strings.HasPrefix(i.Path.Value, `"net/http`) {
				found++
				if e.Name() != "seedlist.go" {
					t.Errorf("%s imports %s", e.Name(), i.Path.Value)
				}
			}
		}
	}
	if found != 1 {
		t.Errorf("%d imports of net/http", found)
	}
}
