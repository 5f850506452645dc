package kube

import (
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// Contained is a client like c, over the same connections and within the same rate, whose decoders turn a panic over an
// odd object into an error. A client of another make, as a fake's, is returned as it is.
func Contained(c rest.Interface) rest.Interface {
	r, ok := c.(*rest.RESTClient)
	if !ok || r == nil || r.Client == nil {
		return c
	}
	gv := r.APIVersion()
	serializer := contained{rest.CodecFactoryForGeneratedClient(scheme.Scheme, scheme.Codecs).WithoutConversion(), func() {}}
	out, err := rest.NewRESTClient(r.Get().URL(), "", rest.ClientContentConfig{
		GroupVersion: gv, Negotiator: runtime.NewClientNegotiator(serializer, gv),
	}, r.GetRateLimiter(), r.Client)
	if err != nil {
		return c // it never does: nothing in there can fail
	}
	return out
}
