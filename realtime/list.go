package realtime

import "iter"

// List is the nodes of a query as JSON, read in one step with its cursor.
type List struct {
	Cursor      string // epoch.revision: where a stream of the same query goes on without a gap
	Revision    uint64
	Total       int // nodes that match, on every page
	Page, Pages int
	Groups      []Group          // every group of the query in order, shared, read-only; nil if it is not grouped
	Items       iter.Seq[[]byte] // the JSON of each node as streams send it; shared, read-only
}

// List is every node that the query matches, or one page of them. A node's JSON is encoded at most once for each of
// its visible states, so that a list costs no more than writing it; what a heartbeat moved since is in Node alone.
func (m *Manager) List(q *Query, paged bool) List {
	v := m.acquire(q)
	defer m.release(v)
	l, nodes := v.list(q, paged)
	l.Cursor = v.cursor(l.Revision)
	l.Items = func(yield func([]byte) bool) {
		for _, ver := range nodes {
			if !yield(m.render.json(ver)) {
				return
			}
		}
	}
	return l
}

// list is everything of a list that has to be of one moment.
func (v *view) list(q *Query, paged bool) (List, []*version) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.sync()
	page, items := v.slice(pageKey{q.Page, q.PerPage})
	l := List{Revision: v.rev, Total: len(v.order), Page: page, Pages: v.pages(q.PerPage), Groups: v.groups()}
	if !paged {
		return l, v.snapshot()
	}
	nodes := make([]*version, len(items))
	for i, it := range items {
		nodes[i] = it.ver
	}
	return l, nodes
}
