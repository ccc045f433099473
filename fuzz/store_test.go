package fuzz

import (
	"bytes"
	"fmt"
	"maps"
	"testing"

	"github.com/dnsmesh/dmpd/dataplane/store"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/vfs/vfstest"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// FuzzStore reads the input as messages, three bytes an operation, and sends them to a store and to a map. Both hold the same
// at the end, and again after the store was closed, and after a crash.
func FuzzStore(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 1, 60, 1, 1, 0, 0, 1, 10, 0, 2, 255, 255, 255, 2, 0, 0})
	f.Add(bytes.Repeat([]byte{0x80, 7, 9, 0x41, 3, 0, 0xFF, 0, 0}, 40))
	f.Fuzz(func(t *testing.T, in []byte) {
		in = in[:min(len(in), 3*200)]
		nowMs := int64(1_800_000_000_000)
		fs := vfstest.New(1)
		zone := wire.MustName("mesh.test")
		open := func() *store.Store {
			s, err := store.Open(store.Options{FS: fs, Dir: "data", Zone: zone, Manual: true, NowMs: func() int64 { return nowMs }})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		s := open()
		defer func() { s.Close() }()
		model := map[string]map[string]int64{} // expiry by name and RDATA
		names := [4][]byte{}
		for i := range names {
			names[i] = wire.MustName(fmt.Sprintf("n%d.mesh.test", i))
		}
		b := &store.Batch{}
		send := func() {
			if len(b.Ops) == 0 {
				return
			}
			done := make(chan store.Result, 1)
			b.Done = func(r store.Result) { done <- r }
			if !s.Submit(b) {
				t.Fatal("queue full")
			}
			if r := <-done; r.Rcode != 0 {
				t.Fatalf("refused: %v", r)
			}
			b = &store.Batch{}
		}
		for ; len(in) >= 3; in = in[3:] {
			how, which := in[0], in[1]
			if how >= 0xF0 { // the clock goes on; a message ends
				send()
				nowMs += int64(which) * 500
				if how == 0xFF {
					s.Tick()
				}
				continue
			}
			n := names[how>>2&3]
			rdata := record.AppendRDATA(nil, bytes.Repeat([]byte{'a' + which%16}, int(which)+int(which&1)))
			op := record.Op{Kind: record.OpAdd, Name: n, RDATA: rdata, TTLSec: uint32(in[2]) + 1, MayDelete: how&0x10 != 0}
			values := model[string(n)]
			if values == nil {
				values = map[string]int64{}
				model[string(n)] = values
			}
			exp := nowMs + int64(op.TTLSec)*1000
			switch how & 3 {
			case 0, 1:
				if old := values[string(rdata)]; old <= nowMs || exp > old || op.MayDelete {
					values[string(rdata)] = exp
				}
			case 2:
				op.Kind = record.OpDelete
				delete(values, string(rdata))
			case 3:
				op.Kind, op.RDATA = record.OpDeleteRRset, nil
				clear(values)
			}
			b.Ops = append(b.Ops, op)
			if how&0x20 != 0 {
				send()
			}
		}
		send()
		check := func(when string) {
			t.Helper()
			reader := s.NewReader()
			reader.Enter()
			defer reader.Leave()
			for _, n := range names {
				got, want := map[string]int64{}, map[string]int64{}
				set, _ := s.View().Lookup(n)
				set.Each(func(v store.Value) bool {
					if v.ExpMs > nowMs {
						got[string(v.RDATA)] = v.ExpMs
					}
					return true
				})
				for v, exp := range model[string(n)] {
					if exp > nowMs {
						want[v] = exp
					}
				}
				if !maps.Equal(got, want) {
					t.Fatalf("%s, %x: %d values, the model has %d, or another life", when, n, len(got), len(want))
				}
				if live, _, _ := set.Live(nowMs); live != len(want) {
					t.Fatalf("%s, %x: Live says %d of %d", when, n, live, len(want))
				}
			}
		}
		check("at the end")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open()
		check("after a restart")
		s.Tick()
		next := fs.Crash()
		s.Close()
		fs = next
		s = open()
		check("after a crash")
	})
}
