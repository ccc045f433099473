package crash

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/miekg/dns"

	"github.com/dnsmesh/dmpd/tools/node"
)

// need skips a test loudly where something of the system is missing; under CI=true it must be there.
func need(t *testing.T, ok bool, what string) {
	t.Helper()
	if ok {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI has no %s", what)
	}
	t.Skipf("SKIPPED: this test needs %s", what)
}

// TestSyncBeforeReply: the system calls of an UPDATE are, in this order: the write of its frame, a sync that succeeds, the send of the
// reply.
func TestSyncBeforeReply(t *testing.T) {
	t.Parallel()
	strace, err := exec.LookPath("strace")
	need(t, err == nil, "strace")
	n := node.New(t).Run()
	key := mustMint(n, "k."+node.Zone)
	n.Data.Signal(syscall.SIGTERM)
	if code, ok := n.Data.Wait(node.Limit); !ok || code != 0 {
		t.Fatalf("code %d\n%s", code, n.Data.Output())
	}
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command(strace, "-f", "-qq", "-s", "4096", "-e", "trace=pwrite64,fdatasync,sendmmsg,sendto", "-o", trace, filepath.Join(node.Build(t), "dmp-dataplane"))
	cmd.Env = n.Env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-ended
	})
	n.Eventually("the traced data plane answers", n.Answers)
	n.Healthy()
	rc := -1
	n.Eventually("an UPDATE is acknowledged", func() bool {
		rc = n.Add(key, node.Limit, [2]string{"proof." + node.Zone, "synced-before-the-reply"})
		return rc != -1
	})
	if rc != dns.RcodeSuccess {
		need(t, rc != -1, "strace that may trace")
		t.Fatal(rc)
	}
	var lines []string
	n.Eventually("the trace is written", func() bool {
		b, err := os.ReadFile(trace)
		if err != nil {
			return false
		}
		lines = strings.Split(string(b), "\n")
		return strings.Contains(string(b), "synced-before-the-reply")
	})
	wrote, synced, sent := -1, -1, -1
	syncDone := regexp.MustCompile(`fdatasync(\(\d+\)| resumed>\)) += 0`)
	for i, l := range lines {
		switch {
		case wrote < 0 && strings.Contains(l, "pwrite64") && strings.Contains(l, "synced-before-the-reply"):
			wrote = i
		case wrote >= 0 && synced < 0 && syncDone.MatchString(l):
			synced = i
		case wrote >= 0 && sent < 0 && (strings.Contains(l, "sendmmsg(") || strings.Contains(l, "sendto(")):
			sent = i
		}
	}
	if wrote < 0 || synced < wrote || sent < synced {
		t.Errorf("write in line %d, sync in line %d, reply in line %d of\n%.4000s", wrote, synced, sent, strings.Join(lines[max(0, wrote):], "\n"))
	}
}

// TestFullDisk: on a small file system that is full, writes are refused with SERVFAIL, queries go on, and writes as well once there is
// room again.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	need(t, os.Geteuid() == 0, "root, to mount a small file system")
	n := node.New(t)
	if err := syscall.Mount("tmpfs", n.Dir, "tmpfs", 0, "size=12m,mode=0700"); err != nil {
		need(t, false, "the right to mount a tmpfs")
	}
	t.Cleanup(func() {
		_ = syscall.Unmount(n.Dir, syscall.MNT_DETACH)
	})
	n.Run()
	key := mustMint(n, "k."+node.Zone)
	if rc := n.Add(key, node.Limit, [2]string{"before." + node.Zone, "v"}); rc != dns.RcodeSuccess {
		t.Fatal(rc)
	}
	ballast := filepath.Join(n.Dir, "ballast")
	fill(t, ballast)
	refused := false
	for i := range 5000 {
		rc := n.Add(key, node.Limit, [2]string{fmt.Sprintf("f%d.%s", i, node.Zone), strings.Repeat("x", 250)})
		if rc == dns.RcodeServerFailure {
			refused = true
			break
		}
		if rc != dns.RcodeSuccess {
			t.Fatalf("write %d: %d\n%s", i, rc, n.Log())
		}
	}
	if !refused {
		t.Fatal("a full disk refuses nothing")
	}
	if vs, err := n.Values("before." + node.Zone); err != nil || len(vs) != 1 {
		t.Errorf("queries on a full disk: %q, %v", vs, err)
	}
	if n.Data.Ended() || n.Control.Ended() {
		t.Fatalf("a process ended\n%s", n.Log())
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	n.Eventually("writes go on", func() bool {
		return n.Add(key, node.Limit, [2]string{"after." + node.Zone, "v"}) == dns.RcodeSuccess
	})
	for _, p := range []*node.Process{n.Control, n.Data} {
		p.Kill()
	}
	n.Run()
	for _, name := range []string{"before.", "after."} {
		if vs, err := n.Values(name + node.Zone); err != nil || len(vs) != 1 {
			t.Errorf("%s after a restart: %q, %v", name, vs, err)
		}
	}
}

// fill writes until there is no room.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 16<<10)
	for {
		if _, err := f.Write(b); err != nil {
			return
		}
	}
}
