package kube

import (
	"errors"
	"io"
	"net/url"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"

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
