// Package clock is the one source of time. Whoever decides something takes `now` as a parameter; whoever starts
// something asks here.
package clock

import (
	"time"
)

// NowMs is the wall clock in Unix milliseconds.
func NowMs() int64 { return time.Now().UnixMilli() + offsetMs() }

// Now is the wall clock.
func Now() time.Time {
	if d := offsetMs(); d != 0 {
		return time.Now().Add(time.Duration(d) * time.Millisecond)
	}
	return time.Now()
}

var start = time.Now()

// Mono is a monotonic clock in nanoseconds since the process started. A step of the wall clock does not move it.
func Mono() int64 { return int64(time.Since(start)) }
