package kube

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"syscall"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Try connects to a cluster once and asks what the credential may do. What goes wrong is in the answer, as one of a few
// words: the words of a server that is no API server are nobody's business.
func Try(ctx context.Context, c Cluster, leaseNamespace string, terms fleet.Terms) fleet.ClusterTest {
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
	asked := append(terms.Asks(leaseNamespace), tooMuch(terms)...)
	all := fleet.TestedRight{Verb: "*", Group: "*", Resource: "*"}
	got, err := c.Ask(ctx, append(asked, all))
	if err != nil {
		return fail(err)
	}
	t.Permissions = got.Asked
	asked, all = got.Asked[:len(asked)], got.Asked[len(asked)]
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
		wide = wide || !r.Needed && !r.Optional && r.Allowed
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

// tooMuch are what a credential of ours should not be able to do: with any of these, whoever has the credential has the
// cluster.
func tooMuch(t fleet.Terms) []fleet.TestedRight {
	rights := []fleet.TestedRight{
		{Verb: "get", Resource: "secrets"},
		{Verb: "create", Resource: "pods", Subresource: "exec"},
		{Verb: "get", Resource: "nodes", Subresource: "proxy"},
		{Verb: "create", Resource: "pods"},
		{Verb: "delete", Resource: "nodes"},
		{Verb: "create", Resource: "serviceaccounts", Subresource: "token"},
		{Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "clusterrolebindings"},
	}
	if t.Impersonate {
		return append(rights, fleet.TestedRight{Verb: fleet.VerbImpersonate, Resource: "groups", Name: "system:masters"})
	}
	return append(rights, fleet.TestedRight{Verb: fleet.VerbImpersonate, Resource: "users"})
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
