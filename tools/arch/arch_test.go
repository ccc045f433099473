// Package arch holds the tree to its layout: who may import whom, what the DNS process links, and formatting.
package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/format"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/dnsmesh/dmpd/"

const root = "../.."

type pkg struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,TestImports,XTestImports"}, args...)...)
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, stderr.String())
	}
	var ps []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return ps
		} else if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
}

func under(path string, prefixes ...string) bool {
	for _, p := range prefixes {
		if path == p || strings.HasPrefix(path, p+"/") {
			return true
		}
	}
	return false
}

// forbidden says what the packages under a path must not import. Imports point down only (docs/architecture.md).
var forbidden = []struct {
	who  string
	what []string
	why  string
}{
	{"internal", []string{"dataplane", "controlplane", "cmd", "bench", "tools", "fuzz"}, "internal is below the planes"},
	{"dataplane", []string{"controlplane", "cmd", "bench", "tools", "fuzz"}, "the planes meet in files, not in Go"},
	{"controlplane", []string{"dataplane", "cmd", "bench", "tools", "fuzz"}, "the planes meet in files, not in Go"},
	{"dataplane/answer", []string{"internal/journal", "internal/tsig", "internal/snapshot", "dataplane/update"}, "a query cannot change anything"},
	{"dataplane/store", []string{"dataplane/answer", "dataplane/update"}, "the store is below both"},
	{"internal/wire", []string{"internal/tsig", "internal/record", "internal/journal", "internal/snapshot", "internal/config"}, "wire is the lowest"},
	{"internal/record", []string{"internal/journal", "internal/snapshot", "internal/tsig"}, "formats know nothing of files"},
	{"internal/tsig", []string{"internal/journal", "internal/snapshot", "internal/record"}, "formats know nothing of files"},
	{"internal/journal", []string{"internal/snapshot"}, "snapshots are made of logs"},
}

// homes says where a dependency may be imported in shipped code.
var homes = map[string][]string{
	"github.com/panjf2000/gnet/v2":    {"dataplane", "bench"},
	"github.com/puzpuzpuz/xsync/v3":   {"dataplane/store", "internal/tsig"},
	"github.com/miekg/dns":            {"controlplane/heartbeat", "bench", "tools", "fuzz", "cmd/dmpd"},
	"github.com/klauspost/compress":   {"controlplane/antientropy", "cmd/dmpd"},
	"modernc.org/sqlite":              {"cmd/dmpd"},
	"github.com/pelletier/go-toml/v2": {"internal/config"},
	"go.uber.org/zap":                 {"internal/zap"},
}

func TestImports(t *testing.T) {
	for _, p := range list(t, "./...") {
		path := strings.TrimPrefix(p.ImportPath, module)
		for _, imported := range p.Imports {
			for dependency, at := range homes {
				if under(imported, dependency) && !under(path, at...) {
					t.Errorf("%s imports %s, which belongs to %s", path, imported, strings.Join(at, ", "))
				}
			}
			own, ok := strings.CutPrefix(imported, module)
			if !ok {
				continue
			}
			for _, f := range forbidden {
				if under(path, f.who) && under(own, f.what...) {
					t.Errorf("%s imports %s: %s", path, own, f.why)
				}
			}
		}
	}
}

// TestDataPlaneLinks: the DNS process links no HTTP, TLS, JSON or SQL code (design.md part 1).
func TestDataPlaneLinks(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range list(t, "-deps", "./cmd/dmp-dataplane") {
		seen[p.ImportPath] = true
	}
	if !seen["github.com/panjf2000/gnet/v2"] {
		t.Fatal("the list of dependencies does not even hold gnet")
	}
	for path := range seen {
		if under(path, "net/http", "crypto/tls", "encoding/json", "database/sql", "modernc.org/sqlite", "golang.org/x/net/http2", "log/slog") {
			t.Errorf("the DNS process links %s", path)
		}
	}
}

func goFiles(t *testing.T) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == ".cache" || d.Name() == ".dmpd" || d.Name() == "bin") {
			return fs.SkipDir
		}
		if strings.HasSuffix(path, ".go") {
			files = append(files, path)
		}
		return nil
	})
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	return files
}

func TestFormat(t *testing.T) {
	for _, path := range goFiles(t) {
		src, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want, err := format.Source(src)
		if err != nil {
			t.Errorf("%s: %v", path, err)
		} else if !bytes.Equal(src, want) {
			t.Errorf("%s is not as gofmt writes it", path)
		}
	}
}

// TestNoJunkDrawers: helpers belong to the package whose job they serve.
func TestNoJunkDrawers(t *testing.T) {
	for _, p := range list(t, "./...") {
		if i := strings.LastIndexByte(p.ImportPath, '/'); slices.Contains([]string{"util", "utils", "common", "types", "helpers", "misc"}, p.ImportPath[i+1:]) {
			t.Errorf("%s: a package is named by its job", p.ImportPath)
		}
	}
}
