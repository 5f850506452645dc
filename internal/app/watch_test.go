package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kube-node-manager/kube-node-manager/internal/config"
)

func watchConfig(t *testing.T, target string) config.Watch {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	return config.Watch{Server: u, Cluster: "prod/a", Token: "knm_x"}
}

// Cuts, errors and large events in between change nothing: each event once, and on from where it was.
func TestWatch_ComesBack(t *testing.T) {
	t.Parallel()
	large := `{"type":"node_add","pad":"` + strings.Repeat("x", 200_000) + `"}`
	var mu sync.Mutex
	var seen []string
	n := 0
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		n++
		k := n
		seen = append(seen, r.URL.String()+" "+r.Header.Get("Authorization")+" "+r.Header.Get("Last-Event-ID"))
		mu.Unlock()
		switch k {
		case 2:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		case 3:
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				conn.Close() // cut in the middle of the answer
			}
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprintf(w, "id: e.%d\nevent: node_add\ndata: %s\n\n", k, large)
		fmt.Fprintf(w, "id: e.%d\nevent: hb\ndata: x\n\n", k)
		fmt.Fprintf(w, "id: e.%d\nevent: restart\nretry: 10\ndata: 1\n\n", k)
		if k == 5 {
			fmt.Fprintf(w, "id: e.5\nevent: synced\ndata: {\"type\":\"synced\"}\n\n")
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
			<-r.Context().Done()
		}
	}))
	defer ts.Close()
	var out bytes.Buffer
	err := Watch(ctx, watchConfig(t, ts.URL), writerFunc(func(p []byte) (int, error) {
		if strings.Contains(string(p), "synced") {
			defer cancel()
		}
		return out.Write(p)
	}))
	if err != nil {
		t.Errorf("err = %v", err)
	}
	if want := strings.Repeat(large+"\n", 3) + `{"type":"synced"}` + "\n"; out.String() != want {
		t.Errorf("%d bytes, want %d", out.Len(), len(want))
	}
	at := "/api/v1/nodes/events?cluster=prod%2Fa Bearer knm_x "
	if diff := cmp.Diff([]string{at, at + "e.1", at + "e.1", at + "e.1", at + "e.4"}, seen); diff != "" {
		t.Error(diff)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestWatch_Ends(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		status int
		want   string
	}{
		{"not signed in", 401, "API token"},
		{"not permitted", 403, "API token"},
		{"unknown cluster", 404, "404"},
		{"redirect", 303, ""}, // tried again, until the person has had enough
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the token went elsewhere") }))
			defer elsewhere.Close()
			asked := make(chan struct{}, 100)
			ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", elsewhere.URL)
				w.WriteHeader(tt.status)
				asked <- struct{}{}
			}))
			defer ts.Close()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if tt.want == "" {
				go func() { <-asked; <-asked; cancel() }()
			}
			err := Watch(ctx, watchConfig(t, ts.URL), io.Discard)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("err = %v", err)
			}
		})
	}
}

// The end of the context is obeyed at once, in a stream and while waiting for the next attempt.
func TestWatch_ObeysContext(t *testing.T) {
	t.Parallel()
	for _, refuse := range []bool{false, true} {
		asked := make(chan struct{}, 100)
		ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if refuse {
				w.Header().Set("Retry-After", "3600")
				w.WriteHeader(http.StatusServiceUnavailable)
				asked <- struct{}{}
				return
			}
			w.Header().Set("Content-Type", "text/event-stream")
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
			asked <- struct{}{}
			<-r.Context().Done()
		}))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- Watch(ctx, watchConfig(t, ts.URL), io.Discard) }()
		<-asked
		began := time.Now()
		cancel()
		if err := <-done; err != nil || time.Since(began) > time.Second {
			t.Errorf("refused %t: err = %v after %s", refuse, err, time.Since(began))
		}
		ts.Close()
	}
}

// A full disk or a closed pipe ends the command with the reason.
func TestWatch_OutputFails(t *testing.T) {
	t.Parallel()
	full := errors.New("no space left")
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "event: node_add\ndata: {}\n\nevent: node_add\ndata: {}\n\n")
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		<-r.Context().Done()
	}))
	defer ts.Close()
	n := 0
	err := Watch(t.Context(), watchConfig(t, ts.URL), writerFunc(func([]byte) (int, error) { n++; return 0, full }))
	if !errors.Is(err, full) || n != 1 {
		t.Errorf("err = %v after %d writes", err, n)
	}
}
