package bench

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const perfSays = `DNS Performance Testing Tool
Version 2.10.0

[Status] Testing complete (time limit)

Statistics:

  Queries sent:         358885
  Queries completed:    358880 (100.00%)
  Queries lost:         5 (0.00%)

  Response codes:       NOERROR 322992 (90.00%), NXDOMAIN 35888 (10.00%)
  Average packet size:  request 52, response 348
  Run time (s):         2.000711
  Queries per second:   179376.231769

  Average Latency (s):  0.000600 (min 0.000041, max 0.012033)
`

func TestParsePerf(t *testing.T) {
	r, err := parsePerf(perfSays)
	if err != nil || r.sent != 358885 || r.completed != 358880 || r.lost != 5 || r.seconds != 2.000711 || r.codes["NOERROR"] != 322992 || r.codes["NXDOMAIN"] != 35888 {
		t.Errorf("%+v, %v", r, err)
	}
	if err := r.check(10); err != nil {
		t.Error(err)
	}
	if err := r.check(100); !errors.Is(err, ErrWrong) {
		t.Errorf("a tenth of NXDOMAIN where all should be: %v", err)
	}
	for name, change := range map[string]string{
		"SERVFAIL": strings.Replace(perfSays, "NOERROR 322992", "NOERROR 322991 (90.00%), SERVFAIL 1", 1),
		"no codes": strings.Replace(perfSays, "Response codes", "Codes", 1),
	} {
		r, err := parsePerf(change)
		if err == nil {
			err = r.check(10)
		}
		if !errors.Is(err, ErrWrong) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, missing := range []string{"Queries sent", "Queries completed", "Queries lost", "Run time"} {
		if r, err := parsePerf(strings.Replace(perfSays, missing, "Something", 1)); err == nil {
			t.Errorf("without %s: %+v", missing, r)
		}
	}
}

// dnsperf asks for the same names as we do, in the same order.
func TestWritePerf(t *testing.T) {
	m := NewMix(testZone, 10, 1)
	path := filepath.Join(t.TempDir(), "q")
	if err := m.writePerf(path); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(lines) != len(m.size) {
		t.Fatalf("%d lines for %d queries", len(lines), len(m.size))
	}
	for k, line := range lines {
		name, _, _ := strings.Cut(line, " ")
		if want := m.Message(uint32(k)); string(query(nil, uint16(k), owner(name))) != string(want) {
			t.Fatalf("line %d, %q, is not query %d", k+1, line, k)
		}
	}
}

// owner writes a name in wire form.
func owner(name string) (b []byte) {
	for label := range strings.SplitSeq(name, ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0)
}
