package main

import (
	"bytes"
	"encoding/json"
	"os"
	"runtime/debug"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDescribe(t *testing.T) {
	t.Parallel()
	doc, err := describe(&debug.BuildInfo{
		GoVersion: "go1.26.8",
		Main:      debug.Module{Path: "example.org/app", Version: "(devel)"},
		Deps: []*debug.Module{
			{Path: "example.org/lib/v2", Version: "v2.1.0+incompatible", Sum: "h1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="},
			{Path: "example.org/old", Version: "v1.0.0", Replace: &debug.Module{Path: "example.org/new", Version: "v1.0.1"}},
		},
		Settings: []debug.BuildSetting{{Key: "-trimpath", Value: "true"}, {Key: "vcs.time", Value: "now"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	app, lib := "pkg:golang/example.org/app@%28devel%29", "pkg:golang/example.org/lib/v2@v2.1.0%2Bincompatible"
	std, other := "pkg:golang/std@1.26.8", "pkg:golang/example.org/new@v1.0.1"
	want := document{
		Format: "CycloneDX", Spec: "1.6", Version: 1,
		Metadata: metadata{component{
			Type: "application", Ref: app, Name: "example.org/app", Version: "(devel)", PURL: app,
			Properties: []property{{"go:build:-trimpath", "true"}},
		}},
		Components: []component{
			{Type: "library", Ref: std, Name: "std", Version: "1.26.8", PURL: std},
			{
				Type: "library", Ref: lib, Name: "example.org/lib/v2", Version: "v2.1.0+incompatible", PURL: lib,
				Hashes: []hash{{"SHA-256", "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"}},
			},
			{Type: "library", Ref: other, Name: "example.org/new", Version: "v1.0.1", PURL: other},
		},
		Dependencies: []dependency{{Ref: app, On: []string{std, lib, other}}},
	}
	if d := cmp.Diff(want, doc); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if _, err := describe(&debug.BuildInfo{Deps: []*debug.Module{{Path: "x", Sum: "h2:AA=="}}}); err == nil {
		t.Error("an unknown checksum was taken")
	}
}

// TestRun reads this test itself.
func TestRun(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var first, second bytes.Buffer
	for _, out := range []*bytes.Buffer{&first, &second} {
		if err := run([]string{self}, out); err != nil {
			t.Fatal(err)
		}
	}
	if first.String() != second.String() {
		t.Error("the same binary gives another document the second time")
	}
	var doc document
	if err := json.Unmarshal(first.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Components) == 0 || doc.Components[0].Name != "std" {
		t.Errorf("components %+v", doc.Components)
	}
	for _, args := range [][]string{nil, {"main.go"}, {"nowhere"}} {
		if err := run(args, &second); err == nil {
			t.Errorf("%q made a document", args)
		}
	}
}
