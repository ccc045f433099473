package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/snapshot"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

// view is the records as a data folder holds them at one moment: the newest snapshot and what the log says since. It takes no lock and
// asks nobody, so that it works beside a running node; it sees what is durable.
type view struct {
	snap  *snapshot.Snapshot // nil before the first
	rows  map[viewKey]*record.Row
	names map[string][]*record.Row // the same rows, by name
	meta  snapshot.Meta
}

type viewKey struct {
	name string
	hash [32]byte
}

// openTries bounds how often a view begins again because the data plane made a snapshot meanwhile.
const openTries = 20

func openView(dir string) (*view, error) {
	var err error
	for range openTries {
		var v *view
		if v, err = readView(dir); err == nil {
			return v, nil
		}
		if !errors.Is(err, journal.ErrGone) && !errors.Is(err, journal.ErrEpoch) && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	return nil, err
}

func readView(dir string) (*view, error) {
	v := &view{rows: map[viewKey]*record.Row{}, names: map[string][]*record.Row{}}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return v, nil
	}
	snap, err := snapshot.Latest(vfs.OS, dir, "rows")
	if err != nil {
		return nil, err
	}
	from := uint64(1)
	if snap != nil {
		v.snap, v.meta = snap, snap.Meta
		v.meta.Zone = bytes.Clone(snap.Zone)
		from = snap.LSN + 1
	}
	r, err := journal.OpenReader(vfs.OS, dir, "rows", from)
	if errors.Is(err, os.ErrNotExist) && snap == nil {
		return v, nil // no data plane was ever here
	}
	if err != nil {
		v.close()
		return nil, err
	}
	defer r.Close()
	if err := v.read(r); err != nil {
		v.close()
		return nil, err
	}
	return v, nil
}

func (v *view) read(r *journal.Reader) error {
	for {
		lsn, payload, ok, err := r.Next()
		if errors.Is(err, journal.ErrEpoch) {
			continue // the writer began a new one after a crash; what counts is what it wrote
		}
		if err != nil {
			return err
		}
		if !ok {
			v.meta.Epoch = r.Epoch()
			return nil
		}
		v.meta.LSN = lsn
		if err := record.ReadFrame(payload, v.entry); err != nil {
			return fmt.Errorf("rows log, frame %d: %w", lsn, err)
		}
	}
}

func (v *view) entry(feedMs int64, e *record.Entry) error {
	v.meta.FeedMs = feedMs
	switch e.Kind {
	case record.KindPut, record.KindRefresh, record.KindTombstone:
		return v.element(e)
	case record.KindExpire:
		v.meta.CutMs = e.CutMs
	case record.KindTaken:
		v.meta.RequestsEpoch, v.meta.Requests, v.meta.StateEpoch, v.meta.State = e.RequestsEpoch, e.Requests, e.StateEpoch, e.State
	case record.KindSerial:
		v.meta.Zone, v.meta.Serial = bytes.Clone(e.Zone), e.Serial
	}
	return nil
}

func (v *view) element(e *record.Entry) error {
	k := viewKey{string(e.Row.Name), e.Row.Hash}
	row := e.Row
	row.Name, row.RDATA = []byte(k.name), bytes.Clone(e.Row.RDATA)
	old := v.rows[k]
	if e.Kind == record.KindRefresh {
		if old != nil {
			row.RDATA = old.RDATA
		} else if v.snap != nil {
			err := v.snap.Name(e.Row.Name, func(r *record.Row) bool {
				if r.Hash == k.hash {
					row.RDATA = bytes.Clone(r.RDATA)
				}
				return true
			})
			if err != nil {
				return err
			}
		}
		if row.RDATA == nil {
			return fmt.Errorf("%w: a refresh of a value that was never stored", record.ErrFormat)
		}
	}
	if old != nil {
		*old = row
		return nil
	}
	v.rows[k] = &row
	v.names[k.name] = append(v.names[k.name], &row)
	return nil
}

func (v *view) close() {
	if v.snap != nil {
		v.snap.Close()
	}
}

// each calls f for every row in feed order, tombstones and expired ones included. The row is valid during the call.
func (v *view) each(f func(r *record.Row) error) error {
	if v.snap != nil {
		var failed error
		err := v.snap.Each(func(_ record.ID, r *record.Row) bool {
			if v.rows[viewKey{string(r.Name), r.Hash}] == nil {
				failed = f(r)
			}
			return failed == nil
		})
		if err = cmp.Or(failed, err); err != nil {
			return err
		}
	}
	tail := make([]*record.Row, 0, len(v.rows))
	for _, r := range v.rows {
		tail = append(tail, r)
	}
	slices.SortFunc(tail, func(a, b *record.Row) int {
		return cmp.Or(cmp.Compare(a.FeedMs, b.FeedMs), bytes.Compare(a.Name, b.Name), bytes.Compare(a.Hash[:], b.Hash[:]))
	})
	for _, r := range tail {
		if err := f(r); err != nil {
			return err
		}
	}
	return nil
}

// name gives the rows at a name (wire form, lower case).
func (v *view) name(name []byte, f func(r *record.Row) error) error {
	if v.snap != nil {
		var failed error
		err := v.snap.Name(name, func(r *record.Row) bool {
			if v.rows[viewKey{string(r.Name), r.Hash}] == nil {
				failed = f(r)
			}
			return failed == nil
		})
		if err = cmp.Or(failed, err); err != nil {
			return err
		}
	}
	for _, r := range v.names[string(name)] {
		if err := f(r); err != nil {
			return err
		}
	}
	return nil
}
