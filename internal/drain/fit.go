package drain

import (
	"cmp"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/resource"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Why a node does not take a pod, as keys of Fit.Refused; a resource that is short is "insufficient_" and its name.
const (
	refusedTaint    = "taint"
	refusedAffinity = "affinity"
	refusedHostPort = "host_port"
	refusedVolume   = "volume"
	refusedShort    = "insufficient_"
)

// ignoredByFit is what the scheduler looks at and the estimate does not.
var ignoredByFit = []string{"inter_pod_affinity", "topology_spread", "preemption", "limits", "priority"}

// room is what is left on a node.
type room struct {
	node  *corev1.Node
	free  map[corev1.ResourceName]int64 // in thousandths
	ports map[string]bool
}

// open tells whether the scheduler would look at a node at all.
func open(n *corev1.Node) bool {
	if n.Spec.Unschedulable || n.DeletionTimestamp != nil {
		return false
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// rooms are the nodes that may take pods, with what is left on them, in the order of their names.
func rooms(r *Reading, leaving map[string]bool) []*room {
	var out []*room
	by := map[string]*room{}
	for i := range r.Nodes {
		n := &r.Nodes[i]
		if leaving[n.Name] || !r.PodsOf[n.Name] || !open(n) {
			continue
		}
		rm := &room{node: n, free: amounts(n.Status.Allocatable), ports: map[string]bool{}}
		by[n.Name] = rm
		out = append(out, rm)
	}
	for i := range r.Pods {
		if p := &r.Pods[i]; by[p.Spec.NodeName] != nil && !ended(p) {
			by[p.Spec.NodeName].take(p, requests(p))
		}
	}
	slices.SortFunc(out, func(a, b *room) int { return cmp.Compare(a.node.Name, b.node.Name) })
	return out
}

func (rm *room) take(p *corev1.Pod, want map[corev1.ResourceName]int64) {
	for name, n := range want {
		rm.free[name] -= n
	}
	for _, port := range hostPorts(p) {
		rm.ports[port] = true
	}
}

// refuses says why the node does not take the pod, "" if it does.
func (rm *room) refuses(p *corev1.Pod, want map[corev1.ResourceName]int64, names []corev1.ResourceName, volumes []*nodeaffinity.NodeSelector) string {
	hard := func(t *corev1.Taint) bool {
		return t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute
	}
	// Comparison operators are an alpha feature: a toleration with one tolerates nothing here.
	if _, not := corev1helpers.FindMatchingUntoleratedTaint(klog.Logger{}, rm.node.Spec.Taints, p.Spec.Tolerations, hard, false); not {
		return refusedTaint
	}
	if ok, err := nodeaffinity.GetRequiredNodeAffinity(p).Match(rm.node); err != nil || !ok {
		return refusedAffinity
	}
	for _, port := range hostPorts(p) {
		if rm.ports[port] {
			return refusedHostPort
		}
	}
	for _, name := range names {
		if want[name] > 0 && want[name] > rm.free[name] {
			return refusedShort + string(name)
		}
	}
	for _, v := range volumes {
		if !v.Match(rm.node) {
			return refusedVolume
		}
	}
	return ""
}

// place finds places for pods, the largest first, each on the first node that takes it.
func place(pods []*corev1.Pod, rms []*room, volumes func(*corev1.Pod) []*nodeaffinity.NodeSelector) map[*corev1.Pod]*fleet.Fit {
	total := map[corev1.ResourceName]float64{}
	for _, rm := range rms {
		for name, n := range amounts(rm.node.Status.Allocatable) {
			total[name] += float64(n)
		}
	}
	type load struct {
		pod   *corev1.Pod
		want  map[corev1.ResourceName]int64
		share float64 // of the resource that it takes most of
	}
	loads := make([]load, 0, len(pods))
	for _, p := range pods {
		l := load{pod: p, want: requests(p)}
		for name, n := range l.want {
			if total[name] > 0 {
				l.share = max(l.share, float64(n)/total[name])
			}
		}
		loads = append(loads, l)
	}
	slices.SortStableFunc(loads, func(a, b load) int { return cmp.Compare(b.share, a.share) })
	out := make(map[*corev1.Pod]*fleet.Fit, len(pods))
	for _, l := range loads {
		fit := &fleet.Fit{Refused: map[string]int{}}
		names := make([]corev1.ResourceName, 0, len(l.want))
		for name := range l.want {
			names = append(names, name)
		}
		slices.Sort(names)
		bound := volumes(l.pod)
		for _, rm := range rms {
			why := rm.refuses(l.pod, l.want, names, bound)
			if why == "" {
				rm.take(l.pod, l.want)
				fit = &fleet.Fit{Node: rm.node.Name}
				break
			}
			fit.Refused[why]++
		}
		out[l.pod] = fit
	}
	return out
}

// requests is what the scheduler reckons with, and one of the node's places for pods.
func requests(p *corev1.Pod) map[corev1.ResourceName]int64 {
	out := amounts(resource.PodRequests(p, resource.PodResourcesOptions{}))
	out[corev1.ResourcePods] = 1000
	return out
}

func amounts(l corev1.ResourceList) map[corev1.ResourceName]int64 {
	out := make(map[corev1.ResourceName]int64, len(l)+1)
	for name, q := range l {
		out[name] = q.MilliValue()
	}
	return out
}

// hostPorts are the ports of the node that a pod takes. Addresses are not told apart: a port that is taken on one is
// taken here on all.
func hostPorts(p *corev1.Pod) []string {
	var out []string
	for i := range p.Spec.Containers {
		for _, port := range p.Spec.Containers[i].Ports {
			if n := port.HostPort; n > 0 {
				proto := port.Protocol
				if proto == "" {
					proto = corev1.ProtocolTCP
				}
				out = append(out, fmt.Sprintf("%s/%d", proto, n))
			}
		}
	}
	return out
}
