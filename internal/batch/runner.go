package batch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// errFailures ends a batch by its stop rule.
var errFailures = errors.New("too many failed nodes")

// The notes people read on a batch.
const (
	noteNotRecorded = "our own record could not be read or written; the batch goes on by itself as soon as it can"
	noteAuthority   = "stopped: the person who started it may no longer do this"
)

// runner is one batch in the hands of this engine, for as long as it has the lease.
type runner struct {
	e     *Engine
	log   *slog.Logger
	lease fleet.BatchLease

	dispatch context.Context // while it lasts, further nodes are started
	stop     context.CancelCauseFunc
	step     context.Context // while it lasts, nodes in flight may finish
	cut      context.CancelCauseFunc

	batch fleet.Batch
	by    fleet.Caller
	items []fleet.Item // an item is touched by the loop before its worker starts, and after all workers have ended

	valid time.Time // how long the lease was ours, by our own clock, when the run began

	mu     sync.Mutex // guards failed, moved
	failed int
	moved  bool // something was recorded in this run
}

func newRunner(ctx context.Context, e *Engine, l fleet.BatchLease, valid time.Time) *runner {
	r := &runner{e: e, lease: l, valid: valid, log: e.log.With(keyBatch, l.Batch, keyEpoch, l.Epoch)}
	r.dispatch, r.stop = context.WithCancelCause(ctx)
	r.step, r.cut = context.WithCancelCause(context.WithoutCancel(ctx))
	return r
}

// run works on the batch until it is done, the engine stops, or the lease is lost.
func (r *runner) run(ctx context.Context, b fleet.Batch, first bool) {
	defer r.stop(nil)
	if r.lease.Idle > r.e.cfg.ResumeWithin && b.CancelledBy == "" && (first || b.State != fleet.BatchQueued) {
		r.abandon(b)
		return
	}
	var keeper sync.WaitGroup
	keeper.Go(func() { r.keep(ctx) })
	r.end(ctx, r.work())
	r.cut(nil)
	keeper.Wait()
}

// keep renews the lease until the run is over, and ends the run when it cannot: an owner that cannot prove that it is
// one must have stopped before anybody else may start.
func (r *runner) keep(ctx context.Context) {
	every := r.e.cfg.LeaseTTL / 3
	renew := time.NewTimer(every)
	defer renew.Stop()
	valid := r.valid
	expire := time.NewTimer(time.Until(valid))
	defer expire.Stop()
	var grace <-chan time.Time
	stopping := ctx.Done()
	for {
		select {
		case <-r.step.Done():
			return
		case <-stopping:
			stopping = nil
			t := time.NewTimer(r.e.cfg.Grace)
			defer t.Stop()
			grace = t.C
		case <-grace:
			r.cut(context.Cause(ctx))
			return
		case <-expire.C:
			r.lose(fmt.Errorf("%w: not renewed in time", fleet.ErrLeaseLost))
			return
		case <-renew.C:
			start := time.Now()
			cancelledBy, err := r.renew(valid)
			switch {
			case errors.Is(err, fleet.ErrLeaseLost):
				r.lose(err)
				return
			case err != nil:
				r.log.WarnContext(ctx, "renewing a lease", keyErr, err)
				renew.Reset(every / 5)
				continue
			case cancelledBy != "": // through another replica
				r.stop(fleet.ErrCancelled)
			}
			valid = start.Add(r.e.cfg.LeaseTTL)
			expire.Reset(time.Until(valid))
			renew.Reset(every)
		}
	}
}

// renew asks once. An answer that takes longer than the lease lasts must not keep anybody from seeing its end.
func (r *runner) renew(valid time.Time) (string, error) {
	limit := time.Now().Add(r.e.cfg.LeaseTTL / 3)
	if valid.Before(limit) {
		limit = valid
	}
	ctx, cancel := context.WithDeadline(r.step, limit)
	defer cancel()
	return r.e.cfg.Store.RenewBatch(ctx, r.lease, r.e.cfg.LeaseTTL)
}

func (r *runner) lose(err error) {
	r.stop(err)
	r.cut(err)
}

// recording gives a store call its time. It outlives shutdown: what has happened must be written down.
func (r *runner) recording() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(r.step), storeTimeout)
}

// work starts nodes until there are none left or something stops it, waits for those in flight, and returns why it
// stopped; nil if it came to the end.
func (r *runner) work() error {
	ctx, cancel := r.recording()
	var err error
	r.batch, r.by, r.items, err = r.e.cfg.Store.StartBatch(ctx, r.lease)
	cancel()
	if err != nil {
		return recordError(err)
	}
	r.e.recovered(r.lease.Batch)
	r.e.cfg.Notify(r.lease.Batch)
	r.log.InfoContext(r.step, "batch runs", keyTotal, len(r.items))
	if r.batch.CancelledBy != "" {
		return fleet.ErrCancelled
	}
	for i := range r.items {
		if r.items[i].State == fleet.ItemFailed {
			r.fail(false)
		}
	}
	r.fail(true)

	var workers sync.WaitGroup
	slots := make(chan struct{}, max(r.batch.Rollout.MaxConcurrent, 1))
	for n, i := range r.order() {
		it := &r.items[i]
		if !r.begin(slots, n > 0 && it.State == fleet.ItemQueued) {
			break
		}
		if err := r.claim(it); err != nil {
			r.stop(err)
			r.e.inFlight.Release(1)
			break
		}
		workers.Go(func() {
			r.act(it)
			r.e.inFlight.Release(1)
			<-slots
		})
	}
	workers.Wait()
	if r.dispatch.Err() != nil {
		return context.Cause(r.dispatch)
	}
	return nil
}

// order lists the items to do. What a crash left claimed comes first: its nodes may be half done.
func (r *runner) order() []int {
	var claimed, queued []int
	for i := range r.items {
		switch r.items[i].State {
		case fleet.ItemRunning:
			claimed = append(claimed, i)
		case fleet.ItemQueued:
			queued = append(queued, i)
		default: // done
		}
	}
	return append(claimed, queued...)
}

// begin waits for the batch's own limit, for the pause between two nodes and for the limit over all batches. False means
// that nothing more is to be started.
func (r *runner) begin(slots chan<- struct{}, pause bool) bool {
	select {
	case <-r.dispatch.Done():
		return false
	case slots <- struct{}{}:
	}
	if pause && r.batch.Rollout.PauseBetween > 0 {
		t := time.NewTimer(r.batch.Rollout.PauseBetween)
		defer t.Stop()
		select {
		case <-r.dispatch.Done():
			return false
		case <-t.C:
		}
	}
	if r.e.inFlight.Acquire(r.dispatch, 1) != nil {
		return false
	}
	if r.dispatch.Err() != nil { // both were ready
		r.e.inFlight.Release(1)
		return false
	}
	return true
}

func (r *runner) claim(it *fleet.Item) error {
	ctx, cancel := r.recording()
	defer cancel()
	if err := r.e.cfg.Store.ClaimItem(ctx, r.lease, it.Seq); err != nil {
		return recordError(err)
	}
	it.State = fleet.ItemRunning
	it.Attempt++
	r.e.cfg.Notify(r.lease.Batch)
	return nil
}

// act does one node and records what came of it.
func (r *runner) act(it *fleet.Item) {
	res, err := r.e.cfg.Doer.Do(r.step, r.task(it))
	switch {
	case errors.Is(err, fleet.ErrNotRecorded):
		r.stop(err)
		return // claimed, and found again
	case errors.Is(err, fleet.ErrAuthorityLost):
		r.stop(err)
		if it.Attempt > 1 {
			return // an earlier attempt may have changed the node
		}
		res, err = fleet.ItemResult{State: fleet.ItemCancelled, Code: fleet.CodeAuthorityLost, Message: noteAuthority}, nil
	case err != nil && r.step.Err() != nil:
		return // cut off in the middle; the next owner finds out
	}
	r.finish(it, res, err)
}

func (r *runner) task(it *fleet.Item) fleet.Task {
	return fleet.Task{By: r.by, Batch: r.lease.Batch, Item: *it, Operation: r.batch.Operation}
}

// finish records the result of an item, and stops the batch if it cannot or if that was one failure too many.
func (r *runner) finish(it *fleet.Item, res fleet.ItemResult, err error) {
	done := final(*it, res, err)
	if err != nil {
		r.log.WarnContext(r.step, "a node failed", keyNode, it.Ref.String(), keyCode, done.Code, keyErr, err)
	}
	for wait := 100 * time.Millisecond; ; wait *= 4 {
		ctx, cancel := r.recording()
		err := r.e.cfg.Store.FinishItem(ctx, r.lease, done)
		cancel()
		if err == nil {
			break
		}
		if errors.Is(err, fleet.ErrLeaseLost) || wait > 2*time.Second || !r.rest(wait) {
			r.stop(recordError(err))
			return
		}
	}
	*it = done
	r.e.cfg.Notify(r.lease.Batch)
	r.mu.Lock()
	r.moved = true
	r.mu.Unlock()
	if done.State == fleet.ItemFailed {
		r.fail(false)
		r.fail(true)
	}
}

// rest waits unless the run is cut off.
func (r *runner) rest(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-r.step.Done():
		return false
	case <-t.C:
		return true
	}
}

// fail counts a failed node, or applies the stop rule to what was counted.
func (r *runner) fail(judge bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !judge {
		r.failed++
		return
	}
	if r.batch.Rollout.MaxFailures > 0 && r.failed >= r.batch.Rollout.MaxFailures {
		r.stop(errFailures)
	}
}

// end leaves the batch in the state that the reason asks for.
func (r *runner) end(ctx context.Context, reason error) {
	switch {
	case errors.Is(reason, fleet.ErrLeaseLost):
		r.log.WarnContext(r.step, "batch lost to another owner", keyErr, reason)
		return
	case errors.Is(reason, fleet.ErrNotRecorded):
		r.interrupt(reason)
		return
	}
	var closing fleet.BatchEnd
	switch {
	case errors.Is(reason, fleet.ErrCancelled):
		closing = fleet.BatchEnd{Stopped: true, Code: fleet.CodeCancelled, Error: "not started: the batch was cancelled"}
	case errors.Is(reason, fleet.ErrAuthorityLost):
		closing = fleet.BatchEnd{Stopped: true, Code: fleet.CodeAuthorityLost, Error: noteAuthority, Note: noteAuthority}
	case errors.Is(reason, errFailures):
		closing = fleet.BatchEnd{
			Code:  fleet.CodeStopped,
			Error: "not started: too many nodes had failed",
			Note:  fmt.Sprintf("stopped after %d failed nodes", r.failed),
		}
	default: // it came to the end, or the engine stops
		if r.open() > 0 {
			r.release(ctx)
			return
		}
	}
	if err := r.resolve(); err != nil {
		r.end(ctx, err)
		return
	}
	if r.claimed() > 0 { // cut off before it was known what became of them
		r.release(ctx)
		return
	}
	closing.Entry = entry(r.by, r.lease.Batch, "batch.end", "result")
	closing.Entry.Detail = r.summary()
	if err := r.close(closing); err != nil {
		r.end(ctx, recordError(err))
		return
	}
	r.e.forget(r.lease.Batch)
	r.e.cfg.Notify(r.lease.Batch)
	r.log.InfoContext(r.step, "batch done", keyReason, closing.Note)
}

func (r *runner) close(closing fleet.BatchEnd) error {
	ctx, cancel := r.recording()
	defer cancel()
	return r.e.cfg.Store.EndBatch(ctx, r.lease, closing)
}

// resolve finds out about items that an earlier owner had claimed and that are not going to be done any more.
func (r *runner) resolve() error {
	var workers errgroup.Group
	workers.SetLimit(max(r.batch.Rollout.MaxConcurrent, 1))
	for i := range r.items {
		it := &r.items[i]
		if it.State != fleet.ItemRunning {
			continue
		}
		workers.Go(func() error {
			res, err := r.e.cfg.Doer.Resolve(r.step, r.task(it))
			switch {
			case errors.Is(err, fleet.ErrNotRecorded):
				return err
			case err != nil && r.step.Err() != nil:
				return nil //nolint:nilerr // the step was ended: the item stays claimed for whoever goes on
			}
			r.finish(it, res, err)
			if it.State == fleet.ItemRunning {
				return fmt.Errorf("recording %s: %w", it.Ref, fleet.ErrNotRecorded)
			}
			return nil
		})
	}
	err := workers.Wait()
	if lost := context.Cause(r.step); lost != nil && errors.Is(lost, fleet.ErrLeaseLost) {
		return lost
	}
	return err
}

// open counts the items that are not finished, claimed those in the middle.
func (r *runner) open() (n int) {
	for i := range r.items {
		if !r.items[i].State.Finished() {
			n++
		}
	}
	return n
}

func (r *runner) claimed() (n int) {
	for i := range r.items {
		if r.items[i].State == fleet.ItemRunning {
			n++
		}
	}
	return n
}

// summary is the detail of the audit result.
func (r *runner) summary() string {
	counts := make(map[fleet.ItemState]int)
	for i := range r.items {
		counts[r.items[i].State]++
	}
	return fmt.Sprintf("%s: %d succeeded, %d failed, %d skipped, %d not started", r.batch.Operation.Action,
		counts[fleet.ItemSucceeded], counts[fleet.ItemFailed], counts[fleet.ItemSkipped],
		counts[fleet.ItemCancelled]+counts[fleet.ItemQueued])
}

// release gives the lease back at an item boundary. If that fails, the lease runs out by itself.
func (r *runner) release(ctx context.Context) {
	rctx, cancel := r.recording()
	defer cancel()
	if err := r.e.cfg.Store.ReleaseBatch(rctx, r.lease); err != nil {
		r.log.WarnContext(ctx, "giving a lease back", keyErr, err)
	}
	r.e.cfg.Notify(r.lease.Batch)
}

// abandon leaves a batch to a person that nobody has worked on for too long.
func (r *runner) abandon(b fleet.Batch) {
	ctx, cancel := r.recording()
	defer cancel()
	note := fmt.Sprintf("nobody worked on it for %s, so it does not go on by itself; cancel it and start a new one for the nodes that are left",
		r.lease.Idle.Round(time.Minute))
	if err := r.e.cfg.Store.InterruptBatch(ctx, r.lease, note, 0); err != nil {
		r.log.ErrorContext(ctx, "interrupting a batch", keyErr, err)
		return // the lease runs out, and the next look finds it again
	}
	r.log.WarnContext(ctx, "batch left to a person", keyReason, b.State)
	r.e.cfg.Notify(r.lease.Batch)
}

// interrupt is for when the store does not answer: the batch says so and is tried again later. Where not even that can
// be written, the engine remembers it and the lease runs out by itself.
func (r *runner) interrupt(reason error) {
	r.log.ErrorContext(r.step, "batch interrupted", keyErr, reason)
	r.mu.Lock()
	moved := r.moved
	r.mu.Unlock()

	r.e.mu.Lock()
	t := r.e.trouble[r.lease.Batch]
	r.e.mu.Unlock()
	if moved {
		t.tries = 0
	}
	wait := min(time.Second<<min(t.tries, 5), 30*time.Second)
	ctx, cancel := r.recording()
	defer cancel()
	err := r.e.cfg.Store.InterruptBatch(ctx, r.lease, noteNotRecorded, wait)
	if errors.Is(err, fleet.ErrLeaseLost) {
		return // it is somebody else's now
	}
	t.note = ""
	if err != nil {
		t.note = noteNotRecorded
		r.log.ErrorContext(ctx, "interrupting a batch", keyErr, err)
	}
	t.tries++
	t.until = time.Now().Add(wait)

	r.e.mu.Lock()
	r.e.trouble[r.lease.Batch] = t
	r.e.mu.Unlock()
	r.e.cfg.Notify(r.lease.Batch)
}

// recovered takes back that a batch could not be recorded. The tries are kept until the batch gets on, so that one that
// can be started but not worked on is not tried every second.
func (e *Engine) recovered(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t, ok := e.trouble[id]; ok {
		t.note = ""
		e.trouble[id] = t
	}
}

// forget ends the trouble of a batch.
func (e *Engine) forget(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.trouble, id)
}

// recordError makes an error of the store one that is not about a node.
func recordError(err error) error {
	for _, known := range []error{fleet.ErrLeaseLost, fleet.ErrCancelled, fleet.ErrNotRecorded} {
		if errors.Is(err, known) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", fleet.ErrNotRecorded, err)
}

// final is the item as it is recorded.
func final(it fleet.Item, res fleet.ItemResult, err error) fleet.Item {
	it.State, it.Code, it.Error, it.Changed = res.State, res.Code, "", res.Changed
	if err == nil && !it.State.Finished() {
		err = fmt.Errorf("the operation answered with the state %q", res.State)
	}
	if err != nil {
		it.State = fleet.ItemFailed
		if it.Code == "" {
			it.Code = codeOf(err)
		}
	}
	if it.State != fleet.ItemSucceeded {
		it.Error = res.Message
	}
	if it.State == fleet.ItemFailed && it.Error == "" {
		it.Error = "the change failed"
	}
	return it
}

func codeOf(err error) string {
	for _, k := range []struct {
		kind error
		code string
	}{
		{fleet.ErrNotFound, fleet.CodeNotFound},
		{fleet.ErrForbidden, fleet.CodeForbidden},
		{fleet.ErrUnauthenticated, fleet.CodeUnauthorized},
		{fleet.ErrConflict, fleet.CodeConflict},
		{fleet.ErrInvalid, fleet.CodeInvalid},
		{fleet.ErrUnavailable, fleet.CodeUnavailable},
	} {
		if errors.Is(err, k.kind) {
			return k.code
		}
	}
	return fleet.CodeFailed
}
