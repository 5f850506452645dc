package storetest

import (
	"fmt"
	"sync"
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// RunIdentities checks by which identity clusters are known.
func RunIdentities(t *testing.T, open Open) {
	run(t, open, map[string]func(t *testing.T, one, two *store.Store){
		"FirstWins":     firstIdentityWins,
		"FirstWinsRace": firstIdentityWinsRace,
		"Accept":        acceptIdentity,
		"NotEmpty":      identityNotEmpty,
	})
}

func pinned(t *testing.T, s *store.Store, cluster, uid, want string) {
	t.Helper()
	got, err := s.PinIdentity(t.Context(), cluster, uid)
	need(t, err)
	if got != want {
		t.Errorf("%s with %s is known by %s, want %s", cluster, uid, got, want)
	}
}

func firstIdentityWins(t *testing.T, one, two *store.Store) {
	pinned(t, one, "prod", "u1", "u1")
	pinned(t, two, "prod", "u2", "u1")
	pinned(t, two, "Prod", "u3", "u3") // another name
	pinned(t, one, "mirror", "u1", "u1")
}

func firstIdentityWinsRace(t *testing.T, one, two *store.Store) {
	got := make([]string, 8)
	var all sync.WaitGroup
	for i := range got {
		all.Go(func() {
			s := []*store.Store{one, two}[i%2]
			var err error
			if got[i], err = s.PinIdentity(t.Context(), "prod", fmt.Sprint("u", i)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, uid := range got {
		if uid != got[0] || uid == "" {
			t.Errorf("known by %q", got)
			break
		}
	}
}

func acceptIdentity(t *testing.T, one, two *store.Store) {
	ctx := t.Context()
	pinned(t, one, "prod", "u1", "u1")
	need(t, one.AcceptIdentity(ctx, "prod", "u2", fleet.Entry{Actor: "ada", Action: "cluster.accept", Phase: "event", Cluster: "prod"}))
	pinned(t, two, "prod", "u1", "u2")
	need(t, one.AcceptIdentity(ctx, "new", "u3", event)) // one that was never seen
	pinned(t, two, "new", "u4", "u3")
	list, err := two.Entries(ctx, fleet.AuditFilter{Action: "cluster.accept"})
	need(t, err)
	if len(list) != 1 || list[0].Cluster != "prod" || list[0].Actor != "ada" {
		t.Errorf("the record says %+v", list)
	}
}

func identityNotEmpty(t *testing.T, one, _ *store.Store) {
	_, err := one.PinIdentity(t.Context(), "prod", "")
	is(t, "no uid", err, fleet.ErrInvalid)
	is(t, "no cluster", one.AcceptIdentity(t.Context(), "", "u", event), fleet.ErrInvalid)
	pinned(t, one, "prod", "u1", "u1") // and nothing was pinned
}
