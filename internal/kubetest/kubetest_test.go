package kubetest_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

func TestNode_ReadyAndWrittenDownOnce(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	node := c.Node(t, kubetest.NodeSpec{Zone: "zone-a"})
	if got := node.Labels[corev1.LabelTopologyZone]; got != "zone-a" {
		t.Errorf("zone = %q, want zone-a", got)
	}

	log := c.AuditLog(t)
	mark := log.Mark()
	c.Cordon(t, node.Name)
	writes := log.Writes(mark, "nodes", kubetest.Named(node.Name), kubetest.ByAgent("kubectl/"))
	if len(writes) != 1 {
		t.Fatalf("%d writes in the audit log after one cordon, want 1: %+v", len(writes), writes)
	}
	if e := writes[0]; e.Verb != "patch" || e.Code != 200 || e.User != "admin" || string(e.Request) != `{"spec":{"unschedulable":true}}` {
		t.Errorf("written down as %+v", e)
	}
}

func TestEviction_RefusedByBudget(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	c.Nodes(t, 2, nil)
	ns := c.Namespace(t)
	d := c.Deployment(t, 2, kubetest.PodSpec{Namespace: ns})
	pdb := c.PDB(t, ns, d.Name, "2")
	pods := c.WaitPods(t, ns, d.Name, func(pods []*corev1.Pod) bool { return len(pods) == 2 })

	err := c.Client().PolicyV1().Evictions(ns).Evict(t.Context(), &policyv1.Eviction{
		ObjectMeta: metav1.ObjectMeta{Name: pods[0].Name, Namespace: ns},
	})
	if !apierrors.IsTooManyRequests(err) || !apierrors.HasStatusCause(err, policyv1.DisruptionBudgetCause) {
		t.Fatalf("evicting against %s: %v, want a refusal by the budget", pdb.Name, err)
	}
}
