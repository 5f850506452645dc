package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// AuditAnchor is the last entry that retention has removed, zero if it has removed none: the record begins after it.
func (s *Store) AuditAnchor(ctx context.Context) (fleet.AuditHead, error) {
	var row struct {
		Seq          int64  `db:"seq"`
		Hash         string `db:"hash"`
		At           int64  `db:"at"`
		Installation string `db:"installation"`
		Key          string `db:"signing_key"`
		Signature    string `db:"signature"`
	}
	err := s.get(ctx, &row, `SELECT seq, hash, at, installation, signing_key, signature FROM audit_anchor WHERE id = 1`)
	if errors.Is(err, fleet.ErrNotFound) {
		return fleet.AuditHead{}, nil
	}
	if err != nil {
		return fleet.AuditHead{}, fmt.Errorf("reading where the record begins: %w", err)
	}
	return fleet.AuditHead{
		Seq: row.Seq, Hash: row.Hash, At: moment(row.At), Installation: row.Installation, Key: row.Key, Signature: row.Signature,
	}, nil
}

// CutEntries removes the entries after the anchor from up to the one that to names, which becomes the new anchor, in one
// transaction. ErrConflict if the anchor is another one, or the entry is not there.
func (s *Store) CutEntries(ctx context.Context, from int64, to fleet.AuditHead) error {
	return s.Tx(ctx, func(tx *Tx) error {
		var there int64
		if err := tx.Get(&there, `SELECT COUNT(*) FROM audit WHERE seq = ? AND hash = ?`, to.Seq, to.Hash); err != nil {
			return err
		}
		var at int64
		err := tx.Get(&at, `SELECT seq FROM audit_anchor WHERE id = 1`)
		if err != nil && !errors.Is(err, fleet.ErrNotFound) {
			return err
		}
		if at != from || there != 1 {
			return fmt.Errorf("the record begins after entry %d: %w", at, fleet.ErrConflict)
		}
		if _, err := tx.Exec(`INSERT INTO audit_anchor (id, seq, hash, at, installation, signing_key, signature)
			VALUES (1, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET seq = excluded.seq, hash = excluded.hash,
			at = excluded.at, installation = excluded.installation, signing_key = excluded.signing_key,
			signature = excluded.signature`,
			to.Seq, to.Hash, micros(to.At), to.Installation, to.Key, to.Signature); err != nil {
			return err
		}
		_, err = tx.Exec(`DELETE FROM audit WHERE seq > ? AND seq <= ?`, from, to.Seq)
		return err
	})
}
