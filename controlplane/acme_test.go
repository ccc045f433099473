package controlplane

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dnsmesh/dmpd/internal/config"
)

// While an ACME server refuses, handshakes do not ask it again: a stranger could use up what it lets this node try. Names that are not
// this node's never ask.
func TestACMERefused(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	ca := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		http.Error(w, "no", http.StatusForbidden)
	}))
	defer ca.Close()
	c, _, _ := config.Resolve(config.Input{Flags: map[string]string{"STATE_DIR": t.TempDir(), "ACME_DOMAINS": "a.test, b.test", "HTTP_HOST": "127.0.0.1"}})
	if c == nil {
		t.Fatal("no configuration")
	}
	open := func() *issued {
		i, err := openIssued(c, t.TempDir(), nil)
		if err != nil {
			t.Fatal(err)
		}
		i.m.Client.DirectoryURL = ca.URL
		return i
	}
	i := open()
	for _, name := range []string{"other.test", "10.0.0.1"} {
		if _, err := i.certificate(&tls.ClientHelloInfo{ServerName: name}); err == nil || asked.Load() != 0 {
			t.Fatalf("%s: %v, asked %d times", name, err, asked.Load())
		}
	}
	i.refused.Store("a.test", true)
	for _, name := range []string{"", "a.test", "A.test."} {
		if _, err := i.certificate(&tls.ClientHelloInfo{ServerName: name}); err == nil || asked.Load() != 0 {
			t.Fatalf("%q: %v, asked %d times", name, err, asked.Load())
		}
	}
	if _, err := i.certificate(&tls.ClientHelloInfo{ServerName: "b.test"}); err == nil || asked.Load() == 0 {
		t.Fatalf("%v, asked %d times", err, asked.Load())
	}

	i = open()
	i.serve()
	defer i.close()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		_, a := i.refused.Load("a.test")
		_, b := i.refused.Load("b.test")
		if a && b {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the refusals were not remembered")
		}
	}
}
