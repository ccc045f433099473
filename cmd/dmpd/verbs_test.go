package main

import (
	"bufio"
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/dnsmesh/dmpd/controlplane"
	"github.com/dnsmesh/dmpd/controlplane/auth"
	"github.com/dnsmesh/dmpd/internal/config"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/snapshot"
	"github.com/dnsmesh/dmpd/internal/vfs"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// holdEnv makes this test binary a process that holds a lock on a file as SQLite does, for TestImportRunning.
const holdEnv = "DMPD_TEST_HOLD"

func TestMain(m *testing.M) {
	for _, e := range os.Environ() { // a developer's own settings are no part of the tests
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, "DMP_") {
			os.Unsetenv(name)
		}
	}
	if path := os.Getenv(holdEnv); path != "" {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err == nil {
			err = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 128, Len: 1})
		}
		fmt.Println("held", err)
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// dmpd runs one command line in this process.
func dmpd(t *testing.T, want int, args ...string) string {
	t.Helper()
	var out, errOut bytes.Buffer
	if code := execute(args, strings.NewReader(""), &out, &errOut); code != want {
		t.Fatalf("dmpd %s: exit %d, want %d\n%s%s", strings.Join(args, " "), code, want, out.String(), errOut.String())
	}
	return out.String() + errOut.String()
}

func fromJSON[V any](t *testing.T, text string) (v V) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

func contains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Fatalf("%q is not in:\n%s", p, text)
		}
	}
}

func TestEveryCommandExplainsItself(t *testing.T) {
	t.Parallel()
	all := dmpd(t, exitOK, "help")
	script := dmpd(t, exitOK, "completion", "bash")
	page := dmpd(t, exitOK, "man")
	for _, c := range commands {
		contains(t, all, c.name, c.short)
		contains(t, page, roff(pageName(c)))
		contains(t, script, fmt.Sprintf("%q", c.name))
		text := dmpd(t, exitOK, append(strings.Fields(c.name), "--help")...)
		contains(t, text, "Usage: dmpd "+c.name, "Example:")
		dmpd(t, exitUsage, append(strings.Fields(c.name), "--no-such-flag")...)
	}
	dmpd(t, exitUsage, "frobnicate")
	for _, args := range [][]string{{"tsig", "--help"}, {"help", "tsig"}} {
		contains(t, dmpd(t, exitOK, args...), "Usage: dmpd tsig COMMAND", "mint", "Make a TSIG key")
	}
	contains(t, dmpd(t, exitUsage, "tsig"), "Usage: dmpd tsig COMMAND")
	contains(t, dmpd(t, exitUsage, "tsig", "frobnicate"), "no command")
	contains(t, dmpd(t, exitOK, "help", "tsig", "mint"), "Flags:", "-subject")

	dir := t.TempDir()
	dmpd(t, exitOK, "man", dir)
	dmpd(t, exitFailed, "man", filepath.Join(dir, "no", "such"))
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Log("SKIPPED in part: no groff to check the form of the pages with")
	}
	for _, c := range commands {
		file := filepath.Join(dir, pageName(c)+".1")
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		contains(t, string(b), roff(c.short), roff(c.example))
		// The flags that --help shows, which prints them with one hyphen.
		for _, m := range regexp.MustCompile(`(?m)^  -([a-z-]+)`).FindAllStringSubmatch(dmpd(t, exitOK, append(strings.Fields(c.name), "--help")...), -1) {
			contains(t, string(b), `.B \-\-`+roff(m[1]))
		}
		if groff != "" {
			if out, err := exec.Command(groff, "-man", "-ww", "-z", file).CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("%s: %v: %s", file, err, out)
			}
		}
	}
	if out, err := exec.Command("bash", "-n", "-c", script).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestKeysAndTokens(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := []string{"--state-dir", dir, "--domain", "mesh.test"}
	run := func(want int, args ...string) string { return dmpd(t, want, append(args, at...)...) }
	key := fromJSON[controlplane.KeyInfo](t, run(exitOK, "tsig", "mint", "--subject", "Alice@mesh.test", "--expires", "90d", "--json"))
	if len(key.SecretHex) != 64 || key.Subject != "alice@mesh.test" || len(key.Scopes) != 6 || key.ExpiresAt == 0 {
		t.Fatalf("%+v", key)
	}
	if list := run(exitOK, "tsig", "list", "--json"); strings.Contains(list, key.SecretHex) || !strings.Contains(list, key.Name) {
		t.Fatal(list)
	}
	if shown := run(exitOK, "tsig", "show", key.Name); strings.Contains(shown, key.SecretHex) {
		t.Fatal(shown)
	}
	contains(t, run(exitOK, "tsig", "show", "--secret", key.Name), key.SecretHex, key.SecretBase64)
	contains(t, run(exitOK, "tsig", "revoke", key.Name), "revoked")
	contains(t, run(exitOK, "tsig", "list", "--all"), "revoked")
	contains(t, run(exitOK, "tsig", "unrevoke", key.Name), "valid")
	contains(t, run(exitOK, "tsig", "extend", key.Name, "--by", "never"), "ends: -")
	contains(t, run(exitFailed, "tsig", "revoke", "nobody.mesh.test"), "no such entry")
	contains(t, run(exitUsage, "tsig", "mint", "--name", "x.mesh.test"), "--subject")
	contains(t, run(exitUsage, "tsig", "mint", "--subject", "a@b.test", "--expires", "soon"), "no duration")
	run(exitOK, "tsig", "lock", "bob@mesh.test", "--note", "lost")
	contains(t, run(exitOK, "tsig", "locks"), "bob@mesh.test", "lost")
	run(exitOK, "tsig", "unlock", "bob@mesh.test")
	run(exitOK, "tsig", "deny", "domain", "spam.test")
	contains(t, run(exitOK, "tsig", "denied"), "spam.test")
	run(exitOK, "tsig", "allow", "domain", "spam.test")
	run(exitUsage, "tsig", "deny", "planet", "mars")
	contains(t, run(exitUsage, "tsig", "deny", "key", "zz"), "64 hex digits")
	contains(t, run(exitUsage, "tsig", "mint", "--name", key.Name, "--scope", "mesh.test"), "--replace")

	file := filepath.Join(dir, "key.conf")
	if err := os.WriteFile(file, []byte("key \"xfer.mesh.test\" {\n\talgorithm hmac-sha512;\n\tsecret \"AAECAwQFBgcICQoLDA0ODw==\";\n};\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	contains(t, run(exitUsage, "tsig", "import", file), "--scope")
	run(exitOK, "tsig", "import", file, "--scope", "mesh.test")
	contains(t, run(exitOK, "tsig", "show", "xfer.mesh.test", "--secret"), "000102030405060708090a0b0c0d0e0f", "hmac-sha512")
	run(exitUsage, "tsig", "import", file, "--scope", "mesh.test") // it is there
	exported := filepath.Join(dir, "key.json")
	if err := os.WriteFile(exported, []byte(run(exitOK, "tsig", "show", key.Name, "--secret", "--json")), 0o600); err != nil {
		t.Fatal(err)
	}
	run(exitOK, "tsig", "import", exported, "--replace")

	// The reference's admin tool's words and JSON (http.md 16).
	tok := fromJSON[map[string]any](t, run(exitOK, "token", "issue", "dave@mesh.test", "--rate", "2.5", "--note", "n", "--json"))
	if tok["rate_per_sec"] != 2.5 || tok["rate_burst"] != 50.0 || tok["expires_at"] != nil || len(tok["token"].(string)) != 59 {
		t.Fatal(tok)
	}
	next := fromJSON[map[string]any](t, run(exitOK, "token", "rotate", "dave@mesh.test", "--json"))
	if next["rate_per_sec"] != 2.5 || next["token"] == tok["token"] {
		t.Fatal("the budget was lost, or the token kept:", next)
	}
	if ts := fromJSON[[]map[string]any](t, run(exitOK, "token", "list", "--include-revoked", "--json")); len(ts) != 2 {
		t.Fatal(ts)
	}
	run(exitOK, "token", "revoke", next["token_hash"].(string)[:12])
	run(exitFailed, "token", "revoke", "dave@mesh.test")
	contains(t, run(exitOK, "audit", "tail"), "tsig-minted", "issued", "revoked")
	if audit := run(exitOK, "audit", "tail", "--json", "--limit", "1000"); strings.Contains(audit, tok["token"].(string)) || strings.Contains(audit, key.SecretHex) {
		t.Fatal("a secret in the audit")
	}
	contains(t, dmpd(t, exitUsage, "tsig", "list", "--state-dir", filepath.Join(dir, "elsewhere")), "no state folder")
}

func TestRecords(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	run := func(want int, args ...string) string {
		return dmpd(t, want, append(args, "--state-dir", dir, "--domain", "mesh.test")...)
	}
	contains(t, run(exitOK, "record", "list", "--json"), "[]")
	contains(t, run(exitOK, "audit", "tail", "--json"), "[]")
	contains(t, run(exitUsage, "verify"), "no node's state")
	run(exitOK, "record", "put", "Hello.mesh.test.", "v=dmp1;t=one", "--ttl", "600")
	run(exitOK, "record", "put", "hello.mesh.test", "v=dmp1;t=two")
	got := fromJSON[[]recordInfo](t, run(exitOK, "record", "get", "HELLO.mesh.test", "--json"))
	if len(got) != 2 || got[0].Value != "v=dmp1;t=one" || got[1].Value != "v=dmp1;t=two" || got[0].Name != "hello.mesh.test" {
		t.Fatalf("%+v", got)
	}
	run(exitUsage, "record", "put", "hello.mesh.test", "x", "--ttl", "0")
	run(exitUsage, "record", "put", "hello..test", "x")
	run(exitUsage, "record", "list", "--limit", "-1")
	run(exitUsage, "record", "delete", "hello.mesh.test") // neither a value nor --every
	run(exitOK, "record", "delete", "hello.mesh.test", "v=dmp1;t=one")
	run(exitFailed, "record", "delete", "hello.mesh.test", "v=dmp1;t=one")
	contains(t, run(exitOK, "record", "list", "mesh.test", "--all"), "deleted", "v=dmp1;t=two")
	run(exitOK, "record", "delete", "hello.mesh.test", "--every")
	run(exitFailed, "record", "get", "hello.mesh.test")
	contains(t, run(exitFailed, "status"), "stopped")
	contains(t, run(exitOK, "verify"), "is good")
}

// TestOnline: with a node on the socket nothing is opened here; with a process that holds the folder but does not answer, its pid is said.
func TestOnline(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	control := filepath.Join(dir, "control")
	if err := os.Mkdir(control, 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := journal.Lock(filepath.Join(control, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	contains(t, dmpd(t, exitUsage, "tsig", "list", "--state-dir", dir), fmt.Sprint("process ", os.Getpid()))
	state, err := auth.Open(auth.Options{Dir: control})
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	admin := &controlplane.Admin{State: state}
	if err := admin.Listen(control); err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	dmpd(t, exitOK, "tsig", "mint", "--name", "op.mesh.test", "--scope", "mesh.test", "--state-dir", dir)
	if _, err := state.Key("op.mesh.test"); err != nil {
		t.Fatal(err)
	}
	dmpd(t, exitUsage, "import", "--state-dir", dir)
	dmpd(t, exitUsage, "restore", os.Args[0], "--state-dir", dir)
}

// One process of the two runs: the command says which, and what to do.
func TestOnePlane(t *testing.T) {
	t.Parallel()
	t.Run("data", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "data"), 0o700); err != nil {
			t.Fatal(err)
		}
		lock, err := journal.Lock(filepath.Join(dir, "data", "lock"))
		if err != nil {
			t.Fatal(err)
		}
		at := []string{"--state-dir", dir, "--domain", "mesh.test"}
		put := append([]string{"record", "put", "a.mesh.test", "v"}, at...)
		for _, args := range [][]string{put, append([]string{"record", "delete", "a.mesh.test", "v"}, at...)} {
			contains(t, dmpd(t, exitFailed, args...), fmt.Sprintf("process %d, the DNS process", os.Getpid()), "dmp-controlplane", fmt.Sprintf("stop process %d", os.Getpid()))
		}
		// Keys and tokens are the other folder's: the DNS process takes them from there.
		dmpd(t, exitOK, append([]string{"tsig", "mint", "--name", "op.mesh.test", "--scope", "mesh.test"}, at...)...)
		dmpd(t, exitOK, append([]string{"tsig", "revoke", "op.mesh.test"}, at...)...)
		lock.Close()
		dmpd(t, exitOK, put...)
	})
	t.Run("control", func(t *testing.T) {
		dir := t.TempDir()
		c, _, errs := config.Resolve(config.Input{Flags: map[string]string{"STATE_DIR": dir, "DOMAIN": "mesh.test", "HTTP_HOST": "127.0.0.1", "HTTP_PORT": "0"}})
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		s, err := controlplane.Start(c, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Stop()
		at := []string{"--state-dir", dir}
		who := []string{fmt.Sprintf("Process %d, the HTTP process, runs", os.Getpid()), filepath.Join(dir, "data"), "start dmp-dataplane"}
		contains(t, dmpd(t, exitFailed, append([]string{"record", "put", "a.mesh.test", "v"}, at...)...), append(who, "the data plane is away")...)
		contains(t, dmpd(t, exitFailed, append([]string{"tsig", "mint", "--name", "op.mesh.test", "--scope", "mesh.test"}, at...)...), append(who, "it is stored", "tsig show op.mesh.test --secret")...)
		contains(t, dmpd(t, exitOK, append([]string{"tsig", "show", "op.mesh.test", "--secret"}, at...)...), "secret, hex")
		contains(t, dmpd(t, exitFailed, append([]string{"tsig", "revoke", "op.mesh.test"}, at...)...), append(who, "it is stored")...)
		contains(t, dmpd(t, exitOK, append([]string{"tsig", "list", "--all"}, at...)...), "revoked")
	})
}

func TestBackup(t *testing.T) {
	t.Parallel()
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "b.zst")
	run := func(want int, args ...string) string {
		return dmpd(t, want, append(args, "--state-dir", dir, "--domain", "mesh.test")...)
	}
	for i := range 20 {
		run(exitOK, "record", "put", fmt.Sprintf("n%d.mesh.test", i%7), strings.Repeat("x", i*40))
	}
	run(exitOK, "record", "delete", "n3.mesh.test", "--every")
	stays := fromJSON[controlplane.KeyInfo](t, run(exitOK, "tsig", "mint", "--subject", "alice@mesh.test", "--json"))
	goes := fromJSON[controlplane.KeyInfo](t, run(exitOK, "tsig", "mint", "--subject", "bob@mesh.test", "--json"))
	token := fromJSON[controlplane.TokenInfo](t, run(exitOK, "token", "issue", "bob@mesh.test", "--json"))
	run(exitOK, "backup", file)
	contains(t, run(exitUsage, "backup", file), "another name")
	before := fromJSON[backupReport](t, run(exitOK, "verify", "--json"))
	if got := fromJSON[backupReport](t, dmpd(t, exitOK, "verify", file, "--json")); got.Content != before.Content || got.Live != before.Live || got.Live == 0 {
		t.Fatalf("%+v, want %+v", got, before)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info, err)
	}

	// Any damage is seen, and a restore of it changes nothing.
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for at := range good {
		if at%max(1, len(good)/40) != 0 && at != len(good)-1 {
			continue
		}
		if _, err := readBackup(bytes.NewReader(good[:at]), backupHandler{}); err == nil {
			t.Fatalf("%d bytes of %d count as whole", at, len(good))
		}
		// Some bits of a zstd stream mean nothing; then what it holds is as it was.
		if r, err := readBackup(bytes.NewReader(flipped(good, at)), backupHandler{}); err == nil && (r.Content != before.Content || r.State != before.State) {
			t.Fatalf("damage at %d of %d is not seen", at, len(good))
		}
	}
	plain, compress := codec(t)
	stream := plain(good)
	for at := range stream {
		if at%max(1, len(stream)/200) == 0 || at > len(stream)-40 {
			if _, err := readBackup(bytes.NewReader(compress(flipped(stream, at))), backupHandler{}); err == nil {
				t.Fatalf("damage at %d of %d of the stream is not seen", at, len(stream))
			}
		}
	}
	if _, err := readBackup(bytes.NewReader(compress(append(bytes.Clone(stream), 0))), backupHandler{}); err == nil {
		t.Fatal("a byte behind the end is not seen")
	}
	bad := filepath.Join(t.TempDir(), "bad.zst")
	if err := os.WriteFile(bad, compress(flipped(stream, len(stream)/2)), 0o600); err != nil {
		t.Fatal(err)
	}
	contains(t, run(exitFailed, "restore", bad), "as it was")

	run(exitOK, "record", "put", "later.mesh.test", "x")
	run(exitOK, "tsig", "revoke", goes.Name)
	run(exitOK, "token", "revoke", "bob@mesh.test")
	run(exitOK, "tsig", "deny", "subject", "bob@mesh.test")
	old := fromJSON[nodeStatus](t, strings.SplitN(run(exitFailed, "status", "--json"), "dmpd:", 2)[0])
	report := fromJSON[backupReport](t, run(exitOK, "restore", file, "--json"))
	if report.Content != before.Content || report.Replaced == "" || int32(report.Serial-old.Serial) <= 0 || int32(report.Serial-before.Serial) <= 0 {
		t.Fatalf("%+v\nbefore %+v\nold %+v", report, before, old)
	}
	after := fromJSON[backupReport](t, run(exitOK, "verify", "--json"))
	if after.Content != before.Content || after.Serial != report.Serial || after.FeedMs <= old.LastChangeMs || after.Deletes != before.Deletes {
		t.Fatalf("%+v\nbefore %+v\nold %+v", after, before, old)
	}
	run(exitFailed, "record", "get", "later.mesh.test")
	keys := map[string]controlplane.KeyInfo{}
	for _, k := range fromJSON[[]controlplane.KeyInfo](t, run(exitOK, "tsig", "list", "--all", "--json", "--secret")) {
		keys[k.Name] = k
	}
	if k := keys[stays.Name]; !k.Live || k.SecretHex != stays.SecretHex {
		t.Fatalf("%+v", k)
	}
	if k := keys[goes.Name]; !k.Revoked {
		t.Fatalf("a revoked key is back: %+v", k)
	}
	for _, k := range fromJSON[[]controlplane.TokenInfo](t, run(exitOK, "token", "list", "--include-revoked", "--json")) {
		if k.TokenHash == token.TokenHash && k.Live {
			t.Fatal("a revoked token is back")
		}
	}
	contains(t, run(exitOK, "tsig", "denied"), "bob@mesh.test")
	contains(t, run(exitOK, "audit", "tail"), "tsig-revoked")
	// The folder is lost: a newer backup knows what was revoked.
	newer := filepath.Join(t.TempDir(), "newer.zst")
	run(exitOK, "backup", newer)
	elsewhere := []string{"--state-dir", filepath.Join(t.TempDir(), "state"), "--domain", "mesh.test"}
	contains(t, dmpd(t, exitFailed, append([]string{"restore", file, "--revoked-in", bad}, elsewhere...)...), bad, "as it was")
	contains(t, dmpd(t, exitOK, append([]string{"restore", file}, elsewhere...)...), "valid again", "--revoked-in")
	contains(t, dmpd(t, exitOK, append([]string{"tsig", "show", goes.Name}, elsewhere...)...), "valid")
	elsewhere[1] = filepath.Join(t.TempDir(), "state")
	dmpd(t, exitOK, append([]string{"restore", file, "--revoked-in", newer}, elsewhere...)...)
	contains(t, dmpd(t, exitOK, append([]string{"tsig", "show", goes.Name}, elsewhere...)...), "revoked")
	contains(t, dmpd(t, exitOK, append([]string{"tsig", "denied"}, elsewhere...)...), "bob@mesh.test")
	dmpd(t, exitFailed, append([]string{"record", "get", "later.mesh.test"}, elsewhere...)...)
	// The node goes on writing where the restored logs end.
	run(exitOK, "record", "put", "again.mesh.test", "x")
	run(exitOK, "restore", file)
	// A restore that did not finish keeps the node from starting.
	if err := os.WriteFile(filepath.Join(dir, restoringMark), []byte("not done"), 0o600); err != nil {
		t.Fatal(err)
	}
	contains(t, dmpd(t, exitUsage, "run", "--state-dir", dir, "--http-host", "127.0.0.1"), "not done")
}

func codec(t *testing.T) (plain, compress func(b []byte) []byte) {
	t.Helper()
	r, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return func(b []byte) []byte {
		out, err := r.DecodeAll(b, nil)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}, func(b []byte) []byte { return w.EncodeAll(b, nil) }
}

func flipped(b []byte, at int) []byte {
	c := bytes.Clone(b)
	c[at] ^= 0x10
	return c
}

// reference makes databases with the tables of the reference node.
func reference(t *testing.T, dir string) (path string) {
	t.Helper()
	nowSec := time.Now().Unix()
	fill := func(name string, version int, tables string, rows ...[]any) {
		db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.Exec(fmt.Sprintf("PRAGMA user_version = %d; %s", version, tables)); err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			if _, err := db.Exec(r[0].(string), r[1:]...); err != nil {
				t.Fatal(err)
			}
		}
	}
	const record = "INSERT INTO records VALUES (?, ?, 300, ?, ?, ?, '')"
	fill("dmp.db", 0, "CREATE TABLE records (name, value, ttl, created_at, expires_at, stored_ts, value_hash)",
		[]any{record, "one.Mesh.test", "v=1", nowSec - 5, nowSec + 3000, nowSec*1000 - 5000},
		[]any{record, "two.mesh.test", strings.Repeat("v", 700), nowSec - 4, nowSec + 3000, nowSec*1000 - 4000},
		[]any{record, "three.mesh.test", "same time", nowSec - 4, nowSec + 3000, nowSec*1000 - 4000},
		[]any{record, "one.mesh.TEST", "v=1", nowSec - 3, nowSec + 4000, nowSec*1000 - 3000}, // the first again
		[]any{record, "nostamp.mesh.test", "x", nowSec - 9, nowSec + 3000, 0},
		[]any{record, "gone.mesh.test", "x", nowSec - 900, nowSec - 600, nowSec*1000 - 900000},
		[]any{record, "bad..name", "x", nowSec, nowSec + 3000, nowSec * 1000})
	const token = "INSERT INTO tokens VALUES (?, ?, 1, NULL, 10.0, 50, ?, ?, ?, 'self-service', '', ?)"
	spk := strings.Repeat("ab", 32)
	fill("dmp_tokens.db", 2, "CREATE TABLE tokens (token_hash, subject, subject_type, subject_hash12, rate_per_sec, rate_burst, issued_at, expires_at, revoked_at, issuer, note, registered_spk)",
		[]any{token, auth.HashToken("t1").String(), "alice@mesh.test", nowSec, nowSec + 900, nil, spk},
		[]any{token, auth.HashToken("t2").String(), "carol@mesh.test", nowSec, nil, nowSec, nil},
		[]any{token, "nonsense", "dave@mesh.test", nowSec, nil, nil, nil})
	const key = "INSERT INTO tsig_keys VALUES (?, 'hmac-sha256', ?, ?, ?, ?, ?, ?, ?, ?)"
	fill("dmp_tsig.db", 4, "CREATE TABLE tsig_keys (name, algorithm, secret, allowed_suffixes, created_at, expires_at, revoked, subject, registered_spk, registered_x25519_pub)",
		[]any{key, "alice-abababab-b22122.mesh.test.", []byte("0123456789abcdef0123456789abcdef"), "id-1.mesh.test\nslot-*.mb-*.mesh.test", nowSec, nowSec + 900, 0, "alice@mesh.test", spk, ""},
		[]any{key, "old.mesh.test.", []byte("0123456789abcdef0123456789abcdef"), "mesh.test", nowSec - 86400, 0, 1, "", "", ""},
		[]any{key, "md5.mesh.test.", []byte{}, "", nowSec, 0, 0, "", "", ""})
	const heard = "INSERT INTO heartbeats_seen VALUES (?, ?, ?, 0, 0, '', ?, ?)"
	p := &patient{}
	fill("dmp_heartbeats.db", 1, "CREATE TABLE heartbeats_seen (operator_spk_hex, endpoint, wire, ts, exp, version, received_at, remote_addr)",
		[]any{heard, "a", "https://a.example", string(p.heartbeat(t, 1, "https://a.example", 900)), nowSec - 800, "seed.example"},
		[]any{heard, "b", "https://b.example", string(p.heartbeat(t, 2, "https://b.example", 10)), nowSec, nil},
		[]any{heard, "c", "https://c.example", "v=dmp1;t=heartbeat;AAAA", nowSec, "seed.example"})
	return filepath.Join(dir, "dmp.db")
}

func TestImport(t *testing.T) {
	t.Parallel()
	db := reference(t, t.TempDir())
	dir := filepath.Join(t.TempDir(), "state")
	run := func(want int, args ...string) string {
		return dmpd(t, want, append(args, "--state-dir", dir, "--domain", "mesh.test")...)
	}
	dry := fromJSON[importReport](t, run(exitOK, "import", "--db-path", db, "--dry-run", "--json"))
	first := fromJSON[importReport](t, run(exitOK, "import", "--db-path", db, "--json"))
	if dry.Records != first.Records || dry.Tokens.Imported != first.Tokens.Imported || dry.ReadHash != first.ReadHash || dry.HereHash == dry.ReadHash {
		t.Fatalf("%+v\n%+v", dry, first)
	}
	if want := (importCount{Read: 7, Imported: 5, Expired: 1, Refused: 1}); first.Records != want {
		t.Fatalf("%+v, want %+v", first.Records, want)
	}
	if want := (importCount{Read: 3, Imported: 2, Refused: 1}); first.Tokens != want || first.Keys != want {
		t.Fatalf("%+v, %+v: %v", first.Tokens, first.Keys, first.Notes)
	}
	if want := (importCount{Read: 3, Imported: 2, Refused: 1}); first.Peers != want || dry.Peers != want {
		t.Fatalf("%+v, %+v: %v", first.Peers, dry.Peers, first.Notes)
	}
	if ps := fromJSON[[]controlplane.PeerInfo](t, run(exitOK, "peers", "--json")); len(ps) != 2 || ps[0].Endpoint != "https://a.example" || ps[0].Via != "seed.example" || ps[0].FirstHand {
		t.Fatalf("%+v", ps)
	}
	contains(t, run(exitOK, "peers"), "https://b.example", "told by seed.example")
	if first.ReadHash != first.HereHash {
		t.Fatalf("%+v", first)
	}
	// Arrival order and stamps, lower case, the longer life of two.
	rows := fromJSON[[]recordInfo](t, run(exitOK, "record", "list", "--json"))
	var names []string
	for i, r := range rows {
		names = append(names, r.Name)
		if i > 0 && r.FeedMs < rows[i-1].FeedMs || r.FeedMs != r.StoredMs {
			t.Fatalf("%+v", rows)
		}
	}
	if got := strings.Join(names, " "); got != "nostamp.mesh.test two.mesh.test three.mesh.test one.mesh.test" {
		t.Fatal(got)
	}
	if rows[3].ExpiresMs <= rows[0].ExpiresMs {
		t.Fatal("the shorter of two lives was kept")
	}
	contains(t, run(exitOK, "tsig", "show", "alice-abababab-b22122.mesh.test", "--secret"), "3031323334353637", "slot-*.mb-*.mesh.test", "valid")
	contains(t, run(exitOK, "tsig", "show", "old.mesh.test"), "revoked")
	if made := fromJSON[controlplane.KeyInfo](t, run(exitOK, "tsig", "show", "old.mesh.test", "--json")).CreatedAt; made > time.Now().Unix()-86400 {
		t.Errorf("the key is said to be made at %d", made)
	}
	// The owner came along: her key's subject cannot be locked away by another, who would own it now.
	before := run(exitOK, "verify", "--json")
	second := fromJSON[importReport](t, run(exitOK, "import", "--db-path", db, "--json"))
	if second.Records.Imported+second.Tokens.Imported+second.Keys.Imported+second.Peers.Imported != 0 || second.ReadHash != second.HereHash {
		t.Fatalf("%+v", second)
	}
	a, b := fromJSON[backupReport](t, before), fromJSON[backupReport](t, run(exitOK, "verify", "--json"))
	if a.RowsLSN != b.RowsLSN || a.StateLSN != b.StateLSN || a.Content != b.Content {
		t.Fatalf("a second run changed something: %+v, %+v", a, b)
	}
	// What was deleted here stays deleted.
	run(exitOK, "record", "delete", "two.mesh.test", "--every")
	third := fromJSON[importReport](t, run(exitOK, "import", "--db-path", db, "--json"))
	if third.Records.Imported != 0 || third.Records.Refused != 2 {
		t.Fatalf("%+v", third)
	}
	run(exitFailed, "record", "get", "two.mesh.test")
	if names, err := filepath.Glob(filepath.Join(dir, "importing-*")); err != nil || len(names) > 0 {
		t.Fatal(names, err)
	}
}

// TestImportRunning: a database that a process has open is refused by that process' id; a newer schema by its number.
func TestImportRunning(t *testing.T) {
	t.Parallel()
	src := t.TempDir()
	db := reference(t, src)
	state := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holdEnv+"="+db+"-shm")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held <nil>\n" {
		t.Fatal(line, err)
	}
	contains(t, dmpd(t, exitUsage, "import", "--db-path", db, "--state-dir", state), fmt.Sprint("process ", cmd.Process.Pid))
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	newer, err := sql.Open("sqlite", "file:"+filepath.Join(src, "dmp_tsig.db"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newer.Exec("PRAGMA user_version = 5"); err != nil {
		t.Fatal(err)
	}
	newer.Close()
	contains(t, dmpd(t, exitUsage, "import", "--db-path", db, "--state-dir", state), "schema 5")
	contains(t, dmpd(t, exitUsage, "import", "--db-path", filepath.Join(src, "nothing.db"), "--state-dir", state), "nothing.db")
}

func TestInspect(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	run := func(want int, args ...string) string {
		return dmpd(t, want, append(args, "--state-dir", dir, "--domain", "mesh.test")...)
	}
	key := fromJSON[controlplane.KeyInfo](t, run(exitOK, "tsig", "mint", "--subject", "alice@mesh.test", "--json"))
	run(exitOK, "record", "put", "a.mesh.test", "some value")
	run(exitOK, "record", "put", "b.mesh.test", "another")
	text := dmpd(t, exitOK, "inspect", dir)
	contains(t, text, "kind=key", key.Name, hidden, "kind=put", `value="some value"`, "kind=serial")
	if strings.Contains(text, key.SecretHex) {
		t.Fatal("a secret is shown")
	}
	contains(t, dmpd(t, exitOK, "inspect", dir, "--show-secrets", "--json"), key.SecretHex)
	data := filepath.Join(dir, "data")
	logs, err := filepath.Glob(filepath.Join(data, "rows-*.log"))
	if err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	if n := strings.Count(dmpd(t, exitOK, "inspect", "--limit", "2", logs[0]), "\n"); n > 3 {
		t.Fatal(n, "lines")
	}
	v, err := openView(data)
	if err != nil {
		t.Fatal(err)
	}
	upto := v.meta.LSN
	v.close()
	snap, err := snapshot.Merge(snapshot.MergeOptions{FS: vfs.OS, Dir: data, Name: "rows", Upto: upto, TombstoneLifeMs: 1000})
	if err != nil {
		t.Fatal(err)
	}
	path := snap.Path()
	snap.Close()
	contains(t, dmpd(t, exitOK, "inspect", path), "rows=2", "value=another")
	contains(t, run(exitOK, "record", "list"), "some value", "another") // now from the snapshot
	run(exitOK, "verify")
	// A flipped byte in a row is named with file and offset.
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, []byte("another"))
	if err := os.WriteFile(path, flipped(b, at), 0o600); err != nil {
		t.Fatal(err)
	}
	contains(t, dmpd(t, exitFailed, "inspect", path), path, "offset")
	contains(t, run(exitFailed, "verify"), path)
	contains(t, dmpd(t, exitUsage, "inspect", os.Args[0]), "no file of dmpd's")
}

// TestViewRefresh: a new life for a value in the snapshot has the value from there.
func TestViewRefresh(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name, rdata := wire.MustName("r.mesh.test"), record.AppendRDATA(nil, []byte("kept"))
	row := record.Row{Name: name, RDATA: rdata, Hash: record.HashOf(rdata), Add: record.HLCAt(1000), ExpMs: 1 << 45}
	log, err := openRowsLog(dir, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	put := func(feedMs int64, kind record.EntryKind, r record.Row) {
		if err := log.append(record.AppendFrame(nil, feedMs, []record.Entry{{Kind: kind, Row: r}})); err != nil {
			t.Fatal(err)
		}
		if err := log.sync(); err != nil {
			t.Fatal(err)
		}
	}
	put(1000, record.KindPut, row)
	snap, err := snapshot.Merge(snapshot.MergeOptions{FS: vfs.OS, Dir: dir, Name: "rows", Upto: 1, TombstoneLifeMs: 1000})
	if err != nil {
		t.Fatal(err)
	}
	snap.Close()
	row.RDATA, row.Add = nil, record.HLCAt(2000)
	put(2000, record.KindRefresh, row)
	v, err := openView(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	rows, err := v.live(name, 3000)
	if err != nil || len(rows) != 1 || !bytes.Equal(rows[0].RDATA, rdata) || rows[0].Add != record.HLCAt(2000) || rows[0].FeedMs != 2000 {
		t.Fatalf("%+v, %v", rows, err)
	}
	n := 0
	if err := v.each(func(*record.Row) error { n++; return nil }); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	if err := log.w.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestDuration(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{"0": 0, "90": 90, "90s": 90, "15m": 900, "12h": 43200, "30d": 2592000, "4w": 2419200} {
		if got, err := duration(text); err != nil || got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "d", "-1", "+1", "1D", "1.5h", "1 d", "99999999999999999999", "1dd"} {
		if got, err := duration(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}
