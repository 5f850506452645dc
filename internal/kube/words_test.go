package kube

import (
	"fmt"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// fresh is a node as decoding makes it: no string shared with anything.
func fresh(t *testing.T, i int) *corev1.Node {
	t.Helper()
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name:        fmt.Sprintf("node-%d", i),
			Labels:      map[string]string{"topology.kubernetes.io/zone": "zone-a", "kubernetes.io/hostname": fmt.Sprintf("node-%d", i), "node-role.kubernetes.io/worker": ""},
			Annotations: map[string]string{"example.com/owner": "team"},
		},
		Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "dedicated", Value: "gpu", Effect: corev1.TaintEffectNoSchedule}}},
		Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", Message: "kubelet is posting ready status"}},
			Capacity:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("8"), corev1.ResourceMemory: resource.MustParse("32Gi")},
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("10.0.0.%d", i%250)}},
			NodeInfo:   corev1.NodeSystemInfo{KubeletVersion: "v1.36.3", OSImage: "Debian"},
		},
	}
	b, err := n.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var out corev1.Node
	if err := out.Unmarshal(b); err != nil {
		t.Fatal(err)
	}
	return &out
}

func TestWords_SameNodeAndOneCopy(t *testing.T) {
	t.Parallel()
	w := NewWords()
	var nodes []*fleet.Node
	for i := range 3 {
		got := w.Node("c", fresh(t, i))
		if diff := cmp.Diff(Node("c", fresh(t, i)), got); diff != "" {
			t.Fatalf("node %d (-without +with sharing):\n%s", i, diff)
		}
		nodes = append(nodes, got)
	}
	a, b := nodes[1], nodes[2]
	same := func(what, x, y string) {
		t.Helper()
		if unsafe.StringData(x) != unsafe.StringData(y) {
			t.Errorf("%s: two copies of %q", what, x)
		}
	}
	same("label value", a.Labels["topology.kubernetes.io/zone"], b.Labels["topology.kubernetes.io/zone"])
	for x := range a.Labels {
		for y := range b.Labels {
			if x == y {
				same("label key", x, y)
			}
		}
	}
	same("condition", a.Conditions[0].Message, b.Conditions[0].Message)
	same("taint", a.Taints[0].Key, b.Taints[0].Key)
	same("info", a.Info.OSImage, b.Info.OSImage)
	same("role", a.Roles[0], b.Roles[0])
	a.Capacity.Raw["probe"] = "x" // only a test writes to a node
	if b.Capacity.Raw["probe"] != "x" {
		t.Error("two copies of the same amounts")
	}
}

func TestWords_AreBounded(t *testing.T) {
	t.Parallel()
	w := NewWords()
	for i := range maxWords {
		w.Node("c", fresh(t, i))
	}
	if len(w.words) > maxWords || len(w.tables) > maxTables {
		t.Errorf("%d words and %d tables", len(w.words), len(w.tables))
	}
}
