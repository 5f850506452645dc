package drain

import (
	"context"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

const (
	// readTimeout bounds each page of a list.
	readTimeout = 30 * time.Second
	// callTimeout bounds every other request. An eviction that meets a conflict is tried again by the server itself for
	// ten seconds.
	callTimeout = 15 * time.Second
	pageSize    = 500
)

// kind is how one kind of object is listed and watched. It goes below the typed clients for the sake of MaxRetries(0):
// by themselves they repeat a request up to ten times while the server says Retry-After, without a word to anybody.
type kind[T any] struct {
	client              rest.Interface
	resource, namespace string
	fields, labels      string
	list                func() (list runtime.Object, items func() []T)
}

// all lists page by page and returns the version to watch from. When the pages expire on the way, all comes in one.
func (k kind[T]) all(ctx context.Context) (out []T, version string, err error) {
	o := metav1.ListOptions{Limit: pageSize, FieldSelector: k.fields, LabelSelector: k.labels}
	for {
		list, items := k.list()
		err := k.page(ctx, o, list)
		if apierrors.IsResourceExpired(err) && o.Continue != "" {
			o.Limit, o.Continue, out = 0, "", nil
			continue
		}
		if err != nil {
			return nil, "", kube.Error(err)
		}
		out = append(out, items()...)
		meta, ok := list.(metav1.ListMetaAccessor)
		if !ok || meta.GetListMeta().GetContinue() == "" {
			if ok {
				version = meta.GetListMeta().GetResourceVersion()
			}
			return out, version, nil
		}
		o.Continue = meta.GetListMeta().GetContinue()
	}
}

// page is one request.
func (k kind[T]) page(ctx context.Context, o metav1.ListOptions, into runtime.Object) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	return k.client.Get().MaxRetries(0).WarningHandlerWithContext(rest.NoWarnings{}).UseProtobufAsDefaultIfPreferred(true).NamespaceIfScoped(k.namespace, k.namespace != "").
		Resource(k.resource).VersionedParams(&o, scheme.ParameterCodec).Do(ctx).Into(into)
}

// watch opens a watch. The deadline is for the opening; open it lasts until ctx ends or the server closes it.
func (k kind[T]) watch(ctx context.Context, version string, timeout time.Duration) (watch.Interface, error) {
	seconds := int64(timeout / time.Second)
	o := metav1.ListOptions{
		Watch: true, ResourceVersion: version, AllowWatchBookmarks: true, TimeoutSeconds: &seconds, FieldSelector: k.fields,
	}
	ctx, cancel := context.WithCancelCause(ctx)
	opening := time.AfterFunc(callTimeout, func() { cancel(context.DeadlineExceeded) })
	w, err := k.client.Get().MaxRetries(0).WarningHandlerWithContext(rest.NoWarnings{}).UseProtobufAsDefaultIfPreferred(true).NamespaceIfScoped(k.namespace, k.namespace != "").
		Resource(k.resource).VersionedParams(&o, scheme.ParameterCodec).Watch(ctx)
	if !opening.Stop() && err == nil {
		w.Stop() // too late by a hair: its context is gone
		err = context.DeadlineExceeded
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		return nil, kube.Error(err)
	}
	return &ending{w, func() { cancel(nil) }}, nil
}

// ending releases the context of a watch with it.
type ending struct {
	watch.Interface
	release func()
}

func (e *ending) Stop() {
	e.Interface.Stop()
	e.release()
}

// podsOf are the pods of a node, by an index of the server; of all nodes for "".
func podsOf(c kubernetes.Interface, node string) kind[corev1.Pod] {
	return kind[corev1.Pod]{
		client: kube.Contained(c.CoreV1().RESTClient()), resource: "pods", fields: is("spec.nodeName", node),
		list: func() (runtime.Object, func() []corev1.Pod) {
			l := &corev1.PodList{}
			return l, func() []corev1.Pod { return l.Items }
		},
	}
}

// nodesOf is one node, or all for "".
func nodesOf(c kubernetes.Interface, name string) kind[corev1.Node] {
	return kind[corev1.Node]{
		client: kube.Contained(c.CoreV1().RESTClient()), resource: "nodes", fields: is("metadata.name", name),
		list: func() (runtime.Object, func() []corev1.Node) {
			l := &corev1.NodeList{}
			return l, func() []corev1.Node { return l.Items }
		},
	}
}

func is(field, value string) string {
	if value == "" {
		return ""
	}
	return fields.OneTermEqualSelector(field, value).String()
}

func budgetsOf(c kubernetes.Interface) kind[policyv1.PodDisruptionBudget] {
	return kind[policyv1.PodDisruptionBudget]{
		client: kube.Contained(c.PolicyV1().RESTClient()), resource: "poddisruptionbudgets",
		list: func() (runtime.Object, func() []policyv1.PodDisruptionBudget) {
			l := &policyv1.PodDisruptionBudgetList{}
			return l, func() []policyv1.PodDisruptionBudget { return l.Items }
		},
	}
}

func attachmentsOf(c kubernetes.Interface) kind[storagev1.VolumeAttachment] {
	return kind[storagev1.VolumeAttachment]{
		client: kube.Contained(c.StorageV1().RESTClient()), resource: "volumeattachments",
		list: func() (runtime.Object, func() []storagev1.VolumeAttachment) {
			l := &storagev1.VolumeAttachmentList{}
			return l, func() []storagev1.VolumeAttachment { return l.Items }
		},
	}
}

func daemonSetsOf(c kubernetes.Interface) kind[appsv1.DaemonSet] {
	return kind[appsv1.DaemonSet]{
		client: kube.Contained(c.AppsV1().RESTClient()), resource: "daemonsets",
		list: func() (runtime.Object, func() []appsv1.DaemonSet) {
			l := &appsv1.DaemonSetList{}
			return l, func() []appsv1.DaemonSet { return l.Items }
		},
	}
}

func replicaSetsOf(c kubernetes.Interface) kind[appsv1.ReplicaSet] {
	return kind[appsv1.ReplicaSet]{
		client: kube.Contained(c.AppsV1().RESTClient()), resource: "replicasets",
		list: func() (runtime.Object, func() []appsv1.ReplicaSet) {
			l := &appsv1.ReplicaSetList{}
			return l, func() []appsv1.ReplicaSet { return l.Items }
		},
	}
}

func deploymentsOf(c kubernetes.Interface) kind[appsv1.Deployment] {
	return kind[appsv1.Deployment]{
		client: kube.Contained(c.AppsV1().RESTClient()), resource: "deployments",
		list: func() (runtime.Object, func() []appsv1.Deployment) {
			l := &appsv1.DeploymentList{}
			return l, func() []appsv1.Deployment { return l.Items }
		},
	}
}

func statefulSetsOf(c kubernetes.Interface) kind[appsv1.StatefulSet] {
	return kind[appsv1.StatefulSet]{
		client: kube.Contained(c.AppsV1().RESTClient()), resource: "statefulsets",
		list: func() (runtime.Object, func() []appsv1.StatefulSet) {
			l := &appsv1.StatefulSetList{}
			return l, func() []appsv1.StatefulSet { return l.Items }
		},
	}
}

func jobsOf(c kubernetes.Interface) kind[batchv1.Job] {
	return kind[batchv1.Job]{
		client: kube.Contained(c.BatchV1().RESTClient()), resource: "jobs",
		list: func() (runtime.Object, func() []batchv1.Job) {
			l := &batchv1.JobList{}
			return l, func() []batchv1.Job { return l.Items }
		},
	}
}

func claimsOf(c kubernetes.Interface) kind[corev1.PersistentVolumeClaim] {
	return kind[corev1.PersistentVolumeClaim]{
		client: kube.Contained(c.CoreV1().RESTClient()), resource: "persistentvolumeclaims",
		list: func() (runtime.Object, func() []corev1.PersistentVolumeClaim) {
			l := &corev1.PersistentVolumeClaimList{}
			return l, func() []corev1.PersistentVolumeClaim { return l.Items }
		},
	}
}

func volumesOf(c kubernetes.Interface) kind[corev1.PersistentVolume] {
	return kind[corev1.PersistentVolume]{
		client: kube.Contained(c.CoreV1().RESTClient()), resource: "persistentvolumes",
		list: func() (runtime.Object, func() []corev1.PersistentVolume) {
			l := &corev1.PersistentVolumeList{}
			return l, func() []corev1.PersistentVolume { return l.Items }
		},
	}
}

func leasesOf(c kubernetes.Interface, namespace string) kind[coordinationv1.Lease] {
	return kind[coordinationv1.Lease]{
		client: kube.Contained(c.CoordinationV1().RESTClient()), resource: "leases", namespace: namespace,
		list: func() (runtime.Object, func() []coordinationv1.Lease) {
			l := &coordinationv1.LeaseList{}
			return l, func() []coordinationv1.Lease { return l.Items }
		},
	}
}

func validatingOf(c kubernetes.Interface) kind[admissionv1.ValidatingWebhookConfiguration] {
	return kind[admissionv1.ValidatingWebhookConfiguration]{
		client: kube.Contained(c.AdmissionregistrationV1().RESTClient()), resource: "validatingwebhookconfigurations",
		list: func() (runtime.Object, func() []admissionv1.ValidatingWebhookConfiguration) {
			l := &admissionv1.ValidatingWebhookConfigurationList{}
			return l, func() []admissionv1.ValidatingWebhookConfiguration { return l.Items }
		},
	}
}

func mutatingOf(c kubernetes.Interface) kind[admissionv1.MutatingWebhookConfiguration] {
	return kind[admissionv1.MutatingWebhookConfiguration]{
		client: kube.Contained(c.AdmissionregistrationV1().RESTClient()), resource: "mutatingwebhookconfigurations",
		list: func() (runtime.Object, func() []admissionv1.MutatingWebhookConfiguration) {
			l := &admissionv1.MutatingWebhookConfigurationList{}
			return l, func() []admissionv1.MutatingWebhookConfiguration { return l.Items }
		},
	}
}

// slicesOf are the endpoints of one service.
func slicesOf(c kubernetes.Interface, service name) kind[discoveryv1.EndpointSlice] {
	return kind[discoveryv1.EndpointSlice]{
		client: kube.Contained(c.DiscoveryV1().RESTClient()), resource: "endpointslices", namespace: service.Namespace,
		labels: labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: service.Name}).String(),
		list: func() (runtime.Object, func() []discoveryv1.EndpointSlice) {
			l := &discoveryv1.EndpointSliceList{}
			return l, func() []discoveryv1.EndpointSlice { return l.Items }
		},
	}
}
