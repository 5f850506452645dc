package drain

import (
	"math"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-node-manager/kube-node-manager/internal/fleet"
	"github.com/kube-node-manager/kube-node-manager/internal/kube"
)

// ownGrace is the grace period, in seconds, that leaves each pod its own.
const ownGrace = -1

// OptionsOf reads what a person chose; self is the pod that this process runs in, zero outside of a cluster. An error is
// a fleet.FieldError that names the field as forms and JSON do.
func OptionsOf(o fleet.DrainOptions, self types.NamespacedName) (Options, error) {
	out := Options{
		Policy: Policy{
			SkipStuck: seconds(o.SkipStuckSeconds),
			Self:      self,
			Delete:    o.DisableEviction,
		},
		Timeout:          seconds(o.TimeoutSeconds),
		WaitReplacements: o.WaitReplacements,
	}
	if o.Force {
		out.Consents = append(out.Consents, fleet.ConsentUnmanaged, fleet.ConsentForce)
	}
	if o.DeleteEmptyDirData {
		out.Consents = append(out.Consents, fleet.ConsentLocalData)
	}
	if o.IgnoreOptOut {
		out.Consents = append(out.Consents, fleet.ConsentOptOut)
	}
	switch {
	case o.GracePeriodSeconds < ownGrace:
		return Options{}, fleet.Invalid("grace_period_seconds", "must be a number of seconds, or -1 for each pod's own")
	case o.GracePeriodSeconds == 0 && !o.Force:
		return Options{}, fleet.Invalid("grace_period_seconds", "0 ends containers at once and needs force")
	case o.GracePeriodSeconds > math.MaxInt32:
		return Options{}, fleet.Invalid("grace_period_seconds", "is too long")
	case o.GracePeriodSeconds != ownGrace:
		out.Grace = new(int64(o.GracePeriodSeconds))
	}
	for field, n := range map[string]int{"timeout_seconds": o.TimeoutSeconds, "skip_wait_for_delete_timeout": o.SkipStuckSeconds} {
		switch {
		case n < 0:
			return Options{}, fleet.Invalid(field, "must not be negative")
		case n > math.MaxInt32:
			return Options{}, fleet.Invalid(field, "is too long")
		}
	}
	if o.PodSelector != "" {
		s, err := labels.Parse(o.PodSelector)
		if err != nil {
			return Options{}, fleet.Invalid("pod_selector", "%s", kube.Plain(err.Error()))
		}
		if !s.Empty() {
			out.Selector = s
		}
	}
	return out, nil
}

func seconds(n int) time.Duration { return time.Duration(n) * time.Second }
