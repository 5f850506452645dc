package fleet

import (
	"slices"
	"time"
)

// Plan says what a batch would do to each of its nodes, as of one look at their clusters. Nothing was changed for it.
type Plan struct {
	Action    Action        `json:"action"`
	At        time.Time     `json:"at"`        // when the look began; nothing in the plan is older
	Operation Operation     `json:"operation"` // as it would be done: templates and sources resolved
	Clusters  []ClusterPlan `json:"clusters"`
	// Counts are nodes by what would happen to them.
	Counts PlanCounts `json:"counts"`
	// Confirm is what has to be typed before the batch is made, "" if nothing has; Why are the codes of its reasons.
	Confirm string   `json:"confirm,omitempty"`
	Why     []string `json:"confirm_why,omitempty"`
	// Digest stands for what a person consents to by this plan: pods that do not come back as they were. A batch that
	// names it is refused if that has become something else since.
	Digest  string   `json:"digest"`
	Kubectl []string `json:"kubectl,omitempty"` // the same with kubectl, a command a line
}

// The codes of Plan.Why.
const (
	ConfirmManyNodes   = "many_nodes"       // a drain of more nodes than are easily undone
	ConfirmNoExecute   = "no_execute"       // deletes pods of several nodes, or pods that a budget guards
	ConfirmProtected   = "protected_labels" // changes labels that placement and storage rely on
	ConfirmDelete      = "past_budgets"     // deletes pods without asking their budgets
	ConfirmControlNode = "control_plane"    // drains nodes of the control plane
	ConfirmLastNodes   = "last_nodes"       // drains the last nodes of a zone or of a cluster that take pods
)

// NeedsFreshSignIn tells whether a person has to have proven lately who they are before the batch is made: it ends pods,
// which cannot be taken back, and has to be confirmed. Labels that others rely on can be put back.
func (p *Plan) NeedsFreshSignIn() bool {
	return slices.ContainsFunc(p.Why, func(why string) bool { return why != ConfirmProtected })
}

// PlanCounts are nodes by what would happen to them.
type PlanCounts struct {
	Total     int `json:"total"`
	Change    int `json:"change"`
	Unchanged int `json:"unchanged"` // already as asked
	Blocked   int `json:"blocked"`   // a consent or a permission is missing, or values conflict
	Missing   int `json:"missing"`   // gone or replaced
}

// ClusterPlan is the part of a plan that concerns one cluster. What follows Nodes is of drains only.
type ClusterPlan struct {
	Cluster     string         `json:"cluster"`
	At          time.Time      `json:"at"`
	Nodes       []NodePlan     `json:"nodes"`
	Counts      PodCounts      `json:"counts"`
	Budgets     []Budget       `json:"budgets,omitempty"`
	Capacity    *Capacity      `json:"capacity,omitempty"`
	Estimate    *Estimate      `json:"estimate,omitempty"`
	Permissions []ClusterRight `json:"permissions,omitempty"`
	Warnings    []Impact       `json:"warnings,omitempty"` // about the cluster as a whole
	Missing     []string       `json:"missing,omitempty"`  // resources that could not be read: what needs them is not evaluated
	Error       string         `json:"error,omitempty"`    // why the cluster could not be looked at, for people
}

// NodeVerdict is what a batch would do with a node.
type NodeVerdict string

// The verdicts over nodes.
const (
	NodeChange    NodeVerdict = "change"
	NodeUnchanged NodeVerdict = "unchanged"
	NodeBlocked   NodeVerdict = "blocked"
	NodeMissing   NodeVerdict = "missing"
)

// NodePlan is what would happen on one node.
type NodePlan struct {
	NodeRef
	UID           string      `json:"uid,omitempty"`
	Verdict       NodeVerdict `json:"verdict"`
	Fault         string      `json:"fault,omitempty"` // code of what stands in the way: CodeNotFound, CodeReplaced, CodeConflict, …
	Message       string      `json:"message,omitempty"`
	Unschedulable bool        `json:"unschedulable"`
	Ready         bool        `json:"ready"`
	Roles         []string    `json:"roles,omitempty"`  // of drains
	Edits         []Edit      `json:"edits,omitempty"`  // of the node itself
	Actors        []Actor     `json:"actors,omitempty"` // others who are at work on it
	Counts        PodCounts   `json:"counts"`
	Pods          []PodPlan   `json:"pods,omitempty"` // of drains, and of taints with NoExecute
	Estimate      *Estimate   `json:"estimate,omitempty"`
}

// EditKind is what an edit is about.
type EditKind string

// The kinds of edit.
const (
	EditLabel  EditKind = "label"
	EditTaint  EditKind = "taint"  // identified by key and effect
	EditCordon EditKind = "cordon" // the value is our note, "" for a cordon that carries none; absent means schedulable
)

// EditOutcome is what an edit comes to on a node.
type EditOutcome string

// The outcomes of edits.
const (
	EditAdded     EditOutcome = "added"
	EditChanged   EditOutcome = "changed"
	EditRemoved   EditOutcome = "removed"
	EditUnchanged EditOutcome = "unchanged" // already so; also the removal of what is not there
	EditConflict  EditOutcome = "conflict"  // another value is there, and it is not to be overwritten
	EditKept      EditOutcome = "kept"      // another value is there, and was chosen to stay
)

// Edit is one property of a node before and after. It is the line of a diff, what is kept of a change that was made, and
// what a revert takes back. Nil is absent.
type Edit struct {
	Kind    EditKind    `json:"kind"`
	Key     string      `json:"key,omitempty"`
	Effect  TaintEffect `json:"effect,omitempty"`
	Before  *string     `json:"before"`
	After   *string     `json:"after"`
	Outcome EditOutcome `json:"outcome"`
	Note    string      `json:"note,omitempty"` // code of a remark: who puts it back, who relies on it
}

// PodPlan is what would happen to one pod, and why.
type PodPlan struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
	OwnerKind string `json:"owner_kind,omitempty"` // of the outermost owner that is known
	OwnerName string `json:"owner_name,omitempty"`
	PodClass
	Order  int        `json:"order"`
	Grace  int64      `json:"grace_seconds"`
	After  int64      `json:"after_seconds,omitempty"` // of VerdictLater
	Budget *PodBudget `json:"budget,omitempty"`        // of pods that are to go
	Impact []Impact   `json:"impact,omitempty"`
	Fit    *Fit       `json:"fit,omitempty"` // of pods that come back
	// Probe is the API server's own answer, where it was asked.
	Probe *Probe `json:"probe,omitempty"`
}

// Allowance is what the disruption budgets say to the eviction of a pod.
type Allowance string

// The allowances.
const (
	AllowFree         Allowance = "free"          // no budget is asked, or the one that is does not mind
	AllowNow          Allowance = "now"           // within what the budget allows at this moment
	AllowLater        Allowance = "later"         // in a later wave, when replacements are ready
	AllowBlocked      Allowance = "blocked"       // the budget allows none at this moment
	AllowNever        Allowance = "never"         // no eviction will succeed until somebody changes something
	AllowUndetermined Allowance = "undetermined"  // the budget's controller has not caught up
	AllowNotEvaluated Allowance = "not_evaluated" // we may not read the budgets (PV-13)
)

// PodBudget is the answer for one pod.
type PodBudget struct {
	Allowance Allowance `json:"allowance"`
	Why       string    `json:"why,omitempty"`
	Budgets   []string  `json:"budgets,omitempty"` // names, in the pod's namespace
	Wave      int       `json:"wave,omitempty"`    // from 1; 0 where nobody can say
	Message   string    `json:"message,omitempty"` // of the budget's controller
}

// Held is an eviction that a budget still counts.
type Held struct {
	Pod   string    `json:"pod"`
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
}

// Budget is a disruption budget and what the batch asks of it (PV-10).
type Budget struct {
	Namespace       string    `json:"namespace"`
	Name            string    `json:"name"`
	MinAvailable    string    `json:"min_available,omitempty"`
	MaxUnavailable  string    `json:"max_unavailable,omitempty"`
	UnhealthyPolicy string    `json:"unhealthy_policy,omitempty"`
	ExpectedPods    int32     `json:"expected_pods"`
	DesiredHealthy  int32     `json:"desired_healthy"`
	CurrentHealthy  int32     `json:"current_healthy"`
	Allowed         int32     `json:"allowed"`
	Held            []Held    `json:"held,omitempty"`
	Pods            int       `json:"pods"`            // of the batch that it has to let go one by one
	Waves           int       `json:"waves,omitempty"` // 0: nobody can say
	Never           string    `json:"never,omitempty"` // why it can never be met, "" if it can
	WrittenBy       string    `json:"written_by,omitempty"`
	Message         string    `json:"message,omitempty"` // why its controller could not work it out (PV-12)
	Allowance       Allowance `json:"allowance"`
}

// Fit says whether a pod has a place elsewhere.
type Fit struct {
	Node    string         `json:"node,omitempty"`    // that the estimate put it on; "" if none takes it
	Refused map[string]int `json:"refused,omitempty"` // how many nodes refuse it for which reason, if none takes it
}

// Capacity is what the estimate of places was made with. It goes by requests, as the scheduler does, and leaves out
// what Ignored names.
type Capacity struct {
	Checked   int      `json:"checked"`   // nodes that could take pods and were looked at
	Nodes     int      `json:"nodes"`     // of the cluster
	Unfit     int      `json:"unfit"`     // pods without a place
	Autoscale bool     `json:"autoscale"` // something may add nodes (PV-30)
	Ignored   []string `json:"ignored"`
	// Headroom is what the nodes that take pods are asked for, before and after (PV-31). It is of the nodes that were
	// checked.
	Headroom []Headroom `json:"headroom,omitempty"`
}

// Headroom is how much of a resource pods request, in percent of what the nodes have that take pods.
type Headroom struct {
	Resource string `json:"resource"`
	Before   int    `json:"before"`
	After    int    `json:"after"` // with the nodes of the batch gone, and their pods elsewhere; more than 100 does not fit
}

// Probe is what the API server says to the eviction of a pod without doing it: budgets, permissions and those
// admission webhooks that take part in dry runs.
type Probe struct {
	Allowed bool   `json:"allowed"`
	HTTP    int    `json:"http,omitempty"` // 0: no answer
	Message string `json:"message,omitempty"`
}

// ClusterRight is something that a drain needs to be allowed.
type ClusterRight struct {
	Verb        string `json:"verb"`
	Group       string `json:"group,omitempty"`
	Resource    string `json:"resource"`
	Subresource string `json:"subresource,omitempty"`
	Allowed     bool   `json:"allowed"`
}

// PodCounts are pods by what happens to them.
type PodCounts struct {
	Evict  int `json:"evict"`
	Ignore int `json:"ignore"`
	Block  int `json:"block"`
	Wait   int `json:"wait"`
	Delete int `json:"delete"` // by the taint manager at once
	Later  int `json:"later"`  // by the taint manager, when their toleration ends
	Stay   int `json:"stay"`   // they tolerate the taint
}

// Add counts one more pod.
func (c *PodCounts) Add(v Verdict) {
	switch v {
	case VerdictEvict:
		c.Evict++
	case VerdictIgnore:
		c.Ignore++
	case VerdictBlock:
		c.Block++
	case VerdictWait:
		c.Wait++
	case VerdictDelete:
		c.Delete++
	case VerdictLater:
		c.Later++
	case VerdictStay:
		c.Stay++
	}
}

// Impact is something that people notice when the pod goes.
type Impact struct {
	ID     string `json:"id"`
	Code   string `json:"code"`
	Detail string `json:"detail,omitempty"`
}

// Actor is somebody else who is at work on a node (operations §2.4).
type Actor struct {
	Who     string `json:"who"`
	Detail  string `json:"detail,omitempty"`
	Forbids bool   `json:"forbids,omitempty"` // it holds the node, and a drain beside it would work against it
}

// Estimate is how long a drain takes if nothing goes wrong: from pods that end at once to pods that use all of their
// grace.
type Estimate struct {
	LowSeconds  int64 `json:"low_seconds"`
	HighSeconds int64 `json:"high_seconds"`
	Blocked     bool  `json:"blocked"` // it does not end without somebody doing something
}
