package realtime

import (
	"maps"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// facet is a property of nodes that common filters ask for with equality.
type facet uint8

const (
	facetAny facet = iota // what every node has
	facetZone
	facetRole
	facetType
	facetStatus
	facetCordoned
	facetVersion
	facetName
)

// trait is one property of a node: the key of the board's index, and of the routes from a change to the views that may
// show it.
type trait struct {
	facet facet
	value string
}

// traits calls f with everything of a node that the index knows. A node without a zone, type or role has the empty
// one, which can be asked for too.
func traits(n *fleet.Node, f func(trait)) {
	f(trait{facetZone, n.Zone()})
	f(trait{facetType, n.InstanceType()})
	f(trait{facetVersion, n.Info.KubeletVersion})
	f(trait{facetStatus, string(n.Status)})
	if len(n.Pressure) > 0 {
		f(trait{facetStatus, statusPressure})
	}
	f(cordonedTrait(!n.Schedulable))
	for _, r := range n.Roles {
		f(trait{facetRole, r})
	}
	if len(n.Roles) == 0 {
		f(trait{facet: facetRole})
	}
}

func cordonedTrait(cordoned bool) trait {
	if cordoned {
		return trait{facetCordoned, "true"}
	}
	return trait{facetCordoned, "false"}
}

// index finds the nodes of one board by trait, and says which values occur.
type index map[trait]map[*slot]struct{}

func (x index) add(s *slot, n *fleet.Node) {
	traits(n, func(t trait) {
		set := x[t]
		if set == nil {
			set = map[*slot]struct{}{}
			x[t] = set
		}
		set[s] = struct{}{}
	})
}

func (x index) remove(s *slot, n *fleet.Node) {
	traits(n, func(t trait) {
		if delete(x[t], s); len(x[t]) == 0 {
			delete(x, t)
		}
	})
}

// size is how many nodes have one of the traits, at most.
func (x index) size(any []trait) (n int) {
	for _, t := range any {
		n += len(x[t])
	}
	return n
}

// touched is what the changes since the last look concerned: the traits of nodes before and after.
type touched struct {
	all    bool // the cluster itself: its state, or all of its nodes
	traits map[trait]struct{}
}

func (t *touched) node(n *fleet.Node) {
	if t.all {
		return
	}
	if t.traits == nil {
		t.traits = map[trait]struct{}{}
	}
	// Beyond this many it is cheaper to look at every view than to look up every trait.
	if len(t.traits) > maxTouched {
		t.all, t.traits = true, nil
		return
	}
	t.traits[trait{facetName, n.Ref.Name}] = struct{}{}
	traits(n, func(x trait) { t.traits[x] = struct{}{} })
}

const maxTouched = 1024

// take returns what was touched since the last take. It is one load if nothing was.
func (b *board) take() (touched, bool) {
	if !b.dirty.Swap(false) {
		return touched{}, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.touched
	b.touched = touched{}
	return t, true
}

// route is where a view stands in wait: it is looked at when a node with the trait changes in the cluster.
type route struct {
	cluster string // "" for all
	trait   trait
}

// routes leads from what was touched to the views that may show it, so that a change costs the views which can see it
// and no others.
type routes map[route]map[*view]struct{}

// routes are where the views of a query wait: those of its most telling term that asks for equality.
func (q *Query) routes() []route {
	if q.blind() {
		return nil // or it would keep a cluster awake that it may not know of
	}
	any := q.telling()
	if any == nil {
		any = []trait{{facet: facetAny}}
	}
	out := make([]route, len(any))
	for i, t := range any {
		out[i] = route{q.Cluster, t}
	}
	return out
}

// telling is the traits of which every node that the query selects has one, from the term that usually selects least;
// nil if no term says such a thing.
func (q *Query) telling() (best []trait) {
	if q.only != nil {
		return []trait{{facetName, q.only.Name}}
	}
	rank := facetName
	for _, t := range q.terms {
		if !t.not && len(t.any) > 0 && t.any[0].facet < rank {
			best, rank = t.any, t.any[0].facet
		}
	}
	return best
}

func (r routes) add(v *view) {
	for _, at := range v.q.routes() {
		set := r[at]
		if set == nil {
			set = map[*view]struct{}{}
			r[at] = set
		}
		set[v] = struct{}{}
	}
}

func (r routes) remove(v *view) {
	for _, at := range v.q.routes() {
		if delete(r[at], v); len(r[at]) == 0 {
			delete(r, at)
		}
	}
}

// collect adds the views that what was touched in a cluster may concern.
func (r routes) collect(cluster string, t touched, into map[*view]struct{}) {
	for _, c := range [...]string{cluster, ""} {
		maps.Copy(into, r[route{c, trait{facet: facetAny}}])
		for x := range t.traits {
			maps.Copy(into, r[route{c, x}])
		}
	}
	if !t.all {
		return
	}
	for at, views := range r {
		if at.cluster == cluster || at.cluster == "" {
			maps.Copy(into, views)
		}
	}
}
