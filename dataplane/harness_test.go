package dataplane

import (
	"encoding/base64"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/dnsmesh/dmpd/dataplane/answer"
	"github.com/dnsmesh/dmpd/dataplane/store"
	"github.com/dnsmesh/dmpd/dataplane/update"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/stats"
	"github.com/dnsmesh/dmpd/internal/tsig"
	"github.com/dnsmesh/dmpd/internal/vfs"
	"github.com/dnsmesh/dmpd/internal/wire"
)

const testZone = "mesh.test"

// rig is a data plane in this process, with a control folder that the test writes.
type rig struct {
	*Node
	t    testing.TB
	dir  string
	addr string
	// control is a double of the control plane's files.
	state *journal.Writer
	live  *journal.Live
}

func testSettings() Settings {
	return Settings{
		Zone:   answer.Zone{Apex: wire.MustName(testZone), A: []byte{192, 0, 2, 1}, NS: wire.MustName("ns." + testZone), TTLSec: 60, NSID: []byte("node")},
		Policy: update.Policy{Enabled: true, ValueMax: 2048, TTLMaxSec: 86400, Provider: true, ClaimLifeSec: 86400},
		Store:  store.Limits{ValuesMax: 64}, RRLRate: 200, TCPPerIP: 64, ClaimRate: 0.5, ClaimBurst: 30, TombstoneSec: 86400,
	}
}

func startRig(t testing.TB, change ...func(*Config)) *rig {
	t.Helper()
	return startRigIn(t, t.TempDir(), change...)
}

func startRigIn(t testing.TB, dir string, change ...func(*Config)) *rig {
	t.Helper()
	c := Config{StateDir: dir, Build: "test", Hosts: []string{"127.0.0.1"}, Loops: 2, TCPTotal: 256, Workers: 1, Settings: testSettings()}
	for _, f := range change {
		f(&c)
	}
	n, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Node: n, t: t, dir: dir, addr: n.Addrs()[0].String()}
	t.Cleanup(func() {
		if r.Node != nil {
			if err := r.Node.Stop(); err != nil {
				t.Error(err)
			}
		}
		if r.state != nil {
			r.state.Close()
			r.live.Close()
		}
	})
	return r
}

// put commits state entries as the control plane would, and waits until they are taken.
func (r *rig) put(entries []byte) {
	r.t.Helper()
	control := filepath.Join(r.dir, "control")
	if r.state == nil {
		if err := os.MkdirAll(control, 0o700); err != nil {
			r.t.Fatal(err)
		}
		var err error
		if r.state, err = journal.Open(journal.Options{Dir: control, Name: "state"}, 0, nil); err != nil {
			r.t.Fatal(err)
		}
		if r.live, err = journal.CreateLive(vfs.OS, filepath.Join(control, "live"), "double"); err != nil {
			r.t.Fatal(err)
		}
	}
	lsn, err := r.state.Append(entries)
	if err == nil {
		err = r.state.Sync()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.live.Ring()
	eventually(r.t, "state taken", func() bool { return r.Node.live.Taken(journal.TakenState, r.state.Epoch()) >= lsn })
}

// secret is every test key's.
var secret = []byte("0123456789abcdef0123456789abcdef")

func (r *rig) key(name string, scopes ...string) {
	r.t.Helper()
	k := &tsig.Key{Name: wire.MustName(name), Alg: tsig.SHA256, Secret: secret, CreatedAtSec: 1}
	for _, s := range scopes {
		k.Scopes = append(k.Scopes, tsig.MustScope(s))
	}
	r.put(tsig.AppendState(nil, tsig.StateKeyPut, tsig.AppendKey(nil, k)))
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("never came true: %s", what)
}

// limit ends a test that fails; nothing waits that long otherwise.
const limit = 60 * time.Second

// raw sends bytes over UDP and gives the reply; nil if a message that must be answered, sent behind it, was answered first.
func (r *rig) raw(msg []byte) []byte {
	r.t.Helper()
	c, err := net.Dial("udp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	// Datagrams of one socket go to one loop, in order: the probe's answer behind it says that nothing else comes.
	probe := new(dns.Msg)
	probe.SetQuestion("probe."+testZone+".", dns.TypeA)
	probe.Id = 0xFFFE
	p, _ := probe.Pack()
	if _, err := c.Write(msg); err != nil {
		r.t.Fatal(err)
	}
	if _, err := c.Write(p); err != nil {
		r.t.Fatal(err)
	}
	b := make([]byte, 65535)
	n, err := c.Read(b)
	if err != nil {
		r.t.Fatal(err)
	}
	if n >= 2 && b[0] == 0xFF && b[1] == 0xFE {
		return nil
	}
	return b[:n]
}

// exchange asks over UDP or TCP and gives the reply and its bytes.
func (r *rig) exchange(network string, msg []byte) []byte {
	r.t.Helper()
	c, err := net.Dial(network, r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	if network == "udp" {
		if _, err := c.Write(msg); err != nil {
			r.t.Fatal(err)
		}
		b := make([]byte, 65535)
		n, err := c.Read(b)
		if err != nil {
			r.t.Fatal(err)
		}
		return b[:n]
	}
	if _, err := c.Write(framed(msg)); err != nil {
		r.t.Fatal(err)
	}
	b, err := readFramed(c)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

func framed(msg []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)
}

func readFramed(c io.Reader) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(head[:]))
	_, err := io.ReadFull(c, b)
	return b, err
}

func (r *rig) query(network, name string, typ uint16, opts ...func(*dns.Msg)) *dns.Msg {
	r.t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), typ)
	for _, f := range opts {
		f(m)
	}
	return unpack(r.t, r.exchange(network, pack(r.t, m)))
}

func pack(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unpack(t testing.TB, b []byte) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		t.Fatalf("%v: %x", err, b)
	}
	return m
}

func add(name string, ttl int, value string) dns.RR {
	var parts []string
	for len(value) > 255 {
		parts, value = append(parts, value[:255]), value[255:]
	}
	return &dns.TXT{Hdr: dns.RR_Header{Name: dns.Fqdn(name), Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: uint32(ttl)}, Txt: append(parts, value)}
}

func updateMsg(rrs ...dns.RR) *dns.Msg {
	m := new(dns.Msg)
	m.SetUpdate(testZone + ".")
	m.Insert(rrs)
	return m
}

// sign signs with the key, at a time off by skew seconds.
func sign(t testing.TB, m *dns.Msg, key string, secret []byte, skew int64) (msg []byte, mac string) {
	t.Helper()
	m.SetTsig(dns.Fqdn(key), dns.HmacSHA256, 300, clock.NowMs()/1000+skew)
	b, mac, err := dns.TsigGenerate(m, base64.StdEncoding.EncodeToString(secret), "", false)
	if err != nil {
		t.Fatal(err)
	}
	return b, mac
}

// signed sends a signed UPDATE, checks the reply's signature and gives its code.
func (r *rig) signed(network, key string, m *dns.Msg) int {
	r.t.Helper()
	msg, mac := sign(r.t, m, key, secret, 0)
	b := r.exchange(network, msg)
	reply := unpack(r.t, b)
	if reply.IsTsig() == nil {
		r.t.Fatalf("an unsigned reply: %v", reply)
	}
	// miekg verifies no reply with NOTAUTH: those are compared with another code in the tests of the signer.
	if reply.Rcode != dns.RcodeNotAuth {
		if err := dns.TsigVerify(b, base64.StdEncoding.EncodeToString(secret), mac, false); err != nil {
			r.t.Fatalf("the reply's signature: %v", err)
		}
	}
	return reply.Rcode
}

func (r *rig) count(c stats.Counter) uint64 { return r.Page().Value(c) }

func (r *rig) values(name string) (vs []string) {
	m := r.query("tcp", name, dns.TypeTXT)
	for _, rr := range m.Answer {
		v := ""
		for _, s := range rr.(*dns.TXT).Txt {
			v += s
		}
		vs = append(vs, v)
	}
	return vs
}

func addr4(a, b, c, d byte) netip.Addr { return netip.AddrFrom4([4]byte{a, b, c, d}) }

func removeControl(t testing.TB, dir string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(dir, "control")); err != nil {
		t.Fatal(err)
	}
}

func requestsLog(t testing.TB, dir string) *journal.Writer {
	t.Helper()
	w, err := journal.Open(journal.Options{Dir: filepath.Join(dir, "control"), Name: "requests", Durability: journal.OS}, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}
