package store

import (
	"context"
	"fmt"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

type attemptRow struct {
	Failures int   `db:"failures"`
	Since    int64 `db:"since"`
	Blocked  int64 `db:"blocked_until"`
}

func (r attemptRow) attempts() fleet.Attempts {
	return fleet.Attempts{Count: r.Failures, Since: moment(r.Since), Blocked: moment(r.Blocked)}
}

// CountAttempt lets decide look at the counters under keys, in that order, and stores what it answers. An error of
// decide leaves them as they are. decide must be pure: it is asked once without and once with the right to write, so
// that attempts which are refused, of which an attacker can make any number, never reach the one writer. No two calls
// see the same count.
func (s *Store) CountAttempt(ctx context.Context, keys []fleet.AttemptKey, decide func([]fleet.Attempts) ([]fleet.Attempts, error)) error {
	now := make([]fleet.Attempts, len(keys))
	if err := s.view(ctx, func(tx *Tx) error {
		for i, k := range keys {
			var rows []attemptRow
			if err := tx.Select(&rows, `SELECT failures, since, blocked_until FROM signin_failures WHERE scope = ? AND subject = ?`,
				k.Scope, k.Subject); err != nil {
				return fmt.Errorf("counting an attempt: %w", err)
			}
			if len(rows) > 0 {
				now[i] = rows[0].attempts()
			}
		}
		return nil
	}); err != nil {
		return err
	}
	if _, err := decide(now); err != nil {
		return err
	}
	return s.Tx(ctx, func(tx *Tx) error {
		for i, k := range keys {
			// The update that changes nothing takes the lock of the row where rows have locks.
			var r attemptRow
			if err := tx.Get(&r, `INSERT INTO signin_failures (scope, subject, failures, since, blocked_until)
				VALUES (?, ?, 0, 0, 0) ON CONFLICT (scope, subject) DO UPDATE SET failures = signin_failures.failures
				RETURNING failures, since, blocked_until`, k.Scope, k.Subject); err != nil {
				return fmt.Errorf("counting an attempt: %w", err)
			}
			now[i] = r.attempts()
		}
		next, err := decide(now)
		if err != nil {
			return err
		}
		for i, k := range keys {
			if _, err := tx.Exec(`UPDATE signin_failures SET failures = ?, since = ?, blocked_until = ?
				WHERE scope = ? AND subject = ?`,
				next[i].Count, micros(next[i].Since), micros(next[i].Blocked), k.Scope, k.Subject); err != nil {
				return fmt.Errorf("counting an attempt: %w", err)
			}
		}
		return nil
	})
}

// takeBack uncounts one attempt that turned out well: what delays starts afresh, the others lose the one.
func (t *Tx) takeBack(keys []fleet.AttemptKey) error {
	for _, k := range keys {
		query := `UPDATE signin_failures SET failures = failures - 1 WHERE scope = ? AND subject = ? AND failures > 0`
		if k.Delays() {
			query = `DELETE FROM signin_failures WHERE scope = ? AND subject = ?`
		}
		if _, err := t.Exec(query, k.Scope, k.Subject); err != nil {
			return err
		}
	}
	return nil
}
