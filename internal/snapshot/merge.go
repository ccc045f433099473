package snapshot

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/killpoint"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

// MergeOptions say what to merge. Memory: the rows of the log (which is merged when it has grown as large as the last snapshot), and
// 12 bytes for each row of the old snapshot.
type MergeOptions struct {
	FS        vfs.FS
	Dir, Name string
	Prev      *Snapshot // nil for the first one
	Upto      uint64    // the last lsn to take in; it must be committed
	// TombstoneLifeMs is how long a delete is remembered (cluster.md 17.4).
	TombstoneLifeMs int64
	// Stop, if set, is asked now and then; true gives the merge up.
	Stop func() bool
}

// ErrStopped says that a merge was given up.
var ErrStopped = errors.New("snapshot: merge stopped")

// key names a row while its value is not at hand.
type key struct {
	name string
	hash [32]byte
}

// tail is what the log says.
type tail struct {
	meta     Meta
	rows     map[key]*tailRow
	outcomes []Outcome
	cuts     []int64 // in the order of the log
}

type tailRow struct {
	row  record.Row // owns its bytes
	cuts int        // that stand before it: those do not touch it
}

// Merge makes the snapshot at lsn Upto and removes older ones. The log must reach back to the old snapshot.
func Merge(o MergeOptions) (*Snapshot, error) {
	t, err := readTail(&o)
	if err != nil {
		return nil, err
	}
	path := Path(o.Dir, o.Name, o.Upto)
	temporary := path + ".new"
	if err := removeOld(o.FS, o.Dir, o.Name, func(f string) bool { return strings.HasSuffix(f, ".snap.new") }); err != nil {
		return nil, err
	}
	if err := write(&o, t, temporary); err != nil {
		_ = o.FS.Remove(temporary)
		return nil, err
	}
	killpoint.Hit("snapshot-written")
	if err := o.FS.Rename(temporary, path); err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	if err := o.FS.SyncDir(o.Dir); err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	killpoint.Hit("snapshot-renamed")
	s, err := Open(o.FS, path)
	if err != nil {
		return nil, err
	}
	newest := filepath.Base(path)
	if err := removeOld(o.FS, o.Dir, o.Name, func(f string) bool { return strings.HasSuffix(f, ".snap") && f < newest }); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func removeOld(fs vfs.FS, dir, name string, which func(file string) bool) error {
	files, err := fs.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	for _, f := range files {
		if strings.HasPrefix(f, name+"-") && which(f) {
			if err := fs.Remove(filepath.Join(dir, f)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("snapshot: %w", err)
			}
		}
	}
	return nil
}

// readTail reads the log behind the old snapshot.
func readTail(o *MergeOptions) (*tail, error) {
	t := &tail{rows: map[key]*tailRow{}}
	from := uint64(1)
	if o.Prev != nil {
		t.meta = o.Prev.Meta
		from = o.Prev.LSN + 1
	}
	r, err := journal.OpenReader(o.FS, o.Dir, o.Name, from)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for {
		lsn, payload, ok, err := r.Next()
		if errors.Is(err, journal.ErrEpoch) {
			t.meta.Epoch = r.Epoch()
			continue
		}
		if err != nil {
			return nil, err
		}
		if !ok || lsn > o.Upto {
			break
		}
		if o.Stop != nil && o.Stop() {
			return nil, ErrStopped
		}
		t.meta.Epoch, t.meta.LSN = r.Epoch(), lsn
		if err := t.frame(o, payload); err != nil {
			return nil, fmt.Errorf("snapshot: frame %d: %w", lsn, err)
		}
	}
	if t.meta.LSN > o.Upto {
		return nil, fmt.Errorf("snapshot: the last one is at %d, beyond %d", t.meta.LSN, o.Upto)
	}
	t.meta.LSN = o.Upto // lsns between may belong to groups that were dropped
	t.latest()
	return t, nil
}

func (t *tail) frame(o *MergeOptions, payload []byte) error {
	var outcomes []Outcome
	err := record.ReadFrame(payload, func(feedMs int64, e *record.Entry) error {
		if e.Kind == record.KindOutcome {
			outcomes = append(outcomes, Outcome{e.LSN, e.Code, e.Applied})
			return nil
		}
		return t.apply(o, feedMs, e)
	})
	t.outcomes = append(t.outcomes, outcomes...) // behind the positions of their own frame, which say whose lsns they are
	return err
}

func (t *tail) apply(o *MergeOptions, feedMs int64, e *record.Entry) error {
	m := &t.meta
	m.FeedMs = max(m.FeedMs, feedMs)
	switch e.Kind {
	case record.KindPut, record.KindRefresh, record.KindTombstone:
		m.HLC = max(m.HLC, e.Row.Add, e.Row.Del)
		return t.element(o, e)
	case record.KindExpire:
		m.CutMs = e.CutMs // which is less than the last one after the clock was stepped back
		t.cuts = append(t.cuts, e.CutMs)
	case record.KindTaken:
		if e.RequestsEpoch != m.RequestsEpoch {
			t.outcomes = nil // their lsns are another epoch's
		}
		m.RequestsEpoch, m.Requests, m.StateEpoch, m.State = e.RequestsEpoch, e.Requests, e.StateEpoch, e.State
	case record.KindSerial:
		m.Zone, m.Serial = bytes.Clone(e.Zone), e.Serial
	}
	return nil
}

func (t *tail) element(o *MergeOptions, e *record.Entry) error {
	k := key{string(e.Row.Name), e.Row.Hash}
	was := t.rows[k]
	now := &tailRow{row: e.Row, cuts: len(t.cuts)}
	now.row.Name = []byte(k.name)
	switch {
	case e.Kind == record.KindPut:
		now.row.RDATA = bytes.Clone(e.Row.RDATA)
	case e.Kind == record.KindTombstone:
	case was != nil:
		now.row.RDATA = was.row.RDATA
	case o.Prev != nil:
		r, _, err := o.Prev.Find(e.Row.Name, &e.Row.Hash)
		if err != nil {
			return err
		}
		now.row.RDATA = r.RDATA
	}
	if e.Kind != record.KindTombstone && now.row.RDATA == nil {
		return fmt.Errorf("%w: a refresh of a value that was never stored", record.ErrFormat)
	}
	t.rows[k] = now
	return nil
}

// latest turns each cut into the latest of it and those behind it, with one more for rows behind all of them.
func (t *tail) latest() {
	t.cuts = append(t.cuts, noCut)
	for i := len(t.cuts) - 2; i >= 0; i-- {
		t.cuts[i] = max(t.cuts[i], t.cuts[i+1])
	}
}

const noCut = -1 << 62

// kept says whether a row still counts after the cuts from that one on: a live one until its end, a delete for the life of
// tombstones, also where a later publish was the shorter one. Cuts before the row do not touch it: after a step back of the
// clock it may well end before them.
func (t *tail) kept(o *MergeOptions, r *record.Row, cuts int) bool {
	cutMs := t.cuts[cuts]
	if r.Del != 0 && r.Del.Ms()+o.TombstoneLifeMs > cutMs {
		return true
	}
	return r.RDATA != nil && r.Del < r.Add && r.ExpMs > cutMs
}

// merger numbers the rows of the new snapshot: first the old ones that stay, then those of the log.
type merger struct {
	o      *MergeOptions
	t      *tail
	w      *writer
	prev   *Snapshot
	renumb []uint32 // by old number: new number + 1, 0 for a row that is gone
	rows   []*tailRow
	base   int // number of the first of rows
	n      int
	tombs  int
}

func write(o *MergeOptions, t *tail, path string) error {
	f, err := o.FS.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	defer f.Close()
	m := &merger{o: o, t: t, w: &writer{f: f, off: headerSize, flushed: headerSize}, prev: o.Prev}
	m.order()
	offsets, err := m.writeRows()
	if err != nil {
		return err
	}
	m.w.begin(secOrder)
	for _, off := range offsets {
		m.w.u64(off)
	}
	offsets = nil
	m.w.end()
	for _, index := range []struct {
		sec     int
		compare func(aID, bID *record.ID, a, b *record.Row) int
	}{
		{secName, func(_, _ *record.ID, a, b *record.Row) int {
			return byName(a, b)
		}},
		{secID, func(a, b *record.ID, _, _ *record.Row) int { return bytes.Compare(a[:], b[:]) }},
		{secExp, func(_, _ *record.ID, a, b *record.Row) int { return cmp.Compare(a.ExpMs, b.ExpMs) }},
	} {
		if err := m.index(index.sec, index.compare); err != nil {
			return err
		}
	}
	m.w.begin(secOutcomes)
	m.outcomes()
	m.w.end()
	t.meta.Rows, t.meta.Tombstones = m.n, m.tombs
	return m.w.finish(&t.meta)
}

// order sorts the log's rows by feed stamp, name and hash (cluster.md 17.3), and leaves out what does not count any more.
func (m *merger) order() {
	for _, r := range m.t.rows {
		if m.t.kept(m.o, &r.row, r.cuts) {
			m.rows = append(m.rows, r)
		}
	}
	slices.SortFunc(m.rows, func(a, b *tailRow) int {
		if c := cmp.Compare(a.row.FeedMs, b.row.FeedMs); c != 0 {
			return c
		}
		return byName(&a.row, &b.row)
	})
}

// byName compares names, then values. (cmp.Or would compare both every time.)
func byName(a, b *record.Row) int {
	if c := bytes.Compare(a.Name, b.Name); c != 0 {
		return c
	}
	return bytes.Compare(a.Hash[:], b.Hash[:])
}

func (m *merger) writeRows() (offsets []uint64, err error) {
	m.w.begin(secRows)
	if m.prev != nil {
		m.renumb = make([]uint32, m.prev.Rows)
		offsets = make([]uint64, 0, m.prev.Rows+len(m.rows))
		for i := range m.prev.Rows {
			if i%4096 == 0 && m.o.Stop != nil && m.o.Stop() {
				return nil, ErrStopped
			}
			_, r, size, err := m.prev.row(i)
			if err != nil {
				return nil, err
			}
			if m.t.rows[key{string(r.Name), r.Hash}] != nil || !m.t.kept(m.o, &r, 0) {
				continue
			}
			raw, _ := m.prev.raw(i)
			offsets = append(offsets, m.w.sectionLen())
			m.w.bytes(raw[:size])
			m.count(&r)
			m.renumb[i] = uint32(m.n)
		}
	}
	m.base = m.n
	for _, t := range m.rows {
		offsets = append(offsets, m.w.sectionLen())
		m.w.u64(uint64(t.row.FeedMs))
		id := t.row.ID()
		m.w.bytes(id[:])
		e := record.Entry{Kind: record.KindPut, Row: t.row}
		if t.row.RDATA == nil {
			e.Kind = record.KindTombstone
		}
		m.w.scratch = record.AppendEntry(m.w.scratch[:0], &e)
		m.w.bytes(m.w.scratch)
		m.count(&t.row)
	}
	m.w.end()
	if m.n > rowsMax {
		return nil, fmt.Errorf("snapshot: %d rows are more than its numbers can count", m.n)
	}
	return offsets, m.w.err
}

// count numbers a row.
func (m *merger) count(r *record.Row) {
	m.n++
	if r.RDATA == nil {
		m.tombs++
	}
}

// index merges an index of the old snapshot with the sorted rows of the log.
func (m *merger) index(sec int, compare func(aID, bID *record.ID, a, b *record.Row) int) error {
	fresh := make([]int, len(m.rows))
	for i := range fresh {
		fresh[i] = i
	}
	ids := make([]record.ID, len(m.rows))
	if sec == secID {
		for i, r := range m.rows {
			ids[i] = r.row.ID()
		}
	}
	slices.SortFunc(fresh, func(i, j int) int { // a stable sort costs twice as much
		return cmp.Or(compare(&ids[i], &ids[j], &m.rows[i].row, &m.rows[j].row), cmp.Compare(i, j))
	})
	m.w.begin(sec)
	at := 0
	if m.prev != nil {
		for k := range m.prev.Rows {
			old := number(m.prev.sec[sec], k)
			if old >= m.prev.Rows {
				return m.prev.corrupt(m.prev.off[sec]+int64(4*k), "it names row %d of %d", old, m.prev.Rows)
			}
			n := m.renumb[old]
			if n == 0 {
				continue
			}
			id, r, _, err := m.prev.row(old)
			if err != nil {
				return err
			}
			for at < len(fresh) {
				f := m.rows[fresh[at]]
				if compare(&ids[fresh[at]], &id, &f.row, &r) >= 0 {
					break
				}
				m.w.u32(uint32(m.base + fresh[at]))
				at++
			}
			m.w.u32(n - 1)
		}
	}
	for ; at < len(fresh); at++ {
		m.w.u32(uint32(m.base + fresh[at]))
	}
	m.w.end()
	return m.w.err
}

func (m *merger) outcomes() {
	all := m.t.outcomes
	if p := m.prev; p != nil && p.RequestsEpoch == m.t.meta.RequestsEpoch {
		var old []Outcome
		for b := p.sec[secOutcomes]; len(b) > 0; b = b[outcomeSize:] {
			old = append(old, decodeOutcome(b))
		}
		all = append(old, all...)
	}
	slices.SortStableFunc(all, func(a, b Outcome) int { return cmp.Compare(a.LSN, b.LSN) })
	for _, o := range all[max(0, len(all)-OutcomesMax):] {
		m.w.u64(o.LSN)
		m.w.bytes([]byte{byte(o.Code)})
		m.w.u32(o.Applied)
	}
}

// writer writes sections one after the other, with their checksums.
type writer struct {
	f       vfs.File
	buf     []byte
	scratch []byte
	off     int64 // of the next byte
	flushed int64
	start   int64
	sec     int
	crc     uint32
	table   [sections]struct {
		off, n int64
		crc    uint32
	}
	err error
}

const flushAt = 1 << 20

func (w *writer) begin(sec int) {
	for w.off%8 != 0 {
		w.buf = append(w.buf, 0)
		w.off++
	}
	w.sec, w.start, w.crc = sec, w.off, 0
}

func (w *writer) sectionLen() uint64 { return uint64(w.off - w.start) }

func (w *writer) bytes(b []byte) {
	w.crc = crc32.Update(w.crc, castagnoli, b)
	w.buf = append(w.buf, b...)
	w.off += int64(len(b))
	if len(w.buf) >= flushAt {
		w.flush()
	}
}

func (w *writer) u64(v uint64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], v)
	w.bytes(b[:])
}

func (w *writer) u32(v uint32) {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], v)
	w.bytes(b[:])
}

func (w *writer) flush() {
	if w.err == nil && len(w.buf) > 0 {
		if _, err := w.f.WriteAt(w.buf, w.flushed); err != nil {
			w.err = fmt.Errorf("snapshot: %w", err)
		}
	}
	w.flushed += int64(len(w.buf))
	w.buf = w.buf[:0]
}

func (w *writer) end() {
	w.table[w.sec] = struct {
		off, n int64
		crc    uint32
	}{w.start, w.off - w.start, w.crc}
}

func (w *writer) finish(m *Meta) error {
	w.flush()
	if w.err != nil {
		return w.err
	}
	b := make([]byte, headerSize)
	m.encode(b)
	for i, s := range w.table {
		at := offSections + i*sectionWidth
		binary.BigEndian.PutUint64(b[at:], uint64(s.off))
		binary.BigEndian.PutUint64(b[at+8:], uint64(s.n))
		binary.BigEndian.PutUint32(b[at+16:], s.crc)
	}
	binary.BigEndian.PutUint32(b[offHeaderCRC:], crc32.Checksum(b[:offHeaderCRC], castagnoli))
	if _, err := w.f.WriteAt(b, 0); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if err := w.f.Sync(); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return nil
}
