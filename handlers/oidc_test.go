package handlers

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

func TestOIDC(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	if d := document(t, s.do(call{path: "/login", header: html})); d.Find(`a[href^="/login/oidc"]`).Length() != 0 {
		t.Error("a provider is offered that is not there")
	}
	s.oidc = true
	d := document(t, s.do(call{path: "/login?next=%2Fclusters", header: html}))
	if got := d.Find(`a[href^="/login/oidc"]`).AttrOr("href", ""); got != "/login/oidc?next=%2Fclusters" {
		t.Errorf("the way there: %q", got)
	}
	w := s.do(call{path: "/login/oidc?next=%2Fclusters", header: html})
	c := cookies(w)["knm-oidc"]
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "https://idp.test/auth?state=s" || c == nil || cookies(w)["knm"] != nil {
		t.Fatalf("%d %q %v", w.Code, w.Header().Get("Location"), c)
	}
	// Lax and not Strict: the provider sends the browser back from another site.
	if !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != "/" || c.MaxAge > 600 || c.MaxAge < 500 {
		t.Errorf("cookie %+v", c)
	}
	back := with(html, "Cookie", "knm-oidc="+c.Value)
	w = s.do(call{path: "/login/oidc/callback?code=x&state=s", header: back})
	got := cookies(w)
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/clusters" || got["knm"] == nil || got["knm-oidc"] == nil || got["knm-oidc"].MaxAge >= 0 {
		t.Errorf("%d %q %v", w.Code, w.Header().Get("Location"), got)
	}
	if !s.called(`FinishOIDC http://knm.test/login/oidc/callback kept x replacing ""`) {
		t.Errorf("%q", s.calls)
	}
	w = s.do(call{path: "/login/oidc/callback?code=x&state=s", header: with(back, "Cookie", "knm-oidc="+c.Value+"; knm=viewer")})
	if w.Code != http.StatusSeeOther || !s.called(`FinishOIDC http://knm.test/login/oidc/callback kept x replacing "hash-viewer"`) {
		t.Errorf("the session of before is not replaced: %q", s.calls)
	}
	// Where the cookie leads is checked like every other address that a browser brings.
	w = s.do(call{path: "/login/oidc/callback?code=x&state=s", header: with(back, "Cookie", "knm-oidc=kept.aHR0cHM6Ly9ldmlsLnRlc3Q")})
	if w.Header().Get("Location") != home {
		t.Errorf("leads to %q", w.Header().Get("Location"))
	}
	// For the sake of another tab the provider is to ask again, whoever is signed in here.
	d = document(t, s.do(call{path: "/login?again=1", who: "viewer", header: html}))
	if got := d.Find(`a[href^="/login/oidc"]`).AttrOr("href", ""); got != "/login/oidc?again=1&next=%2Flogin%2Fdone" {
		t.Errorf("the way there: %q", got)
	}
	w = s.do(call{path: "/login/oidc?again=1&next=%2Flogin%2Fdone", who: "viewer", header: html})
	if !s.called("BeginOIDC http://knm.test/login/oidc/callback anew") {
		t.Errorf("%q", s.calls)
	}
	w = s.do(call{path: "/login/oidc/callback?code=x&state=s", header: with(html, "Cookie", "knm-oidc="+cookies(w)["knm-oidc"].Value)})
	if w.Header().Get("Location") != "/login/done" {
		t.Errorf("leads to %q", w.Header().Get("Location"))
	}
	s.signIn = fmt.Errorf("secret reason: %w", &fleet.StaleSignInError{})
	w = s.do(call{path: "/login/oidc/callback?code=x&state=s", header: back})
	if b := w.Body.String(); w.Code != http.StatusForbidden || cookies(w)["knm"] != nil || !strings.Contains(b, "did not have you sign in anew") || strings.Contains(b, "secret reason") {
		t.Errorf("not anew: %d %s", w.Code, b)
	}
	for want, err := range map[int]error{
		401: fleet.ErrUnauthenticated, 403: fleet.ErrForbidden, 404: fleet.ErrNotFound, 429: &fleet.LimitError{What: "sign-in", Retry: time.Second},
		503: &fleet.LaterError{What: "down", Retry: time.Second},
	} {
		s.signIn = fmt.Errorf("secret reason: %w", err)
		w := s.do(call{path: "/login/oidc/callback?code=x&state=s&error=access_denied&error_description=Call+555-1234", header: back})
		got := cookies(w)
		if w.Code != want || got["knm"] != nil || got["knm-oidc"] == nil || got["knm-oidc"].MaxAge >= 0 {
			t.Errorf("%v: %d %v", err, w.Code, got)
		}
		if b := w.Body.String(); strings.Contains(b, "555") || strings.Contains(b, "secret reason") {
			t.Errorf("%v: a text shows that is not ours: %s", err, b)
		}
	}
}
