package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/kube-node-manager/kube-node-manager/handlers"
	"github.com/kube-node-manager/kube-node-manager/internal/audit"
	"github.com/kube-node-manager/kube-node-manager/internal/auth"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// vouching lets in whoever is in its book by a token that is their name.
type vouching struct {
	*auth.Service
	book map[string]fleet.Caller
}

func (v vouching) ByToken(_ context.Context, name string) (fleet.Caller, error) {
	who, ok := v.book[name]
	if !ok {
		return fleet.Caller{}, fleet.ErrUnauthenticated
	}
	who.UserID, who.Name, who.Session, who.Via = "u-"+name, name, "s-"+name, "token"
	return who, nil
}

// siteFor is the site with everything behind it, for people of a book.
func (r *running) siteFor(book map[string]fleet.Caller) (base string, routes chi.Routes) {
	r.t.Helper()
	record := audit.New(r.store, r.logger)
	site, err := handlers.New(handlers.Config{
		Nodes: r.manager, Clusters: steering{r.manager, record}, Managed: r.web, Streams: r.streams, Batches: r.engine,
		Auth: vouching{r.auth, book}, People: r.auth, Audit: record, Ready: r.ready, Logger: r.logger, Metrics: prometheus.NewRegistry(),
		Version: "test", Manifest: "kind: List",
	})
	if err != nil {
		r.t.Fatal(err)
	}
	ts := httptest.NewServer(site)
	r.t.Cleanup(ts.Close)
	return ts.URL, site.(chi.Routes)
}

// operate has a batch made and waits for its end.
func (p *person) operate(form url.Values) string {
	p.t.Helper()
	resp := p.request(p.t.Context(), http.MethodPost, "/api/v1/batches", form, "Accept", "application/json")
	defer resp.Body.Close()
	var b struct{ ID, State, Outcome string }
	if err := json.NewDecoder(resp.Body).Decode(&b); err != nil || resp.StatusCode != http.StatusAccepted {
		p.t.Fatalf("%v: status %d, %v", form, resp.StatusCode, err)
	}
	waitFor(p.t, func() bool {
		status, body := p.do(http.MethodGet, "/api/v1/batches/"+b.ID, nil)
		if err := json.Unmarshal([]byte(body), &b); err != nil || status != http.StatusOK {
			p.t.Fatalf("%d %s: %v", status, body, err)
		}
		return b.State == "done"
	})
	if b.Outcome != "succeeded" {
		p.t.Fatalf("%v: %s", form, b.Outcome)
	}
	return b.ID
}

// listener keeps every byte of a stream.
type listener struct {
	what string
	mu   sync.Mutex // guards b
	b    bytes.Buffer
	end  chan struct{}
}

func (l *listener) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func listen(t *testing.T, base, path string, header ...string) *listener {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	l := &listener{what: path + " " + strings.Join(header, " "), end: make(chan struct{})}
	fmt.Fprintln(&l.b, resp.StatusCode, resp.Header)
	go func() {
		defer close(l.end)
		defer resp.Body.Close()
		chunk := make([]byte, 4096)
		for {
			n, err := resp.Body.Read(chunk)
			l.mu.Lock()
			l.b.Write(chunk[:n])
			l.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-l.end })
	return l
}

// A person who sees one cluster walks everything that can be read, with the streams open while both clusters change, and
// no byte of the other one comes: not its name, nor those of its nodes and zones, nor what was done there. Who
// sees both finds it nearly everywhere, which shows that it could have come.
func TestSight_NothingLeaks(t *testing.T) {
	t.Parallel()
	r := start(t, serveConfig(t), fakeClusterOf(t, "own-cluster", "own-"), fakeClusterOf(t, "zz-secret-cluster", "zz-secret-node-"))
	ada := r.person(nil)
	r.setUp(ada)
	waitFor(t, func() bool {
		_, body := ada.do(http.MethodGet, "/api/v1/clusters", nil)
		return strings.Count(body, `"live"`) == 2
	})
	const secret = "zz-secret"
	_, before := ada.do(http.MethodGet, "/api/v1/nodes", nil)
	var stand struct{ Cursor string }
	if err := json.Unmarshal([]byte(before), &stand); err != nil {
		t.Fatal(err)
	}
	// Batches there, here and in both; one here with what was taken from there, and one that takes back a part of both.
	hidden := []string{
		ada.operate(url.Values{"action": {"cordon"}, "nodes": {"zz-secret-cluster/zz-secret-node-0"}, "reason": {"zz-secret-reason"}}),
		ada.operate(url.Values{"action": {"labels"}, "labels": {"a=b"}, "nodes": {"zz-secret-cluster/zz-secret-node-1\nown-cluster/own-1"}}),
		ada.operate(url.Values{"action": {"copy-taints"}, "source": {"zz-secret-cluster/zz-secret-node-0"}, "nodes": {"own-cluster/own-2"}, "mode": {"merge"}}),
	}
	// The note on the nodes names this one, and so do their annotations; but no page leads to it.
	noted := ada.operate(url.Values{"action": {"cordon"}, "nodes": {"zz-secret-cluster/zz-secret-node-1\nown-cluster/own-1"}})
	part := ada.operate(url.Values{"action": {"revert"}, "batch": {hidden[1]}, "nodes": {"own-cluster/own-1"}})
	own := ada.operate(url.Values{"action": {"cordon"}, "nodes": {"own-cluster/own-0"}, "reason": {"own-reason"}})

	base, routes := r.siteFor(map[string]fleet.Caller{
		"pia": {Role: fleet.RoleNone, Access: fleet.NewAccess([]fleet.Grant{{Scope: "own-*", Role: fleet.RoleAdmin}}, nil)},
		"vic": {Role: fleet.RoleViewer},
		"tom": {Role: fleet.RoleAdmin, Limit: &fleet.Limit{Role: fleet.RoleAdmin, Scope: "own-cluster"}},
	})
	var paths, streams []string
	err := chi.Walk(routes, func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		if method != http.MethodGet || strings.HasPrefix(route, "/static/") {
			return nil
		}
		for _, id := range []string{own, part} {
			p := strings.NewReplacer("{cluster}", "own-cluster", "{node}", "own-0", "{id}", id, "{seq}", "0", "{name}", "ada").Replace(route)
			if strings.HasSuffix(p, "/stream") || strings.HasSuffix(p, "/events") {
				streams = append(streams, p)
			} else {
				paths = append(paths, p)
			}
			if !strings.Contains(route, "{id}") {
				break
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"/nodes", "/api/v1/nodes"} {
		paths = append(paths, p+"?group=cluster", p+"?group=zone&sort=-cluster", p+"?q=cordoned:true", p+"?q=-zone:own-zone")
	}
	paths = append(paths, "/api/v1/nodes?cluster=own-cluster", "/clusters/own-cluster/nodes/own-1", "/api/v1/nodes/own-cluster/own-1", "/api/v1/nodes/own-cluster/own-0?full=1", "/batches?state=done", "/api/v1/batches?limit=1",
		"/api/v1/batches/"+own+"/report?format=csv", "/api/v1/batches/"+part+"/report?format=ndjson", "/plan?action=drain&nodes=own-cluster/own-0", "/plan?action=copy-taints&nodes=own-cluster/own-0")
	for _, p := range streams { // where somebody who sees more went on
		streams = append(streams, p+"?since="+url.QueryEscape(stand.Cursor))
	}
	if len(paths) < 45 || len(streams) < 12 {
		t.Fatalf("%d paths and %d streams: %q %q", len(paths), len(streams), paths, streams)
	}

	var live []*listener
	for _, who := range []string{"pia", "tom", "vic"} {
		for _, p := range streams {
			for _, accept := range []string{"text/event-stream", "text/html, text/event-stream"} {
				live = append(live, listen(t, base, p, "Authorization", "Bearer "+who, "Accept", accept, "Accept-Encoding", "identity"))
			}
		}
	}
	found := map[string]int{}
	leaks := func(who, where, text string) {
		if strings.Contains(text, secret) || strings.Contains(text, "/batches/"+noted) || slices.ContainsFunc(hidden, func(id string) bool { return strings.Contains(text, id) }) {
			if found[who]++; who != "vic" {
				t.Errorf("%s reads of the other cluster at %s:\n%.2000s", who, where, text)
			}
		}
	}
	for _, who := range []string{"pia", "tom", "vic"} {
		for _, p := range paths {
			for _, accept := range []string{"text/html", "application/json"} {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+p, nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Authorization", "Bearer "+who)
				req.Header.Set("Accept", accept)
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close() // it was read
				if err != nil || resp.StatusCode >= 500 {
					t.Errorf("%s of %s: %d %v %s", p, who, resp.StatusCode, err, body)
				}
				leaks(who, p, fmt.Sprint(resp.Header)+string(body))
			}
		}
	}
	// Both clusters change while the streams are open, the other one first; a stream that shows nodes has then had its say.
	ada.operate(url.Values{"action": {"cordon"}, "nodes": {"zz-secret-cluster/zz-secret-node-2"}, "reason": {"zz-secret-reason"}})
	if err := r.manager.Add(fakeClusterOf(t, "zz-secret-newcomer", "zz-secret-newcomer-")); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		_, body := ada.do(http.MethodGet, "/api/v1/clusters", nil)
		return strings.Count(body, `"live"`) == 3
	})
	if err := r.manager.Remove("zz-secret-newcomer"); err != nil {
		t.Fatal(err)
	}
	lengths := make([]int, len(live))
	for i, l := range live {
		lengths[i] = len(l.text())
	}
	ada.operate(url.Values{"action": {"uncordon"}, "nodes": {"own-cluster/own-0"}})
	for i, l := range live {
		waitFor(t, func() bool {
			select {
			case <-l.end: // of a batch, or of a page too many over HTTP/1.1
				return true
			default:
				return len(l.text()) > lengths[i]
			}
		})
		leaks(l.who(), l.what, l.text())
	}
	if found["vic"] < 40 {
		t.Errorf("who sees both finds the other one in %d answers only", found["vic"])
	}
}

// who is the token that a listener came with.
func (l *listener) who() string {
	_, rest, _ := strings.Cut(l.what, "Bearer ")
	who, _, _ := strings.Cut(rest, " ")
	return who
}

// When the role of a person is changed, every kind of stream that is open with it ends, and nothing comes after.
func TestSight_RevocationEndsEveryKindOfStream(t *testing.T) {
	t.Parallel()
	cfg := serveConfig(t)
	cfg.Streams.PerSession, cfg.Streams.PerPerson, cfg.Streams.PerAddress, cfg.Streams.Total = 100, 100, 200, 300
	r := start(t, cfg, fakeCluster(t, "prod"))
	ada := r.person(nil)
	r.setUp(ada)
	if status, body := ada.do(http.MethodPost, "/api/v1/users", url.Values{"name": {"eve"}, "role": {"operator"}, "password": {password}}); status >= 300 {
		t.Fatalf("adding: %d %s", status, body)
	}
	eve := r.person(nil)
	r.signIn(eve, "eve")
	waitFor(t, func() bool {
		_, body := ada.do(http.MethodGet, "/api/v1/clusters", nil)
		return strings.Contains(body, `"live"`)
	})
	// A batch that is under way for as long as the test needs it.
	resp := ada.request(t.Context(), http.MethodPost, "/api/v1/batches", url.Values{
		"action": {"cordon"}, "nodes": {"prod/node-0\nprod/node-1"}, "max_concurrent": {"1"}, "pause_between": {"1h"},
	}, "Accept", "application/json")
	var b struct{ ID string }
	if err := json.NewDecoder(resp.Body).Decode(&b); err != nil || b.ID == "" {
		t.Fatalf("no batch: %d %v", resp.StatusCode, err)
	}
	_ = resp.Body.Close() // it was read
	u, err := url.Parse(r.URL())
	if err != nil {
		t.Fatal(err)
	}
	var cookies []string
	for _, c := range eve.client.Jar.Cookies(u) {
		cookies = append(cookies, c.Name+"="+c.Value)
	}
	kinds := []string{
		"/api/v1/nodes/events", "/nodes/stream", "/clusters/prod/stream", "/clusters/prod/nodes/node-2/stream", "/clusters/stream",
		"/batches/" + b.ID + "/events", "/api/v1/batches/" + b.ID + "/events", "/api/v1/nodes/events?cluster=prod&q=node-2",
	}
	const streams = 50
	var live []*listener
	for i := range streams {
		accept := "text/event-stream"
		if i%3 == 0 && len(live) < 12 { // a browser over HTTP/1.1 holds four of them
			accept = "text/html, text/event-stream"
		}
		live = append(live, listen(t, r.URL(), kinds[i%len(kinds)], "Cookie", strings.Join(cookies, "; "), "Accept", accept, "Accept-Encoding", "identity"))
	}
	for _, l := range live {
		waitFor(t, func() bool { return strings.Contains(l.text(), "\n\n") || strings.Contains(l.text(), "data:") })
	}
	began := time.Now()
	if status, body := ada.do(http.MethodPatch, "/api/v1/users/eve", url.Values{"role": {"viewer"}}); status >= 300 {
		t.Fatalf("changing the role: %d %s", status, body)
	}
	for _, l := range live {
		select {
		case <-l.end:
		case <-time.After(20 * time.Second):
			t.Fatalf("%s is open still", l.what)
		}
	}
	t.Logf("%d streams of %d kinds ended within %s", streams, len(kinds), time.Since(began))
	lengths := make([]int, len(live))
	for i, l := range live {
		lengths[i] = len(l.text())
		if text := l.text(); !strings.Contains(text, "event: bye\n") && !strings.Contains(text, "event: poll\n") {
			t.Errorf("%s ended without a word: %.300q", l.what, text)
		}
	}
	ada.operate(url.Values{"action": {"cordon"}, "nodes": {"prod/node-2"}})
	for i, l := range live {
		if n := len(l.text()); n != lengths[i] {
			t.Errorf("%s: %d bytes came after its end", l.what, n-lengths[i])
		}
	}
	if status, _ := eve.do(http.MethodGet, "/api/v1/nodes/events", nil); status != http.StatusUnauthorized {
		t.Errorf("the session opens another stream: %d", status)
	}
}
