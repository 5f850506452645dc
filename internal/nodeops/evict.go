package nodeops

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"

	"github.com/kube-node-manager/kube-node-manager/internal/drain"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/marks"
)

const (
	// maxSights bounds the nodes whose pods are read for a taint that deletes pods; maxAsides those for remarks only.
	maxSights = 200
	maxAsides = 50
)

// The codes of reasons in plans of taints and labels.
const (
	codeNotTolerated  = "not_tolerated"   // a taint that deletes it
	codeTolerated     = "tolerated"       // every such taint
	codeToleratedFor  = "tolerated_for"   // some of them for a time
	codeDaemonSet     = "daemonset"       // its DaemonSet makes none again on this node
	codeUnmanaged     = "unmanaged"       // nobody makes it again
	codeGuarded       = "guarded"         // by a budget that is not asked
	codeNotAgain      = "not_again"       // of a DaemonSet: it stays, and once it ends there is none again
	codeLabelUsed     = "label_used"      // it asks for a label that changes
	codeUnmatched     = "label_unmatched" // it would not be placed here any more, and stays
	codeDaemonRemoved = "daemonset_unmatched"
	codeNotCounted    = "pods_not_counted" // a warning about the cluster
)

// sight is a node that changes, whose pods are of interest.
type sight struct {
	plan          *fleet.NodePlan
	before, after *corev1.Node
	edits         []fleet.Edit
	pods          []corev1.Pod
}

// deletes tells whether the change sets a taint that makes the taint manager delete pods.
func (s *sight) deletes() bool {
	return slices.ContainsFunc(s.edits, func(e fleet.Edit) bool {
		return e.Kind == fleet.EditTaint && e.Effect == fleet.NoExecute && e.After != nil
	})
}

// concerns tells whether pods may care for the change at all.
func (s *sight) concerns() bool {
	return slices.ContainsFunc(s.edits, func(e fleet.Edit) bool {
		return e.Kind == fleet.EditLabel && e.Before != nil || e.Kind == fleet.EditTaint && e.Effect == fleet.NoSchedule && e.After != nil
	})
}

// pods says what the changes mean for the pods of the nodes (§5.6, LT-21, LT-42).
func (l *look) pods(ctx context.Context, client kubernetes.Interface, all []sight) error {
	var sights []*sight
	deleting, skipped := false, 0
	for i := range all {
		s := &all[i]
		switch {
		case s.deletes() && len(sights) < maxSights:
			sights, deleting = append(sights, s), true
		case s.deletes():
			skipped++
		case len(all) <= maxAsides && s.concerns():
			sights = append(sights, s)
		}
	}
	if skipped > 0 {
		l.unseen = true
		l.plan.Warnings = append(l.plan.Warnings, fleet.Impact{
			ID: "LT-40", Code: codeNotCounted, Detail: fmt.Sprintf("%d of %d nodes", skipped, skipped+len(sights)),
		})
	}
	if len(sights) == 0 {
		return nil
	}
	switch err := readPods(ctx, client, sights); {
	case errors.Is(err, fleet.ErrForbidden):
		l.unseen = l.unseen || deleting
		l.plan.Missing = append(l.plan.Missing, "pods")
		return nil
	case err != nil:
		return err
	}
	var gone []*corev1.Pod
	for _, s := range sights {
		gone = append(gone, s.judge()...)
		if s.deletes() && s.plan.Counts.Delete+s.plan.Counts.Later > 0 {
			l.deletes++
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return l.budgets(ctx, client, sights, gone)
}

// readPods reads the pods of the nodes, each by the server's index.
func readPods(ctx context.Context, client kubernetes.Interface, sights []*sight) error {
	errs := make([]error, len(sights))
	each(planReads, len(sights), func(i int) {
		opts := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", sights[i].before.Name).String()}
		errs[i] = pages(ctx, client.CoreV1().RESTClient(), "pods", opts, func() *corev1.PodList { return &corev1.PodList{} }, func(p *corev1.PodList) {
			sights[i].pods = append(sights[i].pods, p.Items...)
		})
	})
	for i, err := range errs {
		if err != nil {
			return fmt.Errorf("listing the pods of node %s: %w", sights[i].before.Name, err)
		}
	}
	return nil
}

// judge fills in the pods of a node, and returns those that a taint deletes.
func (s *sight) judge() []*corev1.Pod {
	var gone []*corev1.Pod
	deletes := s.deletes()
	for i := range s.pods {
		p := &s.pods[i]
		if p.DeletionTimestamp != nil {
			continue // on its way already
		}
		out := podPlan(p)
		if deletes {
			evicted(&out, p, s.after.Spec.Taints)
		}
		if out.Verdict == fleet.VerdictStay {
			s.remarks(&out, p)
		}
		if !deletes && len(out.Reasons) == 0 {
			continue // nothing is to be said of it
		}
		if deletes && out.Verdict != fleet.VerdictStay {
			gone = append(gone, p)
		}
		s.plan.Pods = append(s.plan.Pods, out)
		s.plan.Counts.Add(out.Verdict)
	}
	slices.SortFunc(s.plan.Pods, byPod)
	for i := range s.plan.Edits {
		e := &s.plan.Edits[i]
		if e.Note == "" && e.Kind == fleet.EditLabel && e.Before != nil && !same(e.Before, e.After) &&
			slices.ContainsFunc(s.pods, func(p corev1.Pod) bool { return asksFor(&p, e.Key) }) {
			e.Note = marks.RemarkUsed
		}
	}
	return gone
}

func podPlan(p *corev1.Pod) fleet.PodPlan {
	out := fleet.PodPlan{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Grace: corev1.DefaultTerminationGracePeriodSeconds}
	out.Verdict, out.Reasons = fleet.VerdictStay, []fleet.Reason{}
	if p.Spec.TerminationGracePeriodSeconds != nil {
		out.Grace = *p.Spec.TerminationGracePeriodSeconds
	}
	if ref := metav1.GetControllerOf(p); ref != nil {
		out.OwnerKind, out.OwnerName = ref.Kind, ref.Name
		// The sets of a Deployment are named after it and the hash that their pods carry.
		if name, ok := strings.CutSuffix(ref.Name, "-"+p.Labels["pod-template-hash"]); ok && ref.Kind == "ReplicaSet" && p.Labels["pod-template-hash"] != "" {
			out.OwnerKind, out.OwnerName = "Deployment", name
		}
	}
	return out
}

func say(p *fleet.PodPlan, id, code, detail string) {
	p.Reasons = append(p.Reasons, fleet.Reason{ID: id, Code: code, Detail: detail})
}

// evicted is what the taint manager does with a pod on a node with these taints: of every taint with NoExecute the first
// toleration that matches counts; one without any deletes the pod, and the shortest time of those that count does so
// later. A numeric toleration counts for nothing: whether the cluster knows them cannot be seen from here.
func evicted(out *fleet.PodPlan, p *corev1.Pod, taints []corev1.Taint) {
	shortest, first := int64(math.MaxInt64), ""
	some := false
	for i := range taints {
		t := &taints[i]
		if t.Effect != corev1.TaintEffectNoExecute {
			continue
		}
		some = true
		at := slices.IndexFunc(p.Spec.Tolerations, func(o corev1.Toleration) bool { return o.ToleratesTaint(klog.Logger{}, t, false) })
		if at < 0 {
			out.Verdict = fleet.VerdictDelete
			say(out, "LT-40", codeNotTolerated, t.ToString())
			break
		}
		if s := p.Spec.Tolerations[at].TolerationSeconds; s != nil && *s < shortest {
			shortest, first = *s, t.ToString()
		}
	}
	switch {
	case out.Verdict == fleet.VerdictDelete:
	case shortest <= 0:
		out.Verdict = fleet.VerdictDelete
		say(out, "LT-40", codeNotTolerated, first)
	case shortest < math.MaxInt64:
		out.Verdict, out.After = fleet.VerdictLater, shortest
		say(out, "LT-40", codeToleratedFor, first)
	case some:
		say(out, "LT-40", codeTolerated, "")
	}
	if out.Verdict == fleet.VerdictStay {
		return
	}
	switch out.OwnerKind {
	case "DaemonSet":
		say(out, "LT-40", codeDaemonSet, out.OwnerName)
	case "":
		say(out, "LT-40", codeUnmanaged, "")
	}
}

// remarks are about a pod that no taint deletes.
func (s *sight) remarks(out *fleet.PodPlan, p *corev1.Pod) {
	daemon := out.OwnerKind == "DaemonSet"
	var used []string
	for _, e := range s.edits {
		if e.Kind == fleet.EditLabel && asksFor(p, e.Key) {
			used = append(used, e.Key)
		}
		if e.Kind == fleet.EditTaint && e.Effect == fleet.NoSchedule && e.After != nil && daemon {
			t := &corev1.Taint{Key: e.Key, Value: *e.After, Effect: corev1.TaintEffectNoSchedule}
			if !slices.ContainsFunc(p.Spec.Tolerations, func(o corev1.Toleration) bool { return o.ToleratesTaint(klog.Logger{}, t, false) }) {
				say(out, "LT-42", codeNotAgain, t.ToString())
			}
		}
	}
	if len(used) == 0 {
		return
	}
	say(out, "LT-21", codeLabelUsed, strings.Join(used, ", "))
	switch fitted, fits := matches(p, s.before), matches(p, s.after); {
	case !fitted || fits:
	case daemon:
		out.Verdict = fleet.VerdictDelete
		say(out, "LT-21", codeDaemonRemoved, out.OwnerName)
	default:
		say(out, "LT-21", codeUnmatched, "")
	}
}

// matches tells whether the pod may be placed on the node as far as labels go. Terms that cannot be read match nothing,
// as for the scheduler.
func matches(p *corev1.Pod, n *corev1.Node) bool {
	ok, err := nodeaffinity.GetRequiredNodeAffinity(p).Match(n)
	return ok && err == nil
}

// asksFor tells whether a pod can only be placed on nodes that have, or lack, some value of a label.
func asksFor(p *corev1.Pod, key string) bool {
	if _, ok := p.Spec.NodeSelector[key]; ok {
		return true
	}
	a := p.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return false
	}
	return slices.ContainsFunc(a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms, func(t corev1.NodeSelectorTerm) bool {
		return slices.ContainsFunc(t.MatchExpressions, func(r corev1.NodeSelectorRequirement) bool { return r.Key == key })
	})
}

// budgets says which budgets guard the pods that taints delete, without asking them.
func (l *look) budgets(ctx context.Context, client kubernetes.Interface, sights []*sight, gone []*corev1.Pod) error {
	var (
		all       []policyv1.PodDisruptionBudget
		evaluated func(string) bool
	)
	err := pages(ctx, client.PolicyV1().RESTClient(), "poddisruptionbudgets", metav1.ListOptions{},
		func() *policyv1.PodDisruptionBudgetList { return &policyv1.PodDisruptionBudgetList{} },
		func(b *policyv1.PodDisruptionBudgetList) { all = append(all, b.Items...) })
	switch {
	case errors.Is(err, fleet.ErrForbidden):
		l.plan.Missing = append(l.plan.Missing, "poddisruptionbudgets")
		l.unseen = true
		evaluated = func(string) bool { return false }
	case err != nil:
		return fmt.Errorf("listing disruption budgets: %w", err)
	}
	var verdicts map[types.UID]fleet.PodBudget
	verdicts, l.plan.Budgets = drain.Budgets(gone, all, evaluated)
	for _, s := range sights {
		for i := range s.plan.Pods {
			p := &s.plan.Pods[i]
			v, ok := verdicts[types.UID(p.UID)]
			if !ok {
				continue
			}
			if p.Budget = &v; len(v.Budgets) > 0 {
				l.guarded = true
				say(p, "LT-40", codeGuarded, strings.Join(v.Budgets, ", "))
			}
		}
	}
	return nil
}
