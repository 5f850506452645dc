package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// post makes a batch from its fields and returns its id.
func (c *client) post(fields map[string]any) string {
	c.t.Helper()
	body, err := json.Marshal(fields)
	if err != nil {
		c.t.Fatal(err)
	}
	var b batch
	c.json(http.StatusAccepted, &b, "POST", "/api/v1/batches", string(body))
	return b.ID
}

func refs(c *kubetest.Cluster, names []string) string {
	return c.Name + "/" + strings.Join(names, "\n"+c.Name+"/")
}

// Two hundred nodes get a label and a taint, and the process is killed three times on the way: nothing is lost, and the
// API server saw one write for each node.
func TestBatch_TwoHundredNodesAndThreeKills(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServer(t, c.Kubeconfig)
	name := kubetest.Name(t, "n")
	var names []string
	for _, n := range c.Nodes(t, 200, func(i int) kubetest.NodeSpec { return kubetest.NodeSpec{Name: fmt.Sprintf("%s-%03d", name, i)} }) {
		names = append(names, n.Name)
	}
	api := s.client(t, "ada", "operator")
	for _, change := range []map[string]any{
		{"action": "labels", "labels": "example.com/wave=7\nexample.com/owner=storage"},
		{"action": "taints", "taints": "example.com/maintenance=soon:NoSchedule"},
	} {
		mark := c.AuditLog(t).Mark()
		change["nodes"], change["max_concurrent"], change["pause_between"] = refs(c, names), 4, "10ms"
		id := api.post(change)
		for _, share := range []int{40, 90, 150} {
			progress := api.stream("GET", "/api/v1/batches/"+id+"/events", "")
			progress.until(fmt.Sprintf("%d nodes to be done", share), func(e event) bool {
				var p batch
				return e.Name == "progress" && json.Unmarshal([]byte(e.Data), &p) == nil && p.Counts.Succeeded >= share
			})
			s.kill()
			progress.end(patience)
			s.start()
		}
		if done := api.batchDone(id); done.Outcome != "succeeded" || done.Counts.Succeeded != 200 {
			t.Errorf("%v: %v", change["action"], done)
		}
		writtenOnce(t, c, mark, name, names)
	}
	n, err := c.Client().CoreV1().Nodes().Get(t.Context(), names[117], metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n.Labels["example.com/wave"] != "7" || n.Labels["example.com/owner"] != "storage" || len(n.Spec.Taints) != 1 {
		t.Errorf("node %s has %v, %v", n.Name, n.Labels, n.Spec.Taints)
	}
}

// A drain whose process is killed in the middle waits for a person, goes on when told to, and evicts no pod twice.
func TestCase50_KilledInTheMiddleOfADrain(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServerWith(t, "--kubeconfig", c.Kubeconfig, "--lease-namespace", "default")
	node, ns := c.Node(t, kubetest.NodeSpec{}).Name, c.Namespace(t)
	free := c.Deployment(t, 3, kubetest.PodSpec{Namespace: ns})
	guarded := c.Deployment(t, 1, kubetest.PodSpec{Namespace: ns})
	pdb := c.PDB(t, ns, guarded.Name, "1")
	api := s.client(t, "ada", "operator")
	mark := c.AuditLog(t).Mark()
	id := api.post(map[string]any{"action": "drain", "nodes": refs(c, []string{node}), "reason": "kernel update"})
	progress := api.stream("GET", "/api/v1/batches/"+id+"/events", "")
	c.WaitPods(t, ns, free.Name, func(pods []*corev1.Pod) bool { // evicted, and made again without a node to go to
		for _, p := range pods {
			if p.Spec.NodeName != "" {
				return false
			}
		}
		return len(pods) == 3
	})
	s.kill()
	progress.end(patience)
	s.start()
	var b struct {
		batch
		Note string
	}
	api.stream("GET", "/api/v1/batches/"+id+"/events", "").until("it waits for a person", func(e event) bool {
		return json.Unmarshal([]byte(e.Data), &b) == nil && b.State == "interrupted"
	})
	if b.Note == "" {
		t.Error("and does not say why")
	}
	api.json(http.StatusAccepted, nil, "POST", "/api/v1/batches/"+id+"/resume", "")
	if err := c.Client().PolicyV1().PodDisruptionBudgets(ns).Delete(t.Context(), pdb.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if done := api.batchDone(id); done.Outcome != "succeeded" {
		t.Errorf("after it was resumed: %v", done)
	}
	accepted := map[string]int{}
	for _, e := range c.AuditLog(t).Since(mark, kubetest.In(ns), kubetest.NotByTests) {
		if e.Subresource == "eviction" && e.Code == http.StatusCreated {
			accepted[e.Name]++
		}
		if e.Resource == "pods" && e.Verb == "delete" && strings.HasPrefix(e.UserAgent, "kube-node-manager/") {
			t.Errorf("a deletion: %s", e.Path)
		}
	}
	if len(accepted) != 4 {
		t.Errorf("evicted %v, want four pods", accepted)
	}
	for pod, n := range accepted {
		if n != 1 {
			t.Errorf("%s was evicted %d times", pod, n)
		}
	}
}
