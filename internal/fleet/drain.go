package fleet

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// Verdict is what a drain does with a pod.
type Verdict string

// The verdicts.
const (
	VerdictEvict  Verdict = "evict"
	VerdictIgnore Verdict = "ignore" // it stays, and the node counts as drained with it
	VerdictBlock  Verdict = "block"  // it needs a consent that was not given
	VerdictWait   Verdict = "wait"   // it ends by itself
	// What a NoExecute taint does: the taint manager deletes pods, and asks no budget.
	VerdictDelete Verdict = "delete"       // at once
	VerdictLater  Verdict = "delete_later" // when its toleration ends
	VerdictStay   Verdict = "stay"
)

// Consent is what a person must say for pods that do not come back as they were.
type Consent string

// The consents.
const (
	ConsentUnmanaged Consent = "unmanaged"  // pods that nobody makes again
	ConsentLocalData Consent = "local_data" // what is in emptyDir volumes is lost
	ConsentForce     Consent = "force"      // pods of a DaemonSet that is gone
	ConsentOptOut    Consent = "opt_out"    // pods whose owners ask not to be disturbed
)

// Reason is one thing that is to be said of a pod.
type Reason struct {
	ID      string  `json:"id"`                // of the requirement
	Code    string  `json:"code"`              // what it is
	Consent Consent `json:"consent,omitempty"` // that it needs
	Given   bool    `json:"given,omitempty"`   // whether it was given
	Detail  string  `json:"detail,omitempty"`  // the volume, the owner, the annotation
}

// PodClass is the verdict over a pod with every reason, in the order of the rules.
type PodClass struct {
	Verdict Verdict   `json:"verdict"`
	Reasons []Reason  `json:"reasons"`
	Needs   []Consent `json:"needs,omitempty"` // consents that are missing
}

// Has tells whether a reason is among those of the class.
func (c PodClass) Has(code string) bool {
	return slices.ContainsFunc(c.Reasons, func(r Reason) bool { return r.Code == code })
}

// DrainState is where the drain of a node is (§1.8).
type DrainState string

// The states of a node; those from DrainDone on are final.
const (
	DrainChecking    DrainState = "checking" // permissions and consents, before anything is touched
	DrainCordoning   DrainState = "cordoning"
	DrainEvicting    DrainState = "evicting"
	DrainTerminating DrainState = "terminating" // all that had to be evicted was, and is on its way out
	DrainVerifying   DrainState = "verifying"
	DrainDetaching   DrainState = "detaching"
	DrainReplacing   DrainState = "replacing" // what was evicted is not ready elsewhere yet

	DrainDone       DrainState = "drained"
	DrainPartial    DrainState = "partial"    // drained but for pods that were left out or skipped
	DrainBlocked    DrainState = "blocked"    // pods need a consent
	DrainFailed     DrainState = "failed"     // not permitted, or the cordon was not acknowledged
	DrainTimedOut   DrainState = "timed_out"  // stays cordoned; what was evicted stays evicted
	DrainCancelled  DrainState = "cancelled"  // likewise
	DrainUncordoned DrainState = "uncordoned" // somebody made it schedulable meanwhile
	DrainGone       DrainState = "gone"
	DrainReplaced   DrainState = "replaced" // another node has the name now
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

// Stuck tells whether something or somebody has to move before the pod does.
func (s PodState) Stuck() bool {
	switch s {
	case PodBlocked, PodBlockedByPDB, PodBlockedByPDBs, PodBlockedByHook, PodThrottled, PodNamespaceGoing, PodUnanswered, PodOverdue:
		return true
	case PodPending, PodIgnored, PodQueued, PodWaiting, PodEvicting, PodTerminating, PodSkipped, PodGone:
	}
	return false
}

// DrainEvent is one transition of a node or of a pod on it (DR-70).
type DrainEvent struct {
	Seq int       `json:"seq"` // from 1, without gaps, in order
	At  time.Time `json:"at"`
	NodeRef
	NodeUID   string       `json:"node_uid,omitempty"`
	NodeState DrainState   `json:"node_state,omitempty"` // of a node's transition
	Pod       *PodProgress `json:"pod,omitempty"`        // of a pod's
	Message   string       `json:"message,omitempty"`
	Volumes   []string     `json:"volumes,omitempty"` // of the last event of a drained node: what is still attached
}

// PodProgress is a pod as a drain sees it.
type PodProgress struct {
	Namespace string     `json:"namespace"`
	Name      string     `json:"name"`
	UID       string     `json:"uid"`
	OwnerKind string     `json:"owner_kind,omitempty"`
	OwnerName string     `json:"owner_name,omitempty"`
	State     PodState   `json:"state"`
	Evicted   bool       `json:"evicted,omitempty"` // the API server took the eviction
	Deleted   bool       `json:"deleted,omitempty"` // by a deletion that asks no budget, as a person chose
	Reasons   []Reason   `json:"reasons,omitempty"`
	Attempt   int        `json:"attempt,omitempty"`
	HTTP      int        `json:"http,omitempty"`    // status of the last answer, 0 for none
	Budgets   []string   `json:"budgets,omitempty"` // that match it
	Needed    int32      `json:"needed,omitempty"`  // healthy pods, by the one budget
	Healthy   int32      `json:"healthy,omitempty"` // that there are
	Until     *time.Time `json:"until,omitempty"`   // end of the grace period, or the next try at the latest
	Message   string     `json:"message,omitempty"` // of the server, or what holds it up
}

// DrainProgress is how far the drain of one node is: what a page shows of an item, and what is left of it in the report.
type DrainProgress struct {
	State    DrainState    `json:"state"`
	Since    time.Time     `json:"since,omitzero"` // of the state
	Message  string        `json:"message,omitempty"`
	Evicted  int           `json:"evicted"` // evictions that the API server accepted
	Pods     []PodProgress `json:"pods"`
	Volumes  []string      `json:"volumes,omitempty"`   // still attached to a drained node
	WeakLock bool          `json:"weak_lock,omitempty"` // no Lease could be taken in the cluster: only our own database keeps others away
}

// Tracker works out the progress of a drain from its events. Its zero value has seen none. It is not safe for
// concurrent use.
type Tracker struct {
	progress DrainProgress
	pods     map[string]PodProgress // by uid
}

// Apply takes in the next event.
func (t *Tracker) Apply(e DrainEvent) {
	if e.NodeState != "" {
		if t.progress.State != e.NodeState {
			t.progress.Since = e.At
		}
		t.progress.State, t.progress.Message, t.progress.Volumes = e.NodeState, e.Message, e.Volumes
	}
	if e.Pod == nil {
		return
	}
	if t.pods == nil {
		t.pods = map[string]PodProgress{}
	}
	if e.Pod.Evicted && !t.pods[e.Pod.UID].Evicted {
		t.progress.Evicted++
	}
	t.pods[e.Pod.UID] = *e.Pod
}

// Progress is how far the drain is, as of the events so far. The pods come in the order of namespace, name and uid.
func (t *Tracker) Progress() DrainProgress {
	out := t.progress
	out.Pods = slices.SortedFunc(maps.Values(t.pods), func(a, b PodProgress) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
	})
	return out
}

// BatchEvent is one line of the log of a batch, as it is kept. Seq is the batch's own count.
type BatchEvent struct {
	Seq   int64      `json:"seq"`
	Item  int        `json:"item"`
	Event DrainEvent `json:"event"`
}
