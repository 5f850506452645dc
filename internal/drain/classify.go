package drain

import (
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// The codes of reasons: catalogue keys, and what programs look at.
const (
	CodeMirror           = "mirror"
	CodeDaemonSet        = "daemon_set"
	CodeDaemonSetUnknown = "daemon_set_unknown"
	CodeDaemonSetOrphan  = "daemon_set_orphan"
	CodeDaemonSetForeign = "daemon_set_foreign"
	CodeFinished         = "finished"
	CodeFinishedKept     = "finished_kept"
	CodeUnmanaged        = "unmanaged"
	CodeEmptyDir         = "empty_dir"
	CodeEphemeralVolume  = "ephemeral_volume"
	CodeHostPath         = "host_path"
	CodePinnedVolume     = "pinned_volume"
	CodeTerminating      = "terminating"
	CodeStuck            = "stuck_terminating"
	CodePending          = "pending"
	CodeExcluded         = "excluded"
	CodeOptOut           = "opt_out"
	CodeWaitCompleted    = "wait_completed"
	CodeReturns          = "tolerates_cordon"
	CodeSelf             = "self"
	CodeResponders       = "eviction_responders"
)

// Policy is what a person chose for a drain. Its zero value consents to nothing and evicts all that needs no consent.
type Policy struct {
	Consents []fleet.Consent
	// Selector leaves out pods that it does not match; nil matches all. What it leaves out makes a drain partial.
	Selector labels.Selector
	// KeepFinished leaves pods that have ended where they are.
	KeepFinished bool
	// SkipStuck ignores pods that are still there so long after their grace period ended; 0 waits for them.
	SkipStuck time.Duration
	// Self is the pod that this process runs in: it goes last.
	Self types.NamespacedName
	// Delete has pods deleted, past every budget, in the place of evictions (DR-40). Nothing but this field makes a
	// drain delete.
	Delete bool
}

// Presence says whether something exists.
type Presence int

// The answers; the zero value is that nobody has looked.
const (
	Unknown Presence = iota
	Present
	Absent
)

// Lookups answer what a pod alone does not say. A nil function knows nothing.
type Lookups struct {
	DaemonSet func(namespace, name string) Presence
	// Pinned tells which node's disk holds the volume of a claim, "" if none does.
	Pinned func(namespace, claim string) string
}

// Labels and annotations by which the owners of pods ask not to be disturbed (DR-14).
const (
	capiDrain     = "cluster.x-k8s.io/drain"
	karpenterKeep = "karpenter.sh/do-not-disrupt"
	casSafe       = "cluster-autoscaler.kubernetes.io/safe-to-evict"
)

// Classify says what a drain would do with a pod and why. The rules come in kubectl's order; unlike kubectl all of them
// are looked at, and all that they find is kept.
func Classify(p *corev1.Pod, pol Policy, look Lookups, now time.Time) fleet.PodClass {
	c := classifier{pod: p, pol: pol, look: look, now: now}
	c.deleted()
	c.daemonSet()
	c.mirror()
	c.finished()
	c.localData()
	c.unmanaged()
	c.rest()
	return c.class()
}

type classifier struct {
	pod  *corev1.Pod
	pol  Policy
	look Lookups
	now  time.Time

	reasons             []fleet.Reason
	ignore, block, wait bool
}

func (c *classifier) class() fleet.PodClass {
	out := fleet.PodClass{Verdict: fleet.VerdictEvict, Reasons: c.reasons}
	for _, r := range c.reasons {
		if r.Consent != "" && !r.Given && !slices.Contains(out.Needs, r.Consent) {
			out.Needs = append(out.Needs, r.Consent)
		}
	}
	switch {
	case c.ignore:
		out.Verdict, out.Needs = fleet.VerdictIgnore, nil
	case c.pod.DeletionTimestamp != nil:
		out.Verdict, out.Needs = fleet.VerdictWait, nil // its end is decided; nobody's consent changes it
	case c.block || len(out.Needs) > 0:
		out.Verdict = fleet.VerdictBlock
	case c.wait:
		out.Verdict = fleet.VerdictWait
	}
	return out
}

func (c *classifier) add(id, code, detail string) {
	c.reasons = append(c.reasons, fleet.Reason{ID: id, Code: code, Detail: detail})
}

func (c *classifier) need(id, code string, consent fleet.Consent, detail string) {
	c.reasons = append(c.reasons, fleet.Reason{
		ID: id, Code: code, Consent: consent, Given: slices.Contains(c.pol.Consents, consent), Detail: detail,
	})
}

// deleted is DR-10 and DR-11. The deletion timestamp is when the grace period ends, not when somebody asked.
func (c *classifier) deleted() {
	at := c.pod.DeletionTimestamp
	if at == nil {
		return
	}
	c.add("DR-10", CodeTerminating, at.UTC().Format(time.RFC3339))
	if c.pol.SkipStuck > 0 && c.now.Sub(at.Time) > c.pol.SkipStuck {
		c.add("DR-11", CodeStuck, strings.Join(c.pod.Finalizers, ", "))
		c.ignore = true
	}
}

// daemonSet is DR-02 to DR-04. A pod that has ended is evicted whoever made it, as with kubectl.
func (c *classifier) daemonSet() {
	owner := metav1.GetControllerOf(c.pod)
	if owner == nil || ended(c.pod) || !strings.HasSuffix(owner.Kind, "DaemonSet") {
		return
	}
	detail := owner.Kind + " " + owner.Name
	if owner.Kind != "DaemonSet" || owner.APIVersion != appsv1.SchemeGroupVersion.String() {
		// It would be back on the same node at once, and be evicted again.
		c.add("DR-04", CodeDaemonSetForeign, owner.APIVersion+" "+detail)
		c.ignore = true
		return
	}
	found := Unknown
	if c.look.DaemonSet != nil {
		found = c.look.DaemonSet(c.pod.Namespace, owner.Name)
	}
	switch found {
	case Present:
		c.add("DR-02", CodeDaemonSet, detail)
		c.ignore = true
	case Absent:
		c.need("DR-03", CodeDaemonSetOrphan, fleet.ConsentForce, detail)
	default:
		c.add("DR-02", CodeDaemonSetUnknown, detail)
		c.block = true
	}
}

// mirror is DR-01: the kubelet runs it from a file, and the API server only shows it.
func (c *classifier) mirror() {
	_, annotated := c.pod.Annotations[corev1.MirrorPodAnnotationKey]
	owner := metav1.GetControllerOf(c.pod)
	if annotated || owner != nil && owner.Kind == "Node" && owner.APIVersion == "v1" {
		c.add("DR-01", CodeMirror, "")
		c.ignore = true
	}
}

// finished is DR-05.
func (c *classifier) finished() {
	if !ended(c.pod) {
		return
	}
	if c.pol.KeepFinished {
		c.add("DR-05", CodeFinishedKept, string(c.pod.Status.Phase))
		c.ignore = true
		return
	}
	c.add("DR-05", CodeFinished, string(c.pod.Status.Phase))
}

// localData is DR-07 to DR-09.
func (c *classifier) localData() {
	if ended(c.pod) {
		return
	}
	for i := range c.pod.Spec.Volumes {
		v := &c.pod.Spec.Volumes[i]
		switch {
		case v.EmptyDir != nil:
			detail := v.Name
			if v.EmptyDir.Medium == corev1.StorageMediumMemory {
				detail += ", in memory"
			}
			if v.EmptyDir.SizeLimit != nil {
				detail += ", at most " + v.EmptyDir.SizeLimit.String()
			}
			c.need("DR-07", CodeEmptyDir, fleet.ConsentLocalData, detail)
		case v.Ephemeral != nil || v.CSI != nil:
			c.add("DR-08", CodeEphemeralVolume, v.Name)
		case v.HostPath != nil:
			c.add("DR-09", CodeHostPath, v.Name+": "+v.HostPath.Path)
		case v.PersistentVolumeClaim != nil && c.look.Pinned != nil:
			if node := c.look.Pinned(c.pod.Namespace, v.PersistentVolumeClaim.ClaimName); node != "" {
				c.add("DR-09", CodePinnedVolume, v.PersistentVolumeClaim.ClaimName+" on "+node)
			}
		}
	}
}

// unmanaged is DR-06: any controller counts, known or not.
func (c *classifier) unmanaged() {
	if !ended(c.pod) && metav1.GetControllerOf(c.pod) == nil {
		c.need("DR-06", CodeUnmanaged, fleet.ConsentUnmanaged, "")
	}
}

// rest is what kubectl does not look at: DR-12 to DR-17.
func (c *classifier) rest() {
	if c.pod.Status.Phase == corev1.PodPending && c.pod.Spec.NodeName != "" {
		c.add("DR-12", CodePending, "")
	}
	if c.pol.Selector != nil && !c.pol.Selector.Matches(labels.Set(c.pod.Labels)) {
		c.add("DR-13", CodeExcluded, c.pol.Selector.String())
		c.ignore = true
	}
	if !ended(c.pod) {
		c.optOut()
	}
	if _, daemon := daemonSetOf(c.pod); !daemon && toleratesCordon(c.pod) {
		c.add("DR-15", CodeReturns, "")
	}
	if c.pol.Self.Name != "" && c.pol.Self == (types.NamespacedName{Namespace: c.pod.Namespace, Name: c.pod.Name}) {
		c.add("DR-16", CodeSelf, "")
	}
	if n := len(c.pod.Spec.EvictionResponders); n > 0 {
		c.add("DR-17", CodeResponders, c.pod.Spec.EvictionResponders[0].Name)
	}
}

// optOut is DR-14. The consent means that the owners' wish is passed over.
func (c *classifier) optOut() {
	switch v := c.pod.Labels[capiDrain]; strings.ToLower(v) {
	case "skip":
		c.need("DR-14", CodeOptOut, fleet.ConsentOptOut, capiDrain+"="+v)
	case "wait-completed":
		c.add("DR-14", CodeWaitCompleted, capiDrain+"="+v)
		c.wait = !slices.Contains(c.pol.Consents, fleet.ConsentOptOut)
	}
	if v := c.pod.Annotations[karpenterKeep]; v != "" && c.protected(v) {
		c.need("DR-14", CodeOptOut, fleet.ConsentOptOut, fmt.Sprintf("%s=%s", karpenterKeep, kube.Plain(v)))
	}
	if c.pod.Annotations[casSafe] == "false" {
		c.need("DR-14", CodeOptOut, fleet.ConsentOptOut, casSafe+"=false")
	}
}

// protected reads Karpenter's annotation: "true", or for how long from the pod's start.
func (c *classifier) protected(v string) bool {
	if v == "true" {
		return true
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		return false // as Karpenter has it
	}
	start := c.pod.CreationTimestamp.Time
	if c.pod.Status.StartTime != nil {
		start = c.pod.Status.StartTime.Time
	}
	return c.now.Before(start.Add(d))
}

// ended tells whether the pod's containers have all ended for good.
func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// toleratesCordon tells whether the scheduler puts the pod on a cordoned node (DR-15).
func toleratesCordon(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Spec.Tolerations, func(t corev1.Toleration) bool {
		if t.Effect != "" && t.Effect != corev1.TaintEffectNoSchedule {
			return false
		}
		if t.Operator == corev1.TolerationOpExists {
			return t.Key == "" || t.Key == corev1.TaintNodeUnschedulable
		}
		return (t.Operator == "" || t.Operator == corev1.TolerationOpEqual) && t.Key == corev1.TaintNodeUnschedulable && t.Value == ""
	})
}

// ready is the API server's own test of health.
func ready(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// Order is the group of a pod (DR-60): a group is begun when the one before is gone. Inside a group there is no order,
// for pods that wait for each other must be able to go together.
func Order(p *corev1.Pod, pol Policy) int {
	switch {
	case pol.Self.Name != "" && pol.Self == (types.NamespacedName{Namespace: p.Namespace, Name: p.Name}):
		return 300
	case p.Labels["app"] == "rook-ceph-osd", p.Labels["longhorn.io/component"] == "instance-manager":
		return 200 // storage goes after those who use it
	case p.Spec.PriorityClassName == "system-cluster-critical", p.Spec.PriorityClassName == "system-node-critical":
		return 100
	}
	return 0
}
