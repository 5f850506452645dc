package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// layout is what stands in the table from top to bottom: headers by their value, nodes by their name.
const layout = `[...document.querySelectorAll('#rows > tr')].map(r => r.dataset.ref?.split('/')[1] ?? r.querySelector('strong').innerText).join(' ')`

// header is a JavaScript expression: the header of the group with that value.
func header(value string) string {
	return `[...document.querySelectorAll('#rows > tr[data-group]')].find(r => r.querySelector('strong').innerText === ` + quote(value) + `)`
}

// A list grouped by zone follows the cluster: nodes change their group, groups come and vanish, sums follow; and what a
// person was doing meanwhile is still there.
func TestGroups_FollowTheCluster(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServer(t, c.Kubeconfig)
	name := kubetest.Name(t, "n")
	nodes := c.Nodes(t, 6, func(i int) kubetest.NodeSpec {
		return kubetest.NodeSpec{Name: fmt.Sprintf("%s-%d", name, i), Zone: []string{"zone-a", "zone-a", "zone-a", "zone-b", "zone-b", "zone-c"}[i]}
	})
	n := make([]string, len(nodes))
	for i := range nodes {
		n[i] = nodes[i].Name
	}
	stands := func(format string, of ...any) string { return layout + ` === ` + quote(fmt.Sprintf(format, of...)) }

	ada := s.signIn(t, "ada", "operator")
	ada.visit("/nodes?group=zone&q=" + name)
	ada.wait("it is live", there(`#live-state[data-ui-state=live]`))
	ada.wait("the groups stand in order", stands("zone-a %s %s %s zone-b %s %s zone-c %s", n[0], n[1], n[2], n[3], n[4], n[5]))
	ada.wait("the menu says what it is grouped by", in(`.group-by summary`, "Zone"))
	ada.screenshot("groups")

	// The box of a header ticks the nodes of its group, a range goes over a header, and no header is ever selected.
	const sent = `document.querySelector('#batch textarea[name=nodes]').value`
	refs := func(of ...string) string {
		var out strings.Builder
		for i, name := range of {
			if i > 0 {
				out.WriteString("\n")
			}
			out.WriteString(c.Name + "/" + name)
		}
		return sent + ` === ` + quote(out.String())
	}
	eval[bool](ada, header("zone-b")+`.querySelector('input').click(), true`)
	ada.wait("the nodes of the group are selected", refs(n[3], n[4]))
	ada.click(row(c.Name, n[4]) + ` .c-sel input`)
	ada.wait("the header says that some are", header("zone-b")+`.querySelector('input').indeterminate`)
	ada.click(row(c.Name, n[2]) + ` .c-sel input`)
	eval[bool](ada, `document.querySelector(`+quote(row(c.Name, n[4])+` .c-sel input`)+`).dispatchEvent(new MouseEvent('click', {bubbles: true, shiftKey: true})), true`)
	ada.wait("the range holds the nodes on both sides of the header and nothing else", refs(n[3], n[2], n[4]))
	ada.click(row(c.Name, n[3]) + ` .c-sel input`)
	ada.click(row(c.Name, n[4]) + ` .c-sel input`)
	ada.wait("one is left", refs(n[2]))
	eval[bool](ada, `window.kept = [document.querySelector(`+quote(row(c.Name, n[2]))+`), `+header("zone-a")+`], true`)
	eval[bool](ada, `document.querySelector('#q').focus(), true`)
	ada.do("the pointer leaves the table", chromedp.MouseEvent(chromedp.MouseMoved, 2, 2))

	c.Label(t, n[3], "topology.kubernetes.io/zone", "zone-a") // into another group
	ada.wait("the node stands in its new group", stands("zone-a %s %s %s %s zone-b %s zone-c %s", n[0], n[1], n[2], n[3], n[4], n[5]))
	c.Label(t, n[5], "topology.kubernetes.io/zone", "zone-d") // a group vanishes and another one comes
	ada.wait("zone-c is gone and zone-d is there", stands("zone-a %s %s %s %s zone-b %s zone-d %s", n[0], n[1], n[2], n[3], n[4], n[5]))
	c.DeleteNode(t, n[4])
	ada.wait("the empty zone-b is gone", stands("zone-a %s %s %s %s zone-d %s", n[0], n[1], n[2], n[3], n[5]))
	late := c.Node(t, kubetest.NodeSpec{Name: name + "-late"}).Name
	ada.wait("the node without a zone comes last", stands("zone-a %s %s %s %s zone-d %s none %s", n[0], n[1], n[2], n[3], n[5], late))
	c.Cordon(t, n[1])
	ada.wait("the header counts the cordon", header("zone-a")+`.querySelector('.c-sched').innerText.includes('1')`)
	ada.wait("the header counts its nodes", header("zone-a")+`.innerText.includes('4 nodes')`)

	for what, js := range map[string]string{
		"the box is ticked":                `document.querySelector(` + quote(row(c.Name, n[2])+` .c-sel input`) + `).checked`,
		"nothing else is selected":         refs(n[2]),
		"the header shows a part":          header("zone-a") + `.querySelector('input').indeterminate`,
		"the search has the focus":         `document.activeElement.id === 'q'`,
		"row and header are the same ones": `window.kept[0] === document.querySelector(` + quote(row(c.Name, n[2])) + `) && window.kept[1] === ` + header("zone-a"),
	} {
		if !eval[bool](ada, js) {
			t.Errorf("after the changes, not so any more: %s", what)
		}
	}

	// What the stream made of the page is what a new page shows.
	live := eval[string](ada, layout)
	ada.visit("/nodes?group=zone&q=" + name)
	if loaded := eval[string](ada, layout); loaded != live {
		t.Errorf("the stream left\n%s\nand the page shows\n%s", live, loaded)
	}
	// A label can be typed.
	ada.click(`.group-by summary`)
	ada.fill(`.group-by input[name=group]`, "label:kubernetes.io/hostname")
	ada.click(`.group-by form button`)
	ada.wait("the list is grouped by the label", `new URL(location).searchParams.get('group') === 'label:kubernetes.io/hostname' && `+in(`.group-by summary`, "kubernetes.io/hostname"))
	ada.visit("/nodes?group=shoe&q=" + name)
	ada.wait("what cannot be grouped by is named", in(`#q-error`, "shoe"))
}

// The grouped list in every look.
func TestGroups_EveryLook(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServer(t, c.Kubeconfig)
	name := kubetest.Name(t, "n")
	nodes := c.Nodes(t, 9, func(i int) kubetest.NodeSpec {
		return kubetest.NodeSpec{Name: fmt.Sprintf("%s-%d", name, i), Zone: []string{"eu-central-1a", "eu-central-1b", ""}[i%3]}
	})
	c.Cordon(t, nodes[1].Name)
	c.Cordon(t, nodes[4].Name)
	ada := s.signIn(t, "ada", "admin")
	for _, look := range []struct {
		name          string
		width, height int64
		dark          bool
		lang          string
	}{
		{"desk-light-en", 1280, 760, false, "en"},
		{"desk-dark-zh", 1280, 760, true, "zh"},
		{"phone-dark-en", 390, 844, true, "en"},
		{"phone-light-zh", 390, 844, false, "zh"},
	} {
		ada.size(look.width, look.height)
		ada.dark(look.dark)
		ada.visit("/nodes?lang=" + look.lang)
		for _, path := range []string{"/nodes", "/clusters/" + c.Name + "/nodes"} {
			ada.visit(path + "?group=zone&q=" + name)
			ada.wait("it is live", there(`#live-state[data-ui-state=live]`))
			shot := look.name + map[bool]string{true: "-fleet", false: "-cluster"}[path == "/nodes"]
			ada.screenshot(shot)
			ada.click(`.group-by summary`)
			ada.screenshot(shot + "-menu")
			if over := eval[int](ada, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); over > 0 {
				t.Errorf("%s: %d pixels stick out sideways", shot, over)
			}
			// A header's sums stay inside of the table, and its words are not cut off by the numbers.
			if eval[bool](ada, `[...document.querySelectorAll('tr[data-group] > *')].some(cell => cell.scrollWidth > cell.clientWidth + 1 && getComputedStyle(cell).display !== 'none')`) {
				t.Errorf("%s: a cell of a header is wider than its place", shot)
			}
		}
	}
}
