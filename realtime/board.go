package realtime

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// slot is one node in a board's change log. It stands in the log once, at its last visible change or its deletion.
type slot struct {
	name       string
	rev        uint64
	ver        *version // nil: deleted
	prev, next *slot

	// newest is never older than ver.node and of the same revision, or the slot is about to move; heartbeats go here.
	newest atomic.Pointer[fleet.Node]
	full   kube.Packed
	// ahead is the resource version of an own write's answer that the watch has not caught up with, 0 if none. attempt
	// is the list that was running then.
	ahead   uint64
	attempt uint64
	wrote   time.Time // when the answer of ahead came
	size    int64     // about what it costs in memory
}

// tomb remembers the order of deletions; it is stale if the slot has moved on.
type tomb struct {
	slot *slot
	rev  uint64
}

// change is one entry of the log as handed to a view.
type change struct {
	ref fleet.NodeRef
	rev uint64
	ver *version // nil: deleted
}

// board is the smart cache of one cluster and its change log at once. Writers are the cluster's one consumer and the
// answers to own writes; readers copy what they need under the read lock and render outside of it.
type board struct {
	cluster  string
	clock    *atomic.Uint64 // of the whole process; advanced only under mu
	maxTombs int
	notify   func()              // called after every visible change, outside of mu; never blocks
	lag      func(time.Duration) // told how far the watch was behind an own write

	mu        sync.RWMutex // guards everything below, and the slots but for newest
	slots     map[string]*slot
	head      slot // ring in order of rev
	tombs     []tomb
	dead      int    // slots that are tombstones
	purged    uint64 // highest revision of a forgotten tombstone
	attempt   uint64 // number of the list under way or done
	status    fleet.Cluster
	statusRev uint64 // last visible change of status, not of its counters
	countsRev uint64 // last change of the counters
	index     index
	touched   touched // since the feeder looked

	words       *kube.Words  // what nodes have in common, once
	cache       *rowCache    // of the process; nil in tests of a board alone
	bytes       atomic.Int64 // about what the nodes cost in memory, without rendered rows
	looked      atomic.Int64 // unix nanoseconds of the last look at this cluster by itself
	dirty       atomic.Bool  // touched is not empty
	lastEvent   atomic.Int64 // unix nanoseconds
	lastLive    atomic.Int64 // unix nanoseconds of the last complete list
	significant atomic.Uint64
	quiet       atomic.Uint64 // updates that nobody would notice
}

func newBoard(c kube.Cluster, clock *atomic.Uint64, maxTombs int, notify func()) *board {
	b := &board{cluster: c.Name, clock: clock, maxTombs: maxTombs, notify: notify, lag: func(time.Duration) {}, words: kube.NewWords(), slots: map[string]*slot{}, index: index{}}
	b.head.prev, b.head.next = &b.head, &b.head
	b.status = fleet.Cluster{Name: c.Name, Server: c.Server, State: fleet.ClusterConnecting, Since: time.Now()}
	b.statusRev = clock.Add(1) // nobody else knows the board yet
	b.countsRev = b.statusRev
	return b
}

// arrival is a node on its way into the board, with everything done that needs no lock. It stands in for the decoded
// node in the reflector's own collection of a whole list, which would be several times the size.
type arrival struct {
	metav1.ObjectMeta // namespace and name alone: what the reflector asks for

	node *fleet.Node
	full kube.Packed
	err  error // why full is missing
}

// convert strips and converts a node. One that cannot be packed is shown all the same; only its full object is
// missing.
func (b *board) convert(n *corev1.Node) *arrival {
	kube.Strip(n)
	a := &arrival{ObjectMeta: metav1.ObjectMeta{Name: n.Name}, node: b.words.Node(b.cluster, n)}
	a.node.UpdatedAt = time.Now().UTC()
	a.full, a.err = kube.Pack(n)
	return a
}

// apply stores what the watch said about one node.
func (b *board) apply(n *corev1.Node) error { return b.arrive(b.convert(n)) }

func (b *board) arrive(a *arrival) error {
	node := a.node
	rv := numeric(node.ResourceVersion)
	b.touch()
	visible := func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		if s := b.slots[node.Ref.Name]; s != nil && s.ver != nil && s.ahead > 0 {
			if s.ver.node.UID == node.UID && rv > 0 && rv < s.ahead {
				return false // the answer to our own write was newer
			}
			s.ahead = 0
			b.lag(time.Since(s.wrote))
		}
		return b.put(node, a.full)
	}()
	b.done(visible)
	return a.err
}

// remove stores what the watch said about a deletion.
func (b *board) remove(name, uid, rv string) {
	b.touch()
	visible := func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		s := b.slots[name]
		if s == nil || s.ver == nil {
			return false
		}
		if uid != "" && s.ver.node.UID != uid && s.ahead > 0 && numeric(rv) < s.ahead {
			return false // an older namesake of a node that we wrote to since
		}
		b.drop(s)
		return true
	}()
	if visible {
		b.significant.Add(1)
		b.notify()
	}
}

// replace makes the board what a complete list says: what the list does not name is gone.
func (b *board) replace(all []*arrival) error {
	names := make(map[string]struct{}, len(all))
	var failed error
	for _, a := range all {
		if a.err != nil {
			failed = a.err
		}
		names[a.node.Ref.Name] = struct{}{}
	}
	b.touch()
	func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, c := range all {
			s := b.slots[c.node.Ref.Name]
			if s != nil && s.ver != nil && s.ahead > 0 {
				// A list that was under way when we wrote does not know of it; the watch that follows will. Any other
				// list is the truth, even with a lower resource version: etcd may have been restored from a backup.
				if s.attempt == b.attempt && s.ver.node.UID == c.node.UID && numeric(c.node.ResourceVersion) < s.ahead {
					continue
				}
				s.ahead = 0
			}
			b.put(c.node, c.full)
		}
		var gone []*slot
		for name, s := range b.slots {
			if _, ok := names[name]; !ok && s.ver != nil {
				gone = append(gone, s)
			}
		}
		slices.SortFunc(gone, func(a, c *slot) int { return cmp.Compare(a.rev, c.rev) })
		for _, s := range gone {
			b.drop(s)
		}
	}()
	b.notify()
	return failed
}

// observe stores the answer to an own write, so that the writer's next page shows it. Only a node that is here, with
// the same UID and an older version, is touched: everything else is for the watch to say.
func (b *board) observe(n *corev1.Node) (taken bool, err error) {
	a := b.convert(n.DeepCopy())
	node := a.node
	rv := numeric(node.ResourceVersion)
	visible := func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		s := b.slots[node.Ref.Name]
		if s == nil || s.ver == nil || s.ver.node.UID != node.UID || rv == 0 {
			return false
		}
		if have := numeric(s.newest.Load().ResourceVersion); rv <= have {
			if rv == have {
				b.lag(0) // the watch was faster than the answer
			}
			return false
		}
		taken = true
		visible := b.put(node, a.full)
		s.ahead, s.attempt, s.wrote = rv, b.attempt, time.Now()
		return visible
	}()
	if taken {
		b.done(visible)
	}
	return taken, a.err
}

// begin marks the start of a list.
func (b *board) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.attempt++
}

func (b *board) done(visible bool) {
	if !visible {
		b.quiet.Add(1)
		return
	}
	b.significant.Add(1)
	b.notify()
}

func (b *board) eventAt() time.Time   { return time.Unix(0, b.lastEvent.Load()) }
func (b *board) markLive()            { b.lastLive.Store(time.Now().UnixNano()) }
func (b *board) liveSince() time.Time { return time.Unix(0, b.lastLive.Load()) }

// synced tells whether the board has ever had the whole cluster.
func (b *board) synced() bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.status.Synced()
}

func (b *board) touch() { b.lastEvent.Store(time.Now().UnixNano()) }

// tally is the cluster's counters as one comparable value. mu is held.
func (b *board) tally() [4]int {
	return [...]int{b.status.Nodes, b.status.Ready, b.status.NotReady, b.status.Cordoned}
}

// put stores a node that is new or newer, and tells whether anybody would notice. mu is held.
func (b *board) put(node *fleet.Node, full kube.Packed) bool {
	s := b.slots[node.Ref.Name]
	if s != nil && s.ver != nil && s.ver.node.UID == node.UID {
		what := compare(s.ver.node, node)
		if what == 0 {
			node.Revision = s.rev
			share(node, s.ver.node)
			s.full = full
			s.newest.Store(node)
			b.weigh(s, node)
			return false
		}
		rev := b.clock.Add(1)
		fields := s.ver.fields
		for i := range fields {
			if what&(1<<i) != 0 {
				fields[i] = rev
			}
		}
		before := b.tally()
		b.account(s, -1)
		b.move(s, rev, &version{node: node, added: s.ver.added, fields: fields}, full)
		if b.tally() != before {
			b.countsRev = rev
		}
		return true
	}
	// A new node, or another one of the same name.
	rev := b.clock.Add(1)
	switch {
	case s == nil:
		s = &slot{name: node.Ref.Name}
		b.slots[s.name] = s
	case s.ver == nil:
		b.dead--
	default:
		b.account(s, -1)
	}
	s.ahead = 0
	b.move(s, rev, &version{node: node, added: rev}, full)
	b.countsRev = rev
	return true
}

// share lets a node that looks like another one use its parts: most nodes differ from their visible version in times
// alone.
func share(n, like *fleet.Node) {
	n.Labels, n.Roles, n.Addresses = like.Labels, like.Roles, like.Addresses
	if maps.Equal(n.Annotations, like.Annotations) {
		n.Annotations = like.Annotations
	}
}

// move puts a slot at the end of the log with a new visible state. mu is held.
func (b *board) move(s *slot, rev uint64, v *version, full kube.Packed) {
	v.node.Revision = rev
	v.kubelet = kubeletOrder(v.node.Info.KubeletVersion)
	v.cells = &cells{}
	v.slot = s
	if s.ver != nil {
		s.ver.cells.drop(b.cache)
	}
	s.ver, s.full = v, full
	b.account(s, 1)
	b.weigh(s, v.node)
	s.newest.Store(v.node)
	b.append(s, rev)
}

func (b *board) append(s *slot, rev uint64) {
	if s.prev != nil {
		s.prev.next, s.next.prev = s.next, s.prev
	}
	s.rev = rev
	s.prev, s.next = b.head.prev, &b.head
	b.head.prev.next, b.head.prev = s, s
}

// drop makes a slot a tombstone and forgets the oldest ones beyond the limit. mu is held.
func (b *board) drop(s *slot) {
	b.account(s, -1)
	s.ver.cells.drop(b.cache)
	s.ver, s.full, s.ahead = nil, nil, 0
	b.bytes.Add(-s.size)
	s.size = 0
	s.newest.Store(nil)
	b.append(s, b.clock.Add(1))
	b.countsRev = s.rev
	b.tombs = append(b.tombs, tomb{s, s.rev})
	b.dead++
	for b.dead > b.maxTombs {
		t := b.tombs[0]
		b.tombs = b.tombs[1:]
		if t.slot.rev != t.rev || t.slot.ver != nil {
			continue // the node came back since
		}
		t.slot.prev.next, t.slot.next.prev = t.slot.next, t.slot.prev
		t.slot.prev, t.slot.next = nil, nil
		delete(b.slots, t.slot.name)
		b.dead--
		b.purged = t.rev
	}
	// Deletions of nodes that came back leave stale entries behind; they must not add up.
	if len(b.tombs) > 2*b.maxTombs+16 {
		b.tombs = slices.DeleteFunc(b.tombs, func(t tomb) bool { return t.slot.rev != t.rev || t.slot.ver != nil })
	}
}

// weigh keeps count of the memory. mu is held.
func (b *board) weigh(s *slot, n *fleet.Node) {
	size := weigh(n, s.full)
	b.bytes.Add(size - s.size)
	s.size = size
}

// account keeps counters and index, and notes what is touched. mu is held.
func (b *board) account(s *slot, by int) {
	n := s.ver.node
	b.status.Nodes += by
	if n.Status == fleet.StatusReady {
		b.status.Ready += by
	} else {
		b.status.NotReady += by
	}
	if !n.Schedulable {
		b.status.Cordoned += by
	}
	if by > 0 {
		b.index.add(s, n)
	} else {
		b.index.remove(s, n)
	}
	b.touched.node(n)
	b.dirty.Store(true)
}

// since returns what changed after a revision, in order. Complete is false when deletions in that span were forgotten:
// then the caller has to look for what is missing by itself. mu is held.
func (b *board) since(rev uint64) (log []change, complete bool) {
	for s := b.head.prev; s != &b.head && s.rev > rev; s = s.prev {
		log = append(log, change{fleet.NodeRef{Cluster: b.cluster, Name: s.name}, s.rev, s.ver})
	}
	slices.Reverse(log)
	return log, rev >= b.purged
}

// having returns the nodes that have any of the traits, in no order; ok is false when looking at the whole log is about
// as cheap. mu is held.
func (b *board) having(any []trait) (nodes []change, ok bool) {
	n := b.index.size(any)
	if len(any) == 1 && any[0].facet == facetName {
		n = 1
	}
	if len(any) == 0 || 2*n > len(b.slots) {
		return nil, false
	}
	add := func(s *slot) {
		nodes = append(nodes, change{fleet.NodeRef{Cluster: b.cluster, Name: s.name}, s.rev, s.ver})
	}
	if any[0].facet == facetName {
		if s := b.slots[any[0].value]; s != nil {
			add(s)
		}
		return nodes, true
	}
	seen := make(map[*slot]struct{}, n)
	for _, t := range any {
		for s := range b.index[t] {
			if _, twice := seen[s]; !twice {
				seen[s] = struct{}{}
				add(s)
			}
		}
	}
	return nodes, true
}

// has tells whether a node is here. mu is held.
func (b *board) has(name string) bool {
	s := b.slots[name]
	return s != nil && s.ver != nil
}

// node is the newest object of a name with its visible state; nil if there is none.
func (b *board) node(name string) (*fleet.Node, *version) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	s := b.slots[name]
	if s == nil || s.ver == nil {
		return nil, nil
	}
	return s.newest.Load(), s.ver
}

// names lists the nodes that have one of the traits, each once.
func (b *board) names(any ...trait) []string {
	b.mu.RLock()
	defer b.mu.RUnlock()
	var out []string
	seen := make(map[*slot]bool)
	for _, t := range any {
		for s := range b.index[t] {
			if !seen[s] {
				seen[s] = true
				out = append(out, s.name)
			}
		}
	}
	return out
}

func (b *board) packed(name string) (kube.Packed, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	s := b.slots[name]
	if s == nil || s.ver == nil {
		return nil, false
	}
	return s.full, true
}

// clusterAt is a cluster as it was at a revision.
type clusterAt struct {
	fleet.Cluster
	rev    uint64 // of the last visible change of the state
	counts uint64 // of the last change of the counters
}

// at is the cluster's state. mu is held.
func (b *board) at() clusterAt {
	c := clusterAt{b.status, b.statusRev, b.countsRev}
	if at := b.lastEvent.Load(); at != 0 {
		c.LastEvent = time.Unix(0, at)
	}
	return c
}

func (b *board) state() fleet.Cluster {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.at().Cluster
}

// setStatus changes the cluster's state; the revision moves if anybody would notice.
func (b *board) setStatus(change func(*fleet.Cluster)) {
	visible := func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		before := b.status
		change(&b.status)
		if before == b.status {
			return false
		}
		b.statusRev = b.clock.Add(1)
		b.touched.all = true
		b.dirty.Store(true)
		return true
	}()
	if visible {
		b.notify()
	}
}

// values adds the values that occur to the sets.
func (b *board) values(sets map[facet]map[string]struct{}) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for t := range b.index {
		if set := sets[t.facet]; set != nil && t.value != "" {
			set[t.value] = struct{}{}
		}
	}
}

// numeric is a resource version as a number; 0 if it is none. Those of one API server compare as numbers; Kubernetes
// guarantees it since 1.35 and has always done so.
func numeric(rv string) uint64 {
	n, err := strconv.ParseUint(rv, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
