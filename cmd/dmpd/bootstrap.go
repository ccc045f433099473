package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dnsmesh/dmpd/controlplane"
	"github.com/dnsmesh/dmpd/controlplane/heartbeat"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/record"
)

// Bootstrap records (federation.md 12) point from a mail-like domain to the clusters that serve its users. Readers pin the signer's key.
func init() {
	register(
		&command{name: "bootstrap sign", args: "DOMAIN --key FILE --cluster [PRIORITY:]DOMAIN=KEY... [--seq N] [--expires DUR] [--publish] [--json]", short: "Make a bootstrap record: the clusters that serve a domain's users", run: bootstrapSign,
			long: `KEY is the cluster operator's Ed25519 public key in hex; clusters without a priority come in the order given. The record is printed with
its owner name. With --publish the node stores it there too, for as long as DMP_MAX_TTL lets anything live, and takes away what the same key
signed earlier: run it again (by a timer, twice a day) before that is over. FILE is as for DMP_HEARTBEAT_OPERATOR_KEY_PATH.`,
			example: "dmpd bootstrap sign example.com --key signer.key --cluster mesh.example.com=8a88...22 --expires 365d --publish"},
		&command{name: "bootstrap show", args: "DOMAIN [--signer KEY] [--resolver IP[:PORT]]... [--json]", short: "Look a domain's bootstrap records up and check them", run: bootstrapShow,
			long:    "Each record is checked, and of the one that readers take each cluster's manifest too. Without --signer every record is taken to be of the\nkey that it names, which proves nothing about who that is. The exit code is 0 if a reader would find a cluster.",
			example: "dmpd bootstrap show example.com --signer 8a88e3dd...22"},
	)
}

// bootstrapLifeSec is how long a record lives unless it is told: a year, of five that readers allow.
const bootstrapLifeSec = 365 * 86400

type bootstrapInfo struct {
	Owner   string                     `json:"owner"`
	Wire    string                     `json:"wire"`
	Domain  string                     `json:"user_domain,omitempty"`
	Signer  string                     `json:"signer_spk_hex"`
	Seq     uint64                     `json:"seq"`
	Exp     uint64                     `json:"exp"`
	Entries []bootstrapEntry           `json:"entries"`
	Problem string                     `json:"problem,omitempty"` // why a reader refuses it
	Taken   bool                       `json:"taken"`             // the one that readers take
	Stored  *controlplane.RecordResult `json:"stored,omitempty"`
}

type bootstrapEntry struct {
	Priority uint16 `json:"priority"`
	Domain   string `json:"cluster_base_domain"`
	Operator string `json:"operator_spk_hex"`
	Nodes    int    `json:"nodes,omitempty"`   // of its manifest
	Problem  string `json:"problem,omitempty"` // why its manifest cannot be used
}

func (b *bootstrapInfo) fill(r *record.Bootstrap) {
	b.Domain, b.Signer, b.Seq, b.Exp = r.Domain, hex.EncodeToString(r.Signer[:]), r.Seq, r.ExpSec
	for _, e := range r.Entries {
		b.Entries = append(b.Entries, bootstrapEntry{Priority: e.Priority, Domain: e.Domain, Operator: hex.EncodeToString(e.Operator[:])})
	}
}

// parseCluster reads [PRIORITY:]DOMAIN=KEY.
func parseCluster(text string, priority uint16) (e record.BootstrapEntry, err error) {
	domain, key, ok := strings.Cut(text, "=")
	if number, rest, given := strings.Cut(domain, ":"); given {
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return e, usagef("--cluster %s: %q is no priority, from 0 to 65535", text, number)
		}
		priority, domain = uint16(n), rest
	}
	operator, err := publicKey(key)
	if !ok || err != nil {
		return e, usagef("--cluster %s: want [PRIORITY:]DOMAIN=KEY, the key an Ed25519 public key of 64 hexadecimal digits", text)
	}
	return record.BootstrapEntry{Priority: priority, Domain: domain, Operator: operator}, nil
}

func publicKey(text string) (key [32]byte, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != 32 {
		return key, usagef("%q is not an Ed25519 public key of 64 hexadecimal digits", text)
	}
	return [32]byte(b), nil
}

func bootstrapSign(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	keyPath := f.String("key", "", "`file` with the signer's Ed25519 seed, 32 bytes or 64 hex digits")
	var clusters texts
	f.Var(&clusters, "cluster", "`[PRIORITY:]DOMAIN=KEY` of a cluster; may be given up to 16 times")
	seq := f.Uint64("seq", 0, "`number` of the record, of which readers take the highest (the Unix time)")
	var end life
	end.sec = bootstrapLifeSec
	end.bind(f, "expires", "`duration` until it ends, five years at most (365d)")
	publish := f.Bool("publish", false, "store it at the node")
	args, err := i.parse(f, 1, 1)
	if err != nil {
		return err
	}
	if *keyPath == "" || len(clusters) == 0 {
		return usagef("--key and at least one --cluster are needed")
	}
	key, err := heartbeat.LoadKey(*keyPath, logging.New(i.errOut, logging.Warn, false))
	if err != nil {
		return usageError{err}
	}
	now := clock.NowMs() / 1000
	b := record.Bootstrap{Domain: strings.TrimSuffix(args[0], "."), Seq: cmp.Or(*seq, uint64(now)), ExpSec: uint64(end.end())}
	for n, text := range clusters {
		e, err := parseCluster(text, uint16(n))
		if err != nil {
			return err
		}
		b.Entries = append(b.Entries, e)
	}
	wire, r := b.Append(nil, key)
	if r == record.Accepted { // what readers would refuse is not worth signing
		signer := [32]byte(key.Public().(ed25519.PublicKey))
		r = b.Verify(wire, &signer, args[0], now)
	}
	if r != record.Accepted {
		return usagef("readers would refuse this record: %v (names of 64 letters, digits, hyphens and dots at most; 16 clusters; 1,200 characters; an end within five years)", r)
	}
	info := bootstrapInfo{Owner: strings.ToLower(record.BootstrapName(b.Domain)), Wire: string(wire)}
	info.fill(&b)
	if *publish {
		if err := p.resolve(); err != nil {
			return err
		}
		if info.Stored, err = p.publishBootstrap(&info, &b, now); err != nil {
			return err
		}
	}
	return p.print(info, func(w *tabwriter.Writer) {
		fmt.Fprintf(w, "owner\t%s\nsigner\t%s\nseq\t%d\nends\t%s\n", info.Owner, info.Signer, info.Seq, when(int64(info.Exp)))
		if info.Stored != nil {
			fmt.Fprintf(w, "the node\t%s\n", info.Stored.Outcome)
		}
		fmt.Fprintf(w, "\n%s\n", info.Wire)
	})
}

// publishBootstrap stores a record, and deletes what the same key signed earlier. A later one that is there is an error: readers would
// take that.
func (p *place) publishBootstrap(info *bootstrapInfo, b *record.Bootstrap, nowSec int64) (*controlplane.RecordResult, error) {
	ttl := min(int64(b.ExpSec)-nowSec, 1<<31-1)
	if most := p.config.Int("MAX_TTL"); most > 0 {
		ttl = min(ttl, most)
	}
	name, err := recordName(info.Owner)
	if err != nil {
		return nil, err
	}
	v, err := openView(p.dataDir())
	if err != nil {
		return nil, err
	}
	rows, err := v.live(name, clock.NowMs())
	var old []string
	for _, row := range rows {
		value := record.AppendValue(nil, row.RDATA)
		var o record.Bootstrap
		if o.Verify(value, &b.Signer, "", nowSec) != record.Accepted || string(value) == info.Wire {
			continue
		}
		if o.Seq >= b.Seq {
			err = usagef("a record with seq %d of this key is there: give a higher --seq than %d", o.Seq, b.Seq)
		}
		old = append(old, string(value))
	}
	v.close()
	if err != nil {
		return nil, err
	}
	var result controlplane.RecordResult
	err = p.with(func(call caller) error {
		if err := call("record.put", controlplane.RecordArgs{Name: info.Owner, Value: &info.Wire, TTLSec: uint32(ttl)}, &result); err != nil {
			return err
		}
		for _, value := range old {
			err := call("record.delete", controlplane.RecordArgs{Name: info.Owner, Value: &value}, nil)
			var failed *controlplane.AdminError
			if err != nil && !(errors.As(err, &failed) && failed.Kind == controlplane.KindNotFound) { // it may have ended meanwhile
				return err
			}
		}
		return nil
	})
	return &result, err
}

// embeddedSigner reads the key that a record says it is signed by.
func embeddedSigner(wire []byte) (key [32]byte, ok bool) {
	blob, ok := record.AppendBase64Strict(nil, bytes.TrimPrefix(wire, []byte("v=dmp1;t=bootstrap;")))
	const at = 7 + 8 + 8 // magic, seq, exp (records.md 11)
	if !ok || len(blob) < at+32 {
		return key, false
	}
	return [32]byte(blob[at:]), true
}

func bootstrapShow(i *invocation) error {
	f := i.flags()
	p := &place{i: i}
	p.json(f)
	signerText := f.String("signer", "", "the pinned signer's Ed25519 public `key` in hex")
	var resolvers texts
	f.Var(&resolvers, "resolver", "`IP[:PORT]` to ask, may be given often (the system's)")
	args, err := i.parse(f, 1, 1)
	if err != nil {
		return err
	}
	var pinned [32]byte
	if *signerText != "" {
		if pinned, err = publicKey(*signerText); err != nil {
			return err
		}
	}
	if !record.DNSName(args[0]) {
		return usagef("%q is no domain", args[0])
	}
	if _, bad := heartbeat.ParseServers(resolvers); len(bad) > 0 {
		return usagef("--resolver %s: want IP or IP:port", bad[0])
	}
	dns := &heartbeat.Resolvers{}
	dns.Use(resolvers)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	owner := strings.ToLower(record.BootstrapName(args[0]))
	values, err := dns.TXT(ctx, owner, false)
	if err != nil {
		return fmt.Errorf("%s: %w", owner, err)
	}
	now := clock.NowMs() / 1000
	infos := []*bootstrapInfo{}
	var best *bootstrapInfo
	for _, v := range values {
		info := &bootstrapInfo{Owner: owner, Wire: string(v), Entries: []bootstrapEntry{}}
		infos = append(infos, info)
		signer, ok := pinned, true
		if *signerText == "" {
			signer, ok = embeddedSigner(v)
		}
		var b record.Bootstrap
		if r := b.Verify(v, &signer, args[0], now); !ok || r != record.Accepted {
			info.Problem = r.Error()
			continue
		}
		info.fill(&b)
		if best == nil || info.Seq > best.Seq {
			best = info
		}
	}
	usable := false
	if best != nil {
		best.Taken = true
		for n := range best.Entries {
			e := &best.Entries[n]
			e.Nodes, err = manifestNodes(ctx, dns, e, now)
			if err != nil {
				e.Problem = err.Error()
			}
			usable = usable || err == nil
		}
	}
	if err := p.print(infos, func(w *tabwriter.Writer) { printBootstraps(w, infos) }); err != nil {
		return err
	}
	if !usable {
		return errors.New("a reader finds no cluster here")
	}
	return nil
}

// manifestNodes counts the nodes of the manifest that a reader would take for a cluster.
func manifestNodes(ctx context.Context, dns *heartbeat.Resolvers, e *bootstrapEntry, nowSec int64) (int, error) {
	operator, err := publicKey(e.Operator)
	if err != nil {
		return 0, err
	}
	values, err := dns.TXT(ctx, record.ClusterName(e.Domain), false)
	if err != nil {
		return 0, err
	}
	var best record.Cluster
	var refused record.Refusal
	for _, v := range values {
		var c record.Cluster
		if r := c.Verify(v, &operator, e.Domain, nowSec); r != record.Accepted {
			refused = r
		} else if best.Name == "" || c.Seq > best.Seq {
			best = c
		}
	}
	switch {
	case best.Name == "":
		return 0, fmt.Errorf("no manifest of this operator: %w", refused)
	case len(best.Nodes) == 0:
		return 0, errors.New("its manifest names no node")
	}
	return len(best.Nodes), nil
}

func printBootstraps(w *tabwriter.Writer, infos []*bootstrapInfo) {
	slices.SortStableFunc(infos, func(a, b *bootstrapInfo) int { return cmp.Compare(b.Seq, a.Seq) })
	for _, b := range infos {
		state := "older"
		if b.Taken {
			state = "taken by readers"
		}
		if b.Problem != "" {
			fmt.Fprintf(w, "refused\t%s\t%s\n", b.Problem, quoted(b.Wire))
			continue
		}
		fmt.Fprintf(w, "seq %d\t%s\tends %s, signed by %s\n", b.Seq, state, when(int64(b.Exp)), b.Signer)
		for _, e := range b.Entries {
			how := "manifest not looked up"
			if e.Nodes > 0 {
				how = fmt.Sprintf("%d nodes", e.Nodes)
			} else if e.Problem != "" {
				how = e.Problem
			}
			fmt.Fprintf(w, "  %d\t%s\t%s (operator %s)\n", e.Priority, e.Domain, how, e.Operator)
		}
	}
}
