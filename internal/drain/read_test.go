package drain

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// TestRead_Large: of a cluster with too many pods those of the targets and of so many other nodes are read, and the plan
// of the targets is the same.
func TestRead_Large(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	// The first ones by name: the nodes of other tests take no pod of this one.
	name := kubetest.Name(t, "n")
	nodes := b.c.Nodes(t, 4, func(i int) kubetest.NodeSpec { return kubetest.NodeSpec{Name: fmt.Sprintf("0%s-%d", name, i)} })
	b.c.Deployment(t, 12, kubetest.PodSpec{Namespace: ns, Name: "web"})
	b.c.PDB(t, ns, "web", "10")
	b.c.Cordon(t, nodes[3].Name)
	target := nodes[0].Name
	whole, err := readUpTo(t.Context(), b.c.Name, b.kube.Watch, []string{target}, limits{allPods: maxAllPods, checked: maxChecked})
	if err != nil {
		t.Fatal(err)
	}
	mark := b.c.AuditLog(t).Mark()
	part, err := readUpTo(t.Context(), b.c.Name, b.kube.Watch, []string{target}, limits{allPods: 1, checked: 2})
	if err != nil {
		t.Fatal(err)
	}
	if !whole.AllPods || part.AllPods || len(part.PodsOf) != 3 || !part.PodsOf[target] || part.PodsOf[nodes[3].Name] {
		t.Errorf("read %t the pods of %v, and %t", part.AllPods, part.PodsOf, whole.AllPods)
	}
	for i := range part.Pods {
		if !part.PodsOf[part.Pods[i].Spec.NodeName] {
			t.Errorf("read a pod of %q", part.Pods[i].Spec.NodeName)
		}
	}
	for _, e := range b.c.AuditLog(t).Reads(mark, "pods", kubetest.ByAgent(b.agent)) {
		if !strings.Contains(e.Path, "spec.nodeName") && !strings.Contains(e.Path, "limit=1") {
			t.Errorf("read all pods: %s", e.Path)
		}
	}
	now := time.Now()
	want, got := NewPlan(whole, []Target{{Name: target}}, Policy{}, now), NewPlan(part, []Target{{Name: target}}, Policy{}, now)
	if want.Counts.Evict == 0 || got.Counts != want.Counts || got.Capacity.Unfit != 0 || got.Capacity.Checked != 2 || got.Capacity.Nodes != len(part.Nodes) {
		t.Errorf("counts %+v, want %+v; capacity %+v", got.Counts, want.Counts, got.Capacity)
	}
}

// TestRead_Webhooks: those that must answer and the nodes that serve them, from the endpoints of their services.
func TestRead_Webhooks(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ns := b.c.Namespace(t)
	node := b.c.Node(t, kubetest.NodeSpec{})
	b.c.Deployment(t, 1, kubetest.PodSpec{Namespace: ns, Name: "hook"})
	_, err := b.c.Client().CoreV1().Services(ns).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "hook"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "hook"}, Ports: []corev1.ServicePort{{Port: 443}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b.waitEndpoints(ns, "hook", node.Name)
	name := kubetest.Name(t, "hook")
	hook := func(name string, policy admissionv1.FailurePolicyType, to admissionv1.WebhookClientConfig) admissionv1.ValidatingWebhook {
		return admissionv1.ValidatingWebhook{
			Name: name + ".example.com", FailurePolicy: &policy, ClientConfig: to,
			SideEffects: new(admissionv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"},
			// It looks at nothing, so that the other tests are left alone.
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": name}},
		}
	}
	service := admissionv1.WebhookClientConfig{Service: &admissionv1.ServiceReference{Namespace: ns, Name: "hook"}}
	b.webhooks(name,
		hook("must", admissionv1.Fail, service), hook("may", admissionv1.Ignore, service),
		hook("outside", admissionv1.Fail, admissionv1.WebhookClientConfig{URL: new("https://example.com/")}))
	r, err := Read(t.Context(), b.c.Name, b.kube.Watch, b.kube.Watch, []string{node.Name})
	if err != nil {
		t.Fatal(err)
	}
	mine := slices.DeleteFunc(r.Webhooks, func(w Webhook) bool { return !strings.HasPrefix(w.Name, name) })
	if len(mine) != 1 || mine[0].Name != name+": must.example.com" || mine[0].Service != ns+"/hook" || !slices.Equal(mine[0].Nodes, []string{node.Name}) {
		t.Errorf("webhooks %+v", mine)
	}
	plan := NewPlan(r, []Target{{Name: node.Name}}, Policy{}, time.Now())
	if !slices.ContainsFunc(plan.Warnings, func(w fleet.Impact) bool {
		return w.Code == WarnWebhookDeadlock && strings.HasPrefix(w.Detail, name)
	}) {
		t.Errorf("warnings %+v", plan.Warnings)
	}
}

// waitEndpoints waits until a node serves a service.
func (b *bench) waitEndpoints(ns, service, node string) {
	b.t.Helper()
	w, err := b.c.Client().DiscoveryV1().EndpointSlices(ns).Watch(b.t.Context(), metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=" + service, SendInitialEvents: new(true),
		ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, AllowWatchBookmarks: true,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		if s, ok := e.Object.(*discoveryv1.EndpointSlice); ok && slices.Contains(serving([]discoveryv1.EndpointSlice{*s}), node) {
			return
		}
	}
	b.t.Fatalf("no endpoint of %s on %s", service, node)
}

// webhooks makes a configuration of validating webhooks.
func (b *bench) webhooks(name string, hooks ...admissionv1.ValidatingWebhook) {
	b.t.Helper()
	api := b.c.Client().AdmissionregistrationV1().ValidatingWebhookConfigurations()
	_, err := api.Create(b.t.Context(), &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: hooks}, metav1.CreateOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { b.dropWebhooks(name) })
}

// dropWebhooks deletes a configuration, if it is there.
func (b *bench) dropWebhooks(name string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.t.Context()), 10*time.Second)
	defer cancel()
	err := b.c.Client().AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(ctx, name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		b.t.Error(err)
	}
}
