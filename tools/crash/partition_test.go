package crash

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dnsmesh/dmpd/tools/node"
)

// A cluster of three nodes, each in a network namespace of its own:
//
//	hub   the test's clients, and a bridge
//	nodeN meshN, 10.99.0.N+1, on the bridge: the nodes speak with each other by it
//	      userN, 10.98.N.1, with 10.98.N.2 in the hub: clients speak with the node by it, partition or not
//
// A partition takes the hub's ends of meshN down: frames vanish on the way and no connection is told.
const (
	partitionEnv    = "DMPD_TEST_PARTITION" // tells the test binary that it runs in the hub: the names of the namespaces
	partitionLength = "DMP_PARTITION"       // how long a partition lasts, as Go writes durations
	partitionShort  = 5 * time.Second       // where that is not set; `make partition` sets a minute
	partitionLimit  = 3 * time.Minute       // a peer's back-off grows to one, and a comparison may wait as long
)

// splits are the nodes whose link is cut: the last alone, or each.
var splits = map[string][]int{"two and one": {2}, "all apart": {0, 1, 2}}

// TestPartition: while a cluster is cut in pieces, users publish and delete in all of them and processes are killed. Once it is whole again
// the nodes hold the same, all that was acknowledged is there, and nothing that was deleted is.
//
// It needs root, and touches nothing of the machine's own network.
func TestPartition(t *testing.T) {
	if names := strings.Split(os.Getenv(partitionEnv), ","); len(names) == 2 {
		partitionTest(t, names[0], splits[names[1]])
		return
	}
	t.Parallel()
	length := partitionShort
	if text := os.Getenv(partitionLength); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil || length <= 0 {
			t.Fatalf("%s=%q is no duration: %v", partitionLength, text, err)
		}
	}
	missing := func(format string, args ...any) {
		t.Helper()
		if os.Getenv("CI") == "true" {
			t.Fatalf("not tested, and CI=true: "+format, args...)
		}
		t.Skipf("NOT TESTED: a cluster whose network is cut: "+format, args...)
	}
	if os.Getuid() != 0 {
		missing("needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		missing("needs the command ip (iproute2): %v", err)
	}
	probe := fmt.Sprintf("dmpd-part-%d", os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", probe).CombinedOutput(); err != nil {
		missing("no network namespace can be made: %v: %s", err, out)
	}
	out, err := exec.Command("ip", "-n", probe, "link", "add", "name", "mesh", "type", "bridge").CombinedOutput()
	ipCommand(t, "netns", "del", probe)
	if err != nil {
		missing("no bridge can be made: %v: %s", err, out)
	}
	bin := node.Build(t)
	for name := range splits {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			prefix := fmt.Sprintf("%s-%d", probe, len(name))
			makeNetwork(t, prefix)
			ctx, cancel := context.WithTimeout(context.Background(), length+2*partitionLimit+node.Limit)
			defer cancel()
			cmd := exec.CommandContext(ctx, "ip", "netns", "exec", prefix+"-hub", os.Args[0], "-test.run=^TestPartition$", "-test.count=1", "-test.v", "-test.timeout=0")
			cmd.Env = append(os.Environ(), partitionEnv+"="+prefix+","+name, partitionLength+"="+length.String(), "DMP_TEST_BIN="+bin)
			out, err := cmd.CombinedOutput()
			switch {
			case err != nil:
				t.Errorf("%v\n%s", err, out)
			case !bytes.Contains(out, []byte("--- PASS: TestPartition")):
				t.Errorf("nothing was tested:\n%s", out)
			default:
				t.Logf("%s", out)
			}
		})
	}
}

func ipCommand(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v: %s", args, err, out)
	}
}

// makeNetwork makes the namespaces, and removes them in the end with whatever still runs in them.
func makeNetwork(t *testing.T, prefix string) {
	t.Helper()
	add := func(name string) {
		ipCommand(t, "netns", "add", name)
		t.Cleanup(func() {
			out, _ := exec.Command("ip", "netns", "pids", name).Output()
			for pid := range strings.FieldsSeq(string(out)) {
				if n, err := strconv.Atoi(pid); err == nil {
					_ = syscall.Kill(n, syscall.SIGKILL)
				}
			}
			if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
				t.Errorf("the namespace stays: %v: %s", err, out)
			}
		})
		ipCommand(t, "-n", name, "link", "set", "lo", "up")
	}
	hub := prefix + "-hub"
	add(hub)
	ipCommand(t, "-n", hub, "link", "add", "name", "mesh", "type", "bridge")
	ipCommand(t, "-n", hub, "link", "set", "mesh", "up")
	for i := range 3 {
		ns := fmt.Sprintf("%s-%d", prefix, i)
		add(ns)
		for _, link := range []string{"mesh", "user"} {
			end := fmt.Sprintf("%s%d", link, i)
			ipCommand(t, "-n", hub, "link", "add", "name", end, "type", "veth", "peer", "name", link, "netns", ns)
			if link == "mesh" {
				ipCommand(t, "-n", hub, "link", "set", end, "master", "mesh")
				ipCommand(t, "-n", ns, "addr", "add", fmt.Sprintf("10.99.0.%d/24", i+1), "dev", link)
			} else {
				ipCommand(t, "-n", hub, "addr", "add", fmt.Sprintf("10.98.%d.2/24", i), "dev", end)
				ipCommand(t, "-n", ns, "addr", "add", fmt.Sprintf("10.98.%d.1/24", i), "dev", link)
			}
			ipCommand(t, "-n", hub, "link", "set", end, "up")
			ipCommand(t, "-n", ns, "link", "set", link, "up")
		}
	}
}

// history is what one writer, and nobody else, did to a name.
type history struct {
	name    string
	live    bool // the value was published last; else it was deleted
	unknown bool // an answer is missing, or others wrote too: any outcome will do, as long as it is everybody's
	at      int  // node
	cut     bool // written while the network was cut
}

// histories is what all writers did.
type histories struct {
	mu   sync.Mutex
	all  []*history
	puts int // acknowledged while the network was cut
	dels int
}

func (h *histories) add(x *history) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, x)
	switch {
	case !x.cut || x.unknown:
	case x.live:
		h.puts++
	default:
		h.dels++
	}
}

// partitionTest runs in the hub.
func partitionTest(t *testing.T, prefix string, cut []int) {
	length, err := time.ParseDuration(os.Getenv(partitionLength))
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, cut: %v, for %v", seed, cut, length)
	nodes, keys := partitionNodes(t, prefix)
	const answer = 2 * time.Second // an UPDATE's; a process that was killed gives none
	h := &histories{}

	// What all have before the network is cut.
	const before = 120
	known := make([]*history, before)
	for i := range known {
		x := &history{name: fmt.Sprintf("before-%d.%s", i, node.Zone), live: true, at: i % 3}
		if code := nodes[x.at].Add(keys[x.at], answer, [2]string{x.name, "a"}); code != dns.RcodeSuccess {
			t.Fatalf("%s: %d", x.name, code)
		}
		known[i] = x
	}
	for i, n := range nodes {
		for _, x := range known {
			n.Eventually(fmt.Sprintf("node %d has %s", i, x.name), func() bool { return has(n, x.name) })
		}
	}

	apart := func(i, j int) bool { return i != j && (slices.Contains(cut, i) || slices.Contains(cut, j)) }
	link := func(state string) {
		for _, i := range cut {
			ipCommand(t, "link", "set", fmt.Sprintf("mesh%d", i), state)
		}
	}
	link("down")
	stop := make(chan struct{})
	healed := make(chan struct{})
	var writers sync.WaitGroup
	finish := sync.OnceFunc(func() { close(stop); writers.Wait() })
	defer finish()
	for i, n := range nodes {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		mate := slices.IndexFunc(nodes, func(m *node.Node) bool { return m != n && !apart(i, slices.Index(nodes, m)) })
		writers.Go(func() {
			mine := slices.DeleteFunc(slices.Clone(known), func(x *history) bool { return x.at != i })
			for k := 0; ; k++ {
				isCut := true
				select {
				case <-stop:
					return
				case <-healed:
					isCut = false
				default:
				}
				time.Sleep(time.Duration(5+rng.IntN(20)) * time.Millisecond)
				x := &history{name: fmt.Sprintf("during-%d-%d.%s", i, k, node.Zone), at: i, cut: isCut}
				put := func() bool {
					x.live = true
					x.unknown = x.unknown || n.Add(keys[i], answer, [2]string{x.name, "a"}) != dns.RcodeSuccess
					return !x.unknown
				}
				del := func(at int) {
					x.live = false
					x.unknown = x.unknown || nodes[at].Delete(keys[at], answer, x.name) != dns.RcodeSuccess
				}
				switch k % 6 {
				case 0: // published and deleted again here
					if put() {
						del(i)
					}
				case 1: // or deleted by somebody who has seen it in the same piece
					if put() && mate >= 0 && seen(nodes[mate], x.name) {
						del(mate)
					}
				case 2: // what all have had is deleted, by one who has published it or by another, and half of it published anew
					if len(mine) == 0 {
						break
					}
					x, mine = mine[0], mine[1:]
					x.cut = isCut
					if del((i + k) % 3); k%4 == 2 {
						x.at = i
						if (i+k)%3 == i {
							put()
						}
					}
				case 3: // what two pieces write at the same time
					x.name, x.unknown = fmt.Sprintf("contested-%d.%s", rng.IntN(20), node.Zone), true
					if rng.IntN(2) == 0 {
						n.Add(keys[i], answer, [2]string{x.name, "a"})
					} else {
						n.Delete(keys[i], answer, x.name)
					}
				default:
					put()
				}
				h.add(x)
			}
		})
	}
	began := time.Now()
	killAny(t, nodes, 3, length/4)
	for n := nodes[0]; ; time.Sleep(50 * time.Millisecond) {
		h.mu.Lock()
		puts, dels := h.puts, h.dels
		h.mu.Unlock()
		if time.Since(began) >= length && puts >= 100 && dels >= 30 {
			t.Logf("cut for %v: %d publishes and %d deletes acknowledged", time.Since(began).Round(time.Second), puts, dels)
			break
		}
		if time.Since(began) > length+node.Limit {
			t.Fatalf("only %d publishes and %d deletes\n%s", puts, dels, n.Log())
		}
	}
	// It was a partition: nothing of one piece is in another.
	h.mu.Lock()
	sofar := slices.Clone(h.all)
	h.mu.Unlock()
	absent := 0
	for _, x := range sofar {
		for j, n := range nodes {
			if strings.HasPrefix(x.name, "during-") && x.live && !x.unknown && apart(x.at, j) && absent < 300 {
				if vs, err := n.Values(x.name); err != nil || len(vs) != 0 {
					t.Fatalf("%s of node %d is at node %d: %q, %v", x.name, x.at, j, vs, err)
				}
				absent++
			}
		}
	}

	link("up")
	close(healed)
	began = time.Now()
	time.Sleep(time.Second) // of writes into what comes together
	finish()
	for _, n := range nodes {
		n.Healthy()
	}
	var states []*partitionState
	for ; ; time.Sleep(100 * time.Millisecond) {
		states = states[:0]
		for _, n := range nodes {
			states = append(states, clusterState(n))
		}
		if s := states[0]; s.Sum.Root != "" && s.whole() && states[1].whole() && states[2].whole() && s.Sum == states[1].Sum && s.Sum == states[2].Sum {
			break
		}
		if time.Since(began) > partitionLimit {
			for i, n := range nodes {
				t.Errorf("node %d: %+v\n%s", i, *states[i], n.Log())
			}
			t.Fatal("they do not become equal")
		}
	}
	t.Logf("equal after %v: %d elements, root %s", time.Since(began).Round(time.Millisecond), states[0].Sum.Elements, states[0].Sum.Root)

	// The same, as a user sees it.
	for _, x := range known {
		if !x.cut {
			h.add(x) // untouched since
		}
	}
	var asking sync.WaitGroup
	work := make(chan *history)
	for range 8 {
		asking.Go(func() {
			for x := range work {
				var all [3][]string
				for i, n := range nodes {
					vs, err := n.Values(x.name)
					if err != nil {
						t.Errorf("%s at node %d: %v", x.name, i, err)
					}
					slices.Sort(vs)
					all[i] = vs
				}
				if !slices.Equal(all[0], all[1]) || !slices.Equal(all[0], all[2]) {
					t.Errorf("%s: the nodes say %q", x.name, all)
				}
				if there := len(all[0]) == 1 && all[0][0] == "a"; !x.unknown && there != x.live {
					t.Errorf("%s: want there=%v, the nodes say %q; published at node %d, written during the cut: %v", x.name, x.live, all, x.at, x.cut)
				}
			}
		})
	}
	live, gone, unknown := 0, 0, 0
	for _, x := range h.all {
		work <- x
		switch {
		case x.unknown:
			unknown++
		case x.live:
			live++
		default:
			gone++
		}
	}
	close(work)
	asking.Wait()
	t.Logf("%d names that must be there, %d that must be gone, %d open; %d looked for on the other side of the cut", live, gone, unknown, absent)
}

// partitionNodes starts a node in each namespace.
func partitionNodes(t *testing.T, prefix string) (nodes []*node.Node, keys []node.Key) {
	t.Helper()
	var urls []string
	for i := range 3 {
		n := node.New(t)
		port := n.DNS[strings.LastIndexByte(n.DNS, ':')+1:]
		web := n.HTTP[strings.LastIndexByte(n.HTTP, ':')+1:]
		n.DNS, n.HTTP = fmt.Sprintf("10.98.%d.1:%s", i, port), fmt.Sprintf("http://10.98.%d.1:%s", i, web)
		n.Wrap = []string{"ip", "netns", "exec", fmt.Sprintf("%s-%d", prefix, i)}
		n.Env = append(n.Env, "DMP_DNS_HOST=0.0.0.0", "DMP_HTTP_HOST=0.0.0.0")
		urls = append(urls, fmt.Sprintf("http://10.99.0.%d:%s", i+1, web))
		nodes = append(nodes, n)
	}
	for i, n := range nodes {
		peers := slices.Delete(slices.Clone(urls), i, i+1)
		n.Env = append(n.Env, "DMP_SYNC_PEER_TOKEN=peers", "DMP_SYNC_PEERS="+strings.Join(peers, ","), "DMP_SYNC_INTERVAL=3600", "DMP_SYNC_NATIVE=clear", fmt.Sprint("DMP_NODE_ID=n", i))
		n.Run()
		keys = append(keys, mustMint(n, fmt.Sprintf("k%d.%s", i, node.Zone)))
	}
	for _, n := range nodes {
		n.Eventually("it speaks natively with both others", func() bool { return clusterState(n).whole() })
	}
	return nodes, keys
}

func has(n *node.Node, name string) bool {
	vs, err := n.Values(name)
	return err == nil && slices.Equal(vs, []string{"a"})
}

// seen waits some time for a name to be there, not for ever: the node may have been killed.
func seen(n *node.Node, name string) bool {
	for range 100 {
		if has(n, name) {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

// partitionState is what `dmpd cluster status --json` says.
type partitionState struct {
	Sum struct {
		Root     string `json:"root"`
		Elements int64  `json:"elements"`
		MomentMs int64  `json:"moment_ms"`
	} `json:"sum"`
	Peers []struct {
		URL         string `json:"url"`
		CaughtUp    bool   `json:"caught_up"`
		Native      bool   `json:"native"`
		LastError   string `json:"last_error"`
		Reconnects  int64  `json:"reconnects"`
		PinFailures int64  `json:"pin_failures"`
	} `json:"peers"`
}

// whole says whether a node says that it is equal to both others.
func (s *partitionState) whole() bool {
	for _, p := range s.Peers {
		if !p.CaughtUp || !p.Native {
			return false
		}
	}
	return len(s.Peers) == 2
}

func clusterState(n *node.Node) *partitionState {
	s := &partitionState{}
	p := n.Start("dmpd", []string{"cluster", "status", "--json", "--state-dir", n.Dir})
	p.Wait(node.Limit)
	if text := p.Output(); strings.Contains(text, "{") {
		_ = json.Unmarshal([]byte(text[strings.IndexByte(text, '{'):]), s)
	}
	return s
}
