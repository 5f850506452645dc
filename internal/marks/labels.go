package marks

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/api/validate/content"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// maxLines bounds how many labels or taints one operation may name.
const maxLines = 100

// Label is one line: a label to set, or to remove.
type Label struct {
	Key    string
	Value  string
	Remove bool
}

// String is the line in its plainest form.
func (l Label) String() string {
	if l.Remove {
		return l.Key + "-"
	}
	return l.Key + "=" + l.Value
}

// Labels are what an operation does to the labels of each node, no key more than once.
type Labels []Label

// ParseLabels reads lines of key=value, key= and key-. Empty lines are left out. The error is a FieldError for the field
// that shows the line.
func ParseLabels(field string, lines []string) (Labels, error) {
	var out Labels
	seen := make(map[string]bool)
	for _, line := range tidy(lines) {
		l, err := parseLabel(field, line)
		if err != nil {
			return nil, err
		}
		if seen[l.Key] {
			return nil, bad(field, line, "names the key %q a second time", l.Key)
		}
		seen[l.Key] = true
		if out = append(out, l); len(out) > maxLines {
			return nil, fleet.Invalid(field, "has more than %d lines", maxLines)
		}
	}
	return out, nil
}

func parseLabel(field, line string) (Label, error) {
	key, value, set := strings.Cut(line, "=")
	l := Label{Key: key, Value: value}
	switch {
	case strings.Contains(value, "="):
		return l, bad(field, line, "has more than one =")
	case !set:
		if l.Key, l.Remove = strings.CutSuffix(line, "-"); !l.Remove {
			return l, bad(field, line, "is neither key=value nor key-")
		}
	}
	if msgs := content.IsLabelKey(l.Key); len(msgs) > 0 {
		return l, bad(field, line, "has the key %q, and a key: %s", l.Key, msgs[0])
	}
	if msgs := content.IsLabelValue(l.Value); len(msgs) > 0 {
		return l, bad(field, line, "has the value %q, and a value: %s", l.Value, msgs[0])
	}
	return l, nil
}

// Lines are the labels as ParseLabels takes them.
func (ls Labels) Lines() []string {
	out := make([]string, len(ls))
	for i, l := range ls {
		out[i] = l.String()
	}
	return out
}

// Diff says what the labels come to on a node that has others: an edit a line, in order. A different value is a conflict
// unless the policy is to overwrite it; with EditReplace a key that the node does not have stays away.
func (ls Labels) Diff(have map[string]string, mode fleet.EditMode, policy fleet.ConflictPolicy) []fleet.Edit {
	out := make([]fleet.Edit, len(ls))
	for i, l := range ls {
		e := fleet.Edit{Kind: fleet.EditLabel, Key: l.Key, Outcome: fleet.EditUnchanged}
		value, has := have[l.Key]
		if has {
			e.Before, e.After = new(value), new(value)
		}
		switch {
		case l.Remove && has:
			e.After, e.Outcome = nil, fleet.EditRemoved
		case l.Remove, has && value == l.Value:
		case !has && mode == fleet.EditReplace:
			e.Note = RemarkAbsent
		default:
			e.After = new(l.Value)
			e.Outcome = setting(has, policy)
		}
		if remark, _ := LabelRemark(l.Key); remark != "" {
			e.Note = remark
		}
		out[i] = e
	}
	return out
}

// setting is what setting a value comes to where there is another one, or none.
func setting(has bool, policy fleet.ConflictPolicy) fleet.EditOutcome {
	switch {
	case !has:
		return fleet.EditAdded
	case policy == fleet.ConflictOverwrite:
		return fleet.EditChanged
	case policy == fleet.ConflictSkip:
		return fleet.EditKept
	}
	return fleet.EditConflict
}

// tidy drops what a form leaves around lines, and empty ones.
func tidy(lines []string) []string {
	out := make([]string, 0, len(lines))
	for _, line := range lines {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, line)
		}
	}
	return out
}

// maxShown is how much of an offending line is shown, in bytes; the rest of it is not worth a page.
const maxShown = 400

// bad is the error of a line.
func bad(field, line, format string, args ...any) *fleet.FieldError {
	if len(line) > maxShown {
		line = line[:maxShown] + "…"
	}
	e := fleet.Invalid(field, "%q %s", line, fmt.Sprintf(format, args...))
	e.Args = map[string]string{"Part": line}
	return e
}
