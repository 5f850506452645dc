package handlers

import (
	"cmp"
	"encoding/json"
	"fmt"
	stdhtml "html"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// rule is what a route is about and what it asks for, in words of this test's own.
type rule struct {
	about about
	needs string // what a person must be allowed: see levels and everywhere
}

// about is which clusters a request concerns.
type about int

const (
	nobody  about = iota // open to all, or to whoever is signed in
	anyhow               // lists and forms of whatever the person sees: whoever may do it in some cluster
	inPath               // the cluster of the path
	ofBatch              // the clusters of the batch of the path
	inBody               // the clusters of the nodes that the request names
	allOver              // what is not of clusters: only a role everywhere does
)

// rules say for each route what it is about and what it needs, written by hand and reviewed as such: they must not be
// derived from the table that they check. A new route without a row fails the test.
var rules = map[string]rule{
	"GET /healthz":             {nobody, ""},
	"GET /readyz":              {nobody, ""},
	"GET /login":               {nobody, ""},
	"POST /login":              {nobody, ""},
	"GET /setup":               {nobody, ""},
	"POST /setup":              {nobody, ""},
	"GET /login/code":          {nobody, ""},
	"GET /login/oidc":          {nobody, ""},
	"GET /login/oidc/callback": {nobody, ""},
	"POST /login/code":         {nobody, ""},
	"GET /invite":              {nobody, ""},
	"POST /invite":             {nobody, ""},

	"POST /logout":                       {nobody, "self"},
	"GET /":                              {nobody, "self"},
	"GET /nodes":                         {nobody, "self"},
	"GET /clusters":                      {nobody, "self"},
	"GET /account":                       {nobody, "self"},
	"GET /login/done":                    {nobody, "self"},
	"GET /api/v1/tokens":                 {nobody, "self"},
	"POST /api/v1/tokens":                {nobody, "self"},
	"DELETE /api/v1/tokens/{id}":         {nobody, "self"},
	"POST /api/v1/tokens/{id}/delete":    {nobody, "self"},
	"GET /api/v1/sessions":               {nobody, "self"},
	"DELETE /api/v1/sessions/{id}":       {nobody, "self"},
	"POST /api/v1/sessions/{id}/delete":  {nobody, "self"},
	"POST /api/v1/password":              {nobody, "self"},
	"POST /api/v1/second-factor":         {nobody, "self"},
	"POST /api/v1/second-factor/confirm": {nobody, "self"},
	"POST /api/v1/second-factor/delete":  {nobody, "self"},

	"GET /nodes/stream":          {anyhow, "view"},
	"GET /clusters/stream":       {anyhow, "view"},
	"GET /api/v1/clusters":       {anyhow, "view"},
	"GET /api/v1/nodes":          {anyhow, "view"},
	"GET /api/v1/nodes/events":   {anyhow, "view"},
	"GET /api/v1/nodes/refs":     {anyhow, "view"},
	"GET /batches":               {anyhow, "view"},
	"GET /api/v1/batches":        {anyhow, "view"},
	"GET /templates":             {anyhow, "view"},
	"GET /api/v1/templates":      {anyhow, "view"},
	"GET /api/v1/templates/{id}": {anyhow, "view"},

	"GET /clusters/{cluster}/nodes":               {inPath, "view"},
	"GET /clusters/{cluster}/stream":              {inPath, "view"},
	"GET /clusters/{cluster}/nodes/{node}":        {inPath, "view"},
	"GET /clusters/{cluster}/nodes/{node}/pods":   {inPath, "view"},
	"GET /clusters/{cluster}/nodes/{node}/stream": {inPath, "view"},
	"GET /api/v1/nodes/{cluster}/{node}":          {inPath, "view"},

	"POST /clusters/{cluster}/retry": {inPath, "retry"},

	"POST /clusters/{cluster}/accept":         {inPath, "manage"},
	"PUT /api/v1/clusters/{cluster}":          {inPath, "manage"},
	"POST /api/v1/clusters/{cluster}/replace": {inPath, "manage"},
	"DELETE /api/v1/clusters/{cluster}":       {inPath, "manage"},
	"POST /api/v1/clusters/{cluster}/delete":  {inPath, "manage"},

	"POST /api/v1/clusters":         {anyhow, "manage"},
	"POST /api/v1/clusters/test":    {anyhow, "manage"},
	"GET /api/v1/clusters/managed":  {anyhow, "manage"},
	"GET /api/v1/clusters/manifest": {anyhow, "manage"},

	"GET /batches/{id}":                  {ofBatch, "view"},
	"GET /batches/{id}/events":           {ofBatch, "view"},
	"GET /batches/{id}/plan":             {ofBatch, "view"},
	"GET /batches/{id}/items/{seq}/pods": {ofBatch, "view"},
	"GET /api/v1/batches/{id}":           {ofBatch, "view"},
	"GET /api/v1/batches/{id}/events":    {ofBatch, "view"},
	"GET /api/v1/batches/{id}/plan":      {ofBatch, "view"},
	"GET /api/v1/batches/{id}/log":       {ofBatch, "view"},
	"GET /api/v1/batches/{id}/report":    {ofBatch, "view"},

	"POST /batches/{id}/skip":                    {ofBatch, "cordon"},
	"POST /api/v1/batches/{id}/cancel":           {ofBatch, "cordon"},
	"POST /api/v1/batches/{id}/pause":            {ofBatch, "cordon"},
	"POST /api/v1/batches/{id}/resume":           {ofBatch, "cordon"},
	"POST /api/v1/batches/{id}/retry":            {ofBatch, "cordon"},
	"POST /api/v1/batches/{id}/items/{seq}/skip": {ofBatch, "cordon"},

	"POST /api/v1/batches": {inBody, "cordon"},

	"POST /api/v1/plans": {inBody, "drain"},
	"GET /plan":          {inBody, "drain"},
	"POST /plan":         {inBody, "drain"},

	"POST /api/v1/templates":             {allOver, "templates"},
	"PUT /api/v1/templates/{id}":         {allOver, "templates"},
	"POST /api/v1/templates/{id}":        {allOver, "templates"},
	"DELETE /api/v1/templates/{id}":      {allOver, "templates"},
	"POST /api/v1/templates/{id}/delete": {allOver, "templates"},

	"GET /users":                 {allOver, "users"},
	"GET /api/v1/users":          {allOver, "users"},
	"POST /api/v1/users":         {allOver, "users"},
	"PATCH /api/v1/users/{name}": {allOver, "users"},
	"POST /api/v1/users/{name}":  {allOver, "users"},

	"GET /audit":               {allOver, "audit"},
	"GET /api/v1/audit/export": {allOver, "audit"},
	"GET /api/v1/audit":        {allOver, "audit"},
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

// The clusters of the matrix, and a batch of each. What is gone was a cluster once: batches remember it.
const (
	own, other, unknown, gone = "prod", odd, "nowhere", "gone-cluster"
	ownBatch, otherBatch      = "b-of-own", "b-of-other"
	noBatch, goneBatch        = "b-of-none", "b-of-gone"
)

var batchOf = map[string]string{own: ownBatch, other: otherBatch, unknown: noBatch, gone: goneBatch}

func fill(path string) string {
	return strings.NewReplacer("{cluster}", url.PathEscape(odd), "{node}", "node-0", "{id}", "b1", "{seq}", "0", "{name}", "ada").Replace(path)
}

// callAbout is a call of a route about a cluster.
func callAbout(rt route, cluster string) call {
	key := rt.method + " " + rt.path
	c := call{method: rt.method, body: bodies[key]}
	c.path = strings.NewReplacer("{cluster}", url.PathEscape(cluster), "{node}", "node-0", "{id}", batchOf[cluster], "{seq}", "0", "{name}", "ada").Replace(rt.path)
	switch {
	case rules[key].about == inBody && rt.method == http.MethodGet:
		c.path += "?" + formBody("action", "drain", "nodes", cluster+"/node-0")
	case rules[key].about == inBody:
		v, err := url.ParseQuery(c.body)
		if err != nil {
			panic(err)
		}
		v.Set("nodes", cluster+"/node-0")
		c.body = v.Encode()
	case key == "POST /api/v1/clusters/{cluster}/delete":
		c.body = formBody("confirm", cluster)
	}
	return c
}

func tableOf(t *testing.T) []route {
	t.Helper()
	s, err := newServer(newWorld().config(&safeBuffer{}))
	if err != nil {
		t.Fatal(err)
	}
	return s.routes()
}

// levels says what a role is good for in a cluster, and everywhere what it is good for besides.
var (
	levels = map[string][]string{
		"none":     nil,
		"viewer":   {"view"},
		"operator": {"view", "cordon", "drain", "retry"},
		"admin":    {"view", "cordon", "drain", "retry", "manage"},
	}
	everywhere = map[string][]string{
		"none":     {"self"},
		"viewer":   {"self"},
		"operator": {"self", "templates"},
		"admin":    {"self", "templates", "users", "audit"},
	}
)

// principal is somebody of the matrix: what they are to the product, and what they may do in words of the test's own.
type principal struct {
	caller fleet.Caller
	dead   bool   // the product does not know them, or not any more
	global string // role everywhere, as far as it counts
	in     map[string]string
	also   map[string]string // one more permission in a cluster
}

// holds tells whether somebody may do something in a cluster; "" is everywhere.
func (p principal) holds(what, cluster string) bool {
	return slices.Contains(levels[p.global], what) || slices.Contains(everywhere[p.global], what) ||
		cluster != "" && (slices.Contains(levels[p.in[cluster]], what) || p.also[cluster] == what)
}

// somewhere tells whether there could be a cluster in which somebody may do one of some things.
func (p principal) somewhere(any ...string) bool {
	return slices.ContainsFunc(any, func(what string) bool {
		return p.holds(what, "") || slices.ContainsFunc([]string{own, other, unknown}, func(c string) bool { return p.holds(what, c) })
	})
}

func grant(scope fleet.Scope, role fleet.Role, also ...fleet.Permission) *fleet.Access {
	return fleet.NewAccess([]fleet.Grant{{Scope: scope, Role: role, Also: also}}, nil)
}

var principals = map[string]principal{
	"":            {dead: true}, // nobody
	"expired":     {dead: true},
	"deactivated": {dead: true},
	"none":        {global: "none"},
	"viewer":      {global: "viewer"},
	"operator":    {global: "operator"},
	"admin":       {global: "admin"},
	"operates own": {
		caller: fleet.Caller{Role: fleet.RoleNone, Access: grant(own, fleet.RoleOperator)},
		global: "none", in: map[string]string{own: "operator"},
	},
	"views own and drains it": {
		caller: fleet.Caller{Role: fleet.RoleNone, Access: grant(own, fleet.RoleViewer, fleet.PermNodeDrain)},
		global: "none", in: map[string]string{own: "viewer"}, also: map[string]string{own: "drain"},
	},
	"views all and operates own": {
		caller: fleet.Caller{Role: fleet.RoleViewer, Access: grant("pro*", fleet.RoleOperator)},
		global: "viewer", in: map[string]string{own: "operator"},
	},
	"admin of other": {
		caller: fleet.Caller{Role: fleet.RoleNone, Access: grant(other, fleet.RoleAdmin)},
		global: "none", in: map[string]string{other: "admin"},
	},
	"grant of no cluster": { // by name it is in sight, and there is none: no different from one that is and is hidden
		caller: fleet.Caller{Role: fleet.RoleNone, Access: grant(unknown, fleet.RoleOperator)},
		global: "none", in: map[string]string{unknown: "operator"},
	},
	"token of an admin, to view own": {
		caller: fleet.Caller{Role: fleet.RoleAdmin, Limit: &fleet.Limit{Role: fleet.RoleViewer, Scope: own}},
		global: "none", in: map[string]string{own: "viewer"},
	},
	"token of an operator, to administer everywhere": {
		caller: fleet.Caller{Role: fleet.RoleOperator, Limit: &fleet.Limit{Role: fleet.RoleAdmin, Scope: fleet.Everywhere}},
		global: "operator",
	},
}

// verdict is what a call has to come to; 0 is anything but a refusal.
func (p principal) verdict(r rule, cluster string) int {
	acts := []string{"cordon", "drain"}
	exists := cluster == own || cluster == other
	switch {
	case r.needs == "":
		return 0
	case p.dead:
		return http.StatusUnauthorized
	}
	forbidden := func(allowed bool) int {
		if allowed {
			return 0
		}
		return http.StatusForbidden
	}
	switch r.about {
	case nobody, allOver:
		return forbidden(p.holds(r.needs, ""))
	case anyhow:
		return forbidden(p.somewhere(r.needs))
	case inPath:
		if !exists || !p.holds("view", cluster) {
			return http.StatusNotFound
		}
		return forbidden(p.holds(r.needs, cluster))
	case ofBatch, inBody:
	}
	if r.needs != "view" && !p.somewhere(acts...) || r.needs == "view" && !p.somewhere("view") {
		return http.StatusForbidden
	}
	switch {
	case r.about == ofBatch && (cluster == unknown || !p.holds("view", "") && (!exists || !p.holds("view", cluster))):
		return http.StatusNotFound
	case r.about == inBody && !p.holds("view", "") && (!exists || !p.holds("view", cluster)):
		return http.StatusUnprocessableEntity
	case r.about == inBody && !exists: // only the engine knows; the fake lets everything pass
		return forbidden(p.holds(r.needs, cluster))
	}
	return forbidden(p.holds(r.needs, cluster))
}

// TestMatrix calls every route of the router as everybody, about every cluster, with a cookie and with a token, and
// compares what comes of it with the rules. What is out of sight has to be answered as what there is not, byte for byte.
func TestMatrix(t *testing.T) {
	t.Parallel()
	table := tableOf(t)
	if len(table) != len(rules) {
		t.Errorf("%d routes, %d rows in the test", len(table), len(rules))
	}
	for _, rt := range table {
		if _, ok := rules[rt.method+" "+rt.path]; !ok {
			t.Fatalf("%s %s has no row", rt.method, rt.path)
		}
	}
	for name, who := range principals {
		for _, via := range []string{"cookie", "bearer"} {
			t.Run(cmp.Or(name, "anonymous")+" "+via, func(t *testing.T) {
				t.Parallel()
				s := newSite(t)
				if who.caller.Role != "" {
					s.callers = map[string]fleet.Caller{name: who.caller}
				}
				for _, id := range []string{ownBatch, otherBatch, goneBatch} {
					s.batches[id] = fleet.Batch{ID: id, Operation: fleet.Operation{Action: fleet.ActionCordon}, State: fleet.BatchRunning}
				}
				s.clustersOf = map[string][]string{otherBatch: {other}, goneBatch: {gone}, "b1": {}} // b1 is what comes of every request
				s.plan = &fleet.Plan{Action: fleet.ActionCordon, Digest: "d"}
				s.list = []fleet.Template{{ID: ownBatch, Name: "gpu", Version: 1}}
				for _, rt := range table {
					s.verdicts(t, rt, name, who, via)
				}
			})
		}
	}
}

// verdicts calls one route about each of the clusters.
func (s *site) verdicts(t *testing.T, rt route, name string, who principal, via string) {
	key := rt.method + " " + rt.path
	r := rules[key]
	clusters := []string{own}
	if r.about == inPath || r.about == ofBatch || r.about == inBody {
		clusters = []string{own, other, unknown, gone}
	}
	answers := map[string]string{}
	for _, cluster := range clusters {
		s.denied, s.specs, s.planned, s.calls, s.streams = nil, nil, nil, nil, nil
		c := callAbout(rt, cluster)
		c.header = map[string]string{"Accept": "application/json"}
		switch {
		case via == "cookie":
			c.who = name
		case name != "":
			c.header["Authorization"] = "Bearer " + name
			c.header["Sec-Fetch-Site"] = "" // a bearer token needs no proof of where it comes from
			if rt.perm == fleet.PermPublic {
				c.header["Sec-Fetch-Site"] = "same-origin"
			}
		}
		w := s.do(c)
		want := who.verdict(r, cluster)
		refused := w.Code == http.StatusUnauthorized || w.Code == http.StatusForbidden || w.Code >= 500 ||
			(w.Code == http.StatusNotFound || w.Code == http.StatusUnprocessableEntity) && r.about != nobody
		if want == 0 && refused || want != 0 && w.Code != want {
			t.Errorf("%s of %s: status %d, want %d: %.300s", key, cluster, w.Code, want, w.Body)
		}
		if want != 0 && (len(s.specs) > 0 || len(s.planned) > 0 || len(s.streams) > 0 || s.acted()) {
			t.Errorf("%s of %s: something was done: %v %v %v", key, cluster, s.specs, s.calls, s.streams)
		}
		// The router's own refusals are on record.
		if byRouter := want == http.StatusForbidden && r.about != ofBatch && r.about != inBody ||
			r.about == inPath && want == http.StatusNotFound && !who.holds("view", cluster); byRouter {
			if len(s.denied) != 1 || !strings.HasPrefix(s.denied[0], name+": "+key+": ") {
				t.Errorf("%s of %s: denials on record: %q", key, cluster, s.denied)
			}
		}
		answers[cluster] = plainly(w, c, cluster)
	}
	if r.about == inBody && who.holds("view", unknown) {
		return // the form offers what the person may do under that name
	}
	for _, cluster := range clusters {
		if len(clusters) > 1 && !who.dead && !who.holds("view", "") && !who.holds("view", cluster) && answers[cluster] != answers[unknown] {
			t.Errorf("%s: of %s\n%s\nand of what there is not\n%s", key, cluster, answers[cluster], answers[unknown])
		}
	}
}

// acted tells whether anything was asked for beside who it is.
func (wd *world) acted() bool {
	return slices.ContainsFunc(wd.calls, func(c string) bool {
		for _, steering := range []string{"PeekSession", "Cancel", "Pause", "Resume", "Retry b", "Skip"} { // that the engine refuses
			if strings.HasPrefix(c, steering) {
				return false
			}
		}
		return true
	})
}

// plainly is an answer without what is of one request alone, and without the names that it was asked with.
func plainly(w *httptest.ResponseRecorder, c call, cluster string) string {
	var b strings.Builder
	fmt.Fprintln(&b, w.Code)
	id := w.Header().Get("X-Request-Id")
	var nonce string
	if _, rest, ok := strings.Cut(w.Header().Get("Content-Security-Policy"), "'nonce-"); ok {
		nonce, _, _ = strings.Cut(rest, "'")
	}
	if err := w.Header().Write(&b); err != nil {
		panic(err) // a builder takes everything
	}
	b.Write(w.Body.Bytes())
	quoted, err := json.Marshal(cluster)
	if err != nil {
		panic(err) // a text can be encoded
	}
	twice, err := json.Marshal(strings.Trim(string(quoted), `"`))
	if err != nil {
		panic(err)
	}
	old := []string{id, "#", c.path, "/path", stdhtml.EscapeString(c.path), "/path"}
	if nonce != "" {
		old = append(old, nonce, "#")
	}
	for _, name := range []string{strings.Trim(string(twice), `"`), strings.Trim(string(quoted), `"`), cluster, url.PathEscape(cluster), url.QueryEscape(cluster), stdhtml.EscapeString(cluster)} {
		old = append(old, name, "<cluster>")
	}
	return strings.NewReplacer(append(old, batchOf[cluster], "<batch>")...).Replace(b.String())
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
