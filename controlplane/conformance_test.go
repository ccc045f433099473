package controlplane

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dnsmesh/dmpd/controlplane/auth"
	"github.com/dnsmesh/dmpd/internal/config"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/tsig"
	"github.com/dnsmesh/dmpd/internal/vfs"
	"github.com/dnsmesh/dmpd/internal/wire"
	"golang.org/x/sys/unix"
)

// The conformance list, http.md 21: TestConformanceN is line N, over HTTP. docs/conformance-http.md says which other tests hold a line.

const (
	taken   = "subject already has a live token; re-registration must be signed with the previously-registered Ed25519 key"
	unknown = "challenge expired or unknown"
	popText = "x25519_pop verification failed: registrant did not prove possession of the claimed X25519 key"
)

// registrant is a client of the registration routes.
type registrant struct {
	spk     ed25519.PrivateKey
	subject string
	x25519  *ecdh.PrivateKey // nil: no proof
}

func run32(from byte) []byte {
	b := make([]byte, 32)
	for i := range b {
		b[i] = from + byte(i)
	}
	return b
}

func newRegistrant(from byte, subject string) *registrant {
	x, err := ecdh.X25519().NewPrivateKey(run32(from + 0x20))
	if err != nil {
		panic(err)
	}
	return &registrant{ed25519.NewKeyFromSeed(run32(from)), subject, x}
}

func (c *registrant) public() string {
	return hex.EncodeToString(c.spk.Public().(ed25519.PublicKey))
}

func startRegistrar(t *testing.T, more ...string) *node {
	return startNode(t, append([]string{"DMP_AUTH_MODE=multi-tenant", "DMP_REGISTRATION_ENABLED=1", "DMP_DOMAIN=dmp.example.com", "DMP_NODE_HOSTNAME=dmp.example.com"}, more...)...)
}

func (a answer) json(t testing.TB) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(a.body), &m); err != nil {
		t.Fatalf("%d %q: %v", a.status, a.body, err)
	}
	return m
}

// fields asks for a challenge and gives the six fields of tsig-confirm.
func (n *node) fields(c *registrant) map[string]any {
	n.t.Helper()
	a := n.do("GET", "/v1/registration/challenge", "", "")
	if a.status != 200 {
		n.t.Fatalf("challenge: %d %s", a.status, a.body)
	}
	m := a.json(n.t)
	return n.sign(c, m["challenge"].(string), m["node"].(string), m["server_x25519_pub"].(string))
}

func (n *node) sign(c *registrant, challenge, host, serverPub string) map[string]any {
	raw, err := hex.DecodeString(challenge)
	if err != nil {
		n.t.Fatal(err)
	}
	payload := append(append(append(slices.Clone(raw), c.subject...), host...), 1)
	m := map[string]any{"subject": c.subject, "ed25519_spk": c.public(), "challenge": challenge, "signature": hex.EncodeToString(ed25519.Sign(c.spk, payload))}
	if c.x25519 != nil {
		m["x25519_pub"] = hex.EncodeToString(c.x25519.PublicKey().Bytes())
		m["x25519_pop"] = n.pop(c.x25519, serverPub, raw, c.subject)
	}
	return m
}

func (n *node) pop(k *ecdh.PrivateKey, serverPub string, challenge []byte, subject string) string {
	raw, _ := hex.DecodeString(serverPub)
	server, err := ecdh.X25519().NewPublicKey(raw)
	if err != nil {
		n.t.Fatal(err)
	}
	shared, err := k.ECDH(server)
	if err != nil {
		n.t.Fatal(err)
	}
	h := hmac.New(sha256.New, shared)
	h.Write(challenge)
	h.Write([]byte(subject))
	h.Write(k.PublicKey().Bytes())
	return hex.EncodeToString(h.Sum(nil))
}

func (n *node) confirm(route string, fields map[string]any) answer {
	n.t.Helper()
	b, err := json.Marshal(fields)
	if err != nil {
		n.t.Fatal(err)
	}
	return n.do("POST", "/v1/registration/"+route, "", string(b))
}

// expect compares a status, and for a refusal its text.
func (a answer) expect(t testing.TB, what string, status int, text string) {
	t.Helper()
	want := `{"error":"` + text + `"}`
	if a.status != status || text != "" && a.body != want {
		t.Errorf("%s: %d %s, want %d %s", what, a.status, a.body, status, text)
	}
}

func TestConformance1Challenge(t *testing.T) {
	t.Parallel()
	n := startRegistrar(t, "DMP_NODE_HOSTNAME=DMP.Example.com")
	before := time.Now().Unix()
	a := n.do("GET", "/v1/registration/challenge", "", "")
	after := time.Now().Unix()
	shape := regexp.MustCompile(`^\{"challenge":"[0-9a-f]{64}","node":"DMP\.Example\.com","expires_at":\d+,"server_x25519_pub":"[0-9a-f]{64}","version":1,"payloads":\[1,2\]\}$`)
	if a.status != 200 || !shape.MatchString(a.body) || a.header.Get("Content-Type") != "application/json" {
		t.Errorf("%d %s", a.status, a.body)
	}
	if exp := int64(a.json(t)["expires_at"].(float64)); exp < before+60 || exp > after+60 {
		t.Errorf("expires at %d, asked between %d and %d", exp, before, after)
	}
	for _, routes := range [][2]string{{"confirm", "tsig-confirm"}, {"tsig-confirm", "confirm"}, {"confirm", "confirm"}} {
		m := n.fields(newRegistrant(0, "alice@example.com"))
		n.confirm(routes[0], m).expect(t, "first use", 200, "")
		n.confirm(routes[1], m).expect(t, "replay", 400, unknown)
	}
	m := n.fields(newRegistrant(0, "alice@example.com"))
	m["challenge"] = strings.Repeat("ab", 32)
	n.confirm("confirm", m).expect(t, "one that nobody gave out", 400, unknown)
}

// TestConformance2Example: the client of http.md 7.7 over HTTP; the fixed challenge and server key are in auth's TestWorkedExample.
func TestConformance2Example(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		name  string
		env   string
		proof bool
		want  []string
	}{
		{"default", "DMP_TSIG_TIGHT_SCOPE=0", true, []string{"_dnsmesh-claim-*.", "_dnsmesh-claim-03a107bff3ce10be.", "chunk-*-*.", "claim-*.mb-*.", "id-2bd806c97f0e.", "id-2bd806c97f0e00af.", "mb-858a3d48ace7.", "slot-*.mb-*."}},
		{"no proof", "DMP_TSIG_TIGHT_SCOPE=0", false, []string{"_dnsmesh-claim-*.", "_dnsmesh-claim-03a107bff3ce10be.", "chunk-*-*.", "claim-*.mb-*.", "id-2bd806c97f0e.", "id-2bd806c97f0e00af.", "slot-*.mb-*."}},
		{"tight", "DMP_TSIG_TIGHT_SCOPE=1", true, []string{"_dnsmesh-claim-03a107bff3ce10be.", "id-2bd806c97f0e.", "id-2bd806c97f0e00af.", "mb-858a3d48ace7."}},
		{"loose", "DMP_TSIG_LOOSE_SCOPE=1", true, []string{""}},
	} {
		n := startRegistrar(t, x.env)
		c := newRegistrant(0, "alice@example.com")
		if !x.proof {
			c.x25519 = nil
		}
		a := n.confirm("tsig-confirm", n.fields(c))
		var suffixes []string
		for _, p := range x.want {
			suffixes = append(suffixes, `"`+p+`dmp.example.com"`)
		}
		want := regexp.MustCompile(`^\{"tsig_key_name":"alice-03a107bf-ff8d98\.dmp\.example\.com\.","tsig_secret_hex":"[0-9a-f]{64}","tsig_algorithm":"hmac-sha256","allowed_suffixes":\[` +
			regexp.QuoteMeta(strings.Join(suffixes, ",")) + `\],"subject":"alice@example\.com","zone":"dmp\.example\.com","expires_at":\d+\}$`)
		if a.status != 200 || !want.MatchString(a.body) {
			t.Errorf("%s: %d %s", x.name, a.status, a.body)
		}
	}
}

func TestConformance3Refusals(t *testing.T) {
	t.Parallel()
	n := startRegistrar(t, "DMP_REGISTRATION_ALLOWLIST=example.com")
	n.confirm("tsig-confirm", n.fields(newRegistrant(0, "alice@example.com"))).expect(t, "alice", 200, "")
	f := func(first, middle, last string) string { return first + strings.Repeat(middle, 30) + last }
	edits := map[string]func(m map[string]any){
		"wrong signer": func(m map[string]any) { m["ed25519_spk"] = newRegistrant(9, "").public() },
		"wrong node": func(m map[string]any) {
			m["signature"] = n.sign(newRegistrant(1, m["subject"].(string)), m["challenge"].(string), "other.example.com", m["challenge"].(string))["signature"]
		},
		"unsigned": func(m map[string]any) { m["signature"] = strings.Repeat("00", 64) },
	}
	for _, spk := range []string{f("01", "00", "00"), f("00", "00", "80"), f("00", "00", "00"), f("01", "00", "80"), f("ec", "ff", "7f"), f("ec", "ff", "ff"), f("ed", "ff", "7f"), f("ed", "ff", "ff"),
		f("ee", "ff", "7f"), f("ee", "ff", "ff"), "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a", "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85"} {
		edits["low order "+spk] = func(m map[string]any) { m["ed25519_spk"], m["signature"] = spk, "01"+strings.Repeat("00", 63) }
	}
	// Free, taken and not allowed: who has not signed cannot tell them apart.
	for _, subject := range []string{"bob@example.com", "alice@example.com", "bob@elsewhere.test"} {
		for name, edit := range edits {
			c := newRegistrant(1, subject)
			c.x25519 = nil
			m := n.fields(c)
			edit(m)
			n.confirm([]string{"confirm", "tsig-confirm"}[len(name)%2], m).expect(t, name+" for "+subject, 401, "signature verification failed")
		}
	}
	n.confirm("confirm", n.fields(newRegistrant(1, "bob@elsewhere.test"))).expect(t, "signed, not allowed", 403, "subject not in registration allowlist")
}

func TestConformance4Owner(t *testing.T) {
	t.Parallel()
	n := startRegistrar(t)
	ctx := context.Background()
	alice, mallory := newRegistrant(0, "alice@example.com"), newRegistrant(1, "alice@example.com")
	first := n.confirm("tsig-confirm", n.fields(alice))
	first.expect(t, "alice", 200, "")
	token := n.confirm("confirm", n.fields(alice))
	token.expect(t, "alice's token", 200, "")
	for _, route := range []string{"confirm", "tsig-confirm"} {
		n.confirm(route, n.fields(mallory)).expect(t, route+" with another key", 409, taken)
	}
	second := n.confirm("tsig-confirm", n.fields(alice))
	a, b := first.json(t), second.json(t)
	if second.status != 200 || a["tsig_key_name"] != b["tsig_key_name"] || a["tsig_secret_hex"] == b["tsig_secret_hex"] {
		t.Errorf("again: %s, then %s", first.body, second.body)
	}
	name := strings.TrimSuffix(a["tsig_key_name"].(string), ".")
	if k, err := n.state.Key(name); err != nil || hex.EncodeToString(k.Secret) != b["tsig_secret_hex"] {
		t.Errorf("the secret that holds is not the last one: %v", err)
	}
	again := n.confirm("confirm", n.fields(alice))
	write := func(tok answer, want int) {
		t.Helper()
		n.do("POST", "/v1/records/dmp.alice.example.com", tok.json(t)["token"].(string), `{"value":"v"}`).expect(t, "a write", want, "")
	}
	write(again, 201)
	write(token, 401)
	revoke := func() {
		t.Helper()
		if _, err := n.state.Revoke(ctx, name); err != nil {
			t.Fatal(err)
		}
		if _, err := n.state.RevokeToken(ctx, "alice@example.com"); err != nil && !errors.Is(err, auth.ErrNotFound) {
			t.Fatal(err)
		}
	}
	if err := n.state.Lock(ctx, "alice@example.com", ""); err != nil {
		t.Fatal(err)
	}
	revoke()
	n.confirm("tsig-confirm", n.fields(mallory)).expect(t, "revoked and locked", 409, taken)
	if err := n.state.Unlock(ctx, "alice@example.com"); err != nil {
		t.Fatal(err)
	}
	n.confirm("tsig-confirm", n.fields(mallory)).expect(t, "revoked", 200, "")
}

func TestConformance5Proof(t *testing.T) {
	t.Parallel()
	n := startRegistrar(t)
	c := newRegistrant(0, "alice@example.com")
	other := newRegistrant(5, "bob@example.com")
	challenge := func(m map[string]any) []byte { b, _ := hex.DecodeString(m["challenge"].(string)); return b }
	for _, x := range []struct {
		name   string
		edit   func(m map[string]any, server string)
		status int
		text   string
		mb     bool
	}{
		{"valid", func(map[string]any, string) {}, 200, "", true},
		{"wrong key", func(m map[string]any, s string) { m["x25519_pop"] = n.pop(other.x25519, s, challenge(m), c.subject) }, 401, popText, false},
		{"other subject", func(m map[string]any, s string) { m["x25519_pop"] = n.pop(c.x25519, s, challenge(m), other.subject) }, 401, popText, false},
		{"other challenge", func(m map[string]any, s string) { m["x25519_pop"] = n.pop(c.x25519, s, run32(7), c.subject) }, 401, popText, false},
		{"zero", func(m map[string]any, _ string) { m["x25519_pop"] = strings.Repeat("00", 32) }, 401, popText, false},
		{"public key zero", func(m map[string]any, _ string) { m["x25519_pub"] = strings.Repeat("00", 32) }, 401, popText, false},
		{"short", func(m map[string]any, _ string) { m["x25519_pop"] = "aabb" }, 400, "x25519_pop: expected 32 bytes, got 2", false},
		{"missing", func(m map[string]any, _ string) { delete(m, "x25519_pop") }, 200, "", false},
		{"empty", func(m map[string]any, _ string) { m["x25519_pop"] = "" }, 200, "", false},
	} {
		ch := n.do("GET", "/v1/registration/challenge", "", "").json(t)
		m := n.sign(c, ch["challenge"].(string), ch["node"].(string), ch["server_x25519_pub"].(string))
		x.edit(m, ch["server_x25519_pub"].(string))
		a := n.confirm("tsig-confirm", m)
		a.expect(t, x.name, x.status, x.text)
		if got := strings.Contains(a.body, `"mb-`); got != x.mb {
			t.Errorf("%s: a mailbox suffix %v: %s", x.name, got, a.body)
		}
	}
}

func TestConformance6Parallel(t *testing.T) {
	t.Parallel()
	n := startRegistrar(t)
	c := newRegistrant(0, "alice@example.com")
	for _, route := range []string{"confirm", "tsig-confirm"} {
		bodies := make([]map[string]any, 20)
		for i := range bodies {
			bodies[i] = n.fields(c)
		}
		answers := make([]answer, len(bodies))
		var wg sync.WaitGroup
		for i := range bodies {
			wg.Go(func() { answers[i] = n.confirm(route, bodies[i]) })
		}
		wg.Wait()
		live := 0
		for _, a := range answers {
			a.expect(t, route, 200, "")
			m := a.json(t)
			if text, ok := m["token"].(string); ok && n.do("POST", "/v1/records/dmp.alice.example.com", text, `{"value":"v"}`).status == 201 {
				live++
			}
			if secret, ok := m["tsig_secret_hex"].(string); ok {
				for _, k := range n.state.ListKeys() {
					if hex.EncodeToString(k.Secret) == secret {
						live++
					}
				}
			}
		}
		if live != 1 {
			t.Errorf("%s: %d of the 20 hold", route, live)
		}
	}
}

func TestConformance7Limit(t *testing.T) {
	t.Parallel()
	n := startRegistrar(t, "DMP_REGISTRATION_ENDPOINT_RATE_PER_SEC="+fmt.Sprint(5.0/3600))
	for i := range 7 {
		a := n.do([]string{"GET", "POST", "POST"}[i%3], "/v1/registration/"+[]string{"challenge", "confirm", "tsig-confirm"}[i%3], "", "{}")
		if (a.status == 429) != (i >= 5) || a.status == 429 && (a.body != `{"error":"registration rate limit exceeded"}` || a.header.Get("Retry-After") == "") {
			t.Errorf("request %d: %d %s", i+1, a.status, a.body)
		}
	}
	n.do("GET", "/v1/records/a.test", "operator", "").expect(t, "records have their own limit", 404, "")
}

func TestConformance8Off(t *testing.T) {
	t.Parallel()
	notFound, noTSIG := "not found", "tsig registration disabled"
	for _, x := range []struct {
		env                      string
		challenge, confirm, tsig string
	}{
		{"DMP_REGISTRATION_ENABLED=0", notFound, notFound, notFound},
		{"DMP_AUTH_MODE=legacy", notFound, notFound, notFound},
		{"DMP_AUTH_MODE=open", notFound, notFound, notFound},
		{"no host", notFound, notFound, notFound},
		{"DMP_DNS_UPDATE_ENABLED=0", "", "", noTSIG},
	} {
		var n *node
		if x.env == "no host" {
			n = startBare(t, "DMP_AUTH_MODE=multi-tenant", "DMP_REGISTRATION_ENABLED=1", "DMP_OPERATOR_TOKEN=operator")
		} else {
			n = startRegistrar(t, x.env)
		}
		for _, r := range [][3]string{{"GET", "challenge", x.challenge}, {"POST", "confirm", x.confirm}, {"POST", "tsig-confirm", x.tsig}} {
			a := n.do(r[0], "/v1/registration/"+r[1], "", "{}")
			if (a.status == 404) != (r[2] != "") || r[2] != "" && a.body != `{"error":"`+r[2]+`"}` {
				t.Errorf("%s: %s: %d %s", x.env, r[1], a.status, a.body)
			}
		}
	}
}

// startBare starts with nothing but what is given, over a data plane.
func startBare(t testing.TB, env ...string) *node { return startLogged(t, nil, env...) }

func startLogged(t testing.TB, log *logging.Logger, env ...string) *node {
	t.Helper()
	dir := t.TempDir()
	d := startDouble(t, dir)
	c, _, errs := config.Resolve(config.Input{Environ: append([]string{"DMP_STATE_DIR=" + dir, "DMP_HTTP_HOST=127.0.0.1", "DMP_HTTP_PORT=0"}, env...)})
	if errs != nil {
		t.Fatal(errs)
	}
	s, err := Start(c, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Stop() })
	n := &node{Server: s, t: t, dir: dir, base: "http://" + s.Addrs()[0].String(), d: d}
	n.waitHealthy()
	return n
}

// mintedKey reads the state log as the data plane does, and gives the key that it now holds under name.
func (n *node) mintedKey(name string) (k *tsig.Key) {
	n.t.Helper()
	r, err := journal.OpenReader(vfs.OS, filepath.Join(n.dir, "control"), "state", 0)
	if err != nil {
		n.t.Fatal(err)
	}
	defer r.Close()
	for {
		_, p, ok, err := r.Next()
		if err != nil {
			n.t.Fatal(err)
		}
		if !ok {
			return k
		}
		if err := tsig.ReadState(p, func(kind tsig.StateKind, body []byte) error {
			if kind != tsig.StateKeyPut {
				return nil
			}
			got, err := tsig.ReadKey(body)
			if err == nil && wire.Text(got.Name) == strings.TrimSuffix(name, ".") {
				k = got
			}
			return err
		}); err != nil {
			n.t.Fatal(err)
		}
	}
}

// TestConformance9Minted: when the 200 comes, the data plane has taken the frame with the key, and the key is the one of the answer.
// That the very next UPDATE under it holds is dataplane's TestKeysFollow.
func TestConformance9Minted(t *testing.T) {
	t.Parallel()
	n := startRegistrar(t)
	for i := range byte(5) {
		m := n.confirm("tsig-confirm", n.fields(newRegistrant(i, fmt.Sprintf("user%d@example.com", i)))).json(t)
		if lsn := n.d.live.Taken(journal.TakenState, n.state.Epoch()); lsn < n.state.Committed() {
			t.Errorf("answered with frame %d of %d taken", lsn, n.state.Committed())
		}
		if k := n.mintedKey(m["tsig_key_name"].(string)); k == nil || hex.EncodeToString(k.Secret) != m["tsig_secret_hex"] || k.Alg.String() != m["tsig_algorithm"] {
			t.Errorf("%v is not what the data plane reads", m)
		}
	}
	n.d.hangs(t)
	a := n.confirm("tsig-confirm", n.fields(newRegistrant(0, "user0@example.com")))
	if a.status != 503 || a.header.Get("Retry-After") == "" || strings.Contains(a.body, "secret") {
		t.Errorf("nobody takes it: %d %s", a.status, a.body)
	}
}

func TestConformance10Scope(t *testing.T) {
	t.Parallel()
	n := startRegistrar(t)
	m := n.confirm("tsig-confirm", n.fields(newRegistrant(0, "alice@example.com"))).json(t)
	k := n.mintedKey(m["tsig_key_name"].(string))
	for name, want := range map[string]struct{ add, del bool }{
		"id-2bd806c97f0e00af": {true, true}, "prekeys.id-2bd806c97f0e": {true, true}, "mb-858a3d48ace7": {true, true}, "slot-1.mb-858a3d48ace7": {true, true},
		"slot-1.mb-0123456789ab": {true, false}, "chunk-1-0123456789ab": {true, false}, "claim-1.mb-0123456789ab": {true, false}, "_dnsmesh-claim-0123456789abcdef": {true, false},
		"_dnsmesh-claim-03a107bff3ce10be": {true, true}, "id-0123456789ab": {false, false}, "mb-0123456789ab": {false, false}, "dmp.bob": {false, false},
	} {
		owner := wire.MustName(name + ".dmp.example.com")
		if k.CanAdd(owner) != want.add || k.CanDelete(owner) != want.del {
			t.Errorf("%s: add %v, delete %v", name, k.CanAdd(owner), k.CanDelete(owner))
		}
	}
}

// TestConformance11Records: what TestRecords, the table of 5.1, leaves: the order of limit and authority, the empty bodies, and that after
// 201 the store has it.
func TestConformance11Records(t *testing.T) {
	t.Parallel()
	n := startNode(t, "DMP_HTTP_RATE=0.001", "DMP_HTTP_BURST=7")
	n.do("POST", "/v1/records/", "", "").expect(t, "no name spends nothing", 404, "not found")
	a := n.do("POST", "/v1/records/Slot-1.Mesh.Test", "operator", `{"value": "v1", "ttl": 300}`)
	if a.status != 201 || a.body != `{"ok":true}` || a.header.Get("Content-Type") != "application/json" {
		t.Errorf("%d %s", a.status, a.body)
	}
	n.d.mu.Lock()
	rows := n.d.rows[string(wire.MustName("slot-1.mesh.test"))]
	if _, there := rows[string(record.AppendRDATA(nil, []byte("v1")))]; !there || len(rows) != 1 {
		t.Errorf("answered 201, and the store has %v", rows)
	}
	n.d.mu.Unlock()
	for _, body := range []string{"{", "[]"} {
		n.do("DELETE", "/v1/records/slot-1.mesh.test", "operator", body).expect(t, "a body that is no object", 400, "invalid body")
	}
	if a := n.do("GET", "/v1/records/slot-1.mesh.test", "operator", ""); a.body != `{"name":"slot-1.mesh.test","values":["v1"]}` {
		t.Errorf("after malformed deletes: %s", a.body)
	}
	for _, want := range []int{204, 404} {
		if a := n.do("DELETE", "/v1/records/slot-1.mesh.test", "operator", ""); a.status != want || a.body != "" {
			t.Errorf("%d %q, want %d and nothing", a.status, a.body, want)
		}
	}
	n.do("POST", "/v1/records/a.test", "wrong", "").expect(t, "authority", 401, "unauthorized")
	a = n.do("POST", "/v1/records/a.test", "wrong", "")
	a.expect(t, "the limit comes before authority", 429, "rate limit exceeded")
	if a.header.Get("Retry-After") == "" {
		t.Error("429 without Retry-After")
	}
}

// TestConformance12Modes: the table of http.md 3. r and w are what everybody gets, with no token.
func TestConformance12Modes(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		mode, token     string
		write, operator int // POST without and with the operator's token
		read            int // /metrics without
		register        int
	}{
		{"", "", 201, 201, 200, 404}, {"open", "", 201, 201, 200, 404}, {"open", "operator", 201, 201, 401, 404},
		{"", "operator", 401, 201, 401, 404}, {"legacy", "operator", 401, 201, 401, 404}, {"legacy", "", 401, 401, 200, 404},
		{"multi-tenant", "operator", 401, 201, 401, 200}, {"multi-tenant", "", 401, 401, 200, 200},
	} {
		env := []string{"DMP_NODE_HOSTNAME=mesh.test", "DMP_REGISTRATION_ENABLED=1"}
		if x.mode != "" {
			env = append(env, "DMP_AUTH_MODE="+x.mode)
		}
		if x.token != "" {
			env = append(env, "DMP_HTTP_TOKEN="+x.token)
		}
		n := startBare(t, env...)
		got := []int{n.do("POST", "/v1/records/a.test", "", `{"value":"v"}`).status, n.do("POST", "/v1/records/a.test", "operator", `{"value":"v"}`).status, n.do("GET", "/metrics", "", "").status,
			n.do("GET", "/v1/registration/challenge", "", "").status}
		if !slices.Equal(got, []int{x.write, x.operator, x.read, x.register}) {
			t.Errorf("%q, token %q: %v, want %v", x.mode, x.token, got, x)
		}
		read := n.do("GET", "/v1/records/none.test", "", "").status
		if (read == 401) != (x.read == 401) {
			t.Errorf("%q, token %q: reading a record is %d", x.mode, x.token, read)
		}
	}
	if _, _, errs := config.Resolve(config.Input{Environ: []string{"DMP_AUTH_MODE=secure", "DMP_HTTP_HOST=127.0.0.1"}}); errs == nil {
		t.Error("an unknown mode was taken")
	}
	for host, ok := range map[string]bool{"0.0.0.0": false, "": false, "0": false, "::": false, "192.0.2.1": false, "node.example.com": false, "127.0.0.1": true, "127.9.9.9": true, "::1": true, "localhost": true, "LOCALHOST": true} {
		if _, _, errs := config.Resolve(config.Input{Environ: []string{"DMP_HTTP_HOST=" + host, "DMP_AUTH_MODE=open"}}); (errs == nil) != ok {
			t.Errorf("open on %q: %v", host, errs)
		}
	}
	for _, env := range [][]string{{"DMP_AUTH_MODE=open", "DMP_ALLOW_OPEN_PUBLIC_BIND=Yes"}, {"DMP_AUTH_MODE=legacy", "DMP_OPERATOR_TOKEN=x"}} {
		if _, _, errs := config.Resolve(config.Input{Environ: append(env, "DMP_HTTP_HOST=0.0.0.0")}); errs != nil {
			t.Errorf("%v: %v", env, errs)
		}
	}
}

// TestConformance13Tokens: http.md 6 over HTTP. The whole table of 6.2 is auth's TestClassify.
func TestConformance13Tokens(t *testing.T) {
	t.Parallel()
	n := startNode(t, "DMP_AUTH_MODE=multi-tenant")
	ctx := context.Background()
	text, tok, err := n.state.IssueToken(ctx, auth.TokenRequest{Subject: "alice@a.test", RatePerSec: 1e-9, Burst: 5, Issuer: "admin:test"})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(method, name string, want int, body string) {
		t.Helper()
		a := n.do(method, "/v1/records/"+name, text, `{"value":"v"}`)
		if a.status != want || body != "" && a.body != `{"error":"`+body+`"}` {
			t.Errorf("%s %s: %d %s, want %d", method, name, a.status, a.body, want)
		}
	}
	ask("POST", "dmp.alice.a.test", 201, "")
	ask("POST", "DMP.Alice.a.test.", 201, "")
	ask("POST", "dmp.bob.a.test", 401, "unauthorized")
	ask("POST", "cluster.a.test", 401, "unauthorized")
	ask("POST", "_x.a.test", 401, "unauthorized")
	ask("POST", "slot-1.mb-0123456789ab.a.test", 201, "")
	ask("DELETE", "slot-1.mb-0123456789ab.a.test", 401, "unauthorized")
	ask("DELETE", "dmp.alice.a.test", 204, "")
	ask("POST", "chunk-1-0123456789ab.a.test", 201, "")
	ask("POST", "dmp.alice.a.test", 429, "per-token rate limit exceeded")
	ask("GET", "dmp.alice.a.test", 401, "unauthorized") // user tokens do not open reading
	for range 60 {
		n.do("POST", "/v1/records/a.test", "operator", `{"value":"v"}`).expect(t, "the operator is not throttled", 201, "")
	}
	rows, err := auth.AuditTail(vfs.OS, filepath.Join(n.dir, "control"), "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	pool := 0
	for _, r := range rows {
		if r.Event == "used" && r.Subject == "" {
			pool++
			if r.TokenHash != "" {
				t.Errorf("a write to a shared name says whose it is: %+v", r)
			}
		}
	}
	if pool != 2 {
		t.Errorf("%d rows of writes to shared names, want 2: %+v", pool, rows)
	}
	if _, err := n.state.RevokeToken(ctx, tok.Hash.String()[:8]); err != nil {
		t.Fatal(err)
	}
	ask("POST", "dmp.alice.a.test", 401, "unauthorized")
}

// A syncBuffer takes log lines of many goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}
func (b *syncBuffer) String() string { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

func TestConformance14Metrics(t *testing.T) {
	t.Parallel()
	var log syncBuffer
	n := startLogged(t, logging.New(&log, logging.Info, false), "DMP_AUTH_MODE=open")
	for _, want := range []string{"metrics endpoint unauthenticated", "DMP_HTTP_TOKEN"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no token, and the log does not say %q", want)
		}
	}
	if a := n.do("GET", "/metrics", "", ""); a.status != 200 || a.header.Get("Content-Type") != "text/plain; version=0.0.4" || !strings.HasSuffix(a.body, "}") && !regexp.MustCompile(`[0-9]$`).MatchString(a.body) {
		t.Errorf("%d %v", a.status, a.header)
	}
	var closed syncBuffer
	n2 := startLogged(t, logging.New(&closed, logging.Info, false), "DMP_OPERATOR_TOKEN=operator")
	if strings.Contains(closed.String(), "unauthenticated") || strings.Contains(closed.String(), "=operator") {
		t.Error(closed.String())
	}
	a := n2.do("GET", "/metrics", "", "")
	a.expect(t, "no token", 401, "unauthorized")
	if a.header.Get("WWW-Authenticate") == "" {
		t.Error("401 without WWW-Authenticate")
	}
	n2.do("GET", "/metrics", "operator", "").expect(t, "with it", 200, "")
	n2.do("POST", "/v1/records/a.test", "operator", `{"value":"v"}`)
	eventually(t, "one record is counted", func() bool { return n2.do("GET", "/stats", "", "").body == `{"records":1}` })
	n2.do("GET", "/health", "", "").expect(t, "healthy", 200, "")
	n2.d.kill()
	eventually(t, "degraded", func() bool {
		a := n2.do("GET", "/health", "", "")
		return a.status == 503 && strings.HasPrefix(a.body, `{"status":"degraded","store":"`)
	})
}

func TestConformance15Head(t *testing.T) {
	t.Parallel()
	n := startRegistrar(t)
	n.do("POST", "/v1/records/a.test", "operator", `{"value":"v"}`)
	for _, path := range []string{"/", "/index.html", "/status", "/health", "/health/live", "/stats", "/v1/records/a.test", "/v1/records/none.test", "/v1/registration/challenge", "/nowhere", "/v1/sync/digest", "/v1/info"} {
		get, head := n.do("GET", path, "operator", ""), n.do("HEAD", path, "operator", "")
		if head.status != get.status || head.body != "" {
			t.Errorf("%s: GET %d, HEAD %d with %q", path, get.status, head.status, head.body)
		}
		for _, h := range []string{"Content-Type", "Cache-Control", "X-Content-Type-Options", "Content-Security-Policy", "Content-Length"} {
			if path != "/status" && get.header.Get(h) != head.header.Get(h) {
				t.Errorf("%s: %s is %q with GET and %q with HEAD", path, h, get.header.Get(h), head.header.Get(h))
			}
		}
		if get.header.Get("Server") != "" || get.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: %v", path, get.header)
		}
	}
	for _, method := range []string{"GET", "POST", "DELETE"} {
		for _, path := range []string{"/nowhere", "/v1", "/v1/records", "/nodes", "/v1/registration/challenge/", "/.well-known/x"} {
			n.do(method, path, "", "").expect(t, method+" "+path, 404, "not found")
		}
	}
}

// raw sends bytes and reads one response. A server that refuses a request before its end closes the connection half a second later, and
// on a slow machine the reset overtakes the answer: then it is asked again.
func (n *node) raw(request string) answer {
	n.t.Helper()
	var err error
	for range 30 {
		var a answer
		if a, err = n.exchange(request); err == nil {
			return a
		}
		if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			break
		}
	}
	n.t.Fatalf("%.60q: %v", request, err)
	return answer{}
}

func (n *node) exchange(request string) (answer, error) {
	c, err := net.Dial("tcp", n.Addrs()[0].String())
	if err != nil {
		return answer{}, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(60 * time.Second))
	if _, err := io.WriteString(c, request); err != nil {
		return answer{}, err
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return answer{}, err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return answer{}, err
	}
	return answer{r.StatusCode, strings.TrimSpace(string(b)), r.Header}, nil
}

// TestConformance16Verbatim: the requests of http.md 18.1 and 18.2 byte for byte, but for the challenge and what is signed over it.
func TestConformance16Verbatim(t *testing.T) {
	t.Parallel()
	n := startRegistrar(t)
	host := n.Addrs()[0].String()
	python := "Host: " + host + "\r\nUser-Agent: python-requests/2.32.3\r\nAccept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\n"
	rust := "accept: */*\r\nhost: " + host + "\r\n"
	get := func(headers string) map[string]any {
		t.Helper()
		a := n.raw("GET /v1/registration/challenge HTTP/1.1\r\n" + headers + "\r\n")
		a.expect(t, "challenge", 200, "")
		return a.json(t)
	}
	post := func(route, headers, body string) answer {
		return n.raw(fmt.Sprintf("POST /v1/registration/%s HTTP/1.1\r\n%sContent-Length: %d\r\nContent-Type: application/json\r\n\r\n%s", route, headers, len(body), body))
	}
	confirmed := func(what string, a answer) map[string]any {
		t.Helper()
		m := a.json(t)
		for _, k := range []string{"tsig_key_name", "tsig_secret_hex", "zone", "tsig_algorithm"} {
			if s, _ := m[k].(string); a.status != 200 || s == "" {
				t.Errorf("%s: %d %s", what, a.status, a.body)
			}
		}
		if !regexp.MustCompile(`"expires_at":[1-9]\d*[,}]`).MatchString(a.body) {
			t.Errorf("%s: expires_at is no integer: %s", what, a.body)
		}
		return m
	}
	alice := newRegistrant(0, "alice@example.com")
	fill := func(format string, c *registrant, ch map[string]any) string {
		m := n.sign(c, ch["challenge"].(string), ch["node"].(string), ch["server_x25519_pub"].(string))
		body := format
		for k, v := range m {
			body = strings.ReplaceAll(body, "<"+k+">", v.(string))
		}
		return body
	}
	cli := `{"subject": "<subject>", "ed25519_spk": "<ed25519_spk>", "challenge": "<challenge>", "signature": "<signature>", "x25519_pub": "<x25519_pub>", "x25519_pop": "<x25519_pop>"}`
	m := confirmed("tsig register", post("tsig-confirm", python, fill(cli, alice, get(python))))
	if !slices.Contains(m["allowed_suffixes"].([]any), any("mb-858a3d48ace7.dmp.example.com")) {
		t.Error(m)
	}
	// A node without server_x25519_pub makes the CLI send an empty proof.
	confirmed("tsig register, no proof", post("tsig-confirm", python, fill(strings.Replace(cli, "<x25519_pop>", "", 1), alice, get(python))))
	app := `{"subject":"<subject>","ed25519_spk":"<ed25519_spk>","challenge":"<challenge>","signature":"<signature>","x25519_pub":"<x25519_pub>"}`
	m = confirmed("the desktop app", post("tsig-confirm", strings.ToLower(rust), fill(app, newRegistrant(3, "carol@example.com"), get(rust))))
	if strings.Contains(fmt.Sprint(m["allowed_suffixes"]), "mb-8") {
		t.Error(m)
	}
	a := post("confirm", python, fill(`{"subject": "<subject>", "ed25519_spk": "<ed25519_spk>", "challenge": "<challenge>", "signature": "<signature>"}`, alice, get(python)))
	token, _ := a.json(t)["token"].(string)
	if a.status != 200 || len(token) != 59 {
		t.Fatalf("register: %d %s", a.status, a.body)
	}
	// Publishing and deleting as the CLI does without a TSIG block: names unescaped, Bearer, 201 and 204 exactly.
	bearer := python + "Authorization: Bearer " + token + "\r\n"
	send := func(method, name, body string) answer {
		return n.raw(fmt.Sprintf("%s /v1/records/%s HTTP/1.1\r\n%sContent-Length: %d\r\nContent-Type: application/json\r\n\r\n%s", method, name, bearer, len(body), body))
	}
	if a := send("POST", "dmp.alice.example.com", `{"value": "v=dmp1;t=identity;d=AAAA", "ttl": 86400}`); a.status != 201 || a.body != `{"ok":true}` {
		t.Errorf("publish: %d %s", a.status, a.body)
	}
	if a := send("DELETE", "dmp.alice.example.com", `{"value": "v=dmp1;t=identity;d=AAAA"}`); a.status != 204 || a.body != "" {
		t.Errorf("delete: %d %s", a.status, a.body)
	}
	send("POST", "dmp.alice.example.com", `{"value": "v=dmp1;t=identity;d=BBBB", "ttl": 86400}`)
	if a := n.raw("DELETE /v1/records/dmp.alice.example.com HTTP/1.1\r\n" + bearer + "Content-Length: 0\r\n\r\n"); a.status != 204 {
		t.Errorf("delete the set: %d %s", a.status, a.body)
	}
	n.raw("GET /health HTTP/1.1\r\n"+python+"\r\n").expect(t, "doctor", 200, "")
}

// TestFraming: rows of http.md 1 that no client library sends, beyond TestRawRequests.
func TestFraming(t *testing.T) {
	t.Parallel()
	n := startNode(t)
	head := "Host: x\r\nAuthorization: Bearer operator\r\n"
	for _, x := range []struct {
		name, request string
		status        int
	}{
		{"no length is an empty object", "POST /v1/records/a.test HTTP/1.0\r\n" + head + "\r\n", 400},
		{"a delete without a length", "DELETE /v1/records/a.test HTTP/1.1\r\n" + head + "\r\n", 404},
		{"negative length", "POST /v1/records/a.test HTTP/1.1\r\n" + head + "Content-Length: -1\r\n\r\n", 400},
		{"too many headers", "GET /health HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X: a\r\n", 101) + "\r\n", 431},
		{"a hundred headers", "GET /health HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X: a\r\n", 100) + "\r\n", 200},
		{"long request line", "GET /" + strings.Repeat("a", 80<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n", 431},
		{"chunked body that is too long", "POST /v1/records/a.test HTTP/1.1\r\n" + head + "Transfer-Encoding: chunked\r\n\r\n4001\r\n" + strings.Repeat("x", 0x4001) + "\r\n0\r\n\r\n", 400},
	} {
		if a := n.raw(x.request); a.status != x.status {
			t.Errorf("%s: %d %s, want %d", x.name, a.status, a.body, x.status)
		}
	}
	// A handler that fails is answered, counted, and takes nobody with it.
	broken := &Server{slots: make(chan struct{}, 1)}
	broken.metrics.init()
	for range 2 {
		w := httptest.NewRecorder()
		broken.handle(w, httptest.NewRequest("GET", "/metrics", nil))
		if w.Code != 500 || strings.TrimSpace(w.Body.String()) != `{"error":"internal error"}` {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
}

// TestClosedWithoutToken: http.md 20, row 10.
func TestClosedWithoutToken(t *testing.T) {
	t.Parallel()
	n := startBare(t, "DMP_AUTH_MODE=multi-tenant")
	for hosts, want := range map[string]int{"127.0.0.1": 200, "localhost,::1": 200, "127.0.0.1,192.0.2.1": 401, "0.0.0.0": 401} {
		c, _, errs := config.Resolve(config.Input{Environ: []string{"DMP_AUTH_MODE=multi-tenant", "DMP_HTTP_HOST=" + hosts}})
		if errs != nil {
			continue // refused at start, which is as good
		}
		n.config.Store(c) // as if it listened there
		if a := n.do("GET", "/metrics", "", ""); a.status != want {
			t.Errorf("on %s: %d", hosts, a.status)
		}
		if a := n.do("GET", "/v1/records/a.test", "", ""); (a.status == 401) != (want == 401) {
			t.Errorf("a record on %s: %d", hosts, a.status)
		}
	}
}

// TestPages: no part of the request stands in a page, and one rendering serves everybody.
func TestPages(t *testing.T) {
	t.Parallel()
	n := startRegistrar(t, "DMP_HEARTBEAT_SELF_ENDPOINT=https://dmp.example.com/<b>\"")
	for _, path := range []string{"/", "/status"} {
		a := n.raw("GET " + path + "?q=evil HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: evil.example\r\n\r\n")
		if a.status != 200 || strings.Contains(a.body, "evil") || strings.Contains(a.body, "<script") || strings.Contains(a.body, "<b>") {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	want := n.do("GET", "/", "", "").body
	n.pages.mu.Lock()
	n.pages.landing.at = time.Now().Add(time.Hour)
	n.pages.mu.Unlock()
	n.do("POST", "/v1/records/a.test", "operator", `{"value":"v"}`)
	if got := n.do("GET", "/", "", "").body; got != want {
		t.Error("a page that was fresh was rendered again")
	}
}

// TestIdleConnections: 10,000 clients that keep their connection and say nothing, and others are answered, as are they.
func TestIdleConnections(t *testing.T) {
	t.Parallel()
	want := 10_000
	if raceEnabled {
		want = 2_000 // the race detector ends at 8,128 goroutines
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur < limit.Max { // Go does so at its start; another may have lowered it
		limit.Cur = limit.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
		_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	}
	if room := (int(min(limit.Cur, 1<<20)) - 1000) / 2; room < want { // both ends are here
		t.Logf("ONLY %d CONNECTIONS, NOT %d: the limit of open files is %d", room, want, limit.Cur)
		want = room
	}
	n := startNode(t)
	ask := func(c net.Conn) string {
		c.SetDeadline(time.Now().Add(60 * time.Second))
		if _, err := io.WriteString(c, "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return err.Error()
		}
		var b [512]byte
		got := 0
		for !bytes.HasSuffix(b[:got], []byte("}\n")) {
			k, err := c.Read(b[got:])
			if err != nil {
				return err.Error()
			}
			got += k
		}
		return string(b[:min(got, 15)])
	}
	const ok = "HTTP/1.1 200 OK"
	var all []net.Conn
	defer func() {
		for _, c := range all {
			c.Close()
		}
	}()
	start := time.Now()
	for range want {
		c, err := net.Dial("tcp", n.Addrs()[0].String())
		if err != nil {
			t.Fatalf("connection %d: %v", len(all), err)
		}
		all = append(all, c)
		if got := ask(c); got != ok {
			t.Fatalf("connection %d: %q", len(all), got)
		}
	}
	n.do("GET", "/health", "", "").expect(t, "health", 200, "")
	n.do("POST", "/v1/records/a.test", "operator", `{"value":"v"}`).expect(t, "a write", 201, "")
	if time.Since(start) > idleTimeout/2 {
		t.Logf("NOT ASKED AGAIN: this machine took %v for %d connections, and idle ones end after %v", time.Since(start), want, idleTimeout)
		return
	}
	for i := 0; i < len(all); i += max(1, len(all)/50) {
		if got := ask(all[i]); got != ok {
			t.Errorf("idle connection %d: %q", i, got)
		}
	}
}

// TestConformanceDocument: docs/conformance-http.md has every line of section 21 and every row of 20 and 1, and each test that it names exists.
func TestConformanceDocument(t *testing.T) {
	t.Parallel()
	conformanceDocument(t, "conformance-http.md", map[string]int{"## Section 21": 16, "## Section 20": 28, "## Section 1,": 17}, 1)
}

// TestFederationDocument: docs/conformance-federation.md has every section, every line of section 15 and every row of 17, and each test
// that it names exists.
func TestFederationDocument(t *testing.T) {
	t.Parallel()
	conformanceDocument(t, "conformance-federation.md", map[string]int{"## Section 15": 7, "## Section 17": 15}, 1)
	conformanceDocument(t, "conformance-federation.md", map[string]int{"## Sections 2 to 14": 13}, 2)
}

// TestClusterDocument: docs/conformance-cluster.md has every property of sections 14.1, 14.2 and 18.
func TestClusterDocument(t *testing.T) {
	t.Parallel()
	conformanceDocument(t, "conformance-cluster.md", map[string]int{"## Section 14.1": 61, "## Section 14.2": 27, "## Section 18": 12}, 1)
}

func conformanceDocument(t *testing.T, file string, sections map[string]int, first int) {
	t.Helper()
	b, err := os.ReadFile("../docs/" + file)
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`([a-z/]+)\\.(Test\\w+)`")
	for heading, want := range sections {
		_, text, ok := strings.Cut(string(b), heading)
		if !ok {
			t.Fatalf("no %q", heading)
		}
		text, _, _ = strings.Cut(text, "\n## ")
		rows := 0
		for line := range strings.SplitSeq(text, "\n") {
			if !regexp.MustCompile(`^\| \d+ \|`).MatchString(line) {
				continue
			}
			rows++
			if !strings.HasPrefix(line, fmt.Sprintf("| %d |", rows+first-1)) {
				t.Errorf("%s: row %d is %q", heading, rows, line)
			}
			if !named.MatchString(line) && !strings.Contains(line, "No test:") {
				t.Errorf("%s names no test and no reason: %s", heading, line)
			}
		}
		if rows != want {
			t.Errorf("%s has %d rows, want %d", heading, rows, want)
		}
	}
	sources := map[string]string{}
	for _, m := range named.FindAllStringSubmatch(string(b), -1) {
		dir, name := m[1], m[2]
		if sources[dir] == "" {
			files, _ := filepath.Glob(filepath.Join("..", dir, "*_test.go"))
			for _, f := range files {
				text, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				sources[dir] += string(text)
			}
		}
		if !strings.Contains(sources[dir], "func "+name+"(t *testing.T)") {
			t.Errorf("there is no %s in %s", name, dir)
		}
	}
}
