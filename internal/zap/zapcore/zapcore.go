// Package zapcore has the part of zap's core that gnet names.
package zapcore

import (
	"io"
	"strconv"

	"go.uber.org/zap/buffer"
)

// Level is a log level; a higher one matters more.
type Level int8

const (
	DebugLevel Level = iota - 1
	InfoLevel
	WarnLevel
	ErrorLevel
	DPanicLevel
	PanicLevel
	FatalLevel
)

// Enabled says whether a line of level o is to be written.
func (l Level) Enabled(o Level) bool { return o >= l }

func (l Level) String() string {
	names := [...]string{"debug", "info", "warn", "error", "dpanic", "panic", "fatal"}
	if i := int(l) + 1; i >= 0 && i < len(names) {
		return names[i]
	}
	return "level " + strconv.Itoa(int(l))
}

// LevelEnabler decides which levels are written.
type LevelEnabler interface{ Enabled(Level) bool }

// WriteSyncer is where lines go.
type WriteSyncer interface {
	io.Writer
	Sync() error
}

type writer struct{ io.Writer }

func (writer) Sync() error { return nil }

func AddSync(w io.Writer) WriteSyncer { return writer{w} }

func Lock(w WriteSyncer) WriteSyncer { return w }

// Core holds the level of a logger.
type Core interface{ LevelEnabler }

func NewCore(_ Encoder, _ WriteSyncer, level LevelEnabler) Core { return level }

// Encoders are named by gnet and never called.
type (
	Entry         struct{}
	Field         struct{}
	TimeEncoder   func()
	LevelEncoder  func()
	EncoderConfig struct {
		EncodeTime  TimeEncoder
		EncodeLevel LevelEncoder
	}
	Encoder interface {
		EncodeEntry(Entry, []Field) (*buffer.Buffer, error)
	}
)

type noEncoder struct{}

func (noEncoder) EncodeEntry(Entry, []Field) (*buffer.Buffer, error) { return new(buffer.Buffer), nil }

func NewConsoleEncoder(EncoderConfig) Encoder { return noEncoder{} }

func RFC3339NanoTimeEncoder() {}
func CapitalLevelEncoder()    {}
