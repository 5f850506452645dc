package e2e

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/performance"
	"github.com/chromedp/chromedp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// mainThread is what the page's main thread has spent so far, in seconds: ThreadTime is processor time, which other work
// on the machine does not make longer; the parts are by the clock.
func (tb *tab) mainThread() map[string]float64 {
	tb.t.Helper()
	ctx, cancel := context.WithTimeout(tb.ctx, patience)
	defer cancel()
	spent := map[string]float64{}
	err := chromedp.Do(ctx, chromedp.Func(func(ctx context.Context, tg *chromedp.Target) error {
		got, err := cdp.Call(ctx, tg, performance.GetMetrics, cdp.Empty{})
		if err != nil {
			return err
		}
		for _, m := range got.Metrics {
			spent[m.Name] = m.Value
		}
		return nil
	}))
	if err != nil {
		tb.t.Fatal(err)
	}
	return spent
}

// watchWork notes in the page how long it was deaf, and how long it took to show what an input did. How long one task
// took is seen from the outside: a message to itself comes when the task that is running ends. Tasks of more than 50 ms
// the browser reports by itself.
const watchWork = `(() => {
	const w = window.work = {blocked: [], long: [], inputs: [], rows: 0, heard: 0};
	for (const name of ['input', 'click']) addEventListener(name, () => { w.heard++; }, true);
	new PerformanceObserver(l => l.getEntries().forEach(e => w.long.push(e.duration))).observe({type: 'longtask'});
	new PerformanceObserver(l => l.getEntries().forEach(e => { if (e.interactionId || e.name === 'input') w.inputs.push(e.duration); }))
		.observe({type: 'event', durationThreshold: 16});
	let began = 0, first = 0;
	document.addEventListener('htmx:sse:before:message', () => { began = performance.now(); });
	document.addEventListener('htmx:sse:after:message', () => {
		w.rows++;
		const at = began;
		requestAnimationFrame(() => setTimeout(() => w.blocked.push(performance.now() - at)));
	});
	return true;
})()`

// BenchmarkBrowser is a page of 200 rows while 50 nodes a second change, and a person types into the filter and ticks
// boxes: how much of the main thread that takes, and whether anything can be felt.
func BenchmarkBrowser(b *testing.B) {
	const rows = 200
	c := control(b, rows)
	s := startServer(b, c.Kubeconfig)
	who := s.client(b, "ada", "operator")
	st := who.stream("GET", "/api/v1/nodes/events", "")
	for range rows {
		st.until("a node", func(e event) bool { return e.Name == "node_add" })
	}
	st.stop()
	var list struct{ Items []struct{ Name string } }
	who.json(200, &list, "GET", "/api/v1/nodes", "")
	eve := s.signIn(b, "eve", "operator")
	eve.do("counting its work", chromedp.Func(func(ctx context.Context, tg *chromedp.Target) error {
		_, err := cdp.Call(ctx, tg, performance.Enable, performance.EnableParams{})
		return err
	}))
	fast := c.REST()
	fast.QPS = -1 // as many as there are
	client, err := kubernetes.NewForConfig(fast)
	if err != nil {
		b.Fatal(err)
	}
	for _, perSecond := range []int{0, 50} {
		b.Run(fmt.Sprintf("%d-changes", perSecond), func(b *testing.B) {
			eve.t = b
			for b.Loop() {
				smoothness(b, eve, client, list.Items, perSecond)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
	eve.t = b
}

// smoothness lets a person work in the page for ten seconds: eight keys or clicks a second.
func smoothness(b *testing.B, eve *tab, client kubernetes.Interface, nodes []struct{ Name string }, perSecond int) {
	b.Helper()
	eve.visit("/nodes?per_page=200")
	eve.wait("200 rows, live", isLive+fmt.Sprintf(` && document.querySelectorAll('#rows tr').length === %d`, len(nodes)))
	eval[bool](eve, watchWork)
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	var changed atomic.Int64
	turns := make(chan int)
	for range 4 {
		wg.Go(func() {
			for i := range turns {
				patch := fmt.Appendf(nil, `{"metadata":{"labels":{"topology.kubernetes.io/zone":"zone-%d"}}}`, i)
				_, err := client.CoreV1().Nodes().Patch(b.Context(), nodes[i%len(nodes)].Name, types.MergePatchType, patch, metav1.PatchOptions{})
				if err != nil {
					b.Error(err)
				}
				changed.Add(1)
			}
		})
	}
	wg.Go(func() {
		defer close(turns)
		if perSecond == 0 {
			return
		}
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			select {
			case turns <- i:
			case <-ctx.Done():
				return
			}
		}
	})
	hand := time.NewTicker(time.Second / 8)
	defer hand.Stop()
	before, began := eve.mainThread(), time.Now()
	for i := 0; ctx.Err() == nil; i++ {
		<-hand.C
		if i%2 == 0 {
			eve.do("typing", chromedp.SendKeys("#q", string(rune('a'+i%26))))
		} else {
			eve.click(fmt.Sprintf("#rows tr:nth-child(%d) .c-sel input", 1+i/2%10))
		}
	}
	took := time.Since(began).Seconds()
	after := eve.mainThread()
	wg.Wait()
	type work struct {
		Blocked, Long, Inputs []float64
		Rows                  int
		Heard                 int
	}
	w := eval[work](eve, `window.work`)
	report := func(all []float64, q float64, unit string) { b.ReportMetric(ms(quantile(millis(all), q)), unit) }
	b.ReportMetric(float64(changed.Load())/took, "changes/s")
	b.ReportMetric(float64(w.Rows)/took, "messages/s")
	for name, unit := range map[string]string{
		"ThreadTime": "main-cpu-ms/s", "ScriptDuration": "script-ms/s", "RecalcStyleDuration": "style-ms/s", "LayoutDuration": "layout-ms/s",
	} {
		b.ReportMetric((after[name]-before[name])*1000/took, unit)
	}
	// A message or an input is one task at least; those that the browser does not report took less than 50 ms. So the
	// 95th percentile is below that while fewer than one in twenty are reported.
	b.ReportMetric(float64(len(w.Long)), "long-tasks")
	b.ReportMetric(100*float64(len(w.Long))/float64(w.Rows+w.Heard), "long-tasks-%-of-messages+inputs")
	report(w.Long, 1, "ms-longest-task")
	report(w.Blocked, .95, "ms-message-to-frame-p95")
	report(w.Inputs, .95, "ms-input-to-frame-p95")
}

func millis(all []float64) []time.Duration {
	out := make([]time.Duration, len(all))
	for i, ms := range all {
		out[i] = time.Duration(ms * float64(time.Millisecond))
	}
	return out
}
