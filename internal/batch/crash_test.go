package batch_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/batch"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

var errDead = errors.New("the process is dead")

// faulty is a store that a test can stand in front of: each call of an owner goes through around.
type faulty struct {
	batch.Store
	around func(call string, do func() error) error
}

func (s *faulty) do(call string, f func() error) error { return s.around(call, f) }

func (s *faulty) RunnableBatches(ctx context.Context, holder string, limit int) (ids []string, err error) {
	err = s.do("runnable", func() error { ids, err = s.Store.RunnableBatches(ctx, holder, limit); return err })
	return ids, err
}

func (s *faulty) AcquireBatch(ctx context.Context, id, holder string, ttl time.Duration) (l fleet.BatchLease, b fleet.Batch, err error) {
	err = s.do("acquire", func() error { l, b, err = s.Store.AcquireBatch(ctx, id, holder, ttl); return err })
	return l, b, err
}

func (s *faulty) RenewBatch(ctx context.Context, l fleet.BatchLease, ttl time.Duration) (steer fleet.BatchSteer, err error) {
	err = s.do("renew", func() error { steer, err = s.Store.RenewBatch(ctx, l, ttl); return err })
	return steer, err
}

func (s *faulty) HoldBatch(ctx context.Context, l fleet.BatchLease, by, note string, e fleet.Entry) (steer fleet.BatchSteer, err error) {
	err = s.do("hold", func() error { steer, err = s.Store.HoldBatch(ctx, l, by, note, e); return err })
	return steer, err
}

func (s *faulty) NoteBatch(ctx context.Context, l fleet.BatchLease, note string) error {
	return s.do("note", func() error { return s.Store.NoteBatch(ctx, l, note) })
}

func (s *faulty) RecordProgress(ctx context.Context, l fleet.BatchLease, p ...fleet.ItemProgress) error {
	return s.do("progress", func() error { return s.Store.RecordProgress(ctx, l, p...) })
}

func (s *faulty) ReleaseBatch(ctx context.Context, l fleet.BatchLease) error {
	return s.do("release", func() error { return s.Store.ReleaseBatch(ctx, l) })
}

func (s *faulty) StartBatch(ctx context.Context, l fleet.BatchLease) (b fleet.Batch, by fleet.Caller, items []fleet.Item, err error) {
	err = s.do("start", func() error { b, by, items, err = s.Store.StartBatch(ctx, l); return err })
	return b, by, items, err
}

func (s *faulty) ClaimItem(ctx context.Context, l fleet.BatchLease, seq int) error {
	return s.do("claim", func() error { return s.Store.ClaimItem(ctx, l, seq) })
}

func (s *faulty) FinishItem(ctx context.Context, l fleet.BatchLease, it fleet.Item) error {
	return s.do("finish", func() error { return s.Store.FinishItem(ctx, l, it) })
}

func (s *faulty) EndBatch(ctx context.Context, l fleet.BatchLease, end fleet.BatchEnd) error {
	return s.do("end", func() error { return s.Store.EndBatch(ctx, l, end) })
}

func (s *faulty) InterruptBatch(ctx context.Context, l fleet.BatchLease, note string, retry time.Duration) error {
	return s.do("interrupt", func() error { return s.Store.InterruptBatch(ctx, l, note, retry) })
}

// death kills a process at its n-th step, before or after the step has happened. From then on nothing that it does has
// an effect.
type death struct {
	mu    sync.Mutex
	steps int
	at    int // 0 for never
	late  bool
	dead  chan struct{}
}

func (d *death) step(_ string, do func() error) error {
	d.mu.Lock()
	d.steps++
	mine := d.steps == d.at
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

// TestEngine_KillPoints kills the owner at each of its steps, and a new process with the same name goes on. Whatever the
// step, each node is written exactly once and the batch ends as if nothing had been.
func TestEngine_KillPoints(t *testing.T) {
	t.Parallel()
	const nodes = 4
	// kill runs a batch whose owner dies at a step; it answers how many steps there were.
	kill := func(t *testing.T, at int, late bool) (steps int) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t)
			d := &death{at: at, late: late, dead: make(chan struct{})}
			doomed := &faulty{Store: f.store, around: d.step}
			f.world.takes = 10 * time.Millisecond
			// The write is a step of its own: a dead process writes nothing, and one that dies right after the write
			// records nothing.
			first := newWorldView(f.world, d)
			a := f.engine(func(c *batch.Config) { c.Store, c.Doer = doomed, first })
			stop := f.run(a)
			s := spec(names(nodes)...)
			s.MaxConcurrent = 2
			id := f.submit(a, s)
			if at > 0 {
				<-d.dead
			} else {
				f.wait(id)
			}
			stop()
			restarted := time.Now()
			f.run(f.engine())
			b, items := f.wait(id)
			if b.Outcome != fleet.OutcomeSucceeded || b.Counts.Succeeded != nodes {
				t.Errorf("step %d (late %v): batch is %+v", at, late, b)
			}
			for _, it := range items {
				if n := f.world.writesOf(it.Ref); n != 1 {
					t.Errorf("step %d (late %v): %s was written %d times", at, late, it.Ref, n)
				}
				if !it.Changed || it.State != fleet.ItemSucceeded {
					t.Errorf("step %d (late %v): item is %+v", at, late, it)
				}
			}
			if took := b.EndedAt.Sub(restarted); took > 10*time.Second {
				t.Errorf("step %d (late %v): went on after %s", at, late, took)
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			steps = d.steps
		})
		return steps
	}
	total := kill(t, 0, false)
	if total < 3*nodes {
		t.Fatalf("a whole batch took %d steps only: the kill points are not seen", total)
	}
	for at := 1; at <= total; at++ {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d/late=%v", at, late), func(t *testing.T) {
				t.Parallel()
				kill(t, at, late)
			})
		}
	}
}

// worldView is the world as a process sees it that may die.
type worldView struct {
	world *world
	death *death
}

func newWorldView(w *world, d *death) *worldView { return &worldView{w, d} }

func (v *worldView) Do(ctx context.Context, t fleet.Task) (fleet.ItemResult, error) {
	var res fleet.ItemResult
	err := v.death.step("write", func() (err error) {
		res, err = v.world.Do(ctx, t)
		return err
	})
	if errors.Is(err, errDead) {
		return fleet.ItemResult{}, fmt.Errorf("%w: %w", fleet.ErrNotRecorded, err)
	}
	return res, err
}

func (v *worldView) Resolve(ctx context.Context, t fleet.Task) (fleet.ItemResult, error) {
	return v.world.Resolve(ctx, t)
}

// TestEngine_KillPointsOfACancelledBatch kills the owner at each step of a batch that is then cancelled: nothing more is
// written, and what was written is known.
func TestEngine_KillPointsOfACancelledBatch(t *testing.T) {
	t.Parallel()
	const nodes = 4
	for at := 1; at <= 3*nodes+2; at++ {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d/late=%v", at, late), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					f := newFixture(t)
					d := &death{at: at, late: late, dead: make(chan struct{})}
					a := f.engine(func(c *batch.Config) {
						c.Store = &faulty{Store: f.store, around: d.step}
						c.Doer = newWorldView(f.world, d)
					})
					stop := f.run(a)
					s := spec(names(nodes)...)
					s.MaxConcurrent = 2
					id := f.submit(a, s)
					<-d.dead
					stop()
					written := f.world.written()
					b := f.engine()
					if err := b.Cancel(t.Context(), ada, id); err != nil {
						t.Fatal(err)
					}
					f.run(b)
					got, items := f.wait(id)
					if n := f.world.written(); n != written {
						t.Errorf("%d nodes were written after the cancellation", n-written)
					}
					for _, it := range items {
						if changed := f.world.writesOf(it.Ref) > 0; changed != it.Changed || changed != (it.State == fleet.ItemSucceeded) {
							t.Errorf("the node was written: %v; the item is %+v", changed, it)
						}
					}
					if got.Counts.Finished() != nodes {
						t.Errorf("counts are %+v", got.Counts)
					}
				})
			})
		}
	}
}

// TestEngine_FrozenOwnerChangesNothingWhenItWakes stops an owner as SIGSTOP does. Another one takes over when the lease
// has run out, and the first one wakes up to find that nothing is its business any more.
func TestEngine_FrozenOwnerChangesNothingWhenItWakes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		var (
			mu     sync.Mutex
			frozen chan struct{} // nil while awake
		)
		sleep := func() {
			mu.Lock()
			c := frozen
			mu.Unlock()
			if c != nil {
				<-c
			}
		}
		doer := newWorld()
		doer.by, doer.writes = f.world.by, f.world.writes // the same cluster, seen by another process
		doer.takes = time.Second
		f.world.takes = time.Second
		shared := &lockedPair{a: doer, b: f.world}
		a := f.engine(func(c *batch.Config) {
			c.Store = &faulty{Store: f.store, around: func(_ string, do func() error) error { sleep(); return do() }}
			c.Doer = shared.first(sleep)
		})
		f.run(a)
		s := spec(names(60)...)
		s.MaxConcurrent = 3
		id := f.submit(a, s)
		time.Sleep(4500 * time.Millisecond)

		mu.Lock()
		frozen = make(chan struct{})
		mu.Unlock()
		froze := time.Now()
		b := f.engine(func(c *batch.Config) { c.Holder, c.Doer = "b", shared.second() })
		f.run(b)
		for f.world.started() == 0 {
			time.Sleep(100 * time.Millisecond)
		}
		if took := time.Since(froze); took > 20*time.Second {
			t.Errorf("the second owner began after %s", took)
		}
		time.Sleep(3 * time.Second)
		before := doer.started()
		mu.Lock()
		close(frozen)
		frozen = nil
		mu.Unlock()

		got, items := f.wait(id)
		if got.Outcome != fleet.OutcomeSucceeded || got.Counts.Succeeded != 60 {
			t.Errorf("batch is %+v", got)
		}
		for _, it := range items {
			if n := f.world.writesOf(it.Ref); n != 1 {
				t.Errorf("%s was written %d times", it.Ref, n)
			}
		}
		if n := doer.started(); n != before {
			t.Errorf("the first owner began with %d nodes after it had woken up", n-before)
		}
	})
}

// TestEngine_OwnerThatCannotRenewStopsInTime: an owner that cannot prove any more that it is one has let go of its nodes
// before the lease has run out and somebody else may take them.
func TestEngine_OwnerThatCannotRenewStopsInTime(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		renew func(ctx context.Context) error
	}{
		{"errors", func(context.Context) error { return fleet.ErrUnavailable }},
		{"silence", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				f.world.takes = time.Hour
				from := time.Now().Add(time.Minute)
				s := &renewals{Store: f.store, renew: func(ctx context.Context) error {
					if time.Now().Before(from) {
						return nil
					}
					return tt.renew(ctx)
				}}
				a := f.engine(func(c *batch.Config) { c.Store = s })
				f.run(a)
				f.submit(a, spec("n0"))
				time.Sleep(2 * time.Minute)
				over := f.world.given()
				if len(over) == 0 {
					t.Fatal("the node is still being worked on")
				}
				if held := over[0].Sub(s.last()); held > 15*time.Second {
					t.Errorf("let go %s after the last renewal, and the lease lasts 15 s", held)
				}
			})
		})
	}
}

// renewals watches and breaks the renewals of leases.
type renewals struct {
	batch.Store
	renew func(ctx context.Context) error
	mu    sync.Mutex
	good  time.Time
}

func (s *renewals) RenewBatch(ctx context.Context, l fleet.BatchLease, ttl time.Duration) (fleet.BatchSteer, error) {
	if err := s.renew(ctx); err != nil {
		return fleet.BatchSteer{}, err
	}
	s.mu.Lock()
	s.good = time.Now()
	s.mu.Unlock()
	return s.Store.RenewBatch(ctx, l, ttl)
}

func (s *renewals) last() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.good
}

// lockedPair are two worlds over the same maps; one lock keeps them one cluster.
type lockedPair struct {
	mu   sync.Mutex
	a, b *world
}

type pairDoer struct {
	pair  *lockedPair
	w     *world
	sleep func()
}

func (p *lockedPair) first(sleep func()) batch.Doer { return &pairDoer{p, p.a, sleep} }
func (p *lockedPair) second() batch.Doer            { return &pairDoer{p, p.b, func() {}} }

func (d *pairDoer) Do(ctx context.Context, t fleet.Task) (fleet.ItemResult, error) {
	d.w.mu.Lock()
	d.w.calls++
	d.w.mu.Unlock()
	select {
	case <-ctx.Done():
		return fleet.ItemResult{}, ctx.Err()
	case <-time.After(d.w.takes):
	}
	d.sleep()
	if ctx.Err() != nil {
		return fleet.ItemResult{}, ctx.Err()
	}
	d.pair.mu.Lock()
	defer d.pair.mu.Unlock()
	if d.w.by[t.Item.Ref] != t.Batch {
		d.w.by[t.Item.Ref] = t.Batch
		d.w.writes[t.Item.Ref]++
	}
	return fleet.ItemResult{State: fleet.ItemSucceeded, Changed: true}, nil
}

func (d *pairDoer) Resolve(context.Context, fleet.Task) (fleet.ItemResult, error) {
	return fleet.ItemResult{}, errors.New("nothing to resolve")
}

func TestEngine_ShutdownStopsAtAnItemBoundary(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.world.takes = 3 * time.Second
		a := f.engine()
		stop := f.run(a)
		s := spec(names(30)...)
		s.MaxConcurrent = 5
		id := f.submit(a, s)
		time.Sleep(4 * time.Second) // in the middle of the second round
		asked := time.Now()
		stop()
		if took := time.Since(asked); took > 3*time.Second {
			t.Errorf("stopping took %s", took)
		}
		b, _ := f.read(id)
		want := fleet.Counts{Total: 30, Succeeded: 10, Queued: 20}
		if diff := cmp.Diff(want, b.Counts); diff != "" || b.State != fleet.BatchRunning {
			t.Errorf("state %s, counts (-want +got):\n%s", b.State, diff)
		}
		restarted := time.Now()
		f.world.slower(time.Second)
		other := f.engine(func(c *batch.Config) { c.Holder = "b" }) // the lease was given back, so that anybody may go on at once
		f.run(other)
		b, _ = f.wait(id)
		if b.Counts.Succeeded != 30 || f.world.written() != 30 || b.EndedAt.Sub(restarted) > 6*time.Second {
			t.Errorf("batch is %+v, %d writes, %s after the start", b, f.world.written(), b.EndedAt.Sub(restarted))
		}
	})
}

func TestEngine_ShutdownDoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.world.takes = time.Hour // a cluster that does not answer
		a := f.engine()
		stop := f.run(a)
		id := f.submit(a, spec(names(3)...))
		time.Sleep(time.Minute)
		asked := time.Now()
		stop()
		if took := time.Since(asked); took != 20*time.Second {
			t.Errorf("stopping took %s, want the grace", took)
		}
		if b, _ := f.read(id); b.State != fleet.BatchRunning || b.Counts.Running != 3 {
			t.Errorf("batch is %+v", b)
		}
		f.world.slower(0)
		f.run(f.engine())
		if b, items := f.wait(id); b.Counts.Succeeded != 3 || items[0].Attempt != 2 {
			t.Errorf("batch is %+v, item %+v", b, items[0])
		}
	})
}

func TestEngine_LeftAloneForLongWaitsForAPerson(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		alone time.Duration
		goes  bool
	}{
		{"short", 14 * time.Minute, true},
		{"long", 16 * time.Minute, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				f.world.takes = time.Minute
				a := f.engine()
				stop := f.run(a)
				id := f.submit(a, spec(names(30)...))
				time.Sleep(90 * time.Second)
				stop()
				time.Sleep(tt.alone)
				f.world.slower(0)
				writes := f.world.written()
				e := f.engine()
				f.run(e)
				if tt.goes {
					if b, _ := f.wait(id); b.Outcome != fleet.OutcomeSucceeded {
						t.Errorf("batch is %+v", b)
					}
					return
				}
				time.Sleep(time.Hour)
				b, _ := f.read(id)
				if b.State != fleet.BatchInterrupted || b.Note == "" || f.world.written() != writes {
					t.Errorf("batch is %+v, %d writes more", b, f.world.written()-writes)
				}
				if err := e.Cancel(t.Context(), ada, id); err != nil {
					t.Fatal(err)
				}
				b, _ = f.wait(id)
				if b.Outcome != fleet.OutcomeCancelled || f.world.written() != writes {
					t.Errorf("batch is %+v", b)
				}
				f.wait(f.submit(e, spec("n0"))) // its nodes are free again
			})
		})
	}
}

func TestEngine_StoreTroubleIsVisibleAndPasses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		down func(call string) bool
	}{
		{"one kind of write", func(call string) bool { return call == "finish" }},
		{"claims", func(call string) bool { return call == "claim" }},
		{"every write", func(call string) bool { return call != "runnable" }},
		{"everything", func(string) bool { return true }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				f.world.takes = 100 * time.Millisecond
				var mu sync.Mutex
				broken := false
				e := f.engine(func(c *batch.Config) {
					c.Store = &faulty{Store: f.store, around: func(call string, do func() error) error {
						mu.Lock()
						down := broken && tt.down(call)
						mu.Unlock()
						if down {
							return fmt.Errorf("disk full: %w", fleet.ErrUnavailable)
						}
						return do()
					}}
				})
				f.run(e)
				s := spec(names(60)...)
				s.MaxConcurrent = 2
				id := f.submit(e, s)
				time.Sleep(time.Second)
				mu.Lock()
				broken = true
				mu.Unlock()
				time.Sleep(4*time.Minute + 300*time.Millisecond)
				b, _, err := e.Batch(t.Context(), ada, id)
				if err != nil || b.State != fleet.BatchInterrupted || b.Note == "" {
					t.Errorf("while the store is down the batch is %s (%q), %v", b.State, b.Note, err)
				}
				list, err := e.List(t.Context(), ada, fleet.BatchFilter{})
				if err != nil || len(list) != 1 || list[0].State != fleet.BatchInterrupted {
					t.Errorf("the list says %+v, %v", list, err)
				}
				if n := f.world.started(); n > 60 {
					t.Errorf("%d nodes were tried while nothing could be recorded", n)
				}
				mu.Lock()
				broken = false
				mu.Unlock()
				mended := time.Now()
				for b, _ := f.read(id); b.State != fleet.BatchRunning || b.Counts.Succeeded < 30; b, _ = f.read(id) {
					if time.Since(mended) > time.Minute {
						t.Fatalf("batch is still %+v", b)
					}
					time.Sleep(100 * time.Millisecond)
				}
				if b, _, err := e.Batch(t.Context(), ada, id); err != nil || b.State != fleet.BatchRunning || b.Note != "" {
					t.Errorf("the batch goes on, and is shown as %s (%q), %v", b.State, b.Note, err)
				}
				b, items := f.wait(id)
				if b.Outcome != fleet.OutcomeSucceeded || b.Note != "" {
					t.Errorf("batch is %+v", b)
				}
				if took := b.EndedAt.Sub(mended); took > time.Minute {
					t.Errorf("went on after %s", took)
				}
				for _, it := range items {
					if n := f.world.writesOf(it.Ref); n != 1 {
						t.Errorf("%s was written %d times", it.Ref, n)
					}
				}
			})
		})
	}
}

func TestEngine_NodeThatCannotBeRecordedIsNotFailed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		broken := time.Now().Add(time.Minute)
		f.world.fail = func(fleet.NodeRef) error {
			if time.Now().Before(broken) {
				return fmt.Errorf("recording an intent: %w", fleet.ErrNotRecorded)
			}
			return nil
		}
		e := f.engine()
		f.run(e)
		id := f.submit(e, spec("n0"))
		time.Sleep(30*time.Second + 500*time.Millisecond)
		if b, _ := f.read(id); b.State != fleet.BatchInterrupted {
			t.Errorf("batch is %+v", b)
		}
		if n := f.world.started(); n > 8 {
			t.Errorf("%d tries in 30 s: there is no back-off", n)
		}
		if b, _ := f.wait(id); b.Outcome != fleet.OutcomeSucceeded {
			t.Errorf("batch is %+v", b)
		}
	})
}
