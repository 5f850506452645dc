package realtime

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// loaded is a manager with n nodes and no server.
func loaded(b *testing.B, n int) *Manager {
	b.Helper()
	bench := newBench(b, ManagerConfig{}, StreamerConfig{PerUser: 1 << 20}, "a")
	for i := range n {
		bench.put("a", spec{name: fmt.Sprintf("node-%05d", i), rv: 1, labels: labelsOf(i)})
	}
	return bench.m
}

func labelsOf(i int) map[string]string {
	l := map[string]string{"v": fmt.Sprint(i % 7), "topology.kubernetes.io/zone": fmt.Sprintf("zone-%d", i%3)}
	for k := range 20 {
		l[fmt.Sprintf("example.com/label-%d", k)] = "a value of some length"
	}
	return l
}

func mustQuery(b *testing.B, values url.Values) *Query {
	b.Helper()
	q, err := ParseQuery(fleet.SeesAll(), "", values)
	if err != nil {
		b.Fatal(err)
	}
	return q
}

// BenchmarkWindow_5000 is the first page of a list that somebody looked at before.
func BenchmarkWindow_5000(b *testing.B) {
	m := loaded(b, 5000)
	for _, per := range []string{"50", "200"} {
		q := mustQuery(b, url.Values{"per_page": {per}})
		b.Run(per+"rows", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				m.Window(q, "en")
			}
		})
	}
}

// BenchmarkList_5000 is the whole list as JSON: written from the cached bytes, and for comparison encoded anew.
func BenchmarkList_5000(b *testing.B) {
	m := loaded(b, 5000)
	q := mustQuery(b, nil)
	b.Run("cached", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			out := bufio.NewWriterSize(io.Discard, 64<<10)
			for item := range m.List(q, false).Items {
				if _, err := out.Write(item); err != nil {
					b.Fatal(err)
				}
			}
			if err := out.Flush(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("encoded", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var items []json.RawMessage
			for _, ref := range m.Matching(q, 5000) {
				n, err := m.Node(ref)
				if err != nil {
					b.Fatal(err)
				}
				item, err := fleet.NodeJSON(n)
				if err != nil {
					b.Fatal(err)
				}
				items = append(items, item)
			}
			body, err := json.Marshal(map[string]any{"items": items})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Discard.Write(body); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkView_Cold_5000 is the first look at a query that nobody asked before.
func BenchmarkView_Cold_5000(b *testing.B) {
	m := loaded(b, 5000)
	for _, text := range []string{"", "status:Ready label:v=3", "node-01"} {
		q := mustQuery(b, url.Values{"q": {text}, "sort": {"-cpu"}})
		b.Run(fmt.Sprintf("q=%q", text), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				v := newView(m, q)
				v.mu.Lock()
				v.sync()
				v.mu.Unlock()
			}
		})
	}
}

// BenchmarkChange_5000 is one node event from the decoded object to the last of many views.
func BenchmarkChange_5000(b *testing.B) {
	for _, views := range []int{1, 100} {
		b.Run(fmt.Sprintf("%dviews", views), func(b *testing.B) {
			m := loaded(b, 5000)
			var all []*view
			for i := range views {
				v := m.acquire(mustQuery(b, url.Values{"q": {fmt.Sprintf("-x%d", i)}}))
				defer m.release(v)
				p := v.watch(pageKey{1, 50})
				defer v.unwatch(p)
				all = append(all, v)
			}
			board := m.board("a")
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				i++
				if err := board.apply(spec{name: fmt.Sprintf("node-%05d", i%5000), rv: i, labels: map[string]string{"v": fmt.Sprint(i)}}.node()); err != nil {
					b.Fatal(err)
				}
				for _, v := range all {
					m.follow(v)
				}
			}
		})
	}
}

// BenchmarkHeartbeat is what most watch events cost: they are stored and push nothing.
func BenchmarkHeartbeat(b *testing.B) {
	m := loaded(b, 1)
	board := m.board("a")
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		i++
		n := spec{name: "node-00000", rv: i, labels: labelsOf(0), beat: epochStart.Add(time.Duration(i) * time.Second)}.node()
		if err := board.apply(n); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRow(b *testing.B) {
	m := loaded(b, 1)
	_, ver := m.board("a").node("node-00000")
	b.Run("rendered", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			ver.cells = &cells{}
			m.render.row(ver, "en")
		}
	})
	b.Run("shared", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			m.render.row(ver, "en")
		}
	})
}

// BenchmarkFanout is one change to every one of n streams that show the same page, in this process and without
// sockets: what our side of it costs.
func BenchmarkFanout(b *testing.B) {
	for _, n := range []int{10, 1000} {
		for _, format := range []Format{HTML, JSON} {
			b.Run(fmt.Sprintf("%d/%s", n, map[Format]string{HTML: "html", JSON: "json"}[format]), func(b *testing.B) {
				bench := newBench(b, ManagerConfig{}, StreamerConfig{Heartbeat: time.Hour}, "a")
				bench.s.rate = 0 // the pacing of pages is for browsers; here it would only measure itself
				for i := range 100 {
					bench.put("a", spec{name: fmt.Sprintf("node-%05d", i), rv: 1, labels: labelsOf(i)})
				}
				q := mustQuery(b, nil)
				cursor := bench.m.Window(q, "en").Cursor
				ctx, cancel := context.WithCancel(b.Context())
				defer cancel()
				flushed := make(chan struct{}, n)
				var wg sync.WaitGroup
				defer wg.Wait()
				defer cancel()
				for range n {
					wg.Go(func() {
						r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
						w := &countingResponse{h: http.Header{}, flushed: flushed}
						err := bench.s.Nodes(w, r, NodeStream{Viewer: Viewer{Format: format, Since: cursor}, Query: q})
						if err != nil {
							b.Error(err)
						}
					})
				}
				ready := n
				if format == JSON {
					ready = 2 * n // the header and synced
				}
				for range ready {
					<-flushed
				}
				i := 1
				b.ReportAllocs()
				for b.Loop() {
					i++
					bench.put("a", spec{name: "node-00000", rv: i, labels: map[string]string{"v": fmt.Sprint(i)}})
					for range n {
						<-flushed
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/stream")
			})
		}
	}
}

type countingResponse struct {
	h       http.Header
	flushed chan struct{}
}

func (w *countingResponse) Header() http.Header         { return w.h }
func (w *countingResponse) Write(p []byte) (int, error) { return len(p), nil }
func (w *countingResponse) WriteHeader(int)             {}
func (w *countingResponse) Flush()                      { w.flushed <- struct{}{} }

// BenchmarkLatency is the time from a write to the row in a client, on a real API server, beside a raw watch of the
// same writes, at ten writes a second.
func BenchmarkLatency(b *testing.B) {
	k := kubetest.Shared(b)
	node := k.Node(b, kubetest.NodeSpec{})
	bench := newBench(b, ManagerConfig{}, StreamerConfig{})
	add(b, bench.m, cluster(b, "real", k.REST()))
	waitState(b, bench.m, "real", fleet.ClusterLive)
	waitNode(b, bench.m, fleet.NodeRef{Cluster: "real", Name: node.Name}, "listed", func(n *fleet.Node) bool { return n != nil })

	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	w, err := k.Client().CoreV1().Nodes().Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + node.Name})
	if err != nil {
		b.Fatal(err)
	}
	type seen struct {
		where string
		v     string
		at    time.Time
		bytes int
	}
	sights := make(chan seen, 64)
	wg.Go(func() {
		defer w.Stop()
		for {
			select {
			case e, ok := <-w.ResultChan():
				if !ok {
					return
				}
				if n, ok := e.Object.(*corev1.Node); ok {
					sights <- seen{"raw", n.Labels["v"], time.Now(), 0}
				}
			case <-ctx.Done():
				return
			}
		}
	})
	follow := func(where, path string, value func(string) string) {
		s := bench.open(path)
		context.AfterFunc(ctx, s.close)
		wg.Go(func() {
			for {
				e, err := s.next()
				if err != nil {
					return
				}
				if v := value(e.data); v != "" {
					sights <- seen{where, v, time.Now(), len(e.data)}
				}
			}
		})
	}
	between := func(start, end string) func(string) string {
		return func(s string) string {
			_, s, _ = strings.Cut(s, start)
			v, _, _ := strings.Cut(s, end)
			return v
		}
	}
	follow("json", "/nodes?json=1&q="+node.Name, between(`"v":"`, `"`))
	follow("html", "/nodes?since="+bench.window("").Cursor, between("true ", " "))
	took := map[string][]time.Duration{}
	size := map[string]int{}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	i := 0
	for b.Loop() {
		<-tick.C
		i++
		value := fmt.Sprint("w", i)
		began := time.Now()
		k.Label(b, node.Name, "v", value)
		for left := 3; left > 0; {
			if s := <-sights; s.v == value {
				took[s.where] = append(took[s.where], s.at.Sub(began))
				size[s.where] = s.bytes
				left--
			}
		}
	}
	cancel()
	for where, all := range took {
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, where+"-p50-ms")
		b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, where+"-p99-ms")
		if size[where] > 0 {
			b.ReportMetric(float64(size[where]), where+"-bytes")
		}
	}
}
