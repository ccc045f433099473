package main

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dnsmesh/dmpd/controlplane/heartbeat"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/config"
	"github.com/dnsmesh/dmpd/internal/record"
)

func init() {
	register(&command{name: "doctor", args: "[ZONE] [--resolver IP[:PORT]]... [--server IP]... [--port N] [--url URL] [--ca FILE] [--remote] [--no-claim] [--json]", short: "Check a node from outside in, and say what to do", run: doctor,
		long: `Asks as a stranger would: the delegation and the addresses of the zone through resolvers, then the name servers themselves, then HTTP, the
heartbeat, and a claim that this command leaves for nobody and reads back. ZONE, the port and the URL come from the node's configuration
unless they are given; --remote leaves out what can be seen only on the node's machine. The exit code is 1 if a check failed.`,
		example: "dmpd doctor\ndmpd doctor mesh.example.com --remote --url https://mesh.example.com --json"})
}

const (
	doctorAskMax  = 5 * time.Second // for one question
	doctorMax     = 3 * time.Minute
	doctorServers = 8 // name server addresses that are tried
	doctorBodyMax = 64 << 10
	certWarn      = 14 * 24 * time.Hour
	clockWarnSec  = 30                      // of 300 that readers allow
	clockFailSec  = record.HeartbeatSkewSec // beyond it nobody sees the node, and it sees nobody
	freshSec      = 200                     // a node of ours signs every 75 s, a cache may keep that for 60
)

// Verdicts.
const (
	pass = "PASS"
	warn = "WARN"
	fail = "FAIL"
	skip = "SKIP"
)

// finding is the outcome of a check.
type finding struct {
	Check   string `json:"check"`
	Verdict string `json:"verdict"`
	Found   string `json:"found"`
	Remedy  string `json:"remedy,omitempty"`
}

// examination is what the checks share.
type examination struct {
	ctx       context.Context
	zone      string
	resolvers []netip.AddrPort // tried in order
	txt       *heartbeat.Resolvers
	given     []netip.Addr // --server
	port      uint16
	url       *url.URL // nil: not known
	roots     *x509.CertPool
	config    *config.Config // of the node on this machine; nil: --remote
	noClaim   bool
	proc      string // /proc

	servers  []netip.AddrPort // of the zone
	own      *record.Heartbeat
	findings []finding
}

func (x *examination) add(check, verdict, found, remedy string) {
	if verdict == pass || verdict == skip {
		remedy = ""
	}
	x.findings = append(x.findings, finding{check, verdict, found, remedy})
}

func doctor(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	x := &examination{proc: "/proc"}
	var resolvers, servers texts
	f.Var(&resolvers, "resolver", "`IP[:PORT]` to ask, may be given often (the system's)")
	f.Var(&servers, "server", "`IP` of the zone's name server, may be given often (what the zone's NS records lead to)")
	port := f.Uint("port", 53, "`number` of the name servers' port, as the world sees it")
	address := f.String("url", "", "the node's public `URL` (DMP_HEARTBEAT_SELF_ENDPOINT)")
	ca := f.String("ca", "", "`file` of certificates to trust besides the system's")
	remote := f.Bool("remote", false, "the node is on another machine: leave out what can be seen only there")
	f.BoolVar(&x.noClaim, "no-claim", false, "leave no claim")
	args, err := i.parse(f, 0, 1)
	if err != nil {
		return err
	}
	var bad []string
	if x.resolvers, bad = heartbeat.ParseServers(resolvers); len(bad) > 0 {
		return usagef("--resolver %s: want IP or IP:port", bad[0])
	}
	if len(x.resolvers) == 0 {
		x.resolvers = heartbeat.SystemServers()
		for _, s := range x.resolvers {
			resolvers = append(resolvers, s.String())
		}
	}
	for _, text := range servers {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return usagef("--server %s: want an IP address", text)
		}
		x.given = append(x.given, a)
	}
	if *port < 1 || *port > 65535 {
		return usagef("--port %d: from 1 to 65535", *port)
	}
	x.port = uint16(*port)
	if *ca != "" {
		pem, err := os.ReadFile(*ca)
		if err != nil {
			return usageError{err}
		}
		if x.roots, err = x509.SystemCertPool(); err != nil {
			x.roots = x509.NewCertPool()
		}
		if !x.roots.AppendCertsFromPEM(pem) {
			return usagef("--ca %s: no certificate in it", *ca)
		}
	}
	if !*remote {
		if err := p.resolve(); err != nil {
			return fmt.Errorf("%w. With --remote and a ZONE no node is needed here", err)
		}
		x.config = p.config
		x.zone, *address = p.config.Zone(), cmp.Or(*address, p.config.String("HEARTBEAT_SELF_ENDPOINT"))
		if x.zone == "" && len(args) == 0 {
			if x.zone, err = p.zone(); err != nil {
				return err
			}
		}
	}
	if len(args) == 1 {
		x.zone = args[0]
	}
	x.zone = strings.ToLower(strings.TrimSuffix(x.zone, "."))
	if x.zone == "" || !record.DNSName(x.zone) {
		return usagef("which zone? Name it, or the node's configuration with --config or --state-dir")
	}
	if *address != "" {
		if x.url, err = url.Parse(*address); err != nil || x.url.Host == "" || x.url.Scheme != "http" && x.url.Scheme != "https" {
			return usagef("--url %s: want http(s)://host[:port]", *address)
		}
	}
	x.txt = &heartbeat.Resolvers{}
	x.txt.Use(resolvers)
	var cancel context.CancelFunc
	x.ctx, cancel = context.WithTimeout(context.Background(), doctorMax)
	defer cancel()
	x.examine()
	count := map[string]int{}
	for _, f := range x.findings {
		count[f.Verdict]++
	}
	if err := p.print(x.findings, func(w *tabwriter.Writer) {
		for _, f := range x.findings {
			fmt.Fprintf(w, "%s\t%s\t%s\n", f.Verdict, f.Check, quoted(f.Found))
			if f.Remedy != "" {
				fmt.Fprintf(w, "\t\t-> %s\n", f.Remedy)
			}
		}
		fmt.Fprintf(w, "\n%d passed, %d warnings, %d failed\n", count[pass], count[warn], count[fail])
	}); err != nil {
		return err
	}
	if count[fail] > 0 {
		return fmt.Errorf("%d checks of %s failed", count[fail], x.zone)
	}
	return nil
}

// examine runs the checks, from outside in.
func (x *examination) examine() {
	x.delegation()
	if len(x.servers) > 0 {
		x.transports()
	}
	if len(x.servers) > 0 { // those that answer
		x.apex()
		x.spelling()
		x.edns()
		x.negatives()
		x.unsigned()
	}
	x.web()
	x.heartbeat()
	x.claim()
	x.clock()
	if x.config != nil {
		x.portHolder()
	}
}

// ask asks a server of the zone.
func (x *examination) ask(server netip.AddrPort, network, name, typ string, edns int) (*heartbeat.Reply, error) {
	ctx, cancel := context.WithTimeout(x.ctx, doctorAskMax)
	defer cancel()
	return heartbeat.Ask(ctx, server, network, name, typ, edns, false)
}

// resolve asks the resolvers for data of a type; the first that has some wins.
func (x *examination) resolve(name, typ string) (data []string, err error) {
	for _, r := range x.resolvers {
		ctx, cancel := context.WithTimeout(x.ctx, doctorAskMax)
		reply, failed := heartbeat.Ask(ctx, r, "udp", name, typ, 1232, true)
		if failed == nil && reply.TC {
			reply, failed = heartbeat.Ask(ctx, r, "tcp", name, typ, 1232, true)
		}
		cancel()
		switch {
		case failed != nil:
			err = errors.Join(err, failed)
		case reply.Rcode != "NOERROR" && reply.Rcode != "NXDOMAIN":
			err = errors.Join(err, fmt.Errorf("resolver %v answers %s", r, reply.Rcode))
		default:
			if data = reply.Of(typ); len(data) > 0 {
				return data, nil
			}
		}
	}
	return nil, err
}

func (x *examination) addresses(name string) (as []netip.Addr, err error) {
	for _, typ := range []string{"A", "AAAA"} {
		data, failed := x.resolve(name, typ)
		err = errors.Join(err, failed)
		for _, text := range data {
			if a, bad := netip.ParseAddr(text); bad == nil {
				as = append(as, a)
			}
		}
	}
	return as, err
}

func (x *examination) delegation() {
	remedy := "at the registrar, or in the parent zone, add NS records for " + x.zone + " that name this node"
	ns, err := x.resolve(x.zone, "NS")
	switch {
	case len(ns) > 0:
		x.add("delegation", pass, "NS "+strings.Join(ns, ", "), "")
	case err != nil:
		x.add("delegation", fail, "the resolvers find no NS records: "+oneLine(err), remedy+"; or the resolvers cannot reach the node, see below")
	default:
		x.add("delegation", fail, "no NS records of "+x.zone+" are found", remedy)
	}
	var as, private []string
	none := []string{}
	for _, name := range ns {
		got, _ := x.addresses(name)
		if len(got) == 0 {
			none = append(none, name)
		}
		for _, a := range got {
			as = append(as, name+" "+a.String())
			if !record.PublicAddr(a) {
				private = append(private, a.String())
			}
			if ap := netip.AddrPortFrom(a, x.port); len(x.servers) < doctorServers && !slices.Contains(x.servers, ap) {
				x.servers = append(x.servers, ap)
			}
		}
	}
	switch {
	case len(ns) == 0:
		x.add("glue", skip, "without a delegation there is none", "")
	case len(none) > 0:
		x.add("glue", fail, "no address for "+strings.Join(none, ", "), "add A or AAAA records for each name server; for one inside "+x.zone+" set DMP_DNS_APEX_A and have the parent hold glue")
	case len(private) > 0:
		x.add("glue", warn, "addresses that the world cannot reach: "+strings.Join(private, ", "), "name servers need public addresses, unless all of your users are inside")
	default:
		x.add("glue", pass, strings.Join(as, ", "), "")
	}
	if len(x.given) > 0 {
		x.servers = nil
		for _, a := range x.given {
			x.servers = append(x.servers, netip.AddrPortFrom(a, x.port))
		}
	}
}

// transports asks every server over UDP and TCP, and keeps those that answer over one of them.
func (x *examination) transports() {
	answering := map[netip.AddrPort]bool{}
	for _, network := range []string{"udp", "tcp"} {
		var bad []string
		for _, s := range x.servers {
			r, err := x.ask(s, network, x.zone, "SOA", 0)
			switch {
			case err != nil:
				bad = append(bad, oneLine(err))
			case r.Rcode != "NOERROR" || !r.AA:
				answering[s] = true
				bad = append(bad, fmt.Sprintf("%v answers %s, authoritative: %v", s, r.Rcode, r.AA))
			default:
				answering[s] = true
			}
		}
		upper := strings.ToUpper(network)
		if len(bad) > 0 {
			x.add("dns-"+network, fail, strings.Join(bad, "; "), fmt.Sprintf("let %s port %d through to the node's DMP_DNS_PORT, in the firewall and in port mappings; answers over 512 bytes need TCP too", upper, x.port))
		} else {
			x.add("dns-"+network, pass, fmt.Sprintf("%d servers answer with authority", len(x.servers)), "")
		}
	}
	x.servers = slices.DeleteFunc(x.servers, func(s netip.AddrPort) bool { return !answering[s] })
}

// any asks the answering servers in turn until one replies.
func (x *examination) any(name, typ string, edns int) (*heartbeat.Reply, error) {
	var errs []error
	for _, s := range x.servers {
		for _, network := range []string{"udp", "tcp"} {
			r, err := x.ask(s, network, name, typ, edns)
			if err == nil && (!r.TC || network == "tcp") {
				return r, nil
			}
			errs = append(errs, err)
		}
	}
	return nil, errors.Join(errs...)
}

func (x *examination) apex() {
	for _, c := range []struct {
		types   []string
		verdict string
		remedy  string
	}{
		{[]string{"SOA"}, fail, "the servers do not serve this zone: DMP_SERVED_ZONE is what the node serves"},
		{[]string{"NS"}, warn, "set DMP_DNS_APEX_NS to the node's name, as the parent has it: resolvers compare"},
		{[]string{"A", "AAAA"}, warn, "set DMP_DNS_APEX_A (and DMP_DNS_APEX_AAAA): providers of claims are reached at the host of their endpoint"},
	} {
		var data []string
		var errs []error
		for _, typ := range c.types {
			r, err := x.any(x.zone, typ, 0)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			data = append(data, r.Of(typ)...)
		}
		name := "apex-" + strings.ToLower(c.types[0])
		if len(data) == 0 {
			x.add(name, c.verdict, strings.TrimSpace("none at "+x.zone+" "+oneLine(errors.Join(errs...))), c.remedy)
		} else {
			x.add(name, pass, strings.Join(data, ", "), "")
		}
	}
}

// spelling: resolvers spell names in random case and want them back so (0x20).
func (x *examination) spelling() {
	mixed := []byte(x.zone)
	for i, c := range mixed {
		if i%2 == 0 && c >= 'a' && c <= 'z' {
			mixed[i] = c - 'a' + 'A'
		}
	}
	r, err := x.any(string(mixed), "SOA", 0)
	switch {
	case err != nil:
		x.add("0x20", fail, oneLine(err), "see dns-udp")
	case r.Question != string(mixed) || len(r.Of("SOA")) == 0:
		x.add("0x20", fail, fmt.Sprintf("asked for %s, it answers %s for %q", mixed, r.Rcode, r.Question), "something between changes the case of names: a proxy, or a middlebox. Answers must spell the name as it was asked for")
	default:
		x.add("0x20", pass, "names come back as they were spelled", "")
	}
}

// edns: with it answers have at most 1232 bytes over UDP, without it 512, and what is larger comes over TCP.
func (x *examination) edns() {
	const remedy = "something between drops EDNS or large datagrams: let UDP answers up to 1232 bytes through, and TCP"
	s := x.servers[0]
	for _, size := range []int{0, 1232, 4096} {
		r, err := x.ask(s, "udp", record.SeenName(x.zone), "TXT", size)
		if err != nil {
			x.add("edns", fail, fmt.Sprintf("no answer with a payload size of %d: %s", size, oneLine(err)), remedy)
			return
		}
		if size > 0 && r.EDNS == 0 {
			x.add("edns", warn, "the answer to a question with EDNS has none", remedy)
			return
		}
		if limit := max(512, min(size, 1232)); r.Bytes > limit {
			x.add("edns", warn, fmt.Sprintf("%d bytes over UDP, where %d are safe", r.Bytes, limit), "answers over 1232 bytes get lost on many paths: another server answers here, or a proxy")
			return
		}
		if !r.TC {
			continue
		}
		if r, err = x.ask(s, "tcp", record.SeenName(x.zone), "TXT", size); err != nil || r.TC {
			x.add("edns", fail, "an answer that is cut over UDP does not come over TCP either", remedy)
			return
		}
	}
	x.add("edns", pass, "sizes are kept, and what is larger comes over TCP", "")
}

func (x *examination) negatives() {
	r, err := x.any(record.HeartbeatName("doctor-"+hex.EncodeToString(random(6))+"."+x.zone), "TXT", 0)
	switch {
	case err != nil:
		x.add("nxdomain", fail, oneLine(err), "see dns-udp")
	case r.Rcode != "NXDOMAIN" || len(r.Authority) == 0 || r.Authority[0].Type != "SOA":
		x.add("nxdomain", fail, fmt.Sprintf("a name that nobody has gets %s, %d records of authority", r.Rcode, len(r.Authority)), "another server answers for the zone, perhaps with a wildcard: only this node's may")
	default:
		x.add("nxdomain", pass, "names that nobody has get NXDOMAIN with the SOA", "")
	}
}

// unsigned: whoever may write without a key may write anything.
func (x *examination) unsigned() {
	ctx, cancel := context.WithTimeout(x.ctx, doctorAskMax)
	defer cancel()
	r, err := heartbeat.Update(ctx, x.servers[0], x.zone, "_dmp-probe."+x.zone, "v=dmp1;t=probe", 60)
	switch {
	case err != nil:
		x.add("unsigned-update", warn, oneLine(err), "let UDP through, UPDATE messages too: users and claims need them")
	case r.Rcode == "REFUSED" || r.Rcode == "NOTAUTH":
		x.add("unsigned-update", pass, r.Rcode, "")
	case r.Rcode == "NOERROR":
		x.add("unsigned-update", fail, "the server took a record from a stranger", "another server answers here, and takes updates from anybody: find it (see port-holder) and close it")
	default:
		x.add("unsigned-update", warn, "answered "+r.Rcode+", which clients do not take for a node of the mesh", "a node answers REFUSED or NOTAUTH: does another server answer here?")
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// web checks health, certificate and registration.
func (x *examination) web() {
	if x.url == nil {
		x.add("http", skip, "the node's URL is not known: give --url or DMP_HEARTBEAT_SELF_ENDPOINT", "")
		return
	}
	dialer := &net.Dialer{Timeout: doctorAskMax}
	resolver := func(ctx context.Context, network, address string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		as := []netip.Addr{}
		if a, err := netip.ParseAddr(host); err == nil {
			as = append(as, a)
		} else if as, err = x.addresses(host); len(as) == 0 {
			return nil, fmt.Errorf("the resolvers know no address of %s %s", host, oneLine(err))
		}
		err = nil
		for _, a := range as {
			c, failed := dialer.DialContext(ctx, network, net.JoinHostPort(a.String(), port))
			if failed == nil {
				return c, nil
			}
			err = errors.Join(err, failed)
		}
		return nil, err
	}
	// The certificate is judged apart, so that the rest is checked behind a bad one too.
	client := &http.Client{Timeout: 2 * doctorAskMax, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{DialContext: resolver, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	get := func(path string) (*http.Response, []byte, error) {
		req, err := http.NewRequestWithContext(x.ctx, http.MethodGet, x.url.Scheme+"://"+x.url.Host+path, nil)
		if err != nil {
			return nil, nil, err
		}
		r, err := client.Do(req)
		if err != nil {
			return nil, nil, err
		}
		defer r.Body.Close()
		body, err := io.ReadAll(io.LimitReader(r.Body, doctorBodyMax))
		return r, body, err
	}
	r, body, err := get("/health")
	if err != nil {
		x.add("http", fail, oneLine(err), "let TCP through to the node's DMP_HTTP_PORT, and the host of "+x.url.String()+" must resolve")
		return
	}
	if r.StatusCode != http.StatusOK {
		x.add("http", fail, fmt.Sprintf("/health answers %d %s", r.StatusCode, oneLine(errors.New(string(body)))), "`dmpd status` on the node says what is wrong; a proxy must pass /health on")
	} else {
		x.add("http", pass, "/health answers 200", "")
	}
	x.date(r)
	x.certificate(r)

	r, body, err = get("/v1/registration/challenge")
	var challenge struct{ Challenge, Node string }
	switch {
	case err != nil:
		x.add("registration", fail, oneLine(err), "see http")
	case r.StatusCode == http.StatusOK && json.Unmarshal(body, &challenge) == nil && challenge.Challenge != "":
		x.add("registration", pass, "open, as "+challenge.Node, "")
	case r.StatusCode == http.StatusNotFound && (x.config == nil || !x.config.Bool("REGISTRATION_ENABLED")):
		x.add("registration", warn, "closed", "users cannot register by themselves: DMP_REGISTRATION_ENABLED=1 with DMP_AUTH_MODE=multi-tenant opens it")
	case r.StatusCode == http.StatusTooManyRequests:
		x.add("registration", warn, "this address has asked too often", "try again later")
	default:
		x.add("registration", fail, fmt.Sprintf("/v1/registration/challenge answers %d", r.StatusCode), "registration needs DMP_AUTH_MODE=multi-tenant and DMP_NODE_HOSTNAME; a proxy must pass /v1/ on")
	}
}

func (x *examination) date(r *http.Response) {
	at, err := http.ParseTime(r.Header.Get("Date"))
	if err != nil {
		return
	}
	x.offset("clock-http", at.Unix()-clock.NowMs()/1000, "the node's HTTP answers are")
}

// offset judges by how many seconds a clock is ahead of this machine's.
func (x *examination) offset(check string, sec int64, what string) {
	found := fmt.Sprintf("%s %d s ahead of this machine's clock", what, sec)
	if sec < 0 {
		found = fmt.Sprintf("%s %d s behind this machine's clock", what, -sec)
	}
	const remedy = "have both machines follow NTP (chrony, systemd-timesyncd): beyond 300 s nobody takes this node's records, nor it theirs"
	switch {
	case max(sec, -sec) > clockFailSec:
		x.add(check, fail, found, remedy)
	case max(sec, -sec) > clockWarnSec:
		x.add(check, warn, found, remedy)
	default:
		x.add(check, pass, found, "")
	}
}

func (x *examination) certificate(r *http.Response) {
	if r.TLS == nil {
		x.add("certificate", warn, "the URL is plain http", "tokens and registrations travel in clear: set DMP_TLS_CERT and DMP_TLS_KEY, or put a proxy with a certificate in front")
		return
	}
	certs := r.TLS.PeerCertificates
	o := x509.VerifyOptions{DNSName: x.url.Hostname(), Roots: x.roots, Intermediates: x509.NewCertPool(), CurrentTime: clock.Now()}
	for _, c := range certs[1:] {
		o.Intermediates.AddCert(c)
	}
	left := certs[0].NotAfter.Sub(clock.Now())
	ends := "ends " + certs[0].NotAfter.UTC().Format("2006-01-02 15:04Z")
	_, err := certs[0].Verify(o)
	switch {
	case err != nil:
		x.add("certificate", fail, oneLine(err)+"; "+ends, "get one for "+x.url.Hostname()+" with its whole chain, put it at DMP_TLS_CERT, and send the node SIGHUP")
	case left < certWarn:
		x.add("certificate", warn, ends, "renew it: is the renewal's timer alive?")
	default:
		x.add("certificate", pass, ends, "")
	}
}

// heartbeat checks what strangers read of the node.
func (x *examination) heartbeat() {
	off := x.config != nil && !x.config.Bool("HEARTBEAT_ENABLED")
	values, err := x.txt.TXT(x.ctx, record.HeartbeatName(x.zone), false)
	if err != nil {
		remedy := "set DMP_HEARTBEAT_ENABLED=1, DMP_HEARTBEAT_SELF_ENDPOINT and DMP_HEARTBEAT_OPERATOR_KEY_PATH; the node's log says what keeps it from announcing itself"
		if off && errors.Is(err, heartbeat.ErrNoRecord) {
			x.add("heartbeat", warn, "the node does not announce itself", remedy)
		} else {
			x.add("heartbeat", fail, oneLine(err), remedy)
		}
		return
	}
	nowSec := clock.NowMs() / 1000
	var refused record.Refusal
	good := []record.Heartbeat{}
	for _, v := range values {
		var h record.Heartbeat
		if r := h.Verify(v, nowSec, 1<<62); r != record.Accepted {
			refused = r
			continue
		}
		good = append(good, h)
	}
	// Nodes that share the zone are there too: ours is the one at our URL, else the freshest.
	slices.SortFunc(good, func(a, b record.Heartbeat) int { return cmp.Compare(b.TsSec, a.TsSec) })
	for n := range good {
		if x.own == nil || x.url != nil && strings.EqualFold(good[n].Endpoint, x.url.Scheme+"://"+x.url.Host) && !strings.EqualFold(x.own.Endpoint, good[n].Endpoint) {
			x.own = &good[n]
		}
	}
	if x.own == nil {
		x.add("heartbeat", fail, fmt.Sprintf("none of %d values is good: %v", len(values), refused), "something else writes there, or the clocks differ by more than the record lives: `dmpd record get "+record.HeartbeatName(x.zone)+"`")
		return
	}
	h := x.own
	age := nowSec - int64(h.TsSec)
	found := fmt.Sprintf("%s, signed %d s ago", h.Endpoint, age)
	switch {
	case age > freshSec || age < -clockWarnSec:
		x.add("heartbeat", fail, found, "readers take none over 300 s or ahead of their clock: does the HTTP process run (`dmpd status`), are the clocks right, does a cache keep answers for too long?")
	case x.url != nil && !strings.EqualFold(h.Endpoint, x.url.Scheme+"://"+x.url.Host):
		x.add("heartbeat", warn, found+", which is not "+x.url.String(), "DMP_HEARTBEAT_SELF_ENDPOINT is what strangers connect to")
	default:
		x.add("heartbeat", pass, found, "")
	}
	seen, err := x.txt.TXT(x.ctx, record.SeenName(x.zone), false)
	self := 0
	for _, v := range seen {
		var other record.Heartbeat
		if other.Verify(v, nowSec, 1<<62) == record.Accepted && other.Operator == h.Operator && other.Endpoint == h.Endpoint {
			self++
		}
	}
	const remedy = "name some in DMP_HEARTBEAT_SEEDS or DMP_HEARTBEAT_PUBLIC_SEED_URLS; DMP_LOG_LEVEL=DEBUG tells which zones do not answer"
	switch {
	case errors.Is(err, heartbeat.ErrNoRecord):
		x.add("seen-graph", warn, "the node has heard nobody", remedy)
	case err != nil:
		x.add("seen-graph", fail, oneLine(err), "see dns-tcp: this answer is the largest that a node gives")
	case self > 0:
		x.add("seen-graph", warn, "the node names itself", "an older node wrote it: `dmpd record delete "+record.SeenName(x.zone)+" --every`, the node fills it anew")
	default:
		x.add("seen-graph", pass, fmt.Sprintf("%d others", len(seen)), "")
	}
}

// claim leaves a claim as a sender does, at port 53 of the host of the endpoint, and reads it back as a receiver does.
func (x *examination) claim() {
	provider := x.own != nil && x.own.Capabilities&record.CapClaimProvider != 0
	switch {
	case x.noClaim:
		x.add("claim", skip, "not asked for", "")
		return
	case !provider:
		x.add("claim", skip, "the node does not say that it takes claims from anybody", "")
		return
	}
	zone := cmp.Or(strings.ToLower(strings.TrimSuffix(x.own.Zone, ".")), x.zone)
	host := x.own.Endpoint[strings.Index(x.own.Endpoint, "://")+3:]
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	var as []netip.Addr
	var err error
	if a, bad := netip.ParseAddr(host); bad == nil {
		as = append(as, a)
	} else if as, err = x.addresses(host); len(as) == 0 {
		x.add("claim", fail, "senders look for an address of "+host+" and find none "+oneLine(err), "the host of DMP_HEARTBEAT_SELF_ENDPOINT must resolve to the node: DMP_DNS_APEX_A if it is the zone itself")
		return
	}
	server := netip.AddrPortFrom(as[0], x.port)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		x.add("claim", fail, oneLine(err), "")
		return
	}
	nowSec := uint64(clock.NowMs() / 1000)
	id := [16]byte(random(16))
	domain := "doctor.invalid"
	value := string(record.AppendClaim(nil, key, id, domain, uint8(record.SlotOf(id)), nowSec, nowSec+60))
	name := record.ClaimName(record.SlotOf(id), [32]byte(random(32)), zone) // nobody's mailbox
	ctx, cancel := context.WithTimeout(x.ctx, doctorAskMax)
	defer cancel()
	const remedy = "senders write to port 53 of the endpoint's host over UDP: that must be this node's DNS, with DMP_DNS_UPDATE_ENABLED=1 and DMP_CLAIM_PROVIDER=1"
	r, err := heartbeat.Update(ctx, server, zone, name, value, 60)
	switch {
	case err != nil:
		x.add("claim", fail, oneLine(err), remedy)
		return
	case r.Rcode != "NOERROR":
		x.add("claim", fail, fmt.Sprintf("%v answers %s to a claim", server, r.Rcode), remedy)
		return
	}
	values, err := x.txt.TXT(x.ctx, name, false)
	if err != nil || !slices.ContainsFunc(values, func(v []byte) bool { return string(v) == value }) {
		x.add("claim", fail, "it was taken, and does not come back "+oneLine(err), "the server that took it is not the one that the zone's NS records lead to")
		return
	}
	x.add("claim", pass, "left for nobody at "+server.String()+", and read back", "")
}

// clock judges this machine's clock, as far as it can be from here.
func (x *examination) clock() {
	if x.own != nil && int64(x.own.TsSec)-clock.NowMs()/1000 > 0 {
		x.offset("clock-heartbeat", int64(x.own.TsSec)-clock.NowMs()/1000, "the heartbeat is")
	}
	if x.config == nil {
		return
	}
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	switch {
	case err != nil:
		x.add("clock", skip, oneLine(err), "")
	case state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0:
		x.add("clock", warn, "the kernel says that nothing keeps this machine's clock right", "run chrony or systemd-timesyncd; in a container the host's counts")
	default:
		x.add("clock", pass, "this machine's clock is kept right", "")
	}
}

// portHolder says who listens on the node's DNS port and on port 53, of the processes that may be looked at.
func (x *examination) portHolder() {
	want := uint16(x.config.Int("DNS_PORT"))
	var other, ours []string
	for _, h := range portOwners(x.proc, []uint16{53, want}) {
		switch {
		case h.name == "dmp-dataplane":
			ours = append(ours, h.String())
		case x.inTheWay(h.addr):
			other = append(other, h.String())
		}
	}
	switch {
	case len(other) > 0 && len(ours) == 0:
		x.add("port-holder", fail, strings.Join(other, ", "), "another server has the port: stop it (for systemd-resolved: DNSStubListener=no), or have the node listen on another DMP_DNS_HOST or DMP_DNS_PORT")
	case len(other) > 0:
		x.add("port-holder", warn, strings.Join(other, ", ")+" beside "+strings.Join(ours, ", "), "questions to that address do not reach the node")
	case len(ours) == 0:
		x.add("port-holder", fail, fmt.Sprintf("nobody that can be seen listens on port %d", want), "start the node; to see the processes of others run this as root")
	case want != x.port:
		x.add("port-holder", warn, fmt.Sprintf("the node listens on port %d, the world asks port %d", want, x.port), fmt.Sprintf("map port %d to %d for UDP and TCP, or set DMP_DNS_PORT=%d; with --port this command asks another", x.port, want, x.port))
	default:
		x.add("port-holder", pass, strings.Join(ours, ", "), "")
	}
}

// inTheWay says whether who has the port at this address gets questions that are meant for the node.
func (x *examination) inTheWay(addr netip.Addr) bool {
	for _, host := range x.config.List("DNS_HOST") {
		own, err := netip.ParseAddr(host)
		if err != nil {
			own = netip.AddrFrom4([4]byte{127, 0, 0, 1}) // localhost
		}
		if own == addr || own.IsUnspecified() && !addr.IsLoopback() || addr.IsUnspecified() {
			return true
		}
	}
	return false
}

type portOwner struct {
	network string
	addr    netip.Addr
	port    uint16
	pid     int
	name    string
}

func (h portOwner) String() string {
	who := cmp.Or(h.name, "a process that is not shown to this user")
	if h.pid > 0 {
		who = fmt.Sprintf("%s (%d)", who, h.pid)
	}
	return fmt.Sprintf("%s has %s/%s", who, netip.AddrPortFrom(h.addr, h.port), h.network)
}

// portOwners reads /proc for sockets bound to ports.
func portOwners(proc string, ports []uint16) (hs []portOwner) {
	sockets := map[string][]int{} // index into hs by inode
	for _, network := range []string{"udp", "udp6", "tcp", "tcp6"} {
		text, err := os.ReadFile(filepath.Join(proc, "net", network))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) < 10 {
				continue
			}
			addr, port, ok := procAddr(f[1])
			const listening = "0A"
			if !ok || !slices.Contains(ports, port) || strings.HasPrefix(network, "tcp") && f[3] != listening {
				continue
			}
			sockets[f[9]] = append(sockets[f[9]], len(hs))
			hs = append(hs, portOwner{network: network[:3], addr: addr, port: port})
		}
	}
	fds, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "fd", "*"))
	for _, fd := range fds {
		link, err := os.Readlink(fd)
		if err != nil || !strings.HasPrefix(link, "socket:[") {
			continue
		}
		for _, n := range sockets[strings.TrimSuffix(strings.TrimPrefix(link, "socket:["), "]")] {
			dir := filepath.Dir(filepath.Dir(fd))
			hs[n].pid, _ = strconv.Atoi(filepath.Base(dir))
			if comm, err := os.ReadFile(filepath.Join(dir, "comm")); err == nil {
				hs[n].name = strings.TrimSpace(string(comm))
			}
		}
	}
	// One line for each process and port is enough.
	slices.SortFunc(hs, func(a, b portOwner) int {
		return cmp.Or(cmp.Compare(a.pid, b.pid), strings.Compare(a.String(), b.String()))
	})
	return slices.CompactFunc(hs, func(a, b portOwner) bool { return a == b })
}

// procAddr reads an address of /proc/net/udp: words of 32 bits in the machine's order, in hexadecimal, and the port.
func procAddr(text string) (addr netip.Addr, port uint16, ok bool) {
	hexAddr, hexPort, _ := strings.Cut(text, ":")
	b, err := hex.DecodeString(hexAddr)
	p, err2 := strconv.ParseUint(hexPort, 16, 16)
	if err != nil || err2 != nil || len(b)%4 != 0 {
		return addr, 0, false
	}
	for i := 0; i < len(b); i += 4 {
		slices.Reverse(b[i : i+4]) // all machines that this runs on are little-endian
	}
	addr, ok = netip.AddrFromSlice(b)
	return addr.Unmap(), uint16(p), ok
}

// oneLine is an error's text on one line, short.
func oneLine(err error) string {
	if err == nil {
		return ""
	}
	text := strings.Join(strings.Fields(err.Error()), " ")
	if len(text) > 300 {
		text = text[:300] + "..."
	}
	return text
}
