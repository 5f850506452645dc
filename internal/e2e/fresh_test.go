package e2e

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
	"github.com/kube-node-manager/kube-node-manager/internal/store"
)

// older makes every session look as if its person had proven who they are that much earlier.
func (s *server) older(by time.Duration) {
	s.t.Helper()
	st, err := store.Open(s.t.Context(), store.Config{Dir: s.dataDir})
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() {
		if err := st.Close(); err != nil {
			s.t.Error(err)
		}
	}()
	if err := st.Tx(s.t.Context(), func(tx *store.Tx) error {
		_, err := tx.Exec(`UPDATE sessions SET data = json_set(data, '$.values.proven', json_extract(data, '$.values.proven') - ?)`, by.Microseconds())
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
}

// A tab that somebody left open does not drain a cluster. Its owner is told before they press, signs in again in another
// tab, and goes on in the first one, where all they had typed still is; what else was open in that browser follows on.
func TestDrain_NeedsAFreshSignIn(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	s := startServerWith(t, "--kubeconfig", c.Kubeconfig, "--lease-namespace", "default")
	const many = 11
	name := kubetest.Name(t, "n")
	var nodes, refs []string
	for i := range many {
		nodes = append(nodes, c.Node(t, kubetest.NodeSpec{Name: name + string(rune('a'+i)), Pods: "0"}).Name)
		refs = append(refs, c.Name+"/"+nodes[i])
	}
	plan := "/plan?" + url.Values{"action": {"drain"}, "nodes": {strings.Join(refs, "\n")}, "max_concurrent": {"11"}, "reason": {"rack 4"}}.Encode()

	password := s.addUser("ada", "operator")
	ada := newTab(t, s.url)
	ada.enters("ada", password)
	ada.wait("signed in", atNodes)
	old := ada.cookies()["knm"]
	follower := ada.sibling()
	follower.visit("/nodes?q=" + name)
	follower.wait("the list is live", isLive+` && !document.hidden && `+there(row(c.Name, nodes[0])))
	eval[bool](follower, `window.notReloaded = true`)

	const start, notice = `#confirm button[data-confirm]`, `#sign-in-again`
	ada.visit(plan)
	ada.wait("a fresh sign-in will do", there(start)+` && !`+there(notice))
	s.older(43 * time.Minute)
	ada.visit(plan)
	ada.wait("it says that it is too old", in(notice, "You signed in 43 min ago. Before this drain, sign in again."))
	ada.fill("#f-confirm", c.Name)
	eval[bool](ada, `window.sameDocument = true`)
	ada.click(start)
	ada.wait("refused, with what was typed", `window.sameDocument === undefined && `+there(notice)+` && document.querySelector('#f-confirm').value === `+quote(c.Name))
	ada.screenshot("1-too-old")
	root := s.client(t, "root", "admin")
	var record struct {
		Items []struct{ Actor, Action, Outcome, Detail string }
	}
	root.json(http.StatusOK, &record, "GET", "/api/v1/audit?action=batch.create", "")
	if len(record.Items) != 1 || record.Items[0].Outcome != "denied" || record.Items[0].Actor != "ada" || !strings.Contains(record.Items[0].Detail, "sign in again") {
		t.Errorf("on record: %+v", record.Items)
	}

	link := `document.querySelector('` + notice + ` a')`
	if got := eval[string](ada, link+`.target + ' ' + `+link+`.rel`); got != "_blank noopener" {
		t.Errorf("the link opens in %q", got)
	}
	again := ada.sibling()
	again.visit(eval[string](ada, link+`.getAttribute('href')`))
	again.wait("who they are is known", `document.querySelector('input[name=username]').value === 'ada'`)
	again.screenshot("2-again")
	again.fill("input[name=password]", password)
	again.click("form[action='/login'] button")
	again.wait("sent back", `location.pathname === '/login/done'`)
	again.screenshot("3-back")
	if got := ada.cookies()["knm"]; got == old || s.asCookie("knm", old) != http.StatusUnauthorized {
		t.Error("the session of before is still good")
	}

	c.Label(t, nodes[0], "topology.kubernetes.io/zone", "moon")
	follower.wait("another tab follows on", isLive+` && window.notReloaded && `+in(row(c.Name, nodes[0])+` .c-zone`, "moon"))
	if eval[bool](follower, there(`#live-bar`)) {
		t.Errorf("another tab says %q", follower.text("#live-bar"))
	}

	ada.click(start)
	ada.wait("the batch runs to its end", there(`#batch-progress[data-state=done][data-outcome=succeeded]`))
	for _, node := range nodes {
		c.WaitNode(t, node, func(n *corev1.Node) bool { return n.Spec.Unschedulable })
	}
}
