package batch_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/kube-node-manager/kube-node-manager/internal/batch"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// above are the counters of a registry that are not zero, and how often each histogram was told something.
func above(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			n := m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			if n != 0 {
				out[strings.TrimPrefix(f.GetName(), "knm_batch_")+" "+strings.Join(labels, " ")] = n
			}
		}
	}
	return out
}

// doing is a Doer that does what it is told.
type doing struct {
	batch.Doer
	do func(ctx context.Context, t fleet.Task) (fleet.ItemResult, error)
}

func (d doing) Do(ctx context.Context, t fleet.Task) (fleet.ItemResult, error) { return d.do(ctx, t) }

func TestMetrics_Items(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	m := batch.NewMetrics(reg)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	boom := errors.New("boom")
	for _, tt := range []struct {
		ctx context.Context
		res fleet.ItemResult
		err error
	}{
		{t.Context(), fleet.ItemResult{State: fleet.ItemSucceeded}, nil},
		{t.Context(), fleet.ItemResult{State: fleet.ItemSucceeded}, nil},
		{t.Context(), fleet.ItemResult{State: fleet.ItemSkipped}, nil},
		{t.Context(), fleet.ItemResult{Code: fleet.CodeForbidden}, boom},
		{t.Context(), fleet.ItemResult{}, fmt.Errorf("x: %w", fleet.ErrNotRecorded)}, // these come again
		{t.Context(), fleet.ItemResult{}, fmt.Errorf("x: %w", fleet.ErrAuthorityLost)},
		{gone, fleet.ItemResult{}, context.Canceled},
	} {
		d := m.Doer(doing{do: func(context.Context, fleet.Task) (fleet.ItemResult, error) { return tt.res, tt.err }})
		res, err := d.Do(tt.ctx, fleet.Task{Operation: fleet.Operation{Action: fleet.ActionLabels}})
		if !cmp.Equal(res, tt.res) || !errors.Is(err, tt.err) {
			t.Errorf("%+v, %v became %+v, %v", tt.res, tt.err, res, err)
		}
	}
	want := map[string]float64{
		"items_total labels succeeded": 2, "items_total labels skipped": 1, "items_total labels failed": 1, "item_seconds labels": 4,
	}
	if diff := cmp.Diff(want, above(t, reg)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Each answer is counted once, however often it is told, and nothing that is no answer is.
func TestMetrics_Evictions(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	m := batch.NewMetrics(reg)
	pod := func(uid string, s fleet.PodState, attempt, http int, evicted bool) fleet.DrainEvent {
		return fleet.DrainEvent{Pod: &fleet.PodProgress{UID: uid, State: s, Attempt: attempt, HTTP: http, Evicted: evicted}}
	}
	story := []fleet.DrainEvent{
		{NodeState: fleet.DrainEvicting},
		pod("a", fleet.PodQueued, 0, 0, false), pod("a", fleet.PodEvicting, 1, 0, false), pod("a", fleet.PodBlockedByPDB, 1, 429, false),
		pod("a", fleet.PodBlockedByPDB, 1, 429, false), pod("a", fleet.PodEvicting, 2, 429, false), pod("a", fleet.PodTerminating, 2, 201, true),
		pod("a", fleet.PodOverdue, 2, 201, true), pod("a", fleet.PodGone, 2, 201, true),
		pod("b", fleet.PodEvicting, 1, 0, false), pod("b", fleet.PodUnanswered, 1, 0, false), pod("b", fleet.PodEvicting, 2, 0, false),
		pod("b", fleet.PodGone, 2, 404, false),
		pod("c", fleet.PodEvicting, 1, 0, false), pod("c", fleet.PodTerminating, 1, 0, false), pod("c", fleet.PodTerminating, 1, 0, true), // the watch was faster
		pod("d", fleet.PodTerminating, 0, 0, false), pod("d", fleet.PodGone, 0, 0, false), // somebody else's
		pod("e", fleet.PodEvicting, 1, 0, false), pod("e", fleet.PodSkipped, 1, 0, false),
	}
	told := 0
	d := m.Doer(doing{do: func(_ context.Context, t fleet.Task) (fleet.ItemResult, error) {
		for _, e := range story {
			t.Tell(e)
		}
		return fleet.ItemResult{State: fleet.ItemSucceeded}, nil
	}})
	for _, tell := range []func(fleet.DrainEvent){func(fleet.DrainEvent) { told++ }, nil} {
		if _, err := d.Do(t.Context(), fleet.Task{Operation: fleet.Operation{Action: fleet.ActionDrain}, Tell: tell}); err != nil {
			t.Fatal(err)
		}
	}
	if told != len(story) {
		t.Errorf("%d of %d events went on", told, len(story))
	}
	got := above(t, reg)
	for _, k := range []string{"items_total drain succeeded", "item_seconds drain"} {
		delete(got, k)
	}
	want := map[string]float64{
		"evictions_total blocked_by_pdb": 2, "evictions_total accepted": 4, "evictions_total unanswered": 2, "evictions_total gone": 2,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("twice the story (-want +got):\n%s", diff)
	}
}

// A whole batch is counted when it ends, by what it came to.
func TestMetrics_Batches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		reg := prometheus.NewRegistry()
		m := batch.NewMetrics(reg)
		e := f.engine(func(c *batch.Config) { c.Store, c.Doer = m.Store(c.Store), m.Doer(c.Doer) })
		f.run(e)
		f.wait(f.submit(e, spec(names(3)...)))
		time.Sleep(time.Second) // the engine looks again after it has ended the batch
		synctest.Wait()
		want := map[string]float64{
			"batches_total cordon succeeded": 1, "items_total cordon succeeded": 3, "item_seconds cordon": 3,
		}
		if diff := cmp.Diff(want, above(t, reg)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}
