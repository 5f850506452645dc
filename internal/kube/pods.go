package kube

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Pods lists the pods of a node, in order of namespace and name, from the API server's own cache: an answer that may
// be a moment old costs a busy cluster nothing.
func Pods(ctx context.Context, c kubernetes.Interface, node string) ([]fleet.Pod, error) {
	list, err := c.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{
		FieldSelector:   fields.OneTermEqualSelector("spec.nodeName", node).String(),
		ResourceVersion: "0",
	})
	if err != nil {
		return nil, fmt.Errorf("listing the pods of node %s: %w", node, Error(err))
	}
	pods := make([]fleet.Pod, 0, len(list.Items))
	for i := range list.Items {
		if p := &list.Items[i]; p.Spec.NodeName == node { // a fake server knows no field selector
			pods = append(pods, podOf(p))
		}
	}
	slices.SortFunc(pods, func(a, b fleet.Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return pods, nil
}

func podOf(p *corev1.Pod) fleet.Pod {
	out := fleet.Pod{
		Namespace: p.Namespace, Name: p.Name, UID: string(p.UID),
		Phase: string(p.Status.Phase), Created: utc(p.CreationTimestamp),
	}
	if p.DeletionTimestamp != nil {
		out.Phase = "Terminating"
	}
	if out.Phase == "" {
		out.Phase = string(corev1.PodUnknown)
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			out.Ready = c.Status == corev1.ConditionTrue
		}
	}
	for _, s := range p.Status.ContainerStatuses {
		out.Restarts += s.RestartCount
	}
	if owner := metav1.GetControllerOf(p); owner != nil {
		out.OwnerKind, out.OwnerName = owner.Kind, owner.Name
	}
	out.CPUMilli, out.MemoryBytes = requests(&p.Spec)
	return out
}

// requests follows the scheduler: the containers together, or the largest moment while init containers run, with the
// sidecars (init containers that restart) that are up by then; plus the overhead of the runtime.
func requests(spec *corev1.PodSpec) (cpu, memory int64) {
	for i := range spec.Containers {
		c, m := amounts(spec.Containers[i].Resources.Requests)
		cpu, memory = cpu+c, memory+m
	}
	var sideCPU, sideMemory, peakCPU, peakMemory int64
	for i := range spec.InitContainers {
		init := &spec.InitContainers[i]
		c, m := amounts(init.Resources.Requests)
		if init.RestartPolicy != nil && *init.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			sideCPU, sideMemory = sideCPU+c, sideMemory+m
			c, m = 0, 0
		}
		peakCPU, peakMemory = max(peakCPU, sideCPU+c), max(peakMemory, sideMemory+m)
	}
	cpu, memory = max(cpu+sideCPU, peakCPU), max(memory+sideMemory, peakMemory)
	c, m := amounts(spec.Overhead)
	return cpu + c, memory + m
}

func amounts(l corev1.ResourceList) (cpu, memory int64) {
	return l.Cpu().MilliValue(), l.Memory().Value()
}
