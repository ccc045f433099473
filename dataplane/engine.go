package dataplane

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/panjf2000/gnet/v2"
	glog "github.com/panjf2000/gnet/v2/pkg/logging"
	"golang.org/x/sys/unix"

	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/stats"
)

// socketBuffer is asked for as SO_RCVBUF and SO_SNDBUF; the system may give less (net.core.rmem_max).
const socketBuffer = 4 << 20

// verdict says what became of a message.
type verdict uint8

const (
	answered  verdict = iota // the reply was appended
	silent                   // no reply: dropped, and a TCP connection is closed
	postponed                // the reply comes through the peer's ticket
)

// responder turns messages into replies. Every loop has one of its own, and calls it from its goroutine alone.
type responder interface {
	// enter begins a batch at that moment, leave ends it; what a reply was made of may change between them no more than that.
	enter(nowMs, monoNs int64)
	leave()
	// respond appends the reply to msg to dst. msg lies in a buffer that is used again after leave.
	respond(dst, msg []byte, p *peer) ([]byte, verdict)
}

// engine is one gnet engine: one local address, UDP and TCP, with a socket of its own for each loop.
type engine struct {
	gnet.BuiltinEventEngine
	net   *network
	addr  netip.AddrPort
	gnet  gnet.Engine
	boot  chan struct{} // closed when gnet booted
	done  chan struct{} // closed when gnet returned err
	err   error
	mu    sync.Mutex
	loops atomic.Pointer[map[gnet.EventLoop]*loop]
}

// loop is what belongs to one event loop: everything here is its goroutine's alone, but the outbox.
type loop struct {
	engine    *engine
	gnet      gnet.EventLoop
	fd        int // of the UDP socket, once a datagram came
	batch     *batch
	responder responder
	shard     stats.Shard
	stream    []byte // answers of one read of a TCP connection
	peer      peer
	outbox    outbox
}

// peer is who sent a message. It is the loop's, and holds for one message.
type peer struct {
	addr      netip.Addr
	port      uint16
	transport int // stats.UDP or stats.TCP
	local     netip.AddrPort
	loop      *loop
	sa        *sockaddr
	stream    *stream
}

// network is all engines of the process.
type network struct {
	log          *logging.Logger
	page         *stats.Page
	newResponder func(shard stats.Shard) responder
	limits       *limits
	loopsEach    int
	tcp          tcpLimits
	conns        connTable
	draining     atomic.Bool
	nextShard    atomic.Int32
	pending      atomic.Int64 // replies in outboxes

	mu      sync.Mutex
	engines map[netip.AddrPort]*engine
}

// start listens on an address. The error names it when it is taken.
func (n *network) start(addr netip.AddrPort) error {
	if err := probe(addr); err != nil {
		return err
	}
	e := &engine{net: n, addr: addr, boot: make(chan struct{}), done: make(chan struct{})}
	e.loops.Store(&map[gnet.EventLoop]*loop{})
	family := "6://"
	if addr.Addr().Is4() {
		family = "4://"
	}
	go func() {
		e.err = gnet.Rotate(e, []string{"udp" + family + addr.String(), "tcp" + family + addr.String()},
			gnet.WithNumEventLoop(n.loopsEach), gnet.WithReusePort(true), gnet.WithReuseAddr(true), gnet.WithSocketRecvBuffer(socketBuffer), gnet.WithSocketSendBuffer(socketBuffer),
			gnet.WithTCPNoDelay(gnet.TCPNoDelay), gnet.WithReadBufferCap(datagramMax), gnet.WithWriteBufferCap(datagramMax), gnet.WithLogger(gnetLog{n.log}), gnet.WithLogLevel(glog.ErrorLevel))
		close(e.done)
	}()
	select {
	case <-e.boot:
	case <-e.done:
		return fmt.Errorf("dataplane: listening on %s: %w", addr, e.err)
	}
	n.mu.Lock()
	n.engines[addr] = e
	n.mu.Unlock()
	return nil
}

// probe binds without SO_REUSEPORT, so that a second server on the port is refused instead of being given a share of the messages.
func probe(addr netip.AddrPort) error {
	u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return &PortError{addr, err}
	}
	u.Close()
	t, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
	if err != nil {
		return &PortError{addr, err}
	}
	t.Close()
	return nil
}

// PortError says that an address cannot be listened on.
type PortError struct {
	Addr netip.AddrPort
	Err  error
}

func (e *PortError) Error() string {
	return fmt.Sprintf("dataplane: cannot listen for DNS on %s: %v; is another name server running there? Stop it, or set DMP_DNS_PORT or DMP_DNS_HOST", e.Addr, e.Err)
}

func (e *PortError) Unwrap() error { return e.Err }

// stop ends an engine and closes its sockets.
func (e *engine) stop() {
	go e.gnet.Stop(context.Background()) // it returns half a second late
	<-e.done
	for _, l := range *e.loops.Load() {
		l.closeOutbox()
		l.batch.close()
	}
}

// ended says that gnet gave up, which it does when a loop's sockets cannot be opened.
func (e *engine) ended() bool {
	select {
	case <-e.done:
		return true
	default:
		return false
	}
}

// drain stops reading, lets what waits be answered, and stops every engine.
func (n *network) drain(finish func()) {
	n.draining.Store(true)
	finish()
	for until := time.Now().Add(drainMax); n.pending.Load() > 0 && time.Now().Before(until); {
		time.Sleep(time.Millisecond)
	}
	n.stopAll()
}

// stopAll stops every engine.
func (n *network) stopAll() {
	n.mu.Lock()
	engines := n.engines
	n.engines = map[netip.AddrPort]*engine{}
	n.mu.Unlock()
	for _, e := range engines {
		e.stop()
	}
}

// stopOne stops the engine of an address that is gone.
func (n *network) stopOne(addr netip.AddrPort) {
	n.mu.Lock()
	e := n.engines[addr]
	delete(n.engines, addr)
	n.mu.Unlock()
	if e != nil {
		e.stop()
	}
}

// freePort finds a port that is free for UDP and TCP at that moment.
func freePort(addr netip.Addr) (uint16, error) {
	var last error
	for range 20 {
		t, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		if err != nil {
			return 0, err
		}
		port := uint16(t.Addr().(*net.TCPAddr).Port)
		t.Close()
		if last = probe(netip.AddrPortFrom(addr, port)); last == nil {
			return port, nil
		}
	}
	return 0, last
}

// drainMax is how long the loops get to send the last replies.
const drainMax = 5 * time.Second

// OnBoot is gnet's: the first loop's listeners are open, the loops not yet running.
//
// SO_REUSEADDR is there for TCP alone, where connections in TIME_WAIT would keep the port from us for a minute. For UDP it would let any
// user of the machine bind the same port and take the datagrams, unless a socket on the port does without.
func (e *engine) OnBoot(g gnet.Engine) gnet.Action {
	e.gnet = g
	if fd, err := g.DupListener("udp", e.addr.String()); err == nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0)
		unix.Close(fd)
	}
	close(e.boot)
	return gnet.None
}

// OnShutdown is gnet's: the loops are about to end, also when gnet gave up by itself.
func (e *engine) OnShutdown(gnet.Engine) {
	for _, l := range *e.loops.Load() {
		l.closeOutbox()
	}
}

// loopOf finds what belongs to the loop that c is on, and makes it at the loop's first event.
func (e *engine) loopOf(c gnet.Conn) *loop {
	el := c.EventLoop()
	if l := (*e.loops.Load())[el]; l != nil {
		return l
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	b, err := newBatch()
	if err != nil {
		panic("dataplane: no memory for a loop's buffers: " + err.Error())
	}
	shard := e.net.page.Shard(int(e.net.nextShard.Add(1)))
	l := &loop{engine: e, gnet: el, batch: b, shard: shard, responder: e.net.newResponder(shard)}
	l.peer.loop, l.peer.local = l, e.addr
	loops := map[gnet.EventLoop]*loop{el: l}
	for k, v := range *e.loops.Load() {
		loops[k] = v
	}
	e.loops.Store(&loops)
	return l
}

// OnTraffic is gnet's: a datagram was read, or bytes of a connection.
func (e *engine) OnTraffic(c gnet.Conn) gnet.Action {
	l := e.loopOf(c)
	if s, ok := c.Context().(*stream); ok {
		return l.readStream(c, s)
	}
	if a, ok := c.RemoteAddr().(*net.UDPAddr); ok {
		l.readDatagrams(c, a)
	}
	return gnet.None
}

// readDatagrams answers the datagram that gnet read and drains the socket: recvmmsg, answers in place, one sendmmsg. The clock is read
// once for each batch.
func (l *loop) readDatagrams(c gnet.Conn, from *net.UDPAddr) {
	b := l.batch
	l.fd = c.Fd()
	first, _ := c.Next(-1)
	setSockaddr(&b.first, from)
	start := clock.Mono()
	l.responder.enter(clock.NowMs(), start)
	l.datagram(first, &b.first)
	for range roundsMax {
		n := b.receive(l.fd)
		for i := range n {
			if msg, cut := b.datagram(i); !cut {
				l.datagram(msg, &b.inAddr[i])
			}
		}
		l.send(start)
		if n > 0 {
			l.shard.Inc(stats.Batches)
		}
		for i := range n {
			msg, _ := b.datagram(i)
			scramble(msg)
		}
		if n < batchMax {
			break
		}
		l.responder.leave()
		start = clock.Mono()
		l.responder.enter(clock.NowMs(), start)
	}
	l.responder.leave()
	scramble(first)
}

// datagram answers one datagram into the batch.
func (l *loop) datagram(msg []byte, from *sockaddr) {
	if reply, ok := l.answer(l.batch.room(), msg, addrPort(from), from); ok {
		l.batch.queue(reply, from)
	}
}

// answer appends the answer to a datagram to dst; false if there is none, or not now. sa, where there is a socket, is what a later one is
// sent to.
func (l *loop) answer(dst, msg []byte, from netip.AddrPort, sa *sockaddr) ([]byte, bool) {
	l.shard.Inc(stats.Messages[stats.UDP])
	if l.engine.net.draining.Load() {
		l.shard.Inc(stats.DroppedShutdown)
		return nil, false
	}
	p := &l.peer
	p.addr, p.port, p.transport, p.sa, p.stream = from.Addr(), from.Port(), stats.UDP, sa, nil
	reply, v := l.responder.respond(dst, msg, p)
	if v != answered {
		return nil, false
	}
	l.shard.Observe(stats.ResponseSize[stats.UDP], uint64(len(reply)))
	return reply, true
}

// send sends the batch and counts.
func (l *loop) send(start int64) {
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
	l.shard.Observe(stats.Latency[stats.UDP], uint64(clock.Mono()-start))
}

// gnetLog passes on what gnet has to say: only errors are of interest.
type gnetLog struct{ log *logging.Logger }

func (g gnetLog) Debugf(string, ...any) {}
func (g gnetLog) Infof(string, ...any)  {}
func (g gnetLog) Warnf(string, ...any)  {}
func (g gnetLog) Errorf(format string, args ...any) {
	g.log.Warn("gnet: " + fmt.Sprintf(format, args...))
}
func (g gnetLog) Fatalf(format string, args ...any) {
	g.log.Error("gnet: " + fmt.Sprintf(format, args...))
}
