package marks

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/validate/content"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Taint is one line: a taint to set, or to remove. Without an effect, which only a removal may be, it is every taint
// with the key.
type Taint struct {
	Key    string
	Value  string
	Effect fleet.TaintEffect
	Remove bool
}

// String is the line in its plainest form.
func (t Taint) String() string {
	s := t.Key
	if t.Value != "" && !t.Remove {
		s += "=" + t.Value
	}
	if t.Effect != "" {
		s += ":" + string(t.Effect)
	}
	if t.Remove {
		s += "-"
	}
	return s
}

// Taints are what an operation does to the taints of each node, no pair of key and effect more than once.
type Taints []Taint

// ParseTaints reads lines of key[=value]:Effect, key[=value]:Effect- and key-. Empty lines are left out. The error is a
// FieldError for the field that shows the line.
func ParseTaints(field string, lines []string) (Taints, error) {
	var out Taints
	for _, line := range tidy(lines) {
		t, err := parseTaint(field, line)
		if err != nil {
			return nil, err
		}
		for _, o := range out {
			if o.Key == t.Key && (o.Effect == t.Effect || o.Effect == "" || t.Effect == "") {
				return nil, bad(field, line, "names a taint that %q names too", o.String())
			}
		}
		if out = append(out, t); len(out) > maxLines {
			return nil, fleet.Invalid(field, "has more than %d lines", maxLines)
		}
	}
	return out, nil
}

func parseTaint(field, line string) (Taint, error) {
	var t Taint
	rest, remove := strings.CutSuffix(line, "-")
	t.Remove = remove
	pair, effect, has := strings.Cut(rest, ":")
	t.Effect = fleet.TaintEffect(effect)
	switch { // the effect comes first, as kubectl has it
	case strings.Contains(effect, ":"):
		return t, bad(field, line, "has more than one :")
	case has && t.Effect != fleet.NoSchedule && t.Effect != fleet.PreferNoSchedule && t.Effect != fleet.NoExecute:
		return t, bad(field, line, "has the effect %q, which is not one of NoSchedule, PreferNoSchedule, NoExecute", effect)
	case !has && !remove:
		return t, bad(field, line, "has no effect: one of :NoSchedule, :PreferNoSchedule, :NoExecute")
	}
	var valued bool
	t.Key, t.Value, valued = strings.Cut(pair, "=")
	switch {
	case strings.Contains(t.Value, "="):
		return t, bad(field, line, "has more than one =")
	case valued && !has:
		return t, bad(field, line, "has a value and no effect: key- removes every taint with the key, key:Effect- one of them")
	}
	if msgs := content.IsLabelKey(t.Key); len(msgs) > 0 {
		return t, bad(field, line, "has the key %q, and a key: %s", t.Key, msgs[0])
	}
	if msgs := content.IsLabelValue(t.Value); len(msgs) > 0 {
		return t, bad(field, line, "has the value %q, and a value: %s", t.Value, msgs[0])
	}
	if remove {
		t.Value = "" // a removal goes by key and effect
	}
	return t, nil
}

// Lines are the taints as ParseTaints takes them.
func (ts Taints) Lines() []string {
	out := make([]string, len(ts))
	for i, t := range ts {
		out[i] = t.String()
	}
	return out
}

// Diff says what the taints come to on a node that has others, and the whole list that it has then. Taints that stay,
// stay as they are, time included, and in their order. With EditReplace those that are not named go, but for taints that
// belong to controllers or say what the node is.
func (ts Taints) Diff(have []fleet.Taint, mode fleet.EditMode, policy fleet.ConflictPolicy) ([]fleet.Edit, []fleet.Taint) {
	var edits []fleet.Edit
	list := slices.Clone(have)
	remove := func(at int) {
		edits = append(edits, taintEdit(list[at].Key, list[at].Effect, new(list[at].Value), nil, fleet.EditRemoved))
		list = slices.Delete(list, at, at+1)
	}
	if mode == fleet.EditReplace {
		for i := 0; i < len(list); {
			_, owned := TaintRemark(list[i].Key)
			if owned || special(list[i].Key) || slices.ContainsFunc(ts, func(t Taint) bool { return t.Key == list[i].Key && t.Effect == list[i].Effect }) {
				i++
				continue
			}
			remove(i)
		}
	}
	for _, t := range ts {
		is := func(o fleet.Taint) bool { return o.Key == t.Key && (o.Effect == t.Effect || t.Effect == "") }
		at := slices.IndexFunc(list, is)
		switch {
		case t.Remove && at < 0:
			edits = append(edits, taintEdit(t.Key, t.Effect, nil, nil, fleet.EditUnchanged))
		case t.Remove:
			for ; at >= 0; at = slices.IndexFunc(list, is) {
				remove(at)
			}
		case at < 0:
			edits = append(edits, taintEdit(t.Key, t.Effect, nil, new(t.Value), fleet.EditAdded))
			list = append(list, fleet.Taint{Key: t.Key, Value: t.Value, Effect: t.Effect})
		case list[at].Value == t.Value:
			edits = append(edits, taintEdit(t.Key, t.Effect, new(t.Value), new(t.Value), fleet.EditUnchanged))
		default:
			outcome := setting(true, policy)
			edits = append(edits, taintEdit(t.Key, t.Effect, new(list[at].Value), new(t.Value), outcome))
			if outcome == fleet.EditChanged {
				list[at] = fleet.Taint{Key: t.Key, Value: t.Value, Effect: t.Effect}
			}
		}
	}
	return edits, list
}

func taintEdit(key string, effect fleet.TaintEffect, before, after *string, outcome fleet.EditOutcome) fleet.Edit {
	remark, _ := TaintRemark(key)
	return fleet.Edit{Kind: fleet.EditTaint, Key: key, Effect: effect, Before: before, After: after, Outcome: outcome, Note: remark}
}

// Own are the taints of a node that can be copied to others: those that people gave it, without their times.
func Own(have []fleet.Taint) Taints {
	var out Taints
	for _, t := range have {
		if _, owned := TaintRemark(t.Key); !owned && !special(t.Key) {
			out = append(out, Taint{Key: t.Key, Value: t.Value, Effect: t.Effect})
		}
	}
	return out
}

// Effective are the edits that change something.
func Effective(edits []fleet.Edit) []fleet.Edit {
	var out []fleet.Edit
	for _, e := range edits {
		if e.Outcome == fleet.EditAdded || e.Outcome == fleet.EditChanged || e.Outcome == fleet.EditRemoved {
			out = append(out, e)
		}
	}
	return out
}

// Name is how people call what an edit is about: `label team`, `taint gpu:NoSchedule`, `cordon`.
func Name(e fleet.Edit) string {
	switch e.Kind {
	case fleet.EditLabel:
		return "label " + e.Key
	case fleet.EditTaint:
		if e.Effect == "" {
			return "taint " + e.Key
		}
		return "taint " + e.Key + ":" + string(e.Effect)
	case fleet.EditCordon:
	}
	return string(e.Kind)
}
