package antientropy

import (
	"errors"

	"github.com/dnsmesh/dmpd/internal/record"
)

// Reason is the class of why a peer's row was not taken: few enough that each can have a series for each peer.
type Reason uint8

const (
	ReasonFormat      Reason = iota // not well formed: the row, its name, or the record in it
	ReasonType                      // a type of record that does not travel between nodes
	ReasonOwner                     // a record at a name that is not one of its type's
	ReasonSignature                 // or by another key, or of another subject
	ReasonTime                      // it ended, has not begun, lives too long, or has a stamp far ahead
	ReasonSize                      //
	ReasonHash                      // not the value that was announced
	ReasonAbsent                    // announced, and never sent
	ReasonUnsolicited               // sent, and never asked for
	ReasonStore                     // the data plane has no room for it: a full RRset, a full store
	reasonsCount                    //
)

var reasons = [reasonsCount]string{"format", "type", "owner", "signature", "time", "size", "hash", "absent", "unsolicited", "store"}

func (r Reason) String() string { return reasons[r] }

// Rejects counts rows that were not taken, by Reason.
type Rejects [reasonsCount]int64

// Total is all of them.
func (r *Rejects) Total() (n int64) {
	for _, x := range r {
		n += x
	}
	return n
}

// Each calls f for every reason.
func (r *Rejects) Each(f func(Reason, int64)) {
	for i, n := range r {
		f(Reason(i), n)
	}
}

// Add adds others.
func (r *Rejects) Add(o *Rejects) {
	for i, n := range o {
		r[i] += n
	}
}

// reasonOf classifies what the verifier says.
func reasonOf(r record.Refusal) Reason {
	switch r {
	case record.BadType:
		return ReasonType
	case record.BadOwner:
		return ReasonOwner
	case record.BadSignature, record.BadKey, record.BadSubject:
		return ReasonSignature
	case record.NotYet, record.Expired, record.LivesTooLong, record.TooOld:
		return ReasonTime
	}
	return ReasonFormat
}

// errPin says that a peer shows a key that is not pinned for it (DMP_SYNC_PINS): another machine answers at its address, or it has a new
// key that nobody has pinned here.
var errPin = errors.New("is not the pinned one")
