package config

import (
	"fmt"
	"io"
	"strings"
)

// The hand-over from dmpd to its planes: lines NAME=VALUE in the order of the table, in a file descriptor that the child
// inherits (a memfd, so that nothing of it stands in an environment that others can read, or on a disk). The value is
// canonical text and holds no line break. A plane is given its own settings only.

// HandoffFD is the descriptor that a plane finds its settings on, and HandoffEnv the variable that says so.
const (
	HandoffFD  = 3
	HandoffEnv = "DMP_HANDOFF"
)

// handoffMax bounds what a plane reads: all settings together are a few kilobytes.
const handoffMax = 1 << 20

// For gives the lines for one plane.
func (c *Config) For(plane Plane) []byte {
	var b strings.Builder
	for i := range settings {
		if s := &settings[i]; s.Plane&plane != 0 {
			fmt.Fprintf(&b, "%s=%s\n", s.Name, c.values[s.Name])
		}
	}
	return []byte(b.String())
}

// Read takes the lines that For wrote. What is not given to this plane has its default.
func Read(r io.ReaderAt) (*Config, error) {
	data, err := io.ReadAll(io.NewSectionReader(r, 0, handoffMax))
	if err != nil {
		return nil, fmt.Errorf("config: reading what dmpd handed over: %w", err)
	}
	c := &Config{values: map[string]string{}, source: map[string]string{}}
	for i := range settings {
		c.values[settings[i].Name], c.source[settings[i].Name] = settings[i].Default, "default"
	}
	for line := range strings.Lines(string(data)) {
		name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		s := byName[name]
		if !ok || s == nil {
			return nil, fmt.Errorf("config: dmpd handed over a line that is no setting of this build: are both of one version?")
		}
		if value, err = s.parse(value); err != nil {
			return nil, fmt.Errorf("config: DMP_%s: %w", name, err)
		}
		c.values[name], c.source[name] = value, "dmpd"
	}
	return c, nil
}
