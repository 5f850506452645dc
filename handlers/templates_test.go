package handlers

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// A template arrives whole from a form and from JSON, new or as a version of the one in the path.
func TestTemplates_Save(t *testing.T) {
	t.Parallel()
	want := fleet.Template{
		Name: "gpu pool", Note: "for GPUs", Version: 3, Labels: []string{"team={{team}}", "old-"}, Taints: []string{"d=g:NoSchedule"},
		Values: map[string][]string{"team": {"payments", "search"}, "free": {}},
	}
	form := formBody("name", " gpu pool ", "note", "for GPUs", "version", "3", "labels", "team={{team}}\n\nold-", "taints", "d=g:NoSchedule", "values", "team = payments, search,payments\nfree=")
	object := `{"name":"gpu pool","note":"for GPUs","version":3,"labels":["team={{team}}","old-"],"taints":["d=g:NoSchedule"],"values":{"team":["payments","search"],"free":[]}}`
	for _, tt := range []struct {
		method, path, media, body, id string
		status                        int
	}{
		{"POST", "/api/v1/templates", formType, form, "", http.StatusCreated},
		{"POST", "/api/v1/templates", "application/json", object, "", http.StatusCreated},
		{"PUT", "/api/v1/templates/t1", formType, form, "t1", http.StatusOK},
		{"PUT", "/api/v1/templates/t1", "application/json", object, "t1", http.StatusOK},
		{"POST", "/api/v1/templates/t1", formType, form, "t1", http.StatusOK},
	} {
		s := newSite(t)
		w := s.do(call{method: tt.method, path: tt.path, who: "operator", body: tt.body, header: with(curl, "Content-Type", tt.media)})
		if w.Code != tt.status || len(s.saved) != 1 {
			t.Errorf("%s %s: status %d, %d saved: %s", tt.method, tt.path, w.Code, len(s.saved), w.Body)
			continue
		}
		expect := want
		expect.ID = tt.id
		if d := cmp.Diff(expect, s.saved[0]); d != "" {
			t.Errorf("%s %s (-want +got):\n%s", tt.method, tt.path, d)
		}
		if tt.status == http.StatusCreated && w.Header().Get("Location") != "/api/v1/templates/t9" {
			t.Errorf("Location %q", w.Header().Get("Location"))
		}
		var got fleet.Template
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || got.Version != 4 {
			t.Errorf("%v: %s", err, w.Body)
		}
	}
}

func TestTemplates_Refused(t *testing.T) {
	t.Parallel()
	for body, field := range map[string]string{
		formBody("name", "x", "values", "team"): "values", formBody("name", "x", "values", "a=b\na=c"): "values", formBody("name", "x", "colour", "red"): "colour", formBody("name", "x", "version", "new"): "version",
	} {
		s := newSite(t)
		w := s.do(call{method: "POST", path: "/api/v1/templates", who: "operator", body: body, header: curl})
		if p := problemOf(t, w); w.Code != http.StatusUnprocessableEntity || p.Field != field || len(s.saved) > 0 {
			t.Errorf("%s: status %d, field %q, saved %v", body, w.Code, p.Field, s.saved)
		}
	}
	s := newSite(t)
	s.saveErr = fleet.ErrConflict
	if w := s.do(call{method: "PUT", path: "/api/v1/templates/t1", who: "operator", body: "name=x&version=1", header: curl}); w.Code != http.StatusConflict {
		t.Errorf("an old version: status %d", w.Code)
	}
}

func TestTemplates_ReadAndDelete(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	var got struct {
		Items []fleet.Template `json:"items"`
	}
	w := s.do(call{path: "/api/v1/templates", who: "viewer", header: curl})
	if !strings.Contains(w.Body.String(), `"items":[]`) {
		t.Errorf("none: %s", w.Body)
	}
	s.list = []fleet.Template{{ID: "t1", Name: "gpu", Version: 2, Labels: []string{"a=b"}, Values: map[string][]string{"x": {"1", "2"}, "y": {}}}}
	w = s.do(call{path: "/api/v1/templates", who: "viewer", header: curl})
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || len(got.Items) != 1 || got.Items[0].Name != "gpu" {
		t.Errorf("%v: %s", err, w.Body)
	}
	for path, want := range map[string]int{"t1": 200, "t1?version=2": 200, "t1?version=1": 404, "t1?version=x": 422, "nope": 404, "t1?colour=red": 422} {
		if w := s.do(call{path: "/api/v1/templates/" + path, who: "viewer", header: curl}); w.Code != want {
			t.Errorf("%s: status %d", path, w.Code)
		}
	}
	for _, c := range []struct {
		method, path string
		header       map[string]string
		want         int
	}{
		{"DELETE", "/api/v1/templates/t1", curl, 204}, {"POST", "/api/v1/templates/t1/delete", html, 303}, {"DELETE", "/api/v1/templates/nope", curl, 404},
	} {
		if w := s.do(call{method: c.method, path: c.path, who: "operator", header: c.header}); w.Code != c.want {
			t.Errorf("%s %s: status %d", c.method, c.path, w.Code)
		}
	}
	if !s.called("DeleteTemplate t1 by operator") {
		t.Errorf("called %q", s.calls)
	}
}

// The page keeps what was typed when something is wrong with it, and shows a version as its form takes it.
func TestTemplatesPage(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.list = []fleet.Template{{ID: "t1", Name: "gpu", Version: 2, Labels: []string{"a=b", "c-"}, Values: map[string][]string{"x": {"1", "2"}, "y": {}}}}
	d := document(t, s.do(call{path: "/templates?edit=t1", who: "operator", header: html}))
	if got := strings.TrimSpace(d.Find("#f-values").Text()); got != "x=1,2\ny=" || strings.TrimSpace(d.Find("#f-labels").Text()) != "a=b\nc-" || d.Find("[name=version]").AttrOr("value", "") != "2" {
		t.Errorf("the form shows values %q", got)
	}
	s.saveErr = fleet.Invalid("labels", "line 1 is odd")
	w := s.do(call{method: "POST", path: "/api/v1/templates/t1", who: "operator", header: html, body: formBody("name", "gpu 2", "version", "2", "labels", "a==b")})
	d = document(t, w)
	if w.Code != http.StatusUnprocessableEntity || d.Find("#f-labels-error").Text() != "line 1 is odd" || strings.TrimSpace(d.Find("#f-labels").Text()) != "a==b" || d.Find("#f-name").AttrOr("value", "") != "gpu 2" {
		t.Errorf("status %d: %s", w.Code, d.Find("main").Text())
	}
	s.saveErr = nil
	if w := s.do(call{method: "POST", path: "/api/v1/templates", who: "operator", header: html, body: "name=x"}); w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/templates" {
		t.Errorf("status %d to %q", w.Code, w.Header().Get("Location"))
	}
	if d := document(t, s.do(call{path: "/templates", who: "viewer", header: html})); d.Find("main form").Length() != 0 || d.Find("main section").Length() != 1 {
		t.Error("a viewer is offered forms, or sees nothing")
	}
	if w := s.do(call{path: "/templates?edit=nope", who: "operator", header: html}); w.Code != http.StatusNotFound {
		t.Errorf("editing an unknown one: status %d", w.Code)
	}

	// The plan page offers the templates and sends the version that was planned with.
	s.plan = &fleet.Plan{Action: fleet.ActionTemplate, Operation: fleet.Operation{Template: &fleet.TemplateUse{ID: "t1", Version: 2}}, Counts: fleet.PlanCounts{Total: 1, Change: 1}, Digest: "d"}
	v, _ := hidden(t, s, call{method: "POST", path: "/plan", who: "operator", header: html, body: formBody("action", "apply-template", "nodes", "prod/node-0", "template", "t1", "value.x", "2", "value.gone", "z")})
	if v.Get("template") != "t1" || v.Get("template_version") != "2" || v.Get("value.x") != "2" || v.Has("value.gone") {
		t.Errorf("the confirmation sends %v", v)
	}
	if d := cmp.Diff(map[string]string{"x": "2"}, s.planned[0].Template.Values); d != "" {
		t.Errorf("values (-want +got):\n%s", d)
	}
}

// Where no templates are kept, everything else works.
func TestTemplates_None(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(c *Config) { c.Templates = nil })
	for path, want := range map[string]int{"/api/v1/templates": 200, "/api/v1/templates/t1": 404, "/plan?action=apply-template&nodes=prod%2Fnode-0": 200, "/templates": 200} {
		if w := s.do(call{path: path, who: "operator", header: html}); w.Code != want {
			t.Errorf("%s: status %d", path, w.Code)
		}
	}
}
