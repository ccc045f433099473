package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/killpoint"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

// Requests follows the other plane's requests log and hands over what it finds, in order. It is one goroutine's.
type Requests struct {
	s         *Store
	fs        vfs.FS
	dir       string
	r         *journal.Reader // nil: to be opened
	epoch     [16]byte
	submitted uint64 // lsn of the last one handed over
}

// Requests begins behind what the store has found taken. dir is the folder of requests-*.log.
func (s *Store) Requests(fs vfs.FS, dir string) *Requests {
	at := s.Recovered()
	return &Requests{s: s, fs: fs, dir: dir, epoch: at.RequestsEpoch, submitted: at.Requests}
}

// Position is that of the last request handed over.
func (q *Requests) Position() (epoch [16]byte, lsn uint64) { return q.epoch, q.submitted }

// Close lets go of the log.
func (q *Requests) Close() {
	if q.r != nil {
		q.r.Close()
		q.r = nil
	}
}

// request is a frame of the requests log.
type request struct {
	lsn    uint64
	req    *record.Request // nil for a void
	voided uint64          // the request that a void is for
}

// Take reads the requests log to its end, and only then hands on what it found, so that a request whose VOID is there is not applied. Only
// the newest epoch counts: what a control plane left that died without a clean end was never answered. taken counts requests.
func (q *Requests) Take() (taken int, err error) {
	if q.r == nil {
		r, err := journal.OpenNewest(q.fs, q.dir, "requests")
		if errors.Is(err, os.ErrNotExist) {
			return taken, nil
		}
		if err != nil {
			return taken, err
		}
		q.r = r
	}
	var found []request
	voids := map[uint64]bool{}
	for {
		lsn, payload, ok, err := q.r.Next()
		if errors.Is(err, journal.ErrEpoch) {
			found = found[:0]
			clear(voids)
			continue
		}
		if errors.Is(err, journal.ErrGone) {
			// The control plane unlinked what it knows to be taken: go on behind it.
			q.r.Close()
			q.r = nil
			return taken, nil
		}
		if err != nil {
			// This log is not synced. After a power cut it may be damaged until the control plane begins a new epoch: look for that.
			q.Close()
			return taken, err
		}
		if !ok {
			break
		}
		req, voided, err := record.ReadRequest(bytes.Clone(payload))
		if err != nil {
			return taken, fmt.Errorf("store: requests log, frame %d: %w", lsn, err)
		}
		if req == nil {
			voids[voided] = true
		}
		found = append(found, request{lsn, req, voided})
	}
	if len(found) == 0 {
		return taken, nil
	}
	epoch := q.r.Epoch()
	if q.epoch != epoch {
		q.s.SetRequestsEpoch(epoch)
		q.epoch, q.submitted = epoch, 0
	}
	for _, f := range found {
		if f.lsn <= q.submitted {
			continue // before a restart
		}
		var err error
		switch {
		case f.req == nil:
			err = q.s.SubmitVoid(f.lsn, f.voided)
		case voids[f.lsn]:
			err = q.s.SubmitVoid(f.lsn, f.lsn)
		default:
			killpoint.Hit("request-taken")
			if err = q.s.SubmitRequest(f.lsn, f.req, nil); err == nil {
				taken++
			}
		}
		if err != nil {
			return taken, err
		}
		q.submitted = f.lsn
	}
	return taken, nil
}
