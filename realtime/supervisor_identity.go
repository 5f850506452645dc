package realtime

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// Identities keeps by which identity each cluster is known, so that an address that leads to another cluster one day is
// noticed, also after a restart. *store.Store implements it.
type Identities interface {
	// PinIdentity returns the uid that the cluster is known by: uid itself, from now on, if it was not known.
	PinIdentity(ctx context.Context, cluster, uid string) (string, error)
	// AcceptIdentity makes uid the one that the cluster is known by, and records the entry with it.
	AcceptIdentity(ctx context.Context, cluster, uid string, e fleet.Entry) error
}

// inMemory is for managers without a database.
type inMemory struct {
	mu   sync.Mutex // guards uids
	uids map[string]string
}

func (m *inMemory) PinIdentity(_ context.Context, cluster, uid string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if known, ok := m.uids[cluster]; ok {
		return known, nil
	}
	m.uids[cluster] = uid
	return uid, nil
}

func (m *inMemory) AcceptIdentity(_ context.Context, cluster, uid string, _ fleet.Entry) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.uids[cluster] = uid
	return nil
}

var errNoIdentity = errors.New("the server has no namespace kube-system, which every cluster has")

// identity is what a supervisor knows of who is at the other end.
type identity struct {
	mu     sync.Mutex           // guards everything below
	pinned string               // "" until it was asked for
	dials  int64                // connections up to which the answer is good; negative: none
	bad    *fleet.IdentityError // the last answer was another cluster's
}

// refused is why nothing may be read from or written to the cluster, nil if it may.
func (i *identity) refused() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.bad == nil {
		return nil
	}
	return i.bad
}

// good tells whether the answer still holds: nobody can have been exchanged for somebody else on a connection that is
// open all the time.
func (i *identity) good(dials int64) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.bad == nil && i.dials == dials
}

func (i *identity) known() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.pinned
}

// doubt makes the next use of the cluster ask again.
func (i *identity) doubt() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.dials = -1
}

// settle asks who is there if connections were made since it was asked last.
func (s *supervisor) settle(ctx context.Context) error {
	if s.cluster.Connected() && s.id.good(s.cluster.Dials()) {
		return nil
	}
	return s.identify(ctx)
}

// identify asks the server who it is and compares that with what the cluster is known by. A credential that may not ask
// leaves the identity unknown, which refuses nothing: not everybody can be given that permission.
func (s *supervisor) identify(parent context.Context) error {
	ctx, cancel := context.WithTimeout(parent, s.m.cfg.Answer)
	defer cancel()
	uid, err := kube.UID(ctx, s.cluster.Watch)
	dials := s.cluster.Dials()
	switch {
	case errors.Is(err, fleet.ErrForbidden), errors.Is(err, fleet.ErrNotFound) && s.id.known() == "":
		return s.id.unknown(dials)
	case errors.Is(err, fleet.ErrNotFound):
		return fmt.Errorf("%w: %w", fleet.ErrUnavailable, errNoIdentity)
	case err != nil:
		return err
	}
	pinned := s.id.known()
	if pinned == "" {
		if pinned, err = s.m.cfg.Identities.PinIdentity(ctx, s.cluster.Name, uid); err != nil {
			return fmt.Errorf("reading the identity of the cluster: %w", err)
		}
	}
	err = s.id.answered(s.cluster.Name, pinned, uid, dials)
	found := ""
	if err != nil {
		found = uid
	}
	s.board.setStatus(func(c *fleet.Cluster) { c.UID, c.FoundUID = pinned, found })
	return err
}

func (i *identity) unknown(dials int64) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.bad != nil {
		return i.bad // who was somebody else does not become the one we know by keeping quiet
	}
	i.dials = dials
	return nil
}

func (i *identity) answered(cluster, pinned, uid string, dials int64) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.pinned == "" {
		i.pinned = pinned
	}
	if i.pinned != uid {
		i.bad = &fleet.IdentityError{Cluster: cluster, Pinned: i.pinned, Found: uid}
		return i.bad
	}
	i.bad, i.dials = nil, dials
	return nil
}

// accept makes uid the identity, if it is the one that was found.
func (i *identity) accept(uid string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.pinned, i.bad, i.dials = uid, nil, -1
}

// gate is asked before each write to the cluster. Writes over a connection that nobody has asked about wait for the
// answer; the supervisor hears of a bad one at once.
func (s *supervisor) gate(ctx context.Context) error {
	err := s.settle(ctx)
	if _, ok := errors.AsType[*fleet.IdentityError](err); ok {
		s.wake()
	}
	return err
}

// wake ends an attempt that is under way: the identity is not what it was.
func (s *supervisor) wake() {
	select {
	case s.doubt <- struct{}{}:
	default: // it knows
	}
}

// Accept makes the identity that was found at a cluster's address the one it is known by, and records the entry. The
// uid is the one that the admin has seen: ErrConflict if another one, or none, waits to be accepted.
func (m *Manager) Accept(ctx context.Context, cluster, uid string, e fleet.Entry) error {
	m.mu.RLock()
	s := m.runs[cluster]
	m.mu.RUnlock()
	if s == nil {
		return fmt.Errorf("cluster %s: %w", cluster, fleet.ErrNotFound)
	}
	bad, ok := errors.AsType[*fleet.IdentityError](s.id.refused())
	if !ok || bad.Found != uid {
		return fmt.Errorf("accepting the identity of cluster %s: it is not the one that was found: %w", cluster, fleet.ErrConflict)
	}
	if err := m.cfg.Identities.AcceptIdentity(ctx, cluster, uid, e); err != nil {
		return fmt.Errorf("accepting the identity of cluster %s: %w", cluster, err)
	}
	s.id.accept(uid)
	s.fresh.Store(true)
	s.wake()
	s.board.setStatus(func(c *fleet.Cluster) {
		c.UID, c.FoundUID, c.Reason, c.NextRetry = uid, "", "", time.Time{}
	})
	s.retry()
	return nil
}
