package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// checkContenders are those that dnsperf loads.
var checkContenders = []string{"dmpd", "nsd", "nsd-mmsg", "knot", "bind"}

const (
	// dnsperfSpare is how much longer than its run dnsperf may take, for reading its queries and waiting for what is lost.
	dnsperfSpare = time.Minute
	// What both generators keep under way, and from how many ports.
	checkWindow, checkSockets = 128, 8
)

// perfReport is what dnsperf says at the end.
type perfReport struct {
	sent, completed, lost int
	seconds               float64
	codes                 map[string]int
}

var (
	perfNumber = regexp.MustCompile(`(?m)^\s*(Queries sent|Queries completed|Queries lost|Run time \(s\)):\s+([0-9.]+)`)
	perfCodes  = regexp.MustCompile(`(?m)^\s*Response codes:\s+(.*)$`)
	perfCode   = regexp.MustCompile(`([A-Z0-9]+) ([0-9]+)`)
)

func parsePerf(out string) (r perfReport, err error) {
	seen := 0
	for _, m := range perfNumber.FindAllStringSubmatch(out, -1) {
		v, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return r, fmt.Errorf("bench: dnsperf: %w", err)
		}
		seen++
		switch m[1] {
		case "Queries sent":
			r.sent = int(v)
		case "Queries completed":
			r.completed = int(v)
		case "Queries lost":
			r.lost = int(v)
		default:
			r.seconds = v
		}
	}
	r.codes = map[string]int{}
	if m := perfCodes.FindStringSubmatch(out); m != nil {
		for _, c := range perfCode.FindAllStringSubmatch(m[1], -1) {
			r.codes[c[1]], _ = strconv.Atoi(c[2])
		}
	}
	if seen != 4 || r.seconds <= 0 {
		return r, fmt.Errorf("bench: dnsperf says something else than expected: %.500s", out)
	}
	return r, nil
}

// check judges the rcodes; misses of a hundred names do not exist.
func (r perfReport) check(misses int) error {
	none := r.codes["NXDOMAIN"]
	if other := r.completed - none - r.codes["NOERROR"]; other != 0 || r.completed == 0 {
		return fmt.Errorf("%w: dnsperf got %v of %d queries", ErrWrong, r.codes, r.sent)
	}
	// Several thousand random names at least: a percent and a half away is many deviations.
	if share := 100 * float64(none) / float64(r.completed); share < float64(misses)-1.5 || share > float64(misses)+1.5 {
		return fmt.Errorf("%w: dnsperf got NXDOMAIN for %.1f %% of names, of which %d %% do not exist", ErrWrong, share, misses)
	}
	return nil
}

// writePerf writes what m asks as dnsperf reads it.
func (m *Mix) writePerf(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(file, 1<<20)
	for _, i := range m.number {
		fmt.Fprintf(w, "%s.%s TXT\n", m.zone.label(i), m.zone.Name)
	}
	return errors.Join(w.Flush(), file.Close())
}

// dnsperf loads a server with the queries of a file. It runs on the load's cores, as this process does.
func dnsperf(s *Server, file string, d time.Duration) (r perfReport, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), d+dnsperfSpare)
	defer cancel()
	cmd := exec.CommandContext(ctx, "dnsperf", "-s", s.Addr.Addr().String(), "-p", fmt.Sprint(s.Addr.Port()), "-d", file, "-T", "1",
		"-c", fmt.Sprint(checkSockets), "-q", fmt.Sprint(checkWindow), "-t", "1", "-l", fmt.Sprint(d.Seconds()))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return r, fmt.Errorf("bench: dnsperf: %w: %.500s", err, out)
	}
	return parsePerf(string(out))
}

// checked is what both generators measured at one server: ours first.
type checked struct {
	server             *Server
	perCPU, rate, busy [2][]float64
	lost, sent         [2]int
}

// checks loads the same servers with the same names by dnsperf and by our own generator, in turn.
func (s *Suite) checks(sc *scenario, f *field, all []*contender, dir string) error {
	if _, err := exec.LookPath("dnsperf"); err != nil {
		return s.leaveOut(sc, &leftOut{"dnsperf is not installed (make bench-peers)"})
	}
	var cells []*checked
	defer func() {
		for _, c := range cells {
			c.server.Stop()
		}
	}()
	for _, c := range all {
		if !slices.Contains(checkContenders, c.name) {
			continue
		}
		fmt.Fprintf(s.Progress, " %s", c.name)
		server, err := c.launch(f, dir, sc.workers)
		if err != nil {
			return err
		}
		cells = append(cells, &checked{server: server})
	}
	fmt.Fprintf(s.Progress, "\n")
	fmt.Fprintf(s.Out, "\n### %s (`%s`)\n\n%s\n", sc.title, sc.name, sc.note)
	for _, kind := range []struct {
		like   string
		misses int
	}{{"udp", 10}, {"nxdomain", 100}} {
		m := NewMix(f.zone, kind.misses, 1)
		file := filepath.Join(dir, kind.like)
		if err := m.writePerf(file); err != nil {
			return err
		}
		for _, c := range cells {
			*c = checked{server: c.server}
			warm := Load{Target: c.server.Addr, Duration: 200 * time.Millisecond, Window: checkWindow, Sockets: checkSockets}
			if _, err := warm.Run(m); err != nil {
				return err
			}
		}
		for round := range min(s.Rounds, sc.most) {
			for _, c := range cells {
				if err := s.checkRound(c, m, kind.misses, file); err != nil {
					return fmt.Errorf("%s: %w", c.server.Name, err)
				}
				fmt.Fprintf(s.Progress, "  %s, round %d of %d: %-5s ours %9.0f /cpu-s, dnsperf %9.0f /cpu-s\n", kind.like, round+1, min(s.Rounds, sc.most), c.server.Name, c.perCPU[0][round], c.perCPU[1][round])
			}
		}
		s.checkTable(kind.like, cells)
	}
	return os.RemoveAll(dir)
}

func (s *Suite) checkRound(c *checked, m *Mix, misses int, file string) error {
	d := 2 * time.Second
	if s.Quick {
		d = time.Second
	}
	own, err := c.server.timed(func() (Result, error) {
		return Load{Target: c.server.Addr, Duration: d, Window: checkWindow, Sockets: checkSockets}.Run(m)
	})
	if err == nil && own.Wrong > 0 {
		err = fmt.Errorf("%w: %d of %d, the first: %v", ErrWrong, own.Wrong, own.Sent, own.FirstWrong)
	}
	if err != nil {
		return err
	}
	var theirs perfReport
	other, err := c.server.timed(func() (r Result, err error) {
		if theirs, err = dnsperf(c.server, file, d); err != nil {
			return r, err
		}
		r.Sent, r.Answered, r.Lost, r.Elapsed = theirs.sent, theirs.completed, theirs.lost, time.Duration(theirs.seconds*float64(time.Second))
		return r, theirs.check(misses)
	})
	if err != nil {
		return err
	}
	for i, r := range []Result{own, other} {
		if r.Answered == 0 {
			return fmt.Errorf("bench: it answered nothing: %s", c.server.tail())
		}
		c.perCPU[i] = append(c.perCPU[i], r.PerCPU())
		c.rate[i] = append(c.rate[i], r.Rate())
		c.busy[i] = append(c.busy[i], r.ServerCPU.Seconds()/r.Elapsed.Seconds())
		c.lost[i] += r.Lost
		c.sent[i] += r.Sent
	}
	return nil
}

func (s *Suite) checkTable(like string, cells []*checked) {
	ours := slices.IndexFunc(cells, func(c *checked) bool { return c.server.Name == "dmpd" })
	fmt.Fprintf(s.Out, "\nThe names of `%s`:\n\n| | k answers / server-cpu-s, ours | dnsperf | dmpd / it, ours | dnsperf | k answers / s, ours | dnsperf | server busy, ours | dnsperf | lost of sent, ours | dnsperf |\n%s\n",
		like, "|"+strings.Repeat("---|", 11))
	for i, c := range cells {
		ratio := [2]string{"1", "1"}
		for g := range 2 {
			if i != ours && ours >= 0 {
				ratio[g] = fmt.Sprintf("**%.2f**", median(cells[ours].perCPU[g])/median(c.perCPU[g]))
			}
		}
		fmt.Fprintf(s.Out, "| %s | %s | %s | %s | %s | %.4g | %.4g | %.0f %% | %.0f %% | %d of %d | %d of %d |\n", c.server.Name, spread(c.perCPU[0], 1000), spread(c.perCPU[1], 1000), ratio[0], ratio[1],
			median(c.rate[0])/1000, median(c.rate[1])/1000, 100*median(c.busy[0]), 100*median(c.busy[1]), c.lost[0], c.sent[0], c.lost[1], c.sent[1])
	}
}
