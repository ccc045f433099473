package config

import (
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// fileMax bounds a configuration file; the largest sensible one is a few kilobytes.
const fileMax = 1 << 20

// readFile reads a TOML file of plain keys. The parser is the event parser of go-toml, because the decoders of the TOML
// libraries link encoding/json, which the data plane must not.
func readFile(in Input, path string, errs *Problems) map[string]string {
	data, err := in.ReadFile(path)
	if err != nil {
		errs.add("CONFIG", path, "cannot be read: "+err.Error(), "Give the path of a TOML file, or unset it")
		return nil
	}
	if len(data) > fileMax {
		errs.add("CONFIG", path, "is larger than 1 MiB", "This is hardly a configuration file")
		return nil
	}
	file := map[string]string{}
	var p unstable.Parser
	p.Reset(data)
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.KeyValue {
			errs.add("CONFIG", path, "has a table or something else that is no key = value", "Settings stand in the file as plain keys, like dns_port = 53")
			continue
		}
		var key []string
		for it := e.Key(); it.Next(); {
			key = append(key, string(it.Node().Data))
		}
		name := strings.ToUpper(strings.Join(key, "."))
		value, ok := tomlValue(e.Value())
		switch {
		case !known(name) || name == "CONFIG" || strings.ToLower(name) != strings.Join(key, "."):
			errs.add("CONFIG", path, "has the key "+strconv.Quote(strings.Join(key, "."))+", which is no setting", didYouMean(name)+"Keys are the variables' names in lower case without dmp_")
		case !ok:
			errs.add("CONFIG", path, "gives "+strings.ToLower(name)+" a value of a wrong kind", "Use a string, a number, true or false, or an array of strings")
		default:
			if _, twice := file[name]; twice {
				errs.add("CONFIG", path, "has "+strings.ToLower(name)+" twice", "Remove one of them")
			}
			if value != "" {
				file[name] = value
			}
		}
	}
	if err := p.Error(); err != nil {
		errs.add("CONFIG", path, "is not valid TOML: "+err.Error(), "Correct the line")
	}
	return file
}

func tomlValue(n *unstable.Node) (string, bool) {
	switch n.Kind {
	case unstable.String, unstable.Bool, unstable.Integer, unstable.Float:
		v := string(n.Data)
		if n.Kind == unstable.Integer {
			v = strings.ReplaceAll(v, "_", "")
		}
		return v, true
	case unstable.Array:
		var items []string
		for it := n.Children(); it.Next(); {
			v, ok := tomlValue(it.Node())
			if !ok || it.Node().Kind == unstable.Array || strings.Contains(v, ",") {
				return "", false
			}
			items = append(items, v)
		}
		return strings.Join(items, ","), true
	}
	return "", false
}
