package batch_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/batch"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// perCluster permits what the person may do in each cluster.
type perCluster struct{ permit }

func (perCluster) Authorize(_ context.Context, by fleet.Caller, op fleet.Operation, refs []fleet.NodeRef) error {
	p, _ := op.Action.Permission()
	for _, ref := range refs {
		if !by.May(p, ref.Cluster) {
			return &fleet.DeniedError{Cluster: ref.Cluster, Permission: p}
		}
	}
	return nil
}

func (p perCluster) Prepare(ctx context.Context, by fleet.Caller, op fleet.Operation, refs []fleet.NodeRef) (fleet.Operation, error) {
	return op, p.Authorize(ctx, by, op, refs)
}

// grantee is a person with a role in the clusters of a scope and nowhere else.
func grantee(name string, role fleet.Role, scope fleet.Scope) fleet.Caller {
	return fleet.Caller{
		UserID: "u-" + name, Name: name, Role: fleet.RoleNone, Session: "s-" + name, Via: "session",
		Access: fleet.NewAccess([]fleet.Grant{{Scope: scope, Role: role}}, nil),
	}
}

func within(clusters ...string) fleet.BatchSpec {
	s := fleet.BatchSpec{Operation: fleet.Operation{Action: fleet.ActionCordon, Reason: "r"}}
	for i, c := range clusters {
		s.Nodes = append(s.Nodes, fleet.NodeRef{Cluster: c, Name: names(len(clusters))[i]})
	}
	return s
}

// said is an error without the names that the caller brought along.
func said(err error, names ...string) string {
	if err == nil {
		return ""
	}
	text := err.Error()
	for _, n := range names {
		text = strings.ReplaceAll(text, n, "…")
	}
	return text
}

// A batch is there for those who see every cluster of it. For everybody else each call answers as for a batch, and a
// cluster, that there is not.
func TestEngine_BatchesOutOfSight(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	f := newFixture(t)
	e := f.engine(func(c *batch.Config) { c.Authorizer = perCluster{} })
	pia, vic := grantee("pia", fleet.RoleOperator, "prod"), grantee("vic", fleet.RoleViewer, "*")
	blind := grantee("blind", fleet.RoleAdmin, "elsewhere-*")
	own := f.submit(e, spec("a1"))
	both := f.submit(e, within("prod", "staging"))
	other := f.submit(e, fleet.BatchSpec{
		Operation: fleet.Operation{Action: fleet.ActionCordon}, Nodes: []fleet.NodeRef{{Cluster: "staging", Name: "b1"}},
	})
	copied := f.submit(e, fleet.BatchSpec{
		Operation: fleet.Operation{Action: fleet.ActionCopy, Source: &fleet.NodeRef{Cluster: "staging", Name: "n9"}},
		Nodes:     []fleet.NodeRef{{Cluster: "prod", Name: "c1"}},
	})

	for _, tt := range []struct {
		who  fleet.Caller
		want []string
	}{
		{ada, []string{copied, other, both, own}},
		{vic, []string{copied, other, both, own}},
		{pia, []string{own}},
		{blind, nil},
		{fleet.Caller{Role: fleet.RoleNone}, nil},
		{fleet.Caller{}, nil},
	} {
		list, err := e.List(ctx, tt.who, fleet.BatchFilter{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, b := range list {
			got = append(got, b.ID)
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s lists (-want +got):\n%s", tt.who.Name, d)
		}
	}

	calls := map[string]func(fleet.Caller, string) error{
		"Batch":     func(by fleet.Caller, id string) error { _, _, err := e.Batch(ctx, by, id); return err },
		"BatchPlan": func(by fleet.Caller, id string) error { _, err := e.BatchPlan(ctx, by, id); return err },
		"Events":    func(by fleet.Caller, id string) error { _, err := e.Events(ctx, by, id, 0, 10); return err },
		"Cancel":    func(by fleet.Caller, id string) error { return e.Cancel(ctx, by, id) },
		"Pause":     func(by fleet.Caller, id string) error { return e.Pause(ctx, by, id) },
		"Resume":    func(by fleet.Caller, id string) error { return e.Resume(ctx, by, id) },
		"Skip":      func(by fleet.Caller, id string) error { return e.Skip(ctx, by, id, 0) },
		"Retry":     func(by fleet.Caller, id string) error { _, err := e.Retry(ctx, by, id, ""); return err },
		"Sees":      func(by fleet.Caller, id string) error { return e.Sees(ctx, by, id) },
		"Plan of a revert": func(by fleet.Caller, id string) error {
			_, err := e.Plan(ctx, by, fleet.BatchSpec{Operation: fleet.Operation{Action: fleet.ActionRevert, Revert: id}})
			return err
		},
		"Submit of a revert": func(by fleet.Caller, id string) error {
			_, err := e.Submit(ctx, by, fleet.BatchSpec{Operation: fleet.Operation{Action: fleet.ActionRevert, Revert: id}})
			return err
		},
	}
	for name, call := range calls {
		nothing := call(pia, "01NOTHING")
		if name != "Plan of a revert" && name != "Submit of a revert" && !errors.Is(nothing, fleet.ErrNotFound) {
			t.Errorf("%s of nothing: %v", name, nothing)
		}
		for _, id := range []string{both, other, copied} {
			for _, who := range []fleet.Caller{pia, blind} {
				if err := call(who, id); said(err, id) != said(nothing, "01NOTHING") {
					t.Errorf("%s by %s: %q, and of a batch that there is not %q", name, who.Name, said(err, id), said(nothing, "01NOTHING"))
				}
			}
		}
	}
	for _, id := range []string{both, other, copied} {
		if b, _ := f.read(id); b.State != fleet.BatchQueued || b.PausedBy != "" || b.CancelledBy != "" || b.Counts.Queued != b.Counts.Total {
			t.Errorf("batch %s was steered: %+v", id, b)
		}
	}
	// Who sees it and may not do it is told so.
	if err := e.Pause(ctx, vic, both); !errors.Is(err, fleet.ErrForbidden) {
		t.Errorf("a viewer pauses: %v", err)
	}
	if err := e.Pause(ctx, pia, own); err != nil {
		t.Errorf("an operator of the cluster pauses: %v", err)
	}
}

// Requests that name a cluster out of sight are answered as those that name none.
func TestEngine_RequestsOutOfSight(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	f := newFixture(t)
	e := f.engine(func(c *batch.Config) { c.Authorizer = perCluster{} })
	pia := grantee("pia", fleet.RoleOperator, "prod")
	for _, role := range []fleet.Role{fleet.RoleOperator, fleet.RoleViewer} {
		by := grantee("pia", role, "prod")
		for name, make := range map[string]func(cluster string) fleet.BatchSpec{
			"nodes":      func(c string) fleet.BatchSpec { return within("prod", c) },
			"nodes only": func(c string) fleet.BatchSpec { return within(c) },
			"source": func(c string) fleet.BatchSpec {
				s := within("prod")
				s.Operation = fleet.Operation{Action: fleet.ActionCopy, Source: &fleet.NodeRef{Cluster: c, Name: "n1"}}
				return s
			},
		} {
			_, unknown := e.Plan(ctx, by, make("nowhere"))
			_, unseen := e.Plan(ctx, by, make("staging"))
			if _, ok := errors.AsType[*fleet.FieldError](unknown); !ok || said(unknown, "nowhere") != said(unseen, "staging") {
				t.Errorf("%s, plan: of an unknown cluster %v, of one out of sight %v", name, unknown, unseen)
			}
			_, unknown = e.Submit(ctx, by, make("nowhere"))
			_, unseen = e.Submit(ctx, by, make("staging"))
			if _, ok := errors.AsType[*fleet.FieldError](unknown); !ok || said(unknown, "nowhere") != said(unseen, "staging") {
				t.Errorf("%s, submit: of an unknown cluster %v, of one out of sight %v", name, unknown, unseen)
			}
		}
	}
	if _, err := e.Submit(ctx, grantee("vic", fleet.RoleViewer, "*"), within("prod", "staging")); !errors.Is(err, fleet.ErrForbidden) {
		t.Errorf("a viewer submits: %v", err)
	}
	two := pia
	two.Access = fleet.NewAccess([]fleet.Grant{{Scope: "prod", Role: fleet.RoleOperator}, {Scope: "staging", Role: fleet.RoleViewer}}, nil)
	_, err := e.Submit(ctx, two, within("prod", "staging"))
	if denied, ok := errors.AsType[*fleet.DeniedError](err); !ok || denied.Cluster != "staging" {
		t.Errorf("a mixed selection is refused with %v, want one that names staging", err)
	}
}

// A batch that somebody sees names none that they do not: neither the one that it repeats, nor the one that holds a node.
func TestEngine_OtherBatchesAreNotNamed(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	f := newFixture(t)
	e := f.engine(func(c *batch.Config) { c.Authorizer = perCluster{} })
	stop := f.run(e)
	pia := grantee("pia", fleet.RoleOperator, "prod")
	f.world.fail = func(ref fleet.NodeRef) error {
		if ref.Cluster == "prod" {
			return fleet.ErrUnavailable
		}
		return nil
	}
	parent := f.submit(e, within("prod", "staging"))
	f.wait(parent)
	again, err := e.Retry(ctx, ada, parent, "")
	if err != nil {
		t.Fatal(err)
	}
	f.wait(again.ID)
	for _, tt := range []struct {
		who  fleet.Caller
		want string
	}{{ada, parent}, {pia, ""}} {
		b, _, err := e.Batch(ctx, tt.who, again.ID)
		if err != nil || b.Parent != tt.want {
			t.Errorf("%s sees parent %q, want %q: %v", tt.who.Name, b.Parent, tt.want, err)
		}
		list, err := e.List(ctx, tt.who, fleet.BatchFilter{Limit: 1})
		if err != nil || len(list) != 1 || list[0].ID != again.ID || list[0].Parent != tt.want {
			t.Errorf("%s lists %+v, want parent %q: %v", tt.who.Name, list, tt.want, err)
		}
		text, err := json.Marshal(list)
		if err != nil || tt.want == "" && strings.Contains(string(text), parent) {
			t.Errorf("%s reads %s: %v", tt.who.Name, text, err)
		}
	}
	stop() // and so what follows stays
	holder := f.submit(e, within("prod", "staging"))
	for _, tt := range []struct {
		who  fleet.Caller
		want string
	}{{ada, holder}, {pia, ""}} {
		_, err := e.Submit(ctx, tt.who, spec("n0"))
		if busy, ok := errors.AsType[*fleet.BusyError](err); !ok || busy.Batch != tt.want || tt.want == "" && strings.Contains(err.Error(), holder) {
			t.Errorf("%s is told %v, want batch %q", tt.who.Name, err, tt.want)
		}
	}
}
