package nodeops

import (
	"context"
	"fmt"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/drain"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// planDrain says what draining some nodes of one cluster would do, as of one look at it.
func (o *Ops) planDrain(ctx context.Context, by fleet.Caller, op fleet.Operation, cluster string, items []fleet.Item) (fleet.ClusterPlan, error) {
	via, err := o.cfg.Clients(cluster, by)
	if err != nil {
		return fleet.ClusterPlan{}, fmt.Errorf("planning a drain in %s: %w", cluster, err)
	}
	choice := value(op.Drain)
	opts, err := drain.OptionsOf(choice, o.cfg.Self)
	if err != nil {
		return fleet.ClusterPlan{}, err
	}
	names, targets := make([]string, len(items)), make([]drain.Target, len(items))
	for i, it := range items {
		names[i], targets[i] = it.Ref.Name, drain.Target{Name: it.Ref.Name, UID: it.UID}
	}
	r, err := drain.Read(ctx, cluster, via.Own, via.Acts, names)
	if err != nil {
		return fleet.ClusterPlan{}, fmt.Errorf("planning a drain in %s: %w", cluster, err)
	}
	plan := drain.NewPlan(r, targets, opts.Policy, time.Now().UTC())
	if choice.Probe {
		if _, err := drain.Probe(ctx, via.Acts, plan); err != nil {
			return fleet.ClusterPlan{}, fmt.Errorf("asking %s about evictions: %w", cluster, err)
		}
	}
	return *plan, nil
}
