package credentials

import (
	"context"
	"fmt"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// rotateBatch is how many data keys are written in one transaction.
const rotateBatch = 50

// ClusterPlace is where the credential of a managed cluster is kept. The name belongs to it: otherwise whoever can write
// to the database could give one cluster's name to another one's credential.
func ClusterPlace(c fleet.StoredCluster) Place {
	return Place{Table: "managed_clusters", Row: c.ID + "/" + c.Name, Column: "sealed"}
}

// Rows are the sealed credentials. *store.Store implements it.
type Rows interface {
	// ClustersNotUnder lists rows sealed under another key than the given one, in order of id, after an id.
	ClustersNotUnder(ctx context.Context, key, after string, limit int) ([]fleet.StoredCluster, error)
	// RewrapClusters exchanges wrappings in one transaction and tells how many it did: a row that is not as it was any
	// more is left alone.
	RewrapClusters(ctx context.Context, rows []fleet.Rewrapped) (int, error)
}

// Rotation is what a call of Rotate did.
type Rotation struct {
	Rewrapped  int
	Unreadable []string // names of clusters whose credential does not open under the keys that were given
}

// Rotate wraps every data key with the current key. It can be killed between any two steps and run again; run twice, it
// finds nothing to do. A row that was changed meanwhile was changed by somebody with a key of their own, and is looked
// at again.
func Rotate(ctx context.Context, rows Rows, keys *Keys) (Rotation, error) {
	var done Rotation
	after := ""
	for {
		page, err := rows.ClustersNotUnder(ctx, keys.Current(), after, rotateBatch)
		if err != nil {
			return done, fmt.Errorf("reading credentials to rotate: %w", err)
		}
		if len(page) == 0 {
			return done, nil
		}
		var wraps []fleet.Rewrapped
		for _, c := range page {
			after = c.ID
			s, err := keys.Rewrap(ClusterPlace(c), c.SealedCredential)
			if err != nil {
				done.Unreadable = append(done.Unreadable, c.Name)
				continue
			}
			wraps = append(wraps, fleet.Rewrapped{ID: c.ID, Was: c.Wrapped, Key: s.Key, Wrapped: s.Wrapped})
		}
		n, err := rows.RewrapClusters(ctx, wraps)
		if err != nil {
			return done, fmt.Errorf("writing rotated credentials: %w", err)
		}
		done.Rewrapped += n
		if n < len(wraps) {
			after = "" // somebody changed a row meanwhile: look again from the start
			done.Unreadable = nil
		}
	}
}
