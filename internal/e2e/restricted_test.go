package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/kube-node-manager/kube-node-manager/internal/kubetest"
)

// manifest decodes the first object of a kind in a file of deploy/kubernetes.
func manifest[T any](t *testing.T, file, kind string) T {
	t.Helper()
	b, err := os.ReadFile("../../deploy/kubernetes/" + file)
	if err != nil {
		t.Fatal(err)
	}
	for dec := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(b), 4096); ; {
		var raw map[string]any
		err := dec.Decode(&raw)
		if errors.Is(err, io.EOF) {
			t.Fatalf("%s holds no %s", file, kind)
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if raw["kind"] != kind {
			continue
		}
		b, err := json.Marshal(raw)
		if err != nil {
			t.Fatal(err)
		}
		var out T
		if err := json.Unmarshal(b, &out); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		return out
	}
}

// The pod that we ship is admitted by an API server that enforces the restricted standard, in the namespace that we
// ship; and the same pod with one of the things that the standard is about is not.
func TestDeploy_PodIsRestricted(t *testing.T) {
	c := kubetest.Shared(t)
	ns := manifest[corev1.Namespace](t, "namespace.yaml", "Namespace")
	app := manifest[appsv1.Deployment](t, "app.yaml", "Deployment")
	client := c.Client().CoreV1()
	ns.Name = kubetest.Name(t, "ns")
	if _, err := client.Namespaces().Create(t.Context(), &ns, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Namespaces().Delete(context.WithoutCancel(t.Context()), ns.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: app.Spec.Template.Spec.ServiceAccountName}}
	if _, err := client.ServiceAccounts(ns.Name).Create(t.Context(), account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*corev1.PodSpec)
		ok     bool
	}{
		"as shipped":        {func(*corev1.PodSpec) {}, true},
		"may become root":   {func(s *corev1.PodSpec) { s.Containers[0].SecurityContext.AllowPrivilegeEscalation = new(true) }, false},
		"with capabilities": {func(s *corev1.PodSpec) { s.Containers[0].SecurityContext.Capabilities = nil }, false},
		"without seccomp": {func(s *corev1.PodSpec) {
			s.SecurityContext.SeccompProfile = nil
			s.Containers[0].SecurityContext.SeccompProfile = nil
		}, false},
		"with the host's disk": {func(s *corev1.PodSpec) {
			s.Volumes = append(s.Volumes, corev1.Volume{Name: "h", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}})
		}, false},
	} {
		pod := &corev1.Pod{ObjectMeta: *app.Spec.Template.ObjectMeta.DeepCopy(), Spec: *app.Spec.Template.Spec.DeepCopy()}
		pod.Name = "app"
		tt.change(&pod.Spec)
		_, err := client.Pods(ns.Name).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if tt.ok && err != nil || !tt.ok && !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s := app.Spec.Template.Spec.Containers[0].SecurityContext; s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
		t.Error("the root file system can be written to")
	}
}
