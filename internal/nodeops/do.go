package nodeops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

const (
	// maxTries bounds how often a node is read and written. Its resourceVersion moves with every heartbeat, so that a
	// conflict is nothing unusual.
	maxTries = 5
	// maxOutages bounds how many of these may meet a cluster that does not answer.
	maxOutages = 3
	// pause is the shortest wait between two tries; the longest is twice as long. It is that of the taint controllers:
	// client-go's default for conflicts is too tight for a node that is written to all the time.
	pause = 100 * time.Millisecond
	// maxPause bounds what an API server may make us wait.
	maxPause = 10 * time.Second
)

// work is one operation on one node.
type work struct {
	by    fleet.Caller
	batch string
	item  fleet.Item
	op    fleet.Operation
	at    time.Time // when it began; the same through all tries
	via   kube.Clients
	// intended is when an earlier attempt of the same batch had recorded its intent, zero if none had: from then on the
	// change may have landed.
	intended time.Time
	recorded []fleet.Edit // of the newest such intent
	readOnly bool
}

// verb decides what an operation wants of a node as it is now. It does not change the node.
type verb func(w work, n *corev1.Node) decision

// decision is a change, or else the result without one. A result that failed is about what the node is.
type decision struct {
	change *change
	result fleet.ItemResult // without a change: now; with one: once it is written
	edits  []fleet.Edit     // all that was looked at, for a plan
}

// change is the body of a merge patch, without its preconditions, and what the record says of it.
type change struct {
	annotations   map[string]any // nil values go
	labels        map[string]any // likewise
	spec          map[string]any
	loose         bool // right for any version of the node: nothing in it depends on what else the node has
	before, after any
	edits         []fleet.Edit // that take effect
}

var verbs = map[fleet.Action]verb{
	fleet.ActionCordon:   cordon,
	fleet.ActionUncordon: uncordon,
	fleet.ActionLabels:   edit,
	fleet.ActionTaints:   edit,
	fleet.ActionCopy:     edit,
	fleet.ActionTemplate: edit,
	fleet.ActionRevert:   revert,
}

// Do brings one node of a batch to what the operation asks for. See batch.Doer for the contract.
func (o *Ops) Do(ctx context.Context, t fleet.Task) (fleet.ItemResult, error) {
	now, err := o.authority(ctx, t.By, t.Batch, t.Item, t.Operation)
	if err != nil {
		return fleet.ItemResult{}, err
	}
	ctx = kube.OnBehalf(ctx, now.Name, t.Batch)
	if t.Operation.Action == fleet.ActionDrain {
		return o.drain(ctx, t, now)
	}
	return o.run(ctx, work{by: now, batch: t.Batch, item: t.Item, op: t.Operation, at: time.Now().UTC()})
}

// Resolve tells what became of a node that was being worked on when its batch ended. It writes nothing to the cluster.
func (o *Ops) Resolve(ctx context.Context, t fleet.Task) (fleet.ItemResult, error) {
	if t.Operation.Action == fleet.ActionDrain {
		return o.resolveDrain(ctx, t)
	}
	return o.run(ctx, work{by: t.By, batch: t.Batch, item: t.Item, op: t.Operation, at: time.Now().UTC(), readOnly: true})
}

func (o *Ops) run(ctx context.Context, w work) (fleet.ItemResult, error) {
	if w.item.Attempt > 1 || w.readOnly {
		var err error
		if w.intended, w.recorded, err = o.intent(ctx, w); err != nil {
			return fleet.ItemResult{}, err
		}
	}
	res, err := o.attempt(ctx, &w)
	switch {
	case errors.Is(err, fleet.ErrNotRecorded):
		return fleet.ItemResult{}, err
	case err != nil && ctx.Err() != nil:
		return fleet.ItemResult{}, err // cut off: whoever goes on with the batch finds out
	}
	if err := o.result(ctx, w, res, err); err != nil {
		return fleet.ItemResult{}, err
	}
	return res, err
}

// attempt reads, decides and writes until the node is as asked or it is clear that it will not be.
func (o *Ops) attempt(ctx context.Context, w *work) (fleet.ItemResult, error) {
	decide := verbs[w.op.Action]
	if decide == nil {
		err := fmt.Errorf("%q: %w", w.op.Action, fleet.ErrUnsupported)
		return fleet.ItemResult{State: fleet.ItemFailed, Code: fleet.CodeFailed, Message: "this program does not know how to do that"}, err
	}
	var err error
	if w.via, err = o.cfg.Clients(w.item.Ref.Cluster, w.by); err != nil {
		return noClient(w, err)
	}
	nodes := w.nodes()
	var (
		outages int
		open    bool    // a patch was sent and its answer never came
		intent  *change // on record
		last    error   // of the last try
	)
	n, remembered := o.remembered(w)
	for try := range maxTries {
		if try > 0 && last != nil {
			if err := await(ctx, last); err != nil {
				return fleet.ItemResult{}, err
			}
		}
		if n == nil {
			if n, err = nodes.get(ctx); err != nil {
				last = err
				if ctx.Err() == nil && passing(err, &outages) {
					continue
				}
				return failure(w, err, open)
			}
		}
		if w.item.UID == "" {
			w.item.UID = string(n.UID) // unknown when the list was frozen: it is this one from here on
		}
		if string(n.UID) != w.item.UID {
			return fleet.ItemResult{
				State: fleet.ItemSkipped, Code: fleet.CodeReplaced,
				Message: "the node that was chosen is gone; another one has its name now",
			}, nil
		}
		d := decide(*w, n)
		switch {
		case d.change == nil && d.result.State == fleet.ItemFailed:
			return d.result, fmt.Errorf("%s of %s: %w: %s", w.op.Action, w.item.Ref, fleet.ErrConflict, d.result.Message)
		case d.change == nil:
			return d.result, nil
		}
		if w.readOnly {
			return fleet.ItemResult{
				State: fleet.ItemCancelled, Code: fleet.CodeCancelled, Message: "the batch ended before this node was changed",
			}, nil
		}
		// What was found may be something else after a conflict. The record is what a revert goes by after a crash.
		if intent == nil || !reflect.DeepEqual(intent.edits, d.change.edits) {
			if err := o.intend(ctx, w, d.change); err != nil {
				return fleet.ItemResult{}, err
			}
			intent = d.change
		}
		d.change.loose = d.change.loose && !remembered
		patched, err := nodes.patch(ctx, n, d.change)
		seen := n
		n = nil
		if err == nil {
			o.cfg.Observe(w.item.Ref.Cluster, patched)
			d.result.Changed, d.result.Edits = true, d.change.edits
			return d.result, nil
		}
		last = err
		switch {
		case ctx.Err() != nil:
			return fleet.ItemResult{}, err
		case errors.Is(err, fleet.ErrConflict) && remembered:
			last = nil // nobody was in the way: the watch is behind
		case errors.Is(err, fleet.ErrConflict):
			open = false
		case apierrors.IsInvalid(err):
			// Either the uid in the patch is not the node's any more, or the server refuses the change.
			again, gerr := nodes.get(ctx)
			if gerr != nil {
				return failure(w, gerr, false)
			}
			if again.UID == seen.UID {
				return failure(w, err, false)
			}
		case passing(err, &outages):
			if !errors.Is(err, fleet.ErrTooMany) {
				// The server may have done it before the connection broke.
				open, w.intended, w.recorded = true, w.at, d.change.edits
			}
		default:
			return failure(w, err, errors.Is(err, fleet.ErrUnavailable) && !errors.Is(err, kube.ErrCredentials))
		}
		remembered = false
	}
	return failure(w, last, open)
}

// remembered is the node as the watch has it, nil where a live read has to say. Most changes need no read of their own:
// the patch names uid and version, and where the watch is behind it is refused, with nothing written. It says only
// that there is something to do; that there is nothing is for a live read.
func (o *Ops) remembered(w *work) (*corev1.Node, bool) {
	if o.cfg.Remembered == nil || w.readOnly || w.item.Attempt > 1 || w.item.UID == "" || w.op.Action == fleet.ActionRevert {
		return nil, false
	}
	n, ok := o.cfg.Remembered(w.item.Ref)
	if !ok || string(n.UID) != w.item.UID {
		return nil, false
	}
	if d := verbs[w.op.Action](*w, n); d.change == nil {
		return nil, false
	}
	return n, true
}

// passing tells errors that may be gone on the next try, and counts those that are about a cluster which does not answer.
func passing(err error, outages *int) bool {
	switch {
	case errors.Is(err, fleet.ErrTooMany):
		return true
	case errors.Is(err, kube.ErrCredentials) || !errors.Is(err, fleet.ErrUnavailable):
		return false
	}
	*outages++
	return *outages < maxOutages
}

// await waits between two tries, as long as the server asked for if it did.
func await(ctx context.Context, last error) error {
	wait := pause + rand.N(pause) //nolint:gosec // jitter against a herd, no secret
	if asked, ok := apierrors.SuggestsClientDelay(last); ok {
		wait = min(max(wait, time.Duration(asked)*time.Second), maxPause)
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// intention is the detail of an intent in the record.
type intention struct {
	Before any          `json:"before,omitempty"`
	After  any          `json:"after,omitempty"`
	Edits  []fleet.Edit `json:"edits,omitempty"`
}

// intent finds when an earlier attempt of the same batch recorded that it was going to write to the node, and what the
// last one was going to change.
func (o *Ops) intent(ctx context.Context, w work) (time.Time, []fleet.Edit, error) {
	rctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	entries, err := o.cfg.Record.Entries(rctx, fleet.AuditFilter{
		Cluster: w.item.Ref.Cluster, Node: w.item.Ref.Name, Action: string(w.op.Action), Since: w.item.StartedAt, Limit: 1000,
	})
	if err != nil {
		return time.Time{}, nil, fmt.Errorf("reading the intents for %s: %w: %w", w.item.Ref, fleet.ErrNotRecorded, err)
	}
	var (
		first time.Time
		last  *intention
	)
	for _, e := range entries { // newest first
		if e.Batch != w.batch || e.Phase != "intent" {
			continue
		}
		first = e.At
		if last == nil {
			last = &intention{}
			if err := json.Unmarshal([]byte(e.Detail), last); err != nil {
				// Not one of ours, or cut short: that it was meant is known all the same.
				o.log.WarnContext(ctx, "reading an intent", keyBatch, w.batch, keyNode, w.item.Ref.String(), keyErr, err)
			}
		}
	}
	if last == nil {
		return first, nil, nil
	}
	return first, last.Edits, nil
}

// intend records what is going to be written. It is the condition for writing.
func (o *Ops) intend(ctx context.Context, w *work, c *change) error {
	rctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	e := entry(w.by, w.batch, w.op, w.item.Ref, "intent")
	e.NodeUID, e.As = w.item.UID, w.via.As
	detail, err := json.Marshal(intention{Before: c.before, After: c.after, Edits: c.edits})
	if err != nil {
		return fmt.Errorf("describing a change of %s: %w", w.item.Ref, err)
	}
	e.Detail = string(detail)
	if _, err := o.cfg.Record.Append(rctx, e); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("recording an intent for %s: %w: %w", w.item.Ref, fleet.ErrNotRecorded, err)
	}
	return nil
}

// result records what came of it, even if nobody waits any more.
func (o *Ops) result(ctx context.Context, w work, res fleet.ItemResult, failed error) error {
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	e := entry(w.by, w.batch, w.op, w.item.Ref, "result")
	e.NodeUID, e.As, e.Outcome, e.Detail = w.item.UID, w.via.As, string(res.State), res.Message
	if failed != nil {
		e.Outcome = string(fleet.ItemFailed)
	}
	if e.Detail == "" {
		e.Detail = res.Code
	}
	if _, err := o.cfg.Record.Append(rctx, e); err != nil {
		return fmt.Errorf("recording the result for %s: %w: %w", w.item.Ref, fleet.ErrNotRecorded, err)
	}
	o.log.DebugContext(ctx, "node done", keyNode, w.item.Ref.String(), keyOp, w.op.Action, keyBatch, w.batch, keyErr, failed)
	return nil
}
