package kube

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"syscall"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Try connects to a cluster once and asks what the credential may do. What goes wrong is in the answer, as one of a few
// words: the words of a server that is no API server are nobody's business.
func Try(ctx context.Context, c Cluster, leaseNamespace string) fleet.ClusterTest {
	t := fleet.ClusterTest{Outcome: fleet.TestOK}
	fail := func(err error) fleet.ClusterTest {
		t.Outcome, t.Reason = outcome(err)
		return t
	}
	var err error
	if t.Version, err = Version(ctx, c.Watch); err != nil {
		return fail(err)
	}
	if len(t.Version) > mostName {
		t.Version = t.Version[:mostName]
	}
	if t.UID, err = UID(ctx, c.Watch); err != nil && !errors.Is(err, fleet.ErrForbidden) {
		return fail(err)
	}
	asked := rights(leaseNamespace)
	for i := range asked {
		if asked[i].Allowed, err = c.may(ctx, asked[i]); err != nil {
			return fail(err)
		}
	}
	all := fleet.TestedRight{Verb: "*", Group: "*", Resource: "*"}
	if all.Allowed, err = c.may(ctx, all); err != nil {
		return fail(err)
	}
	t.Permissions = append(asked, all)
	t.Warnings = warnings(asked, all.Allowed)
	for _, r := range asked {
		if r.Resource == "nodes" && r.Subresource == "" && r.Needed && !r.Allowed && r.Verb != "patch" {
			t.Outcome = fleet.TestForbidden
		}
	}
	return t
}

func warnings(asked []fleet.TestedRight, everything bool) []string {
	var missing, wide bool
	for _, r := range asked {
		missing = missing || r.Needed && !r.Allowed
		wide = wide || !r.Needed && r.Allowed
	}
	var w []string
	switch {
	case everything:
		w = append(w, fleet.WarnClusterAdmin)
	case wide:
		w = append(w, fleet.WarnWide)
	}
	if missing {
		w = append(w, fleet.WarnMissing)
	}
	return w
}

// rights are what the features need, and what a credential of ours should not be able to do: with any of these, whoever
// has the credential has the cluster.
func rights(leaseNamespace string) []fleet.TestedRight {
	const leases = "coordination.k8s.io"
	return []fleet.TestedRight{
		{Verb: "get", Resource: "nodes", Needed: true},
		{Verb: "list", Resource: "nodes", Needed: true},
		{Verb: "watch", Resource: "nodes", Needed: true},
		{Verb: "patch", Resource: "nodes", Needed: true},
		{Verb: "list", Resource: "pods", Needed: true},
		{Verb: "create", Resource: "pods", Subresource: "eviction", Needed: true},
		{Verb: "list", Group: "policy", Resource: "poddisruptionbudgets", Needed: true},
		{Verb: "create", Group: leases, Resource: "leases", Namespace: leaseNamespace, Needed: true},
		{Verb: "update", Group: leases, Resource: "leases", Namespace: leaseNamespace, Needed: true},
		{Verb: "get", Resource: "secrets"},
		{Verb: "create", Resource: "pods", Subresource: "exec"},
		{Verb: "get", Resource: "nodes", Subresource: "proxy"},
		{Verb: "create", Resource: "pods"},
		{Verb: "delete", Resource: "nodes"},
		{Verb: "impersonate", Group: "", Resource: "users"},
		{Verb: "create", Resource: "serviceaccounts", Subresource: "token"},
		{Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "clusterrolebindings"},
	}
}

func (c Cluster) may(ctx context.Context, r fleet.TestedRight) (bool, error) {
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Verb: r.Verb, Group: r.Group, Resource: r.Resource, Subresource: r.Subresource, Namespace: r.Namespace,
		},
	}}
	raw := restClient(c.Watch.AuthorizationV1().RESTClient())
	if raw == nil {
		got, err := c.Watch.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
		if err != nil {
			return false, Error(err)
		}
		return got.Status.Allowed, nil
	}
	got := &authorizationv1.SelfSubjectAccessReview{}
	err := raw.Post().MaxRetries(0).UseProtobufAsDefaultIfPreferred(true).Resource("selfsubjectaccessreviews").
		Body(review).Do(ctx).Into(got)
	if err != nil {
		return false, Error(err)
	}
	return got.Status.Allowed, nil
}

// outcome is the word for what went wrong, and what may be said of it.
func outcome(err error) (word, reason string) {
	if e, ok := errors.AsType[*AddressError](err); ok {
		return fleet.TestAddress, e.Error()
	}
	if _, ok := errors.AsType[*RedirectError](err); ok {
		return fleet.TestRedirect, "" // where to is what a decoy would tell us
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fleet.TestUntrusted, Reason(err)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fleet.TestTimeout, ""
	case errors.Is(err, ErrCredentials):
		return fleet.TestUnauthorized, ""
	case errors.Is(err, fleet.ErrForbidden):
		return fleet.TestForbidden, ""
	}
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		return fleet.TestUnreachable, e.Error()
	}
	if e, ok := errors.AsType[*net.DNSError](err); ok && e.IsNotFound {
		return fleet.TestUnreachable, "no such host"
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return fleet.TestTimeout, ""
	}
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return fleet.TestUnreachable, ""
	}
	if _, ok := errors.AsType[*url.Error](err); ok {
		return fleet.TestUnreachable, ""
	}
	return fleet.TestOther, ""
}
