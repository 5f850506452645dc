package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// Signing out, being disabled by an admin, and being disabled on the host beside the running server end open streams
// and the pages with them.
func TestStream_EndsWithTheSession(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServer(t, c.Kubeconfig)
	root := s.client(t, "root", "admin")
	for _, tc := range []struct {
		name   string
		end    func(c *client)
		within time.Duration
	}{
		{"signs out", func(c *client) { c.send("POST", "/logout", "", "").Body.Close() }, time.Second},
		{"disabled by an admin", func(*client) {
			root.json(204, nil, "PATCH", "/api/v1/users/disabled-by-an-admin", `{"disabled":true}`)
		}, time.Second},
		{"disabled on the host", func(*client) { s.run("", "user", "disable", "disabled-on-the-host") }, 5 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			who := s.client(t, strings.ReplaceAll(tc.name, " ", "-"), "viewer")
			st := who.stream("GET", "/api/v1/nodes/events", "")
			st.until("the state to be complete", func(e event) bool { return e.Name == "synced" })
			tc.end(who)
			st.end(tc.within + 500*time.Millisecond) // half a second for a busy machine: the limit is the server's
			resp := who.send("GET", "/api/v1/nodes", "", "")
			resp.Body.Close()
			if resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("afterwards /api/v1/nodes answers %s, want 401", resp.Status)
			}
		})
	}
}

// An open page whose person was disabled says so and shows the way to sign in.
func TestPage_SaysSignedOut(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServer(t, c.Kubeconfig)
	ada := s.signIn(t, "ada", "viewer")
	ada.wait("live", there(`#live-state[data-ui-state=live]`))
	s.run("", "user", "disable", "ada")
	ada.wait("the bar shows the way to sign in again", there(`#live-bar a[href^="/login"]`))
	ada.screenshot("signed-out")
}

// The first start prints a set-up code, which makes the first admin once.
func TestSetup_MakesTheFirstAdminOnce(t *testing.T) {
	s := startServerWith(t)
	code := s.setupCode()
	tb := newTab(t, s.url)
	tb.visit("/")
	tb.wait("a visitor is sent to sign in", `location.pathname === '/login'`)
	tb.visit("/setup")
	tb.screenshot("setup")
	set := func(code string) {
		tb.fill("input[name=code]", code)
		tb.fill("input[name=username]", "ada")
		tb.fill("input[name=password]", "correct horse battery")
		tb.click("form[action='/setup'] button")
	}
	set("wrong-code-wrong-code")
	tb.wait("a wrong code is refused", there(`[role=alert]`)+` && location.pathname === '/setup'`)
	set(code)
	tb.wait("the way leads to the sign-in", `location.pathname !== '/setup'`)
	c := &client{t: t, base: s.url}
	resp := c.send("POST", "/setup", "application/x-www-form-urlencoded", "code="+code+"&username=eve&password=correct+horse+battery")
	resp.Body.Close()
	if resp.StatusCode < 400 {
		t.Errorf("the code works a second time: %s", resp.Status)
	}
}
