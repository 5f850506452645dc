package nodeops_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// as makes the person behind batches an admin or an operator.
func (w *whole) as(role fleet.Role) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.role = role
}

func (w *whole) ref(name string) fleet.NodeRef {
	return fleet.NodeRef{Cluster: w.cluster.Name, Name: name}
}

// item is a node as a batch holds it.
func (w *whole) item(name string) fleet.Item {
	w.t.Helper()
	return fleet.Item{Ref: w.ref(name), UID: string(w.live(name).UID), State: fleet.ItemRunning, Attempt: 1, StartedAt: time.Now()}
}

// prepare checks an operation as Submit does.
func (w *whole) prepare(op fleet.Operation, names ...string) (fleet.Operation, error) {
	w.t.Helper()
	refs := make([]fleet.NodeRef, len(names))
	for i, name := range names {
		refs[i] = w.ref(name)
	}
	w.mu.Lock()
	by := ada
	by.Role = w.role
	w.mu.Unlock()
	return w.ops.Prepare(w.t.Context(), by, op, refs)
}

// do prepares an operation and does it to one node.
func (w *whole) do(batch string, op fleet.Operation, it fleet.Item) fleet.ItemResult {
	w.t.Helper()
	op, err := w.prepare(op, it.Ref.Name)
	if err != nil {
		w.t.Fatalf("preparing %s: %v", op.Action, err)
	}
	res, err := w.ops.Do(w.t.Context(), fleet.Task{By: ada, Batch: batch, Item: it, Operation: op})
	if (err != nil) != (res.State == fleet.ItemFailed) {
		w.t.Fatalf("%s: %+v, %v", op.Action, res, err)
	}
	return res
}

// plan prepares an operation and says what it would do.
func (w *whole) plan(op fleet.Operation, names ...string) *fleet.Plan {
	w.t.Helper()
	op, err := w.prepare(op, names...)
	if err != nil {
		w.t.Fatalf("preparing %s: %v", op.Action, err)
	}
	items := make([]fleet.Item, len(names))
	for i, name := range names {
		items[i] = w.item(name)
	}
	w.mu.Lock()
	by := ada
	by.Role = w.role
	w.mu.Unlock()
	p, err := w.ops.Plan(w.t.Context(), by, op, items)
	if err != nil {
		w.t.Fatalf("planning %s: %v", op.Action, err)
	}
	return p
}

func labels(lines ...string) fleet.Operation {
	return fleet.Operation{Action: fleet.ActionLabels, Labels: lines}
}

func taints(lines ...string) fleet.Operation {
	return fleet.Operation{Action: fleet.ActionTaints, Taints: lines}
}

// own are the taints of a node that no controller keeps, as kubectl writes them.
func own(n *corev1.Node) []string {
	var out []string
	for _, t := range n.Spec.Taints {
		if !strings.HasPrefix(t.Key, "node.kubernetes.io/") {
			out = append(out, t.ToString())
		}
	}
	return out
}

// dryRun asks the API server for its opinion on a patch of a node, and changes nothing.
func dryRun(t *testing.T, c *kubetest.Cluster, name string, patch map[string]any) error {
	t.Helper()
	body, err := json.Marshal(patch)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Client().CoreV1().Nodes().Patch(t.Context(), name, types.MergePatchType, body, metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

// wrapped lets a test do something before a request leaves.
type wrapped struct {
	http.RoundTripper
	before func(r *http.Request)
}

func (w wrapped) RoundTrip(r *http.Request) (*http.Response, error) {
	w.before(r)
	return w.RoundTripper.RoundTrip(r)
}

// WrappedRoundTripper lets client-go find the transport.
func (w wrapped) WrappedRoundTripper() http.RoundTripper { return w.RoundTripper }

// TestCase45_RacedByTwoOperators is checklist item 45: one wins, the other one learns who, and no reason is overwritten.
func TestCase45_RacedByTwoOperators(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	nodes := makeNodes(t, c, 10)
	mark := c.AuditLog(t).Mark()
	for _, name := range nodes {
		it := w.item(name)
		results := make([]fleet.ItemResult, 2)
		var race sync.WaitGroup
		for i := range results {
			op := fleet.Operation{Action: fleet.ActionCordon, Reason: fmt.Sprintf("reason %d", i)}
			race.Go(func() {
				var err error
				results[i], err = w.ops.Do(t.Context(), fleet.Task{By: ada, Batch: fmt.Sprintf("b%d", i), Item: it, Operation: op})
				if err != nil {
					t.Errorf("Do: %v", err)
				}
			})
		}
		race.Wait()
		won := slices.IndexFunc(results, func(r fleet.ItemResult) bool { return r.Changed })
		if won < 0 || results[1-won].Changed || results[1-won].Code != fleet.CodeUnchanged ||
			!strings.Contains(results[1-won].Message, "already cordoned by ada") {
			t.Errorf("%s: %+v", name, results)
			continue
		}
		note, err := kube.ParseCordonNote(w.live(name).Annotations[kube.CordonAnnotation])
		if err != nil || note.Batch != fmt.Sprintf("b%d", won) || note.Reason != fmt.Sprintf("reason %d", won) {
			t.Errorf("%s: the note is %+v (%v), and batch %d won", name, note, err, won)
		}
		if e := results[won].Edits; len(e) != 1 || e[0].Kind != fleet.EditCordon || e[0].Before != nil || *e[0].After != note.String() {
			t.Errorf("%s: edits %+v", name, e)
		}
	}
	if _, done := writes(t, c, mark, nodes); done != len(nodes) {
		t.Errorf("%d writes took effect on %d nodes", done, len(nodes))
	}
}

// TestCase46_OnePatchWithItsConditions is checklist item 46: what a stale version answers is met by reading again.
func TestCase46_OnePatchWithItsConditions(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	nodes := makeNodes(t, c, 1)
	cfg := c.REST()
	var once sync.Once
	cfg.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return wrapped{rt, func(r *http.Request) {
			if r.Method == http.MethodPatch {
				once.Do(func() { c.Annotate(t, nodes[0], "somebody", "was faster") })
			}
		}}
	})
	w := setUp(t, c, cfg)
	mark := c.AuditLog(t).Mark()
	res := w.do("b1", cordon, w.item(nodes[0]))
	if res.State != fleet.ItemSucceeded || !res.Changed {
		t.Fatalf("Do = %+v", res)
	}
	var codes []int
	for _, e := range c.AuditLog(t).Writes(mark, "nodes", kubetest.ByAgent(agent), kubetest.Named(nodes[0])) {
		codes = append(codes, e.Code)
		var patch struct {
			Metadata struct {
				UID, ResourceVersion string
				Annotations          map[string]any
			}
			Spec map[string]any
		}
		if err := json.Unmarshal(e.Request, &patch); err != nil {
			t.Fatal(err)
		}
		if e.Verb != "patch" || patch.Metadata.UID == "" || patch.Metadata.ResourceVersion == "" || len(patch.Metadata.Annotations) != 2 || patch.Spec["unschedulable"] != true {
			t.Errorf("%s with %s", e.Verb, e.Request)
		}
	}
	if diff := cmp.Diff([]int{409, 200}, codes); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
	if n := w.live(nodes[0]); n.Annotations["somebody"] != "was faster" || !n.Spec.Unschedulable {
		t.Errorf("annotations %v", n.Annotations)
	}
	// A patch for a node of another uid is refused by the server, with a version or without.
	for _, meta := range []map[string]any{{"uid": "other"}, {"uid": "other", "resourceVersion": w.live(nodes[0]).ResourceVersion}} {
		if err := dryRun(t, c, nodes[0], map[string]any{"metadata": meta}); !apierrors.IsInvalid(err) {
			t.Errorf("%v: %v", meta, err)
		}
	}
}

// TestCase48_CordonOfOthers is checklist items 44 and 48, as far as they are about cordons: what somebody else cordoned is
// neither uncordoned nor taken back without being asked for by name.
func TestCase48_CordonOfOthers(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	nodes := makeNodes(t, c, 3)
	mine, foreign, taken := nodes[0], nodes[1], nodes[2]
	cordoned := map[string]fleet.ItemResult{}
	cordoned[mine] = w.do("b1", cordon, w.item(mine))
	c.Cordon(t, foreign)
	cordoned[foreign] = w.do("b1", cordon, w.item(foreign))
	cordoned[taken] = w.do("b1", cordon, w.item(taken))
	c.Uncordon(t, taken)
	waitForSecond(t, w.live(taken).Annotations[kube.CordonAnnotation])
	c.Cordon(t, taken)

	if res := w.do("b2", uncordon, w.item(foreign)); res.Code != fleet.CodeForeignCordon {
		t.Errorf("uncordon of a foreign cordon: %+v", res)
	}
	revert := func(name string) fleet.ItemResult {
		t.Helper()
		it := w.item(name)
		it.Undo = cordoned[name].Edits
		res, err := w.ops.Do(t.Context(), fleet.Task{By: ada, Batch: "b3", Item: it, Operation: fleet.Operation{Action: fleet.ActionRevert, Revert: "b1"}})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	mark := c.AuditLog(t).Mark()
	for name, code := range map[string]string{mine: "", foreign: fleet.CodeNothing, taken: fleet.CodeChangedSince} {
		if res := revert(name); res.Code != code || res.Changed != (name == mine) {
			t.Errorf("taking back the cordon of %s: %+v, want %q", name, res, code)
		}
		if w.live(name).Spec.Unschedulable != (name != mine) {
			t.Errorf("%s is unschedulable: %v", name, name == mine)
		}
	}
	if asked, done := writes(t, c, mark, nodes); asked != 1 || done != 1 {
		t.Errorf("%d writes, %d took effect, want 1", asked, done)
	}
}

// TestCase49_NothingToDoIsNotWritten is checklist item 49.
func TestCase49_NothingToDoIsNotWritten(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	nodes := makeNodes(t, c, 1)
	w.do("b1", labels("team=red"), w.item(nodes[0]))
	w.do("b1", taints("gpu=a:PreferNoSchedule"), w.item(nodes[0]))
	mark := c.AuditLog(t).Mark()
	for _, op := range []fleet.Operation{
		labels("team=red", "none-"), taints("gpu=a:PreferNoSchedule", "none-"),
		{Action: fleet.ActionLabels, Labels: []string{"none=1"}, Mode: fleet.EditReplace},
		{Action: fleet.ActionTaints, Taints: []string{"gpu=a:PreferNoSchedule"}, Mode: fleet.EditReplace},
	} {
		if res := w.do("b2", op, w.item(nodes[0])); res.State != fleet.ItemSkipped || res.Code != fleet.CodeUnchanged || res.Changed {
			t.Errorf("%+v: %+v", op, res)
		}
		if p := w.plan(op, nodes[0]); p.Counts.Unchanged != 1 || p.Clusters[0].Nodes[0].Verdict != fleet.NodeUnchanged || p.Clusters[0].Nodes[0].Fault != "" {
			t.Errorf("%+v: planned %s %q", op, p.Clusters[0].Nodes[0].Verdict, p.Clusters[0].Nodes[0].Fault)
		}
	}
	if asked, _ := writes(t, c, mark, nodes); asked != 0 {
		t.Errorf("%d writes", asked)
	}
}

// TestCase58_TwoWriters is checklist item 58: two writers change the taints of one node at the same time, 200 times each,
// and nothing that either of them wrote is lost.
func TestCase58_TwoWriters(t *testing.T) {
	t.Parallel()
	const rounds = 200
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	name := makeNodes(t, c, 1)[0]
	it := w.item(name)
	mark := c.AuditLog(t).Mark()
	// colleague adds a taint as a careful client does: read, change, write with the version that was read.
	colleague := func(key string) error {
		for t.Context().Err() == nil {
			n, err := c.Client().CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Effect: corev1.TaintEffectPreferNoSchedule})
			if _, err = c.Client().CoreV1().Nodes().Update(t.Context(), n, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
				return err
			}
		}
		return t.Context().Err()
	}
	told := 0 // conflicts that were reported, and done again
	for i := range rounds {
		var round sync.WaitGroup
		round.Go(func() {
			if err := colleague(fmt.Sprintf("theirs-%d", i)); err != nil {
				t.Errorf("colleague: %v", err)
			}
		})
		op := taints(fmt.Sprintf("ours-%d:PreferNoSchedule", i))
		if i > 0 {
			op.Taints = append(op.Taints, fmt.Sprintf("passing-%d-", i-1)) // and takes one away
		}
		op.Taints = append(op.Taints, fmt.Sprintf("passing-%d:PreferNoSchedule", i))
		for {
			res := w.do(fmt.Sprintf("b%d", i), op, it)
			if res.State == fleet.ItemSucceeded {
				break
			}
			if told++; res.Code != fleet.CodeConflict {
				t.Fatalf("round %d: %+v", i, res)
			}
		}
		round.Wait()
	}
	has := map[string]bool{}
	for _, taint := range w.live(name).Spec.Taints {
		has[taint.Key] = true
	}
	for i := range rounds {
		for _, key := range []string{fmt.Sprintf("theirs-%d", i), fmt.Sprintf("ours-%d", i)} {
			if !has[key] {
				t.Errorf("%s is lost", key)
			}
		}
		if has[fmt.Sprintf("passing-%d", i)] != (i == rounds-1) {
			t.Errorf("passing-%d is there: %v", i, has[fmt.Sprintf("passing-%d", i)])
		}
	}
	asked, done := writes(t, c, mark, []string{name})
	if done != rounds {
		t.Errorf("%d of our writes took effect, want %d", done, rounds)
	}
	if asked == done {
		t.Error("no conflict in all these rounds: this proved nothing")
	}
	t.Logf("%d of our %d patches met a conflict; %d were reported as such", asked-done, asked, told)
}

// TestCase59_DuplicatesNeverLeave is checklist item 59.
func TestCase59_DuplicatesNeverLeave(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	name := makeNodes(t, c, 1)[0]
	_, err := w.prepare(taints("gpu=a:NoSchedule", "gpu=b:NoSchedule"), name)
	if fe, ok := errors.AsType[*fleet.FieldError](err); !ok || fe.Field != "taints" || fe.Args["Part"] != "gpu=b:NoSchedule" {
		t.Errorf("two values: %v", err)
	}
	list := []corev1.Taint{{Key: "gpu", Value: "a", Effect: corev1.TaintEffectNoSchedule}, {Key: "gpu", Value: "b", Effect: corev1.TaintEffectNoSchedule}}
	if err := dryRun(t, c, name, map[string]any{"spec": map[string]any{"taints": list}}); !apierrors.IsInvalid(err) {
		t.Errorf("the server takes it: %v", err)
	}
}

// TestCase61_RemovedByKey is checklist item 61 on a real server.
func TestCase61_RemovedByKey(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	name := makeNodes(t, c, 1)[0]
	w.do("b1", taints("gpu=a:NoSchedule", "gpu=b:PreferNoSchedule", "other:NoSchedule"), w.item(name))
	for _, tt := range []struct {
		line string
		code string
		left []string
	}{
		{"gone-", fleet.CodeUnchanged, []string{"gpu=a:NoSchedule", "gpu=b:PreferNoSchedule", "other:NoSchedule"}},
		{"gpu:NoSchedule-", "", []string{"gpu=b:PreferNoSchedule", "other:NoSchedule"}},
		{"gpu:NoSchedule-", fleet.CodeUnchanged, []string{"gpu=b:PreferNoSchedule", "other:NoSchedule"}},
		{"gpu=c:NoSchedule", "", []string{"gpu=b:PreferNoSchedule", "other:NoSchedule", "gpu=c:NoSchedule"}},
		{"gpu-", "", []string{"other:NoSchedule"}},
	} {
		if res := w.do("b2", taints(tt.line), w.item(name)); res.Code != tt.code {
			t.Errorf("%s: %+v", tt.line, res)
		}
		if diff := cmp.Diff(tt.left, own(w.live(name))); diff != "" {
			t.Errorf("after %s (-want +got):\n%s", tt.line, diff)
		}
	}
}

// TestCase62_TheServerAgrees is checklist item 62: what we refuse is what the server would refuse, and what we let pass
// it takes.
func TestCase62_TheServerAgrees(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	name := makeNodes(t, c, 1)[0]
	mark := c.AuditLog(t).Mark()
	for _, tt := range []struct {
		key, value string
		good       bool
	}{
		{"team", strings.Repeat("v", 63), true},
		{"team", strings.Repeat("v", 64), false},
		{"team", "a b", false},
		{"X/y/x", "1", false},
		{"Example.com/x", "1", false},
		{"/a", "1", false},
		{"team", "red-", false},
		{"team", "", true},
		{"team", "ä", false},
		{"example.com/A_b.c", "v-1.2_3", true},
		{strings.Repeat("n", 63), "1", true},
		{strings.Repeat("n", 64), "1", false},
		{strings.Repeat("a.", 126) + "a/x", "1", true},
		{strings.Repeat("a.", 127) + "aa/x", "1", false},
		{"-a", "1", false},
		{"a-", "1", false},
	} {
		_, err := w.prepare(labels(tt.key+"="+tt.value), name)
		if fe, ok := errors.AsType[*fleet.FieldError](err); (err == nil) != tt.good || err != nil && (!ok || fe.Field != "labels") {
			t.Errorf("label %q=%q: %v", tt.key, tt.value, err)
		}
		if err := dryRun(t, c, name, map[string]any{"metadata": map[string]any{"labels": map[string]string{tt.key: tt.value}}}); (err == nil) != tt.good {
			t.Errorf("label %q=%q, says the server: %v", tt.key, tt.value, err)
		}
		_, err = w.prepare(taints(tt.key+"="+tt.value+":NoSchedule"), name)
		if fe, ok := errors.AsType[*fleet.FieldError](err); (err == nil) != tt.good || err != nil && (!ok || fe.Field != "taints") {
			t.Errorf("taint %q=%q: %v", tt.key, tt.value, err)
		}
		list := []corev1.Taint{{Key: tt.key, Value: tt.value, Effect: corev1.TaintEffectNoSchedule}}
		if err := dryRun(t, c, name, map[string]any{"spec": map[string]any{"taints": list}}); (err == nil) != tt.good {
			t.Errorf("taint %q=%q, says the server: %v", tt.key, tt.value, err)
		}
	}
	if asked, _ := writes(t, c, mark, []string{name}); asked != 0 {
		t.Errorf("%d requests left", asked)
	}
}

// TestCase63_IdentityIsNotEditedByTheWay is checklist item 63.
func TestCase63_IdentityIsNotEditedByTheWay(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	name := makeNodes(t, c, 1)[0]
	w.as(fleet.RoleAdmin)
	op := labels("kubernetes.io/hostname=other")
	_, err := w.prepare(op, name)
	if fe, ok := errors.AsType[*fleet.FieldError](err); !ok || fe.Field != "labels" || !strings.Contains(fe.Message, "kubernetes.io/hostname") {
		t.Errorf("not meant: %v", err)
	}
	if err := dryRun(t, c, name, map[string]any{"metadata": map[string]any{"labels": map[string]string{"kubernetes.io/hostname": "other"}}}); err != nil {
		t.Errorf("the server refuses it: %v", err)
	}
	op.AllowProtected, op.OnConflict = true, fleet.ConflictOverwrite
	p := w.plan(op, name)
	if p.Confirm != c.Name || !slices.Equal(p.Why, []string{fleet.ConfirmProtected}) || p.Clusters[0].Nodes[0].Edits[0].Note != "identity" {
		t.Errorf("plan asks for %q because of %v: %+v", p.Confirm, p.Why, p.Clusters[0].Nodes[0].Edits)
	}
	w.as(fleet.RoleOperator)
	if _, err := w.prepare(op, name); !errors.Is(err, fleet.ErrForbidden) {
		t.Errorf("an operator: %v", err)
	}
}

// TestCase64_TaintsOfControllers is checklist item 64.
func TestCase64_TaintsOfControllers(t *testing.T) {
	t.Parallel()
	const key = "node.kubernetes.io/unschedulable"
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	w.as(fleet.RoleAdmin)
	name := c.Node(t, kubetest.NodeSpec{Unschedulable: true}).Name
	for _, line := range []string{key + "-", key + ":NoSchedule-", key + ":NoSchedule"} {
		_, err := w.prepare(taints(line), name)
		if fe, ok := errors.AsType[*fleet.FieldError](err); !ok || fe.Field != "taints" || !strings.Contains(fe.Message, "uncordon") {
			t.Errorf("%s: %v", line, err)
		}
	}
	has := func(n *corev1.Node) bool {
		return n != nil && slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == key })
	}
	before := w.live(name).ResourceVersion
	c.Untaint(t, name, key)
	c.WaitNode(t, name, func(n *corev1.Node) bool { return has(n) && n.ResourceVersion != before })
	// It stays where taints are replaced.
	if res := w.do("b1", fleet.Operation{Action: fleet.ActionTaints, Taints: []string{"gpu:NoSchedule"}, Mode: fleet.EditReplace}, w.item(name)); !res.Changed {
		t.Errorf("replacing: %+v", res)
	}
	if n := w.live(name); !has(n) || len(n.Spec.Taints) != 2 {
		t.Errorf("taints are %v", n.Spec.Taints)
	}
}

// TestCase65_NoExecute is checklist item 65: what the plan says is deleted is what the cluster deletes, budgets or not;
// what is said to go later goes later; what is said to stay, stays.
func TestCase65_NoExecute(t *testing.T) {
	t.Parallel()
	const soon = int64(5) // seconds
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	w.as(fleet.RoleAdmin)
	ns := c.Namespace(t)
	node, elsewhere := c.Node(t, kubetest.NodeSpec{Labels: map[string]string{"case65": "here"}}).Name, makeNodes(t, c, 1)[0]
	tolerating := func(seconds *int64) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Tolerations = []corev1.Toleration{{
				Key: "out", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: seconds,
			}}
		}
	}
	c.Deployment(t, 3, kubetest.PodSpec{Namespace: ns, Name: "web"}, func(d *appsv1.Deployment) {
		d.Spec.Template.Spec.NodeSelector["case65"] = "here"
	})
	pdb := c.PDB(t, ns, "web", "3")
	c.DaemonSet(t, kubetest.PodSpec{Namespace: ns, Name: "agent"})
	c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "alone", Node: node})
	c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "soon", Node: node, Mutate: tolerating(new(soon))})
	c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "never", Node: node, Mutate: tolerating(nil)})
	c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "far", Node: node, Mutate: tolerating(new(int64(36000)))})
	// Two of the same toleration, of which one is spared: their deadlines are the same, or the spared one's is earlier.
	spared := makeNodes(t, c, 1)[0]
	c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "spared", Node: spared, Mutate: tolerating(new(soon))})

	op := taints("out=of-order:NoExecute")
	p := w.plan(op, node)
	cluster := p.Clusters[0]
	want := map[string]fleet.Verdict{"alone": fleet.VerdictDelete, "soon": fleet.VerdictLater, "never": fleet.VerdictStay, "far": fleet.VerdictLater}
	planned := map[string]fleet.Verdict{}
	gone := map[types.UID]bool{}
	for _, pod := range cluster.Nodes[0].Pods {
		switch pod.OwnerName {
		case "":
			planned[pod.Name] = pod.Verdict
		case "web":
			if pod.OwnerKind != "Deployment" || pod.Verdict != fleet.VerdictDelete || pod.Budget == nil || !slices.Equal(pod.Budget.Budgets, []string{pdb.Name}) {
				t.Errorf("planned %+v", pod)
			}
		case "agent":
			if pod.OwnerKind != "DaemonSet" || pod.Verdict != fleet.VerdictDelete || !pod.Has("daemonset") {
				t.Errorf("planned %+v", pod)
			}
		}
		if pod.Verdict == fleet.VerdictDelete || pod.Name == "soon" {
			gone[types.UID(pod.UID)] = true
		}
	}
	if diff := cmp.Diff(want, planned); diff != "" {
		t.Errorf("planned (-want +got):\n%s", diff)
	}
	if got := cluster.Nodes[0].Counts; got != (fleet.PodCounts{Delete: 5, Later: 2, Stay: 1}) || cluster.Counts != got {
		t.Errorf("counts are %+v", got)
	}
	if len(cluster.Budgets) != 1 || cluster.Budgets[0].Pods != 3 || cluster.Budgets[0].DesiredHealthy != 3 || cluster.Budgets[0].CurrentHealthy != 3 {
		t.Errorf("budgets are %+v", cluster.Budgets)
	}
	if p.Confirm != c.Name || !slices.Equal(p.Why, []string{fleet.ConfirmNoExecute}) {
		t.Errorf("%q is asked for because of %v", p.Confirm, p.Why)
	}
	if len(p.Digest) != 64 || p.Digest != w.plan(op, node).Digest || p.Digest == w.plan(op, elsewhere).Digest {
		t.Errorf("digest is %q", p.Digest)
	}

	start := time.Now()
	if res := w.do("b1", op, w.item(spared)); !res.Changed {
		t.Fatalf("Do = %+v", res)
	}
	if res := w.do("b2", taints("out-"), w.item(spared)); !res.Changed {
		t.Fatalf("Do = %+v", res)
	}
	inTime := time.Since(start) < time.Duration(soon)*time.Second
	asked := time.Now()
	if res := w.do("b3", op, w.item(node)); !res.Changed {
		t.Fatalf("Do = %+v", res)
	}
	left := map[string]bool{}
	c.WaitPods(t, ns, "", func(pods []*corev1.Pod) bool {
		clear(left)
		for _, p := range pods {
			if gone[p.UID] {
				return false
			}
			if p.Spec.NodeName == node && p.DeletionTimestamp == nil {
				left[p.Name] = true
			}
		}
		return true
	})
	if took := time.Since(asked); took < time.Duration(soon)*time.Second {
		t.Errorf("a pod that tolerates it for %d seconds was gone after %s", soon, took)
	}
	if !left["never"] || !left["far"] || len(left) != 2 {
		t.Errorf("left on the node: %v", slices.Sorted(maps.Keys(left)))
	}
	pod := c.WaitPod(t, ns, "spared", func(*corev1.Pod) bool { return true })
	switch {
	case !inTime: // the machine is too slow to say anything
		t.Logf("taking the taint away took longer than %d seconds", soon)
	case pod == nil || pod.DeletionTimestamp != nil:
		t.Error("a pod was deleted for a taint that was taken away in time")
	}
}

// TestCase67_CopiedFromASickNode is checklist item 67.
func TestCase67_CopiedFromASickNode(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	source := c.Node(t, kubetest.NodeSpec{
		NotReady: true, Unschedulable: true,
		Taints: []corev1.Taint{
			{Key: "gpu", Value: "a", Effect: corev1.TaintEffectNoSchedule, TimeAdded: &metav1.Time{Time: time.Now().Add(-time.Hour)}},
			{Key: "soft", Effect: corev1.TaintEffectPreferNoSchedule},
		},
	}).Name
	nodes := makeNodes(t, c, 2)
	ref := w.ref(source)
	c.Taint(t, nodes[0], corev1.Taint{Key: "gpu", Value: "old", Effect: corev1.TaintEffectNoSchedule})
	for _, name := range nodes {
		c.Taint(t, name, corev1.Taint{Key: "mine", Effect: corev1.TaintEffectPreferNoSchedule})
	}
	for i, mode := range []fleet.EditMode{fleet.EditMerge, fleet.EditReplace} {
		res := w.do("b1", fleet.Operation{Action: fleet.ActionCopy, Source: &ref, Mode: mode}, w.item(nodes[i]))
		if !res.Changed {
			t.Errorf("%s: %+v", mode, res)
		}
		n := w.live(nodes[i])
		got := own(n)
		slices.Sort(got)
		want := [][]string{{"gpu=a:NoSchedule", "mine:PreferNoSchedule", "soft:PreferNoSchedule"}, {"gpu=a:NoSchedule", "soft:PreferNoSchedule"}}[i]
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", mode, diff)
		}
		for _, taint := range n.Spec.Taints {
			if taint.TimeAdded != nil || strings.HasPrefix(taint.Key, "node.kubernetes.io/") {
				t.Errorf("%s: copied %+v", mode, taint)
			}
		}
	}
}

// TestCase68_FiveHundredNodes is checklist item 68. It is not parallel: so many nodes are work for the API server that
// the other tests of this package would feel.
func TestCase68_FiveHundredNodes(t *testing.T) {
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	nodes := makeNodes(t, c, 500)
	c.Label(t, nodes[100], "team", "other")
	c.Label(t, nodes[400], "team", "other")
	op := labels("team=red")

	start := time.Now()
	p := w.plan(op, nodes...)
	t.Logf("planned in %s", time.Since(start))
	if p.Counts != (fleet.PlanCounts{Total: 500, Change: 498, Blocked: 2}) {
		t.Errorf("planned %+v", p.Counts)
	}
	w.as(fleet.RoleAdmin)
	p = w.plan(taints("out:NoExecute"), nodes...)
	warned := slices.ContainsFunc(p.Clusters[0].Warnings, func(i fleet.Impact) bool {
		return i.Code == "pods_not_counted" && i.Detail == "300 of 500 nodes"
	})
	if !warned || p.Confirm != c.Name || p.Counts.Change != 500 {
		t.Errorf("planned %+v, warned %+v, asked for %q", p.Counts, p.Clusters[0].Warnings, p.Confirm)
	}
	id := w.submit(op, nodes...)
	vanished := []int{7, 250, 499}
	for _, i := range vanished {
		c.DeleteNode(t, nodes[i])
	}
	mark := c.AuditLog(t).Mark()
	start = time.Now()
	w.run()
	b, items := w.wait(id)
	t.Logf("done in %s", time.Since(start))
	if b.Outcome != fleet.OutcomePartial || b.Counts.Succeeded != 495 || b.Counts.Failed != 5 {
		t.Errorf("batch is %s with %+v", b.Outcome, b.Counts)
	}
	for i, it := range items {
		switch {
		case slices.Contains(vanished, i):
			if it.Code != fleet.CodeNotFound || it.Changed || it.Error == "" {
				t.Errorf("vanished: %+v", it)
			}
		case i == 100 || i == 400:
			if it.Code != fleet.CodeConflict || it.Changed || !strings.Contains(it.Error, `label team is "other"`) {
				t.Errorf("conflict: %+v", it)
			}
		case it.State != fleet.ItemSucceeded || !it.Changed:
			t.Errorf("item %+v", it)
		}
	}
	if _, done := writes(t, c, mark, nodes); done != 495 {
		t.Errorf("%d writes took effect", done)
	}
}

// TestCase69_TooManyAnnotations is checklist item 69: what the server refuses is said once, in its words.
func TestCase69_TooManyAnnotations(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	name := c.Node(t, kubetest.NodeSpec{Annotations: map[string]string{"big": strings.Repeat("x", 256<<10-100)}}).Name
	mark := c.AuditLog(t).Mark()
	res := w.do("b1", cordon, w.item(name))
	if res.State != fleet.ItemFailed || res.Code != fleet.CodeInvalid || !strings.Contains(res.Message, "annotations") {
		t.Errorf("Do = %+v", res)
	}
	es := c.AuditLog(t).Writes(mark, "nodes", kubetest.ByAgent(agent), kubetest.Named(name))
	if len(es) != 1 || es[0].Code != http.StatusUnprocessableEntity {
		t.Errorf("%d writes: %+v", len(es), es)
	}
	if w.live(name).Spec.Unschedulable {
		t.Error("it is cordoned")
	}
}

// TestCluster_TemplateAndBack applies a template, which is one write, and takes it back after a colleague was there.
func TestCluster_TemplateAndBack(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	name := makeNodes(t, c, 1)[0]
	c.Label(t, name, "team", "red")
	op := fleet.Operation{
		Action: fleet.ActionTemplate, Labels: []string{"team=blue", "pool=a"}, Taints: []string{"pool=a:NoSchedule", "pool=a:PreferNoSchedule"},
		OnConflict: fleet.ConflictOverwrite,
	}
	mark := c.AuditLog(t).Mark()
	it := w.item(name)
	res, err := w.ops.Do(t.Context(), fleet.Task{By: ada, Batch: "b1", Item: it, Operation: op})
	if err != nil || len(res.Edits) != 4 {
		t.Fatalf("Do = %+v, %v", res, err)
	}
	if asked, done := writes(t, c, mark, []string{name}); asked != done || done != 1 {
		t.Errorf("%d writes, %d took effect, want one", asked, done)
	}
	c.Label(t, name, "pool", "b")
	c.Untaint(t, name, "pool")
	c.Taint(t, name, corev1.Taint{Key: "pool", Value: "a", Effect: corev1.TaintEffectNoSchedule})
	it.Undo = res.Edits
	revert := fleet.Operation{Action: fleet.ActionRevert, Revert: "b1"}
	p, err := w.ops.Plan(t.Context(), ada, revert, []fleet.Item{it})
	if err != nil {
		t.Fatal(err)
	}
	if n := p.Clusters[0].Nodes[0]; n.Verdict != fleet.NodeChange || n.Fault != fleet.CodeChangedSince || !strings.Contains(n.Message, "label pool") {
		t.Errorf("planned %s %s %q", n.Verdict, n.Fault, n.Message)
	}
	want := []string{"kubectl --context " + c.Name + " label nodes " + name + " team=red --overwrite", "kubectl --context " + c.Name + " taint nodes " + name + " pool:NoSchedule- --overwrite"}
	if diff := cmp.Diff(want, p.Kubectl); diff != "" {
		t.Errorf("kubectl (-want +got):\n%s", diff)
	}
	res, err = w.ops.Do(t.Context(), fleet.Task{By: ada, Batch: "b2", Item: it, Operation: revert})
	if err != nil || res.State != fleet.ItemSucceeded || res.Code != fleet.CodeChangedSince || len(res.Edits) != 2 {
		t.Errorf("Do = %+v, %v", res, err)
	}
	n := w.live(name)
	if n.Labels["team"] != "red" || n.Labels["pool"] != "b" || len(own(n)) != 0 {
		t.Errorf("labels %v, taints %v", n.Labels, own(n))
	}
}

// TestCluster_PlansOfLabels counts who asks for a label that changes (LT-21), and who would not come again (LT-42).
func TestCluster_PlansOfLabels(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	ns := c.Namespace(t)
	name := c.Node(t, kubetest.NodeSpec{Labels: map[string]string{"pool": "a"}}).Name
	c.Deployment(t, 1, kubetest.PodSpec{Namespace: ns, Name: "web"}, func(d *appsv1.Deployment) {
		d.Spec.Template.Spec.NodeSelector["pool"] = "a"
	})
	c.DaemonSet(t, kubetest.PodSpec{Namespace: ns, Name: "agent"}, func(d *appsv1.DaemonSet) {
		d.Spec.Template.Spec.NodeSelector["pool"] = "a"
	})
	c.Deployment(t, 1, kubetest.PodSpec{Namespace: ns, Name: "other"})
	op := labels("pool=b")
	op.OnConflict = fleet.ConflictOverwrite
	n := w.plan(op, name).Clusters[0].Nodes[0]
	said := map[string]string{}
	for _, p := range n.Pods {
		for _, r := range p.Reasons {
			said[p.OwnerName] += " " + string(p.Verdict) + ":" + r.Code
		}
	}
	want := map[string]string{
		"web":   " stay:label_used stay:label_unmatched",
		"agent": " delete:label_used delete:daemonset_unmatched",
	}
	if diff := cmp.Diff(want, said); diff != "" {
		t.Errorf("said of pods (-want +got):\n%s", diff)
	}
	if n.Edits[0].Note != "used" || n.Counts != (fleet.PodCounts{Delete: 1, Stay: 1}) {
		t.Errorf("planned %+v, %+v, %+v", n.Verdict, n.Edits, n.Counts)
	}
	n = w.plan(taints("gpu:NoSchedule"), name).Clusters[0].Nodes[0]
	if n.Counts != (fleet.PodCounts{Stay: 1}) || n.Pods[0].OwnerName != "agent" || !n.Pods[0].Has("not_again") {
		t.Errorf("planned %+v, %+v", n.Counts, n.Pods)
	}
	// And the cluster does as was said.
	if res := w.do("b1", op, w.item(name)); !res.Changed {
		t.Fatalf("Do = %+v", res)
	}
	c.WaitPods(t, ns, "agent", func(pods []*corev1.Pod) bool { return len(pods) == 0 })
	if pods := c.WaitPods(t, ns, "web", func([]*corev1.Pod) bool { return true }); len(pods) != 1 {
		t.Errorf("%d pods of the deployment", len(pods))
	}
}

// TestCluster_PlansWithoutPermissions checks that what may not be read is named, and counts as bad news.
func TestCluster_PlansWithoutPermissions(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	ns := c.Namespace(t)
	name := c.Node(t, kubetest.NodeSpec{Labels: map[string]string{"karpenter.sh/nodepool": "x"}}).Name
	c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "alone", Node: name})
	user := kubetest.Name(t, "reader")
	c.Grant(t, user, kubetest.Rule("", "nodes", "get", "patch"))
	w := setUp(t, c, c.User(t, user))
	w.as(fleet.RoleAdmin)
	p := w.plan(taints("out:NoExecute"), name)
	if l := p.Clusters[0]; l.Error != "" || !slices.Equal(l.Missing, []string{"pods"}) || p.Confirm != c.Name || l.Nodes[0].Verdict != fleet.NodeChange {
		t.Errorf("without pods: %q, missing %v, asked for %q", l.Error, l.Missing, p.Confirm)
	}
	if l := p.Clusters[0]; len(l.Warnings) != 1 || l.Warnings[0].ID != "LT-20" || !strings.Contains(l.Warnings[0].Detail, "karpenter.sh/nodepool") {
		t.Errorf("warnings %+v", l.Warnings)
	}
	user = kubetest.Name(t, "reader")
	c.Grant(t, user, kubetest.Rule("", "nodes", "get", "patch"), kubetest.Rule("", "pods", "list"))
	w = setUp(t, c, c.User(t, user))
	w.as(fleet.RoleAdmin)
	p = w.plan(taints("out:NoExecute"), name)
	l := p.Clusters[0]
	if l.Error != "" || !slices.Equal(l.Missing, []string{"poddisruptionbudgets"}) || p.Confirm != c.Name {
		t.Errorf("without budgets: %q, missing %v, asked for %q", l.Error, l.Missing, p.Confirm)
	}
	if pods := l.Nodes[0].Pods; len(pods) != 1 || pods[0].Budget == nil || pods[0].Budget.Allowance != fleet.AllowNotEvaluated {
		t.Errorf("pods %+v", pods)
	}
}

// TestCluster_PlansOfTrouble shows nodes and clusters that cannot be changed.
func TestCluster_PlansOfTrouble(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	nodes := makeNodes(t, c, 2)
	gone := w.ref("no-such-node")
	replaced := w.item(nodes[1])
	replaced.UID = "another"
	op, err := w.prepare(labels("team=red"), nodes[0])
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	p, err := w.ops.Plan(ctx, ada, op, []fleet.Item{w.item(nodes[0]), {Ref: gone}, replaced})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range p.Clusters[0].Nodes {
		got = append(got, string(n.Verdict)+" "+n.Fault)
	}
	if diff := cmp.Diff([]string{"change ", "missing not_found", "missing replaced"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if p.Counts != (fleet.PlanCounts{Total: 3, Change: 1, Missing: 2}) || p.Confirm != "" || p.At.IsZero() || !p.Clusters[0].Nodes[0].Ready {
		t.Errorf("plan is %+v", p)
	}
	cancel()
	if _, err := w.ops.Plan(ctx, ada, op, []fleet.Item{w.item(nodes[0])}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	bad := c.REST()
	bad.Host = "https://127.0.0.1:1"
	w = setUp(t, c, bad)
	p, err = w.ops.Plan(t.Context(), ada, op, []fleet.Item{{Ref: w.ref(nodes[0])}})
	if err != nil || !strings.Contains(p.Clusters[0].Error, c.Name+" cannot be reached") || strings.Contains(p.Clusters[0].Error, "127.0.0.1") {
		t.Errorf("%+v, %v", p, err)
	}
}
