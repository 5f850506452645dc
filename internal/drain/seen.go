package drain

import (
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// What the watches of a drain show, and what it tells about that.

func (d *drain) podListener() listener[corev1.Pod] {
	return listener[corev1.Pod]{
		replace: func(pods []corev1.Pod) { d.send(func() { d.replacePods(pods) }) },
		put:     func(p *corev1.Pod) { d.send(func() { d.putPod(p) }) },
		remove:  func(p *corev1.Pod) { d.send(func() { d.removePod(p) }) },
		lost: func(err error) {
			d.send(func() {
				d.live = false
				d.log.Warn("watching the pods of a node", "node", d.job.Node.String(), "err", err)
			})
		},
	}
}

func (d *drain) nodeListener() listener[corev1.Node] {
	return listener[corev1.Node]{
		replace: func(nodes []corev1.Node) {
			d.send(func() {
				if len(nodes) == 0 {
					d.nodeGone()
					return
				}
				d.putNode(&nodes[0])
			})
		},
		put:    func(n *corev1.Node) { d.send(func() { d.putNode(n) }) },
		remove: func(n *corev1.Node) { d.send(d.nodeGone) },
		lost: func(err error) {
			d.send(func() { d.log.Warn("watching a node", "node", d.job.Node.String(), "err", err) })
		},
	}
}

func (d *drain) nodeGone() {
	d.end(fleet.DrainGone, "", fmt.Errorf("the node was deleted: %w", fleet.ErrNotFound))
}

func (d *drain) putNode(n *corev1.Node) {
	switch {
	case string(n.UID) != d.job.UID:
		d.end(fleet.DrainReplaced, "", fmt.Errorf("another node has the name: %w", fleet.ErrConflict))
	case !n.Spec.Unschedulable:
		d.end(fleet.DrainUncordoned, "", fmt.Errorf("somebody uncordoned the node: %w", fleet.ErrConflict))
	default:
		d.node = n
	}
}

func (d *drain) budgetListener() listener[policyv1.PodDisruptionBudget] {
	return listener[policyv1.PodDisruptionBudget]{
		replace: func(all []policyv1.PodDisruptionBudget) {
			d.send(func() {
				d.match = newMatcher(all)
				d.budgetsKnown, d.budgetsDenied = true, false
				d.budgetsMoved()
			})
		},
		put:    func(b *policyv1.PodDisruptionBudget) { d.send(func() { d.match.put(b); d.budgetsMoved() }) },
		remove: func(b *policyv1.PodDisruptionBudget) { d.send(func() { d.match.remove(b); d.budgetsMoved() }) },
		lost: func(err error) {
			d.send(func() {
				if errors.Is(err, fleet.ErrForbidden) {
					d.budgetsKnown, d.budgetsDenied = true, true
				}
				d.log.Warn("watching disruption budgets", "node", d.job.Node.String(), "err", err)
			})
		},
	}
}

// budgetsMoved has those pods try again now whose budget may let them (DR-34): as many as it says, for the others would
// only be refused.
func (d *drain) budgetsMoved() {
	woken := map[string]int32{}
	for _, p := range d.sorted() {
		if p.state != fleet.PodBlockedByPDB && p.state != fleet.PodBlockedByPDBs {
			continue
		}
		if d.mayGo(p.obj, woken) {
			p.retry, p.patience = time.Time{}, 0
		}
	}
}

// mayGo tells whether the budgets, as we know them, let a pod go, with those that were woken already.
func (d *drain) mayGo(p *corev1.Pod, woken map[string]int32) bool {
	found := d.match.of(p)
	if notGuarded(p) || len(found) == 0 {
		return true
	}
	if len(found) > 1 {
		return false
	}
	b := found[0]
	if !ready(p) && lets(b) {
		return true
	}
	allowance, _, _ := standing(b)
	key := b.Namespace + "/" + b.Name
	if allowance != fleet.AllowNow || woken[key] >= b.Status.DisruptionsAllowed {
		return false
	}
	woken[key]++
	return true
}

// replacePods takes in a whole list. What is not in it is gone.
func (d *drain) replacePods(pods []corev1.Pod) {
	d.live = true
	there := make(map[types.UID]bool, len(pods))
	for i := range pods {
		there[pods[i].UID] = true
	}
	for _, p := range d.sorted() {
		if !there[p.obj.UID] {
			d.removePod(p.obj)
		}
	}
	for i := range pods {
		d.putPod(&pods[i])
	}
}

func (d *drain) putPod(o *corev1.Pod) {
	if o.Spec.NodeName != d.job.Node.Name {
		d.removePod(o)
		return
	}
	p := d.pods[o.UID]
	if p == nil {
		p = &pod{late: d.began}
		p.at = fleet.PodProgress{Namespace: o.Namespace, Name: o.Name, UID: string(o.UID)}
		if owner := metav1.GetControllerOf(o); owner != nil {
			p.at.OwnerKind, p.at.OwnerName = owner.Kind, owner.Name
		}
		d.pods[o.UID] = p
	}
	p.obj = o
	d.look(p)
	if p.state == fleet.PodBlockedByPDB && d.mayGo(o, map[string]int32{}) && !ready(o) {
		p.retry = time.Time{} // it is not ready any more, and its budget does not mind then
	}
}

// removePod is for a pod that is gone by uid, or that is on another node: a name alone says nothing.
func (d *drain) removePod(o *corev1.Pod) {
	p := d.pods[o.UID]
	if p == nil {
		return
	}
	d.set(p, fleet.PodGone, nil)
	d.gone = append(d.gone, p.at)
	delete(d.pods, o.UID)
}

// look classifies a pod anew and moves it where that leads.
func (d *drain) look(p *pod) {
	o := p.obj
	if key, ok := daemonSetOf(o); ok && (d.owners[key] == nil || d.owners[key].found == Unknown) {
		if p.state == "" {
			d.set(p, fleet.PodPending, nil)
		}
		return
	}
	p.class = Classify(o, d.job.Options.Policy, d.known(o), time.Now())
	p.at.Reasons = p.class.Reasons
	switch p.class.Verdict {
	case fleet.VerdictIgnore:
		d.set(p, fleet.PodIgnored, nil)
	case fleet.VerdictBlock:
		if p.state != fleet.PodTerminating { // accepted already; the watch has not caught up
			d.set(p, fleet.PodBlocked, nil)
		}
	case fleet.VerdictWait:
		if o.DeletionTimestamp == nil {
			d.set(p, fleet.PodWaiting, nil)
			return
		}
		until := o.DeletionTimestamp.UTC()
		if p.state != fleet.PodOverdue {
			d.set(p, fleet.PodTerminating, func(at *fleet.PodProgress) { at.Until = &until })
		}
	case fleet.VerdictEvict:
		switch p.state {
		case "", fleet.PodPending, fleet.PodIgnored, fleet.PodBlocked, fleet.PodWaiting:
			if owner := metav1.GetControllerOf(o); p.late && owner != nil && d.returns[owner.UID] && toleratesCordon(o) {
				d.set(p, fleet.PodSkipped, func(at *fleet.PodProgress) { at.Message = "it keeps returning: it tolerates the cordon" })
				return
			}
			d.set(p, fleet.PodQueued, nil)
		default:
		}
	default: // what only taints do
	}
}

// set moves a pod and tells of it, if it moved.
func (d *drain) set(p *pod, s fleet.PodState, more func(*fleet.PodProgress)) {
	before := p.at
	p.at.State, p.at.Message, p.at.Until, p.at.Budgets, p.at.Needed, p.at.Healthy = s, "", nil, nil, 0, 0
	if more != nil {
		more(&p.at)
	}
	if s == fleet.PodEvicting || s == fleet.PodBlockedByPDB || s == fleet.PodBlockedByPDBs {
		for _, b := range d.match.of(p.obj) {
			p.at.Budgets = append(p.at.Budgets, b.Name)
		}
	}
	p.state = s
	if before.State == s && before.Message == p.at.Message && before.Attempt == p.at.Attempt && sameTime(before.Until, p.at.Until) {
		return
	}
	at := p.at
	at.Reasons = slices.Clone(at.Reasons)
	d.tell(fleet.DrainEvent{Pod: &at})
}

func sameTime(a, b *time.Time) bool {
	return a == b || a != nil && b != nil && a.Equal(*b)
}

// enter moves the node and tells of it, if it moved.
func (d *drain) enter(s fleet.DrainState, message string) {
	if d.state == s && d.message == message {
		return
	}
	d.state, d.message = s, message
	d.tell(fleet.DrainEvent{NodeState: s, Message: message})
}

func (d *drain) tell(e fleet.DrainEvent) {
	d.seq++
	if e.NodeState == fleet.DrainDone || e.NodeState == fleet.DrainPartial {
		e.Volumes = d.left()
	}
	e.Seq, e.At, e.NodeRef, e.NodeUID = d.seq, time.Now().UTC(), d.job.Node, d.job.UID
	if d.job.Events != nil {
		d.job.Events(e)
	}
}

func (d *drain) result() Result {
	out := Result{State: d.state, Cordoned: d.cordoned, Evicted: d.evicted, Pods: slices.Clone(d.gone), Message: d.message}
	for _, p := range d.sorted() {
		out.Pods = append(out.Pods, p.at)
	}
	if out.State == fleet.DrainDone || out.State == fleet.DrainPartial {
		out.Volumes = d.left()
	}
	return out
}
