package views

import (
	"fmt"
	"time"

	"github.com/a-h/templ"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// sampleDrainPlan is a drain of two clusters with one of everything that a plan can say.
func sampleDrainPlan(say say) *fleet.Plan {
	why := func(id, code string, consent fleet.Consent, given bool, detail string) fleet.Reason {
		return fleet.Reason{ID: id, Code: code, Consent: consent, Given: given, Detail: say(detail)}
	}
	pod := func(ns, name, kind, owner string, v fleet.Verdict, reasons ...fleet.Reason) fleet.PodPlan {
		return fleet.PodPlan{
			Namespace: say(ns), Name: say(name), UID: say("uid-" + name), OwnerKind: say(kind), OwnerName: say(owner),
			PodClass: fleet.PodClass{Verdict: v, Reasons: reasons}, Grace: 30,
		}
	}
	web := pod("shop", "web-7d9c4-x2x9p", "Deployment", "web", fleet.VerdictEvict)
	web.Budget = &fleet.PodBudget{Allowance: fleet.AllowLater, Budgets: []string{say("web")}, Wave: 2}
	single := pod("shop", "cart-0", "StatefulSet", "cart", fleet.VerdictEvict, why("DR-09", "pinned_volume", "", false, "data-cart-0 on worker-3"))
	single.Budget = &fleet.PodBudget{Allowance: fleet.AllowNever, Why: "max_unavailable_zero", Budgets: []string{say("cart")}}
	single.Impact = []fleet.Impact{
		{ID: "PV-20", Code: "single_replica", Detail: say("StatefulSet cart")}, {ID: "PV-21", Code: "stateful", Detail: say("cart")}, {ID: "DR-09", Code: "pinned"},
	}
	single.Fit = &fleet.Fit{Refused: map[string]int{"insufficient_cpu": 12, "taint": 3, "affinity": 5}}
	cache := pod("shop", "cache-5f6d8-bbbbb", "Deployment", "cache", fleet.VerdictBlock, why("DR-07", "empty_dir", fleet.ConsentLocalData, false, "scratch, at most 2Gi"))
	cache.Needs = []fleet.Consent{fleet.ConsentLocalData}
	cache.Impact = []fleet.Impact{{ID: "PV-24", Code: "data_loss", Detail: say("scratch")}}
	given := pod("shop", "render-1", "Deployment", "render", fleet.VerdictEvict, why("DR-07", "empty_dir", fleet.ConsentLocalData, true, "tmp"))
	bare := pod("debug", "shell", "", "", fleet.VerdictBlock, why("DR-06", "unmanaged", fleet.ConsentUnmanaged, false, ""))
	bare.Impact = []fleet.Impact{{ID: "PV-23", Code: "not_made_again"}}
	bare.Probe = &fleet.Probe{HTTP: 429, Message: say("Cannot evict pod as it would violate the pod's disruption budget.")}
	daemon := pod("kube-system", "node-exporter-8xk2f", "DaemonSet", "node-exporter", fleet.VerdictIgnore, why("DR-02", "daemon_set", "", false, "DaemonSet node-exporter"))
	dns := pod("kube-system", "coredns-66bc5c9577-4hxkl", "Deployment", "coredns", fleet.VerdictEvict)
	dns.Budget = &fleet.PodBudget{Allowance: fleet.AllowNow, Budgets: []string{say("coredns")}}
	dns.Impact = []fleet.Impact{{ID: "PV-25", Code: "critical", Detail: say("system-cluster-critical")}}
	job := pod("batch", "import-28714-zx", "Job", "import", fleet.VerdictWait, why("DR-14", "wait_completed", "", false, "pod.cluster.x-k8s.io/node-drain=wait-completed"))

	first := fleet.NodePlan{
		NodeRef: fleet.NodeRef{Cluster: say("prod-eu"), Name: say("worker-3")}, UID: "u3", Verdict: fleet.NodeBlocked, Fault: fleet.CodeBlocked,
		Message: say("2 pods need a consent"), Ready: true, Actors: []fleet.Actor{{Who: "kured", Detail: say("weave.works/kured-reboot-in-progress")}},
		Edits:    []fleet.Edit{{Kind: fleet.EditCordon, After: new(say("by ada")), Outcome: fleet.EditChanged}},
		Counts:   fleet.PodCounts{Evict: 3, Block: 2, Ignore: 1, Wait: 1},
		Pods:     []fleet.PodPlan{web, single, cache, given, bare, daemon, dns, job},
		Estimate: &fleet.Estimate{LowSeconds: 30, HighSeconds: 400, Blocked: true},
	}
	clean := fleet.NodePlan{
		NodeRef: fleet.NodeRef{Cluster: say("prod-eu"), Name: say("worker-4")}, UID: "u4", Verdict: fleet.NodeChange, Ready: true, Unschedulable: true,
		Counts: fleet.PodCounts{Evict: 12, Ignore: 4}, Pods: []fleet.PodPlan{web, daemon}, Estimate: &fleet.Estimate{LowSeconds: 40, HighSeconds: 310},
	}
	gone := fleet.NodePlan{NodeRef: fleet.NodeRef{Cluster: say("prod-eu"), Name: say("worker-9")}, Verdict: fleet.NodeMissing, Fault: fleet.CodeNotFound}
	return &fleet.Plan{
		Action: fleet.ActionDrain, At: noon, Operation: fleet.Operation{Action: fleet.ActionDrain, Drain: &fleet.DrainOptions{GracePeriodSeconds: -1}},
		Clusters: []fleet.ClusterPlan{
			{
				Cluster: say("prod-eu"), At: noon, Nodes: []fleet.NodePlan{clean, first, gone}, Counts: fleet.PodCounts{Evict: 15, Block: 2, Ignore: 5, Wait: 1},
				Budgets: []fleet.Budget{
					{
						Namespace: say("shop"), Name: say("web"), MinAvailable: say("80%"), ExpectedPods: 5, DesiredHealthy: 4, CurrentHealthy: 5, Allowed: 1, Pods: 3, Waves: 3,
						Allowance: fleet.AllowLater, Held: []fleet.Held{{Pod: say("web-1"), Since: noon, Until: noon.Add(2 * time.Minute)}}, UnhealthyPolicy: "AlwaysAllow",
					},
					{
						Namespace: say("shop"), Name: say("cart"), MaxUnavailable: say("0"), ExpectedPods: 1, DesiredHealthy: 1, CurrentHealthy: 1, Pods: 1,
						Never: "max_unavailable_zero", WrittenBy: say("helm"), Allowance: fleet.AllowNever, Message: say("found no controllers for pod"),
					},
				},
				Capacity:    &fleet.Capacity{Checked: 38, Nodes: 41, Unfit: 1, Ignored: []string{"inter_pod_affinity", "preemption"}},
				Estimate:    &fleet.Estimate{LowSeconds: 70, HighSeconds: 700},
				Permissions: []fleet.ClusterRight{{Verb: "create", Resource: "pods", Subresource: "eviction", Allowed: false}, {Verb: "patch", Resource: "nodes", Allowed: true}},
				Missing:     []string{say("replicasets")}, Warnings: []fleet.Impact{{ID: "PV-25", Code: "critical", Detail: say("webhook policy.example.com")}},
			},
			{Cluster: say("prod-us"), At: noon, Nodes: []fleet.NodePlan{}, Error: say("the API server did not answer in time")},
		},
		Counts: fleet.PlanCounts{Total: 3, Change: 1, Blocked: 1, Missing: 1}, Confirm: say("prod-eu"), Why: []string{fleet.ConfirmManyNodes, fleet.ConfirmControlNode},
		Digest: say("d1"), Kubectl: []string{say("kubectl --context prod-eu drain worker-3 worker-4 --ignore-daemonsets")},
	}
}

// sampleDiffPlan is a change of labels and taints, with pods that a NoExecute taint deletes.
func sampleDiffPlan(say say) *fleet.Plan {
	node := func(i int, v fleet.NodeVerdict, edits ...fleet.Edit) fleet.NodePlan {
		return fleet.NodePlan{NodeRef: fleet.NodeRef{Cluster: say("prod-eu"), Name: say(fmt.Sprintf("n-%d", i))}, UID: "u", Verdict: v, Ready: true, Edits: edits}
	}
	label := func(key, before, after string, o fleet.EditOutcome) fleet.Edit {
		e := fleet.Edit{Kind: fleet.EditLabel, Key: say(key), Outcome: o}
		if before != "-" {
			e.Before = new(say(before))
		}
		if after != "-" {
			e.After = new(say(after))
		}
		return e
	}
	taint := fleet.Edit{Kind: fleet.EditTaint, Key: say("dedicated"), Effect: fleet.NoExecute, After: new(""), Outcome: fleet.EditAdded, Note: say("put_back")}
	changed := node(0, fleet.NodeChange, label("team", "-", "payments", fleet.EditAdded), label("tier", "gold", "silver", fleet.EditChanged), label("old", "x", "-", fleet.EditRemoved), taint)
	changed.Pods = []fleet.PodPlan{
		{Namespace: say("shop"), Name: say("web-1"), UID: "p1", PodClass: fleet.PodClass{Verdict: fleet.VerdictDelete}},
		{Namespace: say("shop"), Name: say("web-2"), UID: "p2", PodClass: fleet.PodClass{Verdict: fleet.VerdictLater}, After: 300},
		{Namespace: say("shop"), Name: say("web-3"), UID: "p3", PodClass: fleet.PodClass{Verdict: fleet.VerdictStay}},
	}
	changed.Counts = fleet.PodCounts{Delete: 1, Later: 1, Stay: 1}
	conflict := node(1, fleet.NodeBlocked, label("team", "search", "payments", fleet.EditConflict), label("tier", "", "", fleet.EditUnchanged), label("kept", "a", "b", fleet.EditKept))
	conflict.Fault = fleet.CodeConflict
	return &fleet.Plan{
		Action: fleet.ActionTemplate, At: noon,
		Operation: fleet.Operation{Action: fleet.ActionTemplate, Template: &fleet.TemplateUse{ID: say("t1"), Name: say("gpu pool"), Version: 3}},
		Clusters:  []fleet.ClusterPlan{{Cluster: say("prod-eu"), At: noon, Nodes: []fleet.NodePlan{changed, conflict, node(2, fleet.NodeUnchanged)}, Counts: changed.Counts}},
		Counts:    fleet.PlanCounts{Total: 3, Change: 1, Blocked: 1, Unchanged: 1}, Digest: say("d2"),
	}
}

func sampleTemplates(say say) []fleet.Template {
	return []fleet.Template{
		{
			ID: say("t1"), Name: say("gpu pool"), Version: 3, Note: say("for the GPU nodes"), Labels: []string{say("team={{team}}"), say("old-")}, Taints: []string{say("dedicated=gpu:NoSchedule")},
			Values: map[string][]string{"team": {say("payments"), say("search")}, "free": nil}, CreatedBy: say("ada"), CreatedAt: noon,
		},
		{ID: say("t2"), Name: say("plain"), Version: 1, Labels: []string{say("a=b")}, Taints: []string{}, Values: map[string][]string{}, CreatedBy: say("bob"), CreatedAt: noon},
	}
}

// planSamples are the pages of plans, for every action.
func planSamples(say say, lang string) map[string]templ.Component {
	l := sampleLayout(say, lang)
	refs := []fleet.NodeRef{{Cluster: say("prod-eu"), Name: say("worker-3")}, {Cluster: say("prod-eu"), Name: say("worker-4")}, {Cluster: say("prod-us"), Name: say("n-1")}}
	wrong := map[string]string{
		"": say("all wrong"), "nodes": say("bad node"), "reason": say("too long"), "labels": say("bad line"), "taints": say("bad line"), "source": say("no such node"), "template": say("no such template"),
		"confirm": say("does not match"), "timeout_seconds": say("too long"), "grace_period_seconds": say("too small"), "pod_selector": say("bad selector"), "max_concurrent": say("too many"),
		"mode": say("unknown"), "on_conflict": say("unknown"), "order": say("unknown"), "foreign": say("unknown"), "value.team": say("not a choice"),
	}
	asked := Asked{
		"reason": say("kernel update"), "force": "true", "pod_selector": say("app=web"), "max_concurrent": "2", "pause_between": say("30s"), "labels": say("team=payments"),
		"taints": say("a:NoSchedule"), "source": say("prod-eu/n-1"), "template": say("t1"), "value.team": say("search"), "batch": say("01JB"), "confirm": say("prod"), "order": "zone", "mode": "replace",
	}
	out := map[string]templ.Component{}
	for _, a := range []fleet.Action{fleet.ActionUncordon, fleet.ActionDrain, fleet.ActionLabels, fleet.ActionTaints, fleet.ActionCopy, fleet.ActionTemplate, fleet.ActionRevert} {
		p := PlanPage{Layout: l, Action: a, Asked: asked, Nodes: refs, Errors: map[string]string{}, Plan: sampleDiffPlan(say), Templates: sampleTemplates(say), Key: "k9"}
		p.Static = true
		if a == fleet.ActionDrain {
			p.Plan = sampleDrainPlan(say)
		}
		if a == fleet.ActionDrain || a == fleet.ActionTemplate {
			out["page-plan-"+string(a)] = Plan(p)
		}
		p.Plan, p.Errors, p.Problem, p.Holder = nil, wrong, say("n-1 is being worked on"), say("01JC")
		out["page-plan-wrong-"+string(a)] = Plan(p)
		if a == fleet.ActionLabels {
			p.Errors, p.Problem, p.Holder, p.Asked = nil, "", "", Asked{}
			out["page-plan-empty"] = Plan(p)
		}
	}
	some := TemplatesPage{Layout: l, Templates: sampleTemplates(say), CanEdit: true, Edit: say("t1"), Asked: AskedOf(sampleTemplates(say)[0])}
	some.Nav, some.Static = "templates", true
	none := TemplatesPage{Layout: some.Layout, CanEdit: true, Asked: Asked{}, Errors: map[string]string{"": say("no"), "name": say("taken"), "labels": say("bad"), "values": say("bad")}}
	out["page-templates"], out["page-templates-none"] = Templates(some), Templates(none)
	out["page-plan-report"] = BatchPlan(PlanReport{Layout: l, Batch: sampleBatch(say), Plan: sampleDrainPlan(say)})
	return out
}

// sampleDrain is a drain that is held up in every way at once.
func sampleDrain(say say) *fleet.DrainProgress {
	until := noon.Add(2 * time.Minute)
	pod := func(name string, s fleet.PodState) fleet.PodProgress {
		return fleet.PodProgress{Namespace: say("shop"), Name: say(name), UID: say("uid-" + name), OwnerKind: say("Deployment"), OwnerName: say("web"), State: s}
	}
	blocked := pod("web-7d9c4-x2x9p", fleet.PodBlockedByPDB)
	blocked.Attempt, blocked.HTTP, blocked.Budgets, blocked.Needed, blocked.Healthy, blocked.Until = 4, 429, []string{say("web")}, 4, 4, &until
	blocked.Message = say("Cannot evict pod as it would violate the pod's disruption budget.")
	again := blocked
	again.Name = say("web-7d9c4-bbbbb")
	hook := pod("guarded-0", fleet.PodBlockedByHook)
	hook.Attempt, hook.HTTP, hook.Message = 2, 403, say("admission webhook \"guard.example.com\" denied the request")
	overdue := pod("queue-2", fleet.PodOverdue)
	overdue.Until, overdue.Message = &until, say("finalizers: example.com/drain")
	ending := pod("api-1", fleet.PodTerminating)
	ending.Until = &until
	consent := pod("shell", fleet.PodBlocked)
	consent.Reasons = []fleet.Reason{{ID: "DR-06", Code: "unmanaged", Consent: fleet.ConsentUnmanaged}}
	stays := pod("node-exporter-1", fleet.PodIgnored)
	stays.Reasons = []fleet.Reason{{ID: "DR-02", Code: "daemon_set", Detail: say("DaemonSet node-exporter")}}
	d := &fleet.DrainProgress{
		State: fleet.DrainEvicting, Since: noon, Message: say("waits for budgets"), Evicted: 5, Volumes: []string{say("pvc-1")}, WeakLock: true,
		Pods: []fleet.PodProgress{pod("done-1", fleet.PodGone), ending, blocked, again, hook, overdue, consent, stays, pod("next-1", fleet.PodQueued)},
	}
	for i := range 5 {
		d.Pods = append(d.Pods, pod(fmt.Sprintf("gone-%d", i), fleet.PodGone))
	}
	return d
}

func sampleDrainItems(say say) []fleet.Item {
	items := sampleItems(say)
	items[3].Drain, items[3].Zone, items[3].Version = sampleDrain(say), say("eu-1a"), 7
	done := sampleDrain(say)
	done.State, done.Message = fleet.DrainDone, ""
	for i := range done.Pods {
		done.Pods[i].State, done.Pods[i].Message, done.Pods[i].Until = fleet.PodGone, "", nil
	}
	items[0].Drain = done
	items[0].Edits = []fleet.Edit{
		{Kind: fleet.EditCordon, After: new(say("note")), Outcome: fleet.EditChanged},
		{Kind: fleet.EditLabel, Key: say("team"), Before: new(say("a")), After: new(say("b")), Outcome: fleet.EditChanged},
	}
	return items
}

func sampleDrainBatch(say say) fleet.Batch {
	b := sampleBatch(say)
	b.Operation = fleet.Operation{
		Action: fleet.ActionDrain, Reason: say("kernel update"),
		Drain: &fleet.DrainOptions{GracePeriodSeconds: 30, TimeoutSeconds: 600, DeleteEmptyDirData: true, Force: true, PodSelector: say("app=web"), UncordonAfter: true},
	}
	b.Rollout = fleet.Rollout{MaxConcurrent: 2, PerZone: 1, MaxFailures: 1, Canary: 1, PauseBetween: 30 * time.Second, Order: fleet.OrderZone}
	b.CancelledBy, b.PausedBy, b.Parent, b.Note = "", say("bob"), say("01JA0000000000"), say("waiting: 3 of 3 nodes of prod are unavailable")
	b.State = fleet.BatchPaused
	return b
}

// drainSamples are a batch of drains, and what belongs to it.
func drainSamples(say say, lang string) map[string]templ.Component {
	l := sampleLayout(say, lang)
	items, b := sampleDrainItems(say), sampleDrainBatch(say)
	panel := BatchPanel{Lang: lang, Batch: b, Items: items, CanSteer: true, Nonce: "n0nce", Key: "k3", Stream: "/batches/x/events?since=v1"}
	reverting, stopped := b, b
	reverting.Operation = fleet.Operation{
		Action: fleet.ActionRevert, Revert: say("01JA"), Labels: []string{say("a=b")}, Taints: []string{say("x:NoSchedule")}, Template: &fleet.TemplateUse{Name: say("gpu"), Version: 2},
		Source: &fleet.NodeRef{Cluster: say("prod"), Name: say("n")},
	}
	reverting.State, reverting.Outcome, reverting.PausedBy = fleet.BatchDone, fleet.OutcomePartial, ""
	stopped.State, stopped.PausedBy = fleet.BatchInterrupted, "*canary"
	taken, interrupted := panel, panel
	taken.Batch, taken.Stream, interrupted.Batch, interrupted.CanSteer = reverting, "", stopped, false
	embedded := panel
	embedded.Embedded = true
	page := ItemPods{Layout: l, Batch: b, Item: items[3]}
	page.Static = true
	return map[string]templ.Component{
		"item-drain":             BatchItemRowView(BatchItemRow{Item: items[3], Lang: lang}),
		"item-done":              BatchItemRowView(BatchItemRow{Item: items[0], Lang: lang}),
		"progress-paused":        BatchProgressView(BatchProgress{Batch: b, Lang: lang}),
		"panel-drain":            Panel(embedded),
		"pods-of-item":           ItemPodsView(lang, items[3]),
		"page-batch-drain":       Batch(BatchPage{Layout: l, Panel: panel}),
		"page-batch-revert":      Batch(BatchPage{Layout: l, Panel: taken}),
		"page-batch-interrupted": Batch(BatchPage{Layout: l, Panel: interrupted}),
		"page-item-pods":         ItemPodsPage(page),
	}
}
