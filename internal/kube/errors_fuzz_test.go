package kube

import (
	"context"
	"errors"
	"fmt"
	"testing"

	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// F-19: whatever status an API server answers with, it has one kind, keeps its cause, and is never taken for a fault of
// the person in front of the browser.
func FuzzError(f *testing.F) {
	for code := range int32(600) {
		if code%50 < 3 || code > 399 && code < 430 {
			f.Add(code, "", "message", "", int32(0), false)
		}
	}
	for _, reason := range []metav1.StatusReason{
		metav1.StatusReasonUnauthorized, metav1.StatusReasonForbidden, metav1.StatusReasonNotFound, metav1.StatusReasonAlreadyExists,
		metav1.StatusReasonConflict, metav1.StatusReasonGone, metav1.StatusReasonInvalid, metav1.StatusReasonServerTimeout,
		metav1.StatusReasonTimeout, metav1.StatusReasonTooManyRequests, metav1.StatusReasonBadRequest, metav1.StatusReasonMethodNotAllowed,
		metav1.StatusReasonNotAcceptable, metav1.StatusReasonRequestEntityTooLarge, metav1.StatusReasonUnsupportedMediaType,
		metav1.StatusReasonInternalError, metav1.StatusReasonExpired, metav1.StatusReasonServiceUnavailable, "Strange",
	} {
		f.Add(int32(400), string(reason), "a \x1b[31m\u202e message", "", int32(-1), false)
		f.Add(int32(429), string(reason), "", string(policyv1.DisruptionBudgetCause), int32(1<<30), true)
	}
	kinds := []error{
		fleet.ErrNotFound, fleet.ErrInvalid, fleet.ErrForbidden, fleet.ErrConflict, fleet.ErrBlocked, fleet.ErrUnavailable, fleet.ErrTooMany,
		fleet.ErrTooLarge,
	}
	of := func(err error) (out []error) {
		for _, k := range kinds {
			if errors.Is(err, k) {
				out = append(out, k)
			}
		}
		return out
	}
	f.Fuzz(func(t *testing.T, code int32, reason, message, cause string, retry int32, wrapped bool) {
		status := &apierrors.StatusError{ErrStatus: metav1.Status{
			Status: metav1.StatusFailure, Code: code, Reason: metav1.StatusReason(reason), Message: message,
			Details: &metav1.StatusDetails{RetryAfterSeconds: retry, Causes: []metav1.StatusCause{{Type: metav1.CauseType(cause)}}},
		}}
		var err error = status
		if wrapped {
			err = fmt.Errorf("asking: %w", err)
		}
		got := Error(err)
		if list := of(got); len(list) != 1 {
			t.Errorf("%+v is of the kinds %v", status.ErrStatus, list)
		}
		if errors.Is(got, fleet.ErrUnauthenticated) || !errors.Is(got, status) {
			t.Errorf("%+v became %v", status.ErrStatus, got)
		}
		if again := Error(got); fmt.Sprint(of(again)) != fmt.Sprint(of(got)) {
			t.Errorf("the second time it is %v, and not %v", of(again), of(got))
		}
		if canceled := fmt.Errorf("%w: %w", context.Canceled, err); !errors.Is(Error(canceled), context.Canceled) || len(of(Error(canceled))) != 0 {
			t.Errorf("a cancelled call became %v", Error(canceled))
		}
		if plain := Plain(Reason(got)); plain != Plain(plain) {
			t.Errorf("%q is not plain", plain)
		}
	})
}
