package realtime

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// changes is a set of visible fields.
type changes uint16

// The fields whose change a person would notice, in the order the messages name them.
const (
	changedSchedulable changes = 1 << iota
	changedLabels
	changedTaints
	changedConditions
	changedCapacity
	changedAllocatable
	changedAddresses
	changedInfo
	changedRoles
	changedAnnotations

	fieldCount = iota
)

var fieldNames = [fieldCount]string{
	"Schedulable", "Labels", "Taints", "Conditions", "Capacity", "Allocatable", "Addresses", "Info", "Roles", "Annotations",
}

// names lists the fields of the set; never nil.
func (c changes) names() []string {
	names := make([]string, 0, fieldCount)
	for i, name := range fieldNames {
		if c&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return names
}

// compare names what a person would notice between two versions of a node. Heartbeat times, resource versions and
// annotations that nobody is shown do not count.
func compare(a, b *fleet.Node) changes {
	var c changes
	if a.Schedulable != b.Schedulable {
		c |= changedSchedulable
	}
	if !maps.Equal(a.Labels, b.Labels) {
		c |= changedLabels
	}
	if !slices.EqualFunc(a.Taints, b.Taints, sameTaint) {
		c |= changedTaints
	}
	if !slices.EqualFunc(a.Conditions, b.Conditions, sameCondition) {
		c |= changedConditions
	}
	if !maps.Equal(a.Capacity.Raw, b.Capacity.Raw) {
		c |= changedCapacity
	}
	if !maps.Equal(a.Allocatable.Raw, b.Allocatable.Raw) {
		c |= changedAllocatable
	}
	if !slices.Equal(a.Addresses, b.Addresses) {
		c |= changedAddresses
	}
	if a.Info != b.Info {
		c |= changedInfo
	}
	if !slices.Equal(a.Roles, b.Roles) {
		c |= changedRoles
	}
	if shownAnnotations(a) != shownAnnotations(b) || !sameCordon(a.Cordon, b.Cordon) {
		c |= changedAnnotations
	}
	return c
}

func sameTaint(a, b fleet.Taint) bool {
	return a.Key == b.Key && a.Value == b.Value && a.Effect == b.Effect && sameTime(a.TimeAdded, b.TimeAdded)
}

func sameTime(a, b *time.Time) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Equal(*b)
}

func sameCondition(a, b fleet.Condition) bool {
	return a.Type == b.Type && a.Status == b.Status && a.Reason == b.Reason && a.Message == b.Message &&
		a.LastTransition.Equal(b.LastTransition)
}

// sameCordon looks at what a row shows of a cordon; the note's text may differ in nothing but its layout.
func sameCordon(a, b *fleet.Cordon) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.By == b.By && a.Reason == b.Reason && a.Batch == b.Batch && a.With == b.With && a.Since.Equal(b.Since)
}

// shownAnnotations are ours only: controllers rewrite theirs all day long.
func shownAnnotations(n *fleet.Node) [2]string {
	return [2]string{n.Annotations[kube.CordonAnnotation], n.Annotations[kube.CordonReasonAnnotation]}
}

// order returns the comparison of a sort word. Every order ends in name and cluster, so that it is total and stable
// whichever column it starts with.
func order(sort string) func(a, b *version) int {
	column, desc := sort, false
	if rest, ok := strings.CutPrefix(sort, "-"); ok {
		column, desc = rest, true
	}
	primary := columns[column]
	if primary == nil {
		return byName
	}
	return func(a, b *version) int {
		c := primary(a, b)
		if desc {
			c = -c
		}
		if c != 0 {
			return c
		}
		return byName(a, b)
	}
}

func byName(a, b *version) int {
	if c := strings.Compare(a.node.Ref.Name, b.node.Ref.Name); c != 0 {
		return c
	}
	return strings.Compare(a.node.Ref.Cluster, b.node.Ref.Cluster)
}
