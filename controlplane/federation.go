package controlplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dnsmesh/dmpd/controlplane/heartbeat"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/config"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/wire"
)

// startHeartbeat announces the node, if that is wanted. What keeps it from that is logged and nothing more: a node serves its users
// without a heartbeat too (federation.md 4).
func (s *Server) startHeartbeat(c *config.Config) {
	if !c.Bool("HEARTBEAT_ENABLED") {
		return
	}
	endpoint, path := c.String("HEARTBEAT_SELF_ENDPOINT"), c.String("HEARTBEAT_OPERATOR_KEY_PATH")
	if endpoint == "" || path == "" {
		s.log.Error("no heartbeat: DMP_HEARTBEAT_SELF_ENDPOINT and DMP_HEARTBEAT_OPERATOR_KEY_PATH are both needed")
		return
	}
	key, err := heartbeat.LoadKey(path, s.log)
	if err != nil {
		s.log.Error("no heartbeat", "err", err)
		return
	}
	version := cmp.Or(c.String("HEARTBEAT_VERSION"), config.Version[:min(len(config.Version), 32)])
	w, err := heartbeat.Start(heartbeat.Options{Key: key, Endpoint: endpoint, Version: version, Zone: s.zone, Records: ownRecords{s},
		Dir: s.controlDir, SeenMax: int(c.Int("HEARTBEAT_SEEN_MAX_ROWS")), Settings: s.heartbeatSettings, Log: s.log})
	if err != nil {
		s.log.Error("no heartbeat", "err", err)
		return
	}
	s.heart = w
	operator := w.Operator()
	s.log.Info("heartbeat", "endpoint", endpoint, "operator", fmt.Sprintf("%x", operator), "zone", s.zone)
}

func (s *Server) heartbeatSettings() heartbeat.Settings {
	c := s.config.Load()
	h := heartbeat.Settings{Interval: c.Seconds("HEARTBEAT_INTERVAL_SECONDS"), TTLSec: c.Int("HEARTBEAT_TTL_SECONDS"), Seeds: c.List("HEARTBEAT_SEEDS"), Peers: c.List("SYNC_PEERS"),
		Resolvers: c.List("HEARTBEAT_DNS_RESOLVERS"), DNSSEC: c.Bool("HEARTBEAT_DNSSEC_REQUIRED"), MaxPeers: int(c.Int("HEARTBEAT_MAX_PEERS")),
		Retention: time.Duration(c.Float("HEARTBEAT_RETENTION_HOURS") * float64(time.Hour))}
	if !c.Bool("HEARTBEAT_PUBLIC_SEED_URLS_DISABLED") {
		h.ListURLs = c.List("HEARTBEAT_PUBLIC_SEED_URLS")
	}
	if c.Bool("CLAIM_PROVIDER") && c.Bool("DNS_UPDATE_ENABLED") && s.zone != "" {
		h.Capabilities |= record.CapClaimProvider // only when a claim would really be taken
	}
	return h
}

// ownRecords lets the heartbeat write records of the node itself.
type ownRecords struct{ s *Server }

var errBehind = errors.New("the records are not read yet")

func (o ownRecords) Values(name string) ([][]byte, error) {
	key, err := wire.AppendName(nil, name)
	if err != nil {
		return nil, err
	}
	if _, _, behind, _ := o.s.tail.position(); behind {
		return nil, errBehind
	}
	values, err := o.s.tail.get(key, clock.NowMs())
	return slices.Clone(values), err
}

// Change does not replace the RRset: nodes of a cluster share the names.
func (o ownRecords) Change(ctx context.Context, name string, add, remove [][]byte, ttlSec int64) error {
	key, err := wire.AppendName(nil, name)
	if err != nil {
		return err
	}
	r := &record.Request{Source: record.SourceSelf}
	for _, v := range remove {
		r.Ops = append(r.Ops, record.Op{Kind: record.OpDelete, Name: key, RDATA: record.AppendRDATA(nil, v), MayDelete: true})
	}
	for _, v := range add {
		r.Ops = append(r.Ops, record.Op{Kind: record.OpAdd, Name: key, RDATA: record.AppendRDATA(nil, v), TTLSec: uint32(ttlSec), MayDelete: true, CapExempt: true, Verified: true})
	}
	if len(r.Ops) == 0 {
		return nil
	}
	outcome, err := o.s.requests.do(ctx, r)
	if err == nil && !outcome.Code.OK() {
		err = fmt.Errorf("the store refused: %v", outcome.Code)
	}
	return err
}
