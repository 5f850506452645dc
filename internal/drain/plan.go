package drain

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// Target is a node of a batch, as it was chosen.
type Target struct {
	Name string
	UID  string // "" for whichever has the name
}

// The codes of impacts.
const (
	ImpactSingleReplica = "single_replica" // its only replica: a downtime
	ImpactAllReplicas   = "all_replicas"   // every replica is on the nodes of this batch
	ImpactStateful      = "stateful"       // made again under the same name, after this one is gone
	ImpactJob           = "job"            // counts as a failed try
	ImpactDataLoss      = "data_loss"
	ImpactForever       = "not_made_again"
	ImpactCritical      = "critical"
	ImpactHostPort      = "host_port"
	ImpactHostNetwork   = "host_network"
	ImpactAntiAffinity  = "anti_affinity"
	ImpactSpread        = "topology_spread"
	ImpactPinned        = "pinned" // can start on this node only
	ImpactReturns       = "returns"
)

// The codes of warnings about a cluster as a whole.
const (
	// WarnWebhookDeadlock: an admission that must answer has no server left but on the nodes of the batch. When they are
	// empty, nothing that it looks at can be changed, perhaps not even the pods that would serve it again.
	WarnWebhookDeadlock = "webhook_deadlock"
	WarnControlPlane    = "control_plane" // nodes of the control plane are among those of the batch
	WarnQuorum          = "etcd_quorum"   // and without them those that are left are no majority

	WarnLastOfZone    = "last_of_zone"    // no node of a zone takes pods any more
	WarnLastOfCluster = "last_of_cluster" // no node of the cluster does
)

// settle is how long a replacement takes to be ready, where nothing better is known.
const settle = 30

// NewPlan works out what draining the targets would do. It reads nothing.
func NewPlan(r *Reading, targets []Target, pol Policy, now time.Time) *fleet.ClusterPlan {
	b := builder{r: r, pol: pol, now: now, leaving: map[string]bool{}}
	b.index(targets)
	return b.plan(targets)
}

// builder holds what a plan looks up again and again.
type builder struct {
	r   *Reading
	pol Policy
	now time.Time

	leaving  map[string]bool // names of the targets
	nodes    map[string]*corev1.Node
	pods     map[string][]*corev1.Pod // of the targets
	owners   map[types.UID]owner
	here     map[types.UID]int // pods of an owner on the targets
	volumes  map[string]*corev1.PersistentVolume
	claims   map[types.NamespacedName]string // to volumes
	daemons  map[types.NamespacedName]bool
	missing  map[string]bool
	selected []*corev1.Pod // all that are to be evicted, in order
}

// owner is who makes pods again.
type owner struct {
	kind, name string
	uid        types.UID
	replicas   int32 // -1: not known, or it has no such number
	detail     string
}

func (b *builder) index(targets []Target) {
	for _, t := range targets {
		b.leaving[t.Name] = true
	}
	b.missing = map[string]bool{}
	for _, m := range b.r.Missing {
		b.missing[m] = true
	}
	b.nodes = map[string]*corev1.Node{}
	for i := range b.r.Nodes {
		b.nodes[b.r.Nodes[i].Name] = &b.r.Nodes[i]
	}
	b.pods = map[string][]*corev1.Pod{}
	for i := range b.r.Pods {
		if p := &b.r.Pods[i]; b.leaving[p.Spec.NodeName] {
			b.pods[p.Spec.NodeName] = append(b.pods[p.Spec.NodeName], p)
		}
	}
	for _, pods := range b.pods {
		slices.SortFunc(pods, func(x, y *corev1.Pod) int {
			return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
		})
	}
	b.volumes = map[string]*corev1.PersistentVolume{}
	for i := range b.r.Volumes {
		b.volumes[b.r.Volumes[i].Name] = &b.r.Volumes[i]
	}
	b.claims = map[types.NamespacedName]string{}
	for i := range b.r.Claims {
		c := &b.r.Claims[i]
		b.claims[types.NamespacedName{Namespace: c.Namespace, Name: c.Name}] = c.Spec.VolumeName
	}
	b.daemons = map[types.NamespacedName]bool{}
	for i := range b.r.DaemonSets {
		d := &b.r.DaemonSets[i]
		b.daemons[types.NamespacedName{Namespace: d.Namespace, Name: d.Name}] = true
	}
	b.indexOwners()
}

func (b *builder) indexOwners() {
	b.owners = map[types.UID]owner{}
	for i := range b.r.Deployments {
		d := &b.r.Deployments[i]
		b.owners[d.UID] = owner{"Deployment", d.Name, d.UID, count(d.Spec.Replicas), ""}
	}
	for i := range b.r.StatefulSets {
		s := &b.r.StatefulSets[i]
		b.owners[s.UID] = owner{"StatefulSet", s.Name, s.UID, count(s.Spec.Replicas), ""}
	}
	for i := range b.r.Jobs {
		j := &b.r.Jobs[i]
		o := owner{"Job", j.Name, j.UID, -1, ""}
		if j.Spec.BackoffLimit != nil {
			o.detail = fmt.Sprintf("%d of %d tries failed", j.Status.Failed, *j.Spec.BackoffLimit+1)
		}
		b.owners[j.UID] = o
	}
	for i := range b.r.ReplicaSets {
		s := &b.r.ReplicaSets[i]
		o := owner{"ReplicaSet", s.Name, s.UID, count(s.Spec.Replicas), ""}
		if ref := metav1.GetControllerOf(s); ref != nil {
			above, known := b.owners[ref.UID]
			if !known { // such as a Rollout: its sets tell how many there should be
				above = owner{ref.Kind, ref.Name, ref.UID, o.replicas, ""}
			}
			o = above
		}
		b.owners[s.UID] = o
	}
	b.here = map[types.UID]int{}
	for _, pods := range b.pods {
		for _, p := range pods {
			if o, ok := b.owner(p); ok && !ended(p) && p.DeletionTimestamp == nil {
				b.here[o.uid]++
			}
		}
	}
}

func count(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

func (b *builder) owner(p *corev1.Pod) (owner, bool) {
	ref := metav1.GetControllerOf(p)
	if ref == nil {
		return owner{}, false
	}
	if o, ok := b.owners[ref.UID]; ok {
		return o, true
	}
	return owner{ref.Kind, ref.Name, ref.UID, -1, ""}, true
}

func (b *builder) lookups() Lookups {
	return Lookups{
		DaemonSet: func(namespace, name string) Presence {
			switch {
			case b.missing["daemonsets"]:
				return Unknown
			case b.daemons[types.NamespacedName{Namespace: namespace, Name: name}]:
				return Present
			}
			return Absent
		},
		Pinned: func(namespace, claim string) string {
			v := b.volumes[b.claims[types.NamespacedName{Namespace: namespace, Name: claim}]]
			return pinnedTo(v)
		},
	}
}

// pinnedTo is the one node that a volume can be used on, "" if it can be used on several.
func pinnedTo(v *corev1.PersistentVolume) string {
	if v == nil || v.Spec.NodeAffinity == nil || v.Spec.NodeAffinity.Required == nil || len(v.Spec.NodeAffinity.Required.NodeSelectorTerms) != 1 {
		return ""
	}
	for _, e := range v.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions {
		if e.Key == corev1.LabelHostname && e.Operator == corev1.NodeSelectorOpIn && len(e.Values) == 1 {
			return e.Values[0]
		}
	}
	return ""
}

func (b *builder) plan(targets []Target) *fleet.ClusterPlan {
	out := &fleet.ClusterPlan{Cluster: b.r.Cluster, At: b.r.At, Permissions: b.rights(), Missing: b.r.Missing, Nodes: []fleet.NodePlan{}}
	look := b.lookups()
	byUID := map[types.UID]*fleet.PodPlan{}
	for _, t := range targets {
		n := b.node(t)
		if n.Fault == "" {
			for _, p := range b.pods[t.Name] {
				n.Pods = append(n.Pods, b.pod(p, Classify(p, b.pol, look, b.now)))
			}
		}
		for i := range n.Pods {
			n.Counts.Add(n.Pods[i].Verdict)
			out.Counts.Add(n.Pods[i].Verdict)
		}
		b.judge(&n, out.Permissions)
		out.Nodes = append(out.Nodes, n)
	}
	out.Warnings = b.warnings()
	for i := range out.Nodes {
		n := &out.Nodes[i]
		at := map[types.UID]*corev1.Pod{}
		for _, p := range b.pods[n.Name] {
			at[p.UID] = p
		}
		for j := range n.Pods {
			// What needs a consent is counted as if it were given: a plan is read before that decision.
			if v := n.Pods[j].Verdict; v == fleet.VerdictEvict || v == fleet.VerdictBlock {
				byUID[types.UID(n.Pods[j].UID)] = &n.Pods[j]
				b.selected = append(b.selected, at[types.UID(n.Pods[j].UID)])
			}
		}
	}
	var evaluated func(string) bool
	if b.missing["poddisruptionbudgets"] {
		evaluated = func(string) bool { return false }
	}
	verdicts, budgets := Budgets(b.selected, b.r.Budgets, evaluated)
	out.Budgets = budgets
	for uid, v := range verdicts {
		byUID[uid].Budget = &v
	}
	b.fits(out, byUID)
	waves := map[string]int{}
	for _, v := range budgets {
		waves[v.Namespace+"/"+v.Name] = v.Waves
	}
	var all []*fleet.PodPlan
	for i := range out.Nodes {
		n := &out.Nodes[i]
		var pods []*fleet.PodPlan
		for j := range n.Pods {
			pods = append(pods, &n.Pods[j])
		}
		n.Estimate = new(b.estimate(pods, nil))
		all = append(all, pods...)
	}
	out.Estimate = new(b.estimate(all, waves))
	for _, p := range out.Permissions {
		out.Estimate.Blocked = out.Estimate.Blocked || !p.Allowed
	}
	return out
}

// rights are those that this drain needs.
func (b *builder) rights() []fleet.ClusterRight {
	not := Policy{Delete: !b.pol.Delete}.right()
	return slices.DeleteFunc(slices.Clone(b.r.Permissions), func(p fleet.ClusterRight) bool {
		p.Allowed = not.Allowed
		return p == not
	})
}

// judge says what would happen to the node as a whole. A budget blocks nothing: it is waited for.
func (b *builder) judge(n *fleet.NodePlan, rights []fleet.ClusterRight) {
	switch {
	case n.Fault != "":
		n.Verdict = fleet.NodeMissing
	case slices.ContainsFunc(rights, func(p fleet.ClusterRight) bool { return !p.Allowed }):
		n.Verdict, n.Fault = fleet.NodeBlocked, fleet.CodeForbidden
	case slices.ContainsFunc(n.Actors, func(a fleet.Actor) bool { return a.Forbids }):
		n.Verdict, n.Fault = fleet.NodeBlocked, fleet.CodeLocked
	case n.Counts.Block > 0:
		n.Verdict, n.Fault = fleet.NodeBlocked, fleet.CodeBlocked
	case n.Unschedulable && n.Counts.Evict == 0 && n.Counts.Wait == 0:
		n.Verdict = fleet.NodeUnchanged
	default:
		n.Verdict = fleet.NodeChange
	}
}

func (b *builder) node(t Target) fleet.NodePlan {
	out := fleet.NodePlan{NodeRef: fleet.NodeRef{Cluster: b.r.Cluster, Name: t.Name}, UID: t.UID, Pods: []fleet.PodPlan{}}
	n := b.nodes[t.Name]
	switch {
	case n == nil:
		out.Fault = fleet.CodeNotFound
		return out
	case t.UID != "" && t.UID != string(n.UID):
		out.Fault = fleet.CodeReplaced
		return out
	}
	out.UID, out.Unschedulable, out.Roles = string(n.UID), n.Spec.Unschedulable, kube.Roles(n.Labels)
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			out.Ready = c.Status == corev1.ConditionTrue
		}
	}
	out.Actors = b.actors(n)
	return out
}

func (b *builder) pod(p *corev1.Pod, c fleet.PodClass) fleet.PodPlan {
	out := fleet.PodPlan{
		Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), PodClass: c, Order: Order(p, b.pol), Grace: grace(p),
	}
	o, owned := b.owner(p)
	if owned {
		out.OwnerKind, out.OwnerName = o.kind, o.name
	}
	if c.Verdict != fleet.VerdictEvict && c.Verdict != fleet.VerdictBlock {
		return out
	}
	out.Impact = b.impact(p, o, owned)
	return out
}

// grace is how long a pod may take to end.
func grace(p *corev1.Pod) int64 {
	if p.Spec.TerminationGracePeriodSeconds != nil {
		return *p.Spec.TerminationGracePeriodSeconds
	}
	return corev1.DefaultTerminationGracePeriodSeconds
}

// impact is PV-20 to PV-26.
func (b *builder) impact(p *corev1.Pod, o owner, owned bool) []fleet.Impact {
	if ended(p) {
		return nil
	}
	var out []fleet.Impact
	add := func(id, code, detail string) { out = append(out, fleet.Impact{ID: id, Code: code, Detail: detail}) }
	switch {
	case o.replicas == 1:
		add("PV-20", ImpactSingleReplica, o.kind+" "+o.name)
	case o.replicas > 1 && b.here[o.uid] >= int(o.replicas):
		add("PV-20", ImpactAllReplicas, fmt.Sprintf("%s %s: %d of %d", o.kind, o.name, b.here[o.uid], o.replicas))
	}
	switch {
	case !owned:
		add("PV-23", ImpactForever, "")
	case o.kind == "StatefulSet":
		add("PV-21", ImpactStateful, o.name)
	case o.kind == "Job":
		add("PV-22", ImpactJob, o.detail)
	}
	for i := range p.Spec.Volumes {
		if v := &p.Spec.Volumes[i]; v.EmptyDir != nil || v.Ephemeral != nil || v.CSI != nil {
			add("PV-24", ImpactDataLoss, v.Name)
		}
	}
	switch {
	case strings.HasPrefix(p.Spec.PriorityClassName, "system-"):
		add("PV-25", ImpactCritical, p.Spec.PriorityClassName)
	case p.Namespace == metav1.NamespaceSystem:
		add("PV-25", ImpactCritical, p.Namespace)
	}
	if ports := hostPorts(p); len(ports) > 0 {
		add("PV-26", ImpactHostPort, strings.Join(ports, ", "))
	}
	if p.Spec.HostNetwork {
		add("PV-26", ImpactHostNetwork, "")
	}
	if a := p.Spec.Affinity; a != nil && a.PodAntiAffinity != nil && len(a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution) > 0 {
		add("PV-26", ImpactAntiAffinity, a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution[0].TopologyKey)
	}
	for _, s := range p.Spec.TopologySpreadConstraints {
		if s.WhenUnsatisfiable == corev1.DoNotSchedule {
			add("PV-26", ImpactSpread, s.TopologyKey)
		}
	}
	if toleratesCordon(p) {
		add("DR-15", ImpactReturns, "")
	}
	return out
}

// fits looks for a place for every pod that somebody makes again (§2.3).
func (b *builder) fits(out *fleet.ClusterPlan, byUID map[types.UID]*fleet.PodPlan) {
	rms := rooms(b.r, b.leaving)
	var back []*corev1.Pod
	for _, p := range b.selected {
		if owner := metav1.GetControllerOf(p); owner != nil && owner.Kind != "DaemonSet" && !ended(p) {
			back = append(back, p)
		}
	}
	before := b.asked(true)
	fits := place(back, rms, b.volumesOf)
	out.Capacity = &fleet.Capacity{Checked: len(rms), Nodes: len(b.r.Nodes), Autoscale: b.autoscaled(), Ignored: ignoredByFit}
	after := b.asked(false)
	for _, p := range back {
		after.add(p)
	}
	out.Capacity.Headroom = headroom(before, after)
	for _, p := range back {
		plan := byUID[p.UID]
		plan.Fit = fits[p]
		if plan.Fit.Node == "" {
			out.Capacity.Unfit++
		}
		if plan.Has(CodePinnedVolume) {
			plan.Impact = append(plan.Impact, fleet.Impact{ID: "DR-09", Code: ImpactPinned, Detail: ""})
		}
	}
}

// volumesOf is where the volumes of a pod can be used.
func (b *builder) volumesOf(p *corev1.Pod) []*nodeaffinity.NodeSelector {
	var out []*nodeaffinity.NodeSelector
	for i := range p.Spec.Volumes {
		c := p.Spec.Volumes[i].PersistentVolumeClaim
		if c == nil {
			continue
		}
		v := b.volumes[b.claims[types.NamespacedName{Namespace: p.Namespace, Name: c.ClaimName}]]
		if v == nil || v.Spec.NodeAffinity == nil || v.Spec.NodeAffinity.Required == nil {
			continue
		}
		s, err := nodeaffinity.NewNodeSelector(v.Spec.NodeAffinity.Required)
		if err != nil {
			continue // what the API server let pass and nobody understands restricts nothing here
		}
		out = append(out, s)
	}
	return out
}

// autoscaled guesses whether something adds nodes when pods find no place (PV-30).
func (b *builder) autoscaled() bool {
	for i := range b.r.Nodes {
		if _, ok := b.r.Nodes[i].Labels["karpenter.sh/nodepool"]; ok {
			return true
		}
	}
	for i := range b.r.Deployments {
		if strings.Contains(b.r.Deployments[i].Name, "cluster-autoscaler") && available(&b.r.Deployments[i]) {
			return true
		}
	}
	return false
}

func available(d *appsv1.Deployment) bool { return d.Status.AvailableReplicas > 0 }

// foreign are the marks by which others say that they are at work on a node (§2.4).
var (
	foreignTaints = map[string]string{
		"karpenter.sh/disrupted": "karpenter", "karpenter.sh/disruption": "karpenter",
		"karpenter.sh/rebooting": "karpenter", "karpenter.sh/unregistered": "karpenter",
		"ToBeDeletedByClusterAutoscaler": "cluster-autoscaler", "DeletionCandidateOfClusterAutoscaler": "cluster-autoscaler",
		"medik8s.io/drain": "medik8s", "node.kubernetes.io/out-of-service": "out-of-service",
	}
	foreignConditions = []string{"DrainInProgress", "MaintenanceInProgress"}
)

func (b *builder) actors(n *corev1.Node) []fleet.Actor {
	var out []fleet.Actor
	if n.DeletionTimestamp != nil {
		out = append(out, fleet.Actor{Who: "deletion", Detail: n.DeletionTimestamp.UTC().Format(time.RFC3339)})
	}
	if _, ok := n.Annotations["weave.works/kured-reboot-in-progress"]; ok {
		out = append(out, fleet.Actor{Who: "kured", Detail: "weave.works/kured-reboot-in-progress"})
	}
	for _, t := range n.Spec.Taints {
		who, ok := foreignTaints[t.Key]
		if !ok && strings.HasPrefix(t.Key, "node.cloudprovider.kubernetes.io/") {
			who, ok = "cloud-provider", true
		}
		if ok {
			out = append(out, fleet.Actor{Who: who, Detail: t.Key})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(n.Labels)) {
		if strings.HasPrefix(key, "aws-node-termination-handler/") {
			out = append(out, fleet.Actor{Who: "aws-node-termination-handler", Detail: key})
		}
	}
	for _, c := range n.Status.Conditions {
		if slices.Contains(foreignConditions, string(c.Type)) && c.Status == corev1.ConditionTrue {
			out = append(out, fleet.Actor{Who: "condition", Detail: string(c.Type) + " " + kube.Plain(c.Reason)})
		}
	}
	for i := range b.r.Leases {
		l := &b.r.Leases[i]
		if l.Name != "node-"+n.Name || l.Spec.HolderIdentity == nil || l.Spec.RenewTime == nil || l.Spec.LeaseDurationSeconds == nil {
			continue
		}
		if until := l.Spec.RenewTime.Add(time.Duration(*l.Spec.LeaseDurationSeconds) * time.Second); b.now.Before(until) {
			out = append(out, fleet.Actor{Who: "medik8s", Detail: kube.Plain(*l.Spec.HolderIdentity) + " until " + until.UTC().Format(time.RFC3339), Forbids: true})
		}
	}
	return out
}

// estimate is §2.5: the groups one after the other, and the waves of the slowest budget. Waves is by namespace/name; nil
// for what each pod knows itself.
func (b *builder) estimate(pods []*fleet.PodPlan, waves map[string]int) fleet.Estimate {
	var out fleet.Estimate
	groups := map[int]int64{}
	perBudget := map[string]int{}
	longest := map[string]int64{}
	for _, p := range pods {
		switch p.Verdict {
		case fleet.VerdictIgnore:
			continue
		case fleet.VerdictBlock:
			out.Blocked = true
			continue
		default:
		}
		groups[p.Order] = max(groups[p.Order], p.Grace)
		if p.Budget == nil || b.pol.Delete {
			continue // a deletion asks no budget
		}
		if a := p.Budget.Allowance; a == fleet.AllowNever {
			out.Blocked = true
		}
		for _, name := range p.Budget.Budgets {
			key := p.Namespace + "/" + name
			n := p.Budget.Wave
			if waves != nil {
				n = waves[key]
			}
			perBudget[key] = max(perBudget[key], n)
			longest[key] = max(longest[key], p.Grace)
		}
	}
	for _, g := range groups {
		out.HighSeconds += g
	}
	var low, high int64
	for key, n := range perBudget {
		if n > 1 { // the first wave is among the groups
			low = max(low, int64(n-1)*settle)
			high = max(high, int64(n-1)*(longest[key]+settle))
		}
	}
	out.LowSeconds += low
	out.HighSeconds += high
	return out
}
