package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

// TestDefects_StillFit: every defect still fits the sources, and every test that is named is there. Whoever changes a
// line that a defect is about changes the defect with it.
func TestDefects_StillFit(t *testing.T) {
	t.Parallel()
	if len(defects) < 40 {
		t.Errorf("%d defects are fewer than were promised", len(defects))
	}
	trust := regexp.MustCompile(`^[TRFE][0-9]+(,[TRFE][0-9]+)*$`)
	ids, found := map[string]bool{}, map[string]map[string]bool{}
	for _, d := range defects {
		if ids[d.id] {
			t.Errorf("two defects are called %s", d.id)
		}
		ids[d.id] = true
		if !trust.MatchString(d.trust) || d.why == "" || len(d.edits) == 0 || len(d.tests) == 0 {
			t.Errorf("%s does not say all that is needed: %+v", d.id, d)
		}
		changed, err := d.apply(root)
		if err != nil {
			t.Error(err)
			continue
		}
		for file, text := range changed {
			if strings.HasSuffix(file, "_test.go") || !strings.HasSuffix(file, ".go") {
				t.Errorf("%s changes %s, which is no source of the product", d.id, file)
			}
			if _, err := parser.ParseFile(token.NewFileSet(), file, text, parser.SkipObjectResolution); err != nil {
				t.Errorf("%s: %v", d.id, err)
			}
		}
		if found[d.pkg] == nil {
			found[d.pkg] = testsOf(t, d.pkg)
		}
		for _, name := range d.tests {
			if !found[d.pkg][name] {
				t.Errorf("%s names %s, which is not in %s", d.id, name, d.pkg)
			}
		}
	}
}

// testsOf are the tests of a package by their names.
func testsOf(t *testing.T, pkg string) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	files, err := fs.Glob(os.DirFS(root), pkg+"/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				out[fn.Name.Name] = true
			}
		}
	}
	return out
}

func TestApply(t *testing.T) {
	t.Parallel()
	one := edit{"go.mod", "module github.com/kube-node-manager/kube-node-manager\n", "module x\n"}
	twice := edit{"go.mod", "github.com/", "x"}
	none := edit{"go.mod", "not in there at all", "x"}
	for _, e := range []edit{twice, none} {
		if _, err := (defect{edits: []edit{e}}).apply(root); err == nil {
			t.Errorf("%q was applied", e.from)
		}
	}
	// A second edit sees what the first has made.
	got, err := defect{edits: []edit{one, {"go.mod", "module x\n", "module y\n"}}}.apply(root)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(got["go.mod"]), "module y\n") {
		t.Errorf("%.20q", got["go.mod"])
	}
}

// TestJudge: what does not compile, and what ran nothing, was not caught by a test.
func TestJudge(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, events string
		want         bool
	}{
		{"passed", `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n" + `{"Action":"pass","Package":"p"}`, false},
		{"failed", `{"Action":"fail","Package":"p","Test":"TestA/b"}` + "\n" + `{"Action":"fail","Package":"p","Test":"TestA"}` + "\n" + `{"Action":"fail","Package":"p"}`, true},
		{"leak", `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n" + `{"Action":"fail","Package":"p"}`, true},
		{"unbuilt", `{"ImportPath":"p","Action":"build-fail"}` + "\n" + `{"Action":"fail","Package":"p","FailedBuild":"p"}`, false},
		{"nothing", `{"Action":"output","Package":"p","Output":"testing: warning: no tests to run\n"}` + "\n" + `{"Action":"pass","Package":"p"}`, false},
	} {
		v, err := judge(strings.NewReader(c.events + "\n"))
		if err != nil {
			t.Fatal(err)
		}
		if v.caught() != c.want {
			t.Errorf("%s: caught %v, want %v: %+v", c.name, v.caught(), c.want, v)
		}
	}
	if _, err := judge(strings.NewReader("no JSON\n")); err == nil {
		t.Error("what is no event was taken for one")
	}
}
