package store

import (
	"context"
	"fmt"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// clusterRow is one row of managed_clusters.
type clusterRow struct {
	ID     string `db:"id"`
	Name   string `db:"name"`
	Server string `db:"server"`
	fleet.Sealed
	Version   int64  `db:"version"`
	AddedBy   string `db:"added_by"`
	AddedAt   int64  `db:"added_at"`
	ChangedBy string `db:"changed_by"`
	ChangedAt int64  `db:"changed_at"`
}

const clusterColumns = `id, name, server, key_id, wrapped, sealed, version, added_by, added_at, changed_by, changed_at`

func (r clusterRow) cluster() fleet.StoredCluster {
	return fleet.StoredCluster{
		ID: r.ID, Name: r.Name, Server: r.Server, Sealed: r.Sealed, Version: r.Version,
		AddedBy: r.AddedBy, AddedAt: moment(r.AddedAt), ChangedBy: r.ChangedBy, ChangedAt: moment(r.ChangedAt),
	}
}

func storedClusters(rows []clusterRow) []fleet.StoredCluster {
	out := make([]fleet.StoredCluster, len(rows))
	for i, r := range rows {
		out[i] = r.cluster()
	}
	return out
}

func (t *Tx) clustersChanged() (seq int64, err error) {
	err = t.Get(&seq, `UPDATE managed_clusters_seq SET seq = seq + 1 WHERE id = 1 RETURNING seq`)
	return seq, err
}

// AddCluster keeps a new cluster. The entry is recorded with it or neither is. A name that is taken is ErrConflict.
func (s *Store) AddCluster(ctx context.Context, c fleet.StoredCluster, e fleet.Entry) error {
	err := s.Tx(ctx, func(tx *Tx) error {
		seq, err := tx.clustersChanged()
		if err != nil {
			return err
		}
		now := micros(time.Now())
		if _, err := tx.Exec(`INSERT INTO managed_clusters (`+clusterColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			c.ID, c.Name, c.Server, c.Key, c.Wrapped, c.Data, seq, c.AddedBy, now, c.AddedBy, now); err != nil {
			return err
		}
		_, err = tx.AppendEntry(e)
		return err
	})
	if err != nil {
		return fmt.Errorf("adding cluster %q: %w", c.Name, err)
	}
	return nil
}

// ReplaceCluster exchanges the credential of the cluster with the ID, as long as its version is still that of c: what
// was sealed for a row that somebody else has changed since is ErrConflict. The entry is recorded with it.
func (s *Store) ReplaceCluster(ctx context.Context, c fleet.StoredCluster, e fleet.Entry) error {
	err := s.Tx(ctx, func(tx *Tx) error {
		seq, err := tx.clustersChanged()
		if err != nil {
			return err
		}
		n, err := tx.Exec(`UPDATE managed_clusters SET server = ?, key_id = ?, wrapped = ?, sealed = ?, version = ?,
			changed_by = ?, changed_at = ? WHERE id = ? AND version = ?`,
			c.Server, c.Key, c.Wrapped, c.Data, seq, c.ChangedBy, micros(time.Now()), c.ID, c.Version)
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("somebody else has changed it: %w", fleet.ErrConflict)
		}
		_, err = tx.AppendEntry(e)
		return err
	})
	if err != nil {
		return fmt.Errorf("replacing the credential of cluster %q: %w", c.Name, err)
	}
	return nil
}

// RemoveCluster forgets a cluster and its credential. The entry is recorded with it. ErrNotFound.
func (s *Store) RemoveCluster(ctx context.Context, name string, e fleet.Entry) error {
	err := s.Tx(ctx, func(tx *Tx) error {
		n, err := tx.Exec(`DELETE FROM managed_clusters WHERE name = ?`, name)
		if err != nil {
			return err
		}
		if n == 0 {
			return notFound("cluster", name)
		}
		if _, err := tx.clustersChanged(); err != nil {
			return err
		}
		_, err = tx.AppendEntry(e)
		return err
	})
	if err != nil {
		return fmt.Errorf("removing cluster %q: %w", name, err)
	}
	return nil
}

// ManagedCluster is one cluster that came in through the web. ErrNotFound.
func (s *Store) ManagedCluster(ctx context.Context, name string) (fleet.StoredCluster, error) {
	var rows []clusterRow
	if err := s.list(ctx, &rows, `SELECT `+clusterColumns+` FROM managed_clusters WHERE name = ?`, name); err != nil {
		return fleet.StoredCluster{}, fmt.Errorf("reading cluster %q: %w", name, err)
	}
	if len(rows) == 0 {
		return fleet.StoredCluster{}, notFound("cluster", name)
	}
	return rows[0].cluster(), nil
}

// ManagedClusters are all clusters that came in through the web, in order of name, and the number of the last change,
// both of one moment.
func (s *Store) ManagedClusters(ctx context.Context) (list []fleet.StoredCluster, seq int64, err error) {
	var rows []clusterRow
	err = s.view(ctx, func(tx *Tx) error {
		if err := tx.Get(&seq, `SELECT seq FROM managed_clusters_seq WHERE id = 1`); err != nil {
			return err
		}
		return tx.Select(&rows, `SELECT `+clusterColumns+` FROM managed_clusters ORDER BY name`)
	})
	if err != nil {
		return nil, 0, fmt.Errorf("reading clusters: %w", err)
	}
	return storedClusters(rows), seq, nil
}

// ManagedClustersSeq is the number of the last change.
func (s *Store) ManagedClustersSeq(ctx context.Context) (seq int64, err error) {
	if err := s.get(ctx, &seq, `SELECT seq FROM managed_clusters_seq WHERE id = 1`); err != nil {
		return 0, fmt.Errorf("reading the changes of clusters: %w", err)
	}
	return seq, nil
}
