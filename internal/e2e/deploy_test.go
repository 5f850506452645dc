package e2e

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// manifestRules are the rules of the one ClusterRole that deploy/kubernetes ships.
func manifestRules(t *testing.T) []rbacv1.PolicyRule {
	t.Helper()
	manifest, err := os.ReadFile("../../deploy/kubernetes/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var rules []rbacv1.PolicyRule
	dec := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifest), 4096)
	for {
		var role rbacv1.ClusterRole
		err := dec.Decode(&role)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("rbac.yaml: %v", err)
		}
		if role.Kind == "ClusterRole" {
			rules = append(rules, role.Rules...)
		}
	}
	if len(rules) == 0 {
		t.Fatal("rbac.yaml holds no ClusterRole with rules")
	}
	return rules
}

// The role that we ship is enough for every feature, and nothing in it is idle: each verb on each resource is seen in
// the API server's audit log while the features are used, and nothing is refused.
func TestDeploy_RoleIsExactlyWhatTheFeaturesNeed(t *testing.T) {
	c := kubetest.StartOne(t)
	const user = "least-privilege"
	rules := manifestRules(t)
	c.Grant(t, user, rules...)
	node := c.Node(t, kubetest.NodeSpec{Name: kubetest.Name(t, "n")}).Name
	mark := c.AuditLog(t).Mark()
	s := startServer(t, c.UserKubeconfig(t, user))
	ada := s.client(t, "ada", "operator")
	st := ada.stream("GET", "/api/v1/nodes/events", "")
	st.until("the node", func(e event) bool { return e.Name == "node_add" && strings.Contains(e.Data, node) })
	ref := c.Name + "/" + node
	for _, action := range []string{"cordon", "uncordon"} {
		var b batch
		ada.json(202, &b, "POST", "/api/v1/batches", `{"action":"`+action+`","nodes":"`+ref+`","reason":"least privilege"}`)
		if done := ada.batchDone(b.ID); done.Outcome != "succeeded" {
			t.Errorf("%s: %v", action, done)
		}
	}
	resp := ada.send("GET", "/clusters/"+c.Name+"/nodes/"+node+"/pods", "", "", "Accept", "text/html")
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != 200 || bytes.Contains(body, []byte("problem")) {
		t.Errorf("pods: %s %v\n%s", resp.Status, err, body)
	}

	used := map[string]bool{}
	for _, e := range c.AuditLog(t).Since(mark, kubetest.ByUser(user)) {
		if e.Code == 403 {
			t.Errorf("the role is too small: %s %s %s was refused", e.Verb, e.Resource, e.Name)
		}
		used[e.Resource+" "+e.Verb] = true
	}
	for _, rule := range rules {
		for _, resource := range rule.Resources {
			for _, verb := range rule.Verbs {
				// With a streaming first list the reflector needs no list; it falls back to one on servers without it.
				if resource == "nodes" && verb == "list" {
					continue
				}
				if resource == "*" || verb == "*" || !used[resource+" "+verb] {
					t.Errorf("the role holds what no feature uses: %s %s", verb, resource)
				}
			}
		}
	}
	if slices.Contains(rules[0].Verbs, "*") {
		t.Error("a wildcard")
	}
}
