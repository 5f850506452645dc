package fleet

// Sealed is a secret as it is stored: a data key wrapped by the key with the given id, and what the data key seals. Texts
// are base64.
type Sealed struct {
	Key     string `db:"key_id"`
	Wrapped string `db:"wrapped"`
	Data    string `db:"sealed"`
}

// Place is where a sealed secret is kept. It opens nowhere else, so that rows cannot be swapped.
type Place struct{ Table, Row, Column string }

// The tables with a sealed secret in each row.
const (
	SealedClusters = "managed_clusters"
	SealedFactors  = "second_factors"
)

// SealedRow is a row with a secret in it, of any table.
type SealedRow struct {
	Table string `db:"place"` // one of the Sealed constants
	ID    string `db:"id"`
	Name  string `db:"name"` // of the cluster or the person
	Sealed
}

// Place is where the secret of the row is kept. The name of a cluster belongs to it: otherwise whoever can write to the
// database could give one cluster's name to another one's credential.
func (r SealedRow) Place() Place {
	if r.Table == SealedClusters {
		return Place{Table: r.Table, Row: r.ID + "/" + r.Name, Column: "sealed"}
	}
	return Place{Table: r.Table, Row: r.ID, Column: "sealed"}
}

// String names the row to a person.
func (r SealedRow) String() string {
	if r.Table == SealedClusters {
		return "cluster " + r.Name
	}
	return "second factor of " + r.Name
}

// Rewrapped is a new wrapping of the data key of a row, good only if the old one is still there.
type Rewrapped struct {
	SealedRow
	New Sealed
}
