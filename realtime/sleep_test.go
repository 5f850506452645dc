package realtime

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// TestSleep_LeastRecentlyViewedGoAndComeBack: over the limit, the clusters that nobody looks at lose their nodes and
// their watch, say so, and have both again for the next viewer. Lists of all clusters neither hold nor wake them.
func TestSleep_LeastRecentlyViewedGoAndComeBack(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	name := k.Node(t, kubetest.NodeSpec{}).Name
	m := running(t, ManagerConfig{CacheBytes: 1, SleepAfter: time.Nanosecond})
	everywhere := m.acquire(mustParse(t, ""))
	defer m.release(everywhere)

	for _, c := range []string{"a", "b"} {
		add(t, m, cluster(t, c, k.REST()))
	}
	waitState(t, m, "a", fleet.ClusterAsleep)
	s := waitState(t, m, "b", fleet.ClusterAsleep)
	if s.Nodes == 0 || s.Synced() {
		t.Errorf("asleep: %d nodes, synced %t; want the number as of then and no claim to know them", s.Nodes, s.Synced())
	}
	if got := m.Window(mustParse(t, ""), "en"); got.Total != 0 {
		t.Errorf("the list of all clusters shows %d nodes of sleeping clusters", got.Total)
	}
	if got := m.board("b").bytes.Load(); got != 0 {
		t.Errorf("asleep and still %d bytes", got)
	}
	mapped := m.stateOf("b")
	if mapped.State != fleet.ClusterAsleep {
		t.Errorf("the list of all clusters woke b: %s", mapped.State)
	}

	// Somebody opens the page of b, and it stays awake as long as that is open.
	v := m.acquire(mustParse(t, "b"))
	p := v.watch(pageKey{1, 50})
	waitState(t, m, "b", fleet.ClusterLive)
	waitNode(t, m, fleet.NodeRef{Cluster: "b", Name: name}, "awake again", func(*fleet.Node) bool { return true })
	if again := m.economise(); again != 0 || m.stateOf("b").State != fleet.ClusterLive {
		t.Errorf("with its page open: %s, look again in %v", m.stateOf("b").State, again)
	}
	if got := m.stateOf("a").State; got != fleet.ClusterAsleep {
		t.Errorf("a is %s, nobody looked at it", got)
	}
	v.unwatch(p)
	m.release(v)
	m.poke()
	waitState(t, m, "b", fleet.ClusterAsleep)

	// A look at one node wakes too, and never says that the node does not exist.
	ref := fleet.NodeRef{Cluster: "a", Name: name}
	if _, err := m.Node(ref); !errors.Is(err, fleet.ErrUnavailable) || !strings.Contains(err.Error(), "asleep") {
		t.Errorf("node of a sleeping cluster: %v", err)
	}
	eventually(t, "the node", func() bool { _, err := m.Node(ref); return err == nil })
}

func TestSleep_NotSoonAfterALook(t *testing.T) {
	t.Parallel()
	m := NewManager(ManagerConfig{Logger: newAlarm(t), Render: plain{}, CacheBytes: 1, SleepAfter: time.Hour})
	b := &bench{t: t, m: m}
	board := b.add("a")
	b.put("a", spec{name: "n", rv: 1})
	board.setStatus(func(c *fleet.Cluster) { c.State, c.SyncedAt = fleet.ClusterLive, time.Now() })
	m.look("a")
	if d := m.economise(); d <= 59*time.Minute || d > time.Hour {
		t.Errorf("look again in %v, want about an hour", d)
	}
}

// TestBoard_WeighsWhatItHolds: whatever happens to nodes, what went is not counted any more.
func TestBoard_WeighsWhatItHolds(t *testing.T) {
	t.Parallel()
	b := testBoard(t)
	for i := range 20 {
		apply(t, b, spec{name: fmt.Sprint("n", i), rv: 1, labels: map[string]string{"k": strings.Repeat("x", i)}})
	}
	full := b.bytes.Load()
	apply(t, b, spec{name: "n3", rv: 2, labels: map[string]string{"k": strings.Repeat("x", 500)}})
	if got := b.bytes.Load() - full; got < 490 || got > 1100 {
		t.Errorf("half a kilobyte more weighs %d, packed and decoded", got)
	}
	for i := range 20 {
		b.remove(fmt.Sprint("n", i), "", "")
	}
	if got := b.bytes.Load(); got != 0 {
		t.Errorf("an empty board weighs %d", got)
	}
}

func TestRowCache_KeepsItsLimit(t *testing.T) {
	t.Parallel()
	one := cost([]byte(strings.Repeat("x", 1000)))
	c := newRowCache(3 * one)
	nodes := make([]cells, 5)
	made := map[int]int{}
	get := func(i int) {
		t.Helper()
		b := nodes[i].get(c, "en", func() []byte { made[i]++; return []byte(strings.Repeat(string(rune('a'+i)), 1000)) })
		if len(b) != 1000 || b[0] != byte('a'+i) {
			t.Fatalf("row %d is %.10q", i, b)
		}
		if c.size() > 3*one {
			t.Fatalf("%d bytes, limit %d", c.size(), 3*one)
		}
	}
	for _, i := range []int{0, 1, 2, 0, 3, 0, 1} { // 3 takes the place of 1, then 1 that of 2
		get(i)
	}
	for i, want := range map[int]int{0: 1, 1: 2, 2: 1, 3: 1} {
		if made[i] != want {
			t.Errorf("row %d was rendered %d times, want %d", i, made[i], want)
		}
	}
	if h, m, e := c.hits.Load(), c.misses.Load(), c.evicted.Load(); h != 2 || m != 5 || e != 2 {
		t.Errorf("%d hits, %d misses, %d evictions; want 2, 5, 2", h, m, e)
	}
	nodes[0].drop(c)
	if c.size() != 2*one {
		t.Errorf("after one went: %d bytes, want %d", c.size(), 2*one)
	}
	c.setLimit(0)
	if c.size() != one {
		t.Errorf("with no room: %d bytes, want the last row only", c.size())
	}
	get(4)
	if c.size() != one {
		t.Errorf("with no room: %d bytes, want the last row only", c.size())
	}
}

// TestRowCache_ManyAtOnce: the right bytes for everybody while everything is evicted all the time, and the count is
// exact at the end.
func TestRowCache_ManyAtOnce(t *testing.T) {
	t.Parallel()
	c := newRowCache(4 * cost(make([]byte, 64)))
	nodes := make([]cells, 16)
	var readers sync.WaitGroup
	for r := range 4 {
		readers.Go(func() {
			for i := range 4000 {
				n := (i*7 + r) % len(nodes)
				want := strings.Repeat(string(rune('a'+n)), 64)
				if got := nodes[n].get(c, "en", func() []byte { return []byte(want) }); string(got) != want {
					t.Errorf("row %d is %q", n, got)
					return
				}
				if i%97 == 0 {
					nodes[n].drop(c)
				}
			}
		})
	}
	readers.Wait()
	for i := range nodes {
		nodes[i].drop(c)
	}
	if c.size() != 0 || c.head.next != &c.head {
		t.Errorf("empty and still %d bytes", c.size())
	}
}

func mustParse(t testing.TB, cluster string) *Query {
	t.Helper()
	q, err := ParseQuery(fleet.SeesAll(), cluster, url.Values{})
	if err != nil {
		t.Fatal(err)
	}
	return q
}
