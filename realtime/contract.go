package realtime

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Renderer turns what changed into fragments. Rows (NodeRow, GroupRow, ClusterRow, BatchItem) are one plain <tr id="…"> without
// any hx-swap-oob: the stream adds it. Everything else carries its own hx-swap-oob. A row depends on nothing but its
// argument and the language, so that one rendering serves every viewer. Methods are called from many goroutines.
type Renderer interface {
	NodeRow(n *fleet.Node, lang string) []byte
	// NodeID is the DOM id of NodeRow.
	NodeID(ref fleet.NodeRef) string
	// GroupRow is the header of a group, among the rows of its nodes.
	GroupRow(g Group, lang string) []byte
	// GroupID is the DOM id of GroupRow.
	GroupID(value string) string
	// Counts are the counters and the pager of a list.
	Counts(c Counts, page, pages, total int, lang string) []byte
	// ClusterBadge is the small indicator of a cluster's state on node pages.
	ClusterBadge(c fleet.Cluster, lang string) []byte
	ClusterRow(c fleet.Cluster, lang string) []byte
	// ClusterID is the DOM id of ClusterRow.
	ClusterID(name string) string
	BatchItem(i fleet.Item, lang string) []byte
	BatchProgress(b fleet.Batch, lang string) []byte
}

// BatchSource reads batches. BatchSince returns the batch as it is now and the items that changed after version
// (all of them for a negative one), in order of Seq; ErrNotFound for an unknown batch.
type BatchSource interface {
	BatchSince(ctx context.Context, id string, version int64) (fleet.Batch, []fleet.Item, error)
}

// ManagerConfig lists what a Manager needs. Zero durations and numbers stand for the defaults in brackets.
type ManagerConfig struct {
	Logger  *slog.Logger
	Metrics prometheus.Registerer // nil: metrics are kept and registered nowhere
	Render  Renderer
	// Identities keeps by which identity each cluster is known; nil: in memory, until the process ends.
	Identities Identities
	Epoch      string // names this process in cursors, letters and digits; "" for a random one. See Epoch

	Probe      time.Duration // between two probes of a cluster [10 s]
	Silence    time.Duration // a watch without event and bookmark for so long is taken for dead [90 s]
	Answer     time.Duration // a small question to an API server must be answered within [8 s]
	Review     time.Duration // between two questions whether we may still watch [50 s]
	BackoffMin time.Duration // before the first reconnect [500 ms]
	BackoffMax time.Duration // between reconnects at most [30 s]
	Tombstones int           // deletions remembered per cluster and per view [1024]
	IdleViews  int           // views kept that nobody watches [64]
	ViewItems  int64         // nodes in all views together; streams of further views are refused [1,048,576]

	CacheBytes int64         // for nodes and their rendered rows, about; see economise [256 MiB]
	SleepAfter time.Duration // a cluster that somebody looked at since is not put to sleep [1 min]
}

// StreamerConfig lists what a Streamer needs. Zero durations and numbers stand for the defaults in brackets.
type StreamerConfig struct {
	Manager *Manager
	Batches BatchSource
	Render  Renderer
	Logger  *slog.Logger
	Metrics prometheus.Registerer // nil: metrics are kept and registered nowhere

	Heartbeat    time.Duration // [20 s]
	WriteTimeout time.Duration // a client that takes no byte for so long is cut [10 s]
	BatchPoll    time.Duration // re-read of a watched batch, should a hint be lost [2 s]
	PerSession   int           // streams of one session [16]
	PerUser      int           // streams of one person [32]
	PerAddr      int           // streams of one client address [256]
	Total        int           // streams of the process [12000]
	Admit        int           // new streams a second; as many may come at once [500]
	Plain        int           // lasting HTML streams of one session over HTTP/1.x; see Streamer.admit [4]
}

// Window is one page of a node list, read in one step: rows, counters and the cursor belong together.
type Window struct {
	Cursor   string // epoch.revision: where a stream of the same query goes on without a gap
	Revision uint64
	Nodes    []*fleet.Node // shared, read-only, in order
	Rows     [][]byte      // the live row of each node in the asked language
	Heads    []Head        // headers of the groups on the page, in order
	Groups   []Group       // every group of the query in order, shared, read-only; nil if it is not grouped
	Total    int           // nodes that match, on every page
	Page     int           // the page shown; the last one if a later one was asked
	Pages    int           // at least 1
	Counts   Counts
	Facets   Facets
	Clusters []fleet.Cluster // those the query names and sees, in order of name
}

// Head is the live row of a group's header.
type Head struct {
	Before int // index of the node that it stands before
	Row    []byte
}

// Lines are the live rows of nodes and groups as the page shows them.
func (w Window) Lines() [][]byte {
	lines := make([][]byte, 0, len(w.Rows)+len(w.Heads))
	heads := w.Heads
	for i, row := range w.Rows {
		if len(heads) > 0 && heads[0].Before == i {
			lines, heads = append(lines, heads[0].Row), heads[1:]
		}
		lines = append(lines, row)
	}
	return lines
}

// Counts are counters over all nodes that match a query.
type Counts struct {
	Total, Ready, NotReady, Unknown, Cordoned, Pressure int
	// Waiting says that no cluster in view has its nodes yet: the numbers are not known, and not 0.
	Waiting bool
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
	Sight   fleet.Sight // the clusters that there are for a node's or the clusters' stream; a query brings its own
	Since   string      // cursor from Last-Event-ID or ?since=; "" opens with the current state
}

// NodeStream asks for the live stream of a node query.
type NodeStream struct {
	Viewer
	Query *Query
	// Node, when set, makes an HTML stream of one node's page, the row and nothing else; Query is then nil. JSON
	// streams are never paged.
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
	// Shown leaves out of the batch what the viewer does not see; nil: nothing.
	Shown func(*fleet.Batch)
}
