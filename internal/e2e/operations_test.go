package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

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
	c.Node(t, kubetest.NodeSpec{Pods: "0"}) // that stays: the last one has to be confirmed
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

// Every write that the API server saw of us was announced in our own record before: each node's patches by the batch that
// made them, each eviction by its pod's uid, each Lease by the drain it is for. And nothing that was announced as done is
// missing there.
func TestOperations_EveryWriteWasAnnounced(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServerWith(t, "--kubeconfig", c.Kubeconfig, "--lease-namespace", "default")
	ns := c.Namespace(t)
	nodes := []string{c.Node(t, kubetest.NodeSpec{}).Name, c.Node(t, kubetest.NodeSpec{}).Name}
	c.Node(t, kubetest.NodeSpec{Pods: "0"}) // that stays: the last ones have to be confirmed
	c.Deployment(t, 6, kubetest.PodSpec{Namespace: ns})
	root := s.client(t, "root", "admin")
	mark := c.AuditLog(t).Mark()
	last := ""
	for _, fields := range []map[string]any{
		{"action": "cordon", "reason": "look"},
		{"action": "uncordon"},
		{"action": "labels", "labels": "example.com/a=1"},
		{"action": "labels", "labels": "example.com/a=2\nexample.com/b=", "on_conflict": "overwrite"},
		{"action": "taints", "taints": "example.com/t=x:PreferNoSchedule", "nodes": c.Name + "/" + nodes[0]},
		{"action": "copy-taints", "source": c.Name + "/" + nodes[0], "nodes": c.Name + "/" + nodes[1]},
		{"action": "revert", "batch": "the one before"},
		{"action": "drain", "uncordon_after": true},
		{"action": "labels", "labels": "example.com/a-"},
	} {
		switch fields["action"] {
		case "revert":
			fields["batch"] = last
		default:
			if fields["nodes"] == nil {
				fields["nodes"] = refs(c, nodes)
			}
		}
		last = root.post(fields)
		if done := root.batchDone(last); done.Outcome != "succeeded" {
			t.Errorf("%v: %v", fields, done)
		}
	}

	type entry struct {
		At                             time.Time
		Action, Phase, Node, Batch     string
		Detail, Cluster, Actor, Reason string
	}
	resp := root.send("GET", "/api/v1/audit?limit=1000", "", "", "Accept", "application/x-ndjson")
	defer resp.Body.Close()
	announced := map[string][]time.Time{} // by node, or by the uid of a pod
	for dec := json.NewDecoder(resp.Body); ; {
		var e entry
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if e.Phase != "intent" || e.Node == "" {
			continue
		}
		key := e.Node
		if e.Action == "evict" {
			var pod struct{ UID string }
			if err := json.Unmarshal([]byte(e.Detail), &pod); err != nil {
				t.Fatalf("%v in %s", err, e.Detail)
			}
			key = pod.UID
		}
		announced[key] = append(announced[key], e.At)
	}
	seen := map[string]int{}
	for _, e := range c.AuditLog(t).Since(mark, kubetest.Verb("create", "update", "patch", "delete"), func(e *kubetest.AuditEvent) bool {
		return strings.HasPrefix(e.UserAgent, "kube-node-manager/") && !e.DryRun()
	}) {
		var key, kind string
		switch {
		case e.Subresource == "eviction" && e.Namespace == ns:
			var body struct {
				DeleteOptions struct{ Preconditions struct{ UID string } }
			}
			if err := json.Unmarshal(e.Request, &body); err != nil {
				t.Fatal(err)
			}
			key, kind = body.DeleteOptions.Preconditions.UID, "eviction"
		case e.Resource == "nodes" && slices.Contains(nodes, e.Name):
			key, kind = e.Name, "patch"
		case e.Resource == "leases" && slices.Contains(nodes, strings.TrimPrefix(e.Name, "knm-node-")):
			key, kind = strings.TrimPrefix(e.Name, "knm-node-"), "lease"
		case e.Resource == "selfsubjectaccessreviews":
			continue // asks, and changes nothing
		default:
			if e.Resource != "leases" { // creating one has no name in the audit event of some servers
				t.Errorf("a write that is none of ours to make: %s %s", e.Verb, e.Path)
			}
			continue
		}
		seen[kind]++
		if !slices.ContainsFunc(announced[key], func(at time.Time) bool { return !at.After(e.Time) }) {
			t.Errorf("%s %s at %s was not announced before", e.Verb, e.Path, e.Time)
		}
	}
	if seen["patch"] < 15 || seen["eviction"] < 6 || seen["lease"] == 0 {
		t.Errorf("the API server saw %v: this proves nothing", seen)
	}
}
