package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// drains drains every node of a cluster, some at a time, first with kubectl, a process for each node, and then by a batch.
// The pods are bare ones, bound to their nodes, so that both evict the same number.
func drains(tb testing.TB, c *kubetest.Cluster, nodes, podsEach, parallel int) {
	tb.Helper()
	s := scoreOf(tb, fmt.Sprintf("drain of %d nodes with %d pods each, %d at a time", nodes, podsEach, parallel))
	var names []string
	until(tb, "the nodes", time.Minute, func() bool { names = nodeNames(tb, c); return len(names) >= nodes })
	names = names[:nodes]
	client := c.Client().CoreV1()
	const namespace = "default"
	fill := func() {
		var pods []string
		for i := range nodes * podsEach {
			pods = append(pods, fmt.Sprintf("pod-%04d", i))
		}
		each(tb, 16, pods, func(ctx context.Context, i int, name string) error {
			_, err := client.Pods(namespace).Create(ctx, &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: name},
				Spec: corev1.PodSpec{
					NodeName: names[i/podsEach], TerminationGracePeriodSeconds: new(int64(1)),
					Containers: []corev1.Container{{Name: "main", Image: "example.com/app:1"}},
				},
			}, metav1.CreateOptions{})
			return err
		})
		until(tb, "the pods to run", 5*time.Minute, func() bool {
			list, err := client.Pods(namespace).List(tb.Context(), metav1.ListOptions{ResourceVersion: "0"})
			if err != nil {
				tb.Fatal(err)
			}
			for i := range list.Items {
				if list.Items[i].Status.Phase != corev1.PodRunning {
					return false
				}
			}
			return len(list.Items) == len(pods)
		})
	}
	reopen := func() {
		each(tb, 16, names, func(ctx context.Context, _ int, node string) error {
			_, err := client.Nodes().Patch(ctx, node, types.MergePatchType, []byte(`{"spec":{"unschedulable":null}}`), metav1.PatchOptions{})
			return err
		})
	}
	calls := func(mark kubetest.Mark, agent string) float64 {
		return float64(len(c.AuditLog(tb).Since(mark, kubetest.ByAgent(agent))))
	}
	empty := func(who string) {
		list, err := client.Pods(namespace).List(tb.Context(), metav1.ListOptions{})
		if err != nil {
			tb.Fatal(err)
		}
		if len(list.Items) > 0 {
			tb.Errorf("%s left %d pods", who, len(list.Items))
		}
	}

	if _, said, err := c.Kubectl(tb, "uncordon", names[0]); err != nil { // builds it, which is no part of the drain
		tb.Fatalf("kubectl: %v %s", err, said)
	}
	fill()
	mark := c.AuditLog(tb).Mark()
	began := time.Now()
	each(tb, parallel, names, func(_ context.Context, _ int, node string) error {
		_, said, err := c.Kubectl(tb, "drain", node, "--force", "--ignore-daemonsets", "--delete-emptydir-data")
		if err != nil {
			return fmt.Errorf("kubectl drain %s: %w %s", node, err, said)
		}
		return nil
	})
	theirs := time.Since(began)
	theirCalls := calls(mark, "kubectl")
	empty("kubectl")
	reopen()

	fill()
	l := serveLoad(tb, 1, c.Kubeconfig)
	l.synced(tb, 1, len(nodeNames(tb, c)))
	who := l.as(tb)
	body, err := json.Marshal(map[string]any{
		"action": "drain", "nodes": refs(c, names), "reason": "bench", "force": true, "delete_emptydir_data": true,
		"max_concurrent": parallel, "order": "given", "confirm": c.Name,
	})
	if err != nil {
		tb.Fatal(err)
	}
	mark = c.AuditLog(tb).Mark()
	var b batch
	var ours time.Duration
	stop := l.cpuProfile(tb, fmt.Sprintf("drain-%d", nodes))
	spent := l.meter(tb, nil, func() {
		began := time.Now()
		who.json(http.StatusAccepted, &b, "POST", "/api/v1/batches", string(body))
		b = ended(tb, who, b.ID)
		ours = time.Since(began)
	})
	stop()
	if b.Counts.Succeeded != nodes {
		tb.Errorf("%s, want %d to succeed", b, nodes)
	}
	var evictions float64
	for _, e := range c.AuditLog(tb).Since(mark, kubetest.ByAgent("kube-node-manager/")) {
		if e.Subresource == "eviction" {
			evictions++
		}
	}
	empty("the batch")
	reopen()
	s.add("kubectl drain", theirs.Seconds(), "s")
	s.add("kubectl drain, API calls", theirCalls, "")
	s.add("batch, with its plan", ours.Seconds(), "s")
	s.add("batch, API calls", calls(mark, "kube-node-manager/"), "")
	s.add("batch, evictions", evictions, "")
	spent.load(s)
	s.add("batch against kubectl drain", 100*ours.Seconds()/theirs.Seconds(), "% of its time")
	s.done()
	l.stop()
}
