package dataplane

import (
	"sync"
	"sync/atomic"
)

// pool runs the checks of claims' signatures beside the loops: one takes as long as a dozen answers, and a flood of forged ones must not
// hold up a query. It is bounded in workers and in what waits; what does not fit is answered SERVFAIL at once.
//
// A worker takes what waits, handOver at most, before it hands the good ones to the committer and wakes the loops for the rest: one
// by one, each claim would cost a change of threads, which is half as dear as the check. A claim that comes alone goes on at once.
type pool struct {
	jobs    chan *later
	workers sync.WaitGroup
	closed  atomic.Bool
}

const (
	// claimQueue is what may wait for each worker: some 60 ms of work.
	claimQueue = 1024

	// handOver is under two milliseconds of checks, which the first of them waits.
	handOver = 32
)

func newPool(workers int) *pool {
	p := &pool{jobs: make(chan *later, workers*claimQueue)}
	for range workers {
		p.workers.Go(p.work)
	}
	return p
}

func (p *pool) work() {
	var (
		good  []*later
		loops wakes
	)
	for l := range p.jobs {
		good = good[:0]
		for n := 1; l != nil; n++ {
			if l.check(&loops) {
				good = append(good, l)
			}
			if n == handOver {
				break
			}
			l = p.next()
		}
		submit(good, &loops)
		clear(good)
		loops.wake()
	}
}

// next is what waits; nil if nothing does.
func (p *pool) next() *later {
	select {
	case l := <-p.jobs:
		return l
	default:
		return nil
	}
}

// submit hands an UPDATE over; false if too many wait. Loops call it, and they have stopped before close.
func (p *pool) submit(l *later) bool {
	if p.closed.Load() {
		return false
	}
	select {
	case p.jobs <- l:
		return true
	default:
		return false
	}
}

// close runs what waits and ends the workers.
func (p *pool) close() {
	if p.closed.CompareAndSwap(false, true) {
		close(p.jobs)
		p.workers.Wait()
	}
}
