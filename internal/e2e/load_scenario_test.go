package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// The scenarios. Each starts the program anew in front of a control plane that is there already, with people enough,
// and says what it measured. None says what is good: the bars stand beside the numbers, and only a result that is wrong
// fails.

// cost is what the program took between two moments.
type cost struct {
	wall, cpu     time.Duration
	traffic       traffic // of all viewers
	before, after usage
}

// traffic is what viewers got.
type traffic struct{ wire, plain, marked, messages int64 }

func trafficOf(viewers []*viewer) (t traffic) {
	for _, v := range viewers {
		t.wire, t.plain = t.wire+v.wire.Load(), t.plain+v.plain.Load()
		t.marked, t.messages = t.marked+v.marked.Load(), t.messages+v.messages.Load()
	}
	return t
}

func (t traffic) since(o traffic) traffic {
	return traffic{t.wire - o.wire, t.plain - o.plain, t.marked - o.marked, t.messages - o.messages}
}

// sizes says how many bytes a change costs each of the viewers that got it: plain, and on the wire by what the whole
// stream was compressed. What else the stream carried, nodes that were not ready for a moment, is no part of it.
func (t traffic) sizes(s score, kind string, changes int, goal string) {
	s.tb.Helper()
	each := float64(t.marked) / float64(max(1, changes))
	s.add(kind+" per change and viewer, plain", each, "B", "≤ 4 kB")
	s.add(kind+" per change and viewer, on the wire", each*float64(t.wire)/float64(max(1, t.plain)), "B", "≤ 4 kB", goal)
}

// meter measures what the program takes while do runs.
func (l *loaded) meter(tb testing.TB, viewers []*viewer, do func()) cost {
	tb.Helper()
	c := cost{before: l.usage(tb)}
	before := trafficOf(viewers)
	do()
	c.after = l.usage(tb)
	c.traffic = trafficOf(viewers).since(before)
	c.wall, c.cpu = c.after.at.Sub(c.before.at), c.after.cpu-c.before.cpu
	return c
}

// load says how busy the program was.
func (c cost) load(s score) {
	s.tb.Helper()
	s.add("server CPU", c.cpu.Seconds()/c.wall.Seconds(), "cores")
	if n := c.traffic.messages; n > 0 {
		s.add("server CPU per message", float64(c.cpu.Microseconds())/float64(n), "µs")
	}
	s.add("RSS", c.after.rss, "MiB")
}

var streamURL = regexp.MustCompile(`hx-sse:connect="([^"]*)"`)

// page opens a page as a browser does and returns the address of its live stream, cursor included.
func (l *loaded) page(tb testing.TB, path string) string {
	tb.Helper()
	resp := l.as(tb).send("GET", path, "", "", "Accept", "text/html")
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatal(err)
	}
	at := streamURL.FindSubmatch(b)
	if resp.StatusCode != http.StatusOK || at == nil {
		tb.Fatalf("%s: %s, and no stream in %d bytes", path, resp.Status, len(b))
	}
	return html.UnescapeString(string(at[1]))
}

func always(path string) func(int) string { return func(int) string { return path } }

// versus says how the viewers' latencies compare with those of the raw watch.
func versus(s score, kind string, raw *arrivals, viewers []*viewer, goal string) {
	s.tb.Helper()
	base := raw.latencies()
	var all []time.Duration
	for _, v := range viewers {
		all = append(all, v.arrivals.Load().latencies()...)
	}
	p50, p99 := quantile(all, .5), quantile(all, .99)
	s.add(kind+" p50", ms(p50), "ms")
	s.add(kind+" p99", ms(p99), "ms")
	var p50bars, p99bars []string
	if len(viewers) <= 1000 { // the bars are about that many; what one change costs with more of them stands for itself
		p50bars, p99bars = []string{"≤ 3×", goal}, []string{"≤ 5×"}
	}
	s.add(kind+" p50 against raw", float64(p50)/float64(max(1, quantile(base, .5))), "×", p50bars...)
	s.add(kind+" p99 against raw", float64(p99)/float64(max(1, quantile(base, .99))), "×", p99bars...)
	if share := float64(len(all)) / float64(max(1, len(viewers)*len(base))); share < 1 {
		s.add(kind+" changes that arrived one by one", 100*share, "%")
	}
}

// seen counts the changes that arrived at viewers, each at each of them.
func seen(viewers []*viewer) (n int) {
	for _, v := range viewers {
		n += len(v.arrivals.Load().latencies())
	}
	return n
}

func rawTimes(s score, raw *arrivals) {
	s.tb.Helper()
	d := raw.latencies()
	s.add("raw watch p50", ms(quantile(d, .5)), "ms")
	s.add("raw watch p99", ms(quantile(d, .99)), "ms")
}

// calls counts what the program asked the API server since the mark, but for what it asks whether anybody looks or not:
// its watch, the probe of the server's health, who the cluster is, and what it may do there.
func calls(tb testing.TB, c *kubetest.Cluster, mark kubetest.Mark) int {
	tb.Helper()
	n := 0
	for _, e := range c.AuditLog(tb).Since(mark, kubetest.ByAgent("kube-node-manager/")) {
		switch {
		case e.Verb == "watch", e.Resource == "", e.Resource == "selfsubjectaccessreviews":
		case e.Resource == "namespaces" && e.Name == "kube-system":
		default:
			tb.Logf("called the API server: %s %s %s", e.Verb, e.Resource, e.Name)
			n++
		}
	}
	return n
}

// pages looks at the first page, at one node and at the list for programs, over a connection that is open already, and
// at the calls that the API server sees for them.
func pages(tb testing.TB, c *kubetest.Cluster, nodes, views int) {
	tb.Helper()
	s := scoreOf(tb, fmt.Sprintf("%d nodes, pages", nodes))
	l := serveLoad(tb, 1, c.Kubeconfig)
	l.synced(tb, 1, nodes)
	l.settle(tb)
	s.add("RSS after the first list", l.usage(tb).rss, "MiB")
	who := l.as(tb)
	node := nodeNames(tb, c)[0]
	for _, tc := range []struct{ name, path, accept string }{
		{"list of 50", "/nodes?per_page=50", "text/html"},
		{"list of 200", "/nodes?per_page=200", "text/html"},
		{"node", "/clusters/" + c.Name + "/nodes/" + node, "text/html"},
		{"JSON list of 200", "/api/v1/nodes?per_page=200", "application/json"},
	} {
		mark := c.AuditLog(tb).Mark()
		var first, whole []time.Duration
		var wire int64
		for range views {
			req := who.request("GET", tc.path, "", "", "Accept", tc.accept, "Accept-Encoding", "gzip")
			began := time.Now()
			resp, err := noRedirect.Do(req)
			if err != nil {
				tb.Fatal(err)
			}
			first = append(first, time.Since(began))
			wire, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusOK {
				tb.Fatalf("%s: %s %v", tc.path, resp.Status, err)
			}
			whole = append(whole, time.Since(began))
		}
		s.add(tc.name+", first byte p50", ms(quantile(first, .5)), "ms", "≤ 10 ms", "≤ 3 ms")
		s.add(tc.name+", first byte p99", ms(quantile(first, .99)), "ms")
		s.add(tc.name+", whole p50", ms(quantile(whole, .5)), "ms")
		s.add(tc.name+", gzip", float64(wire)/1000, "kB", "≤ 60 kB", "≤ 30 kB")
		n := calls(tb, c, mark)
		s.add(tc.name+", API calls", float64(n), "", "0", "0")
		if n > 0 {
			tb.Errorf("%d views of %s made %d calls to the API server", views, tc.path, n)
		}
	}
	l.settle(tb)
	bar := []string(nil)
	if nodes == 5000 {
		bar = []string{"≤ 200 MiB", "≤ 120 MiB"}
	}
	s.add("RSS", l.usage(tb).rss, "MiB", bar...)
	s.add("live heap", float64(l.innards(tb).Heap)/(1<<20), "MiB")
	l.profile(tb, fmt.Sprintf("pages-%d", nodes))
	s.done()
	l.stop()
}

// changesTo is the way of one change to a few viewers of each kind, beside one that does not read at all.
func changesTo(tb testing.TB, c *kubetest.Cluster, nodes, viewers, n int, rate float64) {
	tb.Helper()
	s := scoreOf(tb, fmt.Sprintf("%d nodes, %d viewers of each kind, %.0f changes/s", nodes, viewers, rate))
	l := serveLoad(tb, 3*viewers+1, c.Kubeconfig)
	l.synced(tb, 1, nodes)
	m := newMeasure(newChanges(n), nil)
	raw := rawWatch(tb, c, m)
	crowd := l.crowd(tb)
	html := always(l.page(tb, "/nodes?per_page=200"))
	kinds := []struct {
		name    string
		viewers []*viewer
	}{
		{"HTML", crowd.join(tb, viewers, habit{path: html})},
		{"HTML gzip", crowd.join(tb, viewers, habit{path: html, gzip: true})},
		{"JSON", crowd.join(tb, viewers, habit{path: always("/api/v1/nodes/events"), json: true})},
	}
	until(tb, "the JSON streams to have every node", time.Minute, func() bool {
		for _, v := range kinds[2].viewers {
			if v.messages.Load() < int64(nodes) {
				return false
			}
		}
		return true
	})
	l.settle(tb)
	for _, k := range kinds {
		look(m, k.viewers)
	}
	reading := crowd.viewers
	read := make(chan struct{})
	late := newMeasure(m.changes, nil)
	stalled := crowd.join(tb, 1, habit{path: always("/api/v1/nodes/events"), json: true, held: read})
	look(late, stalled)
	names := nodeNames(tb, c)
	mark := c.AuditLog(tb).Mark()
	before := make([]traffic, len(kinds))
	for i, k := range kinds {
		before[i] = trafficOf(k.viewers)
	}
	stop := l.cpuProfile(tb, fmt.Sprintf("changes-%d", nodes))
	spent := l.meter(tb, reading, func() {
		// Only nodes of the first page: those are the rows that an open page shows.
		m.trickle(tb, c.Client(), names[:min(len(names), 150)], rate)
		m.wait(tb, time.Minute)
	})
	stop()
	rawTimes(s, raw)
	for i, k := range kinds {
		versus(s, k.name, raw, k.viewers, "≤ 1.5×")
		trafficOf(k.viewers).since(before[i]).sizes(s, k.name, seen(k.viewers), map[bool]string{true: "≤ 400 B"}[k.name == "HTML gzip"])
	}
	s.add("streams that came compressed", float64(crowd.encodings.Load()), "")
	s.add("streams opened again", float64(crowd.connects.Load()-int64(len(crowd.viewers))), "")
	spent.load(s)
	close(read)
	s.add("one that had not read, from its first read to the newest state", ms(late.wait(tb, time.Minute)), "ms")
	if got := calls(tb, c, mark); got > 0 {
		tb.Errorf("%d changes shown made %d calls to the API server", n, got)
	}
	in := l.innards(tb)
	s.add("goroutines per stream", float64(in.Goroutines)/float64(len(crowd.viewers)), "")
	l.profile(tb, fmt.Sprintf("changes-%d", nodes))
	s.done()
	crowd.leave()
	l.stop()
}

// crowded is many viewers: some slow, some restless, on one view or on many.
func crowded(tb testing.TB, c *kubetest.Cluster, nodes, viewers, views, n int, rate float64, odd bool) {
	tb.Helper()
	name := fmt.Sprintf("%d nodes, %d viewers of %d views, %.0f changes/s", nodes, viewers, views, rate)
	if odd {
		name += ", a tenth slow, a tenth reconnecting"
	}
	s := scoreOf(tb, name)
	l := serveLoad(tb, viewers, c.Kubeconfig)
	l.synced(tb, 1, nodes)
	paths := make([]string, views)
	for i := range paths {
		// Queries that differ and find every node all the same.
		paths[i] = l.page(tb, fmt.Sprintf("/nodes?per_page=50&q=-nosuchnode%d", i))
	}
	path := func(i int) string { return paths[i%views] }
	m := newMeasure(newChanges(n), nil)
	raw := rawWatch(tb, c, m)
	crowd := l.crowd(tb)
	tenth := 0
	if odd {
		tenth = viewers / 10
	}
	steady := crowd.join(tb, viewers-2*tenth, habit{path: path})
	slow := crowd.join(tb, tenth, habit{path: path, slow: true})
	restive := crowd.join(tb, tenth, habit{path: path, restive: true})
	l.settle(tb)
	look(m, crowd.viewers)
	names := nodeNames(tb, c)
	l.resetPeak(tb)
	before := crowd.connects.Load()
	stop := l.cpuProfile(tb, fmt.Sprintf("crowd-%d-%d", viewers, views))
	var settled time.Duration
	spent := l.meter(tb, steady, func() {
		m.trickle(tb, c.Client(), names[:min(len(names), 40)], rate)
		settled = m.wait(tb, 2*time.Minute)
	})
	stop()
	rawTimes(s, raw)
	versus(s, "HTML", raw, steady, "≤ 3×")
	spent.traffic.sizes(s, "HTML", seen(steady), "")
	if odd {
		s.add("slow viewers: changes that arrived one by one", 100*float64(seen(slow))/float64(max(1, n*len(slow))), "%")
		s.add("everybody has the newest state after the last change", ms(settled), "ms")
		s.add("reconnects", float64(crowd.connects.Load()-before), "")
		s.add("reconnecting viewers", float64(len(restive)), "")
	}
	s.add("answers 429", float64(crowd.limited.Load()), "", "0")
	s.add("answers 503 while all came at once", float64(crowd.refused.Load()), "")
	spent.load(s)
	s.add("RSS peak", l.usage(tb).peak, "MiB")
	in := l.innards(tb)
	s.add("live heap", float64(in.Heap)/(1<<20), "MiB")
	l.profile(tb, fmt.Sprintf("crowd-%d-%d", viewers, views))
	s.done()
	crowd.leave()
	l.stop()
}

// held opens many streams that have nothing to say, then changes something, ends the program, starts it again and
// waits for everybody.
func held(tb testing.TB, c *kubetest.Cluster, nodes, streams, n int) {
	tb.Helper()
	s := scoreOf(tb, fmt.Sprintf("%d idle streams, %d nodes", streams, nodes))
	needFiles(tb, streams)
	l := serveLoad(tb, streams, c.Kubeconfig)
	l.synced(tb, 1, nodes)
	path := always(l.page(tb, "/nodes?per_page=50"))
	l.settle(tb)
	empty, bare := l.usage(tb), l.innards(tb)

	crowd := l.crowd(tb)
	began := time.Now()
	crowd.join(tb, streams, habit{path: path})
	s.add("all open after", time.Since(began).Seconds(), "s")
	l.settle(tb)
	full, in := l.usage(tb), l.innards(tb)
	var bars []string
	if streams == 5000 {
		bars = []string{"≤ 1,024 MiB"}
	}
	if streams == 10000 {
		bars = []string{"", "≤ 1,024 MiB"}
	}
	s.add("RSS", full.rss, "MiB", bars...)
	per := func(after, before float64) float64 { return (after - before) / float64(streams) }
	s.add("RSS per stream", 1024*per(full.rss, empty.rss), "KiB")
	s.add("live heap per stream", per(float64(in.Heap), float64(bare.Heap))/1024, "KiB")
	s.add("stack per stream", per(float64(in.Stack), float64(bare.Stack))/1024, "KiB")
	s.add("goroutines per stream", per(float64(in.Goroutines), float64(bare.Goroutines)), "")
	l.profile(tb, fmt.Sprintf("idle-%d", streams))

	m := newMeasure(newChanges(n), nil)
	raw := rawWatch(tb, c, m)
	look(m, crowd.viewers)
	names := nodeNames(tb, c)
	stop := l.cpuProfile(tb, fmt.Sprintf("idle-%d", streams))
	spent := l.meter(tb, crowd.viewers, func() {
		m.trickle(tb, c.Client(), names[:min(len(names), 40)], 1)
		m.wait(tb, 2*time.Minute)
	})
	stop()
	rawTimes(s, raw)
	versus(s, "one change a second, HTML", raw, crowd.viewers, "")
	spent.load(s)

	bars = nil
	if streams == 1000 {
		bars = []string{"≤ 25 s", "≤ 5 s"}
	}
	began = time.Now()
	l.stop()
	s.add("SIGTERM to exit", time.Since(began).Seconds(), "s", bars...)
	back(tb, s, l, crowd, streams)
	s.done()
	crowd.leave()
	l.stop()
}

// back starts the program again, with everybody coming back to it, and looks at pages meanwhile.
func back(tb testing.TB, s score, l *loaded, crowd *crowd, streams int) {
	tb.Helper()
	limited, refused, reset := crowd.limited.Load(), crowd.refused.Load(), crowd.reset.Load()
	down := time.Now()
	l.start()
	began := time.Now()
	var views []time.Duration
	var failed int
	ctx, cancel := context.WithCancel(tb.Context())
	defer cancel()
	var looking sync.WaitGroup
	looking.Go(func() { views, failed = lookAround(ctx, l) })
	until(tb, "everybody to be back", 3*time.Minute, func() bool { return crowd.fresh.Load() >= int64(streams) })
	all := time.Since(began)
	cancel()
	looking.Wait()
	goal := ""
	if streams == 10000 {
		goal = "≤ 60 s"
	}
	s.add("restart to ready", began.Sub(down).Seconds(), "s")
	s.add("everybody back after", all.Seconds(), "s", "", goal)
	s.add("pages meanwhile p50", ms(quantile(views, .5)), "ms")
	s.add("pages meanwhile p99", ms(quantile(views, .99)), "ms", "≤ 2,000 ms")
	s.add("pages meanwhile", float64(len(views)), "")
	s.add("pages meanwhile that failed", float64(failed), "", "0")
	s.add("answers 429", float64(crowd.limited.Load()-limited), "")
	s.add("answers 503", float64(crowd.refused.Load()-refused), "")
	s.add("connections without an answer", float64(crowd.reset.Load()-reset), "")
	u := l.usage(tb)
	s.add("RSS peak of the return", u.peak, "MiB")
	l.settle(tb)
	s.add("RSS after the return", l.usage(tb).rss, "MiB")
	l.profile(tb, fmt.Sprintf("back-%d", streams))
}

// lookAround opens pages, ten a second whether the last one is here or not, until told to stop, and returns how long
// each took and how many failed.
func lookAround(ctx context.Context, l *loaded) (took []time.Duration, failed int) {
	const patience = 30 * time.Second
	look := func() (time.Duration, error) {
		began := time.Now()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.url+"/nodes?per_page=50", nil)
		if err != nil {
			return 0, err
		}
		req.Header.Set("Authorization", "Bearer "+l.tokens[len(l.tokens)-1])
		resp, err := noRedirect.Do(req)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		if _, err = io.Copy(io.Discard, resp.Body); err == nil && resp.StatusCode != http.StatusOK {
			err = errors.New(resp.Status)
		}
		return time.Since(began), err
	}
	var mu sync.Mutex // guards took, failed
	var open sync.WaitGroup
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		open.Go(func() {
			d, err := look()
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed++
				return
			}
			took = append(took, d)
		})
		select {
		case <-tick.C:
		case <-ctx.Done():
			open.Wait()
			return took, failed
		}
	}
}

// whole is a fleet of many clusters, all of them contexts of one API server.
func whole(tb testing.TB, c *kubetest.Cluster, nodes, clusters int) {
	tb.Helper()
	all := nodes * clusters
	s := scoreOf(tb, fmt.Sprintf("%d clusters × %d nodes", clusters, nodes))
	began := time.Now()
	l := serveLoad(tb, 1, sameServer(tb, c, clusters))
	s.add("ready", l.ready.Seconds(), "s")
	began = began.Add(time.Since(began) - l.ready) // people are not part of it
	s.add("all clusters live", l.synced(tb, clusters, all).Sub(began).Seconds(), "s")
	l.settle(tb)
	s.add("RSS after the first lists", l.usage(tb).rss, "MiB")
	var took []time.Duration
	for range 50 {
		began := time.Now()
		l.page(tb, "/nodes?per_page=50")
		took = append(took, time.Since(began))
	}
	s.add("list of 50, whole p50", ms(quantile(took, .5)), "ms")
	l.settle(tb)
	var bars []string
	if all == 20000 {
		bars = []string{"≤ 600 MiB", "≤ 400 MiB"}
	}
	s.add("RSS", l.usage(tb).rss, "MiB", bars...)
	s.add("RSS peak", l.usage(tb).peak, "MiB")
	in := l.innards(tb)
	s.add("live heap per node", float64(in.Heap)/float64(all)/1024, "KiB")
	l.profile(tb, fmt.Sprintf("fleet-%d", all))
	s.done()
	l.stop()
}

// down starts the program while every cluster is down.
func down(tb testing.TB, clusters int) {
	tb.Helper()
	s := scoreOf(tb, fmt.Sprintf("%d clusters, all down", clusters))
	l := serveLoad(tb, 1, noServers(tb, clusters))
	s.add("ready", l.ready.Seconds(), "s", "≤ 5 s", "≤ 2 s")
	began := time.Now()
	l.page(tb, "/nodes")
	s.add("first page", ms(time.Since(began)), "ms")
	l.settle(tb)
	s.add("RSS", l.usage(tb).rss, "MiB")
	s.add("RSS without the program's file", l.usage(tb).anon, "MiB")
	s.done()
	l.stop()
}

// burst changes every node as fast as the API server takes it.
func burst(tb testing.TB, c *kubetest.Cluster, nodes, viewers int) {
	tb.Helper()
	s := scoreOf(tb, fmt.Sprintf("burst of %d changes, %d viewers", nodes, viewers))
	l := serveLoad(tb, viewers, c.Kubeconfig)
	l.synced(tb, 1, nodes)
	names := nodeNames(tb, c)
	const shown = 200
	ch := newChanges(nodes)
	crowd := l.crowd(tb)
	eyes := newMeasure(ch, func(i int) bool { return i < shown })
	programs := newMeasure(ch, func(int) bool { return true })
	watch := newMeasure(ch, func(int) bool { return true })
	raw := rawWatch(tb, c, watch)
	path := always(l.page(tb, fmt.Sprintf("/nodes?per_page=%d", shown)))
	html := crowd.join(tb, viewers-viewers/2, habit{path: path})
	json := crowd.join(tb, viewers/2, habit{path: always("/api/v1/nodes/events"), json: true})
	until(tb, "the JSON streams to have every node", 2*time.Minute, func() bool {
		return !slices.ContainsFunc(json, func(v *viewer) bool { return v.messages.Load() < int64(nodes) })
	})
	l.settle(tb)
	look(eyes, html)
	look(programs, json)
	l.resetPeak(tb)
	stop := l.cpuProfile(tb, fmt.Sprintf("burst-%d", nodes))
	var took time.Duration
	var last time.Time
	spent := l.meter(tb, crowd.viewers, func() {
		began := time.Now()
		sweep(tb, c, ch, names)
		last = time.Now()
		took = last.Sub(began)
		watch.wait(tb, 2*time.Minute)
		eyes.wait(tb, 2*time.Minute)
		programs.wait(tb, 2*time.Minute)
	})
	stop()
	slowest := func(vs []*viewer) time.Duration {
		v := slices.MaxFunc(vs, func(a, b *viewer) int {
			return cmp.Compare(a.arrivals.Load().last.Load(), b.arrivals.Load().last.Load())
		})
		return max(0, time.Unix(0, v.arrivals.Load().last.Load()).Sub(last))
	}
	s.add("API server takes", float64(nodes)/took.Seconds(), "changes/s")
	s.add("raw watch has all, after the last answer", ms(max(0, time.Unix(0, raw.last.Load()).Sub(last))), "ms")
	s.add("slowest HTML viewer has all", ms(slowest(html)), "ms")
	s.add("slowest JSON viewer has all", ms(slowest(json)), "ms")
	var pages int64
	for _, v := range html {
		pages += v.messages.Load()
	}
	s.add("messages per HTML viewer", float64(pages)/float64(len(html)), "")
	s.add("per viewer, plain", float64(spent.traffic.plain)/float64(viewers)/1e6, "MB")
	s.add("per viewer, on the wire", float64(spent.traffic.wire)/float64(viewers)/1e6, "MB")
	spent.load(s)
	s.add("RSS peak", l.usage(tb).peak, "MiB")
	s.add("streams opened again", float64(crowd.connects.Load()-int64(viewers)), "")
	s.done()
	crowd.leave()
	l.stop()
}

// batches changes every node by a batch, beside a bare loop of patches with the same parallelism.
func batches(tb testing.TB, c *kubetest.Cluster, nodes, parallel int) {
	tb.Helper()
	oneBatch(tb, c, nodes, parallel, "cordon", nil, `{"spec":{"unschedulable":true}}`, `{"spec":{"unschedulable":null}}`)
	oneBatch(tb, c, nodes, parallel, "labels", map[string]any{"labels": "example.com/wave=7"},
		`{"metadata":{"labels":{"example.com/wave":"7"}}}`, `{"metadata":{"labels":{"example.com/wave":null}}}`)
}

// oneBatch is an action with its fields, and the patches that do the same and undo it.
func oneBatch(tb testing.TB, c *kubetest.Cluster, nodes, parallel int, action string, fields map[string]any, do, undo string) {
	tb.Helper()
	s := scoreOf(tb, fmt.Sprintf("%s of %d nodes by a batch, %d at a time", action, nodes, parallel))
	l := serveLoad(tb, 1, c.Kubeconfig)
	l.synced(tb, 1, nodes)
	names := nodeNames(tb, c)
	who := l.as(tb)
	refs := make([]string, len(names))
	for i, n := range names {
		refs[i] = c.Name + "/" + n
	}
	patch := func(body string) time.Duration {
		began := time.Now()
		each(tb, parallel, names, func(ctx context.Context, _ int, node string) error {
			_, err := c.Client().CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, []byte(body), metav1.PatchOptions{})
			return err
		})
		return time.Since(began)
	}
	bare := patch(do)
	patch(undo)
	l.synced(tb, 1, nodes)
	asked := map[string]any{"action": action, "nodes": strings.Join(refs, "\n"), "reason": "bench", "max_concurrent": parallel}
	maps.Copy(asked, fields)
	body, err := json.Marshal(asked)
	if err != nil {
		tb.Fatal(err)
	}
	var b batch
	var ours time.Duration
	stop := l.cpuProfile(tb, fmt.Sprintf("batch-%s-%d", action, nodes))
	spent := l.meter(tb, nil, func() {
		began := time.Now()
		who.json(http.StatusAccepted, &b, "POST", "/api/v1/batches", string(body))
		b = ended(tb, who, b.ID)
		ours = time.Since(began)
	})
	stop()
	if b.Counts.Succeeded != nodes {
		tb.Errorf("%s, want %d to succeed", b, nodes)
	}
	patch(undo)
	s.add("bare loop", float64(nodes)/bare.Seconds(), "nodes/s")
	s.add("batch", float64(nodes)/ours.Seconds(), "nodes/s")
	spent.load(s)
	s.add("batch against the bare loop", 100*bare.Seconds()/ours.Seconds(), "%", "≥ 80 %", "≥ 95 %")
	s.done()
	l.stop()
}

// ended follows a batch's progress until it is done, for as long as that takes on a slow machine.
func ended(tb testing.TB, who *client, id string) (b batch) {
	tb.Helper()
	st := who.stream("GET", "/api/v1/batches/"+id+"/events", "")
	timeout := time.After(5 * time.Minute)
	for {
		select {
		case e, ok := <-st.events:
			switch {
			case !ok:
				tb.Fatal("the progress of the batch ended before the batch did")
			case e.Name == "done":
				if err := json.Unmarshal([]byte(e.Data), &b); err != nil {
					tb.Fatal(err)
				}
				return b
			}
		case <-timeout:
			tb.Fatal("the batch is not done after five minutes")
		}
	}
}

// sweep makes change i on node i, as many at a time as the API server takes well.
func sweep(tb testing.TB, c *kubetest.Cluster, ch *changes, names []string) {
	tb.Helper()
	each(tb, 16, names, func(ctx context.Context, i int, node string) error { return ch.send(ctx, c.Client(), node, i) })
}

// each does something to every node, so many at a time.
func each(tb testing.TB, parallel int, names []string, do func(ctx context.Context, i int, node string) error) {
	tb.Helper()
	g, ctx := errgroup.WithContext(tb.Context())
	g.SetLimit(parallel)
	for i, name := range names {
		g.Go(func() error { return do(ctx, i, name) })
	}
	if err := g.Wait(); err != nil {
		tb.Fatal(err)
	}
}
