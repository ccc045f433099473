package main

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"text/tabwriter"

	"github.com/dnsmesh/dmpd/controlplane"
	"github.com/dnsmesh/dmpd/controlplane/auth"
)

func init() {
	register(
		&command{name: "tsig list", args: "[--subject S] [--all] [--json]", short: "List TSIG keys", run: tsigList, example: "dmpd tsig list --all"},
		&command{name: "tsig show", args: "NAME [--secret] [--json]", short: "Show one TSIG key", run: tsigShow, example: "dmpd tsig show alice-8a88e3dd-b22122.mesh.example.com --secret"},
		&command{name: "tsig mint", args: "[--name NAME] [--subject LOCAL@DOMAIN] [--scope PATTERN]... [--expires DUR] [--json]", short: "Make a TSIG key", run: tsigMint,
			long: `The key writes what its scopes cover: a name and all beneath it, where * stands for any part of one label. It deletes only by a
scope without *. With --subject and no scope it gets the scopes of a user who registered: their identity and prekeys, and the
shared names for messages and claims. A running node judges by the key when this returns.`,
			example: "dmpd tsig mint --subject alice@mesh.example.com --expires 90d\ndmpd tsig mint --name transfer.mesh.example.com --scope mesh.example.com"},
		&command{name: "tsig revoke", args: "NAME [--json]", short: "Revoke a TSIG key, at once", run: tsigVerb("tsig.revoke", "revoked"),
			long: "The names that it owned are free then: `dmpd tsig lock` keeps others out of them, `dmpd tsig deny` the same user.", example: "dmpd tsig revoke alice-8a88e3dd-b22122.mesh.example.com"},
		&command{name: "tsig unrevoke", args: "NAME [--json]", short: "Take a revocation back", run: tsigVerb("tsig.unrevoke", "valid again"), example: "dmpd tsig unrevoke alice-8a88e3dd-b22122.mesh.example.com"},
		&command{name: "tsig extend", args: "NAME --by DUR|never [--json]", short: "Move the end of a TSIG key", run: tsigExtend, long: "The new end is counted from now.", example: "dmpd tsig extend alice-8a88e3dd-b22122.mesh.example.com --by 90d"},
		&command{name: "tsig lock", args: "LOCAL@DOMAIN [--note TEXT]", short: "Keep a user's names for them even when their keys have ended", run: nameVerb("lock.add", "locked"),
			long: "Only the Ed25519 key that owns the name now may register it again; with no owner, nobody.", example: "dmpd tsig lock alice@mesh.example.com --note 'key lost, ask by phone'"},
		&command{name: "tsig unlock", args: "LOCAL@DOMAIN", short: "Take a lock off", run: nameVerb("lock.remove", "unlocked"), example: "dmpd tsig unlock alice@mesh.example.com"},
		&command{name: "tsig locks", args: "[--json]", short: "List locks", run: tsigLocks, example: "dmpd tsig locks"},
		&command{name: "tsig deny", args: "subject|key|domain VALUE [--note TEXT]", short: "Keep somebody from registering", run: denyVerb("deny.add", "denied"),
			long: "What they hold stays valid until it is revoked. A key is an Ed25519 public key in hex; a domain stands for all beneath it.", example: "dmpd tsig deny domain spam.example"},
		&command{name: "tsig allow", args: "subject|key|domain VALUE", short: "Take an entry off the deny list", run: denyVerb("deny.remove", "no longer denied"), example: "dmpd tsig allow domain spam.example"},
		&command{name: "tsig denied", args: "[--json]", short: "List the deny list", run: tsigDenied, example: "dmpd tsig denied"},
		&command{name: "tsig import", args: "FILE|- [--scope PATTERN]... [--replace] [--json]", short: "Take a TSIG key over from a file", run: tsigImport,
			long:    "The file is in the form of BIND's tsig-keygen, which needs --scope, or what `dmpd tsig show --secret --json` or `dmpd tsig list --json --secret` printed.",
			example: "tsig-keygen -a hmac-sha256 transfer.mesh.example.com | dmpd tsig import - --scope mesh.example.com"},
	)
}

func tsigList(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	var args controlplane.ListKeysArgs
	f.StringVar(&args.Subject, "subject", "", "only of this `user`")
	f.BoolVar(&args.All, "all", false, "also keys that were revoked or have expired")
	f.BoolVar(&args.Secrets, "secret", false, "with their secrets; needs --json")
	if _, err := p.parsed(f, 0, 0); err != nil {
		return err
	}
	args.Secrets = args.Secrets && p.asJSON
	var keys []controlplane.KeyInfo
	if err := p.call("tsig.list", args, &keys); err != nil {
		return err
	}
	return p.print(keys, func(w *tabwriter.Writer) {
		fmt.Fprintln(w, "NAME\tSUBJECT\tEXPIRES\tSTATE\tSCOPES")
		for _, k := range keys {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\n", k.Name, dash(k.Subject), when(k.ExpiresAt), keyState(&k), len(k.Scopes))
		}
	})
}

func keyState(k *controlplane.KeyInfo) string {
	switch {
	case k.Revoked:
		return "revoked"
	case !k.Live:
		return "expired"
	}
	return "valid"
}

func (p *place) printKey(k *controlplane.KeyInfo) error {
	return p.print(k, func(w *tabwriter.Writer) {
		fmt.Fprintf(w, "name\t%s\nalgorithm\t%s\nstate\t%s\ncreated\t%s\nexpires\t%s\n", k.Name, k.Algorithm, keyState(k), when(k.CreatedAt), when(k.ExpiresAt))
		if k.SecretHex != "" {
			fmt.Fprintf(w, "secret, hex\t%s\nsecret, base64\t%s\nfor nsupdate\t-y %s:%s:%s\n", k.SecretHex, k.SecretBase64, k.Algorithm, k.Name, k.SecretBase64)
		}
		for _, field := range [...][2]string{{"subject", k.Subject}, {"ed25519", k.Ed25519}, {"x25519", k.X25519}, {"note", k.Note}} {
			if field[1] != "" {
				fmt.Fprintf(w, "%s\t%s\n", field[0], field[1])
			}
		}
		for n, s := range k.Scopes {
			label := ""
			if n == 0 {
				label = "scopes"
			}
			fmt.Fprintf(w, "%s\t%s\n", label, s)
		}
	})
}

func tsigShow(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	secret := f.Bool("secret", false, "show the secret too")
	args, err := p.parsed(f, 1, 1)
	if err != nil {
		return err
	}
	var k controlplane.KeyInfo
	if err := p.call("tsig.show", controlplane.NameArgs{Name: args[0], Secrets: *secret}, &k); err != nil {
		return err
	}
	return p.printKey(&k)
}

func tsigMint(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	var m controlplane.MintArgs
	var end life
	f.StringVar(&m.Name, "name", "", "`name` of the key; without it one is made for the subject")
	f.StringVar(&m.Subject, "subject", "", "the `user` that it is for, local@domain")
	f.Var((*texts)(&m.Scopes), "scope", "`pattern` of names that it may write; may be given often")
	f.StringVar(&m.Algorithm, "algorithm", "hmac-sha256", "`algorithm`")
	f.StringVar(&m.Note, "note", "", "`text` to remember it by")
	f.BoolVar(&m.Operator, "operator", false, "an operator's key: prerequisites of its UPDATEs are evaluated")
	f.BoolVar(&m.Replace, "replace", false, "give up a key of that name")
	end.bind(f, "expires", "`duration` until it ends, such as 90d; without it, never")
	if _, err := p.parsed(f, 0, 0); err != nil {
		return err
	}
	m.ExpiresAt = end.end()
	if err := p.fillMint(&m); err != nil {
		return err
	}
	var k controlplane.KeyInfo
	if err := p.call("tsig.mint", m, &k); err != nil {
		var failed *controlplane.AdminError
		if errors.As(err, &failed) && failed.Kind == controlplane.KindStands {
			return fmt.Errorf("key %s: %w. `dmpd tsig show %s --secret` prints it", m.Name, err, m.Name)
		}
		return err
	}
	return p.printKey(&k)
}

// fillMint makes the name and the scopes that were left open for the subject.
func (p *place) fillMint(m *controlplane.MintArgs) error {
	if m.Name != "" && len(m.Scopes) > 0 {
		return nil
	}
	if m.Subject == "" {
		return usagef("a key needs --subject, or --name and --scope")
	}
	subject, err := auth.ParseSubject(m.Subject)
	if err != nil {
		return usagef("--subject %q: %w", m.Subject, err)
	}
	zone, err := p.zone()
	if err != nil {
		return err
	}
	if m.Name == "" {
		tag := make([]byte, 7)
		rand.Read(tag)
		h := hex.EncodeToString(tag)
		m.Name = fmt.Sprintf("%s-%s-%s.%s", subject.Local, h[:8], h[8:], zone)
	}
	if len(m.Scopes) == 0 {
		u := localHash(subject.Local)
		for _, s := range []string{"id-" + u, "id-" + u[:12], "_dnsmesh-claim-*", "slot-*.mb-*", "chunk-*-*", "claim-*.mb-*"} { // http.md 8.3
			m.Scopes = append(m.Scopes, s+"."+zone)
		}
	}
	return nil
}

// tsigVerb runs a verb on one key.
func tsigVerb(verb, done string) func(i *invocation) error {
	return func(i *invocation) error {
		f := i.flags()
		p := i.place(f)
		p.json(f)
		args, err := p.parsed(f, 1, 1)
		if err != nil {
			return err
		}
		var k controlplane.KeyInfo
		if err := p.call(verb, controlplane.NameArgs{Name: args[0]}, &k); err != nil {
			return err
		}
		return p.print(k, func(w *tabwriter.Writer) { fmt.Fprintf(w, "%s is %s.\n", k.Name, done) })
	}
}

func tsigExtend(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	var end life
	end.bind(f, "by", "`duration` from now, or never")
	args, err := p.parsed(f, 1, 1)
	if err != nil {
		return err
	}
	if !end.set {
		return usagef("--by is missing: 90d, or never")
	}
	var k controlplane.KeyInfo
	if err := p.call("tsig.extend", controlplane.ExtendArgs{Name: args[0], ExpiresAt: end.end()}, &k); err != nil {
		return err
	}
	return p.print(k, func(w *tabwriter.Writer) { fmt.Fprintf(w, "%s ends: %s\n", k.Name, when(k.ExpiresAt)) })
}

// nameVerb runs a verb on local@domain.
func nameVerb(verb, done string) func(i *invocation) error {
	return func(i *invocation) error {
		f := i.flags()
		p := i.place(f)
		note := f.String("note", "", "`text` to remember the reason by")
		args, err := p.parsed(f, 1, 1)
		if err != nil {
			return err
		}
		if err := p.call(verb, controlplane.NameArgs{Name: args[0], Note: *note}, nil); err != nil {
			return err
		}
		_, err = fmt.Fprintf(i.out, "%s is %s.\n", args[0], done)
		return err
	}
}

func tsigLocks(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	if _, err := p.parsed(f, 0, 0); err != nil {
		return err
	}
	var locks []controlplane.LockInfo
	if err := p.call("lock.list", nil, &locks); err != nil {
		return err
	}
	return p.print(locks, func(w *tabwriter.Writer) {
		fmt.Fprintln(w, "NAME\tSINCE\tKEY\tNOTE")
		for _, l := range locks {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", l.Name, when(l.At), dash(l.Ed25519), dash(l.Note))
		}
	})
}

func denyVerb(verb, done string) func(i *invocation) error {
	return func(i *invocation) error {
		f := i.flags()
		p := i.place(f)
		note := f.String("note", "", "`text` to remember the reason by")
		args, err := p.parsed(f, 2, 2)
		if err != nil {
			return err
		}
		if err := p.call(verb, controlplane.DenyInfo{Kind: args[0], Value: args[1], Note: *note}, nil); err != nil {
			return err
		}
		_, err = fmt.Fprintf(i.out, "%s %s is %s.\n", args[0], args[1], done)
		return err
	}
}

func tsigDenied(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	if _, err := p.parsed(f, 0, 0); err != nil {
		return err
	}
	var list []controlplane.DenyInfo
	if err := p.call("deny.list", nil, &list); err != nil {
		return err
	}
	return p.print(list, func(w *tabwriter.Writer) {
		fmt.Fprintln(w, "KIND\tVALUE\tSINCE\tNOTE")
		for _, d := range list {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", d.Kind, d.Value, when(d.At), dash(d.Note))
		}
	})
}

// keyFileMax bounds a file of keys.
const keyFileMax = 64 << 20

func tsigImport(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	var scopes texts
	f.Var(&scopes, "scope", "`pattern` of names that it may write; may be given often")
	replace := f.Bool("replace", false, "give up keys of those names")
	args, err := p.parsed(f, 1, 1)
	if err != nil {
		return err
	}
	from := i.in
	if args[0] != "-" {
		file, err := os.Open(args[0])
		if err != nil {
			return usageError{err}
		}
		defer file.Close()
		from = file
	}
	text, err := io.ReadAll(io.LimitReader(from, keyFileMax))
	if err != nil {
		return err
	}
	mints, err := readKeys(text, scopes)
	if err != nil {
		return usageError{fmt.Errorf("%s: %w", args[0], err)}
	}
	var keys []controlplane.KeyInfo
	err = p.with(func(call caller) error {
		for _, m := range mints {
			m.Replace = *replace
			var k controlplane.KeyInfo
			if err := call("tsig.mint", m, &k); err != nil {
				return fmt.Errorf("key %s: %w (%d of %d keys were imported)", m.Name, err, len(keys), len(mints))
			}
			k.SecretHex, k.SecretBase64 = "", ""
			keys = append(keys, k)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return p.print(keys, func(w *tabwriter.Writer) {
		for _, k := range keys {
			fmt.Fprintf(w, "%s is %s.\n", k.Name, keyState(&k))
		}
	})
}

// bindKey is a key clause as tsig-keygen writes it.
var bindKey = regexp.MustCompile(`(?s)key\s+"?([^"\s{]+)"?\s*\{\s*algorithm\s+"?([A-Za-z0-9-]+)"?\s*;\s*secret\s+"?([A-Za-z0-9+/=]+)"?\s*;\s*\}\s*;`)

func readKeys(text []byte, scopes []string) (mints []controlplane.MintArgs, err error) {
	if trimmed := strings.TrimSpace(string(text)); strings.HasPrefix(trimmed, "{") || strings.HasPrefix(trimmed, "[") {
		if trimmed[0] == '{' {
			trimmed = "[" + trimmed + "]"
		}
		var keys []controlplane.KeyInfo
		if err := json.Unmarshal([]byte(trimmed), &keys); err != nil {
			return nil, err
		}
		for _, k := range keys {
			if k.SecretHex == "" {
				return nil, fmt.Errorf("key %s has no secret: print it with --secret", k.Name)
			}
			if k.Revoked {
				return nil, fmt.Errorf("key %s is revoked", k.Name)
			}
			m := controlplane.MintArgs{Name: k.Name, Algorithm: k.Algorithm, SecretHex: k.SecretHex, Scopes: k.Scopes, ExpiresAt: k.ExpiresAt, Subject: k.Subject,
				Ed25519: k.Ed25519, X25519: k.X25519, Note: k.Note, Operator: k.Operator}
			if len(scopes) > 0 {
				m.Scopes = scopes
			}
			mints = append(mints, m)
		}
		return mints, nil
	}
	found := bindKey.FindAllStringSubmatch(string(text), -1)
	if len(found) == 0 {
		return nil, fmt.Errorf("there is no key in it: neither `key \"name\" { algorithm ...; secret \"...\"; };` nor JSON")
	}
	if len(scopes) == 0 {
		return nil, fmt.Errorf("the file does not say what the key may write: give --scope")
	}
	for _, m := range found {
		secret, err := base64.StdEncoding.DecodeString(m[3])
		if err != nil {
			return nil, fmt.Errorf("secret of key %s: %w", m[1], err)
		}
		mints = append(mints, controlplane.MintArgs{Name: m[1], Algorithm: m[2], SecretHex: hex.EncodeToString(secret), Scopes: scopes, Operator: true})
	}
	return mints, nil
}
