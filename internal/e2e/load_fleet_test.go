package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/kube-node-manager/kube-node-manager/internal/audit"
	"github.com/kube-node-manager/kube-node-manager/internal/auth"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// One session holds so many streams here, and one person so many sessions: less than the program allows, so that a client
// that comes back does not meet itself.
const (
	streamsPerToken = 3
	tokensPerPerson = 8
)

// loaded is the program under test with the people who look at it.
type loaded struct {
	*server
	tokens []string // enough for the streams that were asked for
	ready  time.Duration
}

// serveLoad starts the program in front of the clusters of a kubeconfig, with people enough for that many streams.
func serveLoad(tb testing.TB, streams int, kubeconfig string) *loaded {
	tb.Helper()
	listen := freePort(tb)
	s := &server{
		t: tb, url: "http://" + listen, listen: listen, dataDir: filepath.Join(tb.TempDir(), "data"),
		args: []string{"--kubeconfig", kubeconfig}, log: filepath.Join(tb.ArtifactDir(), "server.log"),
	}
	l := &loaded{server: s, tokens: people(tb, s.dataDir, streams)}
	began := time.Now()
	s.start()
	l.ready = time.Since(began)
	tb.Cleanup(s.stop)
	return l
}

// people puts persons with API tokens into a data directory that no server uses yet, so that thousands of streams need
// no password to be hashed. The tokens are made by the program's own code.
func people(tb testing.TB, dir string, streams int) (tokens []string) {
	tb.Helper()
	st, err := store.Open(tb.Context(), store.Config{Dir: dir})
	if err != nil {
		tb.Fatal(err)
	}
	defer func() {
		if err := st.Close(); err != nil {
			tb.Errorf("closing the store: %v", err)
		}
	}()
	quiet := slog.New(slog.DiscardHandler)
	svc := auth.New(auth.Config{Store: st, Audit: audit.New(st, quiet), Logger: quiet})
	for p := 0; len(tokens)*streamsPerToken < max(streams, 1); p++ {
		u := fleet.User{ID: rand.Text(), Name: fmt.Sprintf("person-%05d", p), Role: fleet.RoleOperator, CreatedAt: time.Now()}
		if err := st.AddUser(tb.Context(), fleet.Account{User: u, Password: "!"}, fleet.Entry{Action: "user.add", Phase: "event", Outcome: "succeeded", Actor: "bench"}); err != nil {
			tb.Fatal(err)
		}
		by := fleet.Caller{UserID: u.ID, Name: u.Name, Role: u.Role, Via: "session"}
		for t := range tokensPerPerson {
			secret, _, err := svc.AddToken(tb.Context(), by, fleet.Token{Name: "bench " + strconv.Itoa(t), ExpiresAt: time.Now().Add(24 * time.Hour)})
			if err != nil {
				tb.Fatal(err)
			}
			tokens = append(tokens, secret)
		}
	}
	return tokens
}

// as is a client that asks with the first token.
func (l *loaded) as(tb testing.TB) *client {
	tb.Helper()
	return &client{t: tb, base: l.url, bearer: l.tokens[0]}
}

// synced waits until all clusters are live with that many nodes in all, and returns when that was.
func (l *loaded) synced(tb testing.TB, clusters, nodes int) time.Time {
	tb.Helper()
	who := l.as(tb)
	until(tb, fmt.Sprintf("%d nodes of %d clusters", nodes, clusters), 3*time.Minute, func() bool {
		var list struct {
			Items []struct {
				State string
				Nodes int
			}
		}
		who.json(http.StatusOK, &list, "GET", "/api/v1/clusters", "")
		live, have := 0, 0
		for _, c := range list.Items {
			if c.State == string(fleet.ClusterLive) {
				live++
			}
			have += c.Nodes
		}
		return live == clusters && have == nodes
	})
	return time.Now()
}

// until looks every few milliseconds: a benchmark may poll what it does not measure.
func until(tb testing.TB, what string, patience time.Duration, ok func() bool) {
	tb.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			tb.Fatalf("waited %s for %s", patience, what)
		}
	}
}

// settle waits until the program under test has nothing to do: its CPU time stands still for a while.
func (l *loaded) settle(tb testing.TB) {
	tb.Helper()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	last := l.usage(tb).cpu
	for range 20 {
		<-tick.C
		now := l.usage(tb).cpu
		if now-last <= 20*time.Millisecond {
			return
		}
		last = now
	}
}

// control starts a control plane with that many nodes, heartbeats on.
func control(tb testing.TB, nodes int) *kubetest.Cluster {
	tb.Helper()
	return kubetest.Start(tb, kubetest.Options{Clusters: []kubetest.Spec{{Name: "bench", Nodes: nodes, Profile: "bare"}}}).Clusters[0]
}

// contexts writes a kubeconfig with n contexts. Each points at the server that target names for it.
func contexts(tb testing.TB, n int, target func(i int) (*clientcmdapi.Cluster, *clientcmdapi.AuthInfo)) string {
	tb.Helper()
	cfg := clientcmdapi.NewConfig()
	for i := range n {
		name := fmt.Sprintf("c%02d", i+1)
		cfg.Clusters[name], cfg.AuthInfos[name] = target(i)
		cfg.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	}
	path := filepath.Join(tb.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*cfg, path); err != nil {
		tb.Fatal(err)
	}
	return path
}

// sameServer is a kubeconfig with n contexts for one API server: twenty control planes do not fit on two cores.
func sameServer(tb testing.TB, c *kubetest.Cluster, n int) string {
	tb.Helper()
	r := c.REST()
	return contexts(tb, n, func(int) (*clientcmdapi.Cluster, *clientcmdapi.AuthInfo) {
		return &clientcmdapi.Cluster{Server: r.Host, CertificateAuthorityData: r.CAData}, &clientcmdapi.AuthInfo{Token: r.BearerToken}
	})
}

// noServers is a kubeconfig with n contexts of which every other one refuses and the rest never answer.
func noServers(tb testing.TB, n int) string {
	tb.Helper()
	// A listener that nobody accepts from takes connections and says nothing.
	mute, err := new(net.ListenConfig).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { mute.Close() })
	closed := freePort(tb)
	return contexts(tb, n, func(i int) (*clientcmdapi.Cluster, *clientcmdapi.AuthInfo) {
		addr := closed
		if i%2 == 1 {
			addr = mute.Addr().String()
		}
		return &clientcmdapi.Cluster{Server: "https://" + addr}, &clientcmdapi.AuthInfo{Token: "none"}
	})
}

// markPrefix begins the key of the taint by which a change is known wherever it arrives.
const markPrefix = "bench.example.com/c"

// marks numbers the changes of this process, so that none is taken for an older one.
var marks atomic.Int64

// changes are the marked writes of one measurement, and when each was sent.
type changes struct {
	base, n int64
	sent    []atomic.Int64 // unix nanoseconds; 0: not yet
}

func newChanges(n int) *changes {
	return &changes{base: marks.Add(int64(n)) - int64(n), n: int64(n), sent: make([]atomic.Int64, n)}
}

// send makes change i on a node.
func (c *changes) send(ctx context.Context, client kubernetes.Interface, node string, i int) error {
	patch := fmt.Appendf(nil, `{"spec":{"taints":[{"key":%q,"effect":%q}]}}`,
		markPrefix+strconv.FormatInt(c.base+int64(i), 10), corev1.TaintEffectPreferNoSchedule)
	c.sent[i].Store(time.Now().UnixNano())
	_, err := client.CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// latency is how long ago change i was sent; 0 if it was not.
func (c *changes) latency(i int64, now time.Time) time.Duration {
	at := c.sent[i].Load()
	if at == 0 {
		return 0
	}
	return max(1, now.Sub(time.Unix(0, at)))
}

// trickle makes all changes, rate a second, on nodes in turn.
func (c *changes) trickle(tb testing.TB, client kubernetes.Interface, nodes []string, rate float64) {
	tb.Helper()
	tick := time.NewTicker(time.Duration(float64(time.Second) / rate))
	defer tick.Stop()
	for i := range int(c.n) {
		<-tick.C
		if err := c.send(tb.Context(), client, nodes[i%len(nodes)], i); err != nil {
			tb.Fatal(err)
		}
	}
}

func nodeNames(tb testing.TB, c *kubetest.Cluster) []string {
	tb.Helper()
	list, err := c.Client().CoreV1().Nodes().List(tb.Context(), metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		tb.Fatal(err)
	}
	var names []string
	for _, n := range list.Items {
		names = append(names, n.Name)
	}
	slices.Sort(names)
	return names
}

// rawWatch notes in m when changes arrive at a plain watch of the same API server, as fast as client-go can: protobuf,
// on a connection of its own. An API server ends watches when it likes; this one resumes.
func rawWatch(tb testing.TB, c *kubetest.Cluster, m *measure) *arrivals {
	tb.Helper()
	a := m.reader()
	cfg := c.REST()
	cfg.ContentType, cfg.UserAgent = "application/vnd.kubernetes.protobuf", "raw-watch"
	conn, err := rest.HTTPClientFor(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { utilnet.CloseIdleConnectionsFor(conn.Transport) })
	client, err := kubernetes.NewForConfigAndClient(cfg, conn)
	if err != nil {
		tb.Fatal(err)
	}
	nodes := client.CoreV1().Nodes()
	now, err := nodes.List(tb.Context(), metav1.ListOptions{Limit: 1})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(tb.Context())
	w, err := watchtools.NewRetryWatcherWithContext(ctx, now.ResourceVersion, &cache.ListWatch{WatchFuncWithContext: nodes.Watch})
	if err != nil {
		cancel()
		tb.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // ends with the watch, which ends before the test does
		defer close(done)
		for e := range w.ResultChan() {
			node, ok := e.Object.(*corev1.Node)
			if !ok {
				continue // the watcher begins anew by itself
			}
			for _, t := range node.Spec.Taints {
				a.find([]byte(t.Key), time.Now())
			}
		}
	}()
	tb.Cleanup(func() { cancel(); w.Stop(); <-done })
	return a
}

// needFiles fails clearly where the system does not allow that many connections in one process.
func needFiles(tb testing.TB, n int) {
	tb.Helper()
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		tb.Logf("the limit of open files is unknown: %v", err)
		return
	}
	if lim.Cur < uint64(n)+500 {
		tb.Skipf("%d connections need a limit of %d open files for clients and server each, and it is %d: see ulimit -n", n, n+500, lim.Cur)
	}
}
