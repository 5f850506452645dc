package drain

import (
	"context"
	"errors"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// meaning is what an answer to an eviction means (§1.3).
type meaning int

const (
	meansAccepted    meaning = iota
	meansGone                // the pod is not there any more, or another one has its name, or it is on another node
	meansChanged             // the pod is not what it was: look again
	meansConflict            // it may be another one: read it again
	meansBudget              // a budget says no
	meansSeveral             // perhaps several budgets: no text tells, our own list does
	meansThrottled           // nobody says no, the server has no time
	meansNamespace           // the namespace is on its way out, and the pod with it
	meansDenied              // an admission says no
	meansForbidden           // we may not, as it looks
	meansUnanswered          // whether it landed is not known
	meansNever               // it was not sent
	meansUnannounced         // nor was this, for it could not be announced
)

// answer is what came of one try.
type answer struct {
	meaning meaning
	http    int
	message string
	retry   time.Duration // what the server asked us to wait
	live    *corev1.Pod   // as read before the eviction, of meansChanged
	err     error

	intended bool // it was announced
}

// longestAsked bounds what a server can ask for: a cluster that means ill must not hold a drain until its time is over.
const longestAsked = 30 * time.Second

// interpret says what the error of an eviction means. It goes by codes, reasons and causes, never by text.
func interpret(err error) answer {
	if err == nil {
		return answer{meaning: meansAccepted, http: http.StatusCreated}
	}
	status := apierrors.APIStatus(nil)
	if !errors.As(err, &status) {
		return answer{meaning: meansUnanswered, message: kube.Plain(kube.Reason(err)), err: err}
	}
	s := status.Status()
	a := answer{http: int(s.Code), message: kube.Plain(s.Message), err: err}
	var about metav1.StatusDetails
	if s.Details != nil {
		about = *s.Details
	}
	a.retry = min(time.Duration(about.RetryAfterSeconds)*time.Second, longestAsked)
	switch {
	case s.Code == http.StatusNotFound:
		a.meaning = meansGone
	case s.Code == http.StatusConflict:
		a.meaning = meansConflict
	case apierrors.HasStatusCause(err, policyv1.DisruptionBudgetCause):
		a.meaning = meansBudget
	case s.Code == http.StatusTooManyRequests:
		a.meaning = meansThrottled
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		a.meaning = meansNamespace
	case s.Code == http.StatusForbidden && about.Group == policyv1.GroupName:
		a.meaning = meansBudget // its controller is behind
	case s.Code == http.StatusForbidden && about.Kind == "pods":
		a.meaning = meansForbidden
	case s.Code == http.StatusInternalServerError && s.Reason == "" && s.Details == nil:
		a.meaning = meansSeveral
	case s.Code >= http.StatusInternalServerError, s.Code == http.StatusUnauthorized, s.Code == http.StatusRequestTimeout:
		a.meaning = meansUnanswered
	default:
		a.meaning = meansDenied // nothing that the API server itself answers to a well-formed eviction is left
	}
	return a
}

// getPod reads a pod as it is in etcd.
func getPod(ctx context.Context, c kubernetes.Interface, namespace, name string) (*corev1.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	p := &corev1.Pod{}
	err := c.CoreV1().RESTClient().Get().MaxRetries(0).UseProtobufAsDefaultIfPreferred(true).
		Namespace(namespace).Resource("pods").Name(name).Do(ctx).Into(p)
	if err != nil {
		return nil, kube.Error(err)
	}
	return p, nil
}

// remove deletes exactly this pod, past every budget. Like an eviction it is not cut off by ctx.
func remove(ctx context.Context, c kubernetes.Interface, p *corev1.Pod, grace *int64) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	return c.CoreV1().RESTClient().Delete().MaxRetries(0).Namespace(p.Namespace).Resource("pods").Name(p.Name).
		Body(&metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &p.UID}, GracePeriodSeconds: grace}).Do(ctx).Error()
}

// post sends one eviction for exactly this pod (DR-30). Once sent it is not cut off by ctx: an answer that nobody reads
// is a pod of which nobody knows.
func post(ctx context.Context, c kubernetes.Interface, p *corev1.Pod, grace *int64, dryRun bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	e := &policyv1.Eviction{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name},
		DeleteOptions: &metav1.DeleteOptions{
			Preconditions:      &metav1.Preconditions{UID: &p.UID},
			GracePeriodSeconds: grace,
		},
	}
	if dryRun {
		e.DeleteOptions.DryRun = []string{metav1.DryRunAll}
	}
	return c.CoreV1().RESTClient().Post().MaxRetries(0).Namespace(p.Namespace).Resource("pods").Name(p.Name).
		SubResource("eviction").Body(e).Do(ctx).Error()
}
