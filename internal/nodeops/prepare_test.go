package nodeops

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apilabels "k8s.io/apimachinery/pkg/labels"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// shelf has one template and one batch.
type shelf struct {
	template fleet.Template
	items    []fleet.Item
}

func (s shelf) Template(_ context.Context, id string, version int) (fleet.Template, error) {
	if id != s.template.ID || version > s.template.Version {
		return fleet.Template{}, fleet.ErrNotFound
	}
	t := s.template
	if version != 0 {
		t.Version = version
	}
	return t, nil
}

func (s shelf) Batch(_ context.Context, id string, _ int64) (fleet.Batch, []fleet.Item, error) {
	if id != "b0" {
		return fleet.Batch{}, nil, fleet.ErrNotFound
	}
	return fleet.Batch{ID: "b0"}, s.items, nil
}

func TestPrepare(t *testing.T) {
	t.Parallel()
	admin := fleet.Caller{UserID: "u-root", Name: "root", Role: fleet.RoleAdmin}
	s := shelf{
		template: fleet.Template{
			ID: "t1", Name: "pool", Version: 3, Labels: []string{"team={{team}}"}, Taints: []string{"team={{team}}:NoSchedule"},
			Values: map[string][]string{"team": {"red", "blue"}},
		},
		items: []fleet.Item{
			{Ref: n1, Edits: []fleet.Edit{{Kind: fleet.EditTaint, Key: "a", Effect: fleet.NoExecute, Before: new(""), Outcome: fleet.EditRemoved}}},
		},
	}
	source := fleet.NodeRef{Cluster: "prod", Name: "n1"}
	for _, tt := range []struct {
		name string
		by   fleet.Caller
		op   fleet.Operation
		want fleet.Operation
		err  error
	}{
		{
			"labels", ada,
			fleet.Operation{Action: fleet.ActionLabels, Labels: []string{" team=red\r", ""}},
			fleet.Operation{Action: fleet.ActionLabels, Labels: []string{"team=red"}, Mode: fleet.EditAdd, OnConflict: fleet.ConflictFail},
			nil,
		},
		{
			"labels where they are", ada,
			fleet.Operation{Action: fleet.ActionLabels, Labels: []string{"team=red"}, Mode: fleet.EditReplace},
			fleet.Operation{Action: fleet.ActionLabels, Labels: []string{"team=red"}, Mode: fleet.EditReplace, OnConflict: fleet.ConflictOverwrite},
			nil,
		},
		{
			"protected, not permitted", ada,
			fleet.Operation{Action: fleet.ActionLabels, Labels: []string{"kubernetes.io/hostname=x"}, AllowProtected: true},
			fleet.Operation{},
			fleet.ErrForbidden,
		},
		{
			"protected, not meant", admin,
			fleet.Operation{Action: fleet.ActionLabels, Labels: []string{"kubernetes.io/hostname=x"}},
			fleet.Operation{},
			fleet.ErrInvalid,
		},
		{
			"protected, meant", admin,
			fleet.Operation{Action: fleet.ActionLabels, Labels: []string{"kubernetes.io/hostname=x"}, AllowProtected: true},
			fleet.Operation{
				Action: fleet.ActionLabels, Labels: []string{"kubernetes.io/hostname=x"}, Mode: fleet.EditAdd, OnConflict: fleet.ConflictFail, AllowProtected: true,
			},
			nil,
		},
		{"NoExecute, not permitted", ada, fleet.Operation{Action: fleet.ActionTaints, Taints: []string{"a:NoExecute"}}, fleet.Operation{}, fleet.ErrForbidden},
		{
			"NoExecute", admin,
			fleet.Operation{Action: fleet.ActionTaints, Taints: []string{"a:NoExecute"}, OnConflict: fleet.ConflictSkip},
			fleet.Operation{Action: fleet.ActionTaints, Taints: []string{"a:NoExecute"}, Mode: fleet.EditAdd, OnConflict: fleet.ConflictSkip},
			nil,
		},
		{
			"copied: no times, no controllers", ada,
			fleet.Operation{Action: fleet.ActionCopy, Source: &source},
			fleet.Operation{
				Action: fleet.ActionCopy, Source: &source, Taints: []string{"gpu=a:NoSchedule"}, Mode: fleet.EditMerge, OnConflict: fleet.ConflictOverwrite,
			},
			nil,
		},
		{
			"template, by default", ada,
			fleet.Operation{Action: fleet.ActionTemplate, Template: &fleet.TemplateUse{ID: "t1"}},
			fleet.Operation{
				Action: fleet.ActionTemplate, Labels: []string{"team=red"}, Taints: []string{"team=red:NoSchedule"}, OnConflict: fleet.ConflictOverwrite,
				Template: &fleet.TemplateUse{ID: "t1", Name: "pool", Version: 3, Values: map[string]string{"team": "red"}},
			},
			nil,
		},
		{
			"template, an old version and a value", ada,
			fleet.Operation{
				Action: fleet.ActionTemplate, Template: &fleet.TemplateUse{ID: "t1", Name: "made up", Version: 2, Values: map[string]string{"team": "blue"}},
				OnConflict: fleet.ConflictFail,
			},
			fleet.Operation{
				Action: fleet.ActionTemplate, Labels: []string{"team=blue"}, Taints: []string{"team=blue:NoSchedule"}, OnConflict: fleet.ConflictFail,
				Template: &fleet.TemplateUse{ID: "t1", Name: "pool", Version: 2, Values: map[string]string{"team": "blue"}},
			},
			nil,
		},
		{"revert, not permitted", ada, fleet.Operation{Action: fleet.ActionRevert, Revert: "b0"}, fleet.Operation{}, fleet.ErrForbidden},
		{"revert", admin, fleet.Operation{Action: fleet.ActionRevert, Revert: "b0"}, fleet.Operation{Action: fleet.ActionRevert, Revert: "b0"}, nil},
		{
			"drain", ada,
			fleet.Operation{Action: fleet.ActionDrain},
			fleet.Operation{Action: fleet.ActionDrain, Drain: &fleet.DrainOptions{GracePeriodSeconds: -1, TimeoutSeconds: 1800}},
			nil,
		},
		{"drain past budgets", ada, fleet.Operation{Action: fleet.ActionDrain, Drain: &fleet.DrainOptions{DisableEviction: true}}, fleet.Operation{}, fleet.ErrForbidden},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, newAPI(node(tainted(gpu, corev1.Taint{Key: "node.kubernetes.io/unschedulable", Effect: corev1.TaintEffectNoSchedule}))))
			r.ops.cfg.Templates, r.ops.cfg.Batches = s, s
			got, err := r.ops.Prepare(t.Context(), tt.by, tt.op, []fleet.NodeRef{n1})
			if tt.err != nil {
				denied := len(r.record.entries) == 1 && r.record.entries[0].Phase == "denied"
				if !errors.Is(err, tt.err) || denied != errors.Is(tt.err, fleet.ErrForbidden) {
					t.Errorf("error is %v, want %v; on record %+v", err, tt.err, r.record.entries)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if err := r.ops.Authorize(t.Context(), tt.by, got, []fleet.NodeRef{n1}); err != nil {
				t.Errorf("what was prepared is not permitted: %v", err)
			}
		})
	}
}

// FuzzPodSelector checks that a selector that passes is one that the API server can be asked with.
func FuzzPodSelector(f *testing.F) {
	for _, s := range []string{"", "app=web", "app in (a, b),tier", "!x", "a=b=c", "a in (", ",", "\x00", "x>5", "a/b/c=d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := drainOptions(&fleet.DrainOptions{PodSelector: s})
		if err != nil {
			return
		}
		sel, err := apilabels.Parse(d.PodSelector)
		if err != nil {
			t.Fatalf("%q passed: %v", s, err)
		}
		if _, err := apilabels.Parse(sel.String()); err != nil {
			t.Errorf("%q is sent as %q: %v", s, sel, err)
		}
	})
}
