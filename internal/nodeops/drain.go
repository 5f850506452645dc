package nodeops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-node-manager/kube-node-manager/internal/drain"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// actionEvict is how the record names the eviction of one pod.
const actionEvict = "evict"

func nodeUID(s string) types.UID { return types.UID(s) }

// drainage is the drain of one node on behalf of a batch: the lock around it, the cordon before and after it, and the
// record of all that. What happens in between is [drain.Drain].
type drainage struct {
	o     *Ops
	w     work
	task  fleet.Task
	lease *nodeLease

	cordon fleet.ItemResult // what came of the cordon
	done   drain.Result
}

// drain empties a node, and leaves it cordoned unless the batch says otherwise. It may be called again for the same item:
// everything that was done shows in the cluster.
func (o *Ops) drain(ctx context.Context, t fleet.Task, by fleet.Caller) (fleet.ItemResult, error) {
	d := &drainage{o: o, task: t, w: work{by: by, batch: t.Batch, item: t.Item, op: t.Operation, at: time.Now().UTC()}}
	res, err := d.run(ctx)
	switch {
	case errors.Is(err, fleet.ErrNotRecorded):
		return fleet.ItemResult{}, err
	case err != nil && ctx.Err() != nil:
		// A person's word ends the item; anything else leaves it to whoever goes on with the batch.
		var ok bool
		if res, ok = d.letGo(context.Cause(ctx)); !ok {
			return res, context.Cause(ctx)
		}
		err = nil
	}
	if rerr := o.result(ctx, d.w, res, err); rerr != nil {
		return fleet.ItemResult{}, rerr
	}
	return res, err
}

func (d *drainage) run(ctx context.Context) (fleet.ItemResult, error) {
	var err error
	if d.w.via, err = d.o.cfg.Clients(d.w.item.Ref.Cluster, d.w.by); err != nil {
		return noClient(&d.w, err)
	}
	opts, err := drain.OptionsOf(value(d.w.op.Drain), d.o.cfg.Self)
	if err != nil {
		return failure(&d.w, err, false)
	}
	if err := d.intend(ctx); err != nil {
		return fleet.ItemResult{}, err
	}
	ctx, lost := context.WithCancelCause(ctx)
	defer lost(nil)
	d.lease = d.o.newLease(d.w, lost)
	if err := d.lease.take(ctx, observeFor); err != nil {
		return d.locked(err)
	}
	defer d.lease.free(ctx)
	d.lease.keep(ctx)

	held, release := d.held(ctx)
	defer release()
	d.done, err = drain.Drain(ctx, drain.Job{
		Node: d.w.item.Ref, UID: d.w.item.UID, Watch: d.w.via.Own, Ops: d.w.via.Acts, Gate: d.o.gate(d.w.item.Ref.Cluster),
		Cordon: d.makeUnschedulable, Intend: d.intendEviction, Held: held, Events: d.task.Tell, Options: opts, Logger: d.o.log,
	})
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, fleet.ErrConflict) { // somebody else has the lease
			return d.locked(cause)
		}
		return d.failed(err)
	}
	return d.finish(ctx)
}

// locked is for a node that somebody else works on.
func (d *drainage) locked(err error) (fleet.ItemResult, error) {
	if !errors.Is(err, fleet.ErrConflict) {
		return failure(&d.w, err, false)
	}
	res := d.result(fleet.ItemFailed, fleet.CodeLocked, kube.Plain(err.Error()))
	return res, fmt.Errorf("draining %s: %w", d.w.item.Ref, err)
}

// held tells the drain to wait while the batch is paused, or while it is not certain that the node is still ours.
func (d *drainage) held(ctx context.Context) (held func() (bool, <-chan struct{}), release func()) {
	if d.task.Held == nil {
		return d.lease.brake.held, func() {}
	}
	both := newBrake()
	look := func() (paused, unsure <-chan struct{}) {
		a, paused := d.task.Held()
		b, unsure := d.lease.brake.held()
		both.set(a || b)
		return paused, unsure
	}
	paused, unsure := look()
	ctx, stop := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for {
			select {
			case <-paused:
			case <-unsure:
			case <-ctx.Done():
				return
			}
			paused, unsure = look()
		}
	})
	return both.held, func() { stop(); watcher.Wait() }
}

// makeUnschedulable is the cordon: no pod is evicted before it is acknowledged (DR-20).
func (d *drainage) makeUnschedulable(ctx context.Context) error {
	w := d.w
	w.op = fleet.Operation{Action: fleet.ActionCordon, Reason: d.w.op.Reason}
	var err error
	if d.cordon, err = d.o.run(ctx, w); err != nil {
		return err
	}
	switch {
	case d.cordon.State == fleet.ItemSucceeded, d.cordon.Code == fleet.CodeUnchanged:
		return nil
	case d.cordon.Code == fleet.CodeReplaced:
		return fmt.Errorf("%s: %w", d.cordon.Message, fleet.ErrConflict)
	}
	return fmt.Errorf("%s: %w", d.cordon.Message, fleet.ErrBlocked)
}

// intend records that the node is going to be drained: everything that is written for it, the lease too, comes after.
func (d *drainage) intend(ctx context.Context) error {
	return d.record(ctx, string(fleet.ActionDrain), d.w.op.Drain)
}

// intendEviction records that a pod is going to be evicted. It is the condition for evicting it.
func (d *drainage) intendEviction(ctx context.Context, p fleet.PodProgress) error {
	return d.record(ctx, actionEvict, struct {
		Namespace string `json:"namespace"`
		Pod       string `json:"pod"`
		UID       string `json:"uid"`
		Owner     string `json:"owner,omitempty"`
		Delete    bool   `json:"delete,omitempty"` // past its budgets
	}{p.Namespace, p.Name, p.UID, ownerOf(p), value(d.w.op.Drain).DisableEviction})
}

func ownerOf(p fleet.PodProgress) string {
	if p.OwnerName == "" {
		return ""
	}
	return p.OwnerKind + "/" + p.OwnerName
}

func (d *drainage) record(ctx context.Context, action string, what any) error {
	rctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	e := entry(d.w.by, d.w.batch, d.w.op, d.w.item.Ref, "intent")
	e.Action, e.NodeUID, e.As = action, d.w.item.UID, d.w.via.As
	detail, err := json.Marshal(what)
	if err != nil {
		return fmt.Errorf("describing a drain of %s: %w", d.w.item.Ref, err)
	}
	e.Detail = string(detail)
	if _, err := d.o.cfg.Record.Append(rctx, e); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("recording an intent for %s: %w: %w", d.w.item.Ref, fleet.ErrNotRecorded, err)
	}
	return nil
}

// finish is what comes after a node is drained.
func (d *drainage) finish(ctx context.Context) (fleet.ItemResult, error) {
	res := d.result(fleet.ItemSucceeded, "", d.done.Message)
	if d.done.State == fleet.DrainPartial {
		res.Code = fleet.CodePartial
	}
	if !value(d.w.op.Drain).UncordonAfter {
		return res, nil
	}
	own, err := d.ours(ctx)
	switch {
	case err != nil:
		return d.stays(res, err)
	case !own:
		res.Code = fleet.CodeForeignCordon
		res.Message = join(res.Message, "it stays cordoned: this batch is not who cordoned it")
		return res, nil
	}
	w := d.w
	w.op = fleet.Operation{Action: fleet.ActionUncordon, Reason: d.w.op.Reason, Foreign: fleet.ForeignSkip}
	back, err := d.o.run(ctx, w)
	if err != nil {
		return d.stays(res, err)
	}
	if back.State == fleet.ItemSucceeded {
		res.Edits = nil // as it was found
	}
	res.Message = join(res.Message, back.Message)
	return res, nil
}

// stays is for a node that was drained and should have been uncordoned.
func (d *drainage) stays(res fleet.ItemResult, err error) (fleet.ItemResult, error) {
	if errors.Is(err, fleet.ErrNotRecorded) {
		return fleet.ItemResult{}, err
	}
	res.State, res.Code = fleet.ItemFailed, fleet.CodeFailed
	res.Message = join(res.Message, "it was drained and stays cordoned: "+kube.Plain(kube.Reason(err)))
	return res, fmt.Errorf("uncordoning %s after its drain: %w", d.w.item.Ref, err)
}

// ours tells whether the cordon of the node is the one that this batch made: never uncordon what we did not cordon
// (BT-08).
func (d *drainage) ours(ctx context.Context) (bool, error) {
	n, err := d.w.nodes().get(ctx)
	if err != nil {
		return false, err
	}
	note, ours := noteOf(n, kube.Node(d.w.item.Ref.Cluster, n))
	return ours && note.Batch == d.w.batch && string(n.UID) == d.w.item.UID, nil
}

// failed says why a node was not drained, in the words for items.
func (d *drainage) failed(err error) (fleet.ItemResult, error) {
	switch d.done.State {
	case fleet.DrainBlocked:
		return d.result(fleet.ItemFailed, fleet.CodeBlocked, d.done.Message), err
	case fleet.DrainTimedOut:
		return d.result(fleet.ItemFailed, fleet.CodeTimedOut, "it stays cordoned; "+d.done.Message), err
	case fleet.DrainUncordoned:
		return d.result(fleet.ItemFailed, fleet.CodeUncordoned, "somebody made it schedulable while it was drained; nothing more was evicted"), err
	case fleet.DrainGone:
		return d.result(fleet.ItemFailed, fleet.CodeNotFound, "the node is gone"), err
	case fleet.DrainReplaced:
		return d.result(fleet.ItemSkipped, fleet.CodeReplaced, "the node that was chosen is gone; another one has its name now"), nil
	default:
	}
	switch d.cordon.Code {
	case fleet.CodeUndone:
		return d.result(fleet.ItemFailed, fleet.CodeUncordoned, d.cordon.Message), err
	case fleet.CodeReplaced:
		return d.result(fleet.ItemSkipped, fleet.CodeReplaced, d.cordon.Message), nil
	}
	res, err := failure(&d.w, err, false)
	res.Drain, res.Edits, res.Changed = d.progress(), d.cordon.Edits, d.changed()
	return res, err
}

// letGo is what becomes of a node that a person let go of in the middle. What was evicted stays evicted, and the node
// stays cordoned.
func (d *drainage) letGo(cause error) (fleet.ItemResult, bool) {
	switch {
	case errors.Is(cause, fleet.ErrSkipped):
		return d.result(fleet.ItemSkipped, fleet.CodeSkipped, d.left()), true
	case errors.Is(cause, fleet.ErrCancelled):
		return d.result(fleet.ItemCancelled, fleet.CodeCancelled, d.left()), true
	}
	return fleet.ItemResult{Drain: d.progress(), Changed: d.changed()}, false
}

func (d *drainage) left() string {
	switch {
	case d.done.Evicted > 0:
		return fmt.Sprintf("stopped after %d evictions; it stays cordoned", d.done.Evicted)
	case d.done.Cordoned:
		return "stopped before the first eviction; it stays cordoned"
	}
	return "stopped before it was cordoned"
}

func (d *drainage) result(s fleet.ItemState, code, message string) fleet.ItemResult {
	return fleet.ItemResult{
		State: s, Code: code, Message: message, Changed: d.changed(), Edits: d.cordon.Edits, Drain: d.progress(),
	}
}

func (d *drainage) changed() bool { return d.cordon.Changed || d.done.Evicted > 0 }

// progress is the drain as it ended, nil if it was not begun.
func (d *drainage) progress() *fleet.DrainProgress {
	if d.done.State == "" {
		return nil
	}
	return &fleet.DrainProgress{
		State: d.done.State, Since: time.Now().UTC(), Message: d.done.Message, Evicted: d.done.Evicted, Pods: d.done.Pods,
		Volumes: d.done.Volumes, WeakLock: d.lease != nil && d.lease.weak,
	}
}

// resolveDrain tells what became of a node that was being drained when its batch ended.
func (o *Ops) resolveDrain(ctx context.Context, t fleet.Task) (fleet.ItemResult, error) {
	d := &drainage{o: o, task: t, w: work{by: t.By, batch: t.Batch, item: t.Item, op: t.Operation, at: time.Now().UTC()}}
	var err error
	if d.w.via, err = o.cfg.Clients(t.Item.Ref.Cluster, t.By); err != nil {
		return noClient(&d.w, err)
	}
	res := fleet.ItemResult{State: fleet.ItemCancelled, Code: fleet.CodeCancelled, Drain: t.Item.Drain}
	own, err := d.ours(ctx)
	switch {
	case errors.Is(err, fleet.ErrNotFound):
		res.Message = "the node is gone"
	case err != nil && ctx.Err() != nil:
		return fleet.ItemResult{}, err
	case err != nil:
		return failure(&d.w, err, false)
	case own:
		res.Changed, res.Message = true, "stopped in the middle; the node stays cordoned, and what was evicted stays evicted"
	default:
		res.Changed = t.Item.Drain != nil && t.Item.Drain.Evicted > 0
		res.Message = "stopped in the middle; the node is not cordoned by this batch"
	}
	if err := o.result(ctx, d.w, res, nil); err != nil {
		return fleet.ItemResult{}, err
	}
	return res, nil
}

// gate is what the drains of one cluster share, over all batches of this process.
func (o *Ops) gate(cluster string) *drain.Gate {
	o.mu.Lock()
	defer o.mu.Unlock()
	g := o.gates[cluster]
	if g == nil {
		g = drain.NewGate(0)
		o.gates[cluster] = g
	}
	return g
}

func (o *Ops) newLease(w work, lost context.CancelCauseFunc) *nodeLease {
	return &nodeLease{
		client: w.via.Own, namespace: o.cfg.LeaseNamespace, name: leaseName(w.item.Ref.Name),
		holder: "knm/" + o.cfg.Installation + "/" + w.batch, node: w.item.Ref, uid: w.item.UID, batch: w.batch,
		log: o.log, lost: lost, brake: newBrake(),
	}
}

// join puts two remarks together.
func join(a, b string) string {
	switch {
	case a == "":
		return b
	case b == "":
		return a
	}
	return a + "; " + b
}
