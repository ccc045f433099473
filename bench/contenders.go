package bench

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/snapshot"
	"github.com/dnsmesh/dmpd/internal/tsig"
	"github.com/dnsmesh/dmpd/internal/vfs"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// contender is a server that the bench knows how to set up.
type contender struct {
	name    string
	binary  string // looked for in PATH
	version []string
	updates bool
	lab     bool // takes part in labs alone
	most    int  // names that it is given, and asked for; 0: all. One so slow is left out where a load is fixed or a connection stays
	// start writes what the server needs into dir and spawns it with so many workers.
	start func(s *Server, f *field, dir string, workers int) error
}

// field is what all contenders share in one scenario.
type field struct {
	zone      Zone
	bin       string // folder of our own binaries
	cores     *cores
	replySize int  // of the echo
	limits    bool // dmpd's are as they are by default, else off
	lab       *lab // where the servers are, if not here
}

var contenders = []contender{
	{name: "echo", start: startEcho},
	{name: "bare", start: startBare},
	{name: "dmpd", updates: true, start: startNode},
	{name: "nsd", binary: "nsd", version: []string{"-v"}, start: startNSD},
	{name: "nsd-mmsg", binary: nsdMmsg, version: []string{"-v"}, start: startNSDMmsg},
	{name: "knot", binary: "knotd", version: []string{"--version"}, updates: true, start: startKnot},
	{name: "dmpd-xdp", lab: true, start: startNodeXDP},
	{name: "knot-xdp", lab: true, binary: "knotd", start: startKnotXDP},
	{name: "bind", binary: "named", version: []string{"-v"}, updates: true, start: startBIND},
	{name: "pdns", binary: "pdns_server", version: []string{"--version"}, updates: true, start: startPowerDNS},
	{name: "coredns", binary: coreDNS, version: []string{"-version"}, start: startCoreDNS},
	{name: "reference", binary: referencePython, version: []string{"-c", "import importlib.metadata as m; print(m.version('dnsmesh'))"}, updates: true, most: 20_000, start: startReference},
}

// find looks for a server that is installed outside PATH as well, where Debian puts daemons.
func find(binary string) string {
	if path, err := exec.LookPath(binary); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/sbin/", "/sbin/", "/usr/local/sbin/"} {
		if path, err := exec.LookPath(dir + binary); err == nil {
			return path
		}
	}
	return ""
}

var versionNumber = regexp.MustCompile(`[0-9]+\.[0-9]+(\.[0-9]+)?`)

func (c *contender) versionOf() string {
	if c.binary == "" || c.lab {
		return ""
	}
	out, _ := exec.Command(find(c.binary), c.version...).CombinedOutput()
	return versionNumber.FindString(string(out))
}

// launch starts a contender and waits until it answers.
func (c *contender) launch(f *field, dir string, workers int) (*Server, error) {
	s := &Server{Name: c.name, Version: c.versionOf(), Echo: c.name == "echo" || c.name == "bare", zone: f.zone}
	if c.most > 0 && c.most < f.zone.Names {
		s.zone.Names = c.most
	}
	own := *f
	own.zone = s.zone
	dir, err := filepath.Abs(filepath.Join(dir, c.name))
	if err != nil {
		return nil, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	// The port may be taken by somebody else between finding it and listening: then another one.
	for try := 0; ; try++ {
		if f.lab != nil {
			s.xdp = c.lab
			s.link, s.Addr, err = f.lab.pair()
		} else {
			s.Addr, err = freePort()
		}
		s.http = netip.AddrPort{}
		if err != nil {
			return nil, err
		}
		if err = c.start(s, &own, dir, workers); err == nil {
			if err = s.await(s.zone); err == nil && s.xdp {
				err = s.link.attached(s)
			}
			if err == nil && s.http.IsValid() {
				err = s.healthy()
			}
			if err == nil {
				return s, nil
			}
			s.Stop()
		}
		if try == 2 || f.lab != nil {
			return nil, err
		}
		_ = os.RemoveAll(dir) // it is written anew
		_ = os.MkdirAll(dir, 0o700)
	}
}

func startEcho(s *Server, f *field, dir string, _ int) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return s.spawn(f.cores, dir, nil, self, "echo", "--listen", s.Addr.String(), "--size", fmt.Sprint(f.replySize))
}

func startBare(s *Server, f *field, dir string, workers int) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return s.spawn(f.cores, dir, nil, self, "echo", "--listen", s.Addr.String(), "--size", fmt.Sprint(f.replySize), "--loops", fmt.Sprint(workers))
}

// startNode starts a node on a folder with the zone in a snapshot and the key in the state log.
func startNode(s *Server, f *field, dir string, workers int) error {
	return startNodeWith(s, f, dir, workers)
}

func startNodeWith(s *Server, f *field, dir string, workers int, more ...string) error {
	if err := writeNode(f.zone, filepath.Join(dir, "state")); err != nil {
		return err
	}
	more = append(more, fmt.Sprintf("DMP_DNS_LOOPS=%d", workers))
	if !f.limits {
		more = append(more, "DMP_RRL_RATE=0", "DMP_MAX_WRITER_RECORDS=0", "DMP_CLAIM_RATE_PER_USER_PER_SEC=0")
	}
	return s.spawnNode(f, dir, more...)
}

// spawnNode starts both processes of a node, whose state is in the folder state of dir, at s.Addr and at a free port for HTTP if it has none.
func (s *Server) spawnNode(f *field, dir string, more ...string) (err error) {
	if !s.http.IsValid() {
		if s.http, err = freePort(); err != nil {
			return err
		}
	}
	env := append([]string{"PATH=" + os.Getenv("PATH"), "DMP_STATE_DIR=" + filepath.Join(dir, "state"), "DMP_DOMAIN=" + f.zone.Name, "DMP_NODE_HOSTNAME=" + f.zone.Name,
		"DMP_DNS_HOST=" + s.Addr.Addr().String(), fmt.Sprintf("DMP_DNS_PORT=%d", s.Addr.Port()), "DMP_HTTP_HOST=127.0.0.1", fmt.Sprintf("DMP_HTTP_PORT=%d", s.http.Port()),
		"DMP_AUTH_MODE=multi-tenant", "DMP_OPERATOR_TOKEN=bench", "DMP_DNS_UPDATE_ENABLED=1", "DMP_LOG_LEVEL=WARNING"}, more...)
	return s.spawn(f.cores, dir, env, filepath.Join(f.bin, "dmpd"), "run")
}

// writeNode makes a state folder.
func writeNode(z Zone, dir string) error {
	data, control := filepath.Join(dir, "data"), filepath.Join(dir, "control")
	for _, d := range []string{data, control} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	w, err := journal.Open(journal.Options{FS: vfs.OS, Dir: data, Name: "rows", Durability: journal.OS}, 0, nil)
	if err != nil {
		return err
	}
	now := time.Now().UnixMilli()
	hlc := record.HLCAt(now)
	var frame []byte
	var snap *snapshot.Snapshot
	merge := func() error {
		if err := w.Seal(); err != nil {
			return err
		}
		next, err := snapshot.Merge(snapshot.MergeOptions{FS: vfs.OS, Dir: data, Name: "rows", Prev: snap, Upto: w.Committed(), TombstoneLifeMs: 86_460_000})
		if err != nil {
			return err
		}
		if snap != nil {
			snap.Close()
		}
		snap = next
		return w.Drop(snap.LSN + 1)
	}
	const perFrame, perMerge = 1000, 2_000_000 // rows; those of a merge are in memory
	for i := 0; i < z.Names; i += perFrame {
		var es []record.Entry
		for j := i; j < min(i+perFrame, z.Names); j++ {
			for _, v := range z.values(uint64(j)) {
				rdata := record.AppendRDATA(nil, v)
				hlc = hlc.Next(now)
				es = append(es, record.Entry{Kind: record.KindPut, Row: record.Row{Name: z.owner(uint64(j)), RDATA: rdata, Hash: record.HashOf(rdata), Add: hlc, ExpMs: now + 86_400_000, Origin: [8]byte{1}}})
			}
		}
		frame = record.AppendFrame(frame[:0], now+int64(i/perFrame), es)
		if _, err := w.Append(frame); err != nil {
			return err
		}
		if err := w.Sync(); err != nil {
			return err
		}
		if i > 0 && i%perMerge == 0 {
			if err := merge(); err != nil {
				return err
			}
		}
	}
	if err := merge(); err != nil {
		return err
	}
	snap.Close()
	if err := w.Close(); err != nil {
		return err
	}
	state, err := journal.Open(journal.Options{FS: vfs.OS, Dir: control, Name: "state", Durability: journal.Always}, 0, nil)
	if err != nil {
		return err
	}
	scope, err := tsig.ParseScope(z.Name)
	if err != nil {
		return err
	}
	key := &tsig.Key{Name: wire.MustName(keyName + "." + z.Name), Alg: tsig.SHA256, Secret: []byte("dmp-bench-key-of-32-bytes-length"), Scopes: []tsig.Scope{scope}, CreatedAtSec: now / 1000, Operator: true}
	if _, err := state.Append(tsig.AppendState(nil, tsig.StateKeyPut, tsig.AppendKey(nil, key))); err != nil {
		return err
	}
	if err := state.Sync(); err != nil {
		return err
	}
	return state.Close()
}

// write makes the files of a contender: the zone, and what its configuration says with %s words replaced.
func (f *field) write(s *Server, dir, name, text string, workers int) error {
	zone, err := os.Create(filepath.Join(dir, "zone"))
	if err != nil {
		return err
	}
	defer zone.Close()
	if err := f.zone.Master(zone); err != nil {
		return err
	}
	text = strings.NewReplacer("127.0.0.1", s.Addr.Addr().String(), "DIR", dir, "PORT", fmt.Sprint(s.Addr.Port()), "ZONE", f.zone.Name, "WORKERS", fmt.Sprint(workers),
		"KEYNAME", keyName+"."+f.zone.Name, "SECRET", keySecret).Replace(text)
	return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600)
}

// nsdMmsg is an NSD built with recvmmsg, which Debian's is without; make bench-peers builds it there.
const nsdMmsg = ".cache/nsd-mmsg/sbin/nsd"

func startNSD(s *Server, f *field, dir string, workers int) error {
	return startNSDOf(s, f, dir, workers, find("nsd"))
}

func startNSDMmsg(s *Server, f *field, dir string, workers int) error {
	binary, err := filepath.Abs(nsdMmsg)
	if err != nil {
		return err
	}
	return startNSDOf(s, f, dir, workers, binary)
}

func startNSDOf(s *Server, f *field, dir string, workers int, binary string) error {
	err := f.write(s, dir, "nsd.conf", `server:
	server-count: WORKERS
	ip-address: 127.0.0.1@PORT
	username: ""
	chroot: ""
	zonesdir: "DIR"
	pidfile: "DIR/nsd.pid"
	zonelistfile: "DIR/zone.list"
	xfrdfile: "DIR/xfrd.state"
	xfrdir: "DIR"
	database: ""
	rrl-ratelimit: 0
	tcp-count: 200
remote-control:
	control-enable: no
zone:
	name: ZONE
	zonefile: zone
`, workers)
	if err != nil {
		return err
	}
	return s.spawn(f.cores, dir, os.Environ(), binary, "-d", "-c", filepath.Join(dir, "nsd.conf"))
}

func startKnot(s *Server, f *field, dir string, workers int) error {
	return startKnotWith(s, f, dir, workers, "")
}

func startKnotWith(s *Server, f *field, dir string, workers int, more string) error {
	err := f.write(s, dir, "knot.conf", `server:
    rundir: DIR
    pidfile: DIR/knot.pid
    listen: 127.0.0.1@PORT
    udp-workers: WORKERS
    tcp-workers: WORKERS
    background-workers: 1
database:
    storage: DIR
key:
  - id: KEYNAME.
    algorithm: hmac-sha256
    secret: SECRET
acl:
  - id: update
    key: KEYNAME.
    action: update
zone:
  - domain: ZONE
    storage: DIR
    file: zone
    zonefile-sync: -1
    zonefile-load: whole
    acl: update
log:
  - target: stderr
    any: warning
`+more, workers)
	if err != nil {
		return err
	}
	return s.spawn(f.cores, dir, os.Environ(), find("knotd"), "-c", filepath.Join(dir, "knot.conf"))
}

// startPowerDNS starts the authoritative server on SQLite, the smallest backend that takes UPDATEs, with its packet and query caches as they are by default.
func startPowerDNS(s *Server, f *field, dir string, workers int) error {
	err := f.write(s, dir, "pdns.conf", `launch=gsqlite3
gsqlite3-database=DIR/pdns.db
local-address=127.0.0.1
local-port=PORT
socket-dir=DIR
receiver-threads=WORKERS
distributor-threads=WORKERS
reuseport=yes
dnsupdate=yes
allow-dnsupdate-from=127.0.0.0/8
max-cache-entries=20000000
max-tcp-connections=200
zone-cache-refresh-interval=0
disable-syslog=yes
loglevel=3
setuid=
setgid=
`, workers)
	if err != nil {
		return err
	}
	zone := filepath.Join(dir, "zone")
	for _, command := range [][]string{
		{"sqlite3", filepath.Join(dir, "pdns.db"), ".read /usr/share/pdns-backend-sqlite3/schema/schema.sqlite3.sql"},
		{"pdnsutil", "--config-dir=" + dir, "load-zone", f.zone.Name, zone},
		{"pdnsutil", "--config-dir=" + dir, "import-tsig-key", keyName + "." + f.zone.Name, "hmac-sha256", keySecret},
		{"pdnsutil", "--config-dir=" + dir, "set-meta", f.zone.Name, "TSIG-ALLOW-DNSUPDATE", keyName + "." + f.zone.Name},
	} {
		out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("bench: %s: %w: %s", strings.Join(command, " "), err, out)
		}
	}
	return s.spawn(f.cores, dir, os.Environ(), find("pdns_server"), "--config-dir="+dir, "--daemon=no", "--guardian=no")
}

// coreDNS is not in Debian; make bench-peers builds it there from its Go module.
const coreDNS = ".cache/coredns/coredns"

// startCoreDNS starts it with the zone file in memory and nothing else, a socket for each worker as its document of multisocket says.
func startCoreDNS(s *Server, f *field, dir string, workers int) error {
	binary, err := filepath.Abs(coreDNS)
	if err != nil {
		return err
	}
	err = f.write(s, dir, "Corefile", `ZONE:PORT {
	bind 127.0.0.1
	multisocket WORKERS
	file DIR/zone
}
`, workers)
	if err != nil {
		return err
	}
	return s.spawn(f.cores, dir, os.Environ(), binary, "-conf", filepath.Join(dir, "Corefile"))
}

// referencePython runs the reference node; make interop installs it there.
const referencePython = ".cache/venv/bin/python"

// startReference starts the reference node. Its records are put into the database that it makes at its first start, which it has no faster way to take.
func startReference(s *Server, f *field, dir string, _ int) error {
	if err := writeReference(s, f, dir); err != nil {
		return err
	}
	return runReference(s, f, dir)
}

// referenceEnv is its settings; its HTTP port is the one below its DNS port.
func referenceEnv(s *Server, f *field, dir string) []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "DMP_DB_PATH=" + filepath.Join(dir, "dmp.db"), "DMP_DOMAIN=" + f.zone.Name, "DMP_NODE_HOSTNAME=" + f.zone.Name, "DMP_DNS_HOST=127.0.0.1",
		fmt.Sprintf("DMP_DNS_PORT=%d", s.Addr.Port()), "DMP_HTTP_HOST=127.0.0.1", fmt.Sprintf("DMP_HTTP_PORT=%d", s.Addr.Port()-1), "DMP_OPERATOR_TOKEN=bench", "DMP_AUTH_MODE=multi-tenant",
		"DMP_DNS_APEX_A=127.0.0.1", "DMP_DNS_APEX_NS=" + f.zone.Name, "DMP_DNS_RATE=0", "DMP_DNS_BURST=0", "DMP_HTTP_RATE=0", "DMP_DNS_UPDATE_ENABLED=1", "DMP_LOG_LEVEL=ERROR"}
}

// runReference starts it on a folder that it or writeReference has made.
func runReference(s *Server, f *field, dir string, more ...string) error {
	python, err := filepath.Abs(referencePython)
	if err != nil {
		return err
	}
	return s.spawn(f.cores, dir, append(referenceEnv(s, f, dir), more...), python, "-m", "dmp.server")
}

// writeReference makes its folder, with the zone and the key.
func writeReference(s *Server, f *field, dir string) error {
	python, err := filepath.Abs(referencePython)
	if err != nil {
		return err
	}
	db := filepath.Join(dir, "dmp.db")
	first := exec.Command(python, "-m", "dmp.server")
	first.Env, first.Dir = referenceEnv(s, f, dir), dir
	if err := first.Start(); err != nil {
		return err
	}
	made := func() bool {
		keys, err := os.Stat(filepath.Join(dir, "dmp_tsig.db"))
		return err == nil && keys.Size() > 0
	}
	for end := time.Now().Add(readyWithin); !made() && time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond)
	}
	time.Sleep(time.Second) // its tables are made one after another
	_ = first.Process.Signal(syscall.SIGTERM)
	_ = first.Wait()
	rows, err := os.Create(filepath.Join(dir, "rows.sql"))
	if err != nil {
		return err
	}
	defer rows.Close()
	w := bufio.NewWriterSize(rows, 1<<20)
	now := time.Now().Unix()
	fmt.Fprintln(w, "PRAGMA synchronous=OFF; BEGIN;")
	for i := range uint64(f.zone.Names) {
		v := f.zone.value(i)
		fmt.Fprintf(w, "INSERT INTO records VALUES('%s.%s','%s',%d,%d,%d,%d,'%x');\n", f.zone.label(i), f.zone.Name, v, ttlSec, now, now+86400, now*1000, sha256.Sum256(v))
	}
	fmt.Fprintln(w, "COMMIT;")
	if err := w.Flush(); err != nil {
		return err
	}
	keys := fmt.Sprintf("INSERT INTO tsig_keys(name, algorithm, secret, allowed_suffixes, created_at) VALUES('%s.%s.','hmac-sha256',x'%x','%s',%d);", keyName, f.zone.Name, "dmp-bench-key-of-32-bytes-length", f.zone.Name, now)
	for _, command := range [][]string{{"sqlite3", db, ".read " + rows.Name()}, {"sqlite3", filepath.Join(dir, "dmp_tsig.db"), keys}} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("bench: %s: %w: %s", command[1], err, out)
		}
	}
	return nil
}

func startBIND(s *Server, f *field, dir string, workers int) error {
	err := f.write(s, dir, "named.conf", `options {
	directory "DIR";
	pid-file "DIR/named.pid";
	session-keyfile "DIR/session.key";
	managed-keys-directory "DIR";
	listen-on port PORT { 127.0.0.1; };
	listen-on-v6 { none; };
	recursion no;
	minimal-responses yes;
	notify no;
};
controls { };
key "KEYNAME" { algorithm hmac-sha256; secret "SECRET"; };
zone "ZONE" { type primary; file "zone"; allow-update { key "KEYNAME"; }; };
`, workers)
	if err != nil {
		return err
	}
	return s.spawn(f.cores, dir, os.Environ(), find("named"), "-g", "-n", fmt.Sprint(workers), "-c", filepath.Join(dir, "named.conf"))
}
