package seal

import (
	"context"
	"fmt"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// rotateBatch is how many data keys are written in one transaction.
const rotateBatch = 50

// Rows are the sealed secrets of a database. *store.Store implements it.
type Rows interface {
	// Sealed lists rows sealed under another key than the given one, in a fixed order, from the one after a row on.
	Sealed(ctx context.Context, except string, after fleet.SealedRow, limit int) ([]fleet.SealedRow, error)
	// Rewrap exchanges wrappings in one transaction and tells how many it did: a row that is not as it was any more is
	// left alone.
	Rewrap(ctx context.Context, rows []fleet.Rewrapped) (int, error)
}

// Rotation is what a call of Rotate did.
type Rotation struct {
	Rewrapped  int
	Unreadable []fleet.SealedRow // that do not open under the keys that were given
}

// Rotate wraps every data key with the current key. It can be killed between any two steps and run again; run twice, it
// finds nothing to do. A row that was changed meanwhile was changed by somebody with a key of their own, and is looked
// at again.
func Rotate(ctx context.Context, rows Rows, keys *Keys) (Rotation, error) {
	var done Rotation
	var after fleet.SealedRow
	for {
		page, err := rows.Sealed(ctx, keys.Current(), after, rotateBatch)
		if err != nil {
			return done, fmt.Errorf("reading secrets to rotate: %w", err)
		}
		if len(page) == 0 {
			return done, nil
		}
		var wraps []fleet.Rewrapped
		for _, r := range page {
			after = r
			s, err := keys.Rewrap(r.Place(), r.Sealed)
			if err != nil {
				done.Unreadable = append(done.Unreadable, r)
				continue
			}
			wraps = append(wraps, fleet.Rewrapped{SealedRow: r, New: s})
		}
		n, err := rows.Rewrap(ctx, wraps)
		if err != nil {
			return done, fmt.Errorf("writing rotated secrets: %w", err)
		}
		done.Rewrapped += n
		if n < len(wraps) {
			after = fleet.SealedRow{} // somebody changed a row meanwhile: look again from the start
			done.Unreadable = nil
		}
	}
}

// Check answers an UnknownKeyError, with the row in front, if a secret is sealed under a key that was not given.
func Check(ctx context.Context, rows Rows, keys *Keys) error {
	var after fleet.SealedRow
	for {
		page, err := rows.Sealed(ctx, keys.Current(), after, 1000)
		if err != nil {
			return fmt.Errorf("reading which keys are in use: %w", err)
		}
		if len(page) == 0 {
			return nil
		}
		for _, r := range page {
			if !keys.Has(r.Key) {
				return fmt.Errorf("%s: %w: give the file that has it, and keep a key until `key rotate` has replaced it",
					r, &UnknownKeyError{ID: r.Key})
			}
		}
		after = page[len(page)-1]
	}
}
