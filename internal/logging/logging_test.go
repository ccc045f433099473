package logging

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestText(t *testing.T) {
	var b strings.Builder
	l := New(&b, Info, false).With("plane", "data")
	l.Debug("not seen")
	l.Warn("disk\nfull", "free", 12, "err", errors.New(`a "b"`))
	_, line, _ := strings.Cut(b.String(), " ")
	if want := `WARNING disk\x0afull plane=data free=12 err="a \"b\""` + "\n"; line != want {
		t.Errorf("got %q, want %q", line, want)
	}
	(*Logger)(nil).Error("silent")
	(*Logger)(nil).With("a", 1).Info("silent")
}

func TestJSON(t *testing.T) {
	var b strings.Builder
	New(&b, Debug, true).Info("tab\there", "name", "é\x7f\xff", "odd")
	var got map[string]string
	if err := json.Unmarshal([]byte(b.String()), &got); err != nil {
		t.Fatalf("%v in %q", err, b.String())
	}
	if got["msg"] != "tab\there" || got["name"] != "é\x7f�" || got["odd"] != "(missing)" || got["level"] != "INFO" {
		t.Errorf("got %q", got)
	}
}

func TestParseLevel(t *testing.T) {
	for in, want := range map[string]Level{"": Info, "debug": Debug, "WARN": Warn, " warning ": Warn, "Critical": Error} {
		if got, err := ParseLevel(in); got != want || err != nil {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	if _, err := ParseLevel("loud"); err == nil {
		t.Error("loud was taken")
	}
}
