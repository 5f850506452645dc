package store

import (
	"cmp"
	"context"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// userRow is one row of users.
type userRow struct {
	ID         string `db:"id"`
	Name       string `db:"name"`
	Role       string `db:"role"`
	Password   string `db:"password"`
	Epoch      int64  `db:"epoch"`
	DisabledAt int64  `db:"disabled_at"`
	CreatedAt  int64  `db:"created_at"`
	LastSignIn int64  `db:"last_sign_in"`
	Kind       string `db:"kind"`
	Issuer     string `db:"issuer"`
	Subject    string `db:"subject"`
	FactorAt   int64  `db:"factor_at"`
	Invited    int64  `db:"invited_until"`

	Grants listOf[fleet.Grant] `db:"grants"`
	Groups listOf[string]      `db:"groups_there"`
}

const userColumns = `id, name, role, password, epoch, disabled_at, created_at, last_sign_in, kind, issuer, subject, factor_at,
	invited_until, grants, groups_there`

// listOf is a list that a column of text keeps as JSON. One that cannot be read is an error and not an empty list: of a
// person nobody must be told less, or more, than what was decided.
type listOf[T any] []T

// Scan implements sql.Scanner.
func (l *listOf[T]) Scan(src any) error {
	var text []byte
	switch src := src.(type) {
	case string:
		text = []byte(src)
	case []byte:
		text = src
	default:
		return fmt.Errorf("a list is kept as %T", src)
	}
	var list []T
	if err := json.Unmarshal(text, &list); err != nil {
		return fmt.Errorf("reading a list: %w", err)
	}
	*l = orNil(list)
	return nil
}

// orNil makes no list of an empty one: there is one way to have none.
func orNil[T any](list []T) listOf[T] {
	if len(list) == 0 {
		return nil
	}
	return list
}

// Value implements driver.Valuer.
func (l listOf[T]) Value() (driver.Value, error) {
	if len(l) == 0 {
		return "[]", nil
	}
	text, err := json.Marshal([]T(l))
	return string(text), err
}

// same tells whether two lists are kept as the same text.
func (l listOf[T]) same(other listOf[T]) (bool, error) {
	a, errA := l.Value()
	b, errB := other.Value()
	return a == b, errors.Join(errA, errB)
}

func (r userRow) account() fleet.Account {
	return fleet.Account{
		User: fleet.User{
			ID: r.ID, Name: r.Name, Role: fleet.Role(r.Role), Disabled: r.DisabledAt != 0, Epoch: r.Epoch,
			CreatedAt: moment(r.CreatedAt), LastSignIn: moment(r.LastSignIn), Kind: fleet.PersonKind(r.Kind), Issuer: r.Issuer,
			SecondFactor: moment(r.FactorAt), InvitedUntil: moment(r.Invited), Grants: r.Grants, Groups: r.Groups,
		},
		Password: r.Password, Subject: r.Subject,
	}
}

// HasUsers tells whether anybody exists, enabled or not.
func (s *Store) HasUsers(ctx context.Context) (bool, error) {
	var n int
	err := s.get(ctx, &n, `SELECT COUNT(*) FROM users`)
	return n > 0, err
}

// Users lists everybody by name.
func (s *Store) Users(ctx context.Context) ([]fleet.User, error) {
	var rows []userRow
	if err := s.list(ctx, &rows, `SELECT `+userColumns+` FROM users ORDER BY name`); err != nil {
		return nil, fmt.Errorf("listing people: %w", err)
	}
	out := make([]fleet.User, len(rows))
	for i, r := range rows {
		out[i] = r.account().User
	}
	return out, nil
}

// User finds a person by id; ErrNotFound.
func (s *Store) User(ctx context.Context, id string) (fleet.User, error) {
	var r userRow
	if err := s.get(ctx, &r, `SELECT `+userColumns+` FROM users WHERE id = ?`, id); err != nil {
		return fleet.User{}, fmt.Errorf("finding a person: %w", err)
	}
	return r.account().User, nil
}

// Account finds a person by normalised name; ErrNotFound.
func (s *Store) Account(ctx context.Context, name string) (fleet.Account, error) {
	var r userRow
	err := s.get(ctx, &r, `SELECT `+userColumns+` FROM users WHERE name = ?`, name)
	if err != nil {
		return fleet.Account{}, fmt.Errorf("finding a person: %w", err)
	}
	return r.account(), nil
}

// AddUser makes a person; ErrConflict if the name or the identity is taken.
func (s *Store) AddUser(ctx context.Context, a fleet.Account, rec fleet.Entry) error {
	return s.Tx(ctx, func(tx *Tx) error {
		if err := tx.addUser(a); err != nil {
			return err
		}
		_, err := tx.AppendEntry(rec)
		return err
	})
}

func (t *Tx) addUser(a fleet.Account) error {
	var disabled int64
	if a.Disabled {
		disabled = micros(a.CreatedAt)
	}
	_, err := t.Exec(`INSERT INTO users (`+userColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, ?, ?)`,
		a.ID, a.Name, string(a.Role), a.Password, a.Epoch, disabled, micros(a.CreatedAt), micros(a.LastSignIn),
		string(cmp.Or(a.Kind, fleet.PersonLocal)), a.Issuer, a.Subject, listOf[fleet.Grant](a.Grants), listOf[string](a.Groups))
	if err == nil && a.Invitation != "" {
		err = t.invite(a.ID, a.Invitation, a.InvitedUntil)
	}
	if err != nil {
		return fmt.Errorf("adding %s: %w", a.Name, err)
	}
	return nil
}

// The reasons why a credential ended, as pages and streams tell them.
const (
	endedRole     = "role"
	endedDisabled = "disabled"
	endedPassword = "password"
	endedLogout   = "logout"
	endedReplaced = "replaced" // by a sign-in of the same person in the same browser
	endedRevoked  = "revoked"
)

// ChangeUser changes a person and ends their sessions, and for disabling, a new password and revoking their tokens too,
// in one step with the record, which is made from the person before and after. Where the person is like that already
// nothing happens and changed is false; other groups alone are kept, and that is all. ErrNotFound; ErrConflict for the last admin; ErrUnauthenticated for a proof that
// is not good.
func (s *Store) ChangeUser(ctx context.Context, name string, ch fleet.UserChange, at time.Time, rec func(before, after fleet.User) fleet.Entry) (u fleet.User, changed bool, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		var r userRow
		if err := tx.Get(&r, `SELECT `+userColumns+` FROM users WHERE name = ?`, name); err != nil {
			if errors.Is(err, fleet.ErrNotFound) {
				return notFound("person", name)
			}
			return err
		}
		before, next := r.account().User, r
		why := ""
		if ch.Role != nil && string(*ch.Role) != r.Role {
			next.Role, why = string(*ch.Role), endedRole
		}
		if ch.Grants != nil {
			list, err := ch.Grants(slices.Clone(before.Grants))
			if err != nil {
				return err
			}
			next.Grants = orNil(list)
			same, err := r.Grants.same(next.Grants)
			if err != nil {
				return err
			}
			if !same {
				why = endedRole
			}
		}
		if ch.Groups != nil {
			next.Groups = orNil(*ch.Groups)
		}
		if ch.Password != nil {
			next.Password, why = *ch.Password, endedPassword
		}
		if ch.Disabled != nil && *ch.Disabled != before.Disabled {
			next.DisabledAt, why = 0, endedDisabled
			if *ch.Disabled {
				next.DisabledAt = micros(at)
			}
		}
		if ch.Revoke {
			why = endedRevoked
		}
		if ch.NoFactor && r.FactorAt != 0 {
			next.FactorAt, why = 0, endedRevoked
			if ch.Proof != nil {
				if err := tx.prove(r.ID, *ch.Proof); err != nil {
					return err
				}
			}
		}
		if why == "" {
			u = next.account().User
			if same, err := r.Groups.same(next.Groups); same || err != nil {
				return err
			}
			_, err := tx.Exec(`UPDATE users SET groups_there = ? WHERE id = ?`, next.Groups, r.ID)
			return err
		}
		if ch.Password != nil || next.DisabledAt != 0 {
			next.Invited = 0
			if _, err := tx.Exec(`DELETE FROM invitations WHERE user_id = ?`, r.ID); err != nil {
				return err
			}
		}
		if next.FactorAt == 0 && r.FactorAt != 0 {
			if err := tx.dropFactor(r.ID); err != nil {
				return err
			}
		}
		isAdmin := func(r userRow) bool { return r.Role == string(fleet.RoleAdmin) && r.DisabledAt == 0 }
		if ch.KeepAdmin && isAdmin(r) && !isAdmin(next) {
			var others int
			if err := tx.Get(&others, `SELECT COUNT(*) FROM users WHERE role = 'admin' AND disabled_at = 0 AND id <> ?
				AND (password <> '' OR kind <> 'local')`, r.ID); err != nil {
				return err
			}
			if others == 0 {
				return fmt.Errorf("%s is the last admin: %w", name, fleet.ErrConflict)
			}
		}
		next.Epoch++
		if _, err := tx.Exec(`UPDATE users SET role = ?, password = ?, disabled_at = ?, epoch = ?, factor_at = ?, invited_until = ?,
			grants = ?, groups_there = ? WHERE id = ?`, next.Role, next.Password, next.DisabledAt, next.Epoch, next.FactorAt, next.Invited,
			next.Grants, next.Groups, r.ID); err != nil {
			return err
		}
		if err := tx.endAll(r.ID, why, at); err != nil {
			return err
		}
		u, changed = next.account().User, true
		_, err := tx.AppendEntry(rec(before, u))
		return err
	})
	if err != nil {
		return fleet.User{}, false, fmt.Errorf("changing a person: %w", err)
	}
	return u, changed, nil
}

// endAll ends the sessions of a person and, unless it is only that their role changed, their tokens.
func (t *Tx) endAll(userID, why string, at time.Time) error {
	if _, err := t.Exec(`UPDATE sessions SET revoked_at = ?, revoked_for = ? WHERE user_id = ? AND revoked_at = 0`,
		micros(at), why, userID); err != nil {
		return err
	}
	if why == endedRole {
		return nil
	}
	_, err := t.Exec(`UPDATE tokens SET revoked_at = ?, revoked_for = ? WHERE user_id = ? AND revoked_at = 0`,
		micros(at), why, userID)
	return err
}

// Rehash stores a password's hash under stronger parameters, unless the password has been changed meanwhile.
func (s *Store) Rehash(ctx context.Context, userID, old, fresh string) error {
	return s.Tx(ctx, func(tx *Tx) error {
		_, err := tx.Exec(`UPDATE users SET password = ? WHERE id = ? AND password = ?`, fresh, userID, old)
		return err
	})
}

// SetSetupCode makes the code with this hash the only one that is good, and answers false once somebody exists.
func (s *Store) SetSetupCode(ctx context.Context, hash string, expires time.Time) (ok bool, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		var users int
		if err := tx.Get(&users, `SELECT COUNT(*) FROM users`); err != nil || users > 0 {
			return err
		}
		ok = true
		_, err := tx.Exec(`INSERT INTO setup_code (id, code_hash, expires_at) VALUES (1, ?, ?)
			ON CONFLICT (id) DO UPDATE SET code_hash = excluded.code_hash, expires_at = excluded.expires_at`,
			hash, micros(expires))
		return err
	})
	return ok && err == nil, err
}

// SetupCode tells whether the code with this hash is good now.
func (s *Store) SetupCode(ctx context.Context, hash string, now time.Time) (bool, error) {
	var n int
	err := s.get(ctx, &n, `SELECT COUNT(*) FROM setup_code WHERE code_hash = ? AND expires_at > ?`, hash, micros(now))
	return n > 0, err
}

// UseSetupCode makes the first person with the code, which is good once: ErrUnauthenticated if it is not good,
// ErrConflict if somebody exists.
func (s *Store) UseSetupCode(ctx context.Context, hash string, now time.Time, a fleet.Account, rec fleet.Entry) error {
	return s.Tx(ctx, func(tx *Tx) error {
		var users int
		if err := tx.Get(&users, `SELECT COUNT(*) FROM users`); err != nil {
			return err
		}
		if users > 0 {
			return fmt.Errorf("setting up: %w", fleet.ErrConflict)
		}
		// Whoever deletes the row has the code; of two, one deletes nothing.
		n, err := tx.Exec(`DELETE FROM setup_code WHERE code_hash = ? AND expires_at > ?`, hash, micros(now))
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("setting up: %w", fleet.ErrUnauthenticated)
		}
		if err := tx.addUser(a); err != nil {
			return err
		}
		_, err = tx.AppendEntry(rec)
		return err
	})
}
