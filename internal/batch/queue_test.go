package batch

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// TestQueue_NeverMoreThanAllowedAndAllInTheEnd plays random batches with random limits: whatever comes back in whatever
// order, no limit is ever exceeded, no zone is begun before the one before it is over, and in the end every node was had.
func TestQueue_NeverMoreThanAllowedAndAllInTheEnd(t *testing.T) {
	t.Parallel()
	const rounds = 600
	waited, serial, passed := 0, 0, 0
	for seed := range uint64(rounds) {
		rnd := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test has to be repeatable
		g := newGame(rnd)
		g.play(t, seed, rnd)
		if t.Failed() {
			t.Fatalf("seed %d: %+v", seed, g.rollout)
		}
		waited += g.waited
		passed += g.paused
		if g.rollout.Order == fleet.OrderZone {
			serial++
		}
	}
	if waited == 0 || serial == 0 || passed == 0 {
		t.Errorf("%d waits for nodes, %d batches by zone, %d canaries: this proved too little", waited, serial, passed)
	}
}

type game struct {
	rollout fleet.Rollout
	items   []fleet.Item
	others  map[string]int // nodes that are not available and not of the batch

	waited, paused int
}

func newGame(rnd *rand.Rand) *game {
	g := &game{others: map[string]int{}}
	limit := func(most int) int { return max(rnd.IntN(most+3)-2, 0) }
	g.rollout = fleet.Rollout{
		MaxConcurrent: 1 + rnd.IntN(8), PerCluster: limit(4), PerZone: limit(3), MaxUnavailable: limit(6), Canary: limit(5),
		Order: []fleet.BatchOrder{fleet.OrderGiven, fleet.OrderZone}[rnd.IntN(2)],
	}
	for i := range 1 + rnd.IntN(40) {
		it := fleet.Item{
			Ref:  fleet.NodeRef{Cluster: fmt.Sprint("c", rnd.IntN(3)), Name: fmt.Sprint("n", i)},
			Zone: []string{"", "a", "b", "c"}[rnd.IntN(4)], Control: rnd.IntN(6) == 0, State: fleet.ItemQueued,
		}
		switch rnd.IntN(12) {
		case 0:
			it.State, it.Attempt = fleet.ItemRunning, 1
		case 1:
			it.State, it.Attempt = fleet.ItemFailed, 1
		case 2:
			it.State = fleet.ItemSkipped
		}
		g.items = append(g.items, it)
	}
	r := &request{spec: fleet.BatchSpec{Rollout: g.rollout}}
	for i := range g.items {
		r.spec.Nodes = append(r.spec.Nodes, g.items[i].Ref)
	}
	r.arrange(g.items)
	return g
}

func (g *game) play(t *testing.T, seed uint64, rnd *rand.Rand) {
	t.Helper()
	q := newQueue(g.rollout, g.items)
	var flying []int
	count := func(f func(it *fleet.Item) bool) (n int) {
		for _, i := range flying {
			if f(&g.items[i]) {
				n++
			}
		}
		return n
	}
	s := steering{others: func(c string) int { return g.others[c] }}
	calm := 0
	for steps := 0; !q.empty() || len(flying) > 0; steps++ {
		if steps > 5000 {
			t.Fatalf("seed %d never comes to its end: %d left, %d in flight", seed, len(q.todo), len(flying))
		}
		if rnd.IntN(3) == 0 && calm < 200 {
			g.others[fmt.Sprint("c", rnd.IntN(3))] = rnd.IntN(8)
			calm++
		} else if calm >= 200 {
			clear(g.others) // in the end the others come back
		}
		if q.canary(s) {
			if len(flying) > 0 && count(func(it *fleet.Item) bool { return it.State == fleet.ItemQueued }) > 0 {
				t.Errorf("seed %d: paused behind the canary with further nodes begun", seed)
			}
			g.paused++
			s.passed = true
		}
		i, note, ok := q.next(s)
		if ok {
			it := &g.items[i]
			if it.State == fleet.ItemQueued {
				g.check(t, it, q, s, flying)
			}
			q.start(i, it.State == fleet.ItemQueued)
			flying = append(flying, i)
			for what, over := range map[string]bool{
				"at once":        len(flying) > g.rollout.MaxConcurrent,
				"in its cluster": g.rollout.PerCluster > 0 && count(func(o *fleet.Item) bool { return o.Ref.Cluster == it.Ref.Cluster }) > g.rollout.PerCluster,
				"in its zone": g.rollout.PerZone > 0 &&
					count(func(o *fleet.Item) bool { return o.Ref.Cluster == it.Ref.Cluster && o.Zone == it.Zone }) > g.rollout.PerZone,
			} {
				if over {
					t.Errorf("seed %d: too many %s", seed, what)
				}
			}
			continue
		}
		if note != "" {
			g.waited++
			if !strings.HasPrefix(note, "waiting: ") {
				t.Errorf("note %q", note)
			}
		}
		if len(flying) > 0 && (rnd.IntN(2) == 0 || calm >= 200) {
			at := rnd.IntN(len(flying))
			i := flying[at]
			flying = slices.Delete(flying, at, at+1)
			g.items[i].State = fleet.ItemSucceeded
			g.items[i].Attempt = 1
			q.land(i)
		} else if len(q.todo) > 0 && rnd.IntN(20) == 0 {
			if i := q.todo[rnd.IntN(len(q.todo))]; g.items[i].State == fleet.ItemQueued {
				g.items[i].State = fleet.ItemSkipped
				q.leave(i)
			}
		}
	}
	for i := range g.items {
		if !g.items[i].State.Finished() {
			t.Errorf("seed %d: %s was never had", seed, g.items[i].Ref)
		}
	}
}

// check looks at the start of a node with a simpler eye than the queue's: over all items each time.
func (g *game) check(t *testing.T, it *fleet.Item, q *queue, s steering, flying []int) {
	t.Helper()
	if n := q.cluster[it.Ref.Cluster] + g.others[it.Ref.Cluster]; g.rollout.MaxUnavailable > 0 && n >= g.rollout.MaxUnavailable {
		t.Errorf("%s is begun with %d nodes unavailable", it.Ref, n)
	}
	begun := 0
	for i := range g.items {
		o := &g.items[i]
		if o.Attempt > 0 && o.State.Finished() || o.State == fleet.ItemRunning || slices.Contains(flying, i) {
			begun++
		}
		if g.rollout.Order != fleet.OrderZone || o.Ref.Cluster != it.Ref.Cluster || o.State.Finished() {
			continue
		}
		switch {
		case it.Control && !o.Control:
			t.Errorf("%s of the control plane is begun before %s", it.Ref, o.Ref)
		case it.Control && o.Ref != it.Ref && slices.Contains(flying, i):
			t.Errorf("%s of the control plane is begun beside %s", it.Ref, o.Ref)
		case !it.Control && !o.Control && o.Zone != it.Zone && o.Seq < it.Seq:
			t.Errorf("%s in zone %q is begun before %s in zone %q is over", it.Ref, it.Zone, o.Ref, o.Zone)
		}
	}
	if g.rollout.Canary > 0 && !s.passed && begun >= g.rollout.Canary {
		t.Errorf("%s is begun behind a canary of %d", it.Ref, g.rollout.Canary)
	}
}

func TestArrange(t *testing.T) {
	t.Parallel()
	item := func(cluster, name, zone string, control bool) fleet.Item {
		return fleet.Item{Ref: fleet.NodeRef{Cluster: cluster, Name: name}, Zone: zone, Control: control}
	}
	items := []fleet.Item{
		item("z", "0", "", false), item("z", "1", "b", false), item("a", "2", "a", true), item("a", "3", "b", false), item("z", "4", "a", false),
		item("z", "5", "b", true), item("z", "6", "b", false), item("a", "7", "a", false), item("z", "8", "a", false),
	}
	for _, tt := range []struct {
		order fleet.BatchOrder
		want  []string
	}{
		{fleet.OrderGiven, []string{"z/0", "z/1", "a/2", "a/3", "z/4", "z/5", "z/6", "a/7", "z/8"}},
		// Clusters as they were named first, zones by name, those without one last, few pods first, the control plane at the end.
		{fleet.OrderZone, []string{"z/8", "z/4", "z/6", "z/1", "z/0", "a/7", "a/3", "z/5", "a/2"}},
	} {
		r := &request{spec: fleet.BatchSpec{Rollout: fleet.Rollout{Order: tt.order}}, counts: map[fleet.NodeRef]int{
			{Cluster: "z", Name: "4"}: 9, {Cluster: "z", Name: "8"}: 2, {Cluster: "z", Name: "1"}: 5, {Cluster: "z", Name: "6"}: 4,
		}}
		for i := range items {
			r.spec.Nodes = append(r.spec.Nodes, items[i].Ref)
		}
		got := slices.Clone(items)
		r.arrange(got)
		var names []string
		for i, it := range got {
			names = append(names, it.Ref.String())
			if it.Seq != i {
				t.Errorf("%s: item %d has number %d", tt.order, i, it.Seq)
			}
		}
		if diff := cmp.Diff(tt.want, names); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.order, diff)
		}
	}
}
