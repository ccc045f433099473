package auth

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/dnsmesh/dmpd/internal/vfs"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// node is a registrar on a state in a temporary folder, with a clock that tests set.
type node struct {
	t     *testing.T
	nowMs atomic.Int64
	dir   string
	state *State
	reg   *Registrar
	set   Settings
	taken takerFunc
}

type takerFunc func(ctx context.Context, lsn uint64) error

func (f takerFunc) Taken(ctx context.Context, lsn uint64) error { return f(ctx, lsn) }

func newNode(t *testing.T) *node {
	n := &node{t: t, dir: t.TempDir(), set: Settings{Enabled: true, Updates: true, Node: "dmp.example.com", Zone: "dmp.example.com",
		LifeSec: 90 * 86400, TokenRate: 10, TokenBurst: 50}}
	n.nowMs.Store(1_700_000_000_000)
	n.taken = func(context.Context, uint64) error { return nil }
	n.open()
	t.Cleanup(func() { n.state.Close() })
	return n
}

func (n *node) open() {
	s, err := Open(Options{Dir: n.dir, NowMs: n.nowMs.Load, Audit: OpenAudit(vfs.OS, n.dir, nil),
		Taker: takerFunc(func(ctx context.Context, lsn uint64) error { return n.taken(ctx, lsn) })})
	if err != nil {
		n.t.Fatal(err)
	}
	n.state = s
	n.reg = &Registrar{State: s, Challenges: NewChallenges(), Settings: func() Settings { return n.set },
		ClientAddr: func(*http.Request) netip.Addr { return netip.MustParseAddr("192.0.2.1") }}
}

func (n *node) restart() {
	n.t.Helper()
	if err := n.state.Close(); err != nil {
		n.t.Fatal(err)
	}
	n.open()
}

func (n *node) pass(sec int64) { n.nowMs.Add(sec * 1000) }

// call sends a body and gives the status with the decoded answer.
func call(h http.HandlerFunc, method, body string) (int, map[string]any) {
	w := httptest.NewRecorder()
	h(w, httptest.NewRequest(method, "/", strings.NewReader(body)))
	var m map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &m); err != nil {
		return w.Code, map[string]any{"error": "not JSON: " + w.Body.String()}
	}
	if w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("Content-Type") != "application/json" {
		m["error"] = "bad headers"
	}
	return w.Code, m
}

func seed(b byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, 32)) }

// client makes bodies as the clients of http.md 18 do.
type client struct {
	key     ed25519.PrivateKey
	subject string
	x25519  *ecdh.PrivateKey
}

func (c *client) body(challenge, node, serverPub string) map[string]any {
	raw, _ := hex.DecodeString(challenge)
	payload := append(append(append(slices.Clone(raw), c.subject...), node...), 1)
	pub := c.key.Public().(ed25519.PublicKey)
	m := map[string]any{"subject": c.subject, "ed25519_spk": hex.EncodeToString(pub), "challenge": challenge,
		"signature": hex.EncodeToString(ed25519.Sign(c.key, payload))}
	if c.x25519 != nil {
		m["x25519_pub"] = hex.EncodeToString(c.x25519.PublicKey().Bytes())
		m["x25519_pop"] = hex.EncodeToString(pop(c.x25519, serverPub, raw, c.subject))
	}
	return m
}

func pop(k *ecdh.PrivateKey, serverPub string, challenge []byte, subject string) []byte {
	raw, _ := hex.DecodeString(serverPub)
	server, err := ecdh.X25519().NewPublicKey(raw)
	if err != nil {
		return nil
	}
	shared, err := k.ECDH(server)
	if err != nil {
		return nil
	}
	m := hmac.New(sha256.New, shared)
	m.Write(challenge)
	m.Write([]byte(subject))
	m.Write(k.PublicKey().Bytes())
	return m.Sum(nil)
}

func (n *node) challenge() (challenge, serverPub string) {
	n.t.Helper()
	code, m := call(n.reg.Challenge, "GET", "")
	if code != 200 {
		n.t.Fatalf("challenge: %d %v", code, m)
	}
	return m["challenge"].(string), m["server_x25519_pub"].(string)
}

func (n *node) post(h http.HandlerFunc, c *client, edit func(m map[string]any)) (int, map[string]any) {
	n.t.Helper()
	ch, pub := n.challenge()
	m := c.body(ch, n.set.Node, pub)
	if edit != nil {
		edit(m)
	}
	b, _ := json.Marshal(m)
	return call(h, "POST", string(b))
}

func TestChallengeRoute(t *testing.T) {
	n := newNode(t)
	n.set.Node = "DMP.Example.com"
	code, m := call(n.reg.Challenge, "GET", "")
	if code != 200 || len(m["challenge"].(string)) != 64 || len(m["server_x25519_pub"].(string)) != 64 || m["node"] != "DMP.Example.com" ||
		m["expires_at"] != 1_700_000_060.0 || m["version"] != 1.0 || len(m) != 6 {
		t.Fatalf("%d %v", code, m)
	}
}

// http.md 21, 1: 60 s, single use across both routes, exact text; order: the challenge is used up although the signature is wrong.
func TestChallengeUse(t *testing.T) {
	n := newNode(t)
	c := &client{key: seed(1), subject: "alice@example.com"}
	unknown := "challenge expired or unknown"
	steps := []struct {
		name  string
		edit  func(m map[string]any)
		after int64
		code  int
		text  string
	}{
		{"at 59 s", nil, 59, 200, ""},
		{"at 60 s", nil, 60, 400, unknown},
		{"upper case", func(m map[string]any) { m["challenge"] = strings.ToUpper(m["challenge"].(string)) }, 0, 400, unknown},
		{"not ours", func(m map[string]any) { m["challenge"] = strings.Repeat("ab", 32) }, 0, 400, unknown},
	}
	for _, s := range steps {
		ch, pub := n.challenge()
		m := c.body(ch, n.set.Node, pub)
		if s.edit != nil {
			s.edit(m)
		}
		n.pass(s.after)
		b, _ := json.Marshal(m)
		code, got := call(n.reg.Confirm, "POST", string(b))
		if text, _ := got["error"].(string); code != s.code || text != s.text {
			t.Errorf("%s: %d %v", s.name, code, got)
		}
	}
	ch, pub := n.challenge()
	m := c.body(ch, n.set.Node, pub)
	bad := c.body(ch, "other.example.com", pub)
	for i, want := range []struct {
		h    http.HandlerFunc
		m    map[string]any
		code int
		text string
	}{{n.reg.Confirm, bad, 401, "signature verification failed"}, {n.reg.TSIGConfirm, m, 400, unknown}, {n.reg.Confirm, m, 400, unknown}} {
		b, _ := json.Marshal(want.m)
		code, got := call(want.h, "POST", string(b))
		if code != want.code || got["error"] != want.text {
			t.Errorf("replay %d: %d %v", i, code, got)
		}
	}
	// A restart loses what was given out, and so what was used.
	ch, pub = n.challenge()
	n.restart()
	b, _ := json.Marshal(c.body(ch, n.set.Node, pub))
	if code, got := call(n.reg.Confirm, "POST", string(b)); code != 400 || got["error"] != unknown {
		t.Errorf("after a restart: %d %v", code, got)
	}
}

// A flood neither brings a used challenge back nor loses an honest one: new ones wait.
func TestChallengeFlood(t *testing.T) {
	c := newChallenges(256)
	now := int64(1_700_000_000)
	first, err := c.Issue("n", now)
	if err != nil {
		t.Fatal(err)
	}
	text := hex.EncodeToString(first.Bytes[:])
	if _, err := c.Consume(text, "m", now); err == nil {
		t.Error("taken for another node")
	}
	if _, err := c.Consume(text, "n", now); err != nil {
		t.Fatal(err)
	}
	honest, _ := c.Issue("n", now)
	var refused int
	for i := range 4 * 256 {
		ch, err := c.Issue("n", now+int64(i)/30)
		if errors.Is(err, ErrBusy) {
			refused++
		} else if err == nil {
			_, _ = c.Consume(hex.EncodeToString(ch.Bytes[:]), "n", now)
		}
		if _, err := c.Consume(text, "n", now+int64(i)/30); err == nil {
			t.Fatal("used twice")
		}
	}
	if refused == 0 {
		t.Error("the flood was never held up")
	}
	if _, err := c.Consume(hex.EncodeToString(honest.Bytes[:]), "n", now+34); err != nil {
		t.Error("an honest challenge was lost")
	}
	if _, err := c.Issue("n", now+200); err != nil {
		t.Error("no challenge after the flood")
	}
	// The clock goes back: what was used stays used.
	if _, err := c.Consume(text, "n", now-5); err == nil {
		t.Error("used twice after a step of the clock")
	}
}

// Steps 1 to 4 and 6 to 7 of http.md 7.5 and 8 to 12 of 7.6, each with its text.
func TestConfirmSteps(t *testing.T) {
	zero := strings.Repeat("00", 32)
	set := func(k string, v any) func(map[string]any) { return func(m map[string]any) { m[k] = v } }
	x, _ := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{9}, 32))
	other, _ := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{8}, 32))
	popText := "x25519_pop verification failed: registrant did not prove possession of the claimed X25519 key"
	cases := []struct {
		name    string
		both    bool // holds on both routes
		subject string
		edit    func(m map[string]any)
		code    int
		text    string
	}{
		{"no subject", true, "", func(m map[string]any) { delete(m, "subject") }, 400, "missing or non-string field: subject"},
		{"spk not a string", true, "", set("ed25519_spk", 5), 400, "missing or non-string field: ed25519_spk"},
		{"empty challenge", true, "", set("challenge", ""), 400, "missing or non-string field: challenge"},
		{"null signature", true, "", set("signature", nil), 400, "missing or non-string field: signature"},
		{"subject before hex", true, "", func(m map[string]any) { m["subject"], m["ed25519_spk"] = "nobody", "zz" }, 400, "subject invalid: expected local@domain"},
		{"spk hex", true, "", set("ed25519_spk", "zz"), 400, "ed25519_spk: not valid hex"},
		{"spk hex not ASCII", true, "", set("ed25519_spk", "é"), 400, "ed25519_spk: not valid hex"},
		{"spk short", true, "", set("ed25519_spk", "aabb"), 400, "ed25519_spk: expected 32 bytes, got 2"},
		{"signature before challenge", true, "", func(m map[string]any) { m["signature"], m["challenge"] = "ab", "zz" }, 400, "signature: expected 64 bytes, got 1"},
		{"challenge hex", true, "", set("challenge", "zz"), 400, "challenge: not valid hex"},
		{"other signer", true, "", set("ed25519_spk", hex.EncodeToString(seed(7).Public().(ed25519.PublicKey))), 401, "signature verification failed"},
		{"signed spelling is not canonical", true, "Alice@Example.com", nil, 401, "signature verification failed"},
		{"not in the allowlist", true, "bob@sub.allowed.test", nil, 403, "subject not in registration allowlist"},
		{"denied domain", true, "bob@x.bad.test", nil, 403, "subject not in registration allowlist"},
		{"pub hex", false, "", set("x25519_pub", "zz"), 400, "x25519_pub: not valid hex"},
		{"pub short", false, "", set("x25519_pub", "aa"), 400, "x25519_pub: expected 32 bytes, got 1"},
		{"pop short", false, "", set("x25519_pop", "aa"), 400, "x25519_pop: expected 32 bytes, got 1"},
		{"pop zero", false, "", set("x25519_pop", zero), 401, popText},
		{"pub zero", false, "", func(m map[string]any) { m["x25519_pub"] = zero }, 401, popText},
		{"pop of another key", false, "", set("x25519_pub", hex.EncodeToString(other.PublicKey().Bytes())), 401, popText},
		{"local part of 48", false, strings.Repeat("a", 48) + "@allowed.test", nil, 400, "subject local part too long for TSIG key label (max 54 chars)"},
	}
	n := newNode(t)
	n.set.Allowlist = []string{" Allowed.test. ", "example.com", "x.bad.test"}
	if err := n.state.Deny(context.Background(), DenyDomain, "bad.test", ""); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		for i, h := range []http.HandlerFunc{n.reg.TSIGConfirm, n.reg.Confirm} {
			if i == 1 && !c.both {
				continue
			}
			subject := c.subject
			if subject == "" {
				subject = "alice@example.com"
			}
			code, m := n.post(h, &client{seed(1), subject, x}, c.edit)
			if code != c.code || m["error"] != c.text {
				t.Errorf("%s: %d %v, want %d %q", c.name, code, m, c.code, c.text)
			}
		}
	}
	if len(n.state.ListKeys()) != 0 || len(n.state.ListTokens("", true)) != 0 {
		t.Error("a refused request left something")
	}
	for _, body := range []string{"[]", "5", "null", "{", "\xff", `{"a":"` + strings.Repeat("x", BodyMax) + `"}`} {
		if code, m := call(n.reg.Confirm, "POST", body); code != 400 || m["error"] != "invalid body" {
			t.Errorf("body %.10q: %d %v", body, code, m)
		}
	}
	if code, m := call(n.reg.Confirm, "POST", ""); code != 400 || m["error"] != "missing or non-string field: subject" {
		t.Errorf("no body: %d %v", code, m)
	}
	// Accepted without a proof: missing, empty or no string (http.md 18.4).
	for _, edit := range []func(map[string]any){func(m map[string]any) { delete(m, "x25519_pop") }, set("x25519_pop", ""), set("x25519_pop", 1), set("x25519_pub", 1)} {
		code, m := n.post(n.reg.TSIGConfirm, &client{seed(1), "alice@example.com", x}, edit)
		if b, _ := json.Marshal(m["allowed_suffixes"]); code != 200 || strings.Contains(string(b), `"mb-`) {
			t.Errorf("without a proof: %d %v", code, m)
		}
	}
}

// The fourteen encodings of low order verify signatures that nobody made (http.md 7.3).
func TestLowOrder(t *testing.T) {
	n := newNode(t)
	f := func(first, middle, last string) string { return first + strings.Repeat(middle, 30) + last }
	for _, spk := range []string{f("01", "00", "00"), f("00", "00", "80"), f("00", "00", "00"), f("01", "00", "80"), f("ec", "ff", "7f"), f("ec", "ff", "ff"),
		f("ed", "ff", "7f"), f("ed", "ff", "ff"), f("ee", "ff", "7f"), f("ee", "ff", "ff"),
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a", "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85"} {
		code, m := n.post(n.reg.TSIGConfirm, &client{key: seed(1), subject: "alice@example.com"}, func(m map[string]any) {
			m["ed25519_spk"] = spk
			m["signature"] = "01" + strings.Repeat("00", 63) // R is the identity, S is 0
		})
		if code != 401 || m["error"] != "signature verification failed" {
			t.Errorf("%s: %d %v", spk, code, m)
		}
	}
}

// http.md 20, row 3: the tagged payload is announced and taken, the old one still is, and neither passes for the other.
func TestTaggedPayload(t *testing.T) {
	n := newNode(t)
	c := &client{key: seed(1), subject: "alice@example.com"}
	spk := c.key.Public().(ed25519.PublicKey)
	if _, m := call(n.reg.Challenge, "GET", ""); !slices.Equal(m["payloads"].([]any), []any{1.0, 2.0}) {
		t.Errorf("announced: %v", m)
	}
	lengths := func(parts ...[]byte) []byte { // written apart from taggedPayload
		b := []byte("dnsmesh registration v2\n")
		for _, p := range parts {
			b = append(append(b, 0, 0, 0, byte(len(p))), p...)
		}
		return append(b, 2)
	}
	for _, x := range []struct {
		name     string
		announce any
		payload  func(challenge []byte) []byte
		code     int
	}{
		{"tagged", 2, func(ch []byte) []byte { return lengths(ch, []byte(c.subject), []byte(n.set.Node), spk) }, 200},
		{"tagged, not said so", nil, func(ch []byte) []byte { return lengths(ch, []byte(c.subject), []byte(n.set.Node), spk) }, 401},
		{"old, said to be tagged", 2, func(ch []byte) []byte { return append([]byte(string(ch)+c.subject+n.set.Node), 1) }, 401},
		{"old, with a version nobody knows", 3, func(ch []byte) []byte { return append([]byte(string(ch)+c.subject+n.set.Node), 1) }, 200},
		{"old, said as text", "2", func(ch []byte) []byte { return append([]byte(string(ch)+c.subject+n.set.Node), 1) }, 200},
		{"other node", 2, func(ch []byte) []byte { return lengths(ch, []byte(c.subject), []byte("x.example.com"), spk) }, 401},
		{"moved end", 2, func(ch []byte) []byte { return lengths(ch, []byte(c.subject+"d"), []byte(n.set.Node[1:]), spk) }, 401},
		{"other key", 2, func(ch []byte) []byte {
			return lengths(ch, []byte(c.subject), []byte(n.set.Node), seed(2).Public().(ed25519.PublicKey))
		}, 401},
	} {
		for _, h := range []http.HandlerFunc{n.reg.Confirm, n.reg.TSIGConfirm} {
			code, m := n.post(h, c, func(m map[string]any) {
				raw, _ := hex.DecodeString(m["challenge"].(string))
				m["signature"] = hex.EncodeToString(ed25519.Sign(c.key, x.payload(raw)))
				if x.announce != nil {
					m["payload"] = x.announce
				}
			})
			if code != x.code {
				t.Errorf("%s: %d %v, want %d", x.name, code, m, x.code)
			}
		}
	}
}

// http.md 7.7, byte for byte.
func TestWorkedExample(t *testing.T) {
	run := func(from byte) []byte {
		b := make([]byte, 32)
		for i := range b {
			b[i] = from + byte(i)
		}
		return b
	}
	signer := ed25519.NewKeyFromSeed(run(0))
	spk := signer.Public().(ed25519.PublicKey)
	clientX, _ := ecdh.X25519().NewPrivateKey(run(0x20))
	serverX, _ := ecdh.X25519().NewPrivateKey(run(0x40))
	challenge := [32]byte(run(0x60))
	subject, err := ParseSubject(" Alice@example.COM ")
	if err != nil {
		t.Fatal(err)
	}
	want := func(what, hexWant string, got []byte) {
		if hex.EncodeToString(got) != hexWant {
			t.Errorf("%s: %x, want %s", what, got, hexWant)
		}
	}
	want("ed25519_spk", "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8", spk)
	payload := signedPayload(challenge, subject, "dmp.example.com")
	want("payload", "606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f"+hex.EncodeToString([]byte("alice@example.comdmp.example.com"))+"01", payload)
	want("signature", "62d80148b5d86cfa33e75860905300448fd204f10501fa0a18463dbfa74e533afde38a92990d47c3bab6db649b650ece728695b13f4ab37e201a9a79d3585b06", ed25519.Sign(signer, payload))
	want("x25519_pub", "358072d6365880d1aeea329adf9121383851ed21a28e3b75e965d0d2cd166254", clientX.PublicKey().Bytes())
	want("server_x25519_pub", "79a631eede1bf9c98f12032cdeadd0e7a079398fc786b88cc846ec89af85a51a", serverX.PublicKey().Bytes())
	proof, _ := hex.DecodeString("839038afdea5afad42c8b8978886b1e2a1108f05b8aa90b44ce462d1e840ff47")
	if !verifyPop(serverX, challenge, subject, clientX.PublicKey().Bytes(), proof) {
		t.Error("x25519_pop is refused")
	}
	proof[0] ^= 1
	if verifyPop(serverX, challenge, subject, clientX.PublicKey().Bytes(), proof) {
		t.Error("a wrong x25519_pop is taken")
	}
	tight := []string{"_dnsmesh-claim-03a107bff3ce10be", "id-2bd806c97f0e", "id-2bd806c97f0e00af"}
	shared := []string{"_dnsmesh-claim-*", "_dnsmesh-claim-03a107bff3ce10be", "chunk-*-*", "claim-*.mb-*", "id-2bd806c97f0e", "id-2bd806c97f0e00af"}
	box := "mb-858a3d48ace7"
	for _, c := range []struct {
		name   string
		mode   Scopes
		pop    bool
		scopes []string
	}{
		{"default", ScopesDefault, true, append(slices.Clone(shared), box, "slot-*.mb-*")},
		{"no pop", ScopesDefault, false, append(slices.Clone(shared), "slot-*.mb-*")},
		{"tight", ScopesTight, true, append(slices.Clone(tight), box)},
		{"loose", ScopesLoose, true, nil},
	} {
		n := newNode(t)
		n.set.Scopes = c.mode
		cl := &client{key: signer, subject: "alice@example.com"}
		if c.pop {
			cl.x25519 = clientX
		}
		code, m := n.post(n.reg.TSIGConfirm, cl, nil)
		if code != 200 || m["tsig_key_name"] != "alice-03a107bf-ff8d98.dmp.example.com." || m["expires_at"] != 1707776000.0 || m["tsig_algorithm"] != "hmac-sha256" ||
			m["subject"] != "alice@example.com" || m["zone"] != "dmp.example.com" || len(m["tsig_secret_hex"].(string)) != 64 {
			t.Fatalf("%s: %d %v", c.name, code, m)
		}
		for i := range c.scopes {
			c.scopes[i] += ".dmp.example.com"
		}
		if c.mode == ScopesLoose {
			c.scopes = []string{"dmp.example.com"}
		}
		var got []string
		for _, s := range m["allowed_suffixes"].([]any) {
			got = append(got, s.(string))
		}
		if !slices.Equal(got, c.scopes) {
			t.Errorf("%s: %v, want %v", c.name, got, c.scopes)
		}
	}
}

// http.md 20, rows 1, 2, 16; 21, 3 and 4: a name that one key holds is not another's, over both routes.
func TestOwnership(t *testing.T) {
	ctx := context.Background()
	n := newNode(t)
	alice, mallory := seed(1), seed(2)
	tsigPost := func(k ed25519.PrivateKey, subject string) (int, map[string]any) {
		return n.post(n.reg.TSIGConfirm, &client{key: k, subject: subject}, nil)
	}
	tokenPost := func(k ed25519.PrivateKey, subject string) (int, map[string]any) {
		return n.post(n.reg.Confirm, &client{key: k, subject: subject}, nil)
	}
	expect := func(what string, want int) func(int, map[string]any) map[string]any {
		return func(code int, m map[string]any) map[string]any {
			t.Helper()
			if code != want || want == 409 && m["error"] != "subject already has a live token; re-registration must be signed with the previously-registered Ed25519 key" {
				t.Errorf("%s: %d %v, want %d", what, code, m, want)
			}
			return m
		}
	}
	first := expect("alice", 200)(tsigPost(alice, "alice@example.com"))
	expect("other key, same subject", 409)(tsigPost(mallory, "alice@example.com"))
	expect("other key, same local part", 409)(tsigPost(mallory, "alice@anything.test"))
	expect("token of another key for the subject", 409)(tokenPost(mallory, "alice@example.com"))
	expect("token of another key for the name in the zone", 409)(tokenPost(mallory, "alice@dmp.example.com"))
	expect("token of another key elsewhere", 200)(tokenPost(mallory, "alice@elsewhere.test"))
	expect("key of a subject whose token another has", 409)(tsigPost(alice, "alice@elsewhere.test"))
	second := expect("alice again", 200)(tsigPost(alice, "alice@example.com"))
	if first["tsig_key_name"] != second["tsig_key_name"] || first["tsig_secret_hex"] == second["tsig_secret_hex"] || len(n.state.ListKeys()) != 1 {
		t.Error("a second registration is not a new secret under the same name")
	}
	expect("unsigned for a taken subject", 401)(n.post(n.reg.TSIGConfirm, &client{key: mallory, subject: "alice@example.com"}, func(m map[string]any) {
		m["signature"] = strings.Repeat("00", 64)
	}))
	// The end of a key: the name waits for its owner.
	name := strings.TrimSuffix(first["tsig_key_name"].(string), ".")
	n.pass(91 * 86400)
	expect("in the grace period", 409)(tsigPost(mallory, "alice@example.com"))
	n.pass(30 * 86400)
	n.restart()
	expect("after it", 200)(tsigPost(mallory, "alice@example.com"))
	expect("the old owner", 409)(tsigPost(alice, "alice@example.com"))
	if _, err := n.state.Unrevoke(ctx, name); !errors.Is(err, ErrOwned) {
		t.Errorf("a key of a former owner is revived: %v", err)
	}
	// An operator's revoke frees the name at once; a lock does not.
	for _, k := range n.state.ListKeys() {
		if _, err := n.state.Revoke(ctx, wire.Text(k.Name)); err != nil {
			t.Fatal(err)
		}
	}
	expect("after a revoke", 200)(tsigPost(alice, "alice@example.com"))
	if err := n.state.Lock(ctx, "alice@example.com", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := n.state.Revoke(ctx, name); err != nil {
		t.Fatal(err)
	}
	n.restart()
	expect("locked", 409)(tsigPost(mallory, "alice@example.com"))
	expect("locked, the owner", 200)(tsigPost(alice, "alice@example.com"))
	if err := n.state.Unlock(ctx, "alice@example.com"); err != nil {
		t.Fatal(err)
	}
	if err := n.state.Deny(ctx, DenyKey, hex.EncodeToString(alice.Public().(ed25519.PublicKey)), ""); err != nil {
		t.Fatal(err)
	}
	n.restart()
	expect("denied key", 403)(tsigPost(alice, "alice@example.com"))
	if err := n.state.Allow(ctx, DenyKey, hex.EncodeToString(alice.Public().(ed25519.PublicKey))); err != nil {
		t.Fatal(err)
	}
	expect("allowed again", 200)(tsigPost(alice, "alice@example.com"))
}

// http.md 6.3: what happens to a token or key says to whom and from where.
func TestAuditOfRegistration(t *testing.T) {
	n := newNode(t)
	for range 2 {
		for _, h := range []http.HandlerFunc{n.reg.Confirm, n.reg.TSIGConfirm} {
			if code, m := n.post(h, &client{key: seed(1), subject: "alice@example.com"}, nil); code != 200 {
				t.Fatal(code, m)
			}
		}
	}
	rows, err := AuditTail(vfs.OS, n.dir, "", 100)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, e := range rows {
		got[e.Event]++
		if e.Subject != "alice@example.com" || e.Remote != "192.0.2.1" || (e.TokenHash == "") == (e.Key == "") {
			t.Errorf("%+v", e)
		}
	}
	if want := (map[string]int{"issued": 2, "revoked": 1, "tsig-minted": 2}); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// http.md 20, row 2: who ground a name that somebody else has gets a longer one.
func TestKeyNameCollision(t *testing.T) {
	n := newNode(t)
	alice := &client{key: seed(1), subject: "alice@example.com"}
	spk := alice.key.Public().(ed25519.PublicKey)
	h := sha256.Sum256([]byte(alice.subject))
	taken := "alice-" + hex.EncodeToString(spk[:4]) + "-" + hex.EncodeToString(h[:3]) + ".dmp.example.com"
	victim, err := n.state.Mint(context.Background(), MintRequest{Name: taken, Scopes: []string{"x.dmp.example.com"}})
	if err != nil {
		t.Fatal(err)
	}
	code, m := n.post(n.reg.TSIGConfirm, alice, nil)
	if code != 200 || m["tsig_key_name"] == taken+"." {
		t.Fatalf("%d %v", code, m)
	}
	if k, _ := n.state.Key(taken); k == nil || !bytes.Equal(k.Secret, victim.Secret) {
		t.Error("the victim's key was replaced")
	}
}

// http.md 21, 6.
func TestConcurrentConfirms(t *testing.T) {
	n := newNode(t)
	c := &client{key: seed(1), subject: "alice@example.com"}
	var wg sync.WaitGroup
	for i := range 40 {
		h := n.reg.Confirm
		if i%2 == 0 {
			h = n.reg.TSIGConfirm
		}
		wg.Go(func() {
			w := httptest.NewRecorder()
			n.reg.Challenge(w, httptest.NewRequest("GET", "/", nil))
			var m map[string]any
			_ = json.Unmarshal(w.Body.Bytes(), &m)
			b, _ := json.Marshal(c.body(m["challenge"].(string), n.set.Node, m["server_x25519_pub"].(string)))
			if code, m := call(h, "POST", string(b)); code != 200 {
				t.Errorf("%d %v", code, m)
			}
		})
	}
	wg.Wait()
	live := 0
	for _, tok := range n.state.ListTokens("alice@example.com", true) {
		if tok.Live(n.nowMs.Load() / 1000) {
			live++
		}
	}
	if live != 1 || len(n.state.ListKeys()) != 1 {
		t.Errorf("%d live tokens, %d keys", live, len(n.state.ListKeys()))
	}
}

// A mint is answered when the data plane has it, and refused while there is none, with the old secret still good.
func TestTaken(t *testing.T) {
	n := newNode(t)
	c := &client{key: seed(1), subject: "alice@example.com"}
	n.taken = func(_ context.Context, lsn uint64) error {
		if lsn > n.state.Committed() {
			t.Errorf("asked for lsn %d, committed %d", lsn, n.state.Committed())
		}
		return nil
	}
	code, m := n.post(n.reg.TSIGConfirm, c, nil)
	if code != 200 {
		t.Fatalf("%d %v", code, m)
	}
	name := m["tsig_key_name"].(string)
	n.taken = func(context.Context, uint64) error { return errors.New("no beat") }
	if code, m := n.post(n.reg.TSIGConfirm, c, nil); code != 503 || m["tsig_secret_hex"] != nil {
		t.Errorf("%d %v", code, m)
	}
	if k, err := n.state.Key(name); err != nil || hex.EncodeToString(k.Secret) != m["tsig_secret_hex"] {
		t.Error("the old secret was given up for nothing")
	}
	if _, err := n.state.Revoke(context.Background(), name); !errors.Is(err, ErrNotTaken) {
		t.Errorf("revoke: %v", err)
	}
	if k, _ := n.state.Key(name); !k.Revoked {
		t.Error("a revoke does not wait for the data plane to be durable")
	}
}

// http.md 21, 7 and 8.
func TestGates(t *testing.T) {
	n := newNode(t)
	n.set.LimitRate, n.set.LimitBurst = 5.0/3600, 5
	for i := range 6 {
		h := []http.HandlerFunc{n.reg.Challenge, n.reg.Confirm, n.reg.TSIGConfirm}[i%3]
		code, m := call(h, "POST", "{}")
		if (code == 429) != (i == 5) || code == 429 && m["error"] != "registration rate limit exceeded" {
			t.Errorf("request %d: %d %v", i+1, code, m)
		}
	}
	for _, c := range []struct {
		edit func(*Settings)
		text [3]string // of challenge, confirm, tsig-confirm; empty: passes the gate
	}{
		{func(s *Settings) { s.Enabled = false }, [3]string{"not found", "not found", "not found"}},
		{func(s *Settings) { s.Node = "" }, [3]string{"not found", "not found", "not found"}},
		{func(s *Settings) { s.Updates = false }, [3]string{"", "", "tsig registration disabled"}},
	} {
		n := newNode(t)
		c.edit(&n.set)
		for i, h := range []http.HandlerFunc{n.reg.Challenge, n.reg.Confirm, n.reg.TSIGConfirm} {
			code, m := call(h, "POST", "{}")
			if (code == 404) != (c.text[i] != "") || code == 404 && m["error"] != c.text[i] {
				t.Errorf("route %d: %d %v", i, code, m)
			}
		}
	}
}

func TestSubject(t *testing.T) {
	for text, want := range map[string]string{
		" Alice@Example.COM\n": "alice@example.com", "a.b_c+d-@x-1.test": "a.b_c+d-@x-1.test", "1@a.b": "1@a.b",
		"": "", "alice": "", "alice@host": "", "@a.b": "", "-a@a.b": "", "a@-a.b": "", "a@a-.b": "", "a@a..b": "", "a@b.c.": "", "a@b@c.d": "", "ä@a.b": "",
		"a b@c.d": "", "a@b_c.d": "", strings.Repeat("a", 2000) + "@b.c": "",
	} {
		got, err := ParseSubject(text)
		if (err == nil) != (want != "") || err == nil && got.String() != want {
			t.Errorf("%.20q: %v %v, want %q", text, got, err, want)
		}
	}
}

func TestLimiter(t *testing.T) {
	l := Limiter[netip.Prefix]{max: 3}
	at := func(a string) netip.Prefix { return ClientPrefix(netip.MustParseAddr(a)) }
	sec := int64(1e9)
	allow := func(a string, now int64) bool { return l.Allow(at(a), 1, 2, now) }
	if !allow("2001:db8::1", 0) || !allow("2001:db8::2", 0) || allow("2001:db8:0:0:ffff::3", 0) {
		t.Error("a /64 is not one client")
	}
	if allow("2001:db8::1", sec/2) || !allow("2001:db8::1", sec) || allow("2001:db8::1", sec) {
		t.Error("refill")
	}
	if !allow("::ffff:192.0.2.1", sec) || !allow("192.0.2.1", sec) || allow("192.0.2.1", sec) || !allow("192.0.2.2", sec) {
		t.Error("IPv4")
	}
	allow("192.0.2.3", sec) // drops the /64, the longest unused
	if len(l.buckets) != 3 || l.order.Len() != 3 || !allow("2001:db8::1", sec) {
		t.Error("the table is not bounded, or dropped another")
	}
	if !l.Allow(at("192.0.2.1"), 0, 5, sec) || !l.Allow(at("192.0.2.1"), 5, -1, sec) {
		t.Error("0 is no limit")
	}
}
