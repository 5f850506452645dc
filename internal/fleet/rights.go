package fleet

import (
	"slices"
	"strings"
)

// Needs are the rights in a cluster without which an operation changes nothing there. Who has to have them is the person
// where the cluster knows them, and otherwise our own credential.
func (op Operation) Needs() []ClusterRight {
	patch := ClusterRight{Verb: "patch", Resource: "nodes"}
	if op.Action != ActionDrain {
		return []ClusterRight{patch}
	}
	gone := ClusterRight{Verb: "create", Resource: "pods", Subresource: "eviction"}
	if op.Drain != nil && op.Drain.DisableEviction {
		gone = ClusterRight{Verb: "delete", Resource: "pods"}
	}
	return []ClusterRight{gone, patch, {Verb: "watch", Resource: "pods"}}
}

// Asks are the rights that our credential needs in a cluster, and those it may have beside them. Where it acts in the
// name of people it needs none of its own to change anything.
func (t Terms) Asks(leaseNamespace string) []TestedRight {
	const leases = "coordination.k8s.io"
	asks := []TestedRight{
		{Verb: "get", Resource: "nodes", Needed: true},
		{Verb: "list", Resource: "nodes", Needed: true},
		{Verb: "watch", Resource: "nodes", Needed: true},
		{Verb: "patch", Resource: "nodes", Needed: true, As: t.Impersonate},
		{Verb: "list", Resource: "pods", Needed: true},
		{Verb: "watch", Resource: "pods", Needed: true},
		{Verb: "create", Resource: "pods", Subresource: "eviction", Needed: true, As: t.Impersonate},
		{Verb: "delete", Resource: "pods", Optional: true, As: t.Impersonate},
		{Verb: "list", Group: "policy", Resource: "poddisruptionbudgets", Needed: true},
		{Verb: "create", Group: leases, Resource: "leases", Namespace: leaseNamespace, Needed: true},
		{Verb: "update", Group: leases, Resource: "leases", Namespace: leaseNamespace, Needed: true},
	}
	if t.Impersonate {
		asks = append(asks,
			TestedRight{Verb: VerbImpersonate, Resource: "groups", Name: t.Prefix + "role:" + string(RoleOperator), Needed: true},
			// A credential for some people only may not impersonate just anybody, and is good for those.
			TestedRight{Verb: VerbImpersonate, Resource: "users", Optional: true},
		)
	}
	return asks
}

// VerbImpersonate is the right to act as somebody else.
const VerbImpersonate = "impersonate"

// Rights are what a cluster said about our credential when it was asked last. They never change: what it says next is
// other Rights.
type Rights struct{ Asked []TestedRight }

// Same tells whether two say the same; nil is what nobody was asked about.
func (r *Rights) Same(s *Rights) bool {
	return r == s || r != nil && s != nil && slices.Equal(r.Asked, s.Asked)
}

// Missing are the rights for lack of which the cluster would refuse an operation, whoever asks for it.
func (r *Rights) Missing(op Operation) []TestedRight {
	if r == nil {
		return nil
	}
	var out []TestedRight
	needs := op.Needs()
	for _, t := range r.Asked {
		if t.Allowed {
			continue
		}
		needed := t.Verb == VerbImpersonate && t.Needed || slices.ContainsFunc(needs, func(n ClusterRight) bool {
			return n.Verb == t.Verb && n.Group == t.Group && n.Resource == t.Resource && n.Subresource == t.Subresource
		})
		if needed {
			out = append(out, t)
		}
	}
	return out
}

// String is the right as kubectl auth can-i has it.
func (t TestedRight) String() string {
	var b strings.Builder
	b.WriteString(t.Verb + " " + t.Resource)
	if t.Group != "" {
		b.WriteString("." + t.Group)
	}
	if t.Subresource != "" {
		b.WriteString("/" + t.Subresource)
	}
	if t.Name != "" {
		b.WriteString(" " + t.Name)
	}
	if t.Namespace != "" {
		b.WriteString(" -n " + t.Namespace)
	}
	return b.String()
}

// asked is what the cluster was asked about, nil if nothing.
func (c Cluster) asked() []TestedRight {
	if c.Rights == nil {
		return nil
	}
	return c.Rights.Asked
}
