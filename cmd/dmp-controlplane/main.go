// dmp-controlplane is the HTTP process of a node. `dmpd run` starts it; started by hand it resolves its settings itself.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/dnsmesh/dmpd/controlplane"
	"github.com/dnsmesh/dmpd/internal/config"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/systemd"
)

func main() { os.Exit(run()) }

func run() int {
	c, reload, err := config.Load("dmp-controlplane", config.Control, os.Args[1:], os.Stderr)
	if err != nil {
		if !errors.Is(err, config.ErrHelp) {
			fmt.Fprintln(os.Stderr, "dmp-controlplane:", err)
		}
		return config.ExitCode(err)
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	level, _ := logging.ParseLevel(c.String("LOG_LEVEL"))
	log := logging.Stderr(level, c.String("LOG_FORMAT") == "json").With("plane", "control")
	s, err := controlplane.Start(c, log)
	if err != nil {
		log.Error("the control plane cannot start", "err", err)
		if errors.Is(err, controlplane.ErrCannotRun) {
			return 2
		}
		return 1
	}
	if err := systemd.Notify("READY=1"); err != nil {
		log.Warn("the service manager cannot be told", "err", err)
	}
	for {
		select {
		case err := <-s.Failed():
			log.Error("the control plane cannot go on", "err", err)
			_ = s.Stop()
			return 1
		case sig := <-signals:
			if sig != syscall.SIGHUP {
				if err := s.Stop(); err != nil {
					log.Error("not all was closed in order", "err", err)
					return 1
				}
				return 0
			}
			c, err := reload()
			if err == nil {
				err = s.Reload(c)
			}
			if err != nil {
				log.Error("the new configuration is not taken whole", "err", err)
			}
		}
	}
}
