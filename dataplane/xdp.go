package dataplane

import (
	"errors"
	"net/netip"
	"runtime"
	"sync"

	"github.com/dnsmesh/dmpd/dataplane/xdp"
	"github.com/dnsmesh/dmpd/internal/clock"
	"github.com/dnsmesh/dmpd/internal/logging"
	"github.com/dnsmesh/dmpd/internal/stats"
)

// past is what goes past the network stack: AF_XDP beside gnet, on the interfaces that were named. Frames that it does not take, and all
// frames where it cannot run, come through gnet's sockets.
type past struct {
	mu         sync.Mutex
	net        *network
	log        *logging.Logger
	mode       xdp.Mode
	port       uint16
	procs      int
	interfaces []*pastInterface
	lost       uint64 // frames that the counters have seen
}

type pastInterface struct {
	name     string
	listener *xdp.Listener // nil: not in use
	given    bool          // it never will be
	why      string
	loops    []*xdpLoop // by queue; kept when a listener is opened anew
}

func newPast(net *network, c *Config, procs int, port uint16) *past {
	p := &past{net: net, log: c.Log, mode: c.XDPMode, port: port, procs: procs}
	for _, name := range c.XDP {
		p.interfaces = append(p.interfaces, &pastInterface{name: name})
	}
	return p
}

// follow opens what is not open and may be by now, and gives the filters the addresses.
func (p *past) follow(addresses []netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	queues, on := 0, 0
	for _, i := range p.interfaces {
		if i.listener != nil && i.listener.Changed() {
			p.log.Warn("an interface of DMP_XDP_INTERFACES changed or went; AF_XDP is opened anew", "interface", i.name)
			p.close(i)
		}
		if i.listener != nil {
			if err := i.listener.SetAddresses(addresses); err != nil {
				p.log.Warn("AF_XDP: the filter's addresses", "interface", i.name, "err", err)
			}
		} else if !i.given {
			p.open(i, addresses)
		}
		if i.listener != nil {
			queues += i.listener.Queues()
			on++
		}
	}
	// Its threads block like loops do, and need a P each when they come back.
	if n := p.procs + queues; n != runtime.GOMAXPROCS(0) {
		runtime.GOMAXPROCS(n)
	}
	shard := p.net.page.Shard(0)
	shard.Set(stats.XDPQueues, uint64(queues))
	shard.Set(stats.XDPInterfaces, uint64(on))
	shard.Set(stats.XDPFallback, uint64(len(p.interfaces)-on))
}

func (p *past) open(i *pastInterface, addresses []netip.Addr) {
	l, err := xdp.Open(i.name, p.mode, p.port, addresses)
	if err != nil {
		i.given = !errors.Is(err, xdp.ErrAbsent)
		if why := err.Error(); why != i.why {
			i.why = why
			p.log.Warn("AF_XDP is not in use on an interface; its queries come through the ordinary sockets", "interface", i.name, "err", err)
		}
		return
	}
	i.listener, i.why = l, ""
	queue := 0
	l.Serve(func() xdp.Handler {
		if queue == len(i.loops) {
			i.loops = append(i.loops, newXDPLoop(p.net))
		}
		queue++
		return i.loops[queue-1]
	})
	p.log.Info("listening with AF_XDP", "interface", i.name, "mode", l.String())
}

func (p *past) close(i *pastInterface) {
	p.countLocked()
	if i.listener != nil {
		p.lost -= min(p.lost, i.listener.Lost())
		i.listener.Close()
		i.listener = nil
	}
}

// count copies what the kernel counts into the page, unless an interface is being opened, which may take a while.
func (p *past) count() {
	if p != nil && p.mu.TryLock() {
		p.countLocked()
		p.mu.Unlock()
	}
}

func (p *past) countLocked() {
	lost := uint64(0)
	for _, i := range p.interfaces {
		if i.listener != nil {
			lost += i.listener.Lost()
		}
	}
	if lost > p.lost {
		p.net.page.Shard(0).Add(stats.XDPDroppedRoom, lost-p.lost)
		p.lost = lost
	}
}

// stop takes the programs off and answers what they have picked.
func (p *past) stop() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, i := range p.interfaces {
		p.close(i)
		i.given = true
	}
	shard := p.net.page.Shard(0)
	shard.Set(stats.XDPQueues, 0)
	shard.Set(stats.XDPInterfaces, 0)
}

// xdpLoop answers the datagrams of one queue, as a loop answers those of its socket. Only what is answered at once comes here: the filter
// takes queries alone.
type xdpLoop struct {
	loop
	start int64
}

func newXDPLoop(n *network) *xdpLoop {
	shard := n.page.Shard(int(n.nextShard.Add(1)))
	l := &xdpLoop{loop: loop{engine: &engine{net: n}, shard: shard, responder: n.newResponder(shard)}}
	l.peer.loop = &l.loop
	return l
}

func (l *xdpLoop) Begin() {
	l.start = clock.Mono()
	l.responder.enter(clock.NowMs(), l.start)
}

func (l *xdpLoop) Answer(dst, msg []byte, from netip.AddrPort) []byte {
	if len(msg) > 2 && msg[2]&0xF8 != 0 {
		return nil // never so: what may wait for its answer has no loop here to wait for
	}
	reply, _ := l.answer(dst, msg, from, nil)
	return reply
}

func (l *xdpLoop) Fault(f xdp.Fault) {
	if f == xdp.Checksum {
		l.shard.Inc(stats.XDPDroppedChecksum)
		return
	}
	l.shard.Inc(stats.XDPDroppedLength)
}

func (l *xdpLoop) End(sent, failed int) {
	l.responder.leave()
	l.shard.Inc(stats.XDPBatches)
	l.shard.Add(stats.SendFailed, uint64(failed))
	if sent > 0 {
		l.shard.Add(stats.Responses[stats.UDP], uint64(sent))
		l.shard.Add(stats.XDPResponses, uint64(sent))
		l.shard.Observe(stats.Latency[stats.UDP], uint64(clock.Mono()-l.start))
	}
}
