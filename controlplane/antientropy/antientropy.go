// Package antientropy keeps the nodes of one operator alike: the endpoints that peers read (server.go), the puller that reads theirs, and
// the cluster manifest that says who they are (spec cluster.md). It reads records through View and writes them through Writer; it owns no
// records itself. The wire is that of the reference node (cluster.md 5 to 9).
package antientropy

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/record"
)

// Sizes and times that the wire fixes (cluster.md 4, 6, 7, 12).
const (
	DigestLimitDefault = 1000
	DigestLimitMax     = 10_000
	PullNamesMax       = 256
	SlopMs             = 5_000  // a longer life counts as a refresh only beyond this
	FutureSkewMs       = 60_000 // a peer's stamps may be that far ahead of our clock
	TTLBoundSec        = 1 << 31
	nameTextMax        = 253
	hashTextLen        = 64
)

// Cursor is a place in a node's feed: rows strictly above it, in the order of stamp, name and hash, come after it (cluster.md 7). The
// zero value is the start. A hash of zeros sorts below every real one, as an empty one does on the wire.
type Cursor struct {
	TsMs int64
	Name string   // text, lower case, no dot at the end
	Hash [32]byte // SHA-256 of the value
}

// Compare orders cursors.
func (c Cursor) Compare(d Cursor) int {
	return cmp.Or(cmp.Compare(c.TsMs, d.TsMs), strings.Compare(c.Name, d.Name), bytes.Compare(c.Hash[:], d.Hash[:]))
}

// String is the cursor as it stands on the wire: stamp, name and hash with colons between.
func (c Cursor) String() string {
	s := strconv.FormatInt(c.TsMs, 10) + ":" + c.Name + ":"
	if c.Hash != [32]byte{} {
		s += hex.EncodeToString(c.Hash[:])
	}
	return s
}

// ErrCursor says that a text is no cursor.
var ErrCursor = errors.New("antientropy: not a cursor")

// ParseCursor reads a cursor; the older form without a hash too (cluster.md 7). Names are not looked into beyond their length.
func ParseCursor(s string) (c Cursor, err error) {
	ts, rest, ok := strings.Cut(s, ":")
	name, hash, _ := strings.Cut(rest, ":")
	if !ok || len(ts) < 1 || len(ts) > 19 || len(name) > nameTextMax || strings.Trim(ts, "0123456789") != "" {
		return Cursor{}, ErrCursor
	}
	if c.TsMs, err = strconv.ParseInt(ts, 10, 64); err != nil {
		return Cursor{}, ErrCursor
	}
	c.Name = name
	if hash == "" {
		return c, nil
	}
	var ok2 bool
	if c.Hash, ok2 = ParseHash(hash); !ok2 {
		return Cursor{}, ErrCursor
	}
	return c, nil
}

// ParseHash reads 64 lower-case hexadecimal digits.
func ParseHash(s string) (h [32]byte, ok bool) {
	if len(s) != hashTextLen || strings.Trim(s, "0123456789abcdef") != "" {
		return h, false
	}
	_, err := hex.Decode(h[:], []byte(s))
	return h, err == nil
}

// FeedRow is a row of the feed with its place in it. Its bytes are the caller's.
type FeedRow struct {
	Name string // text of Row.Name
	record.Row
}

// Cursor is the row's place.
func (r *FeedRow) Cursor() Cursor { return Cursor{r.FeedMs, r.Name, r.Hash} }

// View reads this node's records. Safe for concurrent use; what it gives is the caller's.
type View interface {
	// Page looks at the rows after the cursor, tombstones and expired ones left out, at most limit of them. It looks at a bounded
	// number of rows under its lock: next is how far it looked, more says that it did not reach the end, so that a page may be short
	// or empty and still not the last. No row ever appears at or below a cursor that was the next of an earlier page (cluster.md 17.3).
	Page(after Cursor, limit int, nowMs int64) (rows []FeedRow, next Cursor, more bool, err error)
	// Values gives the live values at a name (wire form, lower case) in feed order.
	Values(name []byte, nowMs int64) ([]FeedRow, error)
	// State gives one element, tombstones and expired ones included: a tombstone has no RDATA and Del of at least Add.
	State(name []byte, hash [32]byte) (row record.Row, found bool, err error)
	// Epoch is the random name of the history that this store has: a new one when history was lost. ok is false before it is known.
	Epoch() (epoch [16]byte, ok bool)
	// Current says that everything committed has been read, but for what comes in at this moment.
	Current() bool
}

// Offer is a record as a peer without stamps has it (cluster.md 17.4). The store decides it by the state at commit.
type Offer struct {
	Name     []byte // wire form, lower case
	Value    []byte
	AddMs    int64 // the peer's feed stamp, corrected by its clock offset, not above our clock
	ExpMs    int64 // our clock; already cut to what this node permits
	Verified bool  // a signature in the value was checked; of a cluster manifest: under the pinned key, which frees it from caps and tombstones
}

// Decision is what became of an offer. Every one of them is durable, and final for a cursor.
type Decision uint8

const (
	Stored     Decision = 1 + iota
	Refreshed           // it was there and lives longer now
	Present             // it was there, with a life that is not shorter by more than SlopMs
	Tombstoned          // it is an old copy of something deleted here
	Refused             // see Result.Reason
)

func (d Decision) String() string {
	return [...]string{"", "stored", "refreshed", "present", "tombstoned", "refused"}[d]
}

// Result is the decision on one offer.
type Result struct {
	Decision Decision
	Reason   string // of Refused: rrset full, store full, ...
}

// Writer hands records over to the data plane.
type Writer interface {
	// Offer has each of the offers decided, at most OffersMax of them, and waits for the durable outcomes, one for each offer. An error
	// means that some have no outcome: none of them counts as handled, and offering them again is harmless. ErrAway says that waiting
	// a little is what helps.
	Offer(ctx context.Context, offers []Offer) ([]Result, error)
}

// OffersMax bounds one call of Writer.Offer: a quarter of the store's group, so that pullers leave room for users.
const OffersMax = 256

// ErrAway says that the data plane does not take records now.
var ErrAway = errors.New("antientropy: the data plane takes no records now")

// Peer is another node of the cluster.
type Peer struct {
	ID        string // node_id, or made from the URL (cluster.md 3.1)
	URL       string // http or https, no slash at the end
	Synthetic bool   // ID was made from the URL
}

// Peers tells who the peers are, and of changes.
type Peers interface {
	// Peers gives the list, without this node, and a channel that closes when it is another one.
	Peers() (peers []Peer, changed <-chan struct{})
}

// Installer takes cluster manifests, however they arrive (cluster.md 3.5).
type Installer interface {
	// Install verifies the text and makes it this node's manifest if it is newer. from is the way it came, for the log: "file",
	// "admin", "record", "peer <id>". A text that is not taken is not an error.
	Install(ctx context.Context, text []byte, from string) (Installed, error)
}

// Installed is what became of a manifest that was offered for installation.
type Installed uint8

const (
	ManifestNew     Installed = 1 + iota
	ManifestSame              // it is the one that is installed
	ManifestOlder             // or it lost against another one with its number
	ManifestRefused           // signature, name, time, or no key or name to check it with
)

// Settings is what the operator says (cluster.md 12). It may change on SIGHUP.
type Settings struct {
	Token       string        // DMP_SYNC_PEER_TOKEN
	Previous    []string      // further tokens that callers may still show
	NodeID      string        // DMP_NODE_ID
	SelfURL     string        // DMP_SYNC_SELF_ENDPOINT
	URLs        []string      // DMP_SYNC_PEERS
	File        string        // DMP_CLUSTER_FILE
	Interval    time.Duration // DMP_SYNC_INTERVAL
	Pins        []string      // DMP_SYNC_PINS
	Operator    *[32]byte     // DMP_SYNC_OPERATOR_SPK; nil: none
	BaseDomain  string        // DMP_CLUSTER_BASE_DOMAIN; may be empty
	MaxTTLSec   int64         // 0: no limit
	MaxValueLen int           // 0: no limit of its own
}

// PeerStatus is a reading for metrics, `dmpd cluster status` and the status page.
type PeerStatus struct {
	ID, URL       string
	Native        bool   // by /v2/sync; CaughtUp then says that the roots were equal
	LastSuccessMs int64  // 0: never
	LastError     string // "" after a success
	WatermarkMs   int64  // the peer's stamp up to which all is handled
	LagSec        float64
	LagRows       int64 // rows that the last page showed and that are not handled
	CaughtUp      bool
	OffsetMs      int64 // the peer's clock less ours
	RTTMs         float64
	BytesIn       int64
	BytesOut      int64
	Requests      int64
	Errors        int64
	PinFailures   int64 // connections given up since the peer's key is not a pinned one
	Reconnects    int64
	Stored        int64
	Rejected      Rejects // entries and records that were not taken, quarantined or dropped
	Refreshed     int64
	Tombstoned    int64
	Quarantined   int64 // at present
	BackoffSec    float64
}

// PullerOptions is what a puller works with. NewPuller(PullerOptions) (*Puller, error) gives a Runner.
type PullerOptions struct {
	Dir        string // the control folder: cursors
	View       View
	Writer     Writer
	Peers      Peers
	Manifests  Installer
	BaseDomain func() string // "" while it is not known: then peers are not asked for their manifest
	Settings   func() Settings
	Native     func(peerID string) (native, known bool) // whether it speaks native replication; only known ones that do not are pulled from. nil: none does
	NowMs      func() int64
	Log        *logging.Logger
}

// Runner is a puller.
type Runner interface {
	Run(ctx context.Context) // until ctx ends; no goroutine is left behind
	Status() []PeerStatus
	Wake() // settings changed
}
