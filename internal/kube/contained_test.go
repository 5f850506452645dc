package kube

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
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
	for path, most := range map[string]int64{"/version": maxAnswer, "/api/v1/nodes?watch=true": maxEvent} {
		u, err := url.Parse("https://x" + path)
		if err != nil {
			t.Fatal(err)
		}
		b := &guardedBody{ReadCloser: spaces{}, line: &line{}, counted: true, left: limitOf(u)}
		n, err := io.Copy(io.Discard, b)
		if !errors.Is(err, fleet.ErrTooLarge) || n > most || n < most/2 {
			t.Errorf("%s: %d bytes, %v", path, n, err)
		}
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
