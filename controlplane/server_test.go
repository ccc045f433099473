package controlplane

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dnsmesh/dmpd/internal/journal"
)

type answer struct {
	status int
	body   string
	header http.Header
}

func (n *node) do(method, path, token, body string) answer {
	n.t.Helper()
	req, err := http.NewRequest(method, n.base+path, strings.NewReader(body))
	if err != nil {
		n.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		n.t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	return answer{r.StatusCode, strings.TrimSpace(string(b)), r.Header}
}

// TestRecords: the rows of http.md 5.1 to 5.3, in their order, with their bodies.
func TestRecords(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	n.d.valuesMax = 3
	long := strings.Repeat("x", 2048)
	for _, x := range []struct {
		method, path, token, body string
		status                    int
		want                      string
	}{
		{"POST", "/v1/records/", "operator", `{"value":"v"}`, 404, `{"error":"not found"}`},
		{"POST", "/v1/records/a/b", "operator", `{"value":"v"}`, 404, `{"error":"not found"}`},
		{"POST", "/v1/records/a.test", "", `{"value":"v"}`, 401, `{"error":"unauthorized"}`},
		{"POST", "/v1/records/a.test", "wrong", `{"value":"v"}`, 401, `{"error":"unauthorized"}`},
		{"POST", "/v1/records/a.test", "operator", `{`, 400, `{"error":"invalid body"}`},
		{"POST", "/v1/records/a.test", "operator", `["value"]`, 400, `{"error":"invalid body"}`},
		{"POST", "/v1/records/a.test", "operator", "null", 400, `{"error":"invalid body"}`},
		{"POST", "/v1/records/a.test", "operator", "{\"value\":\"\xff\"}", 400, `{"error":"invalid body"}`},
		{"POST", "/v1/records/a.test", "operator", `{"value":"` + strings.Repeat("x", 17000) + `"}`, 400, `{"error":"invalid body"}`},
		{"POST", "/v1/records/a.test", "operator", ``, 400, `{"error":"value (str) and ttl (int > 0) required"}`},
		{"POST", "/v1/records/a.test", "operator", `{"value":1}`, 400, `{"error":"value (str) and ttl (int > 0) required"}`},
		{"POST", "/v1/records/a.test", "operator", `{"value":"v","ttl":0}`, 400, `{"error":"value (str) and ttl (int > 0) required"}`},
		{"POST", "/v1/records/a.test", "operator", `{"value":"v","ttl":1.0}`, 400, `{"error":"value (str) and ttl (int > 0) required"}`},
		{"POST", "/v1/records/a.test", "operator", `{"value":"v","ttl":true}`, 400, `{"error":"value (str) and ttl (int > 0) required"}`},
		{"POST", "/v1/records/a.test", "operator", `{"value":"v","ttl":86401}`, 400, `{"error":"ttl exceeds cap of 86400s"}`},
		{"POST", "/v1/records/a.test", "operator", `{"value":"` + long + `x"}`, 400, `{"error":"value exceeds cap of 2048 bytes"}`},
		{"POST", "/v1/records/a..test", "operator", `{"value":"v"}`, 400, `{"error":"invalid record name"}`},
		{"POST", "/v1/records/-a.test", "operator", `{"value":"v"}`, 400, `{"error":"invalid record name"}`},
		{"POST", "/v1/records/a%0a.test", "operator", `{"value":"v"}`, 400, `{"error":"invalid record name"}`},
		{"POST", "/v1/records/_" + strings.Repeat("a", 63) + ".test", "operator", `{"value":"v"}`, 400, `{"error":"invalid record name"}`},
		{"POST", "/v1/records/a.test?x=1", "operator", `{"value":"q"}`, 201, `{"ok":true}`},
		{"DELETE", "/v1/records/a.test", "operator", `{"value":"q"}`, 204, ``},
		{"POST", "/v1/records/a.test", "operator", `{"value":"a\"b"}`, 400, `{"error":"invalid record value"}`},
		{"POST", "/v1/records/a.test", "operator", `{"value":"a\u0007"}`, 400, `{"error":"invalid record value"}`},
		{"POST", "/v1/records/A.Test.", "operator", `{"value":"one","ttl":300}`, 201, `{"ok":true}`},
		{"POST", "/v1/records/a.test/", "operator", `{"value":"two"}`, 201, `{"ok":true}`},
		{"POST", "/v1/records/a.test", "operator", `{"value":"` + long + `"}`, 201, `{"ok":true}`},
		{"POST", "/v1/records/a.test", "operator", `{"value":"four"}`, 413, `{"error":"RRset at a.test already holds 64 values"}`},
		{"POST", "/v1/records/a.test", "operator", `{"value":"one"}`, 201, `{"ok":true}`},
		{"GET", "/v1/records/a.test", "", ``, 401, `{"error":"unauthorized"}`},
		{"GET", "/v1/records/a.test", "operator", ``, 200, `{"name":"a.test","values":["two","` + long + `","one"]}`},
		{"GET", "/v1/records/b.test", "operator", ``, 404, `{"name":"b.test","values":[]}`},
		{"DELETE", "/v1/records/a.test", "", ``, 401, `{"error":"unauthorized"}`},
		{"DELETE", "/v1/records/a..test", "operator", ``, 400, `{"error":"invalid record name"}`},
		{"DELETE", "/v1/records/a.test", "operator", `{`, 400, `{"error":"invalid body"}`},
		{"DELETE", "/v1/records/a.test", "operator", `{"value":7}`, 400, `{"error":"invalid record value"}`},
		{"DELETE", "/v1/records/a.test", "operator", `{"value":"two"}`, 204, ``},
		{"DELETE", "/v1/records/a.test", "operator", `{"value":"two"}`, 404, ``},
		{"GET", "/v1/records/a.test", "operator", ``, 200, `{"name":"a.test","values":["` + long + `","one"]}`},
		{"DELETE", "/v1/records/a.test", "operator", ``, 204, ``},
		{"DELETE", "/v1/records/a.test", "operator", `{"value":null}`, 404, ``},
		{"PUT", "/v1/records/a.test", "operator", ``, 501, `{"error":"unsupported method"}`},
	} {
		a := n.do(x.method, x.path, x.token, x.body)
		if a.status != x.status || a.body != x.want {
			t.Errorf("%s %.40s %.60s: %d %.200s, want %d %.200s", x.method, x.path, x.body, a.status, a.body, x.status, x.want)
		}
	}
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	for _, x := range []struct {
		method, path, token string
		status              int
		contains            string
	}{
		{"GET", "/", "", 200, "mesh.test"}, {"GET", "/index.html", "", 200, "<!doctype html>"}, {"GET", "/?a=b", "", 200, "DNS Mesh"}, {"GET", "/status", "", 200, "<svg"},
		{"GET", "/health", "", 200, `{"status":"ok"}`}, {"GET", "/health?x=1", "", 200, `{"status":"ok"}`}, {"GET", "/health/live", "", 200, "ok"}, {"GET", "/health/ready", "", 200, "ok"}, {"GET", "/healthy", "", 404, "not found"},
		{"GET", "/stats", "", 200, `{"records":`}, {"GET", "/metrics", "", 401, `{"error":"unauthorized"}`}, {"GET", "/metrics", "operator", 200, "dmp_dns_queries_total{outcome=\"noerror\"} 0.0"},
		{"GET", "/metrics", "operator", 200, "dmp_records "}, {"GET", "/v1/sync/digest", "x", 403, `{"error":"forbidden"}`}, {"POST", "/v1/sync/pull", "", 403, "forbidden"}, {"GET", "/v1/sync/cluster-manifest", "", 403, "forbidden"},
		{"POST", "/v1/sync/digest", "", 404, "not found"}, {"GET", "/v1/info", "", 404, `{"error":"not found"}`}, {"GET", "/nodes", "", 404, "not found"}, {"GET", "/v1/nodes/seen", "", 404, "not found"}, {"POST", "/v1/heartbeat", "", 404, "not found"},
		{"POST", "/v1/claim/publish", "", 404, "not found"}, {"POST", "/health", "", 404, "not found"}, {"GET", "/v1/registration/challenge", "", 404, "not found"}, {"OPTIONS", "/", "", 501, "unsupported"}, {"PATCH", "/x", "", 501, "unsupported"},
	} {
		a := n.do(x.method, x.path, x.token, "")
		if a.status != x.status || !strings.Contains(a.body, x.contains) {
			t.Errorf("%s %s: %d %.300s", x.method, x.path, a.status, a.body)
		}
		if x.method != "GET" {
			continue
		}
		h := n.do("HEAD", x.path, x.token, "")
		if h.status != a.status || h.body != "" || h.header.Get("Content-Type") != a.header.Get("Content-Type") {
			t.Errorf("HEAD %s: %d, GET %d", x.path, h.status, a.status)
		}
	}
	page := n.do("GET", "/", "", "").header
	if page.Get("Cache-Control") != "public, max-age=30" || !strings.Contains(page.Get("Content-Security-Policy"), "default-src 'none'") || page.Get("X-Content-Type-Options") != "nosniff" {
		t.Error(page)
	}
}

func TestRegistrationIsMounted(t *testing.T) {
	t.Parallel()
	n := startNode(t, "DMP_AUTH_MODE=multi-tenant", "DMP_REGISTRATION_ENABLED=1")
	a := n.do("GET", "/v1/registration/challenge", "", "")
	var c struct {
		Challenge, Node string
		Version         int
	}
	if err := json.Unmarshal([]byte(a.body), &c); err != nil || a.status != 200 || len(c.Challenge) != 64 || c.Node != "mesh.test" || c.Version != 1 || a.header.Get("Cache-Control") != "no-store" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := n.do("POST", "/v1/registration/tsig-confirm", "", "{}"); a.status != 400 || a.body != `{"error":"missing or non-string field: subject"}` {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	open := startNode(t, "DMP_AUTH_MODE=open")
	if a := open.do("POST", "/v1/records/a.test", "", `{"value":"v"}`); a.status != 201 {
		t.Errorf("open: %d %s", a.status, a.body)
	}
	if a := open.do("GET", "/v1/records/a.test", "", ""); a.status != 401 {
		t.Errorf("open, reading with a token configured: %d", a.status)
	}
	tenant := startNode(t, "DMP_AUTH_MODE=multi-tenant")
	if a := tenant.do("POST", "/v1/records/a.test", "dmp_v1_"+strings.Repeat("A", 52), `{"value":"v"}`); a.status != 401 {
		t.Errorf("multi-tenant, unknown token: %d", a.status)
	}
	if a := tenant.do("POST", "/v1/records/a.test", "operator", `{"value":"v"}`); a.status != 201 {
		t.Errorf("multi-tenant, operator: %d", a.status)
	}
}

func TestHTTPLimit(t *testing.T) {
	t.Parallel()
	n := startNode(t, "DMP_HTTP_RATE=0.001", "DMP_HTTP_BURST=3", "DMP_TRUSTED_PROXIES=127.0.0.0/8")
	ask := func(forwarded string) int {
		req, _ := http.NewRequest("GET", n.base+"/v1/records/a.test", nil)
		req.Header.Set("Authorization", "Bearer operator")
		if forwarded != "" {
			req.Header.Set("X-Forwarded-For", forwarded)
		}
		r, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		return r.StatusCode
	}
	for i, want := range []int{404, 404, 404, 429} {
		if got := ask(""); got != want {
			t.Errorf("request %d: %d, want %d", i, got, want)
		}
	}
	// Behind a trusted proxy the client counts, and what the client itself wrote in front does not.
	for i, want := range []int{404, 404, 404, 429} {
		if got := ask(fmt.Sprintf("10.9.9.%d, 192.0.2.1, 127.0.0.1", i)); got != want {
			t.Errorf("request %d behind a proxy: %d, want %d", i, got, want)
		}
	}
	if got := ask("192.0.2.2"); got != 404 {
		t.Errorf("another client: %d", got)
	}
}

// TestAway: without a data plane a write is 503 with Retry-After, and nothing of it happens later.
func TestAway(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	n.d.kill()
	eventually(t, "degraded", func() bool { return n.do("GET", "/health", "", "").status == 503 })
	if a := n.do("GET", "/health/live", "", ""); a.status != 200 {
		t.Errorf("live: %d", a.status)
	}
	a := n.do("POST", "/v1/records/a.test", "operator", `{"value":"lost"}`)
	if a.status != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("%d %s", a.status, a.body)
	}
	n.d = startDouble(t, n.dir)
	n.waitHealthy()
	if a := n.do("POST", "/v1/records/a.test", "operator", `{"value":"kept"}`); a.status != 201 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if a := n.do("GET", "/v1/records/a.test", "operator", ""); a.body != `{"name":"a.test","values":["kept"]}` {
		t.Error(a.body)
	}
}

// TestDiesWhileAsked: the data plane hangs on a request and is killed: 503, and the next one, which reads the VOID first, does not do it.
func TestDiesWhileAsked(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	n.d.hangs(t)
	got := make(chan answer, 1)
	go func() { got <- n.do("POST", "/v1/records/a.test", "operator", `{"value":"lost"}`) }()
	eventually(t, "the request lies there", func() bool {
		n.requests.mu.Lock()
		defer n.requests.mu.Unlock()
		return n.requests.w.Next() > 1
	})
	n.d.hang.Store(false)
	n.d.mu.Lock() // it may not apply anything any more
	n.d.stopped = true
	n.d.mu.Unlock()
	close(n.d.stop)
	<-n.d.done
	n.d.w.Close()
	n.d.lock.Close()
	a := <-got
	stored := a.status == 201 // the double may have taken it between
	if !stored && (a.status != 503 || a.header.Get("Retry-After") == "") {
		t.Fatalf("%d %s", a.status, a.body)
	}
	n.d = startDouble(t, n.dir)
	n.waitHealthy()
	if a := n.do("POST", "/v1/records/b.test", "operator", `{"value":"after"}`); a.status != 201 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if a := n.do("GET", "/v1/records/a.test", "operator", ""); (a.status == 200) != stored {
		t.Errorf("answered stored=%v, and now it is %s", stored, a.body)
	}
}

// TestHangs: a data plane that holds its lock and does nothing leaves the outcome open, and the answer says so.
func TestHangs(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	n.d.hangs(t)
	a := n.do("POST", "/v1/records/a.test", "operator", `{"value":"maybe"}`)
	if a.status != 504 {
		t.Errorf("%d %s", a.status, a.body)
	}
	n.d.hang.Store(false)
	n.waitHealthy()
	if a := n.do("POST", "/v1/records/a.test", "operator", `{"value":"sure"}`); a.status != 201 {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// TestRestart: a control plane that starts again reads what is there, begins a new epoch of requests, and goes on.
func TestRestart(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	for i := range 5 {
		if a := n.do("POST", "/v1/records/a.test", "operator", fmt.Sprintf(`{"value":"%d"}`, i)); a.status != 201 {
			t.Fatal(a)
		}
	}
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	again := startServer(t, n.dir)
	again.waitHealthy()
	if a := again.do("GET", "/v1/records/a.test", "operator", ""); a.body != `{"name":"a.test","values":["0","1","2","3","4"]}` {
		t.Error(a.body)
	}
	if a := again.do("POST", "/v1/records/a.test", "operator", `{"value":"5"}`); a.status != 201 {
		t.Error(a)
	}
	var held *journal.HeldError
	if _, err := Start(settings(t, n.dir), nil); !errors.As(err, &held) || !errors.Is(err, ErrCannotRun) || held.Pid != os.Getpid() {
		t.Errorf("a second one: %v", err)
	}
}

// TestShed: beyond the cap of requests at once the answer is 503, and health still answers.
func TestShed(t *testing.T) {
	t.Parallel()
	n := startNode(t, "DMP_HTTP_MAX_CONCURRENCY=1")
	n.d.hangs(t)
	done := make(chan answer, 1)
	go func() { done <- n.do("POST", "/v1/records/a.test", "operator", `{"value":"v"}`) }()
	eventually(t, "one is worked on", func() bool { return len(n.slots) == 1 })
	if a := n.do("GET", "/", "", ""); a.status != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("%d", a.status)
	}
	if a := n.do("GET", "/health/live", "", ""); a.status != 200 {
		t.Errorf("health: %d", a.status)
	}
	n.d.hang.Store(false)
	<-done
}

func TestHTTP2(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: &http.Transport{Protocols: &p}}
	defer client.CloseIdleConnections()
	r, err := client.Get(n.base + "/health")
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.ProtoMajor != 2 || r.StatusCode != 200 {
		t.Errorf("%s %d", r.Proto, r.StatusCode)
	}
}

// TestHTTP2Refusal: a refusal reaches a client whose body comes late, and the stream ends in order.
func TestHTTP2Refusal(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: &http.Transport{Protocols: &p}}
	defer client.CloseIdleConnections()
	for range 20 {
		body, send := io.Pipe()
		go func() {
			time.Sleep(5 * time.Millisecond)
			io.WriteString(send, `{"value":"x"}`)
			send.Close()
		}()
		r, err := client.Post(n.base+"/v1/records/a.test", "", body)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || r.StatusCode != 401 || !strings.Contains(string(b), "unauthorized") {
			t.Fatalf("%d %q %v", r.StatusCode, b, err)
		}
	}
}

// TestRawRequests: what no client library sends.
func TestRawRequests(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	for _, x := range []struct{ name, request, want string }{
		{"length that is no number", "POST /v1/records/a.test HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer operator\r\nContent-Length: x\r\n\r\n", "400"},
		{"chunked", "POST /v1/records/c.test HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer operator\r\nTransfer-Encoding: chunked\r\n\r\nf\r\n{\"value\": \"abc\"\r\n1\r\n}\r\n0\r\n\r\n", "201"},
		{"HTTP/1.0", "GET /health HTTP/1.0\r\n\r\n", "200"},
		{"header too large", "GET /health HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 80<<10) + "\r\n\r\n", "431"},
		{"bearer in lower case", "GET /v1/records/a.test HTTP/1.1\r\nHost: x\r\nAuthorization: bearer operator\r\n\r\n", "401"},
	} {
		if a := n.raw(x.request); fmt.Sprint(a.status) != x.want {
			t.Errorf("%s: %d, want %s", x.name, a.status, x.want)
		}
	}
}

// TestStopCutsSlowClients: one who never finishes a request does not hold the process up.
func TestStopCutsSlowClients(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	c, err := net.Dial("tcp", n.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "POST /v1/records/a.test HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer operator\r\nContent-Length: 100\r\n\r\n{")
	eventually(t, "it is being read", func() bool { return len(n.slots) == 1 })
	if err := n.Stop(); err != nil {
		t.Error(err)
	}
}

func writeCert(t *testing.T, dir, name string) (pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for file, b := range map[string][]byte{"cert.pem": certPEM, "key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})} {
		if err := os.WriteFile(filepath.Join(dir, file), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return pool
}

// TestTLS: TLS 1.3 with h2, and a new certificate for new connections while the old ones go on.
func TestTLS(t *testing.T) {
	t.Parallel()
	certs := t.TempDir()
	old := writeCert(t, certs, "old")
	env := []string{"DMP_TLS_CERT=" + filepath.Join(certs, "cert.pem"), "DMP_TLS_KEY=" + filepath.Join(certs, "key.pem")}
	dir := t.TempDir()
	startDouble(t, dir)
	n := startServer(t, dir, env...)
	url := "https://" + n.Addrs()[0].String() + "/health/live"
	client := func(pool *x509.CertPool) *http.Client {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr}
	}
	first := client(old)
	get := func(c *http.Client) (*http.Response, error) {
		r, err := c.Get(url)
		if err == nil {
			io.Copy(io.Discard, r.Body)
			r.Body.Close()
		}
		return r, err
	}
	r, err := get(first)
	if err != nil || r.ProtoMajor != 2 || r.TLS.Version != tls.VersionTLS13 {
		t.Fatal(r, err)
	}
	fresh := writeCert(t, certs, "new")
	if err := n.Reload(settings(t, dir, env...)); err != nil {
		t.Fatal(err)
	}
	if r, err := get(client(fresh)); err != nil || r.TLS.PeerCertificates[0].Subject.CommonName != "new" {
		t.Error(err)
	}
	if r, err := get(first); err != nil || r.TLS.PeerCertificates[0].Subject.CommonName != "old" {
		t.Errorf("the connection that was open: %v", err)
	}
	if _, err := get(client(old)); err == nil {
		t.Error("a new connection still gets the old certificate")
	}
	os.WriteFile(filepath.Join(certs, "cert.pem"), []byte("broken"), 0o600)
	if err := n.Reload(settings(t, dir, env...)); err == nil {
		t.Error("a broken certificate was taken")
	}
	if _, err := get(client(fresh)); err != nil {
		t.Errorf("after a broken certificate: %v", err)
	}
}
