package nodeops_test

import (
	"encoding/json"
	"net/http"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// What the watch has is enough to change a node with one request. Where it is behind the API server refuses, nothing is
// lost, and the second try goes by a read.
func TestCluster_GoesByWhatTheWatchHas(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	labels := func(lines ...string) fleet.Operation {
		return fleet.Operation{Action: fleet.ActionLabels, Labels: lines, OnConflict: fleet.ConflictOverwrite}
	}
	for name, tt := range map[string]struct {
		op         fleet.Operation
		since      func(t *testing.T, node string) // what happens after the watch had the node
		gets       int
		asked      int // patches
		code       string
		state      fleet.ItemState
		wantBefore string // of the one edit
		alone      *int   // holds if the node changes so often before it is ours; nil: however often
	}{
		"as it is": {op: labels("example.com/a=2"), gets: 0, asked: 1, state: fleet.ItemSucceeded, wantBefore: "1", alone: new(int)},
		"the label has changed since": {
			op: labels("example.com/a=3"), since: func(t *testing.T, node string) { c.Label(t, node, "example.com/a", "2") },
			gets: 1, asked: 2, state: fleet.ItemSucceeded, wantBefore: "2", alone: new(1),
		},
		"it says that there is nothing to do": {op: labels("example.com/a=1"), gets: 1, asked: 0, state: fleet.ItemSkipped, code: fleet.CodeUnchanged},
		"somebody cordoned it since": {
			op: cordon, since: func(t *testing.T, node string) { c.Cordon(t, node) }, gets: 1, asked: 1, state: fleet.ItemSkipped, code: fleet.CodeUnchanged,
		},
		"another node has the name": {
			op: labels("example.com/a=2"), gets: 1, asked: 1, state: fleet.ItemSkipped, code: fleet.CodeReplaced,
			since: func(t *testing.T, node string) {
				c.DeleteNode(t, node)
				c.Node(t, kubetest.NodeSpec{Name: node})
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := setUp(t, c, c.REST())
			var (
				node *corev1.Node
				mark kubetest.Mark
				res  fleet.ItemResult
				err  error
			)
			for calm := false; !calm; {
				node = c.Node(t, kubetest.NodeSpec{Labels: map[string]string{"example.com/a": "1"}})
				mark = c.AuditLog(t).Mark()
				seen := w.live(node.Name)
				w.remember(seen)
				if tt.since != nil {
					tt.since(t, node.Name)
				}
				res, err = w.ops.Do(t.Context(), fleet.Task{
					By: ada, Batch: kubetest.Name(t, "b"), Operation: tt.op,
					Item: fleet.Item{Ref: fleet.NodeRef{Cluster: c.Name, Name: node.Name}, UID: string(node.UID), Attempt: 1},
				})
				// The kubelet or a controller may write to a node at any moment, and then one more read is right.
				calm = tt.alone == nil || err != nil || len(res.Edits) != 1 || w.changesUntil(seen, *res.Edits[0].After) == *tt.alone
			}
			if err != nil || res.State != tt.state || res.Code != tt.code {
				t.Fatalf("%+v, %v", res, err)
			}
			if tt.wantBefore != "" && (len(res.Edits) != 1 || res.Edits[0].Before == nil || *res.Edits[0].Before != tt.wantBefore) {
				b, _ := json.Marshal(res.Edits)
				t.Errorf("it found %s, want %q", b, tt.wantBefore)
			}
			var gets, asked int
			for _, e := range c.AuditLog(t).Since(mark, kubetest.On("nodes"), kubetest.Named(node.Name), kubetest.ByAgent(agent)) {
				switch e.Verb {
				case "get":
					gets++
				case "patch":
					asked++
					if e.Code == http.StatusOK && asked != tt.asked {
						t.Errorf("try %d was accepted", asked)
					}
				}
			}
			if gets != tt.gets || asked != tt.asked {
				t.Errorf("%d reads and %d patches, want %d and %d", gets, asked, tt.gets, tt.asked)
			}
		})
	}
}

// remember makes the verbs see a node as it is now, from here on.
func (w *whole) remember(n *corev1.Node) {
	seen := n.DeepCopy()
	kube.Strip(seen)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.remembered = seen
}

// changesUntil counts how often a node changed since it was seen, before its label had the value.
func (w *whole) changesUntil(seen *corev1.Node, value string) (n int) {
	w.t.Helper()
	changes, err := w.cluster.Client().CoreV1().Nodes().Watch(w.t.Context(), metav1.ListOptions{
		FieldSelector: "metadata.name=" + seen.Name, ResourceVersion: seen.ResourceVersion, TimeoutSeconds: new(int64(60)),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	defer changes.Stop()
	for e := range changes.ResultChan() {
		if now, ok := e.Object.(*corev1.Node); ok && now.Labels["example.com/a"] == value {
			return n
		}
		n++
	}
	w.t.Fatalf("%s never had the label %s", seen.Name, value)
	return 0
}
