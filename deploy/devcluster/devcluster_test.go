package main

import (
	"encoding/json"
	"io"
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestParse(t *testing.T) {
	t.Parallel()
	s, err := parse([]string{
		"--dir", "d", "--cluster", "a", "--cluster", "b:3", "--cluster", "c:4:bare", "--stdin", "--rm", "--trickle", "0.5",
		"--token", "secret:eve:system:masters,team", "--arg", "kwok=--v=-4",
	}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if want := []clusterSpec{{"a", 0, "none"}, {"b", 3, "fleet"}, {"c", 4, "bare"}}; !slices.Equal(s.clusters, want) {
		t.Errorf("clusters = %v, want %v", s.clusters, want)
	}
	if want := []token{{"secret", "eve", []string{"system:masters", "team"}}}; !reflect.DeepEqual(s.tokens, want) {
		t.Errorf("tokens = %v, want %v", s.tokens, want)
	}
	if want := map[string][]string{"kwok": {"--v=-4"}}; !reflect.DeepEqual(s.args, want) {
		t.Errorf("args = %v, want %v", s.args, want)
	}
	if !s.stdin || !s.remove || s.trickle != 0.5 {
		t.Errorf("settings = %+v", s)
	}
}

func TestParse_Refuses(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"--cluster", "a"},
		{"--dir", "d"},
		{"--dir", "d", "--cluster", "a", "--cluster", "a"},
		{"--dir", "d", "--cluster", "../a"},
		{"--dir", "d", "--cluster", "a:x"},
		{"--dir", "d", "--cluster", "a:1:huge"},
		{"--dir", "d", "--cluster", "a:1:bare:more"},
		{"--dir", "d", "--cluster", "a", "--token", "t"},
		{"--dir", "d", "--cluster", "a", "--arg", "kubelet=--x"},
		{"--dir", "d", "--cluster", "a", "more"},
	} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
}

func generated(name string, nodes int, profile string) []*node {
	c := &cluster{clusterSpec: clusterSpec{name: name, nodes: nodes, profile: profile}, opts: &options{}}
	return newGenerator(c).nodes(nodes, profile == "fleet")
}

func TestNodes_SameNameSameNodes(t *testing.T) {
	t.Parallel()
	names := func(nodes []*node) (list []string) {
		for _, n := range nodes {
			list = append(list, n.Name+n.Status.NodeInfo.KubeletVersion+n.Spec.ProviderID)
		}
		return list
	}
	a := names(generated("a", 50, "fleet"))
	if !slices.Equal(a, names(generated("a", 50, "fleet"))) {
		t.Error("the same cluster is another one the second time")
	}
	if slices.Equal(a[2:], names(generated("b", 50, "fleet"))[2:]) {
		t.Error("two clusters are the same")
	}
}

func TestNodes_Fleet(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 2, 3, 9, 30, 1000} {
		nodes := generated("a", size, "fleet")
		if len(nodes) != size {
			t.Fatalf("%d nodes, want %d", len(nodes), size)
		}
		seen, address := map[string]bool{}, map[string]bool{}
		var cordoned, notReady, offline int
		for _, n := range nodes {
			if seen[n.Name] || address[n.Status.Addresses[0].Address] {
				t.Fatalf("two nodes named %s or with its address %s", n.Name, n.Status.Addresses[0].Address)
			}
			seen[n.Name], address[n.Status.Addresses[0].Address] = true, true
			if n.cordoned {
				cordoned++
			}
			if !isReady(n) {
				notReady++
			}
			if _, ok := n.Labels[offlineLabel]; ok {
				offline++
			}
		}
		if size >= 30 && (cordoned == 0 || offline == 0 || notReady <= offline) {
			t.Errorf("%d nodes: %d cordoned, %d not ready, %d offline", size, cordoned, notReady, offline)
		}
	}
}

func TestNodes_Weight(t *testing.T) {
	t.Parallel()
	for _, n := range generated("a", 100, "bare") {
		data, err := json.Marshal(n.Node)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) < 9_000 || len(data) > 13_000 {
			t.Errorf("%s weighs %d bytes, want about 11,000", n.Name, len(data))
		}
		if !isReady(n) || n.cordoned {
			t.Errorf("%s of a bare cluster is in trouble", n.Name)
		}
		if n.Labels[poolLabel] == "gpu" {
			if q := n.Status.Allocatable["nvidia.com/gpu"]; q.Value() != 4 {
				t.Errorf("%s has %s GPUs", n.Name, q.String())
			}
		}
		if len(n.Status.Conditions) != 5 || n.Labels[corev1.LabelTopologyZone] == "" {
			t.Errorf("%s lacks conditions or a zone", n.Name)
		}
	}
}

func TestEach_StopsAtTheFirstError(t *testing.T) {
	t.Parallel()
	items := make([]int, 100)
	calls := 0
	err := each(1, items, func(int) error {
		calls++
		return io.ErrUnexpectedEOF
	})
	if err == nil || calls != 1 {
		t.Errorf("error %v after %d calls, want one of each", err, calls)
	}
}

func TestReservePorts_OneRowEach(t *testing.T) {
	t.Parallel()
	r, err := reservePorts("a", "b")
	if err != nil {
		t.Fatal(err)
	}
	base := r.ports["a"] - 1
	if _, err := reserveRow(base, []string{"x"}); err == nil {
		t.Error("a row is given away twice")
	}
	r.release()
	again, err := reserveRow(base, []string{"x"})
	if err != nil {
		t.Fatalf("after its release: %v", err)
	}
	again.release()
}
