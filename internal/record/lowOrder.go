package record

import (
	"crypto/ed25519"
	"encoding/hex"
)

// lowOrder holds the 14 encodings of the points of order 1, 2, 4 and 8, canonical or not (records.md 3, http.md 7.3). Under such
// a key a signature can be made for any message without knowing a secret.
var lowOrder = func() map[[32]byte]struct{} {
	texts := [...]string{
		"0100000000000000000000000000000000000000000000000000000000000000",
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0000000000000000000000000000000000000000000000000000000000000080",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
		"0100000000000000000000000000000000000000000000000000000000000080",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
	}
	set := make(map[[32]byte]struct{}, len(texts))
	for _, text := range texts {
		b, err := hex.DecodeString(text)
		if err != nil || len(b) != 32 {
			panic("record: low-order table")
		}
		set[[32]byte(b)] = struct{}{}
	}
	return set
}()

// LowOrder says whether an Ed25519 public key is a point of low order.
func LowOrder(pub *[32]byte) bool {
	_, found := lowOrder[*pub]
	return found
}

// VerifyEd25519 checks a signature as every DMP record and challenge is checked (records.md 3): low-order keys are refused, then
// the cofactorless equation with R compared as bytes and S below the group order, which is what crypto/ed25519 does. Never a batch
// or ZIP-215 verifier: those accept more. About 60 us.
func VerifyEd25519(pub, msg, sig []byte) bool {
	if len(pub) != ed25519.PublicKeySize || len(sig) != ed25519.SignatureSize || LowOrder((*[32]byte)(pub)) {
		return false
	}
	return ed25519.Verify(pub, msg, sig)
}
