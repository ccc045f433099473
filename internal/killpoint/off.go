//go:build !killpoints

package killpoint

// Hit marks a step.
func Hit(string) {}
