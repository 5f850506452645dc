package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// The most that one answer may hold. client-go reads an answer into memory before it looks at it, and a server that
// never stops must not take the process down. A watch may have any number of events, each of that much at most.
const (
	maxNodes  = 512 << 20 // ten times a list of 5,000 large nodes
	maxAnswer = 64 << 20
	maxEvent  = 32 << 20
)

// RedirectError says that a server sends us elsewhere. Nobody goes there: the next server would be sent the credential.
type RedirectError struct{ To string }

func (e *RedirectError) Error() string {
	return fmt.Sprintf("the server redirects to %s, which is not followed", e.To)
}

// noRedirect is the second lock on that door: guarded turns redirects into errors before the client sees them.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// guarded is the transport of one client: it counts what arrives, bounds it, refuses redirects, and asks at the gate
// before writes.
type guarded struct {
	http.RoundTripper
	line *line
	acts bool // of the client for operations
}

func (g *guarded) RoundTrip(r *http.Request) (*http.Response, error) {
	if g.acts {
		r = signed(r, g.line.agent)
	}
	send := g.RoundTripper.RoundTrip
	if gate := g.line.gate.Load(); gate != nil && g.acts && r.Method != http.MethodGet && r.Method != http.MethodHead {
		send = func(r *http.Request) (*http.Response, error) { return g.write(*gate, r) }
	}
	resp, err := send(r)
	if err != nil {
		return nil, err
	}
	if !g.acts {
		g.line.patience.Store(int64(patience(resp)))
	}
	if resp.StatusCode >= 300 && resp.StatusCode < 400 && resp.StatusCode != http.StatusNotModified {
		closeBody(resp.Body)
		return nil, &RedirectError{To: origin(resp)}
	}
	if resp.StatusCode == http.StatusOK && limitOf(r.URL) < 0 {
		g.line.frame.Store(0)
	}
	resp.Body = &guardedBody{ReadCloser: resp.Body, line: g.line, counted: !g.acts, left: limitOf(r.URL)}
	return resp, nil
}

// mostTries bounds how often a write looks for a connection: on servers without HTTP/2 others may be quicker to take it.
const mostTries = 10

// onlyOpen marks the context of a request that must not make a connection.
type onlyOpen struct{}

var errNotOpen = fmt.Errorf("no connection is open: %w", fleet.ErrUnavailable)

// write sends a write over a connection whose other end has said who it is. The transport would by itself make a new
// connection for a write whose old one turns out to be dead, to whoever is at the address by then; so a write makes
// none, and asks at the gate again, which does. A server that keeps no connection open cannot be held to that.
func (g *guarded) write(gate func(context.Context) error, r *http.Request) (*http.Response, error) {
	again := r.GetBody
	for try := 1; ; try++ {
		if err := gate(r.Context()); err != nil {
			closeBody(r.Body)
			return nil, err
		}
		if g.line.open.Load() == 0 {
			return g.RoundTripper.RoundTrip(r)
		}
		resp, err := g.RoundTripper.RoundTrip(r.WithContext(context.WithValue(r.Context(), onlyOpen{}, true)))
		if err == nil || !errors.Is(err, errNotOpen) || try == mostTries || r.Body != nil && again == nil {
			return resp, err
		}
		g.line.dials.Add(1) // what the gate knows is not enough
		if again != nil {
			body, err := again()
			if err != nil {
				return nil, err
			}
			r = r.Clone(r.Context())
			r.Body = body
		}
	}
}

// patience is how long the server asks us to wait, if it does.
func patience(resp *http.Response) time.Duration {
	if resp.StatusCode < http.StatusBadRequest {
		return 0
	}
	after := resp.Header.Get("Retry-After")
	if s, err := strconv.ParseInt(after, 10, 32); err == nil && s > 0 {
		return time.Duration(s) * time.Second
	}
	if at, err := http.ParseTime(after); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}

// WrappedRoundTripper lets client-go find the transport below.
func (g *guarded) WrappedRoundTripper() http.RoundTripper { return g.RoundTripper }

func closeBody(b io.Closer) {
	if b != nil {
		_ = b.Close() // nothing in it is wanted
	}
}

// origin is where a redirect leads, without what may be secret in it.
func origin(resp *http.Response) string {
	to, err := resp.Location()
	if err != nil {
		return "nowhere"
	}
	return (&url.URL{Scheme: to.Scheme, Host: to.Host}).String()
}

// limitOf is how many bytes the answer may have, -1 for any number.
func limitOf(u *url.URL) int64 {
	switch {
	case u.Query().Has("watch"):
		return -1
	case strings.HasSuffix(u.Path, "/api/v1/nodes"):
		return maxNodes
	}
	return maxAnswer
}

type guardedBody struct {
	io.ReadCloser
	line    *line
	counted bool
	left    int64 // negative: no limit
}

func (b *guardedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.counted {
		b.line.read.Add(int64(n))
	}
	if b.left < 0 && b.line.frame.Add(int64(n)) > maxEvent {
		return 0, fmt.Errorf("the event does not end: %w", fleet.ErrTooLarge)
	}
	if b.left >= 0 {
		if b.left -= int64(n); b.left < 0 {
			b.left = 0
			return 0, fmt.Errorf("the answer does not end: %w", fleet.ErrTooLarge)
		}
	}
	return n, err
}
