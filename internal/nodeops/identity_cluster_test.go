package nodeops_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// shipped are the rules of a role in one of the manifests that we ship.
func shipped(t *testing.T, manifest, kind, name string) []rbacv1.PolicyRule {
	t.Helper()
	text, err := os.ReadFile("../../deploy/kubernetes/" + manifest)
	if err != nil {
		t.Fatal(err)
	}
	dec := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		var role rbacv1.ClusterRole
		err := dec.Decode(&role)
		if errors.Is(err, io.EOF) {
			t.Fatalf("%s has no %s %s", manifest, kind, name)
		}
		if err != nil {
			t.Fatalf("%s: %v", manifest, err)
		}
		if role.Kind == kind && role.Name == name {
			return role.Rules
		}
	}
}

// grantGroup allows a group the rules until the test ends.
func grantGroup(t *testing.T, c *kubetest.Cluster, group string, rules []rbacv1.PolicyRule) {
	t.Helper()
	rbac, meta := c.Client().RbacV1(), metav1.ObjectMeta{Name: kubetest.Name(t, "group")}
	if _, err := rbac.ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: meta, Rules: rules}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := rbac.ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: meta.Name},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: group}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// impersonating is a product that acts as people in a cluster of its own, with the role of one of the manifests.
func impersonating(t *testing.T, c *kubetest.Cluster, manifest string) (w *whole, us string) {
	t.Helper()
	us = kubetest.Name(t, "us")
	c.Grant(t, us, append(shipped(t, manifest, "ClusterRole", "kube-node-manager"), shipped(t, manifest, "Role", "kube-node-manager")...)...)
	w = setUp(t, c, c.User(t, us))
	w.terms = fleet.Terms{Impersonate: true, Prefix: "knm:"}
	return w, us
}

// TestImpersonate_EveryWriteIsThePersons runs every verb with exactly the roles that we ship, and reads the API server's
// own record of it: each write was ours in the name of the person, and says for which batch.
func TestImpersonate_EveryWriteIsThePersons(t *testing.T) {
	t.Parallel()
	c := kubetest.StartOne(t)
	grantGroup(t, c, "knm:role:operator", shipped(t, "rbac-impersonate.yaml", "ClusterRole", "kube-node-manager-operator"))
	for _, manifest := range []string{"rbac-impersonate.yaml", "rbac-impersonate-constrained.yaml"} {
		t.Run(manifest, func(t *testing.T) {
			t.Parallel()
			w, us := impersonating(t, c, manifest)
			w.run()
			node := c.Node(t, kubetest.NodeSpec{})
			ns := c.Namespace(t)
			c.Pod(t, kubetest.PodSpec{Namespace: ns, Node: node.Name})
			mark := c.AuditLog(t).Mark()
			var batches []string
			for _, op := range []fleet.Operation{
				cordon, uncordon, labels("example.com/a=b"), taints("example.com/a=b:PreferNoSchedule"),
				{Action: fleet.ActionDrain, Drain: &fleet.DrainOptions{GracePeriodSeconds: -1, TimeoutSeconds: 600, Force: true}},
			} {
				w.plan(op, node.Name)
				id := w.submit(op, node.Name)
				b, items := w.wait(id)
				if b.Outcome != fleet.OutcomeSucceeded {
					t.Fatalf("%s: %+v", op.Action, items)
				}
				batches = append(batches, id)
			}
			seen := map[string]int{}
			for _, e := range c.AuditLog(t).Since(mark, kubetest.Verb("create", "update", "patch", "delete")) {
				if e.User != us {
					continue
				}
				if e.Code >= 400 {
					t.Errorf("the role is too small: %s %s/%s: %s", e.Verb, e.Resource, e.Subresource, e.Message)
				}
				what := strings.TrimSuffix(e.Resource+"/"+e.Subresource, "/")
				seen[e.Verb+" "+what]++
				switch what {
				case "leases":
					if e.As != "" {
						t.Errorf("a lease is of %s", e.As)
					}
					continue
				case "selfsubjectaccessreviews":
					continue
				}
				if e.As != "knm:ada" || !slices.Contains(e.AsGroups, "knm:role:operator") {
					t.Errorf("%s %s as %q in %q", e.Verb, what, e.As, e.AsGroups)
				}
				if !slices.ContainsFunc(batches, func(id string) bool { return strings.HasSuffix(e.UserAgent, " (by=ada; batch="+id+")") }) ||
					!strings.HasPrefix(e.UserAgent, agent+"test ") {
					t.Errorf("%s %s says it is %q", e.Verb, what, e.UserAgent)
				}
			}
			if seen["patch nodes"] != 5 || seen["create pods/eviction"] != 1 || seen["create leases"] != 1 {
				t.Errorf("the API server saw %v", seen)
			}
			// Our own record says who it was there, before each of the writes.
			for _, e := range w.onRecord(batches[4]) {
				if !strings.HasPrefix(e.Action, "batch.") && e.As != "knm:ada" {
					t.Errorf("on record without the person: %+v", e)
				}
			}
		})
	}
}

// TestImpersonate_RefusedToThePerson: the cluster's own permissions decide, whatever ours say.
func TestImpersonate_RefusedToThePerson(t *testing.T) {
	t.Parallel()
	c := kubetest.StartOne(t)
	w, us := impersonating(t, c, "rbac-impersonate-constrained.yaml")
	w.run()
	node := c.Node(t, kubetest.NodeSpec{})
	mark := c.AuditLog(t).Mark()
	for _, op := range []fleet.Operation{cordon, {Action: fleet.ActionDrain}} {
		plan := w.plan(op, node.Name)
		if p := plan.Clusters[0].Nodes[0]; p.Verdict != fleet.NodeBlocked || p.Fault != fleet.CodeForbidden {
			t.Errorf("the plan of %s says %+v", op.Action, p)
		}
		_, items := w.wait(w.submit(op, node.Name))
		if it := items[0]; it.State != fleet.ItemFailed || it.Code != fleet.CodeForbidden || !strings.HasPrefix(it.Error, "cluster "+c.Name+" refused knm:ada: ") {
			t.Errorf("%s: %+v", op.Action, it)
		}
	}
	for _, e := range c.AuditLog(t).Writes(mark, "nodes") {
		if e.User == us && (e.As != "knm:ada" || e.Code != 403) {
			t.Errorf("a write as %q was answered with %d", e.As, e.Code)
		}
	}
	if w.live(node.Name).Spec.Unschedulable {
		t.Error("it was cordoned")
	}
}

// TestImpersonate_NobodyOfTheClustersOwn: a name that the cluster would take for its own never leaves us.
func TestImpersonate_NobodyOfTheClustersOwn(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	w.terms = fleet.Terms{Impersonate: true}
	w.name = "system:admin"
	node := c.Node(t, kubetest.NodeSpec{})
	mark := c.AuditLog(t).Mark()
	w.run()
	_, items := w.wait(w.submit(cordon, node.Name))
	if it := items[0]; it.Code != fleet.CodeForbidden || !strings.Contains(it.Error, `"system:admin" begins with system:`) {
		t.Errorf("%+v", it)
	}
	if asked := c.AuditLog(t).Since(mark, kubetest.ByAgent(agent), kubetest.Named(node.Name)); len(asked) > 0 {
		t.Errorf("the cluster was asked: %+v", asked)
	}
}

// TestImpersonate_WhatTheRolesDoNotPermit: with the credential itself, past all of our own rules.
func TestImpersonate_WhatTheRolesDoNotPermit(t *testing.T) {
	t.Parallel()
	c := kubetest.StartOne(t)
	admin := rbacv1.PolicyRule{APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"*"}}
	c.Grant(t, "knm:root", admin)
	node := c.Node(t, kubetest.NodeSpec{})
	patch := []byte(`{"metadata":{"labels":{"example.com/x":"y"}}}`)
	for _, manifest := range []string{"rbac-impersonate.yaml", "rbac-impersonate-constrained.yaml"} {
		us := kubetest.Name(t, "us")
		c.Grant(t, us, shipped(t, manifest, "ClusterRole", "kube-node-manager")...)
		client, err := kube.New(c.Name, c.User(t, us))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.CloseIdle)
		as := func(user string, groups ...string) kubePatcher {
			acts, err := client.As(fleet.Persona{User: user, Groups: groups})
			if err != nil {
				t.Fatal(err)
			}
			return kubePatcher{t, acts, node.Name}
		}
		as("knm:root").patch("of a person", patch, true)
		as("knm:root", "system:masters").patch("in system:masters", patch, false)
		as("system:node:"+node.Name).patch("of a node", patch, false)
		kubePatcher{t, client.Ops, node.Name}.patch("of our own", patch, false)
		narrow := manifest != "rbac-impersonate.yaml"
		// Only the narrow role keeps a person with great powers from being made to do anything else.
		if err := as("knm:root").client.CoreV1().Nodes().Delete(t.Context(), "no-such-node", metav1.DeleteOptions{}); errors.Is(kube.Error(err), fleet.ErrForbidden) != narrow {
			t.Errorf("%s: deleting a node as a person: %v", manifest, err)
		}
		if _, err := as("knm:root").client.CoreV1().Secrets("default").List(t.Context(), metav1.ListOptions{}); errors.Is(kube.Error(err), fleet.ErrForbidden) != narrow {
			t.Errorf("%s: reading secrets as a person: %v", manifest, err)
		}
	}
}

// kubePatcher tries to change a node.
type kubePatcher struct {
	t      *testing.T
	client kubernetes.Interface
	node   string
}

func (p kubePatcher) patch(what string, body []byte, good bool) {
	p.t.Helper()
	_, err := p.client.CoreV1().Nodes().Patch(p.t.Context(), p.node, types.MergePatchType, body, metav1.PatchOptions{})
	switch {
	case good && err != nil:
		p.t.Errorf("a patch %s: %v", what, err)
	case !good && !errors.Is(kube.Error(err), fleet.ErrForbidden):
		p.t.Errorf("a patch %s was not refused: %v", what, err)
	}
}

// TestShared_IsOurOwn: without impersonation nobody is named but in the user agent.
func TestShared_IsOurOwn(t *testing.T) {
	t.Parallel()
	c := kubetest.Shared(t)
	w := setUp(t, c, c.REST())
	w.run()
	node := c.Node(t, kubetest.NodeSpec{})
	mark := c.AuditLog(t).Mark()
	id := w.submit(cordon, node.Name)
	w.wait(id)
	writes := c.AuditLog(t).Writes(mark, "nodes", kubetest.Named(node.Name), kubetest.ByAgent(agent))
	if len(writes) != 1 || writes[0].As != "" || writes[0].UserAgent != agent+"test (by=ada; batch="+id+")" {
		t.Errorf("%+v", writes)
	}
	for _, e := range w.onRecord(id) {
		if e.As != "" {
			t.Errorf("on record as %s", e.As)
		}
	}
}
