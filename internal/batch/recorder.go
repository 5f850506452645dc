package batch

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

const (
	// recordEvery is the least distance of two writings of one node's progress.
	recordEvery = 200 * time.Millisecond
	// recordAtOnce bounds the events of one node in one writing.
	recordAtOnce = 512
	// recordMost is how many events of one node may wait; beyond it they are thinned out.
	recordMost = 4 * recordAtOnce
	// recordRest is the longest wait after a writing that failed.
	recordRest = 5 * time.Second
)

// recorder writes down what the drains of a batch tell, in a goroutine that its runner owns.
//
// Tell never waits. The progress of a node is always the newest, so that many events between two writings cost one. The
// events themselves wait in a list of bounded length. When it is full, an event that is overtaken makes room: one of the
// same pod, if the pod has told something newer since, or else the oldest that is not final. What is final (the end of the
// drain, a pod that is gone or was let go of) is never dropped; there are no more of these than pods on the node. Gaps in
// the drain's own numbers show what was left out.
type recorder struct {
	write func([]fleet.ItemProgress) error
	fail  func(error) // told of writings that failed, but for those in a row
	kick  chan struct{}
	asks  chan ask

	mu   sync.Mutex // guards logs and all in it
	logs map[int]*drainLog
}

// ask wants everything of an item written down now.
type ask struct {
	seq   int
	reply chan error
}

// drainLog is what an item has told.
type drainLog struct {
	tracker fleet.Tracker
	waiting []fleet.DrainEvent
	mark    int64 // events told
	dirty   bool
	last    time.Time           // when it was last written
	under   *fleet.ItemProgress // being written, and written again as it is until that has succeeded
}

func newRecorder(write func([]fleet.ItemProgress) error, fail func(error)) *recorder {
	return &recorder{write: write, fail: fail, kick: make(chan struct{}, 1), asks: make(chan ask), logs: make(map[int]*drainLog)}
}

// open begins the log of an item and returns where its drain tells what happens.
func (r *recorder) open(seq int) func(fleet.DrainEvent) {
	l := &drainLog{}
	r.mu.Lock()
	r.logs[seq] = l
	r.mu.Unlock()
	return func(e fleet.DrainEvent) {
		r.mu.Lock()
		l.tell(e)
		r.mu.Unlock()
		select {
		case r.kick <- struct{}{}:
		default: // it is going to look anyway
		}
	}
}

// progress is how far the drain of an item is, nil if it has told nothing.
func (r *recorder) progress(seq int) *fleet.DrainProgress {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.logs[seq]
	if l == nil || l.mark == 0 {
		return nil
	}
	p := l.tracker.Progress()
	return &p
}

// close forgets an item, whose log must be written down by then.
func (r *recorder) close(seq int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.logs, seq)
}

func (l *drainLog) tell(e fleet.DrainEvent) {
	if e.Pod != nil {
		pod := *e.Pod // the caller's may change
		e.Pod = &pod
	}
	l.tracker.Apply(e)
	l.mark++
	l.dirty = true
	if len(l.waiting) >= recordMost {
		l.thin(e)
	}
	l.waiting = append(l.waiting, e)
}

// thin makes room for an event.
func (l *drainLog) thin(next fleet.DrainEvent) {
	drop := -1
	for i, e := range l.waiting {
		if last(e) {
			continue
		}
		if next.Pod != nil && e.Pod != nil && e.Pod.UID == next.Pod.UID {
			drop = i
			break
		}
		if drop < 0 {
			drop = i
		}
	}
	if drop >= 0 {
		l.waiting = slices.Delete(l.waiting, drop, drop+1)
	}
}

// last tells events that nothing overtakes.
func last(e fleet.DrainEvent) bool {
	if e.Pod != nil {
		return e.Pod.State == fleet.PodGone || e.Pod.State == fleet.PodSkipped
	}
	switch e.NodeState {
	case fleet.DrainChecking, fleet.DrainCordoning, fleet.DrainEvicting, fleet.DrainTerminating, fleet.DrainVerifying,
		fleet.DrainDetaching, fleet.DrainReplacing:
		return false
	default:
		return true
	}
}

// run writes until ctx ends. What has not been asked for by then is not written any more.
func (r *recorder) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var rest time.Duration // after a failure
	for {
		var asked *ask
		select {
		case <-ctx.Done():
			return
		case a := <-r.asks:
			asked = &a
		case <-r.kick:
			if rest > 0 {
				continue // the timer says when to try again
			}
		case <-timer.C:
		}
		if asked != nil {
			asked.reply <- r.flush(asked.seq)
			continue
		}
		due, next := r.take(time.Now())
		if len(due) == 0 {
			if next > 0 {
				timer.Reset(next)
			}
			continue
		}
		if err := r.write(due); err != nil && !r.refused(due, err) {
			if rest == 0 {
				r.fail(err)
			}
			rest = min(max(2*rest, recordEvery), recordRest)
			timer.Reset(rest)
			continue
		}
		rest = 0
		r.written(due, time.Now())
		timer.Reset(recordEvery)
	}
}

// take collects what is due, and says when the next is if nothing is.
func (r *recorder) take(now time.Time) (due []fleet.ItemProgress, next time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for seq, l := range r.logs {
		if !l.dirty && l.under == nil {
			continue
		}
		if wait := l.last.Add(recordEvery).Sub(now); wait > 0 {
			if next == 0 || wait < next {
				next = wait
			}
			continue
		}
		due = append(due, *l.collect(seq))
	}
	slices.SortFunc(due, func(a, b fleet.ItemProgress) int { return a.Seq - b.Seq })
	return due, next
}

// collect is the next part of a log, and the same again until it was written.
func (l *drainLog) collect(seq int) *fleet.ItemProgress {
	if l.under != nil {
		return l.under
	}
	p := l.tracker.Progress()
	n := min(len(l.waiting), recordAtOnce)
	l.under = &fleet.ItemProgress{Seq: seq, Drain: &p, Events: slices.Clone(l.waiting[:n])}
	l.waiting = slices.Delete(l.waiting, 0, n)
	// The mark counts what was told, so that it moves with every part; what waits is still to come.
	l.under.Mark = l.mark - int64(len(l.waiting))
	l.dirty = len(l.waiting) > 0
	return l.under
}

// written notes that parts are down.
func (r *recorder) written(parts []fleet.ItemProgress, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range parts {
		if l := r.logs[p.Seq]; l != nil {
			l.under, l.last = nil, at
		}
	}
}

// refused deals with an answer that no trying again changes: one of the items is not running any more. It tells whether
// all that is left of the parts was written.
func (r *recorder) refused(parts []fleet.ItemProgress, err error) bool {
	if !errors.Is(err, fleet.ErrConflict) {
		return false
	}
	all := true
	for _, p := range parts {
		err := r.write([]fleet.ItemProgress{p})
		switch {
		case errors.Is(err, fleet.ErrConflict):
			r.fail(err)
			r.close(p.Seq)
		case err != nil:
			all = false
		}
	}
	return all
}

// flush writes all that an item has told.
func (r *recorder) flush(seq int) error {
	for {
		r.mu.Lock()
		l := r.logs[seq]
		if l == nil || !l.dirty && l.under == nil {
			r.mu.Unlock()
			return nil
		}
		part := []fleet.ItemProgress{*l.collect(seq)}
		r.mu.Unlock()
		if err := r.write(part); err != nil {
			return err
		}
		r.written(part, time.Now())
	}
}

// done has everything of an item written down, unless ctx ends before.
func (r *recorder) done(ctx context.Context, seq int) error {
	a := ask{seq: seq, reply: make(chan error, 1)}
	select {
	case r.asks <- a:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-a.reply:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
