package antientropy

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dnsmesh/dmpd/controlplane/antientropy/simnet"
	"github.com/dnsmesh/dmpd/internal/record"
)

// The simulation behind docs/scaling.md. The replication is the real code; the network is in memory with up to scaleDelay a way and without a
// limit to its bandwidth, the clock is the simulation's, and a data plane is a map that takes scaleSync for each group. Bytes are those of
// the frames, CPU time is the process's, all nodes together.
const (
	scaleDelay   = 2 * time.Millisecond
	scaleSync    = time.Millisecond
	scaleValue   = 300
	scaleProbes  = 40
	scaleBurst   = 500
	scaleMissing = 1000
	idleSeconds  = 60
)

// scaleRun is a cluster of so many nodes with so many records, and what was measured.
type scaleRun struct {
	nodes, records int

	idleBytes, idleCPU     float64 // a second and node
	p50, p99               float64 // ms from the write to the last node
	recordBytes, recordCPU float64 // a record and node that it goes to; us
	backBytes, backSec     float64 // scaleMissing records after a lost cursor; seconds of the simulation
	backCPU                float64 // seconds
	newBytes, newCPU       float64 // a record; us
}

func TestScaling(t *testing.T) {
	dir := os.Getenv("DMP_SCALING") // the folder docs
	runs := []*scaleRun{{nodes: 3, records: 12_000}}
	if testing.Short() { // under the race detector: without the snapshot that a new node of more records takes
		runs[0].records = 2000
	}
	if dir == "" {
		t.Parallel()
	} else {
		runs = nil
		for _, n := range []int{3, 8, 16, 32, 64} {
			runs = append(runs, &scaleRun{nodes: n, records: 10_000})
		}
		runs = append(runs, &scaleRun{nodes: 3, records: 100_000}, &scaleRun{nodes: 3, records: 1_000_000})
	}
	for _, r := range runs {
		synctest.Test(t, func(t *testing.T) { r.run(t) })
		runtime.GC()
		t.Logf("%+v", *r)
		most := 2.0 * scaleValue
		if r.records < snapshotMin { // each of the others may send all of them
			most *= float64(r.nodes)
		}
		if per := r.newBytes; per < 50 || per > most {
			t.Errorf("%.0f bytes to bring a new node a record of %d", per, scaleValue)
		}
		if r.recordBytes < 50 || r.recordBytes > 4*scaleValue {
			t.Errorf("%.0f bytes to tell a node of a record of %d", r.recordBytes, scaleValue)
		}
	}
	if dir == "" {
		return
	}
	if err := writeScaling(dir, runs); err != nil {
		t.Fatal(err)
	}
}

func (r *scaleRun) run(t *testing.T) {
	w := simnet.New(rand.New(rand.NewPCG(1, uint64(r.nodes))), scaleDelay)
	nodes := make([]*simNode, r.nodes+1) // the last one comes new
	for i := range nodes {
		s := &simNode{net: w, id: fmt.Sprintf("node-%d", i)}
		s.store = newMemStore(i, s.nowMs)
		s.store.ageless, s.store.slow = true, scaleSync
		for j := range nodes {
			if i != j {
				id := fmt.Sprintf("node-%d", j)
				s.peers = append(s.peers, Peer{ID: id, URL: "https://" + id})
			}
		}
		nodes[i] = s
	}
	newcomer := nodes[r.nodes]
	nodes = nodes[:r.nodes]
	for _, s := range nodes { // the newcomer is not a member before it comes
		s.peers = slices.DeleteFunc(s.peers, func(p Peer) bool { return p.ID == newcomer.id })
	}
	rng := rand.New(rand.NewPCG(2, uint64(r.records)))
	value := func() string { // as little to compress as a sealed chunk: base64 of random bytes
		const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
		b := make([]byte, scaleValue)
		for i := range b {
			b[i] = digits[rng.IntN(64)]
		}
		return string(b)
	}
	k := 0
	name := func() string { k++; return fmt.Sprintf("\x0c%012x\x04test\x00", k*0x9E3779B97F4A&(1<<48-1)) }
	for range r.records {
		row := nodes[0].store.publish(name(), value(), time.Hour)
		for _, s := range nodes[1:] {
			s.store.rows[row.ID()] = row
		}
	}
	for _, s := range nodes {
		s.store.hlc, s.store.feedMs = nodes[0].store.hlc, nodes[0].store.feedMs
		s.store.frames = nil
		s.store.shorten(0)
		s.store.snapLSN = s.store.gone
		s.start(t)
	}
	converge(t, nodes)

	// at rest
	sent, cpu := bytesOf(nodes), processCPU()
	time.Sleep(idleSeconds * time.Second)
	per := float64(idleSeconds * r.nodes)
	r.idleBytes, r.idleCPU = float64(bytesOf(nodes)-sent)/per, (processCPU()-cpu).Seconds()/per

	// one record
	var took []time.Duration
	for i := range scaleProbes {
		row := nodes[i%r.nodes].store.publish(name(), value(), time.Hour)
		began := time.Now()
		for _, s := range nodes {
			for !s.store.holds(row.ID()) {
				time.Sleep(100 * time.Microsecond)
			}
		}
		took = append(took, time.Since(began))
		time.Sleep(50 * time.Millisecond)
	}
	slices.Sort(took)
	r.p50, r.p99 = took[len(took)/2].Seconds()*1000, took[len(took)*99/100].Seconds()*1000

	// many
	sent, cpu = bytesOf(nodes), processCPU()
	began := time.Now()
	for i := range scaleBurst {
		nodes[i%r.nodes].store.publish(name(), value(), time.Hour)
		time.Sleep(time.Millisecond)
	}
	converge(t, nodes)
	rest := time.Since(began).Seconds() * float64(r.nodes)
	per = float64(scaleBurst * (r.nodes - 1))
	r.recordBytes = (float64(bytesOf(nodes)-sent) - r.idleBytes*rest) / per
	r.recordCPU = max(0, (processCPU()-cpu).Seconds()-r.idleCPU*rest) / per * 1e6

	// a node that was away, and whose place in the logs is lost
	away := nodes[r.nodes-1]
	away.stop()
	for i := range scaleMissing {
		nodes[i%(r.nodes-1)].store.publish(name(), value(), time.Hour)
		time.Sleep(time.Millisecond)
	}
	convergeWithout(t, nodes[:r.nodes-1], away.id)
	away.cursors.m = nil
	before, cpu := bytesOf(nodes[:r.nodes-1]), processCPU()
	began = time.Now()
	away.start(t)
	converge(t, nodes)
	r.backSec = time.Since(began).Seconds()
	rest = r.backSec * float64(r.nodes)
	r.backBytes = max(0, float64(bytesOf(nodes)-before)-r.idleBytes*rest)
	r.backCPU = max(0, (processCPU()-cpu).Seconds()-r.idleCPU*rest)

	// a new one; the others' logs were merged into snapshots
	for _, s := range nodes {
		s.store.shorten(0)
	}
	before, cpu = bytesOf(nodes), processCPU()
	began = time.Now()
	newcomer.start(t)
	for newcomer.native.Status().Elements < int64(r.records) {
		if time.Since(began) > 10*time.Minute {
			t.Fatalf("the new node has %d of %d records", newcomer.native.Status().Elements, r.records)
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.newBytes = float64(bytesOf(nodes)-before) / float64(r.records)
	r.newCPU = (processCPU() - cpu).Seconds() / float64(r.records) * 1e6
	newcomer.stop()
	for _, s := range nodes {
		s.stop()
	}
}

// convergeWithout waits for the nodes that are up.
func convergeWithout(t *testing.T, nodes []*simNode, without string) {
	for began := time.Now(); ; time.Sleep(time.Second) {
		same := true
		for _, s := range nodes {
			st := s.native.Status()
			same = same && st.Root == nodes[0].native.Status().Root && st.CutMs == nodes[0].native.Status().CutMs
		}
		if same {
			return
		}
		if time.Since(began) > 10*time.Minute {
			t.Fatalf("no convergence without %s", without)
		}
	}
}

func (s *memStore) holds(id record.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.rows[id]
	return ok
}

func bytesOf(nodes []*simNode) (sum int64) {
	for _, s := range nodes {
		sum += s.native.Status().BytesOut
	}
	return sum
}

func processCPU() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// writeScaling puts table and plot into the document.
func writeScaling(dir string, runs []*scaleRun) error {
	const begin, end = "<!-- runs -->\n", "<!-- end -->\n"
	path := filepath.Join(dir, "scaling.md")
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(b, []byte(begin))
	_, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		return fmt.Errorf("%s has no place for the table", path)
	}
	var t strings.Builder
	fmt.Fprintf(&t, "| nodes | records | at rest, bytes / s a node | CPU | a record at all nodes, ms p50 | p99 | bytes a record and node | CPU us | %d missed, KB | s | CPU s | new node, bytes a record | CPU us |\n|%s\n", scaleMissing, strings.Repeat("---|", 13))
	for _, r := range runs {
		fmt.Fprintf(&t, "| %d | %d | %.0f | %.2f %% | %.1f | %.1f | %.0f | %.0f | %.0f | %.1f | %.2f | %.0f | %.0f |\n", r.nodes, r.records, r.idleBytes, 100*r.idleCPU, r.p50, r.p99, r.recordBytes, r.recordCPU,
			r.backBytes/1000, r.backSec, r.backCPU, r.newBytes, r.newCPU)
	}
	text := string(before) + begin + t.String() + end + string(after)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "scaling.svg"), []byte(plotScaling(runs)), 0o644)
}

// panel is one plot, both axes logarithmic.
type panel struct {
	title, x, y string
	dots        [][2]float64
	line        func(x float64) float64 // the model
	from, to    float64
}

func plotScaling(runs []*scaleRun) string {
	byNodes := func(f func(r *scaleRun) float64) (d [][2]float64) {
		for _, r := range runs {
			if r.records == runs[0].records {
				d = append(d, [2]float64{float64(r.nodes), f(r)})
			}
		}
		return d
	}
	byRecords := func(f func(r *scaleRun) float64) (d [][2]float64) {
		for _, r := range runs {
			if r.nodes == runs[0].nodes {
				d = append(d, [2]float64{float64(r.records), f(r)})
			}
		}
		return d
	}
	first := func(d [][2]float64) float64 { return d[0][1] }
	last := func(d [][2]float64) [2]float64 { return d[len(d)-1] }
	idle := byNodes(func(r *scaleRun) float64 { return r.idleBytes })
	one := byNodes(func(r *scaleRun) float64 { return r.p99 })
	out := byNodes(func(r *scaleRun) float64 { return r.recordBytes * float64(r.nodes-1) })
	back := byRecords(func(r *scaleRun) float64 { return r.backBytes })
	whole := byRecords(func(r *scaleRun) float64 { return r.newBytes * float64(r.records) })
	work := byRecords(func(r *scaleRun) float64 { return r.newCPU * float64(r.records) / 1e6 })
	panels := []panel{
		{"A record at all nodes, p99", "nodes", "ms", one, func(float64) float64 { return first(one) }, 3, 100},
		{"Bytes sent for a record, all nodes", "nodes", "bytes", out, func(x float64) float64 { return first(out) / 2 * (x - 1) }, 3, 100},
		{"At rest, a node", "nodes", "bytes / s", idle, func(x float64) float64 { return first(idle) / 2 * (x - 1) }, 3, 100},
		{"1,000 missed, no cursor", "records", "bytes", back, backModel(back), 1e4, 1e7},
		{"A new node", "records", "bytes", whole, func(x float64) float64 { return last(whole)[1] / last(whole)[0] * x }, 1e4, 1e7},
		{"A new node, CPU of both ends", "records", "s", work, func(x float64) float64 { return last(work)[1] / last(work)[0] * x }, 1e4, 1e7},
	}
	const w, h, left, top = 300, 210, 52, 30
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11"><rect width="100%%" height="100%%" fill="#fff"/>`+"\n", 3*w, 2*h+24)
	for i, p := range panels {
		lo, hi := math.Inf(1), math.Inf(-1)
		for _, d := range p.dots {
			lo, hi = min(lo, d[1]), max(hi, d[1])
		}
		for _, x := range []float64{p.from, p.to} {
			lo, hi = min(lo, p.line(x)), max(hi, p.line(x))
		}
		lo, hi = math.Pow(10, math.Floor(math.Log10(max(lo, 1e-3)))), math.Pow(10, math.Ceil(math.Log10(max(hi, 1e-2))))
		x0, y0 := float64(i%3*w+left), float64(i/3*h+top)
		pw, ph := float64(w-left-16), float64(h-top-40)
		sx := func(x float64) float64 { return x0 + pw*math.Log(x/p.from)/math.Log(p.to/p.from) }
		sy := func(y float64) float64 { return y0 + ph - ph*math.Log(max(y, lo)/lo)/math.Log(hi/lo) }
		fmt.Fprintf(&b, `<text x="%.0f" y="%.0f" font-weight="bold">%s</text><rect x="%.0f" y="%.0f" width="%.0f" height="%.0f" fill="none" stroke="#999"/>`+"\n", x0, y0-8, p.title, x0, y0, pw, ph)
		for y := lo; y <= hi*1.001; y *= 10 {
			fmt.Fprintf(&b, `<line x1="%.0f" x2="%.0f" y1="%.1f" y2="%.1f" stroke="#e5e5e5"/><text x="%.0f" y="%.1f" text-anchor="end">%s</text>`+"\n", x0, x0+pw, sy(y), sy(y), x0-4, sy(y)+4, short(y))
		}
		ticks := []float64{3, 10, 32, 100}
		if p.to > 1000 {
			ticks = []float64{1e4, 1e5, 1e6, 1e7}
		}
		for _, x := range ticks {
			fmt.Fprintf(&b, `<text x="%.1f" y="%.0f" text-anchor="middle">%s</text>`+"\n", sx(x), y0+ph+14, short(x))
		}
		fmt.Fprintf(&b, `<text x="%.0f" y="%.0f" text-anchor="middle">%s</text><text x="%.0f" y="%.0f" text-anchor="end">%s</text><path fill="none" stroke="#888" stroke-dasharray="5 3" d="`, x0+pw/2, y0+ph+28, p.x, x0+pw, y0-8, p.y)
		for s := range 41 {
			x := p.from * math.Pow(p.to/p.from, float64(s)/40)
			fmt.Fprintf(&b, "%c%.1f %.1f", "ML"[min(s, 1)], sx(x), sy(p.line(x)))
		}
		b.WriteString(`"/>` + "\n")
		for _, d := range p.dots {
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="4" fill="#06c"/>`, sx(d[0]), sy(d[1]))
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, `<circle cx="%d" cy="%d" r="4" fill="#06c"/><text x="%d" y="%d">run</text><path stroke="#888" stroke-dasharray="5 3" d="M%d %dh30"/><text x="%d" y="%d">model</text></svg>`+"\n",
		left, 2*h+10, left+10, 2*h+14, left+60, 2*h+10, left+96, 2*h+14)
	return b.String()
}

// backModel: what is missing itself, and with each of them the elements of its leaf, which grow with the records; through the first and the
// last run.
func backModel(d [][2]float64) func(x float64) float64 {
	first, last := d[0], d[len(d)-1]
	slope := (last[1] - first[1]) / (last[0] - first[0])
	return func(x float64) float64 { return first[1] + slope*(x-first[0]) }
}

func short(v float64) string {
	for _, u := range []struct {
		v float64
		s string
	}{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if v >= u.v*0.999 {
			return fmt.Sprintf("%.3g%s", v/u.v, u.s)
		}
	}
	return fmt.Sprintf("%.3g", v)
}
