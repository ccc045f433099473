// Package systemd tells the service manager how a node is doing (sd_notify(3)): one datagram to the socket that
// NOTIFY_SOCKET names.
package systemd

import (
	"net"
	"os"
	"strconv"
	"strings"
)

// Notify sends state, such as "READY=1". Without a service manager it does nothing.
func Notify(state ...string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	if strings.HasPrefix(name, "@") {
		name = "\x00" + name[1:] // an abstract socket
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte(strings.Join(state, "\n")))
	return err
}

// Alive feeds the service manager's watchdog, if this very process is to (sd_watchdog_enabled(3)). The caller calls it again and again,
// from the place that stops when the process hangs.
func Alive() error {
	if os.Getenv("WATCHDOG_USEC") == "" || os.Getenv("WATCHDOG_PID") != strconv.Itoa(os.Getpid()) {
		return nil
	}
	return Notify("WATCHDOG=1")
}
