package nodeops

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// schedulability is what the record says of a node before and after.
type schedulability struct {
	Unschedulable bool          `json:"unschedulable"`
	Cordon        *fleet.Cordon `json:"cordon,omitempty"`
}

// cordon makes a node unschedulable and leaves a note who did it and why. A node that is cordoned already is left as it
// is, with the note of whoever was first.
func cordon(w work, n *corev1.Node) decision {
	now := kube.Node(w.item.Ref.Cluster, n)
	note, ours := noteOf(n, now)
	switch {
	case n.Spec.Unschedulable && ours && note.Batch == w.batch:
		// Written by this batch before a crash or before an answer was lost.
		return decision{result: fleet.ItemResult{
			State: fleet.ItemSucceeded, Changed: true, Edits: []fleet.Edit{cordonEdit(nil, new(n.Annotations[kube.CordonAnnotation]))},
		}}
	case n.Spec.Unschedulable:
		d := unchanged("already cordoned" + whose(now.Cordon))
		d.edits = []fleet.Edit{cordonEdit(cordonOf(w.item.Ref.Cluster, n), cordonOf(w.item.Ref.Cluster, n))}
		return d
	case note.Batch == w.batch:
		return decision{result: fleet.ItemResult{
			State: fleet.ItemSkipped, Code: fleet.CodeUndone, Changed: true,
			Message: "this batch had cordoned it, and somebody uncordoned it since",
		}}
	}
	c := &change{before: schedulability{}}
	c.cordon(w, w.op.Reason)
	return decision{change: c, edits: c.edits, result: fleet.ItemResult{State: fleet.ItemSucceeded}}
}

// cordon makes the change one that cordons, with a note.
func (c *change) cordon(w work, reason string) {
	note := kube.CordonNote{V: 1, By: w.by.Name, Via: via(w.by), Reason: reason, At: w.at.Truncate(time.Second), Batch: w.batch}
	c.annotations = map[string]any{kube.CordonAnnotation: note.String()}
	if reason != "" {
		c.annotations[kube.CordonReasonAnnotation] = reason
	} else {
		c.annotations[kube.CordonReasonAnnotation] = nil // of an earlier cordon that somebody else undid
	}
	c.set("unschedulable", true)
	c.after = schedulability{true, &fleet.Cordon{By: note.By, Reason: note.Reason, Since: note.At, Batch: w.batch}}
	c.edits = append(c.edits, cordonEdit(nil, new(note.String())))
}

// set puts a field of the spec into the change; nil takes it away.
func (c *change) set(field string, value any) {
	if c.spec == nil {
		c.spec = make(map[string]any, 1)
	}
	c.spec[field] = value
}

// cordonEdit is a change of schedulability: the values are notes, nil is schedulable.
func cordonEdit(before, after *string) fleet.Edit {
	e := fleet.Edit{Kind: fleet.EditCordon, Before: before, After: after, Outcome: fleet.EditUnchanged}
	switch {
	case before == nil && after != nil:
		e.Outcome = fleet.EditAdded
	case before != nil && after == nil:
		e.Outcome = fleet.EditRemoved
	}
	return e
}

// cordonOf is the node's cordon as the value of an edit: our note word for word, "" for a cordon that is not ours, nil
// for a node that is schedulable.
func cordonOf(cluster string, n *corev1.Node) *string {
	if !n.Spec.Unschedulable {
		return nil
	}
	if _, ours := noteOf(n, kube.Node(cluster, n)); !ours {
		return new("")
	}
	return new(n.Annotations[kube.CordonAnnotation])
}

// uncordon makes a node schedulable and takes our note away. A node that somebody else cordoned needs the explicit
// choice. A note that outlived its cordon is cleaned.
func uncordon(w work, n *corev1.Node) decision {
	now := kube.Node(w.item.Ref.Cluster, n)
	note, ours := noteOf(n, now)
	_, annotated := n.Annotations[kube.CordonAnnotation]
	_, reasoned := n.Annotations[kube.CordonReasonAnnotation]
	c := &change{
		before: schedulability{n.Spec.Unschedulable, now.Cordon},
		after:  schedulability{},
	}
	if annotated || reasoned {
		c.annotations = map[string]any{kube.CordonAnnotation: nil, kube.CordonReasonAnnotation: nil}
	}
	switch {
	case !n.Spec.Unschedulable && c.annotations == nil && !w.intended.IsZero():
		// Our write has landed before a crash or before an answer was lost.
		return decision{result: fleet.ItemResult{State: fleet.ItemSucceeded, Changed: true, Edits: w.recorded}}
	case !n.Spec.Unschedulable && c.annotations == nil:
		d := unchanged("already schedulable")
		d.edits = []fleet.Edit{cordonEdit(nil, nil)}
		return d
	case !n.Spec.Unschedulable:
		return decision{change: c, result: fleet.ItemResult{State: fleet.ItemSucceeded, Code: fleet.CodeCleaned}}
	case !w.intended.IsZero() && ours && note.At.After(w.intended):
		return decision{result: fleet.ItemResult{
			State: fleet.ItemSkipped, Code: fleet.CodeUndone,
			Message: "cordoned again" + whose(now.Cordon) + " after this batch had begun with it",
		}}
	case !ours && w.op.Foreign != fleet.ForeignInclude:
		return decision{result: fleet.ItemResult{
			State: fleet.ItemSkipped, Code: fleet.CodeForeignCordon,
			Message: "cordoned" + whose(now.Cordon) + ", not through this program; uncordon it with foreign=include if that is meant",
		}}
	}
	c.set("unschedulable", nil)
	c.edits = []fleet.Edit{cordonEdit(cordonOf(w.item.Ref.Cluster, n), nil)}
	return decision{change: c, edits: c.edits, result: fleet.ItemResult{State: fleet.ItemSucceeded}}
}

// noteOf reads our note, and tells whether the cordon of the node is the one that it speaks of: made by us, on a node
// that nobody else had cordoned before, and not undone and made again by somebody else.
func noteOf(n *corev1.Node, now *fleet.Node) (note kube.CordonNote, ours bool) {
	note, err := kube.ParseCordonNote(n.Annotations[kube.CordonAnnotation])
	if err != nil {
		return kube.CordonNote{}, false // whoever wrote that, it says nothing
	}
	return note, now.Cordon != nil && now.Cordon.With == "" && !note.PrevUnschedulable
}

func unchanged(why string) decision {
	return decision{result: fleet.ItemResult{State: fleet.ItemSkipped, Code: fleet.CodeUnchanged, Message: why}}
}

// whose says who cordoned a node, as far as the node knows, with a space in front.
func whose(c *fleet.Cordon) string {
	if c == nil {
		return ""
	}
	var s string
	switch {
	case c.By != "":
		s = " by " + kube.Plain(c.By)
	case c.With != "":
		s = " with " + kube.Plain(c.With)
	}
	if !c.Since.IsZero() {
		s += " since " + c.Since.UTC().Format("2006-01-02 15:04 UTC")
	}
	if c.Reason != "" {
		s += fmt.Sprintf(" (%s)", kube.Plain(c.Reason))
	}
	return s
}

// via is how the note names the way in.
func via(by fleet.Caller) string {
	switch by.Via {
	case "session":
		return "ui"
	case "token":
		return "api"
	}
	return by.Via
}
