package main

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
	_ "modernc.org/sqlite" // the driver "sqlite", in Go alone

	"github.com/dnsmesh/dmpd/controlplane/auth"
	"github.com/dnsmesh/dmpd/controlplane/heartbeat"
	"github.com/dnsmesh/dmpd/dataplane/store"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/tsig"
	"github.com/dnsmesh/dmpd/internal/vfs"
	"github.com/dnsmesh/dmpd/internal/wire"
)

func init() {
	register(&command{name: "import", args: "[--db-path FILE] [--tokens FILE] [--tsig FILE] [--heartbeats FILE] [--dry-run] [--json]", short: "Take records, tokens, TSIG keys and heartbeats over from the reference node's databases", run: importAll,
		long: `The reference node must be stopped, or the files be copies; they are read from a copy made here and never changed. Users go on with
their keys and tokens. The records keep the order and time of their arrival, so that peers' cursors go on; names become lower case.
What is here already stays, so that a second run changes nothing. The other databases lie beside the record database unless
DMP_TOKEN_DB_PATH, DMP_TSIG_DB_PATH and DMP_HEARTBEAT_DB_PATH say otherwise. The audit of tokens comes along.`,
		example: "dmpd import --db-path /var/lib/dmp/dmp.db --dry-run\ndmpd import --db-path /var/lib/dmp/dmp.db"})
}

// importReport says what was read and what became of it.
type importReport struct {
	DryRun  bool        `json:"dry_run"`
	Records importCount `json:"records"`
	Tokens  importCount `json:"tokens"`
	Keys    importCount `json:"tsig_keys"`
	Audit   importCount `json:"audit"`
	Peers   importCount `json:"heartbeats"`
	// ReadHash is over the live records that were read, HereHash over those of them that answer here now; they are equal if all of them do.
	ReadHash string   `json:"read_hash"`
	HereHash string   `json:"here_hash"`
	Notes    []string `json:"notes,omitempty"`
}

type importCount struct {
	Read     int `json:"read"`
	Imported int `json:"imported"`
	Here     int `json:"here_already"`
	Expired  int `json:"expired"`
	Refused  int `json:"refused"`
}

// notesMax bounds what is said about single rows.
const notesMax = 50

func (r *importReport) note(format string, args ...any) {
	if len(r.Notes) < notesMax {
		r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
	} else if len(r.Notes) == notesMax {
		r.Notes = append(r.Notes, "and more")
	}
}

type importer struct {
	p      *place
	report importReport
	log    *logging.Logger
	nowMs  int64
}

func importAll(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	for flag, setting := range map[string]string{"db-path": "DB_PATH", "tokens": "TOKEN_DB_PATH", "tsig": "TSIG_DB_PATH", "heartbeats": "HEARTBEAT_DB_PATH"} {
		f.Func(flag, "`file` of the reference node", func(v string) error { p.in.Flags[setting] = v; return nil })
	}
	dryRun := f.Bool("dry-run", false, "read and compare only, and say what would be done")
	if _, err := i.parse(f, 0, 0); err != nil {
		return err
	}
	if err := p.resolveNew(); err != nil {
		return err
	}
	m := &importer{p: p, log: logging.New(i.errOut, logging.Warn, false), nowMs: clock.NowMs()}
	m.report.DryRun = *dryRun
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
	if err := m.run(); err != nil {
		return err
	}
	if !*dryRun {
		mark, err := json.MarshalIndent(&m.report, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(p.controlDir(), importedMark), append(mark, '\n'), 0o600); err != nil {
			return err
		}
	}
	if err := p.print(&m.report, m.report.text); err != nil {
		return err
	}
	if !*dryRun && m.report.ReadHash != m.report.HereHash {
		return errors.New("not every live record answers here, see above")
	}
	return nil
}

func (r *importReport) text(w *tabwriter.Writer) {
	if r.DryRun {
		fmt.Fprintln(w, "Nothing was changed (--dry-run).")
	}
	fmt.Fprintln(w, "\tread\timported\there already\texpired\trefused")
	for _, c := range []struct {
		name string
		n    importCount
	}{{"records", r.Records}, {"tokens", r.Tokens}, {"TSIG keys", r.Keys}, {"audit rows", r.Audit}, {"heartbeats", r.Peers}} {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\n", c.name, c.n.Read, c.n.Imported, c.n.Here, c.n.Expired, c.n.Refused)
	}
	fmt.Fprintf(w, "live records, read\t%s\nlive records, here\t%s\n", r.ReadHash, r.HereHash)
	for _, n := range r.Notes {
		fmt.Fprintln(w, n)
	}
}

func (m *importer) run() error {
	c := m.p.config
	dbPath := c.String("DB_PATH")
	ext := filepath.Ext(dbPath)
	stem := strings.TrimSuffix(dbPath, ext)
	// All sources are opened before anything is written.
	records, err := m.open(dbPath, 0, true)
	if err != nil {
		return err
	}
	defer records.close()
	tokens, err := m.open(cmp.Or(c.String("TOKEN_DB_PATH"), stem+"_tokens"+ext), 2, c.String("TOKEN_DB_PATH") != "")
	if err != nil {
		return err
	}
	defer tokens.close()
	keys, err := m.open(cmp.Or(c.String("TSIG_DB_PATH"), stem+"_tsig"+ext), 4, c.String("TSIG_DB_PATH") != "")
	if err != nil {
		return err
	}
	defer keys.close()
	heartbeats, err := m.open(cmp.Or(c.String("HEARTBEAT_DB_PATH"), stem+"_heartbeats"+ext), 1, c.String("HEARTBEAT_DB_PATH") != "")
	if err != nil {
		return err
	}
	defer heartbeats.close()
	if err := m.records(records); err != nil {
		return fmt.Errorf("records: %w", err)
	}
	audit := auth.OpenAudit(vfs.OS, m.p.controlDir(), m.log)
	defer audit.Close()
	state, err := openState(m.p.controlDir(), m.p.dataDir(), audit, m.log)
	if err != nil {
		return err
	}
	defer state.Close()
	if err := m.tokens(tokens, state); err != nil {
		return fmt.Errorf("tokens: %w", err)
	}
	if err := m.keys(keys, state); err != nil {
		return fmt.Errorf("TSIG keys: %w", err)
	}
	if err := m.audit(tokens); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	if err := m.heartbeats(heartbeats); err != nil {
		return fmt.Errorf("heartbeats: %w", err)
	}
	return nil
}

// heartbeats reads table heartbeats_seen: wire, received_at in Unix seconds, and in remote_addr the zone that it came from.
func (m *importer) heartbeats(s *source) error {
	if s == nil {
		return nil
	}
	most := int(m.p.config.Int("HEARTBEAT_SEEN_MAX_ROWS"))
	rows, err := s.db.Query("SELECT wire, received_at, COALESCE(remote_addr, '') FROM heartbeats_seen ORDER BY received_at DESC, operator_spk_hex, endpoint LIMIT ?", most)
	if err != nil {
		return fmt.Errorf("%s: %w", s.path, err)
	}
	defer rows.Close()
	var heard []heartbeat.Heard
	for rows.Next() {
		var h heartbeat.Heard
		var sec int64
		if err := rows.Scan(&h.Wire, &sec, &h.Via); err != nil {
			return fmt.Errorf("%s: %w", s.path, err)
		}
		h.ReceivedMs = sec * 1000
		heard = append(heard, h)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("%s: %w", s.path, err)
	}
	done, err := heartbeat.ImportSeen(m.p.controlDir(), most, heard, m.nowMs, m.report.DryRun)
	if err != nil {
		return err
	}
	m.report.Peers = importCount{Read: len(heard), Imported: done.Added, Here: done.Here, Expired: done.Expired, Refused: done.Refused}
	for _, wire := range done.Wires {
		m.report.note("heartbeat %.60q is not taken: it is not well formed or not signed, or its time of arrival is in the future", wire)
	}
	return nil
}

// source is a copy of one of the reference's databases.
type source struct {
	path string
	db   *sql.DB
	dir  string
}

func (s *source) close() {
	if s != nil {
		s.db.Close()
		os.RemoveAll(s.dir)
	}
}

// open copies a database and opens the copy: SQLite wants to write beside what it reads, and these are not ours. nil if it is not there.
func (m *importer) open(path string, version int, needed bool) (*source, error) {
	if !isSQLite(path) {
		if _, err := os.Stat(path); err == nil || needed {
			return nil, usagef("%s is no database of the reference node. Name it with --db-path, DMP_DB_PATH (and --tokens, --tsig)", path)
		}
		m.report.note("%s is not there: nothing to take over from it", path)
		return nil, nil
	}
	if pid, err := holder(path); err != nil {
		return nil, err
	} else if pid != 0 {
		return nil, usagef("process %d has %s open. Stop the reference node first, or import from a copy", pid, path)
	}
	dir, err := os.MkdirTemp(m.p.config.StateDir(), "importing-")
	if err != nil {
		return nil, err
	}
	s := &source{path: path, dir: dir}
	for _, suffix := range []string{"", "-wal", "-journal"} {
		if err := copyFile(filepath.Join(dir, "copy.db"+suffix), path+suffix); err != nil && (suffix == "" || !errors.Is(err, os.ErrNotExist)) {
			os.RemoveAll(dir)
			return nil, err
		}
	}
	u := url.URL{Scheme: "file", Opaque: (&url.URL{Path: filepath.Join(dir, "copy.db")}).EscapedPath()}
	if s.db, err = sql.Open("sqlite", u.String()); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	s.db.SetMaxOpenConns(1)
	var got int
	if err := s.db.QueryRow("PRAGMA user_version").Scan(&got); err != nil {
		s.close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if got > version {
		s.close()
		return nil, usagef("%s has schema %d, newer than %d, the last that is known here. Import with a newer dmpd", path, got, version)
	}
	return s, nil
}

// holder gives a process that has the database open: SQLite keeps a shared lock on the -shm file of one in WAL mode, on the file
// itself during a transaction otherwise.
func holder(path string) (pid int, err error) {
	for _, p := range []string{path + "-shm", path} {
		f, err := os.Open(p)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		lock := unix.Flock_t{Type: unix.F_WRLCK}
		err = unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock)
		f.Close()
		if err != nil {
			return 0, fmt.Errorf("%s: %w", p, err)
		}
		if lock.Type != unix.F_UNLCK {
			return int(lock.Pid), nil
		}
	}
	return 0, nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// progress draws a bar on a terminal.
type progress struct {
	w           io.Writer
	what        string
	done, total int
	last        time.Time
	on          bool
}

func (m *importer) progress(what string, total int) *progress {
	p := &progress{w: m.p.i.errOut, what: what, total: total}
	if f, ok := p.w.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		p.on = err == nil
	}
	return p
}

const barWidth = 40

func (p *progress) step() {
	p.done++
	if !p.on || time.Since(p.last) < 100*time.Millisecond {
		return
	}
	p.last = time.Now()
	filled := barWidth
	if p.total > 0 {
		filled = min(barWidth, barWidth*p.done/p.total)
	}
	fmt.Fprintf(p.w, "\r%s [%s%s] %d of %d", p.what, strings.Repeat("#", filled), strings.Repeat(".", barWidth-filled), p.done, p.total)
}

func (p *progress) end() {
	if p.on {
		fmt.Fprintf(p.w, "\r\x1b[K")
	}
}

func (s *source) count(table string) (n int, err error) {
	err = s.db.QueryRow("SELECT count(*) FROM " + table).Scan(&n)
	return n, err
}

// records writes the records into the rows log, each group that arrived in one millisecond a frame with that millisecond as its feed stamp.
func (m *importer) records(s *source) error {
	v, err := openView(m.p.dataDir())
	if err != nil {
		return err
	}
	defer v.close()
	total, err := s.count("records")
	if err != nil {
		return fmt.Errorf("%s: %w", s.path, err)
	}
	var log *rowsLog
	if !m.report.DryRun {
		if log, err = openRowsLog(m.p.dataDir(), v.snap, m.log); err != nil {
			return err
		}
		defer func() {
			if log != nil {
				log.w.Close()
			}
		}()
	}
	w := &rowsImporter{m: m, v: v, log: log, feedMs: v.meta.FeedMs, seen: map[viewKey]int64{}}
	if log != nil {
		if w.origin, err = store.Origin(m.p.dataDir()); err != nil {
			return err
		}
	}
	bar := m.progress("records", total)
	rows, err := s.db.Query("SELECT name, value, expires_at, CASE WHEN stored_ts > 0 THEN stored_ts ELSE created_at * 1000 END AS stored FROM records ORDER BY stored, name, value")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var name, value string
		var expiresSec, storedMs int64
		if err := rows.Scan(&name, &value, &expiresSec, &storedMs); err != nil {
			return err
		}
		if err := w.row(name, value, expiresSec, storedMs); err != nil {
			return err
		}
		bar.step()
	}
	bar.end()
	if err := rows.Err(); err != nil {
		return err
	}
	if err := w.flush(); err != nil {
		return err
	}
	if log != nil {
		if err := m.serial(w); err != nil {
			return err
		}
		err := log.w.Close()
		log = nil
		if err != nil {
			return err
		}
	}
	return m.compare(w)
}

// serial takes the zone's serial above the reference's, which is the time in seconds (dns.md 4), if anything was imported.
func (m *importer) serial(w *rowsImporter) error {
	if m.report.Records.Imported > 0 {
		if zone, err := m.p.zone(); err == nil {
			name, err := wire.AppendName(nil, zone)
			if err != nil {
				return err
			}
			w.feedMs++
			e := record.Entry{Kind: record.KindSerial, Zone: wire.AppendLower(nil, name), Serial: serialAbove(m.nowMs, w.v.meta.Serial) + 1}
			if err := w.log.append(record.AppendFrame(nil, w.feedMs, []record.Entry{e})); err != nil {
				return err
			}
		}
	}
	return w.log.sync()
}

// compare looks every live record up that was read.
func (m *importer) compare(w *rowsImporter) error {
	here := w.v
	if !m.report.DryRun {
		var err error
		if here, err = openView(m.p.dataDir()); err != nil {
			return err
		}
		defer here.close()
	}
	var read, answers contentHash
	for k, expMs := range w.seen {
		r := record.Row{Name: []byte(k.name), Hash: k.hash, ExpMs: expMs}
		read.add(&r)
		err := here.name(r.Name, func(o *record.Row) error {
			if o.Hash == k.hash && o.Add > o.Del && o.ExpMs >= expMs {
				answers.add(&r)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	m.report.ReadHash, m.report.HereHash = read.String(), answers.String()
	return nil
}

// rowsImporter turns rows of the reference into frames.
type rowsImporter struct {
	m        *importer
	v        *view
	log      *rowsLog
	origin   [8]byte
	feedMs   int64 // of the last frame
	storedMs int64 // of the group
	group    []record.Row
	seen     map[viewKey]int64 // live records read, and when they end
	buf      []byte
}

func (w *rowsImporter) row(nameText, value string, expiresSec, storedMs int64) error {
	n := &w.m.report.Records
	n.Read++
	if expiresSec > yearsMaxSec || expiresSec*1000 <= w.m.nowMs {
		n.Expired++
		return nil
	}
	name, err := wire.AppendName(nil, strings.ToLower(nameText))
	rdata := record.AppendRDATA(nil, []byte(value))
	if err == nil && len(rdata) > 65535 {
		err = errors.New("the value is larger than an RR")
	}
	if err != nil || storedMs <= 0 || storedMs >= 1<<47 {
		n.Refused++
		w.m.report.note("the record at %q (arrived at %d) is refused: %v", nameText, storedMs, err)
		return nil
	}
	row := record.Row{Name: name, RDATA: rdata, Hash: record.HashOf(rdata), Add: record.HLCAt(storedMs), ExpMs: expiresSec * 1000, Origin: w.origin}
	k := viewKey{string(name), row.Hash}
	if w.seen[k] >= row.ExpMs {
		n.Here++ // the same name in other letters
		return nil
	}
	if why, err := w.have(&row); err != nil {
		return err
	} else if why == deletedHere {
		n.Refused++
		w.m.report.note("a record at %s was deleted here since, and stays so", wire.Text(name))
		return nil
	} else if why == liveHere {
		w.seen[k] = row.ExpMs
		n.Here++
		return nil
	}
	w.seen[k] = row.ExpMs
	n.Imported++
	if len(w.group) > 0 && storedMs != w.storedMs {
		if err := w.flush(); err != nil {
			return err
		}
	}
	w.storedMs = storedMs
	w.group = append(w.group, row)
	return nil
}

// yearsMaxSec is an end that still fits in milliseconds.
const yearsMaxSec = 1 << 40

type presence uint8

const (
	absentHere presence = iota
	liveHere
	deletedHere
)

// have says what is known of an element here.
func (w *rowsImporter) have(row *record.Row) (p presence, err error) {
	err = w.v.name(row.Name, func(o *record.Row) error {
		switch {
		case o.Hash != row.Hash:
		case o.Del >= row.Add && o.Del >= o.Add:
			p = deletedHere
		case o.Add > o.Del && (o.ExpMs >= row.ExpMs || o.Add > row.Add):
			p = liveHere
		}
		return nil
	})
	return p, err
}

// frameMost is how much one frame takes; a group beyond it is cut, and the rest gets a stamp one later.
const frameMost = 4 << 20

func (w *rowsImporter) flush() error {
	if w.log == nil {
		w.group = w.group[:0]
		return nil
	}
	slices.SortFunc(w.group, func(a, b record.Row) int {
		return cmp.Or(strings.Compare(string(a.Name), string(b.Name)), slices.Compare(a.Hash[:], b.Hash[:]))
	})
	for len(w.group) > 0 {
		w.feedMs = max(w.storedMs, w.feedMs+1)
		w.buf = record.AppendFrame(w.buf[:0], w.feedMs, nil)
		n := 0
		for n < len(w.group) && len(w.buf) < frameMost {
			w.buf = record.AppendEntry(w.buf, &record.Entry{Kind: record.KindPut, Row: w.group[n]})
			n++
		}
		if err := w.log.append(w.buf); err != nil {
			return err
		}
		w.group = append(w.group[:0], w.group[n:]...)
	}
	return nil
}

func (m *importer) tokens(s *source, state *auth.State) error {
	if s == nil {
		return nil
	}
	total, err := s.count("tokens")
	if err != nil {
		return err
	}
	here := map[auth.TokenHash]bool{}
	for _, t := range state.ListTokens("", true) {
		here[t.Hash] = true
	}
	rows, err := s.db.Query(`SELECT token_hash, subject, subject_type, coalesce(subject_hash12, ''), rate_per_sec, rate_burst, issued_at, coalesce(expires_at, 0), coalesce(revoked_at, 0),
		issuer, note, coalesce(registered_spk, '') FROM tokens ORDER BY issued_at, token_hash`)
	if err != nil {
		return err
	}
	defer rows.Close()
	bar := m.progress("tokens", total)
	n := &m.report.Tokens
	for rows.Next() {
		var t auth.Token
		var hash, spk string
		if err := rows.Scan(&hash, &t.Subject, &t.Type, &t.Hash12, &t.RatePerSec, &t.Burst, &t.IssuedAtSec, &t.ExpiresAtSec, &t.RevokedAtSec, &t.Issuer, &t.Note, &spk); err != nil {
			return err
		}
		bar.step()
		n.Read++
		err := t.Hash.UnmarshalText([]byte(hash))
		if err == nil {
			t.Ed25519, err = hex.DecodeString(spk)
		}
		if err != nil {
			err = fmt.Errorf("%w: %w", auth.ErrBadRequest, err)
		}
		if err == nil && here[t.Hash] {
			n.Here++
			continue
		}
		if err == nil && !m.report.DryRun {
			err = state.ImportToken(context.Background(), t)
		}
		switch {
		case errors.Is(err, auth.ErrBadRequest):
			n.Refused++
			m.report.note("the token %.16s of %q is refused: %v", hash, t.Subject, err)
		case err != nil:
			return err
		default:
			n.Imported++
		}
	}
	bar.end()
	return rows.Err()
}

func (m *importer) keys(s *source, state *auth.State) error {
	if s == nil {
		return nil
	}
	total, err := s.count("tsig_keys")
	if err != nil {
		return err
	}
	rows, err := s.db.Query(`SELECT name, algorithm, secret, allowed_suffixes, expires_at, revoked, subject, registered_spk, registered_x25519_pub, created_at FROM tsig_keys ORDER BY created_at, name`)
	if err != nil {
		return err
	}
	defer rows.Close()
	bar := m.progress("TSIG keys", total)
	n := &m.report.Keys
	for rows.Next() {
		var name, algorithm, suffixes, spk, x25519 string
		var revoked bool
		var r auth.MintRequest
		if err := rows.Scan(&name, &algorithm, &r.Secret, &suffixes, &r.ExpiresAtSec, &revoked, &r.Subject, &spk, &x25519, &r.CreatedAtSec); err != nil {
			return err
		}
		bar.step()
		n.Read++
		r.Name, r.Scopes = name, strings.FieldsFunc(suffixes, func(c rune) bool { return c == '\n' })
		what, err := m.key(state, &r, algorithm, spk, x25519, revoked)
		switch {
		case errors.Is(err, auth.ErrBadRequest):
			n.Refused++
			m.report.note("the key %s is refused: %v", name, err)
		case err != nil:
			return err
		case what == liveHere:
			n.Here++
		default:
			n.Imported++
		}
	}
	bar.end()
	return rows.Err()
}

// audit takes the rows of the token database's audit over, all at once. They hold no secret, and nobody where writes to shared names are told of
// (http.md 6.3); they are not changed.
func (m *importer) audit(s *source) error {
	if s == nil {
		return nil
	}
	total, err := s.count("token_audit")
	if err != nil {
		if strings.Contains(err.Error(), "no such table") { // a database of the first schema
			return nil
		}
		return err
	}
	n := &m.report.Audit
	n.Read = total
	done, err := auth.AuditImported(vfs.OS, m.p.controlDir())
	if err != nil {
		return err
	}
	if done {
		n.Here = total
		return nil
	}
	if m.report.DryRun || total == 0 {
		n.Imported = total
		return nil
	}
	rows, err := s.db.Query(`SELECT ts, event, coalesce(token_hash, ''), coalesce(subject, ''), coalesce(remote_addr, ''), coalesce(detail, '') FROM token_audit ORDER BY id DESC`)
	if err != nil {
		return err
	}
	defer rows.Close()
	bar := m.progress("audit rows", total)
	n.Imported, err = auth.ImportAudit(vfs.OS, m.p.controlDir(), func() (e auth.Event, ok bool, err error) {
		if !rows.Next() {
			return e, false, rows.Err()
		}
		bar.step()
		if err := rows.Scan(&e.TsMs, &e.Event, &e.TokenHash, &e.Subject, &e.Remote, &e.Detail); err != nil {
			return e, false, err
		}
		e.TsMs *= 1000
		return e, true, nil
	})
	bar.end()
	if left := total - n.Imported; left > 0 && err == nil {
		m.report.note("the %d oldest audit rows are left in %s: one file of the audit is full", left, s.path)
	}
	return err
}

// key takes one key over.
func (m *importer) key(state *auth.State, r *auth.MintRequest, algorithm, spk, x25519 string, revoked bool) (presence, error) {
	var ok bool
	if r.Alg, ok = tsig.ParseAlg(algorithm); !ok {
		return 0, fmt.Errorf("%w: algorithm %q", auth.ErrBadRequest, algorithm)
	}
	var err1, err2 error
	r.Ed25519, err1 = hex.DecodeString(spk)
	r.X25519, err2 = hex.DecodeString(x25519)
	if err := cmp.Or(err1, err2); err != nil {
		return 0, fmt.Errorf("%w: %w", auth.ErrBadRequest, err)
	}
	if here, err := state.Key(r.Name); err == nil {
		if string(here.Secret) != string(r.Secret) {
			return 0, fmt.Errorf("%w: a key of that name with another secret is here already", auth.ErrBadRequest)
		}
		return liveHere, nil
	}
	if m.report.DryRun {
		return absentHere, nil
	}
	if _, err := state.Mint(context.Background(), *r); err != nil {
		return 0, err
	}
	if revoked {
		if _, err := state.Revoke(context.Background(), r.Name); err != nil {
			return 0, err
		}
	}
	return absentHere, nil
}
