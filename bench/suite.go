package bench

import (
	"cmp"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Suite is a run of `make bench`.
type Suite struct {
	Quick     bool
	Scenarios []string // all if empty
	Peers     []string // all that are installed if empty; "none": none
	Rounds    int
	Names     int           // 0: what a scenario needs, mostly 100,000
	Writes    time.Duration // how long the scenario gc writes
	Flood     time.Duration // how long registrations are forged
	Bin       string        // folder of dmp-dataplane
	Base      string        // folder of another build's, which is a contender, too; none if empty
	Dir       string        // for zones, logs and state; it should be on a real disk
	Out       io.Writer
	Progress  io.Writer
	Command   string
	Tables    []*Table // what was measured

	now    *Table
	absent []string // peers that are not installed
}

// scenario is one table.
type scenario struct {
	name  string
	title string
	note  string
	quick bool
	tcp   bool
	check bool // dnsperf beside our own generator
	one   bool // a connection for each query
	update,
	claims,
	attack,
	beside,
	register,
	replicate,
	collect,
	startup bool
	names   int  // if nobody says how many; 0: namesUsual
	asked   bool // runs only if it is named: it takes long
	misses  int
	qps     float64
	sockets int    // 0: 8
	set     int    // TXT records at each name; 0: one
	lab     bool   // servers and load in namespaces of their own
	most    int    // rounds, if fewer than asked for
	ours    string // what the others are compared with; dmpd if empty
	workers int
	pinned  bool
}

var scenarios = []scenario{
	{name: "udp", title: "UDP, 90 % of the names exist", quick: true, misses: 10, workers: 1, pinned: true,
		note: "Closed loop, 8 client addresses, 128 queries under way, one worker."},
	{name: "hit", title: "UDP, every name exists", misses: 0, workers: 1, pinned: true, most: 3,
		note: "As above."},
	{name: "nxdomain", title: "UDP, no name exists", quick: true, misses: 100, workers: 1, pinned: true,
		note: "As above."},
	{name: "udp-ports", title: "UDP, every question from a port of its own", misses: 10, sockets: 128, workers: 1, pinned: true,
		note: "As the first (`udp`), with one query under way at each of 128 ports: nothing that goes to one port can be joined, by either side."},
	{name: "dnsperf", title: "dnsperf beside our own generator", check: true, workers: 1, pinned: true, most: 3,
		note: "The servers and names of `udp` in turn, 128 queries under way from 8 ports by either, three rounds of two seconds at most. dnsperf makes a system call for each packet, so on one core it is the limit for servers faster than itself: then they are not busy, find few queries at a time, and come closer to each other."},
	{name: "workers", title: "UDP, two workers that share two cores with the load", misses: 10, workers: 2,
		note: "As the first, with two workers and nothing pinned: batches are small here. `bare` is two echoes in Go with ordinary system calls and as many threads as dmpd has; the echo has one thread."},
	{name: "xdp", title: "UDP over a veth pair, past the network stack and through it", misses: 10, workers: 1, pinned: true, lab: true, most: 3, ours: "dmpd-xdp",
		note: "As `udp`, but from another network namespace, three rounds at most. dmpd-xdp is dmpd with DMP_UDP_ENGINE=xdp, knot-xdp is Knot with `xdp: listen`; both native, by copying, since veth has no zero-copy. Each server has a pair of its own, of one queue each way, whose ends receive as cards do, in a kernel thread on the core of whoever is there (GRO on, TSO off, threaded NAPI). The CPU time is that of the process, of its end's kernel thread and of ksoftirqd; the second table says how it divides."},
	{name: "xdp-ports", title: "UDP over a veth pair, every question from a port of its own", misses: 10, sockets: 128, workers: 1, pinned: true, lab: true, most: 3, ours: "dmpd-xdp",
		note: "As before (`xdp`), with one query under way at each of 128 ports: sockets cannot join what goes to one port."},
	{name: "latency", title: "Latency at 20,000 queries a second", quick: true, misses: 10, qps: 20000, workers: 1, pinned: true,
		note: "Open loop: a latency counts from when the query was due. The first columns say what such thin load costs. On two virtual cores the tail is the machine's: read it beside the echo's."},
	{name: "tcp", title: "TCP, pipelined", quick: true, tcp: true, misses: 10, workers: 1, pinned: true,
		note: "16 connections that stay, 16 queries under way on each."},
	{name: "large", title: "RRsets that fit no datagram: TC, then TCP", tcp: true, set: 16, workers: 1, pinned: true, most: 3,
		note: "2,000 names with 16 TXT records of 300 bytes each. As many queries are answered over UDP, with TC, as over TCP, 16 connections with 16 queries under way on each: one of both is counted as one."},
	{name: "tcp-one", title: "TCP, one query a connection", quick: true, tcp: true, one: true, misses: 10, workers: 1, pinned: true, most: 3,
		note: "Connect, query, reply, close, in that order and by the client; 10 connections under way, since no more wait to be accepted by Knot, from 4,000 client addresses in turn; three rounds at most. Latencies count from before the connection."},
	{name: "update", title: "UPDATE under TSIG, one new record of 300 bytes each, 64 under way", quick: true, update: true, workers: 1, pinned: true,
		note: "hmac-sha256. Every server acknowledges what is on disk, as it is set up by default; dmpd with DMP_DURABILITY=always. Afterwards every acknowledged record is asked for."},
	{name: "claims", title: "Claims without TSIG, each with an Ed25519 signature to check", claims: true, workers: 1, pinned: true,
		note: "128 under way, each for another mailbox; the limit per recipient is off. One check alone, crypto/ed25519 on this core: %s; a check and 12 us more would be %.1f k claims a CPU-second."},
	{name: "beside", title: "Queries beside writes", beside: true, misses: 10, workers: 1, pinned: true,
		note: "Latency of 10,000 queries a second, open loop, at one server of one worker, beside writes that are under way at a steady rate. The load's core sends both and measures. UPDATEs are of one record each and durable; claims each have a signature to check."},
	{name: "attack", title: "A well-behaved client beside an attack", attack: true, workers: 1, pinned: true,
		note: "1,000 queries a second for names that exist, open loop, beside attackers at other addresses, who share the load's cores: what the client loses and when it is answered. Limits as they are by default."},
	{name: "registration", title: "Registrations beside forged ones", register: true, pinned: true,
		note: "Both processes of a node. Forgers at ever new addresses, 10,000 confirmations a second if the load's cores can send them: a real challenge, a forged signature, four of them from an address before its limit would refuse more unseen. Beside them somebody registers honestly every second, from an address of their own. `--flood 1m` takes a minute."},
	{name: "replication", title: "Replication among three nodes", replicate: true,
		note: "dmpd: both processes of each node, native replication, HTTP/2 in clear text. Nothing pinned: three nodes, the load and one disk share the machine. Two nodes begin empty. Then single records are published at the third and asked for at both others, while updates go in beside them; UPDATE, sync and way to both are in the time. Then one node is stopped while records are written, and started. Three reference nodes, where they are installed, do as much of it as they can: they ask one peer a second (DMP_SYNC_INTERVAL=1, by default 10) for 256 records at most."},
	{name: "gc", title: "Garbage collection beside steady writes", collect: true, names: gcNames, asked: true,
		note: "Both processes of a node, nothing pinned. 1,000 UPDATEs a second under TSIG, each with one new record of 300 bytes, and 5,000 queries a second beside them, open loops; DMP_DURABILITY as it is by default. What the collectors took is from /metrics, pauses as upper ends of its buckets, which are powers of two. After a SIGKILL every acknowledged record is asked for. `DURATION=` says how long is written."},
	{name: "startup", title: "Start and memory", startup: true, workers: 1, pinned: true, most: 3,
		note: "Time from the start of the process to the first right answer, and proportional set size of all its processes once they are quiet; three rounds at most, each with files written anew. Pages of files can be dropped by the system; dmpd gives those of its snapshot back once it has read it."},
}

// namesUsual is how many names there are if nothing else is said, namesQuick at most in a smoke test.
const (
	namesUsual = 100_000
	namesQuick = 20_000
)

// ScenarioNames lists them.
func ScenarioNames() (names []string) {
	for _, s := range scenarios {
		names = append(names, s.name)
	}
	return names
}

// cell is what one contender did in one scenario, while it is measured.
type cell struct {
	Contender
	server  *Server
	latency Histogram
}

func (c *cell) add(r *Result) {
	c.Rounds = append(c.Rounds, roundOf(r))
	for i, n := range r.Latency.counts {
		c.latency.counts[i] += n
	}
	c.latency.n += r.Latency.n
}

// largeNames are those with large RRsets.
const largeNames = 2000

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// ErrWrong says that a server gave wrong answers: its figures mean nothing.
var ErrWrong = errors.New("bench: wrong answers")

// Run measures and writes the tables to Out.
func (s *Suite) Run() error {
	c, err := pin()
	if err != nil {
		fmt.Fprintf(s.Progress, "nothing is pinned to cores: %v\n", err)
		c = nil
	} else if c == nil {
		fmt.Fprintln(s.Progress, "there is one core only: server and load share it, and the figures say little")
	}
	if s.Bin, err = filepath.Abs(s.Bin); err != nil { // servers run in folders of their own
		return err
	}
	runtime.GOMAXPROCS(2) // the load needs one thread; what it is pinned to would say otherwise
	field := &field{zone: Zone{Name: "mesh.test"}, bin: s.Bin, replySize: 348}
	took := time.Now()
	all, err := s.contenders()
	if err != nil {
		return err
	}
	run := s.thisRun(all)
	fmt.Fprintf(s.Out, "%s Peers: %s. %d rounds.\n", run.machine(), run.peers(), s.Rounds)
	out, ran := s.Out, 0
	for i := range scenarios {
		sc := &scenarios[i]
		if (s.Quick && !sc.quick || sc.asked) && len(s.Scenarios) == 0 || len(s.Scenarios) > 0 && !slices.Contains(s.Scenarios, sc.name) {
			continue
		}
		ran++
		field.zone.Names = cmp.Or(s.Names, sc.names, namesUsual)
		if s.Quick {
			field.zone.Names = min(field.zone.Names, namesQuick)
		}
		field.cores, field.limits = nil, sc.attack
		if sc.pinned {
			field.cores = c
		}
		var text strings.Builder
		s.now = &Table{Scenario: sc.name, Names: field.zone.Names, Title: sc.title, Run: run}
		s.Out = io.MultiWriter(out, &text)
		err := s.scenario(sc, field, all)
		s.Out = out
		if err != nil {
			return fmt.Errorf("%s: %w", sc.name, err)
		}
		if len(s.now.Contenders) == 0 {
			s.now.Text, s.now.Note = text.String(), sc.note
		}
		s.Tables = append(s.Tables, s.now)
	}
	if ran == 0 {
		return fmt.Errorf("bench: no scenario %s; there are %s", strings.Join(s.Scenarios, ", "), strings.Join(ScenarioNames(), ", "))
	}
	fmt.Fprintf(s.Progress, "done in %s\n", time.Since(took).Round(time.Second))
	return nil
}

// contenders are the echo, dmpd and the peers that are installed.
func (s *Suite) contenders() (all []*contender, err error) {
	for _, p := range s.Peers {
		if p != "none" && !slices.ContainsFunc(contenders, func(c contender) bool { return c.name == p }) {
			return nil, fmt.Errorf("bench: no peer %q; there are nsd, nsd-mmsg, knot, bind, pdns, coredns, reference, and none", p)
		}
	}
	for i := range contenders {
		c := &contenders[i]
		switch {
		case c.binary == "":
		case len(s.Peers) > 0 && !slices.Contains(s.Peers, c.name) && !slices.Contains(s.Peers, strings.TrimSuffix(c.name, "-xdp")), s.Quick && len(s.Peers) == 0:
			continue
		case find(c.binary) == "":
			if len(s.Peers) > 0 {
				return nil, fmt.Errorf("bench: %s is not installed (make bench-peers)", c.name)
			}
			fmt.Fprintf(s.Progress, "%s is not installed and left out (make bench-peers)\n", c.name)
			if !c.lab {
				s.absent = append(s.absent, c.name)
			}
			continue
		}
		all = append(all, c)
		if c.name == "dmpd" && s.Base != "" {
			base, err := filepath.Abs(s.Base)
			if err != nil {
				return nil, err
			}
			all = append(all, &contender{name: "base", updates: true, start: func(s *Server, f *field, dir string, workers int) error {
				other := *f
				other.bin = base
				return startNode(s, &other, dir, workers)
			}})
		}
	}
	return all, nil
}

func (s *Suite) round(sc *scenario) time.Duration {
	if s.Quick {
		return time.Second
	}
	return 3 * time.Second
}

func (s *Suite) scenario(sc *scenario, f *field, all []*contender) error {
	fmt.Fprintf(s.Progress, "%s: starting", sc.name)
	var cells []*cell
	stop := func() {
		for _, c := range cells {
			c.server.Stop()
		}
	}
	dir := filepath.Join(s.Dir, sc.name)
	if sc.register {
		fmt.Fprintln(s.Progress)
		return s.registrations(sc, f, dir)
	}
	if sc.collect {
		fmt.Fprintln(s.Progress)
		return s.collector(sc, f, dir)
	}
	if sc.check {
		return s.checks(sc, f, all, dir)
	}
	if sc.replicate {
		fmt.Fprintln(s.Progress)
		return s.replications(sc, f, dir, all)
	}
	if sc.set > 0 {
		large := *f
		large.zone.Set, large.zone.Names = sc.set, min(f.zone.Names, largeNames)
		f = &large
	}
	out := "" // what was left out
	if sc.lab {
		l, err := newLab(f.cores)
		if err != nil {
			return s.leaveOut(sc, err)
		}
		inLab := *f
		inLab.lab, inLab.cores = l, l.cores
		f = &inLab
		defer l.remove()
	}
	if sc.startup {
		fmt.Fprintln(s.Progress)
		return s.starts(sc, f, all, dir)
	}
	for _, c := range all {
		if c.lab && !sc.lab || sc.lab && !slices.Contains(labContenders, c.name) {
			continue
		}
		if c.name == "bare" && sc.workers < 2 || c.name == "echo" && (sc.tcp || sc.update) || sc.update && !c.updates || c.most > 0 && (sc.tcp || sc.qps > 0) || (sc.claims || sc.attack || sc.beside) && c.name != "dmpd" && (c.name != "base" || sc.beside) {
			continue
		}
		if sc.beside {
			fmt.Fprintln(s.Progress)
			return s.beside(sc, f, c, dir)
		}
		if sc.attack {
			fmt.Fprintln(s.Progress)
			return s.attacked(sc, f, c, dir)
		}
		fmt.Fprintf(s.Progress, " %s", c.name)
		server, err := c.launch(f, dir, sc.workers)
		if why := (*leftOut)(nil); errors.As(err, &why) && c.name != sc.ours {
			out += fmt.Sprintf("\n%s is left out: %s.\n", c.name, why)
			continue
		}
		if err != nil {
			stop()
			return s.leaveOut(sc, err)
		}
		cells = append(cells, &cell{server: server, Contender: Contender{Name: server.Name, Version: server.Version, Names: server.zone.Names, ReadyS: server.Ready.Seconds()}})
	}
	fmt.Fprintln(s.Progress)
	defer stop()
	rounds := s.Rounds
	if sc.most > 0 {
		rounds = min(rounds, sc.most)
	}
	for round := range rounds {
		for _, c := range cells {
			r, err := s.load(sc, f, c.server, round)
			if err != nil {
				return err
			}
			fmt.Fprintf(s.Progress, "  round %d of %d: %-5s %9.0f /s, %9.0f /cpu-s, server %3.0f %% busy, lost %d\n", round+1, rounds, c.server.Name, r.Rate(), r.PerCPU(), 100*r.ServerCPU.Seconds()/r.Elapsed.Seconds(), r.Lost)
			if r.Wrong > 0 {
				return fmt.Errorf("%w: %s, %d of %d, the first: %v", ErrWrong, c.server.Name, r.Wrong, r.Sent, r.FirstWrong)
			}
			if r.Answered == 0 {
				return fmt.Errorf("bench: %s answered nothing: %s", c.server.Name, c.server.tail())
			}
			c.add(&r)
		}
	}
	s.keep(sc, cells)
	return nil
}

// load is one round against one server.
func (s *Suite) load(sc *scenario, f *field, server *Server, round int) (Result, error) {
	runtime.GC() // and not in the middle
	seed := uint64(round) << 32
	switch {
	case sc.one:
		src := NewMix(server.zone, sc.misses, seed)
		return server.timed(func() (Result, error) {
			return OneLoad{Target: server.Addr, Duration: s.round(sc), Window: 10}.Run(src)
		})
	case sc.tcp:
		var sources []Source // they take a while to make
		for i := range uint64(16) {
			sources = append(sources, NewMix(server.zone, sc.misses, seed+i<<20))
		}
		return server.timed(func() (Result, error) {
			r, err := TCPLoad{Target: server.Addr, Duration: s.round(sc), Conns: len(sources), Pipeline: 16}.Run(func(i int) Source { return sources[i] })
			if sc.set == 0 || err != nil || r.Wrong > 0 || r.Answered == 0 {
				return r, err
			}
			src := NewMix(server.zone, 0, seed)
			src.cut = true
			u, err := Load{Target: server.Addr, Duration: time.Minute, Window: 128, Sockets: 8, Messages: r.Answered}.Run(src)
			u.Answered = min(u.Answered, r.Answered)
			u.Bytes, u.Elapsed, u.OwnCPU = u.Bytes+r.Bytes, u.Elapsed+r.Elapsed, u.OwnCPU+r.OwnCPU
			u.Latency = Histogram{}
			return u, err
		})
	case sc.claims:
		const n = 60_000
		c, err := NewClaims(server.zone, uint64(round)*n, n, false)
		if err != nil {
			return Result{}, err
		}
		return server.timed(func() (Result, error) {
			// From many addresses: the checks that one address may cause are bounded.
			return Load{Target: server.Addr, From: netip.MustParseAddr("127.4.0.1"), Spread: true, Duration: s.round(sc), Window: 128, Sockets: 64, Messages: n}.Run(c)
		})
	case sc.update:
		n := 200_000
		if s.Quick {
			n = 20_000
		}
		u, err := NewUpdates(server.zone, uint64(server.zone.Names)+uint64(round)*uint64(n), n)
		if err != nil {
			return Result{}, err
		}
		r, err := server.timed(func() (Result, error) {
			return Load{Target: server.Addr, Duration: s.round(sc), Window: 64, Sockets: 8, Messages: n}.Run(u)
		})
		if err != nil || r.Wrong > 0 || r.Lost > 0 || r.Sent == 0 {
			return r, err
		}
		back, err := Load{Target: server.Addr, Duration: time.Minute, Window: 64, Sockets: 8, Messages: r.Sent}.Run(u.Stored(r.Sent))
		if err == nil && back.Lost > 0 {
			err = fmt.Errorf("bench: %s did not answer %d queries for what it had stored", server.Name, back.Lost)
		}
		r.Wrong, r.FirstWrong = back.Wrong, back.FirstWrong
		return r, err
	}
	// 128 under way: with 256 they overflow the receive buffer that the peers leave at the system's default of 208 KiB.
	l := Load{Target: server.Addr, Duration: s.round(sc), Window: 128, QPS: sc.qps, Sockets: cmp.Or(sc.sockets, 8)}
	var src Source = NewMix(server.zone, sc.misses, seed)
	if server.Echo {
		src = echoed{src}
	}
	if round == 0 { // caches, and the memory of a new process, are warm then
		warm := l
		warm.Duration, warm.QPS = 200*time.Millisecond, 0
		r, err := server.timed(func() (Result, error) { return warm.Run(src) })
		if err != nil || r.Wrong > 0 {
			return r, err
		}
	}
	return server.timed(func() (Result, error) { return l.Run(src) })
}

// timed adds the CPU time that the server used meanwhile.
func (s *Server) timed(run func() (Result, error)) (Result, error) {
	if s.link != nil {
		return s.link.timed(s, run)
	}
	return s.timedHere(run)
}

func (s *Server) timedHere(run func() (Result, error)) (Result, error) {
	before, err := s.CPU()
	if err != nil {
		return Result{}, err
	}
	r, err := run()
	if err != nil {
		return r, err
	}
	after, err := s.CPU()
	r.ServerCPU = after - before
	return r, err
}

// verifyTime is how long one Ed25519 check takes here.
func verifyTime() time.Duration {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	msg := make([]byte, 100)
	sig, public := ed25519.Sign(key, msg), key.Public().(ed25519.PublicKey)
	const n = 2000
	start := ownCPU()
	for range n {
		ed25519.Verify(public, msg, sig)
	}
	return ((ownCPU() - start) / n).Round(100 * time.Nanosecond)
}

func spread(v []float64, unit float64) string {
	return fmt.Sprintf("%.4g [%.4g, %.4g]", median(v)/unit, slices.Min(v)/unit, slices.Max(v)/unit)
}

// starts starts the contenders in turn, round after round.
func (s *Suite) starts(sc *scenario, f *field, all []*contender, dir string) error {
	byName := map[string]*cell{}
	var cells []*cell
	rounds := min(s.Rounds, sc.most)
	for round := range rounds {
		fmt.Fprintf(s.Progress, "  round %d of %d:", round+1, rounds)
		for _, c := range all {
			if c.lab || c.name == "echo" || c.name == "bare" {
				continue
			}
			server, err := c.launch(f, dir, sc.workers)
			if why := (*leftOut)(nil); errors.As(err, &why) && c.name != sc.ours {
				if round == 0 {
					s.now.LeftOut += fmt.Sprintf("\n%s is left out: %s.\n", c.name, why)
				}
				continue
			}
			if err != nil {
				return s.leaveOut(sc, err)
			}
			fmt.Fprintf(s.Progress, " %s %.2f s", c.name, server.Ready.Seconds())
			one := byName[c.name]
			if one == nil {
				one = &cell{Contender: Contender{Name: server.Name, Version: server.Version, Names: server.zone.Names}}
				byName[c.name] = one
				cells = append(cells, one)
			}
			one.StartsS = append(one.StartsS, three(server.Ready.Seconds()))
			one.ReadyS = median(one.StartsS)
			if err := server.settled(); err != nil {
				return err
			}
			pss, files, err := server.PSS()
			if err != nil {
				fmt.Fprintf(s.Progress, " (%v)", err)
			}
			one.MemoryBytes, one.FileBytes = max(one.MemoryBytes, pss-files), max(one.FileBytes, files)
			server.Stop()
		}
		fmt.Fprintln(s.Progress)
	}
	s.keep(sc, cells)
	return os.RemoveAll(dir)
}

// keep makes a table of what was measured and shows it.
func (s *Suite) keep(sc *scenario, cells []*cell) {
	s.now.Note, s.now.Ours = sc.note, sc.ours
	if sc.claims {
		check := verifyTime()
		s.now.Note = fmt.Sprintf(sc.note, check, 1/(check+12*time.Microsecond).Seconds()/1000)
	}
	switch {
	case sc.startup:
		s.now.Measure = starts
	case sc.update:
		s.now.Measure = updates
	default:
		s.now.Measure = perCPU
	}
	for _, c := range cells {
		if c.latency.n > 0 {
			c.P50Ms, c.P99Ms, c.P999Ms = c.latency.ms(0.5), c.latency.ms(0.99), c.latency.ms(0.999)
		}
		s.now.Contenders = append(s.now.Contenders, &c.Contender)
	}
	fmt.Fprint(s.Out, s.now.Markdown())
}

// record keeps a figure of a table that has a form of its own.
func (s *Suite) record(name string, value any) {
	if s.now.Values == nil {
		s.now.Values = map[string]any{}
	}
	s.now.Values[name] = value
}

// echoShare is what dmpd has to make of the echo's answers. It is said and not asserted: a run on a shared machine proves nothing
// either way.
const echoShare = 0.65

// Replace puts the tables into a file.
func Replace(path, tables string) error {
	const begin, end = "<!-- results -->\n", "<!-- end -->\n"
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	before, rest, ok := strings.Cut(string(b), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("bench: %s has no place for the tables, which is between the lines %s and %s", path, strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return os.WriteFile(path, []byte(before+begin+tables+end+after), 0o644)
}
