package realtime

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// world is what the API servers of a random history hold. It writes through the boards' front doors and knows the
// truth by itself.
type world struct {
	b     *bench
	r     *rand.Rand
	rv    int
	nodes map[fleet.NodeRef]spec
	down  map[string]bool // clusters that are removed at the moment
}

var clusterNames = []string{"a", "b"}

func (w *world) random(ref fleet.NodeRef) spec {
	w.rv++
	s := spec{
		name: ref.Name, uid: w.nodes[ref].uid, rv: w.rv,
		labels:   map[string]string{"v": strconv.Itoa(w.r.IntN(5)), "topology.kubernetes.io/zone": "z" + strconv.Itoa(w.r.IntN(3))},
		cordoned: w.r.IntN(3) == 0,
		ready:    []corev1.ConditionStatus{corev1.ConditionTrue, corev1.ConditionFalse, corev1.ConditionUnknown}[w.r.IntN(3)],
		beat:     epochStart.Add(time.Duration(w.rv) * time.Second),
	}
	if s.uid == "" || w.r.IntN(8) == 0 {
		s.uid = fmt.Sprintf("uid-%d", w.rv)
	}
	return s
}

func (w *world) step() {
	ref := fleet.NodeRef{Cluster: clusterNames[w.r.IntN(2)], Name: fmt.Sprintf("n%02d", w.r.IntN(40))}
	board := w.b.m.board(ref.Cluster)
	switch dice := w.r.IntN(100); {
	case dice < 1:
		w.toggle(ref.Cluster)
	case board == nil:
		if w.r.IntN(5) == 0 {
			w.toggle(ref.Cluster)
		}
	case dice < 4:
		w.relist(ref.Cluster, board)
	case dice < 7:
		board.setStatus(func(c *fleet.Cluster) { c.State, c.Reason = fleet.ClusterStale, strconv.Itoa(w.rv) })
	case dice < 25:
		old, ok := w.nodes[ref]
		if !ok {
			return
		}
		w.rv++
		board.remove(ref.Name, old.uid, strconv.Itoa(w.rv))
		delete(w.nodes, ref)
	case dice < 35: // an own write: the answer first, then what the watch still had on its way, then the event
		old, ok := w.nodes[ref]
		if !ok {
			return
		}
		late := old
		w.rv++
		late.rv = w.rv
		next := w.random(ref)
		next.uid = old.uid
		w.b.m.Observe(ref.Cluster, next.node())
		w.b.put(ref.Cluster, late)
		w.b.put(ref.Cluster, next)
		w.nodes[ref] = next
	case dice < 45: // a heartbeat
		old, ok := w.nodes[ref]
		if !ok {
			return
		}
		w.rv++
		old.rv, old.beat = w.rv, old.beat.Add(time.Minute)
		w.b.put(ref.Cluster, old)
		w.nodes[ref] = old
	default:
		next := w.random(ref)
		w.b.put(ref.Cluster, next)
		w.nodes[ref] = next
	}
}

// relist drops and changes nodes behind the watch's back, and then lists.
func (w *world) relist(cluster string, board *board) {
	var list []*corev1.Node
	for _, ref := range slices.SortedFunc(maps.Keys(w.nodes), fleet.NodeRef.Compare) {
		if ref.Cluster != cluster {
			continue
		}
		switch w.r.IntN(6) {
		case 0:
			delete(w.nodes, ref)
			continue
		case 1:
			w.nodes[ref] = w.random(ref)
		}
		list = append(list, w.nodes[ref].node())
	}
	board.begin()
	if err := board.replace(arrivals(board, list)); err != nil {
		w.b.t.Errorf("replace: %v", err)
	}
}

func (w *world) toggle(cluster string) {
	if !w.down[cluster] {
		if err := w.b.m.Remove(cluster); err != nil {
			w.b.t.Errorf("Remove: %v", err)
		}
		w.down[cluster] = true
		maps.DeleteFunc(w.nodes, func(ref fleet.NodeRef, _ spec) bool { return ref.Cluster == cluster })
		return
	}
	w.b.add(cluster)
	w.down[cluster] = false
}

// page is a browser: a table that is only ever changed by messages.
type page struct {
	ids    []string
	rows   map[string]string
	counts string
	badges map[string]string
}

func (p *page) load(w Window) {
	p.ids, p.rows = nil, map[string]string{}
	for i, n := range w.Nodes {
		id := plain{}.NodeID(n.Ref)
		p.ids = append(p.ids, id)
		p.rows[id] = string(w.Rows[i])
	}
}

// take applies one event as htmx would.
func (p *page) take(e got) error {
	switch e.name {
	case "hb":
		return nil
	case "order":
		var order []string
		if err := json.Unmarshal([]byte(e.data), &order); err != nil {
			return err
		}
		place := map[string]int{}
		for i, id := range order {
			place[id] = i + 1
		}
		slices.SortStableFunc(p.ids, func(a, b string) int { return place[a] - place[b] })
		return nil
	case "":
	default:
		return fmt.Errorf("unexpected event %q", e.name)
	}
	for rest := e.data; rest != ""; {
		var part string
		switch {
		case strings.HasPrefix(rest, "<tr"):
			part, rest, _ = strings.Cut(rest, "</tr>")
			p.row(part + "</tr>")
		case strings.HasPrefix(rest, "<hx-partial"):
			part, rest, _ = strings.Cut(rest, "</hx-partial>")
			tag, rows, _ := strings.Cut(part, ">")
			if strings.Contains(tag, "innerMorph") {
				p.ids, p.rows = nil, map[string]string{}
			}
			for row := range strings.SplitAfterSeq(rows, "</tr>") {
				if row == "" {
					continue
				}
				id := idOf(row)
				if _, dup := p.rows[id]; dup {
					return fmt.Errorf("row %s is there twice", id)
				}
				p.ids, p.rows[id] = append(p.ids, id), row
			}
		case strings.HasPrefix(rest, "<x-counts"):
			part, rest, _ = strings.Cut(rest, "</x-counts>")
			p.counts = part + "</x-counts>"
		case strings.HasPrefix(rest, "<x-badge"):
			part, rest, _ = strings.Cut(rest, "</x-badge>")
			p.badges[idOf(part)] = part + "</x-badge>"
		default:
			return fmt.Errorf("not understood: %.80q", rest)
		}
	}
	return nil
}

func (p *page) row(row string) {
	id := idOf(row)
	if strings.Contains(row, `hx-swap-oob="delete"`) {
		delete(p.rows, id)
		p.ids = slices.DeleteFunc(p.ids, func(have string) bool { return have == id })
		return
	}
	if _, ok := p.rows[id]; ok { // htmx ignores a target that is not there
		p.rows[id] = strings.Replace(row, ` hx-swap-oob="outerMorph"`, "", 1)
	}
}

func idOf(row string) string {
	_, rest, _ := strings.Cut(row, `id="`)
	id, _, _ := strings.Cut(rest, `"`)
	return id
}

// watcher is one client with a life of its own.
type watcher struct {
	b      *bench
	query  url.Values
	json   bool
	r      *rand.Rand
	cut    int // one in so many events the connection is lost; 0: never
	forget bool

	mu     sync.Mutex
	page   page
	nodes  map[string]string // JSON: data by node
	synced bool
	calm   bool // no more cuts
	moved  chan struct{}
	conns  int
	events int
	wrong  error
}

func (c *watcher) run(ctx context.Context) {
	lastID, loaded := "", false
	for ctx.Err() == nil {
		q := maps.Clone(c.query)
		c.mu.Lock()
		c.conns++
		if !c.json && !loaded {
			// The page is rendered, and the stream goes on where it was.
			parsed, err := ParseQuery("", c.query)
			if err != nil {
				c.wrong = err
				c.mu.Unlock()
				return
			}
			w := c.b.m.Window(parsed, "en")
			c.page.load(w)
			c.page.badges, c.page.counts = map[string]string{}, string(plain{}.Counts(w.Counts, w.Page, w.Pages, w.Total, "en"))
			for _, cl := range w.Clusters {
				c.page.badges[cl.Name] = string(plain{}.ClusterBadge(cl, "en"))
			}
			q.Set("since", w.Cursor)
			loaded = true
		}
		c.mu.Unlock()
		path := "/nodes?" + q.Encode()
		if c.json {
			path += "&json=1"
		}
		s, status, err := c.b.dial(path, "Last-Event-ID", lastID, "Session", fmt.Sprint(c.r.Int()))
		if err != nil || status != http.StatusOK {
			if s != nil {
				s.close()
			}
			select { // the cluster of the query may be away
			case <-time.After(2 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		stop := context.AfterFunc(ctx, s.close)
		for {
			e, err := s.next()
			if err != nil {
				break
			}
			lastID = e.id
			c.mu.Lock()
			c.events++
			if err := c.take(e); err != nil && c.wrong == nil {
				c.wrong = err
			}
			lost := c.cut > 0 && !c.calm && c.r.IntN(c.cut) == 0
			c.mu.Unlock()
			select {
			case c.moved <- struct{}{}:
			default:
			}
			if lost {
				break
			}
		}
		stop()
		s.close()
		if c.forget && c.r.IntN(4) == 0 {
			lastID, loaded = "", false
			c.mu.Lock()
			c.nodes, c.synced = map[string]string{}, false
			c.mu.Unlock()
		}
	}
}

func (c *watcher) take(e got) error {
	if !c.json {
		if e.name == "bye" {
			return nil
		}
		return c.page.take(e)
	}
	var m struct {
		Type    string
		Cluster string `json:"cluster_name"`
		Node    string `json:"node_name"`
		Data    json.RawMessage
		Changes []string
	}
	if e.name == "bye" {
		return nil
	}
	if err := json.Unmarshal([]byte(e.data), &m); err != nil {
		return err
	}
	if m.Type != e.name {
		return fmt.Errorf("event %q holds a %q", e.name, m.Type)
	}
	key := m.Cluster + "/" + m.Node
	switch m.Type {
	case typeReset:
		c.nodes, c.synced = map[string]string{}, false
	case nodeAdd:
		c.nodes[key] = string(m.Data)
	case nodeUpdate:
		if _, ok := c.nodes[key]; !ok {
			return fmt.Errorf("update of %s, which was never added", key)
		}
		c.nodes[key] = string(m.Data)
	case nodeDelete:
		delete(c.nodes, key)
	case typeSynced:
		c.synced = true
	case typePing:
	default:
		return fmt.Errorf("unexpected message %q", m.Type)
	}
	return nil
}

// differs says how the client differs from what the list shows now, "" if not at all.
func (c *watcher) differs() string {
	q, err := ParseQuery("", c.query)
	if err != nil {
		return err.Error()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wrong != nil {
		return c.wrong.Error()
	}
	if c.b.m.board(q.Cluster) == nil && q.Cluster != "" {
		return "" // it cannot know
	}
	if c.json {
		want := map[string]string{}
		for _, ref := range c.b.m.Matching(q, 1<<20) {
			_, ver := c.b.m.board(ref.Cluster).node(ref.Name)
			want[ref.String()] = string(c.b.m.render.json(ver))
		}
		if !c.synced {
			return "not synced"
		}
		return cmp.Diff(want, c.nodes)
	}
	w := c.b.m.Window(q, "en")
	var want page
	want.load(w)
	want.counts = string(plain{}.Counts(w.Counts, w.Page, w.Pages, w.Total, "en"))
	if d := cmp.Diff(want.ids, c.page.ids, cmpopts.EquateEmpty()); d != "" {
		return "order: " + d
	}
	if d := cmp.Diff(want.rows, c.page.rows); d != "" {
		return "rows: " + d
	}
	if d := cmp.Diff(want.counts, c.page.counts); d != "" {
		return "counts: " + d
	}
	for _, cl := range w.Clusters {
		if got, want := c.page.badges[cl.Name], string(plain{}.ClusterBadge(cl, "en")); got != want {
			return "badge: got " + got + ", want " + want
		}
	}
	return ""
}

// TestModel_ClientsConverge drives random histories against random views, with cuts and reconnects, and compares what
// every client shows with what the list says once it is quiet.
func TestModel_ClientsConverge(t *testing.T) {
	t.Parallel()
	seeds, steps := 4, 1500
	if testing.Short() {
		seeds, steps = 2, 500
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			converge(t, uint64(seed), steps)
		})
	}
}

func converge(t *testing.T, seed uint64, steps int) {
	b := newBench(t, ManagerConfig{Tombstones: 8, IdleViews: 2}, StreamerConfig{}, clusterNames...)
	r := rand.New(rand.NewPCG(seed, 1))
	w := &world{b: b, r: r, nodes: map[fleet.NodeRef]spec{}, down: map[string]bool{}}
	for range 60 {
		w.step()
	}
	texts := []string{"", "status:Ready", "cordoned:true", "-status:Ready", "label:v=1", "n1", `zone:z1 "n"`, "status:NotReady,Unknown"}
	var clients []*watcher
	for i := range 14 {
		q := url.Values{"per_page": {"20"}, "page": {strconv.Itoa(1 + r.IntN(3))}, "q": {texts[r.IntN(len(texts))]}}
		q.Set("sort", []string{"name", "-name", "status", "zone", "-cluster", "age"}[r.IntN(6)])
		if r.IntN(3) == 0 {
			q.Set("cluster", clusterNames[r.IntN(2)])
		}
		c := &watcher{
			b: b, query: q, json: i%2 == 1, r: rand.New(rand.NewPCG(seed, uint64(i+2))), forget: i%4 < 2,
			nodes: map[string]string{}, moved: make(chan struct{}, 1),
		}
		if i%3 != 0 {
			c.cut = 30
		}
		clients = append(clients, c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, c := range clients {
		wg.Go(func() { c.run(ctx) })
	}
	defer wg.Wait()
	defer cancel()
	// The history goes on at the pace of the clients: every few steps one of them has to take something.
	pulse := time.NewTicker(2 * time.Millisecond)
	defer pulse.Stop()
	for i := range steps {
		w.step()
		if i%4 == 0 {
			select {
			case <-clients[r.IntN(len(clients))].moved:
			case <-pulse.C: // that one sees nothing of this
			}
		}
	}
	for name, away := range w.down {
		if away {
			w.toggle(name)
		}
	}
	for range 50 {
		w.step() // a little more, so that what came back has nodes
	}
	for _, c := range clients {
		c.mu.Lock()
		c.calm = true
		c.mu.Unlock()
	}
	conns, events := 0, 0
	deadline := time.After(20 * time.Second)
	for i, c := range clients {
		for {
			d := c.differs()
			if d == "" {
				break
			}
			select {
			case <-c.moved:
				continue
			case <-deadline:
			}
			t.Fatalf("client %d (json %t, %d connections, %s): %s", i, c.json, c.conns, c.query.Encode(), d)
		}
	}
	for _, c := range clients {
		c.mu.Lock()
		conns, events = conns+c.conns, events+c.events
		c.mu.Unlock()
	}
	t.Logf("%d steps, %d clients, %d connections, %d events", steps, len(clients), conns, events)
	// The list itself is right.
	q, err := ParseQuery("", nil)
	if err != nil {
		t.Fatal(err)
	}
	got := map[fleet.NodeRef]string{}
	for _, ref := range b.m.Matching(q, 1<<20) {
		n, err := b.m.Node(ref)
		if err != nil {
			t.Fatalf("Node(%s): %v", ref, err)
		}
		got[ref] = n.UID + " " + n.ResourceVersion
	}
	want := map[fleet.NodeRef]string{}
	for ref, s := range w.nodes {
		want[ref] = s.uid + " " + strconv.Itoa(s.rv)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the cache differs from the clusters (-want +got): %s", d)
	}
}
