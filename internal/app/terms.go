package app

import (
	"slices"

	"github.com/kube-node-manager/kube-node-manager/internal/config"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
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
