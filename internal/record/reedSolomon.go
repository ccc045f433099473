package record

// Reed-Solomon over GF(2^8) (records.md 7): polynomial 0x11d, generator 2, roots 2^0 to 2^31. A codeword is data, then 32 bytes of
// parity, the first byte the highest coefficient; a shorter one lacks leading zeros. Up to 16 wrong bytes are repaired: syndromes,
// Berlekamp-Massey, Chien's search, Forney's formula.

const (
	rsParity      = 32
	rsCodewordMax = 255
	rsPoly        = 0x11D
)

var rsExp, rsLog = func() (exp [512]byte, log [256]byte) {
	x := 1
	for i := range 255 {
		exp[i], exp[i+255] = byte(x), byte(x) // twice, so that a sum of two logarithms needs no remainder
		log[x] = byte(i)
		if x <<= 1; x > 255 {
			x ^= rsPoly
		}
	}
	return exp, log
}()

func rsMul(a, b byte) byte {
	if a == 0 || b == 0 {
		return 0
	}
	return rsExp[int(rsLog[a])+int(rsLog[b])]
}

// rsInv is 1/a; a is not 0.
func rsInv(a byte) byte { return rsExp[255-int(rsLog[a])] }

// rsGenerator is the product of (x - 2^i), highest coefficient first, which is 1.
var rsGenerator = func() (g [rsParity + 1]byte) {
	g[0] = 1
	for i := range rsParity {
		for j := i + 1; j > 0; j-- {
			g[j] ^= rsMul(g[j-1], rsExp[i])
		}
	}
	return g
}()

// rsEncode appends data, at most 223 bytes, and its parity.
func rsEncode(dst, data []byte) []byte {
	var rem [rsParity]byte
	for _, b := range data {
		lead := b ^ rem[0]
		copy(rem[:], rem[1:])
		rem[rsParity-1] = 0
		for j := range rem {
			rem[j] ^= rsMul(rsGenerator[j+1], lead)
		}
	}
	return append(append(dst, data...), rem[:]...)
}

// rsSyndromes evaluates a codeword at the roots. All are 0 if and only if nothing is wrong, or too much.
func rsSyndromes(word []byte) (s [rsParity]byte, clean bool) {
	clean = true
	for i := range s {
		var v byte
		for _, b := range word {
			v = rsMul(v, rsExp[i]) ^ b
		}
		s[i] = v
		clean = clean && v == 0
	}
	return s, clean
}

// rsDecode repairs a codeword in place and gives its data; ok is false if it is beyond repair. A word of up to 32 bytes has no data:
// the only such codeword is zero.
func rsDecode(word []byte) (data []byte, ok bool) {
	data = word[:max(0, len(word)-rsParity)]
	synd, clean := rsSyndromes(word)
	if clean {
		return data, true
	}
	// Berlekamp-Massey: locator has a root at 2^-p for each wrong position p, counted from the end. Lowest coefficient first.
	var locator, prev [rsParity + 1]byte
	locator[0], prev[0] = 1, 1
	degree, shift, last := 0, 1, byte(1)
	for n := range rsParity {
		delta := synd[n]
		for i := 1; i <= degree; i++ {
			delta ^= rsMul(locator[i], synd[n-i])
		}
		if delta == 0 {
			shift++
			continue
		}
		old := locator
		scale := rsMul(delta, rsInv(last))
		for i := 0; i+shift < len(locator); i++ {
			locator[i+shift] ^= rsMul(scale, prev[i])
		}
		if 2*degree > n {
			shift++
			continue
		}
		degree, shift, last, prev = n+1-degree, 1, delta, old
	}
	if degree > rsParity/2 {
		return nil, false
	}
	// Evaluator: synd * locator modulo x^32; its degree is below that of the locator.
	var evaluator [rsParity / 2]byte
	for i := range degree {
		for j := 0; j <= i; j++ {
			evaluator[i] ^= rsMul(locator[j], synd[i-j])
		}
	}
	found := 0
	for p := range len(word) {
		inverse := rsExp[255-p] // 2^-p, p is below 255
		var value, derivative, top byte
		for i := degree; i >= 0; i-- {
			value = rsMul(value, inverse) ^ locator[i]
		}
		if value != 0 {
			continue
		}
		found++
		power := byte(1) // inverse^(i-1) for odd i
		for i := 1; i <= degree; i += 2 {
			derivative ^= rsMul(locator[i], power)
			power = rsMul(power, rsMul(inverse, inverse))
		}
		for i := degree - 1; i >= 0; i-- {
			top = rsMul(top, inverse) ^ evaluator[i]
		}
		if derivative == 0 {
			return nil, false
		}
		// First root 2^0: the magnitude is 2^p * top / derivative.
		word[len(word)-1-p] ^= rsMul(rsExp[p], rsMul(top, rsInv(derivative)))
	}
	if found != degree {
		return nil, false
	}
	if _, clean = rsSyndromes(word); !clean {
		return nil, false
	}
	return data, true
}
