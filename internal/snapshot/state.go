package snapshot

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"

	"github.com/dnsmesh/dmpd/internal/vfs"
)

// The file of a state snapshot, NAME-<lsn, 16 hex>.snap: entries as they stand in the log's frames, the newest of each key, one after
// the other. Integers big-endian.
//
//	 0  magic "dmpstat\n"   8
//	 8  format              2
//	10  lowest reader       2
//	12  CRC-32C             4   of everything behind it
//	16  lsn                 8
//	24  epoch              16
//	40  entries
const (
	stateMagic  = "dmpstat\n"
	stateHeader = 40
	// StateMax bounds what is read: a million keys and tokens of a few hundred bytes.
	StateMax = 1 << 30
)

// WriteState makes the state snapshot at an lsn, durable, and removes older ones.
func WriteState(fs vfs.FS, dir, name string, lsn uint64, epoch [16]byte, entries []byte) error {
	b := make([]byte, stateHeader, stateHeader+len(entries))
	copy(b, stateMagic)
	binary.BigEndian.PutUint16(b[8:], formatNumber)
	binary.BigEndian.PutUint16(b[10:], lowestReader)
	binary.BigEndian.PutUint64(b[16:], lsn)
	copy(b[24:], epoch[:])
	b = append(b, entries...)
	binary.BigEndian.PutUint32(b[12:], crc32.Checksum(b[16:], castagnoli))
	path := Path(dir, name, lsn)
	temporary := path + ".new"
	if err := writeWhole(fs, temporary, b); err != nil {
		_ = fs.Remove(temporary)
		return fmt.Errorf("snapshot: %w", err)
	}
	if err := fs.Rename(temporary, path); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if err := fs.SyncDir(dir); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	newest := filepath.Base(path)
	return removeOld(fs, dir, name, func(f string) bool { return strings.HasSuffix(f, ".snap") && f < newest })
}

func writeWhole(fs vfs.FS, path string, b []byte) error {
	f, err := fs.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(b, 0); err != nil {
		return err
	}
	return f.Sync()
}

// ReadState reads the newest state snapshot; ok is false if there is none.
func ReadState(fs vfs.FS, dir, name string) (lsn uint64, epoch [16]byte, entries []byte, ok bool, err error) {
	lsns, err := List(fs, dir, name)
	if err != nil || len(lsns) == 0 {
		return 0, epoch, nil, false, err
	}
	path := Path(dir, name, lsns[len(lsns)-1])
	size, _, err := fs.Stat(path)
	if err != nil {
		return 0, epoch, nil, false, fmt.Errorf("snapshot: %w", err)
	}
	if size > StateMax {
		return 0, epoch, nil, false, &CorruptError{path, size, "it is larger than a state can be"}
	}
	b, err := readAll(fs, path)
	if err != nil {
		return 0, epoch, nil, false, fmt.Errorf("snapshot: %w", err)
	}
	if len(b) < stateHeader || string(b[:8]) != stateMagic {
		return 0, epoch, nil, false, &CorruptError{path, 0, "it does not begin like a state snapshot"}
	}
	if low := binary.BigEndian.Uint16(b[10:]); low > formatNumber {
		return 0, epoch, nil, false, fmt.Errorf("%w: %s has format %d, which needs a reader of %d; this one reads %d", ErrFormat, path, binary.BigEndian.Uint16(b[8:]), low, formatNumber)
	}
	if crc32.Checksum(b[16:], castagnoli) != binary.BigEndian.Uint32(b[12:]) {
		return 0, epoch, nil, false, &CorruptError{path, 12, "the checksum is wrong"}
	}
	copy(epoch[:], b[24:])
	return binary.BigEndian.Uint64(b[16:]), epoch, b[stateHeader:], true, nil
}
