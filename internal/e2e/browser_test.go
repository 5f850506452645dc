package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// patience is how long a page may take to show what it must show. It bounds a wait that normally ends in milliseconds.
const patience = 20 * time.Second

// browser is one Chromium for the whole test binary.
type browser struct {
	once  sync.Once
	ctx   context.Context
	close func()
	err   error
}

var chromium browser

func (b *browser) start() {
	opts := []chromedp.ExecAllocatorOption{
		chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.WindowSize(1280, 900),
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true),
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-dev-shm-usage", true),
	}
	if path := os.Getenv("KNM_TEST_BROWSER"); path != "" {
		opts = append(opts, chromedp.ExecPath(path))
	}
	alloc, cancelAlloc := chromedp.NewExecAllocator(context.Background(), opts...)
	ctx, cancel := chromedp.NewContext(alloc)
	b.ctx = ctx
	b.close = func() { cancel(); cancelAlloc() }
	b.err = chromedp.Do(ctx) // starts the browser
}

// tab is one browser window with cookies of its own (a person), or one that shares them with another tab.
type tab struct {
	t    testing.TB
	ctx  context.Context
	base string

	mu       sync.Mutex // guards problems
	problems []string   // uncaught errors and violations of the content security policy
	planted  bool       // the test itself makes the problems
}

// newTab opens a window with an empty cookie jar. Everything the console calls an error fails the test at its end.
func newTab(t testing.TB, base string) *tab {
	t.Helper()
	chromium.once.Do(chromium.start)
	if chromium.err != nil {
		t.Fatalf("no browser: %v\nInstall Chromium, or name one with KNM_TEST_BROWSER.", chromium.err)
	}
	return open(chromium.ctx, t, base, chromedp.WithNewBrowserContext(), chromedp.WithNewWindow(true))
}

// sibling opens another window of the same person.
func (tb *tab) sibling() *tab {
	tb.t.Helper()
	return open(tb.ctx, tb.t, tb.base, chromedp.WithNewWindow(true))
}

func open(parent context.Context, t testing.TB, base string, opts ...chromedp.ContextOption) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(parent, opts...)
	tb := &tab{t: t, ctx: ctx, base: base}
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("opening a tab: %v", err)
	}
	console := chromedp.Console(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for m, err := range console {
			if err != nil {
				return
			}
			if s := m.String(); m.IsException() || strings.Contains(s, "Content Security Policy") || strings.Contains(s, "TrustedHTML") {
				tb.mu.Lock()
				tb.problems = append(tb.problems, s)
				tb.mu.Unlock()
			}
		}
	})
	t.Cleanup(func() {
		if t.Failed() {
			tb.screenshot("failed")
		}
		cancel()
		wg.Wait()
		for _, p := range tb.problems {
			if tb.planted {
				break
			}
			t.Errorf("the page's console: %s", p)
		}
	})
	return tb
}

// close is the person closing the window.
func (tb *tab) close() {
	tb.t.Helper()
	if err := chromedp.Cancel(tb.ctx); err != nil {
		tb.t.Fatalf("closing the tab: %v", err)
	}
}

func (tb *tab) do(what string, steps ...chromedp.Action[chromedp.Void]) {
	tb.t.Helper()
	ctx, cancel := context.WithTimeout(tb.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		tb.t.Fatalf("%s: %v", what, err)
	}
}

// visit loads a page of the app.
func (tb *tab) visit(path string) {
	tb.t.Helper()
	tb.do("visiting "+path, chromedp.Navigate(tb.base+path))
}

// eval runs JavaScript in the page and decodes its value.
func eval[T any](tb *tab, js string) T {
	tb.t.Helper()
	ctx, cancel := context.WithTimeout(tb.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](js, chromedp.EvalAwaitPromise))
	if err != nil {
		tb.t.Fatalf("evaluating %s: %v", js, err)
	}
	return v
}

// wait blocks until the expression is true in the page. The page itself looks at every task, so nothing is missed and
// nothing is slept; a navigation in between only starts the look again.
func (tb *tab) wait(what, js string) {
	tb.t.Helper()
	ctx, cancel := context.WithTimeout(tb.ctx, patience)
	defer cancel()
	look := `new Promise(ok => { const look = () => { try { if (` + js + `) return ok(true) } catch {} setTimeout(look, 10) }; look() })`
	for {
		_, err := chromedp.Run(ctx, chromedp.Evaluate[bool](look, chromedp.EvalAwaitPromise))
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			tb.t.Fatalf("waiting until %s: not after %s\n%s", what, patience, tb.text("body"))
		}
	}
}

// text is what a person reads in the element, for messages.
func (tb *tab) text(selector string) string {
	ctx, cancel := context.WithTimeout(tb.ctx, 5*time.Second)
	defer cancel()
	s, err := chromedp.Run(ctx, chromedp.Evaluate[string](fmt.Sprintf(`document.querySelector(%s)?.innerText ?? "(no such element)"`, quote(selector))))
	if err != nil {
		return "(" + err.Error() + ")"
	}
	return s
}

// click presses the mouse on the first element that matches, as a person does: it must be visible.
// A page may replace it between the finding and the click: then it is found anew, as a person would look again.
func (tb *tab) click(selector string) {
	tb.t.Helper()
	ctx, cancel := context.WithTimeout(tb.ctx, patience)
	defer cancel()
	for {
		err := chromedp.Do(ctx, chromedp.Click(selector))
		if gone, ok := errors.AsType[*cdproto.Error](err); ok && gone.Code == nodeIsGone && ctx.Err() == nil {
			continue
		}
		if err != nil {
			tb.t.Fatalf("clicking %s: %v", selector, err)
		}
		return
	}
}

// nodeIsGone is the browser's answer to who asks for an element that is no longer in the document.
const nodeIsGone = -32000

// fill types into a field, replacing what is there.
func (tb *tab) fill(selector, value string) {
	tb.t.Helper()
	tb.do("filling "+selector, chromedp.Clear(selector), chromedp.SendKeys(selector, value))
}

// keys presses keys wherever the focus is.
func (tb *tab) keys(keys string) {
	tb.t.Helper()
	tb.do("pressing "+keys, chromedp.KeyEvent(keys))
}

// focusAndType types at the end of a field, leaving the focus there.
func focusAndType(selector, text string) []chromedp.Action[chromedp.Void] {
	return []chromedp.Action[chromedp.Void]{chromedp.Focus(selector), chromedp.SendKeys(selector, text)}
}

// screenshot is kept among the test's artifacts.
func (tb *tab) screenshot(name string) {
	ctx, cancel := context.WithTimeout(tb.ctx, patience)
	defer cancel()
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		tb.t.Logf("screenshot %s: %v", name, err)
		return
	}
	file := filepath.Join(tb.t.ArtifactDir(), name+".png")
	if err := os.WriteFile(file, png, 0o600); err != nil {
		tb.t.Logf("screenshot %s: %v", name, err)
	}
}

// size emulates a screen of that many CSS pixels.
func (tb *tab) size(width, height int64) {
	tb.t.Helper()
	tb.do("resizing", chromedp.EmulateViewport(width, height))
}

// dark makes the system prefer dark or light.
func (tb *tab) dark(on bool) {
	tb.t.Helper()
	scheme := "light"
	if on {
		scheme = "dark"
	}
	tb.do("setting the color scheme", chromedp.Func(func(ctx context.Context, tg *chromedp.Target) error {
		_, err := cdp.Call(ctx, tg, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
		})
		return err
	}))
}

// quote makes a JavaScript string literal.
func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string always marshals
	}
	return string(b)
}
