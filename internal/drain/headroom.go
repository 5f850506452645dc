package drain

import (
	"math"

	corev1 "k8s.io/api/core/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// load is what pods request of what nodes have, both in thousandths.
type load struct {
	asked, have map[corev1.ResourceName]float64
}

// add counts one more pod.
func (l load) add(p *corev1.Pod) {
	for r, n := range requests(p) {
		l.asked[r] += float64(n)
	}
}

// asked is the load of the nodes that take pods, with the nodes of the batch or without them.
func (b *builder) asked(leaving bool) load {
	out := load{asked: map[corev1.ResourceName]float64{}, have: map[corev1.ResourceName]float64{}}
	counted := map[string]bool{}
	for i := range b.r.Nodes {
		n := &b.r.Nodes[i]
		if !b.r.PodsOf[n.Name] || b.leaving[n.Name] && !leaving || !open(n) {
			continue
		}
		counted[n.Name] = true
		for r, v := range amounts(n.Status.Allocatable) {
			out.have[r] += float64(v)
		}
	}
	for i := range b.r.Pods {
		if p := &b.r.Pods[i]; counted[p.Spec.NodeName] && !ended(p) {
			out.add(p)
		}
	}
	return out
}

// headroom compares two loads in what every node has.
func headroom(before, after load) []fleet.Headroom {
	var out []fleet.Headroom
	for _, r := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourcePods} {
		if before.have[r] > 0 && after.have[r] > 0 {
			out = append(out, fleet.Headroom{Resource: string(r), Before: before.percent(r), After: after.percent(r)})
		}
	}
	return out
}

// percent is rounded up: a node that is full to the last bit is full.
func (l load) percent(r corev1.ResourceName) int { return int(math.Ceil(100 * l.asked[r] / l.have[r])) }
