package antientropy

import (
	"bytes"
	"encoding/json"
	"testing"
	"unicode/utf8"

	"github.com/dnsmesh/dmpd/internal/wire"
)

// FuzzPeer: whatever a peer sends as a digest entry or as the answer to a pull, what is taken of it has the shape that the wire allows.
func FuzzPeer(f *testing.F) {
	f.Add([]byte(`{"name":"a.test","hash":"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08","ts":1,"ttl":60}`))
	f.Add([]byte(`{"x":[{}],"records":[{"name":"a.test","value":"v","ttl":60},7,{"name":"\ud800","value":"","ttl":1e3}],"y":null}`))
	f.Add([]byte(`{"records":[{"name":"a","value":"b","ttl":2147483648}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		const nowMs = 1 << 40
		if e, ok := readEntry(json.RawMessage(b), nowMs); ok {
			if !ValidName(e.cursor.Name) || e.cursor.TsMs < 0 || e.cursor.TsMs > nowMs+FutureSkewMs || e.ttlSec < 0 || e.ttlSec > TTLBoundSec {
				t.Fatalf("%+v", e)
			}
			if c, err := ParseCursor(e.cursor.String()); err != nil || c != e.cursor {
				t.Fatalf("%q reads as %+v, %v", e.cursor, c, err)
			}
			_, _ = wire.AppendName(nil, e.cursor.Name)
		}
		_ = readRecords(json.NewDecoder(bytes.NewReader(b)), func(name, value string, ttlSec int64) {
			if ttlSec < 1 || ttlSec > TTLBoundSec || !utf8.ValidString(value) || !utf8.ValidString(name) {
				t.Fatalf("%q %q %d", name, value, ttlSec)
			}
		})
	})
}
