package realtime

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// What somebody does not see is not there: not by name, not among all, not in numbers, menus and groups. The zero sight
// sees nothing.
func TestSight_QueriesSeeNothingElse(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{}, StreamerConfig{}, "a", "b")
	for _, c := range []string{"a", "b"} {
		for i := range 3 {
			b.put(c, spec{name: fmt.Sprint(c, i), rv: i + 1, labels: map[string]string{"topology.kubernetes.io/zone": "zone-" + c}})
		}
	}
	for _, tt := range []struct {
		name  string
		sight fleet.Sight
		sees  []string
	}{
		{"everything", fleet.SeesAll(), []string{"a", "b"}},
		{"a", sightOf("a"), []string{"a"}},
		{"a pattern", sightOf("b*"), []string{"b"}},
		{"nothing", sightOf("none"), nil},
		{"the zero sight", fleet.Sight{}, nil},
	} {
		for _, cluster := range []string{"", "a", "b", "c"} {
			q, err := ParseQuery(tt.sight, cluster, url.Values{"group": {"cluster"}})
			if err != nil {
				t.Fatal(err)
			}
			var want, got []string
			for _, c := range []string{"a", "b"} {
				if slices.Contains(tt.sees, c) && (cluster == "" || cluster == c) {
					want = append(want, c)
				}
			}
			w := b.m.Window(q, "en")
			for _, c := range w.Clusters {
				got = append(got, c.Name)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s, cluster %q: clusters (-want +got): %s", tt.name, cluster, d)
			}
			n := 3 * len(want)
			if w.Total != n || w.Counts.Total != n || len(w.Nodes) != n || len(w.Groups) != len(want) || len(w.Facets.Zones) != len(want) ||
				len(b.m.Matching(q, 100)) != n || b.m.List(q, false).Total != n || len(b.m.List(q, true).Groups) != len(want) {
				t.Errorf("%s, cluster %q: want %d nodes of %q: %+v", tt.name, cluster, n, want, w)
			}
			for _, ref := range b.m.Matching(q, 100) {
				if node, err := b.m.Node(ref); err != nil || !q.Match(node) {
					t.Errorf("%s does not match: %v", ref, err)
				}
			}
		}
		var names []string
		for _, c := range b.m.Clusters(tt.sight) {
			names = append(names, c.Name)
		}
		if d := cmp.Diff(tt.sees, names); d != "" {
			t.Errorf("%s: Clusters (-want +got): %s", tt.name, d)
		}
	}
}

// Those who see the same share a view, and one cluster is the same view for all who see it.
func TestSight_ViewsAreShared(t *testing.T) {
	t.Parallel()
	key := func(sight fleet.Sight, cluster string) string {
		t.Helper()
		q, err := ParseQuery(sight, cluster, nil)
		if err != nil {
			t.Fatal(err)
		}
		return q.Key()
	}
	if one, two := sightOf("a"), sightOf("a"); key(one, "") != key(two, "") {
		t.Error("two sights of the same do not share")
	}
	if key(sightOf("a"), "") == key(sightOf("b"), "") || key(sightOf("a"), "") == key(fleet.SeesAll(), "") {
		t.Error("different sights share")
	}
	if key(sightOf("a"), "a") != key(fleet.SeesAll(), "a") {
		t.Error("one cluster is not shared by those who see it")
	}
	if key(sightOf("b"), "a") == key(fleet.SeesAll(), "a") {
		t.Error("one cluster is shared with somebody who does not see it")
	}
}

// A stream about what is out of sight is refused as one about what there is not, and wakes nobody.
func TestSight_StreamsOfWhatIsHidden(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{}, StreamerConfig{}, "a", "b")
	b.put("b", spec{name: "n1", rv: 1})
	looked := b.m.board("b").looked.Load()
	for _, path := range []string{"/nodes?cluster=%s", "/nodes?json=1&cluster=%s", "/node?name=n1&cluster=%s"} {
		answers := map[string]int{}
		for _, cluster := range []string{"b", "nowhere"} {
			_, status, err := b.dial(fmt.Sprintf(path, cluster), "Sight", "a")
			if err != nil {
				t.Fatal(err)
			}
			answers[cluster] = status
		}
		if answers["b"] != http.StatusNotFound || answers["b"] != answers["nowhere"] {
			t.Errorf("%s: %v", path, answers)
		}
	}
	if b.m.board("b").looked.Load() != looked {
		t.Error("a cluster out of sight counts as looked at")
	}
}

// The clusters' stream of somebody says nothing when what comes, goes and changes is out of sight; what is in sight
// comes and goes as ever. A cursor of another sight begins anew.
func TestSight_ClustersStream(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{}, StreamerConfig{}, "a", "b")
	all := b.open("/clusters?json=1")
	last := all.until("the state of b", func(e got) bool { return strings.Contains(e.data, `"name":"b"`) })
	some := b.open("/clusters?json=1", "Sight", "a*", "Last-Event-ID", last.id)
	if e := some.want(); e.name != typeReset {
		t.Errorf("somebody else's cursor is good: %+v", e)
	}
	first := some.want()
	if !strings.Contains(first.data, `"name":"a"`) {
		t.Errorf("%+v", first)
	}
	b.put("b", spec{name: "n1", rv: 1})
	b.add("c")
	all.until("the newcomer", func(e got) bool { return strings.Contains(e.data, `"name":"c"`) })
	if err := b.m.Remove("b"); err != nil {
		t.Fatal(err)
	}
	all.until("a start without b", func(e got) bool { return e.name == typeReset })
	b.put("a", spec{name: "n1", rv: 1})
	if e := some.want(); e.name != "cluster" || !strings.Contains(e.data, `"name":"a"`) || !strings.Contains(e.data, `"nodes":1`) {
		t.Errorf("the next word is %+v, want the node of a and nothing before it", e)
	}
	b.add("a2")
	if e := some.want(); e.name != typeReset {
		t.Errorf("a cluster that comes into sight begins with %+v", e)
	}
}
