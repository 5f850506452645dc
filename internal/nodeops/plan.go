package nodeops

import (
	"context"
	"fmt"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Plan says what an operation would do to nodes. See batch.Planner for the contract.
func (o *Ops) Plan(_ context.Context, _ fleet.Caller, op fleet.Operation, _ []fleet.Item) (*fleet.Plan, error) {
	return nil, fmt.Errorf("planning %s: %w", op.Action, fleet.ErrUnavailable)
}
