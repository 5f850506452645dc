package drain

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// fixture is a pod of a ReplicaSet on a node, running and ready, with changes.
func fixture(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"app": "web"},
			CreationTimestamp: metav1.NewTime(noon.Add(-time.Hour)),
		},
		Spec: corev1.PodSpec{NodeName: "n1"},
		Status: corev1.PodStatus{
			Phase:      corev1.PodRunning,
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
	ownedBy("apps/v1", "ReplicaSet", "web-1")(p)
	for _, f := range change {
		f(p)
	}
	return p
}

func ownedBy(apiVersion, kind, name string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.OwnerReferences = []metav1.OwnerReference{{
			APIVersion: apiVersion, Kind: kind, Name: name, UID: types.UID("uid-" + name), Controller: new(true),
		}}
	}
}

func orphan(p *corev1.Pod) { p.OwnerReferences = nil }

func phase(ph corev1.PodPhase) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Status.Phase = ph } }

func annotated(k, v string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Annotations = map[string]string{k: v} }
}

func labelled(k, v string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Labels[k] = v } }

func volume(name string, src corev1.VolumeSource) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: src})
	}
}

func scratch(p *corev1.Pod) {
	volume("scratch", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})(p)
}

func deleted(ago time.Duration) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.DeletionTimestamp = new(metav1.NewTime(noon.Add(-ago))) }
}

func tolerating(t ...corev1.Toleration) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Tolerations = t }
}

func presence(x Presence) Lookups {
	return Lookups{DaemonSet: func(string, string) Presence { return x }}
}

// TestClassify is the table of operations §1.1.
func TestClassify(t *testing.T) {
	t.Parallel()
	all := []fleet.Consent{fleet.ConsentUnmanaged, fleet.ConsentLocalData, fleet.ConsentForce, fleet.ConsentOptOut}
	size := resource.MustParse("1Gi")
	for _, tt := range []struct {
		name    string
		pod     *corev1.Pod
		policy  Policy
		look    Lookups
		verdict fleet.Verdict
		codes   []string
		needs   []fleet.Consent
	}{
		{name: "plain", pod: fixture("p"), verdict: fleet.VerdictEvict},
		{name: "DR-01 mirror", pod: fixture("p", annotated(corev1.MirrorPodAnnotationKey, "x"), ownedBy("v1", "Node", "n1")), verdict: fleet.VerdictIgnore, codes: []string{CodeMirror}},
		{name: "DR-01 mirror by annotation alone, with local data", pod: fixture("p", orphan, scratch, annotated(corev1.MirrorPodAnnotationKey, "x")), verdict: fleet.VerdictIgnore, codes: []string{CodeMirror, CodeEmptyDir, CodeUnmanaged}},
		{name: "DR-02 daemon", pod: fixture("p", ownedBy("apps/v1", "DaemonSet", "ds")), look: presence(Present), verdict: fleet.VerdictIgnore, codes: []string{CodeDaemonSet}},
		{name: "DR-02 daemon with local data and a wish", pod: fixture("p", ownedBy("apps/v1", "DaemonSet", "ds"), scratch, annotated(casSafe, "false")), look: presence(Present), verdict: fleet.VerdictIgnore, codes: []string{CodeDaemonSet, CodeEmptyDir, CodeOptOut}},
		{name: "DR-02 nobody has looked, and no consent helps", pod: fixture("p", ownedBy("apps/v1", "DaemonSet", "ds")), policy: Policy{Consents: all}, verdict: fleet.VerdictBlock, codes: []string{CodeDaemonSetUnknown}},
		{name: "DR-03 orphan", pod: fixture("p", ownedBy("apps/v1", "DaemonSet", "ds")), look: presence(Absent), verdict: fleet.VerdictBlock, codes: []string{CodeDaemonSetOrphan}, needs: []fleet.Consent{fleet.ConsentForce}},
		{name: "DR-03 orphan, forced", pod: fixture("p", ownedBy("apps/v1", "DaemonSet", "ds")), look: presence(Absent), policy: Policy{Consents: []fleet.Consent{fleet.ConsentForce}}, verdict: fleet.VerdictEvict, codes: []string{CodeDaemonSetOrphan}},
		{name: "DR-04 foreign group", pod: fixture("p", ownedBy("apps.kruise.io/v1alpha1", "DaemonSet", "ds")), verdict: fleet.VerdictIgnore, codes: []string{CodeDaemonSetForeign}},
		{name: "DR-04 foreign kind", pod: fixture("p", ownedBy("example.com/v1", "AdvancedDaemonSet", "ds")), verdict: fleet.VerdictIgnore, codes: []string{CodeDaemonSetForeign}},
		{name: "DR-05 finished passes every gate", pod: fixture("p", orphan, scratch, phase(corev1.PodSucceeded), annotated(casSafe, "false")), verdict: fleet.VerdictEvict, codes: []string{CodeFinished}},
		{name: "DR-05 finished daemon", pod: fixture("p", ownedBy("apps/v1", "DaemonSet", "ds"), phase(corev1.PodFailed)), verdict: fleet.VerdictEvict, codes: []string{CodeFinished}},
		{name: "DR-05 kept", pod: fixture("p", phase(corev1.PodSucceeded)), policy: Policy{KeepFinished: true}, verdict: fleet.VerdictIgnore, codes: []string{CodeFinishedKept}},
		{name: "DR-06 unmanaged", pod: fixture("p", orphan), verdict: fleet.VerdictBlock, codes: []string{CodeUnmanaged}, needs: []fleet.Consent{fleet.ConsentUnmanaged}},
		{name: "DR-06 consented", pod: fixture("p", orphan), policy: Policy{Consents: []fleet.Consent{fleet.ConsentUnmanaged}}, verdict: fleet.VerdictEvict, codes: []string{CodeUnmanaged}},
		{name: "DR-06 any controller counts", pod: fixture("p", ownedBy("example.com/v1", "Anything", "x")), verdict: fleet.VerdictEvict},
		{name: "DR-06 an owner that controls nothing", pod: fixture("p", func(p *corev1.Pod) { p.OwnerReferences[0].Controller = nil }), verdict: fleet.VerdictBlock, codes: []string{CodeUnmanaged}, needs: []fleet.Consent{fleet.ConsentUnmanaged}},
		{name: "DR-07 local data, each volume", pod: fixture("p", scratch, volume("mem", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &size}})), verdict: fleet.VerdictBlock, codes: []string{CodeEmptyDir, CodeEmptyDir}, needs: []fleet.Consent{fleet.ConsentLocalData}},
		{name: "DR-07 one consent is not the other", pod: fixture("p", orphan, scratch), policy: Policy{Consents: []fleet.Consent{fleet.ConsentUnmanaged}}, verdict: fleet.VerdictBlock, codes: []string{CodeEmptyDir, CodeUnmanaged}, needs: []fleet.Consent{fleet.ConsentLocalData}},
		{name: "DR-08 ephemeral volumes warn", pod: fixture("p", volume("e", corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}), volume("c", corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{}})), verdict: fleet.VerdictEvict, codes: []string{CodeEphemeralVolume, CodeEphemeralVolume}},
		{name: "DR-09 host path and pinned volume warn", pod: fixture("p", volume("h", corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/data"}}), volume("v", corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}})), look: Lookups{Pinned: func(string, string) string { return "n1" }}, verdict: fleet.VerdictEvict, codes: []string{CodeHostPath, CodePinnedVolume}},
		{name: "DR-10 terminating, whatever it is", pod: fixture("p", orphan, scratch, deleted(0)), verdict: fleet.VerdictWait, codes: []string{CodeTerminating, CodeEmptyDir, CodeUnmanaged}},
		{name: "DR-11 not stuck yet", pod: fixture("p", deleted(time.Minute)), policy: Policy{SkipStuck: time.Minute}, verdict: fleet.VerdictWait, codes: []string{CodeTerminating}},
		{name: "DR-11 stuck", pod: fixture("p", deleted(time.Minute+time.Second)), policy: Policy{SkipStuck: time.Minute}, verdict: fleet.VerdictIgnore, codes: []string{CodeTerminating, CodeStuck}},
		{name: "DR-11 by default waited for", pod: fixture("p", deleted(24*time.Hour)), verdict: fleet.VerdictWait, codes: []string{CodeTerminating}},
		{name: "DR-12 pending", pod: fixture("p", phase(corev1.PodPending)), verdict: fleet.VerdictEvict, codes: []string{CodePending}},
		{name: "DR-13 excluded", pod: fixture("p"), policy: Policy{Selector: labels.SelectorFromSet(labels.Set{"app": "db"})}, verdict: fleet.VerdictIgnore, codes: []string{CodeExcluded}},
		{name: "DR-14 skip, in any case", pod: fixture("p", labelled(capiDrain, "Skip")), verdict: fleet.VerdictBlock, codes: []string{CodeOptOut}, needs: []fleet.Consent{fleet.ConsentOptOut}},
		{name: "DR-14 wait-completed", pod: fixture("p", labelled(capiDrain, "Wait-Completed")), verdict: fleet.VerdictWait, codes: []string{CodeWaitCompleted}},
		{name: "DR-14 wait-completed passed over", pod: fixture("p", labelled(capiDrain, "wait-completed")), policy: Policy{Consents: []fleet.Consent{fleet.ConsentOptOut}}, verdict: fleet.VerdictEvict, codes: []string{CodeWaitCompleted}},
		{name: "DR-14 wait-completed and completed", pod: fixture("p", labelled(capiDrain, "wait-completed"), phase(corev1.PodSucceeded)), verdict: fleet.VerdictEvict, codes: []string{CodeFinished}},
		{name: "DR-14 do-not-disrupt", pod: fixture("p", annotated(karpenterKeep, "true")), verdict: fleet.VerdictBlock, codes: []string{CodeOptOut}, needs: []fleet.Consent{fleet.ConsentOptOut}},
		{name: "DR-14 do-not-disrupt for a time", pod: fixture("p", annotated(karpenterKeep, "61m")), verdict: fleet.VerdictBlock, codes: []string{CodeOptOut}, needs: []fleet.Consent{fleet.ConsentOptOut}},
		{name: "DR-14 do-not-disrupt is over", pod: fixture("p", annotated(karpenterKeep, "59m")), verdict: fleet.VerdictEvict},
		{name: "DR-14 safe-to-evict", pod: fixture("p", annotated(casSafe, "false")), policy: Policy{Consents: []fleet.Consent{fleet.ConsentOptOut}}, verdict: fleet.VerdictEvict, codes: []string{CodeOptOut}},
		{name: "DR-14 safe-to-evict, true", pod: fixture("p", annotated(casSafe, "true")), verdict: fleet.VerdictEvict},
		{name: "DR-15 tolerates everything", pod: fixture("p", tolerating(corev1.Toleration{Operator: corev1.TolerationOpExists})), verdict: fleet.VerdictEvict, codes: []string{CodeReturns}},
		{name: "DR-15 tolerates the cordon", pod: fixture("p", tolerating(corev1.Toleration{Key: corev1.TaintNodeUnschedulable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule})), verdict: fleet.VerdictEvict, codes: []string{CodeReturns}},
		{name: "DR-15 tolerates something else", pod: fixture("p", tolerating(corev1.Toleration{Key: "gpu", Operator: corev1.TolerationOpExists}, corev1.Toleration{Key: corev1.TaintNodeUnschedulable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute})), verdict: fleet.VerdictEvict},
		{name: "DR-15 is no matter for a DaemonSet", pod: fixture("p", ownedBy("apps/v1", "DaemonSet", "agent"), tolerating(corev1.Toleration{Operator: corev1.TolerationOpExists})), look: presence(Present), verdict: fleet.VerdictIgnore, codes: []string{CodeDaemonSet}},
		{name: "DR-16 self", pod: fixture("p"), policy: Policy{Self: types.NamespacedName{Namespace: "shop", Name: "p"}}, verdict: fleet.VerdictEvict, codes: []string{CodeSelf}},
		{name: "DR-17 responders", pod: fixture("p", func(p *corev1.Pod) { p.Spec.EvictionResponders = []corev1.EvictionResponder{{Name: "example.com/r"}} }), verdict: fleet.VerdictEvict, codes: []string{CodeResponders}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := Classify(tt.pod, tt.policy, tt.look, noon)
			var codes []string
			for _, r := range got.Reasons {
				codes = append(codes, r.Code)
			}
			if got.Verdict != tt.verdict || !cmp.Equal(codes, tt.codes) || !cmp.Equal(got.Needs, tt.needs) {
				t.Errorf("got %s %v, needs %v\nwant %s %v, needs %v", got.Verdict, codes, got.Needs, tt.verdict, tt.codes, tt.needs)
			}
		})
	}
}

// kubectlDeletes is what `kubectl drain` v0.36.3 would do, transcribed from k8s.io/kubectl/pkg/drain/filters.go, with
// --ignore-daemonsets: del if the pod is among those to delete, fatal if the drain is refused because of it. The module
// itself is not imported: it brings 151 packages along.
func kubectlDeletes(p *corev1.Pod, ds Presence, force, emptyDir bool, skipDeleted time.Duration) (del, fatal bool) {
	finished := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	ref := metav1.GetControllerOf(p)
	filters := []func() (bool, bool){
		func() (bool, bool) { // skipDeletedFilter
			skip := skipDeleted > 0 && !p.DeletionTimestamp.IsZero() && noon.Sub(p.DeletionTimestamp.Time) > skipDeleted
			return !skip, false
		},
		func() (bool, bool) { // daemonSetFilter
			if ref == nil || ref.Kind != "DaemonSet" || ref.APIVersion != "apps/v1" || finished {
				return true, false
			}
			if ds != Present {
				return ds == Absent && force, ds != Absent || !force
			}
			return false, false
		},
		func() (bool, bool) { // mirrorPodFilter
			_, found := p.Annotations[corev1.MirrorPodAnnotationKey]
			return !found, false
		},
		func() (bool, bool) { // localStorageFilter
			for _, v := range p.Spec.Volumes {
				if v.EmptyDir != nil && !finished {
					return emptyDir, !emptyDir
				}
			}
			return true, false
		},
		func() (bool, bool) { // unreplicatedFilter
			if finished || ref != nil {
				return true, false
			}
			return force, !force
		},
	}
	for _, f := range filters {
		if del, fatal := f(); !del {
			return false, fatal // the first that says no
		}
	}
	return true, false
}

// TestClassify_KubectlPodSet compares pod for pod with kubectl's filters, over all combinations of what they look at.
// The differences are those of operations §1.1: a pod that is terminating is waited for, and never refused; foreign
// DaemonSets are left alone.
func TestClassify_KubectlPodSet(t *testing.T) {
	t.Parallel()
	owners := map[string]func(*corev1.Pod){
		"ReplicaSet": func(*corev1.Pod) {}, "none": orphan, "Custom": ownedBy("example.com/v1", "Custom", "x"),
		"DaemonSet": ownedBy("apps/v1", "DaemonSet", "ds"),
	}
	var checked int
	for owner, own := range owners {
		for _, ph := range []corev1.PodPhase{corev1.PodRunning, corev1.PodPending, corev1.PodSucceeded, corev1.PodFailed} {
			for bits := range 1 << 6 {
				has := func(i int) bool { return bits&(1<<i) != 0 }
				p := fixture("p", own, phase(ph))
				if has(0) {
					scratch(p)
				}
				if has(1) {
					annotated(corev1.MirrorPodAnnotationKey, "x")(p)
				}
				if has(2) {
					deleted(time.Hour)(p)
				}
				force, emptyDir, found := has(3), has(4), Present
				if has(5) {
					found = Absent
				}
				pol := Policy{}
				if force {
					pol.Consents = append(pol.Consents, fleet.ConsentForce, fleet.ConsentUnmanaged)
				}
				if emptyDir {
					pol.Consents = append(pol.Consents, fleet.ConsentLocalData)
				}
				for _, skip := range []time.Duration{0, time.Minute} {
					pol.SkipStuck = skip
					del, fatal := kubectlDeletes(p, found, force, emptyDir, skip)
					want := fleet.VerdictIgnore
					switch {
					case del && p.DeletionTimestamp != nil, fatal && p.DeletionTimestamp != nil:
						want = fleet.VerdictWait
					case del:
						want = fleet.VerdictEvict
					case fatal:
						want = fleet.VerdictBlock
					}
					got := Classify(p, pol, presence(found), noon).Verdict
					// kubectl stops at the first filter that says no, so a mirror pod of nobody's DaemonSet is fatal.
					if p.Annotations[corev1.MirrorPodAnnotationKey] != "" {
						want = fleet.VerdictIgnore
					}
					checked++
					if got != want {
						t.Errorf("%s %s bits %06b skip %s: got %s, kubectl means %s", owner, ph, bits, skip, got, want)
					}
				}
			}
		}
	}
	if checked != 4*4*64*2 {
		t.Errorf("checked %d combinations", checked)
	}
}

func TestOrder(t *testing.T) {
	t.Parallel()
	self := Policy{Self: types.NamespacedName{Namespace: "shop", Name: "me"}}
	for want, p := range map[int]*corev1.Pod{
		0:   fixture("p"),
		100: fixture("p", func(p *corev1.Pod) { p.Spec.PriorityClassName = "system-node-critical" }),
		200: fixture("p", labelled("app", "rook-ceph-osd")),
		300: fixture("me", labelled("app", "rook-ceph-osd")),
	} {
		if got := Order(p, self); got != want {
			t.Errorf("Order = %d, want %d", got, want)
		}
	}
}

// TestClassify_KubectlCases is the table of kubectl's own tests (pkg/cmd/drain/drain_test.go, pkg/drain/filter_test.go,
// v0.36.3) with our verdicts: delete is to evict, fatal is to block. We have no --ignore-daemonsets: it is always on.
func TestClassify_KubectlCases(t *testing.T) {
	t.Parallel()
	var (
		daemon = ownedBy("apps/v1", "DaemonSet", "ds")
		job    = ownedBy("batch/v1", "Job", "job")
		force  = []fleet.Consent{fleet.ConsentForce, fleet.ConsentUnmanaged}
		both   = append(slices.Clone(force), fleet.ConsentLocalData)
	)
	for _, tt := range []struct {
		description string
		pod         *corev1.Pod
		ds          Presence
		consents    []fleet.Consent
		skip        time.Duration
		want        fleet.Verdict
	}{
		{description: "RC-managed pod", pod: fixture("bar", ownedBy("v1", "ReplicationController", "rc")), want: fleet.VerdictEvict},
		{description: "DS-managed terminated pod", pod: fixture("bar", daemon, phase(corev1.PodFailed)), ds: Present, want: fleet.VerdictEvict},
		{description: "orphaned DS-managed pod", pod: fixture("bar", daemon), ds: Absent, want: fleet.VerdictBlock},
		{description: "orphaned DS-managed pod with --force", pod: fixture("bar", daemon), ds: Absent, consents: force, want: fleet.VerdictEvict},
		{description: "DS-managed pod with --ignore-daemonsets", pod: fixture("bar", daemon), ds: Present, want: fleet.VerdictIgnore},
		{description: "DS-managed pod with emptyDir with --ignore-daemonsets", pod: fixture("bar", daemon, scratch), ds: Present, want: fleet.VerdictIgnore},
		{description: "Job-managed pod with local storage", pod: fixture("bar", job, scratch), consents: both, want: fleet.VerdictEvict},
		{description: "Job-managed terminated pod", pod: fixture("bar", job, scratch, phase(corev1.PodSucceeded)), want: fleet.VerdictEvict},
		{description: "RS-managed pod", pod: fixture("bar"), want: fleet.VerdictEvict},
		{description: "naked pod", pod: fixture("bar", orphan), want: fleet.VerdictBlock},
		{description: "naked pod with --force", pod: fixture("bar", orphan), consents: force, want: fleet.VerdictEvict},
		{description: "pod with EmptyDir", pod: fixture("bar", orphan, scratch), consents: force, want: fleet.VerdictBlock},
		{description: "terminated pod with emptyDir", pod: fixture("bar", scratch, phase(corev1.PodFailed)), want: fleet.VerdictEvict},
		{description: "pod with EmptyDir and --delete-emptydir-data", pod: fixture("bar", orphan, scratch), consents: both, want: fleet.VerdictEvict},
		// The filter of those that are on their way out: kubectl would evict the second again, and we wait.
		{description: "skip deleted: not deleted", pod: fixture("pod"), skip: 20 * time.Second, want: fleet.VerdictEvict},
		{description: "skip deleted: just now", pod: fixture("pod", deleted(time.Second)), skip: 20 * time.Second, want: fleet.VerdictWait},
		{description: "skip deleted: long ago", pod: fixture("pod", deleted(100*time.Second)), skip: 20 * time.Second, want: fleet.VerdictIgnore},
	} {
		got := Classify(tt.pod, Policy{Consents: tt.consents, SkipStuck: tt.skip}, presence(tt.ds), noon)
		if got.Verdict != tt.want {
			t.Errorf("%s: %s %+v, want %s", tt.description, got.Verdict, got.Reasons, tt.want)
		}
	}
}
