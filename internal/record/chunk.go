package record

import (
	"crypto/sha256"
)

// A chunk (records.md 7): a part of an encrypted message, unsigned. Text: "v=dmp1;t=chunk;d=" and base64, which nodes read
// strictly. Blob:
//
//	+-------------------------------------+--------------+--------------+
//	| first 8 bytes of SHA-256(block)     | block (128B) | parity (32B) |
//	+-------------------------------------+--------------+--------------+
//
// Blocks of other lengths are accepted as readers in use do: everything behind the checksum is a row of Reed-Solomon codewords, each
// of at most 255 bytes with 32 of parity.

const (
	chunkPrefix   = "v=dmp1;t=chunk;d="
	chunkChecksum = 8
)

// VerifyChunk says whether a chunk's block can be had from its text. It gives the block, repaired.
func VerifyChunk(text []byte) (block []byte, r Refusal) {
	blob, r := unwrap(text, chunkPrefix, 0, true)
	if r != Accepted {
		return nil, r
	}
	if len(blob) <= chunkChecksum {
		return nil, BadLength
	}
	block = blob[chunkChecksum:chunkChecksum]
	for rest := blob[chunkChecksum:]; len(rest) > 0; {
		n := min(len(rest), rsCodewordMax)
		data, ok := rsDecode(rest[:n])
		if !ok {
			return nil, BadChecksum
		}
		block = append(block, data...) // in place: what is written was read
		rest = rest[n:]
	}
	if sum := sha256.Sum256(block); string(sum[:chunkChecksum]) != string(blob[:chunkChecksum]) {
		return nil, BadChecksum
	}
	return block, Accepted
}

// AppendChunk appends the text of a block.
func AppendChunk(dst, block []byte) []byte {
	sum := sha256.Sum256(block)
	blob := append([]byte(nil), sum[:chunkChecksum]...)
	for len(block) > 0 {
		n := min(len(block), rsCodewordMax-rsParity)
		blob = rsEncode(blob, block[:n])
		block = block[n:]
	}
	return AppendBase64(append(dst, chunkPrefix...), blob)
}
