package bench

import (
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
)

// TestRegistrations: the honest signature verifies and the forged ones do not, and an honest one that is turned away is an error.
func TestRegistrations(t *testing.T) {
	ch := challenge{strings.Repeat("5a", 32), "mesh.test"}
	var full atomic.Bool
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_ = json.NewEncoder(w).Encode(ch)
			return
		}
		var raw map[string]string
		if err := json.NewDecoder(r.Body).Decode(&raw); err != nil {
			t.Error(err)
		}
		bytesOf := func(text string) []byte { b, _ := hex.DecodeString(text); return b }
		spk := bytesOf(raw["ed25519_spk"])
		payload := append(append(append(bytesOf(raw["challenge"]), raw["subject"]...), ch.Node...), 1)
		switch {
		case full.Load():
			w.WriteHeader(http.StatusServiceUnavailable)
		case len(spk) != ed25519.PublicKeySize || !ed25519.Verify(spk, payload, bytesOf(raw["signature"])):
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer s.Close()
	at, from := netip.MustParseAddrPort(s.Listener.Addr().String()), netip.MustParseAddr("127.0.0.1")
	if err := register(at, from, "honest@mesh.test"); err != nil {
		t.Error(err)
	}
	if n, err := forge(at, from); n != forgedPerAddr-1 || err != nil {
		t.Errorf("%d forged ones were refused, %v", n, err)
	}
	full.Store(true)
	if err := register(at, from, "honest@mesh.test"); err == nil {
		t.Error("one that was turned away counts as registered")
	}
}
