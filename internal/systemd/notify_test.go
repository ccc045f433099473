package systemd

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

func TestNotify(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Notify("READY=1"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{filepath.Join(t.TempDir(), "s"), "@dmpd-test-" + filepath.Base(t.TempDir()) + t.Name()} {
		address := name
		if name[0] == '@' {
			address = "\x00" + name[1:]
		}
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		t.Setenv("NOTIFY_SOCKET", name)
		if err := Notify("READY=1", "STATUS=serving"); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 64)
		n, err := conn.Read(b)
		if err != nil || string(b[:n]) != "READY=1\nSTATUS=serving" {
			t.Errorf("%q, %v", b[:n], err)
		}
	}
}

// Only the process that the manager watches tells it that it is alive: a child that inherited the variables does not.
func TestAlive(t *testing.T) {
	name := filepath.Join(t.TempDir(), "s")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", name)
	for _, c := range []struct{ usec, pid string }{{"", ""}, {"1000", strconv.Itoa(os.Getppid())}, {"", strconv.Itoa(os.Getpid())}, {"1000", strconv.Itoa(os.Getpid())}} {
		t.Setenv("WATCHDOG_USEC", c.usec)
		t.Setenv("WATCHDOG_PID", c.pid)
		if err := Alive(); err != nil {
			t.Fatal(err)
		}
	}
	if err := Notify("END=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64)
	for _, want := range []string{"WATCHDOG=1", "END=1"} {
		n, err := conn.Read(b)
		if err != nil || string(b[:n]) != want {
			t.Fatalf("%q, %v, want %s", b[:n], err, want)
		}
	}
}
