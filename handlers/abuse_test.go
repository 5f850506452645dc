package handlers

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// unsafe are the routes that change something, from the router itself.
func unsafeRoutes(t *testing.T) []route {
	t.Helper()
	var out []route
	for _, rt := range tableOf(t) {
		if rt.method != http.MethodGet {
			out = append(out, rt)
		}
	}
	if len(out) < 30 {
		t.Fatalf("only %d routes change something", len(out))
	}
	return out
}

// hostile is a body that is meant to do harm.
type hostile struct {
	name     string
	media    string // JSON if empty
	body     string
	chunked  bool              // without a length
	header   map[string]string // beside the media type
	want     int               // of a route that reads its body; 0: whatever is no 2xx
	anywhere bool              // of every route, whether or not it reads its body
}

func hostileBodies() []hostile {
	many := func(n int, one, between string) string {
		return strings.TrimSuffix(strings.Repeat(one+between, n), between)
	}
	huge := strings.Repeat("a", batchBodyLimit+1)
	encoded := func(v string) hostile {
		return hostile{name: "encoded as " + v, media: mediaForm, body: "action=cordon", header: map[string]string{"Content-Encoding": v}, want: 415, anywhere: true}
	}
	media := func(v string) hostile {
		return hostile{name: "media type " + v, media: v, body: "action=cordon", want: 415, anywhere: true}
	}
	return []hostile{
		{name: "too large", media: mediaForm, body: "reason=" + huge, want: 413, anywhere: true},
		{name: "too large, chunked", media: mediaForm, body: "reason=" + huge, chunked: true, want: 413},
		{name: "too large JSON, chunked", body: `{"reason":"` + huge + `"}`, chunked: true, want: 413},
		encoded("gzip"), encoded("br"), encoded("deflate"), encoded("zstd"), encoded("identity"), encoded("gzip, gzip"), encoded("\x01"), encoded(""),
		media("multipart/form-data; boundary=x"), media("multipart/form-data"), media("text/plain"), media("text/xml"), media("application/x-yaml"),
		media("application/octet-stream"), media("application/json, multipart/form-data"), media(`application/json; charset="`), media("APPLICATION/XML"),
		media("application/vnd.api+json"), media(";"), media("none"),
		{name: "a million fields", media: mediaForm, body: many(15_000, "a", "&"), want: 422},
		{name: "a million equal fields", media: mediaForm, body: many(12_000, "n=", "&"), want: 422},
		{name: "semicolons", media: mediaForm, body: "action=cordon;nodes=prod/node-0", want: 422},
		{name: "half an escape", media: mediaForm, body: "action=%c", want: 422},
		{name: "no text", media: mediaForm, body: "action=cordon&nodes=prod%2Fnode-0&reason=%ff%fe", want: 422},
		{name: "NUL", media: mediaForm, body: "action=cordon&nodes=prod%2Fnode-0&reason=a%00b", want: 422},
		{name: "NUL in a name", media: mediaForm, body: "action=cordon&%00=x", want: 422},
		{name: "an unknown field", media: mediaForm, body: "action=cordon&nodes=prod%2Fnode-0&__proto__=1", want: 422},
		{name: "a field twice", media: mediaForm, body: "action=cordon&action=drain&nodes=prod%2Fnode-0", want: 422},
		{name: "deep lists", body: `{"a":` + strings.Repeat("[", 30_000) + strings.Repeat("]", 30_000) + `}`, want: 422},
		{name: "deep objects", body: strings.Repeat(`{"value":`, 6_000) + "1" + strings.Repeat("}", 6_000), want: 422},
		{name: "deep and never closed", body: `{"nodes":` + strings.Repeat("[", 60_000), want: 422},
		{name: "a name twice", body: `{"action":"cordon","nodes":["prod/node-0"],"action":"drain"}`, want: 422},
		{name: "a name twice in values", body: `{"action":"cordon","nodes":["prod/node-0"],"value":{"a":"1","a":"2"}}`, want: 422},
		{name: "a name twice by two ways", body: `{"action":"cordon","nodes":["prod/node-0"],"value":{"a":"1"},"value.a":"2"}`, want: 422},
		{name: "many numbers", body: `{"nodes":[` + many(20_000, "1", ",") + `]}`, want: 422},
		{name: "many empty lists", body: `{` + many(5_000, `"":[]`, ",") + `}`, want: 422},
		{name: "a long number", body: `{"max_concurrent":1` + strings.Repeat("0", 50_000) + `}`, want: 422},
		{name: "an exponent", body: `{"max_concurrent":1e400000}`, want: 422},
		{name: "no object", body: `[1,2,3]`, want: 422},
		{name: "nothing", body: `null`, want: 422},
		{name: "two objects", body: `{}{"action":"cordon"}`, want: 422},
		{name: "half an object", body: `{"action":"cordon"`, want: 422},
		{name: "a colon that is none", body: `{"action","cordon"}`, want: 422},
		{name: "byte order mark", body: "\ufeff{}", want: 422},
		{name: "NUL in JSON", body: `{"action":"cordon","nodes":["prod/node-0"],"reason":"a\u0000b"}`, want: 422},
		{name: "a lone surrogate as a name", body: `{"\ud800":"x"}`, want: 422},
		{name: "an object in a list", body: `{"nodes":[{"a":"b"}]}`, want: 422},
	}
}

func (h hostile) send(s *site, rt route) *httptest.ResponseRecorder {
	var body io.Reader = strings.NewReader(h.body)
	if h.chunked {
		body = io.MultiReader(body) // of a kind whose length nobody knows
	}
	r := httptest.NewRequestWithContext(s.t.Context(), rt.method, "http://knm.test"+fill(rt.path), body)
	r.Header.Set("Accept", "application/json")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	switch h.media {
	case "":
		r.Header.Set("Content-Type", mediaJSON)
	case "none":
	default:
		r.Header.Set("Content-Type", h.media)
	}
	for k, v := range h.header {
		r.Header[k] = []string{v}
	}
	r.AddCookie(&http.Cookie{Name: "knm", Value: "admin"})
	w := httptest.NewRecorder()
	s.h.ServeHTTP(w, r)
	return w
}

// T33: hostile bodies to every route that changes something. None is a fault of ours, none does anything, and each is
// refused for what it is.
func TestHostileBodies(t *testing.T) {
	t.Parallel()
	list := hostileBodies()
	if len(list) < 30 {
		t.Fatalf("only %d bodies", len(list))
	}
	// What these do needs no field, and their bodies may be the form of a button.
	ignores := map[string]bool{"POST /logout": true}
	reads := 0
	for _, rt := range unsafeRoutes(t) {
		key := rt.method + " " + rt.path
		s := newSite(t)
		for _, h := range list {
			s.specs, s.calls, s.planned, s.saved = nil, nil, nil, nil
			w := h.send(s, rt)
			if w.Code >= 500 {
				t.Errorf("%s: %s: status %d: %s", key, h.name, w.Code, w.Body)
			}
			if h.anywhere && w.Code != h.want {
				t.Errorf("%s: %s: status %d, want %d", key, h.name, w.Code, h.want)
			}
			if ignores[key] {
				continue
			}
			reads++
			if w.Code != h.want {
				t.Errorf("%s: %s: status %d, want %d: %s", key, h.name, w.Code, h.want, w.Body)
			}
			for _, c := range s.calls {
				if c != "PeekSession" && c != "BySession" {
					t.Errorf("%s: %s: it did %s", key, h.name, c)
				}
			}
			if len(s.specs)+len(s.planned)+len(s.saved) > 0 {
				t.Errorf("%s: %s: something was done", key, h.name)
			}
		}
	}
	t.Logf("%d hostile requests", reads)
}

// What a hostile body costs is bounded by the limit of its route, whatever is in it. Not parallel: what others allocate
// would be counted too.
func TestHostileBodies_Memory(t *testing.T) { //nolint:paralleltest // it reads the memory of the process
	s := newSite(t)
	for _, rt := range []route{
		{method: http.MethodPost, path: "/login"},
		{method: http.MethodPost, path: "/api/v1/users"},
		{method: http.MethodPost, path: "/api/v1/batches", body: batchBodyLimit},
		{method: http.MethodPost, path: "/api/v1/clusters", body: clusterBodyLimit},
	} {
		limit := max(rt.body, bodyLimit)
		for _, h := range hostileBodies() {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			w := h.send(s, rt)
			runtime.ReadMemStats(&after)
			// Reading doubles a buffer until all is in it, and texts are made of that.
			if used, most := after.TotalAlloc-before.TotalAlloc, uint64(10*limit+2<<20); used > most {
				t.Errorf("%s %s: %s: %d bytes were allocated for a limit of %d, status %d", rt.method, rt.path, h.name, used, limit, w.Code)
			}
		}
	}
}

// Thousands of cookies, and addresses that are no text.
func TestHostileRequests(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for name, tt := range map[string]struct {
		path   string
		cookie string
		want   int
	}{
		"cookies":              {"/nodes", "knm=viewer; " + strings.Repeat("a=b; ", 2500), 200},
		"many sessions":        {"/nodes", strings.Repeat("knm=nobody; ", 2500), 303},
		"cookies beyond":       {"/nodes", strings.Repeat("a=b; ", 4000) + "knm=viewer", 303},
		"a long session":       {"/nodes", "knm=" + strings.Repeat("x", 60_000), 303},
		"NUL in the query":     {"/nodes?q=a%00b", "knm=viewer", 422},
		"no text in the query": {"/audit?user=%ff", "knm=admin", 422},
		"NUL in a name":        {"/clusters/a%00b/nodes", "knm=viewer", 404},
		"no text in a name":    {"/api/v1/nodes/prod/%c3%28", "knm=viewer", 404},
		"many parameters":      {"/nodes?" + strings.Repeat("a=1&", 1_200), "knm=viewer", 422},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://knm.test"+tt.path, nil)
		r.Header.Set("Accept", "text/html")
		r.Header.Set("Cookie", tt.cookie)
		w := httptest.NewRecorder()
		s.h.ServeHTTP(w, r)
		if w.Code != tt.want {
			t.Errorf("%s: status %d, want %d", name, w.Code, tt.want)
		}
	}
}

// T15: every route that changes something, from the router itself, × every way to say or not to say where a request
// comes from. The verdicts are those of the rule in words: same-origin, or, of a browser that sends no Sec-Fetch-Site,
// an Origin that is ours to the letter.
func TestSameOrigin(t *testing.T) {
	t.Parallel()
	sites := []string{"", "same-origin", "same-site", "cross-site", "none", "nonsense"}
	origins := []string{
		"", "http://knm.test", "https://knm.test", "http://knm.test:8080", "http://evil.test", "null", "https://nodes.example",
		"https://nodes.example.evil.test",
	}
	hosts := []string{"knm.test", "nodes.example", "10.0.0.7:8080"}
	modes := map[string]struct {
		scheme string // of the request as it arrives
		own    func(host string) string
		change func(*Config)
	}{
		"plain": {"http", func(host string) string { return "http://" + host }, func(*Config) {}},
		"TLS":   {"https", func(host string) string { return "https://" + host }, func(c *Config) { c.Secure = true }},
		// A proxy ends TLS and calls us by whatever host it likes.
		"proxy": {"http", func(string) string { return "https://nodes.example" }, func(c *Config) {
			c.External, c.Secure = &url.URL{Scheme: "https", Host: "nodes.example"}, true
		}},
	}
	for mode, m := range modes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			n, allowed := 0, 0
			for _, rt := range unsafeRoutes(t) {
				s := newSite(t, m.change)
				cases := 0
				for _, from := range sites {
					for _, origin := range origins {
						for _, host := range hosts {
							cases++
							want := from == "same-origin" || from == "" && origin == m.own(host)
							if want {
								allowed++
							}
							s.specs, s.calls, s.planned, s.saved, s.denied = nil, nil, nil, nil, nil
							r := httptest.NewRequestWithContext(t.Context(), rt.method, m.scheme+"://"+host+fill(rt.path), strings.NewReader(bodies[rt.method+" "+rt.path]))
							r.Header.Set("Content-Type", formType)
							name := "knm"
							if mode != "plain" {
								name = "__Host-knm"
							}
							r.AddCookie(&http.Cookie{Name: name, Value: "admin"})
							if from != "" {
								r.Header.Set("Sec-Fetch-Site", from)
							}
							if origin != "" {
								r.Header.Set("Origin", origin)
							}
							w := httptest.NewRecorder()
							s.h.ServeHTTP(w, r)
							if got := w.Code != http.StatusForbidden; got != want {
								t.Errorf("%s %s to %s, site %q, origin %q: status %d", rt.method, rt.path, host, from, origin, w.Code)
							}
							if want {
								continue
							}
							for _, c := range s.calls {
								if c != "BySession" {
									t.Errorf("%s %s: refused, and it did %s", rt.method, rt.path, c)
								}
							}
							if len(s.specs)+len(s.planned)+len(s.saved) > 0 {
								t.Errorf("%s %s: refused, and something was done", rt.method, rt.path)
							}
							if rt.perm != fleet.PermPublic && len(s.denied) != 1 {
								t.Errorf("%s %s: denials on record: %q", rt.method, rt.path, s.denied)
							}
						}
					}
				}
				if cases < 144 {
					t.Errorf("%s %s: only %d cases", rt.method, rt.path, cases)
				}
				n += cases
			}
			t.Logf("%d cases, %d of them allowed", n, allowed)
		})
	}
}

// Links and pictures on other pages are requests with GET: no route that changes something answers to those, nor to any
// method that the router does not name.
func TestUnsafe_OnlyByItsMethods(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	gets := map[string]bool{}
	have := map[string]bool{}
	for _, rt := range tableOf(t) {
		have[rt.method+" "+rt.path] = true
		gets[rt.path] = gets[rt.path] || rt.method == http.MethodGet
	}
	for _, rt := range unsafeRoutes(t) {
		for _, method := range []string{"GET", "HEAD", "OPTIONS", "TRACE", "POST", "PUT", "PATCH", "DELETE", "PROPFIND", "post", "QUERY"} {
			if strings.HasSuffix(rt.path, "/clusters/test") && have[method+" /api/v1/clusters/{cluster}"] {
				continue // there may be a cluster of that name
			}
			if have[method+" "+rt.path] || gets[rt.path] && (method == "GET" || method == "HEAD") {
				continue
			}
			if w := s.do(call{method: method, path: fill(rt.path), who: "admin", header: map[string]string{"X-Http-Method-Override": rt.method}}); w.Code != http.StatusMethodNotAllowed && w.Code != http.StatusNotFound {
				t.Errorf("%s %s: status %d", method, rt.path, w.Code)
			}
		}
	}
	for _, c := range s.calls {
		if c != "PeekSession" && c != "BySession" {
			t.Errorf("it did %s", c)
		}
	}
	if len(s.specs) > 0 {
		t.Error(fmt.Sprint(s.specs))
	}
}
