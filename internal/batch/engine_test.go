package batch_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/kube-node-manager/kube-node-manager/internal/batch"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var ada = fleet.Caller{UserID: "u-ada", Name: "ada", Role: fleet.RoleOperator, Session: "s1", Via: "session"}

// world is a cluster as far as the engine can tell: which batch changed which node, and how often.
type world struct {
	mu       sync.Mutex
	by       map[fleet.NodeRef]string // batch that changed the node
	writes   map[fleet.NodeRef]int
	calls    int
	inFlight int
	most     int
	starts   []time.Time
	gaveUp   []time.Time

	takes time.Duration                 // what a node takes
	fail  func(ref fleet.NodeRef) error // fails nodes before they are written
}

func newWorld() *world {
	return &world{by: make(map[fleet.NodeRef]string), writes: make(map[fleet.NodeRef]int)}
}

func (w *world) Do(ctx context.Context, t fleet.Task) (fleet.ItemResult, error) {
	w.mu.Lock()
	w.calls++
	w.inFlight++
	w.most = max(w.most, w.inFlight)
	w.starts = append(w.starts, time.Now())
	takes := w.takes
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.inFlight--
		w.mu.Unlock()
	}()
	if takes > 0 {
		select {
		case <-ctx.Done():
			w.mu.Lock()
			w.gaveUp = append(w.gaveUp, time.Now())
			w.mu.Unlock()
			return fleet.ItemResult{}, ctx.Err()
		case <-time.After(takes):
		}
	}
	if ctx.Err() != nil {
		return fleet.ItemResult{}, ctx.Err()
	}
	if w.fail != nil {
		if err := w.fail(t.Item.Ref); err != nil {
			return fleet.ItemResult{}, err
		}
	}
	w.mu.Lock()
	if w.by[t.Item.Ref] != t.Batch {
		w.by[t.Item.Ref] = t.Batch
		w.writes[t.Item.Ref]++
	}
	w.mu.Unlock()
	return fleet.ItemResult{State: fleet.ItemSucceeded, Changed: true}, nil
}

func (w *world) Resolve(_ context.Context, t fleet.Task) (fleet.ItemResult, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.by[t.Item.Ref] == t.Batch {
		return fleet.ItemResult{State: fleet.ItemSucceeded, Changed: true}, nil
	}
	return fleet.ItemResult{State: fleet.ItemCancelled, Code: fleet.CodeCancelled, Message: "not changed"}, nil
}

func (w *world) started() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls
}

func (w *world) writesOf(ref fleet.NodeRef) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.writes[ref]
}

// peak is the most nodes at once.
func (w *world) peak() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.most
}

// begun lists when nodes were started.
func (w *world) begun() []time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.starts)
}

// given lists when nodes in flight were given up.
func (w *world) given() []time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.gaveUp)
}

// slower changes what a node takes.
func (w *world) slower(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.takes = d
}

func (w *world) written() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.writes {
		n += c
	}
	return n
}

// cache knows nodes n0…n4999 of the clusters prod and staging, but not those named missing….
type cache struct{}

func (cache) Clusters(sight fleet.Sight) []fleet.Cluster {
	return slices.DeleteFunc([]fleet.Cluster{{Name: "prod"}, {Name: "staging"}}, func(c fleet.Cluster) bool { return !sight.Sees(c.Name) })
}

func (cache) Node(ref fleet.NodeRef) (*fleet.Node, error) {
	if len(ref.Name) > 7 && ref.Name[:7] == "missing" {
		return nil, fleet.ErrNotFound
	}
	return &fleet.Node{Ref: ref, UID: "uid-" + ref.Name}, nil
}

func (cache) Unavailable(string) []string { return nil }

func (cache) Refuses(string, fleet.Operation) []fleet.TestedRight { return nil }

// permit permits operators.
type permit struct{}

func (permit) Authorize(_ context.Context, by fleet.Caller, op fleet.Operation, _ []fleet.NodeRef) error {
	if p, ok := op.Action.Permission(); !ok || !by.May(p, "") {
		return fleet.ErrForbidden
	}
	return nil
}

func (p permit) Prepare(ctx context.Context, by fleet.Caller, op fleet.Operation, refs []fleet.NodeRef) (fleet.Operation, error) {
	if op.Action == fleet.ActionUncordon && op.Foreign == "" {
		op.Foreign = fleet.ForeignSkip
	}
	return op, p.Authorize(ctx, by, op, refs)
}

func (permit) Plan(_ context.Context, _ fleet.Caller, op fleet.Operation, _ []fleet.Item) (*fleet.Plan, error) {
	return &fleet.Plan{Action: op.Action, Operation: op}, nil
}

type fixture struct {
	t     *testing.T
	store *store.Store
	world *world
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: t.TempDir(), Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &fixture{t: t, store: s, world: newWorld()}
}

// engine makes an engine over the fixture's store and world.
func (f *fixture) engine(change ...func(*batch.Config)) *batch.Engine {
	cfg := batch.Config{
		Store: f.store, Doer: f.world, Authorizer: permit{}, Planner: permit{}, Lookup: cache{}, Holder: "a",
		Logger: slog.New(slog.DiscardHandler),
	}
	for _, c := range change {
		c(&cfg)
	}
	return batch.New(cfg)
}

// run runs an engine; the answer stops it and waits.
func (f *fixture) run(e *batch.Engine) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(f.t.Context()))
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				f.t.Errorf("Run: %v", err)
			}
		})
	}
	f.t.Cleanup(stop)
	return stop
}

func spec(nodes ...string) fleet.BatchSpec {
	s := fleet.BatchSpec{Operation: fleet.Operation{Action: fleet.ActionCordon, Reason: "r"}}
	for _, n := range nodes {
		s.Nodes = append(s.Nodes, fleet.NodeRef{Cluster: "prod", Name: n})
	}
	return s
}

func names(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("n%d", i)
	}
	return out
}

func (f *fixture) submit(e *batch.Engine, s fleet.BatchSpec) string {
	f.t.Helper()
	b, err := e.Submit(f.t.Context(), ada, s)
	if err != nil {
		f.t.Fatalf("Submit: %v", err)
	}
	return b.ID
}

func (f *fixture) read(id string) (fleet.Batch, []fleet.Item) {
	f.t.Helper()
	b, items, err := f.store.Batch(f.t.Context(), id, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	return b, items
}

// wait lets time pass until a batch is done. It is for bubbles.
func (f *fixture) wait(id string) (fleet.Batch, []fleet.Item) {
	f.t.Helper()
	step := 50 * time.Millisecond
	for deadline := time.Now().Add(10 * time.Minute); time.Now().Before(deadline); time.Sleep(step) {
		if b, items := f.read(id); b.State == fleet.BatchDone {
			return b, items
		}
		step = min(step*3/2, time.Second)
	}
	b, _ := f.read(id)
	f.t.Fatalf("batch is still %s: %+v", b.State, b)
	return fleet.Batch{}, nil
}

func TestEngine_RunsABatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.world.fail = func(ref fleet.NodeRef) error {
			if ref.Name == "n1" {
				return fmt.Errorf("cordoning: %w", fleet.ErrForbidden)
			}
			return nil
		}
		e := f.engine()
		f.run(e)
		id := f.submit(e, spec("n0", "n1", "n2", "n0"))
		b, items := f.wait(id)
		if b.Outcome != fleet.OutcomePartial || b.StartedAt.IsZero() || b.EndedAt.IsZero() {
			t.Errorf("batch is %+v", b)
		}
		if diff := cmp.Diff(fleet.Counts{Total: 3, Succeeded: 2, Failed: 1}, b.Counts); diff != "" {
			t.Errorf("counts (-want +got):\n%s", diff)
		}
		if it := items[1]; it.State != fleet.ItemFailed || it.Code != fleet.CodeForbidden || it.Error == "" || it.Changed {
			t.Errorf("failed item is %+v", it)
		}
		if it := items[0]; it.State != fleet.ItemSucceeded || !it.Changed || it.Error != "" || it.UID != "uid-n0" || it.Attempt != 1 {
			t.Errorf("item is %+v", it)
		}
		es, err := f.store.Entries(t.Context(), fleet.AuditFilter{})
		if err != nil || len(es) != 2 || es[0].Action != "batch.end" || es[0].Outcome != "partial" || es[1].Action != "batch.create" ||
			es[1].Batch != id || es[1].Actor != "ada" || es[1].Reason != "r" {
			t.Errorf("on record: %+v, %v", es, err)
		}
	})
}

func TestEngine_SubmitNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	e := f.engine()
	many := spec(names(5001)...)
	for _, tt := range []struct {
		name  string
		spec  fleet.BatchSpec
		field string
		part  string // the message holds it
	}{
		{"no nodes", spec(), "nodes", "at least one"},
		{"bad name", spec("n0", "N_0"), "nodes", `"prod/N_0"`},
		{"too many", many, "nodes", "5000"},
		{"cluster", fleet.BatchSpec{Operation: many.Operation, Nodes: []fleet.NodeRef{{Cluster: "prd", Name: "n0"}}}, "nodes", `"prd"`},
		{"concurrent", func() fleet.BatchSpec { s := spec("n0"); s.MaxConcurrent = 51; return s }(), "max_concurrent", "51"},
		{"negative", func() fleet.BatchSpec { s := spec("n0"); s.MaxConcurrent = -1; return s }(), "max_concurrent", "-1"},
		{"failures", func() fleet.BatchSpec { s := spec("n0"); s.MaxFailures = -2; return s }(), "max_failures", "-2"},
		{"pause", func() fleet.BatchSpec { s := spec("n0"); s.PauseBetween = 2 * time.Hour; return s }(), "pause_between", "2h"},
		{"key", func() fleet.BatchSpec { s := spec("n0"); s.IdempotencyKey = "a\nb"; return s }(), "idempotency_key", "printable"},
	} {
		_, err := e.Submit(t.Context(), ada, tt.spec)
		fe, ok := errors.AsType[*fleet.FieldError](err)
		if !ok || fe.Field != tt.field || !contains(fe.Message, tt.part) {
			t.Errorf("%s: %v, want %s to name %s", tt.name, err, tt.field, tt.part)
		}
	}
	viewer := ada
	viewer.Role = fleet.RoleViewer
	if _, err := e.Submit(t.Context(), viewer, spec("n0")); !errors.Is(err, fleet.ErrForbidden) {
		t.Errorf("viewer: %v", err)
	}
	if bs, err := e.List(t.Context(), ada, fleet.BatchFilter{}); err != nil || len(bs) != 0 {
		t.Errorf("refused requests left %d batches (%v)", len(bs), err)
	}
	if _, err := e.Submit(t.Context(), ada, spec(names(5000)...)); err != nil {
		t.Errorf("5,000 nodes: %v", err)
	}
	_, err := e.Submit(t.Context(), ada, spec("x", "n4999"))
	if be, ok := errors.AsType[*fleet.BusyError](err); !ok || be.Node.Name != "n4999" {
		t.Errorf("busy node: %v", err)
	}
}

func contains(s, part string) bool {
	for i := range len(s) - len(part) + 1 {
		if s[i:i+len(part)] == part {
			return true
		}
	}
	return false
}

func TestEngine_SubmitTwiceIsOneBatch(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	e := f.engine()
	s := spec("n0", "n1")
	s.IdempotencyKey = "form-1"
	ids := make([]string, 8)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			again := s
			if i%2 == 1 { // the same request in other words
				again.MaxConcurrent = 10
				again.Nodes = append(append([]fleet.NodeRef{}, s.Nodes...), s.Nodes[0])
			}
			b, err := e.Submit(t.Context(), ada, again)
			if err != nil {
				t.Errorf("Submit: %v", err)
			}
			ids[i] = b.ID
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] || id == "" {
			t.Fatalf("batches %v, want one", ids)
		}
	}
	other := s
	other.Reason = "another"
	if _, err := e.Submit(t.Context(), ada, other); !errors.Is(err, fleet.ErrConflict) {
		t.Errorf("same key, other request: %v, want ErrConflict", err)
	}
}

// meanwhile has something happen while a request is being looked at, once.
type meanwhile struct {
	permit
	once sync.Once
	do   func()
}

func (m *meanwhile) Prepare(ctx context.Context, by fleet.Caller, op fleet.Operation, refs []fleet.NodeRef) (fleet.Operation, error) {
	m.once.Do(m.do)
	return m.permit.Prepare(ctx, by, op, refs)
}

// The same request overtakes itself: the one that is late finds the nodes busy with what it asked for itself.
func TestEngine_SubmitTwiceIsOneBatch_Overtaken(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	s := spec("n0", "n1")
	s.IdempotencyKey = "form-1"
	var first fleet.Batch
	e := f.engine(func(cfg *batch.Config) {
		cfg.Authorizer = &meanwhile{do: func() {
			var err error
			if first, err = f.engine().Submit(t.Context(), ada, s); err != nil {
				t.Errorf("Submit: %v", err)
			}
		}}
	})
	b, err := e.Submit(t.Context(), ada, s)
	if err != nil || b.ID != first.ID || b.ID == "" {
		t.Errorf("%q, %v; want %q, the batch that the same request made meanwhile", b.ID, err, first.ID)
	}
}

// bars is a cache of clusters of which prod may not let us change nodes.
type bars struct {
	cache
	up atomic.Bool
}

func (b *bars) Refuses(cluster string, op fleet.Operation) []fleet.TestedRight {
	if cluster != "prod" || !b.up.Load() {
		return nil
	}
	rights := fleet.Rights{Asked: []fleet.TestedRight{{Verb: "patch", Resource: "nodes", Needed: true}}}
	return rights.Missing(op)
}

// What a cluster would refuse node for node is refused at once, however it is asked for; what was made before is answered
// with as ever, and what it would do can be looked at.
func TestEngine_WhatAClusterWouldRefuse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		sky := &bars{}
		doer := &editing{world: f.world, undo: make(map[fleet.NodeRef][]fleet.Edit)}
		e := f.engine(func(cfg *batch.Config) { cfg.Lookup, cfg.Doer = sky, doer })
		f.run(e)
		s := spec("n0", "n2") // the second one fails
		s.IdempotencyKey = "form-1"
		made := f.submit(e, s)
		f.wait(made)
		sky.up.Store(true)
		if b, err := e.Submit(t.Context(), ada, s); err != nil || b.ID != made {
			t.Errorf("the same request again: %q, %v; want %q", b.ID, err, made)
		}
		if _, err := e.Plan(t.Context(), ada, spec("n3")); err != nil {
			t.Errorf("Plan: %v", err)
		}
		revert := fleet.BatchSpec{Operation: fleet.Operation{Action: fleet.ActionRevert, Revert: made}}
		for name, ask := range map[string]func() error{
			"Submit": func() error { _, err := e.Submit(t.Context(), ada, spec("n3")); return err },
			"revert": func() error { _, err := e.Submit(t.Context(), ada, revert); return err },
			"Retry":  func() error { _, err := e.Retry(t.Context(), ada, made, "again"); return err },
		} {
			var field *fleet.FieldError
			if err := ask(); !errors.As(err, &field) || field.Key != "error.right" || field.Args["Cluster"] != "prod" || field.Args["Right"] != "patch nodes" {
				t.Errorf("%s: %v, want the right that is missing", name, err)
			}
		}
		list, err := e.List(t.Context(), ada, fleet.BatchFilter{})
		if err != nil || len(list) != 1 {
			t.Errorf("%d batches, %v, want one", len(list), err)
		}
		other := spec("n3")
		other.Nodes[0].Cluster = "staging"
		f.submit(e, other)
	})
}

func TestEngine_ParallelismIsBounded(t *testing.T) {
	t.Parallel()
	const nodes = 50
	for _, tt := range []struct {
		name              string
		concurrent, total int
		want              int
		took              time.Duration
	}{
		{"default", 0, 0, 10, 5 * time.Second},
		{"one at a time", 1, 0, 1, 50 * time.Second},
		{"most", 50, 0, 50, time.Second},
		{"bounded over all batches", 50, 5, 5, 10 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				f.world.takes = time.Second
				e := f.engine(func(c *batch.Config) { c.MaxInFlight = tt.total })
				f.run(e)
				s := spec(names(nodes)...)
				s.MaxConcurrent = tt.concurrent
				b, _ := f.wait(f.submit(e, s))
				if most := f.world.peak(); most != tt.want {
					t.Errorf("%d nodes at once, want %d", most, tt.want)
				}
				if took := b.EndedAt.Sub(b.StartedAt); took != tt.took {
					t.Errorf("took %s, want %s", took, tt.took)
				}
				if b.Counts.Succeeded != nodes {
					t.Errorf("counts are %+v", b.Counts)
				}
			})
		})
	}
}

func TestEngine_BatchesShareFairly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.world.takes = time.Second
		e := f.engine(func(c *batch.Config) { c.MaxInFlight = 4 })
		f.run(e)
		large := spec(names(400)...)
		large.MaxConcurrent = 50
		first := f.submit(e, large)
		time.Sleep(5 * time.Second)
		small, _ := f.wait(f.submit(e, spec("other")))
		if took := small.EndedAt.Sub(small.CreatedAt); took > 20*time.Second {
			t.Errorf("a batch of one waited %s behind a large one", took)
		}
		if b, _ := f.read(first); b.State != fleet.BatchRunning {
			t.Errorf("the large batch is %s: this proved nothing", b.State)
		}
	})
}

func TestEngine_PauseBetween(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.world.takes = time.Second
		e := f.engine()
		f.run(e)
		s := spec(names(4)...)
		s.MaxConcurrent, s.PauseBetween = 1, time.Minute
		f.wait(f.submit(e, s))
		starts := f.world.begun()
		for i := 1; i < len(starts); i++ {
			// From the end of one to the start of the next.
			if gap := starts[i].Sub(starts[i-1]) - time.Second; gap != time.Minute {
				t.Errorf("node %d started %s after the one before had ended", i, gap)
			}
		}
		if len(starts) != 4 {
			t.Errorf("%d starts", len(starts))
		}
	})
}

func TestEngine_StopRule(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		fails   func(ref fleet.NodeRef) bool
		outcome fleet.BatchOutcome
		counts  fleet.Counts
	}{
		{"all fail", func(fleet.NodeRef) bool { return true }, fleet.OutcomeFailed, fleet.Counts{Total: 20, Failed: 3, Cancelled: 17}},
		{
			"after some", func(ref fleet.NodeRef) bool { return len(ref.Name) > 2 }, fleet.OutcomePartial,
			fleet.Counts{Total: 20, Succeeded: 10, Failed: 3, Cancelled: 7},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				f.world.fail = func(ref fleet.NodeRef) error {
					if tt.fails(ref) {
						return fleet.ErrUnavailable
					}
					return nil
				}
				e := f.engine()
				f.run(e)
				s := spec(names(20)...)
				s.MaxConcurrent, s.MaxFailures = 1, 3
				b, items := f.wait(f.submit(e, s))
				if b.Outcome != tt.outcome || b.Note == "" {
					t.Errorf("outcome %s, note %q", b.Outcome, b.Note)
				}
				if diff := cmp.Diff(tt.counts, b.Counts); diff != "" {
					t.Errorf("counts (-want +got):\n%s", diff)
				}
				if last := items[19]; last.Code != fleet.CodeStopped || last.Error == "" || last.Attempt != 0 {
					t.Errorf("item that was never started is %+v", last)
				}
			})
		})
	}
}

func TestEngine_CancelStopsWithinOneStep(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.world.takes = time.Second
		e := f.engine()
		f.run(e)
		s := spec(names(40)...)
		s.MaxConcurrent = 4
		id := f.submit(e, s)
		time.Sleep(2500 * time.Millisecond) // in the middle of the third round
		if err := e.Cancel(t.Context(), ada, id); err != nil {
			t.Fatal(err)
		}
		calls := f.world.started()
		b, items := f.wait(id)
		if n := f.world.started(); n != calls {
			t.Errorf("%d nodes were started after the cancellation", n-calls)
		}
		if b.Outcome != fleet.OutcomeCancelled || b.CancelledBy != "ada" {
			t.Errorf("batch is %+v", b)
		}
		if diff := cmp.Diff(fleet.Counts{Total: 40, Succeeded: 12, Cancelled: 28}, b.Counts); diff != "" {
			t.Errorf("counts (-want +got):\n%s", diff)
		}
		if it := items[39]; it.Code != fleet.CodeCancelled || it.Error == "" {
			t.Errorf("item is %+v", it)
		}
		if err := e.Cancel(t.Context(), ada, id); err != nil {
			t.Errorf("cancelling again: %v", err)
		}
		done := f.submit(e, spec("x"))
		f.wait(done)
		if err := e.Cancel(t.Context(), ada, done); !errors.Is(err, fleet.ErrConflict) {
			t.Errorf("cancelling what is done: %v", err)
		}
		viewer := ada
		viewer.Role = fleet.RoleViewer
		if err := e.Cancel(t.Context(), viewer, done); !errors.Is(err, fleet.ErrForbidden) {
			t.Errorf("a viewer cancels: %v", err)
		}
		if err := e.Cancel(t.Context(), ada, "nothing"); !errors.Is(err, fleet.ErrNotFound) {
			t.Errorf("cancelling nothing: %v", err)
		}
	})
}

func TestEngine_CancelEndsAPause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		owner := f.engine()
		f.run(owner)
		s := spec(names(3)...)
		s.MaxConcurrent, s.PauseBetween = 1, time.Hour
		id := f.submit(owner, s)
		time.Sleep(time.Minute)
		// Through another replica, which does not own the batch.
		other := f.engine(func(c *batch.Config) { c.Holder = "b" })
		f.run(other)
		asked := time.Now()
		if err := other.Cancel(t.Context(), ada, id); err != nil {
			t.Fatal(err)
		}
		b, _ := f.wait(id)
		if took := b.EndedAt.Sub(asked); took > 6*time.Second {
			t.Errorf("the cancellation took %s to reach the owner", took)
		}
		if b.Counts.Succeeded != 1 || b.Counts.Cancelled != 2 {
			t.Errorf("counts are %+v", b.Counts)
		}
	})
}

// The owner itself hears of a cancellation at once, not with the next renewal of its lease.
func TestEngine_CancelEndsAPauseOfItsOwnBatchAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		e := f.engine()
		f.run(e)
		s := spec(names(3)...)
		s.MaxConcurrent, s.PauseBetween = 1, time.Hour
		id := f.submit(e, s)
		time.Sleep(time.Minute + time.Second)
		asked := time.Now()
		if err := e.Cancel(t.Context(), ada, id); err != nil {
			t.Fatal(err)
		}
		if b, _ := f.wait(id); b.EndedAt.Sub(asked) > 100*time.Millisecond {
			t.Errorf("the cancellation took %s", b.EndedAt.Sub(asked))
		}
	})
}

// What an earlier attempt had changed is known even when the person behind the batch has lost the authority since.
func TestEngine_AuthorityLostWhileDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		e := f.engine()
		id := f.submit(e, spec("n0", "n1", "n2"))
		// A process that changed n0, was about to change n1, and died.
		l, _, err := f.store.AcquireBatch(t.Context(), id, "a", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		for seq := range 2 {
			if err := f.store.ClaimItem(t.Context(), l, seq); err != nil {
				t.Fatal(err)
			}
		}
		n0 := fleet.NodeRef{Cluster: "prod", Name: "n0"}
		f.world.by[n0], f.world.writes[n0] = id, 1
		f.world.fail = func(fleet.NodeRef) error { return fleet.ErrAuthorityLost }
		f.run(e)
		b, items := f.wait(id)
		if b.Outcome != fleet.OutcomeCancelled || f.world.written() != 1 {
			t.Errorf("batch is %+v after %d writes", b, f.world.written())
		}
		for i, want := range []fleet.ItemState{fleet.ItemSucceeded, fleet.ItemCancelled, fleet.ItemCancelled} {
			if items[i].State != want || items[i].Changed != (i == 0) {
				t.Errorf("item %+v, want %s", items[i], want)
			}
		}
	})
}

func TestEngine_CancelOfABatchNobodyRuns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		e := f.engine()
		id := f.submit(e, spec("n0"))
		if err := e.Cancel(t.Context(), ada, id); err != nil {
			t.Fatal(err)
		}
		f.run(e)
		b, _ := f.wait(id)
		if b.Outcome != fleet.OutcomeCancelled || f.world.started() != 0 {
			t.Errorf("batch is %+v after %d calls", b, f.world.started())
		}
	})
}

func TestEngine_AuthorityLostStopsTheBatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.world.takes = time.Second
		var mu sync.Mutex
		n := 0
		f.world.fail = func(fleet.NodeRef) error {
			mu.Lock()
			defer mu.Unlock()
			if n++; n > 6 {
				return fmt.Errorf("cordon: %w", fleet.ErrAuthorityLost)
			}
			return nil
		}
		e := f.engine()
		f.run(e)
		s := spec(names(40)...)
		s.MaxConcurrent = 3
		other := f.submit(e, s)
		b, items := f.wait(other)
		if b.Outcome != fleet.OutcomeCancelled || b.Note == "" || b.CancelledBy != "" {
			t.Errorf("batch is %+v", b)
		}
		if diff := cmp.Diff(fleet.Counts{Total: 40, Succeeded: 6, Cancelled: 34}, b.Counts); diff != "" {
			t.Errorf("counts (-want +got):\n%s", diff)
		}
		if n := f.world.started(); n > 9 {
			t.Errorf("%d nodes were tried, want at most one more per worker", n)
		}
		if it := items[39]; it.Code != fleet.CodeAuthorityLost {
			t.Errorf("item is %+v", it)
		}
	})
}

func TestEngine_VersionIsMonotonicAndNothingIsMissed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.world.takes = 100 * time.Millisecond
		hints := make(chan string, 1)
		e := f.engine(func(c *batch.Config) {
			c.Notify = func(id string) {
				select {
				case hints <- id:
				default:
				}
			}
		})
		f.run(e)
		id := f.submit(e, spec(names(60)...))
		// A reader that goes by hints and asks only for what is newer must end with what is in the store.
		var version int64
		seen := make(map[int]fleet.Item)
		var last fleet.Batch
		for last.State != fleet.BatchDone {
			<-hints
			b, items, err := e.BatchSince(t.Context(), id, version)
			if err != nil {
				t.Fatal(err)
			}
			if b.Version < version {
				t.Fatalf("version went from %d to %d", version, b.Version)
			}
			for _, it := range items {
				if it.Version <= version || it.Version > b.Version {
					t.Errorf("item %d has version %d between %d and %d", it.Seq, it.Version, version, b.Version)
				}
				if before := seen[it.Seq]; before.State.Finished() && before.State != "" {
					t.Errorf("item %d moved from %s to %s", it.Seq, before.State, it.State)
				}
				seen[it.Seq] = it
			}
			version, last = b.Version, b
		}
		_, items := f.read(id)
		got := make([]fleet.Item, len(items))
		for i := range got {
			got[i] = seen[i]
		}
		if diff := cmp.Diff(items, got); diff != "" {
			t.Errorf("the reader missed something (-store +reader):\n%s", diff)
		}
		if version != 1+1+60*2+1 { // made, started, each claimed and finished, ended
			t.Errorf("the version ended at %d", version)
		}
	})
}

func TestEngine_UnknownNodeIsKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.world.fail = func(ref fleet.NodeRef) error {
			if ref.Name[0] == 'm' {
				return fleet.ErrNotFound
			}
			return nil
		}
		e := f.engine()
		f.run(e)
		b, items := f.wait(f.submit(e, spec("n0", "missing1", "n1", "missing2", "n2")))
		if b.Outcome != fleet.OutcomePartial || b.Counts.Succeeded != 3 || b.Counts.Failed != 2 {
			t.Errorf("batch is %+v", b)
		}
		for _, i := range []int{1, 3} {
			if it := items[i]; it.UID != "" || it.Code != fleet.CodeNotFound {
				t.Errorf("item is %+v", it)
			}
		}
	})
}

func TestEngine_RunsOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		e := f.engine()
		stop := f.run(e)
		synctest.Wait()
		if err := e.Run(t.Context()); err == nil {
			t.Error("a second Run of the same engine was accepted")
		}
		stop()
		f.run(e) // but one after the other
		f.wait(f.submit(e, spec("n0")))
	})
}
