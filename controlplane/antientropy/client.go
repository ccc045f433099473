package antientropy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"
)

// Bounds of what a peer may send (cluster.md 15, W11): it is of our own operator, and may be broken or taken over all the same.
const (
	requestTime     = 30 * time.Second // for a whole request; a page or a pull takes well under a second
	digestBodyMax   = 2 << 20          // 1,000 entries of at most some 600 bytes, written with spaces
	pullReplyMax    = 64 << 20         // 256 names of 64 values of 2 KiB in JSON are 34 MB; read as a stream, one record in memory
	manifestBodyMax = 16 << 10
	pullRequestMax  = 16_000 // the reference takes 16,384 bytes (cluster.md 6.2)
	pullRecordsMax  = 256 * 1024
	headersMax      = 64 << 10
	dialTime        = 5 * time.Second
)

// errAnswer marks what a peer did wrong.
var errAnswer = errors.New("antientropy: the peer")

func peerError(format string, args ...any) error {
	return fmt.Errorf("%w "+format, append([]any{errAnswer}, args...)...)
}

// client asks one peer. It follows no redirect, asks for no compression, and shows the token to no other host.
type client struct {
	base string
	http *http.Client
	now  func() int64

	in, out, requests, connects atomic.Int64
	offsetMs, rttMs             atomic.Int64
}

// errAddress says that a peer's name leads where no peer is: to the machine's own services for its cloud, for one.
var errAddress = errors.New("a link-local, multicast or unspecified address is no peer's")

func screenAddress(_, address string, _ syscall.RawConn) error {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if ip := a.Addr().Unmap(); ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() {
		return errAddress
	}
	return nil
}

// pinsOf gives the pinned keys of a URL: pins are URL=base64 of SHA-256 of the SPKI (RFC 7469 2.4 has the hash).
func pinsOf(pins []string, base string) (keys [][32]byte) {
	for _, p := range pins {
		at, hash, _ := strings.Cut(p, "=")
		if !strings.EqualFold(strings.TrimRight(at, "/"), base) {
			continue
		}
		if b, err := base64.StdEncoding.DecodeString(hash); err == nil && len(b) == 32 {
			keys = append(keys, [32]byte(b))
		}
	}
	return keys
}

// newTransport makes the connections to one peer: no proxy, no compression, bounded headers, the address policy, and the pinned keys if the URL
// has some. With prior knowledge, HTTP/2 is spoken on clear connections too, and nothing else.
func newTransport(base string, pins []string, priorKnowledge bool, connected func()) *http.Transport {
	dialer := &net.Dialer{Timeout: dialTime, Control: screenAddress}
	t := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err == nil && connected != nil {
				connected()
			}
			return conn, err
		},
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, TLSHandshakeTimeout: dialTime, ForceAttemptHTTP2: true, DisableCompression: true,
		MaxResponseHeaderBytes: headersMax, MaxConnsPerHost: pullsMax + 1, MaxIdleConnsPerHost: pullsMax, IdleConnTimeout: 2 * time.Minute,
	}
	if priorKnowledge {
		t.Protocols = new(http.Protocols)
		t.Protocols.SetHTTP2(true)
		t.Protocols.SetUnencryptedHTTP2(true)
	}
	if keys := pinsOf(pins, base); len(keys) > 0 {
		// The key is who the peer is; names and authorities say nothing more.
		t.TLSClientConfig.InsecureSkipVerify = true
		t.TLSClientConfig.VerifyConnection = func(state tls.ConnectionState) error {
			got := sha256.Sum256(state.PeerCertificates[0].RawSubjectPublicKeyInfo)
			for _, k := range keys {
				if got == k {
					return nil
				}
			}
			return fmt.Errorf("its key %s %w", base64.StdEncoding.EncodeToString(got[:]), errPin)
		}
	}
	return t
}

// NativeTransport carries native replication with a peer: HTTP/2 over TLS, or in the clear if the URL says so and that is allowed.
func NativeTransport(p Peer, pins []string) http.RoundTripper {
	return newTransport(p.URL, pins, true, nil)
}

// newClient makes a client with connections of its own. transport replaces the network in tests; nil is the network.
func newClient(base string, pins []string, transport http.RoundTripper, now func() int64) *client {
	c := &client{base: base, now: now}
	if transport == nil {
		transport = newTransport(base, pins, false, func() { c.connects.Add(1) })
	}
	c.http = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return c
}

func (c *client) close() { c.http.CloseIdleConnections() }

// counted counts the bytes of a body, and ends it at most.
type counted struct {
	io.Reader
	c    *client
	left int64
}

var errTooMuch = errors.New("sends more than it may")

func (r *counted) Read(b []byte) (int, error) {
	if r.left <= 0 {
		return 0, errTooMuch
	}
	n, err := r.Reader.Read(b[:min(int64(len(b)), r.left)])
	r.left -= int64(n)
	r.c.in.Add(int64(n))
	return n, err
}

// do sends one request and hands the body of a 200 to read. It measures the round trip and the peer's clock.
func (c *client) do(ctx context.Context, token, method, path string, body []byte, most int64, read func(status int, body io.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "dmpd")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	c.requests.Add(1)
	c.out.Add(int64(len(path) + len(body)))
	sent := time.Now()
	reply, err := c.http.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the URL, which the caller names
		}
		return peerError("does not answer: %w", err)
	}
	defer reply.Body.Close()
	c.measure(reply.Header.Get("Date"), time.Since(sent))
	if reply.StatusCode != http.StatusOK && reply.StatusCode != http.StatusNoContent {
		return peerError("answers %s %s with %d", method, path[:min(len(path), 40)], reply.StatusCode)
	}
	if err := read(reply.StatusCode, &counted{reply.Body, c, most}); err != nil {
		return peerError("%w", err)
	}
	return nil
}

// measure keeps the round trip, and the peer's clock less ours; Date has whole seconds, so the middle of one is taken.
func (c *client) measure(date string, rtt time.Duration) {
	c.rttMs.Store(rtt.Milliseconds())
	if at, err := http.ParseTime(date); err == nil {
		c.offsetMs.Store(at.UnixMilli() + 500 - (c.now() - rtt.Milliseconds()/2))
	}
}

// entry is one of a digest, as it came.
type entry struct {
	cursor Cursor // Name as the peer spells it
	ttlSec int64
}

type page struct {
	entries []entry
	invalid int // and dropped (cluster.md 8, step 3)
	more    bool
}

// integer reads a JSON integer: no fraction, no exponent, no boolean, no text.
func integer(raw json.RawMessage) (int64, bool) {
	n, err := strconv.ParseInt(string(raw), 10, 64)
	return n, err == nil && len(raw) > 0 && raw[0] != '+'
}

// digest asks for a page.
func (c *client) digest(ctx context.Context, token string, after Cursor, nowMs int64) (p page, err error) {
	path := "/v1/sync/digest?cursor=" + url.QueryEscape(after.String()) + "&limit=" + strconv.Itoa(DigestLimitDefault)
	err = c.do(ctx, token, http.MethodGet, path, nil, digestBodyMax, func(status int, body io.Reader) error {
		var d struct {
			Records *[]json.RawMessage `json:"records"`
			More    bool               `json:"has_more"`
		}
		b, err := io.ReadAll(body)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(b, &d); err != nil || d.Records == nil || status != http.StatusOK {
			return errors.New("sends no digest")
		}
		if len(*d.Records) > DigestLimitMax {
			return errTooMuch
		}
		p.more = d.More
		for _, raw := range *d.Records {
			if e, ok := readEntry(raw, nowMs); ok {
				p.entries = append(p.entries, e)
			} else {
				p.invalid++
			}
		}
		return nil
	})
	return p, err
}

// readEntry is the structural filter of cluster.md 8, step 3.
func readEntry(raw json.RawMessage, nowMs int64) (e entry, ok bool) {
	var r struct {
		Name *string         `json:"name"`
		Hash *string         `json:"hash"`
		Ts   json.RawMessage `json:"ts"`
		TTL  json.RawMessage `json:"ttl"`
	}
	if json.Unmarshal(raw, &r) != nil || r.Name == nil || r.Hash == nil || !ValidName(*r.Name) {
		return e, false
	}
	e.cursor.Name = *r.Name
	if e.cursor.Hash, ok = ParseHash(*r.Hash); !ok {
		return e, false
	}
	if e.cursor.TsMs, ok = integer(r.Ts); !ok || e.cursor.TsMs < 0 || e.cursor.TsMs > nowMs+FutureSkewMs {
		return e, false
	}
	e.ttlSec, ok = integer(r.TTL)
	return e, ok && e.ttlSec >= 0 && e.ttlSec <= TTLBoundSec
}

// pull asks for all values at names and gives them one at a time; a record without its shape is passed over.
func (c *client) pull(ctx context.Context, token string, names []string, f func(name, value string, ttlSec int64)) error {
	body, err := json.Marshal(struct {
		Names []string `json:"names"`
	}{names})
	if err != nil {
		return err
	}
	return c.do(ctx, token, http.MethodPost, "/v1/sync/pull", body, pullReplyMax, func(status int, body io.Reader) error {
		if status != http.StatusOK {
			return errors.New("sends no records")
		}
		return readRecords(json.NewDecoder(body), f)
	})
}

func readRecords(d *json.Decoder, f func(name, value string, ttlSec int64)) error {
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.Join(errors.New("sends no object"), err)
	}
	found := false
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		if key != "records" {
			var skip json.RawMessage
			if err := d.Decode(&skip); err != nil {
				return err
			}
			continue
		}
		found = true
		if t, err := d.Token(); err != nil || t != json.Delim('[') {
			return errors.Join(errors.New("sends no list"), err)
		}
		for n := 0; d.More(); n++ {
			if n == pullRecordsMax {
				return errTooMuch
			}
			var raw json.RawMessage
			if err := d.Decode(&raw); err != nil {
				return err
			}
			var r struct {
				Name  *string         `json:"name"`
				Value *string         `json:"value"`
				TTL   json.RawMessage `json:"ttl"`
			}
			if json.Unmarshal(raw, &r) != nil || r.Name == nil || r.Value == nil || !utf8.ValidString(*r.Value) {
				continue
			}
			if ttl, ok := integer(r.TTL); ok && ttl > 0 && ttl <= TTLBoundSec {
				f(*r.Name, *r.Value, ttl)
			}
		}
		if _, err := d.Token(); err != nil {
			return err
		}
	}
	if _, err := d.Token(); err != nil {
		return err
	}
	if !found {
		return errors.New("sends no records")
	}
	return nil
}

// manifest asks for the peer's cluster manifest; nil if it has none.
func (c *client) manifest(ctx context.Context, token string) (text []byte, err error) {
	err = c.do(ctx, token, http.MethodGet, "/v1/sync/cluster-manifest", nil, manifestBodyMax, func(status int, body io.Reader) error {
		if status == http.StatusNoContent {
			return nil
		}
		b, err := io.ReadAll(body)
		if err != nil {
			return err
		}
		var m struct {
			Wire *string `json:"wire"`
		}
		if err := json.Unmarshal(b, &m); err != nil || m.Wire == nil {
			return errors.New("sends no manifest")
		}
		text = []byte(*m.Wire)
		return nil
	})
	return text, err
}
