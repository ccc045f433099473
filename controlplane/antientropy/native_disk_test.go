package antientropy

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/snapshot"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

// TestDiskRecords: over the data plane's files the tree is the one that its rows have, across snapshots and a log that begins anew; rows are
// found by id wherever they lie.
func TestDiskRecords(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w, err := journal.Open(journal.Options{FS: vfs.OS, Dir: dir, Name: rowsName, SegmentMax: 64 << 10}, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { w.Close() }()
	const lifeMs, nowMs = (testTTLSec + tombstoneSlackSec) * 1000, int64(1_800_000_000_000)
	truth := map[record.ID]record.Row{}
	hlc, feedMs := record.HLCAt(nowMs-100_000), nowMs
	write := func(kind record.EntryKind, i int) {
		t.Helper()
		hlc, feedMs = hlc+1, feedMs+1
		rdata := record.AppendRDATA(nil, fmt.Append(nil, "value ", i))
		r := record.Row{Name: fmt.Appendf(nil, "\x05%05d\x04test\x00", i), Hash: record.HashOf(rdata), Add: hlc, ExpMs: nowMs + 1_000_000, Origin: [8]byte{1}}
		if kind == record.KindTombstone {
			r.Add, r.Del = truth[r.ID()].Add, hlc
		}
		e := record.Entry{Kind: kind, Row: r}
		if kind != record.KindTombstone {
			r.RDATA = rdata
		}
		if kind == record.KindPut {
			e.Row.RDATA = rdata
		}
		truth[r.ID()] = r
		if _, err := w.Append(record.AppendFrame(nil, feedMs, []record.Entry{e})); err != nil {
			t.Fatal(err)
		}
		if err := w.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	var prev *snapshot.Snapshot
	merge := func() {
		t.Helper()
		if err := w.Seal(); err != nil {
			t.Fatal(err)
		}
		s, err := snapshot.Merge(snapshot.MergeOptions{FS: vfs.OS, Dir: dir, Name: rowsName, Prev: prev, Upto: w.Committed(), TombstoneLifeMs: lifeMs})
		if err != nil {
			t.Fatal(err)
		}
		if prev != nil {
			prev.Close()
		}
		prev = s
		if err := w.Drop(s.LSN + 1); err != nil {
			t.Fatal(err)
		}
	}
	defer func() { prev.Close() }()
	d := &DiskRecords{FS: vfs.OS, Dir: dir, Value: func(name []byte, hash [32]byte) (record.Row, bool, error) {
		r, ok := truth[record.ElementID(name, &hash)]
		return r, ok, nil
	}}
	n := &Native{o: NativeOptions{Records: d}, lifeMs: lifeMs}
	key, _ := treeKey("token")
	var tr *tree
	var f Follower
	check := func(what string) {
		t.Helper()
		if f == nil {
			if f, err = d.Open(); err != nil {
				t.Fatal(what, err)
			}
			tr = newTree(key, lifeMs, nowMs)
		}
		var lsn uint64
		for more := true; more; {
			if lsn, more, err = f.Next(func(e *record.Entry) { n.apply(tr, e) }); err != nil {
				t.Fatal(what, err)
			}
		}
		if lsn != w.Committed() || f.Epoch() != w.Epoch() {
			t.Fatalf("%s: at %d, the log is at %d", what, lsn, w.Committed())
		}
		want := newTree(key, lifeMs, nowMs)
		for id, r := range truth {
			want.set(&id, stateOf(&r))
			got, ok, err := d.Row(id)
			if err != nil || !ok || stateOf(&got) != stateOf(&r) || string(got.RDATA) != string(r.RDATA) || string(got.Name) != string(r.Name) {
				t.Fatalf("%s: %x is %+v, %v, %v, want %+v", what, id, got, ok, err, r)
			}
		}
		if tr.root() != want.root() || int(want.root().n) != len(truth) {
			t.Fatalf("%s: root %+v, want %+v of %d", what, tr.root(), want.root(), len(truth))
		}
	}
	for i := range 3000 {
		write(record.KindPut, i)
	}
	check("a log alone")
	merge()
	write(record.KindPut, 3000)
	write(record.KindRefresh, 1)
	write(record.KindTombstone, 2)
	check("a log that goes on behind a snapshot")
	f.(*diskFollower).checked = time.Time{}
	check("a newer snapshot")
	if len(d.index) != 3 {
		t.Errorf("%d places are remembered behind the snapshot", len(d.index))
	}
	f.Close()
	f = nil
	check("snapshot and log from the beginning")

	rows := map[record.ID]bool{}
	epoch, lsn, ok, err := d.Snapshot(func(r *record.Row) bool { rows[r.ID()] = true; return true })
	if err != nil || !ok || epoch != w.Epoch() || lsn != prev.LSN || len(rows) != 3000 {
		t.Errorf("a snapshot of %d rows at %d, %v", len(rows), lsn, err)
	}
	r, err := d.Frames(w.Epoch(), w.Committed())
	if err != nil {
		t.Fatal(err)
	}
	if at, _, ok, err := r.Next(); err != nil || !ok || at != w.Committed() {
		t.Errorf("the last frame: %d, %v, %v", at, ok, err)
	}
	r.Close()
	for what, place := range map[string]struct {
		epoch [16]byte
		from  uint64
	}{"another epoch": {[16]byte{1}, w.Committed()}, "beyond the end": {w.Epoch(), w.Committed() + 2}} {
		if _, err := d.Frames(place.epoch, place.from); !errors.Is(err, ErrRestart) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if r, err := d.Frames(w.Epoch(), w.Committed()+1); err != nil {
		t.Error("just behind the end:", err)
	} else {
		r.Close()
	}
	f.Close()
	if _, err := (&DiskRecords{FS: vfs.OS, Dir: filepath.Join(dir, "none")}).Open(); !errors.Is(err, ErrRestart) {
		t.Error("no folder yet:", err)
	}
}

// TestFileCursors: what was saved is loaded; a damaged file is an error and a missing one is none.
func TestFileCursors(t *testing.T) {
	t.Parallel()
	c := FileCursors{vfs.OS, filepath.Join(t.TempDir(), "sync-native")}
	if m, err := c.Load(); err != nil || len(m) != 0 {
		t.Fatal(m, err)
	}
	want := map[string]NativeCursor{"a": {"https://a", "0102", 7, "0304"}}
	for range 2 {
		if err := c.Save(want); err != nil {
			t.Fatal(err)
		}
	}
	if m, err := c.Load(); err != nil || !maps.Equal(m, want) {
		t.Fatal(m, err)
	}
	if err := os.WriteFile(c.Path, []byte(`{"a":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Load(); err == nil {
		t.Fatal("a damaged file")
	}
}
