package handlers

import (
	"bytes"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/a-h/templ"
	"github.com/go-chi/chi/v5"
	"golang.org/x/text/language"

	"github.com/kube-node-manager/kube-node-manager/static"
	"github.com/kube-node-manager/kube-node-manager/views"
)

// home is where a person goes who asked for nothing else.
const home = "/nodes"

// Names of the cookies that hold how a person likes the pages. They are no secrets; a script may set them.
const (
	langCookie  = "knm_lang"
	themeCookie = "knm_theme"
	likingAge   = 365 * 24 * time.Hour
)

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// maxPooled keeps one enormous page from staying in memory for ever.
const maxPooled = 1 << 20

// show writes a page or a fragment once it has rendered in full: a template that fails in the middle must not leave half
// a page with status 200.
func (s *server) show(w http.ResponseWriter, r *http.Request, status int, c templ.Component) error {
	buf := buffers.Get().(*bytes.Buffer)
	defer func() {
		if buf.Cap() <= maxPooled {
			buf.Reset()
			buffers.Put(buf)
		}
	}()
	if err := c.Render(r.Context(), buf); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(buf.Bytes()) // a client that is gone is noticed by the server
	return nil
}

func plain(w http.ResponseWriter, status int, text string) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, err := w.Write([]byte(text))
	_ = err // a client that is gone is noticed by the server
	return nil
}

// layout is the frame of every page.
func (s *server) layout(r *http.Request, title, nav string) views.Layout {
	st := stateOf(r)
	return views.Layout{
		Title: title, Lang: s.lang(r), Theme: theme(r), Nav: nav, User: st.caller.Name, Role: st.caller.Role, Caller: st.caller, Nonce: st.nonce,
		Path: r.URL.RequestURI(), Now: time.Now(), Asset: static.Asset,
	}
}

var languages = language.NewMatcher([]language.Tag{language.English, language.SimplifiedChinese})

// lang is the language of the cookie, or else the best for Accept-Language.
func (s *server) lang(r *http.Request) string {
	if c, err := r.Cookie(langCookie); err == nil && knownLang(c.Value) {
		return c.Value
	}
	tags, _, err := language.ParseAcceptLanguage(r.Header.Get("Accept-Language"))
	if err != nil || len(tags) == 0 {
		return views.Languages[0]
	}
	tag, _, _ := languages.Match(tags...)
	if base, _ := tag.Base(); knownLang(base.String()) {
		return base.String()
	}
	return views.Languages[0]
}

func knownLang(s string) bool {
	return slices.Contains(views.Languages, s)
}

func theme(r *http.Request) string {
	if c, err := r.Cookie(themeCookie); err == nil && (c.Value == "light" || c.Value == "dark") {
		return c.Value
	}
	return ""
}

// liking takes ?lang= and ?theme= of a page into a cookie and answers with the same page without them, so that the URL
// stays what a colleague can be given. It reports whether it has answered.
func (s *server) liking(w http.ResponseWriter, r *http.Request) bool {
	q := r.URL.Query()
	if !q.Has("lang") && !q.Has("theme") {
		return false
	}
	set := func(name, value string, age time.Duration) {
		http.SetCookie(w, &http.Cookie{ //nolint:gosec // no secret: how a page looks
			Name: name, Value: value, Path: "/", MaxAge: int(age.Seconds()), Secure: s.cfg.Secure, SameSite: http.SameSiteLaxMode,
		})
	}
	if l := q.Get("lang"); knownLang(l) {
		set(langCookie, l, likingAge)
	}
	switch t := q.Get("theme"); t {
	case "light", "dark":
		set(themeCookie, t, likingAge)
	case "system":
		set(themeCookie, "", -time.Second)
	}
	q.Del("lang")
	q.Del("theme")
	target := r.URL.EscapedPath()
	if !localPath(target) {
		target = home
	}
	if len(q) > 0 {
		target += "?" + q.Encode()
	}
	http.Redirect(w, r, target, http.StatusSeeOther) //nolint:gosec // G710: localPath was asked
	return true
}

// localPath tells whether a browser takes p for a path of this site: "//host" and "/\host" lead elsewhere.
func localPath(p string) bool {
	return strings.HasPrefix(p, "/") && !strings.HasPrefix(p, "//") && !strings.ContainsAny(p, "\\\t\r\n")
}

// next is where a person may be sent after signing in: one of our own pages, and the start page instead of all else.
func (s *server) next(raw string) string {
	if !localPath(raw) {
		return home
	}
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || u.Opaque != "" {
		return home
	}
	pattern := s.mux.Find(chi.NewRouteContext(), http.MethodGet, u.EscapedPath())
	switch pattern {
	case "", "/", "/login", "/login/code", "/login/oidc", "/login/oidc/callback", "/invite", "/setup":
		return home
	}
	if !s.pages[pattern] || !localPath(u.EscapedPath()) {
		return home
	}
	if u.RawQuery == "" {
		return u.EscapedPath()
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return home
	}
	return u.EscapedPath() + "?" + q.Encode()
}

// signedInPage is where somebody is sent who signs in again for the sake of another tab.
const signedInPage = "/login/done"

// again tells whether somebody who may be signed in wants to sign in again.
func again(raw string) bool { return raw == "1" }

// afterwards is next for a sign-in that may be of somebody who is signed in.
func (s *server) afterwards(raw string, again bool) string {
	if next := s.next(raw); next != home || !again {
		return next
	}
	return signedInPage
}

// loginURL is the sign-in page that leads back to what was asked for.
func loginURL(r *http.Request) string {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return "/login"
	}
	return "/login?" + url.Values{"next": {r.URL.RequestURI()}}.Encode()
}
