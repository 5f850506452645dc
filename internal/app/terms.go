package app

import (
	"context"
	"slices"
	"strings"

	"github.com/kube-node-manager/kube-node-manager/internal/batch"
	"github.com/kube-node-manager/kube-node-manager/internal/config"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/realtime"
)

// terms are how clusters are dealt with, as the configuration says by patterns of their names.
type terms struct{ cfg config.Serve }

func newTerms(cfg config.Serve) terms { return terms{cfg} }

// of is how one cluster is dealt with.
func (t terms) of(cluster string) fleet.Terms {
	out := fleet.Terms{Prefix: t.cfg.ImpersonatePrefix, Labels: t.labels(cluster)}
	i := slices.IndexFunc(t.cfg.Identities, func(i config.ClusterIdentity) bool { return fleet.Scope(i.Pattern).Holds(cluster, nil) })
	out.Impersonate = i >= 0 && t.cfg.Identities[i].Impersonate
	return out
}

// labels are those of one cluster, nil for none.
func (t terms) labels(cluster string) map[string]string {
	var out map[string]string
	for _, l := range t.cfg.Labels {
		if !fleet.Scope(l.Pattern).Holds(cluster, nil) {
			continue
		}
		if out == nil {
			out = make(map[string]string, len(l.Labels))
		}
		for k, v := range l.Labels {
			if _, ok := out[k]; !ok {
				out[k] = v
			}
		}
	}
	return out
}

// submits refuses a batch that a cluster would refuse node for node, for lack of a right of ours.
type submits struct {
	*batch.Engine
	clusters *realtime.Manager
}

// Submit implements handlers.Batches.
func (s submits) Submit(ctx context.Context, by fleet.Caller, spec fleet.BatchSpec) (fleet.Batch, error) {
	asked := make(map[string]bool)
	for _, ref := range spec.Nodes {
		perm, ok := spec.Action.Permission()
		// What is not the person's to know or to do is for the engine to say.
		if asked[ref.Cluster] || !ok || !by.May(perm, ref.Cluster) {
			continue
		}
		asked[ref.Cluster] = true
		if missing := s.clusters.Refuses(ref.Cluster, spec.Operation); len(missing) > 0 {
			rights := make([]string, len(missing))
			for i, m := range missing {
				rights[i] = m.String()
			}
			list := strings.Join(rights, ", ")
			return fleet.Batch{}, &fleet.FieldError{
				Field: "nodes", Message: "are in cluster " + ref.Cluster + ", which does not let us " + list,
				Key: "error.right", Args: map[string]string{"Cluster": ref.Cluster, "Right": list},
			}
		}
	}
	return s.Engine.Submit(ctx, by, spec)
}
