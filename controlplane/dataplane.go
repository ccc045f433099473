package controlplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/killpoint"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/snapshot"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

// requests is the way of records to the data plane (design.md, Committed and taken).
//
// A request is appended to control/requests and answered on its outcome in data/rows, which is durable. If the data plane is away, a VOID
// for the request is appended. A data plane that starts reads to the end before it applies anything, so that what was voided while
// it was dead never happens; one that had taken the request before it died has its outcome in the log, which is read to its end
// before anything else is answered. One that only hangs may still come to itself and apply the request: then the outcome is not known,
// and the answer says so.
type requests struct {
	fs      vfs.FS
	dataDir string
	tail    *tail
	log     *logging.Logger
	live    *journal.Live // our own page, whose bell the data plane hears

	mu sync.Mutex
	w  *journal.Writer

	dataMu   sync.Mutex
	dataLive *journal.Live

	state func() dataState // of the data plane; a test may say what it is
}

// Errors of a request that was not decided.
var (
	errAway    = errors.New("the data plane is away")
	errAhead   = errors.New("too many requests wait for the data plane")
	errUnknown = errors.New("the data plane does not answer; the outcome is not known")
)

const (
	// aheadMax is how far the log of requests may run ahead of what is taken (design.md).
	aheadMax = 64 << 20
	// requestsSegment is small, so that what is taken is soon unlinked.
	requestsSegment = 16 << 20
	// awayPoll is how often a waiting request looks whether the data plane is still there.
	awayPoll = 100 * time.Millisecond
	// unknownAfter is how long a request waits for a data plane that lives but does not move.
	unknownAfter = 10 * time.Second
)

func openRequests(fs vfs.FS, controlDir, dataDir string, t *tail, live *journal.Live, log *logging.Logger) (*requests, error) {
	w, err := journal.Open(journal.Options{FS: fs, Dir: controlDir, Name: "requests", SegmentMax: requestsSegment, Durability: journal.OS, Log: log}, 0, nil)
	if err != nil {
		return nil, err
	}
	q := &requests{fs: fs, dataDir: dataDir, tail: t, log: log, live: live, w: w}
	q.state = q.look
	return q, nil
}

func (q *requests) close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.w.Close()
}

// data gives the data plane's live page, if there is one.
func (q *requests) data() *journal.Live {
	q.dataMu.Lock()
	defer q.dataMu.Unlock()
	l, err := journal.OpenLive(q.fs, filepath.Join(q.dataDir, "live"))
	if err != nil {
		return nil
	}
	if q.dataLive != nil && q.dataLive.Pid() == l.Pid() && q.dataLive.Build() == l.Build() {
		l.Close()
		return q.dataLive
	}
	// The old mapping may still be read by somebody; a page of memory for each start of the data plane is let be.
	q.dataLive = l
	return l
}

// state of the data plane.
type dataState uint8

const (
	dataServing dataState = iota
	dataHanging           // holds its lock, but has not beaten for a while
	dataGone              // nobody holds the lock
)

func (q *requests) look() dataState {
	if !journal.Locked(filepath.Join(q.dataDir, "lock")) {
		return dataGone
	}
	if l := q.data(); l != nil && clock.NowMs()-l.BeatMs() < journal.BeatLost.Milliseconds() {
		return dataServing
	}
	return dataHanging
}

// do has a request decided. The outcome is durable.
func (q *requests) do(ctx context.Context, r *record.Request) (snapshot.Outcome, error) {
	epoch, lsns, err := q.submit([][]byte{record.AppendRequest(nil, r)})
	if err != nil {
		return snapshot.Outcome{}, err
	}
	return q.wait(ctx, epoch, lsns[0])
}

// submit appends requests. All of them are in the log, or none counts.
func (q *requests) submit(payloads [][]byte) (epoch [16]byte, lsns []uint64, err error) {
	if q.state() != dataServing {
		return epoch, nil, errAway
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	epoch = q.w.Epoch()
	if taken := q.tail.durable(epoch); taken > 0 {
		if err := q.w.Drop(taken); err != nil {
			q.log.Warn("taken requests cannot be unlinked", "err", err)
		}
	}
	if q.w.Size() > aheadMax {
		return epoch, nil, errAhead
	}
	if lsns, err = q.append(payloads...); err != nil {
		return epoch, nil, fmt.Errorf("requests log: %w", err)
	}
	killpoint.Hit("request-appended")
	return epoch, lsns, nil
}

// append needs mu.
func (q *requests) append(payloads ...[]byte) (lsns []uint64, err error) {
	for _, p := range payloads {
		lsn, err := q.w.Append(p)
		if err != nil {
			return nil, err
		}
		lsns = append(lsns, lsn)
	}
	if err = q.w.Sync(); err != nil { // commits; this log is not synced
		return nil, err
	}
	q.live.Ring()
	return lsns, nil
}

// Merge is antientropy.Merger: the states go in as one request.
func (q *requests) Merge(ctx context.Context, rows []record.Row) (record.Code, error) {
	r := record.Request{Source: record.SourcePeer, Ops: make([]record.Op, len(rows))}
	for i := range rows {
		r.Ops[i] = record.Op{Kind: record.OpMerge, Row: &rows[i], Verified: rows[i].Flags&record.FlagVerified != 0}
	}
	o, err := q.do(ctx, &r)
	return o.Code, away(err)
}

func (q *requests) wait(ctx context.Context, epoch [16]byte, lsn uint64) (snapshot.Outcome, error) {
	voided := false
	start := time.Now()
	poll := time.NewTicker(awayPoll)
	defer poll.Stop()
	done := ctx.Done()
	for {
		o, ok, changed := q.tail.outcome(epoch, lsn)
		if ok {
			if o.Code == record.CodeVoid {
				return o, errAway
			}
			return o, nil
		}
		select {
		case <-changed:
			continue
		case <-done:
			// The client is gone. The request may still happen, as any write whose answer is lost; nobody waits for it.
			return o, ctx.Err()
		case <-poll.C:
		}
		state := q.state()
		if state == dataServing && time.Since(start) < unknownAfter {
			continue
		}
		if !voided {
			q.mu.Lock()
			_, err := q.append(record.AppendVoid(nil, lsn))
			q.mu.Unlock()
			if err != nil {
				return o, fmt.Errorf("%w: %w", errUnknown, err)
			}
			killpoint.Hit("void-appended")
			voided = true
			q.log.Warn("a request is given up: the data plane is away", "lsn", lsn)
		}
		if state == dataGone {
			// Nobody can take it any more but one that sees the VOID first. What the dead one left in its log decides.
			if o, ok := q.lastWord(epoch, lsn); ok {
				return o, nil
			}
			if !q.leftBehind(epoch, lsn) {
				return o, errAway
			}
		}
		if time.Since(start) > unknownAfter {
			return o, errUnknown
		}
	}
}

// lastWord reads the log to its end and looks for the outcome once more.
func (q *requests) lastWord(epoch [16]byte, lsn uint64) (snapshot.Outcome, bool) {
	// Two full readings of the follower: the first may have been under way when the data plane died.
	for range 2 {
		o, ok, changed := q.tail.outcome(epoch, lsn)
		if ok && o.Code != record.CodeVoid {
			return o, true
		}
		select {
		case <-changed:
		case <-time.After(time.Second):
		}
	}
	o, ok, _ := q.tail.outcome(epoch, lsn)
	return o, ok && o.Code != record.CodeVoid
}

// leftBehind says whether the outcome may lie behind what is committed: the dead one wrote it and could not commit it. The next data
// plane finds it there after a kill, and perhaps not after a power cut. So nobody knows until there is one.
func (q *requests) leftBehind(epoch [16]byte, lsn uint64) bool {
	position, _, _, _ := q.tail.position()
	found := false
	err := journal.Scan(q.fs, q.dataDir, "rows", position+1, func(_ uint64, payload []byte) error {
		here, ofEpoch := false, false
		err := record.ReadFrame(payload, func(_ int64, e *record.Entry) error {
			switch e.Kind {
			case record.KindOutcome:
				here = here || e.LSN == lsn && e.Code != record.CodeVoid
			case record.KindTaken:
				ofEpoch = e.RequestsEpoch == epoch
			}
			return nil
		})
		found = found || here && ofEpoch
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		q.log.Warn("what the data plane left in its log cannot be read", "err", err)
		return true
	}
	return found
}

// Taken waits until the data plane has taken the state log up to lsn (auth.Taker). With lsn 0 it only says whether there is a data plane.
func (q *requests) taken(ctx context.Context, epoch [16]byte, lsn uint64) error {
	q.live.Ring()
	for {
		if q.state() != dataServing {
			return errAway
		}
		l := q.data()
		if l == nil {
			return errAway
		}
		bell := l.Bell()
		if l.Taken(journal.TakenState, epoch) >= lsn {
			return nil
		}
		l.Wait(bell, awayPoll)
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}
