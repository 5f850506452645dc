package batch

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// The bounds of a batch.
const (
	MaxNodes        = 5000
	MaxConcurrent   = 50
	MaxPauseBetween = time.Hour
	maxKey          = 200
	// maxReverts bounds how often a revert is followed back to what was done first.
	maxReverts = 64

	defaultConcurrent = 10
	drainConcurrent   = 1
)

// request is what a person asks for, checked, with what is the engine's to fill in.
type request struct {
	spec   fleet.BatchSpec              // nodes without repetitions, rollout with defaults
	from   map[fleet.NodeRef]fleet.Item // of a revert: which node is meant and what is to be taken back
	origin *fleet.Operation             // of a revert: what was done first, and what taking it back asks permission for
	digest string                       // tells this request from another one under the same key
	frozen bool                         // the operation is that of an earlier batch, as it was prepared then
	counts map[fleet.NodeRef]int        // pods that are to go, by the plan
}

// Submit implements handlers.Batches.
func (e *Engine) Submit(ctx context.Context, by fleet.Caller, spec fleet.BatchSpec) (fleet.Batch, error) {
	r, err := e.request(ctx, by, spec)
	if err != nil {
		return fleet.Batch{}, err
	}
	return e.make(ctx, by, r)
}

// Plan implements handlers.Batches.
func (e *Engine) Plan(ctx context.Context, by fleet.Caller, spec fleet.BatchSpec) (*fleet.Plan, error) {
	r, err := e.request(ctx, by, spec)
	if err != nil {
		return nil, err
	}
	items, err := e.prepare(ctx, by, r)
	if err != nil {
		return nil, err
	}
	return e.plan(ctx, by, r, items)
}

// request checks what does not depend on the state of any node.
func (e *Engine) request(ctx context.Context, by fleet.Caller, spec fleet.BatchSpec) (*request, error) {
	if err := validate(spec); err != nil {
		return nil, err
	}
	r := &request{spec: spec}
	if spec.Action == fleet.ActionRevert {
		if err := e.takeBack(ctx, by, r); err != nil {
			return nil, err
		}
	}
	return r, e.complete(by, r)
}

// complete checks the nodes and fills in defaults.
func (e *Engine) complete(by fleet.Caller, r *request) (err error) {
	known := make(map[string]bool)
	for _, c := range e.cfg.Lookup.Clusters(by.Sight()) {
		known[c.Name] = true
	}
	if r.spec.Nodes, err = nodes(r.spec.Nodes, known); err != nil {
		return err
	}
	if s := r.spec.Source; s != nil && !r.frozen && !known[s.Cluster] {
		return fleet.Invalid("source", "%q names the cluster %q, which is not known here", s, s.Cluster)
	}
	standard, order := defaultConcurrent, fleet.OrderGiven
	if r.spec.Action == fleet.ActionDrain {
		standard, order = drainConcurrent, fleet.OrderZone
	}
	r.spec.MaxConcurrent = cmp.Or(r.spec.MaxConcurrent, standard)
	r.spec.Order = cmp.Or(r.spec.Order, order)
	r.digest, err = digestOf(r.spec)
	return err
}

// takeBack finds what a revert is about: the nodes that the batch it names has changed.
func (e *Engine) takeBack(ctx context.Context, by fleet.Caller, r *request) error {
	if r.spec.Revert == "" {
		return fleet.Invalid("batch", "must name the batch that is to be taken back")
	}
	err := e.Sees(ctx, by, r.spec.Revert)
	var done fleet.Batch
	var items []fleet.Item
	if err == nil {
		done, items, err = e.cfg.Store.Batch(ctx, r.spec.Revert, 0)
	}
	switch {
	case errors.Is(err, fleet.ErrNotFound):
		return fleet.Invalid("batch", "there is no batch %q", r.spec.Revert)
	case err != nil:
		return fmt.Errorf("reading batch %s: %w", r.spec.Revert, err)
	case done.State != fleet.BatchDone:
		return fmt.Errorf("batch %s is not done yet: %w", done.ID, fleet.ErrConflict)
	}
	r.spec.Parent = done.ID
	in := make(map[fleet.NodeRef]bool, len(items))
	r.from = make(map[fleet.NodeRef]fleet.Item)
	var all []fleet.NodeRef
	for _, it := range items {
		in[it.Ref] = true
		if undo := changes(it.Edits); len(undo) > 0 {
			r.from[it.Ref] = fleet.Item{UID: it.UID, Undo: undo}
			all = append(all, it.Ref)
		}
	}
	if len(all) == 0 {
		return fleet.Invalid("batch", "batch %s has changed nothing that could be taken back", done.ID)
	}
	if len(r.spec.Nodes) == 0 {
		r.spec.Nodes = all
	}
	for _, ref := range r.spec.Nodes {
		if !in[ref] {
			return fleet.Invalid("nodes", "%q is not a node of batch %s", ref, done.ID)
		}
	}
	origin, err := e.origin(ctx, done)
	r.origin = &origin
	return err
}

// origin is what was done before anything was taken back.
func (e *Engine) origin(ctx context.Context, b fleet.Batch) (fleet.Operation, error) {
	for range maxReverts {
		if b.Operation.Action != fleet.ActionRevert {
			return b.Operation, nil
		}
		var err error
		if b, _, err = e.cfg.Store.Batch(ctx, b.Operation.Revert, math.MaxInt64); err != nil {
			return fleet.Operation{}, fmt.Errorf("reading batch %s: %w", b.Operation.Revert, err)
		}
	}
	return fleet.Operation{}, fleet.Invalid("batch", "was taken back and forth more than %d times", maxReverts)
}

// changes are the edits that made a difference.
func changes(edits []fleet.Edit) (out []fleet.Edit) {
	for _, e := range edits {
		switch e.Outcome {
		case fleet.EditAdded, fleet.EditChanged, fleet.EditRemoved:
			out = append(out, e)
		case fleet.EditUnchanged, fleet.EditConflict, fleet.EditKept:
		}
	}
	return out
}

// prepare authorizes a request, completes its operation and freezes which nodes it is about.
func (e *Engine) prepare(ctx context.Context, by fleet.Caller, r *request) ([]fleet.Item, error) {
	var err error
	if r.frozen {
		err = e.cfg.Authorizer.Authorize(ctx, by, r.spec.Operation, r.spec.Nodes)
	} else {
		r.spec.Operation, err = e.cfg.Authorizer.Prepare(ctx, by, r.spec.Operation, r.spec.Nodes)
	}
	if err != nil {
		return nil, err
	}
	if r.origin != nil { // who may do it may take it back
		if err := e.cfg.Authorizer.Authorize(ctx, by, *r.origin, r.spec.Nodes); err != nil {
			return nil, err
		}
	}
	if err := e.cfg.Store.FreeNodes(ctx, r.spec.Nodes); err != nil {
		return nil, fmt.Errorf("looking for other batches: %w", e.discreet(ctx, by, err))
	}
	items := make([]fleet.Item, len(r.spec.Nodes))
	for i, ref := range r.spec.Nodes {
		if items[i], err = e.freeze(ref); err != nil {
			return nil, err
		}
		if from, ok := r.from[ref]; ok {
			items[i].UID, items[i].Undo = cmp.Or(from.UID, items[i].UID), from.Undo
		}
	}
	r.arrange(items)
	return items, nil
}

// freeze says which node is meant and where it is. A node that the cache does not know is kept without a UID: it fails as
// not found at its turn, and the others are changed.
func (e *Engine) freeze(ref fleet.NodeRef) (fleet.Item, error) {
	it := fleet.Item{Ref: ref, State: fleet.ItemQueued}
	n, err := e.cfg.Lookup.Node(ref)
	switch {
	case err == nil:
		it.UID, it.Zone, it.Control = n.UID, n.Zone(), controls(n)
		return it, nil
	case errors.Is(err, fleet.ErrNotFound):
		return it, nil
	}
	return it, fmt.Errorf("looking up %s: %w", ref, err)
}

// controls tells whether a node is one of the control plane, by the labels that kubeadm and its like set.
func controls(n *fleet.Node) bool {
	for _, label := range []string{"node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"} {
		if _, ok := n.Labels[label]; ok {
			return true
		}
	}
	return false
}

// arrange puts items in the order in which they are worked on, and numbers them. By zone: cluster by cluster as they were
// first named, their zones by name, in a zone the nodes with the fewest pods to go first, and nodes of the control plane
// after all others.
func (r *request) arrange(items []fleet.Item) {
	if r.spec.Order == fleet.OrderZone {
		cluster := make(map[string]int)
		for _, ref := range r.spec.Nodes {
			if _, ok := cluster[ref.Cluster]; !ok {
				cluster[ref.Cluster] = len(cluster)
			}
		}
		slices.SortStableFunc(items, func(a, b fleet.Item) int {
			if a.Control != b.Control {
				if a.Control {
					return 1
				}
				return -1
			}
			if (a.Zone == "") != (b.Zone == "") && a.Ref.Cluster == b.Ref.Cluster {
				return -cmp.Compare(a.Zone, b.Zone) // nodes without a zone after the others
			}
			return cmp.Or(cmp.Compare(cluster[a.Ref.Cluster], cluster[b.Ref.Cluster]), cmp.Compare(a.Zone, b.Zone),
				cmp.Compare(r.counts[a.Ref], r.counts[b.Ref]))
		})
	}
	for i := range items {
		items[i].Seq = i
	}
}

// plan looks at what a request would do.
func (e *Engine) plan(ctx context.Context, by fleet.Caller, r *request, items []fleet.Item) (*fleet.Plan, error) {
	p, err := e.cfg.Planner.Plan(ctx, by, r.spec.Operation, items)
	if err != nil {
		return nil, fmt.Errorf("planning %s: %w", r.spec.Action, err)
	}
	return p, nil
}

// disruptive tells whether a request can end pods or has to be confirmed for another reason: it is looked at before it is
// made.
func disruptive(op fleet.Operation, items []fleet.Item) bool {
	if op.Action == fleet.ActionDrain || op.AllowProtected {
		return true
	}
	for _, line := range op.Taints {
		if line = strings.TrimSpace(line); strings.HasSuffix(line, ":"+string(fleet.NoExecute)) {
			return true
		}
	}
	for i := range items {
		for _, u := range items[i].Undo {
			if u.Kind == fleet.EditTaint && u.Effect == fleet.NoExecute && u.Before != nil {
				return true
			}
		}
	}
	return false
}

// make makes the batch that was asked for, or answers with the one that the same request has made before.
func (e *Engine) make(ctx context.Context, by fleet.Caller, r *request) (fleet.Batch, error) {
	if r.spec.IdempotencyKey == "" {
		return e.create(ctx, by, r)
	}
	// Before anything is looked at: what the first request has changed must not be held against the second.
	b, err := e.cfg.Store.MadeBatch(ctx, by.UserID, r.spec.IdempotencyKey, r.digest)
	switch {
	case err == nil:
		return b, nil
	case !errors.Is(err, fleet.ErrNotFound):
		return fleet.Batch{}, fmt.Errorf("looking for an earlier batch: %w", err)
	}
	if b, err = e.create(ctx, by, r); err == nil {
		return b, nil
	}
	// And again after: of two at once, the second meets the nodes as the first has them.
	made, again := e.cfg.Store.MadeBatch(ctx, by.UserID, r.spec.IdempotencyKey, r.digest)
	switch {
	case again == nil:
		return made, nil
	case !errors.Is(again, fleet.ErrNotFound):
		return fleet.Batch{}, errors.Join(err, fmt.Errorf("looking for an earlier batch: %w", again))
	}
	return fleet.Batch{}, err
}

// create makes the batch that was asked for.
func (e *Engine) create(ctx context.Context, by fleet.Caller, r *request) (fleet.Batch, error) {
	items, err := e.prepare(ctx, by, r)
	if err != nil {
		return fleet.Batch{}, err
	}
	if err := e.possible(r); err != nil {
		return fleet.Batch{}, err
	}
	var plan *fleet.Plan
	if r.spec.PlanDigest != "" || disruptive(r.spec.Operation, items) {
		if plan, err = e.plan(ctx, by, r, items); err != nil {
			return fleet.Batch{}, err
		}
		if err := r.consented(plan); err != nil {
			return fleet.Batch{}, err
		}
		if err := e.present(ctx, by, r, plan); err != nil {
			return fleet.Batch{}, err
		}
		r.counts = evictions(plan)
		r.arrange(items)
	}
	d := r.draft(by, items, plan)
	b, err := e.cfg.Store.CreateBatch(ctx, d)
	if err != nil {
		return fleet.Batch{}, fmt.Errorf("recording a batch: %w", e.discreet(ctx, by, err))
	}
	if b.ID == d.Batch.ID {
		e.wake()
		e.cfg.Notify(b.ID)
	}
	return b, nil
}

// possible refuses what a cluster would refuse node for node, for lack of a right of ours.
func (e *Engine) possible(r *request) error {
	asked := make(map[string]bool)
	for _, ref := range r.spec.Nodes {
		if asked[ref.Cluster] {
			continue
		}
		asked[ref.Cluster] = true
		missing := e.cfg.Lookup.Refuses(ref.Cluster, r.spec.Operation)
		if len(missing) == 0 {
			continue
		}
		rights := make([]string, len(missing))
		for i, m := range missing {
			rights[i] = m.String()
		}
		list := strings.Join(rights, ", ")
		return &fleet.FieldError{
			Field: "nodes", Message: "are in cluster " + ref.Cluster + ", which does not let us " + list,
			Key: "error.right", Args: map[string]string{"Cluster": ref.Cluster, "Right": list},
		}
	}
	return nil
}

// consented tells whether a plan is the one that the person has seen and said yes to. What repeats a batch was said yes
// to when that was made.
func (r *request) consented(p *fleet.Plan) error {
	switch {
	case r.spec.PlanDigest != "" && r.spec.PlanDigest != p.Digest:
		return &fleet.PlanChangedError{Seen: r.spec.PlanDigest, Now: p.Digest}
	case p.Confirm != "" && !r.frozen && strings.TrimSpace(r.spec.Confirm) != p.Confirm:
		return fleet.Invalid("confirm", "must be %q, because of what the plan says (%s)", p.Confirm, strings.Join(p.Why, ", "))
	}
	return nil
}

// present tells whether the person has proven lately enough who they are for what the plan says: a tab that somebody left
// open must not do to drain a cluster. What repeats a batch asks as well, for it ends as many pods. A batch that exists
// never asks again.
func (e *Engine) present(ctx context.Context, by fleet.Caller, r *request, p *fleet.Plan) error {
	if !p.NeedsFreshSignIn() {
		return nil
	}
	err := by.SignedInWithin(e.cfg.FreshSignIn, time.Now())
	if err != nil {
		e.cfg.Denied(ctx, by, "batch.create", fmt.Sprintf("%s %d nodes: %v", r.spec.Action, len(r.spec.Nodes), err))
	}
	return err
}

// evictions counts the pods that go from each node.
func evictions(p *fleet.Plan) map[fleet.NodeRef]int {
	out := make(map[fleet.NodeRef]int)
	for _, c := range p.Clusters {
		for _, n := range c.Nodes {
			out[n.NodeRef] = n.Counts.Evict
		}
	}
	return out
}

func (r *request) draft(by fleet.Caller, items []fleet.Item, plan *fleet.Plan) fleet.BatchDraft {
	now := time.Now().UTC()
	d := fleet.BatchDraft{
		Batch: fleet.Batch{
			ID:          newID(now),
			Operation:   r.spec.Operation,
			State:       fleet.BatchQueued,
			CreatedBy:   by.Name,
			CreatedByID: by.UserID,
			CreatedAt:   now,
			Rollout:     r.spec.Rollout,
			Parent:      r.spec.Parent,
		},
		By:     by,
		Items:  items,
		Key:    r.spec.IdempotencyKey,
		Digest: r.digest,
		Plan:   plan,
	}
	d.Intent = entry(by, d.Batch.ID, "batch.create", "intent")
	d.Intent.Reason = r.spec.Reason
	d.Intent.Detail = fmt.Sprintf("%s %d nodes", r.spec.Action, len(items))
	if len(items) == 1 { // a single action can be found by its node
		d.Intent.Cluster, d.Intent.Node, d.Intent.NodeUID = items[0].Ref.Cluster, items[0].Ref.Name, items[0].UID
		d.Intent.Detail = string(r.spec.Action)
	}
	switch {
	case r.spec.Action == fleet.ActionRevert:
		d.Intent.Detail += " of batch " + r.spec.Revert
	case r.spec.Parent != "":
		d.Intent.Detail += ", repeating batch " + r.spec.Parent
	}
	return d
}

// nodes checks every ref and drops repetitions; the order is that of the first mention. A cluster that the person does
// not see is as unknown as one that there is not.
func nodes(refs []fleet.NodeRef, known map[string]bool) ([]fleet.NodeRef, error) {
	if len(refs) == 0 {
		return nil, fleet.Invalid("nodes", "must name at least one node")
	}
	seen := make(map[fleet.NodeRef]bool, len(refs))
	out := make([]fleet.NodeRef, 0, len(refs))
	for _, ref := range refs {
		switch {
		case seen[ref]:
			continue
		case !fleet.ValidNodeName(ref.Name):
			return nil, fleet.Invalid("nodes", "%q does not end in the name of a node", ref)
		case !known[ref.Cluster]:
			return nil, fleet.Invalid("nodes", "%q names the cluster %q, which is not known here", ref, ref.Cluster)
		case len(out) == MaxNodes:
			return nil, fleet.Invalid("nodes", "names more than %d nodes", MaxNodes)
		}
		seen[ref] = true
		out = append(out, ref)
	}
	return out, nil
}

// validate checks what does not depend on the action; the fields of the action are the Authorizer's.
func validate(spec fleet.BatchSpec) error {
	switch {
	case spec.MaxConcurrent < 0 || spec.MaxConcurrent > MaxConcurrent:
		return fleet.Invalid("max_concurrent", "%d is not between 1 and %d", spec.MaxConcurrent, MaxConcurrent)
	case spec.PerCluster < 0 || spec.PerCluster > MaxConcurrent:
		return fleet.Invalid("per_cluster", "%d is not between 0 and %d", spec.PerCluster, MaxConcurrent)
	case spec.PerZone < 0 || spec.PerZone > MaxConcurrent:
		return fleet.Invalid("per_zone", "%d is not between 0 and %d", spec.PerZone, MaxConcurrent)
	case spec.MaxUnavailable < 0 || spec.MaxUnavailable > MaxNodes:
		return fleet.Invalid("max_unavailable", "%d is not between 0 and %d", spec.MaxUnavailable, MaxNodes)
	case spec.Canary < 0 || spec.Canary > MaxNodes:
		return fleet.Invalid("canary", "%d is not between 0 and %d", spec.Canary, MaxNodes)
	case spec.Order != "" && spec.Order != fleet.OrderGiven && spec.Order != fleet.OrderZone:
		return fleet.Invalid("order", "%q is not one of given, zone", spec.Order)
	case spec.MaxFailures < 0 || spec.MaxFailures > MaxNodes:
		return fleet.Invalid("max_failures", "%d is not between 0 and %d", spec.MaxFailures, MaxNodes)
	case spec.PauseBetween < 0 || spec.PauseBetween > MaxPauseBetween:
		return fleet.Invalid("pause_between", "%s is not between 0s and %s", spec.PauseBetween, MaxPauseBetween)
	}
	return validKey(spec.IdempotencyKey)
}

func validKey(key string) error {
	switch {
	case len(key) > maxKey:
		return fleet.Invalid("idempotency_key", "is longer than %d bytes", maxKey)
	case !printable(key):
		return fleet.Invalid("idempotency_key", "holds a character that is not printable ASCII")
	}
	return nil
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] >= utf8.RuneSelf || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// digestOf tells one request from another one: everything that was asked for, after defaults and repetitions. What was
// typed to confirm it is no part of it.
func digestOf(spec fleet.BatchSpec) (string, error) {
	h := sha256.New()
	err := json.NewEncoder(h).Encode(struct {
		Op      fleet.Operation
		Nodes   []fleet.NodeRef
		Rollout fleet.Rollout
		Parent  string
	}{spec.Operation, spec.Nodes, spec.Rollout, spec.Parent})
	if err != nil {
		return "", fmt.Errorf("digesting a request: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// entry is the part of an audit entry that says who.
func entry(by fleet.Caller, batch, action, phase string) fleet.Entry {
	return fleet.Entry{Actor: by.Name, Via: by.Via, Session: by.Session, Addr: by.Addr, Action: action, Phase: phase, Batch: batch}
}
