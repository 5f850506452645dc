package kube

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// rogue is a cluster whose API server answers as h does.
func rogue(t *testing.T, limits Limits, h http.HandlerFunc) Cluster {
	t.Helper()
	server := httptest.NewTLSServer(h)
	t.Cleanup(server.Close)
	c, err := New("rogue", &rest.Config{Host: server.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, WithLimits(limits))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// pour writes n times the same until the client has had enough.
func pour(w io.Writer, n int, what string) (taken int) {
	block := strings.Repeat(what, 1+(64<<10)/len(what))
	for taken < n {
		m, err := io.WriteString(w, block)
		taken += m
		if err != nil {
			return taken
		}
	}
	return taken
}

// T34: answers that do not end, however they are packed, are let go when they are over the limit, and said to be too
// large. What had arrived by then bounds what it cost.
func TestRogue_TooLarge(t *testing.T) {
	t.Parallel()
	limits := Limits{Nodes: 2 << 20, List: 1 << 20, Object: 256 << 10, Event: 128 << 10}
	const endless = 1 << 30
	node := `{"kind":"Node","apiVersion":"v1","metadata":{"name":"n","annotations":{"a":"`
	for name, tt := range map[string]struct {
		answer func(w http.ResponseWriter)
		packed bool // what arrives is less than what it becomes
		do     func(context.Context, Cluster) error
		most   int64
	}{
		"an endless list": {
			answer: func(w http.ResponseWriter) {
				_, _ = io.WriteString(w, `{"kind":"NodeList","apiVersion":"v1","items":[`)
				pour(w, endless, node+`"}}},`)
			},
			do: listNodes, most: limits.Nodes,
		},
		"an annotation of a gigabyte": {
			answer: func(w http.ResponseWriter) {
				_, _ = io.WriteString(w, node)
				pour(w, endless, "a")
			},
			do: getNode, most: limits.Object,
		},
		"a bomb": {
			answer: func(w http.ResponseWriter) {
				w.Header().Set("Content-Encoding", "gzip")
				z := gzip.NewWriter(w)
				pour(z, endless, " ")
			},
			do: listNodes, packed: true, most: limits.Nodes,
		},
		"a bomb for a write": {
			answer: func(w http.ResponseWriter) {
				w.Header().Set("Content-Encoding", "gzip")
				z := gzip.NewWriter(w)
				pour(z, endless, " ")
			},
			do: func(ctx context.Context, c Cluster) error {
				return c.Ops.CoreV1().Nodes().Delete(ctx, "n", metav1.DeleteOptions{})
			},
			packed: true, most: limits.Object,
		},
		"an error that does not end": {
			answer: func(w http.ResponseWriter) {
				w.WriteHeader(http.StatusForbidden)
				pour(w, endless, "no ")
			},
			do: listNodes, most: limits.Nodes,
		},
		"endless pods": {
			answer: func(w http.ResponseWriter) { pour(w, endless, " ") },
			do: func(ctx context.Context, c Cluster) error {
				_, err := c.Watch.CoreV1().Pods("").List(ctx, metav1.ListOptions{Limit: 500})
				return err
			},
			most: limits.List,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := rogue(t, limits, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				tt.answer(w)
			})
			err := tt.do(t.Context(), c)
			e, ok := errors.AsType[*SizeError](err)
			if !ok || e.Most != tt.most || !errors.Is(Error(err), fleet.ErrTooLarge) {
				t.Errorf("err = %v", err)
			}
			if got := Reason(Error(err)); !strings.HasPrefix(got, "response too large: it has more than ") {
				t.Errorf("people are told %q", got)
			}
			if got := c.BytesRead(); got > tt.most+1<<20 {
				t.Errorf("%d bytes were taken of at most %d", got, tt.most)
			}
		})
	}
}

func listNodes(ctx context.Context, c Cluster) error {
	_, err := c.ListNodes(ctx, metav1.ListOptions{})
	return err
}

func getNode(ctx context.Context, c Cluster) error {
	_, err := c.Watch.CoreV1().Nodes().Get(ctx, "n", metav1.GetOptions{})
	return err
}

// An event that does not end is let go too, and every event before it arrives.
func TestRogue_EndlessEvent(t *testing.T) {
	t.Parallel()
	limits := Limits{Event: 64 << 10}
	const good = 50
	c := rogue(t, limits, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		event := `{"type":"ADDED","object":{"kind":"Node","apiVersion":"v1","metadata":{"name":"n","annotations":{"a":"`
		for range good { // more than one event may have, all together
			_, _ = io.WriteString(w, event+strings.Repeat("a", 4<<10)+`"}}}}`+"\n")
		}
		_, _ = io.WriteString(w, event)
		pour(w, 1<<30, "a")
	})
	w, err := c.WatchNodes(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	n := 0
	var last any
	for e := range w.ResultChan() {
		if e.Type == "ADDED" {
			n++
			continue
		}
		last = e.Object
	}
	status, ok := last.(*metav1.Status)
	if n != good || ok && !strings.Contains(status.Message, "response too large") {
		t.Errorf("%d events, and then %+v", n, last)
	}
}

// Whatever the server asks for, nobody waits longer than the bound, and a call that has a deadline keeps to it.
func TestRogue_Patience(t *testing.T) {
	t.Parallel()
	for after, want := range map[string]string{
		"5": "5", "30": "30", "31": "30", "999999999999": "30", "99999999999999999999999": "30", "-1": "30", "soon": "30", "0": "0",
		time.Now().Add(24 * time.Hour).UTC().Format(http.TimeFormat): "30", "Thu, 01 Jan 1970 00:00:00 GMT": "0",
	} {
		resp := &http.Response{StatusCode: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {after}}}
		clampPatience(resp)
		if got := resp.Header.Get("Retry-After"); got != want {
			t.Errorf("%q became %q, want %q", after, got, want)
		}
		if got := patience(resp); got > longestPatience {
			t.Errorf("%q: %s", after, got)
		}
	}
	c := rogue(t, Limits{}, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "999999999")
		w.WriteHeader(http.StatusTooManyRequests)
	})
	if err := listNodes(t.Context(), c); !errors.Is(Error(err), fleet.ErrTooMany) {
		t.Errorf("err = %v", err)
	}
	if got := c.Patience(); got != longestPatience {
		t.Errorf("patience is %s", got)
	}
}

// A body that trickles for ever ends with the deadline of the call.
func TestRogue_Trickle(t *testing.T) {
	t.Parallel()
	c := rogue(t, Limits{}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "{")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := getNode(ctx, c); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(Error(err), fleet.ErrUnavailable) {
		t.Errorf("err = %v", err)
	}
}
