// Package fuzz holds the fuzz targets for bytes that come from outside: from the wire, and from files that a disk may have damaged. Each
// asserts a property and not only that nothing panics.
package fuzz

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/dnsmesh/dmpd/internal/record"
)

func rowSeeds() []record.Entry {
	rdata := record.AppendRDATA(nil, bytes.Repeat([]byte("v=dmp1;"), 40))
	row := record.Row{Name: []byte("\x06slot-0\x0fmb-0123456789ab\x04mesh\x04test\x00"), RDATA: rdata, Hash: record.HashOf(rdata), Add: 1 << 40, Del: 5, ExpMs: 1_700_000_000_000, Origin: [8]byte{1}, Flags: record.FlagVerified}
	bare := row
	bare.RDATA = nil
	empty := row
	empty.RDATA = record.AppendRDATA(nil, nil)
	return []record.Entry{
		{Kind: record.KindPut, Row: row}, {Kind: record.KindPut, Row: empty}, {Kind: record.KindRefresh, Row: bare}, {Kind: record.KindTombstone, Row: bare},
		{Kind: record.KindExpire, CutMs: 1_700_000_000_000}, {Kind: record.KindOutcome, LSN: 7, Code: record.CodeVoid, Applied: 3},
		{Kind: record.KindTaken, RequestsEpoch: [16]byte{1}, Requests: 2, StateEpoch: [16]byte{3}, State: 4}, {Kind: record.KindSerial, Zone: []byte("\x04mesh\x04test\x00"), Serial: 9},
	}
}

// FuzzRowsFrame: what is accepted encodes to the same bytes, every accepted row keeps the rules of its format, and what is refused is refused
// as such.
func FuzzRowsFrame(f *testing.F) {
	es := rowSeeds()
	f.Add(record.AppendFrame(nil, 1_600_000_000_000, es))
	for i := range es {
		f.Add(record.AppendFrame(nil, int64(i), es[i:i+1]))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		again := append([]byte(nil), p[:min(8, len(p))]...)
		err := record.ReadFrame(p, func(feedMs int64, e *record.Entry) error {
			if feedMs != int64(binary.BigEndian.Uint64(p)) {
				t.Fatalf("feed %d", feedMs)
			}
			if e.Kind <= record.KindTombstone {
				checkRow(t, &e.Row, feedMs, e.Kind == record.KindPut)
			}
			again = record.AppendEntry(again, e)
			return nil
		})
		switch {
		case err == nil && !bytes.Equal(again, p):
			t.Fatalf("%x encodes as %x", p, again)
		case err != nil && !errors.Is(err, record.ErrFormat):
			t.Fatal(err)
		}
	})
}

func checkRow(t *testing.T, r *record.Row, feedMs int64, value bool) {
	if r.FeedMs != feedMs || r.ExpMs < 0 || len(r.Name) == 0 || len(r.Name) > 255 || r.Name[len(r.Name)-1] != 0 || value != (r.RDATA != nil) {
		t.Fatalf("%+v was accepted", r)
	}
	if value {
		v := record.AppendValue(nil, r.RDATA)
		if !bytes.Equal(record.AppendRDATA(nil, v), r.RDATA) {
			t.Fatalf("RDATA %x is not how the value is encoded", r.RDATA)
		}
	}
	if m := record.Merge(*r, *r); m.Add != r.Add || m.Del != r.Del || m.ExpMs != r.ExpMs || m.Flags != r.Flags {
		t.Fatalf("%+v merged with itself is %+v", r, m)
	}
}

// FuzzRequest: what is accepted encodes to the same bytes.
func FuzzRequest(f *testing.F) {
	es := rowSeeds()
	name, rdata := es[0].Row.Name, es[0].Row.RDATA
	f.Add(record.AppendVoid(nil, 77))
	f.Add(record.AppendRequest(nil, &record.Request{Source: record.SourceHTTP, Writer: [16]byte{1}, Ops: []record.Op{
		{Kind: record.OpAdd, Name: name, RDATA: rdata, TTLSec: 300, ValuesMax: 64, Verified: true},
		{Kind: record.OpDelete, Name: name, RDATA: rdata, MayDelete: true},
		{Kind: record.OpDeleteRRset, Name: name},
		{Kind: record.OpReplace, Name: name, RDATA: rdata, CapExempt: true},
	}}))
	f.Add(record.AppendRequest(nil, &record.Request{Source: record.SourcePeer, Ops: []record.Op{{Kind: record.OpMerge, Row: &es[0].Row}, {Kind: record.OpMerge, Row: &es[3].Row}}}))
	f.Fuzz(func(t *testing.T, p []byte) {
		r, void, err := record.ReadRequest(p)
		if err != nil {
			if r != nil || void != 0 || !errors.Is(err, record.ErrFormat) {
				t.Fatalf("an error with %v, %d: %v", r, void, err)
			}
			return
		}
		again := record.AppendVoid(nil, void)
		if r != nil {
			again = record.AppendRequest(nil, r)
		}
		if !bytes.Equal(again, p) {
			t.Fatalf("%x encodes as %x", p, again)
		}
	})
}
