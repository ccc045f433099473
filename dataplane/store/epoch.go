package store

import "sync/atomic"

// When may a freed block be used again? When no loop can still be reading it. Each loop has a word of its own:
//
//	Enter  word = the current epoch      (then lookups: index, block)
//	Leave  word = 0
//
// and the committer, after it has published what replaces a block:
//
//	retire  note (block, current epoch), current epoch++
//	reclaim oldest word that is not 0 > noted epoch, or no such word: the block is free
//
// Why that holds: all of these are sequentially consistent. A loop that could still find the old block loaded the index
// before the publish, hence stored its word before that, with an epoch not above the noted one, and the word stands until
// Leave. A loop whose word is stored after the committer looked at it loads the index after the publish and finds the new
// block. Lost design: reference counts in the blocks, two contended writes for each query.
type Reader struct {
	word    atomic.Uint64
	_       [56]byte // one cache line a loop
	current *atomic.Uint64
	_       [56]byte
}

// Enter begins a batch of lookups.
func (r *Reader) Enter() { r.word.Store(r.current.Load()) }

// Leave ends it: nothing that Lookup returned may be used any more.
func (r *Reader) Leave() { r.word.Store(0) }

type retired struct {
	epoch uint64
	block ref
	class uint8
}

// limbo holds retired blocks in order. The committer's alone, but for current and readers.
type limbo struct {
	current atomic.Uint64
	readers atomic.Pointer[[]*Reader]
	queue   []retired
	head    int
}

func (l *limbo) retire(r ref, class uint8) {
	l.queue = append(l.queue, retired{l.current.Load(), r, class})
}

// reclaim gives the blocks that nobody can see any more to free. Call it after publishing.
func (l *limbo) reclaim(free func(r ref, class int)) {
	if l.head == len(l.queue) {
		return
	}
	l.current.Add(1)
	oldest := ^uint64(0)
	for _, r := range *l.readers.Load() {
		if w := r.word.Load(); w != 0 {
			oldest = min(oldest, w)
		}
	}
	for l.head < len(l.queue) && l.queue[l.head].epoch < oldest {
		free(l.queue[l.head].block, int(l.queue[l.head].class))
		l.head++
	}
	switch {
	case l.head == len(l.queue):
		l.queue, l.head = l.queue[:0], 0
	case l.head > 1024 && l.head > len(l.queue)/2:
		l.queue, l.head = append(l.queue[:0], l.queue[l.head:]...), 0
	}
}
