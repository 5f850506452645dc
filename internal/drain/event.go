package drain

import (
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// NodeState is where the drain of a node is (§1.8).
type NodeState string

// The states of a node; those from Drained on are final.
const (
	NodeChecking    NodeState = "checking" // permissions and consents, before anything is touched
	NodeCordoning   NodeState = "cordoning"
	NodeEvicting    NodeState = "evicting"
	NodeTerminating NodeState = "terminating" // all that had to be evicted was, and is on its way out
	NodeVerifying   NodeState = "verifying"
	NodeDetaching   NodeState = "detaching"

	NodeDrained    NodeState = "drained"
	NodePartial    NodeState = "partial"    // drained but for pods that were left out or skipped
	NodeBlocked    NodeState = "blocked"    // pods need a consent
	NodeFailed     NodeState = "failed"     // not permitted, or the cordon was not acknowledged
	NodeTimedOut   NodeState = "timed_out"  // stays cordoned; what was evicted stays evicted
	NodeCancelled  NodeState = "cancelled"  // likewise
	NodeUncordoned NodeState = "uncordoned" // somebody made it schedulable meanwhile
	NodeNotFound   NodeState = "gone"
	NodeOther      NodeState = "replaced" // another node has the name now
)

// PodState is where a pod is in a drain (§1.8).
type PodState string

// The states of a pod.
const (
	PodPending        PodState = "pending" // its owner is being looked up
	PodIgnored        PodState = "ignored"
	PodBlocked        PodState = "blocked" // needs a consent
	PodQueued         PodState = "queued"
	PodWaiting        PodState = "waiting" // for its own end, as it asks
	PodEvicting       PodState = "evicting"
	PodBlockedByPDB   PodState = "blocked_by_pdb"
	PodBlockedByPDBs  PodState = "blocked_by_pdbs" // several budgets: none of them can be asked
	PodBlockedByHook  PodState = "blocked_by_webhook"
	PodThrottled      PodState = "throttled" // the API server has too much to do; no budget says no
	PodNamespaceGoing PodState = "namespace_terminating"
	PodUnanswered     PodState = "unanswered" // no answer, or one of a server in trouble; whether it landed shows
	PodTerminating    PodState = "terminating"
	PodOverdue        PodState = "overdue" // should have ended by now
	PodSkipped        PodState = "skipped"
	PodGone           PodState = "gone"
)

// Event is one transition of a node or of a pod on it (DR-70).
type Event struct {
	Seq int       `json:"seq"` // from 1, without gaps, in order
	At  time.Time `json:"at"`
	fleet.NodeRef
	NodeUID   string       `json:"node_uid,omitempty"`
	NodeState NodeState    `json:"node_state,omitempty"` // of a node's transition
	Pod       *PodProgress `json:"pod,omitempty"`        // of a pod's
	Message   string       `json:"message,omitempty"`
}

// PodProgress is a pod as a drain sees it.
type PodProgress struct {
	Namespace string     `json:"namespace"`
	Name      string     `json:"name"`
	UID       string     `json:"uid"`
	OwnerKind string     `json:"owner_kind,omitempty"`
	OwnerName string     `json:"owner_name,omitempty"`
	State     PodState   `json:"state"`
	Reasons   []Reason   `json:"reasons,omitempty"`
	Attempt   int        `json:"attempt,omitempty"`
	HTTP      int        `json:"http,omitempty"`    // status of the last answer, 0 for none
	Budgets   []string   `json:"budgets,omitempty"` // that match it
	Needed    int32      `json:"needed,omitempty"`  // healthy pods, by the one budget
	Healthy   int32      `json:"healthy,omitempty"` // that there are
	Until     *time.Time `json:"until,omitempty"`   // end of the grace period, or the next try at the latest
	Message   string     `json:"message,omitempty"` // of the server, or what holds it up
}

// Result is what a drain came to.
type Result struct {
	State    NodeState     `json:"state"`
	Cordoned bool          `json:"cordoned"`          // the cordon was acknowledged
	Evicted  int           `json:"evicted"`           // evictions that the server accepted in this run
	Pods     []PodProgress `json:"pods"`              // all that were seen, as they were last
	Volumes  []string      `json:"volumes,omitempty"` // still attached to a drained node
	Message  string        `json:"message,omitempty"`
}
