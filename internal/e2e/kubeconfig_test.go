package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// TestKubeconfig_IsFollowedWhileRunning: contexts come, change and go in the file, and clusters do so on every page,
// without a restart; what makes no sense changes nothing.
func TestKubeconfig_IsFollowedWhileRunning(t *testing.T) {
	t.Parallel()
	k := kubetest.Shared(t)
	node := k.Node(t, kubetest.NodeSpec{}).Name
	good, err := clientcmd.LoadFromFile(k.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	stranger := *good.AuthInfos[good.Contexts[good.CurrentContext].AuthInfo]
	stranger.ClientCertificateData, stranger.ClientKeyData, stranger.Token = nil, nil, "nobody-knows-this-token"

	path := filepath.Join(t.TempDir(), "kubeconfig")
	write := func(contexts map[string]*clientcmdapi.AuthInfo) {
		t.Helper()
		config := clientcmdapi.NewConfig()
		cluster := good.Clusters[good.Contexts[good.CurrentContext].Cluster]
		for name, user := range contexts {
			config.Clusters[name], config.AuthInfos[name] = cluster, user
			config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
		}
		// As editors and secrets do it: never half a file.
		if err := clientcmd.WriteToFile(*config, path+".new"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	admin := good.AuthInfos[good.Contexts[good.CurrentContext].AuthInfo]
	write(map[string]*clientcmdapi.AuthInfo{"stays": admin, "goes": admin})

	s := startServer(t, path)
	who := s.client(t, "ada", "viewer")
	clusters := who.stream("GET", "/clusters/stream", "")
	nodes := who.stream("GET", "/api/v1/nodes/events?cluster=stays", "")
	leaving := who.stream("GET", "/api/v1/nodes/events?cluster=goes", "")
	nodes.until("the node", func(e event) bool { return e.Name == "node_add" && strings.Contains(e.Data, node) })
	state := func(name, want string) {
		t.Helper()
		clusters.until(name+" to be "+want, func(e event) bool {
			return slices.ContainsFunc(strings.Split(e.Data, "<tr "), func(row string) bool {
				return strings.Contains(row, `data-state="`+want+`"`) && strings.Contains(row, `>`+name+`</a>`)
			})
		})
	}

	write(map[string]*clientcmdapi.AuthInfo{"stays": admin, "comes": admin})
	state("comes", "live")
	leaving.until("the end", func(e event) bool { return e.Name == "bye" })
	var list struct{ Items []struct{ Name string } }
	who.json(200, &list, "GET", "/api/v1/clusters", "")
	if len(list.Items) != 2 || list.Items[0].Name != "comes" || list.Items[1].Name != "stays" {
		t.Errorf("clusters: %v, want comes and stays", list.Items)
	}

	if err := os.WriteFile(path, []byte("{ this is no kubeconfig"), 0o600); err != nil {
		t.Fatal(err)
	}
	write(map[string]*clientcmdapi.AuthInfo{"stays": &stranger, "comes": admin})
	state("stays", "unauthorized")
	write(map[string]*clientcmdapi.AuthInfo{"stays": admin, "comes": admin})
	state("stays", "live")

	// The same stream, opened before all of this, still follows the node.
	k.Cordon(t, node)
	nodes.until("the cordon", func(e event) bool {
		return e.Name == "node_update" && strings.Contains(e.Data, node) && strings.Contains(e.Data, `"schedulable":false`)
	})
}
