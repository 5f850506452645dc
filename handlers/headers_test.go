package handlers

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// A handler that panics, on whichever route: the answer has every header, no word of why, and the next one is served.
func TestHeaders_Panic(t *testing.T) {
	t.Parallel()
	logs := &safeBuffer{}
	s, err := newServer(newWorld().config(logs))
	if err != nil {
		t.Fatal(err)
	}
	table := s.routes()
	for i := range table {
		table[i].serve = func(http.ResponseWriter, *http.Request) error { panic("fire") }
	}
	if err := s.register(table); err != nil {
		t.Fatal(err)
	}
	as := &site{t: t, h: s.mux, logs: logs}
	for _, rt := range table {
		for _, accept := range []string{"text/html", "application/json", "text/event-stream"} {
			w := as.do(call{method: rt.method, path: fill(rt.path), who: "admin", body: bodies[rt.method+" "+rt.path], header: map[string]string{"Accept": accept}})
			what := rt.method + " " + rt.path
			if w.Code != http.StatusInternalServerError || strings.Contains(w.Body.String(), "fire") || w.Header().Get("Cache-Control") != "no-store" {
				t.Errorf("%s: status %d, %v: %s", what, w.Code, w.Header(), w.Body)
			}
			checkHeaders(t, what, w.Header(), false)
		}
	}
}

// No header of an answer says what a request said, wherever it says it.
func TestHeaders_HoldNoText(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	const mark = "h0stile"
	for _, rt := range tableOf(t) {
		path := strings.NewReplacer("{cluster}", mark, "{node}", mark, "{id}", mark, "{seq}", mark, "{name}", mark).Replace(rt.path)
		for _, query := range []string{"", "?format=" + mark, "?q=" + mark, "?user=" + mark + "%0d%0aX-Evil:" + mark, "?" + mark + "=1"} {
			for _, body := range []string{"", formBody("name", mark+"\r\nX-Evil: "+mark, "username", mark, "next", "//"+mark, "nodes", mark), bodies[rt.method+" "+rt.path]} {
				w := s.do(call{method: rt.method, path: path + query, who: "admin", body: body, header: map[string]string{
					"Accept": "text/html", "X-Request-Id": mark, "Idempotency-Key": mark, "Referer": "http://" + mark, "Origin": "", "User-Agent": mark, "Accept-Language": mark,
				}})
				for k, v := range w.Header() {
					// The one exception: back to where somebody was, on this site, in one piece.
					if k == "Location" && strings.HasPrefix(v[0], "/") && !strings.ContainsAny(v[0], "\r\n") {
						continue
					}
					if all := strings.Join(v, "\n"); strings.Contains(strings.ToLower(k+all), mark) || k == "X-Evil" {
						t.Errorf("%s %s%s: %s: %s", rt.method, path, query, k, all)
					}
				}
			}
		}
	}
}

// Ten names of the host, on every page: the links of it and where it sends to stay on this site.
func TestHost_ChangesNoLink(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	hosts := []string{
		"evil.test", "evil.test:80", "knm.test@evil.test", "[::1]", "EVIL.test.", "a b", "evil.test/x", "evil.test#", "xn--vil-5na.test", "127.0.0.1:1@evil.test",
	}
	for _, rt := range tableOf(t) {
		if rt.method != http.MethodGet || rt.kind == stream {
			continue
		}
		for _, host := range hosts {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://knm.test"+fill(rt.path), nil)
			r.Host = host
			for _, k := range []string{"X-Forwarded-Host", "Forwarded", "X-Host", "X-Original-Url", "X-Rewrite-Url"} {
				r.Header.Set(k, "host=evil.test")
			}
			r.Header.Set("Accept", "text/html")
			r.AddCookie(&http.Cookie{Name: "knm", Value: "admin"})
			w := httptest.NewRecorder()
			s.h.ServeHTTP(w, r)
			if to := w.Header().Get("Location"); to != "" && !localPath(to) && to != "https://idp.test/auth?state=s" {
				t.Errorf("%s as %q leads to %q", rt.path, host, to)
			}
			if text := strings.ToLower(w.Body.String()); strings.Contains(text, "evil") || strings.Contains(text, "xn--") {
				t.Errorf("%s as %q says so: status %d", rt.path, host, w.Code)
			}
		}
	}
}

// 264 ways to leave the directory of files, as they are sent: nothing is found, and nothing redirects.
func TestStatic_Traversal(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ups := []string{
		"../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%5c", "..\\", "....//", "%252e%252e%252f", "./../", "/../", "//..//", "..;/", "%c0%ae%c0%ae/", "..%00/", "js/../../",
		"%2e./", ".%2e/", "..%c0%af", "..%ef%bc%8f", "%u002e%u002e/", "..%09/", "app.css/../../",
	}
	files := []string{"etc/passwd", "go.mod", "server.go", "static.go", "../../../../etc/passwd", "proc/self/environ", ".", "..", "", "static/", "handlers/server.go", "windows/win.ini"}
	n := 0
	for _, up := range ups {
		for _, file := range files {
			n++
			u := &url.URL{Scheme: "http", Host: "knm.test", Path: "/static/" + up + file}
			if plain, err := url.PathUnescape(u.Path); err == nil && plain != u.Path {
				u.RawPath, u.Path = u.Path, plain
			}
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://knm.test/", nil)
			r.URL = u
			w := httptest.NewRecorder()
			s.h.ServeHTTP(w, r)
			if w.Code != http.StatusNotFound || w.Header().Get("Location") != "" {
				t.Errorf("%s: status %d, Location %q", u.EscapedPath(), w.Code, w.Header().Get("Location"))
			}
			checkHeaders(t, u.EscapedPath(), w.Header(), false)
		}
	}
	if n < 200 {
		t.Errorf("only %d spellings", n)
	}
}

// The names that no API server accepts, where a batch or a plan names nodes: it is refused, and the field is said.
func TestBatch_HostileNames(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, name := range []string{
		"..", ".", "a/..", "%2e%2e", "a%2fb", "Node", "a\x00b", "a b", "-a", "a-", "ä", "a\\b", "a?b", "a#b", "a;b", "a\u202eb", strings.Repeat("a", 254), "", "a..b",
	} {
		for _, path := range []string{"/api/v1/batches", "/api/v1/plans"} {
			w := s.do(call{method: "POST", path: path, who: "admin", body: formBody("action", "cordon", "nodes", "prod/"+name), header: map[string]string{"Accept": "application/json"}})
			if p := problemOf(t, w); w.Code != http.StatusUnprocessableEntity || p.Field != "nodes" {
				t.Errorf("%s with %q: status %d, field %q", path, name, w.Code, p.Field)
			}
		}
		if ref, err := fleet.ParseNodeRef("nodes", "prod/"+name); err == nil && ref.Cluster == "prod" {
			t.Errorf("%q is the name of a node", name)
		}
	}
	if len(s.specs) > 0 || len(s.planned) > 0 {
		t.Errorf("somebody was asked: %v %v", s.specs, s.planned)
	}
}
