// Package store holds every record of the node in memory and is the one place where they change.
//
// Readers ask a View: an index from names to immutable blocks of encoded records (index.go, block.go, arena.go), read
// without lock and without allocation. Writers hand batches to one goroutine, the committer (commit.go): it decides each
// message over a staged view of its group (stage.go), writes the group as one frame of the rows log, syncs once,
// publishes, and only then answers (RFC 2136 3.5: on disk before visible, visible before acknowledged).
package store

import (
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

// Options say where the store lives. Zero values get the defaults named beside them.
type Options struct {
	FS  vfs.FS // vfs.OS
	Dir string // the folder of rows-*.log and rows-*.snap, made if missing
	Log *logging.Logger

	Zone        []byte // wire, lower case: the zone whose serial is kept
	FirstSerial uint32 // the serial starts above this one (an imported or restored zone)
	Origin      [8]byte

	Durability  journal.Durability
	RetainMs    int64 // journal.Options.RetainMs
	RetainBytes int64
	SegmentMax  int64
	Reaches     uint64 // lsn of rows that the other plane says it has seen: a log that ends below it is corrupt

	TombstoneLifeMs int64 // how long a delete is remembered: largest TTL + 60 s (24 h + 60 s)
	MergeMin        int64 // log growth at which the first snapshot is made (16 MiB)
	FreeMin         int64 // disk space that must stay free beside what the next snapshot needs (1 MiB)
	Limits          Limits

	NowMs  func() int64   // clock.NowMs
	Synced func(ns int64) // told how long each sync took, by the committer
	// Answered is called by the committer after Done of a whole group, so that what Done queued can be sent at once.
	Answered func()
	// Manual leaves out every timer and background goroutine but the committer, for tests that step time themselves
	// with Tick.
	Manual bool
}

// Limits may change while the store runs (SetLimits). Zero or less switches a limit off.
type Limits struct {
	ValuesMax        int   // live values at one name; an eighth of it is kept for writers with delete rights there
	RecordsMax       int64 // values and tombstones of the node
	BytesMax         int64 // bytes of blocks in the arena
	WriterRecordsMax int   // live values that one writer has added
}

// Stats is what the store measures of itself.
type Stats struct {
	Records, Names, Tombstones  int64 // values stored (the expired go at the next cut), names with values, deletes remembered
	Bytes, ArenaBytes           int64 // bytes of live blocks; bytes mapped for blocks
	LogBytes, SnapshotBytes     int64
	Groups, Messages, FailSyncs int64 // groups committed, messages decided, groups dropped because a write or sync failed
	SyncNs, SyncMaxNs           int64 // in all, and the longest
	Expired, Snapshots          int64
	ReadOnly                    bool // disk space is below the low-water mark, or the log cannot be written
	Serial                      uint32
	LSN                         uint64
	FeedMs                      int64
}

// PrereqKind names the five prerequisites of RFC 2136 2.4. Only TXT and ANY come here: whatever concerns the records
// that the configuration gives (apex SOA, NS, A, AAAA) is decided by the caller.
type PrereqKind uint8

const (
	NameInUse    PrereqKind = iota // 2.4.4: else NXDOMAIN
	NameNotInUse                   // 2.4.5: else YXDOMAIN
	RRsetExists                    // 2.4.1: else NXRRSET
	RRsetEqual                     // 2.4.2: the RRset is exactly Values, else NXRRSET
	RRsetAbsent                    // 2.4.3: else YXRRSET
)

// Prereq is one prerequisite; for RRsetEqual all RRs of a name together.
type Prereq struct {
	Kind   PrereqKind
	Name   []byte   // wire, lower case
	Values [][]byte // RDATA, for RRsetEqual
}

// Batch is one message that was prepared: every check that message and key alone decide is behind it. The store owns it
// and all it points to from Submit until Done.
type Batch struct {
	Prereqs []Prereq
	Ops     []record.Op
	// KeyLive, if set, is asked when the batch is decided; false refuses it with NOTAUTH and nothing is applied.
	KeyLive func() bool
	Writer  [16]byte // whose quota it counts against; zero: nobody's
	// Done is called once, on the committer's goroutine, after the change is durable and visible (or refused). It must not
	// block.
	Done func(Result)

	request uint64 // lsn in the requests log, 0 for a message that came over DNS
	void    bool   // nothing is to be done
	voids   uint64 // lsn of the request that this says is void
	tooBig  bool   // its frame would be
	next    *Batch // handed over with it
}

// Result is what became of a batch.
type Result struct {
	Code    record.Code
	Rcode   uint8 // RFC 2136 2.2
	Applied int   // values added, refreshed or deleted
}

// Position is how far the other plane's logs have been taken, as the last durable frame says.
type Position struct {
	RequestsEpoch [16]byte
	Requests      uint64
	StateEpoch    [16]byte
	State         uint64
}
