package store_test

import (
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/store"
	"github.com/kube-node-manager/kube-node-manager/internal/store/storetest"
)

func TestPeople(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, fresh place) { storetest.RunPeople(t, twoHandles(fresh)) })
}

func TestRecord(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, fresh place) { storetest.RunRecord(t, twoHandles(fresh)) })
}

func TestIdentities(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, fresh place) { storetest.RunIdentities(t, twoHandles(fresh)) })
}

func TestTemplates(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, fresh place) { storetest.RunTemplates(t, twoHandles(fresh)) })
}

func TestRetention(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, fresh place) { storetest.RunRetention(t, twoHandles(fresh)) })
}

// twoHandles are what two processes have of one database.
func twoHandles(fresh place) storetest.Open {
	return func(t *testing.T) (one, two *store.Store) {
		cfg := fresh(t)
		return open(t, cfg), open(t, cfg)
	}
}
