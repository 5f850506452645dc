package nodeops

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
	"github.com/kube-node-manager/kube-node-manager/internal/marks"
)

// edit changes labels and taints as the lines of the operation ask for, in one patch. A node on which a value is not to
// be overwritten is left as a whole: half of a set of labels is what nobody asked for.
func edit(w work, n *corev1.Node) decision {
	if d, ok := landed(w, n); ok {
		return d
	}
	labels, err := marks.ParseLabels("labels", w.op.Labels)
	if err != nil {
		return invalid(err)
	}
	taints, err := marks.ParseTaints("taints", w.op.Taints)
	if err != nil {
		return invalid(err)
	}
	edits := labels.Diff(n.Labels, w.op.Mode, w.op.OnConflict)
	var list []fleet.Taint
	c := &change{loose: w.op.Mode != fleet.EditReplace && w.op.OnConflict == fleet.ConflictOverwrite}
	if w.op.Action != fleet.ActionLabels {
		var more []fleet.Edit
		more, list = taints.Diff(kube.Node(w.item.Ref.Cluster, n).Taints, w.op.Mode, w.op.OnConflict)
		edits = append(edits, more...)
		if len(marks.Effective(more)) > 0 {
			c.taints(n, list)
		}
	}
	d := decision{edits: edits}
	c.edits = marks.Effective(edits)
	switch others := conflicts(edits); {
	case others != "" && w.op.OnConflict == fleet.ConflictSkip:
		d.result = fleet.ItemResult{State: fleet.ItemSkipped, Code: fleet.CodeConflict, Message: "left as it is: " + others}
		return d
	case others != "":
		d.result = fleet.ItemResult{State: fleet.ItemFailed, Code: fleet.CodeConflict, Message: others}
		return d
	case len(c.edits) == 0:
		d.result = unchanged("already as asked").result
		return d
	}
	for _, e := range c.edits {
		if e.Kind == fleet.EditLabel {
			c.label(e.Key, e.After)
		}
	}
	d.change, d.result = c, fleet.ItemResult{State: fleet.ItemSucceeded}
	return d
}

// label sets a label, or takes it away.
func (c *change) label(key string, value *string) {
	if c.labels == nil {
		c.labels = make(map[string]any)
	}
	if c.labels[key] = nil; value != nil {
		c.labels[key] = *value
	}
}

// taints makes the list of taints another one. A merge patch has only whole lists, so that the change is for one version
// of the node; a taint that stays keeps what we do not know of it.
func (c *change) taints(n *corev1.Node, list []fleet.Taint) {
	out := make([]corev1.Taint, len(list))
	for i, t := range list {
		out[i] = corev1.Taint{Key: t.Key, Value: t.Value, Effect: corev1.TaintEffect(t.Effect)}
		if at := slices.IndexFunc(n.Spec.Taints, func(o corev1.Taint) bool { return o.MatchTaint(&out[i]) && o.Value == t.Value }); at >= 0 {
			out[i] = n.Spec.Taints[at]
		}
	}
	c.set("taints", out)
	c.loose = false
}

// invalid is the result for lines that passed when the batch was made and do not any more.
func invalid(err error) decision {
	return decision{result: fleet.ItemResult{State: fleet.ItemFailed, Code: fleet.CodeInvalid, Message: err.Error()}}
}

// maxNamed bounds how many edits a sentence names.
const maxNamed = 5

// conflicts says which values are not to be overwritten, "" if there are none.
func conflicts(edits []fleet.Edit) string {
	var says []string
	for _, e := range edits {
		if e.Outcome == fleet.EditConflict || e.Outcome == fleet.EditKept {
			says = append(says, fmt.Sprintf("%s is %q, not %q", marks.Name(e), kube.Plain(value(e.Before)), value(e.After)))
		}
	}
	return sentence(says)
}

func sentence(says []string) string {
	more := ""
	if len(says) > maxNamed {
		more = fmt.Sprintf("; and %d more", len(says)-maxNamed)
		says = says[:maxNamed]
	}
	return strings.Join(says, "; ") + more
}

// current is what the node has of what an edit is about, nil for nothing.
func current(cluster string, n *corev1.Node, e fleet.Edit) *string {
	switch e.Kind {
	case fleet.EditLabel:
		if v, ok := n.Labels[e.Key]; ok {
			return &v
		}
	case fleet.EditTaint:
		for _, t := range n.Spec.Taints {
			if t.Key == e.Key && t.Effect == corev1.TaintEffect(e.Effect) {
				return new(t.Value)
			}
		}
	case fleet.EditCordon:
		return cordonOf(cluster, n)
	}
	return nil
}

func same(a, b *string) bool { return (a == nil) == (b == nil) && value(a) == value(b) }

// landed finds out from the node whether a change that an earlier attempt was going to make has been made. A patch is
// made as a whole or not at all: one value that is as we leave it, and was not found so, tells that it was. Ok is false
// if it was not, and the node is to be looked at as for the first time.
func landed(w work, n *corev1.Node) (d decision, ok bool) {
	if w.intended.IsZero() {
		return decision{}, false
	}
	var there, other []string
	for _, e := range w.recorded {
		if same(current(w.item.Ref.Cluster, n, e), e.After) {
			there = append(there, marks.Name(e))
		} else {
			other = append(other, marks.Name(e))
		}
	}
	switch {
	case len(there) == 0:
		return decision{}, false
	case len(other) == 0:
		return decision{result: fleet.ItemResult{State: fleet.ItemSucceeded, Changed: true, Edits: w.recorded}}, true
	}
	return decision{result: fleet.ItemResult{
		State: fleet.ItemSkipped, Code: fleet.CodeUndone, Changed: true, Edits: w.recorded,
		Message: "this batch had changed it, and somebody changed it again since: " + sentence(other),
	}}, true
}
