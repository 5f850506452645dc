package batch

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// within is the clusters that a person sees of those that there are, nil for whoever sees all that ever were. A batch is
// there for those who see every cluster that it is about.
func (e *Engine) within(by fleet.Caller) []string {
	sight := by.Sight()
	if sight.All() {
		return nil
	}
	names := []string{} // and not nil, which is everything
	for _, c := range e.cfg.Lookup.Clusters(sight) {
		names = append(names, c.Name)
	}
	return names
}

// Sees implements handlers.Batches.
func (e *Engine) Sees(ctx context.Context, by fleet.Caller, id string) error {
	seen, err := e.seen(ctx, by, []string{id})
	if err == nil && !seen[id] {
		err = fleet.ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("reading batch %s: %w", id, err)
	}
	return nil
}

// seenAtOnce is how many batches the store lists at once.
const seenAtOnce = 500

// seen tells which of some batches there are for a person.
func (e *Engine) seen(ctx context.Context, by fleet.Caller, ids []string) (map[string]bool, error) {
	within := e.within(by)
	out := make(map[string]bool, len(ids))
	for part := range slices.Chunk(ids, seenAtOnce) {
		if within == nil { // whether it exists is said by whoever reads it
			for _, id := range part {
				out[id] = true
			}
			continue
		}
		list, err := e.cfg.Store.Batches(ctx, fleet.BatchFilter{IDs: part, Within: within, Limit: len(part)})
		if err != nil {
			return nil, err
		}
		for _, b := range list {
			out[b.ID] = true
		}
	}
	return out, nil
}

// conceal empties those ids of other batches that the person does not see.
func (e *Engine) conceal(ctx context.Context, by fleet.Caller, ids ...*string) error {
	if by.Sight().All() {
		return nil
	}
	var ask []string
	for _, id := range ids {
		if *id != "" {
			ask = append(ask, *id)
		}
	}
	slices.Sort(ask)
	seen, err := e.seen(ctx, by, slices.Compact(ask))
	if err != nil {
		return fmt.Errorf("looking for the batches before: %w", err)
	}
	for _, id := range ids {
		if !seen[*id] {
			*id = ""
		}
	}
	return nil
}

// discreet leaves out of a BusyError which batch it is, if the person does not see it.
func (e *Engine) discreet(ctx context.Context, by fleet.Caller, err error) error {
	busy, ok := errors.AsType[*fleet.BusyError](err)
	if !ok || by.Sight().All() {
		return err
	}
	id := busy.Batch
	if cerr := e.conceal(ctx, by, &id); cerr != nil {
		return cerr
	}
	return &fleet.BusyError{Node: busy.Node, Batch: id}
}
