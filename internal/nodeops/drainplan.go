package nodeops

import (
	"context"
	"fmt"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// planDrain works out what draining nodes of one cluster would do.
func (o *Ops) planDrain(_ context.Context, _ fleet.Caller, op fleet.Operation, cluster string, _ []fleet.Item) (fleet.ClusterPlan, error) {
	return fleet.ClusterPlan{Cluster: cluster}, fmt.Errorf("planning %s of nodes in %s: %w", op.Action, cluster, fleet.ErrUnavailable)
}
