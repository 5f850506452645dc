package nodeops

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/kube-node-manager/kube-node-manager/internal/drain"
	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/marks"
)

const (
	// callTimeout bounds each request to an API server.
	callTimeout = 15 * time.Second
	// recordTimeout bounds each access to our own record.
	recordTimeout = 10 * time.Second
	// maxReason is in characters.
	maxReason = 200
)

// Clients finds the client for writing to a cluster. The caller is part of the question because a cluster may be written
// to in the name of the person. ErrNotFound for an unknown cluster, ErrUnavailable for one without a usable client.
type Clients func(cluster string, by fleet.Caller) (kubernetes.Interface, error)

// Record is the audit record.
type Record interface {
	Append(ctx context.Context, e fleet.Entry) (fleet.Entry, error)
	Entries(ctx context.Context, f fleet.AuditFilter) ([]fleet.Entry, error)
}

// Authority knows what a person may do now. ErrUnauthenticated, ErrForbidden or ErrNotFound for somebody who may do
// nothing any more; any other error says that it could not be found out.
type Authority interface {
	Caller(ctx context.Context, userID string) (fleet.Caller, error)
}

// Templates finds what an operation applies. ErrNotFound; version 0 is the newest.
type Templates interface {
	Template(ctx context.Context, id string, version int) (fleet.Template, error)
}

// Batches finds what an operation takes back. ErrNotFound.
type Batches interface {
	Batch(ctx context.Context, id string, after int64) (fleet.Batch, []fleet.Item, error)
}

// nothing is where there are no templates and no batches to look up.
type nothing struct{}

func (nothing) Template(context.Context, string, int) (fleet.Template, error) {
	return fleet.Template{}, fleet.ErrNotFound
}

func (nothing) Batch(context.Context, string, int64) (fleet.Batch, []fleet.Item, error) {
	return fleet.Batch{}, nil, fleet.ErrNotFound
}

// Config is what the verbs need. Fields without a remark are required.
type Config struct {
	Clients   Clients
	Record    Record
	Authority Authority
	Templates Templates                            // nil: there are none
	Batches   Batches                              // nil: there are none
	Observe   func(cluster string, n *corev1.Node) // shown the answer to each write; must not block
	// Remembered is a node as the watch has it, without what that leaves out; false if it has none or is not live. Nil:
	// every change begins with a read of its own.
	Remembered func(ref fleet.NodeRef) (*corev1.Node, bool)
	Logger     *slog.Logger

	// Installation is part of who holds the lease of a node: another installation is somebody else.
	Installation string
	// LeaseNamespace is where those leases are, in each cluster. Without the namespace, or the right to it, there are none.
	LeaseNamespace string
	// Self is the pod that this process runs in, empty outside of a cluster: it is evicted last.
	Self types.NamespacedName
}

// Ops acts on nodes. It may be used by many goroutines.
type Ops struct {
	cfg Config
	log *slog.Logger

	mu    sync.Mutex // guards gates
	gates map[string]*drain.Gate
}

// New returns the verbs.
func New(cfg Config) *Ops {
	if cfg.Templates == nil {
		cfg.Templates = nothing{}
	}
	if cfg.Batches == nil {
		cfg.Batches = nothing{}
	}
	return &Ops{cfg: cfg, log: cfg.Logger, gates: make(map[string]*drain.Gate)}
}

// The keys of log records.
const (
	keyNode    = "node"
	keyCluster = "cluster"
	keyBatch   = "batch"
	keyOp      = "op"
	keyUser    = "user"
	keyErr     = "err"
)

// Authorize tells whether a person may do an operation to all of some nodes. A refusal goes on record.
func (o *Ops) Authorize(ctx context.Context, by fleet.Caller, op fleet.Operation, refs []fleet.NodeRef) error {
	return o.authorize(ctx, by, op, nil, refs)
}

// authorize is Authorize for an operation that is known to take something back.
func (o *Ops) authorize(ctx context.Context, by fleet.Caller, op fleet.Operation, undo []fleet.Edit, refs []fleet.NodeRef) error {
	if _, ok := op.Action.Permission(); !ok {
		return fleet.Invalid("action", "%q is not one of %s", op.Action, names(fleet.Actions()))
	}
	need := marks.Needs(op, undo)
	asked := make(map[string]bool)
	for _, ref := range refs {
		if asked[ref.Cluster] {
			continue
		}
		asked[ref.Cluster] = true
		if perm, ok := lacks(by, need, ref.Cluster); ok {
			o.denied(ctx, by, "", op, ref, fmt.Sprintf("the role %q does not have %s", by.Role, perm))
			return fmt.Errorf("authorizing %s: %w", op.Action, &fleet.DeniedError{Cluster: ref.Cluster, Permission: perm})
		}
	}
	return nil
}

// lacks is the first permission that the person does not have.
func lacks(by fleet.Caller, need []fleet.Permission, cluster string) (fleet.Permission, bool) {
	for _, p := range need {
		if !by.May(p, cluster) {
			return p, true
		}
	}
	return "", false
}

// authority reads anew what the person behind a batch may do: somebody who was demoted or disabled after the start
// changes nothing more.
func (o *Ops) authority(ctx context.Context, by fleet.Caller, batch string, it fleet.Item, op fleet.Operation) (fleet.Caller, error) {
	if _, ok := op.Action.Permission(); !ok {
		return by, fleet.Invalid("action", "%q is not known", op.Action)
	}
	perm, lacking := fleet.Permission(""), false
	actx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	now, err := o.cfg.Authority.Caller(actx, by.UserID)
	if err == nil {
		perm, lacking = lacks(now, marks.Needs(op, it.Undo), it.Ref.Cluster)
	}
	var why string
	switch {
	case err == nil && !lacking:
		now.Session, now.Via, now.Addr = by.Session, by.Via, by.Addr // still that person's act, from where it was asked for
		return now, nil
	case err == nil:
		why = fmt.Sprintf("the role %q does not have %s", now.Role, perm)
	case errors.Is(err, fleet.ErrNotFound), errors.Is(err, fleet.ErrUnauthenticated), errors.Is(err, fleet.ErrForbidden):
		why = "the person may not sign in any more"
	case ctx.Err() != nil:
		return by, ctx.Err()
	default:
		return by, fmt.Errorf("reading the authority of %s: %w: %w", by.Name, fleet.ErrNotRecorded, err)
	}
	o.denied(ctx, by, batch, op, it.Ref, why)
	return by, fmt.Errorf("%s of %s for %s: %w: %s", op.Action, it.Ref, by.Name, fleet.ErrAuthorityLost, why)
}

// denied records a refusal. Nothing happens either way, so a record that cannot be written is only told to the log.
func (o *Ops) denied(ctx context.Context, by fleet.Caller, batch string, op fleet.Operation, ref fleet.NodeRef, why string) {
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	e := entry(by, batch, op, ref, "denied")
	e.Outcome, e.Detail = "denied", why
	if _, err := o.cfg.Record.Append(rctx, e); err != nil {
		o.log.ErrorContext(ctx, "recording a refusal", keyUser, by.Name, keyOp, op.Action, keyNode, ref.String(), keyErr, err)
	}
}

func entry(by fleet.Caller, batch string, op fleet.Operation, ref fleet.NodeRef, phase string) fleet.Entry {
	return fleet.Entry{
		Actor: by.Name, Via: by.Via, Session: by.Session, Addr: by.Addr,
		Action: string(op.Action), Phase: phase, Cluster: ref.Cluster, Node: ref.Name, Batch: batch, Reason: op.Reason,
	}
}
