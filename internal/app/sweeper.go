package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

const (
	// sweepEvery is how often it is looked for what is kept long enough.
	sweepEvery = time.Hour
	// sweepMost is how long one look may take: well before the next one, which may be another replica's.
	sweepMost = 30 * time.Minute
	// sweepRows is how many rows of events go in one transaction. Each holds what a drain told within a moment.
	sweepRows = 200
)

// sweepStore is what there is to sweep. *store.Store implements it.
type sweepStore interface {
	TakeTurn(ctx context.Context, name string, every time.Duration) (bool, error)
	OldBatch(ctx context.Context, age time.Duration, told bool) (string, error)
	PruneEvents(ctx context.Context, id string, most int) (int64, error)
	PruneBatch(ctx context.Context, id string) error
}

// sweeper removes batches and their events that are kept long enough, in small transactions between which others write.
// The audit record is none of its business.
type sweeper struct {
	store           sweepStore
	batches, events time.Duration // after the end of a batch; 0 for ever
	logger          *slog.Logger
}

// run sweeps until ctx ends.
func (x sweeper) run(ctx context.Context) error {
	next := time.NewTicker(sweepEvery)
	defer next.Stop()
	for {
		if err := x.sweep(ctx); err != nil && ctx.Err() == nil {
			x.logger.WarnContext(ctx, "removing old batches", "err", err) // what is left goes next time
		}
		select {
		case <-ctx.Done():
			return nil
		case <-next.C:
		}
	}
}

// sweep removes what is due, if no other replica has in the last hour.
func (x sweeper) sweep(ctx context.Context) error {
	if x.batches == 0 && x.events == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, sweepMost)
	defer cancel()
	// A little less than the time between two looks, which are never quite as far apart.
	mine, err := x.store.TakeTurn(ctx, "sweep", sweepEvery-time.Minute)
	if err != nil || !mine {
		return err
	}
	var events int64
	var batches int
	err = x.each(ctx, x.events, true, func(id string) error {
		n, err := x.empty(ctx, id)
		events += n
		return err
	})
	if err == nil {
		err = x.each(ctx, x.batches, false, func(id string) error {
			n, err := x.empty(ctx, id)
			events += n
			if err == nil {
				err = x.store.PruneBatch(ctx, id)
			}
			if err == nil {
				batches++
			}
			return err
		})
	}
	if events > 0 || batches > 0 {
		x.logger.LogAttrs(ctx, slog.LevelInfo, "old batches removed", slog.Int("batches", batches), slog.Int64("event_rows", events))
	}
	return err
}

// each calls fn for the oldest batch that is due until there is none. Fn sees to it that it is not due any more.
func (x sweeper) each(ctx context.Context, age time.Duration, told bool, fn func(id string) error) error {
	if age == 0 {
		return nil
	}
	for last := ""; ; {
		id, err := x.store.OldBatch(ctx, age, told)
		switch {
		case errors.Is(err, fleet.ErrNotFound):
			return nil
		case err != nil:
			return err
		case id == last:
			return fmt.Errorf("batch %s is still there", id)
		}
		if err := fn(id); err != nil {
			return err
		}
		last = id
	}
}

// empty removes the events of a batch.
func (x sweeper) empty(ctx context.Context, id string) (rows int64, err error) {
	for {
		n, err := x.store.PruneEvents(ctx, id, sweepRows)
		rows += n
		if err != nil || n == 0 {
			return rows, err
		}
	}
}
