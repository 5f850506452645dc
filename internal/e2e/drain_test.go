package e2e

import (
	"encoding/csv"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// The whole way of a drain in a browser: select, plan, consent, confirm, progress, blocked by a budget, the budget relaxed,
// done. Somebody else follows in another window, and the report can be taken away.
func TestDrain_TheWholeWayInABrowser(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServerWith(t, "--kubeconfig", c.Kubeconfig, "--lease-namespace", "default")
	name := kubetest.Name(t, "n")
	node, ns := c.Node(t, kubetest.NodeSpec{Name: name}).Name, c.Namespace(t)
	c.Node(t, kubetest.NodeSpec{Pods: "0"}) // that stays: the last one has to be confirmed
	c.Deployment(t, 2, kubetest.PodSpec{Namespace: ns, Name: "shop"})
	c.Deployment(t, 1, kubetest.PodSpec{Namespace: ns, Name: "cache", EmptyDir: true})
	guarded := c.Deployment(t, 1, kubetest.PodSpec{Namespace: ns, Name: "ledger"})
	pdb := c.PDB(t, ns, guarded.Name, "1")

	ada := s.signIn(t, "ada", "operator")
	ada.visit("/nodes?q=" + name)
	ada.wait("the node is there", `document.querySelectorAll('#rows tr').length === 1`)
	ada.click(`#rows tr .c-sel input`)
	mark := c.AuditLog(t).Mark()
	ada.click(`#batch button[value=drain]`)
	ada.wait("the plan is shown", `location.pathname === '/plan' && !!document.querySelector('#result')`)
	ada.screenshot("1-plan")
	for _, says := range []string{"cache", "ledger", pdb.Name} {
		ada.wait("the plan speaks of "+says, in("#result", says))
	}
	if eval[bool](ada, there(`#confirm button[data-confirm]`)) {
		t.Error("a drain that is blocked for want of a consent can be started")
	}
	ada.click(`label.consent input[name=delete_emptydir_data]`)
	ada.click(`#plan button[value=drain]:not(.vh):last-of-type, #plan .acts button`)
	ada.wait("it can be started", there(`#confirm button[data-confirm]`))
	ada.screenshot("2-consented")
	if n := len(c.AuditLog(t).Since(mark, kubetest.In(ns), kubetest.Verb("create", "patch", "delete"), ours)); n > 0 {
		t.Errorf("planning has written %d times", n)
	}
	ada.click(`#confirm button[data-confirm]`)
	ada.wait("the batch is shown", `location.pathname.startsWith('/batches/')`)
	ada.wait("the row says which budget stands in the way", in("#items", pdb.Name))
	ada.screenshot("3-blocked")

	eve := s.signIn(t, "eve", "viewer")
	eve.visit(eval[string](ada, `location.pathname`))
	eve.wait("somebody else sees it too", in("#items", pdb.Name))
	if eval[bool](eve, `!!document.querySelector('form[action$="/pause"], form[action$="/cancel"]')`) {
		t.Error("a viewer is offered to steer")
	}

	relaxed := policyv1.PodDisruptionBudgetSpec{Selector: pdb.Spec.Selector, MaxUnavailable: new(intstr.FromInt32(1))}
	now, err := c.Client().PolicyV1().PodDisruptionBudgets(ns).Get(t.Context(), pdb.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	now.Spec = relaxed
	if _, err := c.Client().PolicyV1().PodDisruptionBudgets(ns).Update(t.Context(), now, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, tb := range []*tab{ada, eve} {
		tb.wait("it comes to its end", there(`#batch-progress[data-state=done][data-outcome=succeeded]`))
	}
	ada.screenshot("4-done")
	c.WaitPods(t, ns, guarded.Name, func(pods []*corev1.Pod) bool { return len(pods) == 1 && pods[0].Spec.NodeName == "" })

	evicted := map[string]int{}
	for _, e := range c.AuditLog(t).Since(mark, kubetest.In(ns), ours) {
		if e.Subresource == "eviction" && e.Code == http.StatusCreated {
			evicted[e.Name]++
		}
		if e.Verb == "delete" {
			t.Errorf("a deletion: %s", e.Path)
		}
	}
	if len(evicted) != 4 {
		t.Errorf("evicted %v, want four pods", evicted)
	}
	root := s.client(t, "root", "admin")
	id := strings.TrimPrefix(eval[string](ada, `location.pathname`), "/batches/")
	resp := root.send("GET", "/api/v1/batches/"+id+"/report?format=csv", "", "")
	defer resp.Body.Close()
	lines, err := csv.NewReader(resp.Body).ReadAll()
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(resp.Header.Get("Content-Disposition"), "attachment") || len(lines) < 2 {
		t.Errorf("report: %s, %v, %d lines", resp.Status, err, len(lines))
	}

	// Taking it back uncordons the node, for this batch had cordoned it.
	root.post(map[string]any{"action": "revert", "batch": id})
	c.WaitNode(t, node, func(n *corev1.Node) bool { return !n.Spec.Unschedulable })
}

// ours keeps what the program did.
func ours(e *kubetest.AuditEvent) bool { return strings.HasPrefix(e.UserAgent, "kube-node-manager/") }
