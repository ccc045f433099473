package store

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dnsmesh/dmpd/internal/vfs"
)

// originFile holds the node's id as an origin of rows, 8 random bytes, made once.
const originFile = "node-id"

// Origin reads the id of the node whose rows lie in dir, or makes it. The caller holds the folder's lock.
func Origin(dir string) (id [8]byte, err error) {
	path := filepath.Join(dir, originFile)
	b, err := os.ReadFile(path)
	switch {
	case err == nil && len(b) == len(id):
		return [8]byte(b), nil
	case err == nil:
		return id, fmt.Errorf("store: %s has %d bytes, not %d", path, len(b), len(id))
	case !errors.Is(err, os.ErrNotExist):
		return id, fmt.Errorf("store: %w", err)
	}
	rand.Read(id[:])
	temporary := path + ".new"
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = f.Write(id[:])
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err == nil {
		err = vfs.OS.SyncDir(dir)
	}
	if err != nil {
		return id, fmt.Errorf("store: %w", err)
	}
	return id, nil
}
