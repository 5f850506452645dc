package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/r3labs/sse/v2"

	"github.com/kube-node-manager/kube-node-manager/internal/config"
	"github.com/kube-node-manager/kube-node-manager/internal/inert"
)

// Bounds of following a server.
const (
	watchSilence  = 60 * time.Second // three heartbeats: the connection is dead, whatever TCP thinks
	watchFirst    = 250 * time.Millisecond
	watchLongest  = 15 * time.Second
	watchMaxEvent = 4 << 20 // r3labs waits for ever for the end of an event that is larger than its buffer
)

// errRefused ends a watch: trying again with the same credential changes nothing.
var errRefused = errors.New("the server refused: check the API token (KNM_TOKEN or --token-file)")

// Watch prints the data of every node event, one JSON object a line, until ctx ends. It comes back after every cut and
// goes on where it was.
func Watch(ctx context.Context, cfg config.Watch, out io.Writer) error {
	u := *cfg.Server
	u.Path = "/api/v1/nodes/events"
	if cfg.Cluster != "" {
		u.RawQuery = url.Values{"cluster": {cfg.Cluster}}.Encode()
	}
	f := newFollower(u.String(), cfg.Token.Reveal())
	err := f.follow(ctx, func(e *sse.Event) error {
		switch string(e.Event) {
		case "node_add", "node_update", "node_delete", "synced":
			_, err := fmt.Fprintln(out, inert.Text(string(e.Data))) // one line, whatever the server is
			return err
		}
		return nil // heartbeats and words for browsers
	})
	if ctx.Err() != nil {
		err = nil // the person has seen enough
	}
	return err
}

// follower is the r3labs client with what it lacks: it is used for one connection at a time, without its own retries,
// which sleep through the end of a context; its Last-Event-ID lives on between connections.
type follower struct {
	client *sse.Client
	delay  time.Duration // before the next attempt
	hint   time.Duration // what the server asked for, 0 for nothing
}

// once is a back-off that stops at once.
type once struct{}

func (once) NextBackOff() time.Duration { return -1 }
func (once) Reset()                     {}

func newFollower(target, token string) *follower {
	f := &follower{client: sse.NewClient(target, sse.ClientMaxBufferSize(watchMaxEvent))}
	// A redirect would carry the token to where nobody asked for it.
	f.client.Connection.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	f.client.ReconnectStrategy = once{}
	if token != "" {
		f.client.Headers["Authorization"] = "Bearer " + token
	}
	f.client.ResponseValidator = func(_ *sse.Client, r *http.Response) error {
		if r.StatusCode == http.StatusOK {
			return nil
		}
		_ = r.Body.Close() // the client does not, and nothing in it is of use
		switch {
		case r.StatusCode == http.StatusUnauthorized || r.StatusCode == http.StatusForbidden:
			return fmt.Errorf("%w: %s", errRefused, r.Status)
		case r.StatusCode >= 400 && r.StatusCode < 500 && r.StatusCode != http.StatusTooManyRequests:
			return &fatalStatus{r.Status}
		}
		if s, err := strconv.Atoi(r.Header.Get("Retry-After")); err == nil && s > 0 {
			f.hint = min(time.Duration(s)*time.Second, watchLongest)
		}
		return fmt.Errorf("the server answered %s", r.Status)
	}
	return f
}

// fatalStatus is an answer that asking again does not change, such as 404 for an unknown cluster.
type fatalStatus struct{ status string }

func (e *fatalStatus) Error() string { return "the server answered " + e.status }

// follow hands every event to do, until ctx ends, the server refuses, or do fails.
func (f *follower) follow(ctx context.Context, do func(*sse.Event) error) error {
	for {
		err := f.connect(ctx, do)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var fatal *fatalStatus
		var own *ownError
		if errors.Is(err, errRefused) || errors.As(err, &fatal) || errors.As(err, &own) {
			return err
		}
		timer := time.NewTimer(f.wait())
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// wait is the time before the next attempt: doubling, spread, and as the server asked if it did.
func (f *follower) wait() time.Duration {
	if f.hint > 0 {
		d := f.hint
		f.hint = 0
		return d
	}
	f.delay = min(max(2*f.delay, watchFirst), watchLongest)
	return f.delay/2 + rand.N(f.delay) //nolint:gosec // spreading, not secrecy
}

// ownError is a failure of ours, not of the connection.
type ownError struct{ err error }

func (e *ownError) Error() string { return e.err.Error() }
func (e *ownError) Unwrap() error { return e.err }

// connect follows one connection to its end. One that is silent for too long is cut.
func (f *follower) connect(ctx context.Context, do func(*sse.Event) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(watchSilence, func() { cancel(errors.New("the server has gone silent")) })
	defer silence.Stop()
	var failed error
	err := f.client.SubscribeRawWithContext(ctx, func(e *sse.Event) {
		if failed != nil {
			return // the connection is being cut
		}
		silence.Reset(watchSilence)
		f.delay = 0
		if ms, err := strconv.Atoi(string(e.Retry)); err == nil && ms > 0 {
			f.hint = min(time.Duration(ms)*time.Millisecond, watchLongest)
		}
		if err := do(e); err != nil {
			failed = &ownError{err}
			cancel(failed)
		}
	})
	return errors.Join(failed, err)
}
