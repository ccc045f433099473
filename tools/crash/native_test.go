package crash

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dnsmesh/dmpd/tools/node"
)

// threeNodes are nodes that replicate natively with each other. A pull would take an hour to begin.
func threeNodes(t *testing.T) (nodes []*node.Node, keys []node.Key) {
	t.Helper()
	for range 3 {
		nodes = append(nodes, node.New(t))
	}
	for i, n := range nodes {
		var peers []string
		for j, p := range nodes {
			if j != i {
				peers = append(peers, p.HTTP)
			}
		}
		n.Env = append(n.Env, "DMP_SYNC_PEER_TOKEN=peers", "DMP_SYNC_PEERS="+strings.Join(peers, ","), "DMP_SYNC_INTERVAL=3600", "DMP_SYNC_NATIVE=clear", fmt.Sprint("DMP_NODE_ID=n", i))
		if i == 2 { // its HTTP process is up before there is anything of the DNS process, not even the folder's files
			n.StartControl()
			n.StartData()
			n.Healthy()
			continue
		}
		n.Run()
	}
	for i, n := range nodes {
		keys = append(keys, mustMint(n, fmt.Sprintf("k%d.%s", i, node.Zone)))
	}
	return nodes, keys
}

// remove deletes all values at a name, over HTTP.
func remove(n *node.Node, name string) bool {
	req, err := http.NewRequest("DELETE", n.HTTP+"/v1/records/"+name, nil)
	if err != nil {
		n.T.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+node.Token)
	r, err := (&http.Client{Timeout: 30 * time.Second}).Do(req)
	if err != nil {
		return false
	}
	r.Body.Close()
	return r.StatusCode == http.StatusNoContent
}

// TestNative: three nodes that speak with each other natively. What is published at one is at the others, what is deleted at one is gone at the
// others, whichever process is killed meanwhile, and in the end they say themselves that they are equal.
func TestNative(t *testing.T) {
	t.Parallel()
	nodes, keys := threeNodes(t)
	stop := make(chan struct{})
	var clients sync.WaitGroup
	finish := sync.OnceFunc(func() { close(stop); clients.Wait() })
	defer finish()
	var mu sync.Mutex
	there, gone := []string{}, []string{}
	for i, n := range nodes {
		clients.Go(func() {
			for k := 0; ; k++ {
				select {
				case <-stop:
					return
				case <-time.After(3 * time.Millisecond):
				}
				name := fmt.Sprintf("c%d-%d.%s", i, k, node.Zone)
				if n.Add(keys[i], 300*time.Millisecond, [2]string{name, "a"}) != dns.RcodeSuccess {
					continue
				}
				// Every seventh is deleted again, here or elsewhere once it is there.
				if k%7 != 0 {
					mu.Lock()
					there = append(there, name)
					mu.Unlock()
					continue
				}
				other := nodes[(i+k)%3]
				for range 100 {
					if vs, err := other.Values(name); err == nil && len(vs) == 1 {
						break
					}
					time.Sleep(10 * time.Millisecond)
				}
				if vs, err := other.Values(name); err == nil && len(vs) == 1 && remove(other, name) {
					mu.Lock()
					gone = append(gone, name)
					mu.Unlock()
				}
			}
		})
	}
	killAny(t, nodes, 15, 400*time.Millisecond)
	finish()
	t.Logf("%d published, %d deleted", len(there), len(gone))
	if len(there) < 60 || len(gone) < 3 {
		t.Error("that shows little")
	}
	for _, n := range nodes {
		n.Healthy()
		n.Eventually("it says that it is equal to both others", func() bool {
			out := n.Start("dmpd", []string{"cluster", "status", "--json", "--state-dir", n.Dir})
			out.Wait(node.Limit)
			var info struct {
				Peers []struct {
					CaughtUp bool `json:"caught_up"`
					Native   bool `json:"native"`
				} `json:"peers"`
			}
			text := out.Output()
			if i := strings.IndexByte(text, '{'); i < 0 || json.Unmarshal([]byte(text[i:]), &info) != nil {
				return false
			}
			for _, p := range info.Peers {
				if !p.Native || !p.CaughtUp {
					return false
				}
			}
			return len(info.Peers) == 2
		})
	}
	for i, n := range nodes {
		for _, name := range there {
			n.Eventually(fmt.Sprintf("node %d has %s", i, name), func() bool {
				vs, err := n.Values(name)
				return err == nil && slices.Equal(vs, []string{"a"})
			})
		}
		for _, name := range gone {
			n.Eventually(fmt.Sprintf("node %d has not %s", i, name), func() bool {
				vs, err := n.Values(name)
				return err == nil && len(vs) == 0
			})
		}
	}
}

// TestNativeLater: a cluster in which one node speaks v1 at first, and all speak natively then. By v1 that node learns nothing of deletes, and of
// the time of a publish only what a clock of whole seconds tells it. What was deleted elsewhere stays deleted.
func TestNativeLater(t *testing.T) {
	t.Parallel()
	nodes := []*node.Node{node.New(t), node.New(t), node.New(t)}
	run := func(i int, native string, peers ...int) {
		n := nodes[i]
		var urls []string
		for _, p := range peers {
			urls = append(urls, nodes[p].HTTP)
		}
		n.StartControl("DMP_SYNC_PEER_TOKEN=peers", "DMP_SYNC_PEERS="+strings.Join(urls, ","), "DMP_SYNC_INTERVAL=0.2", "DMP_SYNC_NATIVE="+native, fmt.Sprint("DMP_NODE_ID=n", i))
		n.Healthy()
	}
	var keys []node.Key
	for i, n := range nodes {
		n.StartData()
		switch i {
		case 0:
			run(i, "clear", 1)
		case 1: // it hears of no delete
			run(i, "clear", 2)
		case 2:
			run(i, "off", 1)
		}
		keys = append(keys, mustMint(n, fmt.Sprintf("k%d.%s", i, node.Zone)))
	}
	var gone []string
	for k := range 10 {
		name := fmt.Sprintf("c%d.%s", k, node.Zone)
		if code := nodes[1].Add(keys[1], node.Limit, [2]string{name, "a"}); code != dns.RcodeSuccess {
			t.Fatalf("%s: %d", name, code)
		}
		nodes[0].Eventually("node 0 has "+name, func() bool { return has(nodes[0], name) })
		if code := nodes[0].Delete(keys[0], node.Limit, name); code != dns.RcodeSuccess {
			t.Fatalf("%s: %d", name, code)
		}
		nodes[2].Eventually("node 2 has "+name, func() bool { return has(nodes[2], name) })
		gone = append(gone, name)
	}
	for i, n := range nodes {
		n.Control.Kill()
		run(i, "clear", (i+1)%3, (i+2)%3)
	}
	for i, n := range nodes {
		n.Eventually("it says that it is equal to both others", func() bool { return clusterState(n).whole() })
		for _, name := range gone {
			if has(n, name) {
				t.Errorf("node %d has %s, which was deleted", i, name)
			}
		}
	}
}
