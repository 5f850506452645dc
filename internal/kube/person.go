package kube

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Clients are the two ways to a cluster for an operation.
type Clients struct {
	// Own acts with our own credential: what is read, and the Leases of nodes.
	Own kubernetes.Interface
	// Acts makes the changes that a person asked for. It is Own where the cluster does not know the person.
	Acts kubernetes.Interface
	// As is the name of the person in the cluster, "" where it does not know them.
	As string
}

// ActError is an error of whoever acts, and not of us who look on: what is refused there is refused to the person.
type ActError struct {
	Right fleet.TestedRight // what it takes, the zero right where the cluster itself says it
	Err   error
}

func (e *ActError) Error() string {
	if e.Right.Verb == "" {
		return e.Err.Error()
	}
	return "to " + e.Right.String() + ": " + e.Err.Error()
}

// Unwrap gives the kind of the error.
func (e *ActError) Unwrap() error { return e.Err }

// maxPeople bounds the clients of a cluster that are kept. One costs some microseconds to make and no connection, so
// that it hardly matters which one goes.
const maxPeople = 64

// people are the clients of one cluster that act as somebody.
type people struct {
	mu      sync.Mutex // guards clients
	clients map[string]kubernetes.Interface
}

// As is a client that makes every request in the name of somebody else, over the connections of the cluster, within the
// rate of Ops and past the same gate. Nothing of a request but what is in id says who that is.
func (c Cluster) As(id fleet.Persona) (kubernetes.Interface, error) {
	if c.acts == nil {
		return nil, fmt.Errorf("acting as somebody in cluster %s: %w", c.Name, fleet.ErrUnavailable)
	}
	key := fmt.Sprintf("%q", append([]string{id.User}, id.Groups...))
	c.people.mu.Lock()
	defer c.people.mu.Unlock()
	if client, ok := c.people.clients[key]; ok {
		return client, nil
	}
	named := &named{c.transport, id}
	client, err := kubernetes.NewForConfigAndClient(c.acts,
		&http.Client{Transport: &guarded{named, c.line, true}, CheckRedirect: noRedirect})
	if err != nil {
		return nil, fmt.Errorf("making a client of cluster %s: %w", c.Name, err)
	}
	for old := range c.people.clients {
		if len(c.people.clients) < maxPeople {
			break
		}
		delete(c.people.clients, old)
	}
	c.people.clients[key] = client
	return client, nil
}

// For are the clients for an operation of a person. It is a NameError for a person who cannot be named to the cluster:
// nobody is asked then.
func (c Cluster) For(by fleet.Caller, t fleet.Terms) (Clients, error) {
	if !t.Impersonate {
		return Clients{Own: c.Ops, Acts: c.Ops}, nil
	}
	who, err := by.In(c.Name, t)
	if err != nil {
		return Clients{}, fmt.Errorf("naming a person to cluster %s: %w", c.Name, err)
	}
	acts, err := c.As(who)
	if err != nil {
		return Clients{}, err
	}
	return Clients{Own: c.Ops, Acts: acts, As: who.User}, nil
}

// named says in whose name a request is.
type named struct {
	http.RoundTripper
	id fleet.Persona
}

func (n *named) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	for name := range r.Header {
		if strings.HasPrefix(name, "Impersonate-") {
			r.Header.Del(name)
		}
	}
	r.Header.Set(transport.ImpersonateUserHeader, n.id.User)
	for _, g := range n.id.Groups {
		r.Header.Add(transport.ImpersonateGroupHeader, g)
	}
	return n.RoundTripper.RoundTrip(r)
}

// WrappedRoundTripper lets client-go find the transport below.
func (n *named) WrappedRoundTripper() http.RoundTripper { return n.RoundTripper }

// cause is the key of what OnBehalf notes.
type cause struct{}

// maxCause is in bytes of a name.
const maxCause = 128

// OnBehalf has the requests of clients for operations say in their user agent for whom they are made and why: the
// cluster's audit log then leads to ours, whoever acts.
func OnBehalf(ctx context.Context, person, operation string) context.Context {
	if len(person) > maxCause {
		person = person[:maxCause]
	}
	return context.WithValue(ctx, cause{}, " (by="+url.PathEscape(person)+"; batch="+url.PathEscape(operation)+")")
}

// signed is a request whose user agent says why it is made.
func signed(r *http.Request, agent string) *http.Request {
	why, ok := r.Context().Value(cause{}).(string)
	if !ok {
		return r
	}
	r = r.Clone(r.Context())
	r.Header.Set("User-Agent", agent+why)
	return r
}

// newPeople is without clients.
func newPeople() *people { return &people{clients: map[string]kubernetes.Interface{}} }

// acting is the configuration of clients for operations, who share one rate.
func acting(watch *rest.Config) *rest.Config {
	ops := rest.CopyConfig(watch)
	ops.QPS, ops.Burst, ops.RateLimiter = opsQPS, opsBurst, flowcontrol.NewTokenBucketRateLimiter(opsQPS, opsBurst)
	return ops
}
