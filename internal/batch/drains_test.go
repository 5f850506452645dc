package batch_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/batch"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// drains is a cluster whose nodes are drained: each has some pods, which go one after the other and never come back. It
// outlives the processes that drain it.
type drains struct {
	pods  int           // on each node
	grace time.Duration // that each takes to go
	stuck func(ref fleet.NodeRef) bool

	mu       sync.Mutex
	gone     map[fleet.NodeRef]int
	evicted  map[string]int // evictions of each pod
	at       []time.Time    // of each eviction
	order    []fleet.NodeRef
	flying   map[fleet.NodeRef]bool
	most     int
	mostBy   map[string]int // of each cluster
	overlaps []string
}

func newDrains(pods int, grace time.Duration) *drains {
	return &drains{
		pods: pods, grace: grace, gone: make(map[fleet.NodeRef]int), evicted: make(map[string]int),
		flying: make(map[fleet.NodeRef]bool), mostBy: make(map[string]int),
	}
}

// left is the progress of a drain that ends in a state.
func (d *drains) left(ref fleet.NodeRef, s fleet.DrainState) *fleet.DrainProgress {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &fleet.DrainProgress{State: s, Evicted: d.gone[ref], Pods: []fleet.PodProgress{}}
}

func (d *drains) begin(ref fleet.NodeRef) func() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.flying[ref] {
		d.overlaps = append(d.overlaps, ref.String())
	}
	d.flying[ref] = true
	d.order = append(d.order, ref)
	d.most = max(d.most, len(d.flying))
	in := 0
	for other := range d.flying {
		if other.Cluster == ref.Cluster {
			in++
		}
	}
	d.mostBy[ref.Cluster] = max(d.mostBy[ref.Cluster], in)
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.flying, ref)
	}
}

// Do evicts the pods that are still there. It holds evictions during a pause, and stops where it is when its context
// ends.
func (d *drains) Do(ctx context.Context, t fleet.Task) (fleet.ItemResult, error) {
	ref := t.Item.Ref
	defer d.begin(ref)()
	n := 0
	tell := func(e fleet.DrainEvent) {
		n++
		e.Seq, e.At, e.NodeRef, e.NodeUID = n, time.Now().UTC(), ref, t.Item.UID
		t.Tell(e)
	}
	cut := func() (fleet.ItemResult, error) {
		tell(fleet.DrainEvent{NodeState: fleet.DrainCancelled})
		return fleet.ItemResult{Drain: d.left(ref, fleet.DrainCancelled)}, fmt.Errorf("draining %s: %w", ref, context.Cause(ctx))
	}
	tell(fleet.DrainEvent{NodeState: fleet.DrainEvicting})
	for {
		d.mu.Lock()
		i := d.gone[ref]
		d.mu.Unlock()
		if i == d.pods {
			break
		}
		for held, changed := t.Held(); held; held, changed = t.Held() {
			select {
			case <-changed:
			case <-ctx.Done():
				return cut()
			}
		}
		pod := fleet.PodProgress{Namespace: "ns", Name: fmt.Sprintf("%s-%d", ref.Name, i), UID: fmt.Sprintf("%s-%d", ref, i), State: fleet.PodTerminating, Evicted: true, HTTP: 201}
		if ctx.Err() != nil {
			return cut()
		}
		if d.stuck != nil && d.stuck(ref) {
			pod.State, pod.HTTP, pod.Evicted = fleet.PodBlockedByPDB, 429, false
			tell(fleet.DrainEvent{Pod: &pod})
			select {
			case <-ctx.Done():
				return cut()
			case <-time.After(5 * time.Second): // asked again
			}
			continue
		}
		d.mu.Lock()
		d.evicted[pod.UID]++
		d.gone[ref]++
		d.at = append(d.at, time.Now())
		d.mu.Unlock()
		tell(fleet.DrainEvent{Pod: &pod})
		select {
		case <-ctx.Done():
			return cut()
		case <-time.After(d.grace):
		}
		pod.State = fleet.PodGone
		tell(fleet.DrainEvent{Pod: &pod})
	}
	tell(fleet.DrainEvent{NodeState: fleet.DrainDone})
	return fleet.ItemResult{State: fleet.ItemSucceeded, Changed: true, Drain: d.left(ref, fleet.DrainDone)}, nil
}

func (d *drains) Resolve(_ context.Context, t fleet.Task) (fleet.ItemResult, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone[t.Item.Ref] == d.pods {
		return fleet.ItemResult{State: fleet.ItemSucceeded, Changed: true}, nil
	}
	return fleet.ItemResult{State: fleet.ItemCancelled, Code: fleet.CodeCancelled, Changed: d.gone[t.Item.Ref] > 0, Message: "not drained"}, nil
}

// evictions lists when pods were evicted.
func (d *drains) evictions() []time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.at)
}

// twice names the pods that were evicted more than once, and the nodes that two owners drained at once.
func (d *drains) twice() (out []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for pod, n := range d.evicted {
		if n > 1 {
			out = append(out, pod)
		}
	}
	return append(out, d.overlaps...)
}

// begun lists the nodes in the order in which they were begun.
func (d *drains) begun() []fleet.NodeRef {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.order)
}

// peaks are the most nodes at once: over all, and in each cluster.
func (d *drains) peaks() (int, map[string]int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.most, maps.Clone(d.mostBy)
}

// map is a cache of nodes with zones, and of nodes that are not available.
type atlas struct {
	cache
	zone func(ref fleet.NodeRef) string

	mu   sync.Mutex
	away map[string][]string // by cluster
}

func (a *atlas) Node(ref fleet.NodeRef) (*fleet.Node, error) {
	n, err := a.cache.Node(ref)
	if err != nil || a.zone == nil {
		return n, err
	}
	n.Labels = map[string]string{"topology.kubernetes.io/zone": a.zone(ref)}
	if zone := a.zone(ref); zone == "control" {
		n.Labels = map[string]string{"node-role.kubernetes.io/control-plane": ""}
	}
	return n, nil
}

func (a *atlas) Unavailable(cluster string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.away[cluster])
}

func (a *atlas) leave(cluster string, names ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.away == nil {
		a.away = make(map[string][]string)
	}
	a.away[cluster] = names
}

// planner answers with a plan that a test may change.
type planner struct {
	mu    sync.Mutex
	plan  fleet.Plan
	err   error
	calls int
	items []fleet.Item // of the last call
}

func (p *planner) Plan(_ context.Context, _ fleet.Caller, op fleet.Operation, items []fleet.Item) (*fleet.Plan, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls++
	p.items = slices.Clone(items)
	out := p.plan
	out.Action, out.Operation = op.Action, op
	return &out, p.err
}

// drainSpec asks for drains of nodes of the cluster prod, n at once, in the order given.
func drainSpec(n int, nodes ...string) fleet.BatchSpec {
	s := spec(nodes...)
	s.Action = fleet.ActionDrain
	s.MaxConcurrent, s.Order = n, fleet.OrderGiven
	return s
}

// draining makes an engine that drains.
func (f *fixture) draining(d *drains, change ...func(*batch.Config)) *batch.Engine {
	return f.engine(append([]func(*batch.Config){func(c *batch.Config) { c.Doer = d }}, change...)...)
}
