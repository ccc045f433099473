package bench

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lab is a network without a card: a namespace for the servers, one for the load, and a veth pair between them for each server, since one
// interface takes one XDP program. Each end receives as a card does: on the core of whoever is there, by a kernel thread whose time can be
// read. As veth comes, the sender does the receiver's work.
type lab struct {
	server, client string // namespaces
	cores          *cores
	softirqd       int // the kernel thread that takes over on the server's core
	pairs          int
}

// link is a server's end of a pair.
type link struct {
	lab     *lab
	device  string
	receive int // kernel thread that receives for it
}

const (
	labPrefix = "dmpd-bench-"
	labPort   = 5300
	// attachWithin is how long a server that answers already may take to attach its program.
	attachWithin = 10 * time.Second
)

// leftOut says why something cannot be measured here; that is said and no failure.
type leftOut struct{ why string }

func (l *leftOut) Error() string { return l.why }

// made is the lab that there is.
var made atomic.Pointer[lab]

// Interrupted removes what would outlive the process.
func Interrupted() {
	if l := made.Load(); l != nil {
		l.remove()
	}
}

func ip(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// newLab makes the namespaces. What is missing for it is a *leftOut.
func newLab(c *cores) (*lab, error) {
	if c == nil {
		return nil, &leftOut{"it needs a core for the server and another for the load"}
	}
	if os.Getuid() != 0 {
		return nil, &leftOut{"it needs root, for network namespaces"}
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return nil, &leftOut{"it needs the command ip (iproute2)"}
	}
	// Of runs that were killed.
	old, _ := filepath.Glob("/run/netns/" + labPrefix + "*")
	for _, path := range old {
		name := filepath.Base(path)
		pid, _, _ := strings.Cut(strings.TrimPrefix(name, labPrefix), "-")
		if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
			_ = ip("netns", "del", name)
		}
	}
	l := &lab{server: fmt.Sprintf("%s%d-s", labPrefix, os.Getpid()), client: fmt.Sprintf("%s%d-c", labPrefix, os.Getpid())}
	for i := range 1024 {
		if c.server.IsSet(i) {
			l.softirqd = kernelThread(fmt.Sprintf("ksoftirqd/%d", i), nil)
			break
		}
	}
	if l.softirqd == 0 {
		return nil, &leftOut{"kernel threads cannot be seen here, whose CPU time counts"}
	}
	own := *c
	own.netns = l.server
	l.cores = &own
	made.Store(l)
	for _, ns := range []string{l.server, l.client} {
		err := ip("netns", "add", ns)
		if err == nil {
			err = ip("-n", ns, "link", "set", "lo", "up")
		}
		if err != nil {
			l.remove()
			return nil, &leftOut{"no network namespace can be made: " + err.Error()}
		}
	}
	return l, nil
}

// remove ends it, with its interfaces and what is attached to them. The servers must have ended.
func (l *lab) remove() {
	made.Store(nil)
	for _, ns := range []string{l.server, l.client} {
		if _, err := os.Stat("/run/netns/" + ns); err == nil {
			_ = ip("netns", "del", ns)
		}
	}
}

// inside runs f on a thread in a namespace; sockets that it opens are there.
func inside(ns string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked, so that the thread ends with the goroutine
		fd, err := unix.Open("/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// kernelThread finds a thread by the beginning of its name, unless it is among those known; 0 if there is none.
func kernelThread(name string, known map[int]bool) int {
	pids, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, path := range pids {
		b, _ := os.ReadFile(path)
		comm := strings.TrimSpace(string(b))
		if comm != name && !(strings.HasSuffix(name, "-") && strings.HasPrefix(comm, name)) {
			continue
		}
		pid, _ := strconv.Atoi(strings.Split(path, "/")[2])
		exe, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
		if !known[pid] && (err != nil || exe == "") { // a kernel thread has none
			return pid
		}
	}
	return 0
}

// ethtool switches a feature of an interface of the calling thread's namespace.
func ethtool(device string, command, value uint32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	arg := &struct{ command, value uint32 }{command, value} // struct ethtool_value
	var request struct {                                    // struct ifreq
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(request.name[:unix.IFNAMSIZ-1], device)
	request.data = unsafe.Pointer(arg)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	runtime.KeepAlive(arg)
	if errno != 0 {
		return errno
	}
	return nil
}

// pair makes a veth pair of one queue each way and gives the server's end and address.
func (l *lab) pair() (*link, netip.AddrPort, error) {
	i := l.pairs
	l.pairs++
	ours, theirs := fmt.Sprintf("dbs%d", i), fmt.Sprintf("dbc%d", i)
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i), 1}), labPort) // RFC 2544: for benchmarks
	fail := func(err error) (*link, netip.AddrPort, error) {
		return nil, at, &leftOut{"no veth pair that receives on a core of its own can be made: " + err.Error()}
	}
	if err := ip("-n", l.server, "link", "add", ours, "numrxqueues", "1", "numtxqueues", "1", "type", "veth", "peer", "name", theirs, "numrxqueues", "1", "numtxqueues", "1", "netns", l.client); err != nil {
		return fail(err)
	}
	k := &link{lab: l, device: ours}
	for _, end := range []struct {
		ns, device, address string
		on                  *unix.CPUSet
	}{{l.server, ours, at.Addr().String(), &l.cores.server}, {l.client, theirs, at.Addr().Next().String(), &l.cores.load}} {
		known := map[int]bool{}
		for {
			pid := kernelThread("napi/"+end.device+"-", known)
			if pid == 0 {
				break
			}
			known[pid] = true
		}
		err := inside(end.ns, func() error {
			return errors.Join(ethtool(end.device, unix.ETHTOOL_STSO, 0), ethtool(end.device, unix.ETHTOOL_SGRO, 1)) // GRO has veth use NAPI
		})
		for _, args := range [][]string{{"addr", "add", end.address + "/24", "dev", end.device}, {"link", "set", end.device, "up"}} {
			if err == nil {
				err = ip(append([]string{"-n", end.ns}, args...)...)
			}
		}
		if err == nil {
			err = ip("netns", "exec", end.ns, "sh", "-c", "echo 1 >/sys/class/net/"+end.device+"/threaded")
		}
		if err != nil {
			return fail(err)
		}
		thread := 0
		for until := time.Now().Add(attachWithin); thread == 0 && time.Now().Before(until); time.Sleep(time.Millisecond) {
			thread = kernelThread("napi/"+end.device+"-", known)
		}
		if thread == 0 {
			return fail(errors.New("its kernel thread cannot be seen"))
		}
		if err := unix.SchedSetaffinity(thread, end.on); err != nil {
			return fail(err)
		}
		if end.ns == l.server {
			k.receive = thread
		}
	}
	return k, at, nil
}

// attached waits for an XDP program on the server's end.
func (k *link) attached(s *Server) error {
	for until := time.Now().Add(attachWithin); ; time.Sleep(10 * time.Millisecond) {
		out, err := exec.Command("ip", "-n", k.lab.server, "link", "show", "dev", k.device).CombinedOutput()
		if err != nil {
			return fmt.Errorf("bench: ip link show: %w: %s", err, out)
		}
		if strings.Contains(string(out), "xdp") {
			return nil
		}
		if time.Now().After(until) {
			said := "" // of it; a server has more to say when it starts
			for line := range strings.Lines(s.tail()) {
				if strings.Contains(line, "XDP") {
					said = strings.TrimSpace(line)
				}
			}
			return &leftOut{"it attached no XDP program; it said last of that: " + said}
		}
	}
}

// ran is how long a kernel thread has run.
func ran(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
	if err != nil {
		return 0, fmt.Errorf("bench: %w", err)
	}
	text, _, _ := strings.Cut(string(b), " ")
	ns, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("bench: schedstat of %d: %w", pid, err)
	}
	return time.Duration(ns), nil
}

// softirq is the CPU time of receiving for the server outside its process.
func (k *link) softirq() (time.Duration, error) {
	receive, err := ran(k.receive)
	if err != nil {
		return 0, err
	}
	softirqd, err := ran(k.lab.softirqd)
	return receive + softirqd, err
}

// tick is what /proc/stat counts in (USER_HZ).
const tick = 10 * time.Millisecond

// coreBusy is the time that the server's cores were not idle, by the kernel's ticks.
func (k *link) coreBusy() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("bench: %w", err)
	}
	busy := 0
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		core, err := strconv.Atoi(strings.TrimPrefix(f[0], "cpu"))
		if err != nil || !strings.HasPrefix(f[0], "cpu") || len(f) < 8 || !k.lab.cores.server.IsSet(core) {
			continue
		}
		for _, i := range []int{1, 2, 3, 6, 7} { // user, nice, system, irq, softirq
			n, _ := strconv.Atoi(f[i])
			busy += n
		}
	}
	return time.Duration(busy) * tick, nil
}

// datagrams counts those that the sockets of the servers' namespace were given.
func (l *lab) datagrams() (n int, err error) {
	err = inside(l.server, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return fmt.Errorf("bench: %w", err)
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "Udp:" && f[1] != "InDatagrams" {
				n, err = strconv.Atoi(f[1])
				return err
			}
		}
		return errors.New("bench: the kernel does not count datagrams")
	})
	return n, err
}

// timed adds what the server cost, receiving included.
func (k *link) timed(s *Server, run func() (Result, error)) (Result, error) {
	type reading struct {
		softirq, busy time.Duration
		datagrams     int
	}
	read := func() (r reading, err error) {
		if r.softirq, err = k.softirq(); err != nil {
			return r, err
		}
		if r.busy, err = k.coreBusy(); err != nil {
			return r, err
		}
		r.datagrams, err = k.lab.datagrams()
		return r, err
	}
	before, err := read()
	if err != nil {
		return Result{}, err
	}
	r, err := s.timedHere(func() (r Result, err error) {
		err = inside(k.lab.client, func() (err error) {
			r, err = run()
			return err
		})
		return r, err
	})
	if err != nil {
		return r, err
	}
	after, err := read()
	if err != nil {
		return r, err
	}
	r.process, r.core = r.ServerCPU, after.busy-before.busy
	r.ServerCPU += after.softirq - before.softirq
	if n := after.datagrams - before.datagrams; s.xdp && n > r.Answered/20 {
		return r, fmt.Errorf("bench: %s got %d datagrams by sockets, of %d that it answered: it is not XDP that is measured", s.Name, n, r.Answered)
	}
	return r, nil
}
