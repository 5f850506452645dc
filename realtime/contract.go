package realtime

import (
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Window is one page of a node list, read in one step: rows, counters and the cursor belong together.
type Window struct {
	Cursor   string // epoch.revision: where a stream of the same query goes on without a gap
	Revision uint64
	Nodes    []*fleet.Node // shared, read-only, in order
	Rows     [][]byte      // the live row of each node in the asked language
	Total    int           // nodes that match, on every page
	Page     int           // the page shown; the last one if a later one was asked
	Pages    int           // at least 1
	Counts   Counts
	Facets   Facets
	Clusters []fleet.Cluster // those the query names, in order of name
}

// Counts are counters over all nodes that match a query.
type Counts struct {
	Total, Ready, NotReady, Unknown, Cordoned, Pressure int
}

// Facets are the values that occur on the nodes of the clusters in view, sorted.
type Facets struct {
	Zones, Roles, Types, Versions []string
}

// Format is what a stream speaks.
type Format int

// HTML is for htmx pages: unnamed messages hold fragments, named ones are events of the document. JSON is the message
// of the contract, one line each.
const (
	HTML Format = iota
	JSON
)

// Viewer is who a stream belongs to; the stream ends when the session is revoked or the person disabled.
type Viewer struct {
	Session string // hash of session or token
	UserID  string
	Addr    string
	Lang    string
	Format  Format
	Since   string // cursor from Last-Event-ID or ?since=; "" opens with the current state
}

// NodeStream asks for the live stream of a node query.
type NodeStream struct {
	Viewer
	Query *Query
	// All makes an HTML stream of one node page: the row and nothing else. JSON streams are never paged.
	Node *fleet.NodeRef
}

// ClusterStream asks for the live rows of the clusters page.
type ClusterStream struct{ Viewer }

// BatchStream asks for the progress of a batch. Open is sent first on an HTML stream that answers a form's POST: the
// panel itself; nil otherwise.
type BatchStream struct {
	Viewer
	Batch string
	Open  []byte
}
