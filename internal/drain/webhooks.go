package drain

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// maxServices bounds the services whose endpoints are read for one plan; few clusters have more than a dozen.
const maxServices = 100

// Webhook is an admission that must answer (failurePolicy Fail), served by pods of the cluster.
type Webhook struct {
	Name    string // configuration and webhook
	Service string // namespace and name
	Nodes   []string
}

// readWebhooks looks for the admissions that must answer, and for the nodes that their servers run on (PV-25).
func (r *Reading) readWebhooks(ctx context.Context, c kubernetes.Interface) error {
	type hook struct {
		name    string
		service name
	}
	var (
		hooks      []hook
		err        error
		validating []admissionv1.ValidatingWebhookConfiguration
		mutating   []admissionv1.MutatingWebhookConfiguration
	)
	add := func(configuration, webhook string, policy *admissionv1.FailurePolicyType, s *admissionv1.ServiceReference) {
		if s != nil && (policy == nil || *policy == admissionv1.Fail) {
			hooks = append(hooks, hook{configuration + ": " + webhook, name{Namespace: s.Namespace, Name: s.Name}})
		}
	}
	optional(ctx, r, &err, &validating, validatingOf(c))
	optional(ctx, r, &err, &mutating, mutatingOf(c))
	if err != nil {
		return err
	}
	for i := range validating {
		for j := range validating[i].Webhooks {
			w := &validating[i].Webhooks[j]
			add(validating[i].Name, w.Name, w.FailurePolicy, w.ClientConfig.Service)
		}
	}
	for i := range mutating {
		for j := range mutating[i].Webhooks {
			w := &mutating[i].Webhooks[j]
			add(mutating[i].Name, w.Name, w.FailurePolicy, w.ClientConfig.Service)
		}
	}
	nodes := map[name][]string{}
	for _, h := range hooks {
		on, known := nodes[h.service]
		if !known && len(nodes) == maxServices {
			continue
		}
		if !known {
			all, _, err := slicesOf(c, h.service).all(ctx)
			switch {
			case errors.Is(err, fleet.ErrForbidden), errors.Is(err, fleet.ErrNotFound):
				r.Missing = append(r.Missing, "endpointslices")
				return nil
			case err != nil:
				return fmt.Errorf("listing the endpoints of service %s: %w", h.service, err)
			}
			on = serving(all)
			nodes[h.service] = on
		}
		r.Webhooks = append(r.Webhooks, Webhook{Name: h.name, Service: h.service.String(), Nodes: on})
	}
	return nil
}

// serving are the nodes of endpoints that answer, each once; "" stands for what runs on no node.
func serving(all []discoveryv1.EndpointSlice) []string {
	var out []string
	for i := range all {
		for _, e := range all[i].Endpoints {
			if e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			node := ""
			if e.NodeName != nil {
				node = *e.NodeName
			}
			out = append(out, node)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// controlPlane are the labels of nodes that run the API server or etcd.
var controlPlane = []string{"node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master", "node-role.kubernetes.io/etcd"}

// warnings are about the cluster as a whole (PV-25).
func (b *builder) warnings() []fleet.Impact {
	var out []fleet.Impact
	for _, w := range b.r.Webhooks {
		all := len(w.Nodes) > 0
		for _, n := range w.Nodes {
			all = all && b.leaving[n]
		}
		if all {
			out = append(out, fleet.Impact{ID: "PV-25", Code: WarnWebhookDeadlock, Detail: kube.Plain(w.Name + ", service " + w.Service)})
		}
	}
	var total, healthy int
	var chosen []string
	for i := range b.r.Nodes {
		n := &b.r.Nodes[i]
		if !slices.ContainsFunc(controlPlane, func(key string) bool { _, ok := n.Labels[key]; return ok }) {
			continue
		}
		total++
		switch {
		case b.leaving[n.Name]:
			chosen = append(chosen, n.Name)
		case readiness(n) == corev1.ConditionTrue:
			healthy++
		}
	}
	if len(chosen) > 0 {
		slices.Sort(chosen)
		out = append(out, fleet.Impact{ID: "PV-25", Code: WarnControlPlane, Detail: strings.Join(chosen, ", ")})
		if total > 1 && healthy < total/2+1 {
			out = append(out, fleet.Impact{ID: "PV-25", Code: WarnQuorum, Detail: fmt.Sprintf("%d of %d left", healthy, total)})
		}
	}
	return append(out, b.last()...)
}

// last tells whether the targets are the last nodes that take pods, of the cluster or of a zone.
func (b *builder) last() []fleet.Impact {
	type nodes struct{ going, staying []string }
	var all nodes
	zones := map[string]*nodes{}
	for i := range b.r.Nodes {
		n := &b.r.Nodes[i]
		if !takesPods(n) {
			continue
		}
		of := []*nodes{&all}
		if zone := n.Labels[corev1.LabelTopologyZone]; zone != "" {
			if zones[zone] == nil {
				zones[zone] = &nodes{}
			}
			of = append(of, zones[zone])
		}
		for _, x := range of {
			if b.leaving[n.Name] {
				x.going = append(x.going, n.Name)
			} else {
				x.staying = append(x.staying, n.Name)
			}
		}
	}
	name := func(x *nodes) string {
		slices.Sort(x.going)
		if more := len(x.going) - mostLast; more > 0 {
			return fmt.Sprintf("%s and %d more", strings.Join(x.going[:mostLast], ", "), more)
		}
		return strings.Join(x.going, ", ")
	}
	if len(all.going) > 0 && len(all.staying) == 0 {
		return []fleet.Impact{{ID: "PV-25", Code: WarnLastOfCluster, Detail: name(&all)}}
	}
	var out []fleet.Impact
	for _, zone := range slices.Sorted(maps.Keys(zones)) {
		if x := zones[zone]; len(x.going) > 0 && len(x.staying) == 0 {
			out = append(out, fleet.Impact{ID: "PV-25", Code: WarnLastOfZone, Detail: kube.Plain(zone) + ": " + name(x)})
		}
	}
	return out
}

// mostLast bounds the names in a sentence.
const mostLast = 5

// takesPods tells whether the scheduler would give a pod without tolerations to the node.
func takesPods(n *corev1.Node) bool {
	return !n.Spec.Unschedulable && n.DeletionTimestamp == nil && readiness(n) == corev1.ConditionTrue &&
		!slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Effect != corev1.TaintEffectPreferNoSchedule })
}
