package main

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// node is a node to be made.
type node struct {
	corev1.Node
	cordoned bool
}

// machine is an instance type.
type machine struct {
	name       string
	cpu, memGi int64
	gpus       int64
	gpuProduct string
}

var (
	standard = machine{name: "m6i.2xlarge", cpu: 8, memGi: 32}
	compute  = machine{name: "c6i.4xlarge", cpu: 16, memGi: 32}
	memory   = machine{name: "r6i.2xlarge", cpu: 8, memGi: 64}
	gpu      = machine{name: "g5.12xlarge", cpu: 48, memGi: 192, gpus: 4, gpuProduct: "NVIDIA-A10G"}
)

// pool is a group of nodes of one kind.
type pool struct {
	name     string
	share    int // of 100 worker nodes
	machine  machine
	capacity string // how it is bought
	taints   []corev1.Taint
}

var pools = []pool{
	{name: "general", share: 55, machine: standard, capacity: "on-demand"},
	{name: "spot", share: 20, machine: compute, capacity: "spot"},
	{name: "memory", share: 15, machine: memory, capacity: "on-demand",
		taints: []corev1.Taint{{Key: "dedicated", Value: "data", Effect: corev1.TaintEffectNoSchedule}}},
	{name: "gpu", share: 10, machine: gpu, capacity: "on-demand",
		taints: []corev1.Taint{{Key: "nvidia.com/gpu", Value: "present", Effect: corev1.TaintEffectNoSchedule}}},
}

var controlPlane = pool{name: "control-plane", machine: standard, capacity: "on-demand",
	taints: []corev1.Taint{{Key: "node-role.kubernetes.io/control-plane", Effect: corev1.TaintEffectNoSchedule}}}

// poolLabel says which pool a node is of.
const poolLabel = "node.kubernetes.io/nodepool"

// release is what a node was installed with: a fleet is always in the middle of
// some upgrade.
type release struct{ kubelet, runtime, kernel, os string }

var releases = []release{
	{"v1.36.3", "containerd://2.2.1", "6.14.0-1018-aws", "Ubuntu 24.04.3 LTS"},
	{"v1.36.3", "containerd://2.2.1", "6.12.53", "Bottlerocket OS 1.51.0"},
	{"v1.35.6", "containerd://2.1.5", "6.14.0-1011-aws", "Ubuntu 24.04.3 LTS"},
	{"v1.34.9", "containerd://1.7.29", "6.8.0-1040-aws", "Ubuntu 22.04.5 LTS"},
}

// nodes makes up n nodes, two of them for the control plane.
func (g *generator) nodes(n int, troubles bool) []*node {
	var all []*node
	for i := range min(2, n-1) {
		all = append(all, g.node(controlPlane, fmt.Sprintf("%s-control-plane-%d", g.prefix, i+1), releases[0]))
	}
	// Every pool has its share of every hundred; in a small cluster each has a
	// node at least.
	var plan []pool
	for _, p := range pools {
		for range max(1, (n*p.share+50)/100) {
			plan = append(plan, p)
		}
	}
	g.Shuffle(len(plan), func(i, j int) { plan[i], plan[j] = plan[j], plan[i] })
	workers := n - len(all)
	for i := range workers {
		r := releases[0]
		switch x := g.IntN(100); {
		case x < 8:
			r = releases[3]
		case x < 30:
			r = releases[2]
		case x < 50:
			r = releases[1]
		}
		all = append(all, g.node(plan[i%len(plan)], "", r))
	}
	if troubles {
		g.trouble(all[n-workers:])
	}
	return all
}

// trouble gives some of the nodes what nodes have. Even a small cluster gets one
// of each kind.
func (g *generator) trouble(workers []*node) {
	if len(workers) < 8 {
		return
	}
	order := g.Perm(len(workers))
	take := func(permille int) []*node {
		n := min(max(1, len(workers)*permille/1000), len(order))
		var some []*node
		for _, i := range order[:n] {
			some = append(some, workers[i])
		}
		order = order[n:]
		return some
	}
	for _, n := range take(40) {
		n.cordoned = true
	}
	for _, n := range take(15) {
		g.setReady(n, corev1.ConditionFalse, "KubeletNotReady", pick(g, []string{
			"container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: cni plugin not initialized",
			"PLEG is not healthy: pleg was last seen active 3m12.084s ago; threshold is 3m0s",
			"container runtime is down",
		}))
	}
	for _, n := range take(10) {
		n.Labels[offlineLabel] = "true"
		gone := metav1.NewTime(time.Now().Add(-time.Duration(1+g.IntN(180)) * time.Minute).Truncate(time.Second))
		for i := range n.Status.Conditions {
			cond := &n.Status.Conditions[i]
			if cond.Type != "NetworkUnavailable" {
				cond.Status, cond.Reason, cond.Message = corev1.ConditionUnknown, "NodeStatusUnknown", "Kubelet stopped posting node status."
				cond.LastTransitionTime, cond.LastHeartbeatTime = gone, metav1.NewTime(gone.Add(-50*time.Second))
			}
		}
	}
	for _, n := range take(10) {
		for i := range n.Status.Conditions {
			if cond := &n.Status.Conditions[i]; cond.Type == corev1.NodeDiskPressure {
				cond.Status, cond.Reason, cond.Message = corev1.ConditionTrue, "KubeletHasDiskPressure", "kubelet has disk pressure"
			}
		}
	}
	for _, n := range take(30) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{
			Key: "example.com/maintenance", Value: pick(g, []string{"kernel", "firmware", "network"}), Effect: corev1.TaintEffectPreferNoSchedule,
		})
	}
}

func (g *generator) setReady(n *node, status corev1.ConditionStatus, reason, message string) {
	for i := range n.Status.Conditions {
		if cond := &n.Status.Conditions[i]; cond.Type == corev1.NodeReady {
			cond.Status, cond.Reason, cond.Message = status, reason, message
			cond.LastTransitionTime = metav1.NewTime(time.Now().Add(-time.Duration(1+g.IntN(90)) * time.Minute).Truncate(time.Second))
		}
	}
}

func (g *generator) node(p pool, name string, r release) *node {
	for name == "" || g.taken[name] {
		name = fmt.Sprintf("%s-%s-%s", g.prefix, p.name, g.id(5))
	}
	g.taken[name] = true
	i := g.made
	g.made++
	zone := g.region + string("abc"[i%3])
	m := p.machine

	n := &node{Node: corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: name,
			Labels: map[string]string{
				corev1.LabelHostname:           name,
				corev1.LabelOSStable:           "linux",
				corev1.LabelArchStable:         "amd64",
				"beta.kubernetes.io/os":        "linux", // the controllers would add the two
				"beta.kubernetes.io/arch":      "amd64",
				corev1.LabelTopologyRegion:     g.region,
				corev1.LabelTopologyZone:       zone,
				corev1.LabelInstanceTypeStable: m.name,
				poolLabel:                      p.name,
				"example.com/capacity-type":    p.capacity,
			},
			Annotations: map[string]string{
				"node.alpha.kubernetes.io/ttl":                           "0",
				"volumes.kubernetes.io/controller-managed-attach-detach": "true",
			},
		},
		Spec: corev1.NodeSpec{
			PodCIDR:    fmt.Sprintf("10.%d.%d.0/24", 128+i/256%128, i%256),
			PodCIDRs:   []string{fmt.Sprintf("10.%d.%d.0/24", 128+i/256%128, i%256)},
			ProviderID: "aws:///" + zone + "/i-0" + g.hex(16),
			Taints:     append([]corev1.Taint(nil), p.taints...),
		},
	}}
	if p.name == controlPlane.name {
		n.Labels["node-role.kubernetes.io/control-plane"] = ""
	}
	if m.gpus > 0 {
		n.Labels["nvidia.com/gpu.present"] = "true"
		n.Labels["nvidia.com/gpu.product"] = m.gpuProduct
		n.Labels["nvidia.com/gpu.count"] = fmt.Sprint(m.gpus)
	}
	n.Status = corev1.NodeStatus{
		Capacity:    resources(m.cpu*1000, m.memGi<<20-700_000, 200<<20, m.gpus),
		Allocatable: resources(m.cpu*1000-90, m.memGi<<20-1_900_000, 180<<20, m.gpus),
		Phase:       corev1.NodeRunning,
		Conditions:  g.conditions(),
		Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("10.%d.%d.%d", i%3, i/3/250, 4+i/3%250)},
			{Type: corev1.NodeInternalDNS, Address: name + "." + g.region + ".compute.internal"},
			{Type: corev1.NodeHostName, Address: name},
		},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: 10250}},
		NodeInfo: corev1.NodeSystemInfo{
			MachineID:               g.hex(32),
			SystemUUID:              fmt.Sprintf("ec2%s-%s-%s-%s-%s", g.hex(5), g.hex(4), g.hex(4), g.hex(4), g.hex(12)),
			BootID:                  fmt.Sprintf("%s-%s-%s-%s-%s", g.hex(8), g.hex(4), g.hex(4), g.hex(4), g.hex(12)),
			KernelVersion:           r.kernel,
			OSImage:                 r.os,
			ContainerRuntimeVersion: r.runtime,
			KubeletVersion:          r.kubelet,
			OperatingSystem:         "linux",
			Architecture:            "amd64",
		},
		Images: g.pulled(38 + g.IntN(5)),
	}
	return n
}

func resources(milliCPU, memKi, diskKi, gpus int64) corev1.ResourceList {
	l := corev1.ResourceList{
		corev1.ResourceCPU:              *resource.NewMilliQuantity(milliCPU, resource.DecimalSI),
		corev1.ResourceMemory:           *resource.NewQuantity(memKi<<10, resource.BinarySI),
		corev1.ResourceEphemeralStorage: *resource.NewQuantity(diskKi<<10, resource.BinarySI),
		corev1.ResourcePods:             *resource.NewQuantity(110, resource.DecimalSI),
		"hugepages-2Mi":                 *resource.NewQuantity(0, resource.DecimalSI),
	}
	if gpus > 0 {
		l["nvidia.com/gpu"] = *resource.NewQuantity(gpus, resource.DecimalSI)
	}
	return l
}

// conditions are those of a healthy node that has been up for some days.
func (g *generator) conditions() []corev1.NodeCondition {
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	up := metav1.NewTime(now.Add(-time.Duration(1+g.IntN(60*24)) * time.Hour))
	cond := func(t corev1.NodeConditionType, status corev1.ConditionStatus, reason, message string) corev1.NodeCondition {
		return corev1.NodeCondition{Type: t, Status: status, Reason: reason, Message: message, LastHeartbeatTime: now, LastTransitionTime: up}
	}
	return []corev1.NodeCondition{
		cond(corev1.NodeMemoryPressure, corev1.ConditionFalse, "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
		cond(corev1.NodeDiskPressure, corev1.ConditionFalse, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
		cond(corev1.NodePIDPressure, corev1.ConditionFalse, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
		cond(corev1.NodeNetworkUnavailable, corev1.ConditionFalse, "CiliumIsUp", "Cilium is running on this node"),
		cond(corev1.NodeReady, corev1.ConditionTrue, "KubeletReady", "kubelet is posting ready status"),
	}
}

// makeImages makes up the images that the cluster's workloads use.
func (g *generator) makeImages(n int) []corev1.ContainerImage {
	images := make([]corev1.ContainerImage, n)
	for i := range images {
		name := "registry.example.com/" + pick(g, namespaces) + "/" + pick(g, services)
		images[i] = corev1.ContainerImage{
			Names: []string{
				name + "@sha256:" + g.hex(64),
				fmt.Sprintf("%s:v%d.%d.%d", name, 1+g.IntN(4), g.IntN(30), g.IntN(12)),
			},
			SizeBytes: int64(8_000_000 + g.IntN(600_000_000)),
		}
	}
	return images
}

// pulled are n of the cluster's images, as a kubelet reports them: each node has
// others, in the order of their size.
func (g *generator) pulled(n int) []corev1.ContainerImage {
	start := g.IntN(len(g.images))
	images := make([]corev1.ContainerImage, n)
	for i := range images {
		images[i] = g.images[(start+i)%len(g.images)]
	}
	return images
}
