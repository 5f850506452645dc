package storetest

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// RunClusters checks clusters that came in through the web.
func RunClusters(t *testing.T, open Open) {
	run(t, open, map[string]func(t *testing.T, one, two *store.Store){
		"Life":         clusterLife,
		"NamesRace":    clusterNamesRace,
		"ReplaceRace":  clusterReplaceRace,
		"Unrecorded":   clusterNotWithoutItsRecord,
		"EveryChange":  clusterChangesAreSeen,
		"NothingThere": noClusters,
	})
}

func storedCluster(name string) fleet.StoredCluster {
	return fleet.StoredCluster{
		ID: "id-" + name, Name: name, Server: "https://" + name, AddedBy: "ada", ChangedBy: "eve",
		Sealed: fleet.Sealed{Key: "k1", Wrapped: "w-" + name, Data: "s-" + name},
	}
}

func changed(t *testing.T, s *store.Store) int64 {
	t.Helper()
	seq, err := s.ManagedClustersSeq(t.Context())
	need(t, err)
	return seq
}

func clusterLife(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	need(t, one.AddCluster(ctx, storedCluster("b"), fleet.Entry{Action: "cluster.add", Cluster: "b"}))
	need(t, one.AddCluster(ctx, storedCluster("a"), fleet.Entry{Action: "cluster.add", Cluster: "a"}))
	other := storedCluster("a")
	other.ID = "another"
	is(t, "the same name", two.AddCluster(ctx, other, event), fleet.ErrConflict)

	list, seq, err := two.ManagedClusters(ctx)
	need(t, err)
	if len(list) != 2 || list[0].Name != "a" || list[1].Name != "b" || seq != changed(t, one) {
		t.Fatalf("%+v %d", list, seq)
	}
	want := storedCluster("a")
	want.ChangedBy = "ada"
	if diff := cmp.Diff(want, list[0], cmpopts.IgnoreFields(fleet.StoredCluster{}, "Version", "AddedAt", "ChangedAt")); diff != "" {
		t.Error(diff)
	}
	if list[0].AddedAt.IsZero() || list[0].Version == list[1].Version {
		t.Errorf("%+v", list)
	}

	next := list[0]
	next.Wrapped, next.Data, next.ChangedBy, next.Server = "w2", "s2", "eve", "https://new"
	need(t, two.ReplaceCluster(ctx, next, fleet.Entry{Action: "cluster.replace", Cluster: "a"}))
	is(t, "a version that is gone", one.ReplaceCluster(ctx, next, event), fleet.ErrConflict)
	got, err := one.ManagedCluster(ctx, "a")
	need(t, err)
	if got.Data != "s2" || got.AddedBy != "ada" || got.ChangedBy != "eve" || got.Version <= next.Version || got.Server != "https://new" {
		t.Errorf("%+v", got)
	}

	need(t, one.RemoveCluster(ctx, "a", fleet.Entry{Action: "cluster.remove", Cluster: "a"}))
	is(t, "removed twice", two.RemoveCluster(ctx, "a", event), fleet.ErrNotFound)
	_, err = two.ManagedCluster(ctx, "a")
	is(t, "removed", err, fleet.ErrNotFound)
	is(t, "replaced after its end", two.ReplaceCluster(ctx, got, event), fleet.ErrConflict)
	for _, action := range []string{"cluster.add", "cluster.replace", "cluster.remove"} {
		entries, err := two.Entries(ctx, fleet.AuditFilter{Action: action, Cluster: "a"})
		need(t, err)
		if len(entries) != 1 {
			t.Errorf("%s is on record %d times", action, len(entries))
		}
	}
	entries, err := two.Entries(ctx, fleet.AuditFilter{Action: event.Action})
	need(t, err)
	if len(entries) != 0 {
		t.Errorf("refused changes are on record as done: %+v", entries)
	}
}

func clusterNamesRace(t *testing.T, one, two *store.Store) {
	var won atomic.Int32
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			c := storedCluster("prod")
			c.ID = fmt.Sprint("id", i)
			switch err := []*store.Store{one, two}[i%2].AddCluster(t.Context(), c, event); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, fleet.ErrConflict):
				t.Error(err)
			}
		})
	}
	all.Wait()
	if won.Load() != 1 {
		t.Errorf("%d clusters have the name", won.Load())
	}
}

func clusterReplaceRace(t *testing.T, one, two *store.Store) {
	need(t, one.AddCluster(t.Context(), storedCluster("prod"), event))
	was, err := one.ManagedCluster(t.Context(), "prod")
	need(t, err)
	var won atomic.Int32
	var all sync.WaitGroup
	for i := range 6 {
		all.Go(func() {
			c := was
			c.Data = fmt.Sprint("s", i)
			switch err := []*store.Store{one, two}[i%2].ReplaceCluster(t.Context(), c, event); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, fleet.ErrConflict):
				t.Error(err)
			}
		})
	}
	all.Wait()
	if won.Load() != 1 {
		t.Errorf("%d replaced the same version", won.Load())
	}
}

func clusterNotWithoutItsRecord(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	need(t, one.Tx(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec(`DELETE FROM audit_head`) // the record cannot be written any more
		return err
	}))
	if err := one.AddCluster(ctx, storedCluster("a"), event); err == nil {
		t.Error("added without a record")
	}
	list, seq, err := two.ManagedClusters(ctx)
	need(t, err)
	if len(list) != 0 || seq != 0 {
		t.Errorf("%+v %d", list, seq)
	}
}

func clusterChangesAreSeen(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	last := changed(t, two)
	moved := func(what string) {
		t.Helper()
		now := changed(t, two)
		if now <= last {
			t.Errorf("nobody sees that a cluster was %s", what)
		}
		last = now
	}
	need(t, one.AddCluster(ctx, storedCluster("a"), event))
	moved("added")
	c, err := one.ManagedCluster(ctx, "a")
	need(t, err)
	need(t, one.ReplaceCluster(ctx, c, event))
	moved("replaced")
	need(t, one.RemoveCluster(ctx, "a", event))
	moved("removed")
	// Another one of the same name has another version.
	need(t, one.AddCluster(ctx, storedCluster("a"), event))
	again, err := two.ManagedCluster(ctx, "a")
	need(t, err)
	if again.Version <= c.Version {
		t.Errorf("version %d after %d", again.Version, c.Version)
	}
}

func noClusters(t *testing.T, one, _ *store.Store) {
	list, _, err := one.ManagedClusters(t.Context())
	need(t, err)
	if len(list) != 0 {
		t.Errorf("%+v", list)
	}
}
