// dmp-bench loads DNS servers: by hand one that runs anywhere, with `suite` those of `make bench`.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/dnsmesh/dmpd/bench"
	"github.com/dnsmesh/dmpd/internal/config"
)

const usage = `dmp-bench loads a DNS server and says what it answered.

  dmp-bench --target HOST:PORT [--scenario udp|nxdomain|tcp] [--qps N] [--duration D] [--json]
  dmp-bench suite [--quick] [--scenario S,S] [--peers nsd,knot,bind] [--rounds N] [--names N] [--flood D] [--duration D] [--write BENCHMARKS.md]
  dmp-bench draw [--write BENCHMARKS.md]          makes charts and tables anew from the JSON beside the file
  dmp-bench echo --listen 127.0.0.1:PORT --size BYTES
  dmp-bench master --zone ZONE --names N          prints the zone file that the queries are made for

Without --qps the loop is closed: --window queries are under way at any time. With it the loop is open, and a latency counts
from when the query was due.

Example: dmp-bench --target 127.0.0.1:5353 --zone mesh.test --names 0 --scenario nxdomain --duration 5s

Flags:
`

func main() {
	if err := run(os.Args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "dmp-bench:", strings.TrimPrefix(err.Error(), "bench: "))
		os.Exit(1)
	}
}

func run(args []string) error {
	verb := ""
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		verb, args = args[0], args[1:]
	}
	switch verb {
	case "":
		return load(args)
	case "suite":
		return suite(args)
	case "draw":
		return draw(args)
	case "echo":
		return echo(args)
	case "master":
		return master(args)
	}
	return fmt.Errorf("there is no %q; see dmp-bench --help", verb)
}

func flags(name string) *flag.FlagSet {
	f := flag.NewFlagSet("dmp-bench "+name, flag.ContinueOnError)
	f.Usage = func() {
		fmt.Fprint(f.Output(), usage)
		f.PrintDefaults()
	}
	return f
}

func zoneFlags(f *flag.FlagSet) *bench.Zone {
	z := &bench.Zone{}
	f.StringVar(&z.Name, "zone", "mesh.test", "zone")
	f.IntVar(&z.Names, "names", 100_000, "names in the zone, as the verb master writes it")
	return z
}

func load(args []string) error {
	f := flags("")
	target := f.String("target", "", "address and port of the server")
	scenario := f.String("scenario", "udp", "udp: nine of ten names exist; nxdomain: none; tcp: as udp, over TCP")
	l := bench.Load{}
	f.Float64Var(&l.QPS, "qps", 0, "queries a second; 0: closed loop")
	f.DurationVar(&l.Duration, "duration", 5*time.Second, "how long")
	f.IntVar(&l.Window, "window", 256, "queries under way in a closed loop")
	f.IntVar(&l.Sockets, "sockets", 8, "client addresses, or TCP connections")
	asJSON := f.Bool("json", false, "print JSON")
	version := f.Bool("version", false, "print the version")
	z := zoneFlags(f)
	if err := f.Parse(args); err != nil {
		return err
	}
	if *version {
		fmt.Println("dmp-bench", config.BuildID())
		return nil
	}
	var err error
	if l.Target, err = netip.ParseAddrPort(*target); err != nil {
		return fmt.Errorf("--target wants an address and a port, as 127.0.0.1:5353: %w", err)
	}
	misses := 10
	switch {
	case *scenario == "nxdomain":
		misses = 100
	case *scenario != "udp" && *scenario != "tcp":
		return fmt.Errorf("there is no scenario %q for a server that runs already", *scenario)
	case z.Names <= 0:
		return errors.New("--names must say how many names the zone has, unless the scenario is nxdomain")
	}
	z.Names = max(z.Names, 1)
	runtime.LockOSThread()
	var r bench.Result
	if *scenario == "tcp" {
		r, err = bench.TCPLoad{Target: l.Target, Duration: l.Duration, Conns: l.Sockets, Pipeline: max(l.Window/max(l.Sockets, 1), 1)}.Run(func(i int) bench.Source { return bench.NewMix(*z, misses, uint64(i)<<20) })
	} else {
		r, err = l.Run(bench.NewMix(*z, misses, 1))
	}
	if err != nil {
		return err
	}
	ms := func(q float64) float64 { return r.Latency.Quantile(q).Seconds() * 1000 }
	if *asJSON {
		err = json.NewEncoder(os.Stdout).Encode(map[string]any{"sent": r.Sent, "answered": r.Answered, "lost": r.Lost, "wrong": r.Wrong, "seconds": r.Elapsed.Seconds(),
			"answers_per_second": r.Rate(), "p50_ms": ms(0.5), "p99_ms": ms(0.99), "p999_ms": ms(0.999), "reply_bytes": r.Bytes})
	} else {
		fmt.Printf("%d sent, %d answered, %d lost, %d wrong in %.2f s: %.0f answers a second\n", r.Sent, r.Answered, r.Lost, r.Wrong, r.Elapsed.Seconds(), r.Rate())
		if *scenario != "tcp" {
			fmt.Printf("latency: p50 %.3f ms, p99 %.3f ms, p99.9 %.3f ms\n", ms(0.5), ms(0.99), ms(0.999))
		}
	}
	if err == nil && r.Wrong > 0 {
		err = fmt.Errorf("%w, the first: %v", bench.ErrWrong, r.FirstWrong)
	}
	return err
}

func list(s string) []string {
	return strings.FieldsFunc(s, func(c rune) bool { return c == ',' || c == ' ' })
}

func suite(args []string) error {
	f := flags("suite")
	s := &bench.Suite{Progress: os.Stderr, Out: os.Stdout}
	f.BoolVar(&s.Quick, "quick", false, "a smoke test: short rounds, few names, dmpd beside the echo alone unless peers are named")
	chosen := f.String("scenario", "", "some of "+strings.Join(bench.ScenarioNames(), ", ")+"; empty: all")
	peers := f.String("peers", "", "some of nsd, nsd-mmsg, knot, bind, pdns, reference, or none; empty: those installed")
	f.IntVar(&s.Rounds, "rounds", 0, "rounds; 0: 5, or 3 if quick")
	f.IntVar(&s.Names, "names", 0, "names in the zone; 0: 100,000, or 10,000,000 in gc")
	f.DurationVar(&s.Writes, "duration", 0, "how long the scenario gc writes; 0: 10m, or 5s if quick")
	f.DurationVar(&s.Flood, "flood", 5*time.Second, "how long the scenario registration forges registrations")
	f.StringVar(&s.Bin, "bin", "bin", "folder of our binaries")
	f.StringVar(&s.Base, "base", "", "folder of another build's binaries: a node of it is loaded beside ours, as `base`")
	f.StringVar(&s.Dir, "dir", ".cache/bench", "folder for what the servers write")
	f.StringVar(&s.Command, "command", "dmp-bench suite "+strings.Join(args, " "), "what to say that was run")
	write := f.String("write", "", "file whose part between the lines `<!-- results -->` and `<!-- end -->` is replaced by the tables; charts and JSON go beside it. Tables of other scenarios or numbers of names stay")
	if err := f.Parse(args); err != nil {
		return err
	}
	s.Scenarios, s.Peers = list(*chosen), list(*peers)
	if s.Rounds == 0 {
		s.Rounds = 5
		if s.Quick {
			s.Rounds = 3
		}
	}
	if s.Writes <= 0 {
		s.Writes = 10 * time.Minute
		if s.Quick {
			s.Writes = 5 * time.Second
		}
	}
	if s.Names < 0 {
		return fmt.Errorf("--names %d: there cannot be so many", s.Names)
	}
	// Servers end with this process: Pdeathsig. A signal ends it in order.
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-interrupted
		bench.Interrupted()
		os.Exit(1)
	}()
	if err := s.Run(); err != nil {
		return err
	}
	if *write == "" {
		return nil
	}
	return s.Save(*write)
}

func draw(args []string) error {
	f := flags("draw")
	write := f.String("write", "BENCHMARKS.md", "file with the lines `<!-- results -->` and `<!-- end -->`")
	if err := f.Parse(args); err != nil {
		return err
	}
	return bench.Redraw(*write)
}

func echo(args []string) error {
	f := flags("echo")
	listen := f.String("listen", "127.0.0.1:5300", "IPv4 address and port")
	size := f.Int("size", 348, "bytes of a reply, at least the query's")
	loops := f.Int("loops", 0, "goroutines that make ordinary system calls; 0: one thread that makes raw ones")
	if err := f.Parse(args); err != nil {
		return err
	}
	at, err := netip.ParseAddrPort(*listen)
	if err != nil {
		return err
	}
	if *loops > 0 {
		return bench.Bare(at, *size, *loops)
	}
	runtime.LockOSThread()
	return bench.Echo(at, *size)
}

func master(args []string) error {
	f := flags("master")
	z := zoneFlags(f)
	if err := f.Parse(args); err != nil {
		return err
	}
	return z.Master(os.Stdout)
}
