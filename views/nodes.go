package views

import (
	"context"
	"io"

	"github.com/a-h/templ"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// rendered writes bytes that NodeRowView rendered before. It is the only way past templ's escaping, and its argument
// comes from Renderer alone: rows are rendered once and shared by page and stream.
func rendered(row []byte) templ.Component {
	return templ.ComponentFunc(func(_ context.Context, w io.Writer) error {
		_, err := w.Write(row)
		return err
	})
}

type column struct {
	sort  string // key of the sort and of the heading
	class string
	num   bool
}

var nodeColumns = []column{
	{"cluster", "c-cluster", false},
	{"name", "c-name", false},
	{"status", "c-status", false},
	{"scheduling", "c-sched", false},
	{"cpu", "c-cpu", true},
	{"memory", "c-mem", true},
	{"pods", "c-pods", true},
	{"taints", "c-taints", false},
	{"zone", "c-zone", false},
	{"version", "c-version", false},
	{"age", "c-age", true},
}

// sorts tells whether the list can be sorted by the column.
func (c column) sorts() bool { return c.sort != "scheduling" && c.sort != "taints" }

type chip struct {
	id, class, key, value, text string
	n                           int
}

func chipLinks(c Counts) []chip {
	return []chip{
		{"k-ready", "ok", "status", "Ready", "chip.ready", c.Ready},
		{"k-notready", "bad", "status", "NotReady", "chip.notready", c.NotReady},
		{"k-unknown", "unk", "status", "Unknown", "chip.unknown", c.Unknown},
		{"k-cordoned", "cord", "cordoned", "true", "chip.cordoned", c.Cordoned},
		{"k-pressure", "warn", "status", "Pressure", "chip.pressure", c.Pressure},
	}
}

// tableClass hides what does not apply: the cluster in the list of one, the boxes for those who may not act.
func tableClass(p NodesPage) string {
	class := ""
	if p.Query.Cluster != "" {
		class = "one"
	}
	if !p.CanCordon {
		class += " ro"
	}
	return class
}

func nodesTitle(p NodesPage) string {
	if p.Query.Cluster != "" {
		return p.Query.Cluster + " · " + T(p.Lang, "nav.nodes")
	}
	return T(p.Lang, "nav.nodes")
}

func firstUnsynced(cs []fleet.Cluster) (fleet.Cluster, bool) {
	for _, c := range cs {
		if !c.Synced() {
			return c, true
		}
	}
	return fleet.Cluster{}, false
}

func perPage(q Query) int {
	if q.PerPage == 0 {
		return DefaultPerPage
	}
	return q.PerPage
}
