package drain

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// replacing is the wait for what was evicted to be ready elsewhere (DR-53). It counts pods itself: the number in the
// status of a controller may be of the time before the eviction. It watches namespaces, each kind for itself, so that
// it costs the same for one pod of a workload as for a hundred.
type replacing struct {
	pods   map[types.UID]replica
	makers map[types.UID]maker
	behind map[string]bool // watches that have not shown everything
	denied bool            // and something will not be shown
}

// replica is as much of a pod as matters here.
type replica struct {
	of             types.UID // its controller
	ready, pending bool
}

// maker is a controller that makes pods again, or one that stands above it.
type maker struct {
	kind    string
	key     name
	above   types.UID // its own controller, "" for none
	desired int32
}

// replaced tells whether the wait for replacements is over.
func (d *drain) replaced() bool {
	if !d.job.Options.WaitReplacements || len(d.makers) == 0 {
		return true
	}
	if d.replace == nil {
		d.startReplace()
	}
	r := d.replace
	switch {
	case r.denied:
		d.drained("whether replacements are ready could not be read")
		return false
	case len(r.behind) > 0:
		d.enter(fleet.DrainReplacing, "")
		return false
	}
	missing := r.missing(d.makers)
	if len(missing) == 0 {
		return true
	}
	d.enter(fleet.DrainReplacing, phrase(missing))
	return false
}

// missing says of which workloads there are fewer ready pods than there should be, or some that are not placed yet.
func (r *replacing) missing(evicted map[types.UID]name) []string {
	wanted := map[types.UID]bool{}
	for uid := range evicted {
		if top, ok := r.top(uid); ok { // else it is gone, and makes nothing again
			wanted[top] = true
		}
	}
	ready, pending := map[types.UID]int32{}, map[types.UID]int32{}
	for _, p := range r.pods {
		top, ok := r.top(p.of)
		switch {
		case !ok:
		case p.ready:
			ready[top]++
		case p.pending:
			pending[top]++
		}
	}
	var out []string
	for uid := range wanted {
		m := r.makers[uid]
		if ready[uid] >= m.desired && pending[uid] == 0 {
			continue
		}
		s := fmt.Sprintf("%s %s: %d of %d ready", m.kind, m.key, ready[uid], m.desired)
		if n := pending[uid]; n > 0 {
			s += fmt.Sprintf(", %d pending", n)
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}

// top is the outermost of those that we know among the controllers of pods.
func (r *replacing) top(uid types.UID) (types.UID, bool) {
	m, ok := r.makers[uid]
	if !ok {
		return "", false
	}
	if _, known := r.makers[m.above]; known {
		return m.above, true // no further: a Deployment is the last
	}
	return uid, true
}

// missing says what was waited for in vain.
func (d *drain) missing() string {
	if r := d.replace; r != nil && len(r.behind) == 0 {
		return "not ready elsewhere: " + phrase(r.missing(d.makers))
	}
	return "whether replacements are ready could not be read"
}

// mostNamed is how many workloads a message names.
const mostNamed = 3

func phrase(what []string) string {
	s := strings.Join(what[:min(len(what), mostNamed)], "; ")
	if n := len(what) - mostNamed; n > 0 {
		s += fmt.Sprintf("; and %d more", n)
	}
	return kube.Plain(s)
}

// startReplace follows the pods and their controllers in the namespaces of what was evicted. It begins when the pods
// are gone, so that none of them is counted.
func (d *drain) startReplace() {
	d.replace = &replacing{pods: map[types.UID]replica{}, makers: map[types.UID]maker{}, behind: map[string]bool{}}
	kinds := map[name]bool{} // kinds by namespace
	for _, m := range d.makers {
		kinds[m] = true
	}
	namespaces := map[string]bool{}
	for m := range kinds {
		switch m.Name {
		case "ReplicaSet":
			sets, deployments := replicaSetsOf(d.job.Watch), deploymentsOf(d.job.Watch)
			sets.namespace, deployments.namespace = m.Namespace, m.Namespace
			followMakers(d, sets, func(s *appsv1.ReplicaSet) *int32 { return s.Spec.Replicas })
			followMakers(d, deployments, func(s *appsv1.Deployment) *int32 { return s.Spec.Replicas })
		case "StatefulSet":
			sets := statefulSetsOf(d.job.Watch)
			sets.namespace = m.Namespace
			followMakers(d, sets, func(s *appsv1.StatefulSet) *int32 { return s.Spec.Replicas })
		default:
			continue // how many pods others want is theirs to know
		}
		namespaces[m.Namespace] = true
	}
	for namespace := range namespaces {
		d.followReplicas(namespace)
	}
}

// followReplicas keeps the pods of a namespace.
func (d *drain) followReplicas(namespace string) {
	pods := podsOf(d.job.Watch, "")
	pods.namespace = namespace
	mine := map[types.UID]bool{} // of this watch: a list replaces its own
	put := func(p *corev1.Pod) {
		owner := metav1.GetControllerOf(p)
		if owner == nil || ended(p) || p.DeletionTimestamp != nil {
			delete(d.replace.pods, p.UID)
			return
		}
		mine[p.UID] = true
		d.replace.pods[p.UID] = replica{of: owner.UID, ready: ready(p), pending: p.Status.Phase == corev1.PodPending}
	}
	followPart(d, pods, part[corev1.Pod]{
		clear: func() {
			for uid := range mine {
				delete(d.replace.pods, uid)
			}
			clear(mine)
		},
		put:    put,
		remove: func(p *corev1.Pod) { delete(d.replace.pods, p.UID); delete(mine, p.UID) },
	})
}

// followMakers keeps the controllers of one kind in a namespace.
func followMakers[T any, P interface {
	*T
	metav1.Object
}](d *drain, k kind[T], replicas func(*T) *int32) {
	kinds := map[string]string{"replicasets": "ReplicaSet", "deployments": "Deployment", "statefulsets": "StatefulSet"}
	mine := map[types.UID]bool{}
	followPart[T, P](d, k, part[T]{
		clear: func() {
			for uid := range mine {
				delete(d.replace.makers, uid)
			}
			clear(mine)
		},
		put: func(t *T) {
			o := P(t)
			m := maker{kind: kinds[k.resource], key: name{Namespace: o.GetNamespace(), Name: o.GetName()}, desired: count(replicas(t))}
			if above := metav1.GetControllerOf(o); above != nil {
				m.above = above.UID
			}
			mine[o.GetUID()] = true
			d.replace.makers[o.GetUID()] = m
		},
		remove: func(t *T) { delete(d.replace.makers, P(t).GetUID()); delete(mine, P(t).GetUID()) },
	})
}

// part is what becomes of one watch; it is called by the loop.
type part[T any] struct {
	clear       func()
	put, remove func(*T)
}

func followPart[T any, P interface {
	*T
	metav1.Object
}](d *drain, k kind[T], do part[T]) {
	key := cmp.Or(k.namespace, "-") + "/" + k.resource
	d.replace.behind[key] = true
	d.wg.Go(func() {
		follow[T, P](d.work, k, listener[T]{
			replace: func(all []T) {
				d.send(func() {
					do.clear()
					for i := range all {
						do.put(&all[i])
					}
					delete(d.replace.behind, key)
				})
			},
			put:    func(t *T) { d.send(func() { do.put(t) }) },
			remove: func(t *T) { d.send(func() { do.remove(t) }) },
			lost: func(err error) {
				d.send(func() {
					d.replace.behind[key] = true
					d.replace.denied = d.replace.denied || errors.Is(err, fleet.ErrForbidden)
					d.log.Warn("watching for replacements", "node", d.job.Node.String(), "resource", k.resource, "err", err)
				})
			},
		})
	})
}
