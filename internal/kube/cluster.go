package kube

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/connrotation"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// A dead host must not hold a reconnect for the kernel's two minutes.
const (
	dialTimeout = 5 * time.Second
	keepAlive   = 15 * time.Second
)

// Rates of the client for operations. They are a bound on what a mistake of ours could do, and not what shares an API
// server out: that is its own priority and fairness, and how many nodes a batch works on at a time. At 50 a second, a
// batch of 1,000 cordons, two requests each, had a third of the rate of a bare loop. Watching is not limited on this
// side: it is one request that stays open.
const (
	opsQPS   = 500
	opsBurst = 500
)

// Cluster is one cluster that can be talked to. Both clients share one transport, so that a cluster costs one
// connection; they differ in their rate limits only. Deadlines come with each call's context.
type Cluster struct {
	Name   string
	Server string // URL of the API server
	Digest string // changes with anything that the kubeconfig says of it; "" if it came from none
	Watch  kubernetes.Interface
	Ops    kubernetes.Interface
	// Fault says why no client could be made from the kubeconfig; Watch and Ops are then nil. Such a cluster is shown
	// with the reason, so that one broken context takes nothing else down.
	Fault error

	transport http.RoundTripper
	dialer    *connrotation.Dialer
	line      *line
	nodes     rest.Interface // of the watch client, contained; nil for clients that were not made here
	acts      *rest.Config   // of clients for operations; likewise
	people    *people
}

// line is what a cluster's connections have in common.
type line struct {
	agent    string // how we call ourselves
	limits   Limits
	read     atomic.Int64                                // bytes of answers to the watch client
	dials    atomic.Int64                                // connections made
	open     atomic.Int64                                // connections that are open
	frame    atomic.Int64                                // bytes of a watch since its last whole event
	patience atomic.Int64                                // what the last answer asked for, in nanoseconds
	ended    atomic.Bool                                 // none may be made any more
	gate     atomic.Pointer[func(context.Context) error] // asked before each write; nil: nothing to ask
}

// Dials counts the connections that were made so far. What was learnt of the server at one end of a connection need not
// hold at the other end of the next one.
func (c Cluster) Dials() int64 {
	if c.line == nil {
		return 0
	}
	return c.line.dials.Load()
}

// Patience is how long the last answer to the watch client asked us to wait, as its header says: client-go reads that
// from the body alone when the body is a status.
func (c Cluster) Patience() time.Duration {
	if c.line == nil {
		return 0
	}
	return time.Duration(c.line.patience.Load())
}

// Connected tells whether a connection is open: without one, the next request makes one.
func (c Cluster) Connected() bool { return c.line == nil || c.line.open.Load() > 0 }

// Gate has f asked before every write of Ops, which fails with its error.
func (c Cluster) Gate(f func(context.Context) error) {
	if c.line != nil {
		c.line.gate.Store(&f)
	}
}

// End is Close for good: no connection is made any more, whoever still holds a client.
func (c Cluster) End() {
	if c.line != nil {
		c.line.ended.Store(true)
		c.line.gate.Store(nil) // transports live on in client-go's cache for a while, with all that they lead to
	}
	c.Close()
}

// BytesRead counts what the watch client has received so far: a long list that still arrives is not a dead one.
func (c Cluster) BytesRead() int64 {
	if c.line == nil {
		return 0
	}
	return c.line.read.Load()
}

// CloseIdle drops connections that nothing is using.
func (c Cluster) CloseIdle() {
	if c.transport != nil {
		utilnet.CloseIdleConnectionsFor(c.transport)
	}
}

// Close drops every connection, with what is under way on it: for a cluster that is removed, and for one whose
// connection is known to be dead, into which the next request would otherwise go too, until HTTP/2's own health check
// gives up on it. The clients can still be used and connect anew.
func (c Cluster) Close() {
	if c.dialer != nil {
		c.dialer.CloseAll()
	}
	c.CloseIdle()
}

// Option changes how clients are made.
type Option func(*options)

type options struct {
	version string
	limits  Limits
}

// WithVersion sets the version that the user agent names.
func WithVersion(v string) Option { return func(o *options) { o.version = v } }

func collect(opts []Option) options {
	o := options{version: "unknown"}
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// Load makes every context of every kubeconfig a cluster named after the context, in order of name within each file.
// The files belong to the operator of the host: exec plugins and references to other files work as in kubectl. An
// unreadable file, a file without contexts and a name that occurs twice are errors; a context from which no client can
// be made becomes a Cluster with a Fault.
func Load(paths []string, opts ...Option) ([]Cluster, error) {
	var clusters []Cluster
	from := map[string]string{}
	for _, path := range paths {
		config, err := clientcmd.LoadFromFile(path)
		if err != nil {
			return nil, fmt.Errorf("loading kubeconfig %s: %w", path, err)
		}
		if len(config.Contexts) == 0 {
			return nil, fmt.Errorf("loading kubeconfig %s: it has no contexts: %w", path, fleet.ErrInvalid)
		}
		if err := clientcmd.ResolveLocalPaths(config); err != nil {
			return nil, fmt.Errorf("resolving the paths in kubeconfig %s: %w", path, err)
		}
		names := make([]string, 0, len(config.Contexts))
		for name := range config.Contexts {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			if other, dup := from[name]; dup {
				return nil, fmt.Errorf("context %q is in both %s and %s: rename one of them: %w",
					name, other, path, fleet.ErrConflict)
			}
			from[name] = path
			digest, err := digestOf(config, name)
			if err != nil {
				return nil, fmt.Errorf("loading kubeconfig %s: %w", path, err)
			}
			cfg, err := clientcmd.NewNonInteractiveClientConfig(*config, name, nil, nil).ClientConfig()
			if err != nil {
				clusters = append(clusters, Cluster{
					Name: name, Digest: digest,
					Fault: fmt.Errorf("context %q of kubeconfig %s: %w", name, path, err),
				})
				continue
			}
			c, err := New(name, cfg, opts...)
			if err != nil {
				c = Cluster{
					Name:   name,
					Server: cfg.Host,
					Fault:  fmt.Errorf("context %q of kubeconfig %s: %w", name, path, err),
				}
			}
			c.Digest = digest
			clusters = append(clusters, c)
		}
	}
	return clusters, nil
}

// digestOf is the same for two readings of a context if its cluster and its user say the same.
func digestOf(config *clientcmdapi.Config, context string) (string, error) {
	one := &clientcmdapi.Config{}
	c := config.Contexts[context]
	if c != nil {
		one.Contexts = map[string]*clientcmdapi.Context{context: c}
		if cluster := config.Clusters[c.Cluster]; cluster != nil {
			one.Clusters = map[string]*clientcmdapi.Cluster{c.Cluster: cluster}
		}
		if user := config.AuthInfos[c.AuthInfo]; user != nil {
			one.AuthInfos = map[string]*clientcmdapi.AuthInfo{c.AuthInfo: user}
		}
	}
	b, err := clientcmd.Write(*one)
	if err != nil {
		return "", fmt.Errorf("encoding context %q: %w", context, err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// InCluster is the cluster this process runs in, reached with the pod's service account.
func InCluster(name string, opts ...Option) (Cluster, error) {
	cfg, err := rest.InClusterConfig()
	if err != nil {
		return Cluster{}, fmt.Errorf("reading the pod's service account: %w", err)
	}
	return New(name, cfg, opts...)
}

// New makes the clients of a cluster. It connects to nothing.
func New(name string, cfg *rest.Config, opts ...Option) (Cluster, error) {
	if name == "" {
		return Cluster{}, fleet.Invalid("name", "must not be empty")
	}
	o := collect(opts)
	watch := rest.CopyConfig(cfg)
	watch.UserAgent = "kube-node-manager/" + o.version
	watch.QPS = -1
	watch.Timeout = 0 // a client-wide timeout would cut every watch
	watch.WarningHandlerWithContext = silent{}
	dial := watch.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout, KeepAlive: keepAlive}).DialContext
	}
	line := &line{agent: watch.UserAgent, limits: o.limits.complete()}
	dialer := connrotation.NewDialer(func(ctx context.Context, network, address string) (net.Conn, error) {
		if line.ended.Load() {
			return nil, fmt.Errorf("dialing: cluster %s was removed: %w", name, fleet.ErrUnavailable)
		}
		if ctx.Value(onlyOpen{}) != nil {
			return nil, errNotOpen
		}
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		line.dials.Add(1)
		line.open.Add(1)
		return &countedConn{Conn: conn, closed: sync.OnceFunc(func() { line.open.Add(-1) })}, nil
	})
	watch.Dial = dialer.DialContext
	client, err := rest.HTTPClientFor(watch)
	if err != nil {
		return Cluster{}, fmt.Errorf("making the transport of cluster %s: %w", name, err)
	}
	watching := &http.Client{Transport: &guarded{client.Transport, line, false}, CheckRedirect: noRedirect}
	w, err := kubernetes.NewForConfigAndClient(watch, watching)
	if err != nil {
		return Cluster{}, fmt.Errorf("making the watch client of cluster %s: %w", name, err)
	}
	nodes, err := nodesClient(watch, watching, line)
	if err != nil {
		return Cluster{}, fmt.Errorf("making the watch client of cluster %s: %w", name, err)
	}
	acts := acting(watch)
	p, err := kubernetes.NewForConfigAndClient(acts, &http.Client{Transport: &guarded{client.Transport, line, true}, CheckRedirect: noRedirect})
	if err != nil {
		return Cluster{}, fmt.Errorf("making the client of cluster %s: %w", name, err)
	}
	return Cluster{
		Name: name, Server: watch.Host, Watch: w, Ops: p,
		transport: client.Transport, dialer: dialer, line: line, nodes: nodes, acts: acts, people: newPeople(),
	}, nil
}

// countedConn tells when it is closed.
type countedConn struct {
	net.Conn
	closed func()
}

func (c *countedConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

// silent drops the server's deprecation warnings: they are about this program's code, and its operators read the log.
type silent struct{}

func (silent) HandleWarningHeaderWithContext(context.Context, int, string, string) {}
