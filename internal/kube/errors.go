package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"

	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// ErrCredentials says that a cluster refused our credential. It comes together with fleet.ErrUnavailable, never with
// fleet.ErrUnauthenticated, which is about the person in front of the browser.
var ErrCredentials = errors.New("the cluster refused the credential")

// Error gives an error of client-go its kind and keeps it as the cause. A cancelled context stays what it is: nobody
// is waiting for a kind any more.
func Error(err error) error {
	switch {
	case err == nil || errors.Is(err, context.Canceled):
		return err
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%w: %w: %w", fleet.ErrUnavailable, ErrCredentials, err)
	}
	if kind := kindOf(err); kind != nil {
		return fmt.Errorf("%w: %w", kind, err)
	}
	return err
}

func kindOf(err error) error {
	for _, kind := range []error{
		fleet.ErrNotFound, fleet.ErrInvalid, fleet.ErrForbidden, fleet.ErrConflict, fleet.ErrBlocked,
		fleet.ErrUnavailable, fleet.ErrTooMany, fleet.ErrTooLarge,
	} {
		if errors.Is(err, kind) {
			return nil // it already has one
		}
	}
	switch {
	case apierrors.IsNotFound(err):
		return fleet.ErrNotFound
	case apierrors.IsForbidden(err):
		return fleet.ErrForbidden
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		return fleet.ErrConflict
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsNotAcceptable(err),
		apierrors.IsMethodNotSupported(err), apierrors.IsUnsupportedMediaType(err):
		return fleet.ErrInvalid
	case apierrors.HasStatusCause(err, policyv1.DisruptionBudgetCause):
		return fleet.ErrBlocked
	case apierrors.IsTooManyRequests(err):
		return fleet.ErrTooMany
	case apierrors.IsRequestEntityTooLargeError(err):
		return fleet.ErrTooLarge
	case apierrors.IsServerTimeout(err), apierrors.IsTimeout(err), apierrors.IsServiceUnavailable(err),
		apierrors.IsInternalError(err), apierrors.IsUnexpectedServerError(err), apierrors.IsResourceExpired(err),
		apierrors.IsGone(err):
		return fleet.ErrUnavailable
	case errors.Is(err, context.DeadlineExceeded):
		return fleet.ErrUnavailable
	}
	if _, ok := errors.AsType[*url.Error](err); ok {
		return fleet.ErrUnavailable
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return fleet.ErrUnavailable
	}
	if status := apierrors.APIStatus(nil); errors.As(err, &status) {
		return fleet.ErrUnavailable
	}
	return nil
}
