package handlers

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

func wantsFresh(cfg *Config) { cfg.FreshSignIn = 15 * time.Minute }

// largeDrain is a plan that has to be confirmed and needs a fresh sign-in.
func largeDrain() *fleet.Plan {
	return &fleet.Plan{
		Action: fleet.ActionDrain, At: time.Now(), Counts: fleet.PlanCounts{Total: 2, Change: 2}, Digest: "digest-1",
		Confirm: "prod", Why: []string{fleet.ConfirmManyNodes},
	}
}

// TestFreshSignIn_Page: the page of a plan says before it is pressed that somebody has to sign in again, in another tab,
// and says it to nobody else.
func TestFreshSignIn_Page(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		off     bool
		age     time.Duration // of the sign-in; negative for none
		unknown bool          // instead of the age
		plan    func(*fleet.Plan)
		lang    string
		words   string // "" for no notice
	}{
		{name: "old", age: 43*time.Minute + 20*time.Second, words: "You signed in 43 min ago. Before this drain, sign in again. Sign in again in a new tab"},
		{name: "in Chinese", lang: "zh", age: 43*time.Minute + 20*time.Second, words: "您已登录 43 分钟。 执行此次 drain 前，请重新登录。 在新标签页中重新登录"},
		{name: "old within a minute", age: 14*time.Minute + 30*time.Second, words: "You signed in 15 min ago. Before this drain, sign in again. Sign in again in a new tab"},
		{name: "nobody knows", unknown: true, words: "It is not known when you last proved who you are. Before this drain, sign in again. Sign in again in a new tab"},
		{name: "fresh", age: 13 * time.Minute},
		{name: "no sign-in of ours", age: -1},
		{name: "never asked for", off: true, age: time.Hour},
		{name: "protected labels", age: time.Hour, plan: func(p *fleet.Plan) { p.Why = []string{fleet.ConfirmProtected} }},
		{name: "nothing to confirm", age: time.Hour, plan: func(p *fleet.Plan) { p.Confirm, p.Why = "", nil }},
		{name: "a taint", age: time.Hour, plan: func(p *fleet.Plan) {
			p.Action, p.Why = fleet.ActionTaints, []string{fleet.ConfirmNoExecute}
		}, words: "You signed in 60 min ago. Before this change, sign in again. Sign in again in a new tab"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, func(cfg *Config) {
				if !tt.off {
					wantsFresh(cfg)
				}
			})
			s.plan = largeDrain()
			if tt.plan != nil {
				tt.plan(s.plan)
			}
			if tt.age >= 0 {
				s.signedIn = time.Now().Add(-tt.age)
			}
			if tt.unknown {
				s.signedIn = fleet.SignInUnknown()
			}
			c := call{method: "POST", path: "/plan", who: "operator", body: formBody("action", string(s.plan.Action), "nodes", twoLines), header: with(html, "Cookie", "knm_lang="+tt.lang+"; knm=operator")}
			if s.plan.Action == fleet.ActionTaints {
				c.body += "&" + formBody("taints", "a=b:NoExecute")
			}
			w := s.do(c)
			notice := document(t, w).Find("#confirm #sign-in-again")
			if got := strings.Join(strings.Fields(notice.Text()), " "); w.Code != http.StatusOK || got != tt.words {
				t.Fatalf("status %d, notice %q, want %q", w.Code, got, tt.words)
			}
			if tt.words == "" {
				return
			}
			link := notice.Find("a")
			got := []string{link.AttrOr("href", ""), link.AttrOr("target", ""), link.AttrOr("rel", "")}
			if d := cmp.Diff([]string{"/login?again=1", "_blank", "noopener"}, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestFreshSignIn_Refused: whoever is refused is told so in the way that they asked: beside what they had typed, in the
// panel, on a page, or as a problem of a name of its own.
func TestFreshSignIn_Refused(t *testing.T) {
	t.Parallel()
	s := newSite(t, wantsFresh)
	s.plan = largeDrain()
	s.signedIn = time.Now().Add(-time.Hour)
	s.submit = fmt.Errorf("making: %w", &fleet.StaleSignInError{Age: time.Hour, Limit: 15 * time.Minute})
	s.steer = s.submit
	typed := formBody("action", "drain", "nodes", twoLines, "reason", "rack 4", "confirm", "prod", "plan", "digest-1", "idempotency_key", "k1")

	w := s.do(call{method: "POST", path: "/api/v1/batches", who: "operator", body: typed, header: with(curl, "Accept", "application/json")})
	want := problemJSON{
		Type: "urn:kube-node-manager:problem:sign_in_again", Title: "Sign in again before this.", Status: 403,
		Detail: "You signed in 60 min ago. This needs a sign-in of the last 15 min.",
	}
	got := problemOf(t, w)
	got.RequestID = ""
	if d := cmp.Diff(want, got); d != "" || w.Code != http.StatusForbidden {
		t.Errorf("as JSON: %d (-want +got):\n%s", w.Code, d)
	}

	w = s.do(call{method: "POST", path: "/api/v1/batches", who: "operator", body: typed, header: html})
	d := document(t, w)
	if w.Code != http.StatusForbidden || d.Find("#confirm #sign-in-again").Length() != 1 || d.Find("#f-confirm").AttrOr("value", "") != "prod" ||
		strings.TrimSpace(d.Find(`#confirm textarea[name="reason"]`).Text()) != "rack 4" {
		t.Errorf("the plan again: %d %s", w.Code, d.Find("main").Text())
	}
	// Where there is no plan any more, it is said all the same.
	s.planErr = fleet.Invalid("nodes", "are gone")
	if d := document(t, s.do(call{method: "POST", path: "/api/v1/batches", who: "operator", body: typed, header: html})); d.Find("#sign-in-again").Length() != 1 {
		t.Errorf("without a plan: %s", d.Find("main").Text())
	}

	for name, header := range map[string]map[string]string{"panel": hx, "page": html} {
		path := map[string]string{"panel": "/api/v1/batches", "page": "/api/v1/batches/b1/retry"}[name]
		body := map[string]string{"panel": formBody("action", "drain", "nodes", twoLines), "page": formBody("idempotency_key", "k")}[name]
		w := s.do(call{method: "POST", path: path, who: "operator", body: body, header: header})
		d := document(t, w)
		if w.Code != http.StatusForbidden || d.Find(`a[href="/login?again=1"][target=_blank]`).Length() != 1 || !strings.Contains(d.Text(), "You signed in 60 min ago.") {
			t.Errorf("%s: %d %s", name, w.Code, d.Text())
		}
	}
}

// TestSignInAgain: whoever is signed in gets the form with their name, the new session takes the place of the old one, and
// a page says where to go on.
func TestSignInAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t, wantsFresh)
	if w := s.do(call{path: "/login", who: "viewer", header: html}); w.Code != http.StatusSeeOther {
		t.Errorf("without again: %d", w.Code)
	}
	d := document(t, s.do(call{path: "/login?again=1", who: "viewer", header: html}))
	if d.Find("h1").Text() != "Sign in again" || d.Find(`input[name=username]`).AttrOr("value", "") != "viewer" ||
		d.Find(`input[name=again]`).AttrOr("value", "") != "1" || d.Find(`input[name=next]`).AttrOr("value", "") != "/login/done" {
		t.Errorf("the form: %s", d.Find("main").Text())
	}
	if name := document(t, s.do(call{path: "/login?again=1", header: html})).Find(`input[name=username]`).AttrOr("value", "none"); name != "" {
		t.Errorf("a name for nobody: %q", name)
	}
	if next := document(t, s.do(call{path: "/login?again=1&next=%2Faccount", who: "viewer", header: html})).Find(`input[name=next]`).AttrOr("value", ""); next != "/account" {
		t.Errorf("next is %q", next)
	}

	// A slip of the finger does not lose what it was for.
	d = document(t, s.do(call{method: "POST", path: "/login", who: "viewer", body: formBody("username", "ada", "password", "x", "again", "1", "next", "/login/done"), header: html}))
	if d.Find(`input[name=again]`).AttrOr("value", "") != "1" || d.Find(`input[name=next]`).AttrOr("value", "") != "/login/done" {
		t.Errorf("after a wrong password: %s", d.Find("main").Text())
	}
	w := s.do(call{method: "POST", path: "/login", who: "viewer", body: formBody("username", "ada", "password", "correct horse battery", "again", "1"), header: html})
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/login/done" || cookies(w)["knm"].Value != "admin" {
		t.Errorf("signed in: %d to %q", w.Code, w.Header().Get("Location"))
	}
	if !s.called(`SignIn ada from 192.0.2.1 replacing "hash-viewer"`) {
		t.Errorf("the session of before is not replaced: %q", s.calls)
	}
	s.signIn = &fleet.SecondStepError{Token: "half", Expires: time.Now().Add(time.Minute)}
	w = s.do(call{method: "POST", path: "/login", who: "viewer", body: formBody("username", "ada", "password", "x", "again", "1"), header: html})
	if w.Header().Get("Location") != "/login/code?next=%2Flogin%2Fdone" {
		t.Errorf("the second step leads to %q", w.Header().Get("Location"))
	}
	if w := s.do(call{path: "/login/done", who: "admin", header: html}); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "Go back to your other tab") {
		t.Errorf("afterwards: %d", w.Code)
	}
}
