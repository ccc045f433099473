package store

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/vfs/vfstest"
)

// name makes a wire name from text; labels without escapes.
func name(text string) []byte {
	var b []byte
	for label := range strings.SplitSeq(text, ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0)
}

func rdata(value string) []byte { return record.AppendRDATA(nil, []byte(value)) }

func add(n, value string, ttlSec uint32) record.Op {
	return record.Op{Kind: record.OpAdd, Name: name(n), RDATA: rdata(value), TTLSec: ttlSec}
}

func owner(op record.Op) record.Op { op.MayDelete = true; return op }

func del(n, value string) record.Op {
	return record.Op{Kind: record.OpDelete, Name: name(n), RDATA: rdata(value), MayDelete: true}
}

const t0 = int64(1_800_000_000_000) // a multiple of a bucket

type node struct {
	*Store
	t      testing.TB
	fs     *vfstest.Sim
	nowMs  atomic.Int64
	o      Options
	reader *Reader
	fault  atomic.Pointer[func(op, name string) error] // what the file system asks
}

func newNode(t testing.TB, fs *vfstest.Sim, change func(o *Options)) *node {
	t.Helper()
	n := &node{t: t, fs: fs}
	n.nowMs.Store(t0)
	n.o = Options{FS: fs, Dir: "data", Zone: name("mesh.test"), Origin: [8]byte{1}, Manual: true, NowMs: n.nowMs.Load, Limits: Limits{ValuesMax: 64}}
	if change != nil {
		change(&n.o)
	}
	n.open()
	t.Cleanup(func() {
		if n.Store != nil {
			n.Close()
		}
	})
	return n
}

func (n *node) open() {
	n.t.Helper()
	n.o.FS = n.fs
	n.fs.Fault = func(op, name string) error {
		if f := n.fault.Load(); f != nil {
			return (*f)(op, name)
		}
		return nil
	}
	s, err := Open(n.o)
	if err != nil {
		n.t.Fatal("open:", err)
	}
	n.Store, n.reader = s, s.NewReader()
}

// crash loses what was not synced and opens what is left.
func (n *node) crash() {
	n.t.Helper()
	dead := func(string, string) error { return syscall.EIO }
	n.fault.Store(&dead)
	n.stopMerge.Store(true)
	n.call(func() {})
	n.mergeDone.Wait()
	fs := n.fs.Crash()
	n.Close()
	n.fault.Store(nil)
	n.fs = fs
	n.open()
}

func (n *node) reopen() {
	n.t.Helper()
	if err := n.Close(); err != nil {
		n.t.Fatal(err)
	}
	n.open()
}

// send submits batches so that they form one group, and waits for them.
func (n *node) send(batches ...*Batch) []Result {
	n.t.Helper()
	results := make([]Result, len(batches))
	var wait sync.WaitGroup
	wait.Add(len(batches))
	n.call(func() {
		for i, b := range batches {
			b.Done = func(r Result) { results[i] = r; wait.Done() }
			if !n.Submit(b) {
				n.t.Error("queue full")
				wait.Done()
			}
		}
	})
	wait.Wait()
	return results
}

func (n *node) do(ops ...record.Op) Result { n.t.Helper(); return n.send(&Batch{Ops: ops})[0] }

// values is what a query would see.
func (n *node) values(text string) string {
	n.reader.Enter()
	defer n.reader.Leave()
	set, _ := n.View().Lookup(name(text))
	var out []string
	set.Each(func(v Value) bool {
		if v.ExpMs > n.nowMs.Load() {
			out = append(out, string(record.AppendValue(nil, v.RDATA)))
		}
		return true
	})
	answers, count, whole := set.AppendAnswers(nil, 60, n.nowMs.Load(), 1<<20)
	live, size, _ := set.Live(n.nowMs.Load())
	if count != len(out) || live != len(out) || size != len(answers) || !whole {
		n.t.Errorf("%s: %d values, %d answers, Live says %d and %d of %d bytes", text, len(out), count, live, size, len(answers))
	}
	return strings.Join(out, " ")
}

func (n *node) want(text, values string) {
	n.t.Helper()
	if got := n.values(text); got != values {
		n.t.Errorf("%s holds %q, want %q", text, got, values)
	}
}

// TestDecide is a conversation with one node; each line is one message.
func TestDecide(t *testing.T) {
	t.Parallel()
	n := newNode(t, vfstest.New(1), func(o *Options) { o.Limits = Limits{ValuesMax: 8, RecordsMax: 40, WriterRecordsMax: 4} })
	const a, b = "a.mesh.test", "b.mesh.test"
	writer := [16]byte{7}
	big := strings.Repeat("x", 2000)
	check := func(what string, got Result, code record.Code, rcode uint8, applied int) {
		t.Helper()
		if got != (Result{code, rcode, applied}) {
			t.Errorf("%s: %v rcode %d applied %d, want %v rcode %d applied %d", what, got.Code, got.Rcode, got.Applied, code, rcode, applied)
		}
	}
	check("add", n.do(add(a, "1", 300)), record.CodeStored, 0, 1)
	check("again with a shorter life", n.do(add(a, "1", 100)), record.CodeUnchanged, 0, 0)
	n.nowMs.Add(200_000)
	n.want(a, "1")
	check("again with a longer life", n.do(add(a, "1", 200)), record.CodeStored, 0, 1)
	n.nowMs.Add(150_000)
	n.want(a, "1")
	check("shortened by right", n.do(owner(add(a, "1", 10))), record.CodeStored, 0, 1)
	n.nowMs.Add(10_000)
	n.want(a, "")
	check("TTL 0 is 60 s (dns.md 5.4)", n.do(add(a, "0", 0), add(a, "top bit", 1<<31)), record.CodeStored, 0, 2)
	n.nowMs.Add(59_999)
	n.want(a, "0 top bit")
	n.nowMs.Add(1)
	n.want(a, "")

	// RFC 2136 3.4.2.3 and 3.4.2.4: deleting what is not there succeeds
	check("delete absent", n.do(del(a, "1")), record.CodeAbsent, 0, 0)
	check("delete absent RRset", n.do(record.Op{Kind: record.OpDeleteRRset, Name: name(a)}), record.CodeAbsent, 0, 0)
	// dns.md 5.2: the order of operations holds
	check("add, delete RRset, add", n.do(add(a, "x", 600), record.Op{Kind: record.OpDeleteRRset, Name: name(a)}, add(a, "y", 600)), record.CodeStored, 0, 3)
	n.want(a, "y")
	check("delete and add the same", n.do(del(a, "y"), add(a, "y", 600)), record.CodeStored, 0, 2)
	n.want(a, "y")
	check("add and delete the same", n.do(add(a, "y", 700), del(a, "y")), record.CodeStored, 0, 2)
	n.want(a, "")

	// caps
	for i := range 7 {
		check("stranger", n.do(add(b, fmt.Sprint(i), 600)), record.CodeStored, 0, 1)
	}
	check("an eighth is kept for owners", n.do(add(b, "7", 600)), record.CodeFull, rcodeRefused, 0)
	check("a refresh at a full name", n.do(add(b, "6", 700)), record.CodeStored, 0, 1)
	check("owner", n.do(owner(add(b, "7", 600))), record.CodeStored, 0, 1)
	check("owner at the limit", n.do(owner(add(b, "8", 600))), record.CodeFull, rcodeRefused, 0)
	check("whole message or nothing", n.do(add(a, "z", 600), owner(add(b, "8", 600))), record.CodeFull, rcodeRefused, 0)
	n.want(a, "")
	check("deletes make room, in either order", n.do(owner(add(b, "8", 600)), del(b, "7")), record.CodeStored, 0, 2)
	check("own records are exempt", n.do(record.Op{Kind: record.OpAdd, Name: name(b), RDATA: rdata("own"), TTLSec: 600, CapExempt: true}), record.CodeStored, 0, 1)
	n.want(b, "0 1 2 3 4 5 6 8 own")
	check("replace", n.do(record.Op{Kind: record.OpReplace, Name: name(b), RDATA: rdata("own"), TTLSec: 900}, record.Op{Kind: record.OpReplace, Name: name(b), RDATA: rdata("new"), TTLSec: 900}), record.CodeStored, 0, 10)
	n.want(b, "new own")

	// the answer fits a TCP message
	var many []record.Op
	for i := range 33 {
		many = append(many, record.Op{Kind: record.OpAdd, Name: name("big.mesh.test"), RDATA: rdata(fmt.Sprint(i, big)), TTLSec: 60, ValuesMax: 100})
	}
	check("over 65,535 bytes", n.do(many...), record.CodeTooBig, rcodeRefused, 0)
	n.want("big.mesh.test", "")

	// quotas
	quota := func(op record.Op) Result { return n.send(&Batch{Ops: []record.Op{op}, Writer: writer})[0] }
	for i := range 4 {
		check("within the quota", quota(add(fmt.Sprintf("q%d.mesh.test", i), "q", 600)), record.CodeStored, 0, 1)
	}
	check("over the quota", quota(add("q5.mesh.test", "q", 600)), record.CodeQuota, rcodeRefused, 0)
	check("refresh at the quota", quota(add("q0.mesh.test", "q", 700)), record.CodeStored, 0, 1)
	check("delete gives back", quota(del("q1.mesh.test", "q")), record.CodeStored, 0, 1)
	check("room again", quota(add("q5.mesh.test", "q", 600)), record.CodeStored, 0, 1)
	check("others have their own", n.do(add("q6.mesh.test", "q", 600)), record.CodeStored, 0, 1)

	// the node's caps count tombstones too
	room := 40 - int(n.Stats().Records+n.Stats().Tombstones)
	for i := range room {
		check("room for records", n.do(add(fmt.Sprintf("c%d.mesh.test", i), "c", 600)), record.CodeStored, 0, 1)
	}
	check("node full", n.do(add("c.mesh.test", "c", 600)), record.CodeStoreFull, rcodeServFail, 0)
	check("a full node still deletes", n.do(del("c0.mesh.test", "c")), record.CodeStored, 0, 1)
	n.SetLimits(Limits{BytesMax: n.Stats().Bytes + 100})
	check("bytes", n.do(add("c.mesh.test", big, 600)), record.CodeStoreFull, rcodeServFail, 0)

	// key still live
	dead := &Batch{Ops: []record.Op{add("k.mesh.test", "k", 60)}, KeyLive: func() bool { return false }}
	check("revoked", n.send(dead)[0], record.CodeKey, rcodeNotAuth, 0)
}

// TestPrerequisites: RFC 2136 3.2, judged over what the messages before in the same group did.
func TestPrerequisites(t *testing.T) {
	t.Parallel()
	n := newNode(t, vfstest.New(2), nil)
	const a = "a.mesh.test"
	n.do(add(a, "1", 60), add(a, "2", 60), add("x.below.mesh.test", "1", 60))
	for i, c := range []struct {
		kind   PrereqKind
		name   string
		values []string
		rcode  uint8
	}{
		{NameInUse, a, nil, 0}, {NameInUse, "none.mesh.test", nil, rcodeNXDomain},
		{NameInUse, "below.mesh.test", nil, rcodeNXDomain}, // an empty non-terminal is not in use
		{NameNotInUse, "none.mesh.test", nil, 0}, {NameNotInUse, a, nil, rcodeYXDomain},
		{RRsetExists, a, nil, 0}, {RRsetExists, "none.mesh.test", nil, rcodeNXRRSet},
		{RRsetAbsent, "none.mesh.test", nil, 0}, {RRsetAbsent, a, nil, rcodeYXRRSet},
		{RRsetEqual, a, []string{"2", "1"}, 0}, {RRsetEqual, a, []string{"2", "1", "1"}, 0},
		{RRsetEqual, a, []string{"1"}, rcodeNXRRSet}, {RRsetEqual, a, []string{"1", "2", "3"}, rcodeNXRRSet},
		{RRsetEqual, a, []string{"1", "1"}, rcodeNXRRSet},
	} {
		p := Prereq{Kind: c.kind, Name: name(c.name)}
		for _, v := range c.values {
			p.Values = append(p.Values, rdata(v))
		}
		r := n.send(&Batch{Prereqs: []Prereq{p}, Ops: []record.Op{add("done.mesh.test", fmt.Sprint(i), 60)}})[0]
		if r.Rcode != c.rcode || (r.Applied == 1) != (c.rcode == 0) {
			t.Errorf("case %d: rcode %d applied %d, want rcode %d", i, r.Rcode, r.Applied, c.rcode)
		}
	}
	// two that want to be the first: one group, one winner
	first := func(v string) *Batch {
		return &Batch{Prereqs: []Prereq{{Kind: NameNotInUse, Name: name("race.mesh.test")}}, Ops: []record.Op{add("race.mesh.test", v, 60)}}
	}
	if r := n.send(first("one"), first("two")); r[0].Rcode != 0 || r[1].Rcode != rcodeYXDomain {
		t.Errorf("first wins: %v", r)
	}
	n.want("race.mesh.test", "one")
}

func TestBelow(t *testing.T) {
	t.Parallel()
	n := newNode(t, vfstest.New(3), nil)
	below := func(text string, want bool) {
		t.Helper()
		n.reader.Enter()
		defer n.reader.Leave()
		if got := n.View().HasBelow(name(text), n.nowMs.Load()); got != want {
			t.Errorf("names below %s: %v, want %v", text, got, want)
		}
	}
	n.do(add("a.b.c.mesh.test", "1", 60), add("c.mesh.test", "1", 600), add("x.b.c.mesh.test", "1", 30))
	below("b.c.mesh.test", true)
	below("c.mesh.test", true)
	below("a.b.c.mesh.test", false)
	below("mesh.test", true)
	n.do(del("a.b.c.mesh.test", "1"))
	below("b.c.mesh.test", true)
	n.do(del("x.b.c.mesh.test", "1"))
	below("b.c.mesh.test", false)
	below("c.mesh.test", false)
	below("mesh.test", true)
	n.want("c.mesh.test", "1")
	n.do(add("a.b.c.mesh.test", "1", 60), del("c.mesh.test", "1"))
	n.want("c.mesh.test", "")
	below("c.mesh.test", true)
	n.nowMs.Add(60_000) // expired, not cut yet
	below("c.mesh.test", false)
	n.nowMs.Add(10_000)
	n.Tick()
	n.Tick()
	below("b.c.mesh.test", false)
	if st := n.Stats(); st.Records != 0 || st.Names != 0 || n.tree.entries != 0 {
		t.Errorf("left: %+v, %d entries", st, n.tree.entries)
	}
}

// TestFailedSync: the group is refused and was never there; a request waits and is stored later, once, unless it is voided.
func TestFailedSync(t *testing.T) {
	t.Parallel()
	fs := vfstest.New(4)
	n := newNode(t, fs, nil)
	n.do(add("a.mesh.test", "1", 600))
	broken := func(op, _ string) error {
		if op == "sync" || op == "write" {
			return syscall.EIO
		}
		return nil
	}
	n.fault.Store(&broken)
	serial := n.Serial()
	if r := n.do(add("a.mesh.test", "2", 600)); r.Rcode != rcodeServFail {
		t.Fatal("a failed sync is answered with", r)
	}
	n.want("a.mesh.test", "1")
	if n.Serial() != serial || n.Stats().FailSyncs == 0 {
		t.Error("serial moved, or the failure is not counted", n.Stats())
	}
	n.Tick() // a request that is taken while the disk is broken
	done := make(chan Result, 4)
	req := func(v string) *record.Request {
		return &record.Request{Source: record.SourceHTTP, Ops: []record.Op{add("r.mesh.test", v, 600)}}
	}
	for i, v := range []string{"kept", "voided"} {
		if err := n.SubmitRequest(uint64(i+1), req(v), func(r Result) { done <- r }); err != nil {
			t.Fatal(err)
		}
	}
	poll(t, func() bool { return n.Stats().FailSyncs >= 2 })
	n.Tick()
	if err := n.SubmitVoid(3, 2); err != nil {
		t.Fatal(err)
	}
	n.fault.Store(nil)
	poll(t, func() bool { n.Tick(); return n.Taken().Requests >= 2 })
	if a, b := <-done, <-done; a.Code != record.CodeStored || b.Code != record.CodeVoid {
		t.Error("outcomes", a, b)
	}
	n.want("r.mesh.test", "kept")
	if r := n.do(add("a.mesh.test", "3", 600)); r.Rcode != 0 {
		t.Error("after the disk is well again:", r)
	}
	before := n.values("r.mesh.test")
	n.crash()
	n.want("a.mesh.test", "1 3")
	n.want("r.mesh.test", before)
	if n.Recovered().Requests < 2 {
		t.Error("taken", n.Recovered())
	}
}

func poll(t testing.TB, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited for a minute")
		}
	}
}

// TestDiskFull: below the low-water mark changes are refused, queries go on, and it recovers by itself.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	fs := vfstest.New(5)
	n := newNode(t, fs, nil)
	n.do(add("a.mesh.test", "1", 600))
	free := func(b int64) { n.call(func() { fs.FreeBytes = b }); n.Tick() }
	free(n.o.FreeMin + 1<<20)
	for _, c := range []struct {
		free  int64
		rcode uint8
	}{{10 << 20, 0}, {1<<20 + 10, rcodeServFail}, {100, rcodeServFail}, {10 << 20, 0}} {
		free(c.free)
		r := n.do(owner(add("a.mesh.test", "1", 600+uint32(c.free%7))))
		if r.Rcode != c.rcode || n.Stats().ReadOnly != (c.rcode != 0) {
			t.Errorf("with %d bytes free: %v, read-only %v", c.free, r, n.Stats().ReadOnly)
		}
		n.want("a.mesh.test", "1")
	}
	// a disk that is full without having said so
	full := func(op, _ string) error {
		if op == "allocate" || op == "write" {
			return syscall.ENOSPC
		}
		return nil
	}
	n.fault.Store(&full)
	if r := n.do(add("a.mesh.test", "2", 600)); r.Rcode != rcodeServFail {
		t.Error("ENOSPC is answered with", r)
	}
	n.fault.Store(nil)
	if r := n.do(add("a.mesh.test", "2", 600)); r.Rcode != 0 {
		t.Error("after ENOSPC:", r)
	}
	n.crash()
	n.want("a.mesh.test", "1 2")
}

func TestSerial(t *testing.T) {
	t.Parallel()
	n := newNode(t, vfstest.New(6), nil)
	last, feed := n.Serial(), int64(0)
	steps := 0
	for i := range 400 { // a hundred groups a second for 4 seconds
		n.do(owner(add("a.mesh.test", "1", 600+uint32(i))))
		now := n.Serial()
		if int32(now-last) < 0 {
			t.Fatal("the serial went back", last, now)
		}
		if now != last {
			steps++
		}
		last = now
		if f := n.Stats().FeedMs; f <= feed {
			t.Fatal("feed stamp", f, "after", feed)
		} else {
			feed = f
		}
		n.nowMs.Add(10)
	}
	if unix := uint32(n.nowMs.Load() / 1000); int32(last-unix) > serialAhead || steps > serialAhead+6 {
		t.Errorf("serial %d at %d after %d steps", last, unix, steps)
	}
	n.nowMs.Add(100_000) // a change that had no step of its own gets one
	n.Tick()
	if n.Serial() == last {
		t.Error("the last change never had a step")
	}
	last = n.Serial()
	n.nowMs.Add(-3_600_000) // the clock steps back
	n.crash()
	if n.Serial() != last {
		t.Errorf("serial %d after a start, %d before", n.Serial(), last)
	}
	if r := n.do(add("b.mesh.test", "1", 60)); r.Rcode != 0 || int32(n.Serial()-last) < 0 || n.Stats().FeedMs <= feed {
		t.Error("after a step back:", r, n.Serial(), n.Stats().FeedMs)
	}
	n.o.FirstSerial = last + 1000 // a restored zone
	n.reopen()
	if int32(n.Serial()-last) < 1000 {
		t.Error("restored serial", n.Serial())
	}
	if ok, _ := nextSerial(1<<32-1, 1000, 0); ok != 1 && ok != 0 {
		t.Error("wrap", ok)
	}
}

func TestMerge(t *testing.T) {
	t.Parallel()
	n := newNode(t, vfstest.New(7), func(o *Options) { o.Limits.ValuesMax = 2 })
	row := func(v string, add, del int64, expMs int64) record.Op {
		return record.Op{Kind: record.OpMerge, Row: &record.Row{Name: name("m.mesh.test"), RDATA: rdata(v), Hash: record.HashOf(rdata(v)), Add: record.HLCAt(add), Del: record.HLCAt(max(del, 0)), ExpMs: expMs, Origin: [8]byte{9}}}
	}
	code := func(what string, want record.Code, ops ...record.Op) {
		t.Helper()
		if r := n.do(ops...); r.Code != want {
			t.Errorf("%s: %v, want %v", what, r.Code, want)
		}
	}
	code("new", record.CodeStored, row("1", t0-5000, 0, t0+60_000))
	code("the same", record.CodeUnchanged, row("1", t0-5000, 0, t0+60_000))
	code("older", record.CodeUnchanged, row("1", t0-6000, 0, t0+90_000))
	code("newer and shorter wins", record.CodeStored, row("1", t0-4000, 0, t0+30_000))
	code("stamp ahead", record.CodeStamp, row("2", t0+61_001, 0, t0+90_000))
	code("a bad one does not undo the others", record.CodeStamp, row("2", t0, 0, t0+90_000), row("3", t0, t0+70_000, t0+90_000))
	n.want("m.mesh.test", "1 2")
	code("expired on its way", record.CodeUnchanged, row("4", t0-9000, 0, t0))
	code("the name's cap does not bind a merge", record.CodeStored, row("5", t0, 0, t0+90_000))
	code("deleted there", record.CodeStored, row("1", t0-4000, t0-3000, t0+30_000))
	code("a copy from before the delete stays away", record.CodeStored, row("1", t0-3500, 0, t0+900_000))
	code("a delete of something unknown", record.CodeStored, row("6", t0-4000, t0-3000, t0+30_000))
	code("whose old copy stays away too", record.CodeStored, row("6", t0-3500, 0, t0+900_000))
	n.want("m.mesh.test", "2 5")
	n.reopen()
	code("after a restart as well", record.CodeUnchanged, row("6", t0-3500, 0, t0+900_000))
	code("a newer publish wins", record.CodeStored, row("6", t0-2000, 0, t0+50_000))
	n.want("m.mesh.test", "2 5 6")
	code("delete here", record.CodeStored, del("m.mesh.test", "6"))
	code("then a copy from there", record.CodeUnchanged, row("6", t0-2000, 0, t0+50_000))
	// in one group: a peer's delete of something unknown, then an add of it here
	r := n.send(&Batch{Ops: []record.Op{row("7", t0-4000, t0-3000, t0+30_000)}}, &Batch{Ops: []record.Op{add("m7.mesh.test", "7", 60), owner(del("m.mesh.test", "2")), owner(del("m.mesh.test", "5")), add("m.mesh.test", "7", 60)}})
	if r[0].Rcode != 0 || r[1].Rcode != 0 {
		t.Error(r)
	}
	n.want("m.mesh.test", "7")
	n.crash()
	n.want("m.mesh.test", "7")
	// a tombstone is forgotten when no copy can be alive
	n.nowMs.Add(n.o.TombstoneLifeMs + 86_400_000 + 200_000)
	n.Tick()
	n.Tick()
	if st := n.Stats(); st.Tombstones > 0 {
		n.do(add("later.mesh.test", "1", 60))
		if st := n.Stats(); st.Tombstones > 0 {
			t.Error("tombstones left:", st.Tombstones)
		}
	}
}

// TestReload: an index that grows while it is read, from the log alone and from a snapshot, leads to every name, and grows on afterwards.
func TestReload(t *testing.T) {
	t.Parallel()
	for what, mergeMin := range map[string]int64{"log": 1 << 30, "snapshot": 1} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, vfstest.New(3), func(o *Options) { o.MergeMin = mergeMin })
			const names = 3000 // a hundred pages, where a store without a snapshot begins with 16
			text := func(i int) string { return fmt.Sprintf("n%d.s%d.mesh.test", i, i%7) }
			for i := 0; i < names; i += 50 {
				var ops []record.Op
				for j := i; j < i+50; j++ {
					ops = append(ops, add(text(j), strconv.Itoa(j), 600))
				}
				if i > 0 {
					ops = append(ops, owner(del(text(i-1), strconv.Itoa(i-1))))
				}
				if r := n.do(ops...); r.Rcode != 0 {
					t.Fatal(r)
				}
			}
			check := func() {
				t.Helper()
				for i := range names {
					want := strconv.Itoa(i)
					if i%50 == 49 && i < names-1 {
						want = ""
					}
					n.want(text(i), want)
				}
				n.checkGauges()
			}
			n.Tick()
			n.mergeDone.Wait()
			n.reopen()
			if n.Stats().SnapshotBytes > 0 != (what == "snapshot") {
				t.Error("bytes of the snapshot:", n.Stats().SnapshotBytes)
			}
			check()
			for i := range 600 {
				n.do(add(fmt.Sprintf("later%d.mesh.test", i), "x", 600))
			}
			n.want("later599.mesh.test", "x")
			check()
		})
	}
}

// TestOffer: what a peer without stamps offers is decided by what is here at commit (cluster.md 17.4, legacy offers; 8.5; 15, W11).
func TestOffer(t *testing.T) {
	t.Parallel()
	n := newNode(t, vfstest.New(8), func(o *Options) { o.Limits.ValuesMax = 2 })
	offer := func(v string, add, expMs int64) record.Op {
		return record.Op{Kind: record.OpOffer, Row: &record.Row{Name: name("o.mesh.test"), RDATA: rdata(v), Hash: record.HashOf(rdata(v)), Add: record.HLCAt(add), ExpMs: expMs}}
	}
	manifest := func(op record.Op) record.Op { op.CapExempt = true; return op }
	code := func(what string, want record.Code, ops ...record.Op) {
		t.Helper()
		if r := n.do(ops...); r.Code != want {
			t.Errorf("%s: %v, want %v", what, r.Code, want)
		}
	}
	code("new", record.CodeStored, offer("1", t0-9000, t0+60_000))
	code("the same", record.CodeUnchanged, offer("1", t0-9000, t0+60_000))
	code("within the slop", record.CodeUnchanged, offer("1", t0-1000, t0+65_000))
	code("shorter", record.CodeUnchanged, offer("1", t0-1000, t0+1000))
	code("a refresh, of an older stamp too", record.CodeRefreshed, offer("1", t0-20_000, t0+65_001))
	code("ended on its way", record.CodeUnchanged, offer("2", t0-9000, t0))
	code("a stamp ahead", record.CodeStamp, offer("2", t0+61_001, t0+90_000))
	n.want("o.mesh.test", "1")

	n.nowMs.Add(100_000)
	now := n.nowMs.Load()
	code("expired here, alive there", record.CodeStored, offer("1", t0-9000, now+30_000))
	n.nowMs.Add(1)
	code("deleted here", record.CodeStored, del("o.mesh.test", "1"))
	for i, restart := range []func(){func() {}, n.reopen, n.crash} {
		restart()
		code(fmt.Sprint(i, " the old copy"), record.CodeTombstoned, offer("1", t0-9000, now+30_000))
		code(fmt.Sprint(i, " an older stamp, whatever its life"), record.CodeTombstoned, offer("1", now+5001, now+300_000))
		code(fmt.Sprint(i, " a relay's newer stamp on the old life"), record.CodeTombstoned, offer("1", now+20_000, now+40_000))
		n.want("o.mesh.test", "")
	}
	n.nowMs.Add(10_000)
	code("a genuine publish", record.CodeStored, offer("1", now+5002, now+40_001))
	n.want("o.mesh.test", "1")
	r := n.send(&Batch{Ops: []record.Op{owner(del("o.mesh.test", "1"))}}, &Batch{Ops: []record.Op{offer("1", now+5002, now+40_001)}})
	if r[0].Code != record.CodeStored || r[1].Code != record.CodeTombstoned {
		t.Error("a delete and the old copy in one group:", r)
	}
	n.want("o.mesh.test", "")
	code("no tombstone binds a manifest", record.CodeStored, manifest(offer("1", t0-9000, now+40_000)))

	// a peer fills a name twice as far as writers here may, and no further
	for i, want := range []record.Code{record.CodeStored, record.CodeStored, record.CodeStored, record.CodeFull} {
		code(fmt.Sprint("value ", i), want, offer(fmt.Sprint("v", i), now, now+90_000))
	}
	code("a manifest beside them", record.CodeStored, manifest(offer("v9", now, now+90_000)))
	n.want("o.mesh.test", "1 v0 v1 v2 v9")
	n.crash()
	n.want("o.mesh.test", "1 v0 v1 v2 v9")
}

// TestOfferBeforeDelete: a node that has not heard of a delete takes the value from a peer whose clock it knows badly, and then hears of it.
func TestOfferBeforeDelete(t *testing.T) {
	t.Parallel()
	n := newNode(t, vfstest.New(10), nil)
	row := func(addMs, delMs int64) *record.Row {
		return &record.Row{Name: name("o.mesh.test"), RDATA: rdata("1"), Hash: record.HashOf(rdata("1")), Add: record.HLCAt(addMs), Del: record.HLCAt(delMs), ExpMs: t0 + 60_000}
	}
	const late = offerSlopMs - 1
	for _, op := range []record.Op{{Kind: record.OpOffer, Row: row(t0-1000+late, 0)}, {Kind: record.OpMerge, Row: row(t0-1000, t0-999)}} {
		if r := n.do(op); r.Code != record.CodeStored {
			t.Errorf("%v: %v", op.Kind, r.Code)
		}
	}
	n.want("o.mesh.test", "")

	// A stamp of long ago is still one: without any, other nodes would take the value for one that was never published.
	old := row(0, 0)
	old.Name = name("old.mesh.test")
	n.do(record.Op{Kind: record.OpOffer, Row: old})
	if values := n.tree.lookup(old.Name).unpack(nil); len(values) != 1 || values[0].add == 0 {
		t.Error(values)
	}
}

// TestRefreshKeepsDelete: what a refresh says of an element replaces all that was said before, so the delete that lies before it must be in
// it as long as it is remembered; other nodes remember it too, and the states are compared.
func TestRefreshKeepsDelete(t *testing.T) {
	t.Parallel()
	n := newNode(t, vfstest.New(9), nil)
	n.do(add("r.mesh.test", "1", 60))
	n.do(del("r.mesh.test", "1"))
	n.do(add("r.mesh.test", "1", 60))
	n.crash()
	n.do(add("r.mesh.test", "1", 90))
	n.do(record.Op{Kind: record.OpOffer, Row: &record.Row{Name: name("r.mesh.test"), RDATA: rdata("1"), Hash: record.HashOf(rdata("1")), Add: record.HLCAt(t0), ExpMs: t0 + 200_000}})
	r, err := journal.OpenReader(n.fs, "data", logName, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var deleted record.HLC
	kinds := ""
	for {
		_, payload, ok, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		if err := record.ReadFrame(payload, func(_ int64, e *record.Entry) error {
			switch e.Kind {
			case record.KindTombstone:
				deleted = e.Row.Del
			case record.KindPut, record.KindRefresh:
				if e.Row.Del != deleted {
					t.Errorf("entry of kind %d says that the delete was at %x, it was at %x", e.Kind, e.Row.Del, deleted)
				}
			default:
				return nil
			}
			kinds += fmt.Sprint(e.Kind)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if deleted == 0 || kinds != "13122" {
		t.Errorf("the log has entries of kinds %s, a delete at %x", kinds, deleted)
	}
}

// TestClockBack: a step back of the clock in the middle of clearing a cut loses nothing that is new.
func TestClockBack(t *testing.T) {
	t.Parallel()
	n := newNode(t, vfstest.New(8), nil)
	n.do(add("a.mesh.test", "old", 60))
	n.nowMs.Add(3_600_000)
	n.Tick() // the cut is written; clearing may still be going on
	n.nowMs.Add(-3_600_000)
	n.do(add("a.mesh.test", "new", 60))
	n.Tick()
	n.Tick()
	n.want("a.mesh.test", "new")
	n.crash()
	n.want("a.mesh.test", "new")
}

func TestErrorsOnClose(t *testing.T) {
	t.Parallel()
	n := newNode(t, vfstest.New(9), nil)
	n.Close()
	if n.Submit(&Batch{}) || !errors.Is(n.SubmitVoid(1, 0), ErrClosed) || !errors.Is(n.Close(), ErrClosed) {
		t.Error("a closed store takes something")
	}
	n.Store = nil
}
