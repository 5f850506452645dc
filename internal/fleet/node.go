package fleet

import (
	"strings"
	"time"
)

// NodeRef names one node of one cluster. Two nodes are the same iff their refs are equal; cluster and name are never
// joined into a string that serves as a key.
type NodeRef struct {
	Cluster string `json:"cluster"`
	Name    string `json:"node"`
}

// String is the form people write and forms carry: cluster/name.
func (r NodeRef) String() string { return r.Cluster + "/" + r.Name }

// Compare orders by cluster, then by name.
func (r NodeRef) Compare(o NodeRef) int {
	if c := strings.Compare(r.Cluster, o.Cluster); c != 0 {
		return c
	}
	return strings.Compare(r.Name, o.Name)
}

// NodeStatus is what the Ready condition says.
type NodeStatus string

// The three answers. Unknown is both a Ready condition with status Unknown and a missing one.
const (
	StatusReady    NodeStatus = "Ready"
	StatusNotReady NodeStatus = "NotReady"
	StatusUnknown  NodeStatus = "Unknown"
)

// TaintEffect is one of the three effects that Kubernetes knows.
type TaintEffect string

// The effects, as the API writes them.
const (
	NoSchedule       TaintEffect = "NoSchedule"
	PreferNoSchedule TaintEffect = "PreferNoSchedule"
	NoExecute        TaintEffect = "NoExecute"
)

// Taint is identified by key and effect together.
type Taint struct {
	Key       string      `json:"key"`
	Value     string      `json:"value,omitempty"`
	Effect    TaintEffect `json:"effect"`
	TimeAdded *time.Time  `json:"time_added,omitempty"`
}

// Condition is one row of node.status.conditions, both times included.
type Condition struct {
	Type           string    `json:"type"`
	Status         string    `json:"status"` // True, False, Unknown
	Reason         string    `json:"reason"`
	Message        string    `json:"message"`
	LastHeartbeat  time.Time `json:"last_heartbeat"`
	LastTransition time.Time `json:"last_transition"`
}

// Address is one of node.status.addresses.
type Address struct {
	Type    string `json:"type"`
	Address string `json:"address"`
}

// Info is node.status.nodeInfo, the part people look at.
type Info struct {
	KubeletVersion   string `json:"kubelet_version"`
	OSImage          string `json:"os_image"`
	OS               string `json:"os"`
	Architecture     string `json:"architecture"`
	KernelVersion    string `json:"kernel_version"`
	ContainerRuntime string `json:"container_runtime"`
}

// Resources are the amounts of capacity or allocatable. A resource that the node does not name is 0.
type Resources struct {
	CPUMilli       int64             // thousandths of a core
	MemoryBytes    int64             // bytes
	EphemeralBytes int64             // bytes
	Pods           int64             // number of pods
	GPU            int64             // devices of every vendor, summed
	Raw            map[string]string // every resource as the API writes it: cpu → "8", nvidia.com/gpu → "4"
}

// Cordon says who made a node unschedulable, as far as the cluster knows. By is empty for a cordon that carries none
// of our annotations; With then names the field manager that wrote spec.unschedulable (kubectl, karpenter, …).
type Cordon struct {
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since,omitzero"`
	Batch  string    `json:"batch,omitempty"`
	With   string    `json:"with,omitempty"`
}

// Node is what the product knows of one node. A Node that came out of the cache is shared and read-only.
type Node struct {
	Ref             NodeRef
	UID             string
	ResourceVersion string
	Created         time.Time

	Status      NodeStatus
	StatusSince time.Time // last transition of the Ready condition; zero if there is none
	Pressure    []string  // types of the conditions other than Ready that are in their bad state, sorted
	Schedulable bool
	Cordon      *Cordon // nil while schedulable
	Roles       []string
	Labels      map[string]string
	Annotations map[string]string
	Taints      []Taint
	Conditions  []Condition
	Capacity    Resources
	Allocatable Resources
	Addresses   []Address
	Info        Info

	UpdatedAt time.Time // when this process stored this version
	Revision  uint64    // position in the change log; moves only when something visible changed
}

// Zone is the topology zone of the node, "" if it has none. The beta label is the fallback of old clusters.
func (n *Node) Zone() string {
	if z := n.Labels["topology.kubernetes.io/zone"]; z != "" {
		return z
	}
	return n.Labels["failure-domain.beta.kubernetes.io/zone"]
}

// InstanceType is the cloud's name for the kind of machine, "" if it has none.
func (n *Node) InstanceType() string {
	if t := n.Labels["node.kubernetes.io/instance-type"]; t != "" {
		return t
	}
	return n.Labels["beta.kubernetes.io/instance-type"]
}

// InternalIP is the first internal address, "" if there is none.
func (n *Node) InternalIP() string {
	for _, a := range n.Addresses {
		if a.Type == "InternalIP" {
			return a.Address
		}
	}
	return ""
}

// Pod is one pod of a node, as read on demand.
type Pod struct {
	Namespace, Name, UID string
	Phase                string // Running, Pending, Succeeded, Failed, Unknown; Terminating while it is being deleted
	Ready                bool
	Restarts             int32
	OwnerKind, OwnerName string // controller of the pod, "" if unmanaged
	CPUMilli             int64  // sum of requests, thousandths of a core
	MemoryBytes          int64  // sum of requests
	Created              time.Time
}

// PodList is the answer of a read on demand, with the time it was read.
type PodList struct {
	Pods []Pod
	Read time.Time
}
