package templates_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kube-node-manager/kube-node-manager/internal/audit"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/marks"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
	"github.com/kube-node-manager/kube-node-manager/internal/templates"
	"github.com/kube-node-manager/kube-node-manager/views"
)

var (
	ada = fleet.Caller{UserID: "u1", Name: "ada", Role: fleet.RoleOperator, Session: "s1", Via: "session", Addr: "192.0.2.1"}
	vic = fleet.Caller{UserID: "u2", Name: "vic", Role: fleet.RoleViewer, Via: "token"}
)

func check(labels, taints []string) error {
	_, labelErr := marks.ParseLabels("labels", labels)
	_, taintErr := marks.ParseTaints("taints", taints)
	return errors.Join(labelErr, taintErr)
}

// newBook is a book over a real store, and its record.
func newBook(t *testing.T) (*templates.Book, *audit.Log) {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: t.TempDir(), Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	log := audit.New(s, slog.New(slog.DiscardHandler))
	return templates.New(templates.Config{Store: s, Audit: log}), log
}

func pool() fleet.Template {
	return fleet.Template{
		Name: "  GPU   pool ", Note: " for training\r\n ", Labels: []string{" team={{ team }} ", "", "old-", "size={{size}}-{{team}}"},
		Taints: []string{"gpu={{team}}:NoSchedule", "gpu:NoExecute-"},
		Values: map[string][]string{"team": {"red", " blue "}, "size": nil},
	}
}

func record(t *testing.T, log *audit.Log) (got []string) {
	t.Helper()
	entries, err := log.Entries(t.Context(), fleet.AuditFilter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		got = append([]string{fmt.Sprintf("%s %s %s %s %s", e.Actor, e.Via, e.Action, e.Phase, e.Outcome)}, got...)
	}
	return got
}

func TestBook_Life(t *testing.T) {
	t.Parallel()
	b, log := newBook(t)
	ctx := t.Context()
	first, err := b.SaveTemplate(ctx, ada, pool())
	if err != nil {
		t.Fatal(err)
	}
	want := fleet.Template{
		Name: "GPU pool", Note: "for training", Version: 1, Labels: []string{"team={{team}}", "old-", "size={{size}}-{{team}}"},
		Taints: []string{"gpu={{team}}:NoSchedule", "gpu:NoExecute-"},
		Values: map[string][]string{"team": {"red", "blue"}, "size": {}}, CreatedBy: "ada",
	}
	if diff := cmp.Diff(want, first, cmpopts.IgnoreFields(fleet.Template{}, "ID", "CreatedAt")); diff != "" {
		t.Errorf("made (-want +got):\n%s", diff)
	}
	if got, err := b.Template(ctx, first.ID, 0); err != nil || !cmp.Equal(first, got) {
		t.Errorf("read: %v, %s", err, cmp.Diff(first, got))
	}
	same := pool()
	same.ID, same.Version = first.ID, 1
	if got, err := b.SaveTemplate(ctx, ada, same); err != nil || got.Version != 1 {
		t.Errorf("saved without a change: %+v, %v", got, err)
	}
	next := first
	next.Name, next.Labels, next.Values = "gpu POOL", []string{"team={{team}}"}, map[string][]string{"team": {"red"}}
	second, err := b.SaveTemplate(ctx, ada, next)
	if err != nil || second.Version != 2 || second.ID != first.ID {
		t.Fatalf("changed: %+v, %v", second, err)
	}
	next.Note = "lost"
	if _, err := b.SaveTemplate(ctx, ada, next); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("changed what was version 1: %v", err)
	}
	if got, err := b.Template(ctx, first.ID, 1); err != nil || !cmp.Equal(first, got) {
		t.Errorf("version 1 is not what it was: %v, %s", err, cmp.Diff(first, got))
	}
	if _, err := b.SaveTemplate(ctx, ada, pool()); field(err) != "name error.template_taken" {
		t.Errorf("the same name in other letters: %v", err)
	}
	if err := b.DeleteTemplate(ctx, ada, first.ID); err != nil {
		t.Error(err)
	}
	if list, err := b.Templates(ctx); err != nil || len(list) != 0 {
		t.Errorf("after deleting: %v, %v", list, err)
	}
	if err := b.DeleteTemplate(ctx, ada, first.ID); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("deleted twice: %v", err)
	}
	unknown := pool()
	unknown.ID = "none"
	if _, err := b.SaveTemplate(ctx, ada, unknown); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("changed one that is not there: %v", err)
	}
	if diff := cmp.Diff([]string{
		"ada session template.add event succeeded", "ada session template.change event succeeded",
		"ada session template.delete event succeeded",
	}, record(t, log)); diff != "" {
		t.Errorf("the record (-want +got):\n%s", diff)
	}
}

func TestBook_NeedsThePermission(t *testing.T) {
	t.Parallel()
	b, log := newBook(t)
	made, err := b.SaveTemplate(t.Context(), ada, pool())
	if err != nil {
		t.Fatal(err)
	}
	change := made
	change.Note = "x"
	_, changed := b.SaveTemplate(t.Context(), vic, change)
	_, added := b.SaveTemplate(t.Context(), vic, pool())
	for doing, err := range map[string]error{"add": added, "change": changed, "delete": b.DeleteTemplate(t.Context(), vic, made.ID)} {
		if !errors.Is(err, fleet.ErrForbidden) {
			t.Errorf("%s: %v", doing, err)
		}
	}
	if got, err := b.Template(t.Context(), made.ID, 0); err != nil || got.Version != 1 {
		t.Errorf("afterwards: %+v, %v", got, err)
	}
	denied := 0
	for _, line := range record(t, log) {
		if strings.HasPrefix(line, "vic token template.") && strings.HasSuffix(line, " denied denied") {
			denied++
		}
	}
	if denied != 3 {
		t.Errorf("%d refusals are on record, want 3", denied)
	}
}

// field is what is wrong and why, "" if that is not known.
func field(err error) string {
	e, ok := errors.AsType[*fleet.FieldError](err)
	if !ok {
		return ""
	}
	return strings.TrimSpace(e.Field + " " + e.Key)
}

func TestBook_RefusesWhatIsNoTemplate(t *testing.T) {
	t.Parallel()
	b, _ := newBook(t)
	lines := func(n int) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprintf("k%d=v", i))
		}
		return out
	}
	for _, tt := range []struct {
		name string
		with func(t *fleet.Template)
		want string
	}{
		{"no name", func(t *fleet.Template) { t.Name = " \t" }, "name error.template_name"},
		{"long name", func(t *fleet.Template) { t.Name = strings.Repeat("ü", 65) }, "name error.template_name"},
		{"name turns the text", func(t *fleet.Template) { t.Name = "a\u202eb" }, "name error.template_name"},
		{"name is not UTF-8", func(t *fleet.Template) { t.Name = "a\xff" }, "name error.template_name"},
		{"long note", func(t *fleet.Template) { t.Note = strings.Repeat("x", 501) }, "note error.token_name"},
		{"note with NUL", func(t *fleet.Template) { t.Note = "a\x00b" }, "note error.token_name"},
		{"nothing", func(t *fleet.Template) { t.Labels, t.Taints, t.Values = []string{""}, nil, nil }, "labels error.template_empty"},
		{"many labels", func(t *fleet.Template) { t.Labels = lines(65) }, "labels error.template_lines"},
		{"many taints", func(t *fleet.Template) { t.Taints = lines(65) }, "taints error.template_lines"},
		{"long line", func(t *fleet.Template) { t.Labels = append(t.Labels, strings.Repeat("x", 513)) }, "labels error.template_line"},
		{"two lines in one", func(t *fleet.Template) { t.Labels = append(t.Labels, "a=b\nc=d") }, "labels error.template_line"},
		{"label grammar", func(t *fleet.Template) { t.Labels = append(t.Labels, "-bad=x") }, "labels"},
		{"taint grammar", func(t *fleet.Template) { t.Taints = append(t.Taints, "a=b:Never") }, "taints"},
		{"placeholder in a key", func(t *fleet.Template) { t.Labels = append(t.Labels, "a{{team}}=b") }, "labels error.template_place"},
		{"placeholder in a removal", func(t *fleet.Template) { t.Labels = append(t.Labels, "{{team}}-") }, "labels error.template_place"},
		{"placeholder in an effect", func(t *fleet.Template) { t.Taints = append(t.Taints, "a=b:{{team}}") }, "taints error.template_place"},
		{"placeholder in a taint's key", func(t *fleet.Template) { t.Taints = append(t.Taints, "{{team}}:NoSchedule") }, "taints error.template_place"},
		{"half a placeholder", func(t *fleet.Template) { t.Labels = append(t.Labels, "a={{team}") }, "labels error.template_brace"},
		{"a name in capitals", func(t *fleet.Template) { t.Labels = append(t.Labels, "a={{Team}}") }, "labels error.template_brace"},
		{"a name with a dot", func(t *fleet.Template) { t.Labels = append(t.Labels, "a={{a.b}}") }, "labels error.template_brace"},
		{"nested", func(t *fleet.Template) { t.Labels = append(t.Labels, "a={{{{team}}}}") }, "labels error.template_brace"},
		{"undeclared", func(t *fleet.Template) { t.Labels = append(t.Labels, "a={{zone}}") }, "value.zone error.template_undeclared"},
		{"unused", func(t *fleet.Template) { t.Values["zone"] = []string{"a"} }, "value.zone error.template_unused"},
		{"unused and odd", func(t *fleet.Template) { t.Values["\x00}}"] = nil }, "value.? error.template_unused"},
		{"value twice", func(t *fleet.Template) { t.Values["team"] = []string{"a", "b", " a"} }, "value.team error.template_value"},
		{"long value", func(t *fleet.Template) { t.Values["team"] = []string{strings.Repeat("x", 64)} }, "value.team error.template_value"},
		{"value is a placeholder", func(t *fleet.Template) { t.Values["team"] = []string{"{{size}}"} }, "value.team error.template_value"},
		{"value that no label has", func(t *fleet.Template) { t.Values["team"] = []string{"red", "a b"} }, "labels"},
		{"many values", func(t *fleet.Template) {
			t.Values["team"] = nil
			for i := range 65 {
				t.Values["team"] = append(t.Values["team"], fmt.Sprint("v", i))
			}
		}, "value.team error.template_values"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tpl := pool()
			tt.with(&tpl)
			_, err := b.SaveTemplate(t.Context(), ada, tpl)
			if got := field(err); got != tt.want {
				t.Errorf("%q: %v, want %q", got, err, tt.want)
			}
			if e, ok := errors.AsType[*fleet.FieldError](err); ok && e.Key != "" {
				if !views.Has(e.Key) {
					t.Errorf("%s is not in the catalogue", e.Key)
				}
				if strings.Contains(e.Message, "%!") {
					t.Errorf("the sentence is %q", e.Message)
				}
			}
		})
	}
	if list, err := b.Templates(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// What is saved can be applied: marks finds the same placeholders, and whatever may be chosen has the grammar.
func TestBook_WhatIsKeptCanBeApplied(t *testing.T) {
	t.Parallel()
	b, _ := newBook(t)
	made, err := b.SaveTemplate(t.Context(), ada, pool())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"size", "team"}, marks.Placeholders(append(made.Labels, made.Taints...)...)); diff != "" {
		t.Error(diff)
	}
	for _, team := range made.Values["team"] {
		chosen, err := marks.Choose(made, map[string]string{"size": "xl", "team": team})
		if err != nil {
			t.Fatal(err)
		}
		if err := check(marks.Fill(made.Labels, chosen), marks.Fill(made.Taints, chosen)); err != nil {
			t.Errorf("%s: %v", team, err)
		}
	}
}

// brokenStore answers every question with an error.
type brokenStore struct{ templates.Store }

var errBroken = errors.New("broken")

func (brokenStore) Template(context.Context, string, int) (fleet.Template, error) {
	return fleet.Template{}, errBroken
}

func (brokenStore) AddTemplate(context.Context, fleet.Template, string, int, fleet.Entry) error {
	return errBroken
}

func TestBook_TellsWhatTheStoreSays(t *testing.T) {
	t.Parallel()
	b := templates.New(templates.Config{Store: brokenStore{}})
	change := pool()
	change.ID = "t1"
	_, added := b.SaveTemplate(t.Context(), ada, pool())
	_, changed := b.SaveTemplate(t.Context(), ada, change)
	for doing, err := range map[string]error{"add": added, "change": changed, "delete": b.DeleteTemplate(t.Context(), ada, "t1")} {
		if !errors.Is(err, errBroken) {
			t.Errorf("%s: %v", doing, err)
		}
	}
}
