package kube

import (
	"context"
	"fmt"
	"net/http"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
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

// MayWatchNodes asks whether the credential still permits what a watch that is open goes on doing without.
func MayWatchNodes(ctx context.Context, c kubernetes.Interface) (bool, error) {
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "watch", Resource: "nodes"},
	}}
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
