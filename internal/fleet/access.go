package fleet

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Bounds of what one person is given: more is better said with a pattern.
const (
	MaxGrants   = 64
	maxScope    = 512
	scopeLabels = "label:"
)

// Scope says which clusters something is about: a name in which * stands for any text, or "label:" and the labels that
// a cluster must have, as key=value with commas between them. The zero Scope is no cluster.
type Scope string

// Everywhere is every cluster.
const Everywhere Scope = "*"

// ParseScope accepts what [Scope] describes and puts it in one form. The error is of the field "scope".
func ParseScope(s string) (Scope, error) {
	s = strings.TrimSpace(s)
	list, byLabel := strings.CutPrefix(s, scopeLabels)
	switch {
	case s == "":
		return "", Problem("scope", "error.scope_empty", "", "must name clusters: a name, a pattern with *, or label:key=value")
	case len(s) > maxScope:
		return "", Problem("scope", "error.scope_long", strconv.Itoa(maxScope), "is longer than %s bytes")
	case strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return "", Problem("scope", "error.scope_blank", "", "has a blank or a control character in it")
	case !byLabel:
		return Scope(s), nil
	}
	pairs := strings.Split(list, ",")
	for _, p := range pairs {
		if k, _, ok := strings.Cut(p, "="); !ok || k == "" || strings.Count(p, "=") > 1 {
			return "", Problem("scope", "error.scope_label", strconv.Quote(p), "%s is not key=value")
		}
	}
	slices.Sort(pairs)
	return Scope(scopeLabels + strings.Join(slices.Compact(pairs), ",")), nil
}

// Holds tells whether a cluster is one of the scope's.
func (s Scope) Holds(cluster string, labels map[string]string) bool {
	list, byLabel := strings.CutPrefix(string(s), scopeLabels)
	if !byLabel {
		return s != "" && like(string(s), cluster)
	}
	for p := range strings.SplitSeq(list, ",") {
		k, want, ok := strings.Cut(p, "=")
		if got, has := labels[k]; !ok || !has || got != want {
			return false
		}
	}
	return true
}

// like tells whether name is pattern with some text for each *.
func like(pattern, name string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == name
	}
	first, last := parts[0], parts[len(parts)-1]
	if !strings.HasPrefix(name, first) || !strings.HasSuffix(name[len(first):], last) {
		return false
	}
	name = name[len(first) : len(name)-len(last)]
	for _, p := range parts[1 : len(parts)-1] {
		_, after, ok := strings.Cut(name, p)
		if !ok {
			return false
		}
		name = after
	}
	return true
}

// Grantable are the permissions that a grant can add to a role, in the order in which they are shown.
func Grantable() []Permission {
	return []Permission{PermNodeCordon, PermNodeDrain, PermNodeEdit, PermNoExecute, PermPastBudget, PermProtected}
}

// Grant is what a person may do in some clusters, beside their role everywhere.
type Grant struct {
	Scope Scope        `json:"scope"`
	Role  Role         `json:"role"`
	Also  []Permission `json:"also,omitempty"` // some of Grantable, beside what the role holds
	From  PersonKind   `json:"from,omitempty"` // which provider's groups it comes from; "" for an admin of ours
}

// Check puts a grant in one form, or says what is wrong with it.
func (g Grant) Check() (Grant, error) {
	var err error
	if g.Scope, err = ParseScope(string(g.Scope)); err != nil {
		return g, err
	}
	if g.Role, err = ParseRole(string(g.Role)); err != nil {
		return g, err
	}
	if g.Role == RoleNone {
		return g, Problem("role", "error.grant_nothing", "", "must be more than none: leave the grant out instead")
	}
	also := slices.Clone(g.Also)
	slices.Sort(also)
	g.Also = slices.Compact(also)
	for _, p := range g.Also {
		if !slices.Contains(Grantable(), p) {
			return g, Problem("also", "error.grant_also", strconv.Quote(string(p)), "%s cannot be granted by itself")
		}
	}
	return g, nil
}

// String is a grant for the record and for the command line: "operator+node.no_execute in prod-*".
func (g Grant) String() string {
	words := []string{string(g.Role)}
	for _, p := range g.Also {
		words = append(words, string(p))
	}
	text := strings.Join(words, "+") + " in " + string(g.Scope)
	if g.From != "" {
		text += " by " + string(g.From)
	}
	return text
}

func (g Grant) holds(p Permission) bool {
	return inCluster(p) && (grants[g.Role][p] || slices.Contains(g.Also, p))
}

// Access is what a person may do in some clusters. It never changes: whoever is given something else gets another one.
type Access struct {
	grants []Grant
	labels func(cluster string) map[string]string
	key    string
}

// NewAccess answers for some grants; labels, which may be nil, finds the labels of a cluster. Without grants it is nil,
// which is good for use and permits nothing.
func NewAccess(list []Grant, labels func(cluster string) map[string]string) *Access {
	if len(list) == 0 {
		return nil
	}
	if labels == nil {
		labels = func(string) map[string]string { return nil }
	}
	text, err := json.Marshal(list)
	if err != nil {
		panic(fmt.Sprintf("fleet: encoding grants: %v", err)) // strings cannot fail to encode
	}
	return &Access{grants: slices.Clone(list), labels: labels, key: string(text)}
}

// may tells whether a grant permits p in a cluster.
func (a *Access) may(p Permission, cluster string) bool {
	return a != nil && cluster != "" && slices.ContainsFunc(a.grants, func(g Grant) bool {
		return g.holds(p) && g.Scope.Holds(cluster, a.labels(cluster))
	})
}

// somewhere tells whether a grant permits p in any cluster that there could be.
func (a *Access) somewhere(p Permission) bool {
	return a != nil && slices.ContainsFunc(a.grants, func(g Grant) bool { return g.holds(p) })
}

// Limit is what a token may do at most, whatever the person may: as much as the role holds, in the clusters of the scope.
type Limit struct {
	Role   Role
	Scope  Scope
	Labels func(cluster string) map[string]string // finds the labels of a cluster; nil: they have none
}

func (l *Limit) allows(p Permission, cluster string) bool {
	switch {
	case l == nil:
		return true
	case !grants[l.Role][p]:
		return false
	case l.Scope == Everywhere:
		return true
	case cluster == "":
		return p == PermSelf
	case l.Labels == nil:
		return l.Scope.Holds(cluster, nil)
	}
	return l.Scope.Holds(cluster, l.Labels(cluster))
}

// Sight says which clusters somebody sees. The zero Sight is of none.
type Sight struct {
	key  string
	sees func(cluster string) bool
}

// SeesAll is the sight of whoever sees every cluster, those that are yet to come among them.
func SeesAll() Sight { return Sight{key: "all", sees: func(string) bool { return true }} }

// Sees tells whether a cluster is in sight.
func (s Sight) Sees(cluster string) bool { return s.sees != nil && s.sees(cluster) }

// All tells whether every cluster is.
func (s Sight) All() bool { return s.key == "all" }

// Key is the same for sights of the same clusters, so that those who see the same can share what is made for them.
func (s Sight) Key() string { return s.key }

// inCluster tells whether a permission is about clusters: only such can be had in some of them.
func inCluster(p Permission) bool {
	switch p {
	case PermNodesView, PermBatchView, PermNodeCordon, PermNodeDrain, PermNodeEdit, PermClusterRetry, PermClusterAdmin,
		PermNoExecute, PermPastBudget, PermProtected:
		return true
	case PermPublic, PermSelf, PermUsersAdmin, PermAuditView, PermTemplates:
	}
	return false
}
