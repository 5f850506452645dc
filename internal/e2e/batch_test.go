package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// Five nodes are selected in a browser, all of a query; two of them disappear in between and another one that the query
// matches comes (T42): three are cordoned, two are reported as not found, the new one is left alone, the outcome is partial,
// and the API server saw exactly three writes.
func TestBatch_FiveSelectedTwoDeletedInBetween(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServer(t, c.Kubeconfig)
	name := kubetest.Name(t, "n")
	nodes := c.Nodes(t, 5, func(i int) kubetest.NodeSpec { return kubetest.NodeSpec{Name: fmt.Sprintf("%s-%d", name, i)} })

	ada := s.signIn(t, "ada", "operator")
	eve := s.signIn(t, "eve", "viewer")
	for _, tb := range []*tab{ada, eve} {
		tb.visit("/nodes?q=" + name)
		tb.wait("five rows", `document.querySelectorAll('#rows tr').length === 5`)
		tb.wait("it is live", there(`#live-state[data-ui-state=live]`))
	}
	if eval[bool](eve, there(`#batch`)) {
		t.Error("a viewer is offered the form")
	}
	ada.click(`#all`)
	ada.wait("the button says what it will do", `/5/.test(document.querySelector('button[value=cordon]').innerText)`)
	ada.fill(`#batch input[name=reason]`, "disk swap")

	mark := c.AuditLog(t).Mark()
	c.DeleteNode(t, nodes[1].Name)
	c.DeleteNode(t, nodes[3].Name)
	late := c.Node(t, kubetest.NodeSpec{Name: name + "-9"}).Name
	ada.wait("a node that came after the selection", there(row(c.Name, late)))
	if eval[bool](ada, there(row(c.Name, late)+` input:checked`)) || !eval[bool](ada, `/5/.test(document.querySelector('button[value=cordon]').innerText)`) {
		t.Error("the node that came later is part of the selection")
	}
	ada.click(`button[value=cordon]`)
	ada.wait("the batch is done, in the page that started it", there(`#batch-progress[data-state=done]`))
	ada.screenshot("partial")
	if got := eval[string](ada, `document.getElementById('batch-progress').dataset.outcome`); got != "partial" {
		t.Errorf("outcome %q, want partial", got)
	}
	if got := eval[int](ada, `document.querySelectorAll('#items tr').length * 10 + document.querySelectorAll('#items tr[data-state=succeeded]').length`); got != 53 {
		t.Errorf("rows and those of them that succeeded: %d, want 53", got)
	}
	for _, i := range []int{1, 3} {
		if got := eval[string](ada, `[...document.querySelectorAll('#items tr[data-state=failed]')].find(r => r.innerText.includes(`+quote(nodes[i].Name)+`))?.innerText ?? ''`); !strings.Contains(got, "no such node") {
			t.Errorf("the row of the deleted node %s says %q", nodes[i].Name, got)
		}
	}
	for _, i := range []int{0, 2, 4} {
		eve.wait("the other page follows", in(row(c.Name, nodes[i].Name)+` .c-sched`, "ada")+` && `+in(row(c.Name, nodes[i].Name)+` .c-sched`, "disk swap"))
	}

	writes := c.AuditLog(t).Writes(mark, "nodes", kubetest.NotByTests, mine(name))
	if len(writes) != 3 {
		t.Errorf("the API server saw %d writes, want 3: %v", len(writes), writes)
	}
	for _, w := range writes {
		if w.Verb != "patch" || w.Code != 200 {
			t.Errorf("%s %s answered %d", w.Verb, w.Name, w.Code)
		}
	}
}

// mine keeps the events about nodes whose name begins so, by the product alone: kubelets and controllers write too.
func mine(prefix string) kubetest.Filter {
	return func(e *kubetest.AuditEvent) bool {
		return strings.HasPrefix(e.Name, prefix) && strings.HasPrefix(e.UserAgent, "kube-node-manager/")
	}
}

func slowBatch(cluster string, nodes []string, pause string) string {
	refs := make([]string, len(nodes))
	for i, n := range nodes {
		refs[i] = cluster + "/" + n
	}
	b, err := json.Marshal(map[string]any{
		"action": "cordon", "nodes": strings.Join(refs, "\n"), "reason": "rolling", "max_concurrent": 2, "pause_between": pause,
	})
	if err != nil {
		panic(err)
	}
	return string(b)
}

// Forty nodes with a progress bar. The tab is closed at 30 % and opened again: the exact state, and one result. Then the
// same with the process killed in the middle: the batch goes on, no node is written twice, none is lost.
func TestBatch_FortyNodesSurviveTheTabAndTheProcess(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServer(t, c.Kubeconfig)
	name := kubetest.Name(t, "n")
	var names []string
	for _, n := range c.Nodes(t, 40, func(i int) kubetest.NodeSpec { return kubetest.NodeSpec{Name: fmt.Sprintf("%s-%02d", name, i)} }) {
		names = append(names, n.Name)
	}
	api := s.client(t, "root", "admin")
	ada := s.signIn(t, "ada", "operator")
	ada.visit("/nodes?q=" + name)
	ada.wait("the nodes are known", `document.querySelectorAll('#rows tr').length > 0`)

	mark := c.AuditLog(t).Mark()
	var b batch
	api.json(202, &b, "POST", "/api/v1/batches", slowBatch(c.Name, names, "60ms"))

	finished := `(document.querySelectorAll('#items tr[data-state=succeeded]').length)`
	first := ada.sibling()
	first.visit("/batches/" + b.ID)
	first.wait("30 % are done", finished+` >= 12`)
	first.screenshot("thirty-percent")
	first.close()

	again := ada.sibling()
	again.visit("/batches/" + b.ID)
	again.wait("it has its forty rows", `document.querySelectorAll('#items tr').length === 40`)
	shown := eval[int](again, finished)
	var now batch
	api.json(200, &now, "GET", "/api/v1/batches/"+b.ID, "")
	if shown < 12 || shown > now.Counts.Succeeded {
		t.Errorf("the page opened again shows %d done; %d were when the first one closed, and %d are now", shown, 12, now.Counts.Succeeded)
	}
	again.wait("it comes to its end", there(`#batch-progress[data-state=done][data-outcome=succeeded]`))
	if got := eval[int](again, finished); got != 40 {
		t.Errorf("the report has %d rows that succeeded, want 40", got)
	}
	again.screenshot("done")
	writtenOnce(t, c, mark, name, names)

	// Uncordon them slowly, and kill the process in the middle.
	mark = c.AuditLog(t).Mark()
	body := strings.Replace(slowBatch(c.Name, names, "60ms"), `"cordon"`, `"uncordon"`, 1)
	api.json(202, &b, "POST", "/api/v1/batches", body)
	progress := api.stream("GET", "/api/v1/batches/"+b.ID+"/events", "")
	progress.until("a third to be done", func(e event) bool {
		var p batch
		return e.Name == "progress" && json.Unmarshal([]byte(e.Data), &p) == nil && p.Counts.Succeeded >= 13
	})
	s.kill()
	progress.end(patience)
	if n := len(c.AuditLog(t).Writes(mark, "nodes", mine(name))); n >= 40 {
		t.Fatalf("all %d nodes were written before the process was killed: this proves nothing", n)
	}
	s.start()
	if done := api.batchDone(b.ID); done.Outcome != "succeeded" || done.Counts.Succeeded != 40 {
		t.Errorf("after the restart: %v", done)
	}
	writtenOnce(t, c, mark, name, names)
}

// writtenOnce asks the API server: each node exactly one successful write of ours since the mark.
func writtenOnce(t *testing.T, c *kubetest.Cluster, mark kubetest.Mark, prefix string, names []string) {
	t.Helper()
	count := map[string]int{}
	for _, w := range c.AuditLog(t).Writes(mark, "nodes", mine(prefix)) {
		if w.Code == 200 {
			count[w.Name]++
		}
	}
	for _, n := range names {
		if count[n] != 1 {
			t.Errorf("%s was written %d times, want once", n, count[n])
		}
	}
}
