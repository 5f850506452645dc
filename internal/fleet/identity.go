package fleet

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Terms are how we deal with a cluster, as the configuration says.
type Terms struct {
	// Impersonate has every change of the cluster made in the name of the person who asked for it, so that the cluster's
	// own permissions and its audit log are about that person. Otherwise our own credential makes them all.
	Impersonate bool
	Prefix      string // of the names and groups that people have in the cluster
	Labels      map[string]string
}

// The words for the two ways.
const (
	IdentityShared      = "shared"
	IdentityImpersonate = "impersonate"
)

// Identity is the word for who acts in the cluster.
func (t Terms) Identity() string {
	if t.Impersonate {
		return IdentityImpersonate
	}
	return IdentityShared
}

// LabelText is the labels as key=value with commas between them, in order.
func (t Terms) LabelText() string {
	pairs := make([]string, 0, len(t.Labels))
	for _, k := range slices.Sorted(maps.Keys(t.Labels)) {
		pairs = append(pairs, k+"="+t.Labels[k])
	}
	return strings.Join(pairs, ",")
}

// Persona is who somebody is to a cluster.
type Persona struct {
	User   string
	Groups []string
}

// The bounds of a persona.
const (
	maxPersona = 256 // bytes of a name, with its prefix
	maxGroups  = 256
)

// NameError says that nobody can act in a cluster under a name or in a group. It is ErrForbidden.
type NameError struct {
	Name string
	Why  string // an English sentence part: `begins with system:`
}

func (e *NameError) Error() string { return fmt.Sprintf("%q %s", e.Name, e.Why) }

// Is makes every NameError an ErrForbidden.
func (e *NameError) Is(target error) bool { return target == ErrForbidden }

// RolesIn are the roles that the caller has in a cluster, from least to most: the one everywhere and those granted,
// none of them more than a token lets them be.
func (c Caller) RolesIn(cluster string) []Role {
	has := map[Role]bool{c.Role: true}
	if c.Access != nil {
		for _, g := range c.Access.grants {
			if g.Scope.Holds(cluster, c.Access.labels(cluster)) {
				has[g.Role] = true
			}
		}
	}
	most := RoleAdmin
	if c.Limit != nil {
		most = c.Limit.Role
		if !c.Limit.allows(PermNodesView, cluster) {
			return nil
		}
	}
	// A role that a token cuts down is the role that the token has.
	var out []Role
	over := false
	for _, r := range []Role{RoleAdmin, RoleOperator, RoleViewer} {
		over = over || has[r]
		if rank(r) > rank(most) {
			continue
		}
		if has[r] || r == most && over {
			out = append(out, r)
		}
	}
	slices.Reverse(out)
	return out
}

func rank(r Role) int { return slices.Index([]Role{RoleNone, RoleViewer, RoleOperator, RoleAdmin}, r) }

// In is who the caller is to a cluster: the name, the roles there and the groups that a provider vouched for, each
// behind the prefix. It is a NameError if any of them is a name of the cluster's own, or no name at all: a cluster that
// is told such a name by us would take the caller for somebody else.
func (c Caller) In(cluster string, t Terms) (Persona, error) {
	if err := nameable(c.Name, t.Prefix+c.Name); err != nil {
		return Persona{}, err
	}
	if len(c.Groups) > maxGroups {
		return Persona{}, &NameError{Name: c.Name, Why: fmt.Sprintf("is in more than %d groups", maxGroups)}
	}
	id := Persona{User: t.Prefix + c.Name}
	for _, r := range c.RolesIn(cluster) {
		id.Groups = append(id.Groups, t.Prefix+"role:"+string(r))
	}
	for _, g := range c.Groups {
		as := t.Prefix + "group:" + g
		if err := nameable(g, as); err != nil {
			return Persona{}, err
		}
		id.Groups = append(id.Groups, as)
	}
	return id, nil
}

// nameable checks a name as we know it and as a cluster would be told it.
func nameable(name, as string) error {
	fail := func(why string) error {
		if len(name) > maxPersona {
			name = name[:maxPersona]
		}
		return &NameError{Name: strings.ToValidUTF8(name, "?"), Why: why}
	}
	switch {
	case name == "":
		return fail("is no name")
	case len(as) > maxPersona:
		return fail(fmt.Sprintf("is longer than %d bytes with its prefix", maxPersona))
	case !utf8.ValidString(as), strings.ContainsFunc(as, unicode.IsControl):
		return fail("has a control character in it")
	case strings.TrimSpace(name) != name:
		return fail("begins or ends with a blank") // which would be cut off on the way
	case ofCluster(name), ofCluster(as):
		return fail("begins with system: as only names of the cluster itself do")
	}
	return nil
}

func ofCluster(name string) bool {
	const own = "system:"
	return len(name) >= len(own) && strings.EqualFold(name[:len(own)], own)
}
