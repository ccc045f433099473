package controlplane

import (
	"crypto/tls"
	"fmt"
	"log"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dnsmesh/dmpd/internal/config"
	"github.com/dnsmesh/dmpd/internal/logging"
)

// certificates is where the node's certificate comes from: files, or an ACME server.
type certificates interface {
	config() *tls.Config
	close()
}

// openCertificates gives nil if the node speaks plain HTTP.
func openCertificates(c *config.Config, dir string, log *logging.Logger) (certificates, error) {
	switch {
	case c.String("TLS_CERT") != "":
		files, err := loadCertificate(c.String("TLS_CERT"), c.String("TLS_KEY"), log)
		if err != nil {
			return nil, err
		}
		return files, nil
	case len(c.List("ACME_DOMAINS")) > 0:
		i, err := openIssued(c, dir, log)
		if err != nil {
			return nil, err
		}
		return i, nil
	}
	return nil, nil
}

// certificate is the node's, read again when its files change or on SIGHUP. Connections that are open keep what they began with.
type certificate struct {
	certPath, keyPath string
	log               *logging.Logger
	current           atomic.Pointer[tls.Certificate]
	stop              chan struct{}
	once              sync.Once
	seen              string
}

// certPoll is how often the files are looked at: a renewal need not be noticed sooner.
const certPoll = 5 * time.Second

func loadCertificate(certPath, keyPath string, log *logging.Logger) (*certificate, error) {
	c := &certificate{certPath: certPath, keyPath: keyPath, log: log, stop: make(chan struct{})}
	c.seen = c.stamp()
	if err := c.load(); err != nil {
		return nil, err
	}
	go c.watch()
	return c, nil
}

// load reads the files. A pair that does not fit, as in the middle of a renewal, leaves the old certificate in force.
func (c *certificate) load() error {
	pair, err := tls.LoadX509KeyPair(c.certPath, c.keyPath)
	if err != nil {
		return fmt.Errorf("the certificate DMP_TLS_CERT=%q with DMP_TLS_KEY=%q: %w", c.certPath, c.keyPath, err)
	}
	c.current.Store(&pair)
	return nil
}

func (c *certificate) stamp() string {
	var b strings.Builder
	for _, p := range []string{c.certPath, c.keyPath} {
		if info, err := os.Stat(p); err == nil {
			fmt.Fprint(&b, info.ModTime().UnixNano(), info.Size(), " ")
		}
	}
	return b.String()
}

func (c *certificate) watch() {
	tick := time.NewTicker(certPoll)
	defer tick.Stop()
	for {
		select {
		case <-c.stop:
			return
		case <-tick.C:
		}
		stamp := c.stamp()
		if stamp == c.seen {
			continue
		}
		if err := c.load(); err != nil {
			c.log.Warn("the new certificate is not taken, the old one stays", "err", err)
			continue
		}
		c.seen = stamp
		c.log.Info("certificate read again")
	}
}

func (c *certificate) close() { c.once.Do(func() { close(c.stop) }) }

func (c *certificate) config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current.Load(), nil },
	}
}

// connLimit bounds the open connections of all listeners together.
type connLimit chan struct{}

func newConnLimit(n int) connLimit { return make(connLimit, n) }

// limitListener closes connections beyond the limit at once: a queue of them would only make the others wait.
type limitListener struct {
	net.Listener
	limit connLimit
}

func (l *limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.limit <- struct{}{}:
			return &limitConn{Conn: c, limit: l.limit}, nil
		default:
			c.Close()
		}
	}
}

type limitConn struct {
	net.Conn
	limit connLimit
	once  sync.Once
}

func (c *limitConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { <-c.limit })
	return err
}

// CloseWrite lets net/http end an answer before it closes: it refuses a request that it has not read to its end, and a close at once
// would reset the connection and take the answer with it.
func (c *limitConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// quiet sends what net/http logs of clients' mistakes to the debug level.
func quiet(l *logging.Logger) *log.Logger { return log.New(quietWriter{l}, "", 0) }

type quietWriter struct{ log *logging.Logger }

func (w quietWriter) Write(b []byte) (int, error) {
	w.log.Debug("http", "message", strings.TrimSpace(string(b)))
	return len(b), nil
}
