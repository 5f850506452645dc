package realtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// Deadlines of the connection to one cluster.
const (
	probeTimeout  = 5 * time.Second
	probeAgain    = 2 * time.Second  // after a probe that failed
	firstListWait = 5 * time.Second  // for other clusters' first lists
	listSilence   = 60 * time.Second // a list without a byte for so long is taken for dead
	healthyAfter  = 30 * time.Second // a watch that held so long starts the back-off anew
	networkMax    = 5 * time.Second  // most between attempts at a host that does not answer: an attempt is one probe
)

var (
	errSilent = errors.New("the watch went silent: no event and no bookmark")
	errStuck  = errors.New("the list does not arrive")
	errEnded  = errors.New("the watch ended")
)

// deadError says that a connection looks open and carries nothing any more.
type deadError struct{ error }

func (e *deadError) Unwrap() error { return e.error }

// supervisor keeps one cluster's board fed. Everything of the cluster runs under it: its trouble stays its own.
type supervisor struct {
	m       *Manager
	cluster kube.Cluster
	board   *board
	log     *slog.Logger
	now     chan struct{} // try at once; capacity 1
	done    chan struct{} // closed when run has returned
	cancel  context.CancelFunc
	lull    atomic.Pointer[context.CancelCauseFunc] // puts the cluster to sleep; nil between attempts
	lulled  atomic.Int64                            // unix nanoseconds of the decision to

	// Only the goroutine of run touches these, and what it calls.
	sink      *sink
	source    *source
	reflector *cache.Reflector
}

func newSupervisor(m *Manager, c kube.Cluster, b *board) *supervisor {
	s := &supervisor{
		m: m, cluster: c, board: b, log: m.cfg.Logger.With("cluster", c.Name),
		now: make(chan struct{}, 1), done: make(chan struct{}),
	}
	s.sink = &sink{s: s}
	return s
}

// run connects, watches and connects again until ctx ends.
func (s *supervisor) run(ctx context.Context) {
	defer s.state(fleet.ClusterStopped, "", time.Time{})
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
		if s.liveFor(began) >= healthyAfter {
			failures = 0
		}
		delay := s.delay(err, failures)
		failures++
		s.m.metrics.reconnects.WithLabelValues(s.cluster.Name).Inc()
		if quiet(err) {
			s.log.Debug("watch begins anew", "err", err)
		} else {
			s.fail(err, time.Now().Add(delay))
		}
		if !s.pause(ctx, delay) {
			return
		}
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

// delay is how long to wait after an error: twice as long each time, with full jitter in the upper half, and never
// soon after a refusal, which more requests do not cure.
func (s *supervisor) delay(err error, failures int) time.Duration {
	most := s.m.cfg.BackoffMax
	if refusal(err) != "" {
		return jitter(most)
	}
	if status := apierrors.APIStatus(nil); !errors.As(err, &status) {
		most = min(most, networkMax)
	}
	d := s.m.cfg.BackoffMin << min(failures, 16)
	if wait, ok := apierrors.SuggestsClientDelay(err); ok {
		d = max(d, time.Duration(wait)*time.Second)
	}
	return jitter(min(d, most))
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
		if s.board.synced() {
			state = fleet.ClusterStale
		}
	}
	s.log.Warn("cluster not live", "state", state, "err", err, "retry", retry)
	s.state(state, reason(err), retry)
}

// reason is the part of an error that a person can use: what the API server or the network said, without the URL and
// our own words around it.
func reason(err error) string {
	if status := apierrors.APIStatus(nil); errors.As(err, &status) {
		return status.Status().Message
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err.Error()
	}
	return err.Error()
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
	if !s.board.synced() {
		s.state(fleet.ClusterConnecting, "", time.Time{})
	}
	if err := s.probe(parent); err != nil {
		return err
	}
	if !s.board.synced() {
		free := s.queue(parent)
		defer free()
		s.state(fleet.ClusterSyncing, "", time.Time{})
	}

	ctx, cancel := context.WithCancelCause(parent)
	src := &source{nodes: s.cluster.Watch.CoreV1().Nodes(), end: cancel}
	synced := make(chan struct{})
	s.source, s.sink.synced = src, synced
	s.board.begin()
	guarded := make(chan struct{})
	go func() {
		defer close(guarded)
		s.guard(ctx, cancel, synced)
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
	err = s.reflector.ListAndWatchWithContext(ctx)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err != nil {
		return err
	}
	return errEnded
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
	ctx, cancel := context.WithTimeout(parent, probeTimeout)
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
// server that does not answer any more. A watch tells none of these by itself.
func (s *supervisor) guard(ctx context.Context, end context.CancelCauseFunc, synced <-chan struct{}) {
	if !s.guardList(ctx, end, synced) {
		return
	}
	tick := time.NewTimer(s.m.cfg.Probe/2 + rand.N(s.m.cfg.Probe))
	defer tick.Stop()
	failed := 0
	var since time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		last := s.board.eventAt()
		if time.Since(last) > s.m.cfg.Silence {
			end(&deadError{errSilent})
			return
		}
		began := time.Now()
		err := s.probe(ctx)
		next := s.m.cfg.Probe/2 + rand.N(s.m.cfg.Probe)
		switch {
		case err == nil:
			failed = 0
		case refusal(err) != "":
			end(err)
			return
		default:
			if failed++; failed == 1 {
				since = began
			}
			// Events that still come say more than probes that do not.
			if failed >= 2 && s.board.eventAt().Before(since) {
				end(&deadError{err})
				return
			}
			next = probeAgain
		}
		if left := s.m.cfg.Silence - time.Since(s.board.eventAt()) + time.Millisecond; left > 0 {
			next = min(next, left)
		}
		tick.Reset(next)
	}
}

// guardList waits for the list, as long as bytes arrive.
func (s *supervisor) guardList(ctx context.Context, end context.CancelCauseFunc, synced <-chan struct{}) bool {
	seen := s.cluster.BytesRead()
	tick := time.NewTicker(listSilence)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-synced:
			return true
		case <-tick.C:
			n := s.cluster.BytesRead()
			if n == seen {
				end(&deadError{errStuck})
				return false
			}
			seen = n
		}
	}
}

// source is one attempt's side of the reflector's calls.
type source struct {
	nodes typedcorev1.NodeInterface
	end   context.CancelCauseFunc
	calls inflight // the reflector lists in a goroutine that it does not wait for
}

// listWatch is the cluster's nodes for the reflector. It ends the attempt on errors that the reflector would keep to
// itself and retry, so that the state people see is the true one.
func (s *supervisor) listWatch() cache.ListerWatcher {
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			src := s.source
			if !src.calls.enter() {
				return nil, context.Canceled
			}
			defer src.calls.leave()
			return src.nodes.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			src := s.source
			w, err := src.nodes.Watch(ctx, o)
			if err != nil && ctx.Err() == nil && !fallsBack(err) {
				src.end(err)
			}
			return w, err
		},
	}, s.cluster.Watch)
}

// fallsBack are the errors of a watch that the reflector answers well by itself: it lists instead, lists anew, or
// slows down.
func fallsBack(err error) bool {
	return apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) || apierrors.IsResourceExpired(err) ||
		apierrors.IsGone(err) || apierrors.IsTooManyRequests(err) || apierrors.IsTimeout(err)
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
	k.s.live()
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
