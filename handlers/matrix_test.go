package handlers

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// least is the least role for each route, written by hand and reviewed as such: it must not be derived from the table
// that it checks. A new route without a row fails the test.
var least = map[string]string{
	"GET /healthz": "", "GET /readyz": "", "GET /login": "", "POST /login": "", "GET /setup": "", "POST /setup": "",
	"GET /login/code": "", "GET /login/oidc": "", "GET /login/oidc/callback": "", "POST /login/code": "", "GET /invite": "", "POST /invite": "",
	"POST /logout": "viewer",
	"GET /":        "viewer", "GET /nodes": "viewer", "GET /nodes/stream": "viewer", "GET /clusters": "viewer", "GET /clusters/stream": "viewer",
	"GET /clusters/{cluster}/nodes": "viewer", "GET /clusters/{cluster}/stream": "viewer", "POST /clusters/{cluster}/retry": "operator", "POST /clusters/{cluster}/accept": "admin", "GET /clusters/{cluster}/nodes/{node}": "viewer",
	"GET /clusters/{cluster}/nodes/{node}/pods": "viewer", "GET /clusters/{cluster}/nodes/{node}/stream": "viewer",
	"GET /batches": "viewer", "GET /batches/{id}": "viewer", "GET /batches/{id}/events": "viewer",
	"GET /batches/{id}/plan": "viewer", "GET /plan": "operator", "POST /plan": "operator",
	"GET /batches/{id}/items/{seq}/pods": "viewer", "POST /batches/{id}/skip": "operator",
	"GET /account": "viewer", "GET /users": "admin", "GET /audit": "admin",
	"POST /api/v1/clusters": "admin", "POST /api/v1/clusters/test": "admin", "GET /api/v1/clusters/managed": "admin", "GET /api/v1/clusters/manifest": "admin",
	"PUT /api/v1/clusters/{cluster}": "admin", "POST /api/v1/clusters/{cluster}/replace": "admin",
	"DELETE /api/v1/clusters/{cluster}": "admin", "POST /api/v1/clusters/{cluster}/delete": "admin",
	"GET /api/v1/clusters": "viewer", "GET /api/v1/nodes": "viewer", "GET /api/v1/nodes/events": "viewer", "GET /api/v1/nodes/refs": "viewer",
	"GET /api/v1/nodes/{cluster}/{node}": "viewer",
	"GET /api/v1/batches":                "viewer", "POST /api/v1/batches": "operator", "GET /api/v1/batches/{id}": "viewer",
	"GET /api/v1/batches/{id}/events": "viewer", "POST /api/v1/batches/{id}/cancel": "operator",
	"GET /api/v1/batches/{id}/plan": "viewer", "GET /api/v1/batches/{id}/log": "viewer", "GET /api/v1/batches/{id}/report": "viewer",
	"POST /api/v1/batches/{id}/pause": "operator", "POST /api/v1/batches/{id}/resume": "operator", "POST /api/v1/batches/{id}/retry": "operator",
	"POST /api/v1/batches/{id}/items/{seq}/skip": "operator", "POST /api/v1/plans": "operator",
	"GET /templates": "viewer", "GET /api/v1/templates": "viewer", "POST /api/v1/templates": "operator", "GET /api/v1/templates/{id}": "viewer",
	"PUT /api/v1/templates/{id}": "operator", "POST /api/v1/templates/{id}": "operator", "DELETE /api/v1/templates/{id}": "operator",
	"POST /api/v1/templates/{id}/delete": "operator",
	"GET /api/v1/users":                  "admin", "POST /api/v1/users": "admin", "PATCH /api/v1/users/{name}": "admin", "POST /api/v1/users/{name}": "admin",
	"GET /api/v1/tokens": "viewer", "POST /api/v1/tokens": "viewer", "DELETE /api/v1/tokens/{id}": "viewer", "POST /api/v1/tokens/{id}/delete": "viewer",
	"GET /api/v1/sessions": "viewer", "DELETE /api/v1/sessions/{id}": "viewer", "POST /api/v1/sessions/{id}/delete": "viewer",
	"GET /api/v1/audit": "admin", "GET /api/v1/audit/export": "admin",
	"POST /api/v1/second-factor": "viewer", "POST /api/v1/second-factor/confirm": "viewer", "POST /api/v1/second-factor/delete": "viewer",
}

// bodies are good bodies of the routes that want one.
var bodies = map[string]string{
	"POST /login":                             formBody("username", "ada", "password", "correct horse battery"),
	"POST /setup":                             formBody("code", "good", "username", "ada", "password", "x"),
	"POST /api/v1/batches":                    formBody("action", "cordon", "nodes", "prod/node-0"),
	"POST /api/v1/templates":                  formBody("name", "gpu", "labels", "a=b"),
	"PUT /api/v1/templates/{id}":              formBody("name", "gpu", "labels", "a=b", "version", "1"),
	"POST /api/v1/templates/{id}":             formBody("name", "gpu", "labels", "a=b", "version", "1"),
	"POST /api/v1/plans":                      formBody("action", "drain", "nodes", "prod/node-0"),
	"POST /batches/{id}/skip":                 formBody("item", "0"),
	"POST /plan":                              formBody("action", "drain", "nodes", "prod/node-0"),
	"POST /clusters/{cluster}/accept":         formBody("uid", "uid-2"),
	"POST /api/v1/users":                      formBody("name", "eve", "role", "viewer", "password", "long enough"),
	"PATCH /api/v1/users/{name}":              formBody("role", "viewer"),
	"POST /api/v1/users/{name}":               formBody("role", "viewer"),
	"POST /api/v1/tokens":                     formBody("name", "ci"),
	"POST /api/v1/clusters":                   formBody("name", "new", "kubeconfig", "x"),
	"POST /api/v1/clusters/test":              formBody("kubeconfig", "x"),
	"PUT /api/v1/clusters/{cluster}":          formBody("kubeconfig", "x"),
	"POST /api/v1/clusters/{cluster}/replace": formBody("kubeconfig", "x"),
	"POST /api/v1/clusters/{cluster}/delete":  formBody("confirm", odd),
	"POST /login/code":                        formBody("code", "123456"),
	"POST /invite":                            formBody("code", "good", "password", "x"),
}

func fill(path string) string {
	return strings.NewReplacer("{cluster}", url.PathEscape(odd), "{node}", "node-0", "{id}", "b1", "{seq}", "0", "{name}", "ada").Replace(path)
}

func tableOf(t *testing.T) []route {
	t.Helper()
	s, err := newServer(newWorld().config(&safeBuffer{}))
	if err != nil {
		t.Fatal(err)
	}
	return s.routes()
}

func TestMatrix(t *testing.T) {
	t.Parallel()
	roles := []string{"", "viewer", "operator", "admin"}
	table := tableOf(t)
	if len(table) != len(least) {
		t.Errorf("%d routes, %d rows in the test", len(table), len(least))
	}
	for _, rt := range table {
		key := rt.method + " " + rt.path
		need, ok := least[key]
		if !ok {
			t.Errorf("%s has no row", key)
			continue
		}
		for _, via := range []string{"cookie", "bearer"} {
			for i, role := range roles {
				name := role
				if name == "" {
					name = "anonymous"
				}
				t.Run(key+" "+name+" "+via, func(t *testing.T) {
					t.Parallel()
					s := newSite(t)
					c := call{method: rt.method, path: fill(rt.path), body: bodies[key], header: map[string]string{"Accept": "application/json"}}
					switch {
					case via == "cookie":
						c.who = role
					case role != "":
						c.header["Authorization"] = "Bearer " + role
						c.header["Sec-Fetch-Site"] = "" // a bearer token needs no proof of where it comes from
						if rt.perm == fleet.PermPublic {
							c.header["Sec-Fetch-Site"] = "same-origin"
						}
					}
					w := s.do(c)
					switch allowed := i >= slices.Index(roles, need); {
					case allowed && (w.Code == http.StatusUnauthorized || w.Code == http.StatusForbidden || w.Code >= 500):
						t.Errorf("status %d: %s", w.Code, w.Body)
					case !allowed && role == "" && w.Code != http.StatusUnauthorized:
						t.Errorf("status %d, want 401", w.Code)
					case !allowed && role != "":
						if w.Code != http.StatusForbidden {
							t.Errorf("status %d, want 403", w.Code)
						}
						if len(s.denied) != 1 || !strings.HasPrefix(s.denied[0], role+": "+key) {
							t.Errorf("denials on record: %q", s.denied)
						}
					}
					s.calls = slices.DeleteFunc(s.calls, func(c string) bool { return c == "PeekSession" }) // who it is may be asked
					if i < slices.Index(roles, need) && (len(s.specs) > 0 || len(s.planned) > 0 || len(s.calls) > 0 || len(s.streams) > 0 || len(s.exports) > 0) {
						t.Errorf("something was done: %v %v %v", s.specs, s.calls, s.streams)
					}
				})
			}
		}
	}
}

// The session of somebody who is gone, and a store that does not answer, are told apart.
func TestMatrix_DeadSessions(t *testing.T) {
	t.Parallel()
	for _, rt := range tableOf(t) {
		if rt.perm == fleet.PermPublic {
			continue
		}
		s := newSite(t)
		for who, want := range map[string]int{"expired": http.StatusUnauthorized, "store-down": http.StatusInternalServerError} {
			w := s.do(call{method: rt.method, path: fill(rt.path), who: who, header: map[string]string{"Accept": "application/json"}})
			if w.Code != want {
				t.Errorf("%s %s as %s: status %d, want %d", rt.method, rt.path, who, w.Code, want)
			}
			if p := problemOf(t, w); strings.Contains(p.Detail+p.Title, "fire") {
				t.Errorf("an internal text shows: %+v", p)
			}
		}
	}
}

func TestRegister_RefusesUndeclared(t *testing.T) {
	t.Parallel()
	for _, perm := range []fleet.Permission{"", "nodes.veiw"} {
		s, err := newServer(newWorld().config(&safeBuffer{}))
		if err != nil {
			t.Fatal(err)
		}
		err = s.register([]route{
			{method: http.MethodGet, path: "/fine", perm: fleet.PermPublic, serve: s.healthz},
			{method: http.MethodGet, path: "/open-door", perm: perm, serve: s.healthz},
		})
		if err == nil || !strings.Contains(err.Error(), "/open-door") {
			t.Errorf("permission %q: err = %v", perm, err)
		}
	}
}

func TestNew_RefusesMissing(t *testing.T) {
	t.Parallel()
	_, err := New(Config{})
	for _, f := range []string{"Nodes", "Clusters", "Managed", "Streams", "Batches", "Auth", "People", "Audit", "Ready", "Logger", "Metrics"} {
		if err == nil || !strings.Contains(err.Error(), "Config."+f+" ") {
			t.Errorf("%s is not named in %v", f, err)
		}
	}
}

// A bearer token is never lent the authority of a cookie beside it, and the other way round.
func TestAuthenticate_BearerCountsAlone(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, tt := range []struct {
		auth string
		want int
	}{
		{"Bearer viewer", http.StatusForbidden},
		{"Bearer nobody", http.StatusUnauthorized},
		{"Basic YTpi", http.StatusUnauthorized},
		{"Bearer", http.StatusUnauthorized},
		{"bearer admin", http.StatusOK},
	} {
		w := s.do(call{path: "/api/v1/users", who: "admin", header: map[string]string{"Authorization": tt.auth}})
		if w.Code != tt.want {
			t.Errorf("%s beside an admin's cookie: status %d, want %d", tt.auth, w.Code, tt.want)
		}
	}
}
