package handlers

import (
	"net/http"
	"strings"
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Who sees no cluster is told whom to ask, on the pages where everybody arrives, and is offered nothing that cannot work.
func TestPages_WhoSeesNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.callers = map[string]fleet.Caller{"waiting": {Role: fleet.RoleNone, Access: grant("elsewhere-*", fleet.RoleViewer)}}
	for who, live := range map[string]bool{"none": false, "waiting": true} { // a cluster may come into the sight of the second
		for _, path := range []string{"/nodes", "/clusters"} {
			w := s.do(call{path: path, who: who, header: html})
			d := document(t, w)
			if text := d.Find("main").Text(); w.Code != http.StatusOK || !strings.Contains(text, "You do not see any cluster yet") {
				t.Errorf("%s of %s: %d %s", path, who, w.Code, text)
			}
			if got := d.Find("#live").Length() == 1; got != live {
				t.Errorf("%s of %s has a stream: %t", path, who, got)
			}
			if n := d.Find("form#batch, #managed").Length(); n != 0 {
				t.Errorf("%s of %s has %d forms", path, who, n)
			}
			if got := d.Find(`nav a[href="/batches"]`).Length() == 1; got != live {
				t.Errorf("%s of %s leads to batches: %t", path, who, got)
			}
		}
	}
	if text := document(t, s.do(call{path: "/nodes", who: "viewer", header: html})).Find("main").Text(); strings.Contains(text, "You do not see any cluster yet") {
		t.Error("so is somebody who sees everything")
	}
}

// Buttons are those that the person may use there: in the page's cluster, or anywhere on the page of all.
func TestPages_ButtonsByCluster(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.callers = map[string]fleet.Caller{
		"mixed": {Role: fleet.RoleViewer, Access: grant("prod", fleet.RoleOperator)},
		"drain": {Role: fleet.RoleNone, Access: grant("prod", fleet.RoleViewer, fleet.PermNodeDrain)},
	}
	oddPath := "/clusters/" + strings.TrimPrefix(fill("/clusters/{cluster}"), "/clusters/")
	for _, tt := range []struct{ who, path, want string }{
		{"mixed", "/nodes", "cordon uncordon drain labels taints apply-template"},
		{"mixed", "/clusters/prod/nodes", "cordon uncordon drain labels taints apply-template"},
		{"mixed", oddPath + "/nodes", ""},
		{"mixed", "/clusters/prod/nodes/node-0", "cordon drain labels taints apply-template"},
		{"mixed", oddPath + "/nodes/node-0", ""},
		{"drain", "/clusters/prod/nodes", "drain"},
		{"drain", "/clusters/prod/nodes/node-0", "drain"},
		{"viewer", "/nodes", ""},
	} {
		var got []string
		for _, b := range document(t, s.do(call{path: tt.path, who: tt.who, header: html})).Find(`button[name="action"]`).EachIter() {
			got = append(got, b.AttrOr("value", ""))
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s on %s is offered %q, want %q", tt.who, tt.path, got, tt.want)
		}
	}
}

// Of a selection in two clusters, the one where the person may not is named; steering is offered where it works.
func TestBatches_MixedClusters(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.callers = map[string]fleet.Caller{"mixed": {Role: fleet.RoleViewer, Access: grant("prod", fleet.RoleOperator)}}
	w := s.do(call{
		method: "POST", path: "/api/v1/batches", who: "mixed", header: map[string]string{"Accept": "application/json"},
		body: formBody("action", "cordon", "nodes", "prod/node-0\n"+odd+"/node-0"),
	})
	if p := problemOf(t, w); w.Code != http.StatusForbidden || !strings.Contains(p.Detail, odd) || strings.Contains(p.Detail, "prod ") {
		t.Errorf("%d %+v", w.Code, p)
	}
	items := func(clusters ...string) (out []fleet.Item) {
		for _, c := range clusters {
			out = append(out, fleet.Item{Ref: fleet.NodeRef{Cluster: c, Name: "n"}})
		}
		return out
	}
	cordon := fleet.Batch{Operation: fleet.Operation{Action: fleet.ActionCordon}}
	for _, tt := range []struct {
		who  fleet.Caller
		in   []fleet.Item
		want bool
	}{
		{s.callers["mixed"], items("prod", "prod"), true},
		{s.callers["mixed"], items("prod", odd), false},
		{s.callers["mixed"], items(odd), false},
		{s.callers["mixed"], nil, false},
		{fleet.Caller{Role: fleet.RoleOperator}, items(odd), true},
		{fleet.Caller{Role: fleet.RoleOperator}, nil, true},
	} {
		if got := canSteer(tt.who, cordon, tt.in); got != tt.want {
			t.Errorf("%+v may steer %+v: %t", tt.who, tt.in, got)
		}
	}
}
