package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestImports(t *testing.T) {
	t.Parallel()
	g := load(t)
	for _, bad := range check(g, rules) {
		t.Error(bad)
	}
	for room := range rules {
		if _, err := os.Stat(filepath.Join(root(t), room)); err != nil && room != "internal/bench" && room != "internal/depspin" {
			t.Errorf("%s has a row and does not exist", room)
		}
	}
}

func root(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(strings.TrimSpace(string(out)))
}

func load(t *testing.T) graph {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=ImportPath,Imports,ImportMap,Standard", "./...")
	cmd.Dir = root(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, &stderr)
	}
	g := graph{imports: map[string][]string{}, std: map[string]bool{"C": true, "unsafe": true}}
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var p struct {
			ImportPath string
			Imports    []string
			ImportMap  map[string]string
			Standard   bool
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		for i, imp := range p.Imports {
			if to, ok := p.ImportMap[imp]; ok {
				p.Imports[i] = to
			}
		}
		g.imports[p.ImportPath], g.std[p.ImportPath] = p.Imports, p.Standard
	}
	if len(g.imports[module+"/handlers"]) == 0 || !slices.ContainsFunc(g.reach(module+"/realtime"), func(r reached) bool {
		return r.name == "k8s.io/apimachinery/pkg/runtime/schema"
	}) {
		t.Fatal("the graph is not what go list knows")
	}
	return g
}

// A planted violation of each kind is named.
func TestCheck(t *testing.T) {
	t.Parallel()
	const m = module + "/"
	g := graph{
		imports: map[string][]string{
			m + "views":                 {m + "internal/fleet", m + "realtime", "net/http", "github.com/a-h/templ", "left.example/pad"},
			m + "internal/fleet":        {"strings", "database/sql"},
			m + "realtime":              {m + "internal/kube", m + "internal/app", "github.com/go-chix/not-chi"},
			m + "internal/kube":         {"k8s.io/client-go/rest", m + "internal/kubetest"},
			m + "internal/app":          {m + "views"},
			m + "cmd/kube-node-manager": {m + "internal/app", m + "handlers"},
			m + "handlers":              {"k8s.io/api/core/v1"},
			m + "newroom":               {"fmt"},
			"k8s.io/client-go/rest":     {"net/http"},
		},
		std: map[string]bool{"strings": true, "net/http": true, "database/sql": true, "fmt": true},
	}
	const want = `cmd/kube-node-manager imports handlers
handlers imports k8s.io/api/core/v1
internal/fleet reaches database/sql through database/sql
internal/kube imports internal/kubetest, which is for tests and tools
newroom has no row: say in archtest what it may import
realtime imports internal/app, which only commands and tests may
realtime imports github.com/go-chix/not-chi
views imports realtime
views imports net/http directly
views imports left.example/pad`
	var got []string
	for _, line := range check(g, rules) {
		if !strings.Contains(line, "reaches") || strings.HasPrefix(line, "internal/fleet") {
			got = append(got, line)
		}
	}
	if diff := cmp.Diff(want, strings.Join(got, "\n")); diff != "" {
		t.Error(diff)
	}
	if all := check(g, rules); !slices.Contains(all, "views reaches k8s.io/client-go/rest through "+m+"realtime → "+m+"internal/kube → k8s.io/client-go/rest") {
		t.Errorf("views' way to Kubernetes is not named: %q", all)
	}
}

// A sleep waits for nothing in particular: it is either too short or too long. In a synctest bubble it is neither, so a
// package whose tests make no bubbles has no use for it.
func TestNoSleeps(t *testing.T) {
	t.Parallel()
	sleeps, bubbles := map[string][]string{}, map[string]bool{}
	files := 0
	err := filepath.WalkDir(root(t), func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") || strings.HasPrefix(d.Name(), "_")) {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		files++
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		dir := filepath.Dir(path)
		if bytes.Contains(src, []byte("time."+"Sleep(")) {
			sleeps[dir] = append(sleeps[dir], path)
			if !strings.HasSuffix(path, "_test.go") {
				t.Errorf("%s sleeps", path)
			}
		}
		bubbles[dir] = bubbles[dir] || bytes.Contains(src, []byte("\t\"testing/synctest\"\n"))
		return nil
	})
	if err != nil || files < 20 {
		t.Errorf("%d files: %v", files, err)
	}
	for dir, paths := range sleeps {
		if !bubbles[dir] {
			t.Errorf("sleeps outside of a synctest bubble: %q", paths)
		}
	}
}
