// dmpd is what an operator types: it runs a node and looks after it. Each command has --help with an example; those that
// print data have --json.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/dnsmesh/dmpd/internal/config"
)

// Exit codes, the same for every command.
const (
	exitOK     = 0
	exitFailed = 1 // it was tried and failed
	exitUsage  = 2 // it could not even be tried: flags, configuration, state folder, another node in the way
)

// command is one verb.
type command struct {
	name    string // may have two words, "tsig list"
	args    string
	short   string
	long    string
	example string
	run     func(*invocation) error
}

// invocation is what a command is run with.
type invocation struct {
	*command
	args   []string
	out    io.Writer
	errOut io.Writer
	in     io.Reader
	seen   func(*flag.FlagSet) // set by whoever wants the flags of a command that is run with --help alone
}

// usageError is an error that ends with exitUsage.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// commands is filled by the files of this package, in the order of the help text.
var commands []*command

func register(cs ...*command) { commands = append(commands, cs...) }

func main() {
	os.Exit(execute(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func execute(args []string, in io.Reader, out, errOut io.Writer) int {
	if len(args) == 0 {
		help(errOut)
		return exitUsage
	}
	switch args[0] {
	case "help", "--help", "-h":
		if c, _ := find(args[1:]); c != nil {
			return execute(append(strings.Fields(c.name), "--help"), in, out, errOut)
		}
		if len(args) > 1 && group(out, args[1]) {
			return exitOK
		}
		help(out)
		return exitOK
	case "--version":
		args = []string{"version"}
	}
	c, rest := find(args)
	if c == nil && len(args) == 2 && slices.Contains([]string{"-h", "-help", "--help"}, args[1]) && group(out, args[0]) {
		return exitOK
	}
	if c == nil && (len(args) == 1 || strings.HasPrefix(args[1], "-")) && group(errOut, args[0]) {
		return exitUsage
	}
	if c == nil {
		fmt.Fprintf(errOut, "dmpd: no command %q. `dmpd help` lists them.\n", strings.Join(args[:min(2, len(args))], " "))
		return exitUsage
	}
	err := c.run(&invocation{command: c, args: rest, out: out, errOut: errOut, in: in})
	var usage usageError
	var problems config.Problems
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return exitOK
	case errors.As(err, &problems):
		fmt.Fprintln(errOut, "dmpd: this configuration cannot run:")
		for _, p := range problems {
			fmt.Fprintln(errOut, "  "+p.String())
		}
		return exitUsage
	}
	fmt.Fprintln(errOut, "dmpd:", err)
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailed
}

// find takes the longest command that args begin with.
func find(args []string) (*command, []string) {
	for words := min(2, len(args)); words > 0; words-- {
		name := strings.Join(args[:words], " ")
		for _, c := range commands {
			if c.name == name {
				return c, args[words:]
			}
		}
	}
	return nil, nil
}

func help(w io.Writer) {
	fmt.Fprint(w, "dmpd is a DNS Mesh Protocol node.\n\nUsage: dmpd COMMAND [flags]\n\n")
	for _, c := range commands {
		fmt.Fprintf(w, "  %-22s %s\n", strings.TrimSpace(c.name), c.short)
	}
	fmt.Fprint(w, "\n`dmpd help COMMAND` or `dmpd COMMAND --help` says more. Settings: `dmpd check --settings`.\n")
}

// group lists the commands that begin with a word, if any do.
func group(w io.Writer, word string) (any bool) {
	for _, c := range commands {
		if verb, ok := strings.CutPrefix(c.name, word+" "); ok {
			if !any {
				fmt.Fprintf(w, "Usage: dmpd %s COMMAND [flags]\n\n", word)
			}
			any = true
			fmt.Fprintf(w, "  %-22s %s\n", verb, c.short)
		}
	}
	return any
}

func (c *command) help(w io.Writer) {
	fmt.Fprintf(w, "Usage: dmpd %s%s\n\n%s.\n", c.name, prefixed(" ", c.args), c.short)
	if c.long != "" {
		fmt.Fprintf(w, "\n%s\n", c.long)
	}
	if c.example != "" {
		fmt.Fprintf(w, "\nExample:\n  %s\n", strings.ReplaceAll(c.example, "\n", "\n  "))
	}
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

// flags makes the flag set of a command; its help has the command's text before the flags.
func (i *invocation) flags() *flag.FlagSet {
	f := flag.NewFlagSet("dmpd "+i.name, flag.ContinueOnError)
	f.SetOutput(i.errOut)
	f.Usage = func() {
		if i.seen != nil {
			i.seen(f)
			return
		}
		f.SetOutput(i.out)
		i.help(i.out)
		fmt.Fprintln(i.out, "\nFlags:")
		f.PrintDefaults()
	}
	return f
}

// parse parses the flags and checks the number of arguments; flags may stand before and after them.
func (i *invocation) parse(f *flag.FlagSet, least, most int) ([]string, error) {
	var args []string
	rest := i.args
	for {
		if err := f.Parse(rest); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, usageError{err}
		}
		if f.NArg() == 0 {
			break
		}
		args = append(args, f.Arg(0))
		rest = f.Args()[1:]
	}
	if len(args) < least || len(args) > most {
		return nil, usagef("`dmpd %s%s` was given %d arguments", i.name, prefixed(" ", i.command.args), len(args))
	}
	return args, nil
}

// resolve reads the configuration with the flags of f already parsed into in, and prints warnings.
func (i *invocation) resolve(in config.Input) (*config.Config, error) {
	c, warnings, errs := config.Resolve(in)
	for _, w := range warnings {
		fmt.Fprintln(i.errOut, "dmpd: warning:", w)
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return c, nil
}

func input() config.Input { return config.Input{Environ: os.Environ(), ReadFile: os.ReadFile} }
