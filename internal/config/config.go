// Package config resolves the settings of a node, one precedence for all binaries: flag, environment, TOML file, default
// (design.md part 1). All that is wrong is reported at once, each with its remedy. dmpd resolves once and hands the result
// to its planes through a file descriptor (handoff.go); the data plane's part has no secrets of the control plane.
package config

import (
	"fmt"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"
)

// Config holds a value for every setting of the table, checked, in the setting's canonical text. It is immutable.
type Config struct {
	values map[string]string
	source map[string]string // "flag --x", "environment", "file x", "default"
}

// Input is where settings come from.
type Input struct {
	Flags    map[string]string // by setting name, DNS_PORT
	Environ  []string          // KEY=VALUE, as os.Environ gives it
	File     string            // path of a TOML file; empty: DMP_CONFIG of the environment, or none
	ReadFile func(string) ([]byte, error)

	plane Plane // of a plane that is started alone; 0: both
}

// Problem is one thing that is wrong.
type Problem struct {
	Setting string // DMP_DNS_PORT
	Value   string // empty for a secret
	Text    string // what is wrong
	Remedy  string // what to do
}

func (p Problem) String() string {
	s := p.Setting
	if p.Value != "" {
		s += "=" + strconv.Quote(p.Value)
	}
	s += ": " + p.Text
	if p.Remedy != "" {
		s += ". " + p.Remedy
	}
	return s
}

// Problems is everything that is wrong; it is an error when it is not empty.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// of leaves out what concerns the other plane alone.
func (ps Problems) of(plane Plane) (kept Problems) {
	for _, p := range ps {
		if s := byName[strings.TrimPrefix(p.Setting, "DMP_")]; s == nil || s.Plane&plane != 0 {
			kept = append(kept, p)
		}
	}
	return kept
}

func (ps *Problems) add(setting, value, text, remedy string) {
	if s := byName[setting]; s != nil && s.Secret {
		value = ""
	}
	*ps = append(*ps, Problem{"DMP_" + setting, value, text, remedy})
}

// Resolve reads all sources. With a non-empty errs there is no Config. warnings tell of what was let pass.
func Resolve(in Input) (c *Config, warnings, errs Problems) {
	env, unknown := splitEnviron(in.Environ)
	for _, name := range unknown {
		errs.add(name, "", "no such setting", didYouMean(name)+"Unset it, or see `dmpd check --settings` for all names")
	}
	path := in.File
	if path == "" {
		path = env["CONFIG"]
	}
	var file map[string]string
	if path != "" {
		file = readFile(in, path, &errs)
	}
	c = &Config{values: map[string]string{}, source: map[string]string{}}
	for i := range settings {
		s := &settings[i]
		value, source := pick(s, in.Flags, env, file, path, &warnings)
		canonical, err := s.parse(value)
		if err != nil {
			if s.Lenient {
				warnings.add(s.Name, value, err.Error(), "The default "+strconv.Quote(s.Default)+" is used")
				canonical, source = s.Default, "default"
			} else {
				errs.add(s.Name, value, err.Error(), "Set it to "+s.expects()+", or unset it for the default "+strconv.Quote(s.Default))
				continue
			}
		}
		c.values[s.Name], c.source[s.Name] = canonical, source
	}
	if len(errs) > 0 {
		return nil, warnings, errs
	}
	c.check(&warnings, &errs)
	if in.plane != 0 {
		warnings, errs = warnings.of(in.plane), errs.of(in.plane)
	}
	if len(errs) > 0 {
		return nil, warnings, errs
	}
	return c, warnings, nil
}

// splitEnviron takes what begins with DMP_; a name that nobody knows is an error, since a misspelt limit is no limit.
func splitEnviron(environ []string) (env map[string]string, unknown []string) {
	env = map[string]string{}
	for _, line := range environ {
		name, value, _ := strings.Cut(line, "=")
		name, ok := strings.CutPrefix(name, "DMP_")
		if !ok {
			continue
		}
		if value = strings.TrimSpace(value); value == "" {
			continue // an empty line of an env file means unset
		}
		if !known(name) {
			unknown = append(unknown, name)
			continue
		}
		env[name] = value
	}
	sort.Strings(unknown)
	return env, unknown
}

func known(name string) bool {
	if byName[name] != nil {
		return true
	}
	for _, o := range other {
		if o == name {
			return true
		}
	}
	for i := range settings {
		for _, a := range settings[i].Aliases {
			if a == name {
				return true
			}
		}
	}
	return false
}

func pick(s *Setting, flags, env, file map[string]string, path string, warnings *Problems) (value, source string) {
	if v, ok := flags[s.Name]; ok {
		return v, "flag --" + FlagName(s.Name)
	}
	for _, from := range []struct {
		values map[string]string
		source string
	}{{env, "environment"}, {file, "file " + path}} {
		found := ""
		for _, name := range append([]string{s.Name}, s.Aliases...) {
			v, ok := from.values[name]
			if !ok {
				continue
			}
			if found != "" {
				if !s.Secret { // the reference says nothing of a second operator token
					warnings.add(name, v, "is not used, since DMP_"+found+" is set too", "Remove one of them")
				}
				continue
			}
			found, value, source = name, v, from.source
		}
		if found != "" {
			return value, source
		}
	}
	return s.Default, "default"
}

// FlagName is a setting's name as a flag: dns-port.
func FlagName(name string) string { return strings.ToLower(strings.ReplaceAll(name, "_", "-")) }

// parse checks a value and gives its canonical text.
func (s *Setting) parse(v string) (string, error) {
	v = strings.TrimSpace(v)
	if strings.ContainsAny(v, "\n\r\x00") {
		return "", fmt.Errorf("holds a line break or NUL")
	}
	if v == "" && s.Kind != Bool {
		return "", nil
	}
	switch s.Kind {
	case Int:
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return "", fmt.Errorf("not a whole number")
		}
		return strconv.FormatInt(n, 10), s.inRange(float64(n))
	case Float:
		f, err := strconv.ParseFloat(v, 64)
		if err != nil || f != f {
			return "", fmt.Errorf("not a number")
		}
		return v, s.inRange(f)
	case Bool:
		switch strings.ToLower(v) {
		case "1", "true", "yes", "on":
			return "1", nil
		case "", "0", "false", "no", "off":
			return "0", nil
		}
		return "", fmt.Errorf("neither on nor off")
	case List:
		var items []string
		for _, item := range strings.Split(v, ",") {
			if item = strings.TrimSpace(item); item != "" {
				items = append(items, item)
			}
		}
		return strings.Join(items, ","), nil
	case Enum:
		for _, e := range s.Values {
			if strings.EqualFold(v, e) {
				return e, nil
			}
		}
		return "", fmt.Errorf("not one of its values")
	case Hex32:
		if len(v) != 64 || strings.Trim(strings.ToLower(v), "0123456789abcdef") != "" {
			return "", fmt.Errorf("not 64 hex digits")
		}
		return strings.ToLower(v), nil
	}
	return v, nil
}

func (s *Setting) inRange(f float64) error {
	if f < s.Min || f > s.Max {
		return fmt.Errorf("outside %s to %s", number(s.Min), number(s.Max))
	}
	return nil
}

func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

func (s *Setting) expects() string {
	switch s.Kind {
	case Int:
		return "a whole number from " + number(s.Min) + " to " + number(s.Max)
	case Float:
		return "a number from " + number(s.Min) + " to " + number(s.Max)
	case Bool:
		return "1 or 0"
	case Enum:
		return "one of " + strings.Join(s.Values, ", ")
	case Hex32:
		return "64 hex digits"
	}
	return "text"
}

// didYouMean finds a name within two edits.
func didYouMean(name string) string {
	best, bestName := 3, ""
	for i := range settings {
		if d := distance(name, settings[i].Name); d < best {
			best, bestName = d, settings[i].Name
		}
	}
	if bestName == "" {
		return ""
	}
	return "Did you mean DMP_" + bestName + "? "
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// Reading values. A name that is not in the table is a mistake of ours and panics.

func (c *Config) get(name string, kinds ...Kind) string {
	s := byName[name]
	if s == nil {
		panic("config: no setting " + name)
	}
	for _, k := range kinds {
		if s.Kind == k {
			return c.values[name]
		}
	}
	panic("config: " + name + " is read as another kind")
}

// String gives the text of a setting of any kind, canonical.
func (c *Config) String(name string) string {
	return c.get(name, String, Int, Float, Bool, List, Enum, Hex32)
}

// Int gives a whole number; 0 if it is empty.
func (c *Config) Int(name string) int64 {
	n, _ := strconv.ParseInt(c.get(name, Int), 10, 64)
	return n
}

// Float gives a number; 0 if it is empty.
func (c *Config) Float(name string) float64 {
	f, _ := strconv.ParseFloat(c.get(name, Float), 64)
	return f
}

func (c *Config) Bool(name string) bool { return c.get(name, Bool) == "1" }

func (c *Config) List(name string) []string {
	v := c.get(name, List)
	if v == "" {
		return nil
	}
	return strings.Split(v, ",")
}

// Seconds gives a number of seconds as a duration.
func (c *Config) Seconds(name string) time.Duration {
	return time.Duration(c.Float(name) * float64(time.Second))
}

// Source says where a value came from, for `dmpd check`.
func (c *Config) Source(name string) string { return c.source[name] }

// IsSet says whether a value is not the default's.
func (c *Config) IsSet(name string) bool { return c.source[name] != "default" }

// What is derived from several settings.

// zoneChain is the order in which the served zone is looked for (dns.md 10).
var zoneChain = []string{"SERVED_ZONE", "CLAIM_PROVIDER_ZONE", "CLUSTER_BASE_DOMAIN", "DOMAIN", "NODE_HOSTNAME"}

// Zone is the served zone, lower case without the trailing dot; empty if there is none.
func (c *Config) Zone() string {
	for _, name := range zoneChain {
		if z := strings.TrimRight(strings.ToLower(c.String(name)), "."); z != "" {
			return z
		}
	}
	return ""
}

// StateDir is the folder of data/ and control/.
func (c *Config) StateDir() string {
	if d := c.String("STATE_DIR"); d != "" {
		return d
	}
	return filepath.Dir(c.String("DB_PATH"))
}

// AuthMode is who may write over HTTP (http.md 3).
func (c *Config) AuthMode() string {
	if m := c.String("AUTH_MODE"); m != "" {
		return m
	}
	if c.String("OPERATOR_TOKEN") != "" {
		return "legacy"
	}
	return "open"
}

// LogRetain is how long covered log segments are kept.
func (c *Config) LogRetain() time.Duration {
	d, _ := time.ParseDuration(c.String("LOG_RETAIN"))
	return d
}
