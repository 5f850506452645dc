package drain

// The edge cases of a drain, by number. Some are where they came from: 1, 2, 3, 9, 10, 11, 18, 23, 24, 28, 29, 31, 34,
// 35, 36, 38, 40 and 47 in drain_test.go. Every other test of this package is watched by witness_test.go, which is what
// case 9 asks for.
//
// What this cluster, whose kubelets are KWOK, cannot express:
//
//   - 9, and 42 with "disruptions allowed is negative": the API server refuses such a status, and our own code cannot send
//     an eviction with the uid of another pod. That the meanings are told apart is in answer_test.go.
//   - 19: a drain does not evict again what is on its way out, so that it neither shortens nor lengthens anything. The
//     test shows that it leaves such a pod alone.
//   - 20 with a DaemonSet that is gone and still named: the garbage collector takes such pods away, or the name out of
//     them. The test has both, the former where no controllers run.
//   - 39: nobody detaches volumes from a node without a kubelet, and no test waits the six minutes of the real one.
//   - 43: that another replica goes on is the business of batches; here it is that our own pod goes last.
//   - 44 to 46 and 48 to 57 are about cordons, locks and batches.

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// status changes the status of a pod as its kubelet would.
func (b *bench) status(ns, pod, patch string) *corev1.Pod {
	b.t.Helper()
	p, err := b.c.Client().CoreV1().Pods(ns).Patch(b.t.Context(), pod, types.StrategicMergePatchType, []byte(`{"status":`+patch+`}`), metav1.PatchOptions{}, "status")
	if err != nil {
		b.t.Fatal(err)
	}
	return p
}

// unready makes a pod unhealthy, and waits until its budget counts so many healthy ones.
func (b *bench) unready(pod *corev1.Pod, pdb string, healthy int32) {
	b.t.Helper()
	b.status(pod.Namespace, pod.Name, `{"conditions":[{"type":"Ready","status":"False"}]}`)
	b.c.WaitPDB(b.t, pod.Namespace, pdb, func(p *policyv1.PodDisruptionBudget) bool {
		return p != nil && p.Status.CurrentHealthy == healthy
	})
}

func (b *bench) patchPDB(ns, pdb, patch string) {
	b.t.Helper()
	_, err := b.c.Client().PolicyV1().PodDisruptionBudgets(ns).Patch(b.t.Context(), pdb, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
}

// plan is what would happen to the pods of a node, by name.
func (b *bench) plan(node string, pol Policy) map[string]fleet.PodPlan {
	b.t.Helper()
	r, err := Read(b.t.Context(), b.c.Name, b.kube.Watch, b.kube.Watch, []string{node})
	if err != nil {
		b.t.Fatal(err)
	}
	out := map[string]fleet.PodPlan{}
	for _, p := range NewPlan(r, []Target{{Name: node}}, pol, time.Now()).Nodes[0].Pods {
		out[p.Name] = p
	}
	return out
}

// spread puts each pod of an app on a node of its own, and returns one of them.
func (b *bench) spread(ns string, replicas int32) (node *corev1.Node, pod *corev1.Pod) {
	b.t.Helper()
	nodes := b.c.Nodes(b.t, int(replicas), func(int) kubetest.NodeSpec { return kubetest.NodeSpec{Pods: "1"} })
	b.c.Deployment(b.t, replicas, kubetest.PodSpec{Namespace: ns, Name: "web"})
	return nodes[0], b.podOn(ns, "web", nodes[0].Name)
}

// hasReason tells whether a pod's reasons have a code.
func hasReason(p fleet.PodProgress, code string) bool {
	return slices.ContainsFunc(p.Reasons, func(r fleet.Reason) bool { return r.Code == code })
}

// Two budgets, of which neither is asked: the pod does not run yet, or not any more.
func TestCase04_BudgetsNotAsked(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.meter.unasked = true
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	app := map[string]string{"app": "web"}
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "pending", Node: node.Name, Labels: app, Pending: true})
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "done", Node: node.Name, Labels: app})
	b.status(ns, "done", `{"phase":"Succeeded"}`)
	free := b.heldWith(ns, "ending", node.Name, app)
	if err := b.c.Client().CoreV1().Pods(ns).Delete(t.Context(), "ending", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	b.c.PDB(t, ns, "web", "1")
	b.c.PDB(t, ns, "web", "1")
	d := b.start(node, patient, consenting(fleet.ConsentUnmanaged))
	d.pod("pending", fleet.PodGone)
	d.pod("done", fleet.PodGone)
	free()
	d.end(fleet.DrainDone, nil)
	for _, e := range d.events {
		if e.Pod != nil && e.Pod.HTTP >= http.StatusBadRequest {
			t.Errorf("refused: %+v", e.Pod)
		}
	}
	if got := b.evictions(); len(got) != 2 {
		t.Errorf("evicted %v", got)
	}
}

// A pod that is bound and does not run yet goes, whatever its budget says.
func TestCase05_PendingPod(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	pod := b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "new", Node: node.Name, Labels: map[string]string{"app": "web"}, Pending: true})
	pdb := b.c.PDB(t, ns, "web", "1")
	if p := b.plan(node.Name, Policy{})["new"]; p.Budget == nil || p.Budget.Allowance != fleet.AllowFree || pdb.Status.DisruptionsAllowed != 0 {
		t.Errorf("plan %+v", p.Budget)
	}
	b.start(node, patient, consenting(fleet.ConsentUnmanaged)).end(fleet.DrainDone, nil)
	if got := b.evictions(); got[string(pod.UID)] == "" {
		t.Errorf("evicted %v", got)
	}
}

// A pod that is not ready counts while the application is short of healthy ones, unless its budget says otherwise.
func TestCase06_UnhealthyPod(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node, pod := b.spread(ns, 2)
	pdb := b.c.PDB(t, ns, "web", "2")
	b.unready(pod, pdb.Name, 1)
	d := b.start(node, patient)
	if got := d.pod(pod.Name, fleet.PodBlockedByPDB); got.HTTP != http.StatusTooManyRequests || got.Healthy != 1 || got.Needed != 2 {
		t.Errorf("blocked: %+v", got)
	}
	b.patchPDB(ns, pdb.Name, `{"spec":{"unhealthyPodEvictionPolicy":"AlwaysAllow"}}`)
	d.end(fleet.DrainDone, nil)
	b.c.WaitPDB(t, ns, pdb.Name, func(p *policyv1.PodDisruptionBudget) bool {
		if p.Status.DisruptionsAllowed != 0 || len(p.Status.DisruptedPods) != 0 {
			t.Errorf("the budget was spent: %+v", p.Status)
		}
		return true
	})
	if got := b.evictions(); len(got) != 1 {
		t.Errorf("evicted %v", got)
	}
}

// A pod that is not ready goes when the others are enough, although no disruption is allowed.
func TestCase07_UnhealthyPodOfHealthyApp(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node, pod := b.spread(ns, 3)
	pdb := b.c.PDB(t, ns, "web", "2")
	b.unready(pod, pdb.Name, 2)
	if p := b.plan(node.Name, Policy{})[pod.Name]; p.Budget == nil || p.Budget.Why != WhyUnhealthy {
		t.Errorf("plan %+v", p.Budget)
	}
	b.start(node, patient).end(fleet.DrainDone, nil)
	if got := b.evictions(); len(got) != 1 {
		t.Errorf("evicted %v", got)
	}
}

// Where no pod need be healthy, one that is not is counted like the others.
func TestCase08_NoneNeeded(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node, pod := b.spread(ns, 2)
	pdb := b.c.PDB(t, ns, "web", "0", func(p *policyv1.PodDisruptionBudget) {
		p.Spec.MinAvailable, p.Spec.MaxUnavailable = nil, new(intstr.FromString("100%"))
	})
	b.unready(pod, pdb.Name, 1)
	if p := b.plan(node.Name, Policy{})[pod.Name]; p.Budget == nil || p.Budget.Allowance != fleet.AllowNow {
		t.Errorf("plan %+v", p.Budget)
	}
	w, err := b.c.Client().PolicyV1().PodDisruptionBudgets(ns).Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	b.start(node, patient).end(fleet.DrainDone, nil)
	for e := range w.ResultChan() {
		if p, ok := e.Object.(*policyv1.PodDisruptionBudget); ok {
			if _, counted := p.Status.DisruptedPods[pod.Name]; counted {
				return
			}
		}
	}
	t.Error("the eviction was not counted")
}

// A pod of a StatefulSet that can run on this node only is evicted once; its twin waits for the node, which is drained.
func TestCase12_PinnedTwin(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	b.c.Node(t, kubetest.NodeSpec{})
	b.c.StatefulSet(t, 1, kubetest.PodSpec{Namespace: ns, Name: "db"}, func(s *appsv1.StatefulSet) {
		s.Spec.Template.Spec.NodeSelector[corev1.LabelHostname] = node.Name
	})
	b.podOn(ns, "db", node.Name)
	if p := b.plan(node.Name, Policy{})["db-0"]; p.Fit == nil || p.Fit.Node != "" || p.Fit.Refused["affinity"] == 0 {
		t.Errorf("plan %+v", p.Fit)
	}
	b.start(node).end(fleet.DrainDone, nil)
	twin := b.c.WaitPod(t, ns, "db-0", func(p *corev1.Pod) bool { return p != nil && p.DeletionTimestamp == nil })
	if got := b.evictions(); len(got) != 1 || got[string(twin.UID)] != "" || twin.Spec.NodeName != "" {
		t.Errorf("evicted %v; the twin %s is on %q", got, twin.UID, twin.Spec.NodeName)
	}
}

// Cases on a cluster whose controllers are stopped: nobody works budgets out, and nobody ends namespaces.
func TestCase13_15_20_42_ControllersStopped(t *testing.T) {
	t.Parallel()
	c := kubetest.StartOne(t)
	ns := c.Namespace(t)
	nodes := c.Nodes(t, 4, nil)
	app := func(name string) map[string]string { return map[string]string{"app": name} }
	c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "lagging", Node: nodes[0].Name, Labels: app("lagging")})
	lagging := c.PDB(t, ns, "lagging", "0")
	ending := c.Namespace(t)
	c.Pod(t, kubetest.PodSpec{Namespace: ending, Name: "left", Node: nodes[1].Name})
	c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "many", Node: nodes[2].Name, Labels: app("many")})
	many := c.PDB(t, ns, "many", "0")
	c.Pause(t, kubetest.ControllerManager)
	bench := func(t *testing.T) *bench {
		t.Helper()
		b := newBenchOn(t, c)
		b.meter.frozen = true
		return b
	}

	t.Run("Case13_LaggingBudget", func(t *testing.T) {
		t.Parallel()
		b := bench(t)
		b.patchPDB(ns, lagging.Name, `{"spec":{"minAvailable":1}}`)
		d := b.start(nodes[0], hasty, consenting(fleet.ConsentUnmanaged))
		asked := time.Now()
		// At once: what client-go does by itself takes ten tries of ten seconds.
		got := d.pod("lagging", fleet.PodBlockedByPDB)
		if got.HTTP != http.StatusTooManyRequests || got.Message == "" || got.Until == nil || got.Until.Sub(asked) < 5*time.Second {
			t.Errorf("blocked: %+v", got)
		}
		if n := len(b.c.AuditLog(t).Writes(b.mark, "pods/eviction", kubetest.ByAgent(b.agent))); n != 1 {
			t.Errorf("%d requests, want 1", n)
		}
		if p := b.plan(nodes[0].Name, Policy{})["lagging"]; p.Budget == nil || p.Budget.Why != WhyLagging {
			t.Errorf("plan %+v", p.Budget)
		}
		d.cancel()
		d.end(fleet.DrainCancelled, context.Canceled)
	})
	t.Run("Case15_NamespaceTerminating", func(t *testing.T) {
		t.Parallel()
		b := bench(t)
		if err := c.Client().CoreV1().Namespaces().Delete(t.Context(), ending, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		d := b.start(nodes[1], hasty, consenting(fleet.ConsentUnmanaged))
		if got := d.pod("left", fleet.PodNamespaceGoing); got.HTTP != http.StatusForbidden || got.Message == "" {
			t.Errorf("got %+v", got)
		}
		if err := c.Client().CoreV1().Pods(ending).Delete(t.Context(), "left", metav1.DeleteOptions{}); err != nil { // as the controller will
			t.Fatal(err)
		}
		d.end(fleet.DrainDone, nil)
	})
	t.Run("Case42_TooManyDisruptions", func(t *testing.T) {
		t.Parallel()
		b := bench(t)
		counted := map[string]metav1.Time{}
		for i := range 2001 {
			counted[fmt.Sprintf("gone-%d", i)] = metav1.Now()
		}
		status := map[string]any{"status": map[string]any{"disruptionsAllowed": 1, "disruptedPods": counted}}
		patch, err := json.Marshal(status)
		if err != nil {
			t.Fatal(err)
		}
		api := c.Client().PolicyV1().PodDisruptionBudgets(ns)
		if _, err := api.Patch(t.Context(), many.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
		d := b.start(nodes[2], hasty, consenting(fleet.ConsentUnmanaged))
		if got := d.pod("many", fleet.PodBlockedByPDB); got.HTTP != http.StatusForbidden || got.Message == "" {
			t.Errorf("got %+v", got)
		}
		if _, err := api.Patch(t.Context(), many.Name, types.MergePatchType, []byte(`{"status":{"disruptedPods":null}}`), metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
		d.end(fleet.DrainDone, nil)
	})
	t.Run("Case20_DaemonSetGone", func(t *testing.T) {
		t.Parallel()
		b := bench(t)
		b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "agent-x", Node: nodes[3].Name, Mutate: ownedBy("apps/v1", "DaemonSet", "gone")})
		d := b.start(nodes[3])
		d.end(fleet.DrainBlocked, fleet.ErrBlocked)
		if got := d.pod("agent-x", fleet.PodBlocked); !hasReason(got, CodeDaemonSetOrphan) {
			t.Errorf("reasons %+v", got.Reasons)
		}
		b.start(nodes[3], consenting(fleet.ConsentForce)).end(fleet.DrainDone, nil)
	})
}

// An API server that is too busy is not a budget, and slows nobody down but those whom it asks.
func TestCase14_Throttled(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	user := kubetest.Name(t, "user")
	c.Grant(t, user, kubetest.Rule("", "nodes", "get", "list", "watch", "patch"), kubetest.Rule("", "pods", "get", "list", "watch"),
		kubetest.Rule("", "pods/eviction", "create"), kubetest.Rule("policy", "poddisruptionbudgets", "list", "watch"))
	level, none := kubetest.Name(t, "level"), int32(0)
	_, err := c.Client().FlowcontrolV1().PriorityLevelConfigurations().Create(t.Context(), &flowcontrolv1.PriorityLevelConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: level},
		Spec: flowcontrolv1.PriorityLevelConfigurationSpec{
			Type: flowcontrolv1.PriorityLevelEnablementLimited,
			Limited: &flowcontrolv1.LimitedPriorityLevelConfiguration{
				NominalConcurrencyShares: &none, LendablePercent: &none, BorrowingLimitPercent: &none,
				LimitResponse: flowcontrolv1.LimitResponse{Type: flowcontrolv1.LimitResponseTypeReject},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	schema, err := c.Client().FlowcontrolV1().FlowSchemas().Create(t.Context(), &flowcontrolv1.FlowSchema{
		ObjectMeta: metav1.ObjectMeta{Name: level},
		Spec: flowcontrolv1.FlowSchemaSpec{
			PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: level}, MatchingPrecedence: 2,
			Rules: []flowcontrolv1.PolicyRulesWithSubjects{{
				Subjects: []flowcontrolv1.Subject{{Kind: flowcontrolv1.SubjectKindUser, User: &flowcontrolv1.UserSubject{Name: user}}},
				ResourceRules: []flowcontrolv1.ResourcePolicyRule{{
					Verbs: []string{"create"}, APIGroups: []string{""}, Resources: []string{"pods/eviction"}, Namespaces: []string{"*"},
				}},
			}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
		defer cancel()
		if err := c.Client().FlowcontrolV1().FlowSchemas().Delete(ctx, level, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	var served atomic.Value // uid of the flow schema of the last answer
	b := newBench(t, func(cfg *rest.Config) {
		*cfg = *c.User(t, user)
		cfg.Wrap(func(rt http.RoundTripper) http.RoundTripper {
			return roundTrip{rt, func(r *http.Request) (*http.Response, error) {
				resp, err := rt.RoundTrip(r)
				if err == nil && strings.HasSuffix(r.URL.Path, "/eviction") {
					served.Store(resp.Header.Get(flowcontrolv1.ResponseHeaderMatchedFlowSchemaUID))
				}
				return resp, err
			}}
		})
	})
	other := newBench(t)
	ns := c.Namespace(t)
	nodes := c.Nodes(t, 2, nil)
	c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "lone", Node: nodes[0].Name})
	c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "other", Node: nodes[1].Name})
	b.waitAnswer(ns, "lone", func(answer) bool { return served.Load() == string(schema.UID) })
	free := b.occupied()
	d := b.start(nodes[0], hasty, consenting(fleet.ConsentUnmanaged))
	if got := d.pod("lone", fleet.PodThrottled); got.HTTP != http.StatusTooManyRequests || len(got.Budgets) != 0 || got.Until == nil {
		t.Errorf("throttled: %+v", got)
	}
	other.start(nodes[1], consenting(fleet.ConsentUnmanaged)).end(fleet.DrainDone, nil)
	free()
	d.end(fleet.DrainDone, nil)
	for _, e := range d.events {
		if e.Pod != nil && e.Pod.State == fleet.PodBlockedByPDB {
			t.Errorf("taken for a budget: %+v", e.Pod)
		}
	}
}

// occupied has the API server be at work on an eviction of the bench's user: the only seat that a level without any has
// is that of the one request which it lets in when it has nothing else to do.
func (b *bench) occupied() (free func()) {
	b.t.Helper()
	ns := b.c.Namespace(b.t)
	b.c.Pod(b.t, kubetest.PodSpec{Namespace: ns, Name: "slow", Node: b.c.Node(b.t, kubetest.NodeSpec{}).Name})
	entered, done := make(chan struct{}), make(chan struct{})
	enter := sync.OnceFunc(func() { close(entered) })
	b.hook(ns, func(_ http.ResponseWriter, r *http.Request) {
		enter()
		select {
		case <-done:
		case <-r.Context().Done():
		}
	})
	ctx, cancel := context.WithCancel(b.t.Context())
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		dry := &policyv1.Eviction{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "slow"}, DeleteOptions: &metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}},
		}
		for ctx.Err() == nil { // until the server has heard of the webhook, and then in it
			_ = b.kube.Ops.PolicyV1().Evictions(ns).Evict(ctx, dry) // whatever comes of it
		}
	}()
	free = sync.OnceFunc(func() {
		cancel()
		close(done)
		<-asked
	})
	b.t.Cleanup(free)
	select {
	case <-entered:
	case <-time.After(time.Minute):
		b.t.Fatal("the API server asks no webhook")
	}
	return free
}

// waitAnswer asks with dry runs until the answer is as wanted: the API server takes in such configuration in its own time.
func (b *bench) waitAnswer(ns, name string, want func(answer) bool) {
	b.t.Helper()
	p, err := b.c.Client().CoreV1().Pods(ns).Get(b.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		a := interpret(post(b.t.Context(), b.kube.Ops, p, nil, true))
		if want(a) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			b.t.Fatalf("the last answer is %+v", a)
		}
	}
}

// A pod that somebody's finalizer holds is late, the finalizer is named, and the node is not drained.
func TestCase16_ForeignFinalizer(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	free := b.held(ns, "held", node.Name)
	grace := int64(1)
	d := b.start(node, consenting(fleet.ConsentUnmanaged), func(j *Job) { j.Options.Grace, j.overdue = &grace, time.Second })
	got := d.pod("held", fleet.PodOverdue)
	if !strings.Contains(got.Message, "example.com/hold") {
		t.Errorf("overdue: %+v", got)
	}
	select {
	case <-d.done:
		t.Fatalf("it ended with the pod there: %+v", d.result)
	default:
	}
	free()
	d.end(fleet.DrainDone, nil)
}

// A pod that takes its time is seen to end, with the time that it has, and the node is not drained before.
func TestCase17_SlowEnd(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	b.c.Pod(t, kubetest.PodSpec{
		Namespace: ns, Name: "slow", Node: node.Name, Grace: new(int64(60)), Annotations: map[string]string{kubetest.DeleteDelay: "4s"},
	})
	d := b.start(node, consenting(fleet.ConsentUnmanaged))
	e := d.wait("the countdown", func(e fleet.DrainEvent) bool {
		return e.Pod != nil && e.Pod.State == fleet.PodTerminating && e.Pod.Until != nil
	})
	if left := e.Pod.Until.Sub(e.At); left < 30*time.Second || left > 61*time.Second {
		t.Errorf("%s are left of 60 s", left)
	}
	d.end(fleet.DrainDone, nil)
	gone := d.wait("the end of the pod", func(e fleet.DrainEvent) bool { return e.Pod != nil && e.Pod.State == fleet.PodGone })
	if took := gone.At.Sub(e.At); took < 2*time.Second { // its clock has whole seconds
		t.Errorf("it took %s, with a delay of 4 s", took)
	}
	if last := d.events[len(d.events)-1]; last.Seq < gone.Seq {
		t.Errorf("drained at %d, gone at %d", last.Seq, gone.Seq)
	}
}

// A pod that is on its way out is left alone, whatever grace period is asked for now.
func TestCase19_GraceOfTerminating(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	free := b.held(ns, "held", node.Name)
	if err := b.c.Client().CoreV1().Pods(ns).Delete(t.Context(), "held", metav1.DeleteOptions{GracePeriodSeconds: new(int64(20))}); err != nil {
		t.Fatal(err)
	}
	before := b.c.WaitPod(t, ns, "held", func(p *corev1.Pod) bool { return p != nil && p.DeletionTimestamp != nil })
	for _, grace := range []int64{5, 100} {
		d := b.start(node, consenting(fleet.ConsentUnmanaged), func(j *Job) { j.Options.Grace = &grace })
		d.wait("the wait", func(e fleet.DrainEvent) bool { return e.NodeState == fleet.DrainTerminating })
		d.cancel()
		d.end(fleet.DrainCancelled, context.Canceled)
	}
	after := b.c.WaitPod(t, ns, "held", func(p *corev1.Pod) bool { return p != nil })
	if !after.DeletionTimestamp.Equal(before.DeletionTimestamp) || len(b.evictions()) != 0 {
		t.Errorf("it ends at %s, not at %s; evicted %v", after.DeletionTimestamp, before.DeletionTimestamp, b.evictions())
	}
	free()
}

// A DaemonSet's pods stay; when the DaemonSet is deleted and leaves them behind, they need a consent.
func TestCase20_DaemonSet(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	b.c.DaemonSet(t, kubetest.PodSpec{Namespace: ns, Name: "agent"})
	pod := b.podOn(ns, "agent", node.Name)
	d := b.start(node)
	d.end(fleet.DrainDone, nil)
	if got := d.pod(pod.Name, fleet.PodIgnored); !hasReason(got, CodeDaemonSet) {
		t.Errorf("reasons %+v", got.Reasons)
	}
	err := b.c.Client().AppsV1().DaemonSets(ns).Delete(t.Context(), "agent", metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationOrphan)})
	if err != nil {
		t.Fatal(err)
	}
	b.c.WaitPod(t, ns, pod.Name, func(p *corev1.Pod) bool { return p != nil && len(p.OwnerReferences) == 0 })
	d = b.start(node)
	d.end(fleet.DrainBlocked, fleet.ErrBlocked)
	if got := d.pod(pod.Name, fleet.PodBlocked); !hasReason(got, CodeUnmanaged) {
		t.Errorf("reasons %+v", got.Reasons)
	}
	if len(b.evictions()) != 0 {
		t.Errorf("evicted %v", b.evictions())
	}
	b.start(node, consenting(fleet.ConsentUnmanaged)).end(fleet.DrainDone, nil)
}

// Pods of another's DaemonSet would come back at once, and mirror pods are not of the API server: both stay.
func TestCase21_22_PodsThatStay(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "kruise", Node: node.Name, Mutate: ownedBy("apps.kruise.io/v1alpha1", "DaemonSet", "foreign")})
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "static", Node: node.Name, Annotations: map[string]string{corev1.MirrorPodAnnotationKey: "x"}})
	d := b.start(node)
	d.end(fleet.DrainDone, nil)
	for pod, code := range map[string]string{"kruise": CodeDaemonSetForeign, "static": CodeMirror} {
		if got := d.pod(pod, fleet.PodIgnored); !hasReason(got, code) {
			t.Errorf("%s: reasons %+v", pod, got.Reasons)
		}
	}
	if w := b.c.AuditLog(t).Writes(b.mark, "pods", kubetest.ByAgent(b.agent)); len(w) != 0 {
		t.Errorf("written: %v", w)
	}
}

// What a pod that has ended left in an emptyDir blocks nothing.
func TestCase24_FinishedPodWithData(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	pod := b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "done", Node: node.Name, EmptyDir: true})
	b.status(ns, "done", `{"phase":"Succeeded"}`)
	b.start(node).end(fleet.DrainDone, nil)
	if got := b.evictions(); got[string(pod.UID)] == "" {
		t.Errorf("evicted %v", got)
	}
}

// A generic ephemeral volume is lost with its pod, and the plan says so.
func TestCase25_EphemeralVolume(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	template := &corev1.PersistentVolumeClaimTemplate{Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
	}}
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "cache", Node: node.Name, Pending: true, Mutate: func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "scratch", VolumeSource: corev1.VolumeSource{
			Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: template},
		}}}
	}})
	p := b.plan(node.Name, Policy{Consents: []fleet.Consent{fleet.ConsentUnmanaged}})["cache"]
	if !p.Has(CodeEphemeralVolume) || p.Verdict != fleet.VerdictEvict || !slices.Contains(codes(p.Impact), ImpactDataLoss) {
		t.Errorf("plan %+v", p)
	}
	d := b.start(node, consenting(fleet.ConsentUnmanaged))
	d.end(fleet.DrainDone, nil)
	if got := d.pod("cache", fleet.PodGone); !hasReason(got, CodeEphemeralVolume) {
		t.Errorf("reasons %+v", got.Reasons)
	}
}

// job makes a Job of one pod on a node.
func (b *bench) job(ns, node string, change func(*batchv1.Job)) *corev1.Pod {
	b.t.Helper()
	j := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: "job", Namespace: ns},
		Spec: batchv1.JobSpec{BackoffLimit: new(int32(0)), Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "job"}, Annotations: map[string]string{kubetest.CompleteDelay: "1h"}},
			Spec: corev1.PodSpec{
				NodeName: node, RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "main", Image: "example.com/app:1"}},
			},
		}},
	}
	change(j)
	if _, err := b.c.Client().BatchV1().Jobs(ns).Create(b.t.Context(), j, metav1.CreateOptions{}); err != nil {
		b.t.Fatal(err)
	}
	return b.c.WaitPods(b.t, ns, "job", func(p []*corev1.Pod) bool { return len(p) == 1 && p[0].Status.Phase != corev1.PodPending })[0]
}

// What a Job has finished is cleared away or left, as chosen, and holds nothing up.
func TestCase26_FinishedJob(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	pod := b.job(ns, node.Name, func(j *batchv1.Job) {
		j.Spec.Template.Annotations[kubetest.CompleteDelay] = "0s"
	})
	b.c.WaitPod(t, ns, pod.Name, func(p *corev1.Pod) bool {
		return p != nil && p.Status.Phase == corev1.PodSucceeded && len(p.Finalizers) == 0
	})
	d := b.start(node, func(j *Job) { j.Options.KeepFinished = true })
	d.end(fleet.DrainDone, nil)
	if got := d.pod(pod.Name, fleet.PodIgnored); !hasReason(got, CodeFinishedKept) || len(b.evictions()) != 0 {
		t.Errorf("reasons %+v, evicted %v", got.Reasons, b.evictions())
	}
	b.start(node).end(fleet.DrainDone, nil)
	if got := b.evictions(); got[string(pod.UID)] == "" || len(b.podsOn(node.Name)) != 0 {
		t.Errorf("evicted %v", got)
	}
}

// A Job that does not mind disruptions can tell an eviction from a failure.
func TestCase27_JobIgnoresDisruption(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	nodes := b.c.Nodes(t, 2, nil)
	pod := b.job(ns, nodes[0].Name, func(j *batchv1.Job) {
		j.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{
			Action: batchv1.PodFailurePolicyActionIgnore,
			OnPodConditions: []batchv1.PodFailurePolicyOnPodConditionsPattern{
				{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue},
			},
		}}}
		// The pod that comes after may go anywhere, the first one is put on the node.
		j.Spec.Template.Spec.NodeName, j.Spec.Template.Spec.NodeSelector = "", map[string]string{corev1.LabelHostname: nodes[0].Name}
		j.Spec.Template.Finalizers = []string{"example.com/hold"} // to be looked at after the eviction
	})
	d := b.start(nodes[0])
	d.pod(pod.Name, fleet.PodTerminating)
	got := b.c.WaitPod(t, ns, pod.Name, func(p *corev1.Pod) bool { return p != nil && p.DeletionTimestamp != nil })
	if !slices.ContainsFunc(got.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason == "EvictionByEvictionAPI"
	}) {
		t.Errorf("conditions %+v", got.Status.Conditions)
	}
	b.status(ns, pod.Name, `{"phase":"Failed"}`) // as the kubelet says once the containers have ended
	b.c.WaitPods(t, ns, "job", func(pods []*corev1.Pod) bool {
		return slices.ContainsFunc(pods, func(p *corev1.Pod) bool { return p.UID != pod.UID })
	})
	j, err := b.c.Client().BatchV1().Jobs(ns).Get(t.Context(), "job", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if j.Status.Failed != 0 || slices.ContainsFunc(j.Status.Conditions, func(c batchv1.JobCondition) bool { return c.Type == batchv1.JobFailed }) {
		t.Errorf("the job counts a failure: %+v", j.Status)
	}
	b.release(ns)
	d.end(fleet.DrainDone, nil)
}

// release takes the finalizers off all pods of a namespace.
func (b *bench) release(ns string) {
	b.t.Helper()
	pods, err := b.c.Client().CoreV1().Pods(ns).List(b.t.Context(), metav1.ListOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	for i := range pods.Items {
		_, err := b.c.Client().CoreV1().Pods(ns).Patch(b.t.Context(), pods.Items[i].Name, types.JSONPatchType,
			[]byte(`[{"op":"remove","path":"/metadata/finalizers"}]`), metav1.PatchOptions{})
		if err != nil {
			b.t.Fatal(err)
		}
	}
}

// A full node with three budgets: ten at a time, never two under one budget (the meter of the bench watches), and not
// one after the other either.
func TestCase30_FullNode(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{Pods: "110"})
	for _, app := range []string{"a", "b", "c"} {
		b.c.Deployment(t, 20, kubetest.PodSpec{Namespace: ns, Name: app})
		b.c.PDB(t, ns, app, "50%")
	}
	b.c.Deployment(t, 50, kubetest.PodSpec{Namespace: ns, Name: "free"})
	b.c.Nodes(t, 2, nil)
	res := b.start(node, hasty).end(fleet.DrainDone, nil)
	if got := len(b.evictions()); got != 110 || res.Evicted != 110 {
		t.Errorf("%d evictions, %d counted", got, res.Evicted)
	}
	b.meter.mu.Lock()
	defer b.meter.mu.Unlock()
	if b.meter.most < 2 {
		t.Errorf("%d evictions were under way at most", b.meter.most)
	}
}

// hook is a validating webhook for the evictions of one namespace, with what it answers.
func (b *bench) hook(ns string, answer http.HandlerFunc) (name string, server *httptest.Server) {
	b.t.Helper()
	server = httptest.NewTLSServer(answer)
	b.t.Cleanup(server.Close)
	name = kubetest.Name(b.t, "hook")
	b.webhooks(name, admissionv1.ValidatingWebhook{
		Name: "evictions.example.com", FailurePolicy: new(admissionv1.Fail), TimeoutSeconds: new(int32(30)),
		SideEffects: new(admissionv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"},
		ClientConfig: admissionv1.WebhookClientConfig{
			URL: &server.URL, CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
		},
		NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: ns}},
		Rules: []admissionv1.RuleWithOperations{{
			Operations: []admissionv1.OperationType{admissionv1.Create},
			Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods/eviction"}},
		}},
	})
	return name, server
}

// A webhook that refuses, as one that moves the pod itself does, is asked again until it does not.
func TestCase32_WebhookDenies(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "lone", Node: node.Name})
	var allowed atomic.Bool
	b.hook(ns, func(w http.ResponseWriter, r *http.Request) {
		var review struct{ Request struct{ UID string } }
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":%q,"allowed":%t,"status":{"message":"I am moving it myself"}}}`,
			review.Request.UID, allowed.Load())
	})
	b.waitAnswer(ns, "lone", func(a answer) bool { return a.meaning != meansAccepted })
	d := b.start(node, hasty, consenting(fleet.ConsentUnmanaged))
	got := d.pod("lone", fleet.PodBlockedByHook)
	if !strings.Contains(got.Message, "I am moving it myself") || !strings.Contains(got.Message, "evictions.example.com") || len(got.Budgets) != 0 {
		t.Errorf("blocked: %+v", got)
	}
	allowed.Store(true)
	d.end(fleet.DrainDone, nil)
}

// A webhook that cannot be reached fails the eviction and not the drain.
func TestCase33_WebhookDown(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "lone", Node: node.Name})
	name, server := b.hook(ns, http.NotFound)
	server.Close()
	b.waitAnswer(ns, "lone", func(a answer) bool { return a.meaning != meansAccepted })
	d := b.start(node, hasty, consenting(fleet.ConsentUnmanaged))
	if got := d.pod("lone", fleet.PodUnanswered); got.HTTP != http.StatusInternalServerError || got.Message == "" {
		t.Errorf("got %+v", got)
	}
	b.dropWebhooks(name)
	if res := d.end(fleet.DrainDone, nil); res.Evicted != 1 {
		t.Errorf("result %+v", res)
	}
}

// Where the budgets of one namespace cannot be told from those of others, none is read as "no budget".
func TestCase36_PlanSaysNotEvaluated(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	user := kubetest.Name(t, "user")
	c.Grant(t, user, kubetest.Rule("", "nodes", "get", "list", "watch", "patch"), kubetest.Rule("", "pods", "get", "list", "watch"))
	b := newBench(t, func(cfg *rest.Config) { *cfg = *c.User(t, user) })
	ns := c.Namespace(t)
	// In this one namespace budgets can be read, which does not tell of the others.
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "budgets"}, Rules: []rbacv1.PolicyRule{kubetest.Rule("policy", "poddisruptionbudgets", "list")}}
	if _, err := c.Client().RbacV1().Roles(ns).Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	node := c.Node(t, kubetest.NodeSpec{})
	c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "lone", Node: node.Name})
	if p := b.plan(node.Name, Policy{})["lone"]; p.Budget == nil || p.Budget.Allowance != fleet.AllowNotEvaluated {
		t.Errorf("plan %+v", p.Budget)
	}
}

// The API server is killed in the middle of a drain and comes back: the drain goes on, and no pod failed of it.
func TestCase37_ServerRestarts(t *testing.T) {
	t.Parallel()
	c := kubetest.StartOne(t)
	b := newBenchOn(t, c)
	ns := c.Namespace(t)
	nodes := c.Nodes(t, 2, nil)
	c.Deployment(t, 4, kubetest.PodSpec{Namespace: ns, Name: "web"})
	pdb := c.PDB(t, ns, "web", "4")
	pod := b.podOn(ns, "web", nodes[0].Name)
	d := b.start(nodes[0], hasty)
	d.pod(pod.Name, fleet.PodBlockedByPDB)
	c.Kill(t, kubetest.APIServer)
	c.StartComponent(t, kubetest.APIServer)
	c.WaitServing(t)
	b.relax(ns, pdb.Name)
	d.end(fleet.DrainDone, nil)
	for _, e := range d.events {
		if e.NodeState == fleet.DrainFailed || e.Pod != nil && !slices.Contains([]fleet.PodState{
			fleet.PodQueued, fleet.PodEvicting, fleet.PodBlockedByPDB, fleet.PodThrottled, fleet.PodUnanswered, fleet.PodTerminating, fleet.PodGone,
		}, e.Pod.State) {
			t.Errorf("event %+v %+v", e, e.Pod)
		}
	}
}

// A node whose kubelet is gone: evictions are accepted and pods stay, which is said, and they can be left.
func TestCase39_Unreachable(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{Labels: map[string]string{kubetest.OfflineLabel: "yes"}})
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "stuck", Node: node.Name, Pending: true})
	b.status(ns, "stuck", `{"phase":"Running","conditions":[{"type":"Ready","status":"False"}]}`)
	grace := int64(1)
	d := b.start(node, consenting(fleet.ConsentUnmanaged), func(j *Job) { j.Options.Grace, j.overdue = &grace, time.Second })
	got := d.pod("stuck", fleet.PodOverdue)
	if !strings.Contains(got.Message, "Ready condition is Unknown") || !got.Evicted {
		t.Errorf("overdue: %+v", got)
	}
	d.cancel()
	d.end(fleet.DrainCancelled, context.Canceled)
	res := b.start(node, consenting(fleet.ConsentUnmanaged), func(j *Job) { j.Options.SkipStuck = time.Second }).end(fleet.DrainPartial, nil)
	if res.Pods[0].State != fleet.PodIgnored || len(b.evictions()) != 1 {
		t.Errorf("result %+v, evicted %v", res, b.evictions())
	}
}

// What the owners of pods ask for is honoured, or passed over by consent.
func TestCase41_OptOuts(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	for name, spec := range map[string]kubetest.PodSpec{
		"skip":   {Labels: map[string]string{"cluster.x-k8s.io/drain": "Skip"}},
		"keep":   {Annotations: map[string]string{"karpenter.sh/do-not-disrupt": "true"}},
		"long":   {Annotations: map[string]string{"karpenter.sh/do-not-disrupt": "1h"}},
		"unsafe": {Annotations: map[string]string{"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}},
		"wait":   {Labels: map[string]string{"cluster.x-k8s.io/drain": "wait-completed"}},
		"free":   {Annotations: map[string]string{"karpenter.sh/do-not-disrupt": "1ms", "cluster-autoscaler.kubernetes.io/safe-to-evict": "true"}},
	} {
		spec.Namespace, spec.Name, spec.Node = ns, name, node.Name
		b.c.Pod(t, spec)
	}
	d := b.start(node, consenting(fleet.ConsentUnmanaged))
	d.end(fleet.DrainBlocked, fleet.ErrBlocked)
	for name, s := range map[string]fleet.PodState{
		"skip": fleet.PodBlocked, "keep": fleet.PodBlocked, "long": fleet.PodBlocked, "unsafe": fleet.PodBlocked,
		"wait": fleet.PodWaiting, "free": fleet.PodQueued,
	} {
		d.pod(name, s)
	}
	// What asks to be waited for is, once nothing else stands in the way.
	for _, name := range []string{"skip", "keep", "long", "unsafe"} {
		if err := b.c.Client().CoreV1().Pods(ns).Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}); err != nil {
			t.Fatal(err)
		}
	}
	d = b.start(node, consenting(fleet.ConsentUnmanaged))
	d.pod("free", fleet.PodGone)
	b.status(ns, "wait", `{"phase":"Succeeded"}`)
	d.end(fleet.DrainDone, nil)
	if got := b.evictions(); len(got) != 2 {
		t.Errorf("evicted %v", got)
	}
	b.c.Uncordon(t, node.Name)
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "again", Node: node.Name, Labels: map[string]string{"cluster.x-k8s.io/drain": "wait-completed"}})
	b.start(node, consenting(fleet.ConsentUnmanaged, fleet.ConsentOptOut)).end(fleet.DrainDone, nil)
}

// Our own pod goes last, when all others are gone.
func TestCase43_OwnPodLast(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	// In the order of names it would be the first.
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "a-self", Node: node.Name})
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "b-osd", Node: node.Name, Labels: map[string]string{"app": "rook-ceph-osd"}})
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "c-web", Node: node.Name, Annotations: map[string]string{kubetest.DeleteDelay: "2s"}})
	d := b.start(node, consenting(fleet.ConsentUnmanaged), func(j *Job) {
		j.Options.Self = types.NamespacedName{Namespace: ns, Name: "a-self"}
	})
	d.end(fleet.DrainDone, nil)
	var order []string
	for _, e := range d.events {
		if e.Pod != nil && (e.Pod.State == fleet.PodEvicting || e.Pod.State == fleet.PodGone) {
			order = append(order, e.Pod.Name+" "+string(e.Pod.State))
		}
	}
	want := []string{"c-web evicting", "c-web gone", "b-osd evicting", "b-osd gone", "a-self evicting", "a-self gone"}
	if !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
}
