package main

import (
	"bytes"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestWithoutAmbient: a child started so has none of the capabilities that the unit gives for the packet path; the next child has them.
func TestWithoutAmbient(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED: capabilities of children: needs root")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with its capabilities
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&header, (*unix.CapUserData)(unsafe.Pointer(&data))); err != nil {
			t.Error(err)
			return
		}
		for i := range data {
			data[i].Inheritable = data[i].Permitted
		}
		if err := unix.Capset(&header, &data[0]); err != nil {
			t.Error(err)
			return
		}
		for _, c := range append([]uintptr{unix.CAP_NET_BIND_SERVICE}, packetCapabilities...) {
			if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0); err != nil {
				t.Error(err)
				return
			}
		}
		ambient := func(start func(*exec.Cmd) error) string {
			var out bytes.Buffer
			cmd := exec.Command("grep", "CapAmb", "/proc/self/status")
			cmd.Stdout = &out
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
			if err := start(cmd); err != nil {
				t.Error(err)
				return ""
			}
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			_, set, _ := strings.Cut(strings.TrimSpace(out.String()), ":")
			return strings.TrimSpace(set)
		}
		without := func(cmd *exec.Cmd) error { return withoutAmbient(packetCapabilities, cmd.Start) }
		if got := ambient(without); got != "0000000000000400" { // CAP_NET_BIND_SERVICE
			t.Errorf("it has %s", got)
		}
		if got := ambient((*exec.Cmd).Start); got != "0000008000003400" {
			t.Errorf("the next one has %s", got)
		}
	}()
	<-done
}
