package record

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// states are few enough to meet each other in every order, and hit every tie.
func states() []Row {
	var all []Row
	name, rdata := []byte("\x01a\x04test\x00"), AppendRDATA(nil, []byte("value"))
	for _, add := range []HLC{1, 2} {
		for _, exp := range []int64{10, 20} {
			for _, del := range []HLC{0, 1, 3} {
				for origin := range byte(2) {
					for _, flags := range []uint8{FlagVerified, FlagCapExempt} {
						all = append(all, Row{Name: name, RDATA: rdata, Hash: HashOf(rdata), Add: add, Del: del, ExpMs: exp, Origin: [8]byte{origin}, Flags: flags})
					}
				}
			}
		}
	}
	return all
}

// cluster.md 17.4: the join is commutative, associative, idempotent.
func TestMergeIsAJoin(t *testing.T) {
	all := states()
	for _, a := range all {
		if got := Merge(a, a); !reflect.DeepEqual(got, a) {
			t.Fatalf("Merge(a, a) = %+v, a = %+v", got, a)
		}
		for _, b := range all {
			ab := Merge(a, b)
			if ba := Merge(b, a); !reflect.DeepEqual(ab, ba) {
				t.Fatalf("of %+v and %+v: %+v one way, %+v the other", a, b, ab, ba)
			}
			if ab.Del != max(a.Del, b.Del) || ab.Add != max(a.Add, b.Add) {
				t.Fatalf("of %+v and %+v: %+v", a, b, ab)
			}
			for _, c := range all {
				if l, r := Merge(ab, c), Merge(a, Merge(b, c)); !reflect.DeepEqual(l, r) {
					t.Fatalf("of %+v, %+v and %+v: %+v one way, %+v the other", a, b, c, l, r)
				}
			}
		}
	}
	// A delete without the value keeps the value that the other side has.
	a := all[0]
	gone := Row{Name: a.Name, Hash: a.Hash, Add: a.Add, ExpMs: a.ExpMs, Del: 9}
	if got := Merge(gone, a); got.Del != 9 || !bytes.Equal(got.RDATA, a.RDATA) || got.Live(0) {
		t.Errorf("a delete merged with its value: %+v", got)
	}
}

func TestHLC(t *testing.T) {
	h := HLC(0)
	for _, c := range []struct {
		wallMs int64
		want   HLC
	}{{5, 5 << 16}, {5, 5<<16 + 1}, {4, 5<<16 + 2}, {9, 9 << 16}, {-1, 9<<16 + 1}} {
		if h = h.Next(c.wallMs); h != c.want {
			t.Errorf("at %d ms: %x, want %x", c.wallMs, uint64(h), uint64(c.want))
		}
	}
	if got := (HLC(7<<16 | 0xFFFF)).Next(7); got != 8<<16 || got.Ms() != 8 {
		t.Errorf("a full counter goes on with %x", uint64(got))
	}
}

// An element id is made from the name in wire form and the hash of the joined value, so that a row without its value has it too.
func TestElementID(t *testing.T) {
	value := bytes.Repeat([]byte("v"), 300)
	rdata := AppendRDATA(nil, value)
	if len(rdata) != 302 || rdata[0] != 255 || rdata[256] != 45 || !bytes.Equal(AppendValue(nil, rdata), value) {
		t.Fatalf("RDATA of 300 bytes: %x", rdata)
	}
	if got := AppendRDATA(nil, nil); !bytes.Equal(got, []byte{0}) {
		t.Errorf("RDATA of nothing: %x", got)
	}
	// { printf '\1a\4test\0'; printf 'v%.0s' $(seq 300) | sha256sum | cut -c1-64 | xxd -r -p; } | sha256sum | cut -c1-32
	r := Row{Name: []byte("\x01a\x04test\x00"), Hash: HashOf(rdata)}
	if id := r.ID(); hex.EncodeToString(id[:]) != "f24e6c320909e1e568350b0af21ad601" {
		t.Errorf("the id is %x", id)
	}
}

// golden reads a golden file; with -update it is written first.
func golden(t *testing.T, name string, now []byte) string {
	t.Helper()
	path := "testdata/" + name + ".golden"
	if *update {
		if err := os.WriteFile(path, now, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func randomRow(rng *rand.Rand, value bool) Row {
	r := Row{Name: fmt.Appendf(nil, "\x02n%d\x04test\x00", rng.IntN(10)), Add: HLC(rng.Uint64()), Del: HLC(rng.Uint64()), ExpMs: rng.Int64(), Flags: uint8(rng.IntN(4))}
	for i := range r.Origin {
		r.Origin[i] = byte(rng.Uint32())
	}
	rdata := AppendRDATA(nil, bytes.Repeat([]byte{byte(rng.Uint32())}, rng.IntN(600)))
	r.Hash = HashOf(rdata)
	if value {
		r.RDATA = rdata
	}
	return r
}

func randomEntries(rng *rand.Rand) []Entry {
	var es []Entry
	for range 1 + rng.IntN(8) {
		switch k := EntryKind(1 + rng.IntN(7)); k {
		case KindPut:
			es = append(es, Entry{Kind: k, Row: randomRow(rng, true)})
		case KindRefresh, KindTombstone:
			es = append(es, Entry{Kind: k, Row: randomRow(rng, false)})
		case KindExpire:
			es = append(es, Entry{Kind: k, CutMs: rng.Int64()})
		case KindOutcome:
			es = append(es, Entry{Kind: k, LSN: rng.Uint64(), Code: Code(rng.IntN(int(codes))), Applied: rng.Uint32()})
		case KindTaken:
			es = append(es, Entry{Kind: k, RequestsEpoch: [16]byte{byte(rng.Uint32())}, Requests: rng.Uint64(), StateEpoch: [16]byte{byte(rng.Uint32())}, State: rng.Uint64()})
		case KindSerial:
			es = append(es, Entry{Kind: k, Zone: []byte("\x04test\x00"), Serial: rng.Uint32()})
		}
	}
	return es
}

func readFrame(p []byte) (feedMs int64, es []Entry, err error) {
	if len(p) >= 8 {
		feedMs = int64(binary.BigEndian.Uint64(p))
	}
	err = ReadFrame(p, func(f int64, e *Entry) error {
		if f != feedMs {
			panic("an entry with another feed stamp")
		}
		es = append(es, *e)
		return nil
	})
	return feedMs, es, err
}

func TestFrames(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 300 {
		es := randomEntries(rng)
		feedMs := rng.Int64()
		p := AppendFrame(nil, feedMs, es)
		for i := range es {
			if es[i].Row.Name != nil {
				es[i].Row.FeedMs = feedMs
			}
		}
		gotMs, got, err := readFrame(p)
		if err != nil || gotMs != feedMs || !reflect.DeepEqual(got, es) {
			t.Fatalf("%+v\nread as %+v, %v", es, got, err)
		}
		// Cut anywhere but between entries it is refused; a byte changed gives an error or encodes to itself.
		cut := p[:rng.IntN(len(p))]
		if f, es, err := readFrame(cut); err == nil && !bytes.Equal(AppendFrame(nil, f, es), cut) {
			t.Fatalf("cut to %d of %d bytes it is accepted", len(cut), len(p))
		}
		p[rng.IntN(len(p))] ^= 1 << rng.IntN(8)
		if f, es, err := readFrame(p); err == nil && !bytes.Equal(AppendFrame(nil, f, es), p) {
			t.Fatalf("%x encodes otherwise", p)
		} else if err != nil && !errors.Is(err, ErrFormat) {
			t.Fatal(err)
		}
		if _, _, err := readFrame(append(AppendFrame(nil, feedMs, es), 0)); err == nil {
			t.Fatal("a byte behind the last entry is accepted")
		}
	}
}

func TestRequests(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 1))
	for range 300 {
		want := &Request{Source: Source(1 + rng.IntN(4)), Writer: [16]byte{byte(rng.Uint32())}, Ops: []Op{}}
		for range rng.IntN(5) {
			op := Op{Kind: OpKind(1 + rng.IntN(6)), MayDelete: rng.IntN(2) == 0, CapExempt: rng.IntN(2) == 0, Verified: rng.IntN(2) == 0}
			r := randomRow(rng, true)
			op.Name = r.Name
			switch op.Kind {
			case OpMerge, OpOffer:
				if op.Kind == OpMerge && rng.IntN(2) == 0 {
					r.RDATA = nil
				}
				op.Row = &r
			case OpDeleteRRset:
				op.TTLSec, op.ValuesMax = rng.Uint32(), int(rng.Uint32())
			default:
				op.TTLSec, op.ValuesMax, op.RDATA = rng.Uint32(), int(rng.Uint32()), r.RDATA
			}
			want.Ops = append(want.Ops, op)
		}
		p := AppendRequest(nil, want)
		got, _, err := ReadRequest(p)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v\nread as %+v, %v", want, got, err)
		}
		if _, _, err := ReadRequest(p[:rng.IntN(len(p))]); !errors.Is(err, ErrFormat) {
			t.Fatalf("a request that is cut: %v", err)
		}
		if _, _, err := ReadRequest(append(p[:len(p):len(p)], 0)); !errors.Is(err, ErrFormat) {
			t.Fatalf("a request with a byte behind it: %v", err)
		}
		p[rng.IntN(len(p))] ^= 1 << rng.IntN(8)
		if r, void, err := ReadRequest(p); err == nil {
			again := AppendVoid(nil, void)
			if r != nil {
				again = AppendRequest(nil, r)
			}
			if !bytes.Equal(again, p) {
				t.Fatalf("%x encodes as %x", p, again)
			}
		}
	}
	if r, void, err := ReadRequest(AppendVoid(nil, 77)); r != nil || void != 77 || err != nil {
		t.Errorf("a void: %v, %d, %v", r, void, err)
	}
}

// The bytes of version 1. They may change only with the format number of the logs.
func TestGoldenPayloads(t *testing.T) {
	rdata := AppendRDATA(nil, []byte("v=dmp1;t=test"))
	row := Row{Name: []byte("\x01a\x04test\x00"), RDATA: rdata, Hash: HashOf(rdata), Add: 0x0102030405060708, Del: 0x11, ExpMs: 1_700_000_000_000, Origin: [8]byte{1, 2, 3, 4, 5, 6, 7, 8}, Flags: FlagVerified}
	bare := row
	bare.RDATA = nil
	now := map[string][]byte{
		"frame": AppendFrame(nil, 1_600_000_000_000, []Entry{
			{Kind: KindPut, Row: row}, {Kind: KindRefresh, Row: bare}, {Kind: KindTombstone, Row: bare}, {Kind: KindExpire, CutMs: 5},
			{Kind: KindOutcome, LSN: 6, Code: CodeQuota, Applied: 7}, {Kind: KindTaken, RequestsEpoch: [16]byte{8}, Requests: 9, StateEpoch: [16]byte{10}, State: 11},
			{Kind: KindSerial, Zone: []byte("\x04test\x00"), Serial: 12},
		}),
		"request": AppendRequest(nil, &Request{Source: SourcePeer, Writer: [16]byte{13}, Ops: []Op{
			{Kind: OpAdd, Name: row.Name, RDATA: rdata, TTLSec: 300, ValuesMax: 64, Verified: true}, {Kind: OpDelete, Name: row.Name, RDATA: rdata, MayDelete: true},
			{Kind: OpDeleteRRset, Name: row.Name}, {Kind: OpReplace, Name: row.Name, RDATA: rdata, TTLSec: 60, CapExempt: true}, {Kind: OpMerge, Row: &row}, {Kind: OpMerge, Row: &bare},
		}}),
		"void": AppendVoid(nil, 14),
	}
	for name, b := range now {
		want := strings.TrimSpace(golden(t, name+"-v1", fmt.Appendf(nil, "%x\n", b)))
		if got := hex.EncodeToString(b); got != want {
			t.Errorf("%s: now\n%s, was\n%s", name, got, want)
		}
		was, err := hex.DecodeString(want)
		if err != nil {
			t.Fatal(err)
		}
		if name == "frame" {
			if _, es, err := readFrame(was); err != nil || len(es) != 7 {
				t.Errorf("the frame of version 1: %d entries, %v", len(es), err)
			}
		} else if _, _, err := ReadRequest(was); err != nil {
			t.Errorf("the %s of version 1: %v", name, err)
		}
	}
}
