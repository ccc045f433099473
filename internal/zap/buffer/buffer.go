// Package buffer has the part of zap's buffer that gnet names.
package buffer

import "bytes"

// Buffer collects the bytes of a log line.
type Buffer struct{ bytes.Buffer }

func (b *Buffer) AppendString(s string) { b.WriteString(s) }

// Pool makes buffers.
type Pool struct{}

func NewPool() Pool       { return Pool{} }
func (Pool) Get() *Buffer { return new(Buffer) }
