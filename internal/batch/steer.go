package batch

import (
	"context"
	"fmt"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Plan implements handlers.Batches.
func (e *Engine) Plan(context.Context, fleet.Caller, fleet.BatchSpec) (*fleet.Plan, error) {
	return nil, fmt.Errorf("planning a batch: %w", fleet.ErrUnavailable)
}

// BatchPlan implements handlers.Batches.
func (e *Engine) BatchPlan(context.Context, string) (*fleet.Plan, error) {
	return nil, fmt.Errorf("reading a plan: %w", fleet.ErrNotFound)
}

// Events implements handlers.Batches.
func (e *Engine) Events(context.Context, string, int64, int) ([]fleet.BatchEvent, error) {
	return nil, fmt.Errorf("reading the events of a batch: %w", fleet.ErrNotFound)
}

// Pause implements handlers.Batches.
func (e *Engine) Pause(context.Context, fleet.Caller, string) error {
	return fmt.Errorf("pausing a batch: %w", fleet.ErrUnavailable)
}

// Resume implements handlers.Batches.
func (e *Engine) Resume(context.Context, fleet.Caller, string) error {
	return fmt.Errorf("resuming a batch: %w", fleet.ErrUnavailable)
}

// Retry implements handlers.Batches.
func (e *Engine) Retry(context.Context, fleet.Caller, string, string) (fleet.Batch, error) {
	return fleet.Batch{}, fmt.Errorf("repeating a batch: %w", fleet.ErrUnavailable)
}

// Skip implements handlers.Batches.
func (e *Engine) Skip(context.Context, fleet.Caller, string, int) error {
	return fmt.Errorf("skipping a node: %w", fleet.ErrUnavailable)
}
