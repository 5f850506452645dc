package kube

import (
	"cmp"
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

// Limits are the most that one answer of a server may hold, unpacked. client-go reads an answer into memory before it
// looks at it, and a server that never stops must not take the process down. Zero stands for the default in brackets.
type Limits struct {
	Nodes  int64 // a list of nodes [256 MiB: five times a list of 5,000 large ones]
	List   int64 // any other list [64 MiB]
	Object int64 // one object, and the answer to a write [8 MiB]
	Event  int64 // one event of a watch, which may have any number of them [8 MiB]
}

func (l Limits) complete() Limits {
	return Limits{
		Nodes: cmp.Or(l.Nodes, 256<<20), List: cmp.Or(l.List, 64<<20), Object: cmp.Or(l.Object, 8<<20), Event: cmp.Or(l.Event, 8<<20),
	}
}

// WithLimits sets how large answers may be.
func WithLimits(l Limits) Option { return func(o *options) { o.limits = l } }

// longestPatience bounds what a server can ask for with Retry-After: client-go would wait for as long as it is told.
const longestPatience = 30 * time.Second

// SizeError says that an answer went on beyond what it may hold. It is a fleet.ErrTooLarge.
type SizeError struct{ Most int64 }

func (e *SizeError) Error() string {
	if e.Most < 1<<20 {
		return fmt.Sprintf("response too large: it has more than %d bytes", e.Most)
	}
	return fmt.Sprintf("response too large: it has more than %d MiB", e.Most>>20)
}

// Unwrap gives the kind.
func (e *SizeError) Unwrap() error { return fleet.ErrTooLarge }

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
	clampPatience(resp)
	if !g.acts {
		g.line.patience.Store(int64(patience(resp)))
	}
	if resp.StatusCode >= 300 && resp.StatusCode < 400 && resp.StatusCode != http.StatusNotModified {
		closeBody(resp.Body)
		return nil, &RedirectError{To: origin(resp)}
	}
	limit := g.line.limits.of(r)
	if resp.StatusCode == http.StatusOK && limit < 0 {
		g.line.frame.Store(0)
	}
	resp.Body = &guardedBody{ReadCloser: resp.Body, line: g.line, counted: !g.acts, most: limit, left: limit}
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

// clampPatience keeps a Retry-After in bounds, for whoever reads it.
func clampPatience(resp *http.Response) {
	const name = "Retry-After"
	after := resp.Header.Get(name)
	if after == "" {
		return
	}
	wait := longestPatience
	if s, err := strconv.ParseUint(after, 10, 64); err == nil {
		wait = time.Duration(min(s, uint64(longestPatience/time.Second))) * time.Second
	} else if at, err := http.ParseTime(after); err == nil {
		wait = min(max(0, time.Until(at)), longestPatience).Truncate(time.Second)
	}
	resp.Header.Set(name, strconv.Itoa(int(wait/time.Second)))
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

// of is how many bytes the answer may have, -1 for any number.
func (l Limits) of(r *http.Request) int64 {
	switch {
	case r.URL.Query().Has("watch"):
		return -1
	case r.Method != http.MethodGet || object(r.URL.Path):
		return l.Object
	case strings.HasSuffix(r.URL.Path, "/api/v1/nodes"):
		return l.Nodes
	}
	return l.List
}

// object tells whether a path names one object: /api/v1/nodes/x, /apis/apps/v1/namespaces/x/deployments/y.
func object(path string) bool {
	_, rest, ok := strings.Cut(path, "/api/")
	version := 1
	if !ok {
		if _, rest, ok = strings.Cut(path, "/apis/"); !ok {
			return false
		}
		version = 2
	}
	parts := strings.Split(rest, "/")
	parts = parts[min(version, len(parts)):]
	if len(parts) > 2 && parts[0] == "namespaces" {
		parts = parts[2:]
	}
	return len(parts) > 1
}

type guardedBody struct {
	io.ReadCloser
	line       *line
	counted    bool
	most, left int64 // negative: no limit
}

func (b *guardedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.counted {
		b.line.read.Add(int64(n))
	}
	if b.left < 0 && b.line.frame.Add(int64(n)) > b.line.limits.Event {
		return 0, fmt.Errorf("reading an event: %w", &SizeError{b.line.limits.Event})
	}
	if b.left >= 0 {
		if b.left -= int64(n); b.left < 0 {
			b.left = 0
			return 0, fmt.Errorf("reading an answer: %w", &SizeError{b.most})
		}
	}
	return n, err
}
