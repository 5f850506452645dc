package nodeops

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
	"github.com/kube-node-manager/kube-node-manager/internal/marks"
)

// revert takes back what an earlier batch did to a node, as far as it still is as that batch left it: what somebody
// changed since is theirs. A cordon is ours only with the very note that the batch had left.
func revert(w work, n *corev1.Node) decision {
	undo := marks.Effective(w.item.Undo)
	if len(undo) == 0 {
		return decision{result: fleet.ItemResult{
			State: fleet.ItemSkipped, Code: fleet.CodeNothing, Message: "that batch had not changed this node",
		}}
	}
	c := &change{}
	taints := kube.Node(w.item.Ref.Cluster, n).Taints
	retaint := false
	var (
		all  []fleet.Edit
		left []string
	)
	for _, e := range undo {
		now := current(w.item.Ref.Cluster, n, e)
		back := fleet.Edit{Kind: e.Kind, Key: e.Key, Effect: e.Effect, Before: now, After: e.Before, Outcome: fleet.EditUnchanged, Note: e.Note}
		switch {
		case same(now, e.Before), w.wrote(e, now):
			all = append(all, back)
			continue
		case !same(now, e.After):
			back.Outcome = fleet.EditConflict
			all, left = append(all, back), append(left, marks.Name(e))
			continue
		}
		switch {
		case back.After == nil:
			back.Outcome = fleet.EditRemoved
		case back.Before == nil:
			back.Outcome = fleet.EditAdded
		default:
			back.Outcome = fleet.EditChanged
		}
		switch e.Kind {
		case fleet.EditLabel:
			c.label(e.Key, back.After)
			c.edits = append(c.edits, back)
		case fleet.EditTaint:
			taints, retaint = retainted(taints, back), true
			c.edits = append(c.edits, back)
		case fleet.EditCordon:
			if back.After != nil { // we had uncordoned it
				c.cordon(w, reasonAgain(w, *back.After))
			} else {
				c.set("unschedulable", nil)
				c.annotations = map[string]any{kube.CordonAnnotation: nil, kube.CordonReasonAnnotation: nil}
				c.edits = append(c.edits, back)
			}
			back = c.edits[len(c.edits)-1]
		}
		all = append(all, back)
	}
	if retaint {
		c.taints(n, taints)
	}
	d := decision{edits: all, result: fleet.ItemResult{State: fleet.ItemSucceeded}}
	if len(left) > 0 {
		d.result.Code = fleet.CodeChangedSince
		d.result.Message = "somebody changed since: " + sentence(left)
	}
	if done, ok := landed(w, n); ok {
		if done.result.State == fleet.ItemSucceeded {
			done.result.Code, done.result.Message = d.result.Code, d.result.Message
		}
		return done
	}
	switch {
	case len(c.edits) > 0:
		d.change = c
	case len(left) > 0:
		d.result.State = fleet.ItemSkipped
	default:
		d.result = unchanged("already as it was before").result
	}
	return d
}

// wrote tells whether an earlier attempt was going to leave a property as it is now. A cordon that is put back carries
// another note than the one that was taken away.
func (w work) wrote(e fleet.Edit, now *string) bool {
	return slices.ContainsFunc(w.recorded, func(r fleet.Edit) bool {
		return r.Kind == e.Kind && r.Key == e.Key && r.Effect == e.Effect && same(r.After, now)
	})
}

// retainted is a list of taints with one of them as an edit leaves it.
func retainted(taints []fleet.Taint, e fleet.Edit) []fleet.Taint {
	out := slices.Clone(taints)
	at := slices.IndexFunc(out, func(t fleet.Taint) bool { return t.Key == e.Key && t.Effect == e.Effect })
	switch {
	case e.After == nil && at >= 0:
		return slices.Delete(out, at, at+1)
	case e.After == nil:
		return out
	}
	t := fleet.Taint{Key: e.Key, Value: *e.After, Effect: e.Effect}
	if at >= 0 {
		out[at] = t
		return out
	}
	return append(out, t)
}

// reasonAgain is the reason of a cordon that is put back: a new one, or else the one that its note gave.
func reasonAgain(w work, note string) string {
	if w.op.Reason != "" {
		return w.op.Reason
	}
	old, err := kube.ParseCordonNote(note)
	if err != nil {
		return "" // it carried none of ours
	}
	return old.Reason
}
