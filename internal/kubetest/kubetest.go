package kubetest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Cluster is one control plane.
type Cluster struct {
	// Name is the cluster's name and that of its kubeconfig context.
	Name string
	// Kubeconfig is a file with this cluster only, as administrator.
	Kubeconfig string
	// Server is the URL of the API server.
	Server string

	token     string
	ca        []byte
	caKeyFile string
	auditLog  string
	client    *kubernetes.Clientset

	mu        sync.Mutex // guards closeIdle
	closeIdle []func()

	kubectlOnce   sync.Once // fills the next two
	kubectlClient kubernetes.Interface
	kubectlErr    error

	dev    *Devcluster
	shared bool
}

func newCluster(d *Devcluster, r readyCluster) (*Cluster, error) {
	c := &Cluster{
		Name: r.Name, Kubeconfig: r.Kubeconfig, Server: r.Server,
		token: r.Token, caKeyFile: r.CAKey, auditLog: r.AuditLog, dev: d,
	}
	var err error
	if c.ca, err = os.ReadFile(r.CA); err != nil {
		return nil, err
	}
	cfg := c.REST()
	cfg.UserAgent = userAgent
	cfg.QPS = -1 // tests need not be polite
	c.client, err = c.newClient(cfg)
	return c, err
}

// userAgent is that of the helpers of this package.
const userAgent = "kubetest"

// newClient is a client whose idle connections Close closes.
func (c *Cluster) newClient(cfg *rest.Config) (*kubernetes.Clientset, error) {
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.closeIdle = append(c.closeIdle, func() { utilnet.CloseIdleConnectionsFor(client.Transport) })
	c.mu.Unlock()
	return kubernetes.NewForConfigAndClient(cfg, client)
}

func (c *Cluster) closeIdleConnections() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.closeIdle {
		f()
	}
}

// REST returns a new configuration that acts as the administrator, with
// client-go's defaults for everything else.
func (c *Cluster) REST() *rest.Config {
	return &rest.Config{
		Host:            c.Server,
		BearerToken:     c.token,
		TLSClientConfig: rest.TLSClientConfig{CAData: c.ca},
	}
}

// Client returns the package's own client: an administrator without a limit on
// its rate, seen in the audit log with the user agent "kubetest".
func (c *Cluster) Client() kubernetes.Interface { return c.client }

// AuditLog returns the log of what the API server has answered.
func (c *Cluster) AuditLog(tb testing.TB) *Audit {
	tb.Helper()
	return &Audit{t: tb, path: c.auditLog}
}

// Stop ends a component as an orderly shutdown does and returns when it is gone.
// Only private clusters can be stopped.
func (c *Cluster) Stop(tb testing.TB, component string) {
	tb.Helper()
	c.command(tb, "stop", component)
}

// Kill ends a component at once (SIGKILL).
func (c *Cluster) Kill(tb testing.TB, component string) {
	tb.Helper()
	c.command(tb, "kill", component)
}

// StartComponent starts a stopped component on its old port and returns when it
// is ready.
func (c *Cluster) StartComponent(tb testing.TB, component string) {
	tb.Helper()
	c.command(tb, "start", component)
}

// Pause freezes a component (SIGSTOP): its connections stay open and nothing
// answers.
func (c *Cluster) Pause(tb testing.TB, component string) {
	tb.Helper()
	c.command(tb, "pause", component)
}

// Continue ends a Pause.
func (c *Cluster) Continue(tb testing.TB, component string) {
	tb.Helper()
	c.command(tb, "continue", component)
}

// PIDs returns the process of each component, 0 for a stopped one.
func (c *Cluster) PIDs(tb testing.TB) map[string]int {
	tb.Helper()
	r, err := c.dev.command(command{Cmd: "status", Cluster: c.Name})
	if err != nil {
		tb.Fatalf("kubetest: %v", err)
	}
	return r.PIDs
}

// WaitServing waits until the API server says that it can serve, which is some
// time after etcd has come back.
func (c *Cluster) WaitServing(tb testing.TB) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), waitTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := c.client.Discovery().RESTClient().Get().AbsPath("/readyz").MaxRetries(0).DoRaw(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			tb.Fatalf("kubetest: waiting for the API server to serve: %v", err)
		case <-tick.C:
		}
	}
}

func (c *Cluster) command(tb testing.TB, cmd, component string) {
	tb.Helper()
	if c.shared {
		tb.Fatalf("kubetest: %s %s: other tests use the shared cluster; use kubetest.Start", cmd, component)
	}
	if _, err := c.dev.command(command{Cmd: cmd, Cluster: c.Name, Component: component}); err != nil {
		tb.Fatalf("kubetest: %v", err)
	}
}

// Start starts private clusters and closes them when the test ends.
func Start(tb testing.TB, opts Options) *Devcluster {
	tb.Helper()
	skipShort(tb)
	opts.KeepDir = opts.KeepDir || keep()
	d, err := Launch(tb.Context(), opts)
	if err != nil {
		tb.Fatalf("kubetest: %v", err)
	}
	tb.Cleanup(func() {
		if keep() {
			tb.Logf("kubetest: logs are kept in %s", d.Dir)
		}
		if err := d.Close(); err != nil {
			tb.Errorf("kubetest: closing clusters: %v", err)
		}
	})
	return d
}

// StartOne starts one private cluster without nodes.
func StartOne(tb testing.TB) *Cluster {
	tb.Helper()
	return Start(tb, Options{}).Clusters[0]
}

// shared is the cluster of this test binary.
var shared struct {
	mu  sync.Mutex // guards dev, err
	dev *Devcluster
	err error
}

// Shared returns the cluster that the tests of this binary share, starting it
// for the first of them. It has no nodes but those that tests make.
func Shared(tb testing.TB) *Cluster {
	tb.Helper()
	skipShort(tb)
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.dev == nil && shared.err == nil {
		// Not the test's context: the cluster outlives it.
		shared.dev, shared.err = Launch(context.Background(), Options{
			Clusters: []Spec{{Name: "shared"}},
			KeepDir:  keep(),
		})
		if shared.err == nil {
			shared.dev.Clusters[0].shared = true
		}
	}
	if shared.err != nil {
		tb.Fatalf("kubetest: %v", shared.err)
	}
	return shared.dev.Clusters[0]
}

// Run runs the tests and closes the shared cluster. It returns the exit code.
func Run(m *testing.M) int { return Main(m).Run() }

// Main wraps m so that the shared cluster is closed after the tests have run
// and before whoever calls Run, as goleak, looks at what is left.
func Main(m *testing.M) Runner { return Runner{m} }

// Runner runs the tests of a binary.
type Runner struct{ m *testing.M }

// Run runs the tests and closes the shared cluster. It returns the exit code.
func (r Runner) Run() int {
	code := r.m.Run()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.dev == nil {
		return code
	}
	if keep() {
		fmt.Fprintf(os.Stderr, "kubetest: logs are kept in %s\n", shared.dev.Dir)
	}
	if err := shared.dev.Close(); err != nil {
		fmt.Fprintf(os.Stderr, "kubetest: closing the shared cluster: %v\n", err)
		code = max(code, 1)
	}
	shared.dev = nil
	return code
}

// keep reports whether data and logs are to be left behind for a look.
func keep() bool { return os.Getenv("KUBETEST_KEEP") != "" }

func skipShort(tb testing.TB) {
	tb.Helper()
	if testing.Short() {
		tb.Skip("kubetest: a control plane is not short")
	}
}

// SaveEtcd copies the data of etcd and returns the copy's directory. Etcd must be stopped: see [Cluster.Stop].
func (c *Cluster) SaveEtcd(tb testing.TB) string {
	tb.Helper()
	dir := filepath.Join(tb.TempDir(), "etcd")
	if err := os.CopyFS(dir, os.DirFS(c.etcdDir())); err != nil {
		tb.Fatalf("kubetest: saving etcd: %v", err)
	}
	return dir
}

// RestoreEtcd puts the data that SaveEtcd copied in the place of what is there, as after a disaster. Etcd must be
// stopped.
func (c *Cluster) RestoreEtcd(tb testing.TB, dir string) {
	tb.Helper()
	if c.shared {
		tb.Fatal("kubetest: other tests use the shared cluster; use kubetest.Start")
	}
	err := os.RemoveAll(c.etcdDir())
	if err == nil {
		err = os.CopyFS(c.etcdDir(), os.DirFS(dir))
	}
	if err != nil {
		tb.Fatalf("kubetest: restoring etcd: %v", err)
	}
}

func (c *Cluster) etcdDir() string { return filepath.Join(c.dev.Dir, c.Name, "etcd") }
