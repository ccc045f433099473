package bench

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	gcNames   = 10_000_000
	gcWrites  = 1000 // UPDATEs a second
	gcQueries = 5000 // queries a second beside them
	gcIdle    = 10 * time.Second
	// perName bounds what a name takes on disk while the folder is made: two snapshots, and the log of those that are merged.
	perName = 1500
)

// signing is a source of UPDATEs that are signed when they are sent: a signature is good for five minutes only, and so many would fill the memory.
type signing struct{ u Updates }

// Message signs the k-th.
func (s *signing) Message(k uint32) []byte {
	b, err := s.u.sign(k, time.Now().Unix())
	if err != nil {
		return nil // an empty message gets no answer, and counts as lost
	}
	return b
}

// Check wants NOERROR.
func (s *signing) Check(k uint32, reply []byte) error { return s.u.Check(k, reply) }

// collector measures a whole node with many names under steady writes: what its garbage collectors take, and how long it is away when it is started anew.
func (s *Suite) collector(sc *scenario, f *field, dir string) (err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil {
		return fmt.Errorf("bench: %s: %w", dir, err)
	}
	if free, need := int64(disk.Bavail)*disk.Bsize, int64(f.zone.Names)*perName; free < need {
		return fmt.Errorf("bench: %s has %d MB free, and %d names may take %d; fewer with --names", dir, free>>20, f.zone.Names, need>>20)
	}
	began := time.Now()
	if err := writeNode(f.zone, filepath.Join(dir, "state")); err != nil {
		return err
	}
	fmt.Fprintf(s.Progress, "  a folder with %s names was made in %s\n", grouped(f.zone.Names), time.Since(began).Round(time.Second))
	n := &whole{Server: &Server{Name: "dmpd", zone: f.zone}, dir: dir}
	if err := n.start(f); err != nil {
		return err
	}
	defer func() { n.Stop() }()
	ready := n.Ready
	if err := n.healthy(); err != nil {
		return err
	}
	if err := n.settled(); err != nil {
		return err
	}
	memory, files, err := n.PSS()
	if err != nil {
		return err
	}
	fmt.Fprintf(s.Progress, "  it answers after %.2f s, in %d MB and %d of files\n", ready.Seconds(), (memory-files)>>20, files>>20)

	queries := Load{Target: n.Addr, QPS: gcQueries, Sockets: 8, Duration: min(gcIdle, s.Writes)}
	mix := NewMix(f.zone, 10, 1)
	alone, err := queries.Run(mix)
	if err != nil || alone.Wrong > 0 {
		return errors.Join(err, alone.FirstWrong)
	}
	before, err := n.metrics()
	if err != nil {
		return err
	}
	source := &signing{Updates{zone: f.zone, from: uint64(f.zone.Names)}}
	type done struct {
		r   Result
		err error
	}
	wrote := make(chan done, 1)
	go func() {
		runtime.LockOSThread()
		r, err := Load{Target: n.Addr, QPS: gcWrites, Sockets: 8, Duration: s.Writes}.Run(source)
		wrote <- done{r, err}
	}()
	queries.Duration = s.Writes
	beside, err := queries.Run(mix)
	w := <-wrote
	if err := errors.Join(err, w.err); err != nil {
		return err
	}
	if beside.Wrong+w.r.Wrong > 0 {
		return fmt.Errorf("%w: %d of %d queries, %d of %d updates: %w", ErrWrong, beside.Wrong, beside.Sent, w.r.Wrong, w.r.Sent, cmp.Or(beside.FirstWrong, w.r.FirstWrong))
	}
	after, err := n.metrics()
	if err != nil {
		return err
	}
	grown, grownFiles, err := n.PSS()
	if err != nil {
		return err
	}
	delta := func(name string) float64 { return after[name] - before[name] }
	cpu, gc := delta("dmpd_dataplane_cpu_seconds_total"), delta("dmpd_dataplane_gc_cpu_seconds_total")
	cpuControl, gcControl := delta("dmpd_controlplane_cpu_seconds_total"), delta("dmpd_controlplane_gc_cpu_seconds_total")
	pauses := bucketsOf(before, after, "dmpd_dataplane_gc_pause_seconds")
	fmt.Fprintf(s.Progress, "  collector: %.2f of %.1f CPU seconds, %.0f cycles, pauses p99 at most %.3g ms; HTTP process %.2f of %.1f\n", gc, cpu, delta("dmpd_dataplane_gc_cycles_total"), pauses.quantile(0.99)*1000, gcControl, cpuControl)

	// Away: the DNS process killed, which dmpd starts again; then the whole node ended in order and started.
	killed, err := n.killed()
	if err != nil {
		return err
	}
	fmt.Fprintf(s.Progress, "  after SIGKILL of the DNS process it answers again in %.2f s\n", killed.Seconds())
	if w.r.Lost == 0 { // what was acknowledged is there
		back, err := Load{Target: n.Addr, Duration: 5 * time.Minute, Window: 64, Sockets: 8, Messages: w.r.Sent}.Run(source.u.Stored(w.r.Sent))
		if err != nil || back.Wrong+back.Lost > 0 {
			return fmt.Errorf("bench: %d of %d acknowledged records are not there after SIGKILL, %d got no answer: %w", back.Wrong, w.r.Sent, back.Lost, errors.Join(err, back.FirstWrong))
		}
	}
	ended := time.Now()
	n.Stop()
	stopped := time.Since(ended)
	if err := n.start(f); err != nil {
		return err
	}
	restarted := time.Since(ended)
	fmt.Fprintf(s.Progress, "  SIGTERM to the first answer of the next node: %.2f s, of which it ended for %.2f s\n", restarted.Seconds(), stopped.Seconds())

	share := func(part, of float64) string {
		if of <= 0 {
			return ""
		}
		return fmt.Sprintf("%.2f %%", 100*part/of)
	}
	ms := func(r *Result, q float64) float64 { return r.Latency.Quantile(q).Seconds() * 1000 }
	fmt.Fprintf(s.Out, "\n### %s (`%s`)\n\n%s\n\n", sc.title, sc.name, sc.note)
	fmt.Fprintf(s.Out, "| | |\n|---|---|\n")
	for _, line := range [][2]string{
		{"names, seconds of writing", fmt.Sprintf("%s, %.0f", grouped(f.zone.Names), s.Writes.Seconds())},
		{"updates / s, lost of sent; queries / s beside them, lost of sent", fmt.Sprintf("%.0f, %d of %d; %.0f, %d of %d", w.r.Rate(), w.r.Lost, w.r.Sent, beside.Rate(), beside.Lost, beside.Sent)},
		{"garbage collection, share of the DNS process's CPU time", fmt.Sprintf("**%s** (%.3g of %.4g s, %.0f cycles)", share(gc, cpu), gc, cpu, delta("dmpd_dataplane_gc_cycles_total"))},
		{"its pauses, p50, p99 and longest: at most", fmt.Sprintf("%.3g, **%.3g**, %.3g ms", pauses.quantile(0.5)*1000, pauses.quantile(0.99)*1000, pauses.quantile(1)*1000)},
		{"garbage collection, share of the HTTP process's CPU time", fmt.Sprintf("%s (%.3g of %.4g s)", share(gcControl, cpuControl), gcControl, cpuControl)},
		{"update p50, p99", fmt.Sprintf("%.3g, %.3g ms", ms(&w.r, 0.5), ms(&w.r, 0.99))},
		{"query p50, p99 beside them", fmt.Sprintf("%.3g, %.3g ms", ms(&beside, 0.5), ms(&beside, 0.99))},
		{"query p50, p99 without updates", fmt.Sprintf("%.3g, %.3g ms", ms(&alone, 0.5), ms(&alone, 0.99))},
		{"memory of both processes, bytes a name; with pages of files", fmt.Sprintf("%d, %d", (memory-files)/int64(f.zone.Names), memory/int64(f.zone.Names))},
		{"memory MB, after the writes; with pages of files", fmt.Sprintf("%d, %d; %d, %d", (memory-files)>>20, (grown-grownFiles)>>20, memory>>20, grown>>20)},
		{"start to the first right answer", fmt.Sprintf("%.2f s", ready.Seconds())},
		{"SIGKILL of the DNS process to the first right answer", fmt.Sprintf("%.2f s", killed.Seconds())},
		{"SIGTERM of the node, start, to the first right answer", fmt.Sprintf("%.2f s (%.2f until it had ended)", restarted.Seconds(), stopped.Seconds())},
	} {
		fmt.Fprintf(s.Out, "| %s | %s |\n", line[0], line[1])
	}
	s.record("updates", roundOf(&w.r))
	s.record("queries_beside", roundOf(&beside))
	s.record("queries_alone", roundOf(&alone))
	s.record("gc", map[string]any{"cpu_s": cpu, "gc_cpu_s": gc, "cycles": delta("dmpd_dataplane_gc_cycles_total"), "pauses_at_most_s": pauses.ends, "pauses": pauses.counts,
		"http_cpu_s": cpuControl, "http_gc_cpu_s": gcControl, "heap_bytes": after["dmpd_dataplane_heap_bytes"], "http_heap_bytes": after["dmpd_controlplane_heap_bytes"]})
	s.record("memory", map[string]int64{"bytes": memory - files, "file_bytes": files, "bytes_after": grown - grownFiles, "file_bytes_after": grownFiles})
	s.record("seconds_away", map[string]float64{"start": ready.Seconds(), "sigkill": killed.Seconds(), "sigterm": restarted.Seconds(), "ending": stopped.Seconds()})
	return nil
}

// whole is a node with both processes on a folder that may have records.
type whole struct {
	*Server
	dir string
}

// start gives it ports of its own and waits for the first right answer.
func (n *whole) start(f *field) (err error) {
	if n.Addr, err = freePort(); err != nil {
		return err
	}
	if n.http, err = freePort(); err != nil {
		return err
	}
	if err := n.spawnNode(f, n.dir, "DMP_RRL_RATE=0", "DMP_MAX_WRITER_RECORDS=0", "DMP_MAX_RECORDS=0", "DMP_MAX_BYTES=0"); err != nil {
		return err
	}
	if err := n.await(n.zone); err != nil {
		n.Stop()
		return err
	}
	return nil
}

// killed ends the DNS process by SIGKILL and gives the time until there is a right answer again.
func (n *whole) killed() (time.Duration, error) {
	for _, text := range n.pids() {
		name, err := os.ReadFile("/proc/" + text + "/cmdline")
		if err != nil || filepath.Base(strings.SplitN(string(name), "\x00", 2)[0]) != "dmp-dataplane" {
			continue
		}
		pid, err := strconv.Atoi(text)
		if err != nil {
			return 0, err
		}
		n.began = time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return 0, fmt.Errorf("bench: %w", err)
		}
		for { // until its sockets are closed, it could have answered
			if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
				break
			}
			if time.Since(n.began) > readyWithin {
				return 0, errors.New("bench: the DNS process does not end by SIGKILL")
			}
			time.Sleep(time.Millisecond)
		}
		if err := n.await(n.zone); err != nil {
			return 0, err
		}
		return n.Ready, nil
	}
	return 0, errors.New("bench: dmpd has no DNS process")
}

// metrics reads /metrics: the value of each series.
func (n *whole) metrics() (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.http.String()+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer bench")
	reply, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer reply.Body.Close()
	if reply.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("bench: /metrics: %s", reply.Status)
	}
	all := map[string]float64{}
	lines := bufio.NewScanner(reply.Body)
	for lines.Scan() {
		series, value, ok := strings.Cut(lines.Text(), " ")
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil {
			all[series] = v
		}
	}
	if _, ok := all["dmpd_dataplane_cpu_seconds_total"]; !ok && lines.Err() == nil {
		return nil, errors.New("bench: /metrics has nothing of the DNS process")
	}
	return all, lines.Err()
}

// buckets is a histogram of Prometheus, not cumulative.
type buckets struct {
	ends   []float64 // upper ends; the last is the last finite one
	counts []float64
}

// bucketsOf gives what came to a histogram without labels between two readings.
func bucketsOf(before, after map[string]float64, name string) (b buckets) {
	total := after[name+`_bucket{le="+Inf"}`] - before[name+`_bucket{le="+Inf"}`]
	for series := range after {
		le, ok := strings.CutPrefix(series, name+`_bucket{le="`)
		if end, err := strconv.ParseFloat(strings.TrimSuffix(le, `"}`), 64); ok && err == nil && le != `+Inf"}` {
			b.ends = append(b.ends, end)
		}
	}
	slices.Sort(b.ends)
	last := 0.0
	for _, end := range b.ends {
		series := name + `_bucket{le="` + strconv.FormatFloat(end, 'g', -1, 64) + `"}`
		upTo := after[series] - before[series]
		b.counts = append(b.counts, upTo-last)
		last = upTo
	}
	if len(b.counts) > 0 {
		b.counts[len(b.counts)-1] += total - last
	}
	return b
}

// quantile gives the upper end of the bucket in which the quantile is.
func (b *buckets) quantile(q float64) float64 {
	total := 0.0
	for _, n := range b.counts {
		total += n
	}
	left := q * total
	for i, n := range b.counts {
		if left -= n; left <= 0 && n > 0 {
			return b.ends[i]
		}
	}
	return 0
}
