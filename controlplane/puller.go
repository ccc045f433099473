package controlplane

import "github.com/dnsmesh/dmpd/controlplane/antientropy"

// newPuller makes what reads from peers.
func newPuller(o antientropy.PullerOptions) (antientropy.Runner, error) {
	return antientropy.NewPuller(o), nil
}
