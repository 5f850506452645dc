package drain

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// TestPlan_SamePodsAsKubectl: what the plan evicts is what "kubectl drain --dry-run=client" says that it evicts, with the
// same flags on the same node; where kubectl refuses to begin, so do we. The differences are these, each for a reason
// that operations.md or Classify gives:
//
//   - a pod that is on its way out is waited for, and not evicted again; kubectl evicts it;
//   - a pod of another group's DaemonSet stays; kubectl evicts it, and it comes back;
//   - pods whose owners ask not to be disturbed need a consent; kubectl does not know of that.
func TestPlan_SamePodsAsKubectl(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	pod := func(name string, spec kubetest.PodSpec) {
		spec.Namespace, spec.Name, spec.Node = ns, name, node.Name
		b.c.Pod(t, spec)
	}
	b.c.Deployment(t, 2, kubetest.PodSpec{Namespace: ns, Name: "web"})
	managed := b.madeBy(ns, kubetest.Name(t, "maker"))
	b.c.Deployment(t, 1, kubetest.PodSpec{Namespace: ns, Name: "scratch", EmptyDir: true})
	b.c.StatefulSet(t, 1, kubetest.PodSpec{Namespace: ns, Name: "db"})
	b.c.DaemonSet(t, kubetest.PodSpec{Namespace: ns, Name: "agent", EmptyDir: true})
	b.c.PDB(t, ns, "web", "2") // which neither asks
	pod("lone", kubetest.PodSpec{})
	pod("lone-data", kubetest.PodSpec{EmptyDir: true, Labels: map[string]string{"tier": "data"}})
	pod("pending", kubetest.PodSpec{Pending: true, Mutate: managed})
	pod("done", kubetest.PodSpec{EmptyDir: true})
	b.status(ns, "done", `{"phase":"Succeeded"}`)
	pod("crashed", kubetest.PodSpec{Mutate: managed})
	b.status(ns, "crashed", `{"phase":"Failed"}`)
	pod("static", kubetest.PodSpec{EmptyDir: true, Mutate: managed, Annotations: map[string]string{corev1.MirrorPodAnnotationKey: "x"}})

	// Where we differ, in pods of their own.
	free := b.held(ns, "ending", node.Name)
	if err := b.c.Client().CoreV1().Pods(ns).Delete(t.Context(), "ending", metav1.DeleteOptions{GracePeriodSeconds: new(int64(600))}); err != nil {
		t.Fatal(err)
	}
	pod("kruise", kubetest.PodSpec{Mutate: ownedBy("apps.kruise.io/v1alpha1", "DaemonSet", "foreign")})
	pod("keep", kubetest.PodSpec{Mutate: managed, Annotations: map[string]string{"karpenter.sh/do-not-disrupt": "true"}})
	differs := func(name string) bool { return slices.Contains([]string{"ending", "kruise", "keep"}, name) }

	for _, tt := range []struct {
		name  string
		flags []string
		o     fleet.DrainOptions
	}{
		{"nothing", nil, fleet.DrainOptions{}},
		{"force", []string{"--force"}, fleet.DrainOptions{Force: true}},
		{"data", []string{"--delete-emptydir-data"}, fleet.DrainOptions{DeleteEmptyDirData: true}},
		{"all", []string{"--force", "--delete-emptydir-data"}, fleet.DrainOptions{Force: true, DeleteEmptyDirData: true}},
		{"selector", []string{"--force", "--pod-selector", "tier!=data,app!=scratch"}, fleet.DrainOptions{Force: true, PodSelector: "tier!=data,app!=scratch"}},
		{"selector of one", []string{"--pod-selector", "app in (web, db)"}, fleet.DrainOptions{PodSelector: "app in (web, db)"}},
		{"grace", []string{"--force", "--delete-emptydir-data", "--grace-period", "1"}, fleet.DrainOptions{Force: true, DeleteEmptyDirData: true, GracePeriodSeconds: 1}},
		{"delete", []string{"--force", "--delete-emptydir-data", "--disable-eviction"}, fleet.DrainOptions{Force: true, DeleteEmptyDirData: true, DisableEviction: true}},
	} {
		tt.o.GracePeriodSeconds = cmp.Or(tt.o.GracePeriodSeconds, ownGrace)
		args := append([]string{"drain", node.Name, "--dry-run=client", "--ignore-daemonsets"}, tt.flags...)
		stdout, stderr, err := b.c.Kubectl(t, args...)
		var theirs []string
		for line := range strings.Lines(stdout) {
			var name string
			if _, err := fmt.Sscanf(line, "evicting pod "+ns+"/%s (dry run)", &name); err == nil && !differs(name) {
				theirs = append(theirs, name)
			}
		}
		o, ours := OptionsOf(tt.o, types.NamespacedName{})
		if ours != nil {
			t.Fatal(ours)
		}
		var mine, blocked []string
		for name, p := range b.plan(node.Name, o.Policy) {
			switch {
			case differs(name):
			case p.Verdict == fleet.VerdictEvict:
				mine = append(mine, name)
			case p.Verdict == fleet.VerdictBlock:
				blocked = append(blocked, name)
			}
		}
		slices.Sort(theirs)
		slices.Sort(mine)
		switch refused := err != nil; {
		case refused != (len(blocked) > 0):
			t.Errorf("%s: kubectl says %v: %s; blocked here: %v", tt.name, err, stderr, blocked)
		case refused: // it names those that it stumbled over
			for _, name := range blocked {
				if !strings.Contains(stderr, ns+"/"+name) {
					t.Errorf("%s: %s is blocked here, and kubectl says %s", tt.name, name, stderr)
				}
			}
		case len(theirs) == 0, !slices.Equal(mine, theirs):
			t.Errorf("%s: kubectl evicts %v, the plan %v", tt.name, theirs, mine)
		}
	}
	free()
	if n := b.c.WaitNode(t, node.Name, func(n *corev1.Node) bool { return n != nil }); n.Spec.Unschedulable {
		t.Error("a dry run has cordoned the node")
	}
}

// madeBy gives pods a controller that is there and makes none again, so that nobody takes them away.
func (b *bench) madeBy(ns, name string) func(*corev1.Pod) {
	b.t.Helper()
	m, err := b.c.Client().CoreV1().ConfigMaps(ns).Create(b.t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	return func(p *corev1.Pod) {
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: m.Name, UID: m.UID, Controller: new(true)}}
	}
}
