package antientropy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// Bounds of the serving side.
const (
	// pullBodyMax: 256 names of 253 bytes in JSON are 66 KiB; the reference refuses what is over 16 KiB and so locks itself out of
	// zones with long names (cluster.md 15, W3).
	pullBodyMax = 128 << 10
	// replyBufferMax: up to here a reply is built whole and has a Content-Length; a larger one is streamed, so that a caller does not
	// cost its size in memory.
	replyBufferMax = 1 << 20
	// verdictsMax and verdictLifeMs bound the memory of what was verified for serving: 48 bytes each. Verdicts depend on the time (a
	// claim's end), so they are not kept for long.
	verdictsMax   = 1 << 16
	verdictLifeMs = 300_000
	// servePage is how many rows with their values are held at once for a digest, whatever its limit.
	servePage = 512
	// passedMax bounds the cursors for which it is known that nothing to serve follows until a later place: a few for each peer.
	passedMax = 256
)

// Server answers peers (cluster.md 6). Its methods are for requests whose limit and token were checked (Authorized).
type Server struct {
	View     View
	Settings func() Settings
	Manifest func(ctx context.Context) (text []byte, c record.Cluster, ok bool) // the one to serve
	NowMs    func() int64

	verdicts verdicts
	passed   passed

	// Counters.
	Digests, Pulls, Rows, Values, Withheld, Failures atomic.Int64
}

// Authorized says whether the request carries the cluster's token: the whole header, byte for byte. Lengths of the tokens may leak, no
// more (cluster.md 4). Without a token nobody is.
func Authorized(r *http.Request, s *Settings) bool {
	if s.Token == "" {
		return false
	}
	given := sha256.Sum256([]byte(r.Header.Get("Authorization")))
	ok := 0
	for _, token := range append([]string{s.Token}, s.Previous...) {
		want := sha256.Sum256([]byte("Bearer " + token))
		ok |= subtle.ConstantTimeCompare(given[:], want[:])
	}
	return ok == 1
}

type digestRow struct {
	Name string `json:"name"`
	Hash string `json:"hash"`
	Ts   int64  `json:"ts"`
	TTL  int64  `json:"ttl"`
}

type digestReply struct {
	Records []digestRow `json:"records"`
	HasMore bool        `json:"has_more"`
	Next    string      `json:"next_cursor"`
}

// Digest is GET /v1/sync/digest.
func (s *Server) Digest(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var after Cursor
	switch cursor, since := q.Get("cursor"), q.Get("since"); {
	case cursor != "":
		var err error
		if after, err = ParseCursor(cursor); err != nil {
			replyError(w, http.StatusBadRequest, "cursor must be <ts>:<name>:<hash>")
			return
		}
	case since != "":
		ms, ok := digits(since)
		if !ok {
			replyError(w, http.StatusBadRequest, "since must be an integer of at least 0")
			return
		}
		after.TsMs = ms + 1 // rows at that millisecond are excluded
	}
	limit := int64(DigestLimitDefault)
	if text := q.Get("limit"); text != "" {
		var ok bool
		if limit, ok = digits(text); !ok || limit < 1 {
			replyError(w, http.StatusBadRequest, "limit must be an integer above 0")
			return
		}
		limit = min(limit, DigestLimitMax)
	}
	out := digestReply{Records: []digestRow{}, Next: after.String()}
	nowMs := s.NowMs()
	// One more than fits, to know whether there is more.
	err := s.served(r.Context(), after, int(limit)+1, nowMs, func(row *FeedRow) {
		if len(out.Records) == int(limit) {
			out.HasMore = true
			return
		}
		// Rounded down: a longer life than the real one would travel around rings of nodes (cluster.md 15, W14).
		out.Records = append(out.Records, digestRow{row.Name, hex.EncodeToString(row.Hash[:]), row.FeedMs, max(1, (row.ExpMs-nowMs)/1000)})
		out.Next = row.Cursor().String()
	})
	if err != nil {
		s.unavailable(w)
		return
	}
	s.Digests.Add(1)
	s.Rows.Add(int64(len(out.Records)))
	b, err := marshal(out)
	if err != nil {
		panic(err) // strings and integers
	}
	replyBody(w, b)
}

// served calls f for the first n rows after a cursor that a reference peer would take.
func (s *Server) served(ctx context.Context, after Cursor, n int, nowMs int64, f func(*FeedRow)) error {
	settings := s.Settings()
	verifier := record.Verifier{Operator: settings.Operator}
	asked, wanted := after, n
	after = s.passed.from(asked, nowMs)
	for n > 0 {
		rows, next, more, err := s.View.Page(after, min(n, servePage), nowMs)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		for i := range rows {
			if s.servable(&verifier, &rows[i], nowMs) {
				f(&rows[i])
				n--
			} else {
				s.Withheld.Add(1)
			}
		}
		if n == wanted {
			s.passed.put(asked, next, nowMs)
		}
		if !more {
			return nil
		}
		after = next
	}
	return nil
}

// servable is the filter for reference peers (cluster.md 17.8, 15 W1): they hold their watermark before a row that they refuse, so one
// that they would refuse is not shown to them.
func (s *Server) servable(v *record.Verifier, row *FeedRow, nowMs int64) bool {
	if !ValidName(row.Name) {
		return false
	}
	value := record.AppendValue(nil, row.RDATA)
	if _, r := record.Screen(row.Row.Name, value); r != record.Accepted || !utf8.Valid(value) {
		return false
	}
	return s.verdicts.of(v, row.Hash, value, nowMs)
}

// ValidName says whether a name has only characters that peers take (cluster.md 8.3).
func ValidName(name string) bool {
	if len(name) < 1 || len(name) > nameTextMax {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// verdicts remembers what was verified, by the value's hash.
type verdicts struct {
	mu sync.Mutex
	m  map[[32]byte]verdict
}

type verdict struct {
	ok      bool
	untilMs int64
}

func (d *verdicts) of(v *record.Verifier, hash [32]byte, value []byte, nowMs int64) bool {
	if record.ClassOf(value) == record.ClassForeign {
		return true // nothing to verify
	}
	d.mu.Lock()
	known, found := d.m[hash]
	d.mu.Unlock()
	if found && nowMs < known.untilMs && nowMs > known.untilMs-2*verdictLifeMs {
		return known.ok
	}
	_, r := v.Verify(nil, value, nowMs/1000)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.m == nil {
		d.m = map[[32]byte]verdict{}
	}
	for old := range d.m { // any one: the map's order is as good as random
		if len(d.m) < verdictsMax {
			break
		}
		delete(d.m, old)
	}
	d.m[hash] = verdict{r == record.Accepted, nowMs + verdictLifeMs}
	return r == record.Accepted
}

// passed remembers, for cursors that peers showed, how far nothing follows that may be served. A reference peer stays at its cursor while
// it is shown nothing, and would have all that is withheld behind it looked at with every question.
type passed struct {
	mu sync.Mutex
	m  map[Cursor]place
}

type place struct {
	next    Cursor
	untilMs int64 // then verdicts may be others
}

func (p *passed) from(asked Cursor, nowMs int64) Cursor {
	p.mu.Lock()
	defer p.mu.Unlock()
	if to, ok := p.m[asked]; ok && nowMs < to.untilMs && nowMs > to.untilMs-2*verdictLifeMs {
		return to.next
	}
	return asked
}

func (p *passed) put(asked, next Cursor, nowMs int64) {
	if next.Compare(asked) <= 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil {
		p.m = map[Cursor]place{}
	}
	to := place{next, nowMs + verdictLifeMs}
	if old, ok := p.m[asked]; ok && nowMs < old.untilMs {
		to.untilMs = old.untilMs // what was passed first is looked at again in time
	}
	for old := range p.m {
		if len(p.m) < passedMax {
			break
		}
		delete(p.m, old)
	}
	p.m[asked] = to
}

func (p *passed) reset() {
	p.mu.Lock()
	clear(p.m)
	p.mu.Unlock()
}

// reset forgets all verdicts: the pinned key is another one.
func (d *verdicts) reset() {
	d.mu.Lock()
	clear(d.m)
	d.mu.Unlock()
}

// Reset is called when Settings changed.
func (s *Server) Reset() {
	s.verdicts.reset()
	s.passed.reset()
}

type pullRow struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	TTL   int64  `json:"ttl"`
}

// Pull is POST /v1/sync/pull.
func (s *Server) Pull(w http.ResponseWriter, r *http.Request) {
	names, why := pullNames(w, r)
	if why != "" {
		replyError(w, http.StatusBadRequest, why)
		return
	}
	out := &replyWriter{w: w}
	out.write([]byte(`{"records":[`))
	first := true
	nowMs := s.NowMs()
	settings := s.Settings()
	verifier := record.Verifier{Operator: settings.Operator}
	for _, name := range names {
		key, err := wire.AppendName(nil, strings.ToLower(name))
		if err != nil {
			continue // a name that cannot be has no values
		}
		rows, err := s.View.Values(key, nowMs)
		if err == nil {
			err = r.Context().Err()
		}
		if err != nil {
			if out.streaming {
				panic(http.ErrAbortHandler) // a reply that ends early must not look whole
			}
			s.unavailable(w)
			return
		}
		for i := range rows {
			if !s.servable(&verifier, &rows[i], nowMs) {
				continue
			}
			b, err := marshal(pullRow{name, string(record.AppendValue(nil, rows[i].RDATA)), max(1, (rows[i].ExpMs-nowMs)/1000)})
			if err != nil {
				panic(err) // strings and integers
			}
			if !first {
				b = append([]byte{','}, b...)
			}
			first = false
			out.write(b)
			s.Values.Add(1)
		}
	}
	out.write([]byte("]}\n"))
	s.Pulls.Add(1)
	out.end()
}

// pullNames reads the names asked for; why says what is wrong with the request. Names keep their spelling, since a reference peer
// compares the answer's with its own.
func pullNames(w http.ResponseWriter, r *http.Request) (names []string, why string) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, pullBodyMax))
	if err != nil || !utf8.Valid(body) {
		return nil, "invalid body"
	}
	var fields map[string]json.RawMessage
	if len(body) > 0 {
		if err := json.Unmarshal(body, &fields); err != nil {
			return nil, "invalid body"
		}
	}
	var raw []json.RawMessage
	if json.Unmarshal(fields["names"], &raw) != nil || raw == nil {
		return nil, "names (list of str) required"
	}
	if len(raw) > PullNamesMax {
		return nil, "at most " + strconv.Itoa(PullNamesMax) + " names"
	}
	seen := map[string]bool{}
	for _, e := range raw {
		var name *string
		if json.Unmarshal(e, &name) != nil || name == nil {
			return nil, "names (list of str) required"
		}
		text := strings.TrimRight(strings.TrimSpace(*name), ".")
		if text != "" && !seen[text] {
			seen[text] = true
			names = append(names, text)
		}
	}
	return names, ""
}

// ClusterManifest is GET /v1/sync/cluster-manifest.
func (s *Server) ClusterManifest(w http.ResponseWriter, r *http.Request) {
	text, c, ok := s.Manifest(r.Context())
	if !ok {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	b, err := marshal(struct {
		Wire string `json:"wire"`
		Seq  uint64 `json:"seq"`
		Exp  uint64 `json:"exp"`
		Name string `json:"cluster_name"`
	}{string(text), c.Seq, c.ExpSec, c.Name})
	if err != nil {
		panic(err) // strings and integers
	}
	replyBody(w, append(b, '\n'))
}

func (s *Server) unavailable(w http.ResponseWriter) {
	s.Failures.Add(1)
	w.Header().Set("Retry-After", "2")
	replyError(w, http.StatusServiceUnavailable, "the records cannot be read")
}

// digits reads an integer of at least 0 that is written in digits alone; what is above every stamp and limit counts as 10^18.
func digits(text string) (n int64, ok bool) {
	const most = 1_000_000_000_000_000_000
	if text == "" || strings.Trim(text, "0123456789") != "" {
		return 0, false
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return min(n, most), true
	}
	return most, true
}

// marshal is json.Marshal without the escapes for HTML, which this is not.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimRight(b.Bytes(), "\n"), err
}

func replyError(w http.ResponseWriter, status int, text string) {
	b, _ := marshal(struct {
		Error string `json:"error"`
	}{text})
	header(w.Header(), len(b)+1)
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}

func replyBody(w http.ResponseWriter, b []byte) {
	header(w.Header(), len(b))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(b) // the peer is gone: nobody to tell
}

func header(h http.Header, n int) {
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	if n >= 0 {
		h.Set("Content-Length", strconv.Itoa(n))
	}
}

// replyWriter builds a reply, and streams it when it grows.
type replyWriter struct {
	w         http.ResponseWriter
	b         []byte
	streaming bool
}

func (o *replyWriter) write(b []byte) {
	o.b = append(o.b, b...)
	if len(o.b) < replyBufferMax {
		return
	}
	if !o.streaming {
		o.streaming = true
		header(o.w.Header(), -1)
		o.w.WriteHeader(http.StatusOK)
	}
	_, _ = o.w.Write(o.b)
	o.b = o.b[:0]
}

func (o *replyWriter) end() {
	if !o.streaming {
		replyBody(o.w, o.b)
		return
	}
	_, _ = o.w.Write(o.b)
}
