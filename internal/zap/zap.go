// Package zap stands in for go.uber.org/zap, so that a process built on gnet links no HTTP, TLS or JSON code.
//
// gnet sets up a zap logger in an init function, although every engine here is given a logger of its own
// (gnet.WithLogger), and zap imports net/http and encoding/json. This module has the part of zap's API that gnet's
// pkg/logging uses and nothing more; a line that still came through it goes to standard error. See
// docs/decisions/0003-zap-stand-in.md.
package zap

import (
	"fmt"
	"os"

	"go.uber.org/zap/zapcore"
)

// Option configures a Logger. None has an effect here.
type Option struct{}

func Development() Option                               { return Option{} }
func AddCaller() Option                                 { return Option{} }
func AddStacktrace(zapcore.LevelEnabler) Option         { return Option{} }
func ErrorOutput(zapcore.WriteSyncer) Option            { return Option{} }
func New(core zapcore.Core, _ ...Option) *Logger        { return &Logger{core} }
func (l *Logger) Sugar() *SugaredLogger                 { return &SugaredLogger{l.core} }
func (l *Logger) Sync() error                           { return nil }
func NewDevelopmentEncoderConfig() EncoderConfig        { return EncoderConfig{} }
func NewProductionEncoderConfig() EncoderConfig         { return EncoderConfig{} }
func (f LevelEnablerFunc) Enabled(l zapcore.Level) bool { return f(l) }

// EncoderConfig is zapcore's.
type EncoderConfig = zapcore.EncoderConfig

// LevelEnablerFunc adapts a function to zapcore.LevelEnabler.
type LevelEnablerFunc func(zapcore.Level) bool

// Logger holds a core.
type Logger struct{ core zapcore.Core }

// SugaredLogger writes formatted lines of at least the core's level to standard error.
type SugaredLogger struct{ core zapcore.Core }

func (s *SugaredLogger) log(level zapcore.Level, format string, args []any) {
	if s.core.Enabled(level) {
		fmt.Fprintf(os.Stderr, "gnet: %s\n", fmt.Sprintf(format, args...))
	}
}

func (s *SugaredLogger) Debugf(format string, args ...any) { s.log(zapcore.DebugLevel, format, args) }
func (s *SugaredLogger) Infof(format string, args ...any)  { s.log(zapcore.InfoLevel, format, args) }
func (s *SugaredLogger) Warnf(format string, args ...any)  { s.log(zapcore.WarnLevel, format, args) }
func (s *SugaredLogger) Errorf(format string, args ...any) { s.log(zapcore.ErrorLevel, format, args) }

// Fatalf writes the line and ends the process with code 1.
func (s *SugaredLogger) Fatalf(format string, args ...any) {
	s.log(zapcore.FatalLevel, format, args)
	os.Exit(1)
}
