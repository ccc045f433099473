package xdp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// AddressesMax is how many local addresses one filter holds: as many as one machine may ever have listeners for.
	AddressesMax = 1024
	// QueuesMax is how many receive queues of one interface can have a socket; each costs a thread and UmemSize of locked memory.
	QueuesMax = 64
	// frameMax is the longest frame that the filter takes: what a page and every ring has room for. Longer queries go to the ordinary socket.
	frameMax = 14 + 1500
	// logSize holds what the kernel's verifier says of a program of some 70 instructions.
	logSize = 64 << 10
)

// insn is struct bpf_insn.
type insn struct {
	op   uint8
	regs uint8 // destination in the low half
	off  int16
	imm  int32
}

// Registers: r0 is the verdict, r1 to r5 arguments, r10 the end of the stack.
const (
	r0 = iota
	r1
	r2
	r3
	r4
	_
	r6
	r10 = 10
)

// Helpers and verdicts of the kernel (linux/bpf.h).
const (
	mapLookup   = 1
	redirectMap = 51
	verdictPass = 2
)

// assembler writes instructions; jumps name a label that may come later.
type assembler struct {
	code   []insn
	labels map[string]int
	jumps  map[int]string
}

func (a *assembler) emit(op, dst, src int, off int16, imm int32) {
	a.code = append(a.code, insn{uint8(op), uint8(src<<4 | dst), off, imm})
}

func (a *assembler) label(name string) { a.labels[name] = len(a.code) }
func (a *assembler) load(size, dst, src, off int) {
	a.emit(unix.BPF_LDX|unix.BPF_MEM|size, dst, src, int16(off), 0)
}
func (a *assembler) store(size, dst, off, src int) {
	a.emit(unix.BPF_STX|unix.BPF_MEM|size, dst, src, int16(off), 0)
}
func (a *assembler) move(dst, src int) {
	a.emit(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_X, dst, src, 0, 0)
}
func (a *assembler) set(dst int, imm int32) {
	a.emit(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_K, dst, 0, 0, imm)
}
func (a *assembler) op(op, dst int, imm int32) { a.emit(unix.BPF_ALU64|op|unix.BPF_K, dst, 0, 0, imm) }
func (a *assembler) call(helper int32)         { a.emit(unix.BPF_JMP|unix.BPF_CALL, 0, 0, 0, helper) }
func (a *assembler) exit()                     { a.emit(unix.BPF_JMP|unix.BPF_EXIT, 0, 0, 0, 0) }

// jump compares the lower half of a register, unsigned.
func (a *assembler) jump(op, dst int, imm uint32, to string) {
	a.jumps[len(a.code)] = to
	a.emit(unix.BPF_JMP32|op|unix.BPF_K, dst, 0, 0, int32(imm))
}

func (a *assembler) jumpReg(op, dst, src int, to string) {
	a.jumps[len(a.code)] = to
	a.emit(unix.BPF_JMP|op|unix.BPF_X, dst, src, 0, 0)
}

func (a *assembler) goTo(to string) {
	a.jumps[len(a.code)] = to
	a.emit(unix.BPF_JMP|unix.BPF_JA, 0, 0, 0, 0)
}

// mapFD loads the address of a map.
func (a *assembler) mapFD(dst, fd int) {
	a.emit(unix.BPF_LD|unix.BPF_IMM|unix.BPF_DW, dst, unix.BPF_PSEUDO_MAP_FD, 0, int32(fd))
	a.emit(0, 0, 0, 0, 0)
}

func (a *assembler) finish() []insn {
	for at, to := range a.jumps {
		a.code[at].off = int16(a.labels[to] - at - 1)
	}
	return a.code
}

// network gives what a load in the machine's byte order sees of two bytes in network order.
func network(v uint16) uint32 {
	return uint32(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v)))
}

// Offsets in a frame.
const (
	etherSize = 14
	ip4Size   = 20
	ip6Size   = 40
	udpSize   = 8
	dnsSize   = 12
)

// filter assembles the program. It takes a frame for our card (mac) that is a DNS query to the port at one of the addresses in the map, in
// UDP, in IPv4 without options or IPv6 without extension headers, no fragment, from a source that can be answered. The rest passes to the
// machine's network stack: ARP, TCP, other ports, UPDATE, tagged frames, and all that is odd.
func filter(mac net.HardwareAddr, port uint16, addresses, sockets int) []insn {
	a := &assembler{labels: map[string]int{}, jumps: map[int]string{}}
	within := func(n int32) { // r2 is the frame's begin, r3 its end
		a.move(r4, r2)
		a.op(unix.BPF_ADD, r4, n)
		a.jumpReg(unix.BPF_JGT, r4, r3, "pass")
	}
	udp := func(at int) { // the ports, then the DNS header: QR 0 and opcode 0
		a.load(unix.BPF_H, r4, r2, at)
		a.jump(unix.BPF_JEQ, r4, 0, "pass")
		a.load(unix.BPF_H, r4, r2, at+2)
		a.jump(unix.BPF_JNE, r4, network(port), "pass")
		a.load(unix.BPF_B, r4, r2, at+udpSize+2)
		a.op(unix.BPF_AND, r4, 0xF8)
		a.jump(unix.BPF_JNE, r4, 0, "pass")
	}
	a.move(r6, r1)
	a.load(unix.BPF_W, r2, r1, 0)
	a.load(unix.BPF_W, r3, r1, 4)
	within(etherSize + ip4Size + udpSize + dnsSize)
	a.move(r4, r2) // without CAP_PERFMON pointers may be compared, but not subtracted
	a.op(unix.BPF_ADD, r4, frameMax)
	a.jumpReg(unix.BPF_JLT, r4, r3, "pass")
	a.load(unix.BPF_W, r4, r2, 0)
	a.jump(unix.BPF_JNE, r4, binary.NativeEndian.Uint32(mac), "pass")
	a.load(unix.BPF_H, r4, r2, 4)
	a.jump(unix.BPF_JNE, r4, uint32(binary.NativeEndian.Uint16(mac[4:])), "pass")
	a.load(unix.BPF_H, r4, r2, 12)
	a.jump(unix.BPF_JEQ, r4, network(unix.ETH_P_IP), "ip4")
	a.jump(unix.BPF_JNE, r4, network(unix.ETH_P_IPV6), "pass")

	const ip = etherSize
	within(etherSize + ip6Size + udpSize + dnsSize)
	a.load(unix.BPF_B, r4, r2, ip)
	a.op(unix.BPF_AND, r4, 0xF0)
	a.jump(unix.BPF_JNE, r4, 0x60, "pass")
	a.load(unix.BPF_B, r4, r2, ip+6)
	a.jump(unix.BPF_JNE, r4, unix.IPPROTO_UDP, "pass")
	a.load(unix.BPF_B, r4, r2, ip+8)
	a.jump(unix.BPF_JEQ, r4, 0, "pass")    // ::, ::1, IPv4 in IPv6
	a.jump(unix.BPF_JEQ, r4, 0xFF, "pass") // multicast
	udp(ip + ip6Size)
	for i := 0; i < 16; i += 4 {
		a.load(unix.BPF_W, r4, r2, ip+24+i)
		a.store(unix.BPF_W, r10, i-16, r4)
	}
	a.goTo("address")

	a.label("ip4")
	a.load(unix.BPF_B, r4, r2, ip)
	a.jump(unix.BPF_JNE, r4, 0x45, "pass")
	a.load(unix.BPF_B, r4, r2, ip+9)
	a.jump(unix.BPF_JNE, r4, unix.IPPROTO_UDP, "pass")
	a.load(unix.BPF_H, r4, r2, ip+6)
	a.op(unix.BPF_AND, r4, int32(network(0x3FFF))) // offset, more fragments
	a.jump(unix.BPF_JNE, r4, 0, "pass")
	a.load(unix.BPF_B, r4, r2, ip+12)
	a.jump(unix.BPF_JEQ, r4, 0, "pass")
	a.jump(unix.BPF_JEQ, r4, 127, "pass")
	a.jump(unix.BPF_JGE, r4, 224, "pass") // multicast, reserved, broadcast
	udp(ip + ip4Size)
	a.set(r4, 0)
	a.store(unix.BPF_DW, r10, -16, r4)
	a.set(r4, int32(binary.NativeEndian.Uint32([]byte{0, 0, 0xFF, 0xFF})))
	a.store(unix.BPF_W, r10, -8, r4)
	a.load(unix.BPF_W, r4, r2, ip+16)
	a.store(unix.BPF_W, r10, -4, r4)

	a.label("address")
	a.mapFD(r1, addresses)
	a.move(r2, r10)
	a.op(unix.BPF_ADD, r2, -16)
	a.call(mapLookup)
	a.emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, r0, 0, 0, 0)
	a.jumps[len(a.code)-1] = "pass"
	a.load(unix.BPF_W, r2, r6, 16) // the queue; one without a socket passes
	a.mapFD(r1, sockets)
	a.set(r3, verdictPass)
	a.call(redirectMap)
	a.exit()
	a.label("pass")
	a.set(r0, verdictPass)
	a.exit()
	return a.finish()
}

// bpf is bpf(2). attr is one of the structs below. Their pointers are pointers, not integers, so that they stay right when a stack moves.
func bpf(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
	for {
		fd, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), size)
		switch errno {
		case 0:
			return int(fd), nil
		case unix.EINTR, unix.EAGAIN: // the latter: the verifier was interrupted
			continue
		}
		return -1, errno
	}
}

func createMap(kind, key, value, entries uint32) (int, error) {
	attr := struct{ kind, key, value, entries uint32 }{kind, key, value, entries}
	return bpf(unix.BPF_MAP_CREATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

type element struct {
	fd         uint64
	key, value unsafe.Pointer
	flags      uint64
}

func mapSet(fd int, key, value unsafe.Pointer) error {
	attr := element{fd: uint64(fd), key: key, value: value}
	_, err := bpf(unix.BPF_MAP_UPDATE_ELEM, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

func mapDelete(fd int, key unsafe.Pointer) error {
	attr := element{fd: uint64(fd), key: key}
	_, err := bpf(unix.BPF_MAP_DELETE_ELEM, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

func loadProgram(code []insn) (int, error) {
	license := []byte("Apache-2.0\x00") // no helper that it calls asks for another
	attr := struct {
		kind, count        uint32
		code, license      unsafe.Pointer
		logLevel, logSize  uint32
		log                unsafe.Pointer
		kernel, flags      uint32
		name               [16]byte
		ifindex, attachFor uint32
	}{kind: unix.BPF_PROG_TYPE_XDP, count: uint32(len(code)), code: unsafe.Pointer(&code[0]), license: unsafe.Pointer(&license[0]), attachFor: unix.BPF_XDP}
	copy(attr.name[:], "dmpd_dns")
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err == nil || errors.Is(err, unix.EPERM) {
		return fd, err
	}
	// Once more, for what the verifier has to say.
	log := make([]byte, logSize)
	attr.logLevel, attr.logSize, attr.log = 1, logSize, unsafe.Pointer(&log[0])
	if fd, e := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); e == nil {
		return fd, nil
	}
	if text := strings.TrimSpace(unix.ByteSliceToString(log)); text != "" {
		err = fmt.Errorf("%w: %s", err, text[max(0, len(text)-300):])
	}
	return -1, err
}

// createLink attaches a program for as long as the descriptor is open: it goes with its process, however that ends.
func createLink(program, ifindex int, flags uint32) (int, error) {
	attr := struct{ program, ifindex, kind, flags uint32 }{uint32(program), uint32(ifindex), unix.BPF_XDP, flags}
	return bpf(unix.BPF_LINK_CREATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}
