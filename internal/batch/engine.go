package batch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Config is what an engine needs. Fields without a remark are required; a zero duration or number is its default.
type Config struct {
	Store      Store
	Doer       Doer
	Authorizer Authorizer
	Planner    Planner
	Lookup     Lookup
	Notify     func(batchID string) // told after each change of a batch; must not block; nil: nobody
	Logger     *slog.Logger

	// FreshSignIn is how old a sign-in may be where a plan needs a fresh one; 0: it is never asked for. Denied puts who is
	// refused for it on record; it is required then.
	FreshSignIn time.Duration
	Denied      func(ctx context.Context, by fleet.Caller, action, detail string)

	// Holder names this replica in leases. It is the same after a restart, so that the replica goes on with its own
	// batches at once, and another one for each replica.
	Holder string

	MaxBatches   int           // batches run at once; 64
	MaxInFlight  int           // nodes acted on at once over all batches, and drained as many again; 64
	LeaseTTL     time.Duration // 15 s; renewed at a third of it
	Poll         time.Duration // how often the store is asked for batches without an owner; 2 s
	Grace        time.Duration // what nodes in flight are given to finish on shutdown; 20 s
	ResumeWithin time.Duration // a batch left alone for longer waits for a person: the world has changed; 15 min
}

// Engine makes, runs and steers batches. Its methods may be called from many goroutines.
type Engine struct {
	cfg      Config
	log      *slog.Logger
	wakeup   chan struct{}
	inFlight *semaphore.Weighted
	draining *semaphore.Weighted // apart, because drains take long and would keep quick operations waiting
	running  atomic.Bool

	mu      sync.Mutex // guards runs, trouble
	runs    map[string]*runner
	trouble map[string]trouble // batches whose last run ended because the store did not answer
}

// trouble is what is remembered of a batch that could not be recorded, for as long as that lasts.
type trouble struct {
	tries int
	until time.Time
	note  string // "" if the store itself says it
}

// The keys of log records.
const (
	keyBatch  = "batch"
	keyErr    = "err"
	keyEpoch  = "epoch"
	keyNode   = "node"
	keyCode   = "code"
	keyReason = "reason"
	keyTotal  = "total"
)

// storeTimeout bounds every call of the store.
const storeTimeout = 10 * time.Second

// New returns an engine that takes batches; they wait until Run.
func New(cfg Config) *Engine {
	for _, n := range []struct {
		field *int
		value int
	}{{&cfg.MaxBatches, 64}, {&cfg.MaxInFlight, 64}} {
		if *n.field <= 0 {
			*n.field = n.value
		}
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&cfg.LeaseTTL, 15 * time.Second},
		{&cfg.Poll, 2 * time.Second},
		{&cfg.Grace, 20 * time.Second},
		{&cfg.ResumeWithin, 15 * time.Minute},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	if cfg.Notify == nil {
		cfg.Notify = func(string) {}
	}
	return &Engine{
		cfg:      cfg,
		log:      cfg.Logger,
		wakeup:   make(chan struct{}, 1),
		inFlight: semaphore.NewWeighted(int64(cfg.MaxInFlight)),
		draining: semaphore.NewWeighted(int64(cfg.MaxInFlight)),
		runs:     make(map[string]*runner),
		trouble:  make(map[string]trouble),
	}
}

// Run works on batches until ctx ends. Then no further node is started, those in flight are given the grace to finish,
// the leases are given back and Run returns; what is left goes on with the next start.
func (e *Engine) Run(ctx context.Context) error {
	if !e.running.CompareAndSwap(false, true) {
		return errors.New("running batches: this engine runs already")
	}
	defer e.running.Store(false)

	var runners sync.WaitGroup
	defer runners.Wait()
	tick := time.NewTicker(e.cfg.Poll)
	defer tick.Stop()

	first, failing := true, false
	for ctx.Err() == nil {
		err := e.pick(ctx, &runners, first)
		switch {
		case err == nil:
			first, failing = false, false
		case ctx.Err() == nil && !failing: // once per outage, not once per poll
			failing = true
			e.log.ErrorContext(ctx, "looking for batches to run", keyErr, err)
		}
		select {
		case <-ctx.Done():
		case <-e.wakeup:
		case <-tick.C:
		}
	}
	return nil
}

// wake makes Run look for work now.
func (e *Engine) wake() {
	select {
	case e.wakeup <- struct{}{}:
	default: // it is going to look anyway
	}
}

// pick starts a runner for each batch that waits for an owner, as far as there is room. On the first look after a start
// the leases of this holder are those of the process before.
func (e *Engine) pick(ctx context.Context, runners *sync.WaitGroup, first bool) error {
	var holder string
	if first {
		holder = e.cfg.Holder
	}
	sctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	ids, err := e.cfg.Store.RunnableBatches(sctx, holder, 2*e.cfg.MaxBatches)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if !e.room(id) {
			continue
		}
		sctx, cancel := context.WithTimeout(ctx, storeTimeout)
		start := time.Now()
		lease, b, err := e.cfg.Store.AcquireBatch(sctx, id, e.cfg.Holder, e.cfg.LeaseTTL)
		cancel()
		if errors.Is(err, fleet.ErrLeaseLost) {
			continue // another replica was faster
		}
		if err != nil {
			return err
		}
		r := newRunner(ctx, e, lease, b, start.Add(e.cfg.LeaseTTL))
		e.mu.Lock()
		e.runs[id] = r
		e.mu.Unlock()
		runners.Go(func() {
			r.run(ctx, b, first)
			e.mu.Lock()
			delete(e.runs, id)
			e.mu.Unlock()
			e.wake() // there is room now
		})
	}
	return nil
}

// room tells whether a batch may be started now.
func (e *Engine) room(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.runs[id] == nil && len(e.runs) < e.cfg.MaxBatches && !time.Now().Before(e.trouble[id].until)
}

// Batch implements handlers.Batches.
func (e *Engine) Batch(ctx context.Context, by fleet.Caller, id string) (fleet.Batch, []fleet.Item, error) {
	if err := e.Sees(ctx, by, id); err != nil {
		return fleet.Batch{}, nil, err
	}
	b, items, err := e.BatchSince(ctx, id, 0)
	if err != nil {
		return fleet.Batch{}, nil, err
	}
	return b, items, e.conceal(ctx, by, &b.Parent, &b.Operation.Revert)
}

// BatchSince returns a batch and those of its items that changed after the version. Every item is newer than 0.
func (e *Engine) BatchSince(ctx context.Context, id string, version int64) (fleet.Batch, []fleet.Item, error) {
	b, items, err := e.cfg.Store.Batch(ctx, id, version)
	if err != nil {
		return fleet.Batch{}, nil, fmt.Errorf("reading batch %s: %w", id, err)
	}
	return e.overlay(b), items, nil
}

// List implements handlers.Batches.
func (e *Engine) List(ctx context.Context, by fleet.Caller, f fleet.BatchFilter) ([]fleet.Batch, error) {
	f.Within = e.within(by)
	bs, err := e.cfg.Store.Batches(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("listing batches: %w", err)
	}
	ids := make([]*string, 0, 2*len(bs))
	for i := range bs {
		bs[i] = e.overlay(bs[i])
		ids = append(ids, &bs[i].Parent, &bs[i].Operation.Revert)
	}
	if err := e.conceal(ctx, by, ids...); err != nil {
		return nil, err
	}
	return bs, nil
}

// overlay shows a batch as interrupted whose trouble could not even be written down.
func (e *Engine) overlay(b fleet.Batch) fleet.Batch {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.trouble[b.ID]; t.note != "" && b.State != fleet.BatchDone {
		b.State, b.Note = fleet.BatchInterrupted, t.note
	}
	return b
}

// Cancel implements handlers.Batches. No further node is started. Nodes in flight are finished, but for drains: these stop
// where they are. Cancelling twice is no error; cancelling what is done is ErrConflict.
func (e *Engine) Cancel(ctx context.Context, by fleet.Caller, id string) error {
	// Who may do it may stop it.
	if _, _, err := e.permitted(ctx, by, id); err != nil {
		return fmt.Errorf("cancelling batch %s: %w", id, err)
	}
	if err := e.cfg.Store.CancelBatch(ctx, id, by.Name, entry(by, id, "batch.cancel", "event")); err != nil {
		return fmt.Errorf("cancelling batch %s: %w", id, err)
	}
	if r := e.runner(id); r != nil {
		r.halt(fleet.ErrCancelled)
	} else {
		e.wake()
	}
	e.cfg.Notify(id)
	return nil
}
