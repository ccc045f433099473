package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dnsmesh/dmpd/internal/config"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/systemd"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

func init() {
	register(&command{name: "run", args: "[--fresh] [--SETTING VALUE]...", short: "Run the node: the DNS process and the HTTP process, looked after", run: run,
		long: `Settings come from flags, the environment (DMP_...), the TOML file of --config or DMP_CONFIG, and defaults, in this order.
SIGHUP reads them again and hands them on; a configuration with an error is refused and the old one kept.
A process that dies is started again; SIGTERM or SIGINT ends both, the HTTP process first.`,
		example: "dmpd run --config /etc/dmpd.toml\nDMP_DOMAIN=mesh.example.com DMP_OPERATOR_TOKEN=... dmpd run"})
}

const (
	restartFirst = 100 * time.Millisecond // wait before the first restart; doubles with each further one
	restartMax   = 10 * time.Second
	restartReset = time.Minute // a plane that ran that long starts over with restartFirst

	// How long a plane has to end before it is killed: the control plane cuts its clients after 4 s, the data plane has
	// syncs to finish.
	stopControl = 15 * time.Second
	stopData    = 20 * time.Second

	readyPoll = 10 * time.Millisecond
)

// plane is one of the two processes.
type plane struct {
	name     string // of the binary
	dir      string // of its folder, data or control
	which    config.Plane
	settings *os.File // memfd that it reads its settings from
	cmd      *exec.Cmd
	started  time.Time
	wait     time.Duration
	build    string // what its binary says of itself
}

type exited struct {
	p   *plane
	cmd *exec.Cmd
	err error
}

// supervisor runs the planes. All of it happens in one goroutine on one thread: the kernel sends a child its
// parent-death signal when the thread that started it ends (prctl(2)).
type supervisor struct {
	log     *logging.Logger
	config  *config.Config
	reread  func() (*config.Config, error)
	bin     string // folder of the planes' binaries
	planes  [2]*plane
	exits   chan exited
	signals chan os.Signal
}

func run(i *invocation) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	f := i.flags()
	in := input()
	in.Bind(f)
	fresh := f.Bool("fresh", false, "start with an empty store although the reference node's database lies in the state folder")
	if _, err := i.parse(f, 0, 0); err != nil {
		return err
	}
	c, err := i.resolve(in)
	if err != nil {
		return err
	}
	level, _ := logging.ParseLevel(c.String("LOG_LEVEL"))
	log := logging.New(i.errOut, level, c.String("LOG_FORMAT") == "json").With("process", "dmpd")
	if err := prepareState(c, *fresh, log); err != nil {
		return usageError{err}
	}
	lock, err := journal.Lock(filepath.Join(c.StateDir(), "run.lock"))
	if err != nil {
		var held *journal.HeldError
		if errors.As(err, &held) {
			return usagef("a node runs on %s already, as process %d. Stop it first, or give this one a DMP_STATE_DIR of its own", c.StateDir(), held.Pid)
		}
		return usageError{err}
	}
	defer lock.Close()
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot find the planes' binaries: %w", err)
	}
	s := &supervisor{
		log: log, config: c, reread: func() (*config.Config, error) { return i.resolve(in) }, bin: filepath.Dir(self),
		planes:  [2]*plane{{name: "dmp-dataplane", dir: "data", which: config.Data}, {name: "dmp-controlplane", dir: "control", which: config.Control}},
		exits:   make(chan exited, 2),
		signals: make(chan os.Signal, 8),
	}
	signal.Notify(s.signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(s.signals)
	return s.run()
}

// prepareState makes the state folder and refuses one that the reference node's records lie in, unless they were imported.
func prepareState(c *config.Config, fresh bool, log *logging.Logger) error {
	dir := c.StateDir()
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("the state folder cannot be made: %w. Make %s writable, or set DMP_STATE_DIR", err, dir)
		}
	} else if info, err := os.Stat(dir); err != nil {
		return fmt.Errorf("the state folder: %w", err)
	} else if !info.IsDir() {
		return fmt.Errorf("DMP_STATE_DIR=%q is no folder", dir)
	} else if info.Mode().Perm()&0o077 != 0 {
		log.Warn("others may look into the state folder", "folder", dir, "mode", info.Mode().Perm().String(), "remedy", "chmod 700 "+dir)
	}
	if text, err := os.ReadFile(filepath.Join(dir, restoringMark)); err == nil {
		return fmt.Errorf("%s: %s", filepath.Join(dir, restoringMark), strings.TrimSpace(string(text)))
	}
	for _, sub := range []string{"data", "control"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return fmt.Errorf("the state folder cannot be written: %w. Make %s writable for this user, or set DMP_STATE_DIR", err, dir)
		}
	}
	imported := filepath.Join(dir, "control", importedMark)
	if _, err := os.Stat(imported); err == nil || !isSQLite(c.String("DB_PATH")) {
		return nil
	}
	if !fresh {
		return fmt.Errorf("%s is the reference node's database, and it was not imported. Run\n    dmpd import --state-dir %s --db-path %s\nfirst, or start with an empty store: dmpd run --fresh", c.String("DB_PATH"), dir, c.String("DB_PATH"))
	}
	return os.WriteFile(imported, []byte("not imported: started with --fresh\n"), 0o600)
}

// importedMark is a file in control/ that says that a reference database beside it was dealt with.
const importedMark = "imported"

func isSQLite(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	b := make([]byte, 16)
	n, _ := f.Read(b)
	return string(b[:n]) == "SQLite format 3\x00"
}

func (s *supervisor) run() error {
	for _, p := range s.planes {
		var err error
		if p.build, err = s.buildOf(p); err != nil {
			return err
		}
		if p.settings, err = memfd(p.name); err != nil {
			return err
		}
		defer p.settings.Close()
		if err := p.hand(s.config); err != nil {
			return err
		}
	}
	if a, b := s.planes[0].build, s.planes[1].build; a != b {
		return usagef("the planes are of two builds: %s and %s. Install both of one version", a, b)
	}
	for _, p := range s.planes {
		if err := s.start(p); err != nil {
			s.stop()
			return err
		}
	}
	ready := time.NewTicker(readyPoll)
	defer ready.Stop()
	for {
		select {
		case <-ready.C:
			if s.serving() {
				ready.Stop()
				s.log.Info("serving", "zone", orNone(s.config.Zone()), "state", s.config.StateDir())
				if err := systemd.Notify("READY=1", "STATUS=serving "+s.config.Zone()); err != nil {
					s.log.Warn("the service manager cannot be told", "err", err)
				}
			}
		case e := <-s.exits:
			if err := s.died(e); err != nil {
				s.stop()
				return err
			}
		case sig := <-s.signals:
			if sig == syscall.SIGHUP {
				s.reload()
				continue
			}
			s.log.Info("stopping", "signal", sig)
			_ = systemd.Notify("STOPPING=1")
			return s.stop()
		}
	}
}

// buildOf asks a plane's binary for its build.
func (s *supervisor) buildOf(p *plane) (string, error) {
	out, err := exec.Command(filepath.Join(s.bin, p.name), "--version").Output()
	if err != nil {
		return "", usagef("%s does not run: %w. It must lie beside dmpd, in %s", p.name, err, s.bin)
	}
	return strings.TrimPrefix(strings.TrimSpace(string(out)), p.name+" "), nil
}

func memfd(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name+"-settings", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	return os.NewFile(uintptr(fd), name+"-settings"), nil
}

// hand writes a plane's settings to where it reads them.
func (p *plane) hand(c *config.Config) error {
	lines := c.For(p.which)
	if _, err := p.settings.WriteAt(lines, 0); err != nil {
		return fmt.Errorf("handing settings to %s: %w", p.name, err)
	}
	return p.settings.Truncate(int64(len(lines)))
}

func (s *supervisor) start(p *plane) error {
	cmd := exec.Command(filepath.Join(s.bin, p.name))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(planeEnviron(os.Environ()), fmt.Sprintf("%s=%d", config.HandoffEnv, config.HandoffFD))
	cmd.ExtraFiles = []*os.File{p.settings}
	// SIGTERM, not SIGKILL: a plane whose dmpd was killed still finishes its commits.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	start := cmd.Start
	if p.which == config.Control {
		start = func() error { return withoutAmbient(packetCapabilities, cmd.Start) }
	}
	if err := start(); err != nil {
		return fmt.Errorf("starting %s: %w", p.name, err)
	}
	p.cmd, p.started = cmd, time.Now()
	s.log.Info("started", "plane", p.name, "pid", cmd.Process.Pid)
	go func() { s.exits <- exited{p, cmd, cmd.Wait()} }()
	return nil
}

// packetCapabilities are what a unit may give for AF_XDP. The process that strangers' HTTP reaches has no business with them.
var packetCapabilities = []uintptr{unix.CAP_NET_RAW, unix.CAP_BPF, unix.CAP_NET_ADMIN}

// withoutAmbient calls f, which starts a process, with a thread that hands those capabilities to no child that is not root's. The thread
// gets them back for the next child; it is not given up, since children end with the thread that started them (Pdeathsig).
func withoutAmbient(capabilities []uintptr, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, c := range capabilities {
		if had, err := unix.PrctlRetInt(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_IS_SET, c, 0, 0); err != nil || had == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_LOWER, c, 0, 0); err != nil {
			return fmt.Errorf("giving up capability %d: %w", c, err)
		}
		defer unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0)
	}
	return f()
}

// planeEnviron keeps settings, and so secrets, out of the planes' environment.
func planeEnviron(environ []string) []string {
	var kept []string
	for _, e := range environ {
		name, _, _ := strings.Cut(e, "=")
		if name == "NOTIFY_SOCKET" || strings.HasPrefix(name, "WATCHDOG_") {
			continue // the service manager is told by dmpd alone
		}
		if !strings.HasPrefix(name, "DMP_") || name == "DMP_TEST_CLOCK" || strings.HasPrefix(name, "DMP_KILLPOINT") {
			kept = append(kept, e)
		}
	}
	return kept
}

// serving says whether both planes have said that they serve: each beats in its live page from then on.
func (s *supervisor) serving() bool {
	for _, p := range s.planes {
		live, err := journal.OpenLive(vfs.OS, filepath.Join(s.config.StateDir(), p.dir, "live"))
		if err != nil {
			return false
		}
		ok := p.cmd != nil && live.Pid() == p.cmd.Process.Pid && live.BeatMs() != 0
		live.Close()
		if !ok {
			return false
		}
	}
	return true
}

// died decides what follows on a plane's end. An error ends the node.
func (s *supervisor) died(e exited) error {
	p := e.p
	if e.cmd != p.cmd {
		return nil // one that was replaced since
	}
	code := e.cmd.ProcessState.ExitCode()
	p.cmd = nil
	if code == exitUsage {
		return usagef("%s cannot run here, see above", p.name)
	}
	if time.Since(p.started) > restartReset {
		p.wait = 0
	}
	p.wait = min(max(2*p.wait, restartFirst), restartMax)
	s.log.Error("a plane died and is started again", "plane", p.name, "state", e.cmd.ProcessState.String(), "wait", p.wait)
	if err := s.pause(p.wait); err != nil {
		return err
	}
	return s.restart(p)
}

// errStopped is a signal that came while a plane was waited for.
var errStopped = errors.New("stopped by a signal while a plane was down")

// pause waits, and goes on listening.
func (s *supervisor) pause(d time.Duration) error {
	end := time.After(d)
	for {
		select {
		case <-end:
			return nil
		case sig := <-s.signals:
			if sig != syscall.SIGHUP {
				return errStopped
			}
			s.reload()
		}
	}
}

// restart starts a plane again, and the other one too if the binaries on disk are of a new build.
func (s *supervisor) restart(p *plane) error {
	other := s.planes[0]
	if other == p {
		other = s.planes[1]
	}
	build, err := s.buildOf(p)
	if err == nil && build != p.build {
		s.log.Warn("the binaries are of a new build: both planes are started again", "old", p.build, "new", build)
		s.end(other, stopData)
		p.build, other.build = build, build
		if err := s.start(other); err != nil {
			return err
		}
	}
	return s.start(p)
}

func (s *supervisor) reload() {
	c, err := s.reread()
	if err != nil {
		s.log.Error("the new configuration is refused, the old one stays", "err", err)
		return
	}
	if names := config.ReloadChanges(s.config, c); len(names) > 0 {
		s.log.Warn("some settings change only with a restart", "settings", strings.Join(names, " "))
	}
	s.config = c
	for _, p := range s.planes {
		if err := p.hand(c); err != nil {
			s.log.Error("the new configuration is not handed on", "err", err)
			continue
		}
		if p.cmd != nil {
			_ = p.cmd.Process.Signal(syscall.SIGHUP)
		}
	}
	s.log.Info("configuration read again")
}

// stop ends the planes, the control plane first, since its writes wait for the data plane.
func (s *supervisor) stop() error {
	control := s.end(s.planes[1], stopControl)
	return errors.Join(control, s.end(s.planes[0], stopData))
}

// end ends one plane and waits for it.
func (s *supervisor) end(p *plane, limit time.Duration) error {
	if p.cmd == nil {
		return nil
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	timeout := time.After(limit)
	for {
		select {
		case e := <-s.exits:
			if e.p != p {
				e.p.cmd = nil
				continue
			}
			p.cmd = nil
			if code := e.cmd.ProcessState.ExitCode(); code != 0 {
				return fmt.Errorf("%s ended with %s", p.name, e.cmd.ProcessState)
			}
			return nil
		case <-timeout:
			_ = p.cmd.Process.Kill()
			timeout = nil
			s.log.Error("a plane did not end in time and was killed", "plane", p.name, "limit", limit)
		}
	}
}
