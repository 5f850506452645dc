package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// The API server is stopped and started again. The page says that what it shows is old, then that it is live, without a
// reload of the page or a restart of the program; a node deleted meanwhile does not haunt it.
func TestPage_SaysStaleThenLiveAgain(t *testing.T) {
	c := kubetest.StartOne(t)
	s := startServer(t, c.Kubeconfig)
	name := kubetest.Name(t, "n")
	nodes := c.Nodes(t, 3, func(i int) kubetest.NodeSpec { return kubetest.NodeSpec{Name: fmt.Sprintf("%s-%d", name, i)} })
	ada := s.signIn(t, "ada", "viewer")
	ada.visit("/nodes?q=" + name)
	ada.wait("three rows", `document.querySelectorAll('#rows tr').length === 3`)
	badge := func(state string) string { return there(fmt.Sprintf(`#clusters li[data-state=%s]`, state)) }
	ada.wait("live", badge("live"))
	eval[bool](ada, `window.notReloaded = true`)

	c.Stop(t, kubetest.APIServer)
	ada.wait("stale", badge("stale"))
	ada.screenshot("stale")
	if got := eval[int](ada, `document.querySelectorAll('#rows tr').length`); got != 3 {
		t.Errorf("while the cluster is away the page shows %d nodes, want the 3 it had", got)
	}
	c.StartComponent(t, kubetest.APIServer)
	c.DeleteNode(t, nodes[1].Name)
	ada.wait("live again", badge("live"))
	ada.wait("no ghost", `!(`+there(row(c.Name, nodes[1].Name))+`)`)
	c.Cordon(t, nodes[0].Name)
	ada.wait("changes arrive again", there(row(c.Name, nodes[0].Name)+`.cordoned`))
	if !eval[bool](ada, `window.notReloaded === true`) {
		t.Error("the page was reloaded in between")
	}
}

// A cluster that is down when the program starts delays neither the start nor the other clusters, and says so.
func TestStart_DeadClusterDelaysNobody(t *testing.T) {
	c := kubetest.Shared(t)
	dead := filepath.Join(t.TempDir(), "dead.kubeconfig")
	config := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"dead",
		"clusters":[{"name":"dead","cluster":{"server":"https://%s"}}],
		"users":[{"name":"u","user":{"token":"t"}}],
		"contexts":[{"name":"dead","context":{"cluster":"dead","user":"u"}}]}`, freePort(t))
	if err := os.WriteFile(dead, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	node := c.Node(t, kubetest.NodeSpec{Name: kubetest.Name(t, "n")}).Name
	s := startServer(t, dead, c.Kubeconfig)
	ada := s.signIn(t, "ada", "viewer")
	ada.wait("the living cluster's node is there", there(row(c.Name, node)))
	ada.wait("the dead one is called unreachable", there(`#clusters li[data-state=unreachable]`))
	ada.visit("/clusters/dead/nodes")
	ada.wait("its own page says why instead of showing an empty table", `document.getElementById('empty').checkVisibility() && `+in("#empty", "dead"))
	ada.screenshot("dead")

	var clusters struct {
		Items []struct{ Name, State, Reason string }
	}
	s.client(t, "eve", "viewer").json(200, &clusters, "GET", "/api/v1/clusters", "")
	got, _ := json.Marshal(clusters)
	states := map[string]string{}
	for _, i := range clusters.Items {
		states[i.Name] = i.State
	}
	if states["dead"] != "unreachable" || states[c.Name] != "live" {
		t.Errorf("clusters: %s", got)
	}
}
