//go:build killpoints

package killpoint

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

var (
	at    string
	armed string
	left  atomic.Int64
)

func init() {
	name, n, ok := strings.Cut(os.Getenv("DMP_KILLPOINT"), ":")
	at, armed = name, os.Getenv("DMP_KILLPOINT_ARMED")
	left.Store(1)
	if ok {
		if k, err := strconv.ParseInt(n, 10, 64); err == nil {
			left.Store(k)
		}
	}
}

// Hit ends the process here, as kill -9 would, if this is the step and the hit that was asked for.
func Hit(name string) {
	if name != at {
		return
	}
	if armed != "" {
		if _, err := os.Stat(armed); err != nil {
			return
		}
	}
	if left.Add(-1) == 0 {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
