package controlplane

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"

	"github.com/dnsmesh/dmpd/internal/config"
	"github.com/dnsmesh/dmpd/internal/logging"
)

// issued gets certificates from an ACME server (RFC 8555) and renews them. The server's challenge is TLS-ALPN-01 (RFC 8737), which comes
// to the HTTPS listener itself: nothing listens on another port, and nothing needs a DNS record.
//
// Account key and certificates lie in control/acme. They are no state of the node: without them it asks for new ones.
type issued struct {
	m       *autocert.Manager
	domains []string
	// refused has a domain while the server's last word on it was no: handshakes do not ask again then, or whoever connects would use up
	// what the server lets us try.
	refused sync.Map
	log     *logging.Logger
	stop    context.CancelFunc
}

var errNoCertificate = errors.New("no certificate yet for this name")

const (
	// acmeTimeout bounds each request to the ACME server.
	acmeTimeout = 30 * time.Second
	// acmeRetry is how soon a certificate that was refused is asked for again, acmeRetryMax the longest pause, with twice the last between:
	// five times in the first hour, which is what Let's Encrypt takes of failures for a name.
	acmeRetry, acmeRetryMax = 2 * time.Minute, time.Hour
	// acmeCheck is how often the certificates are looked at beside the handshakes, so that a node nobody speaks to renews as well.
	acmeCheck = 6 * time.Hour
)

func openIssued(c *config.Config, dir string, log *logging.Logger) (*issued, error) {
	client := &http.Client{Timeout: acmeTimeout}
	if path := c.String("ACME_CA_ROOT"); path != "" {
		pem, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("DMP_ACME_CA_ROOT: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("DMP_ACME_CA_ROOT=%q holds no certificate in PEM", path)
		}
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
		client.Transport = transport
	}
	cache := filepath.Join(dir, "acme")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return nil, err
	}
	var domains []string
	for _, d := range c.List("ACME_DOMAINS") {
		domains = append(domains, strings.ToLower(strings.TrimSuffix(d, ".")))
	}
	return &issued{
		m: &autocert.Manager{
			Prompt: autocert.AcceptTOS, Cache: autocert.DirCache(cache), HostPolicy: autocert.HostWhitelist(domains...), Email: c.String("ACME_EMAIL"),
			Client: &acme.Client{DirectoryURL: c.String("ACME_CA"), HTTPClient: client, UserAgent: "dmpd/" + config.Version},
		},
		domains: domains, log: log,
	}, nil
}

// config is for the listeners. A client that names no host gets the first domain's certificate.
func (i *issued) config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		NextProtos:     []string{"h2", "http/1.1", acme.ALPNProto},
		GetCertificate: i.certificate,
	}
}

func (i *issued) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if slices.Contains(hello.SupportedProtos, acme.ALPNProto) {
		return i.m.GetCertificate(hello)
	}
	name := cmp.Or(strings.TrimSuffix(strings.ToLower(hello.ServerName), "."), i.domains[0])
	if _, refused := i.refused.Load(name); refused {
		return nil, errNoCertificate
	}
	return i.get(name)
}

// get orders the certificate if it is not there.
func (i *issued) get(name string) (*tls.Certificate, error) {
	return i.m.GetCertificate(&tls.ClientHelloInfo{
		ServerName: name,
		// Whoever speaks TLS 1.3 takes ECDSA with P-256 (RFC 8446, 9.1); the library looks for suites of TLS 1.2 to learn that.
		CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
	})
}

// serve is called when the listeners answer, which the challenge needs. It gets what is missing, says what it got, and looks again now and then.
func (i *issued) serve() {
	ctx, stop := context.WithCancel(context.Background())
	i.stop = stop
	go func() {
		expires := map[string]time.Time{}
		for pause := acmeRetry; ; {
			failed := false
			for _, d := range i.domains {
				cert, err := i.get(d)
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					failed = true
					i.refused.Store(d, true)
					i.log.Warn("no certificate yet", "domain", d, "ca", i.m.Client.DirectoryURL, "err", err, "next", pause,
						"remedy", "the ACME server must reach this node's HTTPS at port 443 of that name")
					continue
				}
				i.refused.Delete(d)
				if t := cert.Leaf.NotAfter; !t.Equal(expires[d]) {
					expires[d] = t
					i.log.Info("certificate from the ACME server", "domain", d, "issuer", cert.Leaf.Issuer.CommonName, "until", t.UTC().Format(time.RFC3339))
				}
			}
			wait := acmeCheck
			if failed {
				wait = pause
				pause = min(2*pause, acmeRetryMax)
			} else {
				pause = acmeRetry
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
		}
	}()
}

// close does not wait for a request to the server that is under way.
func (i *issued) close() {
	if i.stop != nil {
		i.stop()
	}
}
