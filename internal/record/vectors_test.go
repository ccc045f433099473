package record

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dnsmesh/dmpd/internal/wire"
)

// vector is a case of testdata: verdicts are of the reference implementation.
type vector struct {
	Name, Expected, Type, Wire string
	Now                        int64
	Skew                       uint64          `json:"ts_skew_seconds"`
	Structural                 string          `json:"expected_sync_structural"`
	Kind                       string          // of sync_dispatch
	Parsed                     json.RawMessage // fields, if accepted
	Inputs                     struct {
		Seed            string  `json:"x25519_seed_hex"`
		Body            string  `json:"body_hex"`
		Operator        string  `json:"operator_spk_hex"`
		ExpectedCluster string  `json:"expected_cluster_name"`
		Signer          string  `json:"signer_spk_hex"`
		ExpectedDomain  string  `json:"expected_user_domain"`
		ExpectedSigner  string  `json:"expected_signer_spk_hex"`
		ExpectedOld     *string `json:"expected_old_spk_hex"`
		ExpectedRevoked *string `json:"expected_revoked_spk_hex"`
		ExpectedSubject string  `json:"expected_subject"`
		MaxAge          uint64  `json:"max_age_seconds"`
		Owner           string  `json:"owner_name"`
		ClusterOperator *string `json:"cluster_operator_spk_hex"`
		Block           string  `json:"block_hex"`
		Username, Zone  string
		RecipientID     string `json:"recipient_id_hex"`
		RecipientX25519 string `json:"recipient_x25519_hex"`
		MsgID           string `json:"msg_id_hex"`
		Sender          string `json:"sender_spk_hex"`
		Slot, Index     int
		Cluster         string `json:"cluster_name"`
		Domain          string `json:"user_domain"`
	}
	OwnerWanted string `json:"owner"`
}

func readVectors(t testing.TB, file string) []vector {
	t.Helper()
	var f struct{ Cases []vector }
	readCases(t, file, &f)
	if len(f.Cases) < 10 {
		t.Fatalf("%s: %d cases", file, len(f.Cases))
	}
	return f.Cases
}

func hex32(t testing.TB, s string) *[32]byte {
	t.Helper()
	b := unhex(t, s)
	if len(b) != 32 {
		t.Fatalf("%q is not 32 bytes", s)
	}
	return (*[32]byte)(b)
}

func optional(t testing.TB, s *string) *[32]byte {
	if s == nil {
		return nil
	}
	return hex32(t, *s)
}

// userKey derives a user's Ed25519 key (records.md 3).
func userKey(t testing.TB, x25519Seed string) ed25519.PrivateKey {
	seed := sha256.Sum256(append(unhex(t, x25519Seed), "DMP-v1-Ed25519-signing-key"...))
	return ed25519.NewKeyFromSeed(seed[:])
}

// sameFields compares what was parsed with the vector's fields, as JSON with the vector's keys.
func sameFields(t *testing.T, name string, want json.RawMessage, got map[string]any) {
	t.Helper()
	var wanted, have map[string]any
	if err := json.Unmarshal(want, &wanted); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	b, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &have); err != nil {
		t.Fatal(err)
	}
	x, _ := json.Marshal(wanted) // keys sorted
	y, _ := json.Marshal(have)
	if !bytes.Equal(x, y) {
		t.Errorf("%s: parsed\n%s, want\n%s", name, y, x)
	}
}

func text32(k [32]byte) string { return hex.EncodeToString(k[:]) }

// refusalOf checks a verdict against the vector and the class of failure against the table, which names every case that is refused.
func refusalOf(t *testing.T, c *vector, got Refusal, table map[string]Refusal) {
	t.Helper()
	want, refused := table[c.Name]
	if refused != (c.Expected == "reject") {
		t.Errorf("%s: the table and the vector differ (%v)", c.Name, got)
	}
	if got != want {
		t.Errorf("%s: %v, want %v", c.Name, got, want)
	}
}

func TestIdentityVectors(t *testing.T) {
	for _, c := range readVectors(t, "identity.json") {
		var x Identity
		r := x.Verify([]byte(c.Wire))
		refusalOf(t, &c, r, identityRefusals)
		if r != Accepted {
			if !same(x, Identity{}) {
				t.Errorf("%s: a refusal gave something", c.Name)
			}
			continue
		}
		versions := []int{1}
		if x.Versions != nil {
			versions = nil
			for _, v := range x.Versions {
				versions = append(versions, int(v))
			}
		}
		sameFields(t, c.Name, c.Parsed, map[string]any{"username": x.Username, "x25519_pk_hex": text32(x.X25519), "ed25519_spk_hex": text32(x.Signer),
			"ts": x.TsSec, "versions": versions})
		if !strings.HasPrefix(c.Name, "lenient-") {
			reencodes(t, &c, x.Append(nil, userKey(t, c.Inputs.Seed)))
		}
	}
}

func same(a, b any) bool { return fmt.Sprintf("%#v", a) == fmt.Sprintf("%#v", b) }

func reencodes(t *testing.T, c *vector, text []byte) {
	t.Helper()
	if string(text) != c.Wire {
		t.Errorf("%s: encodes as\n%s, want\n%s", c.Name, text, c.Wire)
	}
}

func TestManifestVectors(t *testing.T) {
	for _, c := range readVectors(t, "slot_manifest.json") {
		var m Manifest
		r := m.Verify([]byte(c.Wire), c.Now)
		refusalOf(t, &c, r, manifestRefusals)
		if r != Accepted {
			if !same(m, Manifest{}) {
				t.Errorf("%s: a refusal gave something", c.Name)
			}
			continue
		}
		sameFields(t, c.Name, c.Parsed, map[string]any{"msg_id_hex": hex.EncodeToString(m.MsgID[:]), "sender_spk_hex": text32(m.Sender),
			"recipient_id_hex": text32(m.RecipientID), "total_chunks": m.Total, "data_chunks": m.Data, "prekey_id": m.PrekeyID, "ts": m.TsSec, "exp": m.ExpSec,
			"chunk_hash_count": len(m.Hashes) / 32})
		if !strings.HasPrefix(c.Name, "lenient-") {
			reencodes(t, &c, m.Append(nil, userKey(t, c.Inputs.Seed)))
		}
	}
}

func TestPrekeyVectors(t *testing.T) {
	for _, c := range readVectors(t, "prekey.json") {
		var p Prekey
		r := p.Verify([]byte(c.Wire), hex32(t, c.Inputs.ExpectedSigner), c.Now)
		refusalOf(t, &c, r, prekeyRefusals)
		if r == Accepted {
			sameFields(t, c.Name, c.Parsed, map[string]any{"prekey_id": p.ID, "x25519_pub_hex": text32(p.X25519), "exp": p.ExpSec})
		}
		if class, r := new(Verifier).Verify(nil, []byte(c.Wire), c.Now); class != ClassPrekey || (r == Accepted) != (c.Structural == "accept") {
			t.Errorf("%s: between nodes %v, %v", c.Name, class, r)
		}
	}
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	want := Prekey{ID: 7, X25519: [32]byte{1, 2}, ExpSec: 1900000000}
	var got Prekey
	if r := got.Verify(want.Append(nil, key), (*[32]byte)(key.Public().(ed25519.PublicKey)), 1900000001); r != Accepted || got != want {
		t.Errorf("a prekey comes back as %+v, %v", got, r)
	}
}

func TestHeartbeatVectors(t *testing.T) {
	for _, c := range readVectors(t, "heartbeat.json") {
		var h Heartbeat
		r := h.Verify([]byte(c.Wire), c.Now, c.Skew)
		refusalOf(t, &c, r, heartbeatRefusals)
		if r != Accepted {
			if h != (Heartbeat{}) {
				t.Errorf("%s: a refusal gave something", c.Name)
			}
			continue
		}
		sameFields(t, c.Name, c.Parsed, map[string]any{"endpoint": h.Endpoint, "operator_spk_hex": text32(h.Operator), "version": h.Version,
			"capabilities": h.Capabilities, "claim_provider_zone": h.Zone, "ts": h.TsSec, "exp": h.ExpSec})
		text, r := h.Append(nil, userKey(t, c.Inputs.Seed))
		switch c.Name {
		case "zone-with-space", "zone-non-ascii": // read, but never signed
			if r != BadField || text != nil {
				t.Errorf("%s: signed (%v)", c.Name, r)
			}
		case "legacy-DMPHB02":
		default:
			reencodes(t, &c, text)
		}
	}
}

func TestEndpointVectors(t *testing.T) {
	for _, c := range readVectors(t, "heartbeat_endpoint.json") {
		if got := PublicEndpoint(c.Name); got != (c.Expected == "accept") {
			t.Errorf("%s: %v", c.Name, got)
		}
	}
	for text, want := range map[string]bool{"https://[fe80::1%]": false, "https://[2606::1%a%b]": false, "https://[2606::1%a]": true, "https://[vg.x]": false,
		"https://[v1.]": false, "https://a.example?x": false, "https://a.example#?": false, "https://LocalHost:1": false, "": false, "https://1.2.3.4]": false} {
		if got := PublicEndpoint(text); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestClusterVectors(t *testing.T) {
	for _, c := range readVectors(t, "cluster_manifest.json") {
		var m Cluster
		r := m.Verify([]byte(c.Wire), hex32(t, c.Inputs.Operator), c.Inputs.ExpectedCluster, c.Now)
		refusalOf(t, &c, r, clusterRefusals)
		if r != Accepted {
			if !same(m, Cluster{}) {
				t.Errorf("%s: a refusal gave something", c.Name)
			}
			continue
		}
		var parsed Cluster
		if r := parsed.Parse([]byte(c.Wire)); r != Accepted || !same(parsed, m) {
			t.Errorf("%s: Parse gives %+v, %v", c.Name, parsed, r)
		}
		nodes := []map[string]any{}
		for _, n := range m.Nodes {
			node := map[string]any{"node_id": n.ID, "http_endpoint": n.HTTP, "dns_endpoint": nil}
			if n.DNS != "" {
				node["dns_endpoint"] = n.DNS
			}
			nodes = append(nodes, node)
		}
		sameFields(t, c.Name, c.Parsed, map[string]any{"cluster_name": m.Name, "seq": m.Seq, "exp": m.ExpSec, "nodes": nodes})
		key := ed25519.NewKeyFromSeed(make([]byte, 32))
		operator := (*[32]byte)(key.Public().(ed25519.PublicKey))
		text, r := m.Append(nil, key)
		if len(m.Nodes) == 0 {
			if r != BadCount {
				t.Errorf("%s: signed (%v)", c.Name, r)
			}
			continue
		}
		var again Cluster
		if r := again.Verify(text, operator, m.Name+".", c.Now); r != Accepted {
			t.Errorf("%s: signed anew: %v", c.Name, r)
		}
		if again.Operator = m.Operator; !same(again, m) {
			t.Errorf("%s: comes back as %+v", c.Name, again)
		}
	}
}

func TestBootstrapVectors(t *testing.T) {
	for _, c := range readVectors(t, "bootstrap_record.json") {
		var b Bootstrap
		r := b.Verify([]byte(c.Wire), hex32(t, c.Inputs.Signer), c.Inputs.ExpectedDomain, c.Now)
		refusalOf(t, &c, r, bootstrapRefusals)
		if r != Accepted {
			if !same(b, Bootstrap{}) {
				t.Errorf("%s: a refusal gave something", c.Name)
			}
			continue
		}
		entries := []map[string]any{}
		for _, e := range b.Entries {
			entries = append(entries, map[string]any{"priority": e.Priority, "cluster_base_domain": e.Domain, "operator_spk_hex": text32(e.Operator)})
		}
		sameFields(t, c.Name, c.Parsed, map[string]any{"user_domain": b.Domain, "seq": b.Seq, "exp": b.ExpSec, "entries": entries})
		key := ed25519.NewKeyFromSeed(make([]byte, 32))
		text, r := b.Append(nil, key)
		var again Bootstrap
		if r != Accepted || again.Verify(text, (*[32]byte)(key.Public().(ed25519.PublicKey)), strings.ToUpper(b.Domain), c.Now) != Accepted {
			t.Errorf("%s: signed anew: %v", c.Name, r)
		}
		if again.Signer = b.Signer; !same(again, b) {
			t.Errorf("%s: comes back as %+v", c.Name, again)
		}
	}
}

func TestRotationVectors(t *testing.T) {
	for _, c := range readVectors(t, "rotation_revocation.json") {
		if c.Type == "rotation" {
			var x Rotation
			r := x.Verify([]byte(c.Wire), optional(t, c.Inputs.ExpectedOld), c.Inputs.ExpectedSubject, c.Now)
			refusalOf(t, &c, r, rotationRefusals)
			if r == Accepted {
				sameFields(t, c.Name, c.Parsed, map[string]any{"subject_type": x.Type, "subject": x.Subject, "old_spk_hex": text32(x.Old),
					"new_spk_hex": text32(x.New), "seq": x.Seq, "ts": x.TsSec, "exp": x.ExpSec})
			} else if x != (Rotation{}) {
				t.Errorf("%s: a refusal gave something", c.Name)
			}
			continue
		}
		var x Revocation
		r := x.Verify([]byte(c.Wire), optional(t, c.Inputs.ExpectedRevoked), c.Inputs.ExpectedSubject, c.Inputs.MaxAge, c.Now)
		refusalOf(t, &c, r, rotationRefusals)
		if r == Accepted {
			sameFields(t, c.Name, c.Parsed, map[string]any{"subject_type": x.Type, "subject": x.Subject, "revoked_spk_hex": text32(x.Revoked),
				"reason_code": x.Reason, "ts": x.TsSec})
		} else if x != (Revocation{}) {
			t.Errorf("%s: a refusal gave something", c.Name)
		}
	}
	for expected, want := range map[string]Refusal{"alice@Example.COM": Accepted, " alice@example.com. ": Accepted, "Alice@example.com": BadSubject,
		"alice@example.com..": BadSubject, "alice": BadSubject, "": Accepted} {
		a, b := ed25519.NewKeyFromSeed(make([]byte, 32)), ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))
		x := Rotation{Type: SubjectUser, Subject: "alice@example.com", Seq: 1, TsSec: 2, ExpSec: 1900000000}
		var got Rotation
		if r := got.Verify(x.Append(nil, a, b), nil, expected, 1900000000); r != want {
			t.Errorf("rotation for %q: %v", expected, r)
		}
		y := Revocation{Type: SubjectUser, Subject: "alice@example.com", Reason: 4, TsSec: 2}
		if r := new(Revocation).Verify(y.Append(nil, a), nil, expected, 0, 1900000000); r != want {
			t.Errorf("revocation for %q: %v", expected, r)
		}
	}
}

func TestChunkVectors(t *testing.T) {
	for _, c := range readVectors(t, "chunk.json") {
		block, r := VerifyChunk([]byte(c.Wire))
		refusalOf(t, &c, r, chunkRefusals)
		if r != Accepted {
			if block != nil {
				t.Errorf("%s: a refusal gave something", c.Name)
			}
			continue
		}
		sameFields(t, c.Name, c.Parsed, map[string]any{"block_hex": hex.EncodeToString(block)})
		if c.Inputs.Block != "" {
			reencodes(t, &c, AppendChunk(nil, unhex(t, c.Inputs.Block)))
		}
	}
}

// TestReedSolomon: whatever is wrong in up to 16 bytes is repaired; what cannot be repaired is never taken for something that is no
// codeword.
func TestReedSolomon(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		data := make([]byte, r.IntN(rsCodewordMax-rsParity+1))
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		word := rsEncode(nil, data)
		good := bytes.Clone(word)
		errors := r.IntN(rsParity/2 + 4)
		for _, p := range r.Perm(len(word))[:min(errors, len(word))] {
			word[p] ^= byte(1 + r.IntN(255))
		}
		got, ok := rsDecode(word)
		if errors <= rsParity/2 && (!ok || !bytes.Equal(got, data) || !bytes.Equal(word, good)) {
			t.Fatalf("%d bytes with %d errors: %v", len(data), errors, ok)
		}
		if _, clean := rsSyndromes(word); ok && !clean {
			t.Fatalf("%d bytes with %d errors become no codeword", len(data), errors)
		}
	}
}

// TestReedSolomonNoise: words that are no codeword at all are refused, or become one; locators of every degree occur.
func TestReedSolomonNoise(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 5000 {
		word := make([]byte, 33+r.IntN(20))
		for i := range word {
			word[i] = byte(r.Uint32())
		}
		if _, ok := rsDecode(word); ok {
			if _, clean := rsSyndromes(word); !clean {
				t.Fatalf("%x was taken", word)
			}
		}
	}
}

func TestSyncVectors(t *testing.T) {
	for _, c := range readVectors(t, "sync_dispatch.json") {
		var owner []byte
		if c.Inputs.Owner != "" {
			owner = wire.MustName(c.Inputs.Owner)
		}
		v := Verifier{Operator: optional(t, c.Inputs.ClusterOperator)}
		class, r := v.Verify(owner, []byte(c.Wire), c.Now)
		if class.String() != c.Kind {
			t.Errorf("%s: class %v, want %s", c.Name, class, c.Kind)
		}
		if (r == Accepted) != (c.Expected == "accept") {
			t.Errorf("%s: %v", c.Name, r)
		}
		switch {
		case strings.HasPrefix(c.Name, "spf-at-") && r != Accepted && r != BadOwner, class == ClassUnknown && r != BadType:
			t.Errorf("%s: refused for another reason: %v", c.Name, r)
		}
	}
	// With a signer pinned, a bootstrap record is checked in full.
	for _, c := range readVectors(t, "bootstrap_record.json") {
		v := Verifier{Bootstrap: hex32(t, c.Inputs.Signer)}
		if _, r := v.Verify(nil, []byte(c.Wire), c.Now); c.Inputs.ExpectedDomain == "" && (r == Accepted) != (c.Expected == "accept") {
			t.Errorf("%s: %v", c.Name, r)
		}
	}
}

func TestNameVectors(t *testing.T) {
	for _, c := range readVectors(t, "names.json") {
		in := &c.Inputs
		var recipient, sender [32]byte
		var msgID [16]byte
		copy(recipient[:], unhex(t, in.RecipientID))
		copy(sender[:], unhex(t, in.Sender))
		copy(msgID[:], unhex(t, in.MsgID))
		if in.RecipientX25519 != "" && sha256.Sum256(unhex(t, in.RecipientX25519)) != recipient {
			t.Errorf("%s: recipient", c.Name)
		}
		got := map[string]func() string{
			"identity_hashed":             func() string { return IdentityName(in.Username, in.Zone) },
			"identity_zone_anchored":      func() string { return ZoneIdentityName(in.Zone) },
			"prekey_pool":                 func() string { return PrekeysName(in.Username, in.Zone) },
			"slot":                        func() string { return SlotName(in.Slot, recipient, in.Zone) },
			"claim":                       func() string { return ClaimName(in.Slot, recipient, in.Zone) },
			"chunk":                       func() string { return ChunkName(in.Index, msgID, recipient, sender, in.Zone) },
			"slot_choice":                 func() string { return fmt.Sprint(SlotOf(msgID)) },
			"cluster":                     func() string { return ClusterName(in.Cluster) },
			"bootstrap":                   func() string { return BootstrapName(in.Domain) },
			"rotation_user_hashed":        func() string { return UserRotationName(in.Username, in.Zone) },
			"rotation_user_zone_anchored": func() string { return ZoneRotationName(in.Zone) },
			"rotation_cluster":            func() string { return ClusterRotationName(in.Cluster) },
			"rotation_bootstrap":          func() string { return BootstrapRotationName(in.Domain) },
			"heartbeat":                   func() string { return HeartbeatName(in.Zone) },
			"seen":                        func() string { return SeenName(in.Zone) },
		}[c.Kind]
		if got == nil {
			t.Errorf("%s: unknown kind %s", c.Name, c.Kind)
			continue
		}
		if got() != c.OwnerWanted {
			t.Errorf("%s: %s, want %s", c.Name, got(), c.OwnerWanted)
		}
		if name, err := wire.AppendName(nil, c.OwnerWanted); c.Kind != "slot_choice" && (err != nil || !ReservedName(name)) {
			t.Errorf("%s: %s is not reserved (%v)", c.Name, c.OwnerWanted, err)
		}
	}
	var f struct {
		Names []vector `json:"dns_name"`
	}
	readCases(t, "names.json", &f)
	if len(f.Names) < 20 {
		t.Fatalf("%d DNS names", len(f.Names))
	}
	for _, c := range f.Names {
		if DNSName(c.Name) != (c.Expected == "accept") {
			t.Errorf("DNS name %q: want %s", c.Name, c.Expected)
		}
	}
}

func TestReservedNames(t *testing.T) {
	for name, want := range map[string]bool{"cluster": false, "_dnsmesh-x": true, "slot-0.mb-0a": false, "slot-0.mb-0a.x": true, "chunk-1-a": false,
		"chunk-1-a.x": true, "chunk--a.x": false, "chunk-1-.x": false, "prekeys.id-a": false, "prekeys.id-a.x": true, "claim-1.mb-g.x": false,
		`cluster\.x.y`: false, "": false, "id-.x": false} {
		if got := ReservedName(wire.MustName(name)); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if ReservedName(nil) || ReservedName([]byte{5, 'a'}) {
		t.Error("no name is reserved")
	}
}

// TestUpstreamVectors runs the reference project's own vectors, which are not ours to copy: DMP_VECTORS_UPSTREAM is their folder.
func TestUpstreamVectors(t *testing.T) {
	dir := os.Getenv("DMP_VECTORS_UPSTREAM")
	if dir == "" {
		t.Skip("NOT RUN: set DMP_VECTORS_UPSTREAM to the folder of the reference project's vectors")
	}
	count := 0
	for file, run := range map[string]func(c *upstream, text []byte, now int64) (Refusal, map[string]any){
		"identity_record.json": func(c *upstream, text []byte, now int64) (Refusal, map[string]any) {
			var x Identity
			r := x.Verify(text)
			return r, map[string]any{"username": x.Username}
		},
		"slot_manifest.json": func(c *upstream, text []byte, now int64) (Refusal, map[string]any) {
			var x Manifest
			r := x.Verify(text, now)
			return r, map[string]any{"total_chunks": x.Total}
		},
		"prekey.json": func(c *upstream, text []byte, now int64) (Refusal, map[string]any) {
			var x Prekey
			r := x.Verify(text, c.key(t, "verify_with_signer_spk_hex", "signer_seed_hex"), now)
			return r, map[string]any{"prekey_id": x.ID}
		},
		"cluster_manifest.json": func(c *upstream, text []byte, now int64) (Refusal, map[string]any) {
			var x Cluster
			r := x.Verify(text, c.key(t, "verify_with_operator_spk_hex", "operator_seed_hex"), "", now)
			return r, map[string]any{"cluster_name": x.Name, "seq": x.Seq}
		},
		"bootstrap_record.json": func(c *upstream, text []byte, now int64) (Refusal, map[string]any) {
			var x Bootstrap
			r := x.Verify(text, c.key(t, "verify_with_signer_spk_hex", "signer_seed_hex"), "", now)
			return r, map[string]any{"user_domain": x.Domain, "seq": x.Seq}
		},
		"rotation_record.json": func(c *upstream, text []byte, now int64) (Refusal, map[string]any) {
			var x Rotation
			r := x.Verify(text, nil, "", now)
			return r, map[string]any{"subject": x.Subject, "seq": x.Seq}
		},
		"revocation_record.json": func(c *upstream, text []byte, now int64) (Refusal, map[string]any) {
			var x Revocation
			r := x.Verify(text, c.key(t, "verify_with_expected_revoked_spk_hex", ""), "", c.number("verify_with_max_age_seconds"), now)
			return r, map[string]any{"subject": x.Subject, "reason_code": x.Reason}
		},
	} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		var cases []upstream
		if err := json.Unmarshal(b, &cases); err != nil {
			t.Fatal(err)
		}
		for i := range cases {
			c := &cases[i]
			count++
			now := int64(2_051_222_340) // a minute before the exp of those that do not name a clock
			if n := c.number("verify_with_now"); n != 0 {
				now = int64(n)
			}
			r, got := run(c, unhex(t, c.text("expected_wire_hex")), now)
			if refused := c.text("expected_parse_result") == "none"; refused != (r != Accepted) {
				t.Errorf("%s: %s: %v", file, c.text("description"), r)
				continue
			}
			for key, want := range *c {
				if field, ok := strings.CutPrefix(key, "expected_parse_"); ok && r == Accepted && got[field] != nil {
					if x, y := strings.Trim(string(want), `"`), fmt.Sprint(got[field]); x != y {
						t.Errorf("%s: %s: %s is %s, want %s", file, c.text("description"), field, y, x)
					}
				}
			}
		}
	}
	t.Logf("%d vectors of the reference project", count)
	if count < 25 {
		t.Errorf("only %d vectors", count)
	}
}

type upstream map[string]json.RawMessage

func (c *upstream) text(key string) (s string) {
	json.Unmarshal((*c)[key], &s)
	return s
}

func (c *upstream) number(key string) (n uint64) {
	json.Unmarshal((*c)[key], &n)
	return n
}

// key is the key that the case verifies with: the one it names, or that of a seed.
func (c *upstream) key(t *testing.T, override, seed string) *[32]byte {
	if s := c.text(override); s != "" {
		return hex32(t, s)
	}
	if seed == "" {
		return nil
	}
	return (*[32]byte)(userKey(t, c.text(seed)).Public().(ed25519.PublicKey))
}

// FuzzVerifier: no value panics, a verdict does not depend on when it is asked for a second time, and what is accepted as an identity
// comes back from its own encoding.
func FuzzVerifier(f *testing.F) {
	for _, file := range []string{"identity.json", "slot_manifest.json", "heartbeat.json", "cluster_manifest.json", "bootstrap_record.json",
		"rotation_revocation.json", "chunk.json", "sync_dispatch.json"} {
		for _, c := range readVectors(f, file) {
			f.Add([]byte(c.Wire))
		}
	}
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	f.Fuzz(func(t *testing.T, text []byte) {
		const now = 1900000000
		v := Verifier{Operator: new([32]byte), Bootstrap: new([32]byte)}
		class, r := v.Verify(nil, text, now)
		if c, again := v.Verify(nil, text, now); c != class || again != r {
			t.Fatalf("%v, %v; then %v, %v", class, r, c, again)
		}
		new(Heartbeat).Verify(text, now, 300)
		var x, y Identity
		if x.Verify(text) == Accepted {
			if r := y.Verify(x.Append(nil, key)); r != Accepted {
				t.Fatalf("%+v: %v", x, r)
			}
			if y.Signer = x.Signer; !same(x, y) {
				t.Fatalf("%+v comes back as %+v", x, y)
			}
		}
		if block, r := VerifyChunk(text); r == Accepted {
			if again, r := VerifyChunk(AppendChunk(nil, block)); len(block) > 0 && (r != Accepted || !bytes.Equal(again, block)) {
				t.Fatalf("%x comes back as %x, %v", block, again, r)
			}
		}
	})
}

func BenchmarkVerifyChunk(b *testing.B) {
	text := AppendChunk(nil, make([]byte, 128))
	b.ReportAllocs()
	for b.Loop() {
		if _, r := VerifyChunk(text); r != Accepted {
			b.Fatal(r)
		}
	}
}

// TestOwnerFits: each type fits where clients publish it and, but for foreign text, nowhere else (cluster.md 15, W18).
func TestOwnerFits(t *testing.T) {
	var id, key [32]byte
	var msg [16]byte
	names := map[Class][]string{
		ClassManifest:   {SlotName(9, id, "x.test.")},
		ClassIdentity:   {IdentityName("alice", "x.test"), ZoneIdentityName("x.test"), "dmp.alice.x.test"},
		ClassClaim:      {ClaimName(0, id, "x.test"), "claim-999.mb-0a." + "x.test", "_dnsmesh-claim-0123456789abcdef.x.test"},
		ClassRotation:   {UserRotationName("alice", "x.test"), ZoneRotationName("x.test"), ClusterRotationName("x.test"), BootstrapRotationName("x.test"), "rotate.dmp.id-0a.x.test"},
		ClassCluster:    {ClusterName("x.test")},
		ClassPrekey:     {PrekeysName("alice", "x.test"), "pk-7.0a.x.test"},
		ClassBootstrap:  {BootstrapName("x.test")},
		ClassChunk:      {ChunkName(12345, msg, id, key, "x.test")},
		ClassForeign:    {"www.x.test"},
		ClassRevocation: nil, // where rotations are
	}
	for of, list := range names {
		for _, name := range list {
			for c := range classesCount {
				want := c == of || c == ClassRevocation && of == ClassRotation || c == ClassForeign || c == ClassUnknown
				if got := OwnerFits(wire.MustName(name), c); got != want {
					t.Errorf("a value of type %v at %s: %v", c, name, got)
				}
			}
		}
	}
	for _, name := range []string{"", "dmp", "cluster", "slot-0.mb-0a", "slot-x.mb-0a.test", "chunk-1-.test", "id-.test", "id-xyz.test", "rotate", "prekeys.id-0a", `cluster\.x.test`} {
		for c := ClassManifest; c < ClassUnknown; c++ {
			if OwnerFits(wire.MustName(name), c) {
				t.Errorf("a value of type %v fits %q", c, name)
			}
		}
	}
	if OwnerFits(nil, ClassIdentity) || OwnerFits([]byte{3, 'd'}, ClassIdentity) {
		t.Error("no name fits an identity")
	}
}
