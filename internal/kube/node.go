package kube

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// Node is the node as the product knows it. It works on a node as the API server sent it and on a stripped one alike.
// Labels and annotations are shared with n, which must not be written to afterwards.
func Node(cluster string, n *corev1.Node) *fleet.Node {
	out := &fleet.Node{
		Ref:             fleet.NodeRef{Cluster: cluster, Name: n.Name},
		UID:             string(n.UID),
		ResourceVersion: n.ResourceVersion,
		Created:         n.CreationTimestamp.UTC(),
		Status:          fleet.StatusUnknown,
		Schedulable:     !n.Spec.Unschedulable,
		Cordon:          cordonOf(n),
		Roles:           Roles(n.Labels),
		Labels:          n.Labels,
		Annotations:     n.Annotations,
		Capacity:        resources(n.Status.Capacity),
		Allocatable:     resources(n.Status.Allocatable),
		Info: fleet.Info{
			KubeletVersion:   n.Status.NodeInfo.KubeletVersion,
			OSImage:          n.Status.NodeInfo.OSImage,
			OS:               n.Status.NodeInfo.OperatingSystem,
			Architecture:     n.Status.NodeInfo.Architecture,
			KernelVersion:    n.Status.NodeInfo.KernelVersion,
			ContainerRuntime: n.Status.NodeInfo.ContainerRuntimeVersion,
		},
	}
	for _, t := range n.Spec.Taints {
		taint := fleet.Taint{Key: t.Key, Value: t.Value, Effect: fleet.TaintEffect(t.Effect)}
		if t.TimeAdded != nil {
			added := t.TimeAdded.UTC()
			taint.TimeAdded = &added
		}
		out.Taints = append(out.Taints, taint)
	}
	for _, c := range n.Status.Conditions {
		out.Conditions = append(out.Conditions, fleet.Condition{
			Type: string(c.Type), Status: string(c.Status), Reason: c.Reason, Message: c.Message,
			LastHeartbeat: utc(c.LastHeartbeatTime), LastTransition: utc(c.LastTransitionTime),
		})
		switch {
		case c.Type == corev1.NodeReady:
			out.Status, out.StatusSince = statusOf(c.Status), utc(c.LastTransitionTime)
		case c.Status == corev1.ConditionTrue && !wanted(string(c.Type)):
			out.Pressure = append(out.Pressure, string(c.Type))
		}
	}
	slices.Sort(out.Pressure)
	for _, a := range n.Status.Addresses {
		out.Addresses = append(out.Addresses, fleet.Address{Type: string(a.Type), Address: a.Address})
	}
	return out
}

func statusOf(s corev1.ConditionStatus) fleet.NodeStatus {
	switch s {
	case corev1.ConditionTrue:
		return fleet.StatusReady
	case corev1.ConditionFalse:
		return fleet.StatusNotReady
	default:
		return fleet.StatusUnknown
	}
}

// utc keeps a missing time missing.
func utc(t metav1.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC()
}

// wanted tells conditions that are good when true from those that name a trouble. Kubernetes' own and the problem
// detector's name troubles; these endings are what controllers use for the opposite.
func wanted(condition string) bool {
	for _, end := range []string{
		"Ready", "Healthy", "Available", "Initialized", "Registered", "Launched", "Voter", "Synced", "Consolidatable",
	} {
		if strings.HasSuffix(condition, end) {
			return true
		}
	}
	return false
}

const (
	rolePrefix = "node-role.kubernetes.io/"
	roleLabel  = "kubernetes.io/role"
)

// Roles follows kubectl: the labels node-role.kubernetes.io/<role> and kubernetes.io/role=<role>.
func Roles(labels map[string]string) []string {
	var roles []string
	for k, v := range labels {
		switch {
		case strings.HasPrefix(k, rolePrefix) && len(k) > len(rolePrefix):
			roles = append(roles, k[len(rolePrefix):])
		case k == roleLabel && v != "":
			roles = append(roles, v)
		}
	}
	slices.Sort(roles)
	return slices.Compact(roles)
}

func resources(list corev1.ResourceList) fleet.Resources {
	r := fleet.Resources{Raw: make(map[string]string, len(list))}
	for name, q := range list {
		r.Raw[string(name)] = q.String()
		switch name {
		case corev1.ResourceCPU:
			r.CPUMilli = q.MilliValue()
		case corev1.ResourceMemory:
			r.MemoryBytes = q.Value()
		case corev1.ResourceEphemeralStorage:
			r.EphemeralBytes = q.Value()
		case corev1.ResourcePods:
			r.Pods = q.Value()
		default:
			if isGPU(string(name)) {
				r.GPU += q.Value()
			}
		}
	}
	return r
}

// isGPU knows the device plugins' names: nvidia.com/gpu, amd.com/gpu, nvidia.com/gpu.shared, gpu.intel.com/i915 and
// the like. MIG slices are devices of their own.
func isGPU(name string) bool {
	domain, device, ok := strings.Cut(name, "/")
	if !ok {
		return false
	}
	return device == "gpu" || strings.HasPrefix(device, "gpu.") || strings.HasPrefix(device, "mig-") ||
		strings.HasPrefix(domain, "gpu.")
}

func cordonOf(n *corev1.Node) *fleet.Cordon {
	if !n.Spec.Unschedulable {
		return nil
	}
	c := &fleet.Cordon{}
	manager, managed := cordonManager(n.ManagedFields)
	var tainted time.Time
	for _, t := range n.Spec.Taints {
		if t.Key == corev1.TaintNodeUnschedulable && t.TimeAdded != nil {
			tainted = t.TimeAdded.UTC()
		}
	}
	note, err := ParseCordonNote(n.Annotations[CordonAnnotation])
	// Somebody else may have uncordoned the node and cordoned it again behind our note: then the field is theirs.
	foreign := manager != "" && manager != FieldManager && managed.After(note.At)
	if err == nil && !foreign {
		c.By, c.Reason, c.Since, c.Batch = note.By, note.Reason, note.At.UTC(), note.Batch
		if note.At.IsZero() {
			c.Since = tainted
		}
		return c
	}
	c.With, c.Since = manager, tainted
	if c.Since.IsZero() {
		c.Since = managed
	}
	if !foreign {
		c.Reason = n.Annotations[CordonReasonAnnotation]
	}
	return c
}

// cordonManager finds who owns spec.unschedulable. Several may; the last writer counts.
func cordonManager(fields []metav1.ManagedFieldsEntry) (manager string, at time.Time) {
	for i := range fields {
		f := &fields[i]
		if !ownsUnschedulable(f) {
			continue
		}
		var t time.Time
		if f.Time != nil {
			t = f.Time.UTC()
		}
		if manager == "" || t.After(at) {
			manager, at = f.Manager, t
		}
	}
	return manager, at
}

const unschedulableField = `"f:unschedulable"`

func ownsUnschedulable(f *metav1.ManagedFieldsEntry) bool {
	if f.FieldsV1 == nil {
		return false
	}
	raw := f.FieldsV1.GetRawString()
	if !strings.Contains(raw, unschedulableField) {
		return false // spares the decoding for all but a few
	}
	var fields struct {
		Spec map[string]json.RawMessage `json:"f:spec"`
	}
	if err := json.Unmarshal([]byte(raw), &fields); err != nil {
		return false // a manager that cannot be read is a manager that is not known
	}
	_, ok := fields.Spec["f:unschedulable"]
	return ok
}

// lastApplied is kubectl's copy of the whole object.
const lastApplied = corev1.LastAppliedConfigAnnotation

// Strip takes out what nobody looks at and what makes up most of a node: images, volumes, managedFields but for the
// owner of spec.unschedulable, kubectl's own copy. It changes n, is idempotent, and keeps everything that Node reads.
func Strip(n *corev1.Node) {
	var kept []metav1.ManagedFieldsEntry
	if n.Spec.Unschedulable {
		for _, f := range n.ManagedFields {
			if ownsUnschedulable(&f) {
				f.FieldsV1 = metav1.NewFieldsV1(`{"f:spec":{"f:unschedulable":{}}}`)
				kept = append(kept, f)
			}
		}
	}
	n.ManagedFields = kept
	n.Status.Images = nil
	n.Status.VolumesInUse = nil
	n.Status.VolumesAttached = nil
	n.Status.Config = nil
	if _, ok := n.Annotations[lastApplied]; ok {
		// The map may be shared with whoever read the node before.
		n.Annotations = maps.Clone(n.Annotations)
		delete(n.Annotations, lastApplied)
	}
}

// Packed is a node at rest: a third of the memory of the decoded one, and without a pointer for the collector to
// follow.
type Packed []byte

// Pack puts a node to rest.
func Pack(n *corev1.Node) (Packed, error) {
	b, err := n.Marshal()
	if err != nil {
		return nil, fmt.Errorf("packing node %s: %w", n.Name, err)
	}
	return b, nil
}

// Unpack is the node as it was packed.
func Unpack(p Packed) (*corev1.Node, error) {
	n := &corev1.Node{}
	if err := n.Unmarshal(p); err != nil {
		return nil, fmt.Errorf("unpacking node: %w", err)
	}
	return n, nil
}

// FullJSON is the whole corev1.Node as it was packed.
func FullJSON(p Packed) ([]byte, error) {
	n, err := Unpack(p)
	if err != nil {
		return nil, err
	}
	n.APIVersion, n.Kind = "v1", "Node"
	b, err := json.Marshal(n)
	if err != nil {
		return nil, fmt.Errorf("encoding node %s: %w", n.Name, err)
	}
	return b, nil
}
