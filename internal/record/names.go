package record

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// Where the records are (records.md 14). Names are text, without a dot at the end; user names keep their case in the hash.

// hashText is the first n hexadecimal digits of a SHA-256.
func hashText(n int, parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil))[:n]
}

func below(label, zone string) string { return label + "." + strings.TrimRight(zone, ".") }

// IdentityName is a user's identity in a zone that others share.
func IdentityName(username, zone string) string {
	return below("id-"+hashText(16, []byte(username)), zone)
}

// ZoneIdentityName is the identity of a zone's only user.
func ZoneIdentityName(zone string) string { return below("dmp", zone) }

// PrekeysName is a user's pool of prekeys. Its hash is shorter than that of the identity.
func PrekeysName(username, zone string) string {
	return below("prekeys.id-"+hashText(12, []byte(username)), zone)
}

// MailboxHash is h of the two names that follow: of the recipient's id, which is itself SHA-256 of an X25519 key.
func MailboxHash(recipientID [32]byte) string { return hashText(12, recipientID[:]) }

// SlotName is where a slot manifest for a recipient is, in the sender's zone.
func SlotName(slot int, recipientID [32]byte, zone string) string {
	return below(fmt.Sprintf("slot-%d.mb-%s", slot, MailboxHash(recipientID)), zone)
}

// ClaimName is where a claim for a recipient is, in a provider's or the recipient's zone.
func ClaimName(slot int, recipientID [32]byte, zone string) string {
	return below(fmt.Sprintf("claim-%d.mb-%s", slot, MailboxHash(recipientID)), zone)
}

// SlotOf is the slot of a message.
func SlotOf(msgID [16]byte) int { return int(binary.BigEndian.Uint32(msgID[:]) % 10) }

// ChunkName is where a chunk is, in the sender's zone.
func ChunkName(index int, msgID [16]byte, recipientID, sender [32]byte, zone string) string {
	return below(fmt.Sprintf("chunk-%04d-%s", index, hashText(12, msgID[:], recipientID[:], sender[:])), zone)
}

// ClusterName, BootstrapName and the rotation names of both are below what they name.
func ClusterName(name string) string           { return "cluster." + strings.TrimSuffix(name, ".") }
func BootstrapName(domain string) string       { return "_dmp." + strings.TrimSuffix(domain, ".") }
func ClusterRotationName(name string) string   { return "rotate." + ClusterName(name) }
func BootstrapRotationName(name string) string { return "rotate." + BootstrapName(name) }

// UserRotationName and ZoneRotationName are where rotations and revocations of IdentityName's and ZoneIdentityName's users are.
func UserRotationName(username, zone string) string { return "rotate." + IdentityName(username, zone) }
func ZoneRotationName(zone string) string           { return "rotate." + ZoneIdentityName(zone) }

// HeartbeatName is where nodes of a zone say that they are there; SeenName, whom they have heard.
func HeartbeatName(zone string) string { return below("_dnsmesh-heartbeat", zone) }
func SeenName(zone string) string      { return below("_dnsmesh-seen", zone) }

// ReservedName says whether a name, lower case, in wire form, is one at which only DMP text replicates (records.md 13.2). Each
// pattern but "_dnsmesh-" is of whole labels and wants one more behind it.
func ReservedName(name []byte) bool {
	first, rest := cutLabel(name)
	second, third := cutLabel(rest)
	if bytes.HasPrefix(first, []byte("_dnsmesh-")) {
		return true
	}
	if len(second) == 0 {
		return false
	}
	switch string(first) {
	case "cluster", "_dmp", "dmp", "rotate":
		return true
	case "prekeys":
		return tail(second, "id-", isHex) && atLabel(third)
	}
	switch {
	case tail(first, "mb-", isHex), tail(first, "id-", isHex):
		return true
	case tail(first, "slot-", isDigit), tail(first, "claim-", isDigit):
		return tail(second, "mb-", isHex) && atLabel(third)
	}
	index, hash, ok := bytes.Cut(first, []byte("-"))
	if !ok || string(index) != "chunk" {
		return false
	}
	index, hash, ok = bytes.Cut(hash, []byte("-"))
	return ok && tail(index, "", isDigit) && tail(hash, "", isHex)
}

// OwnerFits says whether a name, lower case, in wire form, has the shape of those that values of a class are published at (records.md 14, with
// the shapes that the server grants and no client of today writes). Foreign text and unknown types are Screen's to judge: they fit.
//
// Readers bind a record to its name anyway, by hashes of user, recipient and message; the shape alone keeps a peer from filling names of one
// type with signed records of another (cluster.md 15, W18).
func OwnerFits(name []byte, c Class) bool {
	first, rest := cutLabel(name)
	second, third := cutLabel(rest)
	if c == ClassForeign || c == ClassUnknown {
		return true
	}
	if len(second) == 0 {
		return false
	}
	switch c {
	case ClassManifest:
		return tail(first, "slot-", isDigit) && tail(second, "mb-", isHex) && atLabel(third)
	case ClassClaim:
		return tail(first, "claim-", isDigit) && tail(second, "mb-", isHex) && atLabel(third) || tail(first, "_dnsmesh-claim-", isHex)
	case ClassIdentity:
		return string(first) == "dmp" || tail(first, "id-", isHex)
	case ClassPrekey:
		return string(first) == "prekeys" && tail(second, "id-", isHex) && atLabel(third) || bytes.HasPrefix(first, []byte("pk-"))
	case ClassRotation, ClassRevocation:
		return string(first) == "rotate"
	case ClassCluster:
		return string(first) == "cluster"
	case ClassBootstrap:
		return string(first) == "_dmp"
	case ClassChunk:
		index, hash, ok := bytes.Cut(first, []byte("-"))
		if !ok || string(index) != "chunk" {
			return false
		}
		index, hash, ok = bytes.Cut(hash, []byte("-"))
		return ok && tail(index, "", isDigit) && tail(hash, "", isHex)
	}
	return false
}

// cutLabel splits the first label off a name; it is empty at the root.
func cutLabel(name []byte) (label, rest []byte) {
	if !atLabel(name) {
		return nil, nil
	}
	n := 1 + int(name[0])
	return name[1:n], name[n:]
}

// atLabel says that a name is not the root, and is not cut.
func atLabel(name []byte) bool { return len(name) > 0 && name[0] != 0 && len(name) > int(name[0]) }

// tail says whether label is prefix and at least one byte, all of a kind.
func tail(label []byte, prefix string, kind func(byte) bool) bool {
	rest, ok := bytes.CutPrefix(label, []byte(prefix))
	if !ok || len(rest) == 0 {
		return false
	}
	for _, c := range rest {
		if !kind(c) {
			return false
		}
	}
	return true
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
func isHex(c byte) bool   { return isDigit(c) || 'a' <= c && c <= 'f' }
