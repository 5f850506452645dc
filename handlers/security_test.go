package handlers

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/static"
)

// Every answer carries the same headers, whatever route and status.
func TestHeaders_Everywhere(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		s := newSite(t, func(c *Config) {
			c.Secure = secure
			if secure {
				c.External = &url.URL{Scheme: "https", Host: "nodes.example"}
			}
		})
		cookie := map[bool]string{false: "knm", true: "__Host-knm"}[secure]
		calls := []call{
			{path: "/nope"},
			{path: "/nope/"},
			{method: "DELETE", path: "/nodes"},
			{path: static.Asset("app.css")},
			{path: "/static/../server.go"},
			{path: "/static/nope.js"},
			{path: "/nodes?lang=zh"},
			{path: "/nodes?q=colour%3Ared"},
			{method: "OPTIONS", path: "/nodes"},
			{method: "POST", path: "/login", body: strings.Repeat("x", bodyLimit+1)},
			{method: "TRACE", path: "/nodes"},
		}
		for _, rt := range tableOf(t) {
			calls = append(calls, call{method: rt.method, path: fill(rt.path), body: bodies[rt.method+" "+rt.path]})
		}
		statuses := map[int]bool{}
		for _, c := range calls {
			for _, who := range []string{"", "expired", "viewer", "admin", "store-down"} {
				for _, accept := range []string{"text/html", "application/json", "*/*"} {
					c.header = map[string]string{"Accept": accept}
					if who != "" {
						c.header["Cookie"] = cookie + "=" + who
					}
					w := s.do(c)
					statuses[w.Code] = true
					checkHeaders(t, fmt.Sprintf("%s %s as %q (%d)", c.method, c.path, who, w.Code), w.Header(), secure)
					// Only files are kept; a stream says no-cache by itself.
					cc := w.Header().Get("Cache-Control")
					file := strings.HasPrefix(c.path, "/static/app.") && w.Code == http.StatusOK
					streamed := w.Header().Get("Content-Type") == "text/event-stream"
					if !file && !streamed && cc != "no-store" {
						t.Errorf("%s %s (%d): Cache-Control = %q", c.method, c.path, w.Code, cc)
					}
				}
			}
		}
		for _, want := range []int{200, 201, 202, 204, 303, 401, 403, 404, 405, 413, 422, 500} {
			if !statuses[want] {
				t.Errorf("no answer had status %d", want)
			}
		}
	}
}

func checkHeaders(t *testing.T, what string, h http.Header, secure bool) {
	t.Helper()
	for k, v := range map[string]string{
		"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "same-origin",
		"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
	} {
		if got := h.Values(k); len(got) != 1 || got[0] != v {
			t.Errorf("%s: %s = %q, want %q", what, k, got, v)
		}
	}
	csp := h.Get("Content-Security-Policy")
	for _, part := range []string{
		"default-src 'none'", "script-src 'nonce-", "style-src 'self'", "font-src 'self'", "connect-src 'self'", "img-src 'self' data:",
		"base-uri 'none'", "object-src 'none'", "frame-ancestors 'none'", "form-action 'self'", "require-trusted-types-for 'script'",
		"trusted-types htmx",
	} {
		if !strings.Contains(csp, part) {
			t.Errorf("%s: policy %q lacks %q", what, csp, part)
		}
	}
	if strings.Contains(csp, "unsafe") {
		t.Errorf("%s: policy %q", what, csp)
	}
	if h.Get("X-Request-Id") == "" {
		t.Errorf("%s: no request id", what)
	}
	if (h.Get("Strict-Transport-Security") != "") != secure {
		t.Errorf("%s: Strict-Transport-Security = %q", what, h.Get("Strict-Transport-Security"))
	}
	for k := range h {
		if strings.HasPrefix(k, "Access-Control-") {
			t.Errorf("%s: %s is set", what, k)
		}
	}
}

// The nonce is of this request, in the header and in the page alike.
func TestNonce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	seen := map[string]bool{}
	for range 5 {
		w := s.do(call{path: "/nodes", who: "viewer", header: html})
		nonce, ok := document(t, w).Find("script").First().Attr("nonce")
		if !ok || nonce == "" || seen[nonce] || !strings.Contains(w.Header().Get("Content-Security-Policy"), "'nonce-"+nonce+"'") {
			t.Errorf("nonce %q, policy %q", nonce, w.Header().Get("Content-Security-Policy"))
		}
		seen[nonce] = true
	}
}

// Reading changes nothing, on any route.
func TestReadingChangesNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, rt := range tableOf(t) {
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodOptions} {
			s.do(call{method: method, path: fill(rt.path), who: "admin"})
		}
	}
	for _, c := range s.calls {
		// Without what a browser keeps while it is at the provider, coming back proves nothing.
		atProvider := strings.HasPrefix(c, "BeginOIDC ") || c == `FinishOIDC http://knm.test/login/oidc/callback   replacing "hash-admin"`
		if c != "PeekSession" && !atProvider {
			t.Errorf("reading did: %s", c)
		}
	}
	if len(s.specs) > 0 {
		t.Errorf("reading made batches: %v", s.specs)
	}
}

var redirectPayloads = []string{
	"", "//evil.test", "///evil.test", "////evil.test", "/\\evil.test", "\\\\evil.test", "/\\/evil.test", "\\/evil.test", "/%5cevil.test",
	"/%2f%2fevil.test", "/%2fevil.test", "%2f%2fevil.test", "/.//evil.test", "/..//evil.test", "/./\\evil.test", "http://evil.test",
	"https://evil.test/nodes", "HTTP://evil.test", "http:evil.test", "http:/evil.test", "https:evil.test", "javascript:alert(1)", "JaVaScRiPt:alert(1)",
	"java\nscript:alert(1)", "data:text/html,x", "vbscript:x", "ftp://evil.test", "mailto:x@evil.test", "/\t/evil.test", "/\n/evil.test", "/\r/evil.test",
	"\t//evil.test", " //evil.test", " /nodes", "/ /evil.test", "/nodes\r\nSet-Cookie: x=y", "/nodes%0d%0aSet-Cookie:x", "@evil.test", "/@evil.test",
	"//nodes@evil.test", "//knm.test@evil.test", "evil.test", "nodes", "./nodes", "../nodes", "?next=//evil.test", "#//evil.test", "/。evil.test",
	"//evil。test", "/\u2215evil.test", "\u2215\u2215evil.test", "/\u00a0/evil.test", "/\x01/evil.test", "/\u202e/evil.test", "//[::1]", "//1.2.3.4", "//evil.test:80/nodes",
	"/login", "/login?next=//evil.test", "/logout", "/setup", "/api/v1/nodes", "/api/v1/audit", "/nodes/stream", "/batches/b1/events", "/static/app.css",
	"/healthz", "/nope", "/clusters/..//evil.test", "//nodes", "/nodes//evil.test", "/%09/evil.test", "/;//evil.test", "/nodes;x", "/NODES", "/nodes/",
	"/nodes?q=%zz", "/clusters/x/nodes/y/stream",
}

func TestNext(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	if len(redirectPayloads) < 64 {
		t.Errorf("only %d payloads", len(redirectPayloads))
	}
	for _, p := range redirectPayloads {
		w := s.do(call{method: "POST", path: "/login", body: formBody("username", "ada", "password", "correct horse battery", "next", p)})
		if got := w.Header().Get("Location"); w.Code != http.StatusSeeOther || got != "/nodes" {
			t.Errorf("next %q: status %d, Location %q", p, w.Code, got)
		}
		d := document(t, s.do(call{path: "/login?" + url.Values{"next": {p}}.Encode(), header: html}))
		if v, ok := d.Find("input[name=next]").Attr("value"); ok {
			t.Errorf("next %q: the form carries %q", p, v)
		}
		if strings.Contains(d.Find("main").Text(), "evil") {
			t.Errorf("next %q: the page shows text of the URL", p)
		}
	}
	for in, want := range map[string]string{
		"/nodes?q=zone%3Aa&sort=-cpu": "/nodes?q=zone%3Aa&sort=-cpu",
		"/batches/b1":                 "/batches/b1",
		"/clusters":                   "/clusters",
		"/account":                    "/account",
		"/clusters/" + url.PathEscape(odd) + "/nodes/node-0":    "/clusters/" + url.PathEscape(odd) + "/nodes/node-0",
		"/clusters/" + url.PathEscape("//evil.test") + "/nodes": "/clusters/" + url.PathEscape("//evil.test") + "/nodes",
	} {
		w := s.do(call{method: "POST", path: "/login", body: formBody("username", "ada", "password", "correct horse battery", "next", in)})
		if got := w.Header().Get("Location"); got != want {
			t.Errorf("next %q: Location %q, want %q", in, got, want)
		}
	}
}

func FuzzNext(f *testing.F) {
	for _, p := range redirectPayloads {
		f.Add(p)
	}
	s, err := newServer(newWorld().config(&safeBuffer{}))
	if err != nil {
		f.Fatal(err)
	}
	if err := s.register(s.routes()); err != nil {
		f.Fatal(err)
	}
	base, err := url.Parse("http://knm.test/login")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got := s.next(raw)
		u, err := base.Parse(got)
		if err != nil || u.Scheme != "http" || u.Host != "knm.test" || !strings.HasPrefix(got, "/") || strings.HasPrefix(got, "//") || strings.ContainsAny(got, "\\\r\n\t") {
			t.Errorf("next(%q) = %q", raw, got)
		}
	})
}

// Links are relative: the Host header has no say in any of them.
func TestHost_ChangesNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, host := range []string{"evil.test", "evil.test:80", "knm.test@evil.test", "[::1]", "EVIL.test.", "a b"} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://knm.test/nodes", nil)
		r.Host = host
		r.Header.Set("Accept", "text/html")
		r.Header.Set("X-Forwarded-Host", "evil.test")
		r.AddCookie(&http.Cookie{Name: "knm", Value: "viewer"})
		w := httptest.NewRecorder()
		s.h.ServeHTTP(w, r)
		if w.Code != http.StatusOK || strings.Contains(strings.ToLower(w.Body.String()), "evil") {
			t.Errorf("host %q: status %d, shows", host, w.Code)
		}
	}
}

func TestCookie(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		s := newSite(t, func(c *Config) { c.Secure = secure })
		w := s.do(call{method: "POST", path: "/login", who: "", body: bodies["POST /login"]})
		c := w.Result().Cookies()
		if w.Code != http.StatusSeeOther || len(c) != 2 {
			t.Fatalf("status %d, cookies %v", w.Code, c)
		}
		want := map[bool]string{false: "knm", true: "__Host-knm"}[secure]
		for i, want := range []http.Cookie{{Name: want, Value: "admin", MaxAge: 3000}, {Name: want + "_device", Value: "this browser", MaxAge: 89 * 24 * 3600}} {
			if got := c[i]; got.Name != want.Name || got.Value != want.Value || !got.HttpOnly || got.Secure != secure || got.SameSite != http.SameSiteLaxMode ||
				got.Path != "/" || got.Domain != "" || got.MaxAge < want.MaxAge {
				t.Errorf("secure %t: %s", secure, got)
			}
		}
	}
}

// TestCookie_Device: by what a browser is known it gets when a sign-in is complete and not before, shows it at both steps,
// and keeps when its person signs out; nothing but a sign-in reads it.
func TestCookie_Device(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	mine := with(html, "Cookie", "knm_device=shown; knm-half=half")
	first := call{method: http.MethodPost, path: "/login", body: login, header: mine}
	second := call{method: http.MethodPost, path: "/login/code", body: "code=123456", header: mine}
	s.signIn = &fleet.SecondStepError{Token: "half", Expires: time.Now().Add(5 * time.Minute)}
	if c := cookies(s.do(first)); c["knm_device"] != nil || c["knm-half"] == nil || !s.called(`SignIn in a browser that shows "shown"`) {
		t.Errorf("after the password: %v, %q", c, s.calls)
	}
	for _, err := range []error{fleet.ErrUnauthenticated, fleet.ErrUnavailable, &fleet.LimitError{What: "sign-in", Retry: time.Second}} {
		s.signIn = err
		for _, c := range []call{first, second} {
			if c := cookies(s.do(c)); len(c) != 0 {
				t.Errorf("%v: %v", err, c)
			}
		}
	}
	s.signIn = nil
	wrong := second
	wrong.body = "code=000000"
	if c := cookies(s.do(wrong)); len(c) != 0 {
		t.Errorf("a wrong code: %v", c)
	}
	c := cookies(s.do(second))["knm_device"]
	if c == nil || c.Value != "this browser" || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.MaxAge < 89*24*3600 ||
		!s.called(`SecondStep in a browser that shows "shown"`) {
		t.Errorf("after the code: %v, %q", c, s.calls)
	}
	if c := cookies(s.do(call{method: http.MethodPost, path: "/logout", who: "viewer"})); c["knm_device"] != nil {
		t.Errorf("signing out: %v", c)
	}
	for _, rt := range tableOf(t) {
		if rt.perm == fleet.PermPublic {
			continue
		}
		s := newSite(t)
		if w := s.do(call{method: rt.method, path: fill(rt.path), header: map[string]string{"Accept": "application/json", "Cookie": "knm_device=admin"}}); w.Code != http.StatusUnauthorized {
			t.Errorf("%s %s: status %d", rt.method, rt.path, w.Code)
		}
	}
}

// The session that a browser still has is named when it signs in, so that it ends with the new one.
func TestSignIn_ReplacesOldSession(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.do(call{method: "POST", path: "/login", who: "viewer", body: bodies["POST /login"]})
	if !s.called(`SignIn ada from 192.0.2.1 replacing "hash-viewer"`) {
		t.Errorf("calls %q", s.calls)
	}
	s.do(call{method: "POST", path: "/login", who: "forged", body: bodies["POST /login"]})
	if !s.called(`SignIn ada from 192.0.2.1 replacing ""`) {
		t.Errorf("calls %q", s.calls)
	}
}

func TestSignOut(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	w := s.do(call{method: "POST", path: "/logout", who: "viewer"})
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/login" || !s.called("SignOut viewer") || w.Header().Get("Clear-Site-Data") == "" {
		t.Errorf("status %d %v %q", w.Code, w.Header(), s.calls)
	}
	if c := w.Result().Cookies(); len(c) != 1 || c[0].MaxAge >= 0 || c[0].Value != "" {
		t.Errorf("cookies %v", c)
	}
	if w := s.do(call{path: "/logout", who: "viewer"}); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("signing out by a link: status %d", w.Code)
	}
}

func TestLoginPage_SignedIn(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	w := s.do(call{path: "/login?next=%2Fbatches", who: "viewer", header: html})
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/batches" {
		t.Errorf("status %d, Location %q", w.Code, w.Header().Get("Location"))
	}
	w = s.do(call{path: "/login", who: "expired", header: html})
	if w.Code != http.StatusOK {
		t.Errorf("status %d", w.Code)
	}
	s.setup = true
	if d := document(t, s.do(call{path: "/login", header: html})); d.Find("a[href='/setup']").Length() != 1 {
		t.Error("no way to set up")
	}
	if w := s.do(call{path: "/setup", header: html}); w.Code != http.StatusOK {
		t.Errorf("set-up: status %d", w.Code)
	}
	s.setup = false
	if w := s.do(call{path: "/setup", header: html}); w.Code != http.StatusSeeOther {
		t.Errorf("set-up when somebody exists: status %d", w.Code)
	}
}

// The client's address is the peer's unless the peer is one of our proxies.
func TestClientAddress(t *testing.T) {
	t.Parallel()
	proxies := func(c *Config) { c.Proxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} }
	for _, tt := range []struct {
		name    string
		change  func(*Config)
		forward []string
		want    string
	}{
		{"no proxy", nil, []string{"9.9.9.9"}, "192.0.2.1"},
		{"proxy", proxies, []string{"9.9.9.9"}, "9.9.9.9"},
		{"forged chain", proxies, []string{"1.1.1.1, 9.9.9.9"}, "9.9.9.9"},
		{"two proxies", proxies, []string{"1.1.1.1, 9.9.9.9, 192.0.2.5"}, "9.9.9.9"},
		{"two headers", proxies, []string{"1.1.1.1", "9.9.9.9"}, "9.9.9.9"},
		{"garbage", proxies, []string{"9.9.9.9, nonsense"}, "192.0.2.1"},
		{"nothing", proxies, nil, "192.0.2.1"},
		{"mapped", proxies, []string{"::ffff:9.9.9.9"}, "9.9.9.9"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var changes []func(*Config)
			if tt.change != nil {
				changes = append(changes, tt.change)
			}
			s := newSite(t, changes...)
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://knm.test/login", strings.NewReader(bodies["POST /login"]))
			r.Header.Set("Content-Type", formType)
			r.Header.Set("Sec-Fetch-Site", "same-origin")
			r.Header.Set("X-Real-Ip", "6.6.6.6")
			r.Header.Set("True-Client-Ip", "6.6.6.6")
			for _, f := range tt.forward {
				r.Header.Add("X-Forwarded-For", f)
			}
			s.h.ServeHTTP(httptest.NewRecorder(), r)
			if !s.called(`SignIn ada from ` + tt.want + ` replacing ""`) {
				t.Errorf("calls %q, want %s", s.calls, tt.want)
			}
		})
	}
}

// Streams are never compressed; pages and JSON are.
func TestCompression(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for path, want := range map[string]bool{
		"/nodes": true, "/api/v1/nodes": true, static.Asset("app.css"): true, "/nodes/stream": false, "/api/v1/nodes/events": false,
		"/batches/b1/events": false, "/clusters/stream": false,
	} {
		w := s.do(call{path: path, who: "viewer", header: map[string]string{"Accept-Encoding": "gzip", "Accept": "*/*"}})
		if got := w.Header().Get("Content-Encoding") != ""; w.Code != http.StatusOK || got != want {
			t.Errorf("%s: status %d, Content-Encoding %q", path, w.Code, w.Header().Get("Content-Encoding"))
		}
	}
}

func TestStatic(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	w := s.do(call{path: static.Asset("app.css")})
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "text/css; charset=utf-8" || !strings.Contains(w.Header().Get("Cache-Control"), "immutable") {
		t.Errorf("status %d %v", w.Code, w.Header())
	}
	for _, up := range []string{
		"../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%5c", "..\\", "....//", "%252e%252e%252f", "./../", "/../", "//..//", "..;/", "%c0%ae%c0%ae/", "..%00/", "js/../../",
	} {
		for _, file := range []string{"server.go", "static.go", "go.mod", "etc/passwd", "vendor", "js/", ""} {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://knm.test/", nil)
			r.URL = &url.URL{Path: "/static/" + up + file}
			if u, err := url.PathUnescape(r.URL.Path); err == nil && u != r.URL.Path {
				r.URL.RawPath, r.URL.Path = r.URL.Path, u
			}
			rec := httptest.NewRecorder()
			s.h.ServeHTTP(rec, r)
			if rec.Code != http.StatusNotFound {
				t.Errorf("%s%s: status %d", up, file, rec.Code)
			}
		}
	}
}

func TestLiking(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	w := s.do(call{path: "/nodes?q=zone%3Aa&lang=zh&theme=dark", who: "viewer", header: html})
	if got := w.Header().Get("Location"); w.Code != http.StatusSeeOther || got != "/nodes?q=zone%3Aa" {
		t.Errorf("status %d, Location %q", w.Code, got)
	}
	var names []string
	for _, c := range w.Result().Cookies() {
		names = append(names, c.Name+"="+c.Value)
	}
	slices.Sort(names)
	if fmt.Sprint(names) != "[knm_lang=zh knm_theme=dark]" {
		t.Errorf("cookies %v", names)
	}
	w = s.do(call{path: "/nodes?lang=xx&theme=%22%3E", who: "viewer", header: html})
	if w.Code != http.StatusSeeOther || len(w.Result().Cookies()) != 0 {
		t.Errorf("status %d, cookies %v", w.Code, w.Result().Cookies())
	}
	for _, tt := range []struct{ cookie, accept, want string }{
		{"", "", "en"},
		{"", "zh-CN,zh;q=0.9,en;q=0.8", "zh-Hans"},
		{"", "de,en;q=0.5", "en"},
		{"", "zh-TW", "zh-Hans"},
		{"zh", "en", "zh-Hans"},
		{"xx", "en", "en"},
		{"", strings.Repeat("a-", 5000), "en"},
	} {
		r := map[string]string{"Accept": "text/html", "Accept-Language": tt.accept, "Cookie": "knm=viewer; knm_lang=" + tt.cookie + "; knm_theme=dark"}
		d := document(t, s.do(call{path: "/nodes", header: r}))
		if got, _ := d.Find("html").Attr("lang"); got != tt.want {
			t.Errorf("cookie %q, Accept-Language %.20q: lang %q", tt.cookie, tt.accept, got)
		}
		if got, _ := d.Find("html").Attr("data-theme"); got != "dark" {
			t.Errorf("theme %q", got)
		}
	}
}

// One line per request, valid JSON whatever the request holds, without what must not be seen.
func TestLog(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.do(call{method: "POST", path: "/login", body: formBody("username", "ada", "password", "hunter2"), header: map[string]string{"User-Agent": "x\r\ny\x1b[31m"}})
	s.do(call{path: "/clusters/a%0ab%1b%5b31m/nodes?q=secret-word", who: "viewer"})
	s.do(call{path: "/nodes", header: map[string]string{"Authorization": "Bearer knm_hunter2"}})
	lines := strings.Split(strings.TrimSpace(s.logs.String()), "\n")
	if len(lines) != 3 {
		t.Errorf("%d lines: %s", len(lines), s.logs.String())
	}
	for _, l := range lines {
		var rec map[string]any
		if err := json.Unmarshal([]byte(l), &rec); err != nil {
			t.Fatalf("%s: %v", l, err)
		}
		for _, key := range []string{keyRequest, keyMethod, keyRoute, keyStatus, keyDur, keyBytes, keyAddr, keyPath} {
			if _, ok := rec[key]; !ok {
				t.Errorf("%s is missing in %s", key, l)
			}
		}
	}
	if out := s.logs.String(); strings.Contains(out, "hunter2") || strings.Contains(out, "secret-word") || strings.Contains(out, "\x1b") {
		t.Errorf("the log shows what it must not: %s", out)
	}
}

// armed is a connection that remembers its deadlines.
type armed struct {
	*httptest.ResponseRecorder
	read, write time.Time
}

func (a *armed) SetReadDeadline(t time.Time) error  { a.read = t; return nil }
func (a *armed) SetWriteDeadline(t time.Time) error { a.write = t; return nil }

// Every answer but a stream has a deadline; a stream has none, nor one left over from the request before it on the same
// connection or from the body that it came with.
func TestDeadlines(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, tt := range []struct {
		call
		streamed bool
	}{
		{call{path: "/nodes", header: html}, false},
		{call{path: "/api/v1/nodes"}, false},
		{call{path: "/healthz"}, false},
		{call{path: static.Asset("app.css")}, false},
		{call{path: "/nope"}, false},
		{call{path: "/nodes/stream"}, true},
		{call{path: "/api/v1/nodes/events"}, true},
		{call{path: "/batches/b1/events"}, true},
		{call{method: "POST", path: "/api/v1/batches", header: hx, body: bodies["POST /api/v1/batches"]}, true},
		{call{method: "POST", path: "/api/v1/batches", header: map[string]string{"Accept": "text/event-stream"}, body: bodies["POST /api/v1/batches"]}, true},
	} {
		method := tt.method
		if method == "" {
			method = http.MethodGet
		}
		r := httptest.NewRequestWithContext(t.Context(), method, "http://knm.test"+tt.path, strings.NewReader(tt.body))
		r.Header.Set("Content-Type", formType)
		r.Header.Set("Sec-Fetch-Site", "same-origin")
		for k, v := range tt.header {
			r.Header.Set(k, v)
		}
		r.AddCookie(&http.Cookie{Name: "knm", Value: "operator"})
		before := time.Now()
		w := &armed{ResponseRecorder: httptest.NewRecorder(), read: before, write: before}
		s.h.ServeHTTP(w, r)
		if tt.streamed {
			if !w.read.IsZero() || !w.write.IsZero() {
				t.Errorf("%s %s: a stream with deadlines %v %v", method, tt.path, w.read, w.write)
			}
			continue
		}
		if w.read.Before(before.Add(readTimeout)) || w.write.Before(before.Add(writeTimeout)) || w.write.After(time.Now().Add(writeTimeout)) {
			t.Errorf("%s %s: deadlines %v %v", method, tt.path, w.read, w.write)
		}
	}
}
