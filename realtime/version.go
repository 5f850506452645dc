package realtime

import (
	"cmp"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// version is one visible state of a node: everything that streams and lists need, rendered at most once. It is
// immutable but for the cells, which fill on first use.
type version struct {
	node    *fleet.Node
	added   uint64             // revision at which the node appeared
	fields  [fieldCount]uint64 // revision at which each visible field changed last; 0: not since it appeared
	kubelet uint64             // kubelet version as a number that sorts
	cells   *cells
	slot    *slot
}

// newest is the node with its latest heartbeats, as long as it looks like this version.
func (v *version) newest() *fleet.Node {
	if n := v.slot.newest.Load(); n != nil && n.Revision == v.node.Revision {
		return n
	}
	return v.node
}

// changedSince names the fields that changed after a revision, however many changes lie between.
func (v *version) changedSince(rev uint64) changes {
	var c changes
	for i, at := range v.fields {
		if at > rev {
			c |= 1 << i
		}
	}
	return c
}

// renderer guards the renderer and remembers what it rendered.
type renderer struct {
	Renderer
	log   *slog.Logger
	cache *rowCache
	made  atomic.Uint64 // rows rendered
}

// row is the node's <tr> in a language, rendered on first use.
func (r *renderer) row(v *version, lang string) []byte {
	return v.cells.get(r.cache, lang, func() []byte {
		r.made.Add(1)
		return oneLine(r.safely("node row", func() []byte { return r.NodeRow(v.node, lang) }))
	})
}

// group is the <tr> of a group's header in a language, rendered on first use.
func (r *renderer) group(h *header, lang string) []byte {
	return h.rows.get(lang, func() []byte {
		return oneLine(r.safely("group row", func() []byte { return r.GroupRow(h.Group, lang) }))
	})
}

// json is the node's JSON, encoded on first use.
func (r *renderer) json(v *version) []byte {
	return v.cells.get(r.cache, jsonCell, func() []byte {
		b, err := fleet.NodeJSON(v.node)
		if err != nil {
			r.log.Error("node not encodable", "cluster", v.node.Ref.Cluster, "node", v.node.Ref.Name, "err", err)
			b = []byte("null")
		}
		return oneLine(b)
	})
}

// byLang are the renderings of what there is little of, one for each language, for as long as it lives.
type byLang struct {
	mu   sync.Mutex // guards rows; held while rendering, so that each is rendered once
	rows map[string][]byte
}

func (r *byLang) get(lang string, render func() []byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.rows[lang]
	if !ok {
		b = render()
		if r.rows == nil {
			r.rows = make(map[string][]byte, 1)
		}
		r.rows[lang] = b
	}
	return b
}

// safely keeps a template that panics over one odd object from ending the process; that one fragment is missing.
func (r *renderer) safely(what string, render func() []byte) (b []byte) {
	defer func() {
		if p := recover(); p != nil {
			r.log.Error("rendering panicked", "what", what, "panic", p, "stack", string(debug.Stack()))
			b = nil
		}
	}()
	return render()
}

// columns are the sortable ones; see order.
var columns = map[string]func(a, b *version) int{
	"name":    byName,
	"cluster": func(a, b *version) int { return strings.Compare(a.node.Ref.Cluster, b.node.Ref.Cluster) },
	"status":  func(a, b *version) int { return cmp.Compare(trouble(a.node), trouble(b.node)) },
	"role":    func(a, b *version) int { return slices.Compare(a.node.Roles, b.node.Roles) },
	"zone":    func(a, b *version) int { return strings.Compare(a.node.Zone(), b.node.Zone()) },
	"type":    func(a, b *version) int { return strings.Compare(a.node.InstanceType(), b.node.InstanceType()) },
	"version": func(a, b *version) int { return cmp.Compare(a.kubelet, b.kubelet) },
	"cpu":     func(a, b *version) int { return cmp.Compare(a.node.Allocatable.CPUMilli, b.node.Allocatable.CPUMilli) },
	"memory": func(a, b *version) int {
		return cmp.Compare(a.node.Allocatable.MemoryBytes, b.node.Allocatable.MemoryBytes)
	},
	"pods": func(a, b *version) int { return cmp.Compare(a.node.Allocatable.Pods, b.node.Allocatable.Pods) },
	"age":  func(a, b *version) int { return b.node.Created.Compare(a.node.Created) },
}

// trouble sorts what needs a person first.
func trouble(n *fleet.Node) int {
	switch {
	case n.Status == fleet.StatusNotReady:
		return 0
	case n.Status == fleet.StatusUnknown:
		return 1
	case len(n.Pressure) > 0:
		return 2
	case !n.Schedulable:
		return 3
	}
	return 4
}

// kubeletOrder makes v1.34.2 a number that sorts as people expect; 21 bits for each of three parts.
func kubeletOrder(v string) uint64 {
	v = strings.TrimPrefix(v, "v")
	var out uint64
	for i := range 3 {
		var part uint64
		for v != "" && v[0] >= '0' && v[0] <= '9' {
			part = min(part*10+uint64(v[0]-'0'), 1<<21-1)
			v = v[1:]
		}
		out |= part << (21 * (2 - i))
		if !strings.HasPrefix(v, ".") {
			break
		}
		v = v[1:]
	}
	return out
}
