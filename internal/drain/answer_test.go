package drain

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// TestInterpret is the table of operations §1.3, with the errors as client-go makes them of the server's answers.
func TestInterpret(t *testing.T) {
	t.Parallel()
	pods := schema.GroupResource{Resource: "pods"}
	cause := func(err *apierrors.StatusError, c metav1.CauseType) *apierrors.StatusError {
		if err.ErrStatus.Details == nil {
			err.ErrStatus.Details = &metav1.StatusDetails{}
		}
		err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: c})
		return err
	}
	status := func(code int32, reason metav1.StatusReason) error {
		return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason, Message: "text"}}
	}
	for _, tt := range []struct {
		name  string
		err   error
		want  meaning
		retry time.Duration
	}{
		{"201", nil, meansAccepted, 0},
		{"404", apierrors.NewNotFound(pods, "p"), meansGone, 0},
		{"409 of the uid", apierrors.NewConflict(pods, "p", errors.New("uid")), meansConflict, 0},
		{"429 of a budget", cause(apierrors.NewTooManyRequests("no", 0), policyv1.DisruptionBudgetCause), meansBudget, 0},
		{"429 of a budget that is being worked out", cause(apierrors.NewTooManyRequests("no", 10), policyv1.DisruptionBudgetCause), meansBudget, 10 * time.Second},
		{"429 of the server", apierrors.NewTooManyRequests("busy", 5), meansThrottled, 5 * time.Second},
		{"429 in plain text", apierrors.NewGenericServerResponse(http.StatusTooManyRequests, "POST", pods, "p", "Too many requests", 1, true), meansThrottled, time.Second},
		{"403 of a namespace that goes", cause(apierrors.NewForbidden(pods, "p", errors.New("ns")), corev1.NamespaceTerminatingCause), meansNamespace, 0},
		{"403 of a budget's controller", apierrors.NewForbidden(policyv1.Resource("poddisruptionbudget"), "b", errors.New("negative")), meansBudget, 0},
		{"403 of RBAC", apierrors.NewForbidden(pods, "p", errors.New("user")), meansForbidden, 0},
		{"403 of a webhook", status(http.StatusForbidden, ""), meansDenied, 0},
		{"400 of a webhook", status(http.StatusBadRequest, ""), meansDenied, 0},
		{"500 of several budgets", status(http.StatusInternalServerError, ""), meansSeveral, 0},
		{"500 of a webhook that is down", apierrors.NewInternalError(errors.New("calling webhook: EOF")), meansUnanswered, 0},
		{"504 of conflicts over a budget", apierrors.NewTimeoutError("conflicts", 10), meansUnanswered, 10 * time.Second},
		{"401", apierrors.NewUnauthorized("no"), meansUnanswered, 0},
		{"no answer", &url.Error{Op: "Post", URL: "https://x", Err: errors.New("connection refused")}, meansUnanswered, 0},
		{"no answer in time", context.DeadlineExceeded, meansUnanswered, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := interpret(tt.err); got.meaning != tt.want || got.retry != tt.retry {
				t.Errorf("got %d, retry %s; want %d, %s", got.meaning, got.retry, tt.want, tt.retry)
			}
		})
	}
}

// TestGate_OnePerBudget: whoever shares a budget waits, whoever does not goes (DR-35).
func TestGate_OnePerBudget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(2)
		leave, err := g.enter(t.Context(), []string{"shop/web"})
		if err != nil {
			t.Fatal(err)
		}
		var in []string
		done := make(chan string, 2)
		for _, keys := range [][]string{{"shop/web", "shop/all"}, {"shop/db"}} {
			go func() {
				leave, err := g.enter(t.Context(), keys)
				if err != nil {
					t.Error(err)
					return
				}
				done <- keys[0]
				leave()
			}()
		}
		synctest.Wait()
		in = append(in, <-done)
		if len(done) != 0 || in[0] != "shop/db" {
			t.Errorf("in came %v, and %d more", in, len(done))
		}
		leave()
		if got := <-done; got != "shop/web" {
			t.Errorf("then came %s", got)
		}
	})
}

// TestGate_Bounds: no more than so many at a time, nobody while the server wants quiet, and a wait ends with its context.
func TestGate_Bounds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := NewGate(1)
		leave, err := g.enter(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := g.enter(ctx, []string{"a"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a second one: %v", err)
		}
		leave()
		g.throttled(10 * time.Second)
		began := time.Now()
		leave, err = g.enter(t.Context(), []string{"a"}) // the one that gave up has let go of it
		if err != nil || time.Since(began) != 10*time.Second {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		leave()
	})
}
