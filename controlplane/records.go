package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/dnsmesh/dmpd/controlplane/auth"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/snapshot"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// records serves /v1/records/{name} (http.md 5): the order of the checks is part of the interface.
func (s *Server) records(w http.ResponseWriter, r *http.Request, path string) {
	segment := strings.TrimSuffix(strings.TrimPrefix(path, "/v1/records/"), "/")
	if segment == "" || strings.Contains(segment, "/") {
		reply(w, http.StatusNotFound, errorBody{"not found"})
		return
	}
	c := s.config.Load()
	addr := s.clientAddr(r)
	if !s.limit.Allow(auth.ClientPrefix(addr), c.Float("HTTP_RATE"), c.Float("HTTP_BURST"), clock.Mono()) {
		w.Header().Set("Retry-After", "1")
		reply(w, http.StatusTooManyRequests, errorBody{"rate limit exceeded"})
		return
	}
	name, err := url.PathUnescape(segment)
	if err != nil {
		name = segment // a stray %: the name is refused below
	}
	name = strings.ToLower(strings.TrimRight(strings.TrimSpace(name), "."))
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		s.getRecord(w, r, name)
	case http.MethodPost:
		if writer, mayDelete, ok := s.mayWrite(w, r, name, false); ok {
			s.postRecord(w, r, name, writer, mayDelete)
		}
	case http.MethodDelete:
		if writer, _, ok := s.mayWrite(w, r, name, true); ok {
			s.deleteRecord(w, r, name, writer)
		}
	}
}

// mayWrite is the table of http.md 3. writer is whose quota the write counts against.
func (s *Server) mayWrite(w http.ResponseWriter, r *http.Request, name string, del bool) (writer [16]byte, mayDelete, ok bool) {
	c := s.config.Load()
	if s.operator(r) {
		return writer, true, true
	}
	switch c.AuthMode() {
	case "open":
		return writer, true, true
	case "multi-tenant":
		a := s.state.Authorize(bearer(r), name, del, s.clientAddr(r))
		switch a.Verdict {
		case auth.Accepted:
			return a.Writer, a.Class == auth.ClassOwner, true
		case auth.Throttled:
			w.Header().Set("Retry-After", "1")
			reply(w, http.StatusTooManyRequests, errorBody{"per-token rate limit exceeded"})
			return writer, false, false
		}
	}
	w.Header().Set("WWW-Authenticate", "Bearer")
	reply(w, http.StatusUnauthorized, errorBody{"unauthorized"})
	return writer, false, false
}

func (s *Server) getRecord(w http.ResponseWriter, r *http.Request, name string) {
	if !s.mayRead(r) {
		w.Header().Set("WWW-Authenticate", "Bearer")
		reply(w, http.StatusUnauthorized, errorBody{"unauthorized"})
		return
	}
	values, err := s.lookup(name)
	if err != nil {
		w.Header().Set("Retry-After", "2")
		reply(w, http.StatusServiceUnavailable, errorBody{"the records cannot be read"})
		return
	}
	status := http.StatusOK
	if len(values) == 0 {
		status = http.StatusNotFound
	}
	reply(w, status, struct {
		Name   string   `json:"name"`
		Values []string `json:"values"`
	}{name, values})
}

// lookup gives the live values at a name as text; a name that cannot be is one without values.
func (s *Server) lookup(name string) ([]string, error) {
	values := []string{}
	if !validName(name) {
		return values, nil
	}
	key, err := wire.AppendName(nil, name)
	if err != nil {
		return values, nil
	}
	got, err := s.tail.get(key, clock.NowMs())
	for _, v := range got {
		values = append(values, string(v))
	}
	return values, err
}

// readBody reads a JSON object of at most bodyMax bytes; no body counts as {} (http.md 1).
func readBody(w http.ResponseWriter, r *http.Request) (map[string]json.RawMessage, bool) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyMax))
	if err != nil || !utf8.Valid(b) {
		return nil, false
	}
	fields := map[string]json.RawMessage{}
	if len(b) == 0 {
		return fields, true
	}
	if err := json.Unmarshal(b, &fields); err != nil || fields == nil { // null is no object
		return nil, false
	}
	return fields, true
}

func (s *Server) postRecord(w http.ResponseWriter, r *http.Request, name string, writer [16]byte, mayDelete bool) {
	fields, ok := readBody(w, r)
	if !ok {
		reply(w, http.StatusBadRequest, errorBody{"invalid body"})
		return
	}
	value, valueOK := stringField(fields, "value")
	ttl, ttlOK := int64(300), true
	if raw, there := fields["ttl"]; there {
		ttlOK = json.Unmarshal(raw, &ttl) == nil && ttl > 0 && string(raw) != "null"
	}
	if !valueOK || !ttlOK {
		reply(w, http.StatusBadRequest, errorBody{"value (str) and ttl (int > 0) required"})
		return
	}
	c := s.config.Load()
	if most := c.Int("MAX_TTL"); most > 0 && ttl > most {
		reply(w, http.StatusBadRequest, errorBody{fmt.Sprintf("ttl exceeds cap of %ds", most)})
		return
	}
	if most := c.Int("MAX_VALUE_BYTES"); most > 0 && int64(len(value)) > most {
		reply(w, http.StatusBadRequest, errorBody{fmt.Sprintf("value exceeds cap of %d bytes", most)})
		return
	}
	// The count at the name is decided by the data plane, which answers CodeFull; the name and the value come after it in the order
	// of http.md 5.1 but decide nothing that it could see.
	if !validName(name) {
		reply(w, http.StatusBadRequest, errorBody{"invalid record name"})
		return
	}
	if !validValue(value) {
		reply(w, http.StatusBadRequest, errorBody{"invalid record value"})
		return
	}
	o, err := s.put(r.Context(), record.SourceHTTP, name, value, ttl, writer, mayDelete)
	if err != nil {
		s.undecided(w, err)
		return
	}
	switch o.Code {
	case record.CodeStored, record.CodeUnchanged:
		reply(w, http.StatusCreated, okBody{true})
	case record.CodeFull:
		reply(w, http.StatusRequestEntityTooLarge, errorBody{fmt.Sprintf("RRset at %s already holds %d values", name, c.Int("MAX_VALUES_PER_NAME"))})
	case record.CodeTooBig:
		reply(w, http.StatusRequestEntityTooLarge, errorBody{fmt.Sprintf("RRset at %s would not fit a DNS message", name)})
	case record.CodeQuota:
		reply(w, http.StatusTooManyRequests, errorBody{"quota of records reached"})
	default:
		s.log.Warn("the store refused a record", "name", name, "code", o.Code)
		reply(w, http.StatusBadGateway, okBody{false})
	}
}

type okBody struct {
	OK bool `json:"ok"`
}

func (s *Server) put(ctx context.Context, source record.Source, name, value string, ttl int64, writer [16]byte, mayDelete bool) (snapshot.Outcome, error) {
	key, err := wire.AppendName(nil, name)
	if err != nil {
		return snapshot.Outcome{}, err
	}
	return s.requests.do(ctx, &record.Request{Source: source, Writer: writer, Ops: []record.Op{{
		Kind: record.OpAdd, Name: key, RDATA: record.AppendRDATA(nil, []byte(value)), TTLSec: uint32(min(ttl, 1<<31-1)), MayDelete: mayDelete,
	}}})
}

// remove deletes a value, or with none the whole RRset.
func (s *Server) remove(ctx context.Context, source record.Source, name string, value *string, writer [16]byte) (snapshot.Outcome, error) {
	key, err := wire.AppendName(nil, name)
	if err != nil {
		return snapshot.Outcome{}, err
	}
	op := record.Op{Kind: record.OpDeleteRRset, Name: key, MayDelete: true}
	if value != nil {
		op.Kind, op.RDATA = record.OpDelete, record.AppendRDATA(nil, []byte(*value))
	}
	return s.requests.do(ctx, &record.Request{Source: source, Writer: writer, Ops: []record.Op{op}})
}

// undecided answers a request that has no outcome.
func (s *Server) undecided(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, errUnknown):
		reply(w, http.StatusGatewayTimeout, errorBody{"the outcome is not known; ask again"})
	case errors.Is(err, errAway), errors.Is(err, errAhead):
		w.Header().Set("Retry-After", "2")
		reply(w, http.StatusServiceUnavailable, errorBody{err.Error()})
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		reply(w, http.StatusGatewayTimeout, errorBody{"the outcome is not known; ask again"})
	default:
		s.log.Error("a request could not be handed to the data plane", "err", err)
		w.Header().Set("Retry-After", "2")
		reply(w, http.StatusServiceUnavailable, errorBody{"the write could not be handed on"})
	}
}

func (s *Server) deleteRecord(w http.ResponseWriter, r *http.Request, name string, writer [16]byte) {
	if !validName(name) {
		reply(w, http.StatusBadRequest, errorBody{"invalid record name"})
		return
	}
	fields, ok := readBody(w, r)
	if !ok {
		reply(w, http.StatusBadRequest, errorBody{"invalid body"})
		return
	}
	var value *string
	if raw, there := fields["value"]; there && string(raw) != "null" {
		v, ok := stringField(fields, "value")
		if !ok || !validValue(v) {
			reply(w, http.StatusBadRequest, errorBody{"invalid record value"})
			return
		}
		value = &v
	}
	o, err := s.remove(r.Context(), record.SourceHTTP, name, value, writer)
	switch {
	case err != nil:
		s.undecided(w, err)
	case o.Code == record.CodeAbsent || o.Code == record.CodeUnchanged:
		empty(w, http.StatusNotFound)
	case o.Code == record.CodeStored:
		empty(w, http.StatusNoContent)
	default:
		reply(w, http.StatusBadGateway, okBody{false})
	}
}

func stringField(fields map[string]json.RawMessage, name string) (string, bool) {
	raw, ok := fields[name]
	if !ok || len(raw) == 0 || raw[0] != '"' {
		return "", false
	}
	var v string
	err := json.Unmarshal(raw, &v)
	return v, err == nil
}

// validName is the grammar of http.md 5: labels of 1 to 63 letters, digits and hyphens, a leading underscore allowed, hyphens not at
// the ends; 253 characters at most.
func validName(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if len(label) > 63 {
			return false
		}
		label = strings.TrimPrefix(label, "_")
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return false
			}
		}
	}
	return true
}

// validValue refuses what could break out of a quoted string: ", control characters, DEL (http.md 5).
func validValue(v string) bool {
	for _, r := range v {
		if r < 0x20 || r == '"' || r == 0x7F {
			return false
		}
	}
	return true
}
