package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/apimachinery/pkg/types"

	manifests "github.com/kube-node-manager/kube-node-manager/deploy/kubernetes"
	"github.com/kube-node-manager/kube-node-manager/handlers"
	"github.com/kube-node-manager/kube-node-manager/internal/audit"
	"github.com/kube-node-manager/kube-node-manager/internal/auth"
	"github.com/kube-node-manager/kube-node-manager/internal/batch"
	"github.com/kube-node-manager/kube-node-manager/internal/config"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
	"github.com/kube-node-manager/kube-node-manager/internal/nodeops"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
	"github.com/kube-node-manager/kube-node-manager/internal/templates"
	"github.com/kube-node-manager/kube-node-manager/realtime"
	"github.com/kube-node-manager/kube-node-manager/views"
)

const (
	batchGrace = 8 * time.Second // part of config.ShutdownTimeout
	inCluster  = "in-cluster"    // name of the cluster this process runs in
)

// Options are what New takes beside the configuration.
type Options struct {
	Version  string
	Logger   *slog.Logger
	Notice   io.Writer      // where the person who starts the program reads the address and the set-up code
	Clusters []kube.Cluster // watched beside those of the configuration

	KubeconfigEvery time.Duration // between two looks at the kubeconfigs; 0: five seconds

	WebClustersEvery time.Duration // between two looks at the clusters added through the web; 0: two seconds
}

// App is the server, wired and not yet running.
type App struct {
	cfg     config.Serve
	opts    Options
	logger  *slog.Logger
	ends    ends
	store   *store.Store
	auth    *auth.Service
	manager *realtime.Manager
	streams *realtime.Streamer
	keeper  *audit.Keeper
	engine  *batch.Engine
	files   *kubeconfigs
	web     *webClusters
	server  *http.Server
	metrics *http.Server
	http    net.Listener
	prom    net.Listener // nil without a metrics listener

	certificates *certFiles  // nil without any
	closing      atomic.Bool // not ready any more: the end has begun
}

// New opens the store and the listeners and wires everything. It starts nothing. When it fails, what it had opened is
// closed.
func New(ctx context.Context, cfg config.Serve, opts Options) (_ *App, err error) {
	a := &App{cfg: cfg, opts: opts, logger: opts.Logger}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.ends.run(context.WithoutCancel(ctx)))
		}
	}()

	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	if a.store, err = store.Open(ctx, store.Config{
		Dir: cfg.Dir, URL: cfg.URL.Reveal(), Exclusive: true, Logger: a.component("store"), Committed: committed(registry),
		ClusterUID: func(cluster string) string {
			if a.manager == nil { // nobody is watched yet
				return ""
			}
			return a.manager.ClusterUID(cluster)
		},
	}); err != nil {
		return nil, fmt.Errorf("opening the database: %w", err)
	}
	a.ends.push("closing the database", func(context.Context) error { return a.store.Close() })

	record := audit.New(a.store, a.logger)
	signer := audit.NewSigner(a.store.InstallationID())
	if cfg.AuditKeyFile != "" {
		if signer, err = audit.LoadSigner(cfg.AuditKeyFile, a.store.InstallationID()); err != nil {
			return nil, err
		}
	}
	a.keeper = audit.NewKeeper(record, audit.KeeperConfig{
		Signer: signer, Retention: cfg.AuditRetention, Logger: a.component("audit"),
		Emit: func(ctx context.Context, h fleet.AuditHead) {
			// Whoever collects the log has what the database alone cannot show: that the record was cut or rewritten.
			a.component("audit").LogAttrs(ctx, slog.LevelInfo, "head of the record", slog.Any("head", h))
		},
	})
	terms := newTerms(cfg)
	keys, err := a.sealKeys(ctx)
	if err != nil {
		return nil, err
	}
	authCfg := auth.Config{Store: a.store, Audit: record, Labels: terms.labels, Logger: a.logger, FreshSignIn: cfg.FreshSignIn}
	if keys != nil { // a nil pointer in an interface is no nil
		authCfg.Sealer = keys
	}
	if err := a.signInWays(&authCfg); err != nil {
		return nil, err
	}
	a.auth = auth.New(authCfg)
	a.manager = realtime.NewManager(realtime.ManagerConfig{
		Logger: a.logger, Metrics: registry, Render: renderer{}, Identities: a.store, Terms: terms.of, LeaseNamespace: cfg.LeaseNamespace,
		Epoch: realtime.Epoch(opts.Version), CacheBytes: cfg.CacheBytes,
	})
	a.files = newKubeconfigs(a, registry)
	if err := a.addClusters(); err != nil {
		return nil, err
	}
	a.web = newWebClusters(a, record, keys, terms.of)
	a.web.load(ctx)
	// The engine tells the streams what changed and the streams read from the engine: the hint goes through a variable
	// that is set before anything runs.
	var changed func(id string)
	shelf := templates.New(templates.Config{Store: a.store, Audit: record})
	verbs := nodeops.New(nodeops.Config{
		Clients: a.manager.Clients,
		Record:  record, Authority: a.auth, Templates: shelf, Batches: a.store, Observe: a.manager.Observe, Remembered: a.manager.Object,
		Logger:       a.component("nodeops"),
		Installation: a.store.InstallationID(), LeaseNamespace: cfg.LeaseNamespace,
		Self: types.NamespacedName{Namespace: cfg.Pod.Namespace, Name: cfg.Pod.Name},
	})
	counts := batch.NewMetrics(registry)
	a.engine = batch.New(batch.Config{
		Store: counts.Store(a.store), Doer: counts.Doer(verbs), Authorizer: verbs, Planner: verbs, Lookup: a.manager, Notify: func(id string) { changed(id) },
		Logger: a.component("batch"), Holder: a.holder(), Grace: batchGrace, FreshSignIn: cfg.FreshSignIn, Denied: record.Denied,
	})
	a.streams = realtime.NewStreamer(realtime.StreamerConfig{
		Manager: a.manager, Batches: a.engine, Render: renderer{}, Logger: a.logger, Metrics: registry,
		PerSession: cfg.Streams.PerSession, PerUser: cfg.Streams.PerPerson, PerAddr: cfg.Streams.PerAddress, Total: cfg.Streams.Total,
	})
	changed = a.streams.BatchChanged
	a.auth.OnEnd(func(e auth.End) {
		a.streams.End(func(v realtime.Viewer) bool {
			if e.Session != "" {
				return v.Session == e.Session
			}
			return v.UserID == e.UserID
		}, e.Reason)
	})

	header, err := a.trustedHeader()
	if err != nil {
		return nil, err
	}
	site, err := handlers.New(handlers.Config{
		Nodes: a.manager, Clusters: steering{a.manager, record}, Managed: a.web, Streams: a.streams, Batches: a.engine, Templates: shelf, Auth: a.auth, People: a.auth, Audit: record, Ready: a.ready,
		Logger: a.component("handlers"), Metrics: registry, External: cfg.External, Proxies: cfg.Proxies, Secure: cfg.Secure(),
		Version: opts.Version, Manifest: manifests.ServiceAccount, Header: header, FreshSignIn: cfg.FreshSignIn,
	})
	if err != nil {
		return nil, err
	}
	if err := a.listen(ctx, site, registry); err != nil {
		return nil, err
	}
	return a, nil
}

// committed measures how many calls share a transaction: the store itself knows nothing of metrics.
func committed(reg prometheus.Registerer) func(calls int) {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "knm_store_commit_calls", Help: "Calls that shared a transaction, and one wait for the disk.",
		Buckets: []float64{1, 2, 4, 8, 16, 32},
	})
	reg.MustRegister(h)
	return func(calls int) { h.Observe(float64(calls)) }
}

// holder names this process in the leases of batches. There is one server on a SQLite database, which goes on with its
// own batches at once when it is started again. On PostgreSQL there may be several, and nothing that tells which of them
// was started again: each start is somebody new, and waits until a lease has run out.
func (a *App) holder() string {
	if a.cfg.URL != "" {
		return store.NewID()
	}
	return a.store.InstallationID()
}

func (a *App) component(name string) *slog.Logger { return a.logger.With("component", name) }

// addClusters makes every context of the configured files a cluster. It connects to none.
func (a *App) addClusters() error {
	clusters, err := a.files.load()
	if err != nil {
		return fmt.Errorf("reading kubeconfigs: %w", err)
	}
	if a.cfg.InCluster {
		c, err := kube.InCluster(inCluster, kube.WithVersion(a.opts.Version))
		if err != nil {
			return fmt.Errorf("reading the service account: %w", err)
		}
		clusters = append(clusters, c)
	}
	clusters = append(clusters, a.opts.Clusters...)
	var errs []error
	for _, c := range clusters {
		if err := nameable(c.Name); err != nil {
			errs = append(errs, err)
			continue
		}
		if err := a.manager.Add(c); err != nil {
			errs = append(errs, fmt.Errorf("adding cluster %q: %w", c.Name, err))
		}
	}
	if len(clusters) == 0 {
		a.logger.Warn("no cluster is configured: name a kubeconfig with --kubeconfig, or use --in-cluster")
	}
	return errors.Join(errs...)
}

// listen opens the listeners, so that a taken port is an error of the start.
func (a *App) listen(ctx context.Context, site http.Handler, registry *prometheus.Registry) (err error) {
	secure, files, err := tlsConfig(a.cfg, a.component("tls"))
	if a.certificates = files; err != nil {
		return err
	}
	counts, err := newDoorMetrics(registry)
	if err != nil {
		return err
	}
	a.server = a.newServer(ctx, site, "http")
	if a.http, err = realtime.ListenConfig().Listen(ctx, "tcp", a.cfg.Listen); err != nil {
		return fmt.Errorf("listening on %s: %w", a.cfg.Listen, err)
	}
	a.ends.push("closing the listener", func(context.Context) error { return ignoreClosed(a.http.Close()) })
	total, perAddr := a.ceiling(openFiles())
	a.http = &door{Listener: a.http, total: total, perAddr: perAddr, proxies: a.cfg.Proxies, metrics: counts}
	if secure != nil {
		a.server.TLSConfig = secure
		a.http = tls.NewListener(a.http, secure)
	}
	if a.cfg.MetricsListen == "" {
		return nil
	}
	a.metrics = a.newServer(ctx, metricsHandler(registry), "metrics")
	a.metrics.ReadTimeout, a.metrics.WriteTimeout = 10*time.Second, 30*time.Second
	if a.prom, err = new(net.ListenConfig).Listen(ctx, "tcp", a.cfg.MetricsListen); err != nil {
		return fmt.Errorf("listening on %s for metrics: %w", a.cfg.MetricsListen, err)
	}
	a.prom = &door{Listener: a.prom, total: metricsConnections}
	a.ends.push("closing the metrics listener", func(context.Context) error { return ignoreClosed(a.prom.Close()) })
	return nil
}

func metricsHandler(registry *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	return mux
}

func ignoreClosed(err error) error {
	if closedByUs(err) {
		return nil
	}
	return err
}

// ready is the answer of /readyz. A dead cluster does not make the program unready.
func (a *App) ready(ctx context.Context) error {
	if a.closing.Load() {
		return errors.New("shutting down")
	}
	if !a.manager.Started() {
		return errors.New("the supervisors are not started yet")
	}
	return a.store.Ping(ctx)
}

// Addr is the address that is listened on; with port 0 in the configuration, the port that was given.
func (a *App) Addr() string { return a.http.Addr().String() }

// MetricsAddr is the address of /metrics, "" without one.
func (a *App) MetricsAddr() string {
	if a.prom == nil {
		return ""
	}
	return a.prom.Addr().String()
}

// URL is where browsers find the site.
func (a *App) URL() string {
	switch {
	case a.cfg.External != nil:
		return a.cfg.External.String()
	case a.cfg.TLS():
		return "https://" + a.Addr()
	}
	return "http://" + a.Addr()
}

// AddCluster watches one more cluster, while running or before.
func (a *App) AddCluster(c kube.Cluster) error { return a.manager.Add(c) }

// RemoveCluster stops watching a cluster and forgets it.
func (a *App) RemoveCluster(name string) error { return a.manager.Remove(name) }

// Run serves until ctx ends or something that must not end does. Then it ends in order, within config.ShutdownTimeout:
// not ready any more, no new connections, streams sent away, requests answered, batches stopped between two nodes,
// supervisors, sessions, database.
func (a *App) Run(ctx context.Context) error {
	g := newGroup(ctx)
	g.start(&a.ends, "sessions", a.auth.Run)
	g.start(&a.ends, "record", a.keeper.Run)
	g.start(&a.ends, "sweeping", sweeper{a.store, a.cfg.BatchRetention, a.cfg.EventRetention, a.component("sweeper")}.run)
	g.start(&a.ends, "supervisors", a.manager.Run)
	if len(a.cfg.Kubeconfigs) > 0 {
		g.start(&a.ends, "kubeconfigs", a.files.run)
	}
	g.start(&a.ends, "clusters of the web", a.web.run)
	g.start(&a.ends, "batches", a.engine.Run)
	if a.metrics != nil {
		a.serve(g, "metrics", a.metrics, a.prom)
	}
	if err := a.welcome(ctx); err != nil {
		if ctx.Err() != nil {
			err = nil // stopped before it had begun
		}
		return errors.Join(err, a.end(ctx))
	}
	a.serve(g, "http", a.server, a.http)
	a.ends.push("sending streams away", a.streams.Close)
	a.ends.push("closing the door", func(context.Context) error {
		a.closing.Store(true)
		a.server.SetKeepAlivesEnabled(false)
		return ignoreClosed(a.http.Close())
	})
	a.logger.LogAttrs(ctx, slog.LevelInfo, "serving", slog.String("addr", a.Addr()), slog.String("version", a.opts.Version), slog.Any("config", a.cfg))

	var err error
	select {
	case <-ctx.Done():
		a.logger.LogAttrs(ctx, slog.LevelInfo, "shutting down", slog.String("cause", context.Cause(ctx).Error()))
	case err = <-g.failed:
		a.logger.LogAttrs(ctx, slog.LevelError, "shutting down", slog.Any("err", err))
	}
	return errors.Join(err, a.end(ctx))
}

// end undoes everything within the bound, whatever became of ctx.
func (a *App) end(ctx context.Context) error {
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), config.ShutdownTimeout)
	defer cancel()
	return a.ends.run(bound)
}

// Close undoes New for an App that is not run.
func (a *App) Close(ctx context.Context) error { return a.end(ctx) }

// serve runs a server until its end: open requests are answered, and cut when the bound has passed.
func (a *App) serve(g *group, name string, srv *http.Server, ln net.Listener) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(ln); err != nil && !errors.Is(err, http.ErrServerClosed) && !closedByUs(err) {
			g.fail(fmt.Errorf("serving %s: %w", name, err))
		}
	}()
	a.ends.push("draining "+name, func(bound context.Context) error {
		err := srv.Shutdown(bound)
		if err != nil {
			err = errors.Join(err, srv.Close())
		}
		<-done
		return ignoreClosed(err)
	})
}

// welcome tells whoever started the program where it is, and how to make the first admin when nobody exists. The code
// goes there and not into the log, which others read.
func (a *App) welcome(ctx context.Context) error {
	code, needed, err := a.auth.EnsureSetupCode(ctx)
	if err != nil {
		return fmt.Errorf("making a set-up code: %w", err)
	}
	var b strings.Builder
	if needed {
		fmt.Fprintf(&b, "No one can sign in yet. Open %s/setup and enter this code within 30 minutes: %s\n", a.URL(), code)
	}
	if _, err := io.WriteString(a.opts.Notice, b.String()); err != nil {
		return fmt.Errorf("showing the set-up code: %w", err)
	}
	return nil
}

// steering puts on record what people do to the connections of clusters.
type steering struct {
	manager *realtime.Manager
	record  *audit.Log
}

// Retry implements handlers.Clusters.
func (x steering) Retry(ctx context.Context, by fleet.Caller, cluster string) error {
	e := audit.By(by)
	e.Action, e.Phase, e.Cluster, e.Outcome = "cluster.retry", "event", cluster, "succeeded"
	if _, err := x.record.Append(ctx, e); err != nil {
		return err
	}
	return x.manager.Retry(cluster)
}

// Accept implements handlers.Clusters.
func (x steering) Accept(ctx context.Context, by fleet.Caller, cluster, uid string) error {
	e := audit.By(by)
	e.Action, e.Phase, e.Cluster, e.Outcome, e.Detail = "cluster.accept", "event", cluster, "succeeded", "uid "+uid
	e.ClusterUID = uid
	return x.manager.Accept(ctx, cluster, uid, e)
}

// renderer makes the views' renderer speak realtime's types.
type renderer struct{ views.Renderer }

// GroupRow implements realtime.Renderer.
func (r renderer) GroupRow(g realtime.Group, lang string) []byte {
	return r.Renderer.GroupRow(views.Group(g), lang)
}

// Counts implements realtime.Renderer.
func (r renderer) Counts(c realtime.Counts, page, pages, total int, lang string) []byte {
	return r.Renderer.Counts(views.Counts(c), page, pages, total, lang)
}

var (
	_ realtime.Renderer = renderer{}
	_ handlers.Nodes    = (*realtime.Manager)(nil)
	_ handlers.Clusters = steering{}

	_ realtime.Identities = (*store.Store)(nil)

	_ handlers.Streams = (*realtime.Streamer)(nil)
	_ handlers.Batches = (*batch.Engine)(nil)

	_ handlers.Templates = (*templates.Book)(nil)
	_ templates.Store    = (*store.Store)(nil)

	_ handlers.Auth = (*auth.Service)(nil)

	_ nodeops.Authority = (*auth.Service)(nil)

	_ handlers.People = (*auth.Service)(nil)
	_ handlers.Audit  = (*audit.Log)(nil)
)
