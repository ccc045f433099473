package controlplane

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestCertificateUnderLoad: the certificate is changed again and again while clients with old and new connections, over HTTP/1.1 and
// HTTP/2, write records. Not one write is lost. Their bodies are streams, so that no client tries again behind the test's back.
func TestCertificateUnderLoad(t *testing.T) {
	t.Parallel()
	const swaps, between = 12, 40
	certs, pool := t.TempDir(), x509.NewCertPool()
	pairs := map[string][2][]byte{} // by the name in the certificate
	for _, name := range []string{"one", "two"} {
		from, pair := t.TempDir(), [2][]byte{}
		writeCert(t, from, name)
		for i, file := range []string{"cert.pem", "key.pem"} {
			var err error
			if pair[i], err = os.ReadFile(filepath.Join(from, file)); err != nil {
				t.Fatal(err)
			}
		}
		pairs[name] = pair
		pool.AppendCertsFromPEM(pair[0])
	}
	put := func(name string) {
		for i, file := range []string{"cert.pem", "key.pem"} {
			if err := os.WriteFile(filepath.Join(certs, file), pairs[name][i], 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	put("one")
	dir := t.TempDir()
	d := startDouble(t, dir)
	env := []string{"DMP_TLS_CERT=" + filepath.Join(certs, "cert.pem"), "DMP_TLS_KEY=" + filepath.Join(certs, "key.pem")}
	n := startServer(t, dir, env...)
	n.d = d
	base := "https://" + n.Addrs()[0].String()
	probe := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}, Timeout: 60 * time.Second}
	eventually(t, "healthy", func() bool {
		r, err := probe.Get(base + "/health")
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == http.StatusOK
	})

	var done, http1, http2 atomic.Int64
	var names sync.Map // of the certificates that were seen
	var stop atomic.Bool
	var load sync.WaitGroup
	for worker := range 8 {
		var p http.Protocols
		p.SetHTTP1(worker%2 == 0)
		p.SetHTTP2(worker%2 == 1)
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, Protocols: &p, DisableKeepAlives: worker%4 < 2}
		client := &http.Client{Transport: transport, Timeout: 60 * time.Second}
		load.Go(func() {
			defer transport.CloseIdleConnections()
			for i := 0; !stop.Load(); i++ {
				body := fmt.Sprintf(`{"value":"%d-%d","ttl":300}`, worker, i%50)
				req, err := http.NewRequest("POST", fmt.Sprintf("%s/v1/records/w%d.test", base, worker), struct{ io.Reader }{strings.NewReader(body)})
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("Authorization", "Bearer operator")
				r, err := client.Do(req)
				if err != nil {
					t.Errorf("worker %d, request %d: %v", worker, i, err)
					return
				}
				b, err := io.ReadAll(r.Body)
				r.Body.Close()
				if err != nil || r.StatusCode != http.StatusCreated {
					t.Errorf("worker %d, request %d: %d %q %v", worker, i, r.StatusCode, b, err)
					return
				}
				names.Store(r.TLS.PeerCertificates[0].Subject.CommonName, true)
				if r.ProtoMajor == 2 {
					http2.Add(1)
				} else {
					http1.Add(1)
				}
				done.Add(1)
			}
		})
	}
	for i := range swaps {
		at := done.Load()
		eventually(t, "requests after a swap", func() bool { return done.Load() >= at+between || t.Failed() })
		put([]string{"two", "one"}[i%2])
		if err := n.Reload(settings(t, dir, env...)); err != nil {
			t.Error(err)
		}
	}
	stop.Store(true)
	load.Wait()
	for name := range pairs {
		if _, seen := names.Load(name); !seen {
			t.Errorf("nobody saw certificate %s", name)
		}
	}
	if http1.Load() == 0 || http2.Load() == 0 {
		t.Errorf("%d over HTTP/1.1, %d over HTTP/2", http1.Load(), http2.Load())
	}
}

// Frames of RFC 9113, as no client library sends them.
const (
	frameHeaders, frameReset, frameSettings = 1, 3, 4
	flagEndStream, flagEndHeaders           = 1, 4
	errorCancel                             = 8
	frameHead                               = 9
	preface                                 = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
)

func appendHTTP2(dst []byte, kind, flags byte, stream uint32, payload []byte) []byte {
	dst = append(dst, byte(len(payload)>>16), byte(len(payload)>>8), byte(len(payload)), kind, flags)
	dst = binary.BigEndian.AppendUint32(dst, stream)
	return append(dst, payload...)
}

// headerBlock is a request in HPACK (RFC 7541) without a dynamic table: indexed methods and schemes, the rest literal.
func headerBlock(post bool, path string) []byte {
	block := []byte{0x82, 0x86} // :method GET, :scheme http
	if post {
		block[0] = 0x83
	}
	block = append(append(block, 0x04, byte(len(path))), path...)
	block = append(append(block, 0x01, 1), 'x')
	const token = "Bearer operator"
	return append(append(block, 0x0f, 0x08, byte(len(token))), token...) // authorization is entry 23 of the static table
}

// TestRapidReset: connections that open streams and reset them as fast as they can (CVE-2023-44487), reads and writes whose body never
// comes, fill every place for requests; /health goes on answering others, and after it so does the rest.
func TestRapidReset(t *testing.T) {
	t.Parallel()
	const attackers, before, batch = 4, 2000, 50
	asks := 100
	if raceEnabled {
		asks = 20 // each takes some ten times as long
	}
	n := startNode(t, "DMP_HTTP_MAX_CONCURRENCY=2")
	var streams, shut atomic.Int64
	var stop atomic.Bool
	var flood sync.WaitGroup
	get, post := headerBlock(false, "/"), headerBlock(true, "/v1/records/a.test")
	attack := func() error { // until told to stop or shut out
		c, err := net.Dial("tcp", n.Addrs()[0].String())
		if err != nil {
			return err
		}
		defer c.Close()
		var read sync.WaitGroup
		read.Go(func() { _, _ = io.Copy(io.Discard, c) })
		defer read.Wait()
		defer c.Close()
		buf := appendHTTP2([]byte(preface), frameSettings, 0, 0, nil)
		for id := uint32(1); !stop.Load() && id < 1<<30; id += 2 * batch {
			for i := id; i < id+2*batch; i += 4 {
				buf = appendHTTP2(buf, frameHeaders, flagEndHeaders|flagEndStream, i, get)
				buf = appendHTTP2(buf, frameHeaders, flagEndHeaders, i+2, post)
			}
			for i := id; i < id+2*batch; i += 2 {
				buf = appendHTTP2(buf, frameReset, 0, i, binary.BigEndian.AppendUint32(nil, errorCancel))
			}
			c.SetWriteDeadline(time.Now().Add(60 * time.Second))
			if _, err := c.Write(buf); err != nil {
				shut.Add(1)
				return nil
			}
			streams.Add(batch)
			buf = buf[:0]
		}
		return nil
	}
	for range attackers {
		flood.Go(func() {
			for !stop.Load() {
				if err := attack(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	eventually(t, "the flood runs and fills the places", func() bool { return streams.Load() >= before && n.metrics.shed.Load() > 0 })
	for _, keep := range []bool{false, true} {
		transport := &http.Transport{DisableKeepAlives: !keep}
		client := &http.Client{Transport: transport, Timeout: 60 * time.Second}
		for i := range asks / 2 {
			r, err := client.Get(n.base + []string{"/health", "/health/live", "/health/ready"}[i%3])
			if err != nil {
				t.Errorf("health, beside %d streams: %v", streams.Load(), err)
				break
			}
			r.Body.Close()
			if r.StatusCode != http.StatusOK {
				t.Errorf("health, beside %d streams: %d", streams.Load(), r.StatusCode)
			}
		}
		transport.CloseIdleConnections()
	}
	stop.Store(true)
	flood.Wait()
	eventually(t, "writes go on", func() bool {
		return n.do("POST", "/v1/records/a.test", "operator", `{"value":"v"}`).status == http.StatusCreated
	})
	t.Logf("%d streams were reset, %d connections shut, %d requests found no place", streams.Load(), shut.Load(), n.metrics.shed.Load())
}
