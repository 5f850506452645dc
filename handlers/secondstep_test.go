package handlers

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

func cookies(w interface{ Result() *http.Response }) map[string]*http.Cookie {
	m := map[string]*http.Cookie{}
	for _, c := range w.Result().Cookies() {
		m[c.Name] = c
	}
	return m
}

const login = "username=ada&password=correct+horse+battery"

// The right password of somebody with a second factor gives a browser a cookie of its own and no session, and leads to
// the code; a program is told so.
func TestSecondStep(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.signIn = &fleet.SecondStepError{Token: "half", Expires: time.Now().Add(5 * time.Minute)}
	w := s.do(call{method: http.MethodPost, path: "/login", body: login + "&next=%2Fclusters", header: html})
	got := cookies(w)
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/login/code?next=%2Fclusters" || got["knm"] != nil || got["knm-half"] == nil {
		t.Fatalf("%d %q %v", w.Code, w.Header().Get("Location"), got)
	}
	if c := got["knm-half"]; !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.MaxAge > 300 || c.MaxAge < 200 {
		t.Errorf("cookie: %+v", c)
	}
	w = s.do(call{method: http.MethodPost, path: "/login", body: login, header: map[string]string{"Accept": "application/json"}})
	if p := problemOf(t, w); w.Code != http.StatusUnauthorized || !strings.Contains(p.Detail, "/login/code") || cookies(w)["knm-half"] == nil {
		t.Errorf("a program: %d %+v", w.Code, p)
	}
	s.signIn = nil

	// The page is for who has the cookie.
	if w := s.do(call{path: "/login/code", header: html}); w.Header().Get("Location") != "/login" {
		t.Errorf("without the cookie: %d %q", w.Code, w.Header().Get("Location"))
	}
	half := with(html, "Cookie", "knm-half=half")
	if w := s.do(call{path: "/login/code?next=%2Fclusters", header: half}); document(t, w).Find(`input[name=next]`).AttrOr("value", "") != "/clusters" {
		t.Errorf("next is lost: %s", w.Body)
	}
	if w := s.do(call{path: "/login/code?next=https%3A%2F%2Fevil.test", header: half}); strings.Contains(w.Body.String(), "evil") {
		t.Error("next leads elsewhere")
	}
	w = s.do(call{method: http.MethodPost, path: "/login/code", body: "code=000000", header: half})
	if w.Code != http.StatusUnauthorized || document(t, w).Find("#code-error").Length() != 1 || cookies(w)["knm"] != nil {
		t.Errorf("a wrong code: %d %v", w.Code, cookies(w))
	}
	w = s.do(call{method: http.MethodPost, path: "/login/code", body: "code=123456&next=%2Fclusters", header: half})
	got = cookies(w)
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/clusters" || got["knm"] == nil || got["knm-half"] == nil || got["knm-half"].MaxAge >= 0 {
		t.Errorf("the right code: %d %v", w.Code, got)
	}
	s.signIn = &fleet.LimitError{What: "sign-in", Retry: 9 * time.Second}
	w = s.do(call{method: http.MethodPost, path: "/login/code", body: "code=123456", header: half})
	if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "9" {
		t.Errorf("throttled: %d %q", w.Code, w.Header().Get("Retry-After"))
	}
}

// Half signed in opens no other door: the cookie is not looked at by any route that asks who somebody is.
func TestSecondStep_HalfOpensNothing(t *testing.T) {
	t.Parallel()
	for _, rt := range tableOf(t) {
		if rt.perm == fleet.PermPublic {
			continue
		}
		s := newSite(t)
		w := s.do(call{method: rt.method, path: fill(rt.path), header: map[string]string{"Accept": "application/json", "Cookie": "knm-half=admin"}})
		if w.Code != http.StatusUnauthorized {
			t.Errorf("%s %s: status %d", rt.method, rt.path, w.Code)
		}
	}
}

func TestSecondFactor_Account(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.factor = fleet.FactorState{Local: true, Available: true}
	w := s.do(call{method: http.MethodPost, path: "/api/v1/second-factor", who: "viewer", body: "password=x", header: html})
	d := document(t, w)
	if d.Find("svg.qr path").AttrOr("d", "") != "M4 4h7v1h-7z" || !strings.Contains(d.Text(), "SECRETTEXT") || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("enrolment: %s", w.Body)
	}
	w = s.do(call{method: http.MethodPost, path: "/api/v1/second-factor/confirm", who: "viewer", body: "code=123456", header: curl})
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"recovery_codes":["AAAA-BBBB-CCCC-DDDD"]`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for _, path := range []string{"/account", "/api/v1/users"} {
		w = s.do(call{path: path, who: "admin", header: html})
		if b := w.Body.String(); strings.Contains(b, "SECRETTEXT") || strings.Contains(b, "AAAA-BBBB") {
			t.Errorf("%s shows it again", path)
		}
	}
	s.people = fleet.Invalid("code", "is wrong")
	w = s.do(call{method: http.MethodPost, path: "/api/v1/second-factor/confirm", who: "viewer", body: "code=1", header: html})
	if w.Code != http.StatusUnprocessableEntity || document(t, w).Find(`form[action="/api/v1/second-factor/confirm"]`).Length() != 1 {
		t.Errorf("a wrong code leaves no form to try again: %d %s", w.Code, w.Body)
	}
}

func TestInvite(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	w := s.do(call{method: http.MethodPost, path: "/api/v1/users", who: "admin", body: "name=eve&role=viewer&invite=true", header: curl})
	if w.Code != http.StatusCreated || !strings.Contains(w.Body.String(), `"link":"http://knm.test/invite#invitation-code"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	w = s.do(call{method: http.MethodPost, path: "/api/v1/users/eve", who: "admin", body: "invite=true", header: html})
	if w.Code != http.StatusOK || !strings.Contains(document(t, w).Text(), "http://knm.test/invite#invitation-code") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for body, want := range map[string]int{
		"name=eve&role=viewer&invite=true&password=x": 422, "name=eve&role=viewer&invite=maybe": 422,
	} {
		if w := s.do(call{method: http.MethodPost, path: "/api/v1/users", who: "admin", body: body, header: curl}); w.Code != want {
			t.Errorf("%s: %d", body, w.Code)
		}
	}
	for body, want := range map[string]int{"second_factor=reset": 204, "second_factor=drop": 422, "invite=false": 422, "invite=true&role=viewer": 422, "unblock=true": 204, "unblock=false": 422, "unblock=true&invite=true": 422} {
		if w := s.do(call{method: http.MethodPost, path: "/api/v1/users/eve", who: "admin", body: body, header: curl}); w.Code != want {
			t.Errorf("%s: %d", body, w.Code)
		}
	}
	if !s.called("ResetFactor eve") || !s.called("Unblock eve") {
		t.Errorf("nothing was reset: %q", s.calls)
	}
	d := document(t, s.do(call{path: "/invite", header: html}))
	if d.Find(`form[action="/invite"][data-fragment="code"] input[name=code]`).Length() != 1 || d.Find(`script[src*="fragment"]`).Length() != 1 {
		t.Error("the page has no place for the code")
	}
	w = s.do(call{method: http.MethodPost, path: "/invite", body: "code=bad&password=long+enough+x", header: html})
	if w.Code != http.StatusUnprocessableEntity || document(t, w).Find("#f-code-error").Length() != 1 {
		t.Errorf("a bad code: %d", w.Code)
	}
	w = s.do(call{method: http.MethodPost, path: "/invite", body: "code=good&password=long+enough+x", header: html})
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/login" {
		t.Errorf("a good code: %d %q", w.Code, w.Header().Get("Location"))
	}
	if strings.Contains(s.logs.String(), "invitation-code") {
		t.Error("the log has the code")
	}
}
