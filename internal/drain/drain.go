package drain

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// The defaults of Options.
const (
	DefaultTimeout       = 30 * time.Minute
	DefaultDetachTimeout = 6 * time.Minute // how long a node without a kubelet keeps its volumes
)

const (
	// inFlight is how many evictions one node has under way.
	inFlight = 10
	// overdueAfter is how long after its grace period a pod is late.
	overdueAfter = 30 * time.Second
	// A refusal is tried again when a budget moves, and by the clock between these two.
	firstRetry = 5 * time.Second
	lastRetry  = 30 * time.Second
	// mostStale is the most that may pass between the read of a pod and its eviction (DR-31).
	mostStale = time.Second
	// maxReads bounds how often a read before the drain is tried.
	maxReads = 4
)

// Options are what a person chose for the drain of a node.
type Options struct {
	Policy
	// Grace shortens the pods' own grace periods, in seconds; nil leaves each its own. Less than one second ends
	// containers at once and needs ConsentForce.
	Grace *int64
	// Timeout is for the node; 0 means DefaultTimeout. When it is over nothing is undone.
	Timeout time.Duration
	// DetachTimeout is for volumes once the pods are gone; 0 means DefaultDetachTimeout.
	DetachTimeout time.Duration
	// WaitReplacements has the drain end only when the controllers of what it evicted have as many ready pods as they
	// want, or when Timeout is over: then it is partial (DR-53).
	WaitReplacements bool
}

// Job is the drain of one node.
type Job struct {
	Node fleet.NodeRef
	UID  string // of the node that was chosen; "" for whichever has the name
	// Watch reads and Ops writes; they may be the same client. Ops may act in the name of somebody who may read nothing.
	Watch, Ops kubernetes.Interface
	// Gate is shared by all drains of the cluster; nil limits this one alone.
	Gate *Gate
	// Cordon makes the node unschedulable. Nil means that the API server has acknowledged it, or that it was so already;
	// no pod is evicted before (DR-20).
	Cordon  func(context.Context) error
	Options Options
	// Intend is called once for each pod, by uid, before the first eviction or deletion of it is sent, from the
	// goroutine that will send it, some of which run at a time. After an error nothing is sent for the pod. One that is
	// ErrNotRecorded, ErrLeaseLost or ErrAuthorityLost ends the drain as failed; another one is as a refusal. Nil
	// means no call.
	Intend func(ctx context.Context, p fleet.PodProgress) error
	// Held tells whether evictions have to wait, and gives a channel that is closed when that changes. While held
	// nothing further is evicted, and Options.Timeout does not run; what is on its way out goes on. Nil: never.
	Held func() (held bool, changed <-chan struct{})
	// Events gets every transition, in order, from one goroutine; it must not block. Nil drops them.
	Events func(fleet.DrainEvent)
	Logger *slog.Logger

	patience time.Duration // of tests, in the place of firstRetry
	overdue  time.Duration // of tests, in the place of overdueAfter
}

// Drain empties a node and waits until its pods are gone and its volumes detached. It returns when it is done, when it
// cannot go on, or soon after ctx ends; a request that is under way by then is waited for, so that what was done is
// known. The error is nil for a node that is drained, wholly or but for what was left out; otherwise it has the kind:
// ErrBlocked where a consent is missing or time ran out, ErrForbidden, ErrNotFound, ErrConflict for a node that was
// replaced or uncordoned, and the context's own when cancelled.
func Drain(ctx context.Context, job Job) (Result, error) {
	if job.Gate == nil {
		job.Gate = NewGate(0)
	}
	if job.Options.Timeout <= 0 {
		job.Options.Timeout = DefaultTimeout
	}
	if job.Options.DetachTimeout <= 0 {
		job.Options.DetachTimeout = DefaultDetachTimeout
	}
	if job.patience <= 0 {
		job.patience = firstRetry
	}
	if job.overdue <= 0 {
		job.overdue = overdueAfter
	}
	d := newDrain(job)
	d.prepare(ctx)
	if !d.final {
		d.run(ctx)
	}
	d.enter(d.outcome.NodeState, d.outcome.Message)
	if d.failure != nil {
		return d.result(), fmt.Errorf("draining %s: %w", job.Node, d.failure)
	}
	return d.result(), nil
}

// prepare does everything that comes before the first eviction.
func (d *drain) prepare(ctx context.Context) {
	d.enter(fleet.DrainChecking, "")
	if err := d.check(ctx); err != nil {
		d.failed(ctx, err)
	}
	if d.final {
		return
	}
	d.enter(fleet.DrainCordoning, "")
	if err := d.job.Cordon(ctx); err != nil {
		d.failed(ctx, fmt.Errorf("cordoning: %w", err))
		return
	}
	d.cordoned = true
}

// failed ends a drain that evicted nothing.
func (d *drain) failed(ctx context.Context, err error) {
	if ctx.Err() != nil {
		d.end(fleet.DrainCancelled, "", ctx.Err())
		return
	}
	d.end(fleet.DrainFailed, kube.Plain(kube.Reason(err)), err)
}

// check looks at the node, at what we may do, and at what its pods need, before anything is touched.
func (d *drain) check(ctx context.Context) error {
	if g := d.job.Options.Grace; g != nil && (*g < 0 || *g == 0 && !slices.Contains(d.job.Options.Consents, fleet.ConsentForce)) {
		return fleet.Invalid("grace", "must be at least one second")
	}
	node := &corev1.Node{}
	err := again(ctx, func() error {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		return kube.Error(d.job.Watch.CoreV1().RESTClient().Get().MaxRetries(0).UseProtobufAsDefaultIfPreferred(true).
			Resource("nodes").Name(d.job.Node.Name).Do(ctx).Into(node))
	})
	switch {
	case errors.Is(err, fleet.ErrNotFound):
		d.end(fleet.DrainGone, "", err)
		return nil
	case err != nil:
		return fmt.Errorf("reading the node: %w", err)
	case d.job.UID == "":
		d.job.UID = string(node.UID)
	case d.job.UID != string(node.UID):
		d.end(fleet.DrainReplaced, "", fmt.Errorf("another node has the name: %w", fleet.ErrConflict))
		return nil
	}
	err = again(ctx, func() error { return d.permitted(ctx) })
	if err != nil {
		return err
	}
	var pods []corev1.Pod
	err = again(ctx, func() (err error) {
		pods, _, err = podsOf(d.job.Watch, d.job.Node.Name).all(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("listing its pods: %w", err)
	}
	for i := range pods {
		key, ok := daemonSetOf(&pods[i])
		if !ok || d.owners[key] != nil {
			continue
		}
		l := &lookup{}
		err := again(ctx, func() (err error) { l.found, err = daemonSet(ctx, d.job.Watch, key); return err })
		if err != nil {
			return fmt.Errorf("looking for DaemonSet %s: %w", key, err)
		}
		d.owners[key] = l
	}
	d.replacePods(pods)
	d.live = false // that was a look, not a watch
	d.blocked()
	return nil
}

// permitted refuses a drain that could only cordon.
func (d *drain) permitted(ctx context.Context) error {
	p := d.job.Options.right()
	ok, err := allowed(ctx, d.job.Ops, p)
	switch {
	case err != nil:
		return fmt.Errorf("asking what is permitted: %w", &kube.ActError{Err: err})
	case !ok:
		return &kube.ActError{Right: tested(p), Err: fleet.ErrForbidden}
	}
	return nil
}

// blocked ends the drain if a pod needs a consent.
func (d *drain) blocked() bool {
	n := 0
	for _, p := range d.pods {
		if p.state == fleet.PodBlocked {
			n++
		}
	}
	if n > 0 {
		why := fmt.Sprintf("%d pods need a consent", n)
		d.end(fleet.DrainBlocked, why, fmt.Errorf("%s: %w", why, fleet.ErrBlocked))
	}
	return n > 0
}

// again tries a read that may work the next time.
func again(ctx context.Context, do func() error) error {
	for try := 1; ; try++ {
		err := do()
		if err == nil || try == maxReads || !errors.Is(err, fleet.ErrUnavailable) && !errors.Is(err, fleet.ErrTooMany) ||
			errors.Is(err, kube.ErrCredentials) {
			return err
		}
		if err := pause(ctx, time.Duration(try)*firstBackoff); err != nil {
			return err
		}
	}
}

// daemonSet looks whether a DaemonSet is there.
func daemonSet(ctx context.Context, c kubernetes.Interface, key name) (Presence, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := kube.Error(c.AppsV1().RESTClient().Get().MaxRetries(0).UseProtobufAsDefaultIfPreferred(true).
		Namespace(key.Namespace).Resource("daemonsets").Name(key.Name).Do(ctx).Error())
	switch {
	case err == nil:
		return Present, nil
	case errors.Is(err, fleet.ErrNotFound):
		return Absent, nil
	}
	return Unknown, err
}

// daemonSetOf names the DaemonSet that a pod belongs to.
func daemonSetOf(p *corev1.Pod) (name, bool) {
	owner := metav1.GetControllerOf(p)
	if owner == nil || owner.Kind != "DaemonSet" || owner.APIVersion != "apps/v1" || ended(p) {
		return name{}, false
	}
	return name{Namespace: p.Namespace, Name: owner.Name}, true
}
