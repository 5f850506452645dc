package kube

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// heard is a server that keeps the headers of what it is asked, and knows nothing.
func heard(t *testing.T, cfg *rest.Config) (c Cluster, last func() http.Header) {
	t.Helper()
	var (
		mu  sync.Mutex // guards got
		got http.Header
	)
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		got = r.Header.Clone()
		http.Error(w, "no", http.StatusNotFound)
	}))
	t.Cleanup(ts.Close)
	cfg.Host = ts.URL
	c, err := New("prod", cfg, WithVersion("1"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, func() http.Header {
		mu.Lock()
		defer mu.Unlock()
		return got
	}
}

// Who is named to a cluster is what the client was made for, whatever else there is.
func TestCluster_As(t *testing.T) {
	t.Parallel()
	// A kubeconfig may impersonate by itself.
	c, last := heard(t, &rest.Config{Impersonate: rest.ImpersonationConfig{UserName: "robot", Groups: []string{"robots"}}})
	get := func(id *fleet.Persona) http.Header {
		t.Helper()
		client := c.Ops
		if id != nil {
			var err error
			if client, err = c.As(*id); err != nil {
				t.Fatal(err)
			}
		}
		ctx := OnBehalf(t.Context(), "ada (é)\r\n", "b1")
		if _, err := client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{}); err == nil {
			t.Fatal("the server knows a node")
		}
		return last()
	}
	ada := &fleet.Persona{User: "knm:ada", Groups: []string{"knm:role:operator", "knm:group:a,b"}}
	h := get(ada)
	if h.Get("Impersonate-User") != "knm:ada" || !slices.Equal(h["Impersonate-Group"], ada.Groups) {
		t.Errorf("ada is %q in %q", h["Impersonate-User"], h["Impersonate-Group"])
	}
	if got, want := h.Get("User-Agent"), "kube-node-manager/1 (by=ada%20%28%C3%A9%29%0D%0A; batch=b1)"; got != want {
		t.Errorf("the user agent is %q, want %q", got, want)
	}
	if h := get(&fleet.Persona{User: "knm:bob"}); h.Get("Impersonate-User") != "knm:bob" || h["Impersonate-Group"] != nil {
		t.Errorf("bob is %q in %q", h["Impersonate-User"], h["Impersonate-Group"])
	}
	if h := get(nil); h.Get("Impersonate-User") != "robot" || !slices.Equal(h["Impersonate-Group"], []string{"robots"}) {
		t.Errorf("we are %q in %q", h["Impersonate-User"], h["Impersonate-Group"])
	}
	if n := c.Dials(); n != 1 {
		t.Errorf("%d connections for three people", n)
	}
}

// Clients of people go past the gate like any other, and their number has a bound.
func TestCluster_AsIsGatedAndBounded(t *testing.T) {
	t.Parallel()
	c, last := heard(t, &rest.Config{})
	c.Gate(func(context.Context) error { return fleet.ErrBlocked })
	acts, err := c.As(fleet.Persona{User: "ada"})
	if err != nil {
		t.Fatal(err)
	}
	if err := acts.CoreV1().Nodes().Delete(t.Context(), "n1", metav1.DeleteOptions{}); err == nil || last() != nil {
		t.Errorf("a write went past the gate: %v, %v", err, last())
	}
	for i := range 3 * maxPeople {
		if _, err := c.As(fleet.Persona{User: strconv.Itoa(i)}); err != nil {
			t.Fatal(err)
		}
		if n := len(c.people.clients); n > maxPeople {
			t.Fatalf("%d clients are kept", n)
		}
	}
	one, err := c.As(fleet.Persona{User: "a", Groups: []string{"b", "c"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []fleet.Persona{{User: "a", Groups: []string{"b c"}}, {User: "a", Groups: []string{"c", "b"}}, {User: `a" "b`, Groups: []string{"c"}}} {
		if two, err := c.As(other); err != nil || two == one {
			t.Errorf("%+v is taken for somebody else", other)
		}
	}
	if _, err := (Cluster{Name: "fake"}).As(fleet.Persona{User: "ada"}); err == nil {
		t.Error("a cluster without a connection")
	}
}
