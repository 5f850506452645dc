package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// The benchmarks run the program as a process of its own against a real API server with 1,000 nodes (KNM_BENCH_NODES
// for another number), kubelet heartbeats on. Latencies are those of a client, from the moment before the change was
// sent; beside each stands the same change as a raw watch in this very run saw it.

// benchSize is the number of nodes.
func benchSize(b *testing.B) int {
	v := os.Getenv("KNM_BENCH_NODES")
	if v == "" {
		return 1000
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 20 {
		b.Fatalf("KNM_BENCH_NODES=%q: a number of at least 20", v)
	}
	return n
}

// fleetOf starts a cluster of that many nodes, the program in front of it, and waits until it has them all.
func fleetOf(b *testing.B, n int) (*kubetest.Cluster, *server, *client) {
	b.Helper()
	d := kubetest.Start(b, kubetest.Options{Clusters: []kubetest.Spec{{Name: "bench", Nodes: n, Profile: "bare"}}})
	c := d.Clusters[0]
	s := startServer(b, c.Kubeconfig)
	who := s.client(b, "ada", "operator")
	st := who.stream("GET", "/api/v1/nodes/events", "")
	for range n {
		st.until("a node", func(e event) bool { return e.Name == "node_add" })
	}
	st.stop()
	return c, s, who
}

// quantiles of durations, in the unit of benchmarks.
func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(d))
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// BenchmarkPage is a view of the first page of the whole fleet: to the first byte and to the last, over a connection
// that is open already, and the calls that the API server sees for it.
func BenchmarkPage(b *testing.B) {
	n := benchSize(b)
	c, s, who := fleetOf(b, n)
	const views = 200
	for _, tc := range []struct{ name, path string }{
		{"list50", "/nodes?per_page=50"},
		{"list200", "/nodes?per_page=200"},
		{"detail", "/clusters/" + c.Name + "/nodes/" + firstNode(b, who)},
	} {
		b.Run(tc.name, func(b *testing.B) {
			mark := c.AuditLog(b).Mark()
			var first, whole []time.Duration
			var wire int64
			for b.Loop() {
				for range views {
					req := who.request("GET", tc.path, "", "", "Accept", "text/html", "Accept-Encoding", "gzip")
					began := time.Now()
					resp, err := noRedirect.Do(req)
					if err != nil {
						b.Fatal(err)
					}
					first = append(first, time.Since(began))
					wire, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					if err != nil || resp.StatusCode != http.StatusOK {
						b.Fatalf("%s: %s %v", tc.path, resp.Status, err)
					}
					whole = append(whole, time.Since(began))
				}
			}
			calls := 0
			for _, e := range c.AuditLog(b).Since(mark, kubetest.ByAgent("kube-node-manager/")) {
				if e.Verb != "watch" && e.Resource != "" {
					calls++
				}
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(ms(quantile(first, .5)), "ms-first-byte-p50")
			b.ReportMetric(ms(quantile(first, .99)), "ms-first-byte-p99")
			b.ReportMetric(ms(quantile(whole, .5)), "ms-whole-p50")
			b.ReportMetric(float64(wire)/1000, "kB-gzip")
			b.ReportMetric(float64(calls), "api-calls")
			b.ReportMetric(s.rss(b), "MiB-rss")
		})
	}
}

func firstNode(b *testing.B, who *client) string {
	var list struct{ Items []struct{ Name string } }
	who.json(200, &list, "GET", "/api/v1/nodes", "")
	if len(list.Items) == 0 {
		b.Fatal("no nodes")
	}
	return list.Items[0].Name
}

// arrivals collects when each change, known by a mark in its bytes, arrived somewhere.
type arrivals struct {
	mu sync.Mutex // guards at
	at map[string]time.Time
}

func (a *arrivals) saw(mark string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, twice := a.at[mark]; !twice {
		a.at[mark] = time.Now()
	}
}

func (a *arrivals) has(mark string) (time.Time, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t, ok := a.at[mark]
	return t, ok
}

// listener follows a stream and notes when marks arrive and how large their messages are. Reading can be held up.
type listener struct {
	arrivals
	bytes int64 // of messages that carried a mark, as on the wire
	msgs  int64
	gate  chan struct{} // closed: read
	last  string        // id of the last whole message
	cuts  atomic.Int64  // how often the stream had to be opened again
	done  chan struct{}
}

func listen(b *testing.B, who *client, path string, held bool, header ...string) *listener {
	b.Helper()
	l := &listener{arrivals: arrivals{at: map[string]time.Time{}}, gate: make(chan struct{}), done: make(chan struct{})}
	if !held {
		close(l.gate)
	}
	ctx, cancel := context.WithCancel(b.Context())
	connect := func() (*http.Response, error) {
		req := who.request("GET", path, "", "", append([]string{"Accept", "text/event-stream", "Last-Event-ID", l.last}, header...)...)
		resp, err := noRedirect.Do(req.WithContext(ctx))
		if err == nil && resp.StatusCode != http.StatusOK {
			resp.Body.Close()
			err = errors.New(resp.Status)
		}
		return resp, err
	}
	resp, err := connect()
	if err != nil {
		b.Fatalf("%s: %v", path, err)
	}
	go func() {
		defer close(l.done)
		select {
		case <-l.gate:
		case <-ctx.Done():
			resp.Body.Close()
			return
		}
		// As a browser does: what was cut off is opened again where it was.
		for err == nil {
			l.read(resp.Body)
			resp.Body.Close()
			if resp, err = connect(); err == nil {
				l.cuts.Add(1)
			}
		}
	}()
	b.Cleanup(func() { cancel(); <-l.done })
	return l
}

// read takes messages until the stream ends.
func (l *listener) read(r io.Reader) {
	var buf []byte
	chunk := make([]byte, 64<<10)
	for {
		n, err := r.Read(chunk)
		buf = append(buf, chunk[:n]...)
		for {
			i := bytes.Index(buf, []byte("\n\n"))
			if i < 0 {
				break
			}
			l.message(buf[:i+2])
			buf = buf[i+2:]
		}
		if err != nil {
			return
		}
	}
}

const markPrefix = "bench.example.com/c"

func (l *listener) message(m []byte) {
	for line := range bytes.Lines(m) {
		if id, ok := bytes.CutPrefix(line, []byte("id: ")); ok {
			l.last = string(bytes.TrimSpace(id))
		}
	}
	found := false
	for rest := m; ; {
		i := bytes.Index(rest, []byte(markPrefix))
		if i < 0 {
			break
		}
		rest = rest[i+len(markPrefix):]
		end := bytes.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		l.saw(string(rest[:max(end, 0)]))
		found = true
	}
	if found {
		l.mu.Lock()
		l.bytes += int64(len(m))
		l.msgs++
		l.mu.Unlock()
	}
}

// BenchmarkChange is the way of one change, ten times a second: from before it is sent to a raw watch of the same API
// server, to ten readers of JSON, and to ten open pages, beside one client that does not read at all.
func BenchmarkChange(b *testing.B) {
	n := benchSize(b)
	c, s, _ := fleetOf(b, n)
	nodes := nodeNames(b, c)
	const viewers, changes = 10, 100

	raw := &arrivals{at: map[string]time.Time{}}
	rawWatch(b, c.Client(), raw)
	var pages, programs []*listener
	for range viewers {
		programs = append(programs, listen(b, person(b, s, "json"), "/api/v1/nodes/events", false))
		pages = append(pages, listen(b, person(b, s, "page"), "/nodes/stream?per_page=200", false, "HX-Request", "true"))
	}
	stalled := listen(b, person(b, s, "stalled"), "/api/v1/nodes/events", true)
	// Only nodes of the first page change: those are the rows that an open page shows.
	nodes = nodes[:min(len(nodes), 150)]

	seq := 0
	for b.Loop() {
		var sent []time.Time
		base := seq
		tick := time.NewTicker(100 * time.Millisecond)
		for range changes {
			<-tick.C
			sent = append(sent, time.Now())
			taint(b, c.Client(), nodes[seq%len(nodes)], strconv.Itoa(seq))
			seq++
		}
		tick.Stop()
		last := strconv.Itoa(seq - 1)
		settled := func(a *arrivals) bool { _, ok := a.has(last); return ok }
		waitFor(b, "the raw watch to have the last change", func() bool { return settled(raw) })
		for kind, readers := range map[string][]*listener{"page": pages, "program": programs} {
			for i, l := range readers {
				waitFor(b, fmt.Sprintf("%s %d to have the last change", kind, i), func() bool { return settled(&l.arrivals) })
			}
		}
		report(b, "raw", sent, base, raw)
		rawP50, rawP99 := spread(sent, base, raw)
		for name, ls := range map[string][]*listener{"json": programs, "page": pages} {
			var p50s, p99s []time.Duration
			var size, msgs int64
			for _, l := range ls {
				p50, p99 := spread(sent, base, &l.arrivals)
				p50s, p99s = append(p50s, p50), append(p99s, p99)
				size, msgs = size+l.bytes, msgs+l.msgs
			}
			b.ReportMetric(ms(quantile(p50s, .5)), name+"-p50-ms")
			b.ReportMetric(float64(quantile(p50s, .5))/float64(rawP50), name+"-p50-x-raw")
			b.ReportMetric(float64(quantile(p99s, .99))/float64(rawP99), name+"-p99-x-raw")
			b.ReportMetric(float64(size)/float64(max(msgs, 1)), name+"-B/change")
		}
		var cuts int64
		for _, l := range append(slices.Clone(pages), programs...) {
			cuts += l.cuts.Load()
		}
		b.ReportMetric(float64(cuts), "readers-cut")
		close(stalled.gate)
		began := time.Now()
		waitFor(b, "the client that did not read to have the last change", func() bool { return settled(&stalled.arrivals) })
		b.ReportMetric(ms(time.Since(began)), "stalled-converged-ms")
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(s.rss(b), "MiB-rss")
}

// spread is the median and the 99th percentile of a listener's latencies.
func spread(sent []time.Time, base int, a *arrivals) (p50, p99 time.Duration) {
	var d []time.Duration
	for i, t := range sent {
		if at, ok := a.has(strconv.Itoa(base + i)); ok {
			d = append(d, at.Sub(t))
		}
	}
	return quantile(d, .5), quantile(d, .99)
}

func report(b *testing.B, name string, sent []time.Time, base int, a *arrivals) {
	p50, p99 := spread(sent, base, a)
	b.ReportMetric(ms(p50), name+"-p50-ms")
	b.ReportMetric(ms(p99), name+"-p99-ms")
}

// waitFor looks every few milliseconds: benchmarks may poll what they do not measure.
func waitFor(b *testing.B, what string, ok func() bool) {
	b.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(60 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			b.Fatalf("waited a minute for %s", what)
		}
	}
}

var persons int

// person is a fresh session: streams are limited by session and person.
func person(b *testing.B, s *server, kind string) *client {
	b.Helper()
	persons++
	return s.client(b, fmt.Sprintf("%s-%d", kind, persons), "viewer")
}

func nodeNames(b *testing.B, c *kubetest.Cluster) []string {
	b.Helper()
	list, err := c.Client().CoreV1().Nodes().List(b.Context(), metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		b.Fatal(err)
	}
	var names []string
	for _, n := range list.Items {
		names = append(names, n.Name)
	}
	slices.Sort(names)
	return names
}

func taint(b *testing.B, client kubernetes.Interface, node, seq string) {
	b.Helper()
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"taints": []corev1.Taint{{
		Key: markPrefix + seq, Effect: corev1.TaintEffectPreferNoSchedule,
	}}}})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := client.CoreV1().Nodes().Patch(b.Context(), node, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		b.Fatal(err)
	}
}

// rawWatch notes when the changes arrive at a plain watch. An API server ends watches when it likes; this one resumes.
func rawWatch(b *testing.B, client kubernetes.Interface, a *arrivals) {
	b.Helper()
	nodes := client.CoreV1().Nodes()
	now, err := nodes.List(b.Context(), metav1.ListOptions{Limit: 1})
	if err != nil {
		b.Fatal(err)
	}
	w, err := watchtools.NewRetryWatcherWithContext(b.Context(), now.ResourceVersion, &cache.ListWatch{
		WatchFuncWithContext: nodes.Watch,
	})
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e := range w.ResultChan() {
			node, ok := e.Object.(*corev1.Node)
			if !ok {
				b.Logf("raw watch: %s %v", e.Type, e.Object)
				continue
			}
			for _, t := range node.Spec.Taints {
				if seq, ok := strings.CutPrefix(t.Key, markPrefix); ok {
					a.saw(seq)
				}
			}
		}
	}()
	b.Cleanup(func() { w.Stop(); <-done })
}

// rss is the resident memory of the program, in MiB.
func (s *server) rss(b *testing.B) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		b.Logf("no resident size on this system: %v", err)
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 64)
			if err != nil {
				b.Fatal(err)
			}
			return kb / 1024
		}
	}
	return 0
}
