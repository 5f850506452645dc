package kubetest

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
)

const mergePatch = types.MergePatchType

// kubectl does what a colleague does with kubectl at the same time as the code
// under test: the server sees kubectl's user agent and field managers.
func (c *Cluster) kubectl(tb testing.TB) kubernetes.Interface {
	tb.Helper()
	c.kubectlOnce.Do(func() {
		cfg := c.REST()
		cfg.UserAgent = "kubectl/v1.36.3 (linux/amd64) kubernetes/0000000"
		cfg.QPS = -1
		c.kubectlClient, c.kubectlErr = c.newClient(cfg)
	})
	if c.kubectlErr != nil {
		tb.Fatalf("kubetest: %v", c.kubectlErr)
	}
	return c.kubectlClient
}

// Cordon marks a node unschedulable, as "kubectl cordon" does.
func (c *Cluster) Cordon(tb testing.TB, node string) {
	tb.Helper()
	c.patchNode(tb, "kubectl-cordon", node, map[string]any{"spec": map[string]any{"unschedulable": true}})
}

// Uncordon marks a node schedulable, as "kubectl uncordon" does.
func (c *Cluster) Uncordon(tb testing.TB, node string) {
	tb.Helper()
	c.patchNode(tb, "kubectl-uncordon", node, map[string]any{"spec": map[string]any{"unschedulable": nil}})
}

// Label sets a label, as "kubectl label --overwrite" does; an empty value is a
// value, see [Cluster.Unlabel].
func (c *Cluster) Label(tb testing.TB, node, key, value string) {
	tb.Helper()
	c.patchNode(tb, "kubectl-label", node, map[string]any{"metadata": map[string]any{"labels": map[string]any{key: value}}})
}

// Unlabel removes a label.
func (c *Cluster) Unlabel(tb testing.TB, node, key string) {
	tb.Helper()
	c.patchNode(tb, "kubectl-label", node, map[string]any{"metadata": map[string]any{"labels": map[string]any{key: nil}}})
}

// Annotate sets an annotation.
func (c *Cluster) Annotate(tb testing.TB, node, key, value string) {
	tb.Helper()
	c.patchNode(tb, "kubectl-annotate", node, map[string]any{"metadata": map[string]any{"annotations": map[string]any{key: value}}})
}

func (c *Cluster) patchNode(tb testing.TB, manager, node string, patch map[string]any) {
	tb.Helper()
	data, err := json.Marshal(patch)
	if err == nil {
		_, err = c.kubectl(tb).CoreV1().Nodes().Patch(tb.Context(), node, mergePatch, data, metav1.PatchOptions{FieldManager: manager})
	}
	if err != nil {
		tb.Fatalf("kubetest: %s %s: %v", manager, node, err)
	}
}

// Taint adds a taint, or replaces the one of the same key and effect.
func (c *Cluster) Taint(tb testing.TB, node string, taint corev1.Taint) {
	tb.Helper()
	c.updateTaints(tb, node, func(taints []corev1.Taint) []corev1.Taint {
		return append(slices.DeleteFunc(taints, func(o corev1.Taint) bool { return o.MatchTaint(&taint) }), taint)
	})
}

// Untaint removes all taints with the key.
func (c *Cluster) Untaint(tb testing.TB, node, key string) {
	tb.Helper()
	c.updateTaints(tb, node, func(taints []corev1.Taint) []corev1.Taint {
		return slices.DeleteFunc(taints, func(o corev1.Taint) bool { return o.Key == key })
	})
}

// updateTaints replaces the list as a whole, which is the only way there is,
// and does it again when somebody else was quicker.
func (c *Cluster) updateTaints(tb testing.TB, node string, update func([]corev1.Taint) []corev1.Taint) {
	tb.Helper()
	api := c.kubectl(tb).CoreV1().Nodes()
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		n, err := api.Get(tb.Context(), node, metav1.GetOptions{})
		if err != nil {
			return err
		}
		patch, err := json.Marshal(map[string]any{
			"metadata": map[string]any{"resourceVersion": n.ResourceVersion},
			"spec":     map[string]any{"taints": update(n.Spec.Taints)},
		})
		if err != nil {
			return err
		}
		_, err = api.Patch(tb.Context(), node, mergePatch, patch, metav1.PatchOptions{FieldManager: "kubectl-taint"})
		return err
	})
	if err != nil {
		tb.Fatalf("kubetest: changing taints of %s: %v", node, err)
	}
}

// DeleteNode deletes a node.
func (c *Cluster) DeleteNode(tb testing.TB, node string) {
	tb.Helper()
	if err := c.kubectl(tb).CoreV1().Nodes().Delete(tb.Context(), node, metav1.DeleteOptions{}); err != nil {
		tb.Fatalf("kubetest: deleting node %s: %v", node, err)
	}
}

// SetReady makes the node's kubelet say that it is ready, or that it is not, and
// returns when the server knows. KWOK leaves it so.
func (c *Cluster) SetReady(tb testing.TB, node string, ready bool) {
	tb.Helper()
	now := metav1.Now()
	cond := corev1.NodeCondition{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue,
		Reason: "KubeletReady", Message: "kubelet is posting ready status",
		LastHeartbeatTime: now, LastTransitionTime: now,
	}
	if !ready {
		cond.Status, cond.Reason = corev1.ConditionFalse, "KubeletNotReady"
		cond.Message = "PLEG is not healthy: pleg was last seen active 3m12s ago; threshold is 3m0s"
	}
	c.SetCondition(tb, node, cond)
}

// SetCondition sets one condition of a node's status.
func (c *Cluster) SetCondition(tb testing.TB, node string, cond corev1.NodeCondition) {
	tb.Helper()
	c.patchStatus(tb, fmt.Sprintf("condition %s of %s", cond.Type, node), cond, func(ctx context.Context, patch []byte) error {
		_, err := c.client.CoreV1().Nodes().Patch(ctx, node, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		return err
	})
}

// SetPodReady changes whether a running pod is ready. KWOK leaves it so.
func (c *Cluster) SetPodReady(tb testing.TB, namespace, pod string, ready bool) {
	tb.Helper()
	cond := corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}
	if !ready {
		cond.Status, cond.Reason = corev1.ConditionFalse, "ContainersNotReady"
	}
	c.patchStatus(tb, "readiness of "+namespace+"/"+pod, cond, func(ctx context.Context, patch []byte) error {
		_, err := c.client.CoreV1().Pods(namespace).Patch(ctx, pod, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		return err
	})
}

func (c *Cluster) patchStatus(tb testing.TB, what string, condition any, do func(context.Context, []byte) error) {
	tb.Helper()
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []any{condition}}})
	if err == nil {
		err = do(tb.Context(), patch)
	}
	if err != nil {
		tb.Fatalf("kubetest: setting %s: %v", what, err)
	}
}
