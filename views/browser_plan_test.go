package views

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/static"
)

// plan answers the form of a plan as the server does: with what was typed and the plan of it. Of a post nobody waits for
// it is enough that it is kept.
func (s *stage) plan(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.posts <- r.PostForm
	asked := Asked{}
	for k, v := range r.PostForm {
		asked[k] = strings.Join(v, "\n")
	}
	var refs []fleet.NodeRef
	for line := range strings.Lines(asked["nodes"]) {
		ref, err := fleet.ParseNodeRef("nodes", strings.TrimSpace(line))
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		refs = append(refs, ref)
	}
	p := sampleDrainPlan(plainly)
	if asked.on("delete_emptydir_data") {
		p.Confirm, p.Why = "", nil
	}
	const nonce = "plan42"
	w.Header().Set("Content-Security-Policy", fmt.Sprintf(policy, nonce))
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	err := Plan(PlanPage{
		Layout: Layout{Lang: "en", Nav: "nodes", User: "ada", Role: fleet.RoleOperator, Caller: fleet.Caller{Role: fleet.RoleOperator}, Nonce: nonce, Path: "/nodes", Now: noon, Asset: static.Asset, Static: true},
		Action: fleet.ActionDrain, Asked: asked, Nodes: refs, Plan: p, Key: "key-of-plan",
	}).Render(r.Context(), w)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
}

// From the selection to the batch: the plan is a page, htmx keeps its hands off, a consent is given where the loss is
// told, and a changed option cannot be confirmed unseen.
func TestBrowser_Plan(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.answer = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }
	tb := s.open(t)
	next(t, "stream", s.conns)
	tb.wait(isLive)
	tb.click(box(0))
	tb.click(box(2))
	tb.do(chromedp.SendKeys(`[name=reason]`, "kernel"))
	tb.click(`button[value=drain]`)
	post := next(t, "post", s.posts)
	if post.Get("action") != "drain" || strings.ReplaceAll(post.Get("nodes"), "\r", "") != "prod-eu/n-0\nprod-eu/n-2" || post.Get("reason") != "kernel" {
		t.Fatalf("sent %v", post)
	}
	tb.wait(`location.pathname === '/plan' && document.querySelector('#confirm [data-confirm]') !== null`)
	if eval[bool](tb, `document.querySelector('[data-confirm]').disabled`) {
		t.Error("a fresh plan cannot be confirmed")
	}

	tb.click(`.consent input[name=delete_emptydir_data]`)
	tb.wait(`document.querySelector('[data-confirm]').disabled && document.querySelector('[data-stale]').checkVisibility()`)
	tb.click(`.consent input[name=delete_emptydir_data]`)
	tb.wait(`!document.querySelector('[data-confirm]').disabled`)
	tb.click(`.consent input[name=delete_emptydir_data]`)
	tb.click(`#plan .acts button`)
	post = next(t, "second post", s.posts)
	if post.Get("delete_emptydir_data") != "true" || post.Get("reason") != "kernel" {
		t.Fatalf("the preview sent %v", post)
	}
	tb.wait(`document.querySelector('#confirm') !== null && document.querySelector('#f-confirm') === null`)
	tb.click(`[data-confirm]`)
	post = next(t, "batch", s.posts)
	if post.Get("delete_emptydir_data") != "true" || post.Get("plan") != "d1" || post.Get("idempotency_key") != "key-of-plan" || post.Get("action") != "drain" ||
		strings.ReplaceAll(post.Get("nodes"), "\r", "") != "prod-eu/n-0\nprod-eu/n-2" {
		t.Errorf("confirmed %v", post)
	}
	if got := eval[string](tb, `sessionStorage.getItem('knm.selection') ?? ''`); got != "" {
		t.Errorf("the selection is still there: %s", got)
	}
}

// batch serves the page of a batch of drains, and the pods of its nodes as often as they are asked for.
func (s *stage) batch(w http.ResponseWriter, r *http.Request) {
	const nonce = "batch7"
	w.Header().Set("Content-Security-Policy", fmt.Sprintf(policy, nonce))
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	b := sampleDrainBatch(plainly)
	b.State, b.PausedBy = fleet.BatchRunning, ""
	err := Batch(BatchPage{
		Layout: Layout{Lang: "en", Nav: "batches", User: "ada", Role: fleet.RoleOperator, Caller: fleet.Caller{Role: fleet.RoleOperator}, Nonce: nonce, Path: r.URL.Path, Now: noon, Asset: static.Asset},
		Panel:  BatchPanel{Lang: "en", Batch: b, Items: sampleDrainItems(plainly), CanSteer: true, Nonce: nonce, Key: "k", Stream: "/api/v1/batches/01JB/events"},
	}).Render(r.Context(), w)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
}

// The page of a batch: buttons follow the state, what is unfolded stays so and is read again when its row changes, the
// focus stays where it was, and a node is skipped without leaving the page.
func TestBrowser_BatchOfDrains(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	tb := s.open(t)
	next(t, "stream of the list", s.conns)
	tb.do(chromedp.Navigate(s.url + "/batches/01JB"))
	c := next(t, "stream of the batch", s.follow)
	shown := func(class string) bool {
		return eval[bool](tb, `document.querySelector('.`+class+` button').checkVisibility()`)
	}
	if !shown("pause") || shown("resume") || !shown("cancel") || shown("retry") {
		t.Error("a running batch offers the wrong buttons")
	}
	tb.click(`#i-3 details[data-pods-of] summary`)
	tb.wait(`document.querySelectorAll('#pods-3 .pods > li').length === 14`)
	if n := <-s.podReads; n != 1 {
		t.Errorf("the pods were read %d times", n)
	}
	tb.do(chromedp.Focus(`#i-3 .do-skip`))

	// A step of the drain comes in.
	it := sampleDrainItems(plainly)[3]
	it.Version, it.Drain.Pods = 8, it.Drain.Pods[:8]
	b := sampleDrainBatch(plainly)
	b.State = fleet.BatchPaused
	c.say(t, "id: v8\ndata: %s%s", OOB(Renderer{}.BatchItem(it, "en"), "outerMorph"), Renderer{}.BatchProgress(b, "en"))
	tb.wait(`document.querySelector('#i-3').dataset.v === '8'`)
	tb.wait(`document.querySelectorAll('#pods-3 .pods > li').length === 8`)
	if n := <-s.podReads; n != 2 {
		t.Errorf("the pods were read %d times", n)
	}
	if !eval[bool](tb, `document.querySelector('#i-3 details[data-pods-of]').open && document.activeElement.matches('#i-3 .do-skip')`) {
		t.Error("what was unfolded is folded, or the focus is lost")
	}
	tb.wait(`document.querySelector('#batch-now').innerText.includes('n-3 evicting 1/7')`)
	if shown("pause") || !shown("resume") {
		t.Error("a paused batch offers the wrong buttons")
	}
	tb.click(`#i-3 .do-skip`)
	if post := next(t, "skip", s.posts); post.Get("item") != "3" {
		t.Errorf("sent %v", post)
	}
	if got := eval[string](tb, `location.pathname`); got != "/batches/01JB" {
		t.Errorf("the page was left for %s", got)
	}
}

// The page of one node leads to its plan.
func TestBrowser_PlanOfOneNode(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	tb := s.open(t)
	next(t, "stream of the list", s.conns)
	tb.do(chromedp.Navigate(s.url + "/clusters/prod-eu/nodes/n-0"))
	next(t, "stream", s.conns)
	tb.wait(isLive)
	tb.click(`button[value=labels]`)
	if post := next(t, "post", s.posts); post.Get("action") != "labels" || post.Get("nodes") != "prod-eu/n-0" {
		t.Errorf("sent %v", post)
	}
}
