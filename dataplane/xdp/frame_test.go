package xdp

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// slowSum is RFC 1071 as it is written there.
func slowSum(parts ...[]byte) uint16 {
	s := uint32(0)
	for _, b := range parts {
		for i := 0; i < len(b); i += 2 {
			w := uint32(b[i]) << 8
			if i+1 < len(b) {
				w |= uint32(b[i+1])
			}
			s += w
			s = s>>16 + s&0xFFFF
		}
	}
	return uint16(s)
}

var (
	client4, server4 = netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("192.0.2.1")
	client6, server6 = netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("2001:db8::1")
)

// build makes a frame from port 4242 to port 53 with right checksums, by other means than the code under test.
func build(from, to netip.Addr, msg []byte) []byte {
	f := append([]byte{2, 0, 0, 0, 0, 1}, 2, 0, 0, 0, 0, 7)
	udp := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, 4242), 53)
	udp = append(binary.BigEndian.AppendUint16(udp, uint16(8+len(msg))), 0, 0)
	udp = append(udp, msg...)
	pseudo := append(append(from.AsSlice(), to.AsSlice()...), 0, 17)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(udp)))
	check := ^slowSum(pseudo, udp)
	if check == 0 {
		check = 0xFFFF
	}
	binary.BigEndian.PutUint16(udp[6:], check)
	if from.Is4() {
		ip := append([]byte{0x45, 0}, byte((20+len(udp))>>8), byte(20+len(udp)), 0x12, 0x34, 0, 0, 61, 17, 0, 0)
		ip = append(append(ip, from.AsSlice()...), to.AsSlice()...)
		binary.BigEndian.PutUint16(ip[10:], ^slowSum(ip))
		return append(append(append(f, 8, 0), ip...), udp...)
	}
	ip := append([]byte{0x60, 1, 2, 3}, byte(len(udp)>>8), byte(len(udp)), 17, 61)
	ip = append(append(ip, from.AsSlice()...), to.AsSlice()...)
	return append(append(append(f, 0x86, 0xDD), ip...), udp...)
}

// pseudoOnly puts what a kernel leaves for a card to finish.
func pseudoOnly(f []byte) []byte {
	ip, pair, udp := f[14:], f[26:34], f[34:]
	if f[12] != 8 {
		pair, udp = ip[8:40], f[54:]
	}
	binary.BigEndian.PutUint16(udp[6:], slowSum(pair, []byte{0, 17}, udp[4:6]))
	return f
}

// TestParse: what is read from frames, and what is refused: no length is believed, and checksums are right, left to a card, or, over IPv4,
// absent.
func TestParse(t *testing.T) {
	msg := []byte("a message, odd!")
	for _, x := range []struct {
		what     string
		from, to netip.Addr
		change   func([]byte) []byte
		want     Fault
	}{
		{"IPv4", client4, server4, nil, OK}, {"IPv6", client6, server6, nil, OK},
		{"IPv4 padded", client4, server4, func(f []byte) []byte { return append(f, 1, 2, 3) }, OK},
		{"IPv6 padded", client6, server6, func(f []byte) []byte { return append(f, 1, 2, 3) }, OK},
		{"IPv4, pseudo header alone", client4, server4, pseudoOnly, OK}, {"IPv6, pseudo header alone", client6, server6, pseudoOnly, OK},
		{"IPv4 without a checksum", client4, server4, func(f []byte) []byte { f[40], f[41] = 0, 0; return f }, OK},
		{"IPv6 without a checksum", client6, server6, func(f []byte) []byte { f[60], f[61] = 0, 0; return f }, Checksum},
		{"IPv4, a bit of the message", client4, server4, func(f []byte) []byte { f[45] ^= 4; return f }, Checksum},
		{"IPv6, a bit of the message", client6, server6, func(f []byte) []byte { f[70] ^= 4; return f }, Checksum},
		{"IPv4, a bit of the port", client4, server4, func(f []byte) []byte { f[35] ^= 4; return f }, Checksum},
		{"IPv4, a bit of the header", client4, server4, func(f []byte) []byte { f[22] ^= 4; return f }, Checksum},
		{"IPv6, a bit of the sender", client6, server6, func(f []byte) []byte { f[30] ^= 4; return f }, Checksum},
		{"IPv4 cut", client4, server4, func(f []byte) []byte { return f[:len(f)-1] }, Length},
		{"IPv6 cut", client6, server6, func(f []byte) []byte { return f[:len(f)-1] }, Length},
		{"IPv4 shorter than its headers", client4, server4, func(f []byte) []byte { f[16], f[17] = 0, 27; return f }, Length},
		{"IPv6 shorter than its headers", client6, server6, func(f []byte) []byte { f[18], f[19] = 0, 7; return f }, Length},
		{"IPv4, UDP longer than IP", client4, server4, func(f []byte) []byte { f[39]++; return f }, Length},
		{"IPv6, UDP longer than IP", client6, server6, func(f []byte) []byte { f[59]++; return f }, Length},
		{"IPv6, a jumbogram", client6, server6, func(f []byte) []byte { f[58], f[59] = 0, 0; return f }, Length},
		{"IPv4, UDP shorter than its header", client4, server4, func(f []byte) []byte { f[39] = 7; return f }, Length},
		{"nothing", client4, server4, func(f []byte) []byte { return nil }, Length},
	} {
		f := build(x.from, x.to, msg)
		if x.change != nil {
			f = x.change(f)
		}
		got, from, fault := Parse(f)
		if fault != x.want || fault == OK && (!bytes.Equal(got, msg) || from != netip.AddrPortFrom(x.from, 4242)) {
			t.Errorf("%s: fault %d, want %d; %q from %s", x.what, fault, x.want, got, from)
		}
	}
}

// TestAddress: an answer is what a frame the other way would be, for messages of all lengths and such that sum up to zero.
func TestAddress(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range 3000 {
		msg := make([]byte, r.IntN(1233))
		for j := range msg {
			msg[j] = byte(r.Uint32())
		}
		from, to := client4, server4
		if i%2 == 1 {
			from, to = client6, server6
		}
		if i%7 == 0 && len(msg) >= 2 { // the last word makes the checksum 0, which is sent as 0xFFFF
			msg = msg[:len(msg)&^1]
			clear(msg[len(msg)-2:])
			f := build(from, to, msg)
			at := HeaderSize(f) - 2
			copy(msg[len(msg)-2:], f[at:at+2])
		}
		request := build(from, to, []byte("hello"))
		head := HeaderSize(request)
		got := make([]byte, head+len(msg))
		for j := range head {
			got[j] = 0xA5 // of a frame before
		}
		copy(got[head:], msg)
		Address(got, request)
		want := build(to, from, msg)
		copy(want, append(bytes.Clone(want[6:12]), want[0:6]...))
		copy(want[head-8:], []byte{0, 53, 4242 >> 8, 4242 & 0xFF}) // the sum of both ports stays
		if from.Is4() {
			copy(want[18:26], []byte{0, 0, 0x40, 0, 64, 17, 0, 0})
			binary.BigEndian.PutUint16(want[24:], ^slowSum(want[14:34]))
		} else {
			copy(want[14:18], []byte{0x60, 0, 0, 0})
			want[21] = 64
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("seed %d, %d: %d bytes\n%x\n%x", seed, i, len(msg), got, want)
		}
		if back, _, f := Parse(got); f != OK || !bytes.Equal(back, msg) {
			t.Fatalf("seed %d, %d: our own frame is refused: %d", seed, i, f)
		}
	}
}

// FuzzXDPFrame: no frame that the filter lets through reads beyond itself or cannot be answered.
func FuzzXDPFrame(f *testing.F) {
	f.Add(build(client4, server4, []byte("hello")))
	f.Add(build(client6, server6, []byte("hello")))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < etherSize+ip4Size+udpSize+dnsSize || len(frame) > frameMax {
			return
		}
		frame = frame[:len(frame):len(frame)]
		msg, _, fault := Parse(frame)
		if fault != OK {
			return
		}
		if len(msg) > len(frame)-HeaderSize(frame) {
			t.Fatalf("%d bytes in a frame of %d", len(msg), len(frame))
		}
		out := make([]byte, HeaderSize(frame)+len(msg))
		Address(out, frame)
		if _, _, fault := Parse(out); fault != OK {
			t.Fatalf("our own frame is refused: %d", fault)
		}
	})
}

// fake is a socket whose other side is the test.
func fake() *socket {
	word := func() *uint32 { return new(uint32) }
	s := &socket{fd: -1, umem: make([]byte, UmemSize), fills: make([]uint64, ringSize), completeds: make([]uint64, ringSize), receiveds: make([]unix.XDPDesc, ringSize), sents: make([]unix.XDPDesc, ringSize), free: make([]uint64, 0, ringSize)}
	for _, r := range []*ring{&s.fill, &s.completed, &s.received, &s.sent} {
		*r = ring{producer: word(), consumer: word(), flags: word()}
	}
	for i := range uint64(ringSize) {
		s.refill(i * frameSize)
		s.free = append(s.free, (ringSize+i)*frameSize)
	}
	s.published(&s.fill)
	return s
}

// arrive is the kernel's part: a frame in the place that the fill ring names.
func (s *socket) arrive(t *testing.T, frame []byte) {
	if *s.fill.producer == *s.fill.consumer {
		t.Fatal("no frame to receive into")
	}
	addr := s.fills[*s.fill.consumer%ringSize] + 256
	*s.fill.consumer++
	copy(s.umem[addr:], frame)
	s.receiveds[*s.received.producer%ringSize] = unix.XDPDesc{Addr: addr, Len: uint32(len(frame))}
	atomic.AddUint32(s.received.producer, 1)
}

// leave is, too: all that is to be sent goes out; completions come when the test says.
func (s *socket) leave(complete bool) (frames [][]byte) {
	for ; *s.sent.consumer != *s.sent.producer; *s.sent.consumer++ {
		d := s.sents[*s.sent.consumer%ringSize]
		frames = append(frames, bytes.Clone(s.umem[d.Addr:][:d.Len]))
		if complete {
			s.completeds[*s.completed.producer%ringSize] = d.Addr
			atomic.AddUint32(s.completed.producer, 1)
		}
	}
	return frames
}

type echo struct {
	reply        []byte
	sent, failed int
	faults       [3]int
}

func (e *echo) Begin()               {}
func (e *echo) End(sent, failed int) { e.sent += sent; e.failed += failed }
func (e *echo) Fault(f Fault)        { e.faults[f]++ }
func (e *echo) Answer(dst, msg []byte, _ netip.AddrPort) []byte {
	if e.reply != nil {
		return append(dst, e.reply...)
	}
	if len(msg) == 0 {
		return nil
	}
	return append(dst, msg...)
}

// TestRings: frames go round many times through four rings, none is lost or sent twice; without completions answers fail instead of
// overwriting what is on its way, and it goes on when they come.
func TestRings(t *testing.T) {
	s, h, l := fake(), &echo{}, &Listener{mtu: 1500}
	frame := build(client6, server6, []byte("0123"))
	n := 0
	for range 4 * ringSize / 100 {
		for range 100 {
			f := bytes.Clone(frame)
			binary.BigEndian.PutUint32(f[62:], uint32(n))
			n++
			s.arrive(t, pseudoOnly(f))
		}
		if got := l.batch(s, h); got != 100 {
			t.Fatalf("a batch of %d", got)
		}
		out := s.leave(true)
		if len(out) != 100 {
			t.Fatalf("%d answers", len(out))
		}
		for i, f := range out {
			if msg, from, fault := Parse(f); fault != OK || int(binary.BigEndian.Uint32(msg)) != n-100+i || from != netip.AddrPortFrom(server6, 53) {
				t.Fatalf("answer %d: %d %x from %s", i, fault, msg, from)
			}
		}
	}
	if h.sent != n || h.failed != 0 {
		t.Fatalf("%d sent and %d failed of %d", h.sent, h.failed, n)
	}

	for range 2 * ringSize / BatchMax {
		for range BatchMax {
			s.arrive(t, frame)
		}
		l.batch(s, h)
		s.leave(false)
	}
	if h.sent != n+ringSize || h.failed != ringSize {
		t.Fatalf("without completions: %d sent, %d failed", h.sent-n, h.failed)
	}
	for i := range uint64(ringSize) {
		s.completeds[(*s.completed.producer+uint32(i))%ringSize] = (ringSize + i) * frameSize
	}
	*s.completed.producer += ringSize
	s.arrive(t, frame)
	if l.batch(s, h); len(s.leave(true)) != 1 {
		t.Error("it does not go on")
	}

	// What does not fit the card's frame is never sent; what is no answer leaves no trace.
	before := h.sent
	h.reply = make([]byte, 1500)
	s.arrive(t, frame)
	l.batch(s, h)
	h.reply = make([]byte, 3*frameSize)
	s.arrive(t, frame)
	l.batch(s, h)
	h.reply = nil
	s.arrive(t, build(client4, server4, nil))
	s.arrive(t, frame[:50])
	s.arrive(t, append(bytes.Clone(frame[:len(frame)-1]), 0xFF))
	l.batch(s, h)
	if out := s.leave(true); len(out) != 0 || h.sent != before || h.failed != ringSize+2 || h.faults != [3]int{0, 1, 1} {
		t.Errorf("%d frames, %d sent, %d failed, faults %v", len(out), h.sent-before, h.failed-ringSize, h.faults)
	}
}

// TestBatchAllocs: nothing is allocated for a frame.
func TestBatchAllocs(t *testing.T) {
	s, h, l := fake(), &echo{}, &Listener{mtu: 1500}
	frames := [][]byte{build(client4, server4, []byte("hello")), build(client6, server6, []byte("hello")), build(client6, server6, []byte("x"))[:60]}
	turn := func() {
		for _, f := range frames {
			s.arrive(t, f)
		}
		l.batch(s, h)
		for ; *s.sent.consumer != *s.sent.producer; *s.sent.consumer++ {
			s.completeds[*s.completed.producer%ringSize] = s.sents[*s.sent.consumer%ringSize].Addr
			*s.completed.producer++
		}
	}
	// The runtime itself may allocate now and then; what the path allocates is there every time.
	n := testing.AllocsPerRun(200, turn)
	for tries := 0; n != 0 && tries < 5; tries++ {
		n = testing.AllocsPerRun(200, turn)
	}
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
	if h.sent == 0 || h.failed != 0 || h.faults[Length] == 0 {
		t.Errorf("%+v", h)
	}
}
