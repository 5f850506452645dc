package app

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-chi/chi/v5"
	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/rest"

	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// contents are the rows of every table as text. What a look at a page may change of a session is left out: when it was
// last seen.
func contents(t *testing.T, db *sql.DB) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for _, table := range column(t, db, `SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'`) {
		names := column(t, db, `SELECT name FROM pragma_table_info('`+table+`')`)
		if table == "sessions" {
			names = slices.DeleteFunc(names, func(n string) bool { return slices.Contains([]string{"data", "seen_at", "idle_at", "idle_until"}, n) })
		}
		out[table] = column(t, db, `SELECT quote(`+strings.Join(names, `) || ' ' || quote(`)+`) FROM `+table)
		slices.Sort(out[table])
	}
	return out
}

func column(t *testing.T, db *sql.DB, query string) []string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer func() { _ = rows.Close() }() // Err tells
	var out []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// T15: a walk over every route with GET, HEAD and OPTIONS, as an admin, changes no row of any table and asks the API
// server for no change.
func TestReading_ChangesNothing(t *testing.T) {
	t.Parallel()
	api := &apiServer{nodes: map[string]map[string]any{}, watchers: map[chan []byte]bool{}, version: 10}
	api.nodes["node-0"] = map[string]any{
		"kind": "Node", "apiVersion": "v1", "metadata": map[string]any{"name": "node-0", "uid": "u", "resourceVersion": "1"},
		"spec": map[string]any{}, "status": map[string]any{"conditions": []any{map[string]any{"type": "Ready", "status": "True"}}},
	}
	var writes atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && !strings.HasSuffix(r.URL.Path, "accessreviews") { // asking what we may do is no change
			writes.Add(1)
		}
		api.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	c, err := kube.New("prod", &rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	cfg := serveConfig(t)
	r := start(t, cfg, c)
	p := r.person(nil)
	r.setUp(p)
	live := p.events(p.request(t.Context(), "GET", "/api/v1/nodes/events", nil))
	until(t, live, "synced")
	resp := p.request(t.Context(), "POST", "/api/v1/batches", url.Values{"action": {"cordon"}, "nodes": {"prod/node-0"}}, "Accept", "text/event-stream")
	until(t, p.events(resp), "done")
	batch := strings.TrimPrefix(resp.Header.Get("Location"), "/api/v1/batches/")
	status, body := p.do("POST", "/api/v1/templates", url.Values{"name": {"gpu"}, "labels": {"a=b"}}, "Accept", "application/json")
	if status >= 300 {
		t.Fatalf("%d %s", status, body)
	}
	template := regexp.MustCompile(`"id":"([^"]+)"`).FindStringSubmatch(body)[1]

	db, err := sql.Open("sqlite", "file:"+filepath.Join(cfg.Dir, databaseFile(t, cfg.Dir))+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }() // it was only read
	before, asked := contents(t, db), writes.Load()
	if asked == 0 || len(before["batches"]) != 1 || len(before["users"]) != 1 {
		t.Fatalf("%d writes, tables %v", asked, slices.Sorted(maps.Keys(before)))
	}
	walked, good := 0, 0
	err = chi.Walk(r.server.Handler.(chi.Routes), func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		if route == "/api/v1/audit/export" {
			return nil // that somebody took the record away is on record, and nothing else changes
		}
		id := batch
		if strings.Contains(route, "/templates/") {
			id = template
		}
		path := strings.NewReplacer("{cluster}", "prod", "{node}", "node-0", "{id}", id, "{seq}", "0", "{name}", "ada", "/*", "/app.css").Replace(route)
		methods := []string{http.MethodHead, http.MethodOptions}
		if method == http.MethodGet {
			methods = append(methods, http.MethodGet)
		}
		for _, m := range methods {
			ctx, cancel := context.WithCancel(t.Context())
			resp := p.request(ctx, m, path, nil, "Accept", "text/html, application/json, text/event-stream")
			if resp.Header.Get("Content-Type") != "text/event-stream" { // what streams is known by its first byte
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					t.Errorf("%s %s: %v", m, path, err)
				}
			}
			cancel()
			resp.Body.Close()
			if walked++; resp.StatusCode < 300 {
				good++
			}
			if resp.StatusCode >= 500 {
				t.Errorf("%s %s: status %d", m, path, resp.StatusCode)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if good < 40 {
		t.Errorf("only %d of %d looks saw something", good, walked)
	}
	if diff := cmp.Diff(before, contents(t, db)); diff != "" {
		t.Errorf("looking has changed (-before +after):\n%s", diff)
	}
	if n := writes.Load() - asked; n != 0 {
		t.Errorf("looking has asked the API server for %d changes", n)
	}
}

func databaseFile(t *testing.T, dir string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*.db"))
	if err != nil || len(found) != 1 {
		t.Fatalf("databases %q, %v", found, err)
	}
	return filepath.Base(found[0])
}

// T27: whoever's name it is that somebody tries, the answer is the same to the byte, but for the name itself and for what
// is random in every answer.
func TestSignIn_AnswersAlike(t *testing.T) {
	t.Parallel()
	r := start(t, serveConfig(t))
	p := r.person(nil)
	r.setUp(p)
	for _, form := range []url.Values{
		{"name": {"dora"}, "role": {"viewer"}, "password": {password}},
		{"name": {"ivo"}, "role": {"viewer"}, "invite": {"true"}},
	} {
		if status, body := p.do("POST", "/api/v1/users", form, "Accept", "application/json"); status >= 300 {
			t.Fatalf("%d %s", status, body)
		}
	}
	if status, body := p.do("PATCH", "/api/v1/users/dora", url.Values{"disabled": {"true"}}, "Accept", "application/json"); status >= 300 {
		t.Fatalf("%d %s", status, body)
	}
	random := regexp.MustCompile(`nonce="[^"]*"|'nonce-[^']*'|[A-Z2-7]{26}`)
	answers := map[string][]string{}
	for what, try := range map[string][2]string{
		"a wrong password":    {"ada", "wrong horse battery staple"},
		"a name of nobody":    {"bob", password},
		"a disabled person":   {"dora", password},
		"an invited person":   {"ivo", password},
		"no password":         {"ada", ""},
		"no name that can be": {"a b", password},
	} {
		for _, accept := range []string{"text/html", "application/json"} {
			stranger := r.person(nil)
			resp := stranger.request(t.Context(), "POST", "/login", url.Values{"username": {try[0]}, "password": {try[1]}}, "Accept", accept)
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil {
				t.Fatal(err)
			}
			resp.Header.Del("Date")
			resp.Header.Del("Content-Length")
			text := fmt.Sprint(resp.StatusCode, resp.Header, strings.ReplaceAll(string(b), `value="`+try[0]+`"`, `value="NAME"`))
			text = random.ReplaceAllString(text, "RANDOM")
			answers[accept] = append(answers[accept], text)
			if diff := cmp.Diff(answers[accept][0], text); diff != "" {
				t.Errorf("%s, %s:\n%s", what, accept, diff)
			}
			if resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("%s: status %d", what, resp.StatusCode)
			}
		}
	}
}

// T32: one session that opens streams as fast as it can. It has as many as it may have, everything more is told to come
// back later, and nothing of it stays behind.
func TestStreams_OneSession(t *testing.T) {
	t.Parallel()
	const opens, most = 1000, 16
	r := start(t, serveConfig(t), fakeCluster(t, "prod"))
	p := r.person(nil)
	r.setUp(p)
	var live []<-chan event
	refused := 0
	for range opens {
		resp := p.request(t.Context(), "GET", "/api/v1/nodes/events", nil)
		switch resp.StatusCode {
		case http.StatusOK:
			live = append(live, p.events(resp))
		case http.StatusTooManyRequests:
			refused++
			if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err != nil || s < 1 {
				t.Fatalf("Retry-After %q", resp.Header.Get("Retry-After"))
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		default:
			t.Fatalf("status %d", resp.StatusCode)
		}
	}
	if len(live) != most || refused != opens-most {
		t.Errorf("%d are live, %d were refused", len(live), refused)
	}
	for _, ch := range live {
		until(t, ch, "synced")
	}
	d := r.http.(*door)
	d.mu.Lock()
	open := d.open
	d.mu.Unlock()
	if open > most+4 { // one each, and one that the refusals went over
		t.Errorf("%d connections are open", open)
	}
}
