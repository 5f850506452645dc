package drain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// TestDrain_Intend: every eviction is announced once, before it is sent, by the uid that it names.
func TestDrain_Intend(t *testing.T) {
	t.Parallel()
	type sent struct {
		what string
		uid  string
	}
	var (
		mu  sync.Mutex // guards log
		log []sent
	)
	note := func(what, uid string) {
		mu.Lock()
		defer mu.Unlock()
		log = append(log, sent{what, uid})
	}
	b := newBench(t, func(cfg *rest.Config) {
		cfg.Wrap(func(rt http.RoundTripper) http.RoundTripper {
			return roundTrip{rt, func(r *http.Request) (*http.Response, error) {
				if strings.HasSuffix(r.URL.Path, "/eviction") {
					note("sent", strings.Split(r.URL.Path, "/")[6])
				}
				return rt.RoundTrip(r)
			}}
		})
	})
	ns := b.c.Namespace(t)
	nodes := b.c.Nodes(t, 2, nil)
	b.c.Deployment(t, 6, kubetest.PodSpec{Namespace: ns, Name: "web"})
	b.c.PDB(t, ns, "web", "5")
	b.start(nodes[0], hasty, func(j *Job) {
		j.Intend = func(_ context.Context, p fleet.PodProgress) error {
			if p.State != fleet.PodEvicting || p.UID == "" || p.Namespace != ns {
				t.Errorf("announced %+v", p)
			}
			note("announced", p.Name)
			return nil
		}
	}).end(fleet.DrainDone, nil)
	announced := map[string]int{}
	for _, s := range log {
		if s.what == "announced" {
			announced[s.uid]++
		} else if announced[s.uid] == 0 {
			t.Errorf("%s was sent before it was announced", s.uid)
		}
	}
	for pod, n := range announced {
		if n != 1 {
			t.Errorf("%s was announced %d times", pod, n)
		}
	}
	if len(announced) == 0 || len(announced) != len(b.evictions()) {
		t.Errorf("announced %v, evicted %v", announced, b.evictions())
	}
}

// TestDrain_NotAnnounced: what cannot be announced is not done.
func TestDrain_NotAnnounced(t *testing.T) {
	t.Parallel()
	for _, kind := range []error{fleet.ErrNotRecorded, fleet.ErrLeaseLost, fleet.ErrAuthorityLost} {
		t.Run(kind.Error(), func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			ns := b.c.Namespace(t)
			node := b.c.Node(t, kubetest.NodeSpec{})
			b.c.Deployment(t, 3, kubetest.PodSpec{Namespace: ns, Name: "web"})
			d := b.start(node, func(j *Job) {
				j.Intend = func(context.Context, fleet.PodProgress) error { return fmt.Errorf("the disk is full: %w", kind) }
			})
			if res := d.end(fleet.DrainFailed, kind); res.Message == "" || res.Evicted != 0 {
				t.Errorf("result %+v", res)
			}
			if got := b.c.AuditLog(t).Writes(b.mark, "pods", kubetest.ByAgent(b.agent)); len(got) != 0 {
				t.Errorf("written: %v", got)
			}
		})
	}
}

// TestDrain_AnnouncedAgain: another error is waited out as a refusal is, and the pod is announced again.
func TestDrain_AnnouncedAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "lone", Node: node.Name})
	var calls int // one pod, one call at a time
	res := b.start(node, hasty, consenting(fleet.ConsentUnmanaged), func(j *Job) {
		j.Intend = func(context.Context, fleet.PodProgress) error {
			if calls++; calls == 1 {
				return errors.New("not now")
			}
			return nil
		}
	}).end(fleet.DrainDone, nil)
	if calls != 2 || res.Evicted != 1 || res.Pods[0].Attempt != 1 || !res.Pods[0].Evicted {
		t.Errorf("%d calls, %+v", calls, res)
	}
}

// pauseSwitch is a batch that can be paused.
type pauseSwitch struct {
	mu      sync.Mutex // guards the rest
	held    bool
	changed chan struct{}
}

func newSwitch(held bool) *pauseSwitch { return &pauseSwitch{held: held, changed: make(chan struct{})} }

func (s *pauseSwitch) Held() (bool, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held, s.changed
}

func (s *pauseSwitch) set(held bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = held
	close(s.changed)
	s.changed = make(chan struct{})
}

// TestDrain_Held: a drain that is held evicts nothing, does not run out of time, and goes on when it is released.
func TestDrain_Held(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	b.c.Deployment(t, 3, kubetest.PodSpec{Namespace: ns, Name: "web"})
	s := newSwitch(true)
	timeout := 5 * time.Second
	d := b.start(node, within(timeout), func(j *Job) { j.Held = s.Held })
	began := time.Now()
	// That nothing happens takes time to see: longer than the drain may take.
	select {
	case <-d.done:
		t.Fatalf("it ended while held: %+v, %v", d.result, d.err)
	case <-time.After(timeout + time.Second):
	}
	if w := b.c.AuditLog(t).Writes(b.mark, "pods", kubetest.ByAgent(b.agent)); len(w) != 0 {
		t.Errorf("written while held: %v", w)
	}
	if story := d.story(); strings.Contains(story, string(fleet.PodEvicting)+" #") || !strings.Contains(story, string(fleet.PodQueued)) {
		t.Errorf("pods did not stay as they were:\n%s", story)
	}
	s.set(false)
	// Loaded machines may take all of what is left.
	<-d.done
	if took := time.Since(began); d.result.State != fleet.DrainDone && took < 2*timeout {
		t.Errorf("after %s: %+v, %v", took, d.result, d.err)
	}
}

// TestDrain_HeldInTheMiddle is edge case 56: a pause while a budget says no stops the tries, and what was accepted still
// goes.
func TestDrain_HeldInTheMiddle(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	b.c.Deployment(t, 1, kubetest.PodSpec{Namespace: ns, Name: "web"})
	pdb := b.c.PDB(t, ns, "web", "1")
	free := b.held(ns, "held", node.Name)
	web := b.podOn(ns, "web", node.Name)
	s := newSwitch(false)
	d := b.start(node, hasty, consenting(fleet.ConsentUnmanaged), func(j *Job) { j.Held = s.Held })
	d.pod("held", fleet.PodTerminating)
	d.pod(web.Name, fleet.PodBlockedByPDB)
	s.set(true)
	free()
	d.pod("held", fleet.PodGone) // the drain has heard of the pause by then, and told what it did before
	tries := len(b.c.AuditLog(t).Writes(b.mark, "pods/eviction", kubetest.ByAgent(b.agent), kubetest.Named(web.Name)))
	b.relax0(ns, pdb.Name)
	b.c.WaitPDB(t, ns, pdb.Name, func(p *policyv1.PodDisruptionBudget) bool { return p != nil && p.Status.DisruptionsAllowed > 0 })
	// Its next try would be here by now twenty times over.
	select {
	case <-d.done:
		t.Fatalf("it ended while held: %+v, %v", d.result, d.err)
	case <-time.After(time.Second):
	}
	now := b.c.AuditLog(t).Writes(b.mark, "pods/eviction", kubetest.ByAgent(b.agent), kubetest.Named(web.Name))
	if len(now) > tries+1 { // one may have been on its way
		t.Errorf("%d tries while held", len(now)-tries)
	}
	s.set(false)
	d.end(fleet.DrainDone, nil)
}

// relax0 has a budget let all go.
func (b *bench) relax0(ns, pdb string) {
	b.t.Helper()
	_, err := b.c.Client().PolicyV1().PodDisruptionBudgets(ns).Patch(b.t.Context(), pdb, types.MergePatchType, []byte(`{"spec":{"minAvailable":0}}`), metav1.PatchOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
}

// TestDrain_Delete: by choice pods are deleted, past the budget that says no; every event of them says so, and each
// deletion names a uid (DR-40).
func TestDrain_Delete(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	b.c.Deployment(t, 2, kubetest.PodSpec{Namespace: ns, Name: "web"})
	b.c.PDB(t, ns, "web", "2")
	announced := map[string]bool{}
	var mu sync.Mutex // guards announced
	d := b.start(node, func(j *Job) {
		j.Options.Delete = true
		j.Intend = func(_ context.Context, p fleet.PodProgress) error {
			mu.Lock()
			defer mu.Unlock()
			announced[p.UID] = p.Deleted
			return nil
		}
	})
	res := d.end(fleet.DrainDone, nil)
	var deleted int
	for _, e := range b.c.AuditLog(t).Writes(b.mark, "pods", kubetest.ByAgent(b.agent)) {
		var found bool
		for uid := range announced {
			found = found || strings.Contains(string(e.Request), `"preconditions":{"uid":"`+uid+`"}`)
		}
		if e.Verb != "delete" || e.Code != http.StatusOK || !found {
			t.Errorf("%s %s: %d %s", e.Verb, e.Path, e.Code, e.Request)
		}
		deleted++
	}
	if deleted != 2 || res.Evicted != 2 || len(announced) != 2 {
		t.Errorf("%d deletions, announced %v, %+v", deleted, announced, res)
	}
	for _, e := range d.events {
		if p := e.Pod; p != nil && p.State != fleet.PodQueued && !p.Deleted {
			t.Errorf("an event that does not say so: %+v", p)
		}
	}
}

// TestDrain_DeleteNotPermitted: without the right to delete nothing is cordoned, whatever else is permitted.
func TestDrain_DeleteNotPermitted(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	user := kubetest.Name(t, "user")
	c.Grant(t, user, kubetest.Rule("", "nodes", "get", "list", "watch", "patch"), kubetest.Rule("", "pods", "get", "list", "watch"),
		kubetest.Rule("", "pods/eviction", "create"))
	b := newBench(t, func(cfg *rest.Config) { *cfg = *c.User(t, user) })
	node := c.Node(t, kubetest.NodeSpec{})
	if res := b.start(node, func(j *Job) { j.Options.Delete = true }).end(fleet.DrainFailed, fleet.ErrForbidden); res.Cordoned {
		t.Errorf("result %+v", res)
	}
}

// TestDrain_WaitsForReplacements is DR-53: the node is empty and not done before what it lost is ready elsewhere.
func TestDrain_WaitsForReplacements(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	d := b.c.Deployment(t, 2, kubetest.PodSpec{Namespace: ns, Name: "web"})
	b.c.StatefulSet(t, 1, kubetest.PodSpec{Namespace: ns, Name: "db"})
	run := b.start(node, func(j *Job) { j.Options.WaitReplacements = true }) // nobody else takes them
	e := run.wait("the wait for both", func(e fleet.DrainEvent) bool {
		return e.NodeState == fleet.DrainReplacing && strings.Contains(e.Message, "Deployment "+ns+"/web: 0 of 2 ready, 2 pending") &&
			strings.Contains(e.Message, "StatefulSet "+ns+"/db: 0 of 1 ready, 1 pending")
	})
	if e.Seq == 0 || len(b.podsOn(node.Name)) != 0 {
		t.Errorf("on the node are %v", b.podsOn(node.Name))
	}
	b.c.Node(t, kubetest.NodeSpec{}) // where they go
	run.end(fleet.DrainDone, nil)
	got := b.c.WaitDeployment(t, ns, d.Name, func(d *appsv1.Deployment) bool { return d != nil })
	pods := b.c.WaitPods(t, ns, "", func(pods []*corev1.Pod) bool { return len(pods) == 3 })
	for _, p := range pods {
		if !ready(p) {
			t.Errorf("%s is not ready, and the drain was over; %+v", p.Name, got.Status)
		}
	}
}

// TestDrain_ReplacementsNeverCome: then the drain is partial, and says what is missing.
func TestDrain_ReplacementsNeverCome(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	b.c.Deployment(t, 1, kubetest.PodSpec{Namespace: ns, Name: "web"})
	s := newSwitch(false)
	run := b.start(node, func(j *Job) { j.Options.WaitReplacements, j.Options.Timeout, j.Held = true, time.Minute, s.Held })
	run.wait("the wait", func(e fleet.DrainEvent) bool {
		return e.NodeState == fleet.DrainReplacing && strings.Contains(e.Message, "pending")
	})
	run.cancel()
	run.end(fleet.DrainCancelled, context.Canceled)
	b.c.Uncordon(t, node.Name)
	b.podOn(ns, "web", node.Name)
	res := b.start(node, func(j *Job) { j.Options.WaitReplacements, j.Options.Timeout = true, 10*time.Second }).end(fleet.DrainPartial, nil)
	if !strings.Contains(res.Message, "Deployment "+ns+"/web: 0 of 1 ready") || res.Evicted != 1 {
		t.Errorf("result %+v", res)
	}
}

// TestDrain_ReplacementsUnreadable: who may not read controllers is told, and does not wait for nothing.
func TestDrain_ReplacementsUnreadable(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	user := kubetest.Name(t, "user")
	c.Grant(t, user, kubetest.Rule("", "nodes", "get", "list", "watch", "patch"), kubetest.Rule("", "pods", "get", "list", "watch"),
		kubetest.Rule("", "pods/eviction", "create"), kubetest.Rule("policy", "poddisruptionbudgets", "list", "watch"))
	b := newBench(t, func(cfg *rest.Config) { *cfg = *c.User(t, user) })
	ns := c.Namespace(t)
	node := c.Node(t, kubetest.NodeSpec{})
	c.Deployment(t, 1, kubetest.PodSpec{Namespace: ns, Name: "web"})
	res := b.start(node, func(j *Job) { j.Options.WaitReplacements = true }).end(fleet.DrainPartial, nil)
	if !strings.Contains(res.Message, "could not be read") {
		t.Errorf("result %+v", res)
	}
}

// TestDrain_TrackerAgrees: what is worked out from the events is what the drain came to.
func TestDrain_TrackerAgrees(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	nodes := b.c.Nodes(t, 2, nil)
	b.c.Deployment(t, 6, kubetest.PodSpec{Namespace: ns, Name: "web"})
	b.c.DaemonSet(t, kubetest.PodSpec{Namespace: ns, Name: "agent"})
	b.c.PDB(t, ns, "web", "5")
	d := b.start(nodes[0])
	res := d.end(fleet.DrainDone, nil)
	var tr fleet.Tracker
	for _, e := range d.events {
		tr.Apply(e)
	}
	got := tr.Progress()
	if got.State != res.State || got.Evicted != res.Evicted || got.Evicted != len(b.evictions()) || len(got.Pods) != len(res.Pods) {
		t.Errorf("tracked %+v\nresult %+v", got, res)
	}
	for _, p := range got.Pods {
		if !slices.ContainsFunc(res.Pods, func(r fleet.PodProgress) bool {
			return r.UID == p.UID && r.State == p.State && r.Evicted == p.Evicted
		}) {
			t.Errorf("tracked %+v", p)
		}
	}
}

// TestDrain_TwinOnTheSameNode: between the watch and the eviction another pod gets the name, on the same node. It is
// not evicted in the place of the one that was announced, but for itself.
func TestDrain_TwinOnTheSameNode(t *testing.T) {
	t.Parallel()
	var (
		mu        sync.Mutex // guards announced
		announced = map[string]bool{}
		swap      func()
	)
	b := newBench(t, func(cfg *rest.Config) {
		cfg.Wrap(func(rt http.RoundTripper) http.RoundTripper {
			return roundTrip{rt, func(r *http.Request) (*http.Response, error) {
				switch {
				case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/pods/lone"):
					swap()
				case strings.HasSuffix(r.URL.Path, "/eviction"):
					var e policyv1.Eviction
					body, err := r.GetBody()
					if err == nil {
						err = json.NewDecoder(body).Decode(&e)
					}
					mu.Lock()
					defer mu.Unlock()
					if err != nil || !announced[string(*e.DeleteOptions.Preconditions.UID)] {
						t.Errorf("sent %+v, announced %v, %v", e.DeleteOptions, announced, err)
					}
				}
				return rt.RoundTrip(r)
			}}
		})
	})
	ns := b.c.Namespace(t)
	// Without a kubelet: that of KWOK ends pods by name, and would take the twin for the first one.
	node := b.c.Node(t, kubetest.NodeSpec{Labels: map[string]string{kubetest.OfflineLabel: "yes"}})
	first := b.c.Pod(t, kubetest.PodSpec{Namespace: ns, Name: "lone", Node: node.Name, Pending: true})
	api := b.c.Client().CoreV1().Pods(ns)
	end := func() {
		if err := api.Delete(t.Context(), "lone", metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}); err != nil {
			t.Error(err)
		}
	}
	swap = sync.OnceFunc(func() {
		end()
		twin := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "lone", Labels: first.Labels}, Spec: *first.Spec.DeepCopy()}
		if _, err := api.Create(t.Context(), twin, metav1.CreateOptions{}); err != nil {
			t.Error(err)
		}
	})
	d := b.start(node, hasty, consenting(fleet.ConsentUnmanaged), func(j *Job) {
		j.Intend = func(_ context.Context, p fleet.PodProgress) error {
			mu.Lock()
			defer mu.Unlock()
			announced[p.UID] = true
			return nil
		}
	})
	d.wait("an eviction", func(e fleet.DrainEvent) bool { return e.Pod != nil && e.Pod.Evicted })
	end()
	d.end(fleet.DrainDone, nil)
	if got := b.evictions(); len(got) != 1 || got[string(first.UID)] != "" {
		t.Errorf("evicted %v; the first one was %s\n%s", got, first.UID, d.story())
	}
}
