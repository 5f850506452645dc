package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// TakeTurn tells whether the caller is the one who does what is to be done once in every, whichever replica does it. The
// turn lasts that long: who gets it must be ready by then.
func (s *Store) TakeTurn(ctx context.Context, name string, every time.Duration) (mine bool, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		mine = false
		row := "turn:" + name
		var last string
		switch err := tx.Get(&last, `SELECT value FROM meta WHERE name = ?`, row); {
		case errors.Is(err, fleet.ErrNotFound):
		case err != nil:
			return err
		default:
			us, err := strconv.ParseInt(last, 10, 64)
			if err != nil {
				return fmt.Errorf("reading whose turn it is to %s: %w", name, err)
			}
			if moment(us).Add(every).After(tx.now) {
				return nil
			}
		}
		if _, err := tx.Exec(`INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value`,
			row, strconv.FormatInt(micros(tx.now), 10)); err != nil {
			return err
		}
		mine = true
		return nil
	})
	return mine && err == nil, err
}

// OldBatch finds the batch that ended first of those that ended longer than age ago; told asks for one that still has
// events. ErrNotFound.
func (s *Store) OldBatch(ctx context.Context, age time.Duration, told bool) (id string, err error) {
	now, err := s.now(ctx)
	if err != nil {
		return "", err
	}
	query := `SELECT id FROM batches WHERE state = 'done' AND ended_at < ?`
	if told {
		query += ` AND EXISTS (SELECT 1 FROM batch_events e WHERE e.batch_id = batches.id)`
	}
	err = s.get(ctx, &id, query+` ORDER BY ended_at, id LIMIT 1`, micros(now.Add(-age)))
	return id, err
}

// PruneEvents removes the events of a batch that is done, the first ones first, and so many rows at most. It tells how
// many it removed.
func (s *Store) PruneEvents(ctx context.Context, id string, most int) (rows int64, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		rows, err = tx.Exec(`DELETE FROM batch_events WHERE batch_id = ? AND seq IN (SELECT e.seq FROM batch_events e
			JOIN batches b ON b.id = e.batch_id AND b.state = 'done' WHERE e.batch_id = ? ORDER BY e.seq LIMIT ?)`, id, id, most)
		return err
	})
	return rows, err
}

// PruneBatch removes a batch that is done, with its items, its plan and what is left of its events. The audit record
// keeps what it did. It does nothing if there is no such batch.
func (s *Store) PruneBatch(ctx context.Context, id string) error {
	return s.Tx(ctx, func(tx *Tx) error {
		_, err := tx.Exec(`DELETE FROM batches WHERE id = ? AND state = 'done'`, id)
		return err
	})
}
