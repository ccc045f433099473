package controlplane

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/record"
)

// TestHeartbeat: the record reaches the data plane through the requests log, one value at a time, also over a restart; what keeps the
// node from announcing itself does not keep it from serving.
func TestHeartbeat(t *testing.T) {
	t.Parallel()
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(strings.Repeat("07", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"DMP_HEARTBEAT_ENABLED=1", "DMP_HEARTBEAT_SELF_ENDPOINT=https://mesh.test", "DMP_HEARTBEAT_OPERATOR_KEY_PATH=" + key, "DMP_HEARTBEAT_INTERVAL_SECONDS=0.2"}
	n := startNode(t, env...)
	heartbeat := func() (h record.Heartbeat, count int) {
		values, err := n.lookup("_dnsmesh-heartbeat.mesh.test")
		if err != nil {
			return h, 0 // the view is being opened
		}
		for _, v := range values {
			if r := h.Verify([]byte(v), clock.NowMs()/1000, record.HeartbeatSkewSec); r != record.Accepted {
				t.Fatalf("%q: %v", v, r)
			}
		}
		return h, len(values)
	}
	eventually(t, "a heartbeat", func() bool { _, count := heartbeat(); return count == 1 })
	first, _ := heartbeat()
	if first.Zone != "mesh.test" || first.Capabilities != record.CapClaimProvider || first.Endpoint != "https://mesh.test" {
		t.Fatalf("%+v", first)
	}
	eventually(t, "a later one in its place", func() bool { h, count := heartbeat(); return count == 1 && h.TsSec > first.TsSec })
	if a := n.do("GET", "/", "", ""); !strings.Contains(a.body, "announces itself") {
		t.Error("the landing page does not say so")
	}
	n.Stop()
	d := n.d
	n = startServer(t, n.dir, append(env, "DMP_CLAIM_PROVIDER=0")...)
	n.d = d
	n.waitHealthy()
	eventually(t, "one without the claims, in the old one's place", func() bool { h, count := heartbeat(); return count == 1 && h.Capabilities == 0 })

	for _, bad := range [][]string{
		{"DMP_HEARTBEAT_ENABLED=1"},
		{env[0], env[1], "DMP_HEARTBEAT_OPERATOR_KEY_PATH=" + key + ".missing"},
		{env[0], "DMP_HEARTBEAT_SELF_ENDPOINT=https://127.0.0.1", env[2]},
	} {
		if m := startNode(t, bad...); m.heart != nil {
			t.Errorf("%q: a heartbeat", bad)
		}
	}
}
