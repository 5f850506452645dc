package handlers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/PuerkitoBio/goquery"
	"github.com/go-chi/chi/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/realtime"
	"github.com/kube-node-manager/kube-node-manager/views"
)

// Each thing that goes wrong, asked by a browser and by a program.
func TestErrors(t *testing.T) {
	t.Parallel()
	big := formBody("action", "cordon", "nodes", strings.Repeat("x", batchBodyLimit))
	for _, tt := range []struct {
		name    string
		change  func(*world)
		call    call
		status  int // for programs; browsers get html if it differs
		html    int
		field   string
		says    string // part of the detail, and of the page
		typ     string
		headers map[string]string
	}{
		{name: "wrong sign-in", call: call{method: "POST", path: "/login", body: formBody("username", "ada", "password", "wrong")}, status: 401, typ: "unauthenticated", says: "password is wrong"},
		{
			name: "throttled sign-in", change: func(wd *world) { wd.signIn = &fleet.LimitError{What: "sign-in", Retry: 1500 * time.Millisecond} },
			call: call{method: "POST", path: "/login", body: formBody("username", "ada", "password", "wrong")}, status: 429, typ: "too_many",
			headers: map[string]string{"Retry-After": "2"},
		},
		{name: "session expired, page", call: call{path: "/nodes?q=zone%3Aa", who: "expired"}, status: 401, html: 303, typ: "unauthenticated"},
		{name: "session expired, API", call: call{path: "/api/v1/nodes", who: "expired"}, status: 401, typ: "unauthenticated"},
		{name: "viewer posting a batch", call: call{method: "POST", path: "/api/v1/batches", who: "viewer", body: formBody("action", "cordon", "nodes", "prod/node-0")}, status: 403, typ: "forbidden", says: "viewer"},
		{name: "unknown cluster", call: call{path: "/clusters/nope/nodes", who: "viewer"}, status: 404, typ: "not_found", says: "nope"},
		{name: "unknown cluster, API", call: call{path: "/api/v1/nodes?cluster_name=nope", who: "viewer"}, status: 404, typ: "not_found", says: "nope"},
		{name: "unknown cluster, stream", call: call{path: "/api/v1/nodes/events?cluster=nope", who: "viewer"}, status: 404, typ: "not_found", says: "nope"},
		{name: "unknown node", call: call{path: "/clusters/prod/nodes/nope", who: "viewer"}, status: 404, typ: "not_found", says: "prod/nope"},
		{name: "unknown batch", call: call{path: "/batches/nope", who: "viewer"}, status: 404, typ: "not_found", says: "nope"},
		{name: "unknown batch, stream", call: call{path: "/batches/nope/events", who: "viewer"}, status: 404, typ: "not_found", says: "nope"},
		{name: "unknown page", call: call{path: "/nope", who: "viewer"}, status: 404, typ: "not_found"},
		{name: "unknown page, nobody", call: call{path: "/nope"}, status: 404, typ: "not_found"},
		{name: "wrong method", call: call{method: "DELETE", path: "/nodes", who: "viewer"}, status: 405, typ: "method", headers: map[string]string{"Allow": "GET, HEAD"}},
		{name: "malformed query", call: call{path: "/api/v1/nodes?q=colour%3Ared", who: "viewer"}, status: 422, field: "q", typ: "invalid", says: "colour"},
		{name: "malformed query, stream", call: call{path: "/nodes/stream?sort=shoe", who: "viewer"}, status: 422, field: "sort", typ: "invalid", says: "shoe"},
		{name: "malformed group", call: call{path: "/api/v1/nodes?group=shoe", who: "viewer"}, status: 422, field: "group", typ: "invalid", says: "shoe"},
		{name: "malformed group, stream", call: call{path: "/nodes/stream?group=label%3A", who: "viewer"}, status: 422, field: "group", typ: "invalid"},
		{name: "unknown parameter", call: call{path: "/api/v1/nodes?colour=red", who: "viewer"}, status: 422, field: "colour", typ: "invalid"},
		{name: "bad filter of batches", call: call{path: "/batches?state=odd", who: "viewer"}, status: 422, field: "state", typ: "invalid", says: "odd"},
		{name: "bad time", call: call{path: "/audit?since=yesterday", who: "admin"}, status: 422, field: "since", typ: "invalid", says: "yesterday"},
		{name: "bad limit", call: call{path: "/api/v1/audit?limit=0", who: "admin"}, status: 422, field: "limit", typ: "invalid"},
		{name: "oversized body", call: call{method: "POST", path: "/login", body: strings.Repeat("x", bodyLimit+1)}, status: 413, typ: "too_large"},
		{name: "oversized batch", call: call{method: "POST", path: "/api/v1/batches", who: "operator", body: big}, status: 413, typ: "too_large"},
		{name: "wrong content type", call: call{method: "POST", path: "/api/v1/batches", who: "operator", body: "<x/>", header: map[string]string{"Content-Type": "text/xml"}}, status: 415, typ: "unsupported"},
		{name: "multipart", call: call{method: "POST", path: "/login", body: "--x--", header: map[string]string{"Content-Type": "multipart/form-data; boundary=x"}}, status: 415, typ: "unsupported"},
		{name: "no content type", call: call{method: "POST", path: "/login", body: "x=y", header: map[string]string{"Content-Type": ""}}, status: 415, typ: "unsupported"},
		{name: "compressed body", call: call{method: "POST", path: "/login", body: "x", header: map[string]string{"Content-Encoding": "gzip"}}, status: 415, typ: "unsupported"},
		{name: "cross-origin post", call: call{method: "POST", path: "/api/v1/batches", who: "operator", body: formBody("action", "cordon"), header: map[string]string{"Sec-Fetch-Site": "cross-site"}}, status: 403, typ: "forbidden"},
		{name: "unknown field", call: call{method: "POST", path: "/api/v1/batches", who: "operator", body: formBody("action", "cordon", "nodes", "prod/node-0", "colour", "red")}, status: 422, field: "colour", typ: "invalid"},
		{name: "unknown action", call: call{method: "POST", path: "/api/v1/batches", who: "operator", body: formBody("action", "explode", "nodes", "prod/node-0")}, status: 422, field: "action", typ: "invalid", says: "explode"},
		{name: "no action", call: call{method: "POST", path: "/api/v1/batches", who: "operator", body: formBody("nodes", "prod/node-0")}, status: 422, field: "action", typ: "invalid"},
		{name: "bad node", call: call{method: "POST", path: "/api/v1/batches", who: "operator", body: formBody("action", "cordon", "nodes", "prod/node-0\nprod/..")}, status: 422, field: "nodes", typ: "invalid", says: "prod/.."},
		{name: "node busy", change: func(wd *world) {
			wd.submit = &fleet.BusyError{Node: fleet.NodeRef{Cluster: "prod", Name: "node-0"}, Batch: "b9"}
		}, call: call{method: "POST", path: "/api/v1/batches", who: "operator", body: formBody("action", "cordon", "nodes", "prod/node-0")}, status: 409, typ: "conflict", says: "prod/node-0"},
		{
			name: "too many", change: func(wd *world) { wd.submit = &fleet.LimitError{What: "batches", Retry: time.Minute} },
			call:   call{method: "POST", path: "/api/v1/batches", who: "operator", body: formBody("action", "cordon", "nodes", "prod/node-0")},
			status: 429, typ: "too_many", headers: map[string]string{"Retry-After": "60"},
		},
		{name: "store down", call: call{path: "/nodes", who: "store-down"}, status: 500, typ: "internal"},
		{
			name: "unavailable", change: func(wd *world) { wd.submit = errors.Join(fleet.ErrUnavailable, errors.New("fire")) },
			call: call{method: "POST", path: "/api/v1/batches", who: "operator", body: formBody("action", "cordon", "nodes", "prod/node-0")}, status: 503, typ: "unavailable",
		},
		{
			name: "last admin", change: func(wd *world) { wd.people = say(fleet.ErrConflict, "", "the last admin must stay") },
			call: call{method: "POST", path: "/api/v1/users/ada", who: "admin", body: formBody("disabled", "true")}, status: 409, typ: "conflict", says: "last admin",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, browser := range []bool{false, true} {
				s := newSite(t)
				if tt.change != nil {
					tt.change(s.world)
				}
				c, want := tt.call, tt.status
				if browser {
					c.header = with(html, flat(tt.call.header)...)
					if tt.html != 0 {
						want = tt.html
					}
				} else {
					c.header = with(map[string]string{"Accept": "application/json"}, flat(tt.call.header)...)
				}
				w := s.do(c)
				if w.Code != want {
					t.Errorf("browser %t: status %d, want %d: %s", browser, w.Code, want, w.Body)
					continue
				}
				for k, v := range tt.headers {
					if got := w.Header().Get(k); got != v {
						t.Errorf("browser %t: %s = %q, want %q", browser, k, got, v)
					}
				}
				if strings.Contains(w.Body.String(), "fire") {
					t.Errorf("an internal text shows: %s", w.Body)
				}
				if strings.Contains(w.Body.String(), "{{") {
					t.Errorf("a placeholder is left: %s", w.Body)
				}
				if browser {
					if want == http.StatusSeeOther {
						if got := w.Header().Get("Location"); got != "/login?next=%2Fnodes%3Fq%3Dzone%253Aa" {
							t.Errorf("Location = %q", got)
						}
						continue
					}
					d := document(t, w)
					if tt.says != "" && tt.typ != "unauthenticated" && !strings.Contains(d.Find("main").Text(), tt.says) {
						t.Errorf("page does not say %q: %s", tt.says, d.Find("main").Text())
					}
					continue
				}
				p := problemOf(t, w)
				if p.Type != "urn:kube-node-manager:problem:"+tt.typ || p.Field != tt.field {
					t.Errorf("problem %+v, want type %s, field %q", p, tt.typ, tt.field)
				}
				if !strings.Contains(p.Detail, tt.says) {
					t.Errorf("detail %q does not say %q", p.Detail, tt.says)
				}
				if tt.name == "node busy" && p.Batch != "b9" {
					t.Errorf("batch = %q", p.Batch)
				}
			}
		})
	}
}

func flat(m map[string]string) []string {
	var out []string
	for k, v := range m {
		out = append(out, k, v)
	}
	return out
}

// A query that is wrong shows itself on the page, with no rows that nobody asked for.
func TestNodesPage_BadQuery(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	w := s.do(call{path: "/nodes?q=colour%3Ared", who: "operator", header: html})
	if w.Code != http.StatusUnprocessableEntity {
		t.Errorf("status %d", w.Code)
	}
	d := document(t, w)
	if n := d.Find("[data-ref]").Length(); n != 0 {
		t.Errorf("%d rows", n)
	}
	if !strings.Contains(d.Find("main").Text(), "colour") {
		t.Error("the word is not named")
	}
	if v, _ := d.Find("input[name=q]").Attr("value"); v != "colour:red" {
		t.Errorf("what was typed is %q", v)
	}
}

// htmx swaps what it gets: a fragment, never a page in a page.
func TestErrors_Fragment(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.submit = &fleet.BusyError{Node: fleet.NodeRef{Cluster: "prod", Name: "node-0"}, Batch: "b9"}
	for _, c := range []call{
		{method: "POST", path: "/api/v1/batches", who: "operator", body: formBody("action", "cordon", "nodes", "prod/node-0"), header: hx},
		{method: "POST", path: "/api/v1/batches", who: "viewer", body: formBody("action", "cordon", "nodes", "prod/node-0"), header: hx},
		{method: "POST", path: "/api/v1/batches", who: "", body: formBody("action", "cordon", "nodes", "prod/node-0"), header: hx},
		{method: "POST", path: "/api/v1/batches", who: "operator", body: strings.Repeat("x", batchBodyLimit+1), header: hx},
		{path: "/clusters/prod/nodes/nope/pods", who: "viewer", header: hx},
		{path: "/nodes/stream", who: "", header: hx},
	} {
		w := s.do(c)
		d := document(t, w)
		if w.Code < 400 || strings.Contains(w.Body.String(), "<html") || d.Find("[role=alert]").Length() != 1 {
			t.Errorf("%s %s: status %d, body %s", c.method, c.path, w.Code, w.Body)
		}
	}
	w := s.do(call{method: "POST", path: "/api/v1/batches", who: "operator", body: formBody("action", "cordon", "nodes", "prod/node-0"), header: hx})
	if href, _ := document(t, w).Find("a").Attr("href"); href != "/batches/b9" {
		t.Errorf("the batch that holds the node is not linked: %q", href)
	}
}

func TestErrors_Language(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	w := s.do(call{path: "/nope", who: "viewer", header: with(html, "Accept-Language", "zh-CN,zh;q=0.9")})
	if lang, _ := document(t, w).Find("html").Attr("lang"); lang != "zh-Hans" {
		t.Errorf("lang = %q", lang)
	}
	p := problemOf(t, s.do(call{path: "/api/v1/nope", who: "viewer", header: map[string]string{"Accept-Language": "zh-CN"}}))
	if p.Detail != "there is no such page" {
		t.Errorf("problems are in English: %q", p.Detail)
	}
}

// A program that names no media type gets what the address is for.
func TestErrors_WithoutAccept(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	problemOf(t, s.do(call{path: "/api/v1/nodes"}))
	problemOf(t, s.do(call{path: "/api/v1/nodes", header: curl}))
	problemOf(t, s.do(call{path: "/batches/b1/events", header: map[string]string{"Accept": "text/event-stream"}}))
	if w := s.do(call{path: "/nodes", header: curl}); w.Code != http.StatusSeeOther {
		t.Errorf("status %d", w.Code)
	}
	if w := s.do(call{path: "/api/v1/nodes"}); w.Header().Get("WWW-Authenticate") == "" {
		t.Error("no WWW-Authenticate")
	}
}

// The answer to a batch by who asks, each with what the next step of that client needs.
func TestCreateBatch_Negotiation(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		header map[string]string
		status int
		format realtime.Format
		stream bool
	}{
		{name: "htmx", header: hx, status: 200, stream: true, format: realtime.HTML},
		{name: "curl for the stream", header: map[string]string{"Accept": "text/event-stream"}, status: 200, stream: true, format: realtime.JSON},
		{name: "browser without scripts", header: html, status: 303},
		{name: "boosted form of htmx", header: with(hx, "HX-Request-Type", "full", "Accept", "text/html"), status: 303},
		{name: "curl", header: curl, status: 202},
		{name: "no Accept", status: 202},
		{name: "JSON", header: map[string]string{"Accept": "application/json"}, status: 202},
		{name: "stream refused", header: map[string]string{"Accept": "text/event-stream;q=0, application/json"}, status: 202},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			w := s.do(call{
				method: "POST", path: "/api/v1/batches", who: "operator", header: with(tt.header, "Last-Event-ID", "e1.3"),
				body: formBody("action", "cordon", "nodes", "prod/node-0"),
			})
			if w.Code != tt.status {
				t.Fatalf("status %d: %s", w.Code, w.Body)
			}
			if !tt.stream {
				if len(s.streams) != 0 {
					t.Errorf("a stream was opened")
				}
				want := map[int]string{303: "/batches/b1", 202: "/api/v1/batches/b1"}[tt.status]
				if got := w.Header().Get("Location"); got != want {
					t.Errorf("Location = %q, want %q", got, want)
				}
				if tt.status == 202 {
					var b struct {
						ID    string           `json:"id"`
						Items []map[string]any `json:"items"`
					}
					if err := json.Unmarshal(w.Body.Bytes(), &b); err != nil || b.ID != "b1" || len(b.Items) != 1 {
						t.Errorf("body %s: %v", w.Body, err)
					}
				}
				return
			}
			if got := w.Header().Get("Content-Type"); got != "text/event-stream" {
				t.Errorf("Content-Type = %q", got)
			}
			got := s.lastStream(t).(realtime.BatchStream)
			open := got.Open
			got.Open = nil
			want := realtime.BatchStream{Batch: "b1", Viewer: realtime.Viewer{
				Session: "hash-operator", UserID: "u-operator", Addr: "192.0.2.1", Lang: "en", Format: tt.format, Sight: fleet.SeesAll(),
			}}
			if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b fleet.Sight) bool { return a.Key() == b.Key() })); diff != "" {
				t.Error(diff)
			}
			if (tt.format == realtime.HTML) != (len(open) > 0) {
				t.Errorf("Open = %q", open)
			}
			if bytes.ContainsAny(open, "\r\n") {
				t.Errorf("Open has a line break: %q", open)
			}
			if tt.format == realtime.HTML && !bytes.Contains(open, []byte("b1")) {
				t.Errorf("Open is not the panel: %q", open)
			}
		})
	}
}

func TestCreateBatch_Fields(t *testing.T) {
	t.Parallel()
	want := fleet.BatchSpec{
		Operation:      fleet.Operation{Action: fleet.ActionUncordon, Reason: "disk swap", Foreign: fleet.ForeignInclude},
		Nodes:          []fleet.NodeRef{{Cluster: "prod", Name: "node-0"}, {Cluster: "a/b", Name: "node-1"}},
		Rollout:        fleet.Rollout{MaxConcurrent: 3, MaxFailures: 2, PauseBetween: 90 * time.Second},
		IdempotencyKey: "k1",
	}
	for name, c := range map[string]call{
		"form": {body: formBody("action", "uncordon", "reason", "disk swap", "foreign", "include", "nodes", "prod/node-0\r\n\r\na/b/node-1\r\n",
			"max_concurrent", "3", "max_failures", "2", "pause_between", "90", "idempotency_key", "k1")},
		"form of checkboxes": {body: formBody("action", "uncordon", "reason", "disk swap", "foreign", "include", "nodes", "", "nodes", "prod/node-0",
			"nodes", "a/b/node-1", "max_concurrent", "3", "max_failures", "2", "pause_between", "1m30s", "idempotency_key", "k1")},
		"JSON": {
			header: map[string]string{"Content-Type": "application/json; charset=utf-8"},
			body:   `{"action":"uncordon","reason":"disk swap","foreign":"include","nodes":["prod/node-0","a/b/node-1"],"max_concurrent":3,"max_failures":2,"pause_between":"90s","idempotency_key":"k1"}`,
		},
		"JSON, one text": {
			header: map[string]string{"Content-Type": "application/json", "Idempotency-Key": "k1"},
			body:   `{"action":"uncordon","reason":"disk swap","foreign":"include","nodes":"prod/node-0\na/b/node-1","max_concurrent":"3","max_failures":2,"pause_between":90,"idempotency_key":null}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			c.method, c.path, c.who = "POST", "/api/v1/batches", "operator"
			if w := s.do(c); w.Code != http.StatusAccepted {
				t.Fatalf("status %d: %s", w.Code, w.Body)
			}
			if diff := cmp.Diff([]fleet.BatchSpec{want}, s.specs); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestCreateBatch_BadFields(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ body, field string }{
		{`{"action":"cordon","nodes":{"a":1}}`, "nodes"},
		{`{"action":"cordon","nodes":[["a/b"]]}`, "nodes"},
		{`{"action":["cordon","uncordon"],"nodes":"a/b"}`, "action"},
		{`{"action":"cordon","nodes":"a/b","max_concurrent":-1}`, "max_concurrent"},
		{`{"action":"cordon","nodes":"a/b","max_concurrent":1.5}`, "max_concurrent"},
		{`{"action":"cordon","nodes":"a/b","max_failures":"x"}`, "max_failures"},
		{`{"action":"cordon","nodes":"a/b","pause_between":"-5s"}`, "pause_between"},
		{`{"action":"cordon","nodes":"a/b","pause_between":"1000000h"}`, "pause_between"},
		{`{"action":"cordon","nodes":"a/b","pause_between":99999999999}`, "pause_between"},
		{`{"action":"cordon","nodes":"a/b","colour":"red"}`, "colour"},
		{`{"action":"cordon","nodes":"a/b","idempotency_key":"` + strings.Repeat("k", maxKey+1) + `"}`, "idempotency_key"},
		{`[]`, ""},
		{`null`, ""},
		{`{"action":"cordon"} {}`, ""},
		{`{"action":`, ""},
		{`{`, ""},
	} {
		s := newSite(t)
		w := s.do(call{method: "POST", path: "/api/v1/batches", who: "operator", body: tt.body, header: map[string]string{"Content-Type": "application/json"}})
		if p := problemOf(t, w); p.Status != http.StatusUnprocessableEntity || p.Field != tt.field || p.Detail == "" {
			t.Errorf("%s: %+v", tt.body, p)
		}
		if len(s.specs) != 0 {
			t.Errorf("%s was submitted", tt.body)
		}
	}
	s := newSite(t)
	w := s.do(call{method: "POST", path: "/api/v1/batches", who: "operator", body: formBody("action", "cordon", "idempotency_key", "a"), header: map[string]string{"Idempotency-Key": "b"}})
	if p := problemOf(t, w); p.Field != "idempotency_key" {
		t.Errorf("%+v", p)
	}
}

// 5,000 nodes with names of the greatest length fit, and no more than the limit is ever read.
func TestCreateBatch_Largest(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	name := "prod/" + strings.Repeat("a", 240)
	var lines strings.Builder
	for i := range refsLimit {
		lines.WriteString(name + strconv.Itoa(10000+i) + "\n")
	}
	w := s.do(call{method: "POST", path: "/api/v1/batches", who: "operator", body: formBody("action", "cordon", "nodes", lines.String())})
	if w.Code != http.StatusAccepted || len(s.specs) != 1 || len(s.specs[0].Nodes) != refsLimit {
		t.Errorf("status %d: %.200s", w.Code, w.Body)
	}

	read := &counting{}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://knm.test/login", read)
	r.ContentLength = -1
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	r.Header.Set("Content-Type", formType)
	rec := httptest.NewRecorder()
	s.h.ServeHTTP(rec, r)
	if rec.Code != http.StatusRequestEntityTooLarge || read.n > bodyLimit+4096 {
		t.Errorf("status %d after %d bytes", rec.Code, read.n)
	}
}

// counting is a body without end.
type counting struct{ n int }

func (c *counting) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	c.n += len(p)
	return len(p), nil
}

func TestCancelBatch(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, tt := range []struct {
		header map[string]string
		status int
	}{{hx, 204}, {html, 303}, {curl, 202}} {
		if w := s.do(call{method: "POST", path: "/api/v1/batches/b1/cancel", who: "operator", header: tt.header}); w.Code != tt.status {
			t.Errorf("%v: status %d", tt.header, w.Code)
		}
	}
	if w := s.do(call{method: "POST", path: "/api/v1/batches/nope/cancel", who: "operator"}); w.Code != 404 {
		t.Errorf("status %d", w.Code)
	}
}

func TestBatchStream_Format(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, path := range []string{"/batches/b1/events", "/api/v1/batches/b1/events"} {
		for _, tt := range []struct {
			header map[string]string
			want   realtime.Format
		}{{hx, realtime.HTML}, {html, realtime.HTML}, {curl, realtime.JSON}, {map[string]string{"Accept": "text/event-stream"}, realtime.JSON}} {
			s.do(call{path: path + "?since=e1.3", who: "viewer", header: tt.header})
			got := s.lastStream(t).(realtime.BatchStream)
			if got.Format != tt.want || got.Since != "e1.3" || got.Open != nil {
				t.Errorf("%s with %v: %+v", path, tt.header, got)
			}
		}
	}
}

// The grouping goes with the page to its stream; programs get the groups beside the nodes, and their streams and the
// selection take the word and have nothing to do with it.
func TestNodes_Group(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	d := document(t, s.do(call{path: "/nodes?group=zone&sort=-cpu", who: "operator", header: html}))
	stream, _ := d.Find("#live").Attr("hx-sse:connect")
	if !strings.Contains(stream, "group=zone") || !strings.Contains(stream, "sort=-cpu") {
		t.Errorf("the page streams from %q", stream)
	}
	if d.Find("#rows > tr:first-child[data-group]").Length() != 1 || d.Find("#rows > tr[data-ref]").Length() != 6 {
		t.Errorf("rows: %d headers, %d nodes", d.Find("#rows > tr[data-group]").Length(), d.Find("#rows > tr[data-ref]").Length())
	}
	s.do(call{path: stream, who: "viewer"})
	if got := s.lastStream(t).(realtime.NodeStream); got.Query.Group != "zone" {
		t.Errorf("the stream is grouped by %q", got.Query.Group)
	}
	for path, want := range map[string]string{
		"/api/v1/nodes?group=zone":      `"groups":[{"value":"a","nodes":6,"ready":6,"not_ready":0,"unknown":0,"cordoned":0,"pressure":0,"allocatable":{"cpu_milli":0,"memory_bytes":0,"pods":0}}]`,
		"/api/v1/nodes?group=pool":      `"groups":[]`,
		"/api/v1/nodes/refs?group=zone": `"total":6`,
	} {
		w := s.do(call{path: path, who: "viewer"})
		if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: status %d, %.400s, want %s", path, w.Code, w.Body.String(), want)
		}
	}
	if w := s.do(call{path: "/api/v1/nodes", who: "viewer"}); strings.Contains(w.Body.String(), "groups") {
		t.Error("a list that is not grouped has groups")
	}
	s.do(call{path: "/api/v1/nodes/events?group=zone", who: "viewer"})
	if got := s.lastStream(t).(realtime.NodeStream); got.Format != realtime.JSON {
		t.Errorf("the stream for programs: %+v", got)
	}
}

// What the browser sends by itself beats what the page was given.
func TestStream_Cursor(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, tt := range []struct {
		path, header, want string
	}{
		{"/nodes/stream?since=e1.42&q=zone%3Aa", "", "e1.42"},
		{"/nodes/stream?since=e1.42", "e1.50", "e1.50"},
		{"/api/v1/nodes/events", "e1.50", "e1.50"},
		{"/api/v1/nodes/events?since=e1.1&cluster=prod", "", "e1.1"},
		{"/clusters/prod/stream", "", ""},
	} {
		s.do(call{path: tt.path, who: "viewer", header: map[string]string{"Last-Event-ID": tt.header}})
		if got := s.lastStream(t).(realtime.NodeStream); got.Since != tt.want || got.Query == nil {
			t.Errorf("%s: %+v", tt.path, got)
		}
	}
}

// Paths carry names of clusters that hold everything a path gives a meaning to.
func TestPath_EscapedNames(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	w := s.do(call{path: "/nodes", who: "operator", header: html})
	d := document(t, w)
	cluster, _ := d.Find("a[href*='arn']").First().Attr("href")
	node, _ := d.Find("a.open[href*='arn']").First().Attr("href")
	if cluster == "" || node == "" {
		t.Fatalf("no links: %q %q", cluster, node)
	}
	w = s.do(call{path: cluster, who: "operator", header: html})
	d = document(t, w)
	if n := d.Find("tr[data-ref]").Length(); w.Code != http.StatusOK || n != 3 {
		t.Errorf("%s: status %d, %d rows", cluster, w.Code, n)
	}
	live, _ := d.Find("#live").Attr("hx-sse:connect")
	if s.do(call{path: live, who: "operator"}); s.lastStream(t).(realtime.NodeStream).Query.Cluster != odd {
		t.Errorf("stream %s: %+v", live, s.lastStream(t))
	}
	w = s.do(call{path: node, who: "operator", header: html})
	d = document(t, w)
	if ref, _ := d.Find("input[name=nodes][type=hidden]").Attr("value"); w.Code != http.StatusOK || !strings.HasPrefix(ref, odd+"/node-") {
		t.Errorf("%s: status %d, form for %q", node, w.Code, ref)
	}
	pods, _ := d.Find("#pods").Attr("hx-get")
	if w = s.do(call{path: pods, who: "operator", header: hx}); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "web-0") {
		t.Errorf("%s: status %d", pods, w.Code)
	}
	live, _ = d.Find("#live").Attr("hx-sse:connect")
	if s.do(call{path: live, who: "operator"}); s.lastStream(t).(realtime.NodeStream).Node.Cluster != odd {
		t.Errorf("stream %s: %+v", live, s.lastStream(t))
	}
	api := strings.Replace(strings.Replace(node, "/clusters/", "/api/v1/nodes/", 1), "/nodes/node", "/node", 1)
	if w = s.do(call{path: api, who: "operator"}); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"cluster":"arn:aws`) {
		t.Errorf("%s: status %d %s", api, w.Code, w.Body)
	}
	if w = s.do(call{path: api + "?full=1", who: "operator"}); w.Code != http.StatusOK || w.Body.String() != `{"kind":"Node"}` {
		t.Errorf("%s: status %d %s", api, w.Code, w.Body)
	}
}

// A name that no API server accepts never gets as far as anybody who asks one.
func TestPath_HostileNames(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(c *Config) { c.Nodes = noNodes{c.Nodes} })
	for _, name := range []string{"..", ".", "%2e%2e", "%2E%2e", "a%2fb", "a%5cb", "%252e%252e", "Node", "a%00b", "a%0ab", "-a", "%c3%a4", strings.Repeat("a", 254)} {
		for _, path := range []string{"/clusters/prod/nodes/" + name, "/clusters/prod/nodes/" + name + "/pods", "/api/v1/nodes/prod/" + name, "/clusters/prod/nodes/" + name + "/stream"} {
			if w := s.do(call{path: path, who: "admin", header: map[string]string{"Accept": "application/json"}}); w.Code != http.StatusNotFound {
				t.Errorf("%s: status %d", path, w.Code)
			}
		}
	}
	if len(s.streams) != 0 {
		t.Error("a stream was opened")
	}
}

// noNodes fails the test when it is asked about a node.
type noNodes struct{ Nodes }

func (noNodes) Node(ref fleet.NodeRef) (*fleet.Node, error) { panic("asked for " + ref.String()) }
func (noNodes) FullNode(ref fleet.NodeRef) ([]byte, error)  { panic("asked for " + ref.String()) }
func (noNodes) Pods(_ context.Context, ref fleet.NodeRef) (fleet.PodList, error) {
	panic("asked for " + ref.String())
}

func TestListNodes(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	type list struct {
		Items    []struct{ Cluster, Name string } `json:"items"`
		Revision uint64                           `json:"revision"`
		Cursor   string                           `json:"cursor"`
		Total    int                              `json:"total"`
		Page     int                              `json:"page"`
	}
	get := func(path string) (l list) {
		t.Helper()
		w := s.do(call{path: path, who: "viewer"})
		if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "application/json" {
			t.Fatalf("%s: status %d %s", path, w.Code, w.Body)
		}
		if err := json.Unmarshal(w.Body.Bytes(), &l); err != nil {
			t.Fatal(err)
		}
		return l
	}
	if l := get("/api/v1/nodes"); len(l.Items) != 6 || l.Revision != 42 || l.Cursor != "e1.42" || l.Page != 0 {
		t.Errorf("all: %+v", l)
	}
	if l := get("/api/v1/nodes?cluster_name=prod"); len(l.Items) != 3 || l.Items[0].Cluster != "prod" {
		t.Errorf("one cluster: %+v", l)
	}
	if l := get("/api/v1/nodes?cluster=prod&q=nothing"); len(l.Items) != 0 || l.Items == nil {
		t.Errorf("none: %+v", l)
	}
	// More than one page of a list that names no page is still the whole list.
	for i := range 300 {
		s.nodes = append(s.nodes, &fleet.Node{Ref: fleet.NodeRef{Cluster: "prod", Name: "more-" + strconv.Itoa(i)}})
	}
	if l := get("/api/v1/nodes"); len(l.Items) != 306 || l.Total != 306 {
		t.Errorf("all of many: %d of %d", len(l.Items), l.Total)
	}
	if l := get("/api/v1/nodes?per_page=20"); len(l.Items) != 20 || l.Total != 306 || l.Page != 1 {
		t.Errorf("a page of many: %d of %d", len(l.Items), l.Total)
	}
	w := s.do(call{path: "/api/v1/nodes/refs?cluster_name=prod", who: "viewer"})
	var refs struct {
		Refs  []string `json:"refs"`
		Total int      `json:"total"`
		Limit int      `json:"limit"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &refs); err != nil || len(refs.Refs) != 303 || refs.Total != 303 || refs.Limit != refsLimit || refs.Refs[0] != "prod/node-0" {
		t.Errorf("refs: %v %.100v", err, refs)
	}
}

func TestPods_ErrorIsContent(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.podsErr = errors.Join(fleet.ErrUnavailable, errors.New("dial tcp 10.0.0.1: fire"))
	w := s.do(call{path: "/clusters/prod/nodes/node-0/pods", who: "viewer", header: hx})
	if w.Code != http.StatusOK || document(t, w).Find("[role=alert]").Length() != 1 || strings.Contains(w.Body.String(), "fire") {
		t.Errorf("status %d: %s", w.Code, w.Body)
	}
	if !strings.Contains(s.logs.String(), "10.0.0.1: fire") {
		t.Error("the cause is not in the log")
	}
	s.podsFn = func(ctx context.Context) error {
		d, ok := ctx.Deadline()
		if !ok || time.Until(d) > podsTimeout {
			t.Errorf("deadline %v %t", d, ok)
		}
		return context.DeadlineExceeded
	}
	if w := s.do(call{path: "/clusters/prod/nodes/node-0/pods", who: "viewer", header: hx}); w.Code != http.StatusOK {
		t.Errorf("status %d", w.Code)
	}
}

func TestPeople(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	asObject := map[string]string{"Content-Type": "application/json"}
	for _, tt := range []struct {
		call
		status   int
		did      string
		location string
	}{
		{call: call{method: "POST", path: "/api/v1/users", who: "admin", body: formBody("name", "eve", "role", "operator", "password", "x")}, status: 201, did: "AddUser eve operator"},
		{call: call{method: "POST", path: "/api/v1/users", who: "admin", header: html, body: formBody("name", "eva", "role", "viewer", "password", "x")}, status: 303, did: "AddUser eva viewer", location: "/users"},
		{call: call{method: "PATCH", path: "/api/v1/users/eve", who: "admin", header: asObject, body: `{"disabled":true}`}, status: 204, did: "SetDisabled eve true"},
		{call: call{method: "PATCH", path: "/api/v1/users/eve", who: "admin", header: asObject, body: `{"role":"viewer"}`}, status: 204, did: "SetRole eve viewer"},
		{call: call{method: "PATCH", path: "/api/v1/users/eve", who: "admin", header: asObject, body: `{"password":"new"}`}, status: 204, did: "SetPassword eve"},
		{call: call{method: "POST", path: "/api/v1/password", who: "viewer", header: asObject, body: `{"current_password":"old","new_password":"new"}`}, status: 204, did: "ChangePassword viewer old new"},
		{call: call{method: "POST", path: "/api/v1/password", who: "viewer", header: html, body: formBody("current_password", "old", "new_password", "new")}, status: 303, did: "ChangePassword viewer old new", location: "/account"},
		{call: call{method: "POST", path: "/api/v1/password", who: "viewer", header: asObject, body: `{"current_password":"old","password":"new"}`}, status: 422},
		{call: call{method: "POST", path: "/api/v1/users/eve@example.org", who: "admin", header: html, body: formBody("disabled", "false")}, status: 303, did: "SetDisabled eve@example.org false", location: "/users"},
		{call: call{method: "PATCH", path: "/api/v1/users/eve", who: "admin", header: asObject, body: `{"role":"viewer","disabled":true}`}, status: 422},
		{call: call{method: "PATCH", path: "/api/v1/users/eve", who: "admin", header: asObject, body: `{}`}, status: 422},
		{call: call{method: "PATCH", path: "/api/v1/users/eve", who: "admin", header: asObject, body: `{"disabled":"maybe"}`}, status: 422},
		{call: call{method: "POST", path: "/api/v1/users", who: "admin", body: formBody("name", "x", "role", "root")}, status: 422},
		{call: call{method: "POST", path: "/api/v1/users", who: "admin", body: formBody("name", "x", "role", "none", "password", "x")}, status: 201, did: "AddUser x none"},
		{call: call{method: "PATCH", path: "/api/v1/users/eve", who: "admin", header: asObject, body: `{"grants":[{"scope":"prod-*","role":"operator","also":["node.no_execute"]},{"scope":"lab","role":"viewer"}]}`}, status: 204, did: "SetGrants eve [operator+node.no_execute in prod-* viewer in lab]"},
		{call: call{method: "PATCH", path: "/api/v1/users/eve", who: "admin", header: asObject, body: `{"grants":[]}`}, status: 204, did: "SetGrants eve []"},
		{call: call{method: "PATCH", path: "/api/v1/users/eve", who: "admin", header: asObject, body: `{"grant":"lab","grant_role":"viewer"}`}, status: 204, did: "AddGrant eve viewer in lab"},
		{call: call{method: "POST", path: "/api/v1/users/eve", who: "admin", header: html, body: formBody("grant", "prod-*", "grant_role", "admin", "also", "node.drain", "also", "node.cordon")}, status: 303, did: "AddGrant eve admin+node.drain+node.cordon in prod-*", location: "/users"},
		{call: call{method: "POST", path: "/api/v1/users/eve", who: "admin", header: html, body: formBody("revoke", "label:env=prod")}, status: 303, did: "DropGrant eve label:env=prod", location: "/users"},
		{call: call{method: "PATCH", path: "/api/v1/users/eve", who: "admin", header: asObject, body: `{"grants":[{"scope":"lab","role":"viewer","from":"oidc"}]}`}, status: 422},
		{call: call{method: "PATCH", path: "/api/v1/users/eve", who: "admin", header: asObject, body: `{"grants":[1]}`}, status: 422},
		{call: call{method: "PATCH", path: "/api/v1/users/eve", who: "admin", header: asObject, body: `{"grants":"lab"}`}, status: 422},
		{call: call{method: "PATCH", path: "/api/v1/users/eve", who: "admin", header: asObject, body: `{"grants":null}`}, status: 422},
		{call: call{method: "PATCH", path: "/api/v1/users/eve", who: "admin", header: asObject, body: `{"grants":[],"role":"viewer"}`}, status: 422},
		{call: call{method: "PATCH", path: "/api/v1/users/eve", who: "admin", header: asObject, body: `{"grant":"lab","revoke":"lab"}`}, status: 422},
		{call: call{method: "PATCH", path: "/api/v1/users/eve", who: "admin", header: asObject, body: `{"disabled":true,"grant_role":"viewer"}`}, status: 422},
		{call: call{method: "POST", path: "/api/v1/tokens", who: "viewer", header: asObject, body: `{"name":"ci","grants":[]}`}, status: 422},
		{call: call{method: "POST", path: "/api/v1/tokens", who: "viewer", header: asObject, body: `{"name":"ci","expires":"2030-01-02","role":"viewer","scope":"prod-*"}`}, status: 201, did: "AddToken ci 2030-01-03 viewer prod-*"},
		{call: call{method: "POST", path: "/api/v1/tokens", who: "viewer", body: formBody("name", "ci", "expires", "2030-01-02", "role", "", "scope", "")}, status: 201, did: "AddToken ci 2030-01-03"},
		{call: call{method: "DELETE", path: "/api/v1/tokens/t1", who: "viewer"}, status: 204, did: "EndToken t1"},
		{call: call{method: "POST", path: "/api/v1/tokens/t1/delete", who: "viewer", header: html}, status: 303, did: "EndToken t1", location: "/account"},
		{call: call{method: "DELETE", path: "/api/v1/sessions/h1", who: "viewer"}, status: 204, did: "EndSession h1"},
		{call: call{method: "POST", path: "/api/v1/sessions/h2/delete", who: "viewer", header: html}, status: 303, did: "EndSession h2", location: "/account"},
		{call: call{method: "POST", path: "/api/v1/tokens", who: "viewer", body: formBody("name", "ci", "expires", "2030-01-02")}, status: 201, did: "AddToken ci 2030-01-03"},
		{call: call{method: "POST", path: "/api/v1/tokens", who: "viewer", body: formBody("name", "ci", "expires", "soon")}, status: 422},
	} {
		w := s.do(tt.call)
		if w.Code != tt.status || w.Header().Get("Location") != tt.location {
			t.Errorf("%s %s %s: status %d, Location %q: %s", tt.method, tt.path, tt.body, w.Code, w.Header().Get("Location"), w.Body)
		}
		if tt.did != "" && !s.called(tt.did) {
			t.Errorf("%s %s: %q is not in %q", tt.method, tt.path, tt.did, s.calls)
		}
	}
	before := len(s.calls)
	s.do(call{method: "PATCH", path: "/api/v1/users/eve", who: "admin", header: asObject, body: `{"role":"viewer","disabled":true}`})
	if len(s.calls) != before {
		t.Errorf("half of a double change was done: %q", s.calls[before:])
	}
}

// What people may do where is shown to admins, as a page and as JSON, and to each what they may themselves.
func TestGrants_Shown(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	w := s.do(call{path: "/api/v1/users", who: "admin"})
	if !strings.Contains(w.Body.String(), `"grants":[]`) || strings.Contains(w.Body.String(), `"groups"`) {
		t.Errorf("no grants are %s", w.Body)
	}
	s.grants = []fleet.Grant{
		{Scope: "prod-*", Role: fleet.RoleOperator, Also: []fleet.Permission{fleet.PermPastBudget}}, {Scope: "edge", Role: fleet.RoleViewer, From: fleet.PersonOIDC},
	}
	w = s.do(call{path: "/api/v1/users", who: "admin"})
	if want := `"grants":[{"scope":"prod-*","role":"operator","also":["node.drain_past_budget"]},{"scope":"edge","role":"viewer","from":"oidc"}]`; !strings.Contains(w.Body.String(), want) {
		t.Errorf("grants are %s", w.Body)
	}
	d := document(t, s.do(call{path: "/users", who: "admin", header: html}))
	var take, boxes []string
	d.Find("button[name=revoke]").Each(func(_ int, b *goquery.Selection) { take = append(take, b.AttrOr("value", "")) })
	d.Find("input[name=also]").Each(func(_ int, b *goquery.Selection) { boxes = append(boxes, b.AttrOr("value", "")) })
	if !slices.Equal(take, []string{"prod-*"}) || len(boxes) != len(fleet.Grantable()) || !strings.Contains(d.Find("ul.grants").Text(), "delete pods that a budget guards") {
		t.Errorf("to be taken away %q, to be given %q: %s", take, boxes, d.Find("ul.grants").Text())
	}
	if d.Find("select[name=role] option[value=none]").Length() == 0 || d.Find("select[name=grant_role] option[value=none]").Length() != 0 {
		t.Error("the role none is for everywhere, not for a grant")
	}
	d = document(t, s.do(call{path: "/account", who: "viewer", header: html}))
	if text := d.Find("#may-grants").Text(); !strings.Contains(text, "prod-*") || !strings.Contains(text, "edge") || d.Find("#may-everywhere").Text() != "Everywhere: viewer" {
		t.Errorf("the account says %q and %q", d.Find("#may-everywhere").Text(), text)
	}
}

// The secret of a token is in the one answer that makes it.
func TestToken_ShownOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	w := s.do(call{method: "POST", path: "/api/v1/tokens", who: "viewer", header: html, body: formBody("name", "ci")})
	if w.Code != http.StatusOK || !strings.Contains(document(t, w).Find("main").Text(), "knm_fresh_secret") {
		t.Errorf("status %d: %s", w.Code, w.Body)
	}
	if w.Header().Get("Cache-Control") != "no-store" {
		t.Error("the page with the secret may be kept")
	}
	w = s.do(call{method: "POST", path: "/api/v1/tokens", who: "viewer", body: formBody("name", "ci")})
	if w.Code != http.StatusCreated || !strings.Contains(w.Body.String(), `"token":"knm_fresh_secret"`) {
		t.Errorf("status %d: %s", w.Code, w.Body)
	}
	for _, path := range []string{"/account", "/api/v1/tokens"} {
		if w := s.do(call{path: path, who: "viewer"}); w.Code != http.StatusOK || strings.Contains(w.Body.String(), "knm_fresh") {
			t.Errorf("%s: status %d", path, w.Code)
		}
	}
	if strings.Contains(s.logs.String(), "knm_fresh") {
		t.Error("the secret is in the log")
	}
}

func TestForms_ShowTheirProblem(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.people = fleet.Invalid("name", "must not be empty")
	for _, tt := range []struct {
		call
		fields []string
	}{
		{call{method: "POST", path: "/api/v1/users", who: "admin", header: html, body: formBody("name", "eve", "role", "viewer", "invite", "true")}, []string{"name"}},
		{call{method: "POST", path: "/setup", header: html, body: formBody("code", "bad", "username", "ada", "password", "x")}, []string{"code", "username"}},
	} {
		w := s.do(tt.call)
		d := document(t, w)
		var got []string
		d.Find("form[action='" + tt.path + "'] input[aria-invalid=true]").Each(func(_ int, i *goquery.Selection) {
			got = append(got, i.AttrOr("name", ""))
		})
		if diff := cmp.Diff(tt.fields, got); w.Code != http.StatusUnprocessableEntity || diff != "" {
			t.Errorf("%s: status %d: %s", tt.path, w.Code, diff)
		}
	}
}

func TestAudit(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for i := range 150 {
		s.entries = append(s.entries, fleet.Entry{Seq: int64(150 - i), Actor: "ada", Action: "cordon"})
	}
	w := s.do(call{path: "/api/v1/audit?limit=2", who: "admin"})
	var l struct {
		Items  []fleet.Entry `json:"items"`
		Before int64         `json:"before"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &l); err != nil || len(l.Items) != 2 || l.Before != 149 {
		t.Errorf("%v %+v", err, l)
	}
	w = s.do(call{path: "/api/v1/audit?limit=3", who: "admin", header: map[string]string{"Accept": "application/x-ndjson"}})
	if got := w.Header().Get("Content-Type"); got != "application/x-ndjson" || strings.Count(w.Body.String(), "\n") != 3 {
		t.Errorf("%s: %s", got, w.Body)
	}
	w = s.do(call{path: "/audit", who: "admin", header: html})
	if href, _ := document(t, w).Find("a[rel=next]").Attr("href"); !strings.Contains(href, "before=51") {
		t.Errorf("older entries under %q", href)
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200} {
		if w := s.do(call{path: path}); w.Code != want {
			t.Errorf("%s: status %d", path, w.Code)
		}
	}
	s.ready = errors.New("database at /secret/path: fire")
	w := s.do(call{path: "/readyz"})
	if w.Code != http.StatusServiceUnavailable || strings.Contains(w.Body.String(), "fire") {
		t.Errorf("status %d: %s", w.Code, w.Body)
	}
	if w := s.do(call{path: "/healthz"}); w.Code != http.StatusOK {
		t.Errorf("a process that is not ready is still alive: %d", w.Code)
	}
	if !strings.Contains(s.logs.String(), "/secret/path: fire") {
		t.Error("the cause is not in the log")
	}
}

// Background requests do not count as activity; what a person does, does.
func TestBackground(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		call
		peek bool
	}{
		{call{path: "/nodes", header: html}, false},
		{call{path: "/api/v1/nodes"}, false},
		{call{path: "/nodes/stream", header: hx}, true},
		{call{path: "/api/v1/nodes/events"}, true},
		{call{path: "/clusters/prod/nodes/node-0", header: hx}, true},
		{call{path: "/clusters/prod/nodes/node-0/pods", header: hx}, true},
		{call{method: "POST", path: "/api/v1/batches", header: hx, body: formBody("action", "cordon", "nodes", "prod/node-0")}, false},
	} {
		s := newSite(t)
		tt.who = "operator"
		if w := s.do(tt.call); w.Code >= 300 {
			t.Errorf("%s: status %d", tt.path, w.Code)
		}
		if got := s.called("PeekSession"); got != tt.peek {
			t.Errorf("%s: only looked at the session: %t, want %t", tt.path, got, tt.peek)
		}
	}
}

func TestPanic(t *testing.T) {
	t.Parallel()
	s, err := newServer(newWorld().config(&safeBuffer{}))
	if err != nil {
		t.Fatal(err)
	}
	late := func(w http.ResponseWriter, _ *http.Request) error {
		if _, err := w.Write([]byte("half")); err != nil {
			t.Error(err)
		}
		panic("fire")
	}
	err = s.register([]route{
		{method: "GET", path: "/early", perm: fleet.PermPublic, kind: page, serve: func(http.ResponseWriter, *http.Request) error { panic("fire") }},
		{method: "GET", path: "/late", perm: fleet.PermPublic, kind: stream, serve: late},
		{method: "GET", path: "/late-error", perm: fleet.PermPublic, kind: stream, serve: func(w http.ResponseWriter, r *http.Request) error {
			w.WriteHeader(http.StatusOK)
			return errors.New("fire")
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewServer(s.mux)
	defer ts.Close()
	resp, err := ts.Client().Get(ts.URL + "/early")
	if err != nil {
		t.Fatal(err)
	}
	var body bytes.Buffer
	if _, err := body.ReadFrom(resp.Body); err != nil {
		t.Error(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusInternalServerError || strings.Contains(body.String(), "fire") || resp.Header.Get("Content-Security-Policy") == "" {
		t.Errorf("status %d: %s", resp.StatusCode, body.String())
	}
	for _, path := range []string{"/late", "/late-error"} {
		resp, err := ts.Client().Get(ts.URL + path)
		if err != nil {
			continue // cut before the header got through: as good
		}
		if _, err := body.ReadFrom(resp.Body); err == nil {
			t.Errorf("%s: half an answer looks whole", path)
		}
		resp.Body.Close()
	}
	ts.Client().CloseIdleConnections()
}

// Routing and matching agree for every route, so that 405 and next never disagree with what is served.
func TestRoutes_Match(t *testing.T) {
	t.Parallel()
	s, err := newServer(newWorld().config(&safeBuffer{}))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.register(s.routes()); err != nil {
		t.Fatal(err)
	}
	for _, rt := range s.routes() {
		if got := s.mux.Find(chi.NewRouteContext(), rt.method, fill(rt.path)); got != rt.path {
			t.Errorf("%s %s is served by %q", rt.method, fill(rt.path), got)
		}
	}
}

// Every sentence that a person can be shown is in the catalogue.
func TestErrors_InCatalogue(t *testing.T) {
	t.Parallel()
	for _, k := range kinds {
		if !views.Has("error." + k.name) {
			t.Errorf("error.%s is not in the catalogue", k.name)
		}
	}
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) < 8 {
		t.Fatalf("%v %v", files, err)
	}
	used := regexp.MustCompile(`(?:say\(\s*[\w.]+,|[kK]ey:)\s*"([a-z_.]+)"`)
	n := 0
	for _, f := range files {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		for _, m := range used.FindAllSubmatch(src, -1) {
			n++
			if !views.Has(string(m[1])) {
				t.Errorf("%s: %s is not in the catalogue", f, m[1])
			}
		}
	}
	if n < 15 {
		t.Errorf("only %d keys found", n)
	}
}
