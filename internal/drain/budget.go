package drain

import (
	"cmp"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// Why a budget says what it says.
const (
	WhyNoBudget       = "no_budget"
	WhyNotGuarded     = "not_guarded"       // pending, finished, terminating
	WhyUnhealthy      = "unhealthy_allowed" // the pod is not ready, and the budget lets such pods go
	WhySeveralBudgets = "several_budgets"
	WhyLagging        = "budget_lagging"
	WhySyncFailed     = "budget_broken"
	WhyExhausted      = "budget_exhausted"
	WhyHeld           = "budget_held" // an eviction that is under way holds it
	WhyMaxUnavailable = "max_unavailable_zero"
	WhyMinAvailable   = "min_available_all"
	WhyFull           = "all_needed" // all are healthy and none may go
)

// heldFor is how long the disruption controller counts an eviction whose pod it does not see go.
const heldFor = 2 * time.Minute

// Budgets says of the pods that are to be evicted what their budgets answer, as the API server would: in the order
// given, summed over all of them. Evaluated tells in which namespaces budgets could be read; nil means all.
func Budgets(pods []*corev1.Pod, budgets []policyv1.PodDisruptionBudget, evaluated func(namespace string) bool) (map[types.UID]fleet.PodBudget, []fleet.Budget) {
	out := make(map[types.UID]fleet.PodBudget, len(pods))
	guarded := map[types.NamespacedName]*tally{}
	match := newMatcher(budgets)
	for _, p := range pods {
		if evaluated != nil && !evaluated(p.Namespace) {
			out[p.UID] = fleet.PodBudget{Allowance: fleet.AllowNotEvaluated}
			continue
		}
		if notGuarded(p) {
			out[p.UID] = fleet.PodBudget{Allowance: fleet.AllowFree, Why: WhyNotGuarded}
			continue
		}
		found := match.of(p)
		names := make([]string, 0, len(found))
		for _, b := range found {
			names = append(names, b.Name)
			if key := (types.NamespacedName{Namespace: b.Namespace, Name: b.Name}); guarded[key] == nil {
				guarded[key] = &tally{budget: b}
			}
		}
		switch len(found) {
		case 0:
			out[p.UID] = fleet.PodBudget{Allowance: fleet.AllowFree, Why: WhyNoBudget}
		case 1:
			v := guarded[types.NamespacedName{Namespace: p.Namespace, Name: names[0]}].next(p)
			v.Budgets = names
			out[p.UID] = v
		default:
			out[p.UID] = fleet.PodBudget{Allowance: fleet.AllowNever, Why: WhySeveralBudgets, Budgets: names}
		}
	}
	views := make([]fleet.Budget, 0, len(guarded))
	for _, t := range guarded {
		views = append(views, t.view())
	}
	slices.SortFunc(views, func(a, b fleet.Budget) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out, views
}

// notGuarded is the API server's canIgnorePDB.
func notGuarded(p *corev1.Pod) bool {
	return ended(p) || p.Status.Phase == corev1.PodPending || p.DeletionTimestamp != nil
}

// tally sums up what a batch asks of one budget.
type tally struct {
	budget *policyv1.PodDisruptionBudget
	pods   int
}

// next is the answer for one more pod.
func (t *tally) next(p *corev1.Pod) fleet.PodBudget {
	b := t.budget
	if !ready(p) && lets(b) {
		return fleet.PodBudget{Allowance: fleet.AllowFree, Why: WhyUnhealthy}
	}
	t.pods++
	allowance, why, message := standing(b)
	if allowance != fleet.AllowNow {
		return fleet.PodBudget{Allowance: allowance, Why: why, Message: message}
	}
	wave := (t.pods-1)/int(b.Status.DisruptionsAllowed) + 1
	if wave > 1 {
		return fleet.PodBudget{Allowance: fleet.AllowLater, Wave: wave}
	}
	return fleet.PodBudget{Allowance: fleet.AllowNow, Wave: 1}
}

// lets tells whether the budget lets a pod go that is not ready.
func lets(b *policyv1.PodDisruptionBudget) bool {
	if policy := b.Spec.UnhealthyPodEvictionPolicy; policy != nil {
		switch *policy {
		case policyv1.AlwaysAllow:
			return true
		case policyv1.IfHealthyBudget:
		default:
			return false // the API asks clients to take what they do not know for a refusal
		}
	}
	return b.Status.CurrentHealthy >= b.Status.DesiredHealthy && b.Status.DesiredHealthy > 0
}

// standing is what a budget says at this moment to a pod that counts.
func standing(b *policyv1.PodDisruptionBudget) (fleet.Allowance, string, string) {
	if never := neverMet(b); never != "" {
		return fleet.AllowNever, never, ""
	}
	if b.Status.ObservedGeneration < b.Generation {
		return fleet.AllowUndetermined, WhyLagging, ""
	}
	for _, c := range b.Status.Conditions {
		if c.Type == policyv1.DisruptionAllowedCondition && c.Status == metav1.ConditionFalse && c.Reason == policyv1.SyncFailedReason {
			return fleet.AllowBlocked, WhySyncFailed, kube.Plain(c.Message)
		}
	}
	if b.Status.DisruptionsAllowed > 0 {
		return fleet.AllowNow, "", ""
	}
	if len(b.Status.DisruptedPods) > 0 {
		return fleet.AllowBlocked, WhyHeld, ""
	}
	return fleet.AllowBlocked, WhyExhausted, ""
}

// neverMet says why a budget can never let a healthy pod go, "" if it can (PV-11).
func neverMet(b *policyv1.PodDisruptionBudget) string {
	current := b.Status.ObservedGeneration >= b.Generation
	expected := b.Status.ExpectedPods
	if limit := b.Spec.MaxUnavailable; limit != nil && zero(*limit) {
		return WhyMaxUnavailable
	}
	if least := b.Spec.MinAvailable; least != nil {
		if least.Type == intstr.String && least.StrVal == "100%" {
			return WhyMinAvailable
		}
		if least.Type == intstr.Int && current && expected > 0 && least.IntVal >= expected {
			return WhyMinAvailable
		}
	}
	if current && expected > 0 && b.Status.CurrentHealthy >= expected && len(b.Status.DisruptedPods) == 0 &&
		b.Status.DisruptionsAllowed == 0 {
		return WhyFull
	}
	return ""
}

func zero(v intstr.IntOrString) bool {
	return v.Type == intstr.Int && v.IntVal == 0 || v.Type == intstr.String && v.StrVal == "0%"
}

func (t *tally) view() fleet.Budget {
	b := t.budget
	out := fleet.Budget{
		Namespace: b.Namespace, Name: b.Name,
		ExpectedPods: b.Status.ExpectedPods, DesiredHealthy: b.Status.DesiredHealthy,
		CurrentHealthy: b.Status.CurrentHealthy, Allowed: b.Status.DisruptionsAllowed,
		Pods: t.pods, Never: neverMet(b),
	}
	if v := b.Spec.MinAvailable; v != nil {
		out.MinAvailable = v.String()
	}
	if v := b.Spec.MaxUnavailable; v != nil {
		out.MaxUnavailable = v.String()
	}
	if v := b.Spec.UnhealthyPodEvictionPolicy; v != nil {
		out.UnhealthyPolicy = string(*v)
	}
	for _, pod := range slices.Sorted(maps.Keys(b.Status.DisruptedPods)) {
		at := b.Status.DisruptedPods[pod].UTC()
		out.Held = append(out.Held, fleet.Held{Pod: pod, Since: at, Until: at.Add(heldFor)})
	}
	for _, m := range b.ManagedFields {
		if m.Subresource == "" {
			out.WrittenBy = kube.Plain(m.Manager) // the last one that wrote the spec
		}
	}
	out.Allowance, _, out.Message = standing(b)
	if out.Allowance == fleet.AllowNow {
		out.Waves = (t.pods + int(b.Status.DisruptionsAllowed) - 1) / int(b.Status.DisruptionsAllowed)
	}
	return out
}

// matcher finds the budgets of pods.
type matcher struct {
	byNamespace map[string][]guard
}

type guard struct {
	budget   *policyv1.PodDisruptionBudget
	selector labels.Selector
}

func newMatcher(budgets []policyv1.PodDisruptionBudget) matcher {
	m := matcher{map[string][]guard{}}
	for i := range budgets {
		m.put(&budgets[i])
	}
	return m
}

// put takes a budget in, in the place of an older version of it.
func (m matcher) put(b *policyv1.PodDisruptionBudget) {
	m.remove(b)
	// No selector selects nothing, an empty one everything; one that makes no sense selects nothing either.
	s, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
	if err != nil {
		return
	}
	in := m.byNamespace[b.Namespace]
	at, _ := slices.BinarySearchFunc(in, b.Name, byName)
	m.byNamespace[b.Namespace] = slices.Insert(in, at, guard{b, s})
}

func (m matcher) remove(b *policyv1.PodDisruptionBudget) {
	in := m.byNamespace[b.Namespace]
	if at, found := slices.BinarySearchFunc(in, b.Name, byName); found {
		m.byNamespace[b.Namespace] = slices.Delete(in, at, at+1)
	}
}

func byName(g guard, name string) int { return cmp.Compare(g.budget.Name, name) }

func (m matcher) of(p *corev1.Pod) []*policyv1.PodDisruptionBudget {
	var out []*policyv1.PodDisruptionBudget
	for _, g := range m.byNamespace[p.Namespace] {
		if g.selector.Matches(labels.Set(p.Labels)) {
			out = append(out, g.budget)
		}
	}
	return out
}
