// Package dataplane is the DNS process of a node: queries, UPDATE and claims over UDP and TCP, on gnet's event loops (design.md, The
// packet path). It owns data/, and follows control/ (taker.go).
package dataplane

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dnsmesh/dmpd/dataplane/answer"
	"github.com/dnsmesh/dmpd/dataplane/store"
	"github.com/dnsmesh/dmpd/dataplane/update"
	"github.com/dnsmesh/dmpd/dataplane/xdp"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/stats"
	"github.com/dnsmesh/dmpd/internal/systemd"
	"github.com/dnsmesh/dmpd/internal/tsig"
	"github.com/dnsmesh/dmpd/internal/vfs"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// Config is what a data plane runs with. Settings may be replaced while it runs (Reload); the rest is read at start.
type Config struct {
	StateDir   string
	Build      string // build id, for the live page
	Hosts      []string
	Port       int // 0: any free one, the same on all addresses
	Loops      int // event loops for each address; 0: one a core
	TCPTotal   int
	TCPMessage time.Duration // for one message over TCP; 0: 5 s
	TCPIdle    time.Duration // without one; 0: 10 s
	Workers    int           // of the claim pool; 0: half the cores
	Durability journal.Durability
	XDP        []string // interfaces to take queries from past the network stack; none: sockets alone
	XDPMode    xdp.Mode
	Log        *logging.Logger
	Settings   Settings
}

// Settings reload without a restart.
type Settings struct {
	Zone         answer.Zone // Apex is read at start only
	Policy       update.Policy
	Store        store.Limits
	RetainMs     int64
	Rate, Burst  float64
	RRLRate      int
	TCPPerIP     int
	ClaimRate    float64
	ClaimBurst   float64
	TombstoneSec int64
}

type settings struct {
	zone   *answer.Zone
	policy update.Policy
}

const (
	tcpMessage = 5 * time.Second  // dns.md 3.6
	tcpIdle    = 10 * time.Second // dns.md 3.6
	// rrlBurst is how many seconds of its rate a bucket holds: a resolver that starts asks for many names at once.
	rrlBurst = 2
	// tombstoneSlack is added to the longest life: every older copy has ended by then (cluster.md 17.4).
	tombstoneSlack = 60
	gaugeEvery     = time.Second
	// With as many Ps as loops and workers of the pool, each return from a wait must find a P again, and the runtime takes a P away from a
	// sync as soon as it can, which it looks for every 20 us; two spare ones cost nothing (perf.md 15).
	spareProcs = 2
	finishMax  = 10 * time.Second // for the commits that wait at the end
)

// ErrCannotRun marks errors that a restart does not mend: a lock that is held, a port that is taken.
var ErrCannotRun = errors.New("dataplane: cannot run here")

// Node is a running data plane.
type Node struct {
	log          *logging.Logger
	lock         *journal.FileLock
	live         *journal.Live
	page         *stats.Page
	store        *store.Store
	keys         *tsig.Table
	taker        *taker
	cookies      *cookies
	limits       *limits
	claims       *update.Limits
	pool         *pool
	heap         *heap
	net          *network
	past         *past // nil without AF_XDP
	settings     atomic.Pointer[settings]
	waiting      atomic.Int64 // UPDATEs that wait for signature or sync
	waitingBytes atomic.Int64 // of their messages
	decided      wakes        // the committer's
	signers      sync.Pool    // for replies made beside the loops

	hosts  []string
	port   uint16
	lost   [3]int64 // store readings that the counters have seen: groups, rows, failed syncs
	swept  int64
	taken  int64
	stop   chan struct{}
	closed sync.WaitGroup
}

// Start opens the store, takes what the control plane left, listens, and serves. What is damaged is an error that names file and offset.
func Start(c Config) (*Node, error) {
	n := &Node{log: c.Log, hosts: c.Hosts, stop: make(chan struct{}), limits: newLimits(), claims: update.NewLimits(c.Settings.ClaimRate, c.Settings.ClaimBurst)}
	n.signers.New = func() any { return new(tsig.Signer) }
	if err := n.start(c); err != nil {
		n.release()
		return nil, err
	}
	return n, nil
}

func (n *Node) start(c Config) error {
	dir := filepath.Join(c.StateDir, "data")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("%w: %w", ErrCannotRun, err)
	}
	var err error
	if n.lock, err = journal.Lock(filepath.Join(dir, "lock")); err != nil {
		return fmt.Errorf("%w: %w", ErrCannotRun, err)
	}
	// At once, and without a beat: the page of the process before must not speak for this one while it reads its store.
	if n.live, err = journal.CreateLive(vfs.OS, filepath.Join(dir, "live"), c.Build); err != nil {
		return err
	}
	loops := c.Loops
	if loops <= 0 {
		loops = runtime.NumCPU()
	}
	workers := c.Workers
	if workers <= 0 {
		workers = max(1, runtime.NumCPU()/2)
	}
	procs := loops + workers + spareProcs
	runtime.GOMAXPROCS(procs)
	if n.page, err = stats.Create(filepath.Join(dir, "counters"), shards(loops)); err != nil {
		return err
	}
	n.page.Shard(0).Set(stats.StartedSec, uint64(clock.NowMs()/1000))
	n.heap = newHeap()
	nowSec := clock.NowMs() / 1000
	if n.cookies, err = openCookies(dir, nowSec); err != nil {
		return err
	}
	origin, err := store.Origin(dir)
	if err != nil {
		return err
	}
	s := &c.Settings
	n.store, err = store.Open(store.Options{Dir: dir, Log: c.Log, Zone: s.Zone.Apex, Origin: origin, Durability: c.Durability, RetainMs: s.RetainMs,
		TombstoneLifeMs: (s.TombstoneSec + tombstoneSlack) * 1000, Limits: s.Store, Synced: func(ns int64) { n.page.Shard(0).Observe(stats.SyncLatency, uint64(ns)) }, Answered: n.decided.wake})
	if err != nil {
		return err
	}
	n.Reload(*s)
	n.keys = tsig.NewTable(s.Zone.Apex)
	n.pool = newPool(workers)
	n.store.Notify(func(uint64) { n.live.Ring() })
	n.taker = newTaker(filepath.Join(c.StateDir, "control"), n.keys, n.store, n.live, c.Log)
	n.taker.first()
	n.net = &network{log: c.Log, page: n.page, newResponder: n.newWorker, limits: n.limits, loopsEach: loops, engines: map[netip.AddrPort]*engine{}}
	n.net.tcp.Message, n.net.tcp.Idle, n.net.tcp.Total = cmp.Or(c.TCPMessage, tcpMessage), cmp.Or(c.TCPIdle, tcpIdle), n.connections(c.TCPTotal)
	n.net.tcp.PerIP.Store(int64(s.TCPPerIP))
	if err := n.listen(c.Port); err != nil {
		return err
	}
	if len(c.XDP) > 0 {
		n.past = newPast(n.net, &c, procs, n.port)
	}
	n.gauges()
	n.live.Beat(clock.NowMs())
	n.closed.Go(n.background)
	if n.past != nil {
		n.past.follow(n.filtered())
		n.closed.Go(n.followPast)
	}
	go n.taker.run()
	n.announce(c)
	return nil
}

// filesSpare is what the process may have open beside connections: listeners, logs, snapshots, connections about to be refused.
const filesSpare = 256

// connections lowers the cap where the system allows fewer files: at the system's limit gnet gives a listener up.
func (n *Node) connections(total int) int {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil || files.Cur >= uint64(total)+filesSpare {
		return total
	}
	allowed := max(1, int(files.Cur)-filesSpare)
	n.log.Warn("fewer TCP connections than configured, since the system allows few open files (ulimit -n, LimitNOFILE=)", "files", files.Cur, "connections", allowed)
	return min(total, allowed)
}

// shards is how many loops may ever run: addresses come and go under a wildcard, and beyond this they share shards.
func shards(loops int) int { return min(8*loops, 1024) }

// listen opens every address. With port 0 the first one chooses; another that finds it taken starts the choice again.
func (n *Node) listen(port int) error {
	addrs, err := n.addrs()
	if err != nil {
		return err
	}
	if len(addrs) == 0 {
		return fmt.Errorf("%w: DMP_DNS_HOST names no address of this machine", ErrCannotRun)
	}
	for tries := 0; ; tries++ {
		n.port = uint16(port)
		if port == 0 {
			if n.port, err = freePort(addrs[0]); err != nil {
				return fmt.Errorf("%w: %w", ErrCannotRun, err)
			}
		}
		err = nil
		for _, a := range addrs {
			if err = n.net.start(netip.AddrPortFrom(a, n.port)); err != nil {
				break
			}
		}
		if err == nil {
			n.page.Shard(0).Set(stats.TCPListening, 1)
			return nil
		}
		n.net.stopAll()
		var taken *PortError
		if port != 0 || tries == 20 || !errors.As(err, &taken) {
			return fmt.Errorf("%w: %w", ErrCannotRun, err)
		}
	}
}

// addrs lists what to listen on now.
func (n *Node) addrs() ([]netip.Addr, error) {
	addrs, v4, v6, err := parseHosts(n.hosts)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCannotRun, err)
	}
	local, err := localAddrs(v4, v6)
	if err != nil {
		return nil, err
	}
	seen := map[netip.Addr]bool{}
	var all []netip.Addr
	for _, a := range append(addrs, local...) {
		if !seen[a] {
			seen[a] = true
			all = append(all, a)
		}
	}
	return all, nil
}

// Addrs are the addresses that are listened on.
func (n *Node) Addrs() (as []netip.AddrPort) {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	for a := range n.net.engines {
		as = append(as, a)
	}
	return as
}

// filtered are the same without the port.
func (n *Node) filtered() (as []netip.Addr) {
	for _, a := range n.Addrs() {
		as = append(as, a.Addr())
	}
	return as
}

// Page is the metrics page.
func (n *Node) Page() *stats.Page { return n.page }

func (n *Node) announce(c Config) {
	for _, a := range n.Addrs() {
		n.log.Info("listening", "dns", a.String())
	}
	p := &c.Settings.Policy
	n.log.Info("dns", "zone", wire.Text(c.Settings.Zone.Apex), "updates", p.Enabled, "claims_for_anybody", p.Provider && p.Enabled, "claims_for_registered", p.Receiver && p.Enabled, "records", n.store.Stats().Records)
	if p.Enabled && p.Provider {
		n.log.Warn("this node takes claims for any recipient: set DMP_CLAIM_PROVIDER=0 and DMP_RECEIVER_CLAIM_NOTIFICATIONS=1 to take them for registered users alone")
	}
}

// Reload takes over what may change while the node runs.
func (n *Node) Reload(s Settings) {
	zone := s.Zone
	if old := n.settings.Load(); old != nil {
		zone.Apex = old.zone.Apex
	}
	z := zone.Ready()
	s.Policy.Zone = z
	n.settings.Store(&settings{z, s.Policy})
	for _, b := range n.limits.rate {
		b.set(s.Rate, s.Burst)
	}
	n.limits.rrl.set(float64(s.RRLRate), float64(s.RRLRate)*rrlBurst)
	n.claims.Set(s.ClaimRate, s.ClaimBurst)
	n.store.SetLimits(s.Store)
	if n.net != nil {
		n.net.tcp.PerIP.Store(int64(s.TCPPerIP))
	}
}

// background beats, sweeps connections, sets gauges, follows the machine's addresses.
func (n *Node) background() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	var beat, gauges, follow time.Time
	for {
		select {
		case <-n.stop:
			return
		case now := <-tick.C:
			n.net.sweep(clock.Mono())
			if now.Sub(beat) >= journal.BeatEvery {
				beat = now
				n.live.Beat(clock.NowMs())
				_ = systemd.Alive() // one that is not heard is restarted, which the manager's log tells
			}
			if now.Sub(gauges) >= gaugeEvery {
				gauges = now
				n.gauges()
			}
			if now.Sub(follow) >= followEvery {
				follow = now
				n.follow()
				if err := n.cookies.rotate(clock.NowMs() / 1000); err != nil {
					n.log.Warn("the cookie secret cannot be renewed", "err", err)
				}
			}
		}
	}
}

// follow opens and closes listeners as addresses of a wildcard come and go.
func (n *Node) follow() {
	addrs, err := n.addrs()
	if err != nil {
		n.log.Warn("the machine's addresses cannot be read", "err", err)
		return
	}
	wanted := map[netip.AddrPort]bool{}
	complete := true
	for _, a := range addrs {
		ap := netip.AddrPortFrom(a, n.port)
		wanted[ap] = true
		n.net.mu.Lock()
		e := n.net.engines[ap]
		n.net.mu.Unlock()
		if e != nil && !e.ended() {
			continue
		}
		if e != nil {
			n.log.Error("a listener ended; it is opened again", "dns", ap.String(), "err", e.err)
			n.net.stopOne(ap)
		}
		if err := n.net.start(ap); err != nil {
			complete = false
			n.log.Debug("a new address cannot be listened on yet", "dns", ap.String(), "err", err)
			continue
		}
		n.log.Info("listening", "dns", ap.String())
	}
	listening := uint64(0)
	if complete {
		listening = 1
	}
	n.page.Shard(0).Set(stats.TCPListening, listening)
	for _, ap := range n.Addrs() {
		if !wanted[ap] {
			n.log.Info("no longer listening", "dns", ap.String())
			n.net.stopOne(ap)
		}
	}
}

// followPast has a goroutine of its own: attaching may take seconds, and the beat must not wait.
func (n *Node) followPast() {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		select {
		case <-n.stop:
			return
		case <-tick.C:
			n.past.follow(n.filtered())
		}
	}
}

// gauges copies what the store measures into the page.
func (n *Node) gauges() {
	shard := n.page.Shard(0)
	s := n.store.Stats()
	n.heap.follow(s.ArenaBytes)
	for _, g := range []struct {
		c stats.Counter
		v int64
	}{{stats.Records, s.Records}, {stats.Names, s.Names}, {stats.Tombstones, s.Tombstones}, {stats.StoreBytes, s.Bytes}, {stats.ArenaBytes, s.ArenaBytes}, {stats.LogBytes, s.LogBytes},
		{stats.SnapshotBytes, s.SnapshotBytes}, {stats.Serial, int64(s.Serial)}, {stats.KeysLive, int64(n.keys.Len())}, {stats.UpdateWaiting, n.waiting.Load()}} {
		shard.Set(g.c, uint64(max(0, g.v)))
	}
	low := uint64(0)
	if s.ReadOnly {
		low = 1
	}
	shard.Set(stats.DiskLow, low)
	for i, g := range []struct {
		c stats.Counter
		v int64
	}{{stats.Commits, s.Groups}, {stats.CommitRows, s.Messages}, {stats.SyncFailed, s.FailSyncs}} {
		shard.Add(g.c, uint64(max(0, g.v-n.lost[i])))
		n.lost[i] = g.v
	}
	shard.Add(stats.Expired, uint64(max(0, s.Expired-n.swept)))
	n.swept = s.Expired
	taken := n.taker.taken.Load()
	shard.Add(stats.RequestsTaken, uint64(taken-n.taken))
	n.taken = taken
	n.past.count()
	r := stats.ReadRuntime()
	r.Put(shard)
}

// Stop ends the node in order: no more reading, the commits that wait are finished and answered, then the sockets close.
func (n *Node) Stop() error {
	close(n.stop)
	n.closed.Wait()
	n.past.stop()
	n.net.drain(func() {
		for end := time.Now().Add(finishMax); n.waiting.Load() > 0 && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
	})
	n.taker.close()
	return n.release()
}

func (n *Node) release() error {
	var errs []error
	n.past.stop()
	if n.net != nil {
		n.net.stopAll()
	}
	if n.pool != nil {
		n.pool.close()
	}
	if n.store != nil {
		errs = append(errs, n.store.Close())
	}
	if n.live != nil {
		n.live.Close()
	}
	if n.page != nil {
		n.page.Close()
	}
	if n.lock != nil {
		n.lock.Close()
	}
	return errors.Join(errs...)
}
