package realtime

import (
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

func testBoard(t testing.TB) *board {
	t.Helper()
	return newBoard(kube.Cluster{Name: "a"}, new(atomic.Uint64), 8, func() {})
}

func apply(t testing.TB, b *board, s spec) {
	t.Helper()
	if err := b.apply(s.node()); err != nil {
		t.Fatalf("apply(%s): %v", s.name, err)
	}
}

// TestCompare_NamesWhatChanged is the table of what a person notices.
func TestCompare_NamesWhatChanged(t *testing.T) {
	t.Parallel()
	base := func() *corev1.Node {
		n := spec{name: "n", rv: 1, labels: map[string]string{"a": "1"}}.node()
		n.Annotations = map[string]string{"other": "1"}
		n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}}
		return n
	}
	at := metav1.NewTime(epochStart.Add(time.Hour))
	tests := []struct {
		name   string
		change func(*corev1.Node)
		want   []string
	}{
		{"nothing", func(*corev1.Node) {}, nil},
		{"resource version", func(n *corev1.Node) { n.ResourceVersion = "2" }, nil},
		{"heartbeat", func(n *corev1.Node) { n.Status.Conditions[0].LastHeartbeatTime = at }, nil},
		{"annotation of a controller", func(n *corev1.Node) { n.Annotations["other"] = "2" }, nil},
		{"images", func(n *corev1.Node) { n.Status.Images = []corev1.ContainerImage{{Names: []string{"x"}}} }, nil},
		{"pod CIDR", func(n *corev1.Node) { n.Spec.PodCIDR = "10.0.0.0/24" }, nil},
		{"cordon", func(n *corev1.Node) { n.Spec.Unschedulable = true }, []string{"Schedulable", "Annotations"}},
		{"cordon note", func(n *corev1.Node) { n.Annotations[kube.CordonAnnotation] = `{"v":1}` }, []string{"Annotations"}},
		{"cordon reason", func(n *corev1.Node) { n.Annotations[kube.CordonReasonAnnotation] = "x" }, []string{"Annotations"}},
		{"label value", func(n *corev1.Node) { n.Labels["a"] = "2" }, []string{"Labels"}},
		{"label gone", func(n *corev1.Node) { delete(n.Labels, "a") }, []string{"Labels"}},
		{"role", func(n *corev1.Node) { n.Labels["node-role.kubernetes.io/gpu"] = "" }, []string{"Labels", "Roles"}},
		{"taint added", func(n *corev1.Node) { n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: "x"}) }, []string{"Taints"}},
		{"taint effect", func(n *corev1.Node) { n.Spec.Taints[0].Effect = corev1.TaintEffectNoExecute }, []string{"Taints"}},
		{"condition status", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionFalse }, []string{"Conditions"}},
		{"condition reason", func(n *corev1.Node) { n.Status.Conditions[0].Reason = "x" }, []string{"Conditions"}},
		{"condition message", func(n *corev1.Node) { n.Status.Conditions[0].Message = "x" }, []string{"Conditions"}},
		{"condition transition", func(n *corev1.Node) { n.Status.Conditions[0].LastTransitionTime = at }, []string{"Conditions"}},
		{"capacity of a device plugin", func(n *corev1.Node) { n.Status.Capacity["nvidia.com/gpu"] = resource.MustParse("4") }, []string{"Capacity"}},
		{"allocatable", func(n *corev1.Node) { n.Status.Allocatable[corev1.ResourceCPU] = resource.MustParse("2") }, []string{"Allocatable"}},
		{"address", func(n *corev1.Node) { n.Status.Addresses[0].Address = "10.0.0.2" }, []string{"Addresses"}},
		{"kubelet version", func(n *corev1.Node) { n.Status.NodeInfo.KubeletVersion = "v1.35.0" }, []string{"Info"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := testBoard(t)
			if err := b.apply(base()); err != nil {
				t.Fatal(err)
			}
			before := b.clock.Load()
			n := base()
			tt.change(n)
			if err := b.apply(n); err != nil {
				t.Fatal(err)
			}
			newest, ver := b.node("n")
			if d := cmp.Diff(append([]string{}, tt.want...), ver.changedSince(before).names()); d != "" {
				t.Errorf("changed fields (-want +got): %s", d)
			}
			if moved := b.clock.Load() != before; moved != (len(tt.want) > 0) {
				t.Errorf("revision moved: %t, want %t", moved, len(tt.want) > 0)
			}
			if newest.ResourceVersion != n.ResourceVersion || !newest.Conditions[0].LastHeartbeat.Equal(n.Status.Conditions[0].LastHeartbeatTime.Time) {
				t.Errorf("the newest object is not stored: %+v", newest)
			}
			if newest.Revision != ver.node.Revision {
				t.Errorf("revision %d of the newest object, want %d", newest.Revision, ver.node.Revision)
			}
		})
	}
}

func TestBoard_ChangesAddUp(t *testing.T) {
	t.Parallel()
	b := testBoard(t)
	apply(t, b, spec{name: "n", rv: 1})
	start := b.clock.Load()
	apply(t, b, spec{name: "n", rv: 2, cordoned: true})
	middle := b.clock.Load()
	apply(t, b, spec{name: "n", rv: 3, cordoned: true, labels: map[string]string{"x": "y"}})
	_, ver := b.node("n")
	if d := cmp.Diff([]string{"Schedulable", "Labels", "Annotations"}, ver.changedSince(start).names()); d != "" {
		t.Errorf("since the start: %s", d)
	}
	if d := cmp.Diff([]string{"Labels"}, ver.changedSince(middle).names()); d != "" {
		t.Errorf("since the middle: %s", d)
	}
}

func TestBoard_Observe(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		do   func(t *testing.T, b *board)
		want string
	}{
		{"newer is taken", func(t *testing.T, b *board) {
			apply(t, b, spec{name: "n", rv: 5})
			observe(t, b, spec{name: "n", rv: 7, cordoned: true}, true)
		}, "uid-n 7 false"},
		{"older is not", func(t *testing.T, b *board) {
			apply(t, b, spec{name: "n", rv: 5})
			observe(t, b, spec{name: "n", rv: 4, cordoned: true}, false)
		}, "uid-n 5 true"},
		{"numbers, not strings", func(t *testing.T, b *board) {
			apply(t, b, spec{name: "n", rv: 99})
			observe(t, b, spec{name: "n", rv: 100, cordoned: true}, true)
		}, "uid-n 100 false"},
		{"unknown node is not made", func(t *testing.T, b *board) { observe(t, b, spec{name: "n", rv: 7}, false) }, ""},
		{"deleted node stays deleted", func(t *testing.T, b *board) {
			apply(t, b, spec{name: "n", rv: 5})
			b.remove("n", "uid-n", "6")
			observe(t, b, spec{name: "n", rv: 7}, false)
		}, ""},
		{"namesake is left alone", func(t *testing.T, b *board) {
			apply(t, b, spec{name: "n", uid: "new", rv: 5})
			observe(t, b, spec{name: "n", uid: "old", rv: 7, cordoned: true}, false)
		}, "new 5 true"},
		{"late watch event does not take it back", func(t *testing.T, b *board) {
			apply(t, b, spec{name: "n", rv: 5})
			observe(t, b, spec{name: "n", rv: 7, cordoned: true}, true)
			apply(t, b, spec{name: "n", rv: 6})
		}, "uid-n 7 false"},
		{"watch goes on from there", func(t *testing.T, b *board) {
			apply(t, b, spec{name: "n", rv: 5})
			observe(t, b, spec{name: "n", rv: 7, cordoned: true}, true)
			apply(t, b, spec{name: "n", rv: 6})
			apply(t, b, spec{name: "n", rv: 7, cordoned: true})
			apply(t, b, spec{name: "n", rv: 8})
		}, "uid-n 8 true"},
		{"deletion after it counts", func(t *testing.T, b *board) {
			apply(t, b, spec{name: "n", rv: 5})
			observe(t, b, spec{name: "n", rv: 7, cordoned: true}, true)
			b.remove("n", "uid-n", "8")
		}, ""},
		{"namesake after it counts", func(t *testing.T, b *board) {
			apply(t, b, spec{name: "n", rv: 5})
			observe(t, b, spec{name: "n", rv: 7, cordoned: true}, true)
			apply(t, b, spec{name: "n", uid: "new", rv: 9})
		}, "new 9 true"},
		{"late deletion of an older namesake does not count", func(t *testing.T, b *board) {
			apply(t, b, spec{name: "n", uid: "new", rv: 7})
			observe(t, b, spec{name: "n", uid: "new", rv: 9, cordoned: true}, true)
			b.remove("n", "old", "6")
		}, "new 9 false"},
		{"list that was under way does not take it back", func(t *testing.T, b *board) {
			apply(t, b, spec{name: "n", rv: 5})
			b.begin()
			observe(t, b, spec{name: "n", rv: 7, cordoned: true}, true)
			relist(t, b, spec{name: "n", rv: 6})
		}, "uid-n 7 false"},
		{"list of a restored server is believed", func(t *testing.T, b *board) {
			apply(t, b, spec{name: "n", rv: 5})
			observe(t, b, spec{name: "n", rv: 7, cordoned: true}, true)
			b.begin()
			relist(t, b, spec{name: "n", rv: 3})
		}, "uid-n 3 true"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := testBoard(t)
			tt.do(t, b)
			got := ""
			if n, _ := b.node("n"); n != nil {
				got = fmt.Sprintf("%s %s %t", n.UID, n.ResourceVersion, n.Schedulable)
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func observe(t *testing.T, b *board, s spec, want bool) {
	t.Helper()
	taken, err := b.observe(s.node())
	if err != nil || taken != want {
		t.Errorf("observe: got %t, %v; want %t", taken, err, want)
	}
}

func arrivals(b *board, nodes []*corev1.Node) (out []*arrival) {
	for _, n := range nodes {
		out = append(out, b.convert(n))
	}
	return out
}

func relist(t *testing.T, b *board, specs ...spec) {
	t.Helper()
	var nodes []*corev1.Node
	for _, s := range specs {
		nodes = append(nodes, s.node())
	}
	if err := b.replace(arrivals(b, nodes)); err != nil {
		t.Fatalf("replace: %v", err)
	}
}

// TestBoard_ObserveThenWatchIsSilent: the watch's event of an own write must not push a second time.
func TestBoard_ObserveThenWatchIsSilent(t *testing.T) {
	t.Parallel()
	b := testBoard(t)
	apply(t, b, spec{name: "n", rv: 5})
	observe(t, b, spec{name: "n", rv: 7, cordoned: true}, true)
	before := b.clock.Load()
	apply(t, b, spec{name: "n", rv: 7, cordoned: true})
	if got := b.clock.Load(); got != before {
		t.Errorf("revision moved from %d to %d", before, got)
	}
}

// TestBoard_ObserveLeavesTheObjectAlone: the writer still reads what it got.
func TestBoard_ObserveLeavesTheObjectAlone(t *testing.T) {
	t.Parallel()
	b := testBoard(t)
	apply(t, b, spec{name: "n", rv: 5})
	n := spec{name: "n", rv: 7}.node()
	n.Status.Images = []corev1.ContainerImage{{Names: []string{"x"}}}
	if _, err := b.observe(n); err != nil {
		t.Fatal(err)
	}
	if len(n.Status.Images) != 1 {
		t.Error("observe stripped the caller's object")
	}
}

func TestBoard_RelistLeavesNoGhost(t *testing.T) {
	t.Parallel()
	b := testBoard(t)
	for _, name := range []string{"x", "y", "z"} {
		apply(t, b, spec{name: name, rv: 1})
	}
	relist(t, b, spec{name: "y", rv: 2, cordoned: true})
	if n, _ := b.node("x"); n != nil {
		t.Error("x is still there")
	}
	if s := b.state(); s.Nodes != 1 || s.Ready != 1 || s.Cordoned != 1 {
		t.Errorf("counters: %+v", s)
	}
	relist(t, b)
	if s := b.state(); s.Nodes != 0 || s.Ready != 0 || s.Cordoned != 0 {
		t.Errorf("counters of an empty cluster: %+v", s)
	}
}

func TestBoard_RemembersAFewDeletionsOnly(t *testing.T) {
	t.Parallel()
	b := testBoard(t) // 8 tombstones
	for round := range 50 {
		for i := range 30 {
			apply(t, b, spec{name: "n" + strconv.Itoa(i), rv: 1 + round})
		}
		for i := range 30 {
			b.remove("n"+strconv.Itoa(i), "", "")
		}
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	if len(b.slots) != 8 || b.dead != 8 || len(b.tombs) > 2*8+16 {
		t.Errorf("%d slots, %d dead, %d tombs; want 8, 8, at most 32", len(b.slots), b.dead, len(b.tombs))
	}
	if log, complete := b.since(b.purged); !complete || len(log) != 8 {
		t.Errorf("since the horizon: %d entries, complete %t", len(log), complete)
	}
	if _, complete := b.since(b.purged - 1); complete {
		t.Error("before the horizon counts as complete")
	}
	if len(b.index) != 0 {
		t.Errorf("the index keeps %v", b.index)
	}
}

func TestBoard_TombstoneOfUnknownType(t *testing.T) {
	t.Parallel()
	m := NewManager(ManagerConfig{Logger: quietLog, Render: plain{}})
	if err := m.Add(kube.Cluster{Name: "a", Fault: errNoServer}); err != nil {
		t.Fatal(err)
	}
	k := m.runs["a"].sink
	if err := k.Add(spec{name: "n", rv: 1}.node()); err != nil {
		t.Fatal(err)
	}
	if err := k.Delete(deletedUnknown("n", nil)); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	if _, err := m.Node(fleet.NodeRef{Cluster: "a", Name: "n"}); err == nil {
		t.Error("the node is still there")
	}
	if err := k.Delete("what"); err == nil {
		t.Error("a string was deleted without an error")
	}
	if err := k.Add(nil); err == nil {
		t.Error("nothing was added without an error")
	}
	if err := k.Replace([]any{1}, ""); err == nil {
		t.Error("a number was listed without an error")
	}
}
