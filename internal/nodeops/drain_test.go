package nodeops_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// leaseNamespace exists in every cluster.
const leaseNamespace = "default"

// draining is the drain of one node by the verb, without a batch engine around it.
type draining struct {
	w      *whole
	task   fleet.Task
	cancel context.CancelCauseFunc
	done   chan struct{}
	res    fleet.ItemResult
	err    error

	mu     sync.Mutex // guards events and more
	events []fleet.DrainEvent
	more   chan struct{}
}

// drainNode starts it.
func (w *whole) drainNode(node *corev1.Node, opts fleet.DrainOptions, change ...func(*fleet.Task)) *draining {
	w.t.Helper()
	if opts.GracePeriodSeconds == 0 {
		opts.GracePeriodSeconds = -1
	}
	d := &draining{w: w, done: make(chan struct{}), more: make(chan struct{})}
	d.task = fleet.Task{
		By: ada, Batch: kubetest.Name(w.t, "b"),
		Item:      fleet.Item{Ref: fleet.NodeRef{Cluster: w.cluster.Name, Name: node.Name}, UID: string(node.UID), Attempt: 1, StartedAt: time.Now()},
		Operation: fleet.Operation{Action: fleet.ActionDrain, Reason: "kernel update", Drain: &opts},
		Tell: func(e fleet.DrainEvent) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.events = append(d.events, e)
			close(d.more)
			d.more = make(chan struct{})
		},
	}
	for _, f := range change {
		f(&d.task)
	}
	ctx, cancel := context.WithCancelCause(w.t.Context())
	d.cancel = cancel
	go func() {
		defer close(d.done)
		d.res, d.err = w.ops.Do(ctx, d.task)
	}()
	w.t.Cleanup(func() { cancel(nil); <-d.done })
	return d
}

// wait waits for an event, past ones included.
func (d *draining) wait(what string, want func(fleet.DrainEvent) bool) fleet.DrainEvent {
	d.w.t.Helper()
	for at := 0; ; {
		d.mu.Lock()
		events, more := d.events[at:], d.more
		at = len(d.events)
		d.mu.Unlock()
		for _, e := range events {
			if want(e) {
				return e
			}
		}
		select {
		case <-more:
		case <-d.done:
			d.w.t.Fatalf("it ended without %s: %+v, %v", what, d.res, d.err)
		}
	}
}

// pod waits until a pod is in a state.
func (d *draining) pod(name string, s fleet.PodState) {
	d.w.t.Helper()
	d.wait(name+" "+string(s), func(e fleet.DrainEvent) bool { return e.Pod != nil && e.Pod.Name == name && e.Pod.State == s })
}

func (d *draining) end(state fleet.ItemState, code string, kind error) fleet.ItemResult {
	d.w.t.Helper()
	<-d.done
	if d.res.State != state || d.res.Code != code || !errors.Is(d.err, kind) {
		d.w.t.Fatalf("got %s %q (%s), %v; want %s %q, %v", d.res.State, d.res.Code, d.res.Message, d.err, state, code, kind)
	}
	return d.res
}

// slow is a pod that takes a minute to end.
func slow(spec kubetest.PodSpec) kubetest.PodSpec {
	spec.Annotations = map[string]string{"pod-delete.stage.kwok.x-k8s.io/delay": "60s"}
	return spec
}

// leases reads the lease of a node, nil if there is none.
func lease(t *testing.T, c *kubetest.Cluster, node string) *coordinationv1.Lease {
	t.Helper()
	l, err := c.Client().CoordinationV1().Leases(leaseNamespace).Get(t.Context(), "knm-node-"+node, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// onRecord are the entries of a batch, oldest first.
func (w *whole) onRecord(batch string) []fleet.Entry {
	w.t.Helper()
	all, err := w.audit.Entries(w.t.Context(), fleet.AuditFilter{Limit: 1000})
	if err != nil {
		w.t.Fatal(err)
	}
	var out []fleet.Entry
	for _, e := range slices.Backward(all) {
		if e.Batch == batch {
			out = append(out, e)
		}
	}
	return out
}

// Every write to the cluster comes after the entry that announces it: the lease and the cordon after the drain's, each
// eviction after its own.
func TestDrain_RecordsBeforeItActs(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	node, ns := c.Node(t, kubetest.NodeSpec{}), c.Namespace(t)
	c.Deployment(t, 3, kubetest.PodSpec{Namespace: ns})
	mark := c.AuditLog(t).Mark()
	d := w.drainNode(node, fleet.DrainOptions{})
	res := d.end(fleet.ItemSucceeded, "", nil)
	if !res.Changed || res.Drain == nil || res.Drain.State != fleet.DrainDone || res.Drain.Evicted != 3 || res.Drain.WeakLock {
		t.Errorf("result %+v, drain %+v", res, res.Drain)
	}
	note, err := kube.ParseCordonNote(w.live(node.Name).Annotations[kube.CordonAnnotation])
	if err != nil || note.By != "ada" || note.Batch != d.task.Batch || note.Reason != "kernel update" {
		t.Errorf("the note on the node is %+v, %v", note, err)
	}
	if l := lease(t, c, node.Name); l != nil {
		t.Errorf("the lease was left: %+v", l)
	}

	intents := map[string]time.Time{} // what was announced, and when
	var results int
	for _, e := range w.onRecord(d.task.Batch) {
		switch {
		case e.Phase == "intent" && e.Action == "evict":
			var pod struct{ UID string }
			if err := json.Unmarshal([]byte(e.Detail), &pod); err != nil {
				t.Fatal(err)
			}
			intents[pod.UID] = e.At
		case e.Phase == "intent":
			intents[e.Action] = e.At
		case e.Phase == "result" && e.Action == "drain":
			results++
		}
	}
	if results != 1 {
		t.Errorf("%d results of the drain on record", results)
	}
	var evictions, leases, patches int
	for _, e := range c.AuditLog(t).Since(mark, kubetest.ByAgent(agent), kubetest.Verb("create", "update", "patch", "delete")) {
		var key string
		switch {
		case e.Subresource == "eviction" && e.Namespace == ns:
			var body struct {
				DeleteOptions struct{ Preconditions struct{ UID string } }
			}
			if err := json.Unmarshal(e.Request, &body); err != nil {
				t.Fatal(err)
			}
			key = body.DeleteOptions.Preconditions.UID
			evictions++
		case e.Resource == "leases" && strings.HasSuffix(e.Path, "knm-node-"+node.Name), e.Resource == "leases" && e.Name == "knm-node-"+node.Name:
			key = "drain"
			leases++
		case e.Resource == "nodes" && e.Name == node.Name:
			key = "cordon"
			patches++
		default:
			continue // of another test
		}
		at, ok := intents[key]
		// The API server's clock has microseconds, and so has ours; both are this machine's.
		if !ok || at.After(e.Time) {
			t.Errorf("%s %s at %s was announced at %s (%v)", e.Verb, e.Path, e.Time, at, ok)
		}
	}
	if evictions != 3 || patches != 1 || leases == 0 {
		t.Errorf("%d evictions, %d patches, %d writes of leases", evictions, patches, leases)
	}
}

func TestCase44_AlreadyCordonedByKubectl(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	node, ns := c.Node(t, kubetest.NodeSpec{}), c.Namespace(t)
	c.Deployment(t, 2, kubetest.PodSpec{Namespace: ns})
	c.Cordon(t, node.Name)
	res := w.drainNode(node, fleet.DrainOptions{UncordonAfter: true}).end(fleet.ItemSucceeded, fleet.CodeForeignCordon, nil)
	if !w.live(node.Name).Spec.Unschedulable {
		t.Error("somebody else's cordon was undone")
	}
	if res.Drain.Evicted != 2 || !strings.Contains(res.Message, "not who cordoned it") {
		t.Errorf("result %+v", res)
	}
	if f := kube.Node(c.Name, w.live(node.Name)); f.Cordon == nil || !strings.HasPrefix(f.Cordon.With, "kubectl") {
		t.Errorf("the cordon is shown as %+v", f.Cordon)
	}
}

func TestDrain_UncordonAfter(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	node, ns := c.Node(t, kubetest.NodeSpec{}), c.Namespace(t)
	c.Deployment(t, 2, kubetest.PodSpec{Namespace: ns})
	res := w.drainNode(node, fleet.DrainOptions{UncordonAfter: true}).end(fleet.ItemSucceeded, "", nil)
	n := w.live(node.Name)
	if n.Spec.Unschedulable || n.Annotations[kube.CordonAnnotation] != "" {
		t.Errorf("node is unschedulable %v with the note %q", n.Spec.Unschedulable, n.Annotations[kube.CordonAnnotation])
	}
	if res.Drain.Evicted != 2 || len(res.Edits) != 0 {
		t.Errorf("result %+v", res)
	}
}

func TestCase52_LeaseOfSomebodyElse(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	node, ns := c.Node(t, kubetest.NodeSpec{}), c.Namespace(t)
	c.Deployment(t, 1, kubetest.PodSpec{Namespace: ns})
	leases := c.Client().CoordinationV1().Leases(leaseNamespace)
	now := metav1.NowMicro()
	other := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: "knm-node-" + node.Name},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity: new("knm/elsewhere/b9"), LeaseDurationSeconds: new(int32(60)), AcquireTime: &now, RenewTime: &now,
		},
	}
	other, err := leases.Create(t.Context(), other, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	res := w.drainNode(node, fleet.DrainOptions{}).end(fleet.ItemFailed, fleet.CodeLocked, fleet.ErrConflict)
	if !strings.Contains(res.Message, "knm/elsewhere/b9") || !strings.Contains(res.Message, "until") || res.Changed {
		t.Errorf("result %+v", res)
	}
	if w.live(node.Name).Spec.Unschedulable {
		t.Error("it was cordoned without the lease")
	}

	// Nobody has renewed it for a long time: it is taken, once, by whoever looks.
	past := metav1.NewMicroTime(time.Now().Add(-time.Hour))
	other.Spec.RenewTime = &past
	if _, err := leases.Update(t.Context(), other, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	mark := c.AuditLog(t).Mark()
	w.drainNode(node, fleet.DrainOptions{}).end(fleet.ItemSucceeded, "", nil)
	var taken int
	for _, e := range c.AuditLog(t).Since(mark, kubetest.ByAgent(agent), kubetest.Verb("update"), kubetest.On("leases")) {
		if e.Name == other.Name && e.Code == 200 {
			taken++
		}
	}
	if taken == 0 {
		t.Error("the lease was not taken")
	}
	if lease(t, c, node.Name) != nil {
		t.Error("and was not let go")
	}
}

// When somebody takes the lease in the middle, evictions stop.
func TestDrain_LeaseLost(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	node, ns := c.Node(t, kubetest.NodeSpec{}), c.Namespace(t)
	dep := c.Deployment(t, 1, kubetest.PodSpec{Namespace: ns})
	c.PDB(t, ns, dep.Name, "1")
	pod := c.WaitPods(t, ns, dep.Name, func(p []*corev1.Pod) bool { return len(p) == 1 })[0]
	d := w.drainNode(node, fleet.DrainOptions{})
	d.pod(pod.Name, fleet.PodBlockedByPDB)
	l := lease(t, c, node.Name)
	l.Spec.HolderIdentity = new("knm/elsewhere/b9")
	if _, err := c.Client().CoordinationV1().Leases(leaseNamespace).Update(t.Context(), l, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	res := d.end(fleet.ItemFailed, fleet.CodeLocked, fleet.ErrConflict)
	if !strings.Contains(res.Message, "knm/elsewhere/b9") || res.Drain == nil {
		t.Errorf("result %+v", res)
	}
	if l := lease(t, c, node.Name); l == nil || *l.Spec.HolderIdentity != "knm/elsewhere/b9" {
		t.Errorf("the lease of somebody else was touched: %+v", l)
	}
}

// Without the right to leases the lock is weak, and the result says so.
func TestDrain_WeakLock(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	user := kubetest.Name(t, "u")
	c.Grant(t, user, append(drainRules(), kubetest.Rule("", "pods/eviction", "create"), kubetest.Rule("", "nodes", "get", "list", "watch", "patch"))...)
	w := setUp(t, c, c.User(t, user))
	node, ns := c.Node(t, kubetest.NodeSpec{}), c.Namespace(t)
	c.Deployment(t, 1, kubetest.PodSpec{Namespace: ns})
	res := w.drainNode(node, fleet.DrainOptions{}).end(fleet.ItemSucceeded, "", nil)
	if !res.Drain.WeakLock || res.Drain.Evicted != 1 {
		t.Errorf("drain %+v", res.Drain)
	}
}

// drainRules is what a drain reads.
func drainRules() []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{
		kubetest.Rule("", "pods", "get", "list", "watch"), kubetest.Rule("policy", "poddisruptionbudgets", "list", "watch"),
		kubetest.Rule("apps", "daemonsets", "get", "list"), kubetest.Rule("storage.k8s.io", "volumeattachments", "list", "watch"),
	}
}

func TestCase34_NoRightToEvict(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	user := kubetest.Name(t, "u")
	c.Grant(t, user, append(drainRules(), kubetest.Rule("", "nodes", "get", "list", "watch", "patch"))...)
	w := setUp(t, c, c.User(t, user))
	node := c.Node(t, kubetest.NodeSpec{})
	w.drainNode(node, fleet.DrainOptions{}).end(fleet.ItemFailed, fleet.CodeForbidden, fleet.ErrForbidden)
	if w.live(node.Name).Spec.Unschedulable {
		t.Error("the node was cordoned, and could not be drained")
	}
}

func TestCase35_NoRightToCordon(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	user := kubetest.Name(t, "u")
	c.Grant(t, user, append(drainRules(), kubetest.Rule("", "pods/eviction", "create"), kubetest.Rule("", "nodes", "get", "list", "watch"))...)
	w := setUp(t, c, c.User(t, user))
	node, ns := c.Node(t, kubetest.NodeSpec{}), c.Namespace(t)
	c.Deployment(t, 1, kubetest.PodSpec{Namespace: ns})
	mark := c.AuditLog(t).Mark()
	w.drainNode(node, fleet.DrainOptions{}).end(fleet.ItemFailed, fleet.CodeForbidden, fleet.ErrForbidden)
	for _, e := range c.AuditLog(t).Since(mark, kubetest.ByUser(user), kubetest.In(ns)) {
		if e.Subresource == "eviction" {
			t.Errorf("an eviction on a node that could not be cordoned: %s", e.Path)
		}
	}
}

// A person's word in the middle ends the item with what is true: the node stays cordoned, what was evicted stays so.
func TestDrain_LetGo(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		cause error
		state fleet.ItemState
		code  string
	}{
		"skipped":   {fleet.ErrSkipped, fleet.ItemSkipped, fleet.CodeSkipped},
		"cancelled": {fleet.ErrCancelled, fleet.ItemCancelled, fleet.CodeCancelled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := kubetest.Shared(t)
			w := setUp(t, c, c.REST())
			node, ns := c.Node(t, kubetest.NodeSpec{}), c.Namespace(t)
			dep := c.Deployment(t, 1, slow(kubetest.PodSpec{Namespace: ns}))
			pod := c.WaitPods(t, ns, dep.Name, func(p []*corev1.Pod) bool { return len(p) == 1 })[0]
			d := w.drainNode(node, fleet.DrainOptions{})
			d.pod(pod.Name, fleet.PodTerminating)
			d.cancel(tt.cause)
			res := d.end(tt.state, tt.code, nil)
			if !res.Changed || res.Drain == nil || res.Drain.Evicted != 1 || !strings.Contains(res.Message, "stays cordoned") {
				t.Errorf("result %+v, drain %+v", res, res.Drain)
			}
			if !w.live(node.Name).Spec.Unschedulable || lease(t, c, node.Name) != nil {
				t.Error("the node is not cordoned, or its lease was left")
			}
			es := w.onRecord(d.task.Batch)
			if last := es[len(es)-1]; last.Phase != "result" || last.Outcome != string(tt.state) {
				t.Errorf("on record last: %+v", last)
			}
		})
	}
}

// Cut off without a word, nothing is decided: whoever goes on with the batch drains the node again, and the pod that
// was evicted is not evicted a second time.
func TestDrain_GoesOnAfterACut(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	node, ns := c.Node(t, kubetest.NodeSpec{}), c.Namespace(t)
	spec := kubetest.PodSpec{Namespace: ns, Annotations: map[string]string{"pod-delete.stage.kwok.x-k8s.io/delay": "6s"}}
	dep := c.Deployment(t, 1, spec)
	pod := c.WaitPods(t, ns, dep.Name, func(p []*corev1.Pod) bool { return len(p) == 1 })[0]
	mark := c.AuditLog(t).Mark()
	first := w.drainNode(node, fleet.DrainOptions{UncordonAfter: true})
	first.pod(pod.Name, fleet.PodTerminating)
	first.cancel(context.Canceled)
	<-first.done
	if !errors.Is(first.err, context.Canceled) {
		t.Fatalf("cut off: %+v, %v", first.res, first.err)
	}
	second := w.drainNode(node, fleet.DrainOptions{UncordonAfter: true}, func(t *fleet.Task) {
		t.Batch, t.Item = first.task.Batch, first.task.Item
		t.Item.Attempt = 2
	})
	res := second.end(fleet.ItemSucceeded, "", nil)
	if n := w.live(node.Name); n.Spec.Unschedulable {
		t.Errorf("the cordon of this very batch was not undone: %s", res.Message)
	}
	var evictions int
	for _, e := range c.AuditLog(t).Since(mark, kubetest.In(ns), kubetest.ByAgent(agent)) {
		if e.Subresource == "eviction" {
			evictions++
		}
	}
	if evictions != 1 {
		t.Errorf("%d evictions of one pod", evictions)
	}
}

func TestCase56_PausedInTheMiddleEvictsNoFurther(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	node, ns := c.Node(t, kubetest.NodeSpec{}), c.Namespace(t)
	dep := c.Deployment(t, 2, kubetest.PodSpec{Namespace: ns})
	pdb := c.PDB(t, ns, dep.Name, "2")
	pods := c.WaitPods(t, ns, dep.Name, func(p []*corev1.Pod) bool { return len(p) == 2 })
	var mu sync.Mutex
	paused, changed := false, make(chan struct{})
	pause := func(on bool) {
		mu.Lock()
		defer mu.Unlock()
		paused = on
		close(changed)
		changed = make(chan struct{})
	}
	d := w.drainNode(node, fleet.DrainOptions{}, func(t *fleet.Task) {
		t.Held = func() (bool, <-chan struct{}) {
			mu.Lock()
			defer mu.Unlock()
			return paused, changed
		}
	})
	d.pod(pods[0].Name, fleet.PodBlockedByPDB)
	d.pod(pods[1].Name, fleet.PodBlockedByPDB)
	pause(true)
	// The budget opens while the drain is held: nothing may come of it. An eviction that was under way when the pause
	// came may still be answered, and is refused.
	pdb, err := c.Client().PolicyV1().PodDisruptionBudgets(ns).Get(t.Context(), pdb.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pdb.Spec.MinAvailable = nil
	pdb.Spec.MaxUnavailable = new(intstr.FromString("100%"))
	if _, err := c.Client().PolicyV1().PodDisruptionBudgets(ns).Update(t.Context(), pdb, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.WaitPDB(t, ns, pdb.Name, func(p *policyv1.PodDisruptionBudget) bool { return p != nil && p.Status.DisruptionsAllowed == 2 })
	mark := c.AuditLog(t).Mark()
	select {
	case <-d.done:
		t.Fatalf("it went on while it was held: %+v", d.res)
	case <-time.After(7 * time.Second): // longer than a refusal waits for its next try: nothing else would show that none comes
	}
	for _, e := range c.AuditLog(t).Since(mark, kubetest.In(ns), kubetest.ByAgent(agent)) {
		if e.Subresource == "eviction" {
			t.Errorf("an eviction while the batch is paused, at %s", e.Time)
		}
	}
	pause(false)
	d.end(fleet.ItemSucceeded, "", nil)
}

func TestResolve_Drain(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	node, ns := c.Node(t, kubetest.NodeSpec{}), c.Namespace(t)
	dep := c.Deployment(t, 1, slow(kubetest.PodSpec{Namespace: ns}))
	pod := c.WaitPods(t, ns, dep.Name, func(p []*corev1.Pod) bool { return len(p) == 1 })[0]
	d := w.drainNode(node, fleet.DrainOptions{})
	d.pod(pod.Name, fleet.PodTerminating)
	d.cancel(context.Canceled)
	<-d.done
	mark := c.AuditLog(t).Mark()
	res, err := w.ops.Resolve(t.Context(), d.task)
	if err != nil || res.State != fleet.ItemCancelled || !res.Changed || !strings.Contains(res.Message, "stays cordoned") {
		t.Errorf("%+v, %v", res, err)
	}
	if asked, _ := writes(t, c, mark, []string{node.Name}); asked != 0 {
		t.Errorf("%d writes", asked)
	}
}
