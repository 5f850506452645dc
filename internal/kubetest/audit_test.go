package kubetest

import (
	"os"
	"path/filepath"
	"testing"
)

func TestAudit_UnfinishedLine(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	write := func(s string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(s); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	log := &Audit{t: t, path: path}
	write(`{"verb":"get"}` + "\n" + `{"verb":`)
	if got := log.Since(0); len(got) != 1 || got[0].Verb != "get" {
		t.Errorf("events = %+v, want the finished one", got)
	}
	mark := log.Mark()
	if got := log.Since(mark); len(got) != 0 {
		t.Errorf("events after the mark = %+v, want none", got)
	}
	write(`"patch"}` + "\n")
	if got := log.Since(mark); len(got) != 1 || got[0].Verb != "patch" {
		t.Errorf("events after the mark = %+v, want the one finished since", got)
	}
}

func TestAudit_DryRun(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		e    AuditEvent
		want bool
	}{
		{"in the query", AuditEvent{Path: "/api/v1/nodes/n?dryRun=All"}, true},
		{"in the options", AuditEvent{Request: []byte(`{"kind":"DeleteOptions","dryRun":["All"]}`)}, true},
		{"in an eviction", AuditEvent{Request: []byte(`{"kind":"Eviction","deleteOptions":{"dryRun":["All"]}}`)}, true},
		{"not", AuditEvent{Path: "/api/v1/nodes/n", Request: []byte(`[{"op":"add"}]`)}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := tt.e.DryRun(); got != tt.want {
				t.Errorf("DryRun() = %v, want %v", got, tt.want)
			}
		})
	}
}
