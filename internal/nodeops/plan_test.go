package nodeops

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// TestCase66_Evicted goes through the taint manager's algorithm; checklist item 66 is the numeric toleration.
func TestCase66_Evicted(t *testing.T) {
	t.Parallel()
	out := corev1.Taint{Key: "out", Value: "5", Effect: corev1.TaintEffectNoExecute}
	slow := corev1.Taint{Key: "slow", Effect: corev1.TaintEffectNoExecute}
	soft := corev1.Taint{Key: "soft", Effect: corev1.TaintEffectNoSchedule}
	tolerates := func(key string, op corev1.TolerationOperator, value string, seconds *int64) corev1.Toleration {
		return corev1.Toleration{Key: key, Operator: op, Value: value, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: seconds}
	}
	exists := func(key string, seconds *int64) corev1.Toleration {
		return tolerates(key, corev1.TolerationOpExists, "", seconds)
	}
	for _, tt := range []struct {
		name        string
		taints      []corev1.Taint
		tolerations []corev1.Toleration
		want        fleet.Verdict
		after       int64
		code        string
	}{
		{"none", []corev1.Taint{out}, nil, fleet.VerdictDelete, 0, codeNotTolerated},
		{"no taint that deletes", []corev1.Taint{soft}, nil, fleet.VerdictStay, 0, ""},
		{"for ever", []corev1.Taint{out}, []corev1.Toleration{exists("out", nil)}, fleet.VerdictStay, 0, codeTolerated},
		{"everything", []corev1.Taint{out, slow}, []corev1.Toleration{{Operator: corev1.TolerationOpExists}}, fleet.VerdictStay, 0, codeTolerated},
		{"one of two", []corev1.Taint{out, slow}, []corev1.Toleration{exists("out", nil)}, fleet.VerdictDelete, 0, codeNotTolerated},
		{"for a time", []corev1.Taint{out}, []corev1.Toleration{exists("out", new(int64(30)))}, fleet.VerdictLater, 30, codeToleratedFor},
		{
			"the shortest of those that count",
			[]corev1.Taint{out, slow},
			[]corev1.Toleration{exists("out", new(int64(30))), exists("slow", new(int64(10)))},
			fleet.VerdictLater, 10, codeToleratedFor,
		},
		{
			"the first that matches counts",
			[]corev1.Taint{out},
			[]corev1.Toleration{exists("out", new(int64(30))), exists("out", new(int64(10)))},
			fleet.VerdictLater, 30, codeToleratedFor,
		},
		{
			"one that does not match counts for nothing",
			[]corev1.Taint{out},
			[]corev1.Toleration{exists("other", new(int64(1))), exists("out", nil)},
			fleet.VerdictStay, 0, codeTolerated,
		},
		{"for no time", []corev1.Taint{out}, []corev1.Toleration{exists("out", new(int64(0)))}, fleet.VerdictDelete, 0, codeNotTolerated},
		{"for less", []corev1.Taint{out}, []corev1.Toleration{exists("out", new(int64(-1)))}, fleet.VerdictDelete, 0, codeNotTolerated},
		{"another value", []corev1.Taint{out}, []corev1.Toleration{tolerates("out", corev1.TolerationOpEqual, "6", nil)}, fleet.VerdictDelete, 0, codeNotTolerated},
		{"the value", []corev1.Taint{out}, []corev1.Toleration{tolerates("out", "", "5", nil)}, fleet.VerdictStay, 0, codeTolerated},
		{
			"numeric, which may be off",
			[]corev1.Taint{out},
			[]corev1.Toleration{tolerates("out", corev1.TolerationOpLt, "9", nil)},
			fleet.VerdictDelete, 0, codeNotTolerated,
		},
		{
			"of another effect",
			[]corev1.Taint{out},
			[]corev1.Toleration{{Key: "out", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}},
			fleet.VerdictDelete, 0, codeNotTolerated,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := &corev1.Pod{Spec: corev1.PodSpec{Tolerations: tt.tolerations}}
			plan := podPlan(p)
			evicted(&plan, p, tt.taints)
			if plan.Verdict != tt.want || plan.After != tt.after || tt.code != "" && !plan.Has(tt.code) || tt.code == "" && len(plan.Reasons) > 0 {
				t.Errorf("%s after %d, %+v", plan.Verdict, plan.After, plan.Reasons)
			}
			if unmanaged := plan.Has(codeUnmanaged); unmanaged == (plan.Verdict == fleet.VerdictStay) {
				t.Errorf("nobody makes it again: %v", unmanaged)
			}
		})
	}
}

func TestPodPlan_Owner(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		kind, name, hash string
		want             string
	}{
		{"ReplicaSet", "web-7d9f", "7d9f", "Deployment web"},
		{"ReplicaSet", "web-7d9f", "", "ReplicaSet web-7d9f"},
		{"ReplicaSet", "web", "7d9f", "ReplicaSet web"},
		{"StatefulSet", "db", "", "StatefulSet db"},
	} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Labels:          map[string]string{"pod-template-hash": tt.hash},
			OwnerReferences: []metav1.OwnerReference{{Kind: tt.kind, Name: tt.name, Controller: new(true)}},
		}}
		if got := podPlan(p); got.OwnerKind+" "+got.OwnerName != tt.want {
			t.Errorf("%s %s: %s %s, want %s", tt.kind, tt.name, got.OwnerKind, got.OwnerName, tt.want)
		}
	}
}

func TestWhyConfirm(t *testing.T) {
	t.Parallel()
	drained := func(n int, v fleet.NodeVerdict) look {
		var l look
		for range n {
			l.plan.Nodes = append(l.plan.Nodes, fleet.NodePlan{Verdict: v})
		}
		return l
	}
	of := func(nodes int, l look) look {
		l.plan.Capacity = &fleet.Capacity{Nodes: nodes}
		return l
	}
	items := []fleet.Item{{Ref: n1}}
	drain := fleet.Operation{Action: fleet.ActionDrain, Drain: &fleet.DrainOptions{}}
	past := fleet.Operation{Action: fleet.ActionDrain, Drain: &fleet.DrainOptions{DisableEviction: true}}
	noExecute := taintsOp(fleet.ConflictFail, "a:NoExecute")
	for _, tt := range []struct {
		name string
		op   fleet.Operation
		look look
		want []string
	}{
		{"ten nodes", drain, drained(10, fleet.NodeChange), nil},
		{"eleven nodes", drain, drained(11, fleet.NodeChange), []string{fleet.ConfirmManyNodes}},
		{"four of forty nodes", drain, of(40, drained(4, fleet.NodeChange)), nil},
		{"four of thirty-nine nodes", drain, of(39, drained(4, fleet.NodeBlocked)), []string{fleet.ConfirmManyNodes}},
		{"three of three nodes", drain, of(3, drained(3, fleet.NodeChange)), nil},
		{"the last nodes", drain, look{last: true}, []string{fleet.ConfirmLastNodes}},
		{"eleven that are not there", drain, drained(11, fleet.NodeMissing), nil},
		{"past budgets", past, look{}, []string{fleet.ConfirmDelete}},
		{"control plane", drain, look{control: true}, []string{fleet.ConfirmControlNode}},
		{"eleven cordons", cordonOp, drained(11, fleet.NodeChange), nil},
		{"pods of one node", noExecute, look{deletes: 1}, nil},
		{"pods of two nodes", noExecute, look{deletes: 2}, []string{fleet.ConfirmNoExecute}},
		{"guarded pods", noExecute, look{deletes: 1, guarded: true}, []string{fleet.ConfirmNoExecute}},
		{"pods that nobody saw", noExecute, look{unseen: true}, []string{fleet.ConfirmNoExecute}},
		{"a cluster that nobody saw", noExecute, look{plan: fleet.ClusterPlan{Error: "down"}}, []string{fleet.ConfirmNoExecute}},
		{"such a cluster for labels", labelsOp(fleet.ConflictFail, "a=b"), look{plan: fleet.ClusterPlan{Error: "down"}}, nil},
		{"protected labels", labelsOp(fleet.ConflictFail, "kubernetes.io/os=x"), look{}, []string{fleet.ConfirmProtected}},
	} {
		if diff := cmp.Diff(tt.want, whyConfirm(tt.op, items, []look{tt.look})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestPlanDigest(t *testing.T) {
	t.Parallel()
	pod := func(uid string, v fleet.Verdict, consents ...fleet.Consent) fleet.PodPlan {
		p := fleet.PodPlan{UID: uid, PodClass: fleet.PodClass{Verdict: v, Reasons: []fleet.Reason{{Code: "other"}}}}
		for _, c := range consents {
			p.Reasons = append(p.Reasons, fleet.Reason{Consent: c, Given: v == fleet.VerdictEvict})
		}
		return p
	}
	of := func(pods ...fleet.PodPlan) string {
		return planDigest([]fleet.ClusterPlan{{Cluster: "prod", Nodes: []fleet.NodePlan{{NodeRef: n1, Pods: pods}}}})
	}
	base := of(pod("u1", fleet.VerdictBlock, fleet.ConsentLocalData), pod("u2", fleet.VerdictDelete))
	for name, same := range map[string]string{
		"the order":             of(pod("u2", fleet.VerdictDelete), pod("u1", fleet.VerdictBlock, fleet.ConsentLocalData)),
		"that it was given":     of(pod("u1", fleet.VerdictEvict, fleet.ConsentLocalData), pod("u2", fleet.VerdictDelete)),
		"pods that come back":   of(pod("u1", fleet.VerdictBlock, fleet.ConsentLocalData), pod("u2", fleet.VerdictDelete), pod("u3", fleet.VerdictEvict)),
		"pods that only remain": of(pod("u1", fleet.VerdictBlock, fleet.ConsentLocalData), pod("u2", fleet.VerdictDelete), pod("u3", fleet.VerdictStay)),
	} {
		if same != base {
			t.Errorf("%s changes the digest", name)
		}
	}
	for name, other := range map[string]string{
		"a pod more":      of(pod("u1", fleet.VerdictBlock, fleet.ConsentLocalData), pod("u2", fleet.VerdictDelete), pod("u3", fleet.VerdictLater)),
		"a pod less":      of(pod("u2", fleet.VerdictDelete)),
		"another pod":     of(pod("u9", fleet.VerdictBlock, fleet.ConsentLocalData), pod("u2", fleet.VerdictDelete)),
		"another consent": of(pod("u1", fleet.VerdictBlock, fleet.ConsentForce), pod("u2", fleet.VerdictDelete)),
	} {
		if other == base {
			t.Errorf("%s does not change the digest", name)
		}
	}
}

// TestPlan_AsItWouldBeDone checks that a plan is the verb's own decision, and that looking writes nothing.
func TestPlan_AsItWouldBeDone(t *testing.T) {
	t.Parallel()
	put := fleet.Edit{Kind: fleet.EditTaint, Key: "old", Effect: fleet.NoExecute, Before: new(""), Outcome: fleet.EditRemoved}
	skip := fleet.Operation{Action: fleet.ActionUncordon, Foreign: fleet.ForeignSkip}
	for _, tt := range []struct {
		name    string
		op      fleet.Operation
		node    *corev1.Node
		undo    []fleet.Edit
		verdict fleet.NodeVerdict
		fault   string
		outcome fleet.EditOutcome
		says    string
	}{
		{"cordon", cordonOp, node(), nil, fleet.NodeChange, "", fleet.EditAdded, ""},
		{"cordoned", cordonOp, node(cordoned, noted("b0")), nil, fleet.NodeUnchanged, "", fleet.EditUnchanged, "by bob"},
		{"uncordon foreign", skip, node(cordoned), nil, fleet.NodeBlocked, fleet.CodeForeignCordon, "", "not through this program"},
		{"conflict", labelsOp(fleet.ConflictFail, "team=blue"), node(labelled("team", "red")), nil, fleet.NodeBlocked, fleet.CodeConflict, fleet.EditConflict, "label team"},
		{"skipped", labelsOp(fleet.ConflictSkip, "team=blue"), node(labelled("team", "red")), nil, fleet.NodeUnchanged, fleet.CodeConflict, fleet.EditKept, "label team"},
		{"nothing to undo", fleet.Operation{Action: fleet.ActionRevert}, node(), nil, fleet.NodeUnchanged, fleet.CodeNothing, "", "had not changed"},
		{"an undo that is not permitted", fleet.Operation{Action: fleet.ActionRevert}, node(), []fleet.Edit{put}, fleet.NodeBlocked, fleet.CodeForbidden, fleet.EditAdded, "node.no_execute"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, newAPI(tt.node))
			p, err := r.ops.Plan(t.Context(), ada, tt.op, []fleet.Item{{Ref: n1, UID: "uid-1", Undo: tt.undo}})
			if err != nil {
				t.Fatal(err)
			}
			n := p.Clusters[0].Nodes[0]
			if n.Verdict != tt.verdict || n.Fault != tt.fault || !strings.Contains(n.Message, tt.says) || p.Clusters[0].Error != "" {
				t.Errorf("%s, %s, %q, %q", n.Verdict, n.Fault, n.Message, p.Clusters[0].Error)
			}
			if tt.outcome != "" && (len(n.Edits) != 1 || n.Edits[0].Outcome != tt.outcome) {
				t.Errorf("edits %+v", n.Edits)
			}
			if len(r.api.patches) != 0 || len(r.record.entries) != 0 {
				t.Errorf("%d patches, %d entries", len(r.api.patches), len(r.record.entries))
			}
		})
	}
	t.Run("unknown cluster", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, newAPI(node()))
		p, err := r.ops.Plan(t.Context(), ada, cordonOp, []fleet.Item{{Ref: fleet.NodeRef{Cluster: "gone", Name: "n1"}}, {Ref: n1, UID: "uid-1"}})
		if err != nil || len(p.Clusters) != 2 || !strings.Contains(p.Clusters[0].Error, "not known") || p.Clusters[1].Error != "" {
			t.Fatalf("%+v, %v", p, err)
		}
		if diff := cmp.Diff([]string{"kubectl --context gone cordon n1", "kubectl --context prod cordon n1"}, p.Kubectl); diff != "" {
			t.Errorf("kubectl (-want +got):\n%s", diff)
		}
	})
}

// Only what would really be drained counts, and nodes of the control plane are known by their role.
func TestDrainsControlPlane(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		node fleet.NodePlan
		want bool
	}{
		{fleet.NodePlan{Verdict: fleet.NodeChange, Roles: []string{"control-plane"}}, true},
		{fleet.NodePlan{Verdict: fleet.NodeBlocked, Roles: []string{"etcd", "master"}}, true},
		{fleet.NodePlan{Verdict: fleet.NodeUnchanged, Roles: []string{"control-plane"}}, false},
		{fleet.NodePlan{Verdict: fleet.NodeChange, Roles: []string{"worker"}}, false},
	} {
		if got := drainsControlPlane([]fleet.NodePlan{{Verdict: fleet.NodeChange}, tt.node}); got != tt.want {
			t.Errorf("%+v: %t", tt.node, got)
		}
	}
}
