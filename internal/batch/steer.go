package batch

import (
	"context"
	"fmt"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// BatchPlan implements handlers.Batches.
func (e *Engine) BatchPlan(ctx context.Context, by fleet.Caller, id string) (*fleet.Plan, error) {
	if err := e.Sees(ctx, by, id); err != nil {
		return nil, err
	}
	p, err := e.cfg.Store.BatchPlan(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("reading the plan of batch %s: %w", id, err)
	}
	return p, e.conceal(ctx, by, &p.Operation.Revert)
}

// Events implements handlers.Batches.
func (e *Engine) Events(ctx context.Context, by fleet.Caller, id string, after int64, limit int) ([]fleet.BatchEvent, error) {
	if err := e.Sees(ctx, by, id); err != nil {
		return nil, err
	}
	es, err := e.cfg.Store.BatchEvents(ctx, id, after, limit)
	if err != nil {
		return nil, fmt.Errorf("reading the events of batch %s: %w", id, err)
	}
	return es, nil
}

// Pause implements handlers.Batches.
func (e *Engine) Pause(ctx context.Context, by fleet.Caller, id string) error {
	return e.steer(ctx, by, id, "pausing", "batch.pause", func(_ []fleet.Item, en fleet.Entry) error {
		return e.cfg.Store.PauseBatch(ctx, id, by.Name, en)
	})
}

// Resume implements handlers.Batches.
func (e *Engine) Resume(ctx context.Context, by fleet.Caller, id string) error {
	return e.steer(ctx, by, id, "resuming", "batch.resume", func(_ []fleet.Item, en fleet.Entry) error {
		return e.cfg.Store.ResumeBatch(ctx, id, by.Name, en)
	})
}

// Skip implements handlers.Batches.
func (e *Engine) Skip(ctx context.Context, by fleet.Caller, id string, item int) error {
	return e.steer(ctx, by, id, "leaving out a node of", "batch.skip", func(items []fleet.Item, en fleet.Entry) error {
		for i := range items {
			if it := &items[i]; it.Seq == item {
				en.Cluster, en.Node, en.NodeUID = it.Ref.Cluster, it.Ref.Name, it.UID
			}
		}
		return e.cfg.Store.SkipItem(ctx, id, item, by.Name, en)
	})
}

// steer has a person change how a batch goes on: who may do it may steer it. The owner hears of it at once if it is this
// engine, and with the next renewal of its lease if it is another one.
func (e *Engine) steer(ctx context.Context, by fleet.Caller, id, doing, action string, change func([]fleet.Item, fleet.Entry) error) error {
	_, items, err := e.permitted(ctx, by, id)
	if err != nil {
		return fmt.Errorf("%s batch %s: %w", doing, id, err)
	}
	if err := change(items, entry(by, id, action, "event")); err != nil {
		return fmt.Errorf("%s batch %s: %w", doing, id, err)
	}
	if r := e.runner(id); r != nil {
		r.hear()
	} else {
		e.wake()
	}
	e.cfg.Notify(id)
	return nil
}

// permitted reads a batch that a person sees and may do, and so may steer.
func (e *Engine) permitted(ctx context.Context, by fleet.Caller, id string) (fleet.Batch, []fleet.Item, error) {
	if err := e.Sees(ctx, by, id); err != nil {
		return fleet.Batch{}, nil, err
	}
	b, items, err := e.cfg.Store.Batch(ctx, id, 0)
	if err != nil {
		return fleet.Batch{}, nil, err
	}
	refs := make([]fleet.NodeRef, len(items))
	for i := range items {
		refs[i] = items[i].Ref
	}
	return b, items, e.cfg.Authorizer.Authorize(ctx, by, b.Operation, refs)
}

func (e *Engine) runner(id string) *runner {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.runs[id]
}

// Retry implements handlers.Batches.
func (e *Engine) Retry(ctx context.Context, by fleet.Caller, id, key string) (fleet.Batch, error) {
	if err := validKey(key); err != nil {
		return fleet.Batch{}, err
	}
	b, items, err := e.permitted(ctx, by, id)
	if err != nil {
		return fleet.Batch{}, fmt.Errorf("repeating batch %s: %w", id, err)
	}
	if b.State != fleet.BatchDone {
		return fleet.Batch{}, fmt.Errorf("repeating batch %s, which is %s: %w", id, b.State, fleet.ErrConflict)
	}
	r := &request{frozen: true, spec: fleet.BatchSpec{
		Operation: b.Operation, Rollout: b.Rollout, IdempotencyKey: key, Parent: id,
	}}
	if b.Operation.Action == fleet.ActionRevert {
		r.from = make(map[fleet.NodeRef]fleet.Item)
		origin, err := e.origin(ctx, b)
		if err != nil {
			return fleet.Batch{}, err
		}
		r.origin = &origin
	}
	for _, it := range items {
		if it.State != fleet.ItemFailed && it.State != fleet.ItemCancelled {
			continue
		}
		r.spec.Nodes = append(r.spec.Nodes, it.Ref)
		if r.from != nil {
			r.from[it.Ref] = fleet.Item{UID: it.UID, Undo: it.Undo}
		}
	}
	if len(r.spec.Nodes) == 0 {
		return fleet.Batch{}, fmt.Errorf("repeating batch %s: no node failed or was not started: %w", id, fleet.ErrConflict)
	}
	if err := e.complete(by, r); err != nil {
		return fleet.Batch{}, err
	}
	return e.make(ctx, by, r)
}
