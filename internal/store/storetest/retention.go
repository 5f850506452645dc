package storetest

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// RunRetention checks that what is old goes, whole and alone.
func RunRetention(t *testing.T, open Open) {
	run(t, open, map[string]func(t *testing.T, one, two *store.Store){
		"Turns":        turns,
		"TurnRace":     turnRace,
		"Events":       pruneEvents,
		"Batches":      pruneBatches,
		"OnlyWhatEnds": pruneOnlyWhatIsDone,
	})
}

func turns(t *testing.T, one, two *store.Store) {
	take := func(s *store.Store, name string, every time.Duration, want bool) {
		t.Helper()
		got, err := s.TakeTurn(t.Context(), name, every)
		need(t, err)
		if got != want {
			t.Errorf("the turn to %s, once in %s: %v", name, every, got)
		}
	}
	take(one, "sweep", time.Hour, true)
	take(two, "sweep", time.Hour, false)
	take(one, "sweep", time.Hour, false) // its own too
	take(two, "dust", time.Hour, true)
	take(two, "sweep", 0, true)
}

func turnRace(t *testing.T, one, two *store.Store) {
	var all sync.WaitGroup
	var got atomic.Int64
	for i := range 8 {
		all.Go(func() {
			mine, err := []*store.Store{one, two}[i%2].TakeTurn(t.Context(), "sweep", time.Hour)
			if err != nil {
				t.Error(err)
			}
			if mine {
				got.Add(1)
			}
		})
	}
	all.Wait()
	if got.Load() != 1 {
		t.Errorf("%d have the turn", got.Load())
	}
}

// ended makes a batch that is done, with so many rows of events of one item.
func ended(t *testing.T, s *store.Store, id string, rows int) {
	t.Helper()
	running(t, s, id, rows)
	l := leaseOf(t, s, id)
	need(t, s.FinishItem(t.Context(), l, fleet.Item{Seq: 0, State: fleet.ItemSucceeded}))
	need(t, s.EndBatch(t.Context(), l, fleet.BatchEnd{Entry: fleet.Entry{Action: "batch.end", Batch: id}}))
}

// leaseOf takes the lease of a batch.
func leaseOf(t *testing.T, s *store.Store, id string) fleet.BatchLease {
	t.Helper()
	l, _, err := s.AcquireBatch(t.Context(), id, "owner", time.Hour)
	need(t, err)
	return l
}

// running makes a batch that is being worked on.
func running(t *testing.T, s *store.Store, id string, rows int) {
	t.Helper()
	d := draft(id, "node-of-"+id)
	d.Plan = &fleet.Plan{}
	_, err := s.CreateBatch(t.Context(), d)
	need(t, err)
	l := leaseOf(t, s, id)
	_, _, _, err = s.StartBatch(t.Context(), l)
	need(t, err)
	need(t, s.ClaimItem(t.Context(), l, 0))
	for i := range rows {
		need(t, s.RecordProgress(t.Context(), l, told(0, int64(i+1), "first", "second")))
	}
}

func eventsLeft(t *testing.T, s *store.Store, id string) int {
	t.Helper()
	got, err := s.BatchEvents(t.Context(), id, 0, 0)
	need(t, err)
	return len(got)
}

func oldBatch(t *testing.T, s *store.Store, age time.Duration, told bool, want string) {
	t.Helper()
	got, err := s.OldBatch(t.Context(), age, told)
	if want == "" && errors.Is(err, fleet.ErrNotFound) {
		return
	}
	need(t, err)
	if got != want {
		t.Errorf("the oldest of age %s (with events: %v) is %q, want %q", age, told, got, want)
	}
}

func pruneEvents(t *testing.T, one, two *store.Store) {
	ended(t, one, "b1", 0)
	ended(t, one, "b2", 5)
	ended(t, one, "b3", 2)
	oldBatch(t, two, time.Hour, true, "")
	oldBatch(t, two, -time.Hour, true, "b2")
	for _, want := range []int64{2, 2, 1, 0} {
		n, err := two.PruneEvents(t.Context(), "b2", 2)
		need(t, err)
		if n != want {
			t.Errorf("%d rows were removed, want %d", n, want)
		}
		if left := eventsLeft(t, one, "b2"); want == 2 && left%2 != 0 {
			t.Errorf("%d events are left of rows of two", left)
		}
	}
	if left := eventsLeft(t, one, "b2"); left != 0 {
		t.Errorf("%d events are left", left)
	}
	if left := eventsLeft(t, one, "b3"); left != 4 {
		t.Errorf("another batch has %d events, want 4", left)
	}
	oldBatch(t, two, -time.Hour, true, "b3")
	b, items, err := one.Batch(t.Context(), "b2", 0)
	need(t, err)
	if b.Outcome != fleet.OutcomeSucceeded || len(items) != 1 {
		t.Errorf("the batch itself is %+v, %v", b, items)
	}
}

func pruneBatches(t *testing.T, one, two *store.Store) {
	ended(t, one, "b1", 1)
	ended(t, one, "b2", 0)
	oldBatch(t, one, time.Hour, false, "")
	oldBatch(t, one, -time.Hour, false, "b1")
	record, err := one.EntriesAfter(t.Context(), 0, 100)
	need(t, err)
	need(t, two.PruneBatch(t.Context(), "b1"))
	need(t, two.PruneBatch(t.Context(), "b1"))
	if _, _, err := one.Batch(t.Context(), "b1", 0); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("it is still there: %v", err)
	}
	for _, table := range []string{"batch_items", "batch_events", "batch_plans", "batch_holds"} {
		var n int
		need(t, one.Tx(t.Context(), func(tx *store.Tx) error {
			return tx.Get(&n, `SELECT COUNT(*) FROM `+table+` WHERE batch_id = 'b1'`)
		}))
		if n != 0 {
			t.Errorf("%d rows of it are left in %s", n, table)
		}
	}
	oldBatch(t, one, -time.Hour, false, "b2")
	after, err := one.EntriesAfter(t.Context(), 0, 100)
	need(t, err)
	if diff := cmp.Diff(record, after); diff != "" || len(record) == 0 {
		t.Errorf("the audit record of %d entries changed:\n%s", len(record), diff)
	}
}

func pruneOnlyWhatIsDone(t *testing.T, one, two *store.Store) {
	running(t, one, "b1", 3)
	oldBatch(t, two, -time.Hour, false, "")
	oldBatch(t, two, -time.Hour, true, "")
	n, err := two.PruneEvents(t.Context(), "b1", 10)
	need(t, err)
	need(t, two.PruneBatch(t.Context(), "b1"))
	if left := eventsLeft(t, one, "b1"); n != 0 || left != 6 {
		t.Errorf("%d rows were removed from a running batch, %d events are left", n, left)
	}
}
