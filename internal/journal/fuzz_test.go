package journal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/dnsmesh/dmpd/internal/vfs"
	"github.com/dnsmesh/dmpd/internal/vfs/vfstest"
)

// FuzzFrame: what reads as a frame is written again as the same bytes, and a frame with one byte more or less of payload is another.
func FuzzFrame(f *testing.F) {
	f.Add(appendFrame(nil, 0, 1, 0, []byte("payload")))
	f.Add(appendFrame(appendFrame(nil, 0, 7, 6, nil), 0, 8, 7, bytes.Repeat([]byte{0}, 100)))
	f.Add(make([]byte, 64))
	f.Fuzz(func(t *testing.T, b []byte) {
		lsn, synced, payload, size := readFrame(b, 0)
		if size == 0 {
			if payload != nil || lsn != 0 || synced != 0 {
				t.Fatal("an error that gives something")
			}
			return
		}
		again := appendFrame(nil, 0, lsn, synced, payload)
		if len(again) != size || !bytes.Equal(again[:frameHeader+len(payload)], b[:frameHeader+len(payload)]) {
			t.Fatalf("%x reads as a frame that is written as %x", b[:size], again)
		}
	})
}

// FuzzSegment: any file in place of a segment gives an error that names it, or frames whose lsns follow each other; a reader agrees with
// recovery as far as the header says that something is committed.
func FuzzSegment(f *testing.F) {
	fs := vfstest.New(1)
	w, err := Open(Options{FS: fs, Dir: "d", Name: "rows"}, 0, nil)
	if err != nil {
		f.Fatal(err)
	}
	for i := range 3 {
		w.Append(fmt.Appendf(nil, "frame %d", i))
		w.Sync()
	}
	file, err := fs.OpenFile(segmentPath("d", "rows", 1), os.O_RDONLY, 0)
	if err != nil {
		f.Fatal(err)
	}
	good := make([]byte, headerSize+200)
	file.ReadAt(good, 0)
	f.Add(good)
	f.Add(good[:headerSize])
	f.Add(good[:100])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		dir := t.TempDir()
		path := segmentPath(dir, "rows", 1)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		// A reader first, since recovery writes.
		seen := map[uint64]string{}
		if r, err := OpenReader(vfs.OS, dir, "rows", 0); err == nil {
			for range 1000 {
				lsn, p, ok, err := r.Next()
				if err != nil || !ok {
					break
				}
				seen[lsn] = string(p)
			}
			r.Close()
		}
		last := uint64(0)
		got := map[uint64]string{}
		w, err := Open(Options{Dir: dir, Name: "rows"}, 0, func(lsn uint64, p []byte) error {
			if last != 0 && lsn != last+1 {
				t.Fatalf("lsn %d after %d", lsn, last)
			}
			last = lsn
			got[lsn] = string(p)
			return nil
		})
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrFormat) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		defer w.Close()
		for lsn, p := range seen {
			if got[lsn] != p {
				t.Fatalf("a reader saw frame %d as %q, recovery as %q", lsn, p, got[lsn])
			}
		}
		if lsn, err := w.Append([]byte("after")); err != nil || lsn <= last {
			t.Fatalf("frame %d after %d, %v", lsn, last, err)
		}
	})
}

// FuzzJournal: a program of appends, syncs, seals, failing calls and crashes loses no acknowledged frame and invents none.
func FuzzJournal(f *testing.F) {
	f.Add(uint64(1), []byte{1, 1, 2, 1, 4, 1, 2, 3, 1, 2, 5, 1, 2, 4})
	f.Add(uint64(538), []byte("append sync seal crash append sync"))
	f.Fuzz(func(t *testing.T, seed uint64, program []byte) {
		if len(program) > 200 {
			return
		}
		fs := vfstest.New(seed)
		o := Options{FS: fs, Dir: "d", Name: "rows", SegmentMax: 8192}
		w, _, err := collect(o, 0)
		if err != nil {
			t.Fatal(err)
		}
		appended, acked := map[uint64]string{}, map[uint64]string{}
		var group []uint64
		for i, op := range program {
			switch op % 7 {
			case 0, 1, 2:
				p := fmt.Sprint(i, " ", string(bytes.Repeat([]byte{op}, int(op)*4)))
				lsn, err := w.Append([]byte(p))
				if err != nil {
					group = nil
					continue
				}
				appended[lsn] = p
				group = append(group, lsn)
			case 3:
				if w.Sync() == nil {
					for _, lsn := range group {
						if lsn <= w.Committed() {
							acked[lsn] = appended[lsn]
						}
					}
				}
				group = nil
			case 4:
				if w.Seal() == nil {
					for _, lsn := range group {
						if lsn <= w.Committed() {
							acked[lsn] = appended[lsn]
						}
					}
				}
				group = nil
			case 5:
				n := int(op) / 7 % 5
				fs.Fault = func(what, _ string) error {
					if what == "open" || what == "map" {
						return nil
					}
					if n--; n == 0 {
						return syscall.EIO
					}
					return nil
				}
			case 6:
				fs.Fault = nil
				fs = fs.Crash()
				o.FS = fs
				var got map[uint64]string
				if w, got, err = collect(o, 0); err != nil {
					t.Fatal(err)
				}
				for lsn, p := range acked {
					if got[lsn] != p {
						t.Fatalf("acknowledged frame %d is %q", lsn, got[lsn])
					}
				}
				for lsn, p := range got {
					if appended[lsn] != p {
						t.Fatalf("frame %d was never appended so", lsn)
					}
					acked[lsn] = p
				}
				group = nil
			}
		}
	})
}

// FuzzLive: any file in place of a live page is an error, or one that can be asked everything.
func FuzzLive(f *testing.F) {
	page := make([]byte, liveSize)
	copy(page, liveMagic)
	f.Add(page)
	f.Add(page[:100])
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "live")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := OpenLive(vfs.OS, path)
		if err != nil {
			if l != nil {
				t.Fatal("an error that gives something")
			}
			return
		}
		defer l.Close()
		l.Pid()
		l.BeatMs()
		l.Build()
		l.Bell()
		l.Taken(TakenState, [16]byte{1})
	})
}
