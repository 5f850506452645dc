package e2e

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// manifestRules are the rules of the ClusterRole or the Role that deploy/kubernetes ships.
func manifestRules(t *testing.T, kind string) []rbacv1.PolicyRule {
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
		if role.Kind == kind {
			rules = append(rules, role.Rules...)
		}
	}
	if len(rules) == 0 {
		t.Fatalf("rbac.yaml holds no %s with rules", kind)
	}
	return rules
}

// The role that we ship is enough for every feature, and nothing in it is idle: each verb on each resource is seen in
// the API server's audit log while the features are used, and nothing is refused.
func TestDeploy_RoleIsExactlyWhatTheFeaturesNeed(t *testing.T) {
	c := kubetest.StartOne(t)
	const user = "least-privilege"
	rules, inNamespace := manifestRules(t, "ClusterRole"), manifestRules(t, "Role")
	c.Grant(t, user, rules...)
	grantIn(t, c, user, "kube-node-manager", inNamespace)
	node := c.Node(t, kubetest.NodeSpec{Name: kubetest.Name(t, "n")}).Name
	ns := c.Namespace(t)
	c.Deployment(t, 2, kubetest.PodSpec{Namespace: ns})
	c.DaemonSet(t, kubetest.PodSpec{Namespace: ns})
	c.StatefulSet(t, 1, kubetest.PodSpec{Namespace: ns})
	claim(t, c, ns, node)
	webhook(t, c, ns)
	freeLease(t, c, node)
	c.Node(t, kubetest.NodeSpec{}) // for what is made again
	mark := c.AuditLog(t).Mark()
	s := startServer(t, c.UserKubeconfig(t, user))
	ada := s.client(t, "ada", "operator")
	st := ada.stream("GET", "/api/v1/nodes/events", "")
	st.until("the node", func(e event) bool { return e.Name == "node_add" && strings.Contains(e.Data, node) })
	ref := c.Name + "/" + node
	for _, fields := range []map[string]any{
		{"action": "cordon"},
		{"action": "uncordon"},
		{"action": "labels", "labels": "example.com/a=b"},
		{"action": "taints", "taints": "example.com/a=b:PreferNoSchedule"},
		{"action": "drain", "force": true, "wait_for_replacements": true, "uncordon_after": true},
	} {
		fields["nodes"], fields["reason"] = ref, "least privilege"
		if done := ada.batchDone(ada.post(fields)); done.Outcome != "succeeded" {
			t.Errorf("%s: %v %v", fields["action"], done, done.Items)
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
		what := e.Resource
		if e.Subresource != "" {
			what += "/" + e.Subresource
		}
		used[what+" "+e.Verb] = true
	}
	for _, rule := range append(rules, inNamespace...) {
		for _, res := range rule.Resources {
			for _, verb := range rule.Verbs {
				// With a streaming first list the reflector needs no list; it falls back to one on servers without it.
				if res == "nodes" && verb == "list" {
					continue
				}
				// What is ready elsewhere by the time of the list needs no watch any more.
				if verb == "watch" && slices.Contains([]string{"replicasets", "deployments", "statefulsets"}, res) && used[res+" list"] {
					continue
				}
				if res == "*" || verb == "*" || !used[res+" "+verb] {
					t.Errorf("the role holds what no feature uses: %s %s", verb, res)
				}
			}
		}
	}
	if slices.Contains(rules[0].Verbs, "*") {
		t.Error("a wildcard")
	}
}

// grantIn allows a user the rules in one namespace, which it makes.
func grantIn(t *testing.T, c *kubetest.Cluster, user, namespace string, rules []rbacv1.PolicyRule) {
	t.Helper()
	client, meta := c.Client(), metav1.ObjectMeta{Name: "granted"}
	_, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	if err == nil {
		_, err = client.RbacV1().Roles(namespace).Create(t.Context(), &rbacv1.Role{ObjectMeta: meta, Rules: rules}, metav1.CreateOptions{})
	}
	if err == nil {
		_, err = client.RbacV1().RoleBindings(namespace).Create(t.Context(), &rbacv1.RoleBinding{
			ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: meta.Name},
			Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
		}, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// webhook makes an admission webhook that must answer, and is asked about nothing that exists.
func webhook(t *testing.T, c *kubetest.Cluster, namespace string) {
	t.Helper()
	none := admissionregistrationv1.SideEffectClassNone
	_, err := c.Client().AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(t.Context(), &admissionregistrationv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "guard"},
		Webhooks: []admissionregistrationv1.ValidatingWebhook{{
			Name: "guard.example.com", AdmissionReviewVersions: []string{"v1"}, SideEffects: &none,
			FailurePolicy: new(admissionregistrationv1.Fail),
			ClientConfig:  admissionregistrationv1.WebhookClientConfig{Service: &admissionregistrationv1.ServiceReference{Namespace: namespace, Name: "guard"}},
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{"example.com"}, APIVersions: []string{"v1"}, Resources: []string{"widgets"}},
			}},
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// freeLease leaves a node's Lease behind that nobody holds.
func freeLease(t *testing.T, c *kubetest.Cluster, node string) {
	t.Helper()
	_, err := c.Client().CoordinationV1().Leases("kube-node-manager").Create(t.Context(), &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: "knm-node-" + node},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// claim makes a bare pod on a node with a claim of its own, whose volume is what a drain asks about.
func claim(t *testing.T, c *kubetest.Cluster, namespace, node string) {
	t.Helper()
	_, err := c.Client().CoreV1().PersistentVolumeClaims(namespace).Create(t.Context(), &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "data"},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: new(""),
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// A static pod stays, and so what it has mounted has to be known before volumes are waited for.
	c.Pod(t, kubetest.PodSpec{Namespace: namespace, Node: node, Mutate: func(p *corev1.Pod) {
		p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
		p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"},
		}}}
	}})
}
