package heartbeat

import (
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/dnsmesh/dmpd/internal/logging"
)

// keyFileMax is more than any form of a key has, white space included.
const keyFileMax = 4096

// LoadKey reads an operator key file (federation.md 11): the 32 bytes of an Ed25519 seed, or its 64 hexadecimal digits. Only text is
// trimmed: a raw seed may begin or end with a byte that looks like white space. The file is never made here.
func LoadKey(path string, log *logging.Logger) (ed25519.PrivateKey, error) {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, fmt.Errorf("operator key %s: %w", path, err)
		}
		path = filepath.Join(home, rest)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("operator key: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, keyFileMax+1))
	if err != nil {
		return nil, fmt.Errorf("operator key: %w", err)
	}
	if info, err := f.Stat(); err == nil && info.Mode().Perm()&0o077 != 0 {
		log.Warn("the operator key may be read by other users of this machine: chmod 600", "file", path)
	}
	seed, ok := parseSeed(b)
	if !ok {
		return nil, fmt.Errorf("operator key %s: %d bytes, neither a seed of 32 bytes nor one of 64 hexadecimal digits", path, len(b))
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

func parseSeed(b []byte) ([]byte, bool) {
	if len(b) == ed25519.SeedSize {
		return b, true
	}
	if len(b) > keyFileMax {
		return nil, false
	}
	seed, err := hex.DecodeString(strings.TrimSpace(string(b)))
	return seed, err == nil && len(seed) == ed25519.SeedSize
}
