package realtime

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

func TestParseQuery_Group(t *testing.T) {
	t.Parallel()
	node := &fleet.Node{
		Ref: fleet.NodeRef{Cluster: "prod", Name: "n"}, Status: fleet.StatusUnknown, Roles: []string{"gpu", "worker"},
		Labels: map[string]string{
			"topology.kubernetes.io/zone": "eu-1a", "node.kubernetes.io/instance-type": "m5.large", "app": "web",
			"karpenter.sh/nodepool": "spot", "eks.amazonaws.com/nodegroup": "blue",
		},
		Info: fleet.Info{KubeletVersion: "v1.34.2"},
	}
	for group, want := range map[string]string{
		"cluster": "prod", "zone": "eu-1a", "role": "gpu, worker", "type": "m5.large", "version": "v1.34.2", "status": "Unknown",
		"pool": "blue", "label:app": "web", "label:example.com/none": "",
	} {
		q, err := ParseQuery(fleet.SeesAll(), "", url.Values{"group": {group}})
		if err != nil {
			t.Errorf("group=%s: %v", group, err)
			continue
		}
		if got := q.group.of(node); got != want || q.Group != group {
			t.Errorf("group=%s: the node is in %q, want %q", group, got, want)
		}
	}
	for group, says := range map[string]string{
		"colour": "label:<key>", "Zone": "zone", "label:": "key of a label", "label:a b": "a b", "label:a/b/c": "a/b/c", "label": "label:<key>",
	} {
		_, err := ParseQuery(fleet.SeesAll(), "", url.Values{"group": {group}})
		bad, ok := errors.AsType[*fleet.FieldError](err)
		if !ok || bad.Field != "group" || bad.Key == "" || !strings.Contains(bad.Error(), says) {
			t.Errorf("group=%q: %v, want a FieldError of group that says %q", group, err, says)
		}
	}
	if _, err := ParseQuery(fleet.SeesAll(), "", url.Values{"group": {"zone", "role"}}); err == nil {
		t.Error("two groupings are taken")
	}
	for _, key := range poolLabels {
		if got := pool(&fleet.Node{Labels: map[string]string{key: "p"}}); got != "p" {
			t.Errorf("%s is not taken for the name of a pool", key)
		}
	}
}

func TestGroups_Order(t *testing.T) {
	t.Parallel()
	for by, want := range map[string][]string{
		"version": {"v1.9.0", "v1.10.1", "v1.10.2", ""},
		"status":  {"NotReady", "Unknown", "Ready"},
		"zone":    {"Z", "a", "b", ""},
	} {
		g, err := parseGroup(by)
		if err != nil {
			t.Fatal(err)
		}
		got := slices.Clone(want)
		slices.Reverse(got)
		slices.SortFunc(got, g.between)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("groups by %s (-want +got): %s", by, d)
		}
	}
}

func in(zone string) map[string]string {
	if zone == "" {
		return nil
	}
	return map[string]string{"topology.kubernetes.io/zone": zone}
}

// What one page of a grouped list is told, change by change.
func TestGroups_Stream(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{Epoch: "e1"}, StreamerConfig{}, "a")
	for i := range 25 { // the second page begins within z2
		zone := "z1"
		if i >= 10 {
			zone = "z2"
		}
		b.put("a", spec{name: fmt.Sprintf("n%02d", i), rv: i + 1, labels: in(zone)})
	}
	const query = "group=zone&per_page=20&page=1"
	one, two := b.window(query), b.window("group=zone&per_page=20&page=2")
	if len(one.Heads) != 2 || one.Heads[1].Before != 10 || len(one.Lines()) != 22 || len(two.Heads) != 1 || len(two.Rows) != 5 {
		t.Fatalf("page 1 has %d headers and %d lines, page 2 %d headers and %d rows", len(one.Heads), len(one.Lines()), len(two.Heads), len(two.Rows))
	}
	want := []Group{
		{By: "zone", Value: "z1", Nodes: 10, Ready: 10, CPUMilli: 39000},
		{By: "zone", Value: "z2", Nodes: 15, Ready: 15, CPUMilli: 15 * 3900},
	}
	if d := cmp.Diff(want, one.Groups); d != "" {
		t.Errorf("groups (-want +got): %s", d)
	}
	if string(one.Heads[1].Row) != string(two.Heads[0].Row) {
		t.Error("the header of a group differs between its pages: it is of the whole group")
	}
	s := b.open("/nodes?" + query + "&since=" + one.Cursor)
	header := func(n int) string {
		return `<tr hx-swap-oob="outerMorph" ` + string(b.window(query).Heads[n].Row[len("<tr "):])
	}

	b.put("a", spec{name: "n24", rv: 100, labels: in("z2"), cordoned: true}) // on the other page
	if e := s.want(); !strings.HasPrefix(e.data, header(1)+"<x-counts>") || strings.Contains(e.data, "n-a-") {
		t.Errorf("a node of another page: %q, want the header of its group and the counters", e.data)
	}
	more := spec{name: "n23", rv: 101, labels: in("z2")}.node()
	more.Status.Allocatable = nil
	if err := b.m.board("a").apply(more); err != nil {
		t.Fatal(err)
	}
	if e := s.want(); e.data != header(1) {
		t.Errorf("a sum that is no counter: %q, want the header alone", e.data)
	}
	b.put("a", spec{name: "n09", rv: 102, labels: in("z2")}) // where it stood, under the other header
	if e := s.want(); e.name != "" || !strings.Contains(e.data, header(0)) || !strings.Contains(e.data, header(1)) || !strings.Contains(e.data, `id="n-a-n09"`) {
		t.Errorf("into the next group: %q", e.data)
	}
	if e := s.want(); e.name != "order" || !strings.Contains(e.data, `"n-a-n08","g-z2","n-a-n09","n-a-n10"`) {
		t.Errorf("into the next group: %+v, want the header before the node", e)
	}
	b.put("a", spec{name: "n00", rv: 103})
	if e := s.want(); !strings.Contains(e.data, `<tr id="n-a-n00" hx-swap-oob="delete"></tr>`) || strings.Contains(e.data, "g-\"") {
		t.Errorf("to the nodes without a zone, on the other page: %q", e.data)
	}
	if e := s.want(); e.name != "order" {
		t.Errorf("got %+v, want the order", e)
	}
	b.put("a", spec{name: "n05", rv: 104, labels: in("z0")})
	if e := s.want(); !strings.Contains(e.data, `beforeend"><tr id="g-z0"`) {
		t.Errorf("a new group: %q, want its header put in", e.data)
	}
	if e := s.want(); e.name != "order" || !strings.HasPrefix(e.data, `["g-z0","n-a-n05","g-z1"`) {
		t.Errorf("a new group: %+v", e)
	}
	b.m.board("a").remove("n05", "uid-n05", "105")
	if e := s.want(); !strings.Contains(e.data, `<tr id="g-z0" hx-swap-oob="delete"></tr>`) {
		t.Errorf("the last node of a group: %q, want its header taken away", e.data)
	}
	if got := b.window(query).Groups; len(got) != 3 || got[2].Value != "" || got[2].Nodes != 1 {
		t.Errorf("groups at the end: %+v, want the nodes without a zone last", got)
	}
}

// A node came under another header in its old place while nobody watched the page: whoever comes back has other lines
// than the page has, although no row moved.
func TestGroups_RegroupedWhileAway(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{Epoch: "e1"}, StreamerConfig{}, "a")
	for i, zone := range []string{"z1", "z1", "z3"} {
		b.put("a", spec{name: fmt.Sprintf("n%d", i), rv: i + 1, labels: in(zone)})
	}
	w := b.window("group=zone")
	b.put("a", spec{name: "n1", rv: 10, labels: in("z2")})
	s := b.open("/nodes?group=zone&since=" + w.Cursor)
	if e := s.want(); !strings.HasPrefix(e.data, `<hx-partial hx-target="#rows" hx-swap="innerMorph"><tr id="g-z1"`) || !strings.Contains(e.data, `<tr id="g-z2"`) {
		t.Errorf("got %q, want the page as a whole", e.data)
	}
}

// Streams for programs and the selection see no groups, and share the view of those who asked for none.
func TestGroups_AreForPeople(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{Epoch: "e1"}, StreamerConfig{}, "a")
	for i := range 4 {
		b.put("a", spec{name: fmt.Sprintf("n%d", i), rv: i + 1, labels: in([]string{"z2", "z1"}[i%2])})
	}
	plainQuery, err := ParseQuery(fleet.SeesAll(), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	q, err := ParseQuery(fleet.SeesAll(), "", url.Values{"group": {"zone"}})
	if err != nil {
		t.Fatal(err)
	}
	if q.Key() == plainQuery.Key() || q.ungrouped().Key() != plainQuery.Key() {
		t.Errorf("keys: grouped %q, ungrouped %q, plain %q", q.Key(), q.ungrouped().Key(), plainQuery.Key())
	}
	if d := cmp.Diff(b.m.Matching(plainQuery, 10), b.m.Matching(q, 10)); d != "" {
		t.Errorf("the selection depends on the grouping: %s", d)
	}
	var names []string
	s := b.open("/nodes?json=1&group=zone")
	for {
		e := s.want()
		if e.name == typeSynced {
			break
		}
		_, name, _ := strings.Cut(e.data, `"node_name":"`)
		names = append(names, name[:2])
	}
	if got := strings.Join(names, " "); got != "n0 n1 n2 n3" {
		t.Errorf("the stream for programs opens with %s", got)
	}
	var items []string
	l := b.m.List(q, false)
	for item := range l.Items {
		_, name, _ := strings.Cut(string(item), `"name":"`)
		items = append(items, name[:2])
	}
	if got := strings.Join(items, " "); got != "n1 n3 n0 n2" || len(l.Groups) != 2 {
		t.Errorf("the list for programs is %s in %d groups", got, len(l.Groups))
	}
	if l := b.m.List(plainQuery, false); l.Groups != nil {
		t.Error("a list that is not grouped has groups")
	}
}

type countedHeaders struct {
	plain
	made *atomic.Int64
}

func (c countedHeaders) GroupRow(g Group, lang string) []byte {
	c.made.Add(1)
	return c.plain.GroupRow(g, lang)
}

// A header is rendered once for each change of its sums and language, whoever looks; a change that leaves the sums as
// they were renders nothing.
func TestGroups_HeaderIsRenderedOnce(t *testing.T) {
	t.Parallel()
	var made atomic.Int64
	m := NewManager(ManagerConfig{Logger: newAlarm(t), Render: countedHeaders{made: &made}})
	b := &bench{t: t, m: m}
	b.add("a")
	q, err := ParseQuery(fleet.SeesAll(), "", url.Values{"group": {"zone"}})
	if err != nil {
		t.Fatal(err)
	}
	look := func(want int64, what string) {
		t.Helper()
		for range 3 {
			m.Window(q, "en")
		}
		if got := made.Load(); got != want {
			t.Errorf("%s: %d headers rendered so far, want %d", what, got, want)
		}
	}
	b.put("a", spec{name: "n1", rv: 1, labels: in("z1")})
	b.put("a", spec{name: "n2", rv: 2, labels: in("z2")})
	look(2, "two groups")
	b.put("a", spec{name: "n1", rv: 3, labels: map[string]string{"topology.kubernetes.io/zone": "z1", "v": "x"}})
	look(2, "a label that changes no sum")
	b.put("a", spec{name: "n1", rv: 4, labels: in("z1"), cordoned: true})
	look(3, "a cordon")
	b.put("a", spec{name: "n2", rv: 5, labels: in("z1")})
	look(4, "a group that is gone and one that grew")
	m.Window(q, "zh")
	look(5, "another language")
}

// BenchmarkChange_Grouped is one node event for a grouped view that somebody watches: it must not cost a look at every
// node, however many groups there are.
func BenchmarkChange_Grouped(b *testing.B) {
	for _, nodes := range []int{500, 5000} {
		for _, by := range []string{"", "zone", "pool", "label:v"} {
			b.Run(fmt.Sprintf("%dnodes/%s", nodes, by), func(b *testing.B) {
				m := loaded(b, nodes)
				v := m.acquire(mustQuery(b, url.Values{"group": {by}, "q": {"-nothing"}}))
				defer m.release(v)
				p := v.watch(pageKey{1, 50})
				defer v.unwatch(p)
				board := m.board("a")
				i := 0
				b.ReportAllocs()
				for b.Loop() {
					i++
					s := spec{name: fmt.Sprintf("node-%05d", i%nodes), rv: i, labels: map[string]string{"v": fmt.Sprint(i % 50)}, cordoned: i%2 == 0}
					if err := board.apply(s.node()); err != nil {
						b.Fatal(err)
					}
					m.follow(v)
				}
			})
		}
	}
}

// BenchmarkView_ColdGrouped_5000 is the first look at a grouped list.
func BenchmarkView_ColdGrouped_5000(b *testing.B) {
	m := loaded(b, 5000)
	for _, by := range []string{"", "zone", "pool", "label:v"} {
		q := mustQuery(b, url.Values{"group": {by}})
		b.Run(by, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				v := newView(m, q)
				v.mu.Lock()
				v.sync()
				v.mu.Unlock()
			}
		})
	}
}
