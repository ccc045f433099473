package heartbeat

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/record"
)

// memory is Records in a map.
type memory struct {
	mu     sync.Mutex
	values map[string][][]byte
	err    error
}

func (m *memory) Values(name string) ([][]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.values[name]), m.err
}

func (m *memory) Change(_ context.Context, name string, add, remove [][]byte, ttlSec int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	if ttlSec < 1 {
		return fmt.Errorf("a life of %d s", ttlSec)
	}
	if m.values == nil {
		m.values = map[string][][]byte{}
	}
	m.values[name] = slices.DeleteFunc(m.values[name], func(v []byte) bool {
		same := func(u []byte) bool { return bytes.Equal(u, v) }
		return slices.ContainsFunc(remove, same) || slices.ContainsFunc(add, same)
	})
	m.values[name] = append(m.values[name], add...)
	return nil
}

// testKey gives the n-th key.
func testKey(n int) ed25519.PrivateKey {
	seed := make([]byte, 32)
	copy(seed, fmt.Sprint("key ", n))
	return ed25519.NewKeyFromSeed(seed)
}

// signed gives a heartbeat that was signed ageSec ago.
func signed(t testing.TB, n int, endpoint, zone string, ageSec int64) []byte {
	t.Helper()
	now := clock.NowMs() / 1000
	h := record.Heartbeat{Endpoint: endpoint, Version: "1", Zone: zone, TsSec: uint64(now - ageSec), ExpSec: uint64(now - ageSec + 86400)}
	text, r := h.Append(nil, testKey(n))
	if r != record.Accepted {
		t.Fatal(r)
	}
	return text
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("never came true: %s", what)
}

// TestLoadKey: raw seeds are never trimmed, text is (http.md 20 row 26).
func TestLoadKey(t *testing.T) {
	t.Parallel()
	seed := bytes.Repeat([]byte{7}, 32)
	seed[0], seed[31] = '\n', ' '
	text := hex.EncodeToString(seed)
	for _, x := range []struct {
		name, content string
		ok            bool
	}{
		{"raw", string(seed), true},
		{"hex", text, true},
		{"hex and white space", " \t" + text + "\r\n", true},
		{"upper case", string(bytes.ToUpper([]byte(text))), true},
		{"raw and a newline", string(seed) + "\n", false},
		{"short", text[:62], false},
		{"long", text + "00", false},
		{"empty", "", false},
		{"no hex", "zz" + text[2:], false},
		{"huge", string(bytes.Repeat([]byte(" "), keyFileMax)) + text, false},
	} {
		path := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(path, []byte(x.content), 0o600); err != nil {
			t.Fatal(err)
		}
		key, err := LoadKey(path, nil)
		if (err == nil) != x.ok || x.ok && !bytes.Equal(key.Seed(), seed) {
			t.Errorf("%s: %v", x.name, err)
		}
	}
	missing := filepath.Join(t.TempDir(), "missing")
	if _, err := LoadKey(missing, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing key: %v", err)
	}
	if _, err := os.Stat(missing); !errors.Is(err, os.ErrNotExist) {
		t.Error("a key was made")
	}
}

func TestZones(t *testing.T) {
	t.Parallel()
	for _, x := range []struct{ in, want string }{
		{"Mesh.Example.", "mesh.example"}, {"https://Mesh.Example:8053/x", "mesh.example"}, {"mesh.example:53", "mesh.example"}, {" mesh.example ", "mesh.example"},
		{"https://user@mesh.example", "mesh.example"}, {"192.0.2.1", ""}, {"https://[2001:db8::1]:8053", ""}, {"[2001:db8::1]", ""}, {"2001:db8::1", ""},
		{"", ""}, {".", ""}, {"a..b", ""}, {"a b", ""}, {"-a.example", ""}, {"a.example\x00", ""}, {"é.example", ""}, {"a_b.example", ""},
		{string(bytes.Repeat([]byte("a."), 118)) + "a", ""},
	} {
		if got, ok := seedZone(x.in); ok != (x.want != "") || ok && got != x.want {
			t.Errorf("%q: %q %v", x.in, got, ok)
		}
	}
	for _, x := range []struct{ endpoint, zone, want string }{
		{"https://a.example:8053", "B.example.", "b.example"}, {"https://A.example:8053", "", "a.example"}, {"https://a.example", "not a zone", "a.example"}, {"https://9.9.9.9:8053", "", ""},
	} {
		if got, _ := zoneOf(&record.Heartbeat{Endpoint: x.endpoint, Zone: x.zone}); got != x.want {
			t.Errorf("%+v: %q", x, got)
		}
	}
}

func options(m *memory, zone string, n int) Options {
	return Options{Key: testKey(n), Endpoint: "https://" + zone, Version: "1", Zone: zone, Records: m,
		Settings: func() Settings { return Settings{Interval: 20 * time.Millisecond, TTLSec: 86400, Capabilities: 1} }}
}

// TestPublishOwn: one value of ours, fresh, and nobody else's touched.
func TestPublishOwn(t *testing.T) {
	t.Parallel()
	m := &memory{}
	name := record.HeartbeatName("own.example")
	sibling := signed(t, 2, "https://sibling.example", "own.example", 100)
	m.values = map[string][][]byte{name: {signed(t, 1, "https://own.example", "own.example", 900), sibling, []byte("not a heartbeat"), signed(t, 1, "https://old.example", "own.example", siblingSec+10)}}
	w, err := Start(options(m, "own.example", 1))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	first := w.stats.Rounds.Load()
	eventually(t, "a few rounds", func() bool { return w.stats.Rounds.Load() > first+3 })
	values, _ := m.Values(name)
	if len(values) != 3 || !bytes.Equal(values[0], sibling) || string(values[1]) != "not a heartbeat" {
		t.Fatalf("%q", values)
	}
	var h record.Heartbeat
	if r := h.Verify(values[2], clock.NowMs()/1000, record.HeartbeatSkewSec); r != record.Accepted || h.Operator != w.Operator() || h.Capabilities != 1 || h.ExpSec-h.TsSec != 86400 {
		t.Fatalf("%v %+v", r, h)
	}
	// A store that is away is tried again.
	m.mu.Lock()
	m.err = errors.New("away")
	m.values[name] = nil
	m.mu.Unlock()
	eventually(t, "a failure", func() bool { return w.stats.PublishFailures.Load() > 0 })
	m.mu.Lock()
	m.err = nil
	m.mu.Unlock()
	eventually(t, "published again", func() bool { v, _ := m.Values(name); return len(v) == 1 })
}

// TestCannotStart: what readers would refuse is not published.
func TestCannotStart(t *testing.T) {
	t.Parallel()
	for _, f := range []func(*Options){
		func(o *Options) { o.Endpoint = "https://localhost:8053" },
		func(o *Options) { o.Endpoint = "https://127.0.0.1" },
		func(o *Options) { o.Endpoint = "https://own.example/path" },
		func(o *Options) { o.Version = string(bytes.Repeat([]byte("v"), 33)) },
		func(o *Options) { o.Zone = string(bytes.Repeat([]byte("z"), 65)) },
	} {
		o := options(&memory{}, "own.example", 1)
		f(&o)
		if w, err := Start(o); err == nil {
			w.Stop()
			t.Errorf("started with %+v", o)
		}
	}
}

// TestCadence: whatever is configured, a value that is read at the end of its way is not older than readers allow.
func TestCadence(t *testing.T) {
	t.Parallel()
	for _, interval := range []time.Duration{100 * time.Millisecond, time.Minute, 5 * time.Minute, 24 * time.Hour} {
		o := options(&memory{}, "own.example", 1)
		o.Settings = func() Settings { return Settings{Interval: interval, TTLSec: 86400} }
		w := &Worker{o: o}
		for range 100 {
			d := w.pause(nil)
			if d <= 0 || d > interval || 2*(d+time.Minute) > record.HeartbeatSkewSec*time.Second {
				t.Fatalf("%v for %v", d, interval)
			}
			if d := w.pause(errors.New("away")); d > roundRetry {
				t.Fatalf("%v after a failure", d)
			}
		}
	}
}
