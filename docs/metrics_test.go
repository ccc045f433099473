// Package docs has tests that hold the documents to the code.
package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/dnsmesh/dmpd/internal/stats"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// TestMetrics: docs/metrics.md lists every metric of both processes with its type, every label value of the DNS process, and nothing
// else; the alert rules use metrics that exist.
func TestMetrics(t *testing.T) {
	text, err := os.ReadFile("metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]string{} // type by name
	line := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(dmpd?_[a-z_]+)` \\| (\\w+) \\|.*$").FindAllStringSubmatch(string(text), -1) {
		if listed[m[1]] != "" {
			t.Errorf("%s is listed twice", m[1])
		}
		listed[m[1]], line[m[1]] = m[2], m[0]
	}

	// The DNS process says itself what it has.
	var page strings.Builder
	if err := stats.InMemory(1).Write(&page); err != nil {
		t.Fatal(err)
	}
	metrics := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+) (\S+)$`).FindAllStringSubmatch(page.String(), -1) {
		metrics[m[1]] = m[2]
	}
	values := regexp.MustCompile(`(?m)^(\w+)\{(\w+)="([^"]+)"\}`).FindAllStringSubmatch(page.String(), -1)
	if len(metrics) < 20 || len(values) < 40 {
		t.Fatalf("%d metrics and %d labels", len(metrics), len(values))
	}
	for _, m := range values {
		name, label, value := m[1], m[2], m[3]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base := strings.TrimSuffix(name, suffix); metrics[base] == "histogram" {
				name = base
			}
		}
		if label != "le" && !strings.Contains(line[name], "`"+label+"`") {
			t.Errorf("the label %s of %s is not documented", label, name)
		}
		// Transports are said once; faults have a table of their own.
		if label == "transport" || label == "fault" || label == "le" {
			continue
		}
		if !strings.Contains(line[name], "`"+value+"`") {
			t.Errorf("%s=%q of %s is not documented", label, value, name)
		}
	}
	for f := range wire.Faults {
		if !strings.Contains(string(text), "\n| `"+f.Label()+"` | ") {
			t.Errorf("the fault %s is not documented", f.Label())
		}
	}

	// The HTTP process writes text; its source has the names.
	files, err := filepath.Glob("../controlplane/*.go")
	if err != nil {
		t.Fatal(err)
	}
	own := regexp.MustCompile(`(family|gauge)\("(dmpd?_[a-z_]+)",(?: "(counter|gauge|histogram)",)?`)
	n := 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range own.FindAllStringSubmatch(string(source), -1) {
			kind := m[3]
			if m[1] == "gauge" {
				kind = "gauge"
			}
			metrics[m[2]] = kind
			n++
		}
	}
	if n < 5 {
		t.Fatalf("%d metrics in the source of the HTTP process: does it write them in another way?", n)
	}

	for name, kind := range metrics {
		if listed[name] != kind {
			t.Errorf("%s, a %s, is listed as %q", name, kind, listed[name])
		}
	}
	for name := range listed {
		if metrics[name] == "" {
			t.Errorf("%s is listed and does not exist", name)
		}
	}
	alerts, err := os.ReadFile("examples/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range regexp.MustCompile(`\bdmpd?_[a-z_]+`).FindAllString(string(alerts), -1) {
		base := name
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			base = strings.TrimSuffix(base, suffix)
		}
		if metrics[name] == "" && metrics[base] != "histogram" {
			t.Errorf("the alert rules use %s, which does not exist", name)
		}
	}
}
