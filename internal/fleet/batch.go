package fleet

import "time"

// Action is a verb of a batch, as forms and JSON write it.
type Action string

// The actions.
const (
	ActionCordon   Action = "cordon"
	ActionUncordon Action = "uncordon"
)

// Permission is what a caller must hold for the action. Ok is false for an unknown action.
func (a Action) Permission() (p Permission, ok bool) {
	switch a {
	case ActionCordon, ActionUncordon:
		return PermNodeCordon, true
	}
	return "", false
}

// ForeignPolicy says what uncordon does with a node that somebody else cordoned.
type ForeignPolicy string

// The choices for nodes that carry a cordon which is not ours.
const (
	ForeignSkip    ForeignPolicy = "skip"
	ForeignInclude ForeignPolicy = "include"
)

// Operation is one verb with its fields: what is done to each node of a batch.
type Operation struct {
	Action  Action        `json:"action"`
	Reason  string        `json:"reason,omitempty"`
	Foreign ForeignPolicy `json:"foreign,omitempty"` // uncordon only
}

// BatchSpec is what a person asks for. The nodes are refs as asked; UIDs are frozen when the batch is made.
type BatchSpec struct {
	Operation
	Nodes          []NodeRef
	MaxConcurrent  int           // nodes worked on at once; 0: the default of the action
	MaxFailures    int           // stop after so many failed nodes; 0: never
	PauseBetween   time.Duration // wait before each further node starts
	IdempotencyKey string        // "" for none; unique per person
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
	Error     string // sentence for people, "" unless failed or skipped
	Changed   bool   // whether the cluster was written
	StartedAt time.Time
	EndedAt   time.Time
	Attempt   int   // how often it was claimed; more than 1 after a crash or an interruption in the middle of it
	Version   int64 // version of the batch at the item's last change
}

// Counts are derived from the items, never kept beside them.
type Counts struct {
	Total, Queued, Running, Succeeded, Failed, Skipped, Cancelled int
}

// Finished is the number of items in a final state.
func (c Counts) Finished() int { return c.Succeeded + c.Failed + c.Skipped + c.Cancelled }

// Batch is one operation over a frozen list of nodes. Version moves by one with every change of the batch or an item.
type Batch struct {
	ID            string
	Operation     Operation
	State         BatchState
	Outcome       BatchOutcome // "" until done
	CreatedBy     string       // name of the person
	CreatedByID   string
	CreatedAt     time.Time
	StartedAt     time.Time
	EndedAt       time.Time
	CancelledBy   string // "" unless somebody asked to cancel
	MaxConcurrent int
	MaxFailures   int
	PauseBetween  time.Duration
	Note          string // why it is interrupted or was stopped
	Version       int64
	Counts        Counts
}

// BatchFilter narrows a list of batches; zero fields do not narrow. Limit 0 is the default of the store.
type BatchFilter struct {
	State   BatchState
	User    string
	Cluster string
	Since   time.Time
	Limit   int
}

// ItemResult is what acting on one node came to. A non-nil error beside it says that the item failed.
type ItemResult struct {
	State   ItemState // succeeded or skipped
	Code    string
	Message string // why it was skipped
	Changed bool
}

// Codes of items, for programs and as catalogue keys. A plain success has none.
const (
	CodeUnchanged     = "unchanged"      // the node already was as asked
	CodeCleaned       = "cleaned"        // already schedulable; the note of an earlier cordon was removed
	CodeNotFound      = "not_found"      // no such node
	CodeReplaced      = "replaced"       // another node of the same name
	CodeForeignCordon = "foreign_cordon" // cordoned by somebody who is not us
	CodeUndone        = "undone"         // the change had landed, and somebody took it back since
	CodeForbidden     = "forbidden"      // the cluster does not permit it
	CodeUnauthorized  = "unauthorized"   // the cluster does not accept our credential
	CodeConflict      = "conflict"       // other writers were faster, again and again
	CodeUnavailable   = "unavailable"    // the cluster could not be reached, or did not answer in time
	CodeInvalid       = "invalid"        // the cluster refused the content of the change
	CodeFailed        = "failed"         // anything else
	CodeCancelled     = "cancelled"      // not started: somebody cancelled the batch
	CodeStopped       = "stopped"        // not started: the stop rule of the batch
	CodeAuthorityLost = "authority_lost" // not started: the person behind the batch may no longer do this
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
}

// BatchLease is the right to work on a batch. Every step names it, and the store refuses a step whose epoch is not the
// newest with ErrLeaseLost: an owner that was frozen and woke up again changes nothing.
type BatchLease struct {
	Batch  string
	Holder string
	Epoch  int64
	Idle   time.Duration // how long nobody had worked on the batch when this lease began
}

// BatchEnd is how an owner closes a batch: items that were never started become cancelled with Code and Error.
type BatchEnd struct {
	Stopped bool // by a person or by loss of authority
	Code    string
	Error   string
	Note    string
	Entry   Entry // the audit result
}
