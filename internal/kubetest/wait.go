package kubetest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// waitTimeout bounds every wait; two cores busy with a build need some of it.
const waitTimeout = 2 * time.Minute

// WaitNode waits until the node is as ready wants it; nil means it is gone.
func (c *Cluster) WaitNode(tb testing.TB, name string, ready func(*corev1.Node) bool) *corev1.Node {
	tb.Helper()
	node, err := wait(tb.Context(), nodes(c), name, ready)
	if err != nil {
		tb.Fatalf("kubetest: waiting for node %s: %v", name, err)
	}
	return node
}

// WaitReady waits until the node is Ready.
func (c *Cluster) WaitReady(tb testing.TB, name string) *corev1.Node {
	tb.Helper()
	return c.WaitNode(tb, name, func(n *corev1.Node) bool { return n != nil && readyIs(n, corev1.ConditionTrue) })
}

// WaitPod waits until the pod is as ready wants it; nil means it is gone.
func (c *Cluster) WaitPod(tb testing.TB, namespace, name string, ready func(*corev1.Pod) bool) *corev1.Pod {
	tb.Helper()
	pod, err := wait(tb.Context(), pods(c, namespace), name, ready)
	if err != nil {
		tb.Fatalf("kubetest: waiting for pod %s/%s: %v", namespace, name, err)
	}
	return pod
}

// WaitPods waits until the pods with the label app=app are as ready wants them.
// An empty app means all pods of the namespace.
func (c *Cluster) WaitPods(tb testing.TB, namespace, app string, ready func([]*corev1.Pod) bool) []*corev1.Pod {
	tb.Helper()
	opts := metav1.ListOptions{}
	if app != "" {
		opts.LabelSelector = "app=" + app
	}
	list, err := waitList(tb.Context(), pods(c, namespace), opts, ready)
	if err != nil {
		tb.Fatalf("kubetest: waiting for pods in %s: %v", namespace, err)
	}
	return list
}

// WaitDeployment waits until the Deployment is as ready wants it.
func (c *Cluster) WaitDeployment(tb testing.TB, namespace, name string, ready func(*appsv1.Deployment) bool) *appsv1.Deployment {
	tb.Helper()
	d, err := wait(tb.Context(), deployments(c, namespace), name, ready)
	if err != nil {
		tb.Fatalf("kubetest: waiting for deployment %s/%s: %v", namespace, name, err)
	}
	return d
}

// WaitPDB waits until the disruption budget is as ready wants it.
func (c *Cluster) WaitPDB(tb testing.TB, namespace, name string, ready func(*policyv1.PodDisruptionBudget) bool) *policyv1.PodDisruptionBudget {
	tb.Helper()
	pdb, err := wait(tb.Context(), pdbs(c, namespace), name, ready)
	if err != nil {
		tb.Fatalf("kubetest: waiting for disruption budget %s/%s: %v", namespace, name, err)
	}
	return pdb
}

// collection lists and watches the objects of one type.
type collection[T any] struct {
	list  func(context.Context, metav1.ListOptions) (items []T, version string, err error)
	watch func(context.Context, metav1.ListOptions) (watch.Interface, error)
}

func nodes(c *Cluster) collection[corev1.Node] {
	api := c.client.CoreV1().Nodes()
	return collection[corev1.Node]{watch: api.Watch, list: func(ctx context.Context, opts metav1.ListOptions) ([]corev1.Node, string, error) {
		l, err := api.List(ctx, opts)
		if err != nil {
			return nil, "", err
		}
		return l.Items, l.ResourceVersion, nil
	}}
}

func pods(c *Cluster, namespace string) collection[corev1.Pod] {
	api := c.client.CoreV1().Pods(namespace)
	return collection[corev1.Pod]{watch: api.Watch, list: func(ctx context.Context, opts metav1.ListOptions) ([]corev1.Pod, string, error) {
		l, err := api.List(ctx, opts)
		if err != nil {
			return nil, "", err
		}
		return l.Items, l.ResourceVersion, nil
	}}
}

func deployments(c *Cluster, namespace string) collection[appsv1.Deployment] {
	api := c.client.AppsV1().Deployments(namespace)
	return collection[appsv1.Deployment]{watch: api.Watch, list: func(ctx context.Context, opts metav1.ListOptions) ([]appsv1.Deployment, string, error) {
		l, err := api.List(ctx, opts)
		if err != nil {
			return nil, "", err
		}
		return l.Items, l.ResourceVersion, nil
	}}
}

func statefulSets(c *Cluster, namespace string) collection[appsv1.StatefulSet] {
	api := c.client.AppsV1().StatefulSets(namespace)
	return collection[appsv1.StatefulSet]{watch: api.Watch, list: func(ctx context.Context, opts metav1.ListOptions) ([]appsv1.StatefulSet, string, error) {
		l, err := api.List(ctx, opts)
		if err != nil {
			return nil, "", err
		}
		return l.Items, l.ResourceVersion, nil
	}}
}

func daemonSets(c *Cluster, namespace string) collection[appsv1.DaemonSet] {
	api := c.client.AppsV1().DaemonSets(namespace)
	return collection[appsv1.DaemonSet]{watch: api.Watch, list: func(ctx context.Context, opts metav1.ListOptions) ([]appsv1.DaemonSet, string, error) {
		l, err := api.List(ctx, opts)
		if err != nil {
			return nil, "", err
		}
		return l.Items, l.ResourceVersion, nil
	}}
}

func pdbs(c *Cluster, namespace string) collection[policyv1.PodDisruptionBudget] {
	api := c.client.PolicyV1().PodDisruptionBudgets(namespace)
	return collection[policyv1.PodDisruptionBudget]{watch: api.Watch, list: func(ctx context.Context, opts metav1.ListOptions) ([]policyv1.PodDisruptionBudget, string, error) {
		l, err := api.List(ctx, opts)
		if err != nil {
			return nil, "", err
		}
		return l.Items, l.ResourceVersion, nil
	}}
}

// wait waits until the object is as ready wants it; ready gets nil while there
// is none.
func wait[T any](ctx context.Context, c collection[T], name string, ready func(*T) bool) (*T, error) {
	first := func(list []*T) *T {
		if len(list) == 0 {
			return nil
		}
		return list[0]
	}
	opts := metav1.ListOptions{FieldSelector: "metadata.name=" + name}
	list, err := waitList(ctx, c, opts, func(list []*T) bool { return ready(first(list)) })
	return first(list), err
}

// waitList waits until the listed objects are as ready wants them. They come in
// the order of their names.
func waitList[T any](ctx context.Context, c collection[T], opts metav1.ListOptions, ready func([]*T) bool) ([]*T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, waitTimeout, fmt.Errorf("not so after %s", waitTimeout))
	defer cancel()
	for {
		list, ok, err := waitOnce(ctx, c, opts, ready)
		switch {
		case ok:
			return list, nil
		case ctx.Err() != nil:
			last, _ := json.Marshal(list) // for the message
			return list, fmt.Errorf("%w; last seen: %.2000s", context.Cause(ctx), last)
		case err != nil:
			return list, err
		}
	}
}

// waitOnce is one list and the watch that follows; without an error, the watch
// ended and all is to be done again.
func waitOnce[T any](ctx context.Context, c collection[T], opts metav1.ListOptions, ready func([]*T) bool) ([]*T, bool, error) {
	items, version, err := c.list(ctx, opts)
	if err != nil {
		return nil, false, err
	}
	key := func(o *T) string {
		m := any(o).(metav1.Object)
		return m.GetNamespace() + "/" + m.GetName()
	}
	byName := map[string]*T{}
	for i := range items {
		byName[key(&items[i])] = &items[i]
	}
	sorted := func() []*T {
		list := make([]*T, 0, len(byName))
		for _, k := range slices.Sorted(maps.Keys(byName)) {
			list = append(list, byName[k])
		}
		return list
	}
	if list := sorted(); ready(list) {
		return list, true, nil
	}
	opts.ResourceVersion = version
	w, err := c.watch(ctx, opts)
	if err != nil {
		return sorted(), false, err
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		o, ok := any(event.Object).(*T)
		if !ok { // an error event: the version is too old, or the server goes away
			break
		}
		if event.Type == watch.Deleted {
			delete(byName, key(o))
		} else {
			byName[key(o)] = o
		}
		if list := sorted(); ready(list) {
			return list, true, nil
		}
	}
	return sorted(), false, nil
}
