//go:build !testclock

package clock

func offsetMs() int64 { return 0 }
