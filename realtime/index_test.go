package realtime

import (
	"cmp"
	"fmt"
	"net/url"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// TestRoutes_AChangeFindsWhoMaySeeIt: a view is looked at for a node that it shows, showed or may show now, and for no
// other.
func TestRoutes_AChangeFindsWhoMaySeeIt(t *testing.T) {
	t.Parallel()
	b := &bench{t: t, m: NewManager(ManagerConfig{Logger: newAlarm(t), Render: plain{}})} // not running: the test is the feeder
	b.add("a")
	b.add("b")
	zone := func(z string) map[string]string { return map[string]string{"topology.kubernetes.io/zone": z} }
	b.put("a", spec{name: "n", rv: 1, labels: zone("z1")})
	b.put("b", spec{name: "n", rv: 1, labels: zone("z1")})

	names := map[*view]string{}
	for _, text := range []string{
		"", "zone:z1", "zone:z2", "zone:z3,z2", "cordoned:true", "cordoned:no status:ready", "-zone:z1", "label:x=y",
		"some words", "role:\"\"", "type:big zone:z9",
	} {
		for _, cluster := range []string{"", "a", "b"} {
			q, err := ParseQuery(fleet.SeesAll(), cluster, url.Values{"q": {text}})
			if err != nil {
				t.Fatal(err)
			}
			v := b.m.acquire(q)
			defer b.m.release(v)
			names[v] = cmp.Or(cluster, "*") + " " + text
		}
	}
	for _, cluster := range []string{"a", "b"} {
		q := nodeQuery(fleet.SeesAll(), fleet.NodeRef{Cluster: cluster, Name: "n"})
		v := b.m.acquire(q)
		defer b.m.release(v)
		names[v] = cluster + " node n"
	}
	concerned := func() (got []string) {
		for v := range b.m.concerned() {
			got = append(got, names[v])
		}
		slices.Sort(got)
		return got
	}
	of := func(clusters []string, texts ...string) (want []string) {
		for _, c := range clusters {
			for _, text := range texts {
				want = append(want, c+" "+text)
			}
		}
		slices.Sort(want)
		return want
	}
	either := []string{"*", "a"}
	always := []string{"", "-zone:z1", "label:x=y", "some words"} // these say nothing that an index knows

	if got := concerned(); len(got) != len(names) {
		t.Errorf("at first: %d views, want all %d", len(got), len(names))
	}
	if got := concerned(); len(got) != 0 {
		t.Errorf("nothing happened: %v", got)
	}
	b.put("a", spec{name: "n", rv: 2, labels: zone("z2")})
	want := append(of(either, append(always, "zone:z1", "zone:z2", "zone:z3,z2", "cordoned:no status:ready", `role:""`)...), "a node n")
	slices.Sort(want)
	if diff := gocmp.Diff(want, concerned()); diff != "" {
		t.Errorf("moved to another zone (-want +got):\n%s", diff)
	}
	b.put("a", spec{name: "m", rv: 3, labels: zone("z1"), cordoned: true})
	want = of(either, append(always, "zone:z1", "cordoned:true", "cordoned:no status:ready", `role:""`)...)
	if diff := gocmp.Diff(want, concerned()); diff != "" {
		t.Errorf("new and cordoned (-want +got):\n%s", diff)
	}
	b.put("a", spec{name: "m", rv: 4, labels: zone("z1"), cordoned: true}) // a heartbeat
	if got := concerned(); len(got) != 0 {
		t.Errorf("a heartbeat: %v", got)
	}
	for i := range 600 {
		b.put("a", spec{name: fmt.Sprint("x", i), rv: 5, labels: zone(fmt.Sprint("zz", i))})
	}
	if got := len(concerned()); got != 2*11+1 { // of * and a each, and the page of a's node
		t.Errorf("very many changes: %d views, want all of the cluster", got)
	}
	if err := b.m.Remove("b"); err != nil {
		t.Fatal(err)
	}
	if got := concerned(); len(got) != len(names) {
		t.Errorf("a cluster went: %d views, want all %d", len(got), len(names))
	}
}

// TestView_ColdFromTheIndex: what the index finds is what a look at everything finds.
func TestView_ColdFromTheIndex(t *testing.T) {
	t.Parallel()
	b := &bench{t: t, m: NewManager(ManagerConfig{Logger: newAlarm(t), Render: plain{}})}
	b.add("a")
	for i := range 60 {
		b.put("a", spec{
			name: fmt.Sprintf("n%02d", i), rv: 1, cordoned: i%10 == 0,
			labels: map[string]string{"topology.kubernetes.io/zone": fmt.Sprintf("z%d", i%6)},
		})
	}
	for i := range 5 {
		b.m.board("a").remove(fmt.Sprintf("n%02d", 6*i), "", "")
	}
	narrow := 0
	for _, text := range []string{"zone:z1", "zone:z0,z0", "zone:z0,z5 cordoned:true", "cordoned:true", "zone:none", "status:Ready"} {
		q, err := ParseQuery(fleet.SeesAll(), "", url.Values{"q": {text}})
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := b.m.board("a").having(q.telling()); ok {
			narrow++
		}
		var want []string
		for n := range b.m.board("a").slots {
			if node, _ := b.m.board("a").node(n); node != nil && q.Match(node) {
				want = append(want, n)
			}
		}
		slices.Sort(want)
		var got []string
		for _, r := range b.m.Matching(q, 100) {
			got = append(got, r.Name)
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
	}
	if narrow != 5 {
		t.Errorf("the index served %d of the queries, want all but status:Ready", narrow)
	}
}

// TestViews_AreBounded: views that differ hold a row per node each, and a browser can make up as many as it likes.
func TestViews_AreBounded(t *testing.T) {
	t.Parallel()
	b := newBench(t, ManagerConfig{ViewItems: 25}, StreamerConfig{}, "a")
	for i := range 10 {
		b.put("a", spec{name: fmt.Sprint("n", i), rv: 1})
	}
	var open []*stream
	for i := range 3 { // the third begins at 20 of 25
		open = append(open, b.open(fmt.Sprintf("/nodes?json=1&q=-x%d", i)))
		open[i].until("synced", func(e got) bool { return e.name == typeSynced })
	}
	if _, status, err := b.dial("/nodes?json=1&q=-x3"); err != nil || status != 429 {
		t.Errorf("a fourth view: %d, %v; want 429", status, err)
	}
	b.open("/nodes?json=1&q=-x1").until("synced", func(e got) bool { return e.name == typeSynced })
	for i := range 20 { // pages are served, and leave nothing behind
		if w := b.m.Window(mustParse(t, "a"), "en"); w.Total != 10 {
			t.Fatalf("page %d: %d nodes", i, w.Total)
		}
	}
	if got := b.m.items.Load(); got != 30 {
		t.Errorf("%d items, want those of the three views", got)
	}
	for _, s := range open {
		s.close()
	}
	eventually(t, "room again", func() bool { return b.m.items.Load() <= 20 })
}

// TestWindow_UnknownIsNotZero: before a cluster has its nodes there is nothing to count.
func TestWindow_UnknownIsNotZero(t *testing.T) {
	t.Parallel()
	b := &bench{t: t, m: NewManager(ManagerConfig{Logger: newAlarm(t), Render: plain{}})}
	b.add("a")
	b.add("b")
	if c := b.m.Window(mustParse(t, ""), "en").Counts; !c.Waiting {
		t.Errorf("no cluster has its nodes: %+v", c)
	}
	b.m.board("b").setStatus(func(c *fleet.Cluster) { c.State, c.SyncedAt = fleet.ClusterLive, time.Now() })
	if c := b.m.Window(mustParse(t, ""), "en").Counts; c.Waiting {
		t.Errorf("one cluster has its nodes, none at all: %+v", c)
	}
	if c := b.m.Window(mustParse(t, "a"), "en").Counts; !c.Waiting {
		t.Errorf("the one cluster in view has not: %+v", c)
	}
}

// TestManager_ReadersOfSeveralBoardsNeverWaitForEachOther: a writer that waits for a board keeps further readers out, so
// readers of several boards must take them in one order.
func TestManager_ReadersOfSeveralBoardsNeverWaitForEachOther(t *testing.T) {
	t.Parallel()
	b := &bench{t: t, m: NewManager(ManagerConfig{Logger: newAlarm(t), Render: plain{}})}
	names := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	for _, name := range names {
		b.add(name)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 20_000 {
				b.m.at(everyBoard, func(moment) { runtime.Gosched() })
			}
		})
	}
	for _, name := range names {
		all.Go(func() {
			for range 20_000 {
				b.m.board(name).begin()
			}
		})
	}
	all.Wait()
}
