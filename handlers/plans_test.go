package handlers

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

var twoNodes = []fleet.NodeRef{{Cluster: "prod", Name: "node-0"}, {Cluster: odd, Name: "node-1"}}

const twoLines = "prod/node-0\n" + odd + "/node-1"

// Every field of every action arrives where it belongs, from a form and from JSON alike, for a batch and for a plan.
func TestBatchFields(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		fields []string
		want   fleet.BatchSpec
	}{
		{"cordon", []string{"action", "cordon", "reason", "disk"}, fleet.BatchSpec{Operation: fleet.Operation{Action: fleet.ActionCordon, Reason: "disk"}}},
		{"uncordon", []string{"action", "uncordon", "foreign", "include"}, fleet.BatchSpec{Operation: fleet.Operation{Action: fleet.ActionUncordon, Foreign: fleet.ForeignInclude}}},
		{
			"drain with its defaults",
			[]string{"action", "drain"},
			fleet.BatchSpec{Operation: fleet.Operation{Action: fleet.ActionDrain, Drain: &fleet.DrainOptions{GracePeriodSeconds: -1}}},
		},
		{
			"drain with everything",
			[]string{
				"action", "drain", "grace_period_seconds", "0", "timeout_seconds", "600", "delete_emptydir_data", "true", "force", "on", "pod_selector", " app=web ",
				"disable_eviction", "1", "uncordon_after", "true", "ignore_opt_out", "true", "skip_wait_for_delete_timeout", "2m", "wait_for_replacements", "true",
				"max_concurrent", "3", "per_cluster", "2", "per_zone", "1", "max_unavailable", "4", "max_failures", "5", "pause_between", "30s", "canary", "1", "order", "zone",
				"confirm", " prod ", "plan", "d1",
			},
			fleet.BatchSpec{
				Operation: fleet.Operation{Action: fleet.ActionDrain, Drain: &fleet.DrainOptions{
					TimeoutSeconds: 600, DeleteEmptyDirData: true, Force: true, PodSelector: "app=web", DisableEviction: true, UncordonAfter: true, IgnoreOptOut: true,
					SkipStuckSeconds: 120, WaitReplacements: true,
				}},
				Rollout: fleet.Rollout{
					MaxConcurrent: 3, PerCluster: 2, PerZone: 1, MaxUnavailable: 4, MaxFailures: 5, PauseBetween: 30 * time.Second, Canary: 1, Order: fleet.OrderZone,
				},
				Confirm: "prod", PlanDigest: "d1",
			},
		},
		{
			"labels",
			[]string{"action", "labels", "labels", "a=b\n\n c- ", "mode", "replace", "on_conflict", "overwrite", "allow_protected", "true"},
			fleet.BatchSpec{Operation: fleet.Operation{
				Action: fleet.ActionLabels, Labels: []string{"a=b", "c-"}, Mode: fleet.EditReplace, OnConflict: fleet.ConflictOverwrite, AllowProtected: true,
			}},
		},
		{
			"taints",
			[]string{"action", "taints", "taints", "a=b:NoSchedule\nc:NoExecute-", "mode", "add", "on_conflict", "skip"},
			fleet.BatchSpec{Operation: fleet.Operation{
				Action: fleet.ActionTaints, Taints: []string{"a=b:NoSchedule", "c:NoExecute-"}, Mode: fleet.EditAdd, OnConflict: fleet.ConflictSkip,
			}},
		},
		{
			"copy",
			[]string{"action", "copy-taints", "source", "prod/node-2", "mode", "merge"},
			fleet.BatchSpec{Operation: fleet.Operation{Action: fleet.ActionCopy, Source: &fleet.NodeRef{Cluster: "prod", Name: "node-2"}, Mode: fleet.EditMerge}},
		},
		{
			"template",
			[]string{"action", "apply-template", "template", "t1", "template_version", "3", "value.team", "payments", "value.size", "xl"},
			fleet.BatchSpec{Operation: fleet.Operation{Action: fleet.ActionTemplate, Template: &fleet.TemplateUse{ID: "t1", Version: 3, Values: map[string]string{"team": "payments", "size": "xl"}}}},
		},
		{"revert", []string{"action", "revert", "batch", "b9"}, fleet.BatchSpec{Operation: fleet.Operation{Action: fleet.ActionRevert, Revert: "b9"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			fields := append([]string{"nodes", twoLines}, tt.fields...)
			object := map[string]any{}
			for i := 0; i+1 < len(fields); i += 2 {
				object[fields[i]] = fields[i+1]
				switch fields[i] {
				case "labels", "taints", "nodes":
					object[fields[i]] = slices.Collect(strings.SplitSeq(fields[i+1], "\n"))
				}
			}
			asJSON, err := json.Marshal(object)
			if err != nil {
				t.Fatal(err)
			}
			want := tt.want
			want.Nodes = twoNodes
			for media, body := range map[string]string{formType: formBody(fields...), "application/json": string(asJSON)} {
				s := newSite(t)
				w := s.do(call{method: "POST", path: "/api/v1/batches", who: "operator", body: body, header: with(curl, "Content-Type", media)})
				if w.Code != http.StatusAccepted {
					t.Fatalf("%s: status %d: %s", media, w.Code, w.Body)
				}
				w = s.do(call{method: "POST", path: "/api/v1/plans", who: "operator", body: body, header: with(curl, "Content-Type", media)})
				if w.Code != http.StatusOK {
					t.Fatalf("%s: plan: status %d: %s", media, w.Code, w.Body)
				}
				for _, got := range append(slices.Clone(s.specs), s.planned...) {
					if d := cmp.Diff(want, got); d != "" {
						t.Errorf("%s (-want +got):\n%s", media, d)
					}
				}
				if len(s.specs) != 1 || len(s.planned) != 1 {
					t.Errorf("%s: %d batches and %d plans", media, len(s.specs), len(s.planned))
				}
			}
		})
	}
}

// A field that is wrong in itself, or of another action, is named, and nothing is made of the rest.
func TestBatchFields_Refused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ fields, field, says string }{
		{"action=drain&grace_period_seconds=-2", "grace_period_seconds", "-2"},
		{"action=drain&timeout_seconds=soon", "timeout_seconds", "soon"},
		{"action=drain&force=maybe", "force", "maybe"},
		{"action=drain&force=true&force=false", "force", "more than once"},
		{"action=drain&order=random", "order", "random"},
		{"action=drain&max_concurrent=many", "max_concurrent", "many"},
		{"action=drain&canary=-1", "canary", "-1"},
		{"action=drain&pause_between=later", "pause_between", "later"},
		{"action=drain&labels=a%3Db", "labels", "drain"},
		{"action=cordon&delete_emptydir_data=true", "delete_emptydir_data", "cordon"},
		{"action=cordon&foreign=include", "foreign", "cordon"},
		{"action=uncordon&foreign=some", "foreign", "some"},
		{"action=labels&labels=a%3Db&mode=merge", "mode", "merge"},
		{"action=labels&labels=a%3Db&taints=a%3ANoSchedule", "taints", "labels"},
		{"action=taints&taints=a%3ANoSchedule&on_conflict=ask", "on_conflict", "ask"},
		{"action=copy-taints&source=node-1", "source", "node-1"},
		{"action=copy-taints&source=prod%2Fnode-1&mode=add", "mode", "add"},
		{"action=labels&labels=a%3Db&value.x=1", "value.x", "labels"},
		{"action=apply-template&template=t1&template_version=new", "template_version", "new"},
		{"action=apply-template&template=t1&batch=b1", "batch", "apply-template"},
		{"action=drain&dry_run=perhaps", "dry_run", "perhaps"},
		{"action=drain&colour=red", "colour", ""},
		{"action=evict", "action", "evict"},
		{"reason=x", "action", "revert"},
	} {
		for _, path := range []string{"/api/v1/batches", "/api/v1/plans"} {
			s := newSite(t)
			w := s.do(call{method: "POST", path: path, who: "admin", body: tt.fields + "&nodes=prod%2Fnode-0", header: curl})
			if w.Code != http.StatusUnprocessableEntity {
				t.Errorf("%s %s: status %d: %s", path, tt.fields, w.Code, w.Body)
				continue
			}
			if p := problemOf(t, w); p.Field != tt.field || !strings.Contains(p.Detail, tt.says) {
				t.Errorf("%s %s: field %q, detail %q; want %q saying %q", path, tt.fields, p.Field, p.Detail, tt.field, tt.says)
			}
			if len(s.specs)+len(s.planned) > 0 {
				t.Errorf("%s: something was made of it: %v %v", tt.fields, s.specs, s.planned)
			}
		}
	}
}

// Empty fields of other actions are what forms send; they say nothing.
func TestBatchFields_EmptyIsAbsent(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	w := s.do(call{method: "POST", path: "/api/v1/batches", who: "operator", header: curl, body: "action=cordon&nodes=prod%2Fnode-0&foreign=&labels=%0A&max_concurrent=&order="})
	if w.Code != http.StatusAccepted {
		t.Errorf("status %d: %s", w.Code, w.Body)
	}
}

func TestDryRun(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	w := s.do(call{method: "POST", path: "/api/v1/batches", who: "operator", header: curl, body: formBody("action", "drain", "nodes", twoLines, "dry_run", "true")})
	var got fleet.Plan
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != http.StatusOK {
		t.Fatalf("status %d, %v: %s", w.Code, err, w.Body)
	}
	if got.Action != fleet.ActionDrain || got.Counts.Change != 2 || len(s.specs) != 0 || len(s.planned) != 1 {
		t.Errorf("plan %+v after %d batches and %d plans", got.Counts, len(s.specs), len(s.planned))
	}
	s.planErr = errors.Join(fleet.ErrUnavailable, errors.New("fire"))
	w = s.do(call{method: "POST", path: "/api/v1/batches", who: "operator", header: curl, body: formBody("action", "drain", "nodes", twoLines, "dry_run", "true")})
	if w.Code != http.StatusServiceUnavailable || strings.Contains(w.Body.String(), "fire") {
		t.Errorf("status %d: %s", w.Code, w.Body)
	}
}

// hidden is what the confirmation of a page sends.
func hidden(t *testing.T, s *site, c call) (url.Values, string) {
	t.Helper()
	w := s.do(c)
	d := document(t, w)
	v := url.Values{}
	for _, n := range d.Find("form#confirm [name]").EachIter() {
		value, ok := n.Attr("value")
		if !ok {
			value = strings.TrimPrefix(n.Text(), "\n")
		}
		v.Add(n.AttrOr("name", ""), value)
	}
	return v, d.Find("main").Text()
}

// What is confirmed is what was planned, word for word, whatever else was typed for other actions.
func TestPlanPage_ConfirmsWhatWasPlanned(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	typed := formBody("action", "drain", "nodes", twoLines, "reason", "two\nlines", "delete_emptydir_data", "true", "delete_emptydir_data", "true",
		"timeout_seconds", "600", "labels", "a=b", "mode", "replace", "max_concurrent", "2", "template", "t1", "value.x", "y")
	v, text := hidden(t, s, call{method: "POST", path: "/plan", who: "operator", body: typed, header: html})
	if v.Get("idempotency_key") == "" || v.Get("plan") != "digest-1" {
		t.Fatalf("the confirmation sends %v; the page says %s", v, text)
	}
	w := s.do(call{method: "POST", path: "/api/v1/batches", who: "operator", body: v.Encode(), header: html})
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/batches/b1" {
		t.Fatalf("status %d to %q: %s", w.Code, w.Header().Get("Location"), w.Body)
	}
	want := s.planned[0]
	got := s.specs[0]
	if want.Reason != "two\nlines" || !want.Drain.DeleteEmptyDirData || want.Drain.TimeoutSeconds != 600 {
		t.Errorf("planned %+v", want)
	}
	want.PlanDigest, want.IdempotencyKey = "digest-1", got.IdempotencyKey
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("not what was planned (-planned +sent):\n%s", d)
	}
}

// A wrong field keeps everything that was typed, says what is wrong beside the field, and offers nothing to confirm.
func TestPlanPage_WrongField(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(*world)
		field  string
		body   string
		says   string
	}{
		{"form", nil, "timeout_seconds", formBody("action", "drain", "nodes", twoLines, "timeout_seconds", "soon", "reason", "because"), "soon"},
		{"meaning", func(wd *world) { wd.planErr = fleet.Invalid("labels", "line 1 is odd") }, "labels", formBody("action", "labels", "nodes", twoLines, "labels", "a=b=c", "reason", "because"), "line 1 is odd"},
	} {
		s := newSite(t)
		if tt.change != nil {
			tt.change(s.world)
		}
		w := s.do(call{method: "POST", path: "/plan", who: "operator", body: tt.body, header: html})
		d := document(t, w)
		if w.Code != http.StatusUnprocessableEntity {
			t.Errorf("%s: status %d", tt.name, w.Code)
		}
		if got := d.Find("#f-" + tt.field + "-error").Text(); !strings.Contains(got, tt.says) {
			t.Errorf("%s: beside the field: %q", tt.name, got)
		}
		if got := d.Find("#f-reason").AttrOr("value", ""); got != "because" {
			t.Errorf("%s: the reason is lost: %q", tt.name, got)
		}
		if got := strings.TrimSpace(d.Find("form#plan textarea[name=nodes]").Text()); got != twoLines {
			t.Errorf("%s: the nodes are lost: %q", tt.name, got)
		}
		if d.Find("form#confirm").Length() != 0 {
			t.Errorf("%s: it can be confirmed", tt.name)
		}
	}
}

// What stands in the way of a confirmed plan is told on its page, with a new plan and all that was chosen.
func TestCreateBatch_ShowsThePlanAgain(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		err    error
		status int
		at     string
		says   string
	}{
		{"confirm", fleet.Invalid("confirm", "type prod"), http.StatusUnprocessableEntity, "#f-confirm-error", "type prod"},
		{"plan changed", say(fleet.ErrConflict, "", "the plan has changed"), http.StatusConflict, "main [role=alert]", "the plan has changed"},
		{"busy", &fleet.BusyError{Node: fleet.NodeRef{Cluster: "prod", Name: "node-0"}, Batch: "b9"}, http.StatusConflict, "main [role=alert]", "prod/node-0"},
		{"forbidden", say(fleet.ErrForbidden, "", "not past budgets"), http.StatusForbidden, "main [role=alert]", "not past budgets"},
		{"unavailable", errors.Join(fleet.ErrUnavailable, errors.New("fire")), http.StatusServiceUnavailable, "main [role=alert]", "answer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.submit = tt.err
			s.plan = &fleet.Plan{Action: fleet.ActionDrain, Confirm: "prod", Counts: fleet.PlanCounts{Total: 2, Change: 2}, Digest: "digest-2"}
			w := s.do(call{method: "POST", path: "/api/v1/batches", who: "operator", header: html, body: formBody("action", "drain", "nodes", twoLines, "force", "true", "plan", "digest-1", "confirm", "prd")})
			d := document(t, w)
			if w.Code != tt.status || !strings.Contains(d.Find(tt.at).Text(), tt.says) || strings.Contains(w.Body.String(), "fire") {
				t.Errorf("status %d, says %q", w.Code, d.Find(tt.at).Text())
			}
			if _, on := d.Find("form#plan [name=force]").Attr("checked"); !on || d.Find("form#confirm [name=plan]").AttrOr("value", "") != "digest-2" || d.Find("#f-confirm").AttrOr("value", "") != "prd" {
				t.Error("what was chosen or typed is lost, or the plan is the old one")
			}
			if tt.name == "busy" && d.Find(`main [role=alert] a[href="/batches/b9"]`).Length() != 1 {
				t.Error("the batch that holds the node is not linked")
			}
			// A program is told as before.
			w = s.do(call{method: "POST", path: "/api/v1/batches", who: "operator", header: curl, body: formBody("action", "drain", "nodes", twoLines, "plan", "digest-1")})
			if problemOf(t, w).Status != tt.status {
				t.Errorf("a program gets %d", w.Code)
			}
		})
	}
}

// The form is shown before anything can be planned; a short selection can be linked to; what was typed for the tab before
// is no error.
func TestPlanPage_BeforeThePlan(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, c := range []call{
		{method: "POST", path: "/plan", body: formBody("action", "labels", "nodes", twoLines)},
		{method: "POST", path: "/plan", body: formBody("action", "labels", "nodes", twoLines, "force", "true", "grace_period_seconds", "-1")},
		{path: "/plan?action=taints&nodes=prod%2Fnode-0"},
		{path: "/plan?action=copy-taints&nodes=prod%2Fnode-0"},
		{path: "/plan?action=apply-template&nodes=prod%2Fnode-0"},
		{path: "/plan?action=drain"},
	} {
		c.who, c.header = "operator", html
		w := s.do(c)
		d := document(t, w)
		if w.Code != http.StatusOK || d.Find("form#plan").Length() != 1 || d.Find("form#confirm, .problem").Length() != 0 {
			t.Errorf("%s %s: status %d: %s", c.path, c.body, w.Code, d.Find("main").Text())
		}
	}
	if len(s.planned) != 0 {
		t.Errorf("planned %+v", s.planned)
	}
	w := s.do(call{path: "/plan?action=drain&nodes=prod%2Fnode-0", who: "operator", header: html})
	if len(s.planned) != 1 || document(t, w).Find("form#confirm").Length() != 1 {
		t.Errorf("a link to a plan shows none: %d", w.Code)
	}
	for path, status := range map[string]int{"/plan": 422, "/plan?action=explode": 422, "/plan?action=drain&colour=red": 422} {
		if w := s.do(call{path: path, who: "operator", header: html}); w.Code != status {
			t.Errorf("%s: status %d", path, w.Code)
		}
	}
}

// The plan that a batch was made by can be read by whoever may read the batch.
func TestBatchPlan(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for path, header := range map[string]map[string]string{"/api/v1/batches/b1/plan": curl, "/batches/b1/plan": html, "/api/v1/batches/nope/plan": curl, "/batches/nope/plan": html} {
		if w := s.do(call{path: path, who: "viewer", header: header}); w.Code != http.StatusNotFound {
			t.Errorf("%s without a plan: status %d", path, w.Code)
		}
	}
	s.plan = &fleet.Plan{Action: fleet.ActionDrain, Digest: "d7", Counts: fleet.PlanCounts{Total: 1, Change: 1}}
	var got fleet.Plan
	w := s.do(call{path: "/api/v1/batches/b1/plan", who: "viewer", header: curl})
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || got.Digest != "d7" {
		t.Errorf("%v: %s", err, w.Body)
	}
	d := document(t, s.do(call{path: "/batches/b1/plan", who: "viewer", header: html}))
	if d.Find("#headline").Text() != "1 node will be drained" || d.Find("form#confirm, form#plan").Length() != 0 {
		t.Errorf("the page says %s", d.Find("main").Text())
	}
}
