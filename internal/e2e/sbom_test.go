package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
)

// TestSBOM: the document that `make sbom` writes of the product names every module that it is compiled from, in its
// version. What those are, the go command says.
func TestSBOM(t *testing.T) {
	t.Parallel()
	run := func(args ...string) []byte {
		t.Helper()
		c := exec.CommandContext(t.Context(), "go", args...)
		c.Dir, c.Stderr = "../..", os.Stderr
		out, err := c.Output()
		if err != nil {
			t.Fatalf("go %s: %v", strings.Join(args, " "), err)
		}
		return out
	}
	binary := filepath.Join(t.TempDir(), "product")
	build := []string{"build", "-ldflags=-s -w", "-o", binary}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "-race" { // as this test was built, or everything would be compiled once more
				build = append(build, "-race="+s.Value)
			}
		}
	}
	run(append(build, "./cmd/kube-node-manager")...)
	var doc struct {
		BOMFormat   string
		SpecVersion string
		Components  []struct{ Name, Version, PURL string }
	}
	if err := json.Unmarshal(run("run", "./internal/sbom", binary), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.BOMFormat != "CycloneDX" || doc.SpecVersion != "1.6" {
		t.Errorf("%s %s", doc.BOMFormat, doc.SpecVersion)
	}
	found := map[string]bool{}
	for _, c := range doc.Components {
		found[c.Name+" "+c.Version] = true
		if !strings.HasPrefix(c.PURL, "pkg:golang/") {
			t.Errorf("%s has the package URL %q", c.Name, c.PURL)
		}
	}
	n := 0
	for line := range strings.Lines(string(run("list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}}{{end}}{{end}}", "./cmd/kube-node-manager"))) {
		if m := strings.TrimSpace(line); m != "" {
			n++
			if !found[m] {
				found[m] = true // once is enough
				t.Errorf("the document does not name %s", m)
			}
		}
	}
	if n < 30 {
		t.Errorf("the product has %d packages of others: what was asked for?", n)
	}
}
