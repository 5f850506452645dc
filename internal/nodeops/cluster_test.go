package nodeops_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/kube-node-manager/kube-node-manager/internal/audit"
	"github.com/kube-node-manager/kube-node-manager/internal/batch"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
	"github.com/kube-node-manager/kube-node-manager/internal/nodeops"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// agent is how these tests find the product's requests among those of the tests.
const agent = "kube-node-manager/"

var ada = fleet.Caller{UserID: "u-ada", Name: "ada", Role: fleet.RoleOperator, Session: "s1", Via: "session", Addr: "192.0.2.1"}

// whole is everything behind a batch, over a real API server and a real database.
type whole struct {
	t       *testing.T
	cluster *kubetest.Cluster
	store   *store.Store
	audit   *audit.Log
	ops     *nodeops.Ops
	engine  *batch.Engine
	changed chan struct{}

	mu         sync.Mutex
	observed   map[string]string // name → resourceVersion
	remembered *corev1.Node      // what the watch has, of the one node of a test; nil for nothing
	role       fleet.Role
	terms      fleet.Terms // set before anything runs, as is name
	name       string      // of the person, ada for none
}

// Caller makes whole the authority.
func (w *whole) Caller(context.Context, string) (fleet.Caller, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := ada
	c.Role, c.Name = w.role, cmp.Or(w.name, c.Name)
	return c, nil
}

// Clusters and Node make whole the cache, with live reads: what the person saw a moment ago.
func (w *whole) Clusters(fleet.Sight) []fleet.Cluster { return []fleet.Cluster{{Name: w.cluster.Name}} }

func (w *whole) Unavailable(string) []string { return nil }

func (w *whole) Refuses(string, fleet.Operation) []fleet.TestedRight { return nil }

func (w *whole) Node(ref fleet.NodeRef) (*fleet.Node, error) {
	n, err := w.cluster.Client().CoreV1().Nodes().Get(w.t.Context(), ref.Name, metav1.GetOptions{})
	if err != nil {
		return nil, kube.Error(err)
	}
	return kube.Node(ref.Cluster, n), nil
}

func setUp(t *testing.T, cluster *kubetest.Cluster, cfg *rest.Config) *whole {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	client, err := kube.New(cluster.Name, cfg, kube.WithVersion("test"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdle)
	logger := slog.New(slog.DiscardHandler)
	w := &whole{
		t: t, cluster: cluster, store: s, audit: audit.New(s, logger), role: fleet.RoleOperator,
		observed: make(map[string]string), changed: make(chan struct{}, 1),
	}
	w.ops = nodeops.New(nodeops.Config{
		Clients:   func(_ string, by fleet.Caller) (kube.Clients, error) { return client.For(by, w.terms) },
		Record:    w.audit,
		Authority: w,
		Observe: func(_ string, n *corev1.Node) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.observed[n.Name] = n.ResourceVersion
		},
		Remembered: func(ref fleet.NodeRef) (*corev1.Node, bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.remembered == nil || w.remembered.Name != ref.Name {
				return nil, false
			}
			return w.remembered.DeepCopy(), true
		},
		Logger: logger, Installation: s.InstallationID(), LeaseNamespace: leaseNamespace,
	})
	w.engine = batch.New(batch.Config{
		Store: s, Doer: w.ops, Authorizer: w.ops, Planner: w.ops, Lookup: w, Logger: logger, Holder: "a",
		Notify: func(string) {
			select {
			case w.changed <- struct{}{}:
			default:
			}
		},
	})
	return w
}

// run runs the engine until the test ends or stop is called.
func (w *whole) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	done := make(chan error, 1)
	go func() { done <- w.engine.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run: %v", err)
		}
	})
	w.t.Cleanup(stop)
	return stop
}

func (w *whole) submit(op fleet.Operation, nodes ...string) string {
	w.t.Helper()
	spec := fleet.BatchSpec{Operation: op, Confirm: w.cluster.Name} // as a person types it where it is asked for
	for _, n := range nodes {
		spec.Nodes = append(spec.Nodes, fleet.NodeRef{Cluster: w.cluster.Name, Name: n})
	}
	b, err := w.engine.Submit(w.t.Context(), ada, spec)
	if err != nil {
		w.t.Fatalf("Submit: %v", err)
	}
	return b.ID
}

// wait waits for the batch to be done, woken by the engine's own hints.
func (w *whole) wait(id string) (fleet.Batch, []fleet.Item) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Minute) // a bound for what hangs, not for what is slow
	defer cancel()
	for {
		b, items, err := w.engine.Batch(ctx, ada, id)
		if err != nil {
			w.t.Fatalf("reading the batch: %v", err)
		}
		if b.State == fleet.BatchDone {
			return b, items
		}
		select {
		case <-w.changed:
		case <-ctx.Done():
			w.t.Fatalf("batch is still %s: %+v", b.State, b)
		}
	}
}

func (w *whole) live(name string) *corev1.Node {
	w.t.Helper()
	n, err := w.cluster.Client().CoreV1().Nodes().Get(w.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// makeNodes makes nodes and returns their names.
func makeNodes(t *testing.T, c *kubetest.Cluster, n int) []string {
	t.Helper()
	out := make([]string, n)
	for i, node := range c.Nodes(t, n, func(int) kubetest.NodeSpec { return kubetest.NodeSpec{} }) {
		out[i] = node.Name
	}
	return out
}

var (
	cordon   = fleet.Operation{Action: fleet.ActionCordon, Reason: "disk swap"}
	uncordon = fleet.Operation{Action: fleet.ActionUncordon}
)

// writes counts our requests that could have changed one of the nodes, and those that did.
func writes(t *testing.T, c *kubetest.Cluster, mark kubetest.Mark, nodes []string) (asked, done int) {
	t.Helper()
	ours := make(map[string]bool, len(nodes))
	for _, n := range nodes {
		ours[n] = true
	}
	for _, e := range c.AuditLog(t).Writes(mark, "nodes", kubetest.ByAgent(agent)) {
		if !ours[e.Name] {
			continue
		}
		asked++
		if e.Code < 300 {
			done++
		}
	}
	return asked, done
}

func TestCluster_FiveNodesOfWhichTwoAreDeletedInBetween(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	nodes := makeNodes(t, c, 5)
	id := w.submit(cordon, nodes...) // the list is frozen with five live nodes
	c.DeleteNode(t, nodes[1])
	c.DeleteNode(t, nodes[3])
	mark := c.AuditLog(t).Mark()
	w.run()
	b, items := w.wait(id)

	if b.Outcome != fleet.OutcomePartial || b.Counts.Succeeded != 3 || b.Counts.Failed != 2 {
		t.Errorf("batch is %s with %+v, want partial with 3 and 2", b.Outcome, b.Counts)
	}
	for i, it := range items {
		if gone := i == 1 || i == 3; gone {
			if it.State != fleet.ItemFailed || it.Code != fleet.CodeNotFound || !strings.Contains(it.Error, it.Ref.Name) || it.Changed {
				t.Errorf("deleted node: %+v", it)
			}
			continue
		}
		if it.State != fleet.ItemSucceeded || !it.Changed {
			t.Errorf("item %+v", it)
		}
		n := w.live(it.Ref.Name)
		note, err := kube.ParseCordonNote(n.Annotations[kube.CordonAnnotation])
		if !n.Spec.Unschedulable || err != nil || note.By != "ada" || note.Reason != "disk swap" || note.Batch != id || note.Via != "ui" {
			t.Errorf("node %s has the note %+v (%v)", n.Name, note, err)
		}
		if n.Annotations[kube.CordonReasonAnnotation] != "disk swap" {
			t.Errorf("node %s says %q", n.Name, n.Annotations[kube.CordonReasonAnnotation])
		}
		if f := kube.Node(c.Name, n); f.Cordon == nil || f.Cordon.By != "ada" {
			t.Errorf("the cache would show the cordon as %+v", f.Cordon)
		}
		if w.observed[n.Name] == "" {
			t.Errorf("the cache was not shown %s", n.Name)
		}
	}
	// The API server's own record: exactly one write that took effect per node that was there, and none else.
	if asked, done := writes(t, c, mark, nodes); done != 3 {
		t.Errorf("the API server saw %d writes of %d asked for, want 3", done, asked)
	}
	for _, e := range c.AuditLog(t).Writes(mark, "nodes", kubetest.ByAgent(agent)) {
		if e.Verb != "patch" || !strings.Contains(e.Path, "fieldManager=kube-node-manager") {
			t.Errorf("%s %s", e.Verb, e.Path)
		}
	}
	// Our record: each write had its intent, and the chain holds.
	if n, err := w.audit.Verify(t.Context()); err != nil || n == 0 {
		t.Errorf("Verify: %d, %v", n, err)
	}
	for i, name := range nodes {
		es, err := w.audit.Entries(t.Context(), fleet.AuditFilter{Node: name})
		if err != nil {
			t.Fatal(err)
		}
		var phases []string
		for _, e := range es {
			phases = append(phases, e.Phase+" "+e.Outcome)
		}
		want := "result succeeded,intent "
		if i == 1 || i == 3 {
			want = "result failed"
		}
		if got := strings.Join(phases, ","); got != want {
			t.Errorf("%s: on record %q, want %q", name, got, want)
		}
	}
}

func TestCluster_Replaced(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	nodes := makeNodes(t, c, 1)
	id := w.submit(cordon, nodes...)
	c.DeleteNode(t, nodes[0])
	c.Node(t, kubetest.NodeSpec{Name: nodes[0]})
	w.run()
	b, items := w.wait(id)
	if items[0].State != fleet.ItemSkipped || items[0].Code != fleet.CodeReplaced || b.Outcome != fleet.OutcomeSucceeded {
		t.Errorf("item %+v", items[0])
	}
	if w.live(nodes[0]).Spec.Unschedulable {
		t.Error("the new node of that name was cordoned")
	}
}

func TestCluster_ForeignCordon(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	w.run()
	nodes := makeNodes(t, c, 3)
	ours, theirs, stolen := nodes[0], nodes[1], nodes[2]
	w.wait(w.submit(cordon, ours, stolen))
	c.Cordon(t, theirs)
	c.Uncordon(t, stolen)
	// managedFields count in seconds, so that a cordon in the very second of ours could not be told from it.
	waitForSecond(t, w.live(stolen).Annotations[kube.CordonAnnotation])
	c.Cordon(t, stolen)

	// Cordoning again overwrites nobody's note and writes nothing.
	mark := c.AuditLog(t).Mark()
	b, items := w.wait(w.submit(fleet.Operation{Action: fleet.ActionCordon, Reason: "mine"}, nodes...))
	if b.Counts.Skipped != 3 || b.Outcome != fleet.OutcomeSucceeded {
		t.Errorf("batch is %s with %+v", b.Outcome, b.Counts)
	}
	for i, says := range []string{"already cordoned by ada", "already cordoned with kubectl-cordon", "already cordoned with kubectl-cordon"} {
		if items[i].Code != fleet.CodeUnchanged || !strings.Contains(items[i].Error, says) {
			t.Errorf("item %d is %+v, want it to say %q", i, items[i], says)
		}
	}
	if asked, _ := writes(t, c, mark, nodes); asked != 0 {
		t.Errorf("%d writes", asked)
	}

	// Uncordoning takes ours and asks about theirs.
	mark = c.AuditLog(t).Mark()
	b, items = w.wait(w.submit(uncordon, nodes...))
	if items[0].State != fleet.ItemSucceeded || b.Counts.Skipped != 2 {
		t.Errorf("batch is %+v", b.Counts)
	}
	for _, i := range []int{1, 2} {
		if items[i].Code != fleet.CodeForeignCordon || !strings.Contains(items[i].Error, "kubectl-cordon") || !w.live(nodes[i]).Spec.Unschedulable {
			t.Errorf("foreign cordon: %+v", items[i])
		}
	}
	if n := w.live(ours); n.Spec.Unschedulable || n.Annotations[kube.CordonAnnotation] != "" || n.Annotations[kube.CordonReasonAnnotation] != "" {
		t.Errorf("ours is still noted: %v", n.Annotations)
	}
	if _, done := writes(t, c, mark, nodes); done != 1 {
		t.Errorf("%d writes, want 1", done)
	}

	// By choice, theirs too.
	b, _ = w.wait(w.submit(fleet.Operation{Action: fleet.ActionUncordon, Foreign: fleet.ForeignInclude}, theirs, stolen))
	if b.Counts.Succeeded != 2 || w.live(theirs).Spec.Unschedulable || w.live(stolen).Spec.Unschedulable {
		t.Errorf("batch is %+v", b.Counts)
	}
	if w.live(stolen).Annotations[kube.CordonAnnotation] != "" {
		t.Error("our old note stayed")
	}
	b, items = w.wait(w.submit(uncordon, nodes...))
	if b.Counts.Skipped != 3 || items[0].Code != fleet.CodeUnchanged {
		t.Errorf("uncordoning what is schedulable: %+v", items[0])
	}
}

// waitForSecond waits until the clock is in a later second than the note's.
func waitForSecond(t *testing.T, raw string) {
	t.Helper()
	note, err := kube.ParseCordonNote(raw)
	if err != nil {
		t.Fatal(err)
	}
	timer := time.NewTimer(time.Until(note.At.Add(1100 * time.Millisecond)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
	}
}

func TestCluster_StaleNoteIsCleaned(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	w.run()
	nodes := makeNodes(t, c, 1)
	w.wait(w.submit(cordon, nodes...))
	c.Uncordon(t, nodes[0])
	mark := c.AuditLog(t).Mark()
	_, items := w.wait(w.submit(uncordon, nodes...))
	if items[0].State != fleet.ItemSucceeded || items[0].Code != fleet.CodeCleaned || !items[0].Changed {
		t.Errorf("item %+v", items[0])
	}
	if n := w.live(nodes[0]); n.Annotations[kube.CordonAnnotation] != "" || n.Annotations[kube.CordonReasonAnnotation] != "" {
		t.Errorf("annotations %v", n.Annotations)
	}
	if _, done := writes(t, c, mark, nodes); done != 1 {
		t.Errorf("%d writes, want 1", done)
	}
}

func TestCluster_ConflictStorm(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	nodes := makeNodes(t, c, 4)
	ctx, stop := context.WithCancel(t.Context())
	var storm sync.WaitGroup
	var mu sync.Mutex
	written := 0
	for _, name := range nodes {
		storm.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				began := time.Now()
				patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"Storm","status":"True","reason":"R%d"}]}}`, i)
				_, err := c.Client().CoreV1().Nodes().Patch(ctx, name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
				if err != nil && ctx.Err() == nil {
					t.Errorf("storm: %v", err)
					return
				}
				mu.Lock()
				written++
				mu.Unlock()
				// Two orders above a kubelet, and less on a machine that is slow: there our reads and writes are as well, and
				// five tries are not meant to win against a writer that never pauses.
				select {
				case <-ctx.Done():
				case <-time.After(max(100*time.Millisecond, 10*time.Since(began))):
				}
			}
		})
	}
	w.run()
	mark := c.AuditLog(t).Mark()
	for range 3 {
		b, items := w.wait(w.submit(cordon, nodes...))
		if b.Counts.Succeeded != len(nodes) {
			t.Errorf("cordon in the storm: %+v", items)
		}
		b, items = w.wait(w.submit(uncordon, nodes...))
		if b.Counts.Succeeded != len(nodes) {
			t.Errorf("uncordon in the storm: %+v", items)
		}
	}
	stop()
	storm.Wait()
	asked, done := writes(t, c, mark, nodes)
	if done != 3*2*len(nodes) {
		t.Errorf("%d writes took effect, want %d", done, 3*2*len(nodes))
	}
	t.Logf("%d storm writes; %d of our %d patches met a conflict", written, asked-done, asked)
}

func TestCluster_OtherWritersKeepWhatTheyWrote(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	w.run()
	nodes := makeNodes(t, c, 1)
	c.Label(t, nodes[0], "team", "blue")
	c.Annotate(t, nodes[0], "note", "theirs")
	c.Taint(t, nodes[0], corev1.Taint{Key: "k", Effect: corev1.TaintEffectPreferNoSchedule})
	w.wait(w.submit(cordon, nodes...))
	w.wait(w.submit(uncordon, nodes...))
	n := w.live(nodes[0])
	kept := false
	for _, taint := range n.Spec.Taints {
		kept = kept || taint.Key == "k"
	}
	if n.Labels["team"] != "blue" || n.Annotations["note"] != "theirs" || !kept {
		t.Errorf("labels %v, annotations %v, taints %v", n.Labels, n.Annotations, n.Spec.Taints)
	}
}

func TestCluster_ForbiddenIsNamed(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	nodes := makeNodes(t, c, 2)
	user := kubetest.Name(t, "reader")
	c.Grant(t, user, kubetest.Rule("", "nodes", "get"))
	w := setUp(t, c, c.User(t, user))
	w.run()
	b, items := w.wait(w.submit(cordon, nodes...))
	if b.Outcome != fleet.OutcomeFailed {
		t.Errorf("outcome %s", b.Outcome)
	}
	for _, it := range items {
		if it.Code != fleet.CodeForbidden || !strings.Contains(it.Error, "cluster "+c.Name) || !strings.Contains(it.Error, "cannot patch resource") {
			t.Errorf("item %+v", it)
		}
	}
	bad := c.REST()
	bad.BearerToken = "wrong"
	w = setUp(t, c, bad)
	w.run()
	_, items = w.wait(w.submit(cordon, nodes[0]))
	if items[0].Code != fleet.CodeUnauthorized || !strings.Contains(items[0].Error, c.Name) {
		t.Errorf("item %+v", items[0])
	}
	bad = c.REST()
	bad.Host = "https://127.0.0.1:1"
	w = setUp(t, c, bad)
	w.run()
	_, items = w.wait(w.submit(cordon, nodes[0]))
	if items[0].Code != fleet.CodeUnavailable || !strings.Contains(items[0].Error, "cluster "+c.Name+" cannot be reached") {
		t.Errorf("item %+v", items[0])
	}
}

// TestCluster_DemotionStopsTheBatch is the API server's word for it that a demoted person changes nothing more.
func TestCluster_DemotionStopsTheBatch(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	nodes := makeNodes(t, c, 30)
	mark := c.AuditLog(t).Mark()
	spec := fleet.BatchSpec{Operation: cordon, Rollout: fleet.Rollout{MaxConcurrent: 2, PauseBetween: 20 * time.Millisecond}}
	for _, n := range nodes {
		spec.Nodes = append(spec.Nodes, fleet.NodeRef{Cluster: c.Name, Name: n})
	}
	b, err := w.engine.Submit(t.Context(), ada, spec)
	if err != nil {
		t.Fatal(err)
	}
	w.run()
	for {
		got, _, err := w.engine.Batch(t.Context(), ada, b.ID)
		if err != nil {
			t.Fatal(err)
		}
		if got.Counts.Succeeded >= 3 {
			break
		}
		<-w.changed
	}
	w.mu.Lock()
	w.role = fleet.RoleViewer
	w.mu.Unlock()
	_, atDemotion := writes(t, c, mark, nodes)
	b, _ = w.wait(b.ID)
	_, after := writes(t, c, mark, nodes)
	if after > atDemotion+2 {
		t.Errorf("%d writes after the demotion, want at most one per worker", after-atDemotion)
	}
	if b.Outcome != fleet.OutcomeCancelled || b.Note == "" || b.Counts.Succeeded != after || b.Counts.Succeeded == 30 {
		t.Errorf("batch is %+v after %d writes", b, after)
	}
	es, err := w.audit.Entries(t.Context(), fleet.AuditFilter{Action: "cordon", Limit: 1000})
	denied := 0
	for _, e := range es {
		if e.Phase == "denied" {
			denied++
		}
	}
	if err != nil || denied == 0 {
		t.Errorf("%d refusals on record, %v", denied, err)
	}
}

// TestCluster_NoWriteWithoutIntent makes the record fail: the API server sees no write.
func TestCluster_NoWriteWithoutIntent(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	nodes := makeNodes(t, c, 3)
	id := w.submit(cordon, nodes...)
	exec := func(sql string) {
		t.Helper()
		if err := w.store.Tx(t.Context(), func(tx *store.Tx) error { _, err := tx.Exec(sql); return err }); err != nil {
			t.Fatal(err)
		}
	}
	exec(`CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no'); END`)
	mark := c.AuditLog(t).Mark()
	w.run()
	for {
		b, _, err := w.engine.Batch(t.Context(), ada, id)
		if err != nil {
			t.Fatal(err)
		}
		if b.State == fleet.BatchInterrupted {
			break
		}
		<-w.changed
	}
	if asked, _ := writes(t, c, mark, nodes); asked != 0 {
		t.Errorf("%d writes without an intent on record", asked)
	}
	exec(`DROP TRIGGER full`)
	b, _ := w.wait(id)
	if _, done := writes(t, c, mark, nodes); b.Outcome != fleet.OutcomeSucceeded || done != 3 {
		t.Errorf("batch is %+v after %d writes", b, done)
	}
}

// TestCluster_KilledInTheMiddle abandons an engine without any goodbye, twice, and lets another one go on.
func TestCluster_KilledInTheMiddle(t *testing.T) {
	t.Parallel()
	for _, op := range []fleet.Operation{
		cordon,
		{Action: fleet.ActionLabels, Labels: []string{"team=red"}},
		{Action: fleet.ActionTaints, Taints: []string{"gpu=a:PreferNoSchedule"}},
	} {
		t.Run(string(op.Action), func(t *testing.T) {
			t.Parallel()
			killedInTheMiddle(t, op)
		})
	}
}

func killedInTheMiddle(t *testing.T, op fleet.Operation) {
	t.Helper()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	nodes := makeNodes(t, c, 40)
	mark := c.AuditLog(t).Mark()
	id := w.submit(op, nodes...)
	for _, at := range []int{8, 20} {
		dead := &deadline{Store: w.store, after: at * 2, dead: make(chan struct{})}
		doomed := batch.New(batch.Config{
			Store: dead, Doer: w.ops, Authorizer: w.ops, Planner: w.ops, Lookup: w, Logger: slog.New(slog.DiscardHandler), Holder: "a",
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- doomed.Run(ctx) }()
		<-dead.dead
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	w.run()
	b, items := w.wait(id)
	if b.Outcome != fleet.OutcomeSucceeded || b.Counts.Succeeded != 40 {
		t.Errorf("batch is %+v", b)
	}
	twice := 0
	for _, it := range items {
		if !it.Changed {
			t.Errorf("item %+v", it)
		}
		if it.Attempt > 1 {
			twice++
		}
	}
	if twice == 0 {
		t.Error("no item was in the middle when the engines died: this proved nothing")
	}
	if _, done := writes(t, c, mark, nodes); done != 40 {
		t.Errorf("the API server saw %d writes for 40 nodes", done)
	}
}

var errDead = errors.New("the process is dead")

// deadline is a store whose process dies after a number of steps: nothing that it is asked to do happens any more.
type deadline struct {
	batch.Store
	mu    sync.Mutex
	after int
	dead  chan struct{}
}

func (d *deadline) step() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.after--; d.after == 0 {
		close(d.dead)
	}
	if d.after <= 0 {
		return errDead
	}
	return nil
}

func (d *deadline) ClaimItem(ctx context.Context, l fleet.BatchLease, seq int) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.Store.ClaimItem(ctx, l, seq)
}

func (d *deadline) FinishItem(ctx context.Context, l fleet.BatchLease, it fleet.Item) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.Store.FinishItem(ctx, l, it)
}

func (d *deadline) InterruptBatch(context.Context, fleet.BatchLease, string, time.Duration) error {
	return errDead
}

func (d *deadline) ReleaseBatch(context.Context, fleet.BatchLease) error { return errDead }

func (d *deadline) EndBatch(ctx context.Context, l fleet.BatchLease, end fleet.BatchEnd) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.Store.EndBatch(ctx, l, end)
}
