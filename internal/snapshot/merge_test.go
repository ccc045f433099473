package snapshot

import (
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/vfs"
	"github.com/dnsmesh/dmpd/internal/vfs/vfstest"
)

var update = flag.Bool("update", false, "write the golden files anew")

func openLog(t testing.TB, fs vfs.FS, from uint64) *journal.Writer {
	t.Helper()
	w, err := journal.Open(journal.Options{FS: fs, Dir: "d", Name: "rows", SegmentMax: 64 << 10}, from, func(uint64, []byte) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func appendFrames(t testing.TB, w *journal.Writer, frames ...[]byte) {
	t.Helper()
	for _, f := range frames {
		if _, err := w.Append(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Sync(); err != nil {
		t.Fatal(err)
	}
}

func entries(feedMs int64, es ...record.Entry) []byte { return record.AppendFrame(nil, feedMs, es) }

func put(name, value string, add record.HLC, expMs int64) record.Entry {
	rdata := record.AppendRDATA(nil, []byte(value))
	return record.Entry{Kind: record.KindPut, Row: record.Row{Name: []byte(name), RDATA: rdata, Hash: record.HashOf(rdata), Add: add, ExpMs: expMs, Origin: [8]byte{1}}}
}

// A disk that fails at any point of a merge, and a power cut behind that, leave the old snapshot or the new one, whole; and
// the next merge succeeds.
func TestMergeOnBadDisk(t *testing.T) {
	broken := errors.New("injected")
	for step := 0; ; step++ {
		fs := vfstest.New(uint64(step))
		w := openLog(t, fs, 0)
		m := &model{rows: map[string]record.Row{}, feedMs: 1_000_000, wallMs: 1_000_000}
		rng := rand.New(rand.NewPCG(uint64(step), 7))
		appendFrames(t, w, m.frame(rng), m.frame(rng), m.frame(rng))
		prev, err := Merge(MergeOptions{FS: fs, Dir: "d", Name: "rows", Upto: w.Committed(), TombstoneLifeMs: life})
		if err != nil {
			t.Fatal(err)
		}
		appendFrames(t, w, m.frame(rng), m.frame(rng))
		n := 0
		fs.Fault = func(op, name string) error {
			if n++; n > step {
				return broken
			}
			return nil
		}
		o := MergeOptions{FS: fs, Dir: "d", Name: "rows", Prev: prev, Upto: w.Committed(), TombstoneLifeMs: life}
		_, err = Merge(o)
		fs.Fault = nil
		if err == nil {
			if step < 5 {
				t.Fatalf("a merge of %d operations", step)
			}
			return
		}
		if !errors.Is(err, broken) {
			t.Fatalf("step %d: %v", step, err)
		}
		after := fs.Crash()
		s, err := Latest(after, "d", "rows")
		if err != nil || s == nil || s.Check() != nil || s.LSN != prev.LSN && s.LSN != o.Upto {
			t.Fatalf("step %d: %+v, %v", step, s, err)
		}
		if s.LSN == o.Upto {
			compare(t, uint64(step), s, m)
			continue
		}
		o.FS, o.Prev = after, s
		openLog(t, after, s.LSN+1)
		if s, err = Merge(o); err != nil {
			t.Fatalf("step %d: the merge after it: %v", step, err)
		}
		compare(t, uint64(step), s, m)
		if files, _ := after.ReadDir("d"); strings.Count(strings.Join(files, " "), ".snap") != 1 {
			t.Fatalf("step %d: there lie %v", step, files)
		}
	}
}

// A row that ends before a cut which was made before it, because the clock was stepped back in between, stays.
func TestCutsBeforeARow(t *testing.T) {
	fs := vfstest.New(1)
	w := openLog(t, fs, 0)
	appendFrames(t, w,
		entries(1, put("\x01a\x00", "1", 1, 100), put("\x01b\x00", "1", 2, 900)),
		entries(2, record.Entry{Kind: record.KindExpire, CutMs: 500}, put("\x01c\x00", "1", 3, 100)),
		entries(3, put("\x01d\x00", "1", 4, 200)))
	s, err := Merge(MergeOptions{FS: fs, Dir: "d", Name: "rows", Upto: 3})
	if err != nil {
		t.Fatal(err)
	}
	names := func(s *Snapshot) (all string) {
		if err := s.Each(func(_ record.ID, r *record.Row) bool { all += string(r.Name[1:2]); return true }); err != nil {
			t.Fatal(err)
		}
		return all
	}
	if got := names(s); got != "bcd" {
		t.Errorf("rows %s, want bcd", got)
	}
	appendFrames(t, w, entries(4, record.Entry{Kind: record.KindExpire, CutMs: 150}))
	if s, err = Merge(MergeOptions{FS: fs, Dir: "d", Name: "rows", Prev: s, Upto: 4}); err != nil {
		t.Fatal(err)
	}
	if got := names(s); got != "bd" || s.CutMs != 150 {
		t.Errorf("rows %s at cut %d, want bd at 150", got, s.CutMs)
	}
}

// A snapshot of format 1 reads as it did, and is written as it was.
func TestGoldenSnapshot(t *testing.T) {
	fs := vfstest.New(1)
	w := openLog(t, fs, 0)
	gone := put("\x01b\x00", "1", 2, 900)
	gone.Kind, gone.Row.RDATA, gone.Row.Del = record.KindTombstone, nil, 1<<40
	appendFrames(t, w,
		entries(1_000, put("\x01a\x00", strings.Repeat("x", 300), 1, 5_000), put("\x01b\x00", "1", 2, 9_000)),
		entries(2_000, gone,
			record.Entry{Kind: record.KindOutcome, LSN: 3, Code: record.CodeFull, Applied: 4},
			record.Entry{Kind: record.KindTaken, RequestsEpoch: [16]byte{5}, Requests: 3, StateEpoch: [16]byte{6}, State: 7},
			record.Entry{Kind: record.KindSerial, Zone: []byte("\x04test\x00"), Serial: 8}))
	s, err := Merge(MergeOptions{FS: fs, Dir: "d", Name: "rows", Upto: 2, TombstoneLifeMs: life})
	if err != nil {
		t.Fatal(err)
	}
	now := bytes.Clone(s.mapping.Bytes())
	clear(now[24:40]) // the epoch is random,
	clear(now[offHeaderCRC:headerSize])
	const path = "testdata/rows-v1.snap.gz"
	if *update {
		var b bytes.Buffer
		z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
		z.Write(s.mapping.Bytes())
		z.Close()
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	was, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	file := t.TempDir() + "/rows-0000000000000002.snap"
	if err := os.WriteFile(file, was, 0o600); err != nil {
		t.Fatal(err)
	}
	old, err := Open(vfs.OS, file)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := old.Check(); err != nil {
		t.Fatal(err)
	}
	if old.Rows != 2 || old.Tombstones != 1 || old.LSN != 2 || old.Serial != 8 || old.State != 7 || old.HLC != 1<<40 {
		t.Errorf("it says %+v", old.Meta)
	}
	clear(was[24:40])
	clear(was[offHeaderCRC:headerSize])
	if !bytes.Equal(now, was) {
		t.Error("format 1 is not written as it was")
	}

	// A later format that this reader may still read is read; one that needs a later reader is refused with both numbers.
	newer := bytes.Clone(was)
	newer[11] = 2
	if err := os.WriteFile(file+".newer", newer, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(vfs.OS, file+".newer"); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "needs a reader of 2; this one reads 1") {
		t.Errorf("a newer format: %v", err)
	}
}

// BenchmarkMerge merges a tail of a tenth into a million rows of 300 bytes, on the real disk.
func BenchmarkMerge(b *testing.B) {
	const rows, perFrame = 1_000_000, 1000
	dir := b.TempDir()
	w, err := journal.Open(journal.Options{FS: vfs.OS, Dir: dir, Name: "rows", Durability: journal.OS}, 0, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	frame := func(feedMs int64, from int) []byte {
		var es []record.Entry
		for i := from; i < from+perFrame; i++ {
			es = append(es, put(fmt.Sprintf("\x06slot-0\x0f%015d\x04test\x00", i), strings.Repeat("v", 300), record.HLC(i+1), 1<<50))
		}
		return record.AppendFrame(nil, feedMs, es)
	}
	for i := range rows / perFrame {
		if _, err := w.Append(frame(int64(i+1), i*perFrame)); err != nil {
			b.Fatal(err)
		}
		if err := w.Sync(); err != nil {
			b.Fatal(err)
		}
	}
	o := MergeOptions{FS: vfs.OS, Dir: dir, Name: "rows", Upto: w.Committed()}
	if o.Prev, err = Merge(o); err != nil {
		b.Fatal(err)
	}
	feedMs := int64(rows)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		for i := range rows / perFrame / 10 {
			feedMs++
			if _, err := w.Append(frame(feedMs, i*10*perFrame)); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Sync(); err != nil {
			b.Fatal(err)
		}
		o.Upto = w.Committed()
		b.StartTimer()
		s, err := Merge(o)
		if err != nil {
			b.Fatal(err)
		}
		o.Prev.Close()
		o.Prev = s
	}
	b.ReportMetric(float64(o.Prev.Rows), "rows")
	o.Prev.Close()
}
