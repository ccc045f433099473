package dataplane

import (
	"runtime/debug"
	"testing"
)

// TestPace: garbage may grow to an eighth of what is stored, within bounds, and never to less than the runtime lets it.
func TestPace(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		stored, live int64
		want         int
	}{{0, 0, 100}, {8 << 20, 4 << 20, 100}, {4 << 30, 128 << 20, 400}, {4 << 30, 4 << 20, 1000}, {1 << 40, 1, 1000}} {
		if got := paceOf(c.stored, c.live); got != c.want {
			t.Errorf("%d bytes stored, a heap of %d: %d %%, want %d", c.stored, c.live, got, c.want)
		}
	}
}

// TestPaceSet: what is set is in force, small differences are not set, and the operator's own is left alone. It is of the whole process.
func TestPaceSet(t *testing.T) {
	before := debug.SetGCPercent(gcPercent)
	defer debug.SetGCPercent(before)
	now := func() int { p := debug.SetGCPercent(gcPercent); debug.SetGCPercent(p); return p }
	t.Setenv("GOGC", "")
	h := newHeap()
	for _, c := range []struct{ set, want int }{{400, 400}, {450, 400}, {320, 400}, {500, 500}, {100, 100}} {
		if h.set(c.set); now() != c.want {
			t.Errorf("after %d: %d, want %d", c.set, now(), c.want)
		}
	}
	t.Setenv("GOGC", "50")
	h = newHeap()
	if h.set(400); now() != gcPercent {
		t.Errorf("the operator's percentage is overwritten: %d", now())
	}
}
