package bench

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Results is what BENCHMARKS.json holds, and all that tables and charts are drawn from.
type Results struct {
	Tables []*Table `json:"tables"`
}

// Table is one scenario with so many names. A later run of the same takes its place.
type Table struct {
	Scenario   string         `json:"scenario"`
	Names      int            `json:"names"`
	Title      string         `json:"title"`
	Note       string         `json:"note"`
	Measure    string         `json:"measure,omitempty"` // what contenders are compared by: one of the constants below
	Ours       string         `json:"ours,omitempty"`    // what the others are compared with; dmpd if empty
	Run        Run            `json:"run"`
	Contenders []*Contender   `json:"contenders,omitempty"`
	LeftOut    string         `json:"left_out,omitempty"` // who was, and why
	Text       string         `json:"text,omitempty"`     // Markdown of a table with a form of its own
	Values     map[string]any `json:"values,omitempty"`   // what that was made from
}

// What a table compares by.
const (
	perCPU  = "answers_per_cpu_second"
	updates = "updates_per_second"
	starts  = "start" // once, without rounds
)

// Run says where and how something was measured.
type Run struct {
	Began   time.Time `json:"began"`
	Cores   int       `json:"cores"`
	CPU     string    `json:"cpu"`
	Kernel  string    `json:"kernel"`
	Go      string    `json:"go"`
	Build   string    `json:"build"`
	Peers   []string  `json:"peers"` // name and version
	Absent  []string  `json:"absent,omitempty"`
	Rounds  int       `json:"rounds"`
	Command string    `json:"command"`
}

// Contender is what one server did.
type Contender struct {
	Name        string    `json:"name"`
	Version     string    `json:"version,omitempty"`
	Names       int       `json:"names"` // fewer than the table's for one that is slow
	Rounds      []Round   `json:"rounds,omitempty"`
	P50Ms       float64   `json:"p50_ms,omitempty"` // of all rounds together
	P99Ms       float64   `json:"p99_ms,omitempty"`
	P999Ms      float64   `json:"p999_ms,omitempty"`
	ReadyS      float64   `json:"ready_s"`                // from start to the first right answer; the median if it was started often
	StartsS     []float64 `json:"starts_s,omitempty"`     // each of those
	MemoryBytes int64     `json:"memory_bytes,omitempty"` // proportional set size without pages of files
	FileBytes   int64     `json:"file_bytes,omitempty"`   // those
}

// Round is one of them.
type Round struct {
	Sent       int     `json:"sent"`
	Answered   int     `json:"answered"`
	Lost       int     `json:"lost"`
	ReplyBytes int     `json:"reply_bytes"`
	Seconds    float64 `json:"seconds"`
	ServerCPUS float64 `json:"server_cpu_s"`
	LoadCPUS   float64 `json:"load_cpu_s"`
	ProcessS   float64 `json:"process_cpu_s,omitempty"` // where receiving is counted too: the processes alone
	CoreS      float64 `json:"core_cpu_s,omitempty"`    // and everything on the server's cores
	P50Ms      float64 `json:"p50_ms,omitempty"`
	P99Ms      float64 `json:"p99_ms,omitempty"`
	P999Ms     float64 `json:"p999_ms,omitempty"`
}

func (r *Round) rate() float64   { return float64(r.Answered) / r.Seconds }
func (r *Round) perCPU() float64 { return float64(r.Answered) / r.ServerCPUS }

// ms gives a quantile in milliseconds, with as many digits as it is right to.
func (h *Histogram) ms(q float64) float64 { return three(h.Quantile(q).Seconds() * 1000) }

func three(v float64) float64 {
	var f float64
	_, _ = fmt.Sscanf(fmt.Sprintf("%.3g", v), "%g", &f) // what was printed can be read
	return f
}

// plain writes three digits, more where they are before the point.
func plain(v float64) string {
	if v >= 1000 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// roundOf is a result as it is kept.
func roundOf(r *Result) Round {
	return Round{ProcessS: r.process.Seconds(), CoreS: r.core.Seconds(), Sent: r.Sent, Answered: r.Answered, Lost: r.Lost, ReplyBytes: r.Bytes, Seconds: r.Elapsed.Seconds(), ServerCPUS: r.ServerCPU.Seconds(), LoadCPUS: r.OwnCPU.Seconds(),
		P50Ms: r.Latency.ms(0.5), P99Ms: r.Latency.ms(0.99), P999Ms: r.Latency.ms(0.999)}
}

// thisRun says what is the same for all tables of a run.
func (s *Suite) thisRun(all []*contender) Run {
	var u unix.Utsname
	_ = unix.Uname(&u)
	r := Run{Began: time.Now().UTC().Truncate(time.Second), Cores: runtime.NumCPU(), CPU: "unknown", Kernel: unix.ByteSliceToString(u.Release[:]), Go: runtime.Version(), Rounds: s.Rounds, Command: s.Command}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				r.CPU = strings.TrimSpace(strings.TrimLeft(name, "\t :"))
				break
			}
		}
	}
	build, _ := exec.Command(filepath.Join(s.Bin, "dmp-dataplane"), "--version").Output()
	r.Build = strings.TrimSpace(string(build))
	for _, c := range all {
		if v := c.versionOf(); v != "" {
			r.Peers = append(r.Peers, c.name+" "+v)
		}
	}
	r.Absent = s.absent
	return r
}

func (r *Run) machine() string {
	return fmt.Sprintf("%s, %d cores (%s); Linux %s; %s; %s.", r.Began.Format("2006-01-02"), r.Cores, r.CPU, r.Kernel, r.Go, r.Build)
}

func (r *Run) peers() string {
	all := cmp.Or(strings.Join(r.Peers, ", "), "none")
	if len(r.Absent) > 0 {
		all += "; not installed, and left out: " + strings.Join(r.Absent, ", ")
	}
	return all
}

// grouped writes 1,000,000.
func grouped(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func (c *Contender) values(measure string) []float64 {
	v := make([]float64, len(c.Rounds))
	for i := range c.Rounds {
		if v[i] = c.Rounds[i].perCPU(); measure == updates {
			v[i] = c.Rounds[i].rate()
		}
	}
	return v
}

// each gives the median of something of the rounds.
func (c *Contender) each(of func(r *Round) float64) float64 {
	v := make([]float64, len(c.Rounds))
	for i := range c.Rounds {
		v[i] = of(&c.Rounds[i])
	}
	return median(v)
}

func (c *Contender) sum(of func(r *Round) int) (n int) {
	for i := range c.Rounds {
		n += of(&c.Rounds[i])
	}
	return n
}

// ours is the row that the others are compared with, or nil.
func (t *Table) ours() *Contender {
	for _, c := range t.Contenders {
		if c.Name == cmp.Or(t.Ours, "dmpd") {
			return c
		}
	}
	return nil
}

// Markdown is the table with its title.
func (t *Table) Markdown() string {
	var b strings.Builder
	if len(t.Contenders) == 0 {
		return t.Text
	}
	fmt.Fprintf(&b, "\n### %s (`%s`)\n\n%s\n\n", t.Title, t.Scenario, t.Note)
	if t.Measure == starts {
		fmt.Fprintf(&b, "| | first answer, s | memory, MB | and pages of files, MB |\n|---|---|---|---|\n")
		for _, c := range t.Contenders {
			ready := fmt.Sprintf("%.2f", c.ReadyS)
			if len(c.StartsS) > 1 {
				ready = spread(c.StartsS, 1)
			}
			fmt.Fprintf(&b, "| %s | %s | %d | %d |\n", c.Name, ready, c.MemoryBytes>>20, c.FileBytes>>20)
		}
		return b.String()
	}
	head := "k answers / server-cpu-s"
	if t.Measure == updates {
		head = "k updates / s"
	}
	fmt.Fprintf(&b, "| | %s | %s / it | k answers / s | server busy | load busy | p50 ms | p99 | p99.9 | lost of sent |\n|---|---|---|---|---|---|---|---|---|---|\n", head, cmp.Or(t.Ours, "dmpd"))
	ours := t.ours()
	for _, c := range t.Contenders {
		ratio := "1"
		if ours != nil && c != ours {
			ratio = fmt.Sprintf("**%.2f**", median(ours.values(t.Measure))/median(c.values(t.Measure)))
		}
		lat := [3]string{"", "", ""}
		if c.P50Ms > 0 {
			for j, ms := range []float64{c.P50Ms, c.P99Ms, c.P999Ms} {
				lat[j] = fmt.Sprintf("%.3g", ms)
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %.4g | %.0f %% | %.0f %% | %s | %s | %s | %d of %d |\n", c.Name, spread(c.values(t.Measure), 1000), ratio, c.each((*Round).rate)/1000,
			100*c.each(func(r *Round) float64 { return r.ServerCPUS / r.Seconds }), 100*c.each(func(r *Round) float64 { return r.LoadCPUS / r.Seconds }), lat[0], lat[1], lat[2],
			c.sum(func(r *Round) int { return r.Lost }), c.sum(func(r *Round) int { return r.Sent }))
	}
	if len(t.Contenders) > 0 && t.Contenders[0].each(func(r *Round) float64 { return r.ProcessS }) > 0 {
		t.divided(&b)
	}
	b.WriteString(t.LeftOut)
	if t.Scenario == "udp" && ours != nil && t.Contenders[0].Name == "echo" {
		fmt.Fprintf(&b, "\ndmpd makes %.2f of the echo's answers for each CPU second; the mark is %.2f.\n", median(ours.values(perCPU))/median(t.Contenders[0].values(perCPU)), echoShare)
	}
	return b.String()
}

// divided says how the CPU time divides between a server's process and the kernel threads that receive for it.
func (t *Table) divided(b *strings.Builder) {
	fmt.Fprintf(b, "\n| | k answers / cpu-s of the process alone | process busy | receiving busy | the core busy, by /proc/stat |\n|---|---|---|---|---|\n")
	for _, c := range t.Contenders {
		alone := make([]float64, len(c.Rounds))
		for i := range c.Rounds {
			alone[i] = float64(c.Rounds[i].Answered) / c.Rounds[i].ProcessS
		}
		process := c.each(func(r *Round) float64 { return r.ProcessS / r.Seconds })
		receiving := c.each(func(r *Round) float64 { return (r.ServerCPUS - r.ProcessS) / r.Seconds })
		fmt.Fprintf(b, "| %s | %s | %.0f %% | %.0f %% | %.0f %% |\n", c.Name, spread(alone, 1000), 100*process, 100*receiving, 100*c.each(func(r *Round) float64 { return r.CoreS / r.Seconds }))
	}
}

// most gives the table whose run most have in common, the first of them.
func (r *Results) most() *Table {
	count := map[time.Time]int{}
	best := r.Tables[0]
	for _, t := range r.Tables {
		count[t.Run.Began]++
	}
	for _, t := range r.Tables {
		if count[t.Run.Began] > count[best.Run.Began] {
			best = t
		}
	}
	return best
}

// Markdown is all tables. What most were run with stands on top; others say it themselves.
func (r *Results) Markdown(chart func(t *Table) string) string {
	var b strings.Builder
	if len(r.Tables) == 0 {
		return ""
	}
	first := r.most()
	fmt.Fprintf(&b, "%s\nPeers: %s.\n%s names with one TXT of %d bytes each, loopback, %d rounds, contenders in turn; medians, in brackets the smallest and the largest.\nCommand: `%s`\n",
		first.Run.machine(), first.Run.peers(), grouped(first.Names), valueLen, first.Run.Rounds, first.Run.Command)
	for _, t := range r.Tables {
		text := t.Markdown()
		if t.Names != first.Names {
			text = strings.Replace(text, " (`"+t.Scenario+"`)", fmt.Sprintf(", %s names (`%s`)", grouped(t.Names), t.Scenario), 1)
		}
		b.WriteString(text)
		if name := chart(t); name != "" {
			fmt.Fprintf(&b, "\n![%s](%s)\n", t.Title, name)
		}
		if t.Run.Began.Equal(first.Run.Began) {
			continue
		}
		fmt.Fprintf(&b, "\nA run of its own: %s Peers: %s. %d rounds, %s names. Command: `%s`\n", t.Run.machine(), t.Run.peers(), t.Run.Rounds, grouped(t.Names), t.Run.Command)
	}
	return b.String()
}

// resultsMax bounds the file that is read.
const resultsMax = 16 << 20

// ReadResults reads the file; one that is not there has no tables.
func ReadResults(path string) (*Results, error) {
	r := &Results{}
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return r, nil
	case err != nil:
		return nil, fmt.Errorf("bench: %w", err)
	case len(b) > resultsMax:
		return nil, fmt.Errorf("bench: %s has %d bytes, at most %d are results", path, len(b), resultsMax)
	}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("bench: %s: %w", path, err)
	}
	for _, t := range r.Tables {
		for _, c := range t.Contenders {
			if len(c.Rounds) == 0 && t.Measure != starts {
				return nil, fmt.Errorf("bench: %s: %s has no rounds in %s", path, c.Name, t.Scenario)
			}
		}
	}
	return r, nil
}

// Merge takes over tables, each in place of that of the same scenario and number of names, and brings all in the order of the scenarios.
func (r *Results) Merge(tables []*Table) {
	order := ScenarioNames()
	for _, t := range tables {
		r.Tables = slices.DeleteFunc(r.Tables, func(old *Table) bool { return old.Scenario == t.Scenario && old.Names == t.Names })
		r.Tables = append(r.Tables, t)
	}
	r.Tables = slices.DeleteFunc(r.Tables, func(t *Table) bool { return !slices.Contains(order, t.Scenario) }) // of a build that had it
	at := func(t *Table) int { return slices.Index(order, t.Scenario) }
	slices.SortStableFunc(r.Tables, func(a, b *Table) int { return cmp.Or(cmp.Compare(at(a), at(b)), cmp.Compare(a.Names, b.Names)) })
}

// chartDir is where the charts are, beside the document.
const chartDir = "docs/bench"

// Save writes the results as JSON, charts and tables: path is the document, the JSON is beside it under the same name.
func (r *Results) Save(path string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	if err := os.WriteFile(jsonBeside(path), append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	return r.Draw(path)
}

// Draw writes charts and tables.
func (r *Results) Draw(path string) error {
	dir := filepath.Join(filepath.Dir(path), filepath.FromSlash(chartDir))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	stale, _ := filepath.Glob(filepath.Join(dir, "*.svg"))
	for _, old := range stale {
		if err := os.Remove(old); err != nil {
			return fmt.Errorf("bench: %w", err)
		}
	}
	var failed error
	usual := r.most().Names
	text := r.Markdown(func(t *Table) string {
		svg := chart(t)
		if svg == "" {
			return ""
		}
		name := t.Scenario + ".svg"
		if t.Names != usual {
			name = fmt.Sprintf("%s-%d.svg", t.Scenario, t.Names)
		}
		failed = cmp.Or(failed, os.WriteFile(filepath.Join(dir, name), []byte(svg), 0o644))
		return chartDir + "/" + name
	})
	if failed != nil {
		return fmt.Errorf("bench: %w", failed)
	}
	return Replace(path, text)
}

func jsonBeside(path string) string { return strings.TrimSuffix(path, filepath.Ext(path)) + ".json" }

// Save puts what was measured into a document. Other tables stay, each with its own date and command.
func (s *Suite) Save(path string) error {
	r, err := ReadResults(jsonBeside(path))
	if err != nil {
		return err
	}
	r.Merge(s.Tables)
	return r.Save(path)
}

// Redraw makes charts and tables of a document anew from the JSON beside it.
func Redraw(path string) error {
	r, err := ReadResults(jsonBeside(path))
	if err == nil && len(r.Tables) == 0 {
		err = fmt.Errorf("bench: %s has no results", jsonBeside(path))
	}
	if err != nil {
		return err
	}
	return r.Draw(path)
}
