package fleet

import "time"

// Action is a verb of a batch, as forms and JSON write it.
type Action string

// The actions.
const (
	ActionCordon   Action = "cordon"
	ActionUncordon Action = "uncordon"
	ActionDrain    Action = "drain"
	ActionLabels   Action = "labels"
	ActionTaints   Action = "taints"
	ActionCopy     Action = "copy-taints"
	ActionTemplate Action = "apply-template"
	ActionRevert   Action = "revert"
)

// Actions are all of them, in the order in which people meet them.
func Actions() []Action {
	return []Action{
		ActionCordon, ActionUncordon, ActionDrain, ActionLabels, ActionTaints, ActionCopy, ActionTemplate, ActionRevert,
	}
}

// Permission is what a caller must hold for the action, whatever its fields are. Ok is false for an unknown action.
func (a Action) Permission() (p Permission, ok bool) {
	switch a {
	case ActionCordon, ActionUncordon:
		return PermNodeCordon, true
	case ActionDrain:
		return PermNodeDrain, true
	case ActionLabels, ActionTaints, ActionCopy, ActionTemplate:
		return PermNodeEdit, true
	case ActionRevert:
		return PermNodeCordon, true // and whatever taking back needs, see Operation.Permissions
	}
	return "", false
}

// Reversible tells whether what was done can be taken back, and doing it twice does no harm. Batches of such actions go
// on by themselves after a crash; the others wait for a person.
func (a Action) Reversible() bool { return a != ActionDrain }

// ForeignPolicy says what uncordon does with a node that somebody else cordoned.
type ForeignPolicy string

// The choices for nodes that carry a cordon which is not ours.
const (
	ForeignSkip    ForeignPolicy = "skip"
	ForeignInclude ForeignPolicy = "include"
)

// EditMode says how a list of labels or taints is meant.
type EditMode string

// The modes.
const (
	// EditAdd sets and removes what is named and leaves the rest.
	EditAdd EditMode = "add"
	// EditReplace of labels changes the values of keys that a node has and adds none. Of taints, and of taints that are
	// copied, it makes the node's own taints exactly those named; the taints of controllers stay.
	EditReplace EditMode = "replace"
	// EditMerge is EditAdd by the name that copying has for it.
	EditMerge EditMode = "merge"
)

// ConflictPolicy says what is done with a node that has another value.
type ConflictPolicy string

// The policies. The same value is never a conflict.
const (
	ConflictFail      ConflictPolicy = "fail"
	ConflictSkip      ConflictPolicy = "skip"
	ConflictOverwrite ConflictPolicy = "overwrite"
)

// Operation is one verb with its fields: what is done to each node of a batch. Its JSON has the names of the HTTP
// contract. Labels and Taints are lines as kubectl takes them; once a batch is made they are what is done, whichever
// template or node they came from.
type Operation struct {
	Action         Action         `json:"action"`
	Reason         string         `json:"reason,omitempty"`
	Foreign        ForeignPolicy  `json:"foreign,omitempty"` // uncordon only
	Drain          *DrainOptions  `json:"drain,omitempty"`
	Labels         []string       `json:"labels,omitempty"` // key=value, key-
	Taints         []string       `json:"taints,omitempty"` // key[=value]:Effect, key:Effect-, key-
	Mode           EditMode       `json:"mode,omitempty"`
	OnConflict     ConflictPolicy `json:"on_conflict,omitempty"`
	AllowProtected bool           `json:"allow_protected,omitempty"` // labels that placement and storage rely on
	Source         *NodeRef       `json:"source,omitempty"`          // copy-taints
	Template       *TemplateUse   `json:"template,omitempty"`
	Revert         string         `json:"revert,omitempty"` // id of the batch that is taken back
}

// DrainOptions are what a person chose for a drain; kubectl's words and defaults. The zero value consents to nothing.
type DrainOptions struct {
	GracePeriodSeconds int    `json:"grace_period_seconds"` // -1: the pod's own
	TimeoutSeconds     int    `json:"timeout_seconds"`      // for each node; 0: the default of 30 minutes
	DeleteEmptyDirData bool   `json:"delete_emptydir_data"` // what is in emptyDir volumes is lost
	Force              bool   `json:"force"`                // pods that nobody makes again
	PodSelector        string `json:"pod_selector,omitempty"`
	DisableEviction    bool   `json:"disable_eviction"`             // delete, past every budget
	UncordonAfter      bool   `json:"uncordon_after"`               // only what this batch cordoned
	IgnoreOptOut       bool   `json:"ignore_opt_out"`               // pods whose owners ask not to be disturbed
	SkipStuckSeconds   int    `json:"skip_wait_for_delete_timeout"` // let go of pods so long after their grace period; 0: never
	Probe              bool   `json:"probe,omitempty"`              // of a plan: have the API server answer dry-run evictions
	WaitReplacements   bool   `json:"wait_for_replacements"`        // before the node counts as done, what it lost is ready elsewhere
}

// TemplateUse is a template as it was applied: the version does not move when the template does.
type TemplateUse struct {
	ID      string            `json:"id"`
	Name    string            `json:"name"`
	Version int               `json:"version"`
	Values  map[string]string `json:"values,omitempty"`
}

// Template is a named set of labels and taints, as lines with the grammar of Operation. A value may hold placeholders
// {{name}}, each with the values that may be chosen for it. Every change makes a new version; old ones stay readable.
type Template struct {
	ID        string              `json:"id"`
	Name      string              `json:"name"`
	Version   int                 `json:"version"`
	Note      string              `json:"note,omitempty"`
	Labels    []string            `json:"labels"`
	Taints    []string            `json:"taints"`
	Values    map[string][]string `json:"values"` // placeholder → what may be chosen; the first is the default; empty: anything
	CreatedBy string              `json:"created_by"`
	CreatedAt time.Time           `json:"created_at"` // of this version
}

// BatchOrder says in which order nodes are worked on.
type BatchOrder string

// The orders.
const (
	OrderGiven BatchOrder = "given" // as listed
	OrderZone  BatchOrder = "zone"  // zone by zone, nodes of the control plane last
)

// MaxStreak is after how many failed nodes in a row a drain stops for which nobody said otherwise.
const MaxStreak = 3

// Rollout says how a batch goes over its nodes. Its zero value works on as many nodes at once as the action does by
// default, in the order given, and stops by itself only if it is a drain and one node after the other fails.
type Rollout struct {
	MaxConcurrent  int           `json:"max_concurrent"`  // nodes worked on at once
	PerCluster     int           `json:"per_cluster"`     // of them in one cluster; 0: no such limit
	PerZone        int           `json:"per_zone"`        // of them in one zone; 0: no such limit
	MaxUnavailable int           `json:"max_unavailable"` // nodes of a cluster that are worked on, not ready or cordoned by others; 0: no such limit
	MaxFailures    int           `json:"max_failures"`    // stop after so many failed nodes; 0: drains after MaxStreak in a row, others never
	PauseBetween   time.Duration `json:"pause_between"`   // wait before each further node starts
	Canary         int           `json:"canary"`          // pause after so many nodes until a person goes on
	Order          BatchOrder    `json:"order"`
}

// BatchSpec is what a person asks for. The nodes are refs as asked; UIDs are frozen when the batch is made.
type BatchSpec struct {
	Operation
	Rollout
	Nodes          []NodeRef
	IdempotencyKey string // "" for none; unique per person
	Confirm        string // what the plan asked to be typed
	PlanDigest     string // of the plan that the person saw; "" for none
	// Parent is the batch that this one repeats or takes back, "" for none; set by the engine.
	Parent string
}

// BatchState is where a batch is in its life.
type BatchState string

// The states of a batch.
const (
	BatchQueued      BatchState = "queued"
	BatchRunning     BatchState = "running"
	BatchPaused      BatchState = "paused"
	BatchInterrupted BatchState = "interrupted" // its process died and a person has to say how to go on
	BatchDone        BatchState = "done"
)

// BatchOutcome is set with BatchDone.
type BatchOutcome string

// The outcomes. Skipped items count as neither success nor failure; all skipped is succeeded.
const (
	OutcomeSucceeded BatchOutcome = "succeeded"
	OutcomePartial   BatchOutcome = "partial"
	OutcomeFailed    BatchOutcome = "failed"
	OutcomeCancelled BatchOutcome = "cancelled"
)

// ItemState is where one node of a batch is.
type ItemState string

// The states of an item.
const (
	ItemQueued    ItemState = "queued"
	ItemRunning   ItemState = "running"
	ItemSucceeded ItemState = "succeeded"
	ItemFailed    ItemState = "failed"
	ItemSkipped   ItemState = "skipped"
	ItemCancelled ItemState = "cancelled"
)

// Finished tells whether the state is final.
func (s ItemState) Finished() bool { return s != ItemQueued && s != ItemRunning }

// Item is one node of a batch. Seq is its place in the frozen order, from 0.
type Item struct {
	Seq       int
	Ref       NodeRef
	UID       string // frozen at submit; "" if the node was not known then
	State     ItemState
	Code      string // kind of the result for people and programs: unchanged, not_found, replaced, foreign_cordon, forbidden, conflict, unavailable, …
	Error     string // sentence for people, "" for a plain success
	Changed   bool   // whether the cluster was written
	StartedAt time.Time
	EndedAt   time.Time
	Attempt   int            // how often it was claimed; more than 1 after a crash or an interruption in the middle of it
	Version   int64          // version of the batch at the item's last change
	Zone      string         // frozen at submit; "" for a node without one
	Control   bool           // of the control plane, frozen at submit
	Edits     []Edit         // what was changed: found and left
	Undo      []Edit         // of a revert: what is to be taken back, frozen at submit
	Drain     *DrainProgress // of a drain, once it was begun
}

// Task is one item of a batch in the hands of whoever does it.
type Task struct {
	By        Caller
	Batch     string
	Item      Item
	Operation Operation
	// Tell takes every transition of a drain. It does not block; nil drops them.
	Tell func(DrainEvent)
	// Held tells whether the batch is paused, and gives a channel that is closed when that changes. Nil: it never is.
	Held func() (held bool, changed <-chan struct{})
}

// PausedByCanary stands in Batch.PausedBy for the batch itself. No person can have that name.
const PausedByCanary = "*canary"

// ItemProgress is what is written down of a drain while it goes on.
type ItemProgress struct {
	Seq    int // of the item
	Drain  *DrainProgress
	Events []DrainEvent
	// Mark moves up with every event that the attempt tells. A store that has seen it has the events already.
	Mark int64
}

// Counts are derived from the items, never kept beside them.
type Counts struct {
	Total, Queued, Running, Succeeded, Failed, Skipped, Cancelled int
}

// Finished is the number of items in a final state.
func (c Counts) Finished() int { return c.Succeeded + c.Failed + c.Skipped + c.Cancelled }

// Batch is one operation over a frozen list of nodes. Version moves by one with every change of the batch or an item.
type Batch struct {
	ID          string
	Operation   Operation
	State       BatchState
	Outcome     BatchOutcome // "" until done
	CreatedBy   string       // name of the person
	CreatedByID string
	CreatedAt   time.Time
	StartedAt   time.Time
	EndedAt     time.Time
	CancelledBy string // "" unless somebody asked to cancel
	PausedBy    string // "" unless it is paused; PausedByCanary if its own canary did
	Parent      string // batch that this one repeats or takes back
	Rollout     Rollout
	Passed      bool   // a person has gone on after the canary
	Note        string // why it is interrupted, was stopped or does not start further nodes
	Version     int64
	Counts      Counts
}

// BatchFilter narrows a list of batches; zero fields do not narrow. Limit 0 is the default of the store.
type BatchFilter struct {
	State   BatchState
	User    string
	Cluster string
	Parent  string // batches that repeat or take back this one
	Since   time.Time
	IDs     []string // of these batches only
	// Within, unless it is nil, are the clusters that whoever asks sees: a batch that is about any other one is left out.
	// Empty leaves out all of them.
	Within []string
	Limit  int
}

// ItemResult is what acting on one node came to. A non-nil error beside it says that the item failed.
type ItemResult struct {
	State   ItemState // succeeded or skipped
	Code    string
	Message string // why it was skipped
	Changed bool
	Edits   []Edit // what was changed
	Drain   *DrainProgress
}

// Codes of items, for programs and as catalogue keys. A plain success has none.
const (
	CodeUnchanged     = "unchanged"       // the node already was as asked
	CodeCleaned       = "cleaned"         // already schedulable; the note of an earlier cordon was removed
	CodeNotFound      = "not_found"       // no such node
	CodeReplaced      = "replaced"        // another node of the same name
	CodeForeignCordon = "foreign_cordon"  // cordoned by somebody who is not us
	CodeUndone        = "undone"          // the change had landed, and somebody took it back since
	CodeForbidden     = "forbidden"       // the cluster does not permit it
	CodeUnauthorized  = "unauthorized"    // the cluster does not accept our credential
	CodeConflict      = "conflict"        // other writers were faster, again and again
	CodeUnavailable   = "unavailable"     // the cluster could not be reached, or did not answer in time
	CodeInvalid       = "invalid"         // the cluster refused the content of the change
	CodeFailed        = "failed"          // anything else
	CodeCancelled     = "cancelled"       // not started: somebody cancelled the batch
	CodeStopped       = "stopped"         // not started: the stop rule of the batch
	CodeAuthorityLost = "authority_lost"  // not started: the person behind the batch may no longer do this
	CodeSkipped       = "skipped"         // a person left it out
	CodeProtected     = "protected"       // a label that placement and storage rely on, or a taint that a controller owns
	CodeChangedSince  = "changed_since"   // of a revert: somebody changed it since
	CodeNothing       = "nothing_to_undo" // of a revert: the batch had not changed this node
	CodeBlocked       = "blocked"         // pods need a consent that was not given
	CodeTimedOut      = "timed_out"       // the drain took longer than it was given; the node stays cordoned
	CodePartial       = "partial"         // drained but for pods that were left out
	CodeUncordoned    = "uncordoned"      // somebody made the node schedulable while it was drained
	CodeLocked        = "locked"          // somebody else holds the node's lease in the cluster
)

// OutcomeOf derives the outcome of a batch whose items are all finished. Stopped tells that a person or the loss of
// authority ended it early; a stop rule does not count, its failures speak for themselves.
func OutcomeOf(c Counts, stopped bool) BatchOutcome {
	switch {
	case stopped && c.Cancelled > 0:
		return OutcomeCancelled
	case c.Failed == 0 && c.Cancelled == 0:
		return OutcomeSucceeded
	case c.Succeeded > 0:
		return OutcomePartial
	}
	return OutcomeFailed
}

// BatchDraft is everything that is written down, in one transaction, when a batch is made.
type BatchDraft struct {
	Batch  Batch
	By     Caller
	Items  []Item
	Key    string // idempotency key, "" for none
	Digest string // of the request, to tell the same request from another one under the same key
	Intent Entry
	Plan   *Plan // that the batch was made by, nil for none
}

// BatchLease is the right to work on a batch. Every step names it, and the store refuses a step whose epoch is not the
// newest with ErrLeaseLost: an owner that was frozen and woke up again changes nothing.
type BatchLease struct {
	Batch  string
	Holder string
	Epoch  int64
	Idle   time.Duration // how long nobody had worked on the batch when this lease began
	Clean  bool          // nobody had begun, or the owner before gave the lease back: no process died over it
}

// BatchSteer is what people asked of a batch, as its owner learns it with every renewal.
type BatchSteer struct {
	CancelledBy string
	PausedBy    string
	Passed      bool  // a person has gone on after the canary
	Skip        []int // items that are being done and are to be let go
	LeftOut     []int // items that were skipped before they were begun
	Version     int64 // of the batch that this was read from
}

// BatchEnd is how an owner closes a batch: items that were never started become cancelled with Code and Error.
type BatchEnd struct {
	Stopped bool // by a person or by loss of authority
	Code    string
	Error   string
	Note    string
	Entry   Entry // the audit result
}
