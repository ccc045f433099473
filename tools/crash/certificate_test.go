package crash

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dnsmesh/dmpd/tools/node"
)

// issue makes a key and a certificate of its own, and gives the key's pin.
func issue(t *testing.T) (certPEM, keyPEM []byte, pin string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256(spki)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), base64.StdEncoding.EncodeToString(hash[:])
}

// install puts a certificate where a node reads it, as a renewal does: by renames.
func install(t *testing.T, n *node.Node, certPEM, keyPEM []byte) {
	t.Helper()
	for file, b := range map[string][]byte{"key.pem": keyPEM, "cert.pem": certPEM} {
		path := filepath.Join(n.Dir, file)
		if err := os.WriteFile(path+".new", b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
}

// shownPin is the key that a node shows to a new connection.
func shownPin(n *node.Node) string {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", strings.TrimPrefix(n.HTTP, "https://"), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		return ""
	}
	defer c.Close()
	hash := sha256.Sum256(c.ConnectionState().PeerCertificates[0].RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(hash[:])
}

// TestCertificateChange: node a gets another key while it feeds b and c. New connections see it; what is published meanwhile is lost nowhere. b has
// pinned both keys and does not mind; c has the old one alone: it refuses a, says so, and has a's records from b, until it pins the new one too.
func TestCertificateChange(t *testing.T) {
	t.Parallel()
	var nodes []*node.Node
	var pins []string
	for i := range 3 {
		n := node.New(t)
		n.HTTP = "https" + strings.TrimPrefix(n.HTTP, "http")
		transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}
		n.Transport = transport
		cert, key, pin := issue(t)
		install(t, n, cert, key)
		n.Env = append(n.Env, "DMP_SYNC_PEER_TOKEN=peers", "DMP_SYNC_INTERVAL=3600", fmt.Sprint("DMP_NODE_ID=n", i), "DMP_TLS_CERT="+filepath.Join(n.Dir, "cert.pem"), "DMP_TLS_KEY="+filepath.Join(n.Dir, "key.pem"), "DMP_CONFIG="+filepath.Join(n.Dir, "node.toml"))
		nodes, pins = append(nodes, n), append(pins, n.HTTP+"="+pin)
	}
	a, b, c := nodes[0], nodes[1], nodes[2]
	newCert, newKey, newPin := issue(t)
	both := append([]string{a.HTTP + "=" + newPin}, pins...)
	configure := func(n *node.Node, pins []string) {
		t.Helper()
		text := `sync_pins = ["` + strings.Join(pins, `", "`) + "\"]\n"
		if err := os.WriteFile(filepath.Join(n.Dir, "node.toml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i, n := range nodes {
		configure(n, both)
		if n == c {
			configure(n, pins)
		}
		var peers []string
		for j, p := range nodes {
			if i != j {
				peers = append(peers, p.HTTP)
			}
		}
		n.Env = append(n.Env, "DMP_SYNC_PEERS="+strings.Join(peers, ","))
		n.Run()
	}
	for _, n := range nodes {
		n.Eventually("it speaks natively with both others", func() bool { return clusterState(n).whole() })
	}
	key := mustMint(a, "k."+node.Zone)

	stop := make(chan struct{})
	var writer sync.WaitGroup
	finish := sync.OnceFunc(func() { close(stop); writer.Wait() })
	defer finish()
	var mu sync.Mutex
	var acked []string
	writer.Go(func() {
		for k := 0; ; k++ {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
			name := fmt.Sprintf("r%d.%s", k, node.Zone)
			if a.Add(key, 2*time.Second, [2]string{name, "a"}) == dns.RcodeSuccess {
				mu.Lock()
				acked = append(acked, name)
				mu.Unlock()
			}
		}
	})
	// more waits until so many that were acknowledged from now on are at the node.
	more := func(n *node.Node, what string) {
		t.Helper()
		mu.Lock()
		from := len(acked)
		mu.Unlock()
		n.Eventually(what, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(acked) > from+20 && has(n, acked[from+20])
		})
	}
	more(b, "b is fed")
	more(c, "c is fed")

	install(t, a, newCert, newKey)
	a.Control.Signal(syscall.SIGHUP)
	a.Eventually("new connections see the new key", func() bool { return shownPin(a) == newPin })
	more(b, "b is fed while a has another key")
	more(c, "c is fed, or has it from b")
	t.Logf("reconnects: b %+v, c %+v", clusterState(b).Peers, clusterState(c).Peers)

	a.Control.Kill() // which ends all connections
	a.StartControl()
	of := func(n *node.Node) (found struct {
		native, caughtUp bool
		failures         int64
		err              string
	}) {
		for _, p := range clusterState(n).Peers {
			if p.URL == a.HTTP {
				found.native, found.caughtUp, found.failures, found.err = p.Native, p.CaughtUp, p.PinFailures, p.LastError
			}
		}
		return found
	}
	c.Eventually("c refuses a and says why", func() bool {
		s := of(c)
		return s.failures > 0 && !s.caughtUp && strings.Contains(s.err, "is not the pinned one")
	})
	if log := c.Control.Output(); !strings.Contains(log, "WARN") || !strings.Contains(log, newPin+" is not the pinned one") {
		t.Errorf("c's log does not say why:\n%s", log)
	}
	more(b, "b is fed by a's new key")
	more(c, "c has a's records from b")
	finish()
	b.Eventually("b is equal to a", func() bool { s := of(b); return s.native && s.caughtUp && s.failures == 0 })

	configure(c, both)
	c.Control.Signal(syscall.SIGHUP)
	c.Eventually("c takes a's new key", func() bool { s := of(c); return s.native && s.caughtUp && s.err == "" })
	for _, n := range nodes {
		for _, name := range acked {
			n.Eventually(n.HTTP+" has "+name, func() bool { return has(n, name) })
		}
	}
	t.Logf("%d records", len(acked))
}
