package nodeops

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	apilabels "k8s.io/apimachinery/pkg/labels"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
	"github.com/kube-node-manager/kube-node-manager/internal/marks"
)

const (
	// maxSeconds bounds every time that a drain is given.
	maxSeconds = 24 * 60 * 60
	// drainTimeout is what a drain is given if nothing was chosen, in seconds.
	drainTimeout = 30 * 60
	// maxID is in bytes, of ids that come from outside.
	maxID = 100
)

// Prepare authorizes an operation, checks its fields and completes it. See batch.Authorizer for the contract. What it
// returns is complete: it is not for Prepare again, which takes lines only from people, but for Authorize.
func (o *Ops) Prepare(ctx context.Context, by fleet.Caller, op fleet.Operation, refs []fleet.NodeRef) (fleet.Operation, error) {
	// Who may not do the action at all learns nothing from the check of its fields.
	if err := o.Authorize(ctx, by, op, refs); err != nil {
		return op, err
	}
	if err := checkFields(op); err != nil {
		return op, err
	}
	var (
		err  error
		undo []fleet.Edit
	)
	switch op.Action {
	case fleet.ActionCordon:
	case fleet.ActionUncordon:
		if op.Foreign == "" {
			op.Foreign = fleet.ForeignSkip
		}
	case fleet.ActionDrain:
		op.Drain, err = drainOptions(op.Drain)
	case fleet.ActionLabels:
		op, err = labelLines(policy(op, fleet.EditAdd, fleet.ConflictFail), "labels", true)
	case fleet.ActionTaints:
		op, err = taintLines(policy(op, fleet.EditAdd, fleet.ConflictFail), "taints", true)
	case fleet.ActionCopy:
		op, err = o.copied(ctx, by, policy(op, fleet.EditMerge, fleet.ConflictOverwrite))
	case fleet.ActionTemplate:
		op, err = o.filled(ctx, policy(op, "", fleet.ConflictOverwrite))
	case fleet.ActionRevert:
		undo, err = o.reverted(ctx, op.Revert, refs)
	}
	if err != nil {
		return op, err
	}
	// The lines may ask for more than the action does.
	return op, o.authorize(ctx, by, op, undo, refs)
}

// ownFields says which fields are of which actions.
var ownFields = []struct {
	name  string // of the form and of JSON
	given func(fleet.Operation) bool
	of    []fleet.Action
}{
	{"foreign", func(op fleet.Operation) bool { return op.Foreign != "" }, []fleet.Action{fleet.ActionUncordon}},
	{"drain", func(op fleet.Operation) bool { return op.Drain != nil }, []fleet.Action{fleet.ActionDrain}},
	{"labels", func(op fleet.Operation) bool { return len(op.Labels) > 0 }, []fleet.Action{fleet.ActionLabels}},
	{"taints", func(op fleet.Operation) bool { return len(op.Taints) > 0 }, []fleet.Action{fleet.ActionTaints}},
	{
		"mode", func(op fleet.Operation) bool { return op.Mode != "" },
		[]fleet.Action{fleet.ActionLabels, fleet.ActionTaints, fleet.ActionCopy},
	},
	{
		"on_conflict", func(op fleet.Operation) bool { return op.OnConflict != "" },
		[]fleet.Action{fleet.ActionLabels, fleet.ActionTaints, fleet.ActionCopy, fleet.ActionTemplate},
	},
	{
		"allow_protected", func(op fleet.Operation) bool { return op.AllowProtected },
		[]fleet.Action{fleet.ActionLabels, fleet.ActionTemplate},
	},
	{"source", func(op fleet.Operation) bool { return op.Source != nil }, []fleet.Action{fleet.ActionCopy}},
	{"template", func(op fleet.Operation) bool { return op.Template != nil }, []fleet.Action{fleet.ActionTemplate}},
	{"batch", func(op fleet.Operation) bool { return op.Revert != "" }, []fleet.Action{fleet.ActionRevert}},
}

// checkFields checks what can be said of the fields without looking anything up.
func checkFields(op fleet.Operation) error {
	switch {
	case !utf8.ValidString(op.Reason):
		return fleet.Invalid("reason", "is not valid UTF-8")
	case utf8.RuneCountInString(op.Reason) > maxReason:
		return fleet.Invalid("reason", "is longer than %d characters", maxReason)
	}
	for _, r := range op.Reason {
		// Beside C0 and C1: what turns the direction of the text around it, and line breaks of Unicode's own.
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029' {
			return fleet.Invalid("reason", "holds the control character %U", r)
		}
	}
	for _, f := range ownFields {
		if f.given(op) && !slices.Contains(f.of, op.Action) {
			return fleet.Invalid(f.name, "is a field of %s only", names(f.of))
		}
	}
	if err := oneOf("foreign", op.Foreign, fleet.ForeignSkip, fleet.ForeignInclude); err != nil {
		return err
	}
	second := fleet.EditAdd
	if op.Action == fleet.ActionCopy {
		second = fleet.EditMerge
	}
	if err := oneOf("mode", op.Mode, second, fleet.EditReplace); err != nil {
		return err
	}
	if err := oneOf("on_conflict", op.OnConflict, fleet.ConflictFail, fleet.ConflictSkip, fleet.ConflictOverwrite); err != nil {
		return err
	}
	if op.Mode == fleet.EditReplace && op.OnConflict != "" && op.OnConflict != fleet.ConflictOverwrite {
		return fleet.Invalid("on_conflict", "%q does not go with mode=replace, which is about other values", op.OnConflict)
	}
	return nil
}

// oneOf checks a choice; "" is the default.
func oneOf[T ~string](field string, got T, choices ...T) error {
	if got == "" || slices.Contains(choices, got) {
		return nil
	}
	return fleet.Invalid(field, "%q is not one of %s", got, names(choices))
}

func names[T ~string](of []T) string {
	out := make([]string, len(of))
	for i, s := range of {
		out[i] = string(s)
	}
	return strings.Join(out, ", ")
}

// policy sets the defaults of how lines are meant.
func policy(op fleet.Operation, mode fleet.EditMode, conflict fleet.ConflictPolicy) fleet.Operation {
	if op.Mode == "" {
		op.Mode = mode
	}
	if op.Mode == fleet.EditReplace {
		conflict = fleet.ConflictOverwrite
	}
	if op.OnConflict == "" {
		op.OnConflict = conflict
	}
	return op
}

// labelLines checks the labels of an operation. Field is what a person filled in to get them.
func labelLines(op fleet.Operation, field string, some bool) (fleet.Operation, error) {
	ls, err := marks.ParseLabels(field, op.Labels)
	switch {
	case err != nil:
		return op, err
	case some && len(ls) == 0:
		return op, fleet.Invalid(field, "must have at least one line")
	}
	if protected := ls.Protected(); len(protected) > 0 && !op.AllowProtected {
		return op, fleet.Invalid(field, "%q changes a label that placement, storage or security relies on; allow_protected=true says that it is meant",
			protected[0].String())
	}
	op.Labels = ls.Lines()
	return op, nil
}

// taintLines checks the taints of an operation.
func taintLines(op fleet.Operation, field string, some bool) (fleet.Operation, error) {
	ts, err := marks.ParseTaints(field, op.Taints)
	if err == nil {
		err = ts.CheckOwned(field)
	}
	switch {
	case err != nil:
		return op, err
	case some && len(ts) == 0:
		return op, fleet.Invalid(field, "must have at least one line")
	}
	if i := slices.IndexFunc(ts, func(t marks.Taint) bool { return t.Remove }); i >= 0 && op.Mode == fleet.EditReplace {
		return op, fleet.Invalid(field, "%q removes a taint, and mode=replace removes all that are not named", ts[i].String())
	}
	op.Taints = ts.Lines()
	return op, nil
}

// copied freezes the taints of the source, as it is now.
func (o *Ops) copied(ctx context.Context, by fleet.Caller, op fleet.Operation) (fleet.Operation, error) {
	switch {
	case op.Source == nil:
		return op, fleet.Invalid("source", "must name the node to copy from")
	case !fleet.ValidNodeName(op.Source.Name):
		return op, fleet.Invalid("source", "%q does not end in the name of a node", op.Source)
	case !by.May(fleet.PermNodesView, op.Source.Cluster):
		o.denied(ctx, by, "", op, *op.Source, fmt.Sprintf("the role %q does not have %s", by.Role, fleet.PermNodesView))
		return op, unknownSource(*op.Source) // the refusal is for the record; to the person there is no such cluster
	}
	client, err := o.cfg.Clients(op.Source.Cluster, by)
	if errors.Is(err, fleet.ErrNotFound) {
		return op, unknownSource(*op.Source)
	}
	if err != nil {
		return op, fmt.Errorf("copying from %s: %w", op.Source, err)
	}
	n, err := nodeClient{rest: client.CoreV1().RESTClient(), name: op.Source.Name}.get(ctx)
	if errors.Is(err, fleet.ErrNotFound) {
		return op, fleet.Invalid("source", "there is no node %s in cluster %s", op.Source.Name, op.Source.Cluster)
	}
	if err != nil {
		return op, fmt.Errorf("reading the taints of %s: %w", op.Source, err)
	}
	own := marks.Own(kube.Node(op.Source.Cluster, n).Taints)
	if len(own) == 0 && op.Mode != fleet.EditReplace {
		return op, fleet.Invalid("source", "%q has no taints to copy: those of controllers and of the control plane are not", op.Source)
	}
	op.Taints = own.Lines()
	return op, nil
}

func unknownSource(ref fleet.NodeRef) error {
	return fleet.Invalid("source", "%q names the cluster %q, which is not known here", ref, ref.Cluster)
}

// filled freezes the lines of a template.
func (o *Ops) filled(ctx context.Context, op fleet.Operation) (fleet.Operation, error) {
	use := op.Template
	switch {
	case use == nil || use.ID == "":
		return op, fleet.Invalid("template", "must name a template")
	case len(use.ID) > maxID || use.Version < 0:
		return op, fleet.Invalid("template", "there is no such template")
	}
	rctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	t, err := o.cfg.Templates.Template(rctx, use.ID, use.Version)
	if errors.Is(err, fleet.ErrNotFound) {
		return op, fleet.Invalid("template", "there is no such template")
	}
	if err != nil {
		return op, fmt.Errorf("reading a template: %w", err)
	}
	values, err := marks.Choose(t, use.Values)
	if err != nil {
		return op, err
	}
	op.Template = &fleet.TemplateUse{ID: t.ID, Name: t.Name, Version: t.Version, Values: values}
	op.Labels, op.Taints = marks.Fill(t.Labels, values), marks.Fill(t.Taints, values)
	if op, err = labelLines(op, "template", false); err != nil {
		return op, err
	}
	if op, err = taintLines(op, "template", false); err != nil {
		return op, err
	}
	if len(op.Labels)+len(op.Taints) == 0 {
		return op, fleet.Invalid("template", "%q has neither labels nor taints", t.Name)
	}
	return op, nil
}

// reverted is what a batch changed on some nodes.
func (o *Ops) reverted(ctx context.Context, id string, refs []fleet.NodeRef) ([]fleet.Edit, error) {
	switch {
	case id == "":
		return nil, fleet.Invalid("batch", "must name the batch to take back")
	case len(id) > maxID:
		return nil, fleet.Invalid("batch", "there is no such batch")
	}
	rctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	_, items, err := o.cfg.Batches.Batch(rctx, id, 0)
	if errors.Is(err, fleet.ErrNotFound) {
		return nil, fleet.Invalid("batch", "there is no batch %q", id)
	}
	if err != nil {
		return nil, fmt.Errorf("reading batch %s: %w", id, err)
	}
	asked := make(map[fleet.NodeRef]bool, len(refs))
	for _, ref := range refs {
		asked[ref] = true
	}
	var undo []fleet.Edit
	for i := range items {
		if asked[items[i].Ref] {
			undo = append(undo, items[i].Edits...)
		}
	}
	return undo, nil
}

// drainOptions checks what was chosen for a drain and completes it.
func drainOptions(chosen *fleet.DrainOptions) (*fleet.DrainOptions, error) {
	if chosen == nil {
		return &fleet.DrainOptions{GracePeriodSeconds: -1, TimeoutSeconds: drainTimeout}, nil
	}
	d := *chosen
	for _, f := range []struct {
		field         string
		seconds, from int
	}{
		{"grace_period_seconds", d.GracePeriodSeconds, -1},
		{"timeout_seconds", d.TimeoutSeconds, 0},
		{"skip_wait_for_delete_timeout", d.SkipStuckSeconds, 0},
	} {
		if f.seconds < f.from || f.seconds > maxSeconds {
			return nil, fleet.Invalid(f.field, "%d is not between %d and %d", f.seconds, f.from, maxSeconds)
		}
	}
	if _, err := apilabels.Parse(d.PodSelector); err != nil {
		return nil, fleet.Invalid("pod_selector", "%s", kube.Plain(err.Error()))
	}
	if d.TimeoutSeconds == 0 {
		d.TimeoutSeconds = drainTimeout
	}
	return &d, nil
}
