package bench

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func someTable(scenario string, names int, perSecond ...int) *Table {
	t := &Table{Scenario: scenario, Names: names, Title: "Title of " + scenario, Note: "Note.", Measure: perCPU,
		Run: Run{Began: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Cores: 2, CPU: "a < b", Kernel: "6", Go: "go1", Build: "b", Peers: []string{"nsd 4"}, Rounds: len(perSecond), Command: "make bench"}}
	for i, name := range []string{"echo", "dmpd", "nsd"} {
		c := &Contender{Name: name, Names: names, P50Ms: 0.1, P99Ms: 1, P999Ms: 10}
		for _, n := range perSecond {
			c.Rounds = append(c.Rounds, Round{Sent: n, Answered: n / (i + 1), Seconds: 1, ServerCPUS: 1, LoadCPUS: 0.5})
		}
		t.Contenders = append(t.Contenders, c)
	}
	return t
}

// TestResults: what is saved can be drawn anew byte for byte, and a run of one scenario replaces that one's table and chart alone.
func TestResults(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "B.md")
	if err := os.WriteFile(path, []byte("head\n<!-- results -->\nold\n<!-- end -->\ntail\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	files := func() map[string]string {
		all := map[string]string{}
		_ = filepath.WalkDir(dir, func(name string, e os.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				b, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				all[strings.TrimPrefix(name, dir+"/")] = string(b)
			}
			return err
		})
		return all
	}
	whole := Suite{Tables: []*Table{someTable("udp", 1000, 100_000, 120_000), someTable("nxdomain", 1000, 300_000), {Scenario: "attack", Names: 1000, Text: "\n### Own (`attack`)\n\n| a |\n", Values: map[string]any{"x": 1}}}}
	whole.Tables[2].Run = whole.Tables[0].Run
	if err := whole.Save(path); err != nil {
		t.Fatal(err)
	}
	first := files()
	if strings.Count(first["B.md"], "\n### ") != 3 || strings.Contains(first["B.md"], "A run of its own") || !strings.Contains(first["B.md"], "| nsd | 36.67 [33.33, 40] | **1.50** |") || !strings.HasSuffix(first["B.md"], "tail\n") {
		t.Error(first["B.md"])
	}
	for _, name := range []string{"docs/bench/udp.svg", "docs/bench/nxdomain.svg"} {
		if !strings.Contains(first["B.md"], "]("+name+")") {
			t.Errorf("%s is not shown", name)
		}
		for d := xml.NewDecoder(strings.NewReader(first[name])); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	if !strings.Contains(first["docs/bench/udp.svg"], `<path class="w"`) || strings.Contains(first["docs/bench/nxdomain.svg"], `<path class="w"`) {
		t.Error("whiskers are where there was more than one value")
	}
	if err := Redraw(path); err != nil {
		t.Fatal(err)
	}
	for name, text := range files() {
		if first[name] != text {
			t.Errorf("%s is drawn otherwise:\n%s", name, text)
		}
	}

	again := someTable("udp", 1000, 500_000)
	again.Run.Began, again.Run.Command = again.Run.Began.Add(time.Hour), "make bench SCENARIO='udp'"
	part := Suite{Tables: []*Table{again, someTable("udp", 1_000_000, 7_000)}}
	part.Tables[1].Run = again.Run
	if err := part.Save(path); err != nil {
		t.Fatal(err)
	}
	second := files()
	text := second["B.md"]
	if strings.Count(text, "\n### ") != 4 || !strings.Contains(text, "| dmpd | 250 [250, 250] | 1 |") || !strings.Contains(text, "Title of udp, 1,000,000 names (`udp`)") || !strings.Contains(text, "| a |") {
		t.Error(text)
	}
	if second["docs/bench/nxdomain.svg"] != first["docs/bench/nxdomain.svg"] || second["docs/bench/udp-1000000.svg"] == "" || second["docs/bench/udp.svg"] == first["docs/bench/udp.svg"] {
		t.Error("the charts of the other scenarios stay, and no more")
	}
	// Without the file of results nothing can be merged or drawn.
	if err := os.WriteFile(filepath.Join(dir, "B.json"), []byte(`{"tables":[{"scenario":"udp","contenders":[{"name":"dmpd"}]}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Redraw(path); err == nil {
		t.Error("results without rounds were drawn")
	}
}
