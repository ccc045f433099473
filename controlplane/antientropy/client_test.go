package antientropy

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/dnsmesh/dmpd/internal/vfs/vfstest"
)

// TestPins: a pinned key is who the peer is, whatever its certificate's name; with another key the token is not even sent. Redirects are not
// followed, so that the token goes nowhere else (cluster.md 15, W12).
func TestPins(t *testing.T) {
	t.Parallel()
	var asked, leaked atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { leaked.Add(1) }))
	defer other.Close()
	peer := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.Header.Get("Accept-Encoding") != "" {
			t.Errorf("asks for %q", r.Header.Get("Accept-Encoding"))
		}
		if strings.HasPrefix(r.URL.Path, "/v1/sync/digest") {
			http.Redirect(w, r, other.URL+r.URL.Path, http.StatusTemporaryRedirect)
			return
		}
		if r.ProtoMajor != 2 {
			t.Errorf("speaks %s", r.Proto)
		}
		fmt.Fprint(w, `{"wire":"text"}`)
	}))
	peer.EnableHTTP2 = true
	peer.StartTLS()
	defer peer.Close()
	sum := sha256.Sum256(peer.Certificate().RawSubjectPublicKeyInfo)
	right := peer.URL + "=" + base64.StdEncoding.EncodeToString(sum[:])
	wrong := peer.URL + "=" + base64.StdEncoding.EncodeToString(make([]byte, 32))
	try := func(pins ...string) error {
		c := newClient(peer.URL, pins, nil, now)
		defer c.close()
		_, err := c.manifest(t.Context(), "secret")
		return err
	}
	if err := try(); !errors.Is(err, errAnswer) {
		t.Errorf("an unknown authority: %v", err)
	}
	if err := try(wrong); err == nil || !strings.Contains(err.Error(), "not the pinned one") {
		t.Errorf("another key: %v", err)
	}
	if err := try("https://elsewhere.test=" + strings.SplitN(right, "=", 2)[1]); err == nil {
		t.Error("a pin of another peer lets this one in")
	}
	if asked.Load() != 0 {
		t.Error("the token was sent to somebody who is not the peer")
	}
	if err := try(right); err != nil {
		t.Error(err)
	}
	if err := try(wrong, right); err != nil {
		t.Errorf("one of two pins: %v", err)
	}
	c := newClient(peer.URL, []string{right}, nil, now)
	defer c.close()
	if _, err := c.digest(t.Context(), "secret", Cursor{}, now()); !errors.Is(err, errAnswer) || leaked.Load() != 0 {
		t.Errorf("a redirect: %v, followed %d times", err, leaked.Load())
	}
}

// TestAddresses: X8, no peer is at an address of the machine's cloud.
func TestAddresses(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"http://169.254.169.254", "http://[fe80::1]", "http://0.0.0.0:8053", "http://[::ffff:169.254.169.254]", "http://224.0.0.1"} {
		c := newClient(url, nil, nil, now)
		if _, err := c.manifest(t.Context(), "secret"); !errors.Is(err, errAddress) {
			t.Errorf("%s: %v", url, err)
		}
		c.close()
	}
	for _, url := range []string{"http://127.0.0.1", "http://10.1.2.3:8053", "http://localhost", "https://b.test", "http://[::1]"} {
		if openToAll(url) {
			t.Errorf("%s is said to be open to all", url)
		}
	}
	for _, url := range []string{"http://192.0.2.1", "http://b.test"} {
		if !openToAll(url) {
			t.Errorf("%s is not said to be open to all", url)
		}
	}
}

// TestCursorFile is X9 as far as the file goes: after a power cut at any point it is the old one or the new one, never ahead of what was
// saved, and one of another store or a damaged one begins anew.
func TestCursorFile(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		fs := vfstest.New(seed)
		if err := fs.MkdirAll("d", 0o700); err != nil {
			t.Fatal(err)
		}
		c, err := openCursors(fs, "d", [16]byte{1})
		if err != nil {
			t.Fatal(err)
		}
		saved := map[int64]bool{0: true}
		last := int64(0)
		for ms := int64(1); ms <= 5; ms++ {
			c.set("a", "http://a.test", Cursor{TsMs: ms, Name: "n.test"})
			saved[ms] = true
			if seed%6 == uint64(ms) {
				left := int(seed/6) % 8
				fs.Fault = func(string, string) error {
					if left--; left < 0 {
						return syscall.EIO
					}
					return nil
				}
			}
			if c.save() != nil {
				break
			}
			last = ms
		}
		again, err := openCursors(fs.Crash(), "d", [16]byte{1})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if got := again.get("a", "http://a.test").TsMs; got < last || !saved[got] {
			t.Fatalf("seed %d: the cursor is at %d, saved at %d", seed, got, last)
		}
	}
	fs := vfstest.New(1)
	if err := fs.MkdirAll("d", 0o700); err != nil {
		t.Fatal(err)
	}
	c, _ := openCursors(fs, "d", [16]byte{1})
	c.set("a", "http://a.test", Cursor{TsMs: 7})
	if err := c.save(); err != nil {
		t.Fatal(err)
	}
	if c, err := openCursors(fs, "d", [16]byte{2}); err != nil || c.get("a", "http://a.test") != (Cursor{}) {
		t.Errorf("another store: %v", err)
	}
	f, err := fs.OpenFile(filepath.Join("d", cursorName), 2, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("}"), 0); err != nil {
		t.Fatal(err)
	}
	if c, err := openCursors(fs, "d", [16]byte{1}); err == nil || c.get("a", "http://a.test") != (Cursor{}) {
		t.Errorf("a damaged file: %v", err)
	}
}
