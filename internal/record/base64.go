package record

// Base64 as the DMP records have it (records.md 2.1): the standard alphabet with padding. Two decoders are in use, and which
// one reads a type decides what replicates, so both are kept to the byte:
//
//	strict   claim, heartbeat, chunk, cluster manifest, bootstrap, rotation
//	lenient  identity, slot manifest, prekey: bytes outside the alphabet are skipped
//
// encoding/base64 is neither: it skips CR and LF, and its Strict refuses unused bits that are not zero.

// base64Values maps a symbol to its six bits, 0xFF for any other byte.
var base64Values = func() (t [256]byte) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	for i := range t {
		t[i] = 0xFF
	}
	for i := range len(alphabet) {
		t[alphabet[i]] = byte(i)
	}
	return t
}()

// AppendBase64Strict appends what text encodes; ok is false, and nothing is appended, if it is refused.
func AppendBase64Strict(dst, text []byte) (out []byte, ok bool) { return appendBase64(dst, text, true) }

// AppendBase64Lenient is AppendBase64Strict for the types that are read leniently.
func AppendBase64Lenient(dst, text []byte) (out []byte, ok bool) {
	return appendBase64(dst, text, false)
}

func appendBase64(dst, text []byte, strict bool) ([]byte, bool) {
	if strict && len(text) > 0 && text[0] == '=' {
		return dst, false
	}
	for _, c := range text { // text beyond ASCII is refused by both, even behind the end
		if c >= 0x80 {
			return dst, false
		}
	}
	start := len(dst)
	var acc uint32
	q, pads, padded := 0, 0, false // symbols in this quad; pads since the last symbol; any pad at all
	for i, c := range text {
		if c == '=' {
			padded = true
			if q < 2 {
				continue // CPython's quirk: also behind a complete quad
			}
			pads++
			if q+pads < 4 {
				continue
			}
			if strict && i != len(text)-1 {
				return dst[:start], false
			}
			return dst, true
		}
		v := base64Values[c]
		if v == 0xFF {
			if strict {
				return dst[:start], false
			}
			continue
		}
		if strict && padded {
			return dst[:start], false
		}
		pads = 0
		acc = acc<<6 | uint32(v)
		switch q {
		case 1:
			dst = append(dst, byte(acc>>4))
		case 2:
			dst = append(dst, byte(acc>>2))
		case 3:
			dst = append(dst, byte(acc))
		}
		q = (q + 1) & 3
	}
	if q != 0 {
		return dst[:start], false
	}
	return dst, true
}

// AppendBase64 appends the canonical encoding of blob.
func AppendBase64(dst, blob []byte) []byte {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	for len(blob) >= 3 {
		v := uint(blob[0])<<16 | uint(blob[1])<<8 | uint(blob[2])
		dst = append(dst, alphabet[v>>18], alphabet[v>>12&63], alphabet[v>>6&63], alphabet[v&63])
		blob = blob[3:]
	}
	switch len(blob) {
	case 1:
		v := uint(blob[0]) << 16
		dst = append(dst, alphabet[v>>18], alphabet[v>>12&63], '=', '=')
	case 2:
		v := uint(blob[0])<<16 | uint(blob[1])<<8
		dst = append(dst, alphabet[v>>18], alphabet[v>>12&63], alphabet[v>>6&63], '=')
	}
	return dst
}
