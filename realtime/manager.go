package realtime

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// Manager watches clusters and answers from what it has seen. Clusters come and go while it runs.
type Manager struct {
	cfg     ManagerConfig
	render  *renderer
	metrics *metrics
	clock   atomic.Uint64 // the one revision counter of the process
	wake    chan struct{} // something visible changed; capacity 1
	listed  chan struct{} // a large list has come; capacity 1
	syncs   chan struct{} // first lists under way; see maxFirstLists

	mu       sync.RWMutex      // guards everything below
	boards   map[string]*board // never changed in place
	runs     map[string]*supervisor
	topology uint64
	removed  uint64          // revision of the last removal
	ctx      context.Context // of Run; nil before
	ended    bool
	running  sync.WaitGroup // supervisors

	viewsMu  sync.Mutex // guards views, their users and routes
	views    map[string]*view
	routes   routes // to the views that somebody watches
	uses     uint64
	items    atomic.Int64 // rows that all views hold
	followed uint64       // topology that every watched view has seen; only the feeder touches it

	fleet fleetView
}

// maxFirstLists is how many clusters may be in their first list at once: lists are what costs memory.
const maxFirstLists = 4

// NewManager returns a Manager without clusters. It starts nothing.
func NewManager(cfg ManagerConfig) *Manager {
	cfg.Probe = or(cfg.Probe, 10*time.Second)
	cfg.Silence = or(cfg.Silence, 90*time.Second)
	cfg.Answer = or(cfg.Answer, 8*time.Second)
	cfg.Review = or(cfg.Review, 50*time.Second)
	cfg.BackoffMin = or(cfg.BackoffMin, 500*time.Millisecond)
	cfg.BackoffMax = or(cfg.BackoffMax, 30*time.Second)
	cfg.Tombstones = or(cfg.Tombstones, 1024)
	cfg.IdleViews = or(cfg.IdleViews, 64)
	cfg.ViewItems = or(cfg.ViewItems, 1<<20)
	cfg.CacheBytes = or(cfg.CacheBytes, 256<<20)
	cfg.SleepAfter = or(cfg.SleepAfter, time.Minute)
	if cfg.Terms == nil {
		cfg.Terms = func(string) fleet.Terms { return fleet.Terms{} }
	}
	if cfg.Identities == nil {
		cfg.Identities = &inMemory{uids: map[string]string{}}
	}
	if cfg.Epoch == "" {
		cfg.Epoch = strings.ToLower(rand.Text()[:10])
	}
	cfg.Logger = cfg.Logger.With("component", "realtime")
	m := &Manager{
		cfg: cfg, render: &renderer{Renderer: cfg.Render, log: cfg.Logger, cache: newRowCache(cfg.CacheBytes)},
		wake: make(chan struct{}, 1), listed: make(chan struct{}, 1), syncs: make(chan struct{}, maxFirstLists),
		boards: map[string]*board{}, runs: map[string]*supervisor{}, topology: 1,
		views: map[string]*view{}, routes: routes{},
	}
	m.fleet.sig = make(chan struct{})
	m.metrics = newMetrics(cfg.Metrics, m)
	return m
}

var errRunning = errors.New("the manager runs already")

// Run watches every cluster and keeps the views of everybody who looks up to date, until ctx ends; it returns when all
// of that has ended. A Manager runs once.
func (m *Manager) Run(ctx context.Context) error {
	if err := m.start(ctx); err != nil {
		return err
	}
	m.feed(ctx)
	m.mu.Lock()
	m.ended = true // no supervisor starts from here on
	m.mu.Unlock()
	m.running.Wait()
	return nil
}

func (m *Manager) start(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx != nil {
		return errRunning
	}
	m.ctx = ctx
	m.running.Go(func() { m.tidy(ctx) })
	for _, s := range m.runs {
		m.launch(s)
	}
	return nil
}

// Started tells whether every cluster has its supervisor.
func (m *Manager) Started() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.ctx != nil && !m.ended
}

func (m *Manager) poke() {
	select {
	case m.wake <- struct{}{}:
	default: // the feeder has not looked yet
	}
}

// feed keeps every view that somebody watches up to date: one pass for everything that changed since the last one.
// Passes begin at once, and keep a distance of three times their own cost, so that a flood of changes becomes fewer
// and larger steps instead of a busy processor.
func (m *Manager) feed(ctx context.Context) {
	rest, later := time.NewTimer(0), time.NewTimer(0)
	defer rest.Stop()
	defer later.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.wake:
		case <-later.C:
		}
		began := time.Now()
		m.fleet.sync(m)
		for v := range m.concerned() {
			m.follow(v)
		}
		cost := time.Since(began)
		m.metrics.pass.Observe(cost.Seconds())
		if d := m.economise(); d > 0 {
			later.Reset(d)
		}
		rest.Reset(min(3*cost, maxRest))
		select {
		case <-ctx.Done():
			return
		case <-rest.C:
		}
	}
}

const maxRest = 100 * time.Millisecond

// follow brings one view up to date. A predicate or an order that panics over an odd node costs its own view only.
func (m *Manager) follow(v *view) {
	defer func() {
		if p := recover(); p != nil {
			m.cfg.Logger.Error("view panicked", "view", v.key, "panic", p, "stack", stack())
		}
	}()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.sync()
}

func stack() string { return string(debug.Stack()) }

// concerned are the watched views that what changed since the last call may concern: all of them if a cluster came or
// went, and otherwise those whose route was touched. What does not know a view does not cost it a look.
func (m *Manager) concerned() map[*view]struct{} {
	boards, topology := m.shape()
	hit := map[*view]struct{}{}
	if topology != m.followed {
		m.followed = topology
		for _, b := range boards {
			b.take()
		}
		m.viewsMu.Lock()
		defer m.viewsMu.Unlock()
		for _, views := range m.routes {
			maps.Copy(hit, views)
		}
		return hit
	}
	for name, b := range boards {
		if t, ok := b.take(); ok {
			m.viewsMu.Lock()
			m.routes.collect(name, t, hit)
			m.viewsMu.Unlock()
		}
	}
	return hit
}

func (m *Manager) shape() (boards map[string]*board, topology uint64) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.boards, m.topology
}

// acquire returns the view of a query, which stays until release.
func (m *Manager) acquire(q *Query) *view {
	if q.Cluster != "" && !q.blind() {
		m.look(q.Cluster)
	}
	m.viewsMu.Lock()
	defer m.viewsMu.Unlock()
	key := q.viewKey()
	v := m.views[key]
	if v == nil {
		v = newView(m, q)
		if v.loose = m.items.Load() >= m.cfg.ViewItems; !v.loose {
			m.views[key] = v
		}
	}
	if v.users++; v.users == 1 {
		m.routes.add(v)
	}
	return v
}

// release lets go of a view. Views that nobody uses stay for a while, so that a page that was just rendered finds its
// view again when its stream connects; the least recently used go first.
func (m *Manager) release(v *view) {
	m.viewsMu.Lock()
	defer m.viewsMu.Unlock()
	m.uses++
	v.users--
	v.used = m.uses
	if v.users > 0 {
		return
	}
	m.routes.remove(v)
	if v.loose {
		m.discard(v)
		return
	}
	idle := 0
	var oldest *view
	for _, o := range m.views {
		if o.users > 0 {
			continue
		}
		idle++
		if oldest == nil || o.used < oldest.used {
			oldest = o
		}
	}
	if idle > m.cfg.IdleViews || m.items.Load() > m.cfg.ViewItems/2 {
		delete(m.views, oldest.key)
		m.discard(oldest)
	}
}

// discard takes a view that nobody uses out of the sum. viewsMu is held.
func (m *Manager) discard(v *view) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.weigh(0)
}

// admits tells whether there is room for the view of one more stream. Pages get theirs always: it goes when they are
// rendered.
func (m *Manager) admits(q *Query) bool {
	m.viewsMu.Lock()
	defer m.viewsMu.Unlock()
	return m.items.Load() < m.cfg.ViewItems || m.views[q.viewKey()] != nil
}

// moment is one moment of the boards of a query: everything up to the revision, and nothing beyond it.
type moment struct {
	rev      uint64
	topology uint64 // moves when a cluster comes or goes
	removed  uint64 // revision of the last removal
	boards   map[string]*board
}

// at calls f with one moment of the boards that pick chooses of all, which it must not change. No revision of these boards can be taken while
// f runs, for that needs a board's write lock; so the counter that f sees is a cursor over all of them, and means the
// same to whoever computes it. f must not take long. Locks are taken in the order manager, boards, and boards in order of
// name: a writer that waits for one board keeps further readers from it, so two readers with two orders and two such
// writers would wait for each other for ever.
func (m *Manager) at(pick func(all map[string]*board, topology uint64) map[string]*board, f func(moment)) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	boards := pick(m.boards, m.topology)
	for _, name := range slices.Sorted(maps.Keys(boards)) {
		b := boards[name]
		b.mu.RLock()
		defer b.mu.RUnlock()
	}
	f(moment{m.clock.Load(), m.topology, m.removed, boards})
}

// everyBoard picks all of them.
func everyBoard(all map[string]*board, _ uint64) map[string]*board { return all }

func (m *Manager) all() map[string]*board {
	boards, _ := m.shape()
	return boards
}

func (m *Manager) board(name string) *board {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.boards[name]
}

// Window is the page of the query with the cursor it was read at, in one step under one lock.
func (m *Manager) Window(q *Query, lang string) Window {
	v := m.acquire(q)
	defer m.release(v)
	w, page, heads := v.read(q)
	w.Cursor = v.cursor(w.Revision)
	for _, ver := range page {
		w.Nodes = append(w.Nodes, ver.newest())
		w.Rows = append(w.Rows, m.render.row(ver, lang))
	}
	for i, h := range heads {
		w.Heads[i].Row = m.render.group(h, lang)
	}
	sets := map[facet]map[string]struct{}{facetZone: {}, facetRole: {}, facetType: {}, facetVersion: {}}
	for name, b := range m.all() {
		if q.Sees(name) {
			b.values(sets)
		}
	}
	w.Facets = Facets{
		Zones: sorted(sets[facetZone]), Roles: sorted(sets[facetRole]),
		Types: sorted(sets[facetType]), Versions: sorted(sets[facetVersion]),
	}
	return w
}

// read is everything of a window that has to be of one moment.
func (v *view) read(q *Query) (Window, []*version, []*header) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.sync()
	page, items := v.slice(pageKey{q.Page, q.PerPage})
	w := Window{
		Revision: v.rev, Total: len(v.order), Page: page, Pages: v.pages(q.PerPage), Counts: v.counts, Groups: v.groups(),
		Nodes: make([]*fleet.Node, 0, len(items)), Rows: make([][]byte, 0, len(items)),
	}
	for _, c := range v.clusters {
		w.Clusters = append(w.Clusters, c.Cluster)
	}
	out := make([]*version, len(items))
	for i, it := range items {
		out[i] = it.ver
	}
	var heads []*header
	for _, h := range v.heads(items) {
		w.Heads = append(w.Heads, Head{Before: h.before})
		heads = append(heads, v.sums.by[h.value])
	}
	return w, out, heads
}

func sorted(set map[string]struct{}) []string { return slices.Sorted(maps.Keys(set)) }

// Matching lists the refs of every node the query matches, whatever page and group, in the order of its sort, at most
// limit.
func (m *Manager) Matching(q *Query, limit int) []fleet.NodeRef {
	v := m.acquire(q.ungrouped())
	defer m.release(v)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.sync()
	refs := make([]fleet.NodeRef, 0, min(limit, len(v.order)))
	for _, it := range v.order[:min(limit, len(v.order))] {
		refs = append(refs, it.ref)
	}
	return refs
}

func (m *Manager) find(ref fleet.NodeRef) (*board, *fleet.Node, *version, error) {
	b := m.board(ref.Cluster)
	if b == nil {
		return nil, nil, nil, fmt.Errorf("cluster %s: %w", ref.Cluster, fleet.ErrNotFound)
	}
	m.look(ref.Cluster)
	n, ver := b.node(ref.Name)
	if n == nil {
		if err := dozing(b); err != nil {
			return nil, nil, nil, err
		}
		return nil, nil, nil, fmt.Errorf("node %s: %w", ref, fleet.ErrNotFound)
	}
	return b, n, ver, nil
}

// Node is the newest the manager knows of a node; ErrNotFound for an unknown cluster or node.
func (m *Manager) Node(ref fleet.NodeRef) (*fleet.Node, error) {
	_, n, _, err := m.find(ref)
	return n, err
}

// Unavailable names the nodes of a cluster that are cordoned or not ready, in no order.
func (m *Manager) Unavailable(cluster string) []string {
	b := m.board(cluster)
	if b == nil {
		return nil
	}
	m.look(cluster)
	return b.names(
		cordonedTrait(true), trait{facetStatus, string(fleet.StatusNotReady)}, trait{facetStatus, string(fleet.StatusUnknown)},
	)
}

// Object is a node of a live cluster as the watch has it, less what it leaves out; false if there is none.
func (m *Manager) Object(ref fleet.NodeRef) (*corev1.Node, bool) {
	b := m.board(ref.Cluster)
	if b == nil || b.state().State != fleet.ClusterLive {
		return nil, false
	}
	full, ok := b.packed(ref.Name)
	if !ok || len(full) == 0 {
		return nil, false
	}
	n, err := kube.Unpack(full)
	return n, err == nil
}

// FullNode is the whole corev1.Node as cached, as JSON.
func (m *Manager) FullNode(ref fleet.NodeRef) ([]byte, error) {
	b, _, _, err := m.find(ref)
	if err != nil {
		return nil, err
	}
	full, ok := b.packed(ref.Name)
	if !ok {
		return nil, fmt.Errorf("node %s: %w", ref, fleet.ErrNotFound)
	}
	if len(full) == 0 {
		return nil, fmt.Errorf("node %s is not cached whole: %w", ref, fleet.ErrUnavailable)
	}
	return kube.FullJSON(full)
}

// Row is the node's live row as rendered for lists.
func (m *Manager) Row(ref fleet.NodeRef, lang string) ([]byte, error) {
	_, _, ver, err := m.find(ref)
	if err != nil {
		return nil, err
	}
	return m.render.row(ver, lang), nil
}

// Clusters is every cluster in sight with its state, in order of name.
func (m *Manager) Clusters(sight fleet.Sight) []fleet.Cluster {
	boards := m.all()
	out := make([]fleet.Cluster, 0, len(boards))
	for name, b := range boards {
		if sight.Sees(name) {
			out = append(out, b.state())
		}
	}
	slices.SortFunc(out, func(a, b fleet.Cluster) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// ClusterUID tells which cluster is known by a name, "" if that is not known.
func (m *Manager) ClusterUID(name string) string {
	b := m.board(name)
	if b == nil {
		return ""
	}
	return b.state().UID
}

// podsTimeout bounds a read of pods: a person waits for it.
const podsTimeout = 10 * time.Second

// Pods reads the pods of a node from the API server, now.
func (m *Manager) Pods(ctx context.Context, ref fleet.NodeRef) (fleet.PodList, error) {
	if _, _, _, err := m.find(ref); err != nil {
		return fleet.PodList{}, err
	}
	client, err := m.Client(ref.Cluster)
	if err != nil {
		return fleet.PodList{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, podsTimeout)
	defer cancel()
	pods, err := kube.Pods(ctx, client, ref.Name)
	if err != nil {
		return fleet.PodList{}, err
	}
	return fleet.PodList{Pods: pods, Read: time.Now().UTC()}, nil
}

// Observe takes the object that an own write returned into the cache, so that the writer's next page shows it. It
// never brings a deleted node back and never replaces a newer object; the watch's later event of the same version
// changes nothing any more.
func (m *Manager) Observe(cluster string, n *corev1.Node) {
	b := m.board(cluster)
	if b == nil || n == nil {
		return
	}
	if _, err := b.observe(n); err != nil {
		m.cfg.Logger.Warn("node of an own write not cached whole", "cluster", cluster, "node", n.Name, "err", err)
	}
}
