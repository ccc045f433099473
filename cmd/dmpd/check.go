package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"github.com/dnsmesh/dmpd/internal/config"
)

func init() {
	register(&command{name: "check", args: "[--settings] [--show-secrets] [--json] [flags of run]", short: "Check the configuration without starting anything", run: check,
		long:    "All that is wrong is printed at once, each with its remedy; the exit code is 2 then.\nWith --settings every setting is listed with its value and where it comes from; secrets are hidden unless asked for.",
		example: "dmpd check --config /etc/dmpd.toml --settings"})
}

// hidden is shown in place of a secret.
const hidden = "(hidden)"

func check(i *invocation) error {
	f := i.flags()
	in := input()
	in.Bind(f)
	list := f.Bool("settings", false, "list every setting with its value and source")
	secrets := f.Bool("show-secrets", false, "show secrets too")
	asJSON := f.Bool("json", false, "print JSON")
	if _, err := i.parse(f, 0, 0); err != nil {
		return err
	}
	c, warnings, errs := config.Resolve(in)
	if *asJSON {
		return printCheck(i, c, warnings, errs, *secrets)
	}
	for _, w := range warnings {
		fmt.Fprintln(i.errOut, "dmpd: warning:", w)
	}
	if len(errs) > 0 {
		return errs
	}
	if *list {
		w := tabwriter.NewWriter(i.out, 0, 8, 2, ' ', 0)
		for _, s := range config.Settings() {
			fmt.Fprintf(w, "DMP_%s\t%s\t%s\t%s\n", s.Name, shown(c, s, *secrets), c.Source(s.Name), s.Doc)
		}
		return w.Flush()
	}
	_, err := fmt.Fprintf(i.out, "The configuration is good: zone %s, state in %s, HTTP writes %s.\n", orNone(c.Zone()), c.StateDir(), c.AuthMode())
	return err
}

func shown(c *config.Config, s config.Setting, secrets bool) string {
	v := c.String(s.Name)
	if s.Secret && v != "" && !secrets {
		return hidden
	}
	if v == "" {
		return "-"
	}
	return v
}

func orNone(s string) string {
	if s == "" {
		return "(none)"
	}
	return s
}

func printCheck(i *invocation, c *config.Config, warnings, errs config.Problems, secrets bool) error {
	type setting struct {
		Value  string `json:"value"`
		Source string `json:"source"`
	}
	result := struct {
		OK       bool               `json:"ok"`
		Warnings config.Problems    `json:"warnings"`
		Errors   config.Problems    `json:"errors"`
		Settings map[string]setting `json:"settings,omitempty"`
	}{OK: len(errs) == 0, Warnings: warnings, Errors: errs}
	if c != nil {
		result.Settings = map[string]setting{}
		for _, s := range config.Settings() {
			result.Settings["DMP_"+s.Name] = setting{shown(c, s, secrets), c.Source(s.Name)}
		}
	}
	e := json.NewEncoder(i.out)
	e.SetIndent("", "  ")
	if err := e.Encode(result); err != nil {
		return err
	}
	if len(errs) > 0 {
		return usagef("the configuration has %d errors", len(errs))
	}
	return nil
}
