package app

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/audit"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
	"github.com/kube-node-manager/kube-node-manager/internal/seal"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// untouched is a database of clusters in which nothing may be written.
type untouched struct {
	webStore

	t *testing.T
}

func (u untouched) AddCluster(context.Context, fleet.StoredCluster, fleet.Entry) error {
	u.t.Error("a cluster was added")
	return nil
}

func (u untouched) ReplaceCluster(context.Context, fleet.StoredCluster, fleet.Entry) error {
	u.t.Error("a cluster was replaced")
	return nil
}

func (u untouched) RemoveCluster(context.Context, string, fleet.Entry) error {
	u.t.Error("a cluster was removed")
	return nil
}

func (u untouched) ManagedCluster(context.Context, string) (fleet.StoredCluster, error) {
	return fleet.StoredCluster{Name: "prod"}, nil
}

func (u untouched) ManagedClusters(context.Context) ([]fleet.StoredCluster, int64, error) {
	return nil, 0, nil
}

// nobodyElse is a manager that watches nothing.
type nobodyElse struct{ watchedSet }

func (nobodyElse) Clusters(fleet.Sight) []fleet.Cluster { return nil }

// fullRecord is a record in which nothing can be written.
type fullRecord struct{ *store.Store }

var errFull = errors.New("the disk is full")

func (fullRecord) AppendEntry(context.Context, fleet.Entry) (fleet.Entry, error) {
	return fleet.Entry{}, errFull
}

func deaf(t *testing.T) *webClusters {
	t.Helper()
	keys, err := seal.Parse(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	return &webClusters{
		store: untouched{t: t}, keys: keys, to: kube.Addresses{Allow: webConfig(t).AddressAllow}, manager: nobodyElse{},
		record: audit.New(fullRecord{}, slog.New(slog.DiscardHandler)), logger: slog.New(slog.DiscardHandler),
		turn: make(chan struct{}, 1), tests: make(chan struct{}, maxTests), known: map[string]webCluster{},
	}
}

// everyChange is all that can be done to the clusters of the web.
func everyChange(ctx context.Context, w *webClusters, by fleet.Caller, kubeconfig string) map[string]error {
	spec := fleet.ClusterSpec{Name: "prod", Kubeconfig: fleet.Secret(kubeconfig)}
	out := map[string]error{}
	_, out["add"] = w.AddCluster(ctx, by, spec)
	_, out["replace"] = w.ReplaceCluster(ctx, by, spec)
	_, out["test"] = w.TestCluster(ctx, by, spec)
	out["remove"] = w.RemoveCluster(ctx, by, "prod")
	return out
}

// The route asks for the permission, and so does what is behind it: one forgotten check must not be the only one.
func TestWebClusters_AskAgain(t *testing.T) {
	t.Parallel()
	w, kubeconfig := deaf(t), webServer(t)
	for _, by := range []fleet.Caller{{}, {Name: "vi", Role: fleet.RoleViewer}, {Name: "op", Role: fleet.RoleOperator}} {
		for what, err := range everyChange(t.Context(), w, by, kubeconfig) {
			if !errors.Is(err, fleet.ErrForbidden) {
				t.Errorf("%s by %q: %v, want %v", what, by.Role, err, fleet.ErrForbidden)
			}
		}
	}
}

// What cannot be put on record does not happen.
func TestWebClusters_NoRecordNoChange(t *testing.T) {
	t.Parallel()
	for what, err := range everyChange(t.Context(), deaf(t), fleet.Caller{Name: "ada", Role: fleet.RoleAdmin}, webServer(t)) {
		if !errors.Is(err, errFull) {
			t.Errorf("%s: %v, want %v", what, err, errFull)
		}
	}
}
