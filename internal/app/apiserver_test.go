package app

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"

	"k8s.io/client-go/rest"

	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// apiServer is as much of an API server as one collection of nodes needs: list, watch, get and merge patch. The real one
// has its own tests; these are about how the rooms are wired.
type apiServer struct {
	mu       sync.Mutex // guards what follows
	version  int
	nodes    map[string]map[string]any
	watchers map[chan []byte]bool
}

func fakeCluster(t *testing.T, name string) kube.Cluster {
	t.Helper()
	return fakeClusterOf(t, name, "node-")
}

// fakeClusterOf is a cluster whose names all begin alike: of its nodes and their zone.
func fakeClusterOf(t *testing.T, name, prefix string) kube.Cluster {
	t.Helper()
	s := &apiServer{nodes: map[string]map[string]any{}, watchers: map[chan []byte]bool{}, version: 10}
	for i := range 3 {
		n := fmt.Sprint(prefix, i)
		s.nodes[n] = map[string]any{
			"kind": "Node", "apiVersion": "v1",
			"metadata": map[string]any{"name": n, "uid": "uid-" + n, "resourceVersion": strconv.Itoa(i + 1), "creationTimestamp": "2026-01-02T03:04:05Z", "labels": map[string]any{"topology.kubernetes.io/zone": prefix + "zone"}},
			"spec":     map[string]any{"taints": []any{map[string]any{"key": fmt.Sprint("taint-", len(prefix)), "effect": "PreferNoSchedule"}}},
			"status":   map[string]any{"conditions": []any{map[string]any{"type": "Ready", "status": "True"}}},
		}
	}
	ts := httptest.NewServer(s)
	t.Cleanup(ts.Close)
	c, err := kube.New(name, &rest.Config{Host: ts.URL})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	if rest, ok := cutNode(r.URL.Path); ok {
		name = rest
	}
	switch {
	case r.URL.Path == "/version":
		reply(w, http.StatusOK, map[string]any{"gitVersion": "v1.37.0"})
	case r.URL.Path == "/api/v1/nodes" && r.URL.Query().Get("sendInitialEvents") != "":
		reply(w, http.StatusUnprocessableEntity, status("Invalid", 422)) // an older server: the client lists instead
	case r.URL.Path == "/api/v1/nodes" && r.URL.Query().Get("watch") != "":
		s.watch(w, r)
	case r.URL.Path == "/api/v1/nodes":
		s.mu.Lock()
		items := []any{}
		for _, n := range s.nodes {
			items = append(items, n)
		}
		body := map[string]any{"kind": "NodeList", "apiVersion": "v1", "metadata": map[string]any{"resourceVersion": strconv.Itoa(s.version)}, "items": items}
		reply(w, http.StatusOK, body)
		s.mu.Unlock()
	case r.Method == http.MethodGet && name != "":
		s.mu.Lock()
		defer s.mu.Unlock()
		if n, ok := s.nodes[name]; ok {
			reply(w, http.StatusOK, n)
			return
		}
		reply(w, http.StatusNotFound, status("NotFound", 404))
	case r.Method == http.MethodPatch && name != "":
		s.patch(w, r, name)
	default:
		reply(w, http.StatusNotFound, status("NotFound", 404))
	}
}

func cutNode(path string) (string, bool) {
	const prefix = "/api/v1/nodes/"
	if len(path) > len(prefix) && path[:len(prefix)] == prefix {
		return path[len(prefix):], true
	}
	return "", false
}

func status(reason string, code int) map[string]any {
	return map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
}

func reply(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		return // the client is gone
	}
}

func (s *apiServer) watch(w http.ResponseWriter, r *http.Request) {
	ch := make(chan []byte, 100)
	s.mu.Lock()
	s.watchers[ch] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.watchers, ch)
		s.mu.Unlock()
	}()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	for {
		if rc.Flush() != nil {
			return
		}
		select {
		case b := <-ch:
			if _, err := w.Write(b); err != nil {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}

func (s *apiServer) patch(w http.ResponseWriter, r *http.Request, name string) {
	var p map[string]any
	if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
		reply(w, http.StatusBadRequest, status("BadRequest", 400))
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.nodes[name]
	if !ok {
		reply(w, http.StatusNotFound, status("NotFound", 404))
		return
	}
	n = merge(n, p)
	s.version++
	n["metadata"].(map[string]any)["resourceVersion"] = strconv.Itoa(s.version)
	s.nodes[name] = n
	event, err := json.Marshal(map[string]any{"type": "MODIFIED", "object": n})
	if err != nil {
		reply(w, http.StatusInternalServerError, status("InternalError", 500))
		return
	}
	for ch := range s.watchers {
		ch <- event
	}
	reply(w, http.StatusOK, n)
}

// merge is RFC 7386, on a copy.
func merge(into, patch map[string]any) map[string]any {
	out := map[string]any{}
	maps.Copy(out, into)
	for k, v := range patch {
		switch v := v.(type) {
		case nil:
			delete(out, k)
		case map[string]any:
			old, _ := out[k].(map[string]any)
			out[k] = merge(old, v)
		default:
			out[k] = v
		}
	}
	return out
}
