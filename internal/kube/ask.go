package kube

import (
	"context"
	"fmt"
	"net/http"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// The calls of a supervisor. They go below the typed clients for two reasons: MaxRetries(0), because client-go by itself
// repeats a request up to ten times and waits as long as the server says, without a word to anybody; and decoders that
// survive what they cannot decode.

// identityNamespace is in every cluster from its first second to its last, and its uid is nobody else's.
const identityNamespace = "kube-system"

// UID is the identity of the cluster behind the client: the uid of its namespace kube-system.
func UID(ctx context.Context, c kubernetes.Interface) (string, error) {
	raw := restClient(c.CoreV1().RESTClient())
	if raw == nil {
		ns, err := c.CoreV1().Namespaces().Get(ctx, identityNamespace, metav1.GetOptions{})
		if err != nil {
			return "", Error(err)
		}
		return string(ns.UID), nil
	}
	ns := &corev1.Namespace{}
	err := raw.Get().MaxRetries(0).UseProtobufAsDefaultIfPreferred(true).Resource("namespaces").Name(identityNamespace).
		Do(ctx).Into(ns)
	if err != nil {
		return "", Error(err)
	}
	return string(ns.UID), nil
}

// May asks whether the credential behind the client permits something. A right in the name of a person is one to do it
// for somebody else.
func May(ctx context.Context, c kubernetes.Interface, r fleet.TestedRight) (bool, error) {
	about := authorizationv1.ResourceAttributes{
		Verb: r.Verb, Group: r.Group, Resource: r.Resource, Subresource: r.Subresource, Namespace: r.Namespace, Name: r.Name,
	}
	switch {
	case r.As:
		about.Verb = "impersonate-on:user-info:" + r.Verb
	case r.Verb == fleet.VerbImpersonate:
		// Since Kubernetes 1.36 there is a narrower right, which the server looks at first.
		narrow := about
		narrow.Verb, narrow.Group = "impersonate:user-info", authenticationv1.GroupName
		if ok, err := review(ctx, c, narrow); ok || err != nil {
			return ok, err
		}
	}
	return review(ctx, c, about)
}

func review(ctx context.Context, c kubernetes.Interface, about authorizationv1.ResourceAttributes) (bool, error) {
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &about}}
	raw := restClient(c.AuthorizationV1().RESTClient())
	if raw == nil {
		got, err := c.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
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

// Ask asks about some rights, one after the other within the time of ctx.
func (c Cluster) Ask(ctx context.Context, rights []fleet.TestedRight) (*fleet.Rights, error) {
	var broad *bool // whether we may impersonate as it was before 1.36, and then for anything
	for i := range rights {
		r := &rights[i]
		var err error
		if r.Allowed, err = May(ctx, c.Watch, *r); err == nil && r.As && !r.Allowed {
			if broad == nil {
				broad = new(bool)
				*broad, err = mayForAnything(ctx, c.Watch, rights)
			}
			r.Allowed = *broad
		}
		if err != nil {
			return nil, fmt.Errorf("asking whether we may %s: %w", r, err)
		}
	}
	return &fleet.Rights{Asked: rights}, nil
}

func mayForAnything(ctx context.Context, c kubernetes.Interface, rights []fleet.TestedRight) (bool, error) {
	for _, r := range rights {
		if r.Verb == fleet.VerbImpersonate && r.Needed {
			return review(ctx, c, authorizationv1.ResourceAttributes{Verb: r.Verb, Resource: r.Resource, Name: r.Name})
		}
	}
	return false, nil
}

// ListNodes lists nodes with the watch client, without retries of its own.
func (c Cluster) ListNodes(ctx context.Context, o metav1.ListOptions) (*corev1.NodeList, error) {
	if c.nodes == nil {
		return c.Watch.CoreV1().Nodes().List(ctx, o)
	}
	list := &corev1.NodeList{}
	err := c.nodes.Get().MaxRetries(0).UseProtobufAsDefaultIfPreferred(true).Resource("nodes").
		VersionedParams(&o, scheme.ParameterCodec).Do(ctx).Into(list)
	return list, err
}

// WatchNodes opens a watch with the watch client, without retries of its own.
func (c Cluster) WatchNodes(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	o.Watch = true
	if c.nodes == nil {
		return c.Watch.CoreV1().Nodes().Watch(ctx, o)
	}
	return c.nodes.Get().MaxRetries(0).UseProtobufAsDefaultIfPreferred(true).Resource("nodes").
		VersionedParams(&o, scheme.ParameterCodec).Watch(ctx)
}

// restClient is nil for the client of a fake, which hides a nil pointer in its interface.
func restClient(c rest.Interface) rest.Interface {
	if r, ok := c.(*rest.RESTClient); ok && r == nil {
		return nil
	}
	return c
}

// nodesClient is a client of the core group whose decoders are contained.
func nodesClient(cfg *rest.Config, h *http.Client, l *line) (rest.Interface, error) {
	cfg = rest.CopyConfig(cfg)
	gv := corev1.SchemeGroupVersion
	cfg.GroupVersion, cfg.APIPath = &gv, "/api"
	cfg.NegotiatedSerializer = contained{
		rest.CodecFactoryForGeneratedClient(scheme.Scheme, scheme.Codecs).WithoutConversion(), func() { l.frame.Store(0) },
	}
	if cfg.UserAgent == "" {
		cfg.UserAgent = rest.DefaultKubernetesUserAgent()
	}
	return rest.RESTClientForConfigAndClient(cfg, h)
}

// contained makes a panic over an odd object an error. A watch is decoded in a goroutine of client-go, where a panic
// would end the process, and with it the watches of every other cluster.
type contained struct {
	runtime.NegotiatedSerializer
	decoded func() // called for each object
}

func (c contained) SupportedMediaTypes() []runtime.SerializerInfo {
	infos := c.NegotiatedSerializer.SupportedMediaTypes()
	out := make([]runtime.SerializerInfo, len(infos))
	for i, info := range infos {
		if info.StreamSerializer != nil {
			stream := *info.StreamSerializer
			stream.Serializer = containedSerializer{stream.Serializer}
			info.StreamSerializer = &stream
		}
		out[i] = info
	}
	return out
}

func (c contained) DecoderToVersion(d runtime.Decoder, gv runtime.GroupVersioner) runtime.Decoder {
	return containedDecoder{c.NegotiatedSerializer.DecoderToVersion(d, gv), c.decoded}
}

type containedDecoder struct {
	runtime.Decoder
	decoded func()
}

func (d containedDecoder) Decode(data []byte, gvk *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	d.decoded()
	return decode(d.Decoder, data, gvk, into)
}

type containedSerializer struct{ runtime.Serializer }

func (s containedSerializer) Decode(data []byte, gvk *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	return decode(s.Serializer, data, gvk, into)
}

func decode(d runtime.Decoder, data []byte, gvk *schema.GroupVersionKind, into runtime.Object) (obj runtime.Object, got *schema.GroupVersionKind, err error) {
	defer func() {
		if p := recover(); p != nil {
			obj, got, err = nil, nil, fmt.Errorf("decoding panicked: %v", p)
		}
	}()
	return d.Decode(data, gvk, into)
}
