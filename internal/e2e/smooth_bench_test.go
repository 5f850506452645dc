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
)

// mainThread is the time in seconds that the page's main thread has worked.
func (tb *tab) mainThread() float64 {
	tb.t.Helper()
	ctx, cancel := context.WithTimeout(tb.ctx, patience)
	defer cancel()
	var busy float64
	err := chromedp.Do(ctx, chromedp.Func(func(ctx context.Context, tg *chromedp.Target) error {
		got, err := cdp.Call(ctx, tg, performance.GetMetrics, cdp.Empty{})
		if err != nil {
			return err
		}
		for _, m := range got.Metrics {
			if m.Name == "TaskDuration" {
				busy = m.Value
			}
		}
		return nil
	}))
	if err != nil {
		tb.t.Fatalf("reading the page's work: %v", err)
	}
	return busy
}

// watchWork notes in the page how long it was deaf, and how long it took to show what an input did. How long one task
// took is seen from the outside: a message to itself comes when the task that is running ends. Tasks of more than 50 ms
// the browser reports by itself.
const watchWork = `(() => {
	const w = window.work = {blocked: [], long: [], inputs: [], rows: 0};
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
	const rows, perSecond, seconds = 200, 50, 10
	c, s, who := fleetOf(b, rows)
	var list struct{ Items []struct{ Name string } }
	who.json(200, &list, "GET", "/api/v1/nodes", "")
	eve := s.signIn(b, "eve", "operator")
	eve.visit("/nodes?per_page=200")
	eve.wait("200 rows, live", isLive+fmt.Sprintf(` && document.querySelectorAll('#rows tr').length === %d`, rows))
	eve.do("counting its work", chromedp.Func(func(ctx context.Context, tg *chromedp.Target) error {
		_, err := cdp.Call(ctx, tg, performance.Enable, performance.EnableParams{})
		return err
	}))
	for b.Loop() {
		eval[bool](eve, watchWork)
		ctx, cancel := context.WithTimeout(b.Context(), seconds*time.Second)
		var wg sync.WaitGroup
		var changed atomic.Int64
		turns := make(chan int)
		for range 4 {
			wg.Go(func() {
				for i := range turns {
					patch := fmt.Appendf(nil, `{"metadata":{"labels":{"topology.kubernetes.io/zone":"zone-%d"}}}`, i)
					_, err := c.Client().CoreV1().Nodes().Patch(b.Context(), list.Items[i%len(list.Items)].Name, types.MergePatchType, patch, metav1.PatchOptions{})
					if err != nil {
						b.Error(err)
						return
					}
					changed.Add(1)
				}
			})
		}
		wg.Go(func() {
			defer close(turns)
			tick := time.NewTicker(time.Second / perSecond)
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
		before, began := eve.mainThread(), time.Now()
		for i := 0; ctx.Err() == nil; i++ {
			eve.do("typing", chromedp.SendKeys("#q", string(rune('a'+i%26))))
			eve.click(fmt.Sprintf("#rows tr:nth-child(%d) .c-sel input", 1+i%10))
		}
		took := time.Since(began).Seconds()
		busy := eve.mainThread() - before
		cancel()
		wg.Wait()
		type work struct {
			Blocked, Long, Inputs []float64
			Rows                  int
		}
		w := eval[work](eve, `window.work`)
		b.ReportMetric(float64(changed.Load())/took, "changes/s")
		b.ReportMetric(float64(w.Rows)/took, "messages/s")
		b.ReportMetric(busy*1000/took, "main-ms/s")
		b.ReportMetric(float64(len(w.Long)), "long-tasks")
		b.ReportMetric(quantile(millis(w.Long), 1).Seconds()*1000, "ms-longest")
		b.ReportMetric(quantile(millis(w.Blocked), .95).Seconds()*1000, "ms-message-to-frame-p95")
		b.ReportMetric(quantile(millis(w.Inputs), .95).Seconds()*1000, "ms-input-to-frame-p95")
		b.ReportMetric(float64(len(w.Inputs)), "inputs-over-16ms")
	}
	b.ReportMetric(0, "ns/op")
}

func millis(all []float64) []time.Duration {
	out := make([]time.Duration, len(all))
	for i, ms := range all {
		out[i] = time.Duration(ms * float64(time.Millisecond))
	}
	return out
}
