package record

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"
)

func readCases(t testing.TB, file string, into any) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatal(err)
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBase64Vectors(t *testing.T) {
	var f struct {
		Cases []struct {
			Text    string
			Strict  *string `json:"strict_hex"`
			Lenient *string `json:"lenient_hex"`
		}
	}
	readCases(t, "base64.json", &f)
	for _, c := range f.Cases {
		for _, d := range []struct {
			name string
			f    func(dst, text []byte) ([]byte, bool)
			want *string
		}{{"strict", AppendBase64Strict, c.Strict}, {"lenient", AppendBase64Lenient, c.Lenient}} {
			got, ok := d.f([]byte("x"), []byte(c.Text))
			if ok != (d.want != nil) {
				t.Errorf("%s %q: ok %v", d.name, c.Text, ok)
				continue
			}
			if !ok && string(got) != "x" {
				t.Errorf("%s %q: a refusal appended %q", d.name, c.Text, got)
			}
			if ok && hex.EncodeToString(got[1:]) != *d.want {
				t.Errorf("%s %q: %x, want %s", d.name, c.Text, got[1:], *d.want)
			}
		}
	}
	for n := range 20 {
		blob := bytes.Repeat([]byte{0xF3}, n)
		if got, ok := AppendBase64Strict(nil, AppendBase64(nil, blob)); !ok || !bytes.Equal(got, blob) {
			t.Errorf("%d bytes do not come back", n)
		}
	}
}

func TestEd25519Vectors(t *testing.T) {
	var f struct {
		Cases []struct {
			Name, Expected string
			Pub            string `json:"public_key_hex"`
			Msg            string `json:"message_hex"`
			Sig            string `json:"signature_hex"`
		}
	}
	readCases(t, "ed25519.json", &f)
	for _, c := range f.Cases {
		if got := VerifyEd25519(unhex(t, c.Pub), unhex(t, c.Msg), unhex(t, c.Sig)); got != (c.Expected == "accept") {
			t.Errorf("%s: %v, want %s", c.Name, got, c.Expected)
		}
	}
}

// claimRefusals names the failure of every case that is refused.
var claimRefusals = map[string]Refusal{
	"exp-equals-now": Expired, "exp-past": Expired, "exp-30-days-plus-1": LivesTooLong, "ts-301s-in-future": NotYet,
	"exp-equals-ts": BadTimes, "exp-before-ts": BadTimes, "exp-2^63": BadTimes, "slot-10": BadSlot, "slot-255": BadSlot,
	"domain-len-zero": BadLength, "domain-len-44": BadLength, "domain-len-beyond-body": BadDomain, "domain-space": BadDomain,
	"domain-newline": BadDomain, "domain-nul": BadDomain, "domain-del": BadDomain, "domain-invalid-utf8": BadDomain,
	"domain-overlong-utf8": BadDomain, "domain-surrogate-utf8": BadDomain, "domain-len-short-leaves-trailing-byte": BadSlot,
	"trailing-byte": BadTrailing, "truncated-body": BadLength, "magic-DMPCL02": BadMagic, "magic-lowercase": BadMagic,
	"prefix-with-d=": BadBase64, "prefix-uppercase": BadPrefix, "leading-space": BadPrefix, "version-2-prefix": BadPrefix,
	"signature-bit-flip": BadSignature, "body-changed-after-signing": BadSignature, "signed-by-other-key": BadSignature,
	"signature-S-plus-L": BadSignature, "low-order-spk-identity-forgery": BadSignature, "wire-256-bytes": BadLength,
	"base64-inner-space": BadBase64, "base64-trailing-newline": BadBase64, "base64-url-alphabet": BadBase64,
	"base64-missing-padding": BadBase64, "base64-extra-padding": BadBase64, "empty-payload": BadLength, "signature-only": BadLength,
	"non-ascii-wire": BadBase64, "cluster-manifest-body-under-claim-prefix": BadTrailing,
}

type claimCase struct {
	Name, Expected, Wire string
	Now                  int64
	Inputs               struct {
		Seed string `json:"x25519_seed_hex"`
		Body string `json:"body_hex"`
	}
	Parsed *struct {
		MsgID   string `json:"msg_id_hex"`
		Sender  string `json:"sender_spk_hex"`
		Domain  string `json:"sender_mailbox_domain"`
		Slot    uint8
		Ts, Exp uint64
	}
}

func TestClaimVectors(t *testing.T) {
	var f struct{ Cases []claimCase }
	readCases(t, "claim.json", &f)
	if len(f.Cases) < 50 {
		t.Fatalf("%d cases", len(f.Cases))
	}
	for _, c := range f.Cases {
		var claim Claim
		got := claim.Verify([]byte(c.Wire), c.Now)
		want := claimRefusals[c.Name]
		if (c.Expected == "accept") != (want == Accepted) {
			t.Errorf("%s: the table and the vector differ", c.Name)
		}
		if got != want {
			t.Errorf("%s: %v, want %v", c.Name, got, want)
		}
		if c.Parsed == nil || got != Accepted {
			continue
		}
		p := c.Parsed
		if hex.EncodeToString(claim.MsgID[:]) != p.MsgID || hex.EncodeToString(claim.Sender[:]) != p.Sender || string(claim.Domain()) != p.Domain ||
			claim.Slot != p.Slot || claim.TsSec != p.Ts || claim.ExpSec != p.Exp {
			t.Errorf("%s: fields differ: %+v", c.Name, claim)
		}
		// Signing is deterministic, so what a canonical text says comes back to the byte.
		if c.Name == "nonzero-trailing-base64-bits" || c.Name == "excess-equals-after-full-quads" || c.Inputs.Seed == "" {
			continue
		}
		seed := sha256.Sum256(append(unhex(t, c.Inputs.Seed), "DMP-v1-Ed25519-signing-key"...))
		text := AppendClaim(nil, ed25519.NewKeyFromSeed(seed[:]), claim.MsgID, p.Domain, p.Slot, p.Ts, p.Exp)
		if string(text) != c.Wire {
			t.Errorf("%s: encodes as %s", c.Name, text)
		}
	}
}

func TestClaimAllocs(t *testing.T) {
	var f struct{ Cases []claimCase }
	readCases(t, "claim.json", &f)
	wire, now := []byte(f.Cases[0].Wire), f.Cases[0].Now
	var claim Claim
	if n := testing.AllocsPerRun(100, func() {
		if claim.Parse(wire) != Accepted || claim.Check(now) != Accepted {
			t.Error("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzClaim: no input panics, and what is accepted is what the vectors' signer could have made: its own fields, encoded, are accepted.
func FuzzClaim(f *testing.F) {
	var cases struct{ Cases []claimCase }
	readCases(f, "claim.json", &cases)
	for _, c := range cases.Cases {
		f.Add([]byte(c.Wire))
	}
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	f.Fuzz(func(t *testing.T, text []byte) {
		var c, again Claim
		if c.Parse(text) != Accepted {
			return
		}
		wire := AppendClaim(nil, key, c.MsgID, string(c.Domain()), c.Slot, c.TsSec, c.ExpSec)
		if r := again.Parse(wire); r != Accepted || again.MsgID != c.MsgID || again.Slot != c.Slot || again.TsSec != c.TsSec || again.ExpSec != c.ExpSec ||
			!bytes.Equal(again.Domain(), c.Domain()) || !again.VerifySignature() {
			t.Fatalf("%q comes back as %q (%v)", text, wire, r)
		}
	})
}

func BenchmarkClaimParse(b *testing.B) {
	var f struct{ Cases []claimCase }
	readCases(b, "claim.json", &f)
	wire := []byte(f.Cases[0].Wire)
	var claim Claim
	b.ReportAllocs()
	for b.Loop() {
		claim.Parse(wire)
	}
}
