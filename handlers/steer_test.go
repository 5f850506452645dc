package handlers

import (
	"encoding/csv"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Every way to steer reaches its batch in the name of who asked, and each kind of client gets the answer that it can use.
func TestSteering(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ path, body, noted string }{
		{"/api/v1/batches/b1/cancel", "", "Cancel b1 by operator"},
		{"/api/v1/batches/b1/pause", "", "Pause b1 by operator"},
		{"/api/v1/batches/b1/resume", "", "Resume b1 by operator"},
		{"/api/v1/batches/b1/items/0/skip", "", "Skip b1 0 by operator"},
		{"/batches/b1/skip", "item=0", "Skip b1 0 by operator"},
	} {
		for _, c := range []struct {
			header   map[string]string
			status   int
			location string
		}{{curl, http.StatusAccepted, ""}, {html, http.StatusSeeOther, "/batches/b1"}, {hx, http.StatusNoContent, ""}} {
			s := newSite(t)
			w := s.do(call{method: "POST", path: tt.path, who: "operator", body: tt.body, header: c.header})
			if w.Code != c.status || w.Header().Get("Location") != c.location || !s.called(tt.noted) {
				t.Errorf("%s: status %d to %q, called %q", tt.path, w.Code, w.Header().Get("Location"), s.calls)
			}
		}
		for steer, status := range map[error]int{
			fleet.ErrConflict: http.StatusConflict, fleet.ErrForbidden: http.StatusForbidden, fleet.ErrUnavailable: http.StatusServiceUnavailable, fleet.ErrNotFound: http.StatusNotFound,
		} {
			s := newSite(t)
			s.steer = steer
			if w := s.do(call{method: "POST", path: tt.path, who: "operator", body: tt.body, header: curl}); w.Code != status {
				t.Errorf("%s answers %v with %d", tt.path, steer, w.Code)
			}
		}
		asked := map[string]string{"Accept": "application/json"}
		s := newSite(t)
		w := s.do(call{method: "POST", path: strings.Replace(tt.path, "b1", "nope", 1), who: "operator", body: tt.body, header: asked})
		if p := problemOf(t, w); w.Code != http.StatusNotFound || !strings.Contains(p.Detail, "nope") {
			t.Errorf("%s of an unknown batch: %d %q", tt.path, w.Code, p.Detail)
		}
		w = s.do(call{method: "POST", path: tt.path, who: "operator", body: tt.body + "&colour=red", header: asked})
		if p := problemOf(t, w); w.Code != http.StatusUnprocessableEntity || p.Field != "colour" {
			t.Errorf("%s with an unknown field: %d %+v", tt.path, w.Code, p)
		}
	}
}

func TestRetry(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	w := s.do(call{method: "POST", path: "/api/v1/batches/b2/retry", who: "operator", header: with(curl, "Idempotency-Key", "k7")})
	if w.Code != http.StatusAccepted || w.Header().Get("Location") != "/api/v1/batches/b1" || !s.called(`Retry b2 by operator with "k7"`) {
		t.Errorf("status %d to %q, called %q", w.Code, w.Header().Get("Location"), s.calls)
	}
	w = s.do(call{method: "POST", path: "/api/v1/batches/b2/retry", who: "operator", header: html, body: "idempotency_key=k8"})
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/batches/b1" || !s.called(`Retry b2 by operator with "k8"`) {
		t.Errorf("a form: status %d to %q, called %q", w.Code, w.Header().Get("Location"), s.calls)
	}
	w = s.do(call{method: "POST", path: "/api/v1/batches/b2/retry", who: "operator", header: with(curl, "Accept", "text/event-stream")})
	if w.Header().Get("Content-Type") != "text/event-stream" {
		t.Errorf("a stream was asked for and %q came", w.Header().Get("Content-Type"))
	}
	s.steer = fleet.ErrConflict
	if w := s.do(call{method: "POST", path: "/api/v1/batches/b2/retry", who: "operator", header: curl}); w.Code != http.StatusConflict {
		t.Errorf("nothing to repeat: status %d", w.Code)
	}
}

func TestSkip_Malformed(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for path, want := range map[string]int{"/api/v1/batches/b1/items/-1/skip": 404, "/api/v1/batches/b1/items/x/skip": 404, "/api/v1/batches/b1/items/7/skip": 404} {
		if w := s.do(call{method: "POST", path: path, who: "operator", header: curl}); w.Code != want {
			t.Errorf("%s: status %d", path, w.Code)
		}
	}
	for body, want := range map[string]int{"": 422, "item=": 422, "item=x": 422, "item=-1": 422, "item=9": 404} {
		if w := s.do(call{method: "POST", path: "/batches/b1/skip", who: "operator", header: curl, body: body}); w.Code != want {
			t.Errorf("%q: status %d", body, w.Code)
		}
	}
}

// The log is read page by page, from where the last page ended.
func TestBatchLog(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for i := range int64(5) {
		s.events = append(s.events, fleet.BatchEvent{Seq: i + 1, Item: int(i), Event: fleet.DrainEvent{Seq: 1, NodeState: fleet.DrainEvicting}})
	}
	type answer struct {
		Items []fleet.BatchEvent `json:"items"`
		Next  int64              `json:"next"`
		More  bool               `json:"more"`
	}
	var seen []int64
	path := "/api/v1/batches/b1/log?limit=2"
	for range 5 {
		var got answer
		w := s.do(call{path: path, who: "viewer", header: curl})
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Fatalf("status %d, %v: %s", w.Code, err, w.Body)
		}
		for _, e := range got.Items {
			seen = append(seen, e.Seq)
		}
		if !got.More {
			break
		}
		path = "/api/v1/batches/b1/log?limit=2&after=" + string(rune('0'+got.Next))
	}
	if d := cmp.Diff([]int64{1, 2, 3, 4, 5}, seen); d != "" {
		t.Errorf("pages (-want +got):\n%s", d)
	}
	w := s.do(call{path: "/api/v1/batches/b1/log?after=3", who: "viewer", header: map[string]string{"Accept": "application/x-ndjson"}})
	if lines := strings.Split(strings.TrimSpace(w.Body.String()), "\n"); len(lines) != 2 || !strings.Contains(lines[0], `"seq":4`) {
		t.Errorf("lines: %s", w.Body)
	}
	for path, want := range map[string]int{"b1/log?after=-1": 422, "b1/log?after=x": 422, "b1/log?limit=0": 422, "b1/log?colour=red": 422, "nope/log": 404} {
		if w := s.do(call{path: "/api/v1/batches/" + path, who: "viewer", header: curl}); w.Code != want {
			t.Errorf("%s: status %d", path, w.Code)
		}
	}
}

// The report says the same in three forms, and no text of a cluster becomes a formula.
func TestBatchReport(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	began := time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)
	v := "x"
	s.items = []fleet.Item{
		{
			Seq: 0, Ref: fleet.NodeRef{Cluster: "prod", Name: "node-0"}, State: fleet.ItemFailed, Code: fleet.CodeFailed, Error: "=HYPERLINK(\"http://evil\"),\n\"quoted\"", StartedAt: began,
			EndedAt: began.Add(1500 * time.Millisecond), Attempt: 1, Edits: []fleet.Edit{{Kind: fleet.EditTaint, Key: "a", Effect: fleet.NoSchedule, After: &v, Outcome: fleet.EditAdded}},
		},
		{Seq: 1, Ref: fleet.NodeRef{Cluster: "@prod", Name: "node-1"}, UID: "-1", Zone: "+1", State: fleet.ItemSucceeded, Changed: true, Drain: &fleet.DrainProgress{
			State: fleet.DrainPartial, Message: "\tleft", Evicted: 7, Pods: []fleet.PodProgress{{State: fleet.PodGone}, {State: fleet.PodIgnored}, {State: fleet.PodSkipped}},
		}},
	}
	w := s.do(call{path: "/api/v1/batches/b1/report?format=csv", who: "viewer", header: curl})
	if got := w.Header().Get("Content-Disposition"); got != "attachment; filename=batch-b1.csv" || w.Header().Get("Content-Type") != "text/csv; charset=utf-8" {
		t.Errorf("headers %q, %q", got, w.Header().Get("Content-Type"))
	}
	rows, err := csv.NewReader(w.Body).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	want := [][]string{
		reportColumns,
		{
			"b1", "cordon", "0", "prod", "node-0", "", "", "failed", "failed", `'=HYPERLINK("http://evil"),\n"quoted"`, "false", "1", "2026-03-14T12:00:00Z",
			"2026-03-14T12:00:01.5Z", "1.500", `taint a:NoSchedule: - → "x"`, "", "", "", "",
		},
		{"b1", "cordon", "1", "'@prod", "node-1", "'-1", "'+1", "succeeded", "", "", "true", "0", "", "", "", "", "partial", `'\tleft`, "7", "1"},
	}
	if d := cmp.Diff(want, rows); d != "" {
		t.Errorf("rows (-want +got):\n%s", d)
	}

	var whole struct {
		ID    string           `json:"id"`
		Items []map[string]any `json:"items"`
	}
	w = s.do(call{path: "/api/v1/batches/b1/report", who: "viewer", header: curl})
	if err := json.Unmarshal(w.Body.Bytes(), &whole); err != nil || whole.ID != "b1" || len(whole.Items) != 2 || w.Header().Get("Content-Disposition") != "attachment; filename=batch-b1.json" {
		t.Errorf("%v: %s", err, w.Body)
	}
	w = s.do(call{path: "/api/v1/batches/b1/report?format=ndjson", who: "viewer", header: curl})
	lines := strings.Split(strings.TrimSpace(w.Body.String()), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], `"id":"b1"`) || !strings.Contains(lines[2], `"node":"node-1"`) {
		t.Errorf("lines: %q", lines)
	}
	for path, want := range map[string]int{"b1/report?format=pdf": 422, "b1/report?colour=red": 422, "nope/report": 404} {
		if w := s.do(call{path: "/api/v1/batches/" + path, who: "viewer", header: curl}); w.Code != want {
			t.Errorf("%s: status %d", path, w.Code)
		}
	}
}

// The pods of a node are a fragment for the row and a page for a browser without scripts.
func TestItemPods(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.items = []fleet.Item{{Seq: 3, Ref: fleet.NodeRef{Cluster: "prod", Name: "node-3"}, State: fleet.ItemRunning, Drain: &fleet.DrainProgress{
		State: fleet.DrainEvicting, Pods: []fleet.PodProgress{{Namespace: "shop", Name: "web-1", State: fleet.PodBlockedByPDB, Budgets: []string{"web"}}},
	}}}
	w := s.do(call{path: "/batches/b1/items/3/pods", who: "viewer", header: hx})
	if w.Code != http.StatusOK || strings.Contains(w.Body.String(), "<html") || !strings.Contains(w.Body.String(), "web-1") {
		t.Errorf("fragment: status %d: %s", w.Code, w.Body)
	}
	d := document(t, s.do(call{path: "/batches/b1/items/3/pods", who: "viewer", header: html}))
	if d.Find("h1").Text() != "prod/node-3" || !strings.Contains(d.Find("main").Text(), "web-1") {
		t.Errorf("page: %s", d.Find("main").Text())
	}
	for path, want := range map[string]int{"b1/items/0/pods": 404, "b1/items/x/pods": 404, "nope/items/3/pods": 404} {
		if w := s.do(call{path: "/batches/" + path, who: "viewer", header: html}); w.Code != want {
			t.Errorf("%s: status %d", path, w.Code)
		}
	}
}

// A viewer sees everything of a batch and is offered nothing.
func TestBatchPage_Steering(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for who, want := range map[string]int{"viewer": 0, "operator": 5} {
		d := document(t, s.do(call{path: "/batches/b1", who: who, header: html}))
		if n := d.Find("main form").Length(); n != want {
			t.Errorf("%s is offered %d forms, want %d", who, n, want)
		}
		if d.Find(`a[href="/api/v1/batches/b1/report?format=csv"]`).Length() != 1 {
			t.Errorf("%s has no report", who)
		}
	}
}
