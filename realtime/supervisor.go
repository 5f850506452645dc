package realtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// Deadlines of the connection to one cluster.
const (
	probeAgain    = 2 * time.Second  // after a probe that failed
	firstListWait = 5 * time.Second  // for other clusters' first lists
	healthyAfter  = 30 * time.Second // a watch that held so long starts the back-off anew
	networkMax    = 5 * time.Second  // most between attempts at a host that does not answer: an attempt is one probe
)

var (
	errSilent = errors.New("the watch went silent: no event and no bookmark")
	errStuck  = errors.New("the list does not arrive")
	errEnded  = errors.New("the watch ended")
	errDenied = errors.New("the permission to watch nodes was taken away")

	// errOver tells the reflector that its attempt is over. It must be none of the errors that the reflector repeats by
	// itself: it waits before that for up to a minute, deaf to the end of its context.
	errOver = errors.New("the attempt is over")
)

// mostExpired is how often the reflector may be told in one attempt that its resource version is too old: it asks again
// at once, and for ever.
const mostExpired = 3

// deadError says that a connection looks open and carries nothing any more.
type deadError struct{ error }

func (e *deadError) Unwrap() error { return e.error }

// supervisor keeps one cluster's board fed. Everything of the cluster runs under it: its trouble stays its own.
type supervisor struct {
	m       *Manager
	cluster kube.Cluster
	board   *board
	log     *slog.Logger
	terms   fleet.Terms
	asked   atomic.Int64  // unix nanoseconds of when the cluster last said what we may do; 0 for never
	now     chan struct{} // try at once; capacity 1
	done    chan struct{} // closed when run has returned
	cancel  context.CancelFunc
	lull    atomic.Pointer[context.CancelCauseFunc] // puts the cluster to sleep; nil between attempts
	lulled  atomic.Int64                            // unix nanoseconds of the decision to
	id      identity
	doubt   chan struct{} // somebody found another cluster at the address; capacity 1

	prev     *supervisor   // whose board this one continues; nil for the first
	took     chan struct{} // closed when prev has ended
	replaced atomic.Bool   // another one continues this one's board
	fresh    atomic.Bool   // what the reflector remembers is of another cluster

	// Only the goroutine of run touches these, and what it calls.
	sink      *sink
	source    *source
	reflector *cache.Reflector
	forbidden bool // the last attempt was not permitted
}

func newSupervisor(m *Manager, c kube.Cluster, b *board) *supervisor {
	s := &supervisor{
		m: m, cluster: c, board: b, log: m.cfg.Logger.With("cluster", c.Name), terms: m.cfg.Terms(c.Name),
		now: make(chan struct{}, 1), done: make(chan struct{}), doubt: make(chan struct{}, 1), took: make(chan struct{}),
	}
	s.sink = &sink{s: s}
	s.id.dials = -1
	c.Gate(s.gate)
	return s
}

// run connects, watches and connects again until ctx ends.
func (s *supervisor) run(ctx context.Context) {
	s.takeOver()
	defer func() {
		if !s.replaced.Load() {
			s.state(fleet.ClusterStopped, "", time.Time{})
		}
	}()
	if s.cluster.Fault != nil {
		s.state(fleet.ClusterUnreachable, s.cluster.Fault.Error(), time.Time{})
		<-ctx.Done()
		return
	}
	var failures int
	for {
		began := time.Now()
		err := s.awake(ctx)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errAsleep) {
			if !s.sleep(ctx) {
				return
			}
			failures = 0
			continue
		}
		if _, ok := errors.AsType[*deadError](err); ok {
			s.cluster.Close()
		} else {
			s.cluster.CloseIdle()
		}
		if _, ok := errors.AsType[*fleet.IdentityError](err); ok {
			s.fresh.Store(true)
		}
		s.forbidden = refusal(err) == fleet.ClusterForbidden
		live := s.liveFor(began)
		if live >= healthyAfter {
			failures = 0
		}
		delay := s.delay(err, failures)
		failures++
		s.m.metrics.reconnects.WithLabelValues(s.cluster.Name).Inc()
		if quiet(err) && (live > 0 || failures == 1) {
			s.log.Debug("watch begins anew", "err", err)
		} else {
			s.fail(err, time.Now().Add(delay))
		}
		if !s.pause(ctx, delay) {
			return
		}
	}
}

// takeOver waits until the one before has ended, however the end of this one stands: a board has one writer.
func (s *supervisor) takeOver() {
	defer close(s.took)
	if s.prev == nil {
		return
	}
	s.prev.cancel()
	<-s.prev.done
	s.prev.cluster.End()
	s.prev = nil
	if s.board.state().State == fleet.ClusterAsleep {
		s.board.wake()
	}
	if s.board.synced() {
		s.state(fleet.ClusterStale, "its connection was changed", time.Time{})
	} else {
		s.state(fleet.ClusterConnecting, "", time.Time{})
	}
}

// retry ends the wait for the next attempt.
func (s *supervisor) retry() {
	select {
	case s.now <- struct{}{}:
	default: // asked already
	}
}

// liveFor is how long the attempt that began then was live.
func (s *supervisor) liveFor(began time.Time) time.Duration {
	at := s.board.liveSince()
	if at.Before(began) {
		return 0
	}
	return time.Since(at)
}

func (s *supervisor) pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
	case <-s.now:
	}
	return true
}

// quiet errors are part of a watch's normal life and change nothing that people see.
func quiet(err error) bool {
	return errors.Is(err, errEnded) || apierrors.IsResourceExpired(err) || apierrors.IsGone(err)
}

// delay is how long to wait after an error: twice as long each time, with full jitter in the upper half. It is never
// short after a refusal, which more requests do not cure and some servers punish, and never shorter than a server asks
// for, up to the longest there is.
func (s *supervisor) delay(err error, failures int) time.Duration {
	most := s.m.cfg.BackoffMax
	if _, other := errors.AsType[*fleet.IdentityError](err); other || refusal(err) != "" {
		return most + rand.N(most/4+1)
	}
	d := s.m.cfg.BackoffMin << min(failures, 16)
	if status := apierrors.APIStatus(nil); !errors.As(err, &status) {
		return jitter(min(d, most, networkMax))
	}
	d = jitter(min(d, most))
	wait, _ := apierrors.SuggestsClientDelay(err)
	if asked := min(max(time.Duration(wait)*time.Second, s.cluster.Patience()), most); asked > 0 {
		d = max(d, asked+rand.N(asked/8+1))
	}
	return d
}

func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// refusal is the state that a refusal by the API server leads to, "" for any other error.
func refusal(err error) fleet.ClusterState {
	switch {
	case apierrors.IsUnauthorized(err):
		return fleet.ClusterUnauthorized
	case apierrors.IsForbidden(err):
		return fleet.ClusterForbidden
	}
	return ""
}

// fail shows why the cluster is not live.
func (s *supervisor) fail(err error, retry time.Time) {
	state := refusal(err)
	if state == "" {
		state = fleet.ClusterUnreachable
		if s.board.synced() && s.id.refused() == nil {
			state = fleet.ClusterStale
		}
	}
	s.log.Warn("cluster not live", "state", state, "err", err, "retry", retry)
	s.state(state, kube.Reason(err), retry)
}

func (s *supervisor) state(state fleet.ClusterState, reason string, retry time.Time) {
	s.board.setStatus(func(c *fleet.Cluster) {
		if c.State != state {
			c.State, c.Since = state, time.Now()
		}
		c.Reason, c.NextRetry = reason, retry
	})
}

// live is called when a list is in the board.
func (s *supervisor) live() {
	s.board.setStatus(func(c *fleet.Cluster) {
		now := time.Now()
		if c.State != fleet.ClusterLive {
			c.State, c.Since = fleet.ClusterLive, now
		}
		if c.SyncedAt.IsZero() {
			c.SyncedAt = now
		}
		c.Reason, c.NextRetry = "", time.Time{}
	})
	s.board.markLive()
}

// attempt is one connection: probe, list, watch, until something ends it. It returns why. A panic, in the decoding of
// an odd object or in our own code, ends the attempt and not the process.
func (s *supervisor) attempt(parent context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("supervisor panicked", "panic", p, "stack", stack())
			err = fmt.Errorf("internal error while reading the cluster: %v", p)
			s.reflector = nil // whatever state it is in
		}
	}()
	select {
	case <-s.doubt: // of an attempt that is over
	default:
	}
	if s.fresh.Swap(false) {
		s.reflector = nil
	}
	if !s.board.synced() {
		s.state(fleet.ClusterConnecting, "", time.Time{})
	}
	if err := s.greet(parent); err != nil {
		return err
	}
	free := func() {}
	if !s.board.synced() {
		free = sync.OnceFunc(s.queue(parent))
		defer free()
		s.state(fleet.ClusterSyncing, "", time.Time{})
	}

	ctx, cancel := context.WithCancelCause(parent)
	src := &source{end: cancel}
	synced := make(chan struct{})
	s.source, s.sink.synced = src, synced
	s.board.begin()
	guarded := make(chan struct{})
	go func() {
		defer close(guarded)
		defer func() {
			if p := recover(); p != nil {
				s.log.Error("guard panicked", "panic", p, "stack", stack())
				cancel(fmt.Errorf("internal error while watching over the cluster: %v", p))
			}
		}()
		s.guard(ctx, cancel, synced, free)
	}()
	defer func() {
		cancel(nil)
		<-guarded
		src.calls.close()
	}()
	// The reflector lists anew each time, so that whatever the last attempt missed is put right, and remembers how far
	// it was, so that an API server that lags behind does not take us back.
	if s.reflector == nil {
		s.reflector = cache.NewReflectorWithOptions(s.listWatch(), &corev1.Node{}, s.sink, cache.ReflectorOptions{
			Name: "nodes/" + s.cluster.Name,
		})
	}
	err = s.reflector.ListAndWatchWithContext(context.WithValue(ctx, sourceKey{}, src))
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err != nil {
		return err
	}
	return errEnded
}

// greet asks whether the server answers and who it is, before anything is read from it. After a missing permission it
// does not: the one question is then whether the watch is permitted now, and who is there is asked when it is, before
// anything of it is used.
func (s *supervisor) greet(ctx context.Context) error {
	if s.forbidden {
		s.id.doubt()
		return nil
	}
	if err := s.probe(ctx); err != nil {
		return err
	}
	return s.identify(ctx)
}

// queue waits for a place among the first lists, but not for long: a cluster that hangs in its list must not keep
// others from theirs.
func (s *supervisor) queue(ctx context.Context) (free func()) {
	t := time.NewTimer(firstListWait)
	defer t.Stop()
	select {
	case s.m.syncs <- struct{}{}:
		return func() { <-s.m.syncs }
	case <-t.C:
	case <-ctx.Done():
	}
	return func() {}
}

// probe asks for the version. Only a network that does not carry the question, or a credential that is refused, is a
// failure: whoever may not ask for the version may still be allowed to watch.
func (s *supervisor) probe(parent context.Context) error {
	ctx, cancel := context.WithTimeout(parent, s.m.cfg.Answer)
	defer cancel()
	version, err := kube.Version(ctx, s.cluster.Ops)
	if err == nil {
		s.board.setStatus(func(c *fleet.Cluster) { c.Version = version })
		return nil
	}
	if status := apierrors.APIStatus(nil); errors.As(err, &status) && !apierrors.IsUnauthorized(err) {
		return nil
	}
	return err
}

// guard ends an attempt that looks alive and is not: a list that stops arriving, a watch without event and bookmark, a
// server that does not answer any more, a permission that is gone, another cluster at the same address. A watch tells
// none of these by itself.
func (s *supervisor) guard(ctx context.Context, end context.CancelCauseFunc, synced <-chan struct{}, listed func()) {
	if !s.guardList(ctx, end, synced) {
		return
	}
	listed() // others may have their first list; the watch takes no place
	g := &guardian{supervisor: s, end: end, reviewed: time.Now()}
	g.rights(ctx)
	tick := time.NewTimer(g.next(s.m.cfg.Probe/2 + rand.N(s.m.cfg.Probe)))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.doubt:
			if err := s.id.refused(); err != nil {
				end(err)
			} else {
				end(errEnded) // it was accepted
			}
			return
		case <-tick.C:
		}
		next, ok := g.look(ctx)
		if !ok {
			return
		}
		tick.Reset(g.next(next))
	}
}

// guardian is what guard remembers between two looks.
type guardian struct {
	*supervisor
	end      context.CancelCauseFunc
	failed   int       // probes in a row
	since    time.Time // when the first of them began
	reviewed time.Time
}

// next is when to look again: after d, and no later than something is due.
func (g *guardian) next(d time.Duration) time.Duration {
	now := time.Now()
	d = min(d, g.m.cfg.Silence-now.Sub(g.board.eventAt()), g.m.cfg.Review-now.Sub(g.reviewed))
	return max(d, time.Millisecond)
}

// look is one round; false when it has ended the attempt.
func (g *guardian) look(ctx context.Context) (time.Duration, bool) {
	if time.Since(g.board.eventAt()) >= g.m.cfg.Silence {
		g.end(&deadError{errSilent})
		return 0, false
	}
	began := time.Now()
	err := g.probe(ctx)
	switch {
	case err == nil:
		g.failed = 0
	case refusal(err) != "":
		g.end(err)
		return 0, false
	default:
		if g.failed++; g.failed == 1 {
			g.since = began
		}
		// Events that still come say more than probes that do not.
		if g.failed >= 2 && g.board.eventAt().Before(g.since) {
			g.end(&deadError{err})
			return 0, false
		}
		return min(probeAgain, g.m.cfg.Probe), true
	}
	if err := g.review(ctx); err != nil {
		g.end(err)
		return 0, false
	}
	return g.m.cfg.Probe/2 + rand.N(g.m.cfg.Probe), true
}

// review asks, now and then, what an open watch goes on without: who is there, and whether we may still watch. Only a
// clear answer counts; that the question failed is for the probes to judge.
func (g *guardian) review(ctx context.Context) error {
	due := time.Since(g.reviewed) >= g.m.cfg.Review
	if !g.id.good(g.cluster.Dials()) || due && g.id.known() == "" {
		err := g.identify(ctx)
		if _, other := errors.AsType[*fleet.IdentityError](err); other || refusal(err) != "" {
			return err
		}
		if err != nil {
			g.log.Debug("identity not known", "err", err)
		}
	}
	if !due {
		return nil
	}
	g.reviewed = time.Now()
	may, err := g.mayWatch(ctx)
	switch {
	case err != nil:
		g.log.Debug("access not reviewed", "err", err)
		return nil
	case !may:
		return apierrors.NewForbidden(schema.GroupResource{Resource: "nodes"}, "", errDenied)
	}
	g.rights(ctx)
	return nil
}

func (g *guardian) mayWatch(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, g.m.cfg.Answer)
	defer cancel()
	return kube.May(ctx, g.cluster.Watch, fleet.TestedRight{Verb: "watch", Resource: "nodes"})
}

// rights asks what we may do in the cluster and shows it. Without an answer what was said last stays, and counts for
// less and less: see Refuses.
func (g *guardian) rights(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, g.m.cfg.Answer)
	defer cancel()
	began := time.Now()
	rights, err := g.cluster.Ask(ctx, g.terms.Asks(g.m.cfg.LeaseNamespace))
	if err != nil {
		g.log.Debug("rights not known", "err", err)
		return
	}
	g.asked.Store(began.UnixNano())
	g.board.setStatus(func(c *fleet.Cluster) {
		if !c.Rights.Same(rights) {
			c.Rights = rights
		}
	})
}

// guardList waits for the list, as long as bytes arrive. It looks more often than it needs to, so that a list that gets
// stuck is not given twice the time.
func (s *supervisor) guardList(ctx context.Context, end context.CancelCauseFunc, synced <-chan struct{}) bool {
	stuck := s.m.cfg.Silence * 2 / 3
	seen, at := s.cluster.BytesRead(), time.Now()
	tick := time.NewTicker(stuck / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-synced:
			return true
		case <-tick.C:
			switch n := s.cluster.BytesRead(); {
			case n != seen:
				seen, at = n, time.Now()
			case time.Since(at) >= stuck:
				end(&deadError{errStuck})
				return false
			}
		}
	}
}

// source is one attempt's side of the reflector's calls.
type source struct {
	end     context.CancelCauseFunc
	calls   inflight    // the reflector lists in a goroutine that it does not wait for
	listed  atomic.Bool // a list came, and the watch that follows it has not
	dials   int64       // connections made when the list was complete; only the reflector's goroutine touches it
	expired int         // answers that the resource version is too old; only the reflector's goroutine touches it
}

// sourceKey finds the source in an attempt's context: a list that was given up may still run when the next attempt has
// begun, and must not take that one's for its own.
type sourceKey struct{}

func sourceOf(ctx context.Context) *source { return ctx.Value(sourceKey{}).(*source) }

// listWatch is the cluster's nodes for the reflector. It ends the attempt on errors that the reflector would keep to
// itself and retry, so that the state people see is the true one.
func (s *supervisor) listWatch() cache.ListerWatcher {
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			src := sourceOf(ctx)
			if ctx.Err() != nil || !src.calls.enter() {
				return nil, context.Canceled
			}
			defer src.calls.leave()
			list, err := s.cluster.ListNodes(ctx, o)
			if err == nil {
				err = s.settle(ctx)
			}
			if err != nil {
				return nil, err
			}
			src.listed.Store(true)
			return list, nil
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			src := sourceOf(ctx)
			if ctx.Err() != nil {
				return nil, errOver
			}
			if o.SendInitialEvents == nil && !src.listed.Load() && !s.cluster.Connected() {
				src.end(errEnded) // see opened: there is no doubt that the connection would be a new one
				return nil, errOver
			}
			w, err := s.cluster.WatchNodes(ctx, o)
			if err == nil {
				if err = s.opened(ctx, src, o); err != nil {
					w.Stop()
				}
			}
			if expired(err) {
				src.expired++
			}
			switch {
			case err == nil:
				return w, nil
			case ctx.Err() == nil && fallsBack(err) && src.expired <= mostExpired:
				return nil, err
			}
			src.end(err) // of no effect if something else has ended the attempt
			return nil, errOver
		},
	}, s.cluster.Watch)
}

// opened decides whether a watch that was opened may be used. One that goes on where another one ended must not be on a
// new connection: what is at its end may be another cluster, or the same one restored from a backup, whose resource
// versions mean other things now. Then a new list is the only truth.
func (s *supervisor) opened(ctx context.Context, src *source, o metav1.ListOptions) error {
	again := o.SendInitialEvents == nil && !src.listed.Swap(false)
	if again && s.cluster.Dials() != src.dials {
		return errEnded
	}
	return s.settle(ctx)
}

// expired are the errors that say that a resource version is too old, or unknown yet.
func expired(err error) bool {
	return apierrors.IsResourceExpired(err) || apierrors.IsGone(err) ||
		apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge)
}

// fallsBack are the errors of a watch that the reflector answers well by itself: it lists instead, or lists anew.
func fallsBack(err error) bool {
	return apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || expired(err) || apierrors.IsTimeout(err)
}

// sink is the one ordered consumer of a cluster's nodes.
type sink struct {
	s      *supervisor
	synced chan struct{} // closed after the attempt's list; nil then
}

func (k *sink) Add(obj any) error    { return k.apply(obj) }
func (k *sink) Update(obj any) error { return k.apply(obj) }

func (k *sink) apply(obj any) error {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return fmt.Errorf("the watch of nodes brought a %T", obj)
	}
	k.s.m.metrics.events.WithLabelValues(k.s.cluster.Name).Inc()
	return k.s.board.apply(n)
}

func (k *sink) Delete(obj any) error {
	k.s.m.metrics.events.WithLabelValues(k.s.cluster.Name).Inc()
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		if n, ok := gone.Obj.(*corev1.Node); ok && n != nil {
			obj = n
		} else {
			k.s.board.remove(gone.Key, "", "")
			return nil
		}
	}
	n, ok := obj.(*corev1.Node)
	if !ok {
		return fmt.Errorf("the watch of nodes deleted a %T", obj)
	}
	k.s.board.remove(n.Name, string(n.UID), n.ResourceVersion)
	return nil
}

func (k *sink) Replace(list []any, _ string) error {
	nodes := make([]*arrival, 0, len(list))
	for _, obj := range list {
		switch n := obj.(type) {
		case *arrival:
			nodes = append(nodes, n)
		case *corev1.Node: // from a list, when the server does not stream it
			nodes = append(nodes, k.s.board.convert(n))
		default:
			return fmt.Errorf("the list of nodes holds a %T", obj)
		}
	}
	err := k.s.board.replace(nodes)
	k.s.m.metrics.relists.WithLabelValues(k.s.cluster.Name).Inc()
	k.s.source.dials = k.s.cluster.Dials()
	k.s.live()
	k.s.m.tookList(len(nodes))
	if k.synced != nil {
		close(k.synced)
		k.synced = nil
	}
	return err
}

// Bookmark is a sign of life without content.
func (k *sink) Bookmark(string) error {
	k.s.board.touch()
	return nil
}

// Resync is of no use here: the board misses nothing that a replay could bring.
func (k *sink) Resync() error { return nil }

// Transformer lets the reflector collect a whole list of what the board keeps, and nothing more.
func (k *sink) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		if n, ok := obj.(*corev1.Node); ok {
			return k.s.board.convert(n), nil
		}
		return obj, nil
	}
}

var (
	_ cache.ReflectorBookmarkStore = (*sink)(nil)
	_ cache.TransformingStore      = (*sink)(nil)
)
