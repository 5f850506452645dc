package realtime

import (
	"cmp"
	"slices"
	"strings"
	"sync"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// item is one node in a view's log: a member, or one that was and is not any more.
type item struct {
	ref        fleet.NodeRef
	ver        *version // nil: not a member
	rev        uint64   // its place in the log
	entered    uint64   // revision at which it became a member
	prev, next *item

	value  string   // the group it belongs to, of the version valued
	valued *version // nil: not worked out
}

// goner remembers the order in which members went; it is stale if the item has moved on.
type goner struct {
	item *item
	rev  uint64
}

// view is what a query shows, shared by everybody who asks the same, whatever the page. It follows the boards
// incrementally: a change costs one look at the predicate and one move in the order, however many people watch.
type view struct {
	key string
	q   *Query
	m   *Manager

	users int // guarded by Manager.viewsMu
	used  uint64
	loose bool // not kept by the manager, for there are too many; it goes with its user

	mu        sync.Mutex // guards everything below; taken before the locks of manager and boards
	counted   int64      // of items, in the manager's sum
	rev       uint64     // everything up to here is in
	purged    uint64     // what went at or before this revision may be forgotten
	topology  uint64     // which set of boards rev is about
	boards    map[string]*board
	seen      map[string]*board // what the query sees of the boards of a topology; never changed in place
	seenAt    uint64            // that topology
	items     map[fleet.NodeRef]*item
	head      item // ring in order of rev
	gone      []goner
	dead      int
	order     []*item // members in the query's order
	orderRev  uint64  // last time the order or the membership moved
	counts    Counts
	countsRev uint64
	sums      sums        // of the groups
	clusters  []clusterAt // in order of name
	panes     map[pageKey]*pane
	sig       chan struct{} // closed and replaced when the log moves
	snap      []*version    // members in order, nil when outdated
	jsonMemo  map[jsonKey]frame
}

type pageKey struct{ page, perPage int }

// window is the rows of one page at one moment; it never changes.
type window struct {
	page  int // the page shown; the last one if a later one was asked
	refs  []fleet.NodeRef
	heads []head // of the groups, in order
	set   map[fleet.NodeRef]struct{}
}

// pane is one page of a view that somebody watches.
type pane struct {
	key   pageKey
	users int
	win   *window
	rev   uint64 // last time the window's membership or order moved
	sig   chan struct{}
	steps uint64              // times that readers were woken
	memo  map[memoKey][]frame // what to send to whoever stands where; outdated with every signal
}

func newView(m *Manager, q *Query) *view {
	v := &view{
		key: q.viewKey(), q: q, m: m,
		boards: map[string]*board{}, items: map[fleet.NodeRef]*item{}, panes: map[pageKey]*pane{},
		sig: make(chan struct{}),
	}
	v.head.prev, v.head.next = &v.head, &v.head
	return v
}

// sync brings the view up to date. Readers are woken if what they see has changed. mu is held.
func (v *view) sync() {
	if v.m.clock.Load() == v.rev && v.topology != 0 {
		return
	}
	var log []change
	var now moment
	first := v.topology == 0
	before, states := v.counts, v.clusters
	v.m.at(v.pick, func(at moment) {
		now = at
		log = v.changes(at)
		v.clusters = make([]clusterAt, 0, len(at.boards))
		for _, b := range at.boards {
			v.clusters = append(v.clusters, b.at())
		}
	})
	slices.SortStableFunc(log, func(a, b change) int { return cmp.Compare(a.rev, b.rev) })
	slices.SortFunc(v.clusters, func(a, b clusterAt) int { return strings.Compare(a.Name, b.Name) })
	rearranged := now.topology != v.topology
	if first {
		v.purged = max(v.purged, now.removed)
	}
	v.boards, v.topology = now.boards, now.topology

	moved, touched := v.take(log, first)
	v.weigh(len(v.items))
	v.counts.Waiting = len(v.clusters) > 0 && !slices.ContainsFunc(v.clusters, func(c clusterAt) bool { return c.Synced() })
	if moved || first {
		v.orderRev = now.rev
	}
	if before != v.counts || first {
		v.countsRev = now.rev
	}
	v.rev = now.rev
	v.settle()
	if len(touched) > 0 || rearranged {
		v.snap, v.jsonMemo = nil, nil
		close(v.sig)
		v.sig = make(chan struct{})
	}
	wake := before != v.counts || rearranged || !slices.EqualFunc(states, v.clusters, func(a, b clusterAt) bool {
		return a.Name == b.Name && a.rev == b.rev
	})
	for _, p := range v.panes {
		v.refresh(p, touched, wake)
	}
}

// pick is the boards that the query sees. Boards out of its sight are never read for it.
func (v *view) pick(all map[string]*board, topology uint64) map[string]*board {
	if v.q.Cluster == "" && v.q.sight.All() {
		return all
	}
	if v.seen == nil || v.seenAt != topology {
		v.seen, v.seenAt = map[string]*board{}, topology
		for name, b := range all {
			if v.q.Sees(name) {
				v.seen[name] = b
			}
		}
	}
	return v.seen
}

// weigh keeps the manager's sum of items. mu is held.
func (v *view) weigh(items int) {
	v.m.items.Add(int64(items) - v.counted)
	v.counted = int64(items)
}

// changes is everything that happened to the boards since the view's revision. Removals of whole clusters come first,
// so that a cluster of the same name may follow. The boards' locks are held.
func (v *view) changes(at moment) []change {
	var log []change
	for name, old := range v.boards {
		if at.boards[name] != old {
			log = append(log, v.missing(name, nil)...)
		}
	}
	telling := v.q.telling()
	for name, b := range at.boards {
		since := v.rev
		if v.boards[name] != b {
			since = 0
			if part, ok := b.having(telling); ok {
				log = append(log, part...)
				if v.topology == 0 {
					v.purged = at.rev // what left the view before there was one is not known
				}
				continue
			}
		}
		part, complete := b.since(since)
		if !complete {
			if since == 0 {
				v.purged = max(v.purged, b.purged)
			} else {
				log = append(log, v.missing(name, b)...)
			}
		}
		log = append(log, part...)
	}
	return log
}

// missing says of every member of a cluster that the board does not have that it went, right after what the view
// knows.
func (v *view) missing(cluster string, b *board) []change {
	var log []change
	for ref, it := range v.items {
		if ref.Cluster == cluster && it.ver != nil && (b == nil || !b.has(ref.Name)) {
			log = append(log, change{ref: ref, rev: v.rev + 1})
		}
	}
	slices.SortFunc(log, func(a, b change) int { return a.ref.Compare(b.ref) })
	return log
}

// take puts changes into log, order and counters. Moved tells that the order or the membership changed, touched names
// every item that did.
func (v *view) take(log []change, first bool) (moved bool, touched map[fleet.NodeRef]struct{}) {
	touched = make(map[fleet.NodeRef]struct{}, len(log))
	bulk := len(log) > 64 && len(log) > len(v.order)/8
	for _, c := range log {
		it := v.items[c.ref]
		was := it != nil && it.ver != nil
		is := c.ver != nil && v.q.selects(c.ver.node)
		switch {
		case was && is:
			if it.ver == c.ver {
				continue
			}
			if c.ver.added != it.ver.added {
				it.entered = c.rev // another node of the same name
			}
			v.count(it.ver.node, -1)
			v.count(c.ver.node, 1)
			switch {
			case bulk:
				it.ver = c.ver
			case v.reposition(it, c.ver):
				moved = true
			}
		case is:
			if it == nil {
				it = &item{ref: c.ref}
				v.items[c.ref] = it
			} else {
				v.dead--
			}
			it.ver, it.entered = c.ver, c.rev
			if first && v.q.all() {
				it.entered = c.ver.added
			}
			v.count(c.ver.node, 1)
			if !bulk {
				v.insert(it)
			}
			moved = true
		case was:
			v.count(it.ver.node, -1)
			if !bulk {
				v.cut(it)
			}
			it.ver = nil
			v.append(it, c.rev)
			v.bury(it)
			touched[c.ref], moved = struct{}{}, true
			continue
		case first:
			// Whether somebody who comes back with a cursor had this one is not known; a deletion too much does no harm.
			it = &item{ref: c.ref}
			v.items[c.ref] = it
			v.append(it, c.rev)
			v.bury(it)
			continue
		default:
			continue
		}
		touched[c.ref] = struct{}{}
		v.append(it, c.rev)
	}
	v.forget()
	if bulk {
		v.order = v.order[:0]
		for _, it := range v.items {
			if it.ver != nil {
				v.order = append(v.order, it)
			}
		}
		slices.SortFunc(v.order, v.compare)
		moved = true
	}
	return moved, touched
}

// compare puts groups first, and orders the members of each by the query's sort.
func (v *view) compare(a, b *item) int {
	if v.q.group != nil {
		if c := v.q.group.between(v.value(a), v.value(b)); c != 0 {
			return c
		}
	}
	return v.q.cmp(a.ver, b.ver)
}

func (v *view) find(it *item) (int, bool) { return slices.BinarySearchFunc(v.order, it, v.compare) }

func (v *view) insert(it *item) {
	i, _ := v.find(it)
	v.order = slices.Insert(v.order, i, it)
}

func (v *view) cut(it *item) {
	if i, ok := v.find(it); ok {
		v.order = slices.Delete(v.order, i, i+1)
	}
}

// reposition gives an item its new version and moves it in the order if it has to.
func (v *view) reposition(it *item, ver *version) bool {
	i, ok := v.find(it)
	regrouped := v.regroups(it.ver, ver)
	it.ver = ver
	if !ok {
		v.insert(it)
		return true
	}
	if (i == 0 || v.compare(v.order[i-1], it) < 0) && (i == len(v.order)-1 || v.compare(it, v.order[i+1]) < 0) {
		return regrouped // in its old place, it may have come under another header
	}
	v.order = slices.Delete(v.order, i, i+1)
	v.insert(it)
	return true
}

func (v *view) append(it *item, rev uint64) {
	if it.prev != nil {
		it.prev.next, it.next.prev = it.next, it.prev
	}
	it.rev = rev
	it.prev, it.next = v.head.prev, &v.head
	v.head.prev.next, v.head.prev = it, it
}

// bury notes that an item is not a member, for those who come back and may still show it.
func (v *view) bury(it *item) {
	v.gone = append(v.gone, goner{it, it.rev})
	v.dead++
}

// forget drops the oldest of those that went, beyond the limit.
func (v *view) forget() {
	limit := v.m.cfg.Tombstones
	for v.dead > limit {
		g := v.gone[0]
		v.gone = v.gone[1:]
		if g.item.ver != nil || g.item.rev != g.rev {
			continue // it came back since
		}
		g.item.prev.next, g.item.next.prev = g.item.next, g.item.prev
		g.item.prev, g.item.next = nil, nil
		delete(v.items, g.item.ref)
		v.dead--
		v.purged = max(v.purged, g.rev)
	}
	if len(v.gone) > 2*limit+16 {
		v.gone = slices.DeleteFunc(v.gone, func(g goner) bool { return g.item.ver != nil || g.item.rev != g.rev })
	}
}

func (v *view) count(n *fleet.Node, by int) {
	v.sum(n, by)
	v.counts.Total += by
	switch n.Status {
	case fleet.StatusReady:
		v.counts.Ready += by
	case fleet.StatusNotReady:
		v.counts.NotReady += by
	default:
		v.counts.Unknown += by
	}
	if !n.Schedulable {
		v.counts.Cordoned += by
	}
	if len(n.Pressure) > 0 {
		v.counts.Pressure += by
	}
}

// refresh brings a pane's window up to date and wakes its readers if they would see a difference.
func (v *view) refresh(p *pane, touched map[fleet.NodeRef]struct{}, wake bool) {
	if v.shows(p.win, p.key) {
		wake = wake || v.resummed(p.win)
		if !wake {
			for ref := range touched {
				if _, wake = p.win.set[ref]; wake {
					break
				}
			}
		}
	} else {
		p.win, p.rev, wake = v.window(p.key), v.rev, true
	}
	if wake {
		p.memo = nil
		p.steps++
		close(p.sig)
		p.sig = make(chan struct{})
	}
}

func (v *view) pages(perPage int) int { return max(1, (len(v.order)+perPage-1)/perPage) }

// slice is the members on a page; the last page if a later one is asked.
func (v *view) slice(k pageKey) (page int, items []*item) {
	page = min(k.page, v.pages(k.perPage))
	from := (page - 1) * k.perPage
	return page, v.order[from:min(from+k.perPage, len(v.order))]
}

// shows tells whether a window is what the page is now.
func (v *view) shows(w *window, k pageKey) bool {
	page, items := v.slice(k)
	if w.page != page || len(w.refs) != len(items) {
		return false
	}
	for i, it := range items {
		if w.refs[i] != it.ref {
			return false
		}
	}
	return slices.Equal(w.heads, v.heads(items))
}

func (v *view) window(k pageKey) *window {
	page, items := v.slice(k)
	w := &window{
		page: page, refs: make([]fleet.NodeRef, len(items)), heads: v.heads(items), set: make(map[fleet.NodeRef]struct{}, len(items)),
	}
	for i, it := range items {
		w.refs[i] = it.ref
		w.set[it.ref] = struct{}{}
	}
	return w
}

// watch opens a page for a reader.
func (v *view) watch(k pageKey) *pane {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.sync()
	p := v.panes[k]
	if p == nil {
		// The order has not moved since orderRev, so the page has not either.
		p = &pane{key: k, win: v.window(k), rev: v.orderRev, sig: make(chan struct{})}
		v.panes[k] = p
	}
	p.users++
	return p
}

func (v *view) unwatch(p *pane) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if p.users--; p.users == 0 {
		delete(v.panes, p.key)
	}
}

// snapshot is every member in order.
func (v *view) snapshot() []*version {
	if v.snap == nil {
		v.snap = make([]*version, len(v.order))
		for i, it := range v.order {
			v.snap[i] = it.ver
		}
	}
	return v.snap
}

// since returns the items that moved after a revision, oldest first: about limit of them, and never only some of those
// that share a revision, so that the last one's revision is a cursor.
func (v *view) since(rev uint64, limit int) []item {
	first := &v.head
	for it := v.head.prev; it != &v.head && it.rev > rev; it = it.prev {
		first = it
	}
	var out []item
	for it := first; it != &v.head && (len(out) < limit || it.rev == out[len(out)-1].rev); it = it.next {
		out = append(out, *it)
	}
	return out
}
