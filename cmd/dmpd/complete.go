package main

import (
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/dnsmesh/dmpd/internal/config"
)

// Completion and the man page are made from the table of commands, so that they cannot fall behind it.
func init() {
	register(
		&command{name: "completion", args: "bash|zsh|fish", short: "Print a completion script for a shell", run: completion, example: "source <(dmpd completion bash)"},
		&command{name: "man", args: "", short: "Print the manual page", run: man, example: "dmpd man > /usr/local/share/man/man1/dmpd.1"},
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
	if _, err := i.parse(i.flags(), 0, 0); err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, ".TH DMPD 1 \"\" \"dmpd %s\"\n.SH NAME\ndmpd \\- a DNS Mesh Protocol node\n.SH SYNOPSIS\n.B dmpd\n.I COMMAND\n[flags]\n.SH COMMANDS\n", roff(config.Version))
	for _, c := range commands {
		fmt.Fprintf(&b, ".TP\n.B dmpd %s\n%s\n.br\n%s.\n", roff(c.name), roff(c.args), roff(c.short))
		if c.long != "" {
			fmt.Fprintf(&b, "%s\n", roff(c.long))
		}
		if c.example != "" {
			fmt.Fprintf(&b, ".IP\n.nf\n%s\n.fi\n", roff(c.example))
		}
	}
	fmt.Fprint(&b, ".SH SETTINGS\nEach is an environment variable, a key of the TOML file (lower case, without DMP_), and a flag of dmpd run.\n")
	for _, s := range config.Settings() {
		fmt.Fprintf(&b, ".TP\n.B DMP_%s\n%s", roff(s.Name), roff(s.Doc))
		if s.Default != "" {
			fmt.Fprintf(&b, " (default: %s)", roff(s.Default))
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, ".SH EXIT STATUS\n0 done; 1 tried and failed; 2 could not be tried.\n")
	_, err := io.WriteString(i.out, b.String())
	return err
}
