package crash

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dnsmesh/dmpd/tools/node"
)

// killAny kills a process of one of the nodes and starts it again, so many times, with up to a pause between them.
func killAny(t *testing.T, nodes []*node.Node, times int, pause time.Duration) {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	for range times {
		time.Sleep(time.Duration(rng.Int64N(int64(pause))))
		n := nodes[rng.IntN(len(nodes))]
		if rng.IntN(2) == 0 {
			n.Data.Kill()
			n.StartData()
		} else {
			n.Control.Kill()
			n.StartControl()
		}
		if n.Data.Ended() || n.Control.Ended() {
			t.Fatalf("it does not start again:\n%s", n.Log())
		}
	}
}

// TestReplication: two nodes that pull from each other, of which either process of either is killed again and again while users publish at both.
// Afterwards both have all that was acknowledged at either.
func TestReplication(t *testing.T) {
	t.Parallel()
	nodes := []*node.Node{node.New(t), node.New(t)}
	for i, n := range nodes {
		n.Env = append(n.Env, "DMP_SYNC_PEER_TOKEN=peers", "DMP_SYNC_PEERS="+nodes[1-i].HTTP, "DMP_SYNC_INTERVAL=0.2", fmt.Sprint("DMP_NODE_ID=n", i))
		n.Run()
	}
	keys := []node.Key{mustMint(nodes[0], "k0."+node.Zone), mustMint(nodes[1], "k1."+node.Zone)}
	stop := make(chan struct{})
	var clients sync.WaitGroup
	finish := sync.OnceFunc(func() { close(stop); clients.Wait() })
	defer finish()
	var mu sync.Mutex
	acked := []string{}
	for i, n := range nodes {
		clients.Go(func() {
			for k := 0; ; k++ {
				select {
				case <-stop:
					return
				case <-time.After(2 * time.Millisecond):
				}
				name := fmt.Sprintf("c%d-%d.%s", i, k, node.Zone)
				if n.Add(keys[i], 300*time.Millisecond, [2]string{name, "a"}) == dns.RcodeSuccess {
					mu.Lock()
					acked = append(acked, name)
					mu.Unlock()
				}
			}
		})
	}
	killAny(t, nodes, 24, 200*time.Millisecond)
	finish()
	if len(acked) < 100 {
		t.Errorf("only %d messages were acknowledged: the test shows little", len(acked))
	}
	t.Logf("%d acknowledged", len(acked))
	for i, n := range nodes {
		n.Healthy()
		for _, name := range acked {
			n.Eventually(fmt.Sprintf("node %d has %s", i, name), func() bool {
				vs, err := n.Values(name)
				return err == nil && slices.Equal(vs, []string{"a"})
			})
		}
	}
}
