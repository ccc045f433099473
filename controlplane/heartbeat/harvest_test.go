package heartbeat

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

// mesh gives a worker of own.example whose only resolver is s.
func mesh(t testing.TB, s *server, m *memory, change func(*Settings)) *Worker {
	t.Helper()
	o := options(m, "own.example", 1)
	o.SeenMax = 10000
	o.Settings = func() Settings {
		set := Settings{Interval: time.Minute, TTLSec: 86400, MaxPeers: 25, Retention: 72 * time.Hour, Resolvers: []string{s.addr}}
		change(&set)
		return set
	}
	w, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	w.askFor = time.Minute // a busy machine may be slow
	return w
}

func round(t testing.TB, w *Worker) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, a := range w.asked {
		a.next = time.Time{} // time passed
	}
	if err := w.round(ctx); err != nil {
		t.Fatal(err)
	}
}

// graph gives the endpoints in the seen graph, sorted.
func graph(t testing.TB, m *memory) (endpoints []string) {
	t.Helper()
	values, err := m.Values("_dnsmesh-seen.own.example")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range values {
		h, ok := parse(v, clock.NowMs()/1000)
		if !ok {
			t.Fatalf("%q in the seen graph", v)
		}
		endpoints = append(endpoints, strings.TrimPrefix(h.Endpoint, "https://"))
	}
	slices.Sort(endpoints)
	return endpoints
}

// TestHarvest: a seed and whom it has heard, first-hand and not; what is stale, from the future, forged or ourselves is left out.
func TestHarvest(t *testing.T) {
	t.Parallel()
	s, m := startServer(t, "127.0.0.1"), &memory{}
	w := mesh(t, s, m, func(x *Settings) { x.Seeds = []string{"https://Seed.Example:8053", "gone.example", "own.example."} })
	forged := signed(t, 9, "https://forged.example", "forged.example", 0)
	forged[60] ^= 1
	s.set("_dnsmesh-heartbeat.seed.example", signed(t, 2, "https://seed.example", "seed.example", 10))
	s.set("_dnsmesh-seen.seed.example", signed(t, 3, "https://third.example:8053", "third.example", 100), signed(t, 1, "https://own.example", "own.example", 5),
		signed(t, 4, "https://stale.example", "stale.example", 301), signed(t, 5, "https://old.example", "old.example", graphAgeSec+20), signed(t, 6, "https://ahead.example", "ahead.example", -200),
		signed(t, 7, "https://nowhere.example", "not_a_zone", 0), forged, []byte("v=dmp1;t=test"))
	s.set("_dnsmesh-heartbeat.third.example", signed(t, 3, "https://third.example:8053", "third.example", 20))
	foreign := []byte("an operator's note")
	m.values = map[string][][]byte{"_dnsmesh-seen.own.example": {foreign}}
	round(t, w)
	values, _ := m.Values("_dnsmesh-seen.own.example")
	if !bytes.Equal(values[0], foreign) {
		t.Fatalf("an operator's value is gone: %q", values)
	}
	m.mu.Lock()
	m.values["_dnsmesh-seen.own.example"] = values[1:]
	m.mu.Unlock()
	if got := graph(t, m); strings.Join(got, " ") != "nowhere.example seed.example third.example:8053" {
		t.Fatalf("%q", got)
	}
	round(t, w)
	third := w.Peers()[1]
	if p := w.Peers()[0]; p.At != "seed.example" || p.Via != "seed.example" || !p.FirstHand(clock.NowMs()) {
		t.Errorf("the seed: %+v", p)
	}
	if third.At != "third.example" || !third.FirstHand(clock.NowMs()) || third.Via != "seed.example" {
		t.Errorf("its peer: %+v", third)
	}
	st := w.Stats()
	if st.Rejected[RejectedTime].Load() == 0 || st.Rejected[RejectedSignature].Load() == 0 || st.Rejected[RejectedFormat].Load() == 0 || st.ZonesOK.Load() == 0 || st.ZonesFailed.Load() == 0 || st.GraphValues.Load() != 3 {
		t.Errorf("%+v", st)
	}
	// A peer that falls silent leaves the graph when its last heartbeat is of no use any more, though it is not expired.
	s.set("_dnsmesh-heartbeat.third.example")
	s.set("_dnsmesh-seen.seed.example")
	for _, p := range w.seen.peers {
		if p.At == "third.example" {
			p.TsSec -= graphAgeSec
		}
	}
	round(t, w)
	if got := graph(t, m); slices.Contains(got, "third.example:8053") {
		t.Errorf("%q", got)
	}
}

// TestFlood: 10,000 heartbeats of fresh keys, validly signed, with timestamps as favourable as can be and zones of the attacker's
// choosing, from a peer that a seed knows: they push nobody out, and the seen graph and the store keep their bounds.
func TestFlood(t *testing.T) {
	t.Parallel()
	s, m := startServer(t, "127.0.0.1"), &memory{}
	w := mesh(t, s, m, func(x *Settings) { x.Seeds = []string{"seed.example"} })
	const honest = 12
	names := func(n int) string { return fmt.Sprintf("honest%d.example", n) }
	fresh := func(age int64) {
		heard := [][]byte{signed(t, 90, "https://evil.example", "evil.example", 0)}
		for n := range honest {
			v := signed(t, 10+n, "https://"+names(n), names(n), age)
			s.set("_dnsmesh-heartbeat."+names(n), v)
			heard = append(heard, v)
		}
		s.set("_dnsmesh-heartbeat.seed.example", signed(t, 2, "https://seed.example", "seed.example", age))
		s.set("_dnsmesh-seen.seed.example", heard...)
	}
	fresh(60)
	s.set("_dnsmesh-heartbeat.evil.example", signed(t, 90, "https://evil.example", "evil.example", 0))
	for range 4 {
		round(t, w)
	}
	before := graph(t, m)
	if len(before) != honest+2 {
		t.Fatalf("%d peers before the flood: %q", len(before), before)
	}

	const flood = 10000
	made := make([][]byte, flood)
	for i := range made {
		// Some name zones that answer for themselves, some the evil zone, some a zone of the honest.
		zone := fmt.Sprintf("x%d.evil.example", i)
		switch i % 4 {
		case 1:
			zone = "evil.example"
		case 2:
			zone = names(i % honest)
		}
		made[i] = signed(t, 1000+i, fmt.Sprintf("https://x%d.evil.example", i), zone, -29)
		if i%4 == 0 {
			s.set("_dnsmesh-heartbeat."+zone, made[i])
		}
	}
	for i := 0; i < flood; i += 500 { // no RRset is larger than a message
		for j, name := range []string{"_dnsmesh-seen.evil.example", "_dnsmesh-heartbeat.evil.example"} {
			at := i + 250*j
			s.set(name, made[at:min(at+150, flood)]...)
		}
		fresh(50 - int64(i/500))
		round(t, w)
	}
	// And all of it put straight into the store, as if it had been read over days.
	for _, v := range made {
		var h record.Heartbeat
		if r := h.Verify(v, clock.NowMs()/1000, record.HeartbeatSkewSec); r != record.Accepted {
			t.Fatal(r)
		}
		w.seen.put(&h, v, "evil.example", false, false, clock.NowMs())
	}
	fresh(10)
	round(t, w)
	after := graph(t, m)
	for _, want := range before {
		if want != "evil.example" && !slices.Contains(after, want) {
			t.Errorf("%s was pushed out", want)
		}
	}
	if len(after) > graphMax {
		t.Errorf("%d values", len(after))
	}
	values, _ := m.Values("_dnsmesh-seen.own.example")
	size := 0
	for _, v := range values {
		size += len(v)
	}
	if size > graphBytesMax {
		t.Errorf("%d bytes", size)
	}
	evil := 0
	for _, e := range after {
		if strings.HasSuffix(e, "evil.example") {
			evil++
		}
	}
	if evil > graphPerVia+graphPerZone+1 {
		t.Errorf("%d of the flood are in the graph", evil)
	}
	if n := w.seen.introduced["evil.example"]; n > introducedMax || w.seen.len() > 2*introducedMax {
		t.Errorf("%d peers by way of the flooding zone, %d in all", n, w.seen.len())
	}
}

// TestManyZonesFlood: an attacker with a zone for each key, each of which answers for itself and tells of the next, cannot push out who
// was there before.
func TestManyZonesFlood(t *testing.T) {
	t.Parallel()
	nowMs := clock.NowMs()
	w := mesh(t, startServer(t, "127.0.0.1"), &memory{}, func(x *Settings) { x.Seeds = []string{"seed.example"} })
	put := func(n int, zone, via string, firstMs, ageSec int64) {
		v := signed(t, n, "https://"+zone, zone, ageSec)
		h, _ := parse(v, nowMs/1000)
		w.seen.put(&h, v, via, true, false, nowMs)
		w.seen.peers[peerKey{h.Operator, h.Endpoint}].FirstMs = firstMs
	}
	for i := range 40 {
		put(10+i, fmt.Sprintf("honest%d.example", i), fmt.Sprintf("honest%d.example", i), nowMs-1000, 60)
	}
	for i := range 1000 {
		put(1000+i, fmt.Sprintf("x%d.evil", i), fmt.Sprintf("x%d.evil", i), nowMs, -29)
	}
	set := w.o.Settings()
	chosen := choose(w.rank(&set, nowMs), func(string) bool { return false }, nowMs)
	honest := 0
	for _, p := range chosen {
		if strings.HasSuffix(p.At, ".example") {
			honest++
		}
	}
	if honest != 40 || len(chosen) != graphMax {
		t.Errorf("%d honest of %d", honest, len(chosen))
	}
}

// TestTargets: seeds do not starve gossip, gossip not the seeds, and everybody gets a turn.
func TestTargets(t *testing.T) {
	t.Parallel()
	seeds := []string{"own.example", "127.0.0.1", "bad_name.example"}
	for i := range 40 {
		seeds = append(seeds, fmt.Sprintf("seed%d.example", i))
	}
	w := mesh(t, startServer(t, "127.0.0.1"), &memory{}, func(x *Settings) { x.Seeds, x.MaxPeers = seeds, 9 })
	nowMs := clock.NowMs()
	for i := range 30 {
		zone := fmt.Sprintf("gossip%d.example", i)
		v := signed(t, 10+i, "https://"+zone, zone, 0)
		h, _ := parse(v, nowMs/1000)
		w.seen.put(&h, v, "seed0.example", i%2 == 0, false, nowMs)
	}
	set := w.o.Settings()
	count := map[string]int{}
	now := time.Now()
	for range 60 {
		ts := w.targets(&set, now)
		if len(ts) > 9 {
			t.Fatalf("%d zones in a round", len(ts))
		}
		for _, target := range ts {
			count[target.zone]++
			w.note(target, true, now, time.Minute)
		}
		now = now.Add(time.Minute)
	}
	if len(count) != 70 {
		t.Errorf("%d zones of 70 were asked", len(count))
	}
	// Back-off: a zone that fails is asked ever more rarely, a stranger's more so.
	for _, x := range []struct {
		source int
		most   time.Duration
	}{{fromOperator, backoffTrusted}, {fromGossip, backoffMax}} {
		target := target{"failing.example", x.source}
		delete(w.asked, target.zone)
		last := time.Duration(0)
		for range 100 {
			w.note(target, false, now, time.Minute)
			wait := w.asked[target.zone].next.Sub(now)
			if wait < last || wait > x.most || wait < time.Minute {
				t.Fatalf("%v after %v", wait, last)
			}
			last = wait
		}
		if last != x.most {
			t.Errorf("at the end %v", last)
		}
	}
	for i := range 2 * backoffZones {
		w.note(target{fmt.Sprintf("z%d.example", i), fromGossip}, false, now, time.Minute)
	}
	if len(w.asked) > backoffZones {
		t.Errorf("%d zones remembered", len(w.asked))
	}
}

// TestSlowZones: zones that do not answer cost a round no more than its time, and the others nothing.
func TestSlowZones(t *testing.T) {
	t.Parallel()
	s, m := startServer(t, "127.0.0.1"), &memory{}
	s.change(func(s *server) { s.slow = "slow" })
	seeds := []string{"good.example"}
	for i := range 20 {
		seeds = append(seeds, fmt.Sprintf("slow%d.example", i))
	}
	w := mesh(t, s, m, func(x *Settings) { x.Seeds = seeds })
	w.askFor = 3 * time.Second
	s.set("_dnsmesh-heartbeat.good.example", signed(t, 2, "https://good.example", "good.example", 0))
	round(t, w)
	if got := graph(t, m); !slices.Equal(got, []string{"good.example"}) {
		t.Errorf("%q", got)
	}
	if st := w.Stats(); st.ZonesOK.Load() != 1 || st.ZonesFailed.Load() != harvestAtOnce || st.ZonesSkipped.Load() != 20-harvestAtOnce {
		t.Errorf("ok %d, failed %d, skipped %d", st.ZonesOK.Load(), st.ZonesFailed.Load(), st.ZonesSkipped.Load())
	}
	// The next round begins with those that were left out.
	for _, x := range w.targets(&Settings{Seeds: seeds, MaxPeers: 12}, time.Now()) {
		if w.asked[x.zone] != nil && x.zone != "good.example" {
			t.Errorf("%s again", x.zone)
		}
	}
}

// TestValidated: where validated answers are wanted, others count for nothing.
func TestValidated(t *testing.T) {
	t.Parallel()
	s, m := startServer(t, "127.0.0.1"), &memory{}
	w := mesh(t, s, m, func(x *Settings) { x.Seeds, x.DNSSEC = []string{"seed.example"}, true })
	s.set("_dnsmesh-heartbeat.seed.example", signed(t, 2, "https://seed.example", "seed.example", 0))
	round(t, w)
	if n := w.Stats().NotAD.Load(); len(graph(t, m)) != 0 || n == 0 {
		t.Errorf("%q, %d dropped", graph(t, m), n)
	}
	s.change(func(s *server) { s.ad = true })
	w.resolvers = Resolvers{} // a minute passed
	round(t, w)
	if got := graph(t, m); !slices.Equal(got, []string{"seed.example"}) {
		t.Errorf("%q", got)
	}
}

// TestSeenStore: bounds, replacement, expiry, and the file.
func TestSeenStore(t *testing.T) {
	t.Parallel()
	nowMs := clock.NowMs()
	dir := t.TempDir()
	s := newSeen(5)
	put := func(s *seen, n int, age int64, own bool, receivedMs int64) bool {
		v := signed(t, n, fmt.Sprintf("https://n%d.example", n), fmt.Sprintf("n%d.example", n), age)
		h, ok := parse(v, nowMs/1000)
		if !ok {
			t.Fatal("not a heartbeat")
		}
		return s.put(&h, v, "via.example", own, true, receivedMs)
	}
	if !put(s, 1, 100, true, nowMs-5000) || put(s, 1, 200, true, nowMs) || !put(s, 1, 50, false, nowMs) {
		t.Error("the newest heartbeat of a peer is not the one that stays")
	}
	for n := 2; n <= 9; n++ {
		put(s, n, 0, false, nowMs-int64(1000-n))
	}
	if s.len() != 5 || s.peers[s.all()[0].key()].Endpoint != "https://n1.example" {
		t.Errorf("%d peers, and the one read at its own zone gave way", s.len())
	}
	if err := s.save(vfs.OS, dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, seenFile)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", info, err)
	}
	if peers, err := ReadSeen(dir, 5, nowMs); err != nil || len(peers) != 5 || peers[0].FirstHandMs != nowMs-5000 || peers[0].Via != "via.example" || peers[0].At != "n1.example" {
		t.Fatalf("%+v %v", peers, err)
	}
	if peers, err := ReadSeen(dir, 5, nowMs+86400_000); err != nil || len(peers) != 0 {
		t.Errorf("a day later: %d peers, %v", len(peers), err)
	}
	s.sweep(nowMs+1000_000, 1000)
	if s.len() != 0 || len(s.introduced) != 0 {
		t.Errorf("%d peers unheard of, %v", s.len(), s.introduced)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range good { // any damage is found
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 7)
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadSeen(dir, 5, nowMs); err == nil {
			t.Fatalf("damage at %d is not found", i)
		}
	}
	for _, bad := range [][]byte{nil, good[:len(good)/2], []byte(strings.Repeat("x", 1<<20))} {
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadSeen(dir, 5, nowMs); err == nil {
			t.Errorf("%d bytes read", len(bad))
		}
	}
	// The worker starts all the same, and writes a good file at its end.
	o := options(&memory{}, "own.example", 1)
	o.Dir, o.SeenMax = dir, 5
	w, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a round", func() bool { return w.stats.Rounds.Load() > 0 })
	put(w.seen, 1, 0, true, nowMs)
	w.Stop()
	if peers, err := ReadSeen(dir, 5, nowMs); err != nil || len(peers) != 1 {
		t.Errorf("%d peers, %v", len(peers), err)
	}
	if _, err := os.Stat(path + ".new"); err == nil {
		t.Error("a half-written file is left")
	}

	heard := []Heard{{string(signed(t, 7, "https://n7.example", "n7.example", 900)), "Seed.Example.", nowMs - 1000}, {"junk", "seed.example", 0},
		{string(signed(t, 8, "https://n8.example", "n8.example", 0)), "seed.example", math.MaxInt64}, {string(signed(t, 1, "https://n1.example", "n1.example", 500)), "seed.example", nowMs - 1000}}
	for _, dry := range []bool{true, false} {
		if done, err := ImportSeen(dir, 5, heard, nowMs, dry); err != nil || done.Added != 1 || done.Refused != 2 || done.Here != 1 || len(done.Wires) != 2 {
			t.Errorf("dry %v: %+v %v", dry, done, err)
		}
	}
	if done, err := ImportSeen(dir, 5, heard[:1], nowMs+86400_000*2, true); err != nil || done.Expired != 1 {
		t.Errorf("two days later: %+v %v", done, err)
	}
	if peers, err := ReadSeen(dir, 5, nowMs); err != nil || len(peers) != 2 || peers[0].Endpoint != "https://n7.example" || peers[0].Via != "seed.example" {
		t.Errorf("%+v %v", peers, err)
	}
}

// TestDifference: nodes that share the zone keep their values, up to a bound.
func TestDifference(t *testing.T) {
	t.Parallel()
	nowMs := clock.NowMs()
	peer := func(n int, age int64) *Peer {
		v := signed(t, n, fmt.Sprintf("https://n%d.example", n), "", age)
		h, _ := parse(v, nowMs/1000)
		return &Peer{Heartbeat: h, Wire: v}
	}
	mine, newer := peer(2, 10), peer(3, 10)
	ours := peer(4, 20)
	self := peer(1, 0)
	stored := [][]byte{mine.Wire, peer(3, 50).Wire, peer(5, 20).Wire, ours.Wire, self.Wire, peer(6, graphAgeSec+5).Wire, []byte("note")}
	add, remove := difference(stored, []*Peer{mine, newer}, map[string]bool{string(ours.Wire): true}, self.Operator, nowMs)
	if len(add) != 1 || !bytes.Equal(add[0], newer.Wire) || len(remove) != 4 || slices.ContainsFunc(remove, func(v []byte) bool { return bytes.Equal(v, mine.Wire) || string(v) == "note" }) {
		t.Errorf("add %q, remove %q", add, remove)
	}
	stored = nil
	for n := range 300 {
		stored = append(stored, peer(100+n, int64(n%200)).Wire)
	}
	_, remove = difference(stored, []*Peer{mine}, nil, self.Operator, nowMs)
	if left := len(stored) - len(remove); left != graphTotalMax-graphMax {
		t.Errorf("%d of others are left", left)
	}
}
