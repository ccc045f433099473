package dataplane

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dnsmesh/dmpd/dataplane/update"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/tsig"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// TestScenarios plays the conversations of testdata/*.txt with a whole data plane, each over UDP and over TCP. A comment says which clause
// the lines under it prove; testdata/README.md has the language.
func TestScenarios(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scenarios: ", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, network := range []string{"udp", "tcp"} {
			t.Run(strings.TrimSuffix(filepath.Base(file), ".txt")+"/"+network, func(t *testing.T) {
				t.Parallel()
				play(t, file, string(text), network)
			})
		}
	}
}

// scenario is a conversation that is under way.
type scenario struct {
	*rig
	network string
	dir     string
	change  func(*Config)
	vars    map[string]string // values by name
	at      string            // file and line
}

func play(t *testing.T, file, text, network string) {
	s := &scenario{network: network, dir: t.TempDir(), vars: map[string]string{}, change: func(*Config) {}}
	for i, line := range strings.Split(text, "\n") {
		s.at = fmt.Sprintf("%s:%d (%s)", file, i+1, network)
		words := split(t, s.at, line)
		if len(words) == 0 {
			continue
		}
		if words[0] == "node" {
			s.change = nodeSettings(t, s.at, words[1:])
			if s.rig != nil {
				s.stop(t)
				s.dir = t.TempDir()
			}
			continue
		}
		if s.rig == nil {
			s.start(t)
		}
		s.line(t, words)
	}
}

func (s *scenario) start(t *testing.T) {
	t.Helper()
	s.rig = startRigIn(t, s.dir, func(c *Config) { c.Loops, c.Settings.RRLRate = 1, 0 }, s.change)
}

func (s *scenario) stop(t *testing.T) {
	t.Helper()
	if err := s.Node.Stop(); err != nil {
		t.Fatalf("%s: %v", s.at, err)
	}
	s.Node = nil
	if s.state != nil {
		s.state.Close()
		s.live.Close()
		s.state, s.live = nil, nil
	}
	s.rig = nil
}

// split cuts a line in words. A word may hold text in quotes, with blanks.
func split(t *testing.T, at, line string) (words []string) {
	t.Helper()
	for {
		line = strings.TrimLeft(line, " \t")
		if line == "" || line[0] == '#' {
			return words
		}
		n := 0
		for n < len(line) && line[n] != ' ' && line[n] != '\t' {
			if line[n] == '"' {
				quoted, err := strconv.QuotedPrefix(line[n:])
				if err != nil {
					t.Fatalf("%s: a quote that does not end", at)
				}
				n += len(quoted)
				continue
			}
			n++
		}
		words, line = append(words, line[:n]), line[n:]
	}
}

// nodeSettings reads what stands behind "node": how the next node is set up.
func nodeSettings(t *testing.T, at string, words []string) func(*Config) {
	t.Helper()
	return func(c *Config) {
		set := &c.Settings
		for _, w := range words {
			name, v, _ := strings.Cut(w, "=")
			n, _ := strconv.Atoi(v)
			switch name {
			case "updates":
				set.Policy.Enabled = v == "on"
			case "provider":
				set.Policy.Provider = v == "on"
			case "receiver":
				set.Policy.Receiver = v == "on"
			case "prereqs":
				set.Policy.Prereqs = map[string]update.Prereqs{"off": update.PrereqsOff, "auto": update.PrereqsAuto, "on": update.PrereqsOn}[v]
			case "claimlife":
				set.Policy.ClaimLifeSec = int64(n)
			case "values":
				set.Store.ValuesMax = n
			case "answerttl":
				set.Zone.TTLSec = uint32(n)
			case "valuemax":
				set.Policy.ValueMax = n
			case "ttlmax":
				set.Policy.TTLMaxSec = int64(n)
			case "records":
				set.Store.RecordsMax = int64(n)
			case "zone":
				if v == "none" {
					set.Zone.Apex = nil
				}
			case "apex":
				if v == "bare" {
					set.Zone.A, set.Zone.NS = nil, nil
				} else {
					set.Zone.AAAA = net.ParseIP(v)
				}
			case "rname":
				set.Zone.RName = wire.MustName(v)
			default:
				t.Fatalf("%s: a node has no %q", at, name)
			}
		}
	}
}

// line does one line. What stands before "->" is sent, what stands behind it must come.
func (s *scenario) line(t *testing.T, words []string) {
	t.Helper()
	want := ""
	asked := slices.Index(words, "->") >= 0
	if i := slices.Index(words, "->"); i >= 0 {
		want = s.expected(t, words[i+1:])
		words = words[:i]
	}
	await := words[0] == "await"
	if await {
		words = words[1:]
	}
	if words[0] == "udp" || words[0] == "tcp" {
		if words[0] != s.network {
			return
		}
		words = words[1:]
	}
	verb, words := words[0], words[1:]
	if !asked {
		switch verb {
		case "key":
			s.keyLine(t, words)
		case "unkey":
			s.put(tsig.AppendState(nil, tsig.StateKeyDelete, wire.MustName(strings.TrimSuffix(absolute(words[0]), "."))))
		case "claim":
			s.claimLine(t, words)
		case "restart":
			s.stop(t)
			s.start(t)
		default:
			t.Fatalf("%s: there is no %q without an answer", s.at, verb)
		}
		return
	}
	build := map[string]func(*testing.T, []string) sent{"query": s.queryLine, "update": s.updateLine, "raw": s.rawLine}[verb]
	if build == nil {
		t.Fatalf("%s: there is no %q", s.at, verb)
	}
	for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		got := s.send(t, build(t, words))
		if got == want {
			return
		}
		if !await || time.Now().After(end) {
			t.Errorf("%s:\n got %s\nwant %s", s.at, got, want)
			return
		}
	}
}

// sent is a message to send, and what its answer is checked with.
type sent struct {
	msg    []byte
	key    string // signed by it
	mac    string
	silent bool // perhaps there is no answer
}

// absolute reads a name as a zone file has it: relative to the zone without a dot at its end, "@" for the zone.
func absolute(name string) string {
	switch {
	case name == "@":
		return testZone + "."
	case strings.HasSuffix(name, ".") && !strings.HasSuffix(name, `\.`):
		return name
	}
	return name + "." + testZone + "."
}

// value reads "text", "text"*N, $name.
func (s *scenario) value(t *testing.T, word string) string {
	t.Helper()
	if strings.HasPrefix(word, "$") {
		v, ok := s.vars[word[1:]]
		if !ok {
			t.Fatalf("%s: there is no %s", s.at, word)
		}
		return v
	}
	quoted, err := strconv.QuotedPrefix(word)
	if err != nil {
		t.Fatalf("%s: %s is no value", s.at, word)
	}
	v, _ := strconv.Unquote(quoted)
	if times, ok := strings.CutPrefix(word[len(quoted):], "*"); ok {
		n, err := strconv.Atoi(times)
		if err != nil {
			t.Fatalf("%s: %s", s.at, word)
		}
		v = strings.Repeat(v, n)
	}
	return v
}

// show writes a value in one way, so that what came and what is wanted can be compared.
func show(v string) string {
	if len(v) > 8 && strings.Count(v, v[:1]) == len(v) {
		return fmt.Sprintf("%q*%d", v[:1], len(v))
	}
	return strconv.Quote(v)
}

// expected brings what stands behind the arrow in the form of reply.
func (s *scenario) expected(t *testing.T, words []string) string {
	t.Helper()
	var flags, values []string
	for i, w := range words {
		if i > 0 && (w[0] == '"' || w[0] == '$') {
			values = append(values, show(s.value(t, w)))
			continue
		}
		flags = append(flags, w)
	}
	slices.Sort(flags[1:])
	slices.Sort(values)
	return strings.Join(append(flags, values...), " ")
}

// keyLine: key NAME [operator] [revoked] [expires=SECONDS] [alg=NAME] SCOPE...
func (s *scenario) keyLine(t *testing.T, words []string) {
	t.Helper()
	k := &tsig.Key{Name: wire.MustName(strings.TrimSuffix(absolute(words[0]), ".")), Alg: tsig.SHA256, Secret: secret, CreatedAtSec: 1}
	for _, w := range words[1:] {
		name, v, _ := strings.Cut(w, "=")
		switch name {
		case "operator":
			k.Operator = true
		case "revoked":
			k.Revoked = true
		case "expires":
			n, err := strconv.Atoi(v)
			if err != nil {
				t.Fatal(s.at, err)
			}
			k.ExpiresAtSec = clock.NowMs()/1000 + int64(n)
		case "alg":
			var ok bool
			if k.Alg, ok = tsig.ParseAlg(v); !ok {
				t.Fatalf("%s: algorithm %q", s.at, v)
			}
		default:
			k.Scopes = append(k.Scopes, tsig.MustScope(strings.TrimSuffix(absolute(w), ".")))
		}
	}
	s.put(tsig.AppendState(nil, tsig.StateKeyPut, tsig.AppendKey(nil, k)))
}

// claimLine: claim VAR [slot=N] [ts=SECONDS] [exp=SECONDS] [domain="..."] [magic="..."] [forged] [lowpoint] [urlsafe] [tail]
func (s *scenario) claimLine(t *testing.T, words []string) {
	t.Helper()
	slot, ts, exp, domain, magic := 3, -20, 3600, "sender.test", "DMPCL01"
	forged, low, urlsafe, tail := false, false, false, false
	for _, w := range words[1:] {
		name, v, _ := strings.Cut(w, "=")
		n, _ := strconv.Atoi(v)
		switch name {
		case "slot":
			slot = n
		case "ts":
			ts = n
		case "exp":
			exp = n
		case "domain":
			domain = s.value(t, v)
		case "magic":
			magic = s.value(t, v)
		case "forged":
			forged = true
		case "lowpoint":
			low = true
		case "urlsafe":
			urlsafe = true
		case "tail":
			tail = true
		default:
			t.Fatalf("%s: a claim has no %q", s.at, name)
		}
	}
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if low {
		pub = make([]byte, ed25519.PublicKeySize) // y = 0 has order 4
	}
	now := clock.NowMs() / 1000
	body := append([]byte(magic), pub[:16]...) // any message id
	body = append(append(append(body, pub...), byte(len(domain))), domain...)
	body = append(body, byte(slot))
	body = binary.BigEndian.AppendUint64(body, uint64(now+int64(ts)))
	body = binary.BigEndian.AppendUint64(body, uint64(now+int64(exp)))
	body = append(body, ed25519.Sign(priv, body)...)
	if forged {
		body[len(body)-1] ^= 1
	}
	if tail {
		body = append(body, 0)
	}
	text := base64.StdEncoding.EncodeToString(body)
	if urlsafe {
		text = strings.NewReplacer("+", "-", "/", "_", "=", "").Replace(text)
	}
	s.vars[words[0]] = "v=dmp1;t=claim;" + text
}

// message options that queries and UPDATEs share.
type options struct {
	edns, version  int
	do, nsid, opt2 bool
	signer
}

type signer struct {
	key, alg       string
	skew, fudge    int64
	secret         []byte
	mac, tsigError int
	twice, after   bool
}

func (o *options) read(t *testing.T, at string, m *dns.Msg, word string) bool {
	t.Helper()
	name, v, _ := strings.Cut(word, "=")
	n, _ := strconv.Atoi(v)
	switch name {
	case "edns":
		o.edns = n
	case "version":
		o.version = n
	case "do":
		o.do = true
	case "nsid":
		o.nsid = true
	case "opt2":
		o.opt2 = true
	case "key":
		o.key = absolute(v)
	case "alg":
		o.alg = dns.Fqdn(v)
	case "skew":
		o.skew = int64(n)
	case "fudge":
		o.fudge = int64(n)
	case "secret":
		o.secret = []byte(v)
	case "mac":
		o.mac = n
	case "tsigerror":
		o.tsigError = n
	case "twice":
		o.twice = true
	case "behind":
		o.after = true
	case "opcode":
		m.Opcode = n
	case "rcode":
		m.Rcode = n
	case "flags":
		for _, f := range strings.Split(v, ",") {
			switch f {
			case "rd":
				m.RecursionDesired = true
			case "ra":
				m.RecursionAvailable = true
			case "ad":
				m.AuthenticatedData = true
			case "cd":
				m.CheckingDisabled = true
			case "tc":
				m.Truncated = true
			case "aa":
				m.Authoritative = true
			case "z":
				m.Zero = true
			default:
				t.Fatalf("%s: flag %q", at, f)
			}
		}
	default:
		return false
	}
	return true
}

func newOptions() *options {
	return &options{edns: -1, signer: signer{alg: dns.HmacSHA256, fudge: 300, secret: secret, mac: -1}}
}

// pack finishes a message: EDNS, TSIG.
func (o *options) pack(t *testing.T, m *dns.Msg) sent {
	t.Helper()
	if o.edns >= 0 {
		m.SetEdns0(uint16(o.edns), o.do)
		opt := m.IsEdns0()
		opt.SetVersion(uint8(o.version))
		if o.nsid {
			opt.Option = append(opt.Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID})
		}
		if o.opt2 {
			m.Extra = append(m.Extra, dns.Copy(opt))
		}
	}
	m.Compress = true
	if o.key == "" {
		return sent{msg: pack(t, m)}
	}
	m.SetTsig(o.key, o.alg, uint16(o.fudge), clock.NowMs()/1000+o.skew)
	b, mac, err := dns.TsigGenerate(m, base64.StdEncoding.EncodeToString(o.secret), "", false)
	if err != nil {
		t.Fatal(err)
	}
	if o.mac >= 0 || o.tsigError != 0 || o.twice || o.after {
		m = unpack(t, b)
		rr := m.IsTsig()
		if o.mac >= 0 {
			rr.MAC, rr.MACSize = rr.MAC[:2*o.mac], uint16(o.mac)
		}
		rr.Error = uint16(o.tsigError)
		if o.twice {
			m.Extra = append(m.Extra, dns.Copy(rr))
		}
		if o.after {
			m.Extra = append(m.Extra, &dns.A{Hdr: dns.RR_Header{Name: testZone + ".", Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(192, 0, 2, 9)})
		}
		b = pack(t, m)
	}
	return sent{msg: b, key: o.key, mac: mac}
}

// queryLine: query NAME TYPE [class=CLASS] [options]
func (s *scenario) queryLine(t *testing.T, words []string) sent {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(absolute(words[0]), rrType(t, s.at, words[1]))
	m.RecursionDesired = false
	o := newOptions()
	for _, w := range words[2:] {
		switch name, v, _ := strings.Cut(w, "="); {
		case name == "class":
			m.Question[0].Qclass = rrClass(t, s.at, v)
		case name == "questions":
			m.Question = append(m.Question, m.Question[0])
		case name == "with": // a record in another section
			m.Ns = append(m.Ns, &dns.A{Hdr: dns.RR_Header{Name: testZone + ".", Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(192, 0, 2, 9)})
		case o.read(t, s.at, m, w):
		default:
			t.Fatalf("%s: a query has no %q", s.at, w)
		}
	}
	return o.pack(t, m)
}

func rrType(t *testing.T, at, word string) uint16 {
	t.Helper()
	if v, ok := dns.StringToType[word]; ok {
		return v
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(word, "TYPE"), 10, 16)
	if err != nil {
		t.Fatalf("%s: type %q", at, word)
	}
	return uint16(n)
}

func rrClass(t *testing.T, at, word string) uint16 {
	t.Helper()
	v, ok := dns.StringToClass[word]
	if !ok {
		t.Fatalf("%s: class %q", at, word)
	}
	return v
}

// updateLine: update [zone=NAME] [class=CLASS] [ztype=TYPE] [zones=N] [options] OPERATION [; OPERATION]...
func (s *scenario) updateLine(t *testing.T, words []string) sent {
	t.Helper()
	m := new(dns.Msg)
	m.SetUpdate(testZone + ".")
	o := newOptions()
	for len(words) > 0 && strings.Contains(words[0], "=") || len(words) > 0 && slices.Contains([]string{"twice", "behind", "do", "nsid"}, words[0]) {
		switch name, v, _ := strings.Cut(words[0], "="); {
		case name == "zone":
			m.Question[0].Name = absolute(v)
		case name == "class":
			m.Question[0].Qclass = rrClass(t, s.at, v)
		case name == "ztype":
			m.Question[0].Qtype = rrType(t, s.at, v)
		case name == "zones" && v == "0":
			m.Question = nil
		case name == "zones":
			m.Question = append(m.Question, m.Question[0])
		case o.read(t, s.at, m, words[0]):
		default:
			t.Fatalf("%s: an UPDATE has no %q", s.at, words[0])
		}
		words = words[1:]
	}
	for len(words) > 0 {
		n := slices.Index(words, ";")
		if n < 0 {
			n = len(words)
		}
		s.operation(t, m, words[:n])
		words = words[min(n+1, len(words)):]
	}
	return o.pack(t, m)
}

// operation puts one record in the message:
//
//	add NAME TTL VALUE [VALUE]...    several values are the strings of one
//	delete NAME VALUE
//	deleteset NAME
//	deletename NAME
//	rr NAME CLASS TYPE TTL HEX|-
//	pre NAME CLASS TYPE [VALUE]      a prerequisite
func (s *scenario) operation(t *testing.T, m *dns.Msg, w []string) {
	t.Helper()
	raw := func(name string, class, typ uint16, ttl int, rdata string) dns.RR {
		return &dns.RFC3597{Hdr: dns.RR_Header{Name: absolute(name), Rrtype: typ, Class: class, Ttl: uint32(ttl)}, Rdata: rdata}
	}
	number := func(word string) int {
		n, err := strconv.ParseUint(word, 10, 32)
		if err != nil {
			t.Fatalf("%s: %v", s.at, err)
		}
		return int(n)
	}
	text := func(words []string) string {
		var rdata []byte
		for _, w := range words {
			v := s.value(t, w)
			for len(words) == 1 && len(v) > 255 {
				rdata, v = append(append(rdata, 255), v[:255]...), v[255:]
			}
			rdata = append(append(rdata, byte(len(v))), v...)
		}
		return hex.EncodeToString(rdata)
	}
	switch w[0] {
	case "add":
		m.Ns = append(m.Ns, raw(w[1], dns.ClassINET, dns.TypeTXT, number(w[2]), text(w[3:])))
	case "delete":
		m.Ns = append(m.Ns, raw(w[1], dns.ClassNONE, dns.TypeTXT, 0, text(w[2:])))
	case "deleteset":
		m.Ns = append(m.Ns, raw(w[1], dns.ClassANY, dns.TypeTXT, 0, ""))
	case "deletename":
		m.Ns = append(m.Ns, raw(w[1], dns.ClassANY, dns.TypeANY, 0, ""))
	case "rr":
		m.Ns = append(m.Ns, raw(w[1], rrClass(t, s.at, w[2]), rrType(t, s.at, w[3]), number(w[4]), strings.Trim(w[5], "-")))
	case "pre":
		rdata := ""
		if len(w) > 4 {
			rdata = text(w[4:])
		}
		m.Answer = append(m.Answer, raw(w[1], rrClass(t, s.at, w[2]), rrType(t, s.at, w[3]), 0, rdata))
	default:
		t.Fatalf("%s: there is no operation %q", s.at, w[0])
	}
}

// rawLine: raw HEX..., with n:NAME for a name in wire form.
func (s *scenario) rawLine(t *testing.T, words []string) sent {
	t.Helper()
	var b []byte
	for _, w := range words {
		if name, ok := strings.CutPrefix(w, "n:"); ok {
			b = append(b, wire.MustName(strings.TrimSuffix(absolute(name), "."))...)
			continue
		}
		part, err := hex.DecodeString(w)
		if err != nil {
			t.Fatalf("%s: %v", s.at, err)
		}
		b = append(b, part...)
	}
	return sent{msg: b, silent: true}
}

// sources gives every message a source address of its own, since FORMERR answers are limited by it.
var sources atomic.Uint32

// send sends a message and describes what comes back.
func (s *scenario) send(t *testing.T, q sent) string {
	t.Helper()
	n := sources.Add(1)
	from := net.IPv4(127, 1+byte(n>>8)%200, byte(n), 7)
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from}}
	if s.network == "udp" {
		d.LocalAddr = &net.UDPAddr{IP: from}
	}
	c, err := d.Dial(s.network, s.addr)
	if err != nil {
		t.Fatalf("%s: %v", s.at, err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	if s.network == "tcp" {
		if _, err := c.Write(framed(q.msg)); err != nil {
			t.Fatalf("%s: %v", s.at, err)
		}
		b, err := readFramed(c)
		if errors.Is(err, io.EOF) {
			return "none"
		}
		if err != nil {
			t.Fatalf("%s: %v", s.at, err)
		}
		return s.describe(t, q, b)
	}
	if _, err := c.Write(q.msg); err != nil {
		t.Fatalf("%s: %v", s.at, err)
	}
	if q.silent { // what is sent behind it is answered behind it
		m := new(dns.Msg)
		m.SetQuestion("probe."+testZone+".", dns.TypeA)
		m.Id = 0xFFFE
		if _, err := c.Write(pack(t, m)); err != nil {
			t.Fatalf("%s: %v", s.at, err)
		}
	}
	b := make([]byte, 65535)
	size, err := c.Read(b)
	if err != nil {
		t.Fatalf("%s: %v", s.at, err)
	}
	if q.silent && size > 2 && b[0] == 0xFF && b[1] == 0xFE {
		return "none"
	}
	return s.describe(t, q, b[:size])
}

// describe says what an answer has: its code, then what stands out, sorted, then its values, sorted. What every answer must have is
// checked beside.
func (s *scenario) describe(t *testing.T, q sent, b []byte) string {
	t.Helper()
	m := unpack(t, b)
	if len(q.msg) < 4 || !bytes.Equal(b[:2], q.msg[:2]) || b[2]&0x80 == 0 || b[2]&0x79 != q.msg[2]&0x79 {
		t.Errorf("%s: ID, QR, opcode, RD: % x answers % x", s.at, b[:4], q.msg[:min(4, len(q.msg))])
	}
	var flags []string
	for name, set := range map[string]bool{"aa": m.Authoritative, "tc": m.Truncated, "ra": m.RecursionAvailable, "ad": m.AuthenticatedData, "cd": m.CheckingDisabled, "z": m.Zero} {
		if set {
			flags = append(flags, name)
		}
	}
	end := 12
	for range m.Question {
		for b[end] != 0 {
			end += 1 + int(b[end])
		}
		end += 5
	}
	switch {
	case len(m.Question) == 0:
		flags = append(flags, "noquestion")
	case end > len(q.msg) || !bytes.Equal(b[12:end], q.msg[12:end]):
		t.Errorf("%s: the question is not the one asked: %v", s.at, m.Question)
	}
	var values []string
	ttlSec := s.settings.Load().zone.TTLSec
	for _, rr := range m.Answer {
		h := rr.Header()
		if h.Name != m.Question[0].Name || h.Class != dns.ClassINET {
			t.Errorf("%s: owner or class of %v", s.at, rr)
		}
		// What is left of a life goes on; only its bounds can be told.
		switch {
		case h.Ttl == ttlSec:
		case h.Ttl <= 30:
			flags = append(flags, "ttl<=30")
		case h.Ttl <= 60:
			flags = append(flags, "ttl<=60")
		default:
			t.Errorf("%s: the TTL of %v", s.at, rr)
		}
		switch rr := rr.(type) {
		case *dns.TXT:
			v := ""
			for i, part := range rr.Txt {
				part = unescape(part)
				if i < len(rr.Txt)-1 && len(part) != 255 {
					t.Errorf("%s: strings that are not full: %v", s.at, rr)
				}
				v += part
			}
			values = append(values, show(v))
		case *dns.SOA:
			flags = append(flags, fmt.Sprintf("SOA:%s,%s,%d,%d,%d,%d", rr.Ns, rr.Mbox, rr.Refresh, rr.Retry, rr.Expire, rr.Minttl))
		default:
			flags = append(flags, dns.TypeToString[h.Rrtype]+":"+strings.TrimPrefix(rr.String(), h.String()))
		}
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); !ok || soa.Hdr.Name != testZone+"." || soa.Hdr.Ttl != ttlSec || soa.Minttl != ttlSec {
			t.Errorf("%s: authority: %v", s.at, rr)
		}
		flags = append(flags, "soa")
	}
	for i, rr := range m.Extra {
		switch rr := rr.(type) {
		case *dns.OPT:
			if rr.Version() != 0 || rr.UDPSize() != 1232 {
				t.Errorf("%s: %v", s.at, rr)
			}
			flags = append(flags, "opt")
			if rr.Do() {
				flags = append(flags, "do")
			}
			for _, o := range rr.Option {
				switch o := o.(type) {
				case *dns.EDNS0_EDE:
					flags = append(flags, fmt.Sprintf("ede=%d", o.InfoCode))
				case *dns.EDNS0_NSID:
					text, _ := hex.DecodeString(o.Nsid)
					flags = append(flags, "nsid="+string(text))
				default:
					flags = append(flags, o.String())
				}
			}
		case *dns.TSIG:
			flags = append(flags, s.signature(t, q, b, rr, i == len(m.Extra)-1))
		default:
			flags = append(flags, rr.String())
		}
	}
	slices.Sort(flags)
	flags = slices.Compact(flags) // one TTL for many values
	slices.Sort(values)
	rcode := dns.RcodeToString[m.Rcode]
	if m.Rcode == dns.RcodeBadVers { // 16 is BADSIG in a TSIG record
		rcode = "BADVERS"
	}
	return strings.Join(append(append([]string{rcode}, flags...), values...), " ")
}

// signature describes a TSIG record, and checks it where there is a MAC.
func (s *scenario) signature(t *testing.T, q sent, b []byte, rr *dns.TSIG, last bool) string {
	t.Helper()
	if !last || rr.OrigId != binary.BigEndian.Uint16(q.msg) || !strings.EqualFold(rr.Hdr.Name, q.key) {
		t.Errorf("%s: %v", s.at, rr)
	}
	text := "tsig"
	if rr.Error != 0 {
		text = "tsig=" + dns.RcodeToString[int(rr.Error)]
	}
	if rr.MACSize == 0 {
		return text
	}
	if rr.Error == dns.RcodeBadTime {
		if len(rr.OtherData) != 12 {
			t.Errorf("%s: BADTIME without the server's time: %v", s.at, rr)
		}
		return text + ",signed"
	}
	if binary.BigEndian.Uint16(b[2:])&0xF == dns.RcodeNotAuth {
		return text // miekg/dns verifies none with NOTAUTH
	}
	if err := dns.TsigVerify(b, base64.StdEncoding.EncodeToString(secret), q.mac, false); err != nil {
		t.Errorf("%s: the signature of the answer: %v", s.at, err)
	}
	return text
}

// unescape takes away what miekg/dns puts into strings: \DDD and \c.
func unescape(v string) string {
	var b []byte
	for i := 0; i < len(v); i++ {
		if v[i] != '\\' {
			b = append(b, v[i])
			continue
		}
		if n, err := strconv.ParseUint(v[i+1:min(i+4, len(v))], 10, 8); err == nil && i+4 <= len(v) {
			b = append(b, byte(n))
			i += 3
			continue
		}
		i++
		b = append(b, v[i])
	}
	return string(b)
}
