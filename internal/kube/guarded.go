package kube

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

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
	if gate := g.line.gate.Load(); gate != nil && g.acts && r.Method != http.MethodGet && r.Method != http.MethodHead {
		if err := (*gate)(r.Context()); err != nil {
			closeBody(r.Body)
			return nil, err
		}
	}
	resp, err := g.RoundTripper.RoundTrip(r)
	if err != nil {
		return resp, err
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
