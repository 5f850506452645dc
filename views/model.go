package views

import (
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Layout is what every page carries. Pages embed it.
type Layout struct {
	Title  string       // catalogue key of the page's title; a name from the cluster is in the page itself
	Lang   string       // en or zh
	Theme  string       // light, dark, or "" for the system's
	Nav    string       // which entry of the navigation is current: nodes, clusters, batches, account, users, audit
	User   string       // name of the person, "" when signed out
	Role   fleet.Role   // everywhere, as it is shown beside the name
	Caller fleet.Caller // whose permissions say what is offered; zero when signed out
	In     string       // the cluster that the page is about, "" for several
	Nonce  string       // of the content security policy
	Path   string       // path and query of this page, for the language switch and for signing in again
	Now    time.Time    // the one clock of this rendering
	Asset  func(name string) string
	Static bool // a page without a live stream
}

// LoginPage is the sign-in form. Error is a catalogue key; the page shows no text from the URL.
type LoginPage struct {
	Layout
	Next     string
	Username string
	Error    string
	Setup    bool // no user exists yet: show the way to /setup
	OIDC     bool // there is an identity provider to sign in with
	Again    bool // who is signed in signs in again
}

// SignedInPage is where a sign-in for the sake of another tab ends.
type SignedInPage struct{ Layout }

// CodePage asks for the second factor. Error is a catalogue key.
type CodePage struct {
	Layout
	Next  string
	Error string
}

// InvitePage lets whoever was invited set a password.
type InvitePage struct {
	Layout
	Code   string
	Errors map[string]string
}

// Invitation is shown once, to the admin who made it.
type Invitation struct {
	Name      string
	Link      string
	ExpiresAt time.Time
}

// SetupPage makes the first admin with the one-time code.
type SetupPage struct {
	Layout
	Username string
	Errors   map[string]string // field → sentence
}

// Query is the state of a node list as its URL has it.
type Query struct {
	Cluster string // "" for all clusters
	Q       string
	Sort    string // as in the URL: name, -cpu
	Page    int
	PerPage int
	Pages   int    // last page, at least 1
	Total   int    // nodes that match
	Group   string // as in the URL: zone, label:<key>; "" for none
}

// Facets are the values the filter menus offer, taken from the nodes of the clusters in view, sorted.
type Facets struct {
	Zones    []string
	Roles    []string
	Types    []string
	Versions []string
}

// Counts are the summary chips of a node list: of the nodes that the clusters in view hold and the query matches.
type Counts struct {
	Total, Ready, NotReady, Unknown, Cordoned, Pressure int
	Waiting                                             bool // no cluster in view has its nodes yet: the numbers are not known
}

// Group is the nodes of a grouped list that share a value, on every page. Value is "" for those that have none.
type Group struct {
	By, Value                                           string
	Nodes, Ready, NotReady, Unknown, Cordoned, Pressure int
	CPUMilli, MemoryBytes, Pods                         int64 // allocatable
}

// NodesPage is the list of one cluster or of all. Rows were rendered by NodeRow and GroupRow and are written through as
// they are.
type NodesPage struct {
	Layout
	Query      Query
	QueryError string   // sentence naming the offending part, "" when the query is good
	Rows       [][]byte // each one <tr>, in order
	Counts     Counts
	Facets     Facets
	Clusters   []fleet.Cluster // those in view, with their state
	Stream     string          // URL of the live stream, with the cursor this page was rendered at
	NoSight    bool            // the person sees no cluster at all
	CanCordon  bool            // the person may change some node here; what exactly says may
	Key        string          // fresh idempotency key for the batch form
}

// NodeRow is the live row of a node list: one rendering serves every viewer with the same language. It holds no time
// that ticks, no permission, no nonce and no selection.
type NodeRow struct {
	Node *fleet.Node
	Lang string
}

// GroupRow is the header of a group in a node list, shared like NodeRow.
type GroupRow struct {
	Group Group
	Lang  string
}

// NodePage is the detail of one node.
type NodePage struct {
	Layout
	Node      *fleet.Node
	Cluster   fleet.Cluster
	Row       []byte // the live row, as in the list
	Stream    string
	PodsURL   string // fragment that is loaded behind the page
	CanCordon bool   // the person may change it; what exactly says may
	Key       string
}

// PodsFragment is the list of pods of a node, read on demand. Error is a sentence when it could not be read.
type PodsFragment struct {
	Lang    string
	Cluster string
	Node    string
	List    fleet.PodList
	Error   string
	Now     time.Time
}

// ClustersPage shows every cluster with its live state.
type ClustersPage struct {
	Layout
	Clusters []fleet.Cluster
	Stream   string
	NoSight  bool // the person sees no cluster at all

	CanRetry  bool // reach a cluster now
	CanAccept bool // take another cluster at an address for the right one

	CanManage bool // add, replace and remove clusters
	Enabled   bool // there is a key to seal credentials with
	Managed   []fleet.ManagedCluster
	Manifest  string // of the service account that a cluster is given for us
	Form      ClusterForm
	Test      *fleet.ClusterTest // what came of a test; nil without one
}

// ClusterForm is what was sent to add, replace or remove a cluster, without the kubeconfig.
type ClusterForm struct {
	Name, Context string
	Target        string // the cluster that was to be changed, "" for a new one
	Errors        map[string]string
}

// ClusterRow is the live row of the clusters page, shared like NodeRow.
type ClusterRow struct {
	Cluster fleet.Cluster
	Lang    string
}

// BatchesPage lists batches, newest first.
type BatchesPage struct {
	Layout
	Batches []fleet.Batch
	Filter  fleet.BatchFilter
}

// BatchPage is one batch: progress while it runs, report when it is done. The same BatchPanel is what the answer to the
// form's POST streams into the node list.
type BatchPage struct {
	Layout
	Panel BatchPanel
}

// BatchPanel is the live part of a batch.
type BatchPanel struct {
	Lang     string
	Batch    fleet.Batch
	Items    []fleet.Item
	Stream   string // where to follow it, with cursor; "" when the stream is the answer itself or the batch is done
	CanSteer bool   // pause, resume, cancel, skip, retry, take back
	Embedded bool   // inside the node list rather than on its own page
	Nonce    string
	Key      string // fresh idempotency key for a repetition
}

// BatchItemRow is the live row of one node of a batch, shared like NodeRow.
type BatchItemRow struct {
	Item fleet.Item
	Lang string
}

// BatchProgress is the bar, the counts and the state of a batch; it is swapped as a whole.
type BatchProgress struct {
	Batch fleet.Batch
	Lang  string
}

// AccountPage is a person's own sessions and tokens. NewToken is shown once.
type AccountPage struct {
	Layout
	Sessions []fleet.Session
	Tokens   []fleet.Token
	NewToken string
	Errors   map[string]string

	Factor    fleet.FactorState
	Enrolment *fleet.Enrolment // shown once, to be confirmed
	Recovery  []string         // shown once

	Grants []fleet.Grant
	Groups []string // that a provider vouched for
}

// UsersPage lists people, for admins.
type UsersPage struct {
	Layout
	Users      []fleet.User
	Invitation *Invitation // shown once
	Errors     map[string]string
}

// AuditPage is the record, for admins.
type AuditPage struct {
	Layout
	Entries []fleet.Entry
	Filter  fleet.AuditFilter
	Older   int64 // BeforeSeq of the next page, 0 at the end
	Newer   int64 // AfterSeq of the page before, 0 at the beginning
}

// ErrorPage says what was wrong and what to do; it is used whole and as a fragment.
type ErrorPage struct {
	Layout
	Status    int
	Kind      string // catalogue key of the sentence for the kind of error
	Field     string
	Message   string // what exactly, safe to show; "" for 5xx
	RequestID string
	Batch     string // batch that holds the node, for conflicts
}
