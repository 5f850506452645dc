package realtime

import (
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/client-go/rest"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// T34: API servers whose answers do not end, or are bombs. Each of these clusters says that of itself, and the one
// beside them stays live and is followed.
func TestT34_ResponseBombs(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	m := running(t, quick)
	add(t, m, cluster(t, "good", k.REST()))
	waitState(t, m, "good", fleet.ClusterLive)
	limits := kube.Limits{Nodes: 1 << 20, List: 1 << 20, Object: 1 << 20, Event: 1 << 20}
	const node = `{"kind":"Node","apiVersion":"v1","metadata":{"name":"n","uid":"u","resourceVersion":"1","annotations":{"a":"`
	endless := func(w io.Writer, first, what string) {
		block := strings.Repeat(what, 1+(32<<10)/len(what))
		_, err := io.WriteString(w, first)
		for err == nil {
			_, err = io.WriteString(w, block)
		}
	}
	streams := func(r *http.Request) bool { return r.URL.Query().Get("sendInitialEvents") != "" }
	for name, answer := range map[string]http.HandlerFunc{
		"list": func(w http.ResponseWriter, r *http.Request) {
			if streams(r) {
				http.Error(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`, http.StatusUnprocessableEntity)
				return
			}
			endless(w, `{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[`, node+`"}}},`)
		},
		"bomb": func(w http.ResponseWriter, r *http.Request) {
			if streams(r) {
				http.Error(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`, http.StatusUnprocessableEntity)
				return
			}
			w.Header().Set("Content-Encoding", "gzip")
			endless(gzip.NewWriter(w), "", "        ")
		},
		"event": func(w http.ResponseWriter, _ *http.Request) {
			endless(w, `{"type":"ADDED","object":`+node, "a")
		},
	} {
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if r.URL.Path == "/api/v1/nodes" {
				answer(w, r)
				return
			}
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
		}))
		t.Cleanup(server.Close)
		c, err := kube.New(name, &rest.Config{Host: server.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, kube.WithLimits(limits))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		add(t, m, c)
	}
	for _, name := range []string{"list", "bomb", "event"} {
		if s := waitState(t, m, name, fleet.ClusterUnreachable); !strings.Contains(s.Reason, "response too large") || s.Synced() {
			t.Errorf("%s: %+v", name, s)
		}
	}
	n := k.Node(t, kubetest.NodeSpec{})
	ref := fleet.NodeRef{Cluster: "good", Name: n.Name}
	for i := range 5 {
		k.Label(t, n.Name, "i", fmt.Sprint(i))
		waitNode(t, m, ref, "followed", func(n *fleet.Node) bool { return n != nil && n.Labels["i"] == fmt.Sprint(i) })
	}
	if s := m.stateOf("good"); s.State != fleet.ClusterLive {
		t.Errorf("the good one: %+v", s)
	}
}
