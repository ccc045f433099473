package main

import (
	"encoding/json"
	"fmt"

	"github.com/dnsmesh/dmpd/internal/config"
)

func init() {
	register(&command{name: "version", args: "[--json]", short: "Print the version and build id", run: version, example: "dmpd version --json"})
}

func version(i *invocation) error {
	f := i.flags()
	asJSON := f.Bool("json", false, "print JSON")
	if _, err := i.parse(f, 0, 0); err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(i.out).Encode(map[string]string{"version": config.Version, "build": config.BuildID()})
	}
	_, err := fmt.Fprintln(i.out, "dmpd", config.BuildID())
	return err
}
