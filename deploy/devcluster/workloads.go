package main

import (
	"context"
	"errors"
	"fmt"
	"maps"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
)

var (
	namespaces = []string{"shop", "payments", "search", "media", "platform"}
	services   = []string{
		"checkout", "cart", "catalog", "pricing", "inventory", "orders", "shipping", "returns", "reviews", "recommender",
		"gateway", "frontend", "accounts", "sessions", "notifier", "mailer", "invoicing", "ledger", "fraud-check", "wallet",
		"indexer", "query", "suggest", "crawler", "thumbnails", "transcoder", "uploader", "cdn-origin", "feature-flags", "config-api",
		"scheduler-api", "webhooks", "audit-trail", "reporting", "exporter", "importer", "geo", "translations", "chat", "status-page",
	}
)

// workload is what a pod template is made from.
type workload struct {
	namespace, name string
	cpu, mem        string
	gpus            int64
	emptyDir        bool
	critical        bool
	tolerations     []corev1.Toleration
	selector        map[string]string
}

// createWorkloads makes about three pods for each node, besides those of the
// DaemonSets, and leaves it to the controllers to bring them up.
func createWorkloads(ctx context.Context, client kubernetes.Interface, g *generator) error {
	for _, name := range append([]string{"data", "ml", "kube-node-manager"}, namespaces...) {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if err := ignoreExisting(client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{})); err != nil {
			return err
		}
	}
	w := &writer{ctx: ctx, client: client, g: g}
	w.daemonSet(workload{namespace: "kube-system", name: "cni-agent", cpu: "50m", mem: "128Mi", critical: true})
	w.daemonSet(workload{namespace: "kube-system", name: "node-exporter", cpu: "20m", mem: "64Mi", emptyDir: true})

	// Deployments in several sizes, every second one with a budget.
	nodes := g.made
	count := min(max(6, nodes/3), len(services))
	for i, replicas := range g.split(nodes*3, count) {
		l := workload{
			namespace: namespaces[i%len(namespaces)], name: services[i],
			cpu: pick(g, []string{"50m", "100m", "250m", "500m"}), mem: pick(g, []string{"64Mi", "128Mi", "256Mi", "512Mi"}),
			emptyDir: i%5 == 2,
		}
		w.deployment(l, replicas)
		if i%2 == 0 {
			w.budget(l, "", pick(g, []string{"1", "10%", "25%"}))
		}
	}
	// Budgets nobody can meet: all replicas must stay; two budgets for one pod.
	rates := workload{namespace: "payments", name: "exchange-rates", cpu: "100m", mem: "128Mi"}
	w.deployment(rates, 2)
	w.budget(rates, "2", "")
	tokens := workload{namespace: "payments", name: "tokenizer", cpu: "100m", mem: "128Mi"}
	w.deployment(tokens, 3)
	w.budget(tokens, "", "1")
	w.budget(tokens, "2", "")

	// Databases on their own nodes, with a quorum.
	data := []corev1.Toleration{{Key: "dedicated", Operator: corev1.TolerationOpEqual, Value: "data", Effect: corev1.TaintEffectNoSchedule}}
	for _, name := range []string{"postgres", "kafka"} {
		l := workload{namespace: "data", name: name, cpu: "500m", mem: "4Gi", emptyDir: name == "kafka", tolerations: data}
		w.statefulSet(l, 3)
		w.budget(l, "", "1")
	}
	w.deployment(workload{namespace: "ml", name: "inference", cpu: "2", mem: "8Gi", gpus: 1, selector: map[string]string{poolLabel: "gpu"},
		tolerations: []corev1.Toleration{{Key: "nvidia.com/gpu", Operator: corev1.TolerationOpExists}}}, max(1, nodes/10))

	w.job(workload{namespace: "platform", name: "db-migrate", cpu: "100m", mem: "128Mi"}, 3)
	// Pods that do not come back when they are evicted.
	w.pod(workload{namespace: "platform", name: "debug-shell", cpu: "10m", mem: "32Mi"})
	w.pod(workload{namespace: "media", name: "one-off-import", cpu: "100m", mem: "256Mi", emptyDir: true})
	return errors.Join(w.errs...)
}

// split divides total into n parts of different sizes, each at least one.
func (g *generator) split(total, n int) []int {
	weights := make([]float64, n)
	sum := 0.0
	for i := range weights {
		weights[i] = 0.2 + g.ExpFloat64()
		sum += weights[i]
	}
	parts := make([]int, n)
	for i, w := range weights {
		parts[i] = max(1, int(float64(total)*w/sum))
	}
	return parts
}

// writer creates objects and remembers what went wrong.
type writer struct {
	ctx    context.Context
	client kubernetes.Interface
	g      *generator
	errs   []error
}

func (w *writer) note(err error) {
	if err != nil {
		w.errs = append(w.errs, err)
	}
}

func (w *writer) meta(l workload, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Namespace: l.namespace, Labels: l.labels()}
}

func (l workload) labels() map[string]string {
	return map[string]string{"app.kubernetes.io/name": l.name}
}

func (l workload) matching() *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: l.labels()}
}

// template has pods that take some seconds to come up and to go, as real ones
// do, which is what a drain is mostly about.
func (w *writer) template(l workload) corev1.PodTemplateSpec {
	requests := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(l.cpu), corev1.ResourceMemory: resource.MustParse(l.mem)}
	limits := corev1.ResourceList{corev1.ResourceMemory: requests[corev1.ResourceMemory]}
	if l.gpus > 0 {
		limits["nvidia.com/gpu"] = *resource.NewQuantity(l.gpus, resource.DecimalSI)
	}
	pod := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{
			Labels: maps.Clone(l.labels()),
			Annotations: map[string]string{
				"pod-ready.stage.kwok.x-k8s.io/delay":  fmt.Sprintf("%ds", 1+w.g.IntN(4)),
				"pod-delete.stage.kwok.x-k8s.io/delay": fmt.Sprintf("%ds", 1+w.g.IntN(8)),
			},
		},
		Spec: corev1.PodSpec{
			Tolerations:  l.tolerations,
			NodeSelector: l.selector,
			Containers: []corev1.Container{{
				Name: l.name, Image: pick(w.g, w.g.images).Names[1],
				Resources: corev1.ResourceRequirements{Requests: requests, Limits: limits},
			}},
		},
	}
	if l.emptyDir {
		pod.Spec.Volumes = []corev1.Volume{{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "scratch", MountPath: "/scratch"}}
	}
	if l.critical {
		pod.Spec.PriorityClassName = "system-node-critical"
		pod.Spec.HostNetwork = true
	}
	return pod
}

func (w *writer) deployment(l workload, replicas int) {
	d := &appsv1.Deployment{ObjectMeta: w.meta(l, l.name), Spec: appsv1.DeploymentSpec{
		Replicas: new(int32(replicas)), Selector: l.matching(), Template: w.template(l),
	}}
	w.note(ignoreExisting(w.client.AppsV1().Deployments(l.namespace).Create(w.ctx, d, metav1.CreateOptions{})))
}

func (w *writer) statefulSet(l workload, replicas int) {
	s := &appsv1.StatefulSet{ObjectMeta: w.meta(l, l.name), Spec: appsv1.StatefulSetSpec{
		Replicas: new(int32(replicas)), Selector: l.matching(), Template: w.template(l), ServiceName: l.name,
		PodManagementPolicy: appsv1.ParallelPodManagement,
	}}
	w.note(ignoreExisting(w.client.AppsV1().StatefulSets(l.namespace).Create(w.ctx, s, metav1.CreateOptions{})))
}

func (w *writer) daemonSet(l workload) {
	l.tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	d := &appsv1.DaemonSet{ObjectMeta: w.meta(l, l.name), Spec: appsv1.DaemonSetSpec{
		Selector: l.matching(), Template: w.template(l),
	}}
	w.note(ignoreExisting(w.client.AppsV1().DaemonSets(l.namespace).Create(w.ctx, d, metav1.CreateOptions{})))
}

func (w *writer) job(l workload, completions int32) {
	t := w.template(l)
	t.Spec.RestartPolicy = corev1.RestartPolicyNever
	j := &batchv1.Job{ObjectMeta: w.meta(l, l.name), Spec: batchv1.JobSpec{
		Completions: &completions, Parallelism: &completions, Template: t,
	}}
	w.note(ignoreExisting(w.client.BatchV1().Jobs(l.namespace).Create(w.ctx, j, metav1.CreateOptions{})))
}

func (w *writer) pod(l workload) {
	t := w.template(l)
	p := &corev1.Pod{ObjectMeta: w.meta(l, l.name), Spec: t.Spec}
	p.Annotations = t.Annotations
	w.note(ignoreExisting(w.client.CoreV1().Pods(l.namespace).Create(w.ctx, p, metav1.CreateOptions{})))
}

// budget lets either so many stay or so many go.
func (w *writer) budget(l workload, minAvailable, maxUnavailable string) {
	p := &policyv1.PodDisruptionBudget{ObjectMeta: w.meta(l, l.name), Spec: policyv1.PodDisruptionBudgetSpec{Selector: l.matching()}}
	if minAvailable != "" {
		p.Name += "-quorum"
		p.Spec.MinAvailable = new(intstr.Parse(minAvailable))
	} else {
		p.Spec.MaxUnavailable = new(intstr.Parse(maxUnavailable))
	}
	w.note(ignoreExisting(w.client.PolicyV1().PodDisruptionBudgets(l.namespace).Create(w.ctx, p, metav1.CreateOptions{})))
}
