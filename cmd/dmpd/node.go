package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dnsmesh/dmpd/controlplane"
	"github.com/dnsmesh/dmpd/controlplane/auth"
	"github.com/dnsmesh/dmpd/dataplane/store"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/config"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/snapshot"
	"github.com/dnsmesh/dmpd/internal/vfs"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// callLimit is how long a verb may take: a mint waits for the data plane.
const callLimit = 70 * time.Second

// place is the node that a command is about, running or not.
type place struct {
	i      *invocation
	in     config.Input
	config *config.Config
	asJSON bool
}

// place binds the flags that say which node is meant.
func (i *invocation) place(f *flag.FlagSet) *place {
	p := &place{i: i, in: input()}
	p.in.Flags = map[string]string{}
	set := func(flag, setting, usage string) {
		f.Func(flag, usage, func(v string) error { p.in.Flags[setting] = v; return nil })
	}
	set("state-dir", "STATE_DIR", "the node's state `folder`")
	set("domain", "DOMAIN", "the node's `zone`, where neither the configuration nor the state folder tells")
	set("db", "DB_PATH", "`file` in the state folder, as the reference's admin tool wants it")
	f.StringVar(&p.in.File, "config", "", "configuration `file` in TOML")
	return p
}

// resolve reads the configuration, of which these commands need where the state is and which zone is served.
func (p *place) resolve() error {
	c, _, errs := config.Resolve(p.in)
	if len(errs) > 0 {
		// A command that serves nobody may run without what a node has to be told before it opens itself to others.
		p.in.Flags["ALLOW_OPEN_PUBLIC_BIND"] = "1"
		if c, _, errs = config.Resolve(p.in); len(errs) > 0 {
			return errs
		}
	}
	p.config = c
	info, err := os.Stat(c.StateDir())
	if err != nil || !info.IsDir() {
		return usagef("there is no state folder %s. Name the node's with --state-dir, DMP_STATE_DIR or --config", c.StateDir())
	}
	return nil
}

func (p *place) dataDir() string    { return filepath.Join(p.config.StateDir(), "data") }
func (p *place) controlDir() string { return filepath.Join(p.config.StateDir(), "control") }

// zone is the served zone: the configuration's, else the one that the records were stored for.
func (p *place) zone() (string, error) {
	if z := p.config.Zone(); z != "" {
		return z, nil
	}
	v, err := openView(p.dataDir())
	if err != nil {
		return "", err
	}
	defer v.close()
	if len(v.meta.Zone) < 2 {
		return "", usagef("the zone is not known: give --domain, or the configuration that the node runs with")
	}
	return wire.Text(v.meta.Zone), nil
}

// backend carries verbs out: a running node behind its socket, or this process under the node's lock.
type backend interface {
	Call(ctx context.Context, verb string, args, result any) error
}

// backend finds who can carry a verb out. done must be called.
func (p *place) backend() (b backend, done func(), err error) {
	client := &controlplane.AdminClient{Dir: p.controlDir()}
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	err = client.Call(ctx, "ping", nil, nil)
	if err == nil {
		return client, func() {}, nil
	}
	if !errors.Is(err, controlplane.ErrNoNode) {
		return nil, nil, err
	}
	return p.offline()
}

// offline opens the state in this process.
func (p *place) offline() (backend, func(), error) {
	if err := os.MkdirAll(p.controlDir(), 0o700); err != nil {
		return nil, nil, usageError{err}
	}
	lock, err := lockFolder(p.controlDir())
	if err != nil {
		return nil, nil, err
	}
	log := logging.New(p.i.errOut, logging.Warn, false)
	audit := auth.OpenAudit(vfs.OS, p.controlDir(), log)
	state, err := openState(p.controlDir(), p.dataDir(), audit, log)
	if err != nil {
		lock.Close()
		return nil, nil, err
	}
	o := &offlineStore{p: p, log: log}
	admin := &controlplane.Admin{State: state, Store: o.do, Log: log}
	return admin, func() {
		if err := errors.Join(o.close(), state.Close(), audit.Close(), lock.Close()); err != nil {
			fmt.Fprintln(p.i.errOut, "dmpd: closing the state:", err)
		}
	}, nil
}

// lockFolder takes a plane's lock.
func lockFolder(dir string) (*journal.FileLock, error) {
	lock, err := journal.Lock(filepath.Join(dir, "lock"))
	var held *journal.HeldError
	if errors.As(err, &held) {
		return nil, usagef("process %d works in %s. Wait for it, or stop the node", held.Pid, dir)
	}
	if err != nil {
		return nil, usageError{err}
	}
	return lock, nil
}

// openState opens control/state; the caller holds the folder's lock. Records that were stored with keys, but no keys, are an error.
func openState(controlDir, dataDir string, audit *auth.Audit, log *logging.Logger) (*auth.State, error) {
	v, err := openView(dataDir)
	if err != nil {
		return nil, err
	}
	defer v.close()
	return auth.Open(auth.Options{Dir: controlDir, Log: log, Audit: audit, DataExists: v.meta.State > 0})
}

// offlineStore opens the records when the first one is changed.
type offlineStore struct {
	p    *place
	log  *logging.Logger
	lock *journal.FileLock
	s    *store.Store
}

func (o *offlineStore) do(ctx context.Context, r *record.Request) (snapshot.Outcome, error) {
	if o.s == nil {
		if err := o.open(); err != nil {
			return snapshot.Outcome{}, err
		}
	}
	result := make(chan store.Result, 1)
	if !o.s.Submit(&store.Batch{Ops: r.Ops, Done: func(r store.Result) { result <- r }}) {
		return snapshot.Outcome{}, errors.New("the store takes nothing")
	}
	select {
	case r := <-result:
		return snapshot.Outcome{Code: r.Code, Applied: uint32(r.Applied)}, nil
	case <-ctx.Done():
		return snapshot.Outcome{}, ctx.Err()
	}
}

func (o *offlineStore) open() error {
	if err := os.MkdirAll(o.p.dataDir(), 0o700); err != nil {
		return err
	}
	lock, err := journal.Lock(filepath.Join(o.p.dataDir(), "lock"))
	var held *journal.HeldError
	if errors.As(err, &held) {
		return fmt.Errorf("process %d, the DNS process, works in %s, and the HTTP process, which hands records to it, does not run. Start dmp-controlplane (dmpd run starts both), or stop process %d, and give the command again", held.Pid, o.p.dataDir(), held.Pid)
	}
	if err != nil {
		return err
	}
	c := o.p.config
	var zone []byte
	if text, err := o.p.zone(); err == nil {
		if zone, err = wire.AppendName(nil, text); err != nil {
			lock.Close()
			return err
		}
	}
	origin, err := store.Origin(o.p.dataDir())
	if err != nil {
		lock.Close()
		return err
	}
	o.s, err = store.Open(store.Options{Dir: o.p.dataDir(), Log: o.log, Zone: zone, Origin: origin, RetainMs: c.LogRetain().Milliseconds(),
		TombstoneLifeMs: (cmp.Or(c.Int("MAX_TTL"), 30*86400) + 60) * 1000, Limits: store.Limits{ValuesMax: int(c.Int("MAX_VALUES_PER_NAME"))}})
	if err != nil {
		lock.Close()
		return err
	}
	o.lock = lock
	return nil
}

func (o *offlineStore) close() error {
	if o.s == nil {
		return nil
	}
	return errors.Join(o.s.Close(), o.lock.Close())
}

// call runs one verb.
func (p *place) call(verb string, args, result any) error {
	return p.with(func(call caller) error { return call(verb, args, result) })
}

// caller runs a verb.
type caller func(verb string, args, result any) error

// with runs verbs one after the other, all of them at the same place.
func (p *place) with(f func(call caller) error) error {
	b, done, err := p.backend()
	if err != nil {
		return err
	}
	defer done()
	return f(func(verb string, args, result any) error {
		ctx, cancel := context.WithTimeout(context.Background(), callLimit)
		defer cancel()
		err := b.Call(ctx, verb, args, result)
		var failed *controlplane.AdminError
		if errors.As(err, &failed) && (failed.Kind == controlplane.KindBadRequest || failed.Kind == controlplane.KindAmbiguous) {
			return usageError{err}
		}
		if failed != nil && (failed.Kind == controlplane.KindAway || failed.Kind == controlplane.KindStands) {
			return p.away(err, b)
		}
		return err
	})
}

// away adds to an error of a node without its DNS process who runs, and what to do.
func (p *place) away(err error, b backend) error {
	var node struct{ Pid int }
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	if e := b.Call(ctx, "ping", nil, &node); e != nil {
		return err
	}
	if lock := filepath.Join(p.dataDir(), "lock"); journal.Locked(lock) {
		pid, _ := os.ReadFile(lock)
		return fmt.Errorf("%w. Process %d, the HTTP process, runs; the DNS process, %s, may be starting, stopping or hanging: see its log and `dmpd status`", err, node.Pid, strings.TrimSpace(string(pid)))
	}
	return fmt.Errorf("%w. Process %d, the HTTP process, runs; the DNS process, which would work in %s, does not: start dmp-dataplane (dmpd run starts both)", err, node.Pid, p.dataDir())
}

// parsed parses the flags, which bound p, and resolves the configuration.
func (p *place) parsed(f *flag.FlagSet, least, most int) ([]string, error) {
	args, err := p.i.parse(f, least, most)
	if err != nil {
		return nil, err
	}
	return args, p.resolve()
}

// json binds --json.
func (p *place) json(f *flag.FlagSet) { f.BoolVar(&p.asJSON, "json", false, "print JSON") }

// print writes v as JSON if that was asked for, else what text writes.
func (p *place) print(v any, text func(w *tabwriter.Writer)) error {
	if p.asJSON {
		e := json.NewEncoder(p.i.out)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	w := tabwriter.NewWriter(p.i.out, 0, 8, 2, ' ', 0)
	text(w)
	return w.Flush()
}

// duration reads digits with one of s m h d w behind them, seconds without (http.md 16).
func duration(s string) (sec int64, err error) {
	unit := int64(1)
	digits := s
	if len(s) > 0 {
		switch s[len(s)-1] {
		case 's':
			digits = s[:len(s)-1]
		case 'm':
			digits, unit = s[:len(s)-1], 60
		case 'h':
			digits, unit = s[:len(s)-1], 3600
		case 'd':
			digits, unit = s[:len(s)-1], 86400
		case 'w':
			digits, unit = s[:len(s)-1], 7*86400
		}
	}
	n, err := strconv.ParseUint(digits, 10, 40)
	if err != nil || digits == "" || digits[0] == '+' {
		return 0, fmt.Errorf("%q is no duration: write 90, 90s, 15m, 12h, 30d or 4w", s)
	}
	return int64(n) * unit, nil
}

// life binds a flag for the end of something. never is what "never" and 0 mean.
type life struct {
	set bool
	sec int64 // from now; 0: never
}

func (l *life) bind(f *flag.FlagSet, name, usage string) {
	f.Func(name, usage, func(v string) error {
		l.set = true
		if v == "never" {
			l.sec = 0
			return nil
		}
		var err error
		l.sec, err = duration(v)
		return err
	})
}

// end is the Unix time, 0 for never.
func (l *life) end() int64 {
	if l.sec == 0 {
		return 0
	}
	return clock.NowMs()/1000 + l.sec
}

// when shows a Unix time.
func when(sec int64) string {
	if sec == 0 {
		return "-"
	}
	return time.Unix(sec, 0).UTC().Format("2006-01-02 15:04:05Z")
}

func dash(s string) string { return cmp.Or(s, "-") }

// texts collects a flag that may be given often.
type texts []string

func (t *texts) String() string     { return strings.Join(*t, ",") }
func (t *texts) Set(v string) error { *t = append(*t, v); return nil }

// localHash names a local part in owner names (http.md 6.2): 16 hex digits, or the first 12 of them.
func localHash(local string) string {
	h := sha256.Sum256([]byte(local))
	return hex.EncodeToString(h[:8])
}
