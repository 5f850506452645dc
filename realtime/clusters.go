package realtime

import (
	"context"
	"fmt"
	"maps"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// Add begins to watch a cluster, at once if the manager runs. A name that is taken is ErrConflict.
func (m *Manager) Add(c kube.Cluster) error {
	if c.Name == "" {
		return fleet.Invalid("name", "must not be empty")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return fmt.Errorf("adding cluster %s: the manager has ended: %w", c.Name, fleet.ErrUnavailable)
	}
	if m.boards[c.Name] != nil {
		return fmt.Errorf("cluster %s is here already: %w", c.Name, fleet.ErrConflict)
	}
	b := newBoard(c, &m.clock, m.cfg.Tombstones, m.poke)
	b.cache = m.render.cache
	terms := m.cfg.Terms(c.Name)
	b.status.Identity, b.status.Labels = terms.Identity(), terms.LabelText()
	lag := m.metrics.lag.WithLabelValues(c.Name)
	b.lag = func(d time.Duration) { lag.Observe(d.Seconds()) }
	s := newSupervisor(m, c, b)
	boards := maps.Clone(m.boards)
	boards[c.Name] = b
	m.boards, m.runs[c.Name] = boards, s
	m.topology++
	if m.ctx != nil {
		m.launch(s)
	}
	m.poke()
	return nil
}

// Edit exchanges the connection of a cluster: another credential, address or authority under the same name. Its board,
// and with it every view and stream, goes on; what was known stays there, marked as stale, until the new connection has
// listed. Edit returns when nothing of the old connection runs any more, or when ctx ends, which undoes nothing.
func (m *Manager) Edit(ctx context.Context, c kube.Cluster) error {
	s, err := m.exchange(c)
	if err != nil || s == nil {
		return err
	}
	select {
	case <-s.took:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the old connection of cluster %s to end: %w", c.Name, ctx.Err())
	}
}

// exchange puts a new supervisor in the place of the old one and returns it, nil if there is nothing to wait for.
func (m *Manager) exchange(c kube.Cluster) (*supervisor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.runs[c.Name]
	switch {
	case old == nil:
		return nil, fmt.Errorf("cluster %s: %w", c.Name, fleet.ErrNotFound)
	case m.ended:
		return nil, fmt.Errorf("changing cluster %s: the manager has ended: %w", c.Name, fleet.ErrUnavailable)
	}
	s := newSupervisor(m, c, old.board)
	m.runs[c.Name] = s
	old.replaced.Store(true)
	old.board.setStatus(func(st *fleet.Cluster) { st.Server, st.FoundUID, st.Rights = c.Server, "", nil })
	if m.ctx == nil {
		old.cluster.End()
		return nil, nil
	}
	s.prev = old
	m.launch(s)
	return s, nil
}

// Remove ends the watch of a cluster and forgets everything about it but its identity: another cluster of the same name
// has to be accepted. It returns when nothing of it runs any more; its clients cannot be used after that.
func (m *Manager) Remove(name string) error {
	s, err := m.detach(name)
	if err != nil {
		return err
	}
	m.poke()
	if s.cancel != nil {
		s.cancel()
		<-s.done
	}
	s.cluster.End()
	m.metrics.forget(name)
	return nil
}

func (m *Manager) detach(name string) (*supervisor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.runs[name]
	if s == nil {
		return nil, fmt.Errorf("cluster %s: %w", name, fleet.ErrNotFound)
	}
	boards := maps.Clone(m.boards)
	delete(boards, name)
	delete(m.runs, name)
	m.boards = boards
	m.topology++
	m.removed = m.clock.Add(1)
	return s, nil
}

// Retry makes a cluster that waits for its next attempt try now.
func (m *Manager) Retry(name string) error {
	m.mu.RLock()
	s := m.runs[name]
	m.mu.RUnlock()
	if s == nil {
		return fmt.Errorf("cluster %s: %w", name, fleet.ErrNotFound)
	}
	s.retry()
	return nil
}

// launch starts a supervisor. mu is held and ctx is set.
func (m *Manager) launch(s *supervisor) {
	ctx, cancel := context.WithCancel(m.ctx)
	s.cancel = cancel
	m.running.Go(func() {
		defer close(s.done)
		defer cancel()
		s.run(ctx)
	})
}

// Client is the client for operations on a cluster with our own credential; ErrNotFound for an unknown one, ErrUnavailable
// for one whose kubeconfig yields none, and for one whose address leads to another cluster.
func (m *Manager) Client(cluster string) (kubernetes.Interface, error) {
	s, err := m.usable(cluster)
	if err != nil {
		return nil, err
	}
	return s.cluster.Ops, nil
}

// Clients are those for an operation of a person: in a cluster that knows people, one of them acts in the person's name.
// The errors are those of Client, and a NameError for a person who cannot be named there.
func (m *Manager) Clients(cluster string, by fleet.Caller) (kube.Clients, error) {
	s, err := m.usable(cluster)
	if err != nil {
		return kube.Clients{}, err
	}
	return s.cluster.For(by, s.terms)
}

// usable is the supervisor of a cluster that can be worked with.
func (m *Manager) usable(cluster string) (*supervisor, error) {
	m.mu.RLock()
	s := m.runs[cluster]
	m.mu.RUnlock()
	switch {
	case s == nil:
		return nil, fmt.Errorf("cluster %s: %w", cluster, fleet.ErrNotFound)
	case s.cluster.Ops == nil:
		return nil, fmt.Errorf("cluster %s: %w: %w", cluster, fleet.ErrUnavailable, s.cluster.Fault)
	}
	if err := s.id.refused(); err != nil {
		return nil, fmt.Errorf("cluster %s: %w", cluster, err)
	}
	return s, nil
}

// Refuses are the rights for lack of which a cluster would refuse an operation, whoever asks. It is what the cluster has
// said a moment ago, and nothing where it has not.
func (m *Manager) Refuses(cluster string, op fleet.Operation) []fleet.TestedRight {
	m.mu.RLock()
	s := m.runs[cluster]
	m.mu.RUnlock()
	if s == nil || time.Since(time.Unix(0, s.asked.Load())) > 2*m.cfg.Review {
		return nil
	}
	if c := s.board.state(); c.State == fleet.ClusterLive {
		return c.Rights.Missing(op)
	}
	return nil
}
