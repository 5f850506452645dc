package drain

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

const (
	// maxAllPods is up to where a plan reads every pod of a cluster, at some 4.5 KB each.
	maxAllPods = 10_000
	// maxChecked bounds the nodes whose pods are read one by one in a larger cluster, and atOnce how many at a time.
	maxChecked = 200
	atOnce     = 10
	// medik8sLeases is where the operators of medik8s say which node they hold.
	medik8sLeases = "medik8s-leases"
)

// Reading is what a plan is made from: one look at a cluster, shared by all nodes of a batch.
type Reading struct {
	Cluster      string
	At           time.Time // when it began; nothing in it is older
	Nodes        []corev1.Node
	Pods         []corev1.Pod // those of the nodes of PodsOf
	PodsOf       map[string]bool
	AllPods      bool // whether PodsOf is all nodes
	Budgets      []policyv1.PodDisruptionBudget
	DaemonSets   []appsv1.DaemonSet
	ReplicaSets  []appsv1.ReplicaSet
	Deployments  []appsv1.Deployment
	StatefulSets []appsv1.StatefulSet
	Jobs         []batchv1.Job
	Claims       []corev1.PersistentVolumeClaim
	Volumes      []corev1.PersistentVolume
	Leases       []coordinationv1.Lease // of medik8sLeases
	Webhooks     []Webhook              // those that the API server cannot do without
	Permissions  []fleet.ClusterRight
	// Missing names what the cluster does not let us read. What depends on it is not evaluated.
	Missing []string
}

// needed is the permissions without which a drain is not begun; the first is what makes the pods go.
func (p Policy) needed() []fleet.ClusterRight {
	return fleet.Operation{Action: fleet.ActionDrain, Drain: &fleet.DrainOptions{DisableEviction: p.Delete}}.Needs()
}

func (p Policy) right() fleet.ClusterRight { return p.needed()[0] }

// Read looks at a cluster for a plan that drains the nodes named. Only nodes and pods must be readable; whatever else is
// not permitted is named in Missing. Whoever would drain, with the client ops, is asked about by that client.
func Read(ctx context.Context, cluster string, c, ops kubernetes.Interface, targets []string) (*Reading, error) {
	r, err := readUpTo(ctx, cluster, c, targets, limits{allPods: maxAllPods, checked: maxChecked})
	if err != nil {
		return nil, err
	}
	for _, p := range append(Policy{}.needed(), Policy{Delete: true}.right()) {
		by := c
		if p.Verb != "watch" {
			by = ops
		}
		if p.Allowed, err = allowed(ctx, by, p); err != nil {
			return nil, fmt.Errorf("asking %s what is permitted: %w", cluster, err)
		}
		r.Permissions = append(r.Permissions, p)
	}
	return r, nil
}

// limits bound what is read of a cluster.
type limits struct {
	allPods int64
	checked int
}

func readUpTo(ctx context.Context, cluster string, c kubernetes.Interface, targets []string, most limits) (*Reading, error) {
	r := &Reading{Cluster: cluster, At: time.Now().UTC(), PodsOf: map[string]bool{}}
	var err error
	if r.Nodes, _, err = nodesOf(c, "").all(ctx); err != nil {
		return nil, fmt.Errorf("listing the nodes of %s: %w", cluster, err)
	}
	if err := r.readPods(ctx, c, targets, most); err != nil {
		return nil, err
	}
	optional(ctx, r, &err, &r.Budgets, budgetsOf(c))
	optional(ctx, r, &err, &r.DaemonSets, daemonSetsOf(c))
	optional(ctx, r, &err, &r.ReplicaSets, replicaSetsOf(c))
	optional(ctx, r, &err, &r.Deployments, deploymentsOf(c))
	optional(ctx, r, &err, &r.StatefulSets, statefulSetsOf(c))
	optional(ctx, r, &err, &r.Jobs, jobsOf(c))
	optional(ctx, r, &err, &r.Claims, claimsOf(c))
	optional(ctx, r, &err, &r.Volumes, volumesOf(c))
	optional(ctx, r, &err, &r.Leases, leasesOf(c, medik8sLeases))
	if err == nil {
		err = r.readWebhooks(ctx, c)
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// optional reads what a plan can do without. After an error it does nothing.
func optional[T any](ctx context.Context, r *Reading, err *error, into *[]T, k kind[T]) {
	if *err != nil {
		return
	}
	got, _, e := k.all(ctx)
	switch {
	case errors.Is(e, fleet.ErrForbidden), errors.Is(e, fleet.ErrNotFound):
		r.Missing = append(r.Missing, k.resource)
	case e != nil:
		*err = fmt.Errorf("listing %s of %s: %w", k.resource, r.Cluster, e)
	default:
		*into = got
	}
}

// readPods reads all pods of a small cluster; of a large one those of the targets and of some nodes that may take them.
func (r *Reading) readPods(ctx context.Context, c kubernetes.Interface, targets []string, most limits) error {
	first := &corev1.PodList{}
	if err := podsOf(c, "").page(ctx, metav1.ListOptions{Limit: 1}, first); err != nil {
		return fmt.Errorf("counting the pods of %s: %w", r.Cluster, kube.Error(err))
	}
	total := int64(len(first.Items))
	if first.RemainingItemCount != nil {
		total += *first.RemainingItemCount
	} else if first.Continue != "" {
		total = most.allPods + 1 // it does not say
	}
	if total <= most.allPods {
		pods, _, err := podsOf(c, "").all(ctx)
		if err != nil {
			return fmt.Errorf("listing the pods of %s: %w", r.Cluster, err)
		}
		r.Pods, r.AllPods = pods, true
		for i := range r.Nodes {
			r.PodsOf[r.Nodes[i].Name] = true
		}
		return nil
	}
	for _, name := range targets {
		r.PodsOf[name] = true
	}
	left := most.checked
	for i := range r.Nodes {
		if n := &r.Nodes[i]; left > 0 && !r.PodsOf[n.Name] && open(n) {
			r.PodsOf[n.Name] = true
			left--
		}
	}
	return r.podsOfNodes(ctx, c)
}

// podsOfNodes reads the pods of the nodes of PodsOf, each by an index of the server.
func (r *Reading) podsOfNodes(ctx context.Context, c kubernetes.Interface) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		wg    sync.WaitGroup
		slots = make(chan struct{}, atOnce)
		mu    sync.Mutex // guards r.Pods
	)
	for name := range r.PodsOf {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			pods, _, err := podsOf(c, name).all(ctx)
			if err != nil {
				cancel(fmt.Errorf("listing the pods of node %s: %w", name, err)) // the first one counts
				return
			}
			mu.Lock()
			defer mu.Unlock()
			r.Pods = append(r.Pods, pods...)
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// allowed asks whether whoever is behind the client is permitted something.
func allowed(ctx context.Context, c kubernetes.Interface, p fleet.ClusterRight) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return kube.May(ctx, c, tested(p))
}

func tested(p fleet.ClusterRight) fleet.TestedRight {
	return fleet.TestedRight{Verb: p.Verb, Group: p.Group, Resource: p.Resource, Subresource: p.Subresource}
}
