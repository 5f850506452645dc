package store

import (
	"context"
	"fmt"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// sealedRows are all sealed secrets of the database: a new table that holds some belongs here and in Rewrap.
const sealedRows = `SELECT place, id, name, key_id, wrapped, sealed FROM (
	SELECT 'managed_clusters' AS place, id, name, key_id, wrapped, sealed FROM managed_clusters
	UNION ALL
	SELECT 'second_factors', u.id, u.name, f.key_id, f.wrapped, f.sealed FROM second_factors f JOIN users u ON u.id = f.user_id
) AS secrets`

// Sealed lists secrets that are sealed under another key than the given one, in a fixed order, from the one after the
// given row on; the zero row is before the first.
func (s *Store) Sealed(ctx context.Context, except string, after fleet.SealedRow, limit int) (rows []fleet.SealedRow, err error) {
	if err := s.list(ctx, &rows, sealedRows+` WHERE key_id <> ? AND (place, id) > (?, ?) ORDER BY place, id LIMIT ?`,
		except, after.Table, after.ID, limit); err != nil {
		return nil, fmt.Errorf("reading sealed secrets: %w", err)
	}
	return rows, nil
}

// Rewrap exchanges the wrappings of data keys in one transaction, and tells how many it did: one that is not as it was
// any more is left alone.
func (s *Store) Rewrap(ctx context.Context, list []fleet.Rewrapped) (done int, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		done = 0
		for _, r := range list {
			var row string
			switch r.Table {
			case fleet.SealedClusters:
				row = `managed_clusters SET key_id = ?, wrapped = ? WHERE id = ? AND wrapped = ?`
			case fleet.SealedFactors:
				row = `second_factors SET key_id = ?, wrapped = ? WHERE user_id = ? AND wrapped = ?`
			default:
				return fmt.Errorf("no secrets are sealed in %q: %w", r.Table, fleet.ErrInvalid)
			}
			n, err := tx.Exec(`UPDATE `+row, r.New.Key, r.New.Wrapped, r.ID, r.Wrapped)
			if err != nil {
				return err
			}
			done += int(n)
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("rewrapping secrets: %w", err)
	}
	return done, nil
}
