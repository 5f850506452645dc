package views

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/static"
)

// The scripts are tested in Chromium, with the real htmx, under the real content security policy, against a server whose
// every word the test chooses.

// patience bounds waits that normally end in milliseconds.
const patience = 20 * time.Second

const policy = "default-src 'none'; script-src 'nonce-%s'; style-src 'self'; font-src 'self'; connect-src 'self'; img-src 'self' data:; " +
	"base-uri 'none'; object-src 'none'; frame-ancestors 'none'; form-action 'self'; require-trusted-types-for 'script'; trusted-types htmx"

var chromium = sync.OnceValues(func() (context.Context, error) {
	opts := []chromedp.ExecAllocatorOption{
		chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck,
		chromedp.WindowSize(1280, 900), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true),
	}
	if path := os.Getenv("KNM_TEST_BROWSER"); path != "" {
		opts = append(opts, chromedp.ExecPath(path))
	}
	alloc, cancelAlloc := chromedp.NewExecAllocator(context.Background(), opts...)
	ctx, cancel := chromedp.NewContext(alloc)
	closeBrowser = func() { cancel(); cancelAlloc() }
	return ctx, chromedp.Do(ctx)
})

var closeBrowser = func() {}

func TestMain(m *testing.M) {
	defer func() { closeBrowser() }()
	m.Run()
}

// conn is one stream that the page holds open.
type conn struct {
	lastID string
	send   chan string   // whole messages
	cut    chan struct{} // closed by the test: the connection breaks
}

// say sends one message and fails the test if the page does not take it.
func (c *conn) say(t *testing.T, format string, args ...any) {
	t.Helper()
	select {
	case c.send <- fmt.Sprintf(format, args...) + "\n\n":
	case <-time.After(patience):
		t.Fatal("the page does not read its stream")
	}
}

// stage is a server with one page of nodes.
type stage struct {
	url      string
	conns    chan *conn
	follow   chan *conn // streams of a batch's address
	posts    chan url.Values
	podReads chan int                                     // how often the pods of a node of a batch were read
	answer   func(w http.ResponseWriter, r *http.Request) // to a batch
	quit     chan struct{}

	mu       sync.Mutex
	nodes    []*fleet.Node
	refusals []int  // statuses for the next attempts to open the stream
	after    string // Retry-After of refusals
	attempts int
	asked    []time.Time // when each attempt came
	reads    int         // of the pods
	visits   int         // of the node page
	deleted  bool
}

// refuses answers an attempt to open a stream if it is to be refused.
func (s *stage) refuses(w http.ResponseWriter) bool {
	s.mu.Lock()
	status, after := 0, s.after
	if len(s.refusals) > 0 {
		status, s.refusals = s.refusals[0], s.refusals[1:]
	}
	s.mu.Unlock()
	if status == 0 {
		return false
	}
	if after != "" {
		w.Header().Set("Retry-After", after)
	}
	http.Error(w, "no", status)
	return true
}

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{conns: make(chan *conn, 16), follow: make(chan *conn, 16), posts: make(chan url.Values, 16), podReads: make(chan int, 16), quit: make(chan struct{})}
	for i := range 8 {
		n := sampleNode(plainly)
		n.Ref.Name, n.Schedulable, n.Cordon, n.Taints = fmt.Sprintf("n-%d", i), true, nil, nil
		s.nodes = append(s.nodes, n)
	}
	mux := http.NewServeMux()
	mux.Handle(static.Prefix, static.Handler())
	mux.HandleFunc("GET /nodes", s.page)
	mux.HandleFunc("GET /clusters/{cluster}/nodes/{node}", s.nodePage)
	mux.HandleFunc("GET /pods", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.reads++
		list := fleet.PodList{Read: noon, Pods: slices.Repeat([]fleet.Pod{{Namespace: "x", Name: "p", Phase: "Running", Created: noon}}, s.reads)}
		s.mu.Unlock()
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		if err := Pods(PodsFragment{Lang: "en", List: list, Now: noon}).Render(r.Context(), w); err != nil {
			panic(http.ErrAbortHandler)
		}
	})
	mux.HandleFunc("GET /nodes/stream", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.attempts++
		s.asked = append(s.asked, time.Now())
		s.mu.Unlock()
		if !s.refuses(w) {
			s.stream(w, r, s.conns)
		}
	})
	mux.HandleFunc("POST /api/v1/batches", func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.posts <- r.PostForm
		s.answer(w, r)
	})
	mux.HandleFunc("POST /plan", s.plan)
	mux.HandleFunc("GET /batches/{id}", s.batch)
	mux.HandleFunc("POST /batches/{id}/skip", func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.posts <- r.PostForm
		w.WriteHeader(http.StatusAccepted)
	})
	mux.HandleFunc("GET /batches/{id}/items/3/pods", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.reads++
		n := s.reads
		s.mu.Unlock()
		it := sampleDrainItems(plainly)[3]
		if n > 1 {
			it.Drain.Pods = it.Drain.Pods[:8]
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		if err := ItemPodsView("en", it).Render(r.Context(), w); err != nil {
			panic(http.ErrAbortHandler)
		}
		s.podReads <- n
	})
	mux.HandleFunc("GET /api/v1/batches/{id}/events", func(w http.ResponseWriter, r *http.Request) {
		if !s.refuses(w) {
			s.stream(w, r, s.follow)
		}
	})
	mux.HandleFunc("GET /api/v1/nodes/refs", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"refs":["prod-eu/n-0","prod-eu/n-1","lab/far-1","lab/far-2"],"total":9000}`))
	})
	srv := httptest.NewServer(mux)
	s.url = srv.URL
	t.Cleanup(func() {
		close(s.quit)
		srv.Close()
	})
	return s
}

func (s *stage) stream(w http.ResponseWriter, r *http.Request, conns chan *conn) {
	c := &conn{lastID: r.Header.Get("Last-Event-ID"), send: make(chan string), cut: make(chan struct{})}
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	if rc.Flush() != nil {
		return
	}
	conns <- c
	for {
		select {
		case m := <-c.send:
			if _, err := w.Write([]byte(m)); err != nil || rc.Flush() != nil {
				return
			}
		case <-c.cut:
			panic(http.ErrAbortHandler)
		case <-r.Context().Done():
			return
		case <-s.quit:
			return
		}
	}
}

func (s *stage) page(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	const nonce = "abc123"
	w.Header().Set("Content-Security-Policy", fmt.Sprintf(policy, nonce))
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	var rows [][]byte
	for _, n := range s.nodes {
		rows = append(rows, Renderer{}.NodeRow(n, "en"))
	}
	err := Nodes(NodesPage{
		Layout: Layout{Lang: "en", Nav: "nodes", User: "ada", Role: fleet.RoleOperator, Caller: fleet.Caller{Role: fleet.RoleOperator}, Nonce: nonce, Path: "/nodes", Now: noon, Asset: static.Asset},
		Query:  Query{Page: 1, PerPage: 20, Pages: 450, Total: 9000, Q: r.URL.Query().Get("q")}, Rows: rows, Stream: "/nodes/stream?since=e.1", CanCordon: true, Key: "key-of-page",
		Clusters: []fleet.Cluster{sampleCluster(plainly, fleet.ClusterLive)}, Facets: Facets{Zones: []string{"a"}},
	}).Render(r.Context(), w)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
}

// nodePage is the page of the first node. Every answer has a nonce of its own, as the real ones have.
func (s *stage) nodePage(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.visits++
	nonce := fmt.Sprintf("nonce%d", s.visits)
	w.Header().Set("Content-Security-Policy", fmt.Sprintf(policy, nonce))
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if s.deleted {
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte("<!DOCTYPE html><html><body><h1>gone</h1></body></html>"))
		return
	}
	n := s.nodes[0]
	err := Node(NodePage{
		Layout: Layout{Lang: "en", Nav: "nodes", User: "ada", Role: fleet.RoleOperator, Caller: fleet.Caller{Role: fleet.RoleOperator}, Nonce: nonce, Path: r.URL.Path, Now: noon, Asset: static.Asset},
		Node:   n, Cluster: sampleCluster(plainly, fleet.ClusterLive), Row: Renderer{}.NodeRow(n, "en"), Stream: "/nodes/stream", PodsURL: "/pods", CanCordon: true,
		Key: "key" + nonce,
	}).Render(r.Context(), w)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
}

// row is the live row of the i-th node after a change.
func (s *stage) row(i int, change func(*fleet.Node)) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := *s.nodes[i]
	change(&n)
	s.nodes[i] = &n
	return string(OOB(Renderer{}.NodeRow(&n, "en"), "outerMorph"))
}

func (s *stage) ids(order ...int) string {
	ids := make([]string, len(order))
	for i, n := range order {
		ids[i] = NodeID(fleet.NodeRef{Cluster: "prod-eu", Name: fmt.Sprintf("n-%d", n)})
	}
	b, err := json.Marshal(ids)
	if err != nil {
		panic(err) // strings always marshal
	}
	return string(b)
}

func cordoned(n *fleet.Node) {
	n.Schedulable, n.Cordon = false, &fleet.Cordon{By: "bob", Since: noon}
}

func strangely(n *fleet.Node) {
	n.Schedulable, n.Cordon = false, &fleet.Cordon{With: "kubectl", Since: noon}
}

// tab is a browser window.
type tab struct {
	t   *testing.T
	ctx context.Context
}

func (s *stage) open(t *testing.T) *tab {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a browser")
	}
	browser, err := chromium()
	if err != nil {
		t.Fatalf("no browser: %v\nInstall Chromium, or name one with KNM_TEST_BROWSER.", err)
	}
	ctx, cancel := chromedp.NewContext(browser, chromedp.WithNewBrowserContext(), chromedp.WithNewWindow(true))
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	tb := &tab{t: t, ctx: ctx}
	console := chromedp.Console(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for m, err := range console {
			if err != nil {
				return
			}
			if text := m.String(); m.IsException() || strings.Contains(text, "Content Security Policy") || strings.Contains(text, "Trusted") || strings.Contains(text, "[hx-csp]") {
				t.Errorf("console: %s", text)
			}
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	tb.do(chromedp.Navigate(s.url + "/nodes"))
	return tb
}

func (tb *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	tb.t.Helper()
	ctx, cancel := context.WithTimeout(tb.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		tb.t.Fatal(err)
	}
}

func eval[T any](tb *tab, js string) T {
	tb.t.Helper()
	ctx, cancel := context.WithTimeout(tb.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](js, chromedp.EvalAwaitPromise))
	if err != nil {
		tb.t.Fatalf("%s: %v", js, err)
	}
	return v
}

// wait returns when the expression is true in the page, which looks for itself in every task.
func (tb *tab) wait(js string) {
	tb.t.Helper()
	ctx, cancel := context.WithTimeout(tb.ctx, patience)
	defer cancel()
	_, err := chromedp.Run(ctx, chromedp.Evaluate[bool](`new Promise(ok => { const look = () => { try { if (`+js+`) return ok(true) } catch {} setTimeout(look, 10) }; look() })`, chromedp.EvalAwaitPromise))
	if err != nil {
		tb.t.Fatalf("waiting for %s: %v\n%s", js, err, eval[string](tb, `document.body.innerText.slice(0, 1500)`))
	}
}

// press strikes a key as a keyboard does: the character comes only if the page lets the key be.
func (tb *tab) press(key, text string) {
	tb.t.Helper()
	tb.do(chromedp.Func(func(ctx context.Context, tg *chromedp.Target) error {
		down := input.DispatchKeyEventParams{Type: input.DispatchKeyEventTypeKeyDown, Key: key, Text: text}
		if text == "" {
			down.Type = input.DispatchKeyEventTypeRawKeyDown
		}
		up := input.DispatchKeyEventParams{Type: input.DispatchKeyEventTypeKeyUp, Key: key}
		for _, p := range []input.DispatchKeyEventParams{down, up} {
			if _, err := cdp.Call(ctx, tg, input.DispatchKeyEvent, p); err != nil {
				return err
			}
		}
		return nil
	}))
}

func (tb *tab) click(selector string) { tb.t.Helper(); tb.do(chromedp.Click(selector)) }

func (tb *tab) mouse(x, y float64) {
	tb.t.Helper()
	tb.do(chromedp.MouseEvent(input.DispatchMouseEventTypeMouseMoved, x, y))
}

// hover moves the mouse to the middle of an element.
func (tb *tab) hover(selector string) {
	tb.t.Helper()
	at := eval[[]float64](tb, `(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector('`+selector+`').getBoundingClientRect())`)
	tb.mouse(at[0], at[1])
}

// order is the names of the rows from top to bottom.
func (tb *tab) order() string {
	tb.t.Helper()
	return eval[string](tb, `[...document.querySelectorAll('#rows .open')].map(a => a.textContent.slice(2)).join('')`)
}

func next[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

func box(i int) string { return fmt.Sprintf(`[data-ref="prod-eu/n-%d"] .c-sel input`, i) }

const isLive = `document.querySelector('#live-state').dataset.uiState === 'live'`

// A first connect that fails, which htmx gives up on, is tried again; a cut stream resumes where it was; a refusal is
// final and offers to sign in.
func TestBrowser_StreamComesBack(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.refusals = []int{503, 503}
	tb := s.open(t)
	c := next(t, "stream", s.conns)
	tb.wait(isLive)
	c.say(t, "id: e.7\ndata: %s", s.row(0, cordoned))
	tb.wait(`document.querySelector('[data-ref="prod-eu/n-0"]').matches('.cordoned')`)

	close(c.cut)
	c = next(t, "stream after the cut", s.conns)
	if c.lastID != "e.7" {
		t.Errorf("resumed at %q, want e.7", c.lastID)
	}
	tb.wait(isLive)

	s.mu.Lock()
	s.refusals = []int{401, 401, 401, 401, 401}
	s.mu.Unlock()
	close(c.cut)
	tb.wait(`document.querySelector('#live-bar[role=alert] a').getAttribute('href') === '/login?next=%2Fnodes'`)
	tb.wait(`document.querySelector('#live-state').dataset.uiState === 'signedout'`)
	// A loop that went on would ask again within a second.
	s.mu.Lock()
	before := s.attempts
	s.mu.Unlock()
	eval[bool](tb, `new Promise(ok => setTimeout(() => ok(true), 2500))`)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.attempts != before {
		t.Errorf("asked %d times again after the refusal", s.attempts-before)
	}
}

// A server that is full says when to come back; nobody comes before that, and not all at the same moment after it.
func TestBrowser_ComesBackWhenTheServerWants(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.refusals, s.after = []int{429, 503}, "2"
	tb := s.open(t)
	next(t, "stream", s.conns)
	tb.wait(isLive)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range 2 {
		if waited := s.asked[i+1].Sub(s.asked[i]); waited < 1900*time.Millisecond { // timers of browsers may be a little early
			t.Errorf("refused for 2 s, it came back after %s", waited)
		}
	}
	spread := eval[[]float64](tb, `import(document.querySelector('script[src*="live."]').src).then(m =>
		[0, 1, 2, 5, 6, 7, 1000].flatMap(n => [m.backoff(n, () => 0), m.backoff(n, () => 1)]))`)
	if want := []float64{0, 500, 0, 1000, 0, 2000, 0, 16000, 0, 30000, 0, 30000, 0, 30000}; !slices.Equal(spread, want) {
		t.Errorf("waits are from and to %v, want %v", spread, want)
	}
}

// A page that is served briefly comes back when it is told to, where it was, and is live all the while.
func TestBrowser_BriefStreamsStayLive(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	tb := s.open(t)
	c := next(t, "stream", s.conns)
	tb.wait(isLive)
	eval[bool](tb, `(() => {
		window.states = [];
		const light = document.getElementById('live-state');
		new MutationObserver(() => window.states.push(light.dataset.uiState)).observe(light, {attributes: true, attributeFilter: ['data-ui-state']});
		return true;
	})()`)
	c.say(t, "id: e.8\ndata: %s", s.row(0, cordoned))
	c.say(t, "id: e.8\ndata: 300\nevent: poll")
	tb.wait(`document.querySelector('#live-state').title.includes('every few seconds')`)
	close(c.cut)
	c = next(t, "stream after the poll", s.conns)
	if c.lastID != "e.8" {
		t.Errorf("came back with %q, want e.8", c.lastID)
	}
	tb.wait(`document.querySelector('#live-state').title === ''`)
	for _, state := range eval[[]string](tb, `window.states`) {
		if state != "live" {
			t.Errorf("between two brief streams the page said %q", state)
		}
	}
}

// The server says good-bye: the page says why and does not come back.
func TestBrowser_Bye(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	tb := s.open(t)
	c := next(t, "stream", s.conns)
	tb.wait(isLive)
	c.say(t, "event: bye\ndata: logout")
	tb.wait(`document.querySelector('#live-bar a').textContent === 'Sign in again'`)
}

// The same person signs in again in another tab: this one goes on with the new session, which it may be early for, and
// nothing that it shows is lost. If no session comes it says so after all.
func TestBrowser_SessionReplaced(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	tb := s.open(t)
	c := next(t, "stream", s.conns)
	tb.wait(isLive)
	tb.click(box(0))
	s.mu.Lock()
	s.refusals = []int{http.StatusUnauthorized, http.StatusUnauthorized}
	s.mu.Unlock()
	c.say(t, "id: e.8\ndata: %s", s.row(0, cordoned))
	c.say(t, "id: e.9\nevent: bye\ndata: replaced")
	c = next(t, "stream of the new session", s.conns)
	if c.lastID != "e.9" {
		t.Errorf("it goes on after %q, want e.9", c.lastID)
	}
	tb.wait(isLive + ` && document.querySelector('#live-bar') === null && document.querySelector('#rows input:checked') !== null`)

	s.mu.Lock()
	s.refusals = slices.Repeat([]int{http.StatusUnauthorized}, 10)
	s.mu.Unlock()
	c.say(t, "event: bye\ndata: replaced")
	tb.wait(`document.querySelector('#live-bar a')?.textContent === 'Sign in again'`)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := 10 - len(s.refusals); n < 3 || n > 7 {
		t.Errorf("it asked %d times before it said so", n)
	}
}

// So does the answer to a form that is the progress of its batch.
func TestBrowser_BatchAnswerOfAReplacedSession(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	panel, replace := openPanel(t), make(chan struct{})
	s.answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for _, m := range []string{panel, batchMessage(2, false), "event: bye\ndata: replaced\n\n"} {
			if strings.HasPrefix(m, "event: bye") {
				<-replace
			}
			if _, err := w.Write([]byte(m)); err != nil {
				return
			}
			if http.NewResponseController(w).Flush() != nil {
				return
			}
		}
	}
	tb := s.open(t)
	next(t, "stream", s.conns)
	tb.wait(isLive)
	tb.click(box(0))
	tb.click(`button[value=cordon]`)
	next(t, "post", s.posts)
	tb.wait(`document.querySelectorAll('#items tr[data-state=succeeded]').length === 2`)
	s.mu.Lock()
	s.refusals = []int{http.StatusUnauthorized, http.StatusUnauthorized}
	s.mu.Unlock()
	close(replace)
	c := next(t, "stream of the batch", s.follow)
	c.say(t, "%sevent: done\ndata: x", batchMessage(5, true))
	tb.wait(`document.querySelector('#batch-progress').dataset.state === 'done'`)
}

// A new order waits while the pointer is over the table, and is applied by a click or when the pointer leaves.
func TestBrowser_OrderWaits(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	tb := s.open(t)
	c := next(t, "stream", s.conns)
	tb.wait(isLive)

	c.say(t, "event: order\ndata: %s", s.ids(7, 0, 1, 2, 3, 4, 5, 6))
	tb.wait(`document.querySelector('#rows .open').textContent === 'n-7'`)
	if got := tb.order(); got != "70123456" {
		t.Fatalf("order %s", got)
	}

	tb.hover(`[data-ref="prod-eu/n-3"] .c-status`)
	c.say(t, "event: order\ndata: %s", s.ids(0, 1, 2, 3, 4, 6, 5, 7))
	tb.wait(`!document.querySelector('#moved').hidden`)
	if got := tb.order(); got != "70123456" {
		t.Errorf("rows moved under the pointer: %s", got)
	}
	if got := eval[string](tb, `document.querySelector('#apply').textContent`); got != "2 nodes moved · apply" {
		t.Errorf("the button says %q", got)
	}
	eval[bool](tb, `document.querySelector('#apply').click(), true`)
	if got := tb.order(); got != "01234657" {
		t.Errorf("after apply: %s", got)
	}
	if !eval[bool](tb, `document.querySelector('#moved').hidden`) {
		t.Error("the offer stays after it was taken")
	}

	c.say(t, "event: order\ndata: %s", s.ids(0, 1, 2, 3, 4, 5, 6, 7))
	tb.wait(`!document.querySelector('#moved').hidden`)
	tb.mouse(5, 5)
	tb.wait(`document.querySelector('#moved').hidden`)
	if got := tb.order(); got != "01234567" {
		t.Errorf("after the pointer left: %s", got)
	}

	// An open menu holds the order back as well.
	tb.click(`details.menu summary`)
	c.say(t, "event: order\ndata: %s", s.ids(1, 0, 2, 3, 4, 5, 6, 7))
	tb.wait(`!document.querySelector('#moved').hidden`)
	tb.press("Escape", "")
	tb.wait(`document.querySelector('#moved').hidden || document.activeElement.matches('summary')`)
}

// What changed is marked, and only that; the ticking of times is not a change.
func TestBrowser_MarksWhatChanged(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	tb := s.open(t)
	c := next(t, "stream", s.conns)
	tb.wait(isLive)
	tb.wait(`document.querySelector('#rows time').textContent.endsWith('d')`) // the script has told the times
	c.say(t, "data: %s", s.row(2, cordoned))
	tb.wait(`document.querySelector('[data-ref="prod-eu/n-2"] .c-sched').hasAttribute('data-ui-hot')`)
	if got := eval[string](tb, `[...document.querySelectorAll('#rows [data-ui-hot]')].map(e => e.className).join()`); got != "c-sched" {
		t.Errorf("marked: %s, want the scheduling cell alone", got)
	}
	if got := eval[string](tb, `document.querySelector('[data-ref="prod-eu/n-2"] .c-sched time').textContent`); strings.Contains(got, "UTC") {
		t.Errorf("a time that came in stands as %q", got)
	}
	tb.wait(`document.querySelector('#rows [data-ui-hot]') === null`)
}

// The selection outlives changes, a reset of all rows, a row that leaves and a reload; the form sends what the verb applies
// to.
func TestBrowser_Selection(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusUnprocessableEntity)
		_, _ = w.Write([]byte(`<hx-partial hx-target="#batch-panel" hx-swap="innerHTML"><p class="panel">refused</p></hx-partial>`))
	}
	tb := s.open(t)
	c := next(t, "stream", s.conns)
	tb.wait(isLive)
	if eval[bool](tb, `document.querySelector('#batch').checkVisibility()`) {
		t.Error("the bar shows although nothing is selected")
	}
	tb.click(box(1))
	tb.do(chromedp.QueryAfter(box(4), func(ctx context.Context, tg *chromedp.Target, nodes []*chromedp.Node) (chromedp.Void, error) {
		return chromedp.MouseClickNode(nodes[0], chromedp.ButtonModifiers(chromedp.ModifierShift))(ctx, tg)
	}))
	const selected = `document.querySelector('textarea[name=nodes]').value.split('\n').sort().join()`
	tb.wait(selected + ` === 'prod-eu/n-1,prod-eu/n-2,prod-eu/n-3,prod-eu/n-4'`)
	if got := eval[string](tb, `document.querySelector('#batch .count').innerText.replace(/\s+/g, ' ')`); got != "4 nodes selected prod-eu 4 runs as ada" {
		t.Errorf("the bar says %q", got)
	}

	// One of them is cordoned by us, one by somebody else, one goes, and then all rows come anew.
	c.say(t, "data: %s%s", s.row(1, cordoned), s.row(2, strangely))
	tb.wait(`document.querySelector('button[value=cordon]').textContent === 'Cordon 2 nodes'`)
	tb.wait(`document.querySelector('button[value=uncordon]').textContent === 'Uncordon 2 nodes'`)
	gone := NodeID(fleet.NodeRef{Cluster: "prod-eu", Name: "n-4"})
	c.say(t, `data: <tr id="%s" hx-swap-oob="delete"></tr>`, gone)
	tb.wait(`document.getElementById('` + gone + `') === null`)
	var all strings.Builder
	for i := range 4 {
		all.WriteString(strings.Replace(s.row(3-i, func(*fleet.Node) {}), ` hx-swap-oob="outerMorph"`, "", 1))
	}
	c.say(t, `data: <hx-partial hx-target="#rows" hx-swap="innerMorph">%s</hx-partial>`, all.String())
	tb.wait(`document.querySelectorAll('#rows tr').length === 4`)
	if got := eval[string](tb, `[...document.querySelectorAll('#rows input:checked')].map(i => i.value).join()`); got != "prod-eu/n-3,prod-eu/n-2,prod-eu/n-1" {
		t.Errorf("ticked after the reset: %s", got)
	}
	tb.do(chromedp.Navigate(s.url + "/nodes"))
	next(t, "stream after the reload", s.conns)
	tb.wait(selected + ` === 'prod-eu/n-1,prod-eu/n-2,prod-eu/n-3,prod-eu/n-4'`)

	eval[bool](tb, `document.querySelector('[name=foreign]').value = 'include', true`)
	tb.click(`button[value=uncordon]`)
	post := next(t, "post", s.posts)
	slices.Sort(post["nodes"])
	if got := post.Get("nodes"); len(post["nodes"]) != 1 || got != "prod-eu/n-1\nprod-eu/n-2" {
		t.Errorf("uncordon sent nodes %q", post["nodes"])
	}
	if post.Get("foreign") != "include" || post.Get("action") != "uncordon" || post.Get("idempotency_key") != "key-of-page" {
		t.Errorf("uncordon sent %v", post)
	}
	tb.wait(`document.querySelector('#batch-panel').textContent === 'refused'`)
	// Nothing was made, so sending again is the same request, and the selection is still there.
	tb.do(chromedp.SendKeys(`[name=reason]`, "because"))
	tb.click(`button[value=cordon]`)
	post = next(t, "second post", s.posts)
	if post.Get("nodes") != "prod-eu/n-3\nprod-eu/n-4" || post.Has("foreign") || post.Get("reason") != "because" || post.Get("idempotency_key") != "key-of-page" {
		t.Errorf("cordon sent %v", post)
	}

	// All that match come from the server, and what could not be taken is said.
	tb.click(`#clear`)
	tb.wait(`!document.querySelector('#batch').checkVisibility()`)
	tb.click(`#all`)
	tb.wait(`document.querySelector('#allmatching').checkVisibility()`)
	tb.click(`#allmatching`)
	tb.wait(`document.querySelector('[data-clusters]').textContent.includes('lab 2')`)
	tb.wait(`document.querySelector('#toast').textContent.includes('first 4 of 9000')`)

	// Another filter is another selection.
	tb.do(chromedp.Navigate(s.url + "/nodes?q=web"))
	next(t, "stream of the filter", s.conns)
	tb.wait(isLive)
	if eval[bool](tb, `document.querySelector('#batch').checkVisibility()`) {
		t.Error("the selection of one filter shows under another")
	}
}

func batchMessage(upTo int, done bool) string {
	items := sampleItems(plainly)
	b := sampleBatch(plainly)
	b.CancelledBy, b.Note = "", ""
	b.Counts = fleet.Counts{Total: 5, Succeeded: upTo, Queued: 5 - upTo}
	if done {
		b.State, b.Outcome, b.EndedAt = fleet.BatchDone, fleet.OutcomeSucceeded, noon
	}
	var out strings.Builder
	for i := range upTo {
		items[i].State, items[i].Code, items[i].Error = fleet.ItemSucceeded, "", ""
		out.Write(OOB(Renderer{}.BatchItem(items[i], "en"), "outerMorph"))
	}
	out.Write(Renderer{}.BatchProgress(b, "en"))
	return "data: " + out.String() + "\n\n"
}

func openPanel(t *testing.T) string {
	t.Helper()
	items := sampleItems(plainly)
	for i := range items {
		items[i] = fleet.Item{Seq: i, Ref: items[i].Ref, State: fleet.ItemQueued}
	}
	b := sampleBatch(plainly)
	b.CancelledBy, b.Note = "", ""
	panel, err := Fragment(Panel(BatchPanel{Lang: "en", Batch: b, Items: items, CanSteer: true, Embedded: true, Nonce: "another"}))
	if err != nil {
		t.Fatal(err)
	}
	return `data: <hx-partial hx-target="#batch-panel" hx-swap="innerHTML">` + string(panel) + "</hx-partial>\n\n"
}

// The form's answer is the progress. When it breaks off, the page follows the batch by its address to the end; the form is
// sent once.
func TestBrowser_BatchAnswerBreaksOff(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	panel, cut := openPanel(t), make(chan struct{})
	s.answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for _, m := range []string{panel, batchMessage(2, false)} {
			if _, err := w.Write([]byte(m)); err != nil {
				return
			}
		}
		if http.NewResponseController(w).Flush() == nil {
			<-cut
			panic(http.ErrAbortHandler)
		}
	}
	tb := s.open(t)
	next(t, "stream", s.conns)
	tb.wait(isLive)
	tb.click(box(0))
	tb.click(`button[value=cordon]`)
	next(t, "post", s.posts)
	tb.wait(`document.querySelectorAll('#items tr[data-state=succeeded]').length === 2`)
	close(cut)
	c := next(t, "stream of the batch", s.follow)
	if eval[bool](tb, `document.querySelector('#batch').checkVisibility()`) {
		t.Error("the selection is still there after the batch was made")
	}
	if key := eval[string](tb, `document.querySelector('[name=idempotency_key]').value`); key == "key-of-page" || len(key) != 32 {
		t.Errorf("the next batch would have the key %q", key)
	}
	c.say(t, "%sevent: done\ndata: x", batchMessage(5, true))
	tb.wait(`document.querySelector('#batch-progress').dataset.state === 'done'`)
	tb.wait(`document.querySelectorAll('#items tr[data-state=succeeded]').length === 5`)
	if eval[bool](tb, `document.querySelector('.cancel').checkVisibility()`) {
		t.Error("a batch that is done can still be cancelled")
	}
	select {
	case p := <-s.posts:
		t.Errorf("the form was sent again: %v", p)
	default:
	}
	tb.click(`[data-dismiss]`)
	tb.wait(`document.querySelector('#batch-panel').children.length === 0`)
}

// An answer that broke off before it said anything leaves the way to the batch.
func TestBrowser_BatchAnswerLost(t *testing.T) {
	t.Parallel()
	s, cut := newStage(t), make(chan struct{})
	s.answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Location", "/api/v1/batches/01JB")
		w.WriteHeader(http.StatusOK)
		if http.NewResponseController(w).Flush() == nil {
			<-cut
			panic(http.ErrAbortHandler)
		}
	}
	tb := s.open(t)
	next(t, "stream", s.conns)
	tb.wait(isLive)
	tb.click(box(0))
	tb.click(`button[value=cordon]`)
	tb.wait(`!document.querySelector('#batch').checkVisibility()`) // the answer has begun
	close(cut)
	tb.wait(`document.querySelector('#batch-panel [role=alert] a').getAttribute('href') === '/batches/01JB'`)
}

// A batch that ends well is not followed.
func TestBrowser_BatchAnswerEnds(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	panel := openPanel(t)
	s.answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = w.Write([]byte(panel + batchMessage(5, true) + "event: done\ndata: x\n\n"))
	}
	tb := s.open(t)
	next(t, "stream", s.conns)
	tb.wait(isLive)
	tb.click(box(0))
	tb.click(`button[value=cordon]`)
	tb.wait(`document.querySelector('#batch-progress').dataset.state === 'done'`)
	tb.wait(`document.querySelector('#batch')._htmx.sse === undefined`)
	if eval[bool](tb, `document.getElementById('follow') !== null`) {
		t.Error("a finished batch is followed")
	}
}

// The page of a node follows its row: the detail and the verb that is offered change, what is being typed stays.
func TestBrowser_NodePage(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.answer = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }
	tb := s.open(t)
	next(t, "stream of the list", s.conns)
	tb.do(chromedp.Navigate(s.url + "/clusters/prod-eu/nodes/n-0"))
	c := next(t, "stream", s.conns)
	tb.wait(isLive)
	tb.wait(`document.querySelectorAll('#pods tbody tr').length === 1`)
	tb.do(chromedp.SendKeys(`[name=reason]`, "half a rea"))
	c.say(t, "data: %s", s.row(0, strangely))
	tb.wait(`document.querySelector('#batch button[value=uncordon]').checkVisibility()`)
	tb.wait(`document.querySelector('#cordon-title') !== null`)
	if eval[bool](tb, `document.querySelector('#batch button[value=cordon]') !== null`) {
		t.Error("cordon is still offered")
	}
	if got := eval[string](tb, `document.activeElement.name + '=' + document.activeElement.value`); got != "reason=half a rea" {
		t.Errorf("after the change the focus and the text are %q", got)
	}
	if got := eval[int](tb, `document.querySelectorAll('#pods tbody tr').length`); got != 1 {
		t.Errorf("the pods were read again for a change of the node: %d", got)
	}
	tb.click(`#pods-again`)
	tb.wait(`document.querySelectorAll('#pods tbody tr').length === 2`)

	// The morphed form still works, with the choice that a foreign cordon needs.
	tb.click(`#batch [name=foreign]`)
	tb.click(`#batch button[value=uncordon]`)
	post := next(t, "post", s.posts)
	if post.Get("nodes") != "prod-eu/n-0" || post.Get("foreign") != "include" || post.Get("action") != "uncordon" || post.Get("reason") != "half a rea" {
		t.Errorf("sent %v", post)
	}
	eval[bool](tb, `document.getElementById('detail').addEventListener('htmx:finally:request', () => { window.answered = true }), true`)
	s.mu.Lock()
	s.deleted = true
	visits := s.visits
	s.mu.Unlock()
	c.say(t, `data: <tr id="%s" hx-swap-oob="delete"></tr>`, NodeID(fleet.NodeRef{Cluster: "prod-eu", Name: "n-0"}))
	asked := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.visits - visits
	}
	// An answer from before may come in between: the one that counts belongs to the next question.
	for begun := time.Now(); asked() == 0 && time.Since(begun) < 10*time.Second; {
		tb.wait(`true`)
	}
	tb.wait(`window.answered`)
	if n := asked(); n != 1 {
		t.Errorf("the page was asked for %d times", n)
	}
	if !eval[bool](tb, `document.querySelector('#detail .card') !== null`) {
		t.Error("what was last known of the node is gone from the page")
	}
	tb.wait(`document.querySelector('.gone').checkVisibility()`)
}

func TestBrowser_Keys(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	tb := s.open(t)
	next(t, "stream", s.conns)
	tb.wait(isLive)
	tb.press("j", "j")
	tb.press("j", "j")
	tb.press("x", "x")
	tb.wait(`document.activeElement.textContent === 'n-1'`)
	tb.wait(`document.querySelector('` + box(1) + `').checked`)
	tb.press("c", "c")
	tb.wait(`document.activeElement.name === 'reason'`)
	tb.press("j", "j")
	tb.press("x", "x")
	if got := eval[string](tb, `document.activeElement.value`); got != "jx" {
		t.Errorf("typed %q into the reason", got)
	}
	tb.press("Escape", "")
	tb.wait(`document.activeElement === document.body`)
	tb.press("/", "/")
	tb.wait(`document.activeElement.id === 'q'`)
	tb.press("Escape", "")
	tb.press("Escape", "")
	tb.wait(`!document.querySelector('#batch').checkVisibility()`)
	tb.press("?", "?")
	tb.wait(`document.querySelector('#help').open`)
	eval[bool](tb, `document.querySelector('#help').close(), true`)

	// Without a row nothing is meant; on one, the key leads to its plan.
	tb.press("d", "d")
	tb.press("j", "j")
	tb.press("d", "d")
	if post := next(t, "post", s.posts); post.Get("action") != "drain" || post.Get("nodes") != "prod-eu/n-0" {
		t.Errorf("the key sent %v", post)
	}
}

// The theme button goes through system, light and dark, and the server is told by a cookie.
func TestBrowser_Theme(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	tb := s.open(t)
	tb.click(`#theme`)
	tb.wait(`document.documentElement.dataset.theme === 'light' && document.cookie === 'knm_theme=light'`)
	tb.click(`#theme`)
	tb.wait(`document.documentElement.dataset.theme === 'dark' && document.cookie === 'knm_theme=dark'`)
	tb.click(`#theme`)
	tb.wait(`!('theme' in document.documentElement.dataset) && document.cookie === ''`)
}
