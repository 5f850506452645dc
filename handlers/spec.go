package handlers

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// actionFields are the fields that belong to each action alone, by the names that forms and JSON have for them. A name
// with a dot at its end stands for all that begin so.
var actionFields = map[fleet.Action][]string{
	fleet.ActionCordon:   nil,
	fleet.ActionUncordon: {"foreign"},
	fleet.ActionDrain: {
		"grace_period_seconds", "timeout_seconds", "delete_emptydir_data", "force", "pod_selector", "disable_eviction",
		"uncordon_after", "ignore_opt_out", "skip_wait_for_delete_timeout", "wait_for_replacements",
	},
	fleet.ActionLabels:   {"labels", "mode", "on_conflict", "allow_protected"},
	fleet.ActionTaints:   {"taints", "mode", "on_conflict"},
	fleet.ActionCopy:     {"source", "mode", "on_conflict"},
	fleet.ActionTemplate: {"template", "template_version", "value.", "on_conflict", "allow_protected"},
	fleet.ActionRevert:   {"batch"},
}

// modesOf are the modes that an action knows.
var modesOf = map[fleet.Action][]fleet.EditMode{
	fleet.ActionLabels: {fleet.EditAdd, fleet.EditReplace},
	fleet.ActionTaints: {fleet.EditAdd, fleet.EditReplace},
	fleet.ActionCopy:   {fleet.EditMerge, fleet.EditReplace},
}

// ask is what a request wants of batches: what is to be done, and whether only to say what it would do.
type ask struct {
	spec   fleet.BatchSpec
	dryRun bool
}

// readAsk reads what is asked for. It checks the form of every field, and that no field is of another action; whether
// the whole makes sense is for the engine.
func readAsk(r *http.Request) (ask, *input, error) {
	in, err := readInput(r)
	if err != nil {
		return ask{}, nil, err
	}
	a := askOf(in)
	a.spec.IdempotencyKey = idempotencyKey(in, r)
	action := a.spec.Action
	for other, names := range actionFields {
		for _, name := range names {
			if other != action && !belongs(action, name) {
				in.refuseSaid(name, action)
			}
		}
	}
	return a, in, in.done()
}

// belongs tells whether the action has the field.
func belongs(action fleet.Action, name string) bool {
	return slices.Contains(actionFields[action], name)
}

// refuseSaid fails for a field of another action that says something. An empty one says nothing: forms send those.
func (in *input) refuseSaid(name string, action fleet.Action) {
	for _, full := range in.named(name) {
		said := strings.Join(in.lines(full), "")
		if said != "" && action != "" {
			in.fail(&fleet.FieldError{
				Field: full, Message: "is not a field of " + string(action), Key: "error.field_action",
				Args: map[string]string{"Part": string(action)},
			})
		}
	}
}

// named are the fields of a name: itself, or all that begin with it if it ends in a dot.
func (in *input) named(name string) []string {
	if !strings.HasSuffix(name, ".") {
		return []string{name}
	}
	var out []string
	for full := range in.values {
		if strings.HasPrefix(full, name) {
			out = append(out, full)
		}
	}
	slices.Sort(out)
	return out
}

// askOf takes the fields that every action has and those of the action that is asked for.
func askOf(in *input) ask {
	spec := fleet.BatchSpec{
		Operation: fleet.Operation{Action: fleet.Action(in.text("action")), Reason: in.text("reason")},
		Rollout: fleet.Rollout{
			MaxConcurrent: in.number("max_concurrent"), PerCluster: in.number("per_cluster"), PerZone: in.number("per_zone"),
			MaxUnavailable: in.number("max_unavailable"), MaxFailures: in.number("max_failures"),
			PauseBetween: in.duration("pause_between"), Canary: in.number("canary"),
			Order: choice(in, "order", fleet.OrderGiven, fleet.OrderZone),
		},
		Confirm: strings.TrimSpace(in.text("confirm")), PlanDigest: in.text("plan"),
	}
	a := ask{dryRun: in.flag("dry_run")}
	for _, line := range in.lines("nodes") {
		ref, err := fleet.ParseNodeRef("nodes", line)
		if err != nil {
			in.fail(err)
			break
		}
		spec.Nodes = append(spec.Nodes, ref)
	}
	if _, ok := spec.Action.Permission(); !ok {
		names := make([]string, 0, len(fleet.Actions()))
		for _, name := range fleet.Actions() {
			names = append(names, string(name))
		}
		if spec.Action == "" {
			in.fail(fleet.Invalid("action", "must be given: %s", strings.Join(names, ", ")))
		} else {
			in.fail(fleet.Invalid("action", "%q is not one of %s", string(spec.Action), strings.Join(names, ", ")))
		}
	}
	operationOf(in, &spec.Operation)
	a.spec = spec
	return a
}

// operationOf takes the fields of the action.
func operationOf(in *input, op *fleet.Operation) {
	if modes := modesOf[op.Action]; modes != nil {
		op.Mode = choice(in, "mode", modes...)
	}
	if belongs(op.Action, "on_conflict") {
		op.OnConflict = choice(in, "on_conflict", fleet.ConflictFail, fleet.ConflictSkip, fleet.ConflictOverwrite)
	}
	if belongs(op.Action, "allow_protected") {
		op.AllowProtected = in.flag("allow_protected")
	}
	switch op.Action {
	case fleet.ActionCordon:
	case fleet.ActionUncordon:
		op.Foreign = choice(in, "foreign", fleet.ForeignSkip, fleet.ForeignInclude)
	case fleet.ActionDrain:
		op.Drain = &fleet.DrainOptions{
			GracePeriodSeconds: in.numberFrom("grace_period_seconds", -1, -1), TimeoutSeconds: in.seconds("timeout_seconds"),
			DeleteEmptyDirData: in.flag("delete_emptydir_data"), Force: in.flag("force"),
			PodSelector: strings.TrimSpace(in.text("pod_selector")), DisableEviction: in.flag("disable_eviction"),
			UncordonAfter: in.flag("uncordon_after"), IgnoreOptOut: in.flag("ignore_opt_out"),
			SkipStuckSeconds: in.seconds("skip_wait_for_delete_timeout"), WaitReplacements: in.flag("wait_for_replacements"),
		}
	case fleet.ActionLabels:
		op.Labels = in.lines("labels")
	case fleet.ActionTaints:
		op.Taints = in.lines("taints")
	case fleet.ActionCopy:
		if source := strings.TrimSpace(in.text("source")); source != "" {
			ref, err := fleet.ParseNodeRef("source", source)
			if err != nil {
				in.fail(err)
			}
			op.Source = &ref
		}
	case fleet.ActionTemplate:
		op.Template = &fleet.TemplateUse{ID: strings.TrimSpace(in.text("template")), Version: in.number("template_version")}
		for _, name := range in.named("value.") {
			if op.Template.Values == nil {
				op.Template.Values = map[string]string{}
			}
			op.Template.Values[strings.TrimPrefix(name, "value.")] = strings.TrimSpace(in.text(name))
		}
	case fleet.ActionRevert:
		op.Revert = strings.TrimSpace(in.text("batch"))
	}
}

// idempotencyKey is that of the header or of the form.
func idempotencyKey(in *input, r *http.Request) string {
	key := in.text("idempotency_key")
	if header := r.Header.Get("Idempotency-Key"); header != "" {
		if key != "" && key != header {
			in.fail(fleet.Invalid("idempotency_key", "differs from the Idempotency-Key header"))
		}
		key = header
	}
	if len(key) > maxKey {
		in.fail(fleet.Invalid("idempotency_key", "may have at most %d bytes", maxKey))
	}
	return key
}

// choice is one of the words, or "" where the field is absent.
func choice[T ~string](in *input, name string, words ...T) T {
	v := T(strings.TrimSpace(in.text(name)))
	if v == "" || slices.Contains(words, v) {
		return v
	}
	list := make([]string, len(words))
	for i, w := range words {
		list[i] = string(w)
	}
	in.fail(&fleet.FieldError{
		Field: name, Message: strconv.Quote(string(v)) + " is not one of " + strings.Join(list, ", "), Key: "error.choice",
		Args: map[string]string{"Part": string(v), "Allowed": strings.Join(list, ", ")},
	})
	return ""
}

// numberFrom is a whole number of at least least, and standard where the field is absent or empty.
func (in *input) numberFrom(name string, least, standard int) int {
	v := strings.TrimSpace(in.text(name))
	if v == "" {
		return standard
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < least {
		in.fail(fleet.Invalid(name, "%q is not a whole number of at least %d", v, least))
		return standard
	}
	return n
}

// seconds is a number of seconds, also written as a duration like 10m; absent and empty are 0.
func (in *input) seconds(name string) int { return int(in.duration(name) / time.Second) }
