package fuzz

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"testing"

	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/snapshot"
	"github.com/dnsmesh/dmpd/internal/vfs/vfstest"
)

const (
	tombstoneLifeMs = 500
	headerSize      = 4096
	sectionTable    = 512
	sectionCount    = 7
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendAll(t testing.TB, w *journal.Writer, frames ...[]byte) {
	for _, f := range frames {
		if _, err := w.Append(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Sync(); err != nil {
		t.Fatal(err)
	}
}

// image is a snapshot's bytes.
func image(t testing.TB) []byte {
	fs := vfstest.New(1)
	w, err := journal.Open(journal.Options{FS: fs, Dir: "d", Name: "rows"}, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	seeds := rowSeeds()
	appendAll(t, w, record.AppendFrame(nil, 1000, seeds[:1]), record.AppendFrame(nil, 2000, append([]record.Entry{seeds[1]}, seeds[5:]...)))
	s, err := snapshot.Merge(snapshot.MergeOptions{FS: fs, Dir: "d", Name: "rows", Upto: 2, TombstoneLifeMs: tombstoneLifeMs})
	if err != nil {
		t.Fatal(err)
	}
	return read(t, fs, s.Path())
}

func read(t testing.TB, fs *vfstest.Sim, path string) []byte {
	size, _, err := fs.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t testing.TB, b []byte, path string) *vfstest.Sim {
	fs := vfstest.New(1)
	f, err := fs.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		_, err = f.WriteAt(b, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

// damage overwrites b as the fuzzer says: offset (3B), what to add to that byte (1B), again and again.
func damage(b, how []byte) {
	for ; len(how) >= 4; how = how[4:] {
		at := int(how[0])<<16 | int(how[1])<<8 | int(how[2])
		b[at%len(b)] += how[3]
	}
}

// seal makes all checksums right again, as a program with a bug would.
func seal(b []byte) {
	for i := range sectionCount {
		e := b[sectionTable+24*i:]
		off, n := binary.BigEndian.Uint64(e), binary.BigEndian.Uint64(e[8:])
		if size := uint64(len(b)); off <= size && n <= size-off {
			binary.BigEndian.PutUint32(e[16:], crc32.Checksum(b[off:off+n], castagnoli))
		}
	}
	binary.BigEndian.PutUint32(b[headerSize-4:], crc32.Checksum(b[:headerSize-4], castagnoli))
}

// FuzzSnapshot: damage is noticed by Open or Check, with the file's name; and whatever a snapshot holds, also with checksums that are
// right, no way to read it panics or leaves the file.
func FuzzSnapshot(f *testing.F) {
	whole := image(f)
	f.Add([]byte{}, false)
	for _, at := range []int{0, 11, 20, 116, 119, 132, sectionTable + 7, sectionTable + 15, sectionTable + 24 + 6, headerSize, headerSize + 30, headerSize + 500, headerSize + 600, headerSize + 640} {
		f.Add([]byte{byte(at >> 16), byte(at >> 8), byte(at), 1}, true)
		f.Add([]byte{byte(at >> 16), byte(at >> 8), byte(at), 0xFF}, true)
	}
	f.Fuzz(func(t *testing.T, how []byte, sealed bool) {
		b := bytes.Clone(whole)
		damage(b, how)
		if sealed {
			seal(b)
		}
		const path = "d/rows-0000000000000002.snap"
		s, err := snapshot.Open(write(t, b, path), path)
		if err == nil {
			err = s.Check()
		}
		if err != nil && !errors.Is(err, snapshot.ErrCorrupt) && !errors.Is(err, snapshot.ErrFormat) {
			t.Fatal(err)
		}
		if !sealed && err == nil && !harmless(whole, b) {
			t.Fatal("damage was not noticed")
		}
		if s == nil {
			return
		}
		n := 0
		count := func(_ record.ID, r *record.Row) bool {
			n++
			_ = s.Name(r.Name, func(*record.Row) bool { return true })
			return n < 100
		}
		_ = s.Each(count)
		_ = s.AfterFeed(1000, count)
		_ = s.ByExpiry(func(r *record.Row) bool { n++; return n < 100 })
		_, _, _ = s.ByID(record.ID{1})
		_, _ = s.Outcome(7)
		_, _, _ = s.Find([]byte("\x01a\x00"), &[32]byte{})
	})
}

// harmless: nothing differs but bytes between sections.
func harmless(whole, b []byte) bool {
	if !bytes.Equal(whole[:headerSize], b[:headerSize]) {
		return false
	}
	for i := range sectionCount {
		e := whole[sectionTable+24*i:]
		off, n := binary.BigEndian.Uint64(e), binary.BigEndian.Uint64(e[8:])
		if !bytes.Equal(whole[off:off+n], b[off:off+n]) {
			return false
		}
	}
	return true
}

// FuzzStateSnapshot: the entries that are read are those in the file, or the file is refused.
func FuzzStateSnapshot(f *testing.F) {
	fs := vfstest.New(1)
	if err := snapshot.WriteState(fs, "c", "state", 7, [16]byte{1}, []byte("entries of some length")); err != nil {
		f.Fatal(err)
	}
	whole := read(f, fs, "c/state-0000000000000007.snap")
	f.Add(whole, false)
	f.Add(whole[:30], true)
	f.Add(whole[:40], true)
	f.Fuzz(func(t *testing.T, b []byte, sealed bool) {
		b = bytes.Clone(b)
		if sealed && len(b) >= 16 {
			binary.BigEndian.PutUint32(b[12:], crc32.Checksum(b[16:], castagnoli))
		}
		lsn, _, entries, ok, err := snapshot.ReadState(write(t, b, "c/state-0000000000000007.snap"), "c", "state")
		if err != nil {
			if ok || entries != nil || lsn != 0 || !errors.Is(err, snapshot.ErrCorrupt) && !errors.Is(err, snapshot.ErrFormat) {
				t.Fatalf("an error with %d, %x, %v: %v", lsn, entries, ok, err)
			}
			return
		}
		if !ok || !bytes.Equal(entries, b[40:]) || lsn != binary.BigEndian.Uint64(b[16:]) {
			t.Fatalf("%x reads as lsn %d, %x", b, lsn, entries)
		}
	})
}

// FuzzMerge: a sequence of changes, cuts and merges, four bytes each, leaves what a map would hold.
func FuzzMerge(f *testing.F) {
	f.Add([]byte{0, 1, 2, 30, 0, 2, 2, 90, 3, 0, 0, 0, 1, 1, 2, 200, 2, 0, 0, 60, 3, 0, 0, 0, 4, 1, 2, 0, 3, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 1, 2, 0, 0, 50, 0, 0, 0, 2, 3, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 9, 2, 0, 0, 255, 2, 0, 0, 255, 3, 0, 0, 0})
	f.Fuzz(func(t *testing.T, steps []byte) {
		steps = steps[:min(len(steps), 400)]
		fs := vfstest.New(1)
		w, err := journal.Open(journal.Options{FS: fs, Dir: "d", Name: "rows", SegmentMax: 64 << 10}, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		rows := map[string]record.Row{}
		var s *snapshot.Snapshot
		feedMs, wallMs, hlc := int64(10_000), int64(10_000), record.HLC(0)
		for ; len(steps) >= 4; steps = steps[4:] {
			feedMs++
			wallMs += int64(steps[3]) - 20 // and back, now and then
			hlc = hlc.Next(wallMs)
			rdata := record.AppendRDATA(nil, []byte{'v', steps[2] & 3})
			row := record.Row{Name: fmt.Appendf(nil, "\x01%c\x00", 'a'+steps[1]&7), RDATA: rdata, Hash: record.HashOf(rdata), FeedMs: feedMs, Add: hlc, ExpMs: wallMs + 1 + 4*int64(steps[3])}
			key := string(row.Name) + string(rdata)
			was, had := rows[key]
			e := record.Entry{Kind: record.KindPut}
			switch steps[0] % 5 {
			case 1: // refresh
				if had && was.RDATA != nil {
					e.Kind = record.KindRefresh
				}
				fallthrough
			case 0:
				row.Del = was.Del
			case 4: // delete
				if !had {
					continue
				}
				e.Kind = record.KindTombstone
				row.RDATA, row.Add, row.ExpMs, row.Del = nil, was.Add, was.ExpMs, hlc
			case 2:
				appendAll(t, w, record.AppendFrame(nil, feedMs, []record.Entry{{Kind: record.KindExpire, CutMs: wallMs}}))
				for k, r := range rows {
					if (r.RDATA == nil || r.ExpMs <= wallMs) && (r.Del == 0 || r.Del.Ms()+tombstoneLifeMs <= wallMs) {
						delete(rows, k)
					}
				}
				continue
			case 3:
				s = merge(t, fs, w, s, rows)
				continue
			}
			rows[key] = row
			e.Row = row
			if e.Kind == record.KindRefresh {
				e.Row.RDATA = nil
			}
			appendAll(t, w, record.AppendFrame(nil, feedMs, []record.Entry{e}))
		}
		merge(t, fs, w, s, rows)
	})
}

func merge(t *testing.T, fs *vfstest.Sim, w *journal.Writer, prev *snapshot.Snapshot, rows map[string]record.Row) *snapshot.Snapshot {
	if w.Committed() == 0 || prev != nil && w.Committed() == prev.LSN {
		return prev
	}
	s, err := snapshot.Merge(snapshot.MergeOptions{FS: fs, Dir: "d", Name: "rows", Prev: prev, Upto: w.Committed(), TombstoneLifeMs: tombstoneLifeMs})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	if s.Rows != len(rows) {
		t.Fatalf("%d rows, want %d", s.Rows, len(rows))
	}
	for k, want := range rows {
		found := false
		if err := s.Name(want.Name, func(r *record.Row) bool {
			if r.Hash == want.Hash {
				found = true
				if r.Add != want.Add || r.Del != want.Del || r.ExpMs != want.ExpMs || r.FeedMs != want.FeedMs || !bytes.Equal(r.RDATA, want.RDATA) {
					t.Fatalf("%q is %+v, want %+v", k, *r, want)
				}
			}
			return true
		}); err != nil || !found {
			t.Fatalf("%q: found %v, %v", k, found, err)
		}
	}
	return s
}
