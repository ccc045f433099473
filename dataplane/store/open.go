package store

import (
	"cmp"
	"encoding/binary"
	"fmt"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/journal"
	"github.com/dnsmesh/dmpd/internal/record"
	"github.com/dnsmesh/dmpd/internal/snapshot"
	"github.com/dnsmesh/dmpd/internal/vfs"
)

// logName begins the names of the store's files.
const logName = "rows"

func (o *Options) defaults() {
	if o.FS == nil {
		o.FS = vfs.OS
	}
	if o.NowMs == nil {
		o.NowMs = clock.NowMs
	}
	o.TombstoneLifeMs = cmp.Or(o.TombstoneLifeMs, 86_400_000+60_000)
	o.MergeMin = cmp.Or(o.MergeMin, 16<<20)
	o.FreeMin = cmp.Or(o.FreeMin, 1<<20)
	if len(o.Zone) == 0 {
		o.Zone = []byte{0}
	}
}

// Open reads what the folder holds and starts the committer. A folder whose files are damaged is an error that names
// file and offset (journal.ErrCorrupt, snapshot.ErrCorrupt), never an empty store.
func Open(o Options) (*Store, error) {
	o.defaults()
	s := &Store{
		o:        o,
		updates:  make(chan *Batch, queueMax),
		requests: make(chan *Batch, requestsMax),
		calls:    make(chan func()),
		quit:     make(chan struct{}),
		done:     make(chan struct{}),
		tombs:    newTombs(o.TombstoneLifeMs),
		quota:    newQuota(),
	}
	s.limits.Store(&o.Limits)
	s.stage = stage{s: s, sets: map[string]*set{}, buried: map[tombKey]tomb{}}
	if err := o.FS.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if err := s.recover(); err != nil {
		if s.tree != nil {
			s.tree.arena.unmap()
		}
		if s.snap != nil {
			s.snap.Close()
		}
		return nil, err
	}
	s.originNumber = s.tree.origins.number(o.Origin)
	if o.FirstSerial != 0 && int32(o.FirstSerial+1-s.serial.Load()) > 0 {
		s.serial.Store(o.FirstSerial + 1)
		s.serialDue = true
	}
	if s.serial.Load() == 0 {
		s.serial.Store(uint32(o.NowMs() / 1000))
		s.serialDue = true
	}
	s.start, s.durable = s.stated, s.stated
	s.gauges.tombstones.Store(int64(len(s.tombs.m)))
	s.gauges.arena.Store(s.tree.arena.mapped())
	s.gauges.feedMs.Store(s.feedMs)
	s.look()
	go s.run()
	return s, nil
}

// recover reads the newest snapshot, then the log behind it.
func (s *Store) recover() error {
	snap, err := snapshot.Latest(s.o.FS, s.o.Dir, logName)
	if err != nil {
		return err
	}
	from, reaches, rows := uint64(1), s.o.Reaches, 0
	if snap != nil {
		s.snap = snap
		from, reaches, rows = snap.LSN+1, max(reaches, snap.LSN), snap.Rows
	}
	s.tree = newTree(rows)
	if snap != nil {
		if err := s.loadSnapshot(snap); err != nil {
			return err
		}
	}
	s.log, err = journal.Open(journal.Options{FS: s.o.FS, Dir: s.o.Dir, Name: logName, SegmentMax: s.o.SegmentMax, Durability: s.o.Durability,
		RetainMs: s.o.RetainMs, RetainBytes: s.o.RetainBytes, Reaches: reaches, Log: s.o.Log}, from, s.replay)
	if err != nil {
		return err
	}
	s.tree.publish()
	s.requestsTaken = s.stated.Requests
	return nil
}

func (s *Store) loadSnapshot(snap *snapshot.Snapshot) error {
	if err := snap.CheckSums(); err != nil {
		return err
	}
	m := &snap.Meta
	s.feedMs, s.cutMs, s.hlc = m.FeedMs, m.CutMs, m.HLC
	if string(m.Zone) == string(s.o.Zone) {
		s.serial.Store(m.Serial)
	}
	s.stated = Position{m.RequestsEpoch, m.Requests, m.StateEpoch, m.State}
	s.gauges.snapBytes.Store(snap.Size())
	var failed error
	n := 0
	err := snap.Each(func(_ record.ID, r *record.Row) bool {
		failed = s.load(r, r.Add > r.Del)
		if n++; n%1024 == 0 {
			s.tree.reclaim()
		}
		return failed == nil
	})
	s.tree.reclaim()
	snap.Release() // its values were copied
	return cmp.Or(err, failed)
}

// replay applies a frame of the log.
func (s *Store) replay(_ uint64, payload []byte) error {
	err := record.ReadFrame(payload, func(feedMs int64, e *record.Entry) error {
		s.feedMs = max(s.feedMs, feedMs)
		switch e.Kind {
		case record.KindPut, record.KindRefresh:
			return s.load(&e.Row, true)
		case record.KindTombstone:
			return s.load(&e.Row, false)
		case record.KindExpire:
			s.cutMs = e.CutMs
			for done := false; !done; {
				var err error
				if _, done, err = s.tree.expire(cutAt(e.CutMs), ^record.HLC(0), 1<<20); err != nil {
					return err
				}
				s.tree.reclaim()
			}
		case record.KindTaken:
			s.stated = Position{e.RequestsEpoch, e.Requests, e.StateEpoch, e.State}
		case record.KindSerial:
			if string(e.Zone) == string(s.o.Zone) {
				s.serial.Store(e.Serial)
			}
		}
		return nil
	})
	s.tree.reclaim()
	return err
}

// load sets an element to what a row says.
func (s *Store) load(r *record.Row, live bool) error {
	s.hlc = max(s.hlc, r.Add, r.Del)
	if r.Del != 0 {
		s.remember(r, s.o.NowMs())
	}
	h := s.tree.hash(r.Name)
	old := s.tree.find(r.Name, h)
	set := s.tree.set(old)
	var scratch [64]packed
	values := set.unpack(scratch[:0])
	hash := binary.LittleEndian.Uint32(r.Hash[:])
	at := -1
	for i := range values {
		if values[i].hash == hash && record.HashOf(values[i].rdata) == r.Hash {
			at = i
			break
		}
	}
	switch {
	case !live && at < 0:
		return nil
	case !live:
		values = append(values[:at], values[at+1:]...)
	default:
		v := packed{r.RDATA, r.ExpMs, r.Add, hash, s.tree.origins.number(r.Origin), r.Flags}
		if at >= 0 {
			v.rdata = values[at].rdata
			values[at] = v
		} else if v.rdata == nil {
			return fmt.Errorf("store: a refresh of a value that is not there (name %x, hash %x)", r.Name, r.Hash[:8])
		} else {
			values = insert(values, v)
		}
	}
	return s.tree.putAt(r.Name, h, old, values)
}
