package store_test

import (
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/store/storetest"
)

func TestClusters(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, fresh place) { storetest.RunClusters(t, twoHandles(fresh)) })
}

func TestSealed(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, fresh place) { storetest.RunSealed(t, twoHandles(fresh)) })
}
