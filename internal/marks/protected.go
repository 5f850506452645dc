package marks

import (
	"strings"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
)

// The remarks: codes of Edit.Note, and catalogue keys.
const (
	// RemarkIdentity is of labels that the kubelet sets when it registers. Volumes, spreading and the placement of
	// stateful pods go by them.
	RemarkIdentity = "identity"
	// RemarkRestricted is of labels that kubelets may never set: what is scheduled by them trusts them.
	RemarkRestricted = "restricted"
	// RemarkRole is of labels that name the role of a node.
	RemarkRole = "role"
	// RemarkTraffic is of the label that takes a node out of load balancers, at once.
	RemarkTraffic = "traffic"
	// RemarkStorage is of labels by which volumes find the nodes they can be used on.
	RemarkStorage = "storage"
	// RemarkPool is of labels that a cloud or a provisioner sets: it puts them back, or gives new nodes its own.
	RemarkPool = "pool"
	// RemarkFeature is of labels that the discovery of features keeps.
	RemarkFeature = "feature"
	// RemarkAbsent is of labels that were to be changed where they are, and are not here.
	RemarkAbsent = "absent"
	// RemarkUsed is of labels that pods on the node ask for.
	RemarkUsed = "used"
	// RemarkController is of taints that a controller sets and takes back by itself.
	RemarkController = "controller"
	// RemarkControlPlane is of the taint that keeps work off the control plane.
	RemarkControlPlane = "control_plane"
	// RemarkOutOfService is of the taint that says that a node is off for good: its pods and volumes are let go by force.
	RemarkOutOfService = "out_of_service"
)

// identity are the labels of §5.3 that the kubelet asserts.
var identity = map[string]bool{
	"kubernetes.io/hostname":                   true,
	"topology.kubernetes.io/zone":              true,
	"topology.kubernetes.io/region":            true,
	"failure-domain.beta.kubernetes.io/zone":   true,
	"failure-domain.beta.kubernetes.io/region": true,
	"node.kubernetes.io/instance-type":         true,
	"beta.kubernetes.io/instance-type":         true,
	"kubernetes.io/os":                         true,
	"kubernetes.io/arch":                       true,
	"beta.kubernetes.io/os":                    true,
	"beta.kubernetes.io/arch":                  true,
	"node.kubernetes.io/windows-build":         true,
}

// LabelRemark is what is to be said of changing a label, "" for nothing, and whether it may only be changed on purpose.
func LabelRemark(key string) (remark string, protected bool) {
	prefix, _, prefixed := strings.Cut(key, "/")
	switch {
	case identity[key]:
		return RemarkIdentity, true
	case key == "node.kubernetes.io/exclude-from-external-load-balancers":
		return RemarkTraffic, true
	case !prefixed:
		return "", false
	case within(prefix, "node-restriction.kubernetes.io"):
		return RemarkRestricted, true
	case prefix == "node-role.kubernetes.io":
		return RemarkRole, true
	case strings.HasPrefix(prefix, "topology."): // of CSI drivers, each under its own name
		return RemarkStorage, true
	case within(prefix, "eks.amazonaws.com"), within(prefix, "kubernetes.azure.com"), within(prefix, "karpenter.sh"),
		within(prefix, "node.cluster.x-k8s.io"), prefix == "cloud.google.com" && strings.HasPrefix(key, "cloud.google.com/gke-"):
		return RemarkPool, false
	case within(prefix, "feature.node.kubernetes.io"):
		return RemarkFeature, false
	}
	return "", false
}

// within tells whether a domain is another one or lies below it.
func within(domain, other string) bool {
	return domain == other || strings.HasSuffix(domain, "."+other)
}

// owned are the taints of §5.4 that controllers set.
var owned = map[string]bool{
	"node.kubernetes.io/not-ready":                   true,
	"node.kubernetes.io/unreachable":                 true,
	"node.kubernetes.io/memory-pressure":             true,
	"node.kubernetes.io/disk-pressure":               true,
	"node.kubernetes.io/pid-pressure":                true,
	"node.kubernetes.io/network-unavailable":         true,
	"node.kubernetes.io/unschedulable":               true,
	"node.cloudprovider.kubernetes.io/uninitialized": true,
	"node.cloudprovider.kubernetes.io/shutdown":      true,
	"karpenter.sh/disrupted":                         true,
	"karpenter.sh/disruption":                        true, // until Karpenter 1.0
	"karpenter.sh/unregistered":                      true,
	"karpenter.sh/rebooting":                         true,
	"ToBeDeletedByClusterAutoscaler":                 true,
	"DeletionCandidateOfClusterAutoscaler":           true,
	"medik8s.io/drain":                               true,
}

const (
	outOfService = "node.kubernetes.io/out-of-service"
	controlPlane = "node-role.kubernetes.io/control-plane"
	oldMaster    = "node-role.kubernetes.io/master"
)

// TaintRemark is what is to be said of changing a taint, "" for nothing, and whether it belongs to a controller: setting
// or removing it by hand lasts a second, or confuses whoever set it.
func TaintRemark(key string) (remark string, controller bool) {
	switch {
	case owned[key], strings.HasPrefix(key, "node.cluster.x-k8s.io/"):
		return RemarkController, true
	case key == outOfService:
		return RemarkOutOfService, false
	case key == controlPlane, key == oldMaster:
		return RemarkControlPlane, false
	}
	return "", false
}

// special tells taints that say what a node is: they are changed by name only, never copied or replaced.
func special(key string) bool { return key == outOfService || key == controlPlane || key == oldMaster }

// Protected are the labels among them that may only be changed on purpose.
func (ls Labels) Protected() []Label {
	var out []Label
	for _, l := range ls {
		if _, yes := LabelRemark(l.Key); yes {
			out = append(out, l)
		}
	}
	return out
}

// CheckOwned refuses taints that belong to controllers. The error is a FieldError for the field.
func (ts Taints) CheckOwned(field string) error {
	for _, t := range ts {
		if _, yes := TaintRemark(t.Key); !yes {
			continue
		}
		if t.Key == "node.kubernetes.io/unschedulable" {
			return bad(field, t.String(), "names a taint that a controller keeps: cordon or uncordon the node instead")
		}
		return bad(field, t.String(), "names a taint that a controller keeps: it sets it again, or takes it away, by itself")
	}
	return nil
}

// Deletes tells taints that make the cluster delete pods at once: those with NoExecute, and the one that lets go of what
// runs on a node that is off.
func Deletes(key string, effect fleet.TaintEffect) bool {
	return effect == fleet.NoExecute || key == outOfService
}

// Needs are the permissions that an operation asks for, given what each node takes back if it is a revert. Lines that
// cannot be read ask for nothing: they are refused elsewhere.
func Needs(op fleet.Operation, undo []fleet.Edit) []fleet.Permission {
	need := map[fleet.Permission]bool{}
	base, ok := op.Action.Permission()
	need[base] = ok
	if ls, err := ParseLabels("labels", op.Labels); err == nil && len(ls.Protected()) > 0 {
		need[fleet.PermProtected] = true
	}
	if ts, err := ParseTaints("taints", op.Taints); err == nil {
		for _, t := range ts {
			if !t.Remove && Deletes(t.Key, t.Effect) {
				need[fleet.PermNoExecute] = true
			}
		}
	}
	if op.Drain != nil && op.Drain.DisableEviction {
		need[fleet.PermPastBudget] = true
	}
	for _, e := range Effective(undo) {
		switch e.Kind {
		case fleet.EditCordon:
		case fleet.EditLabel:
			need[fleet.PermNodeEdit] = true
			if _, yes := LabelRemark(e.Key); yes {
				need[fleet.PermProtected] = true
			}
		case fleet.EditTaint:
			need[fleet.PermNodeEdit] = true
			if e.Before != nil && Deletes(e.Key, e.Effect) { // it is put back
				need[fleet.PermNoExecute] = true
			}
		}
	}
	var out []fleet.Permission
	for _, p := range []fleet.Permission{
		fleet.PermNodeCordon, fleet.PermNodeDrain, fleet.PermNodeEdit, fleet.PermNoExecute, fleet.PermPastBudget, fleet.PermProtected,
	} {
		if need[p] {
			out = append(out, p)
		}
	}
	return out
}
