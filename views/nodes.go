package views

import (
	"context"
	"io"
	"strings"

	"github.com/a-h/templ"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// rendered writes bytes that NodeRowView or GroupRowView rendered before. It is the only way past templ's escaping, and its argument
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

// groupLabel begins the grouping by a label; its key follows.
const groupLabel = "label:"

// groupWords are what a list can be grouped by, beside any label. The list of one cluster is one group by cluster.
func groupWords(q Query) []string {
	words := []string{"cluster", "zone", "role", "type", "version", "status", "pool"}
	if q.Cluster != "" {
		return words[1:]
	}
	return words
}

// groupName is what a list is grouped by in words; a label is its own word.
func groupName(by, lang string) string {
	if key, ok := strings.CutPrefix(by, groupLabel); ok {
		return key
	}
	if by == "" {
		return T(lang, "group.none")
	}
	return T(lang, "group."+by)
}

// typedGroup is what stands in the field for a label.
func typedGroup(q Query) string {
	if strings.HasPrefix(q.Group, groupLabel) {
		return q.Group
	}
	return groupLabel
}

type chip struct {
	id, class, key, value, text string
	n                           int
}

func chipLinks(c Counts) []chip {
	c = c.known()
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

// groupValue is the value of a group for people.
func groupValue(r GroupRow) string {
	if r.Group.Value == "" {
		return T(r.Lang, "group.empty")
	}
	return r.Group.Value
}

// groupChips are the counters of a group by status. Nobody is told of what is not there, but for ready nodes.
func groupChips(g Group) []chip {
	chips := []chip{{class: "ok", text: "chip.ready", n: g.Ready}}
	if g.NotReady > 0 {
		chips = append(chips, chip{class: "bad", text: "chip.notready", n: g.NotReady})
	}
	if g.Unknown > 0 {
		chips = append(chips, chip{class: "unk", text: "chip.unknown", n: g.Unknown})
	}
	return chips
}
