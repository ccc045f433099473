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
	replicaWrites  = 1000 // a second, while single records are timed
	replicaSamples = 300
	outageRecords  = 100_000
	replicaLimit   = 10 * time.Minute // for any of the three parts
	sampleStep     = 997              // every so manieth record is asked for while all are waited for; then each of them
)

// replica is a node of the cluster, both processes.
type replica struct {
	s   *Server
	dir string
	env []string
	at  netip.AddrPort // HTTP
}

func (r *replica) start(f *field) error {
	if err := r.s.spawn(f.cores, r.dir, r.env, filepath.Join(f.bin, "dmpd"), "run"); err != nil {
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

// replications measures three nodes that replicate natively: a new node, single records while others are written, and an outage.
func (s *Suite) replications(sc *scenario, f *field, dir string) (err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	all := *f
	all.zone.Plain, all.cores = true, nil // three nodes, the load and the disk share what there is
	f = &all
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	nodes := make([]*replica, 3)
	var urls []string
	for i := range nodes {
		r := &replica{s: &Server{Name: fmt.Sprintf("node%d", i), zone: f.zone}, dir: filepath.Join(dir, fmt.Sprint(i))}
		if r.s.Addr, err = freePort(); err != nil {
			return err
		}
		if r.at, err = freePort(); err != nil {
			return err
		}
		nodes[i] = r
		urls = append(urls, "http://"+r.at.String())
	}
	for i, r := range nodes {
		z := f.zone
		if i > 0 {
			z.Names = 0
		}
		if err := writeNode(z, filepath.Join(r.dir, "state")); err != nil {
			return err
		}
		peers := slices.Delete(slices.Clone(urls), i, i+1)
		r.env = []string{"PATH=" + os.Getenv("PATH"), "DMP_STATE_DIR=" + filepath.Join(r.dir, "state"), "DMP_DOMAIN=" + f.zone.Name, "DMP_NODE_HOSTNAME=" + f.zone.Name,
			"DMP_DNS_HOST=127.0.0.1", fmt.Sprintf("DMP_DNS_PORT=%d", r.s.Addr.Port()), "DMP_HTTP_HOST=127.0.0.1", fmt.Sprintf("DMP_HTTP_PORT=%d", r.at.Port()),
			"DMP_AUTH_MODE=multi-tenant", "DMP_OPERATOR_TOKEN=bench", "DMP_DNS_UPDATE_ENABLED=1", "DMP_LOG_LEVEL=WARNING", "DMP_RRL_RATE=0", "DMP_MAX_WRITER_RECORDS=0",
			"DMP_SYNC_PEER_TOKEN=bench-peers", "DMP_SYNC_PEERS=" + strings.Join(peers, ","), "DMP_SYNC_NATIVE=clear", fmt.Sprint("DMP_NODE_ID=n", i)}
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
			return err
		}
	}
	for _, r := range nodes[1:] {
		if err := r.has(f.zone, 0, f.zone.Names); err != nil {
			return err
		}
	}
	cold := time.Since(began)
	fmt.Fprintf(s.Progress, "  two new nodes have %d records after %s\n", f.zone.Names, cold.Round(time.Millisecond))

	// Single records, while others are written.
	from := uint64(f.zone.Names)
	samples := replicaSamples
	outage := outageRecords
	if s.Quick {
		samples, outage = 50, 5000
	}
	background := 120 * replicaWrites
	others, err := NewUpdates(f.zone, from, background)
	if err != nil {
		return err
	}
	single, err := NewUpdates(f.zone, from+uint64(background), samples)
	if err != nil {
		return err
	}
	type written struct {
		r   Result
		err error
	}
	stop := make(chan struct{})
	wrote := make(chan written, 1)
	go func() {
		var sum written
		for k := 0; k+replicaWrites <= background; k += replicaWrites { // a second at a time
			select {
			case <-stop:
				wrote <- sum
				return
			default:
			}
			part := &Updates{zone: others.zone, from: others.from + uint64(k), msgs: others.msgs[k : k+replicaWrites]}
			r, err := Load{Target: nodes[0].s.Addr, Duration: 2 * time.Second, QPS: replicaWrites, Sockets: 4, Messages: replicaWrites}.Run(reordered{part, k})
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
	for k := range samples {
		sent := time.Now()
		rcode, err := exchange(nodes[0].s.Addr, single.msgs[k])
		if err == nil && rcode != dns.RcodeSuccess {
			err = errors.New(dns.RcodeToString[rcode])
		}
		if err != nil {
			return fmt.Errorf("bench: single update %d: %w", k, err)
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
					return fmt.Errorf("bench: a record did not come to %s within a minute: %s", r.s.Name, r.s.tail())
				}
				time.Sleep(300 * time.Microsecond)
			}
		}
		took = append(took, time.Since(sent)) // at both
	}
	close(stop)
	w := <-wrote
	if w.err != nil {
		return w.err
	}
	slices.Sort(took)
	quantile := func(q float64) float64 { return took[min(len(took)-1, int(q*float64(len(took))))].Seconds() * 1000 }
	fmt.Fprintf(s.Progress, "  a record is at both others after %.3g ms (p50), %.3g ms (p99), beside %.0f updates/s\n", quantile(0.5), quantile(0.99), float64(w.r.Answered)/w.r.Elapsed.Seconds())

	// An outage.
	away := nodes[2]
	away.s.Stop()
	first := from + uint64(background+samples)
	missed, err := NewUpdates(f.zone, first, outage)
	if err != nil {
		return err
	}
	r, err := Load{Target: nodes[0].s.Addr, Duration: replicaLimit, Window: 64, Sockets: 8, Messages: outage}.Run(missed)
	if err != nil || r.Wrong > 0 || r.Lost > 0 {
		return fmt.Errorf("bench: writing during the outage: %d wrong (%v), %d lost, %w", r.Wrong, r.FirstWrong, r.Lost, err)
	}
	back := time.Now()
	if err := away.start(f); err != nil {
		return err
	}
	if err := away.has(f.zone, first, outage); err != nil {
		return err
	}
	caught := time.Since(back)
	ms := make([]float64, len(took))
	for i, d := range took {
		ms[i] = three(d.Seconds() * 1000)
	}
	s.record("dmpd", map[string]any{"cold_s": cold.Seconds(), "record_at_both_ms": ms, "updates_per_s": float64(w.r.Answered) / w.r.Elapsed.Seconds(), "outage_records": outage, "outage_s": caught.Seconds()})
	fmt.Fprintf(s.Progress, "  %d records that were missed are there %s after the start\n", outage, caught.Round(time.Millisecond))

	fmt.Fprintf(s.Out, "\n### %s (`%s`)\n\n%s\n\n", sc.title, sc.name, sc.note)
	fmt.Fprintf(s.Out, "| two new nodes at once | a record at both others, p50 ms | p90 | p99 | worst | beside updates / s | missed in an outage |\n|---|---|---|---|---|---|---|\n")
	fmt.Fprintf(s.Out, "| %d records in %.1f s | %.3g | %.3g | %.3g | %.3g | %.0f | %d records in %.1f s |\n", f.zone.Names, cold.Seconds(), quantile(0.5), quantile(0.9), quantile(0.99), took[len(took)-1].Seconds()*1000,
		float64(w.r.Answered)/w.r.Elapsed.Seconds(), outage, caught.Seconds())
	for _, r := range nodes {
		r.s.Stop()
		r.s.cmd = nil
	}
	return os.RemoveAll(dir)
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
