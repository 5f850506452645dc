package storetest

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// RunTemplates checks templates and their versions.
func RunTemplates(t *testing.T, open Open) {
	run(t, open, map[string]func(t *testing.T, one, two *store.Store){
		"Versions":           templateVersions,
		"ChangeRace":         templateChangeRace,
		"NamesAreUnique":     templateNames,
		"NameRace":           templateNameRace,
		"AtMost":             templatesAtMost,
		"Delete":             deleteTemplate,
		"NoChangeUnrecorded": templatesAreRecorded,
		"EmptyListsAreSet":   templateEmptyLists,
	})
}

func template(id, name string) fleet.Template {
	return fleet.Template{
		ID: id, Name: name, Version: 1, Note: "for 数据库 pools", Labels: []string{"team={{team}}", "old-"},
		Taints: []string{"pool={{team}}:NoSchedule"}, Values: map[string][]string{"team": {"red", "blue", ""}},
		CreatedBy: "ada", CreatedAt: start,
	}
}

func templateEntry(action, id string) fleet.Entry {
	return fleet.Entry{Actor: "ada", Action: "template." + action, Phase: "event", Outcome: "succeeded", Detail: id}
}

func addTemplate(t *testing.T, s *store.Store, tpl fleet.Template, key string) {
	t.Helper()
	need(t, s.AddTemplate(t.Context(), tpl, key, 100, templateEntry("add", tpl.ID)))
}

func wantTemplate(t *testing.T, s *store.Store, version int, want fleet.Template) {
	t.Helper()
	got, err := s.Template(t.Context(), want.ID, version)
	need(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("template %s, version %d (-want +got):\n%s", want.ID, version, diff)
	}
}

func wantTemplates(t *testing.T, s *store.Store, ids ...string) {
	t.Helper()
	list, err := s.Templates(t.Context())
	need(t, err)
	var got []string
	for _, tpl := range list {
		got = append(got, fmt.Sprintf("%s@%d", tpl.ID, tpl.Version))
	}
	if diff := cmp.Diff(ids, got); diff != "" {
		t.Errorf("templates (-want +got):\n%s", diff)
	}
}

// actions are those of the record, oldest first.
func actions(t *testing.T, s *store.Store) (got []string) {
	t.Helper()
	list, err := s.EntriesAfter(t.Context(), 0, 1000)
	need(t, err)
	for _, e := range list {
		got = append(got, e.Action+" "+e.Detail)
	}
	return got
}

func templateVersions(t *testing.T, one, two *store.Store) {
	first := template("t1", "Pool")
	addTemplate(t, one, first, "pool")
	wantTemplate(t, two, 0, first)
	second := first
	second.Version, second.Name, second.Labels, second.Values = 2, "Big pool", []string{"size=big"}, map[string][]string{"team": {}}
	second.CreatedBy, second.CreatedAt = "bob", start.Add(time.Hour)
	need(t, two.ChangeTemplate(t.Context(), second, "big pool", templateEntry("change", "t1")))
	wantTemplate(t, one, 0, second)
	wantTemplate(t, one, 1, first)
	wantTemplate(t, one, 2, second)
	for _, version := range []int{3, -1} {
		if _, err := one.Template(t.Context(), "t1", version); !errors.Is(err, fleet.ErrNotFound) {
			t.Errorf("version %d: %v", version, err)
		}
	}
	addTemplate(t, one, template("t2", "Äpfel"), "äpfel")
	addTemplate(t, one, template("t3", "app"), "app")
	wantTemplates(t, two, "t3@1", "t1@2", "t2@1")
	for version, want := range map[int]error{1: fleet.ErrConflict, 2: fleet.ErrConflict, 4: fleet.ErrConflict} {
		stale := second
		stale.Version, stale.Note = version, "lost"
		if err := one.ChangeTemplate(t.Context(), stale, "big pool", templateEntry("change", "t1")); !errors.Is(err, want) {
			t.Errorf("as version %d: %v", version, err)
		}
	}
	wantTemplate(t, one, 0, second)
	nobody := template("t9", "x")
	nobody.Version = 2
	if err := one.ChangeTemplate(t.Context(), nobody, "x", templateEntry("change", "t9")); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("one that is not there: %v", err)
	}
	if diff := cmp.Diff([]string{"template.add t1", "template.change t1", "template.add t2", "template.add t3"}, actions(t, one)); diff != "" {
		t.Errorf("the record (-want +got):\n%s", diff)
	}
}

// Of several who change the same version, one wins.
func templateChangeRace(t *testing.T, one, two *store.Store) {
	addTemplate(t, one, template("t1", "pool"), "pool")
	errs := make([]error, 8)
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() {
			next := template("t1", "pool")
			next.Version, next.Note = 2, fmt.Sprint(i)
			errs[i] = []*store.Store{one, two}[i%2].ChangeTemplate(t.Context(), next, "pool", templateEntry("change", fmt.Sprint(i)))
		})
	}
	all.Wait()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner >= 0:
			t.Errorf("%d and %d have both won", winner, i)
		case err == nil:
			winner = i
		case !errors.Is(err, fleet.ErrConflict):
			t.Error(err)
		}
	}
	got, err := two.Template(t.Context(), "t1", 0)
	need(t, err)
	if got.Version != 2 || got.Note != fmt.Sprint(winner) {
		t.Errorf("%d has won, and it is %+v", winner, got)
	}
	if got := actions(t, one); len(got) != 2 {
		t.Errorf("the record: %q", got)
	}
}

func taken(err error) bool {
	e, ok := errors.AsType[*fleet.FieldError](err)
	return ok && e.Field == "name" && e.Key == "error.template_taken"
}

func templateNames(t *testing.T, one, two *store.Store) {
	addTemplate(t, one, template("t1", "pool"), "pool")
	addTemplate(t, one, template("t2", "other"), "other")
	if err := two.AddTemplate(t.Context(), template("t3", "Pool"), "pool", 100, templateEntry("add", "t3")); !taken(err) {
		t.Errorf("a second one: %v", err)
	}
	next := template("t2", "Pool")
	next.Version = 2
	if err := two.ChangeTemplate(t.Context(), next, "pool", templateEntry("change", "t2")); !taken(err) {
		t.Errorf("by changing: %v", err)
	}
	next.ID, next.Name = "t1", "POOL"
	need(t, two.ChangeTemplate(t.Context(), next, "pool", templateEntry("change", "t1"))) // its own
	wantTemplates(t, one, "t2@1", "t1@2")
}

func templateNameRace(t *testing.T, one, two *store.Store) {
	errs := make([]error, 6)
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() {
			errs[i] = []*store.Store{one, two}[i%2].AddTemplate(t.Context(), template(fmt.Sprint("t", i), "pool"), "pool", 100, templateEntry("add", "x"))
		})
	}
	all.Wait()
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !taken(err):
			t.Error(err)
		}
	}
	list, err := one.Templates(t.Context())
	need(t, err)
	if won != 1 || len(list) != 1 {
		t.Errorf("%d have won, and there are %d", won, len(list))
	}
}

func templatesAtMost(t *testing.T, one, two *store.Store) {
	add := func(id string) error {
		return two.AddTemplate(t.Context(), template(id, id), id, 2, templateEntry("add", id))
	}
	need(t, add("a"))
	need(t, add("b"))
	if e, ok := errors.AsType[*fleet.FieldError](add("c")); !ok || e.Key != "error.template_many" {
		t.Errorf("one too many: %v", e)
	}
	need(t, one.DeleteTemplate(t.Context(), "a", start, templateEntry("delete", "a")))
	need(t, add("c"))
	wantTemplates(t, one, "b@1", "c@1")
}

func deleteTemplate(t *testing.T, one, two *store.Store) {
	first := template("t1", "pool")
	addTemplate(t, one, first, "pool")
	need(t, two.DeleteTemplate(t.Context(), "t1", start, templateEntry("delete", "t1")))
	wantTemplates(t, one)
	if _, err := one.Template(t.Context(), "t1", 0); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("the newest of a deleted one: %v", err)
	}
	wantTemplate(t, one, 1, first)
	next := first
	next.Version = 2
	for doing, err := range map[string]error{
		"again":    two.DeleteTemplate(t.Context(), "t1", start, templateEntry("delete", "t1")),
		"changing": two.ChangeTemplate(t.Context(), next, "pool", templateEntry("change", "t1")),
		"another":  two.DeleteTemplate(t.Context(), "t2", start, templateEntry("delete", "t2")),
	} {
		if !errors.Is(err, fleet.ErrNotFound) {
			t.Errorf("%s: %v", doing, err)
		}
	}
	addTemplate(t, one, template("t2", "Pool"), "pool") // the name is free
	need(t, one.DeleteTemplate(t.Context(), "t2", start, templateEntry("delete", "t2")))
	if diff := cmp.Diff([]string{"template.add t1", "template.delete t1", "template.add t2", "template.delete t2"}, actions(t, one)); diff != "" {
		t.Errorf("the record (-want +got):\n%s", diff)
	}
}

// What cannot be recorded is not done.
func templatesAreRecorded(t *testing.T, one, _ *store.Store) {
	first := template("t1", "pool")
	addTemplate(t, one, first, "pool")
	need(t, one.Tx(t.Context(), func(tx *store.Tx) error { // the next entry gets a number that is taken
		_, err := tx.Exec(`UPDATE audit_head SET seq = seq - 1 WHERE id = 1`)
		return err
	}))
	next := first
	next.Version, next.Note = 2, "lost"
	for doing, err := range map[string]error{
		"adding":   one.AddTemplate(t.Context(), template("t2", "x"), "x", 100, templateEntry("add", "t2")),
		"changing": one.ChangeTemplate(t.Context(), next, "pool", templateEntry("change", "t1")),
		"deleting": one.DeleteTemplate(t.Context(), "t1", start, templateEntry("delete", "t1")),
	} {
		if err == nil {
			t.Errorf("%s succeeded without a record", doing)
		}
	}
	wantTemplates(t, one, "t1@1")
	wantTemplate(t, one, 0, first)
}

func templateEmptyLists(t *testing.T, one, _ *store.Store) {
	tpl := template("t1", "pool")
	tpl.Labels, tpl.Taints, tpl.Values = nil, nil, nil
	addTemplate(t, one, tpl, "pool")
	tpl.Labels, tpl.Taints, tpl.Values = []string{}, []string{}, map[string][]string{}
	wantTemplate(t, one, 1, tpl)
}
