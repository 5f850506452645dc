package realtime

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// errAsleep ends the watch of a cluster that nobody looks at, when the cache is over its limit.
var errAsleep = errors.New("put to sleep: the cache is over its limit and nobody looks at this cluster")

// awake is one attempt, which lull may end.
func (s *supervisor) awake(parent context.Context) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	s.lull.Store(&cancel)
	defer s.lull.Store(nil)
	err := s.attempt(ctx)
	if errors.Is(context.Cause(ctx), errAsleep) {
		return errAsleep
	}
	return err
}

// sleep gives the cluster's memory back and waits until somebody looks at it. It returns false when ctx ended instead.
func (s *supervisor) sleep(ctx context.Context) bool {
	select {
	case <-s.now: // meant for the watch that has ended
	default:
	}
	s.cluster.Close()
	s.reflector = nil
	s.board.sleep()
	s.log.Info("cluster asleep", "reason", errAsleep)
	// Whoever looked between the decision and now saw a cluster that did not sleep, and woke nobody.
	if s.board.looked.Load() <= s.lulled.Load() {
		select {
		case <-ctx.Done():
			return false
		case <-s.now:
		}
	}
	s.log.Info("cluster awake")
	s.board.wake()
	return true
}

// sleep forgets every node. The counters stay as they were, for people: the state says that they are of then.
func (b *board) sleep() {
	b.mu.Lock()
	rev := b.clock.Add(1)
	for _, s := range b.slots {
		if s.ver != nil {
			s.ver.cells.drop(b.cache)
			s.ver, s.full = nil, nil
			s.newest.Store(nil)
		}
	}
	b.slots, b.index, b.tombs, b.dead = map[string]*slot{}, index{}, nil, 0
	b.head.prev, b.head.next = &b.head, &b.head
	b.purged, b.countsRev, b.statusRev = rev, rev, rev
	b.bytes.Store(0)
	b.status.State, b.status.Since, b.status.Reason = fleet.ClusterAsleep, time.Now(), ""
	b.status.SyncedAt, b.status.NextRetry = time.Time{}, time.Time{}
	b.touched.all = true
	b.dirty.Store(true)
	b.mu.Unlock()
	b.notify()
}

// wake begins anew: counters start at nothing, as the board does.
func (b *board) wake() {
	b.setStatus(func(c *fleet.Cluster) {
		c.State, c.Since = fleet.ClusterConnecting, time.Now()
		c.Nodes, c.Ready, c.NotReady, c.Cordoned = 0, 0, 0, 0
	})
}

// look notes that somebody wants to see a cluster, and wakes it.
func (m *Manager) look(cluster string) {
	m.mu.RLock()
	b, s := m.boards[cluster], m.runs[cluster]
	m.mu.RUnlock()
	if b == nil {
		return
	}
	b.looked.Store(time.Now().UnixNano())
	if b.state().State == fleet.ClusterAsleep {
		s.retry()
	}
}

// dozing says that a cluster's nodes are not here because it sleeps, and has just been woken.
func dozing(b *board) error {
	if b.state().State != fleet.ClusterAsleep {
		return nil
	}
	return fmt.Errorf("cluster %s was asleep and is being woken, its nodes are here in a moment: %w", b.cluster, fleet.ErrUnavailable)
}

// economise keeps the cache within its limit: rendered rows have what the boards leave them, and when that is too
// little, the clusters that nobody has looked at for the longest are put to sleep. It returns when to look again; zero
// is with the next change.
func (m *Manager) economise() (again time.Duration) {
	now := time.Now()
	limit := m.cfg.CacheBytes
	boards, _ := m.shape()
	held := held(boards)
	// Rows are made again in microseconds; but a cache that holds hardly any makes them all the time.
	least := limit / 8
	m.render.cache.setLimit(max(limit-held, least))
	if held+least <= limit {
		return 0
	}
	open := m.looking()
	var idle []*board
	for _, b := range boards {
		if b.state().Synced() && !open[b.cluster] {
			idle = append(idle, b)
		}
	}
	slices.SortFunc(idle, func(a, b *board) int {
		return cmp.Or(cmp.Compare(a.looked.Load(), b.looked.Load()), cmp.Compare(a.cluster, b.cluster))
	})
	for _, b := range idle {
		if held+least <= limit {
			return 0
		}
		if wait := time.Unix(0, b.looked.Load()).Add(m.cfg.SleepAfter).Sub(now); wait > 0 {
			return wait // and the others were looked at later
		}
		if m.lull(b.cluster, now) {
			held -= b.bytes.Load()
		}
	}
	return 0
}

func held(boards map[string]*board) (bytes int64) {
	for _, b := range boards {
		bytes += b.bytes.Load()
	}
	return bytes
}

// looking is the clusters that somebody looks at now, each by itself. Lists of all clusters do not count: with one of
// them open nothing could ever sleep, and they say which cluster does.
func (m *Manager) looking() map[string]bool {
	m.viewsMu.Lock()
	defer m.viewsMu.Unlock()
	open := map[string]bool{}
	for at := range m.routes {
		open[at.cluster] = true
	}
	return open
}

// lull puts a cluster to sleep for which that was decided at a moment; false if it is not watched right now.
func (m *Manager) lull(cluster string, decided time.Time) bool {
	m.mu.RLock()
	s := m.runs[cluster]
	m.mu.RUnlock()
	if s == nil {
		return false
	}
	s.lulled.Store(decided.UnixNano())
	cancel := s.lull.Load()
	if cancel == nil {
		return false
	}
	(*cancel)(errAsleep)
	return true
}

// weigh is about what a node costs in memory, beside its rendered rows.
func weigh(n *fleet.Node, full kube.Packed) int64 {
	size := nodeOverhead + len(full)
	for k, v := range n.Labels {
		size += entryOverhead + len(k) + len(v)
	}
	for k, v := range n.Annotations {
		size += entryOverhead + len(k) + len(v)
	}
	for i := range n.Conditions {
		size += conditionSize + len(n.Conditions[i].Message)
	}
	size += (len(n.Capacity.Raw) + len(n.Allocatable.Raw)) * entryOverhead
	return int64(size)
}

// Measured with a heap profile of 5,000 nodes, rounded.
const (
	nodeOverhead  = 2600
	entryOverhead = 56
	conditionSize = 128
)
