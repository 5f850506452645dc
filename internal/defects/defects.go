package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// defect is one fault that the product could have had.
type defect struct {
	id    string   // short and unique
	trust string   // what it would break: the ids of docs/security.md
	why   string   // what an attacker, or bad luck, would make of it
	edits []edit   // all at once
	pkg   string   // relative to the module, whose tests have to notice
	tests []string // top-level tests and fuzz targets of it that are run
}

// edit replaces a text that occurs exactly once in a file.
type edit struct{ file, from, to string }

// apply answers the changed files of a defect, by their paths below root.
func (d defect) apply(root string) (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, e := range d.edits {
		text, begun := out[e.file]
		if !begun {
			var err error
			if text, err = os.ReadFile(filepath.Join(root, filepath.FromSlash(e.file))); err != nil {
				return nil, fmt.Errorf("defect %s: %w", d.id, err)
			}
		}
		if n := strings.Count(string(text), e.from); n != 1 {
			return nil, fmt.Errorf("defect %s: %s has %d times, and should have once:\n%s", d.id, e.file, n, e.from)
		}
		out[e.file] = []byte(strings.Replace(string(text), e.from, e.to, 1))
	}
	return out, nil
}

// overlay writes the changed files into dir and answers the file to hand to the compiler.
func (d defect) overlay(root, dir string) (string, error) {
	changed, err := d.apply(root)
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	for file, text := range changed {
		to := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(to, text, 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(root, filepath.FromSlash(file))] = to
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "overlay.json")
	return file, os.WriteFile(file, text, 0o600)
}

// verdict is what a run of tests says.
type verdict struct {
	passed, failed []string // top-level tests
	unbuilt        bool
	broken         bool   // the package failed, be it by no test in particular
	output         string // the end of it
}

// judge reads what `go test -json` writes.
func judge(r io.Reader) (verdict, error) {
	var (
		v    verdict
		last []string
	)
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e struct{ Action, Package, Test, Output, FailedBuild string }
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return v, fmt.Errorf("reading the events of a test: %w", err)
		}
		top := e.Test != "" && !strings.Contains(e.Test, "/")
		switch {
		case e.Action == "build-fail", e.FailedBuild != "":
			v.unbuilt = true
		case e.Action == "pass" && top:
			v.passed = append(v.passed, e.Test)
		case e.Action == "fail" && top:
			v.failed = append(v.failed, e.Test)
		case e.Action == "fail" && e.Test == "":
			v.broken = true
		case e.Output != "":
			last = append(last, e.Output)
		}
	}
	if len(last) > 40 {
		last = last[len(last)-40:]
	}
	v.output = strings.Join(last, "")
	slices.Sort(v.failed)
	return v, lines.Err()
}

// caught tells whether a test has noticed. A package may also fail at its end, when leaks are looked for.
func (v verdict) caught() bool { return !v.unbuilt && (len(v.failed) > 0 || v.broken) }
