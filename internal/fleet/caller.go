package fleet

// Role is what a person may do, from least to most.
type Role string

// The roles.
const (
	RoleViewer   Role = "viewer"
	RoleOperator Role = "operator"
	RoleAdmin    Role = "admin"
)

// ParseRole accepts exactly the three names.
func ParseRole(s string) (Role, error) {
	switch r := Role(s); r {
	case RoleViewer, RoleOperator, RoleAdmin:
		return r, nil
	}
	return "", Invalid("role", "%q is not one of viewer, operator, admin", s)
}

// Permission names one thing that a route or an operation asks for. Every route declares one.
type Permission string

// The permissions. PermPublic is the only one that nobody has to hold.
const (
	PermPublic     Permission = "public"      // sign-in, set-up, health
	PermSelf       Permission = "self"        // own account, own sessions, own tokens
	PermNodesView  Permission = "nodes.view"  // nodes, clusters, streams
	PermBatchView  Permission = "batch.view"  // batches of everybody
	PermNodeCordon Permission = "node.cordon" // cordon and uncordon, and steering such batches
	PermNodeDrain  Permission = "node.drain"  // drain within budgets
	PermNodeEdit   Permission = "node.edit"   // labels and taints
	PermUsersAdmin Permission = "users.admin" // people
	PermAuditView  Permission = "audit.view"  // the record

	PermClusterRetry Permission = "cluster.retry" // try to reach a cluster now
	PermClusterAdmin Permission = "cluster.admin" // say which cluster is the right one

	PermTemplates  Permission = "templates.edit"         // make and change templates
	PermNoExecute  Permission = "node.no_execute"        // taints that delete pods
	PermPastBudget Permission = "node.drain_past_budget" // delete pods that a budget guards
	PermProtected  Permission = "node.protected_labels"  // labels that placement and storage rely on
)

// grants is the one table that says which role holds which permission.
var grants = map[Role]map[Permission]bool{
	RoleViewer: {PermSelf: true, PermNodesView: true, PermBatchView: true},
	RoleOperator: {
		PermSelf: true, PermNodesView: true, PermBatchView: true, PermNodeCordon: true, PermClusterRetry: true,
		PermNodeDrain: true, PermNodeEdit: true, PermTemplates: true,
	},
	RoleAdmin: {
		PermSelf: true, PermNodesView: true, PermBatchView: true, PermNodeCordon: true,
		PermUsersAdmin: true, PermAuditView: true, PermClusterRetry: true, PermClusterAdmin: true,
		PermNodeDrain: true, PermNodeEdit: true, PermTemplates: true, PermNoExecute: true, PermPastBudget: true, PermProtected: true,
	},
}

// Caller is the person behind a request or a batch. Its zero value may do nothing.
type Caller struct {
	UserID  string // stable id, never reused
	Name    string // normalised sign-in name
	Role    Role
	Session string // hash of the session token or of the bearer token; "" for the command line
	Via     string // session, token, cli
	Addr    string // address of the client
}

// May tells whether the caller holds p. The cluster is part of the question from the start; roles are global so far.
func (c Caller) May(p Permission, _ string) bool { return p == PermPublic || grants[c.Role][p] }
