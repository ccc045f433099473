package bench

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// An attack runs beside a well-behaved client until stop is closed.
type attack struct {
	name string
	run  func(target netip.AddrPort, z Zone, stop <-chan struct{}) error
}

var attacks = []attack{
	{"nothing", func(netip.AddrPort, Zone, <-chan struct{}) error { return nil }},
	{"queries for random names, as many as it answers", floodNames},
	{"forged claims, twice what the signature pool can check", floodClaims},
	{"5,000 TCP connections, one byte a second each", slowloris},
}

// clientQPS is the well-behaved client's rate.
const clientQPS = 1000

// attacked measures what a well-behaved client loses meanwhile. RRL and all limits are as they are by default.
func (s *Suite) attacked(sc *scenario, f *field, c *contender, dir string) error {
	fmt.Fprintf(s.Out, "\n### %s (`%s`)\n\n%s\n\n", sc.title, sc.name, sc.note)
	fmt.Fprintf(s.Out, "| beside | lost of sent | p50 ms | p99 | server busy | memory MB |\n|---|---|---|---|---|---|\n")
	client := netip.MustParseAddr("127.1.1.1")
	for _, a := range attacks {
		server, err := c.launch(f, dir, sc.workers)
		if err != nil {
			return err
		}
		stop, ended := make(chan struct{}), make(chan error, 1)
		go func() { ended <- a.run(server.Addr, f.zone, stop) }()
		if a.name != "nothing" {
			time.Sleep(time.Second) // until it is under way
		}
		r, err := server.timed(func() (Result, error) {
			return Load{Target: server.Addr, From: client, QPS: clientQPS, Sockets: 4, Duration: s.round(sc)}.Run(NewMix(f.zone, 0, 1))
		})
		pss, files, pssErr := server.PSS()
		close(stop)
		attackErr := <-ended
		server.Stop()
		switch {
		case err != nil:
			return err
		case attackErr != nil:
			return fmt.Errorf("bench: the attack itself: %w", attackErr)
		case r.Wrong > 0:
			return fmt.Errorf("%w beside %s: %v", ErrWrong, a.name, r.FirstWrong)
		case pssErr != nil:
			pss, files = 0, 0
		}
		s.record(a.name, roundOf(&r))
		fmt.Fprintf(s.Progress, "  beside %s: lost %d of %d\n", a.name, r.Lost, r.Sent)
		fmt.Fprintf(s.Out, "| %s | %d of %d | %.3g | %.3g | %.0f %% | %d |\n", a.name, r.Lost, r.Sent, r.Latency.Quantile(0.5).Seconds()*1000, r.Latency.Quantile(0.99).Seconds()*1000,
			100*r.ServerCPU.Seconds()/r.Elapsed.Seconds(), (pss-files)>>20)
	}
	return os.RemoveAll(filepath.Join(dir))
}

// until runs a load from many addresses, again and again.
func until(stop <-chan struct{}, l Load, src Source) error {
	runtime.LockOSThread()
	l.Duration = 100 * time.Millisecond
	for i := byte(0); ; i++ {
		select {
		case <-stop:
			return nil
		default:
		}
		l.From = netip.AddrFrom4([4]byte{127, 2, i, 1})
		if _, err := l.Run(src); err != nil {
			return err
		}
	}
}

// anything accepts every reply: an attacker does not mind.
type anything struct{ Source }

func (anything) Check(uint32, []byte) error { return nil }

func floodNames(target netip.AddrPort, z Zone, stop <-chan struct{}) error {
	return until(stop, Load{Target: target, Window: 128, Sockets: 8, Patience: 50 * time.Millisecond}, anything{NewMix(z, 100, 99)})
}

// floodClaimsQPS: a check takes some 60 us, so one worker does some 16,000 a second.
const floodClaimsQPS = 32_000

func floodClaims(target netip.AddrPort, z Zone, stop <-chan struct{}) error {
	c, err := NewClaims(z, 1<<50, 20_000, true)
	if err != nil {
		return err
	}
	return until(stop, Load{Target: target, QPS: floodClaimsQPS, Sockets: 64, Spread: true, Patience: 50 * time.Millisecond}, anything{c})
}

// slowloris opens connections and sends a byte a second on each; one that the server closes is opened again.
func slowloris(target netip.AddrPort, _ Zone, stop <-chan struct{}) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil && limit.Cur < limit.Max {
		limit.Cur = limit.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	}
	const connections = 5000
	n := min(connections, int(limit.Cur)-256)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 3, byte(i>>6), byte(1+i&63))}, Timeout: time.Second}
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			var c net.Conn
			for sent := 0; ; sent++ {
				if c == nil {
					if c, _ = d.Dial("tcp4", target.String()); c != nil {
						sent = 0
					}
				}
				if c != nil {
					b := []byte{0, 40, 7, 7, 0, 0, 0, 1}
					c.SetDeadline(time.Now().Add(time.Second))
					if _, err := c.Write(b[sent%len(b):][:1]); err != nil {
						c.Close()
						c = nil
					}
				}
				select {
				case <-tick.C:
				case <-stop:
					if c != nil {
						c.Close()
					}
					return
				}
			}
		})
	}
	all.Wait()
	return nil
}
