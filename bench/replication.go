package bench

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	replicaLimit = 10 * time.Minute // for any of the three parts
	sampleStep   = 997              // every so manieth record is asked for while all are waited for; then each of them
)

// cluster says what three nodes of a kind are made to do.
type cluster struct {
	name    string
	names   int // at the first node, while the others begin empty; 0: as the suite says
	writes  int // a second, while single records are timed
	samples int // of those
	outage  int // records written while a node is away
	// pause is the longest of the random waits before each single record, so that none begins in step with the nodes' ticks.
	pause time.Duration
	// prepare makes the folder of a node with so many names, run starts it on that.
	prepare func(r *replica, f *field, names int) error
	run     func(r *replica, f *field) error
}

var nativeCluster = cluster{name: "dmpd", writes: 1000, samples: 300, outage: 100_000,
	prepare: func(r *replica, f *field, names int) error {
		z := f.zone
		z.Names = names
		return writeNode(z, filepath.Join(r.dir, "state"))
	},
	run: func(r *replica, f *field) error {
		return r.s.spawnNode(f, r.dir, "DMP_RRL_RATE=0", "DMP_MAX_WRITER_RECORDS=0", "DMP_SYNC_PEER_TOKEN=bench-peers", "DMP_SYNC_PEERS="+strings.Join(r.peers, ","),
			"DMP_SYNC_NATIVE=clear", "DMP_NODE_ID=n"+filepath.Base(r.dir))
	},
}

// referenceCluster has figures that the reference node can keep up with: it takes 256 records a tick, from one peer at a time.
var referenceCluster = cluster{name: "reference", names: 5000, writes: 50, samples: 30, outage: 1000, pause: 2 * time.Second,
	prepare: func(r *replica, f *field, names int) error {
		own := *f
		own.zone.Names = names
		return writeReference(r.s, &own, r.dir)
	},
	run: func(r *replica, f *field) error {
		return runReference(r.s, f, r.dir, "DMP_SYNC_PEER_TOKEN=bench-peers", "DMP_SYNC_PEERS="+strings.Join(r.peers, ","), "DMP_SYNC_INTERVAL=1", "DMP_NODE_ID=n"+filepath.Base(r.dir))
	},
}

// replica is a node of a cluster.
type replica struct {
	s     *Server
	dir   string
	kind  *cluster
	peers []string // URLs
}

func (r *replica) start(f *field) error {
	if err := r.kind.run(r, f); err != nil {
		return err
	}
	client := &dns.Client{Timeout: 200 * time.Millisecond}
	question := new(dns.Msg)
	question.SetQuestion(f.zone.Name+".", dns.TypeSOA)
	for time.Since(r.s.began) < readyWithin {
		if reply, _, err := client.Exchange(question, r.s.Addr.String()); err == nil && reply.Rcode == dns.RcodeSuccess {
			return nil
		}
		select {
		case <-r.s.exited:
			return fmt.Errorf("bench: %s has ended: %s", r.s.Name, r.s.tail())
		case <-time.After(5 * time.Millisecond):
		}
	}
	return fmt.Errorf("bench: %s does not answer: %s", r.s.Name, r.s.tail())
}

// has waits until a node answers for the records of z from number from on, n of them: first some, then each.
func (r *replica) has(z Zone, from uint64, n int) error {
	u := &Updates{zone: z, from: from}
	all := u.Stored(n)
	client := &dns.Client{Timeout: 500 * time.Millisecond}
	began := time.Now()
	for k := 0; k < n; {
		if time.Since(began) > replicaLimit {
			return fmt.Errorf("bench: %s has not got record %d of %d within %s: %s", r.s.Name, k, n, replicaLimit, r.s.tail())
		}
		question := new(dns.Msg)
		question.SetQuestion(z.label(from+uint64(k))+"."+z.Name+".", dns.TypeTXT)
		reply, _, err := client.Exchange(question, r.s.Addr.String())
		if err != nil || reply.Rcode != dns.RcodeSuccess || len(reply.Answer) != 1 {
			time.Sleep(2 * time.Millisecond)
			continue
		}
		if k < n-1 {
			k = min(k+sampleStep, n-1)
		} else {
			k = n
		}
	}
	for time.Since(began) < replicaLimit {
		check, err := Load{Target: r.s.Addr, Duration: time.Minute, Window: 64, Sockets: 8, Messages: n}.Run(all)
		if err != nil {
			return err
		}
		if check.Wrong == 0 && check.Lost == 0 && check.Answered >= n {
			return nil
		}
	}
	return fmt.Errorf("bench: %s has not got all of %d records within %s: %s", r.s.Name, n, replicaLimit, r.s.tail())
}

// replicated is what three nodes did.
type replicated struct {
	Names         int       `json:"names"`
	ColdS         float64   `json:"cold_s"`            // until two new nodes had all
	RecordMs      []float64 `json:"record_at_both_ms"` // sorted
	UpdatesPerS   float64   `json:"updates_per_s"`     // beside those
	OutageRecords int       `json:"outage_records"`
	OutageS       float64   `json:"outage_s"`
}

func (r *replicated) quantile(q float64) float64 {
	return r.RecordMs[min(len(r.RecordMs)-1, int(q*float64(len(r.RecordMs))))]
}

// replications measures three nodes that replicate natively, and three reference nodes where they are installed.
func (s *Suite) replications(sc *scenario, f *field, dir string, all []*contender) error {
	fmt.Fprintf(s.Out, "\n### %s (`%s`)\n\n%s\n\n", sc.title, sc.name, sc.note)
	fmt.Fprintf(s.Out, "| | two new nodes at once | a record at both others, p50 ms | p90 | p99 | worst | beside updates / s | missed in an outage |\n|---|---|---|---|---|---|---|---|\n")
	for _, kind := range []cluster{nativeCluster, referenceCluster} {
		if !slices.ContainsFunc(all, func(c *contender) bool { return c.name == kind.name }) {
			continue
		}
		if kind.names == 0 || f.zone.Names < kind.names {
			kind.names = f.zone.Names
		}
		if s.Quick {
			kind.samples, kind.outage = min(kind.samples, 50), min(kind.outage, 5000)
		}
		r, err := s.replicate(&kind, f, filepath.Join(dir, kind.name))
		if err != nil {
			return fmt.Errorf("%s: %w", kind.name, err)
		}
		s.record(kind.name, r)
		fmt.Fprintf(s.Out, "| %s | %d records in %.1f s | %s | %s | %s | %s | %.0f | %d records in %.1f s |\n", kind.name, r.Names, r.ColdS, plain(r.quantile(0.5)), plain(r.quantile(0.9)), plain(r.quantile(0.99)), plain(r.quantile(1)),
			r.UpdatesPerS, r.OutageRecords, r.OutageS)
	}
	return os.RemoveAll(dir)
}

// replicate measures new nodes, single records while others are written, and an outage.
func (s *Suite) replicate(kind *cluster, f *field, dir string) (sum *replicated, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	own := *f
	own.zone.Plain, own.zone.Names, own.cores = true, kind.names, nil // three nodes, the load and the disk share what there is
	f = &own
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	nodes := make([]*replica, 3)
	var urls []string
	for i := range nodes {
		r := &replica{s: &Server{Name: fmt.Sprintf("node%d", i), zone: f.zone}, dir: filepath.Join(dir, fmt.Sprint(i)), kind: kind}
		if r.s.Addr, r.s.http, err = twoPorts(); err != nil {
			return nil, err
		}
		nodes[i] = r
		urls = append(urls, "http://"+r.s.http.String())
	}
	for i, r := range nodes {
		names := 0
		if i == 0 {
			names = kind.names
		}
		r.peers = slices.Delete(slices.Clone(urls), i, i+1)
		if err := os.MkdirAll(r.dir, 0o700); err != nil {
			return nil, err
		}
		if err := kind.prepare(r, f, names); err != nil {
			return nil, err
		}
	}
	defer func() {
		for _, r := range nodes {
			if r.s.cmd != nil {
				r.s.Stop()
			}
		}
	}()
	began := time.Now()
	for _, r := range nodes {
		if err := r.start(f); err != nil {
			return nil, err
		}
	}
	for _, r := range nodes[1:] {
		if err := r.has(f.zone, 0, f.zone.Names); err != nil {
			return nil, err
		}
	}
	cold := time.Since(began)
	fmt.Fprintf(s.Progress, "  two new nodes have %d records after %s\n", f.zone.Names, cold.Round(time.Millisecond))

	// Single records, while others are written.
	from := uint64(f.zone.Names)
	background := 120 * kind.writes
	others, err := NewUpdates(f.zone, from, background)
	if err != nil {
		return nil, err
	}
	single, err := NewUpdates(f.zone, from+uint64(background), kind.samples)
	if err != nil {
		return nil, err
	}
	type written struct {
		r   Result
		err error
	}
	stop := make(chan struct{})
	wrote := make(chan written, 1)
	go func() {
		var sum written
		for k := 0; k+kind.writes <= background; k += kind.writes { // a second at a time
			select {
			case <-stop:
				wrote <- sum
				return
			default:
			}
			part := &Updates{zone: others.zone, from: others.from + uint64(k), msgs: others.msgs[k : k+kind.writes]}
			r, err := Load{Target: nodes[0].s.Addr, Duration: 2 * time.Second, QPS: float64(kind.writes), Sockets: 4, Messages: kind.writes}.Run(reordered{part, k})
			sum.r.Sent, sum.r.Answered, sum.r.Wrong = sum.r.Sent+r.Sent, sum.r.Answered+r.Answered, sum.r.Wrong+r.Wrong
			sum.r.Elapsed += r.Elapsed
			if sum.err = err; err != nil {
				break
			}
		}
		wrote <- sum
	}()
	var took []time.Duration
	client := &dns.Client{Timeout: time.Second}
	for k := range kind.samples {
		if kind.pause > 0 {
			time.Sleep(time.Duration(mix(uint64(k)) % uint64(kind.pause)))
		}
		sent := time.Now()
		rcode, err := exchange(nodes[0].s.Addr, single.msgs[k])
		if err == nil && rcode != dns.RcodeSuccess {
			err = errors.New(dns.RcodeToString[rcode])
		}
		if err != nil {
			return nil, fmt.Errorf("bench: single update %d: %w", k, err)
		}
		question := new(dns.Msg)
		question.SetQuestion(f.zone.label(single.from+uint64(k))+"."+f.zone.Name+".", dns.TypeTXT)
		for _, r := range nodes[1:] {
			for {
				reply, _, err := client.Exchange(question, r.s.Addr.String())
				if err == nil && len(reply.Answer) == 1 {
					break
				}
				if time.Since(sent) > time.Minute {
					return nil, fmt.Errorf("bench: a record did not come to %s within a minute: %s", r.s.Name, r.s.tail())
				}
				time.Sleep(300 * time.Microsecond)
			}
		}
		took = append(took, time.Since(sent)) // at both
	}
	close(stop)
	w := <-wrote
	if w.err != nil {
		return nil, w.err
	}
	slices.Sort(took)
	sum = &replicated{Names: f.zone.Names, ColdS: cold.Seconds(), UpdatesPerS: float64(w.r.Answered) / w.r.Elapsed.Seconds(), OutageRecords: kind.outage}
	for _, d := range took {
		sum.RecordMs = append(sum.RecordMs, three(d.Seconds()*1000))
	}
	fmt.Fprintf(s.Progress, "  a record is at both others after %.3g ms (p50), %.3g ms (p99), beside %.0f updates/s\n", sum.quantile(0.5), sum.quantile(0.99), sum.UpdatesPerS)

	// An outage.
	away := nodes[2]
	away.s.Stop()
	first := from + uint64(background+kind.samples)
	missed, err := NewUpdates(f.zone, first, kind.outage)
	if err != nil {
		return nil, err
	}
	r, err := Load{Target: nodes[0].s.Addr, Duration: replicaLimit, Window: 64, Sockets: 8, Messages: kind.outage}.Run(missed)
	if err != nil || r.Wrong > 0 || r.Lost > 0 {
		return nil, fmt.Errorf("bench: writing during the outage: %d wrong (%v), %d lost, %w", r.Wrong, r.FirstWrong, r.Lost, err)
	}
	back := time.Now()
	if err := away.start(f); err != nil {
		return nil, err
	}
	if err := away.has(f.zone, first, kind.outage); err != nil {
		return nil, err
	}
	sum.OutageS = time.Since(back).Seconds()
	fmt.Fprintf(s.Progress, "  %d records that were missed are there %.1f s after the start\n", kind.outage, sum.OutageS)
	return sum, nil
}

// twoPorts finds a free port for DNS, and below it one for HTTP, where runReference has it.
func twoPorts() (at, below netip.AddrPort, err error) {
	for range 100 {
		if at, err = freePort(); err != nil {
			return at, at, err
		}
		below = netip.AddrPortFrom(at.Addr(), at.Port()-1)
		l, err := net.Listen("tcp4", below.String())
		if err == nil {
			l.Close()
			return at, below, nil
		}
	}
	return at, below, errors.New("bench: no two neighbouring ports are free")
}

// reordered is a part of updates whose ids go on from k modulo 65,536, as Load wants them to begin at 0.
type reordered struct {
	*Updates
	k int
}

// Message gives the k-th with the id that Load expects. The id is not signed (RFC 8945 4.2).
func (u reordered) Message(k uint32) []byte {
	b := slices.Clone(u.Updates.Message(k))
	b[0], b[1] = byte(k>>8), byte(k)
	return b
}

// exchange sends a message and gives the response code of the reply.
func exchange(at netip.AddrPort, msg []byte) (rcode int, err error) {
	c, err := net.Dial("udp", at.String())
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return 0, err
	}
	if _, err := c.Write(msg); err != nil {
		return 0, err
	}
	reply := make([]byte, 4096)
	n, err := c.Read(reply)
	if err == nil && n < 12 {
		err = io.ErrUnexpectedEOF
	}
	return int(reply[3] & 0xF), err
}
