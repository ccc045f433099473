package record

import (
	"crypto/ed25519"
	"encoding/binary"
	"unicode/utf8"
)

// A cluster manifest (records.md 10): the nodes that serve one name together. Text: "v=dmp1;t=cluster;" and strict base64. Body:
//
//	+------------+----------+----------+--------------------+-------------+--------------+------------+
//	| magic (7B) | seq (8B) | exp (8B) | operator_spk (32B) | length (1B) | cluster_name | nodes (1B) |
//	+------------+----------+----------+--------------------+-------------+--------------+------------+
//	each node:
//	+-------------+---------+-------------+---------------+-------------+--------------+
//	| length (1B) | node_id | length (2B) | http_endpoint | length (2B) | dns_endpoint |
//	+-------------+---------+-------------+---------------+-------------+--------------+
//
// The signature is by operator_spk, which readers have pinned. The magic is that of a claim: only the prefix tells them apart.

const (
	clusterPrefix   = "v=dmp1;t=cluster;"
	clusterMagic    = "DMPCL01"
	clusterNodesMax = 32
	nodeIDMax       = 16
	nodeHTTPMax     = 128
	nodeDNSMax      = 64
)

// Cluster is a cluster manifest.
type Cluster struct {
	Name     string // without a dot at the end
	Seq      uint64 // the highest is the one that holds
	ExpSec   uint64
	Operator [32]byte
	Nodes    []ClusterNode // none: a manifest that is valid and of no use
}

// ClusterNode is one node of a cluster. Its endpoints are text that nobody has checked.
type ClusterNode struct {
	ID   string // ASCII
	HTTP string
	DNS  string // may be empty
}

// Verify reads a manifest by the pinned operator. expected, if not empty, is the name that it must be of. On a refusal c is not changed.
func (c *Cluster) Verify(text []byte, operator *[32]byte, expected string, nowSec int64) Refusal {
	body, sig, r := unwrapPinned(text, clusterPrefix)
	if r != Accepted {
		return r
	}
	if !VerifyEd25519(operator[:], body, sig) {
		return BadSignature
	}
	var y Cluster
	if r := y.parse(body); r != Accepted {
		return r
	}
	if y.Operator != *operator {
		return BadKey
	}
	if r := checkExp(y.ExpSec, nowSec, fiveYears); r != Accepted {
		return r
	}
	if expected != "" && !sameName(y.Name, expected) {
		return BadSubject
	}
	*c = y
	return Accepted
}

// Parse reads a manifest whose signature and times nobody checks: one of the operator's own files.
func (c *Cluster) Parse(text []byte) Refusal {
	body, _, r := unwrapPinned(text, clusterPrefix)
	if r != Accepted {
		return r
	}
	var y Cluster
	if r := y.parse(body); r != Accepted {
		return r
	}
	*c = y
	return Accepted
}

// unwrapPinned is for the two types that are signed by a key that the reader has, and is therefore checked first.
func unwrapPinned(text []byte, prefix string) (body, sig []byte, r Refusal) {
	blob, r := unwrap(text, prefix, recordWireMax, true)
	if r == Accepted && len(blob) < 7+sigLen {
		r = BadLength
	}
	if r != Accepted {
		return nil, nil, r
	}
	return blob[:len(blob)-sigLen], blob[len(blob)-sigLen:], Accepted
}

func (c *Cluster) parse(body []byte) Refusal {
	f := fields{body, true}
	if string(f.take(7)) != clusterMagic {
		return BadMagic
	}
	c.Seq, c.ExpSec, c.Operator = f.u64(), f.u64(), f.key()
	var r Refusal
	if c.Name, r = f.nameField(); r != Accepted {
		return r
	}
	n := int(f.u8())
	if n > clusterNodesMax {
		return BadCount
	}
	for range n {
		id := f.take(int(f.u8()))
		http := f.take(int(f.u16()))
		dns := f.take(int(f.u16()))
		if !f.ok || len(id) < 1 || len(id) > nodeIDMax || len(http) < 1 || len(http) > nodeHTTPMax || len(dns) > nodeDNSMax {
			return BadField
		}
		node := ClusterNode{ID: string(id), HTTP: string(http), DNS: string(dns)}
		if !ascii(node.ID) || !utf8.Valid(http) || !utf8.Valid(dns) {
			return BadField
		}
		for i := range c.Nodes {
			if c.Nodes[i].ID == node.ID {
				return BadDuplicate
			}
		}
		c.Nodes = append(c.Nodes, node)
	}
	if !f.ok {
		return BadField
	}
	if len(f.rest) > 0 {
		return BadTrailing
	}
	return Accepted
}

// Append appends the text, signed; nothing if a reader would refuse it, or if there is no node. Operator is the key's, whatever the
// field says.
func (c *Cluster) Append(dst []byte, key ed25519.PrivateKey) ([]byte, Refusal) {
	if len(c.Nodes) < 1 || len(c.Nodes) > clusterNodesMax {
		return dst, BadCount
	}
	body := append([]byte(nil), clusterMagic...)
	body = binary.BigEndian.AppendUint64(body, c.Seq)
	body = binary.BigEndian.AppendUint64(body, c.ExpSec)
	body = append(body, key.Public().(ed25519.PublicKey)...)
	if len(c.Name) > nameFieldMax {
		return dst, BadField
	}
	body = append(body, byte(len(c.Name)))
	body = append(body, c.Name...)
	body = append(body, byte(len(c.Nodes)))
	for _, n := range c.Nodes {
		if len(n.ID) > nodeIDMax || len(n.HTTP) > nodeHTTPMax || len(n.DNS) > nodeDNSMax {
			return dst, BadField
		}
		body = append(body, byte(len(n.ID)))
		body = append(body, n.ID...)
		body = binary.BigEndian.AppendUint16(body, uint16(len(n.HTTP)))
		body = append(body, n.HTTP...)
		body = binary.BigEndian.AppendUint16(body, uint16(len(n.DNS)))
		body = append(body, n.DNS...)
	}
	var check Cluster
	if r := check.parse(body); r != Accepted {
		return dst, r
	}
	out := wrap(dst, clusterPrefix, body, key)
	if len(out)-len(dst) > recordWireMax {
		return dst, BadLength
	}
	return out, Accepted
}
