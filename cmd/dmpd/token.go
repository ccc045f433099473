package main

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/dnsmesh/dmpd/controlplane"
	"github.com/dnsmesh/dmpd/controlplane/auth"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

// The token and audit commands keep the reference's admin tool's arguments and JSON (http.md 16).
func init() {
	register(
		&command{name: "token issue", args: "SUBJECT [--expires DUR] [--rate F] [--burst N] [--note T] [--with-prekey-scope X25519_HEX] [--json]", short: "Make a bearer token for a user and print it, once", run: tokenIssue,
			long: "Older tokens of the user stay valid; `dmpd token rotate` replaces them.", example: "dmpd token issue alice@mesh.example.com --expires 90d"},
		&command{name: "token list", args: "[--subject S] [--include-revoked] [--json]", short: "List bearer tokens, newest first", run: tokenList, example: "dmpd token list --subject alice@mesh.example.com"},
		&command{name: "token revoke", args: "SUBJECT|HASH [--json]", short: "Revoke a user's tokens, or one by the first 8 or more digits of its hash", run: tokenRevoke, example: "dmpd token revoke 62a13b33d2ce"},
		&command{name: "token rotate", args: "SUBJECT [--expires DUR] [--rate F] [--burst N] [--json]", short: "Replace a user's tokens by a new one", run: tokenRotate,
			long: "In one step: the user is never without. Budget and prekey scope stay as they were unless given.", example: "dmpd token rotate alice@mesh.example.com --expires 90d"},
		&command{name: "audit tail", args: "[--event E] [--limit N] [--json]", short: "Print the last rows of the audit, newest first", run: auditTail, example: "dmpd audit tail --event rejected --limit 20"},
	)
}

type tokenFlags struct {
	controlplane.TokenArgs
	end life
}

func tokenCommand(i *invocation, verb string) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	t := &tokenFlags{}
	t.Issuer = "admin:" + cmp.Or(os.Getenv("USER"), "unknown")
	t.end.bind(f, "expires", "`duration` until it ends, such as 90d; without it, never")
	rate := f.Float64("rate", 0, "requests a second that it allows (10)")
	burst := f.Int("burst", 0, "burst of that (50)")
	if verb == "token.issue" {
		f.StringVar(&t.Note, "note", "", "`text` to remember it by")
		f.StringVar(&t.X25519, "with-prekey-scope", "", "X25519 public key in `hex` whose prekeys it may write")
	} else {
		t.Issuer += ":rotate"
	}
	args, err := p.parsed(f, 1, 1)
	if err != nil {
		return err
	}
	t.Subject, t.ExpiresAt, t.RatePerSec, t.Burst = args[0], t.end.end(), *rate, *burst
	given := map[string]bool{}
	f.Visit(func(fl *flag.Flag) { given[fl.Name] = true })
	if verb == "token.issue" {
		if !given["rate"] {
			t.RatePerSec = auth.DefaultRatePerSec
		}
		if !given["burst"] {
			t.Burst = auth.DefaultBurst
		}
	} else if given["rate"] != given["burst"] {
		return usagef("--rate and --burst go together here; without both the budget stays as it was")
	}
	var info controlplane.TokenInfo
	if err := p.call(verb, t.TokenArgs, &info); err != nil {
		return err
	}
	return p.print(info, func(w *tabwriter.Writer) {
		fmt.Fprintf(w, "subject\t%s\nbudget\t%g requests/s, burst %d\nexpires\t%s\nnote\t%s\n", info.Subject, info.RatePerSec, info.Burst, whenOrNone(info.ExpiresAt), dash(info.Note))
		fmt.Fprintf(w, "token\t%s\n\nCopy it now: only its hash is kept.\n", info.Token)
	})
}

func whenOrNone(sec *int64) string {
	if sec == nil {
		return "-"
	}
	return when(*sec)
}

func tokenIssue(i *invocation) error {
	return tokenCommand(i, "token.issue")
}

func tokenRotate(i *invocation) error {
	return tokenCommand(i, "token.rotate")
}

func (p *place) printTokens(ts []controlplane.TokenInfo) error {
	return p.print(ts, func(w *tabwriter.Writer) {
		fmt.Fprintln(w, "HASH\tSUBJECT\tISSUED\tEXPIRES\tSTATE\tISSUER\tNOTE")
		for _, t := range ts {
			state := "valid"
			if t.RevokedAt != nil {
				state = "revoked"
			} else if !t.Live {
				state = "expired"
			}
			fmt.Fprintf(w, "%.16s\t%s\t%s\t%s\t%s\t%s\t%s\n", t.TokenHash, t.Subject, when(t.IssuedAt), whenOrNone(t.ExpiresAt), state, dash(t.Issuer), dash(t.Note))
		}
	})
}

func tokenList(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	var args controlplane.ListTokensArgs
	f.StringVar(&args.Subject, "subject", "", "only of this `user`")
	f.BoolVar(&args.Revoked, "include-revoked", false, "also those revoked")
	if _, err := p.parsed(f, 0, 0); err != nil {
		return err
	}
	var ts []controlplane.TokenInfo
	if err := p.call("token.list", args, &ts); err != nil {
		return err
	}
	return p.printTokens(ts)
}

func tokenRevoke(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	args, err := p.parsed(f, 1, 1)
	if err != nil {
		return err
	}
	var ts []controlplane.TokenInfo
	if err := p.call("token.revoke", controlplane.NameArgs{Name: args[0]}, &ts); err != nil {
		return err
	}
	return p.print(ts, func(w *tabwriter.Writer) {
		for _, t := range ts {
			fmt.Fprintf(w, "%.16s of %s is revoked.\n", t.TokenHash, t.Subject)
		}
	})
}

func auditTail(i *invocation) error {
	f := i.flags()
	p := i.place(f)
	p.json(f)
	event := f.String("event", "", "only this `event`: issued, revoked, used, throttled, rejected, tsig-minted, ...")
	limit := f.Int("limit", 50, "at most this many")
	if _, err := p.parsed(f, 0, 0); err != nil {
		return err
	}
	rows, err := auth.AuditTail(vfs.OS, p.controlDir(), *event, *limit)
	if err != nil {
		return err
	}
	if rows == nil {
		rows = []auth.Event{}
	}
	return p.print(rows, func(w *tabwriter.Writer) {
		fmt.Fprintln(w, "TIME\tEVENT\tSUBJECT\tTOKEN OR KEY\tADDRESS\tDETAIL")
		for _, e := range rows {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", time.UnixMilli(e.TsMs).UTC().Format("2006-01-02 15:04:05.000Z"), e.Event, dash(e.Subject),
				dash(cmp.Or(e.Key, fmt.Sprintf("%.16s", e.TokenHash))), dash(e.Remote), dash(e.Detail))
		}
	})
}
