package store

import (
	"context"
	"fmt"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// PinIdentity returns the uid that the cluster is known by, which is uid itself from now on if it was not known. Of two
// first ones, one wins, for both.
func (s *Store) PinIdentity(ctx context.Context, cluster, uid string) (pinned string, err error) {
	if cluster == "" || uid == "" {
		return "", fleet.Invalid("uid", "a cluster and its uid must not be empty")
	}
	err = s.Tx(ctx, func(tx *Tx) error {
		if _, err := tx.Exec(`INSERT INTO identities (cluster, uid, since) VALUES (?, ?, ?) ON CONFLICT (cluster) DO NOTHING`,
			cluster, uid, micros(time.Now())); err != nil {
			return err
		}
		return tx.Get(&pinned, `SELECT uid FROM identities WHERE cluster = ?`, cluster)
	})
	if err != nil {
		return "", fmt.Errorf("pinning the identity of cluster %s: %w", cluster, err)
	}
	return pinned, nil
}

// AcceptIdentity makes uid the one that the cluster is known by. The entry is recorded with it or neither is.
func (s *Store) AcceptIdentity(ctx context.Context, cluster, uid string, e fleet.Entry) error {
	if cluster == "" || uid == "" {
		return fleet.Invalid("uid", "a cluster and its uid must not be empty")
	}
	err := s.Tx(ctx, func(tx *Tx) error {
		if _, err := tx.Exec(`INSERT INTO identities (cluster, uid, since) VALUES (?, ?, ?)
			ON CONFLICT (cluster) DO UPDATE SET uid = excluded.uid, since = excluded.since`,
			cluster, uid, micros(time.Now())); err != nil {
			return err
		}
		_, err := tx.AppendEntry(e)
		return err
	})
	if err != nil {
		return fmt.Errorf("accepting the identity of cluster %s: %w", cluster, err)
	}
	return nil
}
