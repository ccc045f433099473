// Package crash kills the real binaries at random moments and at named steps, and looks whether anything that was acknowledged is
// lost, or anything that was not is there in part.
package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dnsmesh/dmpd/controlplane"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/vfs"
	"github.com/dnsmesh/dmpd/tools/node"
)

func TestMain(m *testing.M) {
	code := m.Run()
	node.Clean()
	os.Exit(code)
}

// kills is how often each plane is killed.
const kills = 50

// mint makes a key through the operator's socket; ok is false if that was not acknowledged.
func mint(n *node.Node, name string) (k node.Key, ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var key controlplane.KeyInfo
	err := (&controlplane.AdminClient{Dir: filepath.Join(n.Dir, "control")}).Call(ctx, "tsig.mint", controlplane.MintArgs{Name: name, Scopes: []string{node.Zone}, Operator: true}, &key)
	if err != nil {
		return k, false
	}
	return node.Key{Name: name, SecretHex: key.SecretHex}, true
}

func mustMint(n *node.Node, name string) node.Key {
	n.T.Helper()
	var k node.Key
	n.Eventually("a key is minted", func() (ok bool) { k, ok = mint(n, name); return ok })
	return k
}

// ledger is what the clients know.
type ledger struct {
	mu    sync.Mutex
	pairs map[string]bool // name -> acknowledged; each name was sent one message that adds "a" there and "b" at x.<name>
}

func (l *ledger) sent(name string)  { l.mu.Lock(); l.pairs[name] = false; l.mu.Unlock() }
func (l *ledger) acked(name string) { l.mu.Lock(); l.pairs[name] = true; l.mu.Unlock() }

// check asks for every name.
func (l *ledger) check(n *node.Node) {
	n.T.Helper()
	acked := 0
	for name, ok := range l.pairs {
		a, err := n.Values(name)
		if err != nil {
			n.T.Fatal(err)
		}
		b, err := n.Values("x." + name)
		if err != nil {
			n.T.Fatal(err)
		}
		if ok {
			acked++
		}
		switch {
		case ok && (!slices.Equal(a, []string{"a"}) || !slices.Equal(b, []string{"b"})):
			n.T.Errorf("%s was acknowledged and holds %q and %q", name, a, b)
		case len(a) != len(b):
			n.T.Errorf("%s is there in part: %q and %q", name, a, b)
		}
	}
	n.T.Logf("%d messages, %d acknowledged", len(l.pairs), acked)
	if acked < kills {
		n.T.Errorf("only %d messages were acknowledged: the test shows little", acked)
	}
}

// TestDataPlaneKills: kill -9 of the DNS process in the middle of a stream of UPDATEs. The HTTP process runs on.
func TestDataPlaneKills(t *testing.T) {
	t.Parallel()
	n := node.New(t).Run()
	key := mustMint(n, "k."+node.Zone)
	l := &ledger{pairs: map[string]bool{}}
	stop := make(chan struct{})
	var clients sync.WaitGroup
	finish := sync.OnceFunc(func() { close(stop); clients.Wait() })
	defer finish()
	for c := range 4 {
		clients.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				name := fmt.Sprintf("c%d-%d.%s", c, i, node.Zone)
				l.sent(name)
				if n.Add(key, 300*time.Millisecond, [2]string{name, "a"}, [2]string{"x." + name, "b"}) == dns.RcodeSuccess {
					l.acked(name)
				}
			}
		})
	}
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	for range kills {
		time.Sleep(time.Duration(rng.IntN(120)) * time.Millisecond)
		n.Data.Kill()
		n.StartData()
		if n.Data.Ended() {
			t.Fatalf("it does not start again:\n%s", n.Data.Output())
		}
	}
	finish()
	n.Healthy()
	l.check(n)
}

// TestControlPlaneKills: kill -9 of the HTTP process in the middle of mints and posts. What got 201 is there, a key that was handed out
// works, and UPDATEs go on all the time.
func TestControlPlaneKills(t *testing.T) {
	t.Parallel()
	n := node.New(t).Run()
	key := mustMint(n, "k."+node.Zone)
	stop := make(chan struct{})
	var clients sync.WaitGroup
	finish := sync.OnceFunc(func() { close(stop); clients.Wait() })
	defer finish()
	var mu sync.Mutex
	posted, keys := map[string]bool{}, map[string]node.Key{}
	for c := range 2 {
		clients.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				name := fmt.Sprintf("p%d-%d.%s", c, i, node.Zone)
				status := n.Post(name, "posted")
				mu.Lock()
				posted[name] = status == 201
				mu.Unlock()
				if status == 0 {
					time.Sleep(2 * time.Millisecond)
				}
			}
		})
	}
	clients.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if k, ok := mint(n, fmt.Sprintf("k%d.%s", i, node.Zone)); ok {
				mu.Lock()
				keys[k.Name] = k
				mu.Unlock()
			} else {
				time.Sleep(2 * time.Millisecond)
			}
		}
	})
	clients.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			// The limit is only for a test that fails: no answer may be missing, since nobody touches the DNS process.
			if rc := n.Add(key, 30*time.Second, [2]string{fmt.Sprintf("u%d.%s", i, node.Zone), "update"}); rc != dns.RcodeSuccess {
				t.Errorf("an UPDATE while the HTTP process is killed: %d", rc)
			}
			time.Sleep(time.Millisecond)
		}
	})
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 2))
	for range kills {
		time.Sleep(time.Duration(rng.IntN(150)) * time.Millisecond)
		n.Control.Kill()
		n.StartControl()
		if n.Control.Ended() {
			t.Fatalf("it does not start again:\n%s", n.Control.Output())
		}
	}
	finish()
	n.Healthy()
	acked := 0
	for name, ok := range posted {
		vs, err := n.Values(name)
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			acked++
			if !slices.Equal(vs, []string{"posted"}) {
				t.Errorf("%s got 201 and holds %q", name, vs)
			}
		}
	}
	for _, k := range keys {
		if rc := n.Add(k, 30*time.Second, [2]string{"by-" + k.Name, "v"}); rc != dns.RcodeSuccess {
			t.Errorf("the minted key %s: %d", k.Name, rc)
		}
	}
	t.Logf("%d posts, %d of them 201; %d keys", len(posted), acked, len(keys))
	if acked < kills/2 || len(keys) < kills/2 {
		t.Errorf("only %d posts and %d mints were acknowledged: the test shows little", acked, len(keys))
	}
}

// TestKillPoints kills each side at each named step of a post, a mint and an UPDATE.
func TestKillPoints(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		plane string
		point string
	}{
		{"data", "request-taken"}, {"data", "rows-appended"}, {"data", "rows-synced"}, {"data", "rows-published"}, {"data", "state-taken-by-dataplane"},
		{"control", "request-appended"}, {"control", "state-appended"}, {"control", "state-synced"}, {"control", "state-taken"},
	} {
		t.Run(x.plane+" at "+x.point, func(t *testing.T) {
			t.Parallel()
			n := node.New(t).Run()
			key := mustMint(n, "k."+node.Zone)
			// Armed only when all is ready: a data plane also commits expiry cuts and what it took.
			armed := filepath.Join(t.TempDir(), "armed")
			env := []string{"DMP_KILLPOINT=" + x.point, "DMP_KILLPOINT_ARMED=" + armed}
			if x.plane == "data" {
				n.Data.Kill()
				n.StartData(env...)
			} else {
				n.Control.Kill()
				n.StartControl(env...)
			}
			n.Healthy()
			if err := os.WriteFile(armed, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			var rc, status int
			var minted node.Key
			var mintOK bool
			var all sync.WaitGroup
			switch {
			case strings.HasPrefix(x.point, "state"):
				all.Go(func() { minted, mintOK = mint(n, "m."+node.Zone) })
			case x.point == "request-taken" || x.point == "request-appended":
				all.Go(func() { status = n.Post("p."+node.Zone, "posted") })
			default:
				all.Go(func() {
					rc = n.Add(key, 2*time.Second, [2]string{"u." + node.Zone, "a"}, [2]string{"x.u." + node.Zone, "b"})
				})
				all.Go(func() { status = n.Post("p."+node.Zone, "posted") })
			}
			killed := n.Data
			if x.plane == "control" {
				killed = n.Control
			}
			if code, ok := killed.Wait(node.Limit); !ok || code != -1 {
				t.Fatalf("was not killed at %s: code %d, ended %v\n%s", x.point, code, ok, n.Log())
			}
			if x.plane == "data" {
				n.StartData()
			} else {
				n.StartControl()
			}
			all.Wait()
			n.Healthy()
			u, err := n.Values("u." + node.Zone)
			if err != nil {
				t.Fatal(err)
			}
			xu, err := n.Values("x.u." + node.Zone)
			if err != nil {
				t.Fatal(err)
			}
			if len(u) != len(xu) || rc == dns.RcodeSuccess && status != 0 && len(u) != 1 && !strings.HasPrefix(x.point, "state") && !strings.HasPrefix(x.point, "request") {
				t.Errorf("the UPDATE got %d and left %q and %q", rc, u, xu)
			}
			p, err := n.Values("p." + node.Zone)
			if err != nil {
				t.Fatal(err)
			}
			if status == 201 && len(p) != 1 || status == 503 && len(p) != 0 {
				t.Errorf("the post got %d and left %q", status, p)
			}
			if mintOK {
				if rc := n.Add(minted, 30*time.Second, [2]string{"by-m." + node.Zone, "v"}); rc != dns.RcodeSuccess {
					t.Errorf("the minted key: %d", rc)
				}
			}
			// And it goes on.
			if rc := n.Add(key, 30*time.Second, [2]string{"after." + node.Zone, "v"}); rc != dns.RcodeSuccess {
				t.Errorf("an UPDATE afterwards: %d", rc)
			}
			if status := n.Post("after-p."+node.Zone, "v"); status != 201 {
				t.Errorf("a post afterwards: %d", status)
			}
		})
	}
}

// TestVoid: a post while the DNS process is down gets 503, and nothing of it happens later, wherever the HTTP process dies.
func TestVoid(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"", "void-appended"} {
		t.Run("killed at "+point, func(t *testing.T) {
			t.Parallel()
			n := node.New(t).Run()
			mustMint(n, "k."+node.Zone)
			if point != "" {
				n.Control.Kill()
				n.StartControl("DMP_KILLPOINT=" + point)
				n.Healthy()
			}
			// Stopped, it takes nothing, and dies with the request untaken.
			n.Data.Signal(syscall.SIGSTOP)
			status := make(chan int, 1)
			go func() { status <- n.Post("p."+node.Zone, "posted") }()
			time.Sleep(50 * time.Millisecond) // the request may or may not lie there by now: both must do
			n.Data.Kill()
			got := <-status
			if point != "" && got == 0 {
				n.StartControl()
			}
			n.StartData()
			n.Healthy()
			if rc := n.Post("after."+node.Zone, "v"); rc != 201 {
				t.Errorf("a post afterwards: %d", rc)
			}
			p, err := n.Values("p." + node.Zone)
			if err != nil {
				t.Fatal(err)
			}
			if got == 503 && len(p) != 0 || got == 201 && len(p) != 1 || got != 503 && got != 201 && got != 0 {
				t.Errorf("the post got %d and left %q", got, p)
			}
		})
	}
}

// TestWrittenNotCommitted: the DNS process dies with an outcome in its log that is not committed. The next one finds it there, so nobody may be
// told meanwhile that it did not happen.
func TestWrittenNotCommitted(t *testing.T) {
	t.Parallel()
	n := node.New(t)
	armed := filepath.Join(t.TempDir(), "armed")
	n.StartData("DMP_KILLPOINT=rows-appended", "DMP_KILLPOINT_ARMED="+armed)
	n.StartControl()
	n.Healthy()
	if err := os.WriteFile(armed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	status := make(chan int, 1)
	go func() { status <- n.Post("p."+node.Zone, "posted") }()
	if code, ok := n.Data.Wait(node.Limit); !ok || code != -1 {
		t.Fatalf("was not killed: code %d, ended %v\n%s", code, ok, n.Log())
	}
	time.Sleep(4 * time.Second) // longer than the HTTP process takes to give a request up
	n.StartData()
	got := <-status
	n.Healthy()
	p, err := n.Values("p." + node.Zone)
	if err != nil {
		t.Fatal(err)
	}
	if got == 503 && len(p) != 0 || got == 201 && len(p) != 1 || got != 503 && got != 201 && got != 504 {
		t.Errorf("the post got %d and left %q", got, p)
	}
}

// TestOnePlaneAway: while one is down, the other keeps its promise.
func TestOnePlaneAway(t *testing.T) {
	t.Parallel()
	n := node.New(t).Run()
	key := mustMint(n, "k."+node.Zone)
	n.Control.Kill()
	if rc := n.Add(key, 30*time.Second, [2]string{"a." + node.Zone, "v"}); rc != dns.RcodeSuccess {
		t.Errorf("an UPDATE without the HTTP process: %d", rc)
	}
	n.Data.Kill()
	n.StartData() // also from nothing
	if rc := n.Add(key, 30*time.Second, [2]string{"b." + node.Zone, "v"}); rc != dns.RcodeSuccess {
		t.Errorf("an UPDATE after a start without the HTTP process: %d", rc)
	}
	n.StartControl()
	n.Healthy()
	n.Data.Kill()
	n.Eventually("health says so", func() bool { return n.Status("/health") == 503 })
	if status := n.Post("c."+node.Zone, "v"); status != 503 {
		t.Errorf("a post without the DNS process: %d", status)
	}
	if status := n.Status("/health/live"); status != 200 {
		t.Errorf("live: %d", status)
	}
	n.StartData()
	n.Healthy()
	if vs, err := n.Values("c." + node.Zone); err != nil || len(vs) != 0 {
		t.Errorf("it happened later: %q, %v", vs, err)
	}
}

// TestRun: dmpd starts both, starts one again that died, refuses a second node on the folder, and takes both along when it ends, however
// it ends.
func TestRun(t *testing.T) {
	t.Parallel()
	n := node.New(t)
	pid := func(plane string) int {
		l, err := journal.OpenLive(vfs.OS, filepath.Join(n.Dir, plane, "live"))
		if err != nil {
			return 0
		}
		defer l.Close()
		return l.Pid()
	}
	run := n.Start("dmpd", []string{"run"})
	defer run.Kill()
	n.Healthy()
	second := n.Start("dmpd", []string{"run"})
	if code, ok := second.Wait(node.Limit); !ok || code != 2 || !strings.Contains(second.Output(), fmt.Sprint(run.Pid())) {
		t.Errorf("a second one: code %d\n%s", code, second.Output())
	}
	for _, plane := range []string{"data", "control"} {
		old := pid(plane)
		if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		n.Eventually(plane+" is started again", func() bool { return pid(plane) != old })
		n.Healthy()
	}
	planes := []int{pid("data"), pid("control")}
	run.Signal(syscall.SIGTERM)
	if code, ok := run.Wait(node.Limit); !ok || code != 0 {
		t.Errorf("SIGTERM: code %d, ended %v\n%s", code, ok, run.Output())
	}
	gone := func() bool {
		for _, p := range planes {
			if !errors.Is(syscall.Kill(p, 0), syscall.ESRCH) {
				return false
			}
		}
		return true
	}
	n.Eventually("the planes ended with dmpd", gone)
	run = n.Start("dmpd", []string{"run"})
	n.Healthy()
	planes = []int{pid("data"), pid("control")}
	run.Kill()
	n.Eventually("the planes ended when dmpd was killed", gone)
	// Reload: a bad setting is refused and the node goes on.
	path := filepath.Join(n.Dir, "dmpd.toml")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("dns_apex_a = \"192.0.2.7\"\n")
	run = n.Start("dmpd", []string{"run", "--config", path})
	defer run.Kill()
	n.Healthy()
	write("dns_apex_a = \"nonsense\"\n")
	run.Signal(syscall.SIGHUP)
	n.Eventually("the bad setting is refused", func() bool { return strings.Contains(run.Output(), "refused") })
	n.Eventually("it still answers", n.Answers)
	run.Signal(syscall.SIGTERM)
	if code, ok := run.Wait(node.Limit); !ok || code != 0 {
		t.Errorf("SIGTERM: code %d, ended %v\n%s", code, ok, run.Output())
	}
}

// TestReferenceFolder: the reference node's records are not passed over in silence.
func TestReferenceFolder(t *testing.T) {
	t.Parallel()
	n := node.New(t)
	db := filepath.Join(n.Dir, "dmp.db")
	if err := os.WriteFile(db, append([]byte("SQLite format 3\x00"), make([]byte, 100)...), 0o600); err != nil {
		t.Fatal(err)
	}
	n.Env = append(n.Env, "DMP_DB_PATH="+db)
	p := n.Start("dmpd", []string{"run"})
	if code, ok := p.Wait(node.Limit); !ok || code != 2 || !strings.Contains(p.Output(), "dmpd import") || !strings.Contains(p.Output(), "--fresh") {
		t.Errorf("code %d\n%s", code, p.Output())
	}
	p = n.Start("dmpd", []string{"run", "--fresh"})
	defer p.Kill()
	n.Healthy()
	p.Signal(syscall.SIGTERM)
	p.Wait(node.Limit)
}

// TestDamage: a node whose synced files were changed does not start, and says which and where.
func TestDamage(t *testing.T) {
	t.Parallel()
	for _, folder := range []string{"data/rows", "control/state"} {
		t.Run(strings.ReplaceAll(folder, "/", " "), func(t *testing.T) {
			t.Parallel()
			n := node.New(t).Run()
			key := mustMint(n, "k."+node.Zone)
			for i := range 20 {
				if rc := n.Add(key, 30*time.Second, [2]string{fmt.Sprintf("n%d.%s", i, node.Zone), "v"}); rc != dns.RcodeSuccess {
					t.Fatal(rc)
				}
			}
			n.Control.Kill()
			n.Data.Kill()
			files, err := filepath.Glob(filepath.Join(n.Dir, folder+"-*.log"))
			if err != nil || len(files) == 0 {
				t.Fatal(files, err)
			}
			slices.Sort(files)
			path := files[len(files)-1]
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b[4096+30] ^= 4 // in the first frame
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			var p *node.Process
			if strings.HasPrefix(folder, "data") {
				p = n.Start("dmp-dataplane", nil)
			} else {
				n.StartData()
				p = n.Start("dmp-controlplane", nil)
			}
			code, ok := p.Wait(node.Limit)
			if !ok || code == 0 || !strings.Contains(p.Output(), filepath.Base(path)) || !strings.Contains(p.Output(), "offset 4096") {
				t.Errorf("code %d, ended %v\n%s", code, ok, p.Output())
			}
			if !ok {
				p.Kill()
			}
		})
	}
}
