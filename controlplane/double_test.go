package controlplane

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/config"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/stats"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

// double stands in for the data plane in these tests: the real files, a store of a map. It reads the requests log to its end before it
// applies anything, as the real one does.
type double struct {
	t    testing.TB
	dir  string // state folder
	lock *journal.FileLock
	live *journal.Live
	w    *journal.Writer
	page *stats.Page

	hang      atomic.Bool  // holds its lock, does nothing, does not beat
	idle      atomic.Int64 // rounds in which it did so
	valuesMax int

	mu      sync.Mutex
	rows    map[string]map[string]record.Row // by name, by RDATA
	feedMs  int64
	hlc     record.HLC
	taken   record.Entry
	stop    chan struct{}
	done    chan struct{}
	stopped bool
}

// hangs has it hang, and returns when it does: what is under way is done by then.
func (d *double) hangs(t testing.TB) {
	t.Helper()
	was := d.idle.Load()
	d.hang.Store(true)
	eventually(t, "the data plane hangs", func() bool { return d.idle.Load() != was })
}

func startDouble(t testing.TB, dir string) *double {
	t.Helper()
	d := &double{t: t, dir: dir, rows: map[string]map[string]record.Row{}, valuesMax: 64, stop: make(chan struct{}), done: make(chan struct{})}
	data := filepath.Join(dir, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		t.Fatal(err)
	}
	var err error
	if d.lock, err = journal.Lock(filepath.Join(data, "lock")); err != nil {
		t.Fatal(err)
	}
	d.w, err = journal.Open(journal.Options{Dir: data, Name: "rows"}, 0, func(_ uint64, p []byte) error {
		return record.ReadFrame(p, func(feedMs int64, e *record.Entry) error {
			d.feedMs = max(d.feedMs, feedMs)
			switch e.Kind {
			case record.KindPut:
				row := e.Row
				row.Name, row.RDATA = bytes.Clone(row.Name), bytes.Clone(row.RDATA)
				d.put(row)
			case record.KindTombstone:
				for rdata, row := range d.rows[string(e.Row.Name)] {
					if row.Hash == e.Row.Hash {
						delete(d.rows[string(e.Row.Name)], rdata)
					}
				}
			case record.KindTaken:
				d.taken = *e
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if d.page, err = stats.Create(filepath.Join(data, "counters"), 1); err != nil {
		t.Fatal(err)
	}
	if d.live, err = journal.CreateLive(vfs.OS, filepath.Join(data, "live"), "double"); err != nil {
		t.Fatal(err)
	}
	d.live.Beat(clock.NowMs())
	go d.run()
	t.Cleanup(d.kill)
	return d
}

// kill ends it as a crash would: nothing more is written.
func (d *double) kill() {
	d.mu.Lock()
	if d.stopped {
		d.mu.Unlock()
		return
	}
	d.stopped = true
	d.mu.Unlock()
	d.hang.Store(false)
	close(d.stop)
	<-d.done
	d.w.Close()
	d.lock.Close()
}

func (d *double) put(row record.Row) {
	name := string(row.Name)
	if d.rows[name] == nil {
		d.rows[name] = map[string]record.Row{}
	}
	d.rows[name][string(row.RDATA)] = row
}

func (d *double) run() {
	defer close(d.done)
	var requests, state *journal.Reader
	defer func() {
		for _, r := range []*journal.Reader{requests, state} {
			if r != nil {
				r.Close()
			}
		}
	}()
	control := filepath.Join(d.dir, "control")
	for {
		select {
		case <-d.stop:
			return
		case <-time.After(time.Millisecond):
		}
		if d.hang.Load() {
			d.idle.Add(1)
			continue
		}
		d.live.Beat(clock.NowMs())
		if requests == nil {
			requests, _ = journal.OpenReader(vfs.OS, control, "requests", 0)
			if requests != nil && requests.Epoch() == d.taken.RequestsEpoch {
				requests.Close()
				requests, _ = journal.OpenReader(vfs.OS, control, "requests", d.taken.Requests+1)
			}
		}
		if state == nil {
			state, _ = journal.OpenReader(vfs.OS, control, "state", 0)
		}
		if state != nil {
			for {
				lsn, _, ok, err := state.Next()
				if err != nil {
					state.Close()
					state = nil
				}
				if !ok {
					break
				}
				d.taken.StateEpoch, d.taken.State = state.Epoch(), lsn
				d.live.SetTaken(journal.TakenState, state.Epoch(), lsn)
				d.live.Ring()
			}
		}
		if requests != nil {
			if err := d.take(requests); err != nil {
				requests.Close()
				requests = nil
				if !errors.Is(err, journal.ErrEpoch) && !errors.Is(err, journal.ErrGone) {
					d.t.Errorf("the double cannot read requests: %v", err)
				}
			}
		}
	}
}

// take reads all there is, then applies what was not voided.
func (d *double) take(r *journal.Reader) error {
	type item struct {
		lsn uint64
		req *record.Request
	}
	var items []item
	voided := map[uint64]bool{}
	last := uint64(0)
	for {
		lsn, p, ok, err := r.Next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		last = lsn
		req, of, err := record.ReadRequest(bytes.Clone(p))
		if err != nil {
			d.t.Errorf("%v", err)
			continue
		}
		if req == nil {
			voided[of] = true
		} else {
			items = append(items, item{lsn, req})
		}
	}
	if last == 0 {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.feedMs = max(clock.NowMs(), d.feedMs+1)
	var es []record.Entry
	for _, it := range items {
		e := record.Entry{Kind: record.KindOutcome, LSN: it.lsn, Code: record.CodeVoid}
		if !voided[it.lsn] {
			es, e.Code = d.apply(es, it.req)
		}
		es = append(es, e)
	}
	d.taken.Kind = record.KindTaken
	d.taken.RequestsEpoch, d.taken.Requests = r.Epoch(), last
	es = append(es, d.taken)
	if _, err := d.w.Append(record.AppendFrame(nil, d.feedMs, es)); err != nil {
		d.t.Error(err)
	}
	if err := d.w.Sync(); err != nil {
		d.t.Error(err)
	}
	d.live.SetTaken(journal.TakenRequests, r.Epoch(), last)
	live := 0
	for _, rows := range d.rows {
		live += len(rows)
	}
	d.page.Shard(0).Set(stats.Records, uint64(live))
	d.live.Ring()
	return nil
}

func (d *double) apply(es []record.Entry, req *record.Request) ([]record.Entry, record.Code) {
	code := record.CodeStored
	for _, op := range req.Ops {
		name := string(op.Name)
		d.hlc = d.hlc.Next(d.feedMs)
		switch op.Kind {
		case record.OpAdd:
			if _, there := d.rows[name][string(op.RDATA)]; !there && len(d.rows[name]) >= d.valuesMax {
				return es, record.CodeFull
			}
			row := record.Row{Name: op.Name, RDATA: op.RDATA, Hash: record.HashOf(op.RDATA), FeedMs: d.feedMs, Add: d.hlc, ExpMs: d.feedMs + int64(op.TTLSec)*1000}
			d.put(row)
			es = append(es, record.Entry{Kind: record.KindPut, Row: row})
		case record.OpDelete, record.OpDeleteRRset:
			code = record.CodeAbsent
			for rdata, row := range d.rows[name] {
				if op.Kind == record.OpDelete && rdata != string(op.RDATA) {
					continue
				}
				delete(d.rows[name], rdata)
				row.RDATA, row.Del = nil, d.hlc
				es = append(es, record.Entry{Kind: record.KindTombstone, Row: row})
				code = record.CodeStored
			}
		}
	}
	return es, code
}

// node is a control plane over a double.
type node struct {
	*Server
	t    testing.TB
	dir  string
	base string
	d    *double
}

func settings(t testing.TB, dir string, more ...string) *config.Config {
	t.Helper()
	c, _, errs := config.Resolve(config.Input{Environ: append([]string{"DMP_STATE_DIR=" + dir, "DMP_HTTP_HOST=127.0.0.1", "DMP_HTTP_PORT=0", "DMP_DOMAIN=mesh.test", "DMP_NODE_HOSTNAME=mesh.test",
		"DMP_OPERATOR_TOKEN=operator", "DMP_HTTP_RATE=0", "DMP_DNS_UPDATE_ENABLED=1", "DMP_REGISTRATION_ENDPOINT_RATE_PER_SEC=0"}, more...)})
	if errs != nil {
		t.Fatal(errs)
	}
	return c
}

func startNode(t testing.TB, more ...string) *node {
	t.Helper()
	dir := t.TempDir()
	d := startDouble(t, dir)
	n := startServer(t, dir, more...)
	n.d = d
	n.waitHealthy()
	return n
}

func startServer(t testing.TB, dir string, more ...string) *node {
	t.Helper()
	s, err := Start(settings(t, dir, more...), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Stop() })
	return &node{Server: s, t: t, dir: dir, base: "http://" + s.Addrs()[0].String()}
}

// eventually polls for a condition; the limit only ends a test that fails.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("never came true: %s", what)
}

func (n *node) waitHealthy() {
	n.t.Helper()
	eventually(n.t, "healthy", func() bool {
		r, err := http.Get(n.base + "/health")
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
}
