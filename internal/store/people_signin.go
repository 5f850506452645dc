package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// AccountOf finds a person by what a provider knows them as; ErrNotFound.
func (s *Store) AccountOf(ctx context.Context, id fleet.Identity) (fleet.Account, error) {
	var r userRow
	err := s.get(ctx, &r, `SELECT `+userColumns+` FROM users WHERE kind = ? AND issuer = ? AND subject = ? AND kind <> 'local'`,
		string(id.Kind), id.Issuer, id.Subject)
	if err != nil {
		return fleet.Account{}, fmt.Errorf("finding a person: %w", err)
	}
	return r.account(), nil
}

// SetFactor keeps the secret of a second factor that is to be confirmed, instead of an earlier one. ErrConflict if the
// person has a second factor or cannot have one.
func (s *Store) SetFactor(ctx context.Context, userID string, secret fleet.Sealed) error {
	return s.Tx(ctx, func(tx *Tx) error {
		var n int
		if err := tx.Get(&n, `SELECT COUNT(*) FROM users WHERE id = ? AND kind = 'local' AND factor_at = 0 AND disabled_at = 0`,
			userID); err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("beginning a second factor: %w", fleet.ErrConflict)
		}
		_, err := tx.Exec(`INSERT INTO second_factors (user_id, key_id, wrapped, sealed, last_step) VALUES (?, ?, ?, ?, 0)
			ON CONFLICT (user_id) DO UPDATE SET key_id = excluded.key_id, wrapped = excluded.wrapped, sealed = excluded.sealed, last_step = 0`,
			userID, secret.Key, secret.Wrapped, secret.Data)
		return err
	})
}

// Factor is the second factor of a person, confirmed or not; ErrNotFound.
func (s *Store) Factor(ctx context.Context, userID string) (fleet.Factor, error) {
	var r struct {
		fleet.Sealed
		LastStep int64 `db:"last_step"`
	}
	if err := s.get(ctx, &r, `SELECT key_id, wrapped, sealed, last_step FROM second_factors WHERE user_id = ?`, userID); err != nil {
		return fleet.Factor{}, fmt.Errorf("reading a second factor: %w", err)
	}
	return fleet.Factor{Secret: r.Sealed, LastStep: r.LastStep}, nil
}

// RecoveryCodes counts the codes that a person has left.
func (s *Store) RecoveryCodes(ctx context.Context, userID string) (n int, err error) {
	err = s.get(ctx, &n, `SELECT COUNT(*) FROM recovery_codes WHERE user_id = ?`, userID)
	return n, err
}

// ConfirmFactor makes the secret count from now on, with recovery codes of these hashes. It ends the sessions of the
// person that were begun without it, all but the one that asks, and answers which. ErrConflict if there is a second
// factor already or the secret is another one by now.
func (s *Store) ConfirmFactor(ctx context.Context, userID string, secret fleet.Sealed, step int64, codes []string, keep string, at time.Time, rec fleet.Entry) (ended []string, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		ended = nil
		n, err := tx.Exec(`UPDATE second_factors SET last_step = ? WHERE user_id = ? AND sealed = ? AND last_step < ?`,
			step, userID, secret.Data, step) // the data stays the same when its key is rotated
		if err != nil {
			return err
		}
		if n > 0 {
			n, err = tx.Exec(`UPDATE users SET factor_at = ? WHERE id = ? AND kind = 'local' AND factor_at = 0 AND disabled_at = 0`,
				micros(at), userID)
			if err != nil {
				return err
			}
		}
		if n == 0 {
			return fmt.Errorf("confirming a second factor: %w", fleet.ErrConflict)
		}
		if _, err := tx.Exec(`DELETE FROM recovery_codes WHERE user_id = ?`, userID); err != nil {
			return err
		}
		for _, hash := range codes {
			if _, err := tx.Exec(`INSERT INTO recovery_codes (code_hash, user_id) VALUES (?, ?)`, hash, userID); err != nil {
				return err
			}
		}
		if err := tx.Select(&ended, `UPDATE sessions SET revoked_at = ?, revoked_for = ?
			WHERE user_id = ? AND revoked_at = 0 AND token_hash <> ? RETURNING token_hash`,
			micros(at), endedRevoked, userID, keep); err != nil {
			return err
		}
		_, err = tx.AppendEntry(rec)
		return err
	})
	return ended, err
}

// dropFactor forgets the second factor of a person and everything that was good with it.
func (t *Tx) dropFactor(userID string) error {
	for _, table := range []string{"second_factors", "recovery_codes", "half_sign_ins"} {
		if _, err := t.Exec(`DELETE FROM `+table+` WHERE user_id = ?`, userID); err != nil {
			return err
		}
	}
	return nil
}

// AddHalf records a password that was right. What its attempt had counted is taken back and no more than that: the
// counter of the name, or of the browser, starts afresh only when the second step has turned out well too, or else whoever
// knows the password could try as many codes as they like. Its delay becomes again what it was before, if it is still the
// one of this attempt.
func (s *Store) AddHalf(ctx context.Context, h fleet.HalfSignIn, keys []fleet.AttemptKey, before, after fleet.Attempts) error {
	return s.Tx(ctx, func(tx *Tx) error {
		for _, k := range keys {
			if k.Delays() {
				if _, err := tx.Exec(`UPDATE signin_failures SET blocked_until = ? WHERE scope = ? AND subject = ? AND blocked_until = ?`,
					micros(before.Blocked), k.Scope, k.Subject, micros(after.Blocked)); err != nil {
					return err
				}
			}
			if _, err := tx.Exec(`UPDATE signin_failures SET failures = failures - 1 WHERE scope = ? AND subject = ? AND failures > 0`,
				k.Scope, k.Subject); err != nil {
				return err
			}
		}
		_, err := tx.Exec(`INSERT INTO half_sign_ins (token_hash, user_id, epoch, replaces, expires_at) VALUES (?, ?, ?, ?, ?)`,
			h.Hash, h.UserID, h.Epoch, h.Replaces, micros(h.ExpiresAt))
		return err
	})
}

// TakeBack uncounts attempts that turned out well.
func (s *Store) TakeBack(ctx context.Context, keys []fleet.AttemptKey) error {
	return s.Tx(ctx, func(tx *Tx) error { return tx.takeBack(keys) })
}

// Half finds a half sign-in that is good now, with its person; ErrUnauthenticated for every other.
func (s *Store) Half(ctx context.Context, hash string, now time.Time) (fleet.HalfSignIn, fleet.Account, error) {
	var r struct {
		userRow
		Hash      string `db:"token_hash"`
		Replaces  string `db:"replaces"`
		ExpiresAt int64  `db:"expires_at"`
	}
	err := s.get(ctx, &r, `SELECT `+joinedColumns+`, h.token_hash, h.replaces, h.expires_at
		FROM half_sign_ins h JOIN users u ON u.id = h.user_id
		WHERE h.token_hash = ? AND h.expires_at > ? AND h.epoch = u.epoch AND u.disabled_at = 0`, hash, micros(now))
	if err := unauthenticated("finding a half sign-in", err); err != nil {
		return fleet.HalfSignIn{}, fleet.Account{}, err
	}
	acct := r.account()
	return fleet.HalfSignIn{
		Hash: r.Hash, UserID: acct.ID, Epoch: acct.Epoch, Replaces: r.Replaces, ExpiresAt: moment(r.ExpiresAt),
	}, acct, nil
}

// secondStep refuses a session that lacks what the person's second factor demands, and uses up what it brings.
func (t *Tx) secondStep(n fleet.NewSession) error {
	var factor int64
	if err := t.Get(&factor, `SELECT factor_at FROM users WHERE id = ?`, n.UserID); err != nil {
		return err
	}
	if n.Half == "" && factor == 0 {
		return nil
	}
	if n.Half == "" {
		return fmt.Errorf("signing in: a second factor was set up meanwhile: %w", fleet.ErrUnauthenticated)
	}
	rows, err := t.Exec(`DELETE FROM half_sign_ins WHERE token_hash = ? AND user_id = ? AND epoch = ? AND expires_at > ?`,
		n.Half, n.UserID, n.Epoch, micros(n.CreatedAt))
	if err != nil {
		return err
	}
	if rows == 0 {
		return fmt.Errorf("signing in: the first step is good no longer: %w", fleet.ErrUnauthenticated)
	}
	return t.prove(n.UserID, n.Proof)
}

// prove uses up a proof: of two that come at once, one changes nothing.
func (t *Tx) prove(userID string, p fleet.Proof) error {
	var (
		rows int64
		err  error
	)
	if p.Recovery != "" {
		rows, err = t.Exec(`DELETE FROM recovery_codes WHERE user_id = ? AND code_hash = ?`, userID, p.Recovery)
	} else {
		rows, err = t.Exec(`UPDATE second_factors SET last_step = ? WHERE user_id = ? AND last_step < ?`, p.Step, userID, p.Step)
	}
	if err != nil {
		return err
	}
	if rows == 0 {
		return fmt.Errorf("the code is not good or was used: %w", fleet.ErrUnauthenticated)
	}
	return nil
}

func (t *Tx) invite(userID, hash string, until time.Time) error {
	if _, err := t.Exec(`INSERT INTO invitations (user_id, code_hash, expires_at) VALUES (?, ?, ?)
		ON CONFLICT (user_id) DO UPDATE SET code_hash = excluded.code_hash, expires_at = excluded.expires_at`,
		userID, hash, micros(until)); err != nil {
		return err
	}
	_, err := t.Exec(`UPDATE users SET invited_until = ? WHERE id = ?`, micros(until), userID)
	return err
}

// SetInvitation gives a local person a new invitation instead of an earlier one. ErrNotFound; ErrConflict for a person
// who is disabled or has no password here.
func (s *Store) SetInvitation(ctx context.Context, name, hash string, until time.Time, rec fleet.Entry) error {
	err := s.Tx(ctx, func(tx *Tx) error {
		var r userRow
		if err := tx.Get(&r, `SELECT `+userColumns+` FROM users WHERE name = ?`, name); err != nil {
			if errors.Is(err, fleet.ErrNotFound) {
				return notFound("person", name)
			}
			return err
		}
		if r.DisabledAt != 0 || r.Kind != string(fleet.PersonLocal) {
			return fmt.Errorf("%s cannot set a password: %w", name, fleet.ErrConflict)
		}
		if err := tx.invite(r.ID, hash, until); err != nil {
			return err
		}
		_, err := tx.AppendEntry(rec)
		return err
	})
	if err != nil {
		return fmt.Errorf("inviting a person: %w", err)
	}
	return nil
}

// Invited is the person whom the invitation of this hash is for; ErrUnauthenticated if it is not good now.
func (s *Store) Invited(ctx context.Context, hash string, now time.Time) (fleet.User, error) {
	var r userRow
	err := s.get(ctx, &r, `SELECT `+joinedColumns+` FROM invitations i JOIN users u ON u.id = i.user_id
		WHERE i.code_hash = ? AND i.expires_at > ? AND u.disabled_at = 0`, hash, micros(now))
	return r.account().User, unauthenticated("finding an invitation", err)
}

// UseInvitation sets the password with the invitation of this hash, which is good once: ErrUnauthenticated if it is not
// good. What was signed in with an earlier password ends.
func (s *Store) UseInvitation(ctx context.Context, hash, password string, at time.Time, rec func(fleet.User) fleet.Entry) (u fleet.User, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		var id string
		// Whoever deletes the row has the invitation; of two, one finds nothing to delete.
		if err := tx.Get(&id, `DELETE FROM invitations WHERE code_hash = ? AND expires_at > ? RETURNING user_id`,
			hash, micros(at)); err != nil {
			return unauthenticated("using an invitation", err)
		}
		var r userRow
		if err := tx.Get(&r, `UPDATE users SET password = ?, invited_until = 0, epoch = epoch + 1
			WHERE id = ? AND disabled_at = 0 AND kind = 'local' RETURNING `+userColumns, password, id); err != nil {
			return unauthenticated("using an invitation", err)
		}
		if err := tx.endAll(id, endedPassword, at); err != nil {
			return err
		}
		u = r.account().User
		_, err := tx.AppendEntry(rec(u))
		return err
	})
	return u, err
}
