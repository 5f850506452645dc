package kube

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Reason is the part of an error of a cluster that a person can use: what the API server or the network said, without
// the URL and our own words around it.
func Reason(err error) string {
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return untrusted(e)
	}
	if e, ok := errors.AsType[*fleet.IdentityError](err); ok {
		return e.Error()
	}
	if e, ok := errors.AsType[*RedirectError](err); ok {
		return e.Error()
	}
	if e, ok := errors.AsType[*SizeError](err); ok {
		return e.Error()
	}
	if status := apierrors.APIStatus(nil); errors.As(err, &status) {
		if apierrors.IsTooManyRequests(err) {
			return "throttled: " + status.Status().Message
		}
		return status.Status().Message
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err.Error()
	}
	return err.Error()
}

// untrusted says whose certificate it is, who issued it and how long it is good: with that a person can tell a
// certificate that was rotated from a server that is not ours.
func untrusted(e *tls.CertificateVerificationError) string {
	why := "it is not valid"
	if _, ok := errors.AsType[x509.UnknownAuthorityError](e); ok {
		why = "its issuer is not among those that the kubeconfig trusts"
	}
	if host, ok := errors.AsType[x509.HostnameError](e); ok {
		why = "it is not for " + host.Host
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](e); ok {
		why = "it cannot be used here"
		if invalid.Reason == x509.Expired {
			why = "its time is over or has not begun"
		}
	}
	if len(e.UnverifiedCertificates) == 0 {
		return "certificate not trusted: " + why
	}
	c := e.UnverifiedCertificates[0]
	return fmt.Sprintf("certificate not trusted: %s; it is for %s, issued by %s, good from %s to %s", why,
		names(c), name(c.Issuer.String()), c.NotBefore.UTC().Format(time.DateTime), c.NotAfter.UTC().Format(time.DateTime))
}

// mostNames bounds what a stranger's certificate may make us show.
const mostNames, mostName = 5, 200

func names(c *x509.Certificate) string {
	all := []string{name(c.Subject.String())}
	for _, n := range c.DNSNames {
		all = append(all, name(n))
	}
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	if len(all) > mostNames {
		all = append(all[:mostNames], "…")
	}
	return strings.Join(all, ", ")
}

func name(s string) string {
	if r := []rune(s); len(r) > mostName {
		s = string(r[:mostName]) + "…"
	}
	return strings.ToValidUTF8(s, "?")
}
