package main

import (
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/dnsmesh/dmpd/internal/config"
)

// Completion and the manual pages are made from the table of commands, so that they cannot fall behind it.
func init() {
	register(
		&command{name: "completion", args: "bash|zsh|fish", short: "Print a completion script for a shell", run: completion, example: "source <(dmpd completion bash)"},
		&command{name: "man", args: "[DIR]", short: "Print the manual page, or write one page a command into a folder", run: man, example: "dmpd man /usr/local/share/man/man1 && man dmpd-tsig-mint"},
	)
}

var flagWord = regexp.MustCompile(`--[a-z][a-z-]*`)

// words are what may follow a first word: second words, then flags.
func words() (firsts []string, after map[string][]string) {
	after = map[string][]string{}
	for _, c := range commands {
		first, second, two := strings.Cut(c.name, " ")
		if !slices.Contains(firsts, first) {
			firsts = append(firsts, first)
		}
		if two {
			after[first] = append(after[first], second)
		}
		flags := flagWord.FindAllString(c.args, -1)
		if c.name == "run" || c.name == "check" {
			for _, s := range config.Settings() {
				flags = append(flags, "--"+config.FlagName(s.Name))
			}
		}
		after[c.name] = append(after[c.name], append(flags, "--help")...)
	}
	slices.Sort(firsts)
	return firsts, after
}

func completion(i *invocation) error {
	args, err := i.parse(i.flags(), 1, 1)
	if err != nil {
		return err
	}
	firsts, after := words()
	var keys []string
	for k := range after {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	switch args[0] {
	case "bash":
		return bashCompletion(i.out, firsts, keys, after)
	case "zsh":
		if _, err := fmt.Fprint(i.out, "autoload -U +X bashcompinit && bashcompinit\n"); err != nil {
			return err
		}
		return bashCompletion(i.out, firsts, keys, after)
	case "fish":
		fmt.Fprintf(i.out, "complete -c dmpd -f\ncomplete -c dmpd -n __fish_use_subcommand -a '%s'\n", strings.Join(firsts, " "))
		for _, k := range keys {
			if _, err := fmt.Fprintf(i.out, "complete -c dmpd -n 'string match -q -- \"dmpd %s*\" (commandline -cp)' -a '%s'\n", k, strings.Join(after[k], " ")); err != nil {
				return err
			}
		}
		return nil
	}
	return usagef("no completion for %q: bash, zsh and fish are known", args[0])
}

func bashCompletion(w io.Writer, firsts, keys []string, after map[string][]string) error {
	fmt.Fprintf(w, `_dmpd() {
  local cur=${COMP_WORDS[COMP_CWORD]} words="" key="${COMP_WORDS[1]}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "%s" -- "$cur")); return
  fi
  [ "$COMP_CWORD" -gt 2 ] && key="$key ${COMP_WORDS[2]}"
  while :; do
    case "$key" in
`, strings.Join(firsts, " "))
	for _, k := range keys {
		fmt.Fprintf(w, "      %q) words=%q; break ;;\n", k, strings.Join(after[k], " "))
	}
	_, err := fmt.Fprint(w, `      *" "*) key="${COMP_WORDS[1]}" ;;
      *) break ;;
    esac
  done
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
  [ -z "$COMPREPLY" ] && [ "${cur#-}" = "$cur" ] && COMPREPLY=($(compgen -f -- "$cur"))
}
complete -F _dmpd dmpd
`)
	return err
}

// roff makes text safe for a manual page.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

func man(i *invocation) error {
	args, err := i.parse(i.flags(), 0, 1)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		_, err := io.WriteString(i.out, manualPage())
		return err
	}
	pages := map[string]string{"dmpd.1": manualPage()}
	for _, c := range commands {
		pages[pageName(c)+".1"] = commandPage(c)
	}
	for _, name := range slices.Sorted(maps.Keys(pages)) {
		if err := os.WriteFile(filepath.Join(args[0], name), []byte(pages[name]), 0o644); err != nil {
			return fmt.Errorf("the pages cannot be written: %w. Make the folder first, or choose another", err)
		}
	}
	_, err = fmt.Fprintf(i.out, "%d pages in %s\n", len(pages), args[0])
	return err
}

func pageName(c *command) string { return "dmpd-" + strings.ReplaceAll(c.name, " ", "-") }

// flagsOf gives the flags of a command in order. It runs the command as --help does, which does nothing else.
func flagsOf(c *command) (flags []*flag.Flag) {
	_ = c.run(&invocation{command: c, args: []string{"--help"}, out: io.Discard, errOut: io.Discard, in: strings.NewReader(""), seen: func(f *flag.FlagSet) {
		f.VisitAll(func(f *flag.Flag) { flags = append(flags, f) })
	}})
	return flags
}

func pageHead(b *strings.Builder, name, short string) {
	fmt.Fprintf(b, ".TH %s 1 \"\" \"dmpd %s\" \"dmpd\"\n.SH NAME\n%s \\- %s\n", roff(strings.ToUpper(name)), roff(config.Version), roff(name), roff(short))
}

func commandPage(c *command) string {
	var b strings.Builder
	pageHead(&b, pageName(c), c.short)
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B dmpd %s\n%s\n", roff(c.name), roff(c.args))
	if c.long != "" {
		fmt.Fprintf(&b, ".SH DESCRIPTION\n%s\n", roff(c.long))
	}
	b.WriteString(".SH OPTIONS\n")
	for _, f := range flagsOf(c) {
		kind, usage := flag.UnquoteUsage(f)
		fmt.Fprintf(&b, ".TP\n.B \\-\\-%s", roff(f.Name))
		if kind != "" {
			fmt.Fprintf(&b, " \\fI%s\\fP", roff(kind))
		}
		fmt.Fprintf(&b, "\n%s", roff(usage))
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" {
			fmt.Fprintf(&b, " (default: %s)", roff(f.DefValue))
		}
		b.WriteString("\n")
	}
	b.WriteString(".TP\n.B \\-\\-help\nprint this, shorter\n")
	fmt.Fprintf(&b, ".SH EXAMPLES\n.nf\n%s\n.fi\n", roff(c.example))
	fmt.Fprintf(&b, ".SH EXIT STATUS\n%s\n.SH SEE ALSO\n.BR dmpd (1)\n", exitStatus)
	return b.String()
}

const exitStatus = "0 done; 1 tried and failed; 2 could not be tried."

func manualPage() string {
	var b strings.Builder
	pageHead(&b, "dmpd", "a DNS Mesh Protocol node")
	b.WriteString(".SH SYNOPSIS\n.B dmpd\n.I COMMAND\n[flags]\n.SH COMMANDS\n")
	for _, c := range commands {
		fmt.Fprintf(&b, ".TP\n.BR %s (1)\n%s\n", roff(pageName(c)), roff(c.short))
	}
	b.WriteString(".SH SETTINGS\nEach is an environment variable, a key of the TOML file (lower case, without DMP_), and a flag of dmpd run.\n")
	for _, s := range config.Settings() {
		fmt.Fprintf(&b, ".TP\n.B DMP_%s\n%s", roff(s.Name), roff(s.Doc))
		if s.Default != "" {
			fmt.Fprintf(&b, " (default: %s)", roff(s.Default))
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, ".SH EXIT STATUS\n%s\n", exitStatus)
	return b.String()
}
