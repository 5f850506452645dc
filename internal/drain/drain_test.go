package drain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// bench is one test's drains of one cluster, with the API server's audit log as witness.
type bench struct {
	t     *testing.T
	c     *kubetest.Cluster
	agent string
	kube  kube.Cluster
	gate  *Gate
	mark  kubetest.Mark
	meter *meter
}

func newBench(t *testing.T, change ...func(*rest.Config)) *bench {
	t.Helper()
	return newBenchOn(t, kubetest.Shared(t), change...)
}

func newBenchOn(t *testing.T, c *kubetest.Cluster, change ...func(*rest.Config)) *bench {
	t.Helper()
	cfg := c.REST()
	for _, f := range change {
		f(cfg)
	}
	m := newMeter()
	cfg.Wrap(m.wrap)
	version := kubetest.Name(t, "v")
	k, err := kube.New(c.Name, cfg, kube.WithVersion(version))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	b := &bench{t: t, c: c, agent: "kube-node-manager/" + version, kube: k, gate: NewGate(0), mark: c.AuditLog(t).Mark(), meter: m}
	t.Cleanup(b.witness)
	return b
}

// drainage is a drain that runs.
type drainage struct {
	t      *testing.T
	cancel context.CancelFunc
	done   chan struct{}
	result Result
	err    error

	mu     sync.Mutex // guards events and more
	events []fleet.DrainEvent
	more   chan struct{} // closed when there is another event
}

// start drains a node.
func (b *bench) start(node *corev1.Node, change ...func(*Job)) *drainage {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	d := &drainage{t: b.t, cancel: cancel, done: make(chan struct{}), more: make(chan struct{})}
	job := Job{
		Node: fleet.NodeRef{Cluster: b.c.Name, Name: node.Name}, UID: string(node.UID),
		Watch: b.kube.Watch, Ops: b.kube.Ops, Gate: b.gate,
		Cordon: func(ctx context.Context) error {
			_, err := b.kube.Ops.CoreV1().Nodes().Patch(ctx, node.Name, types.MergePatchType, []byte(`{"spec":{"unschedulable":true}}`), metav1.PatchOptions{})
			return kube.Error(err)
		},
		Options: Options{Timeout: 2 * time.Minute},
		Events: func(e fleet.DrainEvent) {
			b.meter.event(e)
			d.mu.Lock()
			defer d.mu.Unlock()
			d.events = append(d.events, e)
			close(d.more)
			d.more = make(chan struct{})
		},
	}
	for _, f := range change {
		f(&job)
	}
	go func() {
		defer close(d.done)
		d.result, d.err = Drain(ctx, job)
	}()
	b.t.Cleanup(func() { cancel(); <-d.done; b.noStaleBudgets() })
	return d
}

// wait returns the first event that is as wanted, past ones included.
func (d *drainage) wait(what string, want func(fleet.DrainEvent) bool) fleet.DrainEvent {
	d.t.Helper()
	for at := 0; ; {
		d.mu.Lock()
		events, more := d.events[at:], d.more
		at = len(d.events)
		d.mu.Unlock()
		if i := slices.IndexFunc(events, want); i >= 0 {
			return events[i]
		}
		select {
		case <-more:
		case <-d.done:
			d.mu.Lock()
			left := len(d.events) - at
			d.mu.Unlock()
			if left == 0 {
				d.t.Fatalf("it ended without %s: %+v, %v\n%s", what, d.result, d.err, d.story())
			}
		}
	}
}

// pod waits until a pod is in a state.
func (d *drainage) pod(name string, s fleet.PodState) fleet.PodProgress {
	d.t.Helper()
	e := d.wait(fmt.Sprintf("%s %s", name, s), func(e fleet.DrainEvent) bool { return e.Pod != nil && e.Pod.Name == name && e.Pod.State == s })
	return *e.Pod
}

// end waits for the drain's end and checks what it came to.
func (d *drainage) end(s fleet.DrainState, kind error) Result {
	d.t.Helper()
	<-d.done
	if d.result.State != s || !errors.Is(d.err, kind) {
		d.t.Fatalf("got %s (%s), %v; want %s, %v\n%s", d.result.State, d.result.Message, d.err, s, kind, d.story())
	}
	for i, e := range d.events {
		if e.Seq != i+1 {
			d.t.Errorf("event %d has number %d", i+1, e.Seq)
		}
	}
	if last := d.events[len(d.events)-1]; last.NodeState != s {
		d.t.Errorf("the last event is %+v", last)
	}
	return d.result
}

func (d *drainage) story() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b strings.Builder
	for _, e := range d.events {
		fmt.Fprintf(&b, "%d %s ", e.Seq, e.NodeState)
		if e.Pod != nil {
			fmt.Fprintf(&b, "%s %s #%d %d %s", e.Pod.Name, e.Pod.State, e.Pod.Attempt, e.Pod.HTTP, e.Pod.Message)
		}
		b.WriteString(e.Message + "\n")
	}
	return b.String()
}

// evictions are the evictions that the API server accepted from this bench, by uid. All of them must name one, and none
// of its requests may be a deletion.
func (b *bench) evictions() map[string]string {
	b.t.Helper()
	log := b.c.AuditLog(b.t)
	out := map[string]string{}
	for _, e := range log.Writes(b.mark, "pods", kubetest.ByAgent(b.agent)) {
		if e.Subresource != "eviction" || e.Verb != "create" {
			b.t.Errorf("a write that is no eviction: %s %s", e.Verb, e.Path)
			continue
		}
		var body policyv1.Eviction
		if err := json.Unmarshal(e.Request, &body); err != nil {
			b.t.Fatal(err)
		}
		if body.DeleteOptions == nil || body.DeleteOptions.Preconditions == nil || body.DeleteOptions.Preconditions.UID == nil {
			b.t.Errorf("an eviction without a uid: %s", e.Request)
			continue
		}
		if e.Code == http.StatusCreated {
			out[string(*body.DeleteOptions.Preconditions.UID)] = e.Name
		}
	}
	return out
}

// consenting gives consents.
func consenting(c ...fleet.Consent) func(*Job) { return func(j *Job) { j.Options.Consents = c } }

// patient has a refusal wait by the clock longer than any test, and hasty hardly at all.
func patient(j *Job) { j.patience = time.Hour }

func hasty(j *Job) { j.patience = 50 * time.Millisecond }

func within(d time.Duration) func(*Job) { return func(j *Job) { j.Options.Timeout = d } }

// podOn finds the pod of an app on a node.
func (b *bench) podOn(ns, app, node string) *corev1.Pod {
	b.t.Helper()
	var found *corev1.Pod
	b.c.WaitPods(b.t, ns, app, func(pods []*corev1.Pod) bool {
		for _, p := range pods {
			if p.Spec.NodeName == node && p.DeletionTimestamp == nil && ready(p) {
				found = p
			}
		}
		return found != nil
	})
	return found
}

func (b *bench) podsOn(node string) []string {
	b.t.Helper()
	l, err := b.c.Client().CoreV1().Pods("").List(b.t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
	if err != nil {
		b.t.Fatal(err)
	}
	var out []string
	for i := range l.Items {
		out = append(out, l.Items[i].Name)
	}
	slices.Sort(out)
	return out
}

// TestDrain_PlanIsWhatHappens drains a node with a pod of every kind, and compares with the plan and with the log.
func TestDrain_PlanIsWhatHappens(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	nodes := b.c.Nodes(t, 2, nil)
	node := nodes[0]
	b.c.Deployment(t, 4, kubetest.PodSpec{Namespace: ns, Name: "web"})
	b.c.DaemonSet(t, kubetest.PodSpec{Namespace: ns, Name: "agent", EmptyDir: true})
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "lone", Node: node.Name})
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "scratch", Node: node.Name, EmptyDir: true})
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "pending", Node: node.Name, Pending: true})
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "static", Node: node.Name, Annotations: map[string]string{corev1.MirrorPodAnnotationKey: "x"}})
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "kruise", Node: node.Name, Mutate: ownedBy("apps.kruise.io/v1alpha1", "DaemonSet", "foreign")})

	reading, err := Read(t.Context(), b.c.Name, b.kube.Watch, b.kube.Watch, []string{node.Name})
	if err != nil {
		t.Fatal(err)
	}
	pol := Policy{Consents: []fleet.Consent{fleet.ConsentUnmanaged, fleet.ConsentLocalData}}
	plan := NewPlan(reading, []Target{{node.Name, string(node.UID)}}, pol, time.Now())
	want, stay := map[string]string{}, []string{}
	for _, p := range plan.Nodes[0].Pods {
		switch p.Verdict {
		case fleet.VerdictEvict:
			want[p.UID] = p.Name
		case fleet.VerdictIgnore:
			stay = append(stay, p.Name)
		default:
			t.Errorf("%s is to %s", p.Name, p.Verdict)
		}
	}
	if len(reading.Missing) != 0 || plan.Estimate.Blocked || len(want) < 3 || len(stay) != 3 {
		t.Fatalf("missing %v, estimate %+v, evict %v, stay %v", reading.Missing, plan.Estimate, want, stay)
	}

	res := b.start(node, consenting(pol.Consents...)).end(fleet.DrainDone, nil)
	if got := b.evictions(); !equal(got, want) || res.Evicted != len(want) {
		t.Errorf("evicted %d: %v\nplanned %v", res.Evicted, got, want)
	}
	slices.Sort(stay)
	if got := b.podsOn(node.Name); !slices.Equal(got, stay) {
		t.Errorf("on the node are %v, planned %v", got, stay)
	}
	for _, p := range res.Pods {
		if evicted := want[p.UID] != ""; evicted != (p.State == fleet.PodGone) {
			t.Errorf("%s is %s", p.Name, p.State)
		}
	}
	// No eviction comes before the cordon (DR-20).
	log := b.c.AuditLog(t).Since(b.mark, kubetest.ByAgent(b.agent), kubetest.Verb("patch", "create"), func(e *kubetest.AuditEvent) bool {
		return e.Subresource == "eviction" || e.Resource == "nodes"
	})
	if len(log) == 0 || log[0].Resource != "nodes" {
		t.Errorf("the first write is %+v", log[0])
	}
}

func equal(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

// TestCase01_02_BudgetBlocksThenScaledUp is edge cases 1 and 2.
func TestCase01_02_BudgetBlocksThenScaledUp(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	nodes := b.c.Nodes(t, 2, nil)
	web := b.c.Deployment(t, 2, kubetest.PodSpec{Namespace: ns, Name: "web"})
	pdb := b.c.PDB(t, ns, "web", "2")
	pods := b.c.WaitPods(t, ns, "web", func(p []*corev1.Pod) bool { return len(p) == 2 })
	node := nodes[0]
	if pods[0].Spec.NodeName != node.Name {
		node = nodes[1]
	}
	d := b.start(node, patient) // only the budget's own move can help
	got := d.pod(pods[0].Name, fleet.PodBlockedByPDB)
	if got.HTTP != http.StatusTooManyRequests || got.Needed != 2 || got.Healthy != 2 || !slices.Equal(got.Budgets, []string{pdb.Name}) || got.Message == "" || got.Until == nil {
		t.Errorf("blocked: %+v", got)
	}
	if n := len(b.evictions()); n != 0 {
		t.Errorf("%d evictions were accepted", n)
	}
	b.c.Scale(t, web, 3)
	d.end(fleet.DrainDone, nil)
	if got := b.evictions(); len(got) == 0 || got[string(pods[0].UID)] == "" {
		t.Errorf("evicted %v", got)
	}
}

// TestCase03_SeveralBudgets is edge case 3: the server does not say which, and the drain does.
func TestCase03_SeveralBudgets(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	b.c.Deployment(t, 1, kubetest.PodSpec{Namespace: ns, Name: "web"})
	one, two := b.c.PDB(t, ns, "web", "0"), b.c.PDB(t, ns, "web", "0")
	pod := b.podOn(ns, "web", node.Name)
	d := b.start(node, patient)
	got := d.pod(pod.Name, fleet.PodBlockedByPDBs)
	want := []string{one.Name, two.Name}
	slices.Sort(want)
	if got.HTTP != http.StatusInternalServerError || !slices.Equal(got.Budgets, want) {
		t.Errorf("blocked: %+v, want %v", got, want)
	}
	if err := b.c.Client().PolicyV1().PodDisruptionBudgets(ns).Delete(t.Context(), two.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	d.end(fleet.DrainDone, nil)
}

// TestCase23_24_ConsentMissing is edge cases 23 and 24: nothing is touched.
func TestCase23_24_ConsentMissing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	b.c.Deployment(t, 2, kubetest.PodSpec{Namespace: ns, Name: "web"})
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "lone", Node: node.Name, EmptyDir: true})
	for name, consents := range map[string][]fleet.Consent{"none": nil, "one": {fleet.ConsentUnmanaged}, "the other": {fleet.ConsentLocalData}} {
		d := b.start(node, consenting(consents...))
		if res := d.end(fleet.DrainBlocked, fleet.ErrBlocked); res.Cordoned {
			t.Errorf("%s: it was cordoned", name)
		}
		if got := d.pod("lone", fleet.PodBlocked); len(got.Reasons) != 2 {
			t.Errorf("%s: reasons %+v", name, got.Reasons)
		}
	}
	if w := b.c.AuditLog(t).Writes(b.mark, "nodes", kubetest.ByAgent(b.agent)); len(w) != 0 || len(b.evictions()) != 0 {
		t.Errorf("written: %v, %v", w, b.evictions())
	}
	b.start(node, consenting(fleet.ConsentUnmanaged, fleet.ConsentLocalData)).end(fleet.DrainDone, nil)
}

// TestCase09_11_TwinIsNotEvicted is edge cases 9 and 11: the pod of a StatefulSet is made again elsewhere while its eviction
// waits.
func TestCase09_11_TwinIsNotEvicted(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	nodes := b.c.Nodes(t, 2, nil)
	b.c.StatefulSet(t, 1, kubetest.PodSpec{Namespace: ns, Name: "db"})
	pdb := b.c.PDB(t, ns, "db", "1")
	pod := b.c.WaitPod(t, ns, "db-0", func(p *corev1.Pod) bool { return p != nil && ready(p) })
	node := nodes[0]
	if pod.Spec.NodeName != node.Name {
		node = nodes[1]
	}
	d := b.start(node)
	d.pod("db-0", fleet.PodBlockedByPDB)
	if err := b.c.Client().CoreV1().Pods(ns).Delete(t.Context(), "db-0", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	d.end(fleet.DrainDone, nil)
	twin := b.c.WaitPod(t, ns, "db-0", func(p *corev1.Pod) bool { return p != nil && p.UID != pod.UID && ready(p) })
	if twin.DeletionTimestamp != nil || len(b.evictions()) != 0 {
		t.Errorf("the twin is %v, evicted %v", twin.Status.Phase, b.evictions())
	}
	b.c.WaitPDB(t, ns, pdb.Name, func(p *policyv1.PodDisruptionBudget) bool {
		if p != nil && len(p.Status.DisruptedPods) != 0 {
			t.Errorf("the budget counts %v", p.Status.DisruptedPods)
		}
		return p != nil && p.Status.CurrentHealthy == 1
	})
}

// TestDrain_Terminating: a pod that is on its way out is not evicted again, and the node is not drained before it is
// gone (edge cases 16 and 17); one that is stuck can be left.
func TestDrain_Terminating(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	free := b.held(ns, "held", node.Name)
	if err := b.c.Client().CoreV1().Pods(ns).Delete(t.Context(), "held", metav1.DeleteOptions{GracePeriodSeconds: new(int64(1))}); err != nil {
		t.Fatal(err)
	}
	res := b.start(node, func(j *Job) { j.Options.SkipStuck = time.Second }).end(fleet.DrainPartial, nil)
	if p := res.Pods[0]; p.State != fleet.PodIgnored || !slices.ContainsFunc(p.Reasons, func(r fleet.Reason) bool { return r.Code == CodeStuck && r.Detail != "" }) {
		t.Errorf("the stuck pod is %+v", p)
	}
	d := b.start(node)
	d.pod("held", fleet.PodTerminating)
	d.wait("the wait", func(e fleet.DrainEvent) bool { return e.NodeState == fleet.DrainTerminating })
	free()
	d.end(fleet.DrainDone, nil)
	if got := b.evictions(); len(got) != 0 {
		t.Errorf("evicted %v", got)
	}
}

// TestDrain_TimesOut: the node stays cordoned, and nothing else is done to the pods.
func TestDrain_TimesOut(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	b.c.Deployment(t, 1, kubetest.PodSpec{Namespace: ns, Name: "web"})
	b.c.PDB(t, ns, "web", "1")
	pod := b.podOn(ns, "web", node.Name)
	res := b.start(node, within(4*time.Second)).end(fleet.DrainTimedOut, fleet.ErrBlocked)
	if !res.Cordoned || res.Message == "" {
		t.Errorf("result %+v", res)
	}
	now := b.c.WaitPod(t, ns, pod.Name, func(p *corev1.Pod) bool { return p != nil })
	n := b.c.WaitNode(t, node.Name, func(n *corev1.Node) bool { return n != nil })
	if now.UID != pod.UID || now.DeletionTimestamp != nil || !n.Spec.Unschedulable || len(b.evictions()) != 0 {
		t.Errorf("pod %+v, unschedulable %t", now.ObjectMeta, n.Spec.Unschedulable)
	}
}

// TestDrain_CancelAndAgain: a drain that was cancelled half way leaves no request behind, and the next one goes on.
func TestDrain_CancelAndAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	nodes := b.c.Nodes(t, 2, nil)
	b.c.Deployment(t, 4, kubetest.PodSpec{Namespace: ns, Name: "web"})
	pdb := b.c.PDB(t, ns, "web", "4")
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "lone", Node: nodes[0].Name})
	blocked := b.podOn(ns, "web", nodes[0].Name)
	d := b.start(nodes[0], consenting(fleet.ConsentUnmanaged))
	d.pod("lone", fleet.PodGone)
	d.pod(blocked.Name, fleet.PodBlockedByPDB)
	d.cancel()
	if res := d.end(fleet.DrainCancelled, context.Canceled); !res.Cordoned || res.Evicted != 1 {
		t.Errorf("result %+v", res)
	}
	tries := len(b.c.AuditLog(t).Writes(b.mark, "pods", kubetest.ByAgent(b.agent)))
	b.relax(ns, pdb.Name)
	b.c.WaitPDB(t, ns, pdb.Name, func(p *policyv1.PodDisruptionBudget) bool { return p != nil && p.Status.DisruptionsAllowed > 0 })
	if n := len(b.c.AuditLog(t).Writes(b.mark, "pods", kubetest.ByAgent(b.agent))); n != tries {
		t.Errorf("%d requests came after the end", n-tries)
	}
	b.start(nodes[0], consenting(fleet.ConsentUnmanaged)).end(fleet.DrainDone, nil)
	if got := b.podsOn(nodes[0].Name); len(got) != 0 {
		t.Errorf("on the node are %v", got)
	}
}

// relax has a budget let one go.
func (b *bench) relax(ns, pdb string) {
	b.t.Helper()
	_, err := b.c.Client().PolicyV1().PodDisruptionBudgets(ns).Patch(b.t.Context(), pdb, types.MergePatchType, []byte(`{"spec":{"minAvailable":1}}`), metav1.PatchOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
}

// TestCase10_DryRunChangesNothing is edge case 10: the server is asked about a pod that may go, one that may not, and one that is another by
// now, and nothing comes of it.
func TestCase10_DryRunChangesNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	b.c.Deployment(t, 1, kubetest.PodSpec{Namespace: ns, Name: "web"})
	pdb := b.c.PDB(t, ns, "web", "1")
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "lone", Node: node.Name})
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "other", Node: node.Name, Labels: map[string]string{"app": "free"}})
	free := b.c.PDB(t, ns, "free", "0")
	r, err := Read(t.Context(), b.c.Name, b.kube.Watch, b.kube.Watch, []string{node.Name})
	if err != nil {
		t.Fatal(err)
	}
	plan := NewPlan(r, []Target{{Name: node.Name}}, Policy{Consents: []fleet.Consent{fleet.ConsentUnmanaged}}, time.Now())
	for i, p := range plan.Nodes[0].Pods {
		if p.Name == "other" {
			plan.Nodes[0].Pods[i].UID = "00000000-0000-0000-0000-000000000000"
		}
	}
	if n, err := Probe(t.Context(), b.kube.Ops, plan); n != 3 || err != nil {
		t.Fatalf("asked about %d, %v", n, err)
	}
	want := map[string]int{"lone": http.StatusCreated, "other": http.StatusConflict}
	for _, p := range plan.Nodes[0].Pods {
		code, known := want[p.Name]
		if !known {
			code = http.StatusTooManyRequests
		}
		if p.Probe == nil || p.Probe.HTTP != code || p.Probe.Allowed != (code == http.StatusCreated) {
			t.Errorf("%s: %+v, want %d", p.Name, p.Probe, code)
		}
	}
	for _, e := range b.c.AuditLog(t).Writes(b.mark, "pods", kubetest.ByAgent(b.agent)) {
		if !e.DryRun() {
			t.Errorf("a request that was meant: %s", e.Request)
		}
	}
	for _, name := range []string{pdb.Name, free.Name} {
		b.c.WaitPDB(t, ns, name, func(p *policyv1.PodDisruptionBudget) bool { return p != nil && len(p.Status.DisruptedPods) == 0 })
	}
	if got := b.podsOn(node.Name); len(got) != 3 {
		t.Errorf("on the node are %v", got)
	}
}

// canned answers the first evictions in the place of the API server.
type canned struct {
	http.RoundTripper
	mu      sync.Mutex // guards answers
	answers []func(*http.Request) (*http.Response, error)
}

func (c *canned) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasSuffix(r.URL.Path, "/eviction") {
		c.mu.Lock()
		var answer func(*http.Request) (*http.Response, error)
		if len(c.answers) > 0 {
			answer, c.answers = c.answers[0], c.answers[1:]
		}
		c.mu.Unlock()
		if answer != nil {
			return answer(r)
		}
	}
	return c.RoundTripper.RoundTrip(r)
}

// WrappedRoundTripper lets client-go find the transport below.
func (c *canned) WrappedRoundTripper() http.RoundTripper { return c.RoundTripper }

// text is an answer with a body.
func text(code int, header, body string) func(*http.Request) (*http.Response, error) {
	return func(r *http.Request) (*http.Response, error) {
		h := http.Header{"Content-Type": {"application/json"}}
		if k, v, ok := strings.Cut(header, ": "); ok {
			h.Set(k, v)
		}
		if !strings.HasPrefix(body, "{") {
			h.Set("Content-Type", "text/plain")
		}
		return &http.Response{StatusCode: code, Header: h, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
	}
}

// tolerateAll lets the pods of a Deployment go to cordoned nodes.
func tolerateAll(d *appsv1.Deployment) {
	d.Spec.Template.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
}

// TestDrain_Answers has each kind of answer come before the real one: none is mistaken for another, none ends the drain,
// and none becomes a deletion (edge cases 14, 32, 33, 37).
func TestDrain_Answers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		answer func(*http.Request) (*http.Response, error)
		code   int
		want   fleet.PodState
	}{
		{"throttled", text(http.StatusTooManyRequests, "Retry-After: 1", "Too many requests, please try again later."), 429, fleet.PodThrottled},
		{"denied by a webhook", text(http.StatusForbidden, "", `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"admission webhook \"w\" denied the request: moving it myself","code":403}`), 403, fleet.PodBlockedByHook},
		{"a webhook is down", text(http.StatusInternalServerError, "", `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"InternalError","message":"failed calling webhook","details":{"causes":[{"message":"EOF"}]},"code":500}`), 500, fleet.PodUnanswered},
		{"the namespace goes", text(http.StatusForbidden, "", `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","message":"x","details":{"name":"p","kind":"pods","causes":[{"reason":"NamespaceTerminating","message":"y"}]},"code":403}`), 403, fleet.PodNamespaceGoing},
		{"forbidden by an admission", text(http.StatusForbidden, "", `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","message":"x","details":{"name":"p","kind":"pods"},"code":403}`), 403, fleet.PodBlockedByHook},
		{"conflict, and it is the same pod", text(http.StatusConflict, "", `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Conflict","message":"x","code":409}`), 409, fleet.PodUnanswered},
		{"no answer", func(*http.Request) (*http.Response, error) { return nil, errors.New("connection reset") }, 0, fleet.PodUnanswered},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, func(cfg *rest.Config) {
				cfg.Wrap(func(rt http.RoundTripper) http.RoundTripper {
					return &canned{RoundTripper: rt, answers: []func(*http.Request) (*http.Response, error){tt.answer}}
				})
			})
			ns := b.c.Namespace(t)
			node := b.c.Node(t, kubetest.NodeSpec{})
			pod := b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Node: node.Name})
			d := b.start(node, consenting(fleet.ConsentUnmanaged), hasty)
			if got := d.pod(pod.Name, tt.want); got.HTTP != tt.code || got.Attempt != 1 {
				t.Errorf("got %+v", got)
			}
			if res := d.end(fleet.DrainDone, nil); res.Pods[0].Attempt != 2 || len(b.evictions()) != 1 {
				t.Errorf("result %+v, evicted %v", res, b.evictions())
			}
		})
	}
}

// TestDrain_AnswerLost: the API server did it and the answer never came. It is not done twice.
func TestDrain_AnswerLost(t *testing.T) {
	t.Parallel()
	b := newBench(t, func(cfg *rest.Config) {
		cfg.Wrap(func(rt http.RoundTripper) http.RoundTripper {
			return &canned{RoundTripper: rt, answers: []func(*http.Request) (*http.Response, error){func(r *http.Request) (*http.Response, error) {
				resp, err := rt.RoundTrip(r)
				if err != nil {
					return nil, err
				}
				_ = resp.Body.Close() // nothing in it is wanted
				return nil, errors.New("connection reset")
			}}}
		})
	})
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	free := b.held(ns, "held", node.Name) // it does not go before the drain has had a chance to do it again
	d := b.start(node, consenting(fleet.ConsentUnmanaged), hasty)
	d.pod("held", fleet.PodTerminating)
	d.wait("the wait", func(e fleet.DrainEvent) bool { return e.NodeState == fleet.DrainTerminating })
	free()
	res := d.end(fleet.DrainDone, nil)
	if n := len(b.c.AuditLog(t).Writes(b.mark, "pods", kubetest.ByAgent(b.agent))); n != 1 || res.Pods[0].State != fleet.PodGone {
		t.Errorf("%d requests, %+v", n, res)
	}
}

// TestCase31_FiveOfFive: a Deployment of 5 of which 4 must be there, on 5 nodes that are drained together, never has
// fewer than 4 that are ready (edge case 31).
func TestCase31_FiveOfFive(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	nodes := b.c.Nodes(t, 5, func(int) kubetest.NodeSpec { return kubetest.NodeSpec{Pods: "1"} })
	b.c.Deployment(t, 5, kubetest.PodSpec{Namespace: ns, Name: "web"})
	b.c.PDB(t, ns, "web", "4")
	b.c.Nodes(t, 2, nil) // where they go
	ctx, cancel := context.WithCancel(t.Context())
	least, watched := 5, make(chan struct{})
	list, err := b.c.Client().CoreV1().Pods(ns).List(ctx, metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil {
		t.Fatal(err)
	}
	w, err := b.c.Client().CoreV1().Pods(ns).Watch(ctx, metav1.ListOptions{LabelSelector: "app=web", ResourceVersion: list.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	up := map[types.UID]bool{}
	for i := range list.Items {
		up[list.Items[i].UID] = ready(&list.Items[i])
	}
	go func() {
		defer close(watched)
		for e := range w.ResultChan() {
			p, ok := e.Object.(*corev1.Pod)
			if !ok {
				continue
			}
			up[p.UID] = ready(p) && p.DeletionTimestamp == nil && e.Type != "DELETED"
			n := 0
			for _, is := range up {
				if is {
					n++
				}
			}
			least = min(least, n)
		}
	}()
	var drains []*drainage
	for _, n := range nodes {
		drains = append(drains, b.start(n))
	}
	for _, d := range drains {
		d.end(fleet.DrainDone, nil)
	}
	cancel()
	w.Stop()
	<-watched
	if least < 4 {
		t.Errorf("only %d were ready at a time", least)
	}
	if n := len(b.evictions()); n != 5 {
		t.Errorf("%d evictions, want 5", n)
	}
}

// TestCase47_Uncordoned is edge case 47.
func TestCase47_Uncordoned(t *testing.T) {
	t.Parallel()
	b, node, pod := b1(t)
	d := b.start(node)
	d.pod(pod.Name, fleet.PodBlockedByPDB)
	b.c.Uncordon(t, node.Name)
	d.end(fleet.DrainUncordoned, fleet.ErrConflict)
}

// b1 is a node with one pod whose budget lets nobody go.
func b1(t *testing.T) (*bench, *corev1.Node, *corev1.Pod) {
	t.Helper()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	b.c.Deployment(t, 1, kubetest.PodSpec{Namespace: ns, Name: "web"})
	b.c.PDB(t, ns, "web", "1")
	return b, node, b.podOn(ns, "web", node.Name)
}

// TestCase38_NodeGoneOrReplaced is edge case 38.
func TestCase38_NodeGoneOrReplaced(t *testing.T) {
	t.Parallel()
	b, node, pod := b1(t)
	d := b.start(node)
	d.pod(pod.Name, fleet.PodBlockedByPDB)
	b.c.DeleteNode(t, node.Name)
	d.end(fleet.DrainGone, fleet.ErrNotFound)
	b.start(node).end(fleet.DrainGone, fleet.ErrNotFound)
	again := b.c.Node(t, kubetest.NodeSpec{Name: node.Name})
	if res := b.start(node).end(fleet.DrainReplaced, fleet.ErrConflict); res.Cordoned || again.UID == node.UID {
		t.Errorf("result %+v", res)
	}
}

// TestCase35_CordonRefused is edge case 35: no eviction without a cordon.
func TestCase35_CordonRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	b.c.Deployment(t, 1, kubetest.PodSpec{Namespace: ns, Name: "web"})
	d := b.start(node, func(j *Job) {
		j.Cordon = func(context.Context) error { return fmt.Errorf("no: %w", fleet.ErrForbidden) }
	})
	if res := d.end(fleet.DrainFailed, fleet.ErrForbidden); res.Cordoned || len(b.evictions()) != 0 {
		t.Errorf("result %+v, evicted %v", res, b.evictions())
	}
}

// TestCase34_MayNotEvict is edge case 34: without the right to evict, the node is not cordoned either.
func TestCase34_MayNotEvict(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	user := kubetest.Name(t, "user")
	c.Grant(t, user, kubetest.Rule("", "nodes", "get", "list", "watch", "patch"), kubetest.Rule("", "pods", "get", "list", "watch"))
	b := newBench(t, func(cfg *rest.Config) { *cfg = *c.User(t, user) })
	node := c.Node(t, kubetest.NodeSpec{})
	if res := b.start(node).end(fleet.DrainFailed, fleet.ErrForbidden); res.Cordoned {
		t.Errorf("result %+v", res)
	}
	if w := c.AuditLog(t).Writes(b.mark, "nodes", kubetest.ByAgent(b.agent)); len(w) != 0 {
		t.Errorf("written: %v", w)
	}
}

// TestCase36_BudgetsUnreadable: whoever may evict but not read budgets can drain, and the plan says what it does not know
// (edge case 36).
func TestCase36_BudgetsUnreadable(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	user := kubetest.Name(t, "user")
	c.Grant(t, user, kubetest.Rule("", "nodes", "get", "list", "watch", "patch"), kubetest.Rule("", "pods", "get", "list", "watch"),
		rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods/eviction"}, Verbs: []string{"create"}})
	b := newBench(t, func(cfg *rest.Config) { *cfg = *c.User(t, user) })
	ns := c.Namespace(t)
	nodes := c.Nodes(t, 2, nil)
	c.Deployment(t, 4, kubetest.PodSpec{Namespace: ns, Name: "web"})
	r, err := Read(t.Context(), c.Name, b.kube.Watch, b.kube.Watch, []string{nodes[0].Name})
	if err != nil {
		t.Fatal(err)
	}
	plan := NewPlan(r, []Target{{Name: nodes[0].Name}}, Policy{}, time.Now())
	if p := plan.Nodes[0].Pods; len(p) == 0 || p[0].Budget.Allowance != fleet.AllowNotEvaluated || !slices.Contains(plan.Missing, "poddisruptionbudgets") {
		t.Errorf("plan %+v", plan)
	}
	res := b.start(nodes[0]).end(fleet.DrainDone, nil)
	if res.Message == "" || len(b.evictions()) != len(plan.Nodes[0].Pods) {
		t.Errorf("result %+v, evicted %v", res, b.evictions())
	}
}

// TestCase29_LatePod is edge case 29: a pod that is bound to the node after the list.
func TestCase29_LatePod(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	nodes := b.c.Nodes(t, 2, nil)
	b.c.Deployment(t, 2, kubetest.PodSpec{Namespace: ns, Name: "web"})
	pdb := b.c.PDB(t, ns, "web", "2")
	pods := b.c.WaitPods(t, ns, "web", func(p []*corev1.Pod) bool { return len(p) == 2 })
	node := nodes[0]
	if pods[0].Spec.NodeName != node.Name {
		node = nodes[1]
	}
	d := b.start(node, consenting(fleet.ConsentUnmanaged))
	d.pod(pods[0].Name, fleet.PodBlockedByPDB)
	late := b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "late", Node: node.Name, Pending: true})
	d.pod("late", fleet.PodGone)
	b.relax(ns, pdb.Name)
	d.end(fleet.DrainDone, nil)
	if got := b.evictions(); got[string(late.UID)] == "" {
		t.Errorf("evicted %v", got)
	}
}

// TestCase28_KeepsReturning is edge case 28: a pod that tolerates everything comes back once, and is not chased.
func TestCase28_KeepsReturning(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	free := b.held(ns, "held", node.Name) // the node is not drained before the other one is back
	b.c.Deployment(t, 1, kubetest.PodSpec{Namespace: ns, Name: "sticky"}, tolerateAll)
	d := b.start(node, consenting(fleet.ConsentUnmanaged))
	d.wait("a pod that is skipped", func(e fleet.DrainEvent) bool { return e.Pod != nil && e.Pod.State == fleet.PodSkipped })
	free()
	d.end(fleet.DrainPartial, nil)
	if got := b.evictions(); len(got) != 2 {
		t.Errorf("evicted %v", got)
	}
}

// held is a pod that does not go before it is freed.
func (b *bench) held(ns, name, node string) (free func()) {
	b.t.Helper()
	return b.heldWith(ns, name, node, nil)
}

func (b *bench) heldWith(ns, name, node string, labels map[string]string) (free func()) {
	b.t.Helper()
	b.c.Pod(b.t, kubetest.PodSpec{Namespace: ns, Name: name, Node: node, Labels: labels, Mutate: func(p *corev1.Pod) { p.Finalizers = []string{"example.com/hold"} }})
	free = sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(b.t.Context()), 10*time.Second)
		defer cancel()
		_, err := b.c.Client().CoreV1().Pods(ns).Patch(ctx, name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
		if err != nil {
			b.t.Errorf("freeing %s: %v", name, err)
		}
	})
	b.t.Cleanup(free) // so that the namespace can go
	return free
}

// TestCase18_Grace is edge case 18: an override only shortens, and to nothing only by force.
func TestCase18_Grace(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "long", Node: node.Name, Grace: new(int64(60))})
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "short", Node: node.Name, Grace: new(int64(2))})
	graced := func(n int64) func(*Job) { return func(j *Job) { j.Options.Grace = &n } }
	for _, n := range []int64{0, -1} {
		if res := b.start(node, consenting(fleet.ConsentUnmanaged), graced(n)).end(fleet.DrainFailed, fleet.ErrInvalid); res.Cordoned {
			t.Errorf("grace %d: %+v", n, res)
		}
	}
	b.start(node, consenting(fleet.ConsentUnmanaged), graced(5)).end(fleet.DrainDone, nil)
	got := map[string]int64{}
	for _, e := range b.c.AuditLog(t).Writes(b.mark, "pods/eviction", kubetest.ByAgent(b.agent)) {
		var body policyv1.Eviction
		if err := json.Unmarshal(e.Request, &body); err != nil {
			t.Fatal(err)
		}
		got[e.Name] = *body.DeleteOptions.GracePeriodSeconds
	}
	if got["long"] != 5 || got["short"] != 2 {
		t.Errorf("grace periods %v", got)
	}
}

// TestDrain_Excluded is DR-13: what a selector leaves out makes the drain partial.
func TestDrain_Excluded(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "go", Node: node.Name, Labels: map[string]string{"go": "yes"}})
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "stay", Node: node.Name})
	b.start(node, func(j *Job) {
		j.Options.Policy = Policy{Consents: []fleet.Consent{fleet.ConsentUnmanaged}, Selector: labels.SelectorFromSet(labels.Set{"go": "yes"})}
	}).end(fleet.DrainPartial, nil)
	if got := b.podsOn(node.Name); !slices.Equal(got, []string{"stay"}) {
		t.Errorf("on the node are %v", got)
	}
}

// TestCase40_Volumes is edge case 40: the node is not done while a volume is attached to it.
func TestCase40_Volumes(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	node, other := b.c.Node(t, kubetest.NodeSpec{}), b.c.Node(t, kubetest.NodeSpec{})
	b.attach("pv-elsewhere", other.Name)
	name := b.attach("pv-here", node.Name)
	d := b.start(node)
	d.wait("the wait for volumes", func(e fleet.DrainEvent) bool { return e.NodeState == fleet.DrainDetaching })
	if err := b.c.Client().StorageV1().VolumeAttachments().Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if res := d.end(fleet.DrainDone, nil); len(res.Volumes) != 0 {
		t.Errorf("result %+v", res)
	}
	b.attach("pv-forever", node.Name)
	res := b.start(node, func(j *Job) { j.Options.DetachTimeout = time.Second }).end(fleet.DrainDone, nil)
	if !slices.Equal(res.Volumes, []string{"pv-forever"}) || res.Message == "" {
		t.Errorf("result %+v", res)
	}
}

// attach says that a volume is attached to a node.
func (b *bench) attach(volume, node string) string {
	b.t.Helper()
	a := &storagev1.VolumeAttachment{
		ObjectMeta: metav1.ObjectMeta{Name: kubetest.Name(b.t, "va")},
		Spec: storagev1.VolumeAttachmentSpec{
			Attacher: "example.com", NodeName: node, Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &volume},
		},
	}
	if _, err := b.c.Client().StorageV1().VolumeAttachments().Create(b.t.Context(), a, metav1.CreateOptions{}); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(b.t.Context()), 10*time.Second)
		defer cancel()
		_ = b.c.Client().StorageV1().VolumeAttachments().Delete(ctx, a.Name, metav1.DeleteOptions{}) // the test may have
	})
	return a.Name
}
