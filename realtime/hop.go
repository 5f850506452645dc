package realtime

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	sse "github.com/r3labs/sse/v2"
)

// errGone ends a stream whose client takes nothing any more.
var errGone = errors.New("the client is gone or takes nothing")

// creditWriter is what r3labs writes to. It turns every flush into one credit, so that the pump hands over the next
// event only when the last one is on its way: r3labs then never holds more than one, and a client that stops reading
// costs one event and one socket buffer. A write that fails or does not get through in time ends the stream, which
// r3labs would not do by itself.
type creditWriter struct {
	http.ResponseWriter
	rc      *http.ResponseController
	timeout time.Duration
	ack     chan struct{}
	cancel  context.CancelCauseFunc
	sent    func(bytes int)

	// Only the handler's goroutine touches these.
	armed  bool
	failed bool
	bytes  int

	mu    sync.Mutex // guards cork, last
	cork  bool       // more follows at once: leave it in the buffer
	last  time.Time  // no deadline beyond this; zero: none
	unack int
}

func (w *creditWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *creditWriter) arm() {
	if w.armed {
		return
	}
	w.armed = true
	w.mu.Lock()
	defer w.mu.Unlock()
	deadline := time.Now().Add(w.timeout)
	if !w.last.IsZero() && w.last.Before(deadline) {
		deadline = w.last
	}
	// A writer without deadlines is a test's; the context still ends the stream then.
	_ = w.rc.SetWriteDeadline(deadline)
}

func (w *creditWriter) fail(err error) {
	if !w.failed {
		w.failed = true
		w.cancel(errors.Join(errGone, err))
	}
}

func (w *creditWriter) Write(p []byte) (int, error) {
	if w.failed {
		return 0, errGone
	}
	w.arm()
	n, err := w.ResponseWriter.Write(p)
	w.bytes += n
	if err != nil {
		w.fail(err)
	}
	return n, err
}

// Flush is called by r3labs once for the header and once for every event.
func (w *creditWriter) Flush() {
	w.mu.Lock()
	corked := w.cork && w.unack < maxBytes
	w.unack += w.bytes
	if !corked {
		w.unack = 0
	}
	w.mu.Unlock()
	if !w.failed && !corked {
		w.arm()
		if err := w.rc.Flush(); err != nil {
			w.fail(err)
		}
		w.disarm()
	}
	w.sent(w.bytes)
	w.bytes = 0
	select {
	case w.ack <- struct{}{}:
	default:
	}
}

// disarm clears the deadline: HTTP/2 resets a stream whose deadline passes while it is idle.
func (w *creditWriter) disarm() {
	w.armed = false
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last.IsZero() {
		_ = w.rc.SetWriteDeadline(time.Time{})
	}
}

// limit makes sure that no write goes on after t, one that is blocked now included.
func (w *creditWriter) limit(t time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last.IsZero() || t.Before(w.last) {
		w.last = t
		_ = w.rc.SetWriteDeadline(t)
	}
}

func (w *creditWriter) hold(more bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cork = more
}

// hop is the last hop to one client: an r3labs stream that has this one subscriber.
type hop struct {
	r3 *sse.Server
	id string
	w  *creditWriter
}

// ready waits until the header is out.
func (h *hop) ready(ctx context.Context) error {
	select {
	case <-h.w.ack:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// send hands over one event and waits until it is flushed. More says that another one follows at once, so that this
// one may wait for it in the buffer.
func (h *hop) send(ctx context.Context, f frame, more bool) error {
	h.w.hold(more)
	h.r3.Publish(h.id, f.ev)
	return h.ready(ctx)
}

// newServer is r3labs as nothing but the last hop: no log, no rewriting of ids, no stream that a client could name.
func newServer() *sse.Server {
	r := sse.New()
	r.AutoReplay = false
	r.AutoStream = false
	r.BufferSize = 1
	r.SplitData = false // event() makes one line of everything
	r.Headers = map[string]string{
		"Cache-Control":     "no-cache, no-transform",
		"X-Accel-Buffering": "no",
	}
	return r
}
