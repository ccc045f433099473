package controlplane

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/dnsmesh/dmpd/dataplane/store"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/vfs"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// startReal is startNode over the store that the data plane runs, where what is stored decides: deletes, stamps, lives.
func startReal(t testing.TB, dir string, more ...string) *node {
	t.Helper()
	data := filepath.Join(dir, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := journal.Lock(filepath.Join(data, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	origin, err := store.Origin(data)
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(store.Options{Dir: data, Zone: wire.MustName("mesh.test"), Origin: origin, Durability: journal.OS, Limits: store.Limits{ValuesMax: 64}})
	if err != nil {
		t.Fatal(err)
	}
	live, err := journal.CreateLive(vfs.OS, filepath.Join(data, "live"), "real")
	if err != nil {
		t.Fatal(err)
	}
	s.Notify(func(uint64) { live.Ring() })
	stop := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		f := feeder{t: t, s: s, live: live, control: filepath.Join(dir, "control")}
		f.run(stop)
	})
	t.Cleanup(func() {
		close(stop)
		running.Wait()
		s.Close()
		lock.Close()
	})
	n := startServer(t, dir, more...)
	n.waitHealthy()
	return n
}

// feeder hands the control plane's logs to the store.
type feeder struct {
	t       testing.TB
	s       *store.Store
	live    *journal.Live
	control string
	state   *journal.Reader
}

func (f *feeder) run(stop chan struct{}) {
	requests := f.s.Requests(vfs.OS, f.control)
	defer func() {
		requests.Close()
		if f.state != nil {
			f.state.Close()
		}
	}()
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Millisecond):
		}
		f.live.Beat(clock.NowMs())
		f.read("state", &f.state, func(lsn uint64, _ []byte) error {
			f.s.SetStateTaken(f.state.Epoch(), lsn)
			f.live.SetTaken(journal.TakenState, f.state.Epoch(), lsn)
			f.live.Ring()
			return nil
		})
		_, _ = requests.Take() // the data plane tells of an error and tries again, too
	}
}

func (f *feeder) read(name string, r **journal.Reader, take func(lsn uint64, p []byte) error) {
	if *r == nil {
		*r, _ = journal.OpenReader(vfs.OS, f.control, name, 0)
		if *r == nil {
			return
		}
	}
	for {
		lsn, p, ok, err := (*r).Next()
		if errors.Is(err, journal.ErrEpoch) {
			continue
		}
		if err == nil && ok {
			err = take(lsn, p)
		}
		if err != nil {
			if !errors.Is(err, store.ErrClosed) && !errors.Is(err, journal.ErrGone) {
				f.t.Errorf("%s log: %v", name, err)
			}
			(*r).Close()
			*r = nil
			return
		}
		if !ok {
			return
		}
	}
}
