package store_test

import (
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/store"
	"github.com/kube-node-manager/kube-node-manager/internal/store/storetest"
)

func twoHandles(t *testing.T) (one, two *store.Store) {
	dir := t.TempDir()
	return open(t, store.Config{Dir: dir}), open(t, store.Config{Dir: dir})
}

func TestPeople(t *testing.T) {
	t.Parallel()
	storetest.RunPeople(t, twoHandles)
}

func TestRecord(t *testing.T) {
	t.Parallel()
	storetest.RunRecord(t, twoHandles)
}

func TestIdentities(t *testing.T) {
	t.Parallel()
	storetest.RunIdentities(t, twoHandles)
}
