package drain

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

const (
	firstBackoff = 500 * time.Millisecond
	lastBackoff  = 15 * time.Second
	// watchLife is the least time that a watch is asked to stay open; up to twice that.
	watchLife = 5 * time.Minute
)

var errWatchEnded = errors.New("the watch ended")

// listener is told what follow sees, in order. Between lost and the next replace, what was seen may be out of date.
type listener[T any] struct {
	replace func([]T)
	put     func(*T)
	remove  func(*T)
	lost    func(error)
}

// follow keeps a listener up to date until ctx ends. P is the pointer to T.
func follow[T any, P interface {
	*T
	metav1.Object
}](ctx context.Context, k kind[T], l listener[T]) {
	backoff := firstBackoff
	for ctx.Err() == nil {
		items, version, err := k.all(ctx)
		if err == nil {
			l.replace(items)
			backoff = firstBackoff
			err = watchOn[T, P](ctx, k, version, l)
		}
		if ctx.Err() != nil {
			return
		}
		l.lost(err)
		wait := backoff + rand.N(backoff) //nolint:gosec // jitter against a herd, no secret
		if asked, ok := apierrors.SuggestsClientDelay(err); ok {
			wait = max(wait, min(time.Duration(asked)*time.Second, lastBackoff))
		}
		if errors.Is(err, fleet.ErrForbidden) {
			wait = lastBackoff
		}
		if pause(ctx, wait) != nil {
			return
		}
		backoff = min(2*backoff, lastBackoff)
	}
}

// watchOn watches from a version, again and again while the server closes watches in good order. It returns why it
// could not go on.
func watchOn[T any, P interface {
	*T
	metav1.Object
}](ctx context.Context, k kind[T], version string, l listener[T]) error {
	for {
		began := time.Now()
		w, err := k.watch(ctx, version, watchLife+rand.N(watchLife)) //nolint:gosec // jitter against a herd, no secret
		if err != nil {
			return err
		}
		next, err := read[T, P](ctx, w, version, l)
		w.Stop()
		if err != nil {
			return err
		}
		version = next
		if time.Since(began) < firstBackoff {
			return errWatchEnded // a server that closes at once is not asked again at once
		}
	}
}

// read reads one watch to its end and returns the version it came to.
func read[T any, P interface {
	*T
	metav1.Object
}](ctx context.Context, w watch.Interface, version string, l listener[T]) (string, error) {
	for {
		select {
		case <-ctx.Done():
			return version, ctx.Err()
		case e, open := <-w.ResultChan():
			if !open {
				return version, nil
			}
			if e.Type == watch.Error {
				return version, kube.Error(apierrors.FromObject(e.Object))
			}
			o, ok := any(e.Object).(P)
			if !ok {
				return version, errWatchEnded
			}
			version = o.GetResourceVersion()
			switch e.Type {
			case watch.Added, watch.Modified:
				l.put((*T)(o))
			case watch.Deleted:
				l.remove((*T)(o))
			case watch.Bookmark, watch.Error:
			}
		}
	}
}
