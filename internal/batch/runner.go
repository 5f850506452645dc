package batch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// The reasons why a run ends that nobody else has a name for.
var (
	errFailures = errors.New("too many failed nodes")             // the stop rule
	errHeld     = errors.New("paused with nothing in the middle") // nobody has to watch over it
)

// recheck is how often a batch asks whether enough nodes are available.
const recheck = 2 * time.Second

// The notes people read on a batch.
const (
	noteNotRecorded = "our own record could not be read or written; the batch goes on by itself as soon as it can"
	noteAuthority   = "stopped: the person who started it may no longer do this"
	noteDied        = "the program ended in the middle of it; what the nodes are like now is not known. Resume goes on: nodes that were begun are done again"
)

// runner is one batch in the hands of this engine, for as long as it has the lease.
type runner struct {
	e     *Engine
	log   *slog.Logger
	lease fleet.BatchLease

	reversible bool // of the action

	dispatch context.Context // while it lasts, further nodes are started
	stop     context.CancelCauseFunc
	step     context.Context // while it lasts, nodes in flight may finish
	cut      context.CancelCauseFunc

	batch fleet.Batch
	by    fleet.Caller
	items []fleet.Item // an item is touched by the loop before its worker starts, and after all workers have ended

	valid time.Time // how long the lease was ours, by our own clock, when the run began

	asked   chan struct{} // somebody steers the batch: renew now, and hear
	steered chan struct{} // what people asked for has changed: look
	drains  *recorder     // nil for actions that are done at once
	noted   string        // the note that the loop left, of the loop

	mu     sync.Mutex // guards failed, streak, moved, steer, hold, ends
	failed int
	streak int  // failed nodes since the last one that succeeded
	moved  bool // something was recorded in this run
	steer  fleet.BatchSteer
	hold   chan struct{}                   // closed when a pause begins or ends
	ends   map[int]context.CancelCauseFunc // of the items in flight
}

func newRunner(ctx context.Context, e *Engine, l fleet.BatchLease, b fleet.Batch, valid time.Time) *runner {
	r := &runner{
		e: e, lease: l, reversible: b.Operation.Action.Reversible(), valid: valid, log: e.log.With(keyBatch, l.Batch, keyEpoch, l.Epoch),
		asked: make(chan struct{}, 1), steered: make(chan struct{}, 1), hold: make(chan struct{}),
		ends: make(map[int]context.CancelCauseFunc),
	}
	r.dispatch, r.stop = context.WithCancelCause(ctx)
	r.step, r.cut = context.WithCancelCause(context.WithoutCancel(ctx))
	return r
}

// run works on the batch until it is done, the engine stops, or the lease is lost.
func (r *runner) run(ctx context.Context, b fleet.Batch, first bool) {
	defer r.stop(nil)
	if why := r.foreboding(b, first); why != "" {
		r.abandon(b, why)
		return
	}
	writing, written := context.WithCancel(context.WithoutCancel(ctx))
	defer written()
	var helpers sync.WaitGroup
	if !r.reversible {
		r.drains = newRecorder(r.record, func(err error) { r.log.WarnContext(ctx, "recording progress", keyErr, err) })
		helpers.Go(func() { r.drains.run(writing) })
	}
	helpers.Go(func() { r.keep(ctx) })
	r.end(ctx, r.work())
	r.cut(nil)
	written()
	helpers.Wait()
}

// foreboding is why a batch is left to a person, "" if it goes on by itself.
func (r *runner) foreboding(b fleet.Batch, first bool) string {
	switch {
	case b.CancelledBy != "":
		return ""
	case !r.reversible && !r.lease.Clean && b.Counts.Running > 0:
		return noteDied
	case r.lease.Idle > r.e.cfg.ResumeWithin && (first || b.State != fleet.BatchQueued):
		return fmt.Sprintf("nobody worked on it for %s, and the world may have changed; resume it, or cancel it and start a new one for the nodes that are left",
			r.lease.Idle.Round(time.Minute))
	}
	return ""
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
			continue
		case <-grace:
			r.cut(context.Cause(ctx))
			return
		case <-expire.C:
			r.lose(fmt.Errorf("%w: not renewed in time", fleet.ErrLeaseLost))
			return
		case <-r.asked:
		case <-renew.C:
		}
		start := time.Now()
		steer, err := r.renew(valid)
		switch {
		case errors.Is(err, fleet.ErrLeaseLost):
			r.lose(err)
			return
		case err != nil:
			r.log.WarnContext(ctx, "renewing a lease", keyErr, err)
			renew.Reset(every / 5)
			continue
		}
		r.learn(steer)
		valid = start.Add(r.e.cfg.LeaseTTL)
		expire.Reset(time.Until(valid))
		renew.Reset(every)
	}
}

// hear has the keeper ask at once what people want.
func (r *runner) hear() {
	select {
	case r.asked <- struct{}{}:
	default: // it is going to
	}
}

// learn takes in what people asked for, here or through another replica.
func (r *runner) learn(s fleet.BatchSteer) {
	if s.CancelledBy != "" {
		r.halt(fleet.ErrCancelled)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.Version < r.steer.Version {
		return // read before what we know
	}
	if (s.PausedBy == "") != (r.steer.PausedBy == "") {
		close(r.hold)
		r.hold = make(chan struct{})
	}
	r.steer = s
	for _, seq := range s.Skip {
		if end := r.ends[seq]; end != nil {
			end(fleet.ErrSkipped)
		}
	}
	select {
	case r.steered <- struct{}{}:
	default: // it is going to look
	}
}

// now is what people asked for, as far as this owner has heard.
func (r *runner) now() fleet.BatchSteer {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.steer
}

// held is Held of the tasks.
func (r *runner) held() (held bool, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.steer.PausedBy != "", r.hold
}

// halt ends the run early. What can be taken back is finished; drains are let go of where they are, if it is a person or
// the loss of authority that ends it.
func (r *runner) halt(cause error) {
	r.stop(cause)
	if r.reversible || !errors.Is(cause, fleet.ErrCancelled) && !errors.Is(cause, fleet.ErrAuthorityLost) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, end := range r.ends {
		end(cause)
	}
}

// enlist gives an item in flight a context of its own, by which it can be let go of.
func (r *runner) enlist(seq int) (ctx context.Context, done func()) {
	ctx, end := context.WithCancelCause(r.step)
	r.mu.Lock()
	r.ends[seq] = end
	skip := slices.Contains(r.steer.Skip, seq)
	r.mu.Unlock()
	if skip {
		end(fleet.ErrSkipped)
	}
	if r.dispatch.Err() != nil { // while it was being claimed
		r.halt(context.Cause(r.dispatch))
	}
	return ctx, func() {
		r.mu.Lock()
		delete(r.ends, seq)
		r.mu.Unlock()
		end(nil)
	}
}

// record writes progress down.
func (r *runner) record(progress []fleet.ItemProgress) error {
	ctx, cancel := r.recording()
	defer cancel()
	err := r.e.cfg.Store.RecordProgress(ctx, r.lease, progress...)
	switch {
	case errors.Is(err, fleet.ErrLeaseLost):
		r.lose(err)
	case err == nil:
		r.e.cfg.Notify(r.lease.Batch)
	}
	return err
}

// renew asks once. An answer that takes longer than the lease lasts must not keep anybody from seeing its end.
func (r *runner) renew(valid time.Time) (fleet.BatchSteer, error) {
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
	ended := slices.Clone(r.items)
	slices.SortStableFunc(ended, func(x, y fleet.Item) int { return x.EndedAt.Compare(y.EndedAt) })
	for i := range ended {
		r.count(ended[i].State)
	}
	r.judge()

	r.learn(fleet.BatchSteer{PausedBy: r.batch.PausedBy, Passed: r.batch.Passed, Version: r.batch.Version})
	if err := r.start(); err != nil {
		return err
	}
	if r.dispatch.Err() != nil {
		return context.Cause(r.dispatch)
	}
	return nil
}

// start starts nodes as the rollout has it until there are none left or something ends the run, and waits for those in
// flight.
func (r *runner) start() error {
	q := newQueue(r.batch.Rollout, r.items)
	room := r.e.inFlight
	if !r.reversible {
		room = r.e.draining
	}
	var workers sync.WaitGroup
	landed := make(chan int, q.rollout.MaxConcurrent)
	defer workers.Wait()
	var (
		ticket bool        // there is room for one more over all batches
		begun  int         // in this run
		gap    *time.Timer // the pause between two nodes
		ready  bool        // that pause is over
	)
	defer func() {
		if ticket {
			room.Release(1)
		}
		if gap != nil {
			gap.Stop()
		}
	}()
	for {
		now := r.look(q)
		if q.idle() && (q.empty() || r.dispatch.Err() != nil) {
			return nil
		}
		if r.dispatch.Err() == nil && q.canary(now) {
			if err := r.pauseSelf(); err != nil {
				return err
			}
			continue
		}
		if now.paused && q.idle() && !q.interrupted() {
			return errHeld
		}
		var note string
		var ok bool
		var i int
		if r.dispatch.Err() == nil {
			i, note, ok = q.next(now)
		}
		if ok && begun > 0 && r.batch.Rollout.PauseBetween > 0 && !ready && r.items[i].State == fleet.ItemQueued {
			if gap == nil {
				gap = time.NewTimer(r.batch.Rollout.PauseBetween)
			}
			ok = false
		}
		if ok && !ticket {
			// The wait may be long, and by its end another node may be the next.
			ticket = room.Acquire(r.dispatch, 1) == nil
			r.collect(q, landed)
			continue
		}
		if !ok && ticket {
			room.Release(1)
			ticket = false
		}
		if !ok {
			if now.paused {
				r.noted = "" // the store has another one
			} else if note != "" || r.noted != "" && gap == nil && r.dispatch.Err() == nil {
				if err := r.note(note); err != nil {
					return err
				}
			}
			ready = r.await(q, landed, gap, note != "") || ready
			continue
		}
		if r.noted != "" {
			if err := r.note(""); err != nil {
				return err
			}
		}
		it := &r.items[i]
		fresh := it.State == fleet.ItemQueued
		claimed, err := r.claim(it)
		if err != nil {
			r.halt(err)
			continue
		}
		if !claimed {
			if it.State.Finished() {
				q.leave(i)
			}
			continue
		}
		q.start(i, fresh)
		begun++
		gap, ready, ticket = nil, false, false
		workers.Go(func() {
			r.act(it)
			room.Release(1)
			landed <- i
		})
	}
}

// look takes what people asked for into the list of what is to be done.
func (r *runner) look(q *queue) steering {
	s := r.now()
	for _, seq := range s.LeftOut {
		if it := &r.items[seq]; it.State == fleet.ItemQueued {
			it.State, it.Code = fleet.ItemSkipped, fleet.CodeSkipped
			q.leave(seq)
		}
	}
	return steering{paused: s.PausedBy != "", passed: s.Passed, others: func(cluster string) (n int) {
		for _, name := range r.e.cfg.Lookup.Unavailable(cluster) {
			if !q.ours[fleet.NodeRef{Cluster: cluster, Name: name}] {
				n++
			}
		}
		return n
	}}
}

// await waits until there may be something new to do; it tells whether that is the end of the gap.
func (r *runner) await(q *queue, landed <-chan int, gap *time.Timer, ask bool) bool {
	var over, again <-chan time.Time
	if gap != nil {
		over = gap.C
	}
	if ask {
		t := time.NewTimer(recheck)
		defer t.Stop()
		again = t.C
	}
	stopped := r.dispatch.Done()
	if r.dispatch.Err() != nil {
		stopped = nil // only those in flight are waited for
	}
	select {
	case i := <-landed:
		q.land(i)
	case <-r.steered:
	case <-stopped:
	case <-again:
	case <-over:
		return true
	}
	return false
}

// collect takes in what has landed meanwhile.
func (r *runner) collect(q *queue, landed <-chan int) {
	for {
		select {
		case i := <-landed:
			q.land(i)
		default:
			return
		}
	}
}

// pauseSelf pauses the batch behind its canary.
func (r *runner) pauseSelf() error {
	ctx, cancel := r.recording()
	defer cancel()
	en := entry(r.by, r.lease.Batch, "batch.pause", "event")
	en.Detail = fmt.Sprintf("by itself, after its first %d nodes", r.batch.Rollout.Canary)
	note := fmt.Sprintf("the first %d nodes are done: have a look at them, and resume", r.batch.Rollout.Canary)
	steer, err := r.e.cfg.Store.HoldBatch(ctx, r.lease, fleet.PausedByCanary, note, en)
	if err != nil {
		return r.broken(err)
	}
	r.learn(steer)
	r.e.cfg.Notify(r.lease.Batch)
	return nil
}

// note says on the batch why no further node is started, "" when one is.
func (r *runner) note(text string) error {
	if text == r.noted {
		return nil
	}
	ctx, cancel := r.recording()
	defer cancel()
	if err := r.e.cfg.Store.NoteBatch(ctx, r.lease, text); err != nil {
		return r.broken(err)
	}
	r.noted = text
	r.e.cfg.Notify(r.lease.Batch)
	return nil
}

// broken ends the run by an error of the store.
func (r *runner) broken(err error) error {
	err = recordError(err)
	r.stop(err)
	return err
}

// claim makes an item ours. It answers false if it is not to be done: not now, because the batch is paused, or not at
// all, because somebody left it out.
func (r *runner) claim(it *fleet.Item) (bool, error) {
	ctx, cancel := r.recording()
	defer cancel()
	err := r.e.cfg.Store.ClaimItem(ctx, r.lease, it.Seq)
	switch {
	case errors.Is(err, fleet.ErrPaused):
		r.mu.Lock()
		s := r.steer
		r.mu.Unlock()
		s.PausedBy = cmp.Or(s.PausedBy, "somebody") // who it was comes with the renewal
		r.learn(s)
		r.hear()
		return false, nil
	case errors.Is(err, fleet.ErrSkipped):
		if it.State == fleet.ItemRunning { // left in the middle, and let go since
			r.finish(it, skipped(), nil)
			return false, nil
		}
		it.State, it.Code = fleet.ItemSkipped, fleet.CodeSkipped
		return false, nil
	case err != nil:
		return false, recordError(err)
	}
	it.State = fleet.ItemRunning
	it.Attempt++
	r.e.cfg.Notify(r.lease.Batch)
	return true, nil
}

// skipped is the result of an item that a person let go of.
func skipped() fleet.ItemResult {
	return fleet.ItemResult{State: fleet.ItemSkipped, Code: fleet.CodeSkipped, Message: "a person let go of it in the middle; what was done stays done"}
}

// act does one node and records what came of it.
func (r *runner) act(it *fleet.Item) {
	ctx, done := r.enlist(it.Seq)
	defer done()
	t := r.task(it)
	if r.drains != nil {
		t.Tell = r.drains.open(it.Seq)
		defer r.drains.close(it.Seq)
	}
	res, err := r.e.cfg.Doer.Do(ctx, t)
	switch {
	case errors.Is(err, fleet.ErrNotRecorded):
		r.stop(err)
		return // claimed, and found again
	case errors.Is(err, fleet.ErrAuthorityLost):
		r.halt(err)
		if it.Attempt > 1 {
			return // an earlier attempt may have changed the node
		}
		res, err = fleet.ItemResult{State: fleet.ItemCancelled, Code: fleet.CodeAuthorityLost, Message: noteAuthority}, nil
	case err != nil && r.step.Err() != nil:
		return // cut off in the middle; the next owner finds out
	case err != nil && ctx.Err() != nil:
		if res, err = r.letGo(t, res, context.Cause(ctx)); errors.Is(err, fleet.ErrNotRecorded) {
			r.stop(err)
			return
		}
		if err != nil && r.step.Err() != nil {
			return
		}
	}
	r.finish(it, res, err)
}

// letGo is the result of an item whose context was ended because somebody asked for it. What can be taken back is looked
// at: the change may have landed before.
func (r *runner) letGo(t fleet.Task, res fleet.ItemResult, cause error) (fleet.ItemResult, error) {
	out := skipped()
	switch {
	case errors.Is(cause, fleet.ErrAuthorityLost):
		out.State, out.Code, out.Message = fleet.ItemCancelled, fleet.CodeAuthorityLost, noteAuthority
	case errors.Is(cause, fleet.ErrCancelled):
		out.State, out.Code, out.Message = fleet.ItemCancelled, fleet.CodeCancelled, "the batch was cancelled in the middle of it; what was done stays done"
	}
	if r.reversible {
		now, err := r.e.cfg.Doer.Resolve(r.step, t)
		if err != nil || now.State != fleet.ItemCancelled {
			return now, err
		}
		return out, nil
	}
	out.Edits, out.Drain = res.Edits, res.Drain
	p := res.Drain
	if p == nil {
		p = r.drains.progress(t.Item.Seq)
	}
	out.Changed = res.Changed || len(changes(res.Edits)) > 0 || p != nil && p.Evicted > 0
	return out, nil
}

func (r *runner) task(it *fleet.Item) fleet.Task {
	return fleet.Task{By: r.by, Batch: r.lease.Batch, Item: *it, Operation: r.batch.Operation, Held: r.held}
}

// finish records the result of an item, and stops the batch if it cannot or if that was one failure too many.
func (r *runner) finish(it *fleet.Item, res fleet.ItemResult, err error) {
	if res.Drain == nil && r.drains != nil {
		res.Drain = r.drains.progress(it.Seq)
	}
	done := final(*it, res, err)
	if err != nil {
		r.log.WarnContext(r.step, "a node failed", keyNode, it.Ref.String(), keyCode, done.Code, keyErr, err)
	}
	for wait := 100 * time.Millisecond; ; wait *= 4 {
		err := r.down(done)
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
	r.count(done.State)
	r.judge()
}

// down writes down all that an item has told, and then its end.
func (r *runner) down(done fleet.Item) error {
	ctx, cancel := r.recording()
	defer cancel()
	if r.drains != nil {
		if err := r.drains.done(ctx, done.Seq); err != nil {
			return err
		}
	}
	return r.e.cfg.Store.FinishItem(ctx, r.lease, done)
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

// count counts a node that has ended.
func (r *runner) count(s fleet.ItemState) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s == fleet.ItemFailed {
		r.failed++
		r.streak++
	}
	if s == fleet.ItemSucceeded {
		r.streak = 0
	}
}

// judge applies the stop rule to what was counted. A drain has one for which nobody asked: of nodes that fail one after
// the other, the next one will fail too, and stay cordoned.
func (r *runner) judge() {
	r.mu.Lock()
	defer r.mu.Unlock()
	most, n := r.batch.Rollout.MaxFailures, r.failed
	if most == 0 && r.batch.Operation.Action == fleet.ActionDrain {
		most, n = fleet.MaxStreak, r.streak
	}
	if most > 0 && n >= most {
		r.stop(errFailures)
	}
}

// tooMany says which stop rule it was.
func (r *runner) tooMany() string {
	if r.batch.Rollout.MaxFailures == 0 {
		return fmt.Sprintf("stopped after %d failed nodes in a row; max_failures would set another limit", r.streak)
	}
	return fmt.Sprintf("stopped after %d failed nodes", r.failed)
}

// end leaves the batch in the state that the reason asks for.
func (r *runner) end(ctx context.Context, reason error) {
	switch {
	case errors.Is(reason, errHeld):
		r.release(ctx)
		return
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
			Note:  r.tooMany(),
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

// abandon leaves a batch to a person.
func (r *runner) abandon(b fleet.Batch, note string) {
	ctx, cancel := r.recording()
	defer cancel()
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
	it.State, it.Code, it.Error, it.Changed, it.Edits = res.State, res.Code, "", res.Changed, res.Edits
	if res.Drain != nil {
		it.Drain = res.Drain
	}
	if err == nil && !it.State.Finished() {
		err = fmt.Errorf("the operation answered with the state %q", res.State)
	}
	if err != nil {
		it.State = fleet.ItemFailed
		if it.Code == "" {
			it.Code = codeOf(err)
		}
	}
	if it.State != fleet.ItemSucceeded || it.Code != "" { // done, but not all of it or not as it was thought
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
