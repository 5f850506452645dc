package handlers

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func TestClusters_Steering(t *testing.T) {
	t.Parallel()
	path := "/clusters/" + url.PathEscape(odd)
	json := map[string]string{"Accept": "application/json"}
	tests := []struct {
		name   string
		call   call
		status int
		done   string // what was asked for, "" for nothing
	}{
		{"retry by a program", call{path: path + "/retry", who: "operator", header: json}, http.StatusNoContent, "Retry " + odd + " by operator"},
		{"retry by a browser", call{path: path + "/retry", who: "operator", header: html}, http.StatusSeeOther, "Retry " + odd + " by operator"},
		{"retry by htmx", call{path: path + "/retry", who: "operator", header: hx}, http.StatusNoContent, "Retry " + odd + " by operator"},
		{"retry of what is not there", call{path: "/clusters/nope/retry", who: "operator", header: json}, http.StatusNotFound, ""},
		{"retry with a field", call{path: path + "/retry", who: "operator", header: json, body: formBody("x", "y")}, http.StatusUnprocessableEntity, ""},
		{"accept", call{path: path + "/accept", who: "admin", header: json, body: formBody("uid", "u2")}, http.StatusNoContent, "Accept " + odd + " u2 by admin"},
		{"accept without looking", call{path: path + "/accept", who: "admin", header: json}, http.StatusUnprocessableEntity, ""},
		{"accept of another one", call{path: path + "/accept", who: "admin", header: json, body: formBody("uid", "not-that-one")}, http.StatusConflict, "Accept " + odd + " not-that-one by admin"},
		{"accept of what is not there", call{path: "/clusters/nope/accept", who: "admin", header: json, body: formBody("uid", "u2")}, http.StatusNotFound, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			tt.call.method = http.MethodPost
			w := s.do(tt.call)
			if w.Code != tt.status {
				t.Errorf("status %d, want %d: %s", w.Code, tt.status, w.Body)
			}
			if tt.done == "" && len(s.calls) != 0 || tt.done != "" && !s.called(tt.done) {
				t.Errorf("asked for %q, want %q", s.calls, tt.done)
			}
			if tt.status == http.StatusSeeOther && w.Header().Get("Location") != "/clusters" {
				t.Errorf("sent to %s", w.Header().Get("Location"))
			}
		})
	}
}

// The buttons are in every row; the page says who sees them.
func TestClusters_ButtonsByRole(t *testing.T) {
	t.Parallel()
	for who, want := range map[string][2]bool{"viewer": {}, "operator": {true, false}, "admin": {true, true}} {
		s := newSite(t)
		table := document(t, s.do(call{path: "/clusters", who: who, header: html})).Find("table.clusters")
		if got := [2]bool{table.HasClass("may-retry"), table.HasClass("may-accept")}; got != want {
			t.Errorf("%s may retry and accept: %v, want %v", who, got, want)
		}
	}
}

// Adding, testing, replacing and removing, as programs and as the forms of the page do it. No answer repeats a
// kubeconfig, least of all that of a form that was wrong.
func TestClusters_Managed(t *testing.T) {
	t.Parallel()
	const secret = "canary-of-the-kubeconfig"
	api := "/api/v1/clusters/" + url.PathEscape(odd)
	json, html := map[string]string{"Accept": "application/json"}, map[string]string{"Accept": "text/html"}
	for _, tt := range []struct {
		name   string
		call   call
		status int
		want   string // what was asked for, "" for nothing
		says   string // in the answer
	}{
		{"add", call{method: "POST", path: "/api/v1/clusters", header: json, body: formBody("name", " new ", "kubeconfig", secret, "context", "c")}, 201, `AddCluster new "c" 24 by admin`, `"name":"new"`},
		{"add as a form", call{method: "POST", path: "/api/v1/clusters", header: html, body: formBody("name", "new", "kubeconfig", secret, "context", "")}, 303, `AddCluster new "" 24 by admin`, ""},
		{"a name that is taken", call{method: "POST", path: "/api/v1/clusters", header: json, body: formBody("name", "prod", "kubeconfig", secret)}, 409, `AddCluster prod "" 24 by admin`, "prod"},
		{"refused", call{method: "POST", path: "/api/v1/clusters", header: json, body: formBody("name", "new", "kubeconfig", secret+"exec")}, 422, `AddCluster new "" 28 by admin`, `"field":"kubeconfig"`},
		{"refused form", call{method: "POST", path: "/api/v1/clusters", header: html, body: formBody("name", "new", "kubeconfig", secret+"exec")}, 422, `AddCluster new "" 28 by admin`, `value="new"`},
		{"unknown field", call{method: "POST", path: "/api/v1/clusters", header: json, body: formBody("name", "new", "kubeconfig", secret, "token", "x")}, 422, "", `"field":"token"`},
		{"test", call{method: "POST", path: "/api/v1/clusters/test", header: json, body: formBody("kubeconfig", secret)}, 200, `TestCluster  "" 24 by admin`, `"outcome":"ok"`},
		{"test as a form", call{method: "POST", path: "/api/v1/clusters/test", header: html, body: formBody("name", "new", "kubeconfig", secret, "context", "")}, 200, `TestCluster new "" 24 by admin`, "may do everything"},
		{"test that is refused", call{method: "POST", path: "/api/v1/clusters/test", header: html, body: formBody("name", "new", "kubeconfig", secret+"exec")}, 422, `TestCluster new "" 28 by admin`, "runs a program"},
		{"replace", call{method: "PUT", path: api, header: json, body: formBody("kubeconfig", secret)}, 200, `ReplaceCluster ` + odd + ` "" 24 by admin`, ""},
		{"replace as a form", call{method: "POST", path: api + "/replace", header: html, body: formBody("kubeconfig", secret, "context", "")}, 303, `ReplaceCluster ` + odd + ` "" 24 by admin`, ""},
		{"replace that is refused", call{method: "POST", path: api + "/replace", header: html, body: formBody("kubeconfig", secret+"exec")}, 422, `ReplaceCluster ` + odd + ` "" 28 by admin`, "runs a program"},
		{"another name", call{method: "PUT", path: api, header: json, body: formBody("kubeconfig", secret, "name", "x")}, 422, "", `"field":"name"`},
		{"replace of the host's", call{method: "PUT", path: "/api/v1/clusters/prod", header: json, body: formBody("kubeconfig", secret)}, 409, `ReplaceCluster prod "" 24 by admin`, "kubeconfig of the host"},
		{"replace of nothing", call{method: "PUT", path: "/api/v1/clusters/nope", header: json, body: formBody("kubeconfig", secret)}, 404, "", ""},
		{"remove", call{method: "DELETE", path: api, header: json}, 204, `RemoveCluster ` + odd + ` "" 0 by admin`, ""},
		{"remove one named as a route", call{method: "DELETE", path: "/api/v1/clusters/test", header: json}, 204, `RemoveCluster test "" 0 by admin`, ""},
		{"remove as a form", call{method: "POST", path: api + "/delete", header: html, body: formBody("confirm", odd)}, 303, `RemoveCluster ` + odd + ` "" 0 by admin`, ""},
		{"remove unconfirmed", call{method: "POST", path: api + "/delete", header: html, body: formBody("confirm", "prod")}, 422, "", "must repeat the name"},
		{"remove the host's", call{method: "DELETE", path: "/api/v1/clusters/prod", header: json}, 409, `RemoveCluster prod "" 0 by admin`, "kubeconfig of the host"},
		{"remove nothing", call{method: "DELETE", path: "/api/v1/clusters/nope", header: json}, 404, "", ""},
		{"too large", call{method: "POST", path: "/api/v1/clusters", header: json, body: formBody("name", "new", "kubeconfig", strings.Repeat("x", clusterBodyLimit))}, 413, "", ""},
		{"list", call{path: "/api/v1/clusters/managed", header: json}, 200, "", `"fingerprint":"sha256:00"`},
		{"manifest", call{path: "/api/v1/clusters/manifest", header: json}, 200, "", "kind: ServiceAccount"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, func(c *Config) { c.Manifest = "kind: ServiceAccount" })
			tt.call.who = "admin"
			w := s.do(tt.call)
			if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.says) {
				t.Errorf("status %d, want %d and %q: %s", w.Code, tt.status, tt.says, w.Body)
			}
			if got := strings.Join(s.calls, "\n"); got != tt.want {
				t.Errorf("asked for %q, want %q", got, tt.want)
			}
			for _, b := range []string{w.Body.String(), s.logs.String(), fmt.Sprint(w.Header())} {
				if strings.Contains(b, secret) {
					t.Errorf("the kubeconfig is in %s", b)
				}
			}
		})
	}
}

// Without a key nothing can be added, and what is there can still be removed.
func TestClusters_SwitchedOff(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.off = true
	json := map[string]string{"Accept": "application/json"}
	for _, c := range []call{
		{method: "POST", path: "/api/v1/clusters", body: formBody("name", "x", "kubeconfig", "y")},
		{method: "POST", path: "/api/v1/clusters/test", body: formBody("kubeconfig", "y")},
		{method: "PUT", path: "/api/v1/clusters/" + url.PathEscape(odd), body: formBody("kubeconfig", "y")},
	} {
		c.who, c.header = "admin", json
		if w := s.do(c); w.Code != http.StatusConflict || !strings.Contains(w.Body.String(), "--key-file") {
			t.Errorf("%s %s: %d %s", c.method, c.path, w.Code, w.Body)
		}
	}
	if len(s.calls) > 0 {
		t.Errorf("%q", s.calls)
	}
	if w := s.do(call{method: "DELETE", path: "/api/v1/clusters/" + url.PathEscape(odd), who: "admin", header: json}); w.Code != http.StatusNoContent {
		t.Errorf("removing: %d %s", w.Code, w.Body)
	}
	page := document(t, s.do(call{path: "/clusters", who: "admin", header: map[string]string{"Accept": "text/html"}}))
	if n := page.Find(`textarea[name=kubeconfig]`).Length(); n != 0 {
		t.Errorf("the page has %d forms that can only fail", n)
	}
	for _, who := range []string{"viewer", "operator"} {
		page := document(t, newSite(t).do(call{path: "/clusters", who: who, header: map[string]string{"Accept": "text/html"}}))
		if page.Find(`#managed, textarea`).Length() != 0 {
			t.Errorf("a %s sees the forms of admins", who)
		}
	}
}
