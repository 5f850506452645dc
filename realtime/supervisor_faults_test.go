package realtime

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"weak"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/kube-node-manager/kube-node-manager/internal/faultproxy"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// The tests of this file are named after the rows of the catalogue of faults. They wait for conditions; what they say
// about times are bounds from below, which a busy machine cannot break.

// quick makes a manager that notices and comes back sooner than an operator needs it to.
var quick = ManagerConfig{
	Probe: 300 * time.Millisecond, Answer: 3 * time.Second, BackoffMin: 20 * time.Millisecond, BackoffMax: 500 * time.Millisecond,
}

// proxied is an API server behind a TCP proxy.
type proxied struct {
	*faultproxy.TCP
	rest *rest.Config
}

func through(t testing.TB, cfg *rest.Config) proxied {
	t.Helper()
	p := faultproxy.NewTCP(t, strings.TrimPrefix(cfg.Host, "https://"), 1)
	cfg = rest.CopyConfig(cfg)
	cfg.Host = "https://" + p.Addr()
	return proxied{p, cfg}
}

// picture is what a cluster's nodes look like to whoever compares two views of them.
func picture(uid string, unschedulable bool, labels map[string]string) string {
	return fmt.Sprintf("%s %t %v", uid, unschedulable, labels)
}

// sameAsList waits until the cache holds exactly what the API server lists.
func sameAsList(t testing.TB, m *Manager, name string, k *kubetest.Cluster) {
	t.Helper()
	q, err := ParseQuery(fleet.SeesAll(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	var diff string
	defer func() {
		if t.Failed() {
			t.Logf("cache and LIST (-list +cache):\n%s", diff)
		}
	}()
	eventually(t, "the cache of "+name+" to be as the list", func() bool {
		list, err := k.Client().CoreV1().Nodes().List(context.Background(), metav1.ListOptions{})
		if err != nil {
			diff = err.Error()
			return false
		}
		want, got := map[string]string{}, map[string]string{}
		for _, n := range list.Items {
			want[n.Name] = picture(string(n.UID), n.Spec.Unschedulable, n.Labels)
		}
		for _, ref := range m.Matching(q, 1<<20) {
			if n, err := m.Node(ref); err == nil {
				got[ref.Name] = picture(n.UID, !n.Schedulable, n.Labels)
			}
		}
		diff = cmp.Diff(want, got)
		return diff == ""
	})
}

func node(m *Manager, cluster, name string) bool {
	_, err := m.Node(fleet.NodeRef{Cluster: cluster, Name: name})
	return err == nil
}

// R1: twenty of twenty API servers are down at the start, half of them refusing and half silent. The process is ready
// all the same, says so of each, and needs nobody when they come.
func TestR1_AllDownAtBoot(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	refuses, silent := through(t, k.REST()), through(t, k.REST())
	refuses.Set(t, faultproxy.Fault{Accept: faultproxy.Refuse})
	silent.Set(t, faultproxy.Fault{Accept: faultproxy.Silence})
	mc := quick
	mc.Answer = time.Second
	m := running(t, mc)
	names := make([]string, 20)
	for i := range names {
		names[i] = fmt.Sprintf("c%d", i)
		cfg := refuses.rest
		if i%2 == 1 {
			cfg = silent.rest
		}
		add(t, m, cluster(t, names[i], cfg))
	}
	eventually(t, "the start", m.Started)
	for _, name := range names {
		s := waitState(t, m, name, fleet.ClusterUnreachable)
		if s.Reason == "" || s.NextRetry.IsZero() || s.Since.IsZero() || s.Synced() {
			t.Errorf("%s: %+v, want a reason, since when, and when again", name, s)
		}
	}
	refuses.Set(t, faultproxy.Fault{})
	silent.Set(t, faultproxy.Fault{})
	silent.Cut()
	for _, name := range names {
		waitState(t, m, name, fleet.ClusterLive)
	}
}

// R2 and R3: the API server goes away in four ways, what was known stays and is marked, and it comes back as it is by
// then: nothing twice, nothing missing.
func TestR2_R3_GoesAwayAndComesBack(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	for name, fault := range map[string]faultproxy.Fault{
		"refused":   {Accept: faultproxy.Refuse},
		"reset":     {Accept: faultproxy.Reset},
		"half-open": {StopDown: true},
		"paused":    faultproxy.Paused,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := through(t, k.REST())
			mc := quick
			mc.Answer = time.Second
			m := running(t, mc)
			stays, goes := k.Node(t, kubetest.NodeSpec{}), k.Node(t, kubetest.NodeSpec{})
			add(t, m, cluster(t, "real", p.rest))
			waitState(t, m, "real", fleet.ClusterLive)
			p.Set(t, fault)
			if fault.Accept != faultproxy.Forward {
				p.Cut()
			}
			s := waitState(t, m, "real", fleet.ClusterStale)
			if s.Reason == "" || s.Nodes < 2 || !node(m, "real", goes.Name) {
				t.Errorf("while it is away: %+v, want the reason and the nodes", s)
			}
			client, err := m.Client("real")
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := client.CoreV1().Nodes().Patch(ctx, stays.Name, types.MergePatchType, []byte(`{}`), metav1.PatchOptions{}); err == nil {
				t.Error("a write got through")
			}
			k.DeleteNode(t, goes.Name)
			k.Cordon(t, stays.Name)
			comes := k.Node(t, kubetest.NodeSpec{})
			p.Set(t, faultproxy.Fault{})
			waitState(t, m, "real", fleet.ClusterLive)
			sameAsList(t, m, "real", k)
			if node(m, "real", goes.Name) || !node(m, "real", comes.Name) {
				t.Error("a ghost, or somebody missing")
			}
		})
	}
}

// gaps checks that the last calls before now came no faster than one in a while.
func gaps(t *testing.T, h *faultproxy.HTTP, from, n int, least time.Duration) []faultproxy.Request {
	t.Helper()
	eventually(t, "further attempts", func() bool { return h.Count() >= from+n })
	calls := h.Log()[from : from+n]
	// The way to the proxy takes any time: one gap is left for that.
	if took := calls[n-1].At.Sub(calls[0].At); took < time.Duration(n-2)*least {
		t.Errorf("%d calls in %s, want no more than one in %s: %+v", n, took, least, calls)
	}
	return calls
}

// R4: the credential is refused. That is said, the server is asked once in a while and no more, and a new credential
// is taken without losing board or stream.
func TestR4_CredentialRefused(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	h := faultproxy.NewHTTP(t, k.REST())
	mc := quick
	mc.Logger = quietLog
	b := newBench(t, mc, StreamerConfig{})
	n := k.Node(t, kubetest.NodeSpec{})
	add(t, b.m, cluster(t, "real", h.REST()))
	waitState(t, b.m, "real", fleet.ClusterLive)
	board := b.m.board("real")
	ref := fleet.NodeRef{Cluster: "real", Name: n.Name}
	st := b.open("/nodes?json=1")
	st.until("the node", func(e got) bool { return strings.Contains(e.data, n.Name) })

	h.Rules(faultproxy.Rule{Answer: faultproxy.Status(http.StatusUnauthorized)})
	s := waitState(t, b.m, "real", fleet.ClusterUnauthorized)
	if s.Reason == "" || s.NextRetry.IsZero() || !node(b.m, "real", n.Name) {
		t.Errorf("refused: %+v", s)
	}
	for _, c := range gaps(t, h, h.Count(), 4, mc.BackoffMax) {
		if c.Path != "/version" {
			t.Errorf("asked for %s with a credential that is refused", c.Path)
		}
	}
	// Retry asks at once.
	before := h.Count()
	if err := b.m.Retry("real"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the retry", func() bool { return h.Count() > before })

	if err := b.m.Edit(t.Context(), cluster(t, "real", k.REST())); err != nil {
		t.Fatal(err)
	}
	waitState(t, b.m, "real", fleet.ClusterLive)
	after := h.Count()
	if b.m.board("real") != board {
		t.Error("another board")
	}
	k.Label(t, n.Name, "after", "edit")
	waitNode(t, b.m, ref, "labelled", func(n *fleet.Node) bool { return n != nil && n.Labels["after"] == "edit" })
	st.until("the label on the same stream", func(e got) bool { return strings.Contains(e.data, `"after":"edit"`) })
	if h.Count() != after {
		t.Error("the old connection still asks")
	}
}

// R5: the permission to watch is taken away while a watch is open, which lives on. It shows all the same, the nodes
// stay, and it comes back by itself. Nobody asks for anything but the watch meanwhile.
func TestR5_PermissionRemoved(t *testing.T) { //nolint:tparallel // the end of the subtest takes the permission away
	t.Parallel()
	k := kubetest.Shared(t)
	mc := quick
	mc.Review = 200 * time.Millisecond
	m := running(t, mc)
	user := kubetest.Name(t, "shrinking")
	n := k.Node(t, kubetest.NodeSpec{})
	h := faultproxy.NewHTTP(t, k.User(t, user))
	rule := kubetest.Rule("", "nodes", "get", "list", "watch")
	t.Run("granted", func(t *testing.T) {
		k.Grant(t, user, rule)
		add(t, m, cluster(t, "real", h.REST()))
		waitState(t, m, "real", fleet.ClusterLive)
		if s := m.stateOf("real"); s.UID != "" {
			t.Errorf("an identity without the permission to ask for it: %q", s.UID)
		}
	})
	s := waitState(t, m, "real", fleet.ClusterForbidden)
	if !strings.Contains(s.Reason, "nodes") || !node(m, "real", n.Name) || s.Nodes == 0 {
		t.Errorf("taken away: %+v, want a reason that names nodes, and the nodes", s)
	}
	// The first attempt after a review may still be on its way.
	for _, c := range gaps(t, h, h.Count()+1, 3, mc.BackoffMax) {
		if !c.Watch {
			t.Errorf("asked for %s, want one call for each attempt", c.Path)
		}
	}
	k.Grant(t, user, rule)
	waitState(t, m, "real", fleet.ClusterLive)
	sameAsList(t, m, "real", k)
}

// R6: a resource version that is too old is nobody's business but ours.
func TestR6_Gone(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	h := faultproxy.NewHTTP(t, k.REST())
	var states *states
	m := running(t, quick, func(m *Manager) {
		add(t, m, cluster(t, "real", h.REST()))
		states = record(m.board("real"))
	})
	waitState(t, m, "real", fleet.ClusterLive)
	lists := m.board("real").liveSince()
	h.Rules(faultproxy.Rule{Kind: faultproxy.Watches, Times: 1, Answer: faultproxy.Status(http.StatusGone)})
	n := k.Node(t, kubetest.NodeSpec{})
	h.EndWatches()
	eventually(t, "a new list", func() bool { return m.board("real").liveSince().After(lists) })
	waitNode(t, m, fleet.NodeRef{Cluster: "real", Name: n.Name}, "here", func(n *fleet.Node) bool { return n != nil })
	sameAsList(t, m, "real", k)
	if got := states.String(); strings.Contains(got, "stale") || strings.Contains(got, "unreachable") {
		t.Errorf("states %s, want no error shown", got)
	}
	// A server that never says anything else is not asked for ever without a pause, and not called live.
	h.Rules(faultproxy.Rule{Kind: faultproxy.Watches, Answer: faultproxy.Status(http.StatusGone)})
	h.EndWatches()
	waitState(t, m, "real", fleet.ClusterStale)
	h.Rules()
	waitState(t, m, "real", fleet.ClusterLive)
}

// R6, with the real thing: while we cannot see, etcd forgets the version that we have seen last.
func TestR6_CompactionWhilePartitioned(t *testing.T) {
	t.Parallel()
	k := kubetest.Start(t, kubetest.Options{
		Args: map[string][]string{kubetest.APIServer: {"--etcd-compaction-interval=1s"}},
	}).Clusters[0]
	p := through(t, k.REST())
	m := running(t, quick)
	n := k.Node(t, kubetest.NodeSpec{})
	goes := k.Node(t, kubetest.NodeSpec{})
	add(t, m, cluster(t, "real", p.rest))
	waitState(t, m, "real", fleet.ClusterLive)
	list, err := k.Client().CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p.Set(t, faultproxy.Fault{Accept: faultproxy.Refuse})
	p.Cut()
	waitState(t, m, "real", fleet.ClusterStale)
	k.DeleteNode(t, goes.Name)
	i := 0
	eventually(t, "etcd to forget", func() bool {
		i++
		k.Label(t, n.Name, "i", fmt.Sprint(i))
		_, err := k.Client().CoreV1().Nodes().List(t.Context(), metav1.ListOptions{
			ResourceVersion: list.ResourceVersion, ResourceVersionMatch: metav1.ResourceVersionMatchExact, Limit: 1,
		})
		return expired(err)
	})
	p.Set(t, faultproxy.Fault{})
	waitState(t, m, "real", fleet.ClusterLive)
	sameAsList(t, m, "real", k)
}

// R7: the server asks for patience. It gets it, up to a bound, and people are told.
func TestR7_Throttled(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	h := faultproxy.NewHTTP(t, k.REST())
	mc := quick
	mc.BackoffMax = 2 * time.Second
	m := running(t, mc)
	h.Rules(faultproxy.Rule{Kind: faultproxy.Watches, Answer: faultproxy.RetryAfter(http.StatusTooManyRequests, 1)})
	add(t, m, cluster(t, "real", h.REST()))
	s := waitState(t, m, "real", fleet.ClusterUnreachable)
	if !strings.HasPrefix(s.Reason, "throttled: ") || s.NextRetry.IsZero() {
		t.Errorf("throttled: %+v", s)
	}
	watches := func() (n []time.Time) {
		for _, c := range h.Log() {
			if c.Watch {
				n = append(n, c.At)
			}
		}
		return n
	}
	eventually(t, "further attempts", func() bool { return len(watches()) >= 4 })
	if at := watches(); at[3].Sub(at[0]) < 2*time.Second {
		t.Errorf("4 attempts in %s, asked for a second each", at[3].Sub(at[0]))
	}
	// An hour is too much patience: a bound is a bound.
	h.Rules(faultproxy.Rule{Kind: faultproxy.Watches, Answer: faultproxy.RetryAfter(http.StatusServiceUnavailable, 3600)})
	before := len(watches())
	eventually(t, "an attempt within the bound", func() bool { return len(watches()) >= before+2 })
	h.Rules()
	waitState(t, m, "real", fleet.ClusterLive)
}

// R8: everything is slow. It takes its time and nothing piles up; pages answer from the cache as ever. A list that
// trickles is left to arrive, and one that is stuck is not.
func TestR8_Slow(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	k.Node(t, kubetest.NodeSpec{})
	mc := quick
	mc.Silence = 3 * time.Second // a list may be without a byte for two thirds of that
	q, err := ParseQuery(fleet.SeesAll(), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("calls", func(t *testing.T) {
		t.Parallel()
		h := faultproxy.NewHTTP(t, k.REST())
		h.Rules(faultproxy.Rule{Answer: faultproxy.Slow(300 * time.Millisecond)})
		m := running(t, quick)
		add(t, m, cluster(t, "real", h.REST()))
		waitState(t, m, "real", fleet.ClusterLive)
		before := h.Count()
		eventually(t, "ten more calls", func() bool { return h.Count() >= before+10 })
		if m.Window(q, "en").Total == 0 {
			t.Error("an empty page")
		}
		if n := h.MostInFlight(); n > 3 {
			t.Errorf("%d calls at once", n)
		}
	})
	t.Run("trickling list", func(t *testing.T) {
		t.Parallel()
		h := faultproxy.NewHTTP(t, k.REST())
		h.Rules(faultproxy.Rule{Kind: faultproxy.Watches, Answer: faultproxy.Trickle(200, 50*time.Millisecond)})
		m := running(t, mc)
		add(t, m, cluster(t, "real", h.REST()))
		waitState(t, m, "real", fleet.ClusterSyncing)
		waitState(t, m, "real", fleet.ClusterLive, fleet.ClusterStale)
		if s := m.stateOf("real"); !s.Synced() {
			t.Errorf("%+v", s)
		}
	})
	t.Run("stuck list", func(t *testing.T) {
		t.Parallel()
		h := faultproxy.NewHTTP(t, k.REST())
		h.Rules(faultproxy.Rule{Kind: faultproxy.Watches, Answer: faultproxy.Silent()})
		m := running(t, mc)
		add(t, m, cluster(t, "real", h.REST()))
		if s := waitState(t, m, "real", fleet.ClusterUnreachable); s.Reason != errStuck.Error() {
			t.Errorf("stuck: %+v", s)
		}
		h.Rules()
		waitState(t, m, "real", fleet.ClusterLive)
	})
}

// R9: the server's certificate changes. Of one that is not trusted people learn whose it is, and the server behind it
// is not sent a single call, and so no token.
func TestR9_Certificate(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	h := faultproxy.NewHTTP(t, k.REST())
	m := running(t, quick)
	add(t, m, cluster(t, "real", h.REST()))
	waitState(t, m, "real", fleet.ClusterLive)
	for _, tt := range []struct {
		name  string
		kind  faultproxy.Certificate
		state fleet.ClusterState
		says  []string
	}{
		{"new CA", faultproxy.NewCA, fleet.ClusterStale, []string{"certificate not trusted: its issuer", "for CN=fault proxy", "issued by CN=somebody else's CA", "good from 20"}},
		{"expired", faultproxy.Expired, fleet.ClusterStale, []string{"certificate not trusted: its time", "issued by CN=fault proxy test CA", time.Now().AddDate(0, 0, -1).UTC().Format(time.DateOnly)}},
		{"wrong host", faultproxy.WrongHost, fleet.ClusterStale, []string{"certificate not trusted: it is not for 127.0.0.1", "elsewhere.example"}},
	} {
		h.Swap(t, tt.kind)
		before := h.Count()
		s := waitState(t, m, "real", tt.state)
		eventually(t, tt.name+" to be the reason", func() bool {
			s = m.stateOf("real")
			return !slices.ContainsFunc(tt.says, func(say string) bool { return !strings.Contains(s.Reason, say) })
		})
		if n := h.Count() - before; n != 0 {
			t.Errorf("%s: %d calls got to a server that is not trusted", tt.name, n)
		}
	}
	h.Swap(t, faultproxy.Good)
	waitState(t, m, "real", fleet.ClusterLive)
	lists := m.board("real").liveSince()
	h.Swap(t, faultproxy.Good) // another one of the same authority: nothing
	eventually(t, "a new list", func() bool { return m.board("real").liveSince().After(lists) })
	waitState(t, m, "real", fleet.ClusterLive)
}

// R9's neighbour: a server that sends us elsewhere. Nobody follows, with a token or without.
func TestR9_Redirect(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	thief := faultproxy.NewHTTP(t, k.REST())
	h := faultproxy.NewHTTP(t, k.REST())
	h.Rules(faultproxy.Rule{Answer: faultproxy.Redirect(thief.URL() + "/version?secret=x")})
	cfg := h.REST()
	cfg.TLSClientConfig = rest.TLSClientConfig{Insecure: true} // it would be let in
	m := running(t, quick)
	add(t, m, cluster(t, "real", cfg))
	s := waitState(t, m, "real", fleet.ClusterUnreachable)
	if !strings.Contains(s.Reason, "redirects to "+thief.URL()) || strings.Contains(s.Reason, "secret") {
		t.Errorf("redirected: %+v", s)
	}
	client, err := m.Client("real")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Nodes().Get(t.Context(), "x", metav1.GetOptions{}); err == nil {
		t.Error("a read got through")
	}
	if n := thief.Count(); n != 0 {
		t.Errorf("%d calls followed", n)
	}
}

// R10: fifty times added, changed and removed, with a reader: nothing is left.
func TestR10_AddEditRemoveLeavesNothing(t *testing.T) { // not parallel: it counts goroutines
	k := kubetest.Shared(t)
	k.Node(t, kubetest.NodeSpec{})
	m := running(t, ManagerConfig{IdleViews: 4})
	q, err := ParseQuery(fleet.SeesAll(), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	fresh := func() kube.Cluster {
		c, err := kube.New("real", k.REST())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	var boards []weak.Pointer[board]
	var runs []weak.Pointer[supervisor]
	note := func() {
		m.mu.RLock()
		defer m.mu.RUnlock()
		boards, runs = append(boards, weak.Make(m.boards["real"])), append(runs, weak.Make(m.runs["real"]))
	}
	cycle := func() {
		add(t, m, fresh())
		note()
		waitState(t, m, "real", fleet.ClusterLive)
		lists := m.board("real").liveSince()
		if err := m.Edit(t.Context(), fresh()); err != nil {
			t.Fatal(err)
		}
		note()
		eventually(t, "a list over the new connection", func() bool { return m.board("real").liveSince().After(lists) })
		client, err := m.Client("real")
		if err != nil {
			t.Fatal(err)
		}
		m.Window(q, "en")
		if err := m.Remove("real"); err != nil {
			t.Fatal(err)
		}
		if _, err := client.CoreV1().Nodes().Get(t.Context(), "x", metav1.GetOptions{}); !errors.Is(err, fleet.ErrUnavailable) {
			t.Errorf("a client of a removed cluster: %v", err)
		}
		if w := m.Window(q, "en"); w.Total != 0 || len(w.Clusters) != 0 {
			t.Errorf("after the removal: %d nodes, %d clusters", w.Total, len(w.Clusters))
		}
	}
	heap := func() uint64 {
		var ms runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&ms)
		return ms.HeapAlloc
	}
	for range 10 {
		cycle()
	}
	goroutines, before := runtime.NumGoroutine(), heap()
	for range 50 {
		cycle()
	}
	eventually(t, "the goroutines to end", func() bool { return runtime.NumGoroutine() <= goroutines+2 })
	after := heap()
	t.Logf("goroutines %d → %d, heap %d KB → %d KB", goroutines, runtime.NumGoroutine(), before>>10, after>>10)
	// Timers of the HTTP/2 library hold a connection that was closed for up to 90 s, some 35 KB each.
	if after > before+(6<<20) {
		t.Errorf("heap grew by %d KB in 50 cycles", (after-before)>>10)
	}
	// What is ours must be gone altogether.
	eventually(t, "the boards and supervisors to be let go", func() bool {
		runtime.GC()
		return !slices.ContainsFunc(boards, func(p weak.Pointer[board]) bool { return p.Value() != nil }) &&
			!slices.ContainsFunc(runs, func(p weak.Pointer[supervisor]) bool { return p.Value() != nil })
	})
}

// Edit while the old connection hangs, several at once, and of what is not there.
func TestR10_EditHanging(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	p := through(t, k.REST())
	p.Set(t, faultproxy.Fault{Accept: faultproxy.Silence})
	m := running(t, ManagerConfig{})
	old := cluster(t, "real", p.rest)
	add(t, m, old)
	eventually(t, "the connection that hangs", old.Connected)
	var all sync.WaitGroup
	for range 4 {
		c := cluster(t, "real", k.REST())
		all.Go(func() {
			if err := m.Edit(t.Context(), c); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	waitState(t, m, "real", fleet.ClusterLive)
	sameAsList(t, m, "real", k)
	if old.Connected() {
		t.Error("the old connection is still open")
	}
	if err := m.Edit(t.Context(), kube.Cluster{Name: "nope"}); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("editing what is not there: %v", err)
	}
	if err := m.Edit(t.Context(), kube.Cluster{Name: "real", Fault: errNoServer}); err != nil {
		t.Fatal(err)
	}
	if s := waitState(t, m, "real", fleet.ClusterUnreachable); s.Reason != errNoServer.Error() || !s.Synced() {
		t.Errorf("with a broken kubeconfig: %+v", s)
	}
	if err := m.Remove("real"); err != nil {
		t.Fatal(err)
	}

	still := NewManager(ManagerConfig{Logger: quietLog, Render: plain{}})
	add(t, still, kube.Cluster{Name: "x", Fault: errNoServer})
	if err := still.Edit(t.Context(), kube.Cluster{Name: "x", Server: "https://new", Fault: errNoServer}); err != nil {
		t.Errorf("before Run: %v", err)
	}
	if s := still.stateOf("x"); s.Server != "https://new" {
		t.Errorf("before Run: %+v", s)
	}
}

// R11: a watch that is open and silent, over HTTP/1.1 and HTTP/2, while everything else is answered.
func TestR11_SilentWatch(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	for name, opts := range map[string][]faultproxy.Option{"http1": {faultproxy.HTTP1()}, "http2": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := faultproxy.NewHTTP(t, k.REST(), opts...)
			mc := quick
			mc.Silence = 5 * time.Second
			m := running(t, mc)
			n := k.Node(t, kubetest.NodeSpec{})
			add(t, m, cluster(t, "real", h.REST()))
			waitState(t, m, "real", fleet.ClusterLive)
			h.Mute(true)
			before := h.Count()
			k.Label(t, n.Name, "unheard", "of")
			s := waitState(t, m, "real", fleet.ClusterStale)
			if h.Count() == before {
				t.Error("nobody asked")
			}
			if s.Reason != errSilent.Error() && s.Reason != errStuck.Error() {
				t.Errorf("silent: %+v", s)
			}
			h.Mute(false)
			waitState(t, m, "real", fleet.ClusterLive)
			waitNode(t, m, fleet.NodeRef{Cluster: "real", Name: n.Name}, "heard of",
				func(n *fleet.Node) bool { return n != nil && n.Labels["unheard"] == "of" })
		})
	}
}

// R12: clusters that hang, flood, lie and break off are their own trouble.
func TestR12_BadNeighbours(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	m := running(t, quick)
	const stream = "application/json;stream=watch"
	for name, answer := range map[string]faultproxy.Answer{
		"hangs":     faultproxy.Hang(),
		"endless":   faultproxy.Endless(stream),
		"portal":    faultproxy.WrongType(),
		"truncated": faultproxy.Truncated(),
		"garbage":   faultproxy.Body(stream, "\x00\xff{{{"),
		"strange":   faultproxy.Body(stream, `{"type":"ADDED","object":{"kind":"Pod","apiVersion":"v1"}}`+"\n"),
		"broken":    faultproxy.Status(http.StatusInternalServerError),
	} {
		h := faultproxy.NewHTTP(t, k.REST())
		h.Rules(faultproxy.Rule{Path: "/api/v1/nodes", Answer: answer})
		add(t, m, cluster(t, name, h.REST()))
	}
	add(t, m, cluster(t, "good", k.REST()))
	waitState(t, m, "good", fleet.ClusterLive)
	n := k.Node(t, kubetest.NodeSpec{})
	ref := fleet.NodeRef{Cluster: "good", Name: n.Name}
	for i := range 20 {
		k.Label(t, n.Name, "i", fmt.Sprint(i))
		waitNode(t, m, ref, "followed", func(n *fleet.Node) bool { return n != nil && n.Labels["i"] == fmt.Sprint(i) })
	}
	for _, name := range []string{"portal", "truncated", "garbage", "broken"} {
		if s := waitState(t, m, name, fleet.ClusterUnreachable); s.Reason == "" || s.Synced() {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if s := m.stateOf("good"); s.State != fleet.ClusterLive {
		t.Errorf("the good one: %+v", s)
	}
}

// R20, where it is about watches: cut at random, in the middle of anything, again and again.
func TestR20_CutsAtRandom(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	p := through(t, k.REST())
	m := running(t, quick)
	add(t, m, cluster(t, "real", p.rest))
	waitState(t, m, "real", fleet.ClusterLive)
	rnd := rand.New(rand.NewPCG(20, 20))
	var nodes []string
	for range 40 {
		switch n := len(nodes); {
		case n < 3 || n < 6 && rnd.IntN(2) == 0:
			nodes = append(nodes, k.Node(t, kubetest.NodeSpec{}).Name)
		case rnd.IntN(4) == 0:
			i := rnd.IntN(n)
			k.DeleteNode(t, nodes[i])
			nodes = slices.Delete(nodes, i, i+1)
		default:
			k.Label(t, nodes[rnd.IntN(n)], "r", fmt.Sprint(rnd.IntN(1000)))
		}
		if rnd.IntN(2) == 0 {
			p.Set(t, faultproxy.Fault{CutAfter: int64(1 + rnd.IntN(20000))})
		} else {
			p.Set(t, faultproxy.Fault{})
			p.Cut()
		}
	}
	p.Set(t, faultproxy.Fault{})
	p.Cut()
	waitState(t, m, "real", fleet.ClusterLive)
	sameAsList(t, m, "real", k)
}

// R30, in small: any fault after any other, from a seed, and at the end all is as it should be.
func TestR30_Chaos(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	h := faultproxy.NewHTTP(t, k.REST())
	cfg := h.REST()
	tcp := faultproxy.NewTCP(t, h.Addr(), 30)
	cfg.Host = "https://" + tcp.Addr()
	mc := quick
	mc.Answer, mc.Silence, mc.Review = time.Second, 5*time.Second, time.Second
	m := running(t, mc)
	add(t, m, cluster(t, "real", cfg))
	waitState(t, m, "real", fleet.ClusterLive)

	steps := map[string]func(rnd *rand.Rand){
		"refuse": func(*rand.Rand) { tcp.Set(t, faultproxy.Fault{Accept: faultproxy.Refuse}); tcp.Cut() },
		"reset":  func(*rand.Rand) { tcp.Set(t, faultproxy.Fault{Accept: faultproxy.Reset}); tcp.Cut() },
		"half":   func(*rand.Rand) { tcp.Set(t, faultproxy.HalfOpen) },
		"pause":  func(*rand.Rand) { tcp.Set(t, faultproxy.Paused) },
		"slow": func(*rand.Rand) {
			tcp.Set(t, faultproxy.Fault{Latency: 20 * time.Millisecond, Jitter: 50 * time.Millisecond})
		},
		"cut":  func(r *rand.Rand) { tcp.Set(t, faultproxy.Fault{CutAfter: int64(r.IntN(30000) + 1)}) },
		"mute": func(*rand.Rand) { h.Mute(true) },
		"end":  func(*rand.Rand) { h.EndWatches() },
		"gone": func(*rand.Rand) {
			h.Rules(faultproxy.Rule{Kind: faultproxy.Watches, Answer: faultproxy.Status(410)})
			h.EndWatches()
		},
		"throttle": func(*rand.Rand) { h.Rules(faultproxy.Rule{Answer: faultproxy.RetryAfter(429, 1)}) },
		"deny":     func(*rand.Rand) { h.Rules(faultproxy.Rule{Answer: faultproxy.Status(401)}) },
		"portal":   func(*rand.Rand) { h.Rules(faultproxy.Rule{Answer: faultproxy.WrongType()}); tcp.Cut() },
		"expired":  func(*rand.Rand) { h.Swap(t, faultproxy.Expired) },
		"edit": func(*rand.Rand) {
			if err := m.Edit(t.Context(), cluster(t, "real", cfg)); err != nil {
				t.Error(err)
			}
		},
		"heal": func(*rand.Rand) { heal(t, tcp, h) },
	}
	names := slices.Sorted(maps.Keys(steps))
	const seed = 30
	rnd := rand.New(rand.NewPCG(seed, seed))
	end := time.NewTimer(15 * time.Second)
	defer end.Stop()
	next := time.NewTicker(250 * time.Millisecond)
	defer next.Stop()
	mine := k.Node(t, kubetest.NodeSpec{}).Name
	var done []string
	for running := true; running; {
		select {
		case <-end.C:
			running = false
		case <-next.C:
			name := names[rnd.IntN(len(names))]
			done = append(done, name)
			steps[name](rnd)
			if len(done)%3 == 0 { // or most of the time nothing would be up to be broken
				heal(t, tcp, h)
			}
			k.Label(t, mine, "step", fmt.Sprint(len(done)))
		}
	}
	heal(t, tcp, h)
	waitState(t, m, "real", fleet.ClusterLive)
	sameAsList(t, m, "real", k)
	t.Logf("seed %d, %d steps, %d calls", seed, len(done), h.Count())
}

func heal(t *testing.T, tcp *faultproxy.TCP, h *faultproxy.HTTP) {
	t.Helper()
	h.Rules()
	h.Mute(false)
	h.Swap(t, faultproxy.Good)
	tcp.Set(t, faultproxy.Fault{})
	tcp.Cut()
}

// The cluster comes back as it was some time ago: etcd was restored from a backup. Versions go backwards, and what was
// made since has never been.
func TestRestoredEtcd(t *testing.T) {
	t.Parallel()
	k := kubetest.StartOne(t)
	m := running(t, quick)
	old := k.Node(t, kubetest.NodeSpec{})
	deleted := k.Node(t, kubetest.NodeSpec{})
	add(t, m, cluster(t, "real", k.REST()))
	waitState(t, m, "real", fleet.ClusterLive)

	cycle := func(offline func()) {
		k.Stop(t, kubetest.APIServer)
		k.Stop(t, kubetest.Etcd)
		offline()
		k.StartComponent(t, kubetest.Etcd)
		k.StartComponent(t, kubetest.APIServer)
		k.WaitServing(t)
	}
	var backup string
	cycle(func() { backup = k.SaveEtcd(t) })
	waitState(t, m, "real", fleet.ClusterLive)
	since := k.Node(t, kubetest.NodeSpec{})
	k.DeleteNode(t, deleted.Name)
	for i := range 50 { // versions that the restored server has not reached yet
		k.Label(t, old.Name, "since", fmt.Sprint(i))
	}
	sameAsList(t, m, "real", k)
	seen := m.stateOf("real").UID
	cycle(func() { k.RestoreEtcd(t, backup) })
	waitState(t, m, "real", fleet.ClusterLive)
	sameAsList(t, m, "real", k)
	if node(m, "real", since.Name) || !node(m, "real", deleted.Name) {
		t.Error("the nodes are not those of the backup")
	}
	if s := m.stateOf("real"); s.UID != seen || s.UID == "" {
		t.Errorf("the identity is %q, was %q: it is the same cluster", s.UID, seen)
	}
	k.Label(t, old.Name, "after", "restore")
	waitNode(t, m, fleet.NodeRef{Cluster: "real", Name: old.Name}, "followed", func(n *fleet.Node) bool { return n != nil && n.Labels["after"] == "restore" })
}

// T11: the address leads to another cluster. Nothing of that is shown and nothing is written to it, now and after a
// restart, until an admin has looked at it and accepted.
func TestT11_AnotherCluster(t *testing.T) {
	t.Parallel()
	const token = "good-in-both-clusters"
	d := kubetest.Start(t, kubetest.Options{
		Clusters: []kubetest.Spec{{Name: "first"}, {Name: "second"}},
		Tokens:   []kubetest.Token{{Value: token, User: "traveller", Groups: []string{"system:masters"}}},
	})
	first, second := d.Clusters[0], d.Clusters[1]
	addr := func(k *kubetest.Cluster) string { return strings.TrimPrefix(k.Server, "https://") }
	p := faultproxy.NewTCP(t, addr(first), 11)
	// The certificate would tell them apart; here it must not.
	cfg := &rest.Config{Host: "https://" + p.Addr(), BearerToken: token, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	a := first.Node(t, kubetest.NodeSpec{Name: "same-name"})
	second.Node(t, kubetest.NodeSpec{Name: "same-name"})
	only := second.Node(t, kubetest.NodeSpec{})
	ids := &inMemory{uids: map[string]string{}}
	mc := quick
	mc.Identities = ids
	m := running(t, mc)
	add(t, m, cluster(t, "real", cfg))
	add(t, m, cluster(t, "mirror", first.REST())) // the same cluster under two names is nobody's mistake
	known := waitState(t, m, "real", fleet.ClusterLive).UID
	if mirror := waitState(t, m, "mirror", fleet.ClusterLive).UID; known == "" || mirror != known {
		t.Fatalf("identities %q and %q", known, mirror)
	}
	if err := m.Accept(t.Context(), "real", known, fleet.Entry{}); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("accepting what was never refused: %v", err)
	}
	client, err := m.Client("real")
	if err != nil {
		t.Fatal(err)
	}
	mark := second.AuditLog(t).Mark()

	p.Retarget(addr(second))
	p.Cut()
	// Somebody who holds a client already, in the moment before anybody has noticed.
	eventually(t, "the write to be refused", func() bool {
		_, err := client.CoreV1().Nodes().Patch(t.Context(), "same-name", types.MergePatchType,
			[]byte(`{"metadata":{"labels":{"written":"wrongly"}}}`), metav1.PatchOptions{})
		var other *fleet.IdentityError
		return errors.As(err, &other) && errors.Is(err, fleet.ErrUnavailable)
	})
	s := waitState(t, m, "real", fleet.ClusterUnreachable)
	if s.UID != known || s.FoundUID == "" || s.FoundUID == known || !strings.Contains(s.Reason, known[:8]) || !strings.Contains(s.Reason, s.FoundUID[:8]) {
		t.Errorf("at the wrong cluster: %+v", s)
	}
	if _, err := m.Client("real"); !errors.Is(err, fleet.ErrUnavailable) {
		t.Errorf("a client for the wrong cluster: %v", err)
	}
	if node(m, "real", only.Name) || !node(m, "real", a.Name) {
		t.Error("nodes of the wrong cluster, or none")
	}
	if err := m.Retry("real"); err != nil {
		t.Fatal(err)
	}
	if waitState(t, m, "mirror", fleet.ClusterLive).FoundUID != "" {
		t.Error("the other name of the right one is refused")
	}

	// After a restart.
	again := running(t, mc)
	add(t, again, cluster(t, "real", cfg))
	if s := waitState(t, again, "real", fleet.ClusterUnreachable); s.FoundUID == "" || s.Nodes != 0 || s.Synced() {
		t.Errorf("after a restart: %+v", s)
	}
	for _, call := range second.AuditLog(t).Since(mark, kubetest.ByUser("traveller"), kubetest.On("nodes")) {
		t.Errorf("the wrong cluster was asked for nodes: %s %s, %d", call.Verb, call.Name, call.Code)
	}

	if err := m.Accept(t.Context(), "real", "neither", fleet.Entry{}); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("accepting another uid than the one that was found: %v", err)
	}
	if err := m.Accept(t.Context(), "nope", s.FoundUID, fleet.Entry{}); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("accepting for a cluster that is not there: %v", err)
	}
	if err := m.Accept(t.Context(), "real", s.FoundUID, fleet.Entry{}); err != nil {
		t.Fatal(err)
	}
	if s := waitState(t, m, "real", fleet.ClusterLive); s.FoundUID != "" || s.UID == known {
		t.Errorf("accepted: %+v", s)
	}
	sameAsList(t, m, "real", second)
	if _, err := m.Client("real"); err != nil {
		t.Errorf("accepted: %v", err)
	}
	if n, err := m.Node(fleet.NodeRef{Cluster: "real", Name: a.Name}); err != nil || n.UID == string(a.UID) || n.Labels["written"] != "" {
		t.Errorf("its node: %+v, %v", n, err)
	}
}
