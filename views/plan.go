package views

import (
	"cmp"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Asked is what was typed into the form of a plan, as it was typed: field → text. Several lines are one text.
type Asked map[string]string

func (a Asked) on(field string) bool {
	switch a[field] {
	case "true", "on", "1":
		return true
	}
	return false
}

// or is the text of a field, or what stands for it when nothing was said.
func (a Asked) or(field, standard string) string {
	if v, ok := a[field]; ok {
		return v
	}
	return standard
}

// PlanPage is the form of an operation and, below it, what the operation would do.
type PlanPage struct {
	Layout
	Action    fleet.Action
	Asked     Asked
	Nodes     []fleet.NodeRef
	Errors    map[string]string // field → sentence
	Problem   string            // why there is no plan, or why the batch was not made
	Holder    string            // id of the batch that holds a node
	Plan      *fleet.Plan       // nil before anything can be said
	Templates []fleet.Template
	Key       string // fresh idempotency key

	Stale *fleet.StaleSignInError // nil, or why the person has to sign in again before it is confirmed
}

// PlanReport is the plan that a batch was made by.
type PlanReport struct {
	Layout
	Batch fleet.Batch
	Plan  *fleet.Plan
}

// rolloutFields say how a batch goes over its nodes.
var rolloutFields = []string{
	"max_concurrent", "per_cluster", "per_zone", "max_unavailable", "max_failures", "pause_between", "canary",
}

// rareFields are of a drain, and seldom asked for.
var rareFields = []string{"pod_selector", "skip_wait_for_delete_timeout", "ignore_opt_out", "wait_for_replacements", "uncordon_after", "disable_eviction"}

// open tells whether a folded part of the form holds something that must be seen.
func (p PlanPage) open(fields ...string) bool {
	return slices.ContainsFunc(fields, func(f string) bool {
		v := p.Asked[f]
		return v != "" && v != "0" || p.Errors[f] != ""
	})
}

// shownErrors are the fields whose errors stand beside them.
func (p PlanPage) shownErrors() []string {
	shown := append([]string{"confirm", "reason", "order"}, rolloutFields...)
	if p.Plan == nil {
		shown = shown[1:] // there is nothing to confirm, and no place beside it
	}
	switch p.Action {
	case fleet.ActionUncordon:
		return append(shown, "foreign")
	case fleet.ActionDrain:
		return append(shown, "grace_period_seconds", "timeout_seconds", "pod_selector", "skip_wait_for_delete_timeout")
	case fleet.ActionLabels:
		return append(shown, "labels", "mode", "on_conflict")
	case fleet.ActionTaints:
		return append(shown, "taints", "mode", "on_conflict")
	case fleet.ActionCopy:
		return append(shown, "source", "mode", "on_conflict")
	case fleet.ActionTemplate:
		shown = append(shown, "template", "on_conflict")
		for _, v := range p.templateValues() {
			shown = append(shown, "value."+v.name)
		}
	case fleet.ActionCordon, fleet.ActionRevert:
	}
	return shown
}

// kept are the fields that the confirmation sends: what was planned, exactly. The nodes come first, being the longest.
func (p PlanPage) kept() []string {
	var out []string
	for f, v := range p.Asked {
		switch f {
		case "action", "nodes", "plan", "confirm", "idempotency_key", "dry_run", "template_version":
			continue
		}
		if v != "" {
			out = append(out, f)
		}
	}
	slices.Sort(out)
	return out
}

// SignInAgain says why somebody has to sign in again.
func SignInAgain(lang string, e *fleet.StaleSignInError) string {
	return staleAge(lang, e) + " " + T(lang, "stale.limit", "Time", span(lang, int64(e.Limit.Seconds())))
}

func staleAge(lang string, e *fleet.StaleSignInError) string {
	if e.Age == 0 {
		return T(lang, "stale.unknown")
	}
	return T(lang, "stale.age", "Time", span(lang, int64(e.Age.Seconds())))
}

// staleBefore names what the person has to sign in again for.
func staleBefore(lang string, a fleet.Action) string {
	if a == fleet.ActionDrain {
		return T(lang, "stale.drain")
	}
	return T(lang, "stale.change")
}

// planActions are what the tabs of the form offer to somebody with these permissions.
func (p PlanPage) planActions() []fleet.Action {
	var out []fleet.Action
	for _, a := range fleet.Actions() {
		if perm, ok := a.Permission(); ok && a != fleet.ActionRevert && p.may(perm) {
			out = append(out, a)
		}
	}
	return out
}

// plannedActions are what a selection can be planned for.
func plannedActions(l Layout) []fleet.Action {
	var out []fleet.Action
	for _, a := range []fleet.Action{fleet.ActionDrain, fleet.ActionLabels, fleet.ActionTaints, fleet.ActionTemplate} {
		if perm, ok := a.Permission(); ok && l.may(perm) {
			out = append(out, a)
		}
	}
	return out
}

// nodesText is the value of the field nodes.
func (p PlanPage) nodesText() string {
	lines := make([]string, len(p.Nodes))
	for i, ref := range p.Nodes {
		lines[i] = ref.String()
	}
	return strings.Join(lines, "\n")
}

// clusterCount is how many of the nodes are of a cluster.
type clusterCount struct {
	cluster string
	n       int
}

func (p PlanPage) byCluster() []clusterCount { return byCluster(p.Nodes) }

func byCluster(refs []fleet.NodeRef) []clusterCount {
	var out []clusterCount
	at := map[string]int{}
	for _, ref := range refs {
		i, ok := at[ref.Cluster]
		if !ok {
			i = len(out)
			at[ref.Cluster] = i
			out = append(out, clusterCount{cluster: ref.Cluster})
		}
		out[i].n++
	}
	return out
}

// templateValue is a placeholder of the chosen template.
type templateValue struct {
	name    string
	choices []string // empty: anything
}

func (p PlanPage) template() (fleet.Template, bool) {
	i := slices.IndexFunc(p.Templates, func(t fleet.Template) bool { return t.ID == p.Asked["template"] })
	if i < 0 {
		return fleet.Template{}, false
	}
	return p.Templates[i], true
}

func (p PlanPage) templateValues() []templateValue {
	t, ok := p.template()
	if !ok {
		return nil
	}
	out := make([]templateValue, 0, len(t.Values))
	for _, name := range sortedKeys(t.Values) {
		out = append(out, templateValue{name, t.Values[name]})
	}
	return out
}

// usedVersion is the version of the template that was planned with, so that the batch takes the same one.
func usedVersion(p *fleet.Plan) int {
	if p == nil || p.Operation.Template == nil {
		return 0
	}
	return p.Operation.Template.Version
}

// operationTitle is the verb with its number.
func operationTitle(lang string, a fleet.Action, n int) string {
	return T(lang, "batch.title."+string(a), "Count", n, "N", num(n))
}

// ---- what a plan comes to ------------------------------------------------------------------------------------------

// part is one number of the headline.
type part struct {
	class string
	text  string
}

func counted1(lang, key string, n int) string { return T(lang, key, "Count", n, "N", num(n)) }

// headline is what would happen, in one sentence.
func headline(lang string, p *fleet.Plan) string {
	if p.Counts.Change == 0 {
		switch {
		case p.Counts.Blocked > 0:
			return T(lang, "plan.nothing.blocked")
		case p.Counts.Unchanged > 0 && p.Counts.Unchanged == p.Counts.Total:
			return T(lang, "plan.nothing.unchanged")
		}
		return T(lang, "plan.nothing")
	}
	return counted1(lang, "plan.will."+string(p.Action), p.Counts.Change)
}

// headlineClass colours the headline: red for what is lost or cannot go on, amber for what waits for a person.
func headlineClass(p *fleet.Plan) string {
	switch c := podCounts(p); {
	case p.Counts.Change == 0 && p.Counts.Blocked > 0, clusterErrors(p):
		return "bad"
	case p.Counts.Blocked > 0, c.Block > 0, len(neverBudgets(p)) > 0, p.Counts.Missing > 0, c.Delete+c.Later > 0:
		return "warn"
	}
	return "ok"
}

func clusterErrors(p *fleet.Plan) bool {
	return slices.ContainsFunc(p.Clusters, func(c fleet.ClusterPlan) bool { return c.Error != "" })
}

// podCounts are the pods of all clusters.
func podCounts(p *fleet.Plan) fleet.PodCounts {
	var out fleet.PodCounts
	for _, c := range p.Clusters {
		out.Evict += c.Counts.Evict
		out.Ignore += c.Counts.Ignore
		out.Block += c.Counts.Block
		out.Wait += c.Counts.Wait
		out.Delete += c.Counts.Delete
		out.Later += c.Counts.Later
		out.Stay += c.Counts.Stay
	}
	return out
}

// headlineParts are the numbers beside the headline; nobody is told of what is not there.
func headlineParts(lang string, p *fleet.Plan) []part {
	pods := podCounts(p)
	var out []part
	for _, x := range []struct {
		class, key string
		n          int
	}{
		{"bad", "plan.pods.delete", pods.Delete},
		{"warn", "plan.pods.later", pods.Later},
		{"run", "plan.pods.evict", pods.Evict},
		{"warn", "plan.pods.block", pods.Block},
		{"bad", "plan.pods.never", neverPods(p)},
		{"idle", "plan.pods.wait", pods.Wait},
		{"idle", "plan.pods.stay", pods.Stay + pods.Ignore},
		{"bad", "plan.nodes.blocked", p.Counts.Blocked},
		{"unk", "plan.nodes.missing", p.Counts.Missing},
		{"idle", "plan.nodes.unchanged", p.Counts.Unchanged},
	} {
		if x.n > 0 {
			out = append(out, part{x.class, counted1(lang, x.key, x.n)})
		}
	}
	return out
}

// eachPod calls f for every pod of a plan.
func eachPod(p *fleet.Plan, f func(c *fleet.ClusterPlan, n *fleet.NodePlan, pod *fleet.PodPlan)) {
	for i := range p.Clusters {
		c := &p.Clusters[i]
		for j := range c.Nodes {
			n := &c.Nodes[j]
			for k := range n.Pods {
				f(c, n, &n.Pods[k])
			}
		}
	}
}

// neverPods counts the pods that no budget lets go.
func neverPods(p *fleet.Plan) (n int) {
	eachPod(p, func(_ *fleet.ClusterPlan, _ *fleet.NodePlan, pod *fleet.PodPlan) {
		if pod.Budget != nil && pod.Budget.Allowance == fleet.AllowNever {
			n++
		}
	})
	return n
}

// budgetOf is a budget with its cluster.
type budgetOf struct {
	cluster string
	fleet.Budget
}

func neverBudgets(p *fleet.Plan) []budgetOf {
	var out []budgetOf
	for _, c := range p.Clusters {
		for _, b := range c.Budgets {
			if b.Allowance == fleet.AllowNever || b.Never != "" {
				out = append(out, budgetOf{c.Cluster, b})
			}
		}
	}
	return out
}

// consentFields are the options by which each consent is given, in the order in which they are shown.
var consentFields = []struct {
	field    string
	consents []fleet.Consent
}{
	{"delete_emptydir_data", []fleet.Consent{fleet.ConsentLocalData}},
	{"force", []fleet.Consent{fleet.ConsentUnmanaged, fleet.ConsentForce}},
	{"ignore_opt_out", []fleet.Consent{fleet.ConsentOptOut}},
}

// loss is a consent that is asked for, or was given, with the pods that it is about.
type loss struct {
	field string
	given bool
	pods  []lossPod
}

type lossPod struct {
	where, name, detail string
}

// losses are the consents of a plan.
func losses(lang string, p *fleet.Plan) []loss {
	var out []loss
	for _, f := range consentFields {
		var open, given []lossPod
		eachPod(p, func(_ *fleet.ClusterPlan, n *fleet.NodePlan, pod *fleet.PodPlan) {
			if pod.Verdict == fleet.VerdictIgnore {
				return // it stays, with what it has
			}
			var details []string
			asked, missing := false, false
			for _, r := range pod.Reasons {
				if !slices.Contains(f.consents, r.Consent) {
					continue
				}
				asked, missing = true, missing || !r.Given
				details = append(details, reasonText(lang, r))
			}
			if !asked {
				return
			}
			lp := lossPod{n.Name, pod.Namespace + "/" + pod.Name, strings.Join(details, "; ")}
			if missing {
				open = append(open, lp)
			} else {
				given = append(given, lp)
			}
		})
		if len(open) > 0 {
			out = append(out, loss{f.field, false, open})
		}
		if len(given) > 0 {
			out = append(out, loss{f.field, true, given})
		}
	}
	return out
}

// maxNamed is how many names a warning spells out before it counts the rest.
const maxNamed = 20

// warning is one thing to be read before anything is done.
type warning struct {
	class string // bad, warn
	text  string
	names []string
}

// seriousImpacts are told of before the pods, those that hurt most first.
var seriousImpacts = []string{"single_replica", "all_replicas", "pinned", "critical"}

// warnings are what the numbers do not say.
func warnings(lang string, p *fleet.Plan) []warning {
	var out []warning
	for _, c := range p.Clusters {
		if c.Error != "" {
			out = append(out, warning{"bad", T(lang, "plan.cluster.error", "Cluster", c.Cluster), []string{c.Error}})
		}
	}
	out = append(out, nodeFaults(lang, p)...)
	for _, b := range neverBudgets(p) {
		text := T(lang, "plan.budget.never", "Budget", b.Namespace+"/"+b.Name, "Why", whyText(lang, b.Never))
		w := warning{"bad", text, nil}
		if b.WrittenBy != "" {
			w.names = []string{T(lang, "plan.budget.by", "Who", b.WrittenBy)}
		}
		out = append(out, w)
	}
	out = append(out, missingRights(lang, p)...)
	out = append(out, impactWarnings(lang, p)...)
	for _, c := range p.Clusters {
		for _, w := range c.Warnings {
			out = append(out, warning{"warn", c.Cluster + ": " + impactText(lang, w), nil})
		}
		if c.Capacity != nil && c.Capacity.Unfit > 0 {
			key, class := "plan.unfit", "bad"
			if c.Capacity.Autoscale {
				key, class = "plan.unfit.autoscale", "warn"
			}
			out = append(out, warning{class, T(lang, key, "Cluster", c.Cluster, "Count", c.Capacity.Unfit, "N", num(c.Capacity.Unfit)), nil})
		}
		if len(c.Missing) > 0 {
			out = append(out, warning{"warn", T(lang, "plan.unread", "Cluster", c.Cluster), slices.Clone(c.Missing)})
		}
	}
	return append(out, actorWarnings(lang, p)...)
}

// nodeFaults groups the nodes that something stands in the way of.
func nodeFaults(lang string, p *fleet.Plan) []warning {
	var order []string
	names := map[string][]string{}
	for _, c := range p.Clusters {
		for _, n := range c.Nodes {
			if n.Fault == "" || n.Fault == fleet.CodeBlocked {
				continue // what blocks is told with the consents, the rights and the budgets
			}
			if names[n.Fault] == nil {
				order = append(order, n.Fault)
			}
			name := n.String()
			if n.Message != "" {
				name += ": " + n.Message
			}
			names[n.Fault] = append(names[n.Fault], name)
		}
	}
	out := make([]warning, 0, len(order))
	for _, f := range order {
		out = append(out, warning{"bad", codeText(lang, f), names[f]})
	}
	return out
}

func missingRights(lang string, p *fleet.Plan) []warning {
	var out []warning
	for _, c := range p.Clusters {
		var names []string
		for _, r := range c.Permissions {
			if !r.Allowed {
				names = append(names, r.Verb+" "+join(r.Resource, r.Subresource)+in(r.Group))
			}
		}
		if len(names) > 0 {
			out = append(out, warning{"bad", T(lang, "plan.rights", "Cluster", c.Cluster), names})
		}
	}
	return out
}

func in(group string) string {
	if group == "" {
		return ""
	}
	return " (" + group + ")"
}

// impactWarnings groups the serious impacts by what they are about: one line for a workload, however many pods it has.
func impactWarnings(lang string, p *fleet.Plan) []warning {
	found := map[string][]string{}
	eachPod(p, func(c *fleet.ClusterPlan, n *fleet.NodePlan, pod *fleet.PodPlan) {
		for _, i := range pod.Impact {
			if !slices.Contains(seriousImpacts, i.Code) {
				continue
			}
			what := i.Detail
			switch {
			case i.Code == "critical" || what == "":
				what = pod.Namespace + "/" + pod.Name + " · " + n.Name
			default:
				what = pod.Namespace + " " + what
			}
			if len(p.Clusters) > 1 {
				what = c.Cluster + ": " + what
			}
			if !slices.Contains(found[i.Code], what) {
				found[i.Code] = append(found[i.Code], what)
			}
		}
	})
	var out []warning
	for _, code := range seriousImpacts {
		if names := found[code]; len(names) > 0 {
			out = append(out, warning{"warn", counted1(lang, "plan.impact."+code, len(names)), names})
		}
	}
	return out
}

func actorWarnings(lang string, p *fleet.Plan) []warning {
	var names []string
	for _, c := range p.Clusters {
		for _, n := range c.Nodes {
			for _, a := range n.Actors {
				names = append(names, n.Name+": "+actorText(lang, a))
			}
		}
	}
	if len(names) == 0 {
		return nil
	}
	return []warning{{"warn", T(lang, "plan.actors"), names}}
}

// ---- codes in words ------------------------------------------------------------------------------------------------

// worded is the text of a code, with its detail; a code that the catalogue does not know is its own text.
func worded(lang, family, code, detail string) string {
	text := code
	if Has(family + code) {
		text = T(lang, family+code)
	}
	if detail == "" {
		return text
	}
	return text + ": " + detail
}

func reasonText(lang string, r fleet.Reason) string { return worded(lang, "reason.", r.Code, r.Detail) }

func impactText(lang string, i fleet.Impact) string { return worded(lang, "impact.", i.Code, i.Detail) }

func actorText(lang string, a fleet.Actor) string { return worded(lang, "actor.", a.Who, a.Detail) }
func whyText(lang, why string) string             { return worded(lang, "why.", why, "") }
func codeText(lang, code string) string           { return worded(lang, "code.", code, "") }
func noteText(lang, note string) string           { return worded(lang, "note.", note, "") }

// refusedText is why no node takes a pod, the most frequent reason first.
func refusedText(lang string, f *fleet.Fit) string {
	codes := sortedKeys(f.Refused)
	slices.SortStableFunc(codes, func(a, b string) int { return cmp.Compare(f.Refused[b], f.Refused[a]) })
	parts := make([]string, len(codes))
	for i, code := range codes {
		text := worded(lang, "refused.", code, "")
		if name, ok := strings.CutPrefix(code, "insufficient_"); ok {
			text = T(lang, "refused.short", "What", name)
		}
		parts[i] = num(f.Refused[code]) + " " + text
	}
	return strings.Join(parts, " · ")
}

// span is how long something takes, for people: 45 s, 4 min, 1 h 10 min.
func span(lang string, seconds int64) string {
	switch {
	case seconds < 90:
		return T(lang, "span.s", "N", seconds)
	case seconds < 2*3600:
		return T(lang, "span.min", "N", (seconds+30)/60)
	}
	return T(lang, "span.h", "H", seconds/3600, "N", seconds%3600/60)
}

// estimateText is the range of an estimate.
func estimateText(lang string, e *fleet.Estimate) string {
	switch {
	case e.Blocked:
		return T(lang, "plan.estimate.blocked")
	case e.HighSeconds == e.LowSeconds:
		return T(lang, "plan.estimate.one", "Time", span(lang, e.HighSeconds))
	}
	return T(lang, "plan.estimate", "Low", span(lang, e.LowSeconds), "High", span(lang, e.HighSeconds))
}

// ---- pods ----------------------------------------------------------------------------------------------------------

// podLine is a pod in a plan, in a drain and in its report: one line for all three.
type podLine struct {
	Namespace, Name, UID string
	Owner                string
	Class, Word          string
	Says                 []string // reasons, budget, impacts: each a sentence
	Message              string   // of the server
	Until                *time.Time
	UntilKey             string // what ends then
}

func ownerText(kind, name string) string {
	if kind == "" {
		return ""
	}
	return kind + " " + name
}

func verdictClass(v fleet.Verdict) string {
	switch v {
	case fleet.VerdictBlock, fleet.VerdictLater:
		return "warn"
	case fleet.VerdictDelete:
		return "bad"
	case fleet.VerdictEvict:
		return "run"
	case fleet.VerdictWait, fleet.VerdictIgnore, fleet.VerdictStay:
	}
	return "idle"
}

// planLine is a pod of a plan.
func planLine(lang string, p *fleet.PodPlan) podLine {
	l := podLine{
		Namespace: p.Namespace, Name: p.Name, UID: p.UID, Owner: ownerText(p.OwnerKind, p.OwnerName), Class: verdictClass(p.Verdict),
		Word: T(lang, "verdict."+string(p.Verdict)),
	}
	if p.Verdict == fleet.VerdictLater {
		l.Word = T(lang, "verdict.after", "Time", span(lang, p.After))
	}
	for _, r := range p.Reasons {
		l.Says = append(l.Says, reasonText(lang, r))
	}
	if b := p.Budget; b != nil && b.Allowance != fleet.AllowFree && b.Allowance != fleet.AllowNow {
		l.Says = append(l.Says, budgetText(lang, b))
		if b.Allowance == fleet.AllowNever {
			l.Class = "bad"
		}
		l.Message = b.Message
	}
	for _, i := range p.Impact {
		if !saidBefore(p.Reasons, i.Code) {
			l.Says = append(l.Says, impactText(lang, i))
		}
	}
	if p.Fit != nil && p.Fit.Node == "" {
		l.Says = append(l.Says, T(lang, "plan.nofit", "Why", refusedText(lang, p.Fit)))
	}
	if p.Probe != nil && !p.Probe.Allowed {
		l.Says = append(l.Says, T(lang, "plan.probe", "HTTP", p.Probe.HTTP))
		l.Message = p.Probe.Message
	}
	return l
}

// saidBefore tells whether a reason has said the same as an impact: both look at volumes, owners and tolerations.
func saidBefore(reasons []fleet.Reason, impact string) bool {
	same := map[string][]string{
		"data_loss": {"empty_dir", "ephemeral_volume"}, "not_made_again": {"unmanaged"}, "returns": {"tolerates_cordon"}, "pinned": {"pinned_volume"},
	}
	return slices.ContainsFunc(reasons, func(r fleet.Reason) bool { return slices.Contains(same[impact], r.Code) })
}

// budgetText is what the budgets say to the eviction of a pod.
func budgetText(lang string, b *fleet.PodBudget) string {
	args := []any{"Budget", strings.Join(b.Budgets, ", "), "Wave", b.Wave}
	text := T(lang, "allow."+string(b.Allowance), args...)
	if b.Why != "" && Has("why."+b.Why) {
		text += " (" + whyText(lang, b.Why) + ")"
	}
	return text
}

// podRank orders pods by how much they deserve to be seen.
func podRank(p *fleet.PodPlan) int {
	never := p.Budget != nil && p.Budget.Allowance == fleet.AllowNever
	switch {
	case p.Verdict == fleet.VerdictBlock:
		return 0
	case never:
		return 1
	case p.Verdict == fleet.VerdictDelete:
		return 2
	case p.Verdict == fleet.VerdictLater:
		return 3
	case p.Budget != nil && (p.Budget.Allowance == fleet.AllowBlocked || p.Budget.Allowance == fleet.AllowUndetermined):
		return 4
	case p.Verdict == fleet.VerdictEvict && len(p.Impact) > 0:
		return 5
	case p.Verdict == fleet.VerdictEvict:
		return 6
	case p.Verdict == fleet.VerdictWait:
		return 7
	}
	return 8
}

// The bounds of what one page spells out; the rest is counted, and is in the JSON.
const (
	maxPlanNodes = 200
	maxPlanPods  = 4000
)

// shownNode is a node of a plan with the pods that the page has room for.
type shownNode struct {
	*fleet.NodePlan
	pods []podLine
	rest int // pods that are not shown
}

// shownNodes are the nodes of a plan that the page spells out, those that need somebody first, and how many more there
// are.
func shownNodes(lang string, p *fleet.Plan) (shown []shownNode, more int) {
	var all []*fleet.NodePlan
	for i := range p.Clusters {
		for j := range p.Clusters[i].Nodes {
			all = append(all, &p.Clusters[i].Nodes[j])
		}
	}
	slices.SortStableFunc(all, func(a, b *fleet.NodePlan) int { return cmp.Compare(nodeRank(a), nodeRank(b)) })
	if len(all) > maxPlanNodes {
		all, more = all[:maxPlanNodes], len(all)-maxPlanNodes
	}
	room := maxPlanPods
	for _, n := range all {
		order := make([]*fleet.PodPlan, len(n.Pods))
		for i := range n.Pods {
			order[i] = &n.Pods[i]
		}
		slices.SortStableFunc(order, func(a, b *fleet.PodPlan) int { return cmp.Compare(podRank(a), podRank(b)) })
		s := shownNode{NodePlan: n}
		for i, pod := range order {
			if room == 0 {
				s.rest = len(order) - i
				break
			}
			room--
			s.pods = append(s.pods, planLine(lang, pod))
		}
		shown = append(shown, s)
	}
	return shown, more
}

func nodeRank(n *fleet.NodePlan) int {
	switch n.Verdict {
	case fleet.NodeBlocked:
		return 0
	case fleet.NodeMissing:
		return 1
	case fleet.NodeChange:
		if len(n.Actors) > 0 {
			return 2
		}
		return 3
	case fleet.NodeUnchanged:
	}
	return 4
}

func nodeVerdictClass(v fleet.NodeVerdict) string {
	switch v {
	case fleet.NodeBlocked:
		return "bad"
	case fleet.NodeMissing:
		return "unk"
	case fleet.NodeChange:
		return "run"
	case fleet.NodeUnchanged:
	}
	return "idle"
}

// nodeNumbers are the pods of a node by what happens to them, in words.
func nodeNumbers(lang string, c fleet.PodCounts) string {
	var parts []string
	for _, x := range []struct {
		key string
		n   int
	}{
		{"plan.pods.delete", c.Delete},
		{"plan.pods.later", c.Later},
		{"plan.pods.evict", c.Evict},
		{"plan.pods.block", c.Block},
		{"plan.pods.wait", c.Wait},
		{"plan.pods.stay", c.Stay + c.Ignore},
	} {
		if x.n > 0 {
			parts = append(parts, counted1(lang, x.key, x.n))
		}
	}
	return strings.Join(parts, " · ")
}

// ---- edits ---------------------------------------------------------------------------------------------------------

// editName is what an edit is about: the key of a label, the key and effect of a taint.
func editName(e fleet.Edit) string {
	if e.Kind == fleet.EditTaint {
		return e.Key + ":" + string(e.Effect)
	}
	return e.Key
}

// editValue is one side of an edit. Absent and empty are two things.
func editValue(lang string, e fleet.Edit, v *string) string {
	switch {
	case e.Kind == fleet.EditCordon && v == nil:
		return T(lang, "sched.yes")
	case e.Kind == fleet.EditCordon:
		return T(lang, "sched.no")
	case v == nil:
		return "–"
	case *v == "" && e.Kind == fleet.EditTaint:
		return T(lang, "edit.present")
	case *v == "":
		return T(lang, "edit.empty")
	}
	return *v
}

func editClass(o fleet.EditOutcome) string {
	switch o {
	case fleet.EditAdded, fleet.EditChanged:
		return "run"
	case fleet.EditRemoved, fleet.EditKept:
		return "warn"
	case fleet.EditConflict:
		return "bad"
	case fleet.EditUnchanged:
	}
	return "idle"
}

// editsSummary is a node's diff in one line: how many of which.
func editsSummary(lang string, edits []fleet.Edit) string {
	var parts []string
	for _, o := range []fleet.EditOutcome{
		fleet.EditAdded, fleet.EditChanged, fleet.EditRemoved, fleet.EditConflict, fleet.EditKept, fleet.EditUnchanged,
	} {
		n := 0
		for _, e := range edits {
			if e.Outcome == o {
				n++
			}
		}
		if n > 0 {
			parts = append(parts, num(n)+" "+T(lang, "edit."+string(o)))
		}
	}
	return strings.Join(parts, " · ")
}

// ---- budgets -------------------------------------------------------------------------------------------------------

func allowClass(a fleet.Allowance) string {
	switch a {
	case fleet.AllowNever:
		return "bad"
	case fleet.AllowBlocked, fleet.AllowUndetermined, fleet.AllowNotEvaluated:
		return "warn"
	case fleet.AllowLater:
		return "run"
	case fleet.AllowFree, fleet.AllowNow:
	}
	return "ok"
}

// budgetSpec is what the budget asks for, as its owner wrote it.
func budgetSpec(b fleet.Budget) string {
	switch {
	case b.MinAvailable != "":
		return "minAvailable " + b.MinAvailable
	case b.MaxUnavailable != "":
		return "maxUnavailable " + b.MaxUnavailable
	}
	return "–"
}

func wavesText(lang string, b fleet.Budget) string {
	if b.Waves == 0 {
		return "–"
	}
	return counted1(lang, "plan.waves", b.Waves)
}

func kubectlText(lines []string) string { return strings.Join(lines, "\n") }

func revertURL(id string) string {
	return "/plan?" + url.Values{"action": {string(fleet.ActionRevert)}, "batch": {id}}.Encode()
}

func batchPlanURL(id string) string     { return batchURL(id) + "/plan" }
func batchPlanJSONURL(id string) string { return "/api/v1" + batchURL(id) + "/plan" }

func planTotal(p *fleet.Plan) int {
	if p == nil {
		return 0
	}
	return p.Counts.Total
}

func firstRefs(refs []fleet.NodeRef) []fleet.NodeRef { return refs[:min(len(refs), maxPlanNodes)] }

func firstOf[T any](list []T) []T { return list[:min(len(list), maxNamed)] }

func kindOr(kind string) string {
	if kind == "" {
		return "text"
	}
	return kind
}

// orDefault names the choice that stands for none.
func orDefault(v string) string {
	if v == "" {
		return "default"
	}
	return v
}

func (p PlanPage) describedBy(name string) string {
	if p.Errors[name] != "" {
		return "f-" + name + "-hint f-" + name + "-error"
	}
	return "f-" + name + "-hint"
}

func lossClass(l loss) string {
	if l.given {
		return "warn"
	}
	return "bad"
}

func lossText(lang string, l loss) string {
	key := "loss."
	if l.given {
		key = "loss.given."
	}
	return T(lang, key+l.field, "Count", len(l.pods), "N", num(len(l.pods)))
}

// ignoredText says what the estimate of places leaves out.
func ignoredText(lang string, c *fleet.Capacity) string {
	if len(c.Ignored) == 0 {
		return ""
	}
	names := make([]string, len(c.Ignored))
	for i, code := range c.Ignored {
		names[i] = worded(lang, "ignored.", code, "")
	}
	return T(lang, "plan.ignores", "What", strings.Join(names, ", "))
}
