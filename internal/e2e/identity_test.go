package e2e

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// The whole program in front of a cluster that knows people: it is who is signed in that acts, and nothing that a browser
// sends says otherwise. What the cluster does not permit our credential is refused before anything is sent.
func TestIdentity_OfWhoIsSignedIn(t *testing.T) {
	c := kubetest.StartOne(t)
	const us = "us"
	c.Grant(t, us, kubetest.Rule("", "nodes", "get", "list", "watch"), kubetest.Rule("", "pods", "list", "watch"),
		kubetest.Rule("", "groups", "impersonate"), kubetest.Rule("", "users", "impersonate"))
	c.Grant(t, "knm:ada", kubetest.Rule("", "nodes", "patch"))
	node := c.Node(t, kubetest.NodeSpec{}).Name
	ref := c.Name + "/" + node
	s := startServerWith(t, "--kubeconfig", c.UserKubeconfig(t, us), "--cluster-identity", c.Name[:1]+"*=impersonate", "--cluster-labels", c.Name+":env=prod")
	ada := s.client(t, "ada", "operator")
	ada.stream("GET", "/api/v1/nodes/events", "").until("the node", func(e event) bool { return e.Name == "node_add" && strings.Contains(e.Data, node) })

	mark := c.AuditLog(t).Mark()
	evil := []string{
		"Impersonate-User", "system:admin", "Impersonate-Group", "system:masters", "Impersonate-Uid", "1", "Impersonate-Extra-Scopes", "all",
		"Connection", "close, Impersonate-User, Impersonate-Group",
	}
	var made struct{ ID string }
	ada.json(http.StatusAccepted, &made, "POST", "/api/v1/batches", `{"action":"cordon","nodes":"`+ref+`"}`, evil...)
	if b := ada.batchDone(made.ID); b.Outcome != "succeeded" {
		t.Errorf("%+v", b)
	}
	resp := ada.send("GET", "/clusters/"+c.Name+"/nodes/"+node+"/pods", "", "", append([]string{"Accept", "text/html"}, evil...)...)
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("pods: %s", resp.Status)
	}
	writes := 0
	for _, e := range c.AuditLog(t).Since(mark) {
		switch {
		case e.User != us:
			continue
		case e.Verb == "patch":
			writes++
			if e.As != "knm:ada" || !slices.Equal(e.AsGroups, []string{"knm:role:operator", "system:authenticated"}) || e.Code != 200 {
				t.Errorf("the node was patched as %q in %q: %d", e.As, e.AsGroups, e.Code)
			}
		case e.As != "":
			t.Errorf("%s %s as %q", e.Verb, e.Path, e.As)
		}
	}
	if writes != 1 {
		t.Errorf("%d writes", writes)
	}

	var list struct {
		Items []struct {
			Identity, Labels string
			Rights           []struct {
				Verb    string
				Allowed bool
			}
		}
	}
	ada.json(http.StatusOK, &list, "GET", "/api/v1/clusters", "")
	if len(list.Items) != 1 || list.Items[0].Identity != "impersonate" || list.Items[0].Labels != "env=prod" || len(list.Items[0].Rights) == 0 {
		t.Errorf("the cluster is shown as %+v", list)
	}
}

// A batch that the cluster has just said it would refuse is refused at once, with the cluster and the right; the page
// offers no button for it.
func TestIdentity_RefusedForLackOfRights(t *testing.T) {
	c := kubetest.StartOne(t)
	const us = "reader"
	c.Grant(t, us, kubetest.Rule("", "nodes", "get", "list", "watch"), kubetest.Rule("", "pods", "list", "watch"))
	node := c.Node(t, kubetest.NodeSpec{}).Name
	s := startServer(t, c.UserKubeconfig(t, us))
	ada := s.client(t, "ada", "operator")
	ada.stream("GET", "/clusters/stream", "").until("the rights", func(e event) bool { return strings.Contains(e.Data, "We may not: change nodes") })
	var problem struct{ Field, Detail string }
	body := `{"action":"cordon","nodes":"` + c.Name + "/" + node + `"}`
	ada.json(http.StatusUnprocessableEntity, &problem, "POST", "/api/v1/batches", body)
	if problem.Field != "nodes" || !strings.Contains(problem.Detail, c.Name) || !strings.Contains(problem.Detail, "patch nodes") {
		t.Errorf("%+v", problem)
	}
	resp := ada.send("GET", "/clusters/"+c.Name+"/nodes/"+node, "", "", "Accept", "text/html")
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	want := `name="action" value="cordon" disabled title="` + c.Name + ` does not let us: change nodes"`
	if err != nil || !strings.Contains(string(page), want) {
		t.Errorf("the button for cordon is not disabled (%v):\n%s", err, page)
	}
}
