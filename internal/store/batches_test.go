package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
	"github.com/kube-node-manager/kube-node-manager/internal/store/storetest"
)

func TestBatches(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, fresh place) {
		storetest.RunBatches(t, func(t *testing.T) storetest.BatchStore {
			cfg := fresh(t)
			cfg.Timeout = time.Minute
			return open(t, cfg)
		})
	})
}

// A change of a batch that cannot be recorded is not made.
func TestBatches_NoChangeWithoutItsRecord(t *testing.T) {
	t.Parallel()
	both(t, noChangeWithoutItsRecord)
}

func noChangeWithoutItsRecord(t *testing.T, fresh place) {
	s, ctx := open(t, fresh(t)), t.Context()
	draft := func(id, node string) fleet.BatchDraft {
		return fleet.BatchDraft{
			Batch: fleet.Batch{ID: id, Operation: fleet.Operation{Action: fleet.ActionCordon}, CreatedAt: time.Now()},
			Items: []fleet.Item{{Ref: fleet.NodeRef{Cluster: "prod", Name: node}}},
		}
	}
	if _, err := s.CreateBatch(ctx, draft("b1", "n1")); err != nil {
		t.Fatal(err)
	}
	l, _, err := s.AcquireBatch(ctx, "b1", "a", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Tx(ctx, func(tx *store.Tx) error { // the next entry gets a number that is taken
		_, err := tx.Exec(`UPDATE audit_head SET seq = seq - 1 WHERE id = 1`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateBatch(ctx, draft("b2", "n2")); err == nil {
		t.Error("CreateBatch succeeded without a record")
	}
	if err := s.CancelBatch(ctx, "b1", "ada", fleet.Entry{}); err == nil {
		t.Error("CancelBatch succeeded without a record")
	}
	if err := s.EndBatch(ctx, l, fleet.BatchEnd{}); err == nil {
		t.Error("EndBatch succeeded without a record")
	}
	if _, _, err := s.Batch(ctx, "b2", 0); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("b2 is there: %v", err)
	}
	b, _, err := s.Batch(ctx, "b1", 0)
	if err != nil || b.State != fleet.BatchQueued || b.CancelledBy != "" || b.Version != 1 {
		t.Errorf("b1 is %+v, %v", b, err)
	}
}
