package e2e

import (
	"fmt"
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// Every page in light and dark, English and Chinese, on a desk and on a phone: nothing sticks out sideways, nothing is
// refused by the content security policy (the tab's own check), and a picture of each is kept for people to look at.
func TestPages_EveryLook(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServer(t, c.Kubeconfig)
	name := kubetest.Name(t, "n")
	node := c.Nodes(t, 12, func(i int) kubetest.NodeSpec { return kubetest.NodeSpec{Name: fmt.Sprintf("%s-%02d", name, i)} })[0].Name
	ada := s.signIn(t, "ada", "admin")
	var b batch
	s.client(t, "root", "admin").json(202, &b, "POST", "/api/v1/batches",
		fmt.Sprintf(`{"action":"cordon","nodes":"%s/%s\n%s/%s-nothing","reason":"to be looked at"}`, c.Name, node, c.Name, name))
	pages := map[string]string{
		"nodes": "/nodes?q=" + name, "node": "/clusters/" + c.Name + "/nodes/" + node, "clusters": "/clusters", "batches": "/batches",
		"batch": "/batches/" + b.ID, "account": "/account", "users": "/users", "audit": "/audit", "bad-query": "/nodes?q=colour:red",
		"not-found": "/clusters/nowhere/nodes",
	}
	for _, look := range []struct {
		name          string
		width, height int64
		dark          bool
		lang          string
	}{
		{"desk-light-en", 1280, 900, false, "en"},
		{"desk-dark-zh", 1280, 900, true, "zh"},
		{"phone-dark-en", 390, 844, true, "en"},
		{"phone-light-zh", 390, 844, false, "zh"},
	} {
		ada.size(look.width, look.height)
		ada.dark(look.dark)
		ada.visit("/nodes?lang=" + look.lang)
		for page, path := range pages {
			ada.visit(path)
			ada.wait("the language is the chosen one", `document.documentElement.lang.startsWith(`+quote(look.lang)+`)`)
			ada.wait(page+" is live, or has nothing that moves", `!document.querySelector('[data-live]') || !document.getElementById('live-state') ||
				['live', 'ended'].includes(document.getElementById('live-state').dataset.uiState)`)
			ada.screenshot(look.name + "-" + page)
			if over := eval[int](ada, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); over > 0 {
				t.Errorf("%s, %s: %d pixels stick out sideways", page, look.name, over)
			}
		}
	}
}

// The keys that the help names do what it says.
func TestPages_Keyboard(t *testing.T) {
	c := kubetest.Shared(t)
	s := startServer(t, c.Kubeconfig)
	name := kubetest.Name(t, "n")
	c.Nodes(t, 4, func(i int) kubetest.NodeSpec { return kubetest.NodeSpec{Name: fmt.Sprintf("%s-%d", name, i)} })
	ada := s.signIn(t, "ada", "operator")
	ada.visit("/nodes?q=" + name)
	ada.wait("four rows", `document.querySelectorAll('#rows tr').length === 4`)
	ada.keys("j")
	ada.keys("j")
	ada.keys("x")
	ada.wait("the second row is selected", `document.querySelectorAll('#rows tr')[1].querySelector('.c-sel input').checked`)
	ada.keys("a")
	ada.wait("all are selected", `document.querySelectorAll('#rows .c-sel input:checked').length === 4`)
	ada.keys("/")
	ada.wait("the filter has the focus", `document.activeElement.id === 'q'`)
}
