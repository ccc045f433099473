package main

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/dnsmesh/dmpd/controlplane"
	"github.com/dnsmesh/dmpd/controlplane/heartbeat"
	"github.com/dnsmesh/dmpd/internal/clock"
)

func init() {
	register(&command{name: "peers", args: "[--json]", short: "List the other nodes that this node has heard", run: peers, example: "dmpd peers --json",
		long: "In the order in which the seen graph takes them: nodes at zones that the configuration names, nodes read at their own zone, nodes told of;\nin each group the longest known. While the node is down, what it remembered last."})
}

func peers(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	if _, err := p.parsed(f, 0, 0); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	var infos []controlplane.PeerInfo
	err := (&controlplane.AdminClient{Dir: p.controlDir()}).Call(ctx, "peers.list", nil, &infos)
	if errors.Is(err, controlplane.ErrNoNode) {
		nowMs := clock.NowMs()
		var ps []*heartbeat.Peer
		if ps, err = heartbeat.ReadSeen(p.controlDir(), int(p.config.Int("HEARTBEAT_SEEN_MAX_ROWS")), nowMs); err == nil {
			infos = controlplane.PeerInfos(ps, nowMs)
		}
	}
	if err != nil {
		return err
	}
	return p.print(infos, func(w *tabwriter.Writer) {
		fmt.Fprintln(w, "ENDPOINT\tZONE\tVERSION\tPROVIDER\tHEARD\tHOW\tOPERATOR")
		nowSec := clock.NowMs() / 1000
		for _, n := range infos {
			provider, how := "-", "told by "+n.Via
			if n.Provider {
				provider = "yes"
			}
			if n.FirstHand {
				how = "itself"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d s ago\t%s\t%.16s\n", n.Endpoint, dash(n.Zone), dash(quoted(n.Version)), provider, max(0, nowSec-n.HeardAt), how, n.Operator)
		}
	})
}
