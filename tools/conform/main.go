// Command conform asks a node, Knot and BIND the same 5,000 questions about the same generated zone, sends them the same broken messages
// and the same UPDATEs, and compares what comes back. An answer must be that of Knot or of BIND, or be one of the stated differences
// (differences.go), each of which must turn up. It starts all three itself, on loopback addresses of their own, and ends them.
//
// The other half of docs/conformance.md is conformance_test.go: every test that the table names exists.
package main

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
)

const (
	questions    = 5000
	workers      = 8  // sockets for each server: enough to keep two cores busy
	failuresMost = 25 // printed in full
)

func main() {
	bin := flag.String("bin", "bin", "folder of dmpd")
	seed := flag.Uint64("seed", 1, "of the zone and the questions")
	verbose := flag.Bool("v", false, "print every question that a difference explains")
	flag.Parse()
	fmt.Printf("== the same zone and questions to dmpd, Knot and BIND (seed %d)\n", *seed)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	var r report
	err := run(*bin, *seed, *verbose, stop, &r)
	if err != nil {
		fmt.Println("FAIL  ", err)
		r.failed++
	}
	fmt.Printf("%d passed, %d failed\n", r.passed, r.failed)
	if r.failed > 0 || r.passed == 0 {
		os.Exit(1)
	}
}

type report struct{ passed, failed int }

// judge counts one comparison.
func (r *report) judge(holds bool, format string, args ...any) {
	if holds {
		r.passed++
		return
	}
	r.failed++
	if r.failed <= failuresMost {
		fmt.Printf("FAIL  "+format+"\n", args...)
	}
}

var errStopped = errors.New("stopped from outside")

func run(bin string, seed uint64, verbose bool, stop <-chan os.Signal, r *report) error {
	dir, err := os.MkdirTemp("", "dmp-conform-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	rng := rand.New(rand.NewPCG(seed, 0))
	zone := makeZone(rng)
	servers, err := start(bin, dir, zone)
	defer func() {
		for _, s := range servers {
			if err := s.end(); err != nil {
				r.judge(false, "%v", err)
			}
		}
	}()
	if err != nil {
		return err
	}
	fmt.Printf("ok    dmpd, Knot and BIND answer, %d names and %d values each\n", len(zone.names), zone.count)

	qs := makeQuestions(rng, zone, questions)
	used := map[*difference]int{}
	if err := ask(servers, qs, stop); err != nil {
		return err
	}
	judge(qs, used, verbose, r)
	fmt.Printf("ok    %d questions asked of all three\n", len(qs))

	broken := makeBroken()
	if err := ask(servers, broken, stop); err != nil {
		return err
	}
	judge(broken, used, verbose, r)
	fmt.Printf("ok    %d broken messages sent to all three\n", len(broken))

	n, err := compareUpdates(servers, used, verbose, r)
	if err != nil {
		return err
	}
	fmt.Printf("ok    %d UPDATEs sent to all three, and what they left compared\n", n)

	fmt.Println("Differences, each with the number of messages that showed it:")
	for i := range differences {
		d := &differences[i]
		fmt.Printf("  %5d  %s (%s)\n", used[d], d.what, d.why)
		r.judge(used[d] > 0, "no message shows the difference %q: strike it from the table", d.what)
	}
	return nil
}

// judge compares the answers to each question.
func judge(qs []*question, used map[*difference]int, verbose bool, r *report) {
	for _, q := range qs {
		ours, knot, bind := q.got[node], q.got[knotd], q.got[named]
		if ours == knot || ours == bind {
			r.judge(q.exact == "", "%s: %s", q, q.exact)
			continue
		}
		d := explain(q)
		if d == nil {
			r.judge(false, "%s\n      dmpd %s\n      Knot %s\n      BIND %s", q, ours, knot, bind)
			continue
		}
		used[d]++
		if verbose {
			fmt.Printf("%s: %s\n      dmpd %s\n      Knot %s\n      BIND %s\n", d.what, q, ours, knot, bind)
		}
		r.judge(q.exact == "", "%s: %s", q, q.exact)
	}
}

// ask sends every question to every server and keeps what came back.
func ask(servers []*server, qs []*question, stop <-chan os.Signal) error {
	var wait sync.WaitGroup
	var failed atomic.Pointer[error]
	for _, s := range servers {
		var next atomic.Int64
		for range workers {
			wait.Go(func() {
				c := &conn{server: s}
				defer c.close()
				for failed.Load() == nil {
					i := int(next.Add(1)) - 1
					if i >= len(qs) {
						return
					}
					got, exact, err := c.ask(qs[i])
					if err != nil {
						err = fmt.Errorf("%s: %s: %w", s.name, qs[i], err)
						failed.Store(&err)
						return
					}
					qs[i].got[s.kind] = got
					if s.kind == node {
						qs[i].exact = exact
					}
				}
			})
		}
	}
	done := make(chan struct{})
	go func() { wait.Wait(); close(done) }()
	select {
	case <-done:
	case <-stop:
		err := errStopped
		failed.Store(&err)
		<-done
	}
	if p := failed.Load(); p != nil {
		return *p
	}
	return nil
}
