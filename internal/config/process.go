package config

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
)

// Version is set by the build (make build); a plain `go build` says dev.
var Version = "dev"

// BuildID tells two builds apart: the planes share formats, so that dmpd restarts both when their build ids differ.
func BuildID() string {
	id := Version + " " + runtime.Version()
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				id += " " + s.Value
			}
			if s.Key == "-tags" && s.Value != "" {
				id += " tags=" + s.Value
			}
		}
	}
	return id
}

// ErrHelp says that help or the version was asked for and printed: the process ends with code 0.
var ErrHelp = flag.ErrHelp

// Load gives the configuration of this process: what dmpd handed over, or, for one started by hand, flags, environment,
// file and defaults; what concerns the other plane alone is then not looked at. reload reads it again, for SIGHUP. Warnings are printed to errOut.
func Load(program string, plane Plane, args []string, errOut io.Writer) (c *Config, reload func() (*Config, error), err error) {
	if len(args) == 1 && args[0] == "--version" {
		fmt.Println(program, BuildID())
		return nil, nil, ErrHelp
	}
	if os.Getenv(HandoffEnv) != "" {
		f := os.NewFile(HandoffFD, "settings")
		if f == nil {
			return nil, nil, fmt.Errorf("config: %s is set, but descriptor %d is not open: it is for dmpd alone to set", HandoffEnv, HandoffFD)
		}
		reload = func() (*Config, error) { return Read(f) }
		c, err = reload()
		return c, reload, err
	}
	flags := flag.NewFlagSet(program, flag.ContinueOnError)
	flags.SetOutput(errOut)
	in := Input{Environ: os.Environ(), ReadFile: os.ReadFile}
	in.Bind(flags)
	if err := flags.Parse(args); err != nil {
		return nil, nil, err
	}
	if flags.NArg() > 0 {
		return nil, nil, fmt.Errorf("%s takes no arguments, only flags; it was given %q", program, flags.Args())
	}
	reload = func() (*Config, error) {
		in.plane = plane
		c, warnings, errs := Resolve(in)
		if len(warnings) > 0 {
			fmt.Fprintln(errOut, "warning:", strings.ReplaceAll(warnings.Error(), "\n", "\nwarning: "))
		}
		if len(errs) > 0 {
			return nil, errs
		}
		return c, nil
	}
	c, err = reload()
	return c, reload, err
}

// Bind makes a flag of every setting, and --config for the file. Values stand in in.Flags once the flags are parsed.
func (in *Input) Bind(flags *flag.FlagSet) {
	in.Flags = map[string]string{}
	flags.StringVar(&in.File, "config", "", "path of a TOML `file` of settings")
	for i := range settings {
		s := &settings[i]
		doc := s.Doc
		if s.Default != "" {
			doc += fmt.Sprintf(" (default %s)", s.Default)
		}
		if s.Kind == Bool {
			flags.BoolFunc(FlagName(s.Name), doc, func(v string) error { in.Flags[s.Name] = v; return nil })
			continue
		}
		flags.Func(FlagName(s.Name), "`value`: "+doc, func(v string) error { in.Flags[s.Name] = v; return nil })
	}
}

// ExitCode is what a binary ends with after Load failed: 0 after help, 2 for a configuration that cannot run.
func ExitCode(err error) int {
	if errors.Is(err, ErrHelp) {
		return 0
	}
	return 2
}

// ReloadChanges lists the settings that differ between two configurations and cannot be taken over without a restart.
func ReloadChanges(old, new *Config) []string {
	var names []string
	for i := range settings {
		if s := &settings[i]; !s.Reload && old.values[s.Name] != new.values[s.Name] {
			names = append(names, "DMP_"+s.Name)
		}
	}
	return names
}
