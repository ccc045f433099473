package heartbeat

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/dnsmesh/dmpd/internal/record"
)

// Public seed lists (federation.md 8) are the only thing that is fetched over HTTP, and this file the only one that does it. A URL is the
// operator's, what it leads to is not: names are resolved by the dialer, which refuses every address that is not public at the moment
// that it connects, so that no name can lead inside, whatever it resolved to before.
const (
	listTimeout   = 5 * time.Second
	listBodyMax   = 65536
	listHeaderMax = 16 << 10
	listsMax      = 8   // URLs
	listZonesMax  = 256 // of one list: ten rounds' worth at the default of 25 zones
	listRefresh   = 6 * time.Hour
	listRetry     = 15 * time.Minute // after a failure
)

var errNotPublic = errors.New("not a public address")

// fetcher fetches seed lists. permit and roots are for tests.
type fetcher struct {
	permit func(netip.Addr) bool
	tls    *tls.Config
}

func (f *fetcher) client() *http.Client {
	permit := f.permit
	if permit == nil {
		permit = record.PublicAddr
	}
	dialer := &net.Dialer{Timeout: listTimeout, Control: func(_, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil || !permit(ap.Addr().Unmap()) {
			return fmt.Errorf("%s: %w", address, errNotPublic)
		}
		return nil
	}}
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: listHeaderMax, TLSClientConfig: f.tls.Clone(),
			TLSHandshakeTimeout: listTimeout, ForceAttemptHTTP2: true},
	}
}

// fetch gets the zones of a list.
func (f *fetcher) fetch(ctx context.Context, text string) ([]string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, errors.New("not an https URL")
	}
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	r, err := f.client().Do(req)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK { // a redirect too
		return nil, fmt.Errorf("status %d", r.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, listBodyMax+1))
	if err = errors.Join(err, ctx.Err()); err != nil { // a body may end, cleanly even, since we hung up
		return nil, err
	}
	if len(body) > listBodyMax { // cut, its last line could be another name
		return nil, fmt.Errorf("more than %d bytes", listBodyMax)
	}
	zones := parseList(body)
	if len(zones) == 0 {
		return nil, errors.New("it names no zone")
	}
	return zones, nil
}

// parseList reads a list: a zone a line, # and blank lines apart.
func parseList(body []byte) (zones []string) {
	for line := range strings.Lines(string(body)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if z, ok := seedZone(line); ok && !slices.Contains(zones, z) && len(zones) < listZonesMax {
			zones = append(zones, z)
		}
	}
	return zones
}
