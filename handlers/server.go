package handlers

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/klauspost/compress/gzhttp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/static"
)

// Limits of requests and answers.
const (
	bodyLimit      = 64 << 10         // of a request, unless its route says otherwise
	batchBodyLimit = 2 << 20          // a batch of 5,000 nodes with names of the greatest length
	readTimeout    = 30 * time.Second // for a whole request body
	writeTimeout   = 30 * time.Second // for a whole answer that is not a stream
	podsTimeout    = 10 * time.Second // for the one read that goes to an API server
	readyTimeout   = 3 * time.Second
)

// handler answers a request or says why it cannot. An error is returned only while nothing has been written.
type handler func(http.ResponseWriter, *http.Request) error

// route is one line of the table of routes.
type route struct {
	method, path string
	perm         fleet.Permission   // what the caller must hold; every route names one
	or           []fleet.Permission // any of which does as well
	kind         kind
	serve        handler
	body         int64 // limit of the request body; 0 for bodyLimit
}

// kind is how a route treats errors, time and bytes.
type kind int

const (
	page   kind = iota // HTML for people: sends the signed-out to sign in
	api                // JSON for programs
	stream             // may answer with a stream: no deadline for the answer, no compression
	probe              // plain text, neither compressed nor worth a line in the log
)

// server holds what every handler needs.
type server struct {
	cfg      Config
	mux      *chi.Mux
	pages    map[string]bool // patterns of GET pages: where a person may be sent after signing in
	origin   string          // of the external URL; "" to take it from the request
	compress func(http.Handler) http.HandlerFunc
	cross    *http.CrossOriginProtection
	proxy    *proxyHeaders // that say who somebody is; nil for none
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	exports  chan struct{} // one for each export of the record that is under way
}

// New builds the handler of the whole site. It refuses a missing dependency and a route without a known permission.
func New(cfg Config) (http.Handler, error) {
	s, err := newServer(cfg)
	if err != nil {
		return nil, err
	}
	if err := s.register(s.routes()); err != nil {
		return nil, err
	}
	return s.mux, nil
}

func newServer(cfg Config) (*server, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Templates == nil {
		cfg.Templates = noTemplates{}
	}
	s := &server{cfg: cfg, mux: chi.NewMux(), pages: map[string]bool{}, cross: http.NewCrossOriginProtection(), exports: make(chan struct{}, maxExports)}
	if cfg.External != nil {
		s.origin = cfg.External.Scheme + "://" + cfg.External.Host
		if err := s.cross.AddTrustedOrigin(s.origin); err != nil {
			return nil, fmt.Errorf("handlers: external URL: %w", err)
		}
	}
	var err error
	if cfg.Header != nil {
		if s.proxy, err = newProxyHeaders(*cfg.Header); err != nil {
			return nil, err
		}
	}
	s.compress, err = gzhttp.NewWrapper(gzhttp.ContentTypes([]string{
		"text/html", "text/css", "text/javascript", "image/svg+xml", "application/json", "application/problem+json",
		"application/x-ndjson",
	}))
	if err != nil {
		return nil, fmt.Errorf("handlers: compression: %w", err)
	}
	if err := s.registerMetrics(cfg.Metrics); err != nil {
		return nil, err
	}
	clientIP := middleware.ClientIPFromRemoteAddr
	if len(cfg.Proxies) > 0 {
		prefixes := make([]string, len(cfg.Proxies))
		for i, p := range cfg.Proxies {
			prefixes[i] = p.String()
		}
		clientIP = middleware.ClientIPFromXFF(prefixes...)
	}
	s.mux.Use(escapedPath, clientIP, s.begin, s.record, s.headers, s.recovered)
	s.mux.NotFound(s.handle(route{kind: page}, func(http.ResponseWriter, *http.Request) error {
		return say(fleet.ErrNotFound, "error.page_unknown", "there is no such page")
	}))
	s.mux.MethodNotAllowed(s.methodNotAllowed)
	return s, nil
}

// routes is the whole site.
func (s *server) routes() []route {
	const (
		get, post, put, patch, del = http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete
		oneCluster                 = "/clusters/{cluster}"
		oneNode                    = "/clusters/{cluster}/nodes/{node}"
		v1                         = "/api/v1"
	)
	return []route{
		{method: get, path: "/healthz", perm: fleet.PermPublic, kind: probe, serve: s.healthz},
		{method: get, path: "/readyz", perm: fleet.PermPublic, kind: probe, serve: s.readyz},
		{method: get, path: "/login", perm: fleet.PermPublic, kind: page, serve: s.loginPage},
		{method: post, path: "/login", perm: fleet.PermPublic, kind: page, serve: s.signIn},
		{method: get, path: signedInPage, perm: fleet.PermSelf, kind: page, serve: s.signedInDone},
		{method: get, path: "/login/code", perm: fleet.PermPublic, kind: page, serve: s.codePage},
		{method: post, path: "/login/code", perm: fleet.PermPublic, kind: page, serve: s.secondStep},
		{method: get, path: "/login/oidc", perm: fleet.PermPublic, kind: page, serve: s.beginOIDC},
		{method: get, path: oidcCallback, perm: fleet.PermPublic, kind: page, serve: s.finishOIDC},
		{method: get, path: "/invite", perm: fleet.PermPublic, kind: page, serve: s.invitePage},
		{method: post, path: "/invite", perm: fleet.PermPublic, kind: page, serve: s.acceptInvitation},
		{method: get, path: "/setup", perm: fleet.PermPublic, kind: page, serve: s.setupPage},
		{method: post, path: "/setup", perm: fleet.PermPublic, kind: page, serve: s.setup},
		{method: post, path: "/logout", perm: fleet.PermSelf, kind: page, serve: s.signOut},

		// The two pages on which everybody arrives are for whoever is signed in: they show what the person sees, and to who
		// sees nothing, whom to ask.
		{method: get, path: "/", perm: fleet.PermSelf, kind: page, serve: s.home},
		{method: get, path: "/nodes", perm: fleet.PermSelf, kind: page, serve: s.nodesPage},
		{method: get, path: "/nodes/stream", perm: fleet.PermNodesView, kind: stream, serve: s.nodesStream},
		{method: get, path: "/clusters", perm: fleet.PermSelf, kind: page, serve: s.clustersPage},
		{method: get, path: "/clusters/stream", perm: fleet.PermNodesView, kind: stream, serve: s.clustersStream},
		{method: get, path: oneCluster + "/nodes", perm: fleet.PermNodesView, kind: page, serve: s.nodesPage},
		{method: post, path: oneCluster + "/retry", perm: fleet.PermClusterRetry, kind: api, serve: s.retryCluster},
		{method: post, path: oneCluster + "/accept", perm: fleet.PermClusterAdmin, kind: api, serve: s.acceptCluster},
		{method: get, path: oneCluster + "/stream", perm: fleet.PermNodesView, kind: stream, serve: s.nodesStream},
		{method: get, path: oneNode, perm: fleet.PermNodesView, kind: page, serve: s.nodePage},
		{method: get, path: oneNode + "/pods", perm: fleet.PermNodesView, kind: page, serve: s.podsFragment},
		{method: get, path: oneNode + "/stream", perm: fleet.PermNodesView, kind: stream, serve: s.nodeStream},
		{method: get, path: "/batches", perm: fleet.PermBatchView, kind: page, serve: s.batchesPage},
		{method: get, path: "/batches/{id}", perm: fleet.PermBatchView, kind: page, serve: s.batchPage},
		{method: get, path: "/batches/{id}/events", perm: fleet.PermBatchView, kind: stream, serve: s.batchStream},
		{method: get, path: "/batches/{id}/plan", perm: fleet.PermBatchView, kind: page, serve: s.batchPlanPage},
		{method: get, path: "/batches/{id}/items/{seq}/pods", perm: fleet.PermBatchView, kind: page, serve: s.itemPods},
		{method: post, path: "/batches/{id}/skip", perm: fleet.PermNodeCordon, or: acting, kind: page, serve: s.skipByForm}, // for forms
		{method: get, path: "/plan", perm: fleet.PermNodeCordon, or: acting, kind: page, serve: s.planPage},
		{method: post, path: "/plan", perm: fleet.PermNodeCordon, or: acting, kind: page, serve: s.planPage, body: batchBodyLimit},
		{method: get, path: "/templates", perm: fleet.PermBatchView, kind: page, serve: s.templatesPage},
		{method: get, path: "/account", perm: fleet.PermSelf, kind: page, serve: s.accountPage},
		{method: get, path: "/users", perm: fleet.PermUsersAdmin, kind: page, serve: s.usersPage},
		{method: get, path: "/audit", perm: fleet.PermAuditView, kind: page, serve: s.auditPage},

		{method: get, path: v1 + "/clusters", perm: fleet.PermNodesView, kind: api, serve: s.listClusters},
		{method: post, path: v1 + "/clusters", perm: fleet.PermClusterAdmin, kind: api, serve: s.addCluster, body: clusterBodyLimit},
		{method: post, path: v1 + "/clusters/test", perm: fleet.PermClusterAdmin, kind: api, serve: s.testCluster, body: clusterBodyLimit},
		{method: get, path: v1 + "/clusters/managed", perm: fleet.PermClusterAdmin, kind: api, serve: s.listManaged},
		{method: get, path: v1 + "/clusters/manifest", perm: fleet.PermClusterAdmin, kind: api, serve: s.manifest},
		{method: http.MethodPut, path: v1 + oneCluster, perm: fleet.PermClusterAdmin, kind: api, serve: s.replaceCluster, body: clusterBodyLimit},
		{method: post, path: v1 + oneCluster + "/replace", perm: fleet.PermClusterAdmin, kind: api, serve: s.replaceCluster, body: clusterBodyLimit}, // for forms
		{method: del, path: v1 + oneCluster, perm: fleet.PermClusterAdmin, kind: api, serve: s.removeCluster},
		{method: post, path: v1 + oneCluster + "/delete", perm: fleet.PermClusterAdmin, kind: api, serve: s.removeCluster}, // for forms
		{method: get, path: v1 + "/nodes", perm: fleet.PermNodesView, kind: api, serve: s.listNodes},
		{method: get, path: v1 + "/nodes/events", perm: fleet.PermNodesView, kind: stream, serve: s.nodeEvents},
		{method: get, path: v1 + "/nodes/refs", perm: fleet.PermNodesView, kind: api, serve: s.listRefs},
		{method: get, path: v1 + "/nodes/{cluster}/{node}", perm: fleet.PermNodesView, kind: api, serve: s.getNode},
		{method: get, path: v1 + "/batches", perm: fleet.PermBatchView, kind: api, serve: s.listBatches},
		// Whoever may act at all may ask; what the action needs is decided where batches are made.
		{method: post, path: v1 + "/batches", perm: fleet.PermNodeCordon, or: acting, kind: stream, serve: s.createBatch, body: batchBodyLimit},
		{method: get, path: v1 + "/batches/{id}", perm: fleet.PermBatchView, kind: api, serve: s.getBatch},
		{method: get, path: v1 + "/batches/{id}/events", perm: fleet.PermBatchView, kind: stream, serve: s.batchStream},
		{method: get, path: v1 + "/batches/{id}/plan", perm: fleet.PermBatchView, kind: api, serve: s.getPlan},
		{method: get, path: v1 + "/batches/{id}/log", perm: fleet.PermBatchView, kind: api, serve: s.batchLog},
		{method: get, path: v1 + "/batches/{id}/report", perm: fleet.PermBatchView, kind: api, serve: s.batchReport},
		// Steering is for whoever may act; whether it may steer this batch is decided where batches are kept.
		{method: post, path: v1 + "/batches/{id}/cancel", perm: fleet.PermNodeCordon, or: acting, kind: api, serve: s.cancelBatch()},
		{method: post, path: v1 + "/batches/{id}/pause", perm: fleet.PermNodeCordon, or: acting, kind: api, serve: s.pauseBatch()},
		{method: post, path: v1 + "/batches/{id}/resume", perm: fleet.PermNodeCordon, or: acting, kind: api, serve: s.resumeBatch()},
		{method: post, path: v1 + "/batches/{id}/retry", perm: fleet.PermNodeCordon, or: acting, kind: stream, serve: s.retryBatch},
		{method: post, path: v1 + "/batches/{id}/items/{seq}/skip", perm: fleet.PermNodeCordon, or: acting, kind: api, serve: s.skipItem},
		{method: post, path: v1 + "/plans", perm: fleet.PermNodeCordon, or: acting, kind: api, serve: s.createPlan, body: batchBodyLimit},
		{method: get, path: v1 + "/templates", perm: fleet.PermBatchView, kind: api, serve: s.listTemplates},
		{method: post, path: v1 + "/templates", perm: fleet.PermTemplates, kind: api, serve: s.saveTemplate},
		{method: get, path: v1 + "/templates/{id}", perm: fleet.PermBatchView, kind: api, serve: s.getTemplate},
		{method: put, path: v1 + "/templates/{id}", perm: fleet.PermTemplates, kind: api, serve: s.saveTemplate},
		{method: post, path: v1 + "/templates/{id}", perm: fleet.PermTemplates, kind: api, serve: s.saveTemplate}, // for forms
		{method: del, path: v1 + "/templates/{id}", perm: fleet.PermTemplates, kind: api, serve: s.deleteTemplate},
		{method: post, path: v1 + "/templates/{id}/delete", perm: fleet.PermTemplates, kind: api, serve: s.deleteTemplate}, // for forms
		{method: get, path: v1 + "/users", perm: fleet.PermUsersAdmin, kind: api, serve: s.listUsers},
		{method: post, path: v1 + "/users", perm: fleet.PermUsersAdmin, kind: api, serve: s.addUser},
		{method: patch, path: v1 + "/users/{name}", perm: fleet.PermUsersAdmin, kind: api, serve: s.changeUser},
		{method: post, path: v1 + "/users/{name}", perm: fleet.PermUsersAdmin, kind: api, serve: s.changeUser}, // for forms
		{method: get, path: v1 + "/tokens", perm: fleet.PermSelf, kind: api, serve: s.listTokens},
		{method: post, path: v1 + "/tokens", perm: fleet.PermSelf, kind: api, serve: s.addToken},
		{method: del, path: v1 + "/tokens/{id}", perm: fleet.PermSelf, kind: api, serve: s.endToken},
		{method: post, path: v1 + "/tokens/{id}/delete", perm: fleet.PermSelf, kind: api, serve: s.endToken}, // for forms
		{method: get, path: v1 + "/sessions", perm: fleet.PermSelf, kind: api, serve: s.listSessions},
		{method: del, path: v1 + "/sessions/{id}", perm: fleet.PermSelf, kind: api, serve: s.endSession},
		{method: post, path: v1 + "/sessions/{id}/delete", perm: fleet.PermSelf, kind: api, serve: s.endSession}, // for forms
		{method: post, path: v1 + "/password", perm: fleet.PermSelf, kind: api, serve: s.changePassword},
		{method: post, path: v1 + "/second-factor", perm: fleet.PermSelf, kind: api, serve: s.beginFactor},
		{method: post, path: v1 + "/second-factor/confirm", perm: fleet.PermSelf, kind: api, serve: s.confirmFactor},
		{method: post, path: v1 + "/second-factor/delete", perm: fleet.PermSelf, kind: api, serve: s.dropFactor},
		{method: get, path: v1 + "/audit", perm: fleet.PermAuditView, kind: api, serve: s.listAudit},
		{method: get, path: v1 + "/audit/export", perm: fleet.PermAuditView, kind: stream, serve: s.exportAudit},
	}
}

// permissions are those a route may declare.
var permissions = []fleet.Permission{
	fleet.PermPublic, fleet.PermSelf, fleet.PermNodesView, fleet.PermBatchView, fleet.PermNodeCordon, fleet.PermUsersAdmin,
	fleet.PermAuditView, fleet.PermClusterRetry, fleet.PermClusterAdmin, fleet.PermTemplates,
}

// acting are the permissions by which somebody changes nodes. Each can be had without the others.
var acting = []fleet.Permission{fleet.PermNodeCordon, fleet.PermNodeDrain, fleet.PermNodeEdit}

// register refuses the whole table if one route declares no permission: a forgotten check must not become a door.
func (s *server) register(routes []route) error {
	var errs []error
	for _, rt := range routes {
		if !slices.Contains(permissions, rt.perm) {
			errs = append(errs, fmt.Errorf("handlers: %s %s declares no known permission (%q)", rt.method, rt.path, rt.perm))
			continue
		}
		var h http.Handler = s.handle(rt, rt.serve)
		if rt.kind == page || rt.kind == api {
			h = s.compress(h)
		}
		s.mux.Method(rt.method, rt.path, h)
		if rt.method == http.MethodGet && rt.kind != stream {
			s.mux.Method(http.MethodHead, rt.path, h)
		}
		if rt.method == http.MethodGet && rt.kind == page {
			s.pages[rt.path] = true
		}
	}
	files := s.compress(s.static(static.Handler()))
	s.mux.Method(http.MethodGet, static.Prefix+"*", files)
	s.mux.Method(http.MethodHead, static.Prefix+"*", files)
	return errors.Join(errs...)
}

// static arms the deadline that the other routes get from handle. The files are public and the same for everybody.
func (s *server) static(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		setDeadlines(w, readTimeout, writeTimeout)
		if err := s.vouch(r); err != nil {
			s.fail(w, r, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// handle is the way of every request: time and size, origin, who, may they, the handler, and the one place where an
// error becomes an answer.
func (s *server) handle(rt route, h handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		st := stateOf(r)
		st.route = rt
		if rt.kind == stream {
			// A deadline of the request before this one on the same connection would cut the stream. The body of a POST
			// is read under a deadline that its handler lifts.
			setDeadlines(w, 0, 0)
		} else {
			setDeadlines(w, readTimeout, writeTimeout)
			ctx, cancel := context.WithTimeout(r.Context(), writeTimeout)
			defer cancel()
			r = r.WithContext(ctx)
		}
		if err := s.guard(w, r, rt, h); err != nil {
			s.fail(w, r, err)
		}
	}
}

func (s *server) guard(w http.ResponseWriter, r *http.Request, rt route, h handler) error {
	if err := s.vouch(r); err != nil {
		return err
	}
	if err := limitBody(w, r, rt.body); err != nil {
		return err
	}
	if rt.perm == fleet.PermPublic || rt.perm == "" { // "" is only ever the page for unknown paths
		if err := s.sameOrigin(r); err != nil {
			return err
		}
		return h(w, r)
	}
	caller, err := s.authenticate(r)
	if err != nil {
		return err
	}
	if caller.Via != viaToken {
		if err := s.sameOrigin(r); err != nil {
			s.cfg.Audit.Denied(r.Context(), caller, rt.method+" "+rt.path, "cross-origin request")
			return err
		}
	}
	stateOf(r).caller = caller
	cluster, err := pathParam(r, "cluster")
	if err != nil {
		return err
	}
	// A route of no cluster in particular is open to who may do it anywhere; its handler asks for each cluster.
	var in string
	if strings.Contains(rt.path, clusterParam) {
		if err := s.exists(r, rt, caller, cluster); err != nil {
			return err
		}
		in = cluster
	}
	if !mayIn(caller, in, append([]fleet.Permission{rt.perm}, rt.or...)...) {
		s.cfg.Audit.Denied(r.Context(), caller, rt.method+" "+rt.path, "role "+string(caller.Role)+" does not hold "+string(rt.perm))
		return say(fleet.ErrForbidden, "error.role", "the role {{.Part}} does not permit this", "Part", string(caller.Role))
	}
	return h(w, r)
}

// clusterParam is how the path of a route that is about one cluster names it.
const clusterParam = "{cluster}"

// exists refuses a cluster of the path that there is not, or not for this person: before anything else is said or read,
// and in the same words, so that nothing tells the one from the other. That somebody asked for what they do not see is on
// record, whether there is such a cluster or not, because the time that this takes would tell.
func (s *server) exists(r *http.Request, rt route, caller fleet.Caller, cluster string) error {
	if !caller.Sees(cluster) {
		s.cfg.Audit.Denied(r.Context(), caller, rt.method+" "+rt.path, fmt.Sprintf("does not see cluster %.100q", cluster))
		return unknownCluster(cluster)
	}
	if rt.perm == fleet.PermClusterAdmin && slices.ContainsFunc(s.cfg.Managed.Managed(), func(c fleet.ManagedCluster) bool { return c.Name == cluster }) {
		return nil // it can be repaired and removed though it is not watched
	}
	return s.knownCluster(caller, cluster)
}

// setDeadlines arms the connection for this request; zero takes a deadline away. A writer without a connection, as tests
// use it, has none to arm.
func setDeadlines(w http.ResponseWriter, read, write time.Duration) {
	at := func(d time.Duration) time.Time {
		if d == 0 {
			return time.Time{}
		}
		return time.Now().Add(d)
	}
	rc := http.NewResponseController(w)
	// The only errors are ErrNotSupported and that of a connection that is gone, which the next read or write reports.
	_ = rc.SetReadDeadline(at(read))
	_ = rc.SetWriteDeadline(at(write))
}

// escapedPath makes chi route on the escaped path, always: a parameter then has one decoding and a slash inside a
// cluster's name stays inside. By default chi takes the escaped form only when it differs from the standard one.
func escapedPath(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		chi.RouteContext(r.Context()).RoutePath = r.URL.EscapedPath()
		next.ServeHTTP(w, r)
	})
}

// pathParam is a decoded parameter of the path, "" if the route has none of that name.
func pathParam(r *http.Request, name string) (string, error) {
	v, err := url.PathUnescape(chi.URLParam(r, name))
	if err != nil {
		return "", say(fleet.ErrNotFound, "error.page_unknown", "there is no such page")
	}
	return v, nil
}

func (s *server) methodNotAllowed(w http.ResponseWriter, r *http.Request) {
	var allow []string
	for _, m := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		if s.mux.Match(chi.NewRouteContext(), m, r.URL.EscapedPath()) {
			allow = append(allow, m)
		}
	}
	w.Header().Set("Allow", strings.Join(allow, ", "))
	s.handle(route{kind: page}, func(http.ResponseWriter, *http.Request) error {
		return &said{kind: errMethod, key: "error.method", message: "this address does not answer to " + r.Method}
	})(w, r)
}

func (s *server) healthz(w http.ResponseWriter, _ *http.Request) error {
	return plain(w, http.StatusOK, "ok\n")
}

func (s *server) readyz(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
	defer cancel()
	if err := s.cfg.Ready(ctx); err != nil {
		// The reason goes into the log, not to whoever asks: probes are public.
		s.cfg.Logger.LogAttrs(ctx, levelWarn, "not ready", errAttr(err))
		return plain(w, http.StatusServiceUnavailable, "not ready\n")
	}
	return plain(w, http.StatusOK, "ready\n")
}

func (c Config) check() error {
	var errs []error
	for name, missing := range map[string]bool{
		"Nodes": c.Nodes == nil, "Clusters": c.Clusters == nil, "Managed": c.Managed == nil, "Streams": c.Streams == nil, "Batches": c.Batches == nil, "Auth": c.Auth == nil, "People": c.People == nil,
		"Audit": c.Audit == nil, "Ready": c.Ready == nil, "Logger": c.Logger == nil, "Metrics": c.Metrics == nil,
	} {
		if missing {
			errs = append(errs, fmt.Errorf("handlers: Config.%s is missing", name))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}
