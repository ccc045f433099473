package dataplane

import (
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/stats"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// TestStoreMetrics: syncs and the control plane's requests are counted.
func TestStoreMetrics(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := requestsLog(t, dir)
	r := startRigIn(t, dir)
	for i := range 3 {
		if _, err := w.Append(record.AppendRequest(nil, &record.Request{Source: record.SourceHTTP, Ops: []record.Op{
			{Kind: record.OpAdd, Name: wire.MustName(fmt.Sprintf("n%d.%s", i, testZone)), RDATA: record.AppendRDATA(nil, []byte("v")), TTLSec: 300}}})); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Sync(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "requests are counted", func() bool { return r.count(stats.RequestsTaken) == 3 })
	r.key("op."+testZone, testZone)
	if rc := r.signed("udp", "op."+testZone, updateMsg(add("a."+testZone, 300, "v"))); rc != dns.RcodeSuccess {
		t.Fatal(rc)
	}
	eventually(t, "syncs are measured", func() bool {
		var b strings.Builder
		if err := r.Page().Write(&b); err != nil {
			t.Fatal(err)
		}
		return r.count(stats.Commits) >= 2 && !strings.Contains(b.String(), "\ndmpd_log_sync_seconds_count 0.0\n")
	})
}
