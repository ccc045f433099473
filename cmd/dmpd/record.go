package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/dnsmesh/dmpd/controlplane"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/wire"
)

func init() {
	register(
		&command{name: "record list", args: "[NAME] [--all] [--limit N] [--json]", short: "List records, in the order they came", run: recordList,
			long: "With a NAME only those at it and beneath. With --all also what was deleted or has expired.", example: "dmpd record list mesh.example.com --limit 20"},
		&command{name: "record get", args: "NAME [--json]", short: "Print the values at a name", run: recordGet, example: "dmpd record get hello.mesh.example.com"},
		&command{name: "record put", args: "NAME VALUE [--ttl SEC]", short: "Add a TXT value at a name", run: recordPut, long: "Other values at the name stay. The record answers queries when this returns.", example: "dmpd record put hello.mesh.example.com 'v=dmp1;t=test' --ttl 300"},
		&command{name: "record delete", args: "NAME [VALUE] [--every]", short: "Delete one value at a name, or with --every all of them", run: recordDelete, example: "dmpd record delete hello.mesh.example.com 'v=dmp1;t=test'"},
	)
}

// recordInfo is a row as it is printed.
type recordInfo struct {
	Name      string `json:"name"`
	Value     string `json:"value"`
	State     string `json:"state"` // live, expired or deleted
	StoredMs  int64  `json:"stored_ms"`
	ExpiresMs int64  `json:"expires_ms"`
	FeedMs    int64  `json:"feed_ms"`
	Verified  bool   `json:"verified,omitempty"`
	Hash      string `json:"hash"`
}

func infoOf(r *record.Row, nowMs int64) recordInfo {
	state := "live"
	switch {
	case r.Add <= r.Del:
		state = "deleted"
	case r.ExpMs <= nowMs:
		state = "expired"
	}
	return recordInfo{wire.Text(r.Name), string(record.AppendValue(nil, r.RDATA)), state, max(r.Add, r.Del).Ms(), r.ExpMs, r.FeedMs, r.Flags&record.FlagVerified != 0, fmt.Sprintf("%x", r.Hash[:])}
}

func recordName(text string) ([]byte, error) {
	name, err := wire.AppendName(nil, text)
	if err != nil {
		return nil, usagef("%q is no name: %w", text, err)
	}
	return wire.AppendLower(nil, name), nil
}

// errEnough ends a walk.
var errEnough = errors.New("enough")

func recordList(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	all := f.Bool("all", false, "also what was deleted or has expired")
	limit := f.Int("limit", 0, "at most this many; 0: all")
	args, err := p.parsed(f, 0, 1)
	if err != nil {
		return err
	}
	if *limit < 0 {
		return usagef("--limit %d: 0 for all, or more", *limit)
	}
	var parent []byte
	if len(args) == 1 {
		if parent, err = recordName(args[0]); err != nil {
			return err
		}
	}
	v, err := openView(p.dataDir())
	if err != nil {
		return err
	}
	defer v.close()
	nowMs := clock.NowMs()
	infos := []recordInfo{}
	err = v.each(func(r *record.Row) error {
		if !*all && !r.Live(nowMs) || parent != nil && !wire.IsSubdomain(r.Name, parent) {
			return nil
		}
		infos = append(infos, infoOf(r, nowMs))
		if *limit > 0 && len(infos) == *limit {
			return errEnough
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	return p.printRecords(infos, *all)
}

func (p *place) printRecords(infos []recordInfo, all bool) error {
	return p.print(infos, func(w *tabwriter.Writer) {
		nowMs := clock.NowMs()
		for _, r := range infos {
			left := fmt.Sprintf("%d s", (r.ExpiresMs-nowMs+999)/1000)
			if r.State != "live" {
				left = r.State
			}
			fmt.Fprintf(w, "%s\t%s\t%s\n", r.Name, left, quoted(r.Value))
		}
	})
}

// quoted shows a value on one line whatever it holds.
func quoted(v string) string {
	if strings.ContainsFunc(v, func(r rune) bool { return r < 0x20 || r == 0x7f || r == 0xfffd }) {
		return fmt.Sprintf("%q", v)
	}
	return v
}

func recordGet(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	args, err := p.parsed(f, 1, 1)
	if err != nil {
		return err
	}
	name, err := recordName(args[0])
	if err != nil {
		return err
	}
	v, err := openView(p.dataDir())
	if err != nil {
		return err
	}
	defer v.close()
	rows, err := v.live(name, clock.NowMs())
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		return fmt.Errorf("nothing is stored at %s", wire.Text(name))
	}
	infos := []recordInfo{}
	for _, r := range rows {
		infos = append(infos, infoOf(r, clock.NowMs()))
	}
	return p.printRecords(infos, false)
}

// live gives the live rows at a name, oldest first.
func (v *view) live(name []byte, nowMs int64) ([]*record.Row, error) {
	var rows []*record.Row
	err := v.name(name, func(r *record.Row) error {
		if r.Live(nowMs) {
			c := *r
			rows = append(rows, &c)
		}
		return nil
	})
	slices.SortFunc(rows, func(a, b *record.Row) int {
		return cmp.Or(cmp.Compare(a.Add, b.Add), bytes.Compare(a.Hash[:], b.Hash[:]))
	})
	return rows, err
}

func recordPut(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	ttl := f.Uint("ttl", 300, "`seconds` that it lives")
	args, err := p.parsed(f, 2, 2)
	if err != nil {
		return err
	}
	const ttlMax = 1<<31 - 1 // RFC 2181 section 8
	if limit := cmp.Or(p.config.Int("MAX_TTL"), ttlMax); *ttl == 0 || int64(*ttl) > limit {
		return usagef("--ttl %d: from 1 to %d (DMP_MAX_TTL)", *ttl, limit)
	}
	var r controlplane.RecordResult
	if err := p.call("record.put", controlplane.RecordArgs{Name: args[0], Value: &args[1], TTLSec: uint32(*ttl)}, &r); err != nil {
		return err
	}
	_, err = fmt.Fprintf(i.out, "%s: %s\n", args[0], r.Outcome)
	return err
}

func recordDelete(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	every := f.Bool("every", false, "delete all values at the name")
	args, err := p.parsed(f, 1, 2)
	if err != nil {
		return err
	}
	if *every == (len(args) == 2) {
		return usagef("give the value to delete, or --every for all values at %s", args[0])
	}
	a := controlplane.RecordArgs{Name: args[0]}
	if !*every {
		a.Value = &args[1]
	}
	var r controlplane.RecordResult
	if err := p.call("record.delete", a, &r); err != nil {
		return err
	}
	_, err = fmt.Fprintf(i.out, "%s: %d deleted\n", args[0], r.Applied)
	return err
}
