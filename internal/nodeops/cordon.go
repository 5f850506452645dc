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
		return decision{result: fleet.ItemResult{State: fleet.ItemSucceeded, Changed: true}}
	case n.Spec.Unschedulable:
		return unchanged("already cordoned" + whose(now.Cordon))
	case note.Batch == w.batch:
		return decision{result: fleet.ItemResult{
			State: fleet.ItemSkipped, Code: fleet.CodeUndone, Changed: true,
			Message: "this batch had cordoned it, and somebody uncordoned it since",
		}}
	}
	after := kube.CordonNote{V: 1, By: w.by.Name, Via: via(w.by), Reason: w.op.Reason, At: w.at.Truncate(time.Second), Batch: w.batch}
	annotations := map[string]any{kube.CordonAnnotation: after.String()}
	if w.op.Reason != "" {
		annotations[kube.CordonReasonAnnotation] = w.op.Reason
	} else {
		annotations[kube.CordonReasonAnnotation] = nil // of an earlier cordon that somebody else undid
	}
	return decision{
		change: &change{
			annotations: annotations,
			spec:        map[string]any{"unschedulable": true},
			before:      schedulability{},
			after: schedulability{true, &fleet.Cordon{
				By: after.By, Reason: after.Reason, Since: after.At, Batch: w.batch,
			}},
		},
		result: fleet.ItemResult{State: fleet.ItemSucceeded},
	}
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
		return decision{result: fleet.ItemResult{State: fleet.ItemSucceeded, Changed: true}}
	case !n.Spec.Unschedulable && c.annotations == nil:
		return unchanged("already schedulable")
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
	c.spec = map[string]any{"unschedulable": nil}
	return decision{change: c, result: fleet.ItemResult{State: fleet.ItemSucceeded}}
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
		s = " by " + plain(c.By)
	case c.With != "":
		s = " with " + plain(c.With)
	}
	if !c.Since.IsZero() {
		s += " since " + c.Since.UTC().Format("2006-01-02 15:04 UTC")
	}
	if c.Reason != "" {
		s += fmt.Sprintf(" (%s)", plain(c.Reason))
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
