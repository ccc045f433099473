package dataplane

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/panjf2000/gnet/v2"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/stats"
)

const (
	// unreadMax is what a client that does not read may make us hold: four answers of the largest size.
	unreadMax = 256 << 10
	// writeStep is when the answers of one read are written although more messages wait.
	writeStep = 64 << 10
	// sweepEvery is how often deadlines are looked at; they are that much longer at most.
	sweepEvery = 250 * time.Millisecond
)

// tcpLimits bound connections (dns.md 3.6).
type tcpLimits struct {
	Message time.Duration // for one message, from its first byte on
	Idle    time.Duration // without a message
	Total   int
	PerIP   atomic.Int64
}

// stream is one TCP connection. The loop's, but deadline and waiting.
type stream struct {
	conn     gnet.Conn
	client   netip.Addr // as it is counted
	addr     netip.Addr
	port     uint16
	need     int  // bytes that must be there before the next message is whole
	partial  bool // a message has begun, and its deadline stands
	closed   bool
	deadline atomic.Int64 // monotonic nanoseconds
	waiting  atomic.Int32 // replies that come later
}

// connTable counts connections and finds those that are past their deadline.
type connTable struct {
	mu    sync.Mutex
	conns map[*stream]struct{}
	perIP map[netip.Addr]int
}

func (t *connTable) add(s *stream, l *tcpLimits) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.conns) >= l.Total || int64(t.perIP[s.client]) >= l.PerIP.Load() {
		return false
	}
	if t.conns == nil {
		t.conns, t.perIP = map[*stream]struct{}{}, map[netip.Addr]int{}
	}
	t.conns[s] = struct{}{}
	t.perIP[s.client]++
	return true
}

func (t *connTable) remove(s *stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.conns[s]; !ok {
		return
	}
	delete(t.conns, s)
	if t.perIP[s.client]--; t.perIP[s.client] <= 0 {
		delete(t.perIP, s.client)
	}
}

// sweep closes what is past its deadline and waits for nothing from us.
func (n *network) sweep(monoNs int64) {
	n.conns.mu.Lock()
	var late []*stream
	for s := range n.conns.conns {
		if s.deadline.Load() < monoNs && s.waiting.Load() == 0 {
			late = append(late, s)
		}
	}
	open := len(n.conns.conns)
	n.conns.mu.Unlock()
	shard := n.page.Shard(0)
	shard.Set(stats.TCPOpen, uint64(open))
	for _, s := range late {
		shard.Inc(stats.TCPTimedOut)
		s.conn.Close() // on its loop; gnet passes over one that is closed already
	}
}

// OnOpen is gnet's: a TCP connection was accepted.
func (e *engine) OnOpen(c gnet.Conn) ([]byte, gnet.Action) {
	a, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return nil, gnet.Close
	}
	l := e.loopOf(c)
	ap := a.AddrPort()
	s := &stream{conn: c, addr: ap.Addr().Unmap(), port: ap.Port(), need: 2}
	s.client = client(s.addr)
	s.deadline.Store(clock.Mono() + int64(e.net.tcp.Idle))
	if e.net.draining.Load() || !e.net.conns.add(s, &e.net.tcp) {
		l.shard.Inc(stats.TCPRefused)
		return nil, gnet.Close
	}
	c.SetContext(s)
	l.shard.Inc(stats.TCPAccepted)
	return nil, gnet.None
}

// OnClose is gnet's.
func (e *engine) OnClose(c gnet.Conn, _ error) gnet.Action {
	if s, ok := c.Context().(*stream); ok {
		s.closed = true
		e.net.conns.remove(s)
	}
	return gnet.None
}

// readStream answers all messages that are there whole, with one write (RFC 7766 6.2.1.1: pipelined). A part of a message stays with
// gnet.
func (l *loop) readStream(c gnet.Conn, s *stream) gnet.Action {
	now := clock.Mono()
	if l.engine.net.draining.Load() {
		l.shard.Inc(stats.DroppedShutdown)
		if s.waiting.Load() > 0 && c.InboundBuffered() < datagramMax {
			return gnet.None // its replies are still on their way
		}
		return gnet.Close
	}
	if c.InboundBuffered() < s.need {
		l.await(s, now)
		return gnet.None
	}
	in, err := c.Peek(-1)
	if err != nil {
		return gnet.Close
	}
	l.responder.enter(clock.NowMs(), now)
	used, action := l.messages(c, s, in)
	l.responder.leave()
	scramble(in[:used])
	if action != gnet.None {
		return action
	}
	if rest := len(in) - used; used > 0 {
		c.Discard(used) // never 0, which would be everything
		s.partial = false
		s.deadline.Store(now + int64(l.engine.net.tcp.Idle))
		if rest > 0 {
			l.await(s, now)
		}
	} else {
		l.await(s, now)
	}
	l.shard.Observe(stats.Latency[stats.TCP], uint64(clock.Mono()-now))
	return gnet.None
}

// await starts the deadline of a message of which only a part is there. More parts do not move it.
func (l *loop) await(s *stream, now int64) {
	if !s.partial {
		s.partial = true
		s.deadline.Store(now + int64(l.engine.net.tcp.Message))
	}
}

// messages answers the whole messages in in and says how many bytes they took.
func (l *loop) messages(c gnet.Conn, s *stream, in []byte) (used int, action gnet.Action) {
	out := l.stream[:0]
	p := &l.peer
	for {
		s.need = 2
		if len(in)-used < 2 {
			break
		}
		n := int(binary.BigEndian.Uint16(in[used:]))
		if n == 0 { // dns.md 3.6: close without a reply
			action = gnet.Close
			break
		}
		if len(in)-used < 2+n {
			s.need = 2 + n
			break
		}
		msg := in[used+2 : used+2+n : used+2+n]
		used += 2 + n
		l.shard.Inc(stats.Messages[stats.TCP])
		p.addr, p.port, p.transport, p.sa, p.stream = s.addr, s.port, stats.TCP, nil, s
		start := len(out)
		reply, v := l.responder.respond(append(out, 0, 0), msg, p)
		if v == answered {
			if out, v = frame(reply, start); v == answered {
				l.shard.Observe(stats.ResponseSize[stats.TCP], uint64(len(out)-start-2))
				l.shard.Inc(stats.Responses[stats.TCP])
			}
		}
		if v == silent {
			action = gnet.Close
			break
		}
		if len(out) >= writeStep {
			if !l.writeStream(c, out) {
				l.stream = out[:0]
				return used, gnet.Close
			}
			out = out[:0]
		}
	}
	l.stream = out[:0]
	if len(out) > 0 && !l.writeStream(c, out) {
		return used, gnet.Close
	}
	return used, action
}

// frame puts the length before a reply that was appended at start+2 (RFC 1035 4.2.2).
func frame(b []byte, start int) ([]byte, verdict) {
	n := len(b) - start - 2
	if n < 0 || n > 0xFFFF {
		return b[:start], silent
	}
	binary.BigEndian.PutUint16(b[start:], uint16(n))
	return b, answered
}

// writeStream writes or lets gnet hold what the client does not take; false when that would be too much. Runs on the loop.
func (l *loop) writeStream(c gnet.Conn, b []byte) bool {
	if held := c.OutboundBuffered(); held > 0 && held+len(b) > unreadMax {
		l.shard.Inc(stats.TCPSlowReader)
		return false
	}
	_, err := c.Write(b)
	return err == nil
}
