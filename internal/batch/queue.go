package batch

import (
	"fmt"
	"slices"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// queue decides which node of a batch comes next. It knows no time and asks nobody but for the nodes that are not
// available; it belongs to the goroutine that dispatches.
type queue struct {
	rollout fleet.Rollout
	items   []fleet.Item
	todo    []int // what a crash left claimed, then what waits, in the order of the batch

	ours     map[fleet.NodeRef]bool
	flying   int
	cluster  map[string]int // in flight
	zone     map[place]int  // in flight
	lanes    map[string]*lane
	begun    int // ever, in this run and before
	finished int // of those
}

// place is a zone of a cluster.
type place struct{ cluster, zone string }

// lane is the order of a cluster's nodes, zone by zone.
type lane struct {
	zones   []stretch // in order; those at the front with nothing left are over
	control int       // nodes of the control plane that are left
	busy    bool      // one of these is in flight
}

// stretch is one zone of a lane.
type stretch struct {
	zone string
	left int // not finished
}

// steering is what a queue has to know of what people asked for.
type steering struct {
	paused bool
	passed bool // a person has gone on after the canary
	// others counts the nodes of a cluster that are not available and none of the batch.
	others func(cluster string) int
}

// newQueue lists what there is to do of items, which stay the caller's. It reads their places and states only.
func newQueue(rollout fleet.Rollout, items []fleet.Item) *queue {
	q := &queue{
		rollout: rollout, items: items, ours: make(map[fleet.NodeRef]bool, len(items)),
		cluster: make(map[string]int), zone: make(map[place]int), lanes: make(map[string]*lane),
	}
	q.rollout.MaxConcurrent = max(rollout.MaxConcurrent, 1)
	var queued []int
	for i := range items {
		it := &items[i]
		q.ours[it.Ref] = true
		switch {
		case it.State.Finished():
			if it.Attempt > 0 {
				q.begun++
				q.finished++
			}
			continue
		case it.State == fleet.ItemRunning:
			q.begun++
			q.todo = append(q.todo, i)
		default:
			queued = append(queued, i)
		}
		l := q.lanes[it.Ref.Cluster]
		if l == nil {
			l = &lane{}
			q.lanes[it.Ref.Cluster] = l
		}
		l.add(it)
	}
	q.todo = append(q.todo, queued...)
	return q
}

func (l *lane) add(it *fleet.Item) {
	if it.Control {
		l.control++
		return
	}
	i := slices.IndexFunc(l.zones, func(s stretch) bool { return s.zone == it.Zone })
	if i < 0 {
		l.zones = append(l.zones, stretch{zone: it.Zone})
		i = len(l.zones) - 1
	}
	l.zones[i].left++
}

// done takes a node off its lane.
func (l *lane) done(it *fleet.Item) {
	if it.Control {
		l.control--
		return
	}
	if i := slices.IndexFunc(l.zones, func(s stretch) bool { return s.zone == it.Zone }); i >= 0 {
		l.zones[i].left--
	}
	for len(l.zones) > 0 && l.zones[0].left == 0 {
		l.zones = l.zones[1:]
	}
}

// turn tells whether it is the node's turn: no zone before its own has a node left, and nodes of the control plane go one
// by one when all others are done.
func (l *lane) turn(it *fleet.Item) bool {
	if it.Control {
		return len(l.zones) == 0 && !l.busy
	}
	return len(l.zones) > 0 && l.zones[0].zone == it.Zone
}

// empty tells whether there is nothing left to start, idle whether nothing is in flight.
func (q *queue) empty() bool { return len(q.todo) == 0 }
func (q *queue) idle() bool  { return q.flying == 0 }

// interrupted tells whether a node is left that was begun before this run.
func (q *queue) interrupted() bool {
	return len(q.todo) > 0 && q.items[q.todo[0]].State == fleet.ItemRunning
}

// canary tells whether the batch has to pause itself now: its first nodes are done, and there are more.
func (q *queue) canary(s steering) bool {
	return q.rollout.Canary > 0 && !s.passed && !s.paused && q.finished >= q.rollout.Canary && !q.empty() && !q.interrupted()
}

// next is the item to start now; ok is false if there is none. The note then says what is waited for, if it is something
// that does not come by itself.
func (q *queue) next(s steering) (item int, note string, ok bool) {
	if q.flying >= q.rollout.MaxConcurrent {
		return 0, "", false
	}
	short := make(map[string]string) // clusters with too few nodes available
	asked := make(map[string]bool)
	for _, i := range q.todo {
		it := &q.items[i]
		if !q.fits(it) {
			continue
		}
		if it.State == fleet.ItemRunning {
			return i, "", true // it may be half done, whatever has been asked for since
		}
		if s.paused || q.rollout.Canary > 0 && !s.passed && q.begun >= q.rollout.Canary {
			break
		}
		c := it.Ref.Cluster
		if q.rollout.MaxUnavailable > 0 && !asked[c] {
			asked[c] = true
			if n := q.cluster[c] + s.others(c); n >= q.rollout.MaxUnavailable {
				short[c] = fmt.Sprintf("waiting: %d of %d nodes of %s are unavailable", n, q.rollout.MaxUnavailable, c)
			}
		}
		if why, wait := short[c]; wait {
			if note == "" {
				note = why
			}
			continue
		}
		return i, "", true
	}
	return 0, note, false
}

// fits tells whether the limits and the order have room for a node. Nodes that are not available elsewhere are not asked.
func (q *queue) fits(it *fleet.Item) bool {
	switch {
	case q.rollout.PerCluster > 0 && q.cluster[it.Ref.Cluster] >= q.rollout.PerCluster:
		return false
	case q.rollout.PerZone > 0 && q.zone[place{it.Ref.Cluster, it.Zone}] >= q.rollout.PerZone:
		return false
	case q.rollout.Order == fleet.OrderZone && it.State != fleet.ItemRunning:
		return q.lanes[it.Ref.Cluster].turn(it)
	}
	return true
}

// start takes an item off the list and into flight; fresh if it was not begun before.
func (q *queue) start(i int, fresh bool) {
	it := &q.items[i]
	q.drop(i)
	q.flying++
	if fresh {
		q.begun++
	}
	q.cluster[it.Ref.Cluster]++
	q.zone[place{it.Ref.Cluster, it.Zone}]++
	if it.Control {
		q.lanes[it.Ref.Cluster].busy = true
	}
}

// land takes an item out of flight.
func (q *queue) land(i int) {
	it := &q.items[i]
	q.flying--
	q.finished++
	q.cluster[it.Ref.Cluster]--
	q.zone[place{it.Ref.Cluster, it.Zone}]--
	l := q.lanes[it.Ref.Cluster]
	if it.Control {
		l.busy = false
	}
	l.done(it)
}

// leave takes an item off the list that is not going to be started.
func (q *queue) leave(i int) {
	if q.drop(i) {
		it := &q.items[i]
		q.lanes[it.Ref.Cluster].done(it)
	}
}

func (q *queue) drop(i int) bool {
	at := slices.Index(q.todo, i)
	if at < 0 {
		return false
	}
	q.todo = slices.Delete(q.todo, at, at+1)
	return true
}
