package dataplane

import (
	"context"
	"encoding/binary"
	"sync"

	"github.com/panjf2000/gnet/v2"
	"golang.org/x/sys/unix"

	"github.com/dnsmesh/dmpd/internal/stats"
)

type sockaddr = unix.RawSockaddrInet6

// ticket is where a reply that comes later goes: a loop and, on it, a datagram's sender or a connection. gnet clears its own notion of a
// datagram's sender when OnTraffic returns; a connection is named by its stream, which is made anew for each, so that a reply can never
// reach another one that was given the same descriptor.
type ticket struct {
	loop   *loop
	fd     int
	sa     sockaddr
	stream *stream
}

// ticket keeps what of a peer outlives its message.
func (p *peer) ticket() ticket {
	t := ticket{loop: p.loop, fd: p.loop.fd, stream: p.stream}
	if p.sa != nil {
		t.sa = *p.sa
	}
	if t.stream != nil {
		t.stream.waiting.Add(1)
	}
	return t
}

type lateReply struct {
	ticket ticket
	msg    []byte
}

// outbox holds replies on their way back to their loop, which sends all that are there at once.
type outbox struct {
	mu      sync.Mutex
	closed  bool // the loop ends: its wake-up descriptor may be somebody else's soon
	waiting []lateReply
	sending []lateReply // the loop's
}

// wakes are the loops that a goroutine has put replies for and still has to wake: once for many replies, since each is a change of
// threads.
type wakes []*loop

// wake makes each of them send.
func (w *wakes) wake() {
	for _, l := range *w {
		o := &l.outbox
		o.mu.Lock()
		if !o.closed && l.gnet.Execute(context.Background(), gnet.RunnableFunc(l.flush)) != nil {
			l.forget()
		}
		o.mu.Unlock()
	}
	*w = (*w)[:0]
}

// reply puts a reply for the ticket's loop, from any goroutine, which wakes the loop by w afterwards; msg is the outbox's from then on.
// An empty one says that there is none. A loop that has ended answers nobody.
func (t ticket) reply(w *wakes, msg []byte) {
	o := &t.loop.outbox
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return
	}
	if len(o.waiting) == 0 {
		*w = append(*w, t.loop)
	}
	o.waiting = append(o.waiting, lateReply{t, msg})
	t.loop.engine.net.pending.Add(1)
}

// closeOutbox forgets what cannot be sent any more. Called before gnet closes the loop, and once more behind it.
func (l *loop) closeOutbox() {
	l.outbox.mu.Lock()
	defer l.outbox.mu.Unlock()
	l.outbox.closed = true
	l.forget()
}

// forget drops the replies that wait; outbox.mu is held.
func (l *loop) forget() {
	l.engine.net.pending.Add(int64(-len(l.outbox.waiting)))
	l.outbox.waiting = nil
}

// flush sends what waits. It runs on the loop.
func (l *loop) flush(context.Context) error {
	o := &l.outbox
	o.mu.Lock()
	o.waiting, o.sending = o.sending[:0], o.waiting
	o.mu.Unlock()
	all := o.sending
	b := l.batch
	for i := 0; i < len(all); {
		r := &all[i]
		if r.ticket.stream != nil {
			i += l.flushStream(all[i:])
			continue
		}
		i++
		if len(r.msg) == 0 {
			continue
		}
		l.shard.Observe(stats.ResponseSize[stats.UDP], uint64(len(r.msg)))
		l.fd = r.ticket.fd
		b.queue(r.msg, &r.ticket.sa)
		if b.sending == batchMax {
			l.sendLate()
		}
	}
	l.sendLate()
	l.engine.net.pending.Add(int64(-len(all)))
	clear(all)
	return nil
}

func (l *loop) sendLate() {
	n := l.batch.sending
	if n == 0 {
		return
	}
	failed := l.batch.send(l.fd)
	if failed > 0 {
		l.shard.Add(stats.SendFailed, uint64(failed))
	}
	l.shard.Add(stats.Responses[stats.UDP], uint64(n-failed))
	l.shard.Add(stats.Joined, uint64(l.batch.joined))
}

// flushStream writes the replies at the head of rs that are for one connection, and says how many they were.
func (l *loop) flushStream(rs []lateReply) (n int) {
	s := rs[0].ticket.stream
	out, none := l.stream[:0], false
	for n < len(rs) && rs[n].ticket.stream == s {
		msg := rs[n].msg
		n++
		s.waiting.Add(-1)
		if len(msg) == 0 || len(msg) > 0xFFFF {
			none = true
			continue
		}
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(msg))), msg...)
		l.shard.Observe(stats.ResponseSize[stats.TCP], uint64(len(msg)))
		l.shard.Inc(stats.Responses[stats.TCP])
	}
	l.stream = out[:0]
	if s.closed {
		return n
	}
	if len(out) > 0 && !l.writeStream(s.conn, out) || none {
		s.conn.Close()
	}
	return n
}
