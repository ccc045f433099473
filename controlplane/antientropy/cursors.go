package antientropy

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/dnsmesh/dmpd/internal/vfs"
)

// cursors keeps how far each peer's feed is handled, in control/sync-cursors.json (cluster.md 17.6). A cursor is written after the records that it
// covers are durable, never before. Without the file, or with another store's, everything is read again, which is slow and harmless.
type cursors struct {
	fs   vfs.FS
	path string

	mu    sync.Mutex
	epoch string
	peers map[string]savedCursor
	dirty bool
}

type savedCursor struct {
	URL    string `json:"url"`
	Cursor string `json:"cursor"`
}

type cursorFile struct {
	Format int                    `json:"format"`
	Epoch  string                 `json:"store_epoch"`
	Peers  map[string]savedCursor `json:"peers"`
}

const (
	cursorFormat  = 1
	cursorFileMax = 1 << 20 // 32 peers take some kilobytes
	cursorName    = "sync-cursors.json"
)

// openCursors reads the file. err tells why it is not used; the cursors then begin anew.
func openCursors(fs vfs.FS, dir string, epoch [16]byte) (c *cursors, err error) {
	c = &cursors{fs: fs, path: filepath.Join(dir, cursorName), epoch: hex.EncodeToString(epoch[:]), peers: map[string]savedCursor{}}
	f, err := fs.OpenFile(c.path, os.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return c, err
	}
	if size > cursorFileMax {
		return c, fmt.Errorf("%s has %d bytes", c.path, size)
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); n < len(b) {
		return c, err
	}
	var file cursorFile
	if err := json.Unmarshal(b, &file); err != nil || file.Format != cursorFormat {
		return c, fmt.Errorf("%s cannot be read (%w)", c.path, err)
	}
	if file.Epoch != c.epoch {
		return c, nil // another store: what these cursors cover may not be in it
	}
	for id, p := range file.Peers {
		if _, err := ParseCursor(p.Cursor); err == nil {
			c.peers[id] = p
		}
	}
	return c, nil
}

// get gives a peer's cursor; the start if its URL is another one now.
func (c *cursors) get(id, url string) Cursor {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.peers[id]
	if p.URL != url {
		return Cursor{}
	}
	at, _ := ParseCursor(p.Cursor)
	return at
}

func (c *cursors) set(id, url string, at Cursor) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.peers[id] = savedCursor{url, at.String()}
	c.dirty = true
}

// keep forgets the peers that are none any more.
func (c *cursors) keep(ids map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.peers {
		if !ids[id] {
			delete(c.peers, id)
			c.dirty = true
		}
	}
}

// save writes the file if something changed.
func (c *cursors) save() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.dirty {
		return nil
	}
	b, err := json.MarshalIndent(cursorFile{cursorFormat, c.epoch, c.peers}, "", "  ")
	if err != nil {
		return err
	}
	temporary := c.path + ".new"
	if err := c.fs.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := c.fs.OpenFile(temporary, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(append(b, '\n'), 0)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := c.fs.Rename(temporary, c.path); err != nil {
		return err
	}
	if err := c.fs.SyncDir(filepath.Dir(c.path)); err != nil {
		return err
	}
	c.dirty = false
	return nil
}
