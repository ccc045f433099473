package heartbeat

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

const (
	// introducedMax bounds the peers that one zone may tell of: more than the seen graph of an honest node (50 in the reference) by far,
	// and a flood of fresh keys fills no more than this of the store.
	introducedMax = 500
	// staleSec is the age of a heartbeat that nobody takes any more, with a round of ours to spare.
	staleSec = record.HeartbeatSkewSec + 75
	// firstHandMs is how long a reading at the peer's own zone counts.
	firstHandMs = 3600_000
	// evictShare: this part of a full store is given up at once.
	evictShare = 100
	// seenRowMax bounds a line of the file: the wire has 1200 characters, the zones 253 each.
	seenRowMax = 4096
	seenFile   = "seen"
	seenHead   = "dmpd seen 1"
)

// Peer is a node that was heard. A node is its operator's key and its endpoint.
type Peer struct {
	record.Heartbeat
	Wire        []byte // as it was signed
	At          string // zone that it says it is at, canonical; empty if it names none
	Via         string // zone that first told of it
	FirstMs     int64  // when that was
	ReceivedMs  int64  // when it was last heard
	FirstHandMs int64  // when it was last read at its own zone; 0: never

	trusted bool // Via is a zone that the operator or a list names
}

// FirstHand says whether the peer was read at its own zone a short while ago.
func (p *Peer) FirstHand(nowMs int64) bool {
	return p.FirstHandMs > 0 && nowMs-p.FirstHandMs < firstHandMs
}

type peerKey struct {
	operator [32]byte
	endpoint string
}

func (p *Peer) key() peerKey { return peerKey{p.Operator, p.Endpoint} }

// seen holds the peers, bounded. All of a stranger's choosing is replaced first: a peer that was read at its own zone outlives those
// that were only told of, whatever their timestamps.
type seen struct {
	mu         sync.RWMutex
	max        int
	peers      map[peerKey]*Peer
	introduced map[string]int
	lists      map[string][]string // public seed lists by URL, as last read
	dirty      bool
}

func newSeen(most int) *seen {
	return &seen{max: max(most, 1), peers: map[peerKey]*Peer{}, introduced: map[string]int{}, lists: map[string][]string{}}
}

// put takes a verified heartbeat that was read at a zone. trusted says that an operator named the zone: it has no quota.
func (s *seen) put(h *record.Heartbeat, wire []byte, via string, own, trusted bool, nowMs int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := peerKey{h.Operator, h.Endpoint}
	p := s.peers[k]
	if p != nil && h.TsSec < p.TsSec {
		return false
	}
	if p == nil {
		if !trusted && s.introduced[via] >= introducedMax && !s.evict(via, nowMs) {
			return false
		}
		if len(s.peers) >= s.max && !s.evict("", nowMs) {
			return false
		}
		p = &Peer{Via: via, FirstMs: nowMs}
		s.peers[k] = p
		s.introduced[via]++
	}
	if trusted && !p.trusted { // it no longer counts against a stranger who told of it first
		s.uncount(p.Via)
		s.introduced[via]++
		p.Via, p.trusted = via, true
	}
	p.Heartbeat, p.Wire, p.ReceivedMs = *h, bytes.Clone(wire), nowMs
	p.At, _ = zoneOf(h)
	if own {
		p.FirstHandMs = nowMs
	}
	s.dirty = true
	return true
}

// evict makes room: among the peers that a zone told of, for one that is stale; or among all, for some at once, so that a full store is
// not searched for each newcomer, but not for those read at their own zone a short while ago.
func (s *seen) evict(via string, nowMs int64) bool {
	var out []*Peer
	for _, p := range s.peers {
		stale := nowMs-p.ReceivedMs >= staleSec*1000
		if via != "" && p.Via == via && stale || via == "" && (stale || !p.FirstHand(nowMs)) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b *Peer) int { return compareEvict(a, b, nowMs) })
	n := 1
	if via == "" {
		n = max(1, s.max/evictShare)
	}
	for _, p := range out[:min(n, len(out))] {
		s.remove(p)
	}
	return len(out) > 0
}

// compareEvict puts first what goes first: what was told of before what was read, then the longest unheard.
func compareEvict(a, b *Peer, nowMs int64) int {
	return cmp.Or(cmp.Compare(number(a.FirstHand(nowMs)), number(b.FirstHand(nowMs))), cmp.Compare(a.ReceivedMs, b.ReceivedMs), bytes.Compare(a.Operator[:], b.Operator[:]))
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (s *seen) remove(p *Peer) {
	delete(s.peers, p.key())
	s.uncount(p.Via)
	s.dirty = true
}

func (s *seen) uncount(via string) {
	if s.introduced[via]--; s.introduced[via] <= 0 {
		delete(s.introduced, via)
	}
}

// sweep drops what has expired or was not heard for longer than retainMs.
func (s *seen) sweep(nowMs, retainMs int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		if int64(p.ExpSec) <= nowMs/1000 || nowMs-p.ReceivedMs > retainMs {
			s.remove(p)
		}
	}
}

// all gives copies, the longest known first.
func (s *seen) all() []*Peer {
	s.mu.RLock()
	defer s.mu.RUnlock()
	ps := make([]*Peer, 0, len(s.peers))
	for _, p := range s.peers {
		c := *p // Wire is never written to
		ps = append(ps, &c)
	}
	slices.SortFunc(ps, func(a, b *Peer) int {
		return cmp.Or(cmp.Compare(a.FirstMs, b.FirstMs), bytes.Compare(a.Operator[:], b.Operator[:]), strings.Compare(a.Endpoint, b.Endpoint))
	})
	return ps
}

func (s *seen) len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.peers)
}

// The file control/seen: a line that names the format, a line of JSON for each peer and each seed list, and a line with the CRC-32C of
// all before it in hexadecimal. It is a cache: what does not read is thrown away, and peers are asked again.
type seenRow struct {
	Wire        string   `json:"wire,omitempty"`
	Via         string   `json:"via,omitempty"`
	FirstMs     int64    `json:"first_ms,omitempty"`
	ReceivedMs  int64    `json:"received_ms,omitempty"`
	FirstHandMs int64    `json:"first_hand_ms,omitempty"`
	List        string   `json:"list,omitempty"`
	Zones       []string `json:"zones,omitempty"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrSeenFile says that control/seen does not read.
var ErrSeenFile = errors.New("the file of seen peers is damaged")

// save writes the file if something changed, whole or not at all.
func (s *seen) save(fs vfs.FS, dir string) error {
	s.mu.Lock()
	if !s.dirty {
		s.mu.Unlock()
		return nil
	}
	s.dirty = false
	var b bytes.Buffer
	fmt.Fprintln(&b, seenHead)
	e := json.NewEncoder(&b)
	for url, zones := range s.lists {
		_ = e.Encode(seenRow{List: url, Zones: zones}) // a buffer takes everything
	}
	for _, p := range s.peers {
		_ = e.Encode(seenRow{Wire: string(p.Wire), Via: p.Via, FirstMs: p.FirstMs, ReceivedMs: p.ReceivedMs, FirstHandMs: p.FirstHandMs})
	}
	s.mu.Unlock()
	fmt.Fprintf(&b, "%08x\n", crc32.Checksum(b.Bytes(), castagnoli))
	err := writeFile(fs, dir, seenFile, b.Bytes())
	if err != nil {
		s.mu.Lock()
		s.dirty = true
		s.mu.Unlock()
	}
	return err
}

func writeFile(fs vfs.FS, dir, name string, b []byte) error {
	path := filepath.Join(dir, name)
	f, err := fs.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fs.Rename(path+".new", path); err != nil {
		return err
	}
	return fs.SyncDir(dir)
}

// load reads the file. No file is an empty one, and one that does not read leaves the store empty.
func (s *seen) load(fs vfs.FS, dir string, nowMs int64) error {
	err := s.read(fs, dir, nowMs)
	if err != nil {
		clear(s.peers)
		clear(s.introduced)
		clear(s.lists)
	}
	return err
}

func (s *seen) read(fs vfs.FS, dir string, nowMs int64) error {
	f, err := fs.OpenFile(filepath.Join(dir, seenFile), os.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return err
	}
	if size > int64(s.max+1)*seenRowMax+listsMax*listZonesMax*256 {
		return fmt.Errorf("%w: %d bytes for %d peers at most", ErrSeenFile, size, s.max)
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil && size > 0 {
		return err
	}
	const tailLen = 9
	if len(b) < tailLen || fmt.Sprintf("%08x\n", crc32.Checksum(b[:len(b)-tailLen], castagnoli)) != string(b[len(b)-tailLen:]) {
		return fmt.Errorf("%w: its checksum is wrong", ErrSeenFile)
	}
	lines := bufio.NewScanner(bytes.NewReader(b[:len(b)-tailLen]))
	lines.Buffer(nil, listZonesMax*256+seenRowMax)
	if !lines.Scan() || lines.Text() != seenHead {
		return fmt.Errorf("%w: not of this format", ErrSeenFile)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for lines.Scan() {
		var r seenRow
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return fmt.Errorf("%w: %w", ErrSeenFile, err)
		}
		if r.List != "" {
			s.lists[r.List] = r.Zones
			continue
		}
		s.restore(&r, nowMs)
	}
	return lines.Err()
}

// restore takes a row of the file, if it is still good.
func (s *seen) restore(r *seenRow, nowMs int64) {
	h, ok := parse([]byte(r.Wire), nowMs/1000)
	k := peerKey{h.Operator, h.Endpoint}
	if !ok || len(s.peers) >= s.max || s.peers[k] != nil {
		return
	}
	p := &Peer{Heartbeat: h, Wire: []byte(r.Wire), Via: r.Via, FirstMs: min(r.FirstMs, nowMs), ReceivedMs: min(r.ReceivedMs, nowMs), FirstHandMs: min(r.FirstHandMs, nowMs)}
	p.At, _ = zoneOf(&h)
	s.peers[k] = p
	s.introduced[p.Via]++
}

// ReadSeen gives the peers that a node remembers on disk, without the node.
func ReadSeen(dir string, most int, nowMs int64) ([]*Peer, error) {
	s := newSeen(most)
	if err := s.load(vfs.OS, dir, nowMs); err != nil {
		return nil, err
	}
	return s.all(), nil
}

// Heard is a heartbeat that another node had stored.
type Heard struct {
	Wire       string
	Via        string
	ReceivedMs int64
}

// Imported says what became of each heartbeat.
type Imported struct {
	Added, Here, Expired, Refused int
	Wires                         []string // those refused
}

// ImportSeen adds what another node had heard to the peers on disk, or with dry only says what it would do; the caller holds the folder's
// lock. Nothing of it counts as read first-hand.
func ImportSeen(dir string, most int, heard []Heard, nowMs int64, dry bool) (done Imported, err error) {
	s := newSeen(most)
	if err := s.load(vfs.OS, dir, nowMs); err != nil && !errors.Is(err, ErrSeenFile) { // a damaged cache is an empty one
		return done, err
	}
	for _, x := range heard {
		var h record.Heartbeat
		r := h.Verify([]byte(x.Wire), nowMs/1000, anySkewSec)
		via, _ := canonicalZone(x.Via)
		known := s.peers[peerKey{h.Operator, h.Endpoint}]
		switch {
		case r == record.Expired:
			done.Expired++
		case r == record.Accepted && known != nil && known.TsSec >= h.TsSec:
			done.Here++
		case r == record.Accepted && x.ReceivedMs <= nowMs && s.put(&h, []byte(x.Wire), via, false, true, x.ReceivedMs):
			done.Added++
		default:
			done.Refused++
			done.Wires = append(done.Wires, x.Wire)
		}
	}
	if dry {
		return done, nil
	}
	return done, s.save(vfs.OS, dir)
}

func (s *seen) setList(url string, zones []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lists[url] = zones
	s.dirty = true
}

// keepLists drops the lists of other URLs.
func (s *seen) keepLists(urls []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for u := range s.lists {
		if !slices.Contains(urls, u) {
			delete(s.lists, u)
			s.dirty = true
		}
	}
}
