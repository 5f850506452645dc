package static

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
)

func get(t *testing.T, method, url string, header http.Header) *http.Response {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, url, nil)
	maps.Copy(r.Header, header)
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, r)
	return w.Result()
}

func TestHandler_ServesEveryFile(t *testing.T) {
	t.Parallel()
	n := 0
	err := fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		n++
		url := Asset(name)
		if !regexp.MustCompile(`^/static/[a-z/.-]+\.[0-9a-f]{12}\.(js|css|svg)$`).MatchString(url) {
			t.Errorf("%s has the URL %s", name, url)
		}
		res := get(t, http.MethodGet, url, nil)
		if res.StatusCode != http.StatusOK {
			t.Errorf("%s answers %d", url, res.StatusCode)
		}
		want := map[string]string{"css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}[url[len(url)-3:]]
		for k, v := range map[string]string{
			"Content-Type": want, "Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff",
		} {
			if got := res.Header.Get(k); got != v {
				t.Errorf("%s: %s is %q, want %q", name, k, got, v)
			}
		}
		if res := get(t, http.MethodGet, url, http.Header{"If-None-Match": {res.Header.Get("ETag")}}); res.StatusCode != http.StatusNotModified {
			t.Errorf("%s with its own ETag answers %d", name, res.StatusCode)
		}
		return nil
	})
	if err != nil || n < 10 {
		t.Fatalf("%d files: %v", n, err)
	}
}

func TestHandler_ServesNothingElse(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"/static/", "/static", "/static/app.css", "/static/js/", "/static/js/live.js", "/static/vendor/README.md", "/static/../static.go",
		"/static/app.000000000000.css", "/app.css", "/", Asset("no-such.js"), Asset("app.css") + "/",
	} {
		if res := get(t, http.MethodGet, url, nil); res.StatusCode != http.StatusNotFound {
			t.Errorf("%s answers %d", url, res.StatusCode)
		}
	}
	if res := get(t, http.MethodPost, Asset("app.css"), nil); res.StatusCode != http.StatusMethodNotAllowed || res.Header.Get("Allow") == "" {
		t.Errorf("POST answers %d", res.StatusCode)
	}
	if res := get(t, http.MethodHead, Asset("app.css"), nil); res.StatusCode != http.StatusOK {
		t.Errorf("HEAD answers %d", res.StatusCode)
	}
}

// A module that imports another by a name without its hash would get a 404 in the browser.
func TestModules_ImportHashedNames(t *testing.T) {
	t.Parallel()
	found := 0
	for name := range urls {
		if !strings.HasPrefix(name, "js/") {
			continue
		}
		body, err := io.ReadAll(get(t, http.MethodGet, Asset(name), nil).Body)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?:from|import)\s*\(?\s*["']([^"']+)["']`).FindAllStringSubmatch(string(body), -1) {
			found++
			if _, ok := assets[m[1]]; !ok {
				t.Errorf("%s imports %q, which is not served", name, m[1])
			}
		}
	}
	if found < 4 {
		t.Errorf("only %d imports found", found)
	}
}

// What would break the content security policy, or the promise that no text is made into markup.
func TestModules_KeepThePolicy(t *testing.T) {
	t.Parallel()
	for name := range urls {
		if !strings.HasPrefix(name, "js/") {
			continue
		}
		body, err := files.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "setAttribute('style'", ".style.", "localStorage"} {
			if strings.Contains(string(body), word) {
				t.Errorf("%s uses %s", name, word)
			}
		}
	}
}

// The vendored files are what the table beside them says.
func TestVendor_Sums(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("vendor/README.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`(?m)^\| (\S+\.js) \| \S+ \| ([0-9a-f]{64}) \|$`).FindAllStringSubmatch(string(readme), -1)
	listed := map[string]bool{}
	for _, r := range rows {
		listed[r[1]] = true
		body, err := files.ReadFile("vendor/" + r[1])
		if err != nil {
			t.Error(err)
			continue
		}
		if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != r[2] {
			t.Errorf("%s is not the file that README.md names", r[1])
		}
	}
	entries, err := fs.ReadDir(files, "vendor")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !listed[e.Name()] {
			t.Errorf("%s is not in README.md", e.Name())
		}
	}
	if len(rows) != 3 {
		t.Errorf("%d rows in README.md", len(rows))
	}
}
