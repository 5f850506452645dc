package kubetest

import (
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	// TestLabel is on every node a test makes; the pods of the test's own
	// Deployments go to the nodes with the same value.
	TestLabel = "kubetest/test"
	// OfflineLabel on a node, with any value, makes KWOK leave a node alone: its kubelet
	// is gone, the controllers find it unreachable after a while, and pods that
	// are deleted on it stay Terminating.
	OfflineLabel = "devcluster/offline"
	// ReadyDelay is a pod annotation: how long a pod takes to be ready ("5s").
	ReadyDelay = "pod-ready.stage.kwok.x-k8s.io/delay"
	// DeleteDelay is a pod annotation: how long a pod takes to end, at most its
	// grace period ("45s", whole seconds). Without it pods end at once.
	DeleteDelay = "pod-delete.stage.kwok.x-k8s.io/delay"
	// CompleteDelay is a pod annotation: how long the pod of a Job runs ("5s").
	CompleteDelay = "pod-complete.stage.kwok.x-k8s.io/delay"
)

var (
	counter  atomic.Int64
	notInDNS = regexp.MustCompile(`[^a-z0-9]+`)
)

// Name returns a name that no other object of this test binary has, with the
// name of the test in it. It is good for nodes, namespaces and label values.
func Name(tb testing.TB, prefix string) string {
	tb.Helper()
	middle := strings.Trim(notInDNS.ReplaceAllString(strings.ToLower(tb.Name()), "-"), "-")
	middle = strings.Trim(strings.TrimPrefix(middle, "test"), "-")
	if len(middle) > 36 {
		middle = strings.Trim(middle[:36], "-")
	}
	return fmt.Sprintf("%s-%s-%d", prefix, middle, counter.Add(1))
}

// testID is the value of TestLabel for a test.
func testID(tb testing.TB) string {
	tb.Helper()
	h := fnv.New64a()
	_, _ = h.Write([]byte(tb.Name())) // cannot fail
	return fmt.Sprintf("%x", h.Sum64())
}

// NodeSpec describes a node. Its zero value is a healthy one with 16 CPUs and
// 64Gi of memory.
type NodeSpec struct {
	// Name is unique by default, see [Name].
	Name          string
	Labels        map[string]string
	Annotations   map[string]string
	Taints        []corev1.Taint
	Unschedulable bool
	// Zone is the value of topology.kubernetes.io/zone.
	Zone string
	// CPU, Memory and Pods change the capacity: "4", "8Gi", "10".
	CPU, Memory, Pods string
	// NotReady makes a node whose kubelet says that it is not ready.
	NotReady bool
	// Mutate changes what is sent at last.
	Mutate func(*corev1.Node)
}

// Node makes a node, waits until it is as asked, and deletes it when the test
// ends.
func (c *Cluster) Node(tb testing.TB, spec NodeSpec) *corev1.Node {
	tb.Helper()
	node, err := c.node(tb, spec)
	if err != nil {
		tb.Fatalf("kubetest: making node: %v", err)
	}
	return node
}

// Nodes makes n nodes at once; spec may be nil.
func (c *Cluster) Nodes(tb testing.TB, n int, spec func(i int) NodeSpec) []*corev1.Node {
	tb.Helper()
	var (
		nodes = make([]*corev1.Node, n)
		errs  = make([]error, n)
		slots = make(chan struct{}, 16)
		wg    sync.WaitGroup
	)
	for i := range n {
		var s NodeSpec
		if spec != nil {
			s = spec(i)
		}
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			nodes[i], errs[i] = c.node(tb, s)
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			tb.Fatalf("kubetest: making nodes: %v", err)
		}
	}
	return nodes
}

func (c *Cluster) node(tb testing.TB, spec NodeSpec) (*corev1.Node, error) {
	tb.Helper()
	if spec.Name == "" {
		spec.Name = Name(tb, "n")
	}
	or := func(s, other string) string {
		if s == "" {
			return other
		}
		return s
	}
	labels := map[string]string{
		corev1.LabelHostname:   spec.Name,
		corev1.LabelOSStable:   "linux",
		corev1.LabelArchStable: "amd64",
		TestLabel:              testID(tb),
	}
	if spec.Zone != "" {
		labels[corev1.LabelTopologyZone] = spec.Zone
	}
	maps.Copy(labels, spec.Labels)
	capacity := corev1.ResourceList{
		corev1.ResourceCPU:              resource.MustParse(or(spec.CPU, "16")),
		corev1.ResourceMemory:           resource.MustParse(or(spec.Memory, "64Gi")),
		corev1.ResourcePods:             resource.MustParse(or(spec.Pods, "110")),
		corev1.ResourceEphemeralStorage: resource.MustParse("100Gi"),
	}
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: spec.Name, Labels: labels, Annotations: spec.Annotations},
		Spec:       corev1.NodeSpec{Taints: spec.Taints, Unschedulable: spec.Unschedulable},
		Status:     corev1.NodeStatus{Capacity: capacity, Allocatable: capacity},
	}
	if spec.NotReady {
		now := metav1.Now()
		node.Status.Conditions = []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionFalse,
			Reason: "KubeletNotReady", Message: "container runtime network not ready: cni plugin not initialized",
			LastHeartbeatTime: now, LastTransitionTime: now,
		}}
	}
	if spec.Mutate != nil {
		spec.Mutate(node)
	}
	if _, err := c.client.CoreV1().Nodes().Create(tb.Context(), node, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	cleanup(tb, c.client.CoreV1().Nodes().Delete, node.Name)
	if _, offline := node.Labels[OfflineLabel]; offline {
		return c.client.CoreV1().Nodes().Get(tb.Context(), node.Name, metav1.GetOptions{})
	}
	want := corev1.ConditionTrue
	if spec.NotReady {
		want = corev1.ConditionFalse
	}
	// The node controller taints a new node until it has seen it ready, and one
	// that is not ready for good; a node is as asked when it is done with that.
	return wait(tb.Context(), nodes(c), node.Name, func(n *corev1.Node) bool {
		return n != nil && readyIs(n, want) && tainted(n, corev1.TaintNodeNotReady) == spec.NotReady &&
			tainted(n, corev1.TaintNodeUnschedulable) == n.Spec.Unschedulable
	})
}

func readyIs(n *corev1.Node, status corev1.ConditionStatus) bool {
	for _, cond := range n.Status.Conditions {
		if cond.Type == corev1.NodeReady {
			return cond.Status == status
		}
	}
	return false
}

func tainted(n *corev1.Node, key string) bool {
	for _, taint := range n.Spec.Taints {
		if taint.Key == key {
			return true
		}
	}
	return false
}

// Namespace makes a namespace and deletes it, and the pods in it, when the test
// ends.
func (c *Cluster) Namespace(tb testing.TB) string {
	tb.Helper()
	name := Name(tb, "ns")
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := c.client.CoreV1().Namespaces().Create(tb.Context(), ns, metav1.CreateOptions{}); err != nil {
		tb.Fatalf("kubetest: making namespace: %v", err)
	}
	// At once, for their nodes are deleted next and could not do it any more.
	cleanup(tb, func(ctx context.Context, name string, _ metav1.DeleteOptions) error {
		return c.client.CoreV1().Pods(name).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}, metav1.ListOptions{})
	}, name)
	cleanup(tb, c.client.CoreV1().Namespaces().Delete, name)
	return name
}

// PodSpec describes a pod. Namespace is the only thing that must be set.
type PodSpec struct {
	Namespace string
	// Name is unique by default, see [Name].
	Name        string
	Labels      map[string]string
	Annotations map[string]string
	// Node binds the pod; empty leaves it to the scheduler, who puts it on one
	// of the test's nodes.
	Node string
	// Grace is the termination grace period in seconds, 30 by default.
	Grace *int64
	// EmptyDir gives the pod local data.
	EmptyDir bool
	// CPU and Memory are requested: "100m", "64Mi".
	CPU, Memory string
	// Pending makes a pod that never starts.
	Pending bool
	// Mutate changes what is sent at last.
	Mutate func(*corev1.Pod)
}

// Pod makes a pod that nobody manages and waits until it runs.
func (c *Cluster) Pod(tb testing.TB, spec PodSpec) *corev1.Pod {
	tb.Helper()
	if spec.Name == "" {
		spec.Name = Name(tb, "p")
	}
	template := template(tb, spec)
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.Name, pod.Namespace = spec.Name, spec.Namespace
	if spec.Node != "" {
		pod.Spec.NodeName, pod.Spec.NodeSelector = spec.Node, nil
	}
	if spec.Mutate != nil {
		spec.Mutate(pod)
	}
	pod, err := c.client.CoreV1().Pods(spec.Namespace).Create(tb.Context(), pod, metav1.CreateOptions{})
	if err == nil && !spec.Pending {
		pod, err = wait(tb.Context(), pods(c, spec.Namespace), spec.Name, func(p *corev1.Pod) bool {
			return p != nil && p.Status.Phase == corev1.PodRunning
		})
	}
	if err != nil {
		tb.Fatalf("kubetest: making pod: %v", err)
	}
	return pod
}

// template is the pod template of everything that has pods.
func template(tb testing.TB, spec PodSpec) corev1.PodTemplateSpec {
	tb.Helper()
	annotations := maps.Clone(spec.Annotations)
	if spec.Pending {
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[ReadyDelay] = "87600h"
	}
	requests := corev1.ResourceList{}
	if spec.CPU != "" {
		requests[corev1.ResourceCPU] = resource.MustParse(spec.CPU)
	}
	if spec.Memory != "" {
		requests[corev1.ResourceMemory] = resource.MustParse(spec.Memory)
	}
	pod := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: spec.Labels, Annotations: annotations},
		Spec: corev1.PodSpec{
			NodeSelector:                  map[string]string{TestLabel: testID(tb)},
			TerminationGracePeriodSeconds: spec.Grace,
			Containers: []corev1.Container{{
				Name: "main", Image: "example.com/app:1",
				Resources: corev1.ResourceRequirements{Requests: requests},
			}},
		},
	}
	if spec.EmptyDir {
		pod.Spec.Volumes = []corev1.Volume{{
			Name:         "scratch",
			VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}},
		}}
	}
	return pod
}

// Deployment makes a Deployment whose pods have the label app=name and go to
// the test's nodes, and waits until all of them are available. The spec's
// Namespace must be set; its Name is the Deployment's; its Node and its Mutate
// are not used.
func (c *Cluster) Deployment(tb testing.TB, replicas int32, spec PodSpec, mutate ...func(*appsv1.Deployment)) *appsv1.Deployment {
	tb.Helper()
	spec = withApp(tb, spec)
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: spec.Name, Namespace: spec.Namespace},
		Spec:       appsv1.DeploymentSpec{Replicas: &replicas, Selector: appSelector(spec.Name), Template: template(tb, spec)},
	}
	for _, f := range mutate {
		f(d)
	}
	d, err := c.client.AppsV1().Deployments(spec.Namespace).Create(tb.Context(), d, metav1.CreateOptions{})
	if err == nil && !spec.Pending {
		d, err = wait(tb.Context(), deployments(c, spec.Namespace), spec.Name, func(d *appsv1.Deployment) bool {
			return d != nil && d.Status.ObservedGeneration >= d.Generation && d.Status.AvailableReplicas == *d.Spec.Replicas
		})
	}
	if err != nil {
		tb.Fatalf("kubetest: making deployment: %v", err)
	}
	return d
}

// StatefulSet makes a StatefulSet as [Cluster.Deployment] does a Deployment.
func (c *Cluster) StatefulSet(tb testing.TB, replicas int32, spec PodSpec, mutate ...func(*appsv1.StatefulSet)) *appsv1.StatefulSet {
	tb.Helper()
	spec = withApp(tb, spec)
	s := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: spec.Name, Namespace: spec.Namespace},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &replicas, Selector: appSelector(spec.Name), Template: template(tb, spec), ServiceName: spec.Name,
		},
	}
	for _, f := range mutate {
		f(s)
	}
	s, err := c.client.AppsV1().StatefulSets(spec.Namespace).Create(tb.Context(), s, metav1.CreateOptions{})
	if err == nil && !spec.Pending {
		s, err = wait(tb.Context(), statefulSets(c, spec.Namespace), spec.Name, func(s *appsv1.StatefulSet) bool {
			return s != nil && s.Status.ObservedGeneration >= s.Generation && s.Status.AvailableReplicas == *s.Spec.Replicas
		})
	}
	if err != nil {
		tb.Fatalf("kubetest: making stateful set: %v", err)
	}
	return s
}

// DaemonSet makes a DaemonSet as [Cluster.Deployment] does a Deployment, and
// waits until it is available on every node of the test.
func (c *Cluster) DaemonSet(tb testing.TB, spec PodSpec, mutate ...func(*appsv1.DaemonSet)) *appsv1.DaemonSet {
	tb.Helper()
	spec = withApp(tb, spec)
	d := &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: spec.Name, Namespace: spec.Namespace},
		Spec:       appsv1.DaemonSetSpec{Selector: appSelector(spec.Name), Template: template(tb, spec)},
	}
	for _, f := range mutate {
		f(d)
	}
	d, err := c.client.AppsV1().DaemonSets(spec.Namespace).Create(tb.Context(), d, metav1.CreateOptions{})
	if err == nil && !spec.Pending {
		d, err = wait(tb.Context(), daemonSets(c, spec.Namespace), spec.Name, func(d *appsv1.DaemonSet) bool {
			return d != nil && d.Status.ObservedGeneration >= d.Generation && d.Status.NumberAvailable == d.Status.DesiredNumberScheduled
		})
	}
	if err != nil {
		tb.Fatalf("kubetest: making daemon set: %v", err)
	}
	return d
}

// withApp gives the spec a name and the label that goes with it.
func withApp(tb testing.TB, spec PodSpec) PodSpec {
	tb.Helper()
	if spec.Name == "" {
		spec.Name = Name(tb, "app")
	}
	labels := map[string]string{"app": spec.Name}
	maps.Copy(labels, spec.Labels)
	spec.Labels = labels
	return spec
}

func appSelector(app string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
}

// Scale changes the number of a Deployment's replicas, without waiting.
func (c *Cluster) Scale(tb testing.TB, d *appsv1.Deployment, replicas int32) {
	tb.Helper()
	patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas)
	if _, err := c.client.AppsV1().Deployments(d.Namespace).Patch(tb.Context(), d.Name, mergePatch, patch, metav1.PatchOptions{}); err != nil {
		tb.Fatalf("kubetest: scaling deployment: %v", err)
	}
}

// PDB makes a disruption budget for the pods with the label app=app and waits
// until the controller has worked it out. minAvailable is a number or a
// percentage, "2" or "50%".
func (c *Cluster) PDB(tb testing.TB, namespace, app, minAvailable string, mutate ...func(*policyv1.PodDisruptionBudget)) *policyv1.PodDisruptionBudget {
	tb.Helper()
	min := intstr.Parse(minAvailable)
	pdb := &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: Name(tb, "pdb"), Namespace: namespace},
		Spec: policyv1.PodDisruptionBudgetSpec{
			MinAvailable: &min,
			Selector:     appSelector(app),
		},
	}
	for _, f := range mutate {
		f(pdb)
	}
	pdb, err := c.client.PolicyV1().PodDisruptionBudgets(namespace).Create(tb.Context(), pdb, metav1.CreateOptions{})
	if err == nil {
		pdb, err = wait(tb.Context(), pdbs(c, namespace), pdb.Name, func(p *policyv1.PodDisruptionBudget) bool {
			return p != nil && p.Status.ObservedGeneration >= p.Generation
		})
	}
	if err != nil {
		tb.Fatalf("kubetest: making disruption budget: %v", err)
	}
	return pdb
}

// cleanup deletes an object when the test ends.
func cleanup(tb testing.TB, del func(context.Context, string, metav1.DeleteOptions) error, name string) {
	tb.Helper()
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = del(ctx, name, metav1.DeleteOptions{}) // the test may have deleted it, or stopped the server
	})
}
