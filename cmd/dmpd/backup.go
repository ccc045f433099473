package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/dnsmesh/dmpd/controlplane/auth"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/config"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/snapshot"
	"github.com/dnsmesh/dmpd/internal/tsig"
	"github.com/dnsmesh/dmpd/internal/vfs"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// docs/format/backup.md has the picture of the file.
const (
	backupMagic  = "dmpback\n"
	backupFormat = 1
	backupHeader = 16
	blockAbout   = 1
	blockRows    = 2
	blockState   = 3
	blockEnd     = 255
	blockMax     = journal.FrameMax // of rows; the others are smaller
	stateBlock   = 1 << 20
)

func init() {
	register(
		&command{name: "backup", args: "FILE [--json]", short: "Write all records, keys and tokens to one file, while the node runs or not", run: backup,
			long: "The file holds the secrets of TSIG keys. It must not be there yet.", example: "dmpd backup /var/backups/dmpd-$(date +%F).zst"},
		&command{name: "restore", args: "FILE [--revoked-in NEWER]... [--json]", short: "Make the state folder what a backup says; the node must be stopped", run: restore,
			long: `What is there now is moved to a folder beside it, not deleted. Keys and tokens that were revoked since the backup stay revoked, locks and
denials made since stay, as far as the present folder can be read. If it is lost or too old, name newer backups with --revoked-in: only what was revoked,
locked and denied is taken from them. The zone's serial goes on above all of that.`,
			example: "dmpd restore /var/backups/dmpd-2026-01-31.zst\ndmpd restore dmpd-2026-01-31.zst --revoked-in dmpd-2026-02-01.zst"},
		&command{name: "verify", args: "[FILE] [--json]", short: "Check a backup, or the state folder, to the last byte", run: verify, example: "dmpd verify\ndmpd verify /var/backups/dmpd-2026-01-31.zst"},
	)
}

// aboutBackup is the first block.
type aboutBackup struct {
	MadeMs   int64  `json:"made_ms"`
	Build    string `json:"build"`
	Zone     string `json:"zone"`
	Serial   uint32 `json:"serial"`
	FeedMs   int64  `json:"feed_ms"`
	RowsLSN  uint64 `json:"rows_lsn"`
	StateLSN uint64 `json:"state_lsn"`
}

// countBackup is the last one.
type countBackup struct {
	Rows    int `json:"rows"`
	Deletes int `json:"deletes"`
	State   int `json:"state_entries"`
}

// backupReport is what the commands print.
type backupReport struct {
	File string `json:"file,omitempty"`
	aboutBackup
	countBackup
	Bytes    int64  `json:"bytes,omitempty"`
	Live     int    `json:"live"`
	Content  string `json:"content"` // contentHash of the live records
	Replaced string `json:"replaced,omitempty"`
}

func (p *place) report(r *backupReport, what string) error {
	return p.print(r, func(w *tabwriter.Writer) {
		fmt.Fprintf(w, "%s\nmade\t%s by %s\nzone\t%s, serial %d\n", what, time.UnixMilli(r.MadeMs).UTC().Format("2006-01-02 15:04:05Z"), dash(r.Build), dash(r.Zone), r.Serial)
		fmt.Fprintf(w, "records\t%d live, %d in all, %d deletes remembered\nkeys, tokens and more\t%d entries\ncontent\t%s\n", r.Live, r.Rows, r.Deletes, r.State, r.Content)
		if r.Replaced != "" {
			fmt.Fprintf(w, "what was there\tis in %s\n", r.Replaced)
		}
	})
}

// contentHash tells two sets of live records apart, in whatever order they come: the XOR of a hash of each.
type contentHash struct {
	sum [32]byte
	n   int
}

func (c *contentHash) add(r *record.Row) {
	b := make([]byte, 0, len(r.Name)+len(r.Hash)+8)
	b = append(append(b, r.Name...), r.Hash[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(r.ExpMs))
	h := sha256.Sum256(b)
	for i := range h {
		c.sum[i] ^= h[i]
	}
	c.n++
}

func (c *contentHash) String() string { return fmt.Sprintf("%x", c.sum[:16]) }

// stateEntries reads control/state without a lock, as it is durable.
func stateEntries(dir string) (lsn uint64, entries []byte, err error) {
	for range openTries {
		lsn, entries, err = readState(dir)
		if !errors.Is(err, journal.ErrGone) && !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	return lsn, entries, err
}

func readState(dir string) (lsn uint64, entries []byte, err error) {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return 0, nil, nil
	}
	lsn, _, entries, ok, err := snapshot.ReadState(vfs.OS, dir, auth.LogName)
	if err != nil {
		return 0, nil, err
	}
	r, err := journal.OpenReader(vfs.OS, dir, auth.LogName, lsn+1)
	if errors.Is(err, os.ErrNotExist) {
		files, globErr := filepath.Glob(filepath.Join(dir, auth.LogName+"-*.log"))
		if globErr == nil && len(files) == 0 && (ok || lsn == 0) {
			return lsn, entries, nil // nobody wrote since the snapshot, or ever
		}
	}
	if err != nil {
		return 0, nil, err
	}
	defer r.Close()
	for {
		at, payload, ok, err := r.Next()
		if errors.Is(err, journal.ErrEpoch) {
			continue
		}
		if err != nil {
			return 0, nil, err
		}
		if !ok {
			return lsn, entries, nil
		}
		lsn, entries = at, append(entries, payload...)
	}
}

// blockWriter writes a backup.
type blockWriter struct {
	w    io.Writer
	hash hash.Hash
	n    countBackup
}

func (b *blockWriter) write(p []byte) error {
	b.hash.Write(p)
	_, err := b.w.Write(p)
	return err
}

func (b *blockWriter) block(kind byte, body []byte) error {
	head := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)))
	if err := b.write(head); err != nil {
		return err
	}
	return b.write(body)
}

func (b *blockWriter) json(kind byte, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.block(kind, body)
}

func backup(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	args, err := p.parsed(f, 1, 1)
	if err != nil {
		return err
	}
	out, err := os.OpenFile(args[0], os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return usagef("%s is there already, and a backup overwrites nothing. Give another name", args[0])
	}
	if err != nil {
		return usageError{err}
	}
	report, err := p.writeBackup(out)
	if err == nil {
		err = out.Sync()
	}
	if info, statErr := out.Stat(); err == nil && statErr == nil {
		report.Bytes = info.Size()
	}
	err = errors.Join(err, out.Close())
	if err == nil {
		err = syncFolder(filepath.Dir(args[0]))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("the backup failed: %w", err), os.Remove(args[0]))
	}
	report.File = args[0]
	return p.report(report, "The backup is written to "+args[0]+".")
}

func (p *place) writeBackup(out io.Writer) (*backupReport, error) {
	v, err := openView(p.dataDir())
	if err != nil {
		return nil, err
	}
	defer v.close()
	stateLSN, entries, err := stateEntries(p.controlDir())
	if err != nil {
		return nil, err
	}
	r := &backupReport{aboutBackup: aboutBackup{MadeMs: clock.NowMs(), Build: config.BuildID(), Serial: v.meta.Serial, FeedMs: v.meta.FeedMs, RowsLSN: v.meta.LSN, StateLSN: stateLSN}}
	if len(v.meta.Zone) > 0 {
		r.Zone = wire.Text(v.meta.Zone)
	}
	z, err := zstd.NewWriter(out)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	b := &blockWriter{w: z, hash: sha256.New()}
	head := append([]byte(backupMagic), 0, backupFormat, 0, backupFormat, 0, 0, 0, 0)
	if err := b.write(head); err != nil {
		return nil, err
	}
	if err := b.json(blockAbout, r.aboutBackup); err != nil {
		return nil, err
	}
	var content contentHash
	frames := &framer{flush: func(payload []byte) error { return b.block(blockRows, payload) }}
	err = v.each(func(row *record.Row) error {
		if row.Live(r.MadeMs) {
			content.add(row)
		}
		if row.RDATA == nil {
			b.n.Deletes++
		} else {
			b.n.Rows++
		}
		return frames.add(row)
	})
	if err == nil {
		err = frames.end()
	}
	if err != nil {
		return nil, err
	}
	var state []byte
	err = tsig.ReadState(entries, func(kind tsig.StateKind, body []byte) error {
		b.n.State++
		state = tsig.AppendState(state, kind, body)
		if len(state) < stateBlock {
			return nil
		}
		err := b.block(blockState, state)
		state = state[:0]
		return err
	})
	if err == nil && len(state) > 0 {
		err = b.block(blockState, state)
	}
	if err == nil {
		err = b.json(blockEnd, b.n)
	}
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(b.hash.Sum(nil)); err != nil {
		return nil, err
	}
	r.countBackup, r.Content, r.Live = b.n, content.String(), content.n
	return r, z.Close()
}

// framer makes frames of rows that come in feed order: those of one stamp are one frame.
type framer struct {
	flush  func(payload []byte) error
	feedMs int64
	buf    []byte
}

func (f *framer) add(row *record.Row) error {
	if len(f.buf) > 0 && row.FeedMs != f.feedMs {
		if err := f.end(); err != nil {
			return err
		}
	}
	f.feedMs = row.FeedMs
	if len(f.buf) == 0 {
		f.buf = record.AppendFrame(f.buf, row.FeedMs, nil)
	}
	kind := record.KindPut
	if row.RDATA == nil {
		kind = record.KindTombstone
	}
	f.buf = record.AppendEntry(f.buf, &record.Entry{Kind: kind, Row: *row})
	if len(f.buf) > blockMax {
		return fmt.Errorf("more rows with the feed stamp %d than a frame holds", f.feedMs)
	}
	return nil
}

func (f *framer) end() error {
	if len(f.buf) == 0 {
		return nil
	}
	err := f.flush(f.buf)
	f.buf = f.buf[:0]
	return err
}

// backupHandler takes what a backup holds. Slices are valid during the call.
type backupHandler struct {
	about func(a *aboutBackup) error
	rows  func(payload []byte) error
	state func(entries []byte) error
}

// errBackup says that a file is no good backup.
var errBackup = errors.New("not a good backup")

// readBackup reads a backup and checks all that docs/format/backup.md asks for. What it handed over counts only if it returns no error.
func readBackup(in io.Reader, h backupHandler) (*backupReport, error) {
	z, err := zstd.NewReader(bufio.NewReaderSize(in, 1<<20), zstd.WithDecoderMaxMemory(1<<28))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	sum := sha256.New()
	from := io.TeeReader(z, sum)
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", errBackup, fmt.Sprintf(format, args...))
	}
	head := make([]byte, backupHeader)
	if _, err := io.ReadFull(from, head); err != nil || string(head[:8]) != backupMagic {
		return nil, bad("it does not begin like one")
	}
	if low := binary.BigEndian.Uint16(head[10:]); low > backupFormat {
		return nil, bad("it has format %d, which needs a reader of %d; this one reads %d", binary.BigEndian.Uint16(head[8:]), low, backupFormat)
	}
	r := &backupReport{}
	var content contentHash
	lastKind, lastFeedMs := byte(0), int64(0)
	for lastKind != blockEnd {
		if _, err := io.ReadFull(from, head[:5]); err != nil {
			return nil, bad("it ends too soon: %v", err)
		}
		kind, size := head[0], binary.BigEndian.Uint32(head[1:])
		if size > blockMax {
			return nil, bad("a block of %d bytes", size)
		}
		if kind < lastKind || kind == 0 || kind > blockState && kind != blockEnd || (kind == blockAbout) != (lastKind == 0) {
			return nil, bad("a block of kind %d behind one of kind %d", kind, lastKind)
		}
		lastKind = kind
		body := make([]byte, size)
		if _, err := io.ReadFull(from, body); err != nil {
			return nil, bad("it ends too soon: %v", err)
		}
		switch kind {
		case blockAbout:
			err := json.Unmarshal(body, &r.aboutBackup)
			if err != nil {
				return nil, bad("what it says about itself: %v", err)
			}
			if h.about != nil {
				err = h.about(&r.aboutBackup)
			}
			if err != nil {
				return nil, err
			}
		case blockRows:
			err := record.ReadFrame(body, func(feedMs int64, e *record.Entry) error {
				if feedMs < lastFeedMs {
					return fmt.Errorf("feed stamp %d behind %d", feedMs, lastFeedMs)
				}
				lastFeedMs = feedMs
				switch e.Kind {
				case record.KindPut:
					if record.HashOf(e.Row.RDATA) != e.Row.Hash {
						return fmt.Errorf("a value at %s does not match its hash", wire.Text(e.Row.Name))
					}
					r.Rows++
				case record.KindTombstone:
					r.Deletes++
				default:
					return fmt.Errorf("an entry of kind %d", e.Kind)
				}
				if e.Row.Live(r.MadeMs) {
					content.add(&e.Row)
				}
				return nil
			})
			if err != nil {
				return nil, bad("rows: %v", err)
			}
			lastFeedMs++ // the next frame's is larger
			if h.rows != nil {
				if err := h.rows(body); err != nil {
					return nil, err
				}
			}
		case blockState:
			if err := tsig.ReadState(body, func(tsig.StateKind, []byte) error { r.State++; return nil }); err != nil {
				return nil, bad("state: %v", err)
			}
			if h.state != nil {
				if err := h.state(body); err != nil {
					return nil, err
				}
			}
		case blockEnd:
			var n countBackup
			if err := json.Unmarshal(body, &n); err != nil || n != r.countBackup {
				return nil, bad("it says to hold %+v, but holds %+v (%v)", n, r.countBackup, err)
			}
		}
	}
	want := sum.Sum(nil)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(z, got); err != nil || !bytes.Equal(got, want) {
		return nil, bad("the hash is wrong")
	}
	if n, err := z.Read(got[:1]); n != 0 || !errors.Is(err, io.EOF) {
		return nil, bad("something follows behind its end (%v)", err)
	}
	r.Content, r.Live = content.String(), content.n
	return r, nil
}

func verify(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	args, err := i.parse(f, 0, 1)
	if err != nil {
		return err
	}
	if len(args) == 1 {
		in, err := os.Open(args[0])
		if err != nil {
			return usageError{err}
		}
		defer in.Close()
		r, err := readBackup(in, backupHandler{})
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		r.File = args[0]
		return p.report(r, args[0]+" is good.")
	}
	if err := p.resolve(); err != nil {
		return err
	}
	_, dataErr := os.Stat(p.dataDir())
	_, controlErr := os.Stat(p.controlDir())
	if errors.Is(dataErr, os.ErrNotExist) && errors.Is(controlErr, os.ErrNotExist) {
		return usagef("%s holds no node's state. Name the node's folder with --state-dir, DMP_STATE_DIR or --config", p.config.StateDir())
	}
	r, err := p.verifyFolder()
	if err != nil {
		return err
	}
	return p.report(r, p.config.StateDir()+" is good.")
}

func (p *place) verifyFolder() (*backupReport, error) {
	v, err := openView(p.dataDir())
	if err != nil {
		return nil, err
	}
	defer v.close()
	if v.snap != nil {
		if err := v.snap.Check(); err != nil {
			return nil, err
		}
	}
	r := &backupReport{aboutBackup: aboutBackup{MadeMs: clock.NowMs(), Build: config.BuildID(), Serial: v.meta.Serial, FeedMs: v.meta.FeedMs, RowsLSN: v.meta.LSN}}
	if len(v.meta.Zone) > 0 {
		r.Zone = wire.Text(v.meta.Zone)
	}
	var content contentHash
	err = v.each(func(row *record.Row) error {
		if row.RDATA == nil {
			r.Deletes++
			return nil
		}
		r.Rows++
		if record.HashOf(row.RDATA) != row.Hash {
			return fmt.Errorf("a value at %s does not match its hash", wire.Text(row.Name))
		}
		if row.Live(r.MadeMs) {
			content.add(row)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	r.Content, r.Live = content.String(), content.n
	var entries []byte
	if r.StateLSN, entries, err = stateEntries(p.controlDir()); err != nil {
		return nil, err
	}
	return r, tsig.ReadState(entries, func(kind tsig.StateKind, body []byte) error {
		r.State++
		if kind == tsig.StateKeyPut {
			_, err := tsig.ReadKey(body)
			return err
		}
		return nil
	})
}

// restoringMark lies in the state folder while the folders in it are exchanged: a node must not start on what lies there then.
const restoringMark = "restoring"

// rowsLog appends to the rows log of a folder whose lock is held.
type rowsLog struct {
	w       *journal.Writer
	pending int
}

// syncEvery is how much is appended between two syncs.
const syncEvery = 8 << 20

func openRowsLog(dir string, snap *snapshot.Snapshot, log *logging.Logger) (*rowsLog, error) {
	from, reaches := uint64(1), uint64(0)
	if snap != nil {
		from, reaches = snap.LSN+1, snap.LSN
	}
	w, err := journal.Open(journal.Options{Dir: dir, Name: "rows", Reaches: reaches, Log: log}, from, func(uint64, []byte) error { return nil })
	if err != nil {
		return nil, err
	}
	return &rowsLog{w: w}, nil
}

func (l *rowsLog) append(payload []byte) error {
	if _, err := l.w.Append(payload); err != nil {
		return err
	}
	if l.pending += len(payload); l.pending < syncEvery {
		return nil
	}
	return l.sync()
}

func (l *rowsLog) sync() error {
	l.pending = 0
	return l.w.Sync()
}

// serialAbove is a serial that every secondary takes for newer than the given ones, and for no older than the clock's (RFC 1982).
func serialAbove(nowMs int64, olds ...uint32) uint32 {
	s := uint32(nowMs / 1000)
	for _, o := range olds {
		if o != 0 && int32(s-o) <= 0 {
			s = o + 1
		}
	}
	return s
}

func restore(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	var newer []string
	f.Func("revoked-in", "newer backup `file`, of which only what is revoked, locked and denied is taken; may be repeated", func(v string) error { newer = append(newer, v); return nil })
	args, err := i.parse(f, 1, 1)
	if err != nil {
		return err
	}
	if err := p.resolveNew(); err != nil {
		return err
	}
	in, err := os.Open(args[0])
	if err != nil {
		return usageError{err}
	}
	defer in.Close()
	locks := &heldLocks{}
	defer locks.release()
	for _, dir := range []string{p.dataDir(), p.controlDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := locks.take(dir); err != nil {
			return err
		}
	}
	t := &restoring{p: p, dir: filepath.Join(p.config.StateDir(), fmt.Sprintf("restoring-%d", os.Getpid())), newer: newer, log: logging.New(i.errOut, logging.Warn, false)}
	report, err := t.build(in)
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w. The state folder is as it was", args[0], err), os.RemoveAll(t.dir))
	}
	for _, sub := range []string{"data", "control"} {
		if err := locks.take(filepath.Join(t.dir, sub)); err != nil {
			return err
		}
	}
	if report.Replaced, err = t.exchange(); err != nil {
		return err // the mark and what it speaks of stay
	}
	if err := os.RemoveAll(t.dir); err != nil {
		return err
	}
	report.File = args[0]
	return p.report(report, p.config.StateDir()+" is what "+args[0]+" says.")
}

// resolveNew is resolve for a state folder that may have to be made.
func (p *place) resolveNew() error {
	c, _, errs := config.Resolve(p.in)
	if len(errs) > 0 {
		p.in.Flags["ALLOW_OPEN_PUBLIC_BIND"] = "1"
		if c, _, errs = config.Resolve(p.in); len(errs) > 0 {
			return errs
		}
	}
	p.config = c
	if err := os.MkdirAll(c.StateDir(), 0o700); err != nil {
		return usagef("the state folder cannot be made: %w", err)
	}
	return nil
}

type heldLocks []*journal.FileLock

func (h *heldLocks) take(dir string) error {
	l, err := lockFolder(dir)
	if err == nil {
		*h = append(*h, l)
	}
	return err
}

func (h *heldLocks) release() {
	for _, l := range *h {
		_ = l.Close() // the process ends
	}
}

// restoring builds new folders beside the old ones and exchanges them.
type restoring struct {
	p     *place
	dir   string
	newer []string // backups of which the revocations are taken
	log   *logging.Logger
}

func (t *restoring) build(in io.Reader) (*backupReport, error) {
	dataDir, controlDir := filepath.Join(t.dir, "data"), filepath.Join(t.dir, "control")
	for _, d := range []string{dataDir, controlDir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	if id, err := os.ReadFile(filepath.Join(t.p.dataDir(), "node-id")); err == nil { // the same node, as far as others can tell
		if err := os.WriteFile(filepath.Join(dataDir, "node-id"), id, 0o600); err != nil {
			return nil, err
		}
	}
	rows, err := openRowsLog(dataDir, nil, t.log)
	if err != nil {
		return nil, err
	}
	defer func() {
		if rows != nil {
			rows.w.Close()
		}
	}()
	var entries []byte
	r, err := readBackup(in, backupHandler{rows: rows.append, state: func(b []byte) error { entries = append(entries, b...); return nil }})
	if err != nil {
		return nil, err
	}
	nowMs := clock.NowMs()
	var oldSerial uint32
	if v, err := openView(t.p.dataDir()); err != nil {
		t.log.Warn("the present records cannot be read, so their serial is not known", "err", err)
	} else {
		oldSerial = v.meta.Serial
		r.FeedMs = max(r.FeedMs, v.meta.FeedMs)
		v.close()
	}
	r.Serial = serialAbove(nowMs, r.Serial, oldSerial)
	if r.Zone != "" {
		zone, err := wire.AppendName(nil, r.Zone)
		if err != nil {
			return nil, err
		}
		// Its stamp lets the feed go on above what the folder that is replaced gave out.
		if err := rows.append(record.AppendFrame(nil, r.FeedMs+1, []record.Entry{{Kind: record.KindSerial, Zone: zone, Serial: r.Serial}})); err != nil {
			return nil, err
		}
	}
	if err := rows.sync(); err != nil {
		return nil, err
	}
	err = rows.w.Close()
	rows = nil
	if err != nil {
		return nil, err
	}
	return r, t.state(controlDir, r.StateLSN, entries)
}

// state makes the new state: the backup's, with what was revoked, locked or denied since.
func (t *restoring) state(dir string, lsn uint64, entries []byte) error {
	scratch := filepath.Join(t.dir, "scratch")
	if err := os.MkdirAll(scratch, 0o700); err != nil {
		return err
	}
	if err := snapshot.WriteState(vfs.OS, scratch, auth.LogName, max(lsn, 1), [16]byte{}, entries); err != nil {
		return err
	}
	s, err := auth.Open(auth.Options{Dir: scratch, Log: t.log})
	if err != nil {
		return err
	}
	defer s.Close()
	oldLSN, err := t.carryOver(s)
	if err != nil {
		return err
	}
	_, all := s.Snapshot()
	if mark, err := os.ReadFile(filepath.Join(t.p.controlDir(), importedMark)); err == nil {
		if err := os.WriteFile(filepath.Join(dir, importedMark), mark, 0o600); err != nil {
			return err
		}
	}
	audits, err := filepath.Glob(filepath.Join(t.p.controlDir(), "audit-*.jsonl"))
	if err != nil {
		return err
	}
	for _, a := range audits { // the audit is of this machine's past, whatever is restored
		if err := os.Link(a, filepath.Join(dir, filepath.Base(a))); err != nil {
			return err
		}
	}
	return snapshot.WriteState(vfs.OS, dir, auth.LogName, max(lsn, oldLSN)+1, [16]byte{}, all)
}

// carryOver brings revocations, locks and denials of the present state, and of the newer backups, into s. lsn is the last one of all of them.
func (t *restoring) carryOver(s *auth.State) (lsn uint64, err error) {
	for _, path := range t.newer {
		var entries []byte
		in, err := os.Open(path)
		if err != nil {
			return 0, err
		}
		r, err := readBackup(in, backupHandler{state: func(b []byte) error { entries = append(entries, b...); return nil }})
		in.Close()
		var newer *auth.State
		if err == nil {
			newer, err = t.open(max(r.StateLSN, 1), entries)
		}
		if err == nil {
			err = errors.Join(mergeRevocations(s, newer), newer.Close())
		}
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		lsn = max(lsn, r.StateLSN)
	}
	const again = "what was revoked since the backup is valid again, unless a newer one is named with --revoked-in"
	present, entries, err := stateEntries(t.p.controlDir())
	if err == nil && present == 0 {
		if len(t.newer) == 0 {
			t.log.Warn("there are no present keys and tokens: " + again)
		}
		return lsn, nil
	}
	var old *auth.State
	if err == nil {
		old, err = t.open(present, entries)
	}
	if err != nil {
		t.log.Warn("the present keys and tokens cannot be read: "+again, "err", err)
		return max(lsn, present), nil
	}
	return max(lsn, present), errors.Join(mergeRevocations(s, old), old.Close())
}

// open makes a state of entries, to look at.
func (t *restoring) open(lsn uint64, entries []byte) (*auth.State, error) {
	scratch, err := os.MkdirTemp(t.dir, "look-")
	if err != nil {
		return nil, err
	}
	if err := snapshot.WriteState(vfs.OS, scratch, auth.LogName, lsn, [16]byte{}, entries); err != nil {
		return nil, err
	}
	return auth.Open(auth.Options{Dir: scratch, Log: t.log})
}

func mergeRevocations(s, old *auth.State) error {
	ctx := context.Background()
	for _, k := range old.ListKeys() {
		name := wire.Text(k.Name)
		if !k.Revoked {
			continue
		}
		// The same name with another secret is another key; only a revoked one's secret is known to whoever it was taken from.
		if now, err := s.Key(name); err == nil && !now.Revoked && bytes.Equal(now.Secret, k.Secret) {
			if _, err := s.Revoke(ctx, name); err != nil {
				return err
			}
		}
	}
	revoked := map[auth.TokenHash]bool{}
	for _, t := range old.ListTokens("", true) {
		revoked[t.Hash] = t.RevokedAtSec != 0
	}
	for _, t := range s.ListTokens("", false) {
		if revoked[t.Hash] {
			if _, err := s.RevokeToken(ctx, t.Hash.String()); err != nil {
				return err
			}
		}
	}
	locked := map[string]bool{}
	for _, l := range s.Locks() {
		locked[l.Key] = true
	}
	for _, l := range old.Locks() {
		if !locked[l.Key] {
			if err := s.Lock(ctx, l.Name, l.Note); err != nil {
				return err
			}
		}
	}
	for _, d := range old.Denied() {
		if err := s.Deny(ctx, d.Kind, d.Value, d.Note); err != nil {
			return err
		}
	}
	return nil
}

// exchange puts the new folders in place. A crash in it leaves restoringMark, which says what to do.
func (t *restoring) exchange() (replaced string, err error) {
	state := t.p.config.StateDir()
	replaced = filepath.Join(state, "replaced-"+time.Now().UTC().Format("20060102-150405.000"))
	if err := os.Mkdir(replaced, 0o700); err != nil {
		return "", err
	}
	mark := filepath.Join(state, restoringMark)
	text := fmt.Sprintf("A restore did not finish. The folders data and control that were here are in %s, the new ones in %s, as far as they are not in place. "+
		"Put one pair in place, then delete this file.\n", replaced, t.dir)
	if err := os.WriteFile(mark, []byte(text), 0o600); err != nil {
		return "", err
	}
	if err := syncFolder(state); err != nil {
		return "", err
	}
	for _, sub := range []string{"data", "control"} {
		if err := os.Rename(filepath.Join(state, sub), filepath.Join(replaced, sub)); err != nil {
			return "", err
		}
	}
	for _, sub := range []string{"data", "control"} {
		if err := os.Rename(filepath.Join(t.dir, sub), filepath.Join(state, sub)); err != nil {
			return "", err
		}
	}
	for _, d := range []string{replaced, state} {
		if err := syncFolder(d); err != nil {
			return "", err
		}
	}
	if err := os.Remove(mark); err != nil {
		return "", err
	}
	return replaced, syncFolder(state)
}

func syncFolder(dir string) error { return vfs.OS.SyncDir(dir) }
