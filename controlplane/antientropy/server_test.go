package antientropy

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// listView is a feed that lies in a slice; it counts the rows that were looked at.
type listView struct {
	View
	rows   []FeedRow
	looked int
}

func (v *listView) add(name, value string, tsMs int64) {
	rdata := record.AppendRDATA(nil, []byte(value))
	v.rows = append(v.rows, FeedRow{Name: name, Row: record.Row{Name: wire.MustName(name), RDATA: rdata, Hash: record.HashOf(rdata), FeedMs: tsMs, Add: record.HLCAt(tsMs), ExpMs: nowMs + 60_000}})
}

func (v *listView) Page(after Cursor, limit int, _ int64) (rows []FeedRow, next Cursor, more bool, err error) {
	next = after
	for _, r := range v.rows {
		if r.Cursor().Compare(after) <= 0 {
			continue
		}
		if len(rows) == limit {
			return rows, next, true, nil
		}
		v.looked++
		rows, next = append(rows, r), r.Cursor()
	}
	return rows, next, false, nil
}

// TestWithheldOnce: what a peer may not see is not looked at again with each of its questions, although it stays at its cursor; what
// comes behind is shown at once.
func TestWithheldOnce(t *testing.T) {
	t.Parallel()
	v := &listView{}
	now := int64(nowMs)
	s := &Server{View: v, Settings: func() Settings { return Settings{} }, NowMs: func() int64 { return now }}
	ask := func(cursor string) (d digestReply) {
		t.Helper()
		w := httptest.NewRecorder()
		s.Digest(w, httptest.NewRequest("GET", "/v1/sync/digest?cursor="+url.QueryEscape(cursor), nil))
		if err := json.Unmarshal(w.Body.Bytes(), &d); err != nil || w.Code != 200 {
			t.Fatal(w.Code, w.Body)
		}
		return d
	}
	v.add("good.test", "text", 1)
	for i := range 3000 {
		v.add(fmt.Sprintf("h%04d.test", i), "v=dmp1;t=heartbeat;AAAA", 2)
	}
	at := ask("").Next
	if d := ask(at); len(d.Records) != 0 || d.HasMore || d.Next != at {
		t.Error(d)
	}
	v.looked = 0
	for range 5 {
		if d := ask(at); len(d.Records) != 0 || d.Next != at {
			t.Error(d)
		}
	}
	if v.looked > 0 {
		t.Errorf("%d rows were looked at again", v.looked)
	}
	v.add("late.test", "text", 3)
	d := ask(at)
	if len(d.Records) != 1 || d.Records[0].Name != "late.test" || v.looked != 1 {
		t.Error(d, v.looked)
	}
	// A verdict may be another one after a while, and with another key.
	now += verdictLifeMs
	if v.looked = 0; len(ask(at).Records) != 1 || v.looked != 3001 {
		t.Error("after the life of a verdict:", v.looked)
	}
	s.Reset()
	if v.looked = 0; len(ask(at).Records) != 1 || v.looked != 3001 {
		t.Error("after a reset:", v.looked)
	}
	for i := range 2 * passedMax {
		s.passed.put(Cursor{TsMs: int64(i)}, Cursor{TsMs: int64(i + 1)}, now)
	}
	if len(s.passed.m) > passedMax {
		t.Error(len(s.passed.m), "places are remembered")
	}
}
