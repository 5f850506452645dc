package handlers

import (
	"net/http"
	"net/url"
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
