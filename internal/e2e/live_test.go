package e2e

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// row is the selector of a node's row.
func row(cluster, node string) string { return fmt.Sprintf(`tr[data-ref=%q]`, cluster+"/"+node) }

// in is a JavaScript expression: the text of the first match contains s.
func in(selector, s string) string {
	return fmt.Sprintf(`document.querySelector(%s).innerText.includes(%s)`, quote(selector), quote(s))
}

// there is a JavaScript expression: something matches.
func there(selector string) string {
	return fmt.Sprintf(`document.querySelector(%s) !== null`, quote(selector))
}

// Two people look at the same nodes while somebody works with kubectl. Both pages follow in place, and what one of them
// was doing meanwhile is still there: ticked boxes, the focus in the half-typed search, the open menu, the scroll.
func TestPages_FollowTheClusterWhileInUse(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServer(t, c.Kubeconfig)
	name := kubetest.Name(t, "n")
	nodes := c.Nodes(t, 30, func(i int) kubetest.NodeSpec {
		return kubetest.NodeSpec{Name: fmt.Sprintf("%s-%02d", name, i), Zone: []string{"zone-a", "zone-b"}[i%2]}
	})
	one, two, gone := nodes[0].Name, nodes[1].Name, nodes[2].Name

	ada := s.signIn(t, "ada", "operator")
	eve := s.signIn(t, "eve", "viewer")
	list := "/nodes?per_page=100&q=" + name
	for _, tb := range []*tab{ada, eve} {
		tb.visit(list)
		tb.wait("all rows are there", `document.querySelectorAll('#rows tr').length === 30`)
		tb.wait("it is live", there(`#live-state[data-ui-state=live]`))
	}

	// Ada is in the middle of things.
	ada.click(row(c.Name, one) + ` .c-sel input`)
	ada.click(row(c.Name, two) + ` .c-sel input`)
	ada.click(`details.menu summary`)
	ada.do("typing", focusAndType(`#q`, " sta")...)
	typed := eval[string](ada, `document.getElementById('q').value`)
	if typed == name {
		t.Fatal("nothing was typed")
	}
	eval[bool](ada, `window.scrollTo(0, 200), window.kept = document.querySelector(`+quote(row(c.Name, one))+`), true`)
	scrolled := eval[float64](ada, `window.scrollY`)
	if scrolled == 0 {
		t.Fatal("the page does not scroll: this test would prove nothing about it")
	}

	c.Cordon(t, one)
	c.Label(t, two, "topology.kubernetes.io/zone", "zone-moved")
	c.Taint(t, two, corev1.Taint{Key: "example.com/dedicated", Value: "gpu", Effect: corev1.TaintEffectNoSchedule})
	late := c.Node(t, kubetest.NodeSpec{Name: name + "-late"}).Name
	c.DeleteNode(t, gone)

	for _, tb := range []*tab{ada, eve} {
		tb.wait("the cordon shows", there(row(c.Name, one)+`.cordoned`))
		tb.wait("the tool that did it shows", in(row(c.Name, one)+` .c-sched`, "kubectl"))
		tb.wait("the new zone shows", in(row(c.Name, two)+` .c-zone`, "zone-moved"))
		tb.wait("the taint shows", in(row(c.Name, two)+` .c-taints`, "dedicated"))
		tb.wait("the new node shows", there(row(c.Name, late)))
		tb.wait("the deleted node is gone", `!(`+there(row(c.Name, gone))+`)`)
		tb.wait("the counter of cordoned nodes follows", `document.getElementById('k-cordoned').dataset.n === '1'`)
	}

	for what, js := range map[string]string{
		"the first box is ticked":     `document.querySelector(` + quote(row(c.Name, one)+` .c-sel input`) + `).checked`,
		"the second box is ticked":    `document.querySelector(` + quote(row(c.Name, two)+` .c-sel input`) + `).checked`,
		"no other box is ticked":      `document.querySelectorAll('#rows .c-sel input:checked').length === 2`,
		"the search has the focus":    `document.activeElement.id === 'q'`,
		"what was typed is there":     `document.getElementById('q').value === ` + quote(typed),
		"the menu is open":            `document.querySelector('details.menu').open`,
		"the row is the same element": `window.kept === document.querySelector(` + quote(row(c.Name, one)) + `)`,
		"the page has not scrolled":   fmt.Sprintf(`window.scrollY === %v`, scrolled),
	} {
		if !eval[bool](ada, js) {
			t.Errorf("after the changes, not so any more: %s", what)
		}
	}
	ada.screenshot("followed")
}
