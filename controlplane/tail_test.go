package controlplane

import (
	"math/rand/v2"
	"testing"
)

// A set of rows says what a map would, whatever is put and removed in whatever order.
func TestTailSet(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	var s tailSet
	model := map[[32]byte]*tailRow{}
	for step := range 10_000 {
		hash := [32]byte{byte(random.IntN(4))}
		if random.IntN(2) == 0 {
			r := &tailRow{}
			r.row.Hash = hash
			s.put(r)
			model[hash] = r
		} else {
			s.remove(hash)
			delete(model, hash)
		}
		if (s.one == nil) != (len(model) == 0) {
			t.Fatalf("step %d: one is %v, and there are %d", step, s.one, len(model))
		}
		n := 0
		for r := range s.all() {
			if n++; model[r.row.Hash] != r {
				t.Fatalf("step %d: a row that was replaced or removed is there", step)
			}
		}
		if n != len(model) {
			t.Fatalf("step %d: %d rows of %d", step, n, len(model))
		}
		for h := range byte(4) {
			if s.of([32]byte{h}) != model[[32]byte{h}] {
				t.Fatalf("step %d: another row of %d", step, h)
			}
		}
	}
}
