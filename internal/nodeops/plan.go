package nodeops

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"github.com/kube-node-manager/kube-node-manager/internal/drain"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
	"github.com/kube-node-manager/kube-node-manager/internal/kubectl"
	"github.com/kube-node-manager/kube-node-manager/internal/marks"
)

const (
	// planTimeout bounds the look at one cluster, whatever there is to see.
	planTimeout = 2 * time.Minute
	// planClusters is how many clusters are looked at at a time, and planReads how many reads one of them is asked at a
	// time.
	planClusters = 8
	planReads    = 10
	// fewNodes is up to where nodes are read one by one. One list of 5,000 costs more than that.
	fewNodes = 20
	// listPage is how many objects a page of a list has.
	listPage = 500
	// manyNodes is up to how many nodes a drain needs nothing typed.
	manyNodes = 10
	// manyPercent of the nodes of a cluster are many too, where they are more than freeNodes: of a cluster of ten, two are
	// a fifth.
	manyPercent = 10
	freeNodes   = 3
	// noBatch stands for the batch that a plan would become: no batch has this id.
	noBatch = "plan"
)

// Plan says what an operation would do to nodes. See batch.Planner for the contract.
func (o *Ops) Plan(ctx context.Context, by fleet.Caller, op fleet.Operation, items []fleet.Item) (*fleet.Plan, error) {
	p := &fleet.Plan{Action: op.Action, At: time.Now().UTC(), Operation: op, Clusters: []fleet.ClusterPlan{}}
	byCluster := make(map[string][]fleet.Item)
	var order []string
	for _, it := range items {
		if byCluster[it.Ref.Cluster] == nil {
			order = append(order, it.Ref.Cluster)
		}
		byCluster[it.Ref.Cluster] = append(byCluster[it.Ref.Cluster], it)
	}
	looks := make([]look, len(order))
	each(planClusters, len(order), func(i int) {
		looks[i] = o.look(ctx, by, op, order[i], byCluster[order[i]])
	})
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("planning %s: %w", op.Action, err)
	}
	for _, l := range looks {
		p.Clusters = append(p.Clusters, l.plan)
	}
	p.Counts = nodeCounts(p.Clusters, len(items))
	p.Why = whyConfirm(op, items, looks)
	if len(p.Why) > 0 {
		p.Confirm = fmt.Sprintf("%d nodes", len(items))
		if len(order) == 1 {
			p.Confirm = order[0]
		}
	}
	p.Digest = planDigest(p.Clusters)
	p.Kubectl = planKubectl(op, items, p.Clusters)
	return p, nil
}

// each calls do for every index, some at a time, and returns when all are done.
func each(atOnce, n int, do func(i int)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			do(i)
		})
	}
	wg.Wait()
}

// look is what was seen of one cluster.
type look struct {
	plan    fleet.ClusterPlan
	deletes int  // nodes on which a taint deletes pods
	guarded bool // some of them guarded by a budget
	unseen  bool // there are nodes whose pods could not be looked at
	control bool // nodes of the control plane would be drained
	last    bool // the last nodes of a zone or of the cluster that take pods would be drained
}

// look looks at a cluster. One that cannot be looked at says why.
func (o *Ops) look(ctx context.Context, by fleet.Caller, op fleet.Operation, cluster string, items []fleet.Item) look {
	ctx, cancel := context.WithTimeout(ctx, planTimeout)
	defer cancel()
	at := time.Now().UTC()
	var l look
	ctx = kube.OnBehalf(ctx, by.Name, noBatch)
	via, err := o.cfg.Clients(cluster, by)
	switch {
	case err != nil:
		w := &work{op: op, item: fleet.Item{Ref: fleet.NodeRef{Cluster: cluster}}}
		res, _ := noClient(w, err) // the sentence is what is needed of it
		l.plan.Error = res.Message
	case op.Action == fleet.ActionDrain:
		l.plan, err = o.planDrain(ctx, by, op, cluster, items)
		l.control = drainsControlPlane(l.plan.Nodes)
		l.last = slices.ContainsFunc(l.plan.Warnings, func(w fleet.Impact) bool {
			return w.Code == drain.WarnLastOfZone || w.Code == drain.WarnLastOfCluster
		})
	default:
		l, err = o.planEdits(ctx, by, op, cluster, items, via)
	}
	if err != nil && l.plan.Error == "" {
		o.log.WarnContext(ctx, "planning", keyOp, op.Action, keyCluster, cluster, keyErr, err)
		w := &work{op: op, item: fleet.Item{Ref: fleet.NodeRef{Cluster: cluster}}}
		res, _ := failure(w, err, false)
		l = look{plan: fleet.ClusterPlan{Error: res.Message}}
	}
	l.plan.Cluster = cluster
	if l.plan.At.IsZero() {
		l.plan.At = at
	}
	if l.plan.Nodes == nil {
		l.plan.Nodes = []fleet.NodePlan{}
	}
	return l
}

// planEdits works out what an operation other than a drain does to the nodes of one cluster, by the very verbs that
// would do it.
func (o *Ops) planEdits(
	ctx context.Context, by fleet.Caller, op fleet.Operation, cluster string, items []fleet.Item, via kube.Clients,
) (look, error) {
	l := look{plan: fleet.ClusterPlan{Cluster: cluster, At: time.Now().UTC()}}
	nodes, err := readNodes(ctx, via.Own, items)
	if err != nil {
		return l, err
	}
	refused, err := l.rights(ctx, via, op)
	if err != nil {
		return l, err
	}
	l.plan.Nodes = make([]fleet.NodePlan, len(items))
	var look []sight
	for i, it := range items {
		n := nodes[it.Ref.Name]
		p := &l.plan.Nodes[i]
		ch := planNode(p, work{by: by, batch: noBatch, item: it, op: op, at: l.plan.At}, n)
		if ch != nil && refused {
			p.Verdict, p.Fault = fleet.NodeBlocked, fleet.CodeForbidden
			continue
		}
		if ch != nil {
			look = append(look, sight{plan: p, before: n, change: ch})
		}
	}
	l.passing(look)
	if err := l.pods(ctx, via.Own, look); err != nil {
		return l, err
	}
	for i := range l.plan.Nodes {
		addCounts(&l.plan.Counts, l.plan.Nodes[i].Counts)
	}
	return l, nil
}

// rights asks the cluster whether the operation is permitted to whoever would act there.
func (l *look) rights(ctx context.Context, via kube.Clients, op fleet.Operation) (refused bool, err error) {
	for _, r := range op.Needs() {
		if r.Allowed, err = kube.May(ctx, via.Acts, fleet.TestedRight{Verb: r.Verb, Group: r.Group, Resource: r.Resource, Subresource: r.Subresource}); err != nil {
			return false, fmt.Errorf("asking what is permitted: %w", err)
		}
		l.plan.Permissions = append(l.plan.Permissions, r)
		refused = refused || !r.Allowed
	}
	return refused, nil
}

func addCounts(c *fleet.PodCounts, more fleet.PodCounts) {
	c.Delete += more.Delete
	c.Later += more.Later
	c.Stay += more.Stay
}

// planNode fills in what happens to one node, and returns the change if there is one. A node that is not there is nil.
func planNode(p *fleet.NodePlan, w work, n *corev1.Node) *change {
	p.NodeRef, p.UID = w.item.Ref, w.item.UID
	switch {
	case n == nil:
		p.Verdict, p.Fault = fleet.NodeMissing, fleet.CodeNotFound
		return nil
	case w.item.UID != "" && w.item.UID != string(n.UID):
		p.Verdict, p.Fault = fleet.NodeMissing, fleet.CodeReplaced
		return nil
	}
	p.UID, p.Unschedulable = string(n.UID), n.Spec.Unschedulable
	p.Ready = slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
	d := verbs[w.op.Action](w, n)
	p.Edits, p.Message = d.edits, d.result.Message
	if perm, ok := lacks(w.by, marks.Needs(w.op, w.item.Undo), w.item.Ref.Cluster); ok {
		p.Verdict, p.Fault = fleet.NodeBlocked, fleet.CodeForbidden
		p.Message = fmt.Sprintf("the role %q does not have %s", w.by.Role, perm)
		return nil
	}
	switch {
	case d.change != nil:
		p.Verdict, p.Fault = fleet.NodeChange, d.result.Code
	case d.result.State == fleet.ItemFailed, d.result.Code == fleet.CodeForeignCordon:
		p.Verdict, p.Fault = fleet.NodeBlocked, d.result.Code
	default:
		p.Verdict = fleet.NodeUnchanged
		if d.result.Code != fleet.CodeUnchanged {
			p.Fault = d.result.Code
		}
	}
	return d.change
}

// applied is the node as the change leaves it, as far as pods care.
func (ch *change) applied(n *corev1.Node) *corev1.Node {
	out := n.DeepCopy()
	for key, value := range ch.labels {
		if s, ok := value.(string); ok {
			if out.Labels == nil {
				out.Labels = make(map[string]string)
			}
			out.Labels[key] = s
		} else {
			delete(out.Labels, key)
		}
	}
	if list, ok := ch.spec["taints"].([]corev1.Taint); ok {
		out.Spec.Taints = list
	}
	return out
}

// readNodes reads the nodes of some items, by name. What is not there is not in the map.
func readNodes(ctx context.Context, client kubernetes.Interface, items []fleet.Item) (map[string]*corev1.Node, error) {
	core := client.CoreV1().RESTClient()
	out := make(map[string]*corev1.Node, len(items))
	if len(items) > fewNodes {
		err := pages(ctx, core, "nodes", metav1.ListOptions{}, func() *corev1.NodeList { return &corev1.NodeList{} }, func(l *corev1.NodeList) {
			for i := range l.Items {
				l.Items[i].Status.Images = nil // most of a node, and of no use here
				out[l.Items[i].Name] = &l.Items[i]
			}
		})
		if err != nil {
			return nil, fmt.Errorf("listing nodes: %w", err)
		}
		return out, nil
	}
	got, errs := make([]*corev1.Node, len(items)), make([]error, len(items))
	each(planReads, len(items), func(i int) {
		got[i], errs[i] = nodeClient{reads: core, name: items[i].Ref.Name}.get(ctx)
	})
	for i, it := range items {
		switch {
		case errs[i] == nil:
			out[it.Ref.Name] = got[i]
		case !errors.Is(errs[i], fleet.ErrNotFound):
			return nil, fmt.Errorf("reading node %s: %w", it.Ref.Name, errs[i])
		}
	}
	return out, nil
}

// list is what all lists have in common.
type list interface {
	metav1.ListInterface
	runtime.Object
}

// pages reads a list page by page, as the API server has it now.
func pages[L list](ctx context.Context, c rest.Interface, resource string, opts metav1.ListOptions, empty func() L, take func(L)) error {
	opts.Limit = listPage
	for {
		l := empty()
		if err := page(ctx, c, resource, opts, l); err != nil {
			return err
		}
		take(l)
		if opts.Continue = l.GetContinue(); opts.Continue == "" {
			return nil
		}
	}
}

func page(ctx context.Context, c rest.Interface, resource string, opts metav1.ListOptions, into list) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return kube.Error(c.Get().MaxRetries(0).UseProtobufAsDefaultIfPreferred(true).Resource(resource).
		VersionedParams(&opts, scheme.ParameterCodec).Do(ctx).Into(into))
}

// drainsControlPlane tells whether a node that would be drained belongs to the control plane.
func drainsControlPlane(nodes []fleet.NodePlan) bool {
	return slices.ContainsFunc(nodes, func(n fleet.NodePlan) bool {
		return (n.Verdict == fleet.NodeChange || n.Verdict == fleet.NodeBlocked) &&
			(slices.Contains(n.Roles, "control-plane") || slices.Contains(n.Roles, "master"))
	})
}

// nodeCounts sums up the verdicts.
func nodeCounts(clusters []fleet.ClusterPlan, total int) fleet.PlanCounts {
	c := fleet.PlanCounts{Total: total}
	for i := range clusters {
		for j := range clusters[i].Nodes {
			switch clusters[i].Nodes[j].Verdict {
			case fleet.NodeChange:
				c.Change++
			case fleet.NodeUnchanged:
				c.Unchanged++
			case fleet.NodeBlocked:
				c.Blocked++
			case fleet.NodeMissing:
				c.Missing++
			}
		}
	}
	return c
}

// whyConfirm are the codes of what a person has to confirm by typing. What could not be looked at counts as bad news.
func whyConfirm(op fleet.Operation, items []fleet.Item, looks []look) []string {
	var why []string
	drained, deletes, many, guarded, unseen, control, last := 0, 0, false, false, false, false, false
	for _, l := range looks {
		here := 0
		for i := range l.plan.Nodes {
			if v := l.plan.Nodes[i].Verdict; v == fleet.NodeChange || v == fleet.NodeBlocked {
				here++
			}
		}
		drained += here
		many = many || here > freeNodes && l.plan.Capacity != nil && here*100 > manyPercent*l.plan.Capacity.Nodes
		last = last || l.last
		deletes += l.deletes
		guarded, control = guarded || l.guarded, control || l.control
		unseen = unseen || l.unseen || l.plan.Error != ""
	}
	if op.Action == fleet.ActionDrain && (many || drained > manyNodes) {
		why = append(why, fleet.ConfirmManyNodes)
	}
	needs := make(map[fleet.Permission]bool)
	for i := range items {
		for _, p := range marks.Needs(op, items[i].Undo) {
			needs[p] = true
		}
	}
	if deletes > 1 || guarded || unseen && needs[fleet.PermNoExecute] {
		why = append(why, fleet.ConfirmNoExecute)
	}
	if needs[fleet.PermProtected] {
		why = append(why, fleet.ConfirmProtected)
	}
	if needs[fleet.PermPastBudget] {
		why = append(why, fleet.ConfirmDelete)
	}
	if control {
		why = append(why, fleet.ConfirmControlNode)
	}
	if last {
		why = append(why, fleet.ConfirmLastNodes)
	}
	return why
}

// planDigest stands for what a person consents to: pods that do not come back as they were, and those that a taint
// deletes.
func planDigest(clusters []fleet.ClusterPlan) string {
	var lines []string
	for _, c := range clusters {
		for _, n := range c.Nodes {
			for _, p := range n.Pods {
				if of := consents(p); len(of) > 0 {
					lines = append(lines, fmt.Sprintf("%q %q %s", c.Cluster, p.UID, strings.Join(of, ",")))
				}
			}
		}
	}
	slices.Sort(lines)
	sum := sha256.Sum256([]byte(strings.Join(lines, "\n")))
	return hex.EncodeToString(sum[:])
}

// consents are what a person consents to for a pod, given or not, sorted.
func consents(p fleet.PodPlan) []string {
	var of []string
	if p.Verdict == fleet.VerdictDelete || p.Verdict == fleet.VerdictLater {
		of = append(of, string(p.Verdict))
	}
	for _, r := range p.Reasons {
		if r.Consent != "" {
			of = append(of, string(r.Consent))
		}
	}
	slices.Sort(of)
	return slices.Compact(of)
}

// planKubectl is the same by hand. Where it depends on each node, it is what the plan found there.
func planKubectl(op fleet.Operation, items []fleet.Item, clusters []fleet.ClusterPlan) []string {
	if op.Action != fleet.ActionRevert && op.Mode != fleet.EditReplace {
		refs := make([]fleet.NodeRef, len(items))
		for i := range items {
			refs[i] = items[i].Ref
		}
		return kubectl.Commands(op, refs)
	}
	var nodes []kubectl.Node
	for i := range clusters {
		for j := range clusters[i].Nodes {
			if n := &clusters[i].Nodes[j]; n.Verdict == fleet.NodeChange {
				nodes = append(nodes, kubectl.Node{Ref: n.NodeRef, Edits: n.Edits})
			}
		}
	}
	return kubectl.Changes(nodes)
}

// byPod orders pods for people.
func byPod(a, b fleet.PodPlan) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
