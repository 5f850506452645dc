package drain

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// machine is a ready node with 4 CPUs and 10 places for pods, with changes.
func machine(name string, change ...func(*corev1.Node)) corev1.Node {
	n := corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{corev1.LabelHostname: name}},
		Status: corev1.NodeStatus{
			Allocatable: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourcePods: resource.MustParse("10"),
			},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		},
	}
	for _, f := range change {
		f(&n)
	}
	return n
}

func tainted(key string, effect corev1.TaintEffect) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Effect: effect}) }
}

func on(node string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.NodeName = node } }

func cpu(amount string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers = []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(amount)},
		}}}
	}
}

func port(n int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers = []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{{HostPort: n}}}}
	}
}

func claim(name string) func(*corev1.Pod) {
	return volume("data", corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}})
}

// reading is a look at a whole cluster.
func reading(nodes []corev1.Node, pods ...*corev1.Pod) *Reading {
	r := &Reading{Cluster: "c", At: noon, Nodes: nodes, PodsOf: map[string]bool{}, AllPods: true}
	for _, n := range nodes {
		r.PodsOf[n.Name] = true
	}
	for _, p := range pods {
		r.Pods = append(r.Pods, *p)
	}
	return r
}

func codes(impacts []fleet.Impact) []string {
	var out []string
	for _, i := range impacts {
		out = append(out, i.Code)
	}
	return out
}

// TestNewPlan_Impact is operations §2.2.
func TestNewPlan_Impact(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		pods []*corev1.Pod
		add  func(*Reading)
		want []string // of the first pod
	}{
		{name: "one of several", pods: []*corev1.Pod{fixture("p")}},
		{
			name: "PV-20 single replica, through the ReplicaSet", pods: []*corev1.Pod{fixture("p")}, want: []string{ImpactSingleReplica},
			add: func(r *Reading) { r.Deployments[0].Spec.Replicas = new(int32(1)) },
		},
		{name: "PV-20 all replicas on nodes of the batch", pods: []*corev1.Pod{fixture("p"), fixture("q", on("n2")), fixture("r", on("n2"))}, want: []string{ImpactAllReplicas}},
		{name: "PV-20 not all: one is terminating", pods: []*corev1.Pod{fixture("p"), fixture("q", on("n2")), fixture("r", on("n2"), deleted(0))}},
		{name: "PV-20 not all: one is elsewhere", pods: []*corev1.Pod{fixture("p"), fixture("q", on("n2")), fixture("r", on("n3"))}},
		{name: "PV-21 StatefulSet", pods: []*corev1.Pod{fixture("p", ownedBy("apps/v1", "StatefulSet", "db"))}, want: []string{ImpactSingleReplica, ImpactStateful}},
		{name: "PV-22 Job", pods: []*corev1.Pod{fixture("p", ownedBy("batch/v1", "Job", "sum"))}, want: []string{ImpactJob}},
		{name: "PV-22 a Job's pod that has ended", pods: []*corev1.Pod{fixture("p", ownedBy("batch/v1", "Job", "sum"), phase(corev1.PodSucceeded))}},
		{name: "PV-23, PV-24 lost with its data", pods: []*corev1.Pod{fixture("p", orphan, scratch)}, want: []string{ImpactForever, ImpactDataLoss}},
		{name: "PV-25 critical", pods: []*corev1.Pod{fixture("p", func(p *corev1.Pod) { p.Spec.PriorityClassName = "system-cluster-critical" })}, want: []string{ImpactCritical}},
		{name: "PV-25 of the system", pods: []*corev1.Pod{fixture("p", func(p *corev1.Pod) { p.Namespace = "kube-system" })}, want: []string{ImpactCritical}},
		{name: "PV-26 port and network of the host", pods: []*corev1.Pod{fixture("p", port(80), func(p *corev1.Pod) { p.Spec.HostNetwork = true })}, want: []string{ImpactHostPort, ImpactHostNetwork}},
		{name: "PV-26 spread", pods: []*corev1.Pod{fixture("p", func(p *corev1.Pod) {
			p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{TopologyKey: "zone", WhenUnsatisfiable: corev1.DoNotSchedule}, {TopologyKey: "rack", WhenUnsatisfiable: corev1.ScheduleAnyway}}
		})}, want: []string{ImpactSpread}},
		{name: "DR-09 can start nowhere else", pods: []*corev1.Pod{fixture("p", claim("local"))}, want: []string{ImpactPinned}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := reading([]corev1.Node{machine("n1"), machine("n2"), machine("n3")}, tt.pods...)
			r.Deployments = []appsv1.Deployment{{ObjectMeta: metav1.ObjectMeta{Name: "web", UID: "uid-web"}, Spec: appsv1.DeploymentSpec{Replicas: new(int32(3))}}}
			set := appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: "web-1", UID: "uid-web-1"}, Spec: appsv1.ReplicaSetSpec{Replicas: new(int32(9))}}
			set.OwnerReferences = []metav1.OwnerReference{{Kind: "Deployment", Name: "web", UID: "uid-web", Controller: new(true)}}
			r.ReplicaSets = []appsv1.ReplicaSet{set}
			r.StatefulSets = []appsv1.StatefulSet{{ObjectMeta: metav1.ObjectMeta{Name: "db", UID: "uid-db"}}}
			r.Jobs = []batchv1.Job{{ObjectMeta: metav1.ObjectMeta{Name: "sum", UID: "uid-sum"}, Spec: batchv1.JobSpec{BackoffLimit: new(int32(2))}}}
			r.Claims = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "local"}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv"}}}
			r.Volumes = []corev1.PersistentVolume{localVolume("pv", "n1")}
			if tt.add != nil {
				tt.add(r)
			}
			got := NewPlan(r, []Target{{Name: "n1"}, {Name: "n2"}}, Policy{}, noon).Nodes[0].Pods[0]
			if diff := cmp.Diff(tt.want, codes(got.Impact)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func localVolume(name, node string) corev1.PersistentVolume {
	return corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{
		NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
		}}}},
	}}
}

// TestNewPlan_Fit is operations §2.3: where the pods of n1 go.
func TestNewPlan_Fit(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		nodes []corev1.Node // besides n1
		pods  []*corev1.Pod // of n1 first
		want  []fleet.Fit   // of the pods of n1
		unfit int
	}{
		{name: "the first that takes it", nodes: []corev1.Node{machine("n3"), machine("n2")}, pods: []*corev1.Pod{fixture("p", cpu("1"))}, want: []fleet.Fit{{Node: "n2"}}},
		{
			name: "what is there counts, what has ended does not", nodes: []corev1.Node{machine("n2"), machine("n3")},
			pods: []*corev1.Pod{
				fixture("p", cpu("2")), fixture("x", on("n2"), cpu("3")), fixture("y", on("n3"), cpu("2")), fixture("z", on("n3"), cpu("4"), phase(corev1.PodFailed)),
			}, want: []fleet.Fit{{Node: "n3"}},
		},
		{
			name: "the largest first", nodes: []corev1.Node{machine("n2")},
			pods: []*corev1.Pod{fixture("a", cpu("1")), fixture("b", cpu("4"))}, want: []fleet.Fit{{Refused: map[string]int{"insufficient_cpu": 1}}, {Node: "n2"}}, unfit: 1,
		},
		{
			name:  "every reason, counted",
			nodes: []corev1.Node{machine("n2", tainted("gpu", corev1.TaintEffectNoSchedule)), machine("n3", tainted("bad", corev1.TaintEffectNoExecute)), machine("n4", tainted("rather-not", corev1.TaintEffectPreferNoSchedule)), machine("n5")},
			pods:  []*corev1.Pod{fixture("p", cpu("2"), func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "n5"} }), fixture("x", on("n5"), cpu("3"))},
			want:  []fleet.Fit{{Refused: map[string]int{"taint": 2, "affinity": 1, "insufficient_cpu": 1}}}, unfit: 1,
		},
		{
			name:  "a toleration",
			nodes: []corev1.Node{machine("n2", tainted("gpu", corev1.TaintEffectNoSchedule))},
			pods:  []*corev1.Pod{fixture("p", tolerating(corev1.Toleration{Key: "gpu", Operator: corev1.TolerationOpExists}))}, want: []fleet.Fit{{Node: "n2"}},
		},
		{
			name:  "nodes that take nobody are not looked at",
			nodes: []corev1.Node{machine("n2", func(n *corev1.Node) { n.Spec.Unschedulable = true }), machine("n3", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown })},
			pods:  []*corev1.Pod{fixture("p")}, want: []fleet.Fit{{Refused: map[string]int{}}}, unfit: 1,
		},
		{
			name: "places for pods", nodes: []corev1.Node{machine("n2", func(n *corev1.Node) { n.Status.Allocatable[corev1.ResourcePods] = resource.MustParse("1") })},
			pods: []*corev1.Pod{fixture("p"), fixture("x", on("n2"))}, want: []fleet.Fit{{Refused: map[string]int{"insufficient_pods": 1}}}, unfit: 1,
		},
		{
			name: "a port is taken once", nodes: []corev1.Node{machine("n2")}, pods: []*corev1.Pod{fixture("a", port(80)), fixture("b", port(80))},
			want: []fleet.Fit{{Node: "n2"}, {Refused: map[string]int{"host_port": 1}}}, unfit: 1,
		},
		{
			name: "a volume of another node", nodes: []corev1.Node{machine("n2")}, pods: []*corev1.Pod{fixture("p", claim("local"))},
			want: []fleet.Fit{{Refused: map[string]int{"volume": 1}}}, unfit: 1,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := reading(append([]corev1.Node{machine("n1")}, tt.nodes...), tt.pods...)
			r.Claims = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "local"}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv"}}}
			r.Volumes = []corev1.PersistentVolume{localVolume("pv", "n1")}
			plan := NewPlan(r, []Target{{Name: "n1"}}, Policy{}, noon)
			var got []fleet.Fit
			for _, p := range plan.Nodes[0].Pods {
				got = append(got, *p.Fit)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || plan.Capacity.Unfit != tt.unfit {
				t.Errorf("unfit %d, want %d; (-want +got):\n%s", plan.Capacity.Unfit, tt.unfit, diff)
			}
		})
	}
}

// TestNewPlan_Whole looks at one plan of two nodes as a whole.
func TestNewPlan_Whole(t *testing.T) {
	t.Parallel()
	nodes := []corev1.Node{
		machine("n1", tainted("ToBeDeletedByClusterAutoscaler", corev1.TaintEffectNoSchedule), func(n *corev1.Node) {
			n.Annotations = map[string]string{"weave.works/kured-reboot-in-progress": "{}"}
		}),
		machine("n2"), machine("n3"),
	}
	r := reading(nodes, fixture("a"), fixture("b", on("n2")), fixture("c", on("n2")), fixture("lone", orphan), fixture("ds", ownedBy("apps/v1", "DaemonSet", "agent")),
		fixture("elsewhere", on("n3")))
	r.DaemonSets = []appsv1.DaemonSet{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "agent"}}}
	r.Budgets = []policyv1.PodDisruptionBudget{budgetFor("web", 1)}
	held, over := metav1.NewMicroTime(noon.Add(-time.Minute)), metav1.NewMicroTime(noon.Add(-time.Hour))
	lease := func(node string, at metav1.MicroTime) coordinationv1.Lease {
		return coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "node-" + node}, Spec: coordinationv1.LeaseSpec{
			HolderIdentity: new("nmo"), RenewTime: &at, LeaseDurationSeconds: new(int32(600)),
		}}
	}
	r.Leases = []coordinationv1.Lease{lease("n1", over), lease("n2", held)}
	got := NewPlan(r, []Target{{Name: "n1"}, {Name: "n2", UID: "uid-n2"}, {Name: "n3", UID: "another"}, {Name: "n4"}}, Policy{}, noon)
	if want := (fleet.PodCounts{Evict: 3, Ignore: 1, Block: 1}); got.Counts != want {
		t.Errorf("counts %+v, want %+v", got.Counts, want)
	}
	var budgets []string
	for _, n := range got.Nodes {
		for _, p := range n.Pods {
			if p.Budget != nil {
				budgets = append(budgets, p.Name+" "+string(p.Budget.Allowance))
			}
		}
	}
	// The pod without an owner has the label too: a budget knows no owners.
	if want := []string{"a now", "lone later", "b later", "c later"}; !cmp.Equal(budgets, want) {
		t.Errorf("budgets %v, want %v", budgets, want)
	}
	if n := len(got.Budgets); n != 1 || got.Budgets[0].Waves != 4 {
		t.Errorf("budgets %+v", got.Budgets)
	}
	if !got.Estimate.Blocked || got.Nodes[1].Estimate.Blocked {
		t.Errorf("estimates %+v, %+v", got.Estimate, got.Nodes[1].Estimate)
	}
	// 30 s of grace, and three more waves of 30 s grace and 30 s for the replacement.
	if e := got.Estimate; e.LowSeconds != 90 || e.HighSeconds != 30+180 {
		t.Errorf("estimate %+v", e)
	}
	var actors [][]string
	for _, n := range got.Nodes {
		var who []string
		for _, a := range n.Actors {
			who = append(who, a.Who)
		}
		actors = append(actors, who)
	}
	if want := [][]string{{"kured", "cluster-autoscaler"}, {"medik8s"}, nil, nil}; !cmp.Equal(actors, want) {
		t.Errorf("actors %v, want %v", actors, want)
	}
	if got.Nodes[2].Fault != fleet.CodeReplaced || got.Nodes[3].Fault != fleet.CodeNotFound || len(got.Nodes[2].Pods) != 0 {
		t.Errorf("faults %q %q", got.Nodes[2].Fault, got.Nodes[3].Fault)
	}
}

// TestNewPlan_Missing is PV-13: what could not be read is not evaluated.
func TestNewPlan_Missing(t *testing.T) {
	t.Parallel()
	r := reading([]corev1.Node{machine("n1")}, fixture("a"), fixture("ds", ownedBy("apps/v1", "DaemonSet", "agent")))
	r.Missing = []string{"poddisruptionbudgets", "daemonsets"}
	r.Permissions = []fleet.ClusterRight{{Verb: "create", Resource: "pods", Subresource: "eviction"}}
	got := NewPlan(r, []Target{{Name: "n1"}}, Policy{}, noon)
	if b := got.Nodes[0].Pods[0].Budget; b == nil || b.Allowance != fleet.AllowNotEvaluated {
		t.Errorf("budget %+v", b)
	}
	if p := got.Nodes[0].Pods[1]; p.Verdict != fleet.VerdictBlock || !p.Has(CodeDaemonSetUnknown) {
		t.Errorf("daemon %+v", p.PodClass)
	}
	if !got.Estimate.Blocked {
		t.Error("a missing permission does not block the estimate")
	}
}

// TestPlan_JSON keeps to names as the rest of the API has them.
func TestPlan_JSON(t *testing.T) {
	t.Parallel()
	r := reading([]corev1.Node{machine("n1"), machine("n2")}, fixture("a"), fixture("b", orphan, scratch))
	r.Budgets = []policyv1.PodDisruptionBudget{budgetFor("web", 1)}
	b, err := json.Marshal(NewPlan(r, []Target{{Name: "n1"}}, Policy{}, noon))
	if err != nil {
		t.Fatal(err)
	}
	var whole any
	if err := json.Unmarshal(b, &whole); err != nil {
		t.Fatal(err)
	}
	var walk func(any)
	seen := map[string]bool{}
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, v := range v {
				seen[k] = true
				if k != strings.ToLower(k) {
					t.Errorf("key %q is not lower_snake", k)
				}
				walk(v)
			}
		case []any:
			for _, v := range v {
				walk(v)
			}
		}
	}
	walk(whole)
	for _, k := range []string{"cluster", "node", "verdict", "reasons", "needs", "budget", "grace_seconds", "fit", "owner_kind", "high_seconds", "desired_healthy"} {
		if !seen[k] {
			t.Errorf("no key %q in %s", k, b)
		}
	}
}

func cordoned(n *corev1.Node) { n.Spec.Unschedulable = true }

// TestNewPlan_Verdicts: one word over each node, and what stands in the way.
func TestNewPlan_Verdicts(t *testing.T) {
	t.Parallel()
	held := metav1.NewMicroTime(noon.Add(-time.Minute))
	r := reading([]corev1.Node{
		machine("idle", cordoned), machine("fresh"), machine("busy", cordoned), machine("data"), machine("ending", cordoned), machine("mended"),
	},
		fixture("a", on("busy")), fixture("b", on("data"), scratch), fixture("c", on("ending"), deleted(-time.Minute)),
		fixture("ds", on("idle"), ownedBy("apps/v1", "DaemonSet", "agent")))
	r.DaemonSets = []appsv1.DaemonSet{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "agent"}}}
	r.Leases = []coordinationv1.Lease{{ObjectMeta: metav1.ObjectMeta{Name: "node-mended"}, Spec: coordinationv1.LeaseSpec{
		HolderIdentity: new("nmo"), RenewTime: &held, LeaseDurationSeconds: new(int32(600)),
	}}}
	evicting := Policy{}.right()
	evicting.Allowed = true
	r.Permissions = []fleet.ClusterRight{evicting, Policy{Delete: true}.right()} // which is not allowed
	targets := []Target{{Name: "idle"}, {Name: "fresh"}, {Name: "busy"}, {Name: "data"}, {Name: "ending"}, {Name: "mended"}, {Name: "none"}, {Name: "busy", UID: "x"}}
	verdicts := func(pol Policy) []string {
		var out []string
		for _, n := range NewPlan(r, targets, pol, noon).Nodes {
			out = append(out, strings.TrimSpace(string(n.Verdict)+" "+n.Fault))
		}
		return out
	}
	want := []string{
		"unchanged", "change", "change", "blocked blocked", "change", "blocked locked", "missing not_found", "missing replaced",
	}
	if diff := cmp.Diff(want, verdicts(Policy{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for i, v := range verdicts(Policy{Delete: true}) {
		if want := "blocked forbidden"; v != want && i < 6 {
			t.Errorf("%s without the right to delete: %q, want %q", targets[i].Name, v, want)
		}
	}
	if got := NewPlan(r, targets, Policy{}, noon); len(got.Permissions) != 1 || got.Estimate.Blocked == false {
		t.Errorf("permissions %+v, estimate %+v", got.Permissions, got.Estimate)
	}
}

// TestNewPlan_Delete: budgets are shown and not waited for.
func TestNewPlan_Delete(t *testing.T) {
	t.Parallel()
	r := reading([]corev1.Node{machine("n1")}, fixture("a"), fixture("b"))
	r.Budgets = []policyv1.PodDisruptionBudget{budgetFor("web", 0, func(b *policyv1.PodDisruptionBudget) {
		b.Spec.MinAvailable, b.Spec.MaxUnavailable = nil, new(intstr.FromInt32(0))
	})}
	asked, past := NewPlan(r, []Target{{Name: "n1"}}, Policy{}, noon), NewPlan(r, []Target{{Name: "n1"}}, Policy{Delete: true}, noon)
	if !asked.Estimate.Blocked || past.Estimate.Blocked || past.Estimate.HighSeconds != 30 || past.Budgets[0].Pods != 2 {
		t.Errorf("asked %+v, past %+v, budgets %+v", asked.Estimate, past.Estimate, past.Budgets)
	}
}

// TestNewPlan_Warnings is PV-25: what concerns the whole cluster.
func TestNewPlan_Warnings(t *testing.T) {
	t.Parallel()
	master := func(n *corev1.Node) { n.Labels["node-role.kubernetes.io/control-plane"] = "" }
	broken := func(n *corev1.Node) { n.Status.Conditions = nil }
	zone := func(name string) func(*corev1.Node) {
		return func(n *corev1.Node) { n.Labels[corev1.LabelTopologyZone] = name }
	}
	tainted := func(n *corev1.Node) {
		n.Spec.Taints = []corev1.Taint{{Key: "a", Effect: corev1.TaintEffectNoSchedule}}
	}
	r := reading([]corev1.Node{
		machine("m1", master, tainted), machine("m2", master, tainted), machine("m3", master, tainted, broken), machine("n1", zone("a")), machine("n2", zone("a")),
		machine("n3", zone("b")), machine("n4", zone("b"), cordoned), machine("n5", zone("b"), broken), machine("n6", zone("b"), tainted),
	})
	r.Webhooks = []Webhook{
		{Name: "here: x", Service: "ns/x", Nodes: []string{"n1"}},
		{Name: "both: y", Service: "ns/y", Nodes: []string{"n1", "n2"}},
		{Name: "outside: z", Service: "ns/z", Nodes: []string{"", "n1"}},
		{Name: "down: w", Service: "ns/w"},
	}
	for _, tt := range []struct {
		targets []Target
		want    []string
	}{
		{[]Target{{Name: "n2"}}, nil},
		{[]Target{{Name: "n1"}}, []string{"webhook_deadlock here: x, service ns/x"}},
		{[]Target{{Name: "n1"}, {Name: "n2"}}, []string{"webhook_deadlock here: x, service ns/x", "webhook_deadlock both: y, service ns/y", "last_of_zone a: n1, n2"}},
		{[]Target{{Name: "n3"}}, []string{"last_of_zone b: n3"}},
		{[]Target{{Name: "n4"}, {Name: "n5"}, {Name: "n6"}}, nil}, // they take no pods as it is
		{
			[]Target{{Name: "n3"}, {Name: "n2"}, {Name: "n1"}},
			[]string{"webhook_deadlock here: x, service ns/x", "webhook_deadlock both: y, service ns/y", "last_of_cluster n1, n2, n3"},
		},
		{[]Target{{Name: "m3"}}, []string{"control_plane m3"}},
		{[]Target{{Name: "m1"}}, []string{"control_plane m1", "etcd_quorum 1 of 3 left"}},
	} {
		var got []string
		for _, w := range NewPlan(r, tt.targets, Policy{}, noon).Warnings {
			if w.ID != "PV-25" {
				t.Errorf("id %s", w.ID)
			}
			got = append(got, w.Code+" "+w.Detail)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%v (-want +got):\n%s", tt.targets, diff)
		}
	}
}

// TestNewPlan_Headroom is PV-31.
func TestNewPlan_Headroom(t *testing.T) {
	t.Parallel()
	r := reading([]corev1.Node{machine("n1"), machine("n2"), machine("out", cordoned)},
		fixture("a", cpu("2")), fixture("b", cpu("1"), on("n2")), fixture("lone", orphan, cpu("1")), fixture("elsewhere", cpu("4"), on("out")))
	want := []fleet.Headroom{
		{Resource: "cpu", Before: 50, After: 75}, // 4 of 8, then 3 of 4: what nobody makes again is not asked for any more
		{Resource: "memory", Before: 0, After: 0},
		{Resource: "pods", Before: 15, After: 20},
	}
	if diff := cmp.Diff(want, NewPlan(r, []Target{{Name: "n1"}}, Policy{}, noon).Capacity.Headroom); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := NewPlan(r, []Target{{Name: "n1"}, {Name: "n2"}}, Policy{}, noon).Capacity.Headroom; got != nil {
		t.Errorf("without any node left: %+v", got)
	}
}
