package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

// TestNamedTestsExist reads docs/conformance.md: what its last column names must be there. A reference is FOLDER.TestName, FOLDER being
// a package's folder from the root, or a file, or a file and a text in it: tools/interop/tools.py "class CH".
func TestNamedTestsExist(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(root, "docs/conformance.md"))
	if err != nil {
		t.Fatal(err)
	}
	goTest := regexp.MustCompile("`([a-z0-9/]+)\\.((?:Test|Fuzz)[A-Za-z0-9]+)`")
	inFile := regexp.MustCompile("`([a-z0-9/]+\\.(?:py|go|txt)) \"([^\"`]+)\"`")
	tests := map[string]string{} // source of a folder's tests
	rows, found := 0, 0
	for n, line := range strings.Split(string(doc), "\n") {
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|-") || strings.HasPrefix(line, "| what") {
			continue
		}
		rows++
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if len(cells) != 3 {
			t.Errorf("line %d: %d cells, want 3", n+1, len(cells))
			continue
		}
		last := cells[2]
		refs := 0
		for _, m := range goTest.FindAllStringSubmatch(last, -1) {
			refs++
			source, ok := tests[m[1]]
			if !ok {
				files, _ := filepath.Glob(filepath.Join(root, m[1], "*_test.go"))
				for _, f := range files {
					b, err := os.ReadFile(f)
					if err != nil {
						t.Fatal(err)
					}
					source += string(b)
				}
				tests[m[1]] = source
			}
			if !strings.Contains(source, "func "+m[2]+"(") {
				t.Errorf("line %d: there is no test %s in %s", n+1, m[2], m[1])
			}
		}
		for _, m := range inFile.FindAllStringSubmatch(last, -1) {
			refs++
			b, err := os.ReadFile(filepath.Join(root, m[1]))
			if err != nil || !strings.Contains(string(b), m[2]) {
				t.Errorf("line %d: %s has no check %q", n+1, m[1], m[2])
			}
		}
		if refs == 0 {
			t.Errorf("line %d names no test: %s", n+1, line)
		}
		found += refs
	}
	if rows < 60 {
		t.Errorf("%d rows were read: is the table's form another?", rows)
	}
	t.Logf("%d rows, %d references", rows, found)
}

// TestDifferences: the table of the document and the one that the comparison uses are the same.
func TestDifferences(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(root, "docs/conformance.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range differences {
		if !strings.Contains(string(doc), "- "+d.what+": "+d.why) {
			t.Errorf("docs/conformance.md lacks\n- %s: %s", d.what, d.why)
		}
	}
}
