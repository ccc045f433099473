package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/snapshot"
	"github.com/dnsmesh/dmpd/internal/stats"
	"github.com/dnsmesh/dmpd/internal/tsig"
	"github.com/dnsmesh/dmpd/internal/vfs"
	"github.com/dnsmesh/dmpd/internal/wire"
)

func init() {
	register(&command{name: "inspect", args: "FILE|FOLDER... [--limit N] [--show-secrets] [--json]", short: "Print what a log, snapshot, live or counters file holds", run: inspect,
		long: `A folder stands for all files in it that dmpd wrote. Needs no configuration and no lock, and changes nothing. One line an entry;
with --json one object a line. What is damaged is named with its file and offset, and the exit code is 1.`,
		example: "dmpd inspect /var/lib/dmp/data\ndmpd inspect /var/lib/dmp/control/state-0000000000000001.log --show-secrets"})
}

// inspector prints entries.
type inspector struct {
	out     io.Writer
	secrets bool
	asJSON  bool
	limit   int
	left    int
}

// field is one column of a line, kept in order.
type field struct {
	name  string
	value any
}

func inspect(i *invocation) error {
	f := i.flags()
	n := &inspector{out: i.out}
	f.BoolVar(&n.secrets, "show-secrets", false, "show secrets of keys too")
	f.BoolVar(&n.asJSON, "json", false, "print JSON, one object a line")
	f.IntVar(&n.limit, "limit", 0, "at most this many entries of a file; 0: all")
	args, err := i.parse(f, 1, 1<<16)
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range args {
		info, err := os.Stat(path)
		switch {
		case err != nil:
			return usageError{err}
		case info.IsDir():
			errs = append(errs, n.folder(path))
		default:
			errs = append(errs, n.file(path))
		}
	}
	return errors.Join(errs...)
}

func (n *inspector) folder(dir string) error {
	names, err := vfs.OS.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		path := filepath.Join(dir, name)
		if fileName.MatchString(name) || name == "live" || name == "counters" {
			errs = append(errs, n.file(path))
		} else if info, err := os.Stat(path); err == nil && info.IsDir() {
			errs = append(errs, n.folder(path))
		}
	}
	return errors.Join(errs...)
}

var fileName = regexp.MustCompile(`^([a-z]+)-([0-9a-f]{16})\.(log|snap)$`)

func (n *inspector) file(path string) error {
	n.left = n.limit
	if n.limit == 0 {
		n.left = -1
	}
	if !n.asJSON {
		fmt.Fprintf(n.out, "%s\n", path)
	}
	err := n.contents(path)
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

func (n *inspector) contents(path string) error {
	dir, base := filepath.Split(path)
	dir = filepath.Clean(dir)
	switch base {
	case "live":
		return n.live(path)
	case "counters":
		page, err := stats.Open(path)
		if err != nil {
			return err
		}
		defer page.Close()
		return page.Write(n.out)
	}
	m := fileName.FindStringSubmatch(base)
	if m == nil {
		return usagef("%s: no file of dmpd's: those are NAME-<16 hex digits>.log and .snap, live and counters", path)
	}
	lsn, err := strconv.ParseUint(m[2], 16, 64)
	if err != nil {
		return err
	}
	if m[3] == "log" {
		return n.log(dir, m[1], lsn)
	}
	if m[1] == "state" {
		return n.stateSnapshot(dir, path)
	}
	return n.snapshot(path)
}

// line prints one entry; errEnough after the last one that is wanted.
func (n *inspector) line(fs ...field) error {
	if n.left == 0 {
		return errEnough
	}
	n.left--
	if n.asJSON {
		var b strings.Builder
		b.WriteByte('{')
		for i, f := range fs {
			if i > 0 {
				b.WriteString(", ")
			}
			v, err := json.Marshal(f.value)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "%q: %s", f.name, v)
		}
		b.WriteString("}\n")
		_, err := io.WriteString(n.out, b.String())
		return err
	}
	var b strings.Builder
	for _, f := range fs {
		text := fmt.Sprint(f.value)
		if text == "" || strings.ContainsAny(text, " \"\t\n\r\x00") {
			text = strconv.Quote(text)
		}
		fmt.Fprintf(&b, "  %s=%s", f.name, text)
	}
	_, err := fmt.Fprintln(n.out, b.String())
	return err
}

func (n *inspector) live(path string) error {
	l, err := journal.OpenLive(vfs.OS, path)
	if err != nil {
		return err
	}
	defer l.Close()
	return n.line(field{"pid", l.Pid()}, field{"build", l.Build()}, field{"beat_ms", l.BeatMs()}, field{"bell", l.Bell()},
		field{"locked", journal.Locked(filepath.Join(filepath.Dir(path), "lock"))})
}

// log prints the frames of one segment.
func (n *inspector) log(dir, name string, first uint64) error {
	r, err := journal.OpenReader(vfs.OS, dir, name, first)
	if err != nil {
		return err
	}
	defer r.Close()
	end := ^uint64(0)
	files, err := vfs.OS.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if m := fileName.FindStringSubmatch(f); m != nil && m[1] == name && m[3] == "log" {
			if next, err := strconv.ParseUint(m[2], 16, 64); err == nil && next > first {
				end = min(end, next)
			}
		}
	}
	epoch := r.Epoch()
	if err := n.line(field{"segment", name}, field{"first", first}, field{"epoch", hex.EncodeToString(epoch[:])}, field{"committed", r.Committed()}); err != nil {
		return err
	}
	for {
		lsn, payload, ok, err := r.Next()
		if err != nil && errors.Is(err, journal.ErrEpoch) {
			return nil // the next segment's
		}
		if err != nil {
			return err
		}
		if !ok || lsn >= end {
			return nil
		}
		if err := n.frame(name, lsn, payload); err != nil {
			if errors.Is(err, errEnough) {
				return err
			}
			return fmt.Errorf("%s, frame %d: %w", filepath.Join(dir, fmt.Sprintf("%s-%016x.log", name, first)), lsn, err)
		}
	}
}

func (n *inspector) frame(name string, lsn uint64, payload []byte) error {
	switch name {
	case "rows":
		return record.ReadFrame(payload, func(feedMs int64, e *record.Entry) error { return n.entry(lsn, feedMs, e) })
	case "state":
		return tsig.ReadState(payload, func(kind tsig.StateKind, body []byte) error { return n.state(lsn, kind, body) })
	case "requests":
		return n.request(lsn, payload)
	}
	return n.line(field{"lsn", lsn}, field{"bytes", len(payload)})
}

var entryNames = map[record.EntryKind]string{record.KindPut: "put", record.KindRefresh: "refresh", record.KindTombstone: "tombstone", record.KindExpire: "expire",
	record.KindOutcome: "outcome", record.KindTaken: "taken", record.KindSerial: "serial"}

func (n *inspector) entry(lsn uint64, feedMs int64, e *record.Entry) error {
	fs := []field{{"lsn", lsn}, {"feed_ms", feedMs}, {"kind", entryNames[e.Kind]}}
	switch e.Kind {
	case record.KindPut, record.KindRefresh, record.KindTombstone:
		fs = append(fs, rowFields(&e.Row)...)
	case record.KindExpire:
		fs = append(fs, field{"cut_ms", e.CutMs})
	case record.KindOutcome:
		fs = append(fs, field{"request", e.LSN}, field{"code", e.Code.String()}, field{"applied", e.Applied})
	case record.KindTaken:
		fs = append(fs, field{"requests", e.Requests}, field{"requests_epoch", hex.EncodeToString(e.RequestsEpoch[:])}, field{"state", e.State}, field{"state_epoch", hex.EncodeToString(e.StateEpoch[:])})
	case record.KindSerial:
		fs = append(fs, field{"zone", wire.Text(e.Zone)}, field{"serial", e.Serial})
	}
	return n.line(fs...)
}

func rowFields(r *record.Row) []field {
	fs := []field{{"name", wire.Text(r.Name)}, {"add", stamp(r.Add)}, {"del", stamp(r.Del)}, {"exp_ms", r.ExpMs}, {"origin", hex.EncodeToString(r.Origin[:])}, {"flags", r.Flags}, {"hash", hex.EncodeToString(r.Hash[:8])}}
	if r.RDATA != nil {
		fs = append(fs, field{"value", string(record.AppendValue(nil, r.RDATA))})
	}
	return fs
}

func stamp(h record.HLC) string { return fmt.Sprintf("%d+%d", h.Ms(), uint16(h)) }

func (n *inspector) state(lsn uint64, kind tsig.StateKind, body []byte) error {
	fs := []field{{"lsn", lsn}}
	switch kind {
	case tsig.StateKeyPut:
		k, err := tsig.ReadKey(body)
		if err != nil {
			return err
		}
		secret := hidden
		if n.secrets {
			secret = hex.EncodeToString(k.Secret)
		}
		var scopes []string
		for i := range k.Scopes {
			scopes = append(scopes, k.Scopes[i].String())
		}
		return n.line(append(fs, field{"kind", "key"}, field{"name", wire.Text(k.Name)}, field{"algorithm", k.Alg.String()}, field{"secret", secret}, field{"created", k.CreatedAtSec},
			field{"expires", k.ExpiresAtSec}, field{"revoked", k.Revoked}, field{"operator", k.Operator}, field{"subject", k.Subject}, field{"scopes", strings.Join(scopes, ",")})...)
	case tsig.StateKeyDelete:
		return n.line(append(fs, field{"kind", "key-delete"}, field{"name", wire.Text(body)})...)
	}
	// The control plane's own entries are JSON, and hold no secret: of a token there is only its hash.
	return n.line(append(fs, field{"kind", fmt.Sprintf("control-%d", kind)}, field{"body", string(body)})...)
}

var opNames = map[record.OpKind]string{record.OpAdd: "add", record.OpDelete: "delete", record.OpDeleteRRset: "delete-rrset", record.OpMerge: "merge", record.OpReplace: "replace", record.OpOffer: "offer"}

func (n *inspector) request(lsn uint64, payload []byte) error {
	r, void, err := record.ReadRequest(payload)
	if err != nil {
		return err
	}
	if r == nil {
		return n.line(field{"lsn", lsn}, field{"kind", "void"}, field{"request", void})
	}
	for _, op := range r.Ops {
		fs := []field{{"lsn", lsn}, {"kind", opNames[op.Kind]}, {"source", r.Source}}
		if op.Row != nil {
			fs = append(fs, rowFields(op.Row)...)
		} else {
			fs = append(fs, field{"name", wire.Text(op.Name)}, field{"ttl", op.TTLSec}, field{"value", string(record.AppendValue(nil, op.RDATA))})
		}
		if err := n.line(fs...); err != nil {
			return err
		}
	}
	return nil
}

func (n *inspector) stateSnapshot(dir, path string) error {
	lsn, epoch, entries, ok, err := snapshot.ReadState(vfs.OS, dir, "state")
	if err != nil {
		return err
	}
	if !ok || snapshot.Path(dir, "state", lsn) != path {
		return fmt.Errorf("%s: only the newest snapshot of a folder is read", path)
	}
	if err := n.line(field{"lsn", lsn}, field{"epoch", hex.EncodeToString(epoch[:])}, field{"bytes", len(entries)}); err != nil {
		return err
	}
	return tsig.ReadState(entries, func(kind tsig.StateKind, body []byte) error { return n.state(lsn, kind, body) })
}

func (n *inspector) snapshot(path string) error {
	s, err := snapshot.Open(vfs.OS, path)
	if err != nil {
		return err
	}
	defer s.Close()
	zone := ""
	if len(s.Zone) > 0 {
		zone = wire.Text(s.Zone)
	}
	err = n.line(field{"lsn", s.LSN}, field{"epoch", hex.EncodeToString(s.Epoch[:])}, field{"feed_ms", s.FeedMs}, field{"cut_ms", s.CutMs}, field{"rows", s.Rows}, field{"tombstones", s.Tombstones},
		field{"zone", zone}, field{"serial", s.Serial}, field{"requests", s.Requests}, field{"state", s.State}, field{"bytes", s.Size()})
	if err != nil {
		return err
	}
	if err := s.Check(); err != nil {
		return err
	}
	var failed error
	err = s.Each(func(id record.ID, r *record.Row) bool {
		failed = n.line(append([]field{{"feed_ms", r.FeedMs}, {"id", hex.EncodeToString(id[:])}}, rowFields(r)...)...)
		return failed == nil
	})
	return errors.Join(failed, err)
}
