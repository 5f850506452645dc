package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// trickle keeps changing the seeded clusters, as colleagues, autoscalers and
// failing machines do. What it breaks it mends some time later.
type trickle struct {
	changers []*changer

	mu     sync.Mutex // guards cancel, wg
	cancel context.CancelFunc
	wg     *sync.WaitGroup
}

func newTrickle(clusters []*cluster) (*trickle, error) {
	t := &trickle{}
	for _, c := range clusters {
		if c.profile == "none" || c.nodes == 0 {
			continue
		}
		ch, err := newChanger(c)
		if err != nil {
			return nil, err
		}
		if len(ch.names) > 0 {
			t.changers = append(t.changers, ch)
		}
	}
	return t, nil
}

// set makes rate changes per second in each cluster from now on. It returns when
// whoever made them at the old rate has ended.
func (t *trickle) set(rate float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cancel != nil {
		t.cancel()
		t.wg.Wait()
		t.cancel = nil
	}
	if rate <= 0 {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.cancel, t.wg = cancel, &sync.WaitGroup{}
	workers := min(16, 1+int(rate/20))
	for _, ch := range t.changers {
		for range workers {
			t.wg.Go(func() { ch.run(ctx, rate/float64(workers)) })
		}
	}
}

// changer makes the changes in one cluster.
type changer struct {
	client kubernetes.Interface
	log    *os.File // what did not work

	mu        sync.Mutex // guards all below
	g         *generator
	names     []string        // nodes that may be touched
	busy      map[string]bool // nodes with something to mend
	mends     []mend
	workloads bool
}

// mend puts right what an earlier change did.
type mend struct {
	due time.Time
	do  func(context.Context) error
}

func newChanger(c *cluster) (*changer, error) {
	client, err := c.client(trickleUser)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(c.path("trickle.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	ch := &changer{client: client, log: log, g: newGenerator(c), busy: map[string]bool{}, workloads: c.profile == "fleet"}
	for _, n := range ch.g.nodes(c.nodes, ch.workloads) { // the same as were seeded
		_, offline := n.Labels[offlineLabel]
		if !offline && !n.cordoned && len(n.Spec.Taints) == 0 && isReady(n) {
			ch.names = append(ch.names, n.Name)
		}
	}
	return ch, nil
}

func isReady(n *node) bool {
	for _, cond := range n.Status.Conditions {
		if cond.Type == corev1.NodeReady {
			return cond.Status == corev1.ConditionTrue
		}
	}
	return false
}

// run makes changes until ctx ends, at intervals as random as those of
// independent people.
func (ch *changer) run(ctx context.Context, rate float64) {
	for {
		ch.mu.Lock()
		pause := time.Duration(ch.g.ExpFloat64() / rate * float64(time.Second))
		ch.mu.Unlock()
		timer := time.NewTimer(min(pause, time.Minute))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		// What has been begun is brought to its end: a request that is given up
		// might be carried out all the same, after set has returned.
		do, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		err := ch.next()(do)
		cancel()
		switch {
		case err == nil:
		case apierrors.IsNotFound(err), apierrors.IsConflict(err): // somebody else is at work as well
		default:
			fmt.Fprintln(ch.log, time.Now().Format(time.RFC3339), err)
		}
	}
}

// next decides what to do.
func (ch *changer) next() func(context.Context) error {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	now := time.Now()
	for i, m := range ch.mends {
		if now.After(m.due) {
			ch.mends = append(ch.mends[:i], ch.mends[i+1:]...)
			return m.do
		}
	}
	x := ch.g.IntN(100)
	switch {
	case x < 10 && ch.workloads:
		return ch.scale()
	case len(ch.busy) >= max(1, len(ch.names)/12):
		return ch.label(pick(ch.g, ch.names)) // enough is broken at once
	case x < 14:
		return ch.addNode()
	}
	name := ch.idle()
	switch {
	case x < 34:
		return ch.cordon(name)
	case x < 50:
		return ch.taint(name)
	case x < 62:
		return ch.flap(name)
	case x < 68:
		return ch.pressure(name)
	default:
		return ch.label(name)
	}
}

// idle picks a node that nothing is to be mended on; most are so.
func (ch *changer) idle() string {
	for {
		if name := pick(ch.g, ch.names); !ch.busy[name] {
			return name
		}
	}
}

// later has the node mended between min and max seconds from now. The lock is
// held.
func (ch *changer) later(name string, minSeconds, maxSeconds int, do func(context.Context) error) {
	ch.busy[name] = true
	due := time.Now().Add(time.Duration(minSeconds*1000+ch.g.IntN((maxSeconds-minSeconds)*1000)) * time.Millisecond)
	ch.mends = append(ch.mends, mend{due: due, do: func(ctx context.Context) error {
		defer func() {
			ch.mu.Lock()
			delete(ch.busy, name)
			ch.mu.Unlock()
		}()
		return do(ctx)
	}})
}

func (ch *changer) cordon(name string) func(context.Context) error {
	ch.later(name, 10, 60, func(ctx context.Context) error {
		return ch.patch(ctx, "kubectl-uncordon", name, "", object{"spec": object{"unschedulable": nil}})
	})
	return func(ctx context.Context) error {
		return ch.patch(ctx, "kubectl-cordon", name, "", object{"spec": object{"unschedulable": true}})
	}
}

func (ch *changer) label(name string) func(context.Context) error {
	const key = "example.com/rollout"
	value := any(pick(ch.g, []string{"stable", "canary", "blue", "green"}))
	if ch.g.IntN(5) == 0 {
		value = nil
	}
	return func(ctx context.Context) error {
		return ch.patch(ctx, "kubectl-label", name, "", object{"metadata": object{"labels": object{key: value}}})
	}
}

func (ch *changer) taint(name string) func(context.Context) error {
	taint := corev1.Taint{
		Key:    "example.com/maintenance",
		Value:  pick(ch.g, []string{"kernel", "firmware", "network", "disk"}),
		Effect: pick(ch.g, []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule}),
	}
	ch.later(name, 10, 60, func(ctx context.Context) error { return ch.retaint(ctx, name, taint, false) })
	return func(ctx context.Context) error { return ch.retaint(ctx, name, taint, true) }
}

// retaint adds or removes a taint, minding that the list is replaced as a whole.
func (ch *changer) retaint(ctx context.Context, name string, taint corev1.Taint, add bool) error {
	n, err := ch.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	taints := []corev1.Taint{}
	for _, t := range n.Spec.Taints {
		if !t.MatchTaint(&taint) {
			taints = append(taints, t)
		}
	}
	if add {
		taints = append(taints, taint)
	}
	return ch.patch(ctx, "kubectl-taint", name, "", object{
		"metadata": object{"resourceVersion": n.ResourceVersion}, "spec": object{"taints": taints},
	})
}

func (ch *changer) flap(name string) func(context.Context) error {
	why := pick(ch.g, []string{
		"PLEG is not healthy: pleg was last seen active 3m4.511s ago; threshold is 3m0s",
		"container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: cni plugin not initialized",
	})
	ch.later(name, 5, 25, func(ctx context.Context) error {
		return ch.condition(ctx, name, corev1.NodeReady, corev1.ConditionTrue, "KubeletReady", "kubelet is posting ready status")
	})
	return func(ctx context.Context) error {
		return ch.condition(ctx, name, corev1.NodeReady, corev1.ConditionFalse, "KubeletNotReady", why)
	}
}

func (ch *changer) pressure(name string) func(context.Context) error {
	ch.later(name, 10, 40, func(ctx context.Context) error {
		return ch.condition(ctx, name, corev1.NodeMemoryPressure, corev1.ConditionFalse, "KubeletHasSufficientMemory", "kubelet has sufficient memory available")
	})
	return func(ctx context.Context) error {
		return ch.condition(ctx, name, corev1.NodeMemoryPressure, corev1.ConditionTrue, "KubeletHasInsufficientMemory", "kubelet has insufficient memory available")
	}
}

func (ch *changer) condition(ctx context.Context, name string, typ corev1.NodeConditionType, status corev1.ConditionStatus, reason, message string) error {
	now := metav1.Now()
	return ch.patch(ctx, "kubelet", name, "status", object{"status": object{"conditions": []corev1.NodeCondition{{
		Type: typ, Status: status, Reason: reason, Message: message, LastHeartbeatTime: now, LastTransitionTime: now,
	}}}})
}

// addNode has a spot machine join, not ready at first, and leave after a while.
func (ch *changer) addNode() func(context.Context) error {
	n := ch.g.node(pools[1], "", releases[0])
	ch.g.setReady(n, corev1.ConditionFalse, "KubeletNotReady", "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: cni plugin not initialized")
	ch.later(n.Name, 3, 6, func(ctx context.Context) error {
		err := ch.condition(ctx, n.Name, corev1.NodeReady, corev1.ConditionTrue, "KubeletReady", "kubelet is posting ready status")
		ch.mu.Lock()
		defer ch.mu.Unlock()
		ch.later(n.Name, 30, 120, func(ctx context.Context) error {
			return ch.client.CoreV1().Nodes().Delete(ctx, n.Name, metav1.DeleteOptions{})
		})
		return err
	})
	return func(ctx context.Context) error {
		return ignoreExisting(ch.client.CoreV1().Nodes().Create(ctx, &n.Node, metav1.CreateOptions{FieldManager: "kubelet"}))
	}
}

// scale changes a Deployment by one replica, within bounds.
func (ch *changer) scale() func(context.Context) error {
	i := ch.g.IntN(6)
	up := ch.g.IntN(2) == 0
	return func(ctx context.Context) error {
		api := ch.client.AppsV1().Deployments(namespaces[i%len(namespaces)])
		s, err := api.GetScale(ctx, services[i], metav1.GetOptions{})
		if err != nil {
			return err
		}
		if up && s.Spec.Replicas < 40 {
			s.Spec.Replicas++
		} else if s.Spec.Replicas > 1 {
			s.Spec.Replicas--
		}
		_, err = api.UpdateScale(ctx, services[i], s, metav1.UpdateOptions{FieldManager: "kube-controller-manager"})
		return err
	}
}

type object = map[string]any

func (ch *changer) patch(ctx context.Context, manager, name, subresource string, patch object) error {
	data, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	kind, sub := types.MergePatchType, []string(nil)
	if subresource != "" {
		kind, sub = types.StrategicMergePatchType, []string{subresource}
	}
	_, err = ch.client.CoreV1().Nodes().Patch(ctx, name, kind, data, metav1.PatchOptions{FieldManager: manager}, sub...)
	return err
}
