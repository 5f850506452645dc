package batch_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/batch"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// until lets time pass until a batch is as asked. It is for bubbles.
func (f *fixture) until(id, what string, ok func(fleet.Batch) bool) fleet.Batch {
	f.t.Helper()
	for deadline := time.Now().Add(10 * time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if b, _ := f.read(id); ok(b) {
			return b
		}
	}
	b, _ := f.read(id)
	f.t.Fatalf("not %s: %+v", what, b)
	return b
}

func (f *fixture) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// Case 50: the process is killed in the middle of drains. Whoever starts next leaves the batch to a person, who says to go
// on: each node is drained, no pod is evicted twice, and the log goes on.
func TestCase50_KilledInTheMiddleOfDrains(t *testing.T) {
	t.Parallel()
	const nodes, pods = 3, 2
	kill := func(t *testing.T, at int, late bool) (steps int, waited bool) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t)
			world := newDrains(pods, 150*time.Millisecond)
			d := &death{at: at, late: late, dead: make(chan struct{})}
			first := f.draining(world, func(c *batch.Config) { c.Store = &faulty{Store: f.store, around: d.step} })
			stop := f.run(first)
			s := drainSpec(2, names(nodes)...)
			s.Canary = 2
			id := f.submit(first, s)
			go func() { // goes on after the canary
				for {
					select {
					case <-t.Context().Done():
						return
					case <-time.After(500 * time.Millisecond):
					}
					if b, _, err := f.store.Batch(t.Context(), id, 0); err == nil && b.PausedBy == fleet.PausedByCanary {
						if first.Resume(t.Context(), ada, id) == nil {
							return
						}
					}
				}
			}()
			if at > 0 {
				<-d.dead
			} else {
				f.wait(id)
			}
			stop()
			second := f.draining(world)
			f.run(second)
			time.Sleep(3 * time.Second)
			synctest.Wait()
			b, _ := f.read(id)
			if b.State == fleet.BatchInterrupted {
				waited = true
				before := len(world.evictions())
				if b.Counts.Running == 0 || !strings.Contains(b.Note, "Resume") {
					t.Errorf("step %d (late %v): it waits for a person although nothing was begun: %+v", at, late, b)
				}
				time.Sleep(time.Minute)
				if n := len(world.evictions()); n != before {
					t.Errorf("step %d (late %v): %d pods were evicted while nobody had said to go on", at, late, n-before)
				}
				f.must(second.Resume(t.Context(), ada, id))
			}
			b, items := f.wait(id)
			if b.Outcome != fleet.OutcomeSucceeded || b.Counts.Succeeded != nodes {
				t.Errorf("step %d (late %v): batch is %+v", at, late, b)
			}
			if again := world.twice(); len(again) > 0 || len(world.evictions()) != nodes*pods {
				t.Errorf("step %d (late %v): %d evictions, twice: %v", at, late, len(world.evictions()), again)
			}
			es, err := second.Events(t.Context(), ada, id, 0, 5000)
			if err != nil {
				t.Error(err)
			}
			ends := make(map[int]int)
			for i, e := range es {
				if e.Seq != int64(i+1) {
					t.Errorf("step %d (late %v): event %d has number %d", at, late, i+1, e.Seq)
				}
				if e.Event.NodeState == fleet.DrainDone {
					ends[e.Item]++
				}
			}
			for _, it := range items {
				if it.Drain == nil || it.Drain.State != fleet.DrainDone || ends[it.Seq] == 0 {
					t.Errorf("step %d (late %v): %s ended with %+v and %d ends in the log", at, late, it.Ref, it.Drain, ends[it.Seq])
				}
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			steps = d.steps
		})
		return steps, waited
	}
	total, _ := kill(t, 0, false)
	if total < 4*nodes {
		t.Fatalf("a whole batch took %d steps only: the kill points are not seen", total)
	}
	var mu sync.Mutex
	left := 0
	t.Cleanup(func() { // when all of them are over
		if left < total/2 {
			t.Errorf("%d of %d deaths left the batch to a person: this proved little", left, 2*total)
		}
	})
	for at := 1; at <= total; at++ {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d/late=%v", at, late), func(t *testing.T) {
				t.Parallel()
				if _, waited := kill(t, at, late); waited {
					mu.Lock()
					left++
					mu.Unlock()
				}
			})
		}
	}
}

// Case 50, large: 200 nodes, and a death at each kind of step in the middle of the batch.
func TestCase50_KilledInALargeBatch(t *testing.T) {
	t.Parallel()
	const nodes, pods = 200, 2
	// Before and after each step is what the small batch has.
	for kind, late := range map[string]bool{
		"acquire": true, "start": true, "claim": true, "progress": false, "finish": false, "hold": true, "end": false,
	} {
		t.Run(fmt.Sprintf("%s/late=%v", kind, late), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				world := newDrains(pods, time.Second)
				middle := map[string]int{"claim": nodes / 2, "finish": nodes / 2, "progress": 6}
				d := &deathOf{kind: kind, at: max(middle[kind], 1), late: late, dead: make(chan struct{})}
				first := f.draining(world, func(c *batch.Config) { c.Store = &faulty{Store: f.store, around: d.step} })
				stop := f.run(first)
				s := drainSpec(40, names(nodes)...)
				if kind == "hold" {
					s.Canary = nodes / 2
				}
				id := f.submit(first, s)
				<-d.dead
				stop()
				second := f.draining(world)
				f.run(second)
				for {
					b := f.until(id, "at rest", func(b fleet.Batch) bool {
						return b.State == fleet.BatchInterrupted || b.State == fleet.BatchPaused && b.Counts.Running == 0 || b.State == fleet.BatchDone
					})
					if b.State == fleet.BatchDone {
						break
					}
					f.must(second.Resume(t.Context(), ada, id))
					time.Sleep(time.Second)
				}
				b, _ := f.read(id)
				if b.Counts.Succeeded != nodes || len(world.evictions()) != nodes*pods || len(world.twice()) != 0 {
					t.Errorf("batch is %+v after %d evictions, twice: %v", b, len(world.evictions()), world.twice())
				}
			})
		})
	}
}

// deathOf kills a process at its n-th step of a kind.
type deathOf struct {
	kind string
	late bool
	mu   sync.Mutex
	at   int
	dead chan struct{}
}

func (d *deathOf) step(call string, do func() error) error {
	d.mu.Lock()
	mine := false
	if call == d.kind {
		d.at--
		mine = d.at == 0
	}
	if mine && !d.late {
		close(d.dead)
	}
	d.mu.Unlock()
	select {
	case <-d.dead:
		return errDead
	default:
	}
	err := do()
	if mine && d.late {
		close(d.dead)
	}
	return err
}

// A restart in good order goes on with its drains by itself.
func TestCase50_CleanRestartGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		world := newDrains(40, time.Second)
		first := f.draining(world)
		stop := f.run(first)
		id := f.submit(first, drainSpec(2, names(4)...))
		time.Sleep(10500 * time.Millisecond)
		stop() // cuts them off when their grace is over
		if b, _ := f.read(id); b.State != fleet.BatchRunning || b.Counts.Running == 0 {
			t.Fatalf("batch is %+v: this proves nothing", b)
		}
		f.run(f.draining(world))
		b, items := f.wait(id)
		if b.Counts.Succeeded != 4 || len(world.twice()) != 0 || len(world.evictions()) != 160 || items[0].Attempt+items[1].Attempt < 3 {
			t.Errorf("batch is %+v, twice: %v", b, world.twice())
		}
	})
}

// A pause outlives the process: the drains that it holds are held by whoever goes on.
func TestCase56_PauseOutlivesARestart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		world := newDrains(20, time.Second)
		first := f.draining(world)
		stop := f.run(first)
		id := f.submit(first, drainSpec(2, names(4)...))
		time.Sleep(5500 * time.Millisecond)
		f.must(first.Pause(t.Context(), ada, id))
		time.Sleep(time.Second)
		before := len(world.evictions())
		stop()
		second := f.draining(world)
		f.run(second)
		time.Sleep(10 * time.Minute)
		b, items := f.read(id)
		if b.State != fleet.BatchPaused || b.Counts.Running != 2 || items[0].Attempt != 2 || len(world.evictions()) != before {
			t.Errorf("batch is %+v, %d pods were evicted in the pause", b, len(world.evictions())-before)
		}
		f.must(second.Resume(t.Context(), ada, id))
		if b, _ = f.wait(id); b.Counts.Succeeded != 4 || len(world.twice()) != 0 || len(world.evictions()) != 80 {
			t.Errorf("batch is %+v, twice: %v", b, world.twice())
		}
	})
}

// Case 51: an owner that cannot renew its lease stops evicting before anybody else can have it, and what it tells
// afterwards is not written down.
func TestCase51_PartitionedOwnerStopsEvicting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		world := newDrains(1000, time.Second)
		from := time.Now().Add(30 * time.Second)
		s := &renewals{Store: f.store, renew: func(ctx context.Context) error {
			if time.Now().Before(from) {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}}
		a := f.draining(world, func(c *batch.Config) { c.Store = s })
		f.run(a)
		id := f.submit(a, drainSpec(3, names(3)...))
		time.Sleep(29 * time.Second)
		b := f.draining(world, func(c *batch.Config) { c.Holder = "b" })
		f.run(b)
		left := f.until(id, "left to a person", func(b fleet.Batch) bool { return b.State == fleet.BatchInterrupted })
		evicted := world.evictions()
		last := evicted[len(evicted)-1]
		if held := last.Sub(s.last()); held > 15*time.Second {
			t.Errorf("the last pod was evicted %s after the last renewal, and the lease lasts 15 s", held)
		}
		if left.Counts.Running != 3 {
			t.Errorf("batch is %+v", left)
		}
		before, _ := f.read(id)
		time.Sleep(5 * time.Minute)
		if after, _ := f.read(id); after.Version != before.Version || len(world.evictions()) != len(evicted) {
			t.Errorf("the batch went from version %d to %d, and %d more pods were evicted", before.Version, after.Version, len(world.evictions())-len(evicted))
		}
	})
}

// Case 53: nodes that are not available anyway count.
func TestCase53_MaxUnavailable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		world := newDrains(1, time.Minute)
		sky := &atlas{}
		sky.leave("prod", "foreign", "n9") // one of ours is counted as ours
		e := f.draining(world, func(c *batch.Config) { c.Lookup = sky })
		f.run(e)
		s := drainSpec(3, names(10)...)
		s.MaxUnavailable = 3
		id := f.submit(e, s)
		time.Sleep(30 * time.Second)
		b, _ := f.read(id)
		if most, _ := world.peaks(); most != 2 || b.Counts.Running != 2 {
			t.Errorf("%d nodes at once beside one that is not available, want 2: %+v", most, b)
		}
		if b.Note != "waiting: 3 of 3 nodes of prod are unavailable" {
			t.Errorf("the batch says %q", b.Note)
		}
		sky.leave("prod", "foreign", "x", "y", "z")
		f.until(id, "waiting", func(b fleet.Batch) bool { return b.Counts.Running == 0 })
		time.Sleep(time.Hour)
		b, _ = f.read(id)
		if b.Counts.Succeeded != 2 || b.Note != "waiting: 4 of 3 nodes of prod are unavailable" {
			t.Errorf("with four nodes unavailable, the batch is %+v", b)
		}
		if b.Version > 100 {
			t.Errorf("waiting took %d changes", b.Version)
		}
		sky.leave("prod")
		back := time.Now()
		b = f.until(id, "going on", func(b fleet.Batch) bool { return b.Counts.Running == 3 })
		if took := time.Since(back); took > 3*time.Second || b.Note != "" {
			t.Errorf("went on %s after the nodes had come back, and says %q", took, b.Note)
		}
		if b, _ = f.wait(id); b.Counts.Succeeded != 10 || b.Note != "" {
			t.Errorf("batch is %+v", b)
		}
	})
}

// Case 54: zone by zone; the nodes of the control plane one by one, last.
func TestCase54_ZoneBySerial(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		fails int // the stop rule
		want  int // nodes that were begun
	}{{"failures are let pass", 0, 14}, {"a failure stops the zones behind it", 1, 4}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				world := newDrains(1, time.Minute)
				zones := []string{"b", "control", "a", "b", "a", "", "control", "b", "a", "b", "a", "", "b", "b"}
				sky := &atlas{zone: func(ref fleet.NodeRef) string {
					var n int
					if _, err := fmt.Sscanf(ref.Name, "n%d", &n); err != nil {
						t.Error(err)
					}
					return zones[n]
				}}
				e := f.engine(func(c *batch.Config) {
					c.Lookup = sky
					c.Doer = &failing{drains: world, fail: func(ref fleet.NodeRef) bool { return ref.Name == "n4" }}
				})
				f.run(e)
				s := drainSpec(50, names(14)...)
				s.Order, s.MaxFailures = "", tt.fails // by zone is what drains do
				id := f.submit(e, s)
				b, items := f.wait(id)
				if got := len(world.begun()); got != tt.want {
					t.Errorf("%d nodes were begun, want %d", got, tt.want)
				}
				// By their own times: nobody starts before all of the zone before have ended.
				rank := func(it fleet.Item) int {
					switch {
					case it.Control:
						return 3
					case it.Zone == "":
						return 2
					}
					return strings.Index("ab", it.Zone)
				}
				for _, x := range items {
					for _, y := range items {
						if x.Attempt == 0 || y.Attempt == 0 {
							continue
						}
						if rank(x) > rank(y) && x.StartedAt.Before(y.EndedAt) {
							t.Errorf("%s (%d) started before %s (%d) had ended", x.Ref, rank(x), y.Ref, rank(y))
						}
						if x.Control && y.Control && x.Seq > y.Seq && x.StartedAt.Before(y.EndedAt) {
							t.Errorf("two nodes of the control plane at once: %s and %s", x.Ref, y.Ref)
						}
					}
				}
				if tt.fails == 0 && b.Counts.Succeeded != 13 || b.Counts.Failed != 1 {
					t.Errorf("batch is %+v", b)
				}
				if b.Rollout.Order != fleet.OrderZone {
					t.Errorf("order is %q", b.Rollout.Order)
				}
			})
		})
	}
}

// failing fails some nodes once they are drained.
type failing struct {
	*drains
	fail func(ref fleet.NodeRef) bool
}

func (d *failing) Do(ctx context.Context, t fleet.Task) (fleet.ItemResult, error) {
	res, err := d.drains.Do(ctx, t)
	if err == nil && d.fail(t.Item.Ref) {
		return fleet.ItemResult{Code: fleet.CodeTimedOut, Message: "too long", Drain: res.Drain}, fleet.ErrBlocked
	}
	return res, err
}

// Case 55: after two failed nodes the third is never begun, and the summary says which were not.
func TestCase55_FailureThreshold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		world := newDrains(2, time.Second)
		e := f.engine(func(c *batch.Config) {
			c.Doer = &failing{drains: world, fail: func(fleet.NodeRef) bool { return true }}
		})
		f.run(e)
		s := drainSpec(1, names(6)...)
		s.MaxFailures = 2
		b, items := f.wait(f.submit(e, s))
		if len(world.begun()) != 2 || b.Outcome != fleet.OutcomeFailed || b.Counts.Cancelled != 4 || b.Counts.Failed != 2 {
			t.Errorf("%d nodes were begun, batch is %+v", len(world.begun()), b)
		}
		for _, it := range items[2:] {
			if it.Code != fleet.CodeStopped || it.Error == "" || it.Attempt != 0 || it.Drain != nil {
				t.Errorf("item is %+v", it)
			}
		}
		if it := items[0]; it.Drain == nil || it.Drain.Evicted != 2 || it.Code != fleet.CodeTimedOut || it.Error != "too long" {
			t.Errorf("failed item is %+v with %+v", it, it.Drain)
		}
	})
}

// Case 56: a pause evicts nothing more and begins nothing more, resuming goes on where it was.
func TestCase56_PauseAndResume(t *testing.T) {
	t.Parallel()
	for _, through := range []string{"the owner", "another replica"} {
		t.Run(through, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				world := newDrains(20, time.Second)
				owner := f.draining(world)
				f.run(owner)
				e, heard := owner, 100*time.Millisecond
				if through != "the owner" {
					e, heard = f.draining(world, func(c *batch.Config) { c.Holder = "b" }), 6*time.Second
					f.run(e)
				}
				id := f.submit(owner, drainSpec(2, names(6)...))
				time.Sleep(10 * time.Second)
				paused := time.Now()
				f.must(e.Pause(t.Context(), ada, id))
				if err := e.Pause(t.Context(), ada, id); !errors.Is(err, fleet.ErrConflict) {
					t.Errorf("pausing twice: %v", err)
				}
				time.Sleep(heard)
				evicted := world.evictions()
				time.Sleep(10 * time.Minute)
				if n := len(world.evictions()); n != len(evicted) {
					t.Errorf("%d pods were evicted in the pause", n-len(evicted))
				}
				b, items := f.read(id)
				if b.State != fleet.BatchPaused || b.PausedBy != "ada" || b.Counts.Running != 2 || b.Counts.Queued != 4 {
					t.Errorf("batch is %+v", b)
				}
				for _, it := range items[:2] { // what was ending has ended, and is shown
					if it.Drain == nil || it.Drain.Evicted == 0 || slices.ContainsFunc(it.Drain.Pods, func(p fleet.PodProgress) bool { return p.State == fleet.PodTerminating }) {
						t.Errorf("in the pause %s is shown as %+v", it.Ref, it.Drain)
					}
				}
				if last := evicted[len(evicted)-1]; last.Sub(paused) > heard {
					t.Errorf("a pod was evicted %s after the pause", last.Sub(paused))
				}
				f.must(e.Resume(t.Context(), ada, id))
				if err := e.Resume(t.Context(), ada, id); !errors.Is(err, fleet.ErrConflict) {
					t.Errorf("resuming twice: %v", err)
				}
				resumed := time.Now()
				b, items = f.wait(id)
				if b.Counts.Succeeded != 6 || len(world.twice()) != 0 || len(world.evictions()) != 120 || b.PausedBy != "" {
					t.Errorf("batch is %+v, twice: %v", b, world.twice())
				}
				if first := world.evictions()[len(evicted)]; first.Sub(resumed) > heard {
					t.Errorf("went on after %s", first.Sub(resumed))
				}
				for _, it := range items {
					if it.Attempt != 1 {
						t.Errorf("%s was begun %d times: a pause is no interruption", it.Ref, it.Attempt)
					}
				}
			})
		})
	}
}

// Case 56: a cancellation lets go of drains where they are and keeps what is known of them.
func TestCase56_CancelInTheMiddle(t *testing.T) {
	t.Parallel()
	for _, held := range []bool{false, true} {
		t.Run(fmt.Sprintf("held=%v", held), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				world := newDrains(20, time.Second)
				e := f.draining(world)
				f.run(e)
				id := f.submit(e, drainSpec(2, names(6)...))
				time.Sleep(10500 * time.Millisecond)
				if held {
					f.must(e.Pause(t.Context(), ada, id))
					time.Sleep(time.Minute)
				}
				f.must(e.Cancel(t.Context(), ada, id))
				asked := time.Now()
				b, items := f.wait(id)
				if took := b.EndedAt.Sub(asked); took > 100*time.Millisecond {
					t.Errorf("the cancellation took %s", took)
				}
				if b.Outcome != fleet.OutcomeCancelled || b.Counts.Cancelled != 6 || b.PausedBy != "" {
					t.Errorf("batch is %+v", b)
				}
				for i, it := range items {
					begun := i < 2
					if it.State != fleet.ItemCancelled || it.Code != fleet.CodeCancelled || it.Changed != begun || (it.Drain != nil) != begun {
						t.Errorf("item is %+v with %+v", it, it.Drain)
					}
					if begun && (it.Drain.State != fleet.DrainCancelled || it.Drain.Evicted != 11) {
						t.Errorf("%s ended as %+v", it.Ref, it.Drain)
					}
				}
				if n := len(world.evictions()); n != 22 {
					t.Errorf("%d evictions", n)
				}
			})
		})
	}
}

// Case 57: a node is in one batch at a time.
func TestCase57_SecondBatchOfANodeIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	p := &planner{}
	e := f.engine(func(c *batch.Config) { c.Planner = p })
	id := f.submit(e, drainSpec(1, "n0", "n1"))
	for doing, ask := range map[string]func() error{
		"Submit": func() error { _, err := e.Submit(t.Context(), ada, spec("n5", "n1")); return err },
		"Plan":   func() error { _, err := e.Plan(t.Context(), ada, drainSpec(1, "n1", "n5")); return err },
	} {
		err := ask()
		if busy, ok := errors.AsType[*fleet.BusyError](err); !ok || busy.Batch != id || busy.Node.Name != "n1" {
			t.Errorf("%s: %v, want n1 busy with %s", doing, err, id)
		}
	}
}

// Paused with nothing in the middle, a batch needs nobody; and a person who goes on makes it go on at once.
func TestEngine_PausedBatchNeedsNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.world.takes = time.Second
		e := f.engine()
		stop := f.run(e)
		s := spec(names(20)...)
		s.MaxConcurrent = 2
		id := f.submit(e, s)
		time.Sleep(3500 * time.Millisecond)
		f.must(e.Pause(t.Context(), ada, id))
		f.until(id, "at rest", func(b fleet.Batch) bool { return b.Counts.Running == 0 })
		b, _ := f.read(id)
		if b.State != fleet.BatchPaused || b.Counts.Succeeded != 8 {
			t.Errorf("batch is %+v", b)
		}
		time.Sleep(time.Second)
		stop()
		time.Sleep(24 * time.Hour) // being paused for long is nothing to wonder at
		e = f.engine()
		f.run(e)
		time.Sleep(time.Minute)
		if after, _ := f.read(id); after.Version != b.Version {
			t.Errorf("the paused batch went from version %d to %d", b.Version, after.Version)
		}
		f.must(e.Resume(t.Context(), ada, id))
		resumed := time.Now()
		b, _ = f.wait(id)
		if took := b.EndedAt.Sub(resumed); b.Counts.Succeeded != 20 || f.world.written() != 20 || took > 7*time.Second {
			t.Errorf("batch is %+v after %s and %d writes", b, took, f.world.written())
		}
		if es, err := f.store.Entries(t.Context(), fleet.AuditFilter{}); err != nil || len(es) != 4 {
			t.Errorf("on record: %+v, %v", es, err)
		}
	})
}

func TestEngine_LeftAloneGoesOnWhenAPersonSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.world.takes = time.Minute
		stop := f.run(f.engine())
		id := f.submit(f.engine(), spec(names(30)...))
		time.Sleep(90 * time.Second)
		stop()
		time.Sleep(16 * time.Minute)
		f.world.slower(0)
		e := f.engine()
		f.run(e)
		f.until(id, "left to a person", func(b fleet.Batch) bool { return b.State == fleet.BatchInterrupted })
		f.must(e.Resume(t.Context(), ada, id))
		if b, _ := f.wait(id); b.Outcome != fleet.OutcomeSucceeded || f.world.written() != 30 {
			t.Errorf("batch is %+v", b)
		}
	})
}

func TestEngine_Canary(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		early  bool // a pause and a resumption before the canary is done
		nodes  int
		pauses bool
	}{
		{"pauses behind its first nodes", false, 12, true},
		{"is not passed by going on before it is done", true, 12, true},
		{"of the whole batch is none", false, 3, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				f.world.takes = 10 * time.Second
				e := f.engine()
				f.run(e)
				s := spec(names(tt.nodes)...)
				s.MaxConcurrent, s.Canary = 5, 3
				id := f.submit(e, s)
				if tt.early {
					time.Sleep(time.Second)
					f.must(e.Pause(t.Context(), ada, id))
					time.Sleep(time.Second)
					f.must(e.Resume(t.Context(), ada, id))
				}
				if tt.pauses {
					time.Sleep(time.Hour)
					b, _ := f.read(id)
					if b.State != fleet.BatchPaused || b.PausedBy != fleet.PausedByCanary || b.Counts.Succeeded != 3 || b.Counts.Queued != tt.nodes-3 || b.Note == "" {
						t.Errorf("batch is %+v", b)
					}
					f.must(e.Resume(t.Context(), ada, id))
				}
				b, _ := f.wait(id)
				if b.Counts.Succeeded != tt.nodes || b.PausedBy != "" || b.Note != "" {
					t.Errorf("batch is %+v", b)
				}
				pauses, err := f.store.Entries(t.Context(), fleet.AuditFilter{Action: "batch.pause"})
				want := 0
				if tt.pauses {
					want++
				}
				if tt.early {
					want++
				}
				if err != nil || len(pauses) != want {
					t.Errorf("%d pauses on record (%v), want %d", len(pauses), err, want)
				}
			})
		})
	}
}

func TestEngine_Skip(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		world := newDrains(20, time.Second)
		e := f.draining(world)
		f.run(e)
		id := f.submit(e, drainSpec(1, names(4)...))
		time.Sleep(5500 * time.Millisecond)
		f.must(e.Skip(t.Context(), ada, id, 2))
		f.must(e.Skip(t.Context(), ada, id, 0))
		asked := time.Now()
		synctest.Wait()
		time.Sleep(200 * time.Millisecond)
		b, items := f.read(id)
		if it := items[0]; it.State != fleet.ItemSkipped || it.Code != fleet.CodeSkipped || !it.Changed || it.Drain == nil || it.Drain.Evicted != 6 {
			t.Errorf("%s after it was let go of: %+v with %+v", time.Since(asked), it, it.Drain)
		}
		if b.Counts.Running != 1 || items[1].State != fleet.ItemRunning {
			t.Errorf("batch is %+v", b)
		}
		for _, seq := range []int{0, 2} {
			if err := e.Skip(t.Context(), ada, id, seq); !errors.Is(err, fleet.ErrConflict) {
				t.Errorf("leaving out %d again: %v", seq, err)
			}
		}
		if err := e.Skip(t.Context(), ada, id, 9); !errors.Is(err, fleet.ErrNotFound) {
			t.Errorf("leaving out what is not there: %v", err)
		}
		viewer := ada
		viewer.Role = fleet.RoleViewer
		for doing, err := range map[string]error{
			"Skip": e.Skip(t.Context(), viewer, id, 1), "Pause": e.Pause(t.Context(), viewer, id), "Resume": e.Resume(t.Context(), viewer, id),
		} {
			if !errors.Is(err, fleet.ErrForbidden) {
				t.Errorf("%s by a viewer: %v", doing, err)
			}
		}
		b, items = f.wait(id)
		if b.Counts.Succeeded != 2 || b.Counts.Skipped != 2 || b.Outcome != fleet.OutcomeSucceeded || items[2].Attempt != 0 {
			t.Errorf("batch is %+v, items %+v", b, items)
		}
		es, err := f.store.Entries(t.Context(), fleet.AuditFilter{Action: "batch.skip"})
		if err != nil || len(es) != 2 || es[0].Node != "n0" || es[1].Node != "n2" {
			t.Errorf("on record: %+v, %v", es, err)
		}
	})
}

// A node that is let go of while it is changed is looked at: the change may have landed.
func TestEngine_SkipOfWhatCanBeTakenBack(t *testing.T) {
	t.Parallel()
	for _, landed := range []bool{false, true} {
		t.Run(fmt.Sprintf("landed=%v", landed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				f.world.takes = time.Hour // its API server does not answer
				e := f.engine()
				f.run(e)
				id := f.submit(e, spec("n0"))
				time.Sleep(time.Minute)
				if landed {
					ref := fleet.NodeRef{Cluster: "prod", Name: "n0"}
					f.world.mu.Lock()
					f.world.by[ref], f.world.writes[ref] = id, 1
					f.world.mu.Unlock()
				}
				f.must(e.Skip(t.Context(), ada, id, 0))
				b, items := f.wait(id)
				want := fleet.ItemSkipped
				if landed {
					want = fleet.ItemSucceeded
				}
				if items[0].State != want || items[0].Changed != landed || b.EndedAt.Sub(b.StartedAt) > 61*time.Second {
					t.Errorf("item is %+v of %+v", items[0], b)
				}
			})
		})
	}
}

// Nodes that somebody left out are not waited for.
func TestEngine_SkipWhileNothingCanStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		sky := &atlas{}
		sky.leave("prod", "x", "y")
		e := f.engine(func(c *batch.Config) { c.Lookup = sky })
		f.run(e)
		s := spec(names(2)...)
		s.MaxUnavailable = 1
		id := f.submit(e, s)
		time.Sleep(time.Minute)
		for seq := range 2 {
			f.must(e.Skip(t.Context(), ada, id, seq))
		}
		if b, _ := f.wait(id); b.Counts.Skipped != 2 || f.world.started() != 0 {
			t.Errorf("batch is %+v", b)
		}
	})
}

// What loses the person behind it the right to go on lets go of its drains.
func TestEngine_AuthorityLostLetsGoOfDrains(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		world := newDrains(100, time.Second)
		e := f.engine(func(c *batch.Config) { c.Doer = &demoted{drains: world, from: time.Now().Add(30 * time.Second)} })
		f.run(e)
		s := drainSpec(2, names(5)...)
		s.PauseBetween = 40*time.Second + 500*time.Millisecond // between two evictions
		b, items := f.wait(f.submit(e, s))
		if b.Outcome != fleet.OutcomeCancelled || b.Counts.Cancelled != 5 {
			t.Errorf("batch is %+v", b)
		}
		if it := items[0]; it.Code != fleet.CodeAuthorityLost || it.Drain == nil || it.Drain.Evicted != 41 {
			t.Errorf("the drain that was under way: %+v with %+v", it, it.Drain)
		}
	})
}

type demoted struct {
	*drains
	from time.Time
}

func (d *demoted) Do(ctx context.Context, t fleet.Task) (fleet.ItemResult, error) {
	if time.Now().After(d.from) {
		return fleet.ItemResult{}, fleet.ErrAuthorityLost
	}
	return d.drains.Do(ctx, t)
}

func TestEngine_PerClusterAndPerZone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		world := newDrains(1, time.Minute)
		e := f.draining(world, func(c *batch.Config) {
			c.Lookup = &atlas{zone: func(ref fleet.NodeRef) string { return ref.Name[len(ref.Name)-1:] }}
		})
		f.run(e)
		s := drainSpec(50)
		for i := range 20 {
			for _, c := range []string{"prod", "staging"} {
				s.Nodes = append(s.Nodes, fleet.NodeRef{Cluster: c, Name: fmt.Sprintf("n%d-%d", i, i%2)})
			}
		}
		s.PerCluster, s.PerZone = 3, 2
		b, items := f.wait(f.submit(e, s))
		most, by := world.peaks()
		if most != 6 || by["prod"] != 3 || by["staging"] != 3 || b.Counts.Succeeded != 40 {
			t.Errorf("%d at once, %v; batch is %+v", most, by, b)
		}
		for _, x := range items {
			at := 0
			for _, y := range items {
				if x.Ref.Cluster == y.Ref.Cluster && x.Zone == y.Zone && !y.StartedAt.After(x.StartedAt) && y.EndedAt.After(x.StartedAt) {
					at++
				}
			}
			if at > 2 {
				t.Errorf("%d nodes at once in zone %s of %s", at, x.Zone, x.Ref.Cluster)
			}
		}
	})
}

func TestEngine_SubmitLooksAtThePlan(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	p := &planner{plan: fleet.Plan{Digest: "d1", Confirm: "prod", Why: []string{fleet.ConfirmManyNodes}, Clusters: []fleet.ClusterPlan{
		{Cluster: "prod", Nodes: []fleet.NodePlan{
			{NodeRef: fleet.NodeRef{Cluster: "prod", Name: "n0"}, Counts: fleet.PodCounts{Evict: 9}},
			{NodeRef: fleet.NodeRef{Cluster: "prod", Name: "n1"}, Counts: fleet.PodCounts{Evict: 3}},
		}},
	}}}
	e := f.engine(func(c *batch.Config) { c.Planner = p })
	s := drainSpec(0, "n0", "n1")
	s.Order = ""
	plan, err := e.Plan(t.Context(), ada, s)
	if err != nil || plan.Digest != "d1" || p.items[0].UID != "uid-n0" {
		t.Fatalf("Plan = %+v, %v", plan, err)
	}
	_, err = e.Submit(t.Context(), ada, s)
	if fe, ok := errors.AsType[*fleet.FieldError](err); !ok || fe.Field != "confirm" || !strings.Contains(fe.Message, `"prod"`) {
		t.Errorf("without a confirmation: %v", err)
	}
	s.Confirm, s.PlanDigest = "prod ", "d0"
	_, err = e.Submit(t.Context(), ada, s)
	if ce, ok := errors.AsType[*fleet.PlanChangedError](err); !ok || ce.Seen != "d0" || ce.Now != "d1" || !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("with a plan that has changed: %v", err)
	}
	if bs, err := e.List(t.Context(), ada, fleet.BatchFilter{}); err != nil || len(bs) != 0 {
		t.Errorf("refused requests left %d batches (%v)", len(bs), err)
	}
	s.PlanDigest, s.IdempotencyKey = "d1", "k"
	id := f.submit(e, s)
	if kept, err := e.BatchPlan(t.Context(), ada, id); err != nil || kept.Digest != "d1" || len(kept.Clusters[0].Nodes) != 2 {
		t.Errorf("BatchPlan = %+v, %v", kept, err)
	}
	b, items := f.read(id)
	if b.Rollout.MaxConcurrent != 1 || b.Rollout.Order != fleet.OrderZone || items[0].Ref.Name != "n1" {
		t.Errorf("a drain by default is %+v, and begins with %s", b.Rollout, items[0].Ref)
	}
	// The second request of a form that was sent twice is answered with the first one's batch, whatever that has changed.
	p.plan.Digest = "d2"
	if again := f.submit(e, s); again != id {
		t.Errorf("the same request again made %s", again)
	}
	p.err = fleet.ErrUnavailable
	if _, err := e.Submit(t.Context(), ada, drainSpec(1, "n3")); !errors.Is(err, fleet.ErrUnavailable) {
		t.Errorf("without a plan: %v", err)
	}
	calls := p.calls
	if b, _ := f.read(f.submit(e, spec("n4"))); p.calls != calls || b.Rollout.MaxConcurrent != 10 || b.Rollout.Order != fleet.OrderGiven {
		t.Errorf("cordoning made a plan, or goes over its nodes by %+v", b.Rollout)
	}
	if _, err := e.BatchPlan(t.Context(), ada, f.submit(e, spec("n6"))); !errors.Is(err, fleet.ErrNotFound) {
		t.Errorf("plan of a batch without one: %v", err)
	}
}

// Everything that can end pods is looked at first.
func TestEngine_SubmitKnowsWhatIsDisruptive(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		op   fleet.Operation
		want bool
	}{
		{"drain", fleet.Operation{Action: fleet.ActionDrain}, true},
		{"cordon", fleet.Operation{Action: fleet.ActionCordon}, false},
		{"labels", fleet.Operation{Action: fleet.ActionLabels, Labels: []string{"a=NoExecute"}}, false},
		{"protected labels", fleet.Operation{Action: fleet.ActionLabels, Labels: []string{"a=b"}, AllowProtected: true}, true},
		{"NoSchedule", fleet.Operation{Action: fleet.ActionTaints, Taints: []string{"a=b:NoSchedule"}}, false},
		{"NoExecute", fleet.Operation{Action: fleet.ActionTaints, Taints: []string{"a=b:NoSchedule", " a:NoExecute "}}, true},
		{"NoExecute goes", fleet.Operation{Action: fleet.ActionTaints, Taints: []string{"a:NoExecute-", "NoExecute-"}}, false},
		{"of a template", fleet.Operation{Action: fleet.ActionTemplate, Taints: []string{"a:NoExecute"}}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			p := &planner{}
			e := f.engine(func(c *batch.Config) { c.Planner = p })
			s := spec("n0")
			s.Operation = tt.op
			f.submit(e, s)
			if p.calls > 0 != tt.want {
				t.Errorf("planned %d times, want it planned: %v", p.calls, tt.want)
			}
		})
	}
}

func TestEngine_Retry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		broken := true
		f.world.fail = func(ref fleet.NodeRef) error {
			if broken && ref.Name != "n0" {
				return fleet.ErrUnavailable
			}
			return nil
		}
		e := f.engine()
		f.run(e)
		s := spec(names(6)...)
		s.MaxConcurrent, s.MaxFailures, s.Reason = 1, 2, "disk swap"
		id := f.submit(e, s)
		if _, err := e.Retry(t.Context(), ada, id, ""); !errors.Is(err, fleet.ErrConflict) {
			t.Errorf("repeating what is not done: %v", err)
		}
		f.wait(id)
		broken = false
		again, err := e.Retry(t.Context(), ada, id, "k1")
		if err != nil {
			t.Fatal(err)
		}
		if twice, err := e.Retry(t.Context(), ada, id, "k1"); err != nil || twice.ID != again.ID {
			t.Errorf("the same request again made %s, %v", twice.ID, err)
		}
		b, items := f.wait(again.ID)
		if b.Parent != id || b.Operation.Reason != "disk swap" || b.Rollout.MaxFailures != 2 || b.Counts.Succeeded != 5 || len(items) != 5 || items[0].Ref.Name != "n1" {
			t.Errorf("batch is %+v, items %+v", b, items)
		}
		if list, err := e.List(t.Context(), ada, fleet.BatchFilter{Parent: id}); err != nil || len(list) != 1 {
			t.Errorf("batches after %s: %+v, %v", id, list, err)
		}
		if _, err := e.Retry(t.Context(), ada, again.ID, ""); !errors.Is(err, fleet.ErrConflict) {
			t.Errorf("repeating what has nothing to repeat: %v", err)
		}
		if _, err := e.Retry(t.Context(), ada, "nothing", ""); !errors.Is(err, fleet.ErrNotFound) {
			t.Errorf("repeating nothing: %v", err)
		}
		if _, err := e.Retry(t.Context(), ada, id, "a\nb"); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("with a key that is none: %v", err)
		}
		viewer := ada
		viewer.Role = fleet.RoleViewer
		if _, err := e.Retry(t.Context(), viewer, id, ""); !errors.Is(err, fleet.ErrForbidden) {
			t.Errorf("by a viewer: %v", err)
		}
	})
}

// Retrying a drain was confirmed when the drain was.
func TestEngine_RetryOfADrain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		world := newDrains(5, time.Second)
		p := &planner{plan: fleet.Plan{Digest: "d", Confirm: "prod"}}
		e := f.draining(world, func(c *batch.Config) { c.Planner = p })
		f.run(e)
		s := drainSpec(1, names(2)...)
		s.Confirm = "prod"
		id := f.submit(e, s)
		time.Sleep(2500 * time.Millisecond)
		f.must(e.Cancel(t.Context(), ada, id))
		f.wait(id)
		again, err := e.Retry(t.Context(), ada, id, "")
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := f.wait(again.ID); b.Counts.Succeeded != 2 || len(world.evictions()) != 10 || len(world.twice()) != 0 {
			t.Errorf("batch is %+v", b)
		}
		if _, err := e.BatchPlan(t.Context(), ada, again.ID); err != nil || p.calls != 2 {
			t.Errorf("it was planned %d times, %v", p.calls, err)
		}
	})
}

// editing is a cluster that says what it changed, and what it was asked to take back.
type editing struct {
	*world
	mu   sync.Mutex
	undo map[fleet.NodeRef][]fleet.Edit
}

func (d *editing) Do(ctx context.Context, t fleet.Task) (fleet.ItemResult, error) {
	res, err := d.world.Do(ctx, t)
	d.mu.Lock()
	defer d.mu.Unlock()
	if t.Operation.Action == fleet.ActionRevert {
		d.undo[t.Item.Ref] = t.Item.Undo
		for _, u := range t.Item.Undo {
			res.Edits = append(res.Edits, fleet.Edit{Kind: u.Kind, Key: u.Key, Effect: u.Effect, Before: u.After, After: u.Before, Outcome: fleet.EditChanged})
		}
		return res, err
	}
	was, is := "old", "new"
	switch t.Item.Ref.Name {
	case "n1": // is so already
		res = fleet.ItemResult{State: fleet.ItemSkipped, Code: fleet.CodeUnchanged, Edits: []fleet.Edit{
			{Kind: fleet.EditLabel, Key: "a", Before: &is, After: &is, Outcome: fleet.EditUnchanged},
		}}
	case "n2":
		return fleet.ItemResult{}, fleet.ErrUnavailable
	default:
		res.Edits = []fleet.Edit{
			{Kind: fleet.EditLabel, Key: "a", Before: &was, After: &is, Outcome: fleet.EditChanged},
			{Kind: fleet.EditLabel, Key: "b", Before: &is, After: &is, Outcome: fleet.EditKept},
			{Kind: fleet.EditTaint, Key: "c", Effect: fleet.NoExecute, Before: &was, Outcome: fleet.EditRemoved},
		}
	}
	return res, err
}

func TestEngine_Revert(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		doer := &editing{world: f.world, undo: make(map[fleet.NodeRef][]fleet.Edit)}
		p := &planner{}
		e := f.engine(func(c *batch.Config) { c.Doer, c.Planner = doer, p })
		f.run(e)
		s := spec(names(5)...)
		s.Operation = fleet.Operation{Action: fleet.ActionLabels, Labels: []string{"a=new"}}
		done := f.submit(e, s)
		revert := func(id string, nodes ...string) fleet.BatchSpec {
			s := spec(nodes...)
			s.Operation = fleet.Operation{Action: fleet.ActionRevert, Revert: id, Reason: "it was wrong"}
			return s
		}
		if _, err := e.Submit(t.Context(), ada, revert(done)); !errors.Is(err, fleet.ErrConflict) {
			t.Errorf("taking back what is not done: %v", err)
		}
		f.wait(done)
		for _, tt := range []struct{ id, node, field string }{
			{"", "", "batch"}, {"nothing", "", "batch"}, {done, "n9", "nodes"},
		} {
			s := revert(tt.id)
			if tt.node != "" {
				s = revert(tt.id, tt.node)
			}
			for doing, ask := range map[string]func() error{
				"Submit": func() error { _, err := e.Submit(t.Context(), ada, s); return err },
				"Plan":   func() error { _, err := e.Plan(t.Context(), ada, s); return err },
			} {
				if fe, ok := errors.AsType[*fleet.FieldError](ask()); !ok || fe.Field != tt.field {
					t.Errorf("%s of %+v: %v, want %s named", doing, tt, ask(), tt.field)
				}
			}
		}
		same := spec("x")
		same.Operation = s.Operation
		same.Nodes[0].Name = "n1"
		unchanged := f.submit(e, same)
		f.wait(unchanged)
		if _, err := e.Submit(t.Context(), ada, revert(unchanged)); !errors.Is(err, fleet.ErrInvalid) {
			t.Errorf("taking back what changed nothing: %v", err)
		}

		b, items := f.wait(f.submit(e, revert(done)))
		if b.Parent != done || b.Operation.Revert != done || b.Counts.Succeeded != 3 || p.calls == 0 {
			t.Errorf("batch is %+v, planned %d times", b, p.calls)
		}
		var nodes []string
		for _, it := range items {
			nodes = append(nodes, it.Ref.Name)
			undo := doer.undo[it.Ref]
			if len(undo) != 2 || undo[0].Key != "a" || *undo[0].Before != "old" || *undo[0].After != "new" || undo[1].Key != "c" || undo[1].After != nil {
				t.Errorf("%s is to take back %+v", it.Ref, undo)
			}
			if it.UID != "uid-"+it.Ref.Name {
				t.Errorf("%s is meant as %s", it.Ref, it.UID)
			}
		}
		if diff := cmp.Diff([]string{"n0", "n3", "n4"}, nodes); diff != "" {
			t.Errorf("nodes (-want +got):\n%s", diff)
		}
		// And back again, of one node.
		b, items = f.wait(f.submit(e, revert(b.ID, "n3")))
		if b.Counts.Total != 1 || *doer.undo[items[0].Ref][0].After != "old" {
			t.Errorf("batch is %+v", b)
		}
	})
}

// Whoever may not do something may not take it back either.
func TestEngine_RevertAsksForWhatWasDone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		doer := &editing{world: f.world, undo: make(map[fleet.NodeRef][]fleet.Edit)}
		var mu sync.Mutex
		denied := fleet.Action("")
		e := f.engine(func(c *batch.Config) {
			c.Doer = doer
			c.Authorizer = &refusing{refuse: func(a fleet.Action) bool { mu.Lock(); defer mu.Unlock(); return a == denied }}
		})
		f.run(e)
		s := spec("n0")
		s.Operation = fleet.Operation{Action: fleet.ActionTaints, Taints: []string{"c:NoExecute-"}}
		done := f.submit(e, s)
		f.wait(done)
		s.Operation = fleet.Operation{Action: fleet.ActionRevert, Revert: done}
		back := f.submit(e, s)
		f.wait(back)
		mu.Lock()
		denied = fleet.ActionTaints
		mu.Unlock()
		for _, id := range []string{done, back} {
			s.Revert = id
			if _, err := e.Submit(t.Context(), ada, s); !errors.Is(err, fleet.ErrForbidden) {
				t.Errorf("taking back %s: %v, want ErrForbidden", id, err)
			}
		}
	})
}

type refusing struct {
	permit
	refuse func(fleet.Action) bool
}

func (a *refusing) Authorize(ctx context.Context, by fleet.Caller, op fleet.Operation, refs []fleet.NodeRef) error {
	if a.refuse(op.Action) {
		return fleet.ErrForbidden
	}
	return a.permit.Authorize(ctx, by, op, refs)
}

// A drain that tells ten thousand events is not slowed down by its record, and the record is whole where it matters.
func TestEngine_ADrainThatTellsTenThousandEvents(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		e := f.engine(func(c *batch.Config) {
			c.Doer = doFunc(func(_ context.Context, t fleet.Task) (fleet.ItemResult, error) {
				n := 0
				tell := func(pod int, s fleet.PodState) {
					n++
					t.Tell(fleet.DrainEvent{Seq: n, At: time.Now(), Pod: &fleet.PodProgress{UID: fmt.Sprint(pod), State: s, Evicted: s == fleet.PodGone}})
				}
				began := time.Now()
				for i := range 9890 {
					tell(i%110, fleet.PodBlockedByPDB)
				}
				for pod := range 110 {
					tell(pod, fleet.PodGone)
				}
				if took := time.Since(began); took != 0 {
					return fleet.ItemResult{}, fmt.Errorf("telling took %s", took)
				}
				return fleet.ItemResult{State: fleet.ItemSucceeded}, nil
			})
		})
		f.run(e)
		id := f.submit(e, drainSpec(1, "n0"))
		b, items := f.wait(id)
		if b.Counts.Succeeded != 1 {
			t.Fatalf("item is %+v", items[0])
		}
		if d := items[0].Drain; d == nil || d.Evicted != 110 || len(d.Pods) != 110 {
			t.Errorf("the drain is %+v", d)
		}
		es, err := e.Events(t.Context(), ada, id, 0, 5000)
		if err != nil {
			t.Fatal(err)
		}
		gone := 0
		for _, e := range es {
			if e.Event.Pod.State == fleet.PodGone {
				gone++
			}
		}
		if gone != 110 || len(es) > 3000 || len(es) < 1000 {
			t.Errorf("%d events with %d pods gone", len(es), gone)
		}
		if b.Version > 30 {
			t.Errorf("it took %d changes of the batch", b.Version)
		}
	})
}

type doFunc func(ctx context.Context, t fleet.Task) (fleet.ItemResult, error)

func (f doFunc) Do(ctx context.Context, t fleet.Task) (fleet.ItemResult, error) { return f(ctx, t) }

func (doFunc) Resolve(context.Context, fleet.Task) (fleet.ItemResult, error) {
	return fleet.ItemResult{}, errors.New("nothing to resolve")
}

// A running drain shows how far it is: its item moves with the version of the batch, in bounded steps.
func TestEngine_ProgressMovesTheItem(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		world := newDrains(50, 100*time.Millisecond)
		e := f.draining(world)
		f.run(e)
		id := f.submit(e, drainSpec(3, names(3)...))
		seen := make(map[int]int)
		version := int64(0)
		for {
			b, items, err := e.BatchSince(t.Context(), id, version)
			f.must(err)
			for _, it := range items {
				if it.State == fleet.ItemRunning && it.Drain != nil {
					seen[it.Drain.Evicted]++
				}
			}
			if version = b.Version; b.State == fleet.BatchDone {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if len(seen) < 15 {
			t.Errorf("only %d steps of the progress were seen", len(seen))
		}
		if version > 50 { // 5 s of three drains, written five times a second, all at once
			t.Errorf("three drains of 5 s took %d changes", version)
		}
	})
}
