//go:build testclock

package clock

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// In a binary built with the tag testclock the wall clock is off by what stands in the file that DMP_TEST_CLOCK names: a
// signed decimal number of milliseconds, read every 50 ms. A file that is missing or does not parse leaves the offset as
// it was, since a writer may be in the middle of it. Without the variable the clock is true.

const readEvery = 50 * time.Millisecond

var offset atomic.Int64

func offsetMs() int64 { return offset.Load() }

func init() {
	path := os.Getenv("DMP_TEST_CLOCK")
	if path == "" {
		return
	}
	read(path)
	fmt.Fprintln(os.Stderr, "clock: TEST CLOCK in force, offset from", path)
	go func() {
		for range time.Tick(readEvery) {
			read(path)
		}
	}()
}

func read(path string) {
	b, err := os.ReadFile(path)
	if err != nil {
		return
	}
	if ms, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil {
		offset.Store(ms)
	}
}
