package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dnsmesh/dmpd/internal/vfs"
	"github.com/dnsmesh/dmpd/internal/vfs/vfstest"
)

// collect opens a log and gives what it replays.
func collect(o Options, from uint64) (*Writer, map[uint64]string, error) {
	got := map[uint64]string{}
	w, err := Open(o, from, func(lsn uint64, p []byte) error {
		if _, twice := got[lsn]; twice {
			return fmt.Errorf("lsn %d twice", lsn)
		}
		got[lsn] = string(p)
		return nil
	})
	return w, got, err
}

func mustAppend(t *testing.T, w *Writer, payload string) uint64 {
	t.Helper()
	lsn, err := w.Append([]byte(payload))
	if err == nil {
		err = w.Sync()
	}
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

func TestReopen(t *testing.T) {
	o := Options{Dir: t.TempDir(), Name: "rows", SegmentMax: 8192}
	want := map[uint64]string{}
	var epoch [16]byte
	for round := range 3 {
		w, got, err := collect(o, 0)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Fatalf("round %d replays %d frames of %d", round, len(got), len(want))
		}
		for lsn, p := range want {
			if got[lsn] != p {
				t.Errorf("lsn %d is %q", lsn, got[lsn])
			}
		}
		if round > 0 && w.Epoch() != epoch {
			t.Error("a new epoch after a clean end")
		}
		epoch = w.Epoch()
		for i := range 100 {
			p := strings.Repeat("x", i*7) + fmt.Sprint(round, i)
			want[mustAppend(t, w, p)] = p
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	w, got, err := collect(o, 250)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if len(got) != 51 || got[250] != want[250] {
		t.Errorf("from 250 on: %d frames", len(got))
	}
}

// TestSimulation: whatever a crash leaves of what was not synced, every acknowledged frame is there, in order, and nothing that was
// not appended. A life of the writer ends at any of its operations on the file system, also within recovery, by a kill (the
// system keeps what was written) or a power cut. What was dropped stays dropped after a kill, and once a later group counts.
func TestSimulation(t *testing.T) {
	for seed := range uint64(1000) {
		simulate(t, seed)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func simulate(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	fs := vfstest.New(seed)
	fs.MapRoom = 64 << 10
	appended := map[uint64]string{} // what was last appended at an lsn of this epoch
	acked := map[uint64]string{}
	dropped := map[string]bool{} // payloads, which are unlike each other
	var epoch [16]byte
	cut := false // there was a power cut since the log was last open
	for life := range 5 {
		left := 5 + rng.IntN(250) // operations until the end of this life
		if life == 4 {
			left = 1 << 30
		}
		flaky := rng.IntN(2) == 0
		fs.Fault = func(op, name string) error {
			left--
			if left < 0 {
				return errEnded
			}
			if left < 1<<20 && flaky && rng.IntN(60) == 0 && (op == "write" || op == "sync" || op == "allocate") {
				return syscall.EIO
			}
			return nil
		}
		o := Options{FS: fs, Dir: "d", Name: "rows", SegmentMax: 8192 + int64(rng.IntN(3))*4096}
		w, got, err := collect(o, 0)
		if err != nil {
			if errors.Is(err, errEnded) || errors.Is(err, syscall.EIO) {
				if rng.IntN(2) == 0 {
					fs, cut = fs.Crash(), true
				}
				continue
			}
			t.Errorf("life %d: %v", life, err)
			return
		}
		var top uint64
		for lsn, p := range acked {
			top = max(top, lsn)
			if got[lsn] != p {
				t.Errorf("life %d: acknowledged frame %d is %.40q", life, lsn, got[lsn])
			}
		}
		for lsn, p := range got {
			if appended[lsn] != p {
				t.Errorf("life %d: frame %d was never appended so: %.40q", life, lsn, p)
			}
			if dropped[p] && (!cut || lsn < top) {
				t.Errorf("life %d: frame %d had been dropped", life, lsn)
			}
			delete(dropped, p) // the power was cut while it was dropped, and it counts after all
			acked[lsn] = p     // durable by now, since the new segment says so
		}
		if epoch != [16]byte{} && w.Epoch() != epoch {
			t.Errorf("life %d: a new epoch without loss", life)
		}
		epoch, cut = w.Epoch(), false
		var waiting map[uint64]string
		for range rng.IntN(60) {
			group := map[uint64]string{}
			var failed error
			for range 1 + rng.IntN(3) {
				p := fmt.Sprint(rng.Uint64()) + strings.Repeat("abcdefg", rng.IntN(200))
				lsn, err := w.Append([]byte(p))
				if err != nil {
					failed = err
					break
				}
				if _, was := acked[lsn]; was {
					t.Errorf("life %d: lsn %d given out twice", life, lsn)
				}
				appended[lsn], group[lsn] = p, p
			}
			if failed == nil && rng.IntN(30) == 0 {
				waiting = group
				break // the end comes while a group waits
			}
			if failed == nil {
				failed = w.Sync()
			}
			if failed != nil && !errors.Is(failed, ErrDropped) {
				t.Errorf("life %d: %v", life, failed)
			}
			for lsn, p := range group {
				if failed == nil {
					acked[lsn] = p
				} else {
					dropped[p] = true
				}
			}
			if rng.IntN(8) == 0 {
				_ = w.Seal() // as before a snapshot; it may fail, and what follows must not be lost for it
			}
			if left < 0 {
				break
			}
		}
		if rng.IntN(5) == 0 {
			if err := w.Close(); err == nil {
				maps.Copy(acked, waiting)
			}
		}
		if rng.IntN(2) == 0 {
			fs, cut = fs.Crash(), true
		}
	}
}

var errEnded = errors.New("the machine stops here")

// TestDamage: a flipped bit in what was durable is reported with file and offset, or it lies where no frame is.
func TestDamage(t *testing.T) {
	fill := func() (*vfstest.Sim, []string) {
		fs := vfstest.New(1)
		w, _, err := collect(Options{FS: fs, Dir: "d", Name: "rows", SegmentMax: 8192}, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			mustAppend(t, w, strings.Repeat(fmt.Sprint(i), 300))
		}
		w.Close()
		files, _ := fs.ReadDir("d")
		return fs, files
	}
	_, files := fill()
	if len(files) < 2 {
		t.Fatalf("%d segments", len(files))
	}
	rng := rand.New(rand.NewPCG(1, 1))
	reported := 0
	for range 400 {
		fs, files := fill()
		name := filepath.Join("d", files[rng.IntN(len(files))])
		size, _, _ := fs.Stat(name)
		off := rng.Int64N(size)
		fs.Flip(name, off, uint(rng.IntN(8)))
		_, got, err := collect(Options{FS: fs, Dir: "d", Name: "rows", SegmentMax: 8192, Reaches: 20}, 0)
		var damage *CorruptError
		switch {
		case errors.As(err, &damage):
			reported++
			if damage.File == "" || damage.Offset > size {
				t.Errorf("%v", err)
			}
		case errors.Is(err, ErrFormat):
			reported++
		case err != nil:
			t.Errorf("flip at %s %d: %v", name, off, err)
		default:
			for i := range uint64(20) {
				if got[i+1] != strings.Repeat(fmt.Sprint(i), 300) {
					t.Fatalf("flip at %s %d: frame %d is lost in silence", name, off, i+1)
				}
			}
		}
	}
	if reported < 100 {
		t.Errorf("only %d of 400 flips were reported; most of the rest falls in header padding", reported)
	}
}

func TestCutIsRevealed(t *testing.T) {
	for _, x := range []struct {
		name    string
		reaches uint64
		keep    bool // the header's committed word
		durable Durability
		corrupt bool
	}{
		{"by the header", 0, true, Always, true},
		{"by somebody else", 10, false, Always, true},
		{"by nobody", 0, false, Always, false},
		{"interval", 10, true, Interval, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			dir := t.TempDir()
			w, _, err := collect(Options{Dir: dir, Name: "rows", Durability: x.durable}, 0)
			if err != nil {
				t.Fatal(err)
			}
			for range 10 {
				mustAppend(t, w, "payload of a frame")
			}
			epoch := w.Epoch()
			path := filepath.Join(dir, segmentName("rows", 1))
			w.Close()
			b, _ := os.ReadFile(path)
			if !x.keep {
				binary.NativeEndian.PutUint64(b[offCommitted:], 0)
				binary.NativeEndian.PutUint64(b[offEnd:], headerSize)
			}
			clear(b[headerSize+9*frameSize(18):]) // the last frame
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			w, got, err := collect(Options{Dir: dir, Name: "rows", Reaches: x.reaches, Durability: x.durable}, 0)
			if x.corrupt {
				if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), path) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil || len(got) != 9 {
				t.Fatalf("%d frames, %v", len(got), err)
			}
			if x.durable == Always && w.Epoch() != epoch {
				t.Error("a new epoch, although nobody had seen more")
			}
			if x.durable != Always && (w.Epoch() == epoch || w.Next() <= 10) {
				t.Error("the old epoch goes on, although frame 10 had been seen")
			}
			w.Close()
		})
	}
}

func TestFailedSyncDropsTheGroup(t *testing.T) {
	fs := vfstest.New(3)
	o := Options{FS: fs, Dir: "d", Name: "rows"}
	w, _, err := collect(o, 0)
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, w, "kept")
	r, err := OpenReader(fs, "d", "rows", 0)
	if err != nil {
		t.Fatal(err)
	}
	fs.Fault = func(op, _ string) error {
		if op == "sync" {
			return syscall.EIO
		}
		return nil
	}
	if _, err := w.Append([]byte("lost")); err != nil {
		t.Fatal(err)
	}
	if err := w.Sync(); !errors.Is(err, ErrDropped) || !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if _, err := w.Append([]byte("no disk")); err == nil {
		t.Fatal("a new segment was made on a disk that cannot sync")
	}
	fs.Fault = nil
	lsn := mustAppend(t, w, "after")
	if lsn <= 2 {
		t.Errorf("lsn %d was used before", lsn)
	}
	var seen []string
	for {
		_, p, ok, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		seen = append(seen, string(p))
	}
	if fmt.Sprint(seen) != "[kept after]" {
		t.Errorf("a reader saw %q", seen)
	}
	w.Close()
	_, got, err := collect(o, 0)
	if err != nil || len(got) != 2 || got[1] != "kept" || got[lsn] != "after" {
		t.Errorf("%v, %v", got, err)
	}
}

// TestDroppedStaysDropped: the process is killed between a failed sync and the next segment. The frames lie in the file, whole.
func TestDroppedStaysDropped(t *testing.T) {
	fs := vfstest.New(5)
	o := Options{FS: fs, Dir: "d", Name: "rows"}
	w, _, err := collect(o, 0)
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, w, "kept")
	fs.Fault = func(op, _ string) error {
		if op == "sync" {
			return syscall.EIO
		}
		return nil
	}
	lsn, err := w.Append([]byte("lost"))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Sync(); !errors.Is(err, ErrDropped) {
		t.Fatal(err)
	}
	fs.Fault = nil
	w, got, err := collect(o, 0)
	if err != nil || len(got) != 1 || w.Next() <= lsn {
		t.Errorf("%v, %v, goes on at %d", got, err, w.Next())
	}
}

// TestKillThenPowerCut: frames that a killed process had not synced are synced by the next one before its segment builds on them.
func TestKillThenPowerCut(t *testing.T) {
	for ops := 1; ; ops++ {
		fs := vfstest.New(uint64(ops))
		o := Options{FS: fs, Dir: "d", Name: "rows"}
		w, _, err := collect(o, 0)
		if err != nil {
			t.Fatal(err)
		}
		mustAppend(t, w, "one")
		if _, err := w.Append([]byte("two")); err != nil {
			t.Fatal(err)
		}
		left := ops
		fs.Fault = func(string, string) error {
			if left--; left < 0 {
				return errEnded
			}
			return nil
		}
		_, _, ended := collect(o, 0)
		o.FS = fs.Crash()
		if _, got, err := collect(o, 0); err != nil || got[1] != "one" || ended == nil && got[2] != "two" {
			t.Errorf("power cut after %d operations: %v, %v", ops, got, err)
		}
		if ended == nil {
			return
		}
	}
}

// TestOpenReaderBesideWriter: whatever the writer is about, a reader that opens finds a log it can read.
func TestOpenReaderBesideWriter(t *testing.T) {
	dir := t.TempDir()
	w, _, err := collect(Options{Dir: dir, Name: "rows", SegmentMax: headerSize + 1}, 0) // a segment for each frame
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		for range 300 {
			_, err := w.Append([]byte("x"))
			if err == nil {
				err = w.Sync()
			}
			if err == nil {
				err = w.Drop(w.Committed())
			}
			if err != nil {
				done <- err
				return
			}
		}
		done <- w.Close()
	}()
	for {
		r, err := OpenReader(vfs.OS, dir, "rows", w.Committed()+1)
		if err == nil {
			_, _, _, err = r.Next()
			r.Close()
		}
		if err != nil && !errors.Is(err, ErrGone) {
			t.Errorf("a reader beside the writer: %v", err)
		}
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			return
		default:
		}
	}
}

func TestFullDisk(t *testing.T) {
	fs := vfstest.New(4)
	w, _, err := collect(Options{FS: fs, Dir: "d", Name: "rows"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, w, "one")
	full := true
	fs.Fault = func(op, _ string) error {
		if full && (op == "write" || op == "allocate") {
			return syscall.ENOSPC
		}
		return nil
	}
	for range 3 {
		if _, err := w.Append(bytes.Repeat([]byte("x"), 1000)); !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	full = false
	mustAppend(t, w, "two")
	w.Close()
	_, got, err := collect(Options{FS: fs, Dir: "d", Name: "rows"}, 0)
	if err != nil || len(got) != 2 {
		t.Errorf("%v, %v", got, err)
	}
}

func TestReader(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenReader(vfs.OS, dir, "rows", 0); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	o := Options{Dir: dir, Name: "rows", SegmentMax: 8192}
	w, _, err := collect(o, 0)
	if err != nil {
		t.Fatal(err)
	}
	r, err := OpenReader(vfs.OS, dir, "rows", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	want := uint64(1)
	drain := func() {
		t.Helper()
		for {
			lsn, p, ok, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				return
			}
			if lsn != want || string(p) != strings.Repeat(fmt.Sprint(lsn), 100) {
				t.Fatalf("lsn %d, want %d: %q", lsn, want, p)
			}
			want++
		}
	}
	for i := range uint64(200) {
		if _, err := w.Append([]byte(strings.Repeat(fmt.Sprint(i+1), 100))); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			if err := w.Sync(); err != nil {
				t.Fatal(err)
			}
			drain()
		}
	}
	w.Close()
	if w, _, err = collect(o, 0); err != nil { // a restart of the writer
		t.Fatal(err)
	}
	drain()
	if want != 201 || r.Committed() != 200 {
		t.Errorf("stands before %d, committed %d", want, r.Committed())
	}
	late, err := OpenReader(vfs.OS, dir, "rows", 150)
	if err != nil {
		t.Fatal(err)
	}
	if lsn, _, ok, err := late.Next(); lsn != 150 || !ok || err != nil {
		t.Errorf("%d, %v, %v", lsn, ok, err)
	}
	late.Close()
	behind, err := OpenReader(vfs.OS, dir, "rows", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer behind.Close()
	if err := w.Drop(180); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenReader(vfs.OS, dir, "rows", 1); !errors.Is(err, ErrGone) {
		t.Errorf("frames that were dropped: %v", err)
	}
	w.Close()
	if w, _, err = collect(o, 0); err != nil {
		t.Errorf("a log whose beginning was dropped, from whatever there is: %v", err)
	}
	if _, _, err := collect(o, 1); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a log whose beginning was dropped, from 1 on: %v", err)
	}
	for {
		_, _, ok, err := behind.Next()
		if errors.Is(err, ErrGone) {
			break
		}
		if err != nil || !ok {
			t.Fatalf("a reader that is behind: %v, %v", ok, err)
		}
	}
	if _, got, err := collect(Options{Dir: dir, Name: "other"}, 7); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
	w.Close()
}

// Scan also gives what a writer that is gone had written and not committed.
func TestScan(t *testing.T) {
	o := Options{Dir: t.TempDir(), Name: "rows", SegmentMax: 8192}
	w, _, err := collect(o, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var want []string
	for i := range 20 { // some segments
		p := fmt.Sprint(i, strings.Repeat("x", 1000))
		mustAppend(t, w, p)
		want = append(want, p)
	}
	if _, err := w.Append([]byte("not committed")); err != nil {
		t.Fatal(err)
	}
	want = append(want, "not committed")
	for _, from := range []uint64{1, 7, 20, 21, 22} {
		var got []string
		err := Scan(vfs.OS, o.Dir, o.Name, from, func(lsn uint64, payload []byte) error {
			if lsn != from+uint64(len(got)) {
				t.Errorf("from %d: lsn %d after %d frames", from, lsn, len(got))
			}
			got = append(got, string(payload))
			return nil
		})
		if err != nil || !slices.Equal(got, want[from-1:]) {
			t.Errorf("from %d: %d frames, %v", from, len(got), err)
		}
	}
}

func TestForeignFiles(t *testing.T) {
	dir := t.TempDir()
	w, _, err := collect(Options{Dir: dir, Name: "rows"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, w, "x")
	w.Close()
	path := filepath.Join(dir, segmentName("rows", 1))
	b, _ := os.ReadFile(path)
	binary.BigEndian.PutUint16(b[8:], 9)
	binary.BigEndian.PutUint16(b[10:], 9)
	os.WriteFile(path, b, 0o600)
	if _, _, err := collect(Options{Dir: dir, Name: "rows"}, 0); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "9") {
		t.Errorf("a newer format: %v", err)
	}
}

func TestLive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "live")
	l, err := CreateLive(vfs.OS, path, "build 1")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r, err := OpenLive(vfs.OS, path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l.Beat(42)
	one, two := [16]byte{1}, [16]byte{2}
	l.SetTaken(TakenState, one, 7)
	if r.Pid() != os.Getpid() || r.Build() != "build 1" || r.BeatMs() != 42 || r.Taken(TakenState, one) != 7 || r.Taken(TakenState, two) != 0 || r.Taken(TakenRequests, one) != 0 {
		t.Error(r.Pid(), r.Build(), r.BeatMs(), r.Taken(TakenState, one))
	}
	woken := make(chan struct{})
	seen := r.Bell()
	go func() { r.Wait(seen, time.Minute); close(woken) }()
	l.Ring()
	select {
	case <-woken:
	case <-time.After(30 * time.Second):
		t.Error("the bell was not heard")
	}
	r.Wait(r.Bell(), time.Millisecond) // a timeout ends it too
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	if Locked(path) {
		t.Error("a lock that is not there is held")
	}
	l, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	var held *HeldError
	if _, err := Lock(path); !errors.As(err, &held) || held.Pid != os.Getpid() {
		t.Errorf("%v", err)
	}
	if !Locked(path) {
		t.Error("is not held")
	}
	l.Close()
	if Locked(path) {
		t.Error("is still held")
	}
	if l, err = Lock(path); err != nil {
		t.Fatal(err)
	}
	l.Close()
}
