package realtime

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// fleetView is the clusters page as everybody sees it.
type fleetView struct {
	mu       sync.Mutex // guards everything below
	rev      uint64
	topology uint64
	moved    uint64 // last time a cluster came or went
	clusters []clusterAt
	sig      chan struct{}
}

// sync brings the page up to date and wakes its readers if it changed.
func (f *fleetView) sync(m *Manager) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m.clock.Load() == f.rev && f.topology != 0 {
		return
	}
	before, changed := f.rev, false
	m.at(everyBoard, func(at moment) {
		if at.topology != f.topology {
			f.topology, f.moved, changed = at.topology, at.rev, true
		}
		f.rev = at.rev
		f.clusters = make([]clusterAt, 0, len(at.boards))
		for _, b := range at.boards {
			c := b.at()
			changed = changed || max(c.rev, c.counts) > before
			f.clusters = append(f.clusters, c)
		}
	})
	slices.SortFunc(f.clusters, func(a, b clusterAt) int { return strings.Compare(a.Name, b.Name) })
	if changed {
		close(f.sig)
		f.sig = make(chan struct{})
	}
}

func (f *fleetView) read() (clusters []clusterAt, rev, moved uint64, next <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.clusters), f.rev, f.moved, f.sig
}

// clusterGap is the least distance of two messages about clusters: their counters move with every node.
const clusterGap = 250 * time.Millisecond

// Clusters serves the live rows of the clusters page, for those in sight. As JSON it sends one event `cluster` per cluster that changed
// and `reset` before the whole state.
func (s *Streamer) Clusters(w http.ResponseWriter, r *http.Request, cs ClusterStream) error {
	return s.serve(w, r, cs.Viewer, kindClusters, s.pumpClusters)
}

func (s *Streamer) pumpClusters(ctx context.Context, c *conn) error {
	f := &s.m.fleet
	f.sync(s.m)
	sight, tag := c.viewer.Sight, sightTag(c.viewer.Sight.Key())
	cur, base, known := s.m.parseCursor(c.viewer.Since, tag)
	known = known && cur == base
	s.metrics.began(c, known)
	pace := &pacer{rate: 4, most: clusterGap}
	var names []string // of what the client shows
	told := false      // names means something
	return s.loop(ctx, c, pace, func() string { return s.m.cursor(cur, tag) },
		func() ([]frame, <-chan struct{}, bool) {
			clusters, rev, moved, next := f.read()
			clusters = slices.DeleteFunc(clusters, func(c clusterAt) bool { return !sight.Sees(c.Name) })
			was := names
			names = make([]string, len(clusters))
			for i, c := range clusters {
				names[i] = c.Name
			}
			// What comes and goes out of sight is nothing to this client.
			whole := !known || cur > rev || cur < moved && (!told || !slices.Equal(was, names))
			told = true
			since := cmp.Or(cur, 0)
			if whole {
				since = 0
			}
			changed := slices.DeleteFunc(clusters, func(c clusterAt) bool { return max(c.rev, c.counts) <= since })
			cur, known = rev, true
			if len(changed) == 0 && !whole {
				return nil, next, false
			}
			if c.viewer.Format == JSON {
				return s.clusterMessages(changed, whole, cur, tag), next, false
			}
			return []frame{s.clusterRows(changed, whole, cur, tag, c.viewer.Lang)}, next, false
		})
}

func (s *Streamer) clusterRows(clusters []clusterAt, whole bool, rev uint64, tag, lang string) frame {
	var b []byte
	if whole {
		b = partialStart(b, "#rows", "innerMorph")
	}
	for _, c := range clusters {
		row := oneLine(s.render.safely("cluster row", func() []byte { return s.render.ClusterRow(c.Cluster, lang) }))
		if whole {
			b = append(b, row...)
		} else {
			b = appendRow(b, row)
		}
	}
	if whole {
		b = partialEnd(b)
	}
	return event(s.m.cursor(rev, tag), "", b).holding(len(clusters))
}

func (s *Streamer) clusterMessages(clusters []clusterAt, whole bool, rev uint64, tag string) []frame {
	var frames []frame
	if whole {
		frames = append(frames, jsonEvent(s.m.partial(rev, tag), message{Type: typeReset, Time: time.Now()}))
	}
	for i, c := range clusters {
		data, err := fleet.ClusterJSON(c.Cluster)
		if err != nil {
			s.log.Error("cluster not encodable", "cluster", c.Name, "err", err)
			continue
		}
		id := s.m.partial(rev, tag)
		if i == len(clusters)-1 {
			id = s.m.cursor(rev, tag)
		}
		frames = append(frames, event(id, "cluster", data).holding(1))
	}
	return frames
}
