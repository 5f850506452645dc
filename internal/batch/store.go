package batch

import (
	"context"
	"time"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Store is where batches live. Its clock is the only one that leases are measured by.
type Store interface {
	Records
	Steering
	Reports
	Leases
	Steps
	DrainSteps
}

// Records makes, reads and cancels batches.
type Records interface {
	// CreateBatch writes a draft in one transaction. The same key of the same person answers with the batch made
	// before, or with ErrConflict if the digest differs. A node that an unfinished batch holds is a BusyError. A plan
	// that is too large is kept without its pods.
	CreateBatch(ctx context.Context, d fleet.BatchDraft) (fleet.Batch, error)
	// Batch returns a batch and those of its items whose version is greater than after. ErrNotFound.
	Batch(ctx context.Context, id string, after int64) (fleet.Batch, []fleet.Item, error)
	// Batches lists, newest first.
	Batches(ctx context.Context, f fleet.BatchFilter) ([]fleet.Batch, error)
	// CancelBatch writes down who asked for it and the audit entry. It does nothing if somebody did before, and is
	// ErrConflict for a batch that is done. From its return on no further item of the batch can be claimed.
	CancelBatch(ctx context.Context, id, by string, e fleet.Entry) error
}

// Steering is what people ask of a batch that is under way. Each writes its audit entry in the same transaction, and is
// ErrConflict where there is nothing to do.
type Steering interface {
	// PauseBatch: from its return on no further item can be claimed.
	PauseBatch(ctx context.Context, id, by string, e fleet.Entry) error
	// ResumeBatch makes a batch go on that is paused or waits for a person. A canary that is done is passed.
	ResumeBatch(ctx context.Context, id, by string, e fleet.Entry) error
	// SkipItem leaves out an item that waits, at once, and asks the owner to let go of one that is being done.
	SkipItem(ctx context.Context, id string, seq int, by string, e fleet.Entry) error
}

// Reports are what is read beside the batches themselves.
type Reports interface {
	// MadeBatch finds the batch that a key of a person has made. ErrNotFound, ErrConflict if the digest differs.
	MadeBatch(ctx context.Context, userID, key, digest string) (fleet.Batch, error)
	// FreeNodes is a BusyError if an unfinished batch holds one of the nodes.
	FreeNodes(ctx context.Context, refs []fleet.NodeRef) error
	// BatchPlan is the plan that a batch was made by, ErrNotFound if there was none.
	BatchPlan(ctx context.Context, id string) (*fleet.Plan, error)
	// BatchEvents reads the log of a batch after a sequence number, oldest first. ErrNotFound.
	BatchEvents(ctx context.Context, id string, after int64, limit int) ([]fleet.BatchEvent, error)
}

// Leases decide who works on a batch.
type Leases interface {
	// RunnableBatches lists batches that wait for an owner, cancelled ones first, then the oldest: those without a live
	// lease, and those whose lease belongs to the holder itself, "" for nobody's. A batch that is interrupted until a
	// person decides is none of them, unless it is cancelled; nor is one that is paused and has no node in the middle.
	RunnableBatches(ctx context.Context, holder string, limit int) ([]string, error)
	// AcquireBatch takes the lease of such a batch with a new epoch. ErrLeaseLost if another one was faster.
	AcquireBatch(ctx context.Context, id, holder string, ttl time.Duration) (fleet.BatchLease, fleet.Batch, error)
	// RenewBatch prolongs the lease and reads what people asked of the batch. ErrLeaseLost.
	RenewBatch(ctx context.Context, l fleet.BatchLease, ttl time.Duration) (fleet.BatchSteer, error)
	// ReleaseBatch ends the lease and leaves the batch as it is, for the next owner.
	ReleaseBatch(ctx context.Context, l fleet.BatchLease) error
}

// Steps are what only the owner of a lease may do; each returns ErrLeaseLost for an epoch that is not the newest.
type Steps interface {
	// StartBatch makes the batch running, unless it is paused, and returns everything there is to do.
	StartBatch(ctx context.Context, l fleet.BatchLease) (fleet.Batch, fleet.Caller, []fleet.Item, error)
	// ClaimItem makes an item running and counts the attempt. ErrCancelled if somebody cancelled the batch, ErrSkipped if
	// somebody left the item out, ErrPaused for an item that was not begun while the batch is paused.
	ClaimItem(ctx context.Context, l fleet.BatchLease, seq int) error
	// FinishItem records the final state of an item that is running: code, error, changed, edits and, unless nil, drain.
	FinishItem(ctx context.Context, l fleet.BatchLease, it fleet.Item) error
	// EndBatch closes a batch without running items, derives its outcome and lets its nodes go.
	EndBatch(ctx context.Context, l fleet.BatchLease, end fleet.BatchEnd) error
	// InterruptBatch gives the lease back and says why. The batch is runnable again after retry; 0 means that it waits
	// for a person.
	InterruptBatch(ctx context.Context, l fleet.BatchLease, note string, retry time.Duration) error
}

// DrainSteps are the steps of an owner that make a batch tell how far it is.
type DrainSteps interface {
	// HoldBatch pauses the batch, unless it is paused or cancelled or a person has gone on after the canary, and answers
	// with what people asked of it by then.
	HoldBatch(ctx context.Context, l fleet.BatchLease, by, note string, e fleet.Entry) (fleet.BatchSteer, error)
	// NoteBatch says why a running batch does not start further nodes, "" when it does again.
	NoteBatch(ctx context.Context, l fleet.BatchLease, note string) error
	// RecordProgress writes how far drains are and what they told, all in one step. It may be called again with the same
	// if it is not known whether it has happened. ErrConflict for an item that is not running.
	RecordProgress(ctx context.Context, l fleet.BatchLease, progress ...fleet.ItemProgress) error
}

// Doer acts on one node. It reads the person's authority anew each time.
type Doer interface {
	// Do brings the node to what the operation asks for. It is idempotent per batch: called again after a crash, it
	// finds out from the live node whether its change has landed. An error says that the item failed, with the code and
	// the sentence in the result; ErrAuthorityLost and ErrNotRecorded are not about the node and leave the item open.
	Do(ctx context.Context, t fleet.Task) (fleet.ItemResult, error)
	// Resolve tells, without changing the cluster, what became of an item that was running when its batch ended: the
	// state is cancelled if the change has not landed. Errors are those of Do, but for the person's authority.
	Resolve(ctx context.Context, t fleet.Task) (fleet.ItemResult, error)
}

// Authorizer decides whether a person may do an operation to all of some nodes, and records a refusal.
type Authorizer interface {
	Authorize(ctx context.Context, by fleet.Caller, op fleet.Operation, refs []fleet.NodeRef) error
	// Prepare authorizes, checks every field of the operation and resolves it: defaults are set, the lines of a template
	// and of a source node are in it. What it returns is what is frozen. FieldError, ErrForbidden, ErrUnavailable.
	Prepare(ctx context.Context, by fleet.Caller, op fleet.Operation, refs []fleet.NodeRef) (fleet.Operation, error)
}

// Planner says what an operation would do to nodes, and changes nothing. The operation is one that Prepare returned. A
// cluster that cannot be looked at is an Error in its part of the plan.
type Planner interface {
	Plan(ctx context.Context, by fleet.Caller, op fleet.Operation, items []fleet.Item) (*fleet.Plan, error)
}

// Lookup answers from the cache.
type Lookup interface {
	// Clusters are those in sight.
	Clusters(sight fleet.Sight) []fleet.Cluster
	// Node returns ErrNotFound for what the cache does not know.
	Node(ref fleet.NodeRef) (*fleet.Node, error)
	// Unavailable names the nodes of a cluster that are cordoned or not ready.
	Unavailable(cluster string) []string
	// Refuses are the rights for lack of which a cluster would refuse an operation, as it said a moment ago.
	Refuses(cluster string, op fleet.Operation) []fleet.TestedRight
}
