package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dnsmesh/dmpd/controlplane/auth"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/snapshot"
)

func newAdmin(t *testing.T, store func(context.Context, *record.Request) (snapshot.Outcome, error)) (*Admin, *AdminClient) {
	t.Helper()
	// Longer than a socket's name may be: state folders are where operators put them.
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := auth.Open(auth.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	a := &Admin{State: s, Store: store}
	if err := a.Listen(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); s.Close() })
	return a, &AdminClient{Dir: dir}
}

func kindOf(err error) ErrorKind {
	var a *AdminError
	if errors.As(err, &a) {
		return a.Kind
	}
	return ""
}

func TestAdminVerbs(t *testing.T) {
	t.Parallel()
	_, c := newAdmin(t, nil)
	ctx := context.Background()
	info, err := os.Stat(filepath.Join(c.Dir, adminSocket))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("socket: %v, %v", info, err)
	}
	var k KeyInfo
	mint := MintArgs{Name: "op.mesh.test", Scopes: []string{"mesh.test"}, Operator: true, Note: "n"}
	if err := c.Call(ctx, "tsig.mint", mint, &k); err != nil {
		t.Fatal(err)
	}
	if k.Name != "op.mesh.test" || len(k.SecretHex) != 64 || !k.Live || !k.Operator || k.Scopes[0] != "mesh.test" {
		t.Fatalf("%+v", k)
	}
	if err := c.Call(ctx, "tsig.mint", mint, nil); kindOf(err) != KindBadRequest {
		t.Fatal("minted over a key that is there:", err)
	}
	var ks []KeyInfo
	if err := c.Call(ctx, "tsig.list", ListKeysArgs{}, &ks); err != nil || len(ks) != 1 || ks[0].SecretHex != "" || ks[0].SecretBase64 != "" {
		t.Fatalf("%+v, %v: a list without secrets", ks, err)
	}
	if err := c.Call(ctx, "tsig.show", NameArgs{Name: "OP.mesh.test.", Secrets: true}, &ks[0]); err != nil || ks[0].SecretHex != k.SecretHex {
		t.Fatalf("%+v, %v", ks[0], err)
	}
	if err := c.Call(ctx, "tsig.extend", ExtendArgs{"op.mesh.test", 1}, &ks[0]); err != nil || ks[0].Live {
		t.Fatalf("%+v, %v: it ended in 1970", ks[0], err)
	}
	if err := c.Call(ctx, "tsig.extend", ExtendArgs{"op.mesh.test", -1}, nil); kindOf(err) != KindBadRequest {
		t.Fatal(err)
	}
	for _, v := range []string{"tsig.revoke", "tsig.unrevoke"} {
		if err := c.Call(ctx, v, NameArgs{Name: "op.mesh.test"}, &ks[0]); err != nil || ks[0].Revoked != (v == "tsig.revoke") {
			t.Fatalf("%s: %+v, %v", v, ks[0], err)
		}
		if err := c.Call(ctx, v, NameArgs{Name: "nobody.mesh.test"}, nil); kindOf(err) != KindNotFound {
			t.Fatal(v, err)
		}
	}
	var tok TokenInfo
	if err := c.Call(ctx, "token.issue", TokenArgs{Subject: "Alice@mesh.test", RatePerSec: 1, Burst: 2, Issuer: "admin:x"}, &tok); err != nil || len(tok.Token) != 59 || tok.Subject != "alice@mesh.test" {
		t.Fatalf("%+v, %v", tok, err)
	}
	var ts []TokenInfo
	if err := c.Call(ctx, "token.list", ListTokensArgs{}, &ts); err != nil || len(ts) != 1 || ts[0].Token != "" || ts[0].TokenHash != tok.TokenHash {
		t.Fatalf("%+v, %v", ts, err)
	}
	if err := c.Call(ctx, "token.revoke", NameArgs{Name: tok.TokenHash[:8]}, &ts); err != nil || ts[0].TokenHash != tok.TokenHash {
		t.Fatalf("%+v, %v", ts, err)
	}
	if err := c.Call(ctx, "lock.add", NameArgs{Name: "bob@mesh.test", Note: "x"}, nil); err != nil {
		t.Fatal(err)
	}
	var ls []LockInfo
	if err := c.Call(ctx, "lock.list", nil, &ls); err != nil || len(ls) != 1 || ls[0].Name != "bob@mesh.test" {
		t.Fatalf("%+v, %v", ls, err)
	}
	if err := c.Call(ctx, "deny.add", DenyInfo{Kind: "domain", Value: "bad.test"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Call(ctx, "deny.add", DenyInfo{Kind: "planet", Value: "mars"}, nil); kindOf(err) != KindBadRequest {
		t.Fatal(err)
	}
	if err := c.Call(ctx, "nonsense", nil, nil); kindOf(err) != KindBadRequest {
		t.Fatal(err)
	}
	if err := c.Call(ctx, "tsig.revoke", map[string]string{"name": "op.mesh.test", "colour": "red"}, nil); kindOf(err) != KindBadRequest {
		t.Fatal("an argument was passed over:", err)
	}
	if err := c.Call(ctx, "record.put", RecordArgs{Name: "a.mesh.test", Value: new(string)}, nil); kindOf(err) != KindAway {
		t.Fatal(err)
	}
}

func TestAdminRecords(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var got []record.Op
	outcome, failure := snapshot.Outcome{Code: record.CodeStored, Applied: 1}, error(nil)
	_, c := newAdmin(t, func(_ context.Context, r *record.Request) (snapshot.Outcome, error) {
		mu.Lock()
		defer mu.Unlock()
		if r.Source != record.SourceOperator {
			t.Error("source", r.Source)
		}
		got = append(got, r.Ops...)
		return outcome, failure
	})
	set := func(code record.Code, err error) { mu.Lock(); outcome.Code, failure = code, err; mu.Unlock() }
	ctx := context.Background()
	value := "v=dmp1;t=test"
	var res RecordResult
	if err := c.Call(ctx, "record.put", RecordArgs{Name: "Hello.Mesh.test.", Value: &value}, &res); err != nil || res.Applied != 1 {
		t.Fatal(res, err)
	}
	if op := got[0]; op.Kind != record.OpAdd || string(op.Name) != "\x05hello\x04mesh\x04test\x00" || op.TTLSec != 300 || !op.MayDelete || string(op.RDATA[1:]) != value {
		t.Fatalf("%+v", op)
	}
	for _, bad := range []string{"a\"b", "a\nb", "\x7f"} {
		if err := c.Call(ctx, "record.put", RecordArgs{Name: "a.test", Value: &bad}, nil); kindOf(err) != KindBadRequest {
			t.Fatalf("%q: %v", bad, err)
		}
	}
	if err := c.Call(ctx, "record.put", RecordArgs{Name: "a..test", Value: &value}, nil); kindOf(err) != KindBadRequest {
		t.Fatal(err)
	}
	for _, x := range []struct {
		code record.Code
		err  error
		kind ErrorKind
	}{{record.CodeAbsent, nil, KindNotFound}, {record.CodeFull, nil, KindRefused}, {record.CodeStored, errAway, KindAway}, {record.CodeStored, errUnknown, KindAway}, {record.CodeStored, io.ErrUnexpectedEOF, KindFailed}} {
		set(x.code, x.err)
		if err := c.Call(ctx, "record.delete", RecordArgs{Name: "a.test"}, nil); kindOf(err) != x.kind {
			t.Fatalf("%v, %v: %v", x.code, x.err, err)
		}
	}
}

// TestAdminHangs: clients that say nothing, say nonsense or go away take no more than their slot, and Close ends them all.
func TestAdminHangs(t *testing.T) {
	t.Parallel()
	started := make(chan struct{})
	a, c := newAdmin(t, func(ctx context.Context, _ *record.Request) (snapshot.Outcome, error) {
		close(started)
		<-ctx.Done()
		return snapshot.Outcome{}, ctx.Err()
	})
	dial := func() net.Conn {
		short, done, err := shortPath(filepath.Join(c.Dir, adminSocket))
		if err != nil {
			t.Fatal(err)
		}
		defer done()
		conn, err := net.Dial("unix", short)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	silent := dial()
	defer silent.Close()
	rude := dial()
	defer rude.Close()
	if _, err := rude.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	var resp adminResponse
	if err := json.NewDecoder(rude).Decode(&resp); err != nil || resp.Error == nil || resp.Error.Kind != KindBadRequest {
		t.Fatalf("%+v, %v", resp, err)
	}
	failed := make(chan error, 1)
	go func() { failed <- c.Call(context.Background(), "record.delete", RecordArgs{Name: "a.test"}, nil) }()
	<-started
	closed := make(chan struct{})
	go func() { a.Close(); close(closed) }()
	for _, wait := range []func() bool{
		func() bool { return <-failed != nil },
		func() bool { <-closed; return true },
	} {
		ok := make(chan bool, 1)
		go func() { ok <- wait() }()
		select {
		case good := <-ok:
			if !good {
				t.Fatal("a verb that was given up succeeded")
			}
		case <-time.After(time.Minute):
			t.Fatal("Close hangs")
		}
	}
	if err := c.Call(context.Background(), "ping", nil, nil); !errors.Is(err, ErrNoNode) {
		t.Fatal(err)
	}
}
