package store

import "github.com/dnsmesh/dmpd/internal/record"

// Store is the records of a node.
type Store struct{}

// Open reads what the folder holds and starts the committer. A folder whose files are damaged is an error that names
// file and offset (journal.ErrCorrupt), never an empty store.
func Open(o Options) (*Store, error) { panic("not yet") }

// Submit hands a batch to the committer; false if the queue is full or the store closed (answer SERVFAIL at once).
func (s *Store) Submit(b *Batch) bool { panic("not yet") }

// SubmitRequest hands over the request at that position of the requests log, in order of position; it waits while the
// queue is full and fails only when the store is closed. done may be nil.
func (s *Store) SubmitRequest(lsn uint64, r *record.Request, done func(Result)) error {
	panic("not yet")
}

// SubmitVoid says that nothing is to be done for that position of the requests log: it is a VOID frame, or one names it.
func (s *Store) SubmitVoid(lsn uint64) error { panic("not yet") }

// Recovered is the position found at start; the taker begins behind it.
func (s *Store) Recovered() Position { panic("not yet") }

// Taken is the position in the last durable frame.
func (s *Store) Taken() Position { panic("not yet") }

// SetRequestsEpoch names the epoch of the requests log from which requests come from now on.
func (s *Store) SetRequestsEpoch(epoch [16]byte) { panic("not yet") }

// SetStateTaken is how far the state log has been taken; it is written with the next frame, at most 10 s later.
func (s *Store) SetStateTaken(epoch [16]byte, lsn uint64) { panic("not yet") }

// View is the records as queries see them; it stays valid and current until Close.
func (s *Store) View() View { panic("not yet") }

// NewReader registers an event loop.
func (s *Store) NewReader() *Reader { panic("not yet") }

// Serial is the zone's serial.
func (s *Store) Serial() uint32 { panic("not yet") }

// SetLimits changes the limits from the next message on.
func (s *Store) SetLimits(l Limits) { panic("not yet") }

// Stats is a reading of the gauges.
func (s *Store) Stats() Stats { panic("not yet") }

// Journal tells the epoch of the rows log and its last committed lsn.
func (s *Store) Journal() (epoch [16]byte, committed uint64) { panic("not yet") }

// Notify sets what is called after each group is visible, with its lsn; it must not block.
func (s *Store) Notify(f func(lsn uint64)) { panic("not yet") }

// Close commits what waits, then closes. Readers must have stopped.
func (s *Store) Close() error { panic("not yet") }

// Reader is one event loop's part in the protocol that says when a freed block may be used again. Between Enter and
// Leave whatever Lookup returned stays as it is. One goroutine only.
type Reader struct{}

func (r *Reader) Enter() { panic("not yet") }
func (r *Reader) Leave() { panic("not yet") }

// View reads the records. It has nothing that writes.
type View struct{}

// Lookup finds the RRset at name: wire form, lower case, which may lie in a packet. ok says that values are stored; some
// or all may have expired (RRset.Live). Call it between Enter and Leave. No lock, no allocation.
func (v View) Lookup(name []byte) (set RRset, ok bool) { panic("not yet") }

// HasBelow says whether the name exists because a name below it does (an empty non-terminal, RFC 8020).
func (v View) HasBelow(name []byte, nowMs int64) bool { panic("not yet") }

// Serial is the zone's serial.
func (v View) Serial() uint32 { panic("not yet") }

// RRset is the TXT values at a name, a view of a block: valid until the Reader leaves.
type RRset struct{}

// Count is the values stored, the expired included.
func (r RRset) Count() int { panic("not yet") }

// Live counts the live values, the bytes of their answer RRs (owner as a pointer), and tells when the first expires.
func (r RRset) Live(nowMs int64) (n, size int, firstExpMs int64) { panic("not yet") }

// AppendAnswers appends the live values as answer RRs (owner 0xC00C, TXT, IN), as many as fit into room bytes, in
// canonical order (RFC 4034 6.3). whole is false if some did not fit.
func (r RRset) AppendAnswers(dst []byte, ttlSec uint32, nowMs int64, room int) (out []byte, n int, whole bool) {
	panic("not yet")
}

// Value is one element of an RRset.
type Value struct {
	RDATA  []byte
	ExpMs  int64
	Add    record.HLC
	Flags  uint8
	Origin [8]byte
}

// Each calls f for every stored value, the expired included, in canonical order.
func (r RRset) Each(f func(v Value) bool) { panic("not yet") }
