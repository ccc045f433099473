package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/dnsmesh/dmpd/controlplane"
	"github.com/dnsmesh/dmpd/controlplane/antientropy"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/record"
)

// The cluster commands: init and sign need nothing but the operator's key and may run far from every node; show, push, peers and status
// are about a node (cluster.md 2, 3).
func init() {
	const nodes = "--node ID=URL[,DNS]..."
	register(
		&command{name: "cluster init", args: "NAME " + nodes + " [--key FILE] [--out FILE] [--expires DUR]", short: "Make a cluster: operator's key, first manifest, token", run: clusterInit,
			long:    "The key signs who the nodes are. Keep its file away from the nodes; they need its public half. Neither key nor manifest is overwritten.",
			example: "dmpd cluster init mesh.example.com --node a=https://a.example.com:8053,192.0.2.1 --node b=https://b.example.com:8053"},
		&command{name: "cluster sign", args: nodes + " [--key FILE] [--in FILE] [--out FILE] [--expires DUR] [--seq N]", short: "Sign the next manifest", run: clusterSign,
			long:    "The name and the number come from the manifest in --in, one higher. The nodes are those given, all of them.",
			example: "dmpd cluster sign --in cluster.json --node a=https://a.example.com:8053 --node c=https://c.example.com:8053 && dmpd cluster push cluster.json"},
		&command{name: "cluster show", args: "[FILE] [--json]", short: "Show a manifest: a file's, or the one that a running node has installed", run: clusterShow, example: "dmpd cluster show cluster.json"},
		&command{name: "cluster push", args: "FILE [--json]", short: "Hand a manifest to a running node; the others take it from there", run: clusterPush, example: "dmpd cluster push cluster.json"},
		&command{name: "cluster peers", args: "[--json]", short: "List the nodes that this one replicates with", run: clusterPeers, example: "dmpd cluster peers"},
		&command{name: "cluster status", args: "[--json]", short: "Say how replication goes: lag, errors, quarantine", run: clusterStatus, example: "dmpd cluster status"},
	)
}

const (
	clusterKeyFile    = "cluster-operator.key"
	clusterWireFile   = "cluster.json"
	clusterLifeSec    = 365 * 86400
	clusterFileMax    = 64 << 10 // as the node reads it
	clusterTokenBytes = 32
)

// signing is what init and sign have in common.
type signing struct {
	nodes    texts
	key, out string
	end      life
}

func (s *signing) bind(f *flag.FlagSet) {
	f.Var(&s.nodes, "node", "`ID=URL[,DNS]` of a node; once for each")
	f.StringVar(&s.key, "key", clusterKeyFile, "`file` of the operator's key")
	f.StringVar(&s.out, "out", clusterWireFile, "`file` for the manifest")
	s.end.sec = clusterLifeSec
	f.Func("expires", "`duration` until it ends (365d), five years at most", func(v string) (err error) {
		s.end.sec, err = duration(v)
		return err
	})
}

// manifest signs one.
func (s *signing) manifest(c *record.Cluster, key ed25519.PrivateKey) ([]byte, error) {
	c.Nodes = nil
	for _, text := range s.nodes {
		id, rest, ok := strings.Cut(text, "=")
		address, dns, _ := strings.Cut(rest, ",")
		u, err := url.Parse(address)
		if !ok || err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, usagef("--node %s: write it like a=https://a.example.com:8053 or a=https://a.example.com:8053,192.0.2.1:53", text)
		}
		c.Nodes = append(c.Nodes, record.ClusterNode{ID: id, HTTP: address, DNS: dns})
	}
	c.ExpSec = uint64(clock.NowMs()/1000 + s.end.sec)
	text, r := c.Append(nil, key)
	if r == record.Accepted {
		r = new(record.Cluster).Verify(text, (*[32]byte)(key.Public().(ed25519.PublicKey)), c.Name, clock.NowMs()/1000)
	}
	if r != record.Accepted {
		return nil, usagef("this manifest would be refused: %v. It needs 1 to 32 nodes with different ids of at most 16 characters, a DNS name, an end within five years, and at most 1200 bytes (%d nodes were given)", r, len(c.Nodes))
	}
	return text, nil
}

func readKey(path string) (ed25519.PrivateKey, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(b) != ed25519.SeedSize {
		if b, err = hex.DecodeString(strings.TrimSpace(string(b))); err != nil || len(b) != ed25519.SeedSize {
			return nil, fmt.Errorf("%s is no key: 32 bytes or 64 hexadecimal digits", path)
		}
	}
	return ed25519.NewKeyFromSeed(b), nil
}

// writeNew writes a file that must not exist.
func writeNew(path string, b []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// replaceFile puts a file in the place of another in one step.
func replaceFile(path string, b []byte) error {
	if err := os.Remove(path + ".new"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := writeNew(path+".new", b, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func wireFile(text []byte) []byte {
	b, err := json.Marshal(controlplane.WireArgs{Wire: string(text)})
	if err != nil {
		panic(err) // a string
	}
	return append(b, '\n')
}

func clusterInit(i *invocation) error {
	f := i.flags()
	var s signing
	s.bind(f)
	args, err := i.parse(f, 1, 1)
	if err != nil {
		return err
	}
	for _, path := range []string{s.key, s.out} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			return usagef("%s exists already. `dmpd cluster sign` makes the next manifest; a new cluster needs other files (--key, --out)", path)
		}
	}
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	text, err := s.manifest(&record.Cluster{Name: strings.TrimSuffix(args[0], "."), Seq: 1}, key)
	if err != nil {
		return err
	}
	token := make([]byte, clusterTokenBytes)
	rand.Read(token)
	if err := writeNew(s.key, []byte(hex.EncodeToString(key.Seed())+"\n"), 0o600); err != nil {
		return err
	}
	if err := writeNew(s.out, wireFile(text), 0o644); err != nil {
		return err
	}
	fmt.Fprintf(i.out, `%s is the operator's key: keep it away from the nodes, and keep a copy.
%s is the manifest. Copy it to every node, and give each of them:

DMP_CLUSTER_FILE=/var/lib/dmp/cluster.json
DMP_CLUSTER_BASE_DOMAIN=%s
DMP_SYNC_OPERATOR_SPK=%x
DMP_SYNC_PEER_TOKEN=%x
DMP_NODE_ID=     (its own: one of %s)
`, s.key, s.out, strings.TrimSuffix(args[0], "."), []byte(public), token, ids(s.nodes))
	return nil
}

func ids(nodes texts) string {
	var out []string
	for _, n := range nodes {
		id, _, _ := strings.Cut(n, "=")
		out = append(out, id)
	}
	return strings.Join(out, ", ")
}

// readManifest reads a manifest's file in the two forms that have a text.
func readManifest(path string) (text []byte, c record.Cluster, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, c, err
	}
	if len(b) > clusterFileMax {
		return nil, c, fmt.Errorf("%s is no manifest: it has %d bytes", path, len(b))
	}
	if text, _, _, err = antientropy.ParseFile(b); err != nil {
		return nil, c, fmt.Errorf("%s is no manifest: %w", path, err)
	}
	if text == nil {
		return nil, c, fmt.Errorf("%s is a list of nodes without a signature", path)
	}
	c.Parse(text) // ParseFile did
	return text, c, nil
}

func clusterSign(i *invocation) error {
	f := i.flags()
	var s signing
	s.bind(f)
	in := f.String("in", clusterWireFile, "`file` of the manifest before")
	seq := f.Uint64("seq", 0, "number; without it one more than before")
	if _, err := i.parse(f, 0, 0); err != nil {
		return err
	}
	key, err := readKey(s.key)
	if err != nil {
		return usageError{err}
	}
	_, c, err := readManifest(*in)
	if err != nil {
		return usageError{err}
	}
	if [32]byte(key.Public().(ed25519.PublicKey)) != c.Operator {
		return usagef("%s was signed by another key than %s: nodes that believed the one would not believe the other", *in, s.key)
	}
	switch {
	case *seq == 0:
		c.Seq++
	case *seq <= c.Seq:
		return usagef("--seq %d is not above %d: no node would take it", *seq, c.Seq)
	default:
		c.Seq = *seq
	}
	text, err := s.manifest(&c, key)
	if err != nil {
		return err
	}
	if err := replaceFile(s.out, wireFile(text)); err != nil {
		return err
	}
	fmt.Fprintf(i.out, "%s: %s, number %d, %d nodes, until %s. `dmpd cluster push %s` on one of the nodes makes it hold.\n", s.out, c.Name, c.Seq, len(c.Nodes), when(int64(c.ExpSec)), s.out)
	return nil
}

func printManifest(w *tabwriter.Writer, m *controlplane.ManifestInfo) {
	fmt.Fprintf(w, "cluster\t%s\nnumber\t%d\nuntil\t%s\noperator\t%s\n", m.Name, m.Seq, when(int64(m.Exp)), m.Operator)
	if m.From != "" {
		fmt.Fprintf(w, "came by\t%s\n", m.From)
	}
	for _, n := range m.Nodes {
		fmt.Fprintf(w, "node\t%s\t%s\t%s\n", n.ID, n.HTTP, n.DNS)
	}
}

func clusterShow(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	args, err := i.parse(f, 0, 1)
	if err != nil {
		return err
	}
	var m *controlplane.ManifestInfo
	if len(args) == 1 {
		text, c, err := readManifest(args[0])
		if err != nil {
			return err
		}
		operator := c.Operator
		if r := new(record.Cluster).Verify(text, &operator, "", clock.NowMs()/1000); r != record.Accepted {
			fmt.Fprintln(i.errOut, "dmpd: no node would take this manifest:", r)
		}
		m = controlplane.ManifestInfoOf(text, &c)
	} else {
		info, err := p.cluster()
		if err != nil {
			return err
		}
		if m = info.Manifest; m == nil {
			return errors.New("the node has no manifest installed")
		}
	}
	return p.print(m, func(w *tabwriter.Writer) { printManifest(w, m) })
}

// cluster asks the running node.
func (p *place) cluster() (info controlplane.ClusterInfo, err error) {
	if err := p.resolve(); err != nil {
		return info, err
	}
	return info, p.call("cluster.status", struct{}{}, &info)
}

func clusterPush(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	args, err := p.parsed(f, 1, 1)
	if err != nil {
		return err
	}
	text, c, err := readManifest(args[0])
	if err != nil {
		return usageError{err}
	}
	var got controlplane.PushResult
	if err := p.call("cluster.push", controlplane.WireArgs{Wire: string(text)}, &got); err != nil {
		return err
	}
	if err := p.print(got, func(w *tabwriter.Writer) {
		fmt.Fprintf(w, "%s: number %d was offered, %d is installed\n", got.Result, c.Seq, got.Seq)
	}); err != nil {
		return err
	}
	if got.Result == "older" {
		return errors.New("the node has a newer manifest, or another one with this number that wins: sign one with a higher number")
	}
	return nil
}

func clusterPeers(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	if _, err := i.parse(f, 0, 0); err != nil {
		return err
	}
	info, err := p.cluster()
	if err != nil {
		return err
	}
	type peer struct {
		ID  string `json:"id"`
		URL string `json:"url"`
	}
	peers := []peer{}
	for _, x := range info.Peers {
		peers = append(peers, peer{x.ID, x.URL})
	}
	return p.print(peers, func(w *tabwriter.Writer) {
		for _, x := range peers {
			fmt.Fprintf(w, "%s\t%s\n", x.ID, x.URL)
		}
	})
}

func clusterStatus(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	if _, err := i.parse(f, 0, 0); err != nil {
		return err
	}
	info, err := p.cluster()
	if err != nil {
		return err
	}
	return p.print(info, func(w *tabwriter.Writer) {
		state := "runs"
		if !info.Running {
			state = "is off: " + info.Why
		}
		fmt.Fprintf(w, "replication\t%s\nthis node\t%s\ncluster\t%s\n", state, dash(info.NodeID), dash(info.Name))
		if m := info.Manifest; m != nil {
			fmt.Fprintf(w, "manifest\tnumber %d, %d nodes, until %s, by %s\n", m.Seq, len(m.Nodes), when(int64(m.Exp)), m.From)
		}
		if info.Sum != nil {
			fmt.Fprintf(w, "records\t%d in the sum, root %s of %s\n", info.Sum.Elements, info.Sum.Root, when(info.Sum.MomentMs/1000))
		}
		if len(info.Peers) > 0 {
			fmt.Fprintln(w, "\npeer\turl\tspeaks\tstate\tlag\trows behind\tequal\tlast heard\tquarantined\treceived\tsent\treconnects\tclock")
		}
		for i := range info.Peers {
			x := &info.Peers[i]
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.1f s\t%d\t%s\t%s\t%d\t%d\t%d\t%d\t%+d ms\n", x.ID, x.URL, x.Speaks(), x.State(), x.LagSec, x.LagRows, x.Equal(), when(x.LastSuccessMs/1000), x.Quarantined, x.BytesIn, x.BytesOut, x.Reconnects, x.OffsetMs)
		}
	})
}
