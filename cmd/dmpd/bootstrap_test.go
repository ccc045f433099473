package main

import (
	"crypto/ed25519"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/record"
)

// TestBootstrap: what is signed is published, replaces what the same key signed before, and is shown as readers take it.
func TestBootstrap(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	key := filepath.Join(dir, "signer.key")
	if err := os.WriteFile(key, []byte(strings.Repeat("07", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	signer := ed25519.NewKeyFromSeed([]byte(strings.Repeat("\x07", 32))).Public().(ed25519.PublicKey)
	operator := ed25519.NewKeyFromSeed([]byte(strings.Repeat("\x08", 32)))
	operatorHex := hex.EncodeToString(operator.Public().(ed25519.PublicKey))
	sign := func(want int, more ...string) string {
		return dmpd(t, want, append([]string{"bootstrap", "sign", "Example.com.", "--key", key, "--state-dir", dir, "--domain", "example.com", "--json"}, more...)...)
	}
	first := fromJSON[bootstrapInfo](t, sign(exitOK, "--cluster", "5:b.example="+operatorHex, "--cluster", "1:a.example="+operatorHex, "--seq", "7", "--publish"))
	if first.Owner != "_dmp.example.com" || first.Seq != 7 || first.Signer != hex.EncodeToString(signer) || first.Stored == nil || first.Entries[0].Domain != "a.example" {
		t.Fatalf("%+v", first)
	}
	contains(t, sign(exitUsage, "--cluster", "a.example="+operatorHex, "--seq", "7", "--publish"), "higher --seq than 7")
	second := fromJSON[bootstrapInfo](t, sign(exitOK, "--cluster", "a.example="+operatorHex, "--publish"))
	stored := fromJSON[[]recordInfo](t, dmpd(t, exitOK, "record", "get", "_dmp.example.com", "--state-dir", dir, "--json"))
	if len(stored) != 1 || stored[0].Value != second.Wire {
		t.Errorf("%+v", stored)
	}
	for _, bad := range [][]string{{}, {"--cluster", "a.example"}, {"--cluster", "x:a.example=" + operatorHex}, {"--cluster", "a_b.example=" + operatorHex}, {"--cluster", "a.example=" + operatorHex[2:]},
		{"--cluster", "a.example=" + operatorHex, "--expires", "6000d"}, {"--cluster", "a.example=" + operatorHex, "--expires", "never"},
		{"--cluster", "1:a.example=" + operatorHex, "--cluster", "1:A.example=" + operatorHex}} {
		sign(exitUsage, bad...)
	}

	p := newPatient(t, "")
	p.txt("_dmp.example.com", []byte(first.Wire), []byte(second.Wire), []byte("v=dmp1;t=bootstrap;AAAA"))
	show := func(want int, more ...string) string {
		return dmpd(t, want, append([]string{"bootstrap", "show", "example.com", "--resolver", p.resolver}, more...)...)
	}
	contains(t, show(exitFailed, "--signer", hex.EncodeToString(signer)), "taken by readers", "no such record")
	c := record.Cluster{Name: "a.example", Seq: 1, ExpSec: uint64(clock.NowMs()/1000 + 86400), Nodes: []record.ClusterNode{{ID: "n", HTTP: "https://n.a.example"}}}
	manifest, r := c.Append(nil, operator)
	if r != record.Accepted {
		t.Fatal(r)
	}
	p.txt("cluster.a.example", manifest)
	contains(t, show(exitOK), "taken by readers", "1 nodes", "refused", "older")
	contains(t, show(exitFailed, "--signer", operatorHex), "wrong signature")
	contains(t, dmpd(t, exitFailed, "bootstrap", "show", "nobody.example.com", "--resolver", p.resolver), "no such record")
	dmpd(t, exitUsage, "bootstrap", "show", "example.com", "--signer", "xx")
}
