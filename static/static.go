// Package static serves the style sheet, the scripts and the icon from memory, under names that carry a hash of the
// content: a URL never changes its content and may be kept for ever. Nothing else is served.
package static

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"net/http"
	"path"
	"regexp"
	"strings"
	"time"
)

// Prefix is where Handler expects to be mounted, without being stripped from the path.
const Prefix = "/static/"

//go:embed app.css icon.svg js/*.js vendor/*.js
var files embed.FS

type asset struct {
	body []byte
	mime string
	etag string
}

// urls are by name, assets by URL.
var urls, assets = load()

var types = map[string]string{
	".css": "text/css; charset=utf-8",
	".js":  "text/javascript; charset=utf-8",
	".svg": "image/svg+xml",
}

// imports of our own modules are relative and bare of a hash in the source, so that they run unbuilt in an editor; they
// are pointed at the hashed names here.
var imports = regexp.MustCompile(`from "\./([a-z]+\.js)"`)

func load() (map[string]string, map[string]asset) {
	l := loader{urls: map[string]string{}, assets: map[string]asset{}}
	err := fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return l.add(name)
	})
	if err != nil {
		panic("static: " + err.Error()) // the files are compiled in: this cannot depend on where we run
	}
	return l.urls, l.assets
}

type loader struct {
	urls   map[string]string
	assets map[string]asset
}

// add hashes one file after those it imports, since the hash covers the names of the imports.
func (l loader) add(name string) error {
	if _, done := l.urls[name]; done {
		return nil
	}
	body, err := files.ReadFile(name)
	if err != nil {
		return err
	}
	if strings.HasPrefix(name, "js/") {
		for _, m := range imports.FindAllSubmatch(body, -1) {
			if err := l.add("js/" + string(m[1])); err != nil {
				return err
			}
		}
		body = imports.ReplaceAllFunc(body, func(m []byte) []byte {
			dep := imports.FindSubmatch(m)[1]
			return []byte(`from "` + l.urls["js/"+string(dep)] + `"`)
		})
	}
	sum := sha256.Sum256(body)
	hash := hex.EncodeToString(sum[:6])
	ext := path.Ext(name)
	url := Prefix + strings.TrimSuffix(name, ext) + "." + hash + ext
	l.urls[name] = url
	l.assets[url] = asset{body: body, mime: types[ext], etag: `"` + hash + `"`}
	return nil
}

// Asset is the URL of a file by its name in this directory, such as "app.css", "js/live.js" or "vendor/htmx.min.js".
// An unknown name gives a URL that answers 404.
func Asset(name string) string {
	if url, ok := urls[name]; ok {
		return url
	}
	return Prefix + name
}

// Handler serves exactly the hashed URLs and answers 404 to everything else.
func Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a, ok := assets[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
			return
		}
		h := w.Header()
		h.Set("Content-Type", a.mime)
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("ETag", a.etag)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(a.body))
	})
}
