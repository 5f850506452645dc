package store

import (
	"context"
	"fmt"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// addDevice records the browser of a sign-in instead of the one that it was known as before. Of the browsers of one
// person the oldest go.
func (t *Tx) addDevice(n fleet.NewSession) error {
	d := n.Device
	if d.Hash == "" {
		return nil
	}
	if _, err := t.Exec(`DELETE FROM devices WHERE device_hash = ? AND user_id = ?`, d.Replaces, n.UserID); err != nil {
		return err
	}
	if _, err := t.Exec(`INSERT INTO devices (device_hash, user_id, epoch, name_hash, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)`,
		d.Hash, n.UserID, n.Epoch, d.Name, micros(n.CreatedAt), micros(d.ExpiresAt)); err != nil {
		return err
	}
	_, err := t.Exec(`DELETE FROM devices WHERE user_id = ? AND device_hash NOT IN (SELECT d.device_hash FROM devices d
		WHERE d.user_id = ? ORDER BY d.created_at DESC, d.device_hash LIMIT ?)`, n.UserID, n.UserID, d.Most)
	return err
}

// goodDevice is the one definition of good, as a condition with one time: like a session, a browser is known no longer
// after a change of its person.
const goodDevice = `d.epoch = u.epoch AND u.disabled_at = 0 AND d.expires_at > ?`

// Device tells whether the browser with this hash is one in which the person of that name has signed in, who has not been
// changed since.
func (s *Store) Device(ctx context.Context, hash, name string, now time.Time) (bool, error) {
	var n int
	err := s.get(ctx, &n, `SELECT COUNT(*) FROM devices d JOIN users u ON u.id = d.user_id
		WHERE d.device_hash = ? AND d.name_hash = ? AND `+goodDevice, hash, name, micros(now))
	return n > 0, err
}

// dropDevices deletes browsers that are good no longer.
func (t *Tx) dropDevices(now time.Time) error {
	_, err := t.Exec(`DELETE FROM devices WHERE NOT EXISTS (SELECT 1 FROM devices d JOIN users u ON u.id = d.user_id
		WHERE d.device_hash = devices.device_hash AND `+goodDevice+`)`, micros(now))
	return err
}

// Delayed tells until when attempts are delayed, of the names whose are.
func (s *Store) Delayed(ctx context.Context, now time.Time) (map[string]time.Time, error) {
	var rows []struct {
		Subject string `db:"subject"`
		Blocked int64  `db:"blocked_until"`
	}
	if err := s.list(ctx, &rows, `SELECT subject, blocked_until FROM signin_failures WHERE scope = ? AND blocked_until > ?`,
		fleet.AttemptName, micros(now)); err != nil {
		return nil, fmt.Errorf("listing delayed names: %w", err)
	}
	out := make(map[string]time.Time, len(rows))
	for _, r := range rows {
		out[r.Subject] = moment(r.Blocked)
	}
	return out, nil
}

// ClearAttempts forgets the failures that were counted on a person's name and on the browsers that know them.
func (s *Store) ClearAttempts(ctx context.Context, userID, name string, rec fleet.Entry) error {
	return s.Tx(ctx, func(tx *Tx) error {
		if _, err := tx.Exec(`DELETE FROM signin_failures WHERE scope = ?
			AND (subject = ? OR subject IN (SELECT name_hash FROM devices WHERE user_id = ?))`, fleet.AttemptName, name, userID); err != nil {
			return err
		}
		if _, err := tx.Exec(`DELETE FROM signin_failures WHERE scope = ? AND subject IN (SELECT device_hash FROM devices WHERE user_id = ?)`,
			fleet.AttemptDevice, userID); err != nil {
			return err
		}
		_, err := tx.AppendEntry(rec)
		return err
	})
}
