package auth

import (
	"context"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// BodyMax bounds the body of a registration (http.md 1).
const BodyMax = 16384

// The signed payload ends with its version (http.md 7.3), so that no payload of one version is one of the other. payloadTag begins
// the second one (docs/decisions/0012-registration-payload.md).
const (
	payloadVersion1 = 0x01
	payloadVersion2 = 0x02
	payloadTag      = "dnsmesh registration v2\n"
)

// Settings are what registration asks of the configuration, read anew for each request.
type Settings struct {
	Enabled      bool   // registration on, mode multi-tenant, node named (http.md 7.1)
	Updates      bool   // DNS UPDATE on: TSIG keys are minted
	Node         string // DMP_NODE_HOSTNAME as configured, trimmed
	Zone         string // served zone, no trailing dot
	Allowlist    []string
	LifeSec      int64
	TokenRate    float64
	TokenBurst   int
	Scopes       Scopes
	LimitRate    float64
	LimitBurst   float64
	TakenTimeout func(context.Context) (context.Context, context.CancelFunc) // nil: the request's own
}

// Registrar serves the three registration routes. Each method is an http.HandlerFunc; the route and method are the caller's.
type Registrar struct {
	State      *State
	Challenges *Challenges
	Settings   func() Settings
	ClientAddr func(*http.Request) netip.Addr // behind trusted proxies, too
	Log        *logging.Logger
	// Count is told the outcome of each request, for metrics: route and status. May be nil.
	Count func(route string, status int)

	limit Limiter[netip.Prefix]
}

// reply is an answer of a route: a status with a body, a value for JSON.
type reply struct {
	status int
	body   any
}

type errorBody struct {
	Error string `json:"error"`
}

func refuse(status int, text string) *reply { return &reply{status, errorBody{text}} }

func (g *Registrar) send(w http.ResponseWriter, route string, r *reply) {
	b, err := json.Marshal(r.body)
	if err != nil {
		panic(err) // plain structs only
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store") // the answers hold secrets (http.md 20, row 22)
	h.Set("X-Content-Type-Options", "nosniff")
	switch r.status {
	case http.StatusServiceUnavailable:
		h.Set("Retry-After", "2")
	case http.StatusTooManyRequests:
		h.Set("Retry-After", "60")
	}
	b = append(b, '\n')
	h.Set("Content-Length", strconv.Itoa(len(b))) // for HEAD, too
	w.WriteHeader(r.status)
	_, _ = w.Write(b) // the client is gone: nobody to tell
	if g.Count != nil {
		g.Count(route, r.status)
	}
}

// gate is what comes before every route: on or off, then the limit, which all three share.
func (g *Registrar) gate(r *http.Request, set *Settings, tsig bool) *reply {
	if !set.Enabled || set.Node == "" {
		return refuse(http.StatusNotFound, "not found")
	}
	if tsig && !set.Updates {
		return refuse(http.StatusNotFound, "tsig registration disabled")
	}
	if !g.limit.Allow(ClientPrefix(g.ClientAddr(r)), set.LimitRate, set.LimitBurst, clock.Mono()) {
		return refuse(http.StatusTooManyRequests, "registration rate limit exceeded")
	}
	return nil
}

// Challenge is GET /v1/registration/challenge (http.md 7.2).
func (g *Registrar) Challenge(w http.ResponseWriter, r *http.Request) {
	set := g.Settings()
	if no := g.gate(r, &set, false); no != nil {
		g.send(w, "challenge", no)
		return
	}
	c, err := g.Challenges.Issue(set.Node, g.nowSec())
	if err != nil {
		g.send(w, "challenge", refuse(http.StatusServiceUnavailable, "too many registrations in progress"))
		return
	}
	g.send(w, "challenge", &reply{http.StatusOK, struct {
		Challenge string `json:"challenge"`
		Node      string `json:"node"`
		ExpiresAt int64  `json:"expires_at"`
		ServerX   string `json:"server_x25519_pub"`
		Version   int    `json:"version"`
		Payloads  []int  `json:"payloads"` // versions of the signed payload that are taken
	}{hex.EncodeToString(c.Bytes[:]), set.Node, c.ExpiresAtSec, hex.EncodeToString(c.ServerX25519[:]), 1, []int{payloadVersion1, payloadVersion2}}})
}

func (g *Registrar) nowSec() int64 { return g.State.o.NowMs() / 1000 }

// Confirm is POST /v1/registration/confirm (http.md 7.5).
func (g *Registrar) Confirm(w http.ResponseWriter, r *http.Request) {
	g.serve(w, r, "confirm", false, g.mintToken)
}

// TSIGConfirm is POST /v1/registration/tsig-confirm (http.md 7.6).
func (g *Registrar) TSIGConfirm(w http.ResponseWriter, r *http.Request) {
	g.serve(w, r, "tsig-confirm", true, g.mintKey)
}

func (g *Registrar) serve(w http.ResponseWriter, r *http.Request, route string, tsig bool, mint func(context.Context, *Settings, *proof) *reply) {
	set := g.Settings()
	if no := g.gate(r, &set, tsig); no != nil {
		g.send(w, route, no)
		return
	}
	p, no := g.prove(w, r, &set)
	if no == nil {
		ctx := r.Context()
		if set.TakenTimeout != nil {
			var cancel context.CancelFunc
			ctx, cancel = set.TakenTimeout(ctx)
			defer cancel()
		}
		no = mint(ctx, &set, p)
	}
	g.send(w, route, no)
}

// proof is what steps 1 to 7 of http.md 7.5 leave: a subject whose key signed this challenge.
type proof struct {
	body      map[string]any
	subject   Subject
	spk       []byte
	challenge [32]byte
	remote    netip.Addr
}

// prove runs steps 1 to 7. Their order is part of the protocol: who has not signed learns nothing of a subject.
func (g *Registrar) prove(w http.ResponseWriter, r *http.Request, set *Settings) (*proof, *reply) {
	p := &proof{remote: g.ClientAddr(r)}
	var no *reply
	// 1. body
	if p.body, no = readBody(w, r); no != nil {
		return nil, no
	}
	// 2. fields
	var text [4]string
	for i, field := range [4]string{"subject", "ed25519_spk", "challenge", "signature"} {
		s, _ := p.body[field].(string)
		if s == "" {
			return nil, refuse(http.StatusBadRequest, "missing or non-string field: "+field)
		}
		text[i] = s
	}
	// 3. subject
	var err error
	if p.subject, err = ParseSubject(text[0]); err != nil {
		return nil, refuse(http.StatusBadRequest, "subject invalid: "+err.Error())
	}
	// 4. hex, in this order
	if p.spk, no = hexField("ed25519_spk", text[1], 32); no != nil {
		return nil, no
	}
	signature, no := hexField("signature", text[3], 64)
	if no != nil {
		return nil, no
	}
	if _, no = hexField("challenge", text[2], 32); no != nil {
		return nil, no
	}
	// 5. the challenge is used up, whatever follows
	if p.challenge, err = g.Challenges.Consume(text[2], set.Node, g.nowSec()); err != nil {
		return nil, refuse(http.StatusBadRequest, ErrChallenge.Error())
	}
	// 6. signature
	payload := signedPayload(p.challenge, p.subject, set.Node)
	if p.body["payload"] == float64(payloadVersion2) { // anything else is ignored, as unknown fields are
		payload = taggedPayload(p.challenge, p.subject, set.Node, p.spk)
	}
	if !record.VerifyEd25519(p.spk, payload, signature) {
		return nil, refuse(http.StatusUnauthorized, "signature verification failed")
	}
	// 7. allowlist, and the deny list with the same answer
	if !allowed(set.Allowlist, p.subject.Domain) || g.State.IsDenied(p.subject, p.spk) {
		return nil, refuse(http.StatusForbidden, "subject not in registration allowlist")
	}
	return p, nil
}

// signedPayload is challenge ‖ subject ‖ node ‖ 0x01 (http.md 7.3).
func signedPayload(challenge [32]byte, subject Subject, node string) []byte {
	b := append(challenge[:len(challenge):len(challenge)], subject.String()...)
	b = append(b, node...)
	return append(b, payloadVersion1)
}

// taggedPayload is the second version: tag ‖ challenge ‖ subject ‖ node ‖ key, each but the tag after its length (4 bytes, big-endian),
// ‖ 0x02. Nothing that a node puts into the challenge can make it the payload of another protocol, or move the ends of its parts.
func taggedPayload(challenge [32]byte, subject Subject, node string, spk []byte) []byte {
	b := []byte(payloadTag)
	for _, part := range [][]byte{challenge[:], []byte(subject.String()), []byte(node), spk} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
		b = append(b, part...)
	}
	return append(b, payloadVersion2)
}

// readBody reads a JSON object; no body is an empty one.
func readBody(w http.ResponseWriter, r *http.Request) (map[string]any, *reply) {
	invalid := refuse(http.StatusBadRequest, "invalid body")
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, BodyMax))
	if err != nil || !utf8.Valid(b) {
		return nil, invalid
	}
	if len(b) == 0 {
		return map[string]any{}, nil
	}
	var body map[string]any
	if err := json.Unmarshal(b, &body); err != nil || body == nil {
		return nil, invalid
	}
	return body, nil
}

func hexField(field, text string, want int) ([]byte, *reply) {
	b, err := hex.DecodeString(text)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, field+": not valid hex")
	}
	if len(b) != want {
		return nil, refuse(http.StatusBadRequest, fmt.Sprintf("%s: expected %d bytes, got %d", field, want, len(b)))
	}
	return b, nil
}

// mintToken is step 8 of http.md 7.5.
func (g *Registrar) mintToken(ctx context.Context, set *Settings, p *proof) *reply {
	text, t, err := g.State.RegisterToken(ctx, p.subject, p.spk, set.LifeSec, set.TokenRate, set.TokenBurst, p.remote)
	if err != nil {
		return g.failed("confirm", err)
	}
	var expires *int64
	if t.ExpiresAtSec != 0 {
		expires = &t.ExpiresAtSec
	}
	return &reply{http.StatusOK, struct {
		Token     string  `json:"token"`
		Subject   string  `json:"subject"`
		ExpiresAt *int64  `json:"expires_at"`
		Rate      float64 `json:"rate_per_sec"`
		Burst     int     `json:"rate_burst"`
	}{text, t.Subject, expires, t.RatePerSec, t.Burst}}
}

// mintKey is steps 8 to 13 of http.md 7.6.
func (g *Registrar) mintKey(ctx context.Context, set *Settings, p *proof) *reply {
	x25519, no := g.provenX25519(p)
	if no != nil {
		return no
	}
	k, err := g.State.RegisterKey(ctx, Registration{Subject: p.subject, Ed25519: p.spk, X25519: x25519, Zone: set.Zone, Scopes: set.Scopes, LifeSec: set.LifeSec, Remote: p.remote})
	if err != nil {
		return g.failed("tsig-confirm", err)
	}
	suffixes := make([]string, len(k.Scopes))
	for i := range k.Scopes {
		suffixes[i] = k.Scopes[i].String()
	}
	return &reply{http.StatusOK, struct {
		Name      string   `json:"tsig_key_name"`
		Secret    string   `json:"tsig_secret_hex"`
		Algorithm string   `json:"tsig_algorithm"`
		Suffixes  []string `json:"allowed_suffixes"`
		Subject   string   `json:"subject"`
		Zone      string   `json:"zone"`
		ExpiresAt int64    `json:"expires_at"`
	}{wire.Text(k.Name) + ".", hex.EncodeToString(k.Secret), k.Alg.String(), suffixes, k.Subject, set.Zone, k.ExpiresAtSec}}
}

// provenX25519 is steps 8 to 11: the key, if the registrant proved that it is theirs; nil if none was offered with a proof.
func (g *Registrar) provenX25519(p *proof) ([]byte, *reply) {
	text, _ := p.body["x25519_pub"].(string)
	text = strings.ToLower(strings.TrimSpace(text))
	if text == "" {
		return nil, nil
	}
	pub, no := hexField("x25519_pub", text, 32)
	if no != nil {
		return nil, no
	}
	text, _ = p.body["x25519_pop"].(string)
	if text = strings.TrimSpace(text); text == "" {
		return nil, nil
	}
	pop, no := hexField("x25519_pop", text, 32)
	if no != nil {
		return nil, no
	}
	if !verifyPop(g.Challenges.Ephemeral(p.challenge), p.challenge, p.subject, pub, pop) {
		return nil, refuse(http.StatusUnauthorized, "x25519_pop verification failed: registrant did not prove possession of the claimed X25519 key")
	}
	return pub, nil
}

// verifyPop checks HMAC-SHA256(shared, challenge ‖ subject ‖ public key) (http.md 7.6).
func verifyPop(server *ecdh.PrivateKey, challenge [32]byte, subject Subject, pub, pop []byte) bool {
	key, err := ecdh.X25519().NewPublicKey(pub)
	if err != nil {
		return false
	}
	shared, err := server.ECDH(key) // fails for an all-zero result
	if err != nil {
		return false
	}
	m := hmac.New(sha256.New, shared)
	m.Write(challenge[:])
	m.Write([]byte(subject.String()))
	m.Write(pub)
	return hmac.Equal(pop, m.Sum(nil))
}

// failed turns an error of a mint into its answer.
func (g *Registrar) failed(route string, err error) *reply {
	switch {
	case errors.Is(err, ErrOwned):
		return refuse(http.StatusConflict, ErrOwned.Error())
	case errors.Is(err, ErrNameTooBig):
		return refuse(http.StatusBadRequest, ErrNameTooBig.Error())
	case errors.Is(err, ErrBadRequest):
		return refuse(http.StatusBadRequest, "subject invalid: it does not fit a TSIG key name")
	case errors.Is(err, ErrNotTaken):
		return refuse(http.StatusServiceUnavailable, "the DNS process is away, try again")
	}
	g.Log.Error("registration failed", "route", route, "err", err)
	return refuse(http.StatusInternalServerError, "internal error")
}
