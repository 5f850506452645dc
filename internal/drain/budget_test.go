package drain

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// budgetFor is a budget over the pods with app=app, worked out by its controller, with changes.
func budgetFor(app string, allowed int32, change ...func(*policyv1.PodDisruptionBudget)) policyv1.PodDisruptionBudget {
	b := policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: app, Generation: 1},
		Spec: policyv1.PodDisruptionBudgetSpec{
			MinAvailable: new(intstr.FromInt32(3)),
			Selector:     &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}},
		},
		Status: policyv1.PodDisruptionBudgetStatus{
			ObservedGeneration: 1, ExpectedPods: 5, CurrentHealthy: 3 + allowed, DesiredHealthy: 3, DisruptionsAllowed: allowed,
		},
	}
	for _, f := range change {
		f(&b)
	}
	return b
}

func notReady(p *corev1.Pod) { p.Status.Conditions = nil }

func policy(v policyv1.UnhealthyPodEvictionPolicyType) func(*policyv1.PodDisruptionBudget) {
	return func(b *policyv1.PodDisruptionBudget) { b.Spec.UnhealthyPodEvictionPolicy = &v }
}

// TestBudgets_OnePod is operations §2.1, rule by rule.
func TestBudgets_OnePod(t *testing.T) {
	t.Parallel()
	one := func(b ...policyv1.PodDisruptionBudget) []policyv1.PodDisruptionBudget { return b }
	max := func(v intstr.IntOrString) func(*policyv1.PodDisruptionBudget) {
		return func(b *policyv1.PodDisruptionBudget) { b.Spec.MinAvailable, b.Spec.MaxUnavailable = nil, &v }
	}
	min := func(v intstr.IntOrString) func(*policyv1.PodDisruptionBudget) {
		return func(b *policyv1.PodDisruptionBudget) { b.Spec.MinAvailable = &v }
	}
	for _, tt := range []struct {
		name    string
		pod     *corev1.Pod
		budgets []policyv1.PodDisruptionBudget
		want    fleet.Allowance
		why     string
	}{
		{"no budget", fixture("p"), nil, fleet.AllowFree, WhyNoBudget},
		{"of another namespace", fixture("p"), one(budgetFor("web", 0, func(b *policyv1.PodDisruptionBudget) { b.Namespace = "bank" })), fleet.AllowFree, WhyNoBudget},
		{"selects nothing", fixture("p"), one(budgetFor("web", 0, func(b *policyv1.PodDisruptionBudget) { b.Spec.Selector = nil })), fleet.AllowFree, WhyNoBudget},
		{"selects everything", fixture("p"), one(budgetFor("web", 1, func(b *policyv1.PodDisruptionBudget) { b.Spec.Selector = &metav1.LabelSelector{} })), fleet.AllowNow, ""},
		{"selects nonsense", fixture("p"), one(budgetFor("web", 0, func(b *policyv1.PodDisruptionBudget) {
			b.Spec.Selector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Near"}}}
		})), fleet.AllowFree, WhyNoBudget},
		{"pending", fixture("p", phase(corev1.PodPending)), one(budgetFor("web", 0)), fleet.AllowFree, WhyNotGuarded},
		{"succeeded, even under two", fixture("p", phase(corev1.PodSucceeded)), one(budgetFor("web", 0), budgetFor("web", 0)), fleet.AllowFree, WhyNotGuarded},
		{"terminating", fixture("p", deleted(0)), one(budgetFor("web", 0)), fleet.AllowFree, WhyNotGuarded},
		{"two", fixture("p"), one(budgetFor("web", 1), budgetFor("web", 1, func(b *policyv1.PodDisruptionBudget) { b.Name = "other" })), fleet.AllowNever, WhySeveralBudgets},
		{"allowed", fixture("p"), one(budgetFor("web", 1)), fleet.AllowNow, ""},
		{"exhausted", fixture("p"), one(budgetFor("web", 0)), fleet.AllowBlocked, WhyExhausted},
		{"held by an eviction", fixture("p"), one(budgetFor("web", 0, func(b *policyv1.PodDisruptionBudget) {
			b.Status.DisruptedPods = map[string]metav1.Time{"x": metav1.NewTime(noon)}
		})), fleet.AllowBlocked, WhyHeld},
		{"not ready, short of healthy ones", fixture("p", notReady), one(budgetFor("web", 0, func(b *policyv1.PodDisruptionBudget) { b.Status.CurrentHealthy = 2 })), fleet.AllowBlocked, WhyExhausted},
		{"not ready, always allowed", fixture("p", notReady), one(budgetFor("web", 0, policy(policyv1.AlwaysAllow), func(b *policyv1.PodDisruptionBudget) { b.Status.CurrentHealthy = 2 })), fleet.AllowFree, WhyUnhealthy},
		{"not ready, enough healthy ones", fixture("p", notReady), one(budgetFor("web", 0)), fleet.AllowFree, WhyUnhealthy},
		{"not ready, if healthy", fixture("p", notReady), one(budgetFor("web", 0, policy(policyv1.IfHealthyBudget))), fleet.AllowFree, WhyUnhealthy},
		{"not ready, unknown policy", fixture("p", notReady), one(budgetFor("web", 0, policy("Perhaps"))), fleet.AllowBlocked, WhyExhausted},
		{"not ready, none desired", fixture("p", notReady), one(budgetFor("web", 2, func(b *policyv1.PodDisruptionBudget) { b.Status.DesiredHealthy = 0 })), fleet.AllowNow, ""},
		{"lagging", fixture("p"), one(budgetFor("web", 1, func(b *policyv1.PodDisruptionBudget) { b.Generation = 2 })), fleet.AllowUndetermined, WhyLagging},
		{"broken", fixture("p"), one(budgetFor("web", 0, func(b *policyv1.PodDisruptionBudget) {
			b.Status.Conditions = []metav1.Condition{{Type: policyv1.DisruptionAllowedCondition, Status: metav1.ConditionFalse, Reason: policyv1.SyncFailedReason, Message: "no scale"}}
		})), fleet.AllowBlocked, WhySyncFailed},
		{"PV-11 none may be unavailable", fixture("p"), one(budgetFor("web", 0, max(intstr.FromInt32(0)))), fleet.AllowNever, WhyMaxUnavailable},
		{"PV-11 0 % may be unavailable", fixture("p"), one(budgetFor("web", 0, max(intstr.FromString("0%")))), fleet.AllowNever, WhyMaxUnavailable},
		{"PV-11 100 % must be available", fixture("p"), one(budgetFor("web", 0, min(intstr.FromString("100%")))), fleet.AllowNever, WhyMinAvailable},
		{"PV-11 as many as there are", fixture("p"), one(budgetFor("web", 0, min(intstr.FromInt32(5)))), fleet.AllowNever, WhyMinAvailable},
		{"PV-11 as many as there were", fixture("p"), one(budgetFor("web", 0, min(intstr.FromInt32(5)), func(b *policyv1.PodDisruptionBudget) { b.Generation = 2 })), fleet.AllowUndetermined, WhyLagging},
		{"PV-11 a percentage that comes to all", fixture("p"), one(budgetFor("web", 0, min(intstr.FromString("90%")), func(b *policyv1.PodDisruptionBudget) { b.Status.CurrentHealthy = 5 })), fleet.AllowNever, WhyFull},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, _ := Budgets([]*corev1.Pod{tt.pod}, tt.budgets, nil)
			if g := got[tt.pod.UID]; g.Allowance != tt.want || g.Why != tt.why {
				t.Errorf("got %s, %q; want %s, %q", g.Allowance, g.Why, tt.want, tt.why)
			}
		})
	}
}

// TestBudgets_Waves sums a budget over a batch: five pods, two at a time.
func TestBudgets_Waves(t *testing.T) {
	t.Parallel()
	pods := []*corev1.Pod{
		fixture("a"), fixture("b"), fixture("sick", notReady), fixture("c"), fixture("d"), fixture("e"), fixture("db", labelled("app", "db")),
	}
	got, budgets := Budgets(pods, []policyv1.PodDisruptionBudget{budgetFor("web", 2), budgetFor("db", 0), budgetFor("idle", 0)}, nil)
	want := []fleet.PodBudget{
		{Allowance: fleet.AllowNow, Budgets: []string{"web"}, Wave: 1},
		{Allowance: fleet.AllowNow, Budgets: []string{"web"}, Wave: 1},
		{Allowance: fleet.AllowFree, Why: WhyUnhealthy, Budgets: []string{"web"}},
		{Allowance: fleet.AllowLater, Budgets: []string{"web"}, Wave: 2},
		{Allowance: fleet.AllowLater, Budgets: []string{"web"}, Wave: 2},
		{Allowance: fleet.AllowLater, Budgets: []string{"web"}, Wave: 3},
		{Allowance: fleet.AllowBlocked, Why: WhyExhausted, Budgets: []string{"db"}},
	}
	for i, p := range pods {
		if diff := cmp.Diff(want[i], got[p.UID]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", p.Name, diff)
		}
	}
	wantBudgets := []fleet.Budget{
		{Namespace: "shop", Name: "db", MinAvailable: "3", ExpectedPods: 5, DesiredHealthy: 3, CurrentHealthy: 3, Pods: 1, Allowance: fleet.AllowBlocked},
		{Namespace: "shop", Name: "web", MinAvailable: "3", ExpectedPods: 5, DesiredHealthy: 3, CurrentHealthy: 5, Allowed: 2, Pods: 5, Waves: 3, Allowance: fleet.AllowNow},
	}
	if diff := cmp.Diff(wantBudgets, budgets); diff != "" {
		t.Errorf("budgets (-want +got):\n%s", diff)
	}
}

// TestBudgets_NotEvaluated is PV-13: what may not be read is never taken for nothing.
func TestBudgets_NotEvaluated(t *testing.T) {
	t.Parallel()
	p, q := fixture("a"), fixture("b", func(p *corev1.Pod) { p.Namespace = "bank" })
	got, _ := Budgets([]*corev1.Pod{p, q}, nil, func(ns string) bool { return ns == "shop" })
	if got[p.UID].Allowance != fleet.AllowFree || got[q.UID].Allowance != fleet.AllowNotEvaluated {
		t.Errorf("got %v", got)
	}
}
