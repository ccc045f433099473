// Package node runs the real binaries for tests: built once, on free loopback ports, in a folder of the test's, killed and
// started again at will.
package node

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	buildOnce sync.Once
	binDir    string
	buildErr  error
)

// Build makes the binaries with the tag killpoints, once for the test process, and gives their folder. DMP_TEST_BIN names one that is
// there already.
func Build(t testing.TB) string {
	t.Helper()
	buildOnce.Do(func() {
		if binDir = os.Getenv("DMP_TEST_BIN"); binDir != "" {
			return
		}
		if binDir, buildErr = os.MkdirTemp("", "dmpd-test-bin-"); buildErr != nil {
			return
		}
		cmd := exec.Command("go", "build", "-tags", "killpoints", "-o", binDir+"/", "github.com/dnsmesh/dmpd/cmd/dmpd", "github.com/dnsmesh/dmpd/cmd/dmp-dataplane", "github.com/dnsmesh/dmpd/cmd/dmp-controlplane")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			buildErr = fmt.Errorf("%w: %s", err, out)
		}
	})
	if buildErr != nil {
		t.Fatal(buildErr)
	}
	return binDir
}

// Clean removes what Build made; call it at the end of TestMain.
func Clean() {
	if binDir != "" && binDir != os.Getenv("DMP_TEST_BIN") {
		os.RemoveAll(binDir)
	}
}

// Zone and Token are every test node's.
const (
	Zone  = "mesh.test"
	Token = "operator-token-of-the-test"
)

// Node is a node whose processes the test starts itself.
type Node struct {
	T         testing.TB
	Dir       string
	DNS       string // 127.0.0.1:port
	HTTP      string // http://127.0.0.1:port
	Env       []string
	Wrap      []string          // a command that runs another one in its place, such as ip netns exec NAME; nil: none
	Transport http.RoundTripper // of requests to HTTP; nil: the usual one

	Data, Control *Process

	mu  sync.Mutex
	all []*Process
}

// Process is one running binary.
type Process struct {
	cmd  *exec.Cmd
	out  *output
	done chan struct{}
}

// output keeps the last of what a process printed.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.buf.Len() > 1<<20 {
		o.buf.Reset()
	}
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// New chooses ports and a folder; nothing runs yet.
func New(t testing.TB, env ...string) *Node {
	t.Helper()
	dns, web := freePort(t), freePort(t)
	n := &Node{T: t, Dir: t.TempDir(), DNS: fmt.Sprintf("127.0.0.1:%d", dns), HTTP: fmt.Sprintf("http://127.0.0.1:%d", web)}
	n.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + n.Dir, "DMP_STATE_DIR=" + n.Dir, "DMP_DOMAIN=" + Zone, "DMP_NODE_HOSTNAME=" + Zone, "DMP_DNS_HOST=127.0.0.1", fmt.Sprint("DMP_DNS_PORT=", dns),
		"DMP_HTTP_HOST=127.0.0.1", fmt.Sprint("DMP_HTTP_PORT=", web), "DMP_AUTH_MODE=multi-tenant", "DMP_OPERATOR_TOKEN=" + Token, "DMP_REGISTRATION_ENABLED=1", "DMP_DNS_UPDATE_ENABLED=1",
		"DMP_HTTP_RATE=0", "DMP_REGISTRATION_ENDPOINT_RATE_PER_SEC=0", "DMP_RRL_RATE=0"}, env...)
	t.Cleanup(func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, p := range n.all {
			p.Kill()
		}
	})
	return n
}

// Ports of test nodes lie below those that Linux gives to sockets which ask for none (32768 on, ip_local_port_range(7)). A node that was
// killed leaves its port for a moment, and one of those would be a client's: the node could not come back, or, worse, a datagram to it
// would come back to its sender, which looks like a reply.
const portMin, portMax = 15000, 32000

var (
	portsMu sync.Mutex
	ports   = map[int]bool{} // handed out by this process
)

// freePort finds a port that is free for TCP and UDP.
func freePort(t testing.TB) int {
	t.Helper()
	portsMu.Lock()
	defer portsMu.Unlock()
	for range 1000 {
		port := portMin + rand.IntN(portMax-portMin)
		if ports[port] {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		u, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", port))
		l.Close()
		if err == nil {
			u.Close()
			ports[port] = true
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// Start runs a binary with the node's environment and more.
func (n *Node) Start(binary string, args []string, env ...string) *Process {
	n.T.Helper()
	p := &Process{out: &output{}, done: make(chan struct{})}
	line := append(append(append([]string(nil), n.Wrap...), filepath.Join(Build(n.T), binary)), args...)
	p.cmd = exec.Command(line[0], line[1:]...)
	p.cmd.Env = append(append([]string(nil), n.Env...), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		n.T.Fatal(err)
	}
	go func() { p.cmd.Wait(); close(p.done) }()
	n.mu.Lock()
	n.all = append(n.all, p)
	n.mu.Unlock()
	return p
}

// StartData and StartControl run a plane and wait until it serves, or has ended.
func (n *Node) StartData(env ...string) {
	n.T.Helper()
	n.Data = n.Start("dmp-dataplane", nil, env...)
	n.waitFor(n.Data, "the data plane", n.Answers)
}

func (n *Node) StartControl(env ...string) {
	n.T.Helper()
	n.Control = n.Start("dmp-controlplane", nil, env...)
	n.waitFor(n.Control, "the control plane", func() bool { return n.Status("/health/live") == 200 })
}

// Run starts both.
func (n *Node) Run() *Node {
	n.T.Helper()
	n.StartData()
	n.StartControl()
	n.Healthy()
	return n
}

// Healthy waits until the node says that it is.
func (n *Node) Healthy() {
	n.T.Helper()
	var status int
	var said string
	for end := time.Now().Add(Limit); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if status, said = n.Get("/health"); status == 200 {
			return
		}
	}
	n.T.Fatalf("/health still says %d %s\n%s", status, said, n.Log())
}

// Limit ends a test that fails; nothing waits that long otherwise.
const Limit = 90 * time.Second

// Eventually polls.
func (n *Node) Eventually(what string, f func() bool) {
	n.T.Helper()
	for end := time.Now().Add(Limit); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if f() {
			return
		}
	}
	n.T.Fatalf("never came true: %s\n%s", what, n.Log())
}

func (n *Node) waitFor(p *Process, what string, f func() bool) {
	n.T.Helper()
	n.Eventually(what+" serves", func() bool { return p.Ended() || f() })
}

// Log is what the processes printed.
func (n *Node) Log() string {
	var b strings.Builder
	for name, p := range map[string]*Process{"data": n.Data, "control": n.Control} {
		if p != nil {
			fmt.Fprintf(&b, "--- %s\n%s", name, p.out)
		}
	}
	return b.String()
}

// Status asks for a path and gives the status, 0 if there is no answer.
func (n *Node) Status(path string) int {
	status, _ := n.Get(path)
	return status
}

// Get asks for a path and gives status and body, or 0 and the error.
func (n *Node) Get(path string) (status int, body string) {
	c := http.Client{Timeout: 5 * time.Second, Transport: n.Transport}
	r, err := c.Get(n.HTTP + path)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	b, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return 0, err.Error()
	}
	return r.StatusCode, string(b)
}

// Post posts a record with the operator's token: the status, 0 if there was no answer.
func (n *Node) Post(name, value string) int {
	c := http.Client{Timeout: 30 * time.Second, Transport: n.Transport}
	req, err := http.NewRequest("POST", n.HTTP+"/v1/records/"+name, strings.NewReader(fmt.Sprintf(`{"value":%q,"ttl":3600}`, value)))
	if err != nil {
		n.T.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+Token)
	r, err := c.Do(req)
	if err != nil {
		return 0
	}
	io.Copy(io.Discard, r.Body)
	r.Body.Close()
	return r.StatusCode
}

// Pid is the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Output is what it printed.
func (p *Process) Output() string { return p.out.String() }

// Ended says whether the process is gone.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Wait waits for the end and gives the exit code, -1 for a signal.
func (p *Process) Wait(limit time.Duration) (code int, ok bool) {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), true
	case <-time.After(limit):
		return 0, false
	}
}

// Kill is kill -9.
func (p *Process) Kill() {
	if !p.Ended() {
		_ = p.cmd.Process.Kill()
	}
	<-p.done
}

// Signal sends a signal.
func (p *Process) Signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }
