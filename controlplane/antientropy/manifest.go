package antientropy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/vfs"
	"github.com/dnsmesh/dmpd/internal/wire"
)

const (
	// manifestFile in the control folder holds the installed manifest, which is also the floor of numbers: a restart rolls nothing back.
	manifestFile = "cluster-manifest.json"
	// clusterFileMax bounds DMP_CLUSTER_FILE: a wire has 1200 bytes, and a list of nodes is not much longer.
	clusterFileMax = 64 << 10
	// peersMax bounds the list of peers from whatever source: more than a manifest can name.
	peersMax = 64
)

// Manifests holds the cluster manifest of this node and the peers that follow from it. However a manifest arrives (file, operator's
// command, record over HTTP, DNS or replication, a peer's endpoint), Install decides: the highest number under the pinned key holds, and
// of two with one number the one whose text has the smaller SHA-256, so that all nodes agree (cluster.md 2, 3.5).
type Manifests struct {
	o ManifestOptions

	install sync.Mutex // one Install at a time
	mu      sync.Mutex
	text    []byte // nil: none
	cluster record.Cluster
	from    string
	base    string // of the file, for the chain of cluster.md 3.3
	listed  []Peer // of the file
	peers   []Peer
	changed chan struct{}

	// Conflicts counts manifests with one number and different contents.
	Conflicts atomic.Int64
	// Swaps counts changes of the list of peers.
	Swaps atomic.Int64
}

// ManifestOptions say what Manifests works with.
type ManifestOptions struct {
	Dir      string // the control folder
	Settings func() Settings
	View     View
	Writer   Writer
	NowMs    func() int64
	Log      *logging.Logger
}

type manifestState struct {
	Wire string `json:"wire"`
	From string `json:"from"`
}

// OpenManifests reads what was installed before. Refresh completes it.
func OpenManifests(o ManifestOptions) (*Manifests, error) {
	m := &Manifests{o: o, changed: make(chan struct{})}
	b, err := os.ReadFile(filepath.Join(o.Dir, manifestFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cluster manifest: %w", err)
	}
	if err == nil {
		var state manifestState
		var c record.Cluster
		if json.Unmarshal(b, &state) != nil || c.Parse([]byte(state.Wire)) != record.Accepted {
			return nil, fmt.Errorf("cluster manifest: %s is damaged. Move it away; the node then takes the newest manifest that it finds", filepath.Join(o.Dir, manifestFile))
		}
		m.text, m.cluster, m.from = []byte(state.Wire), c, state.From
	}
	m.Reload()
	return m, nil
}

// Reload reads the settings and the cluster file again.
func (m *Manifests) Reload() {
	s := m.o.Settings()
	listed, base := m.readFile(&s)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.listed, m.base = listed, base
	m.resolve(&s)
}

// file reads DMP_CLUSTER_FILE; nothing if there is none.
func (m *Manifests) file(s *Settings) []byte {
	if s.File == "" {
		return nil
	}
	f, err := os.Open(s.File)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			m.o.Log.Warn("the cluster file cannot be read", "err", err)
		}
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, clusterFileMax+1))
	if err != nil || len(b) > clusterFileMax {
		m.o.Log.Warn("the cluster file cannot be read, or is no cluster file", "file", s.File, "err", err)
		return nil
	}
	return bytes.TrimSpace(b)
}

// ParseFile reads a peer file in one of its three forms (cluster.md 3.1): a manifest's text, {"wire": text}, or {"nodes": [{"node_id",
// "http_endpoint"}]}. No signature is checked. text is nil for the third form.
func ParseFile(b []byte) (text []byte, peers []Peer, base string, err error) {
	b = bytes.TrimSpace(b)
	if len(b) == 0 {
		return nil, nil, "", errors.New("it is empty")
	}
	text = b
	if b[0] == '{' {
		var form struct {
			Wire  *string `json:"wire"`
			Nodes []struct {
				ID   string `json:"node_id"`
				HTTP string `json:"http_endpoint"`
			} `json:"nodes"`
		}
		if err := json.Unmarshal(b, &form); err != nil {
			return nil, nil, "", err
		}
		if form.Wire == nil {
			for _, n := range form.Nodes {
				peers = append(peers, Peer{ID: n.ID, URL: n.HTTP})
			}
			return nil, peers, "", nil
		}
		text = []byte(*form.Wire)
	}
	var c record.Cluster
	if r := c.Parse(text); r != record.Accepted {
		return nil, nil, "", r
	}
	return text, nodesOf(&c), c.Name, nil
}

func nodesOf(c *record.Cluster) (peers []Peer) {
	for _, n := range c.Nodes {
		peers = append(peers, Peer{ID: n.ID, URL: n.HTTP})
	}
	return peers
}

func (m *Manifests) readFile(s *Settings) (peers []Peer, base string) {
	b := m.file(s)
	if len(b) == 0 {
		return nil, ""
	}
	text, peers, base, err := ParseFile(b)
	if err != nil {
		m.o.Log.Warn("the cluster file names no peers", "file", s.File, "err", err)
		return nil, ""
	}
	if s.Operator != nil && text != nil && new(record.Cluster).Verify(text, s.Operator, "", m.o.NowMs()/1000) != record.Accepted {
		base = "" // peers may be taken from it, since the operator put it there; a name may not (cluster.md 3.3)
	}
	return peers, base
}

// BaseDomain is the cluster's name, "" if it is not known (cluster.md 3.3): as set, of the file, of the manifest that is installed.
func (m *Manifests) BaseDomain() string {
	s := m.o.Settings()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.baseDomain(&s)
}

func (m *Manifests) baseDomain(s *Settings) string {
	switch {
	case s.BaseDomain != "":
		return strings.TrimSuffix(strings.TrimSpace(s.BaseDomain), ".")
	case m.base != "":
		return strings.TrimSuffix(m.base, ".")
	case m.holds(s):
		return m.cluster.Name
	}
	return ""
}

// holds says whether there is a manifest by the key that is pinned now.
func (m *Manifests) holds(s *Settings) bool {
	return m.text != nil && s.Operator != nil && m.cluster.Operator == *s.Operator
}

// Peers is the interface Peers.
func (m *Manifests) Peers() ([]Peer, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.peers), m.changed
}

// resolve makes the list of peers (cluster.md 3.1). A manifest that came by itself wins; one from the file does not win against
// DMP_SYNC_PEERS.
func (m *Manifests) resolve(s *Settings) {
	var candidates []Peer
	switch {
	case m.holds(s) && (m.from != "file" || len(s.URLs) == 0):
		candidates = nodesOf(&m.cluster)
	case len(s.URLs) > 0:
		for _, u := range s.URLs {
			candidates = append(candidates, Peer{URL: u})
		}
	default:
		candidates = m.listed
	}
	peers := m.filter(candidates, s)
	if slices.Equal(peers, m.peers) {
		return
	}
	m.peers = peers
	m.Swaps.Add(1)
	close(m.changed)
	m.changed = make(chan struct{})
}

// filter checks URLs, names peers that have no id, and leaves out this node and repetitions.
func (m *Manifests) filter(candidates []Peer, s *Settings) (peers []Peer) {
	self := normalURL(s.SelfURL)
	ids, urls := map[string]bool{}, map[string]bool{}
	for _, p := range candidates {
		p.URL = strings.TrimRight(strings.TrimSpace(p.URL), "/")
		u, err := url.Parse(p.URL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			if p.URL != "" {
				m.o.Log.Warn("a peer is left out: its URL is not http(s)://host[:port][/path]", "peer", p.ID, "url", p.URL)
			}
			continue
		}
		if p.ID == "" {
			p.ID, p.Synthetic = SyntheticID(u), true
		}
		if s.NodeID != "" && p.ID == s.NodeID || self != "" && normalURL(p.URL) == self || ids[p.ID] || urls[normalURL(p.URL)] {
			continue
		}
		if len(peers) == peersMax {
			m.o.Log.Warn("more peers than a cluster has nodes: the rest is left out", "max", peersMax)
			break
		}
		ids[p.ID], urls[normalURL(p.URL)] = true, true
		peers = append(peers, p)
	}
	return peers
}

func normalURL(u string) string { return strings.ToLower(strings.TrimRight(strings.TrimSpace(u), "/")) }

// SyntheticID names a peer that is known by its URL alone (cluster.md 3.1).
func SyntheticID(u *url.URL) string {
	host := strings.ToLower(u.Hostname())
	sum := sha256.Sum256([]byte(host + ":" + u.Port() + u.Path))
	return host[:min(len(host), 9)] + "-" + hex.EncodeToString(sum[:3])
}

// Install is the interface Installer.
func (m *Manifests) Install(ctx context.Context, text []byte, from string) (Installed, error) {
	m.install.Lock()
	defer m.install.Unlock()
	s := m.o.Settings()
	m.mu.Lock()
	base := m.baseDomain(&s)
	m.mu.Unlock()
	var c record.Cluster
	if s.Operator == nil {
		return ManifestRefused, nil
	}
	if r := c.Verify(text, s.Operator, base, m.o.NowMs()/1000); r != record.Accepted || len(c.Nodes) == 0 {
		m.o.Log.Debug("a cluster manifest is not taken", "from", from, "why", r)
		return ManifestRefused, nil
	}
	m.mu.Lock()
	verdict := m.compare(&s, text, &c, from)
	m.mu.Unlock()
	if verdict == ManifestNew {
		if err := m.save(text, from); err != nil {
			return 0, err
		}
		m.mu.Lock()
		m.text, m.cluster, m.from = bytes.Clone(text), c, from
		m.resolve(&s)
		n := len(m.peers)
		m.mu.Unlock()
		m.o.Log.Info("cluster manifest", "seq", c.Seq, "from", from, "nodes", len(c.Nodes), "peers", n)
	}
	if verdict == ManifestOlder {
		return verdict, nil
	}
	return verdict, m.publish(ctx, text, &c)
}

// compare needs mu.
func (m *Manifests) compare(s *Settings, text []byte, c *record.Cluster, from string) Installed {
	if !m.holds(s) || c.Seq > m.cluster.Seq {
		return ManifestNew
	}
	if c.Seq < m.cluster.Seq {
		return ManifestOlder
	}
	if bytes.Equal(text, m.text) {
		return ManifestSame
	}
	m.Conflicts.Add(1)
	m.o.Log.Error("two cluster manifests have one number: sign a third with a higher one", "seq", c.Seq, "from", from)
	if better(text, m.text) {
		return ManifestNew
	}
	return ManifestOlder
}

// better is the rule for two manifests with one number.
func better(a, b []byte) bool {
	x, y := sha256.Sum256(a), sha256.Sum256(b)
	return bytes.Compare(x[:], y[:]) < 0
}

// save writes the file whole, or leaves the old one.
func (m *Manifests) save(text []byte, from string) error {
	b, err := json.Marshal(manifestState{string(text), from})
	if err != nil {
		return err
	}
	path := filepath.Join(m.o.Dir, manifestFile)
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("cluster manifest: %w", err)
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = vfs.OS.SyncDir(m.o.Dir)
	}
	if err != nil {
		return fmt.Errorf("cluster manifest: %w", err)
	}
	return nil
}

// publish sees to it that the record lives until the manifest ends, whoever stored it for how long.
func (m *Manifests) publish(ctx context.Context, text []byte, c *record.Cluster) error {
	name, err := wire.AppendName(nil, strings.ToLower(record.ClusterName(c.Name)))
	if err != nil {
		return nil // a name of 64 characters below a label of its own may not fit: peers ask the endpoint
	}
	nowMs, endMs := m.o.NowMs(), int64(c.ExpSec)*1000
	rows, err := m.o.View.Values(name, nowMs)
	if err != nil {
		return err
	}
	for i := range rows {
		if bytes.Equal(record.AppendValue(nil, rows[i].RDATA), text) && rows[i].ExpMs >= endMs-SlopMs {
			return nil
		}
	}
	results, err := m.o.Writer.Offer(ctx, []Offer{{Name: name, Value: text, AddMs: nowMs, ExpMs: endMs, Verified: true}})
	if err == nil && results[0].Decision == Refused {
		err = fmt.Errorf("cluster manifest: the store refused it: %s", results[0].Reason)
	}
	return err
}

// Refresh installs the newest of what the file and the store hold. It is called at start, after a reload, and when a manifest was
// stored; an error means that it should be called again.
func (m *Manifests) Refresh(ctx context.Context) error {
	s := m.o.Settings()
	var errs []error
	if b := m.file(&s); len(b) > 0 {
		if text, _, _, err := ParseFile(b); err == nil && text != nil {
			if s.Operator != nil {
				_, err = m.Install(ctx, text, "file")
			} else {
				// Without a pinned key it is published as it is (cluster.md 3.2) and installs nothing.
				var c record.Cluster
				if c.Parse(text) == record.Accepted && int64(c.ExpSec) > m.o.NowMs()/1000 {
					err = m.publish(ctx, text, &c)
				}
			}
			errs = append(errs, err)
		}
	}
	m.mu.Lock()
	installed, from := m.text, m.from
	if !m.holds(&s) {
		installed = nil
	}
	m.mu.Unlock()
	texts := m.stored()
	for _, text := range texts {
		_, err := m.Install(ctx, text, "record")
		errs = append(errs, err)
	}
	if installed != nil {
		_, err := m.Install(ctx, installed, from) // which puts the record back if it is gone
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// stored gives the cluster records at the cluster's name.
func (m *Manifests) stored() (texts [][]byte) {
	base := m.BaseDomain()
	if base == "" {
		return nil
	}
	name, err := wire.AppendName(nil, strings.ToLower(record.ClusterName(base)))
	if err != nil {
		return nil
	}
	rows, err := m.o.View.Values(name, m.o.NowMs())
	if err != nil {
		m.o.Log.Warn("the cluster's record cannot be read", "err", err)
	}
	for i := range rows {
		if value := record.AppendValue(nil, rows[i].RDATA); record.ClassOf(value) == record.ClassCluster {
			texts = append(texts, value)
		}
	}
	return texts
}

// Current gives the installed manifest; ok is false if there is none by the pinned key. It may have ended.
func (m *Manifests) Current() (text []byte, c record.Cluster, from string, ok bool) {
	s := m.o.Settings()
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.text), m.cluster, m.from, m.holds(&s)
}

// Served gives the manifest for the endpoint (cluster.md 6.3): with a pinned key the installed one; without one the record with the
// highest number at the cluster's name, the first of equals. ok is false without a name, or if there is none that has not ended.
func (m *Manifests) Served(context.Context) (text []byte, c record.Cluster, ok bool) {
	s := m.o.Settings()
	base := m.BaseDomain()
	if base == "" {
		return nil, c, false
	}
	nowSec := m.o.NowMs() / 1000
	consider := func(t []byte) {
		var y record.Cluster
		if s.Operator != nil && y.Verify(t, s.Operator, base, nowSec) != record.Accepted || s.Operator == nil && y.Parse(t) != record.Accepted {
			return
		}
		if !ok || y.Seq > c.Seq || s.Operator != nil && y.Seq == c.Seq && better(t, text) {
			text, c, ok = t, y, true
		}
	}
	if installed, _, _, holds := m.Current(); holds {
		consider(installed)
	}
	for _, t := range m.stored() {
		consider(t)
	}
	return text, c, ok
}
