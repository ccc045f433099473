package bench

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/miekg/dns"
)

// company is what a server has to do beside queries.
type company struct {
	name string
	qps  float64
	msgs func(z Zone) (Source, error) // nil: claims
}

// companyMessages are made before the run and sent again and again: an add that is repeated lengthens the record's life, which is a
// write as well; a claim that is known costs no check, so that of these there are as many as are sent.
const companyMessages = 20_000

var companies = []company{
	{name: "nothing"},
	{"1,000 UPDATEs / s", 1000, func(z Zone) (Source, error) { return besideUpdates(z) }},
	{"10,000 UPDATEs / s", 10_000, func(z Zone) (Source, error) { return besideUpdates(z) }},
	{"1,000 claims / s", 1000, nil},
	{"5,000 claims / s", 5000, nil},
}

func besideUpdates(z Zone) (Source, error) {
	u, err := NewUpdates(z, uint64(z.Names)+1<<40, companyMessages)
	if err != nil {
		return nil, err
	}
	return repeated{u}, nil
}

// repeated sends the same updates round and round.
type repeated struct{ u *Updates }

func (r repeated) Message(k uint32) []byte {
	b := r.u.Message(k % companyMessages)
	binary.BigEndian.PutUint16(b, uint16(k)) // the signature is over the original id, which stands in the TSIG record
	return b
}

func (r repeated) Check(k uint32, reply []byte) error { return r.u.Check(k, reply) }

// shedding takes a SERVFAIL for an answer and counts it: on cores that are shared, a burst after a stall can be more than a server queues.
type shedding struct {
	Source
	shed *int
}

func (s shedding) Check(k uint32, reply []byte) error {
	if reply[3]&0xF == dns.RcodeServerFailure {
		*s.shed++
		return nil
	}
	return s.Source.Check(k, reply)
}

// besideQPS is the rate of the queries whose latency is measured.
const besideQPS = 10_000

// beside measures the latency of queries while one server has nothing, then something else to do, round after round.
func (s *Suite) beside(sc *scenario, f *field, c *contender, dir string) error {
	server, err := c.launch(f, dir, sc.workers)
	if err != nil {
		return err
	}
	defer server.Stop()
	fmt.Fprintf(s.Out, "\n### %s (`%s`)\n\n%s\n\n", sc.title, sc.name, sc.note)
	fmt.Fprintf(s.Out, "| beside | p50 ms | to nothing | p99 | to nothing | lost of sent | writes / s | server busy |\n|---|---|---|---|---|---|---|---|\n")
	type row struct {
		p50, p99, rate, busy []float64
		lost, sent           int
	}
	rows := make([]row, len(companies))
	for round := range s.Rounds {
		for i, with := range companies {
			r, writes, err := s.accompanied(sc, f, server, with, uint64(round)<<32)
			if err != nil {
				return fmt.Errorf("beside %s: %w", with.name, err)
			}
			at := &rows[i]
			at.p50 = append(at.p50, r.Latency.Quantile(0.5).Seconds()*1000)
			at.p99 = append(at.p99, r.Latency.Quantile(0.99).Seconds()*1000)
			at.rate = append(at.rate, writes)
			at.busy = append(at.busy, 100*r.ServerCPU.Seconds()/r.Elapsed.Seconds())
			at.lost, at.sent = at.lost+r.Lost, at.sent+r.Sent
			fmt.Fprintf(s.Progress, "  round %d of %d: beside %s: p50 %.3g ms, p99 %.3g ms\n", round+1, s.Rounds, with.name, at.p50[round], at.p99[round])
		}
	}
	for i, with := range companies {
		r, idle := rows[i], rows[0]
		fmt.Fprintf(s.Out, "| %s | %s | %.2f | %s | %.2f | %d of %d | %.0f | %.0f %% |\n", with.name, spread(r.p50, 1), median(r.p50)/median(idle.p50),
			spread(r.p99, 1), median(r.p99)/median(idle.p99), r.lost, r.sent, median(r.rate), median(r.busy))
	}
	return os.RemoveAll(dir)
}

// accompanied is one round; writes are those done a second meanwhile.
func (s *Suite) accompanied(sc *scenario, f *field, server *Server, with company, seed uint64) (r Result, writes float64, err error) {
	type end struct {
		r   Result
		err error
	}
	ended := make(chan end, 1)
	const ahead = 300 * time.Millisecond
	during := s.round(sc)
	if with.qps > 0 {
		l := Load{Target: server.Addr, QPS: with.qps, Sockets: 8, Duration: during + 2*ahead}
		var src Source
		if with.msgs != nil {
			src, err = with.msgs(f.zone)
		} else {
			l.From, l.Spread, l.Sockets = netip.MustParseAddr("127.4.0.1"), true, 64
			src, err = NewClaims(f.zone, seed+uint64(with.qps)<<20, int(with.qps*l.Duration.Seconds())+1, false)
		}
		if err != nil {
			return r, 0, err
		}
		go func() {
			runtime.LockOSThread()
			shed := 0
			r, err := l.Run(shedding{src, &shed})
			r.Answered -= shed
			ended <- end{r, err}
		}()
		time.Sleep(ahead)
	}
	r, err = server.timed(func() (Result, error) {
		return Load{Target: server.Addr, QPS: besideQPS, Sockets: 8, Duration: during}.Run(NewMix(f.zone, sc.misses, seed))
	})
	if with.qps > 0 {
		e := <-ended
		if err == nil {
			err = e.err
		}
		if err == nil && e.r.Wrong > 0 {
			err = fmt.Errorf("%w: %v", ErrWrong, e.r.FirstWrong)
		}
		writes = e.r.Rate()
	}
	if err == nil && r.Wrong > 0 {
		err = fmt.Errorf("%w: %v", ErrWrong, r.FirstWrong)
	}
	return r, writes, err
}
