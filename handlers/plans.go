package handlers

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/views"
)

// longestLink is the longest address under which a plan can be asked for again.
const longestLink = 2000

// soon is how long before its end a sign-in counts as too old on the page of a plan, which has yet to be read.
const soon = time.Minute

// createPlan says what a batch would do. Nothing is changed.
func (s *server) createPlan(w http.ResponseWriter, r *http.Request) error {
	a, _, err := readAsk(r)
	if err != nil {
		return err
	}
	return s.writePlan(w, r, a.spec)
}

func (s *server) writePlan(w http.ResponseWriter, r *http.Request, spec fleet.BatchSpec) error {
	p, err := s.cfg.Batches.Plan(r.Context(), callerOf(r), spec)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, p)
}

// planPage is the form of an operation with what it would do. It is posted to, because a selection can be longer than an
// address; a short one can be linked to.
func (s *server) planPage(w http.ResponseWriter, r *http.Request) error {
	var in *input
	if r.Method == http.MethodPost {
		var err error
		if in, err = readInput(r); err != nil {
			return err
		}
	} else {
		if s.liking(w, r) {
			return nil
		}
		in = &input{values: r.URL.Query(), taken: map[string]bool{}}
	}
	return s.showPlan(w, r, in, nil)
}

// showPlan shows the plan of what was typed, with everything that was typed, whatever is wrong with it. Because is why
// the batch could not be made, if somebody tried to.
func (s *server) showPlan(w http.ResponseWriter, r *http.Request, in *input, because error) error {
	// The form holds what was typed for the action before this one: it is not lost, and it is not of this action.
	for _, names := range actionFields {
		for _, name := range names {
			for _, full := range in.named(name) {
				in.taken[full] = true
			}
		}
	}
	in.taken["idempotency_key"] = true
	a := askOf(in)
	if _, ok := a.spec.Action.Permission(); !ok {
		return in.done()
	}
	p := views.PlanPage{
		Layout: s.layout(r, "plan.title", "nodes"), Action: a.spec.Action, Asked: asked(in, a.spec.Action), Nodes: a.spec.Nodes,
		Errors: map[string]string{}, Key: rand.Text(),
	}
	p.Static = true
	p.In = oneCluster(a.spec.Nodes)
	p.Path = planLink(in)
	status := http.StatusOK
	fail := func(err error) {
		if stateOf(r).err == nil {
			stateOf(r).err = err
		}
		status = max(status, answerFor(err, p.Lang).status)
		s.planProblem(&p, err)
	}
	if because != nil {
		fail(because)
	}
	var err error
	if a.spec.Action == fleet.ActionTemplate {
		if p.Templates, err = s.cfg.Templates.Templates(r.Context()); err != nil {
			return err
		}
		a.spec.Template.Values = onlyValuesOf(p.Templates, a.spec.Template)
		for field := range p.Asked {
			if name, ok := strings.CutPrefix(field, "value."); ok && a.spec.Template.Values[name] == "" {
				delete(p.Asked, field)
			}
		}
	}
	if err = in.done(); err != nil {
		fail(err)
	} else if complete(a.spec) {
		// What was planned before is no part of the question.
		a.spec.PlanDigest, a.spec.Confirm = "", ""
		if p.Plan, err = s.cfg.Batches.Plan(r.Context(), callerOf(r), a.spec); err != nil {
			if errors.Is(r.Context().Err(), context.Canceled) {
				return err // the client left
			}
			p.Plan = nil
			fail(err)
		}
	}
	if p.Plan != nil && p.Plan.NeedsFreshSignIn() {
		early := s.cfg.FreshSignIn - min(soon, s.cfg.FreshSignIn/2)
		if e, ok := errors.AsType[*fleet.StaleSignInError](callerOf(r).SignedInWithin(early, time.Now())); ok {
			p.Stale = e
		}
	}
	return s.show(w, r, status, views.Plan(p))
}

// oneCluster is the cluster that all of the nodes are of, "" if they are of several.
func oneCluster(refs []fleet.NodeRef) string {
	name := ""
	for i, ref := range refs {
		if i > 0 && ref.Cluster != name {
			return ""
		}
		name = ref.Cluster
	}
	return name
}

// planProblem puts an error where it belongs on the page: beside its field, or above everything.
func (s *server) planProblem(p *views.PlanPage, err error) {
	if e, ok := errors.AsType[*fleet.StaleSignInError](err); ok {
		p.Stale = e
		return
	}
	before := len(p.Errors)
	fieldProblems(err, p.Lang, p.Errors)
	if len(p.Errors) > before {
		return
	}
	a := answerFor(err, p.Lang)
	p.Holder = a.batch
	if p.Problem = a.message; p.Problem == "" {
		p.Problem = views.Message(p.Lang, "error."+a.name, nil, a.title)
	}
}

// complete tells whether enough was said for a plan: before that the form is only shown.
func complete(spec fleet.BatchSpec) bool {
	switch spec.Action {
	case fleet.ActionLabels:
		return len(spec.Labels) > 0 && len(spec.Nodes) > 0
	case fleet.ActionTaints:
		return len(spec.Taints) > 0 && len(spec.Nodes) > 0
	case fleet.ActionCopy:
		return spec.Source != nil && len(spec.Nodes) > 0
	case fleet.ActionTemplate:
		return spec.Template.ID != "" && len(spec.Nodes) > 0
	case fleet.ActionRevert:
		return spec.Revert != ""
	case fleet.ActionCordon, fleet.ActionUncordon, fleet.ActionDrain:
	}
	return len(spec.Nodes) > 0
}

// onlyValuesOf leaves out values that were typed for another template; what has none takes the default.
func onlyValuesOf(list []fleet.Template, use *fleet.TemplateUse) map[string]string {
	i := slices.IndexFunc(list, func(t fleet.Template) bool { return t.ID == use.ID })
	if i < 0 {
		return use.Values
	}
	out := map[string]string{}
	for name := range list[i].Values {
		if v := use.Values[name]; v != "" {
			out[name] = v
		}
	}
	return out
}

// asked is what was typed, field by field, without what is of other actions: a confirmed plan sends all of it.
func asked(in *input, action fleet.Action) views.Asked {
	out := views.Asked{}
	for name, values := range in.values {
		out[name] = strings.Join(values, "\n")
	}
	for other, names := range actionFields {
		for _, name := range names {
			if other == action || belongs(action, name) {
				continue
			}
			for _, full := range in.named(name) {
				delete(out, full)
			}
		}
	}
	return out
}

// planLink is where the same plan can be asked for, or the list of nodes if that would be too long.
func planLink(in *input) string {
	v := url.Values{}
	for name, values := range in.values {
		if text := strings.Join(values, "\n"); text != "" && name != "plan" && name != "confirm" && name != "idempotency_key" {
			v.Set(name, text)
		}
	}
	if link := "/plan?" + v.Encode(); len(link) <= longestLink {
		return link
	}
	return home
}

// getPlan is the plan that a batch was made by.
func (s *server) getPlan(w http.ResponseWriter, r *http.Request) error {
	id, err := pathParam(r, "id")
	if err != nil {
		return err
	}
	if err := onlyParams(r.URL.Query()); err != nil {
		return err
	}
	p, err := s.cfg.Batches.BatchPlan(r.Context(), callerOf(r), id)
	if err != nil {
		return notFound(err, noPlan(id))
	}
	return writeJSON(w, http.StatusOK, p)
}

func noPlan(id string) error {
	return say(fleet.ErrNotFound, "error.plan_unknown", "the batch {{.Part}} does not exist, or was made without a plan", "Part", id)
}

func (s *server) batchPlanPage(w http.ResponseWriter, r *http.Request) error {
	if s.liking(w, r) {
		return nil
	}
	id, err := pathParam(r, "id")
	if err != nil {
		return err
	}
	b, _, err := s.cfg.Batches.Batch(r.Context(), callerOf(r), id)
	if err != nil {
		return notFound(err, unknownBatch(id))
	}
	plan, err := s.cfg.Batches.BatchPlan(r.Context(), callerOf(r), id)
	if err != nil {
		return notFound(err, noPlan(id))
	}
	p := views.PlanReport{Layout: s.layout(r, "plan.title", "batches"), Batch: b, Plan: plan}
	p.Static = true
	return s.show(w, r, http.StatusOK, views.BatchPlan(p))
}
