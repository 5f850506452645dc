package nodeops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// nodeClient reads and writes one node. It goes below the typed client for the sake of MaxRetries(0): by itself
// client-go repeats a request up to ten times while the server says Retry-After, without a word to anybody.
type nodeClient struct {
	reads, writes rest.Interface
	name          string
}

func (w *work) nodes() nodeClient {
	return nodeClient{reads: w.via.Own.CoreV1().RESTClient(), writes: w.via.Acts.CoreV1().RESTClient(), name: w.item.Ref.Name}
}

// get reads the node as it is in etcd, never from a cache.
func (c nodeClient) get(ctx context.Context) (*corev1.Node, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	n := &corev1.Node{}
	err := c.reads.Get().MaxRetries(0).UseProtobufAsDefaultIfPreferred(true).Resource("nodes").Name(c.name).Do(ctx).Into(n)
	if err != nil {
		return nil, kube.Error(err)
	}
	return n, nil
}

// body is a merge patch for the very node that a change was decided about: another node of the same name answers 422.
// Unless the change holds whatever else is written meanwhile, it is also for that very version: a newer one answers 409.
func (ch *change) body(n *corev1.Node) ([]byte, error) {
	metadata := map[string]any{"uid": n.UID}
	if !ch.loose {
		metadata["resourceVersion"] = n.ResourceVersion
	}
	if ch.annotations != nil {
		metadata["annotations"] = ch.annotations
	}
	if ch.labels != nil {
		metadata["labels"] = ch.labels
	}
	patch := map[string]any{"metadata": metadata}
	if ch.spec != nil {
		patch["spec"] = ch.spec
	}
	body, err := json.Marshal(patch)
	if err != nil {
		return nil, fmt.Errorf("encoding a patch: %w", err)
	}
	return body, nil
}

// patch writes a change.
func (c nodeClient) patch(ctx context.Context, n *corev1.Node, ch *change) (*corev1.Node, error) {
	body, err := ch.body(n)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	out := &corev1.Node{}
	err = c.writes.Patch(types.MergePatchType).MaxRetries(0).UseProtobufAsDefaultIfPreferred(true).Resource("nodes").Name(c.name).
		VersionedParams(&metav1.PatchOptions{FieldManager: kube.FieldManager}, scheme.ParameterCodec).
		Body(body).Do(ctx).Into(out)
	if err != nil {
		return nil, &kube.ActError{Err: kube.Error(err)}
	}
	return out, nil
}

// failure is the result of an item that failed, with a code for programs and a sentence for people. Open says that a
// patch was sent and its answer never came.
func failure(w *work, err error, open bool) (fleet.ItemResult, error) {
	cluster := w.item.Ref.Cluster
	res := fleet.ItemResult{State: fleet.ItemFailed}
	var other *fleet.IdentityError
	switch {
	case errors.Is(err, fleet.ErrNotFound):
		res.Code = fleet.CodeNotFound
		res.Message = fmt.Sprintf("there is no node %s in cluster %s", w.item.Ref.Name, cluster)
	case errors.As(err, &other):
		res.Code = fleet.CodeUnavailable
		res.Message = fmt.Sprintf("cluster %s was not written to: %s", cluster, other)
		open = false
	case errors.Is(err, kube.ErrCredentials):
		res.Code = fleet.CodeUnauthorized
		res.Message = fmt.Sprintf("cluster %s does not accept our credential", cluster)
	case errors.Is(err, fleet.ErrForbidden):
		res.Code = fleet.CodeForbidden
		res.Message = fmt.Sprintf("cluster %s does not permit it%s", cluster, says(err))
		if act, ok := errors.AsType[*kube.ActError](err); ok {
			res.Message = refused(cluster, w.via.As, act)
		}
	case errors.Is(err, fleet.ErrConflict):
		res.Code = fleet.CodeConflict
		res.Message = fmt.Sprintf("other writers changed the node in between, %d times in a row", maxTries)
	case errors.Is(err, fleet.ErrTooMany):
		res.Code = fleet.CodeUnavailable
		res.Message = fmt.Sprintf("cluster %s is too busy to answer", cluster)
	case errors.Is(err, context.DeadlineExceeded):
		res.Code = fleet.CodeUnavailable
		res.Message = fmt.Sprintf("cluster %s did not answer within %s", cluster, callTimeout)
	case errors.Is(err, fleet.ErrUnavailable):
		res.Code = fleet.CodeUnavailable
		res.Message = fmt.Sprintf("cluster %s cannot be reached%s", cluster, says(err))
	case errors.Is(err, fleet.ErrInvalid):
		res.Code = fleet.CodeInvalid
		res.Message = fmt.Sprintf("cluster %s refused the change%s", cluster, says(err))
	default:
		res.Code = fleet.CodeFailed
		res.Message = fmt.Sprintf("cluster %s gave an answer that is not understood", cluster)
	}
	if open {
		res.Message += "; whether the change has landed is not known"
	}
	return res, fmt.Errorf("%s of %s: %w", w.op.Action, w.item.Ref, err)
}

// refused says that a cluster refused to do something for whoever acts in it.
func refused(cluster, as string, act *kube.ActError) string {
	why := says(act)
	if why == "" && act.Right.Verb != "" {
		why = ": it takes the right to " + act.Right.String()
	}
	if as == "" {
		return fmt.Sprintf("cluster %s does not permit it%s", cluster, why)
	}
	return fmt.Sprintf("cluster %s refused %s%s", cluster, kube.Plain(as), why)
}

// noClient is the failure of a node whose cluster cannot even be asked.
func noClient(w *work, err error) (fleet.ItemResult, error) {
	if e, ok := errors.AsType[*fleet.NameError](err); ok {
		return fleet.ItemResult{
			State: fleet.ItemFailed, Code: fleet.CodeForbidden,
			Message: fmt.Sprintf("cluster %s was not asked: %s", w.item.Ref.Cluster, kube.Plain(e.Error())),
		}, fmt.Errorf("%s of %s: %w", w.op.Action, w.item.Ref, err)
	}
	msg := fmt.Sprintf("cluster %s cannot be used", w.item.Ref.Cluster)
	if errors.Is(err, fleet.ErrNotFound) {
		msg = fmt.Sprintf("cluster %s is not known here any more", w.item.Ref.Cluster)
	}
	if e, ok := errors.AsType[*fleet.IdentityError](err); ok {
		msg += ": " + e.Error()
	}
	return fleet.ItemResult{State: fleet.ItemFailed, Code: fleet.CodeUnavailable, Message: msg},
		fmt.Errorf("%s of %s: %w", w.op.Action, w.item.Ref, err)
}

// says is what the API server itself gave as the reason, if it answered at all. Texts of the network are for the log:
// they name addresses.
func says(err error) string {
	status := apierrors.APIStatus(nil)
	if !errors.As(err, &status) || status.Status().Message == "" {
		return ""
	}
	return ": " + kube.Plain(status.Status().Message)
}
