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
	for _, a := range fleet.Actions() {
		p := PlanPage{Layout: l, Action: a, Asked: asked, Nodes: refs, Errors: map[string]string{}, Plan: sampleDiffPlan(say), Templates: sampleTemplates(say), Key: "k9"}
		p.Static = true
		if a == fleet.ActionDrain {
			p.Plan = sampleDrainPlan(say)
		}
		out["page-plan-"+string(a)] = Plan(p)
		p.Plan, p.Errors, p.Problem, p.Holder = nil, wrong, say("n-1 is being worked on"), say("01JC")
		out["page-plan-wrong-"+string(a)] = Plan(p)
		p.Errors, p.Problem, p.Holder, p.Asked = nil, "", "", Asked{}
		out["page-plan-empty-"+string(a)] = Plan(p)
	}
	out["page-plan-report"] = BatchPlan(PlanReport{Layout: l, Batch: sampleBatch(say), Plan: sampleDrainPlan(say)})
	return out
}
