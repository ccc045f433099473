package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/stats"
	"github.com/dnsmesh/dmpd/internal/vfs"
	"github.com/dnsmesh/dmpd/internal/wire"
)

func init() {
	register(&command{name: "status", args: "[--json]", short: "Say how the node is", run: status, example: "dmpd status --json",
		long: "Reads the state folder alone. The exit code is 0 if both processes serve, else 1."})
}

type planeStatus struct {
	Serving bool   `json:"serving"`
	State   string `json:"state"` // serving, hanging, stopped
	Pid     int    `json:"pid,omitempty"`
	Build   string `json:"build,omitempty"`
	BeatMs  int64  `json:"beat_ms,omitempty"`
}

type nodeStatus struct {
	StateDir     string      `json:"state_dir"`
	Zone         string      `json:"zone,omitempty"`
	Data         planeStatus `json:"data"`
	Control      planeStatus `json:"control"`
	Records      int64       `json:"records"`
	Tombstones   int64       `json:"tombstones"`
	Serial       uint32      `json:"serial"`
	RowsLSN      uint64      `json:"rows_lsn"`
	LastChangeMs int64       `json:"last_change_ms,omitempty"`
	SnapshotLSN  uint64      `json:"snapshot_lsn,omitempty"`
	DataBytes    int64       `json:"data_bytes"`
	ControlBytes int64       `json:"control_bytes"`
	FreeBytes    int64       `json:"free_bytes"`
	StateTaken   uint64      `json:"state_taken"`
	Requests     uint64      `json:"requests_taken"`
	Queries      uint64      `json:"dns_messages,omitempty"`
	Problems     []string    `json:"problems,omitempty"`
}

func planeOf(dir string) planeStatus {
	s := planeStatus{State: "stopped"}
	if !journal.Locked(filepath.Join(dir, "lock")) {
		return s
	}
	s.State = "hanging"
	live, err := journal.OpenLive(vfs.OS, filepath.Join(dir, "live"))
	if err != nil {
		return s
	}
	defer live.Close()
	s.Pid, s.Build, s.BeatMs = live.Pid(), live.Build(), live.BeatMs()
	if clock.NowMs()-s.BeatMs < journal.BeatLost.Milliseconds() {
		s.State, s.Serving = "serving", true
	}
	return s
}

func status(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	if _, err := p.parsed(f, 0, 0); err != nil {
		return err
	}
	s := nodeStatus{StateDir: p.config.StateDir(), Data: planeOf(p.dataDir()), Control: planeOf(p.controlDir())}
	s.DataBytes, s.ControlBytes = folderSize(p.dataDir()), folderSize(p.controlDir())
	if free, err := vfs.OS.Free(p.config.StateDir()); err == nil {
		s.FreeBytes = free
	}
	if v, err := openView(p.dataDir()); err != nil {
		s.Problems = append(s.Problems, err.Error())
	} else {
		s.fill(v)
		v.close()
	}
	if s.Zone == "" {
		s.Zone = p.config.Zone()
	}
	if page, err := stats.Open(filepath.Join(p.dataDir(), "counters")); err == nil {
		if s.Data.Serving {
			s.Queries = page.Value(stats.Messages[stats.UDP]) + page.Value(stats.Messages[stats.TCP])
		}
		page.Close()
	} else if s.Data.Serving {
		s.Problems = append(s.Problems, "the DNS process' counters cannot be read: "+err.Error())
	}
	if s.Data.Build != "" && s.Control.Build != "" && s.Data.Build != s.Control.Build {
		s.Problems = append(s.Problems, "the processes are of two builds: "+s.Data.Build+" and "+s.Control.Build)
	}
	if err := p.print(s, s.text); err != nil {
		return err
	}
	if !s.Data.Serving || !s.Control.Serving || len(s.Problems) > 0 {
		return errors.New("the node does not serve as it should, see above")
	}
	return nil
}

func (s *nodeStatus) fill(v *view) {
	if len(v.meta.Zone) > 1 {
		s.Zone = wire.Text(v.meta.Zone)
	}
	s.Serial, s.RowsLSN, s.LastChangeMs, s.StateTaken, s.Requests = v.meta.Serial, v.meta.LSN, v.meta.FeedMs, v.meta.State, v.meta.Requests
	if v.snap != nil {
		s.SnapshotLSN = v.snap.LSN
	}
	nowMs := clock.NowMs()
	if err := v.each(func(r *record.Row) error {
		switch {
		case r.Live(nowMs):
			s.Records++
		case r.Add <= r.Del:
			s.Tombstones++
		}
		return nil
	}); err != nil {
		s.Problems = append(s.Problems, err.Error())
	}
}

func (p planeStatus) text() string {
	if p.Pid == 0 {
		return p.State
	}
	return fmt.Sprintf("%s, process %d, %s", p.State, p.Pid, p.Build)
}

func (s *nodeStatus) text(w *tabwriter.Writer) {
	fmt.Fprintf(w, "zone\t%s\nstate folder\t%s, %s free\n", dash(s.Zone), s.StateDir, bytesText(s.FreeBytes))
	fmt.Fprintf(w, "DNS process\t%s\nHTTP process\t%s\n", s.Data.text(), s.Control.text())
	fmt.Fprintf(w, "records\t%d, and %d deletes remembered\nserial\t%d\n", s.Records, s.Tombstones, s.Serial)
	fmt.Fprintf(w, "rows log\tat %d, snapshot at %d, %s in all\n", s.RowsLSN, s.SnapshotLSN, bytesText(s.DataBytes))
	fmt.Fprintf(w, "keys and tokens\ttaken up to %d, %s\n", s.StateTaken, bytesText(s.ControlBytes))
	if s.LastChangeMs > 0 {
		fmt.Fprintf(w, "last change\t%s\n", time.UnixMilli(s.LastChangeMs).UTC().Format("2006-01-02 15:04:05Z"))
	}
	if s.Data.Serving {
		fmt.Fprintf(w, "DNS messages\t%d since its start\n", s.Queries)
	}
	if len(s.Problems) > 0 {
		fmt.Fprintf(w, "problems\t%s\n", strings.Join(s.Problems, "; "))
	}
}

func folderSize(dir string) (n int64) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	for _, f := range files {
		if info, err := f.Info(); err == nil && info.Mode().IsRegular() {
			n += info.Size()
		}
	}
	return n
}

func bytesText(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 10<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}
