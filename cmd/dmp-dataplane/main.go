// dmp-dataplane is the DNS process of a node. `dmpd run` starts it; started by hand it resolves its settings itself.
package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/dnsmesh/dmpd/dataplane"
	"github.com/dnsmesh/dmpd/dataplane/answer"
	"github.com/dnsmesh/dmpd/dataplane/store"
	"github.com/dnsmesh/dmpd/dataplane/update"
	"github.com/dnsmesh/dmpd/dataplane/xdp"
	"github.com/dnsmesh/dmpd/internal/config"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/systemd"
	"github.com/dnsmesh/dmpd/internal/wire"
)

func main() { os.Exit(run()) }

func run() int {
	c, reload, err := config.Load("dmp-dataplane", config.Data, os.Args[1:], os.Stderr)
	if err != nil {
		if !errors.Is(err, config.ErrHelp) {
			fmt.Fprintln(os.Stderr, "dmp-dataplane:", err)
		}
		return config.ExitCode(err)
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	level, _ := logging.ParseLevel(c.String("LOG_LEVEL"))
	log := logging.Stderr(level, c.String("LOG_FORMAT") == "json").With("plane", "data")
	set, err := settings(c)
	if err != nil {
		log.Error("the configuration cannot run", "err", err)
		return 2
	}
	durability, _ := journal.ParseDurability(c.String("DURABILITY"))
	var interfaces []string
	if c.String("UDP_ENGINE") == "xdp" {
		interfaces = c.List("XDP_INTERFACES")
	}
	n, err := dataplane.Start(dataplane.Config{
		StateDir: c.StateDir(), Build: config.BuildID(), Hosts: c.List("DNS_HOST"), Port: int(c.Int("DNS_PORT")), Loops: int(c.Int("DNS_LOOPS")),
		TCPTotal: max(8*int(c.Int("DNS_MAX_CONCURRENCY")), 256), Workers: int(c.Int("CLAIM_WORKERS")), Durability: durability, Log: log, Settings: set,
		XDP: interfaces, XDPMode: xdp.Mode(c.String("XDP_MODE")),
	})
	if err != nil {
		log.Error("the data plane cannot start", "err", err)
		// Damage is not mended by a restart either.
		if errors.Is(err, dataplane.ErrCannotRun) || errors.Is(err, journal.ErrCorrupt) {
			return 2
		}
		return 1
	}
	if err := systemd.Notify("READY=1"); err != nil {
		log.Warn("the service manager cannot be told", "err", err)
	}
	for sig := range signals {
		if sig != syscall.SIGHUP {
			break
		}
		c, err := reload()
		if err == nil {
			set, err = settings(c)
		}
		if err != nil {
			log.Error("the new configuration is not taken", "err", err)
			continue
		}
		n.Reload(set)
		log.Info("configuration read again")
	}
	if err := n.Stop(); err != nil {
		log.Error("not all was closed in order", "err", err)
		return 1
	}
	return 0
}

// settings maps the configuration to what the data plane takes over on a reload.
func settings(c *config.Config) (s dataplane.Settings, err error) {
	name := func(setting, text string) []byte {
		if text == "" {
			return nil
		}
		b, e := wire.AppendName(nil, text)
		if e != nil {
			err = errors.Join(err, fmt.Errorf("DMP_%s=%q is not a domain name", setting, text))
		}
		return b
	}
	s.Zone = answer.Zone{Apex: name("SERVED_ZONE", c.Zone()), NS: name("DNS_APEX_NS", c.String("DNS_APEX_NS")),
		RName: name("DNS_APEX_SOA_RNAME", strings.Replace(c.String("DNS_APEX_SOA_RNAME"), "@", ".", 1)), TTLSec: uint32(c.Int("DNS_TTL"))}
	if a, e := netip.ParseAddr(c.String("DNS_APEX_A")); e == nil {
		s.Zone.A = a.AsSlice()
	}
	if a, e := netip.ParseAddr(c.String("DNS_APEX_AAAA")); e == nil {
		s.Zone.AAAA = a.AsSlice()
	}
	if id := c.String("DNS_NSID"); id != "" {
		s.Zone.NSID = []byte(id)
	}
	s.Policy = update.Policy{Enabled: c.Bool("DNS_UPDATE_ENABLED"), ValueMax: int(c.Int("MAX_VALUE_BYTES")), TTLMaxSec: c.Int("MAX_TTL"), Provider: c.Bool("CLAIM_PROVIDER"),
		Receiver: c.Bool("RECEIVER_CLAIM_NOTIFICATIONS"), ClaimLifeSec: c.Int("CLAIM_MAX_TTL")}
	switch c.String("UPDATE_PREREQUISITES") {
	case "on":
		s.Policy.Prereqs = update.PrereqsOn
	case "off":
		s.Policy.Prereqs = update.PrereqsOff
	}
	s.Store = store.Limits{ValuesMax: int(c.Int("MAX_VALUES_PER_NAME")), RecordsMax: c.Int("MAX_RECORDS"), BytesMax: c.Int("MAX_BYTES"), WriterRecordsMax: int(c.Int("MAX_WRITER_RECORDS"))}
	s.RetainMs = c.LogRetain().Milliseconds()
	s.Rate, s.Burst, s.RRLRate, s.TCPPerIP = c.Float("DNS_RATE"), c.Float("DNS_BURST"), int(c.Int("RRL_RATE")), int(c.Int("DNS_TCP_PER_IP"))
	s.ClaimRate, s.ClaimBurst = c.Float("CLAIM_RATE_PER_USER_PER_SEC"), c.Float("CLAIM_RATE_BURST")
	if s.TombstoneSec = c.Int("MAX_TTL"); s.TombstoneSec <= 0 {
		s.TombstoneSec = 30 * 86400 // without a limit: a month, the longest life that a record of the protocol has
	}
	return s, err
}
