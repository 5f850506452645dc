package e2e

import (
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// TestGrants_OneClusterForOnePerson: an admin gives somebody one of two clusters. Their session ends; signed in again they
// see that cluster and nothing of the other, and what is open ends when it is taken away again.
func TestGrants_OneClusterForOnePerson(t *testing.T) {
	k := kubetest.Shared(t)
	k.Node(t, kubetest.NodeSpec{})
	good, err := clientcmd.LoadFromFile(k.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config := clientcmdapi.NewConfig()
	at := good.Contexts[good.CurrentContext]
	for _, name := range []string{"prod-hers", "hidden-cluster"} { // two names for what is one API server
		config.Clusters[name], config.AuthInfos[name] = good.Clusters[at.Cluster], good.AuthInfos[at.AuthInfo]
		config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	s := startServerWith(t, "--kubeconfig", path, "--cluster-labels", "prod-*:env=prod")
	root := s.signIn(t, "root", "admin")
	root.wait("both clusters are there", there(`#rows [data-ref^="prod-hers/"]`)+` && `+there(`#rows [data-ref^="hidden-cluster/"]`))

	password := s.addUser("ada", "none")
	ada := newTab(t, s.url)
	signIn := func(next string) {
		t.Helper()
		ada.visit("/login?next=" + next)
		ada.fill("input[name=username]", "ada")
		ada.fill("input[name=password]", password)
		ada.click("form[action='/login'] button")
		ada.wait("she is signed in", `location.pathname === `+quote(next))
	}
	signIn("/account")
	ada.wait("she may do nothing", in("#may-everywhere", "none")+` && !(`+there("#may-grants")+`)`)

	const hers = `tr:has(form[action="/api/v1/users/ada"]) `
	root.visit("/users")
	root.click(hers + "details.fold > summary")
	root.fill(hers+"input[name=grant]", "label:env=prod")
	eval[bool](root, `document.querySelector(`+quote(hers+"select[name=grant_role]")+`).value = 'operator', true`)
	root.click(hers + `input[name=also][value="node.no_execute"]`)
	root.screenshot("grant")
	root.click(hers + ".grantform button")
	root.wait("the grant is shown in words", in(hers+".grants", "label:env=prod")+` && `+in(hers+".grants", "set taints that delete pods"))

	ada.visit("/account")
	ada.wait("her session has ended", `location.pathname === '/login'`)
	signIn("/nodes")
	ada.wait("she sees the nodes of her cluster", there(`#rows [data-ref^="prod-hers/"]`))
	ada.wait("the list is live", there(`#live-state[data-ui-state=live]`))
	for _, page := range []string{"/nodes", "/clusters", "/batches", "/account"} {
		if page != "/nodes" {
			ada.visit(page)
		}
		ada.wait(page+" is there in full", `document.readyState === 'complete' && !!document.querySelector('main')`)
		if html := eval[string](ada, "document.documentElement.outerHTML"); strings.Contains(html, "hidden-cluster") {
			t.Errorf("%s shows the other cluster", page)
		}
	}
	ada.visit("/clusters/hidden-cluster/nodes")
	ada.wait("the other cluster is not there", in("h1", "There is no such thing"))

	ada.visit("/nodes")
	ada.wait("the list is live again", there(`#live-state[data-ui-state=live]`))
	root.click(hers + `button[name=revoke][value="label:env=prod"]`)
	root.wait("it is taken away", `!(`+there(hers+".grants")+`)`)
	ada.wait("her open page says that she is signed out", there(`#live-bar a[href^="/login"]`))
}
