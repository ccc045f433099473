package bench

import (
	"errors"
	"fmt"
)

// labContenders are those that are measured in a lab.
var labContenders = []string{"echo", "dmpd", "dmpd-xdp", "nsd", "nsd-mmsg", "knot", "knot-xdp"}

func startNodeXDP(s *Server, f *field, dir string, workers int) error {
	return startNodeWith(s, f, dir, workers, "DMP_UDP_ENGINE=xdp", "DMP_XDP_INTERFACES="+s.link.device)
}

func startKnotXDP(s *Server, f *field, dir string, workers int) error {
	return startKnotWith(s, f, dir, workers, fmt.Sprintf("xdp:\n    listen: %s@PORT\n", s.link.device))
}

// leaveOut says and writes that a scenario cannot be measured here, if that is what err is about.
func (s *Suite) leaveOut(sc *scenario, err error) error {
	var why *leftOut
	if !errors.As(err, &why) {
		return err
	}
	fmt.Fprintf(s.Progress, "\n%s is left out: %s\n", sc.name, why)
	fmt.Fprintf(s.Out, "\n### %s (`%s`)\n\nLeft out on this machine: %s.\n", sc.title, sc.name, why)
	return nil
}
