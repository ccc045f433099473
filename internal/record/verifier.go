package record

import "bytes"

// Class is what a value is by its prefix alone (records.md 13.2).
type Class uint8

const (
	ClassForeign Class = iota // not DMP's
	ClassManifest
	ClassIdentity
	ClassClaim
	ClassRotation
	ClassRevocation
	ClassCluster
	ClassPrekey
	ClassBootstrap
	ClassChunk
	ClassUnknown // begins as DMP's, and is of no type that replicates: heartbeats too
	classesCount
)

var classes = [classesCount]struct{ name, prefix string }{
	ClassForeign:    {"non-dmp", ""},
	ClassManifest:   {"manifest", manifestPrefix},
	ClassIdentity:   {"identity", identityPrefix},
	ClassClaim:      {"claim", claimPrefix},
	ClassRotation:   {"rotation", rotationPrefix},
	ClassRevocation: {"revocation", revocationPrefix},
	ClassCluster:    {"cluster", clusterPrefix},
	ClassPrekey:     {"prekey", prekeyPrefix},
	ClassBootstrap:  {"bootstrap", bootstrapPrefix},
	ClassChunk:      {"chunk", chunkPrefix},
	ClassUnknown:    {"unknown-dmp", "v=dmp"},
}

func (c Class) String() string { return classes[c].name }

// ClassOf classifies a value.
func ClassOf(value []byte) Class {
	for c := ClassManifest; c < classesCount; c++ {
		if bytes.HasPrefix(value, []byte(classes[c].prefix)) {
			return c
		}
	}
	return ClassForeign
}

// structuralMin is all that nodes ask of a blob whose signer they do not know: a signature and something that it may sign.
const structuralMin = sigLen + 1

// Verifier decides what a node takes from a peer (records.md 13.2), and so what it need not offer to one. Its fields are read only;
// it may be used by many at once.
type Verifier struct {
	Operator  *[32]byte // of the cluster, pinned; nil: manifests are taken by their form
	Bootstrap *[32]byte // signer, pinned; nil: bootstrap records are taken by their form
}

// Verify judges a value at an owner name, which is lower case and in wire form; nil is none, and skips the rule about owners. The
// type is not compared with the owner, as the reference does not: OwnerFits does that. Up to two Ed25519 checks, so call Screen first where many rows pass by.
func (v *Verifier) Verify(owner, value []byte, nowSec int64) (Class, Refusal) {
	class, _, r := v.Judge(owner, value, nowSec)
	return class, r
}

// Judge is Verify, and gives the end that is signed in the value, in Unix seconds: 0 if it has none that was checked.
func (v *Verifier) Judge(owner, value []byte, nowSec int64) (class Class, endSec uint64, r Refusal) {
	class, r = Screen(owner, value)
	if r != Accepted {
		return class, 0, r
	}
	switch class {
	case ClassManifest:
		var m Manifest
		r, endSec = m.Verify(value, nowSec), m.ExpSec
	case ClassIdentity:
		r = new(Identity).Verify(value)
	case ClassClaim:
		var c Claim
		r, endSec = c.Verify(value, nowSec), c.ExpSec
	case ClassRotation:
		var x Rotation
		r, endSec = x.Verify(value, nil, "", nowSec), x.ExpSec
	case ClassRevocation:
		r = new(Revocation).Verify(value, nil, "", 0, nowSec)
	case ClassCluster:
		if v.Operator == nil {
			return class, 0, structural(value, clusterPrefix)
		}
		var c Cluster
		r, endSec = c.Verify(value, v.Operator, "", nowSec), c.ExpSec
	case ClassPrekey:
		r = structural(value, prekeyPrefix)
	case ClassBootstrap:
		if v.Bootstrap == nil {
			return class, 0, structural(value, bootstrapPrefix)
		}
		var b Bootstrap
		r, endSec = b.Verify(value, v.Bootstrap, "", nowSec), b.ExpSec
	case ClassChunk:
		_, r = VerifyChunk(value)
	}
	return class, endSec, r
}

// Screen is the part of Verify that costs nothing: class and owner.
func Screen(owner, value []byte) (Class, Refusal) {
	class := ClassOf(value)
	switch {
	case len(value) == 0:
		return class, BadLength
	case class == ClassUnknown:
		return class, BadType
	case class == ClassForeign && ReservedName(owner):
		return class, BadOwner
	}
	return class, Accepted
}

func structural(value []byte, prefix string) Refusal {
	blob, r := unwrap(value, prefix, 0, true)
	if r == Accepted && len(blob) < structuralMin {
		r = BadLength
	}
	return r
}
