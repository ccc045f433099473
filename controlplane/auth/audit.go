package auth

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

// Event is a row of the audit (http.md 6.3), a line of JSON. It never holds a secret. Rows of shared-pool writes hold neither
// token nor subject: who sends to whom is not to be learnt here.
type Event struct {
	TsMs      int64  `json:"ts_ms"`
	Event     string `json:"event"` // issued revoked used throttled rejected, tsig-minted tsig-revoked tsig-unrevoked tsig-extended
	TokenHash string `json:"token_hash,omitempty"`
	Subject   string `json:"subject,omitempty"`
	Key       string `json:"key,omitempty"` // name of a TSIG key
	Remote    string `json:"remote_addr,omitempty"`
	Detail    string `json:"detail,omitempty"`
}

// Audit appends to control/audit-<ms>.jsonl. A file is full at auditFileMax; the oldest go beyond auditFilesMax, so that the audit
// holds the last gigabyte. A row is written, not synced: losing the last ones at a power cut is no loss of state.
type Audit struct {
	fs  vfs.FS
	dir string
	log *logging.Logger
	max int64 // of a file

	mu     sync.Mutex
	file   vfs.File
	off    int64
	failed bool
}

const (
	auditFileMax  = 16 << 20
	auditFilesMax = 64
	auditPrefix   = "audit-"
	auditSuffix   = ".jsonl"
)

// OpenAudit begins a new file at the first row.
func OpenAudit(fs vfs.FS, dir string, log *logging.Logger) *Audit {
	return &Audit{fs: fs, dir: dir, log: log, max: auditFileMax}
}

// Write appends a row. A nil Audit writes nothing. An audit that cannot be written is logged once and does not stop the node.
func (a *Audit) Write(e Event) {
	if a == nil {
		return
	}
	e.TsMs = clock.NowMs()
	line, err := json.Marshal(e)
	if err != nil {
		panic(err) // strings and a number
	}
	line = append(line, '\n')
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.append(line, e.TsMs); err != nil {
		if !a.failed {
			a.log.Error("the audit cannot be written", "err", err)
		}
		a.failed = true
		return
	}
	a.failed = false
}

func (a *Audit) append(line []byte, nowMs int64) error {
	if a.file == nil || a.off+int64(len(line)) > a.max {
		if err := a.rotate(nowMs); err != nil {
			return err
		}
	}
	if _, err := a.file.WriteAt(line, a.off); err != nil {
		return err
	}
	a.off += int64(len(line))
	return nil
}

func (a *Audit) rotate(nowMs int64) error {
	names, err := auditFiles(a.fs, a.dir)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("%s%016d%s", auditPrefix, nowMs, auditSuffix)
	if n := len(names); n > 0 && name <= names[n-1] {
		// The clock stands or went back: the order of names is the order of rows.
		var last int64
		if _, err := fmt.Sscanf(names[n-1], auditPrefix+"%d"+auditSuffix, &last); err != nil {
			return err
		}
		name = fmt.Sprintf("%s%016d%s", auditPrefix, last+1, auditSuffix)
	}
	f, err := a.fs.OpenFile(filepath.Join(a.dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if a.file != nil {
		a.file.Close()
	}
	a.file, a.off = f, 0
	for len(names) >= auditFilesMax {
		if err := a.fs.Remove(filepath.Join(a.dir, names[0])); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		names = names[1:]
	}
	return nil
}

func auditFiles(fs vfs.FS, dir string) ([]string, error) {
	all, err := fs.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // no node was ever here
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, n := range all {
		if strings.HasPrefix(n, auditPrefix) && strings.HasSuffix(n, auditSuffix) {
			names = append(names, n)
		}
	}
	return names, nil
}

// auditImported sorts before every file of this node's own.
var auditImported = fmt.Sprintf("%s%016d%s", auditPrefix, 0, auditSuffix)

// AuditImported says whether the audit of a node before this one was taken over already.
func AuditImported(fs vfs.FS, dir string) (bool, error) {
	_, _, err := fs.Stat(filepath.Join(dir, auditImported))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// ImportAudit takes the audit of a node before this one over, once. newest gives its rows, the newest first, and ok false at their end; those that
// fit in one file are kept, and their number is given.
func ImportAudit(fs vfs.FS, dir string, newest func() (e Event, ok bool, err error)) (kept int, err error) {
	var lines [][]byte
	for size := 0; ; {
		e, ok, err := newest()
		if err != nil {
			return 0, err
		}
		if !ok {
			break
		}
		line, err := json.Marshal(e)
		if err != nil {
			return 0, err
		}
		if size += len(line) + 1; size > auditFileMax {
			break
		}
		lines = append(lines, append(line, '\n'))
	}
	slices.Reverse(lines)
	temporary := filepath.Join(dir, auditImported+".new")
	if err := fs.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	f, err := fs.OpenFile(temporary, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	_, err = f.WriteAt(slices.Concat(lines...), 0)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return 0, err
	}
	if err := fs.Rename(temporary, filepath.Join(dir, auditImported)); err != nil {
		return 0, err
	}
	return len(lines), fs.SyncDir(dir)
}

// Close closes the file.
func (a *Audit) Close() error {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file == nil {
		return nil
	}
	err := a.file.Close()
	a.file = nil
	return err
}

// AuditTail gives the last rows, newest first, of one event or of all. It needs no running node. A last line that a crash cut is passed over.
func AuditTail(fs vfs.FS, dir, event string, limit int) ([]Event, error) {
	names, err := auditFiles(fs, dir)
	if err != nil {
		return nil, fmt.Errorf("auth: %w", err)
	}
	var rows []Event
	for i := len(names) - 1; i >= 0 && len(rows) < limit; i-- {
		path := filepath.Join(dir, names[i])
		text, err := readFile(fs, path)
		if err != nil {
			return nil, fmt.Errorf("auth: %s: %w", path, err)
		}
		lines := strings.Split(text, "\n")
		for j := len(lines) - 1; j >= 0 && len(rows) < limit; j-- {
			var e Event
			if json.Unmarshal([]byte(lines[j]), &e) == nil && (event == "" || e.Event == event) {
				rows = append(rows, e)
			}
		}
	}
	return rows, nil
}

func readFile(fs vfs.FS, path string) (string, error) {
	f, err := fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return "", err
	}
	b := make([]byte, min(size, 2*auditFileMax))
	if n, err := f.ReadAt(b, 0); n < len(b) {
		return "", err
	}
	return string(b), nil
}
