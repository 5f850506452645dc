package drain

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

func TestOptionsOf(t *testing.T) {
	t.Parallel()
	self := types.NamespacedName{Namespace: "ns", Name: "me"}
	got, err := OptionsOf(fleet.DrainOptions{
		GracePeriodSeconds: 0, TimeoutSeconds: 90, DeleteEmptyDirData: true, Force: true, PodSelector: "app!=db",
		DisableEviction: true, IgnoreOptOut: true, SkipStuckSeconds: 5, WaitReplacements: true,
	}, self)
	if err != nil {
		t.Fatal(err)
	}
	selector := got.Selector
	got.Selector = nil
	want := Options{
		Policy: Policy{
			Consents:  []fleet.Consent{fleet.ConsentUnmanaged, fleet.ConsentForce, fleet.ConsentLocalData, fleet.ConsentOptOut},
			SkipStuck: 5 * time.Second, Self: self, Delete: true,
		},
		Grace: new(int64(0)), Timeout: 90 * time.Second, WaitReplacements: true,
	}
	if diff := cmp.Diff(want, got); diff != "" || selector == nil || selector.String() != "app!=db" {
		t.Errorf("selector %v (-want +got):\n%s", selector, diff)
	}
	got, err = OptionsOf(fleet.DrainOptions{GracePeriodSeconds: -1}, types.NamespacedName{})
	if diff := cmp.Diff(Options{}, got); err != nil || diff != "" {
		t.Errorf("of nothing chosen: %v (-want +got):\n%s", err, diff)
	}
}

func TestOptionsOf_Field(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		field string
		o     fleet.DrainOptions
	}{
		{"grace_period_seconds", fleet.DrainOptions{GracePeriodSeconds: -2, Force: true}},
		{"grace_period_seconds", fleet.DrainOptions{GracePeriodSeconds: 0}},
		{"grace_period_seconds", fleet.DrainOptions{GracePeriodSeconds: math.MaxInt}},
		{"timeout_seconds", fleet.DrainOptions{GracePeriodSeconds: -1, TimeoutSeconds: -1}},
		{"timeout_seconds", fleet.DrainOptions{GracePeriodSeconds: -1, TimeoutSeconds: math.MaxInt}},
		{"skip_wait_for_delete_timeout", fleet.DrainOptions{GracePeriodSeconds: -1, SkipStuckSeconds: -1}},
		{"pod_selector", fleet.DrainOptions{GracePeriodSeconds: -1, PodSelector: "a in ("}},
	} {
		got, err := OptionsOf(tt.o, types.NamespacedName{})
		if f, ok := errors.AsType[*fleet.FieldError](err); !ok || f.Field != tt.field || !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("%+v: %+v, %v; want an error about %s", tt.o, got, err, tt.field)
		}
	}
}
