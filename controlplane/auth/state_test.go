package auth

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/snapshot"
	"github.com/dnsmesh/dmpd/internal/tsig"
	"github.com/dnsmesh/dmpd/internal/vfs"
	"github.com/dnsmesh/dmpd/internal/vfs/vfstest"
	"github.com/dnsmesh/dmpd/internal/wire"
)

const testNowMs = 1_700_000_000_000

func openSim(fs vfs.FS, reaches uint64) (*State, error) {
	return Open(Options{FS: fs, Dir: "control", NowMs: func() int64 { return testNowMs }, SegmentMax: 16 << 10, Reaches: reaches, compactAt: 8 << 10})
}

// crashModel is what was answered: what a state must hold after a crash, but for the one change that was under way.
type crashModel struct {
	keys   map[string][]byte    // text name -> secret
	gone   map[string]bool      // revoked
	tokens map[string]TokenHash // subject -> live token
}

// check compares a state with the model; pending is the subject whose last change was not answered.
func (m *crashModel) check(s *State, pending string) error {
	for name, secret := range m.keys {
		if pending != "" && strings.HasPrefix(name, strings.Split(pending, "@")[0]+"-") {
			continue
		}
		k, err := s.Key(name)
		if err != nil {
			return fmt.Errorf("answered key %s is lost", name)
		}
		if !bytes.Equal(k.Secret, secret) || k.Revoked != m.gone[name] {
			return fmt.Errorf("key %s: revoked %v, answered %v; secret as answered: %v", name, k.Revoked, m.gone[name], bytes.Equal(k.Secret, secret))
		}
	}
	for subject, h := range m.tokens {
		if subject == pending {
			continue
		}
		live := 0
		for _, t := range s.ListTokens(subject, false) {
			if live++; t.Hash != h {
				return fmt.Errorf("token of %s is another", subject)
			}
		}
		if (h == TokenHash{}) != (live == 0) || live > 1 {
			return fmt.Errorf("%d live tokens of %s", live, subject)
		}
	}
	return nil
}

var errPower = errors.New("power cut")

// An answered mint or revoke survives a crash at any step: appended, synced, snapshot half written, segment half made.
func TestCrash(t *testing.T) {
	ctx := context.Background()
	for seedN := range uint64(1000) {
		rng := rand.New(rand.NewPCG(seedN, 1))
		fs := vfstest.New(seedN)
		m := &crashModel{map[string][]byte{}, map[string]bool{}, map[string]TokenHash{}}
		reaches := uint64(0)
		for round := range 3 {
			s, err := openSim(fs, reaches)
			if err != nil {
				t.Fatalf("seed %d, round %d: %v", seedN, round, err)
			}
			left := 1 + rng.IntN(150)
			fs.Fault = func(string, string) error {
				if left--; left < 0 {
					return errPower
				}
				return nil
			}
			pending := ""
			for range 60 {
				user := rng.IntN(5)
				sub := Subject{fmt.Sprintf("u%d", user), "a.test"}
				if err = m.step(ctx, s, rng, sub, user); err != nil {
					pending = sub.String()
					break
				}
			}
			if err != nil && !errors.Is(err, errPower) {
				t.Fatalf("seed %d, round %d: %v", seedN, round, err)
			}
			reaches = s.Committed()
			fs = fs.Crash()
			s, err = openSim(fs, reaches)
			if err != nil {
				t.Fatalf("seed %d, round %d, after the crash: %v", seedN, round, err)
			}
			if err := m.check(s, pending); err != nil {
				t.Fatalf("seed %d, round %d: %v", seedN, round, err)
			}
			m.forget(s, pending)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func (m *crashModel) step(ctx context.Context, s *State, rng *rand.Rand, sub Subject, user int) error {
	spk := []byte(seed(byte(user)).Public().(ed25519.PublicKey))
	switch rng.IntN(4) {
	case 0, 1:
		k, err := s.RegisterKey(ctx, Registration{Subject: sub, Ed25519: spk, Zone: "z.test", LifeSec: 1000})
		if err == nil {
			m.keys[wire.Text(k.Name)], m.gone[wire.Text(k.Name)] = k.Secret, false
		}
		return err
	case 2:
		_, tok, err := s.RegisterToken(ctx, sub, spk, 1000, 10, 50, netip.Addr{})
		if err == nil {
			m.tokens[sub.String()] = tok.Hash
		}
		return err
	}
	for name := range m.keys {
		if strings.HasPrefix(name, sub.Local+"-") {
			_, err := s.Revoke(ctx, name)
			if err == nil {
				m.gone[name] = true
			}
			return err
		}
	}
	return nil
}

// forget takes what a crash made of the change under way as the truth from here on.
func (m *crashModel) forget(s *State, pending string) {
	if pending == "" {
		return
	}
	for _, k := range s.ListKeys() {
		if k.Subject == pending {
			m.keys[wire.Text(k.Name)], m.gone[wire.Text(k.Name)] = k.Secret, k.Revoked
		}
	}
	delete(m.tokens, pending)
	for _, t := range s.ListTokens(pending, false) {
		m.tokens[pending] = t.Hash
	}
}

// A disk error drops the change, says so and leaves memory as it was; the next change goes through.
func TestDiskError(t *testing.T) {
	ctx := context.Background()
	fs := vfstest.New(1)
	s, err := openSim(fs, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range []string{"write", "sync"} {
		fs.Fault = func(o, _ string) error {
			if o == op {
				return errPower
			}
			return nil
		}
		if _, err := s.Mint(ctx, MintRequest{Name: op + ".test", Scopes: []string{"z.test"}}); !errors.Is(err, errPower) {
			t.Errorf("%s: %v", op, err)
		}
		if len(s.ListKeys()) != 0 {
			t.Errorf("%s: a dropped key is visible", op)
		}
	}
	fs.Fault = nil
	if _, err := s.Mint(ctx, MintRequest{Name: "k.test", Scopes: []string{"z.test"}}); err != nil {
		t.Fatal(err)
	}
	if s, err = openSim(fs.Crash(), s.Committed()); err != nil || len(s.ListKeys()) != 1 {
		t.Errorf("%v, %d keys", err, len(s.ListKeys()))
	}
}

// What cannot be read is an error, never an empty state.
func TestUnreadable(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	open := func(o Options) (*State, error) {
		o.Dir, o.NowMs = dir, func() int64 { return testNowMs }
		return Open(o)
	}
	if _, err := open(Options{DataExists: true}); !errors.Is(err, ErrMissing) {
		t.Errorf("missing beside data: %v", err)
	}
	s, err := open(Options{DataExists: true, Fresh: true})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if _, err := s.Mint(ctx, MintRequest{Name: fmt.Sprintf("k%d.test", i), Scopes: []string{"z.test"}}); err != nil {
			t.Fatal(err)
		}
	}
	lsn, entries := s.Snapshot()
	epoch := s.Epoch()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	logs, _ := filepath.Glob(filepath.Join(dir, "state-*.log"))
	if len(logs) != 1 {
		t.Fatal(logs)
	}
	for _, path := range logs {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", path, info.Mode(), err)
		}
	}
	good, err := os.ReadFile(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	used := bytes.TrimRight(good, "\x00")
	for off := 4096; off < len(used)-64; off += 131 {
		bad := bytes.Clone(good)
		bad[off] ^= 0x10
		if err := os.WriteFile(logs[0], bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := open(Options{DataExists: true, Reaches: lsn}); err == nil {
			s.Close()
			// A byte of padding says nothing; all keys must be there.
			if len(s.ListKeys()) != 20 {
				t.Fatalf("flip at %d: opened with %d of 20 keys", off, len(s.ListKeys()))
			}
		} else if !errors.Is(err, journal.ErrCorrupt) && !errors.Is(err, tsig.ErrState) {
			t.Errorf("flip at %d: %v", off, err)
		}
		more, _ := filepath.Glob(filepath.Join(dir, "state-*.log"))
		for _, p := range more {
			if p != logs[0] {
				os.Remove(p)
			}
		}
	}
	if err := os.Remove(logs[0]); err != nil {
		t.Fatal(err)
	}
	if err := snapshot.WriteState(vfs.OS, dir, LogName, lsn, epoch, entries); err != nil {
		t.Fatal(err)
	}
	if s, err = open(Options{DataExists: true}); err != nil || len(s.ListKeys()) != 20 {
		t.Fatalf("from the snapshot alone: %v", err)
	}
	s.Close()
	snap := snapshot.Path(dir, LogName, lsn)
	b, err := os.ReadFile(snap)
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int{0, 9, 13, 20, 50, len(b) - 1} {
		bad := bytes.Clone(b)
		bad[off] ^= 1
		if err := os.WriteFile(snap, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := open(Options{DataExists: true}); err == nil && off != 9 { // 9 is the format number; what counts is the lowest reader
			s.Close()
			t.Errorf("snapshot with a flip at %d is taken", off)
		} else if err == nil {
			s.Close()
		}
	}
}

// Everything comes back from the log, and from a snapshot, as it was.
func TestRoundTrip(t *testing.T) {
	ctx := context.Background()
	fs := vfstest.New(1)
	s, err := openSim(fs, 0)
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	spk := []byte(seed(1).Public().(ed25519.PublicKey))
	for i := range 30 {
		_, err := s.RegisterKey(ctx, Registration{Subject: Subject{fmt.Sprintf("u%d", i), "a.test"}, Ed25519: spk, X25519: bytes.Repeat([]byte{5}, 32), Zone: "z.test"})
		must(err)
		_, _, err = s.RegisterToken(ctx, Subject{fmt.Sprintf("u%d", i), "a.test"}, spk, 0, 1.5, 3, netip.Addr{})
		must(err)
	}
	must(s.Lock(ctx, "u1@z.test", "kept"))
	must(s.Lock(ctx, "u2@z.test", ""))
	must(s.Unlock(ctx, "u2@z.test"))
	must(s.Deny(ctx, DenyDomain, "Bad.test.", "spam"))
	must(s.Deny(ctx, DenySubject, "x@y.test", ""))
	must(s.Allow(ctx, DenySubject, "x@y.test"))
	must(s.SetPolicy(ctx, "grace_sec", "60"))
	k, err := s.Extend(ctx, wire.Text(s.ListKeys()[3].Name), 5_000_000_000)
	must(err)
	if k.ExpiresAtSec != 5_000_000_000 {
		t.Error("Extend")
	}
	_, want := s.Snapshot()
	must(s.Close())
	if lsn, _, _, ok, err := snapshot.ReadState(fs, "control", LogName); !ok || err != nil || lsn == 0 {
		t.Errorf("no snapshot was made: %v", err)
	}
	s, err = openSim(fs, 0)
	must(err)
	if _, got := s.Snapshot(); !bytes.Equal(got, want) {
		t.Error("the state came back otherwise")
	}
	if s.graceSec() != 60 || len(s.Locks()) != 1 || len(s.Denied()) != 1 || len(s.Owners()) != 60 || len(s.boxes) != 1 {
		t.Errorf("grace %d, %d locks, %d denied, %d owners", s.graceSec(), len(s.Locks()), len(s.Denied()), len(s.Owners()))
	}
	if err := s.apply(tsig.AppendState(nil, kindPolicy+1, []byte("{}"))); !errors.Is(err, tsig.ErrState) {
		t.Errorf("an unknown entry is passed over: %v", err)
	}
}

// Registering over and over does not grow the state for ever.
func TestPrune(t *testing.T) {
	ctx := context.Background()
	fs := vfstest.New(1)
	nowMs := int64(testNowMs)
	s, err := Open(Options{FS: fs, Dir: "control", NowMs: func() int64 { return nowMs }, SegmentMax: 16 << 10, compactAt: 8 << 10})
	if err != nil {
		t.Fatal(err)
	}
	spk := []byte(seed(1).Public().(ed25519.PublicKey))
	if _, _, err := s.IssueToken(ctx, TokenRequest{Subject: "op@a.test", ExpiresAtSec: testNowMs/1000 + 1}); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		sub := Subject{fmt.Sprintf("u%d", i), "a.test"}
		if _, _, err := s.RegisterToken(ctx, sub, spk, 60, 10, 50, netip.Addr{}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.RegisterKey(ctx, Registration{Subject: sub, Ed25519: spk, Zone: "z.test", LifeSec: 60}); err != nil {
			t.Fatal(err)
		}
		nowMs += 86400_000
	}
	if n := len(s.ListTokens("", true)); n < GraceSec/86400 || n > 100 || len(s.ListKeys()) > 100 || len(s.Owners()) > 200 {
		t.Errorf("%d tokens, %d keys, %d owners are kept", n, len(s.ListKeys()), len(s.Owners()))
	}
	if len(s.ListTokens("op@a.test", true)) != 1 {
		t.Error("an operator's token was forgotten")
	}
}

func TestMintErrors(t *testing.T) {
	ctx := context.Background()
	s, err := openSim(vfstest.New(1), 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []MintRequest{
		{Name: "", Scopes: []string{"z.test"}}, {Name: "a..b", Scopes: []string{"z.test"}}, {Name: "k.test"}, {Name: "k.test", Scopes: []string{"."}},
		{Name: "k.test", Scopes: []string{"z.test"}, Subject: "nobody"}, {Name: "k.test", Scopes: []string{"z.test"}, Ed25519: []byte{1}},
	} {
		if _, err := s.Mint(ctx, m); !errors.Is(err, ErrBadRequest) {
			t.Errorf("%+v: %v", m, err)
		}
	}
	if _, err := s.Revoke(ctx, "k.test"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if err := s.Deny(ctx, DenyKey, "abc", ""); !errors.Is(err, ErrBadRequest) {
		t.Error(err)
	}
	k, err := s.Mint(ctx, MintRequest{Name: "K.Test.", Alg: tsig.SHA512, Secret: []byte("secret"), Scopes: []string{"b.test", "a.test", "b.test"}, Operator: true})
	if err != nil || wire.Text(k.Name) != "k.test" || !k.Operator || len(k.Scopes) != 2 || k.Alg != tsig.SHA512 || string(k.Secret) != "secret" {
		t.Fatalf("%+v %v", k, err)
	}
	if _, err := s.Mint(ctx, MintRequest{Name: "k.test", Scopes: []string{"z.test"}}); !errors.Is(err, ErrBadRequest) {
		t.Error("a key was replaced unasked")
	}
}

// http.md 6.2.
func TestClassify(t *testing.T) {
	h := hex.EncodeToString
	hash := HashToken("alice")
	h16, h12 := h(hash[:8]), h(hash[:6])
	alice := &Token{Subject: "alice@a.test", Hash12: "0123456789ab"}
	for name, want := range map[string]struct {
		class Class
		own   bool
	}{
		"": {}, "x": {}, "a..b": {}, "_dnsmesh-seen.a.test": {}, "a_b.c.d": {}, "ä.a.test": {},
		"dmp.alice.a.test": {ClassOwner, true}, "dmp.bob.a.test": {ClassOwner, false}, "dmp.alice.b.test": {ClassOwner, false}, "dmp.alice.test": {ClassOperator, false},
		"id-" + h16 + ".a.test": {ClassOwner, true}, "id-" + h16 + ".b.test": {ClassOwner, false}, "id-" + h12 + ".a.test": {ClassOperator, false},
		"id-0123456789abcdef.a.test":     {ClassOwner, false},
		"prekeys.id-" + h12 + ".a.test":  {ClassOwner, true},
		"prekeys.id-" + h16 + ".a.test":  {ClassOperator, false},
		"rotate.dmp.id-" + h12 + ".a.b":  {ClassOperator, false},
		"rotate.dmp.alice.a.test":        {ClassOwner, true},
		"rotate.dmp.bob.a.test":          {ClassOwner, false},
		"pk-7.0123456789ab.any.zone":     {ClassOwner, true},
		"pk-7.0123456789ac.any.zone":     {ClassOwner, false},
		"pk-x.0123456789ab.any.zone":     {ClassOperator, false},
		"slot-3.mb-0123456789ab.a.test":  {ClassPool, false},
		"slot-.mb-0123456789ab.a.test":   {ClassOperator, false},
		"slot-3.mb-0123456789ag.a.test":  {ClassOperator, false},
		"chunk-1-0123456789ab.a.test":    {ClassPool, false},
		"chunk-1-0123456789ab.test":      {ClassOperator, false},
		"claim-1.mb-0123456789ab.a.test": {ClassOperator, false},
		"cluster.a.test":                 {ClassOperator, false},
	} {
		class, sc := classify(name)
		if class != want.class || class == ClassOwner && sc.allows(alice) != want.own {
			t.Errorf("%s: %v", name, class)
		}
	}
}

// http.md 6.2 and 6.3: the order of decisions and what the audit says of whom.
func TestAuthorize(t *testing.T) {
	ctx := context.Background()
	n := newNode(t)
	text, tok, err := n.state.IssueToken(ctx, TokenRequest{Subject: "alice@a.test", RatePerSec: 1e-9, Burst: 3, Issuer: "admin:root"})
	if err != nil {
		t.Fatal(err)
	}
	if len(text) != 59 || !tokenShaped(text) || HashToken("dmp_v1_"+strings.Repeat("A", 52)).String() != "f6260ddc0c0e62ffadab1dc64f590f07528d3e6b05ca8b15874a1f697d6e1f5d" {
		t.Error("token format")
	}
	own, pool, other := "dmp.alice.a.test", "slot-1.mb-0123456789ab.a.test", "dmp.bob.a.test"
	for i, c := range []struct {
		token, name string
		del         bool
		want        Verdict
		event       string // and whether the row names the user; empty: no row
		named       bool
	}{
		{"dmp_v1_short", own, false, Unauthorized, "", false},
		{strings.ToLower(text), own, false, Unauthorized, "", false},
		{"dmp_v1_" + strings.Repeat("A", 52), own, false, Unauthorized, "rejected", false},
		{text, "cluster.a.test", false, Unauthorized, "rejected", false},
		{text, other, false, Unauthorized, "rejected", true},
		{text, pool, true, Unauthorized, "rejected", false},
		{text, own, false, Accepted, "used", true},
		{text, own, true, Accepted, "used", true},
		{text, pool, false, Accepted, "used", false},
		{text, pool, false, Throttled, "throttled", false},
		{text, own, false, Throttled, "throttled", true},
	} {
		before, _ := AuditTail(vfs.OS, n.dir, "", 1000)
		got := n.state.Authorize(c.token, c.name, c.del, netip.MustParseAddr("192.0.2.7"))
		rows, err := AuditTail(vfs.OS, n.dir, "", 1000)
		if err != nil || got.Verdict != c.want || len(rows)-len(before) != min(1, len(c.event)) {
			t.Fatalf("case %d: %+v, %d rows, %v", i, got, len(rows)-len(before), err)
		}
		if c.event == "" {
			continue
		}
		if r := rows[0]; r.Event != c.event || (r.Subject != "") != c.named || (r.TokenHash != "") != c.named || r.Remote != "192.0.2.7" || strings.Contains(r.Detail, "mb-") {
			t.Errorf("case %d: %+v", i, r)
		}
	}
	if got, err := n.state.RevokeToken(ctx, tok.Hash.String()[:8]); err != nil || len(got) != 1 {
		t.Fatal(err)
	}
	n.restart()
	if got := n.state.Authorize(text, own, false, netip.Addr{}); got.Verdict != Unauthorized {
		t.Error("a revoked token works after a restart")
	}
	files, _ := filepath.Glob(filepath.Join(n.dir, "*"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || bytes.Contains(b, []byte(text)) {
			t.Errorf("%s holds the token's text (%v)", f, err)
		}
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v", f, info.Mode())
		}
	}
}

func TestTokenAdmin(t *testing.T) {
	ctx := context.Background()
	n := newNode(t)
	first, _, err := n.state.IssueToken(ctx, TokenRequest{Subject: "alice@a.test", RatePerSec: 7, Burst: 9, X25519: bytes.Repeat([]byte{1}, 32)})
	if err != nil {
		t.Fatal(err)
	}
	second, rotated, err := n.state.RotateToken(ctx, TokenRequest{Subject: "Alice@a.test", Issuer: "admin:root:rotate"})
	if err != nil || rotated.RatePerSec != 7 || rotated.Burst != 9 || len(rotated.Hash12) != 12 {
		t.Fatalf("%+v %v", rotated, err)
	}
	own := "dmp.alice.a.test"
	if n.state.Authorize(first, own, false, netip.Addr{}).Verdict != Unauthorized || n.state.Authorize(second, own, false, netip.Addr{}).Verdict != Accepted {
		t.Error("after a rotation")
	}
	if got := n.state.ListTokens("", false); len(got) != 1 || len(n.state.ListTokens("alice@a.test", true)) != 2 {
		t.Errorf("%d live", len(got))
	}
	for target, want := range map[string]error{"": ErrNotFound, "bob@a.test": ErrNotFound, rotated.Hash.String()[:7]: ErrNotFound} {
		if _, err := n.state.RevokeToken(ctx, target); !errors.Is(err, want) {
			t.Errorf("revoke %q: %v", target, err)
		}
	}
	if _, _, err := n.state.RotateToken(ctx, TokenRequest{Subject: "bob@a.test"}); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if got, err := n.state.RevokeToken(ctx, "alice@a.test"); err != nil || len(got) != 1 {
		t.Error(err)
	}
	if !EqualToken("abc", "abc") || EqualToken("abc", "abd") || EqualToken("", "") || EqualToken("ab", "abc") {
		t.Error("EqualToken")
	}
	n.pass(0)
	// A token's end.
	text, _, err := n.state.IssueToken(ctx, TokenRequest{Subject: "alice@a.test", ExpiresAtSec: n.nowMs.Load()/1000 + 10})
	if err != nil {
		t.Fatal(err)
	}
	n.pass(9)
	if n.state.Authorize(text, own, false, netip.Addr{}).Verdict != Accepted {
		t.Error("one second before its end")
	}
	n.pass(1)
	if n.state.Authorize(text, own, false, netip.Addr{}).Verdict != Unauthorized {
		t.Error("at its end")
	}
}

func TestAuditRotation(t *testing.T) {
	dir := t.TempDir()
	a := OpenAudit(vfs.OS, dir, nil)
	a.max = 200
	for i := range 300 {
		a.Write(Event{Event: "used", Detail: fmt.Sprint(i)})
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "audit-*.jsonl"))
	rows, err := AuditTail(vfs.OS, dir, "used", 10)
	if err != nil || len(files) != auditFilesMax || len(rows) != 10 || rows[0].Detail != "299" || rows[9].Detail != "290" {
		t.Fatalf("%d files, %v, %v", len(files), rows, err)
	}
	// A crash cut the last line.
	b, _ := os.ReadFile(files[len(files)-1])
	if err := os.WriteFile(files[len(files)-1], b[:len(b)-5], 0o600); err != nil {
		t.Fatal(err)
	}
	if rows, err := AuditTail(vfs.OS, dir, "", 1); err != nil || rows[0].Detail != "298" {
		t.Errorf("%v %v", rows, err)
	}
}
