//go:build invariants

package dataplane

// scramble spoils a message once its buffer may be used again, so that whoever kept a slice of it is found.
func scramble(msg []byte) {
	for i := range msg {
		msg[i] ^= 0xA5
	}
}
