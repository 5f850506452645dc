package realtime

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
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
	plant plant
	rv    int
	nodes map[fleet.NodeRef]spec
	down  map[string]bool // clusters that are removed at the moment
}

var clusterNames = []string{"a", "b"}

// scopes are the sights of clients: everything, either cluster, and nothing.
var scopes = []string{"*", "*", "*", "a", "b", "a*", "none"}

func (w *world) random(ref fleet.NodeRef) spec {
	w.rv++
	s := spec{
		name: ref.Name, uid: w.nodes[ref].uid, rv: w.rv,
		labels:   map[string]string{"v": strconv.Itoa(w.r.IntN(5))},
		cordoned: w.r.IntN(3) == 0,
		ready:    []corev1.ConditionStatus{corev1.ConditionTrue, corev1.ConditionFalse, corev1.ConditionUnknown}[w.r.IntN(3)],
		beat:     epochStart.Add(time.Duration(w.rv) * time.Second),
	}
	if z := w.r.IntN(4); z > 0 { // some have no zone
		s.labels["topology.kubernetes.io/zone"] = "z" + strconv.Itoa(z)
	}
	if w.r.IntN(10) == 0 { // a group that comes and goes
		s.labels["v"] = fmt.Sprint("rare", w.r.IntN(20))
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
		if !w.plant.deaf(w.r) {
			board.remove(ref.Name, old.uid, strconv.Itoa(w.rv))
		}
		delete(w.nodes, ref)
	case dice < 28: // another node takes the name, somebody writes to it, and only then the first one's end is heard of
		old, ok := w.nodes[ref]
		if !ok {
			return
		}
		next := w.random(ref)
		next.uid = fmt.Sprintf("uid-%d", w.rv)
		w.put(ref, next)
		w.rv++
		died := strconv.Itoa(w.rv)
		after := w.random(ref)
		after.uid = next.uid
		w.b.m.Observe(ref.Cluster, after.node())
		board.remove(ref.Name, old.uid, died)
		w.put(ref, after)
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
		w.put(ref, late)
		w.put(ref, next)
	case dice < 45: // a heartbeat
		old, ok := w.nodes[ref]
		if !ok {
			return
		}
		w.rv++
		old.rv, old.beat = w.rv, old.beat.Add(time.Minute)
		w.put(ref, old)
	default:
		w.put(ref, w.random(ref))
	}
}

func (w *world) put(ref fleet.NodeRef, s spec) {
	w.nodes[ref] = s
	if w.plant.hide != nil && w.r.IntN(10) == 0 {
		if err := w.plant.hide(w.b.m.board(ref.Cluster), s.node()); err != nil {
			w.b.t.Error(err)
		}
		return
	}
	w.b.put(ref.Cluster, s)
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
			if w.plant.ghosts {
				list = append(list, w.nodes[ref].node())
			}
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
	p.ids, p.rows, p.badges = nil, map[string]string{}, map[string]string{}
	for _, row := range w.Lines() {
		id := idOf(string(row))
		p.ids = append(p.ids, id)
		p.rows[id] = string(row)
	}
	p.counts = string(plain{}.Counts(w.Counts, w.Page, w.Pages, w.Total, "en"))
	for _, c := range w.Clusters {
		p.badges[c.Name] = string(plain{}.ClusterBadge(c, "en"))
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
	plant  plant
	query  url.Values
	json   bool
	scope  string // of the clusters that it sees in the end
	roams  bool   // until then it is given other scopes, and comes back with the cursors of those before
	r      *rand.Rand
	cut    bool          // its connections break at any byte
	forget bool          // now and then it is loaded anew
	turn   chan struct{} // if not nil, it takes one message for each turn it gets, and then rests

	mu     sync.Mutex // guards everything below
	page   page
	nodes  map[string]string // JSON: data by node
	synced bool
	calm   bool // no more cuts
	sight  fleet.Sight
	line   net.Conn // the connection that is open
	conns  int
	events int
	wrong  error
}

// fragile is a connection that breaks after some bytes, in the middle of whatever they belong to.
type fragile struct {
	io.Reader
	left int
}

var errCut = errors.New("the connection broke")

func (f *fragile) Read(b []byte) (int, error) {
	if f.left == 0 {
		return 0, errCut
	}
	n, err := f.Reader.Read(b[:min(len(b), f.left)])
	f.left -= n
	return n, err
}

// tube is a response that is read as it is written, with nothing in between: a client that does not read is one that
// the server waits for.
type tube struct {
	net.Conn
	h http.Header
}

func (p *tube) Header() http.Header { return p.h }
func (p *tube) WriteHeader(int)     {}
func (p *tube) Flush()              {}

// dial opens the stream of a query. The connection is over when hang up has returned.
func (c *watcher) dial(ctx context.Context, q *Query, since string) (conn net.Conn, hangUp func()) {
	ctx, cancel := context.WithCancel(ctx)
	conn, far := net.Pipe()
	done := make(chan struct{})
	ns := NodeStream{Viewer: Viewer{Session: fmt.Sprint(c.r.Int()), Lang: "en", Since: since}, Query: q}
	if c.json {
		ns.Format = JSON
	}
	go func() {
		defer close(done)
		defer func() { _ = far.Close() }() // a pipe's close does not fail
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
		if err := c.b.s.Nodes(&tube{far, http.Header{}}, r, ns); err != nil && !errors.Is(err, fleet.ErrNotFound) {
			c.fail(err)
		}
	}()
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	return conn, func() {
		cancel()
		<-done
	}
}

func (c *watcher) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wrong == nil {
		c.wrong = err
	}
}

// rest waits for the client's turn.
func (c *watcher) rest(ctx context.Context) {
	if c.turn == nil {
		return
	}
	select {
	case <-c.turn:
	case <-ctx.Done():
	}
}

func (c *watcher) run(ctx context.Context) {
	lastID, loaded, pageID := "", false, ""
	for ctx.Err() == nil {
		c.mu.Lock()
		c.conns++
		scope := c.scope
		if c.roams && !c.calm {
			scope = scopes[c.r.IntN(len(scopes))]
		}
		c.sight = sightOf(scope)
		q, err := ParseQuery(c.sight, "", c.query)
		if err != nil {
			c.mu.Unlock()
			c.fail(err)
			return
		}
		if c.plant.query != nil {
			c.plant.query(q)
		}
		budget := -1
		if c.cut && !c.calm {
			budget = 1 + c.r.IntN(1<<(6+c.r.IntN(13)))
		}
		if !c.json && !loaded {
			// The page is rendered, and the stream goes on where it was.
			w := c.b.m.Window(q, "en")
			c.page.load(w)
			lastID, pageID, loaded = w.Cursor, w.Cursor, true
		}
		since := lastID
		switch c.r.IntN(8) {
		case 0: // it does not say what it has
			since = ""
			if c.json { // the whole state comes, and it has to begin with nothing
				c.nodes, c.synced, lastID = map[string]string{}, false, ""
			}
		case 1: // it says what its URL has
			if !c.json {
				since = pageID
			}
		}
		if c.plant.resume != nil {
			since = c.plant.resume(c.b.m, since)
		}
		c.mu.Unlock()
		conn, hangUp := c.dial(ctx, q, since)
		c.mu.Lock()
		c.line = conn
		stale := c.roams && c.calm && scope != c.scope // it became calm just now
		c.mu.Unlock()
		if stale {
			hangUp()
			continue
		}
		in := io.Reader(conn)
		if budget > 0 {
			in = &fragile{conn, budget}
		}
		r := reader{in: bufio.NewReaderSize(in, 512)}
		got := 0
		for {
			e, err := r.next()
			if err != nil {
				break
			}
			got++
			lastID = e.id
			c.take(e)
			c.rest(ctx)
		}
		hangUp()
		if got == 0 { // the cluster of the query is away, or the line is very bad
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
		}
		c.rest(ctx)
		if c.forget && c.r.IntN(4) == 0 {
			lastID, loaded = "", false
			c.mu.Lock()
			c.nodes, c.synced = map[string]string{}, false
			c.mu.Unlock()
		}
	}
}

func (c *watcher) take(e got) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events++
	if c.plant.wire != nil && !c.plant.wire(&e) {
		return
	}
	if c.wrong == nil {
		c.wrong = c.leaks(e)
	}
	if err := c.apply(e); err != nil && c.wrong == nil {
		c.wrong = err
	}
}

// leaks tells whether an event names a cluster that the client does not see.
func (c *watcher) leaks(e got) error {
	for _, name := range clusterNames {
		if c.sight.Sees(name) {
			continue
		}
		for _, s := range []string{`id="n-` + name + `-`, `id="g-` + name + `"`, `id="` + name + `"`, `"cluster_name":"` + name + `"`, `"` + name + `":`} {
			if strings.Contains(e.data, s) {
				return fmt.Errorf("out of sight, and here it is: %.200s", e.data)
			}
		}
	}
	return nil
}

func (c *watcher) apply(e got) error {
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

// truth is what a query shows, worked out from every node there is and nothing that was kept up to date on the way.
type truth struct {
	Lines  []string // of the page, in order
	Items  []string // JSON of all, in order
	Nodes  map[string]string
	Counts Counts
	Groups []Group
	Page   int
	Pages  int
}

func (w *world) truth(q *Query) truth {
	all := truth{Nodes: map[string]string{}}
	var nodes []*version
	for ref := range w.nodes {
		if _, ver := w.b.m.board(ref.Cluster).node(ref.Name); ver != nil && q.Match(ver.node) {
			nodes = append(nodes, ver)
		}
	}
	slices.SortFunc(nodes, func(a, b *version) int {
		if q.group != nil {
			if c := q.group.between(q.group.of(a.node), q.group.of(b.node)); c != 0 {
				return c
			}
		}
		return q.cmp(a, b)
	})
	all.Pages = max(1, (len(nodes)+q.PerPage-1)/q.PerPage)
	all.Page = min(q.Page, all.Pages)
	for _, ver := range nodes {
		n := ver.node
		b, err := fleet.NodeJSON(n)
		if err != nil {
			w.b.t.Fatal(err)
		}
		all.Items = append(all.Items, string(b))
		all.Nodes[n.Ref.String()] = string(b)
		var g Group
		add := func(of *int, is bool) {
			if is {
				*of++
			}
		}
		if q.group != nil {
			value := q.group.of(n)
			if k := len(all.Groups); k == 0 || all.Groups[k-1].Value != value {
				all.Groups = append(all.Groups, Group{By: q.Group, Value: value})
			}
			g = all.Groups[len(all.Groups)-1]
		}
		for _, c := range []struct {
			is bool
			of [2]*int
		}{
			{true, [2]*int{&all.Counts.Total, &g.Nodes}},
			{n.Status == fleet.StatusReady, [2]*int{&all.Counts.Ready, &g.Ready}},
			{n.Status == fleet.StatusNotReady, [2]*int{&all.Counts.NotReady, &g.NotReady}},
			{n.Status == fleet.StatusUnknown, [2]*int{&all.Counts.Unknown, &g.Unknown}},
			{!n.Schedulable, [2]*int{&all.Counts.Cordoned, &g.Cordoned}},
			{len(n.Pressure) > 0, [2]*int{&all.Counts.Pressure, &g.Pressure}},
		} {
			add(c.of[0], c.is)
			add(c.of[1], c.is)
		}
		g.CPUMilli += n.Allocatable.CPUMilli
		g.MemoryBytes += n.Allocatable.MemoryBytes
		g.Pods += n.Allocatable.Pods
		if q.group != nil {
			all.Groups[len(all.Groups)-1] = g
		}
	}
	shown := nodes[(all.Page-1)*q.PerPage : min(all.Page*q.PerPage, len(nodes))]
	for i, ver := range shown {
		if q.group != nil && (i == 0 || q.group.of(ver.node) != q.group.of(shown[i-1].node)) {
			for _, g := range all.Groups {
				if g.Value == q.group.of(ver.node) {
					all.Lines = append(all.Lines, string(oneLine(plain{}.GroupRow(g, "en"))))
				}
			}
		}
		all.Lines = append(all.Lines, string(oneLine(plain{}.NodeRow(ver.node, "en"))))
	}
	return all
}

// differs says how what the client shows, the list page and the list for programs differ from the truth and from each
// other, "" if not at all.
func (c *watcher) differs(w *world) string {
	q, err := ParseQuery(sightOf(c.scope), "", c.query)
	if err != nil {
		return err.Error()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wrong != nil {
		return c.wrong.Error()
	}
	want := w.truth(q)
	win := c.b.m.Window(q, "en")
	var list page
	list.load(win)
	want.Counts.Waiting = win.Counts.Waiting // no cluster of this world ever had a list
	got := truth{Nodes: want.Nodes, Counts: win.Counts, Groups: win.Groups, Page: win.Page, Pages: win.Pages}
	for _, row := range win.Lines() {
		got.Lines = append(got.Lines, string(row))
	}
	all := c.b.m.List(q, false)
	for item := range all.Items {
		got.Items = append(got.Items, string(item))
	}
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		return "the list: " + d
	}
	if d := cmp.Diff(want.Groups, all.Groups, cmpopts.EquateEmpty()); d != "" {
		return "the groups of the list for programs: " + d
	}
	if c.json {
		if !c.synced {
			return "not synced"
		}
		return cmp.Diff(want.Nodes, c.nodes)
	}
	if d := cmp.Diff(list.ids, c.page.ids, cmpopts.EquateEmpty()); d != "" {
		return "order: " + d
	}
	if d := cmp.Diff(list.rows, c.page.rows); d != "" {
		return "rows: " + d
	}
	if d := cmp.Diff(list.counts, c.page.counts); d != "" {
		return "counts: " + d
	}
	for name, badge := range list.badges {
		if c.page.badges[name] != badge {
			return "badge: got " + c.page.badges[name] + ", want " + badge
		}
	}
	return ""
}

// differs says how the cache differs from the clusters, "" if not at all.
func (w *world) differs() string {
	q, err := ParseQuery(fleet.SeesAll(), "", nil)
	if err != nil {
		return err.Error()
	}
	got := map[fleet.NodeRef]string{}
	for _, ref := range w.b.m.Matching(q, 1<<20) {
		n, err := w.b.m.Node(ref)
		if err != nil {
			return err.Error()
		}
		got[ref] = n.UID + " " + n.ResourceVersion
	}
	want := map[fleet.NodeRef]string{}
	for ref, s := range w.nodes {
		want[ref] = s.uid + " " + strconv.Itoa(s.rv)
	}
	return cmp.Diff(want, got)
}

// TestModel_ClientsConverge drives random histories against random views, with slow readers, cuts at any byte and
// reconnects with and without a cursor, and compares what every client shows with what the lists say, and the lists
// with the truth, once it is quiet. Time is the bubble's, so that quiet is a fact and not a guess.
func TestModel_ClientsConverge(t *testing.T) {
	t.Parallel()
	seeds, steps := 4, 1000
	if testing.Short() {
		seeds, steps = 2, 500
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			if d := converge(t, uint64(seed), steps, plant{}); d != "" {
				t.Error(d)
			}
		})
	}
}

// converge runs one history and says what is wrong at its end, "" for nothing.
func converge(t *testing.T, seed uint64, steps int, p plant) (wrong string) {
	synctest.Test(t, func(t *testing.T) { wrong = play(t, seed, steps, p) })
	return wrong
}

func play(t *testing.T, seed uint64, steps int, p plant) string {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	mc := ManagerConfig{Tombstones: 8, IdleViews: 2, Logger: newAlarm(t), Render: plain{}}
	if p.name != "" {
		mc.Logger = quietLog // what a planted bug makes the product say is no failure
	}
	if p.render != nil {
		mc.Render = p.render()
	}
	b := &bench{t: t, m: NewManager(mc)}
	for _, name := range clusterNames {
		b.add(name)
	}
	b.s = NewStreamer(StreamerConfig{Manager: b.m, Render: mc.Render, Logger: mc.Logger, PerSession: 1 << 20, PerUser: 1 << 20})
	wg.Go(func() {
		if err := b.m.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	synctest.Wait()

	r := rand.New(rand.NewPCG(seed, 1))
	w := &world{b: b, r: r, plant: p, nodes: map[fleet.NodeRef]spec{}, down: map[string]bool{}}
	for range 120 {
		w.step()
	}
	texts := []string{"", "", "status:Ready", "cordoned:true", "-status:Ready", "label:v=1", "n1", `zone:z1 "n"`, "status:NotReady,Unknown"}
	groupsOf := []string{"", "zone", "zone", "status", "cluster", "label:v", "label:v", "version"}
	var clients []*watcher
	for i := range 20 {
		q := url.Values{"per_page": {"20"}, "page": {strconv.Itoa(1 + r.IntN(3))}, "q": {texts[r.IntN(len(texts))]}}
		q.Set("sort", []string{"name", "-name", "status", "zone", "-cluster", "age"}[r.IntN(6)])
		q.Set("group", groupsOf[r.IntN(len(groupsOf))])
		if r.IntN(3) == 0 {
			q.Set("cluster", clusterNames[r.IntN(2)])
		}
		c := &watcher{
			b: b, plant: p, query: q, json: i%3 == 0, r: rand.New(rand.NewPCG(seed, uint64(i+2))), forget: i%4 < 2, cut: i%5 < 4,
			nodes: map[string]string{}, scope: scopes[r.IntN(len(scopes))],
		}
		if q.Get("cluster") != "" { // it must be there for the end to be compared
			c.scope = "*"
		}
		c.roams = c.json && r.IntN(2) == 0
		if i%7 < 3 {
			c.turn = make(chan struct{})
		}
		if p.shape != nil {
			p.shape(c)
		}
		clients = append(clients, c)
		wg.Go(func() { c.run(ctx) })
	}
	for range steps {
		w.step()
		if p.poke != nil {
			p.poke(w)
		}
		if c := clients[r.IntN(len(clients))]; c.turn != nil {
			select {
			case c.turn <- struct{}{}:
			default: // it is busy
			}
		}
		switch r.IntN(12) {
		case 0, 1, 2: // everybody may finish what they can without time passing
			synctest.Wait()
		case 3:
			<-time.After(rand.N(500 * time.Millisecond))
		}
	}
	for _, name := range clusterNames {
		if w.down[name] {
			w.toggle(name)
		}
	}
	for range 50 {
		w.step() // a little more, so that what came back has nodes
	}
	for _, name := range clusterNames {
		if w.down[name] {
			w.toggle(name)
		}
	}
	for _, c := range clients {
		c.mu.Lock()
		c.calm = true
		if c.roams && c.line != nil { // as the end of the session does when a person is given other grants
			_ = c.line.Close() // a pipe's close does not fail
		}
		c.mu.Unlock()
		if c.turn != nil {
			close(c.turn)
		}
	}
	<-time.After(2 * time.Minute)
	synctest.Wait()
	if p.late != nil {
		p.late(w)
	}
	if d := w.differs(); d != "" {
		return "the cache differs from the clusters (-want +got): " + d
	}
	conns, events := 0, 0
	for i, c := range clients {
		if d := c.differs(w); d != "" {
			return fmt.Sprintf("client %d (json %t, %d connections, %s) (-want +got): %s", i, c.json, c.conns, c.query.Encode(), d)
		}
		conns, events = conns+c.conns, events+c.events
	}
	if p.name == "" {
		t.Logf("%d steps, %d clients, %d connections, %d events", steps, len(clients), conns, events)
	}
	return ""
}

// plant is a bug, planted at a seam that is there anyway or in what a view remembers.
type plant struct {
	name   string
	lose   bool                             // some deletions are not told to the board
	ghosts bool                             // relists bring back what is gone
	hide   func(*board, *corev1.Node) error // how some changes come to the board
	render func() Renderer                  // the product's renderer
	shape  func(*watcher)                   //  what clients are like
	query  func(*Query)                     // what comes of a query on its way to its view
	wire   func(*got) bool                  // what comes of a message on its way to the client; false: nothing
	resume func(*Manager, string) string    // what comes of the cursor on its way back
	poke   func(*world)                     // called after every step
	late   func(*world)                     // called when it is quiet
}

func (p plant) deaf(r *rand.Rand) bool { return p.lose && r.IntN(10) == 0 }

// eachView calls f with every view that is remembered, locked.
func (w *world) eachView(f func(*view)) {
	m := w.b.m
	m.viewsMu.Lock()
	views := slices.Collect(maps.Values(m.views))
	m.viewsMu.Unlock()
	for _, v := range views {
		func() {
			v.mu.Lock()
			defer v.mu.Unlock()
			f(v)
		}()
	}
}

// stale is a renderer that renders everything once.
type stale struct {
	plain
	mu     sync.Mutex
	groups map[string][]byte
	nodes  map[fleet.NodeRef][]byte
}

func (s *stale) GroupRow(g Group, lang string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.groups == nil {
		return s.plain.GroupRow(g, lang)
	}
	if _, ok := s.groups[g.Value]; !ok {
		s.groups[g.Value] = s.plain.GroupRow(g, lang)
	}
	return s.groups[g.Value]
}

func (s *stale) NodeRow(n *fleet.Node, lang string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nodes == nil {
		return s.plain.NodeRow(n, lang)
	}
	if _, ok := s.nodes[n.Ref]; !ok {
		s.nodes[n.Ref] = s.plain.NodeRow(n, lang)
	}
	return s.nodes[n.Ref]
}

// without cuts what the pattern finds out of every unnamed message.
func without(part func(row string) bool) func(*got) bool {
	return func(e *got) bool {
		if e.name != "" {
			return true
		}
		rows := strings.SplitAfter(e.data, "</tr>")
		rows = slices.DeleteFunc(rows, part)
		e.data = strings.Join(rows, "")
		return true
	}
}

// TestModel_CatchesPlantedBugs plants one bug in each mechanism and sees the model catch it within a few histories.
func TestModel_CatchesPlantedBugs(t *testing.T) {
	t.Parallel()
	for _, planted := range []func() plant{
		func() plant { return plant{name: "board: a deletion is not taken", lose: true} },
		func() plant {
			return plant{name: "board log: a change does not move its node", hide: func(b *board, n *corev1.Node) error {
				a := b.convert(n)
				b.mu.Lock()
				defer b.mu.Unlock()
				b.put(a.node, a.full)
				s := b.slots[a.node.Ref.Name]
				s.prev.next, s.next.prev = s.next, s.prev
				s.rev, s.prev, s.next = 1, &b.head, b.head.next
				b.head.next.prev, b.head.next = s, s
				return a.err
			}}
		},
		func() plant { return plant{name: "relist: what the list does not name stays", ghosts: true} },
		func() plant {
			return plant{name: "tombstones: forgotten ones are not noted", poke: func(w *world) {
				for _, b := range w.b.m.all() {
					b.mu.Lock()
					b.purged = 0
					b.mu.Unlock()
				}
				w.eachView(func(v *view) { v.purged = 0 })
			}}
		},
		func() plant {
			return plant{name: "view: a node that stops to match stays a member", query: func(q *Query) {
				for i, t := range q.terms {
					var was sync.Map // the terms of a query serve several views
					q.terms[i].match = func(n *fleet.Node) bool {
						if t.match(n) {
							was.Store(n.Ref, true)
						}
						_, ok := was.Load(n.Ref)
						return ok
					}
				}
			}}
		},
		func() plant {
			return plant{name: "view: a member that left is not taken away", wire: without(func(row string) bool {
				return strings.Contains(row, `hx-swap-oob="delete"`)
			})}
		},
		func() plant {
			return plant{name: "order: the column is not looked at", query: func(q *Query) { q.cmp = byName }}
		},
		func() plant {
			return plant{name: "order: it is not sent", wire: func(e *got) bool { return e.name != "order" }}
		},
		func() plant {
			return plant{name: "groups: sums are not followed", late: func(w *world) {
				w.eachView(func(v *view) {
					for _, h := range v.sums.by {
						h.Ready++
					}
				})
			}}
		},
		func() plant {
			return plant{name: "groups: a header is not sent again", wire: without(func(row string) bool {
				return strings.HasPrefix(row, `<tr hx-swap-oob="outerMorph" id="g-`)
			})}
		},
		func() plant {
			return plant{name: "groups: a header is rendered once for ever", render: func() Renderer {
				return &stale{groups: map[string][]byte{}}
			}}
		},
		func() plant {
			return plant{name: "rows: a node is rendered once for ever", render: func() Renderer {
				return &stale{nodes: map[fleet.NodeRef][]byte{}}
			}}
		},
		func() plant {
			return plant{name: "cursor: a client goes on where the server is", resume: func(m *Manager, since string) string {
				if since == "" {
					return ""
				}
				return m.cursor(m.clock.Load(), "")
			}}
		},
		func() plant {
			kept := map[*pane]map[memoKey][]frame{}
			return plant{name: "memo: it is never forgotten", poke: func(w *world) {
				w.eachView(func(v *view) {
					v.sync()
					for _, p := range v.panes {
						if kept[p] == nil {
							kept[p] = map[memoKey][]frame{}
						}
						for k, frames := range p.memo {
							if _, ok := kept[p][k]; !ok {
								kept[p][k] = frames
							}
						}
						p.memo = kept[p]
					}
				})
			}}
		},
		func() plant {
			return plant{name: "partial ids: taken for cursors", resume: func(_ *Manager, since string) string {
				return strings.TrimSuffix(since, "p")
			}}
		},
		func() plant {
			return plant{name: "sight: everybody shares one view", query: func(q *Query) { q.sight, q.tag = fleet.SeesAll(), "" }}
		},
		func() plant {
			return plant{name: "sight: a cursor is good for every sight", query: func(q *Query) { q.tag = "" }}
		},
		func() plant {
			return plant{
				name:  "ids of a catch-up: their base is dropped",
				shape: func(c *watcher) { c.json, c.cut = true, true },
				resume: func(_ *Manager, since string) string {
					since, _, _ = strings.Cut(since, "-")
					return since
				},
			}
		},
	} {
		t.Run(planted().name, func(t *testing.T) {
			t.Parallel()
			const seeds = 40
			for seed := range uint64(seeds) {
				if d := converge(t, seed, 300, planted()); d != "" {
					t.Logf("caught with seed %d: %.300s", seed, d)
					return
				}
			}
			t.Errorf("not caught by any of %d histories", seeds)
		})
	}
}
