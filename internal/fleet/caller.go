package fleet

import "time"

// Role is what a person may do, from least to most.
type Role string

// The roles. RoleNone is of people who may do something in some clusters only.
const (
	RoleNone     Role = "none"
	RoleViewer   Role = "viewer"
	RoleOperator Role = "operator"
	RoleAdmin    Role = "admin"
)

// ParseRole accepts exactly the four names.
func ParseRole(s string) (Role, error) {
	switch r := Role(s); r {
	case RoleNone, RoleViewer, RoleOperator, RoleAdmin:
		return r, nil
	}
	return "", Invalid("role", "%q is not one of none, viewer, operator, admin", s)
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
	RoleNone:   {PermSelf: true},
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
	UserID  string   // stable id, never reused
	Name    string   // normalised sign-in name; never reused either
	Groups  []string // that a provider vouched for at the last sign-in
	Role    Role     // everywhere
	Access  *Access  // beside Role; nil for nothing more
	Limit   *Limit   // of the token that was used; nil for none
	Session string   // hash of the session token or of the bearer token; "" for the command line
	Via     string   // session, token, cli
	Addr    string   // address of the client

	// SignedIn is when the person behind the request proved who they are; zero where there is no sign-in of ours to be
	// old: API tokens, people of a trusted proxy, the command line, and a batch that goes on without its person.
	SignedIn time.Time
}

// SignInUnknown is the SignedIn of somebody whose provider did not say when they proved who they are: older than any limit.
func SignInUnknown() time.Time { return time.UnixMicro(0).UTC() }

// SignedInWithin is a StaleSignInError for somebody whose sign-in is older than limit at that time. A limit of zero, like
// a zero SignedIn, is never asked for.
func (c Caller) SignedInWithin(limit time.Duration, at time.Time) error {
	switch age := at.Sub(c.SignedIn); {
	case limit <= 0 || c.SignedIn.IsZero() || age <= limit:
		return nil
	case !c.SignedIn.After(SignInUnknown()):
		return &StaleSignInError{Limit: limit}
	default:
		return &StaleSignInError{Age: age, Limit: limit}
	}
}

// May tells whether the caller holds p in a cluster, or everywhere for an empty name.
func (c Caller) May(p Permission, cluster string) bool {
	return p == PermPublic || c.Limit.allows(p, cluster) && (grants[c.Role][p] || c.Access.may(p, cluster))
}

// MaySomewhere tells whether there could be a cluster in which the caller holds p. Whoever lets a caller pass by it has
// to ask May for each cluster that is touched or shown.
func (c Caller) MaySomewhere(p Permission) bool {
	return c.May(p, "") || inCluster(p) && (c.Limit == nil || grants[c.Limit.Role][p]) && (grants[c.Role][p] || c.Access.somewhere(p))
}

// Sees tells whether a cluster exists for the caller. What they do not see is answered as what there is not.
func (c Caller) Sees(cluster string) bool { return c.May(PermNodesView, cluster) }

// Sight is which clusters the caller sees.
func (c Caller) Sight() Sight {
	if c.May(PermNodesView, "") {
		return SeesAll()
	}
	key := "some\x00" + string(c.Role)
	if c.Access != nil {
		key += "\x00" + c.Access.key
	}
	if c.Limit != nil {
		key += "\x00" + string(c.Limit.Role) + "\x00" + string(c.Limit.Scope)
	}
	return Sight{key: key, sees: func(cluster string) bool { return cluster != "" && c.Sees(cluster) }}
}
