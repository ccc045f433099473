package dataplane

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// pool runs the checks of claims' signatures beside the loops: one takes as long as a dozen answers, and a flood of forged ones must not
// hold up a query. It is bounded in workers and in what waits; what does not fit is answered SERVFAIL at once.
type pool struct {
	jobs    chan func()
	workers sync.WaitGroup
	closed  atomic.Bool
}

// claimQueue is what may wait for each worker: some 60 ms of work.
const claimQueue = 1024

func newPool(workers int) *pool {
	if workers <= 0 {
		workers = max(1, runtime.NumCPU()/2)
	}
	p := &pool{jobs: make(chan func(), workers*claimQueue)}
	for range workers {
		p.workers.Go(func() {
			for job := range p.jobs {
				job()
			}
		})
	}
	return p
}

// submit hands a job over; false if too many wait. Loops call it, and they have stopped before close.
func (p *pool) submit(job func()) bool {
	if p.closed.Load() {
		return false
	}
	select {
	case p.jobs <- job:
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
