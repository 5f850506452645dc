package batch

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Metrics count what batches come to. They stand between an engine and what it works with.
type Metrics struct {
	batches, items, evictions *prometheus.CounterVec
	seconds                   *prometheus.HistogramVec
}

// The labels of metrics.
const (
	labelAction  = "action"
	labelOutcome = "outcome"
	labelAnswer  = "answer"
)

// accepted is the answer to an eviction that the API server took.
const accepted = "accepted"

// answers are the others, as the state that the pod has then.
func answers() []fleet.PodState {
	return []fleet.PodState{
		fleet.PodGone, fleet.PodBlockedByPDB, fleet.PodBlockedByPDBs, fleet.PodBlockedByHook, fleet.PodThrottled,
		fleet.PodNamespaceGoing, fleet.PodUnanswered,
	}
}

// answer is what the API server said to the last attempt at a pod, "" if it has said nothing yet, or nothing new.
func answer(p *fleet.PodProgress) string {
	switch {
	case p.Attempt == 0 || p.State == fleet.PodEvicting:
		return ""
	case p.Evicted:
		return accepted
	case slices.Contains(answers(), p.State) && (p.HTTP != 0 || p.State == fleet.PodUnanswered):
		return string(p.State)
	}
	return ""
}

// NewMetrics registers the metrics. Each begins at zero: what never happened is no gap.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		batches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "knm_batch_batches_total", Help: "Batches that ended here.",
		}, []string{labelAction, labelOutcome}),
		items: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "knm_batch_items_total", Help: "Nodes of batches that were done here.",
		}, []string{labelAction, labelOutcome}),
		evictions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "knm_batch_evictions_total", Help: "Evictions and deletions of pods by what the API server said to them.",
		}, []string{labelAnswer}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "knm_batch_item_seconds", Help: "Time that a node took, from its first read to its result on record.",
			Buckets: []float64{.025, .05, .1, .25, .5, 1, 2.5, 5, 15, 60, 300, 1800},
		}, []string{labelAction}),
	}
	for _, a := range fleet.Actions() {
		for _, o := range []fleet.BatchOutcome{fleet.OutcomeSucceeded, fleet.OutcomePartial, fleet.OutcomeFailed, fleet.OutcomeCancelled} {
			m.batches.WithLabelValues(string(a), string(o))
		}
		for _, s := range []fleet.ItemState{fleet.ItemSucceeded, fleet.ItemFailed, fleet.ItemSkipped} {
			m.items.WithLabelValues(string(a), string(s))
		}
		m.seconds.WithLabelValues(string(a))
	}
	m.evictions.WithLabelValues(accepted)
	for _, s := range answers() {
		m.evictions.WithLabelValues(string(s))
	}
	reg.MustRegister(m.batches, m.items, m.evictions, m.seconds)
	return m
}

// Doer counts what d does.
func (m *Metrics) Doer(d Doer) Doer { return measuredDoer{d, m} }

// Store counts the batches that end in s.
func (m *Metrics) Store(s Store) Store { return measuredStore{s, m} }

type measuredDoer struct {
	Doer
	m *Metrics
}

// Do implements Doer. What leaves the item open is not counted: it comes again.
func (d measuredDoer) Do(ctx context.Context, t fleet.Task) (fleet.ItemResult, error) {
	t.Tell = d.m.told(t.Tell)
	action := string(t.Operation.Action)
	began := time.Now()
	res, err := d.Doer.Do(ctx, t)
	state := res.State
	switch {
	case err != nil && (ctx.Err() != nil || errors.Is(err, fleet.ErrNotRecorded) || errors.Is(err, fleet.ErrAuthorityLost)):
		return res, err
	case err != nil:
		state = fleet.ItemFailed
	}
	d.m.items.WithLabelValues(action, string(state)).Inc()
	d.m.seconds.WithLabelValues(action).Observe(time.Since(began).Seconds())
	return res, err
}

// told counts the answer to each attempt at a pod, once, on the way of the events.
func (m *Metrics) told(tell func(fleet.DrainEvent)) func(fleet.DrainEvent) {
	var mu sync.Mutex // guards counted
	counted := make(map[string]int)
	return func(e fleet.DrainEvent) {
		if p := e.Pod; p != nil {
			if a := answer(p); a != "" {
				mu.Lock()
				first := counted[p.UID] < p.Attempt
				counted[p.UID] = max(counted[p.UID], p.Attempt)
				mu.Unlock()
				if first {
					m.evictions.WithLabelValues(a).Inc()
				}
			}
		}
		if tell != nil {
			tell(e)
		}
	}
}

type measuredStore struct {
	Store
	m *Metrics
}

// EndBatch implements Store. The outcome is derived in the store, which is asked for it.
func (s measuredStore) EndBatch(ctx context.Context, l fleet.BatchLease, end fleet.BatchEnd) error {
	if err := s.Store.EndBatch(ctx, l, end); err != nil {
		return err
	}
	if b, _, err := s.Batch(ctx, l.Batch, math.MaxInt64); err == nil { // it has ended, whether or not it is counted
		s.m.batches.WithLabelValues(string(b.Operation.Action), string(b.Outcome)).Inc()
	}
	return nil
}
