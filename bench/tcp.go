package bench

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// tcpPatience is long: TCP loses nothing, so what does not come in this time is an error.
const tcpPatience = 30 * time.Second

// TCPLoad keeps Pipeline queries under way on each of Conns connections.
type TCPLoad struct {
	Target   netip.AddrPort
	Duration time.Duration
	Conns    int
	Pipeline int
}

// Run loads the server, connection i with src(i). Each connection writes as many queries as replies came in one read.
func (l TCPLoad) Run(src func(i int) Source) (r Result, err error) {
	var mu sync.Mutex
	var all sync.WaitGroup
	cpu, start := ownCPU(), time.Now()
	end := start.Add(l.Duration)
	for i := range l.Conns {
		all.Go(func() {
			one, e := l.conn(src(i), end)
			mu.Lock()
			defer mu.Unlock()
			if e != nil && err == nil {
				err = e
			}
			r.Sent, r.Answered, r.Lost, r.Wrong, r.Bytes = r.Sent+one.Sent, r.Answered+one.Answered, r.Lost+one.Lost, r.Wrong+one.Wrong, r.Bytes+one.Bytes
			if r.FirstWrong == nil {
				r.FirstWrong = one.FirstWrong
			}
		})
	}
	all.Wait()
	r.Elapsed, r.OwnCPU = time.Since(start), ownCPU()-cpu
	return r, err
}

func (l TCPLoad) conn(src Source, end time.Time) (r Result, err error) {
	c, err := net.DialTimeout("tcp", l.Target.String(), tcpPatience)
	if err != nil {
		return r, fmt.Errorf("bench: %w", err)
	}
	defer c.Close()
	var out []byte
	in := make([]byte, 0, 256<<10)
	next, answered := uint32(0), uint32(0)
	for more := l.Pipeline; ; {
		out = out[:0]
		for ; more > 0 && (next < uint32(l.Pipeline) || time.Now().Before(end)); more-- {
			msg := src.Message(next)
			out = binary.BigEndian.AppendUint16(out, uint16(len(msg)))
			out = append(out, msg...)
			next++
		}
		if len(out) > 0 {
			if _, err := c.Write(out); err != nil {
				return r, fmt.Errorf("bench: %w", err)
			}
		}
		r.Sent = int(next)
		if answered == next {
			return r, nil
		}
		c.SetReadDeadline(time.Now().Add(tcpPatience))
		n, err := c.Read(in[len(in):cap(in)])
		if err != nil {
			r.Lost = int(next - answered)
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return r, fmt.Errorf("bench: %d replies are missing: %w", r.Lost, err)
		}
		in = in[:len(in)+n]
		rest := in
		for len(rest) >= 2 {
			n := int(binary.BigEndian.Uint16(rest))
			if len(rest) < 2+n {
				break
			}
			reply := rest[2 : 2+n]
			rest = rest[2+n:]
			answered++
			more++
			if n < 12 {
				r.wrong(fmt.Errorf("a reply of %d bytes", n))
				continue
			}
			// Replies may come in any order (RFC 7766 7): the id says which.
			k := answered - 1 + uint32(int16(binary.BigEndian.Uint16(reply)-uint16(answered-1)))
			if err := src.Check(k, reply); err != nil {
				r.wrong(err)
				continue
			}
			r.Answered++
			r.Bytes += n
		}
		in = append(in[:0], rest...)
	}
}
