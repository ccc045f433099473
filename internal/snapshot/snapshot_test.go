package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/vfs/vfstest"
)

func wireName(i int) []byte { return fmt.Appendf(nil, "\x05name%d\x04test\x00", i) }

// model is what the rows should be.
type model struct {
	rows   map[string]record.Row
	feedMs int64 // stamps never go back
	wallMs int64 // the clock does
	cutMs  int64
	hlc    record.HLC
	lsn    uint64
}

const life = 5000

// frame makes a random frame and applies it to the model.
func (m *model) frame(rng *rand.Rand) []byte {
	m.wallMs += 1 + rng.Int64N(400)
	if rng.IntN(30) == 0 {
		m.wallMs -= rng.Int64N(8000)
	}
	m.feedMs = max(m.wallMs, m.feedMs+1)
	var es []record.Entry
	for range 1 + rng.IntN(4) {
		name, rdata := wireName(rng.IntN(10)), record.AppendRDATA(nil, fmt.Appendf(nil, "value %d", rng.IntN(3)))
		r := record.Row{Name: name, RDATA: rdata, Hash: record.HashOf(rdata), FeedMs: m.feedMs}
		k := string(name) + string(rdata)
		was, had := m.rows[k]
		m.hlc = m.hlc.Next(m.wallMs)
		r.Add, r.Del, r.ExpMs = m.hlc, was.Del, m.wallMs+1+rng.Int64N(6000)
		switch n := rng.IntN(6); {
		case n < 3 || !had:
			es = append(es, record.Entry{Kind: record.KindPut, Row: r})
		case n < 5 && was.RDATA != nil:
			r.RDATA = nil
			es = append(es, record.Entry{Kind: record.KindRefresh, Row: r})
			r.RDATA = rdata
		default:
			r.RDATA = nil
			r.Add, r.ExpMs, r.Del = was.Add, was.ExpMs, m.hlc
			es = append(es, record.Entry{Kind: record.KindTombstone, Row: r})
		}
		m.rows[k] = r
	}
	if rng.IntN(5) == 0 {
		m.cutMs = m.wallMs
		es = append(es, record.Entry{Kind: record.KindExpire, CutMs: m.cutMs})
		for k, r := range m.rows {
			if (r.RDATA == nil || r.ExpMs <= m.cutMs) && r.Del.Ms()+life <= m.cutMs {
				delete(m.rows, k)
			}
		}
	}
	m.lsn++
	es = append(es, record.Entry{Kind: record.KindOutcome, LSN: m.lsn, Code: record.CodeFull, Applied: uint32(m.lsn)},
		record.Entry{Kind: record.KindTaken, RequestsEpoch: [16]byte{1}, Requests: m.lsn, StateEpoch: [16]byte{2}, State: 7},
		record.Entry{Kind: record.KindSerial, Zone: []byte("\x04test\x00"), Serial: uint32(m.lsn) + 100})
	return record.AppendFrame(nil, m.feedMs, es)
}

func TestMergeAgainstModel(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 2))
		fs := vfstest.New(seed)
		w, err := journal.Open(journal.Options{FS: fs, Dir: "d", Name: "rows", SegmentMax: 16 << 10}, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		m := &model{rows: map[string]record.Row{}, feedMs: 1_000_000, wallMs: 1_000_000}
		var s *Snapshot
		for range 6 {
			for range 1 + rng.IntN(40) {
				if _, err := w.Append(m.frame(rng)); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Sync(); err != nil {
				t.Fatal(err)
			}
			next, err := Merge(MergeOptions{FS: fs, Dir: "d", Name: "rows", Prev: s, Upto: w.Committed(), TombstoneLifeMs: life})
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			s = next
			if err := w.Drop(s.LSN + 1); err != nil {
				t.Fatal(err)
			}
			compare(t, seed, s, m)
		}
		if lsns, err := List(fs, "d", "rows"); err != nil || len(lsns) != 1 {
			t.Errorf("%d snapshots lie there, %v", len(lsns), err)
		}
	}
}

func compare(t *testing.T, seed uint64, s *Snapshot, m *model) {
	t.Helper()
	if err := s.Check(); err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	if s.Rows != len(m.rows) {
		t.Fatalf("seed %d: %d rows, want %d", seed, s.Rows, len(m.rows))
	}
	if s.FeedMs != m.feedMs || s.CutMs != m.cutMs || s.HLC != m.hlc || s.Serial != uint32(m.lsn)+100 || s.Requests != m.lsn || s.State != 7 || string(s.Zone) != "\x04test\x00" {
		t.Fatalf("seed %d: meta %+v", seed, s.Meta)
	}
	for lsn := uint64(1); lsn <= m.lsn; lsn++ {
		if o, ok := s.Outcome(lsn); !ok || o.Code != record.CodeFull || o.Applied != uint32(lsn) {
			t.Fatalf("seed %d: outcome of %d of %d: %+v, %v", seed, lsn, m.lsn, o, ok)
		}
	}
	if _, ok := s.Outcome(m.lsn + 1); ok {
		t.Fatal("an outcome of a request that was never made")
	}
	for k, want := range m.rows {
		found := false
		if err := s.Name(want.Name, func(r *record.Row) bool {
			if r.Hash == want.Hash {
				found = true
				if r.Add != want.Add || r.Del != want.Del || r.ExpMs != want.ExpMs || r.FeedMs != want.FeedMs || !bytes.Equal(r.RDATA, want.RDATA) {
					t.Errorf("seed %d: %q is %+v, want %+v", seed, k, *r, want)
				}
			}
			return true
		}); err != nil || !found {
			t.Fatalf("seed %d: %q: found %v, %v", seed, k, found, err)
		}
		if r, ok, err := s.ByID(want.ID()); err != nil || !ok || r.Hash != want.Hash {
			t.Fatalf("seed %d: by id %v, %v", seed, ok, err)
		}
	}
	last := int64(0)
	if err := s.ByExpiry(func(r *record.Row) bool {
		if r.ExpMs < last {
			t.Errorf("seed %d: not by expiry", seed)
		}
		last = r.ExpMs
		return true
	}); err != nil {
		t.Fatal(err)
	}
	half := m.feedMs - 2000
	want, got := 0, 0
	for _, r := range m.rows {
		if r.FeedMs > half {
			want++
		}
	}
	if err := s.AfterFeed(half, func(_ record.ID, r *record.Row) bool { got++; return r.FeedMs > half }); err != nil || got != want {
		t.Errorf("seed %d: %d rows after a stamp, want %d, %v", seed, got, want, err)
	}
}

func TestFlips(t *testing.T) {
	whole, path := func() ([]byte, string) {
		fs := vfstest.New(1)
		w, err := journal.Open(journal.Options{FS: fs, Dir: "d", Name: "rows"}, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		m := &model{rows: map[string]record.Row{}, feedMs: 1_000_000, wallMs: 1_000_000}
		rng := rand.New(rand.NewPCG(1, 2))
		for range 20 {
			w.Append(m.frame(rng))
		}
		if err := w.Sync(); err != nil {
			t.Fatal(err)
		}
		s, err := Merge(MergeOptions{FS: fs, Dir: "d", Name: "rows", Upto: w.Committed(), TombstoneLifeMs: life})
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Clone(s.mapping.Bytes()), s.Path()
	}()
	build := func() (*vfstest.Sim, string) {
		fs := vfstest.New(1)
		f, err := fs.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err == nil {
			_, err = f.WriteAt(whole, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		return fs, path
	}
	rng := rand.New(rand.NewPCG(2, 2))
	for range 100 {
		fs, path := build()
		size, _, _ := fs.Stat(path)
		off := rng.Int64N(size)
		fs.Flip(path, off, uint(rng.IntN(8)))
		s, err := Open(fs, path)
		if err == nil {
			err = s.Check()
			// Whatever it holds, reading it must not panic.
			s.Each(func(record.ID, *record.Row) bool { return true })
			s.Name(wireName(1), func(*record.Row) bool { return true })
			s.ByID(record.ID{1})
			s.ByExpiry(func(*record.Row) bool { return true })
		}
		var c *CorruptError
		if err != nil && !errors.As(err, &c) && !errors.Is(err, ErrFormat) {
			t.Errorf("flip at %d: %v", off, err)
		}
		if err == nil && off < headerSize {
			t.Errorf("flip at %d in the header was not seen", off)
		}
	}
	// Places of rows that lie far outside the file, and just at its end.
	for bit := range 64 {
		fs, path := build()
		s, err := Open(fs, path)
		if err != nil {
			t.Fatal(err)
		}
		fs.Flip(path, s.off[secOrder]+int64(7-bit/8), uint(bit%8))
		s, err = Open(fs, path)
		if err != nil {
			t.Fatal(err)
		}
		s.Each(func(record.ID, *record.Row) bool { return true })
		s.AfterFeed(0, func(record.ID, *record.Row) bool { return true })
		if err := s.Check(); !errors.Is(err, ErrCorrupt) {
			t.Errorf("bit %d of a row's place: %v", bit, err)
		}
	}
	fs, path := build()
	fs.Cut(path, int64(len(whole))-1)
	if _, err := Open(fs, path); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a file that was cut: %v", err)
	}
}

func TestState(t *testing.T) {
	fs := vfstest.New(1)
	if _, _, _, ok, err := ReadState(fs, "c", "state"); ok || err != nil {
		t.Fatal(ok, err)
	}
	for i := range uint64(3) {
		if err := WriteState(fs, "c", "state", i+1, [16]byte{9}, fmt.Appendf(nil, "entries %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	lsn, epoch, b, ok, err := ReadState(fs, "c", "state")
	if err != nil || !ok || lsn != 3 || epoch != [16]byte{9} || string(b) != "entries 2" {
		t.Fatal(lsn, epoch, b, ok, err)
	}
	files, _ := fs.ReadDir("c")
	if len(files) != 1 {
		t.Error(files)
	}
	fs.Flip("c/"+files[0], 45, 1)
	if _, _, _, _, err := ReadState(fs, "c", "state"); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
}
