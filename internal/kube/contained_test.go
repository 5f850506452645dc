package kube

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// panicky is a decoder that an odd object brings down.
type panicky struct{ runtime.Serializer }

func (panicky) Decode([]byte, *schema.GroupVersionKind, runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	panic("an odd object")
}

// A panic over one object of a watch is an error of that watch: it happens in a goroutine of client-go, where it would
// end the process.
func TestContained_PanicIsAnError(t *testing.T) {
	t.Parallel()
	decoded := 0
	c := contained{scheme.Codecs.WithoutConversion(), func() { decoded++ }}
	for name, d := range map[string]runtime.Decoder{
		"object": containedDecoder{panicky{}, c.decoded}, "frame": containedSerializer{panicky{}},
	} {
		if _, _, err := d.Decode([]byte("{}"), nil, nil); err == nil || !strings.Contains(err.Error(), "an odd object") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, info := range c.SupportedMediaTypes() {
		if info.StreamSerializer == nil {
			continue
		}
		if _, ok := info.StreamSerializer.Serializer.(containedSerializer); !ok {
			t.Errorf("frames of %s are decoded by %T", info.MediaType, info.StreamSerializer.Serializer)
		}
	}
	if _, ok := c.DecoderToVersion(scheme.Codecs.UniversalDeserializer(), nil).(containedDecoder); !ok || decoded != 1 {
		t.Errorf("objects are not contained, or not counted: %d", decoded)
	}
}

// spaces never end.
type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}
func (spaces) Close() error { return nil }

func TestGuardedBody_Ends(t *testing.T) {
	t.Parallel()
	limits := Limits{}.complete()
	for _, tt := range []struct {
		method, path string
		most         int64
	}{
		{"GET", "/version", limits.List},
		{"GET", "/api/v1/nodes?watch=true", limits.Event},
		{"GET", "/prefix/api/v1/nodes/node-1", limits.Object},
		{"GET", "/api/v1/namespaces/api/pods/x", limits.Object},
		{"GET", "/apis/apps/v1/namespaces/x/deployments/y", limits.Object},
		{"GET", "/apis/apps/v1/namespaces/x/deployments", limits.List},
		{"GET", "/api/v1/namespaces/x/pods", limits.List},
		{"GET", "/api/v1/namespaces", limits.List},
		{"GET", "/api/v1/pods", limits.List},
		{"PATCH", "/api/v1/nodes/node-1", limits.Object},
		{"POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", limits.Object},
	} {
		r := httptest.NewRequestWithContext(t.Context(), tt.method, "https://x"+tt.path, nil)
		b := &guardedBody{ReadCloser: spaces{}, line: &line{limits: limits}, counted: true, most: limits.of(r), left: limits.of(r)}
		n, err := io.Copy(io.Discard, b)
		if e, ok := errors.AsType[*SizeError](err); !ok || !errors.Is(err, fleet.ErrTooLarge) || e.Most != tt.most || n > tt.most || n < tt.most/2 {
			t.Errorf("%s %s: %d bytes, %v", tt.method, tt.path, n, err)
		}
	}
	r := httptest.NewRequestWithContext(t.Context(), "GET", "https://x/prefix/api/v1/nodes", nil)
	if got := limits.of(r); got != limits.Nodes {
		t.Errorf("a list of nodes may have %d bytes", got)
	}
}

// odd is an object that cannot be decoded without a panic.
type odd struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
}

func (*odd) DeepCopyObject() runtime.Object { return &odd{} }

func (*odd) UnmarshalJSON([]byte) error { panic("an odd object") }

// A watch of a contained client over an odd object ends with an error, and so does a read of one. It is not parallel:
// the scheme belongs to all.
func TestContained_Client(t *testing.T) {
	scheme.Scheme.AddKnownTypes(schema.GroupVersion{Group: "test.example.com", Version: "v1"}, &odd{})
	const object = `{"apiVersion":"test.example.com/v1","kind":"odd","metadata":{"name":"x"}}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path != "/prefix/api/v1/pods" || r.UserAgent() != "kube-node-manager/x" {
			http.NotFound(w, r)
			return
		}
		if r.URL.Query().Has("watch") {
			_, _ = io.WriteString(w, `{"type":"ADDED","object":`+object+`}`) // to a test that has gone
			return
		}
		_, _ = io.WriteString(w, object)
	}))
	t.Cleanup(server.Close)
	k, err := New("x", &rest.Config{Host: server.URL + "/prefix"}, WithVersion("x"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	c := Contained(k.Watch.CoreV1().RESTClient())
	err = c.Get().Resource("pods").Do(t.Context()).Into(&corev1.PodList{})
	if err == nil || !strings.Contains(err.Error(), "an odd object") {
		t.Errorf("a read: %v", err)
	}
	w, err := c.Get().Resource("pods").VersionedParams(&metav1.ListOptions{Watch: true}, scheme.ParameterCodec).Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	e, open := <-w.ResultChan()
	if s, ok := e.Object.(*metav1.Status); !open || e.Type != watch.Error || !ok || !strings.Contains(s.Message, "an odd object") {
		t.Errorf("a watch: %+v, %t", e, open)
	}
}

func TestContained_Fake(t *testing.T) {
	t.Parallel()
	if c := Contained(fake.NewClientset().CoreV1().RESTClient()); restClient(c) != nil {
		t.Errorf("made %T of a fake", c)
	}
}
