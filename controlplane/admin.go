package controlplane

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/snapshot"
	"github.com/dnsmesh/dmpd/internal/tsig"
	"github.com/dnsmesh/dmpd/internal/wire"

	"github.com/dnsmesh/dmpd/controlplane/auth"
)

// The operator's commands reach a running node over control/control.sock, a Unix socket that its user alone may open. A connection
// carries one request and one response, each a JSON object, the request ended by a newline, the response by the end of the stream:
//
//	{"verb": "tsig.revoke", "args": {"name": "alice-8a88e3dd-b22122.mesh.test"}}
//	{"result": {...}}
//	{"error": {"kind": "not-found", "text": "auth: no such entry: key ..."}}
//
// The same verbs run in dmpd's own process while the node is down (Admin.Do), under the lock that the node would hold.
const (
	adminSocket      = "control.sock"
	adminRequestMax  = 1 << 20          // a key with 64 scopes is 20 KiB
	adminResponseMax = 1 << 28          // a million keys listed
	adminConnsMax    = 16               // operators at once; more wait in the socket's queue
	adminReadLimit   = 10 * time.Second // for the request to come
	adminCallLimit   = 60 * time.Second // for the verb: a mint waits for the data plane
	adminWriteLimit  = 30 * time.Second // for the response to go
	sunPathMax       = 108 - 1          // unix(7)
	operatorTTLSec   = 300              // http.md 5.1
	yearsMaxSec      = 1 << 40          // a life that still fits the wire in milliseconds
)

// ErrorKind says what went wrong in a word that a program can act on.
type ErrorKind string

// Kinds of error.
const (
	KindBadRequest ErrorKind = "bad-request"
	KindNotFound   ErrorKind = "not-found"
	KindAmbiguous  ErrorKind = "ambiguous"
	KindOwned      ErrorKind = "owned"
	KindAway       ErrorKind = "away"   // the data plane did not take it, and it is not done, unless the text says that nobody knows
	KindStands     ErrorKind = "stands" // it is stored; the data plane takes it when it is back
	KindRefused    ErrorKind = "refused"
	KindFailed     ErrorKind = "failed"
)

// AdminError is what a verb failed with.
type AdminError struct {
	Kind ErrorKind `json:"kind"`
	Text string    `json:"text"`
}

func (e *AdminError) Error() string { return e.Text }

// ErrNoNode says that no node listens on the socket.
var ErrNoNode = errors.New("no node answers on its socket")

type adminRequest struct {
	Verb string          `json:"verb"`
	Args json.RawMessage `json:"args,omitempty"`
}

type adminResponse struct {
	Result json.RawMessage `json:"result,omitempty"`
	Error  *AdminError     `json:"error,omitempty"`
}

// Admin carries the operator's verbs out.
type Admin struct {
	State *auth.State
	// Store has a request decided; its outcome is durable. Nil: records cannot be changed here.
	Store func(ctx context.Context, r *record.Request) (snapshot.Outcome, error)
	// Peers gives the nodes that were heard. Nil: this is not a running node.
	Peers func() ([]PeerInfo, error)
	Log   *logging.Logger

	cluster *replication // nil where no node runs

	once     sync.Once
	listener net.Listener
	slots    chan struct{}
	open     sync.WaitGroup
	mu       sync.Mutex
	conns    map[net.Conn]bool
	closed   bool
	ctx      context.Context
	cancel   context.CancelFunc
}

// Listen opens the socket in a folder and serves it until Close. The caller holds the folder's lock, so a socket that lies there is a
// dead one's.
func (a *Admin) Listen(controlDir string) error {
	path := filepath.Join(controlDir, adminSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("control socket: %w", err)
	}
	short, done, err := shortPath(path)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	l.SetUnlinkOnClose(false) // its name may be one that is valid during this call only
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return fmt.Errorf("control socket: %w", err)
	}
	a.listener, a.slots, a.conns = l, make(chan struct{}, adminConnsMax), map[net.Conn]bool{}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	a.open.Add(1)
	go a.accept()
	return nil
}

// shortPath gives a name for a socket that fits sockaddr_un, until done is called.
func shortPath(path string) (short string, done func(), err error) {
	if len(path) <= sunPathMax {
		return path, func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), func() { dir.Close() }, nil
}

func (a *Admin) accept() {
	defer a.open.Done()
	for {
		a.slots <- struct{}{}
		c, err := a.listener.Accept()
		if err != nil {
			<-a.slots
			if errors.Is(err, net.ErrClosed) {
				return
			}
			a.Log.Warn("control socket", "err", err)
			time.Sleep(100 * time.Millisecond) // out of descriptors, most likely
			continue
		}
		a.mu.Lock()
		if a.closed {
			a.mu.Unlock()
			c.Close()
			<-a.slots
			return
		}
		a.conns[c] = true
		a.open.Add(1)
		a.mu.Unlock()
		go a.serve(c)
	}
}

func (a *Admin) serve(c net.Conn) {
	defer func() {
		c.Close()
		a.mu.Lock()
		delete(a.conns, c)
		a.mu.Unlock()
		<-a.slots
		a.open.Done()
	}()
	_ = c.SetReadDeadline(time.Now().Add(adminReadLimit))
	var req adminRequest
	var result any
	err := json.NewDecoder(io.LimitReader(c, adminRequestMax)).Decode(&req)
	if err != nil {
		err = &AdminError{KindBadRequest, "no request: " + err.Error()}
	} else {
		ctx, cancel := context.WithTimeout(a.ctx, adminCallLimit)
		result, err = a.Do(ctx, req.Verb, req.Args)
		cancel()
	}
	var resp adminResponse
	if err == nil {
		resp.Result, err = json.Marshal(result)
	}
	if err != nil {
		resp = adminResponse{Error: adminError(err)}
	}
	_ = c.SetWriteDeadline(time.Now().Add(adminWriteLimit))
	if err := json.NewEncoder(c).Encode(resp); err != nil && a.ctx.Err() == nil {
		a.Log.Warn("an operator's command did not read its answer", "verb", req.Verb, "err", err)
	}
}

// serveAdmin opens the socket of a running node.
func (s *Server) serveAdmin() (io.Closer, error) {
	a := &Admin{State: s.state, Store: s.requests.do, Peers: s.peers, Log: s.log, cluster: s.replication}
	if err := a.Listen(s.controlDir); err != nil {
		return nil, err
	}
	return a, nil
}

// Close stops serving; a verb that waits is given up.
func (a *Admin) Close() error {
	if a.listener == nil {
		return nil
	}
	a.once.Do(func() {
		a.listener.Close()
		a.cancel()
		a.mu.Lock()
		a.closed = true
		for c := range a.conns {
			_ = c.SetReadDeadline(time.Now())
			_ = c.SetWriteDeadline(time.Now().Add(time.Second))
		}
		a.mu.Unlock()
		a.open.Wait()
	})
	return nil
}

// AdminClient speaks to the node that has its control folder at Dir.
type AdminClient struct{ Dir string }

// Call runs a verb there. result may be nil. Without a node it is ErrNoNode.
func (c *AdminClient) Call(ctx context.Context, verb string, args, result any) error {
	short, done, err := shortPath(filepath.Join(c.Dir, adminSocket))
	if errors.Is(err, os.ErrNotExist) {
		return ErrNoNode
	}
	if err != nil {
		return err
	}
	defer done()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", short)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return ErrNoNode
	}
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	body, err := json.Marshal(args)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(conn).Encode(adminRequest{verb, body}); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	var resp adminResponse
	if err := json.NewDecoder(io.LimitReader(conn, adminResponseMax)).Decode(&resp); err != nil {
		return fmt.Errorf("control socket: no answer: %w", err)
	}
	if resp.Error != nil {
		return resp.Error
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(resp.Result, result)
}

// adminError sorts an error.
func adminError(err error) *AdminError {
	var known *AdminError
	if errors.As(err, &known) {
		return known
	}
	kind := KindFailed
	switch {
	case errors.Is(err, auth.ErrNotTaken):
		return &AdminError{KindStands, "it is stored, but the data plane is away: it takes this when it is back, before it judges anything by it"}
	case errors.Is(err, auth.ErrBadRequest), errors.Is(err, auth.ErrNameTooBig):
		kind = KindBadRequest
	case errors.Is(err, auth.ErrNotFound):
		kind = KindNotFound
	case errors.Is(err, auth.ErrAmbiguous):
		kind = KindAmbiguous
	case errors.Is(err, auth.ErrOwned), errors.Is(err, auth.ErrDenied):
		kind = KindOwned
	case errors.Is(err, errAway), errors.Is(err, errAhead), errors.Is(err, errUnknown):
		kind = KindAway
	}
	return &AdminError{kind, err.Error()}
}

// Do runs a verb.
func (a *Admin) Do(ctx context.Context, verb string, args json.RawMessage) (any, error) {
	f := adminVerbs[verb]
	if f == nil {
		return nil, &AdminError{KindBadRequest, fmt.Sprintf("no verb %q: dmpd and the node are of two versions", verb)}
	}
	return f(ctx, a, args)
}

// Call is AdminClient.Call without a socket between.
func (a *Admin) Call(ctx context.Context, verb string, args, result any) error {
	body, err := json.Marshal(args)
	if err != nil {
		return err
	}
	got, err := a.Do(ctx, verb, body)
	if err != nil {
		return adminError(err)
	}
	if result == nil {
		return nil
	}
	b, err := json.Marshal(got)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, result)
}

type adminVerb func(ctx context.Context, a *Admin, args json.RawMessage) (any, error)

// verb makes a verb of a function with typed arguments. Unknown arguments are refused: one that is passed over could be the one that
// mattered.
func verb[A any](f func(ctx context.Context, a *Admin, args A) (any, error)) adminVerb {
	return func(ctx context.Context, a *Admin, raw json.RawMessage) (any, error) {
		var args A
		if len(raw) > 0 {
			d := json.NewDecoder(bytes.NewReader(raw))
			d.DisallowUnknownFields()
			if err := d.Decode(&args); err != nil {
				return nil, &AdminError{KindBadRequest, "arguments: " + err.Error()}
			}
		}
		return f(ctx, a, args)
	}
}

// Arguments and results of the verbs.
type (
	// KeyInfo is a TSIG key. Its secret is there if it was asked for.
	KeyInfo struct {
		Name         string   `json:"name"`
		Algorithm    string   `json:"algorithm"`
		SecretHex    string   `json:"secret_hex,omitempty"`
		SecretBase64 string   `json:"secret_base64,omitempty"`
		Scopes       []string `json:"scopes"`
		CreatedAt    int64    `json:"created_at"`
		ExpiresAt    int64    `json:"expires_at"` // 0: never
		Revoked      bool     `json:"revoked"`
		Live         bool     `json:"live"`
		Operator     bool     `json:"operator"`
		Subject      string   `json:"subject,omitempty"`
		Ed25519      string   `json:"ed25519,omitempty"`
		X25519       string   `json:"x25519,omitempty"`
		Note         string   `json:"note,omitempty"`
	}
	// NameArgs name one thing.
	NameArgs struct {
		Name    string `json:"name"`
		Note    string `json:"note,omitempty"`
		Secrets bool   `json:"secrets,omitempty"`
	}
	// ListKeysArgs filter tsig.list.
	ListKeysArgs struct {
		Subject string `json:"subject,omitempty"`
		All     bool   `json:"all,omitempty"` // also those revoked or expired
		Secrets bool   `json:"secrets,omitempty"`
	}
	// MintArgs say what key to make.
	MintArgs struct {
		Name      string   `json:"name"`
		Algorithm string   `json:"algorithm,omitempty"`
		SecretHex string   `json:"secret_hex,omitempty"`
		Scopes    []string `json:"scopes"`
		ExpiresAt int64    `json:"expires_at,omitempty"`
		Subject   string   `json:"subject,omitempty"`
		Ed25519   string   `json:"ed25519,omitempty"`
		X25519    string   `json:"x25519,omitempty"`
		Note      string   `json:"note,omitempty"`
		Operator  bool     `json:"operator,omitempty"`
		Replace   bool     `json:"replace,omitempty"`
	}
	// ExtendArgs move a key's end.
	ExtendArgs struct {
		Name      string `json:"name"`
		ExpiresAt int64  `json:"expires_at"`
	}
	// LockInfo is a lock.
	LockInfo struct {
		Name    string `json:"name"`
		Ed25519 string `json:"ed25519,omitempty"` // who may still register; nobody if empty
		Note    string `json:"note,omitempty"`
		At      int64  `json:"at"`
	}
	// DenyInfo is an entry of the deny list, and the arguments of deny.add and deny.remove.
	DenyInfo struct {
		Kind  string `json:"kind"` // subject, key or domain
		Value string `json:"value"`
		Note  string `json:"note,omitempty"`
		At    int64  `json:"at,omitempty"`
	}
	// TokenInfo is a bearer token; its fields are named as the reference's admin tool names them.
	TokenInfo struct {
		Token       string  `json:"token,omitempty"` // the text, when it was just made
		TokenHash   string  `json:"token_hash"`
		Subject     string  `json:"subject"`
		SubjectType uint8   `json:"subject_type"`
		Hash12      *string `json:"subject_hash12"`
		RatePerSec  float64 `json:"rate_per_sec"`
		Burst       int     `json:"rate_burst"`
		IssuedAt    int64   `json:"issued_at"`
		ExpiresAt   *int64  `json:"expires_at"`
		RevokedAt   *int64  `json:"revoked_at"`
		Issuer      string  `json:"issuer"`
		Note        string  `json:"note"`
		Live        bool    `json:"live"`
	}
	// TokenArgs say what token to issue, or to put in place of a subject's.
	TokenArgs struct {
		Subject    string  `json:"subject"`
		RatePerSec float64 `json:"rate_per_sec,omitempty"`
		Burst      int     `json:"rate_burst,omitempty"`
		ExpiresAt  int64   `json:"expires_at,omitempty"`
		Issuer     string  `json:"issuer"`
		Note       string  `json:"note,omitempty"`
		X25519     string  `json:"x25519,omitempty"`
	}
	// ListTokensArgs filter token.list.
	ListTokensArgs struct {
		Subject string `json:"subject,omitempty"`
		Revoked bool   `json:"revoked,omitempty"`
	}
	// RecordArgs say what to put or delete. A nil Value deletes the whole RRset.
	RecordArgs struct {
		Name   string  `json:"name"`
		Value  *string `json:"value,omitempty"`
		TTLSec uint32  `json:"ttl,omitempty"`
	}
	// RecordResult says what became of it.
	RecordResult struct {
		Outcome string `json:"outcome"`
		Applied uint32 `json:"applied"`
	}
)

var adminVerbs = map[string]adminVerb{
	"cluster.status": verb(clusterStatus),
	"cluster.push":   verb(clusterPush),

	"ping": verb(func(_ context.Context, _ *Admin, _ struct{}) (any, error) {
		return map[string]int{"pid": os.Getpid()}, nil
	}),

	"tsig.list": verb(func(_ context.Context, a *Admin, args ListKeysArgs) (any, error) {
		nowSec := clock.NowMs() / 1000
		infos := []KeyInfo{}
		for _, k := range a.State.ListKeys() {
			if (args.Subject == "" || k.Subject == args.Subject) && (args.All || k.Live(nowSec)) {
				infos = append(infos, keyInfo(k, args.Secrets))
			}
		}
		return infos, nil
	}),
	"tsig.show": verb(func(_ context.Context, a *Admin, args NameArgs) (any, error) {
		return keyResult(args.Secrets)(a.State.Key(args.Name))
	}),
	"tsig.mint": verb(func(ctx context.Context, a *Admin, args MintArgs) (any, error) {
		m := auth.MintRequest{Name: args.Name, Scopes: args.Scopes, ExpiresAtSec: args.ExpiresAt, Subject: args.Subject, Note: args.Note, Operator: args.Operator, Replace: args.Replace}
		if args.Algorithm != "" {
			var ok bool
			if m.Alg, ok = tsig.ParseAlg(args.Algorithm); !ok {
				return nil, &AdminError{KindBadRequest, fmt.Sprintf("algorithm %q is unknown; hmac-sha256, hmac-sha384 and hmac-sha512 are good ones", args.Algorithm)}
			}
		}
		if err := checkEnd(args.ExpiresAt); err != nil {
			return nil, err
		}
		for _, f := range []struct {
			name, text string
			to         *[]byte
			size       int
		}{{"secret", args.SecretHex, &m.Secret, 0}, {"ed25519", args.Ed25519, &m.Ed25519, 32}, {"x25519", args.X25519, &m.X25519, 32}} {
			b, err := hexArg(f.name, f.text, f.size)
			if err != nil {
				return nil, err
			}
			*f.to = b
		}
		return keyResult(true)(a.State.Mint(ctx, m))
	}),
	"tsig.revoke": verb(func(ctx context.Context, a *Admin, args NameArgs) (any, error) {
		return keyResult(false)(a.State.Revoke(ctx, args.Name))
	}),
	"tsig.unrevoke": verb(func(ctx context.Context, a *Admin, args NameArgs) (any, error) {
		return keyResult(false)(a.State.Unrevoke(ctx, args.Name))
	}),
	"tsig.extend": verb(func(ctx context.Context, a *Admin, args ExtendArgs) (any, error) {
		if err := checkEnd(args.ExpiresAt); err != nil {
			return nil, err
		}
		return keyResult(false)(a.State.Extend(ctx, args.Name, args.ExpiresAt))
	}),
	"lock.add": verb(func(ctx context.Context, a *Admin, args NameArgs) (any, error) {
		return struct{}{}, a.State.Lock(ctx, args.Name, args.Note)
	}),
	"lock.remove": verb(func(ctx context.Context, a *Admin, args NameArgs) (any, error) {
		return struct{}{}, a.State.Unlock(ctx, args.Name)
	}),
	"lock.list": verb(func(_ context.Context, a *Admin, _ struct{}) (any, error) {
		infos := []LockInfo{}
		for _, l := range a.State.Locks() {
			infos = append(infos, LockInfo{l.Name, hex.EncodeToString(l.Ed25519), l.Note, l.AtSec})
		}
		return infos, nil
	}),
	"deny.add": verb(func(ctx context.Context, a *Admin, args DenyInfo) (any, error) {
		return struct{}{}, a.State.Deny(ctx, auth.DenyKind(args.Kind), args.Value, args.Note)
	}),
	"deny.remove": verb(func(ctx context.Context, a *Admin, args DenyInfo) (any, error) {
		return struct{}{}, a.State.Allow(ctx, auth.DenyKind(args.Kind), args.Value)
	}),
	"deny.list": verb(func(_ context.Context, a *Admin, _ struct{}) (any, error) {
		infos := []DenyInfo{}
		for _, d := range a.State.Denied() {
			infos = append(infos, DenyInfo{string(d.Kind), d.Value, d.Note, d.AtSec})
		}
		return infos, nil
	}),

	"token.issue": verb(func(ctx context.Context, a *Admin, args TokenArgs) (any, error) {
		r, err := args.request()
		if err != nil {
			return nil, err
		}
		text, t, err := a.State.IssueToken(ctx, r)
		if err != nil {
			return nil, err
		}
		return tokenInfo(t, text), nil
	}),
	"token.rotate": verb(func(ctx context.Context, a *Admin, args TokenArgs) (any, error) {
		r, err := args.request()
		if err != nil {
			return nil, err
		}
		text, t, err := a.State.RotateToken(ctx, r)
		if err != nil {
			return nil, err
		}
		return tokenInfo(t, text), nil
	}),
	"token.list": verb(func(_ context.Context, a *Admin, args ListTokensArgs) (any, error) {
		return tokenInfos(a.State.ListTokens(args.Subject, args.Revoked)), nil
	}),
	"token.revoke": verb(func(ctx context.Context, a *Admin, args NameArgs) (any, error) {
		ts, err := a.State.RevokeToken(ctx, args.Name)
		if err != nil {
			return nil, err
		}
		return tokenInfos(ts), nil
	}),

	"peers.list": verb(func(_ context.Context, a *Admin, _ struct{}) (any, error) {
		if a.Peers == nil {
			return nil, &AdminError{KindAway, "the node does not run"}
		}
		return a.Peers()
	}),

	"record.put":    verb(func(ctx context.Context, a *Admin, args RecordArgs) (any, error) { return a.record(ctx, args, true) }),
	"record.delete": verb(func(ctx context.Context, a *Admin, args RecordArgs) (any, error) { return a.record(ctx, args, false) }),
}

func checkEnd(sec int64) error {
	if sec < 0 || sec > yearsMaxSec {
		return &AdminError{KindBadRequest, fmt.Sprintf("expires_at %d is no time in Unix seconds", sec)}
	}
	return nil
}

func hexArg(name, text string, size int) ([]byte, error) {
	if text == "" {
		return nil, nil
	}
	b, err := hex.DecodeString(text)
	if err != nil {
		return nil, &AdminError{KindBadRequest, name + ": not valid hex"}
	}
	if size > 0 && len(b) != size {
		return nil, &AdminError{KindBadRequest, fmt.Sprintf("%s: expected %d bytes, got %d", name, size, len(b))}
	}
	return b, nil
}

func keyResult(secrets bool) func(k *tsig.Key, err error) (any, error) {
	return func(k *tsig.Key, err error) (any, error) {
		if err != nil {
			return nil, err
		}
		return keyInfo(k, secrets), nil
	}
}

func keyInfo(k *tsig.Key, secrets bool) KeyInfo {
	i := KeyInfo{Name: wire.Text(k.Name), Algorithm: k.Alg.String(), CreatedAt: k.CreatedAtSec, ExpiresAt: k.ExpiresAtSec, Revoked: k.Revoked, Live: k.Live(clock.NowMs() / 1000),
		Operator: k.Operator, Subject: k.Subject, Ed25519: hex.EncodeToString(k.Ed25519), X25519: hex.EncodeToString(k.X25519), Note: k.Note, Scopes: []string{}}
	for n := range k.Scopes {
		i.Scopes = append(i.Scopes, k.Scopes[n].String())
	}
	if secrets {
		i.SecretHex, i.SecretBase64 = hex.EncodeToString(k.Secret), base64.StdEncoding.EncodeToString(k.Secret)
	}
	return i
}

func tokenInfo(t *auth.Token, text string) TokenInfo {
	i := TokenInfo{Token: text, TokenHash: t.Hash.String(), Subject: t.Subject, SubjectType: t.Type, RatePerSec: t.RatePerSec, Burst: t.Burst, IssuedAt: t.IssuedAtSec,
		Issuer: t.Issuer, Note: t.Note, Live: t.Live(clock.NowMs() / 1000)}
	if t.Hash12 != "" {
		i.Hash12 = &t.Hash12
	}
	if t.ExpiresAtSec != 0 {
		i.ExpiresAt = &t.ExpiresAtSec
	}
	if t.RevokedAtSec != 0 {
		i.RevokedAt = &t.RevokedAtSec
	}
	return i
}

func tokenInfos(ts []*auth.Token) []TokenInfo {
	infos := []TokenInfo{}
	for _, t := range ts {
		infos = append(infos, tokenInfo(t, ""))
	}
	return infos
}

func (args *TokenArgs) request() (auth.TokenRequest, error) {
	if err := checkEnd(args.ExpiresAt); err != nil {
		return auth.TokenRequest{}, err
	}
	x25519, err := hexArg("x25519", args.X25519, 32)
	return auth.TokenRequest{Subject: args.Subject, RatePerSec: args.RatePerSec, Burst: args.Burst, ExpiresAtSec: args.ExpiresAt, Issuer: args.Issuer, Note: args.Note, X25519: x25519}, err
}

// record puts or deletes with the operator's rights: no scope, no quota.
func (a *Admin) record(ctx context.Context, args RecordArgs, put bool) (any, error) {
	if a.Store == nil {
		return nil, &AdminError{KindAway, "records can be changed only while the node runs"}
	}
	name, err := wire.AppendName(nil, args.Name)
	if err != nil {
		return nil, &AdminError{KindBadRequest, fmt.Sprintf("record name %q: %v", args.Name, err)}
	}
	op := record.Op{Kind: record.OpDeleteRRset, Name: wire.AppendLower(nil, name), MayDelete: true}
	if args.Value != nil {
		if i := slices.IndexFunc([]byte(*args.Value), func(c byte) bool { return c < 0x20 || c == 0x7f || c == '"' }); i >= 0 {
			return nil, &AdminError{KindBadRequest, fmt.Sprintf("record value: byte %d is a quote or a control character", i)} // http.md 5
		}
		op.Kind, op.RDATA = record.OpDelete, record.AppendRDATA(nil, []byte(*args.Value))
		if len(op.RDATA) > 65535 {
			return nil, &AdminError{KindBadRequest, "record value: it does not fit an RR"}
		}
	}
	if put {
		if args.Value == nil {
			return nil, &AdminError{KindBadRequest, "record value: there is none"}
		}
		op.Kind, op.TTLSec = record.OpAdd, args.TTLSec
		if op.TTLSec == 0 {
			op.TTLSec = operatorTTLSec
		}
	}
	o, err := a.Store(ctx, &record.Request{Source: record.SourceOperator, Ops: []record.Op{op}})
	switch {
	case err != nil:
		return nil, err
	case o.Code == record.CodeAbsent:
		return nil, &AdminError{KindNotFound, "nothing like that is stored at " + args.Name}
	case !o.Code.OK():
		return nil, &AdminError{KindRefused, fmt.Sprintf("the record was not stored: %s", o.Code)}
	}
	return RecordResult{o.Code.String(), o.Applied}, nil
}
