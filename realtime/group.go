package realtime

import (
	"cmp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Group is the nodes of a grouped list that share a value, all of them, whatever the page. Value is "" for the nodes
// that have none.
type Group struct {
	By, Value                                           string
	Nodes, Ready, NotReady, Unknown, Cordoned, Pressure int
	CPUMilli, MemoryBytes, Pods                         int64 // allocatable
}

// grouping is what a list is grouped by.
type grouping struct {
	of      func(*fleet.Node) string
	compare func(a, b string) int // of two values that are not ""
}

// poolLabels are what clouds and provisioners write the name of a node's pool in. The first one that a node has counts:
// GKE, EKS, AKS and its older form, kOps, Karpenter.
var poolLabels = [...]string{
	"cloud.google.com/gke-nodepool",
	"eks.amazonaws.com/nodegroup",
	"kubernetes.azure.com/agentpool",
	"agentpool",
	"kops.k8s.io/instancegroup",
	"karpenter.sh/nodepool",
}

func pool(n *fleet.Node) string {
	for _, key := range poolLabels {
		if v := n.Labels[key]; v != "" {
			return v
		}
	}
	return ""
}

// groupLabel begins the grouping by a label; its key follows.
const groupLabel = "label:"

// groups are the words of group=, beside label:<key>.
var groups = []string{"cluster", "zone", "role", "type", "version", "status", "pool"}

var groupings = map[string]grouping{
	"cluster": {func(n *fleet.Node) string { return n.Ref.Cluster }, strings.Compare},
	"zone":    {(*fleet.Node).Zone, strings.Compare},
	"role":    {func(n *fleet.Node) string { return strings.Join(n.Roles, ", ") }, strings.Compare},
	"type":    {(*fleet.Node).InstanceType, strings.Compare},
	"version": {func(n *fleet.Node) string { return n.Info.KubeletVersion }, func(a, b string) int {
		return cmp.Or(cmp.Compare(kubeletOrder(a), kubeletOrder(b)), strings.Compare(a, b))
	}},
	"status": {func(n *fleet.Node) string { return string(n.Status) }, func(a, b string) int {
		return cmp.Compare(slices.Index(urgency, a), slices.Index(urgency, b))
	}},
	"pool": {pool, strings.Compare},
}

// urgency is the order of groups by status: what needs a person first.
var urgency = []string{string(fleet.StatusNotReady), string(fleet.StatusUnknown), string(fleet.StatusReady)}

// parseGroup reads the value of group=.
func parseGroup(s string) (*grouping, error) {
	if s == "" {
		return nil, nil
	}
	if key, ok := strings.CutPrefix(s, groupLabel); ok {
		if problems := validation.IsQualifiedName(key); len(problems) > 0 {
			return nil, fieldError("group", "query.group_label", key, nil, "%q is not the key of a label: %s", key, strings.Join(problems, "; "))
		}
		return &grouping{func(n *fleet.Node) string { return n.Labels[key] }, strings.Compare}, nil
	}
	g, ok := groupings[s]
	if !ok {
		return nil, fieldError("group", "query.group", s, append(slices.Clone(groups), groupLabel+"<key>"), "%q is nothing to group by", s)
	}
	return &g, nil
}

// between compares two values, "" last.
func (g *grouping) between(x, y string) int {
	switch {
	case x == y:
		return 0
	case x == "":
		return 1
	case y == "":
		return -1
	}
	return g.compare(x, y)
}

// header is a group as it was after one change of the view. It is immutable once the view has settled, but for the
// rows, rendered at most once and shared by pages and streams.
type header struct {
	Group
	rev  uint64 // last change of the sums
	rows byLang
}

// sums are the groups of a view.
type sums struct {
	by      map[string]*header
	pending map[string]*header  // as it was, of the groups that the changes under way touch; nil: it was not there
	changed map[string]struct{} // the groups that the last changes left different
	sorted  []Group             // all of them in order, nil when outdated
}

// value is the group that a member belongs to. It is worked out once for each of its versions: ordering asks often.
func (v *view) value(it *item) string {
	if it.valued != it.ver {
		it.value, it.valued = v.q.group.of(it.ver.node), it.ver
	}
	return it.value
}

// sum adds a node to its group or takes it away.
func (v *view) sum(n *fleet.Node, by int) {
	if v.q.group == nil {
		return
	}
	value := v.q.group.of(n)
	h := v.sums.by[value]
	if _, under := v.sums.pending[value]; !under {
		if v.sums.pending == nil {
			v.sums.pending = map[string]*header{}
		}
		v.sums.pending[value] = h
		next := &header{Group: Group{By: v.q.Group, Value: value}}
		if h != nil {
			next.Group = h.Group
		}
		if v.sums.by == nil {
			v.sums.by = map[string]*header{}
		}
		v.sums.by[value], h = next, next
	}
	h.Nodes += by
	switch n.Status {
	case fleet.StatusReady:
		h.Ready += by
	case fleet.StatusNotReady:
		h.NotReady += by
	default:
		h.Unknown += by
	}
	if !n.Schedulable {
		h.Cordoned += by
	}
	if len(n.Pressure) > 0 {
		h.Pressure += by
	}
	h.CPUMilli += int64(by) * n.Allocatable.CPUMilli
	h.MemoryBytes += int64(by) * n.Allocatable.MemoryBytes
	h.Pods += int64(by) * n.Allocatable.Pods
}

// settle ends a round of changes: what came and went again is as it was, and keeps its rendered row.
func (v *view) settle() {
	s := &v.sums
	s.changed = nil
	for value, was := range s.pending {
		h := s.by[value]
		switch {
		case h.Nodes == 0:
			delete(s.by, value)
			if was == nil {
				continue
			}
		case was != nil && was.Group == h.Group:
			s.by[value] = was
			continue
		default:
			h.rev = v.rev
		}
		if s.changed == nil {
			s.changed = map[string]struct{}{}
		}
		s.changed[value], s.sorted = struct{}{}, nil
	}
	s.pending = nil
}

// regroups tells that two versions of a node belong to different groups.
func (v *view) regroups(a, b *version) bool {
	return v.q.group != nil && v.q.group.of(a.node) != v.q.group.of(b.node)
}

// groups is every group of the view in order. It is shared and read-only.
func (v *view) groups() []Group {
	if v.q.group == nil {
		return nil
	}
	if v.sums.sorted == nil {
		v.sums.sorted = make([]Group, 0, len(v.sums.by))
		for _, h := range v.sums.by {
			v.sums.sorted = append(v.sums.sorted, h.Group)
		}
		slices.SortFunc(v.sums.sorted, func(a, b Group) int { return v.q.group.between(a.Value, b.Value) })
	}
	return v.sums.sorted
}

// head is the place of a group's header on a page.
type head struct {
	before int // index of the row it stands before
	value  string
}

// heads are the headers of a page: one before the first row of each group on it.
func (v *view) heads(items []*item) []head {
	if v.q.group == nil {
		return nil
	}
	var out []head
	for i, it := range items {
		if value := v.value(it); i == 0 || value != out[len(out)-1].value {
			out = append(out, head{i, value})
		}
	}
	return out
}

// resummed tells that a header on the page has changed.
func (v *view) resummed(w *window) bool {
	if len(v.sums.changed) == 0 {
		return false
	}
	for _, h := range w.heads {
		if _, ok := v.sums.changed[h.value]; ok {
			return true
		}
	}
	return false
}

// line is one row of a window: a node's, or the header of a group.
type line struct {
	ref    fleet.NodeRef
	group  string
	header bool
}

// lines calls yield for what a window shows, in order.
func (w *window) lines(yield func(line) bool) {
	heads := w.heads
	for i, ref := range w.refs {
		if len(heads) > 0 && heads[0].before == i {
			if !yield(line{group: heads[0].value, header: true}) {
				return
			}
			heads = heads[1:]
		}
		if !yield(line{ref: ref}) {
			return
		}
	}
}

// holds tells whether a window shows a line, wherever.
func (w *window) holds(l line) bool {
	if !l.header {
		_, ok := w.set[l.ref]
		return ok
	}
	return slices.ContainsFunc(w.heads, func(h head) bool { return h.value == l.group })
}

// id is the DOM id of a line.
func (v *view) id(l line) string {
	if l.header {
		return v.m.render.GroupID(l.group)
	}
	return v.m.render.NodeID(l.ref)
}

// row is the live row of a line.
func (v *view) row(l line, lang string) []byte {
	if l.header {
		return v.m.render.group(v.sums.by[l.group], lang)
	}
	return v.m.render.row(v.items[l.ref].ver, lang)
}
