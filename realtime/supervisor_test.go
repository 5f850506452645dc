package realtime

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	ktesting "k8s.io/client-go/testing"

	"github.com/kube-node-manager/kube-node-manager/internal/faultproxy"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// running is a manager on real or fake API servers.
func running(t testing.TB, mc ManagerConfig, before ...func(*Manager)) *Manager {
	t.Helper()
	mc.Logger, mc.Render = quietLog, plain{}
	m := NewManager(mc)
	for _, f := range before {
		f(m)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return m
}

func cluster(t testing.TB, name string, cfg *rest.Config) kube.Cluster {
	t.Helper()
	c, err := kube.New(name, cfg, kube.WithVersion("test"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func add(t testing.TB, m *Manager, c kube.Cluster) {
	t.Helper()
	if err := m.Add(c); err != nil {
		t.Fatal(err)
	}
}

func (m *Manager) stateOf(name string) fleet.Cluster {
	if b := m.board(name); b != nil {
		return b.state()
	}
	return fleet.Cluster{}
}

func waitState(t testing.TB, m *Manager, name string, want ...fleet.ClusterState) fleet.Cluster {
	t.Helper()
	var s fleet.Cluster
	eventually(t, fmt.Sprintf("%s to be %v", name, want), func() bool {
		s = m.stateOf(name)
		return slices.Contains(want, s.State)
	})
	return s
}

func waitNode(t testing.TB, m *Manager, ref fleet.NodeRef, what string, ok func(*fleet.Node) bool) {
	t.Helper()
	eventually(t, ref.String()+" "+what, func() bool {
		n, err := m.Node(ref)
		if err != nil {
			n = nil
		}
		return ok(n)
	})
}

func TestSupervisor_FollowsARealCluster(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	m := running(t, ManagerConfig{})
	first := k.Node(t, kubetest.NodeSpec{})
	// Other tests watch the same API server; this one's calls are told by its agent.
	agent := kubetest.Name(t, "agent")
	c, err := kube.New("real", k.REST(), kube.WithVersion(agent))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	add(t, m, c)
	s := waitState(t, m, "real", fleet.ClusterLive)
	if s.SyncedAt.IsZero() || s.Version == "" || s.Reason != "" || !s.NextRetry.IsZero() {
		t.Errorf("state when live: %+v", s)
	}
	ref := fleet.NodeRef{Cluster: "real", Name: first.Name}
	if n, err := m.Node(ref); err != nil || n.UID != string(first.UID) {
		t.Fatalf("a node from before the start: %v, %v", n, err)
	}

	mark := k.AuditLog(t).Mark()
	q, err := ParseQuery(fleet.SeesAll(), "real", nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		m.Window(q, "en")
		if _, err := m.FullNode(ref); err != nil {
			t.Fatal(err)
		}
	}
	if calls := k.AuditLog(t).Since(mark, kubetest.ByAgent("kube-node-manager/"+agent), kubetest.On("nodes")); len(calls) != 0 {
		t.Errorf("20 page views made %d calls: %+v", len(calls), calls)
	}

	k.Cordon(t, first.Name)
	waitNode(t, m, ref, "cordoned", func(n *fleet.Node) bool { return n != nil && !n.Schedulable && n.Cordon != nil && n.Cordon.With != "" })
	k.Label(t, first.Name, "seen", "yes")
	waitNode(t, m, ref, "labelled", func(n *fleet.Node) bool { return n != nil && n.Labels["seen"] == "yes" })
	k.Taint(t, first.Name, corev1.Taint{Key: "seen", Effect: corev1.TaintEffectPreferNoSchedule})
	waitNode(t, m, ref, "tainted", func(n *fleet.Node) bool {
		return n != nil && slices.ContainsFunc(n.Taints, func(t fleet.Taint) bool { return t.Key == "seen" })
	})
	second := k.Node(t, kubetest.NodeSpec{})
	other := fleet.NodeRef{Cluster: "real", Name: second.Name}
	waitNode(t, m, other, "added", func(n *fleet.Node) bool { return n != nil })
	k.DeleteNode(t, second.Name)
	waitNode(t, m, other, "deleted", func(n *fleet.Node) bool { return n == nil })

	// The answer to an own write is in the cache at once, and the watch does not take it back.
	patched, err := k.Client().CoreV1().Nodes().Patch(t.Context(), first.Name, types.MergePatchType,
		[]byte(`{"metadata":{"labels":{"own":"write"}}}`), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	m.Observe("real", patched)
	if n, err := m.Node(ref); err != nil || n.Labels["own"] != "write" {
		t.Errorf("own write not there: %v, %v", n, err)
	}

	pods, err := m.Pods(t.Context(), ref)
	if err != nil || pods.Read.IsZero() {
		t.Errorf("Pods: %+v, %v", pods, err)
	}
	if _, err := m.Pods(t.Context(), fleet.NodeRef{Cluster: "real", Name: "nope"}); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("pods of an unknown node: %v", err)
	}
}

func TestSupervisor_Refusals(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	m := running(t, ManagerConfig{})
	stranger := rest.AnonymousClientConfig(k.REST())
	stranger.BearerToken = "nonsense"
	add(t, m, cluster(t, "unauthorized", stranger))
	add(t, m, cluster(t, "forbidden", k.User(t, kubetest.Name(t, "nobody"))))
	if s := waitState(t, m, "unauthorized", fleet.ClusterUnauthorized); s.Reason == "" || time.Until(s.NextRetry) < 10*time.Second {
		t.Errorf("refused credential: %+v, want a reason and a retry that is not soon", s)
	}
	if s := waitState(t, m, "forbidden", fleet.ClusterForbidden); !strings.Contains(s.Reason, "nodes") || s.Synced() {
		t.Errorf("missing permission: %+v, want a reason that names nodes", s)
	}
}

func TestSupervisor_SurvivesTheAPIServer(t *testing.T) {
	t.Parallel()
	k := kubetest.StartOne(t)
	m := running(t, ManagerConfig{Probe: time.Second, Answer: 2 * time.Second})
	stays, goes := k.Node(t, kubetest.NodeSpec{}), k.Node(t, kubetest.NodeSpec{})
	add(t, m, cluster(t, "real", k.REST()))
	waitState(t, m, "real", fleet.ClusterLive)
	ref := fleet.NodeRef{Cluster: "real", Name: goes.Name}
	waitNode(t, m, ref, "listed", func(n *fleet.Node) bool { return n != nil })

	began := time.Now()
	k.Kill(t, "kube-apiserver")
	s := waitState(t, m, "real", fleet.ClusterStale)
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("stale after %s", d)
	}
	if s.Reason == "" || !s.Synced() || s.Nodes < 2 {
		t.Errorf("while it is down: %+v, want the reason and the nodes as they were", s)
	}
	k.StartComponent(t, "kube-apiserver")
	began = time.Now()
	waitState(t, m, "real", fleet.ClusterLive)
	t.Logf("live %s after the API server", time.Since(began))
	k.Label(t, stays.Name, "after", "restart")
	waitNode(t, m, fleet.NodeRef{Cluster: "real", Name: stays.Name}, "followed again",
		func(n *fleet.Node) bool { return n != nil && n.Labels["after"] == "restart" })

	// Deleted while we cannot see: the process sleeps, connections and all, and an old list is of no use.
	k.Pause(t, "kube-apiserver")
	began = time.Now()
	waitState(t, m, "real", fleet.ClusterStale)
	t.Logf("stale %s after the API server went silent", time.Since(began))
	k.Continue(t, "kube-apiserver")
	k.DeleteNode(t, goes.Name)
	waitState(t, m, "real", fleet.ClusterLive)
	waitNode(t, m, ref, "gone", func(n *fleet.Node) bool { return n == nil })
}

// TestSupervisor_NoGhostFromTheTimeInBetween: a node that was deleted while nobody watched goes with the next list.
func TestSupervisor_NoGhostFromTheTimeInBetween(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	p := through(t, k.REST())
	m := running(t, ManagerConfig{})
	n := k.Node(t, kubetest.NodeSpec{})
	add(t, m, cluster(t, "real", p.rest))
	waitState(t, m, "real", fleet.ClusterLive)
	p.Set(t, faultproxy.Fault{Accept: faultproxy.Refuse})
	p.Cut()
	waitState(t, m, "real", fleet.ClusterStale)
	k.DeleteNode(t, n.Name)
	p.Set(t, faultproxy.Fault{})
	waitState(t, m, "real", fleet.ClusterLive)
	waitNode(t, m, fleet.NodeRef{Cluster: "real", Name: n.Name}, "gone", func(n *fleet.Node) bool { return n == nil })
}

func TestSupervisor_DeadClusterDelaysNobody(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	m := running(t, ManagerConfig{})
	began := time.Now()
	for i := range 10 {
		add(t, m, cluster(t, fmt.Sprintf("refused%d", i), &rest.Config{Host: "https://127.0.0.1:1"}))
		add(t, m, cluster(t, fmt.Sprintf("silent%d", i), &rest.Config{Host: "https://" + silent.Addr().String()}))
	}
	add(t, m, kube.Cluster{Name: "broken", Fault: errors.New("no such file")})
	add(t, m, cluster(t, "real", k.REST()))
	if d := time.Since(began); d > time.Second {
		t.Errorf("adding clusters took %s", d)
	}
	if !m.Started() {
		eventually(t, "the start", m.Started)
	}
	waitState(t, m, "real", fleet.ClusterLive)
	t.Logf("live after %s beside 20 dead clusters", time.Since(began))
	if s := waitState(t, m, "refused0", fleet.ClusterUnreachable); !strings.Contains(s.Reason, "refused") || s.NextRetry.IsZero() {
		t.Errorf("refused: %+v, want the reason and the next attempt", s)
	}
	if s := waitState(t, m, "broken", fleet.ClusterUnreachable); s.Reason != "no such file" {
		t.Errorf("broken kubeconfig: %+v", s)
	}
	if _, err := m.Client("broken"); !errors.Is(err, fleet.ErrUnavailable) {
		t.Errorf("client of a broken cluster: %v", err)
	}
	waitState(t, m, "silent0", fleet.ClusterUnreachable)
}

// TestManager_CyclesLeaveNothingBehind adds and removes a real cluster fifty times, with a reader on it.
func TestManager_CyclesLeaveNothingBehind(t *testing.T) { // not parallel: it counts goroutines
	k := kubetest.Shared(t)
	k.Node(t, kubetest.NodeSpec{})
	m := running(t, ManagerConfig{IdleViews: 4})
	q, err := ParseQuery(fleet.SeesAll(), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	cycle := func() {
		c, err := kube.New("real", k.REST())
		if err != nil {
			t.Fatal(err)
		}
		add(t, m, c)
		waitState(t, m, "real", fleet.ClusterLive)
		if w := m.Window(q, "en"); w.Total == 0 {
			t.Error("a live cluster without nodes")
		}
		if err := m.Remove("real"); err != nil {
			t.Fatal(err)
		}
		if w := m.Window(q, "en"); w.Total != 0 || len(w.Clusters) != 0 || len(w.Facets.Versions) != 0 {
			t.Errorf("after the removal: %d nodes, %d clusters", w.Total, len(w.Clusters))
		}
	}
	measure := func() (goroutines int, heap uint64) {
		runtime.GC()
		runtime.GC()
		var ms runtime.MemStats
		runtime.ReadMemStats(&ms)
		return runtime.NumGoroutine(), ms.HeapAlloc
	}
	for range 5 {
		cycle()
	}
	before, heap := measure()
	for range 50 {
		cycle()
	}
	eventually(t, "the goroutines to end", func() bool { return runtime.NumGoroutine() <= before+2 })
	after, heapAfter := measure()
	t.Logf("goroutines %d → %d, heap %d KB → %d KB", before, after, heap>>10, heapAfter>>10)
	if heapAfter > heap+(4<<20) {
		t.Errorf("heap grew from %d to %d bytes", heap, heapAfter)
	}
}

func fakeCluster(objs ...apiruntime.Object) (kube.Cluster, *fake.Clientset) {
	client := fake.NewClientset(objs...)
	client.PrependReactor("create", "selfsubjectaccessreviews", func(ktesting.Action) (bool, apiruntime.Object, error) {
		return true, &authorizationv1.SelfSubjectAccessReview{Status: authorizationv1.SubjectAccessReviewStatus{Allowed: true}}, nil
	})
	return kube.Cluster{Name: "fake", Server: "https://fake", Watch: client, Ops: client}, client
}

// states lists what a cluster goes through.
type states struct {
	mu  sync.Mutex
	all []fleet.ClusterState
}

func (s *states) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprint(s.all)
}

func record(b *board) *states {
	s := &states{}
	notify := b.notify
	b.notify = func() {
		state := b.state().State
		s.mu.Lock()
		if len(s.all) == 0 || s.all[len(s.all)-1] != state {
			s.all = append(s.all, state)
		}
		s.mu.Unlock()
		notify()
	}
	return s
}

// TestSupervisor_SilentWatch: a watch that brings nothing, not even a bookmark, is taken for dead after 90 seconds.
func TestSupervisor_SilentWatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := NewManager(ManagerConfig{Logger: quietLog, Render: plain{}})
		c, _ := fakeCluster(spec{name: "n", rv: 1}.node())
		add(t, m, c)
		states := record(m.board("fake"))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		time.Sleep(89 * time.Second)
		synctest.Wait()
		if got := states.String(); got != "[connecting syncing live]" && got != "[syncing live]" {
			t.Errorf("states %s, want live for as long", got)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if got := states.String(); !strings.HasSuffix(got, "live stale live]") {
			t.Errorf("states %s, want stale and live again", got)
		}
		if n, err := m.Node(fleet.NodeRef{Cluster: "fake", Name: "n"}); err != nil || n == nil {
			t.Errorf("the node: %v, %v", n, err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestSupervisor_ProbeFindsADeadServer: the watch looks open, and nothing answers any more.
func TestSupervisor_ProbeFindsADeadServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := NewManager(ManagerConfig{Logger: quietLog, Render: plain{}})
		c, client := fakeCluster(spec{name: "n", rv: 1}.node())
		var dead atomic.Bool
		client.PrependReactor("get", "version", func(ktesting.Action) (bool, apiruntime.Object, error) {
			if dead.Load() {
				return true, nil, &net.OpError{Op: "dial", Err: errors.New("no route to host")}
			}
			return false, nil, nil
		})
		add(t, m, c)
		states := record(m.board("fake"))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		time.Sleep(30 * time.Second)
		dead.Store(true)
		time.Sleep(20 * time.Second)
		synctest.Wait()
		s := m.stateOf("fake")
		if s.State != fleet.ClusterStale || !strings.Contains(s.Reason, "no route to host") || s.NextRetry.IsZero() {
			t.Errorf("20 s after it died: %+v", s)
		}
		dead.Store(false)
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if s := m.stateOf("fake"); s.State != fleet.ClusterLive {
			t.Errorf("6 s after it is back: %+v (%s)", s, states)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestSupervisor_PanicIsContained: one odd object does not end the process, nor the watch for ever.
func TestSupervisor_PanicIsContained(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := NewManager(ManagerConfig{Logger: quietLog, Render: plain{}})
		c, client := fakeCluster(spec{name: "n", rv: 1}.node())
		var odd atomic.Bool
		odd.Store(true)
		client.PrependReactor("list", "nodes", func(ktesting.Action) (bool, apiruntime.Object, error) {
			if odd.Load() {
				panic("an odd object")
			}
			return false, nil, nil
		})
		add(t, m, c)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if s := m.stateOf("fake"); s.State != fleet.ClusterUnreachable || !strings.Contains(s.Reason, "internal error") {
			t.Errorf("after the panic: %+v", s)
		}
		odd.Store(false)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if s := m.stateOf("fake"); s.State != fleet.ClusterLive {
			t.Errorf("after the odd object has gone: %+v", s)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestSupervisor_Delay(t *testing.T) {
	t.Parallel()
	m := NewManager(ManagerConfig{Logger: quietLog, Render: plain{}})
	s := newSupervisor(m, kube.Cluster{Name: "x"}, testBoard(t))
	network := &net.OpError{Op: "dial", Err: errors.New("refused")}
	server := apierrors.NewInternalError(errors.New("etcd"))
	tests := []struct {
		name     string
		err      error
		failures int
		min, max time.Duration
	}{
		{"network, first", network, 0, 250 * time.Millisecond, 500 * time.Millisecond},
		{"network, fourth", network, 3, 2 * time.Second, 4 * time.Second},
		{"network, later", network, 60, 2500 * time.Millisecond, 5 * time.Second},
		{"server, later", server, 60, 15 * time.Second, 30 * time.Second},
		{"refused credential, first", apierrors.NewUnauthorized("x"), 0, 30 * time.Second, 38 * time.Second},
		{"missing permission, later", apierrors.NewForbidden(schema.GroupResource{Resource: "nodes"}, "", nil), 9, 30 * time.Second, 38 * time.Second},
		{"another cluster", &fleet.IdentityError{}, 0, 30 * time.Second, 38 * time.Second},
		{"asked to wait", apierrors.NewTooManyRequests("x", 8), 0, 8 * time.Second, 9 * time.Second},
		{"asked to wait for ever", apierrors.NewTooManyRequests("x", 3600), 0, 30 * time.Second, 34 * time.Second},
	}
	for _, tt := range tests {
		for range 50 {
			if d := s.delay(tt.err, tt.failures); d < tt.min || d > tt.max {
				t.Errorf("%s: %s, want between %s and %s", tt.name, d, tt.min, tt.max)
				break
			}
		}
	}
}

func TestManager_AddAndRun(t *testing.T) {
	t.Parallel()
	m := NewManager(ManagerConfig{Logger: quietLog, Render: plain{}})
	add(t, m, kube.Cluster{Name: "x", Fault: errNoServer})
	if err := m.Add(kube.Cluster{Name: "x"}); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("a name twice: %v", err)
	}
	if err := m.Add(kube.Cluster{}); !errors.Is(err, fleet.ErrInvalid) {
		t.Errorf("no name: %v", err)
	}
	if m.Started() {
		t.Error("started before Run")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Run(ctx); err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := m.Run(ctx); err == nil {
		t.Error("ran twice")
	}
	if err := m.Add(kube.Cluster{Name: "y"}); !errors.Is(err, fleet.ErrUnavailable) {
		t.Errorf("after the end: %v", err)
	}
	if s := m.stateOf("x"); s.State != fleet.ClusterStopped {
		t.Errorf("after the end: %+v", s)
	}
}

// TestSupervisor_FirstListsMakeRoom: only the lists of clusters wait for each other, and none for somebody else's watch
// to end.
func TestSupervisor_FirstListsMakeRoom(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	m := running(t, ManagerConfig{})
	for i := range 2 * maxFirstLists {
		add(t, m, cluster(t, fmt.Sprint("c", i), k.REST()))
	}
	for i := range 2 * maxFirstLists {
		waitState(t, m, fmt.Sprint("c", i), fleet.ClusterLive)
	}
	eventually(t, "no place to be taken", func() bool { return len(m.syncs) == 0 })
}
