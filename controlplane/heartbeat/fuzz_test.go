package heartbeat

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/miekg/dns"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

// FuzzResponse: whatever a resolver answers, what comes out of it are values that stand in it, and taking them keeps the bounds.
func FuzzResponse(f *testing.F) {
	m := new(dns.Msg)
	m.SetQuestion("a.example.", dns.TypeTXT)
	m.Response = true
	h := dns.RR_Header{Name: "a.example.", Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}
	m.Answer = []dns.RR{&dns.TXT{Hdr: h, Txt: pieces(string(signed(f, 2, "https://a.example", "a.example", 0)))}, &dns.TXT{Hdr: h, Txt: []string{"\"\\", ""}}}
	seed, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	h.Rrtype = dns.TypeCNAME
	m.Answer = append(m.Answer[:1:1], &dns.CNAME{Hdr: h, Target: "A.example."})
	if seed, err = m.Pack(); err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		m := new(dns.Msg)
		if m.Unpack(b) != nil {
			return
		}
		w, err := New(options(&memory{}, "own.example", 1))
		if err != nil {
			t.Fatal(err)
		}
		values := txtValues(m, "a.example.")
		if len(values) > len(m.Answer) {
			t.Fatalf("%d values of %d records", len(values), len(m.Answer))
		}
		taken := w.take(values, target{"a.example", fromGossip}, true)
		if taken > len(values) || w.seen.len() > taken {
			t.Fatalf("%d taken, %d kept of %d", taken, w.seen.len(), len(values))
		}
		for _, p := range w.seen.all() {
			if z, ok := canonicalZone(p.At); p.At != "" && (!ok || z != p.At) {
				t.Fatalf("a zone %q", p.At)
			}
		}
	})
}

// FuzzSeedList: what a list gives are zones in their one form, each once, no more than are allowed.
func FuzzSeedList(f *testing.F) {
	f.Add([]byte("# zones\n\nOne.example.\r\nhttps://two.example:8053/x\n bad_name \n192.0.2.1\none.example\nthree.example"))
	f.Add([]byte("https://[::1]:8053\nhttps://u@h:1/?#\n[x\n:\n//\n\xff\n.\n..\na.\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		seen := map[string]bool{}
		for _, z := range parseList(b) {
			if again, ok := seedZone(z); !ok || again != z || seen[z] || len(z) > zoneNameMax {
				t.Fatalf("%q", z)
			}
			seen[z] = true
		}
		if len(seen) > listZonesMax {
			t.Fatalf("%d zones", len(seen))
		}
	})
}

// FuzzSeenFile: a file with a good checksum leaves an empty store and an error, or peers within the bounds that are written and read
// again the same.
func FuzzSeenFile(f *testing.F) {
	now := clock.NowMs()
	row := `{"wire":"` + string(signed(f, 2, "https://a.example", "a.example", 0)) + `","via":"a.example","first_ms":1,"received_ms":2,"first_hand_ms":3}`
	f.Add([]byte(seenHead + "\n" + row + "\n" + `{"list":"https://x","zones":["a.example"]}` + "\n"))
	f.Add([]byte(seenHead + "\n{}\n" + row + row))
	f.Add([]byte("dmpd seen 2\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		b = append(bytes.Clone(b), fmt.Sprintf("%08x\n", crc32.Checksum(b, castagnoli))...)
		if err := os.WriteFile(filepath.Join(dir, seenFile), b, 0o600); err != nil {
			t.Fatal(err)
		}
		s := newSeen(3)
		if err := s.load(vfs.OS, dir, now); err != nil {
			if s.len() != 0 || len(s.lists) != 0 {
				t.Fatal("an error, and something of the file")
			}
			return
		}
		if s.len() > 3 {
			t.Fatalf("%d peers", s.len())
		}
		s.dirty = true
		if err := s.save(vfs.OS, dir); err != nil {
			t.Fatal(err)
		}
		again := newSeen(3)
		if err := again.load(vfs.OS, dir, now); err != nil || !reflect.DeepEqual(s.all(), again.all()) || !reflect.DeepEqual(s.introduced, again.introduced) {
			t.Fatalf("%v: %+v, then %+v", err, s.all(), again.all())
		}
	})
}
