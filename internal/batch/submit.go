package batch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
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

	defaultConcurrent = 10
)

// Submit implements handlers.Batches.
func (e *Engine) Submit(ctx context.Context, by fleet.Caller, spec fleet.BatchSpec) (fleet.Batch, error) {
	if err := validate(spec); err != nil {
		return fleet.Batch{}, err
	}
	refs, err := e.nodes(spec.Nodes)
	if err != nil {
		return fleet.Batch{}, err
	}
	if spec.MaxConcurrent == 0 {
		spec.MaxConcurrent = defaultConcurrent
	}
	spec.Nodes = refs
	if spec.Operation, err = e.cfg.Authorizer.Prepare(ctx, by, spec.Operation, refs); err != nil {
		return fleet.Batch{}, err
	}
	digest, err := digestOf(spec)
	if err != nil {
		return fleet.Batch{}, err
	}

	now := time.Now().UTC()
	d := fleet.BatchDraft{
		Batch: fleet.Batch{
			ID:          newID(now),
			Operation:   spec.Operation,
			State:       fleet.BatchQueued,
			CreatedBy:   by.Name,
			CreatedByID: by.UserID,
			CreatedAt:   now,
			Rollout:     spec.Rollout,
		},
		By:     by,
		Items:  make([]fleet.Item, len(refs)),
		Key:    spec.IdempotencyKey,
		Digest: digest,
	}
	for i, ref := range refs {
		uid, err := e.uid(ref)
		if err != nil {
			return fleet.Batch{}, err
		}
		d.Items[i] = fleet.Item{Seq: i, Ref: ref, UID: uid, State: fleet.ItemQueued}
	}
	d.Intent = entry(by, d.Batch.ID, "batch.create", "intent")
	d.Intent.Reason = spec.Reason
	d.Intent.Detail = fmt.Sprintf("%s %d nodes", spec.Action, len(refs))
	if len(refs) == 1 { // a single action can be found by its node
		d.Intent.Cluster, d.Intent.Node, d.Intent.NodeUID = refs[0].Cluster, refs[0].Name, d.Items[0].UID
		d.Intent.Detail = string(spec.Action)
	}

	b, err := e.cfg.Store.CreateBatch(ctx, d)
	if err != nil {
		return fleet.Batch{}, fmt.Errorf("recording a batch: %w", err)
	}
	if b.ID == d.Batch.ID {
		e.wake()
		e.cfg.Notify(b.ID)
	}
	return b, nil
}

// uid freezes which node is meant. A node that the cache does not know is kept without one: it fails as not found at
// its turn, and the others are changed.
func (e *Engine) uid(ref fleet.NodeRef) (string, error) {
	n, err := e.cfg.Lookup.Node(ref)
	switch {
	case err == nil:
		return n.UID, nil
	case errors.Is(err, fleet.ErrNotFound):
		return "", nil
	}
	return "", fmt.Errorf("looking up %s: %w", ref, err)
}

// nodes checks every ref and drops repetitions; the order is that of the first mention.
func (e *Engine) nodes(refs []fleet.NodeRef) ([]fleet.NodeRef, error) {
	if len(refs) == 0 {
		return nil, fleet.Invalid("nodes", "must name at least one node")
	}
	clusters := e.cfg.Lookup.Clusters()
	known := make(map[string]bool, len(clusters))
	for _, c := range clusters {
		known[c.Name] = true
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
	case spec.MaxFailures < 0 || spec.MaxFailures > MaxNodes:
		return fleet.Invalid("max_failures", "%d is not between 0 and %d", spec.MaxFailures, MaxNodes)
	case spec.PauseBetween < 0 || spec.PauseBetween > MaxPauseBetween:
		return fleet.Invalid("pause_between", "%s is not between 0s and %s", spec.PauseBetween, MaxPauseBetween)
	case len(spec.IdempotencyKey) > maxKey:
		return fleet.Invalid("idempotency_key", "is longer than %d bytes", maxKey)
	case !printable(spec.IdempotencyKey):
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

// digestOf tells one request from another one: everything that was asked for, after defaults and repetitions.
func digestOf(spec fleet.BatchSpec) (string, error) {
	h := sha256.New()
	err := json.NewEncoder(h).Encode(struct {
		Op                       fleet.Operation
		Nodes                    []fleet.NodeRef
		MaxConcurrent, MaxFailed int
		Pause                    string
	}{spec.Operation, spec.Nodes, spec.MaxConcurrent, spec.MaxFailures, strconv.FormatInt(int64(spec.PauseBetween), 10)})
	if err != nil {
		return "", fmt.Errorf("digesting a request: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// entry is the part of an audit entry that says who.
func entry(by fleet.Caller, batch, action, phase string) fleet.Entry {
	return fleet.Entry{Actor: by.Name, Via: by.Via, Session: by.Session, Addr: by.Addr, Action: action, Phase: phase, Batch: batch}
}
