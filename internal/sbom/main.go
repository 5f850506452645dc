// Command sbom writes what a program is made of, as CycloneDX in JSON: the modules that the linker took in, with the
// versions and checksums that it wrote into the binary. What is listed is what is there, not what a build file asks for.
// The same binary gives the same document: it holds no time and no random number.
package main

import (
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"strings"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("usage: sbom BINARY")
	}
	info, err := buildinfo.ReadFile(args[0])
	if err != nil {
		return err
	}
	doc, err := describe(info)
	if err != nil {
		return err
	}
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(doc)
}

// What follows is the part of CycloneDX 1.6 that we fill in.

type document struct {
	Format       string       `json:"bomFormat"`
	Spec         string       `json:"specVersion"`
	Version      int          `json:"version"`
	Metadata     metadata     `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type metadata struct {
	Component component `json:"component"`
}

type component struct {
	Type       string     `json:"type"`
	Ref        string     `json:"bom-ref"`
	Name       string     `json:"name"`
	Version    string     `json:"version,omitempty"`
	Hashes     []hash     `json:"hashes,omitempty"`
	PURL       string     `json:"purl,omitempty"`
	Properties []property `json:"properties,omitempty"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type dependency struct {
	Ref string   `json:"ref"`
	On  []string `json:"dependsOn"`
}

// describe is the document of a binary.
func describe(info *debug.BuildInfo) (document, error) {
	main, err := of("application", &info.Main)
	if err != nil {
		return document{}, err
	}
	for _, s := range info.Settings {
		if slices.Contains([]string{"-ldflags", "-trimpath", "CGO_ENABLED", "GOARCH", "GOOS", "GOFIPS140"}, s.Key) {
			main.Properties = append(main.Properties, property{"go:build:" + s.Key, s.Value})
		}
	}
	std := component{Type: "library", Name: "std", Version: strings.TrimPrefix(info.GoVersion, "go")}
	std.PURL = "pkg:golang/std@" + std.Version
	std.Ref = std.PURL
	doc := document{
		Format: "CycloneDX", Spec: "1.6", Version: 1, Metadata: metadata{main}, Components: []component{std},
		Dependencies: []dependency{{Ref: main.Ref, On: []string{std.Ref}}},
	}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		c, err := of("library", m)
		if err != nil {
			return document{}, err
		}
		doc.Components = append(doc.Components, c)
		doc.Dependencies[0].On = append(doc.Dependencies[0].On, c.Ref)
	}
	return doc, nil
}

func of(kind string, m *debug.Module) (component, error) {
	c := component{Type: kind, Name: m.Path, Version: m.Version, PURL: "pkg:golang/" + escaped(m.Path)}
	if m.Version != "" {
		c.PURL += "@" + url.QueryEscape(m.Version)
	}
	c.Ref = c.PURL
	if m.Sum != "" {
		// Go's checksum of a module: SHA-256 over the list of its files and theirs.
		sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:"))
		if err != nil || !strings.HasPrefix(m.Sum, "h1:") {
			return c, fmt.Errorf("the checksum of %s is in no form that is known: %q", m.Path, m.Sum)
		}
		c.Hashes = []hash{{"SHA-256", hex.EncodeToString(sum)}}
	}
	return c, nil
}

// escaped is a path as package URLs write it.
func escaped(path string) string {
	parts := strings.Split(path, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}
