package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// credentialRow is a session or a token joined with its person.
type credentialRow struct {
	userRow
	Hash      string `db:"token_hash"`
	Data      string `db:"data"`
	SeenAt    int64  `db:"seen_at"`
	IdleAt    int64  `db:"idle_at"`
	ExpiresAt int64  `db:"expires_at"`

	MostRole  string `db:"most_role"` // of a token; the role of userRow is the person's
	MostScope string `db:"most_scope"`
}

func (r credentialRow) credential() fleet.Credential {
	return fleet.Credential{
		Hash: r.Hash, User: r.account().User, Role: fleet.Role(r.MostRole), Scope: fleet.Scope(r.MostScope), Data: r.Data,
		SeenAt: moment(r.SeenAt), IdleAt: moment(r.IdleAt), ExpiresAt: moment(r.ExpiresAt),
	}
}

const joinedColumns = `u.id, u.name, u.role, u.password, u.epoch, u.disabled_at, u.created_at, u.last_sign_in,
	u.kind, u.issuer, u.subject, u.factor_at, u.invited_until, u.grants, u.groups_there`

// goodSession and goodToken are the one definition of good, as conditions with one time each ×2 and ×1.
const (
	goodSession = `s.revoked_at = 0 AND s.epoch = u.epoch AND u.disabled_at = 0 AND s.idle_at > ? AND s.expires_at > ?`
	goodToken   = `t.revoked_at = 0 AND u.disabled_at = 0 AND t.expires_at > ?` //nolint:gosec // a condition, not a secret
)

// AddSession records a sign-in: the session, the time of it at the person, the browser if it is to be known, the entry; and
// it takes back what the attempts under undo had counted. It answers ErrUnauthenticated if the person was disabled or
// changed since the password was checked, so that no sign-in overtakes a revocation; and if there is a second factor and no
// half sign-in with a proof that is good and was never used.
func (s *Store) AddSession(ctx context.Context, n fleet.NewSession, undo []fleet.AttemptKey, rec fleet.Entry) error {
	return s.Tx(ctx, func(tx *Tx) error {
		ok, err := tx.Exec(`UPDATE users SET last_sign_in = ? WHERE id = ? AND epoch = ? AND disabled_at = 0`,
			micros(n.CreatedAt), n.UserID, n.Epoch)
		if err != nil {
			return err
		}
		if ok == 0 {
			return fmt.Errorf("signing in: the person was changed meanwhile: %w", fleet.ErrUnauthenticated)
		}
		if err := tx.secondStep(n); err != nil {
			return err
		}
		if n.Replaces != "" {
			// Other tabs of the same person go on with the new session; those of somebody else do not.
			if _, err := tx.Exec(`UPDATE sessions SET revoked_at = ?, revoked_for = CASE WHEN user_id = ? THEN ? ELSE ? END
				WHERE token_hash = ? AND revoked_at = 0`, micros(n.CreatedAt), n.UserID, endedReplaced, endedLogout, n.Replaces); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(`INSERT INTO sessions (token_hash, user_id, epoch, data, addr, user_agent, created_at, seen_at,
			idle_at, expires_at, revoked_at, revoked_for) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, '')`,
			n.Hash, n.UserID, n.Epoch, n.Data, storable(n.Addr), storable(n.UserAgent), micros(n.CreatedAt), micros(n.SeenAt),
			micros(n.IdleAt), micros(n.ExpiresAt)); err != nil {
			return err
		}
		if err := tx.addDevice(n); err != nil {
			return err
		}
		if err := tx.takeBack(undo); err != nil {
			return err
		}
		_, err = tx.AppendEntry(rec)
		return err
	})
}

// Session finds a session that is good now with its person; ErrUnauthenticated for every other.
func (s *Store) Session(ctx context.Context, hash string, now time.Time) (fleet.Credential, error) {
	var r credentialRow
	err := s.get(ctx, &r, `SELECT `+joinedColumns+`, s.token_hash, s.data, s.seen_at, s.idle_at, s.expires_at,
		'' AS most_role, '' AS most_scope
		FROM sessions s JOIN users u ON u.id = s.user_id WHERE s.token_hash = ? AND `+goodSession, hash, micros(now), micros(now))
	return r.credential(), unauthenticated("finding a session", err)
}

// unauthenticated turns a missing row into the answer for a credential that is not good.
func unauthenticated(doing string, err error) error {
	switch {
	case errors.Is(err, fleet.ErrNotFound):
		return fmt.Errorf("%s: %w", doing, fleet.ErrUnauthenticated)
	case err != nil:
		return fmt.Errorf("%s: %w", doing, err)
	}
	return nil
}

// TouchSession records activity. It changes a session that is good at seen and no other: what was ended stays ended,
// and there is no statement that could put a row back.
func (s *Store) TouchSession(ctx context.Context, hash, data string, seen, idle time.Time) (ok bool, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		n, err := tx.Exec(`UPDATE sessions SET data = ?, seen_at = ?, idle_at = ?
			WHERE token_hash = ? AND revoked_at = 0 AND idle_at > ? AND expires_at > ?
			AND EXISTS (SELECT 1 FROM users u WHERE u.id = sessions.user_id AND u.epoch = sessions.epoch AND u.disabled_at = 0)`,
			data, micros(seen), micros(idle), hash, micros(seen), micros(seen))
		ok = n > 0
		return err
	})
	return ok && err == nil, err
}

// EndSession ends a session for a reason and records it. A non-empty owner narrows it to that person's. It answers
// whose it was; ErrNotFound for what is unknown or has ended, of which there is nothing to record.
func (s *Store) EndSession(ctx context.Context, hash, owner, why string, at time.Time, rec fleet.Entry) (userID string, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		if err := tx.Get(&userID, `UPDATE sessions SET revoked_at = ?, revoked_for = ?
			WHERE token_hash = ? AND revoked_at = 0 AND expires_at > ? AND (? = '' OR user_id = ?) RETURNING user_id`,
			micros(at), why, hash, micros(at), owner, owner); err != nil {
			return err
		}
		_, err := tx.AppendEntry(rec)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("ending a session: %w", err)
	}
	return userID, nil
}

// Sessions lists the good sessions of a person, the last used first.
func (s *Store) Sessions(ctx context.Context, userID string, now time.Time) ([]fleet.Session, error) {
	var rows []struct {
		Hash      string `db:"token_hash"`
		Addr      string `db:"addr"`
		UserAgent string `db:"user_agent"`
		CreatedAt int64  `db:"created_at"`
		SeenAt    int64  `db:"seen_at"`
		ExpiresAt int64  `db:"expires_at"`
	}
	if err := s.list(ctx, &rows, `SELECT s.token_hash, s.addr, s.user_agent, s.created_at, s.seen_at, s.expires_at
		FROM sessions s JOIN users u ON u.id = s.user_id WHERE s.user_id = ? AND `+goodSession+`
		ORDER BY s.seen_at DESC, s.token_hash`, userID, micros(now), micros(now)); err != nil {
		return nil, fmt.Errorf("listing sessions: %w", err)
	}
	out := make([]fleet.Session, len(rows))
	for i, r := range rows {
		out[i] = fleet.Session{
			Hash: r.Hash, Addr: r.Addr, UserAgent: r.UserAgent, CreatedAt: moment(r.CreatedAt), SeenAt: moment(r.SeenAt),
			ExpiresAt: moment(r.ExpiresAt),
		}
	}
	return out, nil
}

// AddToken records an API token of a person, who must be enabled; session is the hash of the session that asks for it
// and must be good ("" for the command line). ErrTooMany beyond most tokens of one person.
func (s *Store) AddToken(ctx context.Context, hash string, tok fleet.Token, userID, session string, most int, rec fleet.Entry) error {
	err := s.Tx(ctx, func(tx *Tx) error {
		var n int
		if err := tx.Get(&n, `SELECT COUNT(*) FROM users WHERE id = ? AND disabled_at = 0`, userID); err != nil {
			return err
		}
		if n == 0 {
			return fleet.ErrUnauthenticated
		}
		if session != "" {
			// A token must not outlive the revocation of the session that made it by being made a moment later.
			if err := tx.Get(&n, `SELECT COUNT(*) FROM sessions s JOIN users u ON u.id = s.user_id
				WHERE s.token_hash = ? AND s.user_id = ? AND `+goodSession,
				session, userID, micros(tok.CreatedAt), micros(tok.CreatedAt)); err != nil {
				return err
			}
			if n == 0 {
				return fleet.ErrUnauthenticated
			}
		}
		if err := tx.Get(&n, `SELECT COUNT(*) FROM tokens WHERE user_id = ? AND revoked_at = 0 AND expires_at > ?`,
			userID, micros(tok.CreatedAt)); err != nil {
			return err
		}
		if n >= most {
			return fmt.Errorf("%w: a person has at most %d tokens", fleet.ErrTooMany, most)
		}
		if _, err := tx.Exec(`INSERT INTO tokens (id, token_hash, user_id, name, created_at, used_at, expires_at, revoked_at,
			revoked_for, role, scope) VALUES (?, ?, ?, ?, ?, 0, ?, 0, '', ?, ?)`,
			tok.ID, hash, userID, tok.Name, micros(tok.CreatedAt), micros(tok.ExpiresAt), string(tok.Role), string(tok.Scope)); err != nil {
			return err
		}
		_, err := tx.AppendEntry(rec)
		return err
	})
	if err != nil {
		return fmt.Errorf("adding a token: %w", err)
	}
	return nil
}

// Token finds an API token that is good now with its person; ErrUnauthenticated for every other.
func (s *Store) Token(ctx context.Context, hash string, now time.Time) (fleet.Credential, error) {
	var r credentialRow
	err := s.get(ctx, &r, `SELECT `+joinedColumns+`, t.token_hash, '' AS data, t.used_at AS seen_at, 0 AS idle_at, t.expires_at,
		t.role AS most_role, t.scope AS most_scope
		FROM tokens t JOIN users u ON u.id = t.user_id WHERE t.token_hash = ? AND `+goodToken, hash, micros(now))
	return r.credential(), unauthenticated("finding a token", err)
}

// TouchToken records that a token was used.
func (s *Store) TouchToken(ctx context.Context, hash string, used time.Time) error {
	return s.Tx(ctx, func(tx *Tx) error {
		_, err := tx.Exec(`UPDATE tokens SET used_at = ? WHERE token_hash = ? AND revoked_at = 0`, micros(used), hash)
		return err
	})
}

// Tokens lists the good tokens of a person by name.
func (s *Store) Tokens(ctx context.Context, userID string, now time.Time) ([]fleet.Token, error) {
	var rows []struct {
		ID        string `db:"id"`
		Name      string `db:"name"`
		Role      string `db:"role"`
		Scope     string `db:"scope"`
		CreatedAt int64  `db:"created_at"`
		UsedAt    int64  `db:"used_at"`
		ExpiresAt int64  `db:"expires_at"`
	}
	if err := s.list(ctx, &rows, `SELECT t.id, t.name, t.role, t.scope, t.created_at, t.used_at, t.expires_at
		FROM tokens t JOIN users u ON u.id = t.user_id WHERE t.user_id = ? AND `+goodToken+` ORDER BY t.name, t.id`,
		userID, micros(now)); err != nil {
		return nil, fmt.Errorf("listing tokens: %w", err)
	}
	out := make([]fleet.Token, len(rows))
	for i, r := range rows {
		out[i] = fleet.Token{
			ID: r.ID, Name: r.Name, Role: fleet.Role(r.Role), Scope: fleet.Scope(r.Scope),
			CreatedAt: moment(r.CreatedAt), ExpiresAt: moment(r.ExpiresAt), UsedAt: moment(r.UsedAt),
		}
	}
	return out, nil
}

// EndToken ends a token for a reason and records it. A non-empty owner narrows it to that person's. It answers which
// credential it was and whose; ErrNotFound for what is unknown or has ended.
func (s *Store) EndToken(ctx context.Context, id, owner, why string, at time.Time, rec fleet.Entry) (fleet.CredentialKey, error) {
	var row struct {
		Hash   string `db:"token_hash"`
		UserID string `db:"user_id"`
	}
	err := s.Tx(ctx, func(tx *Tx) error {
		if err := tx.Get(&row, `UPDATE tokens SET revoked_at = ?, revoked_for = ?
			WHERE id = ? AND revoked_at = 0 AND expires_at > ? AND (? = '' OR user_id = ?) RETURNING token_hash, user_id`,
			micros(at), why, id, micros(at), owner, owner); err != nil {
			return err
		}
		_, err := tx.AppendEntry(rec)
		return err
	})
	if err != nil {
		return fleet.CredentialKey{}, fmt.Errorf("ending a token: %w", err)
	}
	return fleet.CredentialKey{Hash: row.Hash, UserID: row.UserID}, nil
}

// Credentials lists every session and token that is good now.
func (s *Store) Credentials(ctx context.Context, now time.Time) ([]fleet.CredentialKey, error) {
	var rows []struct {
		Hash   string `db:"token_hash"`
		UserID string `db:"user_id"`
		Epoch  int64  `db:"epoch"`
	}
	if err := s.list(ctx, &rows, `SELECT s.token_hash, s.user_id, u.epoch FROM sessions s JOIN users u ON u.id = s.user_id
			WHERE `+goodSession+`
		UNION ALL SELECT t.token_hash, t.user_id, u.epoch FROM tokens t JOIN users u ON u.id = t.user_id WHERE `+goodToken,
		micros(now), micros(now), micros(now)); err != nil {
		return nil, fmt.Errorf("listing credentials: %w", err)
	}
	out := make([]fleet.CredentialKey, len(rows))
	for i, r := range rows {
		out[i] = fleet.CredentialKey{Hash: r.Hash, UserID: r.UserID, Epoch: r.Epoch}
	}
	return out, nil
}

// WhyEnded is the reason for which a session or token was ended, "" if nobody ended it: it then expired.
func (s *Store) WhyEnded(ctx context.Context, hash string) (string, error) {
	var why []string
	err := s.list(ctx, &why, `SELECT revoked_for FROM sessions WHERE token_hash = ?
		UNION ALL SELECT revoked_for FROM tokens WHERE token_hash = ?`, hash, hash)
	if err != nil || len(why) == 0 {
		return "", err
	}
	return why[0], nil
}

// DropExpired deletes what no longer matters to anybody: sessions and tokens past their absolute deadline, revoked or
// not, set-up codes, invitations and half sign-ins past theirs, browsers that are known no longer, and counters that
// stopped counting before quiet.
func (s *Store) DropExpired(ctx context.Context, now, quiet time.Time) error {
	return s.Tx(ctx, func(tx *Tx) error {
		for _, table := range []string{"sessions", "tokens", "setup_code", "half_sign_ins", "invitations"} {
			if _, err := tx.Exec(`DELETE FROM `+table+` WHERE expires_at <= ?`, micros(now)); err != nil {
				return err
			}
		}
		if err := tx.dropDevices(now); err != nil {
			return err
		}
		_, err := tx.Exec(`DELETE FROM signin_failures WHERE since <= ? AND blocked_until <= ?`, micros(quiet), micros(quiet))
		return err
	})
}
