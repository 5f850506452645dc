package nodeops

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

const (
	// leaseFor is how long others leave a node alone that nobody renews the Lease of.
	leaseFor = 60 * time.Second
	// renewEvery leaves room for two failed renewals and a slow one.
	renewEvery = 15 * time.Second
	// observeFor is how long an expired Lease is looked at before it is taken: its time was written by another clock.
	observeFor = renewEvery
	// maxLeaseName is the limit of a DNS-1123 subdomain.
	maxLeaseName = 253
)

// nodeLease keeps other tools, and other installations of this one, away from a node for as long as a batch drains it
// (BT-30). It is a Lease in the node's own cluster: making it is the lock, its resourceVersion guards every renewal. The
// holder is the batch and not the process, so that whoever goes on with the batch goes on with the Lease.
//
// Where the cluster does not let us have one the lock is weak: our own database still keeps batches of this installation
// apart, and every write names the node's uid and version.
type nodeLease struct {
	client    kubernetes.Interface
	namespace string
	name      string
	holder    string
	node      fleet.NodeRef
	uid       string
	batch     string
	log       *slog.Logger

	weak   bool
	lost   context.CancelCauseFunc // called once somebody else has it
	brake  *brake                  // pressed while it may have run out
	lease  *coordinationv1.Lease   // as written last; of the keeper's goroutine once that runs
	since  time.Time               // when it was written, by our own clock
	keeper sync.WaitGroup
	stop   context.CancelFunc
}

// leaseName is the Lease of a node; a name that would be too long is cut and told apart by its hash.
func leaseName(node string) string {
	name := "knm-node-" + node
	if len(name) <= maxLeaseName {
		return name
	}
	sum := sha256.Sum256([]byte(node))
	return name[:maxLeaseName-17] + "-" + hex.EncodeToString(sum[:8])
}

// take makes the Lease ours, or says that it is somebody else's: ErrConflict.
func (l *nodeLease) take(ctx context.Context, observe time.Duration) error {
	for seen := ""; ; {
		fresh, err := l.create(ctx)
		if err == nil {
			l.lease = fresh
			break
		}
		switch {
		case errors.Is(err, fleet.ErrForbidden), errors.Is(err, fleet.ErrNotFound):
			l.weak = true // no right, or no such namespace
			return nil
		case !errors.Is(err, fleet.ErrConflict):
			return fmt.Errorf("taking the lease of %s: %w", l.node, err)
		}
		have, err := l.get(ctx)
		switch {
		case errors.Is(err, fleet.ErrNotFound):
			continue // it was let go meanwhile
		case err != nil:
			return fmt.Errorf("reading the lease of %s: %w", l.node, err)
		case holderOf(have) == l.holder, holderOf(have) == "": // ours, or let go by somebody who keeps the object
		case !expired(have, time.Now()):
			return l.held(have)
		case seen != have.ResourceVersion:
			seen = have.ResourceVersion
			if err := sleep(ctx, observe); err != nil {
				return err
			}
			continue
		}
		if l.lease, err = l.renew(ctx, have); err == nil {
			break
		}
		if !errors.Is(err, fleet.ErrConflict) && !errors.Is(err, fleet.ErrNotFound) {
			return fmt.Errorf("taking the lease of %s: %w", l.node, err)
		}
	}
	l.since = time.Now()
	return nil
}

// held says who has it.
func (l *nodeLease) held(have *coordinationv1.Lease) error {
	return fmt.Errorf("%s is held by %s until %s: %w", l.node, kube.Plain(holderOf(have)), expiry(have).UTC().Format(time.RFC3339), fleet.ErrConflict)
}

// keep renews the Lease until free. While it may have run out the brake is on, and when somebody else has it lost is
// called: an owner that cannot prove that it is one must have stopped before anybody else may start.
func (l *nodeLease) keep(ctx context.Context) {
	if l.weak {
		return
	}
	ctx, l.stop = context.WithCancel(ctx)
	l.keeper.Go(func() {
		for wait := renewEvery; ; {
			if sleep(ctx, wait) != nil {
				return
			}
			wait = renewEvery
			began := time.Now()
			fresh, err := l.renew(ctx, l.lease)
			if errors.Is(err, fleet.ErrConflict) || errors.Is(err, fleet.ErrNotFound) {
				fresh, err = l.again(ctx)
			}
			switch {
			case err == nil:
				l.lease, l.since = fresh, began
				l.brake.set(false)
			case ctx.Err() != nil:
				return
			case errors.Is(err, fleet.ErrConflict):
				l.lost(err)
				return
			default:
				wait = renewEvery / 5
				// Some time before it ends: what was begun just now is still to be answered.
				if time.Since(l.since) > leaseFor-2*wait-callTimeout {
					l.brake.set(true)
				}
				l.log.WarnContext(ctx, "renewing the lease of a node", keyNode, l.node.String(), keyErr, err)
			}
		}
	})
}

// again renews a Lease that somebody else wrote to or took away.
func (l *nodeLease) again(ctx context.Context) (*coordinationv1.Lease, error) {
	have, err := l.get(ctx)
	switch {
	case errors.Is(err, fleet.ErrNotFound):
		return l.create(ctx)
	case err != nil:
		return nil, err
	case holderOf(have) != l.holder:
		return nil, l.held(have)
	}
	return l.renew(ctx, have)
}

// free ends the renewals and lets the node go. A Lease that cannot be deleted runs out.
func (l *nodeLease) free(ctx context.Context) {
	if l.stop != nil {
		l.stop()
	}
	l.keeper.Wait() // the lease is the keeper's until it has ended
	if l.weak || l.lease == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	err := kube.Error(l.client.CoordinationV1().Leases(l.namespace).Delete(ctx, l.name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &l.lease.UID, ResourceVersion: &l.lease.ResourceVersion},
	}))
	if err != nil && !errors.Is(err, fleet.ErrNotFound) && !errors.Is(err, fleet.ErrConflict) { // it is somebody else's
		l.log.WarnContext(ctx, "letting the lease of a node go", keyNode, l.node.String(), keyErr, err)
	}
}

func (l *nodeLease) create(ctx context.Context) (*coordinationv1.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	now := metav1.NowMicro()
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Name: l.name, Namespace: l.namespace,
			Annotations: map[string]string{"kube-node-manager.io/node": l.node.Name, "kube-node-manager.io/batch": l.batch},
			// The Lease goes when the node goes.
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: l.node.Name, UID: nodeUID(l.uid)}},
		},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity: &l.holder, LeaseDurationSeconds: new(int32(leaseFor / time.Second)), AcquireTime: &now, RenewTime: &now,
		},
	}
	made, err := l.client.CoordinationV1().Leases(l.namespace).Create(ctx, lease, metav1.CreateOptions{FieldManager: kube.FieldManager})
	return made, kube.Error(err)
}

func (l *nodeLease) get(ctx context.Context) (*coordinationv1.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	have, err := l.client.CoordinationV1().Leases(l.namespace).Get(ctx, l.name, metav1.GetOptions{})
	return have, kube.Error(err)
}

// renew writes the Lease as ours, if it still is what was read.
func (l *nodeLease) renew(ctx context.Context, have *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	next, now := have.DeepCopy(), metav1.NowMicro()
	if holderOf(have) != l.holder {
		next.Spec.AcquireTime = &now
		next.Spec.LeaseTransitions = new(1 + value(have.Spec.LeaseTransitions))
		next.Annotations = map[string]string{"kube-node-manager.io/node": l.node.Name, "kube-node-manager.io/batch": l.batch}
	}
	next.Spec.HolderIdentity, next.Spec.RenewTime = &l.holder, &now
	next.Spec.LeaseDurationSeconds = new(int32(leaseFor / time.Second))
	done, err := l.client.CoordinationV1().Leases(l.namespace).Update(ctx, next, metav1.UpdateOptions{FieldManager: kube.FieldManager})
	return done, kube.Error(err)
}

func holderOf(l *coordinationv1.Lease) string { return value(l.Spec.HolderIdentity) }

func expiry(l *coordinationv1.Lease) time.Time {
	if l.Spec.RenewTime == nil {
		return time.Time{}
	}
	return l.Spec.RenewTime.Add(time.Duration(value(l.Spec.LeaseDurationSeconds)) * time.Second)
}

func expired(l *coordinationv1.Lease, now time.Time) bool {
	return holderOf(l) == "" || expiry(l).Before(now)
}

// value is what a pointer leads to, the zero value for none.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// sleep waits unless ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// brake holds something back while it is on.
type brake struct {
	mu      sync.Mutex // guards on and changed
	on      bool
	changed chan struct{} // closed when on changes
}

func newBrake() *brake { return &brake{changed: make(chan struct{})} }

func (b *brake) set(on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.on == on {
		return
	}
	b.on = on
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *brake) held() (bool, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.on, b.changed
}
