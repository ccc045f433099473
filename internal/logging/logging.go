// Package logging writes leveled lines of a message and key-value pairs, as text or as one JSON object a line
// (spec http.md section 12: DMP_LOG_LEVEL, DMP_LOG_FORMAT).
//
// It stands here because log/slog links encoding/json, which the data plane must not. Nothing on the packet path logs.
package logging

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/dnsmesh/dmpd/internal/clock"
)

// Level orders lines by how much they matter.
type Level int8

const (
	Debug Level = iota
	Info
	Warn
	Error
)

var levelNames = [...]string{"DEBUG", "INFO", "WARNING", "ERROR"}

func (l Level) String() string { return levelNames[l] }

// ParseLevel reads DEBUG, INFO, WARNING (or WARN), ERROR (or CRITICAL), in any case, as the reference node does.
func ParseLevel(s string) (Level, error) {
	switch strings.ToUpper(strings.TrimSpace(s)) {
	case "DEBUG":
		return Debug, nil
	case "", "INFO":
		return Info, nil
	case "WARNING", "WARN":
		return Warn, nil
	case "ERROR", "CRITICAL":
		return Error, nil
	}
	return 0, fmt.Errorf("unknown log level %q: use DEBUG, INFO, WARNING or ERROR", s)
}

// Logger writes lines; safe for concurrent use. A nil *Logger is silent.
type Logger struct {
	out   *output
	level Level
	json  bool
	with  []any
}

type output struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

// New makes a logger that writes lines of at least level to w, as JSON lines if json.
func New(w io.Writer, level Level, json bool) *Logger {
	return &Logger{out: &output{w: w}, level: level, json: json}
}

// Stderr is New on standard error.
func Stderr(level Level, json bool) *Logger { return New(os.Stderr, level, json) }

// With gives a logger whose lines carry these pairs too.
func (l *Logger) With(kv ...any) *Logger {
	if l == nil {
		return nil
	}
	c := *l
	c.with = append(l.with[:len(l.with):len(l.with)], kv...)
	return &c
}

// Enabled says whether a line of that level would be written, for lines that are dear to make.
func (l *Logger) Enabled(level Level) bool { return l != nil && level >= l.level }

func (l *Logger) Debug(msg string, kv ...any) { l.log(Debug, msg, kv) }
func (l *Logger) Info(msg string, kv ...any)  { l.log(Info, msg, kv) }
func (l *Logger) Warn(msg string, kv ...any)  { l.log(Warn, msg, kv) }
func (l *Logger) Error(msg string, kv ...any) { l.log(Error, msg, kv) }

func (l *Logger) log(level Level, msg string, kv []any) {
	if !l.Enabled(level) {
		return
	}
	now := clock.Now()
	l.out.mu.Lock()
	defer l.out.mu.Unlock()
	if l.json {
		l.out.buf = l.appendJSON(l.out.buf[:0], now, level, msg, kv)
	} else {
		l.out.buf = l.appendText(l.out.buf[:0], now, level, msg, kv)
	}
	_, _ = l.out.w.Write(l.out.buf) // a log that cannot be written has nowhere to say so
}

const timeLayout = "2006-01-02T15:04:05.000Z07:00"

func (l *Logger) appendText(b []byte, now time.Time, level Level, msg string, kv []any) []byte {
	b = now.UTC().AppendFormat(b, timeLayout)
	b = append(b, ' ')
	b = append(b, level.String()...)
	b = append(b, ' ')
	b = appendBare(b, msg)
	each(l.with, kv, func(key, value string) {
		b = append(b, ' ')
		b = append(b, key...)
		b = append(b, '=')
		if value == "" || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r == '"' || r == '=' || r == 0x7F }) {
			b = strconv.AppendQuote(b, value)
		} else {
			b = appendBare(b, value)
		}
	})
	return append(b, '\n')
}

func (l *Logger) appendJSON(b []byte, now time.Time, level Level, msg string, kv []any) []byte {
	b = append(b, `{"ts":"`...)
	b = now.UTC().AppendFormat(b, timeLayout)
	b = append(b, `","level":"`...)
	b = append(b, level.String()...)
	b = append(b, `","msg":`...)
	b = appendJSONString(b, msg)
	each(l.with, kv, func(key, value string) {
		b = append(b, ',')
		b = appendJSONString(b, key)
		b = append(b, ':')
		b = appendJSONString(b, value)
	})
	return append(b, "}\n"...)
}

// each goes through the pairs of both lists. A key without a value is a mistake of ours that must not lose the line.
func each(with, kv []any, f func(key, value string)) {
	for _, list := range [2][]any{with, kv} {
		for i := 0; i < len(list); i += 2 {
			value := "(missing)"
			if i+1 < len(list) {
				value = text(list[i+1])
			}
			f(text(list[i]), value)
		}
	}
}

func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case error:
		return v.Error()
	case fmt.Stringer:
		return v.String()
	case []byte:
		return string(v)
	}
	return fmt.Sprint(v)
}

// appendBare appends text on one line: whatever could end a line or move a terminal's cursor is escaped, since some of
// it comes from strangers.
func appendBare(b []byte, s string) []byte {
	for _, r := range s {
		if r < ' ' || r == 0x7F || r == utf8.RuneError || r >= 0x80 && r < 0xA0 {
			b = fmt.Appendf(b, `\x%02x`, r)
			continue
		}
		b = utf8.AppendRune(b, r)
	}
	return b
}

// appendJSONString appends a JSON string (RFC 8259 section 7).
func appendJSONString(b []byte, s string) []byte {
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r < ' ' || r >= 0x7F && r < 0xA0:
			b = fmt.Appendf(b, `\u%04x`, r)
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}
