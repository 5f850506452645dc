package realtime

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Nodes serves the live stream of a node query or of one node's page.
func (s *Streamer) Nodes(w http.ResponseWriter, r *http.Request, ns NodeStream) error {
	q := ns.Query
	if ns.Node != nil {
		q = nodeQuery(ns.Sight, *ns.Node)
	}
	if q == nil {
		return fmt.Errorf("a node stream needs a query or a node: %w", fleet.ErrInvalid)
	}
	if q.blind() || q.Cluster != "" && s.m.board(q.Cluster) == nil {
		return fmt.Errorf("cluster %s: %w", q.Cluster, fleet.ErrNotFound)
	}
	if !s.m.admits(q) {
		return s.refuse(reasonViews, "different views of nodes")
	}
	kind := kindNodes
	if ns.Node != nil {
		kind = kindNode
	}
	if ns.Format == JSON {
		return s.serve(w, r, ns.Viewer, kind, func(ctx context.Context, c *conn) error { return s.pumpJSON(ctx, c, q) })
	}
	return s.serve(w, r, ns.Viewer, kind, func(ctx context.Context, c *conn) error { return s.pumpHTML(ctx, c, q) })
}

func (s *Streamer) pumpHTML(ctx context.Context, c *conn, q *Query) error {
	v := s.m.acquire(q)
	defer s.m.release(v)
	p := v.watch(pageKey{q.Page, q.PerPage})
	defer v.unwatch(p)
	pos := &position{lang: c.viewer.Lang}
	cur, base, ok := s.m.parseCursor(c.viewer.Since, q.tag)
	pos.cur, pos.reset = cur, !ok || cur != base
	s.metrics.began(c, !pos.reset)
	return s.loop(ctx, c, s.pace(), func() string { return v.cursor(pos.cur) },
		func() ([]frame, <-chan struct{}, bool) {
			if v.orphaned() {
				return []frame{bye(v.cursor(pos.cur), byeCluster)}, nil, true
			}
			before := pos.merged
			frames, next := v.html(p, pos)
			s.metrics.merged.Add(float64(pos.merged - before))
			return frames, next, false
		})
}

func (s *Streamer) pumpJSON(ctx context.Context, c *conn, q *Query) error {
	v := s.m.acquire(q.ungrouped())
	defer s.m.release(v)
	cur, base, known := s.m.parseCursor(c.viewer.Since, q.tag)
	at := place{cur, base}
	snapshot, from, known := v.open(cur, known)
	s.metrics.began(c, known)
	synced := false
	reset := !known && c.viewer.Since != ""
	id := func() string {
		if !known {
			return v.partial(from)
		}
		return v.between(at.cur, at.base)
	}
	// Nobody watches JSON with their eyes: no pacing.
	return s.loop(ctx, c, &pacer{}, id, func() ([]frame, <-chan struct{}, bool) {
		if v.orphaned() {
			return []frame{bye(id(), byeCluster)}, nil, true
		}
		var frames []frame
		if !known {
			if reset {
				frames = append(frames, jsonEvent(v.partial(from), message{Type: typeReset, Time: time.Now()}))
				reset = false
			}
			// A client that stops reading in the middle holds no more of it than this.
			n, size := 0, 0
			for ; n < min(maxRows, len(snapshot)) && size < openBytes; n++ {
				f := v.opening(snapshot[n], from)
				size += len(f.ev.Data)
				frames = append(frames, f)
			}
			if snapshot = snapshot[n:]; len(snapshot) > 0 {
				return frames, ready, false
			}
			at, known = place{from, from}, true
			if len(frames) > 0 {
				return frames, ready, false
			}
		}
		more, again, next := v.messages(&at)
		if again { // what this client has missed is forgotten
			snapshot, from, known = v.open(0, false)
			reset, synced = true, false
			return nil, ready, false
		}
		if len(more) > 0 {
			return more, ready, false
		}
		if !synced {
			synced = true
			return []frame{v.syncedEvent(id())}, next, false
		}
		return nil, next, false
	})
}

// openBytes is about how much of the first state is encoded ahead of a client.
const openBytes = 4 << 10

// ready is a channel to wait for when there is more to send already.
var ready = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// open is where a JSON stream begins: at the cursor if that is still good, with everything otherwise.
func (v *view) open(cur uint64, known bool) (snapshot []*version, from uint64, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.sync()
	if known && cur >= v.purged && cur <= v.rev {
		return nil, cur, true
	}
	return v.snapshot(), v.rev, false
}

// opening is a node as the first state says it. Its id is no cursor: half a state is none.
func (v *view) opening(ver *version, rev uint64) frame {
	ref := ver.node.Ref
	return jsonEvent(v.partial(rev), message{
		Type: nodeAdd, Cluster: ref.Cluster, Node: ref.Name, Data: v.m.render.json(ver), Time: ver.node.UpdatedAt,
	}).holding(1)
}

// syncedEvent ends the first state. It names the clusters' states: no nodes of a cluster that is not live means
// nothing.
func (v *view) syncedEvent(id string) frame {
	v.mu.Lock()
	defer v.mu.Unlock()
	states := make(map[string]fleet.ClusterState, len(v.clusters))
	for _, c := range v.clusters {
		states[c.Name] = c.State
	}
	data, err := json.Marshal(struct {
		Nodes    int                           `json:"nodes"`
		Clusters map[string]fleet.ClusterState `json:"clusters"`
	}{len(v.order), states})
	if err != nil {
		data = []byte("null") // strings and numbers always encode
	}
	return jsonEvent(id, message{Type: typeSynced, Data: data, Time: time.Now()})
}

// orphaned tells that the query's one cluster is not here any more.
func (v *view) orphaned() bool { return v.q.Cluster != "" && v.m.board(v.q.Cluster) == nil }
