package wire

import (
	"bytes"
	"errors"
)

// Limits of RFC 1035 2.3.4.
const (
	LabelMax = 63
	NameMax  = 255
)

// Names are handled in wire form: labels with their lengths, and the root byte at the end. "Lower" says that A to Z are lower case
// (RFC 4343).

// lowerTable maps a byte to lower case.
var lowerTable = func() (t [256]byte) {
	for i := range t {
		t[i] = byte(i)
		if 'A' <= i && i <= 'Z' {
			t[i] = byte(i) + 'a' - 'A'
		}
	}
	return t
}()

// ErrName says that text or bytes are no domain name.
var ErrName = errors.New("wire: not a domain name")

// AppendName appends a name given as text, with the escapes of RFC 1035 5.1 (\. and \DDD), in lower case. A trailing dot may be there.
// "" and "." are the root.
func AppendName(dst []byte, text string) ([]byte, error) {
	start := len(dst)
	if text == "." {
		text = ""
	}
	for i := 0; i < len(text); {
		at := len(dst)
		dst = append(dst, 0)
		for ; i < len(text) && text[i] != '.'; i++ {
			c := text[i]
			if c == '\\' {
				var n int
				if c, n = unescape(text[i:]); n == 0 {
					return dst[:start], ErrName
				}
				i += n - 1
			}
			dst = append(dst, lowerTable[c])
		}
		n := len(dst) - at - 1
		if n == 0 || n > LabelMax {
			return dst[:start], ErrName
		}
		dst[at] = byte(n)
		i++ // the dot
	}
	dst = append(dst, 0)
	if len(dst)-start > NameMax {
		return dst[:start], ErrName
	}
	return dst, nil
}

func unescape(s string) (c byte, n int) {
	if len(s) < 2 {
		return 0, 0
	}
	if s[1] < '0' || s[1] > '9' {
		return s[1], 2
	}
	v := 0
	for _, d := range []byte(s[1:min(4, len(s))]) {
		if d < '0' || d > '9' {
			return 0, 0
		}
		v = 10*v + int(d-'0')
	}
	if len(s) < 4 || v > 255 {
		return 0, 0
	}
	return byte(v), 4
}

// MustName is AppendName for text of our own; it panics.
func MustName(text string) []byte {
	name, err := AppendName(nil, text)
	if err != nil {
		panic("wire: " + text + " is not a domain name")
	}
	return name
}

// AppendText appends a name as text without the trailing dot, with escapes; the root is ".".
func AppendText(dst, name []byte) []byte {
	if len(name) <= 1 {
		return append(dst, '.')
	}
	for i := 0; i < len(name) && name[i] != 0; {
		n := int(name[i])
		if i > 0 {
			dst = append(dst, '.')
		}
		for _, c := range name[i+1 : min(i+1+n, len(name))] {
			switch {
			case c == '.' || c == '\\' || c == '"' || c == ';' || c == '(' || c == ')' || c == '@' || c == '$':
				dst = append(dst, '\\', c)
			case c <= ' ' || c >= 0x7F:
				dst = append(dst, '\\', '0'+c/100, '0'+c/10%10, '0'+c%10)
			default:
				dst = append(dst, c)
			}
		}
		i += 1 + n
	}
	return dst
}

// Text is AppendText as a string.
func Text(name []byte) string { return string(AppendText(nil, name)) }

// ValidName checks the wire form of a whole name.
func ValidName(name []byte) bool {
	if len(name) == 0 || len(name) > NameMax {
		return false
	}
	i := 0
	for name[i] != 0 {
		n := int(name[i])
		if n > LabelMax || i+1+n >= len(name) {
			return false
		}
		i += 1 + n
	}
	return i == len(name)-1
}

// AppendLower appends a name in lower case.
func AppendLower(dst, name []byte) []byte {
	for _, c := range name { // lengths are below 'A'
		dst = append(dst, lowerTable[c])
	}
	return dst
}

// IsSubdomain says whether name is parent or below it, label by label. Both are lower.
func IsSubdomain(name, parent []byte) bool {
	for len(name) > len(parent) {
		name = name[1+name[0]:]
	}
	return bytes.Equal(name, parent)
}

// Labels counts the labels without the root.
func Labels(name []byte) (n int) {
	for len(name) > 0 && name[0] != 0 {
		name = name[1+name[0]:]
		n++
	}
	return n
}

// FirstLabel gives the first label's bytes and the rest of the name.
func FirstLabel(name []byte) (label, rest []byte) {
	if len(name) == 0 || name[0] == 0 {
		return nil, name
	}
	n := 1 + int(name[0])
	return name[1:n], name[n:]
}

// readName reads the name at off, following pointers, which must go strictly back (dns.md 3.1). It appends the name in lower case
// to dst and gives the offset behind it in the message.
func readName(dst, msg []byte, off int) (name []byte, next int, f Fault) {
	start := len(dst)
	next = -1
	limit := off // the next pointer must go before this
	for {
		if off >= len(msg) {
			return dst[:start], 0, BadName
		}
		n := int(msg[off])
		switch {
		case n == 0:
			dst = append(dst, 0)
			if next < 0 {
				next = off + 1
			}
			if len(dst)-start > NameMax {
				return dst[:start], 0, BadName
			}
			return dst, next, OK
		case n <= LabelMax:
			if off+1+n > len(msg) || len(dst)-start+1+n >= NameMax {
				return dst[:start], 0, BadName
			}
			dst = append(dst, byte(n))
			for _, c := range msg[off+1 : off+1+n] {
				dst = append(dst, lowerTable[c])
			}
			off += 1 + n
		case n >= 0xC0: // RFC 1035 4.1.4
			if off+2 > len(msg) {
				return dst[:start], 0, BadName
			}
			to := (n&0x3F)<<8 | int(msg[off+1])
			if to >= limit || to < HeaderSize {
				return dst[:start], 0, BadPointer
			}
			if next < 0 {
				next = off + 2
			}
			off, limit = to, to
		default: // 01 and 10 (RFC 6891 5, RFC 2673)
			return dst[:start], 0, BadName
		}
	}
}
