package journal

import (
	"bytes"
	"encoding/binary"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/dnsmesh/dmpd/internal/vfs"
)

var update = flag.Bool("update", false, "write the golden files anew")

// goldenSegment is what testdata holds: a sealed segment of three frames, the last of which was dropped.
func goldenSegment() []byte {
	h := header{epoch: [16]byte{0xE0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, first: 7, prevLast: 5}
	b := h.encode()
	b = appendFrame(b, h.seed, 7, 5, []byte("seven"))
	b = appendFrame(b, h.seed, 8, 7, nil)
	end := len(b)
	b = appendFrame(b, h.seed, 9, 8, []byte("a group that was dropped"))
	for off, v := range map[int]uint64{offCommitted: 8, offEnd: uint64(end), offSealed: sealedBad} {
		binary.NativeEndian.PutUint64(b[off:], v)
	}
	return b
}

// TestGoldenSegment: a segment of format 1 is read and written as it was when the format was released.
func TestGoldenSegment(t *testing.T) {
	golden := filepath.Join("testdata", "rows-v1.log")
	if *update {
		if err := os.WriteFile(golden, goldenSegment(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, goldenSegment()) {
		t.Error("format 1 is written otherwise than it was")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, segmentName("rows", 7)), b, 0o600); err != nil {
		t.Fatal(err)
	}
	w, got, err := collect(Options{Dir: dir, Name: "rows"}, 6)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[7] != "seven" || got[8] != "" || w.Next() != 10 || w.Committed() != 8 || w.Epoch()[0] != 0xE0 {
		t.Errorf("replays %v, goes on at %d", got, w.Next())
	}
	mustAppend(t, w, "ten")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := OpenReader(vfs.OS, dir, "rows", 7)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, want := range []string{"seven", "", "ten"} {
		if _, p, ok, err := r.Next(); string(p) != want || !ok || err != nil {
			t.Errorf("a reader gives %q, %v, %v instead of %q", p, ok, err, want)
		}
	}
}

// TestForgedFrame: what a stranger puts into a value is no evidence, even if it looks like a frame of another log.
func TestForgedFrame(t *testing.T) {
	dir := t.TempDir()
	o := Options{Dir: dir, Name: "rows"}
	w, _, err := collect(o, 0)
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, w, "one")
	forged := appendFrame(nil, 0, 3, 1000, []byte("believe me, 1000 frames were durable"))
	if _, err := w.Append(append(forged, "the end"...)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, segmentName("rows", 1))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// The power goes while the second frame is written: its last sector is missing, and w is forgotten.
	if _, err := f.WriteAt([]byte("XXX"), int64(headerSize+frameSize(3)+frameHeader+len(forged))); err != nil {
		t.Fatal(err)
	}
	again, got, err := collect(o, 0)
	if err != nil || len(got) != 1 {
		t.Fatalf("%v, %v", got, err)
	}
	again.Close()
	w.closeFiles()
}
