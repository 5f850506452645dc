package realtime

import (
	"context"
	"errors"
	"net/http"
	"os"
	"sync"
	"time"

	sse "github.com/r3labs/sse/v2"
)

// What ends a stream from the client's side.
var (
	errGone = errors.New("the client is gone")
	errSlow = errors.New("the client takes nothing")
)

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
	gz      *gzipStream // nil: as it is
	sent    func(plain, wire int)

	// Only the handler's goroutine touches these.
	armed  time.Time // when the deadline was set; zero: there is none
	failed error     // what ended the stream, errGone or errSlow
	bytes  int       // of this message, on the wire
	unack  int       // in the buffer

	mu   sync.Mutex // guards everything below
	cork bool       // more follows at once: leave it in the buffer
	what *shared    // of the message under way
	last time.Time  // no deadline beyond this; zero: none
	over bool       // the handler has returned, or is about to
}

func (w *creditWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *creditWriter) arm() {
	if !w.armed.IsZero() {
		return
	}
	w.armed = time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	deadline := w.armed.Add(w.timeout)
	if !w.last.IsZero() && w.last.Before(deadline) {
		deadline = w.last
	}
	// A writer without deadlines is a test's; the context still ends the stream then.
	_ = w.rc.SetWriteDeadline(deadline)
}

// fail ends the stream. A client that takes too long is told from one that has left: HTTP/2 names no deadline in the
// error, so the clock decides as well. The reason is kept, for net/http cancels the request's context before it says so.
func (w *creditWriter) fail(err error) {
	if w.failed != nil {
		return
	}
	w.failed = errGone
	if errors.Is(err, os.ErrDeadlineExceeded) || time.Since(w.armed) >= w.timeout {
		w.failed = errSlow
	}
	w.cancel(errors.Join(w.failed, err))
}

// Write takes a part of a message. Compression needs the whole of it, so there it waits for the flush.
func (w *creditWriter) Write(p []byte) (int, error) {
	switch {
	case w.failed != nil:
		return 0, w.failed
	case w.gz != nil:
		return w.gz.Write(p)
	}
	return w.put(p)
}

func (w *creditWriter) put(p []byte) (int, error) {
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
	corked, what := w.cork, w.what
	w.mu.Unlock()
	plain := w.bytes
	if w.gz != nil && w.failed == nil {
		var out []byte
		out, plain = w.gz.take(what)
		_, _ = w.put(out) // a failure has ended the stream
	}
	w.unack += w.bytes
	if w.failed == nil && (!corked || w.unack >= maxBytes) {
		w.unack = 0
		w.arm()
		if err := w.rc.Flush(); err != nil {
			w.fail(err)
		}
		w.disarm()
	}
	w.sent(plain, w.bytes)
	w.bytes = 0
	select {
	case w.ack <- struct{}{}:
	default:
	}
}

// finish completes what was sent, when the stream ends of our own will.
func (w *creditWriter) finish() {
	if w.gz == nil {
		return
	}
	defer w.gz.drop()
	if w.failed != nil || !w.gz.begun {
		return
	}
	_, _ = w.put(w.gz.end()) // a client that is gone does not miss it
	if err := w.rc.Flush(); err != nil {
		w.fail(err)
	}
	w.disarm()
	w.sent(0, w.bytes)
}

// disarm clears the deadline: HTTP/2 resets a stream whose deadline passes while it is idle.
func (w *creditWriter) disarm() {
	w.armed = time.Time{}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last.IsZero() {
		_ = w.rc.SetWriteDeadline(time.Time{})
	}
}

// limit makes sure that no write goes on after t, one that is blocked now included. Anybody may call it, at any time.
func (w *creditWriter) limit(t time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return
	}
	if w.last.IsZero() || t.Before(w.last) {
		w.last = t
		_ = w.rc.SetWriteDeadline(t)
	}
}

// release gives the response back to net/http, which takes it apart when the handler returns, and over HTTP/1.1 serves the
// next request on its connection: whoever comes with a limit after that has come too late.
func (w *creditWriter) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
}

// expect says what will be written next, and whether more follows it at once.
func (w *creditWriter) expect(what *shared, more bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.what, w.cork = what, more
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
	h.w.expect(f.shared, more)
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
