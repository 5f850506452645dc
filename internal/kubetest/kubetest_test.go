package kubetest_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

func TestNode_Ready(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	node := c.Node(t, kubetest.NodeSpec{Zone: "zone-a", CPU: "4", Labels: map[string]string{"team": "a"}})
	if got := node.Labels[corev1.LabelTopologyZone]; got != "zone-a" {
		t.Errorf("zone = %q, want zone-a", got)
	}
	if got := node.Status.Allocatable.Cpu().String(); got != "4" {
		t.Errorf("allocatable CPU = %s, want 4", got)
	}
	if len(node.Spec.Taints) > 0 {
		t.Errorf("a node as asked has the taints %v", node.Spec.Taints)
	}
}

func TestNode_NotReadyStaysSo(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	node := c.Node(t, kubetest.NodeSpec{NotReady: true})
	// KWOK has seen the node once it holds its lease, and leaves its state alone.
	waitLease(t, c, node.Name)
	c.Label(t, node.Name, "touched", "yes")
	c.WaitNode(t, node.Name, func(n *corev1.Node) bool {
		return n.Labels["touched"] == "yes" && readiness(n) == corev1.ConditionFalse
	})

	c.SetReady(t, node.Name, true)
	c.WaitReady(t, node.Name)
	c.SetReady(t, node.Name, false)
	c.WaitNode(t, node.Name, func(n *corev1.Node) bool { return readiness(n) == corev1.ConditionFalse })
}

func TestAudit_EachWriteOnce(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	node := c.Node(t, kubetest.NodeSpec{}).Name
	log := c.AuditLog(t)
	mark := log.Mark()
	c.Cordon(t, node)
	c.Label(t, node, "k", "v")
	if _, err := c.Client().CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	c.DeleteNode(t, node)

	var got []string
	for _, e := range log.Writes(mark, "nodes", kubetest.Named(node), kubetest.ByAgent("kubectl/"), kubetest.ByUser("admin")) {
		got = append(got, fmt.Sprintf("%s %d", e.Verb, e.Code))
	}
	want := []string{"patch 200", "patch 200", "delete 200"}
	if !slices.Equal(got, want) {
		t.Errorf("audit log has %q, want %q", got, want)
	}
	writes := log.Writes(mark, "nodes", kubetest.Named(node), kubetest.ByAgent("kubectl/"))
	if got := string(writes[0].Request); got != `{"spec":{"unschedulable":true}}` {
		t.Errorf("the cordon's body is %s", got)
	}
	reads := log.Reads(mark, "nodes", kubetest.Named(node))
	if len(reads) != 1 || reads[0].Verb != "get" {
		t.Errorf("reads = %+v, want one get", reads)
	}
}

func TestAudit_WatchIsSeenWhileItRuns(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	log := c.AuditLog(t)
	mark := log.Mark()
	name := kubetest.Name(t, "n")
	w, err := c.Client().CoreV1().Nodes().Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		t.Fatal(err)
	}
	byPath := func(e *kubetest.AuditEvent) bool { return strings.Contains(e.Path, name) }
	if got := log.Reads(mark, "nodes", byPath); len(got) != 1 || got[0].Verb != "watch" {
		t.Errorf("events of a running watch = %+v, want one", got)
	}
	w.Stop()
}

func TestEviction_RefusedByBudget(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	c.Nodes(t, 2, nil)
	ns := c.Namespace(t)
	d := c.Deployment(t, 2, kubetest.PodSpec{Namespace: ns})
	pdb := c.PDB(t, ns, d.Name, "2")
	pods := c.WaitPods(t, ns, d.Name, func(pods []*corev1.Pod) bool { return len(pods) == 2 })
	evict := func() error {
		return c.Client().PolicyV1().Evictions(ns).Evict(t.Context(), &policyv1.Eviction{
			ObjectMeta: metav1.ObjectMeta{Name: pods[0].Name, Namespace: ns},
		})
	}
	log := c.AuditLog(t)
	mark := log.Mark()
	if err := evict(); !apierrors.IsTooManyRequests(err) || !apierrors.HasStatusCause(err, policyv1.DisruptionBudgetCause) {
		t.Fatalf("evicting: %v, want a refusal by the budget", err)
	}
	events := log.Writes(mark, "pods/eviction", kubetest.In(ns))
	if len(events) != 1 || events[0].Code != 429 || events[0].Name != pods[0].Name || events[0].DryRun() {
		t.Errorf("written down as %+v", events)
	}

	c.Scale(t, d, 3)
	c.WaitPods(t, ns, d.Name, func(pods []*corev1.Pod) bool { return countReady(pods) == 3 })
	c.WaitPDB(t, ns, pdb.Name, func(p *policyv1.PodDisruptionBudget) bool { return p.Status.DisruptionsAllowed == 1 })
	if err := evict(); err != nil {
		t.Fatalf("evicting with one to spare: %v", err)
	}
	c.WaitPods(t, ns, d.Name, func(now []*corev1.Pod) bool {
		return !slices.ContainsFunc(now, func(p *corev1.Pod) bool { return p.UID == pods[0].UID }) && countReady(now) == 3
	})
}

func TestWorkloads_GoToTheTestsNodes(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	var names []string
	for _, n := range c.Nodes(t, 2, func(i int) kubetest.NodeSpec { return kubetest.NodeSpec{Zone: fmt.Sprintf("zone-%d", i)} }) {
		names = append(names, n.Name)
	}
	ns := c.Namespace(t)
	c.StatefulSet(t, 2, kubetest.PodSpec{Namespace: ns, CPU: "1", Memory: "1Gi", EmptyDir: true})
	daemon := c.DaemonSet(t, kubetest.PodSpec{Namespace: ns})
	c.WaitPods(t, ns, daemon.Name, func(pods []*corev1.Pod) bool { return countReady(pods) == 2 })
	c.Pod(t, kubetest.PodSpec{Namespace: ns})
	pending := c.Pod(t, kubetest.PodSpec{Namespace: ns, Node: names[0], Pending: true})
	if pending.Status.Phase != corev1.PodPending {
		t.Errorf("the pod that never starts is %s", pending.Status.Phase)
	}
	for _, p := range c.WaitPods(t, ns, "", func(pods []*corev1.Pod) bool { return len(pods) == 6 }) {
		if !slices.Contains(names, p.Spec.NodeName) {
			t.Errorf("pod %s is on %q, want one of %q", p.Name, p.Spec.NodeName, names)
		}
	}
}

func TestPod_DeleteDelay(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	node := c.Node(t, kubetest.NodeSpec{}).Name
	ns := c.Namespace(t)
	slow := c.Pod(t, kubetest.PodSpec{Namespace: ns, Node: node, Annotations: map[string]string{kubetest.DeleteDelay: "3s"}})
	cut := c.Pod(t, kubetest.PodSpec{Namespace: ns, Node: node, Annotations: map[string]string{kubetest.DeleteDelay: "300s"}, Grace: new(int64(1))})
	for _, p := range []*corev1.Pod{slow, cut} {
		if err := c.Client().CoreV1().Pods(ns).Delete(t.Context(), p.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	gone := func(p *corev1.Pod) bool { return p == nil }
	c.WaitPod(t, ns, cut.Name, gone)
	c.WaitPod(t, ns, slow.Name, gone)
	if took := time.Since(begin); took < time.Second || took > 30*time.Second {
		t.Errorf("pod was gone after %s, want about 3s", took)
	}
}

func TestUser_OnlyWhatIsGranted(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	node := c.Node(t, kubetest.NodeSpec{}).Name
	name := kubetest.Name(t, "user")
	c.Grant(t, name, kubetest.Rule("", "nodes", "get"))
	cfg := c.User(t, name, "some-group")
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	// The server's authorizer learns of the grant from a watch of its own.
	for err = errNotYet; err != nil && t.Context().Err() == nil; {
		_, err = client.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{})
		if err != nil && !apierrors.IsForbidden(err) {
			t.Fatalf("getting a node: %v", err)
		}
	}
	if _, err := client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("listing nodes: %v, want a refusal", err)
	}
	if got := c.AuditLog(t).Reads(0, "nodes", kubetest.ByUser(name), kubetest.Verb("list")); len(got) != 1 || got[0].Code != 403 || !slices.Contains(got[0].Groups, "some-group") {
		t.Errorf("written down as %+v", got)
	}
}

func TestName_Unique(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 100 {
		name := kubetest.Name(t, "n")
		if seen[name] || len(name) > 63 {
			t.Fatalf("%q is not new or too long", name)
		}
		seen[name] = true
	}
}

func TestComponents_StopAndStart(t *testing.T) {
	t.Parallel()
	c := kubetest.StartOne(t)
	node := c.Node(t, kubetest.NodeSpec{}).Name

	c.Stop(t, kubetest.APIServer)
	if _, err := c.Client().CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{}); err == nil {
		t.Fatal("a stopped API server answers")
	}
	if pid := c.PIDs(t)[kubetest.APIServer]; pid != 0 {
		t.Fatalf("a stopped API server has the process %d", pid)
	}
	c.StartComponent(t, kubetest.APIServer)
	if _, err := c.Client().CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{}); err != nil {
		t.Fatalf("after the restart: %v", err)
	}

	c.Kill(t, kubetest.Etcd)
	c.StartComponent(t, kubetest.Etcd)
	c.WaitServing(t)
	if _, err := c.Client().CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{}); err != nil {
		t.Fatalf("after etcd's restart: %v", err)
	}

	// A KWOK that comes back takes over at once.
	c.Kill(t, kubetest.KWOK)
	c.StartComponent(t, kubetest.KWOK)
	c.Pod(t, kubetest.PodSpec{Namespace: c.Namespace(t), Node: node})

	c.Pause(t, kubetest.APIServer)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := c.Client().CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{}); err == nil {
		t.Error("a paused API server answers")
	}
	c.Continue(t, kubetest.APIServer)
	c.WaitServing(t)
}

func TestOffline_NodeBecomesUnreachable(t *testing.T) {
	t.Parallel()
	d := kubetest.Start(t, kubetest.Options{Args: map[string][]string{
		kubetest.KWOK:              {"--node-lease-duration-seconds=8"},
		kubetest.ControllerManager: {"--node-monitor-grace-period=6s", "--node-monitor-period=1s"},
	}})
	c := d.Clusters[0]
	node := c.Node(t, kubetest.NodeSpec{}).Name
	waitLease(t, c, node)
	ns := c.Namespace(t)
	pod := c.Pod(t, kubetest.PodSpec{Namespace: ns, Node: node, Grace: new(int64(1))})

	c.Label(t, node, kubetest.OfflineLabel, "true")
	c.WaitNode(t, node, func(n *corev1.Node) bool { return readiness(n) == corev1.ConditionUnknown })
	if err := c.Client().CoreV1().Pods(ns).Delete(t.Context(), pod.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.WaitPod(t, ns, pod.Name, func(p *corev1.Pod) bool { return p != nil && p.DeletionTimestamp != nil })

	c.Unlabel(t, node, kubetest.OfflineLabel)
	c.WaitReady(t, node)
	c.WaitPod(t, ns, pod.Name, func(p *corev1.Pod) bool { return p == nil })
}

func TestFleet_SeededAndTrickling(t *testing.T) {
	t.Parallel()
	d := kubetest.Start(t, kubetest.Options{Clusters: []kubetest.Spec{{Name: "alpha", Nodes: 12}, {Name: "beta", Nodes: 5, Profile: "bare"}}})
	for name, want := range map[string]int{"alpha": 12, "beta": 5} {
		list, err := d.Cluster(name).Client().CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Items) != want {
			t.Errorf("%s has %d nodes, want %d", name, len(list.Items), want)
		}
	}
	if _, err := os.Stat(d.Kubeconfig); err != nil {
		t.Error(err)
	}

	alpha := d.Cluster("alpha")
	w, err := alpha.Client().CoreV1().Nodes().Watch(t.Context(), metav1.ListOptions{FieldSelector: "spec.unschedulable=false"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if err := d.SetTrickle(50); err != nil {
		t.Fatal(err)
	}
	byTrickle := func(m metav1.ManagedFieldsEntry) bool { return m.Manager == "kubectl-label" }
	for event := range w.ResultChan() {
		if n, ok := event.Object.(*corev1.Node); ok && slices.ContainsFunc(n.ManagedFields, byTrickle) {
			break
		}
	}
	if err := d.SetTrickle(0); err != nil {
		t.Fatal(err)
	}
	log := alpha.AuditLog(t)
	mark := log.Mark()
	d.Cluster("beta").PIDs(t) // a command later, nobody changes anything any more
	if got := log.Writes(mark, "nodes"); len(got) > 0 {
		t.Errorf("%d writes after the trickle was stopped", len(got))
	}
}

// TestLife_EndsWithTheTestBinary kills a test binary and looks for what it leaves.
func TestLife_EndsWithTheTestBinary(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("needs a control plane")
	}
	if os.Getenv(helperEnv) != "" {
		t.Skip("runs in the parent")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestHelper_HoldsACluster$")
	cmd.Env = append(os.Environ(), helperEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pids []int
	var dir string
	for s := bufio.NewScanner(out); s.Scan(); {
		if list, ok := strings.CutPrefix(s.Text(), "dir "); ok {
			dir = list
		}
		if list, ok := strings.CutPrefix(s.Text(), "pids "); ok {
			for f := range strings.FieldsSeq(list) {
				pid, err := strconv.Atoi(f)
				if err != nil {
					t.Fatal(err)
				}
				pids = append(pids, pid)
			}
			break
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	if len(pids) != 5 {
		t.Fatalf("the helper has the processes %v, want 5", pids)
	}
	waitGone(t, func() bool {
		alive := slices.ContainsFunc(pids, alive)
		_, err := os.Stat(dir)
		return !alive && os.IsNotExist(err)
	})
}

const helperEnv = "KUBETEST_HELPER"

func TestHelper_HoldsACluster(t *testing.T) {
	if os.Getenv(helperEnv) == "" {
		t.Skip("is run by TestLife_EndsWithTheTestBinary")
	}
	c := kubetest.Shared(t)
	var list []string
	for _, pid := range c.PIDs(t) {
		list = append(list, strconv.Itoa(pid))
	}
	fmt.Fprintln(os.Stdout, "dir", kubetest.DirOf(c))
	fmt.Fprintln(os.Stdout, "pids", strings.Join(list, " "))
	select {} // until it is killed
}

// TestLife_ComponentsEndWithDevcluster kills the program in the middle.
func TestLife_ComponentsEndWithDevcluster(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("needs a control plane")
	}
	d, err := kubetest.Launch(t.Context(), kubetest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	pids := d.Clusters[0].PIDs(t)
	if err := kubetest.KillDevcluster(d); err != nil {
		t.Fatal(err)
	}
	waitGone(t, func() bool {
		for _, pid := range pids {
			if alive(pid) {
				return false
			}
		}
		return true
	})
	if err := d.Close(); err == nil {
		t.Error("closing clusters that were killed says nothing")
	}
}

var errNotYet = fmt.Errorf("not asked yet")

// alive reports whether the process runs; one that is dead and not yet reaped
// does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z")
}

func waitGone(t *testing.T, gone func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !gone() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("still there after 30s")
		}
	}
}

func readiness(n *corev1.Node) corev1.ConditionStatus {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status
		}
	}
	return ""
}

func countReady(pods []*corev1.Pod) int {
	n := 0
	for _, p := range pods {
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil {
				n++
			}
		}
	}
	return n
}

// waitLease waits until KWOK keeps the node alive.
func waitLease(t *testing.T, c *kubetest.Cluster, node string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := c.Client().CoordinationV1().Leases("kube-node-lease").Get(t.Context(), node, metav1.GetOptions{})
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal(err)
		}
	}
}
